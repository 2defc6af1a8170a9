"""The games of the table of attacks: from a scene to how often Eve is right.

A game sends each picture, or each chosen pair, several times, every time under a fresh key and beside another picture if rows
are swapped; Eve has practised under keys of her own.
"""

import math

import numpy as np
from numpy.typing import NDArray
from semseal.runtime import metrics
from semseal.runtime.attacks import distinguishing as chosen
from semseal.runtime.attacks import identification as naming
from semseal.runtime.audit.results import GameResult
from semseal.runtime.audit.scene import Images, Rows, Scene
from semseal.runtime.audit.settings import Advance, Cell, snr_of
from semseal.runtime.defense.defenses import BY_NAME as DEFENSES
from semseal.runtime.defense.defenses import Defense

TRIALS_EACH = 5  # packets of each picture: with 200 in all, one lucky guess would already pass 2.5 %
PAIRS = 7  # of ``chosen_pairs``, for the cost


def identification(scene: Scene, cell: Cell, _: Advance) -> tuple[GameResult, ...]:
    return _identify(scene, DEFENSES[cell.defense], snr_of(cell))


def stored_frame(scene: Scene, cell: Cell, _: Advance) -> tuple[GameResult, ...]:
    return _identify(scene, DEFENSES[cell.defense], math.inf)


def _identify(scene: Scene, defense: Defense, snr: float) -> tuple[GameResult, ...]:
    """Every picture is sent five times, each time beside another of Eve's if rows are swapped; she receives both frames."""
    mine = scene.attacker_images
    practice = scene.packets(mine, np.arange(len(mine))[::-1], defense, snr, 20, scene.fresh_key())
    eve = naming.learn(scene.attacker_rows, practice, np.arange(len(mine)))
    rng = np.random.default_rng([scene.settings.seed, 21])
    packets = [scene.packets(scene.images, rng.permutation(len(mine)), defense, snr, 60 + k) for k in range(TRIALS_EACH)]
    truth = np.tile(np.arange(len(scene.images)), TRIALS_EACH)
    guess = naming.identify(eve, scene.clean_rows(scene.images), np.concatenate(packets), truth)
    rates = (("top-1", guess.top1, guess.chance), ("true positives at 1 % false", guess.tpr_at_1_percent, 0.01))
    return tuple(GameResult(name, rate.value, rate.low, rate.high, rate.n, chance, "rate") for name, rate, chance in rates)


def leaked_scale(scene: Scene, cell: Cell, _: Advance) -> tuple[GameResult, ...]:
    """Whatever the defence is, she names the picture whose scale is nearest to that of the packet."""
    sent = np.log(scene.scales)
    distances = np.abs(sent[:, None] - sent)
    distances += 1e-9 * np.random.default_rng([scene.settings.seed, 23]).random(distances.shape)  # of equal ones any
    rate = metrics.proportion(int((distances.argmin(axis=1) == np.arange(len(sent))).sum()), len(sent))
    return (GameResult("top-1", rate.value, rate.low, rate.high, rate.n, 1 / len(sent), "rate"),)


def linkability(scene: Scene, cell: Cell, _: Advance) -> tuple[GameResult, ...]:
    """Half of the trials show one picture twice; Eve receives one stream of either packet, each with a partner of its own."""
    defense, snr = DEFENSES[cell.defense], snr_of(cell)

    def trials(images: Images, first_draw: int, key: bytes | None, times: int) -> tuple[Rows, NDArray[np.integer]]:
        rng = np.random.default_rng([scene.settings.seed, first_draw])
        received, answers = [], []
        for k in range(times):
            # every time another picture beside it, and the other answer: no picture stands for one
            same = (np.arange(len(images)) + k) % 2
            other = np.roll(images, 1 + k % (len(images) - 1), axis=0)
            pair = images, np.where(same[:, None, None, None] == 1, images, other)
            partners = [rng.permutation(len(scene.attacker_images)) for _ in pair]
            packets = [
                scene.packets(pictures, partner, defense, snr, first_draw + 2 * k + i, key)[:, 0]
                for i, (pictures, partner) in enumerate(zip(pair, partners, strict=True))
            ]
            received.append(np.stack(packets, axis=1))
            answers.append(same)
        return np.concatenate(received), np.concatenate(answers)

    practice = trials(scene.attacker_images, 50, scene.fresh_key(), 1)
    game = chosen.linkability(*practice, *trials(scene.images, 70, None, TRIALS_EACH), 0.95)
    return (GameResult("same picture?", game.auc.value, game.auc.low, game.auc.high, len(game.scores), 0.5, "area"),)


def distinguishing(scene: Scene, cell: Cell, _: Advance) -> tuple[GameResult, ...]:
    """Half of the trials of each of ``chosen_pairs`` carry either picture; all bounds together err in 5 % of cases."""
    defense, snr, trials = DEFENSES[cell.defense], snr_of(cell), scene.settings.trials
    truth = np.arange(trials) % 2
    rng = np.random.default_rng([scene.settings.seed, 22])
    results = []
    pairs = chosen.chosen_pairs(scene.images[0], scene.images[1])
    for i, (name, pair) in enumerate(pairs.items()):
        practice, packets = (
            scene.packets(pair[truth], rng.integers(len(scene.attacker_images), size=trials), defense, snr, 30 + 2 * i + k, key)
            for k, key in enumerate((scene.fresh_key(), None))
        )
        game = chosen.distinguish(scene.clean_rows(pair), practice, truth, packets, truth, 1 - 0.05 / len(pairs))
        results.append(GameResult(name, game.auc.value, game.auc.low, game.auc.high, len(game.scores), 0.5, "area"))
    return tuple(results)
