"""White-box model inversion, Eq. (5) of the paper: Eve knows the encoders' weights and no defence.

    minimise over x   ||ŷ_e - f(x)||² + lambda T(x)

with f the deployed transmitter (``semseal.runtime.attacks.surrogate``), ŷ_e what she heard, unit-power symbols, and T the total
variation of Eq. (3). Unit of lambda: x in 0..1 here (as in the paper's text, where f's input is the image), both terms summed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from semseal.runtime.attacks.arithmetic import fast_convolutions
from semseal.runtime.attacks.surrogate import Surrogate
from torch import Tensor


@dataclass(frozen=True)
class WhiteBoxSettings:
    """Adam from an all-zero image; ``annealed`` takes the step size to zero along a half cosine."""

    steps: int
    lr: float
    annealed: bool
    lam: float = 1.0
    beta: float = 1.0


PAPER = WhiteBoxSettings(steps=2000, lr=1e-3, annealed=False)
FAST = WhiteBoxSettings(steps=300, lr=5e-2, annealed=True)


def total_variation(x: Tensor, beta: float) -> Tensor:
    """Eq. (3) summed over all images; a pixel without a lower or right neighbour does not count."""
    corner = x[:, :, :-1, :-1]
    squares = (x[:, :, 1:, :-1] - corner).square() + (x[:, :, :-1, 1:] - corner).square()
    return (squares + 1e-8).pow(beta / 2).sum()


def invert(
    surrogate: Surrogate,
    heard: NDArray[np.complex64],
    height: int,
    width: int,
    h: int,
    settings: WhiteBoxSettings = FAST,
    batch: int = 32,
    advance: Callable[[int], None] = lambda image_steps: None,
) -> NDArray[np.float32]:
    """Symbols complex64 [n, N] to images float32 [n, 3, height, width] in 0..1; ``h`` is the number of feature rows.

    The images of a batch do not influence each other. ``advance`` is told of every step, times images.
    Convolutions run in bf16 where the processor has it, the images and Adam's state in float32.
    """
    out = np.empty((len(heard), 3, height, width), np.float32)
    for start in range(0, len(heard), batch):
        part = heard[start : start + batch]
        target = torch.from_numpy(np.ascontiguousarray(part).view(np.float32).reshape(len(part), -1, 2))
        index = torch.arange(len(part) * h, dtype=torch.int32).reshape(len(part), h)
        x = torch.zeros(len(part), 3, height, width).to(memory_format=torch.channels_last).requires_grad_()
        optimizer = torch.optim.Adam([x], lr=settings.lr)
        for step in range(settings.steps):
            if settings.annealed:
                optimizer.param_groups[0]["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
            with fast_convolutions():
                symbols = surrogate(x, index)
            loss = (symbols.float() - target).square().sum() + settings.lam * total_variation(x, settings.beta)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                x.clamp_(0, 1)
            advance(len(part))
        out[start : start + len(part)] = x.detach().numpy()
    return out
