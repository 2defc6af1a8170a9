"""The defence ``mix`` inside the deployed graphs: matrices as constants, signs and row order as inputs.

    transmitter-mix   image, signs0..signs4 [batch, padded n], order [batch, runs] -> symbols [batch, padded N, 2]
    receiver-mix      symbols [batch, padded N, 2], signs0..signs4, order (the inverse) [batch, runs] -> image

``order`` is absolute, as ``MixKeys.index`` and ``inverse_index`` give it: one Gather on axis 0 over the runs of all images. The
reference is ``semseal.runtime.defense.mix``, whose arithmetic this repeats operator by operator, in float32 in every precision.

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
from semseal.runtime.defense.mix import LAYERS, LEAST_STRUCTURE, factors, matrices, run_length

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
    mixed: list[str | int | None] = ["batch", math.prod(part.shape) // 2, 2]
    symbols = helper.make_tensor_value_info("symbols", TensorProto.FLOAT, mixed)
    keys = [
        helper.make_tensor_value_info(f"signs{k}", TensorProto.FLOAT, ["batch", math.prod(part.shape)]) for k in range(LAYERS)
    ]
    runs = math.prod(part.shape) // run_length(part.n)
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
    made = helper.make_model(
        helper.make_graph(nodes, model.graph.name, inputs, outputs, [*model.graph.initializer, *part.constants]),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    onnx.checker.check_model(made, full_check=True)
    data: bytes = made.SerializeToString(deterministic=True)
    return data


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
        self.constant("flat", np.array([-1, a * b * c]))
        self.constant("rows", np.array([-1, c]))
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
            x = self.reshape(self.node("Mul", [x, f"signs{turn}"]), "blocks")
            x = self.reshape(self.node("MatMul", ["mix_left_a", x]), "cube")
            x = self.reshape(self.node("MatMul", ["mix_left_b", x]), "flat")
            x = self.reshape(self.node("Mul", [x, f"signs{turn + 1}"]), "rows")
            x = self.node("MatMul", [x, "mix_right"])
            if turn == 0:
                x = self.node("Gather", [self.reshape(x, "runs"), "order"], axis=0)
            x = self.reshape(x, "flat")
        x = self.node("Mul", [x, "signs4"])
        self.nodes.append(
            helper.make_node("Reshape", [x, self.constant("pairs", np.array([-1, size // 2, 2]))], [given], "power/mix_symbols")
        )
        return self._used()

    def unmix(self, taken: str, given: str) -> list[onnx.NodeProto]:
        size = math.prod(self.shape)
        x = self.node("Mul", [self.reshape(taken, "flat"), "signs4"])
        for turn in (2, 0):
            x = self.reshape(self.node("MatMul", [self.reshape(x, "rows"), "mix_right_back"]), "flat")
            x = self.reshape(self.node("Mul", [x, f"signs{turn + 1}"]), "cube")
            x = self.reshape(self.node("MatMul", ["mix_left_b_back", x]), "blocks")
            x = self.reshape(self.node("MatMul", ["mix_left_a_back", x]), "flat")
            x = self.node("Mul", [x, f"signs{turn}"])
            if turn == 2:
                x = self.reshape(self.node("Gather", [self.reshape(x, "runs"), "order"], axis=0), "flat")
        if size > self.n:
            ends = [self.constant(name, np.array([value])) for name, value in (("from", 0), ("to", self.n), ("axis", 1))]
            softer = self.constant("softer", np.float32(math.sqrt(self.n / size)))
            x = self.node("Mul", [self.node("Slice", [x, *ends]), softer])
        pairs = self.constant("pairs", np.array([-1, self.n // 2, 2]))
        self.nodes.append(helper.make_node("Reshape", [x, pairs], [given], "power/mix_plain"))
        return self._used()

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
        self._used()
        return self.nodes[first:]

    def _used(self) -> list[onnx.NodeProto]:
        names = {name for node in self.nodes for name in node.input} | {"mix_stay"}
        self.constants = [tensor for tensor in self.constants if tensor.name in names]
        return self.nodes
