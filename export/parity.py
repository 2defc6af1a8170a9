"""Parity in link terms: what the deployed graphs cost in dB, against the model that they were made from.

images ── transmitter ──> symbols ──> + noise at 0, 10, 20 dB ──> receiver ──> PSNR
          reference or a precision    the same draw for all       reference or a precision
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from semseal.runtime import channel
from semseal.runtime.defense import index
from semseal.runtime.engine import open_engine
from semseal.runtime.metrics import psnr

SNRS = (0.0, 10.0, 20.0)
NOISE_SEED = 0

Side = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def measure_parity(
    encode: Side, decode: Side, graphs: Mapping[tuple[str, str], bytes], images: NDArray[np.float32], h: int
) -> dict[str, Any]:
    """Reference ``encode`` (images to symbols [batch, N, 2]) and ``decode`` against graphs by (side, precision).

    Every CPU engine that is installed runs every precision at the transmitter alone, at the receiver alone, and at both.
    Returns rows of PSNR in dB at each SNR, the largest difference of a symbol and of a picture without noise, the power per
    symbol over the images, and which provider of ONNX Runtime was given which operators.
    """
    places = np.arange(len(images))
    identity = index.absolute(np.tile(index.identity(h), (len(images), 1)), places, places)
    symbols = encode(images)
    clean = decode(symbols)
    noise = channel.draw_noise(len(images), symbols.shape[1], np.random.default_rng(NOISE_SEED))

    def link(sent: NDArray[np.float32], receive: Side) -> dict[str, float]:
        pictures = (receive(_heard(sent, noise, snr)) for snr in SNRS)
        return {f"{snr:.0f}": float(psnr(images, picture).mean()) for snr, picture in zip(SNRS, pictures, strict=True)}

    rows = [{"engine": "reference", "transmitter": "reference", "receiver": "reference", "psnr": link(symbols, decode)}]
    differences: dict[str, dict[str, Any]] = {}
    for engine in ["onnxruntime-cpu"] + ["openvino"] * (find_spec("openvino") is not None):
        for precision in dict.fromkeys(precision for _, precision in graphs):
            run_transmitter = open_engine(engine, graphs["transmitter", precision])
            run_receiver = open_engine(engine, graphs["receiver", precision])
            sent = run_transmitter(images, identity)

            def receive(heard: NDArray[np.float32], run: Callable[..., NDArray[np.float32]] = run_receiver) -> Any:
                return run(heard, identity)

            for names, row_sent, row_receive in (
                ((precision, "reference"), sent, decode),
                (("reference", precision), symbols, receive),
                ((precision, precision), sent, receive),
            ):
                rows.append(
                    {"engine": engine, "transmitter": names[0], "receiver": names[1], "psnr": link(row_sent, row_receive)}
                )
            power = 2 * np.square(sent.astype(np.float64)).mean(axis=(1, 2))
            differences[f"{engine} {precision}"] = {
                "max_symbol_error": float(np.abs(sent - symbols).max()),
                "max_image_error": float(np.abs(receive(symbols) - clean).max()),
                "power_per_symbol": [float(power.min()), float(power.max())],
            }
    providers = {f"{side}.{precision}": _providers(graph) for (side, precision), graph in graphs.items()}
    return {"pictures": len(images), "noise_seed": NOISE_SEED, "rows": rows, "differences": differences, "providers": providers}


def _heard(symbols: NDArray[np.float32], noise: NDArray[np.complex64], snr_db: float) -> NDArray[np.float32]:
    on_air = np.ascontiguousarray(symbols).view(np.complex64)[..., 0]
    return channel.awgn(on_air, noise, snr_db)[..., None].view(np.float32)


def _providers(graph: bytes) -> dict[str, dict[str, int]]:
    """Which execution provider of ONNX Runtime was given which operators, and how many of each."""
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
