"""ONNX graphs taken apart and written as bytes, without the ``onnx`` package: link and engines do without it.

Only what is changed is decoded; weights stay the bytes that they were. Field numbers are those of onnx.proto, as in
``semseal.runtime.onnxfile``, which has checked what is read here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.onnxfile import fields

GRAPH = 7  # of a model
NODE, INITIALIZER, INPUT, OUTPUT = 1, 5, 11, 12  # of a graph
FLOAT, UINT8, INT8, INT32, INT64, FLOAT16 = 1, 2, 3, 6, 7, 10  # types of a tensor's elements
_TYPES = {"float32": FLOAT, "int64": INT64}
_SIZES = {FLOAT: "<f4", INT64: "<i8"}
_KIND_INT, _KIND_INTS = 2, 7  # types of an attribute


@dataclass
class Node:
    """A node; ``rest`` are its other fields, attributes above all, encoded."""

    operator: str
    inputs: list[str]
    outputs: list[str]
    name: str
    rest: bytes = b""

    def encoded(self) -> bytes:
        names = b"".join(pack(1, name) for name in self.inputs) + b"".join(pack(2, name) for name in self.outputs)
        return names + pack(3, self.name) + pack(4, self.operator) + self.rest


@dataclass
class Graph:
    """A graph taken apart: what declares a value or holds a tensor is encoded, and found by its name."""

    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, bytes] = field(default_factory=dict)
    inputs: dict[str, bytes] = field(default_factory=dict)
    outputs: dict[str, bytes] = field(default_factory=dict)

    def encoded(self, rest: bytes) -> bytes:
        """A model; ``rest`` is what ``take_apart`` gave."""
        parts = [pack(NODE, node.encoded()) for node in self.nodes] + [pack(2, "semseal")]
        for number, values in ((INITIALIZER, self.constants), (INPUT, self.inputs), (OUTPUT, self.outputs)):
            parts += [pack(number, value) for value in values.values()]
        return rest + pack(GRAPH, b"".join(parts))


def take_apart(model: bytes) -> tuple[Graph, bytes]:
    """The graph of a model, whose bytes ``check_onnx`` passed, and the encoded rest of the model."""
    body, rest = graph_of(model)
    graph = Graph()
    for number, content in _contents(body):
        if number == NODE:
            graph.nodes.append(_node(content))
        elif number == INITIALIZER:
            graph.constants[content_of(content, 8).decode()] = content
        elif number in (INPUT, OUTPUT):
            values = graph.inputs if number == INPUT else graph.outputs
            values[content_of(content, 1).decode()] = content
    return graph, rest


def graph_of(model: bytes) -> tuple[bytes, bytes]:
    """The encoded graph of a model and the rest of it. Several graphs are one, by the rules of protobuf."""
    parts, rest = [], []
    for number, wire, value, start, end in fields(model, 0, len(model)):
        if number == GRAPH and wire == 2:
            parts.append(model[end - value : end])
        else:
            rest.append(model[start:end])
    return b"".join(parts), b"".join(rest)


def numbers_of(tensor: bytes) -> NDArray[np.generic] | None:
    """The elements of an encoded float32 or int64 tensor, flat; None for another type or another way of storing them."""
    numbers = {number: value for number, wire, value, _, _ in fields(tensor, 0, len(tensor)) if wire == 0}
    kind, raw = numbers.get(2, 0), content_of(tensor, 9)
    return np.frombuffer(raw, _SIZES[kind]) if kind in _SIZES and raw else None


def content_of(message: bytes, wanted: int) -> bytes:
    """The content of a field that is there once, empty where it is missing."""
    found = [content for number, content in _contents(message) if number == wanted]
    return found[-1] if found else b""


def kind_of(declared: bytes) -> int:
    """The type of the elements of a declared value."""
    found = content_of(content_of(declared, 2), 1)
    return next((value for number, wire, value, _, _ in fields(found, 0, len(found)) if number == 1 and wire == 0), 0)


def axes_of(declared: bytes) -> list[int | str]:
    """The axes of a declared value: sizes, or names of sizes that vary."""
    shape = content_of(content_of(content_of(declared, 2), 1), 2)
    axes: list[int | str] = []
    for number, wire, value, _, end in fields(shape, 0, len(shape)):
        if number != 1 or wire != 2:
            continue
        axis: int | str = "?"
        for inner, kind, size, _, stop in fields(shape[end - value : end], 0, value):
            if inner == 1 and kind == 0:
                axis = size
            elif inner == 2 and kind == 2:
                axis = shape[end - value : end][stop - size : stop].decode(errors="replace")
        axes.append(axis)
    return axes


def pack(number: int, content: bytes | str | int) -> bytes:
    """A field with its tag: of wire type 0 for a number, else length-delimited."""
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    data = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def integer(name: str, value: int) -> bytes:
    """An attribute."""
    return pack(5, pack(1, name) + pack(3, value) + pack(20, _KIND_INT))


def integers(name: str, values: Sequence[int]) -> bytes:
    """An attribute."""
    return pack(5, pack(1, name) + b"".join(pack(8, value) for value in values) + pack(20, _KIND_INTS))


def tensor(name: str, values: NDArray[np.float32] | NDArray[np.int64] | np.float32) -> bytes:
    """A constant, float32 or int64."""
    array = np.asarray(values)
    sizes = b"".join(pack(1, size) for size in array.shape)
    kind = _TYPES[array.dtype.name]
    return sizes + pack(2, kind) + pack(8, name) + pack(9, np.ascontiguousarray(array, _SIZES[kind]).tobytes())


def declaration(name: str, kind: int, axes: Iterable[int | str | bytes]) -> bytes:
    """What declares a value with these axes: sizes, names of sizes that vary, or axes as they were declared elsewhere."""
    encoded = (axis if isinstance(axis, bytes) else pack(1 if isinstance(axis, int) else 2, axis) for axis in axes)
    shape = b"".join(pack(1, axis) for axis in encoded)
    return pack(1, name) + pack(2, pack(1, pack(1, kind) + pack(2, shape)))


def _contents(message: bytes) -> list[tuple[int, bytes]]:
    """The length-delimited fields of a message."""
    found = fields(message, 0, len(message))
    return [(number, message[end - value : end]) for number, wire, value, _, end in found if wire == 2]


def _node(message: bytes) -> Node:
    node = Node("", [], [], "")
    rest = []
    for number, wire, value, start, end in fields(message, 0, len(message)):
        content = message[end - value : end]
        if number == 1 and wire == 2:
            node.inputs.append(content.decode())
        elif number == 2 and wire == 2:
            node.outputs.append(content.decode())
        elif number == 3 and wire == 2:
            node.name = content.decode()
        elif number == 4 and wire == 2:
            node.operator = content.decode()
        else:
            rest.append(message[start:end])
    node.rest = b"".join(rest)
    return node


def _varint(value: int) -> bytes:
    if value < 0:
        value += 2**64  # as protobuf does
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
