"""Black-box model inversion, Eq. (6) of the paper: Eve knows no weights and trains an inverse network.

She feeds the attacker's images to the deployed transmitter, receives its symbols through her channel, and fits

    f⁻¹ = arg min over g of  mean ||g(ŷ) - x||²       one upsampling layer and two convolutions, Adam 1e-3

Under a defence she receives defended symbols, each packet under its own scheme, and trains on those.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from semseal.runtime.attacks.accelerator import best_device
from semseal.runtime.attacks.autocast import bf16_where_native
from torch import Tensor, nn

BATCH_SIZE = 16
LEARNING_RATE = 1e-3  # at the first step
HIDDEN_CHANNELS = 16


class InverseNetwork(nn.Module):
    """The paper's inverse network: ŷ_e [batch, N, 2] -> features [batch, c, h, w] -> upsampling, convolution, convolution.

    Deliberately as small as the paper's. A larger network sees more, so a low figure here is no bound on what Eve can see.
    """

    def __init__(self, h: int, w: int, c: int, height: int, width: int) -> None:
        super().__init__()
        self.shape = h, w, c
        self.upsample = nn.Upsample((height, width), mode="bilinear")
        self.first = nn.Conv2d(c, HIDDEN_CHANNELS, 3, padding=1)
        self.second = nn.Conv2d(HIDDEN_CHANNELS, 3, 3, padding=1)

    def forward(self, symbols: Tensor) -> Tensor:
        h, w, c = self.shape
        features = symbols.reshape(-1, h, w, c).permute(0, 3, 1, 2)
        return torch.sigmoid(self.second(torch.relu(self.first(self.upsample(features)))))


def new_network(h: int, w: int, c: int, height: int, width: int, seed: int) -> InverseNetwork:
    """An untrained network whose initial weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return InverseNetwork(h, w, c, height, width)


def train_inverse(
    network: InverseNetwork,
    received: NDArray[np.complex64],
    images: NDArray[np.float32],
    *,
    steps: int,
    seed: int,
    advance: Callable[[int], None] = lambda images: None,
) -> InverseNetwork:
    """Fit Eq. (6) to the symbols complex64 [m, N] received of the attacker's ``images``, float32 [m, 3, height, width].

    ``advance`` is called after every step with the number of images in the batch. The network comes back on ``best_device``,
    where it was trained.
    """
    device, generator = best_device(), torch.Generator().manual_seed(seed)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    symbols, targets = _as_real(received).to(device), torch.from_numpy(images).to(device)
    for step in range(steps):
        chosen = torch.randint(len(received), (BATCH_SIZE,), generator=generator).to(device)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        with bf16_where_native():
            guess = network(symbols[chosen])
        loss = (guess.float() - targets[chosen]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        advance(BATCH_SIZE)
    return network.eval()


@torch.no_grad()
def invert(network: InverseNetwork, received: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Symbols complex64 [n, N] to images float32 [n, 3, height, width] in 0..1."""
    device = next(network.parameters()).device
    return torch.cat([network(part.to(device)).cpu() for part in _as_real(received).split(32)]).numpy()


def _as_real(symbols: NDArray[np.complex64]) -> Tensor:
    """Symbols complex64 [n, N] as float32 [n, N, 2]."""
    return torch.from_numpy(np.ascontiguousarray(symbols).view(np.float32).reshape(len(symbols), -1, 2))
