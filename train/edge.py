"""The edge codec: a linear code that no network can make worse, and a small network beside it.

    x ── space_to_depth ──┬── linear ─────────────────────────────┬─ + ── gains ── y_f ── normalize_power ── y, scale
         48 channels      └── first ── modulate ── block ── last ─┘                                          │
                                          │                                                               channel
                                   Alice's SNR                                                               │
                                                                                                             ŷ
    x̂ ── depth_to_space ── + ──┬── linear ───────────────────────────────────┬── shrink ── ŷ_f ── / scale ───┘
                               └── last ── blocks ── modulate ── first ──────┘      │
                                                        └─── noise, Alice's SNR ────┘

The linear path starts at the block KLT of the training pictures with power as lambda^-1/4, which is the best linear code for
much SNR (K.-H. Lee, D. P. Petersen, "Optimal Linear Coding for Vector Channels", IEEE Transactions on Communications 24(12),
1976), and at Bob at the linear MMSE. The last layer beside it starts at zero, so step 0 is the linear code. Bob needs the scale
that the symbols were multiplied by; it travels in the sealed header. Both may be told the SNR: Alice to give each feature its
power, Bob to know how much of what he received is noise.

All is 3x3 and 1x1 convolutions at a quarter of the resolution, ReLU, Add and Mul: what engines run well, in INT8 too.
"""

from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
from numpy.typing import NDArray
from semseal.train.config import ModelConfig
from torch import Tensor, nn
from torch.nn import functional

BLOCK = 4  # pixels of a block's side
MIN_DB, MAX_DB = -3.0, 26.0  # the SNR that it is trained for, with a margin; what is told beyond that is taken as that
NOMINAL_DB = 10.0  # the SNR at which what is told is 0
_WIDTH = 64  # channels inside
_FINE = 8  # of the features that Bob's network takes, those with the most power: 8 bits of them cost 0.3 dB at 20 dB
_SENDER_INSIDE = 48  # of the transmitter's block, which also has to take the picture apart in the same time


def to_unit_power(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [batch, h, w*c] times what makes the power of each image 1 per complex symbol, and these scales [batch]."""
    scale = torch.rsqrt((2 * rows.square().mean(dim=(1, 2))).clamp_min(1e-12))
    return rows * scale[:, None, None], scale


def space_to_depth(x: Tensor) -> Tensor:
    """[batch, 3, 4h, 4w] to [batch, 48, h, w]; channel (row*4 + column)*3 + colour, as ONNX's SpaceToDepth."""
    if torch.onnx.is_in_onnx_export():
        shape = (x.shape[0], x.shape[1] * BLOCK**2, x.shape[2] // BLOCK, x.shape[3] // BLOCK)
        return torch.onnx.ops.symbolic("SpaceToDepth", [x], {"blocksize": BLOCK}, dtype=x.dtype, shape=shape)
    batch, colours, height, width = x.shape
    blocks = x.reshape(batch, colours, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // BLOCK, width // BLOCK)


def depth_to_space(y: Tensor) -> Tensor:
    """The inverse of ``space_to_depth``."""
    batch, channels, h, w = y.shape
    colours = channels // BLOCK**2
    if torch.onnx.is_in_onnx_export():
        shape = (batch, colours, h * BLOCK, w * BLOCK)
        return torch.onnx.ops.symbolic("DepthToSpace", [y], {"blocksize": BLOCK, "mode": "DCR"}, dtype=y.dtype, shape=shape)
    blocks = y.reshape(batch, BLOCK, BLOCK, colours, h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(batch, colours, h * BLOCK, w * BLOCK)


class Int8Step(NamedTuple):
    """In which steps an INT8 graph takes the input of a layer; of the first ``fine`` channels more exactly (``quantize``)."""

    step: float
    fine: int = 0


class _Rounded(nn.Conv2d):
    """A 3x3 convolution which in training rounds what it takes and its weights as an INT8 graph does.

    What it takes has one step, which is learned (Esser et al., Learned Step Size Quantization, ICLR 2020), and weights one for
    each output channel. Gradients pass straight through the rounding. The first ``fine`` channels are next to exact there, so
    here they are only cut off where they are too large.
    """

    def __init__(self, inputs: int, outputs: int, fine: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.fine = fine
        self.log_step = nn.Parameter(torch.tensor(-torch.inf))  # its logarithm, so that a learning rate suits it

    @property
    def step(self) -> Tensor:
        """0 until ``set_int8_steps``."""
        return self.log_step.exp()

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        levels = self._levels(x)
        steps = self.weight.detach().abs().amax((1, 2, 3), keepdim=True) / 127
        weight = _round((self.weight / steps).clamp(-127, 127))
        # bf16 holds the whole numbers, not what is between them
        with torch.autocast(x.device.type, enabled=False) if self.fine else nullcontext():
            sums = functional.conv2d(levels, weight, padding=1)
        assert self.bias is not None
        return sums * (self.step * steps.reshape(-1, 1, 1)) + self.bias[:, None, None]

    def taken(self, x: Tensor) -> Tensor:
        """What it takes of x, and so what the graph has for others that take x, too."""
        return self._levels(x) * self.step if self.training else x

    def _levels(self, x: Tensor) -> Tensor:
        levels = (x.float() / self.step).clamp(-127, 127)
        return torch.cat([levels[:, : self.fine], _round(levels[:, self.fine :])], dim=1)


def _round(levels: Tensor) -> Tensor:
    return levels + (levels.round() - levels).detach()


class _ResidualBlock(nn.Module):
    def __init__(self, inside: int, rounded: bool) -> None:
        super().__init__()
        self.first = _convolution(_WIDTH, inside, rounded)
        self.second = _convolution(inside, _WIDTH, rounded)

    def forward(self, x: Tensor) -> Tensor:
        added = self.second(functional.relu(self.first(x)))
        return functional.relu((self.first.taken(x) if isinstance(self.first, _Rounded) else x) + added)


class _Modulation(nn.Module):
    """Scale and shift of every channel by what is known of the radio: [batch, known, 1, 1] to twice [batch, 64, 1, 1]."""

    def __init__(self, known: int) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(known, 32, 1)
        self.out = nn.Conv2d(32, 2 * _WIDTH, 1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        scale, shift = self.out(functional.relu(self.hidden(known))).chunk(2, dim=1)
        return x * (1 + scale) + shift


def _convolution(inputs: int, outputs: int, rounded: bool, fine: int = 0) -> nn.Conv2d:
    return _Rounded(inputs, outputs, fine) if rounded else nn.Conv2d(inputs, outputs, 3, padding=1)


def _convolutions(
    inputs: int, outputs: int, blocks: int, inside: int, rounded: bool
) -> tuple[nn.Conv2d, nn.Sequential, nn.Conv2d]:
    first = _convolution(inputs, _WIDTH, rounded, min(inputs, _FINE))
    last = _convolution(_WIDTH, outputs, rounded)
    nn.init.zeros_(last.weight)
    assert last.bias is not None
    nn.init.zeros_(last.bias)
    return first, nn.Sequential(*[_ResidualBlock(inside, rounded) for _ in range(blocks)]), last


class Gains(nn.Module):
    """ln of the factor of every feature as Alice's SNR moves from the nominal one: told [batch, 1, 1, 1] to [batch, c, 1, 1].

    Both ends have it, so Bob undoes what Alice did.
    """

    def __init__(self, c: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(c, 1, 1))
        self.bend = nn.Parameter(torch.zeros(c, 1, 1))

    def forward(self, told: Tensor) -> Tensor:
        return told * (self.slope + told * self.bend)


class Encoder(nn.Module):
    """Alice: images to features [batch, c, h, w], before their power is normalised."""

    def __init__(self, c: int, blocks: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(3 * BLOCK**2, c, 1)
        self.first, self.blocks, self.last = _convolutions(3 * BLOCK**2, c, blocks, _SENDER_INSIDE, False)
        self.modulate = _Modulation(1)

    def forward(self, x: Tensor, told: Tensor, gains: Tensor) -> Tensor:
        blocks = space_to_depth(x)
        with torch.autocast(x.device.type, enabled=False):
            features = self.linear(blocks)
        z = functional.relu(self.modulate(self.first(blocks - 0.5), told))
        return (features + self.last(self.blocks(z)).float()) * gains.exp()


class Decoder(nn.Module):
    """Bob: received features, as Alice had them but for noise, to images."""

    def __init__(self, c: int, blocks: int, rounded: bool) -> None:
        super().__init__()
        self.log_signal = nn.Parameter(torch.zeros(c, 1, 1))  # ln of each feature's variance, at the nominal SNR
        self.linear = nn.Conv2d(c, 3 * BLOCK**2, 1)
        self.rest: Tensor
        self.register_buffer("rest", torch.zeros(3 * BLOCK**2, 1, 1))  # variance of what the features leave out
        self.level = nn.Parameter(torch.ones(c, 1, 1))  # brings the features to one range for the network beside
        self.first, self.blocks, self.last = _convolutions(c, 3 * BLOCK**2, blocks, _WIDTH, rounded)
        self.modulate = _Modulation(2)

    def forward(self, received: Tensor, scale: Tensor, log_noise: Tensor, told: Tensor, gains: Tensor) -> Tensor:
        signal = self.log_signal + 2 * gains
        # 1 / (1 + noise / signal) is the Wiener filter
        shrink = torch.sigmoid(signal - log_noise) * (-gains).exp()
        y = received * (shrink / scale)
        with torch.autocast(y.device.type, enabled=False):
            linear = self.linear(y)
            # what the linear code errs by, as far as one can know: the unit of what is added to it, at every SNR the same range
            error = (log_noise - gains).exp() * shrink
            unit = (functional.conv2d(error, self.linear.weight.square()) + self.rest).sqrt()
        known = torch.cat([log_noise / 4 + 1, told], dim=1)
        z = functional.relu(self.modulate(self.first(y * self.level), known))
        return depth_to_space(linear + unit * self.last(self.blocks(z)).float())

    @torch.no_grad()
    def bring_nearer(self, largest: dict[str, Tensor]) -> None:
        """Give the features, which have one scale each, the same range, and the channels inside ranges half as far apart.

        ``largest`` is what each layer takes, by its name. The weights before and after make up for it.
        """
        factor = largest["first"].max() / largest["first"].clamp_min(1e-6)
        self.level.mul_(factor[:, None, None])
        self.first.weight.div_(factor[:, None, None])
        inside = torch.stack([largest["last"], *(largest[f"blocks.{i}.first"] for i in range(len(self.blocks)))]).amax(0)
        factor = (inside.max() / inside.clamp_min(inside.max() * 1e-3)).sqrt()
        assert self.modulate.out.bias is not None
        self.modulate.out.weight[_WIDTH:].mul_(factor[:, None, None, None])  # the shift's half
        self.modulate.out.bias[_WIDTH:].mul_(factor)
        blocks = [block for block in self.blocks if isinstance(block, _ResidualBlock)]
        for layer in (self.first, *(block.second for block in blocks)):
            assert layer.bias is not None
            layer.weight.mul_(factor[:, None, None, None])
            layer.bias.mul_(factor)
        for layer in (*(block.first for block in blocks), self.last):
            layer.weight.div_(factor[:, None, None])


def _told(snr_db: Tensor) -> Tensor:
    return (snr_db.clamp(MIN_DB, MAX_DB) - NOMINAL_DB) / 10


class EdgeCodec(nn.Module):
    """Transmitter and receiver for images [batch, 3, height, width] in 0..1 of any size in multiples of 4.

    What is told of the channel is float32: ``snr_db`` [batch], what Alice expects; ``side_information`` [batch, 3], the scale
    of each image, the noise power in a complex symbol as received, and Alice's ``snr_db``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.gains = Gains(config.c)
        self.encoder = Encoder(config.c, blocks=1)
        self.decoder = Decoder(config.c, config.receiver_blocks, config.int8)

    @torch.no_grad()
    def set_int8_steps(self, images: Tensor, noise: Tensor, drawn: Tensor) -> None:
        """Begin with steps that hold nearly all of what images [batch, 3, height, width] bring; the rest as in ``forward``.

        Before that, channels whose ranges differ are brought nearer to each other, which changes no answer: a ReLU lets factors
        through (Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019).
        """
        given = (images, -10 * noise.log10(), noise, drawn)
        self.decoder.bring_nearer(self._largest(given))
        for name, largest in self._largest(given).items():
            self.decoder.get_parameter(f"{name}.log_step").copy_(torch.log(largest.max().clamp_min(1e-6) / 127))

    def _largest(self, given: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Next to the largest magnitude in every channel that a layer with rounding takes, by the layer's name at Bob."""
        found: dict[str, Tensor] = {}

        def note(name: str, x: Tensor) -> None:
            values = x.abs().permute(1, 0, 2, 3).flatten(1)
            found[name] = torch.quantile(values[:, :: values.shape[1] // 2**14 + 1], 0.9999, dim=1)

        rounded = [(name, module) for name, module in self.decoder.named_modules() if isinstance(module, _Rounded)]
        hooks = [
            module.register_forward_pre_hook(partial(lambda name, _, x: note(name, x[0]), name)) for name, module in rounded
        ]
        training = self.training
        self.eval()(*given)
        self.train(training)
        for hook in hooks:
            hook.remove()
        return found

    def int8_steps(self) -> dict[str, Int8Step]:
        """How an INT8 graph takes the input of a convolution, by the name of its weights, for those trained with rounding."""
        rounded = {name: module for name, module in self.named_modules() if isinstance(module, _Rounded)}
        return {f"{name}.weight": Int8Step(float(module.step.detach()), module.fine) for name, module in rounded.items()}

    def encode_rows(self, x: Tensor, snr_db: Tensor) -> Tensor:
        """Images to rows [batch, h, w*c], as loud as they come: their power is for ``to_unit_power``."""
        told = _told(snr_db.reshape(-1, 1, 1, 1))
        return self.encoder(x, told, self.gains(told)).permute(0, 2, 3, 1).flatten(2)

    def decode_rows(self, rows: Tensor, side_information: Tensor) -> Tensor:
        """Rows [batch, h, w*c] of unit power, as received, to images."""
        scale, noise, snr_db = side_information.reshape(-1, 3, 1, 1).split(1, dim=1)
        noise = noise.clamp(10 ** (-MAX_DB / 10), 10 ** (-MIN_DB / 10))
        log_noise = torch.log(noise / (2 * scale.square()))  # of what is in a feature
        told = _told(snr_db)
        received = rows.unflatten(2, (-1, self.config.c)).permute(0, 3, 1, 2)
        return self.decoder(received, scale, log_noise, told, self.gains(told))

    def encode(self, x: Tensor, snr_db: Tensor) -> Tensor:
        """Images to symbols [batch, N, 2], as loud as they come."""
        return self.encode_rows(x, snr_db).reshape(x.shape[0], self.config.n_symbols, 2)

    def decode(self, symbols: Tensor, side_information: Tensor) -> Tensor:
        """Symbols [batch, N, 2] of unit power, as received, to images in 0..1."""
        rows = symbols.reshape(symbols.shape[0], self.config.h, self.config.w * self.config.c)
        return self.decode_rows(rows, side_information).clamp(0, 1)

    def forward(self, x: Tensor, snr_db: Tensor, noise: Tensor, drawn: Tensor) -> Tensor:
        """The whole link: images to images, which may be beyond 0..1.

        ``snr_db`` is what both ends believe, ``noise`` the noise power in a complex symbol, [batch]; ``drawn`` standard normal
        [batch, h, w*c].
        """
        rows, scale = to_unit_power(self.encode_rows(x, snr_db))
        received = rows + drawn * (noise / 2).sqrt()[:, None, None]
        return self.decode_rows(received, torch.stack([scale, noise, snr_db], dim=1))

    def fitting(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of another edge codec that this one can start from, after ``start_linear``.

        With more blocks at Bob it starts as good as the other is: a new block changes nothing until it has learned. With
        another c, or fewer blocks, what Bob's last layer adds would be meant for what is no longer there, so it starts at zero.
        """
        own = self.state_dict()
        odd = [name for name in weights if name not in own or weights[name].shape != own[name].shape]
        layers = {name.rpartition(".")[0] for name in odd}  # all of a layer, or nothing: its bias belongs to its weights
        kept = {name: tensor for name, tensor in weights.items() if name.rpartition(".")[0] not in layers}
        if any(name.startswith("decoder.") for name in odd):
            kept = {name: tensor for name, tensor in kept.items() if not name.startswith("decoder.last.")}
        new = [name for name in own if name not in weights and name.startswith("decoder.blocks.") and "log_step" not in name]
        return kept | {name: torch.zeros_like(own[name]) for name in new if ".second." in name}

    def start_linear(self, blocks: NDArray) -> None:
        """Make this the linear code of blocks float [n, 48], channels as ``space_to_depth`` has them, values in 0..1."""
        values = torch.from_numpy(blocks).double()
        mean = values.mean(0)
        variances, vectors = torch.linalg.eigh((values - mean).T @ (values - mean) / len(values))
        rest = vectors.square() @ variances.clamp_min(0).where(torch.arange(len(variances)) < len(variances) - self.config.c, 0)
        variances, vectors = variances.flip(0)[: self.config.c].clamp_min(1e-8), vectors.flip(1)[:, : self.config.c]
        gains = variances**-0.25
        analysis_bias, synthesis_bias = self.encoder.linear.bias, self.decoder.linear.bias
        assert analysis_bias is not None
        assert synthesis_bias is not None
        with torch.no_grad():
            analysis = gains[:, None] * vectors.T
            self.encoder.linear.weight.copy_(analysis[:, :, None, None])
            analysis_bias.copy_(-analysis @ mean)
            self.decoder.linear.weight.copy_((vectors / gains)[:, :, None, None])
            synthesis_bias.copy_(mean)
            self.decoder.log_signal.copy_((gains.square() * variances).log()[:, None, None])
            self.decoder.level.copy_((gains.square() * variances).rsqrt()[:, None, None])
            self.decoder.rest.copy_(rest.clamp_min(1e-8)[:, None, None])
