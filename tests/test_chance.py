"""Verdicts under chance and under a real edge: of Eves who know nothing, and of Eves who know a little."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from semseal.runtime import metrics
from semseal.runtime.audit.results import GameResult, Reconstructions
from semseal.runtime.audit.settings import Cell
from semseal.runtime.audit.verdict import (
    MAX_FALSE_ALARMS,
    MAX_NOTHING_ABOVE_CHANCE,
    MAX_NOTHING_RATE,
    MAX_NOTHING_TIMES_CHANCE,
    game_rows,
    judge_pictures,
)

CONTROL = Cell("identification", "none", 10.0, 10.0)
AMONG = (1, 7, 60, 1000, 20_000)  # figures of an audit


def verdict_of(game, among):
    """Under mix, where the control has won."""
    won = dataclasses.replace(game, value=1.0, low=1.0, high=1.0)
    cells = {CONTROL: (won,), dataclasses.replace(CONTROL, defense="mix"): (game,)}
    return game_rows(cells, among)[1].verdict


def rate(hits, n, chance):
    found = metrics.proportion(hits, n)
    return GameResult("top-1", found.value, found.low, found.high, n, chance, "rate")


def area(positives, negatives):
    found = metrics.auc(positives, negatives)
    return GameResult("pair", found.value, found.low, found.high, len(positives) + len(negatives), 0.5, "area")


def pictures(advantage):
    return Reconstructions(advantage, advantage, advantage, np.zeros((0, 3, 2, 2), np.float32))


@settings(max_examples=10, deadline=None)
@given(st.integers(6, 60), st.sampled_from((1, 5)), st.sampled_from(AMONG))
def test_naming_at_chance_is_seen_no_more_often_than_promised(candidates, times, among):
    """Exactly: over every number of hits that chance gives."""
    n, chance = candidates * times, 1 / candidates
    hits = np.arange(min(n, 30) + 1)
    verdicts = np.array([verdict_of(rate(int(k), n, chance), among) for k in hits])
    assert binom.pmf(hits, n, chance) @ (verdicts == "sees") <= MAX_FALSE_ALARMS / among
    severity = [("nothing", "open", "sees").index(verdict) for verdict in verdicts]
    assert severity == sorted(severity)  # the more hits, the worse


@settings(max_examples=10, deadline=None)
@given(st.integers(6, 60), st.sampled_from((1, 5)), st.sampled_from(AMONG))
def test_naming_far_above_chance_is_called_nothing_in_one_audit_in_forty_at_most(candidates, times, among):
    n, chance = candidates * times, 1 / candidates
    edge = min(max(MAX_NOTHING_TIMES_CHANCE * chance, MAX_NOTHING_RATE), chance + MAX_NOTHING_ABOVE_CHANCE)
    hits = np.arange(n + 1)
    nothing = np.array([verdict_of(rate(int(k), n, chance), among) == "nothing" for k in hits[: int(edge * n) + 2]])
    assert binom.pmf(hits[: len(nothing)], n, edge) @ nothing <= 0.025 + 1e-12


@pytest.mark.parametrize(("hits", "verdict"), [(9, "open"), (5, "open"), (2, "nothing")])
def test_of_six_pictures_half_is_not_next_to_nothing(hits, verdict):
    """Three times chance is one half there: 9 of 30, of which chance names 5, were nothing."""
    assert verdict_of(rate(hits, 30, 1 / 6), 60) == verdict


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [10, 20, 100])
def test_telling_pairs_apart_by_chance_is_seen_no_more_often_than_promised(n, ties):
    rng = np.random.default_rng(n)
    scores = rng.standard_normal((500, 2, n))
    areas = [area(*(pair.round() if ties else pair)) for pair in scores]
    for among in (1, 10):
        alarms = sum(verdict_of(found, among) == "sees" for found in areas)
        assert alarms <= binom.ppf(0.9999, len(areas), MAX_FALSE_ALARMS / among)


@pytest.mark.parametrize("shift", [-0.36, 0.36])  # areas of 0.4 and 0.6
def test_telling_pairs_apart_with_an_edge_is_seldom_nothing(shift):
    rng = np.random.default_rng(1)
    for n in (20, 200):
        found = [area(shift + rng.standard_normal(n), rng.standard_normal(n)) for _ in range(150)]
        assert sum(verdict_of(one, 50) == "nothing" for one in found) <= binom.ppf(0.9999, 150, 0.025)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 6), st.integers(3, 30), st.integers(0, 99), st.sampled_from((60, 1000, 20_000)))
def test_classes_named_at_random_are_not_seen_and_all_right_is(classes, each, seed, among):
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(classes), each)

    def named(guess):
        with pytest.MonkeyPatch.context() as few:
            few.setattr(metrics, "PERMUTATIONS", 500)
            found = metrics.balanced_accuracy(truth, guess)
        return GameResult("who", found.value, found.low, found.high, found.n, found.chance, "balanced", found.p_value), among

    assert verdict_of(*named(rng.integers(classes, size=len(truth)))) != "sees"
    orders = math.factorial(len(truth)) / math.factorial(each) ** classes
    assume(orders > 2 * among / MAX_FALSE_ALARMS)
    assert verdict_of(*named(truth)) == "sees"
    assert verdict_of(*named((truth + 1) % classes)) != "sees"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.sampled_from((12, 24, 200)), st.sampled_from(AMONG))
def test_one_picture_of_many_that_she_gets_is_not_nothing(seed, n, among):
    """The mean over 200 pictures does not show it."""
    rng = np.random.default_rng(seed)
    chance = 0.1 * rng.standard_normal(n)
    leak = chance.copy()
    leak[rng.integers(n)] += rng.uniform(3, 30)
    assert judge_pictures(pictures(leak), among) != "nothing"


def test_pictures_that_tell_nothing_do_not_stand_out():
    rng = np.random.default_rng(0)
    for deviation in (0.005, 0.05, 0.2, 0.5):
        found = [judge_pictures(pictures(deviation * rng.standard_normal(200)), 50) for _ in range(60)]
        assert found.count("nothing") >= 58
    # further out than a normal one would be, and too little to be anything
    assert judge_pictures(pictures(np.append(0.001 * rng.standard_normal(199), 0.5)), 50) == "nothing"


def test_the_largest_is_judged_as_by_grubbs():
    """Of his table of critical values, one-sided at 5 % and 1 %: 10 values, 2.176 and 2.410; 20, 2.557 and 2.884."""
    for n, level, critical in ((10, 0.05, 2.176), (10, 0.01, 2.410), (20, 0.05, 2.557), (20, 0.01, 2.884)):
        # n - 1 values at -1, 0 and 1 and a largest one at which (largest - mean) / deviation is the critical value
        others = np.resize((-1.0, 1.0), n - 1)
        candidates = np.linspace(1, 30, 20_001)
        distance = [(x - np.append(others, x).mean()) / np.append(others, x).std(ddof=1) for x in candidates]
        at = candidates[np.searchsorted(distance, critical)]
        assert metrics.p_value_of_largest(np.append(others, at)) == pytest.approx(level, rel=0.02)
    assert metrics.p_value_of_largest(np.array([1.0, 1.0, 1.0, 2.0])) == 0
    assert metrics.p_value_of_largest(np.ones(9)) == metrics.p_value_of_largest(np.array([1.0, 2.0])) == 1


@pytest.mark.parametrize("n", [12, 24])
@pytest.mark.parametrize("kind", ["two kinds", "three kinds", "near and far", "often alike"])
def test_independent_answers_of_few_kinds_are_seen_about_as_often_as_promised(kind, n):
    """Answers that come in kinds, as pictures do: an answer of the right kind is far better, and is so by chance."""
    rng = np.random.default_rng(n)
    alarms, tables = 0, 800
    for _ in range(tables):
        if kind == "near and far":
            sent, answers = rng.standard_normal((2, n, 3))
            scores = -10 * np.log10(np.square(sent[:, None] - answers).mean(2))
        else:
            count = {"two kinds": 2, "three kinds": 3, "often alike": 2}[kind]
            weights = (0.9, 0.1) if kind == "often alike" else np.full(count, 1 / count)
            sent, answers = rng.choice(count, (2, n), p=weights)
            scores = 15.0 * (sent[:, None] == answers) + 0.3 * rng.standard_normal((n, n))
        alarms += judge_pictures(pictures(metrics.matching_advantage(scores)), 1) == "sees"
    assert alarms <= binom.ppf(0.9999, tables, 1.3 * MAX_FALSE_ALARMS)  # Student's test is not exact where kinds are two


@pytest.mark.parametrize("n", [2, 3, 6, 12])
def test_what_is_no_number_is_neither_seen_nor_nothing(n):
    for broken in (np.full(n, np.nan), np.append(np.zeros(n - 1), np.nan), np.append(np.zeros(n - 1), np.inf)):
        assert judge_pictures(pictures(broken), 10) == "open"
    assert verdict_of(GameResult("pair", math.nan, math.nan, math.nan, 40, 0.5, "area"), 10) == "open"
    assert verdict_of(GameResult("who", math.nan, math.nan, math.nan, 40, 0.5, "balanced", math.nan), 10) == "open"
