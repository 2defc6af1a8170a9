"""Picture quality and its uncertainty.

PSNR is per image over all colours, for values in 0..1, then averaged in dB. SSIM is that of Wang, Bovik, Sheikh and
Simoncelli (2004): Gaussian window of sigma 1.5 (11 x 11), K1 = 0.01, K2 = 0.03, per colour, averaged; scikit-image computes it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Mean:
    """A mean over pictures and the half width of its 95 % interval (Student's t; None for one picture)."""

    value: float
    half_width: float | None
    n: int


def psnr(reference: NDArray[np.float32], image: NDArray[np.float32]) -> NDArray[np.float64]:
    """PSNR in dB of each image of [batch, 3, height, width] in 0..1; infinite where they are equal."""
    error = np.square(reference.astype(np.float64) - image).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return -10 * np.log10(error)


def ssim(reference: NDArray[np.float32], image: NDArray[np.float32]) -> NDArray[np.float64]:
    """SSIM of each image of [batch, 3, height, width] in 0..1; 1 where they are equal."""
    from skimage.metrics import structural_similarity

    return np.array(
        [
            structural_similarity(
                a, b, data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
            for a, b in zip(reference, image, strict=True)
        ]
    )


def mean(values: NDArray[np.float64]) -> Mean:
    """The mean of independent values with its 95 % interval."""
    n = len(values)
    if n < 2 or not np.isfinite(values).all():
        return Mean(float(np.mean(values)), None, n)
    from scipy.stats import t

    return Mean(float(values.mean()), float(t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)), n)
