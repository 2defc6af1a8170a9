"""Integrity: what Bob sees of frames that Eve changed without the key, under each defence.

    latent    she knows what is sent: its symbols are taken away, and those of her target put in their place
    shift     she does not: those of her target are added, less the mean symbols of her images
    replay    the first half of a frame is that of one that carried her target, recorded under the same key
    gain      a frame comes at half its amplitude

Her targets are images of hers, another for each frame, dealt by the seed. A gain is the same before and behind any linear map:
no defence of this table can keep it from arriving, unless Bob refuses the frame.
"""

import dataclasses
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from semseal.runtime import metrics
from semseal.runtime.attacks import ordering, tampering
from semseal.runtime.audit.results import GameResult
from semseal.runtime.audit.roworder import has_schemes, row_model
from semseal.runtime.audit.scene import Images, Rows, Scene, Symbols
from semseal.runtime.defense.defenses import BY_NAME, Defense
from semseal.runtime.link import Frame

GAIN = np.float32(0.5)
DRAW = 90  # the first of the numbers of its draws of noise


def play(scene: Scene, defense: Defense, snr_db: float) -> tuple[GameResult, ...]:
    """A game for each kind of change."""
    targets = scene.attacker_images[_chosen(scene)]
    hers, sent = _clean(scene)
    shift = np.broadcast_to(scene.attacker_rows.mean(axis=0), hers.shape)

    def latent(frames: Symbols, received: Rows) -> Symbols:
        places = [tampering.find_known(*group) for group in zip(_grouped(sent, defense), received, strict=True)]
        return _added(frames, hers - sent, places, defense)

    def shifted(frames: Symbols, received: Rows) -> Symbols:
        return _added(frames, hers - shift, [_ordered(scene, rows, defense, snr_db) for rows in received], defense)

    results = []
    for i, (name, change) in enumerate((("latent", latent), ("shift", shifted))):
        frames = scene.send(scene.images, defense)
        on_air = np.stack([frame.symbols for frame in frames])
        rows = scene.add_noise(on_air, snr_db, DRAW + i)[:, : scene.bundle.n_symbols].copy().view(np.float32)
        received = rows.reshape(len(frames) // defense.streams, -1, scene.row_shape[1])
        results.append(_toward(name, scene, targets, _changed(frames, change(on_air, received)), defense, DRAW + 10 + i))
    frames, earlier = scene.send(scene.images, defense), scene.send(targets, defense)
    hers_now, on_air = (np.stack([frame.symbols for frame in part]) for part in (earlier, frames))
    h, r = scene.row_shape
    part = h // 2 * r // 2 if frames[0].symbols.size == scene.bundle.n_symbols else frames[0].symbols.size // 2
    replayed = _changed(frames, tampering.replay_part(on_air, hers_now, part))
    height = scene.bundle.height * (h // 2) // h
    results.append(_toward("replay", scene, targets, replayed, defense, DRAW + 12, height))
    return *results, _gain(scene, defense)


def _gain(scene: Scene, defense: Defense) -> GameResult:
    """How much closer, in dB, Bob's picture is to what a fainter frame gives without a defence than an unchanged one would be.

    A frame that he refuses counts as unchanged.
    """
    unchanged, wanted = _without_a_defence(scene)
    seen, taken = scene.bob_sees(_fainter(scene.send(scene.images, defense)), defense, DRAW + 15)
    closer = np.where(taken, metrics.psnr(wanted, seen) - metrics.psnr(wanted, unchanged), 0.0)
    return _result("gain", closer, scene.images, seen, taken)


@lru_cache(maxsize=1)  # of one scene, under every defence
def _clean(scene: Scene) -> tuple[Rows, Rows]:
    """The rows of Eve's targets, and of what is sent."""
    sent = scene.clean_rows(scene.images)
    return scene.attacker_rows[_chosen(scene)], sent


def _chosen(scene: Scene) -> NDArray[np.integer]:
    """Which image of hers is the target of each frame: in an order of its own.

    Where both come in the order of their classes, a picture and its target would be alike before anything is changed.
    """
    order = np.random.default_rng([scene.settings.seed, DRAW]).permutation(len(scene.attacker_images))
    return order[np.arange(len(scene.images)) % len(order)]


@lru_cache(maxsize=1)
def _without_a_defence(scene: Scene) -> tuple[Images, Images]:
    """What Bob sees of unchanged frames, and of fainter ones."""
    plain = BY_NAME["none"]
    frames = scene.send(scene.images, plain)
    unchanged, _ = scene.bob_sees(frames, plain, DRAW + 13)
    wanted, _ = scene.bob_sees(_fainter(scene.send(scene.images, plain)), plain, DRAW + 14)
    return unchanged, wanted


def _fainter(frames: list[Frame]) -> list[Frame]:
    return [dataclasses.replace(frame, symbols=frame.symbols * GAIN) for frame in frames]


def _toward(
    name: str, scene: Scene, targets: Images, frames: list[Frame], defense: Defense, draw: int, height: int | None = None
) -> GameResult:
    """The matching advantage of what Bob sees of the frames to the targets, in their first ``height`` rows of pixels."""
    seen, taken = scene.bob_sees(frames, defense, draw)
    scores = metrics.psnr_of_all(targets[:, :, :height], seen[:, :, :height])
    return _result(name, metrics.matching_advantage(scores), scene.images, seen, taken)


def _result(name: str, values: NDArray[np.float64], sent: Images, seen: Images, taken: NDArray[np.bool_]) -> GameResult:
    values = values.round(6)  # as of one answer to everything, which has rounding errors only
    found = metrics.mean(values)
    half, picture = found.half_width or 0.0, metrics.mean(metrics.psnr(sent, seen)).value
    note = f"{(~taken).sum()} of {len(taken)} frames refused; what Bob sees has {picture:.1f} dB to what was sent"
    return GameResult(
        name, found.value, found.value - half, found.value + half, found.n, 0.0, "dB", metrics.p_value_of_mean(values), note
    )


def _grouped(rows: Rows, defense: Defense) -> Rows:
    return rows.reshape(-1, defense.streams, *rows.shape[1:])


def _ordered(scene: Scene, rows: Rows, defense: Defense, snr_db: float) -> ordering.Order:
    """Where the rows [streams * h, r] of a group are, by their order where a defence moves them; else where they were."""
    if has_schemes(defense):
        return ordering.order(row_model(scene, scene.combined_db(snr_db)), rows, defense.streams)
    return np.arange(len(rows)).reshape(defense.streams, -1)


def _added(frames: Symbols, change: Rows, places: list[ordering.Order], defense: Defense) -> Symbols:
    groups = zip(frames.reshape(-1, defense.streams, frames.shape[1]), _grouped(change, defense), places, strict=True)
    return np.concatenate([tampering.add(*group) for group in groups])


def _changed(frames: list[Frame], symbols: Symbols) -> list[Frame]:
    return [dataclasses.replace(frame, symbols=changed) for frame, changed in zip(frames, symbols, strict=True)]
