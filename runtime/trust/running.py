"""Rules about what runs: the deployed mode, engine and versions, and the frames that go on air.

Frames are made here, of black, white, grey and one smooth picture, under a key that is thrown away.
"""

import json
import re
from importlib import resources
from typing import Any

import numpy as np
from semseal.runtime.defense.defenses import BY_NAME
from semseal.runtime.environment import version
from semseal.runtime.trust.deployment import PICTURES, Deployment, Trial
from semseal.runtime.trust.finding import Outcome, Problem

MAX_POWER_ERROR = 1e-8  # under mix, which hides what the power would tell
MAX_ROUGH_ERROR = 1e-4  # under all else, where float32 says as much as the power
MAX_SILENCE = 1e-12  # power of a frame that is none
VULNERABILITIES = "vulnerabilities.json"


def is_broken(d: Deployment) -> Outcome:
    if not BY_NAME[d.asked.defense].broken:
        return []
    return [Problem("", f"is deployed with the defence {d.asked.defense}, which an Eve without a key undoes by ordering rows")]


def is_undefended(d: Deployment) -> Outcome:
    return [Problem("", "is deployed without a defence: Eve decodes what Bob decodes")] if d.asked.defense == "none" else []


def does_not_run(d: Deployment) -> Outcome:
    return [Problem(f"{d.asked.engine} {precision}", trial.failure) for precision, trial in d.trials.items() if trial.failure]


def is_silent(d: Deployment) -> Outcome:
    problems = []
    for precision, trial in d.trials.items():
        silent = {*trial.silent, *(i for i, power in enumerate(_powers(trial)) if power <= MAX_SILENCE)}
        if silent:
            names = ", ".join(PICTURES[i] for i in sorted(silent) if i < len(PICTURES))
            problems.append(Problem(f"{d.asked.engine} {precision}", f"gives no symbols for pictures that are {names}"))
    return problems


def has_uneven_power(d: Deployment) -> Outcome:
    bound = MAX_POWER_ERROR if d.mixes else MAX_ROUGH_ERROR
    problems = []
    for precision, trial in d.trials.items():
        powers = np.array(_powers(trial))
        if BY_NAME[d.asked.defense].substitutes:
            powers = powers.reshape(-1, 2).mean(axis=1)  # a pair has power 1
        wrong = [power for power in powers if not abs(power - 1) <= bound and power > MAX_SILENCE]
        if wrong:
            worst = max(wrong, key=lambda power: abs(power - 1))
            problems.append(
                Problem(f"{d.asked.engine} {precision}", f"a frame has power 1 {worst - 1:+.1e}, and {bound:.0e} is allowed")
            )
    return problems


def _powers(trial: Trial) -> list[float]:
    """Mean power of each frame's symbols, in double precision."""
    reals = [frame.symbols.view(np.float32).astype(np.float64) for frame in trial.frames]
    return [float(x @ x) / (len(x) / 2) for x in reals]


# versions


def known_vulnerabilities() -> dict[str, Any]:
    """The data file: date, and for each package the version that fixed what was published, and where that was."""
    found: dict[str, Any] = json.loads(resources.files(__package__).joinpath(VULNERABILITIES).read_text())
    return found


def is_vulnerable(d: Deployment) -> Outcome:
    """What is installed here."""
    return [
        Problem(package, f"{package} {number} is installed, and {_said(entry)}")
        for entry in known_vulnerabilities()["packages"]
        for package in entry["names"]
        if (number := version(package)) is not None and _is_before(number, entry["fixed"])
    ]


def needs_vulnerable(d: Deployment) -> Outcome:
    """Plans that only a vulnerable version loads."""
    entries = {name: entry for entry in known_vulnerabilities()["packages"] for name in entry["names"]}
    problems = []
    for name, (engine, number) in _plans(d).items():
        if engine in entries and _is_before(number, entries[engine]["fixed"]):
            problems.append(Problem(name, f"its plan needs {engine} {number}, and {_said(entries[engine])}"))
    return problems


def is_for_another_version(d: Deployment) -> Outcome:
    plans = {name: plan for name, plan in _plans(d).items() if plan[0] == d.asked.engine}
    if not d.asked.engine.startswith("tensorrt"):
        return []
    here = version(d.asked.engine)
    if here is None:
        return f"{d.asked.engine} is not installed here, so its version cannot be compared with that of the plans"
    return [
        Problem(name, f"its plan was built by {engine} {number}, and {here} is installed here")
        for name, (engine, number) in plans.items()
        if number.split("+")[0] != here.split("+")[0]
    ]


def _plans(d: Deployment) -> dict[str, tuple[str, str]]:
    """Engine and version of every plan, as the report beside it says."""
    found = {}
    for name, data in d.files.items():
        if name.endswith(".engine.json"):
            try:
                report = json.loads(data)
                found[name.removesuffix(".json")] = (str(report["engine"]), str(report["version"]))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # ``is_keyless`` says so
    return found


def _said(entry: dict[str, Any]) -> str:
    return f"versions below {entry['fixed']} have {', '.join(entry['ids'])}"


def _is_before(number: str, fixed: str) -> bool:
    """Whether a version comes before another, by the numbers at their start."""

    def key(text: str) -> list[int]:
        found = [int(part) for part in (re.match(r"[\d.]*", text) or [""])[0].split(".") if part]
        return found + [0] * (6 - len(found))

    return key(number) < key(fixed)
