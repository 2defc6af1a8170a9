"""The GPU of this machine: found or refused with a reason, its memory, and the call shape of the engines that run on it."""

import contextlib
import itertools
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.defense import index as scheme
from semseal.runtime.errors import EngineError
from semseal.runtime.libraries import forks

if TYPE_CHECKING:
    from cuda.core import Buffer, Device, Stream
    from cuda.core.graph import Graph, GraphBuilder

OF_ONE_PACKET = ("mix_rows", "mix_columns")  # inputs of a graph by whose values it gathers: secret, and never the same again
GATHERED_BY = ("index", *OF_ONE_PACKET)  # and all of them
ALIGNED = 256  # bytes, as device memory that is allocated alone
CHUNK = 16  # images of a part, where there are at least two parts; even, so that no pair is split
MAX_KEPT_SHAPES = 8  # shapes of the inputs whose buffers an engine keeps

Shape = tuple[int, ...]
Engine = Callable[..., NDArray[Any]]
Inputs = tuple[NDArray[Any], ...]


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
            f"engine {name} needs cuda-core and cuda-bindings: {error}", "pip install 'cuda-core[cu13]', or [cu12] for CUDA 12"
        ) from None
    try:
        (status,) = driver.cuInit(0)
    except RuntimeError:  # there is no libcuda.so.1
        raise EngineError(
            f"engine {name}: this machine has no NVIDIA driver",
            "install one so that nvidia-smi works, and start a container with --gpus all",
        ) from None
    if status != driver.CUresult.CUDA_SUCCESS:
        raise EngineError(
            f"engine {name}: the NVIDIA driver gives no GPU ({status.name})",
            "nvidia-smi must list one, CUDA_VISIBLE_DEVICES must not hide it, and a container is started with --gpus all",
        )
    _, version = driver.cuDriverGetVersion()
    bindings_for = f"cuda-bindings {bindings.__version__}", bindings.__version__
    for package, cuda in (bindings_for, built_for or bindings_for):
        if version // 1000 < int(cuda.split(".")[0]):
            raise EngineError(
                f"engine {name}: the NVIDIA driver is for CUDA {version // 1000}.{version % 1000 // 10}, {package} is for CUDA "
                f"{cuda.split('.')[0]}",
                f"install a newer driver, or the packages for CUDA {version // 1000}",
            )
    device = Device(0)
    device.set_current()
    return device


@dataclass(frozen=True)
class Port:
    """An input or output as a graph or plan declares it; an axis that varies is its name, or -1 where it has none."""

    name: str
    dtype: "np.dtype[Any]"
    axes: tuple[int | str, ...]


def check_inputs(ports: Sequence[Port], inputs: Inputs) -> None:
    """Raises ValueError unless number, types and shapes of the inputs are those of the ports."""
    if len(inputs) != len(ports):
        raise ValueError(f"the engine takes {', '.join(port.name for port in ports)}, got {len(inputs)} arrays")
    for port, array in zip(ports, inputs, strict=True):
        if array.dtype != port.dtype:
            raise ValueError(f"{port.name} must be {port.dtype}, got {array.dtype}")
    axis_sizes(ports, [array.shape for array in inputs])


def axis_sizes(ports: Sequence[Port], shapes: Sequence[Shape]) -> dict[str, int]:
    """The sizes of the named axes. Raises ValueError for a shape that is not its port's, or for one name with two sizes."""
    sizes: dict[str, int] = {}
    for port, shape in zip(ports, shapes, strict=True):
        wanted = [sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in port.axes]
        fits = len(shape) == len(wanted) and 0 not in shape
        if not fits or any(isinstance(axis, int) and axis not in (-1, n) for axis, n in zip(wanted, shape, strict=True)):
            raise ValueError(f"{port.name} must be [{', '.join(map(str, wanted))}], got {list(shape)}")
        sizes |= {axis: n for axis, n in zip(port.axes, shape, strict=True) if isinstance(axis, str)}
    return sizes


def output_shape(output: Port, sizes: Mapping[str, int]) -> Shape:
    """The shape of an output for the sizes of the named axes; a first axis of another name is ``batch``, if there is one.

    Raises EngineError for an axis that no input has.
    """
    first, *rest = output.axes
    if first not in sizes and (isinstance(first, str) or first < 0):
        first = "batch"
    shape = [sizes.get(axis, -1) if isinstance(axis, str) else axis for axis in (first, *rest)]
    if min(shape) < 0:
        raise EngineError(
            f"output {output.name} is [{', '.join(map(str, output.axes))}], and no input tells the size of that axis: they "
            f"have {', '.join(sizes) or 'none that varies'}",
            "name the axis as an input names it, batch or frames",
        )
    return tuple(shape)


class Tensor:
    """A tensor in device memory (``device``), and in pinned host memory as the NumPy array ``host``."""

    def __init__(self, device: "Device", stream: "Stream", shape: Shape, dtype: Any = np.float32) -> None:
        (tensor,) = Tensors(device, stream, [(shape, dtype)]).each
        self._hold(tensor.device, tensor._pinned, tensor.host)

    @classmethod
    def within(cls, device: "Buffer", pinned: "Buffer", host: NDArray[Any]) -> "Tensor":
        """One whose memory others hold."""
        tensor = cls.__new__(cls)
        tensor._hold(device, pinned, host)
        return tensor

    def _hold(self, device: "Buffer", pinned: "Buffer", host: NDArray[Any]) -> None:
        self.device, self._pinned, self.host = device, pinned, host

    def upload(self, stream: "Stream | GraphBuilder") -> None:
        if int(self.device.handle) != int(self._pinned.handle):
            self._pinned.copy_to(self.device, stream=stream)

    def download(self, stream: "Stream | GraphBuilder") -> None:
        if int(self.device.handle) != int(self._pinned.handle):
            self.device.copy_to(self._pinned, stream=stream)


class Tensors:
    """Tensors (``each``) that lie behind one another in device memory and in pinned memory, so that one copy moves them all.

    Of those in ``near`` the device's memory is the pinned memory itself: kernels reach it over the bus, and no copy is made.
    That pays for what one kernel reads or writes once, and is not much.
    """

    def __init__(
        self, device: "Device", stream: "Stream", wanted: Iterable[tuple[Shape, Any]], near: Container[int] = ()
    ) -> None:
        """For shapes and dtypes; ``near`` are places among them."""
        from cuda.core import LegacyPinnedMemoryResource

        kinds = [(shape, np.dtype(dtype), int(np.prod(shape)) * np.dtype(dtype).itemsize) for shape, dtype in wanted]
        order = sorted(range(len(kinds)), key=lambda place: place in near)  # those that are copied come first
        rooms = [-(-kinds[place][2] // ALIGNED) * ALIGNED for place in order]
        ends = dict(zip(order, itertools.accumulate(rooms), strict=True))
        starts = {place: ends[place] - room for place, room in zip(order, rooms, strict=True)}
        self._size, copied = sum(rooms), sum(room for place, room in zip(order, rooms, strict=True) if place not in near)
        self._pinned = LegacyPinnedMemoryResource().allocate(self._size)
        self._moved = (device.allocate(copied, stream=stream), self._part(self._pinned, 0, copied)) if copied else None
        memory = np.from_dlpack(self._pinned).view(np.uint8)
        memory[...] = 0  # a first run comes before the first data, and an index of garbage would read anywhere
        self.each = tuple(
            Tensor.within(
                self._part(self._pinned if self._moved is None or place in near else self._moved[0], starts[place], size),
                self._part(self._pinned, starts[place], size),
                memory[starts[place] : starts[place] + size].view(dtype).reshape(shape),
            )
            for place, (shape, dtype, size) in enumerate(kinds)
        )

    @staticmethod
    def _part(whole: "Buffer", start: int, size: int) -> "Buffer":
        from cuda.core import Buffer

        return Buffer.from_handle(int(whole.handle) + start, size, owner=whole)

    def upload(self, stream: "Stream | GraphBuilder") -> None:
        if self._moved is not None:
            self._moved[1].copy_to(self._moved[0], stream=stream)

    def download(self, stream: "Stream | GraphBuilder") -> None:
        if self._moved is not None:
            self._moved[0].copy_to(self._moved[1], stream=stream)

    def holds(self, address: int) -> bool:
        """Whether an address is one of its pinned memory."""
        return 0 <= address - int(self._pinned.handle) < self._size


def capture(stream: "Stream", work: Callable[["Stream | GraphBuilder"], None]) -> "Graph":
    """What ``work`` puts on the stream, as a CUDA graph. It keeps nothing alive of what the work reads and writes."""
    return recorded(stream, work).complete()


def recorded(stream: "Stream", work: Callable[["Stream | GraphBuilder"], None]) -> "GraphBuilder":
    """The captured work, before it can be launched. The stream has left the capture, whatever ``work`` raises."""
    builder = stream.create_graph_builder().begin_building("thread_local")
    try:
        work(builder)
    except BaseException:
        with contextlib.suppress(Exception):  # the capture may be void by now; the stream must leave it all the same
            builder.end_building()
        raise
    return builder.end_building()


@dataclass(frozen=True)
class Run:
    """What one shape of the inputs needs; ``launch`` puts all work from pinned to pinned memory on the stream."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    launch: Callable[[], None]
    keeps: Any  # lives as long as this


Prepare = Callable[[tuple[Shape, ...]], Run]


class Lane:
    """A stream, and the Runs of the last MAX_KEPT_SHAPES shapes on it."""

    def __init__(self, stream: "Stream", prepare: Prepare) -> None:
        self.stream, self._prepare = stream, prepare
        self._runs: dict[tuple[Shape, ...], Run] = {}

    def run(self, shapes: tuple[Shape, ...]) -> Run:
        """That of these shapes. Raises EngineError where the GPU cannot take them, and what ``prepare`` raises."""
        run = self._runs.pop(shapes, None)
        if run is None:
            try:
                run = self._prepare(shapes)
            except (ValueError, EngineError):
                raise
            except Exception as error:  # what the driver says has no narrower base
                raise EngineError(
                    f"the GPU cannot take inputs of {', '.join(str(list(shape)) for shape in shapes)}: {error}",
                    "fewer images at a time may fit its memory",
                ) from None
        self._runs[shapes] = run
        if len(self._runs) > MAX_KEPT_SHAPES:
            del self._runs[next(iter(self._runs))]  # the one not used for longest
        return run


def serve(
    device: "Device",
    ports: Sequence[Port],
    take: Callable[[Inputs], Inputs],
    lane: Lane,
    again: Callable[[], Lane] | None = None,
) -> Engine:
    """As ``serve_several``, for Runs with one output."""
    several = serve_several(device, ports, take, lane, again)
    return lambda *inputs: several(*inputs)[0]


def serve_several(
    device: "Device",
    ports: Sequence[Port],
    take: Callable[[Inputs], Inputs],
    lane: Lane,
    again: Callable[[], Lane] | None = None,
) -> Callable[..., Inputs]:
    """The engine that copies inputs into the Run of their shapes, and its outputs out of it.

    One caller at a time. A call that finds a Run of its shapes allocates nothing but the arrays that it returns. ``take``
    checks what the caller gives and turns it into what is uploaded, or raises ValueError. CUDA does not survive a fork: in a
    forked child the engine raises EngineError.

    Many images are done in parts of CHUNK on two lanes in turns, the second by ``again``: while the GPU is at one part, the
    host fills and empties the memory of the other, and the copies over the bus of one part meet the network of the other.
    """
    lock, made_in = threading.Lock(), forks()
    lanes = [lane]
    remembered = remembering(ports, take)

    def several(*inputs: NDArray[Any]) -> Inputs:
        taken = remembered(inputs)
        if forks() != made_in:
            raise EngineError(
                "this engine was opened before the process was forked, and a GPU cannot be used across a fork",
                "open engines in the child",
            )
        with lock, _told_of_the_gpu():
            device.set_current()
            parts = parted(ports, taken) if again is not None else []
            if again is not None and parts:
                if len(lanes) == 1:
                    lanes.append(again())
                return _in_turns(lanes, parts)
            run = lane.run(tuple(array.shape for array in taken))
            _start(run, taken)
            lane.stream.sync()
            return tuple(output.host.copy() for output in run.outputs)

    return several


@contextlib.contextmanager
def _told_of_the_gpu() -> Iterator[None]:
    """Raises EngineError for what the driver or ONNX Runtime says of work that has been bound."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("cuda", "onnxruntime"):  # whose errors share no narrower base
            raise
        raise EngineError(
            f"the GPU did not do its work: {error}",
            "start the program again; if it goes on, semseal doctor and nvidia-smi tell how the GPU is",
        ) from error


def remembering(ports: Sequence[Port], take: Callable[[Inputs], Inputs]) -> Callable[[Inputs], Inputs]:
    """``take``, without checking again what passed before: such shapes and types, and such bytes of what is gathered by.

    To check them takes as long as a network does. ``take`` may change what is gathered by, and nothing else. What is
    made of the key of one packet is not remembered.
    """
    if any(port.name in OF_ONE_PACKET for port in ports):
        return take
    places = [place for place, port in enumerate(ports) if port.name in GATHERED_BY]
    passed: dict[tuple[Any, ...], dict[int, NDArray[Any]]] = {}

    def taken(inputs: Inputs) -> Inputs:
        # bytes, so that what was checked is what is uploaded, whatever another thread writes into the caller's array meanwhile
        frozen = {place: inputs[place].tobytes() for place in places if place < len(inputs)}
        known = *((array.shape, array.dtype) for array in inputs), *frozen.values()
        found = passed.get(known)
        if found is None:
            given = list(inputs)
            for place, data in frozen.items():
                given[place] = np.frombuffer(data, given[place].dtype).reshape(given[place].shape)
            checked = take(tuple(given))
            found = {place: checked[place] for place in places}
            if len(passed) >= 4 * MAX_KEPT_SHAPES:
                passed.clear()
            passed[known] = found
        return tuple(found.get(place, array) for place, array in enumerate(inputs))

    return taken


def parted(ports: Sequence[Port], taken: Inputs) -> list[Inputs]:
    """The inputs in parts of CHUNK images, each with an index of its own; none where there are too few, or rows cross parts."""
    batch = len(taken[0])
    if batch < 2 * CHUNK or batch % CHUNK or any(len(array) != batch for array in taken):
        return []
    parts = []
    for start in range(0, batch, CHUNK):
        part = [array[start : start + CHUNK] for array in taken]
        for i, port in enumerate(ports):
            if port.name in GATHERED_BY:
                part[i] = part[i] - np.int32(start * part[i].shape[-1])
                if port.name != "index" or part[i].min() < 0 or part[i].max() >= part[i].size:
                    return []
        parts.append(tuple(part))
    return parts


def _in_turns(lanes: Sequence[Lane], parts: Sequence[Inputs]) -> Inputs:
    runs = [lane.run(tuple(array.shape for array in parts[0])) for lane in lanes]
    wholes = tuple(np.empty((CHUNK * len(parts), *x.host.shape[1:]), x.host.dtype) for x in runs[0].outputs)

    def take_out(k: int) -> None:
        lanes[k % len(lanes)].stream.sync()
        for whole, output in zip(wholes, runs[k % len(lanes)].outputs, strict=True):
            np.copyto(whole[k * CHUNK : (k + 1) * CHUNK], output.host)

    for k, part in enumerate(parts):
        if k >= len(lanes):
            take_out(k - len(lanes))
        _start(runs[k % len(lanes)], part)
    for k in range(len(parts) - len(lanes), len(parts)):
        take_out(k)
    return wholes


def _start(run: Run, taken: Inputs) -> None:
    for tensor, array in zip(run.inputs, taken, strict=True):
        np.copyto(tensor.host, array)
    run.launch()


def gathered(ports: Sequence[Port], inputs: Inputs) -> Inputs:
    """For ``serve``: the inputs as they are, checked; also those by whose values a graph gathers.

    ``index`` [batch, h] names rows of the first input, h in each of its frames; ``mix_rows`` [batch, rows] names rows of all of
    its images, ``mix_columns`` [batch, c] columns of one. A value out of range would read foreign memory. Raises ValueError.
    """
    check_inputs(ports, inputs)
    # copied first: what is checked is what is uploaded, whatever another thread writes into the caller's array meanwhile
    taken = tuple(array.copy() if port.name in GATHERED_BY else array for port, array in zip(ports, inputs, strict=True))
    for port, array in zip(ports, taken, strict=True):
        if port.name in GATHERED_BY:
            images = 1 if port.name == "mix_columns" else len(taken[0])
            scheme.check_range(port.name, array, images * array.shape[-1])
    return taken


def scattered(ports: Sequence[Port], inputs: Inputs) -> Inputs:
    """For ``serve``: an image and its index, as the image and where each row goes. Raises ValueError as ``gathered``."""
    check_inputs(ports, inputs)
    image, index = inputs
    if len(index) != len(image):
        raise ValueError(f"{len(image)} images want an index of as many, got {list(index.shape)}")
    return image, scheme.inverse(index)
