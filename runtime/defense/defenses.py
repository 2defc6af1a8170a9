"""The defences, one row each: what the link can send, and what else an audit can compare it with.

A row of the link is a mode of the header, and its place in the table is the mode's number on the wire: a new one goes to the
end of them. A comparator is a row with ``conceal`` and ``reveal``: functions of the undefended symbols that an audit applies
outside the deployed graphs, under a fresh key for each image. No transmitter offers it. A ``digital`` one sends other symbols
altogether, made of the picture by ``semseal.runtime.audit.digitalrival``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.defense import superposition, symbols

Symbols = NDArray[np.complex64]


@dataclass(frozen=True)
class Defense:
    """One defence.

    ``conceal(symbols [N], key)`` gives what goes on air for one image, complex64 [M]; ``reveal(received [M], key)`` undoes it.
    """

    name: str
    title: str
    short: str  # for narrow columns
    permutes: bool = False  # rows, by a scheme of the set P
    substitutes: bool = False  # rows with those of another image, by a scheme of the set S
    mixes: bool = False  # all symbols of an image
    broken: bool = False  # known to fall to an Eve who knows of it
    conceal: Callable[[Symbols, bytes], Symbols] | None = None
    reveal: Callable[[Symbols, bytes], Symbols] | None = None
    keyless: bool = False  # ``reveal`` takes no notice of the key, and so Eve can do it, too
    digital: bool = False  # sends a picture's encrypted file in place of its symbols

    @property
    def rival(self) -> bool:
        """Whether it is here to be compared with: no mode of the header."""
        return self.conceal is not None or self.digital

    @property
    def streams(self) -> int:
        """Frames that belong together on air: substitution sends images in pairs."""
        return 2 if self.substitutes else 1


DEFENSES = (
    Defense("none", "no defence", "none"),
    Defense("permute", "permutation", "permute", permutes=True, broken=True),
    Defense("substitute", "substitution", "substitute", substitutes=True, broken=True),
    Defense("permute+substitute", "permutation + substitution", "perm+subst", permutes=True, substitutes=True, broken=True),
    Defense("mix", "mix", "mix", mixes=True),
    Defense("symbol-permutation", "permutation of single symbols", "symbols", conceal=symbols.permute, reveal=symbols.restore),
    Defense(
        "superposition",
        "superposition coding",
        "superpos.",
        broken=True,
        keyless=True,
        conceal=superposition.superpose,
        reveal=superposition.cancel,
    ),
    Defense("digital", "digital link", "digital", digital=True),
)
BY_NAME = {defense.name: defense for defense in DEFENSES}
MODES = tuple(defense.name for defense in DEFENSES if not defense.rival)  # of the header, by their number on the wire
