"""Deployments for the tests of ``semseal check``: a sound one, and the tools to spoil it."""

import base64
import hashlib
import json
from pathlib import Path

import onnx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from semseal.runtime.bundle import model_digest, open_bundle
from semseal.runtime.signing import public_text

OWNER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
KEY = bytes(range(7, 39))
MODEL = "photos-10db"


class Place:
    """A folder with a sound deployment: a signed bundle of one precision, a key file, an audit and a benchmark of it."""

    def __init__(self, folder: Path) -> None:
        source = open_bundle(MODEL)
        names = ("transmitter.fp32.onnx", "receiver.fp32.onnx")
        self.files = {name: source.read(name) for name in names}
        self.manifest = {**source.manifest, "precisions": ["fp32"]}
        self.bundle, self.home, self.device = folder / "bundle", folder / "home", folder / "device"
        for made in (self.bundle, self.home, self.device):
            made.mkdir(mode=0o755, parents=True)
        self.key = self.home / "alice.key"
        self.write_key(self.key)
        self.results, self.benchmark = folder / "audit.json", folder / "bench.json"
        self.asked = {
            "keys": self.key,
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
        entry = {"name": "bundle", "digest": digest, "engines": ["onnxruntime-cpu"], "main_channel": "awgn", "eve_channel": "awgn"}
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
            made = onnx.numpy_helper.from_array(values, name)
        else:
            kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
            made = onnx.helper.make_tensor(name, kind, values.shape, values.ravel().tolist())
        model.graph.initializer.append(made)
        self.put(model)
