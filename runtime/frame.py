"""A frame: what goes on air for one image, and the bytes that stand for it in a file or on a socket."""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def power(symbols: NDArray[np.complex64]) -> float:
    """Mean power of a symbol."""
    reals = symbols.view(np.float32)
    return float(np.einsum("i,i", reals, reals)) / len(symbols)


def all_below(symbols: NDArray[np.complex64], limit: float) -> bool:
    """Whether all magnitudes are below ``limit``; false for NaN."""
    if symbols.flags.c_contiguous:
        # both parts below limit / sqrt(2) is enough, and quicker to find out
        reals = symbols.view(np.float32)
        if max(reals.max(), -reals.min()) < 0.7 * limit:
            return True
    return bool((np.abs(symbols) < limit).all())
