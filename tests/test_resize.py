"""One edge network for pictures of any size, and the pictures that a bundle is calibrated on."""

import numpy as np
import pytest
import torch
from PIL import Image
from semseal.export.bundle import export_bundle, export_run, model_of
from semseal.runtime import channel
from semseal.runtime.bundle import open_bundle, write_bundle
from semseal.runtime.defense.header import HeaderSealer
from semseal.runtime.errors import BundleError, PictureError, TrainingError
from semseal.runtime.link import Receiver, Transmitter
from semseal.runtime.metrics import psnr
from semseal.runtime.pictures import open_pictures
from semseal.runtime.signing import owner_key
from semseal.train.config import ModelConfig, TrainConfig
from semseal.train.fit import load_run, resized, train

SIZE = (64, 44)
EDGE = TrainConfig(
    model=ModelConfig(height=32, width=24, c=4, network="edge"), snr_span_db=10.0, batch=4, steps=4, warmup=1, save_every=4,
    crop=32, precision="32-true",
)  # fmt: skip


@pytest.fixture(scope="module")
def edge_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "edge"
    train(EDGE, "photos", run)
    return run


@pytest.fixture(scope="module")
def larger(edge_bundle, tmp_path_factory):
    out = tmp_path_factory.mktemp("larger") / "bundle"
    return export_bundle(open_bundle(edge_bundle), out, SIZE, precisions=("fp32",), signing_key=owner_key())


def assert_pictures_of_torch(model, bundle, defense):
    key = bytes(32)
    images = open_pictures("photos", "valid").take(2, *SIZE)
    frames = Transmitter(bundle.path, key, defense, snr_db=10).send(images)
    got = Receiver(bundle.path, key).receive(frames)
    told = torch.full((2,), 10.0)
    with torch.no_grad():
        symbols, scales = channel.to_unit_power(model.encode(torch.from_numpy(images), told).numpy())
        known = torch.stack([torch.from_numpy(scales), torch.full((2,), 1e-4), told], dim=1)
        expected = model.decode(torch.from_numpy(symbols), known).numpy()
    assert np.abs(got - expected).max() < 2e-3  # a scale in a header is off by 0.034 %
    assert psnr(images, got).min() > 15
    headers = [HeaderSealer(key, bundle.digest).open(frame.header) for frame in frames]
    if defense != "mix":
        assert [header.scale for header in headers] == pytest.approx(scales.tolist(), rel=3.5e-4)


@pytest.mark.parametrize("defense", ["none", "permute", "mix"])
def test_another_size_of_a_bundle_gives_the_pictures_of_torch_at_that_size(edge_model, edge_bundle, larger, defense):
    assert (larger.height, larger.width, larger.h, larger.n_symbols) == (*SIZE, 16, 16 * 11 * 2)
    assert larger.snr_range == open_bundle(edge_bundle).snr_range
    assert larger.has_scale
    assert larger.digest != open_bundle(edge_bundle).digest
    assert_pictures_of_torch(resized(edge_model, *SIZE), larger, defense)


def test_the_network_of_a_bundle_is_the_one_that_it_was_made_of(edge_model, edge_bundle, larger):
    for bundle in (open_bundle(edge_bundle), larger):
        found = model_of(bundle).state_dict()
        assert found.keys() == edge_model.state_dict().keys()
        assert all(torch.equal(found[name], weights) for name, weights in edge_model.state_dict().items())


def test_another_size_keeps_the_steps_that_int8_was_trained_with(tmp_path):
    packaged = open_bundle("edge")
    steps = model_of(packaged).int8_steps()
    assert len(steps) == 4
    assert all(step.step > 0 for step in steps.values())
    assert [step.fine for step in steps.values()].count(8) == 1
    other = export_bundle(packaged, tmp_path / "other", SIZE, precisions=("int8",), signing_key=owner_key())
    found = model_of(other).int8_steps()
    assert {name: step.fine for name, step in found.items()} == {name: step.fine for name, step in steps.items()}
    assert [step.step for step in found.values()] == pytest.approx([step.step for step in steps.values()], rel=1e-6)


def test_another_size_of_a_run(edge_run, tmp_path):
    made = export_run(edge_run, tmp_path / "made", SIZE, precisions=("fp32",), signing_key=owner_key())
    assert made.snr_range == (0.0, 20.0)
    assert made.manifest["training"]["steps"] == 4
    assert_pictures_of_torch(resized(load_run(edge_run), *SIZE), made, "none")
    again = export_bundle(made, tmp_path / "again", (32, 24), precisions=("fp32",), signing_key=owner_key())
    assert again.manifest["training"] == made.manifest["training"]
    assert (again.height, again.width) == (32, 24)


@pytest.mark.parametrize("size", [(30, 24), (32, 25), (0, 4), (2, 2)])
def test_a_size_that_is_no_multiple_of_4_is_refused(edge_bundle, edge_run, tmp_path, size):
    for source, export in ((open_bundle(edge_bundle), export_bundle), (edge_run, export_run)):
        with pytest.raises(TrainingError, match=r"multiples of 4, got") as caught:
            export(source, tmp_path / "made", size, signing_key=owner_key())
        assert caught.value.hint == "choose another --size"
    assert list(tmp_path.iterdir()) == []


def test_other_networks_have_no_other_size(small_bundle, edge_bundle, tmp_path):
    for bundle in (small_bundle, "photos-10db"):
        with pytest.raises(BundleError, match="holds no edge network"):
            export_bundle(open_bundle(bundle), tmp_path / "made", SIZE, signing_key=owner_key())
    # nor has one whose sizes no edge network can have, such as one that was packed
    opened = open_bundle(small_bundle)
    files = {name: opened.read(name) for name in opened.manifest["files"]}
    for changed in ({"c": 3}, {"c": 64}, {"height": 33}):
        about = {**opened.manifest, "model": {**opened.manifest["model"], **changed}}
        odd = write_bundle(tmp_path / "odd", files, about, owner_key(), force=True)
        with pytest.raises(BundleError, match="holds no edge network"):
            export_bundle(odd, tmp_path / "made", SIZE, signing_key=owner_key())
    assert not (tmp_path / "made").exists()


def test_calibration_takes_the_pictures_of_a_folder(edge_model, edge_bundle, tmp_path):
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for i in range(60):
        coarse = rng.integers(0, 256, (4, 3, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        Image.fromarray(coarse).save(folder / f"{i:02}.png")
    options = {"precisions": ("int8",), "signing_key": owner_key()}
    made = export_bundle(open_bundle(edge_bundle), tmp_path / "made", (32, 24), calibration=f"folder:{folder}", **options)
    assert made.manifest["parity"]["data"] == "folder"  # a folder's name is nobody's business
    assert str(folder) not in (made.path / "manifest.json").read_text()
    there = open_bundle(edge_bundle)
    assert made.read("transmitter.fp32.onnx") == there.read("transmitter.fp32.onnx")
    assert made.read("transmitter.int8.onnx") != there.read("transmitter.int8.onnx")
    assert made.manifest["parity"]["rows"][0] != there.manifest["parity"]["rows"][0]
    with pytest.raises(PictureError):
        export_bundle(there, tmp_path / "other", (32, 24), calibration=f"folder:{tmp_path / 'none'}", **options)
    with pytest.raises(PictureError, match="data spec must be"):
        export_bundle(there, tmp_path / "other", (32, 24), calibration="elsewhere", **options)
    assert not (tmp_path / "other").exists()


def test_parity_of_an_edge_bundle(edge_bundle):
    parity = open_bundle(edge_bundle).manifest["parity"]
    reference, *rows = parity["rows"]
    worst = {"fp32": 1e-3, "fp16": 0.05, "int8": 0.5}  # dB; this link is small and was never trained
    for row in rows:
        allowed = max(worst.get(row[side], 0) for side in ("transmitter", "receiver"))
        assert all(abs(row["psnr"][snr] - reference["psnr"][snr]) < allowed for snr in reference["psnr"]), row
    assert all(
        difference["power_per_symbol"] == pytest.approx([1.0, 1.0], abs=1e-5) for difference in parity["differences"].values()
    )
