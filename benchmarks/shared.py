"""What the scripts in this folder share: candidates timed in turns, round trips, attempts, and what programs say."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.defense.defenses import MODES
from semseal.runtime.errors import SemsealError
from semseal.runtime.roundtrip import complaint, measure

SAMPLES_FOR_P99 = 662  # that MLPerf asks for before a 99th percentile is one
failures: list[str] = []  # of this run, by ``attempt``


def attempt(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function gives; where that cannot be had, null with the reason, and a failed check is remembered."""
    print(f"{what} ...", file=sys.stderr, flush=True)
    try:
        return function(*arguments)
    except (SemsealError, ImportError) as error:
        return {"value": None, "reason": f"{type(error).__name__}: {error}"}
    except Exception as error:  # one path's crash must not cost the others' figures
        failures.append(f"{what}: {type(error).__name__}: {error}")
        return {"value": None, "reason": failures[-1]}


def links(bundle: Path, name: str, precision: str, expected_db: float, owner: str | None) -> dict[str, Any]:
    """PSNR in dB of a round trip from send to receive, by defence.

    Null with the reason where the engine cannot be had. An engine that gives other pictures, or that runs without a defence
    and not with each of them, is a failure.
    """
    found: dict[str, Any] = {}
    for defense in MODES:
        what = f"{name} {precision} {defense}"
        found[defense] = attempt(what, measure, bundle, name, precision, defense, owner)
        if isinstance(found[defense], float):
            wrong = complaint(found[defense], expected_db, precision, defense)
        else:
            wrong = found[defense]["reason"] if isinstance(found["none"], float) else ""
        if wrong and wrong not in failures:
            failures.append(f"{what}: {wrong}")
    return found


def interleave(candidates: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int) -> dict[str, NDArray[np.float64]]:
    """Seconds of each candidate in each round. Every round runs all of them once, in a new random order."""
    rng, names = np.random.default_rng(0), list(candidates)
    seconds = {name: np.empty(rounds) for name in names}
    for round_ in range(-warm_up, rounds):
        for i in rng.permutation(len(names)):
            start = time.perf_counter()
            candidates[names[i]]()
            taken = time.perf_counter() - start
            if round_ >= 0:
                seconds[names[i]][round_] = taken
    return seconds


def percentiles(microseconds: list[float]) -> dict[str, float]:
    """Of at least SAMPLES_FOR_P99 samples."""
    assert len(microseconds) >= SAMPLES_FOR_P99
    p50, p99 = np.percentile(microseconds, [50, 99])
    return {"samples": len(microseconds), "p50_us": float(p50), "p99_us": float(p99)}


def said(*command: str) -> dict[str, str | None]:
    """What a program prints; null with the reason where it fails or is not here."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"value": None, "reason": f"{command[0]}: {error}"}
    if done.returncode:
        return {"value": None, "reason": f"{' '.join(command)}: {done.stderr.strip() or done.returncode}; try sudo"}
    return {"value": done.stdout.strip()}
