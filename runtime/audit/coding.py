"""A digital link at a given number of channel uses: a picture codec's file behind 5G LDPC and QAM, really decoded.

    picture ── JPEG, WebP, AVIF: the largest quality that fits ── file ── pack ── k bits ─┬─ CRC24B ── LDPC ── QAM ──┐
                                                                                          block by block          AWGN
    picture ── decoder ── file ── unpack ── k bits, if every block's CRC holds ── CRC24B ── LDPC ── soft bits ───────┘

Coding, mapping and decoding are those of the package sionna-no-rt (3GPP TS 38.212 and 38.211): up to 40 rounds of belief
propagation on exact a-posteriori soft bits; Bob knows the noise power. What both ends can know beforehand is not sent: of a
file's head only what differs from that of a grey picture of the same size and settings (``pack``); that saves JPEG 170 bytes,
AVIF 250.
"""

import io
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from semseal.runtime.channel import awgn, draw_noise
from semseal.runtime.errors import AuditError

MAX_BLOCK_BITS = 8448  # that one block of 5G's base graph 1 carries, its CRC included
MAX_SLOW_BLOCK_BITS = 3824  # of base graph 2; at rates up to 1/3 the other would only repeat bits, which sionna leaves out
CRC_BITS = 24
BP_ROUNDS = (5, 15, 40)  # each for blocks whose CRC does not hold after fewer
BATCH = 16  # blocks decoded at once
LENGTH_BYTES = 3
CODECS = ("jpeg", "webp", "avif")

# 3GPP TS 38.214, table 5.1.3.1-2: modulation order, code rates x 1024; below 1/5 sionna has no code
_TABLE = {
    2: (308, 449, 602),
    4: (378, 434, 490, 553, 616, 658),
    6: (466, 517, 567, 616, 666, 719, 772, 822, 873),
    8: (682.5, 711, 754, 797, 841, 885, 916.5, 948),
}

Picture = NDArray[np.uint8]  # [height, width, 3]
Bits = NDArray[np.uint8]  # 0 or 1


@dataclass(frozen=True)
class Mcs:
    """A modulation and code rate: ``order`` bits in a QAM symbol, of which ``rate`` are information."""

    order: int
    rate: float

    @property
    def efficiency(self) -> float:
        """Information bits in a channel use, CRCs included."""
        return self.order * self.rate

    @property
    def name(self) -> str:
        return f"{2**self.order}-QAM {self.rate:.3f}" if self.order > 2 else f"QPSK {self.rate:.3f}"


def table() -> list[Mcs]:
    """5G's modulations and rates, and the rates halfway between neighbours, the fastest first."""
    rates = {order: sorted({*given, *((a + b) / 2 for a, b in pairwise(given))}) for order, given in _TABLE.items()}
    pairs = [Mcs(order, rate / 1024) for order, given in rates.items() for rate in given]
    return sorted(pairs, key=lambda mcs: -mcs.efficiency)


def capacity(snr_db: float) -> float:
    """Bits in a complex channel use."""
    return math.log2(1 + 10 ** (snr_db / 10))


@dataclass(frozen=True)
class Framing:
    """How ``symbols`` channel uses are cut into blocks: as few as can carry them, all alike.

    Where that does not come out even, fewer symbols than there are blocks stay idle.
    """

    mcs: Mcs
    symbols: int

    def __post_init__(self) -> None:
        if self.payload_bytes < 1:
            raise ValueError(f"{self.symbols} symbols of {self.mcs.name} carry no byte")

    @property
    def blocks(self) -> int:
        count, limit = 1, MAX_BLOCK_BITS if self.mcs.rate > 1 / 3 else MAX_SLOW_BLOCK_BITS
        while int(self.symbols // count * self.mcs.efficiency) > limit:
            count += 1
        return count

    @property
    def block_symbols(self) -> int:
        return self.symbols // self.blocks

    @property
    def block_bits(self) -> int:
        """Information bits in a block, its CRC included."""
        return int(self.block_symbols * self.mcs.efficiency)

    @property
    def payload_bytes(self) -> int:
        return self.blocks * (self.block_bits - CRC_BITS) // 8


class Modem:
    """Bits over the air in frames of one kind."""

    def __init__(self, framing: Framing) -> None:
        """Raises AuditError where the coding library is not installed."""
        try:
            from sionna.phy.fec.crc import CRCDecoder, CRCEncoder
            from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder
            from sionna.phy.mapping import Demapper, Mapper
        except ModuleNotFoundError as error:
            raise AuditError(
                f"a digital link needs sionna-no-rt: {error}", "in the source folder: pip install '.[radio]'"
            ) from None
        self.framing = framing
        self._payload = framing.block_bits - CRC_BITS
        order, coded = framing.mcs.order, framing.block_symbols * framing.mcs.order
        self._crc = CRCEncoder("CRC24B", device="cpu")
        self._check = CRCDecoder(self._crc, device="cpu")
        self._encode = LDPC5GEncoder(framing.block_bits, coded, num_bits_per_symbol=order, device="cpu")
        self._decode = [LDPC5GDecoder(self._encode, num_iter=rounds, device="cpu") for rounds in BP_ROUNDS]
        self._map = Mapper("qam", order, device="cpu")
        self._demap = Demapper("app", "qam", order, device="cpu")

    def blocks(self, bits: Bits, snr_db: float, rng: np.random.Generator) -> tuple[Bits, NDArray[np.bool_]]:
        """Payloads [blocks, bits] as received, and whose CRC holds [blocks]."""
        found = []
        for start in range(0, len(bits), BATCH):
            on_air = self.modulate(bits[start : start + BATCH])
            arrived = awgn(on_air, draw_noise(len(on_air), on_air.shape[1], rng), snr_db)
            found.append(self.demodulate(arrived, snr_db))
        received, intact = zip(*found, strict=True)
        return np.concatenate(received), np.concatenate(intact)

    @torch.inference_mode()
    def modulate(self, bits: Bits) -> NDArray[np.complex64]:
        """Payloads [blocks, bits] to their symbols [blocks, block_symbols]."""
        on_air: NDArray[np.complex64] = self._map(self._encode(self._crc(torch.from_numpy(bits.astype(np.float32))))).numpy()
        return on_air

    @torch.inference_mode()
    def demodulate(self, symbols: NDArray[np.complex64], snr_db: float) -> tuple[Bits, NDArray[np.bool_]]:
        """Received symbols [blocks, block_symbols], BATCH blocks at most, to payloads, and whose CRC holds."""
        soft = self._demap(torch.from_numpy(symbols), torch.tensor(10 ** (-snr_db / 10)))
        decided = torch.zeros(len(soft), self._payload)
        holds = torch.zeros(len(soft), dtype=torch.bool)
        for decode in self._decode:
            if not holds.all():
                found, good = self._check(decode(soft[~holds]))
                decided[~holds], holds[~holds] = found, good.reshape(-1)
        return decided.numpy().astype(np.uint8), holds.numpy()

    def failures(self, count: int, enough: int, snr_db: float, rng: np.random.Generator) -> tuple[int, int]:
        """Of at most ``count`` blocks of random bits how many were lost, and of how many.

        Stops after the batch in which ``enough`` were. A wrong block whose CRC holds counts as lost, too.
        """
        lost = tried = 0
        while tried < count and lost < enough:
            bits = rng.integers(0, 2, (min(BATCH, count - tried), self._payload), np.uint8)
            received, intact = self.blocks(bits, snr_db, rng)
            lost += int((~intact | (received != bits).any(axis=1)).sum())
            tried += len(bits)
        return lost, tried

    def send(self, payload: bytes, snr_db: float, rng: np.random.Generator) -> bytes | None:
        """A frame's payload as received, filled up with zeros; None where a block is lost."""
        received, intact = self.blocks(self.bits(payload), snr_db, rng)
        return self.payload(received) if intact.all() else None

    def bits(self, payload: bytes) -> Bits:
        """A frame's payload, filled up with zeros, as bits [blocks, bits]."""
        if len(payload) > self.framing.payload_bytes:
            raise ValueError(f"a frame carries {self.framing.payload_bytes} bytes, got {len(payload)}")
        bits = np.zeros(self.framing.blocks * self._payload, np.uint8)
        bits[: 8 * len(payload)] = np.unpackbits(np.frombuffer(payload, np.uint8))
        return bits.reshape(self.framing.blocks, -1)

    def payload(self, bits: Bits) -> bytes:
        """The reverse, with what it was filled up with."""
        return np.packbits(bits.reshape(-1)[: 8 * self.framing.payload_bytes]).tobytes()


def _settings(codec: str, speed: int) -> list[dict[str, Any]]:
    """What is tried besides every quality: how colours are sampled, and JPEG's two orders."""
    if codec == "jpeg":
        return [{"optimize": True, "subsampling": chroma, "progressive": order} for chroma in (0, 2) for order in (False, True)]
    if codec == "webp":
        return [{"method": 6}]
    return [{"speed": speed, "subsampling": chroma} for chroma in ("4:4:4", "4:2:0")]


def _qualities(codec: str) -> range:
    return range(1 if codec == "jpeg" else 0, 101)  # pillow takes JPEG's 0 for its default


def _file(codec: str, picture: Picture, quality: int, setting: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, codec, quality=quality, **setting)
    return file.getvalue()


@lru_cache(maxsize=1024)
def _head(codec: str, speed: int, setting: int, quality: int, height: int, width: int) -> bytes:
    """What both ends expect a file to begin with: the head of a grey picture's."""
    grey = _file(codec, np.full((height, width, 3), 128, np.uint8), quality, _settings(codec, speed)[setting])
    ends = {"jpeg": grey.find(b"\xff\xc4"), "webp": 30, "avif": grey.find(b"mdat") + 4}  # JPEG's Huffman tables are news
    return grey[: ends[codec]]


def pack(file: bytes, codec: str, speed: int, setting: int, quality: int, height: int, width: int) -> bytes:
    """A file as it is sent: its length, its settings, how its head differs from the expected one, the rest."""
    head = _head(codec, speed, setting, quality, height, width)
    squeeze = zlib.compressobj(9, wbits=-15, zdict=head)
    short = squeeze.compress(file[: len(head)]) + squeeze.flush()
    rest = file[len(head) :]
    return len(rest).to_bytes(LENGTH_BYTES, "big") + bytes([setting, quality]) + short + rest


def unpack(payload: bytes, codec: str, speed: int, height: int, width: int) -> bytes:
    """The file that was packed; ``payload`` may go on."""
    length, (setting, quality) = int.from_bytes(payload[:LENGTH_BYTES], "big"), payload[LENGTH_BYTES : LENGTH_BYTES + 2]
    expand = zlib.decompressobj(wbits=-15, zdict=_head(codec, speed, setting, quality, height, width))
    head = expand.decompress(payload[LENGTH_BYTES + 2 :])
    return head + expand.unused_data[:length]


def open_file(file: bytes) -> Picture:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"))


class Encodings:
    """One picture in one codec, at every size that was asked for."""

    def __init__(self, picture: Picture, codec: str, speed: int) -> None:
        """``speed`` is AVIF's, 0 (best) to 10."""
        self.picture, self.codec, self.speed = picture, codec, speed
        self._payloads: dict[tuple[int, int], bytes] = {}

    def _payload(self, setting: int, quality: int) -> bytes:
        found = self._payloads.get((setting, quality))
        if found is None:
            chosen = _settings(self.codec, self.speed)[setting]
            file = _file(self.codec, self.picture, quality, chosen)
            found = pack(file, self.codec, self.speed, setting, quality, *self.picture.shape[:2])
            self._payloads[setting, quality] = found
        return found

    def _fitting(self, limit: int) -> Iterator[bytes]:
        """For each setting the payload of the largest quality that is at most ``limit`` bytes, where one is."""
        for setting in range(len(_settings(self.codec, self.speed))):
            low, high = _qualities(self.codec).start - 1, _qualities(self.codec).stop  # fits, does not
            while high - low > 1:
                middle = (low + high) // 2
                if len(self._payload(setting, middle)) <= limit:
                    low = middle
                else:
                    high = middle
            if low in _qualities(self.codec):
                yield self._payload(setting, low)

    def open(self, payload: bytes) -> Picture:
        """The picture that Bob sees."""
        return open_file(unpack(payload, self.codec, self.speed, *self.picture.shape[:2]))

    def fit(self, limit: int) -> tuple[bytes, Picture] | None:
        """The payload of at most ``limit`` bytes with the least squared error, and its picture; None where none fits."""
        best: tuple[float, bytes, Picture] | None = None
        for payload in self._fitting(limit):
            seen = self.open(payload)
            error = float(np.square(seen.astype(np.float64) - self.picture).mean())
            if best is None or error < best[0]:
                best = error, payload, seen
        return None if best is None else best[1:]
