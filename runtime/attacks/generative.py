"""A generative Eve: the likeliest pictures that explain what she received, under a model of what pictures look like.

    noise z ──┬─ the model: which picture is behind z? ── pulled towards f(x) = ŷ_e ── less noise added again ──┐
              └──────────────────────────────────────── at every noise level ───────────────────────────────────┘

Eve knows: the deployed transmitter f, her SNR, the attacker's images, on which she trains a model of pictures (``flow``).
She does: posterior sampling guided through the transmitter by the received symbols, as DiffCom does (Wang et al.,
arXiv 2406.07390, after DPS, Chung et al., ICLR 2023). At each noise level she solves for the picture that both the symbols and
the model's guess allow, each weighted by its variance, in place of one gradient step (DAPS, Zhang et al., CVPR 2025; DiffPIR,
Zhu et al., CVPRW 2023; the variance of a guess after Song et al., ICLR 2023). From that sample she climbs to the likeliest
picture (RED-diff, Mardani et al., ICLR 2024), which is closer to the one sent. The symbols weigh by her SNR; nothing is tuned
to a link. Where as much of that as can be in a picture hardly explains the symbols, she takes all of their power for noise and
searches again: what comes out of a defence that hides everything is a picture of the model's, which is nobody's, pulled towards
the symbols as far as they go.
Positive control: without a defence she must see.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from semseal.runtime.attacks.accelerator import best_device, pictures_at_once
from semseal.runtime.attacks.autocast import bf16_where_native
from semseal.runtime.attacks.flow import Flow, repeatable, times
from semseal.runtime.attacks.whitebox import DifferentiableTransmitter
from torch import Tensor

REFINED_FROM, REFINED_TO = 0.5, 0.1  # the noise, in standard deviations of the pictures, with which the answer is refined
REFINED_LEVELS = 6
REFINE = 0.03  # the first step of that, of values in 0..1
JUDGED_AT = 0.5  # the noise that takes from an answer what only fits the symbols and is in no picture
MAX_UNEXPLAINED = 0.8  # of the power beyond the noise: a picture that explains less was not sent
MIN_NOISE = 1e-5  # variance of a real value of the symbols: what is differentiated is no closer to the engine
PULL = 0.5  # the first step of a search, in standard deviations of the guess that it starts from


Send = Callable[[Tensor], Tensor]
"""Images [batch, 3, height, width] to symbols [batch, N, 2], with gradients."""


@dataclass(frozen=True)
class GuidedSettings:
    """``levels`` of noise, at each of which ``pulls`` gradient steps are taken, and then ``refined`` more."""

    levels: int = 16
    pulls: int = 4
    refined: int = 120


def restore(
    flow: Flow,
    transmitter: DifferentiableTransmitter,
    received: NDArray[np.complex64],
    snr_db: float,
    h: int,
    settings: GuidedSettings,
    seed: int,
    batch: int | None = None,
    advance: Callable[[int], None] = lambda image_steps: None,
    scales: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Symbols complex64 [n, N] to images float32 [n, 3, height, width] in 0..1; ``h`` is the number of feature rows.

    ``scales`` [n] is by what the transmitter's symbols are multiplied before they are sent; None: 1. ``advance`` is called
    after every gradient step with the number of images in the batch.
    """
    device, batch, noise = best_device(), batch or pictures_at_once(), 10 ** (-snr_db / 10) / 2
    flow, out = flow.to(device), []
    with repeatable():
        search = _Search(flow, settings, torch.Generator(device).manual_seed(seed), advance)
        for first in range(0, len(received), batch):
            part = received[first : first + batch]
            target = torch.from_numpy(np.ascontiguousarray(part).view(np.float32).reshape(len(part), -1, 2)).to(device)
            gain = np.ones(len(part), np.float32) if scales is None else scales[first : first + batch]
            loud = torch.from_numpy(gain).to(device)
            variance = torch.full_like(loud, max(noise, MIN_NOISE))
            send = _sender(transmitter, h, loud)
            found = _sampled(search, send, target, variance, settings.levels, settings.pulls)
            found, unexplained = _refined(search, send, found, target, variance)
            power = target.square().flatten(1).mean(dim=1)
            again = unexplained > MAX_UNEXPLAINED * (power - variance)
            # all that these hold may be noise: they guide no more than that, and the model says what is a picture
            if again.any():
                some = _sender(transmitter, h, loud[again])
                sample = _sampled(search, some, target[again], power[again], settings.levels, settings.pulls)
                found[again] = _in_model(search, sample)
            out.append(found.cpu())
    return torch.cat(out).numpy()


@dataclass(frozen=True, eq=False)
class _Search:
    """What is the same for all pictures."""

    flow: Flow
    settings: GuidedSettings
    generator: torch.Generator
    advance: Callable[[int], None]


def _sampled(search: _Search, send: Send, target: Tensor, noise: Tensor, levels: int, pulls: int) -> Tensor:
    """Pictures that may be behind ``target`` [batch, N, 2] under a variance of its noise [batch].

    Noise is drawn anew at every level, so that early errors are forgotten.
    """
    flow, generator = search.flow, search.generator
    z = picture = flow.noise(len(target), generator)
    for t, after in pairwise(times(levels)):
        at = t / (1 - t)
        error = at**2 / (1 + at**2) * float(flow.deviation) ** 2  # as Song et al. (ICLR 2023) have it
        picture = pull(_guess(flow, z, t), send, target, noise, error, pulls, search.advance)
        clean = flow.z_of(picture)
        z = (1 - after) * clean + after * flow.noise(len(target), generator)
    return picture


def _sender(transmitter: DifferentiableTransmitter, h: int, gain: Tensor) -> Send:
    """Images [batch, 3, height, width] to symbols [batch, N, 2], multiplied by ``gain`` [batch]."""
    index = torch.arange(len(gain) * h, dtype=torch.int32, device=gain.device).reshape(len(gain), h)

    def send(x: Tensor) -> Tensor:
        with bf16_where_native():
            symbols = transmitter(x, index)
        return symbols.float().nan_to_num() * gain[:, None, None]

    return send


@torch.no_grad()
def _guess(flow: Flow, z: Tensor, t: float) -> Tensor:
    return flow.pictures_of(flow(z, torch.full((len(z),), t, device=z.device)))


def pull(
    guess: Tensor, send: Send, target: Tensor, noise: Tensor, error: float, steps: int, advance: Callable[[int], None]
) -> Tensor:
    """The pictures between ``guess`` and what was received, each weighted by its error: Adam, from the guess.

    ``noise`` [batch] is the variance of a real value of the symbols, ``error`` that of the guess's pixels.
    """
    moved = torch.zeros_like(guess).requires_grad_()  # in standard deviations of the guess
    optimizer = torch.optim.Adam([moved], lr=PULL, betas=(0.8, 0.95))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = PULL * (1 - step / steps)
        optimizer.zero_grad()
        misfit = (send(guess + error**0.5 * moved) - target).square().flatten(1).sum(dim=1)
        ((misfit / noise).sum() / 2 + moved.square().sum() / 2).backward()
        with torch.no_grad():
            assert moved.grad is not None
            moved.grad.nan_to_num_(0, 0, 0)  # of a transmitter that divides by nothing
        optimizer.step()
        advance(len(guess))
    return (guess + error**0.5 * moved.detach()).clamp(0, 1)


def _refined(search: _Search, send: Send, picture: Tensor, target: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """From a sample to the likeliest picture, and the variance [batch] of what the model's guess leaves unexplained.

    The slope of the likelihood of pictures with some noise, drawn anew at every step and less and less, is the way from the
    picture to the model's guess, over the variance of the noise.
    """
    flow, steps = search.flow, search.settings.refined
    levels = np.geomspace(REFINED_FROM, REFINED_TO, REFINED_LEVELS)
    x = picture.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=REFINE)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = REFINE * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        at = float(levels[step * REFINED_LEVELS // steps])
        t, error = at / (1 + at), (at * float(flow.deviation)) ** 2
        guess = _guess(flow, (1 - t) * flow.z_of(x.detach()) + t * flow.noise(len(x), search.generator), t)
        misfit = (send(x) - target).square().flatten(1).sum(dim=1)
        ((misfit / noise).sum() / 2 + (x - guess).square().sum() / (2 * error)).backward()
        with torch.no_grad():
            assert x.grad is not None
            x.grad.nan_to_num_(0, 0, 0)
            optimizer.step()
            x.clamp_(0, 1)
        search.advance(len(x))
    with torch.no_grad():
        left = (send(_in_model(search, x)) - target).square().flatten(1).mean(dim=1) - noise
    return x.detach(), left


def _in_model(search: _Search, x: Tensor) -> Tensor:
    """As much of pictures as is in the model: its guess behind them and some noise."""
    t = JUDGED_AT / (1 + JUDGED_AT)
    return _guess(search.flow, (1 - t) * search.flow.z_of(x.detach()) + t * search.flow.noise(len(x), search.generator), t)
