"""What an end counts while it runs, and a page of it for Prometheus.

The page is served by the loop that everything else runs in: one short request for each connection, few of them at once.
"""

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from semseal.runtime.net.wire import session_and_counter
from semseal.runtime.trust.linkkeys import LinkKey

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

LATENCIES = 4096  # the last ones, of which percentiles are told
_MAX_REQUEST_BYTES = 4096
_REQUEST_S = 5.0
_MAX_REQUESTS = 16

# what a refusal says, in so many words, and what it is counted as
_REASONS = (
    ("replay refused", "replay"),
    ("does not authenticate", "not-authentic"),
    ("is not authenticated", "not-authentic"),
    ("no key of the keyset", "no-key"),
    ("this receiver requires", "defence"),
    ("mean power", "power"),
    ("do not belong together", "mismatch"),
    ("symbols must be complex64", "shape"),
)


def reason(message: str) -> str:
    """A refusal of the receiver as one word; there are few of them, as labels of a metric must be."""
    return next((word for part, word in _REASONS if part in message), "other")


@dataclass
class Tally:
    """The figures of one end."""

    role: str  # sender or receiver
    frames: Counter[str] = field(default_factory=Counter)  # by outcome
    refusals: Counter[str] = field(default_factory=Counter)  # frames and connections, by reason
    datagrams: Counter[str] = field(default_factory=Counter)  # by what became of them
    symbols_lost: int = 0
    connections: int = 0  # that are open
    opened: int = 0  # ever
    counter: int = 0  # the highest
    key: LinkKey | None = None
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES))
    latency_sum_s: float = 0.0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))  # of work, by what it was

    def timed(self, seconds: float) -> None:
        self.latencies_s.append(seconds)
        self.latency_sum_s += seconds

    def saw(self, header: bytes) -> None:
        self.counter = max(self.counter, session_and_counter(header)[1])

    def percentiles_s(self) -> tuple[float, float]:
        """The 50th and 99th of the last latencies; NaN where there are none."""
        if not self.latencies_s:
            return float("nan"), float("nan")
        middle, high = np.percentile(np.fromiter(self.latencies_s, float), (50, 99))
        return float(middle), float(high)


class _Collector:
    """Turns a tally into metrics when they are asked for."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def collect(self) -> Iterator["Metric"]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily

        t = self._tally
        groups: tuple[tuple[str, str, str, Mapping[str, float]], ...] = (
            ("semseal_frames", "Frames by what became of them", "outcome", t.frames),
            ("semseal_refusals", "Frames and connections that were refused", "reason", t.refusals),
            ("semseal_datagrams", "Datagrams by what became of them", "outcome", t.datagrams),
            ("semseal_work_seconds", "Seconds of work", "kind", t.seconds),
        )
        for name, what, label, counts in groups:
            family = CounterMetricFamily(name, what, labels=[label])
            for value, count in sorted(counts.items()):
                family.add_metric([value], count)
            yield family
        yield CounterMetricFamily("semseal_symbols_lost", "Symbols that did not arrive", value=t.symbols_lost)
        yield CounterMetricFamily("semseal_connections_opened", "Connections that proved to have the key", value=t.opened)
        yield GaugeMetricFamily("semseal_connections", "Connections that are open", value=t.connections)
        yield GaugeMetricFamily("semseal_counter_headroom", "Counters left in a session", value=2**64 - 1 - t.counter)
        dates = None if t.key is None else t.key.dates
        if dates is not None:
            yield GaugeMetricFamily("semseal_key_age_seconds", "Since the key was made", value=time.time() - dates.created)
            if dates.not_after is not None:
                left = dates.not_after - time.time()
                yield GaugeMetricFamily("semseal_key_seconds_left", "Until the key ends", value=left)
        taken = sum(t.frames.values())
        latency = SummaryMetricFamily("semseal_latency_seconds", "Of a frame, at this end", taken, t.latency_sum_s)
        for quantile, seconds in zip(("0.5", "0.99"), t.percentiles_s(), strict=True):
            latency.add_sample("semseal_latency_seconds", {"quantile": quantile}, seconds)
        yield latency


def page(tally: Tally) -> tuple[bytes, str]:
    """The metrics, and their type."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.exposition import CONTENT_TYPE_LATEST

    registry = CollectorRegistry()
    collector: Any = _Collector(tally)
    registry.register(collector)
    return generate_latest(registry), CONTENT_TYPE_LATEST


async def serve_metrics(tally: Tally, host: str, port: int) -> asyncio.Server:
    """Serve the page at /metrics until the server is closed. Raises OSError where the address cannot be had."""
    page(tally)  # what is missing is missing now
    open_now = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now
        open_now += 1
        try:
            if open_now <= _MAX_REQUESTS:
                async with asyncio.timeout(_REQUEST_S):
                    writer.write(_response(tally, await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
        except (OSError, EOFError, asyncio.LimitOverrunError, TimeoutError):
            pass  # whoever asks so gets nothing
        finally:
            open_now -= 1
            writer.transport.abort() if open_now >= _MAX_REQUESTS else writer.close()

    return await asyncio.start_server(answer, host, port, limit=_MAX_REQUEST_BYTES)


def _response(tally: Tally, request: bytes) -> bytes:
    method, _, rest = request.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if method not in (b"GET", b"HEAD") or path != b"/metrics":
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    body, kind = page(tally)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (b"" if method == b"HEAD" else body)
