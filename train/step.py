"""One update of a link and how good it is, with everything random drawn from (seed, step, device)."""

import math
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from semseal.runtime import radio
from semseal.train import channel
from semseal.train.config import ModelConfig, TrainConfig
from semseal.train.data import to_images
from semseal.train.edge import EdgeCodec
from semseal.train.loss import log_loss, psnr, reconstruction_loss
from semseal.train.model import DeepJSCC
from torch import Tensor

Link = DeepJSCC | EdgeCodec


def build(config: ModelConfig) -> Link:
    """The untrained network of a configuration."""
    return DeepJSCC(config) if config.network == "paper" else EdgeCodec(config)


def update(
    link: Any, optimizer: Any, fabric: Fabric, config: TrainConfig, batch: NDArray[np.uint8], step: int, turn: bool, stop: bool
) -> tuple[float, float, float, bool]:
    """One update. ``turn`` is as in ``to_images``.

    Returns the loss and mean square error over all devices, the gradient's norm before clipping, and whether any wants to stop.
    Where loss or gradient is not finite, the weights are left as they were.
    """
    for group in optimizer.param_groups:
        group["lr"] = config.lr * schedule(step, config)
    generator = torch.Generator(fabric.device).manual_seed(_mix_seed(config.seed, step, fabric.global_rank))
    x = to_images(torch.from_numpy(batch).to(fabric.device), turn, generator)
    # not by Fabric's precision, which rounds the images to bf16 too
    with torch.autocast(fabric.device.type, torch.bfloat16, enabled=config.precision == "bf16-mixed"):
        if config.model.network == "edge":
            x_hat = link(x, *_draw_channel(x, config, generator))
        else:
            x_hat = link(x, lambda symbols: transmit(symbols, config, generator))
    if config.model.network == "edge":
        loss, mse = log_loss(x, x_hat.float())
    else:
        loss, mse = reconstruction_loss(x, x_hat.float(), config.lam, config.beta)
    optimizer.zero_grad()
    fabric.backward(loss)
    norm = fabric.clip_gradients(link, optimizer, max_norm=config.clip, error_if_nonfinite=False)
    assert norm is not None
    told = torch.tensor(float(stop), device=fabric.device)
    means = fabric.all_reduce(torch.stack([loss.detach(), mse.detach(), told]), reduce_op="mean")
    assert isinstance(means, Tensor)
    # one copy from the device, so the host waits for it once
    mean_loss, mean_mse, stops, gradient = torch.cat([means, norm.detach().reshape(1)]).tolist()
    if math.isfinite(mean_loss) and math.isfinite(gradient):
        optimizer.step()
    return mean_loss, mean_mse, gradient, stops > 0


def schedule(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a half cosine down to zero at the last step; the factor of lr."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(config.steps - config.warmup, 1)))


def _draw_channel(x: Tensor, config: TrainConfig, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """What the edge network is told of the SNR, the noise power, and the noise; all random from the generator.

    Two dB more than the span on either side. One image in five is sent at another SNR than it was told.
    """
    span = config.snr_span_db + 2
    draws = torch.rand(3, len(x), generator=generator, device=generator.device)
    snr_db = config.snr_db + (2 * draws[0] - 1) * span
    told = torch.where(draws[2] < 0.2, config.snr_db + (2 * draws[1] - 1) * span, snr_db)
    return told, *_effective_noise(x, snr_db, config, generator)


def _effective_noise(x: Tensor, snr_db: Tensor, config: TrainConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What the edge network meets of the run's channel: the noise power behind the equaliser, [batch], and noise of power 2.

    Over a fading channel the power is what a fade leaves, of one that the receiver has made the gain of 1 of. Over OFDM the
    noise also differs from symbol to symbol, as the response does: both are of realisations of the whole receiver.
    """
    batch, h, w = len(x), x.shape[2] // 4, x.shape[3] // 4 * config.model.c
    noise = torch.randn(batch, h, w, generator=generator, device=generator.device)
    power = 10 ** (-snr_db / 10)
    if config.channel == "awgn":
        return power, noise
    if config.channel in radio.CHANNELS:
        drawn = torch.view_as_complex(noise.reshape(batch, -1, 2)) / 2**0.5  # in the place of symbols, which fades change
        parts = [_behind_ofdm(one, float(snr), config, generator) for one, snr in zip(drawn, snr_db, strict=True)]
        rest = torch.view_as_real(torch.stack(parts)).reshape(batch, h, w)
        power = 2 * rest.square().mean(dim=(1, 2))
        return power, rest * (2 / power).sqrt()[:, None, None]
    taps = channel.draw_taps(batch, 1 if config.channel == "rayleigh" else config.taps, generator)
    response = (taps if taps.shape[1] == 1 else torch.fft.fft(taps, n=h * w // 2)).abs().square()
    gain = (response / (response + power[:, None])).mean(dim=1)
    return (1 - gain) / gain.clamp_min(1e-9), noise


def _behind_ofdm(symbols: Tensor, snr_db: float, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """What such a channel adds to symbols [N] that its receiver brings to a gain of 1."""
    gain, noise = _realisation(1, len(symbols), round(snr_db), config, generator)  # whole dB, whose filters are kept
    mean = gain.real.mean()
    return ((gain / mean - 1) * symbols + noise / mean)[0]


def _realisation(n: int, count: int, snr_db: float, config: TrainConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    found = radio.linear(config.channel, n, count, snr_db, np.random.default_rng(seed))
    gain, noise = (torch.from_numpy(array).to(generator.device) for array in found)
    return gain, noise


def transmit(symbols: Tensor, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """The run's channel and equaliser on the paper network's symbols [batch, N, 2]; everything random from the generator."""
    batch, n = symbols.shape[:2]
    if config.channel in radio.CHANNELS:
        gain, rest = _realisation(batch, n, config.snr_db, config, generator)
        return torch.view_as_real(torch.view_as_complex(symbols.float().contiguous()) * gain + rest)
    noise = channel.draw_noise(batch, n, generator)
    if config.channel == "awgn":
        return channel.awgn(symbols, noise, config.snr_db)
    taps = channel.draw_taps(batch, 1 if config.channel == "rayleigh" else config.taps, generator)
    return channel.fading(symbols, taps, noise, config.snr_db)


@torch.no_grad()
def average(averaged: Link, model: Link, decay: float) -> None:
    """Move the averaged weights towards those of the model."""
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)


@torch.no_grad()
def validate(model: Link, config: TrainConfig, x: Tensor) -> dict[str, float]:
    """Mean PSNR in dB on held-out pictures by SNR, in float32, always with the same noise."""
    span = config.snr_span_db
    measured = {}
    for snr_db in [config.snr_db - span, config.snr_db, config.snr_db + span] if span else [config.snr_db]:
        generator = torch.Generator(x.device).manual_seed(config.seed)
        if isinstance(model, EdgeCodec):
            told = torch.full((len(x),), snr_db, device=x.device)
            x_hat = model(x, told, *_effective_noise(x, told, config, generator)).clamp(0, 1)
        else:
            x_hat = model.decode(transmit(model.encode(x), config, generator))
        measured[f"{snr_db:g}"] = float(psnr((x_hat - x).square().mean(dim=(1, 2, 3))).mean())
    return measured


def _mix_seed(*parts: int) -> int:
    """One generator seed of several small integers, by a multiplicative hash; torch's CPU generator uses its low 32 bits."""
    value = 0
    for part in parts:
        value = ((value ^ part) * 0x9E3779B97F4A7C15 + 1) % 2**63
    return value
