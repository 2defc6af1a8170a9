"""For compare.py: the whole link of a bundle, one image from send to receive, beside what anyone would run instead.

    torch eager, torch.compile     the network in float32, channels_last: encode, noise, decode; no header or defence
    naive in ONNX Runtime          the graphs as torch exports them, by session.run
    naive in OpenVINO              the same graphs
    ours                           Transmitter.send and Receiver.receive, with headers and checks; undefended and under mix

Every answer is compared with that of the reference, as all stages of ``semseal bench`` are. Libraries keep threads busy for a
while after a run, which would slow whoever comes next: so each waits PAUSE_S first.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from rich.console import Console
from rich.table import Table
from semseal.export.bundle import model_of
from semseal.export.onnx import export_graphs
from semseal.runtime import channel
from semseal.runtime.bench.measure import Ratio, Seconds, Stage, interleave, paired, rounds_within, summarize
from semseal.runtime.bench.results import Where
from semseal.runtime.bench.stages import Case, open_case, stages
from semseal.runtime.bundle import Bundle
from semseal.runtime.defense.header import quantized_snr
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import BundleError
from semseal.runtime.roundtrip import SNR_DB
from semseal.train.config import ModelConfig
from semseal.train.edge import EdgeCodec, to_unit_power
from semseal.train.model import DeepJSCC

ENGINES, PRECISIONS, DEFENSES = ("onnxruntime-cpu", "openvino"), ("fp32", "int8"), ("none", "mix")
EAGER = "torch eager"
MAX_ROUNDS = 700
PAUSE_S = 0.05


def network_of(bundle: Bundle) -> EdgeCodec | DeepJSCC:
    """The network of a packaged bundle as it was trained, with the weights that its graphs hold."""
    try:
        return model_of(bundle)
    except BundleError:
        return paper_network(bundle)


def paper_network(bundle: Bundle) -> DeepJSCC:
    """The paper's network from its deployed graphs, in which transposed convolutions have become others: those are undone."""
    model = DeepJSCC(ModelConfig(bundle.height, bundle.width, int(bundle.manifest["model"]["c"]))).requires_grad_(False)
    decoder = [*model.channel_decoder, *model.semantic_decoder]
    for side, layers in (("transmitter", list(model.semantic_encoder)), ("receiver", decoder)):
        graph = onnx.load_model_from_string(bundle.graph(side)).graph
        there = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
        for name, value in model.state_dict().items():
            if f"model.{name}" in there:
                value.copy_(there[f"model.{name}"])
            elif (given := there.get(f"model.{name}_conv")) is not None:
                value.copy_(_kernel(given) if name.endswith("weight") else given[:: len(given) // len(value)])
        used = [node.input[1] for node in graph.node if node.op_type in ("Mul", "PRelu") and node.input[1] in there]
        slopes = [there[name].flatten() for name in used if there[name].ndim == 4]
        for layer, slope in zip([layer for layer in layers if isinstance(layer, torch.nn.PReLU)], slopes, strict=True):
            layer.weight.copy_(slope)
    return model.eval()


def _kernel(weight: torch.Tensor) -> torch.Tensor:
    """The kernel [in, out, 5, 5] of a transposed convolution: what the deployed layer answers to a single one in each channel.

    A kernel of 3 is that of stride 2: its channels are then shuffled into a picture twice as large.
    """
    inputs, stride = weight.shape[1], 1 if weight.shape[-1] == 5 else 2
    ones = torch.zeros(inputs, inputs, 5, 5)
    ones[range(inputs), range(inputs), 2, 2] = 1
    answer = torch.nn.functional.conv2d(ones, weight, padding=weight.shape[-1] // 2)
    if stride == 2:
        answer = torch.nn.functional.pixel_shuffle(answer, 2)
    first = 2 * stride - 2
    return answer[:, :, first : first + 5, first : first + 5]


def torch_link(case: Case, model: EdgeCodec | DeepJSCC, compiled: bool) -> Callable[[], NDArray[np.float32]]:
    """Encode, noise, decode, in torch."""
    x = torch.from_numpy(case.images).to(memory_format=torch.channels_last)
    model = model.to(memory_format=torch.channels_last)
    noise = torch.from_numpy(case.noise[: len(x)].view(np.float32)) * float((10 ** (-SNR_DB / 10) / 2) ** 0.5)
    snr_db = torch.full((len(x),), quantized_snr(case.bundle.snr_db))

    def edge(x: torch.Tensor) -> torch.Tensor:
        rows, scale = to_unit_power(model.encode_rows(x, snr_db))
        known = torch.stack([scale.flatten(), torch.full_like(snr_db, 10 ** (-SNR_DB / 10)), snr_db], dim=1)
        return model.decode_rows(rows + noise[:, : rows[0].numel()].reshape(rows.shape), known)

    def paper(x: torch.Tensor) -> torch.Tensor:
        symbols = model.encode(x)
        return model.decode(symbols + noise[:, : symbols[0].numel()].reshape(symbols.shape))

    run = edge if isinstance(model, EdgeCodec) else paper
    run = torch.compile(run) if compiled else run

    @torch.inference_mode()
    def link() -> NDArray[np.float32]:
        answer: NDArray[np.float32] = run(x).numpy()
        return answer

    return link


def naive_link(case: Case, graphs: tuple[bytes, bytes], engine: str, threads: int | None) -> Callable[[], NDArray[np.float32]]:
    """The graphs as torch writes them, with the index that moves nothing."""
    encode, decode = (open_engine(engine, graph, threads) for graph in graphs)
    h, batch = case.bundle.h, len(case.images)
    still = np.arange(batch * h, dtype=np.int32).reshape(batch, h)

    def link() -> NDArray[np.float32]:
        symbols, scales = channel.to_unit_power(encode(case.images, still, *case.told))
        on_air = channel.awgn(symbols.view(np.complex64)[..., 0], case.noise[:batch, : case.bundle.n_symbols], SNR_DB)
        known = []
        if case.bundle.has_scale:
            known = [np.array([[s, 10 ** (-SNR_DB / 10), quantized_snr(case.bundle.snr_db)] for s in scales], np.float32)]
        return decode(np.ascontiguousarray(on_air).view(np.float32).reshape(batch, -1, 2), still, *known)

    return link


def candidates(name: str, threads: int | None, compiled: bool) -> dict[str, Stage]:
    """Every form of one bundle's link."""
    case = open_case(Where(name, "onnxruntime-cpu", "fp32", "none", 1, threads))
    model = network_of(case.bundle)
    graphs = export_graphs(model)
    made = {
        EAGER: Stage(EAGER, torch_link(case, model, False), case.check_pictures),
        "naive in ONNX Runtime": Stage("naive", naive_link(case, graphs, "onnxruntime-cpu", threads), case.check_pictures),
        "naive in OpenVINO": Stage("naive", naive_link(case, graphs, "openvino", threads), case.check_pictures),
    }
    if compiled:
        made["torch.compile"] = Stage("compile", torch_link(case, model, True), case.check_pictures)
    for engine, precision, defense in product(ENGINES, PRECISIONS, DEFENSES):
        where = Where(name, engine, precision, defense, 1, threads)
        made[f"ours, {engine} {precision}, {defense}"] = stages(open_case(where))["link"]
    return made


def measure(name: str, threads: int | None, compiled: bool, seconds: float, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """Medians of the forms and their time over that of torch eager, in pairs; printed. Every answer is checked first."""
    runs = candidates(name, threads, compiled)
    runs = {form: stage for form, stage in runs.items() if not only or form == EAGER or form in only}
    for stage in runs.values():
        stage.verify()
    runs = {form: replace(stage, prepare=partial(_rested, stage)) for form, stage in runs.items()}
    taken = interleave(runs, rounds_within(runs, seconds, MAX_ROUNDS))
    ratios = {form: paired(taken[EAGER], seconds) for form, seconds in taken.items()}
    _print(name, taken, ratios)
    return {
        form: {"p50_ms": summarize(seconds).p50_ms, "of_torch_eager": vars(ratios[form])} for form, seconds in taken.items()
    }


def _rested(stage: Stage) -> tuple[Any, ...]:
    time.sleep(PAUSE_S)
    return stage.prepare()


def _print(name: str, taken: dict[str, Seconds], ratios: dict[str, Ratio]) -> None:
    table = Table(box=None, padding=(0, 1, 0, 0))
    for column in ("the whole link, one image", "p50, ms", "time / torch eager"):
        table.add_column(column, justify="left" if "link" in column else "right", no_wrap=True)
    for form, seconds in taken.items():
        ratio = ratios[form]
        table.add_row(form, f"{np.median(seconds) * 1e3:.3f}", f"{ratio.value:.3f} ({ratio.low:.3f} {ratio.high:.3f})")
    console = Console(width=80)
    console.print(f"\n{name}: {len(taken[EAGER])} rounds, {torch.get_num_threads()} threads", highlight=False)
    console.print(table)
