"""What training meets of a channel: the paper network its symbols, the edge network the noise that a receiver leaves."""

import dataclasses
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from semseal.runtime import channel as edge_channel
from semseal.runtime import radio
from semseal.train.config import CHANNELS, ModelConfig, TrainConfig
from semseal.train.step import _effective_noise, transmit

EDGE = TrainConfig(model=ModelConfig(height=32, width=32, c=16, network="edge"), batch=4)
WITHOUT_SIONNA = find_spec("sionna") is None and "sionna-no-rt is not installed: pip install sionna-no-rt"


def of(kind):
    needs = pytest.mark.skipif("dl-" in kind and bool(WITHOUT_SIONNA), reason=str(WITHOUT_SIONNA))
    return pytest.param(kind, marks=needs)


@pytest.mark.parametrize("kind", [of(kind) for kind in ("awgn", "rayleigh", "multipath", "tdl-c", "cdl-c")])
def test_the_edge_network_meets_the_noise_that_the_audits_channel_leaves(kind):
    config, n, frames = dataclasses.replace(EDGE, channel=kind), 512, 150 if kind in radio.CHANNELS else 1500
    x, snr_db = torch.zeros(frames, 3, 32, 32), torch.full((frames,), 10.0)
    power, noise = _effective_noise(x, snr_db, config, torch.Generator().manual_seed(0))
    assert power.shape == (frames,)
    assert noise.shape == (frames, 8, 8 * 16)
    assert noise.square().mean().item() == pytest.approx(1, rel=0.05)  # each part's; the power 2 is a symbol's
    symbols = edge_channel.draw_noise(frames, n, np.random.default_rng(1)) / np.float32(2**0.5)
    rng = np.random.default_rng(2)
    if kind in radio.CHANNELS:
        received = radio.transmit(kind, symbols, 10.0, rng, unbiased=True)
    else:
        received = edge_channel.transmit(kind, symbols, 10.0, rng, config.taps, unbiased=True)
    expected = np.quantile(-10 * np.log10(radio.effective_noise(symbols, received)), (0.25, 0.5, 0.75))
    assert np.quantile(-10 * power.log10().numpy(), (0.25, 0.5, 0.75)) == pytest.approx(expected, abs=1.5)


@pytest.mark.skipif(bool(WITHOUT_SIONNA), reason=str(WITHOUT_SIONNA))
def test_the_paper_network_gets_a_gradient_through_ofdm():
    symbols = torch.randn(2, 100, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    config = TrainConfig(model=ModelConfig(height=16, width=16, c=2), channel="tdl-c")
    one, two = (transmit(symbols, config, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two)
    one.square().sum().backward()
    assert (symbols.grad.square().sum(dim=2) > 0).all()


def test_a_channel_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=f"one of {', '.join(CHANNELS)}, got 'rician'"):
        TrainConfig(channel="rician")
