"""Which picture was it? Eve names the picture behind a packet, out of M that she knows.

    Eve knows      the M candidate pictures and the deployed transmitter, so their clean rows; the defence, her SNR; pictures
                   of her own. Not the key, which is fresh for every packet
    she does       send her own pictures through the defence under keys of her own and learn what survives it (``learn``);
                   then gives every candidate a posterior probability for each packet that she hears (``which``)

        heard rows ── matches with the candidates' rows ──┐
            │                                             ├── weighted sum ── posterior over the M candidates
            └── fingerprints ── Gaussian likelihoods ─────┘

A match compares rows with rows and survives reordering; a fingerprint is a vector made from one packet alone that some
defence leaves as it is (values in order of size survive any permutation, block energies any mixing inside the blocks).
Several streams: Alice's packet is the first, the others are heard beside it (substitution sends pairs).

Success is reported as by Carlini, Chien, Nasr, Song, Terzis and Tramèr, "Membership inference attacks from first principles"
(IEEE S&P 2022): how often the best guess is right, and the rate of true positives at 1 % false positives, because an average
hides an attack that is certain about a few. The Gaussian likelihoods learnt on the attacker's own data are theirs too. Chance
is 1/M and 1 %. Out of reach: with an even number of rows, half of them swapped, one stream is as much the partner's.

Positive control: without a defence, and under row permutation, Eve must name nearly every picture. If she does not, a low
figure elsewhere says nothing. How a mixing works inside is not used: where its last step is public, undo it and play again.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from semseal.runtime.metrics import Proportion, proportion, true_positive_rate
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

Rows = NDArray[np.float32]
Scores = NDArray[np.float64]

MATCHES = ("rows in place", "rows anywhere", "row votes", "squares in place", "squares anywhere", "square votes")
BINS = 64  # of the fingerprints that are averaged down
PRACTICE = 200  # candidates among her own pictures on which Eve learns the weights


@dataclass(frozen=True)
class Likelihood:
    """Law of a packet's fingerprint given the clean picture's: linear in it, with Gaussian errors of any covariance."""

    clean: StandardScaler
    heard: StandardScaler
    mean: RidgeCV
    whiten: NDArray[np.float64]  # [d, d]

    def __call__(self, candidates: Scores, heard: Scores) -> Scores:
        """Log likelihood [packets, M], up to a constant, of fingerprints [M, d] and [packets, d]."""
        expected = self.mean.predict(self.clean.transform(candidates)) @ self.whiten
        found = self.heard.transform(heard) @ self.whiten
        distances: Scores = np.square(found).sum(1)[:, None] + np.square(expected).sum(1) - 2 * found @ expected.T
        return -distances / 2


@dataclass(frozen=True)
class Eve:
    """What Eve learnt on her own pictures for one defence and SNR. ``weights`` are in the order of MATCHES and likelihoods."""

    likelihoods: dict[str, Likelihood]
    weights: Scores


@dataclass(frozen=True)
class Guess:
    """``scores`` are log posteriors [packets, M]. ``alone``: how often each statistic by itself names the right picture."""

    scores: Scores
    top1: Proportion
    tpr_at_1_percent: Proportion
    chance: float
    alone: dict[str, int]


def learn(own: Rows, packets: Rows, truth: NDArray[np.integer]) -> Eve:
    """Eve practises on clean rows of her own pictures, float32 [n, h, r], and packets [trials, k, h, r] made from them.

    ``truth`` [trials] says which picture a packet carries. The first half of the pictures teaches the likelihoods, the other
    half the weights, so a statistic that only seems good is found out. Raises ValueError for shapes that do not belong
    together or fewer than 20 packets of either half.
    """
    _check(own, packets, truth)
    half = len(own) // 2
    first, second = np.flatnonzero(truth < half), np.flatnonzero((truth >= half) & (truth < half + PRACTICE))
    if min(len(first), len(second)) < 20:
        raise ValueError(f"Eve needs 20 packets of either half of her pictures to learn, got {len(first)} and {len(second)}")
    clean, heard = fingerprints(own[:half]), fingerprints(packets[first, 0])
    likelihoods = {name: _fit(clean[name][truth[first]], heard[name]) for name in clean}
    found = _statistics(likelihoods, own[half : half + PRACTICE], packets[second])
    return Eve(likelihoods, _weigh(found, truth[second] - half))


def which(eve: Eve, candidates: Rows, packets: Rows, truth: NDArray[np.integer]) -> Guess:
    """Play the game with clean rows of M candidates, float32 [M, h, r], and heard packets float32 [trials, k, h, r].

    ``truth`` [trials], 0..M-1, only marks the result. Raises ValueError for shapes that do not belong together.
    """
    _check(candidates, packets, truth)
    statistics = _statistics(eve.likelihoods, candidates, packets)
    scores = log_softmax(np.tensordot(eve.weights, statistics, 1), axis=1)
    is_truth = np.arange(len(candidates)) == truth[:, None]
    right = (statistics.argmax(2) == truth).sum(1)
    return Guess(
        scores,
        proportion(int((scores.argmax(1) == truth).sum()), len(scores)),
        true_positive_rate(scores[is_truth], scores[~is_truth]),
        1 / len(candidates),
        {name: int(hits) for name, hits in zip([*MATCHES, *eve.likelihoods], right, strict=True)},
    )


def matches(candidates: Rows, packets: Rows) -> Scores:
    """Row by row comparisons [6, packets, M], named in MATCHES; rows in place and votes see the first stream only.

    Comparing is by log likelihood under white noise, up to its variance: <heard, row> - |row|²/2. The last three compare
    squares instead, which random signs do not change.
    """
    return np.concatenate([_match(candidates, packets), _match(squares(candidates), squares(packets))])


def fingerprints(packets: Rows) -> dict[str, Scores]:
    """What can be told of a packet without any other, packets float32 [n, h, r] to vectors [n, d] by name."""
    flat = packets.reshape(len(packets), -1)
    i, q = flat[:, ::2], flat[:, 1::2]
    magnitudes = np.hypot(i, q)
    spectrum = np.square(np.abs(np.fft.rfft(flat, axis=1)))
    return {
        "moments": np.concatenate([_moments(flat), _moments(magnitudes), _average(i * q, 1), _average(i * i, 1)], axis=1),
        "values": _average(np.sort(flat, axis=1), BINS),
        "magnitudes": _average(np.sort(magnitudes, axis=1), BINS),
        "row energies": np.sort(np.square(packets).mean(2, dtype=np.float64), axis=1),
        "singular values": np.linalg.eigvalsh(packets @ packets.transpose(0, 2, 1)).astype(np.float64),
        "spectrum": np.log(_average(spectrum, BINS) + 1e-12),
        "block energies": _blocks(np.square(flat)),
    }


def squares(rows: Rows) -> Rows:
    """Squared rows [..., h, r] less the mean of each packet, which noise and energy would otherwise rule."""
    out: Rows = np.square(rows)
    return out - out.mean(axis=(-2, -1), keepdims=True)


def _match(candidates: Rows, packets: Rows) -> Scores:
    m, h, r = candidates.shape
    columns = np.ascontiguousarray(candidates.reshape(m * h, r).T)
    half_energy = np.square(candidates).sum(2).reshape(-1) / 2
    out = np.empty((3, len(packets), m))
    for n, packet in enumerate(packets):
        similar = (packet.reshape(-1, r) @ columns - half_energy).reshape(-1, m, h)  # [k*h, M, h]
        best = similar.max(2)
        out[0, n] = similar[np.arange(h), :, np.arange(h)].sum(0)
        out[1, n] = best.sum(0)
        out[2, n] = np.bincount(best[:h].argmax(1), minlength=m)  # each heard row votes for one candidate
    return out


def _moments(values: Rows) -> Scores:
    """Mean powers one to six."""
    power, out = values, []
    for _ in range(6):
        out.append(power.mean(1, dtype=np.float64))
        power = power * values
    return np.stack(out, axis=1)


def _average(values: NDArray[np.floating], bins: int) -> Scores:
    return np.stack([part.mean(1, dtype=np.float64) for part in np.array_split(values, min(bins, values.shape[1]), axis=1)], 1)


def _blocks(energies: Rows) -> Scores:
    """How unevenly the energy lies over blocks of neighbours, and over combs, of every size that divides N."""
    n, size = energies.shape
    spread = []
    for block in (b for b in range(2, size // 8 + 1) if size % b == 0):
        for sums in (energies.reshape(n, -1, block).sum(2), energies.reshape(n, block, -1).sum(1)):
            spread.append(np.log(sums.var(1, dtype=np.float64) + 1e-12))
    return np.stack(spread, axis=1)


def _fit(clean: Scores, heard: Scores) -> Likelihood:
    x, y = StandardScaler().fit(clean), StandardScaler().fit(heard)
    mean = RidgeCV(np.logspace(-3, 4, 15)).fit(x.transform(clean), y.transform(heard))
    errors = y.transform(heard) - mean.predict(x.transform(clean))
    precision = LedoitWolf(assume_centered=True).fit(errors).precision_
    return Likelihood(x, y, mean, np.linalg.cholesky(precision))


def _statistics(likelihoods: dict[str, Likelihood], candidates: Rows, packets: Rows) -> Scores:
    """Every statistic [statistics, packets, M], relative to its mean over the candidates."""
    clean, heard = fingerprints(candidates), fingerprints(packets[:, 0])
    scores = np.concatenate(
        [matches(candidates, packets), [law(clean[name], heard[name]) for name, law in likelihoods.items()]]
    )
    centred: Scores = scores - scores.mean(2, keepdims=True)
    return centred


def _weigh(statistics: Scores, truth: NDArray[np.integer]) -> Scores:
    """Weights >= 0 that make the softmax of the weighted sum the likeliest for ``truth`` (conditional logit)."""
    spread = statistics.std(axis=(1, 2)) + 1e-12
    scaled = statistics / spread[:, None, None]
    trials = np.arange(len(truth))

    def loss(weights: Scores) -> tuple[float, Scores]:
        log_posterior = log_softmax(np.tensordot(weights, scaled, 1), axis=1)
        excess = np.exp(log_posterior)
        excess[trials, truth] -= 1
        # the penalty only keeps weights finite where the candidates separate completely
        value = -log_posterior[trials, truth].sum() + 5e-4 * weights @ weights
        return float(value), np.tensordot(scaled, excess, 2) + 1e-3 * weights

    start = np.full(len(scaled), 0.01)
    weights: Scores = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(scaled)).x
    return weights / spread


def _check(rows: Rows, packets: Rows, truth: NDArray[np.integer]) -> None:
    if rows.ndim != 3 or packets.ndim != 4 or packets.shape[2:] != rows.shape[1:]:
        raise ValueError(
            f"rows [M, h, r] and packets [trials, k, h, r] expected, got {list(rows.shape)}, {list(packets.shape)}"
        )
    if len(truth) != len(packets) or truth.min() < 0 or truth.max() >= len(rows):
        raise ValueError(f"truth must hold one of 0..{len(rows) - 1} for each of {len(packets)} packets")
