"""A recording of a link, as SigMF: read as what a stranger may have written, and never executed.

    NAME.sigmf-meta ── size ── JSON ── schema ── annotations, within the data and of the size of a frame ── frames, each once
    NAME.sigmf-data ── the symbols of one frame, when they are asked for
    session, counter of a frame ── its place among the pictures that were sent

A frame is an annotation with ``semseal:session`` and ``semseal:counter``, as ``semseal.runtime.net.record`` writes them. Both
are on air in the clear, so whoever records a link has them.
"""

import json
import os
import re
import stat
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.defense.header import SENDER_SIZE, SESSION_SIZE
from semseal.runtime.errors import AuditError
from semseal.runtime.files import named, shown
from semseal.runtime.frame import power
from semseal.runtime.net.record import DATA, MAX_FRAMES, META, files_of
from semseal.runtime.receiver import MAX_POWER

MAX_META_BYTES = 2**26
_SYMBOL_BYTES = 8
_WHOLE = "record it again, or copy both files again, whole"
# what metadata may say that is read here in no other way
_AS_WRITTEN = {
    "core:datatype": ("cf32_le",),
    "core:num_channels": (None, 1),
    "core:offset": (None, 0),
    "core:dataset": (None,),
    "core:metadata_only": (None, False),
    "core:trailing_bytes": (None, 0),
}


class RecordedFrame(NamedTuple):
    """Where a frame begins in the data, in symbols, and what its header says in the clear."""

    start: int
    session: bytes
    counter: int


@dataclass(frozen=True)
class Recording:
    """What was recorded: frames of ``n`` symbols, each once, in their order; ``left_out`` says of the others why."""

    data: Path
    role: str
    model: str
    n: int
    frames: tuple[RecordedFrame, ...]
    left_out: dict[str, str] = field(default_factory=dict)

    def symbols(self, frame: RecordedFrame) -> NDArray[np.complex64] | None:
        """Those of one frame, complex64 [n]; None where a receiver would not take them. Raises AuditError, OSError."""
        with named(self.data), _opened(self.data) as file:
            file.seek(_SYMBOL_BYTES * frame.start)
            read = file.read(_SYMBOL_BYTES * self.n)
        if len(read) != _SYMBOL_BYTES * self.n:
            raise AuditError(f"{shown(self.data)} became shorter while it was read", _WHOLE)
        found = np.frombuffer(read, "<c8").astype(np.complex64)
        with np.errstate(all="ignore"):  # whatever the bytes are
            return found if power(found) <= MAX_POWER else None


def read_recording(path: Path, sizes: Collection[int], preferred: Collection[int] = ()) -> Recording:
    """A recording, named with or without an ending, of frames of one of ``sizes`` symbols: that of the first, or ``preferred``.

    Raises AuditError for what is none, or of another model; OSError with the file's path.
    """
    data, meta = files_of(path)
    if path.suffix == ".sigmf":
        raise AuditError(f"{shown(path)} is an archive", "unpack it (tar -xf), and name the recording in it")
    found = _metadata(meta)
    about = found["global"]
    for key, known in _AS_WRITTEN.items():
        if about.get(key) not in known:
            hint = f"convert it to one channel of cf32_le in {DATA}, from sample 0 on"
            raise AuditError(f"{shown(meta)}: {key} is {_told(about.get(key))}, which is not read here", hint)
    if any(capture.get("core:header_bytes") for capture in found["captures"]):
        raise AuditError(f"{shown(meta)}: the data have headers of their own", f"convert them to symbols alone, as {DATA}")
    with named(data), _opened(data) as file:
        symbols = os.fstat(file.fileno()).st_size // _SYMBOL_BYTES
    frames, left_out = _frames(found["annotations"], meta, symbols, sizes)
    n = next((count for _, count in frames if count in preferred), frames[0][1])
    if others := sum(count != n for _, count in frames):
        left_out[f"{others} frames"] = f"of another size than {n} symbols; --defense chooses: of mix, or of the others"
    once: dict[tuple[bytes, int], RecordedFrame] = {}
    for frame, count in frames:
        if count == n:
            once.setdefault((frame.session, frame.counter), frame)
    if again := sum(count == n for _, count in frames) - len(once):
        left_out[f"{again} frames, again"] = "their session and counter are there before"
    role, model = (_told(about.get(key, "")) for key in ("semseal:role", "semseal:model"))
    return Recording(data, role, model, n, tuple(once.values()), left_out)


def places(frames: Sequence[RecordedFrame], count: int) -> tuple[dict[RecordedFrame, int], dict[str, str]]:
    """The place of each frame among ``count`` pictures, and why others have none.

    A sender counts its frames: by twos where each picture is a call of its own, as in ``semseal send``, else by ones. What is
    encoded again has a counter of its own and nothing says of which picture it is. So a sender's frames are taken where it
    counted no further than there are pictures, and of several senders only those that sent all pictures; of a picture that was
    sent by several the first frame.
    """
    senders: dict[bytes, list[RecordedFrame]] = {}
    for frame in frames:
        senders.setdefault(frame.session[:SENDER_SIZE], []).append(frame)
    found: dict[int, RecordedFrame] = {}
    left_out: dict[str, str] = {}
    for sender, here in senders.items():
        step = 2 if all(frame.counter % 2 == 0 for frame in here) else 1
        at = {frame.counter // step: frame for frame in here}
        what = f"{len(here)} frames of the sender {sender.hex()}"
        if max(at) >= count + (count % 2 if step == 1 else 0):  # a noise tensor may stand beside the last one
            left_out[what] = f"it counted {max(at) + 1}, and {count} pictures were sent: some again, or it sent others"
        elif len(senders) > 1 and not set(range(count)) <= set(at):
            left_out[what] = "which pictures they are is not known: there are several senders, and this one did not send all"
        else:
            if twice := sum(place in found for place in at):
                left_out[f"{twice} frames of the sender {sender.hex()}, again"] = "an earlier sender sent the same pictures"
            for place, frame in at.items():
                if place < count:
                    found.setdefault(place, frame)
    return {found[place]: place for place in sorted(found)}, left_out


def _opened(path: Path) -> Any:
    """A regular file for reading; never waits for what is none."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise AuditError(f"{shown(path)} is no regular file", "name what --record wrote")
    return open(handle, "rb", buffering=0)


def _metadata(path: Path) -> dict[str, Any]:
    """The metadata, valid by the schema of SigMF. Raises AuditError."""
    from sigmf.validate import validate  # isort: skip
    from jsonschema.exceptions import ValidationError  # isort: skip  # behind sigmf, whose extra the program knows

    if not path.exists():
        raise AuditError(f"there is no recording {shown(path)}", "name what --record wrote, NAME or NAME.sigmf-meta")
    with named(path), _opened(path) as file:
        text = file.read(MAX_META_BYTES + 1) if os.fstat(file.fileno()).st_size <= MAX_META_BYTES else None
    if text is None:
        raise AuditError(f"{shown(path)} has more than {MAX_META_BYTES} bytes", "split the recording")
    try:
        found = json.loads(text, parse_constant=_refused)
        annotations = found.get("annotations") if isinstance(found, dict) else None
        if isinstance(annotations, list) and len(annotations) > MAX_FRAMES:
            raise AuditError(f"{shown(path)} has more than {MAX_FRAMES} annotations", "split the recording")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of extensions that it does not declare
            validate(found)
    except ValidationError as error:
        raise AuditError(f"{shown(path)} is no SigMF: {error.json_path}: {_told(error.message)}", _WHOLE) from None
    except (ValueError, RecursionError) as error:
        raise AuditError(f"{shown(path)} is no SigMF: {_told(error)}", _WHOLE) from None
    return dict(found)


def _frames(
    annotations: list[dict[str, Any]], meta: Path, symbols: int, sizes: Collection[int]
) -> tuple[list[tuple[RecordedFrame, int]], dict[str, str]]:
    """The frames with the number of their symbols, and what was left out. Raises AuditError for one that cannot be."""
    frames: list[tuple[RecordedFrame, int]] = []
    unnamed = 0
    for number, annotation in enumerate(annotations):
        where = f"{shown(meta)}: annotation {number}"
        session, counter = annotation.get("semseal:session"), annotation.get("semseal:counter")
        start, count = annotation["core:sample_start"], annotation.get("core:sample_count", 0)
        if not all(type(value) is int and value >= 0 for value in (start, count)) or start + count > symbols:
            raise AuditError(f"{where} is not within the data, which have {symbols} symbols", _WHOLE)
        if session is None and counter is None:
            unnamed += 1
            continue
        if not isinstance(session, str) or not re.fullmatch(f"[0-9a-f]{{{2 * SESSION_SIZE}}}", session):
            raise AuditError(f"{where}: semseal:session is {_told(session)}, not {2 * SESSION_SIZE} digits 0-9a-f", _WHOLE)
        if type(counter) is not int or not 0 <= counter < 2**64:
            raise AuditError(f"{where}: semseal:counter is {_told(counter)}, not a number of 64 bits", _WHOLE)
        if count not in sizes:
            due = " or ".join(f"{size}" for size in sorted(set(sizes)))
            message = f"{where}: a frame of {count} symbols, and this model sends {due} (under mix with pads)"
            raise AuditError(message, "name the bundle whose link was recorded")
        frames.append((RecordedFrame(start, bytes.fromhex(session), counter), count))
    left_out = {f"{unnamed} annotations": f"no semseal:session and semseal:counter in {META}: no frames"} if unnamed else {}
    if not frames:
        also = f"; its {unnamed} annotations have no semseal:session and semseal:counter" if unnamed else ""
        raise AuditError(f"{shown(meta)} tells of no frame{also}", "record with semseal receive --record or send --record")
    return frames, left_out


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _told(value: object, longest: int = 100) -> str:
    """A value of a stranger's, as it can be printed."""
    plain = value is None or isinstance(value, str | int | float | Exception)
    text = f"{value}" if plain else f"a {type(value).__name__}"
    return shown(text if len(text) <= longest else f"{text[:longest]}...")
