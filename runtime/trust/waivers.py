"""Findings that somebody answers for, until a date: a file in TOML.

    [[waiver]]
    id = "SEMSEAL-V01"
    path = "tensorrt"                   what the finding names; a pattern as of a shell, * for all
    reason = "JetPack 6 has no newer TensorRT; the device opens signed bundles only"
    owner = "edge team"
    expiry = 2027-03-01

A waiver that has expired waives nothing and is a finding itself. One that waives nothing is a warning.
"""

import dataclasses
import datetime
import tomllib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from semseal.runtime.errors import CheckError
from semseal.runtime.trust.finding import Finding, Waiver
from semseal.runtime.trust.rules import BY_ID, EXPIRED, UNUSED

FIELDS = ("id", "path", "reason", "owner", "expiry")
_EXAMPLE = "docs/check.md shows one: [[waiver]] with id, path, reason, owner and expiry = 2027-03-01"


def read_waivers(path: Path) -> tuple[Waiver, ...]:
    """Raises CheckError for a file that is damaged, or with a waiver that lacks something or waives an unknown rule."""
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise CheckError(f"cannot read the waivers {path}: {error.strerror}", "name a file in TOML") from None
    except (ValueError, RecursionError) as error:
        raise CheckError(f"{path} is no TOML: {error}", _EXAMPLE) from None
    entries = found.get("waiver")
    if set(found) - {"waiver"} or not isinstance(entries, list):
        raise CheckError(f"{path} has other things in it than waivers, or none", _EXAMPLE)
    return tuple(_waiver(path, number, entry) for number, entry in enumerate(entries, 1))


def _waiver(path: Path, number: int, entry: Any) -> Waiver:
    if not isinstance(entry, dict) or set(entry) != set(FIELDS):
        raise CheckError(f"waiver {number} of {path} has not exactly {', '.join(FIELDS)}", _EXAMPLE)
    if type(entry["expiry"]) is not datetime.date:
        raise CheckError(f"waiver {number} of {path}: expiry is not a date", _EXAMPLE)
    if not all(isinstance(entry[name], str) and entry[name].strip() for name in FIELDS[:-1]):
        raise CheckError(f"waiver {number} of {path}: {', '.join(FIELDS[:-1])} must be text, and not empty", _EXAMPLE)
    if entry["id"] not in BY_ID or entry["id"] in (EXPIRED.id, UNUSED.id):
        raise CheckError(f"waiver {number} of {path} is for {entry['id']!r}, which is no rule that can be waived", _EXAMPLE)
    return Waiver(**{**entry, "expiry": entry["expiry"].isoformat()})


def waived(findings: Sequence[Finding], waivers: Sequence[Waiver], today: datetime.date, file: str) -> list[Finding]:
    """The findings with their waivers, and what is to be said of the waivers."""
    found: list[Finding] = []
    used: set[Waiver] = set()
    for finding in findings:
        fitting = [waiver for waiver in waivers if waiver.id == finding.id and fnmatchcase(finding.path, waiver.path)]
        used |= set(fitting)
        valid = [waiver for waiver in fitting if waiver.expiry >= today.isoformat()]
        found.append(dataclasses.replace(finding, waiver=valid[0] if valid else None))
    for waiver in waivers:
        if waiver in used and waiver.expiry < today.isoformat():
            what = f"the waiver of {waiver.id} for {waiver.path} by {waiver.owner} expired on {waiver.expiry}"
            found.append(Finding(EXPIRED.id, EXPIRED.title, EXPIRED.severity, file, what, EXPIRED.remedy))
        if waiver not in used:
            what = f"the waiver of {waiver.id} for {waiver.path} by {waiver.owner} waives nothing"
            found.append(Finding(UNUSED.id, UNUSED.title, UNUSED.severity, file, what, UNUSED.remedy))
    return found
