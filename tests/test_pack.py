"""Pairs of ONNX files from elsewhere, packed."""

import numpy as np
import onnx
import onnx.compose
import onnxruntime
import pytest
import torch
from foreign import (
    FEATURES,
    GOOD,
    HEIGHT,
    IMAGE,
    PAIRS,
    SMALL,
    UNIT,
    WIDTH,
    Decoder,
    Encoder,
    SequenceFirst,
    Windows,
    by_hand,
    flat_pair,
    sklearn_pair,
    written,
)
from onnx import TensorProto, helper, numpy_helper
from semseal.export.pack import pack, pack_graphs
from semseal.export.tensorrt import build_plan
from semseal.runtime.audit.surrogate import Surrogate
from semseal.runtime.defense import index
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import EngineError, GraphError
from semseal.runtime.link import Receiver, Transmitter
from semseal.runtime.pictures import open_pictures
from semseal.runtime.signing import owner_key
from torch import nn


@pytest.fixture(scope="module", params=PAIRS)
def pair(request):
    files = PAIRS[request.param]()
    return files, pack_graphs(*files)


def alone(file, batch):
    """What the user's file gives, one after the other."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: one[None]})[0] for one in batch])


def photographs(packed, n):
    return open_pictures("photos", "test").take(n, packed.height, packed.width, seed=5)


def identity(packed, n):
    return np.arange(n * packed.layout.h, dtype=np.int32).reshape(n, packed.layout.h)


def rows_of(packed, features):
    """The contract: [c, h, w] as rows along h, channel fastest; anything else as it lies in memory."""
    turned = features.transpose(0, 2, 3, 1) if features.ndim == 4 else features
    return turned.reshape(len(features), packed.layout.h, packed.layout.w * packed.layout.c)


def axes(value):
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def test_the_graphs_have_the_interface_of_every_bundle(pair):
    _, packed = pair
    n = packed.layout.h * packed.layout.w * packed.layout.c // 2
    image = ["batch", 3, packed.height, packed.width]
    tx, rx = (onnx.load_model_from_string(graph) for graph in (packed.transmitter, packed.receiver))
    assert {v.name: axes(v) for v in tx.graph.input} == {"image": image, "index": ["batch", packed.layout.h]}
    assert {v.name: axes(v) for v in tx.graph.output} == {"symbols": ["batch", n, 2]}
    assert {v.name: axes(v) for v in rx.graph.input} == {"symbols": ["frames", n, 2], "index": ["batch", packed.layout.h]}
    assert {v.name: axes(v) for v in rx.graph.output} == {"image": image}
    for model in (tx, rx):
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
        assert {v.type.tensor_type.elem_type for v in model.graph.input} == {TensorProto.FLOAT, TensorProto.INT32}
        gathers = [node for node in model.graph.node if "index" in node.input]
        assert [node.op_type for node in gathers] == ["Gather"]
        assert helper.get_attribute_value(gathers[0].attribute[0]) == 0
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names)
        assert {name.partition("/")[0] for name in names} <= {"network", "power", "index"}
        assert not any(part.metadata_props or part.doc_string for part in (*model.graph.node, *model.graph.initializer))
    # the file's own network comes first, then power, then the index
    order = [node.name.partition("/")[0] for node in tx.graph.node]
    assert order == sorted(order, key=["network", "power", "index"].index)
    assert [node.output[0] for node in tx.graph.node if node.output[0] in ("features", "rows")] == ["features", "rows"]
    assert not any(node.name.startswith("power/") for node in rx.graph.node)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("engine", ["onnxruntime-cpu", "openvino"])
def test_symbols_are_the_features_at_unit_power(pair, engine, batch):
    (transmitter, _), packed = pair
    images = photographs(packed, batch)
    rows = rows_of(packed, alone(transmitter, images))
    power = 2 * np.square(rows.astype(np.float64)).mean(axis=(1, 2), keepdims=True)
    symbols = open_engine(engine, packed.transmitter)(images, identity(packed, batch))
    np.testing.assert_allclose(symbols.reshape(rows.shape), rows / np.sqrt(power), atol=2e-5)
    assert np.square(symbols).sum(axis=(1, 2)) / symbols.shape[1] == pytest.approx(np.ones(batch), abs=1e-5)


@pytest.mark.parametrize("engine", ["onnxruntime-cpu", "openvino"])
def test_the_index_moves_rows_bit_for_bit_and_its_inverse_puts_them_back(pair, engine):
    _, packed = pair
    h, images = packed.layout.h, photographs(packed, 3)
    transmit, receive = open_engine(engine, packed.transmitter), open_engine(engine, packed.receiver)
    plain = transmit(images, identity(packed, 3))
    anywhere = np.random.default_rng(0).integers(0, 3 * h, (3, h), np.int32)
    expected = index.gather(plain.reshape(3 * h, -1), anywhere)
    assert transmit(images, anywhere).tobytes() == expected.tobytes()
    order = np.random.default_rng(1).permutation(3 * h).astype(np.int32)
    inverse = np.argsort(order).astype(np.int32)
    received = transmit(images, order.reshape(3, h))
    assert not np.array_equal(received, plain)
    undone = receive(received, inverse.reshape(3, h))
    assert undone.tobytes() == receive(plain, identity(packed, 3)).tobytes()
    # one image out of three frames
    assert np.allclose(receive(received, inverse.reshape(3, h)[1:2]), undone[1:2], atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("engine", ["onnxruntime-cpu", "openvino"])
def test_pictures_are_those_of_the_users_receiver(pair, engine, batch):
    (transmitter, receiver), packed = pair
    images = photographs(packed, batch)
    features = alone(transmitter, images)
    symbols = open_engine(engine, packed.transmitter)(images, identity(packed, batch))
    rows = symbols.reshape(batch, packed.layout.h, -1) * np.float32(packed.gain)
    if features.ndim == 4:
        rows = rows.reshape(batch, packed.layout.h, packed.layout.w, packed.layout.c).transpose(0, 3, 1, 2)
    expected = alone(receiver, np.ascontiguousarray(rows.reshape(features.shape))).clip(0, 1)
    pictures = open_engine(engine, packed.receiver)(symbols, identity(packed, batch))
    np.testing.assert_allclose(pictures, expected, atol=1e-5)
    assert expected.std(axis=(1, 2, 3)).min() > 0.01  # a flat picture would prove nothing
    np.testing.assert_allclose(packed.reference.encode(images), symbols, atol=2e-5)
    np.testing.assert_allclose(packed.reference.decode(symbols), expected, atol=1e-5)


def test_packing_again_gives_the_same_bytes(pair):
    files, packed = pair
    again = pack_graphs(*files)
    assert (again.transmitter, again.receiver) == (packed.transmitter, packed.receiver)


def test_tensorrt_takes_both_graphs(pair):
    _, packed = pair
    for graph in (packed.transmitter, packed.receiver):
        assert len(build_plan("tensorrt-rtx", graph, capabilities=[86])) > 10_000


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((16, 6, 6), (6, 6, 16)),
        ((1, 36, 16), (36, 16, 1)),
        ((576, 1, 1), (24, 24, 1)),  # one pixel of many channels has no rows of its own
        ((9, 64), (9, 64, 1)),
        ((288, 2), (24, 24, 1)),  # symbols already
        ((2, 288), (24, 24, 1)),  # two rows are no choice of order
        ((576,), (24, 24, 1)),
        ((2, 8, 36, 1), (24, 24, 1)),
    ],
)
def test_rows_of_any_feature_shape(shape, sizes):
    packed = pack_graphs(*flat_pair(shape))
    assert (packed.layout.h, packed.layout.w, packed.layout.c) == sizes
    assert f"{sizes[0]} rows of {sizes[1] * sizes[2]} floats" in packed.notes[0]
    assert packed.psnr_packed == pytest.approx(packed.psnr_original, abs=0.01)


@pytest.mark.parametrize(
    ("encoder", "gain"),
    [
        (Encoder(power=1.0), np.sqrt(2)),  # 1 per real value is 2 per symbol
        (Encoder(power=0.5), 1.0),
        (Encoder(power=1.0, over=(0, 1, 2, 3)), np.sqrt(2)),  # over the batch: the same for each image when it is alone
    ],
    ids=["real", "complex", "batch"],
)
def test_the_power_that_the_receiver_knows_is_given_back(encoder, gain):
    packed = pack_graphs(written(encoder, IMAGE, dynamic=True), written(Decoder(), FEATURES))
    assert packed.own_power
    assert packed.gain == pytest.approx(gain, rel=1e-4)
    assert packed.psnr_packed == pytest.approx(packed.psnr_original, abs=1e-3)
    scaled = any(node.name == "network/gain" for node in onnx.load_model_from_string(packed.receiver).graph.node)
    assert scaled == (packed.gain != 1)


def test_a_power_that_varies_is_given_back_on_average():
    files = written(Encoder(), IMAGE), written(Decoder(), FEATURES)
    packed = pack_graphs(*files)
    assert not packed.own_power
    features = alone(files[0], open_pictures("photos", "train").take(12, HEIGHT, WIDTH))
    assert packed.gain == pytest.approx(np.sqrt(2 * np.square(features).mean()), rel=1e-4)
    assert "the transmitter's power varies" in packed.notes[1]


def test_a_black_picture_stays_silent():
    body = "y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x)"
    transmitter = by_hand(f"{SMALL} x", "float[n,3,8,6] y", body)
    back = 's = Constant<value_floats = [1.0, 1.0, 2.0, 2.0]>() x = Resize<mode = "nearest">(y, , s)'
    with pytest.raises(GraphError, match="depends on the power"):
        pack_graphs(transmitter, by_hand("float[n,3,8,6] y", f"{SMALL} x", back))
    flat = "half = Constant<value_float = 0.5>() zero = Constant<value_float = 0.0>() z = Mul(y, zero) g = Add(z, half)"
    back = flat + ' s = Constant<value_floats = [1.0, 1.0, 2.0, 2.0]>() x = Resize<mode = "nearest">(g, , s)'
    packed = pack_graphs(transmitter, by_hand("float[n,3,8,6] y", f"{SMALL} x", back))
    images = np.stack([np.zeros((3, 16, 12)), np.full((3, 16, 12), 1e-6), np.ones((3, 16, 12))]).astype(np.float32)
    symbols = open_engine("onnxruntime-cpu", packed.transmitter)(images, identity(packed, 3))
    assert np.square(symbols).sum(axis=(1, 2)) / symbols.shape[1] == pytest.approx([0, 1, 1], abs=1e-5)


def test_what_unit_power_costs_is_told_and_too_much_is_refused():
    packed = pack_graphs(*sklearn_pair(normalised=False, components=6))
    cost = packed.psnr_original - packed.psnr_packed
    assert 0.1 < cost < 3
    assert f"unit power costs {cost:.2f} dB" in packed.notes[-1]
    with pytest.raises(GraphError, match=r"receiver: it depends on the power of .*dB become .*dB on 12 photographs"):
        pack_graphs(*sklearn_pair(normalised=False, components=60))


def test_an_old_file_with_its_weights_among_the_inputs():
    body = "z = Mul(y, k) x = Clip<min = 0.0, max = 1.0>(z)"
    old = onnx.load_model_from_string(by_hand(f"{SMALL} y, float[1] k", f"{SMALL} x", body, opset=9, ir=3))
    old.graph.initializer.append(numpy_helper.from_array(np.full(1, 10, np.float32), "k"))
    transmitter, receiver = flat_pair((3, 16, 12))
    assert pack_graphs(transmitter, old.SerializeToString()).psnr_packed == pytest.approx(
        pack_graphs(transmitter, receiver).psnr_packed, abs=1e-6
    )


@pytest.mark.parametrize("module", [Windows(), SequenceFirst()], ids=["windows", "sequence first"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
def test_a_batch_anywhere_inside_is_any_batch(module, dynamic):
    packed = pack_graphs(written(module, IMAGE, dynamic=dynamic), written(Decoder(), FEATURES))
    images = photographs(packed, 5)
    symbols = open_engine("onnxruntime-cpu", packed.transmitter)(images, identity(packed, 5))
    np.testing.assert_allclose(symbols, packed.reference.encode(images), atol=2e-5)
    operators = {node.op_type for node in onnx.load_model_from_string(packed.transmitter).graph.node}
    assert not operators & {"Shape", "Concat", "Unsqueeze"}  # no arithmetic on shapes is left


@pytest.mark.parametrize("sizes", ["1, 3, 16, 12", "1, -1, 16, 12"])
@pytest.mark.parametrize("zero", ["", "<allowzero = 1>"])
def test_a_reshape_to_a_batch_of_1_is_one_to_any_batch(sizes, zero):
    body = f"flat = Flatten(x) {UNIT} shape = Constant<value_ints = [{sizes}]>() y = Reshape{zero}(unit, shape)"
    packed = pack_graphs(by_hand("float[1,3,16,12] x", "float[1,3,16,12] y", body), GOOD[1])
    images = photographs(packed, 2)
    symbols = open_engine("onnxruntime-cpu", packed.transmitter)(images, identity(packed, 2))
    np.testing.assert_allclose(symbols, packed.reference.encode(images), atol=2e-5)


def test_a_batch_that_was_fixed_is_said_to_be_dynamic():
    assert any("the transmitter's batch was fixed at 1" in note for note in pack_graphs(*PAIRS["tokens"]()).notes)
    assert not any("fixed" in note for note in pack_graphs(*PAIRS["scikit-learn"]()).notes)


def test_values_slightly_outside_are_clipped_and_told():
    transmitter, _ = flat_pair((3, 16, 12))
    body = "k = Constant<value_float = 8.0>() c = Constant<value_float = -0.1>() z = Mul(y, k) x = Add(z, c)"
    packed = pack_graphs(transmitter, by_hand(f"{SMALL} y", f"{SMALL} x", body))
    assert any(": clipped to 0..1" in note for note in packed.notes)
    dark = open_engine("onnxruntime-cpu", packed.receiver)(np.zeros((1, 288, 2), np.float32), identity(packed, 1))
    assert np.array_equal(dark, np.zeros((1, 3, 16, 12)))


def test_the_white_box_attack_differentiates_it():
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.LeakyReLU(0.1), nn.Conv2d(8, 4, 3, 2, 1))
    packed = pack_graphs(written(plain, IMAGE), written(Decoder(), FEATURES))
    images = photographs(packed, 3)
    given = torch.from_numpy(images).requires_grad_()
    symbols = Surrogate(packed.transmitter)(given, torch.from_numpy(identity(packed, 3)))
    expected = open_engine("onnxruntime-cpu", packed.transmitter)(images, identity(packed, 3))
    np.testing.assert_allclose(symbols.detach().numpy(), expected, atol=1e-5)
    symbols[1].square()[0].sum().backward()
    assert [bool(image.any()) for image in given.grad] == [False, True, False]


def test_a_packed_pair_is_a_bundle_and_its_link_keeps_the_pictures(tmp_path):
    files = {"tx.onnx": written(Encoder(), IMAGE), "rx.onnx": written(Decoder(), FEATURES)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    bundle = pack(
        tmp_path / "tx.onnx", tmp_path / "rx.onnx", tmp_path / "bundle", 7.0, ("fp16", "int8"), signing_key=owner_key()
    )
    assert (bundle.h, bundle.row_width, bundle.n_symbols, bundle.snr_db) == (8, 24, 96, 7.0)
    assert bundle.manifest["packed"]["notes"] == list(pack_graphs(*files.values()).notes)
    reference, *rows = bundle.manifest["parity"]["rows"]
    for row in rows:
        allowed = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.3, "reference": 0}
        worst = max(allowed[row["transmitter"]], allowed[row["receiver"]])
        assert all(abs(row["psnr"][snr] - reference["psnr"][snr]) < worst for snr in reference["psnr"]), row
    images = open_pictures("photos", "test").take(5, HEIGHT, WIDTH)
    key = bytes(range(32))
    for precision in ("fp32", "fp16", "int8"):
        plain = Receiver(bundle.path, precision=precision).receive(Transmitter(bundle.path, precision=precision).send(images))
        alice = Transmitter(bundle.path, key, "permute+substitute", precision=precision)
        bob = Receiver(bundle.path, key, precision=precision)
        # int8 kernels may round another way for another batch
        np.testing.assert_allclose(bob.receive(alice.send(images)), plain, atol=0.05 if precision == "int8" else 1e-6)


def test_what_openvino_cannot_run_costs_its_rows_of_parity_and_not_the_bundle(tmp_path):
    encoder = onnx.load_model_from_string(written(Encoder(), IMAGE))
    last = encoder.graph.node[-1].output[0]
    encoder.graph.node.extend(
        [helper.make_node("Optional", [last], ["wrapped"]), helper.make_node("OptionalGetElement", ["wrapped"], ["unwrapped"])]
    )
    encoder.graph.output[0].name = "unwrapped"
    (tmp_path / "tx.onnx").write_bytes(encoder.SerializeToString())
    (tmp_path / "rx.onnx").write_bytes(written(Decoder(), FEATURES))
    bundle = pack(tmp_path / "tx.onnx", tmp_path / "rx.onnx", tmp_path / "bundle", 7.0, (), signing_key=owner_key())
    parity = bundle.manifest["parity"]
    assert {row["engine"] for row in parity["rows"]} == {"reference", "onnxruntime-cpu"}
    assert list(parity["differences"]) == ["onnxruntime-cpu fp32"]
    assert list(parity["refused"]) == ["openvino fp32"]
    with pytest.raises(EngineError, match=r"Optional"):
        open_engine("openvino", bundle.read("transmitter.fp32.onnx"))
