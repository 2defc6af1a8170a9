"""The two graphs of a bundle around the user's networks.

    transmitter.onnx   image ── network ── features ── rows ── unit power per image ── Gather(index) ── symbols
    receiver.onnx      symbols ── Gather(index) ── rows ── features ── gain ── network ── Clip ── image

A node's name says which part it belongs to: ``network/``, ``power/`` or ``index/``.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from semseal.export.pack.layout import MIN_POWER, RowLayout, Shape
from semseal.export.pack.prove import open_session
from semseal.export.pack.read import batch_is_fixed, declared_axes
from semseal.export.rewrite import OPSET

UNGUARDED = "unguarded"  # what a network gives that needs a guard

End = tuple[str, Shape]  # a tensor's name and shape, the batch first


def networks_without_batch(side: str, model: onnx.ModelProto, taken: End, given: End) -> list[onnx.GraphProto]:
    """The user's network for any batch between the tensors ``taken`` and ``given``, in the forms that may do, best first.

    Best is one without arithmetic on shapes, from which no engine gains: constants are computed as if the batch were 1, which
    is then taken out where they hold it. Whether that was right is for ``first_proved`` to say. Next is a dynamic batch as
    the file has it.
    """
    single = _folded(side, _declare(model, 1, taken, given))
    forms = [_declare(_without_batch(single), "batch", taken, given)]
    if not batch_is_fixed(model):
        forms.append(_folded(side, _declare(model, "batch", taken, given)))
    return [_renamed(form.graph, taken[0], given[0]) for form in forms]


def transmitter_file(network: onnx.GraphProto, layout: RowLayout, height: int, width: int, guarded: bool) -> bytes:
    """The transmitter: ``network/``, ``power/`` from the features on, ``index/``. Raises ValidationError, InferenceError.

    ``guarded``: features that are not finite are 0, so that a picture which the network divides by nothing is silent.
    """
    channel_last = "turned_features" if layout.transposed else "features"
    nodes = [
        *network.node,
        *(_guard("power", UNGUARDED, "features") if guarded else []),
        *([_node("power/transpose", "Transpose", "features", channel_last, perm=[0, 2, 3, 1])] if layout.transposed else []),
        _node("power/flatten", "Reshape", f"{channel_last} rows_shape", "unscaled_rows"),
        _node("power/square", "Mul", "unscaled_rows unscaled_rows", "squares"),
        _node("power/mean", "ReduceMean", "squares row_axes", "mean_square", keepdims=1),
        _node("power/of_symbol", "Mul", "mean_square reals", "power"),
        _node("power/floor", "Clip", "power least_power", "floored_power"),
        _node("power/amplitude", "Sqrt", "floored_power", "amplitude"),
        _node("power/reciprocal", "Reciprocal", "amplitude", "scale"),
        _node("power/scale", "Mul", "unscaled_rows scale", "scaled_rows"),
        _node("power/rows", "Reshape", "scaled_rows row_shape", "rows"),
        _node("index/gather", "Gather", "rows index", "rows_on_air", axis=0),
        _node("index/symbols", "Reshape", "rows_on_air symbols_shape", "symbols"),
    ]
    constants = {
        "rows_shape": np.array([-1, layout.h, layout.row_width]),
        "row_axes": np.array([1, 2]),
        "reals": np.float32(2),  # in a symbol
        "least_power": np.float32(MIN_POWER),
        "silence": np.float32(0),
        "row_shape": np.array([-1, layout.row_width]),
        "symbols_shape": np.array([-1, layout.n_symbols, 2]),
    }
    image, symbols = ("batch", 3, height, width), ("batch", layout.n_symbols, 2)
    return _file(nodes, network, constants, {"image": image, "index": ("batch", layout.h), "symbols": symbols})


def receiver_file(network: onnx.GraphProto, layout: RowLayout, height: int, width: int, gain: float, guarded: bool) -> bytes:
    """The receiver: ``index/`` up to the features, then ``network/``. Raises ValidationError, InferenceError.

    ``guarded``: pixels that are not finite are black.
    """
    channel_last = "turned_features" if layout.transposed else "features"
    nodes = [
        _node("index/rows", "Reshape", "symbols row_shape", "rows"),
        _node("index/gather", "Gather", "rows index", "own_rows", axis=0),
        _node("index/features", "Reshape", "own_rows features_shape", channel_last),
        *([_node("index/transpose", "Transpose", channel_last, "features", perm=[0, 3, 1, 2])] if layout.transposed else []),
        *([_node("network/gain", "Mul", "features gain", "scaled_features")] if gain != 1 else []),
        *network.node,
        *(_guard("network", UNGUARDED, "unclipped") if guarded else []),
        _node("network/clip", "Clip", "unclipped black white", "image"),
    ]
    constants = {
        "row_shape": np.array([-1, layout.row_width]),
        "features_shape": np.array([-1, layout.h, layout.w, layout.c] if layout.transposed else [-1, *layout.shape]),
        "gain": np.float32(gain),
        "black": np.float32(0),
        "silence": np.float32(0),
        "white": np.float32(1),
    }
    symbols, image = ("frames", layout.n_symbols, 2), ("batch", 3, height, width)
    return _file(nodes, network, constants, {"symbols": symbols, "index": ("batch", layout.h), "image": image})


def _guard(part: str, given: str, guarded: str) -> list[onnx.NodeProto]:
    """``given`` with 0 for what is not finite."""
    return [
        _node(f"{part}/nan", "IsNaN", given, "is_nan"),
        _node(f"{part}/infinite", "IsInf", given, "is_infinite"),
        _node(f"{part}/not_finite", "Or", "is_nan is_infinite", "is_not_finite"),
        _node(f"{part}/guard", "Where", f"is_not_finite silence {given}", guarded),
    ]


def _declare(model: onnx.ModelProto, batch: int | str, taken: End, given: End) -> onnx.ModelProto:
    """The model with these shapes at its ends and none within."""
    graph = model.graph
    first, last = (
        helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [batch, *shape[1:]])
        for value, (_, shape) in ((graph.input[0], taken), (graph.output[0], given))
    )
    return _model(helper.make_graph(graph.node, "network", [first], [last], graph.initializer))


def _folded(side: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """Constants computed, batch normalisation inside convolutions, nothing without effect: ONNX Runtime's basic level."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        # they would merge the batch with other axes, and replace the transposition of an axis of size 1 by a Reshape
        open_session(side, model.SerializeToString(), options, disabled=["MatMulAddFusion", "TransposeOptimizer"])
        return onnx.load(options.optimized_model_filepath)


def _without_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """The batch of 1 taken out of the sizes that Reshape and Resize are given."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    known = {value.name: declared_axes(value) for value in (*inferred.value_info, *inferred.input)}
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for i, node in enumerate(graph.node):
        sizes = constants.get(node.input[-1]) if node.op_type in ("Reshape", "Resize") else None
        if sizes is None or sizes.dtype != np.int64 or sizes.size == 0:
            continue
        if node.op_type == "Reshape" and -1 not in sizes:  # also where windows or tokens are merged with the batch
            free = np.array([-1, *sizes[1:]])
        elif node.op_type == "Reshape" and sizes[0] == 1:
            free = np.array([0, *sizes[1:]])
            del node.attribute[:]  # allowzero would take the 0 for a size
        elif node.op_type == "Resize" and sizes[0] == 1 and len(before := known.get(node.input[0]) or []) == len(sizes):
            free = (sizes / np.array(before, np.float32)).astype(np.float32)  # TensorRT takes no sizes of some axes only
            del node.input[2]
        else:
            continue
        node.input[-1] = f"{node.input[-1]}/any_batch_{i}"
        graph.initializer.append(numpy_helper.from_array(free, node.input[-1]))
    return model


def _renamed(graph: onnx.GraphProto, taken: str, given: str) -> onnx.GraphProto:
    """Everything but the ends named ``network/``, and nothing left that tells of the machine that made the file."""
    ends = {f"network/{graph.input[0].name}": taken, f"network/{graph.output[0].name}": given}
    named = onnx.compose.add_prefix_graph(graph, "network/")
    for i, node in enumerate(named.node):
        node.name = f"network/{node.op_type}_{i}"
        for names in (node.input, node.output):
            names[:] = [ends.get(name, name) for name in names]
    for part in (*named.node, *named.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    return named


def _node(name: str, operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], name, **attributes)


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _file(
    nodes: list[onnx.NodeProto], network: onnx.GraphProto, constants: dict[str, Any], ends: Mapping[str, Sequence[int | str]]
) -> bytes:
    """The checked file of these nodes; the last of ``ends`` is the output. Raises ValidationError, InferenceError."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.INT32 if name == "index" else TensorProto.FLOAT, shape)
        for name, shape in ends.items()
    ]
    weights = [*network.initializer, *(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())]
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in weights if tensor.name in used]
    model = _model(helper.make_graph(nodes, "semseal", values[:-1], values[-1:], weights))
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data
