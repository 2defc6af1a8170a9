"""Small graphs of one or a few operators, and what ONNX Runtime and torch make of them."""

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from semseal.runtime.audit.surrogate import Surrogate

RNG = np.random.default_rng(0)
I64, F32 = np.int64, np.float32


def model(operator, x, constants=(), opset=20, outputs=1, after="", **attributes):
    """A graph of one operator: ``x`` is its first input, the constants (None: left out) are the others."""
    names = ["x"] + ["" if value is None else f"c{i}" for i, value in enumerate(constants)]
    nodes = [helper.make_node(operator, names, [f"y{i}" for i in range(outputs)], **attributes)]
    if outputs > 1:  # so that every part counts
        nodes.append(helper.make_node("Concat", [f"y{i}" for i in range(outputs)], ["y"], axis=attributes.get("axis", 0)))
    weights = [numpy_helper.from_array(np.asarray(value), f"c{i}") for i, value in enumerate(constants) if value is not None]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape),
        helper.make_tensor_value_info("y" if outputs > 1 else "y0", TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9).SerializeToString()


def in_onnxruntime(graph, *inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([value.name for value in session.get_inputs()], inputs, strict=True)))[0]


def check_forward(graph, x):
    expected, surrogate = in_onnxruntime(graph, x), Surrogate(graph)
    with torch.no_grad():
        got = surrogate(torch.from_numpy(x)).numpy()
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):  # as it runs in an attack where the processor has it
        rough = surrogate(torch.from_numpy(x).requires_grad_()).float()
    assert (rough - torch.from_numpy(expected)).abs().mean() <= 0.05 * np.abs(expected).mean() + 0.05
    rough.sum().backward()
    return surrogate


def check(graph, x):
    """Forward, and the gradient in float64 by differences, away from kinks."""
    surrogate = check_forward(graph, x).double()
    assert torch.autograd.gradcheck(surrogate, torch.from_numpy(x).double().requires_grad_(), fast_mode=True)


def normal(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(F32)


def apart(*shape):
    """No two values near each other, or near a multiple of a quarter: no kink, no tie, no step within reach of a difference."""
    values = (np.arange(np.prod(shape)) - np.prod(shape) // 2) / 4 + 0.11
    return np.random.default_rng(1).permutation(values / max(1, np.abs(values).max() / 3.3)).reshape(shape).astype(F32)


PICTURE, TOKENS = normal(2, 4, 6, 5), normal(2, 3, 8)
ONES, EIGHT = np.ones(8, F32), normal(8)


def graph_of(nodes, shape, weights=(), opset=20, inputs=("x",), output="y"):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs]
    last = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", ends, [last], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9).SerializeToString()


def written(text, opset=20):
    """A graph in ONNX's own notation, of ``x`` float [2, 3, 8] to ``y``."""
    header = f'<ir_version: 9, opset_import: ["" : {opset}]> g (float[2, 3, 8] x) => (float[] y)'
    parsed = onnx.parser.parse_model(f"{header} {{ {text} }}")
    parsed.graph.output[0].type.tensor_type.ClearField("shape")
    return parsed.SerializeToString()
