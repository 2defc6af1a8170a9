"""A second implementation of mix, in plain Python, written from docs/wire.md; it shares nothing with the package."""

import hashlib
import hmac
import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from semseal.runtime.defense.mix import derive_keys, factors, hadamard, mix, unmix
from semseal.runtime.errors import KeyFileError

VECTORS = json.loads((Path(__file__).parent / "vectors" / "mix-v2.json").read_text())
ON_AIR = 2e-5  # of symbols of power 1: sums are added in another order, and the largest value takes what rounding left


def is_prime(q):
    return q > 2 and all(q % d for d in range(2, math.isqrt(q) + 1))


def rule(m):
    if m in (1, 2):
        return m
    if m % 4:
        return None
    if rule(m // 2):
        return "half"
    if is_prime(m - 1):
        return "m - 1"
    return "m/2 - 1" if m // 2 % 4 == 2 and is_prime(m // 2 - 1) else None


def character(q):
    squares = {i * i % q for i in range(1, q)}
    return lambda d: 0 if d % q == 0 else 1 if d % q in squares else -1


def matrix(m):
    how = rule(m)
    if m == 1:
        return [[1]]
    if m == 2 or how == "half":
        half = matrix(m // 2)
        return [row + row for row in half] + [row + [-x for x in row] for row in half]
    if how == "m - 1":
        chi = character(m - 1)
        return [[1] * m] + [[-1] + [chi(i - j) or 1 for j in range(m - 1)] for i in range(m - 1)]
    chi, order = character(m // 2 - 1), m // 2
    conference = [[0] + [1] * (order - 1)] + [[1] + [chi(i - j) for j in range(order - 1)] for i in range(order - 1)]

    def plus(sign, one):
        return [[sign * x + one * (i == j) for j, x in enumerate(row)] for i, row in enumerate(conference)]

    top = [left + right for left, right in zip(plus(1, 1), plus(1, -1), strict=True)]
    return top + [left + right for left, right in zip(plus(1, -1), plus(-1, -1), strict=True)]


ORDERS = [m for m in range(4, 513) if rule(m)]


def sizes(n):
    least = max(2048, n + 64)
    found = []
    for c in (m for m in ORDERS if 8 <= m <= 64):
        for b in ORDERS:
            for a in (m for m in ORDERS if m >= b):
                if a * b * c >= least:
                    found.append((a * b * c, a, b, c))
                    if a * b * c > least + least // 100:
                        break
    limit = max(least + least // 100, min(found)[0])

    def cost(found):
        size, a, b, c = found
        return size * (2 * (a + b) + 32) + 3 * size * (-(-c // 16) * 16), *found

    return min((triple for triple in found if triple[0] <= limit), key=cost)[1:]


def session_key(key, session, digest):
    extracted = hmac.digest(session + digest, key, "sha256")
    return hmac.digest(extracted, b"semseal/v2/mix" + b"\1", "sha256")


def chacha20(key, nonce, block, size):
    out = b""
    while len(out) < size:
        start = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key), block, *struct.unpack("<3I", nonce)]
        s = list(start)
        for _ in range(10):
            for quad in ("048c", "159d", "26ae", "37bf", "05af", "16bc", "278d", "349e"):
                a, b, c, d = (int(digit, 16) for digit in quad)
                for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                    s[x] = (s[x] + s[y]) & 0xFFFFFFFF
                    s[z] ^= s[x]
                    s[z] = (s[z] << turn | s[z] >> 32 - turn) & 0xFFFFFFFF
        out += struct.pack("<16I", *((x + y) & 0xFFFFFFFF for x, y in zip(s, start, strict=True)))
        block += 1
    return out[:size]


def float32(x):
    """The nearest float32, ties to even; products of two float32 are exact before it."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def keys(key, session, counter, digest, n):
    """signs [5][N], column signs [c], pads, rows, columns."""
    a, b, c = sizes(n)
    size, p = a * b * c, a * b * c - n
    layer = size // 8
    second = max(q for q in range(1, a * b) if a * b % q == 0 and q * q <= a * b)
    first = a * b // second
    words = 4 * p + 3 * (first + second) + c
    nonce = counter.to_bytes(8, "little") + bytes(4)
    stream = chacha20(session_key(key, session, digest), nonce, 1, 5 * layer + 8 + 4 * words)

    def sign(start, i):
        return -1 if stream[start + i // 8] >> i % 8 & 1 else 1

    signs = [[sign(k * layer, i) for i in range(size)] for k in range(5)]
    column_signs = [sign(5 * layer, i) for i in range(c)]
    w = struct.unpack(f"<{words}I", stream[5 * layer + 8 :])
    unit = float.fromhex("0x1.3988e2p-32")
    pads = [float32(float32(float(sum(w[i : 4 * p : p]) - 2 * (2**32 - 1))) * unit) for i in range(p)]
    turns = w[4 * p : -c]
    rows = []
    for i in range(a * b):
        x, y = divmod(i, second)
        for t in range(3):
            here = t * (first + second)
            f, g = turns[here : here + first], turns[here + first : here + first + second]
            y = (y + (f[x] * second >> 32)) % second
            x = (x + (g[y] * first >> 32)) % first
        rows.append(x * second + y)
    v = w[-c:]
    return signs, column_signs, pads, rows, sorted(range(c), key=lambda i: v[i])


def mixed(values, drawn, n):
    """Steps 1 to 9, in double precision."""
    a, b, c = sizes(n)
    signs, column_signs, pads, rows, columns = drawn
    H = {m: matrix(m) for m in (a, b, c)}
    x = [float(value) for value in [*values, *pads]]

    def along(x, h, count, stride):
        """h times every vector of ``count`` values at this stride."""
        out = list(x)
        for start in range(len(x)):
            if start // stride % count == 0:
                vector = x[start : start + count * stride : stride]
                for i in range(count):
                    out[start + i * stride] = sum(h_ij * value for h_ij, value in zip(h[i], vector, strict=True))
        return out

    def times(x, layer):
        return [value * sign for value, sign in zip(x, layer, strict=True)]

    transposed = [list(column) for column in zip(*H[c], strict=True)]  # rows times H: x H

    def rows_mixed(x):
        return along(x, transposed, c, 1)

    def columns_mixed(x):
        return along(along(x, H[a], a, b * c), H[b], b, c)

    x = rows_mixed([value * column_signs[i % c] for i, value in enumerate(x)])
    x = columns_mixed(times(x, signs[0]))
    x = times([x[row * c + k] for row in rows for k in range(c)], signs[1])
    moved = list(x)
    for i, value in enumerate(x):
        moved[i // c * c + columns[i % c]] = value
    x = rows_mixed(moved)
    x = columns_mixed(times(x, signs[2]))
    x = times(rows_mixed(times(x, signs[3])), signs[4])
    scale = math.sqrt(len(x) / 2 / math.fsum(value * value for value in x))
    return [float32(value * scale) for value in x]


def sha256(values, code):
    return hashlib.sha256(struct.pack(f"<{len(values)}{code}", *values)).hexdigest()


def features(n):
    """Values of power 1/2 that need no generator: both implementations and the vectors use them."""
    values = [float32(((7919 * i) % 1009 - 504) / 504) for i in range(n)]
    scale = math.sqrt(n / 2 / math.fsum(value * value for value in values))
    return [float32(value * scale) for value in values]


def case(vector):
    session, digest = bytes.fromhex(vector["session"]), bytes.fromhex(vector["digest"])
    return bytes.fromhex(vector["key"]), session, vector["counter"], digest, vector["n"]


VALID = [pytest.param(vector, id=vector["name"]) for vector in VECTORS if vector["valid"]]
INVALID = [pytest.param(vector, id=vector["name"]) for vector in VECTORS if not vector["valid"]]


@pytest.mark.parametrize("vector", VALID)
def test_keys_agree_bit_for_bit(vector):
    key, session, counter, digest, n = case(vector)
    signs, column_signs, pads, rows, columns = keys(key, session, counter, digest, n)
    ours = derive_keys(key, session, [counter], digest, n)
    assert np.array_equal(ours.signs[0], signs)
    assert np.array_equal(ours.column_signs[0, :, 0], column_signs)
    assert ours.pads.tobytes() == struct.pack(f"<{len(pads)}f", *pads)
    assert ours.rows[0].tolist() == rows
    assert ours.columns[0].tolist() == columns
    # and both are what the file says
    assert list(sizes(n)) == list(factors(n)) == vector["factors"]
    assert session_key(key, session, digest).hex() == vector["session_key"]
    assert sha256([sign for layer in signs for sign in layer], "b") == vector["signs_sha256"]
    assert column_signs == vector["column_signs"]
    assert [pad.hex() for pad in pads[:4]] == vector["first_pads"]
    assert sha256(pads, "f") == vector["pads_sha256"]
    assert rows[:8] == vector["first_rows"]
    assert sha256(rows, "i") == vector["rows_sha256"]
    assert columns == vector["columns"]


@pytest.mark.parametrize("vector", [vector for vector in VALID if vector.values[0]["n"] < 4000])
def test_symbols_agree_up_to_rounding(vector):
    key, session, counter, digest, n = case(vector)
    values = [0.0] * n if vector["features"] == "zero" else features(n)
    expected = mixed(values, keys(key, session, counter, digest, n), n)
    drawn = derive_keys(key, session, [counter], digest, n)
    on_air = mix(np.array([values], np.float32), drawn)
    assert np.abs(on_air[0] - expected).max() < ON_AIR
    assert np.abs(np.array(vector["first_on_air"]) - expected[:8]).max() < 1e-7
    # Bob, too, up to the scale
    back = unmix(np.array([expected], np.float32), drawn, n)[0]
    louder = 1.0 if vector["features"] == "zero" else float(back @ back / (n / 2)) ** 0.5
    assert np.abs(back / louder - values).max() < 2 * ON_AIR


@pytest.mark.parametrize("vector", INVALID)
def test_what_is_refused(vector):
    with pytest.raises((ValueError, KeyFileError), match=vector["error"]):
        derive_keys(*[[x] if i == 2 else x for i, x in enumerate(case(vector))])


@pytest.mark.parametrize("n", [1, 48, 1984, 1985, 2819, 5000, 32400, 40001])
def test_sizes_agree(n):
    assert sizes(n) == factors(n)


@pytest.mark.parametrize("m", [m for m in ORDERS if m <= 256 or m in (276, 508)])
def test_matrices_agree(m):
    ours = matrix(m)
    assert np.array_equal(hadamard(m), ours)
    assert np.array_equal(np.array(ours) @ np.array(ours).T, m * np.eye(m))


def test_streams_are_those_of_the_standards():
    # RFC 8439, 2.4.2: the key stream begins with block 1; RFC 5869, A.1 in its first 32 bytes
    key, nonce = bytes(range(32)), bytes.fromhex("000000000000004a00000000")
    assert chacha20(key, nonce, 1, 16).hex() == "224f51f3401bd9e12fde276fb8631ded"
    extracted = hmac.digest(bytes(range(13)), b"\x0b" * 22, "sha256")
    assert extracted.hex() == "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"
