"""Who and what: probes on made-up forms, balanced accuracy, and the attack on a small real link."""

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image
from semseal.runtime import metrics
from semseal.runtime.attacks.attributes import Seen, name_classes
from semseal.runtime.audit.matrix import QUICK
from semseal.runtime.audit.results import GameResult, Results
from semseal.runtime.audit.run import audit
from semseal.runtime.audit.settings import Cell
from semseal.runtime.audit.verdict import game_rows
from semseal.runtime.errors import AuditError


def seen(truth: np.ndarray, strength: float, rng: np.random.Generator) -> Seen:
    """Maps with a stripe at a row that depends on the class, under noise."""
    maps = rng.standard_normal((len(truth), 2, 12, 10)).astype(np.float32)
    for picture, name in zip(maps, truth, strict=True):
        picture[:, 3 * name : 3 * name + 2] += strength
    return Seen(maps, rng.standard_normal((len(truth), 3)))


def test_a_class_that_shows_is_named_and_one_that_does_not_is_not():
    rng = np.random.default_rng(0)
    shown, hidden = rng.integers(3, size=240), rng.integers(2, size=240)
    hers, theirs = np.where(rng.random(180) < 0.05, -1, shown[:180]), shown[180:]
    practice, received = {"pictures": seen(shown[:180], 1.0, rng)}, {"pictures": seen(theirs, 1.0, rng)}
    named = name_classes(practice, {"shown": hers, "hidden": hidden[:180]}, received, epochs=6, seed=0)
    assert set(named["shown"].ways) == {"linear on pictures", "network on pictures"}
    for guess in named["shown"].ways.values():
        assert metrics.balanced_accuracy(theirs, guess).low > 0.6
    assert metrics.balanced_accuracy(theirs, named["shown"].guess).value >= 0.8
    assert metrics.balanced_accuracy(hidden[180:], named["hidden"].guess).p_value > 0.001
    again = name_classes(practice, {"shown": hers, "hidden": hidden[:180]}, received, epochs=6, seed=0)
    assert np.array_equal(named["shown"].guess, again["shown"].guess)


def test_the_way_is_chosen_on_images_of_hers():
    """Of a form that says nothing and one that says all, the second."""
    rng = np.random.default_rng(1)
    truth = rng.integers(2, size=160)
    practice = {"noise": seen(truth[:120], 0.0, rng), "symbols": seen(truth[:120], 2.0, rng)}
    received = {"noise": seen(truth[120:], 0.0, rng), "symbols": seen(truth[120:], 2.0, rng)}
    named = name_classes(practice, {"class": truth[:120]}, received, epochs=4, seed=0)["class"]
    assert named.way.endswith("on symbols")
    assert (named.guess == truth[120:]).mean() > 0.9


def test_a_question_of_one_known_class_is_answered_with_it():
    rng = np.random.default_rng(2)
    truth = np.zeros(40, np.int64)
    named = name_classes({"p": seen(truth, 1.0, rng)}, {"q": truth}, {"p": seen(truth[:8], 1.0, rng)}, 1, 0)
    assert (named["q"].guess == 0).all()


# balanced accuracy


def test_a_guess_that_is_always_the_same_has_chance_whatever_is_frequent():
    truth = np.array([0] * 90 + [1] * 10)
    found = metrics.balanced_accuracy(truth, np.zeros(100, np.int64))
    assert (found.value, found.chance, found.n) == (0.5, 0.5, 100)
    assert found.p_value == 1
    assert found.low <= 0.5 <= found.high


def test_all_right_and_all_wrong():
    truth = np.arange(60) % 3
    assert metrics.balanced_accuracy(truth, truth).value == 1
    assert metrics.balanced_accuracy(truth, truth).high == 1
    assert metrics.balanced_accuracy(truth, truth).p_value < 2e-5
    wrong = metrics.balanced_accuracy(truth, (truth + 1) % 3)
    assert (wrong.value, wrong.low, wrong.p_value) == (0, 0, 1)


@pytest.mark.parametrize(("classes", "sizes"), [(2, (30, 10)), (3, (20, 12, 8))])
def test_the_p_value_is_no_smaller_than_it_says_and_the_interval_covers(classes, sizes):
    rng = np.random.default_rng(3)
    truth = np.repeat(np.arange(classes), sizes)
    found = [
        metrics.balanced_accuracy(truth, rng.integers(classes, size=len(truth))) for _ in range(20 if classes > 2 else 400)
    ]
    values = np.array([one.p_value for one in found])
    assert (values <= 0.05).mean() < (0.25 if classes > 2 else 0.12)
    assert np.mean([one.low <= 1 / classes <= one.high for one in found]) > (0.8 if classes > 2 else 0.9)


def test_two_classes_by_permutations_and_exactly_agree(monkeypatch):
    truth = np.array([0] * 30 + [1] * 12)
    guess = np.where(np.random.default_rng(0).random(42) < 0.25, 1 - truth, truth)
    exact = metrics.balanced_accuracy(truth, guess)
    other = np.where(np.arange(42) == np.flatnonzero(guess != truth)[0], 2, guess)  # one guess at what there is not
    drawn = metrics.balanced_accuracy(truth, other)
    assert exact.value == drawn.value
    assert drawn.p_value == pytest.approx(exact.p_value, rel=1.0, abs=2e-4)


@pytest.mark.parametrize(("k", "n"), [(2, 7), (3, 7), (4, 7), (3, 6)])
def test_below_what_permutations_resolve_the_p_value_is_at_most_the_exact_one(k, n, monkeypatch):
    """Against all orders of the truth, for every balanced accuracy that guesses can reach; at the highest it is exact."""
    monkeypatch.setattr(metrics, "PERMUTATIONS", 0)  # none of which does as well, so that the bound is what is left
    rng, compared = np.random.default_rng(n), 0
    for _ in range(4):
        truth = np.concatenate([np.arange(k), rng.integers(k, size=n - k)])
        orders = np.array(list(itertools.permutations(truth)))
        guess = rng.integers(k + 1, size=n)  # sometimes at a class that there is not
        shares = np.mean([((orders == guess) & (orders == c)).sum(1) / (truth == c).sum() for c in range(k)], axis=0)
        for value in np.unique(shares.round(9)):
            at = orders[np.abs(shares - value).argmin()]
            if k == 2 and guess.max() < 2:
                continue  # exact by itself
            found, exact = metrics.balanced_accuracy(at, guess).p_value, (shares >= value - 1e-9).mean()
            assert found >= exact * (1 - 1e-6)
            assert found < 12 * exact
            if value == shares.max().round(9):
                assert found == pytest.approx(exact, rel=1e-3)
            compared += 1
    assert compared > 8


def test_the_bound_is_close_to_the_exact_p_value_of_two_classes():
    truth = np.array([0] * 60 + [1] * 140)
    guess = np.where(np.arange(200) % 5 == 0, 1 - truth, truth)
    exact = metrics.balanced_accuracy(truth, guess).p_value
    guess[0] = 2  # wrong already: a third class leaves as much of it right, and is drawn
    assert 1e-30 < exact < metrics.balanced_accuracy(truth, guess).p_value < 30 * exact < 1e-10


@pytest.mark.parametrize(("sure", "verdict"), [(0.5, "sees"), (0.0, "nothing")])
def test_in_an_audit_of_many_figures_she_still_sees_who_it_is(sure, verdict):
    """Five people and 5,000 figures: one of them sees below 2e-6, and 100,000 permutations tell nothing below 1e-5."""
    rng = np.random.default_rng(5)
    truth = np.arange(200) % 5
    found = metrics.balanced_accuracy(truth, np.where(rng.random(200) < sure, truth, rng.integers(5, size=200)))
    game = GameResult("who", found.value, found.low, found.high, found.n, found.chance, "balanced", found.p_value)
    cells = {
        Cell("attributes", "none", 10.0, 10.0): (dataclasses.replace(game, low=0.8),),
        Cell("attributes", "mix", 10.0, 10.0): (game,),
    }
    assert game_rows(cells, 5000)[1].verdict == verdict


# on a link

TINY = dataclasses.replace(
    QUICK, pictures=24, attacker_pictures=80, attacks=("attributes",), defenses=("permute+substitute", "mix"), eve_snrs=(20.0,)
)


def pictures_of_two_classes(folder):
    rng = np.random.default_rng(0)
    for name, level in (("bright", 190), ("dark", 60)):
        (folder / name).mkdir(parents=True)
        for k in range(65):
            coarse = rng.integers(-50, 50, (4, 3, 3)) + level
            Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize((24, 32)).save(folder / name / f"{k:03}.png")
    return f"folder:{folder}"


def test_what_a_folder_says_is_named_without_a_defence_and_not_under_mix(small_bundle, tmp_path):
    out = tmp_path / "out"
    results = audit([small_bundle], pictures_of_two_classes(tmp_path / "p"), out, TINY, budgets={"attributes": 0.9})
    games = {game.defense: game for game in results.games}
    assert set(games) == {"none", "permute+substitute", "mix"}
    assert games["none"].value > 0.8
    assert games["none"].verdict == "sees"
    assert (games["mix"].name, games["mix"].measure, games["mix"].chance) == ("class", "balanced", 0.5)
    assert games["mix"].control_won
    assert games["mix"].verdict in ("open", "nothing")
    assert all(f"{way} on {form} " in games["mix"].note for way in ("linear", "network") for form in ("pictures", "symbols"))
    assert Results.from_json((out / "results.json").read_text()) == results
    assert results.gate[0].name == "attributes"
    assert games["none"].note in (out / "report.html").read_text()


def test_asked_alone_of_data_without_classes_it_is_an_error(small_bundle, tmp_path):
    with pytest.raises(AuditError, match="attributes cannot be measured: photos says nothing") as raised:
        audit([small_bundle], "photos", tmp_path / "out", TINY)
    assert "--attack" in raised.value.hint
    assert not (tmp_path / "out").exists()


def test_a_question_that_nobody_can_answer_is_void():
    def game(value, low, p_value):
        return (GameResult("class", value, low, value + 0.05, 200, 0.5, "balanced", p_value),)

    def verdict(control, defended):
        cells = {Cell("attributes", "none", 10.0, 10.0): control, Cell("attributes", "mix", 10.0, 10.0): defended}
        return next(row.verdict for row in game_rows(cells, 2) if row.defense == "mix")

    clear, chance = game(0.9, 0.85, 1e-9), game(0.5, 0.45, 0.5)
    assert verdict(clear, chance) == "nothing"
    assert verdict(clear, game(0.6, 0.53, 0.01)) == "open"
    assert verdict(clear, game(0.8, 0.75, 1e-6)) == "sees"
    assert verdict(chance, chance) == "void"
