"""``semseal check``: a sound deployment is clean, and each rule finds the deployment that violates it, and nothing else."""

import dataclasses
import json
import os
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from deployed import KEY, OWNER, REALS, ROW, SIDE, H, Place
from madeup import made_up
from semseal import check
from semseal.runtime.audit.attacks import ATTACKS
from semseal.runtime.audit.verdict import verdicts
from semseal.runtime.bench.measure import Summary
from semseal.runtime.bench.results import Results as BenchResults
from semseal.runtime.bench.results import Row, Where
from semseal.runtime.defense import mix
from semseal.runtime.defense.schemes import scheme_sets
from semseal.runtime.errors import BundleError, CheckError
from semseal.runtime.link import Transmitter
from semseal.runtime.signing import write_private
from semseal.runtime.trust.check import deployment, look
from semseal.runtime.trust.evidence import MISUSE
from semseal.runtime.trust.keyset import new_keyset, revoke, write_keyset
from semseal.runtime.trust.rules import RULES

PLAN = "engines/transmitter.fp32.tensorrt.engine"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))  # where other tests may have left an owner's key
    return Place(tmp_path / "deployed")


def found(place: Place, **other) -> list[tuple[str, str]]:
    """Ids, without their prefix, and paths of what fails."""
    report = check(place.bundle, **{**place.asked, **other})
    return [(finding.id.removeprefix("SEMSEAL-"), finding.path) for finding in report.findings if finding.fails]


def changed(place: Place, **values):
    place.manifest = {**place.manifest, **values}
    place.write()


def with_plan(place: Place, inputs=("image", "index"), version="11.4.1", plan=b"a plan"):
    report = {"engine": "tensorrt", "version": version, "inputs": [{"name": name} for name in inputs]}
    place.files |= {PLAN: plan, f"{PLAN}.json": json.dumps(report).encode()}
    changed(place, engines=["tensorrt"])


def noisy_order(n: int, kind: str) -> np.ndarray:
    return np.random.default_rng(n).permutation(n).astype(kind)


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


def key_raw(place):
    place.add_constant(np.frombuffer(KEY, np.uint8))


def key_in_the_manifest(place):
    changed(place, note=KEY.hex().upper())


def key_as_numbers(place):
    changed(place, note=list(KEY))


def key_in_a_varint_tensor(place):
    place.add_constant(np.frombuffer(KEY, np.uint8).astype(np.int32), raw=False)


def key_beside_the_bundle(place):
    import base64

    (place.device / "engine.cache").write_bytes(b"\0" * 999 + base64.b64encode(b"??" + KEY + b"?") + b"\0" * 99)


def permutation(place):
    place.add_constant(noisy_order(H, "int64"))


def permutation_as_floats(place):
    place.add_constant(noisy_order(H, "float32"))


def permutation_in_a_varint_tensor(place):
    place.add_constant(noisy_order(H, "int64"), raw=False)


def permutation_of_the_paper(place):
    place.add_constant(np.stack(scheme_sets(KEY, H).permutations).astype(np.int32))


def index_with_substitution(place):
    rng = np.random.default_rng(0)
    place.add_constant((noisy_order(H, "int32") + H * rng.integers(0, 2, H)).astype(np.int32))


def permutation_in_a_plan(place):
    with_plan(place, plan=b"plan" * 99 + noisy_order(H, "int16").tobytes())


def permutation_in_a_cache(place):
    (place.device / "timing.cache").write_bytes(b"x" + noisy_order(H, "int32").tobytes())


def permutation_in_the_manifest(place):
    changed(place, note={"order": noisy_order(H, "int64").tolist()})


def order_of_mix(place):
    keys = mix.derive_keys(KEY, bytes(16), [0], bytes(32), REALS)
    place.add_constant(keys.rows[0])


def columns_of_mix(place):
    keys = mix.derive_keys(KEY, bytes(16), [0], bytes(32), REALS)
    place.add_constant(keys.columns)


def signs_of_mix(place):
    keys = mix.derive_keys(KEY, bytes(16), [0], bytes(32), REALS)
    place.add_constant(keys.signs[0, 0])


def signs_in_a_plan(place):
    keys = mix.derive_keys(KEY, bytes(16), [0], bytes(32), REALS)
    with_plan(place, plan=b"p" + keys.signs[0, 1].astype(np.float32).tobytes())


def signs_of_columns(place):
    keys = mix.derive_keys(KEY, bytes(16), [0], bytes(32), REALS)
    place.add_constant(keys.column_signs[0].astype(np.float32))


def signs_in_a_public_matrix(place):
    keys = mix.derive_keys(KEY, bytes(16), [0], bytes(32), REALS)
    place.add_constant(mix.matrices(REALS)[2] * keys.column_signs[0, :, 0].astype(np.float32))


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


def keyset_for_all(place):
    place.key.unlink()
    write_keyset(place.key, new_keyset("one-way", None))


def keyset_of_yesterday(place):
    place.key.unlink()
    keyset = new_keyset("one-way", "mix")
    write_keyset(place.key, replace(keyset, keys=(replace(keyset.keys[0], not_after=int(time.time()) - 86400),)))


def keyset_without_a_primary(place):
    place.key.unlink()
    keyset = new_keyset("a-to-b", "mix")
    write_keyset(place.key, revoke(keyset, keyset.keys[0].id))


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
    ("P02", silent_graph), ("P03", stored_frame), ("E02", unknown_operator), ("V02", another_version), ("K01", key_mode),
    ("K03", key_with_two_names), ("K04", equal_key), ("K05", key_in_an_open_folder), ("K06", key_as_link),
    ("K07", left_beside_the_key), ("K07", left_beside_the_bundle), ("K07", left_in_the_bundle), ("K07", editors_copy),
    ("K08", owners_key), ("K08", owners_key_of_the_user), ("K09", damaged_key), ("K10", keyset_for_all),
    ("K11", keyset_of_yesterday), ("K11", keyset_without_a_primary), ("Q01", lossy), ("Q02", no_parity),
    ("L01", no_audit), ("L02", older_audit), ("L03", another_channel), ("L03", another_engine), ("L03", another_precision),
    ("L04", measured("sees")), ("L05", measured("void")), ("L06", measured("open")), ("L07", over_budget),
    ("L07", gate_not_passed), ("T01", no_benchmark), ("T01", benchmark_of_another), ("T02", late), ("T02", late_by_few_samples),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "violate"), VIOLATIONS, ids=[f"{rule}-{do.__name__}" for rule, do in VIOLATIONS])
def test_each_violation_is_found_and_nothing_else(place, rule, violate, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    violate(place)
    assert {name for name, _ in found(place)} == {rule}


def test_a_sound_deployment_is_clean_and_everything_was_looked_at(place, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    report = check(place.bundle, **place.asked, budget=0.02)
    assert report.clean
    assert report.findings == ()
    assert report.unchecked == ()
    assert set(report.passed) == {rule.id for rule in RULES}


@pytest.mark.parametrize("direction", ["one-way", "a-to-b"])
def test_a_keyset_that_requires_mix_is_clean_and_its_secret_is_searched_for(place, direction, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    place.key.unlink()
    keyset = new_keyset(direction, "mix")
    write_keyset(place.key, keyset)
    assert found(place) == []
    place.add_constant(np.frombuffer(keyset.keys[0].secret, np.uint8))
    assert {name for name, _ in found(place)} == {"S01"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_key_file_of_another_user(place):
    key_of_another(place)
    assert found(place) == [("K02", str(place.key))]


def test_power_that_is_not_one(place):
    """It goes with the defence none, which is a finding of its own."""
    loud(place)
    assert {name for name, _ in found(place)} == {"D02", "P01"}


def test_a_vulnerable_package_that_is_installed(place, tmp_path, monkeypatch):
    folder = tmp_path / "onnx-1.20.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: onnx\nVersion: 1.20.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert found(place) == [("V01", "onnx")]


def test_a_plan_of_another_version_than_is_installed(place, tmp_path, monkeypatch):
    folder = tmp_path / "tensorrt-11.5.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt\nVersion: 11.5.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with_plan(place, version="11.4.1")
    place.asked["engine"] = place.where["engine"] = "tensorrt"
    place.write()
    # here it does not run either, and neither parity nor audit is about it
    assert {name for name, _ in found(place)} == {"E01", "E02", "Q02", "L03"}


@pytest.mark.parametrize(("sizes", "rule"), [({"h": 15}, "D04"), ({"c": 2, "w": 64}, "D05"), ({"h": 2**18, "w": 16}, "D04")])
def test_models_that_mix_does_not_suit(place, sizes, rule):
    """By the manifest alone: the graphs are of another size, which is found as well and stops what comes behind."""
    changed(place, model={**place.manifest["model"], **sizes})
    assert {name for name, _ in found(place)} - {"B08"} == {rule}


def test_every_rule_has_a_deployment_that_violates_it():
    alone = {"P01", "V01", "E01", "K02", "D04", "D05"}  # above
    assert {rule for rule, _ in VIOLATIONS} | alone == {rule.id.removeprefix("SEMSEAL-") for rule in RULES}


def test_public_orders_and_signs_are_no_secrets(place):
    """Identity, reversal, transposition, the shuffle of channels and the matrices of mix, as networks have them."""
    for n, name in ((H, "rows"), (H * H, "places")):
        for order in (np.arange(n), np.arange(n)[::-1], np.arange(n).reshape(4, -1).T.ravel(), np.roll(np.arange(n), 3)):
            place.add_constant(np.ascontiguousarray(order, np.int64), f"{name}{order[1]}")
    for i, matrix in enumerate((*mix.matrices(REALS), *mix.inverse_matrices(REALS))):
        place.add_constant(matrix, f"hadamard{i}")
    place.add_constant(np.tile(np.float32([[1, 1], [1, -1]]), (16, 1, 1)), "haar")
    assert found(place) == []


def test_misuse_is_what_the_table_of_attacks_says():
    assert set(MISUSE) == {attack.name for attack in ATTACKS if attack.misuse}


@pytest.mark.parametrize("name", ["edge", "edge-quality", "photos-10db"])
def test_packaged_bundles_are_clean(name):
    report = check(name)
    assert report.clean
    assert {finding.id for finding in report.findings} == {"SEMSEAL-L01"}  # a note: no audit was named
    unchecked = {rule for group in report.unchecked for rule in group.ids}
    assert unchecked == {rule.id for rule in RULES if rule.id[8] in "KLT"} - {"SEMSEAL-K07", "SEMSEAL-L01"} | {
        "SEMSEAL-S01",
        "SEMSEAL-P03",
    }


def test_what_is_not_looked_at_is_said_with_the_reason(place):
    unsigned(place)
    report = check(place.bundle, **place.asked)
    reasons = {name: group.reason for group in report.unchecked for name in group.ids}
    assert reasons["SEMSEAL-S02"] == "SEMSEAL-B01 must be fixed first"
    assert not {"SEMSEAL-S02", "SEMSEAL-E02"} & set(report.passed)
    assert report.digest is None


def test_what_is_no_bundle_and_files_that_are_not_there(place, tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        check(tmp_path)
    for name in ("keys", "folder", "results", "benchmark"):
        with pytest.raises(CheckError, match="nowhere"):
            check(place.bundle, **{**place.asked, name: tmp_path / "nowhere"})
    for text in ("[]", "{", '{"bundles": 1}'):
        place.results.write_text(text)
        with pytest.raises(CheckError, match=r"audit\.json is not the results"):
            check(place.bundle, **place.asked)


def test_mutated_bundles_are_never_clean(place):
    """1,000 of them: bytes changed, cut, doubled, files added, removed, exchanged. No crash, and every one is found."""
    rng = random.Random(0)
    original = {path.relative_to(place.bundle): path.read_bytes() for path in place.bundle.rglob("*") if path.is_file()}
    names = sorted(original)
    for number in range(1000):
        files = dict(original)
        name = rng.choice(names)
        data = bytearray(files[name])
        at = rng.randrange(len(data))
        match rng.choices(range(7), (4, 4, 4, 4, 4, 4, 1))[0]:
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.randbytes(rng.randrange(1, 40))
            case 3:
                data[at : at + 8] = data[: len(data[at : at + 8])][::-1] + b"\0"
            case 4:
                del files[name]
            case 5:
                other = rng.choice([other for other in names if other != name])
                files[name], files[other] = files[other], files[name]
            case 6:
                files[name.with_name("more.onnx")] = bytes(data)
        if name in files and bytes(data) != original[name] and files[name] == original[name]:
            files[name] = bytes(data)
        for path in place.bundle.iterdir():
            path.unlink()
        for path, content in files.items():
            (place.bundle / path).write_bytes(content)
        try:
            d = deployment(place.bundle, **place.asked)
        except BundleError:
            assert Path("manifest.json") not in files
            continue
        problems, _ = look(d)
        assert any(problem.fails for problem in problems), (number, name)


def test_signed_nonsense_is_never_a_crash(place):
    """What an owner could sign: every value of the manifest replaced by others, of another type above all."""
    for path in _paths(place.manifest):
        for other in (None, True, -1, 1e400, [], {}, "x", 2**70):
            place.sign(json.dumps(_replaced(place.manifest, path, other)).encode())
            problems, _ = look(deployment(place.bundle, **place.asked))
            # of what is not about the model the format says nothing
            assert problems or path[0] in ("training", "tools", "engines", "snr_db", "parity"), (path, other)


def _paths(value, path=()):
    if path:
        yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _paths(inner, (*path, name))


def _replaced(value, path, other):
    if not path:
        return other
    return {**value, path[0]: _replaced(value[path[0]], path[1:], other)}


@pytest.mark.parametrize(("mix_db", "rules"), [(11.0, set()), (19.0, {"L04"})])
def test_the_results_of_an_audit_as_it_writes_them(place, mix_db, rules):
    """The verdict is the audit's own: the same rows, misuse left out."""
    results = made_up(mix_db)
    entry = dataclasses.replace(results.bundles[0], digest=place.manifest["model"]["digest"])
    results = dataclasses.replace(results, bundles=(entry,))
    place.results.write_text(results.to_json())
    told = {name for name, _ in found(place)}
    verdict = next(verdict for verdict in verdicts(results) if verdict.defense == "mix")
    assert told & {"L02", "L03", "L04", "L07"} == rules
    assert ("L04" in told) == (verdict.word == "falls")
    assert ("L06" in told) == bool(verdict.open)
    assert ("L05" in told) == bool(verdict.void)


def test_the_results_of_a_benchmark_as_it_writes_them(place):
    digest = place.manifest["model"]["digest"]
    rows = tuple(
        Row(Where("bundle", "onnxruntime-cpu", "fp32", "mix", 1), stage, Summary(700, 4.0, 5.0, p99, 60.0, 2.0))
        for stage, p99 in (("send", 20.0), ("receive", 34.0), ("header", 99.0))
    )
    bench = BenchResults({}, {}, {"bundle": {"path": "bundle", "digest": digest}}, {}, rows=rows)
    place.benchmark.write_text(json.dumps(bench.document()))
    assert found(place) == [("T02", str(place.benchmark))]
    place.asked["deadline_ms"] = 35.0
    assert found(place) == []
