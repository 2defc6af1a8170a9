r"""The scheme index as a CUDA kernel, fused with power normalisation and with the order of the symbols.

    transmit   features [batch, c, h, w] ── unit power per image ── rows, channel fastest ── scattered ──> symbols [batch, N, 2]
    receive    symbols [frames, N, 2] ── rows gathered ── channel slowest ──> features [batch, c, h, w]

One launch each; every feature is read once and every symbol written once. An image is shared by ``parts`` blocks of
``rows`` rows, which turn their rows in shared memory:

    a channel of the block's rows is one run of the features   ─┐                  ┌─ a row of the symbols is one run
    (warps read 32 neighbours)                                  ├─ tile[c][pitch] ─┤  (threads write 16 bytes)

A block that sends must know the power of the whole image before it writes. From compute capability 9.0 on an image's
blocks, if they are 8 at most, are a cluster: each pushes the sums of its squares into the others' shared memory, and waits
until all have come. Elsewhere a block leaves its sums in device memory and waits for those of its image's other
blocks. Those take their work by a ticket and not by blockIdx, so the blocks that a waiting block needs have begun or are
next; the host makes sure that the GPU holds as many as one image has in each of two launches, so that two that have begun half
an image each cannot keep each other from the rest. More at once, of several links on a small GPU, are not provided for.

Sums are added in one fixed order, by IEEE operations that the compiler may not contract, so ``reference_transmit`` gives the
same bits. Sizes are constants of the compilation.

What bounds ``transmit`` at batch 1024 is how much is in flight: 17 kB in each of six blocks of a multiprocessor, of which a
block moves nothing from its last load to its first store. A lane's 9 loads of a channel are in flight together, and where a
multiprocessor has 2,048 threads there are eight blocks (32 registers a thread).

The tests compile this source for six GPU generations and run it on the CPU; benchmarks/on_gpu.py does the rest. In bytes per
second of a device-to-device copy at batch 1024 (the goal is 80 %), and added to a CUDA graph at batch 1 (the goal is 4 us), the
bits being the reference's in every run:

                                                    float32    float16    batch 1
    transmit, H100, commit 6f07d25                  64 %       56 %       4.4 us    copies of 2.94 TB/s
              H200, the same code                   53 %                  3.9 us    copies of 4.1 TB/s
              H200, sums pushed, without a fence    55 %       48 %       3.8 us
              H200, and all loads at once           72 %       63 %       2.8 us
              H200, and eight blocks, not six       77 %       66 %       3.0 us    commit bf936f0, as now
    receive, H100                                   94 %       93 %       2.2 us
             H200, commit bf936f0                   90 %       84 %       2.2 us

One block for all of an image, the next one on its way into L2, reaches 54 %.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.defense import index as scheme

if TYPE_CHECKING:
    from cuda.core import Buffer, Device, ObjectCode, Stream
    from cuda.core.graph import GraphBuilder

THREADS = 256
WARPS = THREADS // 32
LAUNCHES = 2  # that may be under way at once: an engine's two lanes, or its engines for bytes and for floats
# bytes of rows that a block aims for: six blocks fit every multiprocessor; 16 x 45 x 45 would make nine blocks
TILE_BYTES = 16 * 2**10
MAX_TOGETHER = 8  # blocks of a cluster; for so few a block may have more rows
MAX_TOGETHER_TILE_BYTES = 24 * 2**10
MAX_TILE_BYTES = 46 * 2**10  # static shared memory is 48 KiB on every GPU; the sums and the ticket need a little over 1 KiB

SOURCE = r"""
constexpr int ROW = W * C;      // floats of a row: one run of the symbols
constexpr int PLANE = H * W;    // one channel of an image: one run of the features
constexpr int WARPS = THREADS / 32;

#ifdef __CUDA_ARCH__
#if TOGETHER  // an image's blocks are a cluster
#define CLUSTER __cluster_dims__(PARTS, 1, 1)
// An asynchronous store to the place that `mine` is in another block, which counts bytes at `arrivals` there: no fence
static __device__ void give(float* mine, unsigned long long* arrivals, int block, float value)
{
    unsigned theirs, count;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(theirs) : "r"((unsigned)__cvta_generic_to_shared(mine)), "r"(block));
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(count) : "r"((unsigned)__cvta_generic_to_shared(arrivals)), "r"(block));
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
                 ::"r"(theirs), "r"(__float_as_uint(value)), "r"(count) : "memory");
}
static __device__ void begun(unsigned long long* arrivals, int bytes)  // nobody reaches into a block that has not begun
{
    const unsigned at = (unsigned)__cvta_generic_to_shared(arrivals);
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(at) : "memory");
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
static __device__ void all_begun() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
static __device__ void arrived(unsigned long long* arrivals)
{
    const unsigned at = (unsigned)__cvta_generic_to_shared(arrivals);
    unsigned done;
    do {
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0;\n"
                     "selp.u32 %0, 1, 0, p;\n}" : "=r"(done) : "r"(at) : "memory");
    } while (!done);
}
#else
#define CLUSTER
#endif
static __device__ float across(float sum)  // the sum of a warp, in all of its lanes
{
    for (int d = 16; d; d /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, d));
    return sum;
}
#endif

#if HALF
typedef unsigned short feature;  // the bits of a half; its header is not part of NVRTC
#ifdef __CUDA_ARCH__
static __device__ float widen(feature bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
static __device__ feature narrow(float value) {
    feature bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif
#else
typedef float feature;
static __device__ float widen(feature value) { return value; }
static __device__ feature narrow(float value) { return value; }
#endif

struct alignas(4 * VECTOR) vector { float at[VECTOR]; };

// A lane's features of one channel of the block's rows go into the tile, their squares to the sum; EACH loads come first
constexpr int TURNS = (ROWS * W + 31) / 32, EACH = TURNS < 10 ? TURNS : 8;
static __device__ float take(const feature* __restrict__ from, float* to, int count, int lane, float sum)
{
    for (int start = lane; start < count; start += 32 * EACH) {
        feature x[EACH];
        #pragma unroll
        for (int i = 0; i < EACH; i++) x[i] = start + 32 * i < count ? from[start + 32 * i] : (feature)0;
        #pragma unroll
        for (int i = 0; i < EACH; i++) {
            if (start + 32 * i >= count) break;
            const float value = widen(x[i]);
            to[start + 32 * i] = value;
            sum = __fadd_rn(sum, __fmul_rn(value, value));
        }
    }
    return sum;
}

static __device__ float scale_of(const float* all, int lane)  // of the sums of all warps of an image
{
    float total = 0;
    for (int w = lane; w < PARTS * WARPS; w += 32) total = __fadd_rn(total, *(const volatile float*)&all[w]);
    total = across(total);
    const float power = __fdiv_rn(2 * total, C * PLANE);
    return __fdiv_rn(1, __fsqrt_rn(power < 1e-20f ? 1e-20f : power));  // an all-zero image stays zero
}

// place[batch * H]: where each row goes; sums[batch * PARTS * WARPS]; state[1 + batch], zero before the first launch only
extern "C" __global__ void CLUSTER __launch_bounds__(THREADS, RESIDENT) transmit(
    const feature* __restrict__ features, const int* __restrict__ place, float* __restrict__ symbols, float* sums,
    unsigned* state)
{
    __shared__ float tile[C * PITCH];
    __shared__ int places[ROWS];
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
#if TOGETHER
    __shared__ float sums_here[PARTS * WARPS];
    __shared__ unsigned long long arrivals;
    begun(&arrivals, 4 * PARTS * WARPS);
    const size_t image = blockIdx.x / PARTS;
    const int part = blockIdx.x % PARTS, first = part * ROWS;
#else
    constexpr unsigned TURN = 0x80000000u;
    __shared__ unsigned ticket;
    if (thread == 0) ticket = atomicInc(&state[0], gridDim.x - 1);  // the last one sets it back for the next launch
    __syncthreads();
    const size_t image = ticket / PARTS;
    const int part = ticket % PARTS, first = part * ROWS;
#endif
    const int rows = H - first < ROWS ? H - first : ROWS;

    // read C * rows * W features (4 or 2 bytes each). Runs of an odd width start anywhere, so a lane loads one feature: a
    // warp's 32 are neighbours, and neither side of the tile has bank conflicts
    for (int row = thread; row < rows; row += THREADS) places[row] = place[image * H + first + row];
    const feature* source = features + image * C * PLANE + first * W;
    float sum = 0;
    for (int k = warp; k < C; k += WARPS) sum = take(source + k * PLANE, tile + k * PITCH, rows * W, lane, sum);
    sum = across(sum);

    // the sums of all warps of the image, which each warp adds up for itself
#if TOGETHER
    __syncwarp();
    all_begun();
    if (lane < PARTS) give(&sums_here[part * WARPS + warp], &arrivals, lane, sum);
    const float* all = sums_here;
#else
    float* all = sums + image * PARTS * WARPS;
    if (lane == 0) {
        *(volatile float*)&all[part * WARPS + warp] = sum;
        __threadfence();
    }
#endif
    __syncthreads();
#if TOGETHER
    arrived(&arrivals);
#else
    // meet the image's other blocks: their arrivals add up to TURN, which flips the top bit, whatever it was, and leaves the
    // other bits zero for the next launch
    if (thread == 0) {
        const unsigned before = atomicAdd(&state[1 + image], part == 0 ? TURN - (PARTS - 1) : 1u);
        while (((before ^ *(volatile unsigned*)&state[1 + image]) & TURN) == 0) __nanosleep(32);
        __threadfence();
    }
    __syncthreads();
#endif
    const float scale = scale_of(all, lane);

    // write rows * ROW floats, 4 * VECTOR bytes at a time
    for (int v = thread; v < rows * (ROW / VECTOR); v += THREADS) {
        vector out;
        for (int i = 0; i < VECTOR; i++) {
            const int e = v * VECTOR + i;
            out.at[i] = __fmul_rn(tile[e % C * PITCH + e / C], scale);
        }
        const int row = v / (ROW / VECTOR);
        const size_t to = places[row];
        *(vector*)(symbols + to * ROW + (v * VECTOR - row * ROW)) = out;
    }
}

// index[batch * H]: which row of the frames' each row of the features is
extern "C" __global__ void __launch_bounds__(THREADS, 6) receive(
    const float* __restrict__ symbols, const int* __restrict__ index, feature* __restrict__ features)
{
    __shared__ float tile[C * PITCH];
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const size_t image = blockIdx.x / PARTS;
    const int part = blockIdx.x % PARTS, first = part * ROWS;
    const int rows = H - first < ROWS ? H - first : ROWS;

    // read rows * ROW floats, 4 * VECTOR bytes at a time
    for (int v = thread; v < rows * (ROW / VECTOR); v += THREADS) {
        const int row = v / (ROW / VECTOR);
        const size_t from = index[image * H + first + row];
        const vector in = *(const vector*)(symbols + from * ROW + (v * VECTOR - row * ROW));
        for (int i = 0; i < VECTOR; i++) {
            const int e = v * VECTOR + i;
            tile[e % C * PITCH + e / C] = in.at[i];
        }
    }
    __syncthreads();

    // write C * rows * W features (4 or 2 bytes each), a warp 32 neighbours
    feature* out = features + image * C * PLANE + first * W;
    for (int k = warp; k < C; k += WARPS) {
        #pragma unroll 8
        for (int j = lane; j < rows * W; j += 32) out[k * PLANE + j] = narrow(tile[k * PITCH + j]);
    }
}
"""


@dataclass(frozen=True)
class TileLayout:
    """How blocks share an image of features [c, h, w]: ``parts`` blocks of up to ``rows`` rows, tile [c, pitch] floats."""

    c: int
    h: int
    w: int
    rows: int
    parts: int
    pitch: int
    vector: int

    @property
    def n_symbols(self) -> int:
        """N, complex symbols of an image."""
        return self.c * self.h * self.w // 2

    def together(self, arch: str) -> bool:
        """Whether an image's blocks are a cluster on ``arch``, such as sm_90: of those all begin at once."""
        return 1 < self.parts <= MAX_TOGETHER and int(arch.removeprefix("sm_")) >= 90

    def macros(self, dtype: np.dtype[Any], arch: str) -> list[tuple[str, str]]:
        """The constants that the source is compiled with for ``arch``."""
        generation, together = int(arch.removeprefix("sm_")), self.together(arch)
        resident = 8 if together and generation in (90, 100, 103) else 6  # of 2,048 or 1,536 threads
        sizes = {"C": self.c, "H": self.h, "W": self.w, "ROWS": self.rows, "PARTS": self.parts, "PITCH": self.pitch}
        sizes |= {
            "VECTOR": self.vector,
            "THREADS": THREADS,
            "HALF": int(dtype == np.float16),
            "TOGETHER": int(together),
            "RESIDENT": resident,
        }
        return [(name, str(value)) for name, value in sizes.items()]


def tile_layout(c: int, h: int, w: int) -> TileLayout:
    """The layout for a feature shape. Raises ValueError for one that has no whole symbols or no room in shared memory."""
    if min(c, h, w) < 1 or c * h * w % 2:
        raise ValueError(f"features must be [c, h, w] with an even number of values, got [{c}, {h}, {w}]")
    parts = -(-h // max(1, min(h, TILE_BYTES // (4 * c * w))))
    if parts > MAX_TOGETHER and 4 * c * w * -(-h // MAX_TOGETHER) <= MAX_TOGETHER_TILE_BYTES:
        parts = MAX_TOGETHER
    rows = -(-h // parts)
    parts = -(-h // rows)
    vector = next(size for size in (4, 2, 1) if w * c % size == 0)
    pitch = min(range(rows * w, rows * w + 32), key=lambda pitch: _conflicts(c, pitch, vector))
    if 4 * c * pitch > MAX_TILE_BYTES or parts > THREADS:
        raise ValueError(
            f"features [{c}, {h}, {w}] are too large for the kernel: it holds rows of up to {MAX_TILE_BYTES // 4} values and "
            f"{THREADS} parts; keep the index in the graph"
        )
    return TileLayout(c, h, w, rows, parts, pitch, vector)


def _conflicts(c: int, pitch: int, vector: int) -> int:
    """How many lanes of a warp meet in the busiest bank when each takes value ``vector * lane`` of the rows."""
    value = vector * np.arange(32)
    return int(np.bincount((value % c * pitch + value // c) % 32).max())


def compile_kernels(shape: TileLayout, dtype: np.dtype[Any], arch: str, logs: Any = None) -> "ObjectCode":
    """The cubin for ``arch``, such as sm_86; needs NVRTC and no GPU. ``dtype`` of the features is float32 or float16."""
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(name="scheme_index", arch=arch, std="c++17", define_macro=shape.macros(dtype, arch))
    return Program(SOURCE, "c++", options).compile("cubin", logs=logs)


class SchemeKernel:
    """Both kernels for one feature shape, on one device. Buffers are the caller's, and so is checking an index."""

    def __init__(self, device: "Device", shape: TileLayout, dtype: np.dtype[Any]) -> None:
        """Raises ValueError when the GPU cannot hold all blocks that wait for each other at once."""
        arch = f"sm_{device.arch}"
        code = compile_kernels(shape, dtype, arch)
        self.layout, self.dtype = shape, dtype
        self._transmit, self._receive = code.get_kernel("transmit"), code.get_kernel("receive")
        held = self._transmit.occupancy.max_active_blocks_per_multiprocessor(THREADS, 0)
        held *= device.properties.multiprocessor_count
        needed = shape.parts if shape.parts == 1 or shape.together(arch) else LAUNCHES * shape.parts
        if held < needed:
            raise ValueError(
                f"the GPU holds {held} blocks at once, images of [{shape.c}, {shape.h}, {shape.w}] need {needed}; "
                "keep the index in the graph"
            )

    def workspace(self, device: "Device", batch: int, stream: "Stream") -> "Buffer":
        """What ``transmit`` needs for ``batch`` images, no more and no fewer, zeroed; used by one launch at a time."""
        work = device.allocate(4 * (1 + batch + batch * self.layout.parts * WARPS), stream=stream)
        work.fill(0, stream=stream)
        return work

    def transmit(
        self,
        stream: "Stream | GraphBuilder",
        features: "Buffer",
        place: "Buffer",
        symbols: "Buffer",
        work: "Buffer",
        batch: int,
    ) -> None:
        """Features [batch, c, h, w] to symbols float32 [batch, N, 2]; ``place`` is int32 [batch, h] from ``index.inverse``."""
        from cuda.core import LaunchConfig, launch

        config = LaunchConfig(grid=batch * self.layout.parts, block=THREADS)
        sums = int(work.handle) + 4 * (1 + batch)
        launch(stream, config, self._transmit, features, place, symbols, sums, work)

    def receive(
        self, stream: "Stream | GraphBuilder", symbols: "Buffer", index: "Buffer", features: "Buffer", batch: int
    ) -> None:
        """Symbols float32 [frames, N, 2] to features [batch, c, h, w]; ``index`` is int32 [batch, h], checked."""
        from cuda.core import LaunchConfig, launch

        config = LaunchConfig(grid=batch * self.layout.parts, block=THREADS)
        launch(stream, config, self._receive, symbols, index, features)


def reference_transmit(features: NDArray[np.floating], index: NDArray[np.int32]) -> NDArray[np.float32]:
    """What ``transmit`` gives, to the bit: features [batch, c, h, w] and index [batch, h] to symbols [batch, N, 2].

    The sum of squares: thread t = 32a + l of a block adds channels a, a + WARPS, ... and in each of them every 32nd value
    from l on; a warp adds halves to halves. Of the warps of an image, block by block, lane l adds every 32nd from l on;
    then halves to halves again.
    """
    batch, c, h, w = features.shape
    shape = tile_layout(c, h, w)
    x = features.astype(np.float32)
    squares = np.zeros((batch, shape.parts, -(-c // WARPS) * WARPS, -(-shape.rows * w // 32) * 32), np.float32)
    for part in range(shape.parts):
        run = np.square(x[:, :, part * shape.rows : (part + 1) * shape.rows]).reshape(batch, c, -1)
        squares[:, part, :c, : run.shape[2]] = run  # zeros beyond it change no sum
    threads = np.zeros((batch, shape.parts, WARPS, 32), np.float32)
    for k in range(0, squares.shape[2], WARPS):
        for j in range(0, squares.shape[3], 32):
            threads += squares[:, :, k : k + WARPS, j : j + 32]
    warps = _across(threads).reshape(batch, -1)
    lanes = np.zeros((batch, 32), np.float32)
    for w0 in range(0, warps.shape[1], 32):
        some = warps[:, w0 : w0 + 32]
        lanes[:, : some.shape[1]] += some
    total = _across(lanes)
    power = np.float32(2) * total / np.float32(c * h * w)
    scale = np.float32(1) / np.sqrt(np.maximum(power, np.float32(1e-20)))
    rows = (x * scale[:, None, None, None]).transpose(0, 2, 3, 1).reshape(batch * h, w * c)
    return scheme.gather(rows, index).reshape(batch, -1, 2)


def _across(lanes: NDArray[np.float32]) -> NDArray[np.float32]:
    """[..., 32] to the sums that a warp finds."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def reference_receive(symbols: NDArray[np.float32], index: NDArray[np.int32], c: int, w: int) -> NDArray[np.float32]:
    """What ``receive`` gives: symbols [frames, N, 2] and index [batch, h] to features [batch, c, h, w], float32."""
    batch, h = index.shape
    rows = scheme.gather(symbols.reshape(-1, w * c), index)
    return np.ascontiguousarray(rows.reshape(batch, h, w, c).transpose(0, 3, 1, 2))
