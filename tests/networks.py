"""Pairs of the kinds that other projects publish, tiny, as their tools write them, with random weights.

Features and pictures are those of ``foreign``: pictures 32 x 24 and, but for the transformer, features [4, 8, 6].
"""

import numpy as np
import onnx
import torch
from foreign import FEATURES, HEIGHT, IMAGE, WIDTH, Decoder, Encoder, written
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn


class Block(nn.Module):
    """A transformer's layer as in public vision transformers: q, k and v are taken out of one tensor by scalar indices."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, t):
        b, n, d = t.shape
        qkv = self.qkv(self.norm1(t)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        mixed = (q * (d // self.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        t = t + self.out(mixed.transpose(1, 2).reshape(b, n, d))
        return t + self.mlp(self.norm2(t))


class VisionEncoder(nn.Module):
    """Patches, a class token and positions; the features are the patches' tokens, weighed by what the class token says."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.patches, self.block, self.norm = nn.Conv2d(3, d, 8, 8), Block(d, 4), nn.LayerNorm(d)
        self.token = nn.Parameter(torch.full((1, 1, d), 0.3))
        self.places = nn.Parameter(torch.linspace(-0.5, 0.5, 13 * d).reshape(1, 13, d))
        self.head = nn.Linear(d, d)

    def forward(self, x):
        t = self.patches(x).flatten(2).transpose(1, 2)
        t = torch.cat([self.token.expand(t.shape[0], -1, -1), t], 1) + self.places
        t = self.norm(self.block(t))
        whole = self.head(t[:, 0])  # a scalar index
        return t[:, 1:] * torch.sigmoid(whole)[:, None]


class VisionDecoder(nn.Module):
    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.block, self.pixels = Block(d, 4), nn.Linear(d, 192)

    def forward(self, t):
        y = self.pixels(self.block(t)).reshape(t.shape[0], 4, 3, 3, 8, 8)
        return torch.sigmoid(y.permute(0, 3, 1, 4, 2, 5).reshape(t.shape[0], 3, HEIGHT, WIDTH))


def smoothed(c: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c, out, 3, padding=1), nn.GroupNorm(4, out), nn.SiLU())


class Unet(nn.Module):
    """Down and up again with connections between, GroupNorm and SiLU, as in diffusion models."""

    def __init__(self, taken: int, given: int, c: int = 8) -> None:
        super().__init__()
        self.first, self.down, self.middle = smoothed(taken, c), nn.Conv2d(c, c, 3, 2, 1), smoothed(c, 2 * c)
        self.up, self.second = nn.ConvTranspose2d(2 * c, c, 2, 2), smoothed(2 * c, c)
        self.last = nn.Conv2d(c, given, 1)

    def forward(self, x):
        kept = self.first(x)
        y = self.up(self.middle(self.down(kept)))
        return self.last(self.second(torch.cat([kept, y], 1)))


class UnetEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unet, self.smaller = Unet(3, 8), nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(8, 4, 2, 2))

    def forward(self, x):
        y = self.smaller(self.unet(x))
        return y / (2 * y.square().mean((1, 2, 3), keepdim=True) + 1e-8).sqrt()


class UnetDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unet = Unet(4, 3)

    def forward(self, y):
        return torch.sigmoid(self.unet(nn.functional.interpolate(y, scale_factor=4.0, mode="bilinear")))


def keras_like() -> tuple[bytes, bytes]:
    """As tf2onnx writes Keras's layers: channels last between the layers, each convolution between transpositions.

    Padding "same" of a stride of 2 is a Pad of four axes, channels last, whose fill is a tensor without axes, as are the bounds
    of the ReLU.
    """
    rng = np.random.default_rng(2)

    def weights(name, *shape):
        fan = float(np.prod(shape[1:]))
        return numpy_helper.from_array((rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32), name)

    def turned(taken, given, back):
        return helper.make_node("Transpose", [taken], [given], perm=[0, 2, 3, 1] if back else [0, 3, 1, 2])

    def convolution(taken, given, kernel, strides):
        nodes = [turned(taken, f"{given}_nchw", back=False)]
        nodes.append(helper.make_node("Conv", [f"{given}_nchw", kernel, f"{kernel}_b"], [f"{given}_out"], strides=strides))
        return [*nodes, turned(f"{given}_out", given, back=True)]

    def constant(name, values, dtype):
        return numpy_helper.from_array(np.array(values, dtype), name)

    bounds = [constant("zero", 0, np.float32), constant("six", 6, np.float32), constant("half", 0.5, np.float32)]
    pads = constant("pads", [0, 0, 0, 0, 0, 1, 1, 0], np.int64)  # below and to the right
    nodes = [
        turned("image", "x", back=True),
        helper.make_node("Sub", ["x", "half"], ["centred"]),
        helper.make_node("Pad", ["centred", "pads", "zero"], ["padded1"]),
        *convolution("padded1", "c1", "k1", [2, 2]),
        helper.make_node("Clip", ["c1", "zero", "six"], ["r1"]),
        helper.make_node("Pad", ["r1", "pads", "zero"], ["padded2"]),
        *convolution("padded2", "features", "k2", [2, 2]),
    ]
    constants = [weights("k1", 8, 3, 3, 3), weights("k1_b", 8), weights("k2", 4, 8, 3, 3), weights("k2_b", 4), pads, *bounds]
    transmitter = ended(nodes, constants, ("image", IMAGE), ("features", (8, 6, 4)))
    nodes = [
        helper.make_node("Pad", ["features", "pads", "zero"], ["padded"]),
        *convolution("padded", "d1", "k3", [1, 1]),
        helper.make_node("LeakyRelu", ["d1"], ["r1"], alpha=0.3),
        *convolution("r1", "d2", "k4", [1, 1]),
        turned("d2", "d2_turned", back=False),
        helper.make_node("DepthToSpace", ["d2_turned"], ["deep"], blocksize=4),
        helper.make_node("Sigmoid", ["deep"], ["image"]),
    ]
    pads = constant("pads", [0, 1, 1, 0, 0, 1, 1, 0], np.int64)
    constants = [
        weights("k3", 12, 4, 3, 3),
        weights("k3_b", 12),
        weights("k4", 48, 12, 1, 1),
        weights("k4_b", 48),
        pads,
        bounds[0],
    ]
    return transmitter, ended(nodes, constants, ("features", (8, 6, 4)), ("image", IMAGE))


def ended(nodes, constants, taken, given, opset=13) -> bytes:
    """The file of these nodes; batches are called "unk__1", as tf2onnx does."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["unk__1", *shape]) for name, shape in (taken, given)]
    graph = helper.make_graph(nodes, "keras", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7).SerializeToString()


def half(data: bytes) -> bytes:
    """In fp16 with float32 ends, as onnxconverter writes it: its casts stand where they were added, at the end."""
    model = convert_float_to_float16(onnx.load_model_from_string(data), keep_io_types=True)
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    others = [node for node in model.graph.node if node.op_type != "Cast"]
    del model.graph.node[:]
    model.graph.node.extend([*others, *casts])
    return model.SerializeToString()


NETWORKS = {
    "vision transformer": lambda: (
        written(VisionEncoder(), IMAGE, dynamic=True, opset=17),
        written(VisionDecoder(), (12, 16), dynamic=True, opset=17),
    ),
    "u-net": lambda: (written(UnetEncoder(), IMAGE, opset=18), written(UnetDecoder(), FEATURES, opset=18)),
    "keras": keras_like,
    "half": lambda: tuple(
        half(written(module, shape, dynamic=True)) for module, shape in ((Encoder(power=1.0), IMAGE), (Decoder(), FEATURES))
    ),
}
