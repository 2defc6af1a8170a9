"""Deployments that violate one rule of ``semseal check`` each: what is done to a sound one."""

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from deployed import KEY, OWNER, ROW, SIDE, H, Place
from secrets_in_files import (
    changed,
    columns_of_mix,
    index_with_substitution,
    key_as_numbers,
    key_beside_the_bundle,
    key_in_a_varint_tensor,
    key_in_the_manifest,
    key_raw,
    order_of_mix,
    permutation,
    permutation_as_floats,
    permutation_in_a_cache,
    permutation_in_a_plan,
    permutation_in_a_varint_tensor,
    permutation_in_the_manifest,
    permutation_of_the_paper,
    signs_in_a_plan,
    signs_in_a_public_matrix,
    signs_of_columns,
    signs_of_mix,
    with_plan,
)
from semseal import check
from semseal.runtime.link import Receiver, Transmitter
from semseal.runtime.net.record import Recording
from semseal.runtime.signing import write_private
from semseal.runtime.trust.keyset import new_keyset, revoke, write_keyset


def found(place: Place, **other) -> list[tuple[str, str]]:
    """Ids, without their prefix, and paths of what fails."""
    report = check(place.bundle, **{**place.asked, **other})
    return [(finding.id.removeprefix("SEMSEAL-"), finding.path) for finding in report.findings if finding.fails]


# one violation each: what is done to a sound deployment, and what else is asked


def unsigned(place):
    (place.bundle / "signature").unlink()


def signed_by_another(place):
    text = (place.bundle / "manifest.json").read_bytes()
    (place.bundle / "manifest.json").write_bytes(text.replace(b'"photos"', b'"photoz"'))


def unpinned(place):
    place.asked["owner"] = None


def one_bit(place):
    data = bytearray(place.files["receiver.fp32.onnx"])
    data[len(data) // 2] ^= 1
    (place.bundle / "receiver.fp32.onnx").write_bytes(data)


def missing(place):
    (place.bundle / "receiver.fp32.onnx").unlink()


def unlisted(place):
    (place.bundle / "transmitter.int8.onnx").write_bytes(b"anything")


def unlisted_folder(place):
    (place.bundle / "engines").mkdir()


def linked(place):
    real = place.home / "receiver.fp32.onnx"
    shutil.move(place.bundle / "receiver.fp32.onnx", real)
    (place.bundle / "receiver.fp32.onnx").symlink_to(real)


def fifo(place):
    (place.bundle / "manifest.json").unlink()
    os.mkfifo(place.bundle / "manifest.json")


def hard_link_into_the_bundle(place):
    os.link(place.bundle / "receiver.fp32.onnx", place.home / "another")


def external(place):
    model = place.graph()
    tensor = next(t for t in model.graph.initializer if t.raw_data)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    place.put(model)


def name_that_is_no_text(place):
    data = place.files["transmitter.fp32.onnx"]
    at = data.index(b"\x0a\x05index")
    place.files["transmitter.fp32.onnx"] = data[: at + 2] + b"\xff" + data[at + 3 :]
    place.write()


def size_as_text(place):
    changed(place, model={**place.manifest["model"], "height": "64"})


def size_as_fraction(place):
    changed(place, model={**place.manifest["model"], "h": 16.0})


def precision_without_graph(place):
    changed(place, precisions=["fp32", "fp16"])


def name_twice(place):
    text = json.dumps(place.manifest)
    place.write(f'{{"format": 4, {text[1:]}'.encode())


def another_format(place):
    changed(place, format=4)


def no_json(place):
    place.sign(b"{" * 5000)


def larger_than_its_graph(place):
    changed(place, model={**place.manifest["model"], "height": 128})


def folded(place):
    """The index as a constant: Gather takes what is drawn once. Of as many rows as the model has."""
    model = place.graph()
    index = next(i for i in model.graph.input if i.name == "index")
    model.graph.input.remove(index)
    h = place.manifest["model"]["h"]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(h, dtype=np.int32)[None], "index"))
    place.put(model)


def unused(place):
    model = place.graph()
    gather = next(node for node in model.graph.node if "index" in node.input)
    gather.op_type, gather.input[1] = "Reshape", "shape"
    del gather.attribute[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, H, ROW]), "shape"))
    place.put(model)


def plan_without_index(place):
    with_plan(place, inputs=("image",))


def plan_of_mix_without_signs(place):
    report = {"engine": "tensorrt", "version": "11.4.1", "inputs": [{"name": "image"}, {"name": "mix_rows"}]}
    place.files |= {"engines/transmitter-mix.fp32.tensorrt.engine.json": json.dumps(report).encode()}
    place.write()


def version_1(place):
    changed(place, format=3)


def defended_by(mode):
    def do(place):
        place.asked["defense"] = mode
        place.audit["settings"]["defenses"].append(mode)
        place.audit["games"] = []
        place.row("identification", "nothing", defense=mode)
        place.where["defense"] = mode
        place.write()

    return do


def stored_frame(place):
    alice = Transmitter(place.bundle, KEY, "mix", owner=place.asked["owner"])
    [frame] = alice.send(np.full((1, 3, SIDE, SIDE), 0.3, np.float32))
    (place.device / "frame.bin").write_bytes(frame.to_bytes())


def stored_recording(place):
    """As semseal send --record leaves it."""
    alice = Transmitter(place.bundle, KEY, "mix", owner=place.asked["owner"])
    with Recording(place.device / "air", "sender", "made up") as recording:
        for frame in alice.send(np.full((2, 3, SIDE, SIDE), 0.3, np.float32)):
            recording.add(frame.header, frame.symbols)


def silent_graph(place):
    """Black gives no number, as where a model divides by its own power."""
    model = place.graph()
    nodes = model.graph.node
    last = next(node for node in nodes if "symbols" in node.output)
    last.output[list(last.output).index("symbols")] = "symbols_before"
    first = [
        onnx.helper.make_node("ReduceMax", ["image", "all"], ["maximum"], keepdims=0),
        onnx.helper.make_node("Reshape", ["maximum", "each"], ["brightest"]),
        onnx.helper.make_node("Div", ["symbols_before", "brightest"], ["scaled"]),
        onnx.helper.make_node("Mul", ["scaled", "brightest"], ["symbols"]),
    ]
    for name, value in (("all", [1, 2, 3]), ("each", [-1, 1, 1])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
    nodes.extend(first)
    place.put(model)


def loud(place):
    """Without a defence nothing sets the power again."""
    defended_by("none")(place)
    model = place.graph()
    last = next(node for node in model.graph.node if "symbols" in node.output)
    last.output[list(last.output).index("symbols")] = "symbols_before"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1.01), "louder"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["symbols_before", "louder"], ["symbols"]))
    place.put(model)


def unknown_operator(place):
    model = place.graph()
    model.graph.node[0].op_type = "Unheard"
    place.put(model)


def another_version(place):
    with_plan(place, version="10.3.0")


def key_mode(place):
    place.key.chmod(0o640)


def key_of_another(place):
    os.chown(place.key, 12345, -1)


def key_with_two_names(place):
    os.link(place.key, place.home / "copy.key")


def equal_key(place):
    place.write_key(place.key, b"a" * 32)


def key_in_an_open_folder(place):
    place.home.chmod(0o777)


def key_as_link(place):
    place.key.rename(place.home / "real.key")
    place.key.symlink_to(place.home / "real.key")


def key_as_folder(place):
    place.key.unlink()
    place.key.mkdir()


def left_beside_the_key(place):
    (place.home / ".alice.key.k3j2h1g0").write_bytes(b"")


def left_beside_the_bundle(place):
    (place.bundle.parent / ".bundle.x8_3hd7s").mkdir()


def left_in_the_bundle(place):
    (place.bundle / ".manifest.json.0123abcd").write_bytes(b"")


def editors_copy(place):
    (place.home / "alice.key~").write_bytes(b"")


def owners_key(place):
    write_private(place.device / "signing", OWNER)


def owners_key_of_the_user(place):
    folder = Path(os.environ["XDG_CONFIG_HOME"]) / "semseal"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "owner.key").write_bytes(b"")


def damaged_key(place):
    place.key.write_text("semseal-key-v1\nabc\n")


def again(place, keyset):
    """Another keyset in the place of the one that is there, and its replay window."""
    place.key.unlink()
    write_keyset(place.key, keyset)
    place.state.unlink()
    place.receive("old", keyset.keys[0].id)


def keyset_for_all(place):
    again(place, new_keyset("b-to-a", None))


def keyset_of_yesterday(place):
    keyset = new_keyset("a-to-b", "mix")
    again(place, replace(keyset, keys=(replace(keyset.keys[0], not_after=int(time.time()) - 86400),)))


def keyset_without_a_primary(place):
    keyset = new_keyset("a-to-b", "mix")
    again(place, revoke(keyset, keyset.keys[0].id))


def keyset_for_one_direction(place):
    again(place, new_keyset("one-way", "mix"))


def old_key(place):
    place.write_key(place.key)
    place.asked["two_way"] = False


def no_replay_window(place):
    place.asked["state"] = None


def replay_window_that_is_gone(place):
    place.state.unlink()


def damaged_replay_window(place):
    place.state.write_bytes(place.state.read_bytes().replace(b"semseal-replay-v1", b"semseal-replay-v0"))


def open_replay_window(place):
    place.state.chmod(0o644)


def replay_window_as_link(place):
    place.state.rename(place.home / "real.replay")
    place.state.symlink_to(place.home / "real.replay")


def replay_window_of_another_link(place):
    place.state.unlink()
    place.receive("old", "0123456789abcdef")


def older_bundle(place):
    changed(place, created=2_000_000_000)
    Receiver(place.bundle, place.key, owner=place.asked["owner"])
    changed(place, created=1_999_999_999)


def undated_bundle(place):
    changed(place, created=1)
    Receiver(place.bundle, place.key, owner=place.asked["owner"])
    del place.manifest["created"]
    place.write()


def damaged_record_of_bundles(place):
    older_bundle(place)
    (Path(os.environ["XDG_CONFIG_HOME"]) / "semseal" / "newest.json").write_text("{")


def lossy(place):
    rows = json.loads(json.dumps(place.manifest["parity"]["rows"]))
    next(row for row in rows if row["transmitter"] == row["receiver"] == "fp32")["psnr"]["10"] -= 0.02
    changed(place, parity={**place.manifest["parity"], "rows": rows})


def no_parity(place):
    changed(place, parity={"rows": []})


def no_audit(place):
    place.asked["results"] = None


def older_audit(place):
    place.add_constant(np.ones(3, np.float32))
    digest = place.manifest["model"]["digest"]
    place.write_measured("00" * 32)
    place.benchmark.write_text(place.benchmark.read_text().replace("00" * 32, digest))


def another_channel(place):
    place.asked["channel"], place.asked["eve_channel"] = "rayleigh", "awgn"


def another_engine(place):
    place.asked["engine"] = place.where["engine"] = "openvino"
    place.audit["games"] = [{**row, "engine": "openvino"} for row in place.audit["games"]]
    place.write()


def another_precision(place):
    place.audit["settings"]["precisions"] = ["int8"]
    place.write()


def measured(verdict, attack="linkability"):
    def do(place):
        place.row(attack, verdict)
        place.write()

    return do


def over_budget(place):
    place.asked["budget"] = 0.005


def gate_not_passed(place):
    place.audit["gate"] = [{"name": "linkability", "bound": 0.55, "figure": 0.58, "passed": False}]
    place.write()


def no_benchmark(place):
    place.asked["benchmark"] = None


def benchmark_of_another(place):
    place.where["precision"] = "int8"
    place.write()


def late(place):
    place.times[0]["time"]["p99_ms"] = 33.5
    place.write()


def late_by_few_samples(place):
    place.times[0]["time"] |= {"p99_ms": None, "max_ms": 40.0}
    place.write()


VIOLATIONS = [
    ("B01", unsigned), ("B01", signed_by_another), ("B02", unpinned), ("B03", one_bit), ("B03", missing), ("B04", unlisted),
    ("B04", unlisted_folder), ("B05", linked), ("B05", fifo), ("B05", hard_link_into_the_bundle), ("B06", external),
    ("B06", name_that_is_no_text), ("B07", size_as_text), ("B07", size_as_fraction), ("B07", precision_without_graph),
    ("B07", name_twice), ("B07", another_format), ("B07", no_json), ("B08", larger_than_its_graph), ("S01", key_raw),
    ("S01", key_in_the_manifest), ("S01", key_as_numbers), ("S01", key_in_a_varint_tensor), ("S01", key_beside_the_bundle),
    ("S02", permutation), ("S02", permutation_as_floats), ("S02", permutation_in_a_varint_tensor),
    ("S02", permutation_of_the_paper), ("S02", index_with_substitution), ("S02", permutation_in_a_plan),
    ("S02", permutation_in_a_cache), ("S02", permutation_in_the_manifest), ("S02", order_of_mix), ("S02", columns_of_mix),
    ("S03", signs_of_mix), ("S03", signs_in_a_plan), ("S03", signs_of_columns), ("S03", signs_in_a_public_matrix),
    ("S04", folded), ("S04", unused), ("S04", plan_without_index), ("S04", plan_of_mix_without_signs),
    ("D01", defended_by("permute")), ("D01", defended_by("permute+substitute")), ("D02", defended_by("none")),
    ("D03", version_1),
    ("P02", silent_graph), ("P03", stored_frame), ("P03", stored_recording),
    ("E02", unknown_operator), ("V02", another_version), ("K01", key_mode),
    ("K03", key_with_two_names), ("K04", equal_key), ("K05", key_in_an_open_folder), ("K06", key_as_link),
    ("K06", key_as_folder),
    ("K07", left_beside_the_key), ("K07", left_beside_the_bundle), ("K07", left_in_the_bundle), ("K07", editors_copy),
    ("K08", owners_key), ("K08", owners_key_of_the_user), ("K09", damaged_key), ("K10", keyset_for_all),
    ("K11", keyset_of_yesterday), ("K11", keyset_without_a_primary), ("K12", keyset_for_one_direction), ("K13", old_key),
    ("K14", no_replay_window), ("K14", replay_window_that_is_gone), ("K14", damaged_replay_window), ("K14", open_replay_window),
    ("K14", replay_window_as_link), ("K14", replay_window_of_another_link), ("B09", older_bundle), ("B09", undated_bundle),
    ("B09", damaged_record_of_bundles), ("Q01", lossy), ("Q02", no_parity),
    ("L01", no_audit), ("L02", older_audit), ("L03", another_channel), ("L03", another_engine), ("L03", another_precision),
    ("L04", measured("sees")), ("L05", measured("void")), ("L06", measured("open")), ("L07", over_budget),
    ("L07", gate_not_passed), ("T01", no_benchmark), ("T01", benchmark_of_another), ("T02", late), ("T02", late_by_few_samples),
]  # fmt: skip
