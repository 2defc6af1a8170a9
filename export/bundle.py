"""A run -> a bundle, with the proof that the deployed graphs do what the trained model did."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from onnx import numpy_helper
from semseal.export.onnx import export_graphs
from semseal.export.parity import Side, measure_parity, on_air, received
from semseal.export.quantize import to_fp16, to_int8
from semseal.export.rewrite import OPSET, rewrite
from semseal.export.tensorrt import plan_files
from semseal.runtime import channel
from semseal.runtime.bundle import PRECISIONS, Bundle, write_bundle
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import BundleError
from semseal.runtime.mixing import with_mix
from semseal.runtime.pictures import open_pictures
from semseal.runtime.progress import Stage
from semseal.train.config import ModelConfig, TrainConfig
from semseal.train.edge import EdgeCodec, Int8Step
from semseal.train.fit import Link, last_row, load_run, resized

_WEIGHTS = "model."  # before the names of a model's weights in its graphs

# of pictures up to this many pixels; of larger ones fewer, with as many pixels together, because time and memory go by those
USUAL_PIXELS = 360 * 360
PARITY_PICTURES, LEAST_PARITY_PICTURES = 12, 3
CALIBRATION_PICTURES, LEAST_CALIBRATION_PICTURES = 32, 5  # one for each of the SNRs that they are sent at


def export_run(run: Path, out: Path, size: tuple[int, int] | None = None, **deployed: Any) -> Bundle:
    """Write the bundle of a finished run; ``deploy`` says how, and takes the other arguments.

    ``size`` is the height and width of the pictures, those that it was trained for if None. Raises TrainingError for a folder
    that is no finished run, or a size that is no multiple of 4, and what ``deploy`` raises.
    """
    model = load_run(run)
    config = TrainConfig.read(run)
    training = {**dataclasses.asdict(config), "last": last_row(run)}
    manifest: dict[str, Any] = {"snr_db": config.snr_range, "training": training}
    if size is not None:
        model = resized(model, *size)
    return export_model(model, out, manifest, **deployed)


def export_bundle(source: Bundle, out: Path, size: tuple[int, int], **deployed: Any) -> Bundle:
    """Write a bundle of an edge network again, for pictures of another size. Raises BundleError for another network."""
    model = resized(model_of(source), *size)
    kept: dict[str, Any] = {name: source.manifest[name] for name in ("snr_db", "training") if name in source.manifest}
    return export_model(model, out, kept, **deployed)


def model_of(bundle: Bundle) -> EdgeCodec:
    """The network of a bundle, from the weights in its graphs, with the steps that its INT8 form was trained with.

    Raises BundleError for another network than edge.
    """
    weights = {}
    for side in ("transmitter", "receiver"):
        for tensor in onnx.load_model_from_string(bundle.graph(side)).graph.initializer:
            if tensor.name.startswith(_WEIGHTS):
                weights[tensor.name.removeprefix(_WEIGHTS)] = torch.from_numpy(numpy_helper.to_array(tensor).copy())
    blocks = {name.split(".")[2] for name in weights if name.startswith("decoder.blocks.")}
    trained = bundle.manifest.get("training", {}).get("model", {}).get("int8", False)
    rounds = trained and "int8" in bundle.manifest["precisions"]
    if rounds:
        weights |= _log_steps(bundle.graph("receiver", "int8"))
    try:
        c = int(bundle.manifest["model"]["c"])
        network = EdgeCodec(ModelConfig(bundle.height, bundle.width, c, "edge", len(blocks), rounds))
        network.load_state_dict(weights)
    except (ValueError, RuntimeError):  # of the sizes, of the weights
        raise BundleError(f"{bundle.name} holds no edge network", "export the run that it was made from") from None
    return network.eval()


def _log_steps(graph: bytes) -> dict[str, torch.Tensor]:
    """The logarithm of the step of what each quantised layer of an INT8 graph takes, by the name of a network's weight."""
    model = onnx.load_model_from_string(graph).graph
    made_by = {name: node for node in model.node for name in node.output}
    constants = {tensor.name: tensor for tensor in model.initializer}
    steps = {}
    for node in model.node:
        if node.op_type == "Conv" and node.input[1] in made_by:  # its weights come out of a DequantizeLinear
            layer = made_by[node.input[1]].input[0].removeprefix(_WEIGHTS).removesuffix(".weight_quantized")
            step = numpy_helper.to_array(constants[made_by[node.input[0]].input[1]])
            steps[f"{layer}.log_step"] = torch.tensor(np.log(step))
    return steps


def export_model(model: Link, out: Path, manifest: dict[str, Any], **deployed: Any) -> Bundle:
    """Write the bundle of a trained model; ``manifest`` brings "snr_db" and what else is to be in it."""
    for split in ("train", "valid"):
        open_pictures(deployed.get("calibration", "photos"), split)  # before the minute that graphs take
    transmitter, receiver = map(rewrite, export_graphs(model))

    @torch.no_grad()
    def encode(*given: NDArray[np.float32]) -> NDArray[np.float32]:
        return model.encode(*map(torch.from_numpy, given)).numpy()

    @torch.no_grad()
    def decode(*given: NDArray[np.float32]) -> NDArray[np.float32]:
        return model.decode(*map(torch.from_numpy, given)).numpy()

    sizes: dict[str, Any] = {name: getattr(model.config, name) for name in ("height", "width", "h", "w", "c")}
    if isinstance(model, EdgeCodec):
        sizes["scale"] = "header"
    steps = {}
    if isinstance(model, EdgeCodec):
        steps = {_WEIGHTS + name: step for name, step in model.int8_steps().items()}
    return deploy(out, transmitter, receiver, encode, decode, {"model": sizes, **manifest}, steps=steps, **deployed)


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
    calibration: str = "photos",
    *,
    steps: Mapping[str, Int8Step] | None = None,
    signing_key: Ed25519PrivateKey | None,
    force: bool = False,
    tell: Stage = lambda what, i, n: None,
) -> Bundle:
    """Make every precision and plan of two fp32 graphs, measure parity with the reference, and write the bundle.

    ``encode`` and ``decode`` are the reference, as in ``measure_parity``; ``manifest`` brings "model" (height, width, h, w, c,
    and "scale" if it is in the header) and "snr_db", the range. fp32 is always made; ``engines`` names those of ``tensorrt``,
    ``tensorrt-rtx`` whose plans are built, the latter for ``capabilities`` (86 for 8.6; empty: this machine's GPU).
    ``calibration`` is the data spec of the pictures that int8 is calibrated on (its split train) and parity is measured on
    (valid), ``steps`` as in ``to_int8``. ``signing_key`` is the owner's, None for a packaged bundle. ``force`` replaces a
    bundle at ``out``, whole; ``tell`` is told of each part of the work. Raises BundleError for ``out``, ValueError for a
    precision that does not exist, GraphError where one cannot be made, EngineError where a plan cannot be built.
    """
    unknown = [precision for precision in precisions if precision not in PRECISIONS]
    if unknown:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {unknown[0]!r}")
    made = [precision for precision in PRECISIONS if precision == "fp32" or precision in precisions]
    model = manifest["model"]
    images = _taken(calibration, "valid", (PARITY_PICTURES, LEAST_PARITY_PICTURES), model, "parity")
    parts = len(engines) + 2
    tell(f"graphs in {', '.join(made)}", 1, parts)
    graphs = _precisions(transmitter, receiver, made, manifest, calibration, steps)
    files = {f"{side}.{precision}.onnx": graph for (side, precision), graph in graphs.items()}
    if engines:
        graphs_of_plans = graphs | _mixing(graphs, model)
    for i, engine in enumerate(engines):
        tell(f"plans of {engine}", i + 2, parts)
        chosen = (capabilities or None) if engine == "tensorrt-rtx" else None
        files |= plan_files(engine, graphs_of_plans, capabilities=chosen)
    tell("parity", parts, parts)
    parity = measure_parity(encode, decode, graphs, images, model["h"], "scale" in model)
    return write_bundle(
        out,
        files,
        {
            **manifest,
            "precisions": made,
            "engines": list(engines),
            "opset": OPSET,
            "tools": {package: version(package) for package in ("semseal", "torch", "onnx", "onnxruntime", "numpy")},
            "parity": {"data": calibration.partition(":")[0], **parity},
        },
        signing_key,
        force=force,
    )


def _precisions(
    transmitter: bytes,
    receiver: bytes,
    made: Sequence[str],
    manifest: dict[str, Any],
    calibration: str,
    steps: Mapping[str, Int8Step] | None,
) -> dict[tuple[str, str], bytes]:
    """The two fp32 graphs and what is made of them, by (side, precision)."""
    graphs = {("transmitter", "fp32"): transmitter, ("receiver", "fp32"): receiver}
    if "fp16" in made:
        graphs |= {(side, "fp16"): to_fp16(graphs[side, "fp32"]) for side in ("transmitter", "receiver")}
    if "int8" in made:
        feeds = _calibration(transmitter, manifest["model"], manifest["snr_db"], calibration)
        graphs |= {(side, "int8"): to_int8(graphs[side, "fp32"], feeds[side], steps) for side in ("transmitter", "receiver")}
    return graphs


def _mixing(graphs: dict[tuple[str, str], bytes], model: dict[str, Any]) -> dict[tuple[str, str], bytes]:
    """The same graphs made to mix, by (side, precision), as plans are built of them too."""
    h, c = model["h"], model["c"]
    return {(f"{side}-mix", name): with_mix(graph, side, h, model["w"] * c, c) for (side, name), graph in graphs.items()}


def _taken(data: str, split: str, most_and_least: tuple[int, int], model: dict[str, Any], purpose: str) -> NDArray[np.float32]:
    """As many pictures as suit their size, or as there are; what is missing is said on stderr."""
    pictures = open_pictures(data, split)
    most, least = most_and_least
    n = max(least, min(most, most * USUAL_PIXELS // (model["height"] * model["width"])))
    images = pictures.take(n, model["height"], model["width"], fewer=True)
    for line in pictures.remarks(len(images), n, purpose):
        print(line, file=sys.stderr)
    return images


def _calibration(
    transmitter: bytes, model: dict[str, Any], snr_db: Sequence[float], data: str
) -> dict[str, list[dict[str, NDArray[Any]]]]:
    """What each side is given for pictures that parity is not measured on: these, and their symbols over the channel.

    The pictures take turns through the range of SNRs.
    """
    images = _taken(data, "train", (CALIBRATION_PICTURES, LEAST_CALIBRATION_PICTURES), model, "calibration")
    identity = np.arange(model["h"], dtype=np.int32)[None]
    run = open_engine("onnxruntime-cpu", transmitter)
    rng = np.random.default_rng(1)
    feeds: dict[str, list[dict[str, NDArray[Any]]]] = {"transmitter": [], "receiver": []}
    for image, snr in zip(
        images, np.resize(np.linspace(snr_db[0], snr_db[1], LEAST_CALIBRATION_PICTURES), len(images)).tolist(), strict=True
    ):
        sent, told = on_air(lambda x, *told: run(x, identity, *told), image[None], snr, "scale" in model)
        noise = channel.draw_noise(1, sent.shape[1], rng)
        side = {"side_information": told[0]} if told else {}
        feeds["transmitter"].append({"image": image[None], "index": identity, **({"snr_db": told[0][:, 2]} if told else {})})
        feeds["receiver"].append({"symbols": received(sent, noise, snr), "index": identity, **side})
    return feeds
