"""The defence mix in the deployed graphs and in the link."""

import numpy as np
import onnx
import pytest
from semseal.export.mixing import with_mix
from semseal.runtime import channel
from semseal.runtime.bundle import open_bundle, packaged_bundle
from semseal.runtime.defense import mix
from semseal.runtime.defense.header import HeaderSealer
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import HeaderError
from semseal.runtime.link import BrokenDefenseWarning, Frame, Receiver, Transmitter
from semseal.runtime.metrics import psnr

KEY = bytes(range(32))
SESSION, DIGEST = bytes(16), bytes(32)
ROUNDING = 5e-6  # of symbols of mean power 1; an engine may add up in another order than the reference


@pytest.fixture(scope="module")
def bundle(small_bundle):
    return open_bundle(small_bundle)


def identity(batch, h=8):
    return np.arange(batch * h, dtype=np.int32).reshape(batch, h)


@pytest.mark.parametrize("side", ["transmitter-mix", "receiver-mix"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_keys_are_inputs_and_no_row_index_is_left(bundle, side, precision):
    graph = onnx.load_model_from_string(bundle.graph(side, precision)).graph
    data = "image" if side.startswith("transmitter") else "symbols"
    assert [value.name for value in graph.input] == [data, "signs0", "signs1", "signs2", "signs3", "signs4", "order"]
    gathers = [node for node in graph.node if node.op_type == "Gather"]
    assert [node.input[1] for node in gathers] == ["order"]
    # nothing is reshaped only to be reshaped again
    reshaped = {node.output[0] for node in graph.node if node.op_type == "Reshape"}
    assert not [node.name for node in graph.node if node.op_type == "Reshape" and node.input[0] in reshaped]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("engine", ["onnxruntime-cpu", "openvino"])
def test_the_graph_mixes_as_the_reference_does(bundle, small_images, engine, precision, batch):
    images = small_images(batch)
    plain = open_engine(engine, bundle.graph("transmitter", precision))(images, identity(batch))
    keys = mix.derive_keys(KEY, SESSION, range(5, 5 + batch), DIGEST, 192)
    expected = mix.mix(plain.reshape(batch, -1), keys)
    signs = mix.sign_inputs(keys, 192)
    on_air = open_engine(engine, bundle.graph("transmitter-mix", precision))(images, *signs, keys.index)
    np.testing.assert_allclose(on_air.reshape(batch, -1), expected, rtol=0, atol=ROUNDING)
    assert np.square(on_air).sum(axis=(1, 2)) / (on_air.shape[1]) == pytest.approx(np.ones(batch), abs=1e-4)
    back = open_engine(engine, bundle.graph("receiver-mix", precision))(on_air, *signs, keys.inverse_index)
    # int8 levels may fall to the other side of a border by the last bit
    without = open_engine(engine, bundle.graph("receiver", precision))(plain, identity(batch))
    assert np.abs(back - without).mean() < (1e-3 if precision == "int8" else 1e-4)


def by_hand(n):
    """A link whose features are its pictures of n reals: transmitter and receiver; h = 2."""
    reals, shape = n // 2, [3, 2, n // 6]
    nodes = {
        "features": ("Reshape", ["image", "three"]),
        "squares": ("Mul", ["features", "features"]),
        "mean": ("ReduceMean", ["squares", "axes"]),
        "amplitude": ("Sqrt", ["mean"]),
        "one": ("Mul", ["amplitude", "root"]),  # of complex symbols
        "scale": ("Reciprocal", ["one"]),
        "scaled": ("Mul", ["features", "scale"]),
        "rows": ("Reshape", ["scaled", "two"]),
        "on_air": ("Gather", ["rows", "index"]),
        "symbols": ("Reshape", ["on_air", "pairs"]),
    }
    back = {
        "rows": ("Reshape", ["symbols", "two"]),
        "features": ("Gather", ["rows", "index"]),
        "image": ("Reshape", ["features", "four"]),
    }
    values = {
        "three": np.array([-1, 2, reals]),
        "two": np.array([-1, reals]),
        "four": np.array([-1, *shape]),
        "pairs": np.array([-1, reals, 2]),
        "axes": np.array([1, 2]),
        "root": np.float32(np.sqrt(2)),
    }
    ends = {"image": (1, shape), "symbols": (1, [reals, 2]), "index": (6, [2])}
    declared = {name: onnx.helper.make_tensor_value_info(name, kind, ["batch", *rest]) for name, (kind, rest) in ends.items()}
    graphs = []
    for taken, given, body in (("image", "symbols", nodes), ("symbols", "image", back)):
        made = [onnx.helper.make_node(kind, inputs, [name], name) for name, (kind, inputs) in body.items()]
        constants = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
        graph = onnx.helper.make_graph(made, "link", [declared[taken], declared["index"]], [declared[given]], constants)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        graphs.append(model.SerializeToString())
    return graphs


@pytest.mark.parametrize("n", [96, 210, 768, 6000])
def test_any_size_padded_or_not_and_each_image_its_own_power(n):
    transmitter, receiver = by_hand(n)
    loudness = np.array([1, 0.2, 1e-4], np.float32).reshape(3, 1, 1, 1)
    images = loudness * np.random.default_rng(0).random((3, 3, 2, n // 6), np.float32)
    keys = mix.derive_keys(KEY, SESSION, range(3), DIGEST, n)
    plain = open_engine("onnxruntime-cpu", transmitter)(images, identity(3, 2))
    mixing = with_mix(transmitter, "transmitter", 2, n // 2, 3)
    on_air = open_engine("onnxruntime-cpu", mixing)(images, *mix.sign_inputs(keys, n), keys.index)
    np.testing.assert_allclose(on_air.reshape(3, -1), mix.mix(plain.reshape(3, -1), keys), rtol=0, atol=ROUNDING)
    unmixing = open_engine("onnxruntime-cpu", with_mix(receiver, "receiver", 2, n // 2, 3))
    back = unmixing(on_air, *mix.sign_inputs(keys, n), keys.inverse_index)
    np.testing.assert_allclose(back.reshape(3, -1), plain.reshape(3, -1), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("batch", [1, 2, 7, 65])
def test_bob_gets_the_same_pictures_in_the_order_sent(small_bundle, small_images, batch):
    images = small_images(batch)
    plain = Receiver(small_bundle).receive(Transmitter(small_bundle).send(images))
    frames = Transmitter(small_bundle, KEY, "mix").send(images)
    assert len(frames) == batch
    shuffled = [frames[i] for i in np.random.default_rng(0).permutation(batch)]
    assert np.abs(Receiver(small_bundle, KEY).receive(shuffled) - plain).max() < 1e-3


def test_bob_loses_nothing_for_the_same_noise():
    from semseal.runtime.pictures import open_pictures

    images = open_pictures("photos", "valid").take(4, 180, 180)
    bundle = open_bundle("photos-10db")
    noise = channel.draw_noise(4, 16200, np.random.default_rng(0))
    got = {}
    for defense in ("none", "mix"):
        frames = Transmitter("photos-10db", KEY, defense).send(images)
        headers = [HeaderSealer(KEY, bundle.digest).open(frame.header) for frame in frames]
        added = noise
        if defense == "mix":  # the noise that is the very same once Bob has un-mixed it
            counters = [header.counter for header in headers]
            keys = mix.derive_keys(KEY, headers[0].session, counters, bundle.digest, 32400)
            added = mix.mix(noise.view(np.float32), keys).view(np.complex64)
        noisy = channel.awgn(np.stack([frame.symbols for frame in frames]), added, 10)
        received = [Frame(row, frame.header) for row, frame in zip(noisy, frames, strict=True)]
        got[defense] = psnr(images, Receiver("photos-10db", KEY).receive(received))
    assert got["mix"] == pytest.approx(got["none"], abs=0.001)


def test_every_packet_is_mixed_anew_and_no_two_look_alike(small_bundle, small_images):
    images = np.repeat(small_images(1), 20, axis=0)
    frames = Transmitter(small_bundle, KEY, "mix").send(images) + Transmitter(small_bundle, KEY, "mix").send(images)
    symbols = np.stack([frame.symbols for frame in frames]).view(np.float32)
    symbols /= np.linalg.norm(symbols, axis=1, keepdims=True)
    likeness = np.abs(symbols @ symbols.T - np.eye(40))
    assert likeness.max() < 5 / np.sqrt(symbols.shape[1])


def test_a_wrong_key_or_counter_is_refused_not_decoded(small_bundle, small_images):
    frame = Transmitter(small_bundle, KEY, "mix").send(small_images(1))[0]
    with pytest.raises(HeaderError, match="does not authenticate"):
        Receiver(small_bundle, bytes(32)).receive([frame])
    for i in range(len(frame.header)):
        changed = bytearray(frame.header)
        changed[i] ^= 1
        with pytest.raises(HeaderError):
            Receiver(small_bundle, KEY).receive([Frame(frame.symbols, bytes(changed))])
    with pytest.raises(HeaderError, match="no key"):
        Receiver(small_bundle).receive([frame])


def test_symbols_under_another_header_are_refused_not_decoded():
    images = np.linspace(0, 1, 2 * 3 * 180 * 180, dtype=np.float32).reshape(2, 3, 180, 180)
    bundle = packaged_bundle("photos-10db")
    one, two = Transmitter(bundle, KEY, "mix").send(images)
    for precision in ("fp32", "fp16", "int8"):
        with pytest.raises(HeaderError, match=r"counters \[0\] were mixed under another key or counter"):
            Receiver(bundle, KEY, precision=precision).receive([Frame(two.symbols, one.header)])
        assert np.isfinite(Receiver(bundle, KEY, precision=precision).receive([one])).all()
    noise = np.random.default_rng(0).normal(size=(16200, 2)).astype(np.float32).view(np.complex64)[:, 0]
    with pytest.raises(HeaderError, match="another key or counter"):
        Receiver(bundle, KEY).receive([Frame(noise, one.header)])


def test_all_modes_in_one_call_come_back_in_order(small_bundle, small_images):
    images = small_images(6)
    plain = Receiver(small_bundle).receive(Transmitter(small_bundle).send(images))
    frames = [
        *Transmitter(small_bundle, KEY, "mix").send(images[:2]),
        *Transmitter(small_bundle, KEY, "permute+substitute").send(images[2:4]),
        *Transmitter(small_bundle, KEY, "mix").send(images[4:]),
    ]
    assert np.abs(Receiver(small_bundle, KEY).receive(frames) - plain).max() < 1e-3
    rx = Receiver(small_bundle, KEY)
    with pytest.warns(UserWarning, match="did not arrive for images \\[2\\]"):
        assert len(rx.receive([*frames[:3], *frames[4:]])) == 5
    assert rx.incomplete == [2]


def test_the_papers_modes_are_named_as_broken_and_mix_is_not(small_bundle, recwarn):
    for defense in ("permute", "substitute", "permute+substitute"):
        with pytest.warns(BrokenDefenseWarning, match="orders rows by likeness"):
            Transmitter(small_bundle, KEY, defense)
    recwarn.clear()
    Transmitter(small_bundle, KEY, "mix")
    Transmitter(small_bundle)
    assert not recwarn.list
