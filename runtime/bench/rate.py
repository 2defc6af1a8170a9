"""Requests at a fixed rate (an open loop): what a loop that waits for each answer hides.

    due       |      |      |      |      |      |      |          every 1/rate seconds, whether or not the last is done
    served    ###    ###    #################  ###  ###  ###       one at a time, in order
    latency   <->    <->    <--------------->                      from when it was due to when it was done
                            |      <------------->                 so a stall counts for every request that it made wait

A closed loop would call that stall one slow sample of seven ("coordinated omission"). Latencies go into an HdrHistogram of
three digits.
"""

import math
import time
from collections.abc import Callable

from semseal.runtime.bench.measure import P90_SAMPLES, P99_SAMPLES, Tell
from semseal.runtime.bench.results import AtRate, Rates, Where

MAX_US = 3_600_000_000
HOPELESS = 20  # deadlines that a request is late by when a rate is given up
SPIN_S = 0.0015  # before a request is due; sleeping is not more exact than this
SHARES = (0.25, 0.5, 0.7, 0.85, 0.95)  # of the rate of a closed loop, for the curve
BISECTIONS = 2


def open_loop(
    serve: Callable[[], object],
    rate_hz: float,
    requests: int,
    deadline_s: float,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    tell: Tell | None = None,
) -> AtRate:
    """Serve so many requests that come at this rate. ``late`` are those that took longer than the deadline."""
    from hdrh.histogram import HdrHistogram

    latencies, services = (HdrHistogram(1, MAX_US, 3) for _ in range(2))
    begin, late, stopped = clock(), 0, False
    for i in range(requests):
        due = begin + i / rate_hz
        while (left := due - clock()) > 0:
            if left > SPIN_S:
                sleep(left - SPIN_S)
        started = clock()
        serve()
        done = clock()
        latencies.record_value(_us(done - due))
        services.record_value(_us(done - started))
        late += done - due > deadline_s
        if tell is not None:
            tell((i + 1) / requests)
        if done - due > HOPELESS * deadline_s:
            # those that are due wait at least as long as their place in the queue
            waiting = min(math.floor((done - begin) * rate_hz), requests - 1) - i
            for k in range(max(waiting, 0)):
                latencies.record_value(_us(done - (begin + (i + 1 + k) / rate_hz)))
                late += done - (begin + (i + 1 + k) / rate_hz) > deadline_s
            stopped = True
            break
    n = latencies.get_total_count()
    return AtRate(rate_hz, n, late, *_percentiles(latencies), latencies.get_max_value() / 1e3,
                  services.get_value_at_percentile(50) / 1e3, _at(services, 99, P99_SAMPLES), stopped)  # fmt: skip


def _us(seconds: float) -> int:
    return min(max(round(seconds * 1e6), 1), MAX_US)


def _percentiles(histogram: object) -> tuple[float, float | None, float | None]:
    p50 = _at(histogram, 50, 1)
    assert p50 is not None
    return p50, _at(histogram, 90, P90_SAMPLES), _at(histogram, 99, P99_SAMPLES)


def _at(histogram: object, percentile: float, wants: int) -> float | None:
    """Milliseconds; None where there are too few samples."""
    enough = histogram.get_total_count() >= wants  # type: ignore[attr-defined]
    return histogram.get_value_at_percentile(percentile) / 1e3 if enough else None  # type: ignore[attr-defined]


def seconds_for(service_s: float, limit_s: float) -> float:
    """What ``measure_rates`` takes with requests that are served in so long, at most."""
    return min(sum(P99_SAMPLES * service_s / share for share in SHARES) + BISECTIONS * P99_SAMPLES * service_s, limit_s)


def measure_rates(
    where: Where,
    stage: str,
    serve: Callable[[], object],
    service_s: float,
    deadline_ms: float,
    rates_hz: tuple[float, ...] = (),
    limit_s: float = 60.0,
    tell: Tell | None = None,
) -> Rates:
    """The curve over the given rates, or over shares of what a closed loop reaches, and the highest rate within the deadline.

    ``service_s`` is how long a request is served. A rate whose 662 requests do not fit into the limit has fewer, and no p99.
    """
    begin, curve = time.perf_counter(), dict[float, AtRate]()

    def measured(rate_hz: float) -> AtRate:
        left = max(limit_s - (time.perf_counter() - begin), 1.0)
        requests = min(P99_SAMPLES, max(math.floor(left * min(rate_hz, 1 / service_s)), 1))
        curve[rate_hz] = found = open_loop(serve, rate_hz, requests, deadline_ms / 1e3)
        if tell is not None:
            tell(min((time.perf_counter() - begin) / limit_s, 1.0))
        return found

    def within(found: AtRate) -> bool:
        return found.p99_ms is not None and found.p99_ms <= deadline_ms and not found.stopped

    for rate_hz in rates_hz or tuple(share / service_s for share in SHARES):
        if not within(measured(rate_hz)):
            break
    good = [rate_hz for rate_hz, found in curve.items() if within(found)]
    bad = [rate_hz for rate_hz in curve if rate_hz not in good]
    for _ in range(0 if rates_hz or not good or not bad else BISECTIONS):
        middle = (max(good) + min(bad)) / 2
        (good if within(measured(middle)) else bad).append(middle)
    reason = None
    if not good:
        slowest = curve[min(curve)]
        reason = (
            f"p99 wants {P99_SAMPLES} requests, {slowest.requests} fitted into the time" if slowest.p99_ms is None else None
        )
        reason = reason or f"p99 was {slowest.p99_ms:.1f} ms at {slowest.rate_hz:.1f} requests a second, the lowest rate"
    rows = tuple(curve[rate_hz] for rate_hz in sorted(curve))
    return Rates(where, stage, deadline_ms, rows, max(good, default=None), reason)
