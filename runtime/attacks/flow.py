"""A small model of pictures, learnt by flow matching: what a picture is likely to look like, given noise or given symbols.

    picture ── centred, in patches: z ── z_t = (1 - t) z + t e ── U-Net (z_t, t, given) ── the picture's z again
                                          e: Gaussian noise                  └ features [batch, c, h, w], or nothing

Flow matching on the straight path (Lipman et al., ICLR 2023). The network answers with the clean picture, from which the
velocity follows as (z_t - z) / t, and is preconditioned and weighted as Karras et al. (NeurIPS 2022) do with a noise of
t / (1 - t). It sees the picture as patches in channels, so that its convolutions run at a fraction of the size; of all weights
the running average is kept. Everything random comes from a seed, and on a GPU only kernels that repeat themselves are used.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from semseal.runtime.attacks.accelerator import best_device, pictures_at_once
from semseal.runtime.attacks.autocast import bf16_where_native
from torch import Tensor, nn

PEAK_LEARNING_RATE = 3e-3  # of a first level of 16 channels or fewer; wider ones take smaller steps
AVERAGED = 0.999  # of the weights, what is left of their average after a step
DROPPED = 0.1  # of the channels in a block, while it trains: a few hundred pictures are learnt by heart otherwise
NOISE_MEAN, NOISE_DEVIATION = 0.0, 1.4  # of the logarithm of the noise, in standard deviations of the pictures, in training
TOLD_SIZE = 128  # of what every block is told about the noise

Given = Callable[[NDArray[np.integer], np.random.Generator], NDArray[np.float32]]
"""Places of pictures [batch] and a generator to what is given with them: features float32 [batch, c, h, w]."""


@dataclass(frozen=True)
class FlowSettings:
    """The channels of the first level, and for how many steps of how many pictures it trains."""

    width: int
    steps: int
    batch: int = 16


@dataclass(frozen=True)
class FlowShape:
    """Pictures of ``height`` x ``width`` as patches of ``patch`` x ``patch`` on a grid; with ``given`` channels beside them."""

    height: int
    width: int
    rows: int
    columns: int
    patch: int
    given: int = 0


def shape_of(height: int, width: int, patch: int = 4) -> FlowShape:
    """That of pictures alone."""
    return FlowShape(height, width, -(-height // patch), -(-width // patch), patch)


def shape_beside(height: int, width: int, h: int, w: int, c: int) -> FlowShape:
    """That of pictures with features [c, h, w] beside them: a patch for each place."""
    return FlowShape(height, width, h, w, max(1, math.ceil(height / h)), c)


class Block(nn.Module):
    """Two convolutions beside an identity, told the noise."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Sequential(_norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.tell = nn.Linear(TOLD_SIZE, 2 * outputs)
        self.norm = _norm(outputs)
        self.second = nn.Sequential(nn.SiLU(), nn.Dropout2d(DROPPED), _silent(nn.Conv2d(outputs, outputs, 3, padding=1)))
        self.beside = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        gain, shift = self.tell(told)[:, :, None, None].chunk(2, dim=1)
        y: Tensor = self.beside(x) + self.second(self.norm(self.first(x)) * (1 + gain) + shift)
        return y


class Attention(nn.Module):
    """Every place of the coarsest level looks at all others (Vaswani et al., 2017); written out, it repeats itself on a GPU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.ask = _norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.answer = _silent(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.ask(self.norm(x)).flatten(2).chunk(3, dim=1)
        weights = torch.softmax((query.transpose(1, 2) @ key).float() / math.sqrt(x.shape[1]), dim=2)
        found = value @ weights.to(value.dtype).transpose(1, 2)
        y: Tensor = x + self.answer(found.reshape(x.shape))
        return y


class Flow(nn.Module):
    """The picture behind z_t. ``mean`` [3, height, width] and ``deviation`` of the pictures are set by ``train``."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, shape: FlowShape, width: int) -> None:
        super().__init__()
        self.shape, channels = shape, 3 * shape.patch**2
        self.register_buffer("mean", torch.full((3, shape.height, shape.width), 0.5))
        self.register_buffer("deviation", torch.tensor(0.25))
        self.told = nn.Sequential(nn.Linear(32, TOLD_SIZE), nn.SiLU(), nn.Linear(TOLD_SIZE, TOLD_SIZE), nn.SiLU())
        self.enter = nn.Conv2d(channels + shape.given, width, 3, padding=1)
        # what is given also reaches the picture straight, as a linear code would have it, by as much as the noise asks for
        self.direct = _silent(nn.Conv2d(shape.given, channels, 1, bias=False)) if shape.given else None
        self.asked = nn.Linear(TOLD_SIZE, channels)
        self.fine = Block(width, width)
        self.down = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.middle = Block(2 * width, 2 * width)
        self.deeper = nn.Conv2d(2 * width, 3 * width, 3, 2, 1)
        self.coarse, self.look, self.again = Block(3 * width, 3 * width), Attention(3 * width), Block(3 * width, 3 * width)
        self.rise = nn.Conv2d(3 * width, 4 * 2 * width, 1)
        self.rejoin = Block(4 * width, 2 * width)
        self.up = nn.Conv2d(2 * width, 4 * width, 1)
        self.leave = Block(2 * width, width)
        self.pixels = nn.Sequential(_norm(width), nn.SiLU(), _silent(nn.Conv2d(width, channels, 3, padding=1)))

    def forward(self, z: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        """z_t [batch, 3 * patch², rows, columns] at the times t [batch] to the z behind it."""
        at = t[:, None, None, None]
        power = (1 - at).square() + at.square()
        clean: Tensor = (1 - at) / power * z + at * power.rsqrt() * self._network(z * power.rsqrt(), t, given).float()
        return clean

    def _network(self, x: Tensor, t: Tensor, given: Tensor | None) -> Tensor:
        with bf16_where_native():
            angles = torch.log(t / (1 - t).clamp(min=1e-3) + 1e-3)[:, None] * torch.arange(1, 17, device=t.device) / 4
            told = self.told(torch.cat([angles.sin(), angles.cos()], dim=1))
            x = x if given is None else torch.cat([x, given], dim=1)
            fine = self.fine(self.enter(x.contiguous(memory_format=torch.channels_last)), told)
            middle = self.middle(self.down(fine), told)
            deep = self.again(self.look(self.coarse(self.deeper(middle), told)), told)
            middle = self.rejoin(torch.cat([_risen(self.rise(deep), middle), middle], dim=1), told)
            fine = self.leave(torch.cat([_risen(self.up(middle), fine), fine], dim=1), told)
            found: Tensor = self.pixels(fine)
            if given is not None and self.direct is not None:
                found = found + self.direct(given) * (1 + self.asked(told)[:, :, None, None])
            return found

    def z_of(self, pictures: Tensor) -> Tensor:
        """Pictures [batch, 3, height, width] in 0..1 as z."""
        size = self.shape.rows * self.shape.patch, self.shape.columns * self.shape.patch
        centred = (pictures - self.mean) / self.deviation
        if centred.shape[2:] != size:
            centred = F.interpolate(centred, size, mode="bilinear")
        return F.pixel_unshuffle(centred, self.shape.patch)

    def pictures_of(self, z: Tensor) -> Tensor:
        """The reverse, in 0..1."""
        centred, size = F.pixel_shuffle(z, self.shape.patch), (self.shape.height, self.shape.width)
        if centred.shape[2:] != size:
            centred = F.interpolate(centred, size, mode="bilinear")
        return (centred * self.deviation + self.mean).clamp(0, 1)

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Gaussian noise in the shape of z."""
        shape = count, 3 * self.shape.patch**2, self.shape.rows, self.shape.columns
        return torch.randn(shape, generator=generator, device=generator.device)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _silent(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    return layer


def _risen(x: Tensor, like: Tensor) -> Tensor:
    """Twice as large, cut to the size of ``like``."""
    return F.pixel_shuffle(x, 2)[:, :, : like.shape[2], : like.shape[3]]


def new_flow(shape: FlowShape, width: int, seed: int) -> Flow:
    """An untrained model whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Flow(shape, width)


def repeatable() -> AbstractContextManager[None]:
    """Convolutions on a GPU that give the same bits every time."""
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    return flags


def train(
    flow: Flow,
    images: NDArray[np.float32],
    settings: FlowSettings,
    seed: int,
    given: Given | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> list[float]:
    """Fit to pictures float32 [m, 3, height, width] in 0..1, mirrored half of the time unless something is ``given``.

    The losses of all steps. The flow comes back on ``best_device``. ``advance`` is called after every step with the number of
    pictures in the batch.
    """
    device, rng = best_device(), np.random.default_rng(seed)
    peak = PEAK_LEARNING_RATE * min(1.0, math.sqrt(16 / settings.width))
    generator = torch.Generator(device).manual_seed(seed)
    _centre(flow, images, mirrored=given is None)
    flow = flow.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(flow.parameters(), lr=peak, weight_decay=1e-3, fused=True)
    averages, losses = [weight.detach().clone() for weight in flow.parameters()], []
    held = torch.from_numpy(images).to(device)
    with repeatable(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # of what is dropped
        for step in range(settings.steps):
            chosen = rng.integers(len(images), size=settings.batch)
            pictures = held[torch.from_numpy(chosen).to(device)]
            if given is None:
                mirrored = torch.from_numpy(rng.random(settings.batch) < 0.5).to(device)
                pictures = torch.where(mirrored[:, None, None, None], pictures.flip(3), pictures)
            beside = None if given is None else torch.from_numpy(given(chosen, rng)).to(device)
            loss = _loss(flow, pictures, generator, beside)
            warm = min(1.0, (step + 1) / (0.05 * settings.steps + 1))
            rate = peak * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
            optimizer.step()
            kept = min(AVERAGED, (1 + step) / (10 + step))
            torch._foreach_lerp_(averages, list(flow.parameters()), 1 - kept)
            losses.append(loss.detach())
            advance(settings.batch)
    with torch.no_grad():
        for weight, average in zip(flow.parameters(), averages, strict=True):
            weight.copy_(average)
    flow.eval()
    return [float(loss) for loss in losses]


def _centre(flow: Flow, images: NDArray[np.float32], mirrored: bool) -> None:
    mean = images.mean(axis=0)
    mean = (mean + mean[:, :, ::-1]) / 2 if mirrored else mean
    flow.mean.copy_(torch.from_numpy(np.ascontiguousarray(mean)))
    squares = np.mean([np.square(image - mean, dtype=np.float64).mean() for image in images])
    flow.deviation.fill_(max(math.sqrt(float(squares)), 1e-3))


def _loss(flow: Flow, pictures: Tensor, generator: torch.Generator, given: Tensor | None) -> Tensor:
    z, device = flow.z_of(pictures), generator.device
    noise = torch.exp(NOISE_MEAN + NOISE_DEVIATION * torch.randn(len(z), generator=generator, device=device))
    t = noise / (1 + noise)
    at = t[:, None, None, None]
    found = flow((1 - at) * z + at * flow.noise(len(z), generator), t, given)
    weight = ((1 - at).square() + at.square()) / at.square()  # every noise counts as much
    return (weight * (found - z).square()).mean()


def times(count: int, largest: float = 20.0, smallest: float = 0.02) -> list[float]:
    """The times of a sampling in ``count`` steps, falling, with 0 at their end; denser where the noise is small.

    Karras et al. (2022), Eq. (5), in noise; t is noise / (1 + noise).
    """
    steps = np.linspace(1, 0, count)
    noises = (smallest ** (1 / 7) + steps * (largest ** (1 / 7) - smallest ** (1 / 7))) ** 7
    return [float(noise / (1 + noise)) for noise in noises] + [0.0]


@torch.no_grad()
def sample(flow: Flow, given: NDArray[np.float32] | None, count: int, steps: int, draws: int, seed: int) -> NDArray[np.float32]:
    """Pictures float32 [count, 3, height, width], each the mean of ``draws``; ``given`` [count, c, h, w] are their features."""
    device, batch, out = best_device(), 2 * pictures_at_once(), []
    generator = torch.Generator(device).manual_seed(seed)
    flow = flow.to(device)
    with repeatable():
        for first in range(0, count, batch):
            part = range(first, min(first + batch, count))
            beside = None if given is None else torch.from_numpy(given[part.start : part.stop]).to(device)
            drawn = torch.zeros(len(part), 3, flow.shape.height, flow.shape.width, device=device)
            for _ in range(draws):
                z = flow.noise(len(part), generator)
                ts = times(steps)
                for t, after in pairwise(ts):
                    clean = flow(z, torch.full((len(part),), t, device=device), beside)
                    z = z * (after / t) + clean * (1 - after / t)
                drawn += flow.pictures_of(z)
            out.append((drawn / draws).cpu())
    return torch.cat(out).numpy()
