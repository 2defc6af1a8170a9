"""What leaks to Eves who adapt: every attack of ``attacks/adaptive.py`` against every defence, and whether it can be believed.

    scene x defence x Eve's SNR x attack ── pictures: PSNR, SSIM against Bob and the mean picture
                                        └── games: how often Eve is right, with exact bounds

An attack counts only while its positive control wins: a setting in which it must succeed, on the same pictures, at the same
SNR. Where the control fails or was not measured, its verdict is "void", whatever the other figures are.
"""

import dataclasses
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime import metrics
from semseal.runtime.attacks import adaptive
from semseal.runtime.attacks.surrogate import Surrogate
from semseal.runtime.attacks.whitebox import WhiteBoxSettings
from semseal.runtime.bundle import Bundle
from semseal.runtime.files import write_atomically
from semseal.runtime.scene import Images, Scene

SHOWN = 4  # pictures of each cell that are kept

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
class Plan:
    """What is measured."""

    eve_snrs: tuple[float, ...]
    defenses: tuple[str, ...] = ("none", "permute", "permute+substitute", "mix")
    attacks: tuple[str, ...] = (*PICTURES, *GAMES)
    precisions: tuple[str, ...] = ("fp32",)
    effort: Effort = Effort()
    seed: int = 0


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
    surrogate: Surrogate | None,
    advance: adaptive.Advance = lambda pictures: None,
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


def measure(
    bundle: Bundle,
    images: Images,
    own: Images,
    plan: Plan,
    folder: Path,
    surrogate: Surrogate | None,
    begin: Callable[[str], None] = lambda what: None,
) -> tuple[dict[str, Any], dict[tuple[str, str, float, str], Answers]]:
    """Run or continue the matrix on one bundle: {"rows": pictures, "games": games}, and the answers of every row.

    ``folder`` keeps a file for each cell that is done. ``begin`` is told of every cell before it is measured.
    """
    rows: list[dict[str, Any]] = []
    games: list[dict[str, Any]] = []
    all_answers: dict[tuple[str, str, float, str], Answers] = {}
    for precision in plan.precisions:
        scene = Scene(bundle, images, own, precision, plan.seed)
        floor = _answers(images, np.broadcast_to(own.mean(axis=0), images.shape).astype(np.float32))
        stem = f"main{bundle.snr_db:g}-{precision}"
        bob = {}
        for defense in plan.defenses:
            begin(f"bob, {defense}")
            bob[defense] = _kept(folder / f"bob-{defense}-{stem}.npz", images, scene.bob, defense)
        for snr in plan.eve_snrs:
            where = {"main_snr": bundle.snr_db, "eve_snr": snr, "precision": precision}
            for name in [name for name in plan.attacks if name in PICTURES]:
                if name == "row matching" and surrogate is None:
                    continue
                found = {}
                for defense in [defense for defense in plan.defenses if applies(name, defense)]:
                    begin(f"{name}, {defense}, Eve {snr:g} dB")
                    file = folder / f"{name.replace(' ', '-')}-{defense}-{stem}-eve{snr:g}.npz"
                    found[defense] = _kept(file, images, attack, scene, name, defense, snr, plan.effort, surrogate)
                    all_answers[name, defense, snr, precision] = found[defense]
                won = picture_control(name, found, floor)
                for defense, answers in found.items():
                    gain, behind = paired(answers, floor), paired(bob[defense], answers)
                    psnr, ssim = metrics.mean(answers.psnr), metrics.mean(answers.ssim)
                    rows.append(
                        {"attack": name, "defense": defense, **where, "pictures": psnr.n}
                        | {"psnr": psnr.value, "psnr_95": psnr.half_width, "ssim": ssim.value, "ssim_95": ssim.half_width}
                        | {"above_mean_picture_db": gain.value, "above_mean_picture_95": gain.half_width}
                        | {"below_bob_db": behind.value, "below_bob_95": behind.half_width}
                        | {"control": PICTURES[name], "verdict": verdict(gain) if won else "void"}
                    )
            for name in [name for name in plan.attacks if name in GAMES]:
                played = {}
                for defense in plan.defenses:
                    begin(f"{name}, {defense}, Eve {snr:g} dB")
                    file = folder / f"{name}-{defense}-{stem}-eve{snr:g}.json"
                    if not file.exists():
                        done = [dataclasses.asdict(game) for game in play(scene, name, defense, snr, plan.effort)]
                        write_atomically(file, json.dumps(done).encode())
                    played[defense] = [Played(**game) for game in json.loads(file.read_text())]
                won = game_control(name, played)
                for defense, results in played.items():
                    games += [
                        {"game": name, "defense": defense, **where, **dataclasses.asdict(game)}
                        | {
                            "control": GAMES[name],
                            "verdict": ("sees" if game.low > game.chance else "nothing") if won else "void",
                        }
                        for game in results
                    ]
    return {"rows": rows, "games": games}, all_answers


def _answers(images: Images, pictures: Images) -> Answers:
    sent = images[: len(pictures)]
    return Answers(metrics.psnr(sent, pictures), metrics.ssim(sent, pictures), pictures[:SHOWN].astype(np.float32))


def _kept(file: Path, images: Images, answer: Callable[..., Images], *args: Any) -> Answers:
    """The answers in ``file``, measured first if they are not there."""
    if not file.exists():
        found = _answers(images, answer(*args))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, psnr=found.psnr, ssim=found.ssim, shown=np.round(found.shown * 255).astype(np.uint8))
        write_atomically(file, buffer.getvalue())
    with np.load(file) as kept:
        return Answers(kept["psnr"], kept["ssim"], kept["shown"].astype(np.float32) / 255)


def paired(better: Answers, worse: Answers) -> metrics.Mean:
    """PSNR difference in dB over the same pictures, with its 95 % interval."""
    n = min(len(better.psnr), len(worse.psnr))
    return metrics.mean(better.psnr[:n] - worse.psnr[:n])


def worst_rate(leakage: dict[str, Any]) -> float | None:
    """The headline: the largest upper bound of naming the right one of M pictures, over all defences but ``none``.

    None where the game was not played, and 1 where its control failed: what could not be measured is not safe.
    """
    bounds = [
        1.0 if game["verdict"] == "void" else game["high"]
        for game in leakage["games"]
        if game["game"] == "which" and game["name"] == "top-1" and game["defense"] != "none"
    ]
    return max(bounds) if bounds else None


def picture_control(name: str, answers: dict[str, Answers], floor: Answers) -> bool:
    """Whether the attack won where it must; ``answers`` of one attack at one SNR by defence."""
    control = answers.get(PICTURES[name])
    if control is None:
        return False
    gain = paired(control, floor)
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
