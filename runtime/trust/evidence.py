"""Rules about what was measured: parity in the manifest, the results.json of an audit and of a benchmark.

Both documents are read as JSON, so that a device without torch can check them.
"""

from typing import Any

from semseal.runtime.errors import CheckError
from semseal.runtime.trust.deployment import Deployment
from semseal.runtime.trust.finding import Outcome, Problem

MAX_LOSS_DB = {"fp32": 0.01, "fp16": 0.1, "int8": 1.0}  # of a precision, against the network that was trained
MISUSE = ("reused-scheme", "reused-stream", "leaked-scale")  # attacks that need a mistake in practice; no verdict counts them
APART = ("integrity", "timing")  # those that are no eavesdropper's, and leave the verdict of a defence alone
NO_AUDIT = "no results of an audit were named (--results RESULTS.json)"
NO_DEADLINE = "no deadline was named (--deadline-ms MS)"
_SHOWN = 3  # examples in a message


# parity


def is_lossy(d: Deployment) -> Outcome:
    """Every engine and precision that parity was measured on."""
    rows = parity_rows(d)
    reference = next((row["psnr"] for row in rows if row["engine"] == "reference"), None)
    if reference is None:
        return "the manifest has no reference to compare with"
    problems = []
    for row in rows:
        precision = row["transmitter"]
        if precision != row["receiver"] or precision not in MAX_LOSS_DB:
            continue
        losses = {snr: reference[snr] - psnr for snr, psnr in row["psnr"].items() if snr in reference}
        snr, loss = max(losses.items(), key=lambda item: item[1], default=("", 0.0))
        if not loss <= MAX_LOSS_DB[precision]:
            what = f"loses {loss:.2f} dB at {snr} dB, and {MAX_LOSS_DB[precision]:g} dB are allowed"
            problems.append(Problem(f"{row['engine']} {precision}", what))
    return problems


def is_not_measured(d: Deployment) -> Outcome:
    asked = d.asked
    if any(
        (row["engine"], row["transmitter"], row["receiver"]) == (asked.engine, *[asked.precision] * 2) for row in parity_rows(d)
    ):
        return []
    return [Problem(f"{asked.engine} {asked.precision}", "its parity with the network that was trained was never measured")]


def parity_rows(d: Deployment) -> list[dict[str, Any]]:
    """The rows of the manifest that are whole."""
    parity = d.bundle.manifest.get("parity")
    rows = parity.get("rows") if isinstance(parity, dict) else None
    fields = {"engine", "transmitter", "receiver", "psnr"}
    found = [row for row in rows if isinstance(row, dict) and fields <= set(row)] if isinstance(rows, list) else []
    return [
        row for row in found if isinstance(row["psnr"], dict) and all(type(x) in (int, float) for x in row["psnr"].values())
    ]


# audit


def has_no_audit(d: Deployment) -> Outcome:
    if d.asked.results is not None:
        return []
    if d.is_packaged:
        return [Problem("", "no audit was named; what this project measured of its defence is in docs/security.md", "note")]
    return [Problem("", "no audit of this bundle was named: what an eavesdropper learns is not known")]


def is_of_other_graphs(d: Deployment) -> Outcome:
    if d.audit is None:
        return NO_AUDIT
    if _audited(d):
        return []
    return [Problem(str(d.asked.results), "is about other graphs: none of its bundles has the digest of this model")]


def is_of_another_deployment(d: Deployment) -> Outcome:
    if d.audit is None:
        return NO_AUDIT
    entries, settings = _audited(d), d.audit.get("settings", {})
    if not entries:
        return "the audit is about other graphs"
    main, eve = _channels(d)
    deployed = {
        "engine": (d.asked.engine, [engine for entry in entries for engine in entry.get("engines", [])]),
        "precision": (d.asked.precision, settings.get("precisions", [])),
        "defence": (d.asked.defense, settings.get("defenses", [])),
        "main channel": (main, [entry.get("main_channel") for entry in entries]),
        "eavesdropper channel": (eve, [entry.get("eve_channel") for entry in entries]),
    }
    return [
        Problem(str(d.asked.results), f"measured the {what} {_listed(seen)}, and {wanted} is deployed")
        for what, (wanted, seen) in deployed.items()
        if wanted not in seen
    ]


def is_seen(d: Deployment) -> Outcome:
    return _verdict(d, "sees", "Eve sees something")


def is_void(d: Deployment) -> Outcome:
    return _verdict(d, "void", "is void, because an attack failed where it must win")


def is_open(d: Deployment) -> Outcome:
    return _verdict(d, "open", "is undecided: too few pictures or trials to show that nothing leaks")


def is_over_budget(d: Deployment) -> Outcome:
    if d.audit is None:
        return NO_AUDIT
    if not _audited(d):
        return "the audit is about other graphs"
    where = str(d.asked.results)
    problems = [
        Problem(where, f"the budget {gate.get('name')} of {gate.get('bound')} was not kept: {gate.get('figure')}")
        for gate in d.audit.get("gate", [])
        if not gate.get("passed")
    ]
    if d.asked.budget is None:
        return problems
    rates = [row["high"] for row in measured(d) if row.get("measure") == "rate" and row["attack"] not in (*MISUSE, *APART)]
    if not rates:
        return [
            *problems,
            Problem(where, f"Eve's rate in naming the picture was not measured, its budget is {d.asked.budget:g}"),
        ]
    if not max(rates) <= d.asked.budget:
        what = f"Eve may name the picture at a rate of {max(rates):.4f} (upper 95 % bound), the budget is {d.asked.budget:g}"
        problems.append(Problem(where, what))
    return problems


def audit_verdict(d: Deployment) -> str:
    """What the audit says of the deployed defence, in one word: falls, undecided, void, holds; or that it was not measured."""
    words = [row["verdict"] for row in measured(d) if row["attack"] not in (*MISUSE, *APART)]
    named = {"sees": "falls", "open": "undecided", "void": "void", "nothing": "holds"}
    return next((said for word, said in named.items() if word in words), "not measured")


def _verdict(d: Deployment, word: str, what: str) -> Outcome:
    if d.audit is None:
        return NO_AUDIT
    if not _audited(d):
        return "the audit is about other graphs"
    rows = measured(d)
    if not rows:
        return "the audit did not measure what is deployed"
    found = [row["attack"] for row in rows if row["verdict"] == word and row["attack"] not in (*MISUSE, *APART)]
    return [Problem(str(d.asked.results), f"{_listed(found)}: {what}")] if found else []


def _audited(d: Deployment) -> list[dict[str, Any]]:
    """The audit's entries about this model."""
    assert d.audit is not None
    digest = d.bundle.digest.hex()
    return [entry for entry in d.audit["bundles"] if isinstance(entry, dict) and entry.get("digest") == digest]


def measured(d: Deployment) -> list[dict[str, Any]]:
    """What was measured of Eve under what is deployed; nothing without an audit."""
    if d.audit is None:
        return []
    names = {entry.get("name") for entry in _audited(d)}
    deployed = {"defense": d.asked.defense, "precision": d.asked.precision, "engine": d.asked.engine}
    rows = [row for row in (*d.audit.get("rows", []), *d.audit["games"]) if isinstance(row, dict) and row.get("verdict")]
    if any("attack" not in row for row in rows):
        raise CheckError(f"{d.asked.results} is damaged: a row names no attack", "name the results.json as it was written")
    return [
        row
        for row in rows
        if all(row.get(field, value) == value for field, value in deployed.items()) and row.get("bundle") in names
    ]


def _channels(d: Deployment) -> tuple[str, str]:
    """As deployed: Bob's and Eve's."""
    training = d.bundle.manifest.get("training")
    trained = training.get("channel", "awgn") if isinstance(training, dict) else "awgn"
    main = d.asked.channel or trained
    return main, d.asked.eve_channel or main


# benchmark


def has_no_benchmark(d: Deployment) -> Outcome:
    if d.asked.deadline_ms is None:
        return NO_DEADLINE
    if d.benchmark is None:
        return [Problem("", f"the deadline is {d.asked.deadline_ms:g} ms, and no benchmark was named")]
    if not _timed(d):
        where = f"{d.asked.engine} {d.asked.precision} with {d.asked.defense}"
        return [Problem(str(d.asked.benchmark), f"did not measure these graphs on {where}")]
    return []


def is_late(d: Deployment) -> Outcome:
    if d.asked.deadline_ms is None:
        return NO_DEADLINE
    if d.benchmark is None or not _timed(d):
        return "there is no benchmark of what is deployed"
    problems = []
    for row in _timed(d):
        time = row["time"]
        name, value = next((name, time[name]) for name in ("p99_ms", "max_ms", "p50_ms") if time.get(name) is not None)
        if not value <= d.asked.deadline_ms:
            what = (
                f"{row['stage']} takes {value:.2f} ms ({name.removesuffix('_ms')}), the deadline is {d.asked.deadline_ms:g} ms"
            )
            problems.append(Problem(str(d.asked.benchmark), what))
    return problems


def _timed(d: Deployment) -> list[dict[str, Any]]:
    """The rows of whole links, or of both ends apart, that ran what is deployed."""
    assert d.benchmark is not None
    digest = d.bundle.digest.hex()
    bundles = d.benchmark["bundles"]
    names = {name for name, about in bundles.items() if about.get("digest") == digest} if isinstance(bundles, dict) else set()
    deployed = {"engine": d.asked.engine, "precision": d.asked.precision, "defense": d.asked.defense}
    rows = [
        row
        for row in d.benchmark["rows"]
        if row.get("time")
        and row["where"]["bundle"] in names
        and all(row["where"][name] == deployed[name] for name in deployed)
    ]
    return [row for row in rows if row["stage"] == "link"] or [row for row in rows if row["stage"] in ("send", "receive")]


def _listed(names: list[Any]) -> str:
    different = list(dict.fromkeys(map(str, names)))
    more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
    return ", ".join(different[:_SHOWN]) + more if different else "nothing"
