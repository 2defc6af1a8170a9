"""The CUDA source of the mix kernels, made for one size of images: products by Hadamard matrices, ChaCha20, passes over rows.

H(m) is that of a core, doubled until it has m rows. A vector of m values lies in a thread's registers; each doubling is m
additions, and a core's product is written out: four inputs have only 8 sums that differ in more than their sign, which all
outputs share. Orders above MAX_IN_REGISTERS, in ``mix_launches``, are multiplied by the bits of the matrix, 8 outputs to a
thread.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.defense.mix import FEW, STICKS, hadamard

MAX_IN_REGISTERS = 64  # values of a vector that a thread holds
MAX_FACTOR_OFF = 1e-5  # in powers of two: of the last factor, from what it is without rounding

COMMON = r"""
#pragma nv_diag_suppress 177  // none of the kernels needs all of this
#ifndef SHIM  // unless it is the tests' own, which checks every access
template <class T> using span = T*;
#define INPUT(type) const type* __restrict__
#define ARENA(name) extern __shared__ __align__(16) char name[]
template <class T> static __device__ T across(T v)  // the sum of a warp, in all of its lanes
{
    for (int d = 16; d; d /= 2) v += __shfl_xor_sync(~0u, v, d);
    return v;
}
static __device__ unsigned long long largest_of(unsigned long long v)
{
    for (int d = 16; d; d /= 2) {
        const unsigned long long other = __shfl_xor_sync(~0u, v, d);
        v = other > v ? other : v;
    }
    return v;
}
static __device__ unsigned bits_of(float x) { return __float_as_uint(x); }
static __device__ float float_of(unsigned bits) { return __uint_as_float(bits); }
static __device__ unsigned turned(unsigned x, int left) { return __funnelshift_l(x, x, left); }
static __device__ unsigned joined(unsigned low, unsigned high, int right) { return __funnelshift_r(low, high, right); }
template <class T> static __device__ void store_once(T* to, T x) { __stcs(to, x); }  // nobody on this GPU reads it soon
static __device__ unsigned one() { return blockDim.y; }  // which no compiler knows: x * one() + y is not for the unit of x + y
#else
static unsigned one() { return 1; }
static unsigned turned(unsigned x, int left) { return x << left | x >> (32 - left); }
static unsigned joined(unsigned low, unsigned high, int right) { return right ? low >> right | high << (32 - right) : low; }
#endif

#if HALF
typedef unsigned short feature;  // the bits of a half; its header is not part of NVRTC
#ifndef SHIM
static __device__ float widen(feature bits)
{
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
static __device__ feature narrow(float value)
{
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

constexpr int ROWS = A * B, SIZE = ROWS * C, PADS = SIZE - REALS;
// words of the key stream, see docs/wire.md
constexpr int LAYER = SIZE / 32, COLUMN_SIGNS = 5 * LAYER, PAD_WORDS = COLUMN_SIGNS + 2, TURNS = PAD_WORDS + 4 * PADS;
constexpr int TURN = P + Q, ORDER = TURNS + 3 * TURN, WORDS = ORDER + C;
constexpr int BLOCKS = (WORDS + 15) / 16;  // of ChaCha20
constexpr int KEY = 10;                    // words of an image's key: 8, and the counter's two
constexpr int MASK_WORDS = (C + 31) / 32;
static_assert(P * Q == ROWS && SIZE % 64 == 0 && C % 4 == 0, "");

// Whether a factor is so near a power of two that every value rounds to what it was, see step 9 of docs/wire.md
static __device__ bool sticks(double factor)
{
    const long long mantissa = (__double_as_longlong(factor) & 0xfffffffffffffll) | 0x3ff0000000000000ll;
    const double one_to_two = __longlong_as_double(mantissa);
    return one_to_two < STICKS || one_to_two > 2 / STICKS;
}
// Whether the largest value takes what rounding left of the power. Most sizes settle it when they are compiled
static __device__ bool takes_rest(double factor) { return MAY_TAKE_REST && (FEW || sticks(factor)); }

// Block number `block` of the stream: out(i, word) takes its 16 words
template <class Key, class Out>
static __device__ void chacha(Key key, int block, Out out)
{
    unsigned s[16] = {0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u, key[0], key[1], key[2], key[3], key[4], key[5],
                      key[6], key[7], 1u + block, key[8], key[9], 0};
    unsigned x[16];
    #pragma unroll
    for (int i = 0; i < 16; i++) x[i] = s[i];
    #pragma unroll 1
    for (int round = 0; round < 10; round++) {
        #pragma unroll
        for (int q = 0; q < 8; q++) {
            const int shift = q / 4;  // columns, then diagonals
            unsigned &a = x[q % 4], &b = x[4 + (q + shift) % 4];
            unsigned &c = x[8 + (q + 2 * shift) % 4], &d = x[12 + (q + 3 * shift) % 4];
            a = b * one() + a, d = turned(d ^ a, 16);  // a multiplication: other units than those that turn and compare
            c = d * one() + c, b = turned(b ^ c, 12);
            a = b * one() + a, d = turned(d ^ a, 8);
            c = d * one() + c, b = turned(b ^ c, 7);
        }
    }
    #pragma unroll
    for (int i = 0; i < 16; i++) out(i, x[i] + s[i]);
}

// A pad of its four words: the same bits everywhere
static __device__ float pad_of(unsigned w0, unsigned w1, unsigned w2, unsigned w3)
{
    const long long sum = (long long)w0 + w1 + w2 + w3 - 2 * 4294967295ll;
    return (float)sum * 0x1.3988e2p-32f;
}

// Row i behind the shuffle is row rows[i] in front; this is the i of a row in front. turn(w) gives word w of the turns
template <class Turn>
static __device__ int place_of(int row, Turn turn)
{
    int x = row / Q, y = row % Q;
    #pragma unroll
    for (int t = 2; t >= 0; t--) {
        x -= (int)((unsigned long long)turn(t * TURN + P + y) * P >> 32);
        x += x < 0 ? P : 0;
        y -= (int)((unsigned long long)turn(t * TURN + x) * Q >> 32);
        y += y < 0 ? Q : 0;
    }
    return x * Q + y;
}

// And rows[i], the row in front that row i behind the shuffle was
template <class Turn>
static __device__ int source_of(int row, Turn turn)
{
    int x = row / Q, y = row % Q;
    #pragma unroll
    for (int t = 0; t < 3; t++) {
        y += (int)((unsigned long long)turn(t * TURN + x) * Q >> 32);
        y -= y < Q ? 0 : Q;
        x += (int)((unsigned long long)turn(t * TURN + P + y) * P >> 32);
        x -= x < P ? 0 : P;
    }
    return x * Q + y;
}

// The C bits of a row in a layer of signs; word(w) gives word w of the stream
struct Mask { unsigned at[MASK_WORDS]; };
template <class Word>
static __device__ Mask mask_of(int layer, int row, Word word)
{
    Mask mask;
    const int first = row * C / 32 + layer * LAYER, shift = row * C % 32;
    #pragma unroll
    for (int w = 0; w < MASK_WORDS; w++) {
        const unsigned low = word(first + w);
        mask.at[w] = C % 32 == 0 ? low : joined(low, word(first + w + 1), shift);
    }
    return mask;
}
static __device__ float flipped(float x, unsigned word, int bit)
{
    return float_of(bits_of(x) ^ (word << (31 - bit) & 0x80000000u));
}
static __device__ void flip(float (&x)[C], const Mask& mask)
{
    #pragma unroll
    for (int k = 0; k < C; k++) x[k] = flipped(x[k], mask.at[k / 32], k % 32);
}

template <int CORE, int M>
static __device__ void doubled(float (&x)[M])
{
    #pragma unroll
    for (int half = CORE; half < M; half *= 2) {
        #pragma unroll
        for (int i = 0; i < M; i++) {
            if ((i / half) % 2) continue;
            const float low = x[i], high = x[i + half];
            x[i] = low + high, x[i + half] = low - high;
        }
    }
}
"""

# For sources that define PITCH and SLAB_PITCH, the words between rows and slabs of their tile, and HELD_ROWS
PLANAR = r"""
// Features of a block, [CHANNELS][PLANE], and where they lie in its tile. A warp takes EACH * 32 neighbours of a channel
constexpr int PLANE = REALS / CHANNELS, RUN = (HELD_ROWS * C + CHANNELS - 1) / CHANNELS + (HELD_ROWS * C % CHANNELS != 0);
constexpr int EACH = RUN >= 256 ? 8 : (RUN + 31) / 32, PIECES = (RUN + 32 * EACH - 1) / (32 * EACH);
constexpr int STEP = 32 * CHANNELS / C ? 32 * CHANNELS / C : 1;  // rows between a lane's features, if
constexpr bool STEADY = 32 * CHANNELS % C == 0 && HELD_ROWS * C % CHANNELS == 0 &&
                        (SLAB_PITCH == B * PITCH || (B % STEP == 0 && EACH * STEP % B == 0));
static __device__ int held(int r) { return r / B * SLAB_PITCH + r % B * PITCH; }  // where a row of the block's slabs lies
struct Feature { int first, index, at; };  // real number, place among the features, place in the tile
static __device__ Feature feature_at(int unit, int lane, int from)
{
    const int channel = unit / PIECES, position = from / CHANNELS + unit % PIECES * (32 * EACH) + lane;
    const int first = position * CHANNELS + channel, at = first - from;
    return {first, channel * PLANE + position, STEADY ? held(at / C) + at % C : at};
}
static __device__ int tile_at(const Feature& f, int i)
{
    if (STEADY) return f.at + i * STEP / B * SLAB_PITCH + i * STEP % B * PITCH;
    const int at = f.at + i * 32 * CHANNELS;
    return held(at / C) + at % C;
}
// One row in its place: signs, times H(c) or its transpose, signs
template <bool BACK>
static __device__ void row_pass(span<float> row, const Mask& before, const Mask& after, float factor = 1)
{
    float x[C];
    #pragma unroll
    for (int k = 0; k < C; k++) x[k] = row[k] * factor;
    flip(x, before);
    BACK ? along_c_back(x) : along_c(x);
    flip(x, after);
    #pragma unroll
    for (int k = 0; k < C; k++) row[k] = x[k];
}
// The last of mixing, whose energy comes back in CHAINS sums
template <int CHAINS>
static __device__ void last_row_pass(span<float> row, const Mask& before, const Mask& after, double (&energies)[CHAINS])
{
    float x[C];
    #pragma unroll
    for (int k = 0; k < C; k++) x[k] = row[k];
    flip(x, before);
    along_c(x);
    flip(x, after);
    #pragma unroll
    for (int k = 0; k < C; k++) {
        energies[k % CHAINS] += (double)x[k] * x[k];
        row[k] = x[k];
    }
}
// Its reals are from.. and features up to `end`; returns the sum of their squares. All loads of a thread's EACH come first
static __device__ float load_features(
    span<float> tile, INPUT(feature) features, int from, int end, int warp, int warps, int lane)
{
    float loud = 0;
    #pragma unroll 1
    for (int unit = warp; unit < CHANNELS * PIECES; unit += warps) {
        const Feature f = feature_at(unit, lane, from);
        feature x[EACH];
        #pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int e = f.first + i * 32 * CHANNELS;
            x[i] = e >= from && e < end ? (feature)features[f.index + 32 * i] : (feature)0;
        }
        #pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int e = f.first + i * 32 * CHANNELS;
            const float value = widen(x[i]);
            if (e >= from && e < end) tile[tile_at(f, i)] = value;
            loud += value * value;
        }
    }
    return loud;
}
static __device__ void store_features(
    span<float> tile, span<feature> features, int from, int end, int warp, int warps, int lane)
{
    #pragma unroll 1
    for (int unit = warp; unit < CHANNELS * PIECES; unit += warps) {
        const Feature f = feature_at(unit, lane, from);
        #pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int e = f.first + i * 32 * CHANNELS;
            if (e >= from && e < end) store_once(features + (f.index + 32 * i), narrow((float)SOFTER * tile[tile_at(f, i)]));
        }
    }
}
"""


def core_of(m: int) -> int:
    """The order that is doubled to m: 1 for a power of two."""
    while m % 2 == 0 and (m == 2 or (m % 4 == 0 and _is_double(m))):
        m //= 2
    return m


def _is_double(m: int) -> bool:
    matrix, half = hadamard(m), m // 2
    top = matrix[:half, :half]
    return bool(np.array_equal(matrix, np.block([[top, top], [top, -top]])))


def product(name: str, matrix: NDArray[np.float64], core: int) -> str:
    """A device function that multiplies the m values of a thread by a doubled matrix of 1 and -1, in their place."""
    m = len(matrix)
    head = f"static __device__ void {name}(float (&x)[{m}])\n{{\n"
    if core == 1:
        return head + "    doubled<1>(x);\n}\n"
    lines = [f"static __device__ void {name}_core(float* x)", "{", f"    float y[{core}];"]
    for first in range(0, core, 4):
        sums: dict[str, str] = {}
        for i, row in enumerate(matrix[:core, first : first + 4].tolist()):
            terms = [f"{'+' if sign == row[0] else '-'} x[{first + k}]" for k, sign in enumerate(row)]
            total = " ".join(terms).removeprefix("+ ")
            if total not in sums:
                sums[total] = f"s{first}_{len(sums)}"
                lines.append(f"    const float {sums[total]} = {total};")
            becomes = (("= -", "= "), ("-= ", "+= "))[first > 0][row[0] > 0]
            lines.append(f"    y[{i}] {becomes}{sums[total]};")
    lines += ["    #pragma unroll", f"    for (int i = 0; i < {core}; i++) x[i] = y[i];", "}"]
    body = f"    doubled<{core}>(x);\n    #pragma unroll\n    for (int i = 0; i < {m}; i += {core}) {name}_core(x + i);\n}}\n"
    return "\n".join(lines) + "\n" + head + body


def table(name: str, matrix: NDArray[np.float64]) -> str:
    """The signs of a matrix as bits, 1 for minus: word w of row i has those of columns 32w on."""
    m, words = len(matrix), -(-len(matrix) // 32)
    bits = np.zeros((m, words * 32), np.uint8)
    bits[:, :m] = matrix < 0
    packed = np.packbits(bits, axis=1, bitorder="little").view("<u4")
    rows = ",\n".join(", ".join(f"{word:#x}u" for word in row) for row in packed.tolist())
    return f"static __device__ const unsigned {name}[{m} * {words}] = {{\n{rows}}};\n"


def matrices_source(a: int, b: int, c: int) -> str:
    """What multiplies vectors along each axis, for mixing and, ``_back``, for undoing it."""
    # rows times H(c) is the transpose for a row in registers
    wanted = {"along_a": hadamard(a), "along_b": hadamard(b), "along_c": hadamard(c).T}
    out = []
    for name, matrix in wanted.items():
        for end, each in (("", matrix), ("_back", matrix.T)):
            if len(matrix) <= MAX_IN_REGISTERS:
                out.append(product(name + end, each, core_of(len(matrix))))
            else:
                out.append(table(name + end, each))
    return "".join(out)


def rest_may_be_taken(a: int, b: int, c: int) -> bool:
    """Whether this size has images of which the largest value takes what rounding left of the power.

    The kernels' factor is SOFTER but for the rounding of step 1 and of sums, some 1e-6 of it; the reference's is that times a
    power of two.
    """
    exponent = math.log2(a * b * c**1.5)
    return a * b * c < FEW or abs(exponent - round(exponent)) < STICKS + MAX_FACTOR_OFF


def macros(reals: int, a: int, b: int, c: int, channels: int, half: bool, least_power: float) -> list[tuple[str, str]]:
    """The constants that any of the sources is compiled with."""
    rows = a * b
    q = max(m for m in range(1, math.isqrt(rows) + 1) if rows % m == 0)
    sizes: dict[str, Any] = {"A": a, "B": b, "C": c, "REALS": reals, "P": rows // q, "Q": q, "CHANNELS": channels}
    sizes |= {"HALF": int(half), "LEAST_POWER": f"{least_power:.9e}f", "SOFTER": f"{1 / (rows * c**1.5):.17e}"}
    sizes |= {"FEW": f"(SIZE < {FEW})", "MAY_TAKE_REST": int(rest_may_be_taken(a, b, c)), "STICKS": f"{2.0**STICKS:.17e}"}
    return [(name, str(value)) for name, value in sizes.items()]


STRUCTURE = r"""
#ifndef SHIM
template <class T> static __device__ T* part(char* arena, int at, int) { return (T*)(arena + at); }
#endif
// How far un-mixed features are from white noise, see ``mix.structure``: a block an image, a thread values of one channel
extern "C" __global__ void __launch_bounds__(STRUCTURE_THREADS) structure(INPUT(feature) features, span<float> found)
{
    ARENA(arena);
    const span<float> sums = part<float>(arena, 0, 2 * STRUCTURE_THREADS), powers = sums, means = sums + STRUCTURE_THREADS;
    const int thread = threadIdx.x, image = blockIdx.x;
    constexpr int PLACES = REALS / CHECKED, EACH = STRUCTURE_THREADS / CHECKED;  // threads of a channel
    INPUT(feature) mine = features + (size_t)image * REALS;
    float power = 0, mean = 0;
    if (thread < EACH * CHECKED) {
        #pragma unroll 8
        for (int p = thread / CHECKED; p < PLACES; p += EACH) {
            // a channel is one run, or channels take turns
            const float x = widen(mine[CHANNELS == 1 ? p * CHECKED + thread % CHECKED : thread % CHECKED * PLACES + p]);
            power += x * x, mean += x;
        }
    }
    powers[thread] = power, means[thread] = mean;
    __syncthreads();
    if (thread < CHECKED) {
        for (int other = 1; other < EACH; other++)
            power += powers[thread + other * CHECKED], mean += means[thread + other * CHECKED];
    }
    __syncthreads();
    if (thread < CHECKED) powers[thread] = power / PLACES, means[thread] = mean / PLACES;
    __syncthreads();
    if (thread) return;
    float all = 0, chi_square = 0;
    for (int k = 0; k < CHECKED; k++) all += powers[k];
    all /= CHECKED;
    for (int k = 0; k < CHECKED; k++) {
        const float uneven = powers[k] / all - 1, shifted = means[k];
        chi_square += uneven * uneven / 2 + shifted * shifted / all;
    }
    found[image] = (PLACES * chi_square - (2 * CHECKED - 1)) / sqrtf(2 * (2 * CHECKED - 1));
}
"""
