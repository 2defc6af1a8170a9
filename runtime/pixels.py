"""A deployed graph with its pictures as bytes: uint8 [batch, height, width, 3], as cameras give and screens take them.

    transmitter   pixels ─ to float32 ─ / 255 ─ to [batch, 3, height, width] ─ image ─ the graph as it is ─> symbols

    receiver      the graph as it is ─ image ─ * 255 ─ round ─ 0..255 ─ to [batch, height, width, 3] ─┬─ to uint8 ─> pixels
                                         └─ mean of each colour ─ 1 where it is a number, else 0 ─────┘

The link then moves a quarter of the bytes, and NumPy converts nothing. The division is that of
``pixels.astype(float32) / float32(255)``, but for the last bit in OpenVINO, which multiplies; the rounding is that of
``round(255 * image)``, half to even.

No byte stands for NaN, which is what a receiver that mixes answers to symbols of another key. So a receiver gives
[batch, height + 1, width, 3]: the last row says in each colour whether the picture above it is one. ``separated`` takes it off.

Protobuf messages are merged by joining their bytes, so the graph is not parsed but added to.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.errors import GraphError
from semseal.runtime.onnxfile import fields
from semseal.runtime.onnxwrite import (
    FLOAT,
    GRAPH,
    INITIALIZER,
    INPUT,
    NODE,
    OUTPUT,
    UINT8,
    Node,
    content_of,
    declaration,
    graph_of,
    integer,
    integers,
    pack,
    tensor,
)

IMAGE = "image"  # float32 [batch, 3, height, width], the first input or the output of every graph


def with_pixels(graph: bytes) -> bytes:
    """A transmitter or receiver, whose bytes ``check_onnx`` passed, as one that takes or gives pictures as bytes.

    Raises GraphError for a graph without ``image`` [batch, 3, height, width] at either end.
    """
    body, rest = graph_of(graph)
    name = "pixels"
    while name.encode() in body:  # a tensor may be called so
        name += "_"
    kept = []
    before = after = b""
    for number, wire, value, start, end in fields(body, 0, len(body)):
        declared = body[end - value : end]
        if wire == 2 and number in (INPUT, OUTPUT) and content_of(declared, 1) == IMAGE.encode():
            batch, _, height, width = _dimensions(declared)
            if number == INPUT:
                before = _transmitter(name, batch, height, width)
            else:
                after = _receiver(name, batch, height, width)
        else:
            kept.append(body[start:end])
    if not before and not after:
        raise GraphError(f"the graph has no {IMAGE} at either end")
    return rest + pack(GRAPH, before + b"".join(kept) + after)


def separated(given: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """What a receiver with pixels gives, as pictures [batch, height, width, 3], a view, and whether each is one, [batch]."""
    return given[:, :-1], given[:, -1].min(axis=(1, 2)) > 0


def _transmitter(name: str, batch: bytes, height: int, width: int) -> bytes:
    parts = [
        _node("Cast", [name], f"{name}/float", integer("to", FLOAT)),
        _node("Div", [f"{name}/float", f"{name}/255"], f"{name}/scaled"),
        _node("Transpose", [f"{name}/scaled"], IMAGE, integers("perm", [0, 3, 1, 2])),
        _constant(f"{name}/255", np.float32(255)),
        pack(INPUT, declaration(name, UINT8, [batch, height, width, 3])),
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
        _node("Concat", [f"{name}/whole", f"{name}/last"], f"{name}/both", integer("axis", 2)),
        _node("Transpose", [f"{name}/both"], f"{name}/turned", integers("perm", [0, 2, 3, 1])),
        _node("Cast", [f"{name}/turned"], name, integer("to", UINT8)),
        _constant(f"{name}/0", np.float32(0)),
        _constant(f"{name}/255", np.float32(255)),
        _constant(f"{name}/row", np.ones((1, 1, 1, width), np.float32)),
        pack(OUTPUT, declaration(name, UINT8, [batch, height + 1, width, 3])),
    ]
    return b"".join(parts)


def _dimensions(declared: bytes) -> tuple[bytes, int, int, int]:
    """Of a declared picture: the first axis as it stands, then sizes. Raises GraphError unless it is [batch, 3, h, w]."""
    shape = content_of(content_of(content_of(declared, 2), 1), 2)  # type, tensor, shape
    axes = [shape[end - value : end] for number, _, value, _, end in fields(shape, 0, len(shape)) if number == 1]
    sizes = [next((value for number, _, value, _, _ in fields(axis, 0, len(axis)) if number == 1), 0) for axis in axes]
    if len(sizes) != 4 or sizes[1] != 3 or not sizes[2] or not sizes[3]:
        raise GraphError(f"{IMAGE} is not declared as [batch, 3, height, width] with a height and width that are known")
    return axes[0], sizes[1], sizes[2], sizes[3]


def _node(operator: str, inputs: Sequence[str], output: str, attribute: bytes = b"") -> bytes:
    return pack(NODE, Node(operator, list(inputs), [output], f"{output}/{operator}", attribute).encoded())


def _constant(name: str, values: NDArray[np.float32] | np.float32) -> bytes:
    return pack(INITIALIZER, tensor(name, values))
