"""An audit of a model whose scale is in the header: what Eve knows of it, and at which SNRs of Bob's."""

import dataclasses

import numpy as np
import pytest
import torch
from semseal.runtime.audit import attacks as table
from semseal.runtime.audit.attacks import BY_NAME
from semseal.runtime.audit.run import audit
from semseal.runtime.audit.scene import Scene
from semseal.runtime.audit.settings import Cell
from semseal.runtime.audit.surrogate import Surrogate, why_unsupported
from semseal.runtime.bundle import open_bundle
from semseal.runtime.defense.defenses import BY_NAME as DEFENSES
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import AuditError
from semseal.runtime.link import Receiver, Transmitter
from semseal.runtime.metrics import psnr
from semseal.runtime.pictures import open_pictures
from test_audit import TINY

QUICKER = dataclasses.replace(TINY, eve_snrs=(10.0,), defenses=("none", "mix"), attacks=("no-key", "leaked-scale"))


@pytest.fixture(scope="module")
def scene(edge_bundle):
    photographs = open_pictures("photos", "valid"), open_pictures("photos", "test")
    return Scene(
        open_bundle(edge_bundle), *(part.take(8, 32, 24) for part in photographs), dataclasses.replace(TINY, main_snrs=(13.0,))
    )


def identity(batch):
    return np.arange(batch * 8, dtype=np.int32).reshape(batch, 8)


def test_with_the_scale_eve_decodes_what_bob_does(scene, edge_bundle):
    rows = scene.clean_rows(scene.images)
    hers = scene.decode(rows, scene.scales, 25.0)
    frames = Transmitter(edge_bundle, snr_db=13).send(scene.images)
    assert np.abs(hers - Receiver(edge_bundle, snr_db=25).receive(frames)).max() < 1e-5
    guess = scene.decode(rows, scene.known_scales(DEFENSES["mix"]), 25.0)
    assert psnr(scene.images, hers).mean() > psnr(scene.images, guess).mean() + 0.3


def test_eve_knows_the_scale_where_nothing_seals_it_and_guesses_one_elsewhere(scene):
    engine = open_engine("onnxruntime-cpu", scene.bundle.graph("transmitter"))
    loud = engine(scene.images, identity(8), np.full(8, 13, np.float32))
    rms = np.sqrt(2 * np.square(loud).mean(axis=(1, 2)))
    assert scene.scales * rms == pytest.approx(np.ones(8), rel=3.5e-4)
    assert scene.known_scales(DEFENSES["none"]) == pytest.approx(scene.scales)
    for name in ("permute", "substitute", "permute+substitute", "mix"):
        guess = scene.known_scales(DEFENSES[name])
        assert len(set(guess.tolist())) == 1
        assert scene.attacker_scales.min() < guess[0] < scene.attacker_scales.max()


def test_models_without_a_scale_have_scales_of_1(small_bundle, small_images):
    plain = Scene(open_bundle(small_bundle), small_images(2), small_images(2), TINY)
    assert plain.scales.tolist() == plain.attacker_scales.tolist() == [1, 1]
    assert plain.main_snr == 10
    assert plain.surrogate_on_air is plain.surrogate


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_surrogate_is_the_engine(edge_bundle, small_images, precision):
    graph = open_bundle(edge_bundle).graph("transmitter", precision)
    images, index, told = small_images(2), identity(2)[:, ::-1].copy(), np.array([0, 20], np.float32)
    engine = open_engine("onnxruntime-cpu", graph)
    expected = engine(images, index, told)
    with torch.no_grad():
        got = Surrogate(graph)(*map(torch.from_numpy, (images, index, told))).numpy()
    assert np.abs(got - expected).mean() < {"fp32": 1e-5, "fp16": 2e-3, "int8": 2e-3}[precision]
    assert why_unsupported(graph, engine, (images, index, told)) == ""


def test_the_surrogate_is_differentiable_and_at_unit_power_on_air(scene):
    x = torch.from_numpy(scene.images).requires_grad_()
    on_air = scene.surrogate_on_air(x, torch.from_numpy(identity(8)))
    assert (2 * on_air.square().mean(dim=(1, 2))).tolist() == pytest.approx([1] * 8, rel=1e-5)
    sent = scene.clean_rows(scene.images).reshape(8, 96, 2)
    assert np.abs(on_air.detach().numpy() - sent).max() < 1e-4
    on_air[0, :10].sum().backward()
    assert x.grad is not None
    assert x.grad[0].abs().sum() > 0
    loud = scene.surrogate(x, torch.from_numpy(identity(8))).detach().numpy()
    assert np.abs(loud * scene.scales[:, None, None] - sent).max() < 2e-3  # the grain of the scale, of symbols up to 4


def test_the_white_box_has_the_right_target(scene, monkeypatch):
    """At the picture that was sent, what it minimises is the noise alone, with the scale and without."""
    asked = []

    def invert(transmitter, received, start, h, settings, advance, scales=None):
        asked.append((transmitter, received, scales))
        return np.repeat(start[None], len(received), axis=0)

    monkeypatch.setattr(table.whitebox, "invert", invert)
    for defense in ("none", "permute"):
        BY_NAME["white-box"].run(scene, Cell("white-box", defense, 13.0, 40.0, "fp32"), lambda seconds: None)
    (plain, received, scales), (on_air, _, nothing) = asked
    few = torch.from_numpy(scene.images[: TINY.optimised_pictures])
    with torch.no_grad():
        loud = plain(few, torch.from_numpy(identity(len(few)))).numpy() * scales[:, None, None]
        unit = on_air(few, torch.from_numpy(identity(len(few)))).numpy()
    off = np.square(loud - received.view(np.float32).reshape(loud.shape)).mean(axis=(1, 2))
    assert off == pytest.approx(np.full(len(few), 0.5e-4), rel=0.6)  # half of the noise power: of a real
    assert np.abs(scales - scene.scales[: len(few)]).max() == 0
    assert nothing is None
    assert (2 * np.square(unit).mean(axis=(1, 2))).tolist() == pytest.approx([1] * len(few), rel=1e-5)


@pytest.mark.parametrize("defense", ["none", "permute", "mix"])
def test_the_scale_names_distinct_pictures_and_not_equal_ones(scene, edge_bundle, defense):
    run = BY_NAME["leaked-scale"].run
    cell = Cell("leaked-scale", defense, 13.0, 10.0, "fp32")
    (result,) = run(scene, cell, lambda seconds: None)
    assert (result.measure, result.trials, result.chance) == ("rate", 8, 1 / 8)
    assert result.value == 1
    same = np.repeat(scene.images[:1], 8, axis=0)
    (result,) = run(Scene(scene.bundle, same, scene.attacker_images, TINY), cell, lambda seconds: None)
    assert result.value < 0.7  # no better than guessing among equals


def test_an_audit_at_the_main_snrs_that_are_asked_for(edge_bundle, tmp_path):
    out = tmp_path / "out"
    middle = audit([edge_bundle], "photos", out, QUICKER)
    assert {row.main_snr for row in middle.rows} == {10.0}
    assert {(game.attack, game.defense) for game in middle.games} == {("leaked-scale", "none"), ("leaked-scale", "mix")}
    asked = dataclasses.replace(QUICKER, main_snrs=(0.0, 20.0))
    results = audit([edge_bundle], "photos", out, asked)
    assert [bundle.main_snr for bundle in results.bundles] == [0.0, 10.0, 20.0]  # what was measured before stays
    assert {row.main_snr for row in results.rows} == {0.0, 10.0, 20.0}
    bob = {row.main_snr: row.psnr for row in results.rows if (row.attack, row.defense) == ("bob", "mix")}
    assert bob[0] < bob[10] < bob[20]
    again = audit([edge_bundle], "photos", out, QUICKER)
    assert again.bundles == results.bundles
    assert again.rows == results.rows


def test_the_scale_is_no_row_for_models_without_one(small_bundle, tmp_path):
    results = audit([small_bundle], "photos", tmp_path / "out", dataclasses.replace(QUICKER, defenses=("none",)))
    assert results.games == ()
    assert {row.attack for row in results.rows} == {"bob", "mean-picture", "no-key"}


def test_main_snrs_that_cannot_be_are_refused(small_bundle, edge_bundle, tmp_path):
    for bundles, snrs, words in (
        ([small_bundle], (5.0,), "only for a model that is for a range"),
        ([edge_bundle], (float("nan"),), "must be in -100..100 dB, got nan"),
        ([edge_bundle, edge_bundle], (), "is given twice"),
    ):
        with pytest.raises(AuditError, match=words):
            audit(bundles, "photos", tmp_path / "out", dataclasses.replace(QUICKER, main_snrs=snrs))
    assert not (tmp_path / "out").exists()
