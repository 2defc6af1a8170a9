"""ONNX's operators on neighbourhoods as torch functions: convolutions, pooling, padding and resizing, in 1 to 3 dimensions.

Each takes the node's attributes and its inputs, as those of ``semseal.runtime.audit.operators`` do.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from semseal.runtime.audit.shapes import Attributes, ints
from semseal.runtime.errors import GraphError
from torch import Tensor

_CONVOLUTIONS: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED: tuple[Callable[..., Tensor], ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_AVERAGES: tuple[Callable[..., Tensor], ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_MAXIMA: tuple[Callable[..., Tensor], ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_PAD_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}  # ONNX's name -> torch's


# windows


def _windows(a: Attributes, x: Tensor, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, and the padding before and after each axis; with ``ceil_mode`` the last may reach further."""
    n = len(kernel)
    strides, dilations = a.get("strides") or [1] * n, a.get("dilations") or [1] * n
    size, reach = x.shape[2:], [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads, automatic = a.get("pads") or [0] * (2 * n), a.get("auto_pad", b"NOTSET")
    if automatic == b"VALID":
        pads = [0] * (2 * n)
    elif automatic in (b"SAME_UPPER", b"SAME_LOWER"):
        total = [max(0, (-(-size[i] // strides[i]) - 1) * strides[i] + reach[i] - size[i]) for i in range(n)]
        before = [value // 2 if automatic == b"SAME_UPPER" else -(-value // 2) for value in total]
        pads = before + [value - first for value, first in zip(total, before, strict=True)]
    return strides, dilations, pads[:n], pads[n:]


def _padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """``x`` with its last axes padded, or cropped where a padding is negative."""
    if not any(before) and not any(after):
        return x
    return F.pad(x, [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair], value=value)


def conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, dilations, before, after = _windows(a, x, weight.shape[2:])
    if before != after:
        x, before = _padded(x, before, after), [0] * len(before)
    return _CONVOLUTIONS[len(before) - 1](x, weight, bias, strides, before, dilations, a.get("group", 1))


def conv_transpose(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """All that the kernel reaches, cropped or padded with zeros to the size asked for."""
    kernel = weight.shape[2:]
    n = len(kernel)
    strides, dilations = a.get("strides") or [1] * n, a.get("dilations") or [1] * n
    extra, pads = a.get("output_padding") or [0] * n, a.get("pads") or [0] * (2 * n)
    whole = [strides[i] * (x.shape[2 + i] - 1) + dilations[i] * (kernel[i] - 1) + 1 for i in range(n)]
    automatic, sizes = a.get("auto_pad", b"NOTSET"), (a.get("output_shape") or [])[-n:]
    if automatic in (b"SAME_UPPER", b"SAME_LOWER") and not sizes:
        sizes = [strides[i] * x.shape[2 + i] for i in range(n)]
    if automatic == b"VALID":
        pads = [0] * (2 * n)
    elif sizes:
        total = [max(0, whole[i] + extra[i] - sizes[i]) for i in range(n)]
        before = [value // 2 if automatic == b"SAME_UPPER" else -(-value // 2) for value in total]
        pads = before + [value - first for value, first in zip(total, before, strict=True)]
        extra = [max(0, sizes[i] - whole[i]) if not total[i] else extra[i] for i in range(n)]
    y = _TRANSPOSED[n - 1](x, weight, None, strides, 0, 0, a.get("group", 1), dilations)
    y = _padded(y, [-size for size in pads[:n]], [more - size for more, size in zip(extra, pads[n:], strict=True)])
    return y if bias is None else y + bias.reshape(-1, *[1] * n)


# pooling


def _overhang(a: Attributes, x: Tensor, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """``_windows``, and by how much the last window reaches beyond the padding: more than 0 only with ``ceil_mode``."""
    strides, dilations, before, after = _windows(a, x, kernel)
    beyond = [0] * len(kernel)
    for i, size in enumerate(x.shape[2:]):
        reach = dilations[i] * (kernel[i] - 1) + 1
        rest = size + before[i] + after[i] - reach
        last = -(-rest // strides[i]) if a.get("ceil_mode") else rest // strides[i]
        if last * strides[i] >= size + before[i]:  # a window must not begin in the padding behind
            last -= 1
        beyond[i] = max(0, last * strides[i] - rest)
    return strides, dilations, before, after, beyond


def max_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = a["kernel_shape"]
    strides, dilations, before, after, beyond = _overhang(a, x, kernel)
    after = [size + more for size, more in zip(after, beyond, strict=True)]
    return _MAXIMA[len(kernel) - 1](_padded(x, before, after, -math.inf), kernel, strides, 0, dilations)


def _means(x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> Tensor:
    """Of every window of ``x``; torch's own pooling has no dilation."""
    n = len(kernel)
    if max(dilations) == 1:
        return _AVERAGES[n - 1](x, kernel, strides)
    ones = x.new_full((1, 1, *kernel), 1 / math.prod(kernel))
    means = _CONVOLUTIONS[n - 1](x.reshape(-1, 1, *x.shape[2:]), ones, None, strides, 0, dilations)
    return means.reshape(*x.shape[:2], *means.shape[2:])


def average_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = a["kernel_shape"]
    strides, dilations, before, after, beyond = _overhang(a, x, kernel)
    if not any((*before, *after, *beyond)):
        return _means(x, kernel, strides, dilations)
    counted = x.new_ones((1, 1, *x.shape[2:]))
    counted = _padded(counted, before, after, float(bool(a.get("count_include_pad"))))
    counted = _means(_padded(counted, [0] * len(kernel), beyond), kernel, strides, dilations)
    after = [size + more for size, more in zip(after, beyond, strict=True)]
    return _means(_padded(x, before, after), kernel, strides, dilations) / counted


def lp_pool(a: Attributes, x: Tensor) -> Tensor:
    p, count = a.get("p", 2), math.prod(a["kernel_shape"])
    power = average_pool({**a, "count_include_pad": 1}, x.abs().pow(p)) * count
    return power.clamp_min(1e-30).pow(1 / p)


def global_pool(reduce: Callable[[Tensor, tuple[int, ...]], Tensor]) -> Callable[[Attributes, Tensor], Tensor]:
    return lambda _, x: reduce(x, tuple(range(2, x.ndim)))


# padding


def pad(
    a: Attributes, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    sizes = ints(pads) if pads is not None else a["pads"]
    chosen = [axis % x.ndim for axis in ints(axes)] if axes is not None else list(range(x.ndim))
    before, after = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(chosen):
        before[axis], after[axis] = sizes[i], sizes[len(chosen) + i]
    mode = a.get("mode", b"constant").decode()
    if mode == "constant":
        return _padded(x, before, after, a.get("value", 0.0) if value is None else value.item())
    if x.ndim == 4 and not any(before[:2] + after[:2]) and all(0 <= b < n for b, n in _pairs(before, after, x.shape)):
        return F.pad(x, [before[3], after[3], before[2], after[2]], _PAD_MODES[mode])  # the fast way to the same
    for axis, size in enumerate(x.shape):
        if before[axis] or after[axis]:
            place = torch.arange(-before[axis], size + after[axis], device=x.device)
            if mode == "edge":
                place = place.clamp(0, size - 1)
            elif mode == "wrap":
                place = place % size
            else:
                place = place.abs() % max(1, 2 * size - 2)
                place = torch.minimum(place, 2 * size - 2 - place).clamp_min(0)
            x = x.index_select(axis, place)
    return x


def _pairs(before: list[int], after: list[int], shape: Sequence[int]) -> list[tuple[int, int]]:
    return [*zip(before, shape, strict=True), *zip(after, shape, strict=True)]


# resizing


def resize(
    a: Attributes, x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    """Along each axis by one matrix of weights, which covers every mode; ``roi`` only matters to one that is refused."""
    if a["opset"] < 11:
        roi, scales = None, roi  # the scales were the second input
    mode = a.get("mode", b"nearest").decode()
    coordinates = a.get("coordinate_transformation_mode", b"half_pixel").decode() if a["opset"] >= 11 else "asymmetric"
    nearest = a.get("nearest_mode", b"round_prefer_floor").decode() if a["opset"] >= 11 else "simple"
    if coordinates == "tf_crop_and_resize":
        raise GraphError("Resize with tf_crop_and_resize is not supported", "crop with Slice, and resize that")
    axes = [axis % x.ndim for axis in a.get("axes", range(x.ndim))]
    if sizes is not None and sizes.numel():
        wanted = ints(sizes)
        policy = a.get("keep_aspect_ratio_policy", b"stretch")
        factors = [np.float32(new) / np.float32(x.shape[axis]) for new, axis in zip(wanted, axes, strict=True)]
        if policy != b"stretch":
            factors = [min(factors) if policy == b"not_larger" else max(factors)] * len(axes)
            wanted = [math.floor(factor * x.shape[axis] + 0.5) for factor, axis in zip(factors, axes, strict=True)]
    else:
        given = a.get("scales") if scales is None else scales.tolist()  # an attribute of old Upsample
        if given is None:
            raise GraphError("Resize without scales or sizes is not supported", "export the transmitter with one of them")
        factors = [np.float32(factor) for factor in given]
        wanted = [math.floor(factor * np.float32(x.shape[axis])) for factor, axis in zip(factors, axes, strict=True)]
    cubic, outside, antialias = a.get("cubic_coeff_a", -0.75), bool(a.get("exclude_outside")), bool(a.get("antialias"))
    for axis, factor, new in zip(axes, factors, wanted, strict=True):
        if new != x.shape[axis] or factor != 1:
            how = (mode, coordinates, nearest, cubic, outside, antialias)
            weights = torch.from_numpy(_weights(x.shape[axis], new, float(factor), *how)).to(x)
            x = (x.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return x


@lru_cache(maxsize=64)
def _weights(
    n: int,
    new: int,
    factor: float,
    mode: str,
    coordinates: str,
    nearest: str,
    cubic: float,
    exclude_outside: bool,
    antialias: bool,
) -> NDArray[np.float32]:
    """[new, n]: what every new value takes of the old ones. Places are computed in float32, as engines do."""
    place = _places(n, new, np.float32(factor), coordinates)
    weights = np.zeros((new, n))
    if mode == "nearest":
        rounded = {
            "round_prefer_floor": np.ceil(place - np.float32(0.5)),
            "round_prefer_ceil": np.floor(place + np.float32(0.5)),
            "floor": np.floor(place),
            "ceil": np.ceil(place),
            "simple": np.ceil(place) if factor < 1 else np.floor(place),
        }[nearest]
        weights[np.arange(new), rounded.astype(int).clip(0, n - 1)] = 1
        return weights.astype(np.float32)
    squeeze = min(factor, 1.0) if antialias else 1.0
    reach = math.ceil((1 if mode == "linear" else 2) / squeeze)
    taps = np.floor(place).astype(int)[:, None] + np.arange(1 - reach, reach + 1)  # [new, 2 reach]
    t = np.abs(taps - place[:, None].astype(float)) * squeeze
    near, far = ((cubic + 2) * t - (cubic + 3)) * t * t + 1, cubic * (((t - 5) * t + 8) * t - 4)
    kernel = np.clip(1 - t, 0, None) if mode == "linear" else np.where(t <= 1, near, np.where(t < 2, far, 0))
    if exclude_outside:
        kernel = kernel * ((taps >= 0) & (taps < n))
    if exclude_outside or antialias:
        kernel = kernel / kernel.sum(axis=1, keepdims=True)
    np.add.at(weights, (np.arange(new)[:, None], taps.clip(0, n - 1)), kernel)
    return weights.astype(np.float32)


def _places(n: int, new: int, factor: np.float32, coordinates: str) -> NDArray[np.float32]:
    """Where each new value lies among the old ones."""
    half, i = np.float32(0.5), np.arange(new, dtype=np.float32)
    if coordinates == "asymmetric":
        return i / factor
    if coordinates == "align_corners":
        return i * np.float32(n - 1) / np.float32(max(1, new - 1))
    places: NDArray[np.float32] = (i + half) / factor - half
    if coordinates == "pytorch_half_pixel" and new == 1:
        return 0 * i
    if coordinates == "half_pixel_symmetric":
        places = places + np.float32(n / 2 * (1 - new / (float(factor) * n)))
    return places
