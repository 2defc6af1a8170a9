"""What went on air, in a file: SigMF, which tools for radios read.

    NAME.sigmf-data   symbols of frame after frame, complex64           written as they go
    NAME.sigmf-meta   for each frame its place, session, counter        written behind the first frame and at the end, validated

A sender records what its transmitter made: symbols without noise, from which Eve gets more than from what she receives. A
receiver records what arrived, behind the channel, with zeros for what did not. Neither holds headers: these are not on air.
"""

import errno
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.errors import TransportError
from semseal.runtime.files import named, write_atomically
from semseal.runtime.net.wire import session_and_counter

MAX_FRAMES = 100_000  # of one recording: its metadata are kept in memory until it ends
DATA, META = ".sigmf-data", ".sigmf-meta"


def files_of(path: Path) -> tuple[Path, Path]:
    """The data and the metadata of a recording that is named with or without an ending."""
    stem = path.with_suffix("") if path.suffix in (DATA, META) else path
    return stem.with_name(stem.name + DATA), stem.with_name(stem.name + META)


class Recording:
    """A recording that is being made, or none where there is no path. Used as a context, at whose end it is complete."""

    def __init__(self, path: Path | None, role: str, model: str) -> None:
        """``path`` with or without its ending; neither file may be there. Raises OSError with the file's path."""
        self._role, self._model, self._written = role, model, 0
        self._frames: list[tuple[int, int, bytes, int]] = []
        self._file: BinaryIO | None = None
        if path is None:
            return
        from sigmf import SigMFFile

        self._make: Any = SigMFFile
        self._data, self._meta = files_of(path)
        with named(self._meta), open(self._meta, "xb"):
            pass
        try:
            self._file = open(self._data, "xb", buffering=0)  # noqa: SIM115  closed at the end
        except OSError:
            self._meta.unlink()
            raise

    def add(self, header: bytes, symbols: NDArray[np.complex64]) -> None:
        """One frame. Raises TransportError for a disk that is full: an OSError would look like a lost connection."""
        if self._file is None or len(self._frames) == MAX_FRAMES:
            return
        data = np.ascontiguousarray(symbols, "<c8").tobytes()
        try:
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise TransportError(f"{self._data}: {error.strerror}", "free some space there, or record elsewhere") from None
        self._frames.append((self._written, len(symbols), *session_and_counter(header)))
        self._written += len(symbols)
        if len(self._frames) == 1:
            self._describe()  # of a process that is killed, this is left

    def __enter__(self) -> "Recording":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Write the metadata. Nothing is left of a recording without a frame."""
        if self._file is None:
            return
        self._file.close()
        if not self._frames:
            self._data.unlink()
            self._meta.unlink()
            return
        with open(self._data, "r+b") as file, named(self._data):
            file.truncate(8 * self._written)  # of a frame that was written in part
        self._describe()

    def _describe(self) -> None:
        annotations = [_annotation(*frame) for frame in self._frames]
        captures = [{"core:sample_start": 0}]
        made = self._make({"global": self._global(), "captures": captures, "annotations": annotations})
        made.validate()
        write_atomically(self._meta, made.dumps(pretty=False).encode() + b"\n")

    def _global(self) -> dict[str, Any]:
        return {
            "core:datatype": "cf32_le",
            "core:version": "1.2.0",
            "core:description": f"symbols of a semantic communication link, recorded by its {self._role}",
            "core:recorder": "semseal",
            "core:extensions": [{"name": "semseal", "version": "1.0.0", "optional": True}],
            "semseal:role": self._role,
            "semseal:model": self._model,
        }


def _annotation(start: int, count: int, session: bytes, counter: int) -> dict[str, Any]:
    return {
        "core:sample_start": start,
        "core:sample_count": count,
        "semseal:session": session.hex(),
        "semseal:counter": counter,
    }
