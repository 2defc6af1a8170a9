"""Latency of one image on one thread, every form of the link in one interleaved run: python benchmarks/compare.py

Each round runs every candidate once, in a new random order, so that a slow moment of the machine meets all of them. Read the
ratios: a ratio is the median over the rounds of (baseline / candidate) within a round. Each candidate's output is checked
before it is timed. The network has the packaged models' shape and random weights; time does not depend on them.

    torch           the model in eager mode, float32, channels_last
    naive           ONNX Runtime on the graphs as torch exports them
    the engines     on the deployed graphs, undefended: with the index that moves nothing
    no index        the transmitter with its Gather cut out, against which the index is charged
    index           with a scheme index; permute and permute+substitute differ in its values only
    mix             the graph that mixes, charged against the undefended one and against the index

What keys and headers cost besides is in bench_link.py.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from semseal.export.mixing import with_mix
from semseal.export.onnx import export_graphs
from semseal.export.quantize import to_fp16, to_int8
from semseal.export.rewrite import rewrite
from semseal.runtime.defense import index, mix
from semseal.runtime.defense.schemes import scheme_sets
from semseal.runtime.engine import open_engine
from semseal.runtime.pictures import open_pictures
from semseal.train.config import ModelConfig
from semseal.train.model import DeepJSCC

WARM_UP = 20
FORMS = [
    ("onnxruntime-cpu", "fp32"),
    ("onnxruntime-cpu", "fp16"),
    ("onnxruntime-cpu", "int8"),
    ("openvino", "fp32"),
    ("openvino", "int8"),
]


def interleave(candidates: dict[str, Callable[[], Any]], rounds: int) -> dict[str, NDArray[np.float64]]:
    """Seconds of each candidate in each round."""
    rng = np.random.default_rng(0)
    names = list(candidates)
    seconds = {name: np.empty(rounds) for name in names}
    for round_ in range(-WARM_UP, rounds):
        for i in rng.permutation(len(names)):
            start = time.perf_counter()
            candidates[names[i]]()
            taken = time.perf_counter() - start
            if round_ >= 0:
                seconds[names[i]][round_] = taken
    return seconds


def without_index(graph: bytes) -> bytes:
    """The transmitter with its rows left where they are."""
    model = onnx.load_model_from_string(graph)
    gather = next(node for node in model.graph.node if node.op_type == "Gather")
    for node in model.graph.node:
        node.input[:] = [gather.input[0] if name == gather.output[0] else name for name in node.input]
    model.graph.node.remove(gather)
    del model.graph.value_info[:]
    del model.graph.input[1:]
    data: bytes = model.SerializeToString()
    return data


def costs(seconds: dict[str, NDArray[np.float64]]) -> dict[str, dict[str, float]]:
    """What the defences add, for each form: median and quartiles of the paired ratios, less 1; printed."""
    table = Table(title="cost of the defence at the transmitter: median of paired runs (quartiles)")
    pairs = [("index", "no index"), ("mix", ""), ("mix", "index")]
    for column in ("", *(f"{defended} : {base or 'undefended'}" for defended, base in pairs)):
        table.add_column(column, justify="right" if column else "left")
    figures: dict[str, dict[str, float]] = {}
    for form in (f"{name} {precision}" for name, precision in FORMS):
        shown = []
        for defended, base in pairs:
            ratio = seconds[f"{form}, {defended}"] / seconds[f"{form}, {base}" if base else form] - 1
            low, middle, high = map(float, np.quantile(ratio, [0.25, 0.5, 0.75]))
            figures[f"{form}, {defended} : {base or 'undefended'}"] = {"low": low, "median": middle, "high": high}
            shown.append(f"{middle:+.1%} ({low:+.1%} {high:+.1%})")
        table.add_row(form, *shown)
    Console().print(table)
    return figures


@click.command()
@click.option("--rounds", default=300, show_default=True)
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="write the figures here too")
def main(rounds: int, path: Path | None) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = ModelConfig()
    model = DeepJSCC(config).eval()
    naive_tx, naive_rx = export_graphs(model)
    fast_tx, fast_rx = rewrite(naive_tx), rewrite(naive_rx)
    pictures = open_pictures("photos", "train").take(9, config.height, config.width)
    image, calibration = pictures[:1], pictures[1:]
    here = np.zeros(1, int)
    identity = index.spread(index.identity(config.h)[None], here, here)
    scheme = index.spread(scheme_sets(bytes(32), config.h).permutations[:1], here, here)
    encode = open_engine("onnxruntime-cpu", fast_tx)
    symbols = encode(image, identity)
    feeds = [{"image": picture[None], "index": identity} for picture in calibration]
    transmitters = {"fp32": fast_tx, "fp16": to_fp16(fast_tx), "int8": to_int8(fast_tx, feeds)}
    int8_rx = to_int8(fast_rx, [{"symbols": encode(*feed.values()), "index": identity} for feed in feeds])
    reals = config.h * config.w * config.c
    keys = mix.derive_keys(bytes(32), bytes(mix.SESSION_SIZE), [0], bytes(mix.DIGEST_SIZE), reals)
    secret = mix.transmitter_inputs(keys, reals)

    model.to(memory_format=torch.channels_last)
    x = torch.from_numpy(image).to(memory_format=torch.channels_last)
    y = torch.from_numpy(symbols)

    @torch.inference_mode()
    def torch_tx() -> NDArray[np.float32]:
        return model.encode(x).numpy()

    @torch.inference_mode()
    def torch_rx() -> NDArray[np.float32]:
        return model.decode(y).numpy()

    def engine(name: str, graph: bytes, *inputs: NDArray[Any]) -> Callable[[], NDArray[Any]]:
        run = open_engine(name, graph, threads=1)
        return lambda: run(*inputs)

    sides: dict[str, dict[str, Callable[[], NDArray[Any]]]] = {
        "transmitter": {"torch": torch_tx, "naive": engine("onnxruntime-cpu", naive_tx, image, identity)},
        "receiver": {
            "torch": torch_rx,
            "naive": engine("onnxruntime-cpu", naive_rx, symbols, identity),
            "onnxruntime-cpu fp32": engine("onnxruntime-cpu", fast_rx, symbols, identity),
            "openvino fp32": engine("openvino", fast_rx, symbols, identity),
            "openvino int8": engine("openvino", int8_rx, symbols, identity),
        },
    }
    for name, precision in FORMS:
        graph = transmitters[precision]
        mixing = with_mix(graph, "transmitter", config.h, config.w * config.c, config.c)
        sides["transmitter"] |= {
            f"{name} {precision}": engine(name, graph, image, identity),
            f"{name} {precision}, no index": engine(name, without_index(graph), image),
            f"{name} {precision}, index": engine(name, graph, image, scheme),
            f"{name} {precision}, mix": engine(name, mixing, image, *secret),
        }
    figures: dict[str, Any] = {"rounds": rounds, "threads": 1, "batch": 1}
    for side, candidates in sides.items():
        expected = candidates["torch"]()
        for name, run in candidates.items():
            close = 0.5 if "int8" in name else 0.02 if "fp16" in name else 1e-3  # the largest of thousands of values
            given = run()
            if name.endswith(", index"):
                given = index.gather(given.reshape(config.h, -1), np.argsort(scheme[0])).reshape(given.shape)
            elif name.endswith(", mix"):
                given = mix.unmix(mix.normalize(given).reshape(1, -1), keys, reals).reshape(expected.shape)
                given *= np.sqrt(np.square(expected).sum() / np.square(given).sum())  # the scale is the packet's
            error = np.abs(given - expected).max()
            assert error < close, f"{side}, {name}: wrong by {error}"
        seconds = interleave(candidates, rounds)
        table = Table(title=f"{side}: one image, one thread, {rounds} interleaved rounds")
        for column in ("", "median", "times as fast as torch", "as naive"):
            table.add_column(column, justify="right" if column else "left")
        figures[side] = {}
        for name, taken in seconds.items():
            ratios = [float(np.median(seconds[base] / taken)) for base in ("torch", "naive")]
            figures[side][name] = {"median_ms": float(np.median(taken)) * 1e3, "vs_torch": ratios[0], "vs_naive": ratios[1]}
            table.add_row(name, f"{np.median(taken) * 1e3:.2f} ms", *(f"{ratio:.2f}x" for ratio in ratios))
        Console().print(table)
        if side == "transmitter":
            figures["cost of the defence"] = costs(seconds)
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
