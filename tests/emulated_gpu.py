"""A GPU for machines without one: the calls of cuda.core on NumPy memory, and the project's own kernels run by mix_shim.h.

A stream does its work at once, or keeps it while a graph is captured. ONNX Runtime runs the networks on the CPU. What this
shows is that buffers, shapes, keys and the order of the work fit together; the driver and timing it knows nothing of.
"""

import ctypes
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cuda.core
import numpy as np
import onnxruntime
from cuda.bindings import driver
from mix_on_cpu import LAUNCHES, STRUCTURE, TOGETHER, compiled, gcc
from semseal.runtime.gpu import engines

SHIM = Path(__file__).parent / "cuda_shim.h"
ENTRIES = {
    "transmit": r"""
extern "C" bool run_transmit(const feature* features, const int* place, float* symbols, float* sums, unsigned* state,
                             unsigned grid, unsigned resident, unsigned order) {
    return launch(grid, THREADS, TOGETHER ? resident : PARTS, order, [=] { transmit(features, place, symbols, sums, state); },
                  TOGETHER ? PARTS : 1);
}
extern "C" bool run_receive(const float* symbols, const int* index, feature* features,
                            unsigned grid, unsigned resident, unsigned order) {
    return launch(grid, THREADS, resident, order, [=] { receive(symbols, index, features); });
}
""",
    "unpack": r"""
extern "C" bool run_unpack(const unsigned char* bytes, real* image, unsigned grid, unsigned resident, unsigned order) {
    return launch(grid, THREADS, resident, order, [=] { unpack(bytes, image); });
}
extern "C" bool run_pack(const real* image, unsigned char* bytes, unsigned* flags,
                         unsigned grid, unsigned resident, unsigned order) {
    return launch(grid, THREADS, resident, order, [=] { pack(image, bytes, flags); });
}
""",
}


class Buffer:
    def __init__(self, size: int) -> None:
        self._hold(np.full(size, 0xFF, np.uint8))

    @classmethod
    def from_handle(cls, address: int, size: int, owner: "Buffer") -> "Buffer":
        buffer, start = cls.__new__(cls), address - owner.handle
        assert 0 <= start <= start + size <= len(owner.memory)
        buffer._hold(owner.memory[start : start + size])
        return buffer

    def _hold(self, memory: np.ndarray) -> None:
        self.memory, self.handle = memory, memory.ctypes.data

    def fill(self, value: int, stream: Any) -> None:
        stream.do(lambda: self.memory.fill(value))

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
    """A graph as it is captured, and the graph: what is captured are nodes of the type KERNEL."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.do, self.graph_definition = stream, stream.do, SimpleNamespace(handle=self)

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

    capturable = True
    once: frozenset[str] = frozenset()

    def __init__(self, name: str, graph: bytes) -> None:
        self.device, self.stream, self.captured, self.refused = Device(), Stream(), True, ""
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.inputs, self.output = engines.session_ports(name, self.session)

    output_shape = engines.Session.output_shape

    def bind(self, shapes: Any, inputs: Any, output: Buffer) -> Callable[[], None]:
        assert self.stream.kept is None  # memory is taken, which nothing may do in a capture
        given = {
            port.name: _view(buffer, shape, port.dtype) for port, shape, buffer in zip(self.inputs, shapes, inputs, strict=True)
        }
        answer = _view(output, self.output_shape(shapes), self.output.dtype)
        seen = 0

        def work() -> None:
            answer[...] = self.session.run(None, given)[0]

        def run() -> None:
            nonlocal seen
            seen += 1
            if self.stream.kept is not None:
                assert seen > 2, "captured before it had its memory"
                if not self.capturable:
                    raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")
            self.stream.do(work)

        return run

    def refuse_capture(self, reason: str) -> None:
        self.captured, self.refused = False, reason


def _view(buffer: Buffer, shape: Any, dtype: Any) -> np.ndarray:
    return buffer.memory.view(dtype).reshape(shape)


def _on_shim(folder: Path, source: str, macros: dict[str, str]) -> ctypes.CDLL:
    """The scheme or pixel kernels, compiled with cuda_shim.h; the library is called by how the kernels are."""
    code = f'#include "{SHIM}"\n{source}\n{ENTRIES["transmit" if "transmit(" in source else "unpack"]}'
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-pthread"]
    flags += [f"-D{name}={value}" for name, value in macros.items()]
    library = folder / f"{hashlib.sha256((' '.join(flags) + code).encode()).hexdigest()[:16]}.so"
    if not library.exists():
        gcc(library, *flags, "-x", "c++", "-", code=code)
    return ctypes.CDLL(str(library))


def emulate(monkeypatch, folder: Path) -> None:
    """Until the end of the test cuda.core and the sessions of engines.py are those here; libraries go to ``folder``."""

    class Program:
        def __init__(self, source: str, kind: str, options: Any) -> None:
            macros = dict(options.define_macro)
            self.shimmed = options.name in ("scheme_index", "pixels")
            if self.shimmed:
                self.library = _on_shim(folder, source, macros)
                return
            entries = STRUCTURE if options.name == "structure" else TOGETHER if "G" in macros else LAUNCHES
            self.library = compiled(folder, source + entries, [f"-D{name}={value}" for name, value in macros.items()])
            self.blocks = int(macros.get("G", 1))

        def compile(self, kind: str, logs: Any = None) -> "Program":
            return self

        def get_kernel(self, name: str) -> Any:
            function = getattr(self.library, "run" if name == "structure" else f"run_{name}")
            if self.shimmed:
                function.restype = ctypes.c_bool
                occupancy = SimpleNamespace(max_active_blocks_per_multiprocessor=lambda *given: 8)
                return SimpleNamespace(function=function, shimmed=True, occupancy=occupancy)
            function.restype = ctypes.c_char_p
            return SimpleNamespace(function=function, blocks=self.blocks, orders=name != "structure", shimmed=False, handle=1)

    def launch(stream: Any, config: Any, kernel: Any, *given: Buffer | int | np.int32) -> None:
        buffers = [one if isinstance(one, int) else one.handle for one in given if isinstance(one, Buffer | int)]
        addresses = [ctypes.c_void_p(address) for address in buffers]
        counts = [int(count) for count in given if isinstance(count, np.int32)]  # where a block takes several images

        def work() -> None:
            if kernel.shimmed:
                assert kernel.function(*addresses, config.grid, 1, 2), "threads of a block met different barriers"
                return
            images = counts[0] if counts else config.grid // kernel.blocks
            wrong = kernel.function(*addresses, images, *[2] * kernel.orders)
            assert wrong == b"", wrong

        stream.do(work)

    for name, ours in (("Buffer", Buffer), ("Program", Program), ("ProgramOptions", SimpleNamespace), ("launch", launch),
                       ("LaunchConfig", SimpleNamespace), ("LegacyPinnedMemoryResource", Pinned)):  # fmt: skip
        monkeypatch.setattr(cuda.core, name, ours)
    done = driver.CUresult.CUDA_SUCCESS
    monkeypatch.setattr(driver, "cuKernelSetAttribute", lambda *given: (done,))
    monkeypatch.setattr(driver, "cuGraphGetNodes", lambda graph, count=0: (done, graph.works[:count], len(graph.works)))
    monkeypatch.setattr(driver, "cuGraphNodeGetType", lambda node: (done, driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL))
    monkeypatch.setattr(driver, "CUdevice", lambda number: number)
    monkeypatch.setattr(engines, "Session", Session)
