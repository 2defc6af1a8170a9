"""The same function in faster operators; every step is exact up to float32 rounding.

    ConvTranspose, stride 1   ->  Conv with the kernel flipped
    ConvTranspose, stride s   ->  Conv to s*s times the channels, then DepthToSpace: one small convolution for each of the
                                  s*s phases of the output grid, instead of a scatter
    PRelu, slopes up to 1     ->  Max(x, slope * x), two elementwise kernels that every engine vectorises

ONNX Runtime's ConvTranspose and PRelu are scalar code on a CPU; ConvTranspose is also never quantised, while Conv is.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

OPSET = 20  # of every graph of a bundle

# f(k*x) = k*f(x) for k > 0, channel by channel: a scale may pass through
_HOMOGENEOUS = ("PRelu", "LeakyRelu", "Relu", "DepthToSpace", "MaxPool", "AveragePool")

Weights = dict[str, NDArray[np.float32]]


def rewrite(graph: bytes) -> bytes:
    """The graph with its transposed convolutions and PReLUs replaced where that is exact; other nodes stay."""
    model = onnx.load_model_from_string(graph)
    weights = _weights(model)
    nodes = []
    for node in model.graph.node:
        if node.op_type == "ConvTranspose":
            nodes += _convolution(node, weights)
        elif node.op_type == "PRelu" and node.input[1] in weights and weights[node.input[1]].max() <= 1:
            scaled = f"{node.output[0]}_scaled"
            nodes.append(helper.make_node("Mul", list(node.input), [scaled], f"{node.name}_mul"))
            nodes.append(helper.make_node("Max", [node.input[0], scaled], list(node.output), f"{node.name}_max"))
        else:
            nodes.append(node)
    return _rebuild(model, nodes, weights)


def equalize(graph: bytes, feeds: Sequence[dict[str, NDArray[Any]]], strength: float, quantile: float) -> bytes:
    """Bring the channels between two convolutions to one range, as one scale of 8 bits for the whole tensor requires.

    A channel is divided by a scale in the first convolution (weights and bias) and multiplied by it in the weights of the
    second; activations between them let a positive factor pass. Exact up to rounding. The scale is
    range^strength / weight^(1 - strength): range is the ``quantile`` of the channel's magnitudes over ``feeds`` (inputs of
    the graph by name), weight the largest magnitude of the second convolution's weights for it. Strength 1 gives all
    channels the same range; less than 1 spares the weights of the second. After cross-layer equalization (Nagel et al.,
    Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019) and SmoothQuant (Xiao et al., ICML
    2023).
    """
    model = onnx.load_model_from_string(graph)
    weights = _weights(model)
    made_by = {name: node for node in model.graph.node for name in node.output}
    uses = Counter([name for node in model.graph.node for name in node.input] + [output.name for output in model.graph.output])
    pairs = []
    for second in model.graph.node:
        if second.op_type == "Conv" and uses[second.input[0]] == 1:
            first = _conv_before(second.input[0], made_by, uses)
            if first is not None and _plain(first, weights, uses) and _plain(second, weights, uses):
                pairs.append((first, second))
    ranges = _ranges(model, [second.input[0] for _, second in pairs], feeds, quantile)
    for (first, second), measured in zip(pairs, ranges, strict=True):
        largest = np.abs(weights[second.input[1]]).max(axis=(0, 2, 3))
        # the floors are for a channel that is always zero or never used
        scale = np.maximum(measured, measured.max() * 1e-3 + 1e-20) ** strength
        scale /= np.maximum(largest, largest.max() * 1e-3 + 1e-20) ** (1 - strength)
        scale /= np.exp(np.log(scale).mean())
        weights[second.input[1]] = weights[second.input[1]] * scale[:, None, None]
        for name in first.input[1:]:
            repeat = weights[name].shape[0] // len(scale)  # DepthToSpace may lie between
            weights[name] = weights[name] / np.repeat(scale, repeat).reshape(-1, *[1] * (weights[name].ndim - 1))
    return _rebuild(model, list(model.graph.node), weights)


def _weights(model: onnx.ModelProto) -> Weights:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _rebuild(model: onnx.ModelProto, nodes: list[onnx.NodeProto], weights: Weights) -> bytes:
    """The model with these nodes and the weights that they use, checked."""
    used = {name for node in nodes for name in node.input} | {output.name for output in model.graph.output}
    graph = helper.make_graph(
        nodes,
        model.graph.name,
        model.graph.input,
        model.graph.output,
        [numpy_helper.from_array(values, name) for name, values in weights.items() if name in used],
    )
    rebuilt = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    onnx.checker.check_model(rebuilt, full_check=True)
    data: bytes = rebuilt.SerializeToString(deterministic=True)
    return data


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _convolution(node: onnx.NodeProto, weights: Weights) -> list[onnx.NodeProto]:
    """The nodes that replace a transposed convolution, or the node itself where no replacement is exact."""
    given = _attributes(node)
    kernel = weights.get(node.input[1])  # [in, out, k, k]
    if kernel is None or kernel.ndim != 4 or given.get("group", 1) != 1:
        return [node]
    if given.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in given:
        return [node]
    strides, pads = given.get("strides", [1, 1]), given.get("pads", [0] * 4)
    extra, dilations = given.get("output_padding", [0, 0]), given.get("dilations", [1, 1])
    if any(len(set(values)) != 1 for values in (kernel.shape[2:], strides, pads, extra)) or dilations != [1, 1]:
        return [node]
    k, s, p = kernel.shape[2], strides[0], pads[0]
    if k - 2 * p - s + extra[0] != 0:
        return [node]  # the output is not exactly s times the input
    # output pixel s*q + a takes input q - d through tap a + p + s*d, 0 <= a < s, wherever that tap exists
    reach = max((s - 1 + p) // s, (k - 1 - p) // s)
    taps = np.zeros((kernel.shape[1], s, s, kernel.shape[0], 2 * reach + 1, 2 * reach + 1), np.float32)
    for a, b in np.ndindex(s, s):
        for i, j in np.ndindex(taps.shape[4:]):
            u, v = a + p + s * (reach - i), b + p + s * (reach - j)
            if 0 <= u < k and 0 <= v < k:
                taps[:, a, b, :, i, j] = kernel[:, :, u, v].T
    inputs = [node.input[0], f"{node.input[1]}_conv"]
    weights[inputs[1]] = taps.reshape(-1, *taps.shape[3:])
    if len(node.input) > 2:
        inputs.append(f"{node.input[2]}_conv")
        weights[inputs[2]] = np.repeat(weights[node.input[2]], s * s)
    deep = node.output[0] if s == 1 else f"{node.output[0]}_phases"
    shape: dict[str, Any] = {"kernel_shape": [2 * reach + 1] * 2, "pads": [reach] * 4, "strides": [1, 1]}
    nodes = [helper.make_node("Conv", inputs, [deep], node.name, **shape)]
    if s > 1:
        nodes.append(helper.make_node("DepthToSpace", [deep], list(node.output), f"{node.name}_grid", blocksize=s, mode="CRD"))
    return nodes


def _plain(conv: onnx.NodeProto, weights: Weights, uses: Counter[str]) -> bool:
    """A convolution over all channels whose weights are constants that nothing else uses."""
    unshared = all(name in weights and uses[name] == 1 for name in conv.input[1:])
    return unshared and weights[conv.input[1]].ndim == 4 and _attributes(conv).get("group", 1) == 1


def _conv_before(name: str, made_by: dict[str, onnx.NodeProto], uses: Counter[str]) -> onnx.NodeProto | None:
    """The convolution whose channels reach ``name`` through homogeneous activations and nothing else."""
    while (node := made_by.get(name)) is not None and node.op_type != "Conv":
        readers = 1
        if node.op_type == "Max":  # Max(x, slope * x), as rewrite writes it
            slope = made_by.get(node.input[1]) if len(node.input) == 2 else None
            if slope is None or slope.op_type != "Mul" or slope.input[0] != node.input[0]:
                return None
            readers = 2
        elif node.op_type not in _HOMOGENEOUS:
            return None
        name = node.input[0]
        if uses[name] != readers:
            return None
    return node


def _ranges(
    model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[dict[str, NDArray[Any]]], quantile: float
) -> list[NDArray[np.float32]]:
    """For each tensor [batch, channels, ...]: the ``quantile`` of each channel's magnitudes, the largest over the feeds."""
    if not names:
        return []
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    measured = [
        [np.quantile(np.abs(values), quantile, axis=(0, *range(2, values.ndim))) for values in session.run(None, feed)]
        for feed in feeds
    ]
    return [np.max(channel, axis=0).astype(np.float32) for channel in zip(*measured, strict=True)]
