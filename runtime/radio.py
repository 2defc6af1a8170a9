"""The channels of 3GPP TR 38.901 through OFDM, for symbols complex64 [n, N]: what ``semseal.runtime.channel`` is for flat ones.

    symbols ── grid with pilots ── clipped ── x response ── x oscillator ── + noise ── estimate ── equalised by linear MMSE
               semseal.runtime.ofdm           Sionna's TDL   offset and    SNR for an   LS, linear
                                              and CDL        phase noise   average of   MMSE, or
                                                                           all fades    perfect

Every frame meets a fade of its own, independent of all others. So does every antenna of a receiver (in a CDL they are half a
wavelength apart); they are combined by maximum ratio, with what the estimate knows of each.

The response comes from Sionna (extra ``radio``); all else is NumPy. It stands still within an OFDM symbol, and no delay is
longer than the prefix. Linear MMSE estimation supposes an exponential profile of the delay spread, as a receiver must that does
not know the profile.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime import channel, ofdm
from semseal.runtime.errors import EngineError
from semseal.runtime.ofdm import Radio, Symbols

CHANNELS = tuple(f"{family}-{model}" for family in ("tdl", "cdl") for model in "abcde")
CHUNK = 32  # frames at a time; 300 MB
LIGHT_M_S = 299792458.0
MAX_TURNS = 0.1  # of a path within an OFDM symbol, by its Doppler shift; the response is taken to stand still there
_LONGEST = {"a": 9.6586, "b": 4.7834, "c": 8.6523, "d": 12.525, "e": 20.6519}  # delay over delay spread, TR 38.901, 7.7


def check(kind: str, radio: Radio) -> None:
    """Raise EngineError where the channel cannot be had: no Sionna, delays longer than the prefix, or too fast."""
    _sionna()
    longest = _LONGEST[kind[-1]] * radio.delay_spread_ns * 1e-9
    if longest > radio.prefix_s:
        most = math.floor(radio.prefix_s * 1e9 / _LONGEST[kind[-1]])
        raise EngineError(
            f"{kind} with a delay spread of {radio.delay_spread_ns:g} ns has delays of {longest * 1e6:.2f} us, longer than the "
            f"cyclic prefix of {radio.prefix_s * 1e6:.2f} us",
            f"take a delay spread of at most {most} ns, or a smaller spacing of subcarriers",
        )
    fastest = 3.6 * MAX_TURNS / radio.symbol_s * LIGHT_M_S / (1e9 * radio.carrier_ghz)
    if radio.speed_kmh > fastest:
        raise EngineError(
            f"at {radio.speed_kmh:g} km/h the channel changes within an OFDM symbol of {radio.symbol_s * 1e6:.1f} us, where it "
            "is taken to stand still",
            f"take a speed of at most {math.floor(fastest)} km/h, or a larger spacing of subcarriers",
        )


def transmit(
    kind: str,
    symbols: Symbols,
    snr_db: float,
    rng: np.random.Generator,
    radio: Radio | None = None,
    antennas: int = 1,
    unbiased: bool = False,
) -> Symbols:
    """Symbols through a channel of CHANNELS, as ``semseal.runtime.channel.transmit``; raises EngineError without Sionna.

    ``snr_db`` is of one antenna, over all fades. ``unbiased``: of a gain of 1, as far as the receiver knows its channel.
    """
    if math.isinf(snr_db):
        return symbols.copy()
    radio = radio or Radio()
    parts = np.array_split(symbols, -(-len(symbols) // CHUNK))
    return np.concatenate([_through(kind, part, snr_db, rng, radio, antennas, unbiased) for part in parts])


def linear(
    kind: str, n: int, n_symbols: int, snr_db: float, rng: np.random.Generator, radio: Radio | None = None
) -> tuple[Symbols, Symbols]:
    """What such a channel does to the symbols of n frames: gain [n, N] and noise [n, N]; gain * symbols + noise comes out.

    For training, which needs its gradient. It leaves out what is not linear or mixes subcarriers: clipping, and the part of the
    oscillator's phase that changes within an OFDM symbol.
    """
    radio = radio or Radio()
    sigma2, at = 10 ** (-snr_db / 10), ofdm.holds_pilots(n_symbols, radio)
    response = draw_response(kind, n, len(at), radio, 1, rng)
    response *= draw_oscillator(n, len(at), radio, rng).mean(axis=-1)[:, None, :, None]
    noise = _noise(response.shape, sigma2, rng)
    known = estimate(response * ofdm.pilots(radio) + noise, at, sigma2, radio, response)
    gain, rest = (combine(known, part, sigma2)[0] for part in (response, noise))
    gain *= ofdm.to_grid(np.ones((1, n_symbols), np.complex64), radio)  # as symbols are turned
    return ofdm.from_grid(gain, n_symbols, radio), ofdm.from_grid(rest, n_symbols, radio)


def effective_noise(sent: Symbols, received: Symbols) -> NDArray[np.float64]:
    """The power of what differs, of each frame of [n, N]: the noise of a receiver that takes what it got for what was sent."""
    found: NDArray[np.float64] = np.square(np.abs(received - sent), dtype=np.float64).mean(axis=1)
    return found


# the parts, in the order of the drawing


def draw_response(kind: str, n: int, length: int, radio: Radio, antennas: int, rng: np.random.Generator) -> Symbols:
    """The response of n frames in ``length`` OFDM symbols, complex64 [n, antennas, L, K], of mean power 1."""
    sionna, seed = _sionna(), int(rng.integers(2**62))
    sionna.seed(seed)
    gains, delays = sionna.model(kind, radio, antennas)(n, length, 1 / radio.symbol_s)
    a = gains[:, 0, :, 0, 0].numpy()  # [n, antennas, paths, L]
    tau = delays[0, 0, 0].numpy().astype(np.float64)  # [paths]; the same for all frames
    k = radio.subcarriers
    turns = np.exp(-2j * np.pi * radio.spacing_hz * np.outer(tau, np.arange(k) - k // 2)).astype(np.complex64)
    found: Symbols = np.swapaxes(a, 2, 3) @ turns
    return found


def draw_oscillator(n: int, length: int, radio: Radio, rng: np.random.Generator) -> Symbols:
    """exp(j phase) of the two oscillators together, at each sample of an OFDM symbol behind its prefix: [n, L, fft]."""
    step_s = 1 / (radio.fft * radio.spacing_hz)
    offset = radio.cfo_ppm * 1e3 * radio.carrier_ghz * rng.uniform(-1, 1, (n, 1, 1))  # Hz
    within, starts = step_s * np.arange(radio.fft), radio.symbol_s * np.arange(length)[:, None]
    phase = 2 * np.pi * offset * (starts + within)
    if radio.linewidth_hz:
        steps = rng.standard_normal((n, length, radio.fft), np.float32) * np.float32(
            (2 * np.pi * radio.linewidth_hz * step_s) ** 0.5
        )
        between = rng.standard_normal((n, length), np.float32) * np.float32(
            (2 * np.pi * radio.linewidth_hz * radio.prefix_s) ** 0.5
        )
        walked = np.cumsum(steps, axis=2)
        so_far = np.cumsum(walked[:, :, -1] + between, axis=1) - walked[:, :, -1]
        phase = phase + walked + so_far[:, :, None]
    return np.exp(1j * phase).astype(np.complex64)


@dataclass(frozen=True, eq=False)
class Estimate:
    """The response [n, antennas, L, K] as a receiver knows it, and what it knows of that.

    The mean power of its mistakes, and how much power they add, of each antenna. Those of linear MMSE add none: what it gives
    is the mean of what the response may be.
    """

    response: Symbols
    wrong: float
    excess: float


def estimate(
    received: Symbols, at: NDArray[np.bool_], sigma2: float, radio: Radio, response: Symbols | None = None
) -> Estimate:
    """The response of ``received`` [n, antennas, L, K], of which ``at`` [L] hold pilots.

    At the pilots in frequency first; then the turn of the carrier from one to the next; then between them in time, on a line.
    ``response`` is what a receiver is told that knows it all.
    """
    if radio.estimation == "perfect":
        assert response is not None
        return Estimate(response, 0.0, 0.0)
    sent = ofdm.pilots(radio)[:: ofdm.COMB]
    there = received[:, :, at, :: ofdm.COMB] / sent  # [n, antennas, P, K / 2]
    smooth, wrong = _smoother(radio, float(sigma2))
    fine = there @ smooth.T  # [n, antennas, P, K]
    places = np.flatnonzero(at)
    gaps = np.diff(places)
    turns = np.angle((fine[:, :, 1:] * fine[:, :, :-1].conj()).sum(axis=(1, 3)))  # [n, P - 1]
    rate = (turns * gaps).sum(axis=1) / np.square(gaps).sum()  # radians in an OFDM symbol
    fine = fine * np.exp(-1j * rate[:, None] * places).astype(np.complex64)[:, None, :, None]
    steps = np.arange(len(at))
    between = np.stack([np.interp(steps, places, one) for one in np.eye(len(places))], axis=1).astype(np.complex64)  # [L, P]
    known = between @ fine
    known *= np.exp(1j * rate[:, None] * steps).astype(np.complex64)[:, None, :, None]
    if radio.estimation == "ls":
        wrong *= float(np.square(between.real)[~at].sum(axis=1).mean())  # as two are averaged
        return Estimate(known, wrong, wrong)
    return Estimate(known, wrong, 0.0)


def combine(known: Estimate, received: Symbols, sigma2: float) -> tuple[Symbols, NDArray[np.float32]]:
    """Antennas [n, antennas, L, K] by maximum ratio and linear MMSE, [n, L, K], and how much of a symbol comes out of that.

    Without ``excess`` a receiver would take the noise in its estimate for signal, and what comes out for louder than it is.
    """
    power = np.square(np.abs(known.response)).sum(axis=1)
    all_in = power + np.float32(sigma2 + known.wrong)
    mean = power.mean(axis=(1, 2), keepdims=True)
    of_signal = np.maximum(1 - known.response.shape[1] * np.float32(known.excess) / mean, np.float32(0.1))
    gain: NDArray[np.float32] = power / all_in * of_signal
    equalised = (known.response.conj() * received).sum(axis=1) / all_in
    return equalised.astype(np.complex64), gain


def _through(
    kind: str, symbols: Symbols, snr_db: float, rng: np.random.Generator, radio: Radio, antennas: int, unbiased: bool
) -> Symbols:
    n, count = symbols.shape
    sigma2, at = 10 ** (-snr_db / 10), ofdm.holds_pilots(count, radio)
    response = draw_response(kind, n, len(at), radio, antennas, rng)
    received = response * ofdm.clipped(ofdm.to_grid(symbols, radio), radio)[:, None]
    told = response
    if radio.cfo_ppm or radio.linewidth_hz:
        oscillator = draw_oscillator(n, len(at), radio, rng)
        told = response * oscillator.mean(axis=-1)[:, None, :, None]
        for antenna in range(antennas):  # one at a time: the samples are large
            samples = ofdm.waveform(received[:, antenna], radio.fft) * oscillator
            received[:, antenna] = ofdm.from_waveform(samples, radio.subcarriers)
    received += _noise(received.shape, sigma2, rng)
    equalised, gain = combine(estimate(received, at, sigma2, radio, told), received, sigma2)
    out = ofdm.from_grid(equalised, count, radio)
    if unbiased:
        out /= gain[:, ~at].reshape(n, -1)[:, :count].mean(axis=1, keepdims=True)
    return out


def _noise(shape: tuple[int, ...], sigma2: float, rng: np.random.Generator) -> Symbols:
    drawn = channel.draw_noise(math.prod(shape[:-1]), shape[-1], rng).reshape(shape)
    return drawn * np.float32((sigma2 / 2) ** 0.5)


@functools.lru_cache(maxsize=64)  # training is at every whole dB; 1.5 MB each
def _smoother(radio: Radio, sigma2: float) -> tuple[Symbols, float]:
    """What makes K gains of the K / 2 that the pilots show, complex64 [K, K / 2], and the mean power of its mistakes."""
    k, noise = radio.subcarriers, sigma2 / ofdm.COMB  # as pilots are louder
    there = np.arange(0, k, ofdm.COMB)
    if radio.estimation == "ls":
        straight = np.stack([np.interp(np.arange(k), there, one) for one in np.eye(len(there))], axis=1)
        return straight.astype(np.complex64), float(noise * np.square(straight).sum(axis=1).mean())
    apart = np.arange(k)[:, None] - np.arange(k)
    alike = 1 / (1 + 2j * np.pi * radio.spacing_hz * radio.delay_spread_ns * 1e-9 * apart)  # of an exponential profile
    cross = alike[:, there]
    best = cross @ np.linalg.inv(cross[there] + noise * np.eye(len(there)))
    wrong = 1 - (best * cross.conj()).sum(axis=1).real.mean()
    return best.astype(np.complex64), float(wrong)


class _Sionna:
    """What is used of Sionna: its generator, and its models, each made once."""

    def __init__(self) -> None:
        from sionna.phy import config
        from sionna.phy.channel import tr38901

        self._config, self._tr38901 = config, tr38901
        self.model = functools.lru_cache(maxsize=8)(self._model)

    def seed(self, seed: int) -> None:
        """Of Sionna's own generator; torch's is left alone."""
        self._config.torch_rng("cpu").manual_seed(seed)

    def _model(self, kind: str, radio: Radio, antennas: int) -> Any:
        family, letter = kind.split("-")
        frequency, speed = 1e9 * radio.carrier_ghz, radio.speed_kmh / 3.6
        spread = 1e-9 * radio.delay_spread_ns
        if family == "tdl":
            return self._tr38901.TDL(letter.upper(), spread, frequency, min_speed=speed, num_rx_ant=antennas, device="cpu")
        one, several = (
            self._tr38901.PanelArray(
                num_rows_per_panel=1,
                num_cols_per_panel=count,
                polarization="single",
                polarization_type="V",
                antenna_pattern="omni",
                carrier_frequency=frequency,
                device="cpu",
            )
            for count in (1, antennas)
        )
        return self._tr38901.CDL(
            letter.upper(), spread, frequency, several, one, "downlink", min_speed=speed, max_speed=speed, device="cpu"
        )


@functools.cache
def _sionna() -> _Sionna:
    try:
        return _Sionna()
    except ImportError as error:
        raise EngineError(
            f"the channels {', '.join(CHANNELS)} need Sionna, which is not installed: {error}",
            "in the source folder: pip install '.[radio]', or choose --channel awgn, rayleigh or multipath",
        ) from None
