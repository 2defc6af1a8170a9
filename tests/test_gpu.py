"""What engines on a GPU say where there is none, and all of their work that needs none. The rest is benchmarks/on_gpu.py."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from semseal.export.tensorrt import build_plan
from semseal.runtime.bundle import open_bundle
from semseal.runtime.defense import index, mix
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import EngineError
from semseal.runtime.gpu import engines as gpu
from semseal.runtime.gpu.device import Port, axis_sizes, gathered, open_device, output_shape, scattered
from semseal.runtime.gpu.engines import session_ports

ROOT = Path(__file__).parent.parent


def has_driver() -> bool:
    try:
        open_device("x")
    except EngineError:
        return False
    return True


without_gpu = pytest.mark.skipif(has_driver(), reason="there is a GPU: benchmarks/on_gpu.py checks these engines")


@pytest.fixture(scope="module")
def graph():
    return open_bundle("photos-10db").graph("transmitter")


@without_gpu
def test_no_driver_is_said_with_the_fix():
    with pytest.raises(
        EngineError, match=r"engine tensorrt: this machine has no NVIDIA driver\nhint: install one .* --gpus all"
    ):
        open_device("tensorrt")


@without_gpu
def test_tensorrt_rtx_without_a_driver():
    with pytest.raises(EngineError, match="engine tensorrt-rtx: this machine has no NVIDIA driver"):
        open_engine("tensorrt-rtx", b"a plan")


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_tensorrt_that_is_not_installed():
    with pytest.raises(
        EngineError,
        match=r"engine tensorrt is not installed .*No module named 'tensorrt'\nhint: pip install tensorrt .*JetPack",
    ):
        open_engine("tensorrt", b"a plan")


@pytest.mark.parametrize(
    ("name", "provider"), [("onnxruntime-cuda", "CUDAExecutionProvider"), ("onnxruntime-tensorrt", "TensorrtExecutionProvider")]
)
def test_the_onnxruntime_for_cpus_is_never_used_in_its_place(graph, name, provider):
    if provider in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    with pytest.raises(
        EngineError, match=rf"(?s)engine {name}: .* has no {provider}; .*\nhint: .*pip install .*onnxruntime-gpu\[cuda,cudnn\]"
    ):
        open_engine(name, graph)


@pytest.mark.parametrize("plan", [b"", b"no plan", b"no plan" * 1000])
def test_bytes_that_are_no_plan(plan):
    with pytest.raises(
        EngineError, match=rf"engine tensorrt-rtx [\d.]+ cannot load these {len(plan)} bytes: .*\nhint: .*build it again"
    ):
        gpu.deserialize("tensorrt-rtx", plan)


def test_the_reason_of_the_second_failure_is_not_that_of_the_first():
    with pytest.raises(EngineError, match="magicTag"):
        gpu.deserialize("tensorrt-rtx", b"no plan" * 1000)
    with pytest.raises(EngineError, match="empty") as second:
        gpu.deserialize("tensorrt-rtx", b"")
    assert "magicTag" not in str(second.value)


def test_nodes_that_would_run_elsewhere_are_named(graph):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    with pytest.raises(
        EngineError, match=r"\d+ nodes would not run on CUDAExecutionProvider: .* \(Conv, CPUExecutionProvider\)"
    ):
        gpu.refuse_other_providers("onnxruntime-cuda", session)


def test_one_tensorrt_engine_for_all_batches(graph):
    assert gpu.tensorrt_profiles(onnxruntime, graph) == {
        "trt_profile_min_shapes": "image:1x3x180x180,index:1x45",
        "trt_profile_opt_shapes": "image:1x3x180x180,index:1x45",
        "trt_profile_max_shapes": "image:64x3x180x180,index:64x45",
    }
    receiver = gpu.tensorrt_profiles(onnxruntime, open_bundle("photos-10db").graph("receiver"))
    assert receiver["trt_profile_max_shapes"] == "symbols:128x16200x2,index:64x45"


IMAGE = Port("image", np.dtype(np.float32), ("batch", 3, 4, 4))
INDEX = Port("index", np.dtype(np.int32), ("batch", 3))
SYMBOLS = Port("symbols", np.dtype(np.float32), ("frames", 6, 2))


def zeros(*ports, **sizes):
    return tuple(np.zeros([sizes.get(axis, axis) for axis in port.axes], port.dtype) for port in ports)


def test_the_index_is_checked_before_anything_is_launched():
    idx = index.identity(6).reshape(2, 3)
    image, symbols = zeros(IMAGE, SYMBOLS, batch=2, frames=2)
    theirs = idx.copy()
    _, uploaded = gathered((SYMBOLS, INDEX), (symbols, theirs))
    theirs[:] = 99  # another thread writes into its array while this one waits for the GPU
    assert uploaded.tolist() == idx.tolist()
    taken, place = scattered((IMAGE, INDEX), (image, idx))
    assert taken is image
    assert place.tolist() == idx.tolist()
    with pytest.raises(ValueError, match=r"index\[1, 0\] is 3, it must be in 0\.\.2"):
        gathered((SYMBOLS, INDEX), (symbols[:1], idx))
    bare = Port("image", np.dtype(np.float32), (-1, 3, 4, 4)), Port("index", np.dtype(np.int32), (-1, 3))
    with pytest.raises(ValueError, match=r"3 images want an index of as many, got \[2, 3\]"):
        scattered(bare, (*zeros(IMAGE, batch=3), idx))
    with pytest.raises(ValueError, match="takes row 0 more than once"):
        scattered((IMAGE, INDEX), (image, np.zeros((2, 3), np.int32)))


@pytest.mark.parametrize(
    ("ports", "given", "message"),
    [
        ((IMAGE,), (np.float32, (2, 3, 4, 5)), r"image must be \[batch, 3, 4, 4\], got \[2, 3, 4, 5\]"),
        ((IMAGE,), (np.float32, (2, 3, 4)), r"image must be \[batch, 3, 4, 4\], got \[2, 3, 4\]"),
        ((IMAGE,), (np.float32, (0, 3, 4, 4)), r"image must be \[batch, 3, 4, 4\], got \[0, 3, 4, 4\]"),
        ((IMAGE,), (np.float64, (2, 3, 4, 4)), "image must be float32, got float64"),
        ((IMAGE, INDEX), (np.float32, (2, 3, 4, 4)), "the engine takes image, index, got 1 arrays"),
    ],
)
def test_inputs_of_another_number_type_or_shape_are_refused(ports, given, message):
    dtype, shape = given
    with pytest.raises(ValueError, match=message):
        gathered(ports, (np.zeros(shape, dtype),))


def test_one_name_has_one_size():
    assert axis_sizes([IMAGE, INDEX], [(5, 3, 4, 4), (5, 3)]) == {"batch": 5}
    with pytest.raises(ValueError, match=r"index must be \[5, 3\], got \[4, 3\]"):
        axis_sizes([IMAGE, INDEX], [(5, 3, 4, 4), (4, 3)])


def test_the_shape_of_the_output_follows_from_the_names_of_the_axes():
    def out(*axes):
        return Port("y", np.dtype(np.uint8), axes)

    sizes = axis_sizes([SYMBOLS, INDEX], [(7, 6, 2), (5, 3)])
    assert output_shape(out("batch", 4, 4, 3), sizes) == (5, 4, 4, 3)
    assert output_shape(out("frames", 2), sizes) == (7, 2)
    assert output_shape(out("unk__0", 2), sizes) == (5, 2)  # a first axis without a name that an input has is batch
    assert output_shape(out(-1, 2), sizes) == (5, 2)
    assert output_shape(out(8, 2), sizes) == (8, 2)
    with pytest.raises(EngineError, match=r"output y is \[batch, time\], and no input tells"):
        output_shape(out("batch", "time"), sizes)
    with pytest.raises(EngineError, match="none that varies"):
        output_shape(out(-1, 2), {})


def keyed(side, batch):
    """The inputs of a packaged mix graph for a batch."""
    reals = 32400
    keys = mix.derive_keys(bytes(32), bytes(mix.SESSION_SIZE), range(batch), bytes(mix.DIGEST_SIZE), reals)
    shape = (batch, 3, 180, 180) if side == "transmitter" else (batch, mix.padded_size(reals) // 2, 2)
    secret = mix.transmitter_inputs(keys, reals) if side == "transmitter" else mix.receiver_inputs(keys, reals)
    return np.zeros(shape, np.float32), *secret


@pytest.fixture(params=["transmitter", "receiver"])
def side(request):
    return request.param


def session_of(graph):
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_graphs_with_mix_are_taken_by_what_onnxruntime_says_of_them(side, precision):
    session = session_of(open_bundle("photos-10db").graph(f"{side}-mix", precision))
    ports, output = session_ports("onnxruntime-cuda", session)
    inputs = keyed(side, 2)
    assert all(map(np.array_equal, gathered(ports, inputs), inputs))
    expected = session.run(None, {port.name: array for port, array in zip(ports, inputs, strict=True)})[0]
    shape = output_shape(output, axis_sizes(ports, [array.shape for array in inputs]))
    assert (shape, output.dtype) == (expected.shape, expected.dtype)
    with pytest.raises(ValueError, match=r"the engine takes .*, mix_columns, got 2 arrays"):
        gathered(ports, inputs[:2])
    with pytest.raises(ValueError, match=r"must be \[2, "):
        gathered(ports, (inputs[0], *keyed(side, 1)[1:]))


def test_graphs_with_an_index_are_taken_as_before(side):
    ports, output = session_ports("onnxruntime-cuda", session_of(open_bundle("photos-10db").graph(side)))
    frames = 3 if side == "receiver" else 2
    sizes = axis_sizes(ports, [(frames, *ports[0].axes[1:]), (2, 45)])
    assert output_shape(output, sizes) == ((2, 16200, 2) if side == "transmitter" else (2, 3, 180, 180))


@pytest.mark.parametrize("value", [-1, 2**31 - 1, "end"])
@pytest.mark.parametrize("name", ["mix_rows", "mix_columns"])
def test_what_is_gathered_by_is_never_launched_out_of_range(side, name, value):
    ports, _ = session_ports("onnxruntime-cuda", session_of(open_bundle("photos-10db").graph(f"{side}-mix")))
    inputs = list(keyed(side, 2))
    place = [port.name for port in ports].index(name)
    bad = inputs[place] = inputs[place].copy()
    end = bad.size if name == "mix_rows" else bad.shape[1]
    bad[1, 5] = end if value == "end" else value
    with pytest.raises(ValueError, match=rf"{name} out of range: {name}\[1, 5\] is {bad[1, 5]}, it must be in 0\.\.{end - 1}"):
        gathered(ports, tuple(inputs))


def test_rows_of_more_images_than_there_are_read_nothing_beyond_them():
    """A plan tells no names of axes, so the batches of its inputs are not compared by their names."""
    data, rows = Port("symbols", np.dtype(np.float32), (-1, 8, 2)), Port("mix_rows", np.dtype(np.int32), (-1, 4))
    two = np.arange(8, dtype=np.int32).reshape(2, 4)
    gathered((data, rows), (np.zeros((2, 8, 2), np.float32), two))
    with pytest.raises(ValueError, match=r"mix_rows\[1, 0\] is 4, it must be in 0\.\.3"):
        gathered((data, rows), (np.zeros((1, 8, 2), np.float32), two))


def graph_of(dtype, *outputs):
    """x [batch, 4] of a type, and its double as each output."""
    values = [helper.make_tensor_value_info(name, dtype, ["batch", 4]) for name in ("x", *outputs)]
    nodes = [helper.make_node("Add", ["x", "x"], [name]) for name in outputs]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8", "uint8", "int32", "int64", "uint32"])
def test_tensors_of_any_number(dtype):
    ports, output = session_ports("x", session_of(graph_of(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), "y")))
    assert (*ports, output) == tuple(Port(name, np.dtype(dtype), ("batch", 4)) for name in "xy")


def test_a_graph_with_two_outputs_or_of_text_is_refused():
    with pytest.raises(EngineError, match="the graph gives y, z; wanted is one output"):
        session_ports("x", session_of(graph_of(TensorProto.FLOAT, "y", "z")))
    text = [helper.make_tensor_value_info(name, TensorProto.STRING, ["batch"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", text[:1], text[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(EngineError, match=r"takes or gives x \(tensor\(string\)\), y"):
        session_ports("x", session_of(model.SerializeToString()))


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_the_graphs_with_mix_are_taken_by_what_tensorrt_says_of_them(side):
    """Of the network that the plan is built from: without a GPU a plan is built, but not loaded."""
    graph = open_bundle("photos-10db").graph(f"{side}-mix")
    trt, logger = gpu.tensorrt_library("tensorrt-rtx")
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(graph)
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    ports = tuple(gpu.tensor_port("tensorrt-rtx", trt, tensor.name, tensor.dtype, tensor.shape) for tensor in tensors)
    named, _ = session_ports("x", session_of(graph))
    assert ports == tuple(
        Port(port.name, port.dtype, tuple(-1 if isinstance(axis, str) else axis for axis in port.axes)) for port in named
    )
    inputs = keyed(side, 3)
    assert all(map(np.array_equal, gathered(ports, inputs), inputs))
    inputs[-2][2, 0] = inputs[-2].size
    with pytest.raises(ValueError, match="mix_rows out of range"):
        gathered(ports, inputs)
    plan = build_plan("tensorrt-rtx", graph, (1, 1, 4), [86, 89, 120])
    for port in ports:
        assert port.name.encode() in plan  # the names by which a loaded plan is addressed
    with pytest.raises(EngineError, match="a type that NumPy does not have"):
        gpu.tensor_port("tensorrt-rtx", trt, "x", trt.bfloat16, (1,))


@without_gpu
def test_on_gpu_says_that_there_is_none_and_writes_nothing():
    results = ROOT / "benchmarks" / "results"
    before = sorted(results.glob("*")) if results.exists() else None
    script = ROOT / "benchmarks" / "on_gpu.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("no GPU: this machine has no NVIDIA driver")
    assert (sorted(results.glob("*")) if results.exists() else None) == before


def test_importing_the_engines_needs_neither_cuda_nor_a_gpu():
    """On an edge device without these packages the link on the CPU must start."""
    script = """
import json, sys
from semseal.runtime.gpu import device
from semseal.runtime.gpu import engines as gpu
from semseal.runtime.gpu import scheme_kernel as kernel
loaded = {name.split(".")[0] for name in sys.modules}
print(json.dumps(sorted(loaded & {"cuda", "tensorrt", "tensorrt_rtx", "onnxruntime", "torch"})))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == []
