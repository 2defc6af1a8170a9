"""A deployed graph with its pictures as bytes: uint8 [batch, height, width, 3], as cameras give and screens take them.

    transmitter   pixels ─ to float32 ─ / 255 ─ to [batch, 3, height, width] ─ image ─ the graph as it is ─> symbols

    receiver      the graph as it is ─ image ─ * 255 ─ round ─ 0..255 ─ to [batch, height, width, 3] ─┬─ to uint8 ─> pixels
                                         └─ mean of each colour ─ 1 where it is a number, else 0 ─────┘

The link then moves a quarter of the bytes, and NumPy converts nothing. The division is that of
``pixels.astype(float32) / float32(255)``, but for the last bit in OpenVINO, which multiplies; the rounding is that of
``round(255 * image)``, half to even.

No byte stands for NaN, which is what a receiver that mixes answers to symbols of another key. So a receiver gives
[batch, height + 1, width, 3]: the last row says in each colour whether the picture above it is one. ``separated`` takes it off.

Protobuf messages are merged by joining their bytes, so the graph is not parsed but added to, without the ``onnx`` package: link
and engines do without it. Field numbers are those of onnx.proto, as in ``semseal.runtime.onnxfile``.
"""

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.errors import GraphError
from semseal.runtime.onnxfile import fields

IMAGE = "image"  # float32 [batch, 3, height, width], the first input or the output of every graph

_GRAPH = 7  # of a model
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12  # of a graph
_FLOAT, _UINT8 = 1, 2  # types of a tensor's elements
_INTS = 7  # type of an attribute


def with_pixels(graph: bytes) -> bytes:
    """A transmitter or receiver, whose bytes ``check_onnx`` passed, as one that takes or gives pictures as bytes.

    Raises GraphError for a graph without ``image`` [batch, 3, height, width] at either end.
    """
    model, parts = [], []
    for number, wire, value, start, end in fields(graph, 0, len(graph)):
        if number == _GRAPH and wire == 2:
            parts.append(graph[end - value : end])  # several are one, by the rules of protobuf
        else:
            model.append(graph[start:end])
    body = b"".join(parts)
    name = "pixels"
    while name.encode() in body:  # a tensor may be called so
        name += "_"
    kept = []
    before = after = b""
    for number, wire, value, start, end in fields(body, 0, len(body)):
        declared = body[end - value : end]
        if wire == 2 and number in (_INPUT, _OUTPUT) and _bytes(declared, 1) == IMAGE.encode():
            batch, _, height, width = _dimensions(declared)
            if number == _INPUT:
                before = _transmitter(name, batch, height, width)
            else:
                after = _receiver(name, batch, height, width)
        else:
            kept.append(body[start:end])
    if not before and not after:
        raise GraphError(f"the graph has no {IMAGE} at either end")
    return b"".join(model) + _field(_GRAPH, before + b"".join(kept) + after)


def separated(given: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """What a receiver with pixels gives, as pictures [batch, height, width, 3], a view, and whether each is one, [batch]."""
    return given[:, :-1], given[:, -1].min(axis=(1, 2)) > 0


def _transmitter(name: str, batch: bytes, height: int, width: int) -> bytes:
    parts = [
        _node("Cast", [name], f"{name}/float", _int("to", _FLOAT)),
        _node("Div", [f"{name}/float", f"{name}/255"], f"{name}/scaled"),
        _node("Transpose", [f"{name}/scaled"], IMAGE, _ints("perm", [0, 3, 1, 2])),
        _number(f"{name}/255", 255.0),
        _field(_INPUT, _value(name, [batch, _size(height), _size(width), _size(3)])),
    ]
    return b"".join(parts)


def _receiver(name: str, batch: bytes, height: int, width: int) -> bytes:
    # bytes come last: TensorRT has them at the ends of a graph only
    parts = [
        _node("Mul", [IMAGE, f"{name}/255"], f"{name}/scaled"),
        _node("Round", [f"{name}/scaled"], f"{name}/rounded"),
        _node("Clip", [f"{name}/rounded", f"{name}/0", f"{name}/255"], f"{name}/whole"),
        _node("GlobalAveragePool", [IMAGE], f"{name}/mean"),  # NaN if one pixel is
        _node("Less", [f"{name}/mean", f"{name}/255"], f"{name}/is_number"),  # in OpenVINO NaN is greater than any number
        _node("Where", [f"{name}/is_number", f"{name}/row", f"{name}/0"], f"{name}/last"),
        _node("Concat", [f"{name}/whole", f"{name}/last"], f"{name}/both", _int("axis", 2)),
        _node("Transpose", [f"{name}/both"], f"{name}/turned", _ints("perm", [0, 2, 3, 1])),
        _node("Cast", [f"{name}/turned"], name, _int("to", _UINT8)),
        _number(f"{name}/0", 0.0),
        _number(f"{name}/255", 255.0),
        _tensor(f"{name}/row", _FLOAT, [1, 1, 1, width], struct.pack("<f", 1.0) * width),
        _field(_OUTPUT, _value(name, [batch, _size(height + 1), _size(width), _size(3)])),
    ]
    return b"".join(parts)


def _dimensions(declared: bytes) -> tuple[bytes, int, int, int]:
    """Of a declared picture: the first axis as it stands, then sizes. Raises GraphError unless it is [batch, 3, h, w]."""
    shape = _bytes(_bytes(_bytes(declared, 2), 1), 2)  # type, tensor, shape
    axes = [shape[end - value : end] for number, _, value, _, end in fields(shape, 0, len(shape)) if number == 1]
    sizes = [next((value for number, _, value, _, _ in fields(axis, 0, len(axis)) if number == 1), 0) for axis in axes]
    if len(sizes) != 4 or sizes[1] != 3 or not sizes[2] or not sizes[3]:
        raise GraphError(f"{IMAGE} is not declared as [batch, 3, height, width] with a height and width that are known")
    return axes[0], sizes[1], sizes[2], sizes[3]


def _bytes(message: bytes, wanted: int) -> bytes:
    """The content of a field that is there once, empty where it is missing."""
    found = [message[end - value : end] for number, wire, value, _, end in fields(message, 0, len(message))
             if number == wanted and wire == 2]  # fmt: skip
    return found[-1] if found else b""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, content: bytes | str | int) -> bytes:
    """A field with its tag: of wire type 0 for a number, else length-delimited."""
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    data = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _node(operator: str, inputs: Sequence[str], output: str, attribute: bytes = b"") -> bytes:
    names = b"".join(_field(1, name) for name in inputs)
    return _field(_NODE, names + _field(2, output) + _field(3, f"{output}/{operator}") + _field(4, operator) + attribute)


def _int(name: str, value: int) -> bytes:
    return _field(5, _field(1, name) + _field(3, value) + _field(20, 2))


def _ints(name: str, values: Sequence[int]) -> bytes:
    return _field(5, _field(1, name) + b"".join(_field(8, value) for value in values) + _field(20, _INTS))


def _number(name: str, value: float) -> bytes:
    return _tensor(name, _FLOAT, [], struct.pack("<f", value))


def _tensor(name: str, kind: int, shape: Sequence[int], data: bytes) -> bytes:
    sizes = b"".join(_field(1, size) for size in shape)
    return _field(_INITIALIZER, sizes + _field(2, kind) + _field(8, name) + _field(9, data))


def _size(value: int) -> bytes:
    """An axis of a known size."""
    return _field(1, value)


def _value(name: str, axes: Sequence[bytes]) -> bytes:
    """What declares uint8 ``name`` with these axes."""
    shape = b"".join(_field(1, axis) for axis in axes)
    return _field(1, name) + _field(2, _field(1, _field(1, _UINT8) + _field(2, shape)))
