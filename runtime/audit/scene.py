"""Alice, Bob and Eve around one deployed bundle: what is sent, what is received, what a receiver makes of it.

    images ── Transmitter (engine, defence, fresh key stream) ── frames ── main channel ── what Bob decodes with the key
                                                                   └────── Eve's channel ── rows [groups, streams, h, w*c]

Engine, precision and both channels are those of the place that is attacked; whoever receives over a fading channel knows it and
equalises, as the link was trained. A model that is told the noise gets symbols with a gain of 1, and the noise that is left
in each frame after the equaliser (``semseal.runtime.channel``): Bob's receiver and Eve's decoder measure it, as the power of a
frame beyond 1. Over AWGN Eve knows hers.

A group is what belongs together on air: the two frames of a substituted pair (two streams), or a single frame (one).

Of a model whose scale is in the header, Eve knows each image's scale where nothing seals it: without a defence. Elsewhere she
takes the mean of her own images'. What Alice expects of the channel, and her own noise, she knows.
"""

import dataclasses
import warnings
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from semseal.runtime import channel, metrics, radio
from semseal.runtime.attacks.accelerator import best_device
from semseal.runtime.attacks.whitebox import DifferentiableTransmitter
from semseal.runtime.audit import on_air
from semseal.runtime.audit.digitalrival import DigitalLink
from semseal.runtime.audit.ends import Alice, Bob, secret_of
from semseal.runtime.audit.links import digital_link, links, taps
from semseal.runtime.audit.settings import Place, Question, Settings
from semseal.runtime.audit.surrogate import Surrogate, why_unsupported
from semseal.runtime.bundle import Bundle
from semseal.runtime.defense.defenses import BY_NAME, Defense
from semseal.runtime.defense.header import HeaderSealer
from semseal.runtime.defense.keys import derive
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import GraphError
from semseal.runtime.link import BrokenDefenseWarning, Frame
from torch import Tensor

QUIET_DB = 40.0  # an SNR above which noise is not told from none, as of ``semseal.runtime.link``
MIN_AGREEMENT_DB = 20.0  # of the surrogate with the engine; rounding in 8 bits leaves 25 dB and more
CPU_ENGINES = ("onnxruntime-cpu", "openvino")  # those that have threads to limit

Images = NDArray[np.float32]
Rows = NDArray[np.float32]
Symbols = NDArray[np.complex64]


class Scene:
    """One bundle at one place. ``images`` float32 [n, 3, height, width] are sent, n even; Eve owns ``attacker_images``."""

    def __init__(
        self,
        bundle: Bundle,
        images: Images,
        attacker_images: Images,
        settings: Settings,
        place: Place | None = None,
        threads: int | None = None,
        questions: tuple[Question, ...] = (),
        networks: Path | None = None,
    ) -> None:
        """``questions`` are about both kinds of images. ``place`` None: the bundle as it is deployed.

        ``threads`` limits those of an engine on the CPU (None: all cores). ``networks`` is the folder of trained networks that
        cells share; None: each process keeps its own.
        """
        # one layout, so that sums come out the same to the bit wherever they were loaded, and writable, as torch asks
        self.images, self.attacker_images = (np.require(part, requirements=("C", "W")) for part in (images, attacker_images))
        self.bundle = bundle
        self.place = links([bundle], settings)[0].places(settings)[0] if place is None else place
        self.main_snr, self.precision, self.engine = self.place.main_snr, self.place.precision, self.place.engine
        self.settings, self.questions, self.networks = settings, questions, networks
        self.key = secret_of("key", settings.seed, bundle.digest.hex(), *dataclasses.astuple(self.place))
        self._threads = threads if self.engine in CPU_ENGINES else None
        self._decode = open_engine(self.engine, bundle.program("receiver", self.precision, self.engine), threads=self._threads)
        self._alice: dict[str, Alice] = {}
        self._bob: Bob | None = None
        self.begin("")

    def begin(self, cell: str) -> None:
        """From here on keys, sessions and choices are those of ``cell``, which comes out the same whatever came before."""
        self._cell, self._drawn = cell, 0
        for name, alice in self._alice.items():
            alice.restart(self._secret(name))
        if self._bob is not None:
            self._bob.restart()

    def fresh_key(self) -> bytes:
        """A key that Eve practises with, never the same within a cell."""
        self._drawn += 1
        return self._secret(f"key {self._drawn}")

    def _secret(self, what: str) -> bytes:
        return secret_of(self.key.hex(), self._cell, what)

    @property
    def row_shape(self) -> tuple[int, int]:
        """h rows of w*c floats."""
        return self.bundle.h, self.bundle.row_width

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the features."""
        model = self.bundle.manifest["model"]
        return model["h"], model["w"], model["c"]

    @cached_property
    def surrogate(self) -> DifferentiableTransmitter:
        """The transmitter as Eve differentiates it, its symbols as loud as the graph gives them. Raises GraphError."""
        graph = Surrogate(self.bundle.graph("transmitter", self.precision))  # that its plan was built from, too
        if not self.bundle.has_scale:
            return graph
        return lambda images, index: graph(images, index, torch.full((len(images),), self.main_snr, device=images.device))

    @property
    def surrogate_on_air(self) -> DifferentiableTransmitter:
        """The same with symbols of unit power, as they are on air."""
        if not self.bundle.has_scale:
            return self.surrogate

        def on_air(images: Tensor, index: Tensor) -> Tensor:
            symbols = self.surrogate(images, index).float()
            return symbols * torch.rsqrt(2 * symbols.square().mean(dim=(1, 2), keepdim=True) + 1e-12)

        return on_air

    def surrogate_agreement_db(self) -> float:
        """How far the surrogate's symbols differ from the engine's: the difference in dB below the symbols, on four images.

        Raises GraphError where it is less than MIN_AGREEMENT_DB: what Eve then differentiates is not what Alice sends with.
        """
        few = self.attacker_images[:4]
        index = torch.arange(len(few) * self.bundle.h, dtype=torch.int32, device=best_device()).reshape(len(few), -1)
        with torch.no_grad():
            hers = self.surrogate_on_air(torch.from_numpy(few).to(best_device()), index).double().cpu().numpy().reshape(-1)
        theirs = self.clean_rows(few).reshape(-1).astype(np.float64)
        found = float(10 * np.log10(np.square(theirs).mean() / max(np.square(hers - theirs).mean(), 1e-20)))
        if not found >= MIN_AGREEMENT_DB:
            raise GraphError(
                f"the surrogate that they differentiate is only {found:.1f} dB from what {self.engine} {self.precision} sends, "
                f"and has to be {MIN_AGREEMENT_DB:g} dB",
                "audit another --precision or --engine",
            )
        return found

    def why_unsupported(self) -> str:
        """Why the transmitter cannot be differentiated, empty if it can."""
        told = [np.full(2, self.main_snr, np.float32)] if self.bundle.has_scale else []
        inputs = [self.attacker_images[:2], np.arange(2 * self.bundle.h, dtype=np.int32).reshape(2, -1), *told]
        deployed = open_engine(self.engine, self.bundle.program("transmitter", self.precision, self.engine))
        return why_unsupported(self.bundle.graph("transmitter", self.precision), deployed, inputs)

    def agreement_or_reason(self) -> tuple[float | None, str]:
        """``surrogate_agreement_db``; or None, and why attacks that differentiate the transmitter do not count here."""
        if reason := self.why_unsupported():
            return None, reason
        try:
            return self.surrogate_agreement_db(), ""
        except GraphError as error:
            return None, error.message

    @cached_property
    def scales(self) -> NDArray[np.float32]:
        """Of every image that is sent, as its header says; 1 for models without."""
        return self._scales(self.images)

    @cached_property
    def attacker_scales(self) -> NDArray[np.float32]:
        """The same of Eve's images."""
        return self._scales(self.attacker_images)

    def knows_scales(self, defense: Defense) -> bool:
        """Whether Eve reads the scale of every image that is sent: where nothing seals it."""
        return defense.name == "none" or defense.keyless

    def known_scales(self, defense: Defense) -> NDArray[np.float32]:
        """What Eve takes for the scale of every image that is sent."""
        if self.knows_scales(defense):
            return self.scales
        return np.full(len(self.images), np.exp(np.log(self.attacker_scales).mean()), np.float32)

    def _scales(self, images: Images) -> NDArray[np.float32]:
        if not self.bundle.has_scale:
            return np.ones(len(images), np.float32)
        sealer = HeaderSealer(self.key, self.bundle.digest)
        return np.array([sealer.open(frame.header).scale for frame in self.send(images, BY_NAME["none"])], np.float32)

    @cached_property
    def mean_picture(self) -> Images:
        """The mean of Eve's images, float32 [3, height, width]: her answer when she receives nothing."""
        mean: Images = self.attacker_images.mean(axis=0)
        return mean

    @cached_property
    def attacker_rows(self) -> Rows:
        """Clean rows of Eve's images, float32 [m, h, w*c]."""
        return self.clean_rows(self.attacker_images)

    def send(self, images: Images, defense: Defense, key: bytes | None = None) -> list[Frame]:
        """Frames of the real transmitter, each under a fresh key stream; ``key`` is Alice's unless Eve practises."""
        frames = self._transmitter(defense, key).send(images)
        if not defense.rival:
            return frames
        keys = [_image_key(key or self.key, frame) for frame in frames]
        if defense.digital:
            on_air = [self.digital.conceal(image, own) for image, own in zip(images, keys, strict=True)]
        else:
            assert defense.conceal is not None
            on_air = [defense.conceal(frame.symbols, own) for frame, own in zip(frames, keys, strict=True)]
        return [Frame(symbols, frame.header) for symbols, frame in zip(on_air, frames, strict=True)]

    @cached_property
    def digital(self) -> DigitalLink:
        """In as many channel uses, at Bob's SNR. Raises AuditError where it cannot be had."""
        return digital_link(self.bundle, self.place.main_channel, self.main_snr)

    def _transmitter(self, defense: Defense, key: bytes | None) -> Alice:
        """Alice's is kept, as its engine takes long to open, and uses every counter once; one under another key is not.

        A comparator has one of its own: its keys follow from the counters.
        """
        if key is None and defense.name in self._alice:
            return self._alice[defense.name]
        mode = "none" if defense.rival else defense.name
        self._drawn += key is not None
        secret = self._secret(defense.name if key is None else f"{defense.name} {self._drawn}")
        told = self.main_snr if self.bundle.has_scale else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BrokenDefenseWarning)  # that is what is measured here
            made = Alice(
                self.bundle.path,
                key or self.key,
                mode,
                secret,
                engine=self.engine,
                precision=self.precision,
                threads=self._threads,
                snr_db=told,
            )
        if key is None:
            self._alice[defense.name] = made
        return made

    def receive(self, symbols: Symbols, snr_db: float, rng: np.random.Generator, eve: bool = True) -> Symbols:
        """Symbols [n, N] as they come out of Eve's channel, or of Bob's, and of the equaliser behind it."""
        place, unbiased = self.place, self.bundle.has_scale
        kind, antennas = (place.eve_channel, place.eve_antennas) if eve else (place.main_channel, 1)
        if kind in radio.CHANNELS:
            return radio.transmit(kind, symbols, snr_db, rng, self.settings.radio, antennas, unbiased)
        return channel.transmit(kind, symbols, snr_db, rng, taps(self.bundle), unbiased, antennas)

    def add_noise(self, symbols: Symbols, snr_db: float, draw: int, eve: bool = True) -> Symbols:
        """The same; ``draw`` numbers the independent draws of one seed."""
        return self.receive(symbols, snr_db, np.random.default_rng([self.settings.seed, draw]), eve)

    def received_frames(self, images: Images, defense: Defense, snr_db: float, draw: int, key: bytes | None = None) -> Symbols:
        """What Eve receives of each image, complex64 [n, M], every transmission under a fresh key stream.

        What a defence without a key does, she has undone.
        """
        frames = self.send(images, defense, key)
        received = self.add_noise(np.stack([frame.symbols for frame in frames[: len(images)]]), snr_db, draw)
        return undone(received, defense) if defense.keyless else received

    def received_symbols(self, images: Images, defense: Defense, snr_db: float, draw: int, key: bytes | None = None) -> Symbols:
        """The same without what a defence has added at the end: complex64 [n, N], as decoders and inversions take it."""
        received = self.received_frames(images, defense, snr_db, draw, key)
        return np.ascontiguousarray(received[:, : self.bundle.n_symbols])

    def received_rows(self, images: Images, defense: Defense, snr_db: float, draw: int, key: bytes | None = None) -> Rows:
        """The same as rows, float32 [groups, streams, h, w*c]; image i belongs to group i // streams."""
        symbols = self.received_symbols(images, defense, snr_db, draw, key)
        return symbols.view(np.float32).reshape(-1, defense.streams, *self.row_shape)

    def packets(
        self,
        images: Images,
        partners: NDArray[np.integer],
        defense: Defense,
        snr_db: float,
        draw: int,
        key: bytes | None = None,
    ) -> Rows:
        """One packet for each image, float32 [n, streams, rows, w*c]: its own frame first, then that of a partner.

        All that was on air is in it, in h rows and as many more as a defence has added, the last filled up with zeros.
        ``partners`` are places among Eve's images, used where rows are swapped.
        """
        if defense.streams == 2:
            both = np.stack([images, self.attacker_images[np.resize(partners, len(images))]], axis=1)
            images = both.reshape(-1, *images.shape[1:])
        reals = self.received_frames(images, defense, snr_db, draw, key).view(np.float32)
        width = self.bundle.row_width
        whole = np.pad(reals, ((0, 0), (0, -reals.shape[1] % width)))
        return whole.reshape(-1, defense.streams, whole.shape[1] // width, width)

    def clean_rows(self, images: Images) -> Rows:
        """Undefended rows without noise, float32 [n, h, w*c]."""
        symbols = np.stack([frame.symbols for frame in self.send(images, BY_NAME["none"])])
        return symbols.view(np.float32).reshape(len(images), *self.row_shape)

    def decode(self, rows: Rows, scales: NDArray[np.float32], snr_db: float | None) -> Images:
        """Rows [n, h, w*c] through the deployed receiver as they are, which is Bob's decoder without a key.

        ``scales`` [n] is what Eve takes for theirs, ``snr_db`` her own; None: she measures what noise there is.
        """
        known = np.stack([scales, self._noise(rows, snr_db), np.full(len(rows), self.main_snr)], axis=1)
        out = []
        for chosen in np.array_split(np.arange(len(rows)), -(-len(rows) // 32)):
            part = np.ascontiguousarray(rows[chosen]).reshape(len(chosen), -1, 2)
            index = np.arange(len(part) * self.bundle.h, dtype=np.int32).reshape(len(part), -1)
            told = [known[chosen].astype(np.float32)] if self.bundle.has_scale else []
            out.append(self._decode(part, index, *told))
        return finite(np.concatenate(out))

    def _noise(self, rows: Rows, snr_db: float | None) -> NDArray[np.float64]:
        """The noise power in a symbol of each image, [n]: as Eve knows it, or as she measures it after her equaliser."""
        if snr_db is not None and self.place.eve_channel == "awgn":
            quietest = min(self.combined_db(snr_db), QUIET_DB)  # never 0, of which a model may take the logarithm
            return np.full(len(rows), 10 ** (-quietest / 10))
        power = 2 * np.square(rows, dtype=np.float64).mean(axis=(1, 2))
        measured: NDArray[np.float64] = np.maximum(power - 1, 10 ** (-QUIET_DB / 10))
        return measured

    def combined_db(self, snr_db: float) -> float:
        """Eve's SNR behind all of her antennas, on average, where that of one is ``snr_db``."""
        return snr_db + channel.antenna_gain_db(self.place.eve_antennas)

    def told_db(self, defense: Defense, snr_db: float) -> float | None:
        """Eve's SNR as far as she knows it; None where she has to measure it: behind a defence that she has undone."""
        return None if defense.keyless else snr_db

    def bob(self, defense: Defense) -> tuple[Images, on_air.OnAir]:
        """What Bob gets of all images with the key, at the main channel's SNR, and what was on air for it."""
        frames = self.send(self.images, defense)
        received = self._behind_main_channel(frames, 0)
        sent = np.stack([frame.symbols for frame in frames])
        return self.decoded_by_bob(defense, frames, received), on_air.measure(sent, received, self.settings.radio)

    def decoded_by_bob(self, defense: Defense, frames: list[Frame], received: Symbols) -> Images:
        """What Bob makes of ``frames`` whose symbols arrived as ``received`` [n, M]; of one that he refuses, a grey picture.

        Under mix he refuses one that is mostly noise, as in a deep fade, because it may be another's.
        """
        return self._opened(defense, frames, received)[0]

    def bob_sees(self, frames: list[Frame], defense: Defense, draw: int) -> tuple[Images, NDArray[np.bool_]]:
        """What Bob gets of frames, whoever sent them: pictures [n, 3, height, width], and which of the frames he takes.

        ``frames`` are all that belong together, a picture each. Of one that he refuses he has a grey picture.
        """
        return self._opened(defense, frames, self._behind_main_channel(frames, draw))

    def _behind_main_channel(self, frames: list[Frame], draw: int) -> Symbols:
        return self.add_noise(np.stack([frame.symbols for frame in frames]), self.main_snr, draw, eve=False)

    def _opened(self, defense: Defense, frames: list[Frame], received: Symbols) -> tuple[Images, NDArray[np.bool_]]:
        if defense.digital:
            keys = (_image_key(self.key, frame) for frame in frames)
            found = [self.digital.reveal(symbols, key) for symbols, key in zip(received, keys, strict=True)]
        else:
            found = [taken.image for taken in self._receiver.receive_each(self._revealed(defense, frames, received))]
        grey = np.full(self.images.shape[1:], 0.5, np.float32)
        pictures = finite(np.stack([grey if image is None else image for image in found]))
        return pictures, np.array([image is not None for image in found])

    def _revealed(self, defense: Defense, frames: list[Frame], received: Symbols) -> list[Frame]:
        """The frames with their received symbols, without what a comparator did to them."""
        if defense.reveal is not None:
            keys = (_image_key(self.key, frame) for frame in frames)
            received = np.stack([defense.reveal(symbols, key) for symbols, key in zip(received, keys, strict=True)])
        return [Frame(symbols, frame.header) for symbols, frame in zip(received, frames, strict=True)]

    @property
    def _receiver(self) -> Bob:
        """Bob's, opened when it is first needed."""
        if self._bob is None:
            self._bob = Bob(self.bundle.path, self.key, self.engine, self.precision, self._threads)
        return self._bob

    def best_order(self, answers: Images, streams: int) -> Images:
        """Eve's pictures of every group in the order that scores best: which path is which picture is not hers to know."""
        if streams == 1:
            return answers
        pairs = answers.reshape(-1, 2, *answers.shape[1:])
        swapped = pairs[:, ::-1]
        sent = self.images[: len(answers)]
        keep, turn = (metrics.psnr(sent, p.reshape(answers.shape)).reshape(-1, 2).sum(1) for p in (pairs, swapped))
        best: Images = np.where((keep >= turn)[:, None, None, None, None], pairs, swapped).reshape(answers.shape)
        return best


def finite(pictures: Images) -> Images:
    """Pictures that can be scored: grey where a decoder or a network gave no number, the end of the range for infinity."""
    found: Images = np.nan_to_num(pictures, nan=0.5, posinf=1.0, neginf=0.0)
    return found


def undone(received: Symbols, defense: Defense) -> Symbols:
    """Received symbols [n, M] without what a defence does that has no key."""
    assert defense.reveal is not None
    return np.stack([defense.reveal(symbols, b"") for symbols in received])


def _image_key(key: bytes, frame: Frame) -> bytes:
    """A comparator's key for one image; the header, which is sent with it, holds session and counter."""
    return derive(key, b"semseal/v1/comparator", frame.header)
