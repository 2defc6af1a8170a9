"""Brute force over the scheme sets: Eve has the sets P and S but not the key, and tries every scheme on what she received.

    for every s, for every p:  rows arranged ── likelihood that neighbours are neighbours ── the best s, p, p'

Eve knows: what row ordering requires (``semseal.runtime.attacks.ordering``), and the sets P and S. They are shared once and
used for a long time, so they leak sooner than K. She does not know K, and hence not the V = {p, s} of any packet.
She does: a pair of pictures has 256^3 schemes (p, p', s), but for a given s each picture depends on its own p only. So she
scores 2 * 256^2 arrangements, as sums over one table of row-pair scores, and decodes nothing before she knows the best one.
Source: searching the key space of permutation-only ciphers with a smoothness test, Li et al. 2008 (Signal Process. Image
Commun. 23); that only the key may be assumed secret, Kerckhoffs 1883.
Positive control: permutation alone at 20 dB. Success: the rows in the order sent; Eve's pictures are then Bob's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.attacks.ordering import Order, RowModel, Rows, Scores, distance_scores, position_scores

SCORED_DISTANCES = 2  # 1 would do, but half of the neighbours are missing when only one frame of a pair was received


@dataclass(frozen=True, eq=False)
class FoundScheme:
    """The best scheme: ``p`` of each picture, their common ``s``, and ``order`` [pictures, h] for ``ordering.arrange``.

    ``order`` numbers the rows of all frames passed in, frame after frame, including frames that are missing; -1 marks a row
    that was not received.
    """

    p: tuple[int, ...]
    s: int
    order: Order


def search(
    model: RowModel,
    frames: Sequence[Rows | None],
    permutations: NDArray[np.integer],
    swapped: NDArray[np.bool_] | None = None,
    pictures: int | None = None,
) -> FoundScheme:
    """Find the scheme of one frame, float32 [h, r], or of the two of a substituted pair in the order sent; None: not received.

    ``permutations`` [P, h] and ``swapped`` [S, h] are the sets. For a mode without permutation pass the identity alone, for
    one without substitution None. ``pictures`` is 1 when the second of the pair is a noise tensor (the header is marked so).
    Raises ValueError when no frame was received.
    """
    h = model.h
    received = [rows for rows in frames if rows is not None]
    if not received:
        raise ValueError("at least one frame must have been received")
    swapped = np.zeros((1, h), bool) if swapped is None else swapped
    known = np.concatenate([np.full(h, rows is not None) for rows in frames])
    n, rows = len(known), np.concatenate(received)
    # a row that was not received scores 0 everywhere
    positions, distances = np.zeros((n, h)), np.zeros((min(SCORED_DISTANCES, model.max_distance), n, n))
    positions[known] = position_scores(model, rows)
    for d, table in enumerate(distances, 1):
        table[np.ix_(known, known)] = distance_scores(model, rows, d)
    totals = [
        np.array([_scores(distances, positions, _rows_on_air(permutations, s, picture)) for s in swapped])
        for picture in range(pictures or len(frames))
    ]
    s = int(np.sum([total.max(axis=1) for total in totals], axis=0).argmax())
    p = tuple(int(total[s].argmax()) for total in totals)
    order = np.array([_rows_on_air(permutations[one : one + 1], swapped[s], i)[0] for i, one in enumerate(p)])
    return FoundScheme(p, s, np.where(known[order], order, -1))


def _rows_on_air(permutations: NDArray[np.integer], swapped: NDArray[np.bool_], picture: int) -> Order:
    """Where each row of a picture is on air, [P, h]: its number in the frame, plus h in the second frame."""
    h = len(swapped)
    on_air = np.argsort(permutations, axis=1)
    return on_air + h * (swapped[on_air] ^ bool(picture))


def _scores(distances: Scores, positions: Scores, order: Order) -> Scores:
    """[P] summed log-likelihood ratios of the arrangements [P, h]."""
    n, h = positions.shape
    scores: Scores = positions.take(order * h + np.arange(h)).sum(axis=1)
    for d, table in enumerate(distances, 1):
        scores += table.take(order[:, :-d] * n + order[:, d:]).sum(axis=1)
    return scores
