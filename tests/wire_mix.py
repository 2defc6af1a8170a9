"""For wire_client.py, from the same page: keys, key streams and the mix."""

import math
import struct
from functools import lru_cache

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def hkdf(secret, info, salt=None):
    return HKDF(SHA256(), 32, salt, info).derive(secret)


def key_stream(key, nonce, block, size):
    return Cipher(ChaCha20(key, struct.pack("<I", block) + nonce), None).encryptor().update(bytes(size))


@lru_cache
def rule(m):
    def is_prime(q):
        return q > 2 and all(q % d for d in range(2, math.isqrt(q) + 1))

    if m in (1, 2):
        return "given"
    if m % 4:
        return None
    if rule(m // 2):
        return "half"
    if is_prime(m - 1):
        return "one"
    return "two" if m // 2 % 4 == 2 and is_prime(m // 2 - 1) else None


@lru_cache
def hadamard(m):
    how = rule(m)
    if m == 1:
        return np.ones((1, 1))
    if m == 2 or how == "half":
        return np.kron([[1, 1], [1, -1]], hadamard(m // 2))
    q = m - 1 if how == "one" else m // 2 - 1
    squares = {i * i % q for i in range(1, q)}
    core = np.array([[0 if i == j else 1 if (i - j) % q in squares else -1 for j in range(q)] for i in range(q)])
    out = np.ones((q + 1, q + 1))
    if how == "one":
        out[1:, 0] = -1
        out[1:, 1:] = core + np.eye(q)
        return out
    out[0, 0] = 0
    out[1:, 1:] = core
    one = np.eye(q + 1)
    return np.block([[out + one, out - one], [out - one, -out - one]])


@lru_cache
def mix_sizes(n):
    orders = [m for m in range(4, 513) if rule(m)]
    least = max(2048, n + 64)
    found = [
        (a * b * c, a, b, c)
        for c in orders
        for b in orders
        for a in orders
        if 8 <= c <= 64 and b <= a and least <= a * b * c <= 2 * least
    ]
    limit = max(least + least // 100, min(found)[0])

    def cost(triple):
        size, a, b, c = triple
        return size * (2 * (a + b) + 32) + 3 * size * (-(-c // 16) * 16), triple

    return min((triple for triple in found if triple[0] <= limit), key=cost)[1:]


def mix_keys(key, session, counter, digest, n):
    a, b, c = mix_sizes(n)
    size, m, rows = a * b * c, a * b * c - n, a * b
    q = max(q for q in range(1, math.isqrt(rows) + 1) if rows % q == 0)
    p = rows // q
    words = 4 * m + 3 * (p + q) + c
    stream_key = hkdf(key, b"semseal/v2/mix", session + digest)
    stream = key_stream(stream_key, struct.pack("<Q", counter) + bytes(4), 1, 5 * size // 8 + 8 + 4 * words)
    bits = np.unpackbits(np.frombuffer(stream, np.uint8, 5 * size // 8 + 8), bitorder="little").astype(np.int8)
    signs = 1 - 2 * bits
    w = np.frombuffer(stream, "<u4", words, 5 * size // 8 + 8)
    total = w[: 4 * m].reshape(4, m).astype(np.int64).sum(0) - 2 * (2**32 - 1)
    pads = total.astype(np.float32) * np.float32(float.fromhex("0x1.3988e2p-32"))
    turns, order = w[4 * m : 4 * m + 3 * (p + q)].astype(object).reshape(3, p + q), []
    for i in range(rows):
        x, y = divmod(i, q)
        for turn in turns:
            y = (y + (turn[x] * q >> 32)) % q
            x = (x + (turn[p + y] * p >> 32)) % p
        order.append(x * q + y)
    columns = np.argsort(w[-c:], kind="stable")
    return signs[: 5 * size].reshape(5, rows, c), signs[5 * size : 5 * size + c], pads, np.array(order), columns


def columns_mixed(x, h_a, h_b, c):
    out = np.einsum("ai,bj,ijc->abc", h_a, h_b, x.reshape(len(h_a), len(h_b), c), optimize=True)
    return out.reshape(-1, c)


def mixed(x, keys):
    """Steps 1 to 9 of n reals of power 1/2: what goes on air, float32 [N], and the factor from what was given to it."""
    signs, column_signs, pads, order, columns = keys
    a, b, c = mix_sizes(len(x))
    h_a, h_b, h_c = (hadamard(m) / math.sqrt(m) for m in (a, b, c))
    x = np.concatenate([x, pads]).astype(np.float32)
    first = np.float32(math.sqrt(len(x) / 2 / float(np.square(x, dtype=np.float64).sum())))
    x = (x * first).reshape(a * b, c) * column_signs
    x = columns_mixed((x @ h_c) * signs[0], h_a, h_b, c)
    x = x[order] * signs[1]
    moved = np.empty_like(x)
    moved[:, columns] = x
    x = columns_mixed((moved @ h_c) * signs[2], h_a, h_b, c)
    x = (((x * signs[3]) @ h_c) * signs[4]).astype(np.float32).ravel()
    last = math.sqrt(len(x) / 2 / float(np.square(x, dtype=np.float64).sum()))
    x = (x.astype(np.float64) * last).astype(np.float32)
    if len(x) < 16384 or abs(math.log2(last) - round(math.log2(last))) < 4e-6:
        largest = np.abs(x).argmax()
        left = len(x) / 2 - float(np.square(x, dtype=np.float64).sum())
        x[largest] += left / (2 * float(x[largest]))
    return x, float(first) * last


def unmixed(x, keys, n):
    signs, column_signs, _, order, columns = keys
    a, b, c = mix_sizes(n)
    h_a, h_b, h_c = (hadamard(m).T / math.sqrt(m) for m in (a, b, c))
    x = (x.reshape(a * b, c) * signs[4]) @ h_c
    x = columns_mixed(x * signs[3], h_a, h_b, c)
    x = ((x * signs[2]) @ h_c)[:, columns] * signs[1]
    back = np.empty_like(x)
    back[order] = x
    x = columns_mixed(back, h_a, h_b, c) * signs[0]
    return ((x @ h_c) * column_signs).ravel()[:n].astype(np.float32)


def looks_like_features(y, channels):
    if channels < 4 or y.size < 2048:
        return True
    y = y.reshape(-1, channels).astype(np.float64)
    power, mean, d = (y * y).mean(0), y.mean(0), 2 * channels - 1
    t = power.mean()
    return len(y) * ((power / t - 1) ** 2 / 2 + mean**2 / t).sum() > d + 10 * math.sqrt(2 * d)
