"""Accumulation: several packets give away what the noise hides in one.

    packets under one scheme, different pictures      scores of row pairs add up     ── one order for all of them
    one picture sent repeatedly, under fresh schemes  rows are matched and averaged  ── noise power / number of packets

Eve knows: what row ordering requires (``semseal.runtime.attacks.ordering``), and which packets share a scheme or show the same
picture (a camera that does not move, a packet that is sent again). She does not know K, V, the scheme sets or any picture.
She does: for a shared scheme, ``ordering.order`` takes all packets at once, adds their log-likelihood ratios and finds the one
order that explains them all. For a repeated picture, she finds every row of the first packet in each of the others (linear
assignment on the likelihood that two received rows are the same row) and averages them, which multiplies the signal-to-noise
ratio by the number of packets; then she orders the rows and decodes them.
Source: multiple ciphertexts against permutation-only ciphers, Li et al. 2008 (Signal Process. Image Commun. 23); averaging
repetitions is older than radio.
Positive control: many packets under one scheme, at an SNR where a single one fails. Success: rows in order, and a PSNR near the
one that Bob has at the SNR that Eve accumulated.
"""

import math

import numpy as np
from scipy.optimize import linear_sum_assignment
from semseal.runtime.attacks.ordering import RowModel, Rows, distance_scores


def average(model: RowModel, repeats: Rows) -> Rows:
    """Average the same n rows, received in a different order in each of m packets.

    ``repeats`` is float32 [m, n, r]; the means come back as float32 [n, r] in the order of the first packet. ``model`` is
    fitted at the SNR of one packet. To order the means, fit another at an SNR that is ``gain_db(m)`` higher.
    """
    mean = repeats[0].astype(np.float64)
    n = len(mean)
    for m, rows in enumerate(repeats[1:], 1):
        same = distance_scores(model, np.concatenate([mean, rows]).astype(np.float32), 0)[:n, n:]
        mean += (rows[linear_sum_assignment(same, maximize=True)[1]] - mean) / (m + 1)
    return mean.astype(np.float32)


def gain_db(repeats: int) -> float:
    """The SNR gained by averaging that many repeats, in dB."""
    return 10 * math.log10(repeats)
