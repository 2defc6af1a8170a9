"""Pairs from elsewhere: torch networks through its older exporter, scikit-learn through skl2onnx, and graphs by hand."""

import io
import warnings

import numpy as np
import onnx
import onnx.compose
import torch
from semseal.runtime.pictures import open_pictures
from skl2onnx import to_onnx
from sklearn.decomposition import PCA
from sklearn.neural_network import MLPRegressor
from torch import nn

HEIGHT, WIDTH = 32, 24


class Encoder(nn.Module):
    """Features [4, 8, 6]. ``power`` is what the user takes for 1: nothing, each real value, or each complex symbol."""

    def __init__(self, power: float | None = None, over: tuple[int, ...] = (1, 2, 3)) -> None:
        super().__init__()
        self.power, self.over = power, over
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 12, 3, 2, 1), nn.LeakyReLU(0.1)
        )
        self.last = nn.Conv2d(12, 4, 3, padding=1)

    def forward(self, x):
        y = self.last(self.layers(x))
        return y if self.power is None else y * (self.power / y.square().mean(self.over, keepdim=True)).sqrt()


class Decoder(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(4, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.GELU(),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(12, 8, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Upsample(size=(HEIGHT, WIDTH), mode="bilinear"),
            nn.Conv2d(8, 3, 3, padding=1),
            nn.Sigmoid(),
        )


class Tokens(nn.Module):
    """Patches of 8 x 8 as 12 tokens of 16, one attention layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16)
        self.attention, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        t = self.patches(x).flatten(2).transpose(1, 2)
        b, n, d = t.shape
        q, k, v = self.attention(self.norm(t)).reshape(b, n, 3, 4, 4).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        return t + self.out(mixed.transpose(1, 2).reshape(b, n, d))


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 192)

    def forward(self, t):
        b = t.shape[0]
        return torch.sigmoid(self.linear(t).reshape(b, 4, 3, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(b, 3, HEIGHT, WIDTH))


class FirstToken(Tokens):
    """A learned token goes in front of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.ones(1, 1, 16))

    def forward(self, x):
        t = super().forward(x)
        return torch.cat([self.first.expand(t.shape[0], -1, -1), t], 1)


class NoFirstToken(Patches):
    def forward(self, t):
        return super().forward(t[:, 1:])


class Windows(nn.Module):
    """Attention inside windows of 2 x 2, which are merged with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attention, self.out = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 48), nn.Linear(16, 4)

    def forward(self, x):
        t = self.patches(x).permute(0, 2, 3, 1)
        b, h, w, d = t.shape
        t = t.reshape(b, h // 2, 2, w // 2, 2, d).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, d)
        q, k, v = self.attention(t).chunk(3, -1)
        t = t + (q @ k.transpose(1, 2) / 4).softmax(-1) @ v
        t = t.reshape(b, h // 2, w // 2, 2, 2, d).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, d)
        return self.out(t).permute(0, 3, 1, 2)


class SequenceFirst(nn.Module):
    """Tokens as [token, batch, d], the order of torch's own transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm, self.linear = nn.Conv2d(3, 4, 4, 4), nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x):
        t = self.patches(x).flatten(2).permute(2, 0, 1)
        return (t + torch.relu(self.linear(self.norm(t)))).permute(1, 2, 0).unflatten(2, (8, 6))


def written(module, shape, *, dynamic=False, seed=0, opset=17, training=False):
    """The module as torch's older exporter writes it, fixed to a batch of 1 or dynamic, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in module.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_normal_(parameter, 2.0)
        for norm in (part for part in module.modules() if isinstance(part, nn.BatchNorm2d)):
            nn.init.uniform_(norm.running_mean, -0.1, 0.1)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
        example = torch.rand(1, *shape)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.train(training),
            (example,),
            file,
            dynamo=False,
            opset_version=opset,
            input_names=["x.1"],
            output_names=["out"],
            dynamic_axes={"x.1": {0: "n"}, "out": {0: "n"}} if dynamic else None,
            training=torch.onnx.TrainingMode.TRAINING if training else torch.onnx.TrainingMode.EVAL,
        )
    return file.getvalue()


def by_hand(given, taken, body, opset=20, ir=10):
    """A graph in ONNX's own notation."""
    text = f'<ir_version: {ir}, opset_import: ["" : {opset}]> graph ({given}) => ({taken}) {{ {body} }}'
    return onnx.parser.parse_model(text).SerializeToString()


IMAGE = (3, HEIGHT, WIDTH)
FEATURES = (4, 8, 6)
UNIT = "axes = Constant<value_ints = [1]>() norm = ReduceL2(flat, axes) unit = Div(flat, norm)"
SMALL = "float[n,3,16,12]"


def flat_pair(shape):
    """Pictures 16 x 12 as they are, normalised, as features of any shape, with an easy way back."""
    sizes = ", ".join(map(str, shape))
    to_shape = f"shape = Constant<value_ints = [-1, {sizes}]>() y = Reshape(unit, shape)"
    transmitter = by_hand(f"{SMALL} x", f"float[n, {sizes}] y", f"flat = Flatten(x) {UNIT} {to_shape}")
    back = "shape = Constant<value_ints = [-1, 3, 16, 12]>() flat = Reshape(y, shape) k = Constant<value_float = 10.0>()"
    clip = "a = Constant<value_float = 0.0>() b = Constant<value_float = 1.0>() z = Mul(flat, k) x = Clip(z, a, b)"
    return transmitter, by_hand(f"float[n, {sizes}] y", f"{SMALL} x", f"{back} {clip}")


def sklearn_pair(normalised, receiver=None, components=24):
    """The principal components of pictures 16 x 12, and a regression back to them."""
    pictures = open_pictures("photos", "train").take(120, 16, 12).reshape(120, -1)
    pca = PCA(components, random_state=0).fit(pictures)
    projected = pca.transform(pictures).astype(np.float32)
    if normalised:
        projected /= np.linalg.norm(projected, axis=1, keepdims=True)
    regression = receiver or MLPRegressor(hidden_layer_sizes=(), solver="lbfgs", max_iter=40, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it could go on
        regression.fit(projected, pictures)
    project = to_onnx(pca, pictures[:1])
    opset, ir = project.opset_import[0].version, project.ir_version
    flatten = onnx.load_model_from_string(by_hand(f"{SMALL} image", "float[n, 576] flat", "flat = Flatten(image)", opset, ir))
    transmitter = onnx.compose.merge_models(flatten, project, [("flat", project.graph.input[0].name)])
    if normalised:
        unit = "norm = ReduceL2<axes = [1]>(flat) unit = Div(flat, norm)"
        unit = onnx.load_model_from_string(by_hand("float[n, k] flat", "float[n, k] unit", unit, opset, ir))
        unit = onnx.compose.add_prefix(unit, "unit/")
        transmitter = onnx.compose.merge_models(transmitter, unit, [(project.graph.output[0].name, "unit/flat")])
    back = to_onnx(regression, projected[:1])
    if len(back.opset_import) > 1:
        return transmitter.SerializeToString(), back.SerializeToString()
    shape = "shape = Constant<value_ints = [-1, 3, 16, 12]>() picture = Reshape(row, shape)"
    shape = by_hand("float[n, 576] row", f"{SMALL} picture", shape, back.opset_import[0].version, back.ir_version)
    shape = onnx.load_model_from_string(shape)
    # skl2onnx declares one column for a regression of many
    back.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 576
    receiver = onnx.compose.merge_models(back, shape, [(back.graph.output[0].name, "row")])
    return transmitter.SerializeToString(), receiver.SerializeToString()


PAIRS = {
    "convolutions": lambda: (written(Encoder(), IMAGE), written(Decoder(), FEATURES)),
    "convolutions, dynamic": lambda: (
        written(Encoder(power=1.0), IMAGE, dynamic=True),
        written(Decoder(), FEATURES, dynamic=True),
    ),
    "tokens": lambda: (written(Tokens(), IMAGE), written(Patches(), (12, 16))),
    "tokens, dynamic": lambda: (written(FirstToken(), IMAGE, dynamic=True), written(NoFirstToken(), (13, 16), dynamic=True)),
    "scikit-learn": lambda: sklearn_pair(normalised=True),
    "odd rows": lambda: flat_pair((3, 64, 3)),
}

GOOD = flat_pair((3, 16, 12))
