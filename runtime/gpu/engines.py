"""Engines on an NVIDIA GPU, called like every engine: the inputs of the graph or plan in its order, one NumPy array out.

tensorrt, tensorrt-rtx                   a plan; one without an index input is completed by the scheme kernel
onnxruntime-cuda, onnxruntime-tensorrt   an ONNX graph

    pinned ── device ── scheme kernel ── plan ── device ── pinned       one CUDA graph for a shape of the inputs
    pinned ── device ── ONNX Runtime ── device ── pinned                the same (``semseal.runtime.gpu.request``); where it
                                                                        cannot be captured, three launches on one stream

The values of ``index``, ``mix_rows`` and ``mix_columns``, by which graphs gather, are checked on the host before anything is
launched. A plan is executable code: load only one whose digest stands in a manifest that you trust. ONNX Runtime's telemetry
is off (``semseal.runtime.libraries``).
"""

import contextlib
import ctypes
import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from semseal.runtime.environment import compute_capability
from semseal.runtime.errors import EngineError
from semseal.runtime.gpu.cut import computes_in_half, cut
from semseal.runtime.gpu.device import (
    Engine,
    Inputs,
    Lane,
    Port,
    Run,
    Shape,
    Tensors,
    axis_sizes,
    gathered,
    open_device,
    output_shape,
    scattered,
    serve,
)
from semseal.runtime.gpu.request import Network, lane_of, request
from semseal.runtime.gpu.rows import Pictured, Rowed
from semseal.runtime.gpu.scheme_kernel import SchemeKernel, tile_layout
from semseal.runtime.libraries import INSTALL, MODULES, load_onnxruntime

if TYPE_CHECKING:
    from cuda.core import Buffer, Stream
    from cuda.core.graph import GraphBuilder

TENSORRT = ("tensorrt", "tensorrt-rtx")
PROVIDERS = {"onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-tensorrt": "TensorrtExecutionProvider"}
NUMBERS = ("bool", "double", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = {f"tensor({name})": np.dtype(name) for name in NUMBERS} | {"tensor(float)": np.dtype(np.float32)}  # in ONNX Runtime
# Options of the CUDA provider, by what the convolutions are in; the next where the first fails. In float16 the best of cuDNN's
# ready algorithms are FFTs, three times slower than what it builds for a convolution with its bias. In float32 the channels
# last make it turn every tensor twice, and with the channels first fuse_conv_bias gives wrong answers (1.31.1).
LAYOUTS: dict[str, list[dict[str, str]]] = {
    "half": [{"prefer_nhwc": "1", "fuse_conv_bias": "1"}, {"prefer_nhwc": "1"}, {}],
    "float": [{"prefer_nhwc": "0"}],
}
MAX_BATCH = 64  # images that the link sends in one run; a receiver may gather from twice as many frames
MAX_CUDA_GRAPHS = 64  # ONNX Runtime frees its CUDA graphs with the session only; shapes after that many run without one


def open_plan(name: str, plan: bytes) -> Engine:
    """Load a plan for ``tensorrt`` or ``tensorrt-rtx``.

    The engine takes the plan's inputs. A bare network has none for the index: ``image`` to ``features`` or ``features`` to
    ``image``, with features [batch, c, h, w] in float32 or float16. Its engine takes image float32 [batch, 3, height, width]
    or symbols float32 [frames, N, 2], and index int32 [batch, h]. Raises EngineError with reason and fix; the engine raises
    ValueError for inputs that do not fit.
    """
    loaded = Plan(name, plan)
    return serve(loaded.device, loaded.inputs, loaded.take, Lane(loaded.stream, loaded.prepare))


def open_onnxruntime_gpu(name: str, graph: bytes) -> Engine:
    """Load an ONNX graph with one output for ``onnxruntime-cuda`` or ``onnxruntime-tensorrt``, all of whose nodes run there.

    Raises EngineError with reason and fix; the engine raises ValueError for inputs that do not fit.
    """
    network = open_network(name, graph)
    scatters = isinstance(network, Rowed) and network.scatters
    take = partial(scattered if scatters else gathered, network.inputs)
    again = (lambda: lane_of(open_network(name, graph))) if name == "onnxruntime-cuda" else None
    return serve(network.device, network.inputs, take, lane_of(network), again)


def open_network(name: str, graph: bytes, mixes: bool = False) -> Network:
    """A graph's network: cut, with our kernels for the rest, where they can be had; with ``mixes`` it ends at its rows."""
    part = cut(graph) if name == "onnxruntime-cuda" else None
    if part is None:
        return Session(name, graph)
    inner: Network = Session(name, part.graph)
    try:
        if part.pixels:
            inner = Pictured(inner, part)
        return inner if mixes else Rowed(inner, part)
    except Exception as error:  # NVRTC missing or too old for this GPU, rows too long; it has no narrower base
        warnings.warn(
            f"engine {name} runs the graph as it is, which is slower: no kernels on {inner.device.name}: {error}", stacklevel=2
        )
        return Session(name, graph)


class Session:
    """A loaded ONNX graph on its stream. What ``bind`` gives may be captured while ``captured`` is true.

    Then each ``bind`` gives a session of its own, for the graph that is captured from it. Otherwise all share one, which
    captures CUDA graphs itself.
    """

    once: frozenset[str] = frozenset()

    def __init__(self, name: str, graph: bytes) -> None:
        """Raises EngineError as ``open_onnxruntime_gpu``."""
        onnxruntime = load_onnxruntime(name)
        if PROVIDERS[name] not in onnxruntime.get_available_providers():
            raise EngineError(
                f"engine {name}: the installed onnxruntime {onnxruntime.__version__} has no {PROVIDERS[name]}; it is the one "
                "for CPUs, which takes the place of the other",
                INSTALL[name],
            )
        self.device = open_device(name, (f"onnxruntime {onnxruntime.__version__}", onnxruntime.cuda_version or "0"))
        self.stream = self.device.create_stream()
        self._name, self._open = name, partial(_open_session, name, onnxruntime, graph, self.stream)
        self.captured = name == "onnxruntime-cuda"  # a session of the other builds an engine, which takes minutes
        self._session = self._open(not self.captured)
        self._taken = False
        self.inputs, self.output = session_ports(name, self._session)
        self._options, self._made = onnxruntime.RunOptions, 0

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The output's for these shapes of the inputs."""
        return output_shape(self.output, axis_sizes(self.inputs, shapes))

    def bind(self, shapes: Sequence[Shape], inputs: "Sequence[Buffer]", output: "Buffer") -> Callable[[], None]:
        """What puts a run from these buffers into that one on the stream."""
        options = self._options()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self.captured:
            session = self._open(False) if self._taken else self._session
            self._taken = True
        else:
            session = self._session
            self._made += 1
            options.add_run_config_entry("gpu_graph_id", str(self._made) if self._made <= MAX_CUDA_GRAPHS else "-1")  # -1: none
        binding = session.io_binding()
        for port, shape, buffer in zip(self.inputs, shapes, inputs, strict=True):
            binding.bind_input(port.name, "cuda", 0, port.dtype, shape, int(buffer.handle))
        shape = self.output_shape(shapes)
        binding.bind_output(self.output.name, "cuda", 0, self.output.dtype, shape, int(output.handle))
        return partial(session.run_with_iobinding, binding, options)

    def refuse_capture(self, reason: str) -> None:
        """From now on ONNX Runtime captures its own work, and a warning says so."""
        message = f"engine {self._name} takes three launches for a request, not one: its work was not captured: {reason}"
        warnings.warn(message, stacklevel=2)
        self.captured = False
        self._session = self._open(True)


def session_ports(name: str, session: Any) -> tuple[tuple[Port, ...], Port]:
    """Inputs and the output of an ONNX Runtime session. Raises EngineError for several outputs, or for no tensors."""
    nodes = [*session.get_inputs(), *session.get_outputs()]
    if len(session.get_outputs()) != 1:
        raise EngineError(
            f"engine {name}: the graph gives {', '.join(n.name for n in session.get_outputs())}; wanted is one output"
        )
    strange = [f"{node.name} ({node.type})" for node in nodes if node.type not in DTYPES]
    if strange:
        raise EngineError(f"engine {name}: the graph takes or gives {', '.join(strange)}; wanted are tensors of numbers")
    *ports, result = (
        Port(node.name, DTYPES[node.type], tuple(-1 if axis is None else axis for axis in node.shape)) for node in nodes
    )
    return tuple(ports), result


@cache  # TensorRT knows one logger in a process, which must outlive all that was made with it
def tensorrt_library(name: str) -> tuple[Any, Any]:
    """The module of ``tensorrt`` or ``tensorrt-rtx`` and a logger that prints nothing and keeps ``errors``.

    Raises EngineError when the package or a library of it is missing.
    """
    try:
        trt = import_module(MODULES[name])
        base = trt.ILogger
    except (ImportError, OSError, AttributeError) as error:  # a package without its libraries fails in any of these ways
        raise EngineError(f"engine {name} is not installed or lacks its libraries: {error}", INSTALL[name]) from None

    class Logger(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (self.ERROR, self.INTERNAL_ERROR):
                self.errors.append(message)

    return trt, Logger()


def rtx_capabilities(trt: Any) -> list[int]:
    """The compute capabilities of the GPUs that this version of TensorRT-RTX runs on, 86 for 8.6."""
    return [int(name[2:]) for name in trt.ComputeCapability.__members__ if name.startswith("SM")]


def refuse_unserved_gpu(trt: Any) -> None:
    """Raises EngineError where TensorRT-RTX would build a plan for this machine's GPU and then not load it."""
    here, served = compute_capability(), rtx_capabilities(trt)
    if here is not None and here not in served:
        raise EngineError(
            f"engine tensorrt-rtx {trt.__version__} does not run on this machine's GPU, of compute capability {here / 10}, but "
            f"on {', '.join(str(capability / 10) for capability in served)}",
            "use the engine onnxruntime-cuda here",
        )


def deserialize(name: str, plan: bytes) -> Any:
    """The ICudaEngine of a plan. Raises EngineError when it is none, or one for another version or GPU."""
    trt, logger = tensorrt_library(name)
    logger.errors.clear()
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            f"engine {name} {trt.__version__} cannot load these {len(plan)} bytes: {_complaints(logger)}",
            "a plan works with the version that built it, on the GPUs that it was built for: build it again for this machine",
        )
    return engine


def _complaints(logger: Any) -> str:
    return "; ".join(dict.fromkeys(logger.errors)) or "it gave no reason"


def _cuda_of_wheel(module: str) -> tuple[str, str] | None:
    """The TensorRT that came as a wheel, and its CUDA version; None for one that came with the system."""
    for major in ("13", "12"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return f"{module}_cu{major} {metadata.version(f'{module}_cu{major}')}", major
    return None


class Plan:
    """A loaded plan on its stream. What ``bind`` gives may be captured in a CUDA graph.

    ``inputs`` are those of its engine; ``take`` checks them and ``prepare`` makes the buffers and the CUDA graph for one shape
    of each, as ``serve`` wants it.
    """

    captured = True
    once: frozenset[str] = frozenset()

    def __init__(self, name: str, plan: bytes) -> None:
        """Raises EngineError as ``open_plan``."""
        self._name = name
        self._trt, self._logger = tensorrt_library(name)
        self.device = device = open_device(name, _cuda_of_wheel(MODULES[name]))
        self._engine = engine = deserialize(name, plan)
        self.stream = device.create_stream()
        inputs, self.output = plan_ports(name, self._trt, engine)
        self._names = [port.name for port in inputs]
        self.prepare: Callable[[tuple[Shape, ...]], Run] = self._whole
        check = gathered
        if [port.name for port in inputs] == ["image"] and self.output.name == "features":
            self._kernel = kernel = self._scheme_kernel(self.output)
            self.prepare, check = self._bare_transmitter, scattered
            inputs += (Port("index", np.dtype(np.int32), (-1, kernel.layout.h)),)
        elif [port.name for port in inputs] == ["features"] and self.output.name == "image":
            self._kernel = kernel = self._scheme_kernel(inputs[0])
            self.prepare = self._bare_receiver
            symbols = Port("symbols", np.dtype(np.float32), (-1, kernel.layout.n_symbols, 2))
            inputs = symbols, Port("index", np.dtype(np.int32), (-1, kernel.layout.h))
        self.inputs = inputs
        self.take: Callable[[Inputs], Inputs] = partial(check, inputs)
        # contexts run one after the other, so they share one scratch memory
        self._scratch_size = max(256, engine.device_memory_size_v2)
        self._scratch = device.allocate(self._scratch_size, stream=self.stream)

    def _scheme_kernel(self, features: Port) -> SchemeKernel:
        shape = features.axes[1:]
        if len(shape) != 3 or features.dtype not in (np.float32, np.float16):
            raise EngineError(
                f"engine {self._name}: features must be float32 or float16 [batch, c, h, w], the plan has {features.dtype} "
                f"{list(features.axes)}"
            )
        try:
            return SchemeKernel(self.device, tile_layout(*map(int, shape)), features.dtype)
        except Exception as error:  # NVRTC missing or too old for this GPU, features too large
            raise EngineError(
                f"engine {self._name}: no scheme kernel for features {list(shape)} on {self.device.name}: {error}",
                "pip install -U nvidia-cuda-nvrtc, or use a plan with an index input",
            ) from None

    def _whole(self, shapes: tuple[Shape, ...]) -> Run:
        inputs = self._tensors(*((shape, port.dtype) for port, shape in zip(self.inputs, shapes, strict=True)))
        output = self._tensors((self.output_shape(shapes), self.output.dtype))
        buffers = [tensor.device for tensor in inputs.each]
        return request(self, partial(self.bind, shapes, buffers, output.each[0].device), inputs, output)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The output's for these shapes of the inputs. Raises EngineError where they do not tell it."""
        return self._shape_of_output(self._context(dict(zip(self._names, shapes, strict=True))))

    def bind(self, shapes: Sequence[Shape], inputs: "Sequence[Buffer]", output: "Buffer") -> Callable[[], None]:
        """What puts a run of the plan from these buffers into that one on the stream."""
        context = self._context(dict(zip(self._names, shapes, strict=True)))
        self._connect(context, dict(zip(self._names, inputs, strict=True)) | {self.output.name: output})
        return lambda: self._enqueue(context)

    def _bare_transmitter(self, shapes: tuple[Shape, ...]) -> Run:
        (image_shape, index_shape), kernel = shapes, self._kernel
        batch = image_shape[0]
        context = self._context({"image": image_shape})
        inputs = self._tensors((image_shape, np.float32), (index_shape, np.int32))
        output = self._tensors(((batch, kernel.layout.n_symbols, 2), np.float32))
        (image, index), (symbols,) = inputs.each, output.each
        features, workspace = self._features(batch), kernel.workspace(self.device, batch, self.stream)
        self._connect(context, {"image": image.device, "features": features})

        def behind(where: "Stream | GraphBuilder") -> None:
            kernel.transmit(where, features, index.device, symbols.device, workspace, batch)

        keeps = features, workspace, kernel
        return request(self, lambda: partial(self._enqueue, context), inputs, output, behind=behind, keeps=keeps)

    def _bare_receiver(self, shapes: tuple[Shape, ...]) -> Run:
        (symbols_shape, index_shape), kernel = shapes, self._kernel
        batch = index_shape[0]
        context = self._context({"features": (batch, kernel.layout.c, kernel.layout.h, kernel.layout.w)})
        inputs = self._tensors((symbols_shape, np.float32), (index_shape, np.int32))
        output = self._tensors((self._shape_of_output(context), self.output.dtype))
        (symbols, index), (image,), features = inputs.each, output.each, self._features(batch)
        self._connect(context, {"features": features, "image": image.device})

        def before(where: "Stream | GraphBuilder") -> None:
            kernel.receive(where, symbols.device, index.device, features, batch)

        keeps = features, kernel
        return request(self, lambda: partial(self._enqueue, context), inputs, output, before=before, keeps=keeps)

    def _shape_of_output(self, context: Any) -> Shape:
        shape = tuple(map(int, context.get_tensor_shape(self.output.name)))
        if not shape or min(shape) < 1:
            raise EngineError(
                f"engine {self._name}: the plan does not tell the shape of {self.output.name} before it runs: {list(shape)}",
                "build it from a graph whose output's size follows from the shapes of its inputs",
            )
        return shape

    def _tensors(self, *wanted: tuple[Shape, Any]) -> Tensors:
        return Tensors(self.device, self.stream, wanted)

    def _features(self, batch: int) -> "Buffer":
        size = 2 * batch * self._kernel.layout.n_symbols * self._kernel.dtype.itemsize
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
            raise EngineError(f"engine {self._name} makes no context: {_complaints(self._logger)}")
        context.set_device_memory(int(self._scratch.handle), self._scratch_size)
        for tensor, shape in shapes.items():
            if not context.set_input_shape(tensor, shape):
                low, _, high = self._engine.get_tensor_profile_shape(tensor, 0)
                raise ValueError(f"the plan takes {tensor} from {list(low)} to {list(high)}, got {list(shape)}")
        if self._name == "tensorrt-rtx" and not context.is_stream_capturable(int(self.stream.handle)):
            raise EngineError(
                "engine tensorrt-rtx: this plan allocates memory while it runs, so it cannot be captured in a CUDA graph",
                "build it with the flag REQUIRE_USER_ALLOCATION",
            )
        return context

    def _connect(self, context: Any, addresses: dict[str, "Buffer"]) -> None:
        for tensor, buffer in addresses.items():
            context.set_tensor_address(tensor, int(buffer.handle))

    def refuse_capture(self, reason: str) -> None:
        """TensorRT-RTX was asked before, and TensorRT can always be captured."""
        raise EngineError(f"engine {self._name}: the plan cannot be captured in a CUDA graph: {reason}")

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(int(self.stream.handle)):
            raise EngineError(f"engine {self._name} failed to run: {_complaints(self._logger)}")


def plan_ports(name: str, trt: Any, engine: Any) -> tuple[tuple[Port, ...], Port]:
    """Inputs and the output of a loaded plan. Raises EngineError for several outputs."""
    inputs: list[Port] = []
    outputs: list[Port] = []
    for tensor in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
        port = tensor_port(name, trt, tensor, engine.get_tensor_dtype(tensor), engine.get_tensor_shape(tensor))
        (inputs if engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT else outputs).append(port)
    if len(outputs) != 1:
        raise EngineError(f"engine {name}: the plan gives {', '.join(port.name for port in outputs)}; wanted is one output")
    return tuple(inputs), outputs[0]


def tensor_port(name: str, trt: Any, tensor: str, dtype: Any, shape: Iterable[int]) -> Port:
    """A tensor of a plan or network. Raises EngineError for a type that NumPy does not have."""
    try:
        return Port(tensor, np.dtype(trt.nptype(dtype)), tuple(map(int, shape)))
    except TypeError:
        raise EngineError(
            f"engine {name}: {tensor} is {dtype}, a type that NumPy does not have", "cast it at the edge of the graph"
        ) from None


def _open_session(name: str, onnxruntime: Any, graph: bytes, stream: "Stream", own_graphs: bool) -> Any:
    """A session all of whose nodes run on the provider of ``name``, on ``stream``; with CUDA graphs of its own, or without."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # no device_id: it is 0, and ONNX Runtime 1.26 and later warn where one is named and the provider is no plugin
    settings = {"user_compute_stream": str(int(stream.handle))}
    if name == "onnxruntime-cuda":
        settings |= {"enable_cuda_graph": str(int(own_graphs)), "use_tf32": "0"}
        layouts = LAYOUTS["half" if computes_in_half(graph) else "float"]
    else:
        settings |= {"trt_cuda_graph_enable": "1", **tensorrt_profiles(onnxruntime, graph)}
        layouts = [{}]
    session, reason = None, ""
    with contextlib.redirect_stdout(io.StringIO()):  # both print what is raised here
        onnxruntime.preload_dlls()
        for layout in layouts:
            try:
                providers = [(PROVIDERS[name], settings | layout)]
                session = onnxruntime.InferenceSession(graph, options, providers, enable_fallback=0)
                break
            except Exception as error:  # its exceptions share no narrower base
                reason = str(error)
    if session is None or PROVIDERS[name] not in session.get_providers():
        missing = _missing_library(onnxruntime, name)
        if not missing:
            raise EngineError(f"engine {name} cannot load the graph: {reason or 'ONNX Runtime gave no reason'}")
        raise EngineError(
            f"engine {name} lacks a library: {missing}",
            f"CUDA and cuDNN: {INSTALL[name]}; libnvinfer comes with the TensorRT of that major version",
        )
    refuse_other_providers(name, session)
    return session


def tensorrt_profiles(onnxruntime: Any, graph: bytes) -> dict[str, str]:
    """Provider options that let one engine take every batch; without them TensorRT builds anew for each new size."""
    sizes = {"batch": (1, 1, MAX_BATCH), "frames": (1, 1, 2 * MAX_BATCH)}
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
            f"engine {name}: {len(others)} nodes would not run on {PROVIDERS[name]}: {', '.join(others[:8])}",
            "use a graph without them, or another engine",
        )


def _missing_library(onnxruntime: Any, name: str) -> str:
    """What the loader says of the provider's library, which ONNX Runtime only logs; empty when it loads."""
    library = f"libonnxruntime_providers_{name.removeprefix('onnxruntime-')}.so"
    try:
        ctypes.CDLL(str(Path(onnxruntime.__file__).parent / "capi" / library))
    except OSError as error:
        return str(error)
    return ""
