"""The frame header: what Bob must know about a frame, authenticated, with V = {p, s} and the scale encrypted.

    magic 2 | version 1 | mode 1 | flags 1 | session 16 | counter 8 | p 2 | s 2 | scale 2 | SNR 1 | tag 16      little-endian
    └────────────────────── associated data, with the model digest ─┘ └──────── sealed ─────────┘

The scale is log-quantised: 0 for none, else 1024 log2(scale) + 32768, so that it is off by 0.034 % at most. The SNR that Alice
expects is in quarters of a dB above -32.

ChaCha20-Poly1305 (RFC 8439) under HKDF(K, session); the nonce is the counter, which a session never repeats. Without a key the
same fields stand there in the clear, and no tag.

Promised, where both ends have K: nobody without it reads V or the scale, and a header that was changed, made under another key,
meant for another model or shown twice to one receiver is refused. Not promised: anything about the analog symbols, which carry
no tag; the mode, flags, session and counter are readable by all. With 32 bytes or a key file of the old form, a receiver that
was restarted has forgotten which headers it saw, while it runs it remembers a few bytes of every session, and nothing tells the
two directions of a link apart; a keyset is for that. Without a key nothing is promised at all.
"""

import math
import secrets
import struct
import time
from dataclasses import dataclass, field
from hashlib import blake2b

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from semseal.runtime.defense.defenses import MODES
from semseal.runtime.defense.keys import derive
from semseal.runtime.defense.schemes import SET_SIZE
from semseal.runtime.errors import HeaderError

SESSION_SIZE = 16
SENDER_SIZE = 8  # bytes of the session, with a keyset: its second of birth (4), random (4); the rest is new for every call
WINDOW = 1024  # counters this far behind the newest are still accepted, once

_CLEAR = struct.Struct(f"<2sBBB{SESSION_SIZE}sQ")
_SECRET = struct.Struct("<HHHB")
_MAGIC, _VERSION = b"sS", 2
_NOISE, _SEALED = 1, 2
_MAX = 2**64 - 1


@dataclass(frozen=True)
class Header:
    """``p`` and ``s`` select from the scheme sets; ``noise`` marks the noise tensor that pairs a single image.

    For ``mix`` both are 0: its keys follow from K, session and counter. ``scale`` is the factor that the symbols were
    multiplied by, of models that declare it, else None; ``snr_db`` what Alice expects of the channel. Both are sent rounded.
    """

    mode: str
    session: bytes
    counter: int
    p: int = field(default=0, repr=False)
    s: int = field(default=0, repr=False)
    noise: bool = False
    scale: float | None = field(default=None, repr=False)
    snr_db: float = -32.0
    key_id: str = ""  # of the key that it was opened under, in a keyset; not sent

    @property
    def sender(self) -> tuple[str, bytes]:
        """Whose counters these are: those of a session, or with a keyset of all sessions of one sender under one key."""
        return self.key_id, self.session[:SENDER_SIZE] if self.key_id else self.session


def quantized_snr(snr_db: float) -> float:
    """The nearest SNR in dB that a header can carry, -32 to 31.75."""
    return _snr_code(snr_db) / 4 - 32


def _scale_code(scale: float) -> int:
    return min(max(round(1024 * math.log2(scale)) + 32768, 1), 65535)


def _snr_code(snr_db: float) -> int:
    return min(max(round(4 * (snr_db + 32)), 0), 255)


def new_session() -> bytes:
    """A session name that was never used: 16 random bytes."""
    return secrets.token_bytes(SESSION_SIZE)


def new_sender() -> bytes:
    """The first half of the sessions of one sender with a keyset: the second in which it began, and 4 random bytes."""
    return int(time.time()).to_bytes(8, "little")[:4] + secrets.token_bytes(SENDER_SIZE - 4)


def next_session(sender: bytes) -> bytes:
    """A session for one call of ``send``.

    A machine that is restored from a snapshot has the counters, and for a while perhaps the generator's state, of its twin. So
    the second half is drawn when it is used, from the generator and from clocks that tell nanoseconds.
    """
    drawn = b"".join((secrets.token_bytes(16), struct.pack("<QQ", time.time_ns() & _MAX, time.perf_counter_ns() & _MAX)))
    return sender + blake2b(drawn, digest_size=SESSION_SIZE - SENDER_SIZE).digest()


class HeaderSealer:
    """Seals and opens the headers of one key (None: no key, mode none only) and one model; ``key_id`` names it in headers."""

    def __init__(self, key: bytes | None, model_digest: bytes, key_id: str = "") -> None:
        self._key, self._model_digest, self.key_id = key, model_digest, key_id
        self._last: tuple[bytes, ChaCha20Poly1305] | None = None  # cipher of the session used last

    def seal(self, header: Header) -> bytes:
        """The bytes that are sent. Raises ValueError for a defence without a key."""
        if self._key is None and header.mode != "none":
            raise ValueError(f"defense {header.mode!r} needs a key")
        flags = _NOISE * header.noise | _SEALED * (self._key is not None)
        clear = _CLEAR.pack(_MAGIC, _VERSION, MODES.index(header.mode), flags, header.session, header.counter)
        scale = 0 if header.scale is None else _scale_code(header.scale)
        secret = _SECRET.pack(header.p, header.s, scale, _snr_code(header.snr_db))
        if self._key is None:
            return clear + secret
        return clear + self._cipher(header.session).encrypt(_nonce(header.counter), secret, clear + self._model_digest)

    def open(self, data: bytes) -> Header:
        """The header of these bytes. Raises HeaderError unless they are exactly what ``seal`` made under this key."""
        if len(data) < _CLEAR.size:
            raise HeaderError(f"header of {len(data)} bytes is too short")
        clear, sealed = data[: _CLEAR.size], data[_CLEAR.size :]
        magic, version, mode, flags, session, counter = _CLEAR.unpack(clear)
        if magic != _MAGIC or version != _VERSION:
            raise HeaderError("not a semseal header of version 2")
        if mode >= len(MODES) or flags & ~(_NOISE | _SEALED):
            raise HeaderError("header has an unknown mode or flag")
        if not flags & _SEALED:
            if self._key is not None:
                raise HeaderError(
                    "header is not authenticated, and this receiver has a key: refused",
                    "give the sender the same key; a receiver without a key takes what is not protected",
                )
            if len(sealed) != _SECRET.size or MODES[mode] != "none":
                raise HeaderError("header without a seal is damaged")
            return self._header(MODES[mode], session, counter, flags, sealed)
        if self._key is None:
            raise HeaderError("header is sealed and this receiver has no key", "give the receiver the sender's key file: key=")
        try:
            secret = self._cipher(session).decrypt(_nonce(counter), sealed, clear + self._model_digest)
        except InvalidTag:
            raise HeaderError(
                "header does not authenticate: wrong key, another model, or it was changed",
                "use one key file and one bundle at both ends",
            ) from None
        return self._header(MODES[mode], session, counter, flags, secret)

    def _header(self, mode: str, session: bytes, counter: int, flags: int, secret: bytes) -> Header:
        p, s, scale, snr = _SECRET.unpack(secret)
        if p >= SET_SIZE or s >= SET_SIZE:
            raise HeaderError(f"header selects a scheme that there is not: p and s are below {SET_SIZE}, got {p} and {s}")
        found = None if scale == 0 else 2.0 ** ((scale - 32768) / 1024)
        return Header(mode, session, counter, p, s, bool(flags & _NOISE), found, snr / 4 - 32, self.key_id)

    def _cipher(self, session: bytes) -> ChaCha20Poly1305:
        assert self._key is not None
        found = self._last  # read once: another thread may replace it
        if found is None or found[0] != session:
            found = self._last = session, ChaCha20Poly1305(derive(self._key, b"semseal/v1/header", session))
        return found[1]


class ReplayWindow:
    """Counters seen of each sender (RFC 6479). Show it only headers whose tag has verified."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, bytes], tuple[int, int]] = {}  # -> highest counter, bit i set: highest - i was seen

    def fresh(self, header: Header) -> bool:
        """Whether this counter was never accepted and is not too old to tell."""
        highest, bits = self._seen.get(header.sender, (-1, 0))
        behind = highest - header.counter
        return behind < 0 or (behind < WINDOW and not bits >> behind & 1)

    def accept(self, header: Header) -> None:
        """Mark the counter as seen."""
        highest, bits = self._seen.get(header.sender, (-1, 0))
        if header.counter > highest:
            # a jump beyond the window forgets all that is behind it
            shift = header.counter - highest
            bits = (bits << shift if shift < WINDOW else 0) | 1
            highest = header.counter
        else:
            bits |= 1 << (highest - header.counter)
        self._seen[header.sender] = highest, bits & (1 << WINDOW) - 1


def _nonce(counter: int) -> bytes:
    return counter.to_bytes(12, "little")
