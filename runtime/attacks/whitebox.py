"""White-box model inversion, Eq. (5) of the paper: Eve knows the encoders' weights, and there is no defence, or she ignores it.

    minimise over x   ||ŷ_e - f(x)||² + lambda T(x)

Here f is the deployed transmitter, ŷ_e the symbols that Eve received, of unit power before noise, and T the total variation of
Eq. (3). Unit of lambda: x is in 0..1 (as in the paper's text, where the image is f's input), and both terms are sums.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from semseal.runtime.attacks.accelerator import best_device, pictures_at_once
from semseal.runtime.attacks.autocast import bf16_where_native
from torch import Tensor

DifferentiableTransmitter = Callable[[Tensor, Tensor], Tensor]
"""Images [batch, 3, height, width] and scheme index int32 [batch, h] to symbols [batch, N, 2], with gradients."""


@dataclass(frozen=True)
class WhiteBoxSettings:
    """Adam, from an all-zero image or from one that is given. ``annealed``: the step size falls to zero along a half cosine."""

    steps: int
    lr: float
    annealed: bool
    from_zero: bool = False
    lam: float = 1.0
    beta: float = 1.0


PAPER = WhiteBoxSettings(steps=2000, lr=1e-3, annealed=False, from_zero=True)
FAST = WhiteBoxSettings(steps=300, lr=5e-2, annealed=True)


def invert(
    transmitter: DifferentiableTransmitter,
    received: NDArray[np.complex64],
    start: NDArray[np.float32],
    h: int,
    settings: WhiteBoxSettings = FAST,
    batch: int | None = None,
    advance: Callable[[int], None] = lambda image_steps: None,
    scales: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Symbols complex64 [n, N] to images float32 [n, 3, height, width] in 0..1; ``h`` is the number of feature rows.

    ``scales`` [n] is by what the transmitter's symbols are multiplied before they are sent; None: 1.

    Every image starts from ``start``, float32 [3, height, width] in 0..1, such as the mean of the attacker's images; with
    ``settings.from_zero`` only its shape matters. The images of a batch do not influence each other. ``advance`` is called
    after every step with the number of images in the batch. Convolutions run in bf16 where the processor has it; the images
    and Adam's state stay float32.
    """
    device, batch, out = best_device(), batch or pictures_at_once(), np.empty((len(received), *start.shape), np.float32)
    for first in range(0, len(received), batch):
        part = received[first : first + batch]
        target = torch.from_numpy(np.ascontiguousarray(part).view(np.float32).reshape(len(part), -1, 2)).to(device)
        index = torch.arange(len(part) * h, dtype=torch.int32, device=device).reshape(len(part), h)
        gain = np.ones(len(part), np.float32) if scales is None else scales[first : first + batch]
        scale = torch.from_numpy(gain).to(device)

        def distance(x: Tensor, _: int, target: Tensor = target, index: Tensor = index, scale: Tensor = scale) -> Tensor:
            with bf16_where_native():
                symbols = transmitter(x, index)
            return (symbols.float() * scale[:, None, None] - target).square().sum()

        x = initial_images(start, len(part), settings).to(device)
        out[first : first + len(part)] = minimise(x, distance, settings, advance)
    return out


def initial_images(start: NDArray[np.float32], count: int, settings: WhiteBoxSettings) -> Tensor:
    """The images [count, 3, height, width] that the search starts from."""
    return torch.from_numpy(np.tile(0 * start if settings.from_zero else start, (count, 1, 1, 1)))


def minimise(
    x: Tensor, distance: Callable[[Tensor, int], Tensor], settings: WhiteBoxSettings, advance: Callable[[int], None]
) -> NDArray[np.float32]:
    """Images float32 [n, 3, height, width] in 0..1 that minimise ``distance(x, step)`` + lambda T(x), searched from ``x``."""
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=settings.lr, fused=True)
    for step in range(settings.steps):
        if settings.annealed:
            optimizer.param_groups[0]["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        optimizer.zero_grad()
        distance(x, step).backward()
        with torch.no_grad():
            assert x.grad is not None
            x.grad.nan_to_num_(0, 0, 0)  # of a transmitter that divides by nothing, as for black: that picture waits
            add_smoothing(x, x.grad, settings.lam, settings.beta)
            optimizer.step()
            x.clamp_(0, 1)
        advance(len(x))
    return x.detach().cpu().numpy()


def add_smoothing(x: Tensor, gradient: Tensor, lam: float, beta: float) -> None:
    """Add the gradient of lambda T(x), Eq. (3) summed over all images, to ``gradient``; both are [n, 3, height, width].

    A pixel without a lower or a right neighbour does not count. The gradient is written out because automatic differentiation
    takes three times as long, which would be a third of a step.
    """
    corner = x[:, :, :-1, :-1]
    down = x[:, :, 1:, :-1] - corner
    right = x[:, :, :-1, 1:] - corner
    weight = torch.addcmul(down.square().add_(1e-8), right, right).pow_(beta / 2 - 1).mul_(lam * beta)
    down *= weight
    right *= weight
    gradient[:, :, 1:, :-1] += down
    gradient[:, :, :-1, 1:] += right
    gradient[:, :, :-1, :-1] -= down.add_(right)
