"""The link in use: Alice's Transmitter, Bob's Receiver, and the Frame that goes from one to the other.

images ── engine ── unit-power rows ── scheme index ── Frame(symbols, header) ~~ radio ~~> received symbols, header
                          one graph                                                                 │
images in the order sent ── engine ── inverse scheme index ── headers opened, pairs found ──────────┘
"""

import os
import struct
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.bundle import open_bundle
from semseal.runtime.defense import index, mix
from semseal.runtime.defense.defenses import BY_NAME, MODES
from semseal.runtime.defense.header import Header, HeaderSealer, ReplayWindow, new_session
from semseal.runtime.defense.keys import load_key
from semseal.runtime.defense.schemes import SchemeSets, draw_choice, noise_rows, scheme_sets
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import HeaderError

MAX_AMPLITUDE = 1e6  # of a received symbol; symbols have mean power 1; far above that, float32 layers overflow into NaN
BATCH = 64  # images in one run of the engine; even, so that no pair is split

_FRAME = struct.Struct("<4sHI")
_MAGIC = b"SSF1"


class BrokenDefenseWarning(UserWarning):
    """A defence was chosen that is known to fall."""


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


class Transmitter:
    """Alice. ``key`` is 32 bytes or a key file; ``defense`` one of none, permute, substitute, permute+substitute, mix.

    The paper's modes (permute, substitute, permute+substitute) fall to an Eve who knows of them; they are for reproduction,
    and a warning says so once.

    Power: the symbols of every image have mean power 1 before rows are swapped, so with substitution it is the pair of
    frames whose mean power is exactly 1.
    """

    def __init__(
        self,
        bundle: str | Path,
        key: bytes | str | Path | None = None,
        defense: str = "none",
        engine: str = "onnxruntime-cpu",
        precision: str = "fp32",
        threads: int | None = None,
        owner: str | Path | None = None,
    ) -> None:
        """``owner`` is the public key that signed the bundle, or its file (``open_bundle`` says where else it is looked up).

        Raises BundleError, EngineError, KeyFileError, or ValueError for an unknown defense or one without a key."""
        if defense not in MODES:
            raise ValueError(f"defense must be one of {', '.join(MODES)}, got {defense!r}")
        if key is None and defense != "none":
            raise ValueError(f"defense {defense!r} needs a key: pass key=, 32 bytes or a key file")
        self.bundle = open_bundle(bundle, owner)
        self.defense = defense
        if BY_NAME[defense].broken:
            warnings.warn(
                f"defense {defense!r} is for reproducing the paper: an Eve who orders rows by likeness undoes it, keyless; "
                "use 'mix' to keep a picture from her",
                BrokenDefenseWarning,
                stacklevel=2,
            )
        secret = None if key is None else load_key(key)
        self._secret = secret
        self._sealer = HeaderSealer(secret, self.bundle.digest)
        self._sets = None if secret is None else scheme_sets(secret, self.bundle.h)
        self._runs = engine, precision
        side = "transmitter-mix" if BY_NAME[defense].mixes else "transmitter"
        self._engine = open_engine(engine, self.bundle.program(side, precision, engine), threads)
        self._lock = threading.Lock()
        self._process, self._session, self._counter = os.getpid(), new_session(), 0

    def __repr__(self) -> str:
        engine, precision = self._runs
        return f"Transmitter({self.bundle.name!r}, defense={self.defense!r}, engine={engine!r}, precision={precision!r})"

    def send(self, images: NDArray[np.float32]) -> list[Frame]:
        """Images float32 [batch, 3, height, width] in 0..1 to one frame each, in order.

        With substitution images 2k and 2k+1 are a pair; a last odd one is paired with a noise tensor, whose frame follows
        it and must be sent too. Raises ValueError for another shape, dtype or range.
        """
        self._check(images)
        frames: list[Frame] = []
        for start in range(0, len(images), BATCH):
            frames += self._send(images[start : start + BATCH])
        return frames

    def _send(self, images: NDArray[np.float32]) -> list[Frame]:
        batch, h = len(images), self.bundle.h
        defense = BY_NAME[self.defense]
        swap, permute = defense.substitutes, defense.permutes
        session, counter = self._take_counters()
        if defense.mixes:
            return self._send_mixed(images, session, range(counter, counter + batch))
        headers: list[Header] = []
        tables = np.tile(index.identity(h), (batch + batch % 2, 1))
        permutations = tables.copy()
        swapped = np.zeros((batch + batch % 2, h), bool)
        for i in range(batch + batch % 2 if swap else batch):
            p = draw_choice() if permute else 0
            s = headers[i - 1].s if i % 2 else (draw_choice() if swap else 0)
            headers.append(Header(self.defense, session, counter + i, p, s, noise=i >= batch))
            permutations[i], swapped[i] = _scheme(headers[i], self._sets, h)
        for i in range(len(tables)):
            tables[i] = index.compose(permutations[i], swapped[i], permutations[i ^ 1])

        odd = swap and batch % 2 == 1
        in_graph = tables[:batch].copy()
        if odd:
            in_graph[-1] = index.identity(h)
        frames = np.arange(len(tables))
        rows = self._engine(images, index.absolute(in_graph, frames[:batch], frames[:batch] ^ 1)).reshape(batch, h, -1)
        if odd:
            # the last image meets its noise tensor here, because the graph knows only rows of images
            pair = np.concatenate([rows[-1], noise_rows(h, rows.shape[2])])
            mixed = index.gather(pair, index.absolute(tables[-2:], frames[:2], frames[:2] ^ 1))
            rows = np.concatenate([rows[:-1], mixed])
        on_air = rows.reshape(len(rows), -1).view(np.complex64)
        return [Frame(row, self._sealer.seal(header)) for row, header in zip(on_air, headers, strict=True)]

    def _send_mixed(self, images: NDArray[np.float32], session: bytes, counters: range) -> list[Frame]:
        assert self._secret is not None  # __init__ refuses a defence without a key
        reals = 2 * self.bundle.n_symbols
        keys = mix.derive_keys(self._secret, session, counters, self.bundle.digest, reals)
        mixed = self._engine(images, *mix.transmitter_inputs(keys, reals))
        on_air = mix.normalize(mixed).reshape(len(images), -1).view(np.complex64)
        headers = (Header("mix", session, counter) for counter in counters)
        return [Frame(row, self._sealer.seal(header)) for row, header in zip(on_air, headers, strict=True)]

    def _take_counters(self) -> tuple[bytes, int]:
        """The session and the first of BATCH counters that nobody has used; the first is even, so pairs are 2k, 2k+1.

        A counter is a nonce: threads must not share one, and a forked process gets a session of its own.
        """
        with self._lock:
            if self._process != os.getpid():
                self._process, self._session, self._counter = os.getpid(), new_session(), 0
            first = self._counter
            self._counter += BATCH
            return self._session, first

    def _check(self, images: NDArray[np.float32]) -> None:
        wanted = (3, self.bundle.height, self.bundle.width)
        if not isinstance(images, np.ndarray):
            raise ValueError(f"images must be a NumPy array, got {type(images).__name__}")
        if images.ndim != 4 or images.shape[1:] != wanted or len(images) == 0:
            raise ValueError(f"images must be [batch, {', '.join(map(str, wanted))}], got {list(images.shape)}")
        if images.dtype != np.float32:
            raise ValueError(f"images must be float32 in 0..1, got {images.dtype}; divide bytes by 255")
        if not (images.min() >= 0 and images.max() <= 1):  # also false for NaN
            found = f"{images.min():g}..{images.max():g}"
            raise ValueError(f"images must be finite and in 0..1, got {found}; divide bytes by 255")


class Receiver:
    """Bob. Learns the mode from the header; refuses what does not authenticate when he has a key."""

    def __init__(
        self,
        bundle: str | Path,
        key: bytes | str | Path | None = None,
        engine: str = "onnxruntime-cpu",
        precision: str = "fp32",
        threads: int | None = None,
        owner: str | Path | None = None,
    ) -> None:
        """Arguments as those of Transmitter. Raises BundleError, EngineError or KeyFileError."""
        self.bundle = open_bundle(bundle, owner)
        self._runs = engine, precision
        secret = None if key is None else load_key(key)
        self._secret = secret
        self._sealer = HeaderSealer(secret, self.bundle.digest)
        self._sets = None if secret is None else scheme_sets(secret, self.bundle.h)
        self._engine = open_engine(engine, self.bundle.program("receiver", precision, engine), threads)
        mixing = None if secret is None else self.bundle.program("receiver-mix", precision, engine)
        self._mix_engine = None if mixing is None else open_engine(engine, mixing, threads)
        self._window = None if secret is None else ReplayWindow()  # without a key anyone could fill it
        self._lock = threading.Lock()
        self.incomplete: list[int] = []

    def __repr__(self) -> str:
        engine, precision = self._runs
        key = "none" if self._secret is None else "given"
        return f"Receiver({self.bundle.name!r}, key {key}, engine={engine!r}, precision={precision!r})"

    def receive(self, frames: Sequence[Frame]) -> NDArray[np.float32]:
        """Received and equalised frames, in any order, to images float32 [batch, 3, height, width], in the order sent.

        Both frames of a pair must be in the same call. A noise tensor yields no image. Where the other frame of a pair
        is missing, the rows that it carried are zero in this image, a warning says so, and ``incomplete`` lists the
        image's place in the result. Raises HeaderError for a header that is not authentic or, with a key, was seen
        before, and ValueError for symbols of another shape or absurd size; nothing is decoded then, and no counter is
        used up.
        """
        with self._lock:
            return self._receive(frames)

    def _receive(self, frames: Sequence[Frame]) -> NDArray[np.float32]:
        opened = self._open(frames)
        shown = [header for header, _ in opened if not header.noise]
        mixed = np.array([BY_NAME[header.mode].mixes for header in shown], bool)
        images = np.empty((len(shown), 3, self.bundle.height, self.bundle.width), np.float32)
        images[mixed] = self._receive_mixed([item for item in opened if BY_NAME[item[0].mode].mixes])
        images[~mixed], lost = self._receive_rows([item for item in opened if not BY_NAME[item[0].mode].mixes])
        incomplete = np.flatnonzero(~mixed)[lost].tolist()
        if incomplete:
            warnings.warn(
                f"the other frame of the pair did not arrive for images {incomplete}: their swapped rows are missing; "
                "hand over both frames of a pair in one call",
                stacklevel=3,
            )
        for header, _ in opened:
            if self._window is not None:
                self._window.accept(header)
        self.incomplete = incomplete
        return images

    def _receive_rows(self, opened: list[tuple[Header, NDArray[np.complex64]]]) -> tuple[NDArray[np.float32], list[int]]:
        """Images of frames whose rows were moved, if at all, and which of them lack their partner's frame."""
        h, n = self.bundle.h, self.bundle.n_symbols
        # all that was received, and zeros for what was not
        received = np.concatenate(
            [np.reshape([symbols for _, symbols in opened], (-1, n)).astype(np.complex64), np.zeros((1, n), np.complex64)]
        )
        frame_of = {(header.session, header.counter): i for i, (header, _) in enumerate(opened)}
        tables: list[index.Table] = []
        own: list[int] = []
        other: list[int] = []
        incomplete: list[int] = []
        for i, (header, _) in enumerate(opened):
            if header.noise:
                continue
            permutation, swapped = _scheme(header, self._sets, h)
            partner = frame_of.get((header.session, header.counter ^ 1), len(opened))
            if swapped.any() and partner == len(opened):
                incomplete.append(len(tables))
            tables.append(index.invert(permutation, swapped))
            own.append(i)
            other.append(partner)
        images = np.empty((len(tables), 3, self.bundle.height, self.bundle.width), np.float32)
        for part in (slice(i, i + BATCH) for i in range(0, len(tables), BATCH)):
            images[part] = self._decode(received, np.stack(tables[part]), np.array(own[part]), np.array(other[part]))
        return images, incomplete

    def _receive_mixed(self, opened: list[tuple[Header, NDArray[np.complex64]]]) -> NDArray[np.float32]:
        images = np.empty((len(opened), 3, self.bundle.height, self.bundle.width), np.float32)
        for start in range(0, len(opened), BATCH):
            part = opened[start : start + BATCH]
            assert self._secret is not None  # without a key the sealer lets no such header pass
            assert self._mix_engine is not None
            reals = 2 * self.bundle.n_symbols
            # one session at a time would be quicker to derive; frames of several are rare
            each = [
                mix.derive_keys(self._secret, header.session, [header.counter], self.bundle.digest, reals) for header, _ in part
            ]
            keys = mix.stack_keys(each)
            symbols = np.stack([symbols for _, symbols in part]).view(np.float32).reshape(len(part), -1, 2)
            images[start : start + BATCH] = self._mix_engine(symbols, *mix.receiver_inputs(keys, reals))
        strange = [opened[i][0].counter for i in np.flatnonzero(np.isnan(images).any(axis=(1, 2, 3)))]
        if strange:
            raise HeaderError(
                f"the symbols that came with the headers of counters {strange} were mixed under another key or counter: "
                "headers and symbols do not belong together"
            )
        return images

    def _open(self, frames: Sequence[Frame]) -> list[tuple[Header, NDArray[np.complex64]]]:
        """Headers and symbols in the order sent, all of them authentic, new and of the right shape."""
        opened = []
        seen = set()
        for i, frame in enumerate(frames):
            try:
                header = self._sealer.open(frame.header)
            except HeaderError as error:
                raise HeaderError(f"frame {i}: {error.message}", error.hint) from None
            wanted = self.bundle.n_symbols
            if BY_NAME[header.mode].mixes:
                wanted = mix.padded_size(2 * wanted) // 2
            if frame.symbols.shape != (wanted,) or frame.symbols.dtype != np.complex64:
                raise ValueError(
                    f"frame {i}: symbols must be complex64 [{wanted}], got {frame.symbols.dtype} {list(frame.symbols.shape)}"
                )
            if not (np.abs(frame.symbols) < MAX_AMPLITUDE).all():  # also false for NaN
                raise ValueError(f"frame {i}: symbols must be finite and below {MAX_AMPLITUDE:g}; was it equalised?")
            again = (header.session, header.counter) in seen
            if again or (self._window is not None and not self._window.fresh(header)):
                raise HeaderError(
                    f"frame {i}: this header was received before, or is too old to tell: replay refused",
                    "send the picture again",
                )
            seen.add((header.session, header.counter))
            opened.append((header, frame.symbols))
        first = {header.session: i for i, (header, _) in reversed(list(enumerate(opened)))}
        return sorted(opened, key=lambda item: (first[item[0].session], item[0].counter))

    def _decode(
        self, received: NDArray[np.complex64], tables: index.Table, own: NDArray[np.integer], other: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """Images of a part of the frames; only these and their partners go to the engine."""
        needed, where = np.unique(np.concatenate([own, other]), return_inverse=True)
        symbols = received[needed].view(np.float32).reshape(len(needed), -1, 2)
        return self._engine(symbols, index.absolute(tables, where[: len(own)], where[len(own) :]))


def _scheme(header: Header, sets: SchemeSets | None, h: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """The permutation and the swapped rows that a header selects; both [h]."""
    permutation, swapped = index.identity(h), np.zeros(h, bool)
    defense = BY_NAME[header.mode]
    if defense.permutes or defense.substitutes:
        assert sets is not None  # without a key the sealer lets no other mode pass
        if defense.permutes:
            permutation = sets.permutations[header.p]
        if defense.substitutes:
            swapped = sets.swapped[header.s]
    return permutation, swapped
