"""Bob: which frames he takes, and what each of them gives.

    frames ── headers opened ── required mode, shape, power ── not seen before ── decoded ── counters marked as seen
                    │                      │                         │              │
                    └── refused ───────────┴─────────────────────────┴──────────────┘   costs this frame and no other

``receive_each`` gives a result for every frame. ``receive`` promises one array of images: where a frame gave none it raises
ReceiveError, which holds those results. A refused frame uses no counter up, so noise that is sent under the header of another
frame does not keep that out.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import DTypeLike, NDArray
from semseal.runtime.bundle import Bundle, open_bundle
from semseal.runtime.channel import MAX_SNR_DB
from semseal.runtime.decoding import Decoded, Decoder, Opened
from semseal.runtime.defense import mix
from semseal.runtime.defense.defenses import BY_NAME
from semseal.runtime.defense.header import Header, HeaderSealer, ReplayWindow
from semseal.runtime.errors import HeaderError, ReceiveError
from semseal.runtime.files import expanded
from semseal.runtime.frame import Frame, Reception, power
from semseal.runtime.owned import Engines, Locks
from semseal.runtime.trust.linkkeys import LinkKey, LinkKeys
from semseal.runtime.trust.newest import check_newest
from semseal.runtime.trust.replay import KeysetWindow

MAX_POWER = 1000.0  # mean of a received symbol; 1 was sent, so the rest is noise at -30 dB; more only where such an SNR is told

_PAIR = "hand over both frames of a pair in one call"


class _Refused(NamedTuple):
    """Why a frame gives nothing, its header if that could be opened, and whether another frame of the call has that too."""

    error: HeaderError
    header: Header | None = None
    again: bool = False


class _Taken(NamedTuple):
    """What became of the frames of one call."""

    opened: list[Opened]
    decoded: Decoded
    refused: dict[int, _Refused]  # by their place


class Receiver:
    """Bob. Learns the mode from the header; refuses what does not authenticate when he has a key."""

    _window: ReplayWindow | None  # None without a key, as anyone could fill it

    def __init__(
        self,
        bundle: str | Path,
        key: bytes | str | Path | None = None,
        engine: str = "onnxruntime-cpu",
        precision: str = "fp32",
        threads: int | None = None,
        owner: str | Path | None = None,
        snr_db: float | None = None,
        require: str | None = None,
        state: str | Path | None = None,
        allow_older: bool = False,
    ) -> None:
        """Arguments as those of Transmitter; the keys of a keyset are all that are not revoked, each within its dates.

        ``snr_db`` is that of the received symbols, for a model that is told. None: each frame's is measured, as what its power
        exceeds 1 by, which is that of the symbols, exactly. So it must be given where an equaliser changes the power.

        ``require`` "mix" refuses frames of every other mode, also those that were sealed with the key; None takes them all,
        unless the keyset requires it. ``state``, with a keyset, is a file that remembers what was received, so that a frame is
        refused after a restart too (``semseal.runtime.trust.replay``).

        Raises BundleError, EngineError or KeyFileError, ValueError as Transmitter.
        """
        if require not in (None, "mix"):
            raise ValueError(f"require must be 'mix' or None, got {require!r}: no other defence keeps a picture from Eve")
        if require is not None and key is None:
            raise ValueError(f"require={require!r} needs a key: pass key=, 32 bytes, a key file or a keyset")
        self._use_key(key)
        if state is not None and (self._keys is None or not self._keys.in_keyset):
            raise ValueError("state= needs a keyset: the senders of another key have no age, so none could ever be forgotten")
        self.bundle = open_bundle(bundle, owner)
        if self._keys is not None and self._keys.in_keyset and not allow_older:
            check_newest(self.bundle, owner)
        check_snr(self.bundle, snr_db)
        self._require = require
        self._max_power = MAX_POWER if snr_db is None else max(MAX_POWER, 10 * (1 + float(10 ** (-snr_db / 10))))
        self._engines = Engines(self.bundle, engine, precision, threads)
        if self._keys is None:
            self._engines.open("receiver", pixels=False)
        else:
            if self._required is None:
                self._engines.check("receiver")  # opened when such a frame comes
            self._engines.open("receiver-mix", pixels=False)
        self._decoder = Decoder(self.bundle, self._engines, snr_db)
        if self._keys is not None and self._keys.in_keyset:
            self._window = KeysetWindow(None if state is None else expanded(state).absolute())
        self._own = Locks()
        self.incomplete: list[int] = []

    def __repr__(self) -> str:
        return f"Receiver({self.bundle.name!r}, key {'none' if self._keys is None else 'given'}, {self._engines!r})"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """What copy.copy, copy.deepcopy and pickle ask for."""
        raise TypeError(
            "a Receiver cannot be copied or pickled: the copy would take frames again that this one has received; "
            "open another Receiver(...) for another link"
        )

    def receive(self, frames: Sequence[Frame], dtype: DTypeLike = "float32") -> NDArray[Any]:
        """Received and equalised frames, in any order, to images in the order sent.

        ``dtype`` "float32": images [batch, 3, height, width] in 0..1; "uint8": [batch, height, width, 3], which are those
        times 255, rounded.

        Both frames of a pair must be in the same call. A noise tensor yields no image. Where the other frame of a pair
        is missing, the rows that it carried are zero in this image, a warning says so, and ``incomplete`` lists the
        image's place in the result.

        Raises ReceiveError, a HeaderError, where a frame gives no picture: its header is not authentic or, with a key, was
        seen before, its mode is not the one required, its symbols are of another shape or absurd power, or do not belong to
        its header. The error's ``receptions`` has the pictures of all others. Their counters are used up, those of refused
        frames are not.
        """
        pixels = _is_uint8(dtype)
        with self._own.lock():
            taken = self._take(frames, range(len(frames)), pixels)
            receptions = self._receptions(frames, taken, pixels) if taken.refused else []
        if receptions:
            errors = [reception.error for reception in receptions if reception.image is None and reception.error is not None]
            others = f" (and {len(errors) - 1} more of {len(frames)} frames)" if len(errors) > 1 else ""
            raise ReceiveError(errors[0].message + others, errors[0].hint, tuple(receptions))
        self.incomplete = taken.decoded.incomplete
        if self.incomplete:
            lacking = f"the other frame of the pair did not arrive for images {self.incomplete}: their swapped rows are missing"
            warnings.warn(f"{lacking}; {_PAIR}", stacklevel=2)
        return taken.decoded.images

    def receive_each(self, frames: Sequence[Frame], dtype: DTypeLike = "float32") -> list[Reception]:
        """As ``receive``, but a result for each frame, in the order of ``frames``: its image, or why there is none.

        Raises nothing that a frame off the air can cause. An image whose partner's frame was lost or refused has an error too,
        which says so, and its place is in ``incomplete``.
        """
        pixels = _is_uint8(dtype)
        with self._own.lock():
            return self._receptions(frames, self._take(frames, range(len(frames)), pixels), pixels)

    def _take(self, frames: Sequence[Frame], places: Sequence[int], pixels: bool) -> _Taken:
        """Decode the frames at these places, and mark the counters of those that gave something as seen."""
        sealers = self._sealers()
        opened, refused = self._admit(frames, places, [sealer for _, sealer in sealers])
        decoded = self._decoder.decode(opened, {key.id: key.secret for key, _ in sealers if key is not None}, pixels)
        if not decoded.is_picture.all():
            shown = [item for item in opened if not item.header.noise]
            for place, header, _ in (shown[i] for i in np.flatnonzero(~decoded.is_picture)):
                what = f"frame {place}: its symbols are too large: its picture is not finite"
                if BY_NAME[header.mode].mixes:
                    what = (
                        f"frame {place}: its symbols were mixed under another key or counter than its header says: "
                        "headers and symbols do not belong together"
                    )
                refused[place] = _Refused(HeaderError(what, "send the picture again"), header)
        if self._window is not None:
            for item in opened:
                if item.place not in refused:
                    self._window.accept(item.header)
        return _Taken(opened, decoded, refused)

    def _use_key(self, key: bytes | str | Path | None) -> None:
        """From here on frames are received under this key, and nothing is kept of what was: neither keys nor counters.

        After ``__init__`` only audits call it, with keys of 32 bytes: a Receiver in use would take frames twice.
        """
        self._keys = None if key is None else LinkKeys(key, sends=False)
        self._made: tuple[tuple[LinkKey, HeaderSealer], ...] = ()
        self._window = None if key is None else ReplayWindow()

    def _sealers(self) -> tuple[tuple[LinkKey | None, HeaderSealer], ...]:
        """The keys that frames are received under now, each with what opens its headers; one that opens those of no key."""
        if self._keys is None:
            return ((None, HeaderSealer(None, self.bundle.digest)),)
        made = dict(self._made)
        self._made = tuple(
            (key, made.get(key) or HeaderSealer(key.secret, self.bundle.digest, key.id)) for key in self._keys.receiving()
        )
        return self._made

    @property
    def _required(self) -> str | None:
        return self._require or (None if self._keys is None else self._keys.require)

    def _admit(
        self, frames: Sequence[Frame], places: Sequence[int], sealers: Sequence[HeaderSealer]
    ) -> tuple[list[Opened], dict[int, _Refused]]:
        """Headers and symbols in the order sent, all of them authentic, new and of sane power; and why the others are not."""
        opened: list[Opened] = []
        refused: dict[int, _Refused] = {}
        seen: set[tuple[tuple[str, bytes], int]] = set()
        for i in places:
            header, again = None, False
            try:
                header = _opened(frames[i].header, sealers)
                self._check(header, frames[i].symbols)
                again = _key(header) in seen
                if again or (self._window is not None and not self._window.fresh(header)):
                    raise HeaderError(
                        "this header was received before, or is too old to tell: replay refused", "send the picture again"
                    )
            except HeaderError as error:
                refused[i] = _Refused(HeaderError(f"frame {i}: {error.message}", error.hint), header, again)
                continue
            seen.add(_key(header))
            opened.append(Opened(i, header, frames[i].symbols))
        first = {item.header.sender: i for i, item in reversed(list(enumerate(opened)))}
        return sorted(opened, key=lambda item: (first[item.header.sender], item.header.counter)), refused

    def _check(self, header: Header, symbols: NDArray[np.complex64]) -> None:
        """Raises HeaderError for what an authentic header does not let pass; nothing has been used up then."""
        if (required := self._required) is not None and header.mode != required:
            raise HeaderError(
                f"its defence is {header.mode}, and this receiver requires {required}",
                f"send it by Transmitter(..., defense={required!r}), or semseal send --defense {required}",
            )
        wanted = self.bundle.n_symbols
        if BY_NAME[header.mode].mixes:
            wanted = mix.padded_size(2 * wanted) // 2
        if symbols.shape != (wanted,) or symbols.dtype != np.complex64:
            raise HeaderError(
                f"symbols must be complex64 [{wanted}], got {symbols.dtype} {list(symbols.shape)}",
                "use one bundle at both ends, and hand over all symbols of a frame",
            )
        if self.bundle.has_scale and header.scale is None and not header.noise:
            raise HeaderError(
                "its header carries no scale, which this model's receiver needs",
                "send it with the same bundle, by a Transmitter of this version",
            )
        if not (found := power(symbols)) <= self._max_power:  # never true for NaN
            raise HeaderError(
                f"symbols must be finite and of mean power {self._max_power:g} at most, got {found:g}; was it equalised?",
                "equalise what is received, so that of its mean power what was sent has 1",
            )

    def _receptions(self, frames: Sequence[Frame], taken: _Taken, pixels: bool) -> list[Reception]:
        """What each frame gave. Of several with one header, those behind a frame that gave nothing have their turn here."""
        receptions = [Reception()] * len(frames)
        while True:
            for place, refused in taken.refused.items():
                receptions[place] = Reception(None, refused.error)
            for place, reception in _pictures(taken):
                receptions[place] = reception
            given = {_key(item.header) for item in taken.opened if item.place not in taken.refused}
            waiting = [i for i, (_, header, again) in taken.refused.items() if header and again and _key(header) not in given]
            if not waiting:
                break
            taken = self._take(frames, waiting, pixels)
        self.incomplete = [i for i, reception in enumerate(receptions) if reception.image is not None and reception.error]
        return receptions


def _pictures(taken: _Taken) -> list[tuple[int, Reception]]:
    """The images that were decoded, by the place of their frame."""
    shown = [item for item in taken.opened if not item.header.noise]
    culprits = {_key(header): place for place, (_, header, _) in taken.refused.items() if header}
    receptions = []
    for i, (place, header, _) in enumerate(shown):
        if not taken.decoded.is_picture[i]:
            continue
        lacks = None
        if i in taken.decoded.incomplete:
            culprit = culprits.get((header.sender, header.counter ^ 1))
            why = "did not arrive" if culprit is None else f"is frame {culprit}, which was refused"
            lacks = HeaderError(
                f"frame {place}: the other frame of its pair {why}: the rows that it carried are missing", _PAIR
            )
        receptions.append((place, Reception(taken.decoded.images[i], lacks)))
    return receptions


def _opened(data: bytes, sealers: Sequence[HeaderSealer]) -> Header:
    """The header that one of the keys opens. Raises HeaderError, that of the first key."""
    refused = HeaderError(
        "no key of the keyset may be used now: all are revoked or outside of their dates", "semseal keys list FILE shows them"
    )
    for i, sealer in enumerate(sealers):
        try:
            return sealer.open(data)
        except HeaderError as error:
            refused = error if i == 0 else refused
    raise refused


def _key(header: Header) -> tuple[tuple[str, bytes], int]:
    return header.sender, header.counter


def _is_uint8(dtype: DTypeLike) -> bool:
    if dtype not in ("float32", "uint8", np.float32, np.uint8):
        raise ValueError(f"dtype must be float32 or uint8, got {dtype!r}")
    return np.dtype(dtype) == np.uint8


def check_snr(bundle: Bundle, snr_db: float | None) -> None:
    """Raises ValueError for an SNR that a model is not told, or that is none."""
    if snr_db is not None and not bundle.has_scale:
        raise ValueError(f"{bundle.name} is for an SNR of {bundle.snr_db:g} dB and is told none: leave snr_db out")
    if snr_db is not None and not abs(snr_db) <= MAX_SNR_DB:
        raise ValueError(f"snr_db must be in -{MAX_SNR_DB:g}..{MAX_SNR_DB:g}, got {snr_db}")
