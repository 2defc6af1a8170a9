"""Radio channels in NumPy, for symbols complex64 [batch, N]: the twin of ``semseal.train.channel``, see there.

    awgn ── symbols + noise                                      fading ── taps * symbols + noise, equalised by linear MMSE

The same noise and taps give the same output as the torch functions, to float32 rounding. What the equaliser gives is
a * symbols + rest, with 0 < a < 1, and a rest that is uncorrelated with the symbols, if these are with each other. Divided
by a, the ``equalised_gain``, a frame is its symbols and noise of the power (1 - a) / a: the effective noise, for a receiver
that is told it, or that measures what a frame has beyond the power of 1.

Several antennas of one receiver are combined by maximum ratio, each with fades of its own. What comes out of that is one
antenna whose response is the root of the sum of their powers, with the noise of one; so that is what is computed.
"""

import math

import numpy as np
from numpy.typing import NDArray

Symbols = NDArray[np.complex64]

CHANNELS = ("awgn", "rayleigh", "multipath")
MAX_SNR_DB = 100.0  # its noise is still a number in float32
TAPS = 8  # of multipath, where nothing else is said; as many as in training
SILENCE = np.float32(1e-12)  # power of an image's symbols, below which it is not made louder


def to_unit_power(reals: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Symbols as reals [batch, ...] times what makes the power of each image 1 per complex symbol, and these scales [batch].

    Images of less power than 1e-12 are left silent.
    """
    rows = reals.reshape(len(reals), -1)
    power = 2 * np.square(rows, dtype=np.float64).mean(axis=1)
    scales = (1 / np.sqrt(np.maximum(power, SILENCE))).astype(np.float32)
    return (rows * scales[:, None]).reshape(reals.shape), scales


def draw_noise(batch: int, n: int, rng: np.random.Generator) -> Symbols:
    """Complex64 [batch, n]; real and imaginary parts are standard normal."""
    return rng.standard_normal((batch, n, 2), np.float32).view(np.complex64)[..., 0]


def draw_taps(batch: int, taps: int, rng: np.random.Generator) -> Symbols:
    """Complex Gaussian gains complex64 [batch, taps], powers that add up to 1 on average; 1 tap is Rayleigh."""
    return draw_noise(batch, taps, rng) / np.float32((2 * taps) ** 0.5)


def awgn(symbols: Symbols, noise: Symbols, snr_db: float) -> Symbols:
    """Add noise of power 10^(-snr/10) per symbol to unit-power symbols."""
    return symbols + noise * np.float32((10 ** (-snr_db / 10) / 2) ** 0.5)


def fading(symbols: Symbols, taps: Symbols, noise: Symbols, snr_db: float) -> Symbols:
    """Through taps [batch, L] (circular convolution), noise added, equalised by the linear MMSE filter.

    Taps [batch, antennas, L] are those of several antennas, combined.
    """
    sigma2 = np.float32(10 ** (-snr_db / 10))
    response = _response(taps, symbols.shape[1])
    if taps.shape[-1] == 1:
        return awgn(symbols * response, noise, snr_db) * response.conj() / (np.abs(response) ** 2 + sigma2)
    convolved = np.fft.ifft(np.fft.fft(symbols) * response).astype(np.complex64)
    received = awgn(convolved, noise, snr_db)
    equalised = np.fft.fft(received) * response.conj() / (np.abs(response) ** 2 + sigma2)
    return np.fft.ifft(equalised).astype(np.complex64)


def equalised_gain(taps: Symbols, n: int, snr_db: float) -> NDArray[np.float64]:
    """a [batch] in 0..1: how much of n symbols comes out of ``fading``, over taps as there, at this SNR."""
    sigma2 = 10 ** (-snr_db / 10)
    power = np.abs(_response(taps, n)).astype(np.float64) ** 2
    gain: NDArray[np.float64] = (power / (power + sigma2)).mean(axis=1)
    return gain


def antenna_gain_db(antennas: int) -> float:
    """How much better than one antenna several are that are combined by maximum ratio, on average."""
    return 10 * math.log10(antennas)


def _response(taps: Symbols, n: int) -> Symbols:
    """[batch, n], or [batch, 1] where it is the same for all: of taps [batch, L], or of [batch, antennas, L] combined."""
    response: Symbols = taps if taps.shape[-1] == 1 else np.fft.fft(taps, n=n)  # type: ignore[assignment]
    if taps.ndim == 2:
        return response
    return np.sqrt(np.square(np.abs(response)).sum(axis=1)).astype(np.complex64)


def transmit(
    kind: str,
    symbols: Symbols,
    snr_db: float,
    rng: np.random.Generator,
    taps: int = TAPS,
    unbiased: bool = False,
    antennas: int = 1,
) -> Symbols:
    """Symbols through a channel of CHANNELS, noise and taps drawn from ``rng``, fading equalised; one fade for each image.

    ``unbiased``: the symbols come out with a gain of 1, as a receiver needs them that is told the noise; else as ``fading``
    leaves them, as a link without that was trained. An infinite SNR is no channel at all: what was sent comes out.
    ``snr_db`` is that of one of the receiver's ``antennas``.
    """
    if kind not in CHANNELS:
        raise ValueError(f"channel must be one of {', '.join(CHANNELS)}, got {kind!r}")
    noise = draw_noise(len(symbols), symbols.shape[1], rng)
    if kind == "awgn" or math.isinf(snr_db):
        return awgn(symbols, noise, snr_db + antenna_gain_db(antennas))
    drawn = draw_taps(len(symbols) * antennas, 1 if kind == "rayleigh" else taps, rng)
    if antennas > 1:
        drawn = drawn.reshape(len(symbols), antennas, -1)
    received = fading(symbols, drawn, noise, snr_db)
    if unbiased:
        received /= equalised_gain(drawn, symbols.shape[1], snr_db)[:, None].astype(np.float32)
    return received
