import numpy as np
import pytest
from rowpictures import neighbours_right, noisy, smooth
from semseal.runtime.attacks import accumulate, ordering

H = 13


def shares_right(packets: np.ndarray, orders: np.ndarray, snr_db: float, pictures: int) -> float:
    """The share of the rows that one order for all packets puts right; ``orders`` [packets, n] says how each was shuffled."""
    received = noisy(np.array([x[o] for x, o in zip(packets, orders, strict=True)]), snr_db)
    found = ordering.order(ordering.fit(smooth(300, H), snr_db), received, pictures)
    rows = np.array([ordering.arrange(x, found) for x in received])
    noise = noisy(np.zeros_like(received), snr_db)
    sent = [ordering.arrange(x[o] + z, _order_sent(o, pictures)) for x, o, z in zip(packets, orders, noise, strict=True)]
    same = [(rows == np.array(sent)[:, turn]).all(axis=-1).mean() for turn in (slice(None), slice(None, None, -1))]
    return float(max(same))


def _order_sent(order: np.ndarray, pictures: int) -> np.ndarray:
    return np.argsort(order).reshape(pictures, H)


@pytest.mark.parametrize("pictures", [1, 2])
def test_packets_under_one_scheme_are_opened_where_one_fails(pictures):
    shuffled = np.random.default_rng(0).permutation(pictures * H)
    packets = smooth(30 * pictures, H, seed=4).reshape(30, pictures * H, -1)
    alone = np.mean([shares_right(one[None], shuffled[None], -6.0, pictures) for one in packets[:6]])
    together = shares_right(packets, np.tile(shuffled, (30, 1)), -6.0, pictures)
    assert alone < 0.6
    assert together == 1


def test_negative_control_packets_under_fresh_schemes():
    rng = np.random.default_rng(1)
    packets = smooth(30, H, seed=4)
    assert shares_right(packets, np.array([rng.permutation(H) for _ in packets]), -6.0, 1) < 0.3  # chance 1 / H


def test_a_stack_of_one_packet_is_ordered_like_the_packet():
    model = ordering.fit(smooth(300, H), 10.0)
    received = noisy(smooth(1, H, seed=5), 10.0)[:, ::-1]
    assert np.array_equal(ordering.order(model, received), ordering.order(model, received[0]))


def test_repeats_under_fresh_schemes_lose_their_noise():
    snr_db, repeats = 10.0, 10
    rng = np.random.default_rng(2)
    sent = smooth(2, H, seed=6).reshape(2 * H, -1)
    orders = [rng.permutation(2 * H) for _ in range(repeats)]
    received = noisy(np.array([sent[order] for order in orders]), snr_db)
    mean = accumulate.average(ordering.fit(smooth(300, H), snr_db), received)
    left = np.square(mean - sent[orders[0]]).mean()
    once = np.square(received[0] - sent[orders[0]]).mean()
    assert 10 * np.log10(once / left) == pytest.approx(accumulate.gain_db(repeats), abs=0.5)
    better = ordering.fit(smooth(300, H), snr_db + accumulate.gain_db(repeats))
    assert neighbours_right(ordering.order(better, mean, 2), orders[0]) == 1


def test_negative_control_pictures_that_are_not_repeats_do_not_average():
    sent = smooth(10, H, seed=7)
    mean = accumulate.average(ordering.fit(smooth(300, H), 0.0), noisy(sent, 0.0))
    assert np.square(mean - sent[0]).mean() > np.square(noisy(sent, 0.0)[0] - sent[0]).mean() / 2


def test_averaging_one_packet_changes_nothing():
    received = smooth(1, H)
    assert np.array_equal(accumulate.average(ordering.fit(smooth(50, H), 0.0), received), received[0])
    assert accumulate.gain_db(1) == 0
    assert accumulate.gain_db(10) == pytest.approx(10)
