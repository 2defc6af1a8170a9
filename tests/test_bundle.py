import json
import shutil

import pytest
from semseal.runtime.bundle import BundleError, open_bundle, packaged_bundle, write_bundle
from semseal.runtime.engine import EngineError
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
    sizes = [{"h": 0}, {"h": 10**12}, {"height": float("inf")}, {"width": "wide"}, {"digest": "00" * 32}, {"digest": "xyz"}]
    bad = [{"model": {**model, **size}} for size in sizes]
    bad += [{"format": 2}, {"model": {}}, {"files": []}, {"files": {}}, {"precisions": [1]}, {"snr_db": float("inf")}]
    bad += [{"files": {name: {"size": 1} for name in good["files"]}}]
    changes = ["{", "[]", "{}", "[" * 100_000, *(json.dumps({**good, **change}) for change in bad)]
    changes.append(json.dumps({key: value for key, value in good.items() if key != "snr_db"}))
    for text in changes:
        file.write_text(text)
        with pytest.raises(BundleError, match=r"manifest.json"):
            open_bundle(copy)


def test_a_graph_swapped_together_with_its_entry_is_another_model(copy):
    file = copy / "manifest.json"
    good = json.loads(file.read_text())
    data = (copy / "receiver.fp32.onnx").read_bytes()
    (copy / "transmitter.fp32.onnx").write_bytes(data)
    good["files"]["transmitter.fp32.onnx"] = good["files"]["receiver.fp32.onnx"]
    file.write_text(json.dumps(good))
    with pytest.raises(BundleError, match="digest is not that of its graphs"):
        open_bundle(copy)


def test_bytes_that_are_no_graph_are_an_engine_error(tmp_path):
    graphs = {"transmitter.fp32.onnx": b"no graph", "receiver.fp32.onnx": b"neither"}
    model = {"height": 8, "width": 8, "h": 2, "w": 2, "c": 2}
    write_bundle(tmp_path / "b", graphs, {"model": model, "snr_db": 10.0, "precisions": ["fp32"]})
    with pytest.raises(EngineError, match="cannot load the graph"):
        Transmitter(tmp_path / "b")


def test_an_interrupted_write_keeps_the_older_bundle_and_can_be_tried_again(copy, monkeypatch):
    from semseal.runtime import bundle as module

    before = open_bundle(copy).manifest
    graphs = {f"{side}.fp32.onnx": open_bundle(copy).graph(side) for side in ("transmitter", "receiver")}

    def interrupt(path, data):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_atomically", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(copy, graphs, {**before, "snr_db": 3.0})
    monkeypatch.undo()
    assert open_bundle(copy).manifest == before
    assert [path.name for path in copy.parent.iterdir()] == ["bundle"]
    assert write_bundle(copy, graphs, {**before, "snr_db": 3.0}).snr_db == 3.0


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
