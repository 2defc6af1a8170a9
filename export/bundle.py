"""A run -> a bundle, with the proof that the deployed graphs do what the trained model did."""

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from semseal.export.onnx import OPSET, export_graphs
from semseal.runtime import channel
from semseal.runtime.bundle import Bundle, write_bundle
from semseal.runtime.defense import index
from semseal.runtime.engine import open_engine
from semseal.runtime.metrics import psnr
from semseal.runtime.pictures import open_pictures
from semseal.train.config import TrainConfig
from semseal.train.fit import load_run
from semseal.train.model import DeepJSCC

PARITY_PICTURES = 6
PARITY_SNRS = (0.0, 10.0, 20.0)


def export_run(run: Path, out: Path) -> Bundle:
    """Write the bundle of a finished run. Raises FileNotFoundError or ValueError for a bad run, BundleError for ``out``."""
    model = load_run(run)
    config = TrainConfig.read(run)
    transmitter, receiver = export_graphs(model)
    images = open_pictures("photos", "valid").take(PARITY_PICTURES, config.model.height, config.model.width)
    manifest: dict[str, Any] = {
        "model": {
            "height": config.model.height,
            "width": config.model.width,
            "h": config.model.h,
            "w": config.model.w,
            "c": config.model.c,
        },
        "snr_db": float(config.snr_db),
        "precisions": ["fp32"],
        "opset": OPSET,
        "tools": {package: version(package) for package in ("semseal", "torch", "onnx", "onnxruntime", "numpy")},
        "training": {**dataclasses.asdict(config), "last": json.loads((run / "log.jsonl").read_text().splitlines()[-1])},
        "parity": measure_parity(model, transmitter, receiver, images),
    }
    return write_bundle(out, {"transmitter.fp32.onnx": transmitter, "receiver.fp32.onnx": receiver}, manifest)


@torch.no_grad()
def measure_parity(model: DeepJSCC, transmitter: bytes, receiver: bytes, images: NDArray[np.float32]) -> dict[str, Any]:
    """Torch against ONNX Runtime for the same images and the same noise: PSNR in dB at each SNR, largest differences."""
    h, n = model.config.h, model.config.n_symbols
    places = np.arange(len(images))
    identity = index.spread(np.tile(index.identity(h), (len(images), 1)), places, places)
    expected = model.encode(torch.from_numpy(images)).numpy()
    symbols = open_engine("onnxruntime-cpu", transmitter)(images, identity)
    decode = open_engine("onnxruntime-cpu", receiver)
    rows, worst = [], 0.0
    for snr in PARITY_SNRS:
        noise = channel.draw_noise(len(images), n, np.random.default_rng(0))
        heard = channel.awgn(symbols.view(np.complex64)[..., 0], noise, snr)[..., None].view(np.float32)
        heard_torch = channel.awgn(expected.view(np.complex64)[..., 0], noise, snr)[..., None].view(np.float32)
        by_torch, by_engine = model.decode(torch.from_numpy(heard_torch)).numpy(), decode(heard, identity)
        worst = max(worst, float(np.abs(by_torch - by_engine).max()))
        rows.append(
            {
                "snr_db": snr,
                "torch_psnr": float(psnr(images, by_torch).mean()),
                "onnxruntime-cpu_psnr": float(psnr(images, by_engine).mean()),
            }
        )
    return {
        "pictures": len(images),
        "data": "photos",
        "psnr": rows,
        "max_image_error": worst,
        "max_symbol_error": float(np.abs(expected - symbols).max()),
        "power_per_symbol": [float(p) for p in 2 * np.square(symbols.astype(np.float64)).mean(axis=(1, 2))],
    }
