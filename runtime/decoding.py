"""Bob's half after the headers: symbols whose headers were opened, to images.

headers, symbols ── pairs found, inverse scheme index ─┬─ engine ── images in the order of the headers
                 └─ keys of mix                        ─┘

Every image is decoded for itself, but for the rows that substitution put into the other frame of its pair.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.bundle import Bundle
from semseal.runtime.defense import index, mix
from semseal.runtime.defense.defenses import BY_NAME
from semseal.runtime.defense.header import Header
from semseal.runtime.defense.schemes import SchemeSets, scheme_sets
from semseal.runtime.frame import power
from semseal.runtime.gpu.mix_kernel import packet_keys
from semseal.runtime.gpu.mixed import FusedMix
from semseal.runtime.owned import Engines
from semseal.runtime.pixels import separated

BATCH = 64  # images in one run of the engine; even, so that no pair is split

_QUIET_DB = 40.0  # an SNR above which noise is not told from none


class Opened(NamedTuple):
    """A frame whose header was opened, and its place in the call."""

    place: int
    header: Header
    symbols: NDArray[np.complex64]


class Decoded(NamedTuple):
    """The images of all frames but noise tensors, in the order of the headers."""

    images: NDArray[Any]
    is_picture: NDArray[np.bool_]  # those that are none came of symbols that do not belong to their header, or overflowed
    incomplete: list[int]  # images whose partner's frame is not there


class Decoder:
    """What turns opened frames of one bundle into images."""

    def __init__(self, bundle: Bundle, engines: Engines, snr_db: float | None) -> None:
        self._bundle, self._engines, self._snr_db = bundle, engines, snr_db
        self._sets: dict[bytes, SchemeSets] = {}

    def decode(self, opened: Sequence[Opened], secrets: Mapping[str, bytes], pixels: bool) -> Decoded:
        """Images float32 [batch, 3, height, width], or uint8 [batch, height, width, 3] if ``pixels``.

        ``secrets`` has the key of every id in the headers.
        """
        shown = [item for item in opened if not item.header.noise]
        mixed = np.array([BY_NAME[item.header.mode].mixes for item in shown], bool)
        if mixed.all() and len(mixed):
            return self._mixed(shown, secrets, pixels)
        if not mixed.any():
            return self._rows(opened, secrets, pixels)
        images = np.empty((len(shown), *self._shape(pixels)), np.uint8 if pixels else np.float32)
        is_picture = np.empty(len(shown), bool)
        images[mixed], is_picture[mixed], _ = self._mixed(
            [item for item, is_mixed in zip(shown, mixed, strict=True) if is_mixed], secrets, pixels
        )
        rows = self._rows([item for item in opened if not BY_NAME[item.header.mode].mixes], secrets, pixels)
        images[~mixed], is_picture[~mixed], lost = rows
        return Decoded(images, is_picture, np.flatnonzero(~mixed)[lost].tolist())

    def _scheme_sets(self, secret: bytes) -> SchemeSets:
        """Derived when a frame of the paper's modes comes: mix does without."""
        if secret not in self._sets:
            self._sets = {secret: scheme_sets(secret, self._bundle.h), **dict(list(self._sets.items())[:3])}
        return self._sets[secret]

    def _rows(self, opened: Sequence[Opened], secrets: Mapping[str, bytes], pixels: bool) -> Decoded:
        """Of frames whose rows were moved, if at all."""
        if not any(BY_NAME[item.header.mode].permutes or BY_NAME[item.header.mode].substitutes for item in opened):
            return self._plain(opened, pixels)
        h = self._bundle.h
        nothing = np.zeros(self._bundle.n_symbols, np.complex64)  # for what was not received
        symbols_of = {(header.key_id, header.session, header.counter): symbols for _, header, symbols in opened}
        wanted: list[tuple[Header, index.Table, list[NDArray[np.complex64]]]] = []  # of each image its table and its frames
        incomplete: list[int] = []
        for _, header, symbols in opened:
            if header.noise:
                continue
            defense = BY_NAME[header.mode]
            sets = self._scheme_sets(secrets[header.key_id]) if defense.permutes or defense.substitutes else None
            permutation, swapped = scheme(header, sets, h)
            frames = [symbols]
            if swapped.any():
                partner = symbols_of.get((header.key_id, header.session, header.counter ^ 1))
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
        return Decoded(*self._joined(parts, pixels), incomplete)

    def _plain(self, opened: Sequence[Opened], pixels: bool) -> Decoded:
        """Of frames whose rows are where they were."""
        shown = [item for item in opened if not item.header.noise]
        parts = []
        for start in range(0, len(shown), BATCH):
            part = shown[start : start + BATCH]
            known = self._side_information([(item.header, [item.symbols]) for item in part])
            rows = index.unmoved(len(part), self._bundle.h)
            parts.append(self._engines.open("receiver", pixels)(_reals([item.symbols for item in part]), rows, *known))
        return Decoded(*self._joined(parts, pixels), [])

    def _mixed(self, opened: Sequence[Opened], secrets: Mapping[str, bytes], pixels: bool) -> Decoded:
        reals = 2 * self._bundle.n_symbols
        engine = self._engines.open("receiver-mix", pixels)
        parts: list[NDArray[Any]] = []
        believed: list[NDArray[np.bool_]] = []
        for start in range(0, len(opened), BATCH):
            part = opened[start : start + BATCH]
            packets = [
                (secrets[key_id], session, [item.header.counter for item in group], self._bundle.digest)
                for (key_id, session), group in groupby(part, lambda item: (item.header.key_id, item.header.session))
            ]
            known = self._side_information([(item.header, [item.symbols]) for item in part])
            symbols = _reals([item.symbols for item in part])
            if isinstance(engine, FusedMix):
                image, found = engine(symbols, *known, np.concatenate([packet_keys(*packet) for packet in packets]))
                parts.append(image)
                believed.append(found >= mix.MIN_STRUCTURE)
                continue
            each = [mix.derive_keys(*packet, reals) for packet in packets]
            keys = each[0] if len(each) == 1 else mix.stack_keys(each)
            parts.append(engine(symbols, *known, *mix.receiver_inputs(keys, reals)))
        images, is_picture = self._joined(parts, pixels)
        return Decoded(images, is_picture & np.concatenate(believed) if believed else is_picture, [])

    def _side_information(self, images: list[tuple[Header, list[NDArray[np.complex64]]]]) -> list[NDArray[np.float32]]:
        """What the graph is told, for each image by its header and the frames that its rows came in; nothing for most models.

        float32 [batch, 3]: its scale, the noise power in a received symbol, the SNR in dB that Alice expected.
        """
        if not self._bundle.has_scale:
            return []
        return [np.array([[header.scale, self._noise(frames), header.snr_db] for header, frames in images], np.float32)]

    def _noise(self, frames: list[NDArray[np.complex64]]) -> float:
        """The noise power in a symbol: as told, or what the frames of a pair have, both together, beyond their power of 1."""
        if self._snr_db is not None:
            return float(10 ** (-self._snr_db / 10))
        return max(sum(power(symbols) for symbols in frames) / len(frames) - 1, 10 ** (-_QUIET_DB / 10))

    def _joined(self, parts: list[NDArray[Any]], pixels: bool) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """What the engine gave, as one array of images, and which of them are pictures."""
        if not parts:
            return np.empty((0, *self._shape(pixels)), np.uint8 if pixels else np.float32), np.ones(0, bool)
        told = [separated(part) if pixels else (part, np.ones(len(part), bool)) for part in parts]
        pictures = [picture for picture, _ in told]
        images = np.ascontiguousarray(pictures[0]) if len(parts) == 1 else np.concatenate(pictures)
        if not pixels:
            return images, ~np.isnan(images.min(axis=(1, 2, 3)))  # NaN where one pixel is
        return images, np.concatenate([ok for _, ok in told])

    def _shape(self, pixels: bool) -> tuple[int, int, int]:
        """That of one image."""
        height, width = self._bundle.height, self._bundle.width
        return (height, width, 3) if pixels else (3, height, width)


def scheme(header: Header, sets: SchemeSets | None, h: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
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


def _reals(symbols: Sequence[NDArray[np.complex64]]) -> NDArray[np.float32]:
    """Symbols [N] of some frames as the engines take them, [frames, N, 2]; those of a single frame are not copied."""
    stacked = np.ascontiguousarray(symbols[0])[None] if len(symbols) == 1 else np.stack(symbols)
    return stacked.view(np.float32).reshape(*stacked.shape, 2)
