"""Files as other tools write them: what is packed all the same, and what is refused with the way out."""

import os
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from foreign import GOOD, SMALL, UNIT, by_hand, flat_pair
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data
from semseal.export.pack import pack, pack_graphs
from semseal.export.pack.bounded import pack_bounded
from semseal.export.pack.layout import row_layout
from semseal.export.pack.whole import in_order, read_file
from semseal.export.quantize import to_int8
from semseal.export.rewrite import rewrite
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import GraphError
from semseal.runtime.link import Receiver, Transmitter
from semseal.runtime.onnxfile import check_onnx
from semseal.runtime.onnxwrite import tensor
from semseal.runtime.pictures import open_pictures
from semseal.runtime.signing import owner_key
from torch import nn

CASES = Path(__file__).parent / "cases"
KEY = bytes(range(32))


def files_of(case):
    return (CASES / case / "t.onnx").read_bytes(), (CASES / case / "r.onnx").read_bytes()


def alone(data, inputs):
    """What ONNX Runtime gives for a file as it is, one after the other."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: one[None]})[0] for one in inputs])


def packed_as_the_files(files, packed):
    """Asserts that the packed graphs give what the files give for photographs."""
    images = open_pictures("photos", "test").take(3, packed.height, packed.width, seed=5)
    identity = np.arange(3 * packed.layout.h, dtype=np.int32).reshape(3, -1)
    features = alone(files[0], images)
    power = 2 * np.square(features.astype(np.float64)).mean((1, 2, 3), keepdims=True)
    sent = (features / np.sqrt(power)).astype(np.float32)
    symbols = open_engine("onnxruntime-cpu", packed.transmitter)(images, identity)
    np.testing.assert_allclose(packed.layout.from_rows(symbols.reshape(3, packed.layout.h, -1)), sent, atol=2e-5)
    pictures = open_engine("onnxruntime-cpu", packed.receiver)(symbols, identity)
    expected = alone(files[1], sent * np.float32(packed.gain)).clip(0, 1)
    np.testing.assert_allclose(pictures, expected, atol=2e-4)


@pytest.mark.parametrize("case", ["scalar-index", "batch-minus-one", "unsorted-nodes", "colour-order", "black-picture"])
def test_packed_as_onnxruntime_runs_it(case):
    files = files_of(case)
    packed_as_the_files(files, pack_graphs(*files))


# ---- tensors without axes ----


def test_a_tensor_without_axes_stays_one():
    def without_axes(graph):
        return {t.name for t in onnx.load_model_from_string(graph).graph.initializer if not t.dims}

    packed = pack_graphs(*files_of("scalar-index"))
    indices = [
        node.input[1] for node in onnx.load_model_from_string(packed.transmitter).graph.node
        if node.op_type == "Gather" and node.input[1] != "index"
    ]  # fmt: skip
    assert indices
    assert {*indices, "least_power", "reals"} <= without_axes(packed.transmitter)
    assert {"black", "white"} <= without_axes(packed.receiver)
    assert without_axes(rewrite(packed.transmitter)) == without_axes(packed.transmitter)
    assert not numpy_helper.to_array(onnx.TensorProto.FromString(tensor("one", np.float32(1)))).shape
    image = {"image": np.full((1, 3, 32, 32), 0.5, np.float32), "index": np.arange(packed.layout.h, dtype=np.int32)[None]}
    symbols = {"symbols": np.ones((1, packed.layout.n_symbols, 2), np.float32), "index": image["index"]}
    quantized = onnx.load_model_from_string(to_int8(packed.receiver, [symbols])).graph
    scales = {node.input[1] for node in quantized.node if node.op_type == "QuantizeLinear"}
    assert scales
    assert all(not t.dims for t in quantized.initializer if t.name in scales)


# ---- sizes of the ends ----


def with_size(data, end, axis, size):
    model = onnx.load_model_from_string(data)
    getattr(model.graph, end)[0].type.tensor_type.shape.dim[axis].dim_value = size
    return model.SerializeToString()


@pytest.mark.parametrize("size", [-1, 0])
@pytest.mark.parametrize("end", ["input", "output"])
def test_a_batch_of_minus_1_or_0_is_any_batch(size, end):
    files = tuple(with_size(data, end, 0, size) for data in GOOD)
    packed = pack_graphs(*files)
    assert packed.transmitter == pack_graphs(*GOOD).transmitter
    assert not any("fixed" in note for note in packed.notes)


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("size", [-1, 0])
def test_other_sizes_of_minus_1_or_0_are_not_known(axis, size):
    transmitter, receiver = GOOD
    assert pack_graphs(with_size(transmitter, "output", axis, size), with_size(receiver, "input", axis, size))
    if axis > 1:
        with pytest.raises(GraphError, match=r"^transmitter: its input 'x' \[.*\?.*\] has no fixed height and width"):
            pack_graphs(with_size(transmitter, "input", axis, size), receiver)


def test_ends_whose_number_of_axes_is_not_declared():
    transmitter, receiver = map(onnx.load_model_from_string, GOOD)
    for value in (*transmitter.graph.output, *receiver.graph.input, *receiver.graph.output):
        value.type.tensor_type.ClearField("shape")
    assert pack_graphs(transmitter.SerializeToString(), receiver.SerializeToString()).transmitter
    transmitter.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(GraphError, match="'x' of unknown shape is no image"):
        pack_graphs(transmitter.SerializeToString(), GOOD[1])


@pytest.mark.parametrize(("height", "width"), [(2**40, 12), (2048, 2049), (2**20 + 1, 1)])
def test_a_picture_that_is_too_large_is_refused_before_anything_is_allocated(height, width):
    with pytest.raises(GraphError, match=rf"'x' \[\?, 3, {height}, {width}\] is too large a picture: 4194304 pixels"):
        pack_graphs(by_hand(f"float[n,3,{height},{width}] x", f"float[n,3,{height},{width}] y", "y = Identity(x)"), GOOD[1])


def test_features_of_no_size_or_too_many():
    nothing = "i = Constant<value = int64[0] {}>() y = Gather<axis = 1>(x, i)"
    with pytest.raises(GraphError, match=r"^transmitter: its features \[0, 16, 12\] are 0 floats"):
        pack_graphs(by_hand(f"{SMALL} x", "float[n,k,16,12] y", nothing), GOOD[1])
    for shape, reason in (((3, 2048, 2048), "a link carries"), ((2 * 1_048_583,), "no fewer than 1048583 rows")):
        with pytest.raises(GraphError, match=reason):
            row_layout(shape)


# ---- the order of nodes ----


def shuffled(nodes, seed=0):
    order = np.random.default_rng(seed).permutation(len(nodes))
    kept = [nodes[i] for i in order]
    del nodes[:]
    nodes.extend(kept)


def test_nodes_in_any_order_are_packed():
    transmitter, receiver = map(onnx.load_model_from_string, flat_pair((3, 16, 12)))
    files = transmitter.SerializeToString(), receiver.SerializeToString()
    for seed in range(3):
        shuffled(transmitter.graph.node, seed)
        shuffled(receiver.graph.node, seed)
        packed = pack_graphs(transmitter.SerializeToString(), receiver.SerializeToString())
        packed_as_the_files(files, packed)
    assert in_order("transmitter", transmitter.SerializeToString()) != transmitter.SerializeToString()


def test_nodes_of_a_function_in_any_order():
    text = (
        '<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g (float[n,3,16,12] x) => (float[n,3,16,12] y) { y = own.f(x) } '
        '<domain: "own", opset_import: ["" : 17]> f (a) => (c) { c = Neg(b) b = Neg(a) }'
    )
    model = onnx.parser.parse_model(text)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    onnx.checker.check_model(in_order("transmitter", model.SerializeToString()))


@pytest.mark.parametrize("body", ["y = Add(x, y)", "a = Neg(b) b = Neg(a) y = Add(x, a)"])
def test_nodes_that_need_each_other_are_refused(body):
    with pytest.raises(GraphError, match=r"^transmitter: node '\w' \(\w+\) needs its own output: the graph goes in a circle"):
        pack_graphs(by_hand(f"{SMALL} x", f"{SMALL} y", body), GOOD[1])


# ---- a batch axis that was lost ----


class Squeezed(nn.Module):
    """For one picture [3, h, w] too, as public encoders have it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 4, 4)

    def forward(self, x):
        y = self.layer(x)
        return y.squeeze(0) if len(y) == 1 else y


def exported(module, example, path, dynamic):
    axes = {"x": {0: "n"}, "y": {0: "n"}} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), (example,), path, dynamo=False, opset_version=17, input_names=["x"], output_names=["y"],
            dynamic_axes=axes,
        )  # fmt: skip
    return path.read_bytes()


@pytest.mark.parametrize("dynamic", [False, True])
def test_features_that_lost_their_batch_axis(tmp_path, dynamic):
    torch.manual_seed(0)
    back = nn.Sequential(nn.ConvTranspose2d(8, 3, 4, 4), nn.Sigmoid())
    transmitter = exported(Squeezed(), torch.rand(1, 3, 32, 32), tmp_path / "t.onnx", dynamic)
    receiver = exported(back, Squeezed()(torch.rand(1, 3, 32, 32)), tmp_path / "r.onnx", dynamic)
    with pytest.raises(GraphError, match=r"^transmitter: .*batch axis.*\nhint: take squeeze.* a dummy batch of 2 or more"):
        pack_graphs(transmitter, receiver)
    # as the hint has it
    transmitter = exported(Squeezed(), torch.rand(2, 3, 32, 32), tmp_path / "t.onnx", dynamic=True)
    receiver = exported(back, torch.rand(2, 8, 8, 8), tmp_path / "r.onnx", dynamic=True)
    assert pack_graphs(transmitter, receiver).layout.shape == (8, 8, 8)


def test_a_receiver_without_a_batch_axis():
    taken = by_hand("float[3,16,12] y", f"{SMALL} x", "a = Constant<value_ints = [0]>() z = Unsqueeze(y, a) x = Sigmoid(z)")
    with pytest.raises(
        GraphError, match=r"receiver: its input 'y' \[3, 16, 12\] is that of one picture.*\nhint: .* of 2 or more"
    ):
        pack_graphs(GOOD[0], taken)
    given = by_hand(f"{SMALL} y", "float[3,16,12] x", "a = Constant<value_ints = [0]>() z = Squeeze(y, a) x = Sigmoid(z)")
    with pytest.raises(GraphError, match=r"receiver: it gives \[3, 16, 12\] for a single picture, without a batch axis"):
        pack_graphs(GOOD[0], given)


# ---- weights beside the graph ----


@pytest.fixture
def outside(tmp_path):
    """A transmitter whose weights are in a file beside it, as torch.onnx.export leaves them."""
    model = onnx.load_model_from_string(files_of("scalar-index")[0])
    convert_model_to_external_data(model, location="t.onnx.data", size_threshold=0, convert_attribute=True)
    onnx.save(model, tmp_path / "t.onnx")
    return tmp_path / "t.onnx"


def retold(path, **entries):
    """The same file with other entries for its first external tensor; None leaves one out."""
    model = onnx.load(path, load_external_data=False)
    weights = next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    told = {entry.key: entry.value for entry in weights.external_data} | entries
    del weights.external_data[:]
    for key, value in told.items():
        if value is not None:
            weights.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def test_weights_beside_the_graph_are_read_into_one_file(outside, tmp_path):
    with pytest.raises(GraphError, match="another file"):
        check_onnx(outside.read_bytes())
    plain, receiver = files_of("scalar-index")
    whole = read_file("transmitter", outside)
    check_onnx(whole)
    assert pack_graphs(whole, receiver).transmitter == pack_graphs(plain, receiver).transmitter
    (tmp_path / "r.onnx").write_bytes(receiver)
    made = pack(outside, tmp_path / "r.onnx", tmp_path / "bundle", 10.0, ("fp32",), signing_key=owner_key())
    assert sorted(file.name for file in made.path.iterdir() if file.is_file()) == [
        "manifest.json", "receiver.fp32.onnx", "signature", "transmitter.fp32.onnx",
    ]  # fmt: skip


def test_weights_in_a_folder_beside_the_graph_and_without_a_length(outside):
    folder = outside.parent / "weights"
    folder.mkdir()
    plain, receiver = files_of("scalar-index")
    model = onnx.load(outside)
    convert_model_to_external_data(model, location="./weights/all.bin", size_threshold=0)
    onnx.save(model, outside)
    retold(outside, length=None)
    assert pack_graphs(read_file("transmitter", outside), receiver).transmitter == pack_graphs(plain, receiver).transmitter


UNREADABLE = {
    "above": ({"location": "../t.onnx.data"}, "which is not a path inside its folder"),
    "within above": ({"location": "a/../../t.onnx.data"}, "which is not a path inside its folder"),
    "absolute": ({"location": "/etc/hostname"}, "which is not a path inside its folder"),
    "empty": ({"location": ""}, "which is not a path inside its folder"),
    "itself": ({"location": "."}, "which is not a path inside its folder"),
    "zero byte": ({"location": "a\0b"}, "which is not a path inside its folder"),
    "missing": ({"location": "gone.data"}, "in another file, and .*gone.data is missing"),
    "a folder": ({"location": "folder"}, "folder: not a regular file"),
    "a link": ({"location": "link"}, "link: a link or through one.*\nhint: .*cp -L"),
    "through a link": ({"location": "elsewhere/t.onnx.data"}, "a link or through one"),
    "a FIFO": ({"location": "fifo"}, "not a regular file"),
    "behind the end": ({"offset": "1000000000"}, "which ends before"),
    "negative": ({"offset": "-1"}, "offset '-1' in its file, which is no number of bytes"),
    "no number": ({"length": "0x10"}, "length '0x10' in its file"),
    "another length": ({"length": "3"}, "takes 1536 bytes, and 3 are kept for it"),
    "unknown": ({"basepath": "/"}, "tells of its file what is not known"),
    "no location": ({"location": None}, "tells of its file what is not known"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_weights_that_are_not_read(outside, case):
    entries, reason = UNREADABLE[case]
    folder = outside.parent
    (folder / "folder").mkdir()
    (folder / "link").symlink_to(folder / "t.onnx.data")
    (folder / "elsewhere").symlink_to(folder)
    os.mkfifo(folder / "fifo")
    retold(outside, **entries)
    with pytest.raises(GraphError, match=reason) as raised:
        read_file("transmitter", outside)
    assert raised.value.message.startswith("transmitter: ")
    assert raised.value.hint


def test_weights_of_too_many_bytes_are_not_read(outside):
    model = onnx.load(outside, load_external_data=False)
    weights = next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    for entry in [entry for entry in weights.external_data if entry.key == "length"]:
        weights.external_data.remove(entry)
    weights.dims[0] = 2**40
    outside.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match="its weights are larger than 1024 MiB"):
        read_file("transmitter", outside)
    weights.dims[0] = -1
    outside.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match="has no place in a file"):
        read_file("transmitter", outside)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(GraphError, match="fifo is not a regular file"):
        read_file("receiver", tmp_path / "fifo")
    with pytest.raises(FileNotFoundError) as raised:
        read_file("receiver", tmp_path / "gone.onnx")
    assert raised.value.filename == str(tmp_path / "gone.onnx")


# ---- pictures that a network divides by nothing for ----


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    folder = tmp_path_factory.mktemp("black")
    paths = [CASES / "black-picture" / name for name in ("t.onnx", "r.onnx")]
    return pack(*paths, folder / "bundle", 10.0, ("fp32", "fp16"), signing_key=owner_key())


@pytest.mark.parametrize("defense", ["none", "permute+substitute", "mix"])
@pytest.mark.parametrize("engine", ["onnxruntime-cpu", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_black_picture_costs_no_other(divided, engine, precision, defense):
    images = open_pictures("photos", "test").take(3, 32, 32)
    good = images[[0, 2]]
    images[1] = 0
    frames = Transmitter(divided.path, KEY, defense, engine, precision).send(images)
    assert all(np.isfinite(frame.symbols).all() for frame in frames)
    given = Receiver(divided.path, KEY, engine, precision).receive(frames)
    assert np.isfinite(given).all()
    alone = Receiver(divided.path, KEY, engine, precision).receive(
        Transmitter(divided.path, KEY, "none", engine, precision).send(good)
    )
    # mix changes the power of so few symbols a little
    np.testing.assert_allclose(given[[0, 2]], alone, atol=0.05 if defense == "mix" else 5e-3)


def test_the_guard_is_there_where_it_is_needed():
    packed = pack_graphs(*files_of("black-picture"))
    assert any("not finite for pictures of one brightness" in note for note in packed.notes)
    plain = pack_graphs(*files_of("scalar-index"))
    assert not any("not finite" in note for note in plain.notes)

    def operators(graph):
        return {node.op_type for node in onnx.load_model_from_string(graph).graph.node}

    assert "IsNaN" in operators(packed.transmitter)
    assert "IsNaN" not in operators(packed.receiver) | operators(plain.transmitter) | operators(plain.receiver)
    # of grey pictures too: what is left of their mean is nothing
    flat = f"a = Constant<value_ints = [1, 2, 3]>() m = ReduceMean(x, a) d = Sub(x, m) flat = Flatten(d) {UNIT}"
    centred = f"{flat} s = Constant<value_ints = [-1, 3, 16, 12]>()"
    unit = by_hand(f"{SMALL} x", f"{SMALL} y", f"{centred} y = Reshape(unit, s)")
    packed = pack_graphs(unit, by_hand(f"{SMALL} y", f"{SMALL} x", "x = Sigmoid(y)"))
    grey = np.full((1, 3, 16, 12), 0.5, np.float32)
    assert not open_engine("onnxruntime-cpu", packed.transmitter)(grey, np.arange(packed.layout.h, dtype=np.int32)[None]).any()


def test_a_receiver_that_divides_by_its_power():
    own = f"flat = Flatten(y) {UNIT} s = Constant<value_ints = [-1, 3, 16, 12]>() k = Constant<value_float = 10.0>()"
    clipped = "b = Constant<value_float = 0.0>() w = Constant<value_float = 1.0>() l = Mul(z, k) x = Clip(l, b, w)"
    packed = pack_graphs(GOOD[0], by_hand(f"{SMALL} y", f"{SMALL} x", f"{own} z = Reshape(unit, s) {clipped}"))
    assert any("not finite for features of zeros" in note for note in packed.notes)
    silent = np.zeros((1, packed.layout.n_symbols, 2), np.float32)
    picture = open_engine("onnxruntime-cpu", packed.receiver)(silent, np.arange(packed.layout.h, dtype=np.int32)[None])
    assert not picture.any()


# ---- the packer's own process ----


def test_the_packer_in_a_process_of_its_own():
    packed, same = pack_bounded(*files_of("black-picture")), pack_graphs(*files_of("black-picture"))
    assert packed.transmitter == same.transmitter
    assert packed.notes == same.notes
    images = open_pictures("photos", "test").take(2, 32, 32)
    images[1] = 0
    np.testing.assert_array_equal(packed.reference.encode(images), same.reference.encode(images))
    with pytest.raises(GraphError, match=r"^receiver: the graph is damaged") as raised:
        pack_bounded(GOOD[0], b"no ONNX file")
    assert raised.value.hint


def test_a_graph_that_asks_for_all_memory():
    body = "s = Constant<value_ints = [65536, 32768]>() a = ConstantOfShape(s) m = ReduceMean(a) y = Add(x, m)"  # 8 GiB
    with pytest.raises(GraphError, match=r"^transmitter"):
        pack_bounded(by_hand(f"{SMALL} x", f"{SMALL} y", body, opset=17), GOOD[1])


def test_a_file_that_ends_the_process_that_reads_it():
    nodes = [helper.make_node("LayerNormalization", ["x", "w", ""], ["y"], stash_type=0)]  # ONNX Runtime 1.32 breaks down on it
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 16, 12]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(np.ones((3, 1, 1), np.float32), "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    with pytest.raises(GraphError) as raised:
        pack_bounded(model.SerializeToString(), GOOD[1])
    assert raised.value.message.startswith("transmitter")
    assert raised.value.hint
