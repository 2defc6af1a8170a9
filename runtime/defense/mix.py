"""The mix: a keyed orthogonal map of all real symbols of one image, fresh for every packet.

    y ── signs ── L ── signs ── R ── rows ── signs ── L ── signs ── R ── signs ──> on air
          s0             s1          p          s2           s3           s4
    └────────── round one ───────────┘  └────────── round two ─────────┘

The n reals of an image are a matrix of a*b rows and c columns. L = H_a x H_b mixes every column over all its rows, R = H_c
mixes every row over its columns, ``rows`` shuffles the rows. The matrices H are fixed and public; the signs (n of them, five
times) and the row order are the key, drawn from a ChaCha20 stream under HKDF(K, session, counter, model digest). The map
is orthogonal: power stays what it is, white noise stays white, and Bob's symbols are as noisy as without it. A shape that does
not factor is padded with zeros, which costs the channel uses that ``padded_size`` tells.

Why this shape:

- Every entry of an H has the same magnitude (H_a and H_b may have one zero in a row). Then all positions get the same power
  on average, whatever was sent. A cosine or Hartley transform does not do that, and a sparse vector shows in the spread of
  the row powers.
- H_c is turned by a small angle. Without it a sparse vector of equal values lands on a lattice, plain to see without noise.
- Signs stand before the first matrix and after the last. Eve can undo a public matrix that no key follows, so that without s4
  the last R is worth nothing, and without s0 a constant vector meets no key in round one.
- Signs stand between L and R too. Without s1 two symbols of one row keep a pattern of columns through both rounds; without s3 two
  symbols of one column leave half of the rows empty, which shows in the power of the columns. The row shuffle between the
  rounds hides the same patterns along the two halves of L.
- A shuffle of single symbols would cost a sort of n words and a gather of n words; this one costs a*b of both.

Promised, for n of some thousands and a key stream used once: attacks on the power, moments, spectra, lattices and correlations of
one packet did not tell any two inputs apart, chosen ones included, and did not name a known picture. That is measured, not
proved. Not promised: anything when a counter is used twice with one session (inner products of two such packets are those of
their symbols, so one known picture already names the other, and n known ones give the whole map away); that the
symbols were not changed on the way; that the length of an image or the fact that it was sent stays hidden.

Sources: Bianchi, Bioglio and Magli (ICASSP 2014) for random orthogonal measurements of normalised energy; Paley (1933) for the H.
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
LARGEST = 2**22  # reals in an image
SESSION_SIZE, DIGEST_SIZE = 16, 32

_WIDEST, _TALLEST = 64, 256  # of c, and of a and b
_TURN = 0.03  # radians; the square of its sine is what the flatness of H_c loses
_VECTOR = 16  # floats in the widest register of today's processors
_SIGNS = 1 - 2 * (np.arange(256)[:, None] >> np.arange(8) & 1).astype(np.float32)  # of a byte, lowest bit first


@dataclass(frozen=True)
class MixKeys:
    """What ``mix`` takes for a batch, secret: ``signs`` float32 [LAYERS, batch, padded n] of -1 and 1, and ``rows`` int32
    [batch, a*b]: row i of the second round is row ``rows[:, i]`` of the first."""

    signs: NDArray[np.float32] = field(repr=False)
    rows: NDArray[np.int32] = field(repr=False)

    @property
    def index(self) -> NDArray[np.int32]:
        """``rows`` as a gather into the rows of all images [batch*a*b, c] takes them; int32 [batch, a*b]."""
        return _spread(self.rows)

    @property
    def inverse_index(self) -> NDArray[np.int32]:
        """The gather that undoes ``index``; int32 [batch, a*b]."""
        return _spread(self.rows.argsort(axis=1))


@lru_cache
def factors(n: int) -> tuple[int, int, int]:
    """(a, b, c) for images of n reals: a*b*c is even and at least n, and as small as there are matrices for.

    Of the ways to factor it, the one that costs the fewest multiplications. Raises ValueError unless 1 <= n <= LARGEST.
    """
    if not 1 <= n <= LARGEST:
        raise ValueError(f"mix takes 1..{LARGEST} reals in an image, got {n}")
    tall = [m for m in range(1, _TALLEST + 1) if m == 1 or _kind(m)]
    wide = [m for m in range(2, _WIDEST + 1, 2) if _kind(m) in ("two", "skew", "paley2", "double")]
    size = n
    while True:
        found = []
        for c in wide:
            rows = size // c
            # few columns under many rows would leave R little to do
            if size % c or (c < 16 and rows > c):
                continue
            lanes = -(-c // _VECTOR) * _VECTOR / c
            found += [(a + (rows // a + c) * lanes, a, rows // a, c) for a in tall if rows % a == 0 and rows // a in tall]
        if found:
            return min(found)[1:]
        size += 1


def padded_size(n: int) -> int:
    """Reals on air for an image of n reals: even, n for most sizes, else at most a few per cent more."""
    return math.prod(factors(n))


@lru_cache
def matrices(n: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """H_a, H_b and H_c for images of n reals, orthogonal, read only: X -> H_a X and H_b X over rows, X -> X H_c over columns."""
    a, b, c = factors(n)
    right = flat(c)
    turned = right.copy()
    turned[:, 0::2] = math.cos(_TURN) * right[:, 0::2] - math.sin(_TURN) * right[:, 1::2]
    turned[:, 1::2] = math.sin(_TURN) * right[:, 0::2] + math.cos(_TURN) * right[:, 1::2]
    out = (flat(a).astype(np.float32), flat(b).astype(np.float32), turned.astype(np.float32))
    for matrix in out:
        matrix.flags.writeable = False
    return out


def derive_keys(key: bytes, session: bytes, counters: Sequence[int], model_digest: bytes, n: int) -> MixKeys:
    """The keys of one packet for each counter. A counter must never be used twice with one session.

    Per packet, from the ChaCha20 stream under HKDF(K, salt = session 16 | counter 8 | digest 32, little-endian):

        5 x ceil(padded n / 8) bytes   a bit for each sign, lowest first; 1 is minus
        a*b x 4 bytes                  a word for each row; the order of the words is the order of the rows
        a*b x 4 bytes ...              again as long as two words are equal: every order is then equally likely

    Raises ValueError for another length or range and KeyFileError for a key that is not 32 bytes.
    """
    if len(session) != SESSION_SIZE or len(model_digest) != DIGEST_SIZE:
        raise ValueError(
            f"session must be {SESSION_SIZE} bytes and digest {DIGEST_SIZE}, got {len(session)} and {len(model_digest)}"
        )
    a, b, c = factors(n)
    size = a * b * c
    layer = -(-size // 8)
    signs = np.empty((LAYERS, len(counters), layer * 8), np.float32)
    rows = np.empty((len(counters), a * b), np.int32)
    for i, counter in enumerate(counters):
        if not 0 <= counter < 2**64:
            raise ValueError(f"counter must be in 0..2^64-1, got {counter}")
        salt = session + counter.to_bytes(8, "little") + model_digest
        stream = Cipher(ChaCha20(derive(key, LABEL, salt), bytes(16)), mode=None).encryptor()
        bits = np.frombuffer(stream.update(bytes(LAYERS * layer)), np.uint8).reshape(LAYERS, layer)
        for k in range(LAYERS):
            _SIGNS.take(bits[k], axis=0, out=signs[k, i].reshape(layer, 8), mode="clip")  # any other mode copies once more
        while True:
            words = np.frombuffer(stream.update(bytes(4 * a * b)), "<u4")
            order = words.argsort()
            ordered = words[order]
            if (ordered[1:] != ordered[:-1]).all():
                break
        rows[i] = order
    return MixKeys(signs[:, :, :size], rows)


def mix(symbols: NDArray[np.float32], keys: MixKeys) -> NDArray[np.float32]:
    """Float32 [batch, n] to float32 [batch, padded n], of the same mean power. The reference of every graph and kernel."""
    batch, n = symbols.shape
    a, b, c = factors(n)
    _check(keys, batch, a * b, a * b * c)
    left_a, left_b, right = matrices(n)
    x = symbols
    if a * b * c > n:
        x = np.zeros((batch, a * b * c), np.float32)
        x[:, :n] = symbols * np.float32(math.sqrt(a * b * c / n))
    for turn in (0, 2):
        x = left_a @ (x * keys.signs[turn]).reshape(batch, a, b * c)
        x = (left_b @ x.reshape(batch, a, b, c)).reshape(batch, -1) * keys.signs[turn + 1]
        x = x.reshape(-1, c) @ right
        if turn == 0:
            x = x.take(keys.index, axis=0)
        x = x.reshape(batch, -1)
    return x * keys.signs[4]


def unmix(heard: NDArray[np.float32], keys: MixKeys, n: int) -> NDArray[np.float32]:
    """The inverse: float32 [batch, padded n], as heard, to float32 [batch, n]; exact up to float32 rounding."""
    batch = len(heard)
    a, b, c = factors(n)
    _check(keys, batch, a * b, heard.shape[1])
    left_a, left_b, right = matrices(n)
    x = heard * keys.signs[4]
    for turn in (2, 0):
        x = (x.reshape(-1, c) @ right.T).reshape(batch, -1) * keys.signs[turn + 1]
        x = left_b.T @ x.reshape(batch, a, b, c)
        x = (left_a.T @ x.reshape(batch, a, b * c)).reshape(batch, -1) * keys.signs[turn]
        if turn == 2:
            x = x.reshape(-1, c).take(keys.inverse_index, axis=0).reshape(batch, -1)
    return x if x.shape[1] == n else x[:, :n] * np.float32(math.sqrt(n / x.shape[1]))


def flat(m: int) -> NDArray[np.float64]:
    """An orthogonal m x m matrix with entries of one magnitude (Hadamard), or with a zero diagonal besides (conference).

    Raises ValueError where Paley's two constructions and doubling know none.
    """
    kind = _kind(m)
    if m == 1:
        return np.ones((1, 1))
    if kind == "two":
        return np.array([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)
    if kind in ("skew", "conference"):
        residue = -np.ones(m - 1)
        residue[np.arange(1, m - 1) ** 2 % (m - 1)] = 1
        residue[0] = 0
        place = np.arange(m - 1)
        out = np.ones((m, m))
        out[0, 0] = 0
        out[1:, 1:] = residue[(place[:, None] - place) % (m - 1)]
        if kind == "conference":
            return out / math.sqrt(m - 1)
        out[1:, 0] = -1
        return (out + np.eye(m)) / math.sqrt(m)
    if kind == "paley2":
        half, one = flat(m // 2) * math.sqrt(m // 2 - 1), np.eye(m // 2)
        return np.block([[half + one, half - one], [half - one, -half - one]]) / math.sqrt(m)
    if kind == "double":
        half = flat(m // 2)
        return np.block([[half, half], [half, -half]]) / math.sqrt(2)
    raise ValueError(f"no flat orthogonal matrix of order {m} is known here")


def _spread(rows: NDArray[np.integer]) -> NDArray[np.int32]:
    batch, count = rows.shape
    return (rows + np.arange(0, batch * count, count)[:, None]).astype(np.int32)


def _kind(m: int) -> str | None:
    """How ``flat`` makes order m. Only "conference" has zeros."""
    if m == 2:
        return "two"
    if m % 2 or m < 4:
        return None
    if _prime(m - 1):
        return "skew" if m % 4 == 0 else "conference"
    if m % 4 == 0 and _kind(m // 2) == "conference":
        return "paley2"
    return "double" if m % 4 == 0 and _kind(m // 2) else None


def _prime(q: int) -> bool:
    return q > 1 and all(q % d for d in range(2, math.isqrt(q) + 1))


def _check(keys: MixKeys, batch: int, rows: int, size: int) -> None:
    if keys.signs.shape != (LAYERS, batch, size) or keys.rows.shape != (batch, rows):
        raise ValueError(
            f"keys for {keys.rows.shape[0]} images of {keys.signs.shape[2]} reals do not fit {batch} images of {size}; "
            "derive them for this n"
        )
