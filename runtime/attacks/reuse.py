"""Known plaintext under reuse: once a V or a key stream is used twice, a known packet opens the others.

    permute, substitute   known rows ── assignment to received rows ── the scheme ── every other packet under that V
    mix                   known packets ── their inner products with a secret one ── regression ── the secret picture

Eve knows: the deployed transmitter and receiver, her SNR, the attacker's images, and the pictures behind k of the packets. The
secret packet was sent under the same V (or the same key stream). She does not know K, V or the scheme sets.
She does, for schemes: she sends the known pictures through the transmitter herself and finds each of their rows among the
received ones (linear assignment, squared distances, summed over packets). 256 known packets, one for each p, give away the set
P itself.
She does, for mixing: an orthogonal map preserves inner products, whichever map it is and however it is keyed, so each known
packet is one linear measurement of the secret one. Under a Gaussian prior estimated from all the pictures she has, the answer
is the least-squares one. k packets span k dimensions, so complete recovery takes k = N, and recognition far fewer.
Source: known-plaintext attacks on permutation-only ciphers, Li et al. 2008 (Signal Process. Image Commun. 23); on
distance-preserving maps, Liu, Giannella, Kargupta 2006 (PKDD); on keyed Gaussian measurements, Bianchi, Bioglio, Magli 2014.
Positive control: the same V or key stream, at 20 dB. Negative control: fresh ones, where both functions must be at chance.
Success: a PSNR near Bob's (schemes), or above that of the mean picture (mixing).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from semseal.runtime.attacks.ordering import Order, Rows

RIDGE_FRACTION = 1e-3  # of the mean power of a picture
MIN_RIDGE_FRACTION = 1e-6  # of the mean diagonal, as float32 products are no more exact


def match_rows(sent: Rows, received: Rows) -> Order:
    """The received row that each known row became, int64 [n]; ``secret[rows]`` opens a packet under the same scheme.

    ``sent``, float32 [packets, n, r], are undefended rows, and ``received``, [packets, m, r], is what Eve received of them.
    With both frames of a pair m = 2h, and n = h if only one of the two pictures is known. Raises ValueError if n > m.
    """
    if sent.shape[1] > received.shape[1]:
        raise ValueError(
            f"{sent.shape[1]} known rows cannot all be among {received.shape[1]} received ones; give both frames of a pair"
        )
    products = np.einsum("pnr,pmr->nm", sent, received, optimize=True)
    distances = -2 * products + np.square(received).sum(axis=(0, 2))  # a known row's energy is the same for every match
    rows: Order = linear_sum_assignment(distances)[1]
    return rows


def unmix(
    attacker: NDArray[np.float32],
    sent: NDArray[np.float32],
    received: NDArray[np.float32],
    secret: NDArray[np.float32],
    snr_db: float,
) -> NDArray[np.float32]:
    """Estimate the undefended symbols of secret packets mixed under the key stream of known ones: float32 [packets, N].

    ``attacker`` [images, N] and ``sent`` [k, N] are undefended symbols, viewed as real: of the attacker's images (2 or more)
    and of the known pictures. ``received`` [k, M] are the known packets and ``secret`` [packets, M] the secret ones as Eve
    received them; M >= N, because mixing pads.
    """
    n, m = sent.shape[1], received.shape[1]
    noise = 10 ** (-snr_db / 10) / 2
    pictures = np.concatenate([attacker, sent])
    mean = pictures.mean(axis=0)
    pictures -= mean
    rest = _unexplained_variance(pictures) + noise  # unmixing rotates the secret packet's noise too; it adds to the rest
    seen = sent @ pictures.T  # [k, pictures]
    products = (seen @ seen.T / len(pictures) + rest * sent @ sent.T).astype(np.float64)
    # the noise of a known packet correlates with a secret packet, of power n/2, and with that packet's noise
    products += noise * (n / 2 + m * noise) * np.eye(len(sent))
    # without noise, two known packets of one picture say the same: a ridge keeps the equations solvable
    products += MIN_RIDGE_FRACTION * np.trace(products) / len(sent) * np.eye(len(sent))
    weights = np.linalg.solve(products, received @ secret.T - (sent @ mean)[:, None]).T  # [packets, k]
    estimate = mean + weights @ seen / len(pictures) @ pictures + (rest - noise) * weights @ sent
    return estimate.astype(np.float32)


def _unexplained_variance(pictures: NDArray[np.float32]) -> float:
    """The variance per real value that half of the pictures, float32 [2 or more, N] of mean 0, leaves open in the rest."""
    a, b = pictures[::2], pictures[1::2]
    products = (a @ a.T).astype(np.float64)
    products += RIDGE_FRACTION * np.trace(products) / len(a) * np.eye(len(a))
    return float(np.square(b - np.linalg.solve(products, a @ b.T).T @ a).mean())
