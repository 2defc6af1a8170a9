"""Two games with two answers: which of two chosen pictures was sent, and do two packets carry the same picture?

    Eve knows      the deployed transmitter, the defence, her SNR; in the first game both pictures, which she may have chosen
                   herself (``chosen_pairs``), in the second none. Not the key, which is fresh for every packet
    she does       practise on packets that she makes under keys of her own, then give every packet that she hears a score

        heard rows ── matches, fingerprints ── one discriminant each ── logistic regression ── score

This is indistinguishability under chosen plaintext, played by statistics: Bellare, Desai, Jokipii and Rogaway, "A concrete
security treatment of symmetric encryption" (FOCS 1997), for ``distinguish``; ISO/IEC 15408-2 calls what ``link`` breaks
unlinkability. Flat, sparse and saturated pictures are tried because random measurements keep the secret of typical pictures
best: Bianchi, Bioglio and Magli (ICASSP 2014). Every discriminant is a linear one with a shrunk covariance (Ledoit and Wolf
2004), learnt on one half of the practice packets and weighed on the other, so a statistic that only seems good is found out.

Success is the area under the ROC curve: 0.5 is chance. Many pairs mean many intervals: of 20 at 95 %, one misses 0.5 by
luck. Set ``level`` accordingly, to 1 - 0.05/20.

Positive control: without a defence and under row permutation the area must be near 1 for every pair. If it is not, an area of
0.5 elsewhere says nothing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.attacks.identification import Rows, Scores, fingerprints, matches, squares
from semseal.runtime.metrics import Auc, auc
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FEWEST = 40  # practice packets


@dataclass(frozen=True)
class Game:
    """``scores`` [trials] rise with Eve's belief in answer 1: the second picture, or the same picture."""

    scores: Scores
    auc: Auc


def chosen_pairs(one: NDArray[np.float32], two: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Pairs of pictures [2, 3, height, width] by name: the two given, [3, height, width] in 0..1, and those of a chooser."""
    shape = one.shape
    black, grey, white = (np.full(shape, level, np.float32) for level in (0, 0.5, 1))
    pixel, sparse = black.copy(), black.copy()
    pixel[:, shape[1] // 2, shape[2] // 2] = 1
    sparse[:, :: shape[1] // 4, :: shape[2] // 4] = 1
    checkerboard = np.broadcast_to(np.indices(shape[1:]).sum(0) % 2, shape).astype(np.float32)
    saturated = np.random.default_rng(0).integers(0, 2, shape).astype(np.float32)  # all the energy that pixels can have
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
    pair: Rows, practice: Rows, practised: NDArray[np.integer], packets: Rows, truth: NDArray[np.integer], level: float = 0.95
) -> Game:
    """Which of two pictures was sent? Their clean rows float32 [2, h, r]; packets float32 [trials, k, h, r], Alice's first.

    ``practised`` and ``truth`` [trials] are 0 or 1: which picture the packets of ``practice`` and ``packets`` carry. Raises
    ValueError for shapes that do not belong together, an answer that does not occur, or fewer than 40 practice packets.
    """
    if pair.shape != (2, *packets.shape[2:]) or practice.shape[1:] != packets.shape[1:]:
        raise ValueError(
            f"rows [2, h, r] and packets [trials, k, h, r] expected, got {list(pair.shape)}, {list(practice.shape)} "
            f"and {list(packets.shape)}"
        )
    return _play(_of_pair(pair, practice), practised, _of_pair(pair, packets), truth, level)


def link(
    practice: Rows, practised: NDArray[np.integer], packets: Rows, truth: NDArray[np.integer], level: float = 0.95
) -> Game:
    """Do two packets carry the same picture? Float32 [trials, 2, h, r]: one stream of either packet.

    ``practised`` and ``truth`` [trials] are 1 where they do, 0 where not; Eve practises on pictures of her own. Raises
    ValueError for shapes that do not belong together, an answer that does not occur, or fewer than 40 practice trials.
    """
    if practice.shape[1:] != packets.shape[1:] or packets.ndim != 4 or packets.shape[1] != 2:
        raise ValueError(f"packets [trials, 2, h, r] expected, got {list(practice.shape)} and {list(packets.shape)}")
    return _play(_of_two_packets(practice), practised, _of_two_packets(packets), truth, level)


def _of_pair(pair: Rows, packets: Rows) -> list[Scores]:
    """Every statistic as features [trials, d]: matches with the second picture less those with the first, fingerprints."""
    found = matches(pair, packets)
    return [*(found[..., 1] - found[..., 0])[..., None], *fingerprints(packets[:, 0]).values()]


def _of_two_packets(packets: Rows) -> list[Scores]:
    """The same of two packets: how far apart their rows are, squared differences of their fingerprints."""
    one, two = fingerprints(packets[:, 0]), fingerprints(packets[:, 1])
    return [*_distances(packets), *_distances(squares(packets)), *(np.square(one[name] - two[name]) for name in one)]


def _distances(packets: Rows) -> list[Scores]:
    """Squared distances [trials, h] in order of size: of rows at the same place, of every row from the closest one."""
    one, two = packets[:, 0], packets[:, 1]
    energies = np.square(one).sum(2)[:, :, None] + np.square(two).sum(2)[:, None]
    distances = (energies - 2 * one @ two.transpose(0, 2, 1)).astype(np.float64)  # [trials, h, h]
    return [np.sort(np.diagonal(distances, axis1=1, axis2=2), axis=1), np.sort(distances.min(2), axis=1)]


def _play(
    practice: list[Scores], practised: NDArray[np.integer], statistics: list[Scores], truth: NDArray[np.integer], level: float
) -> Game:
    for answers, trials in ((practised, len(practice[0])), (truth, len(statistics[0]))):
        if len(answers) != trials or set(np.unique(answers)) != {0, 1}:
            raise ValueError(f"answers must be 0 or 1, both must occur, one for each of {trials} trials")
    if len(practised) < FEWEST:
        raise ValueError(f"Eve needs {FEWEST} practice packets, got {len(practised)}")
    # every other trial of either answer
    order = np.argsort(practised, kind="stable")
    learn, weigh = order[::2], order[1::2]
    learnt, heard = [], []
    for before, now in zip(practice, statistics, strict=True):
        discriminant = make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))
        discriminant.fit(before[learn], practised[learn])
        learnt.append(discriminant.decision_function(before[weigh]))
        heard.append(discriminant.decision_function(now))
    combined = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    combined.fit(np.stack(learnt, axis=1), practised[weigh])
    scores: Scores = combined.decision_function(np.stack(heard, axis=1))
    return Game(scores, auc(scores[truth == 1], scores[truth == 0], level))
