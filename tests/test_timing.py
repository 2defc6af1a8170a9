"""dudect's test on made-up and on real times, and the row on a small real link."""

import dataclasses

import numpy as np
import pytest
from semseal.runtime.attacks.timing import leaky_equal, times_differ
from semseal.runtime.audit import sidechannel
from semseal.runtime.audit.attacks import BY_NAME
from semseal.runtime.audit.matrix import FULL, QUICK
from semseal.runtime.audit.results import GameResult
from semseal.runtime.audit.scene import Scene
from semseal.runtime.audit.settings import Cell
from semseal.runtime.audit.verdict import MAX_T, MIN_CALLS_FOR_NOTHING, SURE_T, game_rows
from semseal.runtime.bundle import open_bundle
from semseal.runtime.defense.defenses import DEFENSES
from semseal.runtime.defense.header import HeaderSealer
from semseal.runtime.defense.keys import generate_key
from semseal.runtime.errors import ReceiveError


def times(n: int, leak: float, rng: np.random.Generator):
    """Of two classes: a floor, noise with a long tail, drift, and a leak of one class in standard deviations of the body."""
    is_random = rng.permutation(np.arange(n) % 2 == 1)
    seconds = 1e-3 + 1e-5 * rng.standard_normal(n) + 1e-4 * rng.pareto(1.5, n) * (rng.random(n) < 0.2)
    return seconds + np.linspace(0, 5e-6, n) + leak * 1e-5 * is_random, is_random


def test_equal_classes_are_below_and_a_leak_is_above():
    rng = np.random.default_rng(0)
    quiet = [times_differ(*times(4000, 0.0, rng)).t for _ in range(30)]
    assert max(quiet) < MAX_T
    found = times_differ(*times(4000, 0.5, rng))
    assert found.t > SURE_T
    assert found.calls == 4000
    assert found.resolution_s < 0.5e-5  # what was found, it says that it finds


def test_cropping_finds_what_slow_calls_hide():
    seconds, is_random = times(4000, 0.3, np.random.default_rng(1))
    fixed, fresh = seconds[~is_random], seconds[is_random]
    plain = abs(fixed.mean() - fresh.mean()) / np.sqrt(fixed.var() / len(fixed) + fresh.var() / len(fresh))
    assert plain < MAX_T < times_differ(seconds, is_random).t


def test_classes_that_differ_in_spread_alone_are_told():
    rng = np.random.default_rng(2)
    is_random = np.arange(12_000) % 2 == 1
    seconds = 1e-3 + 1e-5 * rng.standard_normal(12_000) * np.where(is_random, 1.5, 1.0)
    assert times_differ(seconds, is_random).t > SURE_T


def test_few_calls_and_a_clock_that_stands_still():
    with pytest.raises(ValueError, match="needs 30 calls, got 31 and 29"):
        times_differ(np.ones(60), np.arange(60) < 29)
    assert times_differ(np.ones(100), np.arange(100) % 2 == 0).t == 0


def test_the_leaky_comparison_compares():
    assert leaky_equal(b"abc", b"abc")
    assert not leaky_equal(b"abc", b"abd")
    assert not leaky_equal(b"abc", b"ab")


def test_the_row_finds_its_control_and_measures_a_real_link(small_bundle, small_images):
    scene = Scene(open_bundle(small_bundle), small_images(6), small_images(8, 1), dataclasses.replace(QUICK, timed_calls=200))
    run, told = BY_NAME["timing"].run, []
    (control,) = run(scene, scene.place.cell("timing", "none", 10.0), told.append)
    assert control.value > SURE_T
    games = run(scene, scene.place.cell("timing", "mix", 10.0), told.append)
    assert [game.name for game in games] == ["send, keys", "send, pictures", "receive, keys", "receive, pictures"]
    assert all(game.trials == 200 and type(game.value) is float for game in games)
    assert len(told) == 200
    assert "a difference of" in games[0].note


def test_a_key_that_comes_back_meets_no_counter_again(small_bundle, small_images):
    one, two = generate_key(), generate_key()
    sender, taker = sidechannel.Sender(small_bundle, one, "mix"), sidechannel.Taker(small_bundle, one)
    seen = set()
    for key in (one, two, one, one):
        sender.change_key(key)
        taker.change_key(key)
        frames = sender.send(small_images(2))
        assert taker.receive(frames).shape == (2, 3, 32, 24)
        with pytest.raises(ReceiveError, match="received before"):
            taker.receive(frames)
        seen |= {(key, header.session, header.counter) for header in opened(frames, key, sender.bundle.digest)}
    assert len(seen) == 8


def opened(frames, key, digest):
    return [HeaderSealer(key, digest).open(frame.header) for frame in frames]


def test_it_is_about_what_has_a_secret_and_is_deployed():
    assert [defense.name for defense in DEFENSES if BY_NAME["timing"].applies(defense)] == ["none", "mix"]
    assert FULL.timed_calls >= MIN_CALLS_FOR_NOTHING


@pytest.mark.parametrize(
    ("t", "calls", "control", "verdict"),
    [
        (3.0, 100_000, 50.0, "nothing"), (3.0, 99_999, 50.0, "open"), (4.6, 200, 50.0, "sees"),
        (3.0, 100_000, 9.0, "void"), (12.0, 100_000, 9.0, "sees"),
    ],
)  # fmt: skip
def test_too_few_calls_are_open_and_a_blind_test_is_void(t, calls, control, verdict):
    def game(name, value):
        return (GameResult(name, value, value - 1.96, value + 1.96, calls, 0.0, "t"),)

    cells = {
        Cell("timing", "none", 10.0, 10.0): game("leaky comparison", control),
        Cell("timing", "mix", 10.0, 10.0): game("send, keys", t),
    }
    assert next(row.verdict for row in game_rows(cells, 2) if row.defense == "mix") == verdict
