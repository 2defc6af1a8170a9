"""A frame that is arriving, and what Bob makes of one that arrived in part.

    datagram i of K ── symbols i, i + K, i + 2K ... ── zeros where none arrived ── raised, so that what is left is unbiased

Under mix a symbol on air is a sum over all of the picture's. With a share p of them zero, what is un-mixed is 1 - p times the
picture's, and interference like noise. Divided by 1 - p it is the picture's plus noise of the power (p + s) / (1 - p), where s
is that of the channel; this is also what the power of the frame, (1 + s) / (1 - p), exceeds 1 by. So a model that is told the
noise, and measures it so, is told the truth, and the loss of symbols is no more than a lower SNR.

Without mix each symbol stands for itself, and zero is the best guess for one that is not there: nothing is raised, up to a
share that was found by measuring, beyond which the noise that is told matters more (docs/transport.md).
"""

import asyncio

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.net.wire import REAL_TYPES, Hello

MAX_UNRAISED = 0.1  # the share of lost symbols from which on a frame without mix is raised too


class Arriving:
    """The symbols of one frame. The memory is that of the frame and no more, whatever arrives."""

    def __init__(self, told: Hello, now: float) -> None:
        self.symbols = np.zeros(told.n, np.complex64)
        self.arrived = 0
        self.begun = self.last = now  # when it was announced, and when something of it arrived last
        self.all_sent, self.complete = asyncio.Event(), asyncio.Event()
        self._told, self._type = told, REAL_TYPES[told.real_bytes]
        self._has = bytearray(told.count)

    @property
    def lost(self) -> float:
        """The share of symbols that are not here."""
        missing = sum(-(-(self._told.n - i) // self._told.count) for i, has in enumerate(self._has) if not has)
        return missing / self._told.n

    def received(self) -> NDArray[np.bool_]:
        """Which symbols are here."""
        mask = np.zeros(self._told.n, bool)
        for i, has in enumerate(self._has):
            mask[i :: self._told.count] = has
        return mask

    def put(self, index: int, count: int, reals: memoryview, now: float) -> bool:
        """Take a datagram. False, and nothing changes, for one that does not fit or is here already."""
        if count != self._told.count or self._has[index]:
            return False
        place = self.symbols[index::count]
        if len(reals) != 2 * self._type.itemsize * len(place):
            return False
        found = np.frombuffer(reals, self._type).astype(np.float32)
        if not np.isfinite(found).all():
            return False
        place[:] = found.view(np.complex64)
        self._has[index] = 1
        self.arrived += 1
        self.last = now
        if self.arrived == count:
            self.all_sent.set()
            self.complete.set()
        return True


def concealed(
    symbols: NDArray[np.complex64], received: NDArray[np.bool_] | None, lost: float, mixed: bool
) -> NDArray[np.complex64]:
    """The symbols as a receiver takes them. ``received`` says which arrived, where a channel was simulated after the loss."""
    if received is not None:
        symbols = np.where(received, symbols, np.complex64(0))
    if lost and (mixed or lost > MAX_UNRAISED):
        symbols = symbols / np.float32(1 - lost)
    return symbols
