r"""Pictures as bytes on a GPU, one launch for what eleven operators do in a graph (``semseal.runtime.pixels``).

    unpack   bytes [batch, height, width, 3] ── / 255 ──> image, float32 or float16
    pack     image ── * 255, rounded half to even, 0..255 ──> bytes [batch, height + 1, width, 3]
                  └─ 1 where all of a colour are numbers, else 0 ──> their last row

An image is [batch, height, width, 3], or with ``planes`` [batch, 3, height, width].

A thread does one value: 97,200 for a picture of 180 x 180, which the caches hold, so a launch is what it costs. Of the blocks
of a picture the one that ends last writes the row, by what all of them saw.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cuda.core import Buffer, Device, Stream
    from cuda.core.graph import GraphBuilder

THREADS = 256

SOURCE = r"""
#if HALF
typedef unsigned short real;  // the bits of a half; its header is not part of NVRTC
#ifdef __CUDA_ARCH__
static __device__ float widen(real bits) { float x; asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits)); return x; }
static __device__ real narrow(float x) { real bits; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x)); return bits; }
#endif
#else
typedef float real;
static __device__ float widen(real x) { return x; }
static __device__ real narrow(float x) { return x; }
#endif

#if PLANES
static __device__ size_t place(int i) { return (size_t)(i % 3) * (VALUES / 3) + i / 3; }  // of a byte in an image
#else
static __device__ size_t place(int i) { return i; }
#endif

extern "C" __global__ void unpack(const unsigned char* __restrict__ bytes, real* __restrict__ image)
{
    const size_t start = blockIdx.x / PARTS * (size_t)VALUES;
    const int i = blockIdx.x % PARTS * THREADS + threadIdx.x;
    if (i < VALUES) image[start + place(i)] = narrow(__fdiv_rn((float)bytes[start + i], 255.0f));
}

// flags[2 * batch], zero before the first launch only: colours that miss a number, and blocks of the picture that are done
extern "C" __global__ void pack(const real* __restrict__ image, unsigned char* __restrict__ bytes, unsigned* flags)
{
    __shared__ unsigned seen;  // by the block that is the last of its picture; DONE elsewhere
    constexpr unsigned DONE = 8;
    const size_t picture = blockIdx.x / PARTS;
    const int i = blockIdx.x % PARTS * THREADS + threadIdx.x;
    unsigned char* to = bytes + picture * (VALUES + ROW);
    unsigned* missing = flags + 2 * picture;
    if (i < VALUES) {
        const float x = widen(image[picture * VALUES + place(i)]);
        to[i] = (unsigned char)fminf(fmaxf(rintf(x * 255.0f), 0.0f), 255.0f);
        if (!(x - x == 0)) {  // no number
            atomicOr(missing, 1u << i % 3);
            __threadfence();
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        seen = atomicInc(missing + 1, PARTS - 1) == PARTS - 1 ? atomicAnd(missing, 0) : DONE;  // both zero again
    }
    __syncthreads();
    if (seen == DONE) return;
    for (int k = threadIdx.x; k < ROW; k += THREADS) to[VALUES + k] = seen >> k % 3 & 1 ? 0 : 1;
}
"""


def macros(height: int, width: int, dtype: "np.dtype[Any]", planes: bool) -> list[tuple[str, str]]:
    values = 3 * height * width
    sizes = {
        "HALF": int(dtype == np.float16),
        "PLANES": int(planes),
        "VALUES": values,
        "ROW": 3 * width,
        "PARTS": -(-values // THREADS),
        "THREADS": THREADS,
    }
    return [(name, str(value)) for name, value in sizes.items()]


class PixelKernel:
    """Both kernels for pictures of one size, on one device. Buffers are the caller's."""

    def __init__(self, device: "Device", height: int, width: int, dtype: "np.dtype[Any]", planes: bool) -> None:
        from cuda.core import Program, ProgramOptions

        options = ProgramOptions(
            name="pixels", arch=f"sm_{device.arch}", std="c++17", define_macro=macros(height, width, dtype, planes)
        )
        code = Program(SOURCE, "c++", options).compile("cubin")
        self._unpack, self._pack = code.get_kernel("unpack"), code.get_kernel("pack")
        self._parts = -(-3 * height * width // THREADS)

    def unpack(self, stream: "Stream | GraphBuilder", pixels: "Buffer", image: "Buffer", batch: int) -> None:
        from cuda.core import LaunchConfig, launch

        launch(stream, LaunchConfig(grid=batch * self._parts, block=THREADS), self._unpack, pixels, image)

    def workspace(self, device: "Device", batch: int, stream: "Stream") -> "Buffer":
        """What ``pack`` needs for ``batch`` pictures, zeroed; used by one launch at a time."""
        flags = device.allocate(8 * batch, stream=stream)
        flags.fill(0, stream=stream)
        return flags

    def pack(self, stream: "Stream | GraphBuilder", image: "Buffer", pixels: "Buffer", flags: "Buffer", batch: int) -> None:
        from cuda.core import LaunchConfig, launch

        launch(stream, LaunchConfig(grid=batch * self._parts, block=THREADS), self._pack, image, pixels, flags)
