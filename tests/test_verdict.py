"""What rows, games and orderings say, on made-up cells."""

import dataclasses

import numpy as np
import pytest
from semseal.runtime import metrics, paper
from semseal.runtime.leakage import Answers, Played
from semseal.runtime.plan import PAPER_ATTACKS, Cell
from semseal.runtime.verdict import game_rows, orderings, picture_rows, worst_rate


def cell(attack, defense="none", eve=10.0):
    return Cell(attack, defense, 10.0, eve)


def made(*psnr):
    return Answers(np.array(psnr, float), np.zeros(len(psnr)), np.zeros((0, 3, 2, 2), np.float32))


SEEN, BLIND, NEARLY = made(20, 21, 19, 20), made(10, 11, 10, 11), made(12.5, 12.6, 11.4, 12.1)
LUCKY = made(12.6, 12.7, 11.9, 12.2)  # above the mean picture, its interval too, but once in some dozens by luck
AROUND = {
    cell("mean picture", eve=None): made(12, 12.5, 11.5, 12),
    **{cell("bob", defense, None): made(30, 31, 30, 29) for defense in ("none", "permute", "mix")},
}


@pytest.mark.parametrize(
    ("control", "mix", "verdict"),
    [(SEEN, BLIND, "nothing"), (SEEN, SEEN, "sees"), (SEEN, NEARLY, "open"), (SEEN, LUCKY, "open"), (BLIND, BLIND, "void"),
     (NEARLY, SEEN, "sees"), (None, BLIND, "void"), (None, SEEN, "sees")],
)  # fmt: skip
def test_an_attack_that_sees_nothing_is_void_unless_its_control_wins_clearly(control, mix, verdict):
    found = AROUND | {cell("row ordering", "mix"): mix}
    if control is not None:
        found[cell("row ordering", "permute")] = control
    rows = {(row["attack"], row["defense"]): row for row in picture_rows(found)}
    assert rows["row ordering", "mix"]["verdict"] == verdict
    assert "verdict" not in rows["bob", "mix"]
    assert "verdict" not in rows["mean picture", "none"]


def test_rows_compare_with_bob_and_the_mean_picture_picture_by_picture():
    row = picture_rows(AROUND | {cell("no key", "mix"): made(13, 13.5)})[-1]
    assert (row["above_mean_picture_db"], row["above_mean_picture_95"]) == (1.0, 0.0)
    assert (row["below_bob_db"], row["pictures"]) == (17.25, 2)


def game(high, value=0.01, low=0.0, name="top-1"):
    return Played(name, value, low, high, 100, 0.01)


WON = game(1.0, 0.95, 0.9)


@pytest.mark.parametrize(
    ("games", "defenses", "worst"),
    [
        ({"none": WON, "mix": game(0.02)}, ("mix",), 0.02),
        ({"none": WON, "permute": WON, "mix": game(0.02)}, ("permute", "mix"), 1.0),
        ({"none": WON, "permute": WON, "mix": game(0.02)}, ("mix",), 0.02),
        ({"none": game(0.5, 0.4), "mix": game(0.02)}, ("mix",), 1.0),  # void
        ({"mix": game(0.02)}, ("mix",), 1.0),  # void
        ({"none": WON, "mix": game(0.02)}, ("permute", "mix"), None),  # not measured
    ],
)
def test_the_budget_takes_the_worst_upper_bound_and_nothing_void(games, defenses, worst):
    assert worst_rate(game_rows({cell("which", d): [g] for d, g in games.items()}), defenses) == worst


@pytest.mark.parametrize(
    ("attack", "hits", "chance", "verdict"),
    [
        ("which", 100, 0.01, "sees"), ("which", 7, 0.01, "sees"), ("which", 5, 0.01, "open"), ("which", 2, 0.01, "nothing"),
        ("which", 0, 0.01, "nothing"), ("link", 70, 0.5, "sees"), ("link", 62, 0.5, "open"), ("link", 52, 0.5, "nothing"),
        ("link", 20, 0.5, "nothing"),
    ],
)  # fmt: skip
def test_a_game_is_seen_when_luck_does_not_explain_it(attack, hits, chance, verdict):
    """100 trials: 7 hits at 1 % have probability 8e-5, 5 have 0.003; an area of 0.70 has 3e-4, one of 0.62 has 0.02."""
    if attack == "which":
        bounds = metrics.proportion(hits, 100)
    else:
        spread = 1.96 * (101 / (12 * 50 * 50)) ** 0.5
        bounds = metrics.Proportion(hits, 100, hits / 100, hits / 100 - spread, hits / 100 + spread)
    rows = game_rows(
        {cell(attack): [WON], cell(attack, "mix"): [Played("", bounds.value, bounds.low, bounds.high, 100, chance)]}
    )
    assert [row["verdict"] for row in rows] == ["sees", verdict]


@pytest.mark.parametrize(
    ("black", "white", "verdict"),
    [([21, 23, 22, 24], [20, 22, 21, 22.5], "holds"), ([19, 21, 20, 22.5], [20, 22, 21, 23], "fails"),
     ([21, 21, 22, 22], [20, 22, 21, 23], "open"), ([21], [20], "open")]
)  # fmt: skip
def test_orderings_are_judged_by_the_paired_interval(black, white, verdict):
    found = orderings({cell("black-box"): made(*black), cell("white-box"): made(*white)})
    assert [(row["claim"], row["verdict"]) for row in found] == [("black-box above white-box", verdict)]


def test_orderings_cover_the_papers_claims_and_eves_snr_and_knowledge():
    cells = {cell(attack, defense, eve): made(20, 21 + eve / 100) for attack in PAPER_ATTACKS
             for defense in paper.PLACES for eve in (0.0, 10.0, 20.0)}  # fmt: skip
    cells |= {cell(attack, "permute"): SEEN for attack in ("row ordering", "brute force", "reused V", "four packets")}
    cells[cell("mean picture", eve=None)] = made(12, 13)
    counts = {}
    for row in orderings(cells):
        counts[row["claim"]] = counts.get(row["claim"], 0) + 1
    assert counts == {
        "black-box above white-box": 12, "Eve better with her SNR": 16, "substitution below none": 6,
        "permutation below substitution": 6, "permutation + substitution below permutation": 6,
        "defended Eve no better than the mean picture": 6, "brute force above row ordering": 1,
        "reused V above row ordering": 1, "four packets above row ordering": 1,
    }  # fmt: skip


def test_an_eve_who_does_worse_at_a_higher_snr_is_told_of():
    found = orderings({cell("row ordering", "permute", 0.0): SEEN, cell("row ordering", "permute", 10.0): BLIND})
    assert [(row["claim"], row["verdict"]) for row in found] == [("Eve better with her SNR", "fails")]
    assert dataclasses.asdict(cell("row ordering", "permute", 10.0)) == found[0]["better"]
