"""The two ends of a link in an audit: Alice, whose frames follow from a secret, and Bob, who takes the same ones again.

seed, place ── key ─┐
seed, cell ── sessions, choices ── frames: in every process, on every machine and in whatever order the cells are measured

A real transmitter draws sessions and choices from the operating system's generator, and an audit of it that was run twice would
find other figures: as far apart as its intervals say, but never the same. Eve gets nothing of the seed. What is overridden here
and what is called, three methods of the link, is there for audits alone; nothing that ``import semseal`` gives leads to it.
"""

import hashlib
from pathlib import Path
from typing import Any

from semseal.runtime.defense.header import SESSION_SIZE
from semseal.runtime.defense.keys import KeyStream, derive
from semseal.runtime.defense.schemes import SET_SIZE
from semseal.runtime.link import Transmitter
from semseal.runtime.owned import Counters
from semseal.runtime.receiver import Receiver


class Alice(Transmitter):
    """A Transmitter whose sessions and choices of V follow from a secret."""

    def __init__(self, bundle: Path, key: bytes, defense: str, secret: bytes, **how: Any) -> None:
        super().__init__(bundle, key, defense, **how)
        self.restart(secret)

    def restart(self, secret: bytes) -> None:
        """A new session and new choices of V, which follow from ``secret``. The same one twice uses the same keys twice."""
        self._choices = KeyStream(derive(secret, b"semseal/v1/audit-choices"))
        self._repeated = Counters(derive(secret, b"semseal/v1/audit-session")[:SESSION_SIZE])

    def _own_counters(self) -> Counters:
        return self._repeated

    def _draw_choice(self) -> int:
        return self._choices.below(SET_SIZE)


class Bob(Receiver):
    """A Receiver under a key of 32 bytes that can forget what it received."""

    def __init__(self, bundle: Path, key: bytes, engine: str, precision: str, threads: int | None) -> None:
        super().__init__(bundle, key, engine, precision, threads)
        self._key = key

    def restart(self) -> None:
        """From here on no frame was received before: those of an Alice who was restarted are taken again."""
        self._use_key(self._key)


def secret_of(*what: object) -> bytes:
    """32 bytes that follow from ``what``, as text."""
    return hashlib.sha256("\0".join(["semseal audit", *map(str, what)]).encode()).digest()
