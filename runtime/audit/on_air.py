"""What a link puts on air: how much louder its peaks are than the rest, and how noisy it arrives.

sent [n, M] ──────── peak to mean power of the symbols themselves, and of the OFDM waveform that carries them
received [n, M] ──── less what was sent: the effective noise of each frame
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime import ofdm, radio
from semseal.runtime.ofdm import Radio, Symbols

LEVELS_DB = tuple(np.arange(4, 18.25, 0.25).tolist())
RARE = 1e-3  # of OFDM symbols, by which their peaks are compared
NAMES = ("symbols_db", "peaks_db", "noise")


@dataclass(frozen=True, eq=False)
class OnAir:
    """Peak to mean power in dB of each frame's symbols, of each OFDM symbol, and the effective noise of each frame."""

    symbols_db: NDArray[np.float64]
    peaks_db: NDArray[np.float64]
    noise: NDArray[np.float64]


def measure(sent: Symbols, received: Symbols, form: Radio) -> OnAir:
    """Of frames [n, M] as Alice sent them and as Bob received them."""
    return OnAir(ofdm.papr_of_symbols(sent), ofdm.papr_of_waveform(sent, form), radio.effective_noise(sent, received))


def summary(found: OnAir) -> dict[str, Any]:
    """The fields of an ``AirRow`` that are figures."""
    snrs = -10 * np.log10(np.maximum(found.noise, 1e-12))
    return {
        "frames": len(found.noise),
        "symbols_db": float(found.symbols_db.mean()),
        "waveform_db": float(np.quantile(found.peaks_db, 1 - RARE)),
        "levels_db": LEVELS_DB,
        "exceeded": tuple(float((found.peaks_db > level).mean()) for level in LEVELS_DB),
        "effective_snr_db": float(np.median(snrs)),
        "worst_snr_db": float(np.quantile(snrs, 0.05)),
    }
