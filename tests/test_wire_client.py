"""docs/wire.md is enough: a second implementation that was written from it (wire_client.py) and the package, both ways.

The vectors are the second implementation's but for those of keysets, mix and signatures, and both pass all of them.
"""

import ast
import copy
import hashlib
import json
import shutil
import sys
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
import wire_client
import wire_mix
from semseal.export.tensorrt import SIDES
from semseal.runtime.bundle import open_bundle, packaged_bundle, parse_manifest, write_bundle
from semseal.runtime.channel import awgn, draw_noise
from semseal.runtime.decoding import scheme
from semseal.runtime.defense import index, mix
from semseal.runtime.defense.header import Header, HeaderSealer
from semseal.runtime.defense.keys import generate_key
from semseal.runtime.defense.schemes import scheme_sets
from semseal.runtime.errors import BundleError, HeaderError, KeyFileError
from semseal.runtime.link import Frame, Receiver, Transmitter
from semseal.runtime.pictures import open_pictures
from semseal.runtime.pixels import with_pixels
from semseal.runtime.signing import owner_key, public_text
from semseal.runtime.trust.keyset import new_keyset, parse, read_keyset, write_keyset, write_peer
from wire_client import MODES, Client, RefusedError

MODELS = ("edge", "photos-10db")
SAME_PICTURE = 2e-4  # of a pixel, 1 at most: symbols agree within 2e-5, sums are added in another order


def vectors(name):
    found = json.loads((Path(__file__).parent / "vectors" / name).read_text())
    found = found["vectors"] if isinstance(found, dict) else found
    return [pytest.param(vector, id=vector.get("what") or vector["name"]) for vector in found]


@cache
def photographs():
    return open_pictures("photos", "valid").take(3, 180, 180)


@cache
def other_end(model):
    return wire_client.Bundle(packaged_bundle(model))


def test_it_shares_nothing_with_the_package():
    nodes = [node for module in (wire_client, wire_mix) for node in ast.walk(ast.parse(Path(module.__file__).read_text()))]
    imported = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    imported += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    own = {"numpy", "onnxruntime", "cryptography", "wire_mix"} | sys.stdlib_module_names
    assert {name.partition(".")[0] for name in imported} <= own


# the vectors


@pytest.mark.parametrize("vector", vectors("frame-v1.json"))
def test_frames(vector):
    data = bytes.fromhex(vector["data"])
    if vector["outcome"] != "read":
        with pytest.raises(ValueError, match=vector["outcome"]):
            Frame.from_bytes(data)
        with pytest.raises(RefusedError):
            wire_client.read_frame(data)
        return
    frame, (header, symbols) = Frame.from_bytes(data), wire_client.read_frame(data)
    assert frame.header == header == bytes.fromhex(vector["header"])
    assert symbols.tolist() == frame.symbols.view(np.float32).reshape(-1, 2).tolist()
    assert symbols.tolist() == np.array(vector["symbols"], np.float32).tolist()
    assert frame.to_bytes() == wire_client.write_frame(header, symbols) == data


@pytest.mark.parametrize("vector", vectors("header-v2.json"))
def test_headers(vector):  # what the package makes of them is in test_header.py
    key, model, data = (None if vector[x] is None else bytes.fromhex(vector[x]) for x in ("key", "model", "data"))
    if vector["outcome"] != "opened":
        with pytest.raises(RefusedError):
            wire_client.open_header(key, model, data)
        return
    header = {**vector["header"], "session": bytes.fromhex(vector["header"]["session"])}
    assert wire_client.open_header(key, model, data) == header
    assert wire_client.seal_header(key, model, **header) == data


@pytest.mark.parametrize("vector", vectors("keyset-v1.json"))
def test_keysets(vector):  # and of these in test_keyset.py
    if vector["outcome"] != "read":
        with pytest.raises(RefusedError):
            wire_client.read_keyset(vector["text"])
        return
    for key in wire_client.read_keyset(vector["text"])["keys"]:
        if key["secret"] is not None:
            for direction, derived in vector["keys"][key["id"]].items():
                assert wire_client.link_key(key["secret"], direction).hex() == derived


@pytest.mark.parametrize("vector", vectors("signature-v1.json"))
def test_signatures(vector):  # and of these in test_signing.py
    given = vector["public"], bytes.fromhex(vector["manifest"]), bytes.fromhex(vector["signature"])
    if vector["outcome"] == "verified":
        wire_client.verify(*given)
    else:
        with pytest.raises(RefusedError):
            wire_client.verify(*given)


@pytest.mark.parametrize("vector", vectors("bundle-v5.json"))
def test_manifests(vector):
    text = vector["manifest"].encode()
    if vector["outcome"] != "opened":
        with pytest.raises(BundleError, match=vector["outcome"]):
            parse_manifest(Path("b"), text)
        with pytest.raises(RefusedError):
            wire_client.read_manifest(text)
        return
    assert parse_manifest(Path("b"), text).digest.hex() == vector["digest"]
    assert wire_client.read_manifest(text)["model"]["digest"] == vector["digest"]


@pytest.mark.parametrize("vector", vectors("scheme-v1.json"))
def test_scheme_indices(vector):
    key, h = bytes.fromhex(vector["key"]), vector["h"]
    ours, (permutations, exchanged) = scheme_sets(key, h), wire_client.scheme_sets(key, h)
    assert ours.permutations.tolist() == permutations
    assert [np.flatnonzero(row).tolist() for row in ours.swapped] == [sorted(rows) for rows in exchanged]
    assert permutations[0] == vector["first_permutation"]
    assert sorted(exchanged[0]) == vector["first_exchanged"]
    assert hashlib.sha256(ours.permutations.astype("<i4").tobytes()).hexdigest() == vector["permutations_sha256"]
    both = np.array([sorted(rows) for rows in exchanged], "<i4")
    assert hashlib.sha256(both.tobytes()).hexdigest() == vector["exchanged_sha256"]
    chosen = [
        scheme(Header(vector["mode"], bytes(16), i, p, vector["s"]), ours, h)
        for i, p in enumerate((vector["p"], vector["partner_p"]))
    ]
    sent = np.stack([index.compose(order, swapped, chosen[1 - i][0]) for i, (order, swapped) in enumerate(chosen)])
    received = np.stack([index.invert(order, swapped) for order, swapped in chosen])
    own = np.arange(2)
    assert index.absolute(sent, own, 1 - own).tolist() == vector["transmitter_index"]
    assert index.absolute(received, own, 1 - own).tolist() == vector["receiver_index"]


@pytest.mark.parametrize("vector", [vector for vector in vectors("mix-v2.json") if vector.values[0]["valid"]])
def test_keys_of_mix(vector):  # and of these in test_wire_mix.py, with a third implementation
    given = (bytes.fromhex(vector[x]) if x != "counter" else vector[x] for x in ("key", "session", "counter", "digest"))
    signs, column_signs, pads, order, columns = wire_client.mix_keys(*given, vector["n"])
    assert list(wire_client.mix_sizes(vector["n"])) == vector["factors"]
    assert hashlib.sha256(signs.tobytes()).hexdigest() == vector["signs_sha256"]
    assert column_signs.tolist() == vector["column_signs"]
    assert hashlib.sha256(pads.astype("<f4").tobytes()).hexdigest() == vector["pads_sha256"]
    assert hashlib.sha256(order.astype("<i4").tobytes()).hexdigest() == vector["rows_sha256"]
    assert columns.tolist() == vector["columns"]


@pytest.mark.parametrize("vector", vectors("graphs-v5.json"))
def test_tensors(vector):
    for graph, table in vector["graphs"].items():
        inputs, output = wire_client.tensors(vector["model"], graph)
        assert [" ".join(map(str, [name, kind, *shape])) for name, kind, shape in inputs] == table["inputs"]
        assert " ".join(map(str, [output[0], output[1], *output[2]])) == table["output"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("model", MODELS)
def test_graphs_are_as_the_page_says(model, precision):
    bundle = open_bundle(model)
    for side in SIDES:
        for name, graph in (
            (side, bundle.graph(side, precision)),
            (f"{side}-pixels", with_pixels(bundle.graph(side, precision))),
        ):
            body = onnx.load_model_from_string(graph).graph
            declared = [
                (
                    value.name,
                    str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
                    [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim],
                )
                for value in (*body.input, *body.output)
            ]
            inputs, output = wire_client.tensors(bundle.manifest["model"], name)
            assert declared == [*inputs, output]


# the two talk to each other


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model", MODELS)
def test_what_the_other_end_sends_is_received(model, mode):
    key = generate_key() if mode != "none" else None
    client = Client(other_end(model), key)
    images = photographs()
    theirs = [Frame.from_bytes(frame) for frame in client.send(images, mode)]
    reals = [frame.symbols.view(np.float32) for frame in theirs]
    power = [2 * float(np.square(each, dtype=np.float64).mean()) for each in reals]
    assert np.mean(power) == pytest.approx(1, abs=1e-6)
    if mode == "mix":
        assert power == pytest.approx([1.0] * len(power), abs=1e-8)
    got = Receiver(model, key=key, snr_db=60.0 if other_end(model).has_scale else None).receive(theirs)
    ours = Transmitter(model, key=key, defense=mode, snr_db=10.0 if other_end(model).has_scale else None).send(images)
    again = Receiver(model, key=key, snr_db=60.0 if other_end(model).has_scale else None).receive(ours)
    assert got.shape == images.shape
    assert np.abs(got - again).max() < (SAME_PICTURE if mode != "mix" else 0.02)  # the pads' power differs from draw to draw
    assert psnr(got, images) > 26


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model", MODELS)
def test_what_is_sent_the_other_end_receives(model, mode):
    key = generate_key() if mode != "none" else None
    sent = Transmitter(model, key=key, defense=mode).send(photographs())
    noise = draw_noise(len(sent), len(sent[0].symbols), np.random.default_rng(5))
    sent = [Frame(awgn(frame.symbols, noise[i], 10.0), frame.header) for i, frame in enumerate(sent)]
    got = [image for image in Client(other_end(model), key).receive([frame.to_bytes() for frame in sent]) if image is not None]
    ours = Receiver(model, key=key).receive(sent)
    assert np.abs(np.stack(got) - ours).max() < SAME_PICTURE
    assert psnr(ours, photographs()) > 24


def psnr(a, b):
    return -10 * np.log10(np.mean(np.square(a - b, dtype=np.float64)))


def test_a_lost_partner_costs_both_ends_the_same_rows():
    key = generate_key()
    sent = Transmitter("edge", key=key, defense="permute+substitute").send(photographs()[:2])
    (got,) = Client(other_end("edge"), key).receive([sent[1].to_bytes()])
    (ours,) = Receiver("edge", key=key).receive_each([sent[1]])
    assert np.abs(got - ours.image).max() < SAME_PICTURE


@pytest.mark.parametrize("end", ["the package", "the other"])
def test_both_refuse_a_replay_another_key_and_symbols_of_another_frame_power_or_number(end):
    key = generate_key()
    first, second = map(Frame.from_bytes, Client(other_end("edge"), key).send(photographs()[:2], "mix"))
    swapped, loud = Frame(second.symbols, first.header), Frame(first.symbols * np.complex64(40), first.header)
    short = Frame(first.symbols[:-1], first.header)

    def receiver(key):
        if end == "the other":
            client = Client(other_end("edge"), key)
            return lambda frame: client.receive([frame.to_bytes()]), RefusedError
        bob = Receiver("edge", key=key)
        return lambda frame: bob.receive([frame]), HeaderError

    receive, refused = receiver(key)
    for bad in (swapped, loud, short):
        with pytest.raises(refused):
            receive(bad)
    receive(first)
    with pytest.raises(refused):
        receive(first)
    receive(second)
    receive, refused = receiver(generate_key())
    with pytest.raises(refused):
        receive(first)


def test_a_keyset_gives_both_ends_the_keys_of_both_directions(tmp_path):
    write_keyset(tmp_path / "alice.key", new_keyset("a-to-b", "mix"))
    write_peer(tmp_path / "alice.key", tmp_path / "bob.key")
    theirs = wire_client.read_keyset((tmp_path / "bob.key").read_text())
    (key,) = theirs["keys"]
    assert key["id"] == read_keyset(tmp_path / "alice.key").keys[0].id
    to_bob, to_alice = (wire_client.link_key(key["secret"], direction) for direction in ("a-to-b", "b-to-a"))
    sent = Transmitter("edge", key=tmp_path / "alice.key", defense="mix").send(photographs()[:1])
    (image,) = Client(other_end("edge"), to_bob).receive([sent[0].to_bytes()])
    assert psnr(image, photographs()[0]) > 26
    (frame,) = Client(other_end("edge"), to_alice).send(photographs()[:1], "mix")
    (image,) = Receiver("edge", key=tmp_path / "alice.key").receive([Frame.from_bytes(frame)])
    assert psnr(image, photographs()[0]) > 26
    with pytest.raises(HeaderError, match="does not authenticate"):  # reflected
        Receiver("edge", key=tmp_path / "bob.key").receive([Frame.from_bytes(frame)])


def test_with_a_keyset_counters_are_those_of_a_sender_whatever_the_rest_of_the_session(tmp_path):
    write_keyset(tmp_path / "alice.key", new_keyset("one-way", "mix"))
    key = wire_client.link_key(read_keyset(tmp_path / "alice.key").keys[0].secret, "one-way")
    images = photographs()
    alice, bob = Transmitter("edge", key=tmp_path / "alice.key", defense="mix"), Client(other_end("edge"), key, keyset=True)
    first, second = alice.send(images[:1])[0], alice.send(images[1:2])[0]
    assert first.header[5:13] == second.header[5:13]
    assert first.header[13:21] != second.header[13:21]
    bob.receive([second.to_bytes()])
    bob.receive([first.to_bytes()])
    with pytest.raises(RefusedError, match="replay"):
        bob.receive([first.to_bytes()])
    ours = Receiver("edge", key=tmp_path / "alice.key", state=tmp_path / "replay")
    alice = Client(other_end("edge"), key, keyset=True)
    first, second = (Frame.from_bytes(alice.send(images[i : i + 1], "mix")[0]) for i in range(2))
    assert first.header[5:13] == second.header[5:13]
    ours.receive([second, first])
    # a frame of that sender under another session, with a counter that was used
    alice.counter = 0
    again = Frame.from_bytes(alice.send(images[:1], "mix")[0])
    for frame in (first, second, again):
        with pytest.raises(HeaderError, match="replay refused"):
            ours.receive([frame])


@pytest.mark.parametrize("n", [48, 1984, 2048, 2819, 10000, 12346, 32400])
def test_both_mix_alike(n):
    values = np.random.default_rng(n).normal(0, 1, n).astype(np.float32) * (np.arange(n) % 7)
    values *= np.float32(np.sqrt(n / 2 / np.square(values, dtype=np.float64).sum()))
    given = bytes(range(32)), bytes(range(16)), 5, bytes(range(32, 64)), n
    keys = wire_client.mix_keys(*given)
    theirs, factor = wire_client.mixed(values, keys)
    drawn = mix.derive_keys(given[0], given[1], [5], given[3], n)
    ours = mix.mix(values[None], drawn)[0]
    apart = np.sort(np.abs(theirs - ours))
    assert apart[-2] < 1e-6
    assert apart[-1] < 2e-4
    assert np.square(theirs, dtype=np.float64).mean() == pytest.approx(0.5, abs=1e-8)
    assert np.abs(wire_client.unmixed(ours, keys, n) - factor * values).max() < 5e-5
    assert np.abs(mix.unmix(theirs[None], drawn, n)[0] - factor * values).max() < 5e-5


def test_the_other_end_verifies_a_bundle_and_refuses_a_changed_one(tmp_path):
    packaged, line = open_bundle("photos-10db"), public_text(owner_key())
    files = {name: packaged.read(name) for name in packaged.manifest["files"] if "fp32" in name}
    manifest = {name: packaged.manifest[name] for name in ("model", "snr_db")}
    write_bundle(tmp_path / "signed", files, {**manifest, "precisions": ["fp32"]}, owner_key())
    frames = Client(wire_client.Bundle(tmp_path / "signed", line)).send(photographs()[:1], "none")
    assert Receiver(tmp_path / "signed").receive([Frame.from_bytes(frame) for frame in frames]).shape == (1, 3, 180, 180)
    with pytest.raises(RefusedError, match="signature"):
        wire_client.Bundle(tmp_path / "signed", "semseal-owner-v1:11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
    for name, what in (("manifest.json", "signature"), ("signature", "signature"), ("receiver.fp32.onnx", "digest")):
        shutil.copytree(tmp_path / "signed", tmp_path / name)
        data = bytearray((tmp_path / name / name).read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / name / name).write_bytes(data)
        with pytest.raises(RefusedError, match=what):
            Client(wire_client.Bundle(tmp_path / name, line))


# what one refuses the other refuses: a page that leaves something open shows here


def reads(read, refused, *data):
    try:
        read(*data)
    except refused:
        return False
    return True


def spoilt(data, random, alphabet=range(256)):
    """A few bytes changed, inserted or removed."""
    out = bytearray(data)
    for _ in range(random.randint(0, 2)):
        if out:
            at = random.randrange(len(out))
            out[at : at + random.randint(0, 2)] = bytes(random.choice(alphabet) for _ in range(random.randint(0, 2)))
    return bytes(out)


VALUES = (
    None, True, 0, 1, -1, 5, 2**40, 2.5, 180.0, float("nan"), float("inf"), "", "x", "5", "180", "00" * 32, "FF" * 32, "header",
    "mix", "one-way", "fp32", "0" * 16, "2026-13-01T00:00:00Z", [], [1], {}, {"a": 1}, ["fp32"], ["fp16"], ["fp32", 1],
    [0, True],
)  # fmt: skip


def spoilt_members(tree, random):
    """A member removed, added, or of another value or type."""
    tree = copy.deepcopy(tree)
    holders = [tree]
    for holder in holders:
        inner = holder.values() if isinstance(holder, dict) else holder
        holders += [value for value in inner if isinstance(value, dict | list) and value]
    holder = random.choice(holders)
    name = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    how = random.random()
    if how < 0.15:
        del holder[name]
    elif how < 0.25 and isinstance(holder, dict):
        holder[random.choice(["more", "scale", "created", "size"])] = random.choice(VALUES)
    elif how < 0.35 and isinstance(holder[name], str):
        holder[name] = holder[name].upper()
    else:
        holder[name] = random.choice(VALUES)
    return tree


def good(name, field):
    return [
        vector.values[0][field] for vector in vectors(name) if vector.values[0]["outcome"] in ("read", "opened", "verified")
    ]


def test_both_take_the_same_frames_and_headers():
    random, frames = Random(1), [bytes.fromhex(data) for data in good("frame-v1.json", "data")]
    for _ in range(2000):
        data = spoilt(random.choice(frames), random)
        ours = reads(Frame.from_bytes, ValueError, data)
        assert ours == reads(wire_client.read_frame, RefusedError, data), data.hex()
    headers = [vector.values[0] for vector in vectors("header-v2.json")]
    for _ in range(2000):
        vector = random.choice(headers)
        key, model = (None if vector[x] is None else bytes.fromhex(vector[x]) for x in ("key", "model"))
        data = spoilt(bytes.fromhex(vector["data"]), random, (0, 1, 2, 3, 4, 115, 83, 255))
        ours = reads(HeaderSealer(key, model).open, HeaderError, data)
        assert ours == reads(wire_client.open_header, RefusedError, key, model, data), data.hex()


def test_both_take_the_same_manifests():
    random, manifests = Random(2), [json.loads(text) for text in good("bundle-v5.json", "manifest")]
    taken = 0
    for _ in range(2000):
        text = json.dumps(spoilt_members(random.choice(manifests), random)).encode()
        ours = reads(parse_manifest, BundleError, Path("b"), text)
        assert ours == reads(wire_client.read_manifest, RefusedError, text), text
        taken += ours
    assert 100 < taken < 1900


def test_both_take_the_same_keysets():
    random, texts = Random(3), good("keyset-v1.json", "text")
    for i in range(3000):
        if i % 2:
            members = spoilt_members(json.loads(random.choice(texts)), random)
            if isinstance(members, dict):
                members.pop("checksum", None)
                whole = json.dumps(members, indent=1) + "\n"
                members["checksum"] = hashlib.sha256(whole.encode()).hexdigest()
            text = json.dumps(members, indent=1) + "\n"
        else:
            text = spoilt(random.choice(texts).encode(), random, range(32, 127)).decode()
        ours = reads(parse, KeyFileError, text.encode(), Path("k"))
        assert ours == reads(wire_client.read_keyset, RefusedError, text), text
