"""OFDM: where symbols and pilots go, the waveform, its peaks, and what a clipper does to it."""

import numpy as np
import pytest
from semseal.runtime import ofdm
from semseal.runtime.channel import draw_noise
from semseal.runtime.ofdm import Radio

SMALL = Radio(subcarriers=48)


def unit(batch, n, seed=0):
    """Complex Gaussian symbols of unit power."""
    return draw_noise(batch, n, np.random.default_rng(seed)) / np.float32(2**0.5)


@pytest.mark.parametrize("n", [1, 47, 48, 49, 480, 1000])
def test_what_is_put_into_a_grid_comes_out_of_it(n):
    symbols = unit(3, n)
    grid = ofdm.to_grid(symbols, SMALL)
    assert grid.shape == (3, len(ofdm.holds_pilots(n, SMALL)), 48)
    assert ofdm.from_grid(grid, n, SMALL) == pytest.approx(symbols, abs=1e-6)
    # nothing is lost and nothing added: besides pilots, the power is that of the symbols
    data = grid[:, ~ofdm.holds_pilots(n, SMALL)]
    assert np.square(np.abs(data)).sum() == pytest.approx(np.square(np.abs(symbols)).sum(), rel=1e-5)


@pytest.mark.parametrize(("n", "length", "places"), [(1, 12, [2, 11]), (48 * 10, 12, [2, 11]), (48 * 11, 13, [2, 11]),
                                                     (48 * 12 + 1, 15, [2, 11]), (48 * 15, 18, [2, 11, 16])])  # fmt: skip
def test_pilots_are_where_nr_has_them(n, length, places):
    at = ofdm.holds_pilots(n, SMALL)
    assert (len(at), np.flatnonzero(at).tolist()) == (length, places)
    assert ofdm.channel_uses(n, SMALL) == pytest.approx(length * 48 * (1 + 144 / 2048))


def test_a_pilot_symbol_is_as_loud_as_one_of_data():
    sent = ofdm.pilots(SMALL)
    assert np.square(np.abs(sent)).mean() == pytest.approx(1)
    assert (sent[1::2] == 0).all()


@pytest.mark.parametrize("size", [64, 256])
def test_the_waveform_is_the_sum_of_its_subcarriers(size):
    grid = unit(2, 48)
    samples = ofdm.waveform(grid, size)
    t, k = np.arange(size) / size, np.arange(48) - 24
    expected = (grid[:, None, :] * np.exp(2j * np.pi * t[:, None] * k)).sum(axis=2) / size**0.5
    assert samples == pytest.approx(expected, abs=1e-5)
    assert ofdm.from_waveform(samples, 48) == pytest.approx(grid, abs=1e-5)


def test_the_clipper_limits_the_peaks_and_leaves_quiet_ones_alone():
    grid = ofdm.to_grid(unit(2, 480), SMALL)
    assert ofdm.clipped(grid, Radio(subcarriers=48, clip_db=None)) is grid
    assert ofdm.clipped(grid, Radio(subcarriers=48, clip_db=20.0)) == pytest.approx(grid, abs=1e-5)
    distortion = [
        np.square(np.abs(ofdm.clipped(grid, Radio(subcarriers=48, clip_db=level)) - grid)).mean() for level in (2.0, 5.0, 8.0)
    ]
    assert distortion[0] > 5 * distortion[1] > 25 * distortion[2] > 0
    peak = 10 * np.log10(np.square(np.abs(ofdm.waveform(ofdm.clipped(grid, Radio(subcarriers=48, clip_db=2.0)), 256))).max())
    before = 10 * np.log10(np.square(np.abs(ofdm.waveform(grid, 256))).max())
    assert peak < before - 3


def test_peaks_of_symbols():
    assert ofdm.papr_of_symbols(np.exp(1j * unit(2, 50).real).astype(np.complex64)) == pytest.approx(0, abs=1e-5)
    loud = np.ones((1, 100), np.complex64)
    loud[0, 7] = 10
    assert ofdm.papr_of_symbols(loud) == pytest.approx(10 * np.log10(100 / 1.99), abs=1e-4)


def test_peaks_of_the_waveform_of_gaussian_symbols_are_those_of_the_literature():
    """P(peak > x) is above 1 - (1 - e^-x)^K, that of K independent samples, and up to 2.8 K of them (van Nee, de Wild 1998)."""
    radio = Radio(subcarriers=120)
    peaks = ofdm.papr_of_waveform(unit(12, 120 * 120), radio)
    assert len(peaks) == 12 * 120
    for level in (7.0, 8.0, 9.0):
        low, high = (1 - (1 - np.exp(-(10 ** (level / 10)))) ** (times * 120) for times in (1, 2.8))
        assert low < (peaks > level).mean() < high + 0.02


def test_equal_symbols_do_not_add_up_to_one_peak():
    """Those of a smooth picture would, on neighbouring subcarriers: 48 of them to 10 log10(48) = 16.8 dB."""
    assert ofdm.papr_of_waveform(np.ones((4, 480), np.complex64), SMALL).max() < 11


@pytest.mark.parametrize("wrong", [{"estimation": "zf"}, {"subcarriers": 50}, {"delay_spread_ns": 0.0}, {"clip_db": 0.0},
                                   {"speed_kmh": -1.0}, {"carrier_ghz": float("nan")}, {"cfo_ppm": float("inf")}])  # fmt: skip
def test_a_radio_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Radio(**wrong)
