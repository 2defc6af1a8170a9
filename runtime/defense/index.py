"""The scheme index: permutation and substitution as one gather.

    rows of image a  ─┐
                      ├─ rows[idx] ─> what goes on air         Fig. 2 of the paper
    rows of image b  ─┘

A table is int32 [h] for one image, with values in [0, 2h): below h a row of its own, from h on a row of the other image of
its pair. ``spread`` turns the tables of a batch into the one index that the graph's Gather takes.
"""

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.int32]


def identity(h: int) -> Table:
    """The table that changes nothing."""
    return np.arange(h, dtype=np.int32)


def compose(permutation: NDArray[np.int32], swapped: NDArray[np.bool_], other: NDArray[np.int32]) -> Table:
    """Transmit table: row i on air is own row permutation[i], or where swapped[i], the other image's row other[i].

    All three are [h]. Raises ValueError when a permutation is none or the shapes differ.
    """
    _check(permutation, swapped)
    _check(other, swapped)
    h = len(permutation)
    return np.where(swapped, other + h, permutation).astype(np.int32)


def invert(permutation: NDArray[np.int32], swapped: NDArray[np.bool_]) -> Table:
    """Receive table: own row permutation[i] was heard at place i, in the other image's frame where swapped[i].

    Raises ValueError as ``compose``.
    """
    _check(permutation, swapped)
    h = len(permutation)
    out = np.empty(h, np.int32)
    out[permutation] = np.arange(h) + h * swapped
    return out


def spread(tables: Table, own: NDArray[np.integer], other: NDArray[np.integer]) -> Table:
    """Tables [batch, h] to the index [batch, h] that the graph's Gather takes, into all frames' rows [frames*h, w*c].

    ``own`` and ``other`` [batch] are the places, among the frames, of each image's own frame and of its partner's.
    Raises ValueError for a table value outside [0, 2h).
    """
    h = tables.shape[1]
    if tables.size and (tables.min() < 0 or tables.max() >= 2 * h):
        raise ValueError(f"scheme index out of range: values must be in 0..{2 * h - 1}")
    start = np.where(tables < h, np.asarray(own)[:, None] * h, np.asarray(other)[:, None] * h - h)
    return (start + tables).astype(np.int32)


def gather(rows: NDArray[np.float32], index: NDArray[np.int32]) -> NDArray[np.float32]:
    """The reference of every kernel: out[i] = rows[index[i]] along the first axis; ``index`` of any shape."""
    return rows.take(index, axis=0)


def _check(permutation: NDArray[np.int32], swapped: NDArray[np.bool_]) -> None:
    h = len(permutation)
    if swapped.shape != (h,):
        raise ValueError(f"a scheme for {h} rows wants swapped of shape ({h},), got {swapped.shape}")
    if not np.array_equal(np.sort(permutation), np.arange(h)):
        raise ValueError(f"not a permutation of 0..{h - 1}: {permutation[:8].tolist()}")
