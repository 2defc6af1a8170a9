"""One keyed round trip, from send to receive: what ``semseal doctor`` and the benchmarks on devices prove an engine with.

    two pictures ── Transmitter.send ── noise at 20 dB ── Receiver.receive ── PSNR against the reference engine's

The reference is onnxruntime-cpu in fp32 without a defence, on the same pictures and under the same noise. A defence draws for
every frame which symbol meets which noise: that alone moves the PSNR of these pictures by 0.05 dB (standard deviation).
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from semseal.runtime import channel
from semseal.runtime.errors import EngineError
from semseal.runtime.link import BrokenDefenseWarning, Frame, Receiver, Transmitter
from semseal.runtime.metrics import psnr

SNR_DB = 20.0
KEY = bytes(range(32))  # protects nothing: both ends are here
TOLERANCE_DB = {"fp32": 0.02, "fp16": 0.05, "int8": 0.3}
DEFENSE_TOLERANCE_DB = 0.3  # besides, where there is a defence: six standard deviations

Pictures = Callable[[int, int, int], NDArray[np.float32]]  # count, height, width


def round_trip(
    bundle: str | Path,
    engine: str,
    precision: str = "fp32",
    defense: str = "none",
    expected_db: float | None = None,
    owner: str | Path | None = None,
) -> float:
    """Mean PSNR in dB of two pictures that went through the link on ``engine``.

    ``expected_db`` is what the reference engine gives for this bundle; None: it is asked first. Raises EngineError for pictures
    further from it than the tolerances above, and whatever Transmitter and Receiver raise.
    """
    if expected_db is None:
        expected_db = measure(bundle, "onnxruntime-cpu", owner=owner)
    found_db = measure(bundle, engine, precision, defense, owner)
    if wrong := complaint(found_db, expected_db, precision, defense):
        raise EngineError(wrong)
    return found_db


def complaint(found_db: float, expected_db: float, precision: str, defense: str) -> str:
    """What is wrong with the PSNR of a round trip; empty where nothing is."""
    tolerance_db = TOLERANCE_DB[precision] + (0 if defense == "none" else DEFENSE_TOLERANCE_DB)
    if abs(found_db - expected_db) <= tolerance_db:  # never true for NaN
        return ""
    return (
        f"{precision} with defense {defense}: pictures come through at {found_db:.2f} dB, the reference has "
        f"{expected_db:.2f} dB, and {tolerance_db:.2f} dB are allowed"
    )


def measure(
    bundle: str | Path,
    engine: str,
    precision: str = "fp32",
    defense: str = "none",
    owner: str | Path | None = None,
    pictures: Pictures | None = None,
) -> float:
    """The PSNR of ``round_trip``, compared with nothing; of ``smooth_images`` unless ``pictures`` makes others."""
    key = None if defense == "none" else KEY
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BrokenDefenseWarning)
        alice = Transmitter(bundle, key, defense, engine, precision, owner=owner)
    bob = Receiver(bundle, key, engine, precision, owner=owner)
    images = (pictures or smooth_images)(2, alice.bundle.height, alice.bundle.width)
    frames = alice.send(images)
    symbols = np.stack([frame.symbols for frame in frames])
    noise = channel.draw_noise(len(symbols), symbols.shape[1], np.random.default_rng(0))
    received = channel.awgn(symbols, noise, SNR_DB)
    answer = bob.receive([Frame(row, frame.header) for row, frame in zip(received, frames, strict=True)])
    return float(psnr(images, answer).mean())


def smooth_images(batch: int, height: int, width: int) -> NDArray[np.float32]:
    """Pictures that need no file: float32 [batch, 3, height, width] in 0..1, each of them another."""
    y, x = np.mgrid[0:height, 0:width] / min(height, width)
    phases = np.arange(3 * batch)[:, None, None]
    waves = np.sin(3 * x + phases) * np.cos(2 * y - phases)
    return (0.5 + 0.4 * waves).astype(np.float32).reshape(batch, 3, height, width)
