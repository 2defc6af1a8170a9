from itertools import pairwise

import numpy as np
import pytest
from semseal.runtime import channel
from semseal.runtime.attacks.identification import MATCHES, fingerprints, identify, learn
from semseal.runtime.link import Transmitter
from semseal.runtime.pictures import open_pictures

H, R = 9, 24


def rows_of_pictures(n, seed):
    """Clean rows float32 [n, H, R] of n synthetic pictures, power 1 per symbol: similar rows inside a picture, heavy tails."""
    rng = np.random.default_rng(seed)
    common = rng.laplace(size=(n, 1, R)) * rng.uniform(0.5, 1.5, (n, 1, 1))
    return unit_power(common + rng.laplace(size=(n, H, R)))


def unit_power(rows):
    return (rows / np.sqrt(2 * np.square(rows).mean(axis=(1, 2), keepdims=True))).astype(np.float32)


def receive(rows, snr_db, rng):
    symbols = np.ascontiguousarray(rows, np.float32).reshape(len(rows), -1).view(np.complex64)
    return channel.awgn(symbols, channel.draw_noise(*symbols.shape, rng), snr_db).view(np.float32).reshape(rows.shape)


def permute(rows, partner, rng):
    return rows[rng.permutation(H)][None]


def permute_and_substitute(rows, partner, rng):
    swapped = np.zeros(H, bool)
    swapped[rng.permutation(H)[: H // 2]] = True
    one, two = rng.permutation(H), rng.permutation(H)
    mine = np.where(swapped[:, None], partner[two], rows[one])
    return np.stack([mine, np.where(swapped[:, None], rows[one], partner[two])])


def symbols_and_signs(rows, partner, rng):
    symbols = rows.reshape(-1, 2)[rng.permutation(H * R // 2)]
    return (symbols * rng.choice([-1, 1], symbols.shape)).reshape(1, H, R)


def signs(rows, partner, rng):
    return (rows * rng.choice([-1, 1], rows.shape))[None]


def ideal_rotation(rows, partner, rng):
    """A vector turned by a uniformly drawn rotation lies anywhere on its sphere with equal probability."""
    direction = rng.standard_normal(rows.shape)
    return (direction * np.linalg.norm(rows) / np.linalg.norm(direction))[None]


def rotation_inside_blocks(rows, partner, rng):
    blocks = rows.reshape(-1, 1, 12)
    turned = np.stack([ideal_rotation(block, None, rng)[0] for block in blocks])
    return turned[rng.permutation(len(turned))].reshape(1, H, R)


def play(defense, snr_db, attacker, candidates, trials=200, seed=0):
    rng = np.random.default_rng(seed)

    def send(pictures, truth):
        partners = (truth + rng.integers(1, len(pictures), len(truth))) % len(pictures)
        pairs = zip(pictures[truth], pictures[partners], strict=True)
        return receive(np.stack([defense(rows, partner, rng) for rows, partner in pairs]), snr_db, rng)

    truth = rng.integers(len(candidates), size=trials)
    identifier = learn(attacker, send(attacker, np.arange(len(attacker))), np.arange(len(attacker)))
    return identify(identifier, candidates, send(candidates, truth), truth)


ATTACKER, CANDIDATES = rows_of_pictures(300, 1), rows_of_pictures(40, 2)


@pytest.mark.parametrize("snr_db", [0, 10])
@pytest.mark.parametrize("defense", [lambda rows, partner, rng: rows[None], permute], ids=["none", "permute"])
def test_positive_controls_are_won(defense, snr_db):
    found = play(defense, snr_db, ATTACKER, CANDIDATES)
    assert found.top1.low > 0.9
    assert found.tpr_at_1_percent.low > 0.9
    assert found.chance == 1 / 40


@pytest.mark.parametrize("streams", [1, 2])
def test_substitution_does_not_hide_the_picture(streams):
    found = play(lambda rows, partner, rng: permute_and_substitute(rows, partner, rng)[:streams], 10, ATTACKER, CANDIDATES)
    assert found.top1.low > 0.9


def test_random_signs_do_not_hide_the_picture():
    found = play(signs, 10, ATTACKER, CANDIDATES)
    assert found.top1.low > 0.9
    assert found.hits_alone["squares in place"] > 3 * found.hits_alone["rows in place"]


def test_an_ideal_rotation_of_unit_power_leaves_chance():
    found = play(ideal_rotation, 20, ATTACKER, CANDIDATES, trials=400)
    assert found.top1.low <= found.chance <= found.top1.high
    assert found.top1.high < 0.07
    assert found.tpr_at_1_percent.low <= 0.01
    assert all(hits < 30 for hits in found.hits_alone.values())  # 10 are expected


def test_an_ideal_rotation_of_unequal_power_leaks_it():
    rng = np.random.default_rng(5)
    attacker, candidates = (
        (rows * rng.uniform(0.5, 2, (len(rows), 1, 1))).astype(np.float32) for rows in (ATTACKER, CANDIDATES)
    )
    found = play(ideal_rotation, 20, attacker, candidates)
    assert found.top1.low > 5 * found.chance
    assert found.hits_alone["moments"] > 5 * 200 * found.chance


def test_a_rotation_inside_blocks_leaks_their_energies():
    found = play(rotation_inside_blocks, 20, ATTACKER, CANDIDATES)
    assert found.top1.low > 3 * found.chance
    assert found.hits_alone["block energies"] > 3 * 200 * found.chance


def test_success_grows_with_the_snr():
    found = [play(symbols_and_signs, snr_db, ATTACKER, CANDIDATES).top1 for snr_db in (-10, 0, 10, 20)]
    for quieter, louder in pairwise(found):
        assert louder.high >= quieter.low
    assert found[-1].low > found[0].high


def test_scores_are_posteriors_and_the_truth_only_marks():
    rng = np.random.default_rng(3)
    identifier = learn(ATTACKER, receive(ATTACKER[:, None], 0, rng), np.arange(len(ATTACKER)))
    packets = receive(CANDIDATES[:, None], 0, rng)
    right, wrong = (
        identify(identifier, CANDIDATES, packets, np.arange(40)),
        identify(identifier, CANDIDATES, packets, np.roll(np.arange(40), 1)),
    )
    assert np.exp(right.log_posteriors).sum(1) == pytest.approx(1)
    assert np.array_equal(right.log_posteriors, wrong.log_posteriors)
    assert right.top1.hits == 40
    assert wrong.top1.hits == 0
    assert list(right.hits_alone)[: len(MATCHES)] == list(MATCHES)


def test_the_order_of_candidates_does_not_matter():
    rng = np.random.default_rng(4)
    identifier = learn(ATTACKER, receive(ATTACKER[:, None], 0, rng), np.arange(len(ATTACKER)))
    packets, order = receive(CANDIDATES[:, None], 0, rng), rng.permutation(40)
    straight = identify(identifier, CANDIDATES, packets, np.arange(40)).log_posteriors
    assert np.allclose(
        identify(identifier, CANDIDATES[order], packets, np.argsort(order)).log_posteriors, straight[:, order], atol=1e-3
    )


def test_fingerprints_stay_under_what_they_are_for():
    rng = np.random.default_rng(0)
    symbols = CANDIDATES.reshape(40, -1, 2)[:, rng.permutation(H * R // 2)].reshape(CANDIDATES.shape)
    turned = np.linalg.qr(rng.standard_normal((H, H)))[0].astype(np.float32) @ CANDIDATES
    shuffled, before = fingerprints(symbols), fingerprints(CANDIDATES)
    for name in ("moments", "values", "magnitudes"):
        assert np.allclose(shuffled[name], before[name], rtol=1e-4, atol=1e-5)
    for name in ("row energies", "block energies", "spectrum"):
        assert not np.allclose(shuffled[name], before[name], rtol=1e-2)
    assert np.allclose(fingerprints(CANDIDATES[:, ::-1])["row energies"], before["row energies"])
    assert np.allclose(fingerprints(turned)["singular values"], before["singular values"], atol=1e-4)
    assert not np.allclose(fingerprints(turned)["values"], before["values"], rtol=1e-2)


def test_moments_known_answers():
    rows = np.tile(np.array([3, 4], np.float32), (1, H, R // 2))  # every symbol is 3 + 4j
    moments = fingerprints(rows)["moments"][0]
    assert moments[:6] == pytest.approx([(3**k + 4**k) / 2 for k in range(1, 7)])
    assert moments[6:12] == pytest.approx([5.0**k for k in range(1, 7)])
    assert moments[12:] == pytest.approx([12, 9])


def test_packets_of_a_deployed_transmitter(small_bundle):
    """Photographs through a real engine, header keys and row permutation, every packet under another V."""
    attacker = open_pictures("photos", "test").take(160, 32, 24, seed=1)
    images = open_pictures("photos", "valid").take(30, 32, 24, seed=1)
    alice = Transmitter(small_bundle), Transmitter(small_bundle, bytes(range(32)), "permute")
    clean_attacker, on_air_attacker, clean, on_air = (
        np.stack([frame.symbols for frame in transmitter.send(pictures)]).view(np.float32).reshape(len(pictures), 8, -1)
        for pictures in (attacker, images)
        for transmitter in alice
    )
    rng = np.random.default_rng(0)
    identifier = learn(clean_attacker, receive(on_air_attacker[:, None], 20, rng), np.arange(160))
    found = identify(identifier, clean, receive(on_air[:, None], 20, rng), np.arange(30))
    assert found.top1.low > 0.8


def test_what_does_not_belong_together_is_refused():
    packets = ATTACKER[:, None]
    truth = np.arange(300)
    with pytest.raises(ValueError, match=r"packets \[trials, k, h, r\] expected, got \[300, 9, 24\]"):
        learn(ATTACKER, ATTACKER, truth)
    with pytest.raises(ValueError, match="got"):
        learn(ATTACKER, packets[..., :12], truth)
    with pytest.raises(ValueError, match=r"one of 0\.\.299"):
        learn(ATTACKER, packets, truth + 1)
    with pytest.raises(ValueError, match="truth"):
        learn(ATTACKER, packets, truth[:-1])
    with pytest.raises(ValueError, match="20 packets of either half"):
        learn(ATTACKER, packets[:160], truth[:160])


def test_the_energy_of_whole_packets_names_a_picture():
    """What float32 leaves of a normalisation is enough; the packets have more rows than a picture, as a mixed one has."""
    rng = np.random.default_rng(8)
    energy = 1 + 4e-7 * rng.standard_normal(240)  # of each picture, in the clean rows and on air

    def rows_of(pictures: np.ndarray, h: int) -> np.ndarray:
        rows = rng.standard_normal((len(pictures), h, 24))
        rows *= np.sqrt(energy[pictures] / np.square(rows).mean((1, 2)))[:, None, None]
        return rows.astype(np.float32)

    clean, truth = rows_of(np.arange(240), 45), np.tile(np.arange(40), 5)
    eve = learn(clean[:200], rows_of(np.arange(200), 46)[:, None], np.arange(200))
    game = identify(eve, clean[200:], rows_of(truth + 200, 46)[:, None], truth)
    assert game.top1.low > 2 * game.chance
