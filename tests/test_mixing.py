"""The defence mix in the deployed graphs and in the link."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from semseal.runtime import channel
from semseal.runtime.bundle import open_bundle
from semseal.runtime.defense import mix
from semseal.runtime.defense.header import HeaderSealer
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import HeaderError
from semseal.runtime.libraries import load_onnxruntime
from semseal.runtime.link import BrokenDefenseWarning, Frame, Receiver, Transmitter
from semseal.runtime.metrics import psnr
from semseal.runtime.mixing import with_mix

KEY = bytes(range(32))
SESSION, DIGEST = bytes(16), bytes(32)
ROUNDING = 2e-5  # of symbols of power 1; engines add up in their own order, and the largest one takes what that leaves


@pytest.fixture(scope="module")
def bundle(small_bundle):
    return open_bundle(small_bundle)


def identity(batch, h=8):
    return np.arange(batch * h, dtype=np.int32).reshape(batch, h)


@pytest.mark.parametrize("side", ["transmitter-mix", "receiver-mix"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_keys_are_inputs_and_no_row_index_is_left(bundle, side, precision):
    graph = onnx.load_model_from_string(bundle.graph(side, precision)).graph
    data = ["image", "mix_pads"] if side.startswith("transmitter") else ["symbols"]
    secret = ["mix_column_signs", *(f"mix_signs{k}" for k in range(5)), "mix_rows", "mix_columns"]
    assert [value.name for value in graph.input] == [*data, *secret]
    gathers = [node for node in graph.node if node.op_type == "Gather"]
    assert sorted(node.input[1] for node in gathers) == ["mix_columns", "mix_rows"]
    # nothing is reshaped only to be reshaped again
    reshaped = {node.output[0] for node in graph.node if node.op_type == "Reshape"}
    assert not [node.name for node in graph.node if node.op_type == "Reshape" and node.input[0] in reshaped]


def test_onnxruntime_casts_signs_when_they_are_needed_not_before_the_network(tmp_path):
    onnxruntime = load_onnxruntime("onnxruntime-cpu")
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "run")
    session = onnxruntime.InferenceSession(open_bundle("photos-10db").graph("transmitter-mix"), options)
    images = np.zeros((1, 3, 180, 180), np.float32)
    keys = mix.transmitter_inputs(mix.derive_keys(KEY, SESSION, [1], DIGEST, 32400), 32400)
    session.run(None, dict(zip([value.name for value in session.get_inputs()], [images, *keys], strict=True)))
    events = json.loads(Path(session.end_profiling()).read_text())
    order = [event["args"]["op_name"] for event in events if event.get("name", "").endswith("_kernel_time")]
    last_of_network = len(order) - 1 - order[::-1].index("Conv")
    assert order[last_of_network:].count("Cast") >= mix.LAYERS


@pytest.mark.parametrize("side", ["transmitter-mix", "receiver-mix"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", ["photos-10db", "edge", "small", "small edge"])
def test_every_graph_that_mixes_is_valid(small_bundle, edge_bundle, name, precision, side):
    opened = open_bundle({"small": small_bundle, "small edge": edge_bundle}.get(name, name))
    model = onnx.load_model_from_string(opened.graph(side, precision))
    onnx.checker.check_model(model, full_check=True)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    used = {value for node in model.graph.node for value in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used
    assert {value.name for value in model.graph.input} <= used
    # what a graph is told comes behind the picture or the symbols
    told = {"transmitter-mix": "snr_db", "receiver-mix": "side_information"}[side]
    assert (model.graph.input[1].name == told) == opened.has_scale == ("edge" in name)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("engine", ["onnxruntime-cpu", "openvino"])
def test_features_of_any_power_are_mixed_at_power_1_and_their_scale_is_found(edge_bundle, small_images, engine, precision):
    opened, batch = open_bundle(edge_bundle), 3
    images = small_images(batch) * np.array([1, 0.3, 0.02], np.float32)[:, None, None, None]
    told = np.array([0, 10, 20], np.float32)
    loud = open_engine(engine, opened.graph("transmitter", precision))(images, identity(batch), told).reshape(batch, -1)
    keys = mix.derive_keys(KEY, SESSION, range(5, 5 + batch), DIGEST, 192)
    plain, scales = channel.to_unit_power(loud)
    inputs = mix.transmitter_inputs(keys, 192)
    on_air, found = mix.normalize(open_engine(engine, opened.graph("transmitter-mix", precision))(images, told, *inputs))
    np.testing.assert_allclose(on_air.reshape(batch, -1), mix.mix(plain, keys), rtol=0, atol=ROUNDING)
    pads = (192 + 2 * np.square(keys.pads, dtype=np.float64).sum(axis=1)) / (192 + keys.pads.shape[1])  # power of all
    np.testing.assert_allclose(found, scales / np.sqrt(pads), rtol=1e-4)
    side = np.stack([found, np.full(batch, 0.01), told], axis=1).astype(np.float32)
    back = open_engine(engine, opened.graph("receiver-mix", precision))(on_air, side, *mix.receiver_inputs(keys, 192))
    rows = mix.unmix(on_air.reshape(batch, -1), keys, 192).reshape(batch, -1, 2)
    without = open_engine(engine, opened.graph("receiver", precision))(rows, identity(batch), side)
    assert np.abs(back - without).mean() < (1e-3 if precision == "int8" else 1e-4)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("engine", ["onnxruntime-cpu", "openvino"])
def test_the_graph_mixes_as_the_reference_does(bundle, small_images, engine, precision, batch):
    images = small_images(batch)
    plain = open_engine(engine, bundle.graph("transmitter", precision))(images, identity(batch))
    keys = mix.derive_keys(KEY, SESSION, range(5, 5 + batch), DIGEST, 192)
    expected = mix.mix(plain.reshape(batch, -1), keys)
    raw = open_engine(engine, bundle.graph("transmitter-mix", precision))(images, *mix.transmitter_inputs(keys, 192))
    on_air = mix.normalize(raw)[0]
    np.testing.assert_allclose(on_air.reshape(batch, -1), expected, rtol=0, atol=ROUNDING)
    assert np.abs(np.square(on_air, dtype=np.float64).sum(axis=(1, 2)) / on_air.shape[1] - 1).max() < 1e-8
    back = open_engine(engine, bundle.graph("receiver-mix", precision))(on_air, *mix.receiver_inputs(keys, 192))
    # what the reference un-mixes, decoded: not quite at the scale that was sent
    rows = mix.unmix(on_air.reshape(batch, -1), keys, 192).reshape(plain.shape)
    without = open_engine(engine, bundle.graph("receiver", precision))(rows, identity(batch))
    # int8 levels may fall to the other side of a border by the last bit
    assert np.abs(back - without).mean() < (1e-3 if precision == "int8" else 1e-4)


def turned(reals, keys):
    """All reals of the packet through the map, pads and exact power aside: what ``mix`` does to symbols, to noise."""
    a, b, c = mix.factors(32400)
    h_a, h_b, h_c = (mix.hadamard(m).astype(np.float32) / np.float32(np.sqrt(m)) for m in (a, b, c))
    batch = len(reals)

    def along_columns(x):
        return (h_b @ (h_a @ x.reshape(batch, a, b * c)).reshape(batch, a, b, c)).reshape(batch, a * b, c)

    signs = keys.signs.reshape(batch, mix.LAYERS, a * b, c)
    x = along_columns(signs[:, 0] * (reals.reshape(batch, a * b, c) @ (h_c * keys.column_signs)))
    x = signs[:, 1] * x.reshape(-1, c)[keys.index]
    x = along_columns(signs[:, 2] * (x @ h_c[keys.columns]))
    return (signs[:, 4] * (signs[:, 3] * x @ h_c)).reshape(batch, -1)


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


@pytest.mark.parametrize("n", [96, 210, 768, 2100, 6000])
def test_any_size_padded_or_not_and_each_image_its_own_power(n):
    transmitter, receiver = by_hand(n)
    loudness = np.array([1, 0.2, 1e-4], np.float32).reshape(3, 1, 1, 1)
    images = loudness * np.random.default_rng(0).random((3, 3, 2, n // 6), np.float32)
    keys = mix.derive_keys(KEY, SESSION, range(3), DIGEST, n)
    plain = open_engine("onnxruntime-cpu", transmitter)(images, identity(3, 2))
    mixing = with_mix(transmitter, "transmitter", 2, n // 2, 3)
    on_air = mix.normalize(open_engine("onnxruntime-cpu", mixing)(images, *mix.transmitter_inputs(keys, n)))[0]
    np.testing.assert_allclose(on_air.reshape(3, -1), mix.mix(plain.reshape(3, -1), keys), rtol=0, atol=ROUNDING)
    unmixing = open_engine("onnxruntime-cpu", with_mix(receiver, "receiver", 2, n // 2, 3))
    back = unmixing(on_air, *mix.receiver_inputs(keys, n))
    np.testing.assert_allclose(back.reshape(3, -1), mix.unmix(on_air.reshape(3, -1), keys, n), rtol=0, atol=ROUNDING)


def test_a_picture_that_the_encoder_answers_with_zero_is_sent_like_others():
    n = 6000
    transmitter, _ = by_hand(n)
    model = onnx.load_model_from_string(transmitter)  # as the exported graphs do: a least power, so that 0/0 is none
    mean = next(node for node in model.graph.node if node.output[0] == "amplitude")
    mean.input[0] = "at_least"
    model.graph.node.insert(3, onnx.helper.make_node("Max", ["mean", "tiny"], ["at_least"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1e-12), "tiny"))
    mixing = open_engine("onnxruntime-cpu", with_mix(model.SerializeToString(), "transmitter", 2, n // 2, 3))
    keys = mix.derive_keys(KEY, SESSION, [0], DIGEST, n)
    black = np.zeros((1, 3, 2, n // 6), np.float32)
    on_air = mix.normalize(mixing(black, *mix.transmitter_inputs(keys, n)))[0]
    np.testing.assert_allclose(on_air.reshape(1, -1), mix.mix(black.reshape(1, -1), keys), rtol=0, atol=ROUNDING)
    assert np.square(on_air, dtype=np.float64).sum() / on_air.shape[1] == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("batch", [1, 2, 7, 65])
def test_bob_gets_the_same_pictures_in_the_order_sent(small_bundle, small_images, batch):
    images = small_images(batch)
    plain = Receiver(small_bundle).receive(Transmitter(small_bundle).send(images))
    frames = Transmitter(small_bundle, KEY, "mix").send(images)
    assert len(frames) == batch
    shuffled = [frames[i] for i in np.random.default_rng(0).permutation(batch)]
    assert (
        np.abs(Receiver(small_bundle, KEY).receive(shuffled) - plain).mean(axis=(1, 2, 3)).max() < 2e-2
    )  # pads in place of most of a scale


def test_bob_loses_nothing_for_the_same_noise():
    from semseal.runtime.pictures import open_pictures

    images = open_pictures("photos", "valid").take(4, 180, 180)
    bundle = open_bundle("photos-10db")
    noise = channel.draw_noise(4, 16200, np.random.default_rng(0))
    beside = channel.draw_noise(4, 184, np.random.default_rng(1))  # on the pads
    got = {}
    for defense in ("none", "mix"):
        frames = Transmitter("photos-10db", KEY, defense).send(images)
        headers = [HeaderSealer(KEY, bundle.digest).open(frame.header) for frame in frames]
        added = noise
        if defense == "mix":  # the noise that is the very same once Bob has un-mixed it
            counters = [header.counter for header in headers]
            keys = mix.derive_keys(KEY, headers[0].session, counters, bundle.digest, 32400)
            seen = np.concatenate([noise, beside], axis=1).view(np.float32)
            added = turned(seen, keys).view(np.complex64)
        on_the_way = channel.awgn(np.stack([frame.symbols for frame in frames]), added, 10)
        received = [Frame(row, frame.header) for row, frame in zip(on_the_way, frames, strict=True)]
        got[defense] = psnr(images, Receiver("photos-10db", KEY).receive(received))
    assert np.abs(got["none"] - got["mix"]).max() < 0.06  # the scale, which is a little off


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
    bundle = "photos-10db"
    one, two = Transmitter(bundle, KEY, "mix").send(images)
    for precision in ("fp32", "fp16", "int8"):
        with pytest.raises(HeaderError, match=r"frame 0: its symbols were mixed under another key or counter"):
            Receiver(bundle, KEY, precision=precision).receive([Frame(two.symbols, one.header)])
        assert np.isfinite(Receiver(bundle, KEY, precision=precision).receive([one])).all()
    noise = np.random.default_rng(0).normal(size=(16384, 2)).astype(np.float32).view(np.complex64)[:, 0]
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
    assert np.abs(Receiver(small_bundle, KEY).receive(frames) - plain).mean() < 1e-2
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
