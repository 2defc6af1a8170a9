"""OFDM in NumPy, laid out as 5G NR does it: where symbols and pilots are, the waveform, and its peaks.

    symbols [n, N] ── to_grid ── [n, L, K] ── waveform ── samples [n, L, size] ── papr_of_waveform
                                  │  an OFDM symbol with pilots in front of data: 2 and 11 of every 14 (DM-RS of TS 38.211,
                                  │  type A, position 2, one more), on every other subcarrier, at twice the power
                                  └── from_grid ── [n, N]

N symbols fill the K subcarriers of one OFDM symbol after the other, in an order and with quarter turns that are drawn once for
all and public, as NR interleaves and scrambles its bits. Analog symbols need it more: those of a smooth picture are alike, and
alike on neighbouring subcarriers they add up to one peak of 20 dB, and fade together. The last OFDM symbol may not be full; the
rest of it is silent.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Symbols = NDArray[np.complex64]

SLOT = 14  # OFDM symbols, TS 38.211
PILOTS_OF_SLOT = (2, 11)
COMB = 2  # every other subcarrier; the boost makes up for those between
PREFIX = 144 / 2048  # of the length of an OFDM symbol: the normal cyclic prefix, TS 38.211 5.3.1
ESTIMATIONS = ("lmmse", "ls", "perfect")
OVERSAMPLING = 4  # at which peaks are measured


@dataclass(frozen=True)
class Radio:
    """An OFDM radio and the place that it is in. Defaults are the standard's, or a usual value of what it leaves open.

    ``estimation``: how a receiver gets to know its channel, from the pilots by least squares or linear MMSE, or by being told.
    The carrier's frequency is off by a draw within ``cfo_ppm`` either way; what pilots do not show of that stays. The phase of
    the oscillator is a random walk with a line of ``linewidth_hz``. The transmitter's samples are clipped at ``clip_db`` above
    the power of a full OFDM symbol. 0, or None for the clipping, leaves an impairment out.
    """

    estimation: str = "lmmse"  # of ESTIMATIONS
    delay_spread_ns: float = 100.0  # rms; "nominal" in TR 38.901, Table 7.7.3-1
    speed_kmh: float = 3.0  # a pedestrian, TR 38.901, Table 7.2-1
    carrier_ghz: float = 3.5  # band n78, TS 38.101-1
    spacing_khz: float = 30.0  # of subcarriers, TS 38.211, Table 4.2-1
    subcarriers: int = 612  # 51 resource blocks: 20 MHz, TS 38.101-1, Table 5.3.2-1
    cfo_ppm: float = 0.1  # TS 38.101-1, 6.4.1
    linewidth_hz: float = 10.0  # about -98 dBc/Hz at 100 kHz; the standard leaves it open
    clip_db: float | None = 8.0  # the standard leaves it open

    def __post_init__(self) -> None:
        if self.estimation not in ESTIMATIONS:
            raise ValueError(f"estimation must be one of {', '.join(ESTIMATIONS)}, got {self.estimation!r}")
        for name in ("delay_spread_ns", "carrier_ghz", "spacing_khz"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, got {getattr(self, name)}")
        for name in ("speed_kmh", "cfo_ppm", "linewidth_hz"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number, 0 or above, got {getattr(self, name)}")
        if self.clip_db is not None and not 0 < self.clip_db < math.inf:
            raise ValueError(f"clip_db must be above 0, or None, got {self.clip_db}")
        if self.subcarriers < 12 or self.subcarriers % 12:
            raise ValueError(f"subcarriers must be a multiple of 12, got {self.subcarriers}")

    @property
    def fft(self) -> int:
        """Samples of an OFDM symbol without its prefix: the next power of two."""
        return 1 << (self.subcarriers - 1).bit_length()

    @property
    def spacing_hz(self) -> float:
        return 1e3 * self.spacing_khz

    @property
    def prefix_s(self) -> float:
        return PREFIX / self.spacing_hz

    @property
    def symbol_s(self) -> float:
        """An OFDM symbol with its prefix."""
        return (1 + PREFIX) / self.spacing_hz


def holds_pilots(n_symbols: int, radio: Radio) -> NDArray[np.bool_]:
    """Which of the L OFDM symbols that carry ``n_symbols`` hold pilots: as many as it takes, two with pilots at least."""
    data = -(-n_symbols // radio.subcarriers)
    found: list[bool] = []
    while data > 0 or len(found) <= PILOTS_OF_SLOT[1]:
        found.append(len(found) % SLOT in PILOTS_OF_SLOT)
        data -= not found[-1]
    return np.array(found)


def channel_uses(n_symbols: int, radio: Radio) -> float:
    """All that is on air for ``n_symbols``: subcarriers of all OFDM symbols, pilots too, and the cyclic prefixes."""
    return len(holds_pilots(n_symbols, radio)) * radio.subcarriers * (1 + PREFIX)


def pilots(radio: Radio) -> Symbols:
    """Complex64 [K]: QPSK at every other subcarrier, of twice the power of a symbol, and zeros."""
    turns = np.random.default_rng(38211).integers(4, size=radio.subcarriers)
    sent = np.exp(1j * (np.pi / 4 + np.pi / 2 * turns)) * np.sqrt(COMB)
    sent[np.arange(radio.subcarriers) % COMB > 0] = 0
    return sent.astype(np.complex64)


def to_grid(symbols: Symbols, radio: Radio) -> Symbols:
    """Symbols [n, N] with pilots in place, [n, L, K]."""
    n, count = symbols.shape
    at = holds_pilots(count, radio)
    grid = np.zeros((n, len(at), radio.subcarriers), np.complex64)
    grid[:, at] = pilots(radio)
    data = np.zeros((n, int((~at).sum()) * radio.subcarriers), np.complex64)
    order, turns = _scrambling(count)
    data[:, :count] = symbols[:, order] * turns
    grid[:, ~at] = data.reshape(n, -1, radio.subcarriers)
    return grid


def from_grid(grid: Symbols, n_symbols: int, radio: Radio) -> Symbols:
    """The symbols [n, N] of a grid: the reverse."""
    data = grid[:, ~holds_pilots(n_symbols, radio)]
    order, turns = _scrambling(n_symbols)
    symbols = np.empty((len(grid), n_symbols), np.complex64)
    symbols[:, order] = data.reshape(len(grid), -1)[:, :n_symbols] * turns.conj()
    return symbols


@functools.lru_cache(maxsize=8)
def _scrambling(n_symbols: int) -> tuple[NDArray[np.integer], Symbols]:
    """The order of the symbols on air and their turns, [N] each."""
    rng = np.random.default_rng([38211, n_symbols])
    return rng.permutation(n_symbols), np.array([1, 1j, -1, -1j], np.complex64)[rng.integers(4, size=n_symbols)]


def waveform(grid: Symbols, size: int) -> Symbols:
    """``size`` samples of each OFDM symbol of [..., K], without its prefix; of its subcarriers' mean power times K / size."""
    k = grid.shape[-1]
    spectrum = np.zeros((*grid.shape[:-1], size), np.complex64)
    spectrum[..., : k - k // 2] = grid[..., k // 2 :]  # from the carrier upwards
    spectrum[..., size - k // 2 :] = grid[..., : k // 2]
    return np.fft.ifft(spectrum, norm="ortho").astype(np.complex64)


def from_waveform(samples: Symbols, k: int) -> Symbols:
    """The K subcarriers [..., K] of such samples; what lies outside the band is left out."""
    spectrum = np.fft.fft(samples, norm="ortho")
    return np.concatenate([spectrum[..., spectrum.shape[-1] - k // 2 :], spectrum[..., : k - k // 2]], -1).astype(np.complex64)


def clipped(grid: Symbols, radio: Radio) -> Symbols:
    """A grid [n, L, K] of symbols of unit power after a transmitter that cannot be louder than ``clip_db`` above theirs."""
    if radio.clip_db is None:
        return grid
    samples = waveform(grid, 2 * radio.fft)
    power = np.square(np.abs(samples))
    largest = np.float32(radio.subcarriers / samples.shape[-1] * 10 ** (radio.clip_db / 10))
    samples *= np.sqrt(np.minimum(largest / np.maximum(power, np.float32(1e-12)), 1))
    return from_waveform(samples, radio.subcarriers)


def papr_of_symbols(symbols: Symbols) -> NDArray[np.float64]:
    """Peak to mean power in dB of the symbols [n, N] of each frame themselves, as a single carrier sends them: [n]."""
    power = np.square(np.abs(symbols), dtype=np.float64)
    found: NDArray[np.float64] = 10 * np.log10(power.max(axis=1) / np.maximum(power.mean(axis=1), 1e-12))
    return found


def papr_of_waveform(symbols: Symbols, radio: Radio) -> NDArray[np.float64]:
    """The peak of each OFDM symbol with data over the mean power of its frame, in dB, oversampled: [n * OFDM symbols].

    Of the waveform before it is clipped. An OFDM symbol without power is left out.
    """
    peaks = []
    for frame in symbols:  # one at a time: oversampled they are large
        grid = to_grid(frame[None], radio)[0, ~holds_pilots(len(frame), radio)]
        power = np.square(np.abs(waveform(grid, OVERSAMPLING * radio.fft)))
        full = np.square(np.abs(frame), dtype=np.float64).mean() * radio.subcarriers / power.shape[-1]
        peaks.append(power.max(axis=1) / max(full, 1e-12))
    found: NDArray[np.float64] = 10 * np.log10(np.maximum(np.concatenate(peaks), 1e-12))
    return found[found > -100]
