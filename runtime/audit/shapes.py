"""ONNX's operators on shapes, indices and constants as torch functions: shapes are tensors of integers, as in ONNX.

Each takes the node's attributes and its inputs, as those of ``semseal.runtime.audit.operators`` do.
"""

import math
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import numpy_helper
from semseal.runtime.errors import GraphError
from torch import Tensor

Attributes = dict[str, Any]


def tensor_of(constant: onnx.TensorProto | NDArray[Any]) -> Tensor:
    """A constant, filters in the memory layout that is fastest in torch. Every precision is computed in float32 here:
    rounding is far below the noise, and the gradient is the same."""
    array = np.asarray(numpy_helper.to_array(constant) if isinstance(constant, onnx.TensorProto) else constant)
    if array.dtype.kind not in "biufV":  # V: the small types that numpy itself has not
        raise GraphError(f"a constant of type {array.dtype} has no gradient", "export the transmitter with numbers only")
    if array.dtype.kind in "fV":
        array = array.astype(np.float32)
    elif array.dtype.name not in ("bool", "uint8", "int8", "int32"):
        array = array.astype(np.int64)
    tensor = torch.from_numpy(np.array(array))
    is_filter = array.ndim == 4 and array.dtype == np.float32
    return tensor.contiguous(memory_format=torch.channels_last) if is_filter else tensor


def ints(tensor: Tensor) -> list[int]:
    """The elements of a shape, of axes or of pads."""
    if tensor.is_floating_point():
        raise GraphError("a size, an index or an axis is computed from the picture", "export the transmitter with fixed sizes")
    return [int(value) for value in tensor.reshape(-1).tolist()]


def axes_of(a: Attributes, axes: Tensor | None) -> list[int] | None:
    """An input since some opset, an attribute before; None where neither is given."""
    return a.get("axes") if axes is None else ints(axes)


def index_of(index: Tensor, size: int) -> Tensor:
    """Indices as torch takes them, from 0 on."""
    if index.is_floating_point():
        raise GraphError("an index is computed from the picture", "gather with constant indices")
    index = index.to(torch.int64)
    return torch.where(index < 0, index + size, index)


# shapes


def constant(a: Attributes) -> Tensor:
    for name in ("value_float", "value_floats", "value_int", "value_ints"):
        if name in a:
            return torch.tensor(a[name])
    if "value" not in a:
        raise GraphError("Constant of strings or sparse tensors is not supported", "export the transmitter without it")
    return tensor_of(a["value"])


def filled(a: Attributes, shape: Tensor) -> Tensor:
    value = tensor_of(a["value"]) if "value" in a else torch.zeros(1)
    return value.reshape(()).expand(ints(shape)).clone()


def number_range(_: Attributes, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    count = max(0, math.ceil((limit.item() - start.item()) / step.item()))
    return start.reshape(()) + torch.arange(count) * step.reshape(())


def reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    return x.reshape([x.shape[i] if size == 0 and not a.get("allowzero") else size for i, size in enumerate(ints(shape))])


def flatten(a: Attributes, x: Tensor) -> Tensor:
    axis = a.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = axes_of(a, axes)
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


def unsqueeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = axes_of(a, axes) or []
    for axis in sorted(axis % (x.ndim + len(chosen)) for axis in chosen):
        x = x.unsqueeze(axis)
    return x


def slice_axes(
    a: Attributes,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    begin, end = (a[name] if given is None else ints(given) for given, name in ((starts, "starts"), (ends, "ends")))
    chosen = axes_of(a, axes) or range(len(begin))
    for axis, first, last, step in zip(chosen, begin, end, ints(steps) if steps is not None else [1] * len(begin), strict=True):
        places = range(x.shape[axis])[first:last:step]  # Python counts and clamps as ONNX does
        if step == 1:
            x = x.narrow(axis, places.start if len(places) else 0, len(places))
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64, device=x.device))
    return x


def split(a: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    given = a.get("split") if sizes is None else ints(sizes)
    return x.split(given or max(1, -(-x.shape[axis] // (a.get("num_outputs") or a["outputs"]))), axis)


def expand(_: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(ints(shape))))


def depth_to_space(a: Attributes, x: Tensor) -> Tensor:
    size = a["blocksize"]
    if a.get("mode", b"DCR") == b"CRD":
        return F.pixel_shuffle(x, size)
    blocks = x.unflatten(1, (size, size, -1))  # [batch, row, column, channel, h, w]
    return blocks.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


def space_to_depth(a: Attributes, x: Tensor) -> Tensor:
    """Channels in the order row, column of the block, channel before."""
    size = a["blocksize"]
    blocks = x.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # [batch, channels, h, row, w, column]
    return blocks.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)


# indices


def gather(a: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis = a.get("axis", 0) % x.ndim
    found = x.index_select(axis, index_of(index, x.shape[axis]).reshape(-1))
    return found.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def gather_elements(a: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis = a.get("axis", 0)
    return x.gather(axis, index_of(index, x.shape[axis]))


def _flat_index(index: Tensor, shape: torch.Size) -> Tensor:
    """The last axis of indices into ``shape`` as one index into all that lies in it."""
    flat = torch.zeros_like(index[..., 0], dtype=torch.int64)
    for place, size in zip(index.unbind(-1), shape, strict=True):
        flat = flat * size + index_of(place, size)
    return flat


def gather_nd(a: Attributes, x: Tensor, index: Tensor) -> Tensor:
    batch, depth = a.get("batch_dims", 0), index.shape[-1]
    rest = x.shape[batch + depth :]
    lead, count = math.prod(x.shape[:batch]), math.prod(x.shape[batch : batch + depth])
    flat = _flat_index(index, x.shape[batch : batch + depth]).reshape(lead, -1)
    flat = flat + count * torch.arange(lead, device=x.device)[:, None]
    return x.reshape((lead * count, *rest))[flat.reshape(-1)].reshape((*index.shape[:-1], *rest))


def scatter_elements(a: Attributes, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    axis, reduction = a.get("axis", 0), a.get("reduction", b"none").decode()
    index, updates = index_of(index, x.shape[axis]), updates.to(x.dtype)
    if reduction == "none":
        return x.scatter(axis, index, updates)
    kind = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[reduction]
    return x.scatter_reduce(axis, index, updates, kind)


def scatter_nd(a: Attributes, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    depth = index.shape[-1]
    flat = _flat_index(index, x.shape[:depth]).reshape(-1, 1)
    rows = x.reshape(math.prod(x.shape[:depth]), -1)
    values = updates.reshape(len(flat), -1)
    return scatter_elements({**a, "axis": 0}, rows, flat.expand_as(values), values).reshape(x.shape)


def top_k(a: Attributes, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    values, places = x.topk(ints(k)[0], a.get("axis", -1), bool(a.get("largest", 1)), True)
    return values, places
