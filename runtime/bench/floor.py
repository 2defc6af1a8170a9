"""The least time that a stage can take on this machine: what it must move and compute, over ceilings that are measured here.

    floor = max(bytes / copy bandwidth, operations / rate of a matrix product in that precision) + calls * an empty call

Bytes are inputs, outputs and weights, each once; operations are two for each multiply-add of convolutions and matrix products.
Bandwidth is that of a copy of about as many bytes, because what fits a cache moves faster. Products run in every engine that is
here, and the fastest counts. A floor is no promise that code can reach it: it says how much there can be to gain.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from semseal.runtime.bench.measure import Stage
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import EngineError
from semseal.runtime.onnxwrite import FLOAT, INT8, Graph, Node, declaration, integer, pack, tensor

COPIED_BYTES = (2**17, 2**20, 2**23, 2**26)  # in a cache, in a larger one, beyond all
SIDE, CHAIN = 512, 4  # of the matrices, and how many products follow each other in one call
REPEATS = 5
PRECISIONS = ("fp32", "fp16", "int8")
_FLOAT16 = 10  # type of a tensor's elements
_HEADER = pack(1, 10) + pack(8, pack(1, "") + pack(2, 20))  # of a model: format 10, operators of opset 20


@dataclass(frozen=True)
class Ceilings:
    """What this machine can do. ``products`` and ``empty_call_s`` are by engine; None with a reason where it cannot be had."""

    copies: tuple[tuple[int, float], ...]  # bytes, bytes per second
    products: dict[str, dict[str, float | None]]  # operations per second, by precision
    empty_call_s: dict[str, float]
    reasons: dict[str, str]

    def floor_s(self, stage: Stage, engine: str, precision: str) -> float | None:
        """Of one run of the stage; None where nothing is known of it."""
        if not (stage.bytes or stage.operations):
            return None
        rate = next((rate for size, rate in self.copies if size >= stage.bytes), self.copies[-1][1])
        best = [found[precision] for found in self.products.values() if found.get(precision)]
        compute = stage.operations / max(float(rate or 0) for rate in best) if best else 0.0
        return max(stage.bytes / rate, compute) + stage.calls * self.empty_call_s.get(engine, 0.0)


def ceilings(engines: Sequence[str], threads: int | None) -> Ceilings:
    """Measure them; a few seconds."""
    products: dict[str, dict[str, float | None]] = {}
    empty: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for engine in engines:
        if engine.startswith("tensorrt"):
            reasons[engine] = "it runs plans, and none is built for this"
            continue
        try:
            call = open_engine(engine, _identity(), threads)
        except EngineError as error:
            reasons[engine] = error.message
            continue
        one = np.zeros((1, 1), np.float32)
        empty[engine] = _least(lambda call=call, one=one: call(one), 200)
        products[engine] = {}
        for precision in PRECISIONS:
            try:
                products[engine][precision] = _product_rate(engine, precision, threads)
            except EngineError as error:
                products[engine][precision] = None
                reasons[f"{engine} {precision}"] = error.message
    return Ceilings(tuple((size, _copy_rate(size)) for size in COPIED_BYTES), products, empty, reasons)


def _least(run: Any, repeats: int = REPEATS) -> float:
    """Seconds of the fastest run: a ceiling is what the machine can do when it is left alone."""
    run()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _copy_rate(size: int) -> float:
    """Bytes that are read or written in a second: a copy of half of them reads as many as it writes."""
    source = np.ones(size // 2, np.uint8)
    target = np.empty_like(source)
    rate = size / _least(lambda: np.copyto(target, source), 30)
    assert target.all(), "a copy gave something else"
    return rate


def _product_rate(engine: str, precision: str, threads: int | None) -> float:
    run = open_engine(engine, product_graph(precision), threads)
    x = np.random.default_rng(0).random((SIDE, SIDE), np.float32)
    given = run(x)
    # every matrix has rows that add up to 1, so the mean stays
    assert abs(given.mean() / x.mean() - 1) < 0.1, f"{engine} {precision}: a matrix product is wrong"
    return 2 * SIDE**3 * CHAIN / _least(lambda: run(x))


def _identity() -> bytes:
    graph = Graph([Node("Identity", ["x"], ["y"], "same")])
    graph.inputs["x"] = declaration("x", FLOAT, [1, 1])
    graph.outputs["y"] = declaration("y", FLOAT, [1, 1])
    return graph.encoded(_HEADER)


def product_graph(precision: str) -> bytes:
    """x [SIDE, SIDE] times CHAIN matrices whose entries are all 1 / SIDE, in this precision."""
    graph, here = Graph(), "x"
    graph.inputs["x"] = declaration("x", FLOAT, [SIDE, SIDE])
    graph.outputs["y"] = declaration("y", FLOAT, [SIDE, SIDE])
    graph.constants["w"] = tensor("w", np.full((SIDE, SIDE), 1 / SIDE, np.float32))
    if precision == "int8":
        for name, value in (("scale", 1 / 127), ("w_scale", 1 / SIDE / 127)):
            graph.constants[name] = tensor(name, np.float32(value))
        graph.constants["zero"] = pack(2, INT8) + pack(8, "zero") + pack(9, b"\0")
        graph.constants["w8"] = pack(1, SIDE) * 2 + pack(2, INT8) + pack(8, "w8") + pack(9, b"\x7f" * SIDE**2)
        del graph.constants["w"]
        graph.nodes.append(Node("DequantizeLinear", ["w8", "w_scale", "zero"], ["w"], "w"))
    if precision == "fp16":
        cast = integer("to", _FLOAT16)
        graph.nodes += [Node("Cast", ["x"], ["x16"], "x16", cast), Node("Cast", ["w"], ["w16"], "w16", cast)]
        here = "x16"
    for i in range(CHAIN):
        out = f"y{i}"
        if precision == "int8":
            graph.nodes += [
                Node("QuantizeLinear", [here, "scale", "zero"], [f"q{i}"], f"q{i}"),
                Node("DequantizeLinear", [f"q{i}", "scale", "zero"], [f"d{i}"], f"d{i}"),
            ]
            here = f"d{i}"
        graph.nodes.append(Node("MatMul", [here, "w16" if precision == "fp16" else "w"], [out], out))
        here = out
    end = (
        Node("Cast", [here], ["y"], "y", integer("to", FLOAT)) if precision == "fp16" else Node("Identity", [here], ["y"], "y")
    )
    graph.nodes.append(end)
    return graph.encoded(_HEADER)


@functools.lru_cache(maxsize=32)
def operations(graph: bytes) -> int | None:
    """Of one image: two for each multiply-add of the convolutions and matrix products; None without the package onnx."""
    try:
        import onnx
    except ImportError:
        return None
    model = onnx.load_model_from_string(graph)
    for value in model.graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if not axis.dim_value:
                axis.dim_value = 1  # one image, one frame
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    shapes = {v.name: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim] for v in values}
    shapes |= {constant.name: list(constant.dims) for constant in model.graph.initializer}
    return sum(2 * _multiply_adds(node, shapes) for node in model.graph.node)


def _multiply_adds(node: Any, shapes: dict[str, list[int]]) -> int:
    known = [shapes.get(name, []) for name in (*node.input[:2], *node.output[:1])]
    if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm") or not all(known):
        return 0
    given, weights, out = known
    if node.op_type == "Conv":
        return int(np.prod(out)) * int(np.prod(weights[1:]))
    if node.op_type == "ConvTranspose":
        return int(np.prod(given)) * int(np.prod(weights[1:]))
    return int(np.prod(out)) * int(given[-1])
