"""The matrix of adaptive attacks on a small real link."""

import json

import numpy as np
import pytest
from semseal.runtime import leakage
from semseal.runtime.attacks.surrogate import Surrogate
from semseal.runtime.attacks.whitebox import WhiteBoxSettings
from semseal.runtime.bundle import open_bundle
from semseal.runtime.leakage import Answers, Effort, Plan, Played, measure
from semseal.runtime.pictures import open_pictures
from semseal.runtime.scene import Scene

EFFORT = Effort(learned_steps=3, matching=WhiteBoxSettings(5, 0.1, True), matched_pictures=4, trials=40)


@pytest.fixture(scope="module")
def setting(small_bundle):
    bundle = open_bundle(small_bundle)
    return bundle, open_pictures("photos", "valid").take(12, 32, 24), open_pictures("photos", "test").take(80, 32, 24, seed=1)


@pytest.fixture(scope="module")
def done(setting, tmp_path_factory):
    bundle, images, own = setting
    folder = tmp_path_factory.mktemp("cells")
    plan = Plan((20.0,), leakage.DEFENSES, effort=EFFORT)
    begun = []
    found, _ = measure(bundle, images, own, plan, folder, Surrogate(bundle.graph("transmitter")), begun.append)
    return folder, plan, found, begun


def test_every_attack_meets_every_defence_that_it_is_for(done):
    _, plan, found, begun = done
    measured = {(row["attack"], row["defense"]) for row in found["rows"]}
    assert measured == {(a, d) for a in leakage.PICTURES for d in plan.defenses if leakage.applies(a, d)}
    played = {(game["game"], game["defense"]) for game in found["games"]}
    assert played == {(name, defense) for name in leakage.GAMES for defense in plan.defenses}
    assert len(begun) == len(measured) + 5 * 3 + 5
    json.dumps(found)


def test_who_wins_where_it_must_and_what_mix_leaves(done):
    rows = {(row["attack"], row["defense"]): row for row in done[2]["rows"]}
    # Bob's decoder sees what Bob sees, and the same with a reused V under every one of the paper's modes
    assert abs(rows["no key", "none"]["below_bob_db"]) < 0.5
    for defense in leakage.PAPER_MODES:
        assert rows["reused V", defense]["below_bob_db"] < 1.0, defense
    for attack in ("no key", "row ordering", "four packets"):
        # this small link sees little itself, and a dozen pictures vary
        assert rows[attack, "none"]["above_mean_picture_db"] > 2
        assert rows[attack, "mix"]["above_mean_picture_db"] < 1
    games = {(game["game"], game["name"], game["defense"]): game for game in done[2]["games"]}
    assert games["which", "top-1", "none"]["value"] > 0.9
    assert games["which", "top-1", "mix"]["low"] < 1 / 12


def test_what_is_done_is_not_done_again(done, setting):
    folder, plan, found, _ = done
    files = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again, _ = measure(*setting, plan, folder, None)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == files
    # without a surrogate the white-box attack is left out, all others are read back
    assert again["games"] == found["games"]
    assert again["rows"] == [row for row in found["rows"] if row["attack"] != "row matching"]


def answers(*psnr):
    return Answers(np.array(psnr, float), np.zeros(len(psnr)), np.zeros((0, 3, 2, 2), np.float32))


def test_an_attack_whose_control_fails_is_void():
    floor = answers(12, 12.5, 11.5, 12)
    assert leakage.picture_control("row ordering", {"permute": answers(20, 21, 19, 20)}, floor)
    assert not leakage.picture_control("row ordering", {"permute": answers(12.5, 13, 11, 12)}, floor)
    assert not leakage.picture_control("row ordering", {"mix": answers(20, 21, 19, 20)}, floor)
    game = Played("top-1", 0.95, 0.9, 1.0, 100, 0.01)
    assert leakage.game_control("which", {"none": [game]})
    assert not leakage.game_control("which", {"none": [Played("top-1", 0.5, 0.4, 0.6, 100, 0.01)]})
    assert not leakage.game_control("which", {"mix": [game]})


@pytest.mark.parametrize(
    ("games", "worst"),
    [
        ([("none", 1.0, "sees"), ("mix", 0.02, "nothing")], 0.02),
        ([("permute", 1.0, "sees"), ("mix", 0.02, "nothing")], 1.0),
        ([("none", 0.5, "void"), ("mix", 0.02, "void")], 1.0),
        ([("none", 1.0, "sees")], None),
    ],
)
def test_the_budget_takes_the_worst_upper_bound_and_nothing_void(games, worst):
    rows = [{"game": "which", "name": "top-1", "defense": d, "high": h, "verdict": v} for d, h, v in games]
    assert leakage.worst_rate({"games": rows}) == worst


def test_the_scene_hears_whole_groups_and_eve_practises_under_her_own_key(setting):
    bundle, images, own = setting
    scene = Scene(bundle, images, own)
    assert scene.hear(images, "mix", 10, 1).shape == (12, 1, 8, 24)
    assert scene.hear(images, "permute+substitute", 10, 1).shape == (6, 2, 8, 24)
    alices, eves = (scene.hear(images, "mix", 60, 1, key) for key in (None, bytes(32)))
    assert abs(np.corrcoef(alices.ravel(), eves.ravel())[0, 1]) < 0.1
    swapped = images.reshape(6, 2, *images.shape[1:])[:, ::-1].reshape(images.shape)
    assert np.array_equal(scene.best_order(swapped, 2), images)
