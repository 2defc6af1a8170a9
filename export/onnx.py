"""A trained run as two ONNX graphs, each a self-contained file.

    transmitter.onnx   image [batch, 3, height, width], index [batch, h] -> symbols [batch, N, 2]
    receiver.onnx      symbols [frames, N, 2], index [batch, h]          -> image [batch, 3, height, width]

The scheme index is an input, int32, and one Gather on axis 0 over the rows of all frames; nothing secret is in a graph.
``frames`` and ``batch`` differ at the receiver, because a partner's frame is gathered from without being decoded.
"""

import logging
import warnings

import onnx
import torch
from semseal.train.model import DeepJSCC
from torch import Tensor, nn
from torch.export import Dim

OPSET = 20


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


def export_graphs(model: DeepJSCC) -> tuple[bytes, bytes]:
    """The transmitter's and the receiver's ONNX graph, float32, node for node as torch writes them.

    Nodes are named ``network/``, ``power/`` (the normalisation, which stays float32 in every precision) and ``index/``.
    """
    config = model.config
    index = torch.arange(2 * config.h, dtype=torch.int32).reshape(2, config.h)
    image = torch.rand(2, 3, config.height, config.width)
    symbols = torch.zeros(3, config.n_symbols, 2)
    batch, frames = Dim("batch", min=1, max=4096), Dim("frames", min=1, max=4096)
    transmitter = _export(TransmitterGraph(model), (image, index), {"image": {0: batch}, "index": {0: batch}}, "symbols")
    receiver = _export(ReceiverGraph(model), (symbols, index), {"symbols": {0: frames}, "index": {0: batch}}, "image")
    return transmitter, receiver


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
    for i, node in enumerate(graph.graph.node):
        after = output == "symbols" and i > convolutions[-1]
        part = "index" if node.op_type == "Gather" else "power" if after else "network"
        node.name = f"{part}/{node.op_type}_{i}"
        del node.metadata_props[:]
    del graph.metadata_props[:]
    del graph.graph.metadata_props[:]
    for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        del value.metadata_props[:]
    onnx.checker.check_model(graph, full_check=True)
    data: bytes = graph.SerializeToString(deterministic=True)
    return data
