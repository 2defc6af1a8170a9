"""The defence ``mix`` inside the deployed graphs: Hadamard matrices as constants, keys as inputs.

A bundle holds the plain graphs; these are made of them when they are opened, or when plans are built of them.

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

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.channel import SILENCE
from semseal.runtime.defense.mix import LAYERS, MIN_STRUCTURE, factors, inverse_matrices, matrices
from semseal.runtime.errors import GraphError
from semseal.runtime.onnxwrite import FLOAT, INT8, INT32, Node, declaration, integer, integers, numbers_of, take_apart, tensor

MIN_CHECKED_CHANNELS, MIN_CHECKED_REALS = 4, 2048  # for the test of structure

Numbers = NDArray[np.float32] | NDArray[np.int64] | np.float32


def with_mix(model: bytes, side: str, h: int, row_width: int, channels: int) -> bytes:
    """The deployed ``transmitter`` or ``receiver`` of h rows of ``row_width`` floats, mixing instead of gathering rows.

    Its bytes have passed ``check_onnx``. Raises GraphError for a graph that gathers no rows.
    """
    graph, rest = take_apart(model)
    gather = next((node for node in graph.nodes if node.operator == "Gather" and node.inputs[1:] == ["index"]), None)
    if gather is None:
        raise GraphError("the graph has no scheme index", "make the bundle again with semseal export or semseal pack")
    part = _Part(h * row_width)
    gather.operator, gather.name, gather.rest = "Reshape", "index/none", b""
    gather.inputs[1] = part.constant("stay", np.array([-1, h, row_width]))
    for node in graph.nodes:
        for names in (node.inputs, node.outputs):
            names[:] = ["plain_symbols" if name == "symbols" else name for name in names]
    told = {name: graph.inputs[name] for name in ("snr_db", "side_information") if name in graph.inputs}
    a, b, c = part.shape
    symbols = {"symbols": declaration("symbols", FLOAT, ["batch", a * b * c // 2, 2])}
    keys = part.keys()
    if side == "transmitter":
        nodes = graph.nodes + part.mix("plain_symbols", "symbols", loud=bool(told))
        pads = {"mix_pads": declaration("mix_pads", FLOAT, ["batch", a * b * c - part.n])}
        graph.inputs, graph.outputs = {"image": graph.inputs["image"]} | told | pads | keys, symbols
    else:
        checked = channels >= MIN_CHECKED_CHANNELS and part.n >= MIN_CHECKED_REALS
        if checked:
            for node in graph.nodes:
                for names in (node.inputs, node.outputs):
                    names[:] = ["decoded" if name == "image" else name for name in names]
        nodes = part.unmix("symbols", "plain_symbols") + graph.nodes
        if checked:
            nodes += part.believe("plain_symbols", channels, "decoded", "image")
        graph.inputs = symbols | told | keys
    constants = graph.constants | part.constants
    graph.nodes = _needed(part.first_nodes + nodes, constants, next(iter(graph.outputs)))
    used = {name for node in graph.nodes for name in node.inputs}
    graph.constants = {name: value for name, value in constants.items() if name in used}
    return graph.encoded(rest)


def _needed(nodes: list[Node], constants: dict[str, bytes], result: str) -> list[Node]:
    """The nodes that ``result`` needs, and of Reshapes in a row only the last."""
    reshapes = {node.outputs[0]: node for node in nodes if node.operator == "Reshape"}
    for node in reshapes.values():
        # a size of 0, or one that is computed, may need the shape before it
        shape = numbers_of(constants.get(node.inputs[1], b""))
        while shape is not None and shape.all() and node.inputs[0] in reshapes:
            node.inputs[0] = reshapes[node.inputs[0]].inputs[0]
    kept: list[Node] = []
    wanted = {result}
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.outputs):
            kept.append(node)
            wanted.update(node.inputs)
    return kept[::-1]


class _Part:
    """The nodes of one mixing, as they are written down, for images of n reals."""

    def __init__(self, n: int) -> None:
        self.n, self.shape = n, factors(n)
        self.first_nodes: list[Node] = []  # of the whole graph, see ``first``
        self.nodes: list[Node] = []
        self.constants: dict[str, bytes] = {}
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
        self.signs = [self.first("Cast", [f"mix_signs{k}"], integer("to", FLOAT)) for k in range(LAYERS)]

    def constant(self, name: str, values: Numbers) -> str:
        self.constants[f"mix_{name}"] = tensor(f"mix_{name}", values)
        return f"mix_{name}"

    def keys(self) -> dict[str, bytes]:
        """What declares the keys that both sides take."""
        a, b, c = self.shape
        keys = {"mix_column_signs": (INT8, [c, 1])} | {f"mix_signs{k}": (INT8, [a * b, c]) for k in range(LAYERS)}
        keys |= {"mix_rows": (INT32, [a * b]), "mix_columns": (INT32, [c])}
        return {name: declaration(name, kind, ["batch", *axes]) for name, (kind, axes) in keys.items()}

    def node(self, operator: str, inputs: Sequence[str], attribute: bytes = b"") -> str:
        output = f"mix_{len(self.nodes)}"
        self.nodes.append(Node(operator, list(inputs), [output], f"power/mix_{operator}_{output}", attribute))
        return output

    def first(self, operator: str, inputs: Sequence[str], attribute: bytes = b"") -> str:
        """As ``node``, but among the first of the graph, for what is made of keys alone.

        Of a node's inputs ONNX Runtime computes the one first whose node stands last. So it casts signs when they are needed,
        not before the network, which would push them out of the caches.
        """
        output = f"mix_first_{len(self.first_nodes)}"
        self.first_nodes.append(Node(operator, list(inputs), [output], f"power/{output}", attribute))
        return output

    def reshape(self, x: str, shape: str) -> str:
        return self.node("Reshape", [x, f"mix_{shape}"])

    def signed(self, x: str, k: int) -> str:
        """[batch, a*b, c] times the signs of layer k."""
        return self.node("Mul", [x, self.signs[k]])

    def mix(self, taken: str, given: str, loud: bool) -> list[Node]:
        """``loud``: the features have any power, and what is given has it too."""
        features = self.reshape(taken, "reals")
        if loud:
            power = self.node("ReduceMean", [self.node("Mul", [features, features]), self.constant("row", np.array([1]))])
            least = self.constant("least", np.float32(SILENCE))
            doubled = self.node("Max", [self.node("Add", [power, power]), least])  # [batch, 1], of a symbol
            amplitude = self.node("Sqrt", [doubled])
            features = self.node("Div", [features, amplitude])
        x = self.node("Concat", [features, "mix_pads"], integer("axis", 1))
        cast = self.node("Cast", ["mix_column_signs"], integer("to", FLOAT))
        # [batch, 1, 1]; in two steps, because ONNX Runtime takes twice the time for ReduceSumSquare
        x = self.reshape(x, "matrix")
        energy = self.node("ReduceSum", [self.node("Mul", [x, x]), self.constant("all_reals", np.array([1, 2]))])
        right = self.constant("right_at_power", matrices(self.n)[2] * np.float32(math.sqrt(math.prod(self.shape) / 2)))
        amount = self.node("Sqrt", [energy])
        scaled = self.node("Div", [self.node("Mul", [right, cast]), amount])
        x = self.node("MatMul", [x, scaled])
        x = self.columns_mixed(self.signed(x, 0))
        x = self.node("Gather", [self.reshape(x, "every_row"), "mix_rows"], integer("axis", 0))  # [batch, a*b, c]
        moved = self.node("Gather", ["mix_right", "mix_columns"], integer("axis", 0))  # [batch, c, c]
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
        # in the shape that is asked for, because a Reshape at the end of a graph copies
        signs = self.first("Cast", [self.first("Reshape", ["mix_signs4", "mix_pairs"])], integer("to", FLOAT))
        self.nodes.append(Node("Mul", [self.reshape(x, "pairs"), signs], [given], "power/mix_symbols"))
        return self.nodes

    def columns_mixed(self, x: str) -> str:
        """[batch, a*b, c] to [batch, a, b, c]."""
        x = self.node("MatMul", ["mix_left_a", self.reshape(x, "blocks")])
        return self.node("MatMul", ["mix_left_b", self.reshape(x, "cube")])

    def unmix(self, taken: str, given: str) -> list[Node]:
        x = self.node("MatMul", [self.signed(self.reshape(taken, "matrix"), 4), "mix_right_back"])
        x = self.columns_unmixed(self.signed(x, 3))
        # scaled here and not by a Mul behind the Gather, with which OpenVINO cannot compile an int8 graph
        right, right_back = matrices(self.n)[2], inverse_matrices(self.n)[2]
        moved = self.node(
            "Gather",
            [self.constant("right_moved", right * (right_back[0, :1] / right[0, :1])), "mix_columns"],
            integer("axis", 0),
        )
        moved = self.node("Transpose", [moved], integers("perm", [0, 2, 1]))
        x = self.signed(self.node("MatMul", [self.signed(x, 2), moved]), 1)
        x = self.node("Gather", [self.reshape(x, "every_row"), "mix_rows"], integer("axis", 0))
        x = self.columns_unmixed(self.reshape(x, "matrix"))
        cast = self.node(
            "Transpose", [self.node("Cast", ["mix_column_signs"], integer("to", FLOAT))], integers("perm", [0, 2, 1])
        )
        x = self.node("MatMul", [self.signed(x, 0), self.node("Mul", ["mix_right_back", cast])])
        x = self.reshape(x, "all")
        ends = [self.constant(name, np.array([value])) for name, value in (("from", 0), ("to", self.n), ("axis", 1))]
        x = self.node("Slice", [x, *ends])
        plain = self.constant("plain", np.array([-1, self.n // 2, 2]))
        self.nodes.append(Node("Reshape", [x, plain], [given], "power/mix_plain"))
        return self.nodes

    def columns_unmixed(self, x: str) -> str:
        """[batch, a*b, c] to the same, as in the reference."""
        x = self.node("MatMul", ["mix_left_b_back", self.reshape(x, "cube")])
        return self.reshape(self.node("MatMul", ["mix_left_a_back", self.reshape(x, "blocks")]), "matrix")

    def believe(self, symbols: str, channels: int, decoded: str, image: str) -> list[Node]:
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
        self.nodes.append(Node("Where", [known, decoded, number["nothing"]], [image], "power/mix_believed"))
        return self.nodes[first:]
