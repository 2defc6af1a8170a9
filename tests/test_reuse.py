import numpy as np
import pytest
from rowpictures import noisy, smooth
from semseal.runtime.attacks import reuse
from semseal.runtime.bundle import open_bundle
from semseal.runtime.defense.header import HeaderSealer
from semseal.runtime.link import Transmitter

H = 13
KEY = bytes(range(32))


@pytest.mark.parametrize("snr_db", [6.0, 20.0])
@pytest.mark.parametrize("pictures", [1, 2])
def test_one_known_packet_gives_the_scheme_away(pictures, snr_db):
    n = pictures * H
    known, secret = smooth(2 * pictures, H, seed=3).reshape(2, n, -1)
    shuffled = np.random.default_rng(5).permutation(n)
    rows = reuse.match_rows(known[None], noisy(known[shuffled], snr_db)[None])
    assert np.array_equal(secret[shuffled][rows], secret)


def test_one_known_picture_of_a_pair_is_found_in_both_frames():
    pair = smooth(2, H, seed=4).reshape(2 * H, -1)
    shuffled = np.random.default_rng(6).permutation(2 * H)
    rows = reuse.match_rows(pair[None, :H], noisy(pair[shuffled], 10.0)[None])
    assert np.array_equal(shuffled[rows], np.arange(H))


def test_more_known_packets_help_where_one_is_lost_in_noise():
    known = smooth(40, H, seed=7)
    shuffled = np.random.default_rng(8).permutation(H)
    received = noisy(known[:, shuffled], -10.0)
    right = [np.mean(shuffled[reuse.match_rows(known[:k], received[:k])] == np.arange(H)) for k in (1, 4, 40)]
    assert right[0] < right[1] <= right[2] == 1


def test_negative_control_a_fresh_scheme_for_the_secret_packet():
    known = smooth(1, H, seed=9)
    rng = np.random.default_rng(10)
    right = []
    for _ in range(60):
        shuffled = rng.permutation(H)
        rows = reuse.match_rows(known, noisy(known[:, shuffled], 20.0))
        right.append(np.mean(rng.permutation(H)[rows] == np.arange(H)))
    assert np.mean(right) == pytest.approx(1 / H, abs=0.05)


def test_more_known_rows_than_received_ones_are_refused():
    with pytest.raises(ValueError, match="26 known rows cannot all be among 13 received ones"):
        reuse.match_rows(np.zeros((1, 26, 4), np.float32), np.zeros((1, 13, 4), np.float32))


def test_a_real_transmitter_repeats_itself_within_its_256_permutations(small_bundle, small_images):
    images = small_images(96)
    plain = np.stack([frame.symbols for frame in Transmitter(small_bundle).send(images)]).view(np.float32).reshape(96, 1, 8, -1)
    frames = Transmitter(small_bundle, KEY, "permute").send(images)
    received = noisy(np.stack([frame.symbols for frame in frames]).view(np.float32).reshape(96, 1, 8, -1), 20.0)
    bob = HeaderSealer(KEY, open_bundle(small_bundle).digest)
    schemes = [bob.open(frame.header).p for frame in frames]
    opened = []
    for later in range(1, 96):
        if schemes[later] in schemes[:later]:
            known = schemes.index(schemes[later])
            rows = reuse.match_rows(plain[known], received[known])
            opened.append(np.square(received[later, 0, rows] - plain[later, 0]).mean())
    assert len(opened) > 3  # 96 draws out of 256 have 15 or so
    assert np.median(opened) < 1.3 * 0.01 / 2  # only the noise of 20 dB is left


N = 60


def rotation(seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((N, N)))[0].astype(np.float32)


def pictures_of_a_kind(pictures: int, seed: int) -> np.ndarray:
    """Symbols viewed as real, float32 [pictures, N], of power 0.5 a value; most of it in 20 dimensions that all share."""
    kind = np.random.default_rng(99).standard_normal((20, N))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((pictures, 20)) @ kind + 0.5 * rng.standard_normal((pictures, N)) + 2
    return (x / np.sqrt(2 * np.square(x).mean(axis=1, keepdims=True))).astype(np.float32)


def error(known: int, snr_db: float, secret_rotation: int = 1) -> float:
    """Mean squared error of the secret packets, when ``known`` others were mixed by rotation 1."""
    sent, secret, attacker = pictures_of_a_kind(known, 11), pictures_of_a_kind(20, 12), pictures_of_a_kind(300, 13)
    received = noisy(sent @ rotation(1), snr_db, 1)
    answer = reuse.unmix(attacker, sent, received, noisy(secret @ rotation(secret_rotation), snr_db, 2), snr_db)
    assert answer.shape == secret.shape
    assert answer.dtype == np.float32
    return float(np.square(answer - secret).mean())


def test_as_many_known_packets_as_dimensions_open_a_reused_mixing():
    assert error(8 * N, 40.0) < 1e-3
    assert error(N // 4, 40.0) > 5e-2


def test_every_known_packet_under_one_key_stream_tells_more():
    mean_picture = np.square(pictures_of_a_kind(300, 13).mean(axis=0) - pictures_of_a_kind(20, 12)).mean()
    errors = [error(known, 20.0) for known in (1, 4, 16, 64, 256)]
    assert mean_picture > errors[0]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02 * mean_picture


def test_padding_of_the_mixed_packets_does_not_matter():
    sent, secret, attacker = pictures_of_a_kind(90, 11), pictures_of_a_kind(5, 12), pictures_of_a_kind(300, 13)
    wide = np.linalg.qr(np.random.default_rng(1).standard_normal((80, 80)))[0][:N].astype(np.float32)
    answer = reuse.unmix(attacker, sent, noisy(sent @ wide, 50.0, 1), noisy(secret @ wide, 50.0, 2), 50.0)
    assert np.square(answer - secret).mean() < 2e-3


@pytest.mark.parametrize("known", [1, 16, 64])
def test_negative_control_a_fresh_key_stream_for_the_secret_packets(known):
    mean_picture = np.square(pictures_of_a_kind(300, 13).mean(axis=0) - pictures_of_a_kind(20, 12)).mean()
    assert error(known, 20.0, secret_rotation=2) > 0.95 * mean_picture
