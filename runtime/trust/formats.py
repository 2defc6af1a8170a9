"""A report as text for people, as JSON and as JUnit XML for programs. The others have modules of their own."""

import dataclasses
import json
from xml.etree import ElementTree

from semseal.runtime.files import shown, xml_text
from semseal.runtime.trust.deployment import Deployment
from semseal.runtime.trust.finding import Finding, Report
from semseal.runtime.trust.rules import BY_ID


def written(d: Deployment, report: Report, form: str) -> str:
    """In one of FORMATS."""
    if form == "sarif":
        from semseal.runtime.trust.sarif import as_sarif

        return as_sarif(report)
    if form == "cyclonedx":
        from semseal.runtime.trust.sbom import as_cyclonedx

        return as_cyclonedx(d, report)
    if form == "in-toto":
        from semseal.runtime.trust.statement import as_statement

        return as_statement(d, report)
    return {"text": as_text, "json": as_json, "junit": as_junit}[form](report)


def as_text(report: Report) -> str:
    """Findings, what was waived, what was not looked at, and one line at the end that says it all."""
    lines = []
    for finding in report.findings:
        lines.append(shown(f"{finding.severity} {finding.id} {finding.path}: {finding.message}"))
        if finding.waiver is not None:
            waiver = finding.waiver
            lines.append(shown(f"  waived until {waiver.expiry} by {waiver.owner}: {waiver.reason}"))
        elif finding.severity != "note":
            lines.append(shown(f"  hint: {finding.remedy}"))
    for group in report.unchecked:
        names = ", ".join(name.removeprefix("SEMSEAL-") for name in group.ids)
        lines.append(shown(f"not checked: {names}: {group.reason}"))
    return "\n".join([*lines, shown(summary(report))]) + "\n"


def summary(report: Report) -> str:
    failing = [finding for finding in report.findings if finding.fails]
    waived = sum(finding.waiver is not None for finding in report.findings)
    unchecked = sum(len(group.ids) for group in report.unchecked)
    word = "clean" if report.clean else f"{len(failing)} finding{'s' * (len(failing) > 1)}"
    counts = f"{len(report.rules)} rules, {len(report.passed)} passed, {unchecked} not checked"
    return f"{report.bundle}: {word} ({counts}{f', {waived} waived' if waived else ''})"


def as_json(report: Report) -> str:
    """The report with each rule's CWE and ATLAS technique beside what it found."""
    document = {
        "what": "semseal check",
        **dataclasses.asdict(report),
        "clean": report.clean,
        "passed": report.passed,
        "findings": [_about(finding) for finding in report.findings],
    }
    return json.dumps(document, indent=1) + "\n"


def _about(finding: Finding) -> dict[str, object]:
    rule = BY_ID[finding.id]
    return {
        **dataclasses.asdict(finding),
        "fails": finding.fails,
        "fingerprint": finding.fingerprint,
        "cwe": rule.cwe,
        "atlas": rule.atlas,
        "why": rule.why,
    }


def as_junit(report: Report) -> str:
    """One suite, a test case for each rule: a failure for what it found, skipped for what was waived or not looked at."""
    suite = ElementTree.Element("testsuite", {"name": "semseal check"})
    counts = {"tests": 0, "failures": 0, "skipped": 0, "errors": 0}
    reasons = {name: group.reason for group in report.unchecked for name in group.ids}
    others = dict.fromkeys(finding.id for finding in report.findings if finding.id not in report.rules)
    for name in (*report.rules, *others):
        case = ElementTree.SubElement(suite, "testcase", {"name": f"{name}: {BY_ID[name].title}", "classname": "semseal-check"})
        counts["tests"] += 1
        found = [finding for finding in report.findings if finding.id == name]
        failing = [finding for finding in found if finding.fails]
        said = xml_text("; ".join(f"{finding.path}: {finding.message}" for finding in failing or found))
        if failing:
            counts["failures"] += 1
            failure = ElementTree.SubElement(case, "failure", {"type": failing[0].severity, "message": said})
            failure.text = xml_text(f"{BY_ID[name].why}\nhint: {failing[0].remedy}")
        elif name in reasons:
            counts["skipped"] += 1
            ElementTree.SubElement(case, "skipped", {"message": xml_text(f"not checked: {reasons[name]}")})
        elif found:
            counts["skipped"] += 1
            waiver = found[0].waiver
            why = found[0].severity if waiver is None else f"waived until {waiver.expiry} by {waiver.owner}: {waiver.reason}"
            ElementTree.SubElement(case, "skipped", {"message": xml_text(f"{why}: {said}")})
    document = ElementTree.Element("testsuites", {"name": "semseal check"})
    document.append(suite)
    for element in (document, suite):
        for name, count in counts.items():
            element.set(name, str(count))
    ElementTree.indent(document)
    return ElementTree.tostring(document, "unicode", xml_declaration=True) + "\n"
