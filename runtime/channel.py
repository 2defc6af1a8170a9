"""Radio channels in NumPy, for symbols complex64 [batch, N]: the twin of ``semseal.train.channel``, see there.

The same noise and taps give the same output as the torch functions, to float32 rounding.
"""

import numpy as np
from numpy.typing import NDArray

Symbols = NDArray[np.complex64]

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
    """Through taps [batch, L] (circular convolution), noise added, equalised by the linear MMSE filter."""
    sigma2 = np.float32(10 ** (-snr_db / 10))
    if taps.shape[1] == 1:
        return awgn(symbols * taps, noise, snr_db) * taps.conj() / (np.abs(taps) ** 2 + sigma2)
    response = np.fft.fft(taps, n=symbols.shape[1])
    convolved = np.fft.ifft(np.fft.fft(symbols) * response).astype(np.complex64)
    received = awgn(convolved, noise, snr_db)
    equalised = np.fft.fft(received) * response.conj() / (np.abs(response) ** 2 + sigma2)
    return np.fft.ifft(equalised).astype(np.complex64)
