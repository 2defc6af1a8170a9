r"""The mix as a CUDA kernel: one launch, every real read once and written once, all between in shared memory.

    mix      symbols [batch, N, 2] ── tile ── signs, L, signs, R, shuffle, signs, L, signs, R, signs ──> on air
    unmix    on air [batch, padded N, 2] ── tile ── the same backwards ──> symbols

A block has an image and keeps it in shared memory, row by row. A pass multiplies the image along one axis: a thread takes a
column of H_a or H_b, or a row of H_c, into registers, and puts it back into its place.

                                    ┌─ neighbours in a warp are neighbours in the tile
    tile[a * b][c + 1] ── a column ─┤
                       ── a row ────┴─ an odd pitch: neighbours are in different banks

The matrices are constants of the compilation and their entries are 1 and -1 (a conference matrix has zeros), so a product is
additions alone; one multiplication at the end makes good for all. Four inputs have only 8 sums that differ in more than their
sign, which all outputs share: a row of 36 costs 13 additions for each of its values, not 36. The keys are a bit for each sign,
in words that a thread has for itself, and 4 bytes for each run of the shuffle.

Traffic of an image of n reals: 8n bytes of symbols, 5n/8 of signs (in whole words) and 16n/c of the order. Besides:

    for each real     32400 reals, 30 x 30 x 36    at least, for one multiprocessor
    additions                                73    18500 clocks at 128 a clock
    shared memory                            16    16200 clocks at 32 a clock, more where the shuffle meets banks twice

So it is bound by shared memory and additions, not by the GPU's memory: the tile of 133 kB leaves room for no second block that
would work while the first one loads. A batch as large as the GPU has multiprocessors takes little longer than one image does.

The result is that of ``semseal.runtime.defense.mix`` up to rounding, within ROUNDING, since sums are added in another order.

Not yet run on a GPU: the tests compile this source for six GPU generations and run it on the CPU; benchmarks/on_gpu.py does
the rest.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.defense.mix import LAYERS, MixKeys, factors, flat, matrices, run_length

if TYPE_CHECKING:
    from cuda.core import Buffer, Device, Kernel, ObjectCode, Stream
    from cuda.core.graph import GraphBuilder

ROUNDING = 4e-6  # of the amplitude of what comes in: the largest difference from the reference
MOST_THREADS = 640  # of a block: leaves each the registers for two vectors of 36
ENOUGH_THREADS = 512  # keep a multiprocessor as busy as more of them would

SOURCE = r"""
constexpr int ROWS = A * B, SIZE = ROWS * C, PITCH = C + 1;
constexpr int RUNS = SIZE / RUN, RUNS_OF_ROW = C / RUN, HELD = (RUNS + THREADS - 1) / THREADS;
// words of a layer of signs along an axis: bit i % 32 of word i / 32 of a vector is that of its value i
constexpr int WORDS_A = (A + 31) / 32 * B * C, WORDS_B = (B + 31) / 32 * A * C, WORDS_C = (C + 31) / 32 * ROWS;
constexpr int SIGNS_1 = WORDS_A, SIGNS_2 = SIGNS_1 + WORDS_B, SIGNS_3 = SIGNS_2 + WORDS_A, SIGNS_4 = SIGNS_3 + WORDS_B;
constexpr int WORDS = SIGNS_4 + WORDS_C;

#ifndef DYNAMIC_SHARED  // unless the tests' own; static shared memory ends at 48 KiB
#define DYNAMIC_SHARED(type, name, count) extern __shared__ type name[]
#endif

template <int M>
static __device__ void turn(float (&x)[M], float sine)
{
    #pragma unroll
    for (int i = 0; i + 1 < M; i += 2) {
        const float even = x[i], odd = x[i + 1];
        x[i] = COSINE * even - sine * odd;
        x[i + 1] = sine * even + COSINE * odd;
    }
}

template <int M>
static __device__ void flip(float (&x)[M], const unsigned* words, int vectors)
{
    #pragma unroll
    for (int w = 0; w < M; w += 32) {
        const unsigned word = words[w / 32 * vectors];
        #pragma unroll
        for (int i = w; i < M && i < w + 32; i++) x[i] = word >> (i - w) & 1 ? -x[i] : x[i];
    }
}

// Multiplies the VECTORS vectors of an axis in their places: value i of vector v is at place(v) + i * STRIDE of the tile.
// `before` and `after` are the signs on either side, or null
template <int M, int VECTORS, int STRIDE, class Place, class Product>
static __device__ void pass(float* tile, Place place, Product product, const unsigned* before, const unsigned* after)
{
    #pragma unroll 1
    for (int v = threadIdx.x; v < VECTORS; v += THREADS) {
        float x[M], y[M];
        float* const vector = tile + place(v);
        #pragma unroll
        for (int i = 0; i < M; i++) x[i] = vector[i * STRIDE];
        if (before) flip(x, before + v, VECTORS);
        product(x, y);
        if (after) flip(y, after + v, VECTORS);
        #pragma unroll
        for (int i = 0; i < M; i++) vector[i * STRIDE] = y[i];
    }
    __syncthreads();
}

template <bool BACK>
static __device__ void along_a(float* tile, const unsigned* before, const unsigned* after)
{
    const auto place = [](int v) { return v / C * PITCH + v % C; };
    const auto product = [](float (&x)[A], float (&y)[A]) { BACK ? left_a_back(x, y) : left_a(x, y); };
    pass<A, B * C, B * PITCH>(tile, place, product, before, after);
}

template <bool BACK>
static __device__ void along_b(float* tile, const unsigned* before, const unsigned* after)
{
    const auto place = [](int v) { return v / C * B * PITCH + v % C; };
    const auto product = [](float (&x)[B], float (&y)[B]) { BACK ? left_b_back(x, y) : left_b(x, y); };
    pass<B, A * C, PITCH>(tile, place, product, before, after);
}

template <bool BACK>
static __device__ void along_c(float* tile, const unsigned* before, const unsigned* after)
{
    const auto place = [](int v) { return v * PITCH; };
    const auto product = [](float (&x)[C], float (&y)[C]) {
        if (BACK) turn(x, -SINE);
        BACK ? right_back(x, y) : right(x, y);
        if (!BACK) turn(y, SINE);
    };
    pass<C, ROWS, 1>(tile, place, product, before, after);
}

static __device__ float* run_at(float* tile, unsigned run)
{
    return tile + run / RUNS_OF_ROW * PITCH + run % RUNS_OF_ROW * RUN;
}

// Run i becomes what run order[i] was, or with BACK the other way round. All runs are in registers while they change places
template <bool BACK>
static __device__ void shuffle_runs(float* tile, const int* order)
{
    static_assert(THREADS % RUNS_OF_ROW == 0, "a thread's runs are at one place of their rows");
    float held[HELD][RUN];
    float* const mine = run_at(tile, threadIdx.x);
    order += threadIdx.x;
    #pragma unroll
    for (int h = 0; h < HELD; h++) {
        if (threadIdx.x + h * THREADS >= RUNS) break;
        const float* const from = BACK ? mine + h * THREADS / RUNS_OF_ROW * PITCH : run_at(tile, order[h * THREADS]);
        #pragma unroll
        for (int k = 0; k < RUN; k++) held[h][k] = from[k];
    }
    __syncthreads();
    #pragma unroll
    for (int h = 0; h < HELD; h++) {
        if (threadIdx.x + h * THREADS >= RUNS) break;
        float* const to = BACK ? run_at(tile, order[h * THREADS]) : mine + h * THREADS / RUNS_OF_ROW * PITCH;
        #pragma unroll
        for (int k = 0; k < RUN; k++) to[k] = held[h][k];
    }
    __syncthreads();
}

// symbols[batch * N], words[batch * WORDS], order[batch * RUNS], on_air[batch * SIZE]
extern "C" __global__ void __launch_bounds__(THREADS) mix(
    const float* __restrict__ symbols, const unsigned* __restrict__ words, const int* __restrict__ order,
    float* __restrict__ on_air)
{
    DYNAMIC_SHARED(float, tile, ROWS * PITCH);
    const size_t image = blockIdx.x;
    symbols += image * N, words += image * WORDS, order += image * RUNS, on_air += image * SIZE;

    #pragma unroll 8
    for (int e = threadIdx.x; e < SIZE; e += THREADS) tile[e / C * PITCH + e % C] = N == SIZE || e < N ? symbols[e] : 0;
    __syncthreads();
    along_a<false>(tile, words, nullptr);
    along_b<false>(tile, nullptr, words + SIGNS_1);
    along_c<false>(tile, nullptr, nullptr);
    shuffle_runs<false>(tile, order);
    along_a<false>(tile, words + SIGNS_2, nullptr);
    along_b<false>(tile, nullptr, words + SIGNS_3);
    along_c<false>(tile, nullptr, words + SIGNS_4);
    #pragma unroll 8
    for (int e = threadIdx.x; e < SIZE; e += THREADS) on_air[e] = LOUDER * tile[e / C * PITCH + e % C];
}

extern "C" __global__ void __launch_bounds__(THREADS) unmix(
    const float* __restrict__ on_air, const unsigned* __restrict__ words, const int* __restrict__ order,
    float* __restrict__ symbols)
{
    DYNAMIC_SHARED(float, tile, ROWS * PITCH);
    const size_t image = blockIdx.x;
    on_air += image * SIZE, words += image * WORDS, order += image * RUNS, symbols += image * N;

    #pragma unroll 8
    for (int e = threadIdx.x; e < SIZE; e += THREADS) tile[e / C * PITCH + e % C] = on_air[e];
    __syncthreads();
    along_c<true>(tile, words + SIGNS_4, nullptr);
    along_b<true>(tile, words + SIGNS_3, nullptr);
    along_a<true>(tile, nullptr, words + SIGNS_2);
    shuffle_runs<true>(tile, order);
    along_c<true>(tile, nullptr, nullptr);
    along_b<true>(tile, words + SIGNS_1, nullptr);
    along_a<true>(tile, nullptr, words);
    #pragma unroll 8
    for (int e = threadIdx.x; e < N; e += THREADS) symbols[e] = SOFTER * tile[e / C * PITCH + e % C];
}
"""


@dataclass(frozen=True)
class MixLayout:
    """How a block of ``threads`` works on an image of ``n`` reals: a matrix of a*b rows and c columns."""

    n: int
    a: int
    b: int
    c: int
    threads: int

    @property
    def size(self) -> int:
        """Reals on air for an image."""
        return self.a * self.b * self.c

    @property
    def runs(self) -> int:
        """What the shuffle moves in an image."""
        return self.size // run_length(self.n)

    @property
    def words(self) -> int:
        """32-bit words of signs for an image."""
        vectors = [(m, self.size // m) for m in (self.a, self.b, self.a, self.b, self.c)]
        return sum(-(-m // 32) * count for m, count in vectors)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return 4 * self.a * self.b * (self.c + 1)

    def macros(self) -> list[tuple[str, str]]:
        """The constants that the source is compiled with."""
        left_a, left_b, right = flat(self.a), flat(self.b), flat(self.c)
        cosine, sine = (right.T @ matrices(self.n)[2])[0, :2]
        # a product with entries of 1 and -1 is too loud by the root of how many a row has; there are two rounds
        scale = 1.0 / math.prod(np.count_nonzero(matrix[0]) for matrix in (left_a, left_b, right))
        louder = math.sqrt(self.size / self.n)
        sizes = {"A": self.a, "B": self.b, "C": self.c, "N": self.n, "RUN": run_length(self.n), "THREADS": self.threads}
        numbers = {"COSINE": cosine, "SINE": sine, "LOUDER": scale * louder, "SOFTER": scale / louder}
        return [(k, str(size)) for k, size in sizes.items()] + [(k, f"{number:.9e}f") for k, number in numbers.items()]

    def source(self) -> str:
        """The CUDA source: a product for each matrix of this size and its transpose, and SOURCE."""
        products = {"left_a": flat(self.a), "left_b": flat(self.b), "right": flat(self.c).T}  # rows x become x H_c
        return "".join(_product(name, m) + _product(f"{name}_back", m.T) for name, m in products.items()) + SOURCE


def _product(name: str, matrix: NDArray[np.float64]) -> str:
    """A device function y = H x, with 1 and -1 for the entries of H: additions of sums of four inputs, each written once."""
    size = len(matrix)
    lines = [f"static __device__ void {name}(const float (&x)[{size}], float (&y)[{size}])", "{"]
    for first in range(0, size, 4):
        sums: dict[str, str] = {}
        for i, row in enumerate(np.sign(matrix[:, first : first + 4]).tolist()):
            lead = next(sign for sign in row if sign)
            terms = [f"{'+' if sign == lead else '-'} x[{first + k}]" for k, sign in enumerate(row) if sign]
            total = " ".join(terms).removeprefix("+ ")
            if total not in sums:
                sums[total] = f"s{first}_{len(sums)}"
                lines.append(f"    const float {sums[total]} = {total};")
            becomes = (("= -", "= "), ("-= ", "+= "))[first > 0][lead > 0]
            lines.append(f"    y[{i}] {becomes}{sums[total]};")
    return "\n".join([*lines, "}", ""])


@lru_cache
def layout(n: int) -> MixLayout:
    """The layout for images of n reals. Raises ValueError unless mix takes such."""
    a, b, c = factors(n)

    def work(threads: int) -> int:
        """What three passes take: the last vectors of a pass keep all threads waiting, also those that have none."""
        values = -(-b * c // threads) * a + -(-a * c // threads) * b + -(-a * b // threads) * c
        return values * max(threads, ENOUGH_THREADS)

    return MixLayout(n, a, b, c, min(range(64, MOST_THREADS + 1, 32), key=work))


def compile_kernels(shape: MixLayout, arch: str, logs: Any = None) -> "ObjectCode":
    """The cubin for ``arch``, such as sm_86; needs NVRTC and no GPU."""
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(name="mix", arch=arch, std="c++17", define_macro=shape.macros())
    return Program(shape.source(), "c++", options).compile("cubin", logs=logs)


class MixKernel:
    """Both kernels for images of one size, on one device. Buffers are the caller's; keys are those that ``pack`` gave."""

    def __init__(self, device: "Device", shape: MixLayout) -> None:
        """Raises ValueError when a block of the GPU has no room for an image."""
        check_room(shape, device.properties.max_shared_memory_per_block_optin)
        code = compile_kernels(shape, f"sm_{device.arch}")
        self.layout = shape
        self._mix, self._unmix = code.get_kernel("mix"), code.get_kernel("unmix")
        for kernel in (self._mix, self._unmix):
            _allow(kernel, shape.shared_bytes, device)

    def mix(
        self, stream: "Stream | GraphBuilder", symbols: "Buffer", words: "Buffer", order: "Buffer", on_air: "Buffer", batch: int
    ) -> None:
        """Symbols float32 [batch, n] to on_air float32 [batch, padded n], another buffer; words and order from ``pack``."""
        self._launch(stream, self._mix, batch, symbols, words, order, on_air)

    def unmix(
        self, stream: "Stream | GraphBuilder", on_air: "Buffer", words: "Buffer", order: "Buffer", symbols: "Buffer", batch: int
    ) -> None:
        """The inverse: on_air float32 [batch, padded n] to symbols float32 [batch, n], another buffer, under the same keys."""
        self._launch(stream, self._unmix, batch, on_air, words, order, symbols)

    def _launch(self, stream: "Stream | GraphBuilder", kernel: "Kernel", batch: int, *buffers: "Buffer") -> None:
        from cuda.core import LaunchConfig, launch

        config = LaunchConfig(grid=batch, block=self.layout.threads, shmem_size=self.layout.shared_bytes)
        launch(stream, config, kernel, *buffers)


def check_room(shape: MixLayout, room: int) -> None:
    """Raises ValueError when a block of the GPU has ``room`` bytes of shared memory and an image needs more.

    Compute capability 9.0 and 10.0 have 232448, 8.0 and 8.7 166912, and 8.6, 8.9 and 12.0 101376, which is not enough for the
    paper's 32400 reals: they need 133200.
    """
    if shape.shared_bytes > room:
        raise ValueError(
            f"an image of {shape.n} reals takes {shape.shared_bytes} bytes of shared memory, this GPU has {room} for a block: "
            "keep the mix in the graph"
        )


def _allow(kernel: "Kernel", shared_bytes: int, device: "Device") -> None:
    """Lets a kernel have more dynamic shared memory than the 48 KiB that need no asking."""
    from cuda.bindings import driver

    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (status,) = driver.cuKernelSetAttribute(attribute, shared_bytes, kernel.handle, driver.CUdevice(device.device_id))
    if status != driver.CUresult.CUDA_SUCCESS:
        raise ValueError(
            f"{device.name} refuses {shared_bytes} bytes of shared memory ({status.name}); keep the mix in the graph"
        )


def pack(keys: MixKeys, n: int) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    """Keys for images of n reals as the kernels take them: words uint32 [batch, layout.words], order int32 [batch, runs].

    Both are secret. ``mix`` and ``unmix`` take the same. Raises ValueError for keys of another size or type, for a sign that is
    neither 1 nor -1 and for an order that does not take every run exactly once: the kernels do not look.
    """
    shape = layout(n)
    batch = keys.order.shape[0]
    for name, array, dtype, wanted in (
        ("signs", keys.signs, np.float32, (LAYERS, batch, shape.size)),
        ("order", keys.order, np.int32, (batch, shape.runs)),
    ):
        if array.dtype != dtype or array.shape != wanted:
            raise ValueError(
                f"the {name} of keys for images of {n} reals must be {np.dtype(dtype)} {list(wanted)}, got {array.dtype} "
                f"{list(array.shape)}; derive them for n = {n}"
            )
    if (np.abs(keys.signs) != 1).any():
        raise ValueError("the signs of keys must be 1 or -1; take them from derive_keys")
    if (np.sort(keys.order, axis=1) != np.arange(shape.runs)).any():
        raise ValueError(f"the order of keys must take each run of 0..{shape.runs - 1} once; take it from derive_keys")
    minus = (keys.signs < 0).reshape(LAYERS, batch, shape.a, shape.b, shape.c)
    layers = [_words(minus[k], axis) for k, axis in enumerate((1, 2, 1, 2, 3))]
    return np.concatenate(layers, axis=1), np.ascontiguousarray(keys.order)


def _words(minus: NDArray[np.bool_], axis: int) -> NDArray[np.uint32]:
    """Bool [batch, a, b, c] as words for the vectors of an axis: all their first words, then all their second ones."""
    vectors = np.moveaxis(minus, axis, 3)
    length = vectors.shape[3]
    bits = np.zeros((*vectors.shape[:3], -(-length // 32) * 32), np.bool_)
    bits[..., :length] = vectors
    words = np.packbits(bits, axis=3, bitorder="little").view("<u4")
    return np.moveaxis(words, 3, 1).reshape(len(minus), -1)
