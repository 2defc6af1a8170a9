"""The honest digital link in an audit: a picture's file, encrypted, behind 5G LDPC and QAM, in the channel uses of the bundle.

    picture ── WebP, the largest quality that fits ── ChaCha20-Poly1305 ── LDPC, QAM (``coding``) ── symbols
    symbols ── soft bits ── LDPC ── every CRC, and the tag ── picture, or grey

Every frame is as long as any other: the file is filled up before it is encrypted, so that its length says nothing either. Key
and nonce are fresh for each picture, as those of the other defences are; what both ends know is not sent. The power of a frame
is that of its QAM, within two per cent of 1, whatever the picture.

Modulation and code rate are fixed by Bob's SNR, with MARGIN_DB to spare. At a lower one nothing arrives: the cliff.
"""

from functools import lru_cache

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from numpy.typing import NDArray
from semseal.runtime.audit.coding import BATCH, Encodings, Framing, Mcs, Modem, capacity, table
from semseal.runtime.errors import AuditError

CODEC = "webp"
MARGIN_DB = 2.0  # of SNR: so much less, and capacity would be what is sent
TAG_BYTES = 16
NONCE = bytes(12)  # each key seals one picture
WITHOUT_IT = "leave out --defense digital; where --out holds it already, choose another --out"  # every SNR of a folder has it
KEPT_FILES = 4096  # of pictures that are sent again, under another key

Images = NDArray[np.float32]
Symbols = NDArray[np.complex64]


def fastest(snr_db: float) -> Mcs:
    """The fastest of 5G's modulations and code rates that leaves the margin. Raises AuditError for none."""
    allowed = capacity(snr_db - MARGIN_DB)
    found = next((mcs for mcs in table() if mcs.efficiency <= allowed), None)
    if found is None:
        raise AuditError(f"no modulation and code rate of 5G is slow enough for {snr_db:g} dB", WITHOUT_IT)
    return found


class DigitalLink:
    """Pictures float32 [n, 3, height, width] in 0..1 over frames of ``symbols`` channel uses at Bob's SNR.

    Raises AuditError where sionna-no-rt is not installed, or where so few symbols carry no file.
    """

    def __init__(self, symbols: int, snr_db: float, height: int, width: int) -> None:
        self._symbols, self._snr_db, self._size = symbols, snr_db, (height, width)
        try:
            framing = Framing(fastest(snr_db), symbols)
        except ValueError:
            framing = None
        if framing is None or framing.payload_bytes <= TAG_BYTES:
            raise AuditError(f"a digital frame in {symbols} channel uses carries no byte", WITHOUT_IT)
        self._modem = Modem(framing)

    @property
    def file_bytes(self) -> int:
        """Of the longest file that fits a frame."""
        return self._modem.framing.payload_bytes - TAG_BYTES

    def conceal(self, image: Images, key: bytes) -> Symbols:
        """One picture [3, height, width] as it goes on air under a key of 32 bytes: complex64 [symbols]."""
        levels = np.ascontiguousarray(np.rint(image * 255).astype(np.uint8).transpose(1, 2, 0))
        file = fitted(levels.tobytes(), self._size, self.file_bytes)
        sealed = ChaCha20Poly1305(key).encrypt(NONCE, file.ljust(self.file_bytes, b"\0"), None)
        sent = self._modem.modulate(self._modem.bits(sealed)).reshape(-1)
        return np.pad(sent, (0, self._symbols - len(sent)))  # fewer idle symbols than there are blocks

    def reveal(self, received: Symbols, key: bytes) -> Images | None:
        """The picture behind received symbols [symbols]; None where a block is lost, or the key is another."""
        framing = self._modem.framing
        blocks = received[: framing.blocks * framing.block_symbols].reshape(framing.blocks, -1)
        found = [self._modem.demodulate(blocks[at : at + BATCH], self._snr_db) for at in range(0, framing.blocks, BATCH)]
        if not all(intact.all() for _, intact in found):
            return None
        try:
            file = ChaCha20Poly1305(key).decrypt(NONCE, self._modem.payload(np.concatenate([bits for bits, _ in found])), None)
        except InvalidTag:
            return None
        if not file.strip(b"\0"):  # no quality fits
            return None
        levels = Encodings(np.empty((*self._size, 3), np.uint8), CODEC, 0).open(file)
        return levels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)


@lru_cache(KEPT_FILES)
def fitted(levels: bytes, size: tuple[int, int], limit: int) -> bytes:
    """The best file of a picture, uint8 [height, width, 3], that fits; none where no quality does."""
    found = Encodings(np.frombuffer(levels, np.uint8).reshape(*size, 3), CODEC, 0).fit(limit)
    return b"" if found is None else found[0]
