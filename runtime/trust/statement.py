"""A report as an in-toto statement: these very files, and how they did in a test.

The subject is every file of the bundle by its digest, the predicate in-toto's test result. It is not signed here: hand it to
``cosign attest`` or a signer of your own.
"""

import hashlib
import json
from typing import Any

from semseal.runtime.errors import BundleError, CheckError
from semseal.runtime.trust.deployment import MAX_DOCUMENT_BYTES, Deployment, read_regular
from semseal.runtime.trust.evidence import audit_verdict
from semseal.runtime.trust.finding import Report

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"


def as_statement(d: Deployment, report: Report) -> str:
    """Raises CheckError for a bundle whose manifest cannot be trusted: there is nothing to state it about."""
    try:
        files = d.bundle.manifest["files"]
    except BundleError as error:
        raise CheckError(f"no statement about {d.name}: {error.message}", error.hint) from None
    warned = [finding.id for finding in report.findings if not finding.fails]
    failed = [finding.id for finding in report.findings if finding.fails]
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": entry["sha256"]}} for name, entry in files.items()],
        "predicateType": PREDICATE,
        "predicate": {
            "result": "FAILED" if failed else "WARNED" if warned or report.unchecked else "PASSED",
            "configuration": [_resource(name, path) for name, path in _documents(d).items() if path is not None],
            "passedTests": list(report.passed),
            "warnedTests": [*dict.fromkeys([*warned, *(name for group in report.unchecked for name in group.ids)])],
            "failedTests": [*dict.fromkeys(failed)],
            "deployed": {name: getattr(d.asked, name) for name in ("defense", "engine", "precision")},
            "audit": audit_verdict(d),
        },
    }
    return json.dumps(statement, indent=1) + "\n"


def _documents(d: Deployment) -> dict[str, Any]:
    return {"audit": d.asked.results, "benchmark": d.asked.benchmark}


def _resource(name: str, path: Any) -> dict[str, Any]:
    data = read_regular(path, MAX_DOCUMENT_BYTES) or b""
    return {"name": name, "digest": {"sha256": hashlib.sha256(data).hexdigest()}}
