"""A frame: what goes on air for one image, and the bytes that stand for it in a file or on a socket; and what it gives Bob."""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.errors import HeaderError

_FRAME = struct.Struct("<4sHI")
_MAGIC = b"SSF1"


@dataclass(frozen=True, eq=False)
class Frame:
    """What goes on air for one image: analog symbols, complex64 [N], and the header bytes, sent error-free."""

    symbols: NDArray[np.complex64]
    header: bytes

    def to_bytes(self) -> bytes:
        """Magic, header length, N, header, symbols as little-endian float32 I and Q."""
        if len(self.header) >= 2**16:
            raise ValueError(f"a header of {len(self.header)} bytes does not fit a frame")
        symbols = np.ascontiguousarray(self.symbols, "<c8")
        return _FRAME.pack(_MAGIC, len(self.header), symbols.size) + self.header + symbols.tobytes()

    @staticmethod
    def from_bytes(data: bytes) -> "Frame":
        """The reverse. Raises ValueError unless ``data`` is exactly one frame of finite symbols."""
        if len(data) < _FRAME.size:
            raise ValueError(f"frame of {len(data)} bytes is too short")
        magic, header_size, n = _FRAME.unpack_from(data)
        if magic != _MAGIC:
            raise ValueError("not a semseal frame")
        if len(data) != _FRAME.size + header_size + 8 * n:
            raise ValueError(f"frame of {len(data)} bytes should have {_FRAME.size + header_size + 8 * n}")
        symbols = np.frombuffer(data, "<c8", n, _FRAME.size + header_size).astype(np.complex64)
        if not np.isfinite(symbols).all():
            raise ValueError("frame holds symbols that are not finite")
        return Frame(symbols, data[_FRAME.size : _FRAME.size + header_size])


@dataclass(frozen=True, eq=False)
class Reception:
    """What one frame gave Bob: its ``image``, or the ``error`` that says why not.

    An image can come with an error: the other frame of its pair was lost or refused, and the rows that it carried are zero.
    A noise tensor, which is there for its partner, gives neither.
    """

    image: NDArray[Any] | None = None
    error: HeaderError | None = None


def power(symbols: NDArray[np.complex64]) -> float:
    """Mean power of a symbol; infinite or NaN where one of them is."""
    reals = np.ascontiguousarray(symbols).view(np.float32)
    return float(np.einsum("i,i", reals, reals)) / len(symbols)
