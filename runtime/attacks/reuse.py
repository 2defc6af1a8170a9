"""Known plaintext under reuse: what was sent twice under one V, or one key stream, was sent in the clear.

    permute, substitute   known rows ── assignment to heard rows ── the scheme ── every other packet under that V
    mix                   known packets ── their inner products with a secret one ── regression ── the secret picture

Eve knows: the deployed transmitter and receiver, her SNR, pictures of her own, and for k packets the picture that was sent; the
secret packet was sent under the same V (or the same key stream). She does not know K, V or the scheme sets.
She does, for schemes: sends the known pictures through her own transmitter and finds each row among the heard ones (linear
assignment, squared distances, summed over packets). 256 known packets, one for each p, give away the set P itself.
She does, for mixing: an orthogonal map keeps inner products, whichever map it is and however it was keyed, so each known packet
is one linear measurement of the secret one. Under a Gaussian prior from all pictures that she has, the answer is the
least-squares one; k packets span k dimensions, so complete recovery takes k = N, and recognition far fewer.
Source: known-plaintext attacks on permutation-only ciphers, Li et al. 2008 (Signal Process. Image Commun. 23); on
distance-preserving maps, Liu, Giannella, Kargupta 2006 (PKDD); on keyed Gaussian measurements, Bianchi, Bioglio, Magli 2014.
Positive control: the same V or key stream, 20 dB. Negative control: fresh ones, where both functions must be at chance.
Success: Eve's PSNR near Bob's (schemes), above that of the mean picture (mixing).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from semseal.runtime.attacks.ordering import Order, Rows

RIDGE = 1e-3  # of the mean power of a picture


def find_places(sent: Rows, heard: Rows) -> Order:
    """In which heard row each known row arrived, int64 [n]: ``secret[places]`` opens a packet under the same scheme.

    ``sent`` float32 [packets, n, r] are undefended rows, ``heard`` [packets, m, r] what Eve received of them. With both frames
    of a pair heard m = 2h; n = h if only one of its pictures is known. Raises ValueError when known rows outnumber the heard.
    """
    if sent.shape[1] > heard.shape[1]:
        raise ValueError(
            f"{sent.shape[1]} known rows cannot all be among {heard.shape[1]} heard ones; give both frames of a pair"
        )
    products = np.einsum("pnr,pmr->nm", sent, heard, optimize=True)
    distances = -2 * products + np.square(heard).sum(axis=(0, 2))  # less what all of a known row's have in common
    places: Order = linear_sum_assignment(distances)[1]
    return places


def unmix(
    own: NDArray[np.float32], sent: NDArray[np.float32], heard: NDArray[np.float32], secret: NDArray[np.float32], snr_db: float
) -> NDArray[np.float32]:
    """The undefended symbols behind secret packets that were mixed under the key stream of known ones, float32 [packets, N].

    ``own`` [pictures, N] and ``sent`` [k, N]: undefended symbols, viewed as real, of Eve's pictures (2 or more) and of the
    known ones; ``heard`` [k, M] and ``secret`` [packets, M]: what she received, M >= N (padding).
    """
    n, m = sent.shape[1], heard.shape[1]
    noise = 10 ** (-snr_db / 10) / 2
    pictures = np.concatenate([own, sent])
    mean = pictures.mean(axis=0)
    pictures -= mean
    rest = _unexplained(pictures) + noise  # the secret packet's noise, turned back, is one more part of it
    seen = sent @ pictures.T  # [k, pictures]
    products = (seen @ seen.T / len(pictures) + rest * sent @ sent.T).astype(np.float64)
    # the noise on each known packet meets a secret one of power n/2 and its noise
    products += noise * (n / 2 + m * noise) * np.eye(len(sent))
    weights = np.linalg.solve(products, heard @ secret.T - (sent @ mean)[:, None]).T  # [packets, k]
    answer = mean + weights @ seen / len(pictures) @ pictures + (rest - noise) * weights @ sent
    return answer.astype(np.float32)


def _unexplained(pictures: NDArray[np.float32]) -> float:
    """Variance of a real value that one half of the pictures, float32 [2 or more, N] of mean 0, leaves open in the other."""
    a, b = pictures[::2], pictures[1::2]
    products = (a @ a.T).astype(np.float64)
    products += RIDGE * np.trace(products) / len(a) * np.eye(len(a))
    return float(np.square(b - np.linalg.solve(products, a @ b.T).T @ a).mean())
