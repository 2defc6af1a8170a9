"""Real builds by TensorRT-RTX, which needs no GPU to build."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from semseal.export.cut import bare_network
from semseal.export.tensorrt import add_plans, build_plan, layer_report, plan_files, profile
from semseal.runtime.bundle import open_bundle, packaged_bundle
from semseal.runtime.defense import index
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import BundleError, EngineError, GraphError
from semseal.runtime.gpu.mix_kernel import compile_kernels, compile_structure, suited
from semseal.runtime.pixels import with_pixels
from semseal.runtime.signing import owner_key

DRIVER = Path("/proc/driver/nvidia/version")
SIDES = ("transmitter", "receiver")
PRECISIONS = ("fp32", "fp16", "int8")
INPUTS = {
    "transmitter": [("image", "float32", ["batch", 3, 32, 24]), ("index", "int32", ["batch", 8])],
    "receiver": [("symbols", "float32", ["frames", 96, 2]), ("index", "int32", ["batch", 8])],
}
# ONNX Runtime computes half precision on a CPU in float32, and rounds to it only where a tensor leaves the graph
CLOSE = {"fp32": 2e-5, "fp16": 2e-3, "int8": 2e-5}
OUTPUT = {"transmitter": ("symbols", "float32", [-1, 96, 2]), "receiver": ("image", "float32", [-1, 3, 32, 24])}

builds = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed: pip install tensorrt-rtx")


@pytest.fixture(params=SIDES)
def side(request):
    return request.param


@pytest.fixture(params=PRECISIONS)
def precision(request):
    return request.param


@pytest.fixture
def graph(small_bundle, side, precision):
    return open_bundle(small_bundle).graph(side, precision)


def described(tensors):
    return [(tensor["name"], tensor["dtype"], tensor["shape"]) for tensor in tensors]


@builds
@pytest.mark.parametrize("capability", [86, 89, 120])
def test_every_graph_builds_for_every_generation_and_the_index_stays_an_input(graph, side, capability):
    plan = build_plan("tensorrt-rtx", graph, capabilities=[capability])
    report = layer_report("tensorrt-rtx", plan, graph)
    assert described(report["inputs"]) == INPUTS[side]
    assert described(report["outputs"]) == [OUTPUT[side]]
    weights = sum(len(tensor.raw_data) for tensor in onnx.load_model_from_string(graph).graph.initializer)
    assert weights < report["bytes"] == len(plan) < 10_000_000
    for name in ("image", "symbols", "index"):
        assert name.encode() in plan  # the names by which a loaded plan is addressed


@builds
@pytest.mark.parametrize("name", ["edge", "edge-quality", "photos-10db"])
def test_packaged_graphs_build(name, side):
    bundle = open_bundle(packaged_bundle(name))
    for precision in bundle.manifest["precisions"]:
        graph = bundle.graph(side, precision)
        report = layer_report("tensorrt-rtx", build_plan("tensorrt-rtx", graph, capabilities=[86, 89, 120]), graph)
        first = ("image", "float32", ["batch", 3, 180, 180]), ("symbols", "float32", ["frames", 16200, 2])
        told = ("snr_db", "float32", ["batch"]), ("side_information", "float32", ["batch", 3])
        expected = [first[side == "receiver"], ("index", "int32", ["batch", 45])]
        assert described(report["inputs"]) == expected + [told[side == "receiver"]] * bundle.has_scale


KEYS = [
    ("mix_column_signs", "int8", ["batch", 32, 1]),
    *((f"mix_signs{k}", "int8", ["batch", 1024, 32]) for k in range(5)),
    ("mix_rows", "int32", ["batch", 1024]),
    ("mix_columns", "int32", ["batch", 32]),
]
MIXED = {
    "transmitter": [("image", "float32", ["batch", 3, 180, 180]), ("mix_pads", "float32", ["batch", 368]), *KEYS],
    "receiver": [("symbols", "float32", ["batch", 16384, 2]), *KEYS],
}
PIXELS = {"transmitter": ("uint8", ["batch", 180, 180, 3]), "receiver": ("uint8", [-1, 181, 180, 3])}


@builds
@pytest.mark.parametrize("capability", [80, 86, 89, 120, 121])
def test_packaged_graphs_with_mix_build_and_the_keys_stay_inputs(side, precision, capability):
    graph = open_bundle("photos-10db").graph(f"{side}-mix", precision)
    plan = build_plan("tensorrt-rtx", graph, capabilities=[capability])
    assert described(layer_report("tensorrt-rtx", plan, graph)["inputs"]) == MIXED[side]
    for name, *_ in KEYS:
        assert name.encode() in plan


@builds
@pytest.mark.parametrize(("capability", "room"), [(86, 0), (89, 0), (120, 101376)])
def test_plans_and_the_mix_kernels_behind_them_build(capability, room):
    """What ``FusedMix`` takes: the plain plan of a side, and kernels for the float32 symbols between them."""
    bundle, arch = open_bundle("photos-10db"), f"sm_{capability}"
    for side, first, last in (("transmitter", "image", "symbols"), ("receiver", "symbols", "image")):
        files = plan_files("tensorrt-rtx", {(side, "fp32"): bundle.graph(side)}, capabilities=[capability])
        plan, report = files[f"engines/{side}.fp32.tensorrt-rtx.engine"], files[f"engines/{side}.fp32.tensorrt-rtx.engine.json"]
        told = json.loads(report)
        assert len(plan) > 100_000
        assert [tensor["name"] for tensor in told["inputs"]] == [first, "index"]
        (output,) = told["outputs"]
        assert (output["name"], output["dtype"]) == (last, "float32")
    reals, channels = 2 * bundle.n_symbols, int(bundle.manifest["model"]["c"])
    shapes = suited(room, reals, 1)
    assert (shapes[0].together == 0) == (room == 0)
    codes = [compile_kernels(shape, np.dtype(np.float32), arch) for shape in shapes]
    codes.append(compile_structure(reals, channels, 1, np.dtype(np.float32), arch))
    assert all(code.code[:4] == b"\x7fELF" for code in codes)


@builds
@pytest.mark.parametrize("kind", ["", "-mix"])
def test_packaged_graphs_build_with_pictures_as_bytes(side, precision, kind):
    graph = open_bundle("photos-10db").graph(f"{side}{kind}", precision)
    files = plan_files("tensorrt-rtx", {(f"{side}{kind}", precision): graph}, capabilities=[86, 89, 120])
    names = [f"engines/{side}{kind}{form}.{precision}.tensorrt-rtx.engine" for form in ("", "-pixels")]
    assert list(files) == [file for name in names for file in (name, f"{name}.json")]
    plain, pixels = (json.loads(files[f"{name}.json"]) for name in names)
    end, other = ("inputs", "outputs") if side == "transmitter" else ("outputs", "inputs")
    assert (pixels[end][0]["dtype"], pixels[end][0]["shape"]) == PIXELS[side]
    assert plain[end][0]["dtype"] == "float32"
    assert pixels[end][1:] == plain[end][1:]
    assert pixels[other] == plain[other]


@builds
def test_turing_has_no_products_for_mix_and_is_told_what_has(side):
    bundle = open_bundle("photos-10db")
    for graph in (bundle.graph(side), with_pixels(bundle.graph(side))):
        assert build_plan("tensorrt-rtx", graph, capabilities=[75])
    with pytest.raises(EngineError, match=r"FP32 GEMM is not supported.*\nhint: leave 75 out: .*onnxruntime-cuda"):
        build_plan("tensorrt-rtx", bundle.graph(f"{side}-mix"), capabilities=[75])


@builds
def test_layers_have_the_precision_of_the_graph(graph, side, precision):
    layers = layer_report("tensorrt-rtx", b"", graph)["layers"]
    convolutions = [layer for layer in layers if layer["type"] == "convolution"]
    assert len(convolutions) == 5
    assert {layer["precision"] for layer in convolutions} == {"float16" if precision == "fp16" else "float32"}
    quantized = [layer for layer in layers if layer["type"] == "quantize"]
    # the layer that reads the picture stays in float
    assert len(quantized) == (0 if precision != "int8" else 4 if side == "transmitter" else 5)
    assert all(layer["precision"] == "int8" for layer in quantized)
    if side == "transmitter":
        powers = [layer for layer in layers if layer["type"] in ("reduce", "gather")]
        assert len(powers) == 2
        assert {layer["precision"] for layer in powers} == {"float32"}


@builds
def test_the_inspector_ran_or_says_why_not(small_bundle):
    graph = open_bundle(small_bundle).graph("transmitter")
    report = layer_report("tensorrt-rtx", build_plan("tensorrt-rtx", graph, capabilities=[86]), graph)
    if report["inspector"] is None:
        assert "the inspector needs a GPU" in report["inspector_reason"]
    else:
        assert report["inspector"]["Layers"]
        assert report["inspector_reason"] is None


@builds
def test_plans_are_added_to_a_copy_that_is_signed(small_bundle, tmp_path):
    before = open_bundle(small_bundle)
    after = add_plans(before, tmp_path / "copy", "tensorrt-rtx", owner_key(), (1, 1, 4), [86, 89, 120])
    assert open_bundle(tmp_path / "copy").manifest == after.manifest
    assert after.manifest["engines"] == ["tensorrt-rtx"]
    assert after.digest == before.digest  # headers and keys stay valid
    for side in SIDES:
        for precision in PRECISIONS:
            plan = after.program(side, precision, "tensorrt-rtx")
            report = json.loads(after.read(f"engines/{side}.{precision}.tensorrt-rtx.engine.json"))
            assert report["bytes"] == len(plan)
            assert described(report["inputs"]) == INPUTS[side]
            assert after.graph(side, precision) == before.graph(side, precision)
            for kind in (f"{side}-mix", f"{side}-pixels", f"{side}-mix-pixels"):
                assert len(after.program(kind, precision, "tensorrt-rtx")) > 100_000
    with pytest.raises(BundleError, match="holds a bundle already"):
        add_plans(before, tmp_path / "copy", "an engine that would be refused as well", owner_key())
    again = add_plans(before, tmp_path / "copy", "tensorrt-rtx", owner_key(), (1, 1, 2), [86], force=True)
    assert open_bundle(tmp_path / "copy").manifest == again.manifest != after.manifest


@builds
def test_profile_spans_the_batch_and_twice_as_many_frames(small_bundle):
    import tensorrt_rtx

    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
    builder = tensorrt_rtx.Builder(logger)
    network = builder.create_network(1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt_rtx.OnnxParser(network, logger)
    assert parser.parse(open_bundle(small_bundle).graph("receiver"))
    made = profile(builder, network, (2, 3, 5))
    assert [tuple(shape) for shape in made.get_shape("symbols")] == [(2, 96, 2), (3, 96, 2), (10, 96, 2)]
    assert [tuple(shape) for shape in made.get_shape("index")] == [(2, 8), (3, 8), (5, 8)]


@builds
def test_one_plan_for_several_generations(small_bundle):
    graph = open_bundle(small_bundle).graph("receiver")
    plans = [build_plan("tensorrt-rtx", graph, (1, 2, 8), capabilities) for capabilities in ([75], [86, 89, 120])]
    assert plans[0] != plans[1]
    with pytest.raises(EngineError, match=r"for compute capability 90\nhint: choose among 75, .*120, .*onnxruntime-cuda"):
        build_plan("tensorrt-rtx", graph, capabilities=[86, 90])
    with pytest.raises(EngineError, match="for compute capability none"):
        build_plan("tensorrt-rtx", graph, capabilities=[])


X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 8, 8])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 8, 8])
CONSTANTS = {
    "kernel": np.ones((4, 4, 1, 1), np.float32),
    "bias": np.arange(4, dtype=np.int32),
    "scale": np.full(4, 0.1, np.float32),
    "zero": np.zeros(4, np.int32),
    "step": np.float32(0.1),
    "middle": np.uint8(128),
}


def model(*nodes, given=X):
    used = {name for node in nodes for name in node.input}
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in CONSTANTS.items() if name in used]
    graph = helper.make_graph(list(nodes), "g", [given], [Y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


REFUSED = {
    # what ONNX Runtime's quantiser does to a bias unless it is told otherwise
    r"node dequantize_bias \(DequantizeLinear\): .*Int32": model(
        helper.make_node("DequantizeLinear", ["bias", "scale", "zero"], ["b"], "dequantize_bias", axis=0),
        helper.make_node("Conv", ["x", "kernel", "b"], ["y"], "convolve"),
    ),
    r"node quantize \(QuantizeLinear\): .*zero point": model(
        helper.make_node("QuantizeLinear", ["x", "step", "middle"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "step", "middle"], ["y"], "dequantize"),
    ),
    r"node product \(Mul\): .*same input types.*Half and Float": model(
        helper.make_node("Cast", ["x"], ["half"], "halve", to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["half", "x"], ["y"], "product"),
    ),
    r"node determinant \(Det\): TensorRT has no such operator": model(helper.make_node("Det", ["x"], ["y"], "determinant")),
    "input x has the dynamic axis 'time'": model(
        helper.make_node("Relu", ["x"], ["y"], "relu"),
        given=helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 8, "time"]),
    ),
    "Failed to parse the ONNX model": b"no graph",
}


@builds
@pytest.mark.parametrize("reason", REFUSED)
def test_a_graph_that_tensorrt_cannot_take_fails_with_its_node(reason):
    with pytest.raises(EngineError, match=reason):
        build_plan("tensorrt-rtx", REFUSED[reason], capabilities=[86])
    assert build_plan("tensorrt-rtx", model(helper.make_node("Relu", ["x"], ["y"], "relu")), capabilities=[86])


@builds
@pytest.mark.skipif(DRIVER.exists(), reason="this machine has an NVIDIA driver")
def test_without_a_gpu_the_message_asks_for_capabilities(small_bundle):
    with pytest.raises(EngineError, match=r"cannot build the graph here: .*\nhint: pass capabilities"):
        build_plan("tensorrt-rtx", open_bundle(small_bundle).graph("transmitter"))


@pytest.mark.parametrize(
    ("reason", "engine", "options"),
    [
        ("1 <= smallest <= optimal <= largest", "tensorrt-rtx", {"batch": (2, 1, 4)}),
        ("1 <= smallest", "tensorrt", {"batch": (0, 1, 4)}),
        ("leave capabilities out", "tensorrt", {"capabilities": [86]}),
        (r"'openvino' builds no plans\nhint: plans are built by tensorrt or tensorrt-rtx", "openvino", {}),
    ],
)
def test_options_that_do_not_fit_are_refused(reason, engine, options):
    with pytest.raises(EngineError, match=reason):
        build_plan(engine, b"", **options)


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="tensorrt is installed here")
def test_a_missing_package_comes_with_the_command_that_installs_it():
    with pytest.raises(EngineError, match=r"tensorrt is not installed.*\nhint: pip install .*tensorrt"):
        build_plan("tensorrt", b"")


def test_bare_transmitter_and_numpy_index_are_the_whole(small_bundle, small_images, precision):
    graph = open_bundle(small_bundle).graph("transmitter", precision)
    bare = bare_network(graph, "transmitter")
    images, moved = small_images(3), np.random.default_rng(1).integers(0, 24, (3, 8), np.int32)
    features = open_engine("onnxruntime-cpu", bare)(images)
    assert (features.shape, features.dtype) == ((3, 4, 8, 6), np.float16 if precision == "fp16" else np.float32)
    rows = features.astype(np.float32).transpose(0, 2, 3, 1).reshape(3, 8, 24)
    rows = rows / np.sqrt(2 * np.square(rows, dtype=np.float64).mean(axis=(1, 2), keepdims=True))
    whole = open_engine("onnxruntime-cpu", graph)(images, moved)
    assert index.gather(rows.reshape(24, 24), moved).reshape(3, 96, 2) == pytest.approx(whole, abs=CLOSE[precision])


def test_bare_receiver_and_numpy_index_are_the_whole(small_bundle, precision):
    graph = open_bundle(small_bundle).graph("receiver", precision)
    bare = bare_network(graph, "receiver")
    rng = np.random.default_rng(2)
    symbols, moved = rng.normal(size=(5, 96, 2)).astype(np.float32), rng.integers(0, 40, (2, 8), np.int32)
    rows = index.gather(symbols.reshape(40, 24), moved)
    features = np.ascontiguousarray(rows.reshape(2, 8, 6, 4).transpose(0, 3, 1, 2))
    whole = open_engine("onnxruntime-cpu", graph)(symbols, moved)
    alone = open_engine("onnxruntime-cpu", bare)(features.astype(np.float16 if precision == "fp16" else np.float32))
    assert alone == pytest.approx(whole, abs=CLOSE[precision])


@builds
def test_bare_graphs_build(graph, side, precision):
    bare = bare_network(graph, side)
    report = layer_report("tensorrt-rtx", build_plan("tensorrt-rtx", bare, capabilities=[86, 89, 120]), bare)
    image, features = (["batch", 3, 32, 24], ["batch", 4, 8, 6])
    shapes = (image, [-1, *features[1:]]) if side == "transmitter" else (features, [-1, *image[1:]])
    names = ("image", "features") if side == "transmitter" else ("features", "image")
    dtypes = {"image": "float32", "features": "float16" if precision == "fp16" else "float32"}
    assert described(report["inputs"]) == [(names[0], dtypes[names[0]], shapes[0])]
    assert described(report["outputs"]) == [(names[1], dtypes[names[1]], shapes[1])]


def test_a_graph_without_such_features_keeps_its_index(small_bundle):
    bundle = open_bundle(small_bundle)
    for side, other in (SIDES, SIDES[::-1]):
        with pytest.raises(GraphError, match=f"{side}: it does not gather rows of transposed features"):
            bare_network(bundle.graph(other), side)
        with pytest.raises(GraphError, match="hint: use the graph with its index"):
            bare_network(bare_network(bundle.graph(side), side), side)
