"""What every process has of its own: the locks, counters and engines of one end of a link.

A forked child waits for no lock that its parent held, takes no counter of its parent's session, and opens engines itself.
"""

import os
import threading
import time
from dataclasses import replace

from semseal.runtime.bundle import Bundle
from semseal.runtime.defense.header import new_sender, new_session, next_session
from semseal.runtime.engine import ENGINES, ON_CPU, open_engine, open_mixing
from semseal.runtime.gpu.device import Engine
from semseal.runtime.libraries import forks

_SENDER_S = 3600.0


class Locks:
    """Locks, one for each process: a forked child finds its parent's held, perhaps for ever."""

    def __init__(self) -> None:
        self._locks: dict[tuple[int, int], threading.Lock] = {}

    def lock(self) -> threading.Lock:
        """That of this process. Threads that ask at once get the same one."""
        return self._locks.get(process()) or self._locks.setdefault(process(), threading.Lock())


class Counters:
    """The counters of one process: a session that nobody else has, and the first counter that nobody has taken.

    With a keyset every call has a session of its own, whose first half names the process for an hour: receivers remember the
    counters of so many senders and no more, so they forget the oldest. ``session`` is for audits, which must repeat.
    """

    def __init__(self, session: bytes | None = None) -> None:
        self._lock, self._session, self._first = threading.Lock(), session or new_session(), 0
        self._sender, self._until = new_sender(), time.monotonic() + _SENDER_S

    def take(self, count: int, in_keyset: bool) -> tuple[bytes, int]:
        """The session and the first of ``count`` counters that nobody has used; it is even, so pairs are 2k, 2k+1."""
        with self._lock:
            if in_keyset and time.monotonic() > self._until:
                self._sender, self._until, self._first = new_sender(), time.monotonic() + _SENDER_S, 0
            first = self._first
            self._first += count + count % 2
            return next_session(self._sender) if in_keyset else self._session, first


class Engines:
    """The engines of one end of a link, each opened when a process first needs it."""

    def __init__(self, bundle: Bundle, engine: str, precision: str, threads: int | None) -> None:
        self._bundle = replace(bundle, path=bundle.path.absolute())  # the program may change its folder meanwhile
        self._engine, self._precision, self._threads = engine, precision, threads
        self._opened: dict[tuple[tuple[int, int], str, bool], Engine] = {}  # those of the parent stay, as freeing one may hang
        self._own = Locks()

    def __repr__(self) -> str:
        return f"engine={self._engine!r}, precision={self._precision!r}"

    def check(self, side: str) -> None:
        """Raises BundleError unless the bundle has what ``open`` needs for float32 images."""
        self._bundle.program(side, self._precision, self._engine)

    def open(self, side: str, pixels: bool) -> Engine:
        """The engine of a side, for images as uint8 if ``pixels``; with ``-mix`` on a GPU a ``FusedMix`` if there can be one.

        Raises BundleError or EngineError.
        """
        place = process(), side, pixels
        found = self._opened.get(place)
        if found is None:
            with self._own.lock():
                found = self._opened.get(place)
                if found is None:
                    found = self._opened[place] = self._fused(side, pixels) or open_engine(
                        self._engine, self._bundle.program(side, self._precision, self._engine, pixels), self._threads
                    )
        return found

    def _fused(self, side: str, pixels: bool) -> Engine | None:
        plain = side.removesuffix("-mix")
        if plain == side or self._engine in ON_CPU or self._engine not in ENGINES or self._threads is not None:
            return None
        program, model = self._bundle.program(plain, self._precision, self._engine, pixels), self._bundle.manifest["model"]
        found: Engine | None = open_mixing(self._engine, program, plain, 2 * self._bundle.n_symbols, int(model["c"]))
        return found


def process() -> tuple[int, int]:
    """Names this process among those that it was forked from, some of which may have had its id."""
    return forks(), os.getpid()
