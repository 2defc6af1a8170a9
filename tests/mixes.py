"""Keys and features that the tests of the mix share."""

import numpy as np
from semseal.runtime.defense.mix import derive_keys

KEY, SESSION, DIGEST = bytes(range(32)), b"s" * 16, b"d" * 32
PACKAGED = 32400
SMALLEST = 1984  # the largest size that is sent as 2,048


def keys_for(n, counters=(0,), key=KEY, session=SESSION, digest=DIGEST):
    return derive_keys(key, session, counters, digest, n)


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def unit(y):
    """Rows of mean power 1 a symbol, as the graphs give them; silence stays."""
    power = 2 * np.mean(np.square(y, dtype=np.float64), axis=1, keepdims=True)
    return (y / np.sqrt(np.where(power, power, 1))).astype(np.float32)
