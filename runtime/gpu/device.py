"""The GPU of this machine: found or refused with a reason, its memory, and the call shape of the engines that run on it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.defense import index as scheme
from semseal.runtime.errors import EngineError

if TYPE_CHECKING:
    from cuda.core import Device, Stream
    from cuda.core.graph import Graph, GraphBuilder

KEPT = 8  # shapes of the inputs whose buffers an engine keeps

Shape = tuple[int, ...]
Engine = Callable[..., NDArray[Any]]


def open_device(name: str, built_for: tuple[str, str] | None = None) -> "Device":
    """The first GPU, current in this thread, for the engine ``name``.

    ``built_for`` is a package that the engine needs and the CUDA version that it was built for. Raises EngineError with the
    fix: packages, driver or GPU missing, or a driver too old for what is installed.
    """
    try:
        from cuda import bindings
        from cuda.bindings import driver
        from cuda.core import Device
    except ImportError as error:
        raise EngineError(
            f"engine {name} needs cuda-core and cuda-bindings ({error}): pip install 'cuda-core[cu13]', or [cu12] for CUDA 12"
        ) from None
    try:
        (status,) = driver.cuInit(0)
    except RuntimeError:  # there is no libcuda.so.1
        raise EngineError(
            f"engine {name}: this machine has no NVIDIA driver: install one so that nvidia-smi works, and start a container "
            "with --gpus all"
        ) from None
    if status != driver.CUresult.CUDA_SUCCESS:
        raise EngineError(
            f"engine {name}: the NVIDIA driver gives no GPU ({status.name}): nvidia-smi must list one, CUDA_VISIBLE_DEVICES "
            "must not hide it, and a container must be started with --gpus all"
        )
    _, version = driver.cuDriverGetVersion()
    bindings_for = f"cuda-bindings {bindings.__version__}", bindings.__version__
    for package, cuda in (bindings_for, built_for or bindings_for):
        if version // 1000 < int(cuda.split(".")[0]):
            raise EngineError(
                f"engine {name}: the NVIDIA driver is for CUDA {version // 1000}.{version % 1000 // 10}, {package} is for CUDA "
                f"{cuda.split('.')[0]}: install a newer driver, or the packages for CUDA {version // 1000}"
            )
    device = Device(0)
    device.set_current()
    return device


class Tensor:
    """A tensor in device memory (``device``), and in pinned host memory as the NumPy array ``host``."""

    def __init__(self, device: "Device", stream: "Stream", shape: Shape, dtype: Any = np.float32) -> None:
        from cuda.core import LegacyPinnedMemoryResource

        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.device = device.allocate(size, stream=stream)
        self._pinned = LegacyPinnedMemoryResource().allocate(size)
        self.host: NDArray[Any] = np.from_dlpack(self._pinned).view(dtype).reshape(shape)
        self.host[...] = 0  # a first run comes before the first data, and an index of garbage would read anywhere

    def upload(self, stream: "Stream | GraphBuilder") -> None:
        self._pinned.copy_to(self.device, stream=stream)

    def download(self, stream: "Stream | GraphBuilder") -> None:
        self.device.copy_to(self._pinned, stream=stream)


def capture(stream: "Stream", work: Callable[["Stream | GraphBuilder"], None]) -> "Graph":
    """What ``work`` puts on the stream, as a CUDA graph. It keeps nothing alive of what the work reads and writes."""
    builder = stream.create_graph_builder().begin_building("thread_local")
    work(builder)
    return builder.end_building().complete()


@dataclass(frozen=True)
class Run:
    """What one shape of the inputs needs; ``launch`` puts all work from pinned to pinned memory on the stream."""

    data: Tensor
    index: Tensor
    output: Tensor
    launch: Callable[[], None]
    keeps: Any  # lives as long as this


def serve(
    device: "Device",
    stream: "Stream",
    move: Callable[[int, NDArray[np.int32]], NDArray[np.int32]],
    prepare: Callable[[Shape, Shape], Run],
) -> Engine:
    """The engine that copies inputs into the Run that ``prepare`` makes for their shapes, and its output out of it.

    One caller at a time. The Runs of the last KEPT shapes are kept, so a call that finds its own allocates nothing but the
    array that it returns. ``move`` turns the index that the caller gives for a number of frames into the one that is uploaded,
    or raises ValueError.
    """
    lock = threading.Lock()
    runs: dict[tuple[Shape, Shape], Run] = {}

    def engine(data: NDArray[np.float32], index: NDArray[np.int32]) -> NDArray[np.float32]:
        if data.dtype != np.float32:
            raise ValueError(f"the engine takes float32, got {data.dtype}")
        moved = move(len(data), index)
        key = data.shape, index.shape
        with lock:
            device.set_current()
            run = runs.pop(key, None)
            if run is None:
                try:
                    run = prepare(*key)
                except (ValueError, EngineError):
                    raise
                except Exception as error:  # what the driver says has no narrower base
                    raise EngineError(
                        f"the GPU cannot take inputs of {list(key[0])}: {error}; fewer may fit its memory"
                    ) from None
            runs[key] = run
            if len(runs) > KEPT:
                del runs[next(iter(runs))]  # the one not used for longest
            np.copyto(run.data.host, data)
            np.copyto(run.index.host, moved)
            run.launch()
            stream.sync()
            output: NDArray[np.float32] = run.output.host.copy()
        return output

    return engine


def gathered(frames: int, index: NDArray[np.int32]) -> NDArray[np.int32]:
    """For ``serve``: the index as it is, checked against the rows of the frames."""
    scheme.check_index(index, frames)
    return index


def scattered(batch: int, index: NDArray[np.int32]) -> NDArray[np.int32]:
    """For ``serve``: where each row of a batch goes."""
    if len(index) != batch:
        raise ValueError(f"{batch} images want an index of as many, got {list(index.shape)}")
    return scheme.inverse(index)
