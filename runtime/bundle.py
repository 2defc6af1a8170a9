"""The bundle: the folder that is deployed.

    manifest.json             format, model, files with sha256 and size, parity, how it was made
    transmitter.fp32.onnx     image [batch, 3, height, width], index [batch*h] -> symbols [batch, N, 2]
    receiver.fp32.onnx        symbols [batch, N, 2], index [batch*h] -> image [batch, 3, height, width]

A graph is read once, checked against its digest, and only those very bytes are parsed. That finds damage and mix-ups. It is
no protection from someone who can write the folder, manifest included: bundles are not signed yet.
"""

import hashlib
import json
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semseal.runtime.files import write_atomically

FORMAT = 1
MANIFEST = "manifest.json"
LARGEST = 2**20  # of any size in a manifest; refuses nonsense before anything is allocated by it


class BundleError(ValueError):
    """A bundle that must not be used; the message names the file and the reason."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was read. Shapes are those of one image."""

    path: Path
    manifest: dict[str, Any]

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
    def snr_db(self) -> float:
        """The main channel's SNR that the model was trained for."""
        return float(self.manifest["snr_db"])

    @property
    def digest(self) -> bytes:
        """32 bytes that name the model, whatever precision or engine runs it; bound into every header."""
        return bytes.fromhex(self.manifest["model"]["digest"])

    def graph(self, side: str, precision: str = "fp32") -> bytes:
        """The bytes of ``transmitter`` or ``receiver``, checked. Raises BundleError."""
        name = f"{side}.{precision}.onnx"
        entry = self.manifest["files"].get(name)
        if entry is None:
            raise BundleError(
                f"{self.path} has no precision {precision!r}; it has {', '.join(map(str, self.manifest['precisions']))}"
            )
        try:
            with open(self.path / name, "rb") as file:
                data = file.read(entry["size"] + 1)
        except OSError as error:
            raise BundleError(f"{self.path / name}: {error.strerror}") from None
        if len(data) != entry["size"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise BundleError(f"{self.path / name} does not match its digest in {MANIFEST}: changed or damaged, refused")
        return data


def open_bundle(path: Path | str) -> Bundle:
    """Read the manifest of a bundle: a folder, or ``photos-0db``, ``photos-10db``, ``photos-20db`` for a packaged one.

    A folder of such a name comes first. Raises BundleError when it is no bundle of this format.
    """
    packaged = packaged_bundle(str(path))
    by_name = not Path(path).exists() and Path(path).name == str(path) and packaged.is_dir()
    path = packaged if by_name else Path(path)
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except OSError as error:
        raise BundleError(
            f"{path} is not a bundle: {MANIFEST}: {error.strerror}; make one with semseal export RUN --out {path}, or take a "
            f"packaged one: {', '.join(sorted(folder.name for folder in packaged.parent.iterdir()))}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path / MANIFEST} is damaged: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f"{path / MANIFEST} is not of bundle format {FORMAT}, which this version of semseal reads")
    bundle = Bundle(path, manifest)
    try:
        sizes = (bundle.height, bundle.width, bundle.h, bundle.row_width)
        if not all(1 <= size <= LARGEST for size in sizes) or not math.isfinite(bundle.snr_db):
            raise ValueError("a size or the SNR is out of range")
        for entry in manifest["files"].values():
            if not isinstance(entry["size"], int) or len(bytes.fromhex(entry["sha256"])) != 32:
                raise ValueError("a file without a size or sha256")
        graphs = [manifest["files"][f"{side}.fp32.onnx"]["sha256"] for side in ("transmitter", "receiver")]
        if bundle.digest != model_digest(*graphs) or "fp32" not in manifest["precisions"]:
            raise ValueError("the model's digest is not that of its graphs")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(f"{path / MANIFEST} is damaged: {type(error).__name__}: {error}") from None
    return bundle


def model_digest(transmitter_sha256: str, receiver_sha256: str) -> bytes:
    """The 32 bytes that name a model: SHA-256 over the SHA-256 digests of its fp32 graphs."""
    return hashlib.sha256(bytes.fromhex(transmitter_sha256) + bytes.fromhex(receiver_sha256)).digest()


def write_bundle(path: Path, graphs: dict[str, bytes], manifest: dict[str, Any]) -> Bundle:
    """Write graphs by file name and the manifest with their digests, all or nothing; an older bundle is replaced.

    The model's digest is filled in. Raises BundleError when ``path`` is anything but an empty folder or a bundle.
    """
    if path.exists() and not path.is_dir():
        raise BundleError(f"{path} is not a folder")
    if path.exists() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise BundleError(f"{path} is neither empty nor a bundle; choose another --out")
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in graphs.items()}
    files = {name: {"sha256": digests[name], "size": len(data)} for name, data in graphs.items()}
    digest = model_digest(digests["transmitter.fp32.onnx"], digests["receiver.fp32.onnx"])
    manifest = {"format": FORMAT, **manifest, "model": {**manifest["model"], "digest": digest.hex()}, "files": files}
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=f".{path.name}.") as partial:
        new = Path(partial) / "new"
        new.mkdir()
        for name, data in graphs.items():
            write_atomically(new / name, data)
        write_atomically(new / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        if path.exists():
            os.replace(path, Path(partial) / "old")
        os.replace(new, path)
    return open_bundle(path)


def packaged_bundle(name: str) -> Path:
    """The folder of a bundle that ships inside the package: ``photos-0db``, ``photos-10db`` or ``photos-20db``."""
    return Path(__file__).parent / "models" / name
