"""Row ordering: Eve puts permuted and substituted rows back from what she heard, without key, scheme list or header.

    her own pictures' rows ── fit ── how well row b fits d places below row a, and row a at place t
    heard rows of all streams ── score every ordered pair ── best paths of h rows ── pictures, decoded like Bob's

Eve knows: the deployed transmitter and receiver, her SNR, pictures of her own of the same kind, how many pictures the heard
rows belong to. She does not know K, V, the scheme sets, or any picture that was sent.
She does: one ridge regression "row d places further down from this row" for each distance d, on clean rows with her noise
added to the covariance; the score of a pair is the log-likelihood ratio of the residual, whitened by its variance, against
any row. Paths are joined greedily and improved by exchanging neighbouring segments (3-opt, Lin 1965, the moves that keep the
direction) until no exchange helps. The convolutions' zero padding marks the first and the last row of a picture.
Source: jigsaw solvers as attacks on scrambled images, Chuman and Kiya 2018 (IEICE Trans. Fundamentals E101-A); whitened
residuals as the score of two pieces, Gallagher 2012 (CVPR).
Positive control: permutation alone at 20 dB, where every row must come back.
Success: neighbouring rows side by side again (``neighbours_right``), and Eve's PSNR near Bob's at the same SNR.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

REACH = 8  # distances that are scored; rows further apart say little about each other
RIDGE = 1e-3  # variance added to every real value of a row; symbols have 0.5

_NEVER = -1e9
_TOO_LONG = 1e6  # for each row by which a path is too long

Rows = NDArray[np.float32]
Scores = NDArray[np.float64]
Order = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Likeness:
    """What Eve's own pictures say about rows at her SNR; float64, distances d = 0..reach, r = w*c real values in a row.

    A row b at distance d below row a has the whitened residual ``b @ after[d] - a @ ahead[d] - shift[d]``.
    """

    h: int
    reach: int
    noise: float  # variance of one real value
    mean: Scores  # [r], of any row
    white: Scores  # [r, r], whitens any row
    ahead: Scores  # [reach+1, r, r]
    after: Scores  # [reach+1, r, r]
    shift: Scores  # [reach+1, r]
    log_scale: Scores  # [reach+1], log of det(after) / det(white)
    at: Scores  # [r, r], whitens a row around the mean of its place
    places: Scores  # [h, r], these means, whitened


def fit(rows: Rows, snr_db: float, reach: int = REACH) -> Likeness:
    """Rows of undefended pictures, float32 [pictures, h, r], without noise; a few hundred pictures for r = 720.

    Raises ValueError for fewer than 2 pictures or rows, or rows that are not finite.
    """
    if rows.ndim != 3 or min(rows.shape[:2]) < 2 or not np.isfinite(rows).all():
        raise ValueError(f"rows must be finite, [pictures, h, r] with 2 or more pictures and rows, got {list(rows.shape)}")
    pictures, h, r = rows.shape
    reach = min(reach, h - 1)
    noise = 10 ** (-snr_db / 10) / 2
    mean = rows.mean(axis=(0, 1))
    x = rows - mean
    own = x.reshape(-1, r)
    total = (own.T @ own).astype(np.float64)
    heard = (noise + RIDGE) * np.eye(r)
    white = _whitening(total / len(own) + heard)
    ahead, after = np.empty((2, reach + 1, r, r))
    shift, log_scale = np.empty((reach + 1, r)), np.empty(reach + 1)
    for d in range(reach + 1):
        a, b = x[:, : h - d], x[:, d:]
        n = pictures * (h - d)
        mean_a, mean_b = a.mean(axis=(0, 1), dtype=np.float64), b.mean(axis=(0, 1), dtype=np.float64)
        # the sums over a and b are the sum over all rows less a few at one end
        cov_a = (total - _gram(x[:, h - d :])) / n - np.outer(mean_a, mean_a) + heard
        cov_b = (total - _gram(x[:, :d])) / n - np.outer(mean_b, mean_b) + heard
        cross = (a.reshape(n, r).T @ b.reshape(n, r)).astype(np.float64) / n - np.outer(mean_a, mean_b)
        slope = np.linalg.solve(cov_a, cross)  # E[b | a] = mean_b + (a - mean_a) @ slope
        after[d] = _whitening(cov_b - cross.T @ slope)
        ahead[d] = slope @ after[d]
        shift[d] = mean_b @ after[d] - mean_a @ ahead[d]
        log_scale[d] = np.log(np.diagonal(after[d]) / np.diagonal(white)).sum()
    means = x.mean(axis=0, dtype=np.float64)
    at = _whitening(total / len(own) - means.T @ means / h + heard)
    return Likeness(h, reach, noise, mean.astype(np.float64), white, ahead, after, shift, log_scale, at, means @ at)


def order(likeness: Likeness, heard: Rows, paths: int = 1) -> Order:
    """Puts heard rows, float32 [n, r] or [packets, n, r] under one scheme, back into ``paths`` pictures.

    Returns int64 [paths, h]: which heard row belongs at each place, -1 where none was heard. All n rows are used; with
    n = paths*h there is no gap. Which path is which picture is not told. Raises ValueError unless paths <= n <= paths*h.
    """
    packets = heard[None] if heard.ndim == 2 else heard
    n, h = packets.shape[1], likeness.h
    if not 1 <= paths <= n <= paths * h:
        raise ValueError(f"{n} rows do not fit {paths} pictures of {h} rows")
    full = n == paths * h
    with np.errstate(divide="ignore"):
        missed = np.log1p(-n / (paths * h)) * np.maximum(np.arange(h), 1)  # t rows before the next were not heard
    missed[0] = 0
    reach = 1 if full else likeness.reach
    after = np.sum([[follows(likeness, x, d) for d in range(1, reach + 1)] for x in packets], axis=0)  # [reach, n, n]
    after += missed[:reach, None, None]
    place = np.sum([at_place(likeness, x) for x in packets], axis=0)  # [n, h]
    links = np.full((n + paths, n + paths), _NEVER)  # node n+i stands before path i
    links[:n, :n] = after.max(axis=0)
    links[n:, :n] = (place + missed).max(axis=1)
    links[:n, n:] = (place + missed[::-1]).max(axis=1)[:, None]
    np.fill_diagonal(links, _NEVER)
    out = np.full((paths, h), -1, np.int64)
    for slots, path in zip(out, _best_paths(links, paths, h), strict=True):
        slots[np.arange(h) if full else _walk(path, after, place, missed)] = path
    return out


def arrange(heard: Rows, found: Order) -> Rows:
    """Heard rows [n, r] in the order found [paths, h]: float32 [paths, h, r], gaps filled linearly between neighbours."""
    out = np.empty((*found.shape, heard.shape[1]), np.float32)
    for rows, slots in zip(out, found, strict=True):
        known = np.flatnonzero(slots >= 0)
        where = np.interp(np.arange(len(slots)), known, np.arange(len(known)))
        low = where.astype(np.int64)
        part = (where - low)[:, None]
        have = heard[slots[known]]
        rows[:] = have[low] * (1 - part) + have[np.minimum(low + 1, len(known) - 1)] * part
    return out


def is_picture(likeness: Likeness, heard: Rows) -> NDArray[np.bool_]:
    """Which heard rows [n, r] are not rows of a random-noise tensor of unit power.

    A row counts as noise when the log-likelihood ratio of picture against white noise is at most 4 standard deviations above
    what noise gives on average; both are known exactly.
    """
    variance, r = likeness.noise + 0.5, heard.shape[1]
    precision = likeness.white @ likeness.white.T
    pull = precision @ likeness.mean
    tilt = variance * precision - np.eye(r)
    average = -(np.trace(tilt) + likeness.mean @ pull) / 2
    spread = np.sqrt((tilt**2).sum() / 2 + variance * pull @ pull)
    ratio = any_row(likeness, heard) + (heard.astype(np.float64) ** 2).sum(axis=1) / variance / 2
    return ratio > average + 4 * spread


def neighbours_right(found: Order, truth: NDArray[np.integer]) -> float:
    """Share of the neighbours in the pictures that were heard and stand side by side in ``found`` [paths, h].

    ``truth`` [n] is picture*h + place of each heard row, -1 for a row of noise.
    """
    h = found.shape[1]
    sent = np.where(found >= 0, truth[found], -2)
    a, b = sent[:, :-1], sent[:, 1:]
    right = (a >= 0) & (b == a + 1) & (b % h != 0)
    known = truth[truth >= 0]
    return float(right.sum() / (np.isin(known + 1, known) & ((known + 1) % h != 0)).sum())


def follows(likeness: Likeness, heard: Rows, d: int) -> Scores:
    """[n, n] log-likelihood ratio: heard row j stands d places below heard row i (d = 0: is the same), against any row."""
    x = heard - likeness.mean
    before, here = x @ likeness.ahead[d] + likeness.shift[d], x @ likeness.after[d]
    square = (before**2).sum(axis=1)[:, None] + (here**2).sum(axis=1) - 2 * before @ here.T
    scores: Scores = likeness.log_scale[d] - square / 2 - any_row(likeness, heard)
    return scores


def any_row(likeness: Likeness, heard: Rows) -> Scores:
    """[n] log-likelihood of each heard row as a row of any picture, less the constant terms."""
    scores: Scores = -(((heard - likeness.mean) @ likeness.white) ** 2).sum(axis=1) / 2
    return scores


def at_place(likeness: Likeness, heard: Rows) -> Scores:
    """[n, h] log-likelihood ratio: heard row i stands at place t of its picture, against any place."""
    x = (heard - likeness.mean) @ likeness.at
    scores = x @ likeness.places.T - (likeness.places**2).sum(axis=1) / 2
    ratio: Scores = scores - logsumexp(scores, axis=1, keepdims=True) + np.log(likeness.h)
    return ratio


def _gram(x: Rows) -> Scores:
    flat = x.reshape(-1, x.shape[-1]).astype(np.float64)
    product: Scores = flat.T @ flat
    return product


def _whitening(covariance: Scores) -> Scores:
    """Lower triangular W with W W^T the inverse, so that x @ W has unit covariance."""
    return np.linalg.cholesky(np.linalg.inv(covariance))


def _best_paths(links: Scores, paths: int, h: int) -> list[Order]:
    """The rows of each path, none longer than h, with a large sum of links; see ``order`` for the nodes."""
    tour = _improve(links, _greedy(links), paths, np.inf)
    if _excess(np.flatnonzero(tour >= len(links) - paths)[:, None], len(links), h)[0]:
        tour = _improve(links, tour, paths, h)
    return [part[1:] for part in np.split(tour, np.flatnonzero(tour >= len(links) - paths)[1:])]


def _greedy(links: Scores) -> Order:
    """One cycle through all nodes, the best links first; it starts at the last node.

    A link counts as much as it stands out: the table is first balanced (Sinkhorn 1964) so that every node has one link in
    and one out.
    """
    n = len(links)
    free = links / 2
    for _ in range(20):
        for axis in (1, 0):
            free -= logsumexp(free, axis=axis, keepdims=True)
    following = np.empty(n, np.int64)
    head, tail = np.arange(n), np.arange(n)  # first node of the chain that ends at a node, last of the one that starts there
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
    """Exchange two neighbouring segments of the cycle while that helps, the best exchange first."""
    n = len(tour)
    i, j, k, ij, jk, ki = _exchanges(n)
    if not len(i):
        return tour
    while True:
        link = links[tour[:, None], np.roll(tour, -1)]  # from the node at one position to the one behind another
        gain = link - np.diagonal(link)[:, None]
        gains = gain.take(ij) + gain.take(jk) + gain.take(ki)
        starts = np.flatnonzero(tour >= n - paths)[:, None]
        if np.isfinite(longest):
            moved = starts + (k - j) * ((starts > i) & (starts <= j)) - (j - i) * ((starts > j) & (starts <= k))
            gains -= _TOO_LONG * (_excess(np.sort(moved, axis=0), n, longest) - _excess(starts, n, longest))
        best = gains.argmax()
        if gains[best] <= 1e-6:
            return tour
        a, b, c = i[best] + 1, j[best] + 1, k[best] + 1
        tour = np.concatenate([tour[:a], tour[b:c], tour[a:b], tour[c:]])


@lru_cache(maxsize=2)
def _exchanges(n: int) -> tuple[NDArray[np.integer], ...]:
    """All i < j < k in 0..n-1, for segments i+1..j and j+1..k, then (i, j), (j, k) and (k, i) as places in a flat [n, n]."""
    j, k = np.triu_indices(n, 1)
    i = np.concatenate([np.arange(first) for first in j]).astype(np.int32) if len(j) else np.empty(0, np.int32)
    j, k = np.repeat(j, j).astype(np.int32), np.repeat(k, j).astype(np.int32)
    return i, j, k, i * n + j, j * n + k, k * n + i


def _excess(starts: NDArray[np.integer], n: int, longest: float) -> Scores:
    """By how many rows the paths are too long; ``starts`` [paths, m] are the sorted positions of the nodes before them."""
    ends = np.concatenate([starts[1:], np.full_like(starts[:1], n)])
    excess: Scores = np.maximum(ends - starts - 1 - longest, 0).sum(axis=0)
    return excess


def _walk(path: Order, after: Scores, place: Scores, missed: Scores) -> Order:
    """The most likely places of a path's rows, increasing, when rows between them may be missing (dynamic programming)."""
    h = place.shape[1]
    step = np.subtract.outer(np.arange(h), np.arange(h)).T  # [from, to]
    best = place[path[0]] + missed
    came = []
    for a, b in pairwise(path):
        jump = np.full(h + 1, -np.inf)  # by distance; the last stands for every step back
        jump[1:h] = missed[:-1]
        jump[1 : len(after) + 1] = after[:, a, b]
        options = best[:, None] + jump[np.where(step > 0, step, h)]
        came.append(options.argmax(axis=0))
        best = options.max(axis=0) + place[b]
    at = [int((best + missed[::-1]).argmax())]
    for back in reversed(came):
        at.append(int(back[at[-1]]))
    return np.array(at[::-1])
