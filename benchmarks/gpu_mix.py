"""For on_gpu.py: the mix kernels on this machine's GPU, against the NumPy reference, and their time beside that of a copy."""

import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from gpu_scheme import rotation, seconds
from semseal.runtime.defense import mix
from semseal.runtime.gpu import mix_kernel
from semseal.runtime.gpu.device import Tensor, capture
from semseal.runtime.gpu.mix_kernel import (
    MAX_LARGEST_OFF,
    MAX_RMS_OFF,
    MixKernel,
    MixLayout,
    StructureKernel,
    packet_keys,
    rounding,
)
from semseal.runtime.gpu.mix_source import rest_may_be_taken
from shared import failures

PAPER, CHANNELS, BATCH = 32400, 16, 1024
FLOAT, HALF = np.dtype(np.float32), np.dtype(np.float16)
MIN_SHARE_OF_COPY = 0.45  # goal: of the copy's bytes per second
MAX_ONE_US = 10.0  # goal: for one image, keys made on the device
KEY, SESSION, DIGEST = bytes(range(32)), bytes(range(16)), bytes(range(32, 64))
# reals, channels, blocks of a cluster (0: several launches), whether each has a multiprocessor for itself, features
Variant = tuple[int, int, int, bool, Any]
CHECKED: list[Variant] = [
    (192, 4, 8, True, FLOAT), (192, 4, 2, False, HALF), (192, 1, 0, False, FLOAT), (2048, 16, 4, False, FLOAT),
    (2048, 16, 0, False, HALF), (10000, 8, 0, False, FLOAT), (9024, 1, 8, True, FLOAT), (PAPER, 16, 4, False, HALF),
    (PAPER, 1, 8, True, FLOAT), (PAPER, 1, 4, False, FLOAT), (100000, 4, 8, False, FLOAT), (200000, 1, 0, False, FLOAT),
    (16320, 16, 8, True, FLOAT), (16320, 1, 1, False, FLOAT), (16320, 16, 0, False, FLOAT),
]  # fmt: skip
TIMED: list[Variant] = [
    (PAPER, CHANNELS, blocks, alone, FLOAT)
    for blocks, alone in ((16, True), (8, True), (4, False), (2, False), (1, False), (0, False))
]
BOTH = list(dict.fromkeys([*CHECKED, *TIMED]))


def layout_of(variant: Variant) -> MixLayout:
    reals, channels, together, alone, _ = variant
    if not together:
        return mix_kernel.launches_layout(reals, channels)
    return mix_kernel.cluster_layout(reals, together, channels, alone)


def named(variant: Variant) -> dict[str, Any]:
    reals, channels, together, alone, dtype = variant
    return {"reals": reals, "channels": channels, "blocks": together, "alone": alone, "features": dtype.name}


class Bench:
    """A mix kernel and buffers for a batch: features -> on air -> features again."""

    def __init__(self, device: Any, stream: Any, kernel: MixKernel, reals: int, batch: int, channels: int = CHANNELS) -> None:
        self.kernel, self.batch = kernel, batch
        self.features = Tensor(device, stream, (batch, channels, reals // channels), kernel.dtype)
        self.received = Tensor(device, stream, (batch, channels, reals // channels), kernel.dtype)
        self.keys = Tensor(device, stream, (batch, mix_kernel.KEY_WORDS), np.uint32)
        self.on_air = Tensor(device, stream, (batch, mix.padded_size(reals)))
        self.scales = Tensor(device, stream, (batch + 64,))
        self.work = kernel.workspace(batch, stream)

    def mix(self, where: Any) -> None:
        self.kernel.mix(
            where, self.features.device, self.keys.device, self.on_air.device, self.scales.device, self.work, self.batch
        )

    def unmix(self, where: Any) -> None:
        self.kernel.unmix(where, self.on_air.device, self.keys.device, self.received.device, self.work, self.batch)

    def upload(self, where: Any) -> None:
        self.features.upload(where)
        self.keys.upload(where)

    def everything(self, where: Any) -> None:
        self.upload(where)
        self.mix(where)
        self.unmix(where)
        for tensor in (self.on_air, self.scales, self.received):
            tensor.download(where)


Kernels = dict[Variant, MixKernel | str]


def compiled(device: Any) -> Kernels:
    """All kernels, compiled side by side; of those that cannot be had why."""

    def one(variant: Variant) -> MixKernel | str:
        device.set_current()
        try:
            return MixKernel(device, *variant[:2], variant[4], layout_of(variant))
        except Exception as error:  # of the compiler or the driver
            return f"{type(error).__name__}: {error}"

    with ThreadPoolExecutor(8) as pool:
        return dict(zip(BOTH, pool.map(one, BOTH), strict=True))


def check_mix(device: Any, stream: Any, kernels: Kernels) -> list[dict[str, Any]]:
    """Mix and unmix in one captured graph, replayed with new pictures and new keys, against the reference."""
    rows: list[dict[str, Any]] = []
    for variant, kernel in kernels.items():
        if isinstance(kernel, str):
            refused = {"value": None, "reason": kernel, "met": variant[2] > 0}  # no clusters, or no room
            rows.append(named(variant) | refused)
            continue
        for batch in (1, 5):
            try:
                found = _differences(device, stream, kernel, *variant[:2], batch)
            except Exception as error:  # of the driver: the others may still say something
                found = {"value": None, "reason": f"{type(error).__name__}: {error}", "met": False}
            rows.append({**named(variant), "batch": batch, **found})
    wrong = [row for row in rows if not row["met"]]
    if wrong:
        failures.append(f"mix: {len(wrong)} of {len(rows)} differ: {wrong[:3]}")
    return rows


def _differences(device: Any, stream: Any, kernel: MixKernel, reals: int, channels: int, batch: int) -> dict[str, Any]:
    bench, rng = Bench(device, stream, kernel, reals, batch, channels), np.random.default_rng(reals + batch)
    graph = capture(stream, bench.everything)
    count, replays = batch * mix.padded_size(reals), 2
    single, half = rounding(count), kernel.dtype == np.float16
    bounds = {"rms": MAX_RMS_OFF, "single": single, "taker": MAX_LARGEST_OFF, "received": single, "power_off": 1e-8,
              "scale_off": 1e-2 if half else 1e-5}  # fmt: skip
    found = dict.fromkeys(bounds, 0.0)
    for replay in range(replays):
        x = rng.standard_normal((batch, reals)).astype(kernel.dtype).astype(np.float32) * (1 + replay)
        unit = x / np.sqrt(2 * np.square(x, dtype=np.float64).mean(axis=1, keepdims=True))
        counters = [int(c) for c in rng.integers(0, 2**63, batch)]
        bench.features.host[...] = x.reshape(batch, -1, channels).swapaxes(1, 2)
        bench.keys.host[...] = packet_keys(KEY, SESSION, counters, DIGEST)
        bench.on_air.host[...] = bench.received.host[...] = np.nan
        graph.launch(stream)
        stream.sync()
        keys = mix.derive_keys(KEY, SESSION, counters, DIGEST, reals)
        on_air = bench.on_air.host
        off, here = np.abs(on_air - mix.mix(unit.astype(np.float32), keys)), {}
        if rest_may_be_taken(*mix.factors(reals)):
            takes = np.arange(batch), np.abs(on_air).argmax(axis=1)
            here["taker"] = off[takes].max()
            off[takes] = 0
        here |= {"single": off.max(), "rms": np.sqrt(np.square(off, dtype=np.float64).mean())}
        power = np.square(on_air, dtype=np.float64).sum(axis=1) / (on_air.shape[1] / 2)
        here["power_off"] = np.abs(power - 1).max()
        back = bench.received.host.astype(np.float32).swapaxes(1, 2).reshape(batch, -1)
        expected = mix.unmix(on_air.copy(), keys, reals)
        here["received"] = (np.abs(back - expected) - (2.0**-10 if half else 0) * np.abs(expected)).max()
        here["scale_off"] = np.abs(bench.scales.host[:batch, None] * x - back).max()
        found |= {name: float(np.maximum(found[name], value)) for name, value in here.items()}  # NaN stays
    missed = [f"{name} {found[name]:.3g} > {bound:.3g}" for name, bound in bounds.items() if not found[name] <= bound]
    return {**found, "bounds": bounds, "values": count, "replays": replays, "missed": missed, "met": not missed}


def mix_one(device: Any, stream: Any, kernels: Kernels) -> list[dict[str, Any]]:
    """Microseconds that a kernel adds to a CUDA graph for one image: a chain of 100 of them against one of 50."""
    rows: list[dict[str, Any]] = []
    for variant in TIMED:
        kernel = kernels[variant]
        if isinstance(kernel, str):
            rows.append(named(variant) | {"value": None, "reason": kernel})
            continue
        bench = Bench(device, stream, kernel, PAPER, 1)
        bench.features.host[...] = np.random.default_rng(0).standard_normal(bench.features.host.shape)
        bench.keys.host[...] = packet_keys(KEY, SESSION, [0], DIGEST)
        bench.upload(stream)
        for name, launch in (("mix", bench.mix), ("unmix", bench.unmix)):
            chain = [n * seconds(device, stream, lambda where, _, launch=launch: launch(where), n) for n in (50, 100)]
            added = (chain[1] - chain[0]) / 50 * 1e6
            rows.append({"kernel": name, **named(variant), "batch": 1, "added_us": added, "goal_us": MAX_ONE_US,
                         "met": added <= MAX_ONE_US})  # fmt: skip
    return rows


def mix_rate(device: Any, stream: Any, kernels: Kernels, copied: Any) -> list[dict[str, Any]]:
    """Bytes per second of features and symbols, each once, at BATCH images and at 64, buffers rotated beyond the L2 cache."""
    rows: list[dict[str, Any]] = []
    block = np.random.default_rng(0).standard_normal((64, CHANNELS, PAPER // CHANNELS), np.float32)
    there = {variant: kernel for variant in TIMED if not isinstance(kernel := kernels[variant], str)}
    for batch, most in ((BATCH, 8), (64, 8)):
        traffic = batch * 4 * (PAPER + mix.padded_size(PAPER) + mix_kernel.KEY_WORDS)
        benches = [Bench(device, stream, there[TIMED[-1]], PAPER, batch) for _ in range(min(rotation(device, traffic), 8))]
        for bench in benches:
            for start in range(0, batch, 64):
                bench.features.host[start : start + 64] = block
            bench.keys.host[...] = packet_keys(KEY, SESSION, range(batch), DIGEST)
            bench.upload(stream)
        for variant, name in itertools.product([v for v in there if v[2] <= most], ("mix", "unmix")):
            for bench in benches:
                bench.kernel = there[variant]
            turns = [getattr(bench, name) for bench in benches]
            taken = seconds(device, stream, lambda where, i, turns=turns: turns[i % len(turns)](where), 8, 12)
            rate = traffic / taken
            share = rate / copied if isinstance(copied, float) else None
            met = None if share is None else share >= MIN_SHARE_OF_COPY
            row = {"kernel": name, **named(variant), "batch": batch, "us_per_image": taken / batch * 1e6, "bytes_per_s": rate}
            rows.append({**row, "of_copy": share, "goal": MIN_SHARE_OF_COPY, "met": met})
            benches[0].scales.download(stream)
            stream.sync()
            assert (benches[0].scales.host[:batch] > 0).all(), "a timed mix gave no scale"
    return rows


MEETINGS = "meet|__syncthreads|rows_met|kept_met|all_begun|over_b(?:<false>)?|arrived"
STAMP = rf"(?<=\n)( +)((?:if \([^()]*\) )?(?:{MEETINGS})\([^;]*\);)"
FIRST_STAMP = 8  # behind the scales


def stamped(shape: MixLayout) -> tuple[str, list[str]]:
    """The source of ``shape`` with the clock of one thread behind every meeting of a mix, and what those are."""
    source, found = shape.source(), list[str]()
    begins = 'extern "C" __global__' if shape.alone else "static __device__ int mix_image("
    before, rest = source.split(begins, 1)
    ends = rest.index("unmix_image(") if not shape.alone else rest.index("unmix(")

    def stamp(match: re.Match[str]) -> str:
        found.append(match[2])
        clock = f"if (!blockIdx.x && !threadIdx.x) scales[{FIRST_STAMP + len(found) - 1}] = (float)(clock64() - began);"
        return f"{match[1]}{match[2]} {clock}"

    body = rest[:ends].replace("\n{\n", "\n{\n    const long long began = clock64();\n", 1)
    body = re.sub(STAMP, stamp, body)
    return before + begins + body + rest[ends:], found


def mix_phases(device: Any, stream: Any) -> list[dict[str, Any]]:
    """Clocks from the beginning of a mix to behind its barriers, for one image, in the first thread of its first block."""
    from cuda.core import LaunchConfig, Program, ProgramOptions, launch

    rows = []
    for variant in [v for v in TIMED if v[2] in (16, 8, 1)]:
        shape = layout_of(variant)
        options = ProgramOptions(arch=f"sm_{device.arch}", std="c++17", define_macro=shape.macros(FLOAT))
        source, meetings = stamped(shape)
        kernel = Program(source, "c++", options).compile("cubin").get_kernel("mix")
        try:
            bench = Bench(device, stream, MixKernel(device, PAPER, CHANNELS, FLOAT, shape), PAPER, 1)
        except ValueError as error:
            rows.append(named(variant) | {"value": None, "reason": str(error)})
            continue
        mix_kernel.allow(kernel, shape, device)
        bench.features.host[...] = 1
        bench.keys.host[...] = packet_keys(KEY, SESSION, [0], DIGEST)
        bench.upload(stream)
        for _ in range(3):
            config = LaunchConfig(grid=shape.together, block=shape.threads, shmem_size=shape.arena)
            buffers = bench.features.device, bench.keys.device, bench.on_air.device, bench.scales.device
            launch(stream, config, kernel, *buffers, *([] if shape.alone else [np.int32(1)]))
            bench.scales.download(stream)
            stream.sync()
        clocks = bench.scales.host[FIRST_STAMP : FIRST_STAMP + len(meetings)].tolist()
        numbered = [f"{i} {what}" for i, what in enumerate(meetings)]
        rows.append({**named(variant), "clocks": dict(zip(numbered, clocks, strict=True))})
    return rows


def structure_one(device: Any, stream: Any) -> dict[str, Any]:
    """Microseconds that the test of structure adds for one image, and whether it tells noise from features."""
    kernel = StructureKernel(device, PAPER, CHANNELS, 1, FLOAT)
    features, found = Tensor(device, stream, (2, PAPER)), Tensor(device, stream, (2,))
    noise = np.random.default_rng(0).standard_normal((2, PAPER // CHANNELS, CHANNELS))
    noise[1] *= np.linspace(0.5, 2, CHANNELS)
    features.host[...] = noise.reshape(2, -1)
    features.upload(stream)
    kernel(stream, features.device, found.device, 2)
    found.download(stream)
    stream.sync()
    assert np.allclose(found.host, mix.structure(features.host, CHANNELS), rtol=1e-3, atol=0.05), found.host
    chain = [
        n * seconds(device, stream, lambda where, _: kernel(where, features.device, found.device, 1), n) for n in (50, 100)
    ]
    return {"added_us": (chain[1] - chain[0]) / 50 * 1e6, "found": found.host.tolist()}
