"""The digital links that are compared with: which is chosen for an SNR, what it loses, how its pictures look.

What takes long here depends on its arguments alone, so that a caller may keep the results (``joblib.Memory``).
"""

from collections.abc import Callable
from dataclasses import dataclass

import click
import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scores import Images, Scores, score
from semseal.runtime.audit.coding import Encodings, Framing, Mcs, Modem, capacity, table
from semseal.runtime.metrics import Proportion, proportion

MAX_LOST_FRAMES = 0.01  # of a digital link at its design SNR
CLIFF_DB = (-2.0, -1.5, -1.0, -0.5)  # below its design SNR, where a digital link is measured too
CLIFF_BLOCKS = 32  # decoded there
WORTH_TRYING = 0.95  # of capacity: blocks this short and QAM without shaping stay below
SEED = 0


@dataclass(frozen=True)
class Losses:
    """Blocks that a digital link lost at one SNR, None where nothing had to be measured, and the frames that is."""

    snr_db: float
    blocks: Proportion | None
    frames: tuple[float, float, float]  # share, low, high


@dataclass(frozen=True)
class Rival:
    """A digital link that was chosen for an SNR, and what it loses at others."""

    design_db: float
    mcs: Mcs
    name: str
    blocks: int
    payload_bytes: int
    share_of_capacity: float
    losses: list[Losses]


Measure = Callable[[Mcs, int, float, int, int], Losses]  # ``losses``, or its results from before


def losses(mcs: Mcs, symbols: int, snr_db: float, count: int, enough: int) -> Losses:
    """What is lost of at most ``count`` blocks; fewer are tried where ``enough`` are lost."""
    framing = Framing(mcs, symbols)
    rng = np.random.default_rng([SEED, symbols, round(1000 * mcs.efficiency), round(100 * (snr_db + 100))])
    blocks = proportion(*Modem(framing).failures(count, enough, snr_db, rng))
    share, low, high = (1 - (1 - rate) ** framing.blocks for rate in (blocks.value, blocks.low, blocks.high))
    return Losses(snr_db, blocks, (share, low, high))


def choose(symbols: int, design_db: float, blocks: int, measure: Measure) -> tuple[Mcs, Losses]:
    """The fastest modulation and code rate that loses at most MAX_LOST_FRAMES at an SNR, by ``blocks`` blocks.

    Raises ClickException for none.
    """
    for mcs in table():
        if mcs.efficiency > WORTH_TRYING * capacity(design_db):
            continue
        allowed = int(blocks * (1 - (1 - MAX_LOST_FRAMES) ** (1 / Framing(mcs, symbols).blocks)))
        found = measure(mcs, symbols, design_db, blocks, allowed + 1)
        if found.blocks is not None and found.blocks.hits <= allowed:
            return mcs, found
    raise click.ClickException(f"no modulation and code rate is slow enough for {design_db:g} dB")


def elsewhere(mcs: Mcs, symbols: int, own: Losses, snr_db: float, measure: Measure) -> Losses:
    """What a link that loses ``own`` at its design SNR loses at another.

    Above it no more than there. Below the SNR whose capacity is its rate, everything (the strong converse of Shannon's theorem;
    J. Wolfowitz, 1957). Only in between it has to be measured.
    """
    if snr_db > own.snr_db:
        return Losses(snr_db, None, own.frames)
    if mcs.efficiency > capacity(snr_db):
        return Losses(snr_db, None, (1.0, 1.0, 1.0))
    return measure(mcs, symbols, snr_db, CLIFF_BLOCKS, CLIFF_BLOCKS // 2)


def rivals(symbols: int, snrs: list[float], blocks: int, measure: Measure) -> list[Rival]:
    """A digital link for each SNR, and what each loses at all of them and on its cliff."""
    found = []
    for design_db in snrs:
        mcs, own = choose(symbols, design_db, blocks, measure)
        others = sorted({*snrs, *(design_db + offset for offset in CLIFF_DB)} - {design_db})
        lost = [own, *(elsewhere(mcs, symbols, own, snr_db, measure) for snr_db in others)]
        framing = Framing(mcs, symbols)
        share = framing.payload_bytes * 8 / symbols / capacity(design_db)
        found.append(Rival(design_db, mcs, mcs.name, framing.blocks, framing.payload_bytes, share, lost))
        click.echo(f"digital at {design_db:g} dB: {mcs.name}, {framing.payload_bytes} bytes, {share:.0%} of capacity", err=True)
    return found


def _answers(image: NDArray[np.uint8], codec: str, speed: int, limits: list[int]) -> list[NDArray[np.uint8] | None]:
    encodings = Encodings(image, codec, speed)
    return [None if found is None else found[1] for found in map(encodings.fit, limits)]


def encoded(images: Images, codec: str, speed: int, limits: list[int], colour: list[float], jobs: int) -> list[Scores]:
    """The scores of decoded pictures for each limit in bytes; one that fits no limit is of one ``colour``."""
    each = Parallel(jobs)(delayed(_answers)(image, codec, speed, limits) for image in to_bytes(images))
    empty = one_colour(images, colour)
    out = []
    for i in range(len(limits)):
        answers = [empty[0] if found[i] is None else to_floats(found[i]) for found in each]
        out.append(score(images, np.stack(answers)))
    return out


def to_bytes(images: Images) -> NDArray[np.uint8]:
    """[n, height, width, 3]."""
    return np.ascontiguousarray(np.rint(images * 255).astype(np.uint8).transpose(0, 2, 3, 1))


def to_floats(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    return picture.transpose(2, 0, 1).astype(np.float32) / np.float32(255)


def one_colour(images: Images, colour: list[float]) -> Images:
    return np.broadcast_to(np.array(colour, np.float32)[:, None, None], images.shape).copy()


def really_sent(images: Images, codec: str, speed: int, links: list[Rival], symbols: int) -> dict[str, int]:
    """Send pictures bit by bit at the design SNR of each link. Raises AssertionError for one that comes back different."""
    rng, counts = np.random.default_rng([SEED, 1]), {"sent": 0, "lost": 0, "without a fitting quality": 0}
    kept = [Encodings(picture, codec, speed) for picture in to_bytes(images)]
    for rival in links:
        modem = Modem(Framing(rival.mcs, symbols))
        for encodings in kept:
            fitted = encodings.fit(rival.payload_bytes)
            if fitted is None:
                counts["without a fitting quality"] += 1
                continue
            arrived = modem.send(fitted[0], rival.design_db, rng)
            counts["sent"] += 1
            counts["lost"] += arrived is None
            assert arrived is None or (encodings.open(arrived) == fitted[1]).all(), f"{codec}: a picture came back different"
    return counts
