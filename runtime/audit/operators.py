"""ONNX's operators as differentiable torch functions, one entry of ``OPERATORS`` each: attributes and inputs to outputs.

Weights, pictures, shapes and indices are all tensors. Attributes hold the node's, and ``opset`` and ``outputs``: the version of
the operators, and how many outputs are wanted. What is rounded passes its gradient straight through, as in quantisation-aware
training (Bengio et al. 2013): Round, Floor, Ceil, Sign, QuantizeLinear, and casts to integers. tests/test_surrogate.py compares
each with ONNX Runtime, and its gradient with differences.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from onnx import TensorProto
from semseal.runtime.audit import shapes, windows
from semseal.runtime.audit.shapes import Attributes, axes_of, ints
from semseal.runtime.errors import GraphError
from torch import Tensor

_LEAST = 1e-30  # under a root, where the gradient would be infinite
_INTEGERS: dict[int, torch.dtype] = {
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def _through(x: Tensor, rounded: Tensor) -> Tensor:
    """``rounded``, to the bit, with the gradient of ``x``."""
    return rounded.detach() + (x - x.detach()) if x.requires_grad else rounded


# arithmetic


class _PRelu(torch.autograd.Function):
    """PReLU built from operators that torch vectorises in bf16 too; it does not vectorise the gradient of its own PReLU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        slopes = torch.empty_like(x[:1]).copy_(slope)  # as large as an image: broadcasting a value per channel is slow
        ctx.save_for_backward(x, slopes)
        return torch.lerp(x.relu(), x, slopes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, slopes = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, x, 0).lerp_(gradient, slopes), None


def _prelu(_: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    image = (1, *x.shape[1:])
    if slope.requires_grad or torch.broadcast_shapes(image, slope.shape) != image:  # one of its own for each image
        return torch.where(x > 0, x, slope * x)
    result: Tensor = _PRelu.apply(x, slope)
    return result


def _sqrt(x: Tensor) -> Tensor:
    return x.clamp_min(_LEAST).sqrt()


def _power(_: Attributes, x: Tensor, power: Tensor) -> Tensor:
    if power.numel() > 1 or power.requires_grad or not x.is_floating_point():
        return x.pow(power.to(x.device)).to(x.dtype)
    value = power.item()
    return x.square() if value == 2 else _sqrt(x) if value == 0.5 else x.pow(value)


def _divide(_: Attributes, a: Tensor, b: Tensor) -> Tensor:
    integers = not a.is_floating_point() and not b.is_floating_point()
    return torch.div(a, b, rounding_mode="trunc" if integers else None)


def _clip(a: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if low is not None or high is not None:
        return torch.clamp(x, low, high)
    low_value, high_value = a.get("min"), a.get("max")
    return x if low_value is None and high_value is None else torch.clamp(x, low_value, high_value)


def _cast(a: Attributes, x: Tensor, to: int | None = None) -> Tensor:
    to = a["to"] if to is None else to
    if to in _FLOATS:
        return x if x.is_floating_point() else x.to(torch.float32)
    if to not in _INTEGERS and to not in (TensorProto.UINT16, TensorProto.INT16, TensorProto.UINT32, TensorProto.UINT64):
        raise GraphError(f"Cast to {TensorProto.DataType.Name(to)} is not supported", "export the transmitter without it")
    if x.requires_grad and to != TensorProto.BOOL:
        return _through(x, x.trunc())
    return x.to(_INTEGERS.get(to, torch.int64))


def _selu(a: Attributes, x: Tensor) -> Tensor:
    alpha, gamma = a.get("alpha", 1.6732632423543772), a.get("gamma", 1.0507009873554805)
    return gamma * F.elu(x, alpha)


def _shrink(a: Attributes, x: Tensor) -> Tensor:
    limit, bias = a.get("lambd", 0.5), a.get("bias", 0.0)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


def _mean(_: Attributes, *values: Tensor) -> Tensor:
    return functools.reduce(torch.add, values) / len(values)


# 8 bits


def _along(x: Tensor, parameter: Tensor, a: Attributes) -> Tensor:
    """Scales or zero points for the whole tensor, for each index of an axis, or for blocks along one, ready to broadcast."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    axis = a.get("axis", 1) % x.ndim
    if parameter.ndim == 1:
        return parameter.reshape(-1, *[1] * (x.ndim - 1 - axis))
    block = a.get("block_size", 0) or -(-x.shape[axis] // parameter.shape[axis])
    return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])


def _quantize(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Levels, as floats."""
    kind = torch.uint8 if zero is None else zero.dtype
    if a.get("output_dtype"):
        kind = _INTEGERS.get(a["output_dtype"], torch.int64)
    if kind not in (torch.uint8, torch.int8):
        raise GraphError("QuantizeLinear is supported to uint8 and int8 only", "quantise the transmitter to 8 bits")
    level = x / _along(x, scale, a)
    level = _through(level, level.round())
    if zero is not None:
        level = level + _along(x, zero, a)
    limits = torch.iinfo(kind)
    return level.clamp(limits.min, limits.max)


def _dequantize(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    level = x if x.is_floating_point() else x.to(scale.dtype)
    if zero is not None:
        level = level - _along(x, zero, a)
    return level * _along(x, scale, a)


def _quantized_conv(
    a: Attributes,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    x, weight = _dequantize({}, x, x_scale, x_zero), _dequantize({"axis": 0}, weight, w_scale, w_zero)
    return _quantize({}, windows.conv(a, x, weight, None if bias is None else bias * x_scale * w_scale), y_scale, y_zero)


def _quantized_product(
    _: Attributes,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    x, weight = _dequantize({}, x, x_scale, x_zero), _dequantize({"axis": -1}, weight, w_scale, w_zero)
    return _quantize({}, x @ weight, y_scale, y_zero)


# sums and normalisation


def _reduce(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Callable[..., Tensor]:
    def run(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen, keep = axes_of(a, axes), bool(a.get("keepdims", 1))
        if (not chosen and a.get("noop_with_empty_axes")) or x.ndim == 0:
            return function(x[None], (0,), False)
        return function(x, tuple(axis % x.ndim for axis in chosen or range(x.ndim)), keep)

    return run


def _average(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.mean(axes, keep) if x.is_floating_point() else x.float().mean(axes, keep).to(x.dtype)


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keep)
    return x


def _batch_normalization(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if a.get("training_mode") or not a.get("spatial", 1):
        raise GraphError("BatchNormalization is supported for inference only", "export the transmitter with model.eval()")
    gain = scale * torch.rsqrt(variance + a.get("epsilon", 1e-5))
    one = (-1, *[1] * (x.ndim - 2))
    return x * gain.reshape(one) + (bias - mean * gain).reshape(one)


def _group_normalization(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups, channels = a["num_groups"], x.shape[1]
    if scale.numel() != channels:  # one for each group, before opset 21
        scale, bias = (value.repeat_interleave(channels // groups) for value in (scale, bias))
    return torch.group_norm(x, groups, scale, bias, a.get("epsilon", 1e-5))


def _instance_normalization(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return torch.group_norm(x, x.shape[1], scale, bias, a.get("epsilon", 1e-5))


def _layer_normalization(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    shape, epsilon = x.shape[a.get("axis", -1) :], a.get("epsilon", 1e-5)
    if scale.shape == shape and (bias is None or bias.shape == shape):
        return F.layer_norm(x, shape, scale, bias, epsilon)
    y = F.layer_norm(x, shape, eps=epsilon) * scale
    return y if bias is None else y + bias


def _rms_normalization(a: Attributes, x: Tensor, scale: Tensor) -> Tensor:
    axes = tuple(range(a.get("axis", -1) % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + a.get("epsilon", 1e-5)) * scale


def _mean_variance_normalization(a: Attributes, x: Tensor) -> Tensor:
    axes = a.get("axes", [0, 2, 3])
    centred = x - x.mean(axes, keepdim=True)
    return centred / (_sqrt(centred.square().mean(axes, keepdim=True)) + 1e-9)


def _local_response_normalization(a: Attributes, x: Tensor) -> Tensor:
    size = a["size"]
    squares = F.pad(x.square(), [0, 0] * (x.ndim - 2) + [(size - 1) // 2, size // 2])
    sums = squares.unfold(1, size, 1).sum(-1)
    return x / (a.get("bias", 1.0) + a.get("alpha", 1e-4) / size * sums).pow(a.get("beta", 0.75))


def _lp_normalization(a: Attributes, x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, a.get("p", 2), a.get("axis", -1), keepdim=True)
    return x / norm.clamp_min(_LEAST)


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Callable[[Attributes, Tensor], Tensor]:
    def run(a: Attributes, x: Tensor) -> Tensor:
        if a["opset"] >= 13:
            return function(x, a.get("axis", -1))
        axis = a.get("axis", 1) % x.ndim  # over everything from there on
        return function(x.flatten(axis), -1).reshape(x.shape)

    return run


def _gemm(a: Attributes, left: Tensor, right: Tensor, c: Tensor | None = None) -> Tensor:
    left, right = (x.T if a.get(name) else x for x, name in ((left, "transA"), (right, "transB")))
    product = left @ right
    if a.get("alpha", 1.0) != 1:
        product = a["alpha"] * product
    return product if c is None else product + a.get("beta", 1.0) * c


def _cumulative_sum(a: Attributes, x: Tensor, axis: Tensor) -> Tensor:
    (dim,) = ints(axis)
    turned = x.flip(dim) if a.get("reverse") else x
    sums = turned.cumsum(dim) - (turned if a.get("exclusive") else 0)
    return sums.flip(dim) if a.get("reverse") else sums


def _dropout(a: Attributes, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> Tensor:
    if training is not None and training.item():
        raise GraphError("Dropout is supported for inference only", "export the transmitter with model.eval()")
    return x


# the table

_PLAIN: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Add": torch.add,
    "And": torch.logical_and,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Mish": F.mish,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Reciprocal": torch.reciprocal,
    "Relu": F.relu,
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": _sqrt,
    "Sub": torch.sub,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
    "Where": torch.where,
    "Xor": torch.logical_xor,
}
_ROUNDINGS = {"Ceil": torch.ceil, "Floor": torch.floor, "Round": torch.round, "Sign": torch.sign}

OPERATORS: dict[str, Callable[..., Any]] = {
    **{name: lambda _, *inputs, f=function: f(*inputs) for name, function in _PLAIN.items()},
    **{name: lambda _, x, f=function: _through(x, f(x)) for name, function in _ROUNDINGS.items()},
    "AveragePool": windows.average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "CastLike": lambda a, x, like: x if like.is_floating_point() == x.is_floating_point() else x.to(like.dtype),
    "Celu": lambda a, x: F.celu(x, a.get("alpha", 1.0)),
    "Clip": _clip,
    "Concat": lambda a, *parts: torch.cat(parts, a["axis"]),
    "Constant": shapes.constant,
    "ConstantOfShape": shapes.filled,
    "Conv": windows.conv,
    "ConvTranspose": windows.conv_transpose,
    "CumSum": _cumulative_sum,
    "DepthToSpace": shapes.depth_to_space,
    "DequantizeLinear": _dequantize,
    "Div": _divide,
    "Dropout": _dropout,
    "Einsum": lambda a, *values: torch.einsum(a["equation"].decode(), *values),
    "Elu": lambda a, x: F.elu(x, a.get("alpha", 1.0)),
    "Expand": shapes.expand,
    "Flatten": shapes.flatten,
    "Gather": shapes.gather,
    "GatherElements": shapes.gather_elements,
    "GatherND": shapes.gather_nd,
    "Gelu": lambda a, x: F.gelu(x, approximate=a.get("approximate", b"none").decode()),
    "Gemm": _gemm,
    "GlobalAveragePool": windows.global_pool(lambda x, axes: x.mean(axes, keepdim=True)),
    "GlobalLpPool": lambda a, x: torch.linalg.vector_norm(x, a.get("p", 2), tuple(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": windows.global_pool(lambda x, axes: x.amax(axes, keepdim=True)),
    "GroupNormalization": _group_normalization,
    "HardSigmoid": lambda a, x: (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0, 1),
    "InstanceNormalization": _instance_normalization,
    "LRN": _local_response_normalization,
    "LayerNormalization": _layer_normalization,
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "LogSoftmax": _softmax(F.log_softmax),
    "LpNormalization": _lp_normalization,
    "LpPool": windows.lp_pool,
    "Max": lambda _, *values: functools.reduce(torch.maximum, values),
    "MaxPool": windows.max_pool,
    "Mean": _mean,
    "MeanVarianceNormalization": _mean_variance_normalization,
    "Min": lambda _, *values: functools.reduce(torch.minimum, values),
    "Mod": lambda a, x, y: torch.fmod(x, y) if a.get("fmod") else torch.remainder(x, y),
    "PRelu": _prelu,
    "Pad": windows.pad,
    "Pow": _power,
    "QLinearConv": _quantized_conv,
    "QLinearMatMul": _quantized_product,
    "QuantizeLinear": _quantize,
    "RMSNormalization": _rms_normalization,
    "Range": shapes.number_range,
    "ReduceL1": _reduce(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceLogSum": _reduce(lambda x, axes, keep: x.sum(axes, keep).log()),
    "ReduceLogSumExp": _reduce(torch.logsumexp),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(_average),
    "ReduceMin": _reduce(torch.amin),
    "ReduceProd": _reduce(_product),
    "ReduceSum": _reduce(torch.sum),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: x.square().sum(axes, keep)),
    "Reshape": shapes.reshape,
    "Resize": windows.resize,
    "ScatterElements": shapes.scatter_elements,
    "ScatterND": shapes.scatter_nd,
    "Selu": _selu,
    "Shape": lambda a, x: torch.tensor(x.shape[a.get("start", 0) : a.get("end")], dtype=torch.int64),
    "Shrink": _shrink,
    "Size": lambda _, x: torch.tensor(x.numel()),
    "Slice": shapes.slice_axes,
    "Softmax": _softmax(F.softmax),
    "SpaceToDepth": shapes.space_to_depth,
    "Split": shapes.split,
    "Squeeze": shapes.squeeze,
    "Sum": lambda _, *values: functools.reduce(torch.add, values),
    "Swish": lambda a, x: x * torch.sigmoid(a.get("alpha", 1.0) * x),
    "ThresholdedRelu": lambda a, x: torch.where(x > a.get("alpha", 1.0), x, torch.zeros_like(x)),
    "Tile": lambda _, x, repeats: x.repeat(ints(repeats)),
    "TopK": shapes.top_k,
    "Transpose": lambda a, x: x.permute(a.get("perm") or tuple(reversed(range(x.ndim)))),
    "Trilu": lambda a, x, k=None: (torch.triu if a.get("upper", 1) else torch.tril)(x, 0 if k is None else int(k.item())),
    "Unsqueeze": shapes.unsqueeze,
    "Upsample": lambda a, x, scales=None: windows.resize({**a, "opset": 9}, x, scales),
}
