"""The mix kernels' own source, compiled by g++ and run on the CPU under a checker (mix_shim.h), called as on a GPU."""

import ctypes
import hashlib
import os
import subprocess
import threading
from pathlib import Path

import numpy as np
from semseal.runtime.gpu import mix_launches
from semseal.runtime.gpu.mix_kernel import KEY_WORDS, MixLayout, structure_source

SHIM, RUNS = (Path(__file__).parent / f"mix_shim.{kind}" for kind in ("h", "cpp"))
SHARED = threading.Lock()  # what all libraries of a folder share is compiled once
# a place outside an array in registers, or a shift by 32, ends the process
CHECKS = ["-fsanitize=bounds,alignment,signed-integer-overflow,shift", "-fsanitize-undefined-trap-on-error"]
# a fortified longjmp takes a jump to another stack for a mistake
FLAGS = ["-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-ffp-contract=off", "-fPIC", "-Wno-unknown-pragmas", *CHECKS]
TOGETHER = r"""
#if ALONE
#define GRID(batch) batch * G
#define IMAGES
#else
#define GRID(batch) (G == 1 ? (batch + 1) / 2 : batch * G)  // one block takes one image after the other
#define IMAGES , batch
#endif
extern "C" const char* run_mix(feature* features, unsigned* keys, float* on_air, float* scales, int batch, int order)
{
    return launch(GRID(batch), THREADS, G, ARENA_BYTES, order, [=] {
        mix(outside(features, batch * REALS), outside(keys, batch * KEY), outside(on_air, batch * SIZE),
            outside(scales, batch) IMAGES);
    });
}
extern "C" const char* run_unmix(float* received, unsigned* keys, feature* features, int batch, int order)
{
    return launch(GRID(batch), THREADS, G, ARENA_BYTES, order, [=] {
        unmix(outside(received, batch * SIZE), outside(keys, batch * KEY), outside(features, batch * REALS) IMAGES);
    });
}
extern "C" int blocks_of(const char*) { return G; }
"""
LAUNCHES = r"""
#define RUN(name, parts, ...) \
    if (const char* wrong = launch(batch * parts, THREADS, 1, 0, order, [=] { name(__VA_ARGS__); }); wrong[0]) return wrong;
#define WORKSPACE outside(work, (long)batch * WORK)
extern "C" const char* run_mix(feature* features, unsigned* keys, float* on_air, float* scales, unsigned* work, int batch,
                               int order)
{
    RUN(stream, STREAM_PARTS, outside(keys, batch * KEY), WORKSPACE)
    RUN(load, PARTS, outside(features, batch * REALS), WORKSPACE)
    RUN(rows_1, ROW_PARTS, WORKSPACE)
    RUN(b_xy, B_PARTS, WORKSPACE)
    RUN(a_shuffle, A_PARTS, WORKSPACE)
    RUN(rows_2, ROW_PARTS, WORKSPACE)
    RUN(b_xy, B_PARTS, WORKSPACE)
    RUN(a_yx, A_PARTS, WORKSPACE)
    RUN(rows_3, ROW_PARTS, WORKSPACE)
    RUN(out, PARTS, WORKSPACE, outside(on_air, (long)batch * SIZE), outside(scales, batch))
    return "";
}
extern "C" const char* run_unmix(float* received, unsigned* keys, feature* features, unsigned* work, int batch, int order)
{
    RUN(stream, STREAM_PARTS, outside(keys, batch * KEY), WORKSPACE)
    RUN(load_back, PARTS, outside(received, (long)batch * SIZE), WORKSPACE)
    RUN(rows_1_back, ROW_PARTS, WORKSPACE)
    RUN(b_xy_back, B_PARTS, WORKSPACE)
    RUN(a_yx_back, A_PARTS, WORKSPACE)
    RUN(rows_2_back, ROW_PARTS, WORKSPACE)
    RUN(a_shuffle_back, A_PARTS, WORKSPACE)
    RUN(b_yx_back, B_PARTS, WORKSPACE)
    RUN(rows_3_back, ROW_PARTS, WORKSPACE)
    RUN(out_back, PARTS, WORKSPACE, outside(features, (long)batch * REALS))
    return "";
}
extern "C" int blocks_of(const char* name)
{
    const std::string kernel(name);
    if (kernel == "stream") return STREAM_PARTS;
    if (kernel.rfind("rows", 0) == 0) return ROW_PARTS;
    if (kernel[0] == 'a') return A_PARTS;
    return kernel[0] == 'b' ? B_PARTS : PARTS;
}
"""


class OnCpu:
    """Both directions for one layout. Raises AssertionError for what the checker found."""

    def __init__(self, folder: Path, shape: MixLayout, dtype: type = np.float32, source: str | None = None) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        macros = [f"-D{name}={value}" for name, value in shape.macros(self.dtype)]
        entries = TOGETHER if shape.together else LAUNCHES
        self.library = compiled(folder, (source or shape.source()) + entries, macros)
        self.library.run_mix.restype = self.library.run_unmix.restype = ctypes.c_char_p
        self.work = np.full(0, 0xFFFFFFFF, np.uint32)

    def blocks(self, kernel: str) -> int:
        """Blocks for each image as the source counts them."""
        return int(self.library.blocks_of(kernel.encode()))

    @property
    def launches(self) -> tuple[str, ...]:
        return ("mix", "unmix") if self.shape.together else (*mix_launches.MIX, *mix_launches.UNMIX)

    def mix(self, features: np.ndarray, keys: np.ndarray, order: int = 2) -> tuple[np.ndarray, np.ndarray]:
        batch = len(features)
        features, keys = np.ascontiguousarray(features, self.dtype), np.ascontiguousarray(keys, np.uint32)
        assert features.shape == (batch, self.shape.reals)
        assert keys.shape == (batch, KEY_WORDS)
        on_air, scales = np.full((batch, self.shape.size), np.nan, np.float32), np.full(batch, np.nan, np.float32)
        self._run(self.library.run_mix, features, keys, on_air, scales, order=order)
        return on_air, scales

    def unmix(self, received: np.ndarray, keys: np.ndarray, order: int = 2) -> np.ndarray:
        received, keys = np.ascontiguousarray(received, np.float32), np.ascontiguousarray(keys, np.uint32)
        features = np.full((len(received), self.shape.reals), np.nan, self.dtype)
        self._run(self.library.run_unmix, received, keys, features, order=order)
        return features

    def _run(self, function, *arrays: np.ndarray, order: int) -> None:
        batch = len(arrays[0])
        if not self.shape.together:
            if len(self.work) < batch * self.shape.work:  # kept, as a replayed graph keeps it
                self.work = np.full(batch * self.shape.work, 0xFFFFFFFF, np.uint32)
            arrays = (*arrays, self.work)
        wrong = function(*(ctypes.c_void_p(array.ctypes.data) for array in arrays), batch, order).decode()
        assert wrong == "", wrong


def compiled(folder: Path, source: str, macros: list[str]) -> ctypes.CDLL:
    code = f'#include "{SHIM}"\n{source}'
    name = hashlib.sha256((" ".join(macros) + code + SHIM.read_text() + RUNS.read_text()).encode()).hexdigest()[:16]
    library, runs = folder / f"{name}.so", folder / "mix_shim.o"
    if not library.exists():
        with SHARED:
            if not runs.exists():
                gcc(runs, *FLAGS, "-c", RUNS)
        gcc(library, *FLAGS, "-shared", *macros, runs, "-x", "c++", "-", code=code)
    return ctypes.CDLL(str(library))


def gcc(made: Path, *arguments: str | Path, code: str = "") -> None:
    """Compiles to a file that is there whole or not at all: several processes may want it."""
    begun = made.with_name(f"{os.getpid()}-{threading.get_ident()}-{made.name}")
    done = subprocess.run(["g++", "-o", begun, *arguments], input=code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    begun.replace(made)


STRUCTURE = r"""
extern "C" const char* run(feature* features, float* found, int batch)
{
    return launch(batch, STRUCTURE_THREADS, 1, 8 * STRUCTURE_THREADS, 2,
                  [=] { structure(outside(features, batch * REALS), outside(found, batch)); });
}
"""


def check_structure(folder: Path, features: np.ndarray, reals: int, checked: int, channels: int) -> np.ndarray:
    """What the structure kernel finds in features float32 [batch, reals]."""
    source, defined = structure_source(reals, checked, channels, np.dtype(np.float32))
    library = compiled(folder, source + STRUCTURE, [f"-D{name}={value}" for name, value in defined])
    library.run.restype = ctypes.c_char_p
    features, found = np.ascontiguousarray(features, np.float32), np.full(len(features), np.nan, np.float32)
    wrong = library.run(ctypes.c_void_p(features.ctypes.data), ctypes.c_void_p(found.ctypes.data), len(features)).decode()
    assert wrong == "", wrong
    return found
