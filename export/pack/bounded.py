"""The packer in a process of its own, that a file can neither crash nor let take all memory or for ever.

    two files ── child, up to MEMORY_BYTES and TIMEOUT_S ── the two graphs and what is told of them, or why not

onnx and ONNX Runtime are large C++ programs that were not written for files from strangers: a graph of a hundred bytes asks for
a tensor of terabytes, and some end the process that they are in. What comes out of the child has run there on photographs; only
then does this process open it.
"""

import json
import resource
import struct
import subprocess
import sys
from typing import Any

from semseal.export.pack.layout import row_layout
from semseal.export.pack.pair import Packed, pack_graphs
from semseal.export.pack.prove import Guarded, Reference, open_session
from semseal.export.pack.whole import in_order
from semseal.runtime.errors import GraphError

MEMORY_BYTES = 4 * 2**30  # and COPIES of the files, of what a process may write to
COPIES = 8
TIMEOUT_S = 900.0

_CHILD = "import sys; sys.path[:] = sys.argv[1:]; from semseal.export.pack.bounded import child; child()"
_TOLD = ("height", "width", "own_power", "psnr_original", "psnr_packed")  # of Packed
_SMALLER = "export a smaller model, or for smaller pictures"


def pack_bounded(transmitter: bytes, receiver: bytes) -> Packed:
    """As ``pack_graphs``, in a child. Raises GraphError, also where the child is ended."""
    command = [sys.executable, "-I", "-c", _CHILD, *sys.path]
    try:
        files = _framed(transmitter, receiver)
        done = subprocess.run(command, input=files, capture_output=True, timeout=TIMEOUT_S)  # noqa: S603, this Python itself
    except subprocess.TimeoutExpired:
        raise GraphError(f"transmitter and receiver: packing them takes more than {TIMEOUT_S:.0f} s", _SMALLER) from None
    if done.returncode < 0:
        raise GraphError(
            f"transmitter or receiver: onnx or ONNX Runtime broke down on it (signal {-done.returncode})",
            "export the model again, with another opset or tool",
        )
    parts = _parts(done.stdout)
    if done.returncode > 0 or not parts:
        raise RuntimeError(f"the packer failed:\n{done.stderr.decode(errors='replace')}")
    told = json.loads(parts[0])
    if "message" in told:
        raise GraphError(told["message"], told["hint"])
    sender, recipient = (
        open_session(side, in_order(side, data)) for side, data in (("transmitter", transmitter), ("receiver", receiver))
    )
    reference = Reference(sender, recipient, row_layout(tuple(told["shape"])), told["gain"], Guarded(*told["guarded"]))
    return Packed(parts[1], parts[2], reference, **{name: told[name] for name in _TOLD}, notes=tuple(told["notes"]))


def attempt(transmitter: bytes, receiver: bytes) -> Packed:
    """As ``pack_graphs``; that memory does not suffice is a GraphError too."""
    try:
        return pack_graphs(transmitter, receiver)
    except MemoryError:
        raise GraphError("transmitter or receiver: it takes more memory than there is for it", _SMALLER) from None


def child() -> None:
    """What the child does: two files from standard input, what became of them to standard output."""
    files = sys.stdin.buffer.read()
    _limit(MEMORY_BYTES + COPIES * len(files))
    parts: tuple[bytes, ...] = ()
    try:
        packed = attempt(*_parts(files))
        parts = packed.transmitter, packed.receiver
        told: dict[str, Any] = {name: getattr(packed, name) for name in (*_TOLD, "notes", "gain")}
        guarded = packed.reference.guarded
        told |= {"shape": packed.layout.shape, "guarded": [guarded.transmitter, guarded.receiver]}
    except GraphError as error:
        told = {"message": error.message, "hint": error.hint}
    sys.stdout.buffer.write(_framed(json.dumps(told).encode(), *parts))


def _limit(size: int) -> None:
    """The most that this process may write to, in bytes, and no core file of it."""
    for what, wanted in ((resource.RLIMIT_DATA, size), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(what, (limit, limit))


def _framed(*parts: bytes) -> bytes:
    return b"".join(struct.pack("<Q", len(part)) + part for part in parts)


def _parts(data: bytes) -> list[bytes]:
    parts, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        parts.append(data[at + 8 : at + 8 + size])
        at += 8 + size
    return parts
