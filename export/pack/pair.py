"""Any pair of ONNX files as the two graphs of a bundle, proved on photographs.

    image ── user's transmitter ── features ── unit power per image ── rows ── Gather(index) ── symbols
    image ── Clip ── user's receiver ── gain ── features ── Gather(index) ── rows ── symbols

Power: what goes on air has power 1 per complex symbol and image, whatever the transmitter does. The gain restores the power
that the receiver was trained with: exactly, where the transmitter gives every picture the same power; otherwise only on
average, and the picture's own power is lost. A receiver that needs it is refused, by what that costs in dB on real pictures.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnxruntime import InferenceSession
from semseal.export.pack.graph import UNGUARDED, networks_without_batch, receiver_file, transmitter_file
from semseal.export.pack.layout import Array, RowLayout, row_layout, symbol_power
from semseal.export.pack.prove import Guarded, Reference, first_proved, is_finite, one_by_one, open_session
from semseal.export.pack.read import batch_is_fixed, batch_shape, check_receiver_input, image_size, read_model
from semseal.export.pack.whole import in_order
from semseal.export.rewrite import rewrite
from semseal.runtime.errors import GraphError
from semseal.runtime.metrics import psnr
from semseal.runtime.pictures import open_pictures

PICTURES = 12  # photographs that the power is measured on, and as many others that the pair is proved on
CONSTANT_POWER = 0.01  # range over pictures, relative, up to which the transmitter counts as normalising
MIN_FEATURE_POWER, MAX_FEATURE_POWER = 1e-18, 1e30  # per symbol; float32 holds their squares well
NOTED_LOSS_DB, MAX_LOSS_DB = 0.1, 3.0  # that unit power costs: said in a note, refused
FLAT = (0.0, 0.5, 1.0)  # brightness of pictures that a network may divide by nothing for
INVISIBLE_DB = 60.0  # PSNR beyond which nobody sees a loss
MAX_OVERSHOOT = 0.25  # beyond 0..1, of the darkest and brightest 1 % of a receiver's values

Pair = tuple[onnx.ModelProto, onnx.ModelProto]  # transmitter and receiver


@dataclass(frozen=True)
class Packed:
    """Two graphs with the interface of ``semseal.export.onnx``, and how they came about."""

    transmitter: bytes
    receiver: bytes
    reference: Reference  # the user's own files, for parity
    height: int
    width: int
    own_power: bool  # the transmitter itself gives every picture the same power
    psnr_original: float  # dB, mean over PICTURES photographs without noise: the files back to back
    psnr_packed: float  # dB, the same with unit power
    notes: tuple[str, ...]  # what was decided, a sentence each

    @property
    def layout(self) -> RowLayout:
        """How the features are sent."""
        return self.reference.layout

    @property
    def gain(self) -> float:
        """The receiver's features are the unit-power symbols times this."""
        return self.reference.gain


@dataclass(frozen=True)
class FeaturePower:
    """Power per symbol of the transmitter's features, over PICTURES photographs."""

    lowest: float
    mean: float
    highest: float

    def __str__(self) -> str:
        return f"{self.lowest:.3g} to {self.highest:.3g} per symbol over {PICTURES} photographs"

    @property
    def constant(self) -> bool:
        """Whether the transmitter gives every picture the same power."""
        return self.highest - self.lowest < CONSTANT_POWER * self.mean

    @property
    def gain(self) -> float:
        """The root mean square, in few digits, so that another processor's rounding does not make another bundle."""
        return float(f"{math.sqrt(self.mean):.5g}")


@dataclass(frozen=True)
class UnitPowerCost:
    """Mean PSNR in dB of the files back to back, and with unit power between them."""

    original: float
    packed: float

    @property
    def loss_db(self) -> float:
        """The loss that can be seen."""
        return min(self.original, INVISIBLE_DB) - min(self.packed, INVISIBLE_DB)


def pack_graphs(transmitter: bytes, receiver: bytes) -> Packed:
    """Two ONNX files as the graphs of a bundle, proved on photographs to do what the files do.

    The transmitter takes one image float32 [batch, 3, height, width] in 0..1 and gives features or symbols float32
    [batch, ...]; the receiver takes these and gives the image back. The batch is dynamic, or 1 and is made dynamic. Raises
    GraphError for anything else, and for a pair that unit power or a batch would change.
    """
    transmitter, receiver = in_order("transmitter", transmitter), in_order("receiver", receiver)
    pair = read_model("transmitter", transmitter), read_model("receiver", receiver)
    height, width = image_size(pair[0].graph.input[0])
    sender, recipient = open_session("transmitter", transmitter), open_session("receiver", receiver)
    images = open_pictures("photos", "valid").take(PICTURES, height, width)

    layout = row_layout(one_by_one("transmitter", sender, images[:2]).shape[1:])  # before memory goes into the others
    features = one_by_one("transmitter", sender, images)
    check_receiver_input(pair[1].graph.input[0], layout.shape)
    original = one_by_one("receiver", recipient, features)
    _check_pictures(original, images)

    power = _measure_power(sender, layout, height, width)
    flat = np.broadcast_to(np.array(FLAT, np.float32).reshape(-1, 1, 1, 1), (len(FLAT), *images.shape[1:]))
    guarded = Guarded(
        transmitter=not is_finite("transmitter", sender, flat),
        receiver=not is_finite("receiver", recipient, np.zeros_like(features[:1])),
    )
    reference = Reference(sender, recipient, layout, power.gain, guarded)
    symbols = reference.encode(images)
    pictures = reference.decode(symbols)
    cost = UnitPowerCost(*(float(psnr(images, answer).mean()) for answer in (original.clip(0, 1), pictures)))
    if cost.loss_db > MAX_LOSS_DB:
        raise GraphError(
            f"receiver: it depends on the power of each picture's features ({power}), which a link of unit power does not "
            f"carry: {cost.original:.2f} dB become {cost.packed:.2f} dB on {PICTURES} photographs without noise",
            "train the pair with power normalised per image",
        )
    graphs = _proved_graphs(pair, reference, features, (images, symbols, pictures))
    return Packed(
        *graphs,
        reference,
        height,
        width,
        own_power=power.constant,
        psnr_original=cost.original,
        psnr_packed=cost.packed,
        notes=tuple(_notes(pair, reference, features, original, power, cost)),
    )


def _check_pictures(given: Array, images: Array) -> None:
    """Raises GraphError unless the receiver gives images of the same size, about in 0..1."""
    if given.shape != images.shape:
        raise GraphError(
            f"receiver: it gives {batch_shape(given)} for pictures {batch_shape(images)}; it must give the image back",
            "let it end with an image of the size that the transmitter takes",
        )
    low, high = np.quantile(given, [0.01, 0.99])
    if low < -MAX_OVERSHOOT or high > 1 + MAX_OVERSHOOT:
        raise GraphError(
            f"receiver: it gives values {given.min():.3g} to {given.max():.3g}, and an image is 0..1",
            "put the scaling to 0..1 into the model",
        )


def _measure_power(transmitter: InferenceSession, layout: RowLayout, height: int, width: int) -> FeaturePower:
    """On photographs that the pair is not proved on. Raises GraphError for a power that float32 does not hold."""
    images = open_pictures("photos", "train").take(PICTURES, height, width)
    power = symbol_power(layout.to_rows(one_by_one("transmitter", transmitter, images)))
    if not MIN_FEATURE_POWER < power.mean() < MAX_FEATURE_POWER:
        raise GraphError(f"transmitter: its features have power {power.mean():.3g} per symbol", "scale them to about 1")
    return FeaturePower(float(power.min()), float(power.mean()), float(power.max()))


def _proved_graphs(
    pair: Pair, reference: Reference, features: Array, example: tuple[Array, Array, Array]
) -> tuple[bytes, bytes]:
    """Both files, proved on the images, symbols and pictures of ``example``. Raises GraphError."""
    images, symbols, pictures = example
    height, width = images.shape[2:]
    layout, gain, guarded = reference.layout, reference.gain, reference.guarded
    taken = "features" if gain == 1 else "scaled_features"
    given = UNGUARDED if guarded.transmitter else "features"
    transmitters = networks_without_batch("transmitter", pair[0], ("image", images.shape), (given, features.shape))
    given = UNGUARDED if guarded.receiver else "unclipped"
    receivers = networks_without_batch("receiver", pair[1], (taken, features.shape), (given, images.shape))
    return (
        first_proved(
            "transmitter",
            transmitters,
            lambda network: rewrite(transmitter_file(network, layout, height, width, guarded.transmitter)),
            (images, symbols),
            layout.h,
        ),
        first_proved(
            "receiver",
            receivers,
            lambda network: rewrite(receiver_file(network, layout, height, width, gain, guarded.receiver)),
            (symbols, pictures),
            layout.h,
        ),
    )


def _notes(
    pair: Pair, reference: Reference, features: Array, original: Array, power: FeaturePower, cost: UnitPowerCost
) -> list[str]:
    """What was decided, a sentence each."""
    layout, guarded = reference.layout, reference.guarded
    notes = [f"features {batch_shape(features)} are sent as {layout.h} rows of {layout.row_width} floats"]
    if power.constant:
        notes.append(
            f"the transmitter gives every picture the same power ({power}): the receiver's features are multiplied by "
            f"{power.gain:g} to restore it"
        )
    else:
        notes.append(
            f"the transmitter's power varies ({power}): it is normalised per image, and the receiver's features are "
            f"multiplied by its root mean square, {power.gain:g}"
        )
    for side, model in zip(("transmitter", "receiver"), pair, strict=True):
        if batch_is_fixed(model):
            notes.append(f"the {side}'s batch was fixed at 1 and is dynamic now")
    if guarded.transmitter:
        notes.append(
            "the transmitter gives values that are not finite for pictures of one brightness, such as black ones: 0 instead"
        )
    if guarded.receiver:
        notes.append("the receiver gives values that are not finite for features of zeros: black pixels instead")
    if original.min() < 0 or original.max() > 1:
        notes.append(f"the receiver gives values {original.min():.3g} to {original.max():.3g}: clipped to 0..1")
    notes.append(
        f"without noise the files give {cost.original:.2f} dB and the bundle {cost.packed:.2f} dB, on {PICTURES} photographs"
    )
    if cost.loss_db > NOTED_LOSS_DB:
        notes.append(f"unit power costs {cost.loss_db:.2f} dB; train the pair with power normalised per image")
    return notes
