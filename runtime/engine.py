"""Inference engines. All have one shape: ``engine = open_engine(name, graph)``, then ``outputs = engine(*inputs)``.

onnxruntime-cpu    ONNX Runtime on the CPU; inputs and outputs are NumPy arrays
"""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

ENGINES = ("onnxruntime-cpu",)

Engine = Callable[..., NDArray[Any]]


class EngineError(RuntimeError):
    """An engine that cannot be had; the message says why and what mends it."""


def open_engine(name: str, graph: bytes, threads: int | None = None) -> Engine:
    """Load an ONNX graph with one output. The engine takes its inputs in the graph's order.

    ``threads`` limits the CPU threads (None: all cores). Raises EngineError for an engine that cannot be had.
    """
    if name not in ENGINES:
        raise EngineError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    if threads is not None and threads < 1:
        raise EngineError(f"threads must be at least 1, got {threads}")
    try:
        import onnxruntime
    except ImportError:
        raise EngineError(f"engine {name} needs ONNX Runtime: pip install 'semseal[cpu]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no narrower base
        raise EngineError(f"engine {name} cannot load the graph: {error}") from None
    names = [node.name for node in session.get_inputs()]

    def run(*inputs: NDArray[Any]) -> NDArray[Any]:
        output: NDArray[Any] = session.run(None, dict(zip(names, inputs, strict=True)))[0]
        return output

    return run
