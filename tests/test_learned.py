"""The learned inverses: what they can know of rows, what they practise on, and what they answer."""

import numpy as np
import pytest
import torch
from semseal.export.bundle import export_run
from semseal.runtime.attacks import adaptive, learned
from semseal.runtime.bundle import open_bundle
from semseal.runtime.metrics import luck_of_mean, own_effect, psnr, psnr_of_all
from semseal.runtime.pictures import open_pictures
from semseal.runtime.scene import Scene
from semseal.runtime.signing import owner_key
from semseal.train.config import ModelConfig, TrainConfig
from semseal.train.fit import train

SILENT = 200.0  # dB: noise far below a float's last digit
SWAPS = ("substitute", "permute+substitute")


def scene_of(bundle):
    """12 pictures that are sent, 60 of Eve's."""
    bundle = open_bundle(bundle)
    size = bundle.height, bundle.width
    images, own = open_pictures("photos", "valid").take(12, *size), open_pictures("photos", "test").take(60, *size, seed=1)
    return Scene(bundle, images, own, threads=1)


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
    return np.stack([chosen, (chosen + 1 + np.arange(len(chosen)) % 50) % 60], 1)[:, : scene.streams(defense)]


def simulated(scene, defense, snr, chosen):
    """As Eve practises: [n, streams, h, w*c], the frame of picture i first in group i."""
    return adaptive._simulate(scene, defense, snr)(together(scene, defense, chosen), np.random.default_rng(5))


def transmitted(scene, defense, snr, chosen):
    """The same by the real transmitter."""
    return scene.hear(scene.own[together(scene, defense, chosen).ravel()], defense, snr, 1)


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
    assert rows.shape == (60, 1, *scene.rows)
    assert rows.dtype == np.float32
    assert np.abs(rows[:, 0] - scene.own_rows[chosen]).max() < 1e-5


@both
def test_permuted_rows_are_those_of_the_picture_in_an_order_of_their_own(scene, on_air):
    rows = on_air(scene, "permute", SILENT, np.arange(60))
    picture, row = origin(rows, scene.own_rows)
    assert rows.shape[1] == 1
    assert (picture == np.arange(60)[:, None, None]).all()
    assert (np.sort(row, axis=2) == np.arange(scene.bundle.h)).all()
    # of 256 permutations, or of all
    assert len(np.unique(row[:, 0], axis=0)) > 40


@both
@pytest.mark.parametrize("defense", SWAPS)
def test_a_pair_swaps_half_of_its_rows_at_the_same_places(scene, on_air, defense):
    h = scene.bundle.h
    rows = on_air(scene, defense, SILENT, np.arange(60))
    picture, row = origin(rows, scene.own_rows)
    assert rows.shape == (60, 2, *scene.rows)
    own = picture == np.arange(60)[:, None, None]
    partner = picture.reshape(-1, 2 * h)[~own.reshape(-1, 2 * h)].reshape(-1, h)
    assert (partner == partner[:, :1]).all()  # one other picture
    assert len(np.unique(partner[:, 0])) > 25
    assert (own[:, 0].sum(axis=1) == h - h // 2).all()
    assert (own[:, 0] != own[:, 1]).all()
    assert len(np.unique(own[:, 0], axis=0)) > 25
    pooled = np.sort((picture * h + row).reshape(-1, 2 * h), axis=1)
    assert (np.diff(pooled) > 0).all()  # every row of the two once
    if defense == "substitute":
        assert (row == np.arange(h)).all()
    else:
        assert (row[:, 0] == row[:, 1]).mean() < 2 / h  # two permutations, not one


def test_every_order_and_every_half_is_as_likely_in_practice(odd):
    n, h = 3000, odd.bundle.h
    chosen = np.zeros(n, int)
    _, row = origin(simulated(odd, "permute", SILENT, chosen), odd.own_rows[:1])
    counts = (row[:, 0, :, None] == np.arange(h)).sum(axis=0)  # place, row
    assert np.abs(counts - n / h).max() < 4.5 * np.sqrt(n * (1 / h) * (1 - 1 / h))
    rows = simulated(odd, "substitute", SILENT, chosen)
    mine = np.abs(rows[:, 0] - odd.own_rows[0]).max(axis=2) < 1e-4
    share = 1 - h // 2 / h
    assert np.abs(mine.mean(axis=0) - share).max() < 4.5 * np.sqrt(share * (1 - share) / n)


@both
def test_mixed_packets_keep_nothing(small, on_air):
    one = np.zeros(60, int)
    packets = on_air(small, "mix", SILENT, one)
    assert packets.shape == (60, 1, *small.rows)
    clean, packets = small.own_rows[0].ravel(), packets.reshape(60, -1)
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
    draw = adaptive._simulate(small, defense, 10 if defense == "none" else SILENT)
    chosen = together(small, defense, np.arange(16))
    rng = np.random.default_rng(1)
    first, second = draw(chosen, rng), draw(chosen, rng)
    assert first.dtype == np.float32
    # of 8 rows the same half is swapped once in 70 draws
    assert (np.abs(first - second).reshape(-1, *small.rows).max(axis=(1, 2)) > 1e-3).mean() > 0.8
    assert np.array_equal(draw(chosen, np.random.default_rng(1)), first)


@both
@pytest.mark.parametrize("snr", [0.0, 10.0])
def test_noise_has_the_power_of_the_channel(small, on_air, snr):
    noise = on_air(small, "none", snr, np.arange(60))[:, 0] - small.own_rows
    power = 2 * np.square(noise).mean()  # of a complex symbol
    assert power == pytest.approx(10 ** (-snr / 10), rel=4 * np.sqrt(2 / noise.size))
    assert abs(noise.mean()) < 4 * np.sqrt(power / 2 / noise.size)


@both
def test_every_frame_of_a_pair_has_noise_of_its_own(small, on_air):
    """Two frames of one picture: whatever is swapped, their rows are the clean ones."""
    alone = Scene(small.bundle, small.images, small.own[:1].repeat(60, axis=0), threads=1)
    noise = on_air(alone, "substitute", 10, np.arange(60)) - alone.own_rows[0]
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


def shuffled(heard):
    """Rows of every frame in another order, no frame's like another's."""
    rng = np.random.default_rng(6)
    order = np.stack([np.roll(rng.permutation(H), k) for k in range(heard.shape[0] * heard.shape[1])])
    return heard.gather(2, torch.from_numpy(order.reshape(*heard.shape[:2], H, 1)).expand_as(heard))


def apart(one, two):
    """The largest difference within each of a batch."""
    return (one - two).detach().abs().flatten(1).max(dim=1).values.numpy()


@pytest.mark.parametrize("streams", [1, 2])
def test_a_set_of_rows_has_no_order(streams):
    network, heard = new_network(streams, ordered=False), some_rows(streams)
    assert (shuffled(heard) != heard).flatten(1).any(dim=1).all()
    for part in (network.encoder, network):
        assert apart(part(heard), part(shuffled(heard))).max() < 1e-10
    assert network.encoder(heard).shape == (3, 32, H, W)


def test_a_set_of_rows_knows_the_frame_of_each():
    network, heard = new_network(2, ordered=False), some_rows(2)
    moved = heard.clone()
    moved[:, 0, 2], moved[:, 1, 4] = heard[:, 1, 4], heard[:, 0, 2]
    for other in (moved, heard.flip(1)):
        assert apart(network.encoder(other), network.encoder(heard)).min() > 1e-4
        assert apart(network(other), network(heard)).min() > 1e-6


@pytest.mark.parametrize("streams", [1, 2])
def test_ordered_rows_have_an_order(streams):
    network, heard = new_network(streams, ordered=True), some_rows(streams)
    assert apart(network(shuffled(heard)), network(heard)).min() > 1e-4
    if streams == 2:
        assert apart(network(heard.flip(1)), network(heard)).min() > 1e-4


def test_ordered_rows_become_places_of_the_features():
    """Row, column, channel: what a row of symbols holds, channel fastest."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = learned.Inverse(1, 40, 2, 2, 80, 4, ordered=True).double().eval()
    features = []
    network.enter.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    heard = torch.arange(40 * 2 * 2, dtype=torch.float64).reshape(1, 1, 40, 4)
    network(heard)
    row, column, channel = 7, 1, 0
    assert features[0].shape == (1, 2, 40, 2)
    assert features[0][0, channel, row, column] == heard[0, 0, row, 2 * column + channel]


@pytest.mark.parametrize("ordered", [False, True])
def test_pictures_of_a_batch_do_not_meet(ordered):
    network, heard = new_network(2, ordered), some_rows(2)
    pictures = network(heard)
    assert pictures.shape == (3, 2, 3, 18, 14)
    assert apart(pictures[1:2], network(heard[1:2])).max() < 1e-10
    assert apart(pictures[1:2], pictures[2:]).min() > 1e-6


# what is learned ---------------------------------------------------------------------------------------------------------


def trained(scene, defense, snr, steps, ordered=True, advance=lambda pictures: None):
    bundle, (h, r) = scene.bundle, scene.rows
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(scene.seed)
        network = learned.Inverse(scene.streams(defense), h, r // 4, 4, bundle.height, bundle.width, ordered)
    simulate = adaptive._simulate(scene, defense, snr)
    return learned.train(network, simulate, scene.own, steps=steps, seed=scene.seed, advance=advance)


def above_mean_picture(scene, pictures):
    mean = np.broadcast_to(scene.own.mean(axis=0), scene.images.shape)
    return (psnr(scene.images, pictures) - psnr(scene.images, mean)).mean()


def test_training_sees_an_undefended_picture_and_not_a_mixed_one(small):
    told = []
    network = trained(small, "none", 20, 80, advance=told.append)
    assert told == [learned.BATCH] * 80
    heard = small.hear(small.images, "none", 20, 1)
    assert above_mean_picture(small, learned.invert(network, heard)[:, 0]) > 2
    # it is the rows that tell it
    assert above_mean_picture(small, learned.invert(network, np.roll(heard, 1, axis=0))[:, 0]) < 0
    network = trained(small, "mix", 20, 80)
    assert above_mean_picture(small, learned.invert(network, small.hear(small.images, "mix", 20, 1))[:, 0]) < 1


@pytest.mark.parametrize(("defense", "ordered"), [("permute", False), ("mix", True)])
def test_answers_are_pictures(small, defense, ordered):
    network = trained(small, defense, 20, 3, ordered)
    heard = small.hear(small.own[:40], defense, 20, 1)
    pictures = learned.invert(network, heard)
    assert pictures.shape == (40, 1, 3, 32, 24)
    assert pictures.dtype == np.float32
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert np.allclose(learned.invert(network, heard[35:36]), pictures[35:36], atol=1e-5)
    loud = learned.invert(network, 1e3 * heard)
    assert loud.min() >= 0
    assert loud.max() <= 1


def test_the_set_inverse_learns_too(small):
    """The encoder passes on what tells pictures apart: after so few steps, of those it has practised on."""
    network = trained(small, "permute", 20, 100, ordered=False)
    pictures = learned.invert(network, small.hear(small.own, "permute", 20, 1))[:, 0]
    fit = own_effect(psnr_of_all(small.own, pictures))
    assert luck_of_mean(fit) < 1e-3, fit.mean()


@pytest.mark.parametrize("defense", SWAPS)
def test_every_picture_of_a_pair_is_asked_for(small, defense):
    told = []
    pictures = adaptive.learned_inverse(small, defense, 20, True, 3, told.append)
    assert told == [learned.BATCH] * 3
    assert pictures.shape == small.images.shape
    pairs = pictures.reshape(6, 2, -1)
    assert (np.abs(pairs[:, 0] - pairs[:, 1]).max(axis=1) > 1e-4).all()


def test_the_pictures_of_a_pair_are_no_blend_and_come_in_the_better_order(small):
    """Nothing tells whose frame is whose, so an Eve who had to say would answer twice with the average of the two."""
    pictures = adaptive.learned_inverse(small, "substitute", 20, True, 150, lambda pictures: None)
    answers, sent = (part.reshape(6, 2, -1) for part in (pictures, small.images))
    between = [np.square(pair[:, 0] - pair[:, 1]).mean() for pair in (answers, sent)]
    assert between[0] > 0.1 * between[1]
    right = np.square(answers - sent).mean(axis=(1, 2))
    assert (right <= np.square(answers[:, ::-1] - sent).mean(axis=(1, 2)) + 1e-7).mean() > 0.8
