"""Which frames were received before: for the keys of a keyset, bounded, and kept on disk if a file is given.

    header ── its sender known? ──yes── counter beyond the highest, or within the last 1,024 and not seen ──── fresh
                     └──no── younger than every sender that was forgotten ──────────────────────────────────── fresh

Of each key the 128 youngest senders are remembered. A sender's second of birth is a part of its session, so where one is
forgotten, all that are not younger are refused from then on, unless they are among the 128: nothing that was accepted is
accepted again.

On disk stands a *reservation* for each sender: a counter up to which it may have been accepted. It is written before the first
frame beyond the last one gives a picture, once in 256 frames, and what is read from disk counts as seen up to there. So a
receiver that was killed, or lost power, refuses up to 256 frames that it has not seen, and never takes one that it has. One
that ends by itself writes what it has seen, and refuses none. The file has two places that are written in turn, each with its
length and SHA-256: a write that was cut off leaves the other. It is locked; a second receiver must have a file of its own.

Not covered: a file that is put back to an older state, by a backup or a snapshot of the disk.
"""

import errno
import fcntl
import hashlib
import json
import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from semseal.runtime.defense.header import WINDOW, Header, ReplayWindow
from semseal.runtime.errors import KeyFileError
from semseal.runtime.files import named
from semseal.runtime.libraries import forks
from semseal.runtime.trust.privatefile import create_private, open_private

MAX_SENDERS = 128  # of each key
BLOCK = 256  # counters that are reserved at once

_FORMAT = b"semseal-replay-v1"
MAX_FILE_BYTES = 2**18  # both places
_MAX_KEYS = 16  # of which at most four are in use at a time
_SLOT_BYTES = 2**17
_ALL_SEEN = 2**WINDOW - 1

_Sender = tuple[str, bytes]


class KeysetWindow(ReplayWindow):
    """The counters seen of each sender. ``path`` is the file they are kept in, made if it is not there; None: in memory only.

    Raises KeyFileError for a file that is damaged, no place for it, or in use.
    """

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        self._floors: dict[str, int] = {}  # key -> second of birth of the youngest sender that was forgotten
        self._reserved: dict[_Sender, int] = {}
        self._store = None if path is None else _Store(path)
        if self._store is not None:
            for key_id, (floor, senders) in self._store.load().items():
                self._floors[key_id] = floor
                self._reserved |= {(key_id, sender): reserved for sender, reserved in senders.items()}
            self._seen = {sender: (reserved, _ALL_SEEN) for sender, reserved in self._reserved.items()}
            weakref.finalize(self, self._store.close, self._floors, self._seen)

    def fresh(self, header: Header) -> bool:
        """Whether this counter was never accepted and is not too old to tell. Raises KeyFileError in a forked process."""
        if self._store is not None:
            self._store.check_process()
        if header.sender in self._seen:
            return super().fresh(header)
        return _birth(header.sender) > self._floors.get(header.key_id, -1)

    def accept(self, header: Header) -> None:
        """Mark the counter as seen, on disk too. Raises OSError with the file's path; nothing is marked then."""
        if header.sender not in self._seen:
            if _birth(header.sender) <= self._floors.get(header.key_id, -1):  # it was forgotten in this very call
                self._seen[header.sender] = header.counter, _ALL_SEEN
            self._make_room(header.key_id)
        if self._store is not None and header.counter > self._reserved.get(header.sender, -1):
            reserved = {**self._reserved, header.sender: header.counter + BLOCK - 1}
            self._store.write(self._floors, reserved)
            self._reserved = reserved
        super().accept(header)

    def _make_room(self, key_id: str) -> None:
        senders = [sender for sender in self._seen if sender[0] == key_id]
        if len(senders) >= MAX_SENDERS:
            oldest = min(senders, key=_birth)
            self._floors[key_id] = max(self._floors.get(key_id, -1), _birth(oldest))
            self._forget(oldest)
        self._floors.setdefault(key_id, -1)
        while len(self._floors) > _MAX_KEYS:  # the key that came first; it was rotated out long ago
            first = next(iter(self._floors))
            del self._floors[first]
            for sender in [sender for sender in self._seen if sender[0] == first]:
                self._forget(sender)

    def _forget(self, sender: _Sender) -> None:
        del self._seen[sender]
        self._reserved.pop(sender, None)


class _Store:
    """The file, open and locked while its receiver lives."""

    def __init__(self, path: Path) -> None:
        self._path, self._process = path, (forks(), os.getpid())
        try:
            self._handle = open_private(path)
        except FileNotFoundError:
            create_private(path, _slot(0, {}))
            self._handle = open_private(path)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._handle)
            raise KeyFileError(
                f"another receiver keeps its replay window in {path}",
                "give each receiver a file of its own: state= (--state FILE)",
            ) from None
        self._sequence = 0

    def check_process(self) -> None:
        if self._process != (forks(), os.getpid()):
            raise KeyFileError(
                f"this receiver's replay window, {self._path}, is that of the process it was forked from",
                "open another Receiver(...) in this process, with a file of its own: state=",
            )

    def load(self) -> dict[str, tuple[int, dict[bytes, int]]]:
        """Of each key the floor and the reservations. Raises KeyFileError where neither place holds what was written."""
        found = []
        for start in (0, _SLOT_BYTES):
            with named(self._path):
                data = os.pread(self._handle, _SLOT_BYTES, start)
            try:
                found.append(_parse(data))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        if not found:
            os.close(self._handle)
            raise KeyFileError(
                f"{self._path} is not a replay window, or is damaged",
                "rotate the key, so that what was received before is refused, and name another file",
            )
        self._sequence, keys = max(found, key=lambda slot: slot[0])
        return keys

    def write(self, floors: dict[str, int], reserved: dict[_Sender, int]) -> None:
        keys: dict[str, Any] = {key_id: [floor, {}] for key_id, floor in floors.items()}
        for (key_id, sender), counter in reserved.items():
            keys[key_id][1][sender.hex()] = counter
        data = _slot(self._sequence + 1, keys)
        with named(self._path):
            if os.pwrite(self._handle, data, (self._sequence + 1) % 2 * _SLOT_BYTES) != len(data):
                raise OSError(errno.ENOSPC, "written in part")
            os.fdatasync(self._handle)
        self._sequence += 1

    def close(self, floors: dict[str, int], seen: dict[_Sender, tuple[int, int]]) -> None:
        """Write what was seen, and nothing beyond it."""
        if self._process == (forks(), os.getpid()):
            with suppress(OSError):  # the reservations stand
                self.write(floors, {sender: highest for sender, (highest, _) in seen.items()})
            os.close(self._handle)


def keys_of(data: bytes) -> set[str]:
    """The ids of the keys that a file's bytes remember frames of. Raises ValueError where it is damaged."""
    found = []
    for start in (0, _SLOT_BYTES):
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            found.append(_parse(data[start : start + _SLOT_BYTES]))
    if not found:
        raise ValueError("damaged")
    return {key_id for key_id, (_, senders) in max(found, key=lambda slot: slot[0])[1].items() if senders}


def _birth(sender: _Sender) -> int:
    return int.from_bytes(sender[1][:4], "little")


def _slot(sequence: int, keys: dict[str, Any]) -> bytes:
    text = json.dumps([sequence, keys], separators=(",", ":")).encode()
    return b"%s %d %s\n%s" % (_FORMAT, len(text), hashlib.sha256(text).hexdigest().encode(), text)


def _parse(data: bytes) -> tuple[int, dict[str, tuple[int, dict[bytes, int]]]]:
    """Raises ValueError and its like for what ``_slot`` does not write."""
    head, _, rest = data.partition(b"\n")
    name, length, checksum = head.split(b" ")
    text = rest[: int(length)]
    if name != _FORMAT or hashlib.sha256(text).hexdigest().encode() != checksum:
        raise ValueError("damaged")
    sequence, keys = json.loads(text)
    return sequence, {
        key_id: (floor, {bytes.fromhex(sender): counter for sender, counter in senders.items()})
        for key_id, (floor, senders) in keys.items()
    }
