"""What goes over the sockets of a link, as bytes: messages on the connection, datagrams beside it (docs/wire.md).

    connection (TLS)   sender ── HELLO, FRAME, SENT, KEEP, BYE ──>   <── WELCOME, READY, DONE, KEEP, BYE, REFUSED ── receiver
    datagrams (UDP)    sender ── symbols i, i + K, i + 2K ... of a frame in datagram i of K ──>                       receiver

Neighbouring symbols are in different datagrams, so that a datagram that is lost leaves a thin gap everywhere and not a hole.

A datagram carries no tag: symbols are analog, and a radio authenticates nothing. What it claims is checked against the frame
that the connection announced, whose session nobody else knows yet; all else is dropped before anything is stored.
"""

import asyncio
import enum
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

VERSION = 1
ALPN = "semseal/1"
MAX_MESSAGE_BYTES = 1024
HEADER_SIZES = (36, 52)  # of a frame's header, without and with a seal
DATAGRAM_BYTES = 1200  # what goes through every path, tunnels too
MIN_DATAGRAM_BYTES, MAX_DATAGRAM_BYTES = 64, 8972  # the last is what a jumbo frame of Ethernet holds
STREAM_SIZE, INSTANCE_SIZE = 8, 8
REAL_TYPES: dict[int, np.dtype[Any]] = {2: np.dtype("<f2"), 4: np.dtype("<f4")}  # by the bytes of I, and of Q

_MESSAGE = struct.Struct("<BH")
_HELLO = struct.Struct(f"<B32s{STREAM_SIZE}sBIH")
_WELCOME = struct.Struct(f"<B{INSTANCE_SIZE}sH")
_NUMBER = struct.Struct("<Q")
_DONE = struct.Struct("<QBHH")
_DATAGRAM = struct.Struct("<2sBB16sQHH")
_DATAGRAM_MAGIC = b"sU"
_CLEAR = struct.Struct("<16sQ")  # session and counter of a frame's header
_CLEAR_AT = 5
_MAX_COUNT = 2**16 - 1


class Kind(enum.IntEnum):
    """The messages."""

    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    FRAME = 4
    READY = 5
    SENT = 6
    DONE = 7
    KEEP = 8
    BYE = 9


class Outcome(enum.IntEnum):
    """What became of a frame."""

    PICTURE = 0
    REFUSED = 1
    LOST = 2
    AGAIN = 3  # it is a picture that had arrived before: its answer was lost, so it was sent again


class WireError(Exception):
    """Bytes that are not what the page says; whoever sent them is hung up on."""


class Hello(NamedTuple):
    """What a sender says of its frames: the model, a name of the stream, and how every frame is cut into datagrams."""

    digest: bytes
    stream: bytes
    real_bytes: int
    n: int  # symbols of a frame
    datagrams: int  # of a frame

    def pack(self) -> bytes:
        return _HELLO.pack(VERSION, *self)


class Welcome(NamedTuple):
    """What a receiver answers: a name that is new whenever it is started, and how many frames may be on their way."""

    instance: bytes
    window: int

    def pack(self) -> bytes:
        return _WELCOME.pack(VERSION, *self)


class Done(NamedTuple):
    """What became of the frame of a number, how many of its datagrams arrived, and why it gave no picture."""

    number: int
    outcome: Outcome
    arrived: int
    datagrams: int
    why: str = ""

    def pack(self) -> bytes:
        return _DONE.pack(self.number, self.outcome, self.arrived, self.datagrams) + self.why.encode()[:300]


def message(kind: Kind, payload: bytes = b"") -> bytes:
    """One message."""
    assert len(payload) <= MAX_MESSAGE_BYTES
    return _MESSAGE.pack(kind, len(payload)) + payload


async def read_message(reader: asyncio.StreamReader, idle_s: float, part_s: float) -> tuple[Kind, bytes]:
    """The next message. Raises WireError for what is none, TimeoutError for silence, and what the reader raises at an end.

    ``idle_s`` is how long nothing may come, ``part_s`` how long the rest of a message that began may take.
    """
    async with asyncio.timeout(idle_s):
        first = await reader.readexactly(1)
    async with asyncio.timeout(part_s):
        kind, size = _MESSAGE.unpack(first + await reader.readexactly(_MESSAGE.size - 1))
        if kind not in Kind.__members__.values() or size > MAX_MESSAGE_BYTES:
            raise WireError(f"a message of kind {kind} and {size} bytes")
        return Kind(kind), await reader.readexactly(size)


def hello(payload: bytes) -> Hello:
    """Raises WireError."""
    version, *rest = _unpack(_HELLO, payload)
    if version != VERSION:
        raise WireError(f"version {version}, and this is version {VERSION}")
    return Hello(*rest)


def welcome(payload: bytes) -> Welcome:
    """Raises WireError."""
    version, instance, window = _unpack(_WELCOME, payload)
    if version != VERSION or window < 1:
        raise WireError(f"version {version} with a window of {window}")
    return Welcome(instance, window)


def frame_message(number: int, header: bytes) -> bytes:
    return message(Kind.FRAME, _NUMBER.pack(number) + header)


def frame(payload: bytes) -> tuple[int, bytes]:
    """A frame's number and header. Raises WireError."""
    if len(payload) - _NUMBER.size not in HEADER_SIZES:
        raise WireError(f"a frame with a header of {len(payload) - _NUMBER.size} bytes")
    return _NUMBER.unpack_from(payload)[0], payload[_NUMBER.size :]


def numbered(kind: Kind, of: int) -> bytes:
    """READY or SENT."""
    return message(kind, _NUMBER.pack(of))


def number(payload: bytes) -> int:
    """Raises WireError."""
    return int(_unpack(_NUMBER, payload)[0])


def done(payload: bytes) -> Done:
    """Raises WireError."""
    of, outcome, arrived, count = _unpack(_DONE, payload[: _DONE.size])
    if outcome not in Outcome.__members__.values():
        raise WireError(f"an outcome {outcome}")
    return Done(of, Outcome(outcome), arrived, count, payload[_DONE.size :].decode(errors="replace"))


def session_and_counter(header: bytes) -> tuple[bytes, int]:
    """What a header says in the clear."""
    session, counter = _CLEAR.unpack_from(header, _CLEAR_AT)
    return session, counter


def _unpack(layout: struct.Struct, payload: bytes) -> tuple[Any, ...]:
    try:
        return layout.unpack(payload)
    except struct.error:
        raise WireError(f"a message of {len(payload)} bytes, where {layout.size} are due") from None


# datagrams


def count_for(n: int, real_bytes: int, datagram_bytes: int) -> int:
    """In how many datagrams of this size at most n symbols go."""
    return -(-n // ((datagram_bytes - _DATAGRAM.size) // (2 * real_bytes)))


def is_sane(told: Hello) -> bool:
    """Whether frames may be cut so: into datagrams that are neither empty nor larger than the largest."""
    if told.real_bytes not in REAL_TYPES or not 1 <= told.datagrams <= min(told.n, _MAX_COUNT):
        return False
    return _DATAGRAM.size + -(-told.n // told.datagrams) * 2 * told.real_bytes <= MAX_DATAGRAM_BYTES


def datagrams(symbols: NDArray[np.complex64], header: bytes, real_bytes: int, count: int) -> Iterator[bytes]:
    """The datagrams of a frame, in order."""
    session, counter = session_and_counter(header)
    n, most = len(symbols), -(-len(symbols) // count)
    reals = np.zeros((most * count, 2), REAL_TYPES[real_bytes])
    reals[:n] = symbols.view(np.float32).reshape(n, 2)
    whole = reals.view(f"<u{2 * real_bytes}")  # I and Q as one number, which moves ten times as fast
    data = whole.reshape(most, count).T.tobytes()  # one datagram behind the other
    for index in range(count):
        head = _DATAGRAM.pack(_DATAGRAM_MAGIC, VERSION, real_bytes, session, counter, index, count)
        start, size = index * most * 2 * real_bytes, -(-(n - index) // count) * 2 * real_bytes
        yield head + data[start : start + size]


def datagram(data: memoryview) -> tuple[tuple[bytes, int], int, int, memoryview] | None:
    """(session and counter), index, count, reals of a datagram; None for what is none."""
    if len(data) <= _DATAGRAM.size:
        return None
    magic, version, _, session, counter, index, count = _DATAGRAM.unpack_from(data)
    if magic != _DATAGRAM_MAGIC or version != VERSION or index >= count:
        return None
    return (session, counter), index, count, data[_DATAGRAM.size :]
