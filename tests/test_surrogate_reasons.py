"""What cannot be differentiated is named, and a copy that is not the engine is not used."""

import numpy as np
import onnx
import pytest
import torch
from graphs import F32, graph_of
from onnx import TensorProto, helper, numpy_helper
from semseal.runtime.audit.surrogate import TOLERANCE, Surrogate, why_unsupported
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import GraphError

# what cannot be


ENDS = "float[2, 3, 4, 4] image"


def reason_of(body, opset=20, deployed=None):
    header = f'<ir_version: 9, opset_import: ["" : {opset}]> g ({ENDS}) => (float[] y)'
    parsed = onnx.parser.parse_model(f"{header} {{ {body} }}")
    parsed.graph.output[0].type.tensor_type.ClearField("shape")
    graph = parsed.SerializeToString()
    image = np.random.default_rng(0).random((2, 3, 4, 4), F32)
    return why_unsupported(graph, deployed or open_engine("onnxruntime-cpu", graph), [image])


def test_what_can_be_differentiated_has_no_reason():
    assert reason_of("y = Flatten(image)") == ""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("y = Det(image)", "cannot differentiate the operators Det"),
        ("h = Hardmax(image) n, m = LayerNormalization(h, h) y = NonMaxSuppression(n, h)", "Hardmax, NonMaxSuppression"),
        ("a = ArgMax<axis = 1>(image) y = Cast<to = 1>(a)", "ArgMax"),
        ("roi = Constant<value_floats = [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.5, 0.5]>() s = Constant<value_ints = [2, 3, 2, 2]>() "
         "y = Resize<coordinate_transformation_mode = \"tf_crop_and_resize\">(image, roi, , s)", "tf_crop_and_resize"),
        ("z = Constant<value_float = 0.5>() b = Greater(image, z) y = Cast<to = 1>(b)", "no gradient"),
        ("y = Constant<value_floats = [1.0]>()", "no gradient"),
        ("f = Flatten(image) c = Cast<to = 7>(f) k = Gather<axis = 1>(f, c) y = Relu(k)", "index is computed from the picture"),
        ("m, i = MaxPool<kernel_shape = [2, 2]>(image) y = Cast<to = 1>(i)", "Cast takes 'i'"),
    ],
)  # fmt: skip
def test_what_cannot_be_differentiated_is_named(body, words):
    needs_no_engine = lambda *_: np.ones((2, 1), F32)  # noqa: E731
    reason = reason_of(body, deployed=needs_no_engine if "NonMax" in body else None)
    assert words in reason
    assert "\n" not in reason


@pytest.mark.parametrize(("wrong", "fails"), [(TOLERANCE / 2, False), (2 * TOLERANCE, True)])
def test_a_surrogate_that_is_not_the_engine_is_not_used(wrong, fails):
    """The tolerance is of the symbols' RMS, and the figure is told."""

    def deployed(image):
        return image * F32(1 + wrong)

    reason = reason_of("y = Identity(image)", deployed=deployed)
    assert ("3.85% away, more than 2%" in reason) is fails
    assert bool(reason) is fails
    assert "[2, 3, 4, 4], the engine [2, 48]" in reason_of("y = Identity(image)", deployed=lambda x: x.reshape(2, 48))
    assert "nan" in reason_of("y = Identity(image)", deployed=lambda x: x * F32(np.nan))


def test_an_engine_that_fails_is_not_the_surrogates_fault():
    def broken(image):
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        reason_of("y = Identity(image)", deployed=broken)


@pytest.mark.parametrize("domain", ["com.microsoft", "mine"])
def test_operators_of_other_domains_are_not_taken_for_onnxs(domain):
    node = helper.make_node("Gelu", ["x"], ["y"], domain=domain)
    with pytest.raises(GraphError, match=f"{domain}.Gelu"):
        Surrogate(graph_of([node], (2, 3)))


@pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16", "DOUBLE", "UINT16", "INT16", "UINT64", "INT4"])
def test_constants_of_every_number_type(kind):
    """Whatever the type is stored as, its numbers take part: here as factors."""
    values = helper.make_tensor("k", getattr(TensorProto, kind), [2], [1, 3])
    nodes = [
        helper.make_node("Cast", ["k"], ["factors"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "factors"], ["y"]),
    ]
    got = Surrogate(graph_of(nodes, (2, 2), [values]))(torch.ones(2, 2))
    assert got.tolist() == [[1, 3], [1, 3]]


def test_a_name_may_hold_any_character():
    weights = [numpy_helper.from_array(F32([k]), name) for k, name in ((2, "a.b"), (3, "a|b"), (5, "forward"))]
    nodes = [
        helper.make_node("Mul", ["x", "a.b"], ["p"]),
        helper.make_node("Mul", ["p", "a|b"], ["q"]),
        helper.make_node("Mul", ["q", "forward"], ["y"]),
    ]
    assert Surrogate(graph_of(nodes, (1,), weights))(torch.ones(1)).item() == 30
