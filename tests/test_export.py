import numpy as np
import onnx
import pytest
import torch
from semseal.export.bundle import export_run
from semseal.runtime.bundle import open_bundle
from semseal.runtime.defense import index
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import TrainingError
from semseal.train.config import TrainConfig
from semseal.train.fit import load_run


@pytest.fixture(params=["transmitter", "receiver"])
def graph(request, small_bundle):
    return onnx.load_model_from_string(open_bundle(small_bundle).graph(request.param))


def axes(value):
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_inputs_outputs_and_axis_names(small_bundle):
    bundle = open_bundle(small_bundle)
    tx, rx = (onnx.load_model_from_string(bundle.graph(side)).graph for side in ("transmitter", "receiver"))
    assert {v.name: axes(v) for v in tx.input} == {"image": ["batch", 3, 32, 24], "index": ["batch", 8]}
    assert {v.name: axes(v) for v in tx.output} == {"symbols": ["batch", 96, 2]}
    assert {v.name: axes(v) for v in rx.input} == {"symbols": ["frames", 96, 2], "index": ["batch", 8]}
    assert {v.name: axes(v) for v in rx.output} == {"image": ["batch", 3, 32, 24]}


def test_the_index_is_an_input_of_one_gather_on_axis_0(graph):
    gathers = [node for node in graph.graph.node if "Gather" in node.op_type]
    assert [node.op_type for node in gathers] == ["Gather"]
    assert gathers[0].input[1] == "index"
    assert onnx.helper.get_attribute_value(gathers[0].attribute[0]) == 0


def test_one_self_contained_file_without_traces_of_its_maker(graph):
    assert not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.graph.initializer)
    assert not graph.graph.sparse_initializer
    data = graph.SerializeToString()
    assert b".py" not in data
    assert b"/home" not in data
    assert b"/root" not in data


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_engine_matches_torch(small_run, small_bundle, small_images, batch):
    model, bundle, images = load_run(small_run), open_bundle(small_bundle), small_images(batch)
    places = np.arange(batch)
    identity = index.absolute(np.tile(index.identity(8), (batch, 1)), places, places)
    with torch.no_grad():
        expected = model.encode(torch.from_numpy(images))
        pictures = model.decode(expected).numpy()
    symbols = open_engine("onnxruntime-cpu", bundle.graph("transmitter"))(images, identity)
    assert np.abs(symbols - expected.numpy()).max() < 1e-4
    assert np.abs(open_engine("onnxruntime-cpu", bundle.graph("receiver"))(expected.numpy(), identity) - pictures).max() < 1e-5


def test_the_graphs_gather_is_the_reference_bit_for_bit(small_bundle, small_images):
    engine = open_engine("onnxruntime-cpu", open_bundle(small_bundle).graph("transmitter"))
    images = small_images(3)
    plain = engine(images, np.arange(24, dtype=np.int32).reshape(3, 8))
    for seed in range(5):
        anywhere = np.random.default_rng(seed).integers(0, 24, (3, 8), np.int32)
        expected = index.gather(plain.reshape(24, -1), anywhere).reshape(3, -1, 2)
        assert engine(images, anywhere).tobytes() == expected.tobytes()


def test_manifest_tells_how_exact_and_how_made(small_bundle, small_run):
    manifest = open_bundle(small_bundle).manifest
    parity = manifest["parity"]
    reference, *rows = parity["rows"]
    assert list(reference["psnr"]) == ["0", "10", "20"]
    measured = {(row["engine"], row["transmitter"], row["receiver"]) for row in rows}
    sides = [(p, q) for p in ("fp32", "fp16", "int8") for q in (p, "reference")]
    assert measured == {(e, *order) for e in ("onnxruntime-cpu", "openvino") for pq in sides for order in (pq, pq[::-1])}
    worst = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.3}  # dB; this link is small and hardly trained
    for row in rows:
        allowed = max(worst.get(row[side], 0) for side in ("transmitter", "receiver"))
        assert all(abs(row["psnr"][snr] - reference["psnr"][snr]) < allowed for snr in reference["psnr"]), row
    for name, difference in parity["differences"].items():
        assert difference["power_per_symbol"] == pytest.approx([1.0, 1.0], abs=1e-5)
        assert name.endswith("int8") or difference["max_symbol_error"] < (1e-3 if name.endswith("fp32") else 0.02)
    assert all(list(providers) == ["CPUExecutionProvider"] for providers in parity["providers"].values())
    assert parity["providers"]["transmitter.fp32"]["CPUExecutionProvider"]["Gather"] == 1
    assert manifest["training"]["steps"] == TrainConfig.read(small_run).steps
    assert manifest["opset"] == 20


def test_a_run_that_is_none_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a run"):
        export_run(tmp_path, tmp_path / "bundle")
    (tmp_path / "config.json").write_text(TrainConfig().to_json())
    with pytest.raises(TrainingError, match="no checkpoint yet"):
        export_run(tmp_path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
