import dataclasses
import json
import shutil

import pytest
from PIL import Image
from semseal.runtime.attacks import whitebox
from semseal.runtime.audit import cell as cell_module
from semseal.runtime.audit import code as code_module
from semseal.runtime.audit import paper
from semseal.runtime.audit.code import digest_of_code
from semseal.runtime.audit.matrix import FULL
from semseal.runtime.audit.results import Results
from semseal.runtime.audit.run import audit
from semseal.runtime.audit.verdict import verdicts
from semseal.runtime.bundle import open_bundle, write_bundle
from semseal.runtime.errors import AuditError, BundleError, PictureError
from semseal.runtime.signing import owner_key

TINY = dataclasses.replace(
    FULL, pictures=8, optimised_pictures=6, attacker_pictures=12, blackbox_steps=8,
    whitebox=dataclasses.replace(whitebox.FAST, steps=5), eve_snrs=(0.0, 10.0),
    defenses=tuple(paper.TABLES), attacks=("white-box", "black-box"),
)  # fmt: skip


@pytest.fixture(scope="module")
def done(small_bundle, tmp_path_factory):
    out = tmp_path_factory.mktemp("audit") / "out"
    return out, audit([small_bundle], "photos", out, TINY)


def test_every_cell_is_measured_and_written(done):
    out, results = done
    assert Results.from_json((out / "results.json").read_text()) == results
    rows = {(row.attack, row.defense, row.eve_snr): row for row in results.rows}
    assert len(rows) == 4 * (1 + 2 * 2) + 1
    assert rows["white-box", "permute", 10.0].pictures == 6
    assert rows["black-box", "permute", 10.0].pictures == 8
    assert all(row.psnr_95 > 0 for row in rows.values())
    assert rows["white-box", "none", 0.0].paper_psnr == 16.69
    assert rows["bob", "none", None].paper_psnr == 32.28
    assert rows["mean-picture", "none", None].paper_psnr is None
    assert rows["mean-picture", "none", None].paper_missing
    assert results.environment.packages["onnxruntime"] != "not installed"


def test_bob_is_the_same_under_every_defence_up_to_where_the_noise_falls(done):
    bob = [row.psnr for row in done[1].rows if row.attack == "bob"]
    assert len(bob) == 4
    assert max(bob) - min(bob) < 0.3


def test_an_interrupted_audit_goes_on_and_ends_the_same(done, small_bundle, tmp_path, monkeypatch):
    real, calls = cell_module.content, []

    def interrupted(scene, cell, advance):
        calls.append(cell)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(scene, cell, advance)

    monkeypatch.setattr(cell_module, "content", interrupted)
    with pytest.raises(KeyboardInterrupt):
        audit([small_bundle], "photos", tmp_path / "out", TINY)
    assert not (tmp_path / "out" / "results.json").exists()
    results = audit([small_bundle], "photos", tmp_path / "out", TINY)
    assert len(calls) == 21 + 1  # the interrupted cell twice, no other again
    assert results.rows == done[1].rows  # to the bit, under every defence


def test_two_processes_measure_the_same(done, small_bundle, tmp_path):
    """But for rounding: each has fewer threads."""
    results = audit([small_bundle], "photos", tmp_path / "out", TINY, jobs=2)
    for first, second in zip(done[1].rows, results.rows, strict=True):
        assert first.psnr == pytest.approx(second.psnr, abs=0.02)


def test_another_seed_is_another_key(done, small_bundle, tmp_path):
    other = dataclasses.replace(TINY, seed=1, attacks=("black-box",), eve_snrs=(10.0,))
    rows = audit([small_bundle], "photos", tmp_path / "out", other).rows
    before = {(row.attack, row.defense, row.eve_snr): row.psnr for row in done[1].rows}
    again = [row for row in rows if row.defense == "permute+substitute"]
    assert again
    assert all(row.psnr != before[row.attack, row.defense, row.eve_snr] for row in again)


def test_a_part_of_an_audit_can_be_asked_for_more(small_bundle, tmp_path):
    part = dataclasses.replace(TINY, attacker_pictures=60, defenses=("none",), eve_snrs=(10.0,), attacks=("no-key",))
    audit([small_bundle], "photos", tmp_path / "out", part)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    assert len(times) == 3
    more = dataclasses.replace(part, attacks=("no-key", "identification"), precisions=("fp32", "int8"))
    results = audit([small_bundle], "photos", tmp_path / "out", more)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert {(row.attack, row.precision) for row in results.games} == {("identification", "fp32"), ("identification", "int8")}


def test_a_gate_in_the_folder_of_an_audit_keeps_what_was_measured(small_bundle, tmp_path):
    out = tmp_path / "out"
    whole = dataclasses.replace(
        TINY, attacker_pictures=60, defenses=("none", "permute", "mix"), attacks=("no-key", "identification")
    )
    before = audit([small_bundle], "photos", out, whole)
    cells = set((out / "cells").iterdir())
    gate = dataclasses.replace(whole, eve_snrs=(10.0,), defenses=("mix",), attacks=("identification",))
    after = audit([small_bundle], "photos", out, gate)
    assert set((out / "cells").iterdir()) == cells
    for part in ("settings", "rows", "games", "orderings"):
        assert getattr(after, part) == getattr(before, part), part
    assert "no-key" in (out / "report.html").read_text()


def test_what_needs_no_noise_stays_when_a_higher_snr_is_asked_for(small_bundle, tmp_path):
    asked = dataclasses.replace(TINY, attacker_pictures=60, eve_snrs=(0.0, 10.0), defenses=("mix",), attacks=("stored-frame",))
    first = audit([small_bundle], "photos", tmp_path / "out", asked)
    second = audit(
        [small_bundle], "photos", tmp_path / "out", dataclasses.replace(asked, eve_snrs=(20.0,), attacks=("no-key",))
    )
    assert {game.eve_snr for game in first.games} == {10.0}

    def said(results):
        return [(game.name, game.defense, game.eve_snr, game.value, game.control_won) for game in results.games]

    assert said(second) == said(first)
    assert "stored-frame" not in verdicts(second)[0].missing


def test_another_precision_may_be_asked_another_part(small_bundle, tmp_path):
    part = dataclasses.replace(TINY, attacker_pictures=60, eve_snrs=(10.0,), defenses=("none",), attacks=("no-key",))
    audit([small_bundle], "photos", tmp_path / "out", part)
    other = dataclasses.replace(part, precisions=("int8",), attacks=("identification",))
    results = audit([small_bundle], "photos", tmp_path / "out", other)
    assert {(row.attack, row.precision) for row in results.rows if row.eve_snr} == {("no-key", "fp32")}
    assert {row.precision for row in results.games} == {"int8"}
    assert "not measured" in (tmp_path / "out" / "report.html").read_text().partition("Does quantisation")[2]


def test_other_graphs_of_the_same_model_are_another_audit(small_bundle, tmp_path):
    """The fp32 graphs name the model; an audit of other precisions depends on those graphs too."""
    asked = dataclasses.replace(TINY, attacker_pictures=60, eve_snrs=(10.0,), defenses=("none",), attacks=("no-key",))
    bundle = open_bundle(small_bundle)
    files = {name: (small_bundle / name).read_bytes() for name in bundle.manifest["files"]}
    audit([small_bundle], "photos", tmp_path / "out", asked)
    files["transmitter.int8.onnx"] = files["transmitter.fp16.onnx"]
    other = write_bundle(tmp_path / "other", files, bundle.manifest, owner_key())
    assert other.digest == bundle.digest
    with pytest.raises(AuditError, match="holds another audit: the bundles differ"):
        audit([other.path], "photos", tmp_path / "out", asked)


@pytest.mark.parametrize(
    ("changes", "what", "fix"),
    [
        ({"code": "0"}, "the code differs", "another version of semseal measured it: choose another --out"),
        ({"environment": {}}, "the environment differs", "another machine, or other versions of libraries, measured it"),
        ({"data": "folder:x"}, "the data differs", "give the options that it was measured with, or choose another --out"),
        ({"pictures": "", "effort": {}}, "the pictures and the effort differ", "give the options"),
        ({"bundles": [], "code": "", "environment": 1}, "the bundles, the code and the environment differ", "another version"),
        ({"antennas": 4}, "the antennas differ", "give the options"),  # a field that this version does not know
    ],
)
def test_what_differs_in_another_audit_is_said(done, small_bundle, tmp_path, changes, what, fix):
    found = json.loads((done[0] / "audit.json").read_text())
    (tmp_path / "audit.json").write_text(json.dumps(found | changes))
    with pytest.raises(AuditError) as raised:
        audit([small_bundle], "photos", tmp_path, TINY)
    assert raised.value.message == f"{tmp_path} holds another audit: {what}"
    assert raised.value.hint.startswith(fix)
    assert [file.name for file in tmp_path.iterdir()] == ["audit.json"]


@pytest.mark.parametrize("damaged", [b"[1]", b"7", b"{", b"\xff\xfe"])
def test_a_damaged_identity_is_named(small_bundle, tmp_path, damaged):
    (tmp_path / "audit.json").write_bytes(damaged)
    with pytest.raises(AuditError, match=r"audit\.json is damaged"):
        audit([small_bundle], "photos", tmp_path, TINY)


def test_a_folder_of_another_audit_is_refused(done, small_bundle, tmp_path):
    with pytest.raises(AuditError, match="holds another audit: the effort differs\n"):
        audit([small_bundle], "photos", done[0], dataclasses.replace(TINY, seed=1))
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(AuditError, match="neither empty nor an audit"):
        audit([small_bundle], "photos", tmp_path, TINY)
    with pytest.raises(AuditError, match="even"):
        audit([small_bundle], "photos", tmp_path / "new", dataclasses.replace(TINY, pictures=5))
    with pytest.raises(AuditError, match="finite"):
        audit([small_bundle], "photos", tmp_path / "new", dataclasses.replace(TINY, eve_snrs=(float("nan"),)))
    damaged = shutil.copytree(small_bundle, tmp_path / "damaged")
    (damaged / "receiver.fp32.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="does not match its digest"):
        audit([damaged], "photos", tmp_path / "new", TINY)
    assert not (tmp_path / "new").exists()
    with pytest.raises(AuditError, match="is given twice"):
        audit([small_bundle, small_bundle], "photos", tmp_path / "new", TINY)


def test_too_few_pictures_are_an_error(small_bundle, tmp_path):
    for i in range(10):
        Image.new("RGB", (30, 30), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
    with pytest.raises(PictureError, match="an audit needs 6 pictures to measure on and 12 for Eve, and there are 2 and 8"):
        audit([small_bundle], f"folder:{tmp_path}", tmp_path / "out", TINY)


def test_pictures_that_cannot_be_decoded_are_named_in_the_results(small_bundle, tmp_path):
    for i in range(40):
        (tmp_path / f"{i:02}.png").write_bytes(b"no picture")
        if i not in (3, 9):
            Image.new("RGB", (30, 30), (6 * i, 0, 0)).save(tmp_path / f"{i:02}.png")
    (tmp_path / "03.png").rename(tmp_path / "03_caf\udce9[nl]\n.png")  # byte E9 is no UTF-8
    settings = dataclasses.replace(TINY, pictures=6, attacker_pictures=5, eve_snrs=(10.0,), defenses=("none",))
    results = audit([small_bundle], f"folder:{tmp_path}", tmp_path / "out", settings)
    assert list(results.skipped) == [str(tmp_path / "03_caf\\xe9[nl]\\n.png"), str(tmp_path / "09.png")]  # measured on; Eve's
    assert "03_caf\\xe9[nl]\\n.png" in (tmp_path / "out" / "report.html").read_text()
    assert Results.from_json((tmp_path / "out" / "results.json").read_text()) == results


def test_the_papers_figures():
    assert paper.eve("white-box", "none", 10, 10) == (17.80, 0.40)
    assert paper.eve("black-box", "none", 20, 0) == (23.88, 0.57)
    assert paper.eve("white-box", "permute+substitute", 20, 10) == (13.31, 0.09)
    assert paper.eve("black-box", "permute", 0, 20) == (13.25, 0.13)
    assert paper.eve("black-box", "substitute", 20, 20) == (17.29, 0.28)
    assert paper.eve("black-box", "none", 5, 10) is None
    for defense in paper.TABLES:
        for attack in ("white-box", "black-box"):
            assert all(paper.eve(attack, defense, eve, main) for eve in paper.SNRS for main in paper.SNRS)


def test_the_code_of_an_audit_is_what_its_cells_import(tmp_path, monkeypatch):
    before = digest_of_code("semseal.runtime.audit.cell")
    read = []
    real = code_module._source
    monkeypatch.setattr(code_module, "_source", lambda module: (read.append(module), real(module))[1])
    digest_of_code.cache_clear()
    assert digest_of_code("semseal.runtime.audit.cell") == before
    names = {name.removeprefix("semseal.runtime.") for name in read}
    assert {"audit.attacks", "attacks.ordering", "defense.mix", "link", "engine", "channel", "metrics"} <= names
    assert not {"audit.report", "audit.tables", "cli", "doctor"} & names
    monkeypatch.setattr(code_module, "_source", lambda module: real(module) + b"#" * (module == "semseal.runtime.channel"))
    digest_of_code.cache_clear()
    assert digest_of_code("semseal.runtime.audit.cell") != before
    digest_of_code.cache_clear()
