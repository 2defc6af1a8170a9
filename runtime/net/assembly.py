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
        self.arrived = 0
        self.begun = self.last = now  # when it was announced, and when something of it arrived last
        self.all_sent, self.complete = asyncio.Event(), asyncio.Event()
        self.n, self._count, self._type = told.n, told.datagrams, REAL_TYPES[told.real_bytes]
        self._most = -(-told.n // told.datagrams)  # symbols of the first datagrams; the last ones may have one less
        self._symbol_bytes = 2 * told.real_bytes
        self._data = bytearray(told.datagrams * self._most * self._symbol_bytes)  # one datagram behind the other
        self._has = bytearray(told.datagrams)

    @property
    def lost(self) -> float:
        """The share of symbols that are not here."""
        return sum(self._due(i) for i, has in enumerate(self._has) if not has) / self.n

    def received(self) -> NDArray[np.bool_]:
        """Which symbols are here."""
        return np.tile(np.frombuffer(self._has, bool), self._most)[: self.n]

    def put(self, index: int, count: int, reals: memoryview, now: float) -> bool:
        """Take a datagram. False, and nothing changes, for one that does not fit or is here already."""
        if count != self._count or self._has[index] or len(reals) != self._due(index) * self._symbol_bytes:
            return False
        start = index * self._most * self._symbol_bytes
        self._data[start : start + len(reals)] = reals
        self._has[index] = 1
        self.arrived += 1
        self.last = now
        if self.arrived == count:
            self.all_sent.set()
            self.complete.set()
        return True

    def symbols(self) -> NDArray[np.complex64]:
        """Those that are here, zeros for the others. Datagrams that hold what is no number count as lost from now on."""
        reals = np.frombuffer(self._data, self._type).reshape(self._count, self._most, 2).astype(np.float32)
        for i in np.flatnonzero(~np.isfinite(reals).all(axis=(1, 2))):
            reals[i] = self._has[i] = 0
        symbols: NDArray[np.complex64] = reals.transpose(1, 0, 2).reshape(-1, 2)[: self.n].view(np.complex64)[:, 0]
        return symbols

    def _due(self, index: int) -> int:
        """How many symbols a datagram has."""
        return (self.n - index + self._count - 1) // self._count


def concealed(
    symbols: NDArray[np.complex64], received: NDArray[np.bool_] | None, lost: float, mixed: bool
) -> NDArray[np.complex64]:
    """The symbols as a receiver takes them. ``received`` says which arrived, where a channel was simulated after the loss."""
    if received is not None:
        symbols = np.where(received, symbols, np.complex64(0))
    if lost and (mixed or lost > MAX_UNRAISED):
        symbols = symbols / np.float32(1 - lost)
    return symbols
