import json
import shutil

import pytest
from semseal.runtime.bundle import BundleError, open_bundle, packaged_bundle, write_bundle
from semseal.runtime.link import Receiver, Transmitter


@pytest.fixture
def copy(small_bundle, tmp_path):
    return shutil.copytree(small_bundle, tmp_path / "bundle")


@pytest.mark.parametrize(("side", "use"), [("transmitter", Transmitter), ("receiver", Receiver)])
def test_a_changed_graph_is_refused_before_it_is_parsed(copy, side, use):
    graph = copy / f"{side}.fp32.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=f"{side}.fp32.onnx does not match its digest"):
        use(copy)
    graph.write_bytes(b"")
    with pytest.raises(BundleError, match="does not match its digest"):
        use(copy)
    graph.unlink()
    with pytest.raises(BundleError, match="No such file"):
        use(copy)


def test_damaged_manifests_are_refused(copy):
    file = copy / "manifest.json"
    good = json.loads(file.read_text())
    model = good["model"]
    changes = ["{", "[]", "{}"]
    for bad in (
        {"format": 2},
        {"model": {}},
        {"files": []},
        {"model": {**model, "digest": "00"}},
        {"model": {**model, "h": 0}},
    ):
        changes.append(json.dumps({**good, **bad}))
    changes.append(json.dumps({key: value for key, value in good.items() if key != "snr_db"}))
    for text in changes:
        file.write_text(text)
        with pytest.raises(BundleError, match=r"manifest.json"):
            open_bundle(copy)


def test_what_is_no_bundle_is_named(tmp_path):
    with pytest.raises(BundleError, match=r"is not a bundle.*semseal export"):
        open_bundle(tmp_path)


def test_a_folder_with_other_files_is_not_written_to(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BundleError, match="neither empty nor a bundle"):
        write_bundle(tmp_path, {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("snr", [0, 10, 20])
def test_packaged_bundles_are_whole_and_small(snr):
    bundle = open_bundle(packaged_bundle(f"photos-{snr}db"))
    assert bundle.snr_db == snr
    assert (bundle.height, bundle.width, bundle.manifest["model"]["c"]) == (180, 180, 16)
    assert bundle.manifest["training"]["data"] == "photos"
    assert len(bundle.graph("transmitter")) + len(bundle.graph("receiver")) < 1_000_000
