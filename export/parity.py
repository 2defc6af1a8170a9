"""Parity in link terms: what the deployed graphs cost in dB, compared with the model that they were made from.

images ── transmitter ──> symbols ──> + noise at 0, 10, 20 dB ──> receiver ──> PSNR
          reference or a precision    the same draw for all       reference or a precision

Models whose scale is in the header are told the SNR at both ends, as the link does it.
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from itertools import product
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from semseal.runtime import channel
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import EngineError
from semseal.runtime.metrics import psnr

SNRS = (0.0, 10.0, 20.0)
NOISE_SEED = 0
MANY_DB = 40.0  # what is told where there is no noise

Reals = NDArray[np.float32]
Side = Callable[
    ..., Reals
]  # images to symbols [batch, N, 2] or back; with what it is told, if the model's scale is in the header


def measure_parity(
    encode: Side, decode: Side, graphs: Mapping[tuple[str, str], bytes], images: Reals, h: int, has_scale: bool
) -> dict[str, Any]:
    """Reference ``encode`` (images to symbols [batch, N, 2]) and ``decode`` against graphs by (side, precision).

    With ``has_scale`` encode takes the SNR [batch] too and gives symbols of any power, and decode takes the side information
    [batch, 3]. Every CPU engine that is installed runs every precision at the transmitter alone, at the receiver alone, and at
    both. Returns rows of PSNR in dB at each SNR, the largest difference in a symbol and in a pixel without noise, the range of
    the power per symbol over the images, why OpenVINO does not run a precision ("refused"), and which operators
    ONNX Runtime assigned to which provider. Raises EngineError for a graph that ONNX Runtime does not run.
    """
    identity = np.arange(len(images) * h, dtype=np.int32).reshape(len(images), h)
    symbols, told = on_air(encode, images, MANY_DB, has_scale)
    clean = decode(symbols, *told)
    noise = channel.draw_noise(len(images), symbols.shape[1], np.random.default_rng(NOISE_SEED))

    def link(send: Side, receive: Side) -> dict[str, float]:
        measured = {}
        for snr in SNRS:
            sent, told = on_air(send, images, snr, has_scale)
            measured[f"{snr:.0f}"] = float(psnr(images, receive(received(sent, noise, snr), *told)).mean())
        return measured

    rows = [{"engine": "reference", "transmitter": "reference", "receiver": "reference", "psnr": link(encode, decode)}]
    differences: dict[str, dict[str, Any]] = {}
    refused: dict[str, str] = {}
    engines = ["onnxruntime-cpu"] + ["openvino"] * (find_spec("openvino") is not None)
    for engine, precision in product(engines, dict.fromkeys(precision for _, precision in graphs)):
        try:
            send, receive = (_indexed(engine, graphs[side, precision], identity) for side in ("transmitter", "receiver"))
            measured = [
                {"engine": engine, "transmitter": names[0], "receiver": names[1], "psnr": link(row_send, row_receive)}
                for names, row_send, row_receive in (
                    ((precision, "reference"), send, decode),
                    (("reference", precision), encode, receive),
                    ((precision, precision), send, receive),
                )
            ]
            sent, _ = on_air(send, images, MANY_DB, has_scale)
            power = 2 * np.square(sent.astype(np.float64)).mean(axis=(1, 2))
            differences[f"{engine} {precision}"] = {
                "max_symbol_error": float(np.abs(sent - symbols).max()),
                "max_image_error": float(np.abs(receive(symbols, *told) - clean).max()),
                "power_per_symbol": [float(power.min()), float(power.max())],
            }
            rows += measured
        except EngineError as error:
            if engine != "openvino":
                raise
            refused[f"{engine} {precision}"] = error.message
    providers = {f"{side}.{precision}": _providers(graph) for (side, precision), graph in graphs.items()}
    counts = {"pictures": len(images), "noise_seed": NOISE_SEED}
    return {**counts, "rows": rows, "differences": differences, "refused": refused, "providers": providers}


def on_air(send: Side, images: Reals, snr_db: float, has_scale: bool) -> tuple[Reals, list[Reals]]:
    """Symbols of unit power [batch, N, 2], and what their receiver is told at this SNR."""
    if not has_scale:
        return send(images), []
    expected = np.full(len(images), snr_db, np.float32)
    symbols, scales = channel.to_unit_power(send(images, expected))
    noise = np.full(len(images), 10 ** (-snr_db / 10), np.float32)
    return symbols, [np.stack([scales, noise, expected], axis=1)]


def received(symbols: Reals, noise: NDArray[np.complex64], snr_db: float) -> Reals:
    """Symbols as reals [batch, N, 2] with this noise at this SNR."""
    sent = np.ascontiguousarray(symbols).view(np.complex64)[..., 0]
    return channel.awgn(sent, noise, snr_db)[..., None].view(np.float32)


def _indexed(engine: str, graph: bytes, index: NDArray[np.int32]) -> Side:
    """A graph with its rows left where they are."""
    run = open_engine(engine, graph)
    return lambda given, *told: run(given, index, *told)


def _providers(graph: bytes) -> dict[str, dict[str, int]]:
    """The operators that ONNX Runtime assigned to each execution provider, and how many of each."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    local = [name for name in onnxruntime.get_available_providers() if name != "AzureExecutionProvider"]
    assigned = onnxruntime.InferenceSession(graph, options, providers=local).get_provider_graph_assignment_info()
    counts: dict[str, dict[str, int]] = {}
    for part in assigned:
        operators = counts.setdefault(part.ep_name, {})
        for node in part.get_nodes():
            operators[node.op_type] = operators.get(node.op_type, 0) + 1
    return counts
