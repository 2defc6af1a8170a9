"""FP16 and INT8 forms of a deployed graph: the precision is part of the graph, as strongly typed TensorRT requires.

FP16   casts at the ends; power normalisation and the scheme index stay in float32, so on-air power is exact
INT8   Q/DQ in front of every convolution and matrix product, none behind: activations run on the accumulator, and an
       engine fuses convolution, activation and the next quantiser into one kernel. Symmetric, weights per channel,
       biases in float: TensorRT takes nothing else. The layer that reads the picture itself stays in float, because
       symmetric Q/DQ would halve the picture's 256 levels, and so do a linear path beside the network, which carries what is
       beyond 40 dB, what is computed once for each image, and a layer behind a Concat, which OpenVINO gets wrong. Where a
       layer needs some channels more exactly than 8 bits give, it takes them twice: rounded, and what the rounding leaves,
       FINER times larger
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel
from semseal.export.rewrite import equalize
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import GraphError
from semseal.train.edge import Int8Step

FINER = 8
LAYERS = ("Conv", "Gemm", "MatMul")
CALIBRATION_PERCENTILE = 99.999  # of the magnitudes; the few beyond it saturate
_TOGETHER = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Relu", "Clip", "Mul", "Div", "Add", "Sub")
EQUALIZATIONS = [(strength, quantile) for strength in (0.5, 0.7, 0.85, 1.0) for quantile in (0.9999, 1.0)]


def to_fp16(graph: bytes) -> bytes:
    """The graph in half precision with float32 inputs and outputs.

    At the transmitter, power normalisation and all that follows stay in float32. Raises GraphError for a graph that has no
    such form.
    """
    model = onnx.load_model_from_string(graph)
    names = [node.name for node in model.graph.node]
    first = next((i for i, node in enumerate(model.graph.node) if node.op_type in LAYERS), 0)
    exact = [name for i, name in enumerate(names) if name.startswith("power/") or (name.startswith("index/") and i > first)]
    with _converting("fp16"):
        converted = OnnxModel(
            convert_float_to_float16(
                model,
                keep_io_types=True,
                op_block_list=[op for op in DEFAULT_OP_BLOCK_LIST if op not in ("Max", "Min")],
                node_block_list=exact,
            )
        )
        # the converter wraps every float32 node in casts of its own: down to half precision and up again
        converted.remove_cascaded_cast_nodes()
        converted.remove_useless_cast_nodes()
        converted.topological_sort()
    return _checked(converted.model, "fp16")


def to_int8(graph: bytes, feeds: Sequence[dict[str, NDArray[Any]]], steps: Mapping[str, Int8Step] | None = None) -> bytes:
    """The graph in 8 bits, calibrated on ``feeds``: inputs of the graph by name, one picture each.

    ``steps`` are those that the model was trained with, of what a layer takes, by the name of its weights. Without them, of
    several equalizations of the channels, the one whose output is nearest to the float graph's on ``feeds`` is taken. Raises
    GraphError for a graph without a layer to quantise, and for one that has no such form.
    """
    if steps:
        return _quantize(graph, feeds, steps)
    expected = _outputs(graph, feeds)
    best, least = b"", np.inf
    for strength, quantile in EQUALIZATIONS:
        quantized = _quantize(equalize(graph, feeds, strength, quantile), feeds)
        error = float(np.square(_outputs(quantized, feeds) - expected).mean())
        if error < least:
            best, least = quantized, error
    return best


def _outputs(graph: bytes, feeds: Sequence[dict[str, NDArray[Any]]]) -> NDArray[np.float32]:
    run = open_engine("onnxruntime-cpu", graph)
    return np.concatenate([run(*feed.values()) for feed in feeds])


def _quantize(graph: bytes, feeds: Sequence[dict[str, NDArray[Any]]], steps: Mapping[str, Int8Step] | None = None) -> bytes:
    model = onnx.load_model_from_string(graph)
    layers = [node for node in model.graph.node if node.op_type in LAYERS]
    known = {node.input[0]: (steps or {}).get(node.input[1]) for node in layers}
    zero = np.array(0, np.int8)
    overrides = {
        name: [{"scale": np.array(found.step, np.float32), "zero_point": zero}]
        for name, found in known.items()
        if found is not None
    }
    made_by = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    in_float = [
        node.name
        for node in layers
        if node.input[0] == "image"
        or node.name.startswith(("linear/", "power/"))
        or _is_behind_concat(node.input[0], made_by, constants)
    ]
    if len(layers) == len(in_float):
        raise GraphError(f"nothing to quantise: the graph has no {', '.join(LAYERS)} beyond its input", "leave out int8")
    with tempfile.TemporaryDirectory() as folder, _converting("int8"):
        before, after = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, before)
        logging.disable(logging.WARNING)  # it recommends a pre-processing that has been done
        try:
            quantize_static(
                before,
                after,
                _Feeds(feeds),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(LAYERS),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=in_float,
                calibrate_method=CalibrationMethod.Percentile,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    "MatMulConstBOnly": True,
                    "OpTypesToExcludeOutputQuantization": list(LAYERS),
                    "CalibPercentile": CALIBRATION_PERCENTILE,
                    "TensorQuantOverrides": overrides,
                },
            )
        finally:
            logging.disable(logging.NOTSET)
        quantized = onnx.load(after)
    for layer in layers:
        trained = (steps or {}).get(layer.input[1])
        if trained and trained.fine:
            _take_twice(quantized.graph, layer.input[1], trained.fine)
    return _checked(quantized, "int8")


def _take_twice(graph: onnx.GraphProto, weight: str, channels: int) -> None:
    """Give the layer with this weight, besides its quantised input, FINER times what rounding leaves of the first channels.

    The same step suits both, and weights of a FINERth are exact enough for what little they add.
    """
    made_by = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    levels = constants[f"{weight}_quantized"]
    expanded = next(node.output[0] for node in graph.node if node.input[0] == levels.name)
    layer = next(node for node in graph.node if expanded in node.input)
    quantizer = made_by[made_by[layer.input[0]].input[0]]
    taken, step, _ = quantizer.input
    values = numpy_helper.to_array(levels)
    less = np.rint(values[:, :channels] / FINER).astype(np.int8)
    levels.CopyFrom(numpy_helper.from_array(np.concatenate([values, less], axis=1), levels.name))
    name = f"{weight}_twice"
    width, inputs = numpy_helper.to_array(constants[step]), values.shape[1]
    once, twice = np.repeat([1, 0], [inputs, channels]), np.repeat([0, FINER], [inputs, channels])
    given = {
        "of": np.r_[:inputs, :channels].astype(np.int64),
        "per_step": np.float32(1 / width),
        "least": np.float32(-127),
        "largest": np.float32(127),
        "times": (once + twice).astype(np.float32)[:, None, None],
        "less": (twice * width).astype(np.float32)[:, None, None],
    }
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), f"{name}_{part}") for part, value in given.items())
    # neither by Concat nor by Q/DQ, which OpenVINO 2026.4 both gets wrong in front of a quantiser
    chain = {
        "all": ("Gather", taken, "of"),
        "levels": ("Mul", "all", "per_step"),
        "clipped": ("Clip", "levels", "least", "largest"),
        "rounded": ("Round", "clipped"),
        "larger": ("Mul", "all", "times"),
        "taken_off": ("Mul", "rounded", "less"),
        "both": ("Sub", "larger", "taken_off"),
    }
    at = list(graph.node).index(quantizer)
    for offset, (output, (operator, *parts)) in enumerate(chain.items()):
        reads = [part if part == taken else f"{name}_{part}" for part in parts]
        more: dict[str, Any] = {"axis": 1} if operator == "Gather" else {}
        node = helper.make_node(operator, reads, [f"{name}_{output}"], f"{layer.name}/{output}", **more)
        graph.node.insert(at + offset, node)
    quantizer.input[0] = f"{name}_both"


@contextlib.contextmanager
def _converting(precision: str) -> Iterator[None]:
    """What ONNX Runtime's converters print is dropped, and what they raise is a GraphError: theirs share no base."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise GraphError(f"the graph has no {precision} form: {reason}", f"leave out {precision}") from error


def _is_behind_concat(name: str, made_by: Mapping[str, onnx.NodeProto], constants: Set[str]) -> bool:
    """Whether a tensor is a Concat but for what OpenVINO computes together with it.

    Quantised behind it, channels of the second part come out wrong there (OpenVINO 2026.4, by a third of their size).
    """
    while (node := made_by.get(name)) is not None and node.op_type in _TOGETHER:
        varying = [given for given in node.input if given and given not in constants]
        if len(varying) != 1:
            return False
        name = varying[0]
    return node is not None and node.op_type == "Concat"


def _checked(model: onnx.ModelProto, precision: str) -> bytes:
    """The bytes of a converted model. Raises GraphError where the conversion left an invalid graph."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"the graph has no valid {precision} form: {error}", f"leave out {precision}") from None
    data: bytes = model.SerializeToString(deterministic=True)
    return data


class _Feeds(CalibrationDataReader):  # the quantiser takes nothing else
    def __init__(self, feeds: Sequence[dict[str, NDArray[Any]]]) -> None:
        self.left = iter(feeds)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self.left, None)
