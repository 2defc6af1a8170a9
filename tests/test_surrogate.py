"""The differentiable copy of a transmitter: operators give what ONNX Runtime gives, and their gradients are right."""

import functools
import itertools
import warnings

import numpy as np
import onnx
import pytest
import torch
from graphs import (
    EIGHT,
    F32,
    I64,
    PICTURE,
    TOKENS,
    apart,
    check,
    check_forward,
    graph_of,
    in_onnxruntime,
    model,
    normal,
    written,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from semseal.runtime.audit.operators import OPERATORS
from semseal.runtime.audit.surrogate import Surrogate

# operator, first input, the other inputs, attributes with ``opset`` and ``outputs``
CASES = [
    *[(name, apart(3, 5), (), {}) for name in ("Abs", "Neg", "Relu", "Sigmoid", "Tanh", "Exp", "Erf", "Softplus", "Softsign")],
    *[(name, apart(3, 5), (), {}) for name in ("HardSwish", "Mish", "Elu", "Celu", "Selu", "LeakyRelu", "HardSigmoid", "Gelu")],
    *[(name, apart(3, 5), (), {}) for name in ("ThresholdedRelu", "Identity", "Sin", "Cos", "Sinh", "Cosh", "Atan", "Asinh")],
    *[(name, apart(3, 5) / 4, (), {}) for name in ("Asin", "Acos", "Atanh", "Tan")],
    *[(name, np.abs(apart(3, 5)) + F32(1.5), (), {}) for name in ("Log", "Sqrt", "Reciprocal", "Acosh")],
    ("Elu", apart(3, 5), (), {"alpha": 0.3}),
    ("Celu", apart(3, 5), (), {"alpha": 2.0}),
    ("Selu", apart(3, 5), (), {"alpha": 2.0, "gamma": 0.5}),
    ("LeakyRelu", apart(3, 5), (), {"alpha": 0.3}),
    ("HardSigmoid", apart(3, 5), (), {"alpha": 0.3, "beta": 0.4}),
    ("ThresholdedRelu", apart(3, 5), (), {"alpha": 0.4}),
    ("Gelu", apart(3, 5), (), {"approximate": "tanh"}),
    ("Shrink", apart(3, 5), (), {"lambd": 0.7, "bias": 0.2}),
    ("PRelu", apart(2, 3, 4), (normal(3, 1),), {}),
    ("PRelu", apart(2, 3, 4), (normal(2, 3, 4),), {}),
    ("PRelu", apart(2, 3, 4), (normal(1),), {"opset": 11}),
    *[(name, apart(2, 3, 4), (normal(3, 1),), {}) for name in ("Add", "Sub", "Mul", "Div")],
    *[(name, apart(2, 3, 4), (normal(4), normal(2, 1, 1)), {}) for name in ("Max", "Min", "Sum", "Mean")],
    *[(name, apart(2, 3, 4), (), {}) for name in ("Max", "Min", "Sum", "Mean")],
    ("Pow", np.abs(apart(3, 5)), (F32(2),), {}),
    ("Pow", np.abs(apart(3, 5)) + F32(1), (F32(0.5),), {}),
    ("Pow", np.abs(apart(3, 5)) + F32(1), (F32([-1.5]),), {}),
    ("Pow", apart(3, 5), (I64(3),), {}),
    ("Pow", np.abs(apart(3, 5)) + F32(1), (F32([1, 2, 0.5, 0, 3]),), {}),
    ("Mod", apart(3, 5) + F32(0.05), (F32(2),), {"fmod": 1}),
    ("Clip", apart(3, 5), (F32(-0.5), F32(0.9)), {}),
    ("Clip", apart(3, 5), (None, F32(0.9)), {}),
    ("Clip", apart(3, 5), (F32(-0.5),), {"opset": 11}),
    ("Clip", apart(3, 5), (), {}),
    ("Dropout", TOKENS, (), {}),
    ("Dropout", TOKENS, (F32(0.5), np.array(False)), {"opset": 13}),
    # normalisation
    ("BatchNormalization", PICTURE, (normal(4), normal(4), normal(4), np.abs(normal(4))), {"epsilon": 1e-3}),
    ("BatchNormalization", normal(5, 4), (normal(4), normal(4), normal(4), np.abs(normal(4))), {"opset": 13}),
    ("InstanceNormalization", PICTURE, (normal(4), normal(4)), {"epsilon": 1e-2}),
    ("InstanceNormalization", normal(2, 4, 7), (normal(4), normal(4)), {"opset": 11}),
    ("GroupNormalization", PICTURE, (normal(2), normal(2)), {"num_groups": 2, "opset": 18}),
    ("GroupNormalization", PICTURE, (normal(4), normal(4)), {"num_groups": 2, "opset": 21}),
    ("LayerNormalization", TOKENS, (EIGHT, EIGHT), {}),
    ("LayerNormalization", TOKENS, (normal(3, 8),), {"axis": 1, "epsilon": 1e-2}),
    ("LayerNormalization", TOKENS, (normal(1), EIGHT), {"axis": 2}),
    ("RMSNormalization", TOKENS, (EIGHT,), {"opset": 23}),
    ("MeanVarianceNormalization", PICTURE, (), {"opset": 13}),
    *[("LRN", normal(2, 7, 3, 2), (), {"size": size, "alpha": 0.5, "beta": 0.6, "bias": 1.5}) for size in (1, 3, 5)],
    *[("LpNormalization", TOKENS, (), {"axis": axis, "p": p}) for axis, p in ((-1, 2), (1, 1))],
    # softmax: over one axis, before opset 13 over all from it on
    *[(name, TOKENS, (), {"opset": opset}) for name in ("Softmax", "LogSoftmax") for opset in (11, 13)],
    *[("Softmax", TOKENS, (), {"opset": opset, "axis": axis}) for opset in (11, 13) for axis in (0, 1, 2)],
    # products
    ("MatMul", TOKENS, (normal(8, 5),), {}),
    ("MatMul", normal(8), (normal(2, 8, 5),), {}),
    ("Gemm", normal(3, 8), (normal(5, 8), normal(5)), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", normal(8, 3), (normal(8, 5),), {"transA": 1}),
    ("Einsum", TOKENS, (normal(2, 3, 8),), {"equation": "bij, bkj -> bik"}),
    ("Einsum", TOKENS, (), {"equation": "...ij->...ji"}),
    # rearrangement
    ("Reshape", TOKENS, (I64([0, -1]),), {}),
    ("Reshape", TOKENS, (I64([-1, 6]),), {}),
    ("Reshape", TOKENS, (I64([48]),), {"allowzero": 1}),
    *[("Flatten", TOKENS, (), {"axis": axis}) for axis in (0, 1, -1, 3)],
    ("Transpose", TOKENS, (), {"perm": [1, 2, 0]}),
    ("Transpose", TOKENS, (), {}),
    ("Squeeze", normal(1, 3, 1, 2), (I64([0, -2]),), {}),
    ("Squeeze", normal(1, 3, 1, 2), (), {}),
    ("Squeeze", normal(1, 3, 1, 2), (), {"axes": [2], "opset": 11}),
    ("Unsqueeze", TOKENS, (I64([-1, 0]),), {}),
    ("Unsqueeze", TOKENS, (), {"axes": [1, 2], "opset": 11}),
    ("Concat", TOKENS, (normal(2, 1, 8),), {"axis": -2}),
    ("Expand", normal(3, 1), (I64([2, 1, 5]),), {}),
    ("Tile", normal(3, 2), (I64([2, 3]),), {}),
    *[("SpaceToDepth", normal(2, 3, 4, 6), (), {"blocksize": 2})],
    *[("DepthToSpace", normal(2, 12, 3, 2), (), {"blocksize": 2, **mode}) for mode in ({}, {"mode": "DCR"}, {"mode": "CRD"})],
    ("Split", normal(6, 4), (), {"outputs": 3, "opset": 11}),
    ("Split", normal(6, 4), (), {"outputs": 2, "split": [1, 3], "axis": 1, "opset": 11}),
    ("Split", normal(6, 4), (I64([2, 4]),), {"outputs": 2, "opset": 13}),
    ("Split", normal(6, 4), (), {"outputs": 2, "axis": -1, "opset": 13}),
    ("Split", normal(7, 4), (), {"outputs": 3, "num_outputs": 3}),
    ("Slice", normal(5, 6), (I64([1, -4]), I64([9, -1])), {}),
    ("Slice", normal(5, 6), (I64([-1]), I64([-99]), I64([1]), I64([-2])), {}),
    ("Slice", normal(5, 6), (np.int32([4, 0]), np.int32([0, 5]), np.int32([0, -1]), np.int32([-1, 2])), {}),
    ("Trilu", normal(4, 5), (), {"upper": 0}),
    ("Trilu", normal(4, 5), (I64(-1),), {}),
    ("CumSum", normal(3, 4), (I64(1),), {"exclusive": 1, "reverse": 1}),
    ("CumSum", normal(3, 4), (I64(-2),), {}),
    # indices
    ("Gather", normal(4, 3, 2), (I64([[2, -1], [0, 0]]),), {"axis": 1}),
    ("Gather", normal(4, 3, 2), (I64(-1),), {}),
    ("Gather", normal(4), (I64(2),), {}),
    ("GatherND", normal(4, 3), (I64([1, 2]),), {}),
    ("Gather", normal(4, 3, 2), (np.int32([2, 1, 0]),), {"axis": 1}),
    ("GatherElements", normal(4, 3), (I64([[0, -1, 2]]),), {"axis": 0}),
    ("GatherND", normal(4, 3, 2), (I64([[0, 1], [-1, 2]]),), {}),
    ("GatherND", normal(2, 3, 2, 2), (I64([[[1], [0]], [[2], [-3]]]),), {"batch_dims": 1}),
    ("GatherND", normal(2, 3, 2), (I64([[[1, 0, 1]]]),), {}),
    *[
        ("ScatterND", normal(4, 3), (I64([[1], [-1]]), normal(2, 3)), r)
        for r in ({}, {"reduction": "add"}, {"reduction": "mul"})
    ],
    ("ScatterND", apart(4, 3), (I64([[0, 1], [3, 2], [0, 1]]), F32([0.3, -2, 0.8])), {"reduction": "max", "opset": 18}),
    ("ScatterElements", normal(4, 3), (I64([[1, -1, 2]]), normal(1, 3)), {}),
    ("ScatterElements", normal(4, 3), (I64([[1, 1]]), normal(1, 2)), {"axis": 1, "reduction": "add"}),
    # transposed convolutions
    ("ConvTranspose", normal(2, 4, 5, 3), (normal(4, 2, 3, 3), normal(2)), {"strides": [2, 2], "output_padding": [1, 0]}),
    ("ConvTranspose", normal(2, 4, 5, 3), (normal(4, 1, 3, 2),), {"strides": [2, 3], "pads": [0, 1, 1, 0], "group": 2}),
    ("ConvTranspose", normal(2, 4, 5, 3), (normal(4, 2, 3, 3),), {"strides": [3, 2], "output_shape": [14, 7]}),
    *[("ConvTranspose", normal(1, 4, 5), (normal(4, 2, 4),), {"strides": [3], "auto_pad": a}) for a in ("SAME_UPPER", "VALID")],
    ("ConvTranspose", normal(1, 4, 5), (normal(4, 2, 3),), {"dilations": [2], "auto_pad": "SAME_LOWER"}),
    # pooling
    *[(name, apart(2, 3, 5, 4), (), {}) for name in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")],
    ("GlobalAveragePool", normal(2, 3, 5), (), {}),
    ("LpPool", apart(1, 2, 6, 5), (), {"kernel_shape": [3, 2], "strides": [2, 1], "p": 2}),
    ("LpPool", apart(1, 2, 6), (), {"kernel_shape": [3], "pads": [1, 0], "p": 3}),
    # constants
    ("Cast", TOKENS, (), {"to": TensorProto.FLOAT}),
]


def name_of(case):
    return "-".join([case[0], *(f"{key}={value}" for key, value in case[3].items())])


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_an_operator_and_its_gradient(case):
    operator, x, constants, attributes = case
    check(model(operator, x, constants, **attributes), x)


REDUCTIONS = [name for name in OPERATORS if name.startswith("Reduce")]


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("axes", [None, [1], [-1, 0]])
def test_a_reduction_with_axes_as_attribute_and_as_input(name, axes):
    x = np.abs(apart(2, 3, 4)) + F32(0.2)
    for keep in (0, 1):
        attribute = {"keepdims": keep} if axes is None else {"keepdims": keep, "axes": axes}
        check(model(name, x, opset=11, **attribute), x)
        check(model(name, x, () if axes is None else (I64(axes),), opset=20, keepdims=keep), x)
    if axes is None:
        check_forward(model(name, x, opset=20, noop_with_empty_axes=1), x)


@pytest.mark.parametrize("name", ["Round", "Floor", "Ceil", "Sign"])
def test_what_is_rounded_passes_its_gradient_straight_through(name):
    x = np.concatenate([apart(40), F32([0.5, 1.5, -0.5, 2.5, 0, -1])])
    surrogate = check_forward(model(name, x), x)
    given = torch.from_numpy(x).requires_grad_()
    (gradient,) = torch.autograd.grad(surrogate(given).square().sum(), given)
    assert torch.equal(gradient, 2 * surrogate(given).detach())


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("axis", [None, 1])
def test_quantisation_passes_its_gradient_straight_through_within_the_levels(kind, axis):
    scale = F32(0.1) if axis is None else F32([0.1, 0.05, 0.2])
    zero = kind(3) if axis is None else np.array([3, 0, 100], kind)
    x = 9 * normal(4, 3, 5)
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], **attributes),
    ]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in (("scale", scale), ("zero", zero))]
    graph = graph_of(nodes, x.shape, weights)
    surrogate = check_forward(graph, x)
    given = torch.from_numpy(x).requires_grad_()
    y = surrogate(given)
    (gradient,) = torch.autograd.grad(y.sum(), given)
    steps = torch.from_numpy(np.broadcast_to(np.reshape(scale, (-1, 1) if axis else ()), (4, 3, 5)).copy())
    inside = (y.detach() - given.detach()).abs() <= 0.51 * steps
    assert 0.1 < inside.float().mean() < 0.9
    assert torch.allclose(gradient[inside], torch.ones(()), rtol=1e-5)
    assert not gradient[(y.detach() - given.detach()).abs() > 1.01 * steps].any()


def test_operators_that_compute_in_8_bits():
    """As a static quantisation in the QOperator format writes them, one scale for each channel."""
    x, rng = normal(1, 3, 6, 5), np.random.default_rng(0)
    bits = {
        "s": F32(0.03), "z": np.uint8(120), "t": F32(0.1), "u": np.uint8(128),
        "k": rng.integers(-90, 90, (4, 3, 3, 3), np.int8),
        "ks": F32([0.01, 0.02, 0.015, 0.01]), "kz": np.zeros(4, np.int8), "b": np.int32([50, -900, 0, 400]),
        "m": rng.integers(-90, 90, (5, 2), np.int8), "ms": F32(0.01), "mz": np.int8(3), "v": F32(0.05),
    }  # fmt: skip
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in bits.items()]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearConv", ["q", "s", "z", "k", "ks", "kz", "t", "u", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("QLinearMatMul", ["c", "t", "u", "m", "ms", "mz", "v", "u"], ["p"]),
        helper.make_node("DequantizeLinear", ["p", "v", "u"], ["y"]),
    ]
    graph = graph_of(nodes, x.shape, weights)
    given = torch.from_numpy(x).requires_grad_()
    y = Surrogate(graph)(given)
    assert np.abs(y.detach().numpy() - in_onnxruntime(graph, x)).max() < 0.051  # a level at most
    assert torch.autograd.grad(y.sum(), given)[0].any()


def test_shapes_and_indices_are_computed_in_the_graph():
    check(
        written("""
        s = Shape(x)  i = Constant<value_ints = [0]>()  n = Gather(s, i)  last = Shape<start = -1>(x)
        two = Constant<value_int = 2>()  half = Div(last, two)  rest = Constant<value_ints = [-1]>()
        new = Concat<axis = 0>(n, rest, half)  shaped = Reshape(x, new)
        count = Size(x)  f = Cast<to = 1>(count)  root = Sqrt(f)  scaled = Div(shaped, root)
        zero = Constant<value_int = 0>()  one = Constant<value_int = 1>()  k = Squeeze(half)
        places = Range(zero, k, one)  turned = Sub(k, places)  index = Sub(turned, one)
        flipped = Gather<axis = 2>(scaled, index)
        size = Shape(shaped)  like = ConstantOfShape<value = float[1] {0.5}>(size)  moved = Add(flipped, like)
        odd = Mod(places, two)  b = Cast<to = 9>(odd)  mask = Not(b)  y = Where(mask, moved, flipped)
        """),
        TOKENS,
    )


def test_the_largest_values_are_picked():
    nodes = [helper.make_node("TopK", ["x", "k"], ["y", "places"], largest=0, axis=1)]
    x = apart(3, 7)
    check(graph_of(nodes, x.shape, [numpy_helper.from_array(I64([2]), "k")]), x)


def test_a_cast_to_levels_passes_its_gradient_straight_through():
    """Pictures that are brought to 0..255 and back, as camera pipelines do."""
    x = np.random.default_rng(0).random((2, 3, 8), F32)
    grain = "k = Constant<value_float = 255.0>() big = Mul(x, k)"
    surrogate = check_forward(written(f"{grain} u = Cast<to = 2>(big) back = Cast<to = 1>(u) y = Div(back, k)"), x)
    given = torch.from_numpy(x).requires_grad_()
    (gradient,) = torch.autograd.grad(surrogate(given).sum(), given)
    assert torch.allclose(gradient, torch.ones(()))


def test_a_root_of_zero_has_a_gradient():
    """A black picture: the norm of nothing, by ReduceL2 or by hand."""
    x = np.zeros((2, 3, 8), F32)
    for text in ("y = ReduceL2(x)", "s = Mul(x, x) m = ReduceSum(s) y = Sqrt(m)", "y = LpNormalization(x)"):
        given = torch.from_numpy(x).requires_grad_()
        (gradient,) = torch.autograd.grad(Surrogate(written(text))(given).sum(), given)
        assert gradient.isfinite().all()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 2), name=st.sampled_from(["Conv", "MaxPool", "AveragePool"]))
def test_windows_of_any_size_stride_and_padding(data, n, name):
    kernel, strides, dilations = (data.draw(st.lists(st.integers(1, 3), min_size=n, max_size=n)) for _ in range(3))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    size = [data.draw(st.integers(r, r + 5)) for r in reach]
    automatic = data.draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    attributes = {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "auto_pad": automatic}
    if automatic == "NOTSET":
        attributes["pads"] = [data.draw(st.integers(0, k - 1)) for k in kernel * 2]
    elif name != "Conv" or automatic.startswith("SAME"):
        attributes["dilations"] = [1] * n if automatic.startswith("SAME") else dilations
        assume(automatic == "VALID" or all(k >= stride for k, stride in zip(kernel, strides, strict=True)))
    if name != "Conv":
        attributes["ceil_mode"] = data.draw(st.integers(0, 1)) if automatic == "NOTSET" else 0
    if name == "AveragePool":
        attributes["count_include_pad"] = data.draw(st.integers(0, 1))
    group = data.draw(st.sampled_from([1, 2])) if name == "Conv" else 1
    x = apart(1, 4, *size)
    constants = (normal(2, 4 // group, *kernel), normal(2)) if name == "Conv" else ()
    if name == "Conv":
        attributes["group"] = group
    check(model(name, x, constants, **attributes), x)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), mode=st.sampled_from(["constant", "reflect", "edge", "wrap"]))
def test_padding_of_any_size(data, mode):
    shape = data.draw(st.lists(st.integers(2, 5), min_size=3, max_size=4))
    least = -1 if mode == "constant" else 0
    pads = [data.draw(st.integers(least, shape[i % len(shape)] - 1)) for i in range(2 * len(shape))]
    assume(all(shape[i] + pads[i] + pads[i + len(shape)] > 0 for i in range(len(shape))))
    x = normal(*shape)
    value = (F32(0.7),) if mode == "constant" else ()
    check(model("Pad", x, (I64(pads), *value), mode=mode, opset=19), x)
    axes = data.draw(st.permutations(range(len(shape))))[:2]
    chosen = [pads[axis] for axis in axes] + [pads[axis + len(shape)] for axis in axes]
    check(model("Pad", x, (I64(chosen), value[0] if value else None, I64(axes)), mode=mode, opset=19), x)


def test_padding_with_a_constant_is_an_attribute_of_old():
    check_forward(model("Pad", PICTURE, opset=10, pads=[0, 0, 1, 2, 0, 0, 0, 1], value=0.3), PICTURE)


RESIZES = [
    {"mode": mode, "coordinate_transformation_mode": coordinates, **more}
    for mode, coordinates, more in [
        *itertools.product(
            ("linear", "cubic"),
            ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"),
            ({},),
        ),
        *(("nearest", "asymmetric", {"nearest_mode": name}) for name in ("floor", "ceil", "round_prefer_floor")),
        *(("nearest", "half_pixel", {"nearest_mode": name}) for name in ("round_prefer_floor", "round_prefer_ceil")),
        ("cubic", "half_pixel", {"cubic_coeff_a": -0.5, "exclude_outside": 1}),
        ("linear", "half_pixel", {"antialias": 1}),
        ("cubic", "half_pixel", {"antialias": 1, "exclude_outside": 1}),
    ]
]


@pytest.mark.parametrize("attributes", RESIZES, ids=lambda a: "-".join(map(str, a.values())))
def test_resizing(attributes):
    x = normal(1, 2, 6, 5)
    for wanted in ([1, 2, 12, 10], [1, 2, 3, 4], [1, 2, 9, 1]):
        check(model("Resize", x, (None, None, I64(wanted)), opset=19, **attributes), x)
    for scales in ([1, 1, 2, 2], [1, 1, 1.5, 0.7]):
        check(model("Resize", x, (None, F32(scales)), opset=19, **attributes), x)


def test_resizing_of_all_versions():
    x = normal(1, 2, 6, 5)
    scales = F32([1, 1, 2, 0.6])
    check(model("Resize", x, (scales,), opset=10, mode="nearest"), x)
    check(model("Resize", x, (scales,), opset=10, mode="linear"), x)
    check(model("Resize", x, (F32([]), scales), opset=11, mode="linear"), x)
    check(model("Resize", x, (None, F32([]), I64([1, 2, 3, 9])), opset=13, mode="nearest"), x)
    check(model("Resize", x, (None, F32([2.5])), opset=18, mode="linear", axes=[3]), x)
    for policy in ("not_larger", "not_smaller"):
        more = {"axes": [2, 3], "keep_aspect_ratio_policy": policy, "mode": "linear"}
        check(model("Resize", x, (None, None, I64([9, 9])), opset=18, **more), x)
    check(model("Upsample", x, (F32([1, 1, 2, 3]),), opset=9, mode="nearest"), x)
    check(model("Upsample", x, opset=7, mode="nearest", scales=[1.0, 1.0, 2.0, 3.0]), x)


@functools.cache
def onnx_cases():
    """Those of the onnx package for the operators that the surrogate has, of one float input at least."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [case for case in collect_testcases(None) if len(case.model.graph.node) == 1 and case.data_sets]


# why not: what each case, or all of an operator, is for
NOT_DIFFERENTIABLE = ("training", "empty_set", "crop_and_resize")


def test_the_operators_do_what_the_tests_of_onnx_say():
    """Expected values are onnx's own, or ONNX Runtime's, where these differ: it is what is deployed."""
    wrong, right = [], set()
    for case in onnx_cases():
        node, (inputs, outputs) = case.model.graph.node[0], case.data_sets[0]
        opset = case.model.opset_import[0].version
        floats = [isinstance(value, np.ndarray) and value.dtype == F32 for value in inputs]
        if node.op_type not in OPERATORS or opset > 23 or any(word in case.name for word in NOT_DIFFERENTIABLE):
            continue
        if node.domain or not any(floats) or not isinstance(outputs[0], np.ndarray) or outputs[0].dtype != F32:
            continue
        changed = onnx.ModelProto.FromString(case.model.SerializeToString())
        given = [value for value, is_float in zip(inputs, floats, strict=True) if is_float][:1]
        variable = floats.index(True)
        for i, value in enumerate(inputs):
            if i != variable:
                changed.graph.initializer.append(numpy_helper.from_array(value, changed.graph.input[i].name))
        first = changed.graph.input[variable]
        del changed.graph.input[:]
        changed.graph.input.append(first)
        graph = changed.SerializeToString()
        with torch.no_grad():
            got = Surrogate(graph)(torch.from_numpy(given[0].copy())).numpy()
        references = (lambda outputs=outputs: outputs[0], lambda graph=graph, given=given: in_onnxruntime(graph, given[0]))
        if any(close(got, reference()) for reference in references):
            right.add(node.op_type)
        else:
            wrong.append(case.name)
    assert wrong == []
    assert len(right) > 85


def close(got, expected):
    return got.shape == expected.shape and np.allclose(got, expected, rtol=1e-3, atol=1e-5, equal_nan=True)
