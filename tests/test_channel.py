import numpy as np
import pytest
import torch
from semseal.runtime import channel as edge
from semseal.train import channel

SNRS = [0.0, 10.0, 20.0]


def both(batch=3, n=1001, seed=0):
    """The same symbols and noise for torch [batch, n, 2] and NumPy complex64 [batch, n]."""
    rng = np.random.default_rng(seed)
    symbols, noise = edge.draw_noise(batch, n, rng) / np.float32(2**0.5), edge.draw_noise(batch, n, rng)
    return symbols, noise, *(torch.view_as_real(torch.from_numpy(array)) for array in (symbols, noise))


@pytest.mark.parametrize("snr", SNRS)
def test_awgn_twin_is_bit_for_bit(snr):
    symbols, noise, t_symbols, t_noise = both()
    assert channel.awgn(t_symbols, t_noise, snr).numpy().tobytes() == edge.awgn(symbols, noise, snr).tobytes()


@pytest.mark.parametrize("snr", SNRS)
@pytest.mark.parametrize("taps", [1, 2, 8])
def test_fading_twins_agree(snr, taps):
    symbols, noise, t_symbols, t_noise = both()
    gains = edge.draw_taps(3, taps, np.random.default_rng(5))
    ours = torch.view_as_complex(channel.fading(t_symbols, torch.from_numpy(gains), t_noise, snr).contiguous()).numpy()
    theirs = edge.fading(symbols, gains, noise, snr)
    assert theirs.dtype == np.complex64
    assert np.allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("snr", SNRS)
def test_awgn_has_the_power_that_the_snr_says(snr):
    symbols, noise, _, _ = both(batch=1, n=200_000)
    added = edge.awgn(symbols, noise, snr) - symbols
    assert np.mean(np.abs(added) ** 2) == pytest.approx(10 ** (-snr / 10), rel=0.02)
    assert np.var(added.real) == pytest.approx(10 ** (-snr / 10) / 2, rel=0.02)


def test_multipath_is_a_circular_convolution():
    symbols, gains = np.array([[1, 2j, 3, 0]], np.complex64), np.array([[0.5, 1j]], np.complex64)
    silent = np.zeros((1, 4), np.complex64)
    expected = np.array([0.5 * symbols[0, i] + 1j * symbols[0, i - 1] for i in range(4)])
    response = np.fft.fft(gains, n=4)
    # undo the equaliser at 10 dB to see what was received
    equalised = np.fft.fft(edge.fading(symbols, gains, silent, 10.0))
    received = np.fft.ifft(equalised * (np.abs(response) ** 2 + 0.1) / response.conj())
    assert np.allclose(received, expected, atol=1e-5)


@pytest.mark.parametrize("taps", [1, 3])
def test_the_equaliser_recovers_symbols_at_high_snr(taps):
    symbols, noise, _, _ = both()
    gains = edge.draw_taps(3, taps, np.random.default_rng(3))
    error = edge.fading(symbols, gains, noise, 90.0) - symbols
    assert np.sqrt(np.mean(np.abs(error) ** 2)) < 0.02


def test_mmse_is_no_worse_than_inverting_the_channel():
    symbols, noise, _, _ = both(batch=200, n=50)
    gains = edge.draw_taps(200, 1, np.random.default_rng(1))
    mmse = np.mean(np.abs(edge.fading(symbols, gains, noise, 5.0) - symbols) ** 2)
    inverse = np.mean(np.abs(edge.awgn(symbols * gains, noise, 5.0) / gains - symbols) ** 2)
    assert mmse < inverse


@pytest.mark.parametrize("taps", [1, 4])
def test_taps_have_total_power_one(taps):
    for gains in (edge.draw_taps(20_000, taps, np.random.default_rng(0)),
                  channel.draw_taps(20_000, taps, torch.Generator().manual_seed(0)).numpy()):  # fmt: skip
        assert np.mean(np.sum(np.abs(gains) ** 2, axis=1)) == pytest.approx(1, rel=0.03)


def test_generators_are_explicit():
    one, two = (channel.draw_noise(2, 9, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == (2, 9, 2)
    assert not torch.equal(one, channel.draw_noise(2, 9, torch.Generator().manual_seed(5)))


def linear_snr(snr_db):
    return 10 ** (snr_db / 10)


@pytest.mark.parametrize("snr", SNRS)
@pytest.mark.parametrize("taps", [1, 8])
def test_the_effective_noise_after_the_equaliser_is_what_the_gain_says(snr, taps):
    """Divided by its gain a, an equalised frame is its symbols and uncorrelated noise of power (1 - a) / a."""
    n, rng = 60_000, np.random.default_rng(1)
    symbols = edge.draw_noise(4, n, rng) / np.float32(2**0.5)
    symbols /= np.sqrt((np.abs(symbols) ** 2).mean(axis=1, keepdims=True))
    drawn = edge.draw_taps(4, taps, rng)
    gain = edge.equalised_gain(drawn, n, snr)
    rest = edge.fading(symbols, drawn, edge.draw_noise(4, n, rng), snr) / gain[:, None] - symbols
    noise = (1 - gain) / gain
    assert (np.abs(rest) ** 2).mean(axis=1) == pytest.approx(noise, rel=0.03)
    assert np.abs((rest * symbols.conj()).mean(axis=1)) / np.sqrt(noise) == pytest.approx(0, abs=5 * n**-0.5)
    if taps == 1:
        assert noise == pytest.approx(1 / (np.abs(drawn[:, 0]) ** 2 * linear_snr(snr)), rel=1e-4)


@pytest.mark.parametrize("kind", edge.CHANNELS)
@pytest.mark.parametrize("unbiased", [False, True])
def test_a_channel_of_a_name_is_the_torch_one_of_training(kind, unbiased):
    symbols = both()[0]
    ours = edge.transmit(kind, symbols, 10.0, np.random.default_rng(3), taps=5, unbiased=unbiased)
    rng = np.random.default_rng(3)
    noise = edge.draw_noise(*symbols.shape, rng)
    t_symbols, t_noise = (torch.view_as_real(torch.from_numpy(array)) for array in (symbols, noise))
    if kind == "awgn":
        expected = channel.awgn(t_symbols, t_noise, 10.0)
    else:
        drawn = edge.draw_taps(3, 1 if kind == "rayleigh" else 5, rng)
        expected = channel.fading(t_symbols, torch.from_numpy(drawn), t_noise, 10.0)
        if unbiased:
            expected = expected / torch.from_numpy(edge.equalised_gain(drawn, 1001, 10.0)).float()[:, None, None]
    assert ours.dtype == np.complex64
    assert np.allclose(ours, torch.view_as_complex(expected.contiguous()).numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", edge.CHANNELS)
def test_without_noise_there_is_no_channel(kind):
    symbols = both()[0]
    assert edge.transmit(kind, symbols, float("inf"), np.random.default_rng(0)).tobytes() == symbols.tobytes()


def test_another_channel_is_refused():
    with pytest.raises(ValueError, match="one of awgn, rayleigh, multipath, got 'rician'"):
        edge.transmit("rician", both()[0], 10.0, np.random.default_rng(0))
