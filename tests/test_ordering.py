import numpy as np
import pytest
from rowpictures import is_picture, neighbours_right, noisy, smooth
from semseal.runtime import channel
from semseal.runtime.attacks import ordering
from semseal.runtime.bundle import packaged_bundle
from semseal.runtime.defense.schemes import noise_rows
from semseal.runtime.link import Frame, Receiver, Transmitter
from semseal.runtime.metrics import psnr
from semseal.runtime.pictures import open_pictures

SHIPPED = packaged_bundle("photos-10db")
KEY = bytes(range(32))


def in_any_order(pictures: np.ndarray) -> np.ndarray:
    return np.array(sorted(pictures.tolist()))


@pytest.mark.parametrize(("h", "pictures"), [(2, 1), (3, 1), (11, 1), (12, 2), (7, 3), (2, 2)])
def test_planted_orders_come_back(h, pictures):
    model = ordering.fit(smooth(400, h), 30.0)
    for seed in range(5):
        shuffled = np.random.default_rng(seed).permutation(pictures * h)
        rows = noisy(smooth(pictures, h, seed=100 + seed), 30.0).reshape(pictures * h, -1)[shuffled]
        found = ordering.order(model, rows, pictures)
        assert found.shape == (pictures, h)
        truth = np.arange(pictures * h).reshape(pictures, h)
        assert np.array_equal(in_any_order(shuffled[found]), truth)
        assert neighbours_right(found, shuffled) == 1


def test_success_grows_with_eves_snr():
    h, right = 11, []
    for snr in (-10.0, 0.0, 10.0, 20.0):
        model = ordering.fit(smooth(400, h), snr)
        shuffled = np.random.default_rng(3).permutation(2 * h)
        rows = noisy(smooth(40, h, seed=9), snr).reshape(20, 2 * h, -1)[:, shuffled]
        right.append(np.mean([neighbours_right(ordering.order(model, x, 2), shuffled) for x in rows]))
    assert right[0] < right[1] < right[2] <= right[3] > 0.99


def test_half_of_the_rows_of_two_pictures_find_their_positions():
    h = 15
    model = ordering.fit(smooth(400, h), 20.0)
    right = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        kept = np.where(rng.permutation(h) < h // 2, np.arange(h), np.arange(h) + h)
        rng.shuffle(kept)
        found = ordering.order(model, noisy(smooth(2, h, seed=seed + 50), 20.0).reshape(2 * h, -1)[kept], 2)
        assert np.array_equal(np.sort(found[found >= 0]), np.arange(h))
        sent = np.where(found >= 0, kept[found], -1)
        here = np.arange(2 * h).reshape(2, h)
        right.append(max((sent == here).sum(), (sent[::-1] == here).sum()) / h)
    assert np.mean(right) > 0.8


def test_rows_of_the_noise_tensor_are_dropped():
    h, r = 20, 720  # as long as the rows of the paper's network, with values as similar
    basis = np.linalg.qr(np.random.default_rng(4).standard_normal((r, 48)))[0].T.astype(np.float32) * np.float32(
        (r / 48) ** 0.5
    )
    for snr in (0.0, 10.0, 20.0):
        model = ordering.fit(smooth(100, h) @ basis, snr, max_distance=1)
        rows = noisy(np.concatenate([smooth(1, h, seed=7)[0] @ basis, noise_rows(h, r)]), snr)
        shuffled = np.random.default_rng(2).permutation(2 * h)
        kept = is_picture(model, rows[shuffled])
        assert np.array_equal(kept, shuffled < h)
        found = ordering.order(model, rows[shuffled][kept], 1)
        assert neighbours_right(found, shuffled[kept]) > 0.9


def test_rows_that_fit_nothing_are_still_used_once_each():
    h = 9
    model = ordering.fit(smooth(400, h), 10.0)
    for seed in range(10):
        rows = np.random.default_rng(seed).standard_normal((3 * h, 48), np.float32)
        assert np.array_equal(np.sort(ordering.order(model, rows, 3), axis=None), np.arange(3 * h))


def test_ties_are_broken_reproducibly():
    h = 6
    model = ordering.fit(smooth(400, h), 10.0)
    rows = np.zeros((2 * h, 48), np.float32)
    found = ordering.order(model, rows, 2)
    assert np.array_equal(np.sort(found, axis=None), np.arange(2 * h))
    assert np.array_equal(found, ordering.order(model, rows, 2))


def test_as_many_pictures_as_rows():
    model = ordering.fit(smooth(50, 5), 10.0)
    found = ordering.order(model, smooth(1, 5, seed=2)[0, :3], 3)
    assert (found >= 0).sum(axis=1).tolist() == [1, 1, 1]
    assert np.array_equal(np.sort(found[found >= 0]), np.arange(3))


def test_a_few_pictures_without_noise_are_enough_to_fit():
    model = ordering.fit(smooth(2, 4), float("inf"))
    assert np.isfinite(ordering.distance_scores(model, smooth(1, 4)[0], 1)).all()


def test_gaps_are_filled_between_neighbours():
    received = np.array([[0.0, 10], [4, 10], [5, 40]], np.float32)
    rows = ordering.arrange(received, np.array([[-1, 0, -1, -1, -1, 1, 2, -1]]))
    assert rows[0, :, 0].tolist() == [0, 0, 1, 2, 3, 4, 5, 5]
    assert rows[0, :, 1].tolist() == [10, 10, 10, 10, 10, 10, 40, 40]


def test_neighbours_right_counts_what_was_received():
    truth = np.array([0, 1, 2, 3, 4, 5])  # two pictures of three rows: 0-1-2 and 3-4-5
    assert neighbours_right(np.array([[0, 1, 2], [3, 4, 5]]), truth) == 1
    assert neighbours_right(np.array([[2, 1, 0], [5, 4, 3]]), truth) == 0
    assert neighbours_right(np.array([[2, 3, 4], [5, 0, 1]]), truth) == 0.5
    assert neighbours_right(np.array([[0, 1, 2]]), np.array([1, 2, -1])) == 1  # only 1-2 could be found
    assert neighbours_right(np.array([[0, -1, 1], [2, -1, 3]]), np.array([0, 1, 4, 5])) == 0


def test_impossible_requests_are_refused():
    model = ordering.fit(smooth(20, 5), 10.0)
    for rows, pictures in ((6, 1), (1, 2), (3, 0)):
        with pytest.raises(ValueError, match=f"{rows} rows do not fit {pictures} pictures of 5 rows"):
            ordering.order(model, np.zeros((rows, 48), np.float32), pictures)
    for rows in (np.zeros((4, 1, 8)), np.zeros((1, 5, 8)), np.zeros((5, 8)), np.full((4, 5, 8), np.nan)):
        with pytest.raises(ValueError, match="rows must be finite"):
            ordering.fit(rows.astype(np.float32), 10.0)


@pytest.fixture(scope="module")
def deployed():
    """Four photographs, and what 60 of the attacker's images look like on the deployed transmitter."""
    images = open_pictures("photos", "valid").take(4, 180, 180)
    attacker = open_pictures("photos", "test").take(60, 180, 180, seed=1)
    return images, rows_of(Transmitter(SHIPPED).send(attacker))


def rows_of(frames: list[Frame]) -> np.ndarray:
    return np.stack([frame.symbols for frame in frames]).view(np.float32).reshape(len(frames), 45, -1)


def received_from(frames: list[Frame], snr_db: float) -> list[Frame]:
    symbols = np.stack([frame.symbols for frame in frames])
    noise = channel.draw_noise(*symbols.shape, np.random.default_rng(0))
    return [Frame(x, frame.header) for x, frame in zip(channel.awgn(symbols, noise, snr_db), frames, strict=True)]


def eve_sees(rows: np.ndarray) -> np.ndarray:
    """Rows in order, decoded by the deployed receiver, which she bought."""
    headers = [frame.header for frame in Transmitter(SHIPPED).send(np.zeros((len(rows), 3, 180, 180), np.float32))]
    symbols = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.complex64)
    return Receiver(SHIPPED).receive([Frame(x, header) for x, header in zip(symbols, headers, strict=True)])


def test_positive_control_permutation_alone_at_20_db(deployed):
    images, attacker = deployed
    frames = received_from(Transmitter(SHIPPED, KEY, "permute").send(images), 20.0)
    model = ordering.fit(attacker, 20.0, max_distance=1)
    eve = eve_sees(np.concatenate([ordering.arrange(x, ordering.order(model, x)) for x in rows_of(frames)]))
    assert (psnr(images, Receiver(SHIPPED, KEY).receive(frames)) - psnr(images, eve)).mean() < 0.1


@pytest.mark.parametrize("defense", ["substitute", "permute+substitute"])
def test_a_pair_is_opened_from_what_was_received_of_both(deployed, defense):
    images, attacker = deployed
    frames = received_from(Transmitter(SHIPPED, KEY, defense).send(images), 10.0)
    bob = psnr(images, Receiver(SHIPPED, KEY).receive(frames))
    model = ordering.fit(attacker, 10.0, max_distance=1)
    for first in (0, 2):
        rows = rows_of(frames)[first : first + 2].reshape(90, -1)
        eve = eve_sees(ordering.arrange(rows, ordering.order(model, rows, 2)))
        pair = images[first : first + 2]
        loss = bob[first : first + 2] - [psnr(pair, eve), psnr(pair, eve[::-1])]
        assert loss.mean(axis=1).min() < 0.5


def test_an_odd_picture_is_found_among_the_rows_of_its_noise_tensor(deployed):
    images, attacker = deployed
    frames = received_from(Transmitter(SHIPPED, KEY, "permute+substitute").send(images[:1]), 10.0)
    bob = psnr(images[:1], Receiver(SHIPPED, KEY).receive(frames))
    model = ordering.fit(attacker, 10.0, max_distance=1)
    rows = rows_of(frames).reshape(90, -1)
    rows = rows[is_picture(model, rows)]
    assert len(rows) == 45
    assert bob - psnr(images[:1], eve_sees(ordering.arrange(rows, ordering.order(model, rows)))) < 0.5


def test_an_orthogonal_mixing_leaves_nothing_to_order(deployed):
    images, attacker = deployed
    model = ordering.fit(attacker, 20.0, max_distance=1)
    rows = rows_of(Transmitter(SHIPPED).send(images))
    rng = np.random.default_rng(0)
    right = []
    for x in rows:
        signed = np.fft.fft(x.ravel() * rng.choice([-1.0, 1.0], x.size), norm="ortho")
        mixed = (signed.real + signed.imag).reshape(45, -1).astype(np.float32)  # the Hartley transform is orthogonal
        right.append(neighbours_right(ordering.order(model, mixed), np.arange(45)))
    assert np.mean(right) < 0.2
