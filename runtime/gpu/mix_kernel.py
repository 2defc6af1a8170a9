"""Mix and unmix as CUDA kernels, with all between a network and the air: of keys only 40 bytes an image cross the bus.

    mix     features ── unit power ── pads behind them ── mixed ── power 1 exactly ──> symbols on air, scale
    unmix   symbols as received ── un-mixed ──> features

Each kernel expands the ChaCha20 stream from the packet's key and makes signs, pads, the order of rows and of columns itself.
Few images: an image has 16 or 8 blocks of a cluster, a multiprocessor each, which push what others need into their memory
(``mix_alone``). More: 4 or 2 blocks, or one that takes one image after the other (``mix_cluster``). Clusters are from compute
capability 9.0 on; elsewhere, and for columns of more than 64 values, several launches with the image in L2 (``mix_launches``).

What bounds many images of 32,400 reals (32 x 32 x 32 on air), one block each, in clocks of one multiprocessor at 1.98 GHz:

    instructions         35 additions, 24 for signs, 16 to and from shared memory for each real: 19,000 of 4 warps each
    shared memory        16 passes of 128 bytes a clock, orders and signs: 18,500
    device memory        261 kB: 23,200 at the 2.94 TB/s of an H100, 16,600 at the 4.1 TB/s of an H200
    key stream           427 blocks of 960 instructions for integers, half as fast as others: 6,700; 4,500 where additions
                         are multiplications by one, which other units do
    to double and back   16 a clock: 2,000 for the energy; 4,100 for the last rounding until its factor was in two floats

The first code (commit 6f07d25) took the sum of them all: 71,000 clocks. Now stores of an image run beside the key stream of
the next, whose features are on their way into L2; a row's pass is followed by that of columns in the same warp, without a
barrier of the block; and features take 4 instructions each, not 25, all loads of a thread in front. For one image, computed
from what was measured of the first code (27,770 clocks): a barrier of the cluster costs 750, ten of them 7,500, and memory of
other blocks that is read comes after 1,000. Pushed, without a barrier, it is its way: 600, five times.

Measured on an H200 (commit bf936f0, 26 November 2026, 1.98 GHz, copies of 4.15 TB/s, 132 multiprocessors as an H100 has;
benchmarks/results/nvidia-h200.json):

    mix, un-mixing                   16 blocks    8            4            2            1            several launches
    one image, us                    9.5, 7.7     10.2, 9.8    15.5, 14.4   20.3, 18.5   25.5, 24.3   52.8, 44.0
    batch 64, ns an image                         828, 665     528, 467     389, 353     453, 409     2,995, 2,624
    batch 1024, ns an image                       695, 498     308, 278     258, 233     204, 186     2,505, 2,152

Since then 2 or 4 blocks, and 8 that share a multiprocessor, also wait until all of them have begun; not in these figures.
The first code took 13.5 and 11.6 us for one image there, and 262 and 224 ns. The goals are 10 us, which is met, and 45 % of a
copy's rate: 31 and 34 % of this GPU's, where it is 140 ns; by an H100's copy, 193 ns, it would be 43 and 47 %. 35,100 clocks of
an image, to each barrier: features, pads and tables 6,400; C and B 8,400; the shuffle and A 6,400; C and B 5,700; A and C
8,300, and then out, beside which the key stream is free. For one image, 16,200 clocks: key stream 1,400 to 1,900; rows 3,500;
B and the way 2,000; A and the way 2,200; C and B 3,400; A and C 3,000.

The result is that of ``semseal.runtime.defense.mix`` within ``rounding``, since sums are added in another order; pads,
signs and orders are the same bits. The tests compile this source for eight GPU generations, without a spilled register, and run
it on the CPU under a checker of races, of what is pushed, and of bounds; benchmarks/on_gpu.py does the rest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.channel import SILENCE
from semseal.runtime.defense import mix
from semseal.runtime.defense.keys import derive
from semseal.runtime.gpu import mix_alone, mix_cluster, mix_launches
from semseal.runtime.gpu.mix_source import (
    COMMON,
    MAX_IN_REGISTERS,
    STRUCTURE,
    core_of,
    macros,
    matrices_source,
    rest_may_be_taken,
)

if TYPE_CHECKING:
    from cuda.core import Buffer, Device, Kernel, ObjectCode, Stream
    from cuda.core.graph import GraphBuilder

KEY_WORDS = 10  # of an image: the session's key and the counter
REGISTERS = 65536  # of a multiprocessor
MAX_THREADS = 1024  # of a block
MAX_PORTABLE = 8  # blocks of a cluster that every GPU with clusters takes
MAX_CLUSTER = 16  # and that any takes
LAUNCH_THREADS = 128
ALONE_THREADS = 512  # of a block that has a multiprocessor for itself: some make the key stream, some fetch the image
STRUCTURE_THREADS = 1024
MAX_RMS_OFF = 1e-6  # of values on air from the reference's, root mean square, see docs/wire.md
MAX_LARGEST_OFF = 2e-4  # of the value that takes what rounding left of the power


@dataclass(frozen=True)
class MixLayout:
    """How images of ``reals`` reals, features [channels, reals / channels], are worked on.

    ``together`` blocks of ``threads`` have an image in their ``arena`` bytes of shared memory, and a multiprocessor's
    registers are shared out to ``resident`` such blocks; 0 for several launches, which have ``work`` words of device memory
    for each image.
    """

    reals: int
    channels: int
    a: int
    b: int
    c: int
    together: int
    threads: int
    resident: int
    arena: int
    work: int
    alone: bool = False

    @property
    def size(self) -> int:
        """Reals on air for an image."""
        return self.a * self.b * self.c

    def macros(self, dtype: "np.dtype[Any]") -> list[tuple[str, str]]:
        """The constants that the source is compiled with."""
        half = dtype == np.float16
        sizes = macros(self.reals, self.a, self.b, self.c, self.channels, half, float(SILENCE))
        sizes += [("THREADS", str(self.threads)), ("MAX_IN_REGISTERS", str(MAX_IN_REGISTERS))]
        if not self.together:
            return [*sizes, ("WORK", str(self.work))]
        sizes += [("ALONE", str(int(self.alone)))]
        return [*sizes, ("G", str(self.together)), ("ROOM", str(self.arena)), ("RESIDENT", str(self.resident))]

    def source(self) -> str:
        """The CUDA source for this size."""
        own = mix_alone.SOURCE if self.alone else mix_cluster.SOURCE if self.together else mix_launches.SOURCE
        return COMMON + matrices_source(self.a, self.b, self.c) + own

    def blocks(self, kernel: str) -> int:
        """Blocks for each image in a launch."""
        if self.together:
            return self.together
        one = rest_may_be_taken(self.a, self.b, self.c)
        chunks = {axis: -(-m // 8) if m > MAX_IN_REGISTERS else 1 for axis, m in (("a", self.a), ("b", self.b))}
        if kernel.startswith(("load", "out")):
            return 1 if one else min(128, -(-self.size // (16 * self.threads)))
        if kernel == "stream":
            work = -(-stream_words(self.reals) // 16)
        elif kernel.startswith("rows"):
            work = self.a * self.b
        else:
            work = self.size // (self.a if kernel[0] == "a" else self.b) * chunks[kernel[0]]
        return -(-work // self.threads)


def registers(a: int, b: int, c: int) -> int:
    """What a thread needs that has a vector of these lengths, and what it becomes unless that is in its place."""
    return max(m + (core_of(m) if core_of(m) > 1 else 0) for m in (a, b, c)) + 32


def stream_words(reals: int) -> int:
    """Words of the key stream for an image."""
    a, b, c = mix.factors(reals)
    q = max(m for m in range(1, math.isqrt(a * b) + 1) if a * b % m == 0)
    return 5 * a * b * c // 32 + 2 + 4 * (a * b * c - reals) + 3 * (a * b // q + q) + c


@lru_cache
def launches_layout(reals: int, channels: int = 1) -> MixLayout:
    """That of several launches, for every size and GPU. ``channels`` 1 is for symbols in their order. Raises ValueError."""
    _check(reals, channels)
    a, b, c = mix.factors(reals)
    size, threads = a * b * c, LAUNCH_THREADS
    warps, parts = threads // 32, 1 if rest_may_be_taken(a, b, c) else min(128, -(-size // (16 * threads)))
    loud = -(-(2 * size + -(-stream_words(reals) // 16) * 16 + a * b + c) // 2) * 2
    work = loud + 4 * parts * warps + 2 * -(-a * b // threads) * warps
    return MixLayout(reals, channels, a, b, c, 0, threads, 1, 0, work)


@lru_cache
def cluster_layout(reals: int, together: int, channels: int = 1, alone: bool = False) -> MixLayout:
    """That of one launch, ``together`` blocks an image. Raises ValueError for sizes that no such blocks can hold.

    ``alone``: each block has a multiprocessor for itself, as where there are few images.
    """
    _check(reals, channels)
    a, b, c = mix.factors(reals)
    if max(a, b) > MAX_IN_REGISTERS:
        raise ValueError(f"columns of {a} and {b} values are too long for a thread; use several launches")
    slabs, slices = -(-a // together), -(-b // together)
    threads = -(-max(slices * c, min(slabs * b, 256)) // 32) * 32
    if alone:
        threads = max(threads, ALONE_THREADS if ALONE_THREADS * registers(a, b, c) <= REGISTERS else ALONE_THREADS // 2)
    rows, sums = max(slabs * b, slices * a), together * threads // 32
    if threads * registers(a, b, c) > REGISTERS or threads > MAX_THREADS:
        raise ValueError(f"{threads} threads of {registers(a, b, c)} registers are too many for a block; use more blocks")
    blocks = -(-stream_words(reals) // 16)
    chunk = -(-blocks // together)
    q = max(m for m in range(1, math.isqrt(a * b) + 1) if a * b % m == 0)
    tile = max(slabs * b, slices * a) * (c + 1) + (a if together == 1 else 0)
    arena = -(-(4 * tile + 68 * chunk) // 16) * 16  # rows, key stream
    arena += 24 * together * threads // 32 + 12 * (a * b // q + q) + 4 * (2 * c + 2)  # sums, turns, columns
    arena += 16 + 8 * slices * a * -(-c // 32)  # places and signs
    if alone:
        pads = 4 * (a * b * c - reals) // 16 + 2
        arena = (
            80 + 3 * (4 * rows * (c + 1) + 16) + 80 * (blocks + pads) + 32 * sums + 4 * (2 * c + rows + slabs * b * -(-c // 32))
        )
        return MixLayout(reals, channels, a, b, c, together, threads, 1, arena, 0, True)
    resident = 1 if alone else max(1, REGISTERS // (threads * registers(a, b, c)))
    return MixLayout(reals, channels, a, b, c, together, threads, resident, arena, 0)


def _check(reals: int, channels: int) -> None:
    if reals % 2 or channels < 1 or reals % channels:
        raise ValueError(f"{reals} reals are not {channels} channels of whole symbols")


def compile_kernels(
    shape: MixLayout, dtype: "np.dtype[Any]", arch: str, logs: Any = None, verbose: bool = False
) -> "ObjectCode":
    """The cubin for ``arch``, such as sm_86; needs NVRTC and no GPU. ``dtype`` of the features is float32 or float16."""
    from cuda.core import Program, ProgramOptions

    report = ["-v"] if verbose else None
    options = ProgramOptions(name="mix", arch=arch, std="c++17", define_macro=shape.macros(dtype), ptxas_options=report)
    return Program(shape.source(), "c++", options).compile("cubin", logs=logs)


class MixKernel:
    """Both kernels for images of one size, on one device. Buffers are the caller's."""

    def __init__(
        self, device: "Device", reals: int, channels: int, dtype: "np.dtype[Any]", shape: MixLayout | None = None
    ) -> None:
        """``shape``: that layout and no other. Raises ValueError for one that the blocks of this GPU cannot hold."""
        self._device, self.dtype, room = device, dtype, device_room(device)
        self._fitting = suited(room, reals, channels, device_largest(device)) if shape is None else (shape,)
        for fits in self._fitting:
            if fits.arena > room:
                raise ValueError(f"an image takes {fits.arena} bytes of each of {fits.together} blocks, more than there are")
        self._kernels: dict[MixLayout, dict[str, Kernel]] = {}
        self._compiled(self._fitting[0])  # what single images take; others when a batch wants them

    def _compiled(self, shape: MixLayout) -> dict[str, "Kernel"]:
        if shape in self._kernels:
            return self._kernels[shape]
        code = _compiled_once(shape, self.dtype, f"sm_{self._device.arch}")
        names = ("mix", "unmix") if shape.together else (*mix_launches.MIX, *mix_launches.UNMIX)
        kernels = {name: code.get_kernel(name) for name in names}
        if shape.together:
            for kernel in kernels.values():
                allow(kernel, shape, self._device)
        self._kernels[shape] = kernels
        return kernels

    def layout(self, batch: int) -> MixLayout:
        """What a batch is worked on with."""
        return layout_for(self._fitting, batch, self._device.properties.multiprocessor_count)

    def workspace(self, batch: int, stream: "Stream") -> "Buffer":
        """What the kernels need for ``batch`` images, used by one launch at a time.

        This compiles the kernels of such a batch, so that no capture has to.
        """
        shape = self.layout(batch)
        self._compiled(shape)
        return self._device.allocate(max(256, 4 * shape.work * batch), stream=stream)

    def mix(
        self,
        stream: "Stream | GraphBuilder",
        features: "Buffer",
        keys: "Buffer",
        on_air: "Buffer",
        scales: "Buffer",
        work: "Buffer",
        batch: int,
    ) -> None:
        """Features [batch, channels, reals / channels] to on_air float32 [batch, padded reals] and scales float32 [batch].

        ``keys`` is uint32 [batch, KEY_WORDS] from ``packet_keys``. A scale is by how much features became louder; where the
        features were not finite it is none.
        """
        shape = self.layout(batch)
        if shape.together:
            return self._launch(stream, shape, "mix", batch, features, keys, on_air, scales)
        own = {"stream": (keys, work), "load": (features, work), "out": (work, on_air, scales)}
        for name in mix_launches.MIX:
            self._launch(stream, shape, name, batch, *own.get(name, (work,)))

    def unmix(
        self,
        stream: "Stream | GraphBuilder",
        received: "Buffer",
        keys: "Buffer",
        features: "Buffer",
        work: "Buffer",
        batch: int,
    ) -> None:
        """The inverse: received float32 [batch, padded reals] to features [batch, channels, reals / channels]."""
        shape = self.layout(batch)
        if shape.together:
            return self._launch(stream, shape, "unmix", batch, received, keys, features)
        own = {"stream": (keys, work), "load_back": (received, work), "out_back": (work, features)}
        for name in mix_launches.UNMIX:
            self._launch(stream, shape, name, batch, *own.get(name, (work,)))

    def _launch(self, stream: "Stream | GraphBuilder", shape: MixLayout, name: str, batch: int, *buffers: "Buffer") -> None:
        from cuda.core import LaunchConfig, launch

        grid = batch * shape.blocks(name)
        if shape.together == 1 and not shape.alone:  # a block takes one image after the other
            grid = min(grid, shape.resident * self._device.properties.multiprocessor_count)
        images = (np.int32(batch),) if shape.together and not shape.alone else ()
        config = LaunchConfig(grid=grid, block=shape.threads, shmem_size=shape.arena)
        launch(stream, config, self._compiled(shape)[name], *buffers, *images)


@lru_cache(maxsize=32)
def _compiled_once(shape: MixLayout, dtype: "np.dtype[Any]", arch: str) -> "ObjectCode":
    """Both ends of a link in one process take the same."""
    return compile_kernels(shape, dtype, arch)


class StructureKernel:
    """``mix.structure`` of features on one device."""

    def __init__(self, device: "Device", reals: int, checked: int, channels: int, dtype: "np.dtype[Any]") -> None:
        """``checked`` channels are looked at; ``channels`` is that number too, or 1 for symbols in their order."""
        code = compile_structure(reals, checked, channels, dtype, f"sm_{device.arch}")
        self._kernel = code.get_kernel("structure")

    def __call__(self, stream: "Stream | GraphBuilder", features: "Buffer", found: "Buffer", batch: int) -> None:
        """Features of a batch to found float32 [batch]."""
        from cuda.core import LaunchConfig, launch

        config = LaunchConfig(grid=batch, block=STRUCTURE_THREADS, shmem_size=8 * STRUCTURE_THREADS)
        launch(stream, config, self._kernel, features, found)


def compile_structure(
    reals: int, checked: int, channels: int, dtype: "np.dtype[Any]", arch: str, logs: Any = None
) -> "ObjectCode":
    """The cubin of the structure kernel. Raises ValueError for more channels than a block has threads."""
    from cuda.core import Program, ProgramOptions

    source, defined = structure_source(reals, checked, channels, dtype)
    options = ProgramOptions(name="structure", arch=arch, std="c++17", define_macro=defined)
    return Program(source, "c++", options).compile("cubin", logs=logs)


def structure_source(reals: int, checked: int, channels: int, dtype: "np.dtype[Any]") -> tuple[str, list[tuple[str, str]]]:
    """The source of the structure kernel and its constants."""
    if checked > STRUCTURE_THREADS or reals % checked or channels not in (1, checked):
        raise ValueError(f"{reals} reals are not {checked} channels of one length, {STRUCTURE_THREADS} at most")
    defined = launches_layout(reals, channels).macros(dtype)
    return COMMON + STRUCTURE, [*defined, ("CHECKED", str(checked)), ("STRUCTURE_THREADS", str(STRUCTURE_THREADS))]


def rounding(values: int) -> float:
    """The largest difference from ``mix.mix`` and ``mix.unmix`` that is to be expected among so many values, at power 1.

    Sums are added in another order, so that the differences are nearly normal, of a deviation of 1.7e-7 to 4.7e-7, which
    was computed, growing with the lengths of the products. The largest real of an image that takes what rounding left of the
    power is off by MAX_LARGEST_OFF at most.
    """
    return 6e-7 * math.sqrt(2 * math.log(2 * values))


def device_room(device: "Device") -> int:
    """Bytes of shared memory that a block may have where blocks form clusters, else 0."""
    clusters = device.compute_capability.major >= 9
    return int(device.properties.max_shared_memory_per_block_optin) if clusters else 0


def device_largest(device: "Device") -> int:
    """The blocks of a cluster that a GPU takes: more than every one does where that has been tried, on whole H100 and H200."""
    capability = device.compute_capability
    whole = (capability.major, capability.minor) == (9, 0) and device.properties.multiprocessor_count > 100
    return MAX_CLUSTER if whole else MAX_PORTABLE


def suited(room: int, reals: int, channels: int, largest: int = MAX_PORTABLE) -> tuple[MixLayout, ...]:
    """From one image to many: blocks that form clusters, of ``room`` bytes each, or several launches."""
    fitting: dict[int, MixLayout] = {}
    for together, alone in ((16, True), (8, True), (8, False), (4, False), (2, False), (1, False)):
        if together > largest:
            continue
        try:
            shape = cluster_layout(reals, together, channels, alone)
        except ValueError:
            continue
        if shape.arena <= room:
            fitting.setdefault(together, shape)
    return tuple(fitting.values()) or (launches_layout(reals, channels),)


def layout_for(fitting: Sequence[MixLayout], batch: int, multiprocessors: int) -> MixLayout:
    """The first by which every block of a batch has a multiprocessor, else the last: blocks that wait for each other least.

    Clusters of more blocks than every GPU takes fill no group of multiprocessors: they get half of all.
    """
    for shape in fitting:
        if batch * shape.together <= multiprocessors // (2 if shape.together > MAX_PORTABLE else 1):
            return shape
    return fitting[-1]


def packet_keys(key: bytes, session: bytes, counters: Sequence[int], model_digest: bytes) -> NDArray[np.uint32]:
    """What the kernels take of the keys of one packet for each counter, secret: uint32 [batch, KEY_WORDS].

    A counter must never be used twice with one session. Raises as ``mix.derive_keys``.
    """
    if len(session) != mix.SESSION_SIZE or len(model_digest) != mix.DIGEST_SIZE:
        raise ValueError(
            f"session must be {mix.SESSION_SIZE} bytes and digest {mix.DIGEST_SIZE}, got {len(session)} and {len(model_digest)}"
        )
    if counters and not 0 <= min(counters) <= max(counters) < 2**64:
        raise ValueError(f"counters must be in 0..2^64-1, got {min(counters)}..{max(counters)}")
    keys = np.empty((len(counters), KEY_WORDS), "<u4")
    keys[:, :8] = np.frombuffer(_session_key(key, session + model_digest), "<u4")
    keys[:, 8:].view("<u8")[:, 0] = counters
    return keys


@lru_cache(maxsize=4)
def _session_key(key: bytes, salt: bytes) -> bytes:
    return derive(key, mix.LABEL, salt)


def allow(kernel: "Kernel", shape: MixLayout, device: "Device") -> None:
    """Lets a kernel have more shared memory, and more blocks in a cluster, than need no asking."""
    from cuda.bindings import driver

    attributes = driver.CUfunction_attribute
    wanted = {attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: shape.arena}
    if shape.together > MAX_PORTABLE:
        wanted[attributes.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED] = 1
    for attribute, value in wanted.items():
        (status,) = driver.cuKernelSetAttribute(attribute, value, kernel.handle, driver.CUdevice(device.device_id))
        if status != driver.CUresult.CUDA_SUCCESS:
            raise ValueError(f"{device.name} refuses {value} as {attribute.name} ({status.name}); keep the mix in the graph")
