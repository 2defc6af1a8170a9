"""What a bundle's graphs cost: multiplications, parameters, and the time of one image on one thread."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from semseal.runtime.bench.measure import interleave
from semseal.runtime.bundle import open_bundle
from semseal.runtime.link import Receiver, Transmitter
from shared import plain

FORMS = (("onnxruntime-cpu", "fp32"), ("openvino", "int8"))
ROUNDS, WARM_UP = 200, 20


def arithmetic(name: str, height: int, width: int) -> dict[str, Any]:
    """Multiply-accumulates for one image and parameters of each side's fp32 graph."""
    bundle = open_bundle(name)
    return {side: graph_cost(bundle.graph(side), height, width) for side in ("transmitter", "receiver")}


def graph_cost(data: bytes, height: int, width: int) -> dict[str, int]:
    """Multiply-accumulates of all Conv, ConvTranspose, Gemm and MatMul nodes for one image, and the weights in float."""
    model = onnx.load_from_string(data)
    for given in model.graph.input:
        for i, axis in enumerate(given.type.tensor_type.shape.dim):
            if not axis.HasField("dim_value"):
                # of a picture [batch, 3, height, width] the size is asked for; all else unknown counts images or frames
                picture = given.name == "image" and i >= 2
                axis.dim_value = (height, width)[i - 2] if picture else 1
    for given in model.graph.output:
        given.type.tensor_type.ClearField("shape")  # it may contradict the sizes just set
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes: dict[str, tuple[int, ...]] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for info in (*graph.input, *graph.value_info, *graph.output):
        shapes[info.name] = tuple(axis.dim_value for axis in info.type.tensor_type.shape.dim)
    macs = sum(_macs(node, shapes) for node in graph.node)
    floats = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
    return {"macs": macs, "parameters": sum(values.size for values in floats if values.dtype.kind == "f")}


def _macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    into, weight, out = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    each = 1  # multiplications for an output value; for an input value of ConvTranspose
    if node.op_type in ("Conv", "ConvTranspose"):
        each, out = int(np.prod(weight[1:])), out if node.op_type == "Conv" else into
    else:
        turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        each = weight[-1] if turned else weight[-2]
    macs = int(np.prod(out)) * each
    if macs == 0:
        raise ValueError(f"the shapes of {node.op_type} {node.name} are not known: {into}, {weight}, {out}")
    return macs


def latency(names: Sequence[str], image: NDArray[np.float32]) -> dict[str, dict[str, Any]]:
    """Milliseconds of ``send`` and ``receive`` of one image on one thread: medians of interleaved rounds, by side and form.

    Null with the reason where a bundle or this machine lacks one.
    """
    sends: dict[str, Any] = {}
    receives: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name in names:
        for engine, precision in FORMS:
            form = f"{engine} {precision}"
            try:
                alice = Transmitter(name, engine=engine, precision=precision, threads=1)
                bob = Receiver(name, engine=engine, precision=precision, threads=1)
            except Exception as error:  # an engine that is not installed, a precision that was not made
                found[name][form] = {"value": None, "reason": f"{type(error).__name__}: {error}"}
                continue
            frames = alice.send(image)
            sends[f"{name}\n{form}"] = lambda alice=alice: alice.send(image)
            receives[f"{name}\n{form}"] = lambda bob=bob, frames=frames: bob.receive(frames)
    for side, runs in (("transmitter", sends), ("receiver", receives)):
        for key, seconds in interleave(plain(runs), ROUNDS, WARM_UP).items():
            name, form = key.split("\n")
            found[name].setdefault(form, {})[f"{side} ms"] = float(np.median(seconds)) * 1e3
    return found
