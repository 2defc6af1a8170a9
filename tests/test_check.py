"""``semseal check``: a sound deployment is clean, and each rule finds the deployment that violates it, and nothing else."""

import dataclasses
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from deployed import REALS, H, Place
from madeup import made_up
from semseal import check
from semseal.runtime.audit.attacks import ATTACKS
from semseal.runtime.audit.verdict import verdicts
from semseal.runtime.bench.measure import Summary
from semseal.runtime.bench.results import Results as BenchResults
from semseal.runtime.bench.results import Row, Where
from semseal.runtime.defense import mix
from semseal.runtime.errors import BundleError, CheckError
from semseal.runtime.trust.check import deployment, look
from semseal.runtime.trust.evidence import APART, MISUSE
from semseal.runtime.trust.keyset import new_keyset
from semseal.runtime.trust.rules import RULES
from violations import VIOLATIONS, again, changed, found, key_of_another, loud, unsigned, with_plan


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))  # where other tests may have left an owner's key
    return Place(tmp_path / "deployed")


@pytest.mark.parametrize(("rule", "violate"), VIOLATIONS, ids=[f"{rule}-{do.__name__}" for rule, do in VIOLATIONS])
def test_each_violation_is_found_and_nothing_else(place, rule, violate, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    violate(place)
    assert {name for name, _ in found(place)} == {rule}


def test_a_sound_deployment_is_clean_and_everything_was_looked_at(place, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    report = check(place.bundle, **place.asked, budget=0.02)
    assert report.clean
    assert report.findings == ()
    assert report.unchecked == ()
    assert set(report.passed) == {rule.id for rule in RULES}


@pytest.mark.parametrize("direction", ["one-way", "a-to-b"])
def test_a_keyset_that_requires_mix_is_clean_and_its_secret_is_searched_for(place, direction, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    keyset = new_keyset(direction, "mix")
    again(place, keyset)
    place.asked["two_way"] = direction != "one-way"
    assert found(place) == []
    place.add_constant(np.frombuffer(keyset.keys[0].secret, np.uint8))
    assert {name for name, _ in found(place)} == {"S01"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_key_file_of_another_user(place):
    key_of_another(place)
    assert found(place) == [("K02", str(place.key))]


def test_power_that_is_not_one(place):
    """It goes with the defence none, which is a finding of its own."""
    loud(place)
    assert {name for name, _ in found(place)} == {"D02", "P01"}


def test_a_vulnerable_package_that_is_installed(place, tmp_path, monkeypatch):
    folder = tmp_path / "onnx-1.20.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: onnx\nVersion: 1.20.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert found(place) == [("V01", "onnx")]


def test_a_plan_of_another_version_than_is_installed(place, tmp_path, monkeypatch):
    folder = tmp_path / "tensorrt-11.5.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt\nVersion: 11.5.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with_plan(place, version="11.4.1")
    place.asked["engine"] = place.where["engine"] = "tensorrt"
    place.write()
    # here it does not run either, and neither parity nor audit is about it
    assert {name for name, _ in found(place)} == {"E01", "E02", "Q02", "L03"}


@pytest.mark.parametrize(("sizes", "rule"), [({"h": 15}, "D04"), ({"c": 2, "w": 64}, "D05"), ({"h": 2**18, "w": 16}, "D04")])
def test_models_that_mix_does_not_suit(place, sizes, rule):
    """By the manifest alone: the graphs are of another size, which is found as well and stops what comes behind."""
    changed(place, model={**place.manifest["model"], **sizes})
    assert {name for name, _ in found(place)} - {"B08"} == {rule}


def test_every_rule_has_a_deployment_that_violates_it():
    alone = {"P01", "V01", "E01", "K02", "D04", "D05"}  # above
    assert {rule for rule, _ in VIOLATIONS} | alone == {rule.id.removeprefix("SEMSEAL-") for rule in RULES}


def test_public_orders_and_signs_are_no_secrets(place):
    """Identity, reversal, transposition, the shuffle of channels and the matrices of mix, as networks have them."""
    for n, name in ((H, "rows"), (H * H, "places")):
        for order in (np.arange(n), np.arange(n)[::-1], np.arange(n).reshape(4, -1).T.ravel(), np.roll(np.arange(n), 3)):
            place.add_constant(np.ascontiguousarray(order, np.int64), f"{name}{order[1]}")
    for i, matrix in enumerate((*mix.matrices(REALS), *mix.inverse_matrices(REALS))):
        place.add_constant(matrix, f"hadamard{i}")
    place.add_constant(np.tile(np.float32([[1, 1], [1, -1]]), (16, 1, 1)), "haar")
    assert found(place) == []


def test_misuse_is_what_the_table_of_attacks_says():
    assert set(MISUSE) == {attack.name for attack in ATTACKS if attack.misuse}
    assert set(APART) == {attack.name for attack in ATTACKS if attack.apart}


@pytest.mark.parametrize("name", ["edge", "edge-quality", "photos-10db"])
def test_packaged_bundles_are_clean(name):
    report = check(name)
    assert report.clean
    assert {finding.id for finding in report.findings} == {"SEMSEAL-L01"}  # a note: no audit was named
    unchecked = {rule for group in report.unchecked for rule in group.ids}
    assert unchecked == {rule.id for rule in RULES if rule.id[8] in "KLT"} - {"SEMSEAL-K07", "SEMSEAL-L01"} | {
        "SEMSEAL-S01",
        "SEMSEAL-P03",
    }


def test_what_is_not_looked_at_is_said_with_the_reason(place):
    unsigned(place)
    report = check(place.bundle, **place.asked)
    reasons = {name: group.reason for group in report.unchecked for name in group.ids}
    assert reasons["SEMSEAL-S02"] == "SEMSEAL-B01 must be fixed first"
    assert not {"SEMSEAL-S02", "SEMSEAL-E02"} & set(report.passed)
    assert report.digest is None


def test_what_is_no_bundle_and_files_that_are_not_there(place, tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        check(tmp_path)
    with pytest.raises(BundleError, match="there is no bundle"):
        check(tmp_path / "nowhere")
    for name in ("keys", "folder", "results", "benchmark"):
        with pytest.raises(CheckError, match="nowhere"):
            check(place.bundle, **{**place.asked, name: tmp_path / "nowhere"})
    for text in ("[]", "{", '{"bundles": 1}'):
        place.results.write_text(text)
        with pytest.raises(CheckError, match=r"audit\.json is not the results"):
            check(place.bundle, **place.asked)


def test_mutated_bundles_are_never_clean(place):
    """1,000 of them: bytes changed, cut, doubled, files added, removed, exchanged. No crash, and every one is found."""
    rng = random.Random(0)
    original = {path.relative_to(place.bundle): path.read_bytes() for path in place.bundle.rglob("*") if path.is_file()}
    names = sorted(original)
    for number in range(1000):
        files = dict(original)
        name = rng.choice(names)
        data = bytearray(files[name])
        at = rng.randrange(len(data))
        match rng.choices(range(7), (4, 4, 4, 4, 4, 4, 1))[0]:
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.randbytes(rng.randrange(1, 40))
            case 3:
                data[at : at + 8] = data[: len(data[at : at + 8])][::-1] + b"\0"
            case 4:
                del files[name]
            case 5:
                other = rng.choice([other for other in names if other != name])
                files[name], files[other] = files[other], files[name]
            case 6:
                files[name.with_name("more.onnx")] = bytes(data)
        if name in files and bytes(data) != original[name] and files[name] == original[name]:
            files[name] = bytes(data)
        for path in place.bundle.iterdir():
            path.unlink()
        for path, content in files.items():
            (place.bundle / path).write_bytes(content)
        try:
            d = deployment(place.bundle, **place.asked)
        except BundleError:
            assert Path("manifest.json") not in files
            continue
        problems, _ = look(d)
        assert any(problem.fails for problem in problems), (number, name)


def test_signed_nonsense_is_never_a_crash(place):
    """What an owner could sign: every value of the manifest replaced by others, of another type above all."""
    for path in _paths(place.manifest):
        for other in (None, True, -1, 1e400, [], {}, "x", 2**70):
            place.sign(json.dumps(_replaced(place.manifest, path, other)).encode())
            problems, _ = look(deployment(place.bundle, **place.asked))
            # of what is not about the model the format says nothing
            assert problems or path[0] in ("training", "tools", "engines", "snr_db", "parity"), (path, other)


def _paths(value, path=()):
    if path:
        yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _paths(inner, (*path, name))


def _replaced(value, path, other):
    if not path:
        return other
    return {**value, path[0]: _replaced(value[path[0]], path[1:], other)}


@pytest.mark.parametrize(("mix_db", "rules"), [(11.0, set()), (19.0, {"L04"})])
def test_the_results_of_an_audit_as_it_writes_them(place, mix_db, rules):
    """The verdict is the audit's own: the same rows, misuse left out."""
    results = made_up(mix_db)
    entry = dataclasses.replace(results.bundles[0], digest=place.manifest["model"]["digest"])
    results = dataclasses.replace(results, bundles=(entry,))
    place.results.write_text(results.to_json())
    told = {name for name, _ in found(place)}
    verdict = next(verdict for verdict in verdicts(results) if verdict.defense == "mix")
    assert told & {"L02", "L03", "L04", "L07"} == rules
    assert ("L04" in told) == (verdict.word == "falls")
    assert ("L06" in told) == bool(verdict.open)
    assert ("L05" in told) == bool(verdict.void)


def test_the_results_of_a_benchmark_as_it_writes_them(place):
    digest = place.manifest["model"]["digest"]
    rows = tuple(
        Row(Where("bundle", "onnxruntime-cpu", "fp32", "mix", 1), stage, Summary(700, 4.0, 5.0, p99, 60.0, 2.0))
        for stage, p99 in (("send", 20.0), ("receive", 34.0), ("header", 99.0))
    )
    bench = BenchResults({}, {}, {"bundle": {"path": "bundle", "digest": digest}}, {}, rows=rows)
    place.benchmark.write_text(json.dumps(bench.document()))
    assert found(place) == [("T02", str(place.benchmark))]
    place.asked["deadline_ms"] = 35.0
    assert found(place) == []
