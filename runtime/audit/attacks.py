"""The attacks, one row each: what Eve knows, where she must win, and how she gets from a scene to her answer.

A row joins an attack, a function of arrays in ``semseal.runtime.attacks``, with what it takes of the scene. Everything that an
audit, its report and the program say of an attack follows from its row. docs/extending.md adds one.

An attack counts only while its positive control wins: the same attack, pictures and SNRs under a defence that it must break.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from semseal.runtime.attacks import accumulate, blackbox, bruteforce, learned, ordering, reuse, rowmatching, whitebox
from semseal.runtime.audit import games, generative, integrity, people, sidechannel
from semseal.runtime.audit.practice import known_db, schemes_of, simulate, under_one_key
from semseal.runtime.audit.results import GameResult
from semseal.runtime.audit.roworder import has_schemes, in_order, row_model
from semseal.runtime.audit.scene import Images, Rows, Scene
from semseal.runtime.audit.settings import Advance, Cell, Settings, snr_of
from semseal.runtime.defense.defenses import BY_NAME as DEFENSES
from semseal.runtime.defense.defenses import Defense

REPEATS = 4
KNOWN_PACKETS = 64  # under a reused key stream
PICTURE_S = 0.01  # seconds for what is done once a picture; those below are for one picture in one step. On two cores
WHITE_BOX_S, ROW_MATCHING_S, BLACK_BOX_S, LEARNED_S, SET_S, PROBE_S = 5e-3, 6e-3, 2e-3, 12e-3, 15e-3, 1e-3

Answer = Images | tuple[GameResult, ...]


@dataclass(frozen=True)
class Attack:
    """One attack. ``run(scene, cell, advance)`` gives pictures [n, 3, height, width], or a game's results with ``game``.

    ``cost`` estimates the seconds of one cell on two cores, for the time left only. Of a ``misuse`` nothing is held against a
    defence: one key for several packets, which semseal never does.
    """

    name: str
    title: str
    knows: str  # besides the deployed engines, the defence and her SNR
    control: str  # the defence under which it must win
    run: Callable[[Scene, Cell, Advance], Answer]
    cost: Callable[[Settings], float] = lambda settings: PICTURE_S * settings.pictures
    applies: Callable[[Defense], bool] = lambda defense: True
    game: bool = False
    optimised: bool = False  # picture by picture, and so on few of them
    published: bool = False  # the paper's own
    misuse: bool = False
    noiseless: bool = False  # does without Eve's channel, so that one of her SNRs is enough
    recorded: bool = False  # needs no key, no chosen picture and one packet of each, so that it works on a recording
    of_scale: bool = False  # for models whose scale is in the header
    of_classes: bool = False  # for pictures whose classes are known
    of_cpu: bool = False  # for engines on the CPU
    apart: str = ""  # no eavesdropper's: what is said where it sees; no defence falls or holds by it
    invents: bool = False  # whose pictures look convincing even where she learnt nothing

    @property
    def is_judged(self) -> bool:
        """Whether a defence falls or holds by it."""
        return not (self.misuse or self.apart)


# attacks that end in pictures


def _white_box(scene: Scene, cell: Cell, advance: Advance) -> Images:
    few, settings = scene.images[: scene.settings.optimised_pictures], scene.settings.whitebox
    received = scene.received_symbols(few, DEFENSES[cell.defense], snr_of(cell), 1)
    # half way to grey: from the plain mean, as from black, a few pictures do not get away
    start = (scene.mean_picture + np.float32(0.5)) / np.float32(2)
    told = _in_seconds(advance, WHITE_BOX_S)
    if not scene.bundle.has_scale:
        return whitebox.invert(scene.surrogate, received, start, scene.bundle.h, settings, advance=told)
    if not scene.knows_scales(DEFENSES[cell.defense]):
        return whitebox.invert(scene.surrogate_on_air, received, start, scene.bundle.h, settings, advance=told)
    scales = scene.scales[: len(few)]
    return whitebox.invert(scene.surrogate, received, start, scene.bundle.h, settings, advance=told, scales=scales)


def _black_box(scene: Scene, cell: Cell, advance: Advance) -> Images:
    defense, settings = DEFENSES[cell.defense], scene.settings
    network = blackbox.new_network(*scene.feature_shape, scene.bundle.height, scene.bundle.width, settings.seed)
    practice = scene.received_symbols(scene.attacker_images, defense, snr_of(cell), 2)
    received = scene.received_symbols(scene.images, defense, snr_of(cell), 1)
    if scene.knows_scales(defense):  # the network is given them as loud as they were, where Eve knows that
        practice, received = practice / scene.attacker_scales[:, None], received / scene.scales[:, None]
    steps, told = settings.blackbox_steps, _in_seconds(advance, BLACK_BOX_S)
    blackbox.train_inverse(network, practice, scene.attacker_images, steps=steps, seed=settings.seed, advance=told)
    return blackbox.invert(network, received)


def _no_key(scene: Scene, cell: Cell, _: Advance) -> Images:
    received = scene.received_rows(scene.images, DEFENSES[cell.defense], snr_of(cell), 1)
    return _decoded(scene, cell, received.reshape(-1, *received.shape[2:]))


def _row_ordering(scene: Scene, cell: Cell, _: Advance) -> Images:
    received = scene.received_rows(scene.images, DEFENSES[cell.defense], snr_of(cell), 1)
    return _ordered(scene, cell, _row_model(scene, cell), received)


def _brute_force(scene: Scene, cell: Cell, _: Advance) -> Images:
    received = scene.received_rows(scene.images, DEFENSES[cell.defense], snr_of(cell), 1)
    permutations, swapped = schemes_of(scene, DEFENSES[cell.defense])
    model, rows = _row_model(scene, cell), []
    for group in received:
        found = bruteforce.search(model, list(group), permutations, swapped)
        rows.append(ordering.arrange(group.reshape(-1, group.shape[2]), found.order))
    return _decoded(scene, cell, np.concatenate(rows))


def _row_matching(scene: Scene, cell: Cell, advance: Advance) -> Images:
    few, settings = scene.images[: scene.settings.optimised_pictures], scene.settings.matching
    received = scene.received_rows(few, DEFENSES[cell.defense], snr_of(cell), 1)
    rows = in_order(_row_model(scene, cell), received).reshape(received.shape)
    told = _in_seconds(advance, ROW_MATCHING_S)
    found = rowmatching.invert(scene.surrogate_on_air, rows, scene.mean_picture, settings, settings.steps // 3, advance=told)
    return scene.best_order(found.reshape(-1, *found.shape[2:]), received.shape[1])


def _learned_inverse(scene: Scene, cell: Cell, advance: Advance) -> Images:
    return learned_inverse(scene, cell, True, _in_seconds(advance, LEARNED_S))


def _set_inverse(scene: Scene, cell: Cell, advance: Advance) -> Images:
    return learned_inverse(scene, cell, False, _in_seconds(advance, SET_S))


def learned_inverse(scene: Scene, cell: Cell, ordered: bool, advance: Callable[[int], None]) -> Images:
    """Trained on a frame, with that of its pair if rows are swapped, and asked for the pictures behind them."""
    defense, settings = DEFENSES[cell.defense], scene.settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        size = scene.bundle.height, scene.bundle.width
        network = learned.Inverse(defense.streams, *scene.feature_shape, *size, ordered)
    practice = simulate(scene, defense, snr_of(cell))
    steps, seed = settings.learned_steps, settings.seed
    learned.train(network, practice, scene.attacker_images, steps=steps, seed=seed, advance=advance)
    found = learned.invert(network, scene.received_rows(scene.images, defense, snr_of(cell), 1))
    return scene.best_order(found.reshape(-1, *found.shape[2:]), defense.streams)


def _reused_scheme(scene: Scene, cell: Cell, _: Advance) -> Images:
    """All packets share one V, and Eve knows the pictures of the first pair, two of hers."""
    defense, (h, r) = DEFENSES[cell.defense], scene.row_shape
    clean = np.concatenate([scene.clean_rows(scene.attacker_images[:2]), scene.clean_rows(scene.images)])
    pools = under_one_key(scene, defense, clean, snr_of(cell)).reshape(-1, defense.streams * h, r)
    found = reuse.match_rows(clean[: defense.streams].reshape(1, defense.streams * h, r), pools[:1])
    return _decoded(scene, cell, pools[:, found].reshape(clean.shape)[2:])


def _reused_stream(scene: Scene, cell: Cell, _: Advance) -> Images:
    """All packets share one key stream, and Eve knows the pictures of the first 64, some of hers."""
    mine = scene.attacker_rows.reshape(len(scene.attacker_rows), -1)
    known = min(KNOWN_PACKETS, len(mine) // 4 * 2)
    clean = scene.clean_rows(scene.images)
    packets = np.concatenate([scene.attacker_rows[:known], clean])
    received = under_one_key(scene, DEFENSES[cell.defense], packets, snr_of(cell))
    snr = scene.combined_db(snr_of(cell))
    rows = reuse.unmix(mine[known:], mine[:known], received[:known], received[known:], snr)
    return _decoded(scene, cell, rows.reshape(clean.shape))


def _four_packets(scene: Scene, cell: Cell, _: Advance) -> Images:
    """Each picture is sent four times under fresh schemes; Eve averages before she orders."""
    defense, snr = DEFENSES[cell.defense], snr_of(cell)
    packets = np.stack([scene.received_rows(scene.images, defense, snr, 10 + k) for k in range(REPEATS)], axis=1)
    groups, repeats, streams, h, r = packets.shape
    known = known_db(scene, defense, snr)
    one, four = row_model(scene, known), row_model(scene, known + accumulate.gain_db(REPEATS))
    mean = np.stack([accumulate.average(one, group.reshape(repeats, streams * h, r)) for group in packets])
    return _ordered(scene, cell, four, mean.reshape(groups, streams, h, r))


# what several share


def _in_seconds(advance: Advance, seconds: float) -> Callable[[int], None]:
    return lambda pictures: advance(pictures * seconds)


def _decoded(scene: Scene, cell: Cell, rows: Rows) -> Images:
    """The rows [n, h, r] of all images, undefended as Eve believes, through Bob's decoder."""
    defense = DEFENSES[cell.defense]
    return scene.decode(rows, scene.known_scales(defense), scene.told_db(defense, snr_of(cell)))


def _row_model(scene: Scene, cell: Cell) -> ordering.RowModel:
    return row_model(scene, known_db(scene, DEFENSES[cell.defense], snr_of(cell)))


def _ordered(scene: Scene, cell: Cell, model: ordering.RowModel, received: Rows) -> Images:
    return scene.best_order(_decoded(scene, cell, in_order(model, received)), received.shape[1])


def _seconds_of_packets(settings: Settings) -> float:
    """Of a game that sends every picture several times, after practice on each of the attacker's."""
    return PICTURE_S * (games.TRIALS_EACH * settings.pictures + settings.attacker_pictures)


def snrs_of(attack: Attack, settings: Settings) -> tuple[float, ...]:
    """Those of Eve's SNRs at which an attack is measured."""
    return (max(settings.eve_snrs),) if attack.noiseless else settings.eve_snrs


def _is_one_map(defense: Defense) -> bool:
    """Whether one orthogonal map takes a picture's symbols to what is on air."""
    return (defense.permutes or defense.mixes) and not defense.substitutes


ATTACKS = (
    Attack(
        "white-box",
        "the paper's: optimises a picture until the transmitter would send what she received",
        "the weights of the transmitter",
        "none",
        _white_box,
        cost=lambda settings: WHITE_BOX_S * settings.optimised_pictures * settings.whitebox.steps,
        optimised=True,
        published=True,
        recorded=True,
    ),
    Attack(
        "black-box",
        "the paper's: trains a small network on what the defended link sends",
        "images of her own",
        "none",
        _black_box,
        cost=lambda settings: BLACK_BOX_S * settings.blackbox_steps * blackbox.BATCH_SIZE,
        published=True,
        recorded=True,
    ),
    Attack("no-key", "feeds what she received straight to Bob's decoder", "nothing else", "none", _no_key, recorded=True),
    Attack(
        "row-ordering",
        "puts the rows back in order by their likeness; no key, no scheme list",
        "images of her own",
        "permute",
        _row_ordering,
        recorded=True,
    ),
    Attack(
        "brute-force",
        "has the scheme sets and tries them all",
        "the scheme sets P and S, and images of her own",
        "permute",
        _brute_force,
        applies=has_schemes,
    ),
    Attack(
        "learned-inverse",
        "trains a U-Net on the defence under random keys",
        "images of her own",
        "none",
        _learned_inverse,
        cost=lambda settings: LEARNED_S * settings.learned_steps * learned.BATCH_SIZE,
        recorded=True,
    ),
    Attack(
        "set-inverse",
        "trains the same network, blind to the order of rows",
        "images of her own",
        "permute",
        _set_inverse,
        cost=lambda settings: SET_S * settings.learned_steps * learned.BATCH_SIZE,
        recorded=True,
    ),
    Attack(
        "row-matching",
        "runs white-box and matches rows inside the optimisation",
        "the weights of the transmitter, and images of her own",
        "permute",
        _row_matching,
        cost=lambda settings: ROW_MATCHING_S * settings.optimised_pictures * settings.matching.steps,
        optimised=True,
        recorded=True,
    ),
    Attack(
        "generative",
        "guides a model of pictures, trained on hers, by what she received; rows put back in order first",
        "the weights of the transmitter, and images of her own",
        "none",
        generative.guided,
        cost=generative.guided_cost,
        optimised=True,
        invents=True,
    ),
    Attack(
        "generative-black-box",
        "trains a model of pictures that is given what the defended link sends; rows put back in order first",
        "images of her own",
        "none",
        generative.black_box,
        cost=generative.black_box_cost,
        invents=True,
    ),
    Attack(
        "reused-scheme",
        "undoes a V that was used again, from one known pair; semseal never does that",
        "the pictures of one pair under the same V",
        "permute",
        _reused_scheme,
        applies=has_schemes,
        misuse=True,
    ),
    Attack(
        "reused-stream",
        "undoes a key stream that was used again, from 64 known packets; semseal never does that",
        "the pictures of 64 packets under the same key stream, and images of her own",
        "permute",
        _reused_stream,
        applies=_is_one_map,
        misuse=True,
    ),
    Attack(
        "four-packets",
        "receives each picture four times, under fresh keys",
        "which packets show one picture, and images of her own",
        "permute",
        _four_packets,
    ),
    Attack(
        "identification",
        "names the picture among those that she knows",
        "all pictures that may have been sent, and images of her own",
        "none",
        games.identification,
        cost=_seconds_of_packets,
        game=True,
    ),
    Attack(
        "stored-frame",
        "names the picture from the frame as it was sent, without noise",
        "frames that were stored or recorded at the transmitter, all pictures that may have been sent, and images of her own",
        "none",
        games.stored_frame,
        cost=_seconds_of_packets,
        game=True,
        noiseless=True,
    ),
    Attack(
        "leaked-scale",
        "names the picture by the scale in its header, were it not sealed; semseal seals it under every key",
        "the scale of each frame, and all pictures that may have been sent",
        "none",
        games.leaked_scale,
        applies=lambda defense: not defense.digital,
        game=True,
        misuse=True,
        noiseless=True,
        of_scale=True,
    ),
    Attack(
        "linkability",
        "says whether two packets show the same picture",
        "images of her own",
        "none",
        games.linkability,
        cost=lambda settings: 2 * _seconds_of_packets(settings),
        game=True,
    ),
    Attack(
        "distinguishing",
        "says which of two chosen pictures was sent",
        "both pictures, which she may have chosen, and images of her own",
        "none",
        games.distinguishing,
        cost=lambda settings: 2 * PICTURE_S * games.PAIRS * settings.trials,
        game=True,
    ),
    Attack(
        "attributes",
        "names who or what is in the picture, by what the data says of it",
        "images of her own, and of what class each is",
        "none",
        lambda scene, cell, advance: people.play(scene, DEFENSES[cell.defense], snr_of(cell), _in_seconds(advance, PROBE_S)),
        cost=lambda settings: (
            2 * PICTURE_S * settings.pictures + settings.probe_pictures * (2 * PICTURE_S + 2 * PROBE_S * settings.probe_epochs)
        ),
        game=True,
        of_classes=True,
    ),
    Attack(
        "integrity",
        "changes a frame on its way, so that Bob sees what she chose; no eavesdropper",
        "what is sent, for latent; images of her own; she sends to Bob, and he receives nobody else",
        "none",
        lambda scene, cell, _: integrity.play(scene, DEFENSES[cell.defense], snr_of(cell)),
        cost=lambda settings: 12 * PICTURE_S * settings.pictures,
        game=True,
        apart="who can transmit has Bob see what she chose",
    ),
    Attack(
        "timing",
        "tells keys and pictures by how long send and receive take; no eavesdropper",
        "how long each call takes, on the machine itself; not the key",
        "none",
        lambda scene, cell, advance: sidechannel.play(scene, DEFENSES[cell.defense], _in_seconds(advance, 4 * PICTURE_S)),
        cost=lambda settings: 4 * PICTURE_S * settings.timed_calls,
        applies=lambda defense: not defense.broken and not defense.rival,
        game=True,
        noiseless=True,
        of_cpu=True,
        apart="how long the program takes tells of secrets",
    ),
)
BY_NAME = {attack.name: attack for attack in ATTACKS}
