"""``semseal check``: every rule over a bundle and what it is deployed with.

    Asked ── Deployment ── rules, stage by stage ──> findings ── waivers ──> Report

Whatever a rule cannot look at is listed with the reason: nothing passes in silence. Nothing of a bundle is parsed before its
signature holds, and nothing runs before every digest and every graph was found good. What is checked is what this machine can
see: a clean report says that none of the known mistakes was made, not that there are no others.
"""

import datetime
import shlex
from pathlib import Path
from typing import Any

from semseal.runtime.environment import version
from semseal.runtime.files import expanded, shown
from semseal.runtime.trust.deployment import Asked, Deployment
from semseal.runtime.trust.finding import STAGES, Finding, Report, Unchecked
from semseal.runtime.trust.rules import IN_ORDER, RULES
from semseal.runtime.trust.waivers import read_waivers, waived


def check(bundle: str | Path, keys: str | Path | None = None, waivers: str | Path | None = None, **deployed: Any) -> Report:
    """Check a bundle: a folder, or the name of a packaged one. ``deployed`` has the other fields of ``Asked``.

    Raises BundleError for what is no bundle, and CheckError for keys, waivers, results or a folder that cannot be read. What is
    wrong with a bundle is a finding, not an error.
    """
    return examine(deployment(bundle, keys=keys, **deployed), waivers)


def deployment(bundle: str | Path, **deployed: Any) -> Deployment:
    """What is to be checked, by the fields of ``Asked``. Raises as ``check``."""
    named: dict[str, Any] = {
        name: expanded(value) if name in ("keys", "state", "folder", "results", "benchmark") and value is not None else value
        for name, value in deployed.items()
    }
    return Deployment(Asked(Path(bundle), **named))


def examine(d: Deployment, waivers: str | Path | None = None) -> Report:
    """Every rule over a deployment, and the file of waivers. Raises as ``check``."""
    allowed = () if waivers is None else read_waivers(expanded(waivers))
    today = datetime.date.today()
    found, unchecked = look(d)
    return Report(
        bundle=shown(d.name),
        digest=d.digest,
        version=version("semseal") or "",
        date=today.isoformat(),
        rules=tuple(rule.id for rule in RULES),
        findings=tuple(waived(found, allowed, today, shown(str(waivers)))),
        unchecked=tuple(Unchecked(tuple(ids), reason) for reason, ids in unchecked.items()),
    )


def look(d: Deployment) -> tuple[list[Finding], dict[str, list[str]]]:
    """What the rules find, and by reason the ids of those that could not be looked at."""
    found: list[Finding] = []
    unchecked: dict[str, list[str]] = {}
    closed: dict[str, int] = {}  # gates with a finding, and their stage
    for rule in IN_ORDER:
        stage = STAGES.index(rule.stage)
        before = [name for name, other in closed.items() if other < stage]
        if before:
            unchecked.setdefault(f"{', '.join(before)} must be fixed first", []).append(rule.id)
            continue
        outcome = rule.find(d)
        if isinstance(outcome, str):
            unchecked.setdefault(shown(outcome), []).append(rule.id)
            continue
        for problem in outcome:
            # names may be no text at all
            path, message = shown(problem.path or d.name), shown(problem.message)
            remedy = rule.remedy.replace("FILE", shlex.quote(path)).replace("BUNDLE", shlex.quote(shown(d.name)))
            found.append(Finding(rule.id, rule.title, problem.severity or rule.severity, path, message, remedy))
        if rule.gate and outcome:
            closed[rule.id] = stage
    return found, unchecked
