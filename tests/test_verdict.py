"""What figures, orderings and defences say, on made-up cells, and the sentences about it."""

import dataclasses
import re

import numpy as np
import pytest
from madeup import EVERY_ATTACK, PICTURES, changed, made_up
from semseal.runtime import metrics
from semseal.runtime.audit import paper
from semseal.runtime.audit.attacks import ATTACKS
from semseal.runtime.audit.results import GameResult, Reconstructions, place_key
from semseal.runtime.audit.settings import Cell
from semseal.runtime.audit.verdict import count_figures, game_rows, orderings, picture_rows, verdicts, word_at
from semseal.runtime.audit.wording import at_most, headline, limits
from semseal.runtime.defense.defenses import BY_NAME


def cell(attack, defense="none", eve=10.0):
    return Cell(attack, defense, 10.0, eve)


def made(*psnr, advantage=None):
    """Reconstructions with this matching advantage, or one of as much as they are better than the mean picture."""
    scores = np.array(psnr, float)
    advantages = scores - 12 if advantage is None else np.array(advantage, float)
    return Reconstructions(scores, np.zeros(len(psnr)), advantages, np.zeros((0, 3, 2, 2), np.float32))


PUBLISHED = tuple(attack.name for attack in ATTACKS if attack.published)
AMONG = 10  # figures, so one sees when its p-value is below 0.001


def blind(mean, deviation, n=12):
    """Reconstructions below the mean picture, with a matching advantage of ``mean`` ± ``deviation`` dB."""
    return made(*np.resize((10, 11), n), advantage=mean + np.resize((-deviation, deviation), n))


SEEN, BLIND = made(*(20, 21, 19, 20) * 3), blind(0.05, 0.2)
NEARLY = blind(0.2, 0.8)  # ± 0.53
LUCKY = blind(0.6, 0.6)  # p-value 0.004
LITTLE_BUT_SURE = blind(0.2, 0.2)  # the same p-value, and bounded by 0.33
POOR = blind(2, 0.1)  # her guesses are poor, but she knows which picture it is
BACKWARDS = blind(-2, 0.1)
FEW = blind(0, 0.01, 10)
CONSTANT = made(*[12] * 12, advantage=(1e-16, 2e-16) * 6)
AROUND = {
    cell("mean-picture", eve=None): made(12, 12.5, 11.5, 12),
    **{cell("bob", defense, None): made(30, 31, 30, 29) for defense in ("none", "permute", "mix")},
}


@pytest.mark.parametrize(
    ("control", "mix", "verdict"),
    [(SEEN, BLIND, "nothing"), (SEEN, CONSTANT, "nothing"), (SEEN, NEARLY, "open"), (SEEN, LUCKY, "open"),
     (SEEN, LITTLE_BUT_SURE, "open"), (SEEN, BACKWARDS, "open"), (SEEN, FEW, "open"), (SEEN, SEEN, "sees"),
     (SEEN, POOR, "sees"), (BLIND, BLIND, "void"), (NEARLY, LUCKY, "void"), (NEARLY, SEEN, "sees"), (None, BLIND, "void"),
     (None, SEEN, "sees")],
)  # fmt: skip
def test_an_attack_that_sees_nothing_is_void_unless_its_control_wins_clearly(control, mix, verdict):
    found = AROUND | {cell("row-ordering", "mix"): mix}
    if control is not None:
        found[cell("row-ordering", "permute")] = control
    rows = {(row.attack, row.defense): row for row in picture_rows(found, AMONG)}
    assert rows["row-ordering", "mix"].verdict == verdict
    assert rows["bob", "mix"].verdict is None
    assert rows["mean-picture", "none"].verdict is None


def test_rows_compare_with_bob_and_the_mean_picture_picture_by_picture():
    row = picture_rows(AROUND | {cell("no-key", "mix"): made(13, 13.5, advantage=(1, 2))}, AMONG)[-1]
    assert (row.matching_advantage_db, row.verdict) == (1.5, "void")
    assert (row.above_mean_picture_db, row.above_mean_picture_95) == (1.0, 0.0)
    assert (row.below_bob_db, row.pictures) == (17.25, 2)


def game(high, value=0.01, low=0.0, name="top-1"):
    return GameResult(name, value, low, high, 100, 0.01, "rate")


WON = game(1.0, 0.95, 0.9)


@pytest.mark.parametrize(
    ("attack", "hits", "chance", "verdict"),
    [
        ("identification", 1000, 0.01, "sees"), ("identification", 22, 0.01, "sees"), ("identification", 20, 0.01, "open"),
        ("identification", 10, 0.01, "nothing"), ("identification", 0, 0.01, "nothing"), ("linkability", 560, 0.5, "sees"),
        ("linkability", 550, 0.5, "open"), ("linkability", 500, 0.5, "nothing"), ("linkability", 450, 0.5, "nothing"),
        ("linkability", 400, 0.5, "open"),
    ],
)  # fmt: skip
def test_a_game_is_seen_when_chance_does_not_explain_it(attack, hits, chance, verdict):
    """1,000 trials: 22 hits at 1 % have probability 5e-4, 20 have 0.003; an area of 0.56 has 5e-4, one of 0.55 has 0.003."""
    if attack == "identification":
        bounds = metrics.proportion(hits, 1000)
        found = GameResult("", bounds.value, bounds.low, bounds.high, 1000, chance, "rate")
    else:
        half = 1.96 * (1001 / (12 * 500 * 500)) ** 0.5
        found = GameResult("", hits / 1000, hits / 1000 - half, hits / 1000 + half, 1000, chance, "area")
    rows = game_rows({cell(attack): (WON,), cell(attack, "mix"): (found,)}, AMONG)
    assert [row.verdict for row in rows] == ["sees", verdict]


@pytest.mark.parametrize(
    ("attack", "chance", "measure"),
    [("identification", 0.01, "rate"), ("linkability", 0.5, "area"), ("distinguishing", 0.5, "area")],
)
def test_a_game_of_few_trials_does_not_say_nothing(attack, chance, measure):
    """At chance, but what it may be is far above."""
    few = GameResult("", chance, 0.0, chance + 0.25, 20, chance, measure)
    rows = game_rows({cell(attack): (WON,), cell(attack, "mix"): (few,)}, AMONG)
    assert rows[1].verdict == "open"


def test_the_more_figures_an_audit_has_the_harder_it_is_for_one_to_see():
    found = AROUND | {cell("row-ordering", "permute"): SEEN, cell("row-ordering", "mix"): LUCKY}
    verdicts = [picture_rows(found, among)[-1].verdict for among in (1, 100)]
    assert verdicts == ["sees", "open"]
    games = {cell("linkability"): (WON, WON)}
    assert count_figures(found, games) == 2 + 2


def test_noise_sees_about_as_often_as_promised():
    """Answers that know nothing, in audits of 20 figures: at most a few in a hundred audits hold one that sees."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(300):
        tables = rng.normal(size=(20, 24, 1)) + rng.normal(size=(20, 1, 24)) + 0.3 * rng.normal(size=(20, 24, 24))
        found = AROUND | {cell("row-ordering", "permute"): SEEN}
        for i, table in enumerate(tables):
            answer = made(*[12] * 24, advantage=metrics.matching_advantage(table))
            found[cell("row-ordering", "mix", float(i))] = answer
        wrong += any(row.verdict == "sees" and row.defense == "mix" for row in picture_rows(found, 20))
    assert wrong <= 10


@pytest.mark.parametrize(
    ("black", "white", "verdict"),
    [([21, 23, 22, 24], [20, 22, 21, 22.5], "holds"), ([19, 21, 20, 22.5], [20, 22, 21, 23], "fails"),
     ([21, 21, 22, 22], [20, 22, 21, 23], "open"), ([21], [20], "open")]
)  # fmt: skip
def test_orderings_are_judged_by_the_paired_interval(black, white, verdict):
    found = orderings({cell("black-box"): made(*black), cell("white-box"): made(*white)})
    assert [(row.claim, row.verdict) for row in found] == [("black-box above white-box", verdict)]


def test_orderings_cover_the_papers_claims_and_eves_snr_and_knowledge():
    cells = {cell(attack, defense, eve): made(20, 21 + eve / 100) for attack in PUBLISHED
             for defense in paper.TABLES for eve in (0.0, 10.0, 20.0)}  # fmt: skip
    cells |= {cell(attack, "permute"): SEEN for attack in ("row-ordering", "brute-force", "reused-scheme", "four-packets")}
    cells[cell("mean-picture", eve=None)] = made(12, 13)
    counts = {}
    for row in orderings(cells):
        counts[row.claim] = counts.get(row.claim, 0) + 1
    assert counts == {
        "black-box above white-box": 12, "Eve does better at a higher SNR": 16, "substitution below no defence": 6,
        "permutation below substitution": 6, "permutation + substitution below permutation": 6,
        "mean picture above Eve under a defence": 6, "brute-force above row-ordering": 1,
        "reused-scheme above row-ordering": 1, "four-packets above row-ordering": 1,
    }  # fmt: skip


def test_an_eve_who_does_worse_at_a_higher_snr_is_told_of():
    found = orderings({cell("row-ordering", "permute", 0.0): SEEN, cell("row-ordering", "permute", 10.0): BLIND})
    assert [(row.claim, row.verdict) for row in found] == [("Eve does better at a higher SNR", "fails")]
    assert found[0].better == cell("row-ordering", "permute", 10.0)


# defences


def of(results, defense):
    return next(found for found in verdicts(results) if found.defense == defense)


@pytest.mark.parametrize(
    ("made", "word"),
    [
        ({"mix": 11, "attacks": EVERY_ATTACK}, "holds"),
        ({"mix": 15, "attacks": EVERY_ATTACK}, "falls"),
        ({"mix": 11, "attacks": EVERY_ATTACK, "rate": 0.3}, "falls"),  # by the game alone
        ({"mix": 11, "attacks": PICTURES}, "holds with gaps"),  # the games are missing
        ({"mix": 11.2, "attacks": ("no-key",)}, "undecided"),
        ({"mix": 11, "attacks": PICTURES, "control": 11}, "void"),
        ({"mix": 15, "attacks": PICTURES, "control": 11}, "falls"),  # what Eve saw, she saw
        ({"mix": 11, "attacks": ("brute-force",)}, "not measured"),
    ],
)
def test_where_a_defence_stands(made, word):
    results = made_up(**made)
    assert of(results, "mix").word == word
    assert word_at(results, "mix", place_key(results.every_place[0])) == word  # the only place that there is
    said = " ".join(headline(results))
    assert ("with gaps" in said) == (word == "holds with gaps")
    assert ("Mix holds" in said) == word.startswith("holds")
    if word in ("void", "not measured", "undecided"):
        assert re.search(f"Mix is {word}", said)
        assert "secure" not in said


def test_one_void_attack_makes_a_gap_and_is_named():
    results = changed(made_up(11, EVERY_ATTACK), lambda row: row.attack == "set-inverse", verdict="void")
    found = of(results, "mix")
    assert (found.word, found.void) == ("holds with gaps", ("set-inverse",))
    assert any("in part: set-inverse." in sentence for sentence in limits(results))


def test_one_open_figure_leaves_a_defence_undecided():
    results = made_up(11, EVERY_ATTACK)
    results = changed(results, lambda row: (row.attack, row.defense) == ("learned-inverse", "mix"), verdict="open")
    assert of(results, "mix").word == "undecided"
    counted = [attack for attack in ATTACKS if attack.applies(BY_NAME["mix"]) and not (attack.misuse or attack.apart)]
    said = f"Mix is undecided: {len(counted) - 1} of {len(counted)} measurements"
    assert any(said in sentence for sentence in headline(results))


def test_the_worst_attack_is_the_one_with_the_largest_matching_advantage_and_not_void():
    results = made_up(11, EVERY_ATTACK)
    for attack, values in {
        "learned-inverse": {"matching_advantage_db": 9.5, "psnr": 21.5, "below_bob_db": -0.5},
        "black-box": {"matching_advantage_db": 99.0, "verdict": "void"},
    }.items():
        results = changed(results, lambda row, name=attack: (row.attack, row.defense) == (name, "permute"), **values)
    assert of(results, "permute").worst.attack == "learned-inverse"
    words = "she gets 21.5 dB, 0.5 dB more than Bob, a matching advantage of 9.5 dB."
    assert f"Permutation falls to an Eve without the key: with learned-inverse {words}" in headline(results)


def test_each_defence_falls_to_its_own_attack():
    results = made_up(15, EVERY_ATTACK)
    for defense, attack in (("permute", "learned-inverse"), ("mix", "no-key")):
        results = changed(
            results, lambda row, cell=(attack, defense): (row.attack, row.defense) == cell, matching_advantage_db=10.0
        )
    said = headline(results)
    assert [sentence.split()[0] for sentence in said] == ["Permutation", "Mix", "Without"]
    assert "with learned-inverse she" in said[0]
    assert "with no-key she" in said[1]
    assert "wins games without the key" in " ".join(headline(made_up(11, EVERY_ATTACK, rate=0.3)))


def test_a_reused_key_is_told_of_and_does_not_make_a_defence_fall():
    results = made_up(11, EVERY_ATTACK)
    assert of(results, "mix").misuse.matching_advantage_db == pytest.approx(5)
    assert any("and 5.0 dB under mix." in sentence for sentence in limits(results))


def test_no_defence_falls_at_a_place_by_what_is_apart():
    results = made_up(11, EVERY_ATTACK)
    apart = [attack.name for attack in ATTACKS if attack.apart]
    game = next(row for row in results.games if row.defense == "mix")
    seen = tuple(dataclasses.replace(game, attack=name, verdict="sees") for name in apart)
    results = dataclasses.replace(results, games=results.games + seen)
    assert word_at(results, "mix", place_key(results.every_place[0])) == of(results, "mix").word == "holds"


@pytest.mark.parametrize(
    ("rate", "words"), [(0.0, "0.0"), (0.0241, "2.5"), (0.025, "2.5"), (0.0985, "9.9"), (0.1102, "12"), (1, "100")]
)
def test_an_upper_bound_is_rounded_up(rate, words):
    assert at_most(rate) == words


def test_controls_alone_are_not_judged():
    results = made_up(11, EVERY_ATTACK, defenses=("mix",))
    assert [found.defense for found in verdicts(results)] == ["mix"]
