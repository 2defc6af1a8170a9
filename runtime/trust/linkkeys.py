"""The keys that one end of a link uses: of 32 bytes, of a key file of the old form, or of a keyset.

A keyset's file is looked at ten times a second at most, by the calls that use it, and read again where it was replaced: a key
that was revoked is refused from then on, and a rotation needs no restart. A file that cannot be used any more is an error of
that call.
"""

import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path

from semseal.runtime.defense.keys import load_key
from semseal.runtime.errors import KeyFileError
from semseal.runtime.files import expanded, word
from semseal.runtime.trust.keyset import DIRECTIONS, Key, direction_key, read_keyset, written

_LOOK_S = 0.1


@dataclass(frozen=True)
class LinkKey:
    """K of one direction; ``id`` is that in the keyset, empty for a key that is in none."""

    secret: bytes = field(repr=False)
    id: str = ""
    dates: Key | None = None

    def is_valid(self, now: float) -> bool:
        return self.dates is None or self.dates.is_valid(now)


class LinkKeys:
    """The keys of one end. Raises KeyFileError, as its methods do, for a key that cannot be used."""

    def __init__(self, key: bytes | str | Path, sends: bool) -> None:
        self.require: str | None = None  # the defence that a keyset insists on, as it was read last
        self._path = _keyset_path(key)
        self._sends, self._next_look = sends, 0.0
        self._stamp: tuple[int, ...] = ()
        self._keys: tuple[LinkKey, ...] = (LinkKey(load_key(key)),) if self._path is None else ()
        self._now()

    @property
    def in_keyset(self) -> bool:
        return self._path is not None

    def sending(self) -> LinkKey:
        """The key that frames are sent with now."""
        keys, now = self._now(), time.time()
        if keys and keys[0].is_valid(now):
            return keys[0]
        file = word(self._path or "")
        fix = f"semseal keys rotate {file}, and give the other end its file: semseal keys peer {file} OTHER"
        if not keys:
            raise KeyFileError(f"{self._path} has no primary key to send with", fix)
        dates = keys[0].dates
        assert dates is not None  # without dates it is valid
        if dates.not_after is not None and dates.not_after <= now:
            raise KeyFileError(f"the primary key {keys[0].id} of {self._path} ended at {written(dates.not_after)}", fix)
        raise KeyFileError(
            f"the primary key {keys[0].id} of {self._path} begins at {written(dates.not_before)}, "
            f"and this machine's clock says {written(int(now))}",
            "set the clock, or wait",
        )

    def receiving(self) -> tuple[LinkKey, ...]:
        """Those that frames are received under now, the newest first; perhaps none."""
        now = time.time()
        return tuple(key for key in self._now() if key.is_valid(now))

    def _now(self) -> tuple[LinkKey, ...]:
        if self._path is None or time.monotonic() < self._next_look:
            return self._keys
        stamp = _stamp(self._path)
        if stamp != self._stamp or not stamp:
            keyset = read_keyset(self._path)
            direction = keyset.direction if self._sends else DIRECTIONS[keyset.direction]
            primary = keyset.primary
            used = keyset.usable if not self._sends else () if primary is None else (primary,)
            self._keys = tuple(LinkKey(direction_key(key.secret, direction), key.id, key) for key in used if key.secret)
            self.require, self._stamp = keyset.require, stamp  # if it was replaced meanwhile, the next call sees another stamp
        self._next_look = time.monotonic() + _LOOK_S
        return self._keys


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced or changed; empty where there is none."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_mode, found.st_nlink


def _keyset_path(key: bytes | str | Path) -> Path | None:
    """The path of a keyset; None for every other key, also for one that comes through a pipe, which can be read but once."""
    if isinstance(key, bytes) or not isinstance(key, (str, Path)):
        return None
    path = expanded(key).absolute()  # the program may change its folder meanwhile
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, "rb") as file:
            return path if file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") else None
    except (OSError, ValueError):  # read_key says what is wrong
        return None
