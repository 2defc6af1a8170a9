"""The bundles that ship inside the package."""

import shutil

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from semseal.export.bundle import model_of
from semseal.runtime.bundle import open_bundle, packaged_bundle, write_bundle
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import BundleError
from semseal.runtime.metrics import psnr
from semseal.runtime.pictures import open_pictures
from semseal.runtime.signing import public_text
from semseal.train.edge import to_unit_power

OWNER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)


@pytest.mark.parametrize(("name", "snrs"), [("edge", (0, 20)), ("edge-quality", (0, 20)), ("photos-10db", (10, 10))])
def test_packaged_bundles_are_whole(name, snrs):
    bundle = open_bundle(packaged_bundle(name))
    assert bundle.snr_range == snrs
    assert bundle.snr_db == 10
    assert bundle.has_scale == name.startswith("edge")
    assert (bundle.height, bundle.width, bundle.manifest["model"]["c"]) == (180, 180, 16)
    assert bundle.manifest["training"]["data"].partition(":")[0] == ("folder" if bundle.has_scale else "photos")
    for side in ("transmitter", "receiver"):
        for precision in ("fp32", "fp16", "int8"):
            assert bundle.graph(side, precision)


def test_packaged_bundles_are_small_and_the_edge_ones_have_one_transmitter():
    folders = [packaged_bundle(name) for name in ("edge", "edge-quality", "photos-10db")]
    assert sorted(folders) == sorted(folders[0].parent.iterdir())
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) < 8_000_000
    edge, quality = open_bundle("edge"), open_bundle("edge-quality")
    for precision in ("fp32", "fp16", "int8"):
        assert edge.graph("transmitter", precision) == quality.graph("transmitter", precision)


@pytest.mark.parametrize("name", ["edge", "edge-quality"])
def test_training_rounded_as_the_int8_graph_does(name):
    bundle = open_bundle(name)
    network = model_of(bundle)
    images = torch.from_numpy(open_pictures("photos", "valid").take(2, 180, 180))
    told = torch.tensor([0.0, 20.0])
    power = 10 ** (-told / 10)
    drawn = torch.randn(2, 45, 45 * 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows, scale = to_unit_power(network.encode_rows(images, told))
        received = rows + drawn * (power / 2).sqrt()[:, None, None]
        side = torch.stack([scale, power, told], dim=1)
        exact = network.eval().decode_rows(received, side).clamp(0, 1).numpy()
        rounded = network.train().decode_rows(received, side).clamp(0, 1).numpy()
    symbols, index = received.reshape(2, -1, 2).numpy(), np.arange(90, dtype=np.int32).reshape(2, 45)
    deployed = open_engine("onnxruntime-cpu", bundle.graph("receiver", "int8"))(symbols, index, side.numpy())
    # not pixel by pixel: what lies at the border of two levels may fall to either side
    without, trained, runs = (psnr(images.numpy(), answer) for answer in (exact, rounded, deployed))
    assert np.abs(trained - runs).max() < 0.03 + 0.2 * np.abs(without - runs).max()


def test_packaged_bundles_need_no_owner_in_their_place_and_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMSEAL_OWNER", public_text(OWNER))
    monkeypatch.chdir(tmp_path)
    place = packaged_bundle("photos-10db")
    assert open_bundle("photos-10db") == open_bundle(place) == open_bundle(str(place))
    shutil.copytree(place, tmp_path / "copy")
    (tmp_path / "link").symlink_to(place)
    around = place.parent / ".." / place.parent.name / place.name
    for path in (tmp_path / "copy", tmp_path / "link", around):
        with pytest.raises(BundleError, match="is not signed"):
            open_bundle(path)
    (tmp_path / "copy").rename(tmp_path / "photos-10db")  # a folder of that name comes first
    with pytest.raises(BundleError, match="is not signed"):
        open_bundle("photos-10db")


def test_only_a_packaged_bundle_is_written_without_signature(tmp_path):
    packaged = open_bundle("photos-10db")
    files = {name: packaged.read(name) for name in packaged.manifest["files"]}
    with pytest.raises(BundleError, match="a bundle is signed"):
        write_bundle(tmp_path / "b", files, packaged.manifest, None)
    with pytest.raises(BundleError, match="a bundle is signed"):
        write_bundle(packaged.path, files, packaged.manifest, OWNER, force=True)
    assert list(tmp_path.iterdir()) == []
