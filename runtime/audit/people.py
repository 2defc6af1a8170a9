"""Identity and attributes: what the data says of each picture, asked of an Eve who received it.

    data ── questions ─┐
    received frames ───┼─ ``semseal.runtime.attacks.attributes`` ── a game for each question: balanced accuracy
    reconstructions ───┘

The reconstructions are the best that is cheap: rows in the order that Eve finds where a defence moves them, and then Bob's
decoder. Under substitution she has two pictures and does not know which is the one that is asked for: she takes the first.
"""

from collections.abc import Callable

import numpy as np
from semseal.runtime import metrics
from semseal.runtime.attacks import attributes, ordering
from semseal.runtime.attacks.attributes import Seen, Truth
from semseal.runtime.attacks.identification import fingerprints
from semseal.runtime.audit.results import GameResult
from semseal.runtime.audit.roworder import has_schemes, row_model
from semseal.runtime.audit.scene import Images, Rows, Scene
from semseal.runtime.audit.taken import answerable
from semseal.runtime.defense.defenses import BY_NAME, Defense

DRAW = 110  # the first of the numbers of its draws of noise
MAX_SIDE = 64  # pixels of a reconstruction, for the probes


def play(scene: Scene, defense: Defense, snr_db: float, advance: Callable[[int], None]) -> tuple[GameResult, ...]:
    """A game for each question of the scene that Eve's images have two answers to."""
    few = min(scene.settings.probe_pictures, len(scene.attacker_images))
    hers = scene.attacker_images[:few]
    truths, sent = {}, {}
    for question in scene.questions:
        classes = {name: i for i, name in enumerate(answerable(question))}
        truth = np.array([classes.get(name, -1) for name in question.of_attackers[:few]], np.int64)
        if len(np.unique(truth[truth >= 0])) < 2:  # of as few of her images as this audit takes
            continue
        truths[question.name] = truth
        sent[question.name] = np.array([classes.get(name, -1) for name in question.of_sent], np.int64)
    if not truths:
        return ()
    practice = _seen(scene, hers, defense, snr_db, True)
    received = _seen(scene, scene.images, defense, snr_db, False)
    settings = scene.settings
    named = attributes.name_classes(practice, truths, received, settings.probe_epochs, settings.seed, advance)
    return tuple(_result(name, sent[name], found) for name, found in named.items())


def _result(name: str, truth: Truth, named: attributes.Named) -> GameResult:
    known = truth >= 0
    found = metrics.balanced_accuracy(truth[known], named.guess[known])
    ways = {way: metrics.mean_share(truth[known], guess[known]) for way, guess in named.ways.items()}
    told = ", ".join(f"{way} {share:.3f}" for way, share in ways.items())
    note = f"{round(1 / found.chance)} classes; {named.way}; {told}"
    return GameResult(name, found.value, found.low, found.high, found.n, found.chance, "balanced", found.p_value, note)


def _seen(scene: Scene, images: Images, defense: Defense, snr_db: float, practises: bool) -> dict[str, Seen]:
    """What Eve has of each picture: its reconstruction and its symbols."""
    rng = np.random.default_rng([scene.settings.seed, DRAW + practises])
    partners = rng.permutation(len(scene.attacker_images))
    key = scene.fresh_key() if practises else None
    packets = scene.packets(images, partners, defense, snr_db, DRAW + practises, key)
    h, w, c = scene.feature_shape
    maps = packets[:, 0, :h].reshape(len(images), h, w, c).transpose(0, 3, 1, 2)
    figures = np.concatenate(list(fingerprints(packets[:, 0]).values()), axis=1)
    symbols = Seen(np.ascontiguousarray(maps), np.nan_to_num(figures))
    pictures = _shrunk(_decoded(scene, packets[:, :, :h], images, defense, snr_db, practises))
    return {"pictures": Seen(pictures, np.empty((len(images), 0))), "symbols": symbols}


def _decoded(scene: Scene, rows: Rows, images: Images, defense: Defense, snr_db: float, practises: bool) -> Images:
    """Reconstructions of packets [n, streams, h, r]. Where rows are moved, Eve practises on rows that were not."""
    plain = BY_NAME["none"]
    if not has_schemes(defense):
        found = rows[:, 0]
    elif practises:
        found = scene.received_rows(images, plain, snr_db, DRAW + 2)[:, 0]
    else:
        model, pools = row_model(scene, scene.combined_db(snr_db)), rows.reshape(len(rows), -1, rows.shape[3])
        found = np.stack([ordering.arrange(pool, ordering.order(model, pool, defense.streams)[:1])[0] for pool in pools])
    if practises and scene.knows_scales(defense):
        scales = scene.attacker_scales[: len(images)]
    else:
        scales = scene.known_scales(defense)[np.arange(len(images)) % len(scene.images)]  # where she knows none, all are one
    return scene.decode(found, scales, scene.told_db(defense, snr_db))


def _shrunk(pictures: Images) -> Images:
    """Of MAX_SIDE pixels at most, each the mean of those that it stands for."""
    height, width = pictures.shape[2:]
    for axis, size in ((2, height), (3, width)):
        if size > MAX_SIDE:
            starts = np.linspace(0, size, MAX_SIDE, endpoint=False).astype(int)
            sizes = np.diff([*starts, size]).reshape([-1 if i == axis else 1 for i in range(4)])
            pictures = (np.add.reduceat(pictures, starts, axis=axis) / sizes).astype(np.float32)
    return pictures
