import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from semseal.export.rewrite import equalize, rewrite

rng = np.random.default_rng(0)


def graph(nodes, weights, channels, outputs=("y",)):
    """An opset-20 graph from x [batch, channels, height, width]."""
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", channels, "height", "width"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}{i}" for i in range(4)]) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def run(data, x, output="y"):
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run([output], {"x": x})[0]


def operators(data):
    return [node.op_type for node in onnx.load_model_from_string(data).graph.node]


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    stride=st.integers(1, 3),
    kernel=st.integers(1, 6),
    channels=st.integers(1, 3),
    made=st.integers(1, 4),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    bias=st.booleans(),
    data=st.data(),
)
def test_a_transposed_convolution_becomes_an_equal_convolution(stride, kernel, channels, made, size, bias, data):
    # all pads and output paddings for which the output is stride times the input
    choices = [(p, 2 * p + stride - kernel) for p in range(kernel) if 0 <= 2 * p + stride - kernel < stride]
    if not choices:
        return
    pad, extra = data.draw(st.sampled_from(choices))
    weights = {"w": normal(channels, made, kernel, kernel), "b": normal(made)}
    attributes = {"strides": [stride] * 2, "pads": [pad] * 4, "output_padding": [extra] * 2, "kernel_shape": [kernel] * 2}
    node = helper.make_node("ConvTranspose", ["x", "w", "b"][: 2 + bias], ["y"], "up", **attributes)
    before = graph([node], weights, channels)
    after = rewrite(before)
    assert operators(after) == (["Conv"] if stride == 1 else ["Conv", "DepthToSpace"])
    x = normal(2, channels, *size)
    np.testing.assert_allclose(run(after, x), run(before, x), atol=2e-5)


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [2, 2]},  # gives 2 * in + 1
        {"group": 2, "pads": [1] * 4},
        {"dilations": [2, 2], "pads": [2] * 4},
        {"strides": [1, 2], "pads": [1] * 4, "output_padding": [0, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    ],
)
def test_another_transposed_convolution_stays(attributes):
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], "up", **attributes)
    before = graph([node], {"w": normal(4, 2, 3, 3)}, 4)
    after = rewrite(before)
    assert operators(after) == ["ConvTranspose"]
    x = normal(1, 4, 5, 6)
    assert np.array_equal(run(after, x), run(before, x))


@pytest.mark.parametrize(("slopes", "expected"), [([0.25, -0.5, 1.0], ["Mul", "Max"]), ([0.25, 1.5, 0.1], ["PRelu"])])
def test_prelu_is_a_maximum_where_that_is_exact(slopes, expected):
    weights = {"a": np.array(slopes, np.float32).reshape(3, 1, 1)}
    before = graph([helper.make_node("PRelu", ["x", "a"], ["y"], "prelu")], weights, 3)
    after = rewrite(before)
    assert operators(after) == expected
    x = normal(2, 3, 4, 5)
    assert np.array_equal(run(after, x), run(before, x))


def network(middle, channels=5):
    """Two convolutions with ``middle`` nodes between ``a`` and ``b``; channel ranges that differ by a factor of 100."""
    weights = {"w1": normal(channels, 2, 3, 3) * np.logspace(-1, 1, channels, dtype=np.float32)[:, None, None, None]}
    weights |= {"b1": 0.1 * normal(channels), "w2": normal(3, channels, 3, 3), "b2": normal(3)}
    weights["slope"] = np.full((channels, 1, 1), 0.3, np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], "first", pads=[1] * 4),
        *middle,
        helper.make_node("Conv", ["b", "w2", "b2"], ["y"], "second", pads=[1] * 4),
    ]
    return nodes, weights


MIDDLES = {
    "prelu": [helper.make_node("PRelu", ["a", "slope"], ["b"])],
    "max": [helper.make_node("Mul", ["a", "slope"], ["s"]), helper.make_node("Max", ["a", "s"], ["b"])],
    "relu, pool": [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("MaxPool", ["r"], ["b"], kernel_shape=[2, 2])],
}


@pytest.mark.parametrize("middle", MIDDLES.values(), ids=MIDDLES.keys())
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_equalized_channels_have_one_range_and_the_function_is_the_same(middle, strength):
    nodes, weights = network(middle)
    before = graph(nodes, weights, 2, outputs=("y", "b"))
    plain = graph(nodes, weights, 2)
    x = normal(4, 2, 12, 12)
    after = equalize(plain, [{"x": x}], strength, quantile=1.0)
    np.testing.assert_allclose(run(after, x), run(plain, x), rtol=1e-3, atol=1e-3)
    model = onnx.load_model_from_string(after)
    model.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n", "c", "i", "j"]))
    spread = np.ptp(np.log(np.abs(run(model.SerializeToString(), x, "b")).max(axis=(0, 2, 3))))
    spread_before = np.ptp(np.log(np.abs(run(before, x, "b")).max(axis=(0, 2, 3))))
    assert spread < (1e-3 if strength == 1.0 else spread_before)


@pytest.mark.parametrize(
    "middle",
    [
        [helper.make_node("Sigmoid", ["a"], ["b"])],
        [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Add", ["r", "a"], ["b"])],
        [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Neg", ["a"], ["z"])],
    ],
    ids=["not homogeneous", "a sum", "read elsewhere"],
)
def test_nothing_is_equalized_where_it_would_change_the_function(middle):
    nodes, weights = network(middle)
    outputs = ("y", "z") if any("z" in node.output for node in middle) else ("y",)
    before = graph(nodes, weights, 2, outputs)
    after = onnx.load_model_from_string(equalize(before, [{"x": normal(1, 2, 6, 6)}], 1.0, 1.0))
    assert {t.name: numpy_helper.to_array(t).tobytes() for t in after.graph.initializer if t.name != "slope"} == {
        name: values.tobytes() for name, values in weights.items() if name != "slope"
    }
