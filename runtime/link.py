"""The link in use: Alice's Transmitter, Bob's Receiver, and the Frame that goes from one to the other.

images ── engine ── unit-power rows ── scheme index ── Frame(symbols, header) ~~ radio ~~> received symbols, header
                          one graph                                                                 │
images in the order sent ── decoding ── headers opened, symbols of sane power, nothing seen before ─┘

Models that declare it need the scale of every image, the factor that brought it to unit power: the transmitter's graph gives
features as loud as they are, power is set to 1 here, and the factor goes into the header. Their receiver is told the noise too.

Images are float32 [batch, 3, height, width] in 0..1, or uint8 [batch, height, width, 3]: those are converted in the graph. An
engine is opened when it is first needed, the likeliest one at construction, so that one that cannot be had is told at once.

One bad picture costs one picture: ``send`` raises SendError, which holds the frames of the others. One bad frame costs one
frame (``semseal.runtime.receiver``).

A counter is a nonce and must never be used twice with one session. So threads share a Transmitter's counters under a lock, a
forked process has a session of its own from its first frame on, and a Transmitter is not copied. With a keyset every call of
``send`` has a session of its own, so that a machine that is restored from a snapshot uses none again either. A forked child
waits for no lock of this module that its parent held, and opens engines of its own: one that a thread of its parent was in
might be locked. OpenVINO has locks for the whole process too: with that engine fork while no thread sends or receives.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray
from semseal.runtime import channel
from semseal.runtime.bundle import open_bundle
from semseal.runtime.decoding import BATCH, scheme
from semseal.runtime.defense import index, mix
from semseal.runtime.defense.defenses import BY_NAME, MODES
from semseal.runtime.defense.header import Header, HeaderSealer, quantized_snr
from semseal.runtime.defense.schemes import SchemeSets, draw_choice, noise_rows, scheme_sets
from semseal.runtime.errors import EngineError, KeyFileError, SendError
from semseal.runtime.frame import Frame
from semseal.runtime.gpu.device import Engine
from semseal.runtime.gpu.mix_kernel import packet_keys
from semseal.runtime.gpu.mixed import FusedMix
from semseal.runtime.owned import Counters, Engines, process
from semseal.runtime.receiver import Receiver, check_snr
from semseal.runtime.trust.linkkeys import LinkKey, LinkKeys
from semseal.runtime.trust.newest import check_newest

MAX_ROUNDING = 1e-6  # by which a pixel may be outside of 0..1, as resizing leaves it

__all__ = ["BATCH", "MAX_ROUNDING", "BrokenDefenseWarning", "Frame", "Images", "Receiver", "Transmitter"]

Images = NDArray[np.float32] | NDArray[np.uint8]

_ONE_BITS = 0x3F800000  # of 1.0; of all floats only those in 0..1 have bits up to these, if -0.0 is left aside


class BrokenDefenseWarning(UserWarning):
    """A defence was chosen that is known to fall."""


class _Used(NamedTuple):
    """A key, and what is made of it once."""

    key: LinkKey | None
    sealer: HeaderSealer
    sets: SchemeSets | None


class Transmitter:
    """Alice. ``key`` is 32 bytes, a key file or a keyset; ``defense`` none, permute, substitute, permute+substitute or mix.

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
        allow_older: bool = False,
    ) -> None:
        """``owner`` is the public key that signed the bundle, or its file (``open_bundle`` says where else it is looked up).

        ``snr_db`` is what Bob is expected to have, for a model that is told; None: the middle of the range that it was trained
        for. It makes the best of that SNR; at others the pictures stay good. With a keyset a bundle that is older than one that
        its owner made and that was opened here is refused (``semseal.runtime.trust.newest``), unless ``allow_older``.

        Raises BundleError, EngineError, KeyFileError, or ValueError for an unknown defense or one without a key, and for an
        ``snr_db`` beyond 100 dB or not for this model."""
        if defense not in MODES:
            raise ValueError(f"defense must be one of {', '.join(MODES)}, got {defense!r}")
        if key is None and defense != "none":
            raise ValueError(f"defense {defense!r} needs a key: pass key=, 32 bytes, a key file or a keyset")
        self._use_key(key)
        self.bundle = open_bundle(bundle, owner)
        if self._keys is not None and self._keys.in_keyset and not allow_older:
            check_newest(self.bundle, owner)
        check_snr(self.bundle, snr_db)
        self._snr_db = quantized_snr(self.bundle.snr_db if snr_db is None else snr_db)
        self.defense = defense
        if BY_NAME[defense].broken:
            warnings.warn(
                f"defense {defense!r} is for reproducing the paper: an Eve who orders rows by likeness undoes it, keyless; "
                "use 'mix' to keep a picture from her",
                BrokenDefenseWarning,
                stacklevel=2,
            )
        self._use()
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
        it and must be sent too. What is outside of 0..1 by 1e-6 at most is clipped.

        Raises ValueError for another shape, dtype or range, BundleError where a bundle holds no plan for images as uint8, and
        SendError where the model answers a picture with no symbols, such as a black one that is divided by its own power: the
        error names the pictures and holds the frames of all others, which may be sent.
        """
        images = self._checked(images)
        engine = self._engines.open(self._side, pixels=images.dtype == np.uint8)
        frames: list[Frame] = []
        refused: list[int] = []
        for start in range(0, len(images), BATCH):
            places = np.arange(start, min(start + BATCH, len(images)))
            part = images[start : start + BATCH]
            while len(places):
                try:
                    frames += self._send(engine, part)
                    break
                except SendError as error:
                    # the others again, so that under substitution they make pairs among themselves
                    refused += places[list(error.images)].tolist()
                    places = np.delete(places, error.images)
                    part = images[places]
        if refused:
            raise SendError(
                f"images {refused} came out of the transmitter without symbols: not finite, or of no power",
                "send the frames of the others, which this error holds, and another picture; if it is plain black or white: "
                "the model divides by its own power, so give that a least value and pack it again",
                tuple(refused),
                tuple(frames),
            )
        return frames

    def _send(self, engine: Engine, images: Images) -> list[Frame]:
        """One run of the engine. Raises SendError with the places among these images, KeyFileError where no key may be used."""
        used = self._use()
        session, counter = self._own_counters().take(len(images), in_keyset=self._keys is not None and self._keys.in_keyset)
        defense = BY_NAME[self.defense]
        if defense.mixes:
            return self._send_mixed(engine, images, used, session, counter)
        if defense.permutes or defense.substitutes:
            return self._send_moved(engine, images, used, session, counter)
        return self._send_plain(engine, images, used, session, counter)

    def _use_key(self, key: bytes | str | Path | None) -> None:
        """From here on frames are sent under this key, and nothing that was made of another is kept.

        Counters go on where they were, so that none is used twice under any key. After ``__init__`` only audits call it.
        """
        self._keys = None if key is None else LinkKeys(key, sends=True)
        self._used: _Used | None = None

    def _own_counters(self) -> Counters:
        """Those of this process: a session that nobody else has. An audit, which must repeat, has others."""
        return self._counters.get(process()) or self._counters.setdefault(process(), Counters())

    def _use(self) -> _Used:
        """The key that frames are sent with now, and what is made of it; anew where its file was changed."""
        key = None if self._keys is None else self._keys.sending()
        used = self._used  # read once: another thread may replace it
        if used is None or used.key is not key:
            defense, required = BY_NAME[self.defense], None if self._keys is None else self._keys.require
            if required is not None and required != self.defense:
                raise KeyFileError(
                    f"its keyset requires {required}, and this transmitter's defense is {self.defense!r}",
                    f"defense={required!r} (--defense {required}), or a keyset for all: semseal keygen FILE --require any",
                )
            sets = scheme_sets(key.secret, self.bundle.h) if key and (defense.permutes or defense.substitutes) else None
            sealer = HeaderSealer(None if key is None else key.secret, self.bundle.digest, "" if key is None else key.id)
            used = self._used = _Used(key, sealer, sets)
        return used

    def _send_plain(self, engine: Engine, images: Images, used: _Used, session: bytes, counter: int) -> list[Frame]:
        on_air, scales = self._on_air(engine, images, index.unmoved(len(images), self.bundle.h))
        headers = [Header(self.defense, session, counter + i) for i in range(len(images))]
        return self._sealed(on_air, used, headers, scales)

    def _send_moved(self, engine: Engine, images: Images, used: _Used, session: bytes, counter: int) -> list[Frame]:
        batch, h = len(images), self.bundle.h
        swap, permute = BY_NAME[self.defense].substitutes, BY_NAME[self.defense].permutes
        headers: list[Header] = []
        tables = np.tile(index.identity(h), (batch + batch % 2, 1))
        permutations = tables.copy()
        swapped = np.zeros((batch + batch % 2, h), bool)
        for i in range(batch + batch % 2 if swap else batch):
            p = self._draw_choice() if permute else 0
            s = headers[i - 1].s if i % 2 else (self._draw_choice() if swap else 0)
            headers.append(Header(self.defense, session, counter + i, p, s, noise=i >= batch))
            permutations[i], swapped[i] = scheme(headers[i], used.sets, h)
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
        return self._sealed(rows, used, headers, scales)

    def _on_air(
        self, engine: Engine, images: Images, tables: index.Table
    ) -> tuple[NDArray[np.float32], Sequence[float | None]]:
        """The rows of every frame, gathered by ``tables`` [batch, h] of absolute rows, and the scale of every image."""
        if not self.bundle.has_scale:
            rows = engine(images, tables).reshape(*tables.shape, -1)
            if not np.isfinite(rows).all():
                whose = (tables // self.bundle.h)[~np.isfinite(rows).all(axis=2)]
                raise SendError("symbols are not finite", images=tuple(np.unique(whose).tolist()))
            return rows, [None] * len(images)
        rows = engine(images, tables, self._told(len(images))).reshape(*tables.shape, -1)
        image = tables // self.bundle.h  # whose a row is
        powers = np.bincount(image.ravel(), np.einsum("bij,bij->bi", rows, rows).ravel()) / self.bundle.n_symbols
        if not np.isfinite(powers).all():
            raise SendError("symbols are not finite", images=tuple(np.flatnonzero(~np.isfinite(powers)).tolist()))
        scales = 1 / np.sqrt(np.maximum(powers, channel.SILENCE))
        rows *= scales.astype(np.float32)[image, None]
        return rows, scales.tolist()

    def _send_mixed(self, engine: Engine, images: Images, used: _Used, session: bytes, counter: int) -> list[Frame]:
        assert used.key is not None  # __init__ refuses a defence without a key
        reals = 2 * self.bundle.n_symbols
        counters = range(counter, counter + len(images))
        headers = [Header(self.defense, session, counter) for counter in counters]
        told = [self._told(len(images))] if self.bundle.has_scale else []
        if isinstance(engine, FusedMix):
            packed = packet_keys(used.key.secret, session, counters, self.bundle.digest)
            on_air, louder = engine(images, *told, packed)
            bad = np.flatnonzero(~(np.isfinite(louder) & (louder > 0)))
            if len(bad):
                raise SendError("symbols are not finite", images=tuple(bad.tolist()))
            return self._sealed(on_air, used, headers, louder.tolist())
        keys = mix.derive_keys(used.key.secret, session, counters, self.bundle.digest, reals)
        given = engine(images, *told, *mix.transmitter_inputs(keys, reals))
        try:
            on_air, scales = mix.normalize(given)
        except EngineError as error:
            energies = np.einsum("bij,bij->b", given, given)  # those before the one that failed are at power 1 by now
            silent = np.flatnonzero(~((energies > 0) & np.isfinite(energies))).tolist()
            raise SendError(error.message, error.hint, tuple(silent) or tuple(range(len(images)))) from None
        return self._sealed(on_air, used, headers, scales.tolist())

    def _draw_choice(self) -> int:
        """Which of the schemes of a set, drawn by the operating system's generator. An audit draws otherwise."""
        return draw_choice()

    def _told(self, batch: int) -> NDArray[np.float32]:
        return np.full(batch, self._snr_db, np.float32)

    def _sealed(
        self, on_air: NDArray[np.float32], used: _Used, headers: list[Header], scales: Sequence[float | None]
    ) -> list[Frame]:
        """The frames of what an engine gave, one for each header."""
        symbols = on_air.reshape(len(on_air), -1).view(np.complex64)
        if self.bundle.has_scale:
            headers = [replace(header, scale=x, snr_db=self._snr_db) for header, x in zip(headers, scales, strict=True)]
        return [Frame(row, used.sealer.seal(header)) for row, header in zip(symbols, headers, strict=True)]

    def _checked(self, images: Images) -> Images:
        """The images, with what rounding left outside of 0..1 clipped. Raises ValueError for what ``send`` does not take."""
        if not isinstance(images, np.ndarray):
            raise ValueError(f"images must be a NumPy array, got {type(images).__name__}")
        pixels = images.dtype == np.uint8
        height, width = self.bundle.height, self.bundle.width
        wanted = (height, width, 3) if pixels else (3, height, width)
        if images.ndim != 4 or images.shape[1:] != wanted or len(images) == 0:
            kind = "uint8 images" if pixels else "images"
            raise ValueError(f"{kind} must be [batch, {', '.join(map(str, wanted))}], got {list(images.shape)}")
        if pixels:
            return images
        if images.dtype != np.float32:
            raise ValueError(
                f"images must be float32 in 0..1 or uint8 [batch, height, width, 3], got {images.dtype}; divide bytes by 255"
            )
        # one pass; the exact test, which -0.0 passes and NaN does not, is for what fails it
        if images.view(np.uint32).max() <= _ONE_BITS or (images.min() >= 0 and images.max() <= 1):
            return images
        if images.min() >= -MAX_ROUNDING and images.max() <= 1 + MAX_ROUNDING:
            return images.clip(0, 1)
        bad = next(i for i, x in enumerate(images) if not (x.min() >= -MAX_ROUNDING and x.max() <= 1 + MAX_ROUNDING))
        low, high = images[bad].min(), images[bad].max()
        advice = "; divide bytes by 255" if low >= 0 and 1.5 < high <= 255 else ""
        raise ValueError(f"images must be finite and in 0..1, got {low!s}..{high!s} in image {bad}{advice}")
