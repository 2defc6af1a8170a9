"""``semseal bench BUNDLE``: everything about the latency of a link, in one run.

    ceilings of the machine ── A/A ── each form: stages, memory of a fresh process ── the fastest form: images at once, request
    rates, energy ── against a baseline, if one is given ──> Results

A form is an engine, a precision and a defence. One that cannot be had here is a row without figures, with the reason.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
from semseal.runtime.bench import compare as comparing
from semseal.runtime.bench import machine
from semseal.runtime.bench.floor import Ceilings, ceilings
from semseal.runtime.bench.measure import MARGIN, Seconds, Stage, Summary, Tell, interleave, paired, rounds_within, summarize
from semseal.runtime.bench.peers import peers
from semseal.runtime.bench.process import start
from semseal.runtime.bench.progress import Progress
from semseal.runtime.bench.rate import measure_rates
from semseal.runtime.bench.results import Comparison, Energy, Noise, Rates, Results, Row, Started, Where
from semseal.runtime.bench.stages import CPU_ENGINES, NOT_COPIED, TOGETHER, open_case, stages
from semseal.runtime.bundle import Bundle, open_bundle
from semseal.runtime.engine import ENGINES
from semseal.runtime.environment import compute_capability
from semseal.runtime.errors import SemsealError
from semseal.runtime.libraries import MODULES

MAX_ROUNDS = 2000
AT_ONCE = (1, 4, 16, 64)  # images, for throughput
REST = "send, the rest"
PARTS = ("keys", "index", "transmitter", "power", "header")  # of send, where the form has them
START_S, CEILINGS_S, OPEN_S = 4.0, 8.0, 3.0  # expected, for the time left


@dataclass(frozen=True)
class Plan:
    """What is measured. Empty: every engine that is here, every precision of the bundle; ``batches`` get all stages."""

    engines: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    defenses: tuple[str, ...] = ("none", "mix")
    batches: tuple[int, ...] = (1,)
    threads: int | None = None
    seconds: float = 15.0  # for each form and batch
    deadline_ms: float = 33.0
    rates_hz: tuple[float, ...] = ()
    margin: float = MARGIN
    owner: str | None = None


QUICK = Plan(defenses=("mix",), seconds=3.0)


def installed(bundle: Bundle) -> tuple[str, ...]:
    """The engines that this machine and this bundle are likely to have."""
    there = [engine for engine in ENGINES if find_spec(MODULES[engine]) is not None]
    gpu = compute_capability() is not None
    plans = {name.rsplit(".", 2)[-2] for name in bundle.manifest["files"] if name.endswith(".engine")}
    if "onnxruntime-cuda" in there and not (gpu and find_spec("cuda.core") is not None):
        there = [engine for engine in there if engine not in ("onnxruntime-cuda", "onnxruntime-tensorrt")]
    return tuple(engine for engine in there if not engine.startswith("tensorrt") or (gpu and engine in plans))


def forms(name: str, bundle: Bundle, plan: Plan) -> list[Where]:
    """Every form that is asked for, the batches of one form together."""
    engines = plan.engines or installed(bundle)
    precisions = plan.precisions or tuple(map(str, bundle.manifest["precisions"]))
    return [
        Where(name, engine, precision, defense, batch, plan.threads if engine in CPU_ENGINES else None)
        for engine in engines
        for precision in precisions
        for defense in plan.defenses
        for batch in plan.batches
    ]


def bench(name: str, plan: Plan = QUICK, against: str | None = None, quiet: bool = False) -> Results:
    """Measure a bundle, a folder or a packaged one. Raises BundleError, EngineError where no form runs, and BenchError."""
    bundle = open_bundle(name, plan.owner)
    base = None if against is None else comparing.baseline(against)
    wheres = forms(name, bundle, plan)
    before = machine.record()
    with Progress(_expected(wheres, plan, base is not None), quiet) as progress:
        if base is not None:
            found: dict[str, Any] = {"comparisons": _comparisons(wheres, base, plan, progress)}
            limits = Ceilings((), {}, {}, {})
        else:
            with progress.step("ceilings of this machine"):
                limits = ceilings(tuple(dict.fromkeys(where.engine for where in wheres)), plan.threads)
            found = _measured(wheres, plan, limits, progress)
    ran = {
        f"{e} {p}": machine.ran(bundle, e, p, plan.threads) for e, p in dict.fromkeys((w.engine, w.precision) for w in wheres)
    }
    record = machine.meanwhile(before, machine.record())
    opened = {name: {"path": str(bundle.path.absolute()), "digest": bundle.digest.hex(), "repr": repr(bundle)}}
    return Results(record, dataclasses.asdict(limits), opened, ran, **found)


def _expected(wheres: Sequence[Where], plan: Plan, against: bool) -> dict[str, float]:
    if against:
        return {
            f"{where}, against the baseline": 2 * (plan.seconds + OPEN_S) for where in wheres if where.batch == plan.batches[0]
        }
    steps = {"ceilings of this machine": CEILINGS_S, "A/A": plan.seconds / 2, "peers of the defence": 2.0}
    steps |= {str(where): plan.seconds + OPEN_S for where in wheres}
    steps |= {f"{where}, a fresh process": START_S for where in wheres if where.batch == plan.batches[0]}
    return {**steps, "images at once": 2 * plan.seconds, "request rates": 2 * plan.seconds, "energy": plan.seconds / 2}


def _measured(wheres: Sequence[Where], plan: Plan, limits: Ceilings, progress: Progress) -> dict[str, Any]:
    rows: list[Row] = []
    started: list[Started] = []
    failed: dict[str, SemsealError] = {}
    noise: tuple[Noise, ...] = ()
    for where in wheres:
        try:
            if not noise:
                with progress.step("A/A"):
                    noise = (a_a(where, plan.owner, plan.seconds / 2, progress.tell),)
            with progress.step(str(where)):
                rows += measure_case(where, plan.owner, plan.seconds, limits, progress.tell)
            if where.batch == plan.batches[0]:
                with progress.step(f"{where}, a fresh process"):
                    started.append(start(where, plan.owner))
        except SemsealError as error:
            failed[str(where)] = error
            rows.append(Row(where, "link", None, reasons={"time": error.message}))
    links = [row for row in rows if row.stage == "link" and row.time is not None and row.where.batch == plan.batches[0]]
    if not links:
        raise next(iter(failed.values()))
    best = min(links, key=lambda row: row.time.p50_ms if row.time else 0.0).where
    with progress.step("peers of the defence"):
        rows += _rows(best, peers(best, plan.owner), 1.0, limits)
    with progress.step("images at once"):
        rows += _throughput(best, plan, limits, [row.where.batch for row in links if row.where == best], progress.tell)
    with progress.step("request rates"):
        rates = request_rates(best, plan, progress.tell)
    with progress.step("energy"):
        joules = _energy(best, plan)
    return {"noise": noise, "rows": tuple(rows), "started": tuple(started), "rates": (rates,), "energy": (joules,)}


def a_a(where: Where, owner: str | None, seconds: float, tell: Tell | None = None) -> Noise:
    """The whole link, opened twice, in turns: how far it is from itself on this machine."""
    pair = {side: stages(open_case(where, owner))["link"] for side in ("first", "second")}
    taken = interleave(pair, rounds_within(pair, seconds, MAX_ROUNDS), tell=tell)
    return Noise(where, "link", paired(taken["first"], taken["second"]))


def measure_case(
    where: Where, owner: str | None, seconds: float, limits: Ceilings, tell: Tell | None = None, only: Sequence[str] = ()
) -> list[Row]:
    """The rows of all stages of one form, or of those named; every answer is checked before and after it is timed."""
    made = stages(open_case(where, owner))
    rows = _rows(where, {name: made[name] for name in only or made}, seconds, limits, tell)
    if only:
        return rows
    if where.engine in CPU_ENGINES:
        reasons = {"time": NOT_COPIED}
        rows += [Row(where, stage, None, reasons=reasons) for stage in ("host to device", "device to host")]
    return rows


def _rows(where: Where, made: dict[str, Stage], seconds: float, limits: Ceilings, tell: Tell | None = None) -> list[Row]:
    for stage in made.values():
        stage.verify()
    taken = interleave(made, rounds_within(made, seconds, MAX_ROUNDS), tell=tell)
    for stage in made.values():
        stage.verify()
    rows = [row_of(where, made[name], samples, limits) for name, samples in taken.items()]
    return [*rows, _rest(where, taken)] if {"send", "transmitter"} <= set(taken) else rows


def row_of(where: Where, stage: Stage, taken: Seconds, limits: Ceilings) -> Row:
    """A stage's row from its samples."""
    time = summarize(taken)
    floor_s = limits.floor_s(stage, where.engine, where.precision) if limits.copies else None
    reasons = {} if floor_s is not None else {"floor_ms": "what it must move and compute is not counted"}
    if stage.calls and not stage.operations:
        reasons["operations"] = "the package onnx, which counts them, is not installed"
    return Row(
        where,
        stage.name,
        time,
        None if floor_s is None else floor_s * 1e3,
        None if floor_s is None else time.p50_ms / (floor_s * 1e3),
        stage.bytes or None,
        stage.operations or None,
        where.batch / (time.p50_ms / 1e3),
        tuple(float(value) * 1e3 for value in np.quantile(taken, np.linspace(0, 1, 101))),
        reasons,
    )


def _rest(where: Where, taken: dict[str, Seconds]) -> Row:
    """``send`` less its parts in each round: what checks, frames and counters take."""
    rest = float(np.median(taken["send"] - sum(taken[part] for part in PARTS if part in taken)))
    why = "a median of differences within rounds"
    time = Summary(0, rest * 1e3, None, None, None, None, dict.fromkeys(("n", "p90_ms", "p99_ms", "max_ms", "jitter_ms"), why))
    return Row(where, REST, time, reasons={"floor_ms": why})


def _throughput(best: Where, plan: Plan, limits: Ceilings, there: Sequence[int], tell: Tell) -> list[Row]:
    """The whole link with more images at once, in the fastest form, where it was not measured yet."""
    rows = []
    batches = [batch for batch in AT_ONCE if batch not in (*there, *plan.batches)]
    for i, batch in enumerate(batches):
        where = replace(best, batch=batch)
        rows += measure_case(where, plan.owner, plan.seconds / 2, limits, only=TOGETHER)
        tell((i + 1) / len(batches))
    return rows


def request_rates(where: Where, plan: Plan, tell: Tell | None = None) -> Rates:
    """``send`` of one form as a server."""
    case = open_case(where, plan.owner)
    send = stages(case)["send"]
    service_s = float(np.median(interleave({"send": send}, 30)["send"]))
    limit_s = max(2 * plan.seconds, 6.0)
    return measure_rates(where, "send", send.run, service_s, plan.deadline_ms, plan.rates_hz, limit_s, tell)


def _energy(where: Where, plan: Plan) -> Energy:
    return machine.energy(where, stages(open_case(where, plan.owner))["send"].run, plan.seconds / 2)


def _comparisons(wheres: Sequence[Where], base: comparing.Baseline, plan: Plan, progress: Progress) -> tuple[Comparison, ...]:
    found = []
    for where in wheres:
        with progress.step(f"{where}, against the baseline"):
            found.append(comparing.compare(where, base, plan.owner, plan.margin, plan.seconds, progress.tell))
    return tuple(found)
