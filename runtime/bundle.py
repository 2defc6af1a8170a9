"""The bundle: the folder that is deployed.

    manifest.json             format, model, files with sha256 and size, parity, how it was made
    transmitter.fp32.onnx     image [batch, 3, height, width], index [batch*h] -> symbols [batch, N, 2]
    receiver.fp32.onnx        symbols [batch, N, 2], index [batch*h] -> image [batch, 3, height, width]

A graph is read once, checked against its digest, and only those very bytes are parsed.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semseal.runtime.files import write_atomically

FORMAT = 1
MANIFEST = "manifest.json"


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
            raise BundleError(f"{self.path} has no precision {precision!r}; it has {', '.join(self.manifest['precisions'])}")
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise BundleError(f"{self.path / name}: {error.strerror}") from None
        if len(data) != entry["size"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise BundleError(f"{self.path / name} does not match its digest in {MANIFEST}: changed or damaged, refused")
        return data


def open_bundle(path: Path | str) -> Bundle:
    """Read a bundle's manifest. Raises BundleError when it is no bundle of this format."""
    path = Path(path)
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except OSError as error:
        raise BundleError(
            f"{path} is not a bundle: {MANIFEST}: {error.strerror}; make one with: semseal export RUN --out {path}"
        ) from None
    except ValueError as error:
        raise BundleError(f"{path / MANIFEST} is damaged: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f"{path / MANIFEST} is not of bundle format {FORMAT}, which this version of semseal reads")
    bundle = Bundle(path, manifest)
    try:
        sizes = (bundle.height, bundle.width, bundle.h, bundle.row_width, len(manifest["precisions"]))
        if min(sizes) < 1 or len(bundle.digest) != 32 or not isinstance(bundle.snr_db, float):
            raise ValueError("a size or digest is out of range")
        if any(not isinstance(entry["size"], int) for entry in manifest["files"].values()):
            raise ValueError("a file without a size")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path / MANIFEST} is damaged: {type(error).__name__}: {error}") from None
    return bundle


def write_bundle(path: Path, graphs: dict[str, bytes], manifest: dict[str, Any]) -> Bundle:
    """Write graphs by file name, then the manifest with their digests, so an interrupted write leaves no valid bundle.

    Raises BundleError when the folder holds anything but an older bundle's files.
    """
    if path.exists():
        if not path.is_dir():
            raise BundleError(f"{path} is not a folder")
        if any(path.iterdir()) and not (path / MANIFEST).is_file():
            raise BundleError(f"{path} is neither empty nor a bundle; choose another --out")
    path.mkdir(parents=True, exist_ok=True)
    (path / MANIFEST).unlink(missing_ok=True)
    for name, data in graphs.items():
        write_atomically(path / name, data)
    files = {name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in graphs.items()}
    text = json.dumps({"format": FORMAT, **manifest, "files": files}, indent=2) + "\n"
    write_atomically(path / MANIFEST, text.encode())
    return open_bundle(path)


def packaged_bundle(name: str) -> Path:
    """The folder of a bundle that ships inside the package: ``photos-0db``, ``photos-10db`` or ``photos-20db``."""
    return Path(__file__).parent / "models" / name
