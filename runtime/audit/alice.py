"""Alice of an audit: the deployed transmitter, whose sessions and choices follow from a secret, so that what she sends repeats.

seed, place ── key ─┐
seed, cell ── sessions, choices ── frames: in every process, on every machine and in whatever order the cells are measured

A real transmitter draws them from the operating system's generator, and an audit of it that was run twice would find other
figures: as far apart as its intervals say, but never the same. Eve gets nothing of the seed.
"""

import hashlib
from pathlib import Path
from typing import Any

from semseal.runtime.defense.header import SESSION_SIZE
from semseal.runtime.defense.keys import KeyStream, derive
from semseal.runtime.defense.schemes import SET_SIZE
from semseal.runtime.link import Transmitter
from semseal.runtime.owned import Counters, process


class Alice(Transmitter):
    """A Transmitter of an audit. ``restart`` comes before the first frame."""

    def __init__(self, bundle: Path, key: bytes, defense: str, **how: Any) -> None:
        super().__init__(bundle, key, defense, **how)
        self._choices = KeyStream(bytes(32))

    def restart(self, secret: bytes) -> None:
        """A new session and new choices of V, which follow from ``secret``. The same one twice uses the same keys twice."""
        self._choices = KeyStream(derive(secret, b"semseal/v1/audit-choices"))
        self._counters = {process(): Counters(derive(secret, b"semseal/v1/audit-session")[:SESSION_SIZE])}

    def _draw_choice(self) -> int:
        return self._choices.below(SET_SIZE)


def secret_of(*what: object) -> bytes:
    """32 bytes that follow from ``what``, as text."""
    return hashlib.sha256("\0".join(["semseal audit", *map(str, what)]).encode()).digest()
