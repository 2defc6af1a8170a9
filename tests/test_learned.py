"""The learned inverses: what they can know about rows, what they practise on, and what they reconstruct."""

import dataclasses

import numpy as np
import pytest
import torch
from semseal.export.bundle import export_run
from semseal.runtime.attacks import learned
from semseal.runtime.audit.attacks import learned_inverse
from semseal.runtime.audit.matrix import FULL
from semseal.runtime.audit.practice import simulate
from semseal.runtime.audit.scene import Scene
from semseal.runtime.audit.settings import Cell
from semseal.runtime.bundle import open_bundle
from semseal.runtime.defense.defenses import BY_NAME
from semseal.runtime.metrics import matching_advantage, p_value_of_mean, psnr, psnr_of_all
from semseal.runtime.pictures import open_pictures
from semseal.runtime.signing import owner_key
from semseal.train.config import ModelConfig, TrainConfig
from semseal.train.fit import train

SILENT = 200.0  # dB: noise far below a float's last digit
SWAPS = ("substitute", "permute+substitute")


def scene_of(bundle):
    """12 pictures that are sent, 60 of the attacker's images."""
    bundle = open_bundle(bundle)
    size = bundle.height, bundle.width
    images, attacker = open_pictures("photos", "valid").take(12, *size), open_pictures("photos", "test").take(60, *size, seed=1)
    return Scene(bundle, images, attacker, FULL, threads=1)


@pytest.fixture(scope="module")
def small(small_bundle):
    return scene_of(small_bundle)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A link of 9 rows, of which 4 are swapped: it need not be good."""
    folder = tmp_path_factory.mktemp("odd")
    config = TrainConfig(model=ModelConfig(height=36, width=24, c=4), batch=8, steps=2, warmup=1, save_every=2)
    train(config, "photos", folder / "run")
    export_run(folder / "run", folder / "bundle", precisions=("fp32",), signing_key=owner_key())
    return scene_of(folder / "bundle")


@pytest.fixture(params=["small", "odd"])
def scene(request):
    return request.getfixturevalue(request.param)


def together(scene, defense, chosen):
    """The pictures on air [n, streams]: beside each another one, if rows are swapped."""
    return np.stack([chosen, (chosen + 1 + np.arange(len(chosen)) % 50) % 60], 1)[:, : BY_NAME[defense].streams]


def simulated(scene, defense, snr, chosen):
    """As Eve practises: [n, streams, h, w*c], the frame of picture i first in group i."""
    return simulate(scene, BY_NAME[defense], snr)(together(scene, defense, chosen), np.random.default_rng(5))


def transmitted(scene, defense, snr, chosen):
    """The same by the real transmitter."""
    return scene.received_rows(scene.attacker_images[together(scene, defense, chosen).ravel()], BY_NAME[defense], snr, 1)


both = pytest.mark.parametrize("on_air", [simulated, transmitted])


def origin(rows, clean):
    """Of which picture [...], and which row of it [...], every row of [..., w*c] is a copy; ``clean`` is [m, h, w*c]."""
    every = clean.reshape(-1, clean.shape[-1])
    distance = np.stack([np.abs(row - every).max(axis=1) for row in rows.reshape(-1, rows.shape[-1])])
    assert distance.min(axis=1).max() < 1e-4
    found = distance.argmin(axis=1).reshape(rows.shape[:-1])
    return found // clean.shape[1], found % clean.shape[1]


# what is practised on ----------------------------------------------------------------------------------------------------


@both
def test_undefended_rows_are_the_clean_ones(scene, on_air):
    chosen = np.arange(60)[::-1]
    rows = on_air(scene, "none", SILENT, chosen)
    assert rows.shape == (60, 1, *scene.row_shape)
    assert rows.dtype == np.float32
    assert np.abs(rows[:, 0] - scene.attacker_rows[chosen]).max() < 1e-5


@both
def test_permuted_rows_are_those_of_the_picture_in_an_order_of_their_own(scene, on_air):
    rows = on_air(scene, "permute", SILENT, np.arange(60))
    picture, row = origin(rows, scene.attacker_rows)
    assert rows.shape[1] == 1
    assert (picture == np.arange(60)[:, None, None]).all()
    assert (np.sort(row, axis=2) == np.arange(scene.bundle.h)).all()
    # of 256 permutations, or of all
    assert len(np.unique(row[:, 0], axis=0)) > 40


@both
@pytest.mark.parametrize("defense", SWAPS)
def test_a_pair_swaps_half_of_its_rows_at_the_same_positions(scene, on_air, defense):
    h = scene.bundle.h
    rows = on_air(scene, defense, SILENT, np.arange(60))
    picture, row = origin(rows, scene.attacker_rows)
    assert rows.shape == (60, 2, *scene.row_shape)
    mine = picture == np.arange(60)[:, None, None]
    partner = picture.reshape(-1, 2 * h)[~mine.reshape(-1, 2 * h)].reshape(-1, h)
    assert (partner == partner[:, :1]).all()  # one other picture
    assert len(np.unique(partner[:, 0])) > 25
    assert (mine[:, 0].sum(axis=1) == h - h // 2).all()
    assert (mine[:, 0] != mine[:, 1]).all()
    assert len(np.unique(mine[:, 0], axis=0)) > 25
    pooled = np.sort((picture * h + row).reshape(-1, 2 * h), axis=1)
    assert (np.diff(pooled) > 0).all()  # every row of the two once
    if defense == "substitute":
        assert (row == np.arange(h)).all()
    else:
        assert (row[:, 0] == row[:, 1]).mean() < 2 / h  # two permutations, not one


def test_every_order_and_every_half_is_as_likely_in_practice(odd):
    n, h = 3000, odd.bundle.h
    chosen = np.zeros(n, int)
    _, row = origin(simulated(odd, "permute", SILENT, chosen), odd.attacker_rows[:1])
    counts = (row[:, 0, :, None] == np.arange(h)).sum(axis=0)  # position, row
    assert np.abs(counts - n / h).max() < 4.5 * np.sqrt(n * (1 / h) * (1 - 1 / h))
    rows = simulated(odd, "substitute", SILENT, chosen)
    mine = np.abs(rows[:, 0] - odd.attacker_rows[0]).max(axis=2) < 1e-4
    share = 1 - h // 2 / h
    assert np.abs(mine.mean(axis=0) - share).max() < 4.5 * np.sqrt(share * (1 - share) / n)


@both
def test_mixed_packets_keep_nothing(small, on_air):
    one = np.zeros(60, int)
    packets = on_air(small, "mix", SILENT, one)
    assert packets.shape == (60, 1, *small.row_shape)
    clean, packets = small.attacker_rows[0].ravel(), packets.reshape(60, -1)
    # a tenth of what is on air, so not even its energy; 0.013 is the deviation of the mean of 60
    assert np.square(packets).mean() == pytest.approx(0.5, abs=0.04)
    alike = np.corrcoef(np.concatenate([clean[None], packets])) - np.eye(61)
    assert np.abs(alike).max() < 0.5  # 0.07 is their standard deviation
    # neither signs nor a shuffle leave other magnitudes
    moved = np.abs(np.sort(np.abs(packets)) - np.sort(np.abs(clean))).max(axis=1)
    assert moved.min() > 0.05


@pytest.mark.parametrize("defense", ["none", "permute", "substitute", "permute+substitute", "mix"])
def test_practice_is_another_at_every_draw_and_the_same_again_for_a_seed(small, defense):
    # the noise of a defended draw would hide that its scheme was the same
    draw = simulate(small, BY_NAME[defense], 10 if defense == "none" else SILENT)
    chosen = together(small, defense, np.arange(16))
    rng = np.random.default_rng(1)
    first, second = draw(chosen, rng), draw(chosen, rng)
    assert first.dtype == np.float32
    # of 8 rows the same half is swapped once in 70 draws
    assert (np.abs(first - second).reshape(-1, *small.row_shape).max(axis=(1, 2)) > 1e-3).mean() > 0.8
    assert np.array_equal(draw(chosen, np.random.default_rng(1)), first)


@both
@pytest.mark.parametrize("snr", [0.0, 10.0])
def test_noise_has_the_power_of_the_channel(small, on_air, snr):
    noise = on_air(small, "none", snr, np.arange(60))[:, 0] - small.attacker_rows
    power = 2 * np.square(noise).mean()  # of a complex symbol
    assert power == pytest.approx(10 ** (-snr / 10), rel=4 * np.sqrt(2 / noise.size))
    assert abs(noise.mean()) < 4 * np.sqrt(power / 2 / noise.size)


@both
def test_every_frame_of_a_pair_has_noise_of_its_own(small, on_air):
    """Two frames of one picture: whatever is swapped, their rows are the clean ones."""
    alone = Scene(small.bundle, small.images, small.attacker_images[:1].repeat(60, axis=0), FULL, threads=1)
    noise = on_air(alone, "substitute", 10, np.arange(60)) - alone.attacker_rows[0]
    for frame in (0, 1):
        assert 2 * np.square(noise[:, frame]).mean() == pytest.approx(0.1, rel=4 * np.sqrt(4 / noise.size))
    assert abs(np.corrcoef(noise[:, 0].ravel(), noise[:, 1].ravel())[0, 1]) < 4 / np.sqrt(noise.size / 2)


# what a network can know -------------------------------------------------------------------------------------------------

H, W, C = 5, 3, 4


def new_network(streams, ordered):
    """Pictures of 18 x 14 are no multiple of the features. Doubles, so that equal means equal."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return learned.Inverse(streams, H, W, C, 18, 14, ordered).double().eval()


def some_rows(streams, batch=3):
    return torch.from_numpy(np.random.default_rng(4).standard_normal((batch, streams, H, W * C)))


def shuffled(received):
    """Rows of every frame in another order, no frame's like another's."""
    rng = np.random.default_rng(6)
    order = np.stack([np.roll(rng.permutation(H), k) for k in range(received.shape[0] * received.shape[1])])
    return received.gather(2, torch.from_numpy(order.reshape(*received.shape[:2], H, 1)).expand_as(received))


def apart(one, two):
    """The largest difference within each of a batch."""
    return (one - two).detach().abs().flatten(1).max(dim=1).values.numpy()


@pytest.mark.parametrize("streams", [1, 2])
def test_a_set_of_rows_has_no_order(streams):
    network, received = new_network(streams, ordered=False), some_rows(streams)
    assert (shuffled(received) != received).flatten(1).any(dim=1).all()
    for part in (network.encoder, network):
        assert apart(part(received), part(shuffled(received))).max() < 1e-10
    assert network.encoder(received).shape == (3, 32, H, W)


def test_a_set_of_rows_knows_the_frame_of_each():
    network, received = new_network(2, ordered=False), some_rows(2)
    moved = received.clone()
    moved[:, 0, 2], moved[:, 1, 4] = received[:, 1, 4], received[:, 0, 2]
    for other in (moved, received.flip(1)):
        assert apart(network.encoder(other), network.encoder(received)).min() > 1e-4
        assert apart(network(other), network(received)).min() > 1e-6


@pytest.mark.parametrize("streams", [1, 2])
def test_ordered_rows_have_an_order(streams):
    network, received = new_network(streams, ordered=True), some_rows(streams)
    assert apart(network(shuffled(received)), network(received)).min() > 1e-4
    if streams == 2:
        assert apart(network(received.flip(1)), network(received)).min() > 1e-4


def test_ordered_rows_become_positions_in_the_features():
    """Row, column, channel: what a row of symbols holds, channel fastest."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = learned.Inverse(1, 40, 2, 2, 80, 4, ordered=True).double().eval()
    features = []
    network.enter.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    received = torch.arange(40 * 2 * 2, dtype=torch.float64).reshape(1, 1, 40, 4)
    network(received)
    row, column, channel = 7, 1, 0
    assert features[0].shape == (1, 2, 40, 2)
    assert features[0][0, channel, row, column] == received[0, 0, row, 2 * column + channel]


@pytest.mark.parametrize("ordered", [False, True])
def test_pictures_of_a_batch_do_not_meet(ordered):
    network, received = new_network(2, ordered), some_rows(2)
    pictures = network(received)
    assert pictures.shape == (3, 2, 3, 18, 14)
    assert apart(pictures[1:2], network(received[1:2])).max() < 1e-10
    assert apart(pictures[1:2], pictures[2:]).min() > 1e-6


# what is learned ---------------------------------------------------------------------------------------------------------


def trained(scene, defense, snr, steps, ordered=True, advance=lambda pictures: None):
    bundle, (h, r) = scene.bundle, scene.row_shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(scene.settings.seed)
        network = learned.Inverse(BY_NAME[defense].streams, h, r // 4, 4, bundle.height, bundle.width, ordered)
    practice = simulate(scene, BY_NAME[defense], snr)
    return learned.train(network, practice, scene.attacker_images, steps=steps, seed=scene.settings.seed, advance=advance)


def above_mean_picture(scene, pictures):
    mean = np.broadcast_to(scene.attacker_images.mean(axis=0), scene.images.shape)
    return (psnr(scene.images, pictures) - psnr(scene.images, mean)).mean()


def test_training_sees_an_undefended_picture_and_not_a_mixed_one(small):
    told = []
    network = trained(small, "none", 20, 120, advance=told.append)
    assert told == [learned.BATCH_SIZE] * 120
    received = small.received_rows(small.images, BY_NAME["none"], 20, 1)
    assert above_mean_picture(small, learned.invert(network, received)[:, 0]) > 2
    # it is the rows that tell it
    assert above_mean_picture(small, learned.invert(network, np.roll(received, 1, axis=0))[:, 0]) < 0
    network = trained(small, "mix", 20, 80)
    received = small.received_rows(small.images, BY_NAME["mix"], 20, 1)
    assert above_mean_picture(small, learned.invert(network, received)[:, 0]) < 1


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11])
def test_any_number_of_steps_trains(steps):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = learned.Inverse(1, H, W, C, 18, 14, ordered=True)
    before = network.pixels.weight.detach().clone()
    images = np.random.default_rng(0).random((4, 3, 18, 14), np.float32)
    told = []
    learned.train(
        network,
        lambda chosen, rng: rng.standard_normal((*chosen.shape, H, W * C), np.float32),
        images,
        steps=steps,
        seed=0,
        advance=told.append,
    )
    assert told == [learned.BATCH_SIZE] * steps
    moved = (network.pixels.weight - before).abs().max()
    assert torch.isfinite(moved)
    assert moved > 0


@pytest.mark.parametrize(("defense", "ordered"), [("permute", False), ("mix", True)])
def test_answers_are_pictures(small, defense, ordered):
    network = trained(small, defense, 20, 3, ordered)
    received = small.received_rows(small.attacker_images[:40], BY_NAME[defense], 20, 1)
    pictures = learned.invert(network, received)
    assert pictures.shape == (40, 1, 3, 32, 24)
    assert pictures.dtype == np.float32
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert np.allclose(learned.invert(network, received[35:36]), pictures[35:36], atol=1e-5)
    loud = learned.invert(network, 1e3 * received)
    assert loud.min() >= 0
    assert loud.max() <= 1


def test_the_set_inverse_learns_too(small):
    """The encoder passes on what tells pictures apart: after so few steps, of those it has practised on."""
    network = trained(small, "permute", 20, 150, ordered=False)
    pictures = learned.invert(network, small.received_rows(small.attacker_images, BY_NAME["permute"], 20, 1))[:, 0]
    fit = matching_advantage(psnr_of_all(small.attacker_images, pictures))
    assert p_value_of_mean(fit) < 1e-3, fit.mean()


def asked(scene, defense, steps, advance):
    """What an audit asks of the learned inverse, with so many steps of training."""
    settings = dataclasses.replace(FULL, learned_steps=steps)
    again = Scene(scene.bundle, scene.images, scene.attacker_images, settings, threads=1)
    return learned_inverse(again, Cell("learned-inverse", defense, 10.0, 20.0), True, advance)


@pytest.mark.parametrize("defense", SWAPS)
def test_every_picture_of_a_pair_is_asked_for(small, defense):
    told = []
    pictures = asked(small, defense, 3, told.append)
    assert told == [learned.BATCH_SIZE] * 3
    assert pictures.shape == small.images.shape
    pairs = pictures.reshape(6, 2, -1)
    assert (np.abs(pairs[:, 0] - pairs[:, 1]).max(axis=1) > 1e-4).all()


def test_the_pictures_of_a_pair_are_no_blend_and_come_in_the_better_order(small):
    """Nothing tells whose frame is whose, so an Eve who had to say would answer twice with the average of the two."""
    pictures = asked(small, "substitute", 150, lambda pictures: None)
    answers, sent = (part.reshape(6, 2, -1) for part in (pictures, small.images))
    between = [np.square(pair[:, 0] - pair[:, 1]).mean() for pair in (answers, sent)]
    assert between[0] > 0.1 * between[1]
    right = np.square(answers - sent).mean(axis=(1, 2))
    assert (right <= np.square(answers[:, ::-1] - sent).mean(axis=(1, 2)) + 1e-7).mean() > 0.8
