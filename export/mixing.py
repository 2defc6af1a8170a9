"""The defence ``mix`` inside the deployed graphs: Hadamard matrices as constants, keys as inputs.

    transmitter-mix   image, mix_pads, mix_column_signs, mix_signs0..4, mix_rows, mix_columns -> symbols, of any power
    receiver-mix      symbols, mix_column_signs, mix_signs0..4, mix_rows, mix_columns         -> image

With a model whose scale is in the header, snr_db comes behind image, and side_information behind symbols. Its features are as
loud as they come: they are brought to unit power for the mixing and back at its end, so that the factor which ``mix.normalize``
finds is their scale.

    symbols           float32 [batch, padded N, 2]
    mix_pads          float32 [batch, 2 (padded N - N)]
    mix_column_signs  int8 [batch, c, 1], -1 or 1
    mix_signs0..4     int8 [batch, a*b, c], -1 or 1
    mix_rows          int32 [batch, a*b], absolute: ``MixKeys.index`` for the transmitter, ``inverse_index`` for the receiver
    mix_columns       int32 [batch, c], the same for both

The reference is ``semseal.runtime.defense.mix``, whose arithmetic this repeats operator by operator, in float32 in every
precision. What leaves the transmitter's graph is the mix but for its power: ``mix.normalize`` sets that to 1 on the host, in
double precision, which TensorRT does not have. Signs are int8, because a cast costs less than reading four times the bytes.
One Gather moves whole rows, among those of all images; columns are moved by reordering the rows of the matrix that multiplies
them next.

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
from semseal.runtime.channel import SILENCE
from semseal.runtime.defense.mix import LAYERS, MIN_STRUCTURE, factors, inverse_matrices, matrices

MIN_CHECKED_CHANNELS, MIN_CHECKED_REALS = 4, 2048  # for the test of structure


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
    size = a * b * c
    keys = [helper.make_tensor_value_info("mix_column_signs", TensorProto.INT8, ["batch", c, 1])]
    keys += [helper.make_tensor_value_info(f"mix_signs{k}", TensorProto.INT8, ["batch", a * b, c]) for k in range(LAYERS)]
    keys.append(helper.make_tensor_value_info("mix_rows", TensorProto.INT32, ["batch", a * b]))
    keys.append(helper.make_tensor_value_info("mix_columns", TensorProto.INT32, ["batch", c]))
    pads = helper.make_tensor_value_info("mix_pads", TensorProto.FLOAT, ["batch", size - part.n])
    symbols = helper.make_tensor_value_info("symbols", TensorProto.FLOAT, ["batch", size // 2, 2])
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = ["plain_symbols" if name == "symbols" else name for name in names]
    told = [value for value in model.graph.input if value.name in ("snr_db", "side_information")]
    if side == "transmitter":
        nodes += part.mix("plain_symbols", "symbols", loud=bool(told))
        inputs, outputs = [model.graph.input[0], *told, pads, *keys], [symbols]
    else:
        checked = channels >= MIN_CHECKED_CHANNELS and part.n >= MIN_CHECKED_REALS
        for node in nodes:
            node.output[:] = ["decoded" if name == "image" and checked else name for name in node.output]
        nodes = [*part.unmix("symbols", "plain_symbols"), *nodes]
        if checked:
            nodes += part.believe("plain_symbols", channels, "decoded", "image")
        inputs, outputs = [symbols, *told, *keys], list(model.graph.output)
    constants = [*model.graph.initializer, *part.constants]
    nodes = _needed([*part.first_nodes, *nodes], constants, outputs[0].name)
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
        self.first_nodes: list[onnx.NodeProto] = []  # of the whole graph, see ``first``
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        a, b, c = self.shape
        for name, matrix in zip(("left_a", "left_b", "right"), matrices(n), strict=True):
            self.constant(name, matrix)
        for name, matrix in zip(("left_a_back", "left_b_back", "right_back"), inverse_matrices(n), strict=True):
            self.constant(name, matrix)
        self.constant("blocks", np.array([-1, a, b * c]))
        self.constant("cube", np.array([-1, a, b, c]))
        self.constant("matrix", np.array([-1, a * b, c]))
        self.constant("every_row", np.array([-1, c]))
        self.constant("pairs", np.array([-1, a * b * c // 2, 2]))
        self.constant("reals", np.array([-1, n]))
        self.constant("all", np.array([-1, a * b * c]))
        self.signs = [self.first("Cast", [f"mix_signs{k}"], to=TensorProto.FLOAT) for k in range(LAYERS)]

    def constant(self, name: str, values: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), f"mix_{name}"))
        return f"mix_{name}"

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = f"mix_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], f"power/mix_{operator}_{output}", **attributes))
        return output

    def first(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """As ``node``, but among the first of the graph, for what is made of keys alone.

        Of a node's inputs ONNX Runtime computes the one first whose node stands last. So it casts signs when they are needed,
        not before the network, which would push them out of the caches.
        """
        output = f"mix_first_{len(self.first_nodes)}"
        self.first_nodes.append(helper.make_node(operator, list(inputs), [output], f"power/{output}", **attributes))
        return output

    def reshape(self, x: str, shape: str) -> str:
        return self.node("Reshape", [x, f"mix_{shape}"])

    def signed(self, x: str, k: int) -> str:
        """[batch, a*b, c] times the signs of layer k."""
        return self.node("Mul", [x, self.signs[k]])

    def mix(self, taken: str, given: str, loud: bool) -> list[onnx.NodeProto]:
        """``loud``: the features have any power, and what is given has it too."""
        features = self.reshape(taken, "reals")
        if loud:
            power = self.node("ReduceMean", [self.node("Mul", [features, features]), self.constant("row", np.array([1]))])
            least = self.constant("least", np.float32(SILENCE))
            doubled = self.node("Max", [self.node("Add", [power, power]), least])  # [batch, 1], of a symbol
            amplitude = self.node("Sqrt", [doubled])
            features = self.node("Div", [features, amplitude])
        x = self.node("Concat", [features, "mix_pads"], axis=1)
        cast = self.node("Cast", ["mix_column_signs"], to=TensorProto.FLOAT)
        # [batch, 1, 1]; in two steps, because ONNX Runtime takes twice the time for ReduceSumSquare
        x = self.reshape(x, "matrix")
        energy = self.node("ReduceSum", [self.node("Mul", [x, x]), self.constant("all_reals", np.array([1, 2]))])
        right = self.constant("right_at_power", matrices(self.n)[2] * np.float32(math.sqrt(math.prod(self.shape) / 2)))
        amount = self.node("Sqrt", [energy])
        scaled = self.node("Div", [self.node("Mul", [right, cast]), amount])
        x = self.node("MatMul", [x, scaled])
        x = self.columns_mixed(self.signed(x, 0))
        x = self.node("Gather", [self.reshape(x, "every_row"), "mix_rows"], axis=0)  # [batch, a*b, c]
        moved = self.node("Gather", ["mix_right", "mix_columns"], axis=0)  # [batch, c, c]
        x = self.node("MatMul", [self.signed(x, 1), moved])
        x = self.reshape(self.columns_mixed(self.signed(x, 2)), "matrix")
        right = "mix_right"
        if loud:
            as_loud = self.node("Reshape", [amplitude, self.constant("one_each", np.array([-1, 1, 1]))])
            # the matrices are orthogonal but for their scale
            a, b, c = (float(np.linalg.norm(matrix[0])) for matrix in matrices(self.n))
            back = matrices(self.n)[2] * np.float32((a * b) ** -2 * c**-3 / math.sqrt(math.prod(self.shape) / 2))
            right = self.node("Mul", [self.constant("right_as_loud", back), self.node("Mul", [as_loud, amount])])
        x = self.node("MatMul", [self.signed(x, 3), right])
        # in the shape that is asked for: a Reshape at the end of a graph copies
        x, signs = self.reshape(x, "pairs"), self.first("Reshape", [self.signs[4], "mix_pairs"])
        self.nodes.append(helper.make_node("Mul", [x, signs], [given], "power/mix_symbols"))
        return self.nodes

    def columns_mixed(self, x: str) -> str:
        """[batch, a*b, c] to [batch, a, b, c]."""
        x = self.node("MatMul", ["mix_left_a", self.reshape(x, "blocks")])
        return self.node("MatMul", ["mix_left_b", self.reshape(x, "cube")])

    def unmix(self, taken: str, given: str) -> list[onnx.NodeProto]:
        x = self.node("MatMul", [self.signed(self.reshape(taken, "matrix"), 4), "mix_right_back"])
        x = self.columns_unmixed(self.signed(x, 3))
        # scaled here and not by a Mul behind the Gather, with which OpenVINO cannot compile an int8 graph
        right, right_back = matrices(self.n)[2], inverse_matrices(self.n)[2]
        moved = self.node(
            "Gather", [self.constant("right_moved", right * (right_back[0, :1] / right[0, :1])), "mix_columns"], axis=0
        )
        moved = self.node("Transpose", [moved], perm=[0, 2, 1])
        x = self.signed(self.node("MatMul", [self.signed(x, 2), moved]), 1)
        x = self.node("Gather", [self.reshape(x, "every_row"), "mix_rows"], axis=0)
        x = self.columns_unmixed(self.reshape(x, "matrix"))
        cast = self.node("Transpose", [self.node("Cast", ["mix_column_signs"], to=TensorProto.FLOAT)], perm=[0, 2, 1])
        x = self.node("MatMul", [self.signed(x, 0), self.node("Mul", ["mix_right_back", cast])])
        x = self.reshape(x, "all")
        ends = [self.constant(name, np.array([value])) for name, value in (("from", 0), ("to", self.n), ("axis", 1))]
        x = self.node("Slice", [x, *ends])
        plain = self.constant("plain", np.array([-1, self.n // 2, 2]))
        self.nodes.append(helper.make_node("Reshape", [x, plain], [given], "power/mix_plain"))
        return self.nodes

    def columns_unmixed(self, x: str) -> str:
        """[batch, a*b, c] to the same, as in the reference."""
        x = self.node("MatMul", ["mix_left_b_back", self.reshape(x, "cube")])
        return self.reshape(self.node("MatMul", ["mix_left_a_back", self.reshape(x, "blocks")]), "matrix")

    def believe(self, symbols: str, channels: int, decoded: str, image: str) -> list[onnx.NodeProto]:
        """The decoded picture, or NaN where ``structure`` of the symbols is below its least value."""
        first, places, degrees = len(self.nodes), self.n // channels, 2 * channels - 1
        enough = MIN_STRUCTURE * math.sqrt(2 * degrees) + degrees  # of chi square
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
