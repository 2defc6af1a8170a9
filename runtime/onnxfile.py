"""What an ONNX file may not hold, found before any engine parses it and without the ``onnx`` package.

An engine opens further files that a graph names, ONNX Runtime even relative to the working folder when it is given bytes.
This walks the protobuf wire format (varint, 64-bit, length-delimited, 32-bit) down to every tensor and refuses what reaches
outside the bytes at hand. Field numbers are those of onnx.proto (onnx/onnx, IR version 14); a field that is not in the tables
is passed over.

    model ─┬─ graph ────┬─ node ─── attribute ─┬─ tensor
           ├─ function ─┘                      ├─ graph
           └─ training ── graph                └─ sparse tensor
"""

from collections.abc import Iterator

from semseal.runtime.errors import GraphError

MAX_DEPTH = 60  # messages within messages; protobuf itself stops at 100

_SPARSE, _OPERATOR, _DOMAIN, _EXTERNAL, _LOCATION = "sparse tensor", "operator", "domain", "external data", "data location"
_OUTSIDE = {  # operators and domains of operators that bring other code or files along
    b"EPContext": ("holds a compiled engine (EPContext)", "export plain operators"),
    b"PyOp": ("calls Python (PyOp)", "export plain operators"),
    b"ai.onnx.contrib": ("calls a library of operators outside of it (ai.onnx.contrib)", "export plain operators"),
}

_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: _SPARSE},
    "node": {4: _OPERATOR, 5: "attribute", 7: _DOMAIN},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: _SPARSE, 23: _SPARSE},
    "tensor": {13: _EXTERNAL, 14: _LOCATION},
}


def check_onnx(data: bytes, beside: bool = False) -> None:
    """Raises GraphError unless ``data`` is a well-formed ONNX model that stands for itself.

    With ``beside``, tensors may be kept in other files: for whoever reads those files in, by rules of his own.

    Refused: external data, sparse tensors, compiled engines within (EPContext nodes name further files), operators that are
    Python or come from a library beside ONNX Runtime, its own format, damaged or truncated bytes, and messages deeper than
    MAX_DEPTH. Whether the operators make sense is for the engine to say.
    """
    if data[4:8] == b"ORTM":  # ONNX Runtime goes by this mark, whatever else the bytes are
        raise GraphError("the file is in ONNX Runtime's own format", "save the model as ONNX")
    _walk(data, 0, len(data), "model", 0, beside)


def fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """The fields of the message in data[at:end], as (number, wire type, value, start, end).

    ``value`` is the number that a varint holds, or the length of what is length-delimited, which ends where the field does.
    Raises GraphError where the bytes are no message.
    """
    while at < end:
        start = at
        tag, at = _varint(data, at, end)
        wire = tag & 7
        value = 0
        if wire == 0:
            value, at = _varint(data, at, end)
        elif wire == 1:
            at += 8
        elif wire == 2:
            value, at = _varint(data, at, end)
            at += value
        elif wire == 5:
            at += 4
        else:
            raise GraphError(f"the graph is damaged: wire type {wire} at byte {start}")
        # a longer tag is cut to 32 bits by some parsers and then names another field
        if at > end or not 8 <= tag < 2**32:
            raise GraphError(f"the graph is damaged: the field at byte {start} runs past its end or has no valid number")
        yield tag >> 3, wire, value, start, at


def _walk(data: bytes, at: int, end: int, message: str, depth: int, beside: bool) -> None:
    if depth > MAX_DEPTH:
        raise GraphError(f"the graph nests deeper than {MAX_DEPTH} messages at byte {at}")
    for number, wire, value, start, stop in fields(data, at, end):
        inner = _FIELDS[message].get(number)
        if inner is None:
            continue
        if wire != (0 if inner == _LOCATION else 2):
            raise GraphError(f"the graph is damaged: {inner} of wire type {wire} at byte {start}")
        if inner in _FIELDS:
            _walk(data, stop - value, stop, inner, depth + 1, beside)
        elif inner in (_OPERATOR, _DOMAIN):
            if outside := _OUTSIDE.get(data[stop - value : stop]):
                raise GraphError(f"the graph {outside[0]} at byte {start}", outside[1])
        elif inner == _SPARSE:
            raise GraphError(f"the graph holds a sparse tensor at byte {start}", "store it as a dense one")
        elif (inner == _EXTERNAL or value) and not beside:
            raise GraphError(
                f"the graph keeps a tensor in another file (external data, byte {start})",
                "save the model as one file: torch.onnx.export(..., external_data=False), or onnx.save(model, path)",
            )


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The value, 0..2^70-1, and where the next field begins."""
    value = shift = 0
    for place in range(at, min(end, at + 10)):
        byte = data[place]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place + 1
        shift += 7
    raise GraphError(f"the graph is damaged: the number at byte {at} does not end")
