"""The generative Eve: what her models of pictures learn, what guides them, what she is given, and where they are kept."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from semseal.runtime import metrics
from semseal.runtime.attacks import flow, generative
from semseal.runtime.attacks.whitebox import WhiteBoxSettings
from semseal.runtime.audit import networks, wording
from semseal.runtime.audit.attacks import BY_NAME
from semseal.runtime.audit.matrix import FULL
from semseal.runtime.audit.run import audit
from semseal.runtime.audit.scene import Scene
from semseal.runtime.bundle import open_bundle
from semseal.runtime.errors import AuditError
from semseal.runtime.metrics import psnr
from semseal.runtime.ofdm import Radio

SIZES = flow.FlowSettings(width=8, steps=150, batch=8)
HEIGHT, WIDTH = 14, 12  # no multiple of a patch


def bars(count, seed):
    """Pictures of one coloured bar on grey: three numbers behind each."""
    rng = np.random.default_rng(seed)
    pictures = np.full((count, 3, HEIGHT, WIDTH), 0.5, np.float32)
    for picture in pictures:
        first = rng.integers(HEIGHT - 4)
        picture[rng.integers(3), first : first + 4] = rng.choice([0.1, 0.9])
    return pictures


@pytest.fixture(scope="module")
def prior():
    model = flow.new_flow(flow.shape_of(HEIGHT, WIDTH), SIZES.width, 0)
    return model, flow.train(model, bars(200, 0), SIZES, 0)


def halved(images, index):
    """A transmitter for the tests: the means of 2 x 2 pixels around grey, as [batch, N, 2]."""
    means = torch.nn.functional.avg_pool2d(images - 0.5, 2)
    return 2 * means.reshape(len(images), -1, 2)


def test_training_lowers_the_loss(prior):
    losses = prior[1]
    assert len(losses) == SIZES.steps
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:20])


def test_training_and_sampling_repeat_themselves(prior):
    again = flow.new_flow(flow.shape_of(HEIGHT, WIDTH), SIZES.width, 0)
    few = dataclasses.replace(SIZES, steps=3)
    other = flow.new_flow(flow.shape_of(HEIGHT, WIDTH), SIZES.width, 0)
    assert flow.train(again, bars(50, 0), few, 0) == flow.train(other, bars(50, 0), few, 0)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), other.state_dict().values(), strict=True))
    one, two = (flow.sample(prior[0], None, 3, 4, 1, seed=5) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert one.shape == (3, 3, HEIGHT, WIDTH)
    assert not np.array_equal(one, flow.sample(prior[0], None, 3, 4, 1, seed=6))


def test_what_is_received_guides(prior):
    model, sent = prior[0], bars(6, 9)
    received = halved(torch.from_numpy(sent), None).numpy().reshape(6, -1).view(np.complex64)
    settings = generative.GuidedSettings(8, 6, 10)
    found = generative.restore(model, halved, received, 60.0, 1, settings, 0)
    unguided = flow.sample(model, None, 6, 8, 1, 0)
    assert found.shape == sent.shape
    assert psnr(sent, found).mean() > psnr(sent, unguided).mean() + 6
    again = generative.restore(model, halved, received, 60.0, 1, settings, 0)
    np.testing.assert_array_equal(found, again)


def test_behind_symbols_that_fit_no_picture_is_one_of_the_models(prior):
    settings, rng = generative.GuidedSettings(8, 6, 10), np.random.default_rng(1)
    received = (50 * rng.standard_normal((4, 126))).astype(np.float32).view(np.complex64)  # no picture is that loud
    found = generative.restore(prior[0], halved, received, 10.0, 1, settings, 0)
    assert found.min() >= 0
    assert found.max() <= 1
    # white-box follows them to a picture of extremes
    followed = np.where(rng.random(found.shape) < 0.5, 0.0, 1.0)
    assert np.abs(found - bars(4, 9)).mean() < 0.25 < np.abs(followed - bars(4, 9)).mean()


def test_pictures_that_fit_stay_where_others_of_the_batch_do_not(prior):
    settings, sent = generative.GuidedSettings(8, 6, 10), bars(6, 9)
    received = halved(torch.from_numpy(sent), None).numpy().reshape(6, -1).copy()
    received[[1, 4]] = 50 * np.random.default_rng(1).standard_normal((2, received.shape[1]))
    found = generative.restore(prior[0], halved, received.view(np.complex64), 60.0, 1, settings, 0)
    fits = [0, 2, 3, 5]
    unguided = flow.sample(prior[0], None, 6, 8, 1, 0)
    assert psnr(sent[fits], found[fits]).mean() > psnr(sent[fits], unguided[fits]).mean() + 6
    assert np.isfinite(found).all()


def test_a_model_that_is_given_symbols_beats_one_that_is_not(prior):
    images, sent = bars(200, 0), bars(12, 9)

    def given(pictures):
        return np.ascontiguousarray(torch.nn.functional.avg_pool2d(torch.from_numpy(pictures) - 0.5, 2).numpy())

    model = flow.new_flow(flow.shape_beside(HEIGHT, WIDTH, 7, 6, 3), SIZES.width, 0)
    flow.train(model, images, SIZES, 0, lambda chosen, rng: given(images[chosen]))
    found = flow.sample(model, given(sent), 12, 4, 2, 0)
    assert psnr(sent, found).mean() > psnr(sent, flow.sample(prior[0], None, 12, 4, 2, 0)).mean() + 5
    assert metrics.names_its_own(metrics.psnr_of_all(sent, found)).mean() > 0.5


# where they are kept


@pytest.fixture
def forgetful(monkeypatch):
    """What a process that begins remembers of networks: nothing."""
    monkeypatch.setattr(networks, "_held", {})


def tiny(trainings, depends=0, folder=None):
    def train(model):
        trainings.append(depends)
        flow.train(model, bars(20, 0), flow.FlowSettings(8, 2, 4), 0)

    return networks.trained(folder, "prior", {"of": depends}, lambda: flow.new_flow(flow.shape_of(HEIGHT, WIDTH), 8, 0), train)


def test_a_network_is_trained_once_by_whoever_comes_first(tmp_path, forgetful, monkeypatch):
    trainings = []
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: tiny(trainings, folder=tmp_path / "networks"), range(2))
    assert trainings == [0]
    monkeypatch.setattr(networks, "_held", {})
    read = tiny(trainings, folder=tmp_path / "networks")
    assert trainings == [0]
    for model in (second, read):
        np.testing.assert_array_equal(flow.sample(first, None, 2, 3, 1, 0), flow.sample(model, None, 2, 3, 1, 0))
    assert tiny(trainings, 1, tmp_path / "networks") is not read
    assert trainings == [0, 1]
    assert len(list((tmp_path / "networks").glob("*.safetensors"))) == 2


def test_a_training_that_was_interrupted_leaves_nothing(tmp_path, forgetful):
    def interrupted(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        networks.trained(tmp_path, "prior", {"of": 0}, lambda: flow.new_flow(flow.shape_of(HEIGHT, WIDTH), 8, 0), interrupted)
    assert list(tmp_path.glob("*.safetensors")) == []
    trainings = []
    tiny(trainings, folder=tmp_path)
    assert trainings == [0]


@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_a_damaged_file_is_refused_and_named(damage, tmp_path, monkeypatch, forgetful):
    trainings = []
    tiny(trainings, folder=tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes({"cut": file.read_bytes()[:-40], "flipped": bytes(content), "other": b"{}"}[damage])
    monkeypatch.setattr(networks, "_held", {})
    with pytest.raises(AuditError, match=r"prior-\w+.safetensors is damaged"):
        tiny(trainings, folder=tmp_path)
    file.unlink()
    tiny(trainings, folder=tmp_path)
    assert trainings == [0, 0]


def test_without_a_folder_a_process_keeps_its_own(tmp_path, forgetful):
    (tmp_path / "file").write_text("")
    trainings = []
    for folder in (None, tmp_path / "file" / "networks"):
        tiny(trainings, str(folder), folder)
        tiny(trainings, str(folder), folder)
    assert len(trainings) == 2


# in an audit

STEPS = WhiteBoxSettings(2, 0.1, True)
TINY = dataclasses.replace(
    FULL, pictures=6, optimised_pictures=6, attacker_pictures=60, whitebox=STEPS, matching=STEPS, eve_snrs=(20.0,),
    main_snrs=(20.0,),
    defenses=("none", "permute+substitute", "mix"), attacks=("generative", "generative-black-box"),
    flow_width=8, flow_batch=8, prior_steps=100, generative_levels=8, generative_pulls=6, generative_refined=10,
    flow_steps=100, flow_levels=4, flow_draws=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def audited(edge_bundle, tmp_path_factory):
    out = tmp_path_factory.mktemp("audit") / "out"
    return out, audit([edge_bundle], "photos", out, TINY)


def test_she_sees_without_a_defence_and_behind_schemes_and_not_behind_mix(audited):
    rows = {(row.attack, row.defense): row for row in audited[1].rows}
    for attack in TINY.attacks:
        bare, mixed = rows[attack, "none"], rows[attack, "mix"]
        assert bare.above_mean_picture_db > 2
        assert bare.matching_advantage_db > 3
        assert bare.named > 0.6
        assert rows[attack, "permute+substitute"].matching_advantage_db > 1
        assert abs(mixed.matching_advantage_db) < 1
        assert mixed.named_chance == pytest.approx(1 / 6)
        assert rows[attack, "permute+substitute"].named_chance == pytest.approx(1 / 3)
        assert bare.named_low < bare.named <= bare.named_high


def test_her_networks_are_beside_the_cells(audited):
    kept = sorted(file.name.rpartition("-")[0] for file in (audited[0] / "networks").glob("*.safetensors"))
    assert kept == ["inverse-mix", "inverse-none", "inverse-none", "prior"]  # of none with and without known scales


def test_what_is_received_by_another_radio_is_learnt_anew(small_bundle, small_images, tmp_path, forgetful):
    """In one process, too, as in a notebook that audits one radio after the other."""
    few = dataclasses.replace(TINY, flow_steps=1, flow_levels=1, flow_draws=1)
    for radio in (Radio(), Radio(estimation="ls"), Radio()):
        asked = dataclasses.replace(few, radio=radio)
        scene = Scene(open_bundle(small_bundle), small_images(6), small_images(8, 1), asked, networks=tmp_path)
        BY_NAME["generative-black-box"].run(scene, scene.place.cell("generative-black-box", "none", 20.0), lambda seconds: None)
    assert len(list(tmp_path.glob("inverse-none-*.safetensors"))) == 2


def test_the_page_says_that_she_invents(audited):
    page = (audited[0] / "report.html").read_text()
    rows = [row for row in audited[1].rows if row.attack in TINY.attacks]
    assert len(rows) == 6
    for row in rows:
        assert wording.convincing(row).split(":")[0] in page
    nothing = next(row for row in rows if row.defense == "mix")
    said = wording.convincing(dataclasses.replace(nothing, verdict="nothing"))
    assert "are wrong, however convincing they look" in said
    assert "matching advantage" in said
