"""What a check looks at: a bundle, and what it is deployed with. Everything is read once, when a rule first asks for it.

Nothing here follows a link, opens what is no regular file, or parses a byte of a bundle whose signature does not hold.
"""

import base64
import json
import os
import re
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.bundle import MANIFEST, Bundle, is_packaged, no_bundle, packaged_bundle, parse_manifest, verified_manifest
from semseal.runtime.defense.defenses import BY_NAME
from semseal.runtime.defense.keys import KEY_SIZE, generate_key
from semseal.runtime.errors import BundleError, CheckError, SemsealError, SendError
from semseal.runtime.files import expanded, word
from semseal.runtime.frame import Frame
from semseal.runtime.link import Receiver, Transmitter
from semseal.runtime.roundtrip import smooth_images

MAX_DOCUMENT_BYTES = 2**28  # of results and the like
MAX_KEY_FILE_BYTES = 2**16
MAX_ENTRIES = 100_000  # of a folder
PICTURES = ("black", "white", "grey", "smooth")


@dataclass(frozen=True)
class Asked:
    """What is deployed, and how: the options of ``semseal check``.

    ``folder`` is what else lies on the device, ``runs_only`` says that it exports nothing, ``two_way`` that both ends send, and
    ``receives`` that this one receives, with its replay window in ``state``. ``channel`` None: what the link was
    trained for; ``eve_channel`` None: as Bob's. ``budget`` is of Eve's rate in naming the picture.
    """

    bundle: Path
    owner: str | Path | None = None
    keys: Path | None = None
    folder: Path | None = None
    runs_only: bool = False
    two_way: bool = False
    receives: bool = False
    state: Path | None = None
    defense: str = "mix"
    engine: str = "onnxruntime-cpu"
    precision: str = "fp32"
    channel: str | None = None
    eve_channel: str | None = None
    results: Path | None = None
    budget: float | None = None
    benchmark: Path | None = None
    deadline_ms: float | None = None


@dataclass(frozen=True)
class Entry:
    """A name in a folder, relative to it, and what it is; ``status`` is that of the name itself, not of where a link leads."""

    name: str
    status: os.stat_result

    @property
    def kind(self) -> str:
        mode = self.status.st_mode
        kinds = {
            stat.S_IFREG: "file",
            stat.S_IFDIR: "folder",
            stat.S_IFLNK: "link",
            stat.S_IFIFO: "FIFO",
            stat.S_IFSOCK: "socket",
        }
        return kinds.get(stat.S_IFMT(mode), "device")


@dataclass(frozen=True, eq=False)
class Trial:
    """What the engine made of PICTURES in one precision: frames, or which of them it gave no symbols for, or why it failed."""

    frames: tuple[Frame, ...] = ()
    silent: tuple[int, ...] = ()
    failure: str = ""


class Deployment:
    """A bundle and what it is deployed with. Raises BundleError at once for what is no bundle at all."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        given = str(asked.bundle)
        by_name = not Path(given).exists() and Path(given).name == given and packaged_bundle(given).is_dir()
        self.path = packaged_bundle(given) if by_name else expanded(given)
        if not os.path.lexists(self.path / MANIFEST):
            raise no_bundle(self.path, f"there is no {MANIFEST} in it")
        if asked.keys is not None and not os.path.lexists(asked.keys):
            raise CheckError(f"there is no key file {asked.keys}", f"make one: semseal keygen {word(asked.keys)}")
        if asked.folder is not None and not asked.folder.is_dir():
            raise CheckError(f"{asked.folder} is not a folder", "name the folder with what is deployed beside the bundle")

    @property
    def name(self) -> str:
        return self.path.name if self.is_packaged else str(self.path)

    @property
    def is_packaged(self) -> bool:
        return is_packaged(self.path)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Everything in the bundle's folder."""
        return listed(self.path)

    @cached_property
    def beside(self) -> tuple[Entry, ...]:
        """Everything in the folder of the deployment, less the bundle itself."""
        if self.asked.folder is None:
            return ()
        return listed(self.asked.folder, self.path)

    @cached_property
    def text(self) -> bytes:
        """The manifest's bytes, verified. Raises BundleError."""
        return verified_manifest(self.path, self.asked.owner)

    @cached_property
    def bundle(self) -> Bundle:
        """Raises BundleError."""
        return parse_manifest(self.path, self.text)

    @property
    def digest(self) -> str | None:
        """The model's; None where no manifest can be read."""
        try:
            return self.bundle.digest.hex()
        except BundleError:
            return None

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The listed files, each checked against its digest. Raises BundleError."""
        return {name: self.bundle.read(name) for name in self.bundle.manifest["files"]}

    @property
    def graphs(self) -> dict[tuple[str, str], bytes]:
        """By side and precision."""
        found = {}
        for name, data in self.files.items():
            if name.endswith(".onnx"):
                side, precision, _ = name.split(".")
                found[side, precision] = data
        return found

    @cached_property
    def secrets(self) -> tuple[bytes, ...]:
        """Every 32 bytes that the key file holds in base64 or hex, damaged or not; none of them is ever shown."""
        if self.asked.keys is None:
            return ()
        return secrets_in(read_regular(self.asked.keys, MAX_KEY_FILE_BYTES) or b"")

    @cached_property
    def trials(self) -> dict[str, Trial]:
        """By precision: PICTURES through the deployed transmitter, under a key that is thrown away."""
        return {precision: self._tried(precision) for precision in self.bundle.manifest["precisions"]}

    def _tried(self, precision: str) -> Trial:
        asked, key = self.asked, None if self.asked.defense == "none" else generate_key()
        try:
            alice = Transmitter(self.path, key, asked.defense, asked.engine, precision, owner=asked.owner)
            pictures = pictures_of(self.bundle.height, self.bundle.width)
            try:
                frames = tuple(alice.send(pictures))
            except SendError as error:
                return Trial((), error.images)
            if precision == asked.precision:
                Receiver(self.path, key, asked.engine, precision, owner=asked.owner).receive(frames)
        except (SemsealError, ValueError) as error:
            return Trial(failure=error.message if isinstance(error, SemsealError) else str(error))
        return Trial(frames)

    @cached_property
    def audit(self) -> dict[str, Any] | None:
        """The results.json of an audit. Raises CheckError."""
        return None if self.asked.results is None else document(self.asked.results, "bundles", "games")

    @cached_property
    def benchmark(self) -> dict[str, Any] | None:
        """The results.json of a benchmark. Raises CheckError."""
        return None if self.asked.benchmark is None else document(self.asked.benchmark, "bundles", "rows")

    @property
    def mixes(self) -> bool:
        return BY_NAME[self.asked.defense].mixes


def secrets_in(data: bytes) -> tuple[bytes, ...]:
    """Every 32 bytes that are written as base64 or hex, if they are not all equal."""
    found = []
    for text in re.findall(rb"[0-9A-Za-z+/_-]{43,64}", data):
        try:
            found.append(bytes.fromhex(text.decode()) if len(text) == 2 * KEY_SIZE else base64.urlsafe_b64decode(text + b"="))
            found.append(base64.b64decode(text + b"="))
        except ValueError:
            continue
    return tuple(dict.fromkeys(secret for secret in found if len(secret) == KEY_SIZE and len(set(secret)) > 1))


def pictures_of(height: int, width: int) -> NDArray[np.float32]:
    """PICTURES, float32 [4, 3, height, width]."""
    flat = [np.full((3, height, width), level, np.float32) for level in (0, 1, 0.5)]
    return np.stack([*flat, smooth_images(1, height, width)[0]])


def listed(folder: Path, less: Path | None = None) -> tuple[Entry, ...]:
    """Everything in a folder but ``less``, in order of the names; no link is followed. Raises CheckError for too much."""
    found: list[Entry] = []
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if less is not None and Path(entry.path).absolute() == less.absolute():
                    continue
                status = entry.stat(follow_symlinks=False)
                found.append(Entry(os.path.relpath(entry.path, folder), status))
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(Path(entry.path))
        if len(found) > MAX_ENTRIES:
            raise CheckError(f"{folder} holds more than {MAX_ENTRIES} files", "name the folder of the deployment alone")
    return tuple(sorted(found, key=lambda entry: entry.name))


def read_regular(path: Path, limit: int) -> bytes | None:
    """At most ``limit`` bytes of a regular file, no link; None for anything else and for what cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        with open(handle, "rb", closefd=False) as file:  # which a folder cannot be opened as
            return file.read(limit)
    except OSError:
        return None
    finally:
        os.close(handle)


def document(path: Path, *fields: str) -> dict[str, Any]:
    """A JSON document that has these fields. Raises CheckError."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
        if len(data) > MAX_DOCUMENT_BYTES:
            raise ValueError(f"larger than {MAX_DOCUMENT_BYTES} bytes")
        found = json.loads(data)
        if not isinstance(found, dict) or not all(field in found for field in fields):
            raise ValueError(f"it has no {' and '.join(fields)}")
    except OSError as error:
        raise CheckError(f"cannot read {path}: {error.strerror}", "name the results.json that was written") from None
    except (ValueError, RecursionError) as error:
        raise CheckError(
            f"{path} is not the results that were asked for: {error}", "name the results.json as it was written"
        ) from None
    return found
