"""For on_gpu.py: what a caller of the link waits for on this machine's GPU, bytes in and symbols out, and the other way."""

import dataclasses
import itertools
import time
import warnings
from typing import Any

import numpy as np
from semseal.runtime.bench.measure import Stage, interleave, paired, summarize
from semseal.runtime.bundle import packaged_bundle
from semseal.runtime.link import Receiver, Transmitter
from semseal.runtime.owned import Engines
from semseal.runtime.roundtrip import KEY, smooth_images

BUNDLE = packaged_bundle("photos-10db")
MANY = 64
MIN_RATE = 0.8  # goal: of images with mix against none
SAMPLES = 1000


def pictures(count: int, height: int, width: int) -> Any:
    return np.ascontiguousarray((smooth_images(count, height, width) * 255).astype(np.uint8).transpose(0, 2, 3, 1))


def requests(engine: str, precision: str) -> dict[str, Any]:
    """p50 and more of one picture: the bare engine, and ``send`` and ``receive`` undefended and with mix."""
    ends = {defense: (Transmitter(BUNDLE, key, defense, engine, precision), Receiver(BUNDLE, key, engine, precision))
            for defense, key in (("none", None), ("mix", KEY))}  # fmt: skip
    bundle = ends["none"][0].bundle
    images = itertools.cycle([picture[None] for picture in pictures(8, bundle.height, bundle.width)])
    opened_by = Engines(bundle, engine, precision, None)
    bare, back = (opened_by.open(side, pixels=True) for side in ("transmitter", "receiver"))
    index = np.arange(bundle.h, dtype=np.int32)[None]
    stages = {"engine": Stage("engine", lambda image: bare(image, index), prepare=lambda: (next(images),))}
    for defense, (alice, bob) in ends.items():
        stages[f"send {defense}"] = Stage("send", alice.send, prepare=lambda: (next(images),))
        stages[f"receive {defense}"] = Stage(
            "receive",
            lambda frames, bob=bob: bob.receive(frames, "uint8"),
            prepare=lambda alice=alice: (alice.send(next(images)),),
        )
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as told:  # an engine that takes another way than it should says so
        warnings.simplefilter("always")
        for stage in stages.values():
            stage.verify()
        symbols = [bare(next(images), index) for _ in range(8)]
        loops = {
            "transmitter": in_a_loop(bare, [(next(images), index) for _ in range(8)]),
            "receiver": in_a_loop(back, [(some, index) for some in symbols]),
        }
    opened = time.perf_counter() - began
    taken = interleave(stages, SAMPLES, 20)
    said = {"first_s": opened, "warnings": [str(warning.message) for warning in told], "engine_loop_us": loops}
    return said | {name: dataclasses.asdict(summarize(values)) for name, values in taken.items()}


def in_a_loop(run: Any, given: list[Any]) -> float:
    """p50 in microseconds of the engine with nothing beside it, as gpu_torch.py takes torch's."""
    taken = []
    for data in itertools.islice(itertools.cycle(given), SAMPLES + 50):
        start = time.perf_counter()
        run(*data)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[50:])) * 1e6


def many(engine: str, precision: str) -> dict[str, Any]:
    """Seconds of ``send`` and ``receive`` of MANY pictures at once, with mix and without, in turns."""
    stages = {}
    for defense, key in (("none", None), ("mix", KEY)):
        alice, bob = Transmitter(BUNDLE, key, defense, engine, precision), Receiver(BUNDLE, key, engine, precision)
        images = pictures(MANY, alice.bundle.height, alice.bundle.width)
        stages[f"send {defense}"] = Stage("send", lambda alice=alice, images=images: alice.send(images))
        stages[f"receive {defense}"] = Stage(
            "receive",
            lambda frames, bob=bob: bob.receive(frames, "uint8"),
            prepare=lambda alice=alice, images=images: (alice.send(images),),
        )
    taken = interleave(stages, 40, 3)
    rows: dict[str, Any] = {name: dataclasses.asdict(summarize(values)) for name, values in taken.items()}
    for side in ("send", "receive"):
        ratio = paired(taken[f"{side} mix"], taken[f"{side} none"])
        rows[f"{side} rate of mix"] = {**dataclasses.asdict(ratio), "goal": MIN_RATE, "met": ratio.value >= MIN_RATE}
    return rows
