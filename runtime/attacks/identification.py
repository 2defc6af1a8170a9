"""Which picture was it? Eve names the picture behind a packet, out of M candidates that she knows.

    Eve knows      the M candidate pictures and the deployed transmitter, hence their clean rows; the defence, her SNR and the
                   attacker's images. Not the key, which is fresh for every packet
    she does       sends the attacker's images through the defence under keys she draws herself and learns what survives it
                   (``learn``); then gives every candidate a posterior probability for each packet she receives (``identify``)

        received rows ── matches with the candidates' rows ──┐
            │                                                ├── weighted sum ── posterior over the M candidates
            └── fingerprints ── Gaussian likelihoods ────────┘

A match compares rows with rows and survives reordering. A fingerprint is a vector computed from one packet alone that some
defence leaves unchanged (sorted values survive any permutation, block energies any mixing inside the blocks).
With several streams, the first is Alice's packet and the others were received beside it (substitution sends pairs).

Success is reported as by Carlini, Chien, Nasr, Song, Terzis and Tramèr, "Membership inference attacks from first principles"
(IEEE S&P 2022): how often the best guess is right, and the true positive rate at 1 % false positives, because an average hides
an attack that is certain about a few pictures. Learning Gaussian likelihoods on the attacker's own data is theirs too. Chance
is 1/M and 1 %. What no attack can do: where exactly half of the rows are swapped, a single stream belongs to the partner's
picture as much as to Alice's.

Positive control: without a defence and under row permutation, Eve must name nearly every picture. If she does not, a low figure
elsewhere says nothing. The inner structure of a mixing is not used: where its last step is public, undo it and play again.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from semseal.runtime.attacks.ordering import Rows, Scores
from semseal.runtime.metrics import Proportion, proportion, true_positive_rate
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

MATCHES = ("rows in place", "rows anywhere", "row votes", "squares in place", "squares anywhere", "square votes")
FINGERPRINT_BINS = 64  # to which long fingerprints are averaged down
MAX_WEIGHT_CANDIDATES = 200  # attacker's images among which a packet is identified while the weights are learnt
MIN_PACKETS_PER_HALF = 20


@dataclass(frozen=True)
class FingerprintModel:
    """Predicts a packet's fingerprint from the clean picture's: linearly, with Gaussian errors of any covariance."""

    clean: StandardScaler
    received: StandardScaler
    mean: RidgeCV
    whiten: NDArray[np.float64]  # [d, d]

    def log_likelihood(self, candidates: Scores, received: Scores) -> Scores:
        """[packets, M], up to a constant, of fingerprints [M, d] and [packets, d]."""
        expected = self.mean.predict(self.clean.transform(candidates)) @ self.whiten
        found = self.received.transform(received) @ self.whiten
        distances: Scores = np.square(found).sum(1)[:, None] + np.square(expected).sum(1) - 2 * found @ expected.T
        return -distances / 2


@dataclass(frozen=True)
class Identifier:
    """What Eve learnt on the attacker's images for one defence and SNR."""

    fingerprints: dict[str, FingerprintModel]
    weights: Scores  # of MATCHES, then of the fingerprints


@dataclass(frozen=True)
class Identification:
    """How the game went. ``hits_alone`` counts how often each statistic by itself names the right picture."""

    log_posteriors: Scores  # [packets, M]
    top1: Proportion
    tpr_at_1_percent: Proportion
    chance: float  # of top1
    hits_alone: dict[str, int]


def learn(attacker: Rows, packets: Rows, truth: NDArray[np.integer]) -> Identifier:
    """Practise on clean rows of the attacker's images, float32 [n, h, r], and on packets [trials, k, h, r] made from them.

    A packet may have more rows than a picture: what a defence has added belongs to it.

    ``truth`` [trials] says which image each packet carries. The likelihoods are learnt on the first half of the images and the
    weights on the second, so a statistic that only fits the first half gets no weight. Raises ValueError for shapes that do
    not fit together, or fewer than 20 packets of either half.
    """
    _check(attacker, packets, truth)
    half = len(attacker) // 2
    first, second = np.flatnonzero(truth < half), np.flatnonzero((truth >= half) & (truth < half + MAX_WEIGHT_CANDIDATES))
    if min(len(first), len(second)) < MIN_PACKETS_PER_HALF:
        raise ValueError(
            f"Eve needs {MIN_PACKETS_PER_HALF} packets of either half of the attacker's images to learn, "
            f"got {len(first)} and {len(second)}"
        )
    clean, received = fingerprints(attacker[:half]), fingerprints(packets[first, 0])
    models = {name: _fit(clean[name][truth[first]], received[name]) for name in clean}
    found = _statistics(models, attacker[half : half + MAX_WEIGHT_CANDIDATES], packets[second])
    return Identifier(models, _fit_weights(found, truth[second] - half))


def identify(identifier: Identifier, candidates: Rows, packets: Rows, truth: NDArray[np.integer]) -> Identification:
    """Play the game with clean rows of M candidates, float32 [M, h, r], and received packets, float32 [trials, k, h, r].

    ``truth`` [trials], 0..M-1, only marks the result. Raises ValueError for shapes that do not fit together.
    """
    _check(candidates, packets, truth)
    statistics = _statistics(identifier.fingerprints, candidates, packets)
    log_posteriors = log_softmax(np.tensordot(identifier.weights, statistics, 1), axis=1)
    is_truth = np.arange(len(candidates)) == truth[:, None]
    right = (statistics.argmax(2) == truth).sum(1)
    return Identification(
        log_posteriors,
        proportion(int((log_posteriors.argmax(1) == truth).sum()), len(log_posteriors)),
        true_positive_rate(log_posteriors[is_truth], log_posteriors[~is_truth]),
        1 / len(candidates),
        {name: int(hits) for name, hits in zip([*MATCHES, *identifier.fingerprints], right, strict=True)},
    )


def matches(candidates: Rows, packets: Rows) -> Scores:
    """Row-by-row comparisons [6, packets, M], named in MATCHES; "in place" and the votes use the first stream only.

    Rows are compared by their log likelihood under white noise, up to its variance: <received, row> - |row|²/2. The last three
    compare squares instead, which random signs do not change.
    """
    return np.concatenate([_match(candidates, packets), _match(squares(candidates), squares(packets))])


def fingerprints(packets: Rows) -> dict[str, Scores]:
    """What each packet of float32 [n, h, r] shows by itself, without the others: vectors [n, d] by name."""
    flat = packets.reshape(len(packets), -1)
    i, q = flat[:, ::2], flat[:, 1::2]
    magnitudes = np.hypot(i, q)
    spectrum = np.square(np.abs(np.fft.rfft(flat, axis=1)))
    return {
        "moments": np.concatenate([_moments(flat), _moments(magnitudes), _average(i * q, 1), _average(i * i, 1)], axis=1),
        "values": _average(np.sort(flat, axis=1), FINGERPRINT_BINS),
        "magnitudes": _average(np.sort(magnitudes, axis=1), FINGERPRINT_BINS),
        "row energies": np.sort(np.square(packets).mean(2, dtype=np.float64), axis=1),
        "singular values": np.linalg.eigvalsh(packets @ packets.transpose(0, 2, 1)).astype(np.float64),
        "spectrum": np.log(_average(spectrum, FINGERPRINT_BINS) + 1e-12),
        "block energies": _blocks(np.square(flat)),
    }


def squares(rows: Rows) -> Rows:
    """Squared rows [..., h, r] minus the mean of each packet; otherwise its noise and energy would dominate."""
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
        out[2, n] = np.bincount(best[: packet.shape[1]].argmax(1), minlength=m)  # each received row votes for one candidate
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
    """How unevenly the energy is distributed over blocks of neighbours, and over combs, of every size that divides N."""
    n, size = energies.shape
    unevenness = []
    for block in (b for b in range(2, size // 8 + 1) if size % b == 0):
        for sums in (energies.reshape(n, -1, block).sum(2), energies.reshape(n, block, -1).sum(1)):
            unevenness.append(np.log(sums.var(1, dtype=np.float64) + 1e-12))
    return np.stack(unevenness, axis=1)


def _fit(clean: Scores, received: Scores) -> FingerprintModel:
    x, y = StandardScaler().fit(clean), StandardScaler().fit(received)
    mean = RidgeCV(np.logspace(-3, 4, 15)).fit(x.transform(clean), y.transform(received))
    errors = y.transform(received) - mean.predict(x.transform(clean))
    precision = LedoitWolf(assume_centered=True).fit(errors).precision_
    return FingerprintModel(x, y, mean, np.linalg.cholesky(precision))


def _statistics(models: dict[str, FingerprintModel], candidates: Rows, packets: Rows) -> Scores:
    """Every statistic [statistics, packets, M], relative to its mean over the candidates."""
    clean, received = fingerprints(candidates), fingerprints(packets[:, 0])
    likelihoods = [model.log_likelihood(clean[name], received[name]) for name, model in models.items()]
    scores = np.concatenate([matches(candidates, packets), likelihoods])
    centred: Scores = scores - scores.mean(2, keepdims=True)
    return centred


def _fit_weights(statistics: Scores, truth: NDArray[np.integer]) -> Scores:
    """The weights >= 0 under which the softmax of the weighted sum makes ``truth`` most likely (conditional logit)."""
    deviation = statistics.std(axis=(1, 2)) + 1e-12
    scaled = statistics / deviation[:, None, None]
    trials = np.arange(len(truth))

    def loss(weights: Scores) -> tuple[float, Scores]:
        log_posterior = log_softmax(np.tensordot(weights, scaled, 1), axis=1)
        excess = np.exp(log_posterior)
        excess[trials, truth] -= 1
        # the penalty only keeps the weights finite where the candidates separate completely
        value = -log_posterior[trials, truth].sum() + 5e-4 * weights @ weights
        return float(value), np.tensordot(scaled, excess, 2) + 1e-3 * weights

    start = np.full(len(scaled), 0.01)
    weights: Scores = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(scaled)).x
    return weights / deviation


def _check(rows: Rows, packets: Rows, truth: NDArray[np.integer]) -> None:
    if rows.ndim != 3 or packets.ndim != 4 or packets.shape[3] != rows.shape[2] or packets.shape[2] < rows.shape[1]:
        raise ValueError(
            f"rows [M, h, r] and packets [trials, k, h, r] expected, got {list(rows.shape)}, {list(packets.shape)}"
        )
    if len(truth) != len(packets) or truth.min() < 0 or truth.max() >= len(rows):
        raise ValueError(f"truth must hold one of 0..{len(rows) - 1} for each of {len(packets)} packets")
