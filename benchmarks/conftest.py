"""``pytest --benchmark`` on the measuring core of semseal bench: its stages, its percentiles, its floors and its table."""

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
from rich.console import Console
from semseal.runtime.bench import machine, report
from semseal.runtime.bench.floor import Ceilings, ceilings
from semseal.runtime.bench.measure import P99_SAMPLES, WARM_UP, Stage, rounds_within
from semseal.runtime.bench.peers import peers
from semseal.runtime.bench.results import Noise, Row, Where, by_form
from semseal.runtime.bench.run import row_of
from semseal.runtime.bench.stages import open_case, stages

MAX_ROUNDS = 2000
SECONDS = 0.7  # for a row, where --benchmark-max-time does not say
P99_S = 1.6  # what the samples of a p99 may take; where they would take longer there are fewer
ROWS, NOISE, LIMITS, BEFORE = (pytest.StashKey[Any]() for _ in range(4))


def pytest_sessionstart(session: pytest.Session) -> None:
    stash = session.config.stash
    stash[ROWS], stash[NOISE], stash[BEFORE] = [], [], machine.record()


@pytest.fixture(scope="session")
def limits(request: pytest.FixtureRequest) -> Ceilings:
    """What this machine can do, measured once."""
    found = ceilings(("onnxruntime-cpu", "openvino"), None)
    request.config.stash[LIMITS] = found
    return found


@lru_cache(maxsize=1)
def stages_of(where: Where) -> dict[str, Stage]:
    """One form at a time is open."""
    return stages(open_case(where)) | peers(where)


@pytest.fixture(scope="session")
def own(request: pytest.FixtureRequest) -> bool:
    """Whether --benchmark-max-time says how long something is timed."""
    return any(argument.startswith("--benchmark-max-time") for argument in request.config.invocation_params.args)


@pytest.fixture
def timed(benchmark: Any, limits: Ceilings, own: bool, request: pytest.FixtureRequest) -> Callable[[Where, str], None]:
    """Times a stage with pytest-benchmark, whose options apply, and checks the answer of the last round."""
    config = request.config
    seconds, least = (
        float(config.getoption("benchmark_max_time")) if own else SECONDS,
        int(config.getoption("benchmark_min_rounds")),
    )

    def run(where: Where, name: str) -> None:
        stage = stages_of(where)[name]
        rounds = rounds_within({name: stage}, seconds, MAX_ROUNDS)
        if not own and rounds < P99_SAMPLES and rounds_within({name: stage}, P99_S, MAX_ROUNDS) >= P99_SAMPLES:
            rounds = P99_SAMPLES
        rounds = max(rounds, least) if own or least > 5 else rounds
        answer = benchmark.pedantic(stage.run, setup=lambda: (stage.prepare(), {}), rounds=rounds, warmup_rounds=WARM_UP)
        stage.check(answer)
        if benchmark.stats is None:  # --benchmark-disable
            return
        row = row_of(where, stage, benchmark.stats.stats.data, limits)
        config.stash[ROWS].append(row)
        figures = {key: value for key, value in dataclasses.asdict(row).items() if key != "quantiles_ms"}
        benchmark.extra_info.update(figures)

    return run


@pytest.fixture
def noise(request: pytest.FixtureRequest) -> list[Noise]:
    """What A/A found, for the summary."""
    found: list[Noise] = request.config.stash[NOISE]
    return found


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows: list[Row] = config.stash.get(ROWS, [])
    if not rows:
        return
    console = Console(file=terminalreporter._tw._file, width=report.COLUMNS, emoji=False)
    console.print()
    record = machine.meanwhile(config.stash[BEFORE], machine.record())
    lines = [*report.machine_lines(record), *report.ceiling_lines(dataclasses.asdict(config.stash[LIMITS]))]
    lines += [report.noise_line(found) for found in config.stash[NOISE]]
    for line in lines:
        console.print(line, markup=False, highlight=False)
    for where, some in by_form(rows).items():
        report.show_rows(where, some, console)
    console.print(report.FOOTNOTE, markup=False, highlight=False)
