"""The defence ``mix`` inside the deployed graphs: matrices as constants, signs and row order as inputs.

    transmitter-mix   image, signs0..signs4, order [batch, runs] -> symbols [batch, padded N, 2]
    receiver-mix      symbols [batch, padded N, 2], signs0..signs4, order (the inverse) [batch, runs] -> image

    signs0, signs2    [batch, a, b*c], in front of the matrix over a, whose shape they save a Reshape
    signs1, signs3    [batch, a, b, c], between those over b and c
    signs4            [batch, padded N, 2], on air

``order`` is absolute, as ``MixKeys.index`` and ``inverse_index`` give it: one Gather on axis 0 over the runs of all images. The
reference is ``semseal.runtime.defense.mix``, whose arithmetic this repeats operator by operator, in float32 in every precision.
The scale of the power normalisation is not drawn into the first matrix: a matrix that is no constant costs OpenVINO more than
the multiplication that it saves.

Symbols that do not look like the model's after un-mixing (``structure``) were mixed under another key, counter or model: the
receiver then gives a picture of NaN, never one that was decoded from noise. Models with fewer channels or symbols than that
test needs go without it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from semseal.runtime.defense.mix import LEAST_STRUCTURE, factors, matrices, run_length

LEAST_CHANNELS, LEAST_REALS = 4, 2048  # for the test of structure


def with_mix(graph: bytes, side: str, h: int, row_width: int, channels: int) -> bytes:
    """The deployed ``transmitter`` or ``receiver`` of h rows of ``row_width`` floats, mixing instead of gathering rows."""
    model = onnx.load_model_from_string(graph)
    nodes = list(model.graph.node)
    place = next(i for i, node in enumerate(nodes) if node.op_type == "Gather" and node.input[1] == "index")
    gather = nodes[place]
    part = _Part(h * row_width)
    stay = part.constant("stay", np.array([-1, h, row_width]))
    nodes[place] = helper.make_node("Reshape", [gather.input[0], stay], list(gather.output), "index/none")
    a, b, c = part.shape
    blocks: list[str | int | None] = ["batch", a, b * c]
    cube: list[str | int | None] = ["batch", a, b, c]
    pairs: list[str | int | None] = ["batch", a * b * c // 2, 2]
    keys = [
        helper.make_tensor_value_info(f"signs{k}", TensorProto.FLOAT, shape)
        for k, shape in enumerate((blocks, cube, blocks, cube, pairs))
    ]
    runs = a * b * c // run_length(part.n)
    symbols = helper.make_tensor_value_info("symbols", TensorProto.FLOAT, pairs)
    keys.append(helper.make_tensor_value_info("order", TensorProto.INT32, ["batch", runs]))
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = ["plain_symbols" if name == "symbols" else name for name in names]
    if side == "transmitter":
        nodes += part.mix("plain_symbols", "symbols")
        inputs, outputs = [model.graph.input[0], *keys], [symbols]
    else:
        checked = channels >= LEAST_CHANNELS and part.n >= LEAST_REALS
        for node in nodes:
            node.output[:] = ["decoded" if name == "image" and checked else name for name in node.output]
        nodes = [*part.unmix("symbols", "plain_symbols"), *nodes]
        if checked:
            nodes += part.believe("plain_symbols", channels, "decoded", "image")
        inputs, outputs = [symbols, *keys], list(model.graph.output)
    constants = [*model.graph.initializer, *part.constants]
    nodes = _needed(nodes, constants, outputs[0].name)
    used = {name for node in nodes for name in node.input}
    made = helper.make_model(
        helper.make_graph(nodes, model.graph.name, inputs, outputs, [tensor for tensor in constants if tensor.name in used]),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    onnx.checker.check_model(made, full_check=True)
    data: bytes = made.SerializeToString(deterministic=True)
    return data


def _needed(nodes: list[onnx.NodeProto], constants: Sequence[onnx.TensorProto], result: str) -> list[onnx.NodeProto]:
    """The nodes that ``result`` needs, and of Reshapes in a row only the last."""
    # a size of 0, or one that is computed, may need the shape before it
    absolute = {tensor.name for tensor in constants if numpy_helper.to_array(tensor).all()}
    reshapes = {node.output[0]: node for node in nodes if node.op_type == "Reshape"}
    for node in reshapes.values():
        while node.input[1] in absolute and node.input[0] in reshapes:
            node.input[0] = reshapes[node.input[0]].input[0]
    kept: list[onnx.NodeProto] = []
    wanted = {result}
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


class _Part:
    """The nodes of one mixing, as they are written down, for images of n reals."""

    def __init__(self, n: int) -> None:
        self.n, self.shape = n, factors(n)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        a, b, c = self.shape
        left_a, left_b, right = matrices(n)
        for name, matrix in (("left_a", left_a), ("left_b", left_b), ("right", right)):
            self.constant(name, matrix)
            self.constant(f"{name}_back", matrix.T)
        self.constant("blocks", np.array([-1, a, b * c]))
        self.constant("cube", np.array([-1, a, b, c]))
        self.constant("pairs", np.array([-1, a * b * c // 2, 2]))
        self.constant("runs", np.array([-1, run_length(n)]))

    def constant(self, name: str, values: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), f"mix_{name}"))
        return f"mix_{name}"

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = f"mix_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], f"power/mix_{operator}_{output}", **attributes))
        return output

    def reshape(self, x: str, shape: str) -> str:
        return self.node("Reshape", [x, f"mix_{shape}"])

    def mix(self, taken: str, given: str) -> list[onnx.NodeProto]:
        size = math.prod(self.shape)
        x = self.node("Reshape", [taken, self.constant("reals", np.array([-1, self.n]))])
        if size > self.n:
            pads = self.constant("pads", np.array([0, 0, 0, size - self.n]))
            louder = self.constant("louder", np.float32(math.sqrt(size / self.n)))
            x = self.node("Mul", [self.node("Pad", [x, pads]), louder])
        for turn in (0, 2):
            x = self.node("Mul", [self.reshape(x, "blocks"), f"signs{turn}"])
            x = self.node("MatMul", ["mix_left_a", x])
            x = self.node("MatMul", ["mix_left_b", self.reshape(x, "cube")])
            x = self.node("MatMul", [self.node("Mul", [x, f"signs{turn + 1}"]), "mix_right"])
            if turn == 0:
                x = self.node("Gather", [self.reshape(x, "runs"), "order"], axis=0)
        self.nodes.append(helper.make_node("Mul", [self.reshape(x, "pairs"), "signs4"], [given], "power/mix_symbols"))
        return self.nodes

    def unmix(self, taken: str, given: str) -> list[onnx.NodeProto]:
        size = math.prod(self.shape)
        x = self.node("Mul", [taken, "signs4"])
        for turn in (2, 0):
            x = self.node("MatMul", [self.reshape(x, "cube"), "mix_right_back"])
            x = self.node("MatMul", ["mix_left_b_back", self.node("Mul", [x, f"signs{turn + 1}"])])
            x = self.node("MatMul", ["mix_left_a_back", self.reshape(x, "blocks")])
            x = self.node("Mul", [x, f"signs{turn}"])
            if turn == 2:
                x = self.node("Gather", [self.reshape(x, "runs"), "order"], axis=0)
        if size > self.n:
            x = self.node("Reshape", [x, self.constant("flat", np.array([-1, size]))])
            ends = [self.constant(name, np.array([value])) for name, value in (("from", 0), ("to", self.n), ("axis", 1))]
            softer = self.constant("softer", np.float32(math.sqrt(self.n / size)))
            x = self.node("Mul", [self.node("Slice", [x, *ends]), softer])
        plain = self.constant("plain", np.array([-1, self.n // 2, 2]))
        self.nodes.append(helper.make_node("Reshape", [x, plain], [given], "power/mix_plain"))
        return self.nodes

    def believe(self, symbols: str, channels: int, decoded: str, image: str) -> list[onnx.NodeProto]:
        """The decoded picture, or NaN where ``structure`` of the symbols is below its least value."""
        first, places, degrees = len(self.nodes), self.n // channels, 2 * channels - 1
        enough = LEAST_STRUCTURE * math.sqrt(2 * degrees) + degrees  # of chi square
        number = {name: self.constant(name, np.float32(value)) for name, value in
                  (("one", 1), ("half", 0.5), ("enough", enough / places), ("nothing", np.nan), ("tiny", 1e-20))}  # fmt: skip
        y = self.node("Reshape", [symbols, self.constant("channels", np.array([-1, places, channels]))])
        over_places, over_channels = self.constant("places", np.array([1])), self.constant("each", np.array([1, 2]))
        power = self.node("ReduceMean", [self.node("Mul", [y, y]), over_places])  # [batch, 1, channels]
        mean = self.node("ReduceMean", [y, over_places])
        total = self.node("Max", [self.node("ReduceMean", [power, over_channels]), number["tiny"]])
        uneven = self.node("Sub", [self.node("Div", [power, total]), number["one"]])
        uneven = self.node("Mul", [self.node("Mul", [uneven, uneven]), number["half"]])
        shifted = self.node("Div", [self.node("Mul", [mean, mean]), total])
        found = self.node("ReduceSum", [self.node("Add", [uneven, shifted]), over_channels])
        shape = self.constant("picture", np.array([-1, 1, 1, 1]))
        known = self.node("Reshape", [self.node("Greater", [found, number["enough"]]), shape])
        self.nodes.append(helper.make_node("Where", [known, decoded, number["nothing"]], [image], "power/mix_believed"))
        return self.nodes[first:]
