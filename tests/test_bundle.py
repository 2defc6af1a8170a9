import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from onnx import TensorProto, helper
from semseal.runtime import bundle as module
from semseal.runtime.bundle import MAX_FILE_BYTES, MAX_MANIFEST_BYTES, open_bundle, write_bundle
from semseal.runtime.errors import BundleError, EngineError
from semseal.runtime.link import Receiver, Transmitter
from semseal.runtime.signing import owner_key, public_text
from tiny_bundles import ABOUT, FILES, MODEL, OTHER, OWNER, PIN, PLAN, tiny


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A signed bundle of every kind of file; its owner is pinned in the environment."""
    monkeypatch.setenv("SEMSEAL_OWNER", PIN)
    write_bundle(tmp_path / "made", FILES, ABOUT, OWNER)
    return tmp_path / "made"


@pytest.fixture
def copy(small_bundle, tmp_path):
    """A bundle that works, signed by the key of the tests' config folder."""
    return shutil.copytree(small_bundle, tmp_path / "bundle")


def sign_by_hand(folder, text):
    """What an owner could sign, be it sensible or not."""
    data = text.encode()
    (folder / "manifest.json").write_bytes(data)
    (folder / "signature").write_bytes(OWNER.sign(b"semseal/v1/bundle\0" + data))


def change(folder, **changes):
    sign_by_hand(folder, json.dumps({**json.loads((folder / "manifest.json").read_text()), **changes}))


def read_all(folder, owner=None):
    bundle = open_bundle(folder, owner)
    return {name: bundle.read(name) for name in bundle.manifest["files"]}


def test_what_was_written_is_read(made):
    assert read_all(made) == FILES
    assert sorted(str(file.relative_to(made)) for file in made.rglob("*") if file.is_file()) == sorted(
        [*FILES, "manifest.json", "signature"]
    )
    bundle = open_bundle(made)
    assert bundle.manifest["format"] == 5
    digests = [hashlib.sha256(FILES[f"{side}.fp32.onnx"]).digest() for side in ("transmitter", "receiver")]
    assert bundle.digest == hashlib.sha256(b"".join(digests)).digest()


def test_the_owner_is_the_argument_or_the_environment_or_the_file(made, tmp_path, monkeypatch):
    (tmp_path / "owner.pub").write_text(PIN)
    (tmp_path / "owner.pub").chmod(0o644)
    monkeypatch.setenv("SEMSEAL_OWNER", public_text(OTHER))
    assert open_bundle(made, PIN) == open_bundle(made, tmp_path / "owner.pub")
    monkeypatch.delenv("SEMSEAL_OWNER")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    with pytest.raises(BundleError, match=r"(?s)cannot be verified: no owner is pinned.*export SEMSEAL_OWNER=.*owner="):
        open_bundle(made)
    (tmp_path / "xdg").mkdir()
    (tmp_path / "owner.pub").rename(tmp_path / "owner.pub.moved")
    (tmp_path / "xdg" / "semseal").mkdir()
    (tmp_path / "owner.pub.moved").rename(tmp_path / "xdg" / "semseal" / "owner.pub")
    assert open_bundle(made).snr_db == 10


def test_the_key_of_the_first_export_opens_on_the_same_machine(small_bundle):
    assert open_bundle(small_bundle).manifest == open_bundle(small_bundle, public_text(owner_key())).manifest
    with pytest.raises(BundleError, match="another owner made it"):
        open_bundle(small_bundle, PIN)


def test_another_owner_is_refused_and_both_are_told_apart(made):
    with pytest.raises(BundleError, match=f"is refused: the signature is not that of {public_text(OTHER)}"):
        open_bundle(made, public_text(OTHER))
    write_bundle(made, FILES, ABOUT, OTHER, force=True)
    with pytest.raises(BundleError, match=r"(?s)is refused: .*export SEMSEAL_OWNER="):
        open_bundle(made)


def test_a_bundle_without_signature_is_refused(made):
    (made / "signature").unlink()
    with pytest.raises(BundleError, match=r"(?s)is not signed: signature: No such file.*semseal export or semseal pack"):
        open_bundle(made)


@pytest.mark.parametrize("name", ["manifest.json", "signature"])
def test_a_flipped_bit_in_any_byte_of_manifest_and_signature_is_refused(made, name):
    good = (made / name).read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        (made / name).write_bytes(bad)
        with pytest.raises(BundleError, match="is refused"):
            open_bundle(made)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_any_byte_of_a_file_is_refused(made, name):
    bundle = open_bundle(made)
    good = (made / name).read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        (made / name).write_bytes(bad)
        with pytest.raises(BundleError, match="does not match its digest"):
            bundle.read(name)
    for bad in (b"", good[:-1], good + b"\0"):
        (made / name).write_bytes(bad)
        with pytest.raises(BundleError, match="does not match its digest"):
            bundle.read(name)
    (made / name).write_bytes(good)
    assert bundle.read(name) == good


@pytest.mark.parametrize("size", [0, 63, 65, 10_000])
def test_a_signature_of_another_size_is_refused(made, size):
    (made / "signature").write_bytes(((made / "signature").read_bytes() + bytes(size))[:size])
    with pytest.raises(BundleError, match="is refused"):
        open_bundle(made)


def test_parts_of_two_bundles_of_one_owner_do_not_mix(made, tmp_path):
    other = {**FILES, "transmitter.int8.onnx": tiny("other"), PLAN: b"a pla2"}
    write_bundle(tmp_path / "second", other, {**ABOUT, "snr_db": [3.0, 3.0]}, OWNER)
    shutil.copy(tmp_path / "second" / "transmitter.int8.onnx", made)
    shutil.copy(tmp_path / "second" / PLAN, made / PLAN)
    for name in ("transmitter.int8.onnx", PLAN):
        with pytest.raises(BundleError, match="does not match its digest"):
            open_bundle(made).read(name)
    shutil.copy(tmp_path / "second" / "signature", made)
    with pytest.raises(BundleError, match="is refused"):
        open_bundle(made)
    shutil.copy(tmp_path / "second" / "manifest.json", made)
    assert read_all(made) == other  # with every part of it, it is the second one


def test_nothing_is_parsed_before_it_is_verified(made):
    (made / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(BundleError, match="is refused"):
        open_bundle(made)


def test_damaged_manifests_are_refused_whoever_signed_them(made):
    good = json.loads((made / "manifest.json").read_text())
    sizes = [{"h": 0}, {"h": 10**12}, {"height": float("inf")}, {"width": "wide"}, {"digest": "00" * 32}, {"digest": "xyz"}]
    bad = [{"model": {**MODEL, **size}} for size in sizes]
    bad += [
        {"format": 1},
        {"format": 3},
        {"format": 4},
        {"format": 6},
        {"model": {}},
        {"files": []},
        {"files": {}},
        {"precisions": [1]},
    ]
    snrs = (10.0, None, [], [10.0], [0.0, 10.0, 20.0], [20.0, 0.0], [0.0, float("inf")], [float("nan")] * 2, ["low", "high"])
    bad += [{"snr_db": snr} for snr in snrs]
    bad += [{"model": {**good["model"], "scale": scale}} for scale in ("frame", None, True)]
    bad += [{"files": {name: {"size": 1} for name in good["files"]}}]
    first = good["files"]["transmitter.int8.onnx"]
    for entry in (
        {"size": -1},
        {"size": MAX_FILE_BYTES + 1},
        {"size": True},
        {"size": 1.0},
        {"sha256": "00"},
        {"sha256": None},
    ):
        bad.append({"files": {**good["files"], "transmitter.int8.onnx": {**first, **entry}}})
    texts = ["{", "[]", "{}", "[" * 100_000, "\u00e9", *(json.dumps({**good, **change}) for change in bad)]
    texts.append(json.dumps({key: value for key, value in good.items() if key != "snr_db"}))
    for text in texts:
        sign_by_hand(made, text)
        with pytest.raises(BundleError, match=r"manifest.json is (damaged|not of bundle format)"):
            open_bundle(made)
    sign_by_hand(made, json.dumps(good) + " " * MAX_MANIFEST_BYTES)
    with pytest.raises(BundleError, match="larger than"):
        open_bundle(made)
    sign_by_hand(made, json.dumps(good))
    assert read_all(made) == FILES


NAMES = [
    *("../x", "/etc/passwd", "engines/../../x", "engines/../transmitter.fp32.onnx", "./receiver.fp32.onnx", "", "."),
    *("engines/transmitter.fp32.rtx.engine/x", "engines/engines/transmitter.fp32.rtx.engine", "manifest.json", "signature"),
    *("transmitter.fp32.onnx\n", "transmitter.fp32.onnx\0", "transmitter.FP32.onnx", "transmitter..onnx", "transmitter.onnx"),
    *("eve.fp32.onnx", "transmitter.fp32.onnx.data", "transmitter.fp32.rtx.engine", "engines/transmitter.fp32..engine"),
    *("engines/transmitter.fp32.-x.engine", "engines/transmitter.fp32.a.b.engine", "engines/transmitter.fp32.rtx.engine.so"),
    *("engines/", "engines\\transmitter.fp32.rtx.engine", "transmitter.\u0664.onnx"),
]


@pytest.mark.parametrize("name", NAMES)
def test_other_names_are_refused_by_reader_and_writer(made, tmp_path, name):
    files = json.loads((made / "manifest.json").read_text())["files"]
    change(made, files={**files, name: {"size": 1, "sha256": "00" * 32}})
    with pytest.raises(BundleError, match=r"manifest.json is damaged: ValueError: .* is not SIDE"):
        open_bundle(made)
    with pytest.raises(BundleError):
        write_bundle(tmp_path / "new", {**FILES, name: b"x"}, ABOUT, OWNER)
    assert [file.name for file in tmp_path.iterdir()] == ["made"]


def test_files_that_the_manifest_does_not_list_are_not_looked_at(made):
    (made / "receiver.fp16.onnx").write_bytes(b"eve's")
    (made / "engines" / "receiver.fp32.tensorrt.engine").write_bytes(b"eve's")
    (made / "engines" / "link").symlink_to("/etc/passwd")
    os.mkfifo(made / "pipe")
    bundle = open_bundle(made)
    assert read_all(made) == FILES
    with pytest.raises(BundleError, match="no precision 'fp16'"):
        bundle.graph("receiver", "fp16")
    with pytest.raises(BundleError, match="holds no tensorrt engine"):
        bundle.program("receiver", "fp32", "tensorrt")
    for name in ("receiver.fp16.onnx", "../made/manifest.json", "/etc/passwd"):
        with pytest.raises(BundleError, match="has no file"):
            bundle.read(name)


@pytest.mark.parametrize("name", ["manifest.json", "signature", *FILES])
def test_a_link_in_place_of_a_file_is_not_followed(made, tmp_path, name):
    (made / name).rename(tmp_path / "elsewhere")
    (made / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="links are not followed"):
        read_all(made)


def test_a_link_in_place_of_the_engines_folder_is_not_followed(made, tmp_path):
    (made / "engines").rename(tmp_path / "elsewhere")
    (made / "engines").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="Not a directory"):
        read_all(made)


def test_the_bundle_itself_may_be_reached_through_a_link(made, tmp_path):
    (tmp_path / "current").symlink_to(made)
    assert read_all(tmp_path / "current") == FILES


@pytest.mark.parametrize("name", ["manifest.json", "signature", *FILES])
@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_what_is_no_regular_file_is_refused_at_once(made, name, kind):
    (made / name).unlink()
    (os.mkfifo if kind == "fifo" else os.mkdir)(made / name)
    with pytest.raises(BundleError, match="not a regular file"):
        read_all(made)


def test_no_handle_stays_open(made):
    (made / PLAN).unlink()
    (made / PLAN).mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(BundleError, match="not a regular file"):
            read_all(made)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_exchanged_after_opening_is_refused(made):
    bundle = open_bundle(made)
    files = {**FILES, "receiver.fp32.onnx": tiny("r2")}
    write_bundle(made, files, ABOUT, OWNER, force=True)
    with pytest.raises(BundleError, match="does not match its digest"):
        bundle.graph("receiver")  # the manifest that was verified counts, not the one that lies there now
    assert read_all(made) == files


def test_the_program_of_an_engine(made):
    bundle = open_bundle(made)
    assert bundle.program("transmitter", "fp32", "tensorrt-rtx") == b"a plan"
    for engine in ("onnxruntime-cpu", "onnxruntime-tensorrt", "openvino-cpu"):
        assert bundle.program("receiver", "int8", engine) == FILES["receiver.int8.onnx"] == bundle.graph("receiver", "int8")
    with pytest.raises(BundleError, match=rf"(?s)it has {PLAN}\nhint: semseal build .*made --out OTHER --engine tensorrt$"):
        bundle.program("transmitter", "fp32", "tensorrt")
    for side, precision in (("receiver", "fp32"), ("transmitter", "int8"), ("../made/engines/transmitter", "fp32")):
        with pytest.raises(BundleError, match="holds no tensorrt-rtx engine"):
            bundle.program(side, precision, "tensorrt-rtx")


EXTERNAL = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
SPARSE = helper.make_sparse_tensor(
    helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0]), helper.make_tensor("i", TensorProto.INT64, [1], [0]), [4]
)


REFUSED = {
    "external data": tiny("x", initializer=[EXTERNAL]),
    "sparse tensor": tiny("x", sparse_initializer=[SPARSE]),
    "damaged": tiny("x")[:-1],
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_graph_that_reaches_out_is_neither_written_nor_read(made, reason):
    data = REFUSED[reason]
    with pytest.raises(BundleError, match=f"receiver.int8.onnx: .*{reason}"):
        write_bundle(made, {**FILES, "receiver.int8.onnx": data}, ABOUT, OWNER, force=True)
    assert read_all(made) == FILES
    (made / "receiver.int8.onnx").write_bytes(data)
    files = json.loads((made / "manifest.json").read_text())["files"]
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(made, files={**files, "receiver.int8.onnx": entry})
    with pytest.raises(BundleError, match=f"receiver.int8.onnx: .*{reason}"):
        open_bundle(made).graph("receiver", "int8")


@pytest.mark.parametrize(("side", "use"), [("transmitter", Transmitter), ("receiver", Receiver)])
def test_a_link_refuses_a_changed_graph_and_a_stranger_s_bundle(copy, side, use, monkeypatch):
    graph = copy / f"{side}.fp32.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=f"{side}.fp32.onnx does not match its digest"):
        use(copy)
    graph.unlink()
    with pytest.raises(BundleError, match="No such file"):
        use(copy)
    monkeypatch.setenv("SEMSEAL_OWNER", PIN)
    with pytest.raises(BundleError, match="another owner made it"):
        use(copy)


def test_a_graph_swapped_together_with_its_entry_is_another_model(made):
    files = json.loads((made / "manifest.json").read_text())["files"]
    (made / "transmitter.fp32.onnx").write_bytes(FILES["receiver.fp32.onnx"])
    change(made, files={**files, "transmitter.fp32.onnx": files["receiver.fp32.onnx"]})
    with pytest.raises(BundleError, match="digest is not that of its graphs"):
        open_bundle(made)


def test_a_graph_that_no_link_could_use_is_an_engine_error(tmp_path):
    x, y = (helper.make_tensor_value_info(value, TensorProto.FLOAT, [1]) for value in "xy")
    nothing = helper.make_model(helper.make_graph([helper.make_node("NoSuchThing", ["x"], ["y"])], "g", [x], [y]))
    files = dict.fromkeys(("transmitter.fp32.onnx", "receiver.fp32.onnx"), nothing.SerializeToString())
    write_bundle(tmp_path / "b", files, ABOUT, owner_key())
    with pytest.raises(EngineError, match="cannot load the graph"):
        Transmitter(tmp_path / "b")


@pytest.mark.parametrize("broken", ["write_atomically", "move the old away", "move the new in"])
def test_an_interrupted_write_keeps_the_older_bundle_and_can_be_tried_again(made, monkeypatch, broken):
    replace = os.replace

    def interrupt(source, target):
        if broken == "write_atomically" or (broken == "move the new in") == (source.name == "new"):
            raise KeyboardInterrupt
        replace(source, target)

    if broken == "write_atomically":
        monkeypatch.setattr(module, "write_atomically", interrupt)
    else:
        monkeypatch.setattr(module.os, "replace", lambda *a: interrupt(*a) if a[0].name in ("new", "made") else replace(*a))
    with pytest.raises(KeyboardInterrupt):
        write_bundle(made, FILES, {**ABOUT, "snr_db": [3.0, 3.0]}, OWNER, force=True)
    monkeypatch.undo()
    assert read_all(made, PIN) == FILES
    assert open_bundle(made, PIN).snr_db == 10
    assert [path.name for path in made.parent.iterdir()] == ["made"]
    assert write_bundle(made, FILES, {**ABOUT, "snr_db": [3.0, 3.0]}, OWNER, force=True).snr_db == 3.0
    assert open_bundle(made, PIN).snr_db == 3.0


def test_a_manifest_that_could_not_be_read_is_not_written(made, monkeypatch):
    for about in (
        {**ABOUT, "snr_db": [float("nan")] * 2},
        {**ABOUT, "precisions": []},
        {**ABOUT, "notes": "x" * MAX_MANIFEST_BYTES},
    ):
        with pytest.raises(BundleError, match=r"damaged|more than"):
            write_bundle(made, FILES, about, OWNER, force=True)
    with pytest.raises(BundleError, match=r"needs receiver\.fp32\.onnx"):
        write_bundle(made, {"transmitter.fp32.onnx": tiny("t")}, ABOUT, OWNER, force=True)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 1000)
    with pytest.raises(BundleError, match="up to 1000"):
        write_bundle(made, {**FILES, PLAN: bytes(1001)}, ABOUT, OWNER, force=True)
    assert read_all(made) == FILES


def test_a_manifest_read_from_an_older_bundle_is_written_in_this_format(made):
    assert write_bundle(made, FILES, {**ABOUT, "format": 1, "files": {}}, OWNER, force=True) == open_bundle(made)


def test_what_is_no_bundle_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path, words in (
        (tmp_path, "is not a bundle"),
        (tmp_path / "file", "is not a bundle"),
        (tmp_path / "none", "there is no bundle"),
    ):
        with pytest.raises(BundleError, match=rf"(?s){words}.*semseal export"):
            open_bundle(path)


@pytest.mark.parametrize("with_manifest", [False, True])
def test_a_folder_with_other_files_is_not_written_to(tmp_path, with_manifest):
    if with_manifest:
        write_bundle(tmp_path / "b", FILES, ABOUT, OWNER)
    (tmp_path / "b").mkdir(exist_ok=True)
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(BundleError, match="neither empty nor a bundle"):
        write_bundle(tmp_path / "b", FILES, ABOUT, OWNER, force=True)
    assert (tmp_path / "b" / "thesis.txt").read_text() == "mine"


def test_a_bundle_is_replaced_only_when_asked_for_and_then_whole(made, tmp_path):
    before = {file: file.read_bytes() for file in made.rglob("*") if file.is_file()}
    few = {name: FILES[name] for name in ("transmitter.fp32.onnx", "receiver.fp32.onnx")}
    with pytest.raises(BundleError, match=r"holds a bundle already\nhint: .*--force"):
        write_bundle(made, few, ABOUT, OWNER)
    assert {file: file.read_bytes() for file in made.rglob("*") if file.is_file()} == before
    write_bundle(made, few, ABOUT, OWNER, force=True)
    assert read_all(made) == few
    assert sorted(file.name for file in made.iterdir()) == ["manifest.json", *sorted([*few, "signature"])]
    (tmp_path / "empty").mkdir()
    write_bundle(tmp_path / "empty", few, ABOUT, OWNER)
    assert read_all(tmp_path / "empty") == few


def test_who_packed_is_told_to_pack_again(made):
    exported = "make the bundle again: semseal export RUN --out"
    packed = "make the bundle again: semseal pack --transmitter T.onnx --receiver R.onnx --out"
    for about, command in ((ABOUT, exported), ({**ABOUT, "packed": {"notes": []}}, packed)):
        bundle = write_bundle(made, FILES, about, OWNER, force=True)
        with pytest.raises(BundleError) as caught:
            bundle.program("receiver", "fp16", "tensorrt")
        assert caught.value.hint == f"{command} {made} --force"
        with pytest.raises(BundleError) as caught:
            bundle.graph("receiver", "fp16")
        assert caught.value.hint == f"{command} {made} --force"
        change(made, format=2)
        with pytest.raises(BundleError) as caught:
            open_bundle(made)
        assert caught.value.hint == f"{command} {made} --force"
    with pytest.raises(BundleError) as caught:
        open_bundle("photos-10db").program("receiver", "fp32", "tensorrt")
    assert caught.value.hint == "semseal build photos-10db --out OTHER --engine tensorrt"
    with pytest.raises(BundleError) as caught:
        open_bundle("photos-10db").graph("receiver", "fp8")
    assert "export a link of your own" in caught.value.hint


def test_where_a_bundle_cannot_be_written_is_named():
    with pytest.raises(OSError, match=r"\] .*: '/sys/bundle'$"):
        write_bundle(Path("/sys/bundle"), FILES, ABOUT, OWNER)


def test_a_bundle_shows_what_it_is(made):
    assert repr(open_bundle(made)) == (f"Bundle({str(made)!r}, images [3, 8, 8], 4 symbols, SNR 10 dB, fp32, int8)")
    wide = write_bundle(made, FILES, {**ABOUT, "snr_db": [-2, 20.5]}, OWNER, force=True)
    assert "4 symbols, SNR -2 to 20.5 dB," in repr(wide)
    packaged = repr(open_bundle("photos-10db"))
    assert packaged == "Bundle('photos-10db', images [3, 180, 180], 16200 symbols, SNR 10 dB, fp32, fp16, int8)"


def test_a_range_of_snrs_and_whether_the_scale_is_in_the_header(made):
    bundle = open_bundle(made)
    assert (bundle.snr_range, bundle.snr_db, bundle.has_scale) == ((10.0, 10.0), 10.0, False)
    about = {**ABOUT, "snr_db": [0, 20.5], "model": {**MODEL, "scale": "header"}}
    bundle = write_bundle(made, FILES, about, OWNER, force=True)
    assert (bundle.snr_range, bundle.snr_db, bundle.has_scale) == ((0.0, 20.5), 10.25, True)


@pytest.mark.parametrize("name", ["transmitter-mix.fp32.onnx", "receiver-mix.int8.onnx"])
def test_a_bundle_holds_no_mix_graph(made, name):
    with pytest.raises(BundleError, match="damaged"):
        write_bundle(made, {**FILES, name: tiny("m")}, ABOUT, OWNER, force=True)


def test_a_graph_that_cannot_mix_is_named(made):
    with pytest.raises(BundleError, match=r"transmitter-mix int8: the graph has no scheme index") as caught:
        open_bundle(made).graph("transmitter-mix", "int8")
    assert "make the bundle again" in caught.value.hint
