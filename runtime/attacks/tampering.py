"""Tampering: Eve changes a frame on its way to Bob, without the key, so that he sees what she chose.

    a frame's symbols ── + change of rows, where Eve takes the rows to be ── Bob decodes it with the key
                      ── first part from another frame
                      ── times a gain

Eve knows: the deployed transmitter, hence the clean rows of her target, and for ``find_known`` those of the picture that is
sent. Not the key. She receives a frame before Bob does, and what she sends instead reaches him alone.
She does: adds the rows of her target less those of what is sent, if she knows it, or less the mean row at each position, if
not (an analog link adds up whatever is on air). Where rows are moved she finds their places first: by those that she knows
(linear assignment), or by their order (``semseal.runtime.attacks.ordering``). Or she puts a part of an earlier frame into this
one, whose header stays as it is, or makes all of it fainter.
Source: malleability, Dolev, Dwork, Naor 2000 (SIAM J. Comput. 30); the symbols are analog and carry no tag.
Positive control: no defence, where Bob must see what she chose.
Success: the matching advantage of what Bob sees to her target. That he sees something else is not hers: noise does as much.
"""

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.attacks.ordering import Order, Rows
from semseal.runtime.attacks.reuse import match_rows

Symbols = NDArray[np.complex64]


def find_known(clean: Rows, received: Rows) -> Order:
    """The places [streams, h] among received rows [streams * h, r] of the clean rows [streams, h, r] of what is sent."""
    streams, h, r = clean.shape
    return match_rows(clean.reshape(1, streams * h, r), received[None]).reshape(streams, h)


def add(frames: Symbols, change: Rows, places: Order) -> Symbols:
    """Frames complex64 [streams, M] of one group, with a change [streams, h, r] of rows added at their places [streams, h].

    The rows are the first of a frame; what a defence has added behind them stays.
    """
    streams, h, r = change.shape
    moved = np.zeros((streams * h, r), np.float32)
    moved[places.reshape(-1)] = change.reshape(streams * h, r)
    out = frames.copy()
    out[:, : h * r // 2] += moved.reshape(streams, h * r).view(np.complex64)
    return out


def replay_part(frames: Symbols, earlier: Symbols, part: int) -> Symbols:
    """Frames complex64 [n, M] whose first ``part`` symbols are those of earlier ones [n, M]."""
    out = frames.copy()
    out[:, :part] = earlier[:, :part]
    return out
