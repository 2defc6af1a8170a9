"""The stages of a link, apart and together, each with the check of its answer.

    Alice   picture in ── keys or index ── transmitter (network, index or mix, in one call) ── power ── header    = send
    radio   channel
    Bob     header open ── keys or index back ── receiver ── picture out                                          = receive
            send ── channel ── receive                                                                            = link

The parts are what ``semseal.runtime.link`` calls, with its inputs; ``send`` and ``receive`` are the real ones. What they do
besides (checks, frames, counters, the replay window) is ``send`` less its parts. Pictures are made up: time does not depend on
what is in them. Answers are compared with those of the reference, fp32 without a defence.
"""

import functools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime import channel
from semseal.runtime.bench.floor import operations
from semseal.runtime.bench.measure import Stage
from semseal.runtime.bench.results import Where
from semseal.runtime.bundle import Bundle, open_bundle
from semseal.runtime.defense import index, mix
from semseal.runtime.defense.defenses import BY_NAME
from semseal.runtime.defense.header import Header, HeaderSealer, quantized_snr
from semseal.runtime.defense.schemes import draw_choice, scheme_sets
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import EngineError
from semseal.runtime.gpu.device import Engine, Tensor, open_device
from semseal.runtime.libraries import load_onnxruntime
from semseal.runtime.link import BATCH, BrokenDefenseWarning, Frame, Receiver, Transmitter
from semseal.runtime.metrics import psnr
from semseal.runtime.roundtrip import DEFENSE_TOLERANCE_DB, KEY, SNR_DB, TOLERANCE_DB, smooth_images

SESSION = bytes(16)
MAX_ERROR = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.3}  # of symbols, root mean square, where their power is 1
TEXTURE = 0.06
TOLD_DB = 0.1  # what a receiver gains that is told the noise, over one that measures it
TOGETHER = ("send", "receive", "link")
CPU_ENGINES = ("onnxruntime-cpu", "openvino")
NOT_COPIED = "the engine runs on the CPU: nothing is copied to a device"

Reals = NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """What is compared with: symbols of unit power [batch, 2N] and the PSNR in dB at SNR_DB, by fp32 without a defence."""

    images: Reals
    symbols: Reals
    psnr_db: float


@dataclass(frozen=True)
class Case:
    """One form of a link, opened: both ends, and the noise [batch + 2, N on air] that its channel adds."""

    where: Where
    bundle: Bundle
    owner: str | Path | None
    alice: Transmitter
    bob: Receiver
    noise: channel.Symbols
    reference: Reference

    @property
    def images(self) -> Reals:
        return self.reference.images

    @property
    def reals(self) -> int:
        """Of one image's features."""
        return 2 * self.bundle.n_symbols

    @property
    def told(self) -> list[Reals]:
        """What the transmitter is told of the channel; nothing for most models."""
        snr_db = quantized_snr(self.bundle.snr_db)
        return [np.full(self.where.batch, snr_db, np.float32)] if self.bundle.has_scale else []

    def engine(self, side: str, pixels: bool = False) -> Engine:
        where = self.where
        return open_engine(where.engine, self.bundle.program(side, where.precision, where.engine, pixels), where.threads)

    def check_pictures(self, given: NDArray[Any]) -> None:
        """Raises AssertionError unless the pictures are as good as the reference's."""
        if given.dtype == np.uint8:
            given = given.transpose(0, 3, 1, 2) / np.float32(255)
        found = float(psnr(self.images, given).mean())
        allowed = TOLERANCE_DB[self.where.precision] + (0 if self.where.defense == "none" else DEFENSE_TOLERANCE_DB)
        allowed += TOLD_DB if self.bundle.has_scale else 0
        wrong = f"{self.where}: pictures at {found:.2f} dB, the reference has {self.reference.psnr_db:.2f} dB"
        assert abs(found - self.reference.psnr_db) <= allowed, wrong


def open_case(where: Where, owner: str | Path | None = None) -> Case:
    """Both ends of the link. Raises what Transmitter and Receiver raise, and EngineError where no CPU engine is installed."""
    bundle = open_bundle(where.bundle, owner)
    key = None if where.defense == "none" else KEY
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BrokenDefenseWarning)
        alice = Transmitter(where.bundle, key, where.defense, where.engine, where.precision, where.threads, owner)
    bob = Receiver(where.bundle, key, where.engine, where.precision, where.threads, owner)
    reals = mix.padded_size(2 * bundle.n_symbols) if where.defense == "mix" else 2 * bundle.n_symbols
    noise = channel.draw_noise(where.batch + 2, reals // 2, np.random.default_rng(0))
    return Case(where, bundle, owner, alice, bob, noise, _reference(where.bundle, where.batch, owner))


@functools.lru_cache(maxsize=8)
def _reference(name: str, batch: int, owner: str | Path | None) -> Reference:
    try:
        load_onnxruntime("onnxruntime-cpu")
        engine = "onnxruntime-cpu"
    except EngineError:
        engine = "openvino"
    alice, bob = Transmitter(name, engine=engine, owner=owner), Receiver(name, engine=engine, owner=owner)
    images = pictures(batch, alice.bundle.height, alice.bundle.width)
    frames = alice.send(images)
    symbols = np.stack([frame.symbols for frame in frames])
    received = channel.awgn(symbols, channel.draw_noise(batch, symbols.shape[1], np.random.default_rng(0)), SNR_DB)
    answer = bob.receive([Frame(row, frame.header) for row, frame in zip(received, frames, strict=True)])
    return Reference(images, symbols.view(np.float32), float(psnr(images, answer).mean()))


def pictures(batch: int, height: int, width: int) -> Reals:
    """Float32 [batch, 3, height, width] in 0..1, each another: waves with a texture that no link carries whole.

    So they come through at some 30 dB, as photographs do, and not at 50, where every rounding shows.
    """
    texture = np.random.default_rng(0).uniform(-TEXTURE, TEXTURE, (batch, 3, height, width)).astype(np.float32)
    return (smooth_images(batch, height, width) + texture).clip(0, 1)


def stages(case: Case) -> dict[str, Stage]:
    """All stages of a link, by name."""
    if case.where.batch > BATCH:
        raise ValueError(f"an engine takes {BATCH} images at most in one run, got {case.where.batch}")
    parts = _mixing(case) if BY_NAME[case.where.defense].mixes else _moving(case)
    made = [*_pictures(case), *parts, *_headers(case), *_together(case)]
    if case.where.engine not in CPU_ENGINES:
        made += _copies(case)
    return {stage.name: stage for stage in made}


def _pictures(case: Case) -> list[Stage]:
    """Bytes to what the network takes and back, by NumPy; ``send bytes`` has it done in the graph."""
    images = case.images
    pixels = np.round(255 * images).astype(np.uint8).transpose(0, 2, 3, 1).copy()

    def to_floats() -> Reals:
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)

    def to_bytes() -> NDArray[np.uint8]:
        return np.ascontiguousarray(np.rint(images * np.float32(255)).astype(np.uint8).transpose(0, 2, 3, 1))

    def check_floats(given: Reals) -> None:
        assert np.abs(given - images).max() < 0.51 / 255, "bytes became other pictures"

    def check_bytes(given: NDArray[np.uint8]) -> None:
        assert np.array_equal(given, pixels), "pictures became other bytes"

    moved = images.nbytes + pixels.nbytes
    return [
        Stage("picture in", to_floats, check_floats, bytes=moved),
        Stage("picture out", to_bytes, check_bytes, bytes=moved),
        Stage(
            "send bytes",
            lambda: case.alice.send(pixels),
            functools.partial(_check_frames, case),
            calls=1,
            bytes=pixels.nbytes + case.reference.symbols.nbytes,
            operations=_operations(case, "transmitter"),
        ),
    ]


def _mixing(case: Case) -> list[Stage]:
    """Keys, networks and power under mix, with keys of one packet for each image."""
    counters, digest, reals = range(case.where.batch), case.bundle.digest, case.reals
    encode, decode = case.engine("transmitter-mix"), case.engine("receiver-mix")
    keys = mix.derive_keys(KEY, SESSION, counters, digest, reals)
    taken = (case.images, *case.told, *mix.transmitter_inputs(keys, reals))
    raw = encode(*taken).copy()
    on_air, scales = mix.normalize(raw.copy())
    received = _with_noise(case, on_air)
    known = _known(case, scales.tolist())
    given = (received, *known, *mix.receiver_inputs(keys, reals))

    def derive() -> list[Any]:
        return list(mix.transmitter_inputs(mix.derive_keys(KEY, SESSION, counters, digest, reals), reals))

    def derive_back() -> list[Any]:
        return list(mix.receiver_inputs(mix.derive_keys(KEY, SESSION, counters, digest, reals), reals))

    def check_symbols(symbols: Reals) -> None:
        unit = mix.normalize(symbols.copy())[0].reshape(case.where.batch, -1)
        _check_symbols(case, mix.unmix(unit, keys, reals))

    def check_power(answer: tuple[Reals, Any]) -> None:
        power = 2 * np.square(answer[0].reshape(len(raw), -1), dtype=np.float64).mean(axis=1)
        assert np.abs(power - 1).max() < 1e-6, f"power per symbol is {power.tolist()}"

    key_bytes = sum(array.nbytes for array in derive())
    return [
        Stage("keys", derive, _same(derive()), bytes=key_bytes),
        Stage("keys back", derive_back, _same(derive_back()), bytes=sum(array.nbytes for array in derive_back())),
        _network(case, "transmitter", encode, taken, raw.nbytes, check_symbols),
        _network(case, "receiver", decode, given, case.images.nbytes, case.check_pictures),
        Stage("power", mix.normalize, check_power, lambda: (raw.copy(),), bytes=2 * raw.nbytes),
    ]


def _moving(case: Case) -> list[Stage]:
    """Index and networks where rows stay or are moved within their image, which takes a graph as long as any other index."""
    batch, h, defense = case.where.batch, case.bundle.h, BY_NAME[case.where.defense]
    encode, decode = case.engine("transmitter"), case.engine("receiver")
    here = np.arange(batch)
    sets = scheme_sets(KEY, h)
    still = np.zeros(h, bool)
    order = sets.permutations[1] if defense.permutes else index.identity(h)
    there = index.absolute(np.tile(order, (batch, 1)), here, here)
    back = index.absolute(np.tile(index.invert(order, still), (batch, 1)), here, here)
    taken = (case.images, there, *case.told)
    symbols, scales = channel.to_unit_power(encode(*taken))
    given = (_with_noise(case, symbols), back, *_known(case, scales.tolist()))

    def compose() -> index.Table:
        tables = []
        for _ in here:
            moved = sets.permutations[draw_choice()] if defense.permutes else index.identity(h)
            swapped = sets.swapped[draw_choice()] if defense.substitutes else still
            tables.append(index.compose(moved, swapped, moved))
        return index.absolute(np.stack(tables), here, here ^ 1)

    def invert() -> index.Table:
        return index.absolute(np.stack([index.invert(order, still) for _ in here]), here, here)

    def check_symbols(symbols: Reals) -> None:
        rows = channel.to_unit_power(symbols)[0].reshape(batch * h, -1)
        _check_symbols(case, rows[back.ravel()].reshape(batch, -1))

    def check_index(table: index.Table) -> None:
        rows = table.reshape(batch, h) % h
        kinds = [set(row.tolist()) for row in rows]
        assert all(kind == set(range(h)) for kind in kinds), "an index does not hold every row once"

    indexed = [] if not (defense.permutes or defense.substitutes) else [
        Stage("index", compose, check_index),
        Stage("index back", invert, _same_array(back)),
    ]  # fmt: skip
    return [
        *indexed,
        _network(case, "transmitter", encode, taken, symbols.nbytes, check_symbols),
        _network(case, "receiver", decode, given, case.images.nbytes, case.check_pictures),
    ]


def _headers(case: Case) -> list[Stage]:
    where = case.where
    sealer = HeaderSealer(None if where.defense == "none" else KEY, case.bundle.digest)
    scale, snr_db = (1.0, quantized_snr(case.bundle.snr_db)) if case.bundle.has_scale else (None, 0.0)
    headers = [Header(where.defense, SESSION, i, scale=scale, snr_db=snr_db) for i in range(where.batch)]
    sealed = [sealer.seal(header) for header in headers]

    def check_sealed(given: list[bytes]) -> None:
        assert given == sealed, "a header was sealed to other bytes"

    def check_opened(given: list[Header]) -> None:
        assert [sealer.seal(header) for header in given] == sealed, "a header was opened to another"

    return [
        Stage("header", lambda: [sealer.seal(header) for header in headers], check_sealed),
        Stage("header open", lambda: [sealer.open(data) for data in sealed], check_opened),
    ]


def _together(case: Case) -> list[Stage]:
    """``send``, ``channel``, ``receive`` and the whole ``link``; Bob gets fresh frames each time, as he refuses old ones."""
    alice, bob, images = case.alice, case.bob, case.images

    def noisy(frames: list[Frame]) -> list[Frame]:
        symbols = np.stack([frame.symbols for frame in frames])
        received = channel.awgn(symbols, case.noise[: len(frames)], SNR_DB)
        return [Frame(row, frame.header) for row, frame in zip(received, frames, strict=True)]

    symbols = np.stack([frame.symbols for frame in alice.send(images)])

    def check_channel(received: channel.Symbols) -> None:
        power = float(np.square(np.abs(received - symbols), dtype=np.float64).mean())
        assert abs(power * 10 ** (SNR_DB / 10) - 1) < 0.05, f"the channel added noise of power {power:g}"

    noise = case.noise[: len(symbols)]
    network = sum(_operations(case, side) for side in ("transmitter", "receiver"))
    return [
        Stage("send", lambda: alice.send(images), functools.partial(_check_frames, case), calls=1,
              bytes=images.nbytes + symbols.nbytes, operations=_operations(case, "transmitter")),
        Stage("channel", lambda: channel.awgn(symbols, noise, SNR_DB), check_channel, bytes=3 * symbols.nbytes),
        Stage("receive", bob.receive, case.check_pictures, lambda: (noisy(alice.send(images)),), calls=1,
              bytes=images.nbytes + symbols.nbytes, operations=_operations(case, "receiver")),
        Stage("link", lambda: bob.receive(noisy(alice.send(images))), case.check_pictures, calls=2,
              bytes=2 * images.nbytes + 5 * symbols.nbytes, operations=network),
    ]  # fmt: skip


def _copies(case: Case) -> list[Stage]:
    """The images to the GPU and the symbols back, from and to pinned memory."""
    device = open_device(case.where.engine)
    stream = device.create_stream()
    image = Tensor(device, stream, case.images.shape)
    symbols = Tensor(device, stream, (case.where.batch, case.bundle.n_symbols, 2))

    def upload() -> None:
        image.upload(stream)
        stream.sync()

    def download() -> Reals:
        symbols.download(stream)
        stream.sync()
        return symbols.host

    def check_upload(_: None) -> None:
        image.host[...] = case.images
        upload()
        image.host[...] = 0
        image.download(stream)
        stream.sync()
        assert np.array_equal(image.host, case.images), "other pictures came back from the device"

    def check_download(_: Reals) -> None:
        expected = case.reference.symbols.reshape(symbols.host.shape)
        symbols.host[...] = expected
        symbols.upload(stream)
        stream.sync()
        symbols.host[...] = 0
        assert np.array_equal(download(), expected), "other symbols came back from the device"

    return [
        Stage("host to device", upload, check_upload, bytes=case.images.nbytes),
        Stage("device to host", download, check_download, bytes=case.reference.symbols.nbytes),
    ]


def _network(case: Case, side: str, engine: Engine, inputs: tuple[Any, ...], out: int, check: Any) -> Stage:
    moved = out + sum(array.nbytes for array in inputs) + case.bundle.manifest["files"][_graph(case, side)]["size"]
    return Stage(side, lambda: engine(*inputs), check, bytes=moved, operations=_operations(case, side), calls=1)


def _operations(case: Case, side: str) -> int:
    """Of the network for all images of the batch; 0 where they cannot be counted."""
    return case.where.batch * (operations(case.bundle.graph(_deployed(case, side), case.where.precision)) or 0)


def _graph(case: Case, side: str) -> str:
    return f"{side}.{case.where.precision}.onnx"


def _deployed(case: Case, side: str) -> str:
    return f"{side}-mix" if BY_NAME[case.where.defense].mixes else side


def _known(case: Case, scales: list[float]) -> list[Reals]:
    """What the receiver is told of each image: its scale, the noise, the SNR that Alice expected."""
    if not case.bundle.has_scale:
        return []
    snr_db = quantized_snr(case.bundle.snr_db)
    return [np.array([[scale, 10 ** (-SNR_DB / 10), snr_db] for scale in scales], np.float32)]


def _with_noise(case: Case, on_air: Reals) -> Reals:
    """Symbols as reals [batch, N on air, 2] at SNR_DB."""
    symbols = np.ascontiguousarray(on_air).reshape(len(on_air), -1).view(np.complex64)
    received = channel.awgn(symbols, case.noise[: len(symbols)], SNR_DB)
    return received.view(np.float32).reshape(len(on_air), -1, 2)


def _check_symbols(case: Case, symbols: Reals) -> None:
    """Symbols [batch, 2N] with the defence undone; each image's of any scale."""
    expected = case.reference.symbols
    gain = (symbols * expected).sum(axis=1, keepdims=True) / np.square(symbols).sum(axis=1, keepdims=True)
    error = 2 * np.square(symbols * gain - expected, dtype=np.float64).mean()
    assert error**0.5 < MAX_ERROR[case.where.precision], f"{case.where}: symbols are wrong by {error**0.5:g}"


def _check_frames(case: Case, frames: list[Frame]) -> None:
    """Noise added, received and compared."""
    symbols = channel.awgn(np.stack([frame.symbols for frame in frames]), case.noise[: len(frames)], SNR_DB)
    received = [Frame(row, frame.header) for row, frame in zip(symbols, frames, strict=True)]
    case.check_pictures(case.bob.receive(received))


def _same(expected: list[Any]) -> Any:
    def check(given: list[Any]) -> None:
        assert all(map(np.array_equal, given, expected)), "other keys were derived"

    return check


def _same_array(expected: NDArray[Any]) -> Any:
    def check(given: NDArray[Any]) -> None:
        assert np.array_equal(given, expected), "another index"

    return check
