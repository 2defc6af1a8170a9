"""semseal: semantic communication links on ONNX engines, and what an eavesdropper sees of them.

    tx = Transmitter("edge", key="alice.key", defense="mix")
    frames = tx.send(images)                                        images float32 [batch, 3, height, width] in 0..1
    images_hat = Receiver("edge", key="alice.key").receive(frames)

These names are the public interface. Each is loaded when it is first used, so that ``import semseal`` costs nothing and a link
runs where only NumPy and an engine are installed; ``audit`` and ``bench`` need the extras of these names.
"""

import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime reads it when it is imported, which export and the tests do themselves; see semseal.runtime.libraries
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from semseal.runtime import errors
    from semseal.runtime.audit.run import audit
    from semseal.runtime.bench.run import bench
    from semseal.runtime.bundle import open_bundle
    from semseal.runtime.link import Frame, Receiver, Transmitter
    from semseal.runtime.trust.check import check

    __version__: str

__all__ = ["Frame", "Receiver", "Transmitter", "__version__", "audit", "bench", "check", "errors", "open_bundle"]

_MODULES = {
    "Frame": "semseal.runtime.link",
    "Receiver": "semseal.runtime.link",
    "Transmitter": "semseal.runtime.link",
    "audit": "semseal.runtime.audit.run",
    "bench": "semseal.runtime.bench.run",
    "check": "semseal.runtime.trust.check",
    "open_bundle": "semseal.runtime.bundle",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module, metadata

    if name == "__version__":
        found: Any = metadata.version("semseal")
    elif name == "errors":
        found = import_module("semseal.runtime.errors")
    elif name in _MODULES:
        found = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
