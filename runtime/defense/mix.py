"""The mix: a keyed orthogonal map of all real symbols of one image, fresh for every packet.

    y ── signs ── L ── signs ── R ── shuffle ── signs ── L ── signs ── R ── signs ──> on air
           0             1             order       2            3            4
    └───────────── round one ──────────────┘  └─────────── round two ────────────┘

The n reals of an image are a matrix of a*b rows and c columns. L = H_a x H_b mixes each column over all rows, R = H_c mixes
each row over its columns, and the shuffle moves runs of c/4 neighbours anywhere in the image. The matrices H are fixed and
public; the signs (n of them, five times) and the order are secret, drawn from a ChaCha20 key stream under HKDF(K, session,
counter, model digest). The map is orthogonal: power stays what it is, white noise stays white, and Bob's symbols are as noisy
as without it. A size that does not factor is padded with zeros, which costs the channel uses that ``padded_size`` tells.

Why this shape, of all that were tried and attacked:

- The entries of an H have one magnitude, so that every position gets the same power on average, whatever was sent. With a
  cosine or Hartley transform a sparse vector shows in the spread of the powers. H_a and H_b may have a zero in each row
  (conference matrices) from order 30 on; the shuffle makes what is left of that too small to see.
- H_c is turned by a small angle. Without it, few or equal values come out on a lattice, plain to see without noise.
- Eve can undo a public matrix that no secret follows. Signs after the last R keep that R from being wasted, as those before
  the first L do for her choice of y.
- Without the signs between L and R, two symbols of one row keep a pattern of columns through both rounds, and two symbols of
  one column leave half of the rows empty, which shows in the power of the columns.
- A shuffle of single symbols would be cleaner and costs ten times as much, in the graph and in the derivation.

Promised for images of some thousands of reals and a counter that is used once: statistics of one packet (powers, moments,
spectra, correlations, lattices) told no two inputs apart, chosen ones included, and named no known picture. That was measured,
not proved. Not promised: anything once a counter was used twice (inner products of such packets are those of their symbols:
two known pictures name the next one nearly always, and n known ones give the whole map); that nobody changed the symbols
on the way; that it stays hidden that an image was sent, or of which size.

Sources: Bianchi, Bioglio and Magli (ICASSP 2014): a random orthogonal map of a vector of known energy tells nothing more. Paley
(1933): the H.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray
from semseal.runtime.defense.keys import derive

LABEL = b"semseal/v1/mix"
LAYERS = 5  # of signs
LEAST_STRUCTURE = 10.0  # of symbols that were un-mixed with the right keys, see ``structure``
LARGEST = 2**22  # reals in an image
SESSION_SIZE, DIGEST_SIZE = 16, 32

_TALLEST, _WIDEST = 256, 64  # of a and b, and of c
_EVEN_ENOUGH = 30  # the smallest conference matrix: it leaves out one place in so many
_TURN = 0.03  # radians
_LANES = 16  # floats in the widest registers of today's processors
_SIGNS = 1 - 2 * (np.arange(256)[:, None] >> np.arange(8) & 1).astype(np.float32)  # of a byte, lowest bit first

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class MixKeys:
    """What ``mix`` takes for a batch, all of it secret.

    ``signs`` float32 [LAYERS, batch, padded n], -1 or 1. ``order`` int32 [batch, runs]: run i of the second round is run
    ``order[:, i]`` of the first.
    """

    signs: NDArray[np.float32] = field(repr=False)
    order: NDArray[np.int32] = field(repr=False)

    @property
    def index(self) -> NDArray[np.int32]:
        """``order`` as a gather among the runs of all images of the batch; int32 [batch, runs]."""
        return _spread(self.order)

    @property
    def inverse_index(self) -> NDArray[np.int32]:
        """The gather that undoes ``index``; int32 [batch, runs]."""
        return _spread(self.order.argsort(axis=1))


@lru_cache
def factors(n: int) -> tuple[int, int, int]:
    """(a, b, c) for images of n reals: a*b*c is even, at least n, and the smallest for which there are matrices.

    Of the ways to factor it, the one that is cheapest to multiply. Raises ValueError unless 1 <= n <= LARGEST.
    """
    if not 1 <= n <= LARGEST:
        raise ValueError(f"mix takes images of 1 to {LARGEST} reals, got {n}")
    orders = {m: _construction(m) for m in range(1, _TALLEST + 1)}
    tall = {m for m, how in orders.items() if how and (how != "conference" or m >= _EVEN_ENOUGH)}
    wide = [m for m in range(2, _WIDEST + 1) if orders[m] and orders[m] != "conference"]
    size = n
    while True:
        found = []
        for c in wide:
            rows = size // c
            # few columns under many rows would leave R little to do
            if size % c or (c < 16 and rows > c):
                continue
            wasted = -(-c // _LANES) * _LANES / c
            found += [(a + (rows // a + c) * wasted, a, rows // a, c) for a in tall if rows % a == 0 and rows // a in tall]
        if found:
            return min(found)[1:]
        size += 1


def padded_size(n: int) -> int:
    """Reals on air for an image of n reals: n for most sizes in use, else a few per thousand more. Even."""
    return math.prod(factors(n))


def run_length(n: int) -> int:
    """Neighbouring reals that the shuffle keeps together, for images of n reals."""
    return max(1, factors(n)[2] // 4)


@lru_cache
def matrices(n: int) -> tuple[Matrix, Matrix, Matrix]:
    """H_a, H_b and H_c for images of n reals, orthogonal and read only: rows become H_a X and H_b X, columns X H_c."""
    a, b, c = factors(n)
    left_a, left_b, right = flat(a), flat(b), flat(c)
    even, odd = right[:, 0::2].copy(), right[:, 1::2].copy()
    right[:, 0::2] = math.cos(_TURN) * even - math.sin(_TURN) * odd
    right[:, 1::2] = math.sin(_TURN) * even + math.cos(_TURN) * odd
    out = left_a.astype(np.float32), left_b.astype(np.float32), right.astype(np.float32)
    for matrix in out:
        matrix.flags.writeable = False
    return out


def derive_keys(key: bytes, session: bytes, counters: Sequence[int], model_digest: bytes, n: int) -> MixKeys:
    """The keys of one packet for each counter. A counter must never be used twice with one session.

    Per packet, from the ChaCha20 stream under HKDF(K, LABEL, salt = session 16 | counter 8 | digest 32), little-endian:

        5 x ceil(padded n / 8) bytes   a bit for each sign, lowest first; 1 is minus
        4 bytes x runs                 a word for each run; their order by size is ``order``
        4 bytes x runs ...             drawn again as long as two words are equal: every order is equally likely

    Raises ValueError for another length or range and KeyFileError for a key that is not 32 bytes.
    """
    if len(session) != SESSION_SIZE or len(model_digest) != DIGEST_SIZE:
        raise ValueError(
            f"session must be {SESSION_SIZE} bytes and digest {DIGEST_SIZE}, got {len(session)} and {len(model_digest)}"
        )
    size = padded_size(n)
    runs, layer = size // run_length(n), -(-size // 8)
    signs = np.empty((LAYERS, len(counters), layer, 8), np.float32)
    order = np.empty((len(counters), runs), np.int32)
    for i, counter in enumerate(counters):
        if not 0 <= counter < 2**64:
            raise ValueError(f"counter must be in 0..2^64-1, got {counter}")
        salt = session + counter.to_bytes(8, "little") + model_digest
        stream = Cipher(ChaCha20(derive(key, LABEL, salt), bytes(16)), mode=None).encryptor()
        bits = np.frombuffer(stream.update(bytes(LAYERS * layer)), np.uint8).reshape(LAYERS, layer)
        for k in range(LAYERS):
            _SIGNS.take(bits[k], axis=0, out=signs[k, i], mode="clip")  # the default mode would copy once more
        while True:
            words = np.frombuffer(stream.update(bytes(4 * runs)), "<u4")
            order[i] = words.argsort()
            by_size = words[order[i]]
            if (by_size[1:] != by_size[:-1]).all():
                break
    return MixKeys(signs.reshape(LAYERS, len(counters), -1)[:, :, :size], order)


def sign_inputs(keys: MixKeys, n: int) -> list[NDArray[np.float32]]:
    """The signs as the graphs of images of n reals take them, in the shapes that ``semseal.export.mixing`` tells."""
    a, b, c = factors(n)
    blocks, cube, pairs = (a, b * c), (a, b, c), (a * b * c // 2, 2)
    shapes = (blocks, cube, blocks, cube, pairs)
    return [np.ascontiguousarray(layer).reshape(-1, *shape) for layer, shape in zip(keys.signs, shapes, strict=True)]


def mix(symbols: NDArray[np.float32], keys: MixKeys) -> NDArray[np.float32]:
    """Float32 [batch, n] to float32 [batch, padded n] of the same mean power. The reference of every graph and kernel."""
    batch, n = symbols.shape
    a, b, c = factors(n)
    _check(keys, batch, n)
    left_a, left_b, right = matrices(n)
    x = symbols
    if a * b * c > n:
        x = np.zeros((batch, a * b * c), np.float32)
        x[:, :n] = symbols * np.float32(math.sqrt(a * b * c / n))
    for turn in (0, 2):
        x = left_a @ (x * keys.signs[turn]).reshape(batch, a, b * c)
        x = left_b @ x.reshape(batch, a, b, c)
        x = (x.reshape(batch, -1) * keys.signs[turn + 1]).reshape(-1, c) @ right
        if turn == 0:
            x = x.reshape(-1, run_length(n)).take(keys.index, axis=0)
        x = x.reshape(batch, -1)
    return x * keys.signs[4]


def unmix(heard: NDArray[np.float32], keys: MixKeys, n: int) -> NDArray[np.float32]:
    """The inverse: float32 [batch, padded n], as heard, to float32 [batch, n]; exact up to float32 rounding."""
    batch = len(heard)
    a, b, c = factors(n)
    _check(keys, batch, n)
    left_a, left_b, right = matrices(n)
    x = heard * keys.signs[4]
    for turn in (2, 0):
        x = (x.reshape(-1, c) @ right.T).reshape(batch, -1) * keys.signs[turn + 1]
        x = left_b.T @ x.reshape(batch, a, b, c)
        x = (left_a.T @ x.reshape(batch, a, b * c)).reshape(batch, -1) * keys.signs[turn]
        if turn == 2:
            x = x.reshape(-1, run_length(n)).take(keys.inverse_index, axis=0).reshape(batch, -1)
    return x if x.shape[1] == n else x[:, :n] * np.float32(math.sqrt(n / x.shape[1]))


def structure(symbols: NDArray[np.float32], channels: int) -> NDArray[np.float64]:
    """How far un-mixed symbols [batch, n] are from white noise, which they are under another key, counter or model; [batch].

    The channels of an encoder differ in mean and power, white noise does not. The statistic is chi square for both, over all
    channels, in its own standard deviations: 0 on average for wrong keys, and above LEAST_STRUCTURE less than once in a million
    packets (from 4 channels on). It costs no channel uses. It is no authentication: noise that was added goes unnoticed.
    """
    y = symbols.reshape(len(symbols), -1, channels)  # [batch, places, channels]
    places, degrees = y.shape[1], 2 * channels - 1
    power = np.einsum("bpc,bpc->bc", y, y).astype(np.float64) / places
    mean = np.einsum("bpc->bc", y).astype(np.float64) / places
    total = power.mean(1, keepdims=True)
    chi_square = places * (np.square(power / total - 1) / 2 + np.square(mean) / total).sum(1)
    return (chi_square - degrees) / math.sqrt(2 * degrees)


def flat(m: int) -> NDArray[np.float64]:
    """An orthogonal m x m matrix whose entries have one magnitude (Hadamard), or whose diagonal is zero besides (conference).

    Raises ValueError where Paley's constructions over primes, and doubling, know none.
    """
    how = _construction(m)
    if how == "one":
        return np.ones((1, 1))
    if how == "double":
        half = flat(m // 2)
        return np.block([[half, half], [half, -half]]) / math.sqrt(2)
    if how == "paley 2":
        half, one = flat(m // 2) * math.sqrt(m // 2 - 1), np.eye(m // 2)
        return np.block([[half + one, half - one], [half - one, -half - one]]) / math.sqrt(m)
    if how is None:
        raise ValueError(f"no flat orthogonal matrix of order {m} is known here")
    q = m - 1
    residue = -np.ones(q)
    residue[np.arange(q) ** 2 % q] = 1
    residue[0] = 0
    out = np.ones((m, m))
    out[0, 0] = 0
    out[1:, 1:] = residue[(np.arange(q)[:, None] - np.arange(q)) % q]
    if how == "conference":
        return out / math.sqrt(q)
    out[1:, 0] = -1
    return (out + np.eye(m)) / math.sqrt(m)


def _construction(m: int) -> str | None:
    """How ``flat`` makes order m; all but "conference" are Hadamard matrices."""
    if m == 1:
        return "one"
    if m == 2:
        return "double"
    if m % 2 == 0 and all((m - 1) % d for d in range(3, math.isqrt(m) + 1, 2)):  # m - 1 is prime
        return "paley 1" if m % 4 == 0 else "conference"
    if m % 4 == 0:
        half = _construction(m // 2)
        return "paley 2" if half == "conference" else "double" if half else None
    return None


def _spread(order: NDArray[np.integer]) -> NDArray[np.int32]:
    batch, runs = order.shape
    return (order + np.arange(0, batch * runs, runs)[:, None]).astype(np.int32)


def _check(keys: MixKeys, batch: int, n: int) -> None:
    size = padded_size(n)
    if keys.signs.shape != (LAYERS, batch, size) or keys.order.shape != (batch, size // run_length(n)):
        raise ValueError(
            f"keys for {keys.signs.shape[1]} images of {keys.signs.shape[2]} reals on air do not fit {batch} of {size}; "
            f"derive them for these images and n = {n}"
        )
