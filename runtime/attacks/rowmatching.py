"""White-box inversion that does not care for the order of rows: they are matched inside the optimisation.

    minimise over x   min over matchings m of   ||rows heard - rows of f(x), matched by m||² + lambda T(x)

Eve knows: the deployed transmitter, the defence, how many pictures the heard rows belong to, and pictures of her own, whose
mean she starts from. She does not know the key or the scheme sets. An order of rows is nearly as good as any other for
some picture, so from a poor one the matching does not get away: she first puts the rows in order by likeness (``ordering``).
She does: Eq. (5) of the paper as in ``whitebox``, with the rows of all streams pooled, and the best assignment (Kuhn 1955) of
heard to computed rows found anew every few steps, as iterative closest points does (Besl and McKay, PAMI 1992).
Positive control: row permutation, where she must see about what white-box sees without a defence. Without one the order by
likeness and the matching have nothing to find.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from semseal.runtime.attacks.arithmetic import fast_convolutions
from semseal.runtime.attacks.whitebox import FAST, WhiteBoxSettings, begin, minimise
from semseal.runtime.audit.surrogate import Surrogate
from torch import Tensor

REMATCH = 10  # steps between two matchings


def invert(
    surrogate: Surrogate,
    heard: NDArray[np.float32],
    start: NDArray[np.float32],
    settings: WhiteBoxSettings = FAST,
    held: int = 0,
    batch: int = 16,
    advance: Callable[[int], None] = lambda image_steps: None,
) -> NDArray[np.float32]:
    """Heard rows float32 [n, streams, h, r] to images [n, streams, 3, height, width] in 0..1; ``start`` [3, height, width].

    For the first ``held`` steps the rows keep the order in which they are given. The pictures of one sample come in no
    particular order. ``advance`` is told of every step, times images.
    """
    n, streams, h, r = heard.shape
    out = np.empty((n, streams, *start.shape), np.float32)
    for first in range(0, n, batch):
        part = heard[first : first + batch]
        pool = torch.from_numpy(part.reshape(len(part), streams * h, r))
        count = len(part) * streams
        index = torch.arange(count * h, dtype=torch.int32).reshape(count, h)
        target = pool

        def distance(x: Tensor, step: int, pool: Tensor = pool, index: Tensor = index) -> Tensor:
            nonlocal target
            with fast_convolutions():
                rows = surrogate(x, index).float().reshape(pool.shape)
            if step >= held and step % REMATCH == 0:
                target = _matched(pool, rows.detach())
            return (rows - target).square().sum()

        x = begin(start, count, settings)
        # two pictures that start alike would stay alike
        x = (x + 0.05 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
        out[first : first + len(part)] = minimise(x, distance, settings, advance).reshape(len(part), streams, *start.shape)
    return out


def _matched(pool: Tensor, rows: Tensor) -> Tensor:
    """The heard rows [n, m, r] in the order in which they are nearest, all together, to the computed rows [n, m, r]."""
    likeness = torch.bmm(rows, pool.transpose(1, 2)).numpy()  # squared distances, less what no matching changes
    orders = [linear_sum_assignment(scores, maximize=True)[1] for scores in likeness]
    return torch.stack([heard[torch.from_numpy(order)] for heard, order in zip(pool, orders, strict=True)])
