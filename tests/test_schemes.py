import numpy as np
import pytest
from semseal.runtime.defense.schemes import SET_SIZE, draw_choice, noise_rows, scheme_sets


@pytest.mark.parametrize("h", [1, 2, 5, 45])
def test_sets_hold_permutations_and_half_of_the_rows(h):
    sets = scheme_sets(b"k" * 32, h)
    assert sets.permutations.shape == sets.swapped.shape == (SET_SIZE, h)
    assert (np.sort(sets.permutations, axis=1) == np.arange(h)).all()
    assert (sets.swapped.sum(axis=1) == h // 2).all()


def test_both_sides_derive_the_same_sets_and_others_do_not():
    mine, yours, hers = scheme_sets(b"k" * 32, 45), scheme_sets(b"k" * 32, 45), scheme_sets(b"e" * 32, 45)
    assert (mine.permutations == yours.permutations).all()
    assert (mine.swapped == yours.swapped).all()
    assert not (mine.permutations == hers.permutations).all(axis=1).any()
    assert len({row.tobytes() for row in mine.permutations}) == SET_SIZE
    assert mine.swapped.mean(axis=0).min() > 0.35  # every row is swapped by many schemes


def test_choices_cover_the_set():
    drawn = [draw_choice() for _ in range(20 * SET_SIZE)]
    assert min(drawn) >= 0
    assert max(drawn) < SET_SIZE
    assert len(set(drawn)) > 0.99 * SET_SIZE


@pytest.mark.parametrize(("rows", "width"), [(1, 2), (45, 720), (7, 6)])
def test_noise_rows_have_power_one_and_are_never_the_same(rows, width):
    one, two = noise_rows(rows, width), noise_rows(rows, width)
    assert one.shape == (rows, width)
    assert one.dtype == np.float32
    assert 2 * np.mean(one.astype(np.float64) ** 2) == pytest.approx(1, abs=1e-6)
    assert (one != two).any()


def test_noise_rows_are_gaussian():
    noise = noise_rows(100, 1000).ravel() * 2**0.5
    assert abs(noise.mean()) < 0.02
    assert abs(np.mean(noise**3)) < 0.05
    assert np.mean(noise**4) == pytest.approx(3, abs=0.15)
