"""Radio channels in torch: Eq. (1) and (4), received = H symbols + noise, and the receiver's equaliser.

Pure functions: every random number comes in as an argument, drawn by ``draw_noise`` and ``draw_taps`` from an explicit
generator. ``semseal.runtime.channel`` is the NumPy twin; the same noise gives the same output.

    awgn       H = 1
    rayleigh   H = one complex gain for the whole image (block fading)
    multipath  H = circular convolution with L taps (the sender repeats its last L-1 symbols in front: a cyclic prefix,
               (L-1)/N extra channel uses), diagonal under the Fourier transform

Both fading channels are equalised with perfect channel knowledge by the linear MMSE filter conj(H) / (|H|² + sigma²).
"""

import torch
from torch import Tensor


def draw_noise(batch: int, n: int, generator: torch.Generator) -> Tensor:
    """Standard normal float32 [batch, n, 2] on the generator's device; every real part has variance 1."""
    return torch.randn(batch, n, 2, generator=generator, device=generator.device)


def draw_taps(batch: int, taps: int, generator: torch.Generator) -> Tensor:
    """Complex Gaussian gains complex64 [batch, taps], of equal powers that add up to 1 on average; 1 tap is Rayleigh."""
    drawn = torch.randn(batch, taps, 2, generator=generator, device=generator.device)
    return torch.view_as_complex(drawn) / (2 * taps) ** 0.5


def awgn(symbols: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    """Add noise of power 10^(-snr/10) per complex symbol to unit-power symbols [batch, N, 2]."""
    return symbols + noise * (10 ** (-snr_db / 10) / 2) ** 0.5


def fading(symbols: Tensor, taps: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    """Symbols [batch, N, 2] through taps [batch, L], noise added, equalised: Rayleigh for L = 1, multipath above.

    For one tap the circular convolution is a product and needs no transform.
    """
    sigma2 = 10 ** (-snr_db / 10)
    if taps.shape[1] == 1:
        received = torch.view_as_complex(symbols.contiguous()) * taps
        received = torch.view_as_complex(awgn(torch.view_as_real(received), noise, snr_db))
        return torch.view_as_real(received * taps.conj() / (taps.abs().square() + sigma2))
    n = symbols.shape[1]
    response = torch.fft.fft(taps, n=n)  # [batch, N]
    received = torch.fft.ifft(torch.fft.fft(torch.view_as_complex(symbols.contiguous())) * response)
    received = torch.view_as_complex(awgn(torch.view_as_real(received), noise, snr_db))
    equalised = torch.fft.fft(received) * response.conj() / (response.abs().square() + sigma2)
    return torch.view_as_real(torch.fft.ifft(equalised))
