"""Inference engines. All have one shape: ``engine = open_engine(name, program)``, then ``output = engine(*inputs)``.

onnxruntime-cpu        ONNX Runtime on the CPU
openvino               OpenVINO on the CPU: the fastest there, and the only one that computes INT8 graphs in 8 bits there
onnxruntime-cuda       ONNX Runtime on an NVIDIA GPU
onnxruntime-tensorrt   ONNX Runtime with TensorRT on an NVIDIA GPU
tensorrt               a TensorRT plan, built for this device and version
tensorrt-rtx           a TensorRT-RTX plan, built ahead of time for named GPU generations

The program is an ONNX graph, or for the last two a plan (see ``Bundle.program``). Inputs and output are NumPy arrays.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray
from semseal.runtime.errors import EngineError

ENGINES = ("onnxruntime-cpu", "openvino", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx")

Engine = Callable[..., NDArray[Any]]


def open_engine(name: str, program: bytes, threads: int | None = None) -> Engine:
    """Load a program with one output. The engine takes its inputs in the graph's order.

    ``threads`` limits the CPU threads (None: all cores); an engine on a GPU has none to limit. Raises EngineError for an
    engine that cannot be had: nothing else runs in its place.
    """
    if threads is not None and threads < 1:
        raise EngineError(f"threads must be at least 1, got {threads}")
    if name == "onnxruntime-cpu":
        return _onnxruntime_cpu(program, threads)
    if name == "openvino":
        return _openvino(program, threads)
    if name not in ENGINES:
        raise EngineError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    if threads is not None:
        raise EngineError(f"threads={threads} is for engines on the CPU; {name} runs on the GPU")
    from semseal.runtime.gpu import engines as gpu

    if name.startswith("onnxruntime"):
        return gpu.open_onnxruntime_gpu(name, program)
    return gpu.open_plan(name, program)


def _onnxruntime_cpu(graph: bytes, threads: int | None) -> Engine:
    try:
        import onnxruntime
    except ImportError:
        raise EngineError("engine onnxruntime-cpu needs ONNX Runtime: pip install 'semseal[cpu]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no narrower base
        raise EngineError(f"engine onnxruntime-cpu cannot load the graph: {error}") from None
    names = [node.name for node in session.get_inputs()]

    def run(*inputs: NDArray[Any]) -> NDArray[Any]:
        output: NDArray[Any] = session.run(None, dict(zip(names, inputs, strict=True)))[0]
        return output

    return run


@functools.cache
def _openvino_core() -> Any:
    """One for the process: its CPU plugin sets a signal stack, and of several the last to go would restore a freed one."""
    import openvino

    return openvino.Core()


def _openvino(graph: bytes, threads: int | None) -> Engine:
    try:
        core = _openvino_core()
    except ImportError:
        raise EngineError("engine openvino needs OpenVINO: pip install 'semseal[openvino]'") from None
    # without the last line it computes float32 graphs in bfloat16 where the processor has it
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        model = core.read_model(graph, b"")
    except RuntimeError as error:
        raise EngineError(f"engine openvino cannot load the graph: {error}") from None
    names = [port.get_any_name() for port in model.inputs]
    requests: dict[tuple[tuple[int, ...], ...], Any] = {}  # compiled once for each shape: fixed shapes are faster
    lock = threading.Lock()

    def run(*inputs: NDArray[Any]) -> NDArray[Any]:
        shapes = tuple(array.shape for array in inputs)
        with lock:
            if shapes not in requests:
                model.reshape({name: list(shape) for name, shape in zip(names, shapes, strict=True)})
                requests[shapes] = core.compile_model(model, "CPU", settings).create_infer_request()
            output: NDArray[Any] = requests[shapes].infer(list(inputs), share_inputs=True)[0]
        return output

    return run
