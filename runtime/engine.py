"""Inference engines. All have one shape: ``engine = open_engine(name, program)``, then ``output = engine(*inputs)``.

onnxruntime-cpu        ONNX Runtime on the CPU
openvino               OpenVINO on the CPU: the fastest there, and the only one that computes INT8 graphs in 8 bits there
onnxruntime-cuda       ONNX Runtime on an NVIDIA GPU; runs INT8 graphs, more slowly than float32 ones
onnxruntime-tensorrt   ONNX Runtime with TensorRT on an NVIDIA GPU
tensorrt               a TensorRT plan, built for this device and version
tensorrt-rtx           a TensorRT-RTX plan, built ahead of time for named GPU generations; not for compute capability 9.0

The program is an ONNX graph, or for the last two a plan (see ``Bundle.program``). Inputs are those of the program, in its
order, whatever their number, shapes and types; inputs and output are NumPy arrays. On an H100 and an H200
onnxruntime-cuda ran packaged graphs within 1e-6 dB of the CPU in fp32, 0.0024 in fp16 and 0.026 in int8; no other GPU engine
has run on hardware.

The libraries' telemetry is off (``semseal.runtime.libraries``). A forked child may use an engine for the CPU that its parent
opened, let go of it, and end as it likes: what the parent opened is never freed there. One on a GPU is opened after the fork.
"""

import functools
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.errors import EngineError
from semseal.runtime.gpu.device import MAX_KEPT_SHAPES, Engine
from semseal.runtime.libraries import forks, load_onnxruntime, load_openvino, never_freed_by_a_child

_SMALL = 2**17  # bytes of an input, below which a copy costs less than telling OpenVINO where it lies

ON_CPU = ("onnxruntime-cpu", "openvino")
MAX_THREADS = 512  # of one engine: thousands take a minute to start, or all memory
ENGINES = (*ON_CPU, "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx")


def open_engine(name: str, program: bytes, threads: int | None = None) -> Engine:
    """Load a program with one output. The engine takes its inputs in the program's order.

    ``threads`` limits the CPU threads (None: all cores); an engine on a GPU has none to limit. Raises EngineError for an
    engine that cannot be had: nothing else runs in its place.
    """
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise EngineError(f"threads must be from 1 to {MAX_THREADS}, got {threads}", "leave it out to use every core")
    if name == "onnxruntime-cpu":
        return never_freed_by_a_child(_onnxruntime_cpu(program, threads))
    if name == "openvino":
        return never_freed_by_a_child(_openvino(program, threads))
    if name not in ENGINES:
        raise EngineError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}", "semseal doctor tells which work here")
    if threads is not None:
        raise EngineError(f"threads={threads} is for engines on the CPU; {name} runs on the GPU", "leave threads out")
    from semseal.runtime.gpu import engines as gpu

    if name.startswith("onnxruntime"):
        return never_freed_by_a_child(gpu.open_onnxruntime_gpu(name, program))
    return never_freed_by_a_child(gpu.open_plan(name, program))


def open_mixing(name: str, program: bytes, side: str, reals: int, channels: int) -> Any:
    """A GPU's engine of a side, ``FusedMix``, that mixes in kernels of its own what the program without mix gives or takes.

    None where there are none for this GPU, and a warning says why: the graph with mix can do without. Raises EngineError for
    an engine that cannot be had.
    """
    from semseal.runtime.gpu import engines, mixed

    def opened() -> mixed.Network:
        return (
            engines.open_network(name, program, mixes=True) if name.startswith("onnxruntime") else engines.Plan(name, program)
        )

    network = opened()
    try:
        again = opened if name == "onnxruntime-cuda" else None
        return never_freed_by_a_child(mixed.FusedMix(network, side, reals, channels, again))
    except EngineError as error:
        warnings.warn(f"engine {name} mixes in its graph, which is slower: {error.message}", stacklevel=2)
        return None


def _onnxruntime_cpu(graph: bytes, threads: int | None) -> Engine:
    onnxruntime = load_onnxruntime("onnxruntime-cpu")
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
    return never_freed_by_a_child(load_openvino("openvino").Core())


class _Compiled:
    """A graph as one process compiled it: a forked child finds its parent's lock held and its parent's requests busy.

    Those of the parent are kept, not freed: freeing them would wait for threads that are gone.
    """

    def __init__(self, graph: bytes) -> None:
        self.lock = threading.Lock()
        self.model = _openvino_core().read_model(graph, b"")
        self.requests: dict[tuple[tuple[int, ...], ...], _Request] = {}  # one for each shape: fixed shapes are faster


class _Request:
    """A graph with fixed shapes and the memory of its inputs. Not for two threads at once."""

    def __init__(self, request: Any, inputs: int) -> None:
        self._request, self._tensor = request, load_openvino("openvino").Tensor
        own = [request.get_input_tensor(i).data for i in range(inputs)]
        self._copied = [(i, memory) for i, memory in enumerate(own) if memory.nbytes < _SMALL]
        self._shared = [(i, memory.dtype) for i, memory in enumerate(own) if memory.nbytes >= _SMALL]

    def __call__(self, inputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
        # as infer(list(inputs)), which takes 10 us more for every input
        for i, memory in self._copied:
            memory[...] = inputs[i]
        # kept until the end, because a tensor does not keep the memory that it shares
        shared = [(i, np.require(inputs[i], dtype, ["C", "W"])) for i, dtype in self._shared]
        for i, array in shared:
            self._request.set_input_tensor(i, self._tensor(array, shared_memory=True))
        self._request.infer(share_inputs=True, share_outputs=True)
        output: NDArray[Any] = self._request.get_output_tensor(0).data.copy()
        return output


def _openvino(graph: bytes, threads: int | None) -> Engine:
    core = _openvino_core()
    # without the last line it computes float32 graphs in bfloat16 where the processor has it
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = {forks(): _Compiled(graph)}
    except RuntimeError as error:
        raise EngineError(f"engine openvino cannot load the graph: {error}") from None
    names = [port.get_any_name() for port in compiled[forks()].model.inputs]

    def run(*inputs: NDArray[Any]) -> NDArray[Any]:
        here = compiled.get(forks()) or compiled.setdefault(forks(), _Compiled(graph))
        shapes = tuple(array.shape for array in inputs)
        with here.lock:
            if shapes not in here.requests:
                here.model.reshape({name: list(shape) for name, shape in zip(names, shapes, strict=True)})
                try:
                    made = core.compile_model(here.model, "CPU", settings).create_infer_request()
                except RuntimeError as error:
                    raise EngineError(f"engine openvino cannot compile the graph for inputs {list(shapes)}: {error}") from None
                here.requests[shapes] = _Request(made, len(shapes))
            request = here.requests[shapes] = here.requests.pop(shapes)
            if len(here.requests) > MAX_KEPT_SHAPES:
                del here.requests[next(iter(here.requests))]  # the one not used for longest
            return request(inputs)

    return run
