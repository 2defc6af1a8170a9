"""What a generative Eve takes of a scene: a model of pictures that all her cells share, and rows in order.

    attacker's images ── prior, once in an audit ───────────────────────────┬─ guided by the transmitter ── generative
    received ── rows in order, where a scheme has moved them ── symbols ────┤
    attacker's images, sent ── a model given symbols, once for each kind ───┴─ a few steps, averaged ── generative-black-box

Rows that a scheme has moved she puts back in order first (``roworder``): what is left to invert is a link without a defence.
Under a defence that hides all symbols she takes them as they come; there the second model practises on the defence itself.
"""

import dataclasses
import hashlib

import numpy as np
from semseal.runtime.attacks import flow, generative
from semseal.runtime.audit.networks import trained
from semseal.runtime.audit.practice import known_db, simulate
from semseal.runtime.audit.roworder import has_schemes, in_order, row_model
from semseal.runtime.audit.scene import Images, Rows, Scene
from semseal.runtime.audit.settings import Advance, Cell, Settings, snr_of
from semseal.runtime.defense.defenses import BY_NAME as DEFENSES
from semseal.runtime.defense.defenses import Defense

# seconds for one picture in one step on two cores; the first and the last for each channel of the first level
TRAIN_S, GUIDED_S, SAMPLE_S = 1e-3, 8e-3, 3e-4


def guided(scene: Scene, cell: Cell, advance: Advance) -> Images:
    """Posterior sampling through the transmitter, of as many pictures as other searches take."""
    defense, settings = DEFENSES[cell.defense], scene.settings
    snr, few = snr_of(cell), scene.images[: settings.optimised_pictures]
    prior = _prior(scene, advance)
    rows = _received(scene, few, defense, snr)
    received = np.ascontiguousarray(rows.reshape(len(few), -1)).view(np.complex64)
    known = scene.bundle.has_scale and scene.knows_scales(defense)
    found = generative.restore(
        prior,
        scene.surrogate if known else scene.surrogate_on_air,
        received,
        known_db(scene, defense, snr),
        scene.bundle.h,
        generative.GuidedSettings(settings.generative_levels, settings.generative_pulls, settings.generative_refined),
        settings.seed,
        advance=lambda pictures: advance(pictures * GUIDED_S),
        scales=scene.scales[: len(few)] if known else None,
    )
    return scene.best_order(found, defense.streams)


def guided_cost(settings: Settings) -> float:
    """The prior is trained once: every cell has a part of it."""
    cells = max(1, len(settings.defenses) * len(settings.eve_snrs))
    prior = TRAIN_S * settings.flow_width * settings.flow_batch * settings.prior_steps / cells
    steps = settings.generative_levels * settings.generative_pulls + settings.generative_refined
    return prior + GUIDED_S * settings.optimised_pictures * steps


def black_box(scene: Scene, cell: Cell, advance: Advance) -> Images:
    """Flow matching given what was received."""
    defense, settings = DEFENSES[cell.defense], scene.settings
    snr, known = snr_of(cell), scene.bundle.has_scale and scene.knows_scales(defense)
    model = _inverse(scene, defense, snr, known, advance)
    rows = _received(scene, scene.images, defense, snr)
    if known:
        rows = rows / scene.scales[:, None, None]
    found = flow.sample(model, _features(scene, rows), len(rows), settings.flow_levels, settings.flow_draws, settings.seed)
    return scene.best_order(found, defense.streams)


def black_box_cost(settings: Settings) -> float:
    """Training in every cell, and sampling."""
    sampling = SAMPLE_S * settings.pictures * settings.flow_levels * settings.flow_draws
    return settings.flow_width * (TRAIN_S * settings.flow_batch * settings.flow_steps + sampling)


def _received(scene: Scene, images: Images, defense: Defense, snr: float) -> Rows:
    """Rows [n, h, r] as they were sent without the defence, as far as they can be put in order."""
    rows = scene.received_rows(images, defense, snr, 1)
    if has_schemes(defense):
        return in_order(row_model(scene, known_db(scene, defense, snr)), rows)
    return rows.reshape(-1, *rows.shape[2:])


def _prior(scene: Scene, advance: Advance) -> flow.Flow:
    """The model of the attacker's images."""
    settings, images = scene.settings, scene.attacker_images
    sizes = flow.FlowSettings(settings.flow_width, settings.prior_steps, settings.flow_batch)
    second = guided_cost(dataclasses.replace(settings, optimised_pictures=0)) / (sizes.steps * sizes.batch)
    return trained(
        scene.networks,
        "prior",
        {"images": _digest(images), "sizes": dataclasses.asdict(sizes), "seed": settings.seed},
        lambda: flow.new_flow(flow.shape_of(*images.shape[2:]), sizes.width, settings.seed),
        lambda model: flow.train(model, images, sizes, settings.seed, advance=lambda pictures: advance(pictures * second)),
    )


def _inverse(scene: Scene, defense: Defense, snr: float, known: bool, advance: Advance) -> flow.Flow:
    """The model of pictures given their rows; the same for all defences whose rows she puts in order."""
    settings, images = scene.settings, scene.attacker_images
    practised = DEFENSES["none"] if has_schemes(defense) else defense
    draw = simulate(scene, practised, snr)

    def given(chosen: np.typing.NDArray[np.integer], rng: np.random.Generator) -> Rows:
        rows = draw(chosen[:, None], rng)[:, 0]
        return _features(scene, rows / scene.attacker_scales[chosen, None, None] if known else rows)

    sizes = flow.FlowSettings(settings.flow_width, settings.flow_steps, settings.flow_batch)
    second = TRAIN_S * settings.flow_width
    return trained(
        scene.networks,
        f"inverse-{practised.name}",
        {
            "images": _digest(images),
            "sizes": dataclasses.asdict(sizes),
            "seed": settings.seed,
            "link": [scene.bundle.digest.hex(), dataclasses.asdict(scene.place), dataclasses.asdict(settings.radio)],
            "practice": [practised.name, str(snr), known],
        },
        lambda: flow.new_flow(
            flow.shape_beside(scene.bundle.height, scene.bundle.width, *scene.feature_shape), sizes.width, settings.seed
        ),
        lambda model: flow.train(
            model, images, sizes, settings.seed, given, advance=lambda pictures: advance(pictures * second)
        ),
    )


def _features(scene: Scene, rows: Rows) -> Rows:
    """Rows [n, h, w * c] as features [n, c, h, w]."""
    h, w, c = scene.feature_shape
    return np.ascontiguousarray(rows.reshape(-1, h, w, c).transpose(0, 3, 1, 2))


def _digest(images: Images) -> str:
    return hashlib.sha256(images.tobytes()).hexdigest()
