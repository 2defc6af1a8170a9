"""A user's ONNX file: read, checked and converted to what the packer builds on.

    bytes, in order ── functions inlined ── standard operators only? ── one float32 input and output? ── opset 20

What is refused is refused with the side it concerns, ``transmitter:`` or ``receiver:``, and the node or tensor.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from semseal.export.pack.layout import Array, Shape
from semseal.export.pack.whole import EXPORT_AGAIN
from semseal.export.rewrite import OPSET
from semseal.runtime.bundle import MAX_DIMENSION
from semseal.runtime.errors import GraphError

DOMAINS = ("", "ai.onnx")
MAX_PIXELS = 2**22  # of a picture; a dozen are held at once, several times over
KEEP_BATCH = (
    "take squeeze() out of the model, or, where it is for one picture only, export with a dummy batch of 2 or more, "
    "torch.onnx.export(model, torch.rand(2, ...)), and a dynamic batch"
)


def read_model(side: str, data: bytes) -> onnx.ModelProto:
    """A model of ``in_order`` in standard operators of OPSET, with one float32 input and output. Raises GraphError."""
    try:
        model = onnx.load_model_from_string(data)
        unknown = [value for value in (*model.graph.input, *model.graph.output) if declared_axes(value) is None]
        for value in unknown:  # the checker wants a shape, which ONNX Runtime does without
            value.type.tensor_type.shape.SetInParent()
        onnx.checker.check_model(model)
        for value in unknown:
            value.type.tensor_type.ClearField("shape")
        model = onnx.inliner.inline_local_functions(model)
        constants = _constants(model.graph)
        _check_nodes(side, model.graph, constants)
    except GraphError:
        raise
    except Exception as error:  # onnx's exceptions share no narrower base
        raise GraphError(f"{side}: onnx cannot read it: {first_line(error)}", EXPORT_AGAIN) from None
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}  # old files list them as inputs too
    inputs = [value for value in graph.input if value.name not in weights]
    _check_ends(side, inputs, graph.output)
    del graph.input[:]
    graph.input.extend(inputs)
    return _converted(side, model)


def declared_axes(value: onnx.ValueInfoProto) -> list[int | None] | None:
    """The declared sizes, None where one is dynamic; None for an unknown number of axes."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return [axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim]


def batch_is_fixed(model: onnx.ModelProto) -> bool:
    """Whether the model declares a batch of 1."""
    axes = declared_axes(model.graph.input[0])
    return axes is not None and axes[:1] == [1]


def image_size(value: onnx.ValueInfoProto) -> tuple[int, int]:
    """Height and width of the image that the transmitter's input declares. Raises GraphError."""
    axes = declared_axes(value) or []
    if len(axes) == 4 and axes[1] == 3 and axes[0] not in (None, 1):
        raise GraphError(f"transmitter: its batch is fixed at {axes[0]}", "export it with a dynamic batch")
    if len(axes) != 4 or axes[1] not in (None, 3):
        channels_last = len(axes) == 4 and axes[3] == 3
        raise GraphError(
            f"transmitter: its input {_declared(value)} is no image [batch, 3, height, width]",
            "transpose it: the colours come before height and width"
            if channels_last
            else "export a model that takes RGB images [batch, 3, height, width]",
        )
    height, width = axes[2:]
    if height is None or width is None:
        raise GraphError(f"transmitter: its input {_declared(value)} has no fixed height and width", "fix both at the export")
    if height * width > MAX_PIXELS or max(height, width) > MAX_DIMENSION:
        raise GraphError(
            f"transmitter: its input {_declared(value)} is too large a picture: {MAX_PIXELS} pixels are the most, and "
            f"{MAX_DIMENSION} along one axis",
            "export it for smaller pictures",
        )
    return height, width


def check_receiver_input(value: onnx.ValueInfoProto, shape: Shape) -> None:
    """Raises GraphError unless the receiver's input may be the transmitter's features of ``shape``."""
    axes = declared_axes(value)
    if axes is None:
        return
    if axes == list(shape):
        raise GraphError(f"receiver: its input {_declared(value)} is that of one picture, without a batch axis", KEEP_BATCH)
    if axes and axes[0] not in (None, 1):
        raise GraphError(f"receiver: its batch is fixed at {axes[0]}", "export it with a dynamic batch")
    if len(axes) != 1 + len(shape) or any(taken not in (None, given) for taken, given in zip(axes[1:], shape, strict=True)):
        raise GraphError(
            f"receiver: its input {_declared(value)} does not take the transmitter's [batch, {_joined(shape)}]",
            "export both sides of the same model",
        )


def batch_shape(array: Array) -> str:
    """The shape of a batch, for people."""
    return f"[batch, {_joined(array.shape[1:])}]"


def first_line(error: Exception) -> str:
    """What a library's exception says, without what follows on further lines."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _check_ends(side: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> None:
    for what, values in (("input", inputs), ("output", outputs)):
        if len(values) != 1:
            names = ", ".join(value.name for value in values)
            raise GraphError(
                f"{side}: it has {len(values)} {what}s ({names}); it must have one",
                f"export a model with one {what}, the others made constant or left out",
            )
        kind = values[0].type.tensor_type.elem_type
        if kind != TensorProto.FLOAT:
            kinds = {number: name.lower() for name, number in TensorProto.DataType.items()}
            raise GraphError(
                f"{side}: its {what} {values[0].name!r} is {kinds.get(kind, f'of type {kind}')}; it must be float32",
                "export the model in float32; fp16 and int8 are made from that",
            )


def _constants(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    """Weights, and what nodes of the operator Constant hold as a tensor, by name."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                constants[node.output[0]] = numpy_helper.to_array(attribute.t)
    return constants


def _check_nodes(side: str, graph: onnx.GraphProto, constants: dict[str, NDArray[Any]]) -> None:
    """Raises GraphError for what does not give the same result everywhere and each time."""
    for node in graph.node:
        where = f"{side}: node {node.name or node.output[0]!r} ({node.op_type})"
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.domain not in DOMAINS:
            raise GraphError(f"{where} is of the domain {node.domain}", "export with standard ONNX operators alone")
        if node.op_type == "If" and _may_squeeze(given.values()):
            raise GraphError(f"{where} is control flow: what a squeeze() becomes that may take the batch axis away", KEEP_BATCH)
        if any(isinstance(value, onnx.GraphProto) for value in given.values()):
            raise GraphError(f"{where} is control flow", "export the model without branches and loops")
        if node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial"):
            raise GraphError(f"{where} draws random numbers", "leave the channel and its noise out of the file")
        if _in_training(node, given, constants):
            raise GraphError(f"{where} is in training mode", "switch the model to evaluation before the export: model.eval()")


def _may_squeeze(branches: Iterable[Any]) -> bool:
    """Whether a branch of an If is a Squeeze: what torch writes for one of an axis whose size is not known."""
    return any(node.op_type == "Squeeze" for graph in branches if isinstance(graph, onnx.GraphProto) for node in graph.node)


def _in_training(node: onnx.NodeProto, given: dict[str, Any], constants: dict[str, NDArray[Any]]) -> bool:
    if node.op_type == "BatchNormalization":
        return len(node.output) > 1 or bool(given.get("training_mode"))
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
        return bool(np.any(constants.get(node.input[2], True)))
    return False


def _converted(side: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in OPSET, importing no other domain. Raises GraphError."""
    version: int = max((opset.version for opset in model.opset_import if opset.domain in DOMAINS), default=OPSET)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", version))
    model.ir_version = max(model.ir_version, 4)  # before 4 the weights had to be among the inputs
    if version == OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # onnx's exceptions share no narrower base
        reason = first_line(error).split("failed: ")[-1]  # what precedes is a place in onnx's source
        raise GraphError(
            f"{side}: opset {version} cannot be converted to {OPSET} ({reason})", f"export with opset {OPSET}"
        ) from None


def _joined(sizes: Sequence[int | None]) -> str:
    return ", ".join("?" if size is None else str(size) for size in sizes)


def _declared(value: onnx.ValueInfoProto) -> str:
    axes = declared_axes(value)
    return f"{value.name!r} of unknown shape" if axes is None else f"{value.name!r} [{_joined(axes)}]"
