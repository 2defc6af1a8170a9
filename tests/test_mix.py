"""The mix: sizes, keys, the map and back. What packets give away: test_mix_packets.py. A second mix: test_wire_mix.py."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixes import PACKAGED, SMALLEST, gaussian, keys_for, unit
from semseal.runtime.defense import mix as mixing
from semseal.runtime.defense.mix import (
    LAYERS,
    MIN_PADS,
    factors,
    hadamard,
    mix,
    normalize,
    padded_size,
    stack_keys,
    structure,
    unmix,
)
from semseal.runtime.errors import EngineError, KeyFileError


def same_but_for_scale(back, y):
    louder = np.sqrt((back * back).sum(1) / (y * y).sum(1))
    assert np.abs(louder - 1).max() < 0.05
    return np.abs(back / louder[:, None] - y).max()


# sizes


@pytest.mark.parametrize(
    ("n", "size"),
    [(1, 2048), (48, 2048), (1984, 2048), (1985, 2112), (2048, 2112), (8100, 8192), (PACKAGED, 32768), (2**22, 4202496)],
)
def test_sizes_in_use(n, size):
    assert padded_size(n) == size


@settings(deadline=None)
@given(st.integers(1, 2**22))
def test_padding_is_small(n):
    a, b, c = factors(n)
    size = padded_size(n)
    assert size == a * b * c >= max(2048, n + MIN_PADS)
    assert a >= b >= 4
    assert 8 <= c <= 64
    assert n < 2048 or size <= 1.10 * n
    assert n < 10_000 or size <= 1.03 * n
    assert n < 40_000 or size <= 1.015 * n


@pytest.mark.parametrize("n", [0, -1, mixing.MAX_REALS + 1])
def test_sizes_out_of_range_are_refused(n):
    with pytest.raises(ValueError, match=f"1 to {mixing.MAX_REALS} reals, got {n}; send larger ones in parts"):
        factors(n)


@pytest.mark.parametrize("m", [52, 92, 188])
def test_orders_that_are_not_known(m):
    with pytest.raises(ValueError, match=f"order {m} is known"):
        hadamard(m)


@pytest.mark.parametrize("n", [SMALLEST, 2048, 2300, PACKAGED])
def test_matrices_are_flat_and_products_with_them_exact(n):
    for m, matrix, back in zip(factors(n), mixing.matrices(n), mixing.inverse_matrices(n), strict=True):
        assert np.array_equal(matrix.astype(np.float64) @ matrix.T, matrix[0, 0] ** 2 * m * np.eye(m))
        assert np.frexp(np.unique(np.abs(matrix)))[0].tolist() == [0.5]  # one magnitude, a power of two
        assert np.allclose(back @ matrix, matrix[0, 0] * math.sqrt(m) * np.eye(m), atol=1e-6)
        assert 0.7 < matrix[0, 0] * math.sqrt(m) < 1.5
        with pytest.raises(ValueError, match="read-only"):
            matrix[0, 0] = 0


# the map and back


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3), st.integers(0, 2**64 - 4))
def test_any_size_has_unit_power_and_comes_back(n, batch, counter):
    y = unit(gaussian(batch, n, seed=n))
    keys = keys_for(n, range(counter, counter + batch))
    x = mix(y, keys)
    assert x.shape == (batch, padded_size(n))
    assert x.dtype == np.float32
    back = unmix(x, keys, n)
    # exactly: up to the one scale of the packet
    louder = np.sqrt(np.square(back).sum(1) / np.square(y).sum(1))[:, None]
    assert np.abs(back / louder - y).max() < 2e-5


@pytest.mark.parametrize("n", [SMALLEST, 2300, 5000, PACKAGED, 100_000])
def test_power_is_exactly_one(n):
    loud = np.array([[1], [0.1], [3], [1e-4], [0]], np.float32)
    x = mix(loud * unit(gaussian(5, n)), keys_for(n, range(5)))
    power = np.square(x, dtype=np.float64).sum(1) / (x.shape[1] / 2)
    assert np.abs(power - 1).max() < 1e-8


@pytest.mark.parametrize("power", [0, -3, 7, 0.5])
@pytest.mark.parametrize("off", [0, 1e-9, 1e-8, 3e-8, -3e-8, 6e-8, -1e-7, 3e-7, -1e-6, 3e-6])
@pytest.mark.parametrize("n", [100, 16384, 32768])
def test_power_is_one_whatever_the_factor_also_where_rounding_would_leave_every_value_as_it_was(n, off, power):
    x = np.random.default_rng(n).normal(0, math.sqrt(0.5), (1, n))
    x *= math.sqrt(n / 2 / np.square(x).sum()) / (2.0**power * (1 + off))
    for _ in range(3):  # rounded, and brought near to the factor that is wanted
        x = x.astype(np.float32).astype(np.float64)
        x *= 1.37 * math.sqrt(n / 2 / np.square(x).sum()) / (2.0**power * (1 + off))
        x = x.astype(np.float32).astype(np.float64) / 1.37
    given = x.astype(np.float32)
    out, factors = normalize(given.copy())
    assert abs(2 * np.square(out, dtype=np.float64).mean() - 1) < 1e-8
    assert np.abs(out - factors[0] * given).max() < 2e-4
    assert (np.abs(out - factors[0] * given) > 1e-6).sum() <= 1


def test_power_is_one_at_the_size_whose_factor_is_a_power_of_two():
    x = gaussian(3, 16320)
    assert factors(16320) == (32, 32, 16)
    power = 2 * np.square(mix(x, keys_for(16320, range(3))), dtype=np.float64).mean(axis=1)
    assert np.abs(power - 1).max() < 1e-8


def test_normalize_keeps_shape_and_refuses_what_has_no_power():
    x = gaussian(2, 30, 2)
    copied, _ = normalize(np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2))
    out, _ = normalize(x)
    assert out.shape == x.shape
    assert out.dtype == np.float32
    assert np.shares_memory(out, x)
    assert np.array_equal(out, copied)
    assert np.square(out).sum((1, 2)) / 30 == pytest.approx([1, 1], abs=1e-6)
    x[1] = 0
    with pytest.raises(
        EngineError, match="image 1 of a run came out of the encoder with energy 0\nhint: try another picture or precision"
    ):
        normalize(x)
    x[1, 0, 0] = np.inf
    with pytest.raises(EngineError, match="energy inf"):
        normalize(x)
    x[1, 0, 0] = np.nan
    with pytest.raises(EngineError, match="energy nan"):
        normalize(x)


def test_all_zero_features_are_sent_like_others():
    x = mix(np.zeros((1, PACKAGED), np.float32), keys_for(PACKAGED))[0]
    assert np.sqrt(np.mean(np.square(x.reshape(64, -1)), axis=1)) == pytest.approx(np.full(64, 0.5**0.5), rel=0.15)
    assert np.mean(np.square(2 * x * x)) == pytest.approx(3, abs=5 * math.sqrt(96 / x.size))


def test_a_batch_is_its_images_one_by_one():
    y = unit(gaussian(3, PACKAGED))
    together = keys_for(PACKAGED, [5, 9, 6])
    alone = [keys_for(PACKAGED, [counter]) for counter in (5, 9, 6)]
    stacked = stack_keys(alone)
    for name in ("signs", "column_signs", "pads", "rows", "columns", "index", "inverse_index"):
        assert np.array_equal(getattr(together, name), getattr(stacked, name))
    for i, keys in enumerate(alone):
        assert np.allclose(mix(y, together)[i], mix(y[i : i + 1], keys)[0], atol=1e-5)
    assert same_but_for_scale(unmix(mix(y, together), together, PACKAGED), y) < 2e-5


def test_white_noise_stays_white():
    n = SMALLEST
    keys = keys_for(n)
    count = 4000
    shared = stack_keys([keys] * 500)
    noise = gaussian(count, padded_size(n))
    received = np.concatenate([unmix(part, shared, n) for part in noise.reshape(8, 500, -1)]).astype(np.float64)
    covariance = received.T @ received / count
    off = covariance[~np.eye(n, dtype=bool)]
    assert abs(covariance.diagonal() - 1).max() < 6 * math.sqrt(2 / count)
    assert abs(off).max() < 6.5 / math.sqrt(count)
    assert abs(off.var() * count - 1) < 0.02


# keys


def test_signs_are_fair_and_unrelated():
    keys = keys_for(PACKAGED, range(8))
    signs = keys.signs.reshape(8 * LAYERS, -1).astype(np.float64)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.sum()) < 5 * math.sqrt(signs.size)
    inner = signs @ signs.T / math.sqrt(signs.shape[1])
    chi_square = np.square(inner[np.triu_indices(40, 1)]).sum()  # 780 degrees
    assert abs(chi_square - 780) < 5 * math.sqrt(2 * 780)
    neighbours = (signs[:, 1:] * signs[:, :-1]).sum()
    assert abs(neighbours) < 5 * math.sqrt(signs.size)
    columns = keys_for(PACKAGED, range(500)).column_signs
    assert set(np.unique(columns)) == {-1, 1}
    assert abs(columns.sum()) < 5 * math.sqrt(columns.size)


def test_pads_are_nearly_gaussian_of_power_one_half_and_fine():
    pads = keys_for(PACKAGED, range(200)).pads.astype(np.float64).ravel()
    assert abs(pads.mean()) < 5 * math.sqrt(0.5 / pads.size)
    assert np.mean(pads**2) == pytest.approx(0.5, rel=5 * math.sqrt(2 / pads.size))
    assert np.mean(pads**4) / np.mean(pads**2) ** 2 == pytest.approx(2.7, abs=0.1)  # of a sum of four
    assert len(np.unique(pads)) > 0.99 * pads.size


@pytest.mark.parametrize("n", [SMALLEST, 2048, 2300, PACKAGED])
def test_rows_and_columns_are_orders(n):
    a, b, c = factors(n)
    keys = keys_for(n, range(50))
    assert (np.sort(keys.rows, axis=1) == np.arange(a * b)).all()
    assert (np.sort(keys.columns, axis=1) == np.arange(c)).all()
    for i in range(3):
        assert np.array_equal(keys.rows[i][keys_for(n, [i]).inverse_index[0]], np.arange(a * b))


def chi_square(counts):
    """In its own standard deviations."""
    expected = counts.sum(-1, keepdims=True) / counts.shape[-1]
    degrees = counts.size - counts.size // counts.shape[-1]
    return (np.square(counts - expected) / expected).sum() - degrees, math.sqrt(2 * degrees)


@pytest.mark.parametrize("n", [SMALLEST, 2048, 2300])  # 16 x 8 rows, 44 x 4, 76 x 4
def test_every_row_goes_everywhere_and_two_go_apart_as_chance_has_it(n):
    count, rows = 20_000, math.prod(factors(n)[:2])
    q = max(q for q in range(1, rows) if rows % q == 0 and q * q <= rows)
    order = np.concatenate([keys_for(n, range(i, i + 1000)).rows for i in range(0, count, 1000)])
    for row in (0, 1, rows - 1):
        excess, deviation = chi_square(np.bincount(order[:, row], minlength=rows))
        assert excess < 5 * deviation
    # neighbours by the first digit, the second and both; differences of digits, around the clock
    for other in (1, q, q + 1, rows // 2):
        moved = (order[:, other] // q - order[:, 0] // q) % (rows // q) * q + (order[:, other] - order[:, 0]) % q
        assert not (order[:, other] == order[:, 0]).any()
        counts = np.bincount(moved, minlength=rows)[1:]
        excess, deviation = chi_square(counts)
        assert excess < 5 * deviation, (other, excess / deviation)
    # and exclusive-or, which is what Walsh functions see
    counts = np.bincount(order[:, 0] ^ order[:, 1], minlength=rows)
    if rows & rows - 1 == 0:
        excess, deviation = chi_square(counts[1:])
        assert excess < 5 * deviation


def test_columns_are_uniform_at_every_place():
    columns = keys_for(SMALLEST, range(8000)).columns  # 16
    counts = np.stack([np.bincount(columns[:, place], minlength=16) for place in range(16)])
    excess, deviation = chi_square(counts)
    assert abs(excess) < 5 * deviation


@pytest.mark.parametrize(
    "other",
    [{"counters": [1]}, {"key": bytes(32)}, {"session": b"t" * 16}, {"digest": b"e" * 32}],
    ids=["counter", "key", "session", "model"],
)
def test_other_keys_are_an_unrelated_map(other):
    y = unit(gaussian(1, PACKAGED))
    right, wrong = keys_for(PACKAGED), keys_for(PACKAGED, **{"counters": [0], **other})
    x = mix(y, right)
    for a, b in ((x, mix(y, wrong)), (unmix(x, wrong, PACKAGED), y)):
        assert abs(np.corrcoef(a[0], b[0])[0, 1]) < 5 / math.sqrt(PACKAGED)


def test_structure_tells_the_right_keys_from_wrong_ones_through_noise():
    rng = np.random.default_rng(3)
    power = rng.uniform(0.5, 1.5, 16).astype(np.float32)
    y = unit((gaussian(50, PACKAGED // 16, 16) * np.sqrt(power)).reshape(50, -1))
    keys, others = keys_for(PACKAGED, range(50)), keys_for(PACKAGED, range(50, 100))
    received = mix(y, keys) + gaussian(50, padded_size(PACKAGED), seed=1) * math.sqrt(0.5)  # 0 dB
    assert structure(unmix(received, keys, PACKAGED), 16).min() > mixing.MIN_STRUCTURE
    wrong = structure(unmix(received, others, PACKAGED), 16)
    assert wrong.max() < mixing.MIN_STRUCTURE
    assert abs(wrong.mean()) < 0.7
    assert 0.5 < wrong.std() < 1.5


def test_bad_lengths_and_keys_of_another_size_are_refused():
    with pytest.raises(ValueError, match="session must be 16 bytes and digest 32, got 15 and 32"):
        keys_for(8, session=bytes(15))
    with pytest.raises(ValueError, match=r"counter must be in 0\.\.2\^64-1, got 18446744073709551616"):
        keys_for(8, [2**64])
    with pytest.raises(KeyFileError, match="exactly 32 bytes, got 31"):
        keys_for(8, key=bytes(31))
    with pytest.raises(
        ValueError, match="keys for 1 images of 8 reals do not fit 2 of 8; derive them for these images and n = 8"
    ):
        mix(gaussian(2, 8), keys_for(8))
    with pytest.raises(ValueError, match="of 8 reals do not fit 1 of 100"):
        unmix(gaussian(1, 2048), keys_for(8), 100)


def test_keys_are_not_shown():
    assert repr(keys_for(64)) == "MixKeys()"
