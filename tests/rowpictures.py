"""Synthetic clean rows for the attacks that put rows in order, and what only the tests measure on received ones."""

import numpy as np
from semseal.runtime.attacks.ordering import RowModel


def smooth(pictures: int, h: int, r: int = 48, seed: int = 0) -> np.ndarray:
    """Pictures with smoothly varying rows, of power near 0.5 per value, around position means that all pictures share."""
    apart = np.subtract.outer(np.arange(h), np.arange(h))
    root = np.linalg.cholesky(np.exp(-((apart / 2) ** 2) / 2) + 1e-6 * np.eye(h))
    means = root @ np.random.default_rng(12345).standard_normal((h, r))
    varying = root @ np.random.default_rng(seed).standard_normal((pictures, h, r))
    return (0.6 * varying + 0.4 * means).astype(np.float32)


def noisy(rows: np.ndarray, snr_db: float, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(rows.shape, np.float32)
    return rows + noise * np.float32((10 ** (-snr_db / 10) / 2) ** 0.5)


def neighbours_right(found: np.ndarray, truth: np.ndarray) -> float:
    """The share of the neighbours in the pictures that were received and stand next to each other in ``found`` [pictures, h].

    ``truth`` [n] is picture*h + position of each received row, -1 for a row of noise.
    """
    h = found.shape[1]
    sent = np.where(found >= 0, truth[found], -2)
    a, b = sent[:, :-1], sent[:, 1:]
    right = (a >= 0) & (b == a + 1) & (b % h != 0)
    known = truth[truth >= 0]
    return float(right.sum() / (np.isin(known + 1, known) & ((known + 1) % h != 0)).sum())


def is_picture(model: RowModel, received: np.ndarray) -> np.ndarray:
    """Which received rows [n, r] are not rows of a random-noise tensor of unit power.

    A row counts as noise when the log-likelihood ratio of picture against white noise is at most 4 standard deviations above
    its mean for noise; both are known exactly.
    """
    variance, r = model.noise + 0.5, received.shape[1]
    precision = model.whiten @ model.whiten.T
    pull = precision @ model.mean
    tilt = variance * precision - np.eye(r)
    average = -(np.trace(tilt) + model.mean @ pull) / 2
    deviation = np.sqrt((tilt**2).sum() / 2 + variance * pull @ pull)
    any_row = -(((received - model.mean) @ model.whiten) ** 2).sum(axis=1) / 2
    ratio = any_row + (received.astype(np.float64) ** 2).sum(axis=1) / variance / 2
    return ratio > average + 4 * deviation
