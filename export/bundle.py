"""A run -> a bundle, with the proof that the deployed graphs do what the trained model did."""

import dataclasses
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from semseal.export.mixing import with_mix
from semseal.export.onnx import OPSET, export_graphs
from semseal.export.parity import Side, measure_parity
from semseal.export.quantize import to_fp16, to_int8
from semseal.export.rewrite import rewrite
from semseal.export.tensorrt import plan_files
from semseal.runtime import channel
from semseal.runtime.bundle import PRECISIONS, Bundle, write_bundle
from semseal.runtime.defense.mix import MAX_REALS
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import GraphError
from semseal.runtime.pictures import open_pictures
from semseal.train.config import TrainConfig
from semseal.train.fit import last_row, load_run

PARITY_PICTURES = 12
CALIBRATION_PICTURES = 32


def export_run(run: Path, out: Path, **deployed: Any) -> Bundle:
    """Write the bundle of a finished run; ``deploy`` says how, and takes the other arguments.

    Raises TrainingError for a folder that is no finished run, and what ``deploy`` raises.
    """
    model = load_run(run)
    config = TrainConfig.read(run)
    transmitter, receiver = map(rewrite, export_graphs(model))

    @torch.no_grad()
    def encode(images: NDArray[np.float32]) -> NDArray[np.float32]:
        return model.encode(torch.from_numpy(images)).numpy()

    @torch.no_grad()
    def decode(symbols: NDArray[np.float32]) -> NDArray[np.float32]:
        return model.decode(torch.from_numpy(symbols)).numpy()

    sizes = {name: getattr(config.model, name) for name in ("height", "width", "h", "w", "c")}
    training = {**dataclasses.asdict(config), "last": last_row(run)}
    manifest = {"model": sizes, "snr_db": float(config.snr_db), "training": training}
    return deploy(out, transmitter, receiver, encode, decode, manifest, **deployed)


def deploy(
    out: Path,
    transmitter: bytes,
    receiver: bytes,
    encode: Side,
    decode: Side,
    manifest: dict[str, Any],
    precisions: Sequence[str] = PRECISIONS,
    engines: Sequence[str] = (),
    capabilities: Sequence[int] = (),
    *,
    signing_key: Ed25519PrivateKey | None,
    force: bool = False,
) -> Bundle:
    """Make every precision and plan of two fp32 graphs, measure parity with the reference, and write the bundle.

    ``encode`` maps images to symbols [batch, N, 2], ``decode`` maps them back; ``manifest`` brings "model" (height, width,
    h, w, c) and "snr_db". fp32 is always made; ``engines`` names those of ``tensorrt``, ``tensorrt-rtx`` whose plans are
    built, the latter for ``capabilities`` (86 for 8.6; empty: this machine's GPU). ``signing_key`` is the owner's, None for a
    packaged bundle. ``force`` replaces a bundle at ``out``, whole. Raises BundleError for ``out``, ValueError for a precision
    that does not exist, GraphError where one cannot be made, EngineError where a plan cannot be built.
    """
    unknown = [precision for precision in precisions if precision not in PRECISIONS]
    if unknown:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {unknown[0]!r}")
    made = [precision for precision in PRECISIONS if precision == "fp32" or precision in precisions]
    model = manifest["model"]
    if (reals := model["h"] * model["w"] * model["c"]) > MAX_REALS:
        raise GraphError(
            f"features of {reals} floats per image, and mix takes up to {MAX_REALS}", "let the transmitter give fewer"
        )
    graphs = {("transmitter", "fp32"): transmitter, ("receiver", "fp32"): receiver}
    if "fp16" in made:
        graphs |= {(side, "fp16"): to_fp16(graphs[side, "fp32"]) for side in ("transmitter", "receiver")}
    if "int8" in made:
        feeds = _calibration(transmitter, model, manifest["snr_db"])
        graphs |= {(side, "int8"): to_int8(graphs[side, "fp32"], feeds[side]) for side in ("transmitter", "receiver")}
    images = open_pictures("photos", "valid").take(PARITY_PICTURES, model["height"], model["width"])
    mixing = {
        (f"{side}-mix", precision): with_mix(graph, side, model["h"], model["w"] * model["c"], model["c"])
        for (side, precision), graph in graphs.items()
    }
    files = {f"{side}.{precision}.onnx": graph for (side, precision), graph in (graphs | mixing).items()}
    for engine in engines:
        files |= plan_files(engine, graphs | mixing, capabilities=(capabilities or None) if engine == "tensorrt-rtx" else None)
    return write_bundle(
        out,
        files,
        {
            **manifest,
            "precisions": made,
            "engines": list(engines),
            "opset": OPSET,
            "tools": {package: version(package) for package in ("semseal", "torch", "onnx", "onnxruntime", "numpy")},
            "parity": {"data": "photos", **measure_parity(encode, decode, graphs, images, model["h"])},
        },
        signing_key,
        force=force,
    )


def _calibration(transmitter: bytes, model: dict[str, int], snr_db: float) -> dict[str, list[dict[str, NDArray[Any]]]]:
    """What each side is given for photographs that parity is not measured on: pictures, and their symbols over the channel."""
    images = open_pictures("photos", "train").take(CALIBRATION_PICTURES, model["height"], model["width"])
    identity = np.arange(model["h"], dtype=np.int32)[None]
    run = open_engine("onnxruntime-cpu", transmitter)
    symbols = np.concatenate([run(image[None], identity) for image in images]).view(np.complex64)[..., 0]
    noise = channel.draw_noise(len(symbols), symbols.shape[1], np.random.default_rng(1))
    received = channel.awgn(symbols, noise, snr_db)[..., None].view(np.float32)
    return {
        "transmitter": [{"image": image[None], "index": identity} for image in images],
        "receiver": [{"symbols": row[None], "index": identity} for row in received],
    }
