"""Deployed graphs cut for a GPU: the network between its picture and its rows, what else there is being done by our kernels.

    transmitter   bytes ── / 255 ─┤cut├─ image ── network ── rows ─┤cut├─ unit power ── gathered by index ── symbols
    receiver      symbols ── gathered by index ─┤cut├─ rows ── network ── image ─┤cut├─ * 255, rounded ── bytes

On a GPU every small operator costs a launch, 2 to 3 us; the ten behind a transmitter's rows do what one kernel does, and so do
the nine behind a receiver's image as bytes (``semseal.runtime.gpu.scheme_kernel``, ``pixel_kernel``). For the same reason
PReLU, which graphs write as Max(x, slope * x), becomes one operator again.

Where ONNX Runtime computes with the channels last (``computes_in_half``), rows are [batch, h, w, c], of which one of the
symbols is one run, and an image between cuts is [batch, height, width, 3], as bytes are. Elsewhere rows are [batch, c, h, w]
and images [batch, 3, height, width], so that nobody has to turn them. Both are float16 where the graph would cast there.

Only what is recognised to the last constant is cut. Bytes are read and written, so the ``onnx`` package is not needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.errors import SemsealError
from semseal.runtime.gpu.device import Port
from semseal.runtime.onnxfile import check_onnx, fields
from semseal.runtime.onnxwrite import (
    FLOAT,
    FLOAT16,
    INT32,
    UINT8,
    Graph,
    Node,
    axes_of,
    content_of,
    declaration,
    integer,
    integers,
    kind_of,
    numbers_of,
    take_apart,
)
from semseal.runtime.pixels import IMAGE

SYMBOLS = "symbols"
ROWS, PLANES, PIXELS = "rows", "rows_as_planes", "image_as_bytes_are"  # inputs or outputs of a graph that was cut there
DTYPES: dict[int, np.dtype[Any]] = {
    FLOAT: np.dtype(np.float32),
    UINT8: np.dtype(np.uint8),
    INT32: np.dtype(np.int32),
}  # of what a whole graph takes and gives
MAX_SILENCE = 1e-12  # least power that a transmitter divides by: below it, what is added changes no symbol that was not silent
TO_LAST, TO_FIRST = integers("perm", [0, 2, 3, 1]), integers("perm", [0, 3, 1, 2])  # of the channels
KEEPS_TYPE = ("Sigmoid", "DepthToSpace", "Clip", "PRelu", "Relu", "Transpose")  # operators, of their first input


@dataclass(frozen=True)
class Cut:
    """A graph with ``rows`` in place of symbols and index, and a picture in place of bytes if those were its ``pixels``.

    ``inputs`` and ``output`` are those of the whole graph; ``normalized``: its transmitter brought every image to power 1.
    ``planes``: rows are [batch, c, h, w], not [batch, h, w, c].
    """

    graph: bytes
    rows: tuple[int, int, int]  # h, w, c
    planes: bool
    normalized: bool
    pixels: bool
    inputs: tuple[Port, ...]
    output: Port

    @property
    def sends(self) -> bool:
        return self.output.name == SYMBOLS


def cut(model: bytes) -> Cut | None:
    """The network of a graph; None for one of another form, or for what is no graph."""
    try:
        check_onnx(model)
        graph, rest = take_apart(model)
    except (SemsealError, UnicodeDecodeError):
        return None  # ONNX Runtime will say what is wrong with it
    _join_prelu(graph)
    last = computes_in_half(model)
    declared = [_port(value) for value in (*graph.inputs.values(), *graph.outputs.values())]
    ports = [port for port in declared if port is not None]
    taken = {*_made(graph), *graph.constants, *graph.inputs} & {ROWS, PLANES, PIXELS}
    if len(graph.outputs) != 1 or len(graph.inputs) < 2 or len(ports) != len(declared) or taken:
        return None
    *inputs, output = ports
    sends = output.name == SYMBOLS
    pixels = (_bytes_in if sends else _bytes_out)(graph)
    found = (_cut_transmitter if sends else _cut_receiver)(graph, last)
    if found is None:
        return None
    rows, normalized, planes = found
    if pixels is not None and last:
        (_picture_in if sends else _picture_out)(graph, pixels)
    _prune(graph)
    return Cut(graph.encoded(rest), rows, planes, normalized, pixels is not None, tuple(inputs), output)


def _port(declared: bytes) -> Port | None:
    kind = kind_of(declared)
    return Port(content_of(declared, 1).decode(), DTYPES[kind], tuple(axes_of(declared))) if kind in DTYPES else None


def computes_in_half(model: bytes) -> bool:
    """Whether some convolutions of a graph are in float16."""
    try:
        graph, _ = take_apart(model)
    except (SemsealError, UnicodeDecodeError):
        return False
    weights = [graph.constants.get(node.inputs[1], b"") for node in graph.nodes if node.operator == "Conv"]
    return any(_kind(weight) == FLOAT16 for weight in weights)


def _join_prelu(graph: Graph) -> None:
    """One operator for each Max(x, slope * x) whose slopes are at most 1."""
    made = _made(graph)
    for node in graph.nodes:
        if node.operator != "Max" or len(node.inputs) != 2:
            continue
        x, scaled = node.inputs
        product = made.get(scaled)
        if (
            product is not None
            and product.operator == "Mul"
            and product.inputs[0] == x
            and product.inputs[1] in graph.constants
        ):
            slopes = _numbers(graph, product.inputs[1])
            if slopes is not None and np.all(slopes <= 1):
                node.operator, node.inputs = "PRelu", list(product.inputs)


def _cut_transmitter(graph: Graph, last: bool) -> tuple[tuple[int, int, int], bool, bool] | None:
    if "index" not in graph.inputs:
        return None
    made = _made(graph)
    symbols = made.get(SYMBOLS)
    gather = _maker(made, symbols, "Reshape")
    flat = _maker(made, gather, "Gather", "index")
    if flat is None or flat.operator != "Reshape":
        return None
    rows = flat.inputs[0]
    at_any_power = _before_power(graph, made, rows)
    if at_any_power is not None:
        rows = at_any_power
    turned = made.get(rows)
    if at_any_power is not None and turned is not None and turned.operator == "Reshape":
        turned = made.get(turned.inputs[0])
    if turned is None or turned.operator != "Transpose" or turned.rest != TO_LAST:
        return None
    sizes = _sizes(graph)
    if sizes is None:
        return None
    graph.nodes = [node for node in graph.nodes if node is not symbols]
    kind, widened = FLOAT, made.get(turned.inputs[0])
    planes = at_any_power is not None and not last  # what is only gathered is gathered as rows, in float32
    if planes:
        graph.nodes.remove(turned)
        _rename(graph, turned.inputs[0], PLANES)
    else:
        _rename(graph, turned.outputs[0], ROWS)
        if at_any_power is not None and widened is not None and _is_half(graph, widened):
            kind, turned.inputs = FLOAT16, list(widened.inputs)
    del graph.inputs["index"]
    name, axes = _laid_out(sizes, planes)
    graph.outputs = {name: declaration(name, kind, ["batch", *axes])}
    return sizes, at_any_power is not None, planes


def _laid_out(sizes: tuple[int, int, int], planes: bool) -> tuple[str, tuple[int, int, int]]:
    """What rows are called, and their axes."""
    h, w, c = sizes
    return (PLANES, (c, h, w)) if planes else (ROWS, sizes)


def _cut_receiver(graph: Graph, last: bool) -> tuple[tuple[int, int, int], bool, bool] | None:
    if SYMBOLS not in graph.inputs or "index" not in graph.inputs:
        return None
    made = _made(graph)
    gathers = [node for node in graph.nodes if node.operator == "Gather" and node.inputs[1:] == ["index"]]
    if len(gathers) != 1 or not _along_rows(gathers[0]):
        return None
    flat, users = made.get(gathers[0].inputs[0]), _users(graph, gathers[0].outputs[0])
    given = "" if flat is None or flat.operator != "Reshape" else flat.inputs[0]
    narrowed = made.get(given)
    if narrowed is not None and narrowed.operator == "Cast" and narrowed.inputs == [SYMBOLS]:
        given = SYMBOLS
    if given != SYMBOLS or len(users) != 1 or users[0].operator != "Reshape" or len(_users(graph, SYMBOLS)) != 1:
        return None
    shape = _numbers(graph, users[0].inputs[1])
    sizes = () if shape is None or len(shape) != 4 else tuple(int(size) for size in shape[1:])
    h, reals = axes_of(graph.inputs["index"])[-1], _reals(axes_of(graph.inputs[SYMBOLS]))
    if len(sizes) != 3 or sizes[0] != h or int(np.prod(sizes)) != reals:
        return None
    turned = _users(graph, users[0].outputs[0])
    if not turned or any(node.operator != "Transpose" or node.rest != TO_FIRST for node in turned):
        return None
    graph.nodes = [node for node in graph.nodes if node not in (flat, gathers[0], users[0])]
    kind = FLOAT
    if narrowed is not None:
        if narrowed.rest != integer("to", FLOAT16):
            return None
        kind = FLOAT16
        graph.nodes.remove(narrowed)
    if last:
        _rename(graph, users[0].outputs[0], ROWS)
    else:
        graph.nodes = [node for node in graph.nodes if node not in turned]
        for node in turned:
            _rename(graph, node.outputs[0], PLANES)
    told = {name: value for name, value in graph.inputs.items() if name not in (SYMBOLS, "index")}
    rows = (sizes[0], sizes[1], sizes[2])
    name, axes = _laid_out(rows, not last)
    graph.inputs = {name: declaration(name, kind, ["batch", *axes]), **told}
    return rows, False, not last


def _bytes_in(graph: Graph) -> list[int | str] | None:
    """Takes off what turns bytes into the image; its axes, or None where no bytes come in."""
    name, declared = next(iter(graph.inputs.items()))
    users = _users(graph, name)
    if kind_of(declared) != UINT8 or len(users) != 1:
        return None
    made, turned = _made(graph), _made(graph).get(IMAGE)
    divided = _maker(made, turned, "Transpose")
    cast = _maker(made, divided, "Div")
    if turned is None or divided is None or cast is None or turned.rest != TO_FIRST or cast.rest != integer("to", FLOAT):
        return None
    if cast is not users[0] or cast.operator != "Cast" or not _are(graph, divided.inputs[1], [255]):
        return None
    batch, height, width, _ = axes_of(declared)
    axes = [batch, 3, height, width]
    graph.nodes = [node for node in graph.nodes if node not in (turned, divided, cast)]
    graph.inputs = {IMAGE: declaration(IMAGE, FLOAT, axes)} | {n: value for n, value in graph.inputs.items() if n != name}
    return axes


def _bytes_out(graph: Graph) -> list[int | str] | None:
    """Takes off what turns the image into bytes and the row that says whether it is one; its axes, or None."""
    name, declared = next(iter(graph.outputs.items()))
    made = _made(graph)
    node = made.get(name)
    for operator in ("Cast", "Transpose", "Concat", "Clip", "Round"):
        node = _maker(made, node, operator)
    if kind_of(declared) != UINT8 or node is None or node.operator != "Mul" or node.inputs[0] != IMAGE:
        return None
    if not _are(graph, node.inputs[1], [255]):
        return None
    batch, height, width, _ = axes_of(declared)
    axes = [batch, 3, height - 1 if isinstance(height, int) else height, width]
    graph.outputs = {IMAGE: declaration(IMAGE, FLOAT, axes)}
    _prune(graph)
    return axes


def _picture_in(graph: Graph, axes: list[int | str]) -> None:
    """The image as bytes are, and in float16 where that is all that the graph makes of it."""
    users, kind, first = _users(graph, IMAGE), FLOAT, IMAGE
    if len(users) == 1 and users[0].operator == "Cast" and users[0].rest == integer("to", FLOAT16):
        kind, first = FLOAT16, users[0].outputs[0]
        graph.nodes.remove(users[0])
    graph.nodes.insert(0, Node("Transpose", [PIXELS], [first], "to channels first", TO_FIRST))
    told = {name: value for name, value in graph.inputs.items() if name != IMAGE}
    graph.inputs = {PIXELS: declaration(PIXELS, kind, [axes[0], *axes[2:], 3]), **told}


def _picture_out(graph: Graph, axes: list[int | str]) -> None:
    kind, last, widened = FLOAT, IMAGE, _made(graph).get(IMAGE)
    if widened is not None and _is_half(graph, widened):
        kind, last = FLOAT16, widened.inputs[0]
    graph.nodes.append(Node("Transpose", [last], [PIXELS], "to channels last", TO_LAST))
    graph.outputs = {PIXELS: declaration(PIXELS, kind, [axes[0], *axes[2:], 3])}


def _is_half(graph: Graph, widened: Node) -> bool:
    """Whether a node casts what a convolution gave in float16 to float32."""
    if widened.operator != "Cast" or widened.rest != integer("to", FLOAT):
        return False
    made = _made(graph)
    node = made.get(widened.inputs[0])
    while node is not None and node.operator in KEEPS_TYPE:
        node = made.get(node.inputs[0])
    return node is not None and node.operator == "Conv" and _kind(graph.constants.get(node.inputs[1], b"")) == FLOAT16


def _before_power(graph: Graph, made: dict[str, Node], normalized: str) -> str | None:
    """What was brought to power 1 for each image, if that is what made a value: x / sqrt(max(2 * mean(x ** 2), silence))."""
    product = made.get(normalized)
    if product is None or product.operator != "Mul":
        return None
    x = product.inputs[0]
    inverse = made.get(product.inputs[1])
    clipped = _maker(made, _maker(made, inverse, "Reciprocal"), "Sqrt")
    doubled = _maker(made, clipped, "Clip")
    mean = _maker(made, doubled, "Mul")
    square = _maker(made, mean, "ReduceMean")
    if clipped is None or doubled is None or mean is None or square is None or square.operator != "Pow":
        return None
    least = _numbers(graph, clipped.inputs[1]) if len(clipped.inputs) == 2 else None
    as_wanted = (
        _are(graph, doubled.inputs[1], [2]) and _are(graph, square.inputs[1], [2]) and _are(graph, mean.inputs[-1], [1, 2])
    )
    keeps = mean.rest in (integer("keepdims", 1), integer("noop_with_empty_axes", 0) + integer("keepdims", 1))
    silent = least is not None and least.size == 1 and float(least[0]) <= MAX_SILENCE
    return x if as_wanted and keeps and silent and square.inputs[0] == x else None


def _maker(made: dict[str, Node], node: Node | None, operator: str, second: str | None = None) -> Node | None:
    """The node that makes the first input of ``node``, if that is an ``operator`` (whose second input is ``second``)."""
    if node is None or node.operator != operator or (second is not None and node.inputs[1:] != [second]):
        return None
    if operator == "Gather" and not _along_rows(node):
        return None
    return made.get(node.inputs[0])


def _along_rows(gather: Node) -> bool:
    return gather.rest in (b"", integer("axis", 0))


def _sizes(graph: Graph) -> tuple[int, int, int] | None:
    """h, w and c of a transmitter's rows, which are as many for a picture's height as for its width."""
    image = axes_of(graph.inputs.get(IMAGE, b""))
    h, reals = axes_of(graph.inputs["index"])[-1], _reals(axes_of(graph.outputs[SYMBOLS]))
    if len(image) != 4 or not isinstance(h, int) or not h:
        return None
    height, width = image[2:]
    if not isinstance(height, int) or not isinstance(width, int) or height < h or height % h or width % (height // h):
        return None
    w = width // (height // h)
    return (h, w, reals // (h * w)) if reals and reals % (h * w) == 0 else None


def _reals(symbols: Sequence[int | str]) -> int:
    """Real numbers in the symbols of an image; 0 where it is not told."""
    return symbols[1] * symbols[2] if len(symbols) == 3 and isinstance(symbols[1], int) and isinstance(symbols[2], int) else 0


def _numbers(graph: Graph, name: str) -> NDArray[Any] | None:
    """The elements of a constant, also of one in float16; None where it is none."""
    constant = graph.constants.get(name, b"")
    if _kind(constant) == FLOAT16:
        return np.frombuffer(content_of(constant, 9), "<f2")
    return numbers_of(constant) if constant else None


def _are(graph: Graph, name: str, wanted: Sequence[int]) -> bool:
    """Whether a constant holds these numbers."""
    found = _numbers(graph, name)
    return found is not None and np.array_equal(found, wanted)


def _kind(constant: bytes) -> int:
    return next((value for number, wire, value, _, _ in fields(constant, 0, len(constant)) if number == 2 and wire == 0), 0)


def _made(graph: Graph) -> dict[str, Node]:
    return {name: node for node in graph.nodes for name in node.outputs}


def _users(graph: Graph, name: str) -> list[Node]:
    return [node for node in graph.nodes if name in node.inputs]


def _rename(graph: Graph, old: str, new: str) -> None:
    for node in graph.nodes:
        node.inputs = [new if name == old else name for name in node.inputs]
        node.outputs = [new if name == old else name for name in node.outputs]


def _prune(graph: Graph) -> None:
    """Without the nodes and constants that no output needs."""
    made, wanted, needed = _made(graph), list(graph.outputs), set[str]()
    while wanted:
        name = wanted.pop()
        if name and name not in needed:
            needed.add(name)
            wanted += made[name].inputs if name in made else []
    graph.nodes = [node for node in graph.nodes if needed.intersection(node.outputs)]
    graph.constants = {name: value for name, value in graph.constants.items() if name in needed}
