import numpy as np
import pytest
from rowpictures import neighbours_right, noisy, smooth
from semseal.runtime.attacks import bruteforce, ordering
from semseal.runtime.bundle import open_bundle, packaged_bundle
from semseal.runtime.defense import index
from semseal.runtime.defense.header import HeaderSealer
from semseal.runtime.defense.schemes import noise_rows, scheme_sets
from semseal.runtime.link import Transmitter
from semseal.runtime.pictures import open_pictures

H = 13
KEY = bytes(range(32))
SHIPPED = packaged_bundle("photos-10db")
SETS = scheme_sets(KEY, H)


def on_air(first: np.ndarray, second: np.ndarray, p: tuple[int, int], s: int, snr_db: float) -> list[np.ndarray]:
    """The two frames of a pair as Eve receives them."""
    mine, other = SETS.permutations[p[0]], SETS.permutations[p[1]]
    return [
        noisy(index.gather(np.concatenate([first, second]), index.compose(mine, SETS.swapped[s], other)), snr_db, 1),
        noisy(index.gather(np.concatenate([second, first]), index.compose(other, SETS.swapped[s], mine)), snr_db, 2),
    ]


@pytest.mark.parametrize("snr_db", [0.0, 20.0])
def test_a_pair_gives_its_scheme_away(snr_db):
    model = ordering.fit(smooth(300, H), snr_db)
    for seed, (p, s) in enumerate([((0, 0), 0), ((7, 255), 3), ((255, 1), 255), ((128, 64), 32)]):
        first, second = smooth(2, H, seed=50 + seed)
        frames = on_air(first, second, p, s, snr_db)
        found = bruteforce.search(model, frames, SETS.permutations, SETS.swapped)
        assert found.p == p
        assert found.s == s
        rows = ordering.arrange(np.concatenate(frames), found.order)
        assert np.square(rows - [first, second]).mean() < 1.3 * 10 ** (-snr_db / 10) / 2  # nothing but the noise is left


def test_positive_control_permutation_alone_at_20_db():
    model = ordering.fit(smooth(300, H), 20.0)
    for p in (0, 100, 255):
        received = noisy(smooth(1, H, seed=p + 1)[0][SETS.permutations[p]], 20.0)
        found = bruteforce.search(model, [received], SETS.permutations)
        assert (found.p, found.s) == ((p,), 0)
        assert np.array_equal(SETS.permutations[p][found.order[0]], np.arange(H))


def test_substitution_alone():
    model = ordering.fit(smooth(300, H), 10.0)
    first, second = smooth(2, H, seed=8)
    straight = index.identity(H)
    for s in (5, 200):
        pair = index.compose(straight, SETS.swapped[s], straight)
        frames = [np.concatenate(rows)[pair] for rows in ([first, second], [second, first])]
        found = bruteforce.search(model, noisy(np.array(frames), 10.0), straight[None], SETS.swapped)
        arranged = np.concatenate(frames)[found.order]
        # the same rows are on air whichever picture is the first one, so the order of the frames settles it
        assert np.array_equal(arranged, [first, second])


def test_one_frame_of_a_pair_is_enough():
    model = ordering.fit(smooth(300, H), 20.0)
    first, second = smooth(2, H, seed=9)
    frames = on_air(first, second, (11, 22), 33, 20.0)
    for received in ([frames[0], None], [None, frames[1]]):
        found = bruteforce.search(model, received, SETS.permutations, SETS.swapped)
        assert (found.p, found.s) == ((11, 22), 33)
        assert (found.order >= 0).sum() == H  # the rows that were in the frame
        for rows, order in zip((first, second), found.order, strict=True):
            have = order >= 0
            assert np.abs(np.concatenate(frames)[order[have]] - rows[have]).max() < 0.5


def test_the_partner_may_be_a_noise_tensor():
    model = ordering.fit(smooth(300, H), 10.0)
    first = smooth(1, H, seed=10)[0]
    frames = on_air(first, noise_rows(H, 48), (44, 55), 66, 10.0)
    found = bruteforce.search(model, frames, SETS.permutations, SETS.swapped, pictures=1)
    assert (found.p, found.s) == ((44,), 66)
    assert found.order.shape == (1, H)


def test_negative_control_the_sets_of_another_key():
    model = ordering.fit(smooth(300, H), 20.0)
    others = scheme_sets(bytes(32), H)
    right = []
    for seed in range(8):
        received = noisy(smooth(1, H, seed=seed + 20)[0][SETS.permutations[seed]], 20.0)
        found = bruteforce.search(model, [received], others.permutations)
        right.append(neighbours_right(found.order, SETS.permutations[seed]))
    assert np.mean(right) < 0.5


def test_no_received_frame_is_refused():
    model = ordering.fit(smooth(20, 4), 20.0)
    with pytest.raises(ValueError, match="at least one frame"):
        bruteforce.search(model, [None, None], SETS.permutations, SETS.swapped)


def test_the_smallest_picture():
    model = ordering.fit(smooth(200, 2), 20.0)
    received = noisy(smooth(1, 2, seed=3)[0][::-1], 20.0)
    assert bruteforce.search(model, [received], np.array([[0, 1], [1, 0]])).p == (1,)


def test_what_the_deployed_transmitter_sends():
    images = open_pictures("photos", "valid").take(4, 180, 180)
    attacker = open_pictures("photos", "test").take(60, 180, 180, seed=1)
    plain = np.stack([frame.symbols for frame in Transmitter(SHIPPED).send(attacker)]).view(np.float32).reshape(60, 45, -1)
    model = ordering.fit(plain, 10.0, max_distance=2)
    frames = Transmitter(SHIPPED, KEY, "permute+substitute").send(images)
    received = noisy(np.stack([frame.symbols for frame in frames]).view(np.float32), 10.0).reshape(4, 45, -1)
    sets = scheme_sets(KEY, 45)
    headers = [HeaderSealer(KEY, open_bundle(SHIPPED).digest).open(frame.header) for frame in frames]
    for a, b in ((0, 1), (2, 3)):
        for rows in ([received[a], received[b]], [received[a], None]):
            found = bruteforce.search(model, rows, sets.permutations, sets.swapped)
            assert (found.p, found.s) == ((headers[a].p, headers[b].p), headers[a].s)
