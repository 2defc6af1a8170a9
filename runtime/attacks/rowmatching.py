"""White-box inversion that is indifferent to the order of the rows: the optimisation itself matches them.

    minimise over x   min over matchings m of   ||received rows - rows of f(x), matched by m||² + lambda T(x)

Eve knows: the deployed transmitter, the defence, how many pictures the received rows belong to, and the attacker's images, with
whose mean she starts. She does not know the key or the scheme sets. For any order of the rows there is some picture that
explains them almost as well, so from a poor start the matching gets stuck: she first puts the rows into their likeliest order
(``semseal.runtime.attacks.ordering``).
She does: Eq. (5) of the paper as in ``whitebox``, with the rows of all streams pooled. Every few steps she recomputes the best
assignment (Kuhn 1955) of received to computed rows, as iterative closest point does (Besl and McKay, PAMI 1992).
Positive control: row permutation, where she must see about as much as white-box inversion sees without a defence. Without a
defence that reorders rows, neither the ordering nor the matching has anything to find.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from semseal.runtime.attacks.accelerator import best_device
from semseal.runtime.attacks.autocast import bf16_where_native
from semseal.runtime.attacks.whitebox import FAST, DifferentiableTransmitter, WhiteBoxSettings, initial_images, minimise
from torch import Tensor

STEPS_PER_MATCHING = 10


def invert(
    transmitter: DifferentiableTransmitter,
    received: NDArray[np.float32],
    start: NDArray[np.float32],
    settings: WhiteBoxSettings = FAST,
    steps_in_order: int = 0,
    batch: int = 16,
    advance: Callable[[int], None] = lambda image_steps: None,
) -> NDArray[np.float32]:
    """Received rows float32 [n, streams, h, r] to images [n, streams, 3, height, width] in 0..1.

    ``start`` is [3, height, width]. For the first ``steps_in_order`` steps the rows keep the order in which they are given.
    The pictures of one sample come back in no particular order. ``advance`` is called after every step with the number of
    images in the batch.
    """
    device, (n, streams, h, r) = best_device(), received.shape
    out = np.empty((n, streams, *start.shape), np.float32)
    for first in range(0, n, batch):
        part = received[first : first + batch]
        pool = torch.from_numpy(part.reshape(len(part), streams * h, r)).to(device)
        count = len(part) * streams
        index = torch.arange(count * h, dtype=torch.int32, device=device).reshape(count, h)
        target = pool

        def distance(x: Tensor, step: int, pool: Tensor = pool, index: Tensor = index) -> Tensor:
            nonlocal target
            with bf16_where_native():
                rows = transmitter(x, index).float().reshape(pool.shape)
            if step >= steps_in_order and step % STEPS_PER_MATCHING == 0:
                target = _matched(pool, rows.detach())
            return (rows - target).square().sum()

        x = initial_images(start, count, settings)
        # without this, the pictures of one sample would start equal and stay equal
        apart = 0.05 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))  # the same on every device
        x = (x.to(device) + apart.to(device)).clamp(0, 1)
        out[first : first + len(part)] = minimise(x, distance, settings, advance).reshape(len(part), streams, *start.shape)
    return out


def _matched(pool: Tensor, rows: Tensor) -> Tensor:
    """The received rows [n, m, r], reordered to be closest in total to the computed rows [n, m, r]."""
    # squared distances less the energies, which no matching changes; a picture without symbols has none
    products = torch.bmm(rows, pool.transpose(1, 2)).nan_to_num().cpu().numpy()
    orders = [linear_sum_assignment(scores, maximize=True)[1] for scores in products]
    return torch.stack(
        [received[torch.from_numpy(order).to(pool.device)] for received, order in zip(pool, orders, strict=True)]
    )
