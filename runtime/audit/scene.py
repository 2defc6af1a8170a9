"""Alice, Bob and Eve around one deployed bundle: what is sent, what is heard, what a receiver makes of it.

    pictures ── Transmitter (engine, defence, fresh V) ── frames ── channel ── what Bob decodes with the key
                                                             └───── Eve's channel ── rows [groups, streams, h, w*c]

A group is what belongs together on air: the two frames of a substituted pair (two streams), or a single frame (one).
"""

import warnings
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from semseal.runtime import channel, metrics
from semseal.runtime.bundle import Bundle
from semseal.runtime.defense.keys import generate_key
from semseal.runtime.engine import open_engine
from semseal.runtime.link import BrokenDefenseWarning, Frame, Receiver, Transmitter

ENGINE = "onnxruntime-cpu"

Images = NDArray[np.float32]
Rows = NDArray[np.float32]
Symbols = NDArray[np.complex64]


class Scene:
    """``images`` float32 [n, 3, height, width] are sent, n even; ``own`` [m, 3, height, width] are those of Eve."""

    def __init__(
        self, bundle: Bundle, images: Images, own: Images, precision: str = "fp32", seed: int = 0, threads: int | None = None
    ) -> None:
        self.bundle, self.images, self.own, self.precision, self.seed = bundle, images, own, precision, seed
        self.key, self._threads = generate_key(), threads
        self._decode = open_engine(ENGINE, bundle.graph("receiver", precision), threads=threads)

    @property
    def rows(self) -> tuple[int, int]:
        """h rows of w*c floats."""
        return self.bundle.h, self.bundle.row_width

    @staticmethod
    def streams(defense: str) -> int:
        """Frames in a group."""
        return 2 if "substitute" in defense else 1

    def send(self, images: Images, defense: str, key: bytes | None = None) -> list[Frame]:
        """Frames of the real transmitter, every transmission under a fresh V; ``key`` is Alice's unless Eve practises."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BrokenDefenseWarning)  # that is what is measured here
            alice = Transmitter(self.bundle.path, key or self.key, defense, precision=self.precision, threads=self._threads)
            return alice.send(images)

    def through(self, symbols: Symbols, snr_db: float, stream: int) -> Symbols:
        """Symbols [n, N] with channel noise; ``stream`` numbers the independent draws of one seed."""
        rng = np.random.default_rng([self.seed, stream])
        return channel.awgn(symbols, channel.draw_noise(len(symbols), symbols.shape[1], rng), snr_db)

    def heard(self, images: Images, defense: str, snr_db: float, stream: int, key: bytes | None = None) -> Symbols:
        """What Eve hears of each image, complex64 [n, N], every transmission under a fresh V."""
        frames = self.send(images, defense, key)
        symbols = self.through(np.stack([frame.symbols for frame in frames[: len(images)]]), snr_db, stream)
        return np.ascontiguousarray(symbols[:, : self.bundle.n_symbols])  # mixing may have added some

    def hear(self, images: Images, defense: str, snr_db: float, stream: int, key: bytes | None = None) -> Rows:
        """The same as rows, float32 [groups, streams, h, w*c]; image i belongs to group i // streams."""
        symbols = self.heard(images, defense, snr_db, stream, key)
        return symbols.view(np.float32).reshape(-1, self.streams(defense), *self.rows)

    def clean(self, images: Images) -> Rows:
        """Undefended rows without noise, float32 [n, h, w*c]."""
        symbols = np.stack([frame.symbols for frame in self.send(images, "none")])
        return symbols.view(np.float32).reshape(len(images), self.bundle.h, self.bundle.row_width)

    @cached_property
    def own_rows(self) -> Rows:
        """Clean rows of Eve's own pictures."""
        return self.clean(self.own)

    def decode(self, rows: Rows) -> Images:
        """Rows [n, h, w*c] through the deployed receiver as they are, which is Bob's decoder without a key."""
        out = []
        for part in np.array_split(rows, -(-len(rows) // 32)):
            index = np.arange(len(part) * self.bundle.h, dtype=np.int32).reshape(len(part), -1)
            out.append(self._decode(np.ascontiguousarray(part).reshape(len(part), -1, 2), index))
        return np.concatenate(out)

    def bob(self, defense: str) -> Images:
        """What Bob gets with the key, at the main channel's SNR."""
        frames = self.send(self.images, defense)
        heard = self.through(np.stack([frame.symbols for frame in frames]), self.bundle.snr_db, 0)
        received = [Frame(symbols, frame.header) for symbols, frame in zip(heard, frames, strict=True)]
        return Receiver(self.bundle.path, self.key, precision=self.precision, threads=self._threads).receive(received)

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
