"""Bring your own model: any pair of ONNX files -> the two graphs of a bundle.

    image ── user's transmitter ── features ── unit power per image ── rows ── Gather(index) ── symbols
    image ── Clip ── user's receiver ── gain ── features ── Gather(index) ── rows ── symbols

Rows are what the scheme index moves. One image's features become h rows of w*c floats each:

    [c, h, w], h > 1       h rows, in a row the columns from left to right, channel fastest
    [h, d],    h > 2       one row for each token
    any other              in the order of memory, cut into rows of whole symbols; of all ways to do so, the one whose number
                           of rows is nearest to the square root of the number of floats

Power: what goes on air has power 1 per complex symbol and image, whatever the transmitter does. The gain gives the receiver
the power back that it was trained with: exactly, where the transmitter gives every picture the same; else on average, and then
the picture's own power is lost. A receiver that needs it is refused, by what that costs in dB on real pictures.
"""

import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnx.inliner
import onnx.version_converter
import onnxruntime
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from semseal.export.bundle import deploy
from semseal.export.onnx import OPSET
from semseal.export.rewrite import rewrite
from semseal.runtime.bundle import Bundle
from semseal.runtime.metrics import psnr
from semseal.runtime.onnxfile import OnnxFileError, check_onnx
from semseal.runtime.pictures import open_pictures

PICTURES = 12  # photographs the power is measured on, and as many others that the pair is proved on
BATCH = 3  # of them in one run of the packed graphs
CONSTANT_POWER = 0.01  # relative spread over pictures below which the transmitter counts as normalising
TOLERANCE = 1e-3  # largest difference between packed and original, of symbols of power 1 and of images in 0..1
LARGEST_LOSS = 3.0  # dB that per-image power may cost
BEST_PSNR = 60.0  # dB; a difference beyond it does not count as a loss
SMALLEST_POWER, LARGEST_POWER = 1e-18, 1e30  # per symbol; float32 squares are exact enough between them

Images = NDArray[np.float32]
Array = NDArray[np.float32]
Shape = tuple[int, ...]
Session = onnxruntime.InferenceSession


class PackError(ValueError):
    """A pair that does not fit; the message begins with ``transmitter:`` or ``receiver:`` and says what to change."""


@dataclass(frozen=True)
class Layout:
    """How one image's features of ``shape`` lie in h rows of w*c floats."""

    shape: Shape
    h: int
    w: int
    c: int

    @property
    def spatial(self) -> bool:
        """Features [c, h, w], whose rows are turned so that the channel is fastest."""
        return self.c > 1

    def to_rows(self, features: Array) -> Array:
        """[batch, *shape] to [batch, h, w*c]."""
        turned = features.transpose(0, 2, 3, 1) if self.spatial else features
        return turned.reshape(len(features), self.h, self.w * self.c)

    def from_rows(self, rows: Array) -> Array:
        """The reverse of ``to_rows``."""
        if self.spatial:
            return np.ascontiguousarray(rows.reshape(-1, self.h, self.w, self.c).transpose(0, 3, 1, 2))
        return rows.reshape(-1, *self.shape)


@dataclass(frozen=True)
class Packed:
    """Two graphs with the interface of ``semseal.export.onnx``, and how they came about.

    ``encode`` and ``decode`` are the user's own files, one picture at a time, with power and layout in NumPy: images to
    symbols [batch, N, 2] and back, the reference for parity.
    """

    transmitter: bytes
    receiver: bytes
    height: int
    width: int
    h: int
    w: int
    c: int
    gain: float  # the receiver's features are the unit-power symbols times this
    own_power: bool  # the transmitter gives every picture the same power
    psnr_original: float  # dB, mean over PICTURES photographs without noise, of the user's pair back to back
    psnr_packed: float  # dB, of the same with unit power
    notes: tuple[str, ...]  # one sentence for each decision
    encode: Callable[[Images], Array]
    decode: Callable[[Array], Images]


def pack(
    transmitter: Path,
    receiver: Path,
    out: Path,
    snr_db: float,
    precisions: Sequence[str],
    engines: Sequence[str] = (),
    **signing: Any,
) -> Bundle:
    """Pack two files and write the bundle, meant for a main channel of ``snr_db``; the rest is as in ``deploy``.

    The manifest's "packed" holds the notes. Raises PackError as ``pack_graphs``, and what ``deploy`` raises.
    """
    packed = pack_graphs(transmitter.read_bytes(), receiver.read_bytes())
    told = ("gain", "own_power", "psnr_original", "psnr_packed", "notes")
    manifest = {
        "model": {name: getattr(packed, name) for name in ("height", "width", "h", "w", "c")},
        "snr_db": snr_db,
        "packed": {"transmitter": transmitter.name, "receiver": receiver.name, **{name: getattr(packed, name) for name in told}},
    }
    graphs = rewrite(packed.transmitter), rewrite(packed.receiver)
    return deploy(out, *graphs, packed.encode, packed.decode, manifest, precisions, engines, **signing)


def pack_graphs(transmitter: bytes, receiver: bytes) -> Packed:
    """Two ONNX files as the graphs of a bundle, proved on photographs to do what the files do.

    The transmitter takes one image float32 [batch, 3, height, width] in 0..1 and gives features or symbols float32
    [batch, ...]; the receiver takes these and gives the image. The batch is dynamic or 1. Raises PackError for anything else,
    for a pair that a batch or unit power changes, and for files that do not stand for themselves.
    """
    models = {"transmitter": _read("transmitter", transmitter), "receiver": _read("receiver", receiver)}
    height, width = _image_size(models["transmitter"].graph.input[0])
    probes = open_pictures("photos", "train").take(PICTURES, height, width)
    images = open_pictures("photos", "valid").take(PICTURES, height, width)
    sessions = {side: _session(side, data) for side, data in (("transmitter", transmitter), ("receiver", receiver))}

    def run(side: str, batch: Array) -> Array:
        """The user's file on one picture after the other."""
        outputs = np.concatenate([_run(side, sessions[side], batch[i : i + 1]) for i in range(len(batch))])
        if not np.isfinite(outputs).all():
            raise PackError(f"{side}: it gives values that are not finite for photographs in 0..1")
        return outputs

    probe_features, features = run("transmitter", probes), run("transmitter", images)
    layout = _layout(features.shape[1:])
    _fits(models["receiver"].graph.input[0], features.shape[1:])
    original = run("receiver", features)
    if original.shape != images.shape:
        raise PackError(f"receiver: it gives {_shape(original)} for a picture of {_shape(images)}; it must give the image back")
    clip_note = _range(original)

    power = _power(layout.to_rows(probe_features)).ravel()
    if not SMALLEST_POWER < power.mean() < LARGEST_POWER:
        raise PackError(f"transmitter: the features' power per symbol is {power.mean():.3g}; scale the features to about 1")
    own_power = bool(np.ptp(power) < CONSTANT_POWER * power.mean())
    # few digits, so that another processor's rounding does not make another bundle
    gain = float(f"{math.sqrt(power.mean()):.5g}")

    def encode(pictures: Images) -> Array:
        rows = layout.to_rows(run("transmitter", pictures))
        scaled = (rows / np.sqrt(_power(rows).clip(1e-20))).astype(np.float32)
        return scaled.reshape(len(rows), -1, 2)

    def decode(symbols: Array) -> Images:
        rows = symbols.reshape(len(symbols), layout.h, -1) * np.float32(gain)
        return run("receiver", layout.from_rows(rows)).clip(0, 1)

    symbols = encode(images)
    pictures = decode(symbols)
    wide = (3, height, width)
    sides = {
        "transmitter": (wide, layout.shape, lambda graph: _transmitter(graph, layout, height, width), images, symbols),
        "receiver": (layout.shape, wide, lambda graph: _receiver(graph, layout, height, width, gain), symbols, pictures),
    }
    graphs = {
        side: _proved(side, _networks(side, models[side], taken, given), build, inputs, expected, layout.h)
        for side, (taken, given, build, inputs, expected) in sides.items()
    }
    before, after = (float(psnr(images, answer).mean()) for answer in (original.clip(0, 1), pictures))
    spread = f"{power.min():.3g} to {power.max():.3g} per symbol over {PICTURES} photographs"
    if min(before, BEST_PSNR) - min(after, BEST_PSNR) > LARGEST_LOSS:
        raise PackError(
            f"receiver: it depends on the absolute power of the features ({spread}), which a link of unit power cannot carry: "
            f"{before:.2f} dB becomes {after:.2f} dB on {PICTURES} photographs without noise; train the pair with power "
            "normalised per image"
        )
    n = features[0].size // 2
    return Packed(
        graphs["transmitter"],
        graphs["receiver"],
        height,
        width,
        **{name: getattr(layout, name) for name in ("h", "w", "c")},
        gain=gain,
        own_power=own_power,
        psnr_original=before,
        psnr_packed=after,
        notes=(
            f"features {_shape(features)} are sent as {layout.h} rows of {layout.w * layout.c} floats: {n} symbols, bandwidth "
            f"ratio {n / (3 * height * width):.4f}",
            f"the transmitter already gives every picture one power ({spread}): the receiver gets it back exactly, by the "
            f"factor {gain:g}"
            if own_power
            else f"the transmitter's power varies ({spread}): normalised per image, and the receiver's features multiplied by "
            f"the root mean square, {gain:g}",
            *(
                f"{side}: its batch was fixed at 1 and is dynamic now; {BATCH} pictures at once equal {BATCH} single ones"
                for side in models
                if _fixed_batch(models[side])
            ),
            *clip_note,
            f"without noise the original pair gives {before:.2f} dB and the packed pair {after:.2f} dB on {PICTURES} photographs",
        ),
        encode=encode,
        decode=decode,
    )


def _read(side: str, data: bytes) -> onnx.ModelProto:
    """The model in standard operators of OPSET, with one float32 input and output, or the reason why not."""
    try:
        check_onnx(data)
        model = onnx.inliner.inline_local_functions(onnx.load_model_from_string(data))
        onnx.checker.check_model(model)
    except (OnnxFileError, DecodeError, onnx.checker.ValidationError) as error:
        raise PackError(f"{side}: {_first_line(error)}") from None
    graph = model.graph
    _check_nodes(side, graph)
    given = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in given]
    for what, values in (("inputs", inputs), ("outputs", graph.output)):
        if len(values) != 1:
            raise PackError(f"{side}: it has {len(values)} {what} ({', '.join(v.name for v in values)}); it must have one")
        kind = values[0].type.tensor_type.elem_type
        if kind != TensorProto.FLOAT:
            name = TensorProto.DataType.Name(kind).lower()
            raise PackError(f"{side}: {values[0].name!r} is {name}; inputs and outputs must be float32")
    (batch, *_) = _axes(inputs[0]) or [0]
    if batch not in (1, None):
        raise PackError(f"{side}: its batch is fixed at {batch}; export it with a dynamic batch")
    del graph.input[:]
    graph.input.extend(inputs)
    version = max(opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx"))
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", version))
    if version == OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except (RuntimeError, onnx.checker.ValidationError) as error:
        raise PackError(
            f"{side}: its opset {version} cannot be converted to {OPSET}: {_first_line(error)}; export it with opset_version={OPSET}"
        ) from None


def _check_nodes(side: str, graph: onnx.GraphProto) -> None:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        where = f"node {node.name or node.output[0]!r} ({node.op_type})"
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "Constant" and "value" in given:
            constants[node.output[0]] = numpy_helper.to_array(given["value"])
        if node.domain not in ("", "ai.onnx"):
            raise PackError(f"{side}: {where} is of the domain {node.domain}; only standard ONNX operators are portable")
        if any(isinstance(value, onnx.GraphProto) for value in given.values()):
            raise PackError(f"{side}: {where} is control flow; export the path that is taken")
        if node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial"):
            raise PackError(f"{side}: {where} draws random numbers; leave the channel and its noise out of the file")
        training = len(node.output) > 1 or given.get("training_mode", 0) if node.op_type == "BatchNormalization" else False
        if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            training = constants.get(node.input[2], True)
        if training:
            raise PackError(f"{side}: {where} is in training mode; call eval() before the export")


def _axes(value: onnx.ValueInfoProto) -> list[int | None] | None:
    """The declared sizes, None where they are dynamic; None for an unknown rank."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return [axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim]


def _fixed_batch(model: onnx.ModelProto) -> bool:
    return (_axes(model.graph.input[0]) or [None])[0] == 1


def _image_size(value: onnx.ValueInfoProto) -> tuple[int, int]:
    axes = _axes(value)
    if axes is None or len(axes) != 4 or axes[1] != 3:
        hint = "; transpose [batch, height, width, 3] to it" if axes and axes[-1] == 3 else ""
        raise PackError(f"transmitter: {value.name!r} is {_declared(axes)}; it must be an image [batch, 3, height, width]{hint}")
    height, width = axes[2:]
    if height is None or width is None:
        raise PackError(f"transmitter: {value.name!r} is {_declared(axes)}; height and width must be fixed at the export")
    return height, width


def _layout(shape: Shape) -> Layout:
    """Rows for one image's features; the module says how."""
    size = math.prod(shape)
    if size % 2:
        raise PackError(f"transmitter: features {list(shape)} are {size} floats per image, an odd number; symbols are pairs")
    if len(shape) == 3 and shape[1] > 1 and shape[0] > 1:
        c, h, w = shape
        return Layout(shape, h, w, c)
    if len(shape) == 2 and shape[0] > 2 and shape[1] != 2:
        return Layout(shape, shape[0], shape[1], 1)
    choices = [h for h in range(2, size // 2 + 1) if size % (2 * h) == 0]
    if not choices:
        raise PackError(f"transmitter: features {list(shape)} are {size} floats per image, too few for two rows of a symbol")
    h = min(choices, key=lambda h: abs(math.log(h / math.sqrt(size))))
    return Layout(shape, h, size // h, 1)


def _fits(value: onnx.ValueInfoProto, shape: Shape) -> None:
    axes = _axes(value)
    same = axes is None or len(axes) == len(shape) + 1 and all(a in (None, b) for a, b in zip(axes[1:], shape, strict=True))
    if not same:
        raise PackError(f"receiver: {value.name!r} is {_declared(axes)}, but the transmitter gives [batch, {_join(shape)}]")


def _range(pictures: Images) -> list[str]:
    """A note where clipping changes what the receiver gives, an error where it would destroy it."""
    low, high = float(pictures.min()), float(pictures.max())
    most_low, most_high = np.quantile(pictures, [0.01, 0.99])
    if most_low < -0.25 or most_high > 1.25:
        raise PackError(f"receiver: it gives values {low:.3g} to {high:.3g}; images are 0..1: put the scaling into the model")
    return [f"receiver: it gives values {low:.3g} to {high:.3g}, clipped to 0..1"] if low < 0 or high > 1 else []


def _power(rows: Array) -> NDArray[np.float64]:
    """Mean power per complex symbol of each image: [batch, 1, 1]."""
    return np.asarray(2 * np.square(rows.astype(np.float64)).mean(axis=(1, 2), keepdims=True))


def _networks(side: str, model: onnx.ModelProto, taken: Shape, given: Shape) -> list[onnx.GraphProto]:
    """The user's network for any batch, in the forms that may do, best first; input and output are tensors ``in`` and ``out``.

    Best is without arithmetic on shapes, which no engine profits from: constants are folded as if the batch were 1, and it is
    freed again where they hold it. Whether that is right, ``_proved`` tells. Else a dynamic batch as the file has it.
    """
    alone = _fold(side, _declare(model, 1, taken, given))
    forms = [_declare(_free_batch(alone), "batch", taken, given)]
    if not _fixed_batch(model):
        forms.append(_fold(side, _declare(model, "batch", taken, given)))
    return [_named(form.graph) for form in forms]


def _declare(model: onnx.ModelProto, batch: int | str, taken: Shape, given: Shape) -> onnx.ModelProto:
    """The model with these sizes at its ends and none within."""
    graph = model.graph
    ends = [
        helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [batch, *shape])
        for value, shape in ((graph.input[0], taken), (graph.output[0], given))
    ]
    declared = helper.make_graph(graph.node, "network", ends[:1], ends[1:], graph.initializer)
    return helper.make_model(declared, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _fold(side: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """Constants computed, batch normalisation in the convolutions, nothing without effect: ONNX Runtime's basic level."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    # these two make the batch a factor of other sizes
    disabled = ["MatMulAddFusion", "TransposeOptimizer"]
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        try:
            Session(model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)
        except Exception as error:  # its exceptions share no narrower base
            raise PackError(f"{side}: ONNX Runtime cannot load it with opset {OPSET}: {_first_line(error)}") from None
        return onnx.load(options.optimized_model_filepath)


def _free_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """The batch of 1 taken out of the constants that Reshape and Resize take."""
    inferred = onnx.shape_inference.infer_shapes(model)
    sizes = {value.name: _axes(value) for value in (*inferred.graph.value_info, *inferred.graph.input)}
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for i, node in enumerate(graph.node):
        wanted = constants.get(node.input[-1])
        if wanted is None or wanted.dtype != np.int64 or wanted.shape == () or wanted[0] != 1:
            continue
        if node.op_type == "Reshape":
            free = np.concatenate([[0 if -1 in wanted else -1], wanted[1:]]).astype(np.int64)
            del node.attribute[:]  # allowzero would take the 0 for a size
            node.input[1] = f"{node.input[1]}_{i}"
        elif node.op_type == "Resize" and len(sizes.get(node.input[0]) or []) == len(wanted):
            free = (wanted / np.array(sizes[node.input[0]])).astype(np.float32)
            node.input[:] = [node.input[0], "", f"{node.input[3]}_{i}"]
        else:
            continue
        graph.initializer.append(numpy_helper.from_array(free, node.input[-1]))
    return model


def _named(graph: onnx.GraphProto) -> onnx.GraphProto:
    """Nodes and tensors named ``network/``, the ends ``in`` and ``out``, nothing left that tells of the exporting machine."""
    ends = {f"network/{graph.input[0].name}": "in", f"network/{graph.output[0].name}": "out"}
    named = onnx.compose.add_prefix_graph(graph, "network/")
    for i, node in enumerate(named.node):
        node.name = f"network/{node.op_type}_{i}"
        node.doc_string = ""
        del node.metadata_props[:]
        for names in (node.input, node.output):
            names[:] = [ends.get(name, name) for name in names]
    for tensor in named.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    return named


def _transmitter(network: onnx.GraphProto, layout: Layout, height: int, width: int) -> bytes:
    """image, index -> symbols; the nodes from the features on are named ``power/``, those of the scheme index ``index/``."""
    h, row, n = layout.h, layout.w * layout.c, math.prod(layout.shape) // 2
    tail = [
        *([_node("power/transpose", "Transpose", "features", "turned", perm=[0, 2, 3, 1])] if layout.spatial else []),
        _node("power/flatten", "Reshape", "turned rows_shape" if layout.spatial else "features rows_shape", "unscaled_rows"),
        _node("power/square", "Mul", "unscaled_rows unscaled_rows", "squares"),
        _node("power/mean", "ReduceMean", "squares row_axes", "mean_square", keepdims=1),
        _node("power/complex", "Mul", "mean_square reals", "power"),
        _node("power/floor", "Clip", "power least_power", "floored_power"),  # an all-zero image stays zero
        _node("power/amplitude", "Sqrt", "floored_power", "amplitude"),
        _node("power/reciprocal", "Reciprocal", "amplitude", "scale"),
        _node("power/scale", "Mul", "unscaled_rows scale", "scaled_rows"),
        _node("power/rows", "Reshape", "scaled_rows row_shape", "rows"),
        _node("index/gather", "Gather", "rows index", "rows_on_air", axis=0),
        _node("index/symbols", "Reshape", "rows_on_air symbols_shape", "symbols"),
    ]
    constants = {
        "rows_shape": np.array([-1, h, row]),
        "row_axes": np.array([1, 2]),
        "reals": np.float32(2),
        "least_power": np.float32(1e-20),
        "row_shape": np.array([-1, row]),
        "symbols_shape": np.array([-1, n, 2]),
    }
    ends = {"image": ["batch", 3, height, width], "index": ["batch", h], "symbols": ["batch", n, 2]}
    return _assemble([*_rewired(network, "image", "features"), *tail], network, constants, ends)


def _receiver(network: onnx.GraphProto, layout: Layout, height: int, width: int, gain: float) -> bytes:
    """symbols, index -> image."""
    h, row, n = layout.h, layout.w * layout.c, math.prod(layout.shape) // 2
    spatial = layout.spatial
    head = [
        _node("index/rows", "Reshape", "symbols row_shape", "rows"),
        _node("index/gather", "Gather", "rows index", "rows_in_order", axis=0),
        _node("index/features", "Reshape", "rows_in_order features_shape", "turned" if spatial else "features"),
        *([_node("index/transpose", "Transpose", "turned", "features", perm=[0, 3, 1, 2])] if spatial else []),
        _node("network/gain", "Mul", "features gain", "scaled_features"),
    ]
    constants = {
        "row_shape": np.array([-1, row]),
        "features_shape": np.array([-1, layout.h, layout.w, layout.c] if spatial else [-1, *layout.shape]),
        "gain": np.float32(gain),
        "black": np.float32(0),
        "white": np.float32(1),
    }
    body = _rewired(network, "scaled_features", "unclipped")
    tail = _node("network/clip", "Clip", "unclipped black white", "image")
    ends = {"symbols": ["frames", n, 2], "index": ["batch", h], "image": ["batch", 3, height, width]}
    return _assemble([*head, *body, tail], network, constants, ends)


def _node(name: str, operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], name, **attributes)


def _rewired(network: onnx.GraphProto, taken: str, given: str) -> list[onnx.NodeProto]:
    """The network's nodes with its ends renamed."""
    ends = {"in": taken, "out": given}
    nodes = []
    for node in network.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for names in (copy.input, copy.output):
            names[:] = [ends.get(name, name) for name in names]
        nodes.append(copy)
    return nodes


def _assemble(
    nodes: list[onnx.NodeProto], network: onnx.GraphProto, constants: dict[str, Any], ends: dict[str, list[int | str]]
) -> bytes:
    """The graph of these nodes as a checked file; of ``ends`` the last is the output, and ``index`` is int32."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.INT32 if name == "index" else TensorProto.FLOAT, shape)
        for name, shape in ends.items()
    ]
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in network.initializer if tensor.name in used]
    weights += [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "semseal", values[:-1], values[-1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _proved(
    side: str,
    networks: list[onnx.GraphProto],
    build: Callable[[onnx.GraphProto], bytes],
    inputs: Array,
    expected: Array,
    h: int,
) -> bytes:
    """The first network's graph that gives in batches what the user's file gives for single pictures."""
    reason = ""
    for network in networks:
        try:
            graph = build(network)
            session = _session(side, graph)
            reason = f"single pictures come out otherwise with opset {OPSET}"
            for size in (1, BATCH):
                for start in range(0, len(inputs), size):
                    part = slice(start, start + size)
                    got = _run(side, session, inputs[part], np.arange(size * h, dtype=np.int32).reshape(size, h))
                    difference = float(np.abs(got - expected[part]).max())
                    if not difference <= TOLERANCE:
                        raise PackError(f"{side}: {reason}: largest difference {difference:.2g}")
                reason = f"{BATCH} pictures at once come out otherwise than one by one; the images of a batch must not mix"
            return graph
        except (PackError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            reason = _first_line(error)
    return ""
