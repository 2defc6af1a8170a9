"""The deployed ONNX graph as a differentiable torch function: what Eve extracts from a transmitter that she has bought.

The weights are read from the deployed file itself, so the white-box attacks need neither the training code nor a checkpoint,
and work on any graph made of the operators below.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from semseal.runtime.errors import GraphError
from torch import Tensor, nn

_Node = tuple[onnx.NodeProto, dict[str, Any]]


class Surrogate(nn.Module):
    """Runs ``graph`` in torch. Takes tensors in the order of the graph's inputs and returns its first output."""

    def __init__(self, graph: bytes) -> None:
        super().__init__()
        model = onnx.load_model_from_string(graph)
        self._nodes: list[_Node] = [
            (node, {a.name: helper.get_attribute_value(a) for a in node.attribute}) for node in model.graph.node
        ]
        unknown = sorted({node.op_type for node, _ in self._nodes} - _OPERATORS.keys())
        if unknown:
            raise GraphError(
                f"the white-box attacks cannot differentiate the operators {', '.join(unknown)}",
                "leave these attacks out, or add the operators to runtime/audit/surrogate.py",
            )
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._inputs = [value.name for value in model.graph.input if value.name not in constants]
        self.inputs = len(self._inputs)
        self._output = model.graph.output[0].name
        self._nodes = _join_prelu(self._nodes, constants, self._output)
        # shapes and axes are used as lists; only what takes part in the arithmetic is a tensor
        self._lists = {name: array.reshape(-1).tolist() for name, array in constants.items() if array.dtype == np.int64}
        tensors = {name: _tensor(array) for name, array in constants.items() if array.dtype != np.int64}
        for node, attributes in list(self._nodes):
            if all(name in tensors for name in node.input):  # quantised weights
                tensors[node.output[0]] = _OPERATORS[node.op_type](attributes, *(tensors[name] for name in node.input))
                self._nodes.remove((node, attributes))
        self._tensors = nn.ParameterDict(
            {_key(name): nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()}
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        values: dict[str, Any] = dict(zip(self._inputs, inputs, strict=True)) | self._lists | {"": None}
        for node, attributes in self._nodes:
            args = [values[name] if name in values else self._tensors[_key(name)] for name in node.input]
            result = _OPERATORS[node.op_type](attributes, *args)
            values |= dict(zip(node.output, result, strict=True)) if len(node.output) > 1 else {node.output[0]: result}
        output: Tensor = values[self._output]
        return output


def why_unsupported(transmitter: bytes, height: int, width: int, h: int) -> str:
    """Why a transmitter's graph for pictures of this size, with h feature rows, cannot be differentiated; empty if it can."""
    try:
        with torch.no_grad():
            surrogate = Surrogate(transmitter)
            inputs = torch.zeros(1, 3, height, width), torch.arange(h, dtype=torch.int32)[None], torch.zeros(1)
            surrogate(*inputs[: surrogate.inputs])
    except GraphError as error:
        return error.message
    return ""


def _tensor(array: NDArray[Any]) -> Tensor:
    """A weight in the memory layout that is fastest in torch; half precision becomes float32."""
    tensor = torch.from_numpy(array.astype(np.float32) if array.dtype == np.float16 else array.copy())
    return tensor.contiguous(memory_format=torch.channels_last) if array.ndim == 4 else tensor


def _key(name: str) -> str:
    return name.replace(".", "|")


def _join_prelu(nodes: list[_Node], constants: dict[str, NDArray[Any]], output: str) -> list[_Node]:
    """Turn Max(x, slope * x), which engines run faster than PRelu, back into PRelu: the gradient of a maximum is slow."""
    uses = Counter([output] + [name for node, _ in nodes for name in node.input])
    scaled = {
        node.output[0]: node
        for node, _ in nodes
        if node.op_type == "Mul" and node.input[1] in constants and constants[node.input[1]].max() <= 1
    }
    joined: dict[str, _Node] = {}
    for node, attributes in nodes:
        product = scaled.get(node.input[1]) if node.op_type == "Max" and len(node.input) == 2 else None
        if product is not None and node.input[0] == product.input[0] and uses[product.output[0]] == 1:
            del joined[product.output[0]]
            node = helper.make_node("PRelu", list(product.input), list(node.output))
        joined[node.output[0]] = (node, attributes)
    return list(joined.values())


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


def _pad(attributes: dict[str, Any], x: Tensor) -> tuple[Tensor, list[int]]:
    """Input and padding for torch from ONNX pads [top, left, bottom, right]; unequal pads are applied to the input here."""
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise GraphError("auto_pad is not supported", "export the transmitter with explicit pads")
    pads = attributes.get("pads", [0, 0, 0, 0])
    if pads[:2] == pads[2:]:
        return x, pads[:2]
    return F.pad(x, [pads[1], pads[3], pads[0], pads[2]]), [0, 0]


def _conv(attributes: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x, padding = _pad(attributes, x)
    return F.conv2d(
        x,
        weight,
        bias,
        attributes.get("strides", [1, 1]),
        padding,
        attributes.get("dilations", [1, 1]),
        attributes.get("group", 1),
    )


def _conv_transpose(attributes: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    pads = attributes.get("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:]:
        raise GraphError("ConvTranspose with unequal pads is not supported", "export the transmitter with symmetric pads")
    return F.conv_transpose2d(
        x,
        weight,
        bias,
        attributes.get("strides", [1, 1]),
        pads[:2],
        attributes.get("output_padding", [0, 0]),
        attributes.get("group", 1),
        attributes.get("dilations", [1, 1]),
    )


def _reshape(attributes: dict[str, Any], x: Tensor, shape: list[int]) -> Tensor:
    return x.reshape([x.shape[i] if size == 0 and not attributes.get("allowzero") else size for i, size in enumerate(shape)])


def _cast(attributes: dict[str, Any], x: Tensor) -> Tensor:
    """Half precision is computed in float32 here: its rounding is far below the noise, and the gradient is the same."""
    kind = onnx.TensorProto.DataType.Name(attributes["to"])
    if kind not in ("FLOAT", "FLOAT16"):
        raise GraphError(f"Cast to {kind} is not supported", "export the transmitter with casts between FLOAT and FLOAT16 only")
    return x


def _quantize(attributes: dict[str, Any], x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """8-bit levels, as floats; the gradient passes straight through the rounding, as in quantisation-aware training."""
    if scale.numel() != 1 or zero is None or zero.dtype != torch.int8 or zero.any():
        raise GraphError(
            "QuantizeLinear must be to int8, symmetric, with one scale per tensor", "quantise the transmitter that way"
        )
    level = x / scale
    return (level + (level.round() - level).detach()).clamp(-128, 127)


def _dequantize(attributes: dict[str, Any], x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    if scale.numel() > 1:
        scale = scale.reshape(-1, *[1] * (x.ndim - 1 - attributes.get("axis", 1) % x.ndim))
    if zero is not None and zero.any():
        raise GraphError("DequantizeLinear with a zero point other than 0 is not supported", "quantise symmetrically")
    return x.float() * scale


def _depth_to_space(attributes: dict[str, Any], x: Tensor) -> Tensor:
    if attributes.get("mode", b"DCR") != b"CRD":
        raise GraphError("DepthToSpace is supported in mode CRD only", "torch.nn.PixelShuffle exports as that")
    return F.pixel_shuffle(x, attributes["blocksize"])


def _space_to_depth(attributes: dict[str, Any], x: Tensor) -> Tensor:
    """Channels in the order row, column of the block, channel before."""
    size = attributes["blocksize"]
    blocks = x.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # [batch, channels, h, row, w, column]
    return blocks.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)


def _split(attributes: dict[str, Any], x: Tensor, sizes: list[int] | None = None) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    return x.split(sizes or -(-x.shape[axis] // attributes["num_outputs"]), axis)


def _gemm(attributes: dict[str, Any], a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a, b = (x.T if attributes.get(name) else x for x, name in ((a, "transA"), (b, "transB")))
    product = attributes.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + attributes.get("beta", 1.0) * c


def _layer_normalization(attributes: dict[str, Any], x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = attributes.get("axis", -1)
    return F.layer_norm(x, x.shape[axis:], scale, bias, attributes.get("epsilon", 1e-5))


def _unsqueeze(_: dict[str, Any], x: Tensor, axes: list[int]) -> Tensor:
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


_OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": lambda _, a, b: a + b,
    "Cast": _cast,
    "Clip": lambda _, x, low=None, high=None: torch.clamp(x, low, high),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Concat": lambda a, *parts: torch.cat(parts, a["axis"]),
    "DepthToSpace": _depth_to_space,
    "DequantizeLinear": _dequantize,
    "Div": lambda _, a, b: a / b,
    "Erf": lambda _, x: torch.erf(x),
    "Exp": lambda _, x: x.exp(),
    "Flatten": lambda a, x: x.reshape(math.prod(x.shape[: a.get("axis", 1)]), -1),
    "Gather": lambda a, x, index: x.index_select(a.get("axis", 0), index.flatten()).unflatten(a.get("axis", 0), index.shape),
    "Gelu": lambda a, x: F.gelu(x, approximate=a.get("approximate", b"none").decode()),
    "Gemm": _gemm,
    "LayerNormalization": _layer_normalization,
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "MatMul": lambda _, a, b: a @ b,
    "Max": lambda _, *values: functools.reduce(torch.maximum, values),
    "Mul": lambda _, a, b: a * b,
    "PRelu": lambda _, x, slope: _PRelu.apply(x, slope),
    "Pow": lambda _, x, power: x.square() if power.numel() == 1 and power == 2 else x.pow(power),
    "QuantizeLinear": _quantize,
    "Reciprocal": lambda _, x: x.reciprocal(),
    "ReduceL2": lambda a, x, axes: torch.linalg.vector_norm(x, 2, axes, keepdim=bool(a.get("keepdims", 1))),
    "ReduceMean": lambda a, x, axes: x.mean(axes, keepdim=bool(a.get("keepdims", 1))),
    "ReduceSum": lambda a, x, axes: x.sum(axes, keepdim=bool(a.get("keepdims", 1))),
    "Relu": lambda _, x: F.relu(x),
    "Reshape": _reshape,
    "Sigmoid": lambda _, x: torch.sigmoid(x),
    "Softmax": lambda a, x: x.softmax(a.get("axis", -1)),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Sqrt": lambda _, x: x.sqrt(),
    "Squeeze": lambda _, x, axes: x.squeeze(tuple(axes)),
    "Sub": lambda _, a, b: a - b,
    "Tanh": lambda _, x: torch.tanh(x),
    "Transpose": lambda a, x: x.permute(a["perm"]),
    "Unsqueeze": _unsqueeze,
}
