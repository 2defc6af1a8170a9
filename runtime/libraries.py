"""The libraries behind the engines: their names, the commands that install them, and how they are loaded.

Two of them report to their makers unless they are told not to. ONNX Runtime from 1.32 on writes ``deviceid`` and a database of
queued events into ``~/.cache/Microsoft``; OpenVINO writes ``~/intel/openvino_ga_cid`` and sends an event to Google Analytics
when it is imported. Both are off here, from before the library is imported, unless the user asks for it:

    ONNX Runtime    importing semseal sets ORT_DISABLE_TELEMETRY=1, unless the environment has the variable (0: telemetry is on)
    OpenVINO        its package openvino_telemetry is hidden while it is imported, unless ``~/intel/openvino_telemetry`` exists:
                    the file that ``opt_in_out --opt_in`` and ``--opt_out`` of OpenVINO write

A library that the program imported before semseal did is left as it is.
"""

import ctypes
import os
import sys
import weakref
from importlib import import_module
from typing import Any, TypeVar

from semseal.runtime.errors import EngineError

MODULES = {
    "onnxruntime-cpu": "onnxruntime",
    "openvino": "openvino",
    "onnxruntime-cuda": "onnxruntime",
    "onnxruntime-tensorrt": "onnxruntime",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}
# the two flavours of ONNX Runtime are one folder and overwrite each other
_ONNXRUNTIME_GPU = "pip uninstall -y onnxruntime onnxruntime-gpu; pip install 'cuda-core[cu13]' 'onnxruntime-gpu[cuda,cudnn]'"
INSTALL = {
    "onnxruntime-cpu": "pip install onnxruntime",
    "openvino": "pip install openvino",
    "onnxruntime-cuda": _ONNXRUNTIME_GPU,
    "onnxruntime-tensorrt": _ONNXRUNTIME_GPU,
    "tensorrt": "pip install tensorrt 'cuda-core[cu13]'; on a Jetson JetPack brings TensorRT",
    "tensorrt-rtx": "pip install tensorrt-rtx 'cuda-core[cu13]'",
}


def load_onnxruntime(engine: str) -> Any:
    """The module onnxruntime, for ``engine``. Raises EngineError with the fix where it cannot be imported."""
    return _load(engine)


def load_openvino(engine: str) -> Any:
    """The module openvino, for ``engine``. Raises EngineError with the fix where it cannot be imported."""
    hidden = "openvino_telemetry"
    answer = os.path.join(os.path.expanduser("~"), "intel", hidden)  # unlike pathlib it takes a user without a home
    if "openvino" in sys.modules or hidden in sys.modules or os.path.exists(answer):
        return _load(engine)
    sys.modules[hidden] = None  # type: ignore[assignment]  # an import of it fails, and OpenVINO goes on without
    try:
        return _load(engine)
    finally:
        del sys.modules[hidden]


def _load(engine: str) -> Any:
    try:
        return import_module(MODULES[engine])
    except ImportError as error:
        raise EngineError(f"engine {engine} cannot import {MODULES[engine]}: {error}", INSTALL[engine]) from None


_forks = 0
_opened: "weakref.WeakSet[Any]" = weakref.WeakSet()
Opened = TypeVar("Opened")


def forks() -> int:
    """How many forks lie between this process and the one that imported semseal.

    What a library or a lock holds belongs to the process in which it was made: in a forked child the threads of its parent are
    gone, and a lock that one of them held is held for ever. A process id does not tell: a child may have its parent's.
    """
    return _forks


def never_freed_by_a_child(opened: Opened) -> Opened:
    """The same object, which a forked child does not free, not even when it ends.

    It holds threads: the child has none of them, and to free it would wait for them for ever.
    """
    _opened.add(opened)
    return opened


def _in_child() -> None:
    global _forks
    _forks += 1
    for opened in list(_opened):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(opened))  # a reference that nobody gives back
    _opened.clear()


os.register_at_fork(after_in_child=_in_child)
