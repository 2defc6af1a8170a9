"""Scheme-set brute force: Eve has the scheme sets P and S, not the key, and tries every scheme on what she heard.

    for every s, for every p:  rows arranged ── likelihood that neighbours are neighbours ── the best s, p, p'

Eve knows: what row ordering knows (``semseal.runtime.attacks.ordering``), and the sets P and S: they are shared once and for
long, so they leak sooner than K. She does not know K, and so not V = {p, s} of any packet.
She does: a pair of pictures has 256^3 schemes (p, p', s), but given s each picture depends on its own p alone. So 2 * 256^2
arrangements are scored, by sums over one table of scores of row pairs; nothing is decoded before the best is known.
Source: the key space of permutation-only ciphers searched with a test of smoothness, Li et al. 2008 (Signal Process. Image
Commun. 23); that only the key may be taken for secret, Kerckhoffs 1883.
Positive control: permutation alone at 20 dB. Success: the rows as they were sent, then Eve's pictures are Bob's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.attacks.ordering import Likeness, Order, Rows, Scores, at_place, follows

DISTANCES = 2  # 1 alone would do, but with one frame of a pair heard half of the neighbours are missing


@dataclass(frozen=True, eq=False)
class Found:
    """The best scheme: ``p`` of each picture, their common ``s``, and ``order`` [pictures, h] for ``ordering.arrange``.

    ``order`` counts the rows of all frames that were given, one frame after the other, missing ones included; -1 where the
    row was not heard.
    """

    p: tuple[int, ...]
    s: int
    order: Order


def search(
    likeness: Likeness,
    frames: Sequence[Rows | None],
    permutations: NDArray[np.integer],
    swapped: NDArray[np.bool_] | None = None,
    pictures: int | None = None,
) -> Found:
    """Frames are float32 [h, r]: one alone, or the two that substitution paired, in the order sent; None if not heard.

    ``permutations`` [P, h] and ``swapped`` [S, h] are the sets; the identity alone stands for a mode without permutation,
    None for one without substitution. ``pictures``: 1 when a noise tensor is the second of the pair (its header says so).
    Raises ValueError for no frame at all.
    """
    h = likeness.h
    heard = [rows for rows in frames if rows is not None]
    if not heard:
        raise ValueError("at least one frame must have been heard")
    swapped = np.zeros((1, h), bool) if swapped is None else swapped
    known = np.concatenate([np.full(h, rows is not None) for rows in frames])
    n, rows = len(known), np.concatenate(heard)
    # what was not heard says nothing: 0
    places, tables = np.zeros((n, h)), np.zeros((min(DISTANCES, likeness.reach), n, n))
    places[known] = at_place(likeness, rows)
    for d, table in enumerate(tables, 1):
        table[np.ix_(known, known)] = follows(likeness, rows, d)
    totals = [
        np.array([_scores(tables, places, _arranged(permutations, s, picture)) for s in swapped])
        for picture in range(pictures or len(frames))
    ]
    s = int(np.sum([total.max(axis=1) for total in totals], axis=0).argmax())
    p = tuple(int(total[s].argmax()) for total in totals)
    order = np.array([_arranged(permutations[one : one + 1], swapped[s], i)[0] for i, one in enumerate(p)])
    return Found(p, s, np.where(known[order], order, -1))


def _arranged(permutations: NDArray[np.integer], swapped: NDArray[np.bool_], picture: int) -> Order:
    """Where each row of a picture is, [P, h]: place on air, plus h in the second frame (compare ``index.invert``)."""
    h = len(swapped)
    on_air = np.argsort(permutations, axis=1)
    return on_air + h * (swapped[on_air] ^ bool(picture))


def _scores(tables: Scores, places: Scores, order: Order) -> Scores:
    """[P] summed log-likelihood ratios of arrangements [P, h]."""
    n, h = places.shape
    scores: Scores = places.take(order * h + np.arange(h)).sum(axis=1)
    for d, table in enumerate(tables, 1):
        scores += table.take(order[:, :-d] * n + order[:, d:]).sum(axis=1)
    return scores
