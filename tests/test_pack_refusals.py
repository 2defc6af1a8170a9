"""What cannot be packed, and what the packer says of it."""

import numpy as np
import onnx
import onnx.compose
import pytest
from foreign import FEATURES, GOOD, IMAGE, SMALL, Decoder, Encoder, FirstToken, NoFirstToken, by_hand, sklearn_pair, written
from onnx import TensorProto, helper, numpy_helper
from semseal.export.pack import pack_graphs
from semseal.runtime.errors import GraphError
from sklearn.linear_model import LinearRegression

IDENTITY = "y = Identity(x)"


def noisy():
    return by_hand(f"{SMALL} x", f"{SMALL} y", "e = RandomNormalLike(x) y = Add(x, e)"), GOOD[1]


def external():
    model = onnx.load_model_from_string(written(Encoder(), IMAGE))
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="weights.bin")
    return model.SerializeToString(), GOOD[1]


def sparse():
    model = onnx.load_model_from_string(GOOD[0])
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    tensor = helper.make_sparse_tensor(values, numpy_helper.from_array(np.zeros(1, np.int64), "i"), [3])
    model.graph.sparse_initializer.append(tensor)
    return model.SerializeToString(), GOOD[1]


def foreign_domain():
    model = onnx.load_model_from_string(by_hand(f"{SMALL} x", f"{SMALL} y", IDENTITY))
    model.graph.node[0].op_type, model.graph.node[0].domain = "FastGelu", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model.SerializeToString(), GOOD[1]


def fixed_batch(size):
    return by_hand(f"float[{size},3,16,12] x", f"float[{size},3,16,12] y", IDENTITY), GOOD[1]


def transmitter(taken, given, body, **versions):
    return lambda: (by_hand(f"{taken} x", f"{given} y", body, **versions), GOOD[1])


def receiver(taken, given, body):
    return lambda: (GOOD[0], by_hand(f"{taken} y", f"{given} x", body))


REFUSED = {
    "junk": (lambda: (b"no ONNX file", GOOD[1]), "transmitter: the graph is damaged"),
    "empty": (lambda: (GOOD[0], b""), "receiver: "),
    "two inputs": (
        lambda: (by_hand(f"{SMALL} x, {SMALL} snr", f"{SMALL} y", "y = Add(x, snr)"), GOOD[1]),
        r"transmitter: it has 2 inputs \(x, snr\); it must have one",
    ),
    "two outputs": (
        lambda: (GOOD[0], by_hand(f"{SMALL} y", f"{SMALL} x, {SMALL} mask", "x = Identity(y) mask = Abs(y)")),
        r"receiver: it has 2 outputs \(x, mask\)",
    ),
    "one colour": (transmitter("float[n,1,16,12]", "float[n,1,16,12]", IDENTITY), r"'x' \[\?, 1, 16, 12\] is no image"),
    "colours last": (transmitter("float[n,16,12,3]", "float[n,16,12,3]", IDENTITY), r"is no image .*\nhint: transpose it"),
    "flat": (transmitter("float[n,576]", "float[n,576]", IDENTITY), r"'x' \[\?, 576\] is no image"),
    "any width": (transmitter("float[n,3,16,w]", "float[n,3,16,w]", IDENTITY), r"'x' \[\?, 3, 16, \?\] has no fixed height"),
    "half": (transmitter("float16[n,3,16,12]", "float16[n,3,16,12]", IDENTITY), "input 'x' is float16; it must be float32"),
    "double": (
        transmitter(SMALL, "double[n,3,16,12]", "y = Cast<to = 11>(x)"),
        "transmitter: its output 'y' is double; it must be float32",
    ),
    "batch of 4": (lambda: fixed_batch(4), "transmitter: its batch is fixed at 4"),
    "other features": (
        receiver("float[n,4,8,6]", "float[n,4,8,6]", "x = Identity(y)"),
        r"receiver: its input 'y' \[\?, 4, 8, 6\] does not take the transmitter's \[batch, 3, 16, 12\]",
    ),
    "other picture": (
        receiver(SMALL, "float[n,3,8,6]", "x = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(y)"),
        r"receiver: it gives \[batch, 3, 8, 6\] for pictures \[batch, 3, 16, 12\]",
    ),
    "external data": (external, "transmitter: the graph keeps a tensor in another file"),
    "sparse": (sparse, "transmitter: the graph holds a sparse tensor"),
    "custom domain": (foreign_domain, r"\(FastGelu\) is of the domain com.microsoft"),
    "machine learning domain": (
        lambda: sklearn_pair(normalised=True, receiver=LinearRegression()),
        r"receiver: .*\(LinearRegressor\) is of the domain ai.onnx.ml",
    ),
    "batch normalisation in training": (
        lambda: (written(Encoder(), IMAGE, training=True), written(Decoder(), FEATURES)),
        r"transmitter: .*\(BatchNormalization\) is in training mode",
    ),
    "dropout in training": (
        transmitter(
            SMALL, SMALL, "r = Constant<value_float = 0.5>() t = Constant<value = bool {1}>() y = Dropout(x, r, t)"
        ),
        r"\(Dropout\) is in training mode",
    ),
    "noise inside": (noisy, r"\(RandomNormalLike\) draws random numbers\nhint: leave the channel"),
    "control flow": (
        transmitter(
            SMALL,
            SMALL,
            "z = Constant<value_float = 0.5>() m = ReduceMax<keepdims = 0>(x) c = Greater(m, z) "
            f"y = If(c)<then_branch = yes () => ({SMALL} a) {{ a = Abs(x) }}, "
            f"else_branch = no () => ({SMALL} b) {{ b = Neg(x) }}>",
        ),
        r"\(If\) is control flow",
    ),
    "-1..1": (receiver(SMALL, SMALL, "k = Constant<value_float = -40.0>() z = Mul(y, k) x = Tanh(z)"), "gives values -0.9"),
    "0..255": (receiver(SMALL, SMALL, "k = Constant<value_float = 2550.0>() x = Mul(y, k)"), "and an image is 0..1"),
    "not finite": (
        transmitter(SMALL, SMALL, "z = Sub(x, x) y = Div(x, z)"),
        "transmitter: it gives values that are not finite",
    ),
    "receiver not finite": (receiver(SMALL, SMALL, "z = Sub(y, y) x = Div(y, z)"), "receiver: .* that are not finite"),
    "too new": (transmitter(SMALL, SMALL, "y = Swish(x)", opset=24, ir=11), "opset 24 cannot be converted to 20 .*Swish"),
    "odd": (
        transmitter("float[n,3,15,11]", "float[n,3,15,11]", IDENTITY),
        r"transmitter: its features \[3, 15, 11\] are an odd number of floats",
    ),
    "one symbol": (
        transmitter("float[n,3,1,2]", "float[n,1,1,2]", "a = Constant<value_ints = [1]>() y = ReduceMax(x, a)"),
        r"transmitter: its features \[1, 1, 2\] are too few",
    ),
    "silent": (transmitter(SMALL, SMALL, "y = Sub(x, x)"), "transmitter: its features have power 0 per symbol"),
    "no batch": (
        transmitter(SMALL, "float[3,16,12]", "a = Constant<value_ints = [0]>() y = Squeeze(x, a)"),
        r"transmitter: it gives \[3, 16, 12\] for a single picture, without a batch axis; it must give \[1, ...\]",
    ),
    "a size that depends on the picture": (
        transmitter(SMALL, "float[n,k]", "i = NonZero(x) y = Cast<to = 1>(i)"),
        r"transmitter: it gives \[4, \d+\] for one picture and \[4, \d+\] for another",
    ),
    "pictures mixed": (
        transmitter(
            SMALL, SMALL, "a = Constant<value_ints = [0]>() m = ReduceMean(x, a) h = Constant<value_float = 0.5>() "
            "z = Mul(m, h) y = Sub(x, z)"
        ),
        r"transmitter: it gives something else for 3 pictures at once than one by one .*\nhint: export it with a dynamic batch",
    ),
    "a batch that stays fixed": (
        lambda: (written(FirstToken(), IMAGE), written(NoFirstToken(), (13, 16))),
        "transmitter: it gives something else for 3 pictures at once .*Concat",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_side_and_the_reason(case):
    files, reason = REFUSED[case]
    with pytest.raises(GraphError, match=reason) as raised:
        pack_graphs(*files())
    assert raised.value.message.startswith(("transmitter: ", "receiver: "))
    assert raised.value.hint
    assert "\n" not in raised.value.message + raised.value.hint
