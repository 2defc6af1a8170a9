"""For on_gpu.py: the scheme kernel on this machine's GPU, checked to the bit, and its time beside that of a copy."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from semseal.runtime.bench.measure import Stage, interleave
from semseal.runtime.defense import index as scheme
from semseal.runtime.gpu.device import Tensor, capture
from semseal.runtime.gpu.scheme_kernel import SchemeKernel, reference_receive, reference_transmit, tile_layout

PAPER = (16, 45, 45)
SHAPES = [PAPER, (4, 8, 6), (1, 2, 1), (2, 1, 1), (3, 7, 14), (5, 6, 7), (7, 44, 101), (16, 47, 43), (256, 32, 32)]
BATCH = 1024
MIN_SHARE_OF_COPY = 0.8  # goal: of the copy's bytes per second
MAX_ADDED_US = 4.0  # goal: what a kernel adds to a captured graph at batch 1
WARM_UP_S = 0.1  # until the clocks are up


def seconds(device: Any, stream: Any, work: Callable[[Any, int], None], launches: int, rounds: int = 20) -> float:
    """Median seconds of one of ``launches`` works in a CUDA graph, over rounds: work(stream, i) for i = 0, 1, ..."""

    def all_of_them(where: Any) -> None:
        for i in range(launches):
            work(where, i)

    graph = capture(stream, all_of_them)
    start, end = timers(device)
    warm = time.perf_counter() + WARM_UP_S
    while time.perf_counter() < warm:
        graph.launch(stream)
        stream.sync()

    def once() -> float:
        stream.record(start)
        graph.launch(stream)
        stream.record(end)
        end.sync()
        return (end - start) / 1e3 / launches

    return float(np.median(interleave({"graph": Stage("graph", once, clocks_itself=True)}, rounds)["graph"]))


def timers(device: Any) -> tuple[Any, Any]:
    return device.create_event({"timing_enabled": True}), device.create_event({"timing_enabled": True})


def rotation(device: Any, size: int) -> int:
    """How many sets of buffers of a size to go round, so that none is still in the L2 cache when its turn comes again."""
    return int(max(2, -(-4 * device.properties.l2_cache_size // size)))


def copy_rate(device: Any, stream: Any) -> float:
    """Bytes per second, read and written, of device-to-device copies with the traffic of the kernel at BATCH images."""
    size = BATCH * 4 * int(np.prod(PAPER))
    pairs = [[device.allocate(size, stream=stream) for _ in range(2)] for _ in range(rotation(device, 2 * size))]

    def copy(where: Any, i: int) -> None:
        source, target = pairs[i % len(pairs)]
        source.copy_to(target, stream=where)

    return 2 * size / seconds(device, stream, copy, 8)


class Bench:
    """A scheme kernel and buffers for a batch: features -> symbols -> received."""

    def __init__(self, device: Any, stream: Any, kernel: SchemeKernel, dtype: Any, batch: int) -> None:
        shape = kernel.layout
        self.kernel, self.batch = kernel, batch
        self.features = Tensor(device, stream, (batch, shape.c, shape.h, shape.w), dtype)
        self.received = Tensor(device, stream, (batch, shape.c, shape.h, shape.w), dtype)
        self.place = Tensor(device, stream, (batch, shape.h), np.int32)
        self.symbols = Tensor(device, stream, (batch, shape.n_symbols, 2))
        self.work = kernel.workspace(device, batch, stream)

    def transmit(self, where: Any) -> None:
        self.kernel.transmit(where, self.features.device, self.place.device, self.symbols.device, self.work, self.batch)

    def receive(self, where: Any) -> None:
        self.kernel.receive(where, self.symbols.device, self.place.device, self.received.device, self.batch)

    def upload(self, where: Any) -> None:
        self.features.upload(where)
        self.place.upload(where)

    def everything(self, where: Any) -> None:
        self.upload(where)
        self.transmit(where)
        self.receive(where)
        self.symbols.download(where)
        self.received.download(where)


def draw(rng: np.random.Generator, bench: Bench) -> tuple[Any, Any]:
    """Features of different loudness, and an index that moves rows across all images."""
    host, place = bench.features.host, bench.place.host
    features = rng.standard_normal(host.shape) * 10.0 ** rng.uniform(-2, 2, (bench.batch, 1, 1, 1))
    return features.astype(host.dtype), rng.permutation(place.size).astype(np.int32).reshape(place.shape)


def check_kernel(device: Any, stream: Any) -> dict[str, Any]:
    """Transmit and receive in one captured graph, replayed with new pictures and new indices; every bit compared."""
    rng, replays = np.random.default_rng(0), 0
    for shape, dtype in itertools.product(SHAPES, (np.float32, np.float16)):
        kernel = SchemeKernel(device, tile_layout(*shape), np.dtype(dtype))
        for batch in (1, 2, 5):
            bench = Bench(device, stream, kernel, dtype, batch)
            graph = capture(stream, bench.everything)
            x, index = draw(rng, bench)
            for change in ("first", "picture", "index", "both", "silence"):
                other, moved = draw(rng, bench)
                x = other if change in ("picture", "both") else x
                index = moved if change in ("index", "both") else index
                x[0] *= change != "silence"
                bench.features.host[...], bench.place.host[...] = x, scheme.inverse(index)
                graph.launch(stream)
                stream.sync()
                what = f"{shape} {np.dtype(dtype)} batch {batch}, {change}"
                symbols = reference_transmit(x, index)
                assert bench.symbols.host.tobytes() == symbols.tobytes(), f"transmit {what}"
                received = reference_receive(symbols, scheme.inverse(index), shape[0], shape[2]).astype(dtype)
                assert bench.received.host.tobytes() == received.tobytes(), f"receive {what}"
                replays += 1
    return {"equal_bits": True, "replays": replays, "shapes": SHAPES}


def kernel_rate(device: Any, stream: Any, copied: Any) -> list[dict[str, Any]]:
    """Bytes per second of both kernels at BATCH images, buffers rotated beyond the L2 cache, beside the copy's."""
    rng, rows = np.random.default_rng(0), []
    n = int(np.prod(PAPER))
    for dtype in (np.float32, np.float16):
        kernel = SchemeKernel(device, tile_layout(*PAPER), np.dtype(dtype))
        traffic = BATCH * (n * (np.dtype(dtype).itemsize + 4) + 4 * PAPER[1])  # features, symbols and index, each once
        benches = [Bench(device, stream, kernel, dtype, BATCH) for _ in range(rotation(device, traffic))]
        for bench in benches:
            bench.features.host[...] = 1
            bench.place.host[...] = rng.permutation(bench.place.host.size).reshape(bench.place.host.shape)
            bench.upload(stream)
        for name in ("transmit", "receive"):
            turns = [getattr(bench, name) for bench in benches]
            rate = traffic / seconds(device, stream, lambda where, i, turns=turns: turns[i % len(turns)](where), 8)
            share = rate / copied if isinstance(copied, float) else None
            met = None if share is None else share >= MIN_SHARE_OF_COPY
            row = {"kernel": name, "features": np.dtype(dtype).name, "batch": BATCH, "bytes_per_s": rate, "of_copy": share}
            rows.append({**row, "goal": MIN_SHARE_OF_COPY, "met": met})
        benches[0].symbols.download(stream)
        benches[0].received.download(stream)
        stream.sync()
        unit = np.float32(1) / np.sqrt(np.float32(2))  # a symbol of two ones has power 2
        assert (benches[0].symbols.host == unit).all(), "a timed transmit gave a wrong answer"
        assert (benches[0].received.host == unit.astype(dtype)).all(), "a timed receive gave a wrong answer"
    return rows


def kernel_added(device: Any, stream: Any) -> list[dict[str, Any]]:
    """Microseconds that one kernel adds to a captured graph at batch 1: a chain of 200 of them against one of 100.

    The features stay in the L2 cache, as they do behind the layer that makes them.
    """
    rows = []
    for dtype in (np.float32, np.float16):
        bench = Bench(device, stream, SchemeKernel(device, tile_layout(*PAPER), np.dtype(dtype)), dtype, 1)
        bench.place.host[...] = np.arange(PAPER[1])
        bench.upload(stream)
        for name, launch in (("transmit", bench.transmit), ("receive", bench.receive)):
            chain = [n * seconds(device, stream, lambda where, _, launch=launch: launch(where), n) for n in (100, 200)]
            added = (chain[1] - chain[0]) / 100 * 1e6
            row = {"kernel": name, "features": np.dtype(dtype).name, "batch": 1, "added_us": added}
            rows.append({**row, "goal_us": MAX_ADDED_US, "met": added < MAX_ADDED_US})
    return rows
