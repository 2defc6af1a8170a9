import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from semseal.runtime.defense import index


def test_figure_2_of_the_paper():
    own = np.array([f"y{i}" for i in range(5)])
    other = np.array([f"y'{i}" for i in range(5)])
    P, P_other = np.array([4, 2, 1, 0, 3], np.int32), np.array([0, 3, 4, 1, 2], np.int32)
    swapped = np.isin(np.arange(5), [0, 2])

    on_air = index.gather(np.concatenate([own, other]), index.compose(P, swapped, P_other))
    on_air_other = index.gather(np.concatenate([other, own]), index.compose(P_other, swapped, P))
    assert on_air.tolist() == ["y'0", "y2", "y'4", "y0", "y3"]
    assert on_air_other.tolist() == ["y4", "y'3", "y1", "y'1", "y'2"]

    assert index.gather(np.concatenate([on_air, on_air_other]), index.invert(P, swapped)).tolist() == own.tolist()
    assert index.gather(np.concatenate([on_air_other, on_air]), index.invert(P_other, swapped)).tolist() == other.tolist()


@st.composite
def schemes(draw):
    h = draw(st.integers(1, 50))
    permutation = st.permutations(range(h)).map(lambda p: np.array(p, np.int32))
    swapped = st.lists(st.booleans(), min_size=h, max_size=h).map(np.array)
    return draw(permutation), draw(permutation), draw(swapped)


@given(schemes(), st.integers(0, 2**32 - 1))
def test_invert_undoes_compose_bit_for_bit(scheme, seed):
    P, P_other, swapped = scheme
    h = len(P)
    rows = np.random.default_rng(seed).standard_normal((2 * h, 3)).astype(np.float32)
    places = np.arange(2)
    outward = np.stack([index.compose(P, swapped, P_other), index.compose(P_other, swapped, P)])
    inward = np.stack([index.invert(P, swapped), index.invert(P_other, swapped)])
    sent = index.gather(rows, index.absolute(outward, places, places ^ 1))
    back = index.gather(sent.reshape(2 * h, 3), index.absolute(inward, places, places ^ 1))
    assert back.reshape(2 * h, 3).tobytes() == rows.tobytes()
    assert sorted(sent.reshape(-1).tolist()) == sorted(rows.reshape(-1).tolist())  # power is only moved about


def test_identity_changes_nothing():
    rows = np.arange(12.0, dtype=np.float32).reshape(6, 2)
    table = np.stack([index.identity(3)] * 2)
    assert (index.gather(rows, index.absolute(table, np.array([0, 1]), np.array([1, 0]))).reshape(6, 2) == rows).all()


def test_frames_may_lie_anywhere():
    table = np.array([[0, 3, 5]], np.int32)  # own row 0, the other's rows 0 and 2
    assert index.absolute(table, np.array([4]), np.array([1])).tolist() == [[12, 3, 5]]


@pytest.mark.parametrize("bad", [-1, 6, 2**31 - 1])
def test_index_out_of_range_is_caught_before_any_kernel(bad):
    with pytest.raises(ValueError, match=r"must be in 0\.\.5"):
        index.absolute(np.array([[0, 1, bad]], np.int32), np.array([0]), np.array([1]))


@pytest.mark.parametrize("bad", [[0, 0, 2], [0, 1, 3], [1, 2, 3]])
def test_what_is_no_permutation_is_refused(bad):
    good, swapped = np.arange(3, dtype=np.int32), np.zeros(3, bool)
    with pytest.raises(ValueError, match="not a permutation"):
        index.compose(np.array(bad, np.int32), swapped, good)
    with pytest.raises(ValueError, match="not a permutation"):
        index.compose(good, swapped, np.array(bad, np.int32))
    with pytest.raises(ValueError, match="not a permutation"):
        index.invert(np.array(bad, np.int32), swapped)


def test_swapped_of_another_length_is_refused():
    with pytest.raises(ValueError, match="swapped of shape"):
        index.invert(np.arange(3, dtype=np.int32), np.zeros(4, bool))
