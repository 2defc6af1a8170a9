"""Deployed graphs without the scheme index.

bare_network      image ── network ── features        features ── network ── image
without_gather    image ── network ── features ── unit power ── rows ── symbols
"""

import onnx
import onnx.utils
from semseal.runtime.errors import GraphError


def bare_network(graph: bytes, side: str) -> bytes:
    """The network alone, for a kernel that moves the rows and normalises the power outside the plan.

    ``transmitter``: image -> ``features`` [batch, c, h, w], what power normalisation would read.
    ``receiver``: ``features`` [batch, c, h, w], unpermuted, -> image.
    Features are float32, or float16 where the network computes in it. Raises GraphError for a graph whose rows are not a
    transposition of such features.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph))
    gather = next((node for node in model.graph.node if node.op_type == "Gather" and node.input[1] == "index"), None)
    cut = None if gather is None else (_cut_before if side == "transmitter" else _cut_behind)(gather.input[0], model.graph)
    if cut is None:
        raise GraphError(
            f"{side}: it does not gather rows of transposed features by its input index", "use the graph with its index"
        )
    inputs, outputs = (["image"], [cut]) if side == "transmitter" else ([cut], [model.graph.output[0].name])
    bare = onnx.utils.Extractor(model).extract_model(inputs, outputs)
    for value in (*bare.graph.input, *bare.graph.output):
        if value.name == cut:
            value.name = "features"
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for node in bare.graph.node:
        for names in (node.input, node.output):
            names[:] = ["features" if name == cut else name for name in names]
    onnx.checker.check_model(bare, full_check=True)
    data: bytes = bare.SerializeToString(deterministic=True)
    return data


def without_gather(transmitter: bytes) -> bytes:
    """The transmitter with its rows left where they are, and no input index: what to measure the cost of the Gather against."""
    model = onnx.load_model_from_string(transmitter)
    gather = next(node for node in model.graph.node if node.op_type == "Gather")
    for node in model.graph.node:
        node.input[:] = [gather.input[0] if name == gather.output[0] else name for name in node.input]
    model.graph.node.remove(gather)
    del model.graph.value_info[:]
    del model.graph.input[1:]
    data: bytes = model.SerializeToString()
    return data


def _cut_before(rows: str, graph: onnx.GraphProto) -> str | None:
    """The features [batch, c, h, w] that all of ``rows`` is made from; None if there are none."""
    made_by = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    found, names = set(), [rows]
    while names:
        name = names.pop()
        node = made_by.get(name)
        if node is not None and _transposes(node, [0, 2, 3, 1]):
            found.add(node.input[0])
        elif node is not None and (node.name.startswith("power/") or node.op_type == "Cast"):
            names += node.input
        elif name not in constants:
            return None  # the rows depend on something that bypasses the features
    if len(found) != 1:
        return None
    features: str = found.pop()
    while (node := made_by.get(features)) is not None and node.op_type == "Cast":
        features = node.input[0]
    return features


def _cut_behind(rows: str, graph: onnx.GraphProto) -> str | None:
    """The features [batch, c, h, w] that the gathered rows become, and nothing else; None if there are none."""
    node = next(node for node in graph.node if node.op_type == "Gather" and node.input[0] == rows)
    transposed = False
    while True:
        readers = [reader for reader in graph.node if node.output[0] in reader.input]
        onward = readers[0].op_type if len(readers) == 1 else ""
        if transposed and onward != "Cast":
            cut: str = node.output[0]
            return cut
        if onward not in ("Reshape", "Cast", "Transpose"):
            return None
        node = readers[0]
        transposed = transposed or _transposes(node, [0, 3, 1, 2])


def _transposes(node: onnx.NodeProto, order: list[int]) -> bool:
    """Whether a node is the transposition by ``order``."""
    return node.op_type == "Transpose" and [list(attribute.ints) for attribute in node.attribute] == [order]
