"""Eve without noise: every attack on a small real link, and the same in files, names, tables and the page."""

import dataclasses
import json
import math

import numpy as np
import pytest
from click.testing import CliRunner
from madeup import EVERY_ATTACK, made_up
from semseal.runtime.attacks import reuse
from semseal.runtime.attacks.whitebox import WhiteBoxSettings
from semseal.runtime.audit.figures import Point, advantages, rates
from semseal.runtime.audit.gate import judge, line
from semseal.runtime.audit.markdown import markdown_tables
from semseal.runtime.audit.matrix import FULL
from semseal.runtime.audit.results import Results
from semseal.runtime.audit.run import audit
from semseal.runtime.audit.scene import Scene
from semseal.runtime.audit.settings import Place, eve_at, listed_snrs
from semseal.runtime.audit.tables import full_title
from semseal.runtime.bundle import open_bundle
from semseal.runtime.cli_audit import audit as verb
from semseal.runtime.defense.defenses import BY_NAME
from semseal.runtime.errors import AuditError

FEW = WhiteBoxSettings(4, 0.1, True)
TINY = dataclasses.replace(
    FULL, pictures=6, optimised_pictures=6, attacker_pictures=80, whitebox=FEW, matching=FEW, blackbox_steps=3, learned_steps=2,
    trials=40, probe_epochs=1, timed_calls=80, flow_width=8, flow_batch=4, prior_steps=4, flow_steps=4, flow_levels=2,
    flow_draws=1, generative_levels=3, generative_pulls=1, generative_refined=2, eve_snrs=(math.inf,), defenses=("mix",),
)  # fmt: skip


def strict(text: str):
    def refuse(name: str):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def done(small_bundle, tmp_path_factory):
    out = tmp_path_factory.mktemp("stored") / "out"
    return out, audit([small_bundle], "photos", out, TINY)


def test_every_attack_is_measured_without_noise_and_finite(done):
    _, results = done
    there = {row.attack for row in (*results.rows, *results.games) if row.eve_snr == math.inf}
    assert there == set(EVERY_ATTACK) - {"attributes", "leaked-scale"}  # photographs have no classes, this model no scale
    for row in results.rows:
        assert np.isfinite([row.psnr, row.ssim, row.matching_advantage_db or 0.0]).all(), row
    for game in results.games:
        assert np.isfinite([game.value, game.low, game.high]).all(), game
    # without noise she does not see less than Bob does with it
    below = {(row.attack, row.defense): row.below_bob_db for row in results.rows}
    assert max(below["no-key", "none"], below["row-ordering", "permute"], below["reused-scheme", "permute"]) < 0.5


def test_without_noise_it_is_none_in_files_and_names(done, small_bundle):
    out, results = done
    document = strict((out / "results.json").read_text())
    assert document["settings"]["eve_snrs"] == ["none"]
    assert {row["eve_snr"] for row in document["rows"]} == {None, "none"}
    assert Results.from_json((out / "results.json").read_text()) == results
    names = [file.name for file in (out / "cells").iterdir()]
    assert any("-evenone-" in name for name in names)
    assert not any("inf" in name for name in names)
    for file in (out / "cells").glob("*.json"):
        strict(file.read_text())
    for text in ((out / "report.html").read_text(), (out / "tables.md").read_text()):
        assert "Eve without noise" in text
        assert "inf dB" not in text
        assert "Infinity" not in text
    before = {file: file.stat().st_mtime_ns for file in (out / "cells").iterdir()}
    audit([small_bundle], "photos", out, TINY)
    assert {file: file.stat().st_mtime_ns for file in (out / "cells").iterdir()} == before  # found again


def test_one_snr_that_is_none_is_drawn_and_named():
    points = [Point("Bob", None, 9, 8, 10), *(Point("no-key", snr, 3, 2, 4) for snr in (0.0, 10.0, math.inf))]
    for snrs in ((0.0, 10.0, math.inf), (math.inf,), (10.0, math.inf)):
        here = [point for point in points if point.snr is None or point.snr in snrs]
        drawing = advantages(here, [], ["Bob", "no-key"], snrs, (-1, 11))
        drawing += rates([Point("mix", snr, 0.01, 0.0, 0.02) for snr in snrs], snrs, 0.01, 0.002)
        assert "nan" not in drawing.lower()
        assert ">inf" not in drawing.lower()
        assert (">none</text>" in drawing) == (len(snrs) > 1)
    assert [eve_at(10.0), eve_at(math.inf)] == ["Eve 10 dB", "Eve without noise"]
    assert listed_snrs((0.0, 10.0, math.inf)) == "0, 10 dB and without noise"
    assert listed_snrs((math.inf,)) == "without noise"
    place = Place("edge", 10.0, "openvino", "fp32", "awgn", "rayleigh")
    assert full_title(place, math.inf) == "edge, Eve without noise, main 10 dB AWGN, openvino fp32"


def test_a_gate_tells_the_place_without_noise():
    made = made_up(11, EVERY_ATTACK)
    results = dataclasses.replace(
        made,
        settings=dataclasses.replace(made.settings, eve_snrs=(math.inf,)),
        rows=tuple(dataclasses.replace(row, eve_snr=math.inf) if row.eve_snr else row for row in made.rows),
        games=tuple(dataclasses.replace(game, eve_snr=math.inf) for game in made.games),
    )
    settings = dataclasses.replace(results.settings, defenses=("mix",))
    gates = judge({"identification": 0.5, "psnr": 99.0}, results, settings, results.every_place)
    assert [gate.passed for gate in gates] == [True, True]
    assert all(line(gate).endswith(", Eve without noise)") for gate in gates)
    results = dataclasses.replace(results, gate=gates)
    assert Results.from_json(results.to_json()) == results
    assert strict(results.to_json())["gate"][0]["cell"]["eve_snr"] == "none"
    assert "Eve without noise" in markdown_tables(results)


def test_the_program_takes_none_and_no_other_word():
    for given, code in (("nan", 2), ("inf", 2), ("-inf", 2), ("None", 2), ("nothing", 2)):
        found = CliRunner().invoke(verb, ["edge", "--data", "photos", "--out", "x", "--eve-snr", given])
        assert found.exit_code == code, given
        assert "--eve-snr" in found.output
    assert "none: she has stored frames" in " ".join(CliRunner().invoke(verb, ["--help"]).output.split())


def test_minus_infinity_is_no_snr(small_bundle, tmp_path):
    with pytest.raises(AuditError, match="dB, or infinite without noise"):
        audit([small_bundle], "photos", tmp_path / "out", dataclasses.replace(TINY, eve_snrs=(-math.inf,)))


def test_a_model_that_is_told_the_noise_is_never_told_none(edge_bundle, small_images):
    """Of which a packed model may take the logarithm."""
    scene = Scene(open_bundle(edge_bundle), small_images(6), small_images(8, 1), TINY)
    rows = scene.received_rows(scene.images, BY_NAME["none"], math.inf, 1)[:, 0]
    assert (scene._noise(rows, math.inf) == 1e-4).all()
    assert np.isfinite(scene.decode(rows, scene.scales, math.inf)).all()


def test_known_packets_of_one_picture_can_be_unmixed_without_noise():
    """Twice the same known packet: without noise these are no two equations."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((40, 40)))[0].astype(np.float32)
    pictures = (rng.standard_normal((60, 4)) @ rng.standard_normal((4, 40))).astype(np.float32)
    known, secret = pictures[[0, 0, 1, 2, 3, 4, 5, 6]], pictures[10:14]
    found = reuse.unmix(pictures[20:], known, known @ turn, secret @ turn, math.inf)
    assert np.square(found - secret).mean() < 0.05 * np.square(secret).mean()


def test_photographs_have_no_classes_and_the_audit_says_so(done):
    assert "photos" in done[1].skipped["attributes"]
    assert done[1].skipped["attributes"] in (done[0] / "report.html").read_text()
