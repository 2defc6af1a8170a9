"""The link beside its peers, and what the defences cost: python benchmarks/compare.py

First the whole link of packaged bundles on all cores (link_peers.py), then each side on one thread, every form in one run.

Each round runs every candidate once, in a new random order, so that a slow moment of the machine meets all of them. Read the
ratios: a ratio is the median over the rounds of (baseline / candidate) within a round. Each candidate's output is checked
before it is timed. The network has the packaged models' shape and random weights; time does not depend on them.

    torch           the model in eager mode, float32, channels_last
    naive           ONNX Runtime on the graphs as torch exports them
    the engines     on the deployed graphs, undefended: with the index that moves nothing
    no index        the transmitter with its Gather cut out, against which the index is charged
    index           with a scheme index; permute and permute+substitute differ in its values only
    mix             the graph that mixes, charged against the undefended one and against the index

What keys and headers cost besides is in ``semseal bench``.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import link_peers
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from semseal.export.cut import without_gather
from semseal.export.onnx import export_graphs
from semseal.export.quantize import to_fp16, to_int8
from semseal.export.rewrite import rewrite
from semseal.runtime.bench.measure import interleave
from semseal.runtime.defense import index, mix
from semseal.runtime.defense.schemes import scheme_sets
from semseal.runtime.engine import open_engine
from semseal.runtime.environment import environment
from semseal.runtime.mixing import with_mix
from semseal.runtime.pictures import open_pictures
from semseal.train.config import ModelConfig
from semseal.train.model import DeepJSCC
from shared import plain

WARM_UP = 20  # rounds
PACKAGES = ("semseal", "numpy", "torch", "onnxruntime", "openvino")
FORMS = [
    ("onnxruntime-cpu", "fp32"),
    ("onnxruntime-cpu", "fp16"),
    ("onnxruntime-cpu", "int8"),
    ("openvino", "fp32"),
    ("openvino", "int8"),
]

Candidate = Callable[[], NDArray[Any]]


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


@dataclass(frozen=True)
class Link:
    """One network in every form, and one image's inputs for it."""

    config: ModelConfig
    model: DeepJSCC
    naive: dict[str, bytes]  # graphs as torch exports them, by side
    transmitters: dict[str, bytes]  # deployed graphs, by precision
    receivers: dict[str, bytes]
    image: NDArray[np.float32]
    symbols: NDArray[np.float32]
    identity: index.Table
    scheme: index.Table
    keys: mix.MixKeys

    @property
    def reals(self) -> int:
        return self.config.h * self.config.w * self.config.c


def build() -> Link:
    """The network with random weights, its graphs, and the inputs."""
    torch.manual_seed(0)
    config = ModelConfig()
    model = DeepJSCC(config).eval()
    naive_tx, naive_rx = export_graphs(model)
    fast_tx, fast_rx = rewrite(naive_tx), rewrite(naive_rx)
    pictures = open_pictures("photos", "train").take(9, config.height, config.width)
    image, calibration = pictures[:1], pictures[1:]
    here = np.zeros(1, int)
    identity = index.absolute(index.identity(config.h)[None], here, here)
    encode = open_engine("onnxruntime-cpu", fast_tx)
    feeds = [{"image": picture[None], "index": identity} for picture in calibration]
    received = [{"symbols": encode(*feed.values()), "index": identity} for feed in feeds]
    return Link(
        config=config,
        model=model.to(memory_format=torch.channels_last),
        naive={"transmitter": naive_tx, "receiver": naive_rx},
        transmitters={"fp32": fast_tx, "fp16": to_fp16(fast_tx), "int8": to_int8(fast_tx, feeds)},
        receivers={"fp32": fast_rx, "int8": to_int8(fast_rx, received)},
        image=image,
        symbols=encode(image, identity),
        identity=identity,
        scheme=index.absolute(scheme_sets(bytes(32), config.h).permutations[:1], here, here),
        keys=mix.derive_keys(bytes(32), bytes(mix.SESSION_SIZE), [0], bytes(mix.DIGEST_SIZE), config.h * config.w * config.c),
    )


def candidates(link: Link) -> dict[str, dict[str, Candidate]]:
    """What is timed on each side, by name."""
    x = torch.from_numpy(link.image).to(memory_format=torch.channels_last)
    y = torch.from_numpy(link.symbols)

    @torch.inference_mode()
    def torch_tx() -> NDArray[np.float32]:
        return link.model.encode(x).numpy()

    @torch.inference_mode()
    def torch_rx() -> NDArray[np.float32]:
        return link.model.decode(y).numpy()

    def engine(name: str, graph: bytes, *inputs: NDArray[Any]) -> Candidate:
        run = open_engine(name, graph, threads=1)
        return lambda: run(*inputs)

    cpu, image, config = "onnxruntime-cpu", link.image, link.config
    symbols = (link.symbols, link.identity)
    sides: dict[str, dict[str, Candidate]] = {
        "transmitter": {"torch": torch_tx, "naive": engine(cpu, link.naive["transmitter"], image, link.identity)},
        "receiver": {"torch": torch_rx, "naive": engine(cpu, link.naive["receiver"], *symbols)},
    }
    for name, precision in ((cpu, "fp32"), ("openvino", "fp32"), ("openvino", "int8")):
        sides["receiver"][f"{name} {precision}"] = engine(name, link.receivers[precision], *symbols)
    secret = mix.transmitter_inputs(link.keys, link.reals)
    for name, precision in FORMS:
        graph = link.transmitters[precision]
        mixing = with_mix(graph, "transmitter", config.h, config.w * config.c, config.c)
        sides["transmitter"] |= {
            f"{name} {precision}": engine(name, graph, image, link.identity),
            f"{name} {precision}, no index": engine(name, without_gather(graph), image),
            f"{name} {precision}, index": engine(name, graph, image, link.scheme),
            f"{name} {precision}, mix": engine(name, mixing, image, *secret),
        }
    return sides


def check(link: Link, side: str, runs: dict[str, Candidate]) -> None:
    """Raises AssertionError unless every candidate gives torch's answer, the defence undone."""
    expected = runs["torch"]()
    for name, run in runs.items():
        close = 0.5 if "int8" in name else 0.02 if "fp16" in name else 1e-3  # the largest of thousands of values
        given = run()
        if name.endswith(", index"):
            given = index.gather(given.reshape(link.config.h, -1), np.argsort(link.scheme[0])).reshape(given.shape)
        elif name.endswith(", mix"):
            given = mix.unmix(mix.normalize(given)[0].reshape(1, -1), link.keys, link.reals).reshape(expected.shape)
            given *= np.sqrt(np.square(expected).sum() / np.square(given).sum())  # the scale is the packet's
        error = np.abs(given - expected).max()
        assert error < close, f"{side}, {name}: wrong by {error}"


def speeds(side: str, seconds: dict[str, NDArray[np.float64]]) -> dict[str, dict[str, float]]:
    """Median of each candidate, and how many times as fast as torch and as the naive graph it is; printed."""
    rounds = len(seconds["torch"])
    table = Table(title=f"{side}: one image, one thread, {rounds} interleaved rounds")
    for column in ("", "median", "times as fast as torch", "as naive"):
        table.add_column(column, justify="right" if column else "left")
    figures = {}
    for name, taken in seconds.items():
        ratios = [float(np.median(seconds[base] / taken)) for base in ("torch", "naive")]
        figures[name] = {"median_ms": float(np.median(taken)) * 1e3, "vs_torch": ratios[0], "vs_naive": ratios[1]}
        table.add_row(name, f"{np.median(taken) * 1e3:.2f} ms", *(f"{ratio:.2f}x" for ratio in ratios))
    Console().print(table)
    return figures


@click.command()
@click.option("--rounds", default=300, show_default=True, help="of the sides, on one thread; 0: the links alone")
@click.option(
    "--bundle", "bundles", multiple=True, default=("edge", "photos-10db"), show_default=True, help="whose link is compared"
)
@click.option("--threads", type=int, help="of the links  [default: all cores]")
@click.option("--seconds", default=30.0, show_default=True, help="for each link")
@click.option("--compile/--no-compile", "compiled", default=True, help="with torch.compile, which takes a minute")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="write the figures here too")
def main(rounds: int, bundles: tuple[str, ...], threads: int | None, seconds: float, compiled: bool, path: Path | None) -> None:
    figures: dict[str, Any] = {"environment": dataclasses.asdict(environment(PACKAGES)), "rounds": rounds}
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    figures["links"] = {name: link_peers.measure(name, threads, compiled, seconds) for name in bundles}
    if rounds:
        torch.set_num_threads(1)
        link = build()
        for side, runs in candidates(link).items():
            check(link, side, runs)
            taken = interleave(plain(runs), rounds, WARM_UP)
            figures[side] = speeds(side, taken)
            if side == "transmitter":
                figures["cost of the defence"] = costs(taken)
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
