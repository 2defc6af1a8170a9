"""The scheme sets P and S of the paper, section III.C, and the pair V = {p, s} that selects from them.

Alice and Bob never send the sets: both derive them from K. V is drawn anew for every transmission and travels encrypted. With
SET_SIZE schemes in a set, a scheme comes up again now and then; that is the paper's construction.
"""

import secrets
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.defense.keys import KeyStream, derive

SET_SIZE = 256  # schemes in each set; the paper says "multiple"


@dataclass(frozen=True)
class SchemeSets:
    """``permutations`` int32 [SET_SIZE, h] and ``swapped`` bool [SET_SIZE, h], half of the rows True; both secret."""

    permutations: NDArray[np.int32] = field(repr=False)
    swapped: NDArray[np.bool_] = field(repr=False)


def scheme_sets(key: bytes, h: int) -> SchemeSets:
    """The sets that belong to K, for features of h rows. The same for everyone who has K."""
    permutations = KeyStream(derive(key, b"semseal/v1/permutation-set"))
    substitutions = KeyStream(derive(key, b"semseal/v1/substitution-set"))
    swapped = np.zeros((SET_SIZE, h), bool)
    for row in swapped:
        row[substitutions.permutation(h)[: h // 2]] = True
    return SchemeSets(np.array([permutations.permutation(h) for _ in range(SET_SIZE)], np.int32), swapped)


def draw_choice() -> int:
    """One number of V, 0..SET_SIZE-1, from the operating system's cryptographic generator."""
    return secrets.randbelow(SET_SIZE)


def noise_rows(rows: int, width: int) -> NDArray[np.float32]:
    """The random-noise tensor that pairs a single image: float32 [rows, width], Gaussian, mean power 1 per symbol.

    Drawn from the operating system's cryptographic generator by the Box-Muller transform, because Eve must not be able
    to predict it and subtract its rows.
    """
    n = rows * width // 2
    uniform = np.frombuffer(secrets.token_bytes(16 * n), np.uint64).reshape(2, n)
    radius = np.sqrt(-2 * np.log((uniform[0] + 0.5) / 2.0**64))
    angle = uniform[1] * (2 * np.pi / 2.0**64)
    out = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    out /= np.sqrt(2 * np.mean(out**2))
    return out.astype(np.float32).reshape(rows, width)
