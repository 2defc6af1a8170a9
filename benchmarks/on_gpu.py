"""Every GPU path of semseal, checked and timed on this machine: python benchmarks/on_gpu.py

Writes benchmarks/results/<gpu>.json and ends with one line of JSON. Without a GPU it prints the reason and writes nothing.
Not yet run on a GPU.

    scheme kernel   bits of the reference: odd sizes, batch 1, a replayed CUDA graph, a new picture, a new key;
                    traffic at batch 1024 against a device-to-device copy of as many bytes; time added at batch 1
    engines         fp32, fp16 and int8 against the CPU in dB; new answers for new pictures and indices; p50 and p99

What cannot be had here is null with the reason. A check that fails is named, and the exit status is 1.
"""

import itertools
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from semseal.runtime import channel
from semseal.runtime.bundle import Bundle, BundleError, open_bundle, packaged_bundle
from semseal.runtime.defense import index as scheme
from semseal.runtime.defense.kernel import SchemeKernel, layout, places, reference_receive, reference_transmit
from semseal.runtime.device import Tensor, capture, open_device
from semseal.runtime.engine import Engine, EngineError, open_engine
from semseal.runtime.files import write_atomically
from semseal.runtime.gpu import Plan, open_plan
from semseal.runtime.metrics import psnr
from semseal.runtime.pictures import PictureError, open_pictures

RESULTS = Path(__file__).parent / "results"
PAPER = (16, 45, 45)
SHAPES = [PAPER, (4, 8, 6), (1, 2, 1), (2, 1, 1), (3, 7, 14), (5, 6, 7), (7, 44, 101), (16, 47, 43), (256, 32, 32)]
BATCH = 1024
OF_COPY = 0.8  # goal: the kernel's share of the copy's bytes per second
ADDED_US = 5.0  # goal: what the kernel adds to a captured graph at batch 1
PARITY_DB = {"fp32": 0.02, "fp16": 0.02, "int8": 0.10}  # goals: PSNR against the CPU's fp32
SNRS = (0.0, 10.0, 20.0)
SAMPLES = 2000  # p99 wants at least 662
WARM_UP_S = 0.3  # until the clocks are up
# fused multiply-adds for one clock of one multiprocessor, dense, by compute capability; NVIDIA's architecture whitepapers
FMA = {
    "80": {"fp32": 64, "fp16": 1024, "int8": 2048},
    "86": {"fp32": 128, "fp16": 512, "int8": 1024},
    "87": {"fp32": 128, "fp16": 1024, "int8": 2048},
    "89": {"fp32": 128, "fp16": 512, "int8": 1024},
    "90": {"fp32": 128, "fp16": 2048, "int8": 4096},
    "120": {"fp32": 128, "fp16": 512, "int8": 1024},
}

failures: list[str] = []


def main() -> int:
    try:
        device = open_device("on_gpu")
    except EngineError as error:
        print(f"no GPU: {str(error).removeprefix('engine on_gpu: ')}")
        return 0
    stream = device.create_stream()
    before = state()
    results: dict[str, Any] = {"gpu": device.name, "environment": environment(device), "state_before": before}
    results["kernel_bits"] = attempt("kernel bits", check_kernel, device, stream)
    results["copy_bytes_per_s"] = copied = attempt("copy", copy_rate, device, stream)
    results["kernel_rate"] = attempt("kernel rate", kernel_rate, device, stream, copied)
    results["kernel_added"] = attempt("kernel added", kernel_added, device, stream)
    results["engines"] = attempt("engines", engines, device, copied)
    results["state_after"] = state()
    results["failures"] = failures
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / f"{re.sub('[^a-z0-9]+', '-', device.name.lower()).strip('-')}.json"
    write_atomically(out, (json.dumps(results, indent=1) + "\n").encode())
    brief = {key: results[key] for key in ("gpu", "kernel_rate", "kernel_added", "failures")}
    print(json.dumps({"results": str(out), **brief}))
    return 1 if failures else 0


def attempt(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function gives; where that cannot be had, null with the reason, and a failed check is remembered."""
    print(f"{what} ...", file=sys.stderr, flush=True)
    try:
        return function(*arguments)
    except (EngineError, BundleError, PictureError, ImportError) as error:
        return {"value": None, "reason": f"{type(error).__name__}: {error}"}
    except Exception as error:  # one path's crash must not cost the others' figures
        failures.append(f"{what}: {type(error).__name__}: {error}")
        return {"value": None, "reason": failures[-1]}


# the machine


def environment(device: Any) -> dict[str, Any]:
    packages = ["semseal", "numpy", "cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc", "onnxruntime", "onnxruntime-gpu"]
    packages += ["tensorrt", "tensorrt-rtx"]
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None  # not installed
    properties = device.properties
    return {
        "compute_capability": device.arch,
        "multiprocessors": properties.multiprocessor_count,
        "l2_bytes": properties.l2_cache_size,
        "integrated": properties.integrated,
        "python": sys.version.split()[0],
        "packages": versions,
    }


def state() -> dict[str, Any]:
    """Driver, clocks, power and temperature by nvidia-smi, and a Jetson's power mode."""
    fields = "driver_version,pstate,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.draw,power.limit,"
    fields += "power.default_limit,temperature.gpu,persistence_mode,ecc.mode.current,mig.mode.current,compute_mode"
    smi = said("nvidia-smi", "--id=0", f"--query-gpu={fields}", "--format=csv,noheader")
    if smi["value"] is not None:
        smi["value"] = dict(zip(fields.split(","), map(str.strip, smi["value"].split(",")), strict=False))
    return {"nvidia_smi": smi, "nvpmodel": said("nvpmodel", "-q")}


def said(*command: str) -> dict[str, Any]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {"value": None, "reason": str(error)}
    return {"value": done.stdout.strip()}


# time


def seconds(device: Any, stream: Any, work: Callable[[Any, int], None], launches: int) -> float:
    """Median seconds of one of ``launches`` works in a CUDA graph: work(stream, i) for i = 0, 1, ..."""

    def all_of_them(where: Any) -> None:
        for i in range(launches):
            work(where, i)

    graph = capture(stream, all_of_them)
    start, end = timers(device)
    warm = time.perf_counter() + WARM_UP_S
    while time.perf_counter() < warm:
        graph.launch(stream)
        stream.sync()
    taken = []
    for _ in range(50):
        stream.record(start)
        graph.launch(stream)
        stream.record(end)
        end.sync()
        taken.append((end - start) / 1e3 / launches)
    return statistics.median(taken)


def timers(device: Any) -> tuple[Any, Any]:
    return device.create_event({"timing_enabled": True}), device.create_event({"timing_enabled": True})


def percentiles(microseconds: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(microseconds, [50, 99])
    return {"samples": len(microseconds), "p50_us": float(p50), "p99_us": float(p99)}


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


# the scheme kernel


class Bench:
    """A scheme kernel and buffers for a batch: features -> symbols -> heard."""

    def __init__(self, device: Any, stream: Any, kernel: SchemeKernel, dtype: Any, batch: int) -> None:
        shape = kernel.layout
        self.kernel, self.batch = kernel, batch
        self.features = Tensor(device, stream, (batch, shape.c, shape.h, shape.w), dtype)
        self.heard = Tensor(device, stream, (batch, shape.c, shape.h, shape.w), dtype)
        self.place = Tensor(device, stream, (batch, shape.h), np.int32)
        self.symbols = Tensor(device, stream, (batch, shape.n_symbols, 2))
        self.work = kernel.workspace(device, batch, stream)

    def transmit(self, where: Any) -> None:
        self.kernel.transmit(where, self.features.device, self.place.device, self.symbols.device, self.work, self.batch)

    def receive(self, where: Any) -> None:
        self.kernel.receive(where, self.symbols.device, self.place.device, self.heard.device, self.batch)

    def upload(self, where: Any) -> None:
        self.features.upload(where)
        self.place.upload(where)

    def everything(self, where: Any) -> None:
        self.upload(where)
        self.transmit(where)
        self.receive(where)
        self.symbols.download(where)
        self.heard.download(where)


def draw(rng: np.random.Generator, bench: Bench) -> tuple[Any, Any]:
    """Features of different loudness, and an index that moves rows across all images."""
    host, place = bench.features.host, bench.place.host
    features = rng.standard_normal(host.shape) * 10.0 ** rng.uniform(-2, 2, (bench.batch, 1, 1, 1))
    return features.astype(host.dtype), rng.permutation(place.size).astype(np.int32).reshape(place.shape)


def check_kernel(device: Any, stream: Any) -> dict[str, Any]:
    """Transmit and receive in one captured graph, replayed with new pictures and new indices; every bit compared."""
    rng, replays = np.random.default_rng(0), 0
    for shape, dtype in itertools.product(SHAPES, (np.float32, np.float16)):
        kernel = SchemeKernel(device, layout(*shape), np.dtype(dtype))
        for batch in (1, 2, 5):
            bench = Bench(device, stream, kernel, dtype, batch)
            graph = capture(stream, bench.everything)
            x, index = draw(rng, bench)
            for change in ("first", "picture", "index", "both", "silence"):
                other, moved = draw(rng, bench)
                x = other if change in ("picture", "both") else x
                index = moved if change in ("index", "both") else index
                x[0] *= change != "silence"
                bench.features.host[...], bench.place.host[...] = x, places(index)
                graph.launch(stream)
                stream.sync()
                what = f"{shape} {np.dtype(dtype)} batch {batch}, {change}"
                symbols = reference_transmit(x, index)
                assert bench.symbols.host.tobytes() == symbols.tobytes(), f"transmit {what}"
                heard = reference_receive(symbols, places(index), shape[0], shape[2]).astype(dtype)
                assert bench.heard.host.tobytes() == heard.tobytes(), f"receive {what}"
                replays += 1
    return {"equal_bits": True, "replays": replays, "shapes": SHAPES}


def kernel_rate(device: Any, stream: Any, copied: Any) -> list[dict[str, Any]]:
    """Bytes per second of both kernels at BATCH images, buffers rotated beyond the L2 cache, beside the copy's."""
    rng, rows = np.random.default_rng(0), []
    n = int(np.prod(PAPER))
    for dtype in (np.float32, np.float16):
        kernel = SchemeKernel(device, layout(*PAPER), np.dtype(dtype))
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
            met = None if share is None else share >= OF_COPY
            row = {"kernel": name, "features": np.dtype(dtype).name, "batch": BATCH, "bytes_per_s": rate, "of_copy": share}
            rows.append({**row, "goal": OF_COPY, "met": met})
        benches[0].symbols.download(stream)
        benches[0].heard.download(stream)
        stream.sync()
        unit = np.float32(1) / np.sqrt(np.float32(2))  # a symbol of two ones has power 2
        assert (benches[0].symbols.host == unit).all(), "a timed transmit gave a wrong answer"
        assert (benches[0].heard.host == unit.astype(dtype)).all(), "a timed receive gave a wrong answer"
    return rows


def kernel_added(device: Any, stream: Any) -> list[dict[str, Any]]:
    """Microseconds that one kernel adds to a captured graph at batch 1: a chain of 200 of them against one of 100.

    The features stay in the L2 cache, as they do behind the layer that makes them.
    """
    rows = []
    for dtype in (np.float32, np.float16):
        bench = Bench(device, stream, SchemeKernel(device, layout(*PAPER), np.dtype(dtype)), dtype, 1)
        bench.place.host[...] = np.arange(PAPER[1])
        bench.upload(stream)
        for name, launch in (("transmit", bench.transmit), ("receive", bench.receive)):
            chain = [n * seconds(device, stream, lambda where, _, launch=launch: launch(where), n) for n in (100, 200)]
            added = (chain[1] - chain[0]) / 100 * 1e6
            row = {"kernel": name, "features": np.dtype(dtype).name, "batch": 1, "added_us": added}
            rows.append({**row, "goal_us": ADDED_US, "met": added < ADDED_US})
    return rows


# the engines


def engines(device: Any, copied: Any) -> dict[str, Any]:
    """Every engine and precision, with the index in the plan and, as ``bare``, with the scheme kernel in its place."""
    bundle = open_bundle(packaged_bundle("photos-10db"))
    images = open_pictures("photos", "valid").take(6, bundle.height, bundle.width)
    cpu = {side: open_engine("onnxruntime-cpu", bundle.graph(side)) for side in ("transmitter", "receiver")}
    rows: dict[str, Any] = {}
    for precision in PARITY_DB:
        for name in ("onnxruntime-cuda", "onnxruntime-tensorrt"):
            what = f"{name} {precision}"
            rows[what] = attempt(what, graph_engine, name, bundle, precision, cpu, images)
        for name in ("tensorrt-rtx", "tensorrt"):
            for bare in (False, True):
                what = f"{name} {precision}{' bare' if bare else ''}"
                rows[what] = attempt(what, plan_engine, name, bundle, precision, bare, cpu, images, device, copied)
    return rows


def graph_engine(name: str, bundle: Bundle, precision: str, cpu: dict[str, Engine], images: Any) -> dict[str, Any]:
    run = {side: open_engine(name, bundle.graph(side, precision)) for side in cpu}
    return {**check_link(run, cpu, images, bundle.h, precision), "request": requests(run, cpu, images, bundle.h)}


def plan_engine(
    name: str, bundle: Bundle, precision: str, bare: bool, cpu: dict[str, Engine], images: Any, device: Any, copied: Any
) -> dict[str, Any]:
    from semseal.export.tensorrt import build_plan, without_index

    plans = {}
    for side in cpu:
        graph = bundle.graph(side, precision)
        plans[side] = build_plan(name, without_index(graph, side) if bare else graph, (1, 1, 8))
    run = {side: open_plan(name, plan) for side, plan in plans.items()}
    return {
        **check_link(run, cpu, images, bundle.h, precision),
        "plan_bytes": {side: len(plan) for side, plan in plans.items()},
        "request": requests(run, cpu, images, bundle.h),
        "device": {side: device_times(Plan(name, plan), side, bundle) for side, plan in plans.items()},
        "floor": {side: attempt(f"floor {side}", floor, device, bundle, side, precision, copied) for side in plans},
    }


def check_link(run: dict[str, Engine], cpu: dict[str, Engine], images: Any, h: int, precision: str) -> dict[str, Any]:
    """PSNR of the whole link against the CPU's fp32, power per symbol, and new answers for new data in the same graph."""
    rng, batch, goal = np.random.default_rng(0), len(images), PARITY_DB[precision]
    plain = scheme.identity(batch * h).reshape(batch, h)
    sent, on_cpu = run["transmitter"](images, plain), cpu["transmitter"](images, plain)
    power = np.square(sent, dtype=np.float64).sum(axis=2).mean(axis=1)
    assert np.allclose(power, 1, atol=1e-3), f"power per symbol is {power.tolist()}"
    noise = channel.draw_noise(batch, sent.shape[1], rng)
    parity = []
    for snr in SNRS:
        here = psnr(images, run["receiver"](through_noise(sent, noise, snr), plain)).mean()
        there = psnr(images, cpu["receiver"](through_noise(on_cpu, noise, snr), plain)).mean()
        parity.append({"snr_db": snr, "psnr": float(here), "cpu_psnr": float(there), "difference_db": float(here - there)})

    # one shape, so one CUDA graph. Where rows only move, the bits are the same; another place in the batch may round otherwise
    moved = rng.permutation(batch * h).astype(np.int32).reshape(batch, h)
    rows = sent.reshape(batch * h, -1)
    on_air = np.ascontiguousarray(rows[moved.ravel()]).reshape(sent.shape)
    picture = run["receiver"](sent, plain)
    assert follows(run["transmitter"](flipped(images), plain), flipped(sent), stale=sent), "transmitter: a second picture"
    assert np.array_equal(run["transmitter"](images, moved), on_air), "transmitter: a second index"
    assert np.array_equal(run["transmitter"](images, plain), sent), "transmitter: the first picture and index again"
    assert follows(run["receiver"](flipped(sent), plain), flipped(picture), stale=picture), "receiver: a second reception"
    assert np.array_equal(run["receiver"](on_air, places(moved)), picture), "receiver: a second index"
    met = all(abs(row["difference_db"]) <= goal for row in parity)
    return {"parity": parity, "goal_db": goal, "met": met, "power_per_symbol": [float(power.min()), float(power.max())]}


def through_noise(symbols: Any, noise: Any, snr: float) -> Any:
    return channel.awgn(symbols.view(np.complex64)[..., 0], noise, snr)[..., None].view(np.float32)


def flipped(batch: Any) -> Any:
    return np.ascontiguousarray(batch[::-1])


def follows(answer: Any, expected: Any, stale: Any) -> bool:
    """Whether an answer is the expected one up to rounding, and far from the one before."""
    return bool(np.abs(answer - expected).mean() < 0.01 * np.abs(stale - expected).mean())


def requests(run: dict[str, Engine], cpu: dict[str, Engine], images: Any, h: int) -> dict[str, Any]:
    """Wall time of one image, NumPy array to NumPy array, over changing pictures and indices."""
    rng = np.random.default_rng(0)
    indices = [rng.permutation(h).astype(np.int32)[None] for _ in images]
    pictures = [image[None] for image in images]
    heard = [cpu["transmitter"](picture, index) for picture, index in zip(pictures, indices, strict=True)]
    out = {}
    for side, data in (("transmitter", pictures), ("receiver", heard)):
        taken = []
        for i in range(-50, SAMPLES):
            start = time.perf_counter()
            run[side](data[i % len(data)], indices[i % len(data)])
            taken.append((time.perf_counter() - start) * 1e6)
        out[side] = percentiles(taken[50:])
    return out


def device_times(plan: Plan, side: str, bundle: Bundle) -> dict[str, Any]:
    """One image on the device, the L2 cache flushed before each: its graph, the copies in it alone, and the time to launch it.

    ``graph`` and ``copies`` are between events on the stream, ``enqueue`` is the host's.
    """
    device, stream = plan.device, plan.stream
    shape = (1, 3, bundle.height, bundle.width) if side == "transmitter" else (1, bundle.n_symbols, 2)
    run = plan.prepare(shape, (1, bundle.h))
    run.index.host[...] = np.arange(bundle.h)

    def copies(where: Any) -> None:
        run.data.upload(where)
        run.index.upload(where)
        run.output.download(where)

    alone = capture(stream, copies)
    flush = device.allocate(2 * device.properties.l2_cache_size, stream=stream)
    start, end = timers(device)
    taken: dict[str, list[float]] = {"graph": [], "copies": [], "enqueue": []}
    for _ in range(50 + SAMPLES):
        for name, launch in (("graph", run.launch), ("copies", lambda: alone.launch(stream))):
            flush.fill(0, stream=stream)
            stream.record(start)
            before = time.perf_counter()
            launch()
            enqueued = (time.perf_counter() - before) * 1e6
            stream.record(end)
            end.sync()
            taken[name].append((end - start) * 1e3)
            if name == "graph":
                taken["enqueue"].append(enqueued)
    return {name: percentiles(values[50:]) for name, values in taken.items()}


def floor(device: Any, bundle: Bundle, side: str, precision: str, copied: Any) -> dict[str, Any]:
    """The least time of one image: graph, input and output moved once as fast as a copy; multiplications at full clock."""
    import onnx

    moved = len(bundle.graph(side, precision)) + 4 * (3 * bundle.height * bundle.width + 2 * bundle.n_symbols)
    memory = moved / copied * 1e6 if isinstance(copied, float) else None
    if device.arch not in FMA:
        raise EngineError(f"no arithmetic rate is known for compute capability {device.arch}")
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(bundle.graph(side)))
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    shapes = {v.name: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim] for v in values}
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    macs = 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            pixels = shapes[node.output[0] if node.op_type == "Conv" else node.input[0]][2:]
            macs += int(np.prod(pixels)) * int(np.prod(weights[node.input[1]]))
    rate = device.properties.multiprocessor_count * FMA[device.arch][precision] * device.properties.clock_rate * 1e3
    return {"bytes": moved, "memory_us": memory, "macs": macs, "compute_us": macs / rate * 1e6}


if __name__ == "__main__":
    sys.exit(main())
