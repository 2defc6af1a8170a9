"""A GPU for machines without one: the calls of cuda.core on NumPy memory, and the project's own kernels run by mix_shim.h.

A stream does its work at once, or keeps it while a graph is captured. ONNX Runtime runs the networks on the CPU. What this
shows is that buffers, shapes, keys and the order of the work fit together; the driver and timing it knows nothing of.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cuda.core
import numpy as np
import onnxruntime
from cuda.bindings import driver
from mix_on_cpu import LAUNCHES, STRUCTURE, TOGETHER, compiled
from semseal.runtime.gpu import engines


class Buffer:
    def __init__(self, size: int) -> None:
        self.memory = np.full(size, 0xFF, np.uint8)
        self.handle = self.memory.ctypes.data

    def copy_to(self, other: "Buffer", stream: Any) -> None:
        assert len(self.memory) == len(other.memory)
        stream.do(lambda: np.copyto(other.memory, self.memory))

    def __dlpack__(self, **options: Any) -> Any:
        return self.memory.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.memory.__dlpack_device__()


class Pinned:
    def allocate(self, size: int) -> Buffer:
        return Buffer(size)


class Stream:
    handle = 1

    def __init__(self) -> None:
        self.kept: list[Callable[[], None]] | None = None

    def do(self, work: Callable[[], None]) -> None:
        if self.kept is None:
            work()
        else:
            self.kept.append(work)

    def sync(self) -> None:
        assert self.kept is None

    def create_graph_builder(self) -> "Builder":
        return Builder(self)


class Builder:
    def __init__(self, stream: Stream) -> None:
        self.stream, self.do = stream, stream.do

    def begin_building(self, mode: str) -> "Builder":
        self.stream.kept = self.works = []
        return self

    def end_building(self) -> "Builder":
        self.stream.kept = None
        return self

    def complete(self) -> "Builder":
        return self

    def launch(self, stream: Stream) -> None:
        for work in self.works:
            stream.do(work)


class Device:
    arch, name, device_id = "90", "an emulated GPU", 0
    compute_capability = SimpleNamespace(major=9, minor=0)
    properties = SimpleNamespace(multiprocessor_count=132, max_shared_memory_per_block_optin=232448)

    def set_current(self) -> None:
        pass

    def create_stream(self) -> Stream:
        return Stream()

    def allocate(self, size: int, stream: Stream) -> Buffer:
        return Buffer(size)


class Session:
    """In place of ``engines.Session``: the same interface, on the CPU."""

    captured = False

    def __init__(self, name: str, graph: bytes) -> None:
        self.device, self.stream = Device(), Stream()
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.inputs, self.output = engines.session_ports(name, self.session)

    output_shape = engines.Session.output_shape

    def bind(self, shapes: Any, inputs: Any, output: Buffer) -> Callable[[], None]:
        assert self.stream.kept is None  # what is bound here cannot be captured
        given = {
            port.name: _view(buffer, shape, port.dtype) for port, shape, buffer in zip(self.inputs, shapes, inputs, strict=True)
        }
        answer = _view(output, self.output_shape(shapes), self.output.dtype)

        def run() -> None:
            assert self.stream.kept is None
            answer[...] = self.session.run(None, given)[0]

        return run


def _view(buffer: Buffer, shape: Any, dtype: Any) -> np.ndarray:
    return buffer.memory.view(dtype).reshape(shape)


def emulate(monkeypatch, folder: Path) -> None:
    """Until the end of the test cuda.core and the sessions of engines.py are those here; libraries go to ``folder``."""

    class Program:
        def __init__(self, source: str, kind: str, options: Any) -> None:
            macros = dict(options.define_macro)
            entries = STRUCTURE if options.name == "structure" else TOGETHER if "G" in macros else LAUNCHES
            self.library = compiled(folder, source + entries, [f"-D{name}={value}" for name, value in macros.items()])
            self.blocks = int(macros.get("G", 1))

        def compile(self, kind: str, logs: Any = None) -> "Program":
            return self

        def get_kernel(self, name: str) -> Any:
            function = getattr(self.library, "run" if name == "structure" else f"run_{name}")
            function.restype = ctypes.c_char_p
            return SimpleNamespace(function=function, blocks=self.blocks, orders=name != "structure", handle=1)

    def launch(stream: Any, config: Any, kernel: Any, *given: Any) -> None:
        addresses = [ctypes.c_void_p(buffer.handle) for buffer in given if isinstance(buffer, Buffer)]
        counts = [int(count) for count in given if not isinstance(count, Buffer)]  # where a block takes several images
        images = counts[0] if counts else config.grid // kernel.blocks

        def work() -> None:
            wrong = kernel.function(*addresses, images, *[2] * kernel.orders)
            assert wrong == b"", wrong

        stream.do(work)

    for name, ours in (("Program", Program), ("ProgramOptions", SimpleNamespace), ("LaunchConfig", SimpleNamespace),
                       ("launch", launch), ("LegacyPinnedMemoryResource", Pinned)):  # fmt: skip
        monkeypatch.setattr(cuda.core, name, ours)
    monkeypatch.setattr(driver, "cuKernelSetAttribute", lambda *given: (driver.CUresult.CUDA_SUCCESS,))
    monkeypatch.setattr(driver, "CUdevice", lambda number: number)
    monkeypatch.setattr(engines, "Session", Session)
