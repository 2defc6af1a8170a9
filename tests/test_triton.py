"""Model repositories for Triton: the configuration by Triton's own protobuf, and the graphs as its batcher runs them.

``benchmarks/on_triton.py`` asks a server; this needs none.
"""

import dataclasses
import importlib.util
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient
from click.testing import CliRunner
from google.protobuf import text_format
from semseal.export.triton import MAX_BATCH, VERSIONS, rows_of_each_image, write_repository
from semseal.runtime.bundle import open_bundle, write_bundle
from semseal.runtime.cli import cli
from semseal.runtime.defense import mix
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import BundleError
from semseal.runtime.pictures import open_pictures
from semseal.runtime.pixels import with_pixels
from semseal.runtime.signing import owner_key

KEY, SESSION = bytes(range(32)), bytes(range(16))
VARIANTS = [
    ("edge", "mix", False, "fp32"),
    ("edge", "mix", True, "int8"),
    ("edge", "none", False, "fp16"),
    ("photos-10db", "mix", False, "int8"),
    ("photos-10db", "permute", True, "fp32"),
]
NUMPY = {"TYPE_FP32": "float32", "TYPE_INT8": "int8", "TYPE_INT32": "int32", "TYPE_UINT8": "uint8"}


@cache
def protobuf():
    """Triton's model_config.proto; without tritonclient.grpc, whose gRPC nothing here needs."""
    file = Path(tritonclient.__path__[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def configuration(model):
    return text_format.Parse((model / "config.pbtxt").read_text(), protobuf().ModelConfig())


def wanted(value):
    """Name, type and shape for the engine of what a configuration declares."""
    assert not value.HasField("reshape") or list(value.dims) == [1]
    shape = value.reshape.shape if value.HasField("reshape") else value.dims
    return value.name, NUMPY[protobuf().DataType.Name(value.data_type)], list(shape)


def declared(value):
    tensor = value.type.tensor_type
    kind = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    assert tensor.shape.dim[0].dim_param in ("batch", "frames")
    return value.name, kind, [axis.dim_value for axis in tensor.shape.dim[1:]]


@pytest.mark.parametrize(("name", "defense", "pixels", "precision"), VARIANTS)
def test_the_configuration_is_that_of_the_graph(tmp_path, name, defense, pixels, precision):
    bundle = open_bundle(name)
    served = write_repository(bundle, tmp_path / "models", [precision], defense=defense, pixels=pixels)
    kinds = ("-mix" if defense == "mix" else "") + ("-pixels" if pixels else "")
    assert [model.name for model in served] == [f"{name}-{side}{kinds}-{precision}" for side in ("transmitter", "receiver")]
    for model in served:
        folder = tmp_path / "models" / model.name
        config = configuration(folder)
        graph = onnx.load_model(folder / "1" / "model.onnx")
        onnx.checker.check_model(graph, full_check=True)
        assert [wanted(value) for value in config.input] == [declared(value) for value in graph.graph.input]
        assert [wanted(value) for value in config.output] == [declared(value) for value in graph.graph.output]
        assert config.name == folder.name
        assert config.backend == "onnxruntime"
        assert config.max_batch_size == MAX_BATCH
        assert config.HasField("dynamic_batching")
        assert [protobuf().ModelInstanceGroup.Kind.Name(group.kind) for group in config.instance_group] == ["KIND_CPU"]
        assert config.version_policy.latest.num_versions == VERSIONS
        assert config.parameters["semseal_digest_1"].string_value == bundle.digest.hex()
        assert config.parameters["semseal_rows_of_each"].string_value == "image"
        keys = {value.name for value in graph.graph.input}
        assert keys >= ({"mix_rows", "mix_columns", "mix_signs4"} if defense == "mix" else {"index"})


@pytest.mark.parametrize(
    ("engine", "kind", "accelerators"),
    [
        ("openvino", "KIND_CPU", {"cpu_execution_accelerator": ["openvino"]}),
        ("onnxruntime-cuda", "KIND_GPU", {}),
        ("onnxruntime-tensorrt", "KIND_GPU", {"gpu_execution_accelerator": ["tensorrt"]}),
    ],
)
def test_where_it_runs(tmp_path, engine, kind, accelerators):
    for model in write_repository(open_bundle("photos-10db"), tmp_path, engine=engine):
        config = configuration(tmp_path / model.name)
        assert [protobuf().ModelInstanceGroup.Kind.Name(group.kind) for group in config.instance_group] == [kind]
        found = config.optimization.execution_accelerators
        for name in ("cpu_execution_accelerator", "gpu_execution_accelerator"):
            assert [each.name for each in getattr(found, name)] == accelerators.get(name, [])


def feeds(bundle, side, images, counters):
    """What a client sends for each image, with keys of its own."""
    n, made = 2 * bundle.n_symbols, []
    for image, counter in zip(images, counters, strict=True):
        keys = mix.derive_keys(KEY, SESSION, [counter], bundle.digest, n)
        if side == "transmitter":
            told = [np.full(1, 10.0, np.float32)] if bundle.has_scale else []
            made.append([image[None], *told, *mix.transmitter_inputs(keys, n)])
        else:
            told = [np.array([[1.0, 0.1, 10.0]], np.float32)] if bundle.has_scale else []
            made.append([image[None], *told, *mix.receiver_inputs(keys, n)])
    return made


@pytest.mark.parametrize("name", ["edge", "photos-10db"])
def test_requests_of_several_clients_share_a_run_and_change_nothing(name):
    bundle = open_bundle(name)
    images = open_pictures("photos", "valid").take(3, 180, 180)
    for side in ("transmitter", "receiver"):
        graph = bundle.graph(f"{side}-mix")
        alone, shared = open_engine("onnxruntime-cpu", graph), open_engine("onnxruntime-cpu", rows_of_each_image(graph))
        requests = feeds(bundle, side, images, range(3))
        expected = [alone(*request) for request in requests]
        joined = shared(*(np.concatenate(parts) for parts in zip(*requests, strict=True)))
        assert np.array_equal(joined, np.concatenate(expected))
        # and the graph of the bundle would give the second client the first one's rows
        wrong = alone(*(np.concatenate(parts) for parts in zip(*requests, strict=True)))
        assert np.array_equal(wrong[0], expected[0][0])
        assert not np.allclose(wrong[1], expected[1][0], atol=0.1)
        images = [given.reshape(-1, 2) for given in expected]  # what a receiver gets


@pytest.mark.parametrize("moved", [1, -1, 2, 2**31 - 2**12, "noise"])
def test_no_index_reaches_the_rows_of_another_client(moved):
    bundle = open_bundle("photos-10db")
    images = open_pictures("photos", "valid").take(2, 180, 180)
    shared = open_engine("onnxruntime-cpu", rows_of_each_image(bundle.graph("transmitter-mix")))
    hostile, other = feeds(bundle, "transmitter", images, range(2))
    rows = hostile[-2].shape[1]
    if moved == "noise":
        hostile[-2] = np.random.default_rng(0).integers(-(2**31), 2**31, hostile[-2].shape, np.int32)
    elif moved < 2**20:
        hostile[-2] = hostile[-2] + np.int32(moved * rows)
    else:
        hostile[-2] = hostile[-2] + np.int32(moved)
    own = [*hostile[:-2], (hostile[-2].astype(np.int64) % rows).astype(np.int32), hostile[-1]]
    joined = shared(*(np.concatenate(parts) for parts in zip(hostile, other, strict=True)))
    assert np.array_equal(joined[1:], shared(*other))
    assert np.array_equal(joined[:1], shared(*own))


def test_the_plain_graphs_count_rows_of_each_image_too():
    bundle = open_bundle("edge")
    images = open_pictures("photos", "valid").take(2, 180, 180)
    pixels = np.ascontiguousarray((255 * images).astype(np.uint8).transpose(0, 2, 3, 1))
    graph = with_pixels(bundle.graph("transmitter"))
    order = np.random.default_rng(0).permutation(bundle.h).astype(np.int32)
    told = np.full(2, 10.0, np.float32)
    served = open_engine("onnxruntime-cpu", rows_of_each_image(graph))(pixels, np.stack([order, order]), told)
    ours = open_engine("onnxruntime-cpu", graph)(pixels, np.stack([order, order + bundle.h]), told)
    assert np.array_equal(served, ours)


# the repository


@pytest.fixture
def signed(tmp_path):
    """Write a bundle of the packaged graphs, with other files; ``older`` gives it another receiver and so another digest."""

    def write(name="link", more=None, receiver="photos-10db"):
        packaged = open_bundle("photos-10db")
        files = {name: packaged.read(name) for name in packaged.manifest["files"] if ".fp32." in name}
        if receiver != "photos-10db":
            files["receiver.fp32.onnx"] = files["receiver.fp32.onnx"] + b"\x12\x01x"  # its producer, again
        manifest = {name: packaged.manifest[name] for name in ("model", "snr_db")} | {"precisions": ["fp32"]}
        return write_bundle(tmp_path / name, files | (more or {}), manifest, owner_key(), force=True)

    return write


def test_a_model_that_changed_is_a_further_version_and_the_last_stays(tmp_path, signed):
    models = tmp_path / "models"
    (models / "another" / "1").mkdir(parents=True)
    first = signed()
    write_repository(first, models)
    again = write_repository(first, models)
    assert [(model.version, model.new) for model in again] == [(1, False), (1, False)]
    second = signed(receiver="another")
    assert first.digest != second.digest
    found = write_repository(second, models)
    assert [(model.version, model.new) for model in found] == [(2, True), (2, True)]
    for model in found:
        config = configuration(models / model.name)
        assert config.parameters["semseal_digest_1"].string_value == first.digest.hex()
        assert config.parameters["semseal_digest_2"].string_value == second.digest.hex()
        assert sorted(entry.name for entry in (models / model.name).iterdir()) == ["1", "2", "config.pbtxt"]
    shutil.rmtree(models / found[0].name / "1")  # as who runs the server may do
    (third, _) = write_repository(signed(), models)
    assert third.version == 3
    kept = {name for name in configuration(models / third.name).parameters if "digest" in name}
    assert kept == {"semseal_digest_2", "semseal_digest_3"}
    assert sorted(entry.name for entry in models.iterdir()) == [
        "another",
        "link-receiver-mix-fp32",
        "link-transmitter-mix-fp32",
    ]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "models"]


def test_another_model_of_that_name_is_not_replaced_unasked(tmp_path, signed):
    models, bundle = tmp_path / "models", signed()
    write_repository(bundle, models)
    before = {file: file.read_bytes() for file in models.rglob("*") if file.is_file()}
    with pytest.raises(BundleError, match=r"(?s)is there, and is another model.*--force"):
        write_repository(bundle, models, engine="onnxruntime-cuda")
    assert {file: file.read_bytes() for file in models.rglob("*") if file.is_file()} == before
    found = write_repository(bundle, models, engine="onnxruntime-cuda", force=True)
    assert [model.version for model in found] == [1, 1]
    (models / "other-transmitter-mix-fp32").mkdir()
    moved = dataclasses.replace(bundle, path=bundle.path.rename(tmp_path / "other"))
    with pytest.raises(BundleError, match="is another model"):
        write_repository(moved, models)
    assert not (models / "other-receiver-mix-fp32").exists()


def test_plans_are_served_as_they_are_and_one_request_at_a_time(tmp_path, signed):
    plans = {f"engines/{side}-mix.fp32.tensorrt.engine": side.encode() for side in ("transmitter", "receiver")}
    for model in write_repository(signed(more=plans), tmp_path / "models", engine="tensorrt"):
        folder = tmp_path / "models" / model.name
        config = configuration(folder)
        assert (folder / "1" / "model.plan").read_bytes().decode() in model.name
        assert config.backend == "tensorrt"
        assert not config.HasField("dynamic_batching")
        assert config.parameters["semseal_rows_of_each"].string_value == "request"
        assert "mix_rows" in {value.name for value in config.input}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"engine": "tensorrt"}, "holds no tensorrt engine"),
        ({"engine": "tensorrt-rtx"}, "Triton has no back end for tensorrt-rtx"),
        ({"precisions": ["fp32", "int8"]}, "has no precision 'int8'"),
    ],
)
def test_what_cannot_be_served_is_refused_and_nothing_is_written(tmp_path, signed, options, reason):
    with pytest.raises(BundleError, match=reason):
        write_repository(signed(), tmp_path / "models", **options)
    assert not (tmp_path / "models").exists()


def test_names_are_such_as_a_url_can_hold(tmp_path, signed):
    served = write_repository(signed("a link: café.v2"), tmp_path / "models")
    assert [model.name for model in served] == ["a-link-caf-v2-transmitter-mix-fp32", "a-link-caf-v2-receiver-mix-fp32"]


def test_from_the_shell_and_again(tmp_path):
    command = ["export", "edge", "--triton", str(tmp_path / "models"), "--precision", "int8", "--triton-pixels"]
    for end in ("version 1", "version 1, which is there already"):
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 0, done.output
        names = [f"edge-{side}-mix-pixels-int8" for side in ("transmitter", "receiver")]
        lines = done.output.replace("\n", "").split(f"{tmp_path / 'models'}/")[1:]
        assert lines == [f"{name}: {end}" for name in names]


def test_a_repository_lies_outside_of_its_bundle(tmp_path, signed):
    bundle = signed()
    (tmp_path / "alias").symlink_to(bundle.path)
    for inside in (bundle.path / "models", bundle.path, tmp_path / "alias" / "models"):
        with pytest.raises(BundleError, match="lies in the bundle"):
            write_repository(bundle, inside)
    assert not (bundle.path / "models").exists()
