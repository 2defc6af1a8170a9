"""``--against OTHER``: a link and its baseline, in turns in one run, with the baseline twice.

    each round   baseline, baseline again, the link: every stage of each, in a new random order
    block 1      everything opened, rounds until the intervals are narrow or the time is up, everything closed
    block 2      the same again, with all engines opened anew, because where memory lies makes a difference too
    verdict      slower or faster only where the interval of both blocks is beyond the margin, and beyond A/A

The baseline is another bundle, that of an earlier results file, or the same bundle under another installed version of semseal,
which then runs in a process of its own environment, as does this version.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from semseal.runtime.bench.measure import (
    MARGIN,
    MIN_ROUNDS,
    Ratio,
    Seconds,
    Stage,
    Tell,
    interleave,
    paired,
    rounds_within,
    verdict,
)
from semseal.runtime.bench.process import Process
from semseal.runtime.bench.results import Compared, Comparison, Where
from semseal.runtime.bench.stages import Case, open_case, stages
from semseal.runtime.errors import BenchError

STAGES = ("transmitter", "receiver", "send", "receive", "link")
BY_PROCESS = ("send", "receive", "link")
BLOCKS = 2
CHUNK = 25  # rounds between two looks at the intervals
MAX_ROUNDS = 2000
NARROW = 0.4  # of the margin: the half width of an interval that ends a block
MAX_PSNR_DIFFERENCE_DB = 0.5  # of the same pictures through two versions

Sides = Mapping[str, Mapping[str, Stage]]  # stages by name, of "base", "again" and "other"


@dataclass(frozen=True)
class Baseline:
    """What is compared with: a bundle, or a Python whose semseal runs."""

    name: str
    bundle: str | None = None
    python: str | None = None


def baseline(given: str) -> Baseline:
    """What ``--against`` names. Raises BenchError for a results file without a bundle that is still there."""
    path = Path(given)
    if path.suffix == ".json" and path.is_file():
        return _of_results(path)
    interpreter = path / "bin" / "python"
    if interpreter.is_file():
        return Baseline(f"semseal of {given}", python=str(interpreter))
    if path.is_file() and os.access(path, os.X_OK):
        return Baseline(f"semseal of {given}", python=str(path))
    return Baseline(given, bundle=given)


def _of_results(path: Path) -> Baseline:
    from semseal.runtime.bundle import open_bundle

    try:
        (name, kept), *others = json.loads(path.read_text())["bundles"].items()
        digest, folder = kept["digest"], kept["path"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BenchError(f"{path} is no results file of semseal bench with a bundle", "give its results.json") from None
    if others:
        raise BenchError(f"{path} is of several bundles: {name}, {', '.join(found for found, _ in others)}", "give one bundle")
    if open_bundle(folder).digest.hex() != digest:
        raise BenchError(f"{folder} is no longer the bundle of {path}: its digest is another", "give the bundle's folder")
    return Baseline(f"{folder}, as in {path}", bundle=folder)


def compare(
    where: Where,
    against: Baseline,
    owner: str | Path | None = None,
    margin: float = MARGIN,
    seconds: float = 30.0,
    tell: Tell | None = None,
    change: Callable[[dict[str, Stage]], dict[str, Stage]] = lambda made: made,
) -> Comparison:
    """Measure the link against the baseline, at most so many seconds for each block.

    ``change`` makes other stages of the link's, for a test of this very function.
    """
    blocks = []
    for block in range(BLOCKS):
        with _opened(where, against, owner, change) as sides:
            for stage in (stage for made in sides.values() for stage in made.values()):
                stage.verify()
            part = _within(tell, block)
            blocks.append(measure_block(sides, seconds, margin, block, part))
    return Comparison(where, against.name, margin, judged(blocks, margin))


def measure_block(
    sides: Sides, seconds: float, margin: float, seed: int = 0, tell: Tell | None = None, **options: Any
) -> Sides:
    """Seconds of every stage of every side, by side and name; ``options`` are those of ``interleave``."""
    flat = {f"{side}/{name}": stage for side, made in sides.items() for name, stage in made.items()}
    clock = {"clock": options["clock"]} if "clock" in options else {}
    most = rounds_within(flat, seconds, MAX_ROUNDS, **clock)
    taken: dict[str, Seconds] = {name: np.empty(0) for name in flat}
    while len(next(iter(taken.values()))) < most:
        done = len(next(iter(taken.values())))
        rounds = max(min(CHUNK, most - done), MIN_ROUNDS)
        more = interleave(flat, rounds, warm_up=0 if done else 2, seed=(seed << 20) + done, **options)
        taken = {name: np.concatenate([taken[name], more[name]]) for name in flat}
        found = {side: {name: taken[f"{side}/{name}"] for name in made} for side, made in sides.items()}
        if tell is not None:
            tell(min((done + rounds) / most, 1.0))
        if done and all(_narrow(found, name, margin) for name in found["base"]):
            break
    if tell is not None:
        tell(1.0)
    return found  # type: ignore[return-value]


def _narrow(found: Any, name: str, margin: float) -> bool:
    """Whether both intervals are: a rule that looks at their width alone, not at where they lie, favours no verdict."""
    ratios = [paired(found["base"][name], found[side][name]) for side in ("again", "other")]
    return all(ratio.high / ratio.low < 1 + 2 * NARROW * margin for ratio in ratios)


def judged(blocks: list[Any], margin: float) -> tuple[Compared, ...]:
    """A verdict for each stage, from the seconds of each block."""
    rows = []
    for name in blocks[0]["base"]:
        ratios = tuple(paired(found["base"][name], found["other"][name]) for found in blocks)
        noise = max(_noise(paired(found["base"][name], found["again"][name])) for found in blocks)
        rows.append(Compared(name, ratios, noise, verdict(ratios, noise, margin)))
    return tuple(rows)


def _noise(ratio: Ratio) -> float:
    return ratio.reach


def _within(tell: Tell | None, block: int) -> Tell | None:
    return None if tell is None else lambda part: tell((block + part) / BLOCKS)


@contextmanager
def _opened(where: Where, against: Baseline, owner: str | Path | None, change: Any) -> Iterator[Sides]:
    if against.python is None:
        assert against.bundle is not None
        other, base = open_case(where, owner), replace(where, bundle=against.bundle)
        cases = {"base": open_case(base, owner), "again": open_case(base, owner), "other": other}
        if _shape(cases["base"]) != _shape(other):
            raise BenchError(
                f"{where.bundle} takes images {_shape(other)}, {against.bundle} {_shape(cases['base'])}",
                "compare bundles for pictures of one size",
            )
        made = {side: {name: stages(case)[name] for name in STAGES} for side, case in cases.items()}
        yield {**made, "other": change(made["other"])}
        return
    with ExitStack() as stack:
        processes = {}
        for side, python in (("base", against.python), ("again", against.python), ("other", sys.executable)):
            processes[side] = Process(where, owner, python)
            stack.callback(processes[side].close)
        ready = {side: process.ready for side, process in processes.items()}
        _check_versions(ready, against)
        yield {side: {name: _asked(process, name) for name in BY_PROCESS} for side, process in processes.items()}


def _shape(case: Case) -> tuple[int, int]:
    return case.bundle.height, case.bundle.width


def _check_versions(ready: Mapping[str, Mapping[str, Any]], against: Baseline) -> None:
    """Raises BenchError where both are the same installation, or where they give pictures of another quality."""
    base, other = ready["base"], ready["other"]
    if base["file"] == other["file"]:
        raise BenchError(
            f"{against.python} runs the very semseal that runs here: {base['file']}",
            "install the other version in a venv of its own",
        )
    if abs(base["psnr_db"] - other["psnr_db"]) > MAX_PSNR_DIFFERENCE_DB:
        raise BenchError(
            f"the versions do not give the same pictures: {other['psnr_db']:.2f} dB here, {base['psnr_db']:.2f} dB there",
            "their times cannot be compared; look at what changed the quality",
        )


def _asked(process: Process, name: str) -> Stage:
    def run() -> float:
        return float(process.ask(name))

    return Stage(name, run, clocks_itself=True)
