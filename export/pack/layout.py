"""Features as rows: what the scheme index moves, and the power that goes on air.

One image's features become h rows of w*c floats each:

    [c, h, w], h > 1       h rows; within a row the columns from left to right, channel fastest
    [h, d],    h > 2       one row for each token
    any other              as they lie in memory, in rows of whole symbols: the smallest number of rows that is no less than
                           the square root of the number of floats
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.bundle import MAX_DIMENSION
from semseal.runtime.defense.mix import MAX_REALS
from semseal.runtime.errors import GraphError

MIN_POWER = 1e-20  # floor of the division, as in training and in the kernels: an all-zero image stays zero

Array = NDArray[np.float32]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class RowLayout:
    """How one image's features of ``shape`` become h rows of w*c floats."""

    shape: Shape
    h: int
    w: int
    c: int

    @property
    def transposed(self) -> bool:
        """Whether the features are [c, h, w], so that the channel must become the fastest axis."""
        return self.c > 1

    @property
    def row_width(self) -> int:
        """Floats in a row."""
        return self.w * self.c

    @property
    def n_symbols(self) -> int:
        """N, complex channel uses per image."""
        return self.h * self.row_width // 2

    def to_rows(self, features: Array) -> Array:
        """[batch, *shape] to [batch, h, w*c]."""
        channel_last = features.transpose(0, 2, 3, 1) if self.transposed else features
        return channel_last.reshape(len(features), self.h, self.row_width)

    def from_rows(self, rows: Array) -> Array:
        """The inverse of ``to_rows``."""
        if self.transposed:
            return np.ascontiguousarray(rows.reshape(-1, self.h, self.w, self.c).transpose(0, 3, 1, 2))
        return rows.reshape(-1, *self.shape)


def row_layout(shape: Shape) -> RowLayout:
    """The rows of one image's features, as the module's docstring says.

    Raises GraphError where two rows cannot be made, and for more than a link carries.
    """
    size = math.prod(shape)
    if not 0 < size <= MAX_REALS:
        raise GraphError(
            f"transmitter: its features {list(shape)} are {size} floats per image, and a link carries 4 to {MAX_REALS}",
            "let the transmitter give fewer" if size else "look for an axis of size 0 in the model",
        )
    if size % 2:
        raise GraphError(
            f"transmitter: its features {list(shape)} are an odd number of floats per image; a symbol takes two",
            "give the features an even number of channels",
        )
    fits = max(shape) <= MAX_DIMENSION  # as a bundle's manifest says its sizes
    if len(shape) == 3 and shape[1] > 1 and fits:
        return RowLayout(shape, h=shape[1], w=shape[2], c=shape[0])
    if len(shape) == 2 and shape[0] > 2 and shape[1] != 2 and fits:
        return RowLayout(shape, h=shape[0], w=shape[1], c=1)
    if size < 4:
        raise GraphError(
            f"transmitter: its features {list(shape)} are too few for two rows of at least one symbol",
            "let the transmitter give at least 4 floats per image",
        )
    h = next(h for h in range(max(2, math.isqrt(size - 1) + 1), size) if size % (2 * h) == 0)
    if h > MAX_DIMENSION:
        raise GraphError(
            f"transmitter: its features {list(shape)} make no fewer than {h} rows, and a bundle has up to {MAX_DIMENSION}",
            "let the transmitter give another number of floats, such as a power of two",
        )
    return RowLayout(shape, h=h, w=size // h, c=1)


def symbol_power(rows: Array) -> NDArray[np.float64]:
    """Mean power per complex symbol of each image's rows: [batch, 1, 1]."""
    power: NDArray[np.float64] = 2 * np.square(rows.astype(np.float64)).mean(axis=(1, 2), keepdims=True)
    return power
