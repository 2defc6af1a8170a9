"""Black-box model inversion, Eq. (6) of the paper: Eve knows no weights and trains an inverse network.

She feeds pictures of her own to the deployed transmitter, hears its symbols through her channel, and fits

    f⁻¹ = arg min over g of  mean ||g(ŷ) - x||²       one upsampling layer and two convolutions, Adam 1e-3

Under a defence she hears defended symbols, each under a scheme of its own, and trains on those.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from semseal.runtime.attacks.arithmetic import fast_convolutions
from torch import Tensor, nn

BATCH = 16


class InverseNetwork(nn.Module):
    """The paper's inverse network: ŷ_e [batch, N, 2] -> features [batch, c, h, w] -> upsampling, convolution, convolution.

    Deliberately as small as the paper's; a larger network sees more, so a low figure here bounds nothing.
    """

    def __init__(self, h: int, w: int, c: int, height: int, width: int, hidden: int = 16) -> None:
        super().__init__()
        self.shape = h, w, c
        self.upsample = nn.Upsample((height, width), mode="bilinear")
        self.first = nn.Conv2d(c, hidden, 3, padding=1)
        self.second = nn.Conv2d(hidden, 3, 3, padding=1)

    def forward(self, symbols: Tensor) -> Tensor:
        h, w, c = self.shape
        features = symbols.reshape(-1, h, w, c).permute(0, 3, 1, 2)
        return torch.sigmoid(self.second(torch.relu(self.first(self.upsample(features)))))


def new_network(h: int, w: int, c: int, height: int, width: int, seed: int) -> InverseNetwork:
    """An untrained network whose first weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return InverseNetwork(h, w, c, height, width)


def train_inverse(
    network: InverseNetwork,
    heard: NDArray[np.complex64],
    images: NDArray[np.float32],
    *,
    steps: int,
    seed: int,
    batch: int = BATCH,
    lr: float = 1e-3,
    advance: Callable[[int], None] = lambda pictures: None,
) -> InverseNetwork:
    """Fit Eq. (6) on what Eve heard, complex64 [m, N], of her own images float32 [m, 3, height, width]."""
    generator = torch.Generator().manual_seed(seed)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    symbols = torch.from_numpy(np.ascontiguousarray(heard).view(np.float32).reshape(len(heard), -1, 2))
    targets = torch.from_numpy(images)
    for step in range(steps):
        chosen = torch.randint(len(heard), (batch,), generator=generator)
        optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        with fast_convolutions():
            guess = network(symbols[chosen])
        loss = (guess.float() - targets[chosen]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        advance(batch)
    return network.eval()


@torch.no_grad()
def invert(network: InverseNetwork, heard: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Symbols complex64 [n, N] to images float32 [n, 3, height, width] in 0..1."""
    symbols = torch.from_numpy(np.ascontiguousarray(heard).view(np.float32).reshape(len(heard), -1, 2))
    return torch.cat([network(part) for part in symbols.split(32)]).numpy()
