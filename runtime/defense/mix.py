"""The mix, version 2: a keyed orthogonal map of all symbols of one image and some secret noise, fresh for every packet.

    features, unit power ─┐
                          ├─ signs ─ C ─ signs ─ A B ─ shuffle ─ signs ─ C ─ signs ─ A B ─ signs ─ C ─ signs ─ power 1 ─> on air
    pads, keyed noise    ─┘  of columns    0          of rows      1     │     2             3           4     exactly
                                                                 columns move
    └──────────────── round one ────────────────┘       └───────── round two ─────────┘ └── last ──┘

The reals of an image and its pads are a matrix of a*b rows and c columns. C is a Hadamard transform of each row, A and B are
those of each column, over the two digits of its row number. The transforms are fixed and public; the signs, five for every
real and one for every column, the shuffle of rows and columns and the pads are secret, from a ChaCha20 key stream under
HKDF(K, session, model digest) with the counter for a nonce. The map is orthogonal: white noise stays white and Bob's symbols
are as loud and as noisy as without it. What the pads cost is channel uses, which ``padded_size`` tells (1.1 % at 32,400 reals).
``docs/wire.md`` says every bit of it.

Why this shape, of all that were tried and attacked:

- Every entry of a Hadamard matrix has one magnitude, so that every place on air has one distribution, whatever was sent.
- The pads are as loud as the features and part of what is mixed. They fill silence (features that are all zero), drown what
  the rounding of a float32 normalisation says of the picture (4e-7 of the power), and smear the lattices that few or equal
  values come out on. The power is set to 1 before mixing, so that the grain of float32 is the same for every input, and again
  after it, in double precision, so that it says nothing either.
- Round one spreads any features over all places. What is left is that a few symbols, or those of one column, give energies
  that follow Walsh functions of the row and column numbers. The shuffle makes Eve's row and column numbers useless, round two
  mixes again, and the last C averages what A and B keep, the energy of each column.
- Signs before the first C keep Eve from choosing features that a public transform undoes. Those of the columns are enough: a
  sign for a whole row would go through C and be lost in those behind it. Signs behind the last C keep her from undoing it;
  those between keep the transforms from being one that she knows.
- A shuffle of runs shorter than a row would have to move the places inside of each run too, or they stay what they were;
  moving single symbols costs several times as much in one engine or the other.
- No part of the derivation depends on the values drawn: every key takes the same work, and every word of it can be made
  alone.

Promised for a counter that is used once: statistics of one packet (energy, powers, moments, spectra, correlations, lattices)
told no two inputs apart, chosen ones and noiseless packets included, and named no known picture. That was measured
(``docs/security.md``), not proved. Not promised: anything once a counter was used twice (inner products of such packets are
those of their symbols: two known pictures name the next one nearly always, and enough known ones give the whole map); that
nobody changed the symbols on the way; that it stays hidden that an image was sent, or of which size.

Sources: Bianchi, Bioglio and Magli (ICASSP 2014): a random orthogonal map of a vector of known energy tells nothing more.
Paley (1933): the Hadamard matrices. Luby and Rackoff (1988): the shuffle of rows is a Feistel network of random functions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from numpy.typing import NDArray
from semseal.runtime.defense.keys import derive
from semseal.runtime.errors import EngineError

LABEL = b"semseal/v2/mix"
LAYERS = 5  # of signs for every real
ROUNDS = 6  # of the Feistel network that shuffles rows
MIN_PADS = 64  # reals of keyed noise in every packet
MIN_REALS_ON_AIR = 2048  # reals on air
MAX_REALS = 2**22  # reals in an image
MIN_STRUCTURE = 10.0  # of symbols that were un-mixed with the right keys, see ``structure``
SESSION_SIZE, DIGEST_SIZE = 16, 32

_ORDERS = range(4, 513)  # of a and b
_NARROWEST, _WIDEST = 8, 64  # c; in rows of 4, features that fill one row can be told, if barely
_TURNS = ROUNDS // 2 + 1  # round the clock, at most, of a digit of a row
_SLACK = 100  # one part in so many may be added to the size where that is cheaper to compute
FEW = 2**14  # reals, below which rounding to float32 moves the power by up to 1e-8
STICKS = 4e-6  # from a power of two, in powers of two: by such a factor all values round to what they were, whatever the power
_LANES = 16  # floats in the widest registers of today's processors
_PAD_UNIT = np.float32(math.sqrt(1.5) * 2.0**-32)  # the sum of four 32-bit words has a deviation of 2^32 / sqrt(3)

_MINUS_MEAN = np.int64(-2 * (2**32 - 1))  # of such a sum
_TAG_SIZE = 16  # of Poly1305
_ONE, _HALF = np.int8(1), np.int64(32)  # ready made, as NumPy takes long for Python's

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class MixKeys:
    """What ``mix`` takes for a batch, all of it secret.

    ``signs`` int8 [batch, LAYERS, padded n] and ``column_signs`` int8 [batch, c, 1], -1 or 1. ``pads`` float32
    [batch, padded n - n], of power 1/2 a real. ``rows`` int32 [batch, a*b]: row i after the shuffle is row ``rows[:, i]``
    before it. ``columns`` int32 [batch, c]: column k before the shuffle is column ``columns[:, k]`` after it.
    """

    signs: NDArray[np.int8] = field(repr=False)
    column_signs: NDArray[np.int8] = field(repr=False)
    pads: NDArray[np.float32] = field(repr=False)
    rows: NDArray[np.int32] = field(repr=False)
    columns: NDArray[np.int32] = field(repr=False)

    @property
    def index(self) -> NDArray[np.int32]:
        """``rows`` as a gather among the rows of all images of the batch; int32 [batch, a*b]."""
        return _absolute(self.rows)

    @property
    def inverse_index(self) -> NDArray[np.int32]:
        """The gather that undoes ``index``; int32 [batch, a*b]."""
        back = np.empty_like(self.rows)
        np.put_along_axis(back, self.rows, np.arange(self.rows.shape[1], dtype=np.int32)[None], axis=1)
        return _absolute(back)


@lru_cache
def factors(n: int) -> tuple[int, int, int]:
    """(a, b, c) for images of n reals: orders of Hadamard matrices with a >= b, and a*b*c reals on air.

    a*b*c is at least n + MIN_PADS and MIN_REALS_ON_AIR, and exceeds that by 1 % at most where any product of such orders does;
    of these the one that is cheapest to compute. Raises ValueError unless 1 <= n <= MAX_REALS.
    """
    if not 1 <= n <= MAX_REALS:
        raise ValueError(f"mix takes images of 1 to {MAX_REALS} reals, got {n}; send larger ones in parts")
    least = max(MIN_REALS_ON_AIR, n + MIN_PADS)
    tall = [m for m in _ORDERS if _construction(m)]
    products = []
    for c in (m for m in range(_NARROWEST, _WIDEST + 1) if _construction(m)):
        lanes = -(-c // _LANES) * _LANES
        for i, b in enumerate(tall):
            for a in tall[i:]:
                if a * b * c >= least:
                    # three transforms along c, two along a and b, and some 32 additions' worth of memory traffic a real
                    products.append((a * b * c, a * b * (2 * (a + b) * c + 3 * c * lanes + 32 * c), a, b, c))
                    if a * b * c > least + least // _SLACK:
                        break
    enough = max(least + least // _SLACK, min(products)[0])
    _, _, a, b, c = min((cost, size, a, b, c) for size, cost, a, b, c in products if size <= enough)
    return a, b, c


def padded_size(n: int) -> int:
    """Reals on air for an image of n reals, pads included; from 10,000 reals on at most 3 % more. Even."""
    return math.prod(factors(n))


@lru_cache
def matrices(n: int) -> tuple[Matrix, Matrix, Matrix]:
    """H_a, H_b and H_c for images of n reals, read only, each times a power of two such that it is nearly orthogonal.

    Products with such entries are exact in float32; what is left of the scale is taken out when the power is set to 1.
    """
    out = []
    for m in factors(n):
        matrix = (hadamard(m) * 2.0 ** -round(math.log2(m) / 2)).astype(np.float32)
        matrix.flags.writeable = False
        out.append(matrix)
    a, b, c = out
    return a, b, c


@lru_cache
def inverse_matrices(n: int) -> tuple[Matrix, Matrix, Matrix]:
    """The transposes of H_a, H_b and H_c, orthogonal up to float32 rounding, read only."""
    out = []
    for m in factors(n):
        matrix = np.ascontiguousarray(hadamard(m).T / math.sqrt(m), np.float32)
        matrix.flags.writeable = False
        out.append(matrix)
    a, b, c = out
    return a, b, c


def derive_keys(key: bytes, session: bytes, counters: Sequence[int], model_digest: bytes, n: int) -> MixKeys:
    """The keys of one packet for each counter. A counter must never be used twice with one session.

    Per packet, from block 1 on of the ChaCha20 stream (RFC 8439) under HKDF(K, LABEL, salt = session 16 | digest 32) with the
    nonce counter 8 | 0000, little-endian:

        5 x padded n / 8 bytes     a bit for each sign, lowest first; 1 is minus
        8 bytes                    likewise for the signs of the columns, of which there are c
        4 x pads words             a pad is the sum of a word from each quarter, centred, times a unit
        3 x (p + q) words          for each of three turns a shift for every value of a row's first digit, then of its second;
                                   p*q is the number of rows, q its largest factor that is no larger than p
        c words                    their order by size, equal ones as they come, is ``columns``

    Raises ValueError for another length or range and KeyFileError for a key that is not 32 bytes.
    """
    if len(session) != SESSION_SIZE or len(model_digest) != DIGEST_SIZE:
        raise ValueError(
            f"session must be {SESSION_SIZE} bytes and digest {DIGEST_SIZE}, got {len(session)} and {len(model_digest)}"
        )
    plan, cipher, streams = _plan(n), _cipher(key, session + model_digest), []
    for counter in counters:
        if not 0 <= counter < 2**64:
            raise ValueError(f"counter must be in 0..2^64-1, got {counter}")
        # the seal of so many zeros is the stream, and a tag that nobody needs: it costs less than a cipher made for each packet
        streams.append(cipher.encrypt(counter.to_bytes(12, "little"), plan.zeros, None))
    drawn = np.frombuffer(b"".join(streams), np.uint8).reshape(len(streams), len(plan.zeros) + _TAG_SIZE)
    signs = np.unpackbits(drawn[:, : plan.packed], axis=1, bitorder="little").view(np.int8)
    np.negative(signs, out=signs)
    np.bitwise_or(signs, _ONE, out=signs)
    # one type for all that follows: engines empty the caches, and each other kind of operation is code to be read again
    words = drawn[:, plan.packed : -_TAG_SIZE].view("<u4").astype(np.int64)
    of_pads, of_rows, of_columns = words[:, : 4 * plan.pads], words[:, 4 * plan.pads : -plan.columns], words[:, -plan.columns :]
    rows = [_shuffled_rows(of_image, plan) for of_image in of_rows]
    reals = LAYERS * plan.size
    return MixKeys(
        signs[:, :reals].reshape(-1, LAYERS, plan.size),
        signs[:, reals : reals + plan.columns, None],
        _pads(of_pads, plan.pads),
        rows[0] if len(rows) == 1 else np.concatenate(rows),
        of_columns.argsort(axis=1, kind="stable").astype(np.int32),
    )


def stack_keys(each: Sequence[MixKeys]) -> MixKeys:
    """One MixKeys for a batch made of those of its images, in their order; all for images of one size."""
    return MixKeys(
        np.concatenate([keys.signs for keys in each]),
        np.concatenate([keys.column_signs for keys in each]),
        np.concatenate([keys.pads for keys in each]),
        np.concatenate([keys.rows for keys in each]),
        np.concatenate([keys.columns for keys in each]),
    )


def mix(symbols: NDArray[np.float32], keys: MixKeys) -> NDArray[np.float32]:
    """Float32 [batch, n] of mean power 1 (or all zero) to float32 [batch, padded n], as ``normalize`` gives it.

    The reference of every graph and kernel, up to float32 rounding.
    """
    batch, n = symbols.shape
    a, b, c = factors(n)
    _check(keys, batch, n)
    left_a, left_b, right = matrices(n)
    x = np.concatenate([symbols, keys.pads], axis=1)

    def signed(k: int) -> NDArray[np.float32]:
        out: NDArray[np.float32] = np.multiply(x.reshape(batch, -1), keys.signs[:, k]).reshape(batch, a * b, c)
        return out

    def columns_mixed(y: NDArray[np.float32]) -> NDArray[np.float32]:
        y = left_a @ y.reshape(batch, a, b * c)
        return (left_b @ y.reshape(batch, a, b, c)).reshape(batch * a * b, c)

    energy = np.einsum("bn,bn->b", x, x)[:, None, None]
    # how loud the features are must not show in the grain of float32 either, so that all is mixed at one power
    scaled = right * keys.column_signs * np.sqrt(np.float32(x.shape[1] / 2) / energy)
    x = x.reshape(batch, a * b, c) @ scaled
    x = columns_mixed(signed(0))
    x = x.take(keys.index, axis=0)
    x = signed(1) @ right.take(keys.columns, axis=0)  # whose rows are moved instead of the columns of x
    x = columns_mixed(signed(2))
    x = signed(3) @ right
    return normalize(signed(4).reshape(batch, -1))[0]


def normalize(on_air: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Float32 [batch, ...] times what makes the mean power of each image 1 per complex symbol, to 1e-8; in its own memory.

    Squares are added up in double precision and every real is rounded once. In images of few reals the rounding errors do not
    average out far enough, and a factor that is nearly a power of two rounds every real to what it was; there the largest real
    takes what they left. What is not contiguous is copied first. Returns the
    factors [batch] too. Raises EngineError where an image is silent or not finite: its encoder overflowed.
    """
    images = on_air.reshape(len(on_air), -1)
    factors = np.empty(len(images))
    for i, image in enumerate(images):
        energy = _energy(image)
        if not 0 < energy < math.inf:
            raise EngineError(
                f"image {i} of a run came out of the encoder with energy {energy:g}", "try another picture or precision"
            )
        factors[i] = math.sqrt(image.size / 2 / energy)
        # NumPy widens, multiplies and rounds a part of the image at a time, which stays in the caches
        np.multiply(image, factors[i], out=image, dtype=np.float64, casting="same_kind")
        exponent = math.log2(factors[i])
        if image.size < FEW or abs(exponent - round(exponent)) < STICKS:
            largest = np.abs(image).argmax()
            image[largest] += (image.size / 2 - _energy(image)) / (2 * float(image[largest]))
    return images.reshape(on_air.shape), factors


def _energy(image: NDArray[np.float32]) -> float:
    """The sum of all squares. A dot product would take all cores, whatever the engine was given."""
    return float(np.add.reduce(np.multiply(image, image), dtype=np.float64))


def unmix(received: NDArray[np.float32], keys: MixKeys, n: int) -> NDArray[np.float32]:
    """The inverse: float32 [batch, padded n], as received, to float32 [batch, n]; the pads are dropped.

    The scale stays that of the whole packet, which differs from that of the features as the power of the pads does from 1/2:
    by some 0.0005 at 32,400 reals and 0.003 at 1,984.
    """
    batch = len(received)
    a, b, c = factors(n)
    _check(keys, batch, n)
    left_a, left_b, right = inverse_matrices(n)
    x = received

    def signed(k: int) -> NDArray[np.float32]:
        out: NDArray[np.float32] = np.multiply(x.reshape(batch, -1), keys.signs[:, k]).reshape(batch, a * b, c)
        return out

    def columns_mixed(y: NDArray[np.float32]) -> NDArray[np.float32]:
        y = left_b @ y.reshape(batch, a, b, c)
        return left_a @ y.reshape(batch, a, b * c)

    x = signed(4) @ right
    x = columns_mixed(signed(3))
    x = signed(2) @ right.T.take(keys.columns, axis=0).swapaxes(1, 2)
    x = signed(1).reshape(-1, c).take(keys.inverse_index, axis=0)
    x = columns_mixed(x)
    x = signed(0) @ (right * keys.column_signs.swapaxes(1, 2))
    return np.ascontiguousarray(x.reshape(batch, -1)[:, :n])


def sign_inputs(keys: MixKeys, n: int) -> list[NDArray[np.int8]]:
    """The signs as the graphs of images of n reals take them: LAYERS arrays int8 [batch, a*b, c]."""
    a, b, c = factors(n)
    batch = len(keys.signs)
    if batch == 1:
        return list(keys.signs.reshape(LAYERS, 1, a * b, c))
    return list(np.ascontiguousarray(keys.signs.swapaxes(0, 1)).reshape(LAYERS, batch, a * b, c))


def transmitter_inputs(keys: MixKeys, n: int) -> list[NDArray[np.float32] | NDArray[np.int8] | NDArray[np.int32]]:
    """What the graph ``transmitter-mix`` takes after the image, in its order: pads, column signs, signs, rows, columns."""
    return [keys.pads, keys.column_signs, *sign_inputs(keys, n), keys.index, keys.columns]


def receiver_inputs(keys: MixKeys, n: int) -> list[NDArray[np.int8] | NDArray[np.int32]]:
    """What the graph ``receiver-mix`` takes after the symbols, in its order: column signs, signs, inverse rows, columns."""
    return [keys.column_signs, *sign_inputs(keys, n), keys.inverse_index, keys.columns]


def structure(symbols: NDArray[np.float32], channels: int) -> NDArray[np.float64]:
    """How far un-mixed symbols [batch, n] are from white noise, which they are under another key, counter or model; [batch].

    The channels of an encoder differ in mean and power, white noise does not. The statistic is chi square for both, over all
    channels, in its own standard deviations: 0 on average for wrong keys, and above MIN_STRUCTURE less than once in a million
    packets (from 4 channels on). It costs no channel uses. It is no authentication: noise that was added goes unnoticed.
    """
    y = symbols.reshape(len(symbols), -1, channels)  # [batch, places, channels]
    places, degrees = y.shape[1], 2 * channels - 1
    power = np.einsum("bpc,bpc->bc", y, y).astype(np.float64) / places
    mean = np.einsum("bpc->bc", y).astype(np.float64) / places
    total = power.mean(1, keepdims=True)
    chi_square = places * (np.square(power / total - 1) / 2 + np.square(mean) / total).sum(1)
    return (chi_square - degrees) / math.sqrt(2 * degrees)


def hadamard(m: int) -> NDArray[np.float64]:
    """A Hadamard matrix of order m: entries -1 and 1, orthogonal rows.

    Raises ValueError where Paley's constructions over primes, and doubling, know none.
    """
    how = _construction(m)
    if how == "one":
        return np.ones((1, 1))
    if how == "double":
        half = hadamard(m // 2)
        return np.block([[half, half], [half, -half]])
    if how is None:
        raise ValueError(f"no Hadamard matrix of order {m} is known here; see factors() for the orders in use")
    q = m - 1 if how == "paley 1" else m // 2 - 1
    residue = -np.ones(q)
    residue[np.arange(q) ** 2 % q] = 1
    residue[0] = 0
    core = np.ones((q + 1, q + 1))
    core[0, 0] = 0
    core[1:, 1:] = residue[(np.arange(q)[:, None] - np.arange(q)) % q]
    one = np.eye(q + 1)
    if how == "paley 1":
        core[1:, 0] = -1
        return core + one
    return np.block([[core + one, core - one], [core - one, -core - one]])


@lru_cache(maxsize=1024)
def _construction(m: int) -> str | None:
    """How ``hadamard`` makes order m: by doubling where it can, so that powers of two are Walsh-Hadamard transforms."""
    if m == 1:
        return "one"
    if m == 2 or (m % 4 == 0 and _construction(m // 2)):
        return "double"
    if m % 4 == 0 and _is_prime(m - 1):
        return "paley 1"
    if m % 4 == 0 and m // 2 % 4 == 2 and _is_prime(m // 2 - 1):
        return "paley 2"
    return None


def _is_prime(q: int) -> bool:
    return q > 2 and all(q % d for d in range(2, math.isqrt(q) + 1))


@dataclass(frozen=True)
class _Plan:
    """What the keys of images of n reals are made of.

    A row's number has two digits, p and q the numbers of their values: p*q rows, p >= q, as near to each other as can be.
    """

    size: int  # reals on air
    pads: int
    packed: int  # bytes of signs, at the beginning of the stream
    columns: int
    first: NDArray[np.int64]  # values of the first digit, [p, 1]
    second: NDArray[np.int64]  # of the second, [q]
    zeros: bytes  # as many as the stream has bytes
    places: NDArray[np.int64]  # of each shift of the shuffle, turn by turn: the word that it is drawn from
    values: NDArray[np.int64]  # and the number of its values
    of_first: NDArray[np.int32]  # what the digits add to the row's number, again and again
    of_second: NDArray[np.int32]


@lru_cache
def _plan(n: int) -> _Plan:
    a, b, c = factors(n)
    size, rows = a * b * c, a * b
    pads, packed = size - n, LAYERS * size // 8 + _WIDEST // 8
    q = max(m for m in range(1, math.isqrt(rows) + 1) if rows % m == 0)
    p = rows // q
    words = 4 * pads + ROUNDS // 2 * (p + q) + c
    first, second = np.arange(p, dtype=np.int64), np.arange(q, dtype=np.int64)
    # the tables repeat, so that digits may go on and on and no remainder is taken before the end
    once = np.concatenate([np.tile(first, _TURNS), np.tile(p + second, _TURNS)])
    return _Plan(
        size=size,
        pads=pads,
        packed=packed,
        columns=c,
        first=first[:, None],
        second=second,
        zeros=bytes(packed + 4 * words),
        places=once + np.arange(0, ROUNDS // 2 * (p + q), p + q)[:, None],
        values=np.repeat(np.array([q, p], np.int64), (_TURNS * p, _TURNS * q)),
        of_first=np.tile(first * q, _TURNS).astype(np.int32),
        of_second=np.tile(second, _TURNS).astype(np.int32),
    )


def _pads(words: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """Pads [batch, count] from four words for each, [batch, 4 * count]."""
    total = words[:, :count] + words[:, count : 2 * count]
    total += words[:, 2 * count : 3 * count]
    total += words[:, 3 * count :]
    total += _MINUS_MEAN
    pads = total.astype(np.float32)
    pads *= _PAD_UNIT
    return pads


def _shuffled_rows(words: NDArray[np.int64], plan: _Plan) -> NDArray[np.int32]:
    """A keyed order [1, p*q] of the rows from ROUNDS/2 * (p + q) words: a Feistel network on the digits (row // q, row % q).

    Alternately the second digit is moved on by a random function of the first and the first by one of the second, both around
    the clock. No word is thrown away: some shifts are likelier than others, by a factor of 1 + 2^-23 at most.
    """
    p = len(plan.first)
    shifts = words.take(plan.places)
    shifts *= plan.values
    shifts >>= _HALF
    of_high, of_low = shifts[:, : _TURNS * p], shifts[:, _TURNS * p :]
    low = of_high[0, :p, None] + plan.second  # [p, q]
    high = of_low[0].take(low)
    high += plan.first
    for turn in range(1, ROUNDS // 2):
        low += of_high[turn].take(high)
        high += of_low[turn].take(low)
    order = plan.of_first.take(high)
    order += plan.of_second.take(low)
    return order.reshape(1, -1)


@lru_cache(maxsize=4)
def _cipher(key: bytes, salt: bytes) -> ChaCha20Poly1305:
    """That of a session; kept, because packets of one session follow each other."""
    return ChaCha20Poly1305(derive(key, LABEL, salt))


def _absolute(rows: NDArray[np.int32]) -> NDArray[np.int32]:
    batch, count = rows.shape
    return rows if batch == 1 else rows + np.arange(0, batch * count, count, dtype=np.int32)[:, None]


def _check(keys: MixKeys, batch: int, n: int) -> None:
    size = padded_size(n)
    if keys.signs.shape != (batch, LAYERS, size) or keys.pads.shape != (batch, size - n):
        raise ValueError(
            f"keys for {len(keys.signs)} images of {keys.signs.shape[2] - keys.pads.shape[1]} reals do not fit {batch} of {n}; "
            f"derive them for these images and n = {n}"
        )
