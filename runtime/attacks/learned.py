"""Learned inverses that are stronger than the paper's two convolutions, trained on what the defence really sends.

Eve knows the defence and the deployed transmitter, not the key. For each training step she takes pictures of her own and
simulates Alice: symbols of the deployed engine, a scheme under a random key, her channel's noise, all drawn anew. So she
never overfits a key, and what she learns is what the defence leaks under a fresh one.

    heard ── rows ── (SetEncoder: rows in no order -> rows in order) ── U-Net at h x w ── pixel shuffle ── picture

Without the encoder (``ordered``) she takes the rows as they come, as one would for an undefended link: a U-Net (Ronneberger,
Fischer, Brox, MICCAI 2015) with sub-pixel upsampling (Shi et al., CVPR 2016). The encoder is a set transformer (Lee et al.,
ICML 2019): attention without positions, so its answer does not depend on the order in which rows arrive; learned queries
put them into order.

Positive control: undefended, she must see at least as much as the paper's black-box Eve.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from semseal.runtime.attacks.arithmetic import fast_convolutions
from torch import Tensor, nn

BATCH = 16
WIDTH = 256  # of a row's embedding

Simulate = Callable[[NDArray[np.integer], np.random.Generator], NDArray[np.float32]]


class SetEncoder(nn.Module):
    """Rows of each frame [batch, streams, rows, row_width] in no order to features [batch, channels, h, w] in order."""

    def __init__(self, streams: int, row_width: int, h: int, w: int, channels: int) -> None:
        super().__init__()
        self.shape = channels, h, w
        self.embed = nn.Sequential(nn.Linear(row_width, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.frame = nn.Parameter(torch.randn(streams, 1, WIDTH) * WIDTH**-0.5)  # tells the frame of a row, not its place
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.mix = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.queries = nn.Parameter(torch.randn(h, WIDTH) * WIDTH**-0.5)
        self.place = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True), 2
        )
        self.project = nn.Linear(WIDTH, w * channels)

    def forward(self, rows: Tensor) -> Tensor:
        channels, h, w = self.shape
        embedded = (self.embed(rows) + self.frame).flatten(1, 2)
        placed = self.place(self.queries.expand(len(rows), -1, -1), self.mix(embedded))
        return self.project(placed).reshape(-1, h, w, channels).permute(0, 3, 1, 2)


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    groups = math.gcd(8, outputs)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1),
        nn.GroupNorm(groups, outputs),
        nn.GELU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1),
        nn.GroupNorm(groups, outputs),
        nn.GELU(),
    )


class Inverse(nn.Module):
    """What was heard, [batch, streams, h, w*c], to as many pictures [batch, streams, 3, height, width] in 0..1, in any order.

    With ``ordered`` the streams become channels; else the rows of each are a set.
    """

    def __init__(self, streams: int, h: int, w: int, c: int, height: int, width: int, ordered: bool) -> None:
        super().__init__()
        self.input, self.size = (streams, h, w, c), (height, width)
        self.encoder = None if ordered else SetEncoder(streams, w * c, h, w, 32)
        self.enter = _block(streams * c if ordered else 32, 64)
        self.down, self.deep = _block(64, 128, 2), _block(128, 192, 2)
        self.up, self.leave = _block(192 + 128, 128), _block(128 + 64, 64)
        self.grid = max(1, math.ceil(height / h))
        self.pixels = nn.Conv2d(64, 3 * streams * self.grid**2, 3, 1, 1)

    def forward(self, heard: Tensor) -> Tensor:
        streams, h, w, c = self.input
        if self.encoder is None:
            features = heard.reshape(-1, streams, h, w, c).permute(0, 1, 4, 2, 3).flatten(1, 2)
        else:
            features = self.encoder(heard)
        fine = self.enter(features.contiguous(memory_format=torch.channels_last))
        middle = self.down(fine)
        coarse = F.interpolate(self.deep(middle), middle.shape[2:], mode="nearest")
        middle = F.interpolate(self.up(torch.cat([coarse, middle], 1)), fine.shape[2:], mode="nearest")
        picture = F.pixel_shuffle(self.pixels(self.leave(torch.cat([middle, fine], 1))), self.grid)
        if picture.shape[2:] != self.size:
            picture = F.interpolate(picture, self.size, mode="bilinear")
        return torch.sigmoid(picture).unflatten(1, (streams, 3))


def train(
    network: Inverse,
    simulate: Simulate,
    images: NDArray[np.float32],
    *,
    steps: int,
    seed: int,
    lr: float = 1e-3,
    advance: Callable[[int], None] = lambda pictures: None,
) -> Inverse:
    """Fit mean squared error on Eve's own ``images`` [m, 3, height, width], for two streams in the better order of the answers:
    with half of the rows swapped nothing on air says which frame is whose, and to guess would be to answer with a blend.

    ``simulate(chosen, rng)`` returns what she would hear for the images ``chosen`` (places, [batch, streams]) under a fresh key
    and fresh noise: float32 [batch, streams, h, w*c].
    """
    rng = np.random.default_rng(seed)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    targets = torch.from_numpy(images)
    for _ in range(steps):
        chosen = rng.integers(len(images), size=(BATCH, network.input[0]))
        heard = torch.from_numpy(simulate(chosen, rng))
        with fast_convolutions():
            guess = network(heard)
        orders = [(guess.float() - sent).square().mean(dim=(1, 2, 3, 4)) for sent in (targets[chosen], targets[chosen].flip(1))]
        loss = torch.minimum(*orders).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        advance(BATCH)
    return network.eval()


@torch.no_grad()
def invert(network: Inverse, heard: NDArray[np.float32]) -> NDArray[np.float32]:
    """What was heard, float32 [n, streams, h, w*c], to pictures float32 [n, streams, 3, height, width]."""
    return torch.cat([network(part) for part in torch.from_numpy(heard).split(32)]).numpy()
