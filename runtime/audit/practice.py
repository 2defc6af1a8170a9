"""What Eve, or whoever tests a misuse, does with a defence herself, without Alice's transmitter.

schemes_of       the scheme sets of Alice's key, for an Eve who has them
simulate         practice for the learned inverses: clean rows under random keys, with noise
known_db         the SNR of what she works with
under_one_key    many packets under one V or key stream, which a transmitter refuses to send
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.attacks import learned
from semseal.runtime.audit.scene import Rows, Scene, undone
from semseal.runtime.defense import index, mix
from semseal.runtime.defense.defenses import Defense
from semseal.runtime.defense.schemes import scheme_sets

MEASURED_ON = 32  # images, for an SNR


def schemes_of(scene: Scene, defense: Defense) -> tuple[NDArray[np.int32], NDArray[np.bool_] | None]:
    """The sets P [schemes, h] and S [schemes, h] of Alice's key: the identity, or None, where it has none."""
    sets = scheme_sets(scene.key, scene.bundle.h)
    permutations = sets.permutations if defense.permutes else index.identity(scene.bundle.h)[None]
    return permutations, sets.swapped if defense.substitutes else None


def simulate(scene: Scene, defense: Defense, snr: float) -> learned.Simulate:
    """Clean rows of Eve's images, of two where rows are swapped, under a random scheme, with her noise.

    The draws need not be secret, only fresh.
    """
    clean = scene.attacker_rows
    sigma = np.float32(np.sqrt(10 ** (-scene.combined_db(snr) / 10) / 2))
    fades = scene.place.eve_channel != "awgn"

    def draw(chosen: NDArray[np.integer], rng: np.random.Generator) -> Rows:
        frames = [clean[images] for images in chosen.T]
        batch, h, _ = frames[0].shape
        if defense.permutes:
            frames = [np.take_along_axis(rows, _permutations(rng, batch, h)[:, :, None], 1) for rows in frames]
        if defense.substitutes:
            swapped = (_permutations(rng, batch, h) < h // 2)[:, :, None]
            one, two = frames
            frames = [np.where(swapped, two, one), np.where(swapped, one, two)]
        if defense.mixes:
            rows = frames[0].reshape(batch, -1)
            keys = mix.derive_keys(rng.bytes(32), bytes(mix.SESSION_SIZE), range(batch), scene.bundle.digest, rows.shape[1])
            frames = [mix.mix(rows, keys)[:, : rows.shape[1]].reshape(frames[0].shape)]
        if defense.rival:
            frames = [_concealed(scene, defense, chosen[:, 0], rows, rng) for rows in frames]
        if fades:
            symbols = [np.ascontiguousarray(rows).reshape(batch, -1).view(np.complex64) for rows in frames]
            received = np.stack([scene.receive(frame, snr, rng) for frame in symbols], axis=1)
        else:
            on_air = np.stack(frames, axis=1)
            noisy = on_air + sigma * rng.standard_normal(on_air.shape, np.float32)
            received = noisy.reshape(batch, len(frames), -1).view(np.complex64)
        if defense.keyless:
            received = undone(received[:, 0], defense)
        return received.view(np.float32).reshape(batch, len(frames), *frames[0].shape[1:])

    return draw


def known_db(scene: Scene, defense: Defense, snr: float) -> float:
    """Eve's SNR behind all of her antennas, and behind a defence without a key once she has undone it.

    What that leaves beside the symbols she measures on images of hers, the first of them.
    """
    if not defense.keyless:
        return scene.combined_db(snr)
    chosen = np.arange(min(MEASURED_ON, len(scene.attacker_rows)))
    rng = np.random.default_rng([scene.settings.seed, 24])
    left = simulate(scene, defense, snr)(chosen[:, None], rng)[:, 0] - scene.attacker_rows[chosen]
    return float(-10 * np.log10(2 * np.square(left, dtype=np.float64).mean()))  # of symbols of power 1


def under_one_key(scene: Scene, defense: Defense, clean: Rows, snr: float) -> NDArray[np.float32]:
    """What Eve receives of clean rows [n, h, r], n even, under one V or key stream: float32 [n, reals on air]."""
    n, h, r = clean.shape
    if defense.mixes:
        keys = mix.derive_keys(scene.key, bytes(mix.SESSION_SIZE), [0], scene.bundle.digest, h * r)
        on_air = mix.mix(clean.reshape(n, -1), mix.stack_keys([keys] * n))
    else:
        on_air = index.gather(clean.reshape(n * h, r), _one_scheme(scene, defense, n)).reshape(n, -1)
    return scene.add_noise(np.ascontiguousarray(on_air).view(np.complex64), snr, 3).view(np.float32)


def _one_scheme(scene: Scene, defense: Defense, n: int) -> NDArray[np.int32]:
    """The first p and s of the sets for every pair, as an index [n, h] of absolute rows."""
    h, frames = scene.bundle.h, np.arange(n)
    permutations, swapped = schemes_of(scene, defense)
    permutation = permutations[0]
    table = index.compose(permutation, np.zeros(h, bool) if swapped is None else swapped[0], permutation)
    return index.absolute(np.tile(table, (n, 1)), frames, frames ^ 1)


def _concealed(scene: Scene, defense: Defense, chosen: NDArray[np.integer], rows: Rows, rng: np.random.Generator) -> Rows:
    """Rows [batch, h, r] of the ``chosen`` of Eve's images as a comparator sends them, each image under a key of its own."""
    symbols = np.ascontiguousarray(rows.reshape(len(rows), -1)).view(np.complex64)
    if defense.digital:
        sent = [scene.digital.conceal(scene.attacker_images[image], rng.bytes(32)) for image in chosen]
    else:
        assert defense.conceal is not None
        sent = [defense.conceal(image, rng.bytes(32)) for image in symbols]
    on_air = np.stack(sent)[:, : symbols.shape[1]]
    return np.ascontiguousarray(on_air).view(np.float32).reshape(rows.shape)


def _permutations(rng: np.random.Generator, batch: int, h: int) -> NDArray[Any]:
    return rng.permuted(np.tile(np.arange(h), (batch, 1)), axis=1)
