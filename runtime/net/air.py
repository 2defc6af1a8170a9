"""A radio that is not there: noise, fading, loss and reordering, simulated at either end.

symbols of a frame ── channel at an SNR ── cut into datagrams ── some lost ── out of order          at the sender
datagrams ── some lost ── symbols of a frame ── channel at an SNR                                   at the receiver
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from semseal.runtime import channel

MAX_LATE_S = 0.01  # by which a datagram is held back that comes out of order
_LATE = 0.05  # the share of those that are


@dataclass(frozen=True)
class Air:
    """What is simulated; as it stands here, nothing."""

    snr_db: float | None = None  # None: no channel
    channel: str = "awgn"
    loss: float = 0.0  # the share of datagrams that are lost
    reorder: bool = False
    seed: int | None = None  # of noise, fading and loss


class Simulation:
    """The draws of one end."""

    def __init__(self, air: Air, unbiased: bool) -> None:
        """``unbiased`` as for ``channel.transmit``: the receiver's model is told the noise."""
        self.air, self._unbiased, self._rng = air, unbiased, np.random.default_rng(air.seed)
        self._loss_rng = np.random.default_rng(air.seed)  # of its own, so that the noise is the same at every loss

    def through(self, symbols: NDArray[np.complex64]) -> NDArray[np.complex64]:
        """Symbols [N] behind the channel."""
        if self.air.snr_db is None:
            return symbols
        sent = symbols[None]
        behind: NDArray[np.complex64] = channel.transmit(
            self.air.channel, sent, self.air.snr_db, self._rng, unbiased=self._unbiased
        )[0]
        return behind

    def loses(self) -> bool:
        """Whether the next datagram is lost."""
        return self.air.loss > 0 and self._loss_rng.random() < self.air.loss

    def arrange(self, datagrams: Iterable[bytes]) -> tuple[list[bytes], list[bytes]]:
        """The datagrams of a frame that are not lost, in the order that they leave in, and those that leave late."""
        left = [data for data in datagrams if not self.loses()]
        if not self.air.reorder:
            return left, []
        order = self._loss_rng.permutation(len(left))
        late = int(_LATE * len(left) + self._loss_rng.random())
        return [left[i] for i in order[late:]], [left[i] for i in order[:late]]
