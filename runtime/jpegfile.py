"""What libjpeg lets pass in a JPEG file: a picture that is not all there, and one that takes minutes.

    SOI  tables  SOF  [tables  SOS  entropy-coded data, RST0 RST1 ...]  [SOS ...]  EOI  whatever follows

Where the data of a scan ends early, libjpeg fills the rest with grey and only counts a warning, which Pillow does not pass on.
"""

import re
from dataclasses import dataclass, field

from semseal.runtime.errors import PictureError

MAX_SCANNED_PIXELS = 1 << 30  # pixels times scans: progressive files have about ten scans

_SOI, _EOI, _SOS, _DRI = 0xD8, 0xD9, 0xDA, 0xDD
_BASELINE = frozenset({0xC0, 0xC1})
_PROGRESSIVE = frozenset({0xC2, 0xCA})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_END_OF_SCAN = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_PADDING = b"\xff\x00" * 8  # libjpeg reads up to 7 bytes ahead; too few for a scan that is not complete


@dataclass
class _Structure:
    frame: int = 0  # the marker that says how it is coded
    pixels: int = 0
    scans: int = 0
    ends: bool = False  # with EOI
    end: int = 0  # where the last scan ends
    restarts: bool = True  # all in turn
    missing_bits: dict[tuple[int, int], int] = field(default_factory=dict)  # of each component's coefficients, if progressive


def complete_jpeg(data: bytes) -> bytes:
    """The file, made so that libjpeg reports a scan that ends early. Raises PictureError for one whose end is missing.

    Not found are data that are damaged inside a scan, and the end of one of several scans: JPEG has no checksum.
    """
    found = _structure(data)
    if found.scans and not found.ends:
        raise PictureError("truncated: the file ends before the picture does", "copy it again from where it came")
    if not found.restarts or any(found.missing_bits.values()):
        raise PictureError("damaged: a part of the picture is missing", "copy it again from where it came")
    if found.pixels * found.scans > MAX_SCANNED_PIXELS:
        raise PictureError(f"{found.pixels:,} pixels in {found.scans} scans take too long to decode", "save it again")
    if found.frame in _BASELINE and found.scans == 1:
        return data[: found.end] + _PADDING
    return data


def _structure(data: bytes) -> _Structure:
    """Walk from marker to marker up to the first EOI, or to where the file ends or makes no sense: libjpeg says why then."""
    found, place = _Structure(end=len(data)), 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a filler
            place += 1
            continue
        if marker == _EOI:
            break
        size = int.from_bytes(data[place + 2 : place + 4])
        if marker in _FRAMES and size >= 8:
            found.frame = marker
            found.pixels = int.from_bytes(data[place + 5 : place + 7]) * int.from_bytes(data[place + 7 : place + 9])
            if marker in _PROGRESSIVE:
                components = data[place + 10 : place + 2 + size : 3]
                found.missing_bits = {(component, k): 16 for component in components for k in range(64)}
        place += 2 + size
        if marker == _SOS:
            found.scans += 1
            _count_bits(found, data[place - size : place])
            end = _END_OF_SCAN.search(data, place)
            restarts = [match[0][1] for match in _RESTART.finditer(data, place, end.start() if end else len(data))]
            found.restarts &= all(seen == 0xD0 + i % 8 for i, seen in enumerate(restarts))
            if end is None:
                return found
            place = found.end = end.start()
    found.ends = data[place : place + 2] == b"\xff\xd9"
    return found


def _count_bits(found: _Structure, scan: bytes) -> None:
    """A progressive file sends the coefficients in several scans, from their high bits to their low ones."""
    if found.missing_bits and len(scan) >= 6:
        first, last, bits = scan[-3:]
        for component in scan[3 : 3 + 2 * scan[2] : 2]:
            for k in range(first, min(last, 63) + 1):
                found.missing_bits[component, k] = bits & 15
