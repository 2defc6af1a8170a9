"""Permutation of single symbols under a key. A comparator: every value of a picture's symbols is still on air, somewhere else.

After F. Chen, L. Xiang, H. Sun, H. V. Cheng and K. Shen, "Shuffling for Semantic Secrecy" (IEEE TIFS 2025, arXiv 2507.07401),
who shuffle the sequence of features and share the order as the key. Here it is as fine as it can be: all N complex symbols of
a picture, in an order of its own, any of the N!. Eve cannot try them all, and single symbols have no neighbours by whose
likeness she could sort them, as rows have.

What it leaks is the multiset of the values: their histogram, hence every statistic that does not depend on the order.
"""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

Symbols = NDArray[np.complex64]


def permute(symbols: Symbols, key: bytes) -> Symbols:
    """Symbols complex64 [N] in the order of a key of 32 bytes."""
    return symbols[_order(len(symbols), key)]


def restore(received: Symbols, key: bytes) -> Symbols:
    """The reverse."""
    out = np.empty_like(received)
    out[_order(len(received), key)] = received
    return out


def _order(n: int, key: bytes) -> NDArray[np.intp]:
    """That of ``n`` random words of 64 bits, which are hardly ever equal, and then stay as they were."""
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * n))
    return np.argsort(np.frombuffer(stream, "<u8"), kind="stable")
