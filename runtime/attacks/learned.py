"""Learned inverses that are stronger than the paper's two convolutions, trained on what the defence really sends.

Eve knows the defence and the deployed transmitter, but not the key. For each training step she takes some of the attacker's
images and simulates Alice: symbols of the deployed engine, a scheme under a random key, and her channel's noise, all drawn
afresh. So she never overfits to one key: what she learns is what the defence leaks under a fresh key.

    received ── rows ── (SetEncoder: rows in no order -> rows in order) ── U-Net at h x w ── pixel shuffle ── picture

Without the encoder (``ordered``) she takes the rows as they come, as one would on an undefended link, into a U-Net
(Ronneberger, Fischer, Brox, MICCAI 2015) with sub-pixel upsampling (Shi et al., CVPR 2016). The encoder is a set transformer
(Lee et al., ICML 2019): attention without positions, so its output does not depend on the order in which rows arrive. Learned
queries put them into order.

Positive control: on an undefended link she must see at least as much as the paper's black-box attack. Success: a PSNR above
that of the mean picture.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from semseal.runtime.attacks.accelerator import best_device
from semseal.runtime.attacks.autocast import bf16_where_native
from torch import Tensor, nn

BATCH_SIZE = 16
PEAK_LEARNING_RATE = 1e-3
EMBEDDING_SIZE = 256  # of a row

Simulate = Callable[[NDArray[np.integer], np.random.Generator], NDArray[np.float32]]


class SetEncoder(nn.Module):
    """Rows [batch, streams, rows, row_width], unordered in each frame, to features [batch, channels, h, w] in order."""

    def __init__(self, streams: int, row_width: int, h: int, w: int, channels: int) -> None:
        super().__init__()
        size = EMBEDDING_SIZE
        self.shape = channels, h, w
        self.embed = nn.Sequential(nn.Linear(row_width, size), nn.GELU(), nn.Linear(size, size))
        self.frame = nn.Parameter(torch.randn(streams, 1, size) * size**-0.5)  # marks a row's frame, not its position
        layer = nn.TransformerEncoderLayer(size, 4, 2 * size, dropout=0.0, batch_first=True, norm_first=True)
        self.encode = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.queries = nn.Parameter(torch.randn(h, size) * size**-0.5)
        self.decode = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(size, 4, 2 * size, dropout=0.0, batch_first=True, norm_first=True), 2
        )
        self.project = nn.Linear(size, w * channels)

    def forward(self, rows: Tensor) -> Tensor:
        channels, h, w = self.shape
        embedded = (self.embed(rows) + self.frame).flatten(1, 2)
        in_order = self.decode(self.queries.expand(len(rows), -1, -1), self.encode(embedded))
        return self.project(in_order).reshape(-1, h, w, channels).permute(0, 3, 1, 2)


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
    """Received rows [batch, streams, h, w*c] to pictures [batch, streams, 3, height, width] in 0..1, the streams in any order.

    With ``ordered`` the streams become channels, otherwise the rows of each stream are a set.
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

    def forward(self, received: Tensor) -> Tensor:
        streams, h, w, c = self.input
        if self.encoder is None:
            features = received.reshape(-1, streams, h, w, c).permute(0, 1, 4, 2, 3).flatten(1, 2)
        else:
            features = self.encoder(received)
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
    advance: Callable[[int], None] = lambda images: None,
) -> Inverse:
    """Fit the mean squared error on the attacker's ``images``, float32 [m, 3, height, width].

    ``simulate(chosen, rng)`` returns what Eve would receive for the images ``chosen`` (indices, [batch, streams]) under a fresh
    key and fresh noise: float32 [batch, streams, h, w*c]. Two streams are scored in whichever order of the outputs fits
    better: with half of the rows swapped nothing on air says which frame is whose, and a network that had to say would answer
    with a blend of the two. ``advance`` is called after every step with the number of images in the batch. The network comes
    back on ``best_device``, where it was trained.
    """
    device, rng = best_device(), np.random.default_rng(seed)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=1e-4)
    warmup = 0.0 if steps == 10 else 0.1  # OneCycleLR divides by zero if the warm-up is exactly one step
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps, pct_start=warmup)
    targets = torch.from_numpy(images).to(device)
    for _ in range(steps):
        chosen = rng.integers(len(images), size=(BATCH_SIZE, network.input[0]))
        received = torch.from_numpy(simulate(chosen, rng)).to(device)
        with bf16_where_native():
            guess = network(received)
        errors = [(guess.float() - sent).square().mean(dim=(1, 2, 3, 4)) for sent in (targets[chosen], targets[chosen].flip(1))]
        loss = torch.minimum(*errors).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        advance(BATCH_SIZE)
    return network.eval()


@torch.no_grad()
def invert(network: Inverse, received: NDArray[np.float32]) -> NDArray[np.float32]:
    """Received rows float32 [n, streams, h, w*c] to pictures float32 [n, streams, 3, height, width]."""
    device = next(network.parameters()).device
    return torch.cat([network(part.to(device)).cpu() for part in torch.from_numpy(received).split(32)]).numpy()
