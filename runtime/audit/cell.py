"""One cell of an audit: Eve attacks what a deployed transmitter sent, and is scored. A file keeps it.

pictures: PSNR and SSIM of every answer, and how much it tells      games: how often Eve is right, with exact bounds
"""

import dataclasses
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from semseal.runtime import metrics
from semseal.runtime.attacks import blackbox, whitebox
from semseal.runtime.audit import attacks as adaptive
from semseal.runtime.audit.matrix import GAMES, Cell, Settings
from semseal.runtime.audit.scene import Images, Scene
from semseal.runtime.audit.surrogate import Surrogate
from semseal.runtime.bundle import Bundle
from semseal.runtime.files import write_atomically

SHOWN = 4  # pictures of each cell that are kept

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Answers:
    """Per-picture PSNR in dB and SSIM, float64 [n], and the first answers, float32 [SHOWN, 3, height, width].

    ``nearer``, float64 [n], of pairs under substitution [n / 2]: how many dB an answer is nearer to the picture that was sent
    than to the others, beyond what any answer is to any picture. Its mean is 0 for an Eve who saw nothing, however good her
    guess.
    """

    psnr: NDArray[np.float64]
    ssim: NDArray[np.float64]
    nearer: NDArray[np.float64]
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


class Ground:
    """One bundle at one precision, the pictures that are sent, and those that Eve owns: where attacks are measured."""

    def __init__(
        self,
        bundle: Bundle,
        images: Images,
        own: Images,
        settings: Settings,
        precision: str = "fp32",
        threads: int | None = None,
    ) -> None:
        """``threads`` limits those of the engines (None: all cores)."""
        self.bundle, self.images, self.own, self.settings = bundle, images, own, settings
        self.scene = Scene(bundle, images, own, precision, settings.seed, threads)

    @cached_property
    def surrogate(self) -> Surrogate:
        """The transmitter for the white-box attacks. Raises GraphError."""
        return Surrogate(self.bundle.graph("transmitter", self.scene.precision))

    def answer(self, cell: Cell, advance: Advance = lambda image_steps: None) -> Images:
        """The pictures of Bob or of an Eve, [n, 3, height, width], n at most that of the images."""
        scene, settings, defense = self.scene, self.settings, cell.defense
        if cell.attack == "mean picture":
            return np.broadcast_to(self.own.mean(axis=0), self.images.shape).astype(np.float32)
        if cell.attack == "bob":
            return scene.bob(defense)
        assert cell.eve_snr is not None
        snr, few = cell.eve_snr, settings.optimised_pictures
        if cell.attack == "white-box":
            return self._white_box(defense, snr, advance)
        if cell.attack == "black-box":
            return self._black_box(defense, snr, advance)
        if cell.attack == "row matching":
            return adaptive.row_matching(scene, self.surrogate, defense, snr, settings.matching, few, advance)
        if cell.attack in ("learned", "set inverse"):
            ordered = cell.attack == "learned"
            return adaptive.learned_inverse(scene, defense, snr, ordered, settings.learned_steps, advance)
        return {
            "no key": adaptive.no_key,
            "row ordering": adaptive.row_ordering,
            "brute force": adaptive.brute_force,
            "reused V": adaptive.reused_scheme,
            "reused stream": adaptive.reused_stream,
            "four packets": adaptive.four_packets,
        }[cell.attack](scene, defense, snr)

    def play(self, cell: Cell) -> list[Played]:
        """A game. The seven distinguishing pairs share one error rate, so the bounds of each are at 1 - 0.05 / 7."""
        scene, defense, snr = self.scene, cell.defense, cell.eve_snr
        assert snr is not None
        if cell.attack == "which":
            guess = adaptive.play_which(scene, defense, snr)
            rates = (("top-1", guess.top1, guess.chance), ("true positives at 1 % false", guess.tpr_at_1_percent, 0.01))
            return [Played(label, rate.value, rate.low, rate.high, rate.n, chance) for label, rate, chance in rates]
        if cell.attack == "link":
            found = {"same picture?": adaptive.play_link(scene, defense, snr, 0.95)}
        else:
            found = adaptive.play_distinguish(scene, defense, snr, self.settings.trials, 1 - 0.05 / 7)
        return [
            Played(name, game.auc.value, game.auc.low, game.auc.high, len(game.scores), 0.5) for name, game in found.items()
        ]

    def _white_box(self, defense: str, snr: float, advance: Advance) -> Images:
        heard = self.scene.heard(self.images[: self.settings.optimised_pictures], defense, snr, 1)
        # half way to grey: from the plain mean, as from black, a few pictures do not get away
        start, settings = (self.own.mean(axis=0) + np.float32(0.5)) / 2, self.settings.whitebox
        return whitebox.invert(self.surrogate, heard, start, self.bundle.h, settings, advance=advance)

    def _black_box(self, defense: str, snr: float, advance: Advance) -> Images:
        model, seed = self.bundle.manifest["model"], self.settings.seed
        network = blackbox.new_network(model["h"], model["w"], model["c"], self.bundle.height, self.bundle.width, seed)
        practice = self.scene.heard(self.own, defense, snr, 2)
        blackbox.train_inverse(network, practice, self.own, steps=self.settings.blackbox_steps, seed=seed, advance=advance)
        return blackbox.invert(network, self.scene.heard(self.images, defense, snr, 1))


def measure(ground: Ground, cell: Cell, file: Path, advance: Advance = lambda image_steps: None) -> None:
    """Measure a cell and write its file, unless it is there. Raises GraphError in a white-box cell."""
    if file.exists():
        return
    if cell.attack in GAMES:
        write_atomically(file, json.dumps([dataclasses.asdict(game) for game in ground.play(cell)]).encode())
        return
    pictures = ground.answer(cell, advance)
    sent = ground.images[: len(pictures)]
    shown = np.round(pictures[:SHOWN].clip(0, 1) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        psnr=metrics.psnr(sent, pictures),
        ssim=metrics.ssim(sent, pictures),
        nearer=nearer(sent, pictures, ground.scene.streams(cell.defense)),
        shown=shown,
    )
    write_atomically(file, buffer.getvalue())


def nearer(sent: Images, answers: Images, streams: int) -> NDArray[np.float64]:
    """``Answers.nearer`` of pictures [n, 3, height, width], 6 or more.

    With two ``streams`` a pair of answers is scored in its better order against every pair, as an Eve who cannot tell which of
    her two answers is which would be against the right one.
    """
    scores = metrics.psnr_of_all(sent, answers)
    if streams == 2:
        half = len(sent) // 2
        pairs = scores.reshape(half, 2, half, 2)
        scores = np.maximum(pairs[:, 0, :, 0] + pairs[:, 1, :, 1], pairs[:, 0, :, 1] + pairs[:, 1, :, 0]) / 2
    return metrics.matching_advantage(scores)


def read_answers(file: Path) -> Answers:
    with np.load(file) as kept:
        return Answers(kept["psnr"], kept["ssim"], kept["nearer"], kept["shown"].astype(np.float32) / 255)


def read_games(file: Path) -> list[Played]:
    return [Played(**game) for game in json.loads(file.read_text())]
