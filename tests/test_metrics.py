import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binom, mannwhitneyu, norm
from semseal.runtime import metrics
from semseal.runtime.metrics import auc, mean, proportion, psnr, ssim, true_positive_rate


def test_psnr_known_answers():
    a = np.zeros((2, 3, 16, 16), np.float32)
    b = a.copy()
    b[0] += 0.1
    assert psnr(a, b) == pytest.approx([20.0, 100.0], abs=1e-5)


def test_ssim_of_equal_and_of_unrelated_pictures():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 32, 32), np.float32), rng.random((2, 3, 32, 32), np.float32)
    assert ssim(a, a) == pytest.approx([1.0, 1.0])
    assert np.abs(ssim(a, b)).max() < 0.1


def test_ssim_of_flat_pictures_is_the_luminance_term():
    a, b = np.full((1, 3, 16, 16), 0.2, np.float32), np.full((1, 3, 16, 16), 0.6, np.float32)
    c1 = 0.01**2
    assert ssim(a, b)[0] == pytest.approx((2 * 0.2 * 0.6 + c1) / (0.2**2 + 0.6**2 + c1), rel=1e-4)


def test_interval_is_students():
    found = mean(np.array([1.0, 2.0, 3.0, 4.0]))
    assert found.value == 2.5
    assert found.half_width == pytest.approx(3.182446 * 1.290994 / 2, rel=1e-5)
    assert mean(np.array([7.0])).half_width is None


def test_interval_covers_the_truth_95_times_in_100():
    rng = np.random.default_rng(0)
    inside = sum(abs(m.value) <= m.half_width for m in (mean(rng.standard_normal(8)) for _ in range(2000)))
    assert 0.935 < inside / 2000 < 0.965


def test_bounds_of_none_and_all_are_those_of_the_formula():
    none, every = proportion(0, 200), proportion(200, 200)
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 200))
    assert (every.low, every.high) == (pytest.approx(0.025 ** (1 / 200)), 1)
    assert proportion(0, 200, level=0.9).high == pytest.approx(1 - 0.05 ** (1 / 200))


@pytest.mark.parametrize(("hits", "n"), [(1, 7), (5, 1000), (999, 1000)])
def test_bounds_leave_two_and_a_half_percent_on_either_side(hits, n):
    found = proportion(hits, n)
    assert binom.cdf(hits, n, found.high) == pytest.approx(0.025)
    assert binom.sf(hits - 1, n, found.low) == pytest.approx(0.025)


@pytest.mark.parametrize("rate", [0.005, 0.1, 0.5])
def test_exact_bounds_cover_at_least_95_percent(rate):
    inside = [found.low <= rate <= found.high for found in (proportion(hits, 100) for hits in range(101))]
    assert binom.pmf(np.arange(101), 100, rate) @ inside >= 0.95


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(hits, n):
    with pytest.raises(ValueError, match="hits must be in"):
        proportion(hits, n)


def test_true_positive_rate_counts_what_exceeds_the_threshold():
    others = np.random.default_rng(0).permutation(1000).astype(float)
    found = true_positive_rate(np.array([980.0, 985.0, 995.0, 2000.0]), others)
    assert (found.hits, found.n) == (2, 4)
    assert true_positive_rate(others, others).value <= 0.01
    assert true_positive_rate(np.ones(5), np.ones(500)).hits == 0  # a tie is no detection


def test_auc_known_answers():
    assert auc(np.array([3.0, 1.0]), np.array([2.0, 0.0])).value == 0.75
    assert auc(np.ones(4), np.ones(3)).value == 0.5
    assert auc(np.arange(5.0), np.arange(5.0) - 9).value == 1
    there, back = auc(np.array([3.0, 1.0, 7.0]), np.array([2.0, 0.0])), auc(np.array([2.0, 0.0]), np.array([3.0, 1.0, 7.0]))
    assert (there.value, there.low, there.high) == pytest.approx((1 - back.value, 1 - back.high, 1 - back.low))
    assert (there.positives, there.negatives) == (3, 2)


@pytest.mark.parametrize("n", [3, 50])
def test_the_interval_of_separated_classes_has_a_width(n):
    found = auc(np.arange(n) + 1.0, -np.arange(n) - 1.0)
    assert found.high == 1
    low = found.low
    q1, q2 = low / (2 - low), 2 * low**2 / (1 + low)  # the variance as Hanley and McNeil write it, for n against n
    variance = (low * (1 - low) + (n - 1) * (q1 - low**2) + (n - 1) * (q2 - low**2)) / n**2
    assert 1 - low == pytest.approx(norm.ppf(0.975) * variance**0.5, rel=1e-6)


def test_one_half_is_inside_just_when_mann_and_whitney_find_nothing():
    rng = np.random.default_rng(0)
    answers = set()
    for _ in range(300):
        one, two = rng.standard_normal(30) + 0.4, rng.standard_normal(40)
        p = mannwhitneyu(one, two, use_continuity=False, method="asymptotic").pvalue
        found = auc(one, two)
        assert (found.low <= 0.5 <= found.high) == (p >= 0.05)
        answers.add(p >= 0.05)
    assert answers == {True, False}


@pytest.mark.parametrize(("shift", "spread"), [(0, 1), (1, 1), (2, 1), (3, 1), (1, 2)])
def test_auc_interval_covers_the_truth(shift, spread):
    rng = np.random.default_rng(0)
    truth = norm.cdf(shift / (1 + spread**2) ** 0.5)
    found = [auc(shift + spread * rng.standard_normal(60), rng.standard_normal(60)) for _ in range(800)]
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert covered > 0.915  # 0.95 less what 800 draws and unequal spreads take
    assert covered < 0.999
    assert auc(np.arange(9.0), np.arange(9.0) - 1, level=0.99).low < auc(np.arange(9.0), np.arange(9.0) - 1).low


def test_p_values_are_those_of_the_tests():
    assert metrics.p_value_of_rate(0, 10, 0.5) == 1
    assert metrics.p_value_of_rate(10, 10, 0.5) == pytest.approx(2**-10)
    assert metrics.p_value_of_rate(2, 2, 0.01) == pytest.approx(1e-4)
    assert metrics.p_value_of_auc(0.5, 30, 20) == pytest.approx(0.5)
    assert metrics.p_value_of_auc(0.5 + 1.6449 * (101 / 30000) ** 0.5, 50, 50) == pytest.approx(0.05, abs=1e-4)
    # t = 3 with one degree of freedom: 1/2 - arctan(3) / pi
    assert metrics.p_value_of_mean(np.array([1.0, 2.0])) == pytest.approx(0.5 - np.arctan(3) / np.pi)
    assert metrics.p_value_of_mean(np.array([5.0])) == 1
    assert metrics.p_value_of_mean(np.array([2.0, 2.0])) == 0
    assert metrics.p_value_of_mean(np.array([0.0, 0.0])) == 1


def test_psnr_of_all_is_psnr_of_each():
    rng = np.random.default_rng(0)
    references, images = rng.random((3, 3, 12, 10), np.float32), rng.random((5, 3, 12, 10), np.float32)
    images[2] = references[1]
    images[4] = references[0] + np.float32(1e-4)  # near enough for a difference of sums to lose digits
    found = metrics.psnr_of_all(references, images)
    assert found.shape == (3, 5)
    for i in range(3):
        for k in range(5):
            assert found[i, k] == pytest.approx(psnr(references[i : i + 1], images[k : k + 1])[0], abs=1e-4)
    assert found[1, 2] == 100
    assert found[0, 4] == pytest.approx(80, abs=0.1)
    assert np.argwhere(found > 50).tolist() == [[0, 4], [1, 2]]


effects = st.integers(3, 12).flatmap(lambda n: arrays(np.float64, (3, n), elements=st.floats(-100, 100)))


@given(effects, st.floats(-100, 100))
def test_an_easy_question_and_an_answer_that_suits_all_are_no_effect(drawn, level):
    of_question, of_answer, added = drawn
    table = level + of_question[:, None] + of_answer
    assert metrics.matching_advantage(table) == pytest.approx(np.zeros(len(added)), abs=1e-9)
    assert metrics.matching_advantage(table + np.diag(added)) == pytest.approx(added, abs=1e-9)


@pytest.mark.parametrize("n", [3, 4, 9])
def test_matching_advantage_is_what_a_fit_beside_the_diagonal_leaves(n):
    table = np.random.default_rng(n).normal(size=(n, n))
    question, answer = np.indices((n, n)).reshape(2, -1)
    model = np.concatenate([np.eye(n)[question], np.eye(n)[answer]], axis=1)
    beside = question != answer
    fitted = np.linalg.lstsq(model[beside], table.ravel()[beside], rcond=None)[0]
    assert metrics.matching_advantage(table) == pytest.approx(table.diagonal() - (model @ fitted)[~beside], abs=1e-9)


def test_answers_that_know_nothing_have_no_effect_on_average():
    rng = np.random.default_rng(0)
    n, times = 6, 4000
    tables = 5 * rng.normal(size=(times, n, 1)) + 5 * rng.normal(size=(times, 1, n)) + rng.normal(size=(times, n, n))
    found = np.array([metrics.matching_advantage(table) for table in tables])
    # the square of every entry's weight: its own, those of its row and column, all others
    variance = 1 + 2 * (n - 1) / (n - 1) ** 2 + (n - 1) * (n - 2) / ((n - 1) * (n - 2)) ** 2
    assert np.abs(found.mean(axis=0)).max() < 4.5 * (variance / times) ** 0.5
    assert found.var(axis=0) == pytest.approx(np.full(n, variance), rel=4.5 * (2 / times) ** 0.5)
    # less its row's mean alone, a right answer still differs by what suits all: n - 1 of n parts of 25, and as much of 1
    plain = np.diagonal(tables, axis1=1, axis2=2) - tables.mean(axis=2)
    assert plain.var(axis=0) == pytest.approx(np.full(n, 26 * (n - 1) / n), rel=4.5 * (2 / times) ** 0.5)


def test_answers_dealt_to_other_questions_have_no_effect_together():
    """Whatever the table: over all shifts of the answers the mean is nothing."""
    table = np.random.default_rng(1).exponential(size=(7, 7))
    assert np.mean([metrics.matching_advantage(np.roll(table, k, axis=1)) for k in range(7)]) == pytest.approx(0, abs=1e-12)
