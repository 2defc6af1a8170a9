"""A user's ONNX file as one that stands for itself, with its nodes in order.

    file ── regular, not too large ── safe? ── weights that lie beside it read in ── bytes
    bytes ── safe and whole? ── nodes sorted ── sizes of 0 and -1 made free ── bytes

What other tools write and ONNX Runtime takes is taken here too: nodes in any order (converters to float16 append their casts),
a free batch declared as -1 or 0, and weights in files of their own, as ``torch.onnx.export`` leaves them. Those are read from
beside the graph only: by a relative path without "..", from regular files, through no link, and no more than a bundle may hold.
"""

import errno
import heapq
import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper
from semseal.runtime.bundle import MAX_FILE_BYTES
from semseal.runtime.errors import GraphError
from semseal.runtime.files import named
from semseal.runtime.onnxfile import check_onnx

EXPORT_AGAIN = "export the model again, as one ONNX file"
TOO_LARGE = f"a bundle's files hold up to {MAX_FILE_BYTES >> 20} MiB: use a smaller model"

_KEYS = {"location", "offset", "length", "checksum"}  # what onnx.proto knows of a tensor in another file
_SMALL: dict[int, int] = {TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.FLOAT4E2M1: 4}  # bits of an element
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # without the last, a FIFO would be waited for
_OF_FOLDER = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECTORY


def read_file(side: str, path: Path) -> bytes:
    """The ONNX file at ``path`` with the weights that lie beside it inside. Raises GraphError, OSError with ``path``."""
    with named(path):
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise GraphError(f"{side}: {path} is not a regular file", "give the path of an ONNX file")
            with open(handle, "rb", closefd=False) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        finally:
            os.close(handle)
    if len(data) > MAX_FILE_BYTES:
        raise GraphError(f"{side}: {path} is larger than {MAX_FILE_BYTES >> 20} MiB", TOO_LARGE)
    try:
        check_onnx(data, beside=True)
        model = onnx.load_model_from_string(data)
        outside = [tensor for tensor in _tensors(model) if tensor.data_location == TensorProto.EXTERNAL]
        if not outside:
            return data
        _read_in(outside, path.parent, MAX_FILE_BYTES - len(data))
    except GraphError as error:
        raise GraphError(f"{side}: {error.message}", error.hint or EXPORT_AGAIN) from None
    except DecodeError as error:
        raise GraphError(f"{side}: it is no ONNX model: {error}", EXPORT_AGAIN) from None
    whole: bytes = model.SerializeToString()
    return whole


def in_order(side: str, data: bytes) -> bytes:
    """The same model with its nodes sorted by what they need, and nothing declared that may be another way.

    Raises GraphError for what may not be opened, and for nodes that need each other.
    """
    try:
        check_onnx(data)
        model = onnx.load_model_from_string(data)
        for nodes in (model.graph.node, *(function.node for function in model.functions)):
            order = _order(nodes)
            if order != list(range(len(nodes))):
                ordered = [nodes[i] for i in order]
                del nodes[:]
                nodes.extend(ordered)
    except GraphError as error:
        raise GraphError(f"{side}: {error.message}", error.hint or EXPORT_AGAIN) from None
    except DecodeError as error:
        raise GraphError(f"{side}: it is no ONNX model: {error}", EXPORT_AGAIN) from None
    del model.graph.value_info[:]  # sizes within follow from those at the ends
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.HasField("dim_value") and axis.dim_value <= 0:
                axis.Clear()
    ordered_model: bytes = model.SerializeToString()
    return ordered_model


def _order(nodes: Sequence[onnx.NodeProto]) -> list[int]:
    """The places of the nodes in an order in which each comes after those that it needs; the given one, if it is that."""
    made_by = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    needs = [{made_by[name] for name in _taken(node) if name in made_by} for node in nodes]
    needed_by: list[list[int]] = [[] for _ in nodes]
    for i, before in enumerate(needs):
        for j in before:
            needed_by[j].append(i)
    missing = [len(before) for before in needs]
    ready = [i for i, count in enumerate(missing) if count == 0]
    order: list[int] = []
    while ready:
        place = heapq.heappop(ready)
        order.append(place)
        for after in needed_by[place]:
            missing[after] -= 1
            if missing[after] == 0:
                heapq.heappush(ready, after)
    if len(order) < len(nodes):
        seen: set[int] = set()
        place = next(i for i, count in enumerate(missing) if count)
        while place not in seen:  # back along nodes that wait, until one comes again
            seen.add(place)
            place = next(i for i in needs[place] if missing[i])
        node = nodes[place]
        name = node.name or next(iter(node.output), "")
        raise GraphError(f"node {name!r} ({node.op_type}) needs its own output: the graph goes in a circle", EXPORT_AGAIN)
    return order


def _taken(node: onnx.NodeProto) -> Iterator[str]:
    """The names of the tensors that a node needs, those of its inner graphs too."""
    yield from node.input
    for graph in (graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)):
        made = {name for inner in graph.node for name in inner.output} | {value.name for value in graph.input}
        yield from (name for inner in graph.node for name in _taken(inner) if name not in made)
        yield from (value.name for value in graph.output if value.name not in made)


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model that may lie in another file."""
    graphs = [model.graph, *(graph for info in model.training_info for graph in (info.initialization, info.algorithm))]
    attributes = [attribute for function in model.functions for attribute in function.attribute_proto]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes or attributes:
        for graph in graphs:
            yield from graph.initializer
            nodes += graph.node
        attributes += [attribute for node in nodes for attribute in node.attribute]
        graphs, nodes = [], []
        for attribute in attributes:
            yield from (attribute.t, *attribute.tensors)
            graphs += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
        attributes = []


def _read_in(tensors: Sequence[TensorProto], folder: Path, left: int) -> None:
    """Put what the tensors keep in files under ``folder`` into them, up to ``left`` bytes in all. Raises GraphError."""
    with ExitStack() as opened:
        handles: dict[str, int] = {}
        for tensor in tensors:
            told = {entry.key: entry.value for entry in tensor.external_data}
            if len(told) < len(tensor.external_data) or not {"location"} <= set(told) <= _KEYS:
                raise GraphError(
                    f"tensor {tensor.name!r} tells of its file what is not known ({', '.join(told)})", EXPORT_AGAIN
                )
            size = _size(tensor)
            offset, length = (_number(tensor, told, key, default) for key, default in (("offset", 0), ("length", size)))
            left -= size
            if left < 0:
                raise GraphError(f"its weights are larger than {MAX_FILE_BYTES >> 20} MiB", TOO_LARGE)
            if length != size:
                raise GraphError(f"tensor {tensor.name!r} takes {size} bytes, and {length} are kept for it", EXPORT_AGAIN)
            location = told["location"]
            try:
                if location not in handles:
                    handles[location] = _open_beside(folder, location, opened)
                content = _read(handles[location], offset, size)
            except OSError as error:
                raise _unreadable(folder / location, tensor, error) from None
            if len(content) != size:
                raise GraphError(
                    f"tensor {tensor.name!r} takes bytes {offset} to {offset + size} of {location}, which ends before",
                    "copy the file again, whole",
                )
            for name in ("external_data", "data_location"):
                tensor.ClearField(name)
            tensor.raw_data = content


def _size(tensor: TensorProto) -> int:
    """Bytes of a tensor's elements. Raises GraphError."""
    try:
        bits = _SMALL.get(tensor.data_type) or 8 * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, TypeError):
        bits = 0
    if not bits or tensor.data_type == TensorProto.STRING or any(axis < 0 for axis in tensor.dims):
        raise GraphError(
            f"tensor {tensor.name!r} of type {tensor.data_type} and sizes {list(tensor.dims)} has no place in a file"
        )
    return (math.prod(tensor.dims) * bits + 7) // 8


def _number(tensor: TensorProto, told: dict[str, str], key: str, default: int) -> int:
    text = told.get(key, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise GraphError(
            f"tensor {tensor.name!r} has the {key} {text[:40]!r} in its file, which is no number of bytes", EXPORT_AGAIN
        )
    return int(text)


def _open_beside(folder: Path, location: str, opened: ExitStack) -> int:
    """A regular file under ``folder``, reached through no link. Raises GraphError, OSError."""
    parts = [part for part in location.split("/") if part != "."]
    if not parts or any(part in ("", "..") or "\0" in part for part in parts):  # an absolute path begins with an empty part
        raise GraphError(f"it keeps weights in {location!r}, which is not a path inside its folder", EXPORT_AGAIN)
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    for i, part in enumerate(parts):
        opened.callback(os.close, handle)
        handle = os.open(part, _FLAGS if i == len(parts) - 1 else _OF_FOLDER, dir_fd=handle)
    opened.callback(os.close, handle)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return handle


def _read(handle: int, offset: int, size: int) -> bytes:
    parts = []
    while size and (part := os.pread(handle, min(size, 2**30), offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return b"".join(parts)


def _unreadable(path: Path, tensor: TensorProto, error: OSError) -> GraphError:
    if error.errno == errno.ENOENT:
        return GraphError(
            f"its weights are in another file, and {path} is missing",
            "put it beside the graph, or save the model as one file: torch.onnx.export(..., external_data=False)",
        )
    is_link = error.errno in (errno.ELOOP, errno.ENOTDIR)
    reason = "a link or through one, and links are not followed" if is_link else error.strerror
    hint = "copy the files themselves into one folder: cp -L" if is_link else EXPORT_AGAIN
    return GraphError(f"tensor {tensor.name!r} is in {path}: {reason}", hint)
