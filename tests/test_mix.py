import hmac
import math
import struct

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from hypothesis import given, settings
from hypothesis import strategies as st
from semseal.runtime.defense import mix as mixing
from semseal.runtime.defense.keys import derive
from semseal.runtime.defense.mix import MixKeys, derive_keys, factors, mix, padded_size, run_length, structure, unmix
from semseal.runtime.errors import KeyFileError

KEY, SESSION, DIGEST = bytes(range(32)), b"s" * 16, b"d" * 32
PACKAGED = 32400


def keys_for(n, counters=(0,), key=KEY, session=SESSION, digest=DIGEST):
    return derive_keys(key, session, counters, digest, n)


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# a second implementation, slow and from the documents alone: RFC 5869, RFC 8439, Paley's matrices, a dense map


def naive_hkdf(key, salt, label):
    return hmac.digest(hmac.digest(salt, key, "sha256"), label + b"\1", "sha256")


def naive_chacha20(key, size):
    out = b""
    while len(out) < size:
        start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *struct.unpack("<8I", key), len(out) // 64, 0, 0, 0]
        s = list(start)
        for _ in range(10):
            for quad in ("048c", "159d", "26ae", "37bf", "05af", "16bc", "278d", "349e"):
                a, b, c, d = (int(digit, 16) for digit in quad)
                for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                    s[x] = (s[x] + s[y]) % 2**32
                    s[z] ^= s[x]
                    s[z] = (s[z] << turn | s[z] >> 32 - turn) % 2**32
        out += struct.pack("<16I", *((x + y) % 2**32 for x, y in zip(s, start, strict=True)))
    return out[:size]


def paley(q):
    """Over the prime q, order q + 1; residues by Euler's criterion."""

    def chi(x):
        return 0 if x % q == 0 else 1 if pow(x % q, (q - 1) // 2, q) == 1 else -1

    below = -1 if q % 4 == 3 else 1
    rows = [[0] + [1] * q] + [[below] + [chi(i - j) for j in range(q)] for i in range(q)]
    return (np.array(rows) + np.eye(q + 1)) / math.sqrt(q + 1) if q % 4 == 3 else np.array(rows) / math.sqrt(q)


def naive_map(n, a, b, c, key, salt):
    """The dense matrix of the mix, float64 [a*b*c, a*b*c], for H_a, H_b and H_c given."""
    layer, run = -(-n // 8), len(c) // 4
    stream = naive_chacha20(naive_hkdf(key, salt, b"semseal/v1/mix"), 5 * layer + 4 * (n // run))
    signs = [[1 - 2 * (stream[k * layer + i // 8] >> i % 8 & 1) for i in range(n)] for k in range(5)]
    words = struct.unpack(f"<{n // run}I", stream[5 * layer :])
    assert len(set(words)) == len(words)
    order = sorted(range(n // run), key=lambda i: words[i])
    shuffle = np.zeros((n, n))
    for i, source in enumerate(order):
        for j in range(run):
            shuffle[i * run + j, source * run + j] = 1
    turned = c.copy()
    for j in range(0, len(c), 2):
        turned[:, j] = math.cos(0.03) * c[:, j] - math.sin(0.03) * c[:, j + 1]
        turned[:, j + 1] = math.sin(0.03) * c[:, j] + math.cos(0.03) * c[:, j + 1]
    columns = np.kron(np.kron(a, b), np.eye(len(c)))
    rows = np.kron(np.eye(len(a) * len(b)), turned.T)
    D = [np.diag(layer).astype(float) for layer in signs]
    return D[4] @ rows @ D[3] @ columns @ D[2] @ shuffle @ rows @ D[1] @ columns @ D[0]


@pytest.mark.parametrize(
    ("n", "a", "b", "c"),
    [
        (720, paley(29), np.ones((1, 1)), paley(23)),  # conference x 1 x Hadamard
        (96, paley(3), np.array([[1, 1], [1, -1]]) / math.sqrt(2), paley(11)),
    ],
)
def test_it_is_the_map_that_is_documented(n, a, b, c):
    assert factors(n) == (len(a), len(b), len(c))
    dense = naive_map(n, a, b, c, KEY, SESSION + (7).to_bytes(8, "little") + DIGEST)
    y = gaussian(1, n)
    assert np.allclose(mix(y, keys_for(n, [7])), y @ dense.T, atol=1e-5)
    assert np.allclose(unmix(y, keys_for(n, [7]), n), y @ dense, atol=1e-5)


def test_equal_words_are_drawn_again():
    # with 3600 words of 32 bits two are equal about once in 660 packets
    runs, before = PACKAGED // run_length(PACKAGED), 5 * PACKAGED // 8
    for counter in range(20_000):
        salt = SESSION + counter.to_bytes(8, "little") + DIGEST
        stream = Cipher(ChaCha20(derive(KEY, b"semseal/v1/mix", salt), bytes(16)), None).encryptor()
        words = np.frombuffer(stream.update(bytes(before + 4 * runs))[before:], "<u4")
        if len(np.unique(words)) < runs:
            break
    again = np.frombuffer(stream.update(bytes(4 * runs)), "<u4")
    order = keys_for(PACKAGED, [counter]).order[0]
    assert (np.diff(again[order].astype(np.int64)) > 0).all()
    assert np.array_equal(np.sort(order), np.arange(runs))


@pytest.mark.parametrize("m", [1, 2, 4, 6, 8, 12, 14, 18, 20, 28, 30, 36, 40, 52, 60, 64, 68, 92, 148, 256])
def test_flat_matrices_are_orthogonal_and_flat(m):
    if m in (52, 92):  # known to exist, not made by these constructions
        with pytest.raises(ValueError, match=f"order {m}"):
            mixing.flat(m)
        return
    H = mixing.flat(m)
    assert np.allclose(H @ H.T, np.eye(m), atol=1e-12)
    flat_part = H if m == 1 or m == 2 or m % 4 == 0 else H[~np.eye(m, dtype=bool)]
    assert np.ptp(np.abs(flat_part)) < 1e-12
    assert m % 4 == 0 or m < 4 or not H.diagonal().any()


def test_the_sizes_in_use_take_no_padding():
    assert padded_size(PACKAGED) == PACKAGED
    for side in (32, 64, 96, 128, 192, 224, 256, 512):
        for channels in (4, 8, 16, 32):
            n = (side // 4) ** 2 * channels
            assert padded_size(n) == n


@given(st.integers(1, 40_000))
def test_padding_is_small_and_even(n):
    size = padded_size(n)
    assert size >= n
    assert size % 2 == 0
    assert size % run_length(n) == 0
    assert n < 1000 or size <= 1.04 * n


@pytest.mark.parametrize("n", [0, -1, mixing.LARGEST + 1])
def test_sizes_out_of_range_are_refused(n):
    with pytest.raises(ValueError, match=f"1 to {mixing.LARGEST} reals, got {n}"):
        factors(n)


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3), st.integers(0, 2**64 - 4))
def test_any_size_keeps_power_and_comes_back(n, batch, counter):
    y = gaussian(batch, n, seed=n)
    keys = keys_for(n, range(counter, counter + batch))
    x = mix(y, keys)
    assert x.shape == (batch, padded_size(n))
    assert x.dtype == np.float32
    assert np.allclose(np.square(x).mean(1), np.square(y).mean(1), rtol=1e-5)
    assert np.abs(unmix(x, keys, n) - y).max() < 2e-5


def test_a_batch_is_its_images_one_by_one():
    y = gaussian(3, PACKAGED)
    together = keys_for(PACKAGED, [5, 9, 6])
    for i, counter in enumerate([5, 9, 6]):
        alone = keys_for(PACKAGED, [counter])
        assert np.array_equal(together.signs[:, i], alone.signs[:, 0])
        assert np.allclose(mix(y, together)[i], mix(y[i : i + 1], alone)[0], atol=1e-5)
    assert np.allclose(unmix(mix(y, together), together, PACKAGED), y, atol=2e-5)


def test_norms_and_inner_products_stay():
    # one packet key for both, as the batch of one image is mapped twice
    keys, (u, v) = keys_for(PACKAGED), gaussian(2, PACKAGED)
    mu, mv = mix(u[None], keys)[0], mix(v[None], keys)[0]
    assert abs(np.dot(mu, mu) / np.dot(u, u) - 1) < 1e-5
    assert abs(np.dot(mu, mv) - np.dot(u, v)) < 1e-4 * PACKAGED**0.5


def test_white_noise_stays_white():
    n = 768
    keys = keys_for(n)
    noise = gaussian(20_000, n)
    signs = np.broadcast_to(keys.signs, (5, len(noise), n))
    shared = MixKeys(signs, np.broadcast_to(keys.order, (len(noise), n // run_length(n))))
    heard = unmix(noise, shared, n).astype(np.float64)
    covariance = heard.T @ heard / len(heard)
    off = covariance[~np.eye(n, dtype=bool)]
    assert abs(covariance.diagonal() - 1).max() < 6 * math.sqrt(2 / len(noise))
    assert abs(off).max() < 6 / math.sqrt(len(noise))
    assert abs(off.var() * len(noise) - 1) < 0.02


def test_signs_are_fair_and_independent():
    signs = keys_for(PACKAGED, range(8)).signs.reshape(40, -1)  # 40 vectors of 32400
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.sum()) < 5 * math.sqrt(signs.size)
    inner = signs @ signs.T / math.sqrt(PACKAGED)
    chi_square = np.square(inner[np.triu_indices(40, 1)]).sum()  # 780 degrees
    assert abs(chi_square - 780) < 5 * math.sqrt(2 * 780)
    neighbours = (signs[:, 1:] * signs[:, :-1]).sum()
    assert abs(neighbours) < 5 * math.sqrt(signs.size)


def test_orders_are_uniform():
    n = 8  # one row of 8, in 4 runs: 24 orders
    assert (factors(n), run_length(n)) == ((1, 1, 8), 2)
    orders = keys_for(n, range(24_000)).order
    counts = np.bincount(orders @ [64, 16, 4, 1], minlength=256)
    seen = counts[counts > 0]
    assert len(seen) == 24
    assert (np.square(seen - 1000.0) / 1000).sum() < 49.7  # chi square, 23 degrees, p = 0.001


def test_orders_of_the_packaged_size_are_uniform_at_every_place():
    runs = PACKAGED // run_length(PACKAGED)
    orders = keys_for(PACKAGED, range(100)).order
    assert (np.sort(orders, axis=1) == np.arange(runs)).all()
    # 10 x 10 blocks of places and values
    counts = np.zeros((10, 10))
    np.add.at(counts, (np.arange(runs) * 10 // runs, orders * 10 // runs), 1)
    expected = orders.size / 100
    assert (np.square(counts - expected) / expected).sum() < 126.1  # chi square, 81 degrees, p = 0.001


@pytest.mark.parametrize(
    "other",
    [{"counters": [1]}, {"key": bytes(32)}, {"session": b"t" * 16}, {"digest": b"e" * 32}],
    ids=["counter", "key", "session", "model"],
)
def test_other_keys_are_an_unrelated_map(other):
    y = gaussian(1, PACKAGED)
    right, wrong = keys_for(PACKAGED), keys_for(PACKAGED, **{"counters": [0], **other})
    x = mix(y, right)
    for a, b in ((x, mix(y, wrong)), (unmix(x, wrong, PACKAGED), y)):
        assert abs(np.corrcoef(a[0], b[0])[0, 1]) < 5 / math.sqrt(PACKAGED)


def test_a_vector_with_one_value_comes_out_as_noise():
    # the simplest of the chosen inputs: after one round it still has one magnitude
    for place in (0, 17, PACKAGED - 1):
        y = np.zeros((1, PACKAGED), np.float32)
        y[0, place] = math.sqrt(PACKAGED)
        x = mix(y, keys_for(PACKAGED, [place]))[0]
        assert abs(np.mean(x**4) - 3) < 5 * math.sqrt(96 / PACKAGED)
        for shape in ((45, 720), (180, 180), (900, 36)):
            for axis in (0, 1):
                power = np.square(x.reshape(shape)).mean(axis)
                spread = power.var() * shape[axis] / 2  # 1 for white noise
                assert abs(spread - 1) < 5 * math.sqrt(2 / len(power))


def test_structure_tells_the_right_keys_from_wrong_ones_through_noise():
    rng = np.random.default_rng(3)
    power = rng.uniform(0.5, 1.5, 16).astype(np.float32)
    y = gaussian(50, PACKAGED // 16, 16) * np.sqrt(power)
    y = (y / np.sqrt(2 * np.mean(y**2, axis=(1, 2), keepdims=True))).reshape(50, -1)  # mean power 1 per symbol
    keys, others = keys_for(PACKAGED, range(50)), keys_for(PACKAGED, range(50, 100))
    heard = mix(y, keys) + gaussian(50, PACKAGED, seed=1) * math.sqrt(0.5)  # 0 dB
    assert structure(unmix(heard, keys, PACKAGED), 16).min() > mixing.LEAST_STRUCTURE
    wrong = structure(unmix(heard, others, PACKAGED), 16)
    assert wrong.max() < mixing.LEAST_STRUCTURE
    assert abs(wrong.mean()) < 0.7
    assert 0.5 < wrong.std() < 1.5


def test_bad_lengths_and_keys_of_another_size_are_refused():
    with pytest.raises(ValueError, match="session must be 16 bytes and digest 32, got 15 and 32"):
        keys_for(8, session=bytes(15))
    with pytest.raises(ValueError, match="got 16 and 31"):
        keys_for(8, digest=bytes(31))
    with pytest.raises(ValueError, match=r"counter must be in 0\.\.2\^64-1, got -1"):
        keys_for(8, [-1])
    with pytest.raises(ValueError, match=r"got 18446744073709551616"):
        keys_for(8, [2**64])
    with pytest.raises(KeyFileError, match="exactly 32 bytes, got 31"):
        keys_for(8, key=bytes(31))
    with pytest.raises(ValueError, match="keys for 1 images of 8 reals on air do not fit 2 of 8"):
        mix(gaussian(2, 8), keys_for(8))
    with pytest.raises(ValueError, match="derive them for these images and n = 100"):
        unmix(gaussian(1, 112), keys_for(8), 100)


def test_keys_are_not_shown():
    shown = repr(keys_for(64))
    assert shown == "MixKeys()"
