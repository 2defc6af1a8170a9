"""A report as SARIF 2.1.0, as GitHub and other code scanners read it.

Waived findings are there with a suppression. What was not looked at is a notification of the run.
"""

import json
from typing import Any
from urllib.parse import quote

from semseal.runtime.trust.finding import SEVERITIES, Finding, Report, Rule
from semseal.runtime.trust.rules import ALL, BY_ID

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
PLACES = {rule.id: place for place, rule in enumerate(ALL)}


def as_sarif(report: Report) -> str:
    run = {
        "tool": {
            "driver": {
                "name": "semseal check",
                "version": report.version,
                "rules": [_rule(rule) for rule in ALL],
                "supportedTaxonomies": [{"name": "CWE", "index": 0}],
            }
        },
        "taxonomies": [
            {
                "name": "CWE",
                "organization": "MITRE",
                "shortDescription": {"text": "Common Weakness Enumeration"},
                "taxa": [{"id": f"CWE-{number}"} for number in sorted({rule.cwe for rule in ALL})],
            }
        ],
        "invocations": [
            {
                "executionSuccessful": True,
                "toolExecutionNotifications": [
                    {"level": "note", "message": {"text": f"not checked: {', '.join(group.ids)}: {group.reason}"}}
                    for group in report.unchecked
                ],
            }
        ],
        "results": [_result(finding) for finding in report.findings],
        "properties": {"bundle": report.bundle, "modelDigest": report.digest},
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _rule(rule: Rule) -> dict[str, Any]:
    score, level = SEVERITIES[rule.severity]
    return {
        "id": rule.id,
        "name": "".join(word.capitalize() for word in rule.title.replace(":", "").replace("'", "").split()),
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.why},
        "help": {"text": rule.remedy},
        "defaultConfiguration": {"level": level},
        "relationships": [
            {"target": {"id": f"CWE-{rule.cwe}", "toolComponent": {"name": "CWE", "index": 0}}, "kinds": ["superset"]}
        ],
        "properties": {
            "security-severity": f"{score:.1f}",
            "tags": ["security", f"external/cwe/cwe-{rule.cwe}", f"atlas/{rule.atlas}"],
        },
    }


def _result(finding: Finding) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding.id,
        "ruleIndex": PLACES[finding.id],
        "level": SEVERITIES[finding.severity][1],
        "message": {"text": f"{finding.message} (hint: {finding.remedy})"},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": _uri(finding.path)}, "region": {"startLine": 1}},
                "logicalLocations": [{"name": finding.path, "kind": "resource"}],
            }
        ],
        "partialFingerprints": {"semsealFinding/v1": finding.fingerprint},
        "properties": {"security-severity": f"{SEVERITIES[finding.severity][0]:.1f}", "why": BY_ID[finding.id].why},
    }
    if finding.waiver is not None:
        waiver = finding.waiver
        why = f"{waiver.reason} ({waiver.owner}, until {waiver.expiry})"
        result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": why}]
    return result


def _uri(path: str) -> str:
    """A name as a URI reference, absolute where the name is."""
    return f"file://{quote(path)}" if path.startswith("/") else quote(path, safe="/")
