"""For on_gpu.py: every engine on this machine's GPU, through the whole link and alone, beside the CPU and beside its floor."""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gpu_scheme import timers
from semseal.runtime import channel
from semseal.runtime.bench.measure import Stage, interleave, summarize
from semseal.runtime.bundle import Bundle, open_bundle, packaged_bundle
from semseal.runtime.defense import index as scheme
from semseal.runtime.engine import Engine, open_engine
from semseal.runtime.errors import EngineError
from semseal.runtime.gpu.device import capture
from semseal.runtime.gpu.engines import Plan, open_plan
from semseal.runtime.metrics import psnr
from semseal.runtime.pictures import open_pictures
from semseal.runtime.signing import generate_owner, public_text
from shared import attempt, links, through

BUNDLE = packaged_bundle("photos-10db")
PARITY_DB = {"fp32": 0.02, "fp16": 0.02, "int8": 0.10}  # goals: PSNR against the CPU's fp32
SNRS_DB = (0.0, 10.0, 20.0)
SAMPLES = 700
BATCH = (1, 1, 8)  # images that a plan is built for: smallest, optimal, largest
# fused multiply-adds for one clock of one multiprocessor, dense, by compute capability; NVIDIA's architecture whitepapers
FMA_PER_CLOCK = {
    "80": {"fp32": 64, "fp16": 1024, "int8": 2048},
    "86": {"fp32": 128, "fp16": 512, "int8": 1024},
    "87": {"fp32": 128, "fp16": 1024, "int8": 2048},
    "89": {"fp32": 128, "fp16": 512, "int8": 1024},
    "90": {"fp32": 128, "fp16": 2048, "int8": 4096},
    "120": {"fp32": 128, "fp16": 512, "int8": 1024},
}


class Engines:
    """What all rows share: pictures, the reference on the CPU, and which engines cannot be had here."""

    def __init__(self) -> None:
        self.bundle = open_bundle(BUNDLE)
        self.images = open_pictures("photos", "valid").take(6, self.bundle.height, self.bundle.width)
        self.cpu = {side: open_engine("onnxruntime-cpu", self.bundle.graph(side)) for side in ("transmitter", "receiver")}
        self.expected_db = through(BUNDLE, "onnxruntime-cpu")
        self._lacking: dict[str, EngineError] = {}

    def graph(self, name: str, precision: str) -> dict[str, Any]:
        """An engine that runs the graphs, and the whole link on it under every defence."""
        if name in self._lacking:
            raise self._lacking[name]
        try:
            row = graph_engine(name, self.bundle, precision, self.cpu, self.images)
        except EngineError as error:
            self._lacking[name] = error
            raise
        return {**row, "link": links(BUNDLE, name, precision, self.expected_db, None)}

    def plans(self, name: str, device: Any, copied: Any) -> dict[str, Any]:
        """An engine that runs plans, with the index in the plan and, as ``bare``, with the scheme kernel in its place."""
        with tempfile.TemporaryDirectory() as folder:
            return plan_engines(name, Path(folder) / "built", self.cpu, self.images, device, copied, self.expected_db)


def plan_engines(
    name: str, folder: Path, cpu: dict[str, Engine], images: Any, device: Any, copied: Any, expected_db: float
) -> dict[str, Any]:
    """The rows of an engine that runs plans, which are built here."""
    from semseal.export.tensorrt import add_plans

    key = generate_owner()
    built = attempt(f"{name} plans", add_plans, open_bundle(BUNDLE), folder, name, key, BATCH)
    if not isinstance(built, Bundle):
        return {name: built}
    rows = {}
    for precision in PARITY_DB:
        for bare in (False, True):
            what = f"{name} {precision}{' bare' if bare else ''}"
            rows[what] = attempt(what, plan_engine, name, built, precision, bare, cpu, images, device, copied)
        rows[f"{name} {precision} link"] = links(folder, name, precision, expected_db, public_text(key))
    return rows


def graph_engine(name: str, bundle: Bundle, precision: str, cpu: dict[str, Engine], images: Any) -> dict[str, Any]:
    run = {side: open_engine(name, bundle.graph(side, precision)) for side in cpu}
    return {**check_link(run, cpu, images, bundle.h, precision), "request": requests(run, cpu, images, bundle.h)}


def plan_engine(
    name: str, built: Bundle, precision: str, bare: bool, cpu: dict[str, Engine], images: Any, device: Any, copied: Any
) -> dict[str, Any]:
    from semseal.export.cut import bare_network
    from semseal.export.tensorrt import build_plan

    plans = {}
    for side in cpu:
        network = bare_network(built.graph(side, precision), side) if bare else b""
        plans[side] = build_plan(name, network, BATCH) if bare else built.program(side, precision, name)
    run = {side: open_plan(name, plan) for side, plan in plans.items()}
    return {
        **check_link(run, cpu, images, built.h, precision),
        "plan_bytes": {side: len(plan) for side, plan in plans.items()},
        "request": requests(run, cpu, images, built.h),
        "device": {side: device_times(Plan(name, plan), side, built) for side, plan in plans.items()},
        "floor": {side: attempt(f"floor {side}", floor, device, built, side, precision, copied) for side in plans},
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
    for snr in SNRS_DB:
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
    run["transmitter"](images[:2], scheme.identity(2 * h).reshape(2, h))  # another shape, so another CUDA graph
    assert np.array_equal(run["transmitter"](images, plain), sent), "transmitter: the first picture and index again"
    assert follows(run["receiver"](flipped(sent), plain), flipped(picture), stale=picture), "receiver: a second reception"
    assert np.array_equal(run["receiver"](on_air, scheme.inverse(moved)), picture), "receiver: a second index"
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
    received = [cpu["transmitter"](picture, index) for picture, index in zip(pictures, indices, strict=True)]
    data = {"transmitter": zip(pictures, indices, strict=True), "receiver": zip(received, indices, strict=True)}
    turns = {side: itertools.cycle(list(pairs)) for side, pairs in data.items()}
    made = {side: Stage(side, run[side], prepare=lambda turn=turn: next(turn)) for side, turn in turns.items()}
    return {side: dataclasses.asdict(summarize(taken)) for side, taken in interleave(made, SAMPLES, 50).items()}


def device_times(plan: Plan, side: str, bundle: Bundle) -> dict[str, Any]:
    """One image on the device, the L2 cache flushed before each: its graph, the copies in it alone, and the time to launch it.

    ``graph`` and ``copies`` are between events on the stream, ``enqueue`` is the host's.
    """
    device, stream = plan.device, plan.stream
    shape = (1, 3, bundle.height, bundle.width) if side == "transmitter" else (1, bundle.n_symbols, 2)
    run = plan.prepare((shape, (1, bundle.h)))
    run.inputs[1].host[...] = np.arange(bundle.h)

    def copies(where: Any) -> None:
        for tensor in run.inputs:
            tensor.upload(where)
        run.outputs[0].download(where)

    alone = capture(stream, copies)
    flush = device.allocate(2 * device.properties.l2_cache_size, stream=stream)
    start, end = timers(device)
    enqueued: list[float] = []

    def between_events(launch: Callable[[], Any], kept: list[float]) -> float:
        flush.fill(0, stream=stream)
        stream.record(start)
        before = time.perf_counter()
        launch()
        kept.append(time.perf_counter() - before)
        stream.record(end)
        end.sync()
        return (end - start) / 1e3

    made = {
        "graph": Stage("graph", lambda: between_events(run.launch, enqueued), clocks_itself=True),
        "copies": Stage("copies", lambda: between_events(lambda: alone.launch(stream), []), clocks_itself=True),
    }
    taken = {**interleave(made, SAMPLES, 50), "enqueue": enqueued[50:]}
    return {name: dataclasses.asdict(summarize(values)) for name, values in taken.items()}


def floor(device: Any, bundle: Bundle, side: str, precision: str, copied: Any) -> dict[str, Any]:
    """The least time of one image: graph, input and output moved once as fast as a copy; multiplications at full clock."""
    import onnx

    moved = len(bundle.graph(side, precision)) + 4 * (3 * bundle.height * bundle.width + 2 * bundle.n_symbols)
    memory = moved / copied * 1e6 if isinstance(copied, float) else None
    if device.arch not in FMA_PER_CLOCK:
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
    rate = device.properties.multiprocessor_count * FMA_PER_CLOCK[device.arch][precision] * device.properties.clock_rate * 1e3
    return {"bytes": moved, "memory_us": memory, "macs": macs, "compute_us": macs / rate * 1e6}
