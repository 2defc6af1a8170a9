"""What is written into files as a constant: keys, orders of rows, signs. What a graph or a cache holds
is no secret.

    bytes ─┬─ as integers and floats of every size, at every alignment ─┐
           ├─ tensors and attributes of an ONNX graph, decoded ─────────┼─ order?  signs?  key?
           └─ lists of numbers in JSON ─────────────────────────────────┘

An order is a permutation of 0..n-1, or n rows of {own, other} as substitution takes them, for the sizes that the link uses.
Orders that a network has for itself (identity, reversal, transposition, the shuffles of channels) have few different steps from
one place to the next, a random one has many. Signs are a run of +1 and -1 that does not repeat; the Hadamard matrices of mix,
which are public, are known. Nothing is promised for what is compressed or enciphered.
"""

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.defense import mix
from semseal.runtime.onnxfile import fields
from semseal.runtime.onnxwrite import content_of

MIN_ORDER = 8  # rows; shorter orders are too common in any file
MIN_RUN_OF_SIGNS = 256  # in bytes of which nothing is known
MIN_SIGNS = 8  # in a tensor; mix has no fewer columns
_CHUNK = 2**22  # bytes looked at together
_INTEGERS = ("<u1", "<i2", "<i4", "<i8")
_FLOATS = ("<f2", "<f4", "<f8")
_SIGNS = {"<u1": (0x01, 0xFF), "<i4": (1, -1), "<i8": (1, -1), "<u2": (0x3C00, 0xBC00), "<u4": (0x3F800000, 0xBF800000)}
_TENSOR, _ATTRIBUTE = "tensor", "attribute"
_INNER: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node", 11: _ATTRIBUTE},
    "graph": {1: "node", 5: _TENSOR},
    "node": {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: "graph", 10: _TENSOR, 11: "graph"},
}
_RAW = {
    1: "<f4",
    2: "<u1",
    3: "<i1",
    4: "<u2",
    5: "<i2",
    6: "<i4",
    7: "<i8",
    9: "<u1",
    10: "<f2",
    11: "<f8",
    12: "<u4",
    13: "<u8",
}

Numbers = NDArray[Any]


def needles(secret: bytes) -> tuple[bytes, ...]:
    """The ways in which 32 bytes are written: raw, hex, base64 at each alignment, and as integers and floats."""
    hexadecimal = secret.hex()
    found = [secret, secret[::-1], hexadecimal.encode(), hexadecimal.upper().encode()]
    for shift, start in enumerate((0, 2, 3)):
        encoded = base64.b64encode(bytes(shift) + secret)[start : (shift + len(secret)) * 8 // 6]
        found += [encoded, encoded.replace(b"+", b"-").replace(b"/", b"_")]
    values = np.frombuffer(secret, np.uint8)
    found += [values.astype(kind).tobytes() for kind in (*_INTEGERS[1:], *_FLOATS)]
    found += [separator.join(map(str, secret)).encode() for separator in (",", ", ", " ")]
    return tuple(dict.fromkeys(found))


def holds_secret(data: bytes, numbers: Sequence[Numbers], secret: bytes) -> bool:
    """Whether bytes, or the numbers that were decoded from them, hold a secret."""
    if any(needle in data for needle in needles(secret)):
        return True
    return any(secret in values.astype(np.uint8).tobytes() for values in numbers if _are_bytes(values))


def _are_bytes(values: Numbers) -> bool:
    return len(values) >= 32 and bool(((values >= 0) & (values <= 255)).all())


def holds_order(data: bytes, numbers: Sequence[Numbers], sizes: Sequence[int]) -> int | None:
    """The size of the first order of one of these sizes in bytes or in decoded numbers; ``sizes[0]`` is of the rows."""
    limits = {n: 2 * n if n == sizes[0] else n for n in sizes if n >= MIN_ORDER}
    if not limits:
        return None
    for values in (*numbers, *_views(data, (*_INTEGERS, *_FLOATS), 8 * max(limits))):
        fitting = {n: limit for n, limit in limits.items() if n <= 256 or values.dtype.itemsize > 1}
        if not fitting:
            continue
        for run in _small(values, max(fitting.values()), min(fitting)):
            for n, limit in fitting.items():
                if _order(run, n, limit):
                    return n
    return None


def _small(values: Numbers, limit: int, least: int) -> Iterator[NDArray[np.int64]]:
    """Every run of ``least`` neighbours and more that are whole numbers in 0..limit-1."""
    if len(values) < least:
        return
    kind = values.dtype
    bits = values.view(f"u{kind.itemsize}")  # of whole numbers and floats alike the small ones have small bits
    bound = int(np.array(limit, kind).view(f"u{kind.itemsize}")) if kind.kind == "f" else limit
    bound = min(bound, 2 ** (8 * kind.itemsize) - 1)
    # a run holds so many of every step-th number in a row; looking at those alone leaves little of most files
    step = max(1, least // 8)
    for first, last in _runs(bits[::step] <= bound, max(1, least // step - 1)):
        start, end = max(0, (first - 1) * step), (last + 1) * step
        part = values[start:end]
        inside = bits[start:end] <= bound
        if kind.kind == "f":
            with np.errstate(invalid="ignore"):
                inside &= part == np.trunc(part)
        for start, end in _runs(inside, least):
            yield part[start:end].astype(np.int64)


def _order(run: NDArray[np.int64], n: int, limit: int) -> bool:
    """Whether n neighbours below ``limit`` are, modulo n, a permutation that is not a public one."""
    for start, end in _runs(run < limit, n):
        rows = run[start:end] % n
        sums = np.concatenate([[0], np.cumsum(rows)])
        squares = np.concatenate([[0], np.cumsum(rows * rows)])
        fits = (sums[n:] - sums[:-n] == n * (n - 1) // 2) & (squares[n:] - squares[:-n] == (n - 1) * n * (2 * n - 1) // 6)
        for first in np.flatnonzero(fits):
            window = rows[first : first + n]
            if len(np.unique(window)) == n and len(np.unique(np.diff(window))) > max(3, n // 8):
                return True
    return False


def holds_signs(data: bytes, numbers: Sequence[Numbers], n: int) -> bool:
    """Whether bytes or decoded numbers hold signs that are not public; n reals in an image."""
    if any(_signs(values, n) for values in numbers):
        return True
    for values in _views(data, tuple(_SIGNS), 8 * MIN_RUN_OF_SIGNS):
        plus, minus = _SIGNS[values.dtype.newbyteorder("<").str.replace("|", "<")]
        positive, negative = values == np.array(plus).astype(values.dtype), values == np.array(minus).astype(values.dtype)
        for start, end in _runs(positive | negative, MIN_RUN_OF_SIGNS):
            if _is_random(positive[start:end]):
                return True
    return False


def _signs(values: Numbers, n: int) -> bool:
    if len(values) < MIN_SIGNS or values.dtype.kind not in "if" or not values[0] or not np.isfinite(values[0]):
        return False
    if not (np.abs(values) == abs(values[0])).all() or (values == values[0]).all():
        return False
    return _is_random(values > 0) and not _is_public_matrix(np.sign(values).astype(np.float32), n)


def _is_random(positive: NDArray[np.bool_]) -> bool:
    """Whether signs are both there, change often and do not repeat."""
    changes = np.count_nonzero(positive[1:] != positive[:-1])
    if changes < len(positive) / 8:
        return False
    return not any((positive[period:] == positive[:-period]).all() for period in range(1, min(len(positive) // 2, 128) + 1))


def _is_public_matrix(signs: NDArray[np.float32], n: int) -> bool:
    """Whether signs are those of a Hadamard matrix as it comes, its first row and column of one sign, or of one of mix."""
    side = int(np.sqrt(len(signs)))
    if side * side != len(signs):
        return False
    matrix = signs.reshape(side, side)
    if not np.array_equal(matrix @ matrix.T, side * np.eye(side, dtype=np.float32)):
        return False
    known = [np.sign(known) for known in (*mix.matrices(n), *mix.inverse_matrices(n)) if len(known) == side]
    normalized = bool((matrix[0] == matrix[0, 0]).all() and (matrix[:, 0] == matrix[0, 0]).all())
    return normalized or any(np.array_equal(matrix, sign * other) for other in known for sign in (1, -1))


def _runs(inside: NDArray[np.bool_], least: int) -> Iterator[tuple[int, int]]:
    """Where at least ``least`` neighbours are true."""
    outside = np.flatnonzero(~inside)
    if len(outside) and len(inside) - len(outside) < least:
        return
    edges = np.concatenate([[-1], outside, [len(inside)]])
    for i in np.flatnonzero(np.diff(edges) > least):
        yield int(edges[i]) + 1, int(edges[i + 1])


def _views(data: bytes, kinds: Sequence[str], overlap: int) -> Iterator[Numbers]:
    """Bytes as numbers of each kind at each alignment, in chunks that overlap."""
    for start in range(0, max(len(data) - overlap, 1), _CHUNK):
        chunk = data[start : start + _CHUNK + overlap]
        for kind in kinds:
            size = np.dtype(kind).itemsize
            for shift in range(size):
                if (count := (len(chunk) - shift) // size) > 0:
                    yield np.frombuffer(chunk, kind, count, shift)


def numbers_in_graph(model: bytes) -> list[Numbers]:
    """The numbers of every tensor and every attribute of an ONNX model that ``check_onnx`` passed, flat."""
    return list(_numbers(model, "model"))


def _numbers(message: bytes, kind: str) -> Iterator[Numbers]:
    if kind == _TENSOR:
        yield from _tensor(message)
        return
    scalars: dict[int, list[int | float]] = {7: [], 8: []}
    for number, wire, value, _, end in fields(message, 0, len(message)):
        inner = _INNER[kind].get(number)
        if inner is not None and wire == 2:
            yield from _numbers(message[end - value : end], inner)
        elif kind == _ATTRIBUTE and number in scalars:
            scalars[number] += _scalars(
                message[end - value : end] if wire == 2 else message[end - 4 : end], wire, value, number == 7
            )
    yield from (np.array(values) for values in scalars.values() if len(values) > 1)


def _scalars(content: bytes, wire: int, value: int, real: bool) -> list[int | float]:
    """Those of a repeated field, packed or not."""
    if real:
        return list(np.frombuffer(content[: len(content) // 4 * 4], "<f4").tolist())
    return [_signed(value)] if wire == 0 else _varints(content)


def _tensor(message: bytes) -> Iterator[Numbers]:
    kind, varints = 0, list[int | float]()
    for number, wire, value, _, end in fields(message, 0, len(message)):
        if number == 2 and wire == 0:
            kind = value
        if number in (5, 7, 11):
            varints += _scalars(message[end - value : end], wire, value, real=False)
        if number == 4 and wire == 2:
            yield np.frombuffer(message[end - value : end][: value // 4 * 4], "<f4")
        if number == 10 and wire == 2:
            yield np.frombuffer(message[end - value : end][: value // 8 * 8], "<f8")
    raw = content_of(message, 9)
    if raw and kind in _RAW:
        size = np.dtype(_RAW[kind]).itemsize
        yield np.frombuffer(raw[: len(raw) // size * size], _RAW[kind])
    if varints:
        yield np.array(varints)


def _varints(content: bytes) -> list[int | float]:
    found, value, shift = list[int | float](), 0, 0
    for byte in content:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            found.append(_signed(value))
            value = shift = 0
    return found


def _signed(value: int) -> int:
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


def numbers_in_json(data: bytes) -> list[Numbers]:
    """The lists of numbers in a JSON document, flat; none where it is no such document."""
    try:
        waiting = [json.loads(data)]
    except (ValueError, RecursionError):
        return []
    found = []
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            if len(value) >= MIN_ORDER and all(type(item) in (int, float) and abs(item) < 2**62 for item in value):
                found.append(np.array(value))
            else:
                waiting += value
    return found
