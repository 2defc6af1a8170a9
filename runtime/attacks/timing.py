"""Timing: does the time that a program takes tell of the secret it was given?

    calls of two classes, fixed and random, in random order ── times ── Welch's t, of all and of those below each percentile

Whoever measures knows: how long each call took, and which of the two classes its secret was of. Not the secret.
The test is dudect's (Reparaz, Balasch, Verbauwhede 2017, "Dude, is my code constant time?", DATE): one class always has the
same secret, the other a fresh one every time. What the machine does meanwhile, it does to both, so that it adds noise and no
difference; the slowest calls, which are mostly its own, are cut off at many percentiles, and the largest |t| counts. Above 4.5
something leaks; above 10, definitely. Below, there are too few calls to see it, or nothing to be seen: ``resolution_s`` is
about the difference of means that would have been found.
Positive control: ``leaky_equal``, a comparison that stops at the first byte that differs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ttest_ind

CROPS = 100  # percentiles at which slow calls are cut off, as dudect has them
MIN_CALLS = 30  # of each class, for a t
MIN_CALLS_OF_SQUARES = 5000  # of each class, for the test of variances


@dataclass(frozen=True)
class Leak:
    """The largest |t|, over ``tests`` of them, and the difference of means in seconds for which it would have been 4.5.

    That is a difference within the calls that the sharpest of the tests leaves; of all calls it may have to be a little larger.
    """

    t: float
    tests: int
    calls: int
    resolution_s: float


def times_differ(seconds: NDArray[np.float64], is_random: NDArray[np.bool_]) -> Leak:
    """Of calls in the order in which they were made; both classes must occur MIN_CALLS times."""
    if min(is_random.sum(), (~is_random).sum()) < MIN_CALLS:
        raise ValueError(f"each class needs {MIN_CALLS} calls, got {(~is_random).sum()} and {is_random.sum()}")
    # dudect's: few at the bottom, many at the top
    limits = np.quantile(seconds, [1 - 0.5 ** (10 * (i + 1) / CROPS) for i in range(CROPS)])
    found, resolutions = [], []
    for limit in (np.inf, *limits):
        fixed, fresh = seconds[~is_random & (seconds <= limit)], seconds[is_random & (seconds <= limit)]
        if min(len(fixed), len(fresh)) < MIN_CALLS:
            continue
        error = np.sqrt(fixed.var(ddof=1) / len(fixed) + fresh.var(ddof=1) / len(fresh))
        if error > 0:
            found.append(abs(fixed.mean() - fresh.mean()) / error)
            resolutions.append(4.5 * error)
    fixed, fresh = seconds[~is_random], seconds[is_random]
    if min(len(fixed), len(fresh)) >= MIN_CALLS_OF_SQUARES:
        squares = (np.square(part - part.mean()) for part in (fixed, fresh))
        found.append(abs(float(ttest_ind(*squares, equal_var=False).statistic)))
    return Leak(float(max(found, default=0.0)), len(found), len(seconds), float(min(resolutions, default=np.inf)))


def leaky_equal(one: bytes, two: bytes) -> bool:
    """Whether both are equal, found byte by byte: how long it takes says how many of the first ones are."""
    if len(one) != len(two):
        return False
    return all(a == b for a, b in zip(one, two, strict=True))
