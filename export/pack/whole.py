"""Bring your own model: any pair of ONNX files -> the two graphs of a bundle.

    image ── user's transmitter ── features ── unit power per image ── rows ── Gather(index) ── symbols
    image ── Clip ── user's receiver ── gain ── features ── Gather(index) ── rows ── symbols

Rows are what the scheme index moves. One image's features become h rows of w*c floats each:

    [c, h, w], h > 1       h rows, in a row the columns from left to right, channel fastest
    [h, d],    h > 2       one row for each token
    any other              as they lie in memory, in rows of whole symbols: the fewest rows that are no fewer than the square
                           root of the number of floats

Power: what goes on air has power 1 per complex symbol and image, whatever the transmitter does. The gain gives the receiver
the power back that it was trained with: exactly, where the transmitter gives every picture the same; else on average, and then
the picture's own power is lost. A receiver that needs it is refused, by what that costs in dB on real pictures.
"""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnx.inliner
import onnx.version_converter
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from semseal.export.bundle import deploy
from semseal.export.onnx import OPSET
from semseal.export.parity import Side
from semseal.export.rewrite import rewrite
from semseal.runtime.bundle import Bundle
from semseal.runtime.errors import GraphError
from semseal.runtime.metrics import psnr
from semseal.runtime.onnxfile import check_onnx
from semseal.runtime.pictures import open_pictures

PICTURES = 12  # photographs that the power is measured on, and as many others that the pair is proved on
BATCH = 3  # of them in one run of the packed graphs
CONSTANT_POWER = 0.01  # spread over pictures, relative, up to which the transmitter counts as normalising
TOLERANCE = 1e-3  # largest difference between graph and file, as a part of that between pictures
WORTH_TELLING, LARGEST_LOSS = 0.1, 3.0  # dB that unit power costs
BEST_PSNR = 60.0  # dB; what is lost beyond it nobody sees
LEAST_POWER = 1e-20  # as in training and in the kernel: an all-zero image stays zero
SMALLEST_POWER, LARGEST_POWER = 1e-18, 1e30  # per symbol, whose squares float32 holds well
DOMAINS = ("", "ai.onnx")
DYNAMIC = "export it with a dynamic batch, whose images do not influence each other"

Array = NDArray[np.float32]
Shape = tuple[int, ...]
End = tuple[str, Shape]  # a tensor's name and shape, the batch first


@dataclass(frozen=True)
class Layout:
    """How one image's features of ``shape`` become h rows of w*c floats."""

    shape: Shape
    h: int
    w: int
    c: int

    @property
    def turns(self) -> bool:
        """Whether the features are [c, h, w], and the channel is to be fastest."""
        return self.c > 1

    def to_rows(self, features: Array) -> Array:
        """[batch, *shape] to [batch, h, w*c]."""
        turned = features.transpose(0, 2, 3, 1) if self.turns else features
        return turned.reshape(len(features), self.h, self.w * self.c)

    def from_rows(self, rows: Array) -> Array:
        """The reverse of ``to_rows``."""
        if self.turns:
            return np.ascontiguousarray(rows.reshape(-1, self.h, self.w, self.c).transpose(0, 3, 1, 2))
        return rows.reshape(-1, *self.shape)


@dataclass(frozen=True)
class Packed:
    """Two graphs with the interface of ``semseal.export.onnx``, and how they came about.

    ``encode`` and ``decode`` are the user's own files, one picture at a time, with power and layout in NumPy: images to
    symbols [batch, N, 2] and back. They are the reference for parity.
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
    psnr_original: float  # dB, mean over PICTURES photographs without noise: the files back to back
    psnr_packed: float  # dB, the same with unit power
    notes: tuple[str, ...]  # what was decided, a sentence each
    encode: Side
    decode: Side


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

    The manifest's "packed" holds the notes. Raises GraphError as ``pack_graphs``, and what ``deploy`` raises.
    """
    packed = pack_graphs(transmitter.read_bytes(), receiver.read_bytes())
    told = ("gain", "own_power", "psnr_original", "psnr_packed", "notes")
    manifest = {
        "model": {name: getattr(packed, name) for name in ("height", "width", "h", "w", "c")},
        "snr_db": snr_db,
        "packed": {name: getattr(packed, name) for name in told},
    }
    graphs = rewrite(packed.transmitter), rewrite(packed.receiver)
    return deploy(out, *graphs, packed.encode, packed.decode, manifest, precisions, engines, **signing)


def pack_graphs(transmitter: bytes, receiver: bytes) -> Packed:
    """Two ONNX files as the graphs of a bundle, proved on photographs to do what the files do.

    The transmitter takes one image float32 [batch, 3, height, width] in 0..1 and gives features or symbols float32
    [batch, ...]; the receiver takes these and gives the image back. The batch is dynamic, or 1 and is made dynamic. Raises
    GraphError for anything else, and for a pair that unit power or a batch would change.
    """
    files = {"transmitter": transmitter, "receiver": receiver}
    models = {side: _read(side, data) for side, data in files.items()}
    sessions = {side: _session(side, data) for side, data in files.items()}
    height, width = _image_size(models["transmitter"].graph.input[0])
    probes = open_pictures("photos", "train").take(PICTURES, height, width)
    images = open_pictures("photos", "valid").take(PICTURES, height, width)

    features = _one_by_one("transmitter", sessions, images)
    layout = _layout(features.shape[1:])
    _check_fit(models["receiver"].graph.input[0], layout.shape)
    original = _one_by_one("receiver", sessions, features)
    if original.shape != images.shape:
        raise GraphError(f"receiver: it gives {_shape(original)} for pictures {_shape(images)}; it must give the image back")
    overshoot = _overshoot(original)

    power = _power(layout.to_rows(_one_by_one("transmitter", sessions, probes))).ravel()
    if not SMALLEST_POWER < power.mean() < LARGEST_POWER:
        raise GraphError(f"transmitter: its features have power {power.mean():.3g} per symbol; scale them to about 1")
    own_power = bool(np.ptp(power) < CONSTANT_POWER * power.mean())
    # few digits, so that another processor's rounding does not make another bundle
    gain = float(f"{math.sqrt(power.mean()):.5g}")

    def encode(pictures: Array) -> Array:
        rows = layout.to_rows(_one_by_one("transmitter", sessions, pictures))
        scaled = rows / np.sqrt(_power(rows).clip(LEAST_POWER))
        return scaled.astype(np.float32).reshape(len(rows), -1, 2)

    def decode(symbols: Array) -> Array:
        scaled = symbols.reshape(len(symbols), layout.h, -1) * np.float32(gain)
        return _one_by_one("receiver", sessions, layout.from_rows(scaled)).clip(0, 1)

    symbols = encode(images)
    pictures = decode(symbols)
    before, after = (float(psnr(images, answer).mean()) for answer in (original.clip(0, 1), pictures))
    spread = f"{power.min():.3g} to {power.max():.3g} per symbol over {PICTURES} photographs"
    lost = min(before, BEST_PSNR) - min(after, BEST_PSNR)
    if lost > LARGEST_LOSS:
        raise GraphError(
            f"receiver: it depends on the power of each picture's features ({spread}), which a link of unit power does not "
            f"carry: {before:.2f} dB become {after:.2f} dB on {PICTURES} photographs without noise; train the pair with power "
            "normalised per image"
        )
    notes = [f"features {_shape(features)} are sent as {layout.h} rows of {layout.w * layout.c} floats"]
    if own_power:
        notes.append(
            f"the transmitter gives every picture one power ({spread}): the receiver gets it back, by the factor {gain:g}"
        )
    else:
        notes.append(
            f"the transmitter's power varies ({spread}): it is normalised per image, and the receiver's features are "
            f"multiplied by its root mean square, {gain:g}"
        )
    notes += [f"the {side}'s batch was fixed at 1 and is dynamic now" for side, model in models.items() if _fixed_batch(model)]
    notes += overshoot
    notes.append(f"without noise the files give {before:.2f} dB and the bundle {after:.2f} dB, on {PICTURES} photographs")
    if lost > WORTH_TELLING:
        notes.append(f"unit power costs {lost:.2f} dB; train the pair with power normalised per image")
    taken = "features" if gain == 1 else "scaled_features"
    return Packed(
        _proved(
            "transmitter",
            _networks("transmitter", models["transmitter"], ("image", images.shape), ("features", features.shape)),
            lambda network: _transmitter(network, layout, height, width),
            (images, symbols),
            layout.h,
        ),
        _proved(
            "receiver",
            _networks("receiver", models["receiver"], (taken, features.shape), ("unclipped", images.shape)),
            lambda network: _receiver(network, layout, height, width, gain),
            (symbols, pictures),
            layout.h,
        ),
        *(height, width, layout.h, layout.w, layout.c),
        gain=gain,
        own_power=own_power,
        psnr_original=before,
        psnr_packed=after,
        notes=tuple(notes),
        encode=encode,
        decode=decode,
    )


def _read(side: str, data: bytes) -> onnx.ModelProto:
    """The model in standard operators of OPSET, with one float32 input and output. Raises GraphError."""
    try:
        check_onnx(data)
        onnx.checker.check_model(data)
    except (ValueError, onnx.checker.ValidationError) as error:
        raise GraphError(f"{side}: {_first_line(error)}") from None
    model = onnx.inliner.inline_local_functions(onnx.load_model_from_string(data))
    graph = model.graph
    _check_nodes(side, graph)
    weights = {tensor.name for tensor in graph.initializer}  # old files list them as inputs too
    inputs = [value for value in graph.input if value.name not in weights]
    for what, values in (("input", inputs), ("output", graph.output)):
        if len(values) != 1:
            names = ", ".join(value.name for value in values)
            raise GraphError(f"{side}: it has {len(values)} {what}s ({names}); it must have one")
        kind = values[0].type.tensor_type.elem_type
        if kind != TensorProto.FLOAT:
            name = TensorProto.DataType.Name(kind).lower()
            raise GraphError(f"{side}: its {what} {values[0].name!r} is {name}; it must be float32")
    axes = _axes(inputs[0])
    if axes and axes[0] not in (None, 1):
        raise GraphError(f"{side}: its batch is fixed at {axes[0]}; export it with a dynamic batch")
    del graph.input[:]
    graph.input.extend(inputs)
    version = max((opset.version for opset in model.opset_import if opset.domain in DOMAINS), default=OPSET)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", version))
    model.ir_version = max(model.ir_version, 4)  # before 4 the weights had to be among the inputs
    if version == OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except RuntimeError as error:
        reason = _first_line(error).split("failed: ")[-1]  # what precedes is a place in onnx's source
        raise GraphError(
            f"{side}: opset {version} cannot be converted to {OPSET} ({reason}); export with opset {OPSET}"
        ) from None


def _check_nodes(side: str, graph: onnx.GraphProto) -> None:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        where = f"node {node.name or node.output[0]!r} ({node.op_type})"
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        training = False
        if node.op_type == "Constant" and "value" in given:
            constants[node.output[0]] = numpy_helper.to_array(given["value"])
        elif node.op_type == "BatchNormalization":
            training = len(node.output) > 1 or bool(given.get("training_mode"))
        elif node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            training = bool(np.any(constants.get(node.input[2], True)))
        if node.domain not in DOMAINS:
            raise GraphError(f"{side}: {where} is of the domain {node.domain}; only standard ONNX operators are portable")
        if any(isinstance(value, onnx.GraphProto) for value in given.values()):
            raise GraphError(f"{side}: {where} is control flow; export without it")
        if node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial"):
            raise GraphError(f"{side}: {where} draws random numbers; leave the channel and its noise out of the file")
        if training:
            raise GraphError(f"{side}: {where} is in training mode; switch to evaluation before the export")


def _axes(value: onnx.ValueInfoProto) -> list[int | None] | None:
    """The declared sizes, None where one is dynamic; None for an unknown number of axes."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return [axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim]


def _fixed_batch(model: onnx.ModelProto) -> bool:
    axes = _axes(model.graph.input[0])
    return axes is not None and axes[:1] == [1]


def _image_size(value: onnx.ValueInfoProto) -> tuple[int, int]:
    axes = _axes(value) or []
    if len(axes) != 4 or axes[1] != 3:
        hint = "; transpose it" if len(axes) == 4 and axes[3] == 3 else ""
        raise GraphError(f"transmitter: its input {_declared(value)} is no image [batch, 3, height, width]{hint}")
    height, width = axes[2:]
    if height is None or width is None:
        raise GraphError(f"transmitter: its input {_declared(value)} has no fixed height and width; fix them at the export")
    return height, width


def _layout(shape: Shape) -> Layout:
    """Rows for one image's features; the module's docstring says how."""
    size = math.prod(shape)
    if size % 2:
        raise GraphError(f"transmitter: its features {list(shape)} are an odd number of floats per image; a symbol takes two")
    if len(shape) == 3 and shape[1] > 1:
        return Layout(shape, h=shape[1], w=shape[2], c=shape[0])
    if len(shape) == 2 and shape[0] > 2 and shape[1] != 2:
        return Layout(shape, h=shape[0], w=shape[1], c=1)
    choices = [h for h in range(2, size // 2 + 1) if size % (2 * h) == 0]
    if not choices:
        raise GraphError(f"transmitter: its features {list(shape)} are too few for two rows of at least one symbol")
    h = next(h for h in choices if h * h >= size)
    return Layout(shape, h=h, w=size // h, c=1)


def _check_fit(value: onnx.ValueInfoProto, shape: Shape) -> None:
    axes = _axes(value)
    if axes is None:
        return
    if len(axes) != 1 + len(shape) or any(taken not in (None, given) for taken, given in zip(axes[1:], shape, strict=True)):
        raise GraphError(f"receiver: its input {_declared(value)} does not take the transmitter's [batch, {_joined(shape)}]")


def _overshoot(pictures: Array) -> list[str]:
    """A note where clipping to 0..1 changes a little. Raises GraphError where it would change much."""
    told = f"gives values {pictures.min():.3g} to {pictures.max():.3g}"
    low, high = np.quantile(pictures, [0.01, 0.99])
    if low < -0.25 or high > 1.25:
        raise GraphError(f"receiver: it {told}, and an image is 0..1; put the scaling into the model")
    return [f"the receiver {told}: clipped to 0..1"] if pictures.min() < 0 or pictures.max() > 1 else []


def _power(rows: Array) -> NDArray[np.float64]:
    """Mean power per complex symbol of each image: [batch, 1, 1]."""
    power: NDArray[np.float64] = 2 * np.square(rows.astype(np.float64)).mean(axis=(1, 2), keepdims=True)
    return power


def _networks(side: str, model: onnx.ModelProto, taken: End, given: End) -> list[onnx.GraphProto]:
    """The user's network for any batch between the tensors ``taken`` and ``given``, in the forms that may do, best first.

    Best is without arithmetic on shapes, from which no engine gains: constants are computed as if the batch were 1, which is
    then taken out where they hold it. Whether that was right is for ``_proved``. Next is a dynamic batch as the file has it.
    """
    alone = _folded(side, _declare(model, 1, taken, given))
    forms = [_declare(_without_batch(alone), "batch", taken, given)]
    if not _fixed_batch(model):
        forms.append(_folded(side, _declare(model, "batch", taken, given)))
    return [_named(form.graph, taken[0], given[0]) for form in forms]


def _declare(model: onnx.ModelProto, batch: int | str, taken: End, given: End) -> onnx.ModelProto:
    """The model with these shapes at its ends and none within."""
    graph = model.graph
    first, last = (
        helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [batch, *shape[1:]])
        for value, (_, shape) in ((graph.input[0], taken), (graph.output[0], given))
    )
    return _model(helper.make_graph(graph.node, "network", [first], [last], graph.initializer))


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _folded(side: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """Constants computed, batch normalisation inside convolutions, nothing without effect: ONNX Runtime's basic level."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        # they would merge the batch with other axes, and make a Reshape of what moves an axis of size 1
        _session(side, model.SerializeToString(), options, disabled=["MatMulAddFusion", "TransposeOptimizer"])
        return onnx.load(options.optimized_model_filepath)


def _without_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """The batch of 1 taken out of the sizes that Reshape and Resize are given."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    known = {value.name: _axes(value) for value in (*inferred.value_info, *inferred.input)}
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for i, node in enumerate(graph.node):
        sizes = constants.get(node.input[-1]) if node.op_type in ("Reshape", "Resize") else None
        if sizes is None or sizes.dtype != np.int64 or sizes.size == 0:
            continue
        if node.op_type == "Reshape" and -1 not in sizes:  # also where windows or tokens are merged with the batch
            free = np.array([-1, *sizes[1:]])
        elif node.op_type == "Reshape" and sizes[0] == 1:
            free = np.array([0, *sizes[1:]])
            del node.attribute[:]  # allowzero would take the 0 for a size
        elif node.op_type == "Resize" and sizes[0] == 1 and len(before := known.get(node.input[0]) or []) == len(sizes):
            free = (sizes / np.array(before, np.float32)).astype(np.float32)  # TensorRT takes no sizes of some axes only
            del node.input[2]
        else:
            continue
        node.input[-1] = f"{node.input[-1]}/any_batch_{i}"
        graph.initializer.append(numpy_helper.from_array(free, node.input[-1]))
    return model


def _named(graph: onnx.GraphProto, taken: str, given: str) -> onnx.GraphProto:
    """Everything named ``network/`` but the ends, and nothing left that tells of the machine that made the file."""
    ends = {f"network/{graph.input[0].name}": taken, f"network/{graph.output[0].name}": given}
    named = onnx.compose.add_prefix_graph(graph, "network/")
    for i, node in enumerate(named.node):
        node.name = f"network/{node.op_type}_{i}"
        for names in (node.input, node.output):
            names[:] = [ends.get(name, name) for name in names]
    for part in (*named.node, *named.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    return named


def _transmitter(network: onnx.GraphProto, layout: Layout, height: int, width: int) -> bytes:
    """The file whose nodes are named ``network/``, ``power/`` from the features on, and ``index/``."""
    h, row, n = layout.h, layout.w * layout.c, math.prod(layout.shape) // 2
    turned = "turned_features" if layout.turns else "features"
    nodes = [
        *network.node,
        *([_node("power/transpose", "Transpose", "features", turned, perm=[0, 2, 3, 1])] if layout.turns else []),
        _node("power/flatten", "Reshape", f"{turned} rows_shape", "unscaled_rows"),
        _node("power/square", "Mul", "unscaled_rows unscaled_rows", "squares"),
        _node("power/mean", "ReduceMean", "squares row_axes", "mean_square", keepdims=1),
        _node("power/of_symbol", "Mul", "mean_square reals", "power"),
        _node("power/floor", "Clip", "power least_power", "floored_power"),
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
        "least_power": np.float32(LEAST_POWER),  # an all-zero image stays zero
        "row_shape": np.array([-1, row]),
        "symbols_shape": np.array([-1, n, 2]),
    }
    ends = {"image": ("batch", 3, height, width), "index": ("batch", h), "symbols": ("batch", n, 2)}
    return _file(nodes, network, constants, ends)


def _receiver(network: onnx.GraphProto, layout: Layout, height: int, width: int, gain: float) -> bytes:
    """The file whose nodes are named ``index/`` up to the features, and ``network/``."""
    h, row, n = layout.h, layout.w * layout.c, math.prod(layout.shape) // 2
    turned = "turned_features" if layout.turns else "features"
    nodes = [
        _node("index/rows", "Reshape", "symbols row_shape", "rows"),
        _node("index/gather", "Gather", "rows index", "own_rows", axis=0),
        _node("index/features", "Reshape", "own_rows features_shape", turned),
        *([_node("index/transpose", "Transpose", turned, "features", perm=[0, 3, 1, 2])] if layout.turns else []),
        *([_node("network/gain", "Mul", "features gain", "scaled_features")] if gain != 1 else []),
        *network.node,
        _node("network/clip", "Clip", "unclipped black white", "image"),
    ]
    constants = {
        "row_shape": np.array([-1, row]),
        "features_shape": np.array([-1, h, layout.w, layout.c] if layout.turns else [-1, *layout.shape]),
        "gain": np.float32(gain),
        "black": np.float32(0),
        "white": np.float32(1),
    }
    ends = {"symbols": ("frames", n, 2), "index": ("batch", h), "image": ("batch", 3, height, width)}
    return _file(nodes, network, constants, ends)


def _node(name: str, operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], name, **attributes)


def _file(
    nodes: list[onnx.NodeProto], network: onnx.GraphProto, constants: dict[str, Any], ends: Mapping[str, Sequence[int | str]]
) -> bytes:
    """The checked file of these nodes; the last of ``ends`` is the output. Raises ValidationError, InferenceError."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.INT32 if name == "index" else TensorProto.FLOAT, shape)
        for name, shape in ends.items()
    ]
    weights = [*network.initializer, *(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())]
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in weights if tensor.name in used]
    model = _model(helper.make_graph(nodes, "semseal", values[:-1], values[-1:], weights))
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _proved(
    side: str, networks: list[onnx.GraphProto], build: Callable[[onnx.GraphProto], bytes], example: tuple[Array, Array], h: int
) -> bytes:
    """The file of the first network that gives what the user's file gave for the pictures of ``example``, one by one."""
    for network in networks:
        try:
            graph = build(network)
            _compare(side, graph, *example, h)
            return graph
        except GraphError as error:
            reason = str(error)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            reason = f"{side}: it does not take more than one picture at once ({_first_line(error)}); {DYNAMIC}"
    raise GraphError(reason)


def _compare(side: str, graph: bytes, inputs: Array, expected: Array, h: int) -> None:
    """Raises GraphError unless the graph gives what is expected, for single inputs and for BATCH at once."""
    session = _session(side, graph)
    allowed = 1e-6 + TOLERANCE * float(expected.std(axis=0).max())
    for size, otherwise in (
        (1, f"in opset {OPSET} it gives something else; export it with opset {OPSET}"),
        (BATCH, f"it gives something else for {BATCH} pictures at once than one by one; {DYNAMIC}"),
    ):
        identity = np.arange(size * h, dtype=np.int32).reshape(size, h)
        for start in range(0, len(inputs), size):
            part = slice(start, start + size)
            try:
                given = _run(side, session, inputs[part], identity)
                difference = float(np.abs(given - expected[part]).max()) if given.shape == expected[part].shape else math.inf
                detail = f"the largest difference is {difference:.2g}"
            except GraphError as error:
                difference, detail = math.inf, str(error).removeprefix(f"{side}: ")
            if not difference <= allowed:
                raise GraphError(f"{side}: {otherwise} ({detail})")


def _session(
    side: str, data: bytes, options: onnxruntime.SessionOptions | None = None, disabled: Sequence[str] = ()
) -> onnxruntime.InferenceSession:
    options = options or onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)
    except Exception as error:  # its exceptions share no narrower base
        raise GraphError(f"{side}: ONNX Runtime cannot load it: {_first_line(error)}") from None


def _run(side: str, session: onnxruntime.InferenceSession, *inputs: NDArray[Any]) -> Array:
    names = [value.name for value in session.get_inputs()]
    try:
        output: Array = session.run(None, dict(zip(names, inputs, strict=True)))[0]
    except Exception as error:  # its exceptions share no narrower base
        raise GraphError(f"{side}: ONNX Runtime cannot run it: {_first_line(error)}") from None
    return output


def _one_by_one(side: str, sessions: dict[str, onnxruntime.InferenceSession], inputs: Array) -> Array:
    """What the user's file gives, a picture at a time: float32 [len(inputs), ...], finite."""
    outputs = [_run(side, sessions[side], inputs[i : i + 1]) for i in range(len(inputs))]
    shape, *others = dict.fromkeys(output.shape for output in outputs)
    if others:
        raise GraphError(f"{side}: it gives {list(shape)} for one picture and {list(others[0])} for another; fix the size")
    if len(shape) < 2 or shape[0] != 1:
        raise GraphError(f"{side}: it gives {list(shape)} for a single picture; it must give [1, ...]")
    if not np.isfinite(outputs).all():
        raise GraphError(f"{side}: it gives values that are not finite for photographs in 0..1")
    return np.concatenate(outputs)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _joined(sizes: Sequence[int | None]) -> str:
    return ", ".join("?" if size is None else str(size) for size in sizes)


def _shape(array: Array) -> str:
    return f"[batch, {_joined(array.shape[1:])}]"


def _declared(value: onnx.ValueInfoProto) -> str:
    axes = _axes(value)
    return f"{value.name!r} of unknown shape" if axes is None else f"{value.name!r} [{_joined(axes)}]"
