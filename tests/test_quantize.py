import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from semseal.export.quantize import to_fp16, to_int8
from semseal.runtime.bundle import open_bundle
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import GraphError
from semseal.train.edge import Int8Step


@pytest.fixture(scope="module")
def bundle(small_bundle):
    return open_bundle(small_bundle)


def model(bundle, side, precision):
    return onnx.shape_inference.infer_shapes(onnx.load_model_from_string(bundle.graph(side, precision)))


def types(graph):
    known = {tensor.name: tensor.data_type for tensor in graph.initializer}
    known |= {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return known


@pytest.mark.parametrize("side", ["transmitter", "receiver"])
def test_fp16_computes_the_network_in_half_and_power_and_index_in_single(bundle, side):
    graph = model(bundle, side, "fp16").graph
    known = types(graph)
    assert {known[v.name] for v in (*graph.input, *graph.output)} == {TensorProto.FLOAT, TensorProto.INT32}
    assert all(known[name] == TensorProto.FLOAT16 for n in graph.node if n.op_type == "Conv" for name in (*n.input, *n.output))
    power = [n for n in graph.node if n.name.startswith("power/")]
    assert len(power) == (11 if side == "transmitter" else 0)
    assert all(known[name] != TensorProto.FLOAT16 for n in power for name in (*n.input, *n.output))
    assert sum(n.op_type == "Cast" for n in graph.node) == 2  # one down, one up, none between


@pytest.mark.parametrize("side", ["transmitter", "receiver"])
def test_int8_is_what_tensorrt_takes(bundle, side):
    graph = model(bundle, side, "int8").graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all(weights[node.input[2]].dtype == np.int8 and not weights[node.input[2]].any() for node in pairs)
    layers = [node for node in graph.node if node.op_type == "Conv"]
    assert len(layers) == 5
    for node in layers:
        both = [made_by[name].op_type if name in made_by else None for name in node.input[:2]]
        # the layer that reads the picture stays in float
        assert both == ([None, None] if node.input[0] == "image" else ["DequantizeLinear"] * 2)
        assert weights[node.input[2]].dtype == np.float32  # bias
        if node.input[0] != "image":
            scale = weights[made_by[node.input[1]].input[1]]
            assert scale.shape == (weights[node.input[2]].size,)  # per channel


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("engine", ["onnxruntime-cpu", "openvino"])
def test_symbols_have_unit_power_in_every_precision(bundle, small_images, precision, engine):
    images = np.concatenate([small_images(3), np.zeros((1, 3, 32, 24), np.float32)])
    symbols = open_engine(engine, bundle.graph("transmitter", precision))(images, np.arange(32, dtype=np.int32).reshape(4, 8))
    assert np.square(symbols).sum(axis=(1, 2)) / 96 == pytest.approx(np.ones(4), abs=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_both_cpu_engines_agree(bundle, small_images, precision):
    index = np.arange(24, dtype=np.int32).reshape(3, 8)
    graph = bundle.graph("transmitter", precision)
    ours, theirs = (open_engine(engine, graph)(small_images(3), index) for engine in ("onnxruntime-cpu", "openvino"))
    # a value at the border of two levels may fall to either side
    assert np.mean(np.abs(ours - theirs) > 1e-3) < (0.01 if precision == "int8" else 1e-9)


@pytest.mark.parametrize("engine", ["onnxruntime-cpu", "openvino"])
def test_a_layer_takes_its_first_channels_eight_times_finer(engine):
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(0, 0.1, (8, 16, 3, 3)), "level": rng.uniform(0.5, 1.5, (16, 1, 1))}
    nodes = [
        helper.make_node("Mul", ["x", "level"], ["taken"], "level"),
        helper.make_node("Conv", ["taken", "w"], ["y"], "layer", pads=[1, 1, 1, 1]),
    ]
    values = [helper.make_tensor_value_info("x", 1, ["batch", 16, 20, 20]), helper.make_tensor_value_info("y", 1, None)]
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    x = rng.standard_normal((1, 16, 20, 20), np.float32)
    exact = open_engine(engine, data)(x)

    def error(fine):
        run = open_engine(engine, to_int8(data, [{"x": x}], {"w": Int8Step(0.05, fine)}))
        return float(np.sqrt(np.square(run(x) - exact).mean()))

    none, half, all_ = map(error, (0, 8, 16))
    assert all_ < none / 2  # what is left are the weights' eight bits
    assert half**2 == pytest.approx((none**2 + all_**2) / 2, rel=0.1)


def test_a_graph_with_nothing_to_quantise_is_named():
    node = helper.make_node("Sigmoid", ["image"], ["y"], "s")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 4, 4]) for name in ("image", "y")]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    with pytest.raises(GraphError, match=r"nothing to quantise.*\nhint: leave out int8"):
        to_int8(data, [{"image": np.zeros((1, 3, 4, 4), np.float32)}])
    half = onnx.load_model_from_string(to_fp16(data)).graph
    assert [n.op_type for n in half.node] == ["Cast", "Sigmoid", "Cast"]
