"""The bundle: the folder that is deployed.

    manifest.json                             format, model, files with sha256 and size, parity, how it was made
    signature                                 of manifest.json by the owner: Ed25519, 64 bytes
    transmitter.fp32.onnx                     image [batch, 3, height, width], index [batch, h] -> symbols [batch, N, 2]
    receiver.fp32.onnx                        symbols [frames, N, 2], index [batch, h] -> image [batch, 3, height, width]
    engines/receiver.fp16.NAME.engine         a TensorRT plan: executable code for one kind of device
    engines/receiver-pixels.fp16.NAME.engine  the same with pictures as bytes
    engines/receiver.fp16.NAME.engine.json    its layers

Graphs for the defence mix are made of these when they are opened (``semseal.runtime.mixing``).

The manifest is verified with the pinned public key before it is parsed. A file is read once into memory, checked against its
digest in the manifest, and only those very bytes are parsed. No link is followed, and a file that the manifest does not list is
not looked at. So whoever can write the folder can break a bundle, or put an older one of the same owner in its place, but not
change what runs. Bundles that ship inside the package carry no signature: they are trusted as the package's own code is.
"""

import errno
import hashlib
import json
import math
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from semseal.runtime import signing
from semseal.runtime.errors import BundleError, GraphError
from semseal.runtime.files import check_writable, expanded, named, word, write_atomically
from semseal.runtime.mixing import with_mix
from semseal.runtime.onnxfile import check_onnx
from semseal.runtime.pixels import with_pixels

FORMAT = 5  # 4: mix, version 2; 5: a range of SNRs, models whose scale is in the header
MANIFEST = "manifest.json"
SIGNATURE = "signature"
ENGINES = "engines"
PRECISIONS = ("fp32", "fp16", "int8")  # those that export makes, each a graph for each side
FP32 = ("transmitter.fp32.onnx", "receiver.fp32.onnx")  # every bundle has them; their digests name the model
MODELS = Path(__file__).parent / "models"
MAX_DIMENSION = 2**20  # any size of the model in a manifest; refuses nonsense before anything is allocated by it
MAX_DATE = 2**33  # seconds since 1970
MAX_MANIFEST_BYTES = 2**20
MAX_FILE_BYTES = 2**30

_COPY = "copy the bundle again from where it was made"
_EXPORT = "semseal export RUN"
GRAPH_NAME = re.compile(r"(transmitter|receiver)\.[a-z0-9]+\.onnx")
_SHA256 = re.compile(r"[0-9a-f]{64}")
PLAN_NAME = re.compile(r"engines/(transmitter|receiver)(-mix)?(-pixels)?\.[a-z0-9]+\.[a-z0-9][a-z0-9_-]*\.engine(\.json)?")


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was read. Shapes are those of one image."""

    path: Path
    manifest: dict[str, Any]

    def __repr__(self) -> str:
        sizes = f"images [3, {self.height}, {self.width}], {self.n_symbols} symbols, SNR {_text(self.snr_range)}"
        runs = [*self.manifest["precisions"], *self.manifest.get("engines", [])]
        return f"Bundle({self.name!r}, {sizes}, {', '.join(map(str, runs))})"

    @property
    def name(self) -> str:
        """What ``open_bundle`` takes: a packaged bundle's name, else the folder."""
        return self.path.name if is_packaged(self.path) else str(self.path)

    @property
    def height(self) -> int:
        return int(self.manifest["model"]["height"])

    @property
    def width(self) -> int:
        return int(self.manifest["model"]["width"])

    @property
    def h(self) -> int:
        """Rows of the features."""
        return int(self.manifest["model"]["h"])

    @property
    def row_width(self) -> int:
        """Floats in a row, w*c."""
        return int(self.manifest["model"]["w"]) * int(self.manifest["model"]["c"])

    @property
    def n_symbols(self) -> int:
        """N, complex channel uses per image."""
        return self.h * self.row_width // 2

    @property
    def bandwidth_ratio(self) -> float:
        return self.n_symbols / (3 * self.height * self.width)

    @property
    def snr_range(self) -> tuple[float, float]:
        """The lowest and the highest SNR in dB of the main channel that the model was trained for; often the same."""
        low, high = self.manifest["snr_db"]
        return float(low), float(high)

    @property
    def snr_db(self) -> float:
        """The middle of that range: what is assumed of the main channel where nothing is said."""
        return sum(self.snr_range) / 2

    @property
    def has_scale(self) -> bool:
        """Whether the model needs the scale of each image, which the header carries, and is told the noise."""
        return self.manifest["model"].get("scale") == "header"

    @property
    def created(self) -> int:
        """When its graphs were made, in seconds since 1970; 0 for a bundle that does not say."""
        return int(self.manifest.get("created", 0))

    @property
    def digest(self) -> bytes:
        """32 bytes that name the model, whatever precision or engine runs it; bound into every header."""
        return bytes.fromhex(self.manifest["model"]["digest"])

    def graph(self, side: str, precision: str = "fp32") -> bytes:
        """The ONNX bytes of a side, ``transmitter`` or ``receiver``, checked; with ``-mix`` behind its name made to mix.

        Raises BundleError.
        """
        plain = side.removesuffix("-mix")
        name = f"{plain}.{precision}.onnx"
        if name not in self.manifest["files"]:
            there = ", ".join(map(str, self.manifest["precisions"]))
            raise BundleError(f"{self.path} has no precision {precision!r}, it has {there}", self._remake())
        data = self.read(name)
        _check_graph(self.path / name, data)
        if side == plain:
            return data
        try:
            return with_mix(data, plain, self.h, self.row_width, int(self.manifest["model"]["c"]))
        except GraphError as error:
            raise BundleError(f"{self.path}: {side} {precision}: {error.message}", error.hint) from None

    def program(self, side: str, precision: str, engine: str, pixels: bool = False) -> bytes:
        """What ``engine`` loads, checked: its plan if its name begins with ``tensorrt``, else the graph.

        ``pixels``: the program whose pictures are bytes (``semseal.runtime.pixels``). Raises BundleError.
        """
        if not engine.startswith("tensorrt"):
            graph = self.graph(side, precision)
            if not pixels:
                return graph
            try:
                return with_pixels(graph)
            except GraphError as error:
                raise BundleError(f"{self.path}: {side} {precision}: {error.message}", error.hint) from None
        side += "-pixels" if pixels else ""
        name = f"{ENGINES}/{side}.{precision}.{engine}.engine"
        if name not in self.manifest["files"]:
            there = ", ".join(file for file in self.manifest["files"] if file.endswith(".engine"))
            raise BundleError(
                f"{self.path} holds no {engine} engine for {side} {precision}, it has {there or 'none'}",
                f"semseal build {word(self.name)} --out OTHER --engine {engine}"
                if precision in self.manifest["precisions"]
                else self._remake(),
            )
        return self.read(name)

    def read(self, name: str) -> bytes:
        """The bytes of a file that the manifest lists, checked against their digest. Raises BundleError."""
        entry = self.manifest["files"].get(name)
        if entry is None:
            raise BundleError(f"{self.path} has no file {name!r}")
        try:
            with _folder(self.path) as folder:
                data = _read(folder, name, entry["size"])
        except OSError as error:
            raise BundleError(f"{self.path / name}: {_reason(error)}", _COPY) from None
        if len(data) != entry["size"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise BundleError(f"{self.path / name} does not match its digest in {MANIFEST}: changed or damaged, refused", _COPY)
        return data

    def _remake(self) -> str:
        """How to have this bundle with what it lacks."""
        if is_packaged(self.path):
            return "take what the packaged bundle has, or train and export a link of your own"
        return f"make the bundle again: {_command(self.manifest)} --out {word(self.path)} --force"


def open_bundle(path: Path | str, owner: str | Path | None = None) -> Bundle:
    """Verify and read the manifest of a bundle: a folder, or ``edge``, ``edge-quality``, ``photos-10db``, packaged.

    A folder of such a name comes first. ``owner`` is the public key to verify with, the line ``semseal-owner-v1:...`` or a
    file that holds it; without it SEMSEAL_OWNER or owner.pub of the config folder is used. Raises BundleError when there is
    no such key, when the signature is missing or not the owner's, and when it is no bundle of this format.
    """
    by_name = not Path(path).exists() and Path(path).name == str(path) and packaged_bundle(str(path)).is_dir()
    path = packaged_bundle(str(path)) if by_name else expanded(path)
    return parse_manifest(path, verified_manifest(path, owner))


def model_digest(transmitter_sha256: str, receiver_sha256: str) -> bytes:
    """The 32 bytes that name a model: SHA-256 over the SHA-256 digests of its fp32 graphs."""
    return hashlib.sha256(bytes.fromhex(transmitter_sha256) + bytes.fromhex(receiver_sha256)).digest()


def write_bundle(
    path: Path, files: dict[str, bytes], manifest: dict[str, Any], signing_key: Ed25519PrivateKey | None, force: bool = False
) -> Bundle:
    """Write files by name and the signed manifest with their digests, all or nothing.

    Names are ``SIDE.PRECISION.onnx``, ``engines/SIDE.PRECISION.ENGINE.engine`` and ``.engine.json``. The model's digest is
    filled in. ``signing_key`` is None for a packaged bundle and for no other. Raises BundleError as ``check_free``, and for
    what would be refused when it is read; OSError with the path where it cannot be written.
    """
    if (signing_key is None) != is_packaged(path):
        raise BundleError(f"{path}: a bundle is signed, except one in {MODELS}, which is not")
    if missing := [name for name in FP32 if name not in files]:
        raise BundleError(f"a bundle needs {' and '.join(missing)}")
    check_free(path, force)
    for name, data in files.items():
        if name.endswith(".onnx"):
            _check_graph(path / name, data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    entries = {name: {"sha256": digests[name], "size": len(data)} for name, data in files.items()}
    digest = model_digest(*(digests[name] for name in FP32))
    own = {"format": FORMAT, "model": {**manifest["model"], "digest": digest.hex()}, "files": entries}
    dated = {**own, "created": int(time.time()), **manifest}  # what is copied keeps its date
    text = (json.dumps({**dated, **own}, indent=2) + "\n").encode()
    if len(text) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path / MANIFEST} would be {len(text)} bytes, more than the {MAX_MANIFEST_BYTES} it may have")
    bundle = parse_manifest(path, text)
    with named(path):
        _write_folder(
            path, {**files, MANIFEST: text} | ({} if signing_key is None else {SIGNATURE: signing.sign(signing_key, text)})
        )
    return bundle


def check_free(path: Path, force: bool = False) -> None:
    """Raises BundleError unless ``path`` is free for a bundle: not there, an empty folder, or with ``force`` a bundle.

    Raises OSError with ``path`` where it cannot be written.
    """
    check_writable(path)
    if path.exists() and not path.is_dir():
        raise BundleError(f"{path} is not a folder", "choose another --out")
    held = [entry.name for entry in path.iterdir()] if path.exists() else []
    others = [name for name in held if name not in (MANIFEST, SIGNATURE, ENGINES) and not GRAPH_NAME.fullmatch(name)]
    if others or (held and not (path / MANIFEST).is_file()):
        raise BundleError(f"{path} is neither empty nor a bundle", "choose another --out")
    if held and not force:
        raise BundleError(f"{path} holds a bundle already", "choose another --out, or replace it, whole, with --force")


def _write_folder(path: Path, files: dict[str, bytes]) -> None:
    """Write a folder whole or not at all, in place of what is there."""
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=f".{path.name}.") as partial:
        new, old = Path(partial) / "new", Path(partial) / "old"
        new.mkdir()
        for name, data in files.items():
            (new / name).parent.mkdir(exist_ok=True)
            write_atomically(new / name, data)
        try:
            if path.exists():
                os.replace(path, old)
            os.replace(new, path)
        except BaseException:
            if old.exists() and not path.exists():
                os.replace(old, path)
            raise


def packaged_bundle(name: str) -> Path:
    """The folder of a bundle that ships inside the package: ``edge``, ``edge-quality`` or ``photos-10db``."""
    return MODELS / name


def is_packaged(path: Path) -> bool:
    """Whether ``path`` is spelt as a folder right inside the package's models; ``..`` and links to there do not count."""
    return path.absolute().parent == MODELS and path.name != ".."


def verified_manifest(path: Path, owner: str | Path | None) -> bytes:
    """The manifest's bytes, signed by the pinned owner or packaged. Raises BundleError."""
    try:
        with _folder(path) as folder:
            manifest = _read(folder, MANIFEST, MAX_MANIFEST_BYTES)
            if len(manifest) > MAX_MANIFEST_BYTES:
                raise OSError(errno.EFBIG, f"larger than {MAX_MANIFEST_BYTES} bytes")
            signature = None if is_packaged(path) else _read_signature(path, folder)
    except OSError as error:
        raise no_bundle(path, f"{MANIFEST}: {_reason(error)}") from None
    if signature is not None:
        try:
            pinned = signing.pinned_owner(owner)
        except signing.SigningError as error:
            raise BundleError(f"{path} cannot be verified: {error.message}", error.hint) from None
        try:
            signing.verify(pinned, manifest, signature)
        except signing.SigningError as error:
            raise BundleError(f"{path} is refused: {error.message}", error.hint) from None
    return manifest


def _read_signature(path: Path, folder: int) -> bytes:
    try:
        return _read(folder, SIGNATURE, signing.SIGNATURE_SIZE)
    except OSError as error:
        raise BundleError(
            f"{path} is not signed: {SIGNATURE}: {_reason(error)}",
            "make it again on the owner's machine, with semseal export or semseal pack: both sign",
        ) from None


def parse_manifest(path: Path, text: bytes) -> Bundle:
    """Everything that a verified manifest says and that is not about a file's content, checked. Raises BundleError."""
    try:
        manifest = json.loads(text.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path / MANIFEST} is damaged: {error}", _COPY) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        old = isinstance(manifest, dict) and manifest.get("format") == 3  # the last with version 1 of mix
        raise BundleError(
            f"{path / MANIFEST} is not of bundle format {FORMAT}, which this version of semseal reads"
            + ("; it holds version 1 of mix, whose frames give pictures away where there is little noise" if old else ""),
            f"make the bundle again: {_command(manifest)} --out {word(path)} --force",
        )
    bundle = Bundle(path, manifest)
    try:
        sizes = [manifest["model"][name] for name in ("height", "width", "h", "w", "c")]
        if not all(type(size) is int and 1 <= size <= MAX_DIMENSION for size in (*sizes, bundle.row_width)):
            raise ValueError(f"a size is not a whole number of 1 to {MAX_DIMENSION}")
        if not _is_range(manifest["snr_db"]):
            raise ValueError("its SNRs are not two numbers, the lower one first")
        if bundle.h * bundle.row_width % 2:
            raise ValueError("its features are an odd number of floats, and a symbol takes two")
        if type(created := manifest.get("created", 0)) is not int or not 0 <= created < MAX_DATE:
            raise ValueError("its date is none")
        if manifest["model"].get("scale", "header") != "header":
            raise ValueError("its model's scale is not in the header")
        for name, entry in manifest["files"].items():
            if not GRAPH_NAME.fullmatch(name) and not PLAN_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not SIDE.PRECISION.onnx or engines/SIDE.PRECISION.ENGINE.engine")
            if type(entry["size"]) is not int or not 0 <= entry["size"] <= MAX_FILE_BYTES:
                raise ValueError(f"the size of {name} is not a number of bytes up to {MAX_FILE_BYTES}")
            if not _SHA256.fullmatch(entry["sha256"]):
                raise ValueError(f"the sha256 of {name} is not 64 digits of lower case hex")
        digest = model_digest(*(manifest["files"][name]["sha256"] for name in FP32))
        if manifest["model"]["digest"] != digest.hex():
            raise ValueError("the model's digest is not that of its graphs")
        names = manifest["precisions"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or "fp32" not in names:
            raise ValueError("its precisions are no list of names with fp32")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(f"{path / MANIFEST} is damaged: {type(error).__name__}: {error}", _COPY) from None
    return bundle


def _once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError for a name that is there twice: two readers would read two things."""
    found = dict(members)
    if len(found) != len(members):
        names = [name for name, _ in members]
        raise ValueError(f"it names {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _is_range(snrs: Any) -> bool:
    two = isinstance(snrs, list) and len(snrs) == 2 and all(type(snr) in (int, float) for snr in snrs)
    return two and all(map(math.isfinite, snrs)) and bool(snrs[0] <= snrs[1])


def _text(snr_range: tuple[float, float]) -> str:
    low, high = snr_range
    return f"{low:g} dB" if low == high else f"{low:g} to {high:g} dB"


def _command(manifest: Any) -> str:
    """The command that made a bundle, less its options."""
    packed = isinstance(manifest, dict) and "packed" in manifest
    return "semseal pack --transmitter T.onnx --receiver R.onnx" if packed else _EXPORT


def _check_graph(path: Path, data: bytes) -> None:
    try:
        check_onnx(data)
    except GraphError as error:
        raise BundleError(f"{path}: {error.message}", error.hint) from None


@contextmanager
def _folder(path: Path | str, parent: int | None = None) -> Iterator[int]:
    """A folder's handle: what lies in it is opened relative to the handle, so it cannot be exchanged meanwhile.

    ``path`` itself may be a link, its last part not when it is inside ``parent``.
    """
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | (0 if parent is None else os.O_NOFOLLOW), dir_fd=parent)
    try:
        yield handle
    finally:
        os.close(handle)


def _read(folder: int, name: str, limit: int) -> bytes:
    """At most limit + 1 bytes of a regular file, at most one folder down. Raises OSError, for a link too."""
    if "/" in name:
        inner, name = name.split("/")
        with _folder(inner, folder) as handle:
            return _read(handle, name, limit)
    # without O_NONBLOCK, opening a FIFO would wait for somebody to write to it
    handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        with open(handle, "rb", closefd=False) as file:
            return file.read(limit + 1)
    finally:
        os.close(handle)


def no_bundle(path: Path, reason: str) -> BundleError:
    """The error for what is not there, or is no bundle for this reason."""
    packaged = ", ".join(sorted(folder.name for folder in MODELS.iterdir()))
    message = f"{path} is not a bundle: {reason}" if os.path.lexists(path) else f"there is no bundle {path}"
    return BundleError(message, f"make one: {_EXPORT} --out {word(path)}, or take a packaged one: {packaged}")


def _reason(error: OSError) -> str:
    return "a link, and links are not followed" if error.errno == errno.ELOOP else str(error.strerror)
