"""What a benchmark measured, as frozen dataclasses. What was not measured is None with a reason."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from semseal.runtime.bench.measure import Ratio, Summary


@dataclass(frozen=True)
class Where:
    """What ran: the form of a link, and how many images at once. ``threads`` None: all cores."""

    bundle: str
    engine: str
    precision: str
    defense: str
    batch: int
    threads: int | None = None

    def __str__(self) -> str:
        return f"{self.bundle}, {self.engine} {self.precision}, {self.defense}, batch {self.batch}"


@dataclass(frozen=True)
class Row:
    """One stage. ``floor_ms`` is the least time that its bytes and operations take here; ``times_floor`` is p50 over that.

    ``quantiles_ms`` are 101, from the smallest sample to the largest.
    """

    where: Where
    stage: str
    time: Summary | None
    floor_ms: float | None = None
    times_floor: float | None = None
    bytes: int | None = None
    operations: int | None = None
    images_per_s: float | None = None
    quantiles_ms: tuple[float, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)


def by_form(rows: Iterable[Row]) -> dict[Where, list[Row]]:
    """Rows of one form together, in the order of the forms' first rows."""
    found: dict[Where, list[Row]] = {}
    for row in rows:
        found.setdefault(row.where, []).append(row)
    return found


@dataclass(frozen=True)
class Noise:
    """A/A: the same link opened twice and timed in turns. ``reach`` is the difference below which none is called one."""

    where: Where
    stage: str
    ratio: Ratio

    @property
    def reach(self) -> float:
        return self.ratio.reach


@dataclass(frozen=True)
class AtRate:
    """Requests that came at a fixed rate, one server: latency from when each was due, and by when it began to be served."""

    rate_hz: float
    requests: int
    late: int
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    max_ms: float
    service_p50_ms: float
    service_p99_ms: float | None
    stopped: bool = False  # the queue had grown hopelessly; what still waited counts as late


@dataclass(frozen=True)
class Rates:
    """The curve, and the highest rate that was measured whose p99 stays under the deadline; None with a reason."""

    where: Where
    stage: str
    deadline_ms: float
    curve: tuple[AtRate, ...]
    highest_hz: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Started:
    """A fresh process: seconds until it could send, and its memory. Bytes; ``device_bytes`` is the GPU's."""

    where: Where
    import_s: float
    load_s: float
    first_call_s: float
    peak_bytes: int
    resident_bytes: int
    device_bytes: int | None
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Energy:
    """Joules for each image through send, of what the counter covers; None with a reason."""

    where: Where
    joules_per_image: float | None
    counter: str | None
    seconds: float
    reason: str | None = None


@dataclass(frozen=True)
class Compared:
    """One stage of a link against its baseline; ratios are other / baseline, so more than 1 is slower."""

    stage: str
    blocks: tuple[Ratio, ...]
    noise: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """A link measured against a baseline in one run."""

    where: Where
    baseline: str
    margin: float
    rows: tuple[Compared, ...]

    @property
    def slower(self) -> tuple[str, ...]:
        return tuple(row.stage for row in self.rows if row.verdict == "slower")


@dataclass(frozen=True)
class Results:
    """Everything of one run. ``machine`` is the record of ``machine.record``, ``ceilings`` what this machine can do."""

    machine: dict[str, Any]
    ceilings: dict[str, Any]
    bundles: dict[str, dict[str, Any]]  # path and digest, by name
    ran: dict[str, Any]  # by engine and precision: the operators that ran, and on what
    noise: tuple[Noise, ...] = ()
    rows: tuple[Row, ...] = ()
    rates: tuple[Rates, ...] = ()
    started: tuple[Started, ...] = ()
    energy: tuple[Energy, ...] = ()
    comparisons: tuple[Comparison, ...] = ()

    def document(self) -> dict[str, Any]:
        """As it is written to results.json."""
        return {"format": 1, **dataclasses.asdict(self)}
