"""What the scripts in this folder share: round trips and attempts. They measure with ``semseal.runtime.bench``."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from semseal.runtime.bench.measure import Stage
from semseal.runtime.bench.stages import pictures
from semseal.runtime.defense.defenses import MODES
from semseal.runtime.errors import SemsealError
from semseal.runtime.roundtrip import complaint, measure

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


def through(bundle: Path | str, name: str, precision: str = "fp32", defense: str = "none", owner: str | None = None) -> float:
    """PSNR in dB of a round trip of pictures with a texture: they come through at some 30 dB by any model, not at 50."""
    return measure(bundle, name, precision, defense, owner, pictures)


def links(bundle: Path, name: str, precision: str, expected_db: float, owner: str | None) -> dict[str, Any]:
    """PSNR in dB of a round trip from send to receive, by defence.

    Null with the reason where the engine cannot be had. An engine that gives other pictures, or that runs without a defence
    and not with each of them, is a failure.
    """
    found: dict[str, Any] = {}
    for defense in MODES:
        what = f"{name} {precision} {defense}"
        found[defense] = attempt(what, through, bundle, name, precision, defense, owner)
        if isinstance(found[defense], float):
            wrong = complaint(found[defense], expected_db, precision, defense)
        else:
            wrong = found[defense]["reason"] if isinstance(found["none"], float) else ""
        if wrong and wrong not in failures:
            failures.append(f"{what}: {wrong}")
    return found


def plain(runs: Mapping[str, Callable[[], Any]]) -> dict[str, Stage]:
    """Stages whose answers were checked elsewhere."""
    return {name: Stage(name, run) for name, run in runs.items()}
