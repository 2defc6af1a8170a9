"""Picture quality and its uncertainty.

PSNR is per image over all colours, for values in 0..1, then averaged in dB; it is capped at 100 dB, so that means and intervals
stay finite where a picture is reconstructed exactly. SSIM is that of Wang, Bovik, Sheikh and Simoncelli (2004): Gaussian window
of sigma 1.5 (11 x 11), K1 = 0.01, K2 = 0.03, per colour, averaged; scikit-image computes it.

Rates have exact bounds (Clopper and Pearson 1934): never too narrow, whatever the rate. Areas under the ROC curve have
Newcombe's interval (Statistics in Medicine 25:559, 2006, his method 5), which is sound at 0.5 and at 1 alike.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PERMUTATIONS = 100_000  # of ``balanced_accuracy``


@dataclass(frozen=True)
class Mean:
    """A mean over pictures and the half width of its 95 % interval (Student's t; None for one picture)."""

    value: float
    half_width: float | None
    n: int


def psnr(reference: NDArray[np.float32], image: NDArray[np.float32]) -> NDArray[np.float64]:
    """PSNR in dB of each image of [batch, 3, height, width] in 0..1; 100 where they are equal, or nearly."""
    return _decibels(np.square(reference.astype(np.float64) - image).mean(axis=(1, 2, 3)))


def psnr_of_all(references: NDArray[np.float32], images: NDArray[np.float32]) -> NDArray[np.float64]:
    """PSNR in dB [n, m] of every one of ``images`` [m, 3, height, width] as an answer to each of ``references`` [n, ...]."""
    a, b = (part.reshape(len(part), -1).astype(np.float64) for part in (references, images))
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return _decibels(squares / a.shape[1])


def _decibels(error: NDArray[np.float64]) -> NDArray[np.float64]:
    return -10 * np.log10(np.maximum(error, 1e-10))


def matching_advantage(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much better each answer fits its own question than others: scores [n, n] to [n], n at least 3.

    ``table`` holds the score of every answer (column) to every question (row), such as PSNR in dB. From its diagonal is taken
    what is the question's (some pictures are easy) and what is the answer's (some suit every picture): an additive model,
    fitted to all but the diagonal by least squares. The mean is 0 for answers that know nothing.
    """
    n = len(table)
    right = np.diagonal(table)
    wrong = table.sum() - right.sum()
    beside = table.sum(0) + table.sum(1) - 2 * right
    effect: NDArray[np.float64] = right - beside / (n - 2) + wrong / ((n - 1) * (n - 2))
    return effect


def names_its_own(table: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each answer (column) fits its own question (row) best, beyond what others do: scores [n, n] to [n].

    From the scores of a question is taken the mean of all other answers to it, so that an easy picture is not named every time.
    Answers that know nothing name 1 in n, on average.
    """
    n = len(table)
    right = np.diagonal(table)
    others = (table.sum(axis=1) - right) / (n - 1)
    named: NDArray[np.bool_] = (table - others[:, None]).argmax(axis=0) == np.arange(n)
    return named


def ssim(reference: NDArray[np.float32], image: NDArray[np.float32]) -> NDArray[np.float64]:
    """SSIM of each image of [batch, 3, height, width] in 0..1; 1 where they are equal."""
    from skimage.metrics import structural_similarity

    return np.array(
        [
            structural_similarity(
                a, b, data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
            for a, b in zip(reference, image, strict=True)
        ]
    )


def mean(values: NDArray[np.float64]) -> Mean:
    """The mean of independent values with its 95 % interval."""
    n = len(values)
    if n < 2 or not np.isfinite(values).all():
        return Mean(float(np.mean(values)), None, n)
    from scipy.stats import t

    return Mean(float(values.mean()), float(t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)), n)


def p_value_of_mean(values: NDArray[np.float64]) -> float:
    """p-value of the mean of ``values`` being above 0 (one-sided t test); 1 for fewer than two, or one that is no number."""
    from scipy.stats import ttest_1samp

    if len(values) < 2 or not np.isfinite(values).all():
        return 1.0
    if np.ptp(values) == 0:
        return 0.0 if values[0] > 0 else 1.0
    return float(ttest_1samp(values, 0, alternative="greater").pvalue)


def p_value_of_largest(values: NDArray[np.float64]) -> float:
    """p-value of the largest of ``values`` lying so far above the others (Grubbs's test, one-sided); 1 for fewer than three."""
    from scipy.stats import t

    n, deviation = len(values), float(np.std(values, ddof=1)) if len(values) > 2 else 0.0
    if deviation == 0:
        return 1.0
    distance = float(values.max() - values.mean()) / deviation
    room = (n - 1) ** 2 - n * distance**2  # none where all others are equal
    if room <= 0:
        return 0.0
    return min(1.0, float(n * t.sf(distance * math.sqrt(n * (n - 2) / room), n - 2)))


def p_value_of_rate(hits: int, n: int, chance: float) -> float:
    """p-value of ``hits`` of n being more than a success rate of ``chance`` gives (exact binomial test, one-sided)."""
    from scipy.stats import binomtest

    return float(binomtest(hits, n, chance, alternative="greater").pvalue)


def p_value_of_auc(area: float, positives: int, negatives: int) -> float:
    """p-value of an area being above 0.5 (Mann-Whitney test, one-sided, normal approximation)."""
    from scipy.stats import norm

    return float(norm.sf((area - 0.5) / math.sqrt((positives + negatives + 1) / (12 * positives * negatives))))


@dataclass(frozen=True)
class Proportion:
    """``hits`` of ``n`` independent trials, the rate and its exact bounds."""

    hits: int
    n: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve with its bounds: how often a positive trial scores above a negative one, ties for half."""

    value: float
    low: float
    high: float
    positives: int
    negatives: int


def proportion(hits: int, n: int, level: float = 0.95) -> Proportion:
    """A rate with its two-sided Clopper-Pearson interval. Raises ValueError unless 0 <= hits <= n and n > 0."""
    from scipy.stats import binomtest

    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"hits must be in 0..n with n > 0, got {hits} of {n}")
    bounds = binomtest(hits, n).proportion_ci(level, method="exact")
    return Proportion(hits, n, hits / n, float(bounds.low), float(bounds.high))


@dataclass(frozen=True)
class Balanced:
    """Balanced accuracy: the mean over the classes of the share of each that is named right, with its bounds.

    ``chance`` is that of guesses that know nothing, whatever their frequencies: 1 / classes. ``p_value`` is that of so much by
    chance.
    """

    value: float
    low: float
    high: float
    n: int
    chance: float
    p_value: float


def mean_share(truth: NDArray[np.integer], guess: NDArray[np.integer]) -> float:
    """The mean over the classes in ``truth`` of the share of each that is named right; 0 where there is none."""
    shares = [float((guess[truth == name] == name).mean()) for name in np.unique(truth)]
    return float(np.mean(shares)) if shares else 0.0


def balanced_accuracy(truth: NDArray[np.integer], guess: NDArray[np.integer], level: float = 0.95) -> Balanced:
    """Of ``guess`` [n] at ``truth`` [n], whose values are the classes, two at least.

    The bounds are those of the shares (Clopper-Pearson), joined as by Zou and Donner (2008, "MOVER"). The p-value is exact: of
    all orders of the truth, the share that does as well; for more than two classes, of PERMUTATIONS random ones, and where none
    of those does, what the share is at most.
    """
    from scipy.stats import hypergeom

    names, sizes = np.unique(truth, return_counts=True)
    k, n = len(names), len(truth)
    hits = np.array([int((guess[truth == name] == name).sum()) for name in names])
    shares = [proportion(int(right), int(size), level) for right, size in zip(hits, sizes, strict=True)]
    value = float(np.mean([share.value for share in shares]))
    below = math.sqrt(sum((share.value - share.low) ** 2 for share in shares)) / k
    above = math.sqrt(sum((share.high - share.value) ** 2 for share in shares)) / k
    if k == 2 and np.isin(guess, names).all():
        p_value = float(hypergeom.sf(hits[1] - 1, n, int(sizes[1]), int((guess == names[1]).sum())))
        return Balanced(value, value - below, min(1.0, value + above), n, 1 / k, p_value)
    rng, better = np.random.default_rng(0), 0
    weights = np.zeros(int(max(truth.max(), guess.max())) + 1)
    weights[names] = 1 / (k * sizes)
    for start in range(0, PERMUTATIONS, 5000):
        drawn = rng.permuted(np.tile(truth, (min(5000, PERMUTATIONS - start), 1)), axis=1)
        better += int(((drawn == guess) @ weights[guess] >= value - 1e-9).sum())
    p_value = (1 + better) / (1 + PERMUTATIONS)
    if not better:  # only then, as the smaller of two p-values is none
        p_value = min(p_value, _most_orders(value - 1e-9, sizes, np.array([int((guess == name).sum()) for name in names]), n))
    return Balanced(value, value - below, min(1.0, value + above), n, 1 / k, p_value)


def _most_orders(value: float, sizes: NDArray[np.int64], guesses: NDArray[np.int64], n: int) -> float:
    """What share of all orders of the truth gives guesses a balanced accuracy of ``value`` or more, at most.

    ``sizes`` [k] and ``guesses`` [k] say how many of n there are of each class, and how often it is named. By Chernoff's bound:
    that share is at most E exp(s A) / exp(s value) for every s > 0, A being the balanced accuracy of a random order. With h
    hits of each class, each of a weight w in A, exp(s w h) is the sum over j of C(h, j) (exp(s w) - 1)^j; and of the choices of
    J pictures, each named as a class that has room for it, a random order makes (n - J)! / n! all right. So the expectation is
    exact, and a sum of positive terms.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import gammaln, logsumexp

    weights = 1 / (len(sizes) * sizes)

    def log_choices(of: int, j: NDArray[np.int64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = gammaln(of + 1) - gammaln(j + 1) - gammaln(of - j + 1)
        return found

    def log_bound(s: float) -> float:
        total = np.zeros(1)  # the logarithms of the sums for J = 0, 1, ...
        for weight, size, guessed in zip(weights, sizes, guesses, strict=True):
            j = np.arange(min(size, guessed) + 1)
            each = s * weight + math.log(-math.expm1(-s * weight))  # log(exp(s w) - 1), which may be large
            part = log_choices(size, j) + log_choices(guessed, j) + gammaln(j + 1) + j * each
            joined = np.full(len(total) + len(j) - 1, -np.inf)
            for i in j:
                joined[i : i + len(total)] = np.logaddexp(joined[i : i + len(total)], total + part[i])
            total = joined
        right = np.arange(len(total))
        return float(logsumexp(total + gammaln(n - right + 1) - gammaln(n + 1)) - s * value)

    found = minimize_scalar(log_bound, bounds=(1e-9, 60 / weights.min()), method="bounded")  # convex; each s gives a bound
    return min(1.0, math.exp(found.fun))


def true_positive_rate(targets: NDArray[np.float64], others: NDArray[np.float64], false_positives: float = 0.01) -> Proportion:
    """The share of ``targets`` that score above the threshold which at most ``false_positives`` of ``others`` exceed.

    The bounds are those of the share; ``others`` should be so many (ten thousand for 1 %) that the threshold is sharp.
    """
    threshold = np.quantile(others, 1 - false_positives, method="higher")
    return proportion(int((targets > threshold).sum()), len(targets))


def auc(positive: NDArray[np.float64], negative: NDArray[np.float64], level: float = 0.95) -> Auc:
    """Area under the ROC curve of the scores of independent trials [m] and [n], and its interval.

    The bounds are the areas A for which the one found lies just at the edge of A ± z sqrt(V(A)), V being the variance that
    Hanley and McNeil (1982) give for exponential scores. At A = 0.5 that is the exact variance of the Mann-Whitney test, so
    0.5 is inside just when that test finds nothing. Unlike DeLong's, the interval has a width when the classes separate.
    Simulated coverage: 93 to 99 % for normal scores, 92 % where one class is three times as wide as the other.
    """
    from scipy.optimize import brentq
    from scipy.stats import mannwhitneyu, norm

    m, n = len(positive), len(negative)
    found = float(mannwhitneyu(positive, negative).statistic) / (m * n)
    z = norm.ppf((1 + level) / 2)

    def outside(area: float) -> float:
        """Below zero where the area is compatible with the one found."""
        pairs = 1 + ((m + n) / 2 - 1) * ((1 - area) / (2 - area) + area / (1 + area))
        return float((found - area) ** 2 - z**2 * area * (1 - area) * pairs / (m * n))

    # at 0 and 1 the area found is a root too, but not the bound that is looked for
    low = 0.0 if found == 0 else brentq(outside, 0, min(found, 1 - 1e-12))
    high = 1.0 if found == 1 else brentq(outside, max(found, 1e-12), 1)
    return Auc(found, low, high, m, n)
