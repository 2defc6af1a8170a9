"""Engines on an NVIDIA GPU, called like every engine: image or symbols and the scheme index in, one NumPy array out.

tensorrt, tensorrt-rtx                   a plan; one without an index input is completed by the scheme kernel
onnxruntime-cuda, onnxruntime-tensorrt   an ONNX graph

    pinned ── device ── scheme kernel ── plan ── device ── pinned       one CUDA graph for a shape of the inputs
    pinned ── device ── ONNX Runtime's CUDA graph ── device ── pinned   one stream, so neither copy can overtake it

Index values are checked on the host before anything is launched. A plan is executable code: load only one whose digest stands
in a manifest that you trust.
"""

import contextlib
import ctypes
import io
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.errors import EngineError
from semseal.runtime.gpu.device import Engine, Run, Shape, Tensor, capture, gathered, open_device, scattered, serve
from semseal.runtime.gpu.scheme_kernel import SchemeKernel, layout

if TYPE_CHECKING:
    from cuda.core import Buffer, Stream
    from cuda.core.graph import GraphBuilder

TENSORRT = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INSTALL = {
    "tensorrt": "pip install 'semseal[tensorrt]'; on a Jetson JetPack brings it",
    "tensorrt-rtx": "pip install 'semseal[rtx]'",
}
PROVIDERS = {"onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-tensorrt": "TensorrtExecutionProvider"}
LARGEST_BATCH = 64  # what the link sends at most in one run; a receiver may gather from twice as many frames
ORT_GRAPHS = 64  # its CUDA graphs are freed with the session only; shapes after that many run without one


def open_plan(name: str, plan: bytes) -> Engine:
    """Load a plan for ``tensorrt`` or ``tensorrt-rtx``.

    With an ``index`` input it does what its graph did. Without one it is a bare network, ``image`` to features or features to
    ``image``, with features [batch, c, h, w] in float32 or float16. Either way the engine takes image float32 [batch, 3,
    height, width] or symbols float32 [frames, N, 2], and index int32 [batch, h]. Raises EngineError with reason and fix; the
    engine raises ValueError for inputs that do not fit.
    """
    loaded = Plan(name, plan)
    return serve(loaded.device, loaded.stream, loaded.move, loaded.prepare)


def open_onnxruntime_gpu(name: str, graph: bytes) -> Engine:
    """Load an ONNX graph for ``onnxruntime-cuda`` or ``onnxruntime-tensorrt``, all of whose nodes must run there.

    Raises EngineError with reason and fix; the engine raises ValueError for inputs that do not fit.
    """
    try:
        import onnxruntime
    except ImportError:
        raise EngineError(f"engine {name} needs ONNX Runtime for GPUs: pip install 'semseal[gpu]'") from None
    if PROVIDERS[name] not in onnxruntime.get_available_providers():
        raise EngineError(
            f"engine {name}: the installed onnxruntime {onnxruntime.__version__} has no {PROVIDERS[name]}; it is the one for "
            "CPUs, which takes the place of the other: pip uninstall -y onnxruntime onnxruntime-gpu, then "
            "pip install 'semseal[gpu]'"
        )
    device = open_device(name, (f"onnxruntime {onnxruntime.__version__}", onnxruntime.cuda_version or "0"))
    stream = device.create_stream()
    session = _open_session(name, onnxruntime, graph, stream)
    data_name, index_name = (node.name for node in session.get_inputs())
    (result,) = session.get_outputs()
    made = 0

    def prepare(data_shape: Shape, index_shape: Shape) -> Run:
        nonlocal made
        made += 1
        data, index = Tensor(device, stream, data_shape), Tensor(device, stream, index_shape, np.int32)
        output = Tensor(device, stream, (index_shape[0], *result.shape[1:]))
        binding = session.io_binding()
        binding.bind_input(data_name, "cuda", 0, np.float32, data_shape, int(data.device.handle))
        binding.bind_input(index_name, "cuda", 0, np.int32, index_shape, int(index.device.handle))
        binding.bind_output(result.name, "cuda", 0, np.float32, output.host.shape, int(output.device.handle))
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(made) if made <= ORT_GRAPHS else "-1")  # -1: no capture
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")

        def launch() -> None:
            data.upload(stream)
            index.upload(stream)
            session.run_with_iobinding(binding, options)
            output.download(stream)

        return Run(data, index, output, launch, keeps=binding)

    return serve(device, stream, gathered, prepare)


@cache  # TensorRT knows one logger in a process, which must outlive all that was made with it
def tensorrt_library(name: str) -> tuple[Any, Any]:
    """The module of ``tensorrt`` or ``tensorrt-rtx`` and a logger that prints nothing and keeps ``errors``.

    Raises EngineError when the package or a library of it is missing.
    """
    try:
        trt = import_module(TENSORRT[name])
        base = trt.ILogger
    except (ImportError, OSError, AttributeError) as error:  # a package without its libraries fails in any of these ways
        raise EngineError(f"engine {name} is not installed or lacks its libraries ({error}): {INSTALL[name]}") from None

    class Logger(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (self.ERROR, self.INTERNAL_ERROR):
                self.errors.append(message)

    return trt, Logger()


def deserialize(name: str, plan: bytes) -> Any:
    """The ICudaEngine of a plan. Raises EngineError when it is none, or one for another version or GPU."""
    trt, logger = tensorrt_library(name)
    logger.errors.clear()
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            f"engine {name} {trt.__version__} cannot load these {len(plan)} bytes: {_heard(logger)}. A plan works with the "
            "version that built it, on the GPUs that it was built for: build it again for this machine"
        )
    return engine


def _heard(logger: Any) -> str:
    return "; ".join(dict.fromkeys(logger.errors)) or "it gave no reason"


def _cuda_of_wheel(module: str) -> tuple[str, str] | None:
    """The TensorRT that came as a wheel, and its CUDA version; None for one that came with the system."""
    for major in ("13", "12"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return f"{module}_cu{major} {metadata.version(f'{module}_cu{major}')}", major
    return None


class Plan:
    """A loaded plan on its stream; ``prepare`` makes the buffers and the CUDA graph for one shape of the inputs."""

    def __init__(self, name: str, plan: bytes) -> None:
        """Raises EngineError as ``open_plan``."""
        self._name = name
        self._trt, self._logger = tensorrt_library(name)
        self.device = device = open_device(name, _cuda_of_wheel(TENSORRT[name]))
        self._engine = engine = deserialize(name, plan)
        self.stream = device.create_stream()
        tensors = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._inputs = [tensor for tensor in tensors if engine.get_tensor_mode(tensor) == self._trt.TensorIOMode.INPUT]
        outputs = [tensor for tensor in tensors if tensor not in self._inputs]
        self._output = outputs[0]
        self.prepare: Callable[[Shape, Shape], Run]
        self.move: Callable[[int, NDArray[np.int32]], NDArray[np.int32]]
        if len(outputs) == 1 and self._inputs[1:] == ["index"]:
            self.prepare, self.move = self._with_index, gathered
        elif len(outputs) == 1 and self._inputs == ["image"]:
            self.prepare, self.move = self._bare_transmitter, scattered
            self._kernel, self._dtype = self._scheme_kernel(self._output)
        elif outputs == ["image"] and len(self._inputs) == 1:
            self.prepare, self.move = self._bare_receiver, gathered
            self._kernel, self._dtype = self._scheme_kernel(self._inputs[0])
        else:
            raise EngineError(
                f"engine {name}: the plan takes {', '.join(self._inputs)} and gives {', '.join(outputs)}; wanted is one "
                "output, and an index as the second input, or image to features, or features to image"
            )
        # contexts run one after the other, so they share one scratch memory
        self._scratch_size = max(256, engine.device_memory_size_v2)
        self._scratch = device.allocate(self._scratch_size, stream=self.stream)

    def _scheme_kernel(self, tensor: str) -> tuple[SchemeKernel, "np.dtype[Any]"]:
        shape = [int(size) for size in self._engine.get_tensor_shape(tensor)]
        dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(tensor)))
        if len(shape) != 4 or dtype not in (np.float32, np.float16):
            raise EngineError(f"engine {self._name}: {tensor} must be float [batch, c, h, w], the plan has {dtype} {shape}")
        try:
            return SchemeKernel(self.device, layout(*shape[1:]), dtype), dtype
        except Exception as error:  # NVRTC missing or too old for this GPU, features too large
            raise EngineError(
                f"engine {self._name}: no scheme kernel for features {shape[1:]} on {self.device.name}: {error}; "
                "pip install -U nvidia-cuda-nvrtc, or use a plan with an index input"
            ) from None

    def _with_index(self, data_shape: Shape, index_shape: Shape) -> Run:
        context = self._context(dict(zip(self._inputs, (data_shape, index_shape), strict=True)))
        data, index = self._tensor(data_shape), self._tensor(index_shape, np.int32)
        output = self._tensor(context.get_tensor_shape(self._output))
        self._connect(context, {self._inputs[0]: data.device, "index": index.device, self._output: output.device})
        return self._captured(context, data, index, output, lambda stream: self._enqueue(context))

    def _bare_transmitter(self, data_shape: Shape, index_shape: Shape) -> Run:
        kernel, batch = self._kernel, data_shape[0]
        _fits("index", index_shape, (batch, kernel.layout.h))
        context = self._context({"image": data_shape})
        data, index = self._tensor(data_shape), self._tensor(index_shape, np.int32)
        output = self._tensor((batch, kernel.layout.n_symbols, 2))
        features, workspace = self._features(batch), kernel.workspace(self.device, batch, self.stream)
        self._connect(context, {"image": data.device, self._output: features})

        def work(stream: "Stream | GraphBuilder") -> None:
            self._enqueue(context)
            kernel.transmit(stream, features, index.device, output.device, workspace, batch)

        return self._captured(context, data, index, output, work)

    def _bare_receiver(self, data_shape: Shape, index_shape: Shape) -> Run:
        kernel, batch = self._kernel, index_shape[0]
        _fits("index", index_shape, (batch, kernel.layout.h))
        _fits("symbols", data_shape, (data_shape[0], kernel.layout.n_symbols, 2))
        context = self._context({self._inputs[0]: (batch, kernel.layout.c, kernel.layout.h, kernel.layout.w)})
        data, index = self._tensor(data_shape), self._tensor(index_shape, np.int32)
        output = self._tensor(context.get_tensor_shape("image"))
        features = self._features(batch)
        self._connect(context, {self._inputs[0]: features, "image": output.device})

        def work(stream: "Stream | GraphBuilder") -> None:
            kernel.receive(stream, data.device, index.device, features, batch)
            self._enqueue(context)

        return self._captured(context, data, index, output, work)

    def _tensor(self, shape: Iterable[int], dtype: Any = np.float32) -> Tensor:
        return Tensor(self.device, self.stream, tuple(shape), dtype)

    def _features(self, batch: int) -> "Buffer":
        size = 2 * batch * self._kernel.layout.n_symbols * self._dtype.itemsize
        return self.device.allocate(size, stream=self.stream)

    def _context(self, shapes: dict[str, Shape]) -> Any:
        """A context for these shapes alone: a CUDA graph is undefined once the context that it was captured from changes."""
        self._logger.errors.clear()
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._name == "tensorrt-rtx":
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            # a graph would keep the fallback kernels, which run until those for the shape are compiled
            config.dynamic_shapes_kernel_specialization_strategy = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(strategy)
        if context is None:
            raise EngineError(f"engine {self._name} makes no context: {_heard(self._logger)}")
        context.set_device_memory(int(self._scratch.handle), self._scratch_size)
        for tensor, shape in shapes.items():
            if not context.set_input_shape(tensor, shape):
                low, _, high = self._engine.get_tensor_profile_shape(tensor, 0)
                raise ValueError(f"the plan takes {tensor} from {list(low)} to {list(high)}, got {list(shape)}")
        return context

    def _connect(self, context: Any, addresses: dict[str, "Buffer"]) -> None:
        for tensor, buffer in addresses.items():
            context.set_tensor_address(tensor, int(buffer.handle))

    def _captured(
        self, context: Any, data: Tensor, index: Tensor, output: Tensor, work: Callable[["Stream | GraphBuilder"], None]
    ) -> Run:
        """The work, and the copies to and from the GPU around it, as a CUDA graph."""

        def everything(stream: "Stream | GraphBuilder") -> None:
            data.upload(stream)
            index.upload(stream)
            work(stream)
            output.download(stream)

        everything(self.stream)  # TensorRT allocates and compiles in a first run, which a capture cannot take
        self.stream.sync()
        if self._name == "tensorrt-rtx" and not context.is_stream_capturable(int(self.stream.handle)):
            raise EngineError(
                "engine tensorrt-rtx: this plan allocates memory while it runs, so it cannot be captured in a CUDA graph: "
                "build it with the flag REQUIRE_USER_ALLOCATION"
            )
        graph = capture(self.stream, everything)
        return Run(data, index, output, launch=lambda: graph.launch(self.stream), keeps=(context, work))

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(int(self.stream.handle)):
            raise EngineError(f"engine {self._name} failed to run: {_heard(self._logger)}")


def _fits(tensor: str, shape: Shape, wanted: Shape) -> None:
    if shape != wanted:
        raise ValueError(f"{tensor} must be {list(wanted)}, got {list(shape)}")


def _open_session(name: str, onnxruntime: Any, graph: bytes, stream: "Stream") -> Any:
    """A session all of whose nodes run on the provider of ``name``, on ``stream``."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    settings = {"device_id": "0", "user_compute_stream": str(int(stream.handle))}
    if name == "onnxruntime-cuda":
        settings |= {"enable_cuda_graph": "1", "use_tf32": "0"}
    else:
        settings |= {"trt_cuda_graph_enable": "1", **tensorrt_profiles(onnxruntime, graph)}
    session, reason = None, ""
    with contextlib.redirect_stdout(io.StringIO()):  # both print what is raised here
        onnxruntime.preload_dlls()
        try:
            session = onnxruntime.InferenceSession(graph, options, [(PROVIDERS[name], settings)], enable_fallback=0)
        except Exception as error:  # its exceptions share no narrower base
            reason = str(error)
    if session is None or PROVIDERS[name] not in session.get_providers():
        missing = _missing_library(onnxruntime, name)
        if not missing:
            raise EngineError(f"engine {name} cannot load the graph: {reason or 'ONNX Runtime gave no reason'}")
        raise EngineError(
            f"engine {name} lacks a library: {missing}; pip install 'semseal[gpu]' brings CUDA and cuDNN; libnvinfer comes "
            "with the TensorRT of that major version"
        )
    refuse_other_providers(name, session)
    return session


def tensorrt_profiles(onnxruntime: Any, graph: bytes) -> dict[str, str]:
    """Provider options that let one engine take every batch; without them TensorRT builds anew for each new size."""
    sizes = {"batch": (1, 1, LARGEST_BATCH), "frames": (1, 1, 2 * LARGEST_BATCH)}
    inputs = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).get_inputs()

    def shapes(k: int) -> str:
        return ",".join(f"{x.name}:{'x'.join(str(sizes[d][k] if d in sizes else d) for d in x.shape)}" for x in inputs)

    return {f"trt_profile_{which}_shapes": shapes(k) for k, which in enumerate(("min", "opt", "max"))}


def refuse_other_providers(name: str, session: Any) -> None:
    """Raises EngineError when ONNX Runtime gave a node of the session to another provider than that of engine ``name``."""
    others = [
        f"{node.name} ({node.op_type}, {part.ep_name})"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != PROVIDERS[name]
        for node in part.get_nodes()
    ]
    if others:
        raise EngineError(
            f"engine {name}: {len(others)} nodes would not run on {PROVIDERS[name]}: {', '.join(others[:8])}; "
            "use a graph without them, or another engine"
        )


def _missing_library(onnxruntime: Any, name: str) -> str:
    """What the loader says of the provider's library, which ONNX Runtime only logs; empty when it loads."""
    library = f"libonnxruntime_providers_{name.removeprefix('onnxruntime-')}.so"
    try:
        ctypes.CDLL(str(Path(onnxruntime.__file__).parent / "capi" / library))
    except OSError as error:
        return str(error)
    return ""
