"""Pictures as bytes: the graphs that take and give them, and the link."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from semseal.runtime import channel
from semseal.runtime.bundle import open_bundle, write_bundle
from semseal.runtime.defense import mix
from semseal.runtime.defense.defenses import MODES
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import BundleError, GraphError, HeaderError
from semseal.runtime.link import Frame, Receiver, Transmitter
from semseal.runtime.pixels import separated, with_pixels
from semseal.runtime.signing import owner_key

KEY = bytes(range(32))
PACKAGED = ("edge", "edge-quality", "photos-10db")
PRECISIONS = ("fp32", "fp16", "int8")
ENGINES = ("onnxruntime-cpu", "openvino")
# symbols of mean power 1; where int8 rounds, the last bit may decide which of two levels it is
ROUNDING = {"fp32": 2e-5, "fp16": 2e-2, "int8": 0.2}
MEAN_ROUNDING = {"fp32": 2e-6, "fp16": 5e-4, "int8": 2e-3}


def pixels_of(batch, height, width, seed=0):
    """Pictures with every byte and both extremes: uint8 [batch, height, width, 3]."""
    random = np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3), np.uint8)
    random[:, : height // 3] = np.arange(width, dtype=np.uint8)[:, None]
    random[0, -1], random[0, -2] = 0, 255
    return random


def floats_of(pixels):
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def bytes_of(images):
    return np.round(255 * images).transpose(0, 2, 3, 1)


def axes(value):
    kind = value.type.tensor_type
    return kind.elem_type, [axis.dim_param or axis.dim_value for axis in kind.shape.dim]


@pytest.mark.parametrize("name", PACKAGED)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("side", ["transmitter", "receiver", "transmitter-mix", "receiver-mix"])
def test_the_graph_is_whole_and_holds_the_old_one_as_it_was(name, precision, side):
    data = open_bundle(name).graph(side, precision)
    old, new = onnx.load_from_string(data), onnx.load_from_string(with_pixels(data))
    onnx.checker.check_model(new, full_check=True)
    ends = {value.name: axes(value) for value in (*new.graph.input, *new.graph.output)}
    if side.startswith("transmitter"):
        assert ends["pixels"] == (TensorProto.UINT8, ["batch", 180, 180, 3])
        assert new.graph.input[0].name == "pixels"
        assert list(new.graph.input)[1:] == list(old.graph.input)[1:]
        assert list(new.graph.output) == list(old.graph.output)
        assert list(new.graph.node)[3:] == list(old.graph.node)
    else:
        assert ends["pixels"] == (TensorProto.UINT8, ["batch", 181, 180, 3])
        assert list(new.graph.input) == list(old.graph.input)
        assert [value.name for value in new.graph.output] == ["pixels"]
        assert list(new.graph.node)[: len(old.graph.node)] == list(old.graph.node)
    weights = {tensor.name: tensor for tensor in new.graph.initializer}
    assert len(weights) == len(new.graph.initializer)
    assert all(weights[tensor.name] == tensor for tensor in old.graph.initializer)
    for message in (old, new):
        for field in ("node", "initializer", "input", "output"):
            message.graph.ClearField(field)
    assert new == old  # opset, metadata, names, types of inner tensors


@pytest.mark.parametrize("name", PACKAGED)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("engine", ENGINES)
def test_symbols_and_pictures_are_those_of_the_float_graphs(name, precision, engine):
    bundle, pixels = open_bundle(name), pixels_of(2, 180, 180)
    index = np.arange(90, dtype=np.int32).reshape(2, 45)
    opened = {
        (side, form): open_engine(engine, bundle.program(side, precision, engine, pixels=form))
        for side in ("transmitter", "receiver", "transmitter-mix")
        for form in (False, True)
    }
    snr_db = [np.array([3, 17], np.float32)] if bundle.has_scale else []
    expected = opened["transmitter", False](floats_of(pixels), index, *snr_db)
    symbols = opened["transmitter", True](pixels, index, *snr_db)
    keys = mix.derive_keys(KEY, bytes(16), range(2), bytes(32), 32400)
    secret = mix.transmitter_inputs(keys, 32400)
    mixed = opened["transmitter-mix", True](pixels, *snr_db, *secret)
    mixed_expected = opened["transmitter-mix", False](floats_of(pixels), *snr_db, *secret)
    if engine == "onnxruntime-cpu" and precision == "fp32":
        assert symbols.tobytes() == expected.tobytes()
        assert mixed.tobytes() == mixed_expected.tobytes()
    for found, wanted in ((symbols, expected), (mix.normalize(mixed)[0], mix.normalize(mixed_expected)[0])):
        assert np.abs(found - wanted).max() < ROUNDING[precision]
        assert np.abs(found - wanted).mean() < MEAN_ROUNDING[precision]
    on_air, scales = channel.to_unit_power(expected)
    told = [np.stack([scales, [0.5, 0.02], [3, 17]], axis=1).astype(np.float32)] if bundle.has_scale else []
    pictures, whole = separated(opened["receiver", True](on_air, index, *told))
    assert pictures.shape == pixels.shape
    assert pictures.dtype == np.uint8
    assert whole.tolist() == [True, True]
    assert np.abs(pictures - bytes_of(opened["receiver", False](on_air, index, *told))).max() <= 1


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("engine", ENGINES)
def test_symbols_of_another_key_are_told_in_the_last_row(precision, engine):
    bundle, pixels = open_bundle("photos-10db"), pixels_of(2, 180, 180)
    keys = mix.derive_keys(KEY, bytes(16), range(2), bytes(32), 32400)
    sent = open_engine(engine, bundle.graph("transmitter-mix", precision))(
        floats_of(pixels), *mix.transmitter_inputs(keys, 32400)
    )
    received, _ = mix.normalize(sent)
    received[1] = np.random.default_rng(0).normal(size=received[1].shape)
    secret = mix.receiver_inputs(keys, 32400)
    images = open_engine(engine, bundle.program("receiver-mix", precision, engine))(received, *secret)
    given = open_engine(engine, bundle.program("receiver-mix", precision, engine, pixels=True))(received, *secret)
    pictures, whole = separated(given)
    assert np.isnan(images).all(axis=(1, 2, 3)).tolist() == [False, True]
    assert whole.tolist() == [True, False]
    assert np.abs(pictures[0] - bytes_of(images)[0]).max() <= 1


def one_node(taken, given, operator="Identity", name="y", shape=("batch", 3, 4, 5), **more):
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, list(shape)) for end in (taken, given)]
    graph = helper.make_graph([helper.make_node(operator, [taken], [given], name)], "g", ends[:1], ends[1:], **more)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_value_of_a_picture_becomes_the_byte_that_numpy_rounds_it_to(engine):
    values = np.concatenate([np.arange(0, 256, 0.5, np.float32) / np.float32(255), np.float32([-0.1, 1.1, -5, 300])])
    images = np.resize(values, (9, 3, 4, 5)).astype(np.float32)
    graph = one_node("symbols", "image")
    pictures, whole = separated(open_engine(engine, with_pixels(graph))(images))
    assert whole.all()
    assert pictures.tolist() == np.clip(bytes_of(images), 0, 255).tolist()
    for bad in (np.nan, np.inf):
        for place in ((2, 0, 0, 0), (2, 1, 3, 4), (2, 2, 2, 2)):
            spoiled = np.full((4, 3, 4, 5), 0.5, np.float32)
            spoiled[place] = bad
            pictures, whole = separated(open_engine(engine, with_pixels(graph))(spoiled))
            assert whole.tolist() == [True, True, False, True]
            assert (pictures[whole] == 128).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_byte_becomes_what_numpy_divides_it_to(engine):
    pixels = np.resize(np.arange(256, dtype=np.uint8), (5, 4, 5, 3))
    found = open_engine(engine, with_pixels(one_node("image", "symbols")))(pixels)
    # OpenVINO multiplies by the reciprocal
    np.testing.assert_array_max_ulp(found, floats_of(pixels), maxulp=0 if engine == "onnxruntime-cpu" else 1)


def test_a_tensor_that_is_called_pixels_already_stays_what_it_is():
    nodes = [helper.make_node("Neg", ["image"], ["pixels"]), helper.make_node("Neg", ["pixels"], ["pixels/255"])]
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["batch", 3, 4, 5]) for end in ("image", "pixels/255")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    pixels = pixels_of(2, 4, 5)
    data = with_pixels(model.SerializeToString())
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    assert open_engine("onnxruntime-cpu", data)(pixels).tobytes() == floats_of(pixels).tobytes()


def test_a_graph_in_two_parts_is_one_as_protobuf_says():
    nodes = onnx.ModelProto.FromString(one_node("image", "symbols"))
    ends = onnx.ModelProto.FromString(nodes.SerializeToString())
    nodes.graph.ClearField("input")
    for field in ("node", "output"):
        ends.graph.ClearField(field)
    pixels = pixels_of(2, 4, 5)
    data = with_pixels(nodes.SerializeToString() + ends.SerializeToString())
    assert open_engine("onnxruntime-cpu", data)(pixels).tobytes() == floats_of(pixels).tobytes()


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (one_node("x", "y"), "no image at either end"),
        (one_node("image", "y", shape=("batch", 1, 4, 5)), "not declared as"),
        (one_node("image", "y", shape=("batch", 3, "height", 5)), "height and width that are known"),
        (one_node("x", "image", shape=("batch", 3, 4)), "not declared as"),
        (one_node("image", "y")[:-3], "damaged"),
    ],
)
def test_what_has_no_picture_of_a_known_size_is_refused(graph, message):
    with pytest.raises(GraphError, match=message):
        with_pixels(graph)


def test_a_plan_for_bytes_is_a_file_of_the_bundle_and_a_graph_is_not(small_bundle, tmp_path):
    small = open_bundle(small_bundle)
    graphs = {name: small.read(name) for name in small.manifest["files"]}
    plans = {
        "engines/receiver-mix-pixels.fp32.tensorrt.engine": b"a plan",
        "engines/receiver-mix.fp32.tensorrt.engine": b"other",
    }
    bundle = write_bundle(tmp_path / "made", graphs | plans, small.manifest, owner_key())
    assert bundle.program("receiver-mix", "fp32", "tensorrt", pixels=True) == b"a plan"
    assert bundle.program("receiver-mix", "fp32", "tensorrt") == b"other"
    with pytest.raises(BundleError, match=r"(?s)holds no tensorrt engine for receiver-pixels fp32.*--engine tensorrt"):
        bundle.program("receiver", "fp32", "tensorrt", pixels=True)
    for engine in ENGINES:
        assert bundle.program("receiver", "fp32", engine, pixels=True) == with_pixels(graphs["receiver.fp32.onnx"])
    with pytest.raises(BundleError, match="is not SIDE"):
        write_bundle(tmp_path / "other", graphs | {"receiver-pixels.fp32.onnx": b""}, small.manifest, owner_key())


@pytest.mark.filterwarnings("ignore::semseal.runtime.link.BrokenDefenseWarning")
@pytest.mark.parametrize("defense", MODES)
@pytest.mark.parametrize("batch", [1, 3, 65])
def test_bob_gets_bytes_that_are_the_rounded_pictures(small_bundle, defense, batch):
    pixels = pixels_of(batch, 32, 24)
    alice = Transmitter(small_bundle, KEY, defense)
    frames = alice.send(pixels)
    assert len(frames) == batch + (batch % 2 if "substitute" in defense else 0)
    images = Receiver(small_bundle, KEY).receive(frames)
    pictures = Receiver(small_bundle, KEY).receive(frames[::-1], dtype="uint8")
    assert pictures.dtype == np.uint8
    assert pictures.flags.c_contiguous
    assert pictures.shape == pixels.shape
    assert np.abs(pictures - bytes_of(images)).max() <= 1
    if defense == "none":
        plain = Transmitter(small_bundle, KEY, defense).send(floats_of(pixels))
        assert [frame.symbols.tobytes() for frame in frames] == [frame.symbols.tobytes() for frame in plain]


@pytest.mark.parametrize("engine", ENGINES)
def test_views_as_cameras_and_crops_give_them_are_sent_like_copies(small_bundle, engine):
    wide = pixels_of(3, 40, 24)
    alice = Transmitter(small_bundle, engine=engine)
    for view in (wide[:, 4:36, :, ::-1], wide[::-1, :32], np.asfortranarray(wide[:1, 8:])):
        sent, copied = alice.send(view), alice.send(view.copy())
        assert [frame.symbols.tobytes() for frame in sent] == [frame.symbols.tobytes() for frame in copied]


def test_frames_of_all_modes_come_back_as_bytes_in_order(small_bundle):
    pixels = pixels_of(5, 32, 24)
    frames = [*Transmitter(small_bundle, KEY, "mix").send(pixels[:2]), *Transmitter(small_bundle, KEY).send(pixels[2:])]
    images, pictures = (Receiver(small_bundle, KEY).receive(frames, dtype) for dtype in (np.float32, np.uint8))
    assert np.abs(pictures - bytes_of(images)).max() <= 1
    empty = Receiver(small_bundle, KEY).receive([], "uint8")
    assert (empty.shape, empty.dtype) == ((0, 32, 24, 3), np.uint8)
    for dtype in ("float64", np.int8, "picture", None):
        with pytest.raises(ValueError, match="dtype must be float32 or uint8"):
            Receiver(small_bundle).receive([], dtype)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_symbols_under_another_header_are_refused_in_both_forms(dtype):
    one, two = Transmitter("photos-10db", KEY, "mix").send(pixels_of(2, 180, 180))
    bob = Receiver("photos-10db", KEY)
    with pytest.raises(HeaderError, match=r"frame 0: its symbols were mixed under another key or counter"):
        bob.receive([Frame(two.symbols, one.header)], dtype)
    with pytest.raises(HeaderError, match=r"frame 1: its symbols were mixed") as caught:
        bob.receive([one, Frame(one.symbols, two.header)], dtype)
    image, nothing = caught.value.receptions
    assert image.image.dtype == dtype
    assert image.error is nothing.image is None
    assert len(bob.receive([two], dtype)) == 1  # what was refused is not used up


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_no_byte_stands_for_what_is_no_number(dtype, tmp_path):
    # a receiver whose weights overflow at a symbol that is far louder than the others
    files = {file.name: file.read_bytes() for file in (Path(__file__).parent / "cases" / "black-picture").glob("*.fp32.onnx")}
    model = onnx.load_model_from_string(files["receiver.fp32.onnx"])
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(weights)
    weights.CopyFrom(onnx.numpy_helper.from_array((values * (2e37 / np.abs(values).max())).astype(np.float32), weights.name))
    clip = model.graph.node[-1]
    clip.CopyFrom(helper.make_node("Identity", clip.input[:1], clip.output))  # a Clip may make a number of what is none
    files["receiver.fp32.onnx"] = model.SerializeToString()
    manifest = {"model": {"height": 32, "width": 32, "h": 8, "w": 8, "c": 8}, "snr_db": [10, 10], "precisions": ["fp32"]}
    write_bundle(tmp_path / "b", files, manifest, owner_key())
    frames = Transmitter(tmp_path / "b").send(pixels_of(3, 32, 32))
    loud = Frame(np.zeros_like(frames[1].symbols), frames[1].header)
    loud.symbols[100] = 300 + 300j  # a mean power of 703
    bob = Receiver(tmp_path / "b")
    expected = bob.receive([frames[0], frames[2]], dtype)
    with pytest.raises(HeaderError, match=r"frame 1: its symbols are too large: its picture is not finite") as caught:
        bob.receive([frames[0], loud, frames[2]], dtype)
    first, nothing, last = caught.value.receptions
    assert nothing.image is None
    assert np.array_equal([first.image, last.image], expected)
