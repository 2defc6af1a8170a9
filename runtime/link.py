"""The link in use: Alice's Transmitter, Bob's Receiver, and the Frame that goes from one to the other.

images ── engine ── unit-power rows ── scheme index ── Frame(symbols, header) ~~ radio ~~> received symbols, header
                          one graph                                                                 │
images in the order sent ── engine ── inverse scheme index ── headers opened, pairs found ──────────┘

Models that declare it need the scale of every image, the factor that brought it to unit power: the transmitter's graph gives
features as loud as they are, power is set to 1 here, and the factor goes into the header. Their receiver is told the noise too.

Images are float32 [batch, 3, height, width] in 0..1, or uint8 [batch, height, width, 3]: those are converted in the graph. An
engine is opened when it is first needed, the likeliest one at construction, so that one that cannot be had is told at once.

A counter is a nonce and must never be used twice with one session. So threads share a Transmitter's counters under a lock, a
forked process has a session of its own from its first frame on, and a Transmitter is not copied. A forked child waits for no
lock of this module that its parent held, and opens engines of its own: one that a thread of its parent was in might be locked.
OpenVINO has locks for the whole process too: with that engine fork while no thread sends or receives.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import DTypeLike, NDArray
from semseal.runtime import channel
from semseal.runtime.bundle import Bundle, open_bundle
from semseal.runtime.defense import index, mix
from semseal.runtime.defense.defenses import BY_NAME, MODES
from semseal.runtime.defense.header import Header, HeaderSealer, ReplayWindow, quantized_snr
from semseal.runtime.defense.keys import load_key
from semseal.runtime.defense.schemes import SchemeSets, draw_choice, noise_rows, scheme_sets
from semseal.runtime.errors import EngineError, HeaderError
from semseal.runtime.frame import Frame, all_below, power
from semseal.runtime.gpu.device import Engine
from semseal.runtime.owned import Counters, Engines, Locks, process
from semseal.runtime.pixels import separated

MAX_AMPLITUDE = 1e6  # of a received symbol; symbols have mean power 1; far above that, float32 layers overflow into NaN
BATCH = 64  # images in one run of the engine; even, so that no pair is split

Images = NDArray[np.float32] | NDArray[np.uint8]
Opened = tuple[Header, NDArray[np.complex64]]  # a frame whose header was opened

_MAX_DB = 100.0  # of an SNR that is told; its noise is still a number in float32
_QUIET_DB = 40.0  # an SNR above which noise is not told from none

_ONE_BITS = 0x3F800000  # of 1.0; of all floats only those in 0..1 have bits up to these, if -0.0 is left aside


class BrokenDefenseWarning(UserWarning):
    """A defence was chosen that is known to fall."""


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
        snr_db: float | None = None,
    ) -> None:
        """``owner`` is the public key that signed the bundle, or its file (``open_bundle`` says where else it is looked up).

        ``snr_db`` is what Bob is expected to have, for a model that is told; None: the middle of the range that it was trained
        for. It makes the best of that SNR; at others the pictures stay good.

        Raises BundleError, EngineError, KeyFileError, or ValueError for an unknown defense or one without a key, and for an
        ``snr_db`` beyond 100 dB or not for this model."""
        if defense not in MODES:
            raise ValueError(f"defense must be one of {', '.join(MODES)}, got {defense!r}")
        if key is None and defense != "none":
            raise ValueError(f"defense {defense!r} needs a key: pass key=, 32 bytes or a key file")
        self.bundle = open_bundle(bundle, owner)
        _check_snr(self.bundle, snr_db)
        self._snr_db = quantized_snr(self.bundle.snr_db if snr_db is None else snr_db)
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
        moves = BY_NAME[defense].permutes or BY_NAME[defense].substitutes
        self._sets = scheme_sets(secret, self.bundle.h) if secret is not None and moves else None
        self._engines = Engines(self.bundle, engine, precision, threads)
        self._side = "transmitter-mix" if BY_NAME[defense].mixes else "transmitter"
        self._engines.open(self._side, pixels=False)
        self._counters: dict[tuple[int, int], Counters] = {}

    def __repr__(self) -> str:
        return f"Transmitter({self.bundle.name!r}, defense={self.defense!r}, {self._engines!r})"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """What copy.copy, copy.deepcopy and pickle ask for."""
        raise TypeError(
            "a Transmitter cannot be copied or pickled: the copy would use its counters again, which gives pictures away; "
            "open another Transmitter(...), which has a session of its own"
        )

    def send(self, images: Images) -> list[Frame]:
        """Images float32 [batch, 3, height, width] in 0..1, or uint8 [batch, height, width, 3], to one frame each, in order.

        With substitution images 2k and 2k+1 are a pair; a last odd one is paired with a noise tensor, whose frame follows
        it and must be sent too. Raises ValueError for another shape, dtype or range, BundleError where a bundle holds no plan
        for images as uint8.
        """
        engine = self._engines.open(self._side, pixels=self._check(images))
        defense = BY_NAME[self.defense]
        moves = defense.permutes or defense.substitutes
        send = self._send_mixed if defense.mixes else self._send_moved if moves else self._send_plain
        frames: list[Frame] = []
        for start in range(0, len(images), BATCH):
            frames += send(engine, images[start : start + BATCH], *self._take_counters(len(images[start : start + BATCH])))
        return frames

    def _send_plain(self, engine: Engine, images: Images, session: bytes, counter: int) -> list[Frame]:
        on_air, scales = self._on_air(engine, images, _unmoved(len(images), self.bundle.h))
        headers = [Header(self.defense, session, counter + i) for i in range(len(images))]
        return self._sealed(on_air, headers, scales)

    def _send_moved(self, engine: Engine, images: Images, session: bytes, counter: int) -> list[Frame]:
        batch, h = len(images), self.bundle.h
        swap, permute = BY_NAME[self.defense].substitutes, BY_NAME[self.defense].permutes
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
        moved = index.absolute(in_graph, frames[:batch], frames[:batch] ^ 1)
        on_air, scales = self._on_air(engine, images, moved)
        rows = on_air.reshape(batch, h, -1)
        if odd:
            # the last image meets its noise tensor here, because the graph knows only rows of images
            pair = np.concatenate([rows[-1], noise_rows(h, rows.shape[2])])
            mixed = index.gather(pair, index.absolute(tables[-2:], frames[:2], frames[:2] ^ 1))
            rows = np.concatenate([rows[:-1], mixed])
            scales = [*scales, None]
        return self._sealed(rows, headers, scales)

    def _on_air(
        self, engine: Engine, images: Images, tables: index.Table
    ) -> tuple[NDArray[np.float32], Sequence[float | None]]:
        """The rows of every frame, gathered by ``tables`` [batch, h] of absolute rows, and the scale of every image."""
        if not self.bundle.has_scale:
            return engine(images, tables), [None] * len(images)
        rows = engine(images, tables, self._told(len(images))).reshape(*tables.shape, -1)
        image = tables // self.bundle.h  # whose a row is
        powers = np.bincount(image.ravel(), np.einsum("bij,bij->bi", rows, rows).ravel()) / self.bundle.n_symbols
        if not np.isfinite(powers).all():
            raise EngineError("an image came out of the encoder with symbols too large", "try another picture or precision")
        scales = 1 / np.sqrt(np.maximum(powers, channel.SILENCE))
        rows *= scales.astype(np.float32)[image, None]
        return rows, scales.tolist()

    def _send_mixed(self, engine: Engine, images: Images, session: bytes, counter: int) -> list[Frame]:
        assert self._secret is not None  # __init__ refuses a defence without a key
        reals = 2 * self.bundle.n_symbols
        counters = range(counter, counter + len(images))
        keys = mix.derive_keys(self._secret, session, counters, self.bundle.digest, reals)
        told = [self._told(len(images))] if self.bundle.has_scale else []
        on_air, scales = mix.normalize(engine(images, *told, *mix.transmitter_inputs(keys, reals)))
        return self._sealed(on_air, [Header(self.defense, session, counter) for counter in counters], scales.tolist())

    def _told(self, batch: int) -> NDArray[np.float32]:
        return np.full(batch, self._snr_db, np.float32)

    def _sealed(self, on_air: NDArray[np.float32], headers: list[Header], scales: Sequence[float | None]) -> list[Frame]:
        """The frames of what an engine gave, one for each header."""
        symbols = on_air.reshape(len(on_air), -1).view(np.complex64)
        if self.bundle.has_scale:
            headers = [replace(header, scale=x, snr_db=self._snr_db) for header, x in zip(headers, scales, strict=True)]
        return [Frame(row, self._sealer.seal(header)) for row, header in zip(symbols, headers, strict=True)]

    def _take_counters(self, count: int) -> tuple[bytes, int]:
        """The session and the first of ``count`` counters that nobody has used; it is even, so pairs are 2k, 2k+1.

        A counter is a nonce: threads must not share one, and every forked process gets a session of its own.
        """
        here = self._counters.get(process()) or self._counters.setdefault(process(), Counters())
        with here.lock:
            first = here.first
            here.first += count + count % 2
        return here.session, first

    def _check(self, images: Images) -> bool:
        """Whether the images are uint8. Raises ValueError for what ``send`` does not take."""
        if not isinstance(images, np.ndarray):
            raise ValueError(f"images must be a NumPy array, got {type(images).__name__}")
        pixels = images.dtype == np.uint8
        height, width = self.bundle.height, self.bundle.width
        wanted = (height, width, 3) if pixels else (3, height, width)
        if images.ndim != 4 or images.shape[1:] != wanted or len(images) == 0:
            kind = "uint8 images" if pixels else "images"
            raise ValueError(f"{kind} must be [batch, {', '.join(map(str, wanted))}], got {list(images.shape)}")
        if pixels:
            return True
        if images.dtype != np.float32:
            raise ValueError(
                f"images must be float32 in 0..1 or uint8 [batch, height, width, 3], got {images.dtype}; divide bytes by 255"
            )
        # one pass; the exact test, which -0.0 passes and NaN does not, is for what fails it
        if images.view(np.uint32).max() > _ONE_BITS and not (images.min() >= 0 and images.max() <= 1):
            found = f"{images.min():g}..{images.max():g}"
            raise ValueError(f"images must be finite and in 0..1, got {found}; divide bytes by 255")
        return False


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
        snr_db: float | None = None,
    ) -> None:
        """Arguments as those of Transmitter; ``snr_db`` is that of the received symbols, for a model that is told.

        None: each frame's is measured, as what its power exceeds 1 by, which is that of the symbols, exactly. So it must be
        given where an equaliser changes the power. Raises BundleError, EngineError or KeyFileError, ValueError as Transmitter.
        """
        self.bundle = open_bundle(bundle, owner)
        _check_snr(self.bundle, snr_db)
        self._snr_db = snr_db
        secret = None if key is None else load_key(key)
        self._secret = secret
        self._sealer = HeaderSealer(secret, self.bundle.digest)
        self._engines = Engines(self.bundle, engine, precision, threads)
        if secret is None:
            self._engines.open("receiver", pixels=False)
        else:
            self._engines.check("receiver")  # opened when such a frame comes
            self._engines.open("receiver-mix", pixels=False)
        self._window = None if secret is None else ReplayWindow()  # without a key anyone could fill it
        self._own = Locks()
        self.incomplete: list[int] = []

    def __repr__(self) -> str:
        key = "none" if self._secret is None else "given"
        return f"Receiver({self.bundle.name!r}, key {key}, {self._engines!r})"

    def receive(self, frames: Sequence[Frame], dtype: DTypeLike = "float32") -> NDArray[Any]:
        """Received and equalised frames, in any order, to images in the order sent.

        ``dtype`` "float32": images [batch, 3, height, width] in 0..1; "uint8": [batch, height, width, 3], which are those
        times 255, rounded.

        Both frames of a pair must be in the same call. A noise tensor yields no image. Where the other frame of a pair
        is missing, the rows that it carried are zero in this image, a warning says so, and ``incomplete`` lists the
        image's place in the result. Raises HeaderError for a header that is not authentic or, with a key, was seen
        before, and ValueError for symbols of another shape or absurd size; nothing is decoded then, and no counter is
        used up.
        """
        if dtype not in ("float32", "uint8", np.float32, np.uint8):
            raise ValueError(f"dtype must be float32 or uint8, got {dtype!r}")
        with self._own.lock():
            return self._receive(frames, np.dtype(dtype) == np.uint8)

    @cached_property
    def _sets(self) -> SchemeSets | None:
        """Derived when a frame of the paper's modes comes: mix does without."""
        return None if self._secret is None else scheme_sets(self._secret, self.bundle.h)

    def _receive(self, frames: Sequence[Frame], pixels: bool) -> NDArray[Any]:
        opened = self._open(frames)
        mixed = np.array([BY_NAME[header.mode].mixes for header, _ in opened if not header.noise], bool)
        lost: list[int] = []
        if mixed.all() and len(mixed):
            images = self._receive_mixed(opened, pixels)
        elif not mixed.any():
            images, lost = self._receive_rows(opened, pixels)
        else:
            images = np.empty((len(mixed), *self._shape(pixels)), np.uint8 if pixels else np.float32)
            images[mixed] = self._receive_mixed([item for item in opened if BY_NAME[item[0].mode].mixes], pixels)
            images[~mixed], lost = self._receive_rows([item for item in opened if not BY_NAME[item[0].mode].mixes], pixels)
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

    def _receive_rows(self, opened: list[Opened], pixels: bool) -> tuple[NDArray[Any], list[int]]:
        """Images of frames whose rows were moved, if at all, and which of them lack their partner's frame."""
        h = self.bundle.h
        nothing = np.zeros(self.bundle.n_symbols, np.complex64)  # for what was not received
        symbols_of = {(header.session, header.counter): symbols for header, symbols in opened}
        wanted: list[tuple[Header, index.Table, list[NDArray[np.complex64]]]] = []  # of each image its table and its frames
        incomplete: list[int] = []
        for header, symbols in opened:
            if header.noise:
                continue
            defense = BY_NAME[header.mode]
            sets = self._sets if defense.permutes or defense.substitutes else None
            permutation, swapped = _scheme(header, sets, h)
            frames = [symbols]
            if swapped.any():
                partner = symbols_of.get((header.session, header.counter ^ 1))
                if partner is None:
                    incomplete.append(len(wanted))
                frames.append(nothing if partner is None else partner)
            wanted.append((header, index.invert(permutation, swapped), frames))
        parts = []
        for start in range(0, len(wanted), BATCH):
            part = wanted[start : start + BATCH]
            # once, though a pair needs them twice
            taken = {id(symbols): symbols for _, _, frames in part for symbols in frames}
            place = {key: i for i, key in enumerate(taken)}
            own, other = (np.array([place[id(frames[end])] for _, _, frames in part]) for end in (0, -1))
            tables = index.absolute(np.stack([table for _, table, _ in part]), own, other)
            # of a frame that was not received nothing is measured
            known = self._side_information([(header, [f for f in frames if f is not nothing]) for header, _, frames in part])
            parts.append(self._engines.open("receiver", pixels)(_reals(list(taken.values())), tables, *known))
        images, is_picture = self._joined(parts, pixels)
        if not is_picture.all():
            raise ValueError(
                f"images {np.flatnonzero(~is_picture).tolist()} are not finite: their symbols are too large; equalise them"
            )
        return images, incomplete

    def _receive_mixed(self, opened: list[Opened], pixels: bool) -> NDArray[Any]:
        assert self._secret is not None  # without a key the sealer lets no such header pass
        reals = 2 * self.bundle.n_symbols
        engine = self._engines.open("receiver-mix", pixels)
        parts = []
        for start in range(0, len(opened), BATCH):
            part = opened[start : start + BATCH]
            each = [
                mix.derive_keys(self._secret, session, [header.counter for header, _ in group], self.bundle.digest, reals)
                for session, group in groupby(part, lambda item: item[0].session)
            ]
            keys = each[0] if len(each) == 1 else mix.stack_keys(each)
            known = self._side_information([(header, [symbols]) for header, symbols in part])
            parts.append(engine(_reals([symbols for _, symbols in part]), *known, *mix.receiver_inputs(keys, reals)))
        images, is_picture = self._joined(parts, pixels)
        if not pixels:
            is_picture = ~np.isnan(images.min(axis=(1, 2, 3)))  # NaN where one pixel is
        if not is_picture.all():
            strange = [opened[i][0].counter for i in np.flatnonzero(~is_picture)]
            raise HeaderError(
                f"the symbols that came with the headers of counters {strange} were mixed under another key or counter: "
                "headers and symbols do not belong together"
            )
        return images

    def _side_information(self, images: list[tuple[Header, list[NDArray[np.complex64]]]]) -> list[NDArray[np.float32]]:
        """What the graph is told, for each image by its header and the frames that its rows came in; nothing for most models.

        float32 [batch, 3]: its scale, the noise power in a received symbol, the SNR in dB that Alice expected.
        """
        if not self.bundle.has_scale:
            return []
        return [np.array([[header.scale, self._noise(frames), header.snr_db] for header, frames in images], np.float32)]

    def _noise(self, frames: list[NDArray[np.complex64]]) -> float:
        """The noise power in a symbol: as told, or what the frames of a pair have, both together, beyond their power of 1."""
        if self._snr_db is not None:
            return float(10 ** (-self._snr_db / 10))
        return max(sum(power(symbols) for symbols in frames) / len(frames) - 1, 10 ** (-_QUIET_DB / 10))

    def _joined(self, parts: list[NDArray[Any]], pixels: bool) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """What the engine gave, as one array of images, and which of them are pictures: of those in float32 all."""
        if not parts:
            return np.empty((0, *self._shape(pixels)), np.uint8 if pixels else np.float32), np.ones(0, bool)
        told = [separated(part) if pixels else (part, np.ones(len(part), bool)) for part in parts]
        pictures = [picture for picture, _ in told]
        images = np.ascontiguousarray(pictures[0]) if len(parts) == 1 else np.concatenate(pictures)
        return images, np.concatenate([ok for _, ok in told])

    def _shape(self, pixels: bool) -> tuple[int, int, int]:
        """That of one image."""
        height, width = self.bundle.height, self.bundle.width
        return (height, width, 3) if pixels else (3, height, width)

    def _open(self, frames: Sequence[Frame]) -> list[Opened]:
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
            if self.bundle.has_scale and header.scale is None and not header.noise:
                raise HeaderError(
                    f"frame {i}: its header carries no scale, which this model's receiver needs",
                    "send it with the same bundle, by a Transmitter of this version",
                )
            if not all_below(frame.symbols, MAX_AMPLITUDE):
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


@lru_cache(maxsize=2 * BATCH)
def _unmoved(batch: int, h: int) -> NDArray[np.int32]:
    """The index that leaves every row where it is; [batch, h]."""
    return np.arange(batch * h, dtype=np.int32).reshape(batch, h)


def _reals(symbols: Sequence[NDArray[np.complex64]]) -> NDArray[np.float32]:
    """Symbols [N] of some frames as the engines take them, [frames, N, 2]; those of a single frame are not copied."""
    stacked = np.ascontiguousarray(symbols[0])[None] if len(symbols) == 1 else np.stack(symbols)
    return stacked.view(np.float32).reshape(*stacked.shape, 2)


def _check_snr(bundle: Bundle, snr_db: float | None) -> None:
    if snr_db is not None and not bundle.has_scale:
        raise ValueError(f"{bundle.name} is for an SNR of {bundle.snr_db:g} dB and is told none: leave snr_db out")
    if snr_db is not None and not abs(snr_db) <= _MAX_DB:
        raise ValueError(f"snr_db must be in -{_MAX_DB:g}..{_MAX_DB:g}, got {snr_db}")


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
