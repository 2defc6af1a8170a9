import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from semseal.runtime import audit as audit_module
from semseal.runtime import paper
from semseal.runtime.attacks import whitebox
from semseal.runtime.audit import AuditError, Cell, Measured, Settings, audit, orderings
from semseal.runtime.bundle import BundleError
from semseal.runtime.pictures import PictureError

TINY = Settings(pictures=6, whitebox_pictures=4, eve_pictures=12, blackbox_steps=8,
                whitebox=dataclasses.replace(whitebox.FAST, steps=5), eve_snrs=(0.0, 10.0), leakage=None)  # fmt: skip


@pytest.fixture(scope="module")
def done(small_bundle, tmp_path_factory):
    out = tmp_path_factory.mktemp("audit") / "out"
    return out, audit([small_bundle], "photos", out, TINY)


def test_every_cell_is_measured_and_written(done):
    out, results = done
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    rows = {(row["attack"], row["defense"], row["eve_snr"]): row for row in results["rows"]}
    assert len(rows) == 4 * (1 + 2 * 2) + 1
    assert rows["white-box", "permute", 10.0]["pictures"] == 4
    assert rows["black-box", "permute", 10.0]["pictures"] == 6
    assert all(row["psnr_95"] > 0 for row in rows.values())
    assert rows["white-box", "none", 0.0]["paper_psnr"] == 16.69
    assert rows["bob", "none", None]["paper_psnr"] == 32.28
    assert rows["mean picture", "none", None]["paper_psnr"] is None
    assert rows["mean picture", "none", None]["paper_missing"]
    assert results["environment"]["packages"]["onnxruntime"] != "not installed"


def test_bob_is_the_same_under_every_defence_up_to_where_the_noise_falls(done):
    bob = [row["psnr"] for row in done[1]["rows"] if row["attack"] == "bob"]
    assert len(bob) == 4
    assert max(bob) - min(bob) < 0.3


def test_an_interrupted_audit_goes_on_and_ends_the_same(done, small_bundle, tmp_path, monkeypatch):
    real, calls = audit_module._Scene.measure, []

    def interrupted(self, cell):
        calls.append(cell)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, cell)

    monkeypatch.setattr(audit_module._Scene, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        audit([small_bundle], "photos", tmp_path / "out", TINY)
    assert not (tmp_path / "out" / "results.json").exists()
    results = audit([small_bundle], "photos", tmp_path / "out", TINY)
    assert len(calls) == 21 + 1  # the interrupted cell twice, no other again

    # keys are fresh, so only undefended rows repeat
    plain = [[row for row in part["rows"] if row["defense"] == "none"] for part in (done[1], results)]
    for one, two in zip(*plain, strict=True):
        assert one["psnr"] == pytest.approx(two["psnr"], abs=0.02)


def test_a_folder_of_another_audit_is_refused(done, small_bundle, tmp_path):
    with pytest.raises(AuditError, match="holds another audit: settings differ"):
        audit([small_bundle], "photos", done[0], dataclasses.replace(TINY, seed=1))
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(AuditError, match="neither empty nor an audit"):
        audit([small_bundle], "photos", tmp_path, TINY)
    with pytest.raises(AuditError, match="finite"):
        audit([small_bundle], "photos", tmp_path / "new", dataclasses.replace(TINY, eve_snrs=(float("nan"),)))
    damaged = shutil.copytree(small_bundle, tmp_path / "damaged")
    (damaged / "receiver.fp32.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="does not match its digest"):
        audit([damaged], "photos", tmp_path / "new", TINY)
    assert not (tmp_path / "new").exists()
    with pytest.raises(AuditError, match="one at a time"):
        audit([small_bundle, small_bundle], "photos", tmp_path / "new", TINY)


def test_too_few_pictures_are_an_error(small_bundle, tmp_path):
    for i in range(10):
        Image.new("RGB", (30, 30), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
    with pytest.raises(PictureError, match="6 pictures wanted of split 'valid', 2 of 2 files usable"):
        audit([small_bundle], f"folder:{tmp_path}", tmp_path / "out", TINY)


def test_pictures_that_cannot_be_decoded_are_named_in_the_results(small_bundle, tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02}.png").write_bytes(b"no picture")
        if i not in (3, 9):
            Image.new("RGB", (30, 30), (8 * i, 0, 0)).save(tmp_path / f"{i:02}.png")
    settings = dataclasses.replace(TINY, pictures=4, eve_pictures=5, eve_snrs=(10.0,), defenses=("none",))
    results = audit([small_bundle], f"folder:{tmp_path}", tmp_path / "out", settings)
    assert list(results["skipped"]) == [str(tmp_path / "03.png"), str(tmp_path / "09.png")]  # one measured on, one Eve's
    assert "03.png" in (tmp_path / "out" / "report.html").read_text()


def test_report_is_one_page_without_anything_from_elsewhere(done):
    page = (done[0] / "report.html").read_text()
    assert not re.search(r"(src|href)=.?(?!data:)[a-z/]", page.replace('src="data:', ""))
    assert "<script" not in page
    assert "http" not in page
    for words in (
        "Table I,",
        "Table II,",
        "Table III,",
        "Table IV,",
        "Figure 3",
        "Figure 6",
        "answering with the mean picture",
    ):
        assert words in page
    assert page.count("<img") == 4 * (2 + 2 * 2)


def cell(attack, defense="none", eve=10.0):
    return Cell(attack, defense, 10.0, eve)


def made(psnr):
    return Measured(np.array(psnr, float), np.zeros(len(psnr)), np.zeros((0, 3, 4, 4), np.float32))


@pytest.mark.parametrize(
    ("black", "white", "verdict"),
    [([21, 23, 22, 24], [20, 22, 21, 22.5], "holds"), ([19, 21, 20, 22.5], [20, 22, 21, 23], "fails"),
     ([21, 21, 22, 22], [20, 22, 21, 23], "open"), ([21], [20], "open")]
)  # fmt: skip
def test_orderings_are_judged_by_the_paired_interval(black, white, verdict):
    found = orderings({cell("black-box"): made(black), cell("white-box"): made(white)})
    assert [(row["claim"], row["verdict"]) for row in found] == [("black-box above white-box", verdict)]


def test_orderings_cover_the_papers_claims():
    cells = {cell(attack, defense, eve): made([20, 21 + eve / 100]) for attack in ("white-box", "black-box")
             for defense in paper.PLACES for eve in (0.0, 10.0, 20.0)}  # fmt: skip
    cells[cell("mean picture", eve=None)] = made([12, 13])
    counts = {}
    for row in orderings(cells):
        counts[row["claim"]] = counts.get(row["claim"], 0) + 1
    assert counts == {
        "black-box above white-box": 12, "Eve better with her SNR": 4, "substitution below none": 6,
        "permutation below substitution": 6, "permutation + substitution below permutation": 6,
        "defended Eve no better than the mean picture": 6,
    }  # fmt: skip


def test_the_papers_figures():
    assert paper.eve("white-box", "none", 10, 10) == (17.80, 0.40)
    assert paper.eve("black-box", "none", 20, 0) == (23.88, 0.57)
    assert paper.eve("white-box", "permute+substitute", 20, 10) == (13.31, 0.09)
    assert paper.eve("black-box", "permute", 0, 20) == (13.25, 0.13)
    assert paper.eve("black-box", "substitute", 20, 20) == (17.29, 0.28)
    assert paper.eve("black-box", "none", 5, 10) is None
    for defense in paper.PLACES:
        for attack in ("white-box", "black-box"):
            assert all(paper.eve(attack, defense, eve, main) for eve in paper.SNRS for main in paper.SNRS)
