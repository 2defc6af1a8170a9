"""Made-up clean rows for the attacks that put rows in order."""

import numpy as np


def smooth(pictures: int, h: int, r: int = 48, seed: int = 0) -> np.ndarray:
    """Pictures whose rows change smoothly, of power near 0.5 a value, around a mean for each place that all pictures share."""
    apart = np.subtract.outer(np.arange(h), np.arange(h))
    root = np.linalg.cholesky(np.exp(-((apart / 2) ** 2) / 2) + 1e-6 * np.eye(h))
    means = root @ np.random.default_rng(12345).standard_normal((h, r))
    own = root @ np.random.default_rng(seed).standard_normal((pictures, h, r))
    return (0.6 * own + 0.4 * means).astype(np.float32)


def noisy(rows: np.ndarray, snr_db: float, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(rows.shape, np.float32)
    return rows + noise * np.float32((10 ** (-snr_db / 10) / 2) ** 0.5)
