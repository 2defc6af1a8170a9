"""The one way in which this project measures time: stages run in turns, percentiles with floors, ratios of pairs.

    stages ── interleave: each once a round, in a new random order ──> seconds of each ─┬─ summarize ─> p50 to max, jitter
                                                                                        └─ paired ─> median ratio ─> verdict
    the same stage twice, in turns, is the noise of the machine (A/A)

A slow moment of the machine meets every stage of a round, so what is compared is compared within a round. A percentile that
the samples cannot carry is None with the reason: p99 wants 662 samples and p90 wants 64, MLPerf's floors.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

P90_SAMPLES, P99_SAMPLES = 64, 662  # MLPerf asks for these before a percentile is one
MARGIN = 0.05  # a difference within it is called none
WARM_UP = 5  # rounds that are not counted
MIN_ROUNDS = 7  # fewer pairs have no 95 % interval

Seconds = NDArray[np.float64]
Tell = Callable[[float], None]  # is told the part that is done, 0..1, once a round
Clock = Callable[[], float]


def _nothing() -> tuple[Any, ...]:
    return ()


def _unchecked(answer: Any) -> None:
    """For what has no result to check."""


@dataclass(frozen=True)
class Stage:
    """What is timed: ``run(*prepare())``, of which only ``run`` counts.

    ``check`` raises AssertionError for a wrong answer. ``bytes`` and ``operations`` are the least that the stage must move and
    compute, ``calls`` how often it calls an engine. ``clocks_itself``: its answer is the seconds that it took, by another
    process's clock.
    """

    name: str
    run: Callable[..., Any]
    check: Callable[[Any], None] = _unchecked
    prepare: Callable[[], tuple[Any, ...]] = _nothing
    bytes: int = 0
    operations: int = 0
    calls: int = 0
    clocks_itself: bool = False

    def seconds(self, clock: Clock) -> float:
        """Of one run."""
        given = self.prepare()
        start = clock()
        answer = self.run(*given)
        end = clock()
        return float(answer) if self.clocks_itself else end - start

    def verify(self) -> None:
        """Run once and check the answer."""
        self.check(self.run(*self.prepare()))


@dataclass(frozen=True)
class Summary:
    """Percentiles in milliseconds; ``jitter_ms`` is p99 less p50. ``reasons`` says of each that is None why it is."""

    n: int
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    jitter_ms: float | None
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios with its 95 % interval, over n pairs."""

    value: float
    low: float
    high: float
    n: int

    @property
    def reach(self) -> float:
        """How far from 1 the interval goes, as a fraction."""
        return max(self.high - 1, 1 / self.low - 1)


def summarize(seconds: Sequence[float] | Seconds) -> Summary:
    """The percentiles that these samples carry. Each is a time that was measured: none is interpolated."""
    taken = np.sort(np.asarray(seconds, np.float64)) * 1e3
    n = len(taken)

    def at(quantile: float) -> float:
        return float(np.quantile(taken, quantile, method="inverted_cdf"))

    reasons = {}
    if n < P90_SAMPLES:
        reasons["p90_ms"] = f"{n} samples; it wants {P90_SAMPLES}"
    if n < P99_SAMPLES:
        reasons["p99_ms"] = reasons["jitter_ms"] = f"{n} samples; it wants {P99_SAMPLES}"
    p50 = at(0.5)
    p99 = at(0.99) if n >= P99_SAMPLES else None
    jitter = None if p99 is None else p99 - p50
    return Summary(n, p50, at(0.9) if n >= P90_SAMPLES else None, p99, float(taken[-1]), jitter, reasons)


def interleave(
    stages: Mapping[str, Stage],
    rounds: int,
    warm_up: int = WARM_UP,
    clock: Clock = time.perf_counter,
    tell: Tell | None = None,
    seed: int = 0,
) -> dict[str, Seconds]:
    """Seconds of each stage in each round."""
    rng, names = np.random.default_rng(seed), list(stages)
    taken = {name: np.empty(rounds) for name in names}
    for round_ in range(-warm_up, rounds):
        for i in rng.permutation(len(names)):
            seconds = stages[names[i]].seconds(clock)
            if round_ >= 0:
                taken[names[i]][round_] = seconds
        if tell is not None:
            tell((round_ + warm_up + 1) / (rounds + warm_up))
    return taken


def rounds_within(stages: Mapping[str, Stage], seconds: float, most: int, clock: Clock = time.perf_counter) -> int:
    """How many rounds of these stages fit into so many seconds, after two to warm up; at least MIN_ROUNDS."""
    for _ in range(2):
        start = clock()
        for stage in stages.values():
            stage.seconds(clock)
        taken = clock() - start
    return int(min(max(seconds / max(taken, 1e-9), MIN_ROUNDS), most))


def paired(base: Seconds, other: Seconds) -> Ratio:
    """The median of other / base within a round, and the interval of order statistics, which assumes no distribution.

    Raises ValueError for fewer than MIN_ROUNDS pairs.
    """
    n = len(base)
    if n < MIN_ROUNDS:
        raise ValueError(f"an interval of 95 % wants at least {MIN_ROUNDS} pairs, got {n}")
    ratios, outside = np.sort(other / base), _outside(n)
    return Ratio(float(np.median(ratios)), float(ratios[outside - 1]), float(ratios[n - outside]), n)


@functools.cache
def _outside(n: int) -> int:
    """The rank of the interval's lower end: of n pairs fewer than this lie below the median with a chance of at most 2.5 %."""
    chances = 0  # of 2**n
    for below in range(n):
        chances += math.comb(n, below)
        if 40 * chances > 2**n:
            return below
    raise AssertionError(n)


def verdict(blocks: Sequence[Ratio], noise: float, margin: float = MARGIN) -> str:
    """What all blocks say: slower, faster, no difference, or undecided where they do not agree or an interval is too wide.

    ``noise`` is how far the same thing is from itself here (A/A): a difference below it is none, and where it is more than the
    margin, that there is no difference cannot be said either.
    """
    limit = max(margin, noise)
    high, low = 1 + limit, 1 / (1 + limit)
    if all(ratio.low > high for ratio in blocks):
        return "slower"
    if all(ratio.high < low for ratio in blocks):
        return "faster"
    if noise <= margin and all(low <= ratio.low and ratio.high <= high for ratio in blocks):
        return "no difference"
    return "undecided"
