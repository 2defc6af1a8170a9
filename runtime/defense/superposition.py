"""Superposition: the picture's symbols on top of a louder random constellation. A comparator, without a key.

After W. Chen, S. Shao, Q. Yang, Z. Zhang and P. Zhang, "A Superposition Code-Based Semantic Communication Approach with
Quantifiable and Controllable Security" (IEEE TMC 2025, arXiv 2401.13980): each symbol on air is a random point of QPSK, the
cloud, and near it the satellite that carries the picture. Whoever can tell the clouds apart takes them off (successive
interference cancellation) and has the satellites; at a lower SNR clouds are mistaken, and what is left is mostly cloud.

    symbols ── public signs ── Fourier ── x sqrt(1 - CLOUD_POWER), limited ── + cloud ── unit power ── on air
    received ── nearest cloud ── off ── / sqrt(1 - CLOUD_POWER) ── the reverse ── symbols, as Bob and Eve get them

The paper's satellites are digital; these are the link's own analog symbols, so nothing is quantised. Most of them are small and
a few large; the transform, which holds no secret, makes all alike, and a satellite that is still further out than MAX_REACH of
the way to the next cloud is moved in. Nothing at all is secret: an Eve who receives as well as Bob sees as he does.
"""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

Symbols = NDArray[np.complex64]

CLOUD_POWER = 0.85  # of all that is sent; near the best for Bob at 10 to 20 dB
MAX_REACH = 0.8  # of a satellite in I or Q, of a cloud's distance from the axis
_CLOUD = np.float32(np.sqrt(CLOUD_POWER / 2))  # in I and in Q
_SATELLITES = np.float32(np.sqrt(1 - CLOUD_POWER))


def superpose(symbols: Symbols, key: bytes) -> Symbols:
    """Symbols complex64 [N] on clouds drawn from ``key``, fresh for each image, which nobody needs to receive them."""
    n, limit = len(symbols), np.float32(MAX_REACH) * _CLOUD
    spread = np.fft.fft(symbols * _signs(bytes(32), n), norm="ortho").astype(np.complex64)
    satellites = (_SATELLITES * spread.view(np.float32)).clip(-limit, limit)
    reals = satellites + _CLOUD * _signs(key, 2 * n)
    power = 2 * np.square(reals, dtype=np.float64).mean()
    on_air: Symbols = (reals / np.float32(np.sqrt(power))).view(np.complex64)
    return on_air


def cancel(received: Symbols, key: bytes = b"") -> Symbols:
    """What is left of received symbols without the nearest cloud, as loud as undefended ones; no key is used."""
    reals = np.ascontiguousarray(received).view(np.float32)
    satellites = ((reals - np.copysign(_CLOUD, reals)) / _SATELLITES).view(np.complex64)
    return np.fft.ifft(satellites, norm="ortho").astype(np.complex64) * _signs(bytes(32), len(received))


def _signs(key: bytes, n: int) -> NDArray[np.float32]:
    """``n`` times 1 or -1."""
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(-(-n // 8)))
    return 1 - 2 * np.unpackbits(np.frombuffer(stream, np.uint8))[:n].astype(np.float32)
