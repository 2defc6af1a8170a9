"""A trained run as two ONNX graphs, each a self-contained file.

    transmitter.onnx   image [batch, 3, height, width], index [batch, h] -> symbols [batch, N, 2]
    receiver.onnx      symbols [frames, N, 2], index [batch, h]          -> image [batch, 3, height, width]

Those of the edge network take one input more: the transmitter snr_db [batch], what Alice expects; the receiver
side_information [batch, 3], the scale, the noise power in a symbol and Alice's snr_db. Its symbols are features as loud as they
are: the link sets their power to 1 and sends the factor as the scale.

The scheme index is an input, int32, and one Gather on axis 0 over the rows of all frames; nothing secret is in a graph.
``frames`` and ``batch`` differ at the receiver, because a partner's frame is gathered from without being decoded.
"""

import logging
import warnings

import onnx
import torch
from semseal.export.rewrite import OPSET
from semseal.train.edge import EdgeCodec
from semseal.train.model import DeepJSCC
from torch import Tensor, nn
from torch.export import Dim


class TransmitterGraph(nn.Module):
    """Images and scheme index to symbols; power is normalised before the swap of rows, so Bob can undo the swap exactly."""

    def __init__(self, model: DeepJSCC) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, index: Tensor) -> Tensor:
        rows = self.model.encode_rows(image).flatten(0, 1)  # [batch*h, w*c]
        return nn.functional.embedding(index, rows).reshape(index.shape[0], self.model.config.n_symbols, 2)


class ReceiverGraph(nn.Module):
    """Received symbols and inverse scheme index to images."""

    def __init__(self, model: DeepJSCC) -> None:
        super().__init__()
        self.model = model

    def forward(self, symbols: Tensor, index: Tensor) -> Tensor:
        rows = symbols.reshape(-1, self.model.config.w * self.model.config.c)  # [frames*h, w*c]
        return self.model.decode_rows(nn.functional.embedding(index, rows))


class EdgeTransmitterGraph(nn.Module):
    """Images, scheme index and what Alice expects of the channel to symbols of any power."""

    def __init__(self, model: EdgeCodec) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, index: Tensor, snr_db: Tensor) -> Tensor:
        rows = self.model.encode_rows(image, snr_db).flatten(0, 1)  # [batch*h, w*c]
        return nn.functional.embedding(index, rows).reshape(index.shape[0], self.model.config.n_symbols, 2)


class EdgeReceiverGraph(nn.Module):
    """Received symbols, inverse scheme index and what Bob knows of each image to images."""

    def __init__(self, model: EdgeCodec) -> None:
        super().__init__()
        self.model = model

    def forward(self, symbols: Tensor, index: Tensor, side_information: Tensor) -> Tensor:
        rows = symbols.reshape(-1, self.model.config.w * self.model.config.c)  # [frames*h, w*c]
        return self.model.decode_rows(nn.functional.embedding(index, rows), side_information).clamp(0, 1)


def export_graphs(model: DeepJSCC | EdgeCodec) -> tuple[bytes, bytes]:
    """The transmitter's and the receiver's ONNX graph, float32, node for node as torch writes them.

    Nodes are named ``network/``, ``linear/`` (the path beside it, which is never quantised), ``power/`` (the normalisation, and
    what follows from what is told of the channel: they stay float32 in every precision) and ``index/``.
    """
    config = model.config
    index = torch.arange(2 * config.h, dtype=torch.int32).reshape(2, config.h)
    image = torch.rand(2, 3, config.height, config.width)
    symbols = torch.zeros(3, config.n_symbols, 2)
    batch, frames = Dim("batch", min=1, max=4096), Dim("frames", min=1, max=4096)
    if isinstance(model, EdgeCodec):
        told = torch.tensor([[1.0, 0.1, 10.0]] * 2)
        inputs = {"image": {0: batch}, "index": {0: batch}, "snr_db": {0: batch}}
        transmitter = _export(EdgeTransmitterGraph(model), (image, index, told[:, 2]), inputs, "symbols")
        inputs = {"symbols": {0: frames}, "index": {0: batch}, "side_information": {0: batch}}
        return transmitter, _export(EdgeReceiverGraph(model), (symbols, index, told), inputs, "image")
    transmitter = _export(TransmitterGraph(model), (image, index), {"image": {0: batch}, "index": {0: batch}}, "symbols")
    receiver = _export(ReceiverGraph(model), (symbols, index), {"symbols": {0: frames}, "index": {0: batch}}, "image")
    return transmitter, receiver


def _of_what_is_told(graph: onnx.GraphProto) -> set[str]:
    """The tensors that follow from what is told of the channel and from constants alone: a few values for each image."""
    told = {"snr_db", "side_information"} & {value.name for value in graph.input}
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if told.intersection(node.input) and told.union(constants).issuperset(node.input):
            told.update(node.output)
    return told


def _export(module: nn.Module, args: tuple[Tensor, ...], axes: dict[str, dict[int, Dim]], output: str) -> bytes:
    """One graph; ``axes`` names the inputs in order and their dynamic axes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own deprecations
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module.eval(),
            args,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=axes,
            input_names=list(axes),
            output_names=[output],
            external_data=False,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    # names that say what a node is for, and no traces of the exporting machine's source files
    convolutions = [i for i, node in enumerate(graph.graph.node) if node.op_type in ("Conv", "ConvTranspose")]
    told = _of_what_is_told(graph.graph)
    for i, node in enumerate(graph.graph.node):
        after = (output == "symbols" and i > convolutions[-1]) or node.output[0] in told
        linear = any(name.endswith("linear.weight") for name in node.input)
        part = "index" if node.input[1:] == ["index"] else "linear" if linear else "power" if after else "network"
        node.name = f"{part}/{node.op_type}_{i}"
        del node.metadata_props[:]
    del graph.metadata_props[:]
    del graph.graph.metadata_props[:]
    for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        del value.metadata_props[:]
    onnx.checker.check_model(graph, full_check=True)
    data: bytes = graph.SerializeToString(deterministic=True)
    return data
