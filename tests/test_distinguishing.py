import numpy as np
import pytest
from semseal.runtime import channel
from semseal.runtime.attacks.distinguishing import chosen_pairs, distinguish, linkability
from semseal.runtime.link import Transmitter
from semseal.runtime.pictures import open_pictures


@pytest.fixture(scope="module")
def alice(small_bundle):
    """Images to clean rows float32 [n, 8, 24] of a real transmitter."""
    transmitter = Transmitter(small_bundle)
    return lambda images: np.stack([f.symbols for f in transmitter.send(images)]).view(np.float32).reshape(len(images), 8, 24)


@pytest.fixture(scope="module")
def pairs(alice):
    photographs = open_pictures("photos", "valid").take(2, 32, 24)
    return {name: alice(pair) for name, pair in chosen_pairs(*photographs).items()}


def none(rows, rng):
    return rows


def permute(rows, rng):
    return rows[rng.permutation(len(rows))]


def ideal_rotation(rows, rng):
    """A vector turned by a uniformly drawn rotation lies anywhere on its sphere with equal probability."""
    direction = rng.standard_normal(rows.shape)
    return direction * np.linalg.norm(rows) / np.linalg.norm(direction)


def receive(rows, snr_db, rng):
    symbols = np.ascontiguousarray(rows, np.float32).reshape(len(rows), -1).view(np.complex64)
    return channel.awgn(symbols, channel.draw_noise(*symbols.shape, rng), snr_db).view(np.float32).reshape(rows.shape)


def send(pair, defense, n, snr_db, rng):
    """n packets of either picture in turn, and which one each carries."""
    sent = rng.permutation(np.arange(n) % 2)
    return receive(np.stack([defense(pair[i], rng)[None] for i in sent]), snr_db, rng), sent


def send_twice(rows, defense, n, snr_db, rng):
    """n pairs of packets, every other one of the same picture, and whether it is."""
    same = rng.permutation(np.arange(n) % 2)
    one = rng.integers(len(rows), size=n)
    two = np.where(same == 1, one, (one + rng.integers(1, len(rows), n)) % len(rows))
    sent = np.stack([[defense(rows[i], rng), defense(rows[j], rng)] for i, j in zip(one, two, strict=True)])
    return receive(sent, snr_db, rng), same


def test_chosen_pairs_are_pictures_and_differ():
    one, two = np.random.default_rng(0).random((2, 3, 32, 24), np.float32)
    found = chosen_pairs(one, two)
    assert np.array_equal(found["two pictures"], [one, two])
    for pair in found.values():
        assert pair.shape == (2, 3, 32, 24)
        assert pair.dtype == np.float32
        assert pair.min() >= 0
        assert pair.max() <= 1
        assert not np.array_equal(*pair)
    assert found["black, one pixel"].sum() == 3
    assert found["black, sparse"].sum() == 3 * 16
    assert found["grey, checkerboard"][1].mean() == 0.5


@pytest.mark.parametrize("defense", [none, permute])
def test_positive_controls_are_won_for_every_pair(pairs, defense):
    rng = np.random.default_rng(0)
    for name, pair in pairs.items():
        game = distinguish(pair, *send(pair, defense, 100, 20, rng), *send(pair, defense, 60, 20, rng))
        assert game.auc.low > 0.8, name
        assert len(game.scores) == 60


@pytest.mark.parametrize("defense", [none, permute])
def test_without_noise_every_pair_is_told_apart(pairs, defense):
    """Where every packet of a picture is the same, too."""
    rng = np.random.default_rng(5)
    for name, pair in pairs.items():
        (practice, practised), (packets, truth) = (send(pair, defense, 100, np.inf, rng) for _ in range(2))
        assert distinguish(pair, practice, practised, packets, truth).auc.value > 0.99, name


def test_an_ideal_rotation_leaves_chance_for_every_pair(pairs):
    rng = np.random.default_rng(0)
    for name, pair in pairs.items():
        level = 1 - 0.05 / len(pairs)
        game = distinguish(
            pair, *send(pair, ideal_rotation, 100, 20, rng), *send(pair, ideal_rotation, 100, 20, rng), level=level
        )
        assert game.auc.low <= 0.5 <= game.auc.high, name


def test_an_ideal_rotation_of_unequal_power_is_seen(pairs):
    rng = np.random.default_rng(0)
    pair = pairs["two pictures"] * np.float32([1, 1.2])[:, None, None]
    game = distinguish(pair, *send(pair, ideal_rotation, 100, 20, rng), *send(pair, ideal_rotation, 60, 20, rng))
    assert game.auc.low > 0.9


def test_scores_rise_with_the_second_picture(pairs):
    rng = np.random.default_rng(0)
    pair = pairs["black, white"]
    practice = send(pair, none, 60, 20, rng)
    packets, sent = send(pair, none, 40, 20, rng)
    right, wrong = distinguish(pair, *practice, packets, sent), distinguish(pair, *practice, packets, 1 - sent)
    assert right.auc.value == 1
    assert wrong.auc.value == 0
    assert right.scores[sent == 1].min() > right.scores[sent == 0].max()


@pytest.mark.parametrize("defense", [none, permute])
def test_packets_of_one_picture_are_linked(alice, defense):
    rng = np.random.default_rng(0)
    attacker = alice(open_pictures("photos", "test").take(60, 32, 24, seed=1))
    rows = alice(open_pictures("photos", "valid").take(20, 32, 24, seed=1))
    game = linkability(*send_twice(attacker, defense, 160, 20, rng), *send_twice(rows, defense, 100, 20, rng))
    assert game.auc.low > 0.8


def test_an_ideal_rotation_does_not_link(alice):
    rng = np.random.default_rng(0)
    rows = alice(open_pictures("photos", "valid").take(20, 32, 24, seed=1))
    game = linkability(*send_twice(rows, ideal_rotation, 160, 20, rng), *send_twice(rows, ideal_rotation, 200, 20, rng))
    assert game.auc.low <= 0.5 <= game.auc.high


def test_what_does_not_belong_together_is_refused(pairs):
    rng = np.random.default_rng(0)
    pair = pairs["black, white"]
    packets, sent = send(pair, none, 60, 20, rng)
    with pytest.raises(ValueError, match=r"rows \[2, h, r\]"):
        distinguish(pair[:1], packets, sent, packets, sent)
    with pytest.raises(ValueError, match="both must occur"):
        distinguish(pair, packets, sent, packets, np.zeros(60, int))
    with pytest.raises(ValueError, match="one for each of 60 trials"):
        distinguish(pair, packets, sent[:-1], packets, sent)
    with pytest.raises(ValueError, match="40 practice packets, got 20"):
        distinguish(pair, packets[:20], sent[:20], packets, sent)
    with pytest.raises(ValueError, match=r"packets \[trials, 2, h, r\] expected"):
        linkability(packets, sent, packets, sent)
