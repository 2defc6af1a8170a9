"""The deployed ONNX graph as a differentiable torch function: what Eve extracts from a transmitter that she has bought.

    deployed graph ── constants folded ── Surrogate ── the engine's symbols? a gradient? ──> white-box and row matching
                                                                  └─ no: why_unsupported says so, and they are skipped

The weights are read from the deployed file itself, so these attacks need neither the training code nor a checkpoint, and work
on any graph made of the operators in ``semseal.runtime.audit.operators``. These are not onnx2torch's: its 1.5.15 lacks
GroupNormalization, Gelu, Mish, SpaceToDepth, QuantizeLinear and the Resize, Split and Reduce... of opset 18 and later.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from semseal.runtime.attacks.accelerator import best_device
from semseal.runtime.audit.operators import OPERATORS
from semseal.runtime.audit.shapes import tensor_of
from semseal.runtime.errors import GraphError
from semseal.runtime.gpu.device import Engine
from torch import Tensor, nn

# RMS of the difference from the engine's symbols, in theirs: 0.2 % in packaged models, by levels of int8 that fall to the other
# side. 2 % is the noise of 34 dB, below that of the channels that are audited.
TOLERANCE = 0.02

# operators that read all but their first input as numbers, which on a GPU would have to come back for it at every step
_READ_NUMBERS = {name for name in OPERATORS if name.startswith("Reduce")} | {
    *("CumSum", "Dropout", "Expand", "Pad", "Pow", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile", "TopK", "Trilu"),
    *("Unsqueeze", "Upsample"),
}

_Node = tuple[onnx.NodeProto, dict[str, Any]]


class Surrogate(nn.Module):
    """Runs ``graph`` in torch, where its inputs are. Takes tensors in the order of the graph's inputs, all on one device, and
    returns its first output.

    Raises GraphError for operators that are unknown. Whatever else fails names its node in a note.
    """

    def __init__(self, graph: bytes) -> None:
        super().__init__()
        model = onnx.load_model_from_string(graph)
        opset = max((known.version for known in model.opset_import if known.domain in ("", "ai.onnx")), default=1)
        foreign = {f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")}
        unknown = sorted({node.op_type for node in model.graph.node} - OPERATORS.keys() | foreign)
        if unknown:
            raise GraphError(
                f"the white-box attacks cannot differentiate the operators {', '.join(unknown)}",
                "leave these attacks out, or add the operators to runtime/audit/operators.py",
            )
        constants = {tensor.name: tensor_of(tensor) for tensor in model.graph.initializer}
        self._inputs = [value.name for value in model.graph.input if value.name not in constants]
        self.inputs = len(self._inputs)
        self._output = model.graph.output[0].name
        nodes = [(node, _attributes(node, opset)) for node in model.graph.node]
        self._nodes: list[_Node] = []
        for node, attributes in _join_prelu(nodes, constants, self._output):
            if all(name in constants for name in node.input if name):  # quantised weights, and what becomes of shapes
                constants |= _outputs(node, attributes, constants)
            else:
                self._nodes.append((node, attributes))
        used = {name for node, _ in self._nodes for name in node.input} | {self._output}
        self._constants = {name: f"constant{i}" for i, name in enumerate(constants) if name in used}
        for name, buffer in self._constants.items():
            self.register_buffer(buffer, constants[name])
        self._copies: dict[tuple[str, torch.device], Tensor] = {}  # of constants, on a GPU

    def forward(self, *inputs: Tensor) -> Tensor:
        values: dict[str, Tensor] = {name: getattr(self, buffer) for name, buffer in self._constants.items()}
        values |= zip(self._inputs, inputs, strict=True)
        device = inputs[0].device
        for node, attributes in self._nodes:
            taken = values if device.type == "cpu" else self._together(node, values, device)
            values |= _outputs(node, attributes, taken)
        return values[self._output]

    def _together(self, node: onnx.NodeProto, values: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """What a node takes, on the GPU if any of it is there; what it only reads as numbers stays where it is."""
        taken = {name: values[name] for name in node.input if name in values}
        there = [value.device == device for value in taken.values()]
        if not any(there) or (node.op_type in _READ_NUMBERS and there[0]):
            return taken
        for name in taken.keys() & self._constants.keys():
            if (name, device) not in self._copies:
                self._copies[name, device] = taken[name].to(device)
            taken[name] = self._copies[name, device]
        return {name: value.to(device) for name, value in taken.items()}


def why_unsupported(transmitter: bytes, deployed: Engine, inputs: Sequence[NDArray[Any]]) -> str:
    """Why a transmitter's graph cannot be attacked by its gradient; empty if it can.

    ``inputs`` are its pictures and whatever else it takes; ``deployed`` is the engine that sends. Only what fails here is a
    reason to skip an attack: a surrogate that cannot be built, gives other symbols than the engine, or has no gradient.
    """
    expected = torch.from_numpy(deployed(*inputs)).to(best_device())
    try:
        surrogate = Surrogate(transmitter)
        tensors = [torch.from_numpy(value).to(best_device()) for value in inputs]
        picture = tensors[0].requires_grad_()
        symbols = surrogate(picture, *tensors[1:])
        if symbols.shape != expected.shape:
            return f"what is differentiated gives {list(symbols.shape)}, the engine {list(expected.shape)}"
        distance = (symbols.detach() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        if not distance <= TOLERANCE:
            return f"what is differentiated gives other symbols than the engine: {distance:.2%} away, more than {TOLERANCE:.0%}"
        if not symbols.requires_grad:
            return "no gradient of the symbols reaches the picture"
        direction = torch.randn(symbols.shape, generator=torch.Generator().manual_seed(0)).to(symbols.device)
        (gradient,) = torch.autograd.grad(symbols, picture, direction, allow_unused=True)
    except GraphError as error:
        return error.message
    except Exception as error:  # a graph may be anything, and torch's exceptions share no narrower base
        node = " at ".join(["", *getattr(error, "__notes__", [])])
        return f"what is differentiated fails{node}: {(str(error).splitlines() or [type(error).__name__])[0]}"
    if gradient is None or not gradient.any():
        return "no gradient of the symbols reaches the picture"
    return "" if gradient.isfinite().all() else "the gradient of the symbols is not finite"


def _attributes(node: onnx.NodeProto, opset: int) -> dict[str, Any]:
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return values | {"opset": opset, "outputs": len(node.output)}


def _outputs(node: onnx.NodeProto, attributes: dict[str, Any], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a node gives, by name. An output that no operator here gives fails only where it is used."""
    missing = [name for name in node.input if name and name not in values]
    if missing:
        raise GraphError(f"{node.op_type} takes {missing[0]!r}, which nothing that can be differentiated gives", "")
    try:
        result = OPERATORS[node.op_type](attributes, *(values[name] if name else None for name in node.input))
    except Exception as error:
        error.add_note(f"{node.op_type} {node.name}".rstrip())
        raise
    return dict(zip(node.output, result if isinstance(result, tuple) else (result,), strict=False))


def _join_prelu(nodes: list[_Node], constants: dict[str, Tensor], output: str) -> list[_Node]:
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
