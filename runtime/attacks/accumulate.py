"""Accumulation: what one packet hides in noise, several give away.

    packets under one scheme, different pictures    scores of row pairs add up      ── one order for all
    one picture sent again and again, fresh schemes rows matched with each other    ── averaged, noise / repeats

Eve knows: what row ordering knows (``semseal.runtime.attacks.ordering``), and which packets share a scheme, or show one picture
(a camera that does not move, a packet that is sent again). She does not know K, V, the scheme sets or any picture.
She does: for a shared scheme, adds the log-likelihood ratios of all packets before she orders, because one order explains them
all; for a repeated picture, finds every row of the first packet in each other one (linear assignment on the likelihood that two
rows are one, heard twice) and averages, which is m times the signal-to-noise ratio, then orders rows and decodes.
Source: multiple ciphertexts against permutation-only ciphers, Li et al. 2008 (Signal Process. Image Commun. 23); averaging
repetitions is older than radio.
Positive control: m packets under one scheme where one alone fails (-10 dB). Success: rows in order, Eve's PSNR near that of Bob
at the SNR that she accumulated.
"""

import math

import numpy as np
from scipy.optimize import linear_sum_assignment
from semseal.runtime.attacks.ordering import Likeness, Rows, arrange, follows, order


def open_shared(likeness: Likeness, packets: Rows, paths: int = 1) -> Rows:
    """Packets float32 [m, n, r], all under one scheme, to rows in order, float32 [m, paths, h, r].

    Pair the frames first where rows were substituted: n is then 2h, and ``paths`` 2. Raises ValueError as ``order``.
    """
    found = order(likeness, packets, paths)
    return np.array([arrange(rows, found) for rows in packets])


def average(likeness: Likeness, repeats: Rows) -> Rows:
    """The same rows heard m times, float32 [m, n, r], each time in another order, to their means [n, r] in the first order.

    ``likeness`` is that of one packet; order the result with one fitted for ``gained`` more dB.
    """
    mean = repeats[0].astype(np.float64)
    n = len(mean)
    for m, rows in enumerate(repeats[1:], 1):
        same = follows(likeness, np.concatenate([mean, rows]).astype(np.float32), 0)[:n, n:]
        mean += (rows[linear_sum_assignment(same, maximize=True)[1]] - mean) / (m + 1)
    return mean.astype(np.float32)


def gained(repeats: int) -> float:
    """The dB of SNR that averaging so many repeats gives."""
    return 10 * math.log10(repeats)
