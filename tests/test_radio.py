"""Channels against Sionna's: TDL and CDL through OFDM, and the flat and multipath ones of semseal.runtime.channel."""

import dataclasses
import os
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from semseal.runtime import channel, ofdm, radio
from semseal.runtime.errors import EngineError
from semseal.runtime.ofdm import Radio

if find_spec("sionna") is None:
    assert not os.environ.get("SEMSEAL_CI"), "CI installs sionna-no-rt, of the extra radio"
    pytest.skip("sionna-no-rt is not installed: pip install sionna-no-rt", allow_module_level=True)

SMALL = Radio(subcarriers=120)
STILL = dataclasses.replace(SMALL, estimation="perfect", cfo_ppm=0.0, linewidth_hz=0.0, clip_db=None)


def unit(batch, n, seed=0):
    """Complex Gaussian symbols of unit power, exactly, in each frame."""
    symbols = channel.draw_noise(batch, n, np.random.default_rng(seed))
    return symbols / np.sqrt(np.square(np.abs(symbols)).mean(axis=1, keepdims=True))


def effective_snr(kind, snr, form, antennas=1, n=1200, frames=64):
    """The mean noise behind the equaliser as an SNR in dB."""
    symbols = unit(frames, n)
    received = radio.transmit(kind, symbols, snr, np.random.default_rng(3), form, antennas, unbiased=False)
    return -10 * np.log10(radio.effective_noise(symbols, received).mean())


# against Sionna


def test_a_response_is_that_of_sionnas_own_ofdm_channel():
    from sionna.phy import config
    from sionna.phy.channel import cir_to_ofdm_channel, subcarrier_frequencies
    from sionna.phy.channel.tr38901 import TDL

    ours = radio.draw_response("tdl-c", 3, 15, SMALL, 2, np.random.default_rng(5))
    config.torch_rng("cpu").manual_seed(int(np.random.default_rng(5).integers(2**62)))
    tdl = TDL("C", 100e-9, 3.5e9, min_speed=3 / 3.6, num_rx_ant=2, device="cpu")
    gains, delays = tdl(3, 15, 1 / SMALL.symbol_s)
    theirs = cir_to_ofdm_channel(subcarrier_frequencies(120, 30e3, device="cpu"), gains, delays)[:, 0, :, 0, 0].numpy()
    assert ours.shape == (3, 2, 15, 120)
    assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("kind", ["tdl-a", "tdl-c", "tdl-d", "cdl-a", "cdl-c", "cdl-d"])
def test_every_channel_has_power_one_and_fades_from_frame_to_frame(kind):
    power = np.square(np.abs(radio.draw_response(kind, 600, 1, SMALL, 2, np.random.default_rng(0))))
    assert power.mean() == pytest.approx(1, abs=0.1)
    of_frames = power.mean(axis=(1, 2, 3))
    assert of_frames.std() > (0.03 if kind.endswith("d") else 0.3)  # d has a line of sight


def test_the_frequency_correlation_is_that_of_sionnas_profile():
    from sionna.phy.channel.tr38901 import TDL
    from sionna.phy.ofdm import tdl_freq_cov_mat

    assert TDL
    drawn = radio.draw_response("tdl-a", 4000, 1, SMALL, 1, np.random.default_rng(1))[:, 0, 0]
    measured = (drawn[:, :, None] * drawn[:, None, :].conj()).mean(axis=0)
    assert measured == pytest.approx(tdl_freq_cov_mat("A", 30e3, 120, 100e-9).numpy(), abs=0.12)


@pytest.mark.parametrize("model", ["A", "C"])
@pytest.mark.parametrize("snr", [0.0, 10.0, 20.0])
def test_not_to_know_the_profile_costs_the_estimate_little(model, snr):
    """The error of our filter under Sionna's true covariance, and of the best there is, which knows it."""
    from sionna.phy.ofdm import tdl_freq_cov_mat

    true = tdl_freq_cov_mat(model, 30e3, 120, 100e-9).numpy().astype(complex)
    noise, there = 10 ** (-snr / 10) / 2, slice(None, None, 2)

    def error(filtered):
        received = true[there, there] + noise * np.eye(60)
        crossed = filtered @ true[there]
        return np.trace(true - crossed - crossed.conj().T + filtered @ received @ filtered.conj().T).real / 120

    best = true[:, there] @ np.linalg.inv(true[there, there] + noise * np.eye(60))
    ours, supposed = radio._smoother(SMALL, 10 ** (-snr / 10))
    straight, of_ls = radio._smoother(dataclasses.replace(SMALL, estimation="ls"), 10 ** (-snr / 10))
    assert error(best) <= error(ours) < 1.6 * error(best)
    assert error(ours) < 0.5 * error(straight)
    assert supposed == pytest.approx(error(ours), rel=0.6)
    assert of_ls == pytest.approx(error(straight), rel=0.1)


@pytest.mark.parametrize("antennas", [1, 4])
def test_combining_and_equalising_are_sionnas_linear_mmse(antennas):
    from sionna.phy.mimo import lmmse_equalizer

    known = radio.draw_response("tdl-c", 2, 3, SMALL, antennas, np.random.default_rng(2))
    received = known * unit(6, 120).reshape(2, 1, 3, 120) + radio._noise(known.shape, 0.1, np.random.default_rng(3))
    ours, gain = radio.combine(radio.Estimate(known, 0.0, 0.0), received, 0.1)
    y, h = (torch.from_numpy(np.moveaxis(array, 1, -1).copy()) for array in (received, known))
    s = 0.1 * torch.eye(antennas, dtype=torch.complex64).expand(2, 3, 120, antennas, antennas)
    theirs, noise = lmmse_equalizer(y, h[..., None], s)  # which divides by the gain
    assert ours / gain == pytest.approx(theirs[..., 0].numpy(), abs=1e-3)
    assert (1 - gain) / gain == pytest.approx(noise[..., 0].numpy(), rel=1e-3)


@pytest.mark.parametrize("taps", [1, 2, 8])
def test_our_multipath_is_sionnas_time_channel_behind_a_cyclic_prefix(taps):
    from sionna.phy.channel import ApplyTimeChannel

    symbols, drawn = unit(2, 65), channel.draw_taps(2, taps, np.random.default_rng(4))
    with_prefix = np.concatenate([symbols[:, 65 - taps + 1 :], symbols], axis=1)
    n = with_prefix.shape[1]
    h = np.broadcast_to(drawn[:, None, None, None, None, None, :], (2, 1, 1, 1, 1, n + taps - 1, taps)).copy()
    through = ApplyTimeChannel(n, taps, device="cpu")(torch.from_numpy(with_prefix[:, None, None]), torch.from_numpy(h))
    theirs = through.numpy()[:, 0, 0, taps - 1 : taps - 1 + 65]
    silent = np.zeros_like(symbols)
    response = np.fft.fft(drawn, n=65)
    # undo our equaliser to see what was received
    equalised = np.fft.fft(channel.fading(symbols, drawn, silent, 10.0))
    ours = np.fft.ifft(equalised * (np.abs(response) ** 2 + 0.1) / response.conj())
    assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("antennas", [1, 4])
def test_our_rayleigh_is_sionnas_flat_fading_with_its_equaliser(antennas):
    """In distribution: what is left of the noise, frame by frame, in quartiles over many frames."""
    from sionna.phy import config
    from sionna.phy.channel import FlatFadingChannel
    from sionna.phy.mimo import lmmse_equalizer

    config.torch_rng("cpu").manual_seed(1)
    flat = FlatFadingChannel(1, antennas, add_awgn=True, return_channel=True, device="cpu")
    frames, n = 1500, 64
    x = unit(frames, n)
    sent = torch.from_numpy(x).reshape(-1, 1)
    _, h = flat(torch.zeros(frames, 1, dtype=torch.complex64), 0.1)
    h = h.repeat_interleave(n, dim=0)  # one fade for each frame
    noise = torch.from_numpy(radio._noise((frames * n, antennas), 0.1, np.random.default_rng(2)))
    y = (h @ sent[..., None])[..., 0] + noise
    s = 0.1 * torch.eye(antennas, dtype=torch.complex64).expand(frames * n, antennas, antennas)
    theirs = lmmse_equalizer(y, h, s)[0].numpy().reshape(frames, n)
    ours = channel.transmit("rayleigh", x, 10.0, np.random.default_rng(3), unbiased=True, antennas=antennas)
    quartiles = [-10 * np.log10(np.quantile(radio.effective_noise(x, out), (0.25, 0.5, 0.75))) for out in (ours, theirs)]
    assert quartiles[0] == pytest.approx(quartiles[1], abs=0.5)


# what comes out


def test_with_all_known_what_is_left_is_what_the_gain_says():
    symbols, rng = unit(6, 1200), np.random.default_rng(7)
    received = radio.transmit("tdl-c", symbols, 10.0, rng, STILL, unbiased=True)
    response = radio.draw_response("tdl-c", 6, 12, STILL, 1, np.random.default_rng(7))
    power = np.square(np.abs(response[:, 0, ~ofdm.holds_pilots(1200, STILL)]))
    gain = (power / (power + 0.1)).mean(axis=(1, 2))
    assert radio.effective_noise(symbols, received) == pytest.approx((1 - gain) / gain, rel=0.2)
    assert np.square(np.abs(received)).mean(axis=1) - 1 == pytest.approx((1 - gain) / gain, abs=0.03)  # as a receiver measures
    assert np.real(received * symbols.conj()).mean(axis=1) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("antennas", [1, 4])
@pytest.mark.parametrize("estimation", ofdm.ESTIMATIONS)
@pytest.mark.parametrize("snr", [3.0, 10.0, 20.0])
def test_whoever_estimates_knows_the_gain_and_so_the_noise(estimation, antennas, snr):
    """Symbols come out with a gain of 1, and what their power exceeds 1 by is the noise: what a model is then told."""
    form = dataclasses.replace(SMALL, estimation=estimation)
    symbols = unit(64, 1200)
    received = radio.transmit("tdl-c", symbols, snr, np.random.default_rng(3), form, antennas, unbiased=True)
    left = np.median(radio.effective_noise(symbols, received))
    assert np.median(np.real(received * symbols.conj()).mean(axis=1)) == pytest.approx(1, abs=0.15 * left + 0.01)
    assert np.median(np.square(np.abs(received)).mean(axis=1) - 1) == pytest.approx(left, rel=0.35, abs=0.006)


def test_less_knowledge_is_more_noise():
    perfect, lmmse, ls = (
        effective_snr("tdl-c", 10.0, dataclasses.replace(STILL, estimation=name)) for name in ("perfect", "lmmse", "ls")
    )
    assert perfect > lmmse > ls > perfect - 3


@pytest.mark.parametrize(
    ("impairment", "worse"),
    [({"cfo_ppm": 1.0}, 0.01), ({"linewidth_hz": 2000.0}, 0.5), ({"clip_db": 2.0}, 1.0), ({"speed_kmh": 300.0}, 0.2)],
)
def test_every_impairment_costs(impairment, worse):
    still = dataclasses.replace(STILL, estimation="lmmse")
    assert effective_snr("tdl-d", 25.0, dataclasses.replace(still, **impairment)) < effective_snr("tdl-d", 25.0, still) - worse


def test_an_offset_of_the_carrier_is_found_from_the_pilots():
    """3.5 kHz ppm of 0.1 turn the last OFDM symbol by a whole radian; uncorrected nothing would be left."""
    still = dataclasses.replace(STILL, estimation="lmmse")
    turned = effective_snr("tdl-d", 20.0, dataclasses.replace(still, cfo_ppm=0.1))
    assert turned == pytest.approx(effective_snr("tdl-d", 20.0, still), abs=0.3)


@pytest.mark.parametrize("kind", ["tdl-c", "cdl-c"])
def test_four_antennas_gain_more_than_their_power_where_one_fades(kind):
    assert effective_snr(kind, 10.0, SMALL, antennas=4) > effective_snr(kind, 10.0, SMALL) + 5


@pytest.mark.parametrize("kind", ["awgn", "rayleigh", "multipath"])
def test_four_antennas_over_flat_channels(kind):
    symbols = unit(400, 64)
    one, four = (
        channel.transmit(kind, symbols, 10.0, np.random.default_rng(1), unbiased=True, antennas=count) for count in (1, 4)
    )
    gain = 10 * np.log10(np.median(radio.effective_noise(symbols, one)) / np.median(radio.effective_noise(symbols, four)))
    assert gain == pytest.approx(10 * np.log10(4), abs=0.2) if kind == "awgn" else gain > 6


def test_training_sees_the_same_channel():
    """gain * symbols + noise is as noisy as what the whole chain gives, clipping left out."""
    mild = dataclasses.replace(SMALL, clip_db=None)
    symbols = unit(64, 1200)
    gain, noise = radio.linear("tdl-c", 64, 1200, 10.0, np.random.default_rng(3), mild)
    assert gain.shape == noise.shape == symbols.shape
    left = -10 * np.log10(radio.effective_noise(symbols, gain * symbols + noise).mean())
    assert left == pytest.approx(effective_snr("tdl-c", 10.0, mild), abs=0.7)
    assert np.real(gain).mean() > 5 * np.abs(np.imag(gain)).mean()


@pytest.mark.parametrize("n", [1, 7, 1200])
@pytest.mark.parametrize("batch", [1, 33])
def test_any_number_of_symbols_and_frames_goes_through(n, batch):
    received = radio.transmit("tdl-a", unit(batch, n), 10.0, np.random.default_rng(0), SMALL, 2, True)
    assert (received.shape, received.dtype) == ((batch, n), np.complex64)
    assert np.isfinite(received).all()


def test_draws_come_from_the_generator_and_torchs_own_is_left_alone():
    symbols = unit(2, 100)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two = (radio.transmit("cdl-c", symbols, 10.0, np.random.default_rng(1), SMALL) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert one.tobytes() == two.tobytes()
    assert one.tobytes() != radio.transmit("cdl-c", symbols, 10.0, np.random.default_rng(2), SMALL).tobytes()


def test_without_noise_there_is_no_channel():
    symbols = unit(2, 100)
    assert radio.transmit("tdl-c", symbols, float("inf"), np.random.default_rng(0), SMALL).tobytes() == symbols.tobytes()


# what cannot be had


@pytest.mark.parametrize("kind", radio.CHANNELS)
def test_the_longest_delays_are_those_of_sionna(kind):
    _, delays = radio._sionna().model(kind, SMALL, 1)(1, 1, 1.0)
    assert float(delays.max()) == pytest.approx(radio._LONGEST[kind[-1]] * 100e-9, rel=1e-3)


def test_delays_beyond_the_prefix_are_refused():
    radio.check("tdl-c", Radio())
    with pytest.raises(EngineError, match="longer than the cyclic prefix") as error:
        radio.check("tdl-c", Radio(delay_spread_ns=300.0))
    assert "at most 270 ns" in error.value.hint
    radio.check("tdl-c", Radio(delay_spread_ns=270.0))


def test_without_sionna_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sionna.phy", None)
    radio._sionna.cache_clear()
    try:
        with pytest.raises(EngineError, match="need Sionna") as error:
            radio.transmit("tdl-c", unit(1, 10), 10.0, np.random.default_rng(0))
        assert "pip install '.[radio]'" in error.value.hint
    finally:
        radio._sionna.cache_clear()
