"""What rows, games and orderings say, on made-up cells."""

import dataclasses

import numpy as np
import pytest
from semseal.runtime import metrics
from semseal.runtime.audit import paper
from semseal.runtime.audit.cell import Answers, Played
from semseal.runtime.audit.matrix import PAPER_ATTACKS, Cell
from semseal.runtime.audit.verdict import figures, game_rows, orderings, picture_rows, worst_rate


def cell(attack, defense="none", eve=10.0):
    return Cell(attack, defense, 10.0, eve)


def made(*psnr, nearer=None):
    """Answers to pictures, nearer to them by ``nearer``, or by as much as they are better than the mean picture."""
    scores = np.array(psnr, float)
    told = scores - 12 if nearer is None else np.array(nearer, float)
    return Answers(scores, np.zeros(len(psnr)), told, np.zeros((0, 3, 2, 2), np.float32))


AMONG = 10  # figures, so one sees when luck explains it less than once in a thousand


def blind(mean, spread, n=12):
    """Answers below the mean picture that tell ``mean`` ± ``spread`` dB."""
    return made(*np.resize((10, 11), n), nearer=mean + np.resize((-spread, spread), n))


SEEN, BLIND = made(*(20, 21, 19, 20) * 3), blind(0.05, 0.2)
NEARLY = blind(0.2, 0.8)  # ± 0.53
LUCKY = blind(0.6, 0.6)  # by luck four times in a thousand
LITTLE_BUT_SURE = blind(0.2, 0.2)  # the same luck, and bounded by 0.33
POOR = blind(2, 0.1)  # her guesses are poor, but she knows which picture it is
BACKWARDS = blind(-2, 0.1)
FEW = blind(0, 0.01, 10)
CONSTANT = made(*[12] * 12, nearer=(1e-16, 2e-16) * 6)
AROUND = {
    cell("mean picture", eve=None): made(12, 12.5, 11.5, 12),
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
    found = AROUND | {cell("row ordering", "mix"): mix}
    if control is not None:
        found[cell("row ordering", "permute")] = control
    rows = {(row["attack"], row["defense"]): row for row in picture_rows(found, AMONG)}
    assert rows["row ordering", "mix"]["verdict"] == verdict
    assert "verdict" not in rows["bob", "mix"]
    assert "verdict" not in rows["mean picture", "none"]


def test_rows_compare_with_bob_and_the_mean_picture_picture_by_picture():
    row = picture_rows(AROUND | {cell("no key", "mix"): made(13, 13.5, nearer=(1, 2))}, AMONG)[-1]
    assert (row["nearer_db"], row["verdict"]) == (1.5, "void")
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
        ({"none": game(0.9, 0.85), "mix": game(0.3, 0.2)}, ("mix",), 1.0),  # sees, but who fails her control may be outdone
    ],
)
def test_the_budget_takes_the_worst_upper_bound_and_nothing_void(games, defenses, worst):
    assert worst_rate(game_rows({cell("which", d): [g] for d, g in games.items()}, AMONG), defenses) == worst


@pytest.mark.parametrize(
    ("attack", "hits", "chance", "verdict"),
    [
        ("which", 1000, 0.01, "sees"), ("which", 22, 0.01, "sees"), ("which", 20, 0.01, "open"), ("which", 10, 0.01, "nothing"),
        ("which", 0, 0.01, "nothing"), ("link", 560, 0.5, "sees"), ("link", 550, 0.5, "open"), ("link", 500, 0.5, "nothing"),
        ("link", 450, 0.5, "nothing"), ("link", 400, 0.5, "open"),
    ],
)  # fmt: skip
def test_a_game_is_seen_when_luck_does_not_explain_it(attack, hits, chance, verdict):
    """1,000 trials: 22 hits at 1 % have probability 5e-4, 20 have 0.003; an area of 0.56 has 5e-4, one of 0.55 has 0.003."""
    if attack == "which":
        bounds = metrics.proportion(hits, 1000)
    else:
        spread = 1.96 * (1001 / (12 * 500 * 500)) ** 0.5
        bounds = metrics.Proportion(hits, 1000, hits / 1000, hits / 1000 - spread, hits / 1000 + spread)
    rows = game_rows(
        {cell(attack): [WON], cell(attack, "mix"): [Played("", bounds.value, bounds.low, bounds.high, 1000, chance)]}, AMONG
    )
    assert [row["verdict"] for row in rows] == ["sees", verdict]


@pytest.mark.parametrize(("attack", "chance"), [("which", 0.01), ("link", 0.5), ("distinguish", 0.5)])
def test_a_game_of_few_trials_does_not_say_nothing(attack, chance):
    """At chance, but what it may be is far above."""
    few = Played("", chance, 0.0, chance + 0.25, 20, chance)
    rows = game_rows({cell(attack): [WON], cell(attack, "mix"): [few]}, AMONG)
    assert rows[1]["verdict"] == "open"


def test_the_more_figures_an_audit_has_the_less_luck_makes_one_see():
    found = AROUND | {cell("row ordering", "permute"): SEEN, cell("row ordering", "mix"): LUCKY}
    verdicts = [picture_rows(found, among)[-1]["verdict"] for among in (1, 100)]
    assert verdicts == ["sees", "open"]
    games = {cell("link"): [WON, WON]}
    assert figures(found, games) == 2 + 2


def test_noise_sees_about_as_often_as_promised():
    """Answers that know nothing, in audits of 20 figures: at most a few in a hundred audits hold one that sees."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(300):
        tables = rng.normal(size=(20, 24, 1)) + rng.normal(size=(20, 1, 24)) + 0.3 * rng.normal(size=(20, 24, 24))
        found = AROUND | {cell("row ordering", "permute"): SEEN}
        for i, table in enumerate(tables):
            answers = made(*[12] * 24, nearer=metrics.matching_advantage(table))
            found[cell("row ordering", "mix", float(i))] = answers
        wrong += any(row.get("verdict") == "sees" and row["defense"] == "mix" for row in picture_rows(found, 20))
    assert wrong <= 10


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
