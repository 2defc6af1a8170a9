"""Frames that Eve changed: the changes as arrays, and what Bob sees on a small real link."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from madeup import made_up
from semseal.runtime import metrics
from semseal.runtime.attacks import tampering
from semseal.runtime.audit import integrity
from semseal.runtime.audit.attacks import BY_NAME as ATTACKS
from semseal.runtime.audit.matrix import QUICK
from semseal.runtime.audit.results import GameResult
from semseal.runtime.audit.scene import Scene
from semseal.runtime.audit.settings import Cell
from semseal.runtime.audit.verdict import game_rows, verdicts
from semseal.runtime.audit.wording import limits
from semseal.runtime.bundle import open_bundle
from semseal.runtime.defense.defenses import BY_NAME
from semseal.runtime.pictures import open_pictures

RNG = np.random.default_rng(0)


def test_known_rows_are_found_wherever_they_are():
    clean = RNG.standard_normal((2, 6, 8)).astype(np.float32)
    order = RNG.permutation(12)
    received = clean.reshape(12, 8)[order] + 0.1 * RNG.standard_normal((12, 8)).astype(np.float32)
    places = tampering.find_known(clean, received)
    assert np.array_equal(order[places.reshape(-1)], np.arange(12))


def test_a_change_goes_to_its_rows_and_leaves_what_is_behind_them():
    frames = (RNG.standard_normal((2, 30)) + 1j).astype(np.complex64)  # 6 rows of 8 reals are 24 symbols
    change = RNG.standard_normal((2, 6, 8)).astype(np.float32)
    places = RNG.permutation(12).reshape(2, 6)
    found = tampering.add(frames, change, places)
    assert np.array_equal(found[:, 24:], frames[:, 24:])
    rows = np.ascontiguousarray(found[:, :24] - frames[:, :24]).view(np.float32).reshape(12, 8)
    assert np.allclose(rows[places.reshape(-1)], change.reshape(12, 8), atol=1e-6)


def test_a_replayed_part_is_the_first():
    frames, earlier = np.zeros((3, 5), np.complex64), np.ones((3, 5), np.complex64)
    found = tampering.replay_part(frames, earlier, 2)
    assert found.real.tolist() == [[1, 1, 0, 0, 0]] * 3
    assert not frames.any()


@pytest.fixture(scope="module")
def scene(small_bundle):
    bundle = open_bundle(small_bundle)
    pictures = [
        open_pictures("photos", split).take(n, 32, 24, seed=seed) for split, n, seed in (("valid", 12, 0), ("test", 60, 1))
    ]
    return Scene(bundle, *pictures, dataclasses.replace(QUICK, eve_snrs=(20.0,)))


@pytest.fixture(scope="module")
def found(scene):
    run = ATTACKS["integrity"].run
    return {
        defense: {game.name: game for game in run(scene, scene.place.cell("integrity", defense, 20.0), lambda seconds: None)}
        for defense in ("none", "permute+substitute", "mix")
    }


def test_a_picture_is_no_closer_to_its_target_before_anything_is_changed():
    """Where those sent and hers come in the order of their classes, here four tints, as of a folder with folders in it."""
    rng = np.random.default_rng(3)
    tints = rng.random((4, 3, 1, 1))
    images, hers = (tints[np.arange(n) % 4] / 2 + rng.random((n, 3, 8, 8)) / 2 for n in (200, 400))
    scene = SimpleNamespace(settings=QUICK, images=images, attacker_images=hers)

    def advantage(targets):
        found = metrics.mean(metrics.matching_advantage(metrics.psnr_of_all(targets, images)))
        return found.value - found.half_width, found.value + found.half_width

    assert advantage(hers[:200])[0] > 0.5
    chosen = integrity._chosen(scene)
    assert len(set(chosen)) == 200
    low, high = advantage(hers[chosen])
    assert low < 0 < high


def test_without_a_defence_bob_sees_what_she_chose(found):
    for name, game in found["none"].items():
        assert game.low > 0, name
        assert game.note.startswith("0 of 12 frames refused; ")


def test_moved_rows_are_found_by_those_that_she_knows(found):
    assert found["permute+substitute"]["latent"].value > found["none"]["latent"].value - 1


def test_under_mix_no_chosen_picture_arrives_but_a_gain_does(found):
    for name in ("latent", "shift", "replay"):
        assert found["mix"][name].low < 0.5, name
        assert found["mix"][name].value < found["none"][name].value / 3, name
    assert found["mix"]["gain"].value == pytest.approx(found["none"]["gain"].value, abs=1.5)


def test_a_frame_that_bob_refuses_shows_nothing(scene, monkeypatch):
    """Noise of another packet in place of the frame: refused under mix, and counted."""
    frames = scene.send(scene.images, BY_NAME["mix"])
    swapped = [dataclasses.replace(frame, symbols=frames[i - 1].symbols) for i, frame in enumerate(frames)]
    seen, taken = scene.bob_sees(swapped, BY_NAME["mix"], 5)
    result = integrity._result("x", np.zeros(12), scene.images, seen, taken)
    if scene.bundle.n_symbols * 2 >= 2048:
        assert not taken.any()
    assert result.note.startswith(f"{(~taken).sum()} of 12 frames refused")
    assert (seen[~taken] == 0.5).all()


def test_of_a_chosen_change_only_what_arrives_counts():
    def verdict(value, half, p_value, trials=200):
        game = GameResult("latent", value, value - half, value + half, trials, 0.0, "dB", p_value)
        control = dataclasses.replace(game, value=14.0, low=12.0, high=16.0, p_value=1e-9)
        cells = {Cell("integrity", "none", 10.0, 10.0): (control,), Cell("integrity", "mix", 10.0, 10.0): (game,)}
        return next(row.verdict for row in game_rows(cells, 2) if row.defense == "mix")

    assert verdict(0.0, 0.2, 0.5) == "nothing"
    assert verdict(-3.0, 0.2, 1.0) == "nothing"  # not what she chose
    assert verdict(0.4, 0.3, 0.05) == "open"
    assert verdict(0.0, 0.2, 0.5, trials=8) == "open"
    assert verdict(2.0, 0.3, 1e-9) == "sees"


def test_no_defence_falls_or_holds_by_what_is_no_eavesdroppers():
    made = made_up(11, ("no-key", "identification", "integrity", "timing"))
    seen = tuple(
        dataclasses.replace(game, verdict="sees" if game.attack == "integrity" else "open")
        if game.defense == "mix" and game.attack in ("integrity", "timing")
        else game
        for game in made.games
    )
    results = dataclasses.replace(made, games=seen)
    (word,) = (verdict.word for verdict in verdicts(results) if verdict.defense == "mix")
    assert word == next(verdict.word for verdict in verdicts(made) if verdict.defense == "mix")
    said = " ".join(limits(results))
    assert "under mix who can transmit has Bob see what she chose" in said
    assert "timing is undecided or void" in said
