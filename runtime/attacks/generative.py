"""A generative Eve: the likeliest pictures that explain what she received, under a model of what pictures look like.

    noise z ──┬─ the model: which picture is behind z? ── pulled towards f(x) = ŷ_e ── less noise added again ──┐
              └──────────────────────────────────────── at every noise level ───────────────────────────────────┘

Eve knows: the deployed transmitter f, her SNR, the attacker's images, on which she trains a model of pictures (``flow``).
She does: posterior sampling guided through the transmitter by the received symbols, as DiffCom does (Wang et al.,
arXiv 2406.07390, after DPS, Chung et al., ICLR 2023). At each noise level she solves for the picture that both the symbols and
the model's guess allow, each weighted by its own error, in place of one gradient step (Zhang et al., DAPS, CVPR 2025;
Zhu et al., DiffPIR, CVPRW 2023), and at the end once more around the mean of several guesses. Nothing is tuned to a link: the
symbols weigh by her SNR, and the model's guesses by the error that they have on images of hers that it was not trained on.
Where the symbols fit no picture, by more than her noise and the model's error explain, she trusts them less: under a defence
that hides everything what is left is a picture from the model, which looks convincing and is nobody's.
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

REFINED_AT = 0.1  # the noise, in standard deviations of the pictures, around which the answer is refined
MIN_ERROR = 1e-5  # variance of a guess, of values in 0..1, and of what is received
PULL = 0.5  # the first step of a search, in standard deviations of the guess that it starts from


@dataclass(frozen=True)
class GuidedSettings:
    """``levels`` of noise, at each of which ``pulls`` gradient steps are taken, and then ``refined`` more."""

    levels: int = 20
    pulls: int = 8
    refined: int = 60


@dataclass(frozen=True, eq=False)
class Errors:
    """Of the model's guesses at each time: the variance of their pixels, and of a real value of their symbols."""

    pixels: list[float]
    symbols: list[float]


def restore(
    flow: Flow,
    transmitter: DifferentiableTransmitter,
    received: NDArray[np.complex64],
    practice: NDArray[np.float32],
    snr_db: float,
    h: int,
    settings: GuidedSettings,
    seed: int,
    batch: int | None = None,
    advance: Callable[[int], None] = lambda image_steps: None,
    scales: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Symbols complex64 [n, N] to images float32 [n, 3, height, width] in 0..1; ``h`` is the number of feature rows.

    ``practice`` [m, 3, height, width] are images of the attacker that ``flow`` was not trained on. ``scales`` [n] is by what
    the transmitter's symbols are multiplied before they are sent; None: 1. ``advance`` is called after every gradient step
    with the number of images in the batch.
    """
    device, batch, noise = best_device(), batch or pictures_at_once(), 10 ** (-snr_db / 10) / 2
    generator = torch.Generator(device).manual_seed(seed)
    flow, out = flow.to(device), []
    ts = times(settings.levels)
    with repeatable():
        errors = _errors(flow, transmitter, practice, h, ts)
        last = min(range(settings.levels), key=lambda i: abs(ts[i] / (1 - ts[i]) - REFINED_AT))
        for first in range(0, len(received), batch):
            part = received[first : first + batch]
            target = torch.from_numpy(np.ascontiguousarray(part).view(np.float32).reshape(len(part), -1, 2)).to(device)
            gain = np.ones(len(part), np.float32) if scales is None else scales[first : first + batch]
            send = _sender(transmitter, h, torch.from_numpy(gain).to(device))
            z = flow.noise(len(part), generator)
            for i, (t, after) in enumerate(pairwise(ts)):
                guess = _guess(flow, z, t)
                trusted = errors.pixels[i], errors.symbols[i]
                picture = pull(guess, send, target, noise, trusted, settings.pulls, advance)
                z = (1 - after) * flow.z_of(picture) + after * flow.noise(len(part), generator)
            at = ts[last], errors.pixels[last], errors.symbols[last]
            out.append(_refine(flow, send, picture, target, noise, at, settings.refined, generator, advance).cpu())
    return torch.cat(out).numpy()


def _sender(transmitter: DifferentiableTransmitter, h: int, gain: Tensor) -> Callable[[Tensor], Tensor]:
    """Images [batch, 3, height, width] to symbols [batch, N, 2], multiplied by ``gain`` [batch]."""
    index = torch.arange(len(gain) * h, dtype=torch.int32, device=gain.device).reshape(len(gain), h)

    def send(x: Tensor) -> Tensor:
        with bf16_where_native():
            symbols = transmitter(x, index)
        return symbols.float() * gain[:, None, None]

    return send


@torch.no_grad()
def _guess(flow: Flow, z: Tensor, t: float) -> Tensor:
    return flow.pictures_of(flow(z, torch.full((len(z),), t, device=z.device)))


@torch.no_grad()
def _errors(
    flow: Flow, transmitter: DifferentiableTransmitter, practice: NDArray[np.float32], h: int, ts: list[float]
) -> Errors:
    """Measured on the attacker's images, with noise of a seed of their own."""
    device = best_device()
    generator = torch.Generator(device).manual_seed(0)
    x = torch.from_numpy(practice).to(device)
    loud = _sender(transmitter, h, torch.ones(len(x), device=device))(x)
    send = _sender(transmitter, h, torch.rsqrt(2 * loud.square().mean(dim=(1, 2)) + 1e-12))
    sent, z, pixels, symbols = send(x), flow.z_of(x), [], []
    for t in ts[:-1]:
        guess = _guess(flow, (1 - t) * z + t * flow.noise(len(x), generator), t)
        pixels.append(max(float((guess - x).square().mean()), MIN_ERROR))
        symbols.append(float((send(guess) - sent).square().nan_to_num().mean()))
    return Errors(pixels, symbols)


def pull(
    guess: Tensor,
    send: Callable[[Tensor], Tensor],
    target: Tensor,
    noise: float,
    trusted: tuple[float, float],
    steps: int,
    advance: Callable[[int], None],
) -> Tensor:
    """The pictures between ``guess`` and what was received, each weighted by its error: Adam, from the guess.

    ``noise`` is the variance of a real value of the symbols, ``trusted`` are those of the guess's pixels and of its symbols.
    """
    error, doubt = trusted
    moved = torch.zeros_like(guess).requires_grad_()  # in standard deviations of the guess
    optimizer = torch.optim.Adam([moved], lr=PULL, betas=(0.8, 0.95))
    weight = None
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = PULL * (1 - step / steps)
        optimizer.zero_grad()
        misfit = (send(guess + error**0.5 * moved) - target).square().nan_to_num().flatten(1)
        if weight is None:
            weight = _weight(misfit, noise, doubt)
        ((misfit.sum(dim=1) * weight).sum() + 0.5 * moved.square().sum()).backward()
        with torch.no_grad():
            assert moved.grad is not None
            moved.grad.nan_to_num_(0, 0, 0)  # of a transmitter that divides by nothing
        optimizer.step()
        advance(len(guess))
    return (guess + error**0.5 * moved.detach()).clamp(0, 1)


def _refine(
    flow: Flow,
    send: Callable[[Tensor], Tensor],
    picture: Tensor,
    target: Tensor,
    noise: float,
    at: tuple[float, float, float],
    steps: int,
    generator: torch.Generator,
    advance: Callable[[int], None],
) -> Tensor:
    """The same around what the model makes of the picture itself with a little noise, drawn anew at every step.

    ``at`` is the time of that noise, and the variances of the pixels and of the symbols of the model's guesses there.
    """
    t, error, doubt = at
    x = picture.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=PULL * error**0.5)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = PULL * error**0.5 * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        z = (1 - t) * flow.z_of(x.detach()) + t * flow.noise(len(x), generator)
        guess = _guess(flow, z, t)
        misfit = (send(x) - target).square().nan_to_num().flatten(1)
        weight = _weight(misfit, noise, doubt)
        ((misfit.sum(dim=1) * weight).sum() + (0.5 / error) * (x - guess).square().sum()).backward()
        with torch.no_grad():
            assert x.grad is not None
            x.grad.nan_to_num_(0, 0, 0)
            optimizer.step()
            x.clamp_(0, 1)
        advance(len(x))
    return x.detach()


def _weight(misfit: Tensor, noise: float, doubt: float) -> Tensor:
    """Half of one over the variance of a symbol's real value, [batch]: Eve's noise, or what else the misfit shows."""
    return 0.5 / (misfit.detach().mean(dim=1) - doubt).clamp(min=max(noise, MIN_ERROR))
