"""Deployments for the tests of ``semseal check``: a sound one, and the tools to spoil it."""

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper, numpy_helper
from semseal.runtime.bundle import FORMAT, model_digest
from semseal.runtime.defense.header import Header
from semseal.runtime.defense.keys import derive
from semseal.runtime.signing import public_text
from semseal.runtime.trust.keyset import new_key, new_keyset, write_keyset
from semseal.runtime.trust.replay import KeysetWindow

OWNER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
KEY = hashlib.sha256(b"alice").digest()
KEYSET = replace(
    new_keyset("a-to-b", "mix"), keys=(replace(new_key(), secret=KEY, id=derive(KEY, b"semseal/v1/key-id")[:8].hex()),)
)
SIDE, H, CHANNELS = 64, 16, 8  # of the picture and of its features
REALS = H * H * CHANNELS
ROW = H * CHANNELS


def _graph(nodes, given, taken, constants) -> bytes:
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in given.items()]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in taken.items()]
    made = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([helper.make_node(*node[:3], **node[3]) for node in nodes], "g", inputs, outputs, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def transmitter() -> bytes:
    """Of each block of 4x4 pixels some, brought to unit power; a picture of [batch, 3, 64, 64] in a millisecond."""
    nodes = [
        ("SpaceToDepth", ["image"], ["blocks"], {"blocksize": 4}),
        ("Slice", ["blocks", "from", "to", "axis"], ["some"], {}),
        ("Add", ["some", "least"], ["features"], {}),
        ("Transpose", ["features"], ["last"], {"perm": [0, 2, 3, 1]}),
        ("Reshape", ["last", "flat"], ["reals"], {}),
        ("ReduceSumSquare", ["reals", "axis"], ["energy"], {}),
        ("Div", ["energy", "half"], ["power"], {}),
        ("Sqrt", ["power"], ["amplitude"], {}),
        ("Div", ["reals", "amplitude"], ["unit"], {}),
        ("Reshape", ["unit", "rows"], ["every_row"], {}),
        ("Gather", ["every_row", "index"], ["moved"], {"axis": 0}),
        ("Reshape", ["moved", "pairs"], ["symbols"], {}),
    ]
    given = {"image": (TensorProto.FLOAT, ["batch", 3, SIDE, SIDE]), "index": (TensorProto.INT32, ["batch", H])}
    constants = {"from": np.array([0]), "to": np.array([CHANNELS]), "axis": np.array([1]), "least": np.float32(0.1),
                 "flat": np.array([-1, REALS]), "half": np.float32(REALS / 2), "rows": np.array([-1, ROW]),
                 "pairs": np.array([-1, REALS // 2, 2])}  # fmt: skip
    return _graph(nodes, given, {"symbols": ["batch", REALS // 2, 2]}, constants)


def receiver() -> bytes:
    """The same backwards, every pixel of a block from those that were sent."""
    nodes = [
        ("Reshape", ["symbols", "rows"], ["every_row"], {}),
        ("Gather", ["every_row", "index"], ["moved"], {"axis": 0}),
        ("Reshape", ["moved", "places"], ["features"], {}),
        ("Transpose", ["features"], ["some"], {"perm": [0, 3, 1, 2]}),
        ("Concat", ["some"] * 6, ["blocks"], {"axis": 1}),
        ("DepthToSpace", ["blocks"], ["pixels"], {"blocksize": 4}),
        ("Clip", ["pixels", "zero", "one"], ["image"], {}),
    ]
    given = {"symbols": (TensorProto.FLOAT, ["frames", REALS // 2, 2]), "index": (TensorProto.INT32, ["batch", H])}
    constants = {"rows": np.array([-1, ROW]), "places": np.array([-1, H, H, CHANNELS]), "zero": np.float32(0),
                 "one": np.float32(1)}  # fmt: skip
    return _graph(nodes, given, {"image": ["batch", 3, SIDE, SIDE]}, constants)


FILES = {"transmitter.fp32.onnx": transmitter(), "receiver.fp32.onnx": receiver()}
ROWS = [
    {"engine": engine, "transmitter": name, "receiver": name, "psnr": {"0": 20.0, "10": 25.0, "20": 30.0}}
    for engine, name in (("reference", "reference"), ("onnxruntime-cpu", "fp32"), ("openvino", "fp32"))
]
ABOUT = {
    "format": FORMAT,
    "model": {"height": SIDE, "width": SIDE, "h": H, "w": H, "c": CHANNELS},
    "files": {},
    "snr_db": [10.0, 10.0],
    "precisions": ["fp32"],
    "engines": [],
    "training": {"channel": "awgn", "data": "photos"},
    "tools": {"onnx": "1.23.2"},
    "parity": {"data": "photos", "rows": ROWS},
}


class Place:
    """A folder with a sound deployment: a signed bundle, keyset, replay window, an audit and a benchmark of it."""

    def __init__(self, folder: Path) -> None:
        self.files, self.manifest = dict(FILES), dict(ABOUT)
        self.bundle, self.home, self.device = folder / "bundle", folder / "home", folder / "device"
        for made in (self.bundle, self.home, self.device):
            made.mkdir(mode=0o755, parents=True)
        self.key = self.home / "alice.key"
        (folder / "state").mkdir(mode=0o700)
        self.state = folder / "state" / "alice.replay"
        write_keyset(self.key, KEYSET)
        self.receive("old")
        self.results, self.benchmark = folder / "audit.json", folder / "bench.json"
        self.asked = {
            "keys": self.key,
            "two_way": True,
            "receives": True,
            "state": self.state,
            "owner": public_text(OWNER),
            "folder": self.device,
            "runs_only": True,
            "results": self.results,
            "benchmark": self.benchmark,
            "deadline_ms": 33.0,
        }
        self.audit = {"bundles": [], "settings": {"precisions": ["fp32"], "defenses": ["none", "mix"]}, "rows": [], "games": []}
        self.where = {"bundle": "bundle", "engine": "onnxruntime-cpu", "precision": "fp32", "defense": "mix", "batch": 1}
        self.times = [{"where": self.where, "stage": "link", "time": {"p50_ms": 4.0, "p99_ms": 6.0, "max_ms": 9.0}}]
        self.row("identification", "nothing", high=0.01, measure="rate")
        self.row("reused-stream", "sees")
        self.row("black-box", "sees", defense="none")
        self.write()

    def row(self, attack: str, verdict: str, **more) -> None:
        row = {"attack": attack, "defense": "mix", "precision": "fp32", "engine": "onnxruntime-cpu", "bundle": "bundle"}
        self.audit["games"].append({**row, "verdict": verdict, **more})

    def receive(self, session: str, key_id: str = KEYSET.keys[0].id) -> None:
        """As a receiver that took a frame and ended."""
        KeysetWindow(self.state).accept(Header("mix", session.encode().ljust(16), 0, key_id=key_id))

    def write_key(self, path: Path, key: bytes = KEY, mode: int = 0o600) -> None:
        path.write_text(f"semseal-key-v1\n{base64.b64encode(key).decode()}\n")
        path.chmod(mode)

    def write(self, text: bytes | None = None, audited: bool = True) -> None:
        """The bundle as its files and manifest are now, signed by hand, and what was measured of it."""
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        entries = {name: {"sha256": digests[name], "size": len(data)} for name, data in self.files.items()}
        digest = model_digest(digests["transmitter.fp32.onnx"], digests["receiver.fp32.onnx"]).hex()
        self.manifest = {**self.manifest, "files": entries, "model": {**self.manifest["model"], "digest": digest}}
        self.sign(json.dumps(self.manifest).encode() if text is None else text)
        for name, data in self.files.items():
            (self.bundle / name).parent.mkdir(exist_ok=True)
            (self.bundle / name).write_bytes(data)
        if audited:
            self.write_measured(digest)

    def sign(self, text: bytes) -> None:
        (self.bundle / "manifest.json").write_bytes(text)
        (self.bundle / "signature").write_bytes(OWNER.sign(b"semseal/v1/bundle\0" + text))

    def write_measured(self, digest: str) -> None:
        entry = {
            "name": "bundle",
            "digest": digest,
            "engines": ["onnxruntime-cpu"],
            "main_channel": "awgn",
            "eve_channel": "awgn",
        }
        self.audit["bundles"] = [entry]
        self.results.write_text(json.dumps(self.audit))
        self.benchmark.write_text(json.dumps({"bundles": {"bundle": {"digest": digest}}, "rows": self.times}))

    def graph(self, side: str = "transmitter") -> onnx.ModelProto:
        return onnx.load_from_string(self.files[f"{side}.fp32.onnx"])

    def put(self, model: onnx.ModelProto, side: str = "transmitter") -> None:
        self.files[f"{side}.fp32.onnx"] = model.SerializeToString()
        self.write()

    def add_constant(self, values, name: str = "more", raw: bool = True) -> None:
        """A constant that nothing uses."""
        model = self.graph()
        if raw:
            made = numpy_helper.from_array(values, name)
        else:
            kind = helper.np_dtype_to_tensor_dtype(values.dtype)
            made = helper.make_tensor(name, kind, values.shape, values.ravel().tolist())
        model.graph.initializer.append(made)
        self.put(model)
