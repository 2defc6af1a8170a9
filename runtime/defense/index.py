"""The scheme index: permutation and substitution as one gather.

    rows of image a  ─┐
                      ├─ rows[idx] ─> what goes on air         Fig. 2 of the paper
    rows of image b  ─┘

A table is int32 [h] for one image, with values in [0, 2h): below h a row of its own, from h on a row of the other image of
its pair. ``absolute`` turns the tables of a batch into the one index that the graph's Gather takes.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.int32]


@lru_cache(maxsize=128)
def unmoved(batch: int, h: int) -> Table:
    """The absolute rows that leave every row where it is; [batch, h], not to be written to."""
    return np.arange(batch * h, dtype=np.int32).reshape(batch, h)


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
    """Receive table: own row permutation[i] was received in row i, of the other image's frame where swapped[i].

    Raises ValueError as ``compose``.
    """
    _check(permutation, swapped)
    h = len(permutation)
    out = np.empty(h, np.int32)
    out[permutation] = np.arange(h) + h * swapped
    return out


def absolute(tables: Table, own: NDArray[np.integer], other: NDArray[np.integer]) -> Table:
    """Tables [batch, h] to the index [batch, h] that the graph's Gather takes, into all frames' rows [frames*h, w*c].

    ``own`` and ``other`` [batch] number, among the frames, each image's own frame and its partner's.
    Raises ValueError for a table value outside [0, 2h).
    """
    h = tables.shape[1]
    if tables.size and (tables.min() < 0 or tables.max() >= 2 * h):
        raise ValueError(f"scheme index out of range: values must be in 0..{2 * h - 1}")
    start = np.where(tables < h, np.asarray(own)[:, None] * h, np.asarray(other)[:, None] * h - h)
    return (start + tables).astype(np.int32)


def check_range(name: str, values: NDArray[np.int32], end: int) -> None:
    """Raises ValueError unless the values to gather by are int32 [batch, n] in 0..end-1; it names the first that is not."""
    if values.dtype != np.int32 or values.ndim != 2:
        raise ValueError(f"{name} must be int32 [batch, n], got {values.dtype} {list(values.shape)}")
    bad = np.argwhere((values < 0) | (values >= end))
    if len(bad):
        i, j = bad[0]
        raise ValueError(f"{name} out of range: {name}[{i}, {j}] is {values[i, j]}, it must be in 0..{end - 1}")


def inverse(index: NDArray[np.int32]) -> NDArray[np.int32]:
    """Where each row goes, int32 [batch, h], for a transmitter's index [batch, h].

    Raises ValueError when the index does not take every row exactly once, naming the first that it takes again.
    """
    check_range("index", index, index.size)
    flat = index.ravel()
    out = np.empty(flat.size, np.int32)
    out[flat] = np.arange(flat.size, dtype=np.int32)
    again = np.flatnonzero(out[flat] != np.arange(flat.size))
    if len(again):
        i, j = divmod(int(again[0]), index.shape[1])
        raise ValueError(f"scheme index takes row {index[i, j]} more than once, at index[{i}, {j}] too: not a permutation")
    return out.reshape(index.shape)


def gather(rows: NDArray[np.float32], index: NDArray[np.int32]) -> NDArray[np.float32]:
    """The reference of every kernel: out[i] = rows[index[i]] along the first axis; ``index`` of any shape."""
    return rows.take(index, axis=0)


def _check(permutation: NDArray[np.int32], swapped: NDArray[np.bool_]) -> None:
    h = len(permutation)
    if swapped.shape != (h,):
        raise ValueError(f"a scheme for {h} rows wants swapped of shape ({h},), got {swapped.shape}")
    if not np.array_equal(np.sort(permutation), np.arange(h)):
        raise ValueError(f"not a permutation of 0..{h - 1}: {permutation[:8].tolist()}")
