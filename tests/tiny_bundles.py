"""What a bundle of every kind of file is written of, for the tests of the reader and the writer."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper
from semseal.runtime.signing import public_text

OWNER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"e" * 32)
PIN = public_text(OWNER)
MODEL = {"height": 8, "width": 8, "h": 2, "w": 2, "c": 2}
ABOUT = {"model": MODEL, "snr_db": [10.0, 10.0], "precisions": ["fp32", "int8"]}
PLAN = "engines/transmitter.fp32.tensorrt-rtx.engine"


def tiny(name, **more):
    """A whole ONNX file of some 100 bytes; no link could use it."""
    x, y = (helper.make_tensor_value_info(value, TensorProto.FLOAT, [1]) for value in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"], name=name)], "g", [x], [y], **more)
    return helper.make_model(graph).SerializeToString()


FILES = {
    "transmitter.fp32.onnx": tiny("t"),
    "receiver.fp32.onnx": tiny("r"),
    "transmitter.int8.onnx": tiny("t8"),
    "receiver.int8.onnx": tiny("r8"),
    PLAN: b"a plan",
    f"{PLAN}.json": b"{}",
}
