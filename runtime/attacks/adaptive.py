"""Eves who know the defence, on a scene: each takes what she hears to pictures, or to a score in a game.

no key         Bob's decoder on what was heard, as it is
row ordering   ``ordering``: rows put back by likeness                     the paper's modes fall to it
brute force    ``bruteforce``: the scheme sets are known, the key is not
learned        ``learned``: a U-Net trained on the defence under random keys, rows as they come
set inverse    ``learned``: the same behind an encoder that does not depend on the order of rows
row matching   ``rowmatching``: white-box, from that order on rows matched inside the optimisation
reused V       ``reuse``: one known pair under the V of the others; semseal never sends that
reused stream  ``reuse``: 64 known packets under the orthogonal map of the others; semseal never sends that
four packets   ``accumulate``: each picture is sent four times, under fresh schemes

which          ``which``: one of M known pictures
distinguish    ``distinguish``: one of two chosen pictures
link           ``distinguish``: do two packets show the same picture?
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from semseal.runtime.attacks import accumulate, bruteforce, learned, ordering, reuse, rowmatching
from semseal.runtime.attacks.distinguish import Game, chosen_pairs, distinguish, link
from semseal.runtime.attacks.surrogate import Surrogate
from semseal.runtime.attacks.which import Guess, learn, which
from semseal.runtime.attacks.whitebox import WhiteBoxSettings
from semseal.runtime.defense import index, mix
from semseal.runtime.defense.keys import generate_key
from semseal.runtime.defense.schemes import scheme_sets
from semseal.runtime.scene import Images, Rows, Scene

REPEATS = 4
KNOWN_PACKETS = 64  # under a reused key stream
TRIALS_EACH = 5  # packets of each picture: with 200 in all, one lucky guess would already pass 2.5 %

Advance = Callable[[int], None]


def no_key(scene: Scene, defense: str, snr: float) -> Images:
    heard = scene.hear(scene.images, defense, snr, 1)
    return scene.decode(heard.reshape(-1, *heard.shape[2:]))


def row_ordering(scene: Scene, defense: str, snr: float) -> Images:
    heard = scene.hear(scene.images, defense, snr, 1)
    return _ordered(scene, _likeness(scene, snr), heard)


def _ordered(scene: Scene, likeness: ordering.Likeness, heard: Rows) -> Images:
    return scene.best_order(scene.decode(_in_order(likeness, heard)), heard.shape[1])


def _in_order(likeness: ordering.Likeness, heard: Rows) -> Rows:
    """The rows [groups * streams, h, r] of every group by likeness."""
    groups, streams, h, r = heard.shape
    pools = heard.reshape(groups, streams * h, r)
    return np.concatenate([ordering.arrange(pool, ordering.order(likeness, pool, streams)) for pool in pools])


@lru_cache(maxsize=2)  # of one packet and of four; a scene is large, so no more are held
def _likeness(scene: Scene, snr: float) -> ordering.Likeness:
    return ordering.fit(scene.own_rows, snr)


def brute_force(scene: Scene, defense: str, snr: float) -> Images:
    """Eve has the sets of Alice's key, not V."""
    heard = scene.hear(scene.images, defense, snr, 1)
    sets = scheme_sets(scene.key, scene.bundle.h)
    permutations = sets.permutations if "permute" in defense else index.identity(scene.bundle.h)[None]
    swapped = sets.swapped if "substitute" in defense else None
    rows = []
    for group in heard:
        found = bruteforce.search(_likeness(scene, snr), list(group), permutations, swapped)
        rows.append(ordering.arrange(group.reshape(-1, group.shape[2]), found.order))
    return scene.decode(np.concatenate(rows))


def row_matching(
    scene: Scene, surrogate: Surrogate, defense: str, snr: float, settings: WhiteBoxSettings, pictures: int, advance: Advance
) -> Images:
    heard = scene.hear(scene.images[:pictures], defense, snr, 1)
    streams = heard.shape[1]
    rows = _in_order(_likeness(scene, snr), heard).reshape(heard.shape)
    found = rowmatching.invert(surrogate, rows, scene.own.mean(axis=0), settings, settings.steps // 3, advance=advance)
    return scene.best_order(found.reshape(-1, *found.shape[2:]), streams)


def learned_inverse(scene: Scene, defense: str, snr: float, ordered: bool, steps: int, advance: Advance) -> Images:
    """Trained on a frame, with that of its pair if rows are swapped, and asked for the pictures behind them."""
    bundle, streams = scene.bundle, scene.streams(defense)
    model = bundle.manifest["model"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(scene.seed)
        network = learned.Inverse(streams, model["h"], model["w"], model["c"], bundle.height, bundle.width, ordered)
    learned.train(network, _simulate(scene, defense, snr), scene.own, steps=steps, seed=scene.seed, advance=advance)
    heard = scene.hear(scene.images, defense, snr, 1)
    found = learned.invert(network, heard)
    return scene.best_order(found.reshape(-1, *found.shape[2:]), streams)


def four_packets(scene: Scene, defense: str, snr: float) -> Images:
    """Each picture is sent four times under fresh schemes; Eve averages before she orders."""
    packets = np.stack([scene.hear(scene.images, defense, snr, 10 + k) for k in range(REPEATS)], axis=1)
    groups, repeats, streams, h, r = packets.shape
    one, four = _likeness(scene, snr), _likeness(scene, snr + accumulate.gained(REPEATS))
    mean = np.stack([accumulate.average(one, group.reshape(repeats, streams * h, r)) for group in packets])
    return _ordered(scene, four, mean.reshape(groups, streams, h, r))


def play_which(scene: Scene, defense: str, snr: float) -> Guess:
    """Every picture is sent five times, each time with another partner, one of Eve's, if rows are swapped; both are heard."""
    partners = np.arange(len(scene.own))[::-1]
    practice = _packets(scene, scene.own, partners, defense, snr, 20, generate_key())
    eve = learn(scene.own_rows, practice, np.arange(len(scene.own)))
    rng = np.random.default_rng([scene.seed, 21])
    packets = [
        _packets(scene, scene.images, rng.permutation(len(scene.own)), defense, snr, 60 + k, None) for k in range(TRIALS_EACH)
    ]
    truth = np.tile(np.arange(len(scene.images)), TRIALS_EACH)
    return which(eve, scene.clean(scene.images), np.concatenate(packets), truth)


def play_distinguish(scene: Scene, defense: str, snr: float, trials: int, level: float) -> dict[str, Game]:
    """For every pair of ``chosen_pairs``: half of the trials carry either picture."""
    truth = np.arange(trials) % 2
    rng = np.random.default_rng([scene.seed, 22])
    played = {}
    for i, (name, pair) in enumerate(chosen_pairs(scene.images[0], scene.images[1]).items()):
        practice, packets = (
            _packets(scene, pair[truth], rng.integers(len(scene.own), size=trials), defense, snr, 30 + 2 * i + k, key)
            for k, key in enumerate((generate_key(), None))
        )
        played[name] = distinguish(scene.clean(pair), practice, truth, packets, truth, level)
    return played


def play_link(scene: Scene, defense: str, snr: float, level: float) -> Game:
    """Half of the trials show one picture twice; one stream of either packet is heard, each with a partner of its own."""

    def trials(images: Images, stream: int, key: bytes | None, times: int) -> tuple[Rows, NDArray[np.integer]]:
        rng = np.random.default_rng([scene.seed, stream])
        heard, answers = [], []
        for k in range(times):
            # every time another picture beside it, and the other answer: no picture stands for one
            same = (np.arange(len(images)) + k) % 2
            other = np.roll(images, 1 + k % (len(images) - 1), axis=0)
            pair = images, np.where(same[:, None, None, None] == 1, images, other)
            partners = [rng.permutation(len(scene.own)) for _ in pair]
            packets = [
                _packets(scene, pictures, partner, defense, snr, stream + 2 * k + i, key)[:, 0]
                for i, (pictures, partner) in enumerate(zip(pair, partners, strict=True))
            ]
            heard.append(np.stack(packets, axis=1))
            answers.append(same)
        return np.concatenate(heard), np.concatenate(answers)

    practice, packets = trials(scene.own, 50, generate_key(), 1), trials(scene.images, 70, None, TRIALS_EACH)
    return link(*practice, *packets, level)


def _packets(
    scene: Scene, images: Images, partners: NDArray[np.integer], defense: str, snr: float, stream: int, key: bytes | None
) -> Rows:
    """One packet for each image, float32 [n, streams, h, r]: its own frame first, then that of a partner, one of Eve's."""
    if scene.streams(defense) == 1:
        return scene.hear(images, defense, snr, stream, key)
    both = np.stack([images, scene.own[np.resize(partners, len(images))]], axis=1).reshape(-1, *images.shape[1:])
    return scene.hear(both, defense, snr, stream, key)


def reused_scheme(scene: Scene, defense: str, snr: float) -> Images:
    """All packets share one V, and Eve knows the pictures of the first pair, two of hers."""
    streams, (h, r) = scene.streams(defense), scene.rows
    clean = np.concatenate([scene.clean(scene.own[:2]), scene.clean(scene.images)])
    pools = _under_one_key(scene, defense, clean, snr).reshape(-1, streams * h, r)
    places = reuse.find_places(clean[:streams].reshape(1, streams * h, r), pools[:1])
    return scene.decode(pools[:, places].reshape(clean.shape)[2:])


def reused_stream(scene: Scene, defense: str, snr: float) -> Images:
    """All packets share one key stream, and Eve knows the pictures of the first 64, some of hers."""
    own = scene.own_rows.reshape(len(scene.own), -1)
    known = min(KNOWN_PACKETS, len(own) // 4 * 2)
    clean = scene.clean(scene.images)
    heard = _under_one_key(scene, defense, np.concatenate([scene.own_rows[:known], clean]), snr)
    rows = reuse.unmix(own[known:], own[:known], heard[:known], heard[known:], snr)
    return scene.decode(rows.reshape(clean.shape))


def _under_one_key(scene: Scene, defense: str, clean: Rows, snr: float) -> NDArray[np.float32]:
    """What Eve hears of clean rows [n, h, r], n even, under one V or key stream: [n, N].

    Alice's transmitter refuses to do that, so it is done here.
    """
    n, h, r = clean.shape
    if defense == "mix":
        keys = mix.derive_keys(scene.key, bytes(mix.SESSION_SIZE), [0], scene.bundle.digest, h * r)
        same = mix.stack_keys([keys] * n)
        on_air = mix.mix(clean.reshape(n, -1), same)
    else:
        on_air = index.gather(clean.reshape(n * h, r), _one_scheme(scene, defense, n)).reshape(n, -1)
    return scene.through(np.ascontiguousarray(on_air).view(np.complex64), snr, 3).view(np.float32)


def _one_scheme(scene: Scene, defense: str, n: int) -> NDArray[np.int32]:
    """The first p and s of the sets for every pair, as an index [n, h] of absolute rows."""
    h, places = scene.bundle.h, np.arange(n)
    sets = scheme_sets(scene.key, h)
    permutation = sets.permutations[0] if "permute" in defense else index.identity(h)
    swapped = sets.swapped[0] if "substitute" in defense else np.zeros(h, bool)
    table = index.compose(permutation, swapped, permutation)
    return index.spread(np.tile(table, (n, 1)), places, places ^ 1)


def _simulate(scene: Scene, defense: str, snr: float) -> learned.Simulate:
    """Eve's practice for the learned inverses: clean rows of hers, of two pictures where rows are swapped, under a random
    scheme, with her noise.

    The draws need not be secret, only fresh.
    """
    own = scene.own_rows
    sigma = np.float32(np.sqrt(10 ** (-snr / 10) / 2))

    def draw(chosen: NDArray[np.integer], rng: np.random.Generator) -> Rows:
        frames = [own[places] for places in chosen.T]
        batch, h, _ = frames[0].shape
        if "permute" in defense:
            frames = [np.take_along_axis(rows, _permutations(rng, batch, h)[:, :, None], 1) for rows in frames]
        if "substitute" in defense:
            swapped = (_permutations(rng, batch, h) < h // 2)[:, :, None]
            one, two = frames
            frames = [np.where(swapped, two, one), np.where(swapped, one, two)]
        if defense == "mix":
            rows = frames[0].reshape(batch, -1)
            keys = mix.derive_keys(rng.bytes(32), bytes(mix.SESSION_SIZE), range(batch), scene.bundle.digest, rows.shape[1])
            frames = [mix.mix(rows, keys)[:, : rows.shape[1]].reshape(frames[0].shape)]
        on_air = np.stack(frames, axis=1)
        return on_air + sigma * rng.standard_normal(on_air.shape, np.float32)

    return draw


def _permutations(rng: np.random.Generator, batch: int, h: int) -> NDArray[Any]:
    return rng.permuted(np.tile(np.arange(h), (batch, 1)), axis=1)
