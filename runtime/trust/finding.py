"""What a check is made of, and what it gives: rules, problems, findings, the report.

Rule ── find(Deployment) ──> Problems, or a sentence: why it could not be looked at
Problems ── waivers ──> Findings ─┐
sentences ────────────> Unchecked ┴─> Report
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from semseal.runtime.trust.deployment import Deployment

# severity -> CVSS-like score, as GitHub reads ``security-severity``, and SARIF's level
SEVERITIES = {
    "critical": (9.5, "error"),
    "high": (8.0, "error"),
    "medium": (5.5, "warning"),
    "low": (3.0, "warning"),
    "warning": (1.0, "warning"),
    "note": (0.0, "note"),
}
FAILING = ("critical", "high", "medium", "low")  # those that the exit code counts
FORMATS = ("text", "json", "sarif", "junit", "cyclonedx", "in-toto")
STAGES = ("start", "plain", "signed", "read", "whole", "sound", "runs")


@dataclass(frozen=True)
class Problem:
    """Where, and what is wrong there. ``severity`` only where it is not that of the rule."""

    path: str
    message: str
    severity: str | None = None


Outcome = Sequence[Problem] | str  # a str says why the rule could not be looked at


@dataclass(frozen=True)
class Rule:
    """One row of the table. ``cwe`` is a number of MITRE CWE, ``atlas`` a technique of MITRE ATLAS.

    ``stage`` says what must hold before it is looked at: nothing (start), no links (plain), the signature (signed), the
    manifest (read), every digest (whole), every graph (sound), and that it runs (runs). Where a ``gate`` has a finding, no rule
    of a later stage is looked at.
    """

    id: str
    title: str
    severity: str
    cwe: int
    atlas: str
    stage: str
    find: "Callable[[Deployment], Outcome]"
    why: str
    remedy: str
    gate: bool = False


@dataclass(frozen=True)
class Waiver:
    """A finding that somebody answers for. ``path`` is a pattern as of a shell; ``expiry`` is a date, YYYY-MM-DD."""

    id: str
    path: str
    reason: str
    owner: str
    expiry: str


@dataclass(frozen=True)
class Finding:
    """``id`` is the rule's. ``waiver`` is the one that holds for it."""

    id: str
    title: str
    severity: str
    path: str
    message: str
    remedy: str
    waiver: Waiver | None = None

    @property
    def fails(self) -> bool:
        """Whether it makes the deployment one that is not clean."""
        return self.severity in FAILING and self.waiver is None

    @property
    def fingerprint(self) -> str:
        """The same in every run for the same rule at the same place."""
        return hashlib.sha256(f"{self.id}\0{self.path}\0{self.message}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Unchecked:
    """Rules that were not looked at, and why."""

    ids: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Report:
    """What a check found. ``digest`` is the model's, None where the manifest could not be read."""

    bundle: str
    digest: str | None
    version: str
    date: str
    rules: tuple[str, ...]
    findings: tuple[Finding, ...]
    unchecked: tuple[Unchecked, ...]

    @property
    def clean(self) -> bool:
        return not any(finding.fails for finding in self.findings)

    @property
    def passed(self) -> tuple[str, ...]:
        """The rules that were looked at and found nothing."""
        other = {finding.id for finding in self.findings} | {name for group in self.unchecked for name in group.ids}
        return tuple(name for name in self.rules if name not in other)
