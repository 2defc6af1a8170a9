"""Whole encoders as other projects write them: packed, and attacked by their gradient."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import FEATURES, HEIGHT, IMAGE, WIDTH, Decoder, NoFirstToken, by_hand, written
from semseal.export.pack import pack, pack_graphs
from semseal.runtime.attacks import rowmatching, whitebox
from semseal.runtime.audit.run import audit
from semseal.runtime.audit.surrogate import Surrogate, why_unsupported
from semseal.runtime.engine import open_engine
from semseal.runtime.metrics import psnr
from semseal.runtime.pictures import open_pictures
from semseal.runtime.signing import owner_key
from test_audit import TINY
from torch import nn

CASES = Path(__file__).parent / "cases"


class VisionTransformer(nn.Module):
    """Patches of 8 x 8, a class token in front, positions, and two layers of torch's own transformer."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 32)), nn.Parameter(torch.randn(1, 13, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True, norm_first=True)
        self.layers, self.last = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 16)

    def forward(self, x):
        t = self.patches(x).flatten(2).transpose(1, 2)
        t = torch.cat([self.token.expand(t.shape[0], -1, -1), t], 1) + self.positions
        return self.last(self.layers(t))


def block(channels, given):
    return nn.Sequential(nn.Conv2d(channels, given, 3, padding=1), nn.GroupNorm(4, given), nn.SiLU())


class UNet(nn.Module):
    """Down by a maximum, up by interpolation, with GroupNorm, and joined across."""

    def __init__(self):
        super().__init__()
        self.first, self.low, self.up = block(3, 8), block(8, 16), block(24, 8)
        self.last = nn.Conv2d(8, 4, 4, 4)

    def forward(self, x):
        a = self.first(x)
        b = self.low(nn.functional.max_pool2d(a, 2))
        b = nn.functional.interpolate(b, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.last(self.up(torch.cat([a, b], 1)))


class SqueezeExcite(nn.Module):
    """A block of MobileNetV3."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Hardswish())
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 5, 2, 2, groups=16), nn.Hardswish())
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.Hardsigmoid()
        )
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        y = self.deep(self.stem(x))
        return self.last(y * self.gate(y))


class Reflected(nn.Module):
    """As networks for style and compression have it: reflected edges, InstanceNorm, Mish, halves that gate each other."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(
            nn.ReflectionPad2d(2), nn.Conv2d(3, 8, 5, 2), nn.InstanceNorm2d(8, affine=True), nn.Mish(), nn.AvgPool2d(3, 2, 1)
        )
        self.last = nn.Sequential(nn.ReplicationPad2d(1), nn.Conv2d(8, 8, 3))

    def forward(self, x):
        a, b = self.last(self.first(x) * 0.5).chunk(2, 1)
        return a * nn.functional.softplus(b) - b[..., ::2].repeat_interleave(2, 3).neg()


class Rounded(nn.Module):
    """Channel attention as CBAM has it, and levels of 1/8, as entropy coding wants them."""

    def __init__(self):
        super().__init__()
        self.first, self.dense = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        y = nn.functional.pixel_unshuffle(self.first(x), 1).abs()
        weight = torch.sigmoid(self.dense(y.mean((2, 3))) + self.dense(y.amax((2, 3))))
        return torch.round(8 * self.last(y * weight[:, :, None, None])) / 8


def keras():
    """As tf2onnx writes a model in NHWC: a Transpose on either side of every convolution, PReLU by Neg, ``SAME`` padding."""
    generator = np.random.default_rng(0)

    def weights(name, *shape):
        values = ", ".join(f"{value:.5f}" for value in generator.normal(size=np.prod(shape), scale=0.3))
        return f"{name} = Constant<value = float[{', '.join(map(str, shape))}] {{{values}}}>()"

    to_nchw, to_nhwc = "Transpose<perm = [0, 3, 1, 2]>", "Transpose<perm = [0, 2, 3, 1]>"
    body = f"""
        {weights("k1", 8, 3, 3, 3)} {weights("k2", 4, 8, 3, 3)} {weights("slope", 8)} {weights("bias", 8)}
        pads = Constant<value_ints = [0, 0, 0, 0, 0, 1, 1, 0]>()
        nhwc = {to_nhwc}(x) padded = Pad<mode = "constant">(nhwc, pads)
        a = {to_nchw}(padded) b = Conv<strides = [2, 2]>(a, k1) c = {to_nhwc}(b) d = Add(c, bias)
        up = Relu(d) turned = Neg(d) down = Relu(turned) scaled = Mul(down, slope) minus = Neg(scaled) e = Add(up, minus)
        f = {to_nchw}(e) g = Conv<strides = [2, 2], auto_pad = "SAME_UPPER">(f, k2)
        size = Shape(g) first = Constant<value_ints = [0]>() n = Gather(size, first) rest = Constant<value_ints = [4, 8, 6]>()
        shape = Concat<axis = 0>(n, rest) y = Reshape(g, shape)
    """
    return by_hand("float[n, 3, 32, 24] x", "float[n, 4, 8, 6] y", body)


def encoder_of(module):
    return lambda: (written(module(), IMAGE, opset=18), written(Decoder(), FEATURES))


NETWORKS = {
    "vision transformer": lambda: (
        written(VisionTransformer(), IMAGE, dynamic=True),
        written(NoFirstToken(), (13, 16), dynamic=True),
    ),
    "U-Net": encoder_of(UNet),
    "squeeze and excite": encoder_of(SqueezeExcite),
    "reflected": encoder_of(Reflected),
    "rounded": encoder_of(Rounded),
    "keras": lambda: (keras(), written(Decoder(), FEATURES)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_whole_encoder_is_attacked(name):
    """White-box and row matching come nearer to what was sent, step by step."""
    packed = pack_graphs(*NETWORKS[name]())
    images = open_pictures("photos", "valid").take(2, HEIGHT, WIDTH)
    index = np.arange(2 * packed.layout.h, dtype=np.int32).reshape(2, -1)
    engine = open_engine("onnxruntime-cpu", packed.transmitter)
    assert why_unsupported(packed.transmitter, engine, (images, index)) == ""
    surrogate = Surrogate(packed.transmitter)
    symbols = engine(images, index)
    with torch.autocast("cpu", torch.bfloat16):  # as an attack runs it where the processor has it
        assert surrogate(torch.from_numpy(images), torch.from_numpy(index)).isfinite().all()
    start, settings = np.full((3, HEIGHT, WIDTH), 0.5, np.float32), dataclasses.replace(whitebox.FAST, steps=60, lam=0.0)
    found = whitebox.invert(surrogate, symbols.reshape(2, -1).view(np.complex64), start, packed.layout.h, settings)
    assert far(surrogate, found, index, symbols) < 0.6 * far(surrogate, np.stack([start, start]), index, symbols)
    assert np.isfinite(psnr(images, found)).all()
    rows = symbols.reshape(2, 1, packed.layout.h, -1)[:, :, ::-1].copy()
    matched = rowmatching.invert(surrogate, rows, start, dataclasses.replace(settings, steps=20))[:, 0]
    assert np.isfinite(matched).all()


def far(surrogate, images, index, symbols):
    with torch.no_grad():
        return np.square(surrogate(torch.from_numpy(images), torch.from_numpy(index)).numpy() - symbols).sum()


OPTIMISED = dataclasses.replace(
    TINY, eve_snrs=(10.0,), defenses=("none",), attacks=("white-box", "no-key", "row-matching"),
    matching=dataclasses.replace(whitebox.FAST, steps=5),
)  # fmt: skip


def test_colours_in_another_order_are_audited(tmp_path):
    """The transmitter turns RGB to BGR by a Gather with constant indices."""
    case = CASES / "colour-order"
    pack(case / "t.onnx", case / "r.onnx", tmp_path / "b", 10.0, ["fp32"], signing_key=owner_key())
    results = audit([tmp_path / "b"], "photos", tmp_path / "out", OPTIMISED)
    assert not [name for name in results.skipped if "white-box" in name]
    assert {row.attack for row in results.rows} > {"white-box", "no-key", "row-matching"}


def test_what_has_no_gradient_is_skipped_by_name_and_the_rest_is_measured(tmp_path):
    """An encoder of bits by comparison; a threshold has no gradient."""
    body = "half = Constant<value_float = 0.5>() b = Greater(x, half) f = Cast<to = 1>(b) s = Sub(f, half) y = Identity(s)"
    transmitter = by_hand("float[n, 3, 16, 12] x", "float[n, 3, 16, 12] y", body)
    receiver = by_hand("float[n, 3, 16, 12] y", "float[n, 3, 16, 12] x", "x = Sigmoid(y)")
    for name, data in (("t", transmitter), ("r", receiver)):
        (tmp_path / f"{name}.onnx").write_bytes(data)
    pack(tmp_path / "t.onnx", tmp_path / "r.onnx", tmp_path / "b", 10.0, ["fp32"], signing_key=owner_key())
    results = audit([tmp_path / "b"], "photos", tmp_path / "out", OPTIMISED)
    (reason,) = [reason for name, reason in results.skipped.items() if "white-box" in name]
    assert reason == "no gradient of the symbols reaches the picture"
    assert {row.attack for row in results.rows} == {"bob", "mean-picture", "no-key"}
    unasked = audit([tmp_path / "b"], "photos", tmp_path / "other", dataclasses.replace(OPTIMISED, attacks=("no-key",)))
    assert not [name for name in unasked.skipped if "white-box" in name]


def test_a_picture_without_symbols_costs_no_other():
    """A transmitter that divides by a picture's own spread gives NaN for black, where a search may begin or pass."""
    flat = "axes = Constant<value_ints = [1, 2, 3]>() m = ReduceMean(x, axes) d = Sub(x, m) a = Abs(d) s = ReduceMean(a, axes)"
    symbols = "shape = Constant<value_ints = [-1, 12, 2]>() y = Reshape(q, shape)"
    transmit = Surrogate(by_hand("float[n, 3, 4, 2] x", "float[n, 12, 2] y", f"{flat} q = Div(d, s) {symbols}"))
    symbols = np.random.default_rng(0).normal(size=(2, 24)).astype(np.float32)
    start = np.random.default_rng(1).random((3, 4, 2), np.float32)
    settings = dataclasses.replace(whitebox.FAST, steps=8)
    both = whitebox.minimise(
        torch.from_numpy(np.stack([start, 0 * start])),
        lambda x, _: (transmit(x) - torch.from_numpy(symbols).reshape(2, 12, 2)).square().sum(),
        settings,
        lambda _: None,
    )
    assert np.isfinite(both).all()
    assert np.abs(both[0] - start).max() > 0.01
    rows = symbols.reshape(2, 1, 4, 6)
    black = rowmatching.invert(lambda x, _: transmit(0 * x), rows, start, settings)
    assert np.isfinite(black).all()
