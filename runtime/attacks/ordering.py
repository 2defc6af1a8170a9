"""Row ordering: Eve restores the order of permuted and substituted rows from what she received, without key, sets or header.

    attacker's rows ── fit ── how likely row b is d rows below row a, and row a at position t of its picture
    received rows of all streams ── score every ordered pair ── best paths of h rows ── pictures, decoded as Bob's are

Eve knows: the deployed transmitter and receiver, her SNR, the attacker's images, which are of the same kind, and how many
pictures the received rows belong to. She does not know K, V, the scheme sets, or any picture that was sent.
She does: for each distance d she fits one ridge regression from a row to the row d further down, on clean rows with her noise
added to the covariance. The score of a pair is the log-likelihood ratio of the whitened residual against that of any row. She
joins rows into paths greedily and improves the paths by exchanging neighbouring segments (3-opt, Lin 1965, only the moves that
keep the direction) until no exchange helps. The convolutions' zero padding marks the first and the last row of a picture.
Source: jigsaw solvers as attacks on scrambled images, Chuman and Kiya 2018 (IEICE Trans. Fundamentals E101-A); whitened
residuals as the score of two pieces, Gallagher 2012 (CVPR).
Positive control: permutation alone at 20 dB, where every row must come back.
Success: neighbouring rows next to each other again, and a PSNR near Bob's at the same SNR.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

MAX_DISTANCE = 8  # rows; rows further apart say little about each other
RIDGE_VARIANCE = 1e-3  # added to that of every real value of a row; symbols have 0.5

_NO_LINK = -1e9
_EXCESS_PENALTY = 1e6  # for each row by which a path is too long

Rows = NDArray[np.float32]
Scores = NDArray[np.float64]
Order = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RowModel:
    """What the attacker's images say about rows at Eve's SNR, for distances d = 0..max_distance; r = w*c real values in a row.

    A row b that is d rows below row a has the whitened residual ``b @ whiten_residual[d] - a @ predict[d] - offset[d]``.
    """

    h: int
    max_distance: int
    noise: float  # variance of one real value
    mean: Scores  # [r], of any row
    whiten: Scores  # [r, r], for any row
    predict: Scores  # [max_distance+1, r, r]
    whiten_residual: Scores  # [max_distance+1, r, r]
    offset: Scores  # [max_distance+1, r]
    log_scale: Scores  # [max_distance+1], log of det(whiten_residual) / det(whiten)
    whiten_at_position: Scores  # [r, r], for a row around the mean of its position
    position_means: Scores  # [h, r], these means, whitened


def fit(rows: Rows, snr_db: float, max_distance: int = MAX_DISTANCE) -> RowModel:
    """Fit to rows of undefended pictures, float32 [pictures, h, r], without noise; r = 720 takes a few hundred pictures.

    Raises ValueError for fewer than 2 pictures or rows, or rows that are not finite.
    """
    if rows.ndim != 3 or min(rows.shape[:2]) < 2 or not np.isfinite(rows).all():
        raise ValueError(f"rows must be finite, [pictures, h, r] with 2 or more pictures and rows, got {list(rows.shape)}")
    pictures, h, r = rows.shape
    max_distance = min(max_distance, h - 1)
    noise = 10 ** (-snr_db / 10) / 2
    mean = rows.mean(axis=(0, 1))
    x = rows - mean
    every = x.reshape(-1, r)
    total = (every.T @ every).astype(np.float64)
    added = (noise + RIDGE_VARIANCE) * np.eye(r)
    whiten = _whitening(total / len(every) + added)
    predict, whiten_residual = np.empty((2, max_distance + 1, r, r))
    offset, log_scale = np.empty((max_distance + 1, r)), np.empty(max_distance + 1)
    for d in range(max_distance + 1):
        a, b = x[:, : h - d], x[:, d:]
        n = pictures * (h - d)
        mean_a, mean_b = a.mean(axis=(0, 1), dtype=np.float64), b.mean(axis=(0, 1), dtype=np.float64)
        # the sums over a and b are the sum over all rows minus the d rows at one end
        cov_a = (total - _gram(x[:, h - d :])) / n - np.outer(mean_a, mean_a) + added
        cov_b = (total - _gram(x[:, :d])) / n - np.outer(mean_b, mean_b) + added
        cross = (a.reshape(n, r).T @ b.reshape(n, r)).astype(np.float64) / n - np.outer(mean_a, mean_b)
        slope = np.linalg.solve(cov_a, cross)  # E[b | a] = mean_b + (a - mean_a) @ slope
        whiten_residual[d] = _whitening(cov_b - cross.T @ slope)
        predict[d] = slope @ whiten_residual[d]
        offset[d] = mean_b @ whiten_residual[d] - mean_a @ predict[d]
        log_scale[d] = np.log(np.diagonal(whiten_residual[d]) / np.diagonal(whiten)).sum()
    means = x.mean(axis=0, dtype=np.float64)
    at = _whitening(total / len(every) - means.T @ means / h + added)
    return RowModel(
        h, max_distance, noise, mean.astype(np.float64), whiten, predict, whiten_residual, offset, log_scale, at, means @ at
    )


def order(model: RowModel, received: Rows, pictures: int = 1) -> Order:
    """Put received rows, float32 [n, r], or [packets, n, r] under one scheme, back into that many pictures.

    Returns int64 [pictures, h]: the received row at each position, -1 where none was received. All n rows are used; with
    n = pictures*h there is no gap. Nothing says which picture is the first. Raises ValueError unless
    pictures <= n <= pictures*h.
    """
    packets = received[None] if received.ndim == 2 else received
    n, h = packets.shape[1], model.h
    if not 1 <= pictures <= n <= pictures * h:
        raise ValueError(f"{n} rows do not fit {pictures} pictures of {h} rows")
    complete = n == pictures * h
    with np.errstate(divide="ignore"):
        # by number of rows, the log-probability that all of them are missing; exactly 0 for no row
        log_missing = np.log1p(-n / (pictures * h)) * np.maximum(np.arange(h), 1)
    log_missing[0] = 0
    reach = 1 if complete else model.max_distance
    below = np.sum([[distance_scores(model, x, d) for d in range(1, reach + 1)] for x in packets], axis=0)  # [reach, n, n]
    below += log_missing[:reach, None, None]
    position = np.sum([position_scores(model, x) for x in packets], axis=0)  # [n, h]
    links = np.full((n + pictures, n + pictures), _NO_LINK)  # node n+i stands before path i
    links[:n, :n] = below.max(axis=0)
    links[n:, :n] = (position + log_missing).max(axis=1)
    links[:n, n:] = (position + log_missing[::-1]).max(axis=1)[:, None]
    np.fill_diagonal(links, _NO_LINK)
    out = np.full((pictures, h), -1, np.int64)
    for slots, path in zip(out, _best_paths(links, pictures, h), strict=True):
        slots[np.arange(h) if complete else _positions(path, below, position, log_missing)] = path
    return out


def arrange(received: Rows, found: Order) -> Rows:
    """Received rows [n, r] in the order found [pictures, h]: float32 [pictures, h, r], gaps interpolated linearly."""
    out = np.empty((*found.shape, received.shape[1]), np.float32)
    for rows, slots in zip(out, found, strict=True):
        known = np.flatnonzero(slots >= 0)
        where = np.interp(np.arange(len(slots)), known, np.arange(len(known)))
        low = where.astype(np.int64)
        part = (where - low)[:, None]
        have = received[slots[known]]
        rows[:] = have[low] * (1 - part) + have[np.minimum(low + 1, len(known) - 1)] * part
    return out


def distance_scores(model: RowModel, received: Rows, d: int) -> Scores:
    """[n, n] log-likelihood ratio: received row j is d rows below row i (d = 0: they are the same row), against any row."""
    x = received - model.mean
    expected, found = x @ model.predict[d] + model.offset[d], x @ model.whiten_residual[d]
    square = (expected**2).sum(axis=1)[:, None] + (found**2).sum(axis=1) - 2 * expected @ found.T
    any_row = -((x @ model.whiten) ** 2).sum(axis=1) / 2  # log likelihood as a row of any picture, up to the same constant
    scores: Scores = model.log_scale[d] - square / 2 - any_row
    return scores


def position_scores(model: RowModel, received: Rows) -> Scores:
    """[n, h] log-likelihood ratio: received row i is at position t of its picture, against any position."""
    x = (received - model.mean) @ model.whiten_at_position
    scores = x @ model.position_means.T - (model.position_means**2).sum(axis=1) / 2
    ratio: Scores = scores - logsumexp(scores, axis=1, keepdims=True) + np.log(model.h)
    return ratio


def _gram(x: Rows) -> Scores:
    flat = x.reshape(-1, x.shape[-1]).astype(np.float64)
    product: Scores = flat.T @ flat
    return product


def _whitening(covariance: Scores) -> Scores:
    """The lower triangular W for which W W^T is the inverse, so that x @ W has unit covariance."""
    return np.linalg.cholesky(np.linalg.inv(covariance))


def _best_paths(links: Scores, paths: int, h: int) -> list[Order]:
    """The rows of each path, at most h in each, with a large sum of links; ``order`` explains the nodes."""
    tour = _improve(links, _greedy(links), paths, np.inf)
    if _excess(np.flatnonzero(tour >= len(links) - paths)[:, None], len(links), h)[0]:
        tour = _improve(links, tour, paths, h)
    return [part[1:] for part in np.split(tour, np.flatnonzero(tour >= len(links) - paths)[1:])]


def _greedy(links: Scores) -> Order:
    """One cycle through all nodes, starting at the last one, built from the best links first.

    Best are the links that stand out: the table is first balanced (Sinkhorn 1964), so that the links into every node sum to
    one, and so do those out of it.
    """
    n = len(links)
    free = links / 2
    for _ in range(20):
        for axis in (1, 0):
            free -= logsumexp(free, axis=axis, keepdims=True)
    following = np.empty(n, np.int64)
    head, tail = np.arange(n), np.arange(n)  # of a chain: the first node by the last, and the last by the first
    for _ in range(n - 1):
        a, b = divmod(int(free.argmax()), n)
        following[a] = b
        free[a], free[:, b] = -np.inf, -np.inf
        first, last = head[a], tail[b]
        head[last], tail[first] = first, last
        free[last, first] = -np.inf  # would close the cycle too early
    following[last] = first
    tour = [n - 1]
    while len(tour) < n:
        tour.append(following[tour[-1]])
    return np.array(tour)


def _improve(links: Scores, tour: Order, paths: int, longest: float) -> Order:
    """Exchange two neighbouring segments of the cycle for as long as that helps, the best exchange first."""
    n = len(tour)
    i, j, k, ij, jk, ki = _exchanges(n)
    if not len(i):
        return tour
    while True:
        link = links[tour[:, None], np.roll(tour, -1)]  # from the i-th node of the tour to the one after the j-th
        gain = link - np.diagonal(link)[:, None]
        gains = gain.take(ij) + gain.take(jk) + gain.take(ki)
        starts = np.flatnonzero(tour >= n - paths)[:, None]
        if np.isfinite(longest):
            moved = starts + (k - j) * ((starts > i) & (starts <= j)) - (j - i) * ((starts > j) & (starts <= k))
            gains -= _EXCESS_PENALTY * (_excess(np.sort(moved, axis=0), n, longest) - _excess(starts, n, longest))
        best = gains.argmax()
        if gains[best] <= 1e-6:
            return tour
        a, b, c = i[best] + 1, j[best] + 1, k[best] + 1
        tour = np.concatenate([tour[:a], tour[b:c], tour[a:b], tour[c:]])


@lru_cache(maxsize=2)
def _exchanges(n: int) -> tuple[NDArray[np.integer], ...]:
    """All i < j < k in 0..n-1, for segments i+1..j and j+1..k, then (i, j), (j, k) and (k, i) as flat indices into [n, n]."""
    j, k = np.triu_indices(n, 1)
    i = np.concatenate([np.arange(first) for first in j]).astype(np.int32) if len(j) else np.empty(0, np.int32)
    j, k = np.repeat(j, j).astype(np.int32), np.repeat(k, j).astype(np.int32)
    return i, j, k, i * n + j, j * n + k, k * n + i


def _excess(starts: NDArray[np.integer], n: int, longest: float) -> Scores:
    """By how many rows the paths are too long; ``starts`` [paths, m] are the sorted indices of the nodes before them."""
    ends = np.concatenate([starts[1:], np.full_like(starts[:1], n)])
    excess: Scores = np.maximum(ends - starts - 1 - longest, 0).sum(axis=0)
    return excess


def _positions(path: Order, below: Scores, position: Scores, log_missing: Scores) -> Order:
    """The likeliest positions, increasing, of a path's rows when rows between them may be missing (dynamic programming)."""
    h = position.shape[1]
    step = np.subtract.outer(np.arange(h), np.arange(h)).T  # [from, to]
    best = position[path[0]] + log_missing
    came_from = []
    for a, b in pairwise(path):
        jump = np.full(h + 1, -np.inf)  # by distance; the last entry stands for every step back
        jump[1:h] = log_missing[:-1]
        jump[1 : len(below) + 1] = below[:, a, b]
        options = best[:, None] + jump[np.where(step > 0, step, h)]
        came_from.append(options.argmax(axis=0))
        best = options.max(axis=0) + position[b]
    at = [int((best + log_missing[::-1]).argmax())]
    for back in reversed(came_from):
        at.append(int(back[at[-1]]))
    return np.array(at[::-1])
