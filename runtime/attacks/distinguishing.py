"""Two games with two answers each: which of two chosen pictures was sent, and do two packets carry the same picture?

    Eve knows      the deployed transmitter, the defence and her SNR; when distinguishing also both pictures, which she may have
                   chosen herself (``chosen_pairs``). Not the key, which is fresh for every packet
    she does       practises on packets that she makes under keys she draws herself, then scores every packet she receives

        received rows ── matches, fingerprints ── one discriminant each ── logistic regression ── score

``distinguish`` is indistinguishability under chosen plaintext, played with statistics: Bellare, Desai, Jokipii and Rogaway, "A
concrete security treatment of symmetric encryption" (FOCS 1997). ``linkability`` tests what ISO/IEC 15408-2 calls
unlinkability. Flat, sparse and saturated pictures are included because random measurements hide typical pictures best: Bianchi,
Bioglio and Magli (ICASSP 2014). Every discriminant is linear with a shrunk covariance (Ledoit and Wolf 2004). It is fitted on
one half of the practice packets and weighted on the other, so a statistic that only fits the first half gets no weight.

Success is the area under the ROC curve, where 0.5 is chance. Many pairs mean many intervals: at 95 %, one in 20 misses 0.5 by
chance. Set ``level`` accordingly, to 1 - 0.05/20 for 20 pairs.

Positive control: without a defence and under row permutation the area must be near 1 for every pair. If it is not, an area of
0.5 elsewhere says nothing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.attacks.identification import fingerprints, matches, squares
from semseal.runtime.attacks.ordering import Rows, Scores
from semseal.runtime.metrics import Auc, auc
from sklearn.base import BaseEstimator
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

MIN_PRACTICE_PACKETS = 40
FLOOR = 1e-9  # of the variance within an answer, where that of all packets is 1


@dataclass(frozen=True)
class AucGame:
    """``scores`` [trials] rise with Eve's belief in answer 1: the second picture, or the same picture."""

    scores: Scores
    auc: Auc


def chosen_pairs(one: NDArray[np.float32], two: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Pairs of pictures [2, 3, height, width] by name: the two given, [3, height, width] in 0..1, and some worth choosing."""
    shape = one.shape
    black, grey, white = (np.full(shape, level, np.float32) for level in (0, 0.5, 1))
    pixel, sparse = black.copy(), black.copy()
    pixel[:, shape[1] // 2, shape[2] // 2] = 1
    sparse[:, :: shape[1] // 4, :: shape[2] // 4] = 1
    checkerboard = np.broadcast_to(np.indices(shape[1:]).sum(0) % 2, shape).astype(np.float32)
    saturated = np.random.default_rng(0).integers(0, 2, shape).astype(np.float32)  # as much energy as pixels can have
    return {
        "two pictures": np.stack([one, two]),
        "black, white": np.stack([black, white]),
        "black, grey": np.stack([black, grey]),
        "black, one pixel": np.stack([black, pixel]),
        "black, sparse": np.stack([black, sparse]),
        "grey, checkerboard": np.stack([grey, checkerboard]),
        "grey, saturated noise": np.stack([grey, saturated]),
    }


def distinguish(
    pair: Rows,
    practice: Rows,
    practice_truth: NDArray[np.integer],
    packets: Rows,
    truth: NDArray[np.integer],
    level: float = 0.95,
) -> AucGame:
    """Which of two pictures was sent? ``pair`` holds their clean rows, float32 [2, h, r].

    ``practice`` and ``packets`` are float32 [trials, k, h, r], Alice's stream first, and may have more rows than a picture;
    ``practice_truth`` and ``truth`` [trials] are 0 or 1: the picture that each carries. Raises ValueError for shapes that do
    not fit together, an answer that does not occur, or fewer than 40 practice packets.
    """
    whole = len(pair) == 2 and pair.shape[2:] == packets.shape[3:] and pair.shape[1] <= packets.shape[2]
    if not whole or practice.shape[1:] != packets.shape[1:]:
        raise ValueError(
            f"rows [2, h, r] and packets [trials, k, h, r] expected, got {list(pair.shape)}, {list(practice.shape)} "
            f"and {list(packets.shape)}"
        )
    return _play(_features_of_packets(pair, practice), practice_truth, _features_of_packets(pair, packets), truth, level)


def linkability(
    practice: Rows, practice_truth: NDArray[np.integer], packets: Rows, truth: NDArray[np.integer], level: float = 0.95
) -> AucGame:
    """Do two packets carry the same picture? Packets are float32 [trials, 2, h, r]: one stream of each of the two.

    ``practice_truth`` and ``truth`` [trials] are 1 where they do and 0 where they do not; Eve practises on the attacker's
    images. Raises ValueError for shapes that do not fit together, an answer that does not occur, or fewer than 40 practice
    trials.
    """
    if practice.shape[1:] != packets.shape[1:] or packets.ndim != 4 or packets.shape[1] != 2:
        raise ValueError(f"packets [trials, 2, h, r] expected, got {list(practice.shape)} and {list(packets.shape)}")
    return _play(_features_of_two_packets(practice), practice_truth, _features_of_two_packets(packets), truth, level)


def _features_of_packets(pair: Rows, packets: Rows) -> list[Scores]:
    """Each statistic as features [trials, d]: matches with the second picture minus those with the first; fingerprints."""
    found = matches(pair, packets)
    return [*(found[..., 1] - found[..., 0])[..., None], *fingerprints(packets[:, 0]).values()]


def _features_of_two_packets(packets: Rows) -> list[Scores]:
    """The same for two packets: the distances of their rows, the squared differences of their fingerprints."""
    one, two = fingerprints(packets[:, 0]), fingerprints(packets[:, 1])
    return [*_distances(packets), *_distances(squares(packets)), *(np.square(one[name] - two[name]) for name in one)]


def _distances(packets: Rows) -> list[Scores]:
    """Squared distances [trials, h], sorted: between rows at the same position, and from every row to the closest one."""
    one, two = packets[:, 0], packets[:, 1]
    energies = np.square(one).sum(2)[:, :, None] + np.square(two).sum(2)[:, None]
    distances = (energies - 2 * one @ two.transpose(0, 2, 1)).astype(np.float64)  # [trials, h, h]
    return [np.sort(np.diagonal(distances, axis1=1, axis2=2), axis=1), np.sort(distances.min(2), axis=1)]


def _play(
    practice: list[Scores],
    practice_truth: NDArray[np.integer],
    features: list[Scores],
    truth: NDArray[np.integer],
    level: float,
) -> AucGame:
    for answers, trials in ((practice_truth, len(practice[0])), (truth, len(features[0]))):
        if len(answers) != trials or set(np.unique(answers)) != {0, 1}:
            raise ValueError(f"answers must be 0 or 1, both must occur, one for each of {trials} trials")
    if len(practice_truth) < MIN_PRACTICE_PACKETS:
        raise ValueError(f"Eve needs {MIN_PRACTICE_PACKETS} practice packets, got {len(practice_truth)}")
    # both halves hold every other trial of either answer
    by_answer = np.argsort(practice_truth, kind="stable")
    first, second = by_answer[::2], by_answer[1::2]
    practice_scores, scores = [], []
    for before, now in zip(practice, features, strict=True):
        discriminant = make_pipeline(
            StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=_FlooredCovariance())
        )
        discriminant.fit(before[first], practice_truth[first])
        practice_scores.append(discriminant.decision_function(before[second]))
        scores.append(discriminant.decision_function(now))
    combined = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    combined.fit(np.stack(practice_scores, axis=1), practice_truth[second])
    belief: Scores = combined.decision_function(np.stack(scores, axis=1))
    return AucGame(belief, auc(belief[truth == 1], belief[truth == 0], level))


class _FlooredCovariance(BaseEstimator):
    """Ledoit and Wolf's of scaled features, as ``shrinkage="auto"`` takes it, and no direction without variance.

    Without noise and without a defence every packet of a picture is the same, and nothing would be divided by nothing: the
    discriminant of what tells the pictures apart for certain would be 0.
    """

    def fit(self, features: Scores, y: None = None) -> "_FlooredCovariance":
        scaler = StandardScaler()
        shrunk, _ = ledoit_wolf(scaler.fit_transform(features))
        self.covariance_ = scaler.scale_[:, None] * shrunk * scaler.scale_ + FLOOR * np.eye(features.shape[1])
        return self
