"""What leaks to Eves who adapt: every attack of ``attacks/adaptive.py`` against every defence, and whether it can be believed.

    scene x defence x Eve's SNR x attack ── pictures: PSNR, SSIM against Bob and the mean picture
                                        └── games: how often Eve is right, with exact bounds

An attack counts only while its positive control wins: a setting in which it must succeed, on the same pictures, at the same
SNR. Where the control fails or was not measured, its verdict is "void", whatever the other figures are.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from semseal.runtime import metrics
from semseal.runtime.attacks import adaptive
from semseal.runtime.attacks.surrogate import Surrogate
from semseal.runtime.attacks.whitebox import WhiteBoxSettings
from semseal.runtime.scene import Images, Scene

PAPER_MODES = ("permute", "substitute", "permute+substitute")
DEFENSES = ("none", *PAPER_MODES, "mix")

# attack -> the defence of its positive control
PICTURES = {
    "no key": "none",
    "row ordering": "permute",
    "brute force": "permute",
    "learned": "none",
    "set inverse": "permute",
    "row matching": "none",
    "reused V": "permute",
    "four packets": "permute",
}
GAMES = {"which": "none", "link": "none", "distinguish": "none"}
CLEAR_WIN_DB = 1.0  # above the mean picture, paired, by the lower end of the interval
CLEAR_WIN_RATE = 0.9


@dataclass(frozen=True)
class Effort:
    """How hard Eve tries. ``pictures`` of the scene are attacked by the optimisation, ``trials`` played for each pair."""

    learned_steps: int = 600
    matching: WhiteBoxSettings = dataclasses.field(default_factory=lambda: WhiteBoxSettings(300, 5e-2, True))
    matched_pictures: int = 24
    trials: int = 200


@dataclass(frozen=True)
class Answers:
    """Per-picture PSNR in dB and SSIM, float64 [n], and the first pictures."""

    psnr: NDArray[np.float64]
    ssim: NDArray[np.float64]
    shown: Images


@dataclass(frozen=True)
class Played:
    """One game: Eve's success with its exact interval, and what guessing gives. ``name`` tells a pair or a rate apart."""

    name: str
    value: float
    low: float
    high: float
    trials: int
    chance: float


def applies(attack: str, defense: str) -> bool:
    """Scheme sets, and rows to put in order, are the paper's modes' only; without a defence there is no V to reuse."""
    if attack == "brute force":
        return defense in PAPER_MODES
    return not (attack == "reused V" and defense == "none")


def attack(
    scene: Scene,
    name: str,
    defense: str,
    snr: float,
    effort: Effort,
    surrogate: Callable[[], Surrogate],
    advance: adaptive.Advance,
) -> Images:
    """Eve's pictures, [n, 3, height, width], n at most that of the scene."""
    if name == "no key":
        return adaptive.no_key(scene, defense, snr)
    if name == "row ordering":
        return adaptive.row_ordering(scene, defense, snr)
    if name == "brute force":
        return adaptive.brute_force(scene, defense, snr)
    if name == "reused V":
        return adaptive.reused(scene, defense, snr)
    if name == "four packets":
        return adaptive.four_packets(scene, defense, snr)
    if name == "row matching":
        assert surrogate is not None  # the caller leaves it out where there is none
        return adaptive.row_matching(scene, surrogate, defense, snr, effort.matching, effort.matched_pictures, advance)
    return adaptive.learned_inverse(scene, defense, snr, name == "learned", effort.learned_steps, advance)


def play(scene: Scene, name: str, defense: str, snr: float, effort: Effort) -> list[Played]:
    """A game under one defence. The distinguishing pairs share one error rate: each is played at level 1 - 0.05 / pairs."""
    if name == "which":
        guess = adaptive.play_which(scene, defense, snr)
        rates = (("top-1", guess.top1, guess.chance), ("true positives at 1 % false", guess.tpr_at_1_percent, 0.01))
        return [Played(label, rate.value, rate.low, rate.high, rate.n, chance) for label, rate, chance in rates]
    if name == "link":
        found = {"same picture?": adaptive.play_link(scene, defense, snr, 0.95)}
    else:
        found = adaptive.play_distinguish(scene, defense, snr, effort.trials, 1 - 0.05 / 7)
    return [Played(label, game.auc.value, game.auc.low, game.auc.high, len(game.scores), 0.5) for label, game in found.items()]


def beats(answers: Answers, floor: Answers) -> metrics.Mean:
    """PSNR above the mean picture in dB, paired over the same pictures, with its 95 % interval."""
    return metrics.mean(answers.psnr - floor.psnr[: len(answers.psnr)])


def picture_control(name: str, answers: dict[str, Answers], floor: Answers) -> bool:
    """Whether the attack won where it must; ``answers`` of one attack at one SNR by defence."""
    control = answers.get(PICTURES[name])
    if control is None:
        return False
    gain = beats(control, floor)
    return gain.half_width is not None and gain.value - gain.half_width > CLEAR_WIN_DB


def game_control(name: str, played: dict[str, list[Played]]) -> bool:
    """The same for a game: nearly always right where it must be."""
    control = played.get(GAMES[name])
    return control is not None and all(game.value >= CLEAR_WIN_RATE for game in control)


def verdict(gain: metrics.Mean) -> str:
    """ "sees" when the attack beats the mean picture beyond the interval, "nothing" when it does not, "open" between."""
    if gain.half_width is None:
        return "open"
    if gain.value - gain.half_width > 0:
        return "sees"
    return "nothing" if gain.value + gain.half_width <= 0 else "open"
