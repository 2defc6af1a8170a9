"""The mix kernel's own source, compiled by NVRTC for GPUs that are not here and by g++ for the CPU that is.

The second runs it (cuda_shim.h) against the NumPy reference, within the rounding that the module states. What needs a GPU is in
benchmarks/on_gpu.py.
"""

import ctypes
import hashlib
import io
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from semseal.runtime.defense.mix import MixKeys, derive_keys, factors, mix, padded_size, unmix
from semseal.runtime.gpu.mix_kernel import MOST_THREADS, ROUNDING, SOURCE, MixLayout, check_room, compile_kernels, layout, pack

SHIM = Path(__file__).parent / "cuda_shim.h"
PAPER = 32400
GUARD = 61  # values on either side of a buffer; odd, so that images begin where only 4 divides
ENTRIES = r"""
extern "C" bool run_mix(const float* symbols, const unsigned* words, const int* order, float* on_air,
                        unsigned batch, unsigned turns) {
    return launch(batch, THREADS, 2, turns, [=] { mix(symbols, words, order, on_air); });
}
extern "C" bool run_unmix(const float* on_air, const unsigned* words, const int* order, float* symbols,
                          unsigned batch, unsigned turns) {
    return launch(batch, THREADS, 2, turns, [=] { unmix(on_air, words, order, symbols); });
}
"""


class OnCpu:
    """Both kernels for one size of image, compiled by g++."""

    def __init__(self, folder: Path, n: int, source: str | None = None) -> None:
        self.layout = layout(n)
        macros = [f"-D{name}={value}" for name, value in self.layout.macros()]
        code = f'#include "{SHIM}"\n{source or self.layout.source()}\n{ENTRIES}'
        name = hashlib.sha256((" ".join(macros) + code).encode()).hexdigest()[:16]
        library = folder / f"{name}.so"
        if not library.exists():
            (folder / f"{name}.cpp").write_text(code)
            # a place outside the tile or a register array ends the process
            checks = ["-fsanitize=bounds,alignment,signed-integer-overflow", "-fsanitize-undefined-trap-on-error"]
            flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-pthread", *checks, *macros]
            done = subprocess.run(
                ["g++", *flags, "-o", library, folder / f"{name}.cpp"], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        self.library = ctypes.CDLL(str(library))
        self.library.run_mix.restype = self.library.run_unmix.restype = ctypes.c_bool

    def mix(self, symbols: np.ndarray, keys: MixKeys, turns: int = 2) -> np.ndarray:
        return self._run(self.library.run_mix, symbols, keys, self.layout.size, turns)

    def unmix(self, heard: np.ndarray, keys: MixKeys, turns: int = 2) -> np.ndarray:
        return self._run(self.library.run_unmix, heard, keys, self.layout.n, turns)

    def _run(self, kernel, values: np.ndarray, keys: MixKeys, size: int, turns: int) -> np.ndarray:
        words, order = pack(keys, self.layout.n)
        assert words.shape == (len(values), self.layout.words)
        whole = np.full(len(values) * size + 2 * GUARD, np.nan, np.float32)
        whole[:GUARD] = whole[-GUARD:] = 7
        arguments = (np.ascontiguousarray(values), words, order, whole[GUARD:])
        assert kernel(*(ctypes.c_void_p(array.ctypes.data) for array in arguments), len(values), turns), "barriers differ"
        assert (whole[:GUARD] == 7).all()
        assert (whole[-GUARD:] == 7).all()
        return whole[GUARD:-GUARD].reshape(len(values), size).copy()


def draw(batch: int, n: int, seed: int = 0) -> tuple[np.ndarray, MixKeys]:
    symbols = np.random.default_rng(seed).standard_normal((batch, n)).astype(np.float32)
    keys = derive_keys(bytes(range(32)), b"sixteen bytes ok", range(seed, seed + batch), bytes(32), n)
    return symbols, keys


def off(values: np.ndarray, expected: np.ndarray, came_in: np.ndarray) -> float:
    """The largest difference, of the amplitude of the image that came in."""
    amplitude = np.sqrt(np.square(came_in, dtype=np.float64).mean(axis=1, keepdims=True))
    return float((np.abs(values.astype(np.float64) - expected) / amplitude).max())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kernels")


# NVRTC


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_120"])
def test_nvrtc_compiles_it_without_a_word(arch):
    logs = io.StringIO()
    code = compile_kernels(layout(PAPER), arch, logs).code
    assert logs.getvalue() == ""
    assert code[:4] == b"\x7fELF"
    assert int.from_bytes(code[18:20], "little") == 190  # EM_CUDA
    assert b".text.mix" in code
    assert b".text.unmix" in code


def test_registers_do_not_spill_at_the_papers_size():
    from cuda.core import Program, ProgramOptions

    logs = io.StringIO()
    shape = layout(PAPER)
    options = ProgramOptions(arch="sm_90", std="c++17", define_macro=shape.macros(), ptxas_options=["-v"])
    Program(shape.source(), "c++", options).compile("cubin", logs=logs)
    assert logs.getvalue().count("0 bytes spill stores, 0 bytes spill loads") == 2
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", logs.getvalue())]
    assert len(registers) == 2
    assert max(registers) * shape.threads <= 65536


def test_outputs_share_their_sums():
    from cuda.bindings import nvrtc  # cuda.core asks the driver before it gives PTX

    shape = layout(PAPER)
    options = ["--gpu-architecture=compute_80", "--std=c++17", *(f"-D{name}={value}" for name, value in shape.macros())]
    _, program = nvrtc.nvrtcCreateProgram(shape.source().encode(), b"kernel.cu", 0, [], [])
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS
    _, size = nvrtc.nvrtcGetPTXSize(program)
    ptx = b" " * size
    nvrtc.nvrtcGetPTX(program, ptx)
    nvrtc.nvrtcDestroyProgram(program)
    plain = 2 * sum(m * (m - 1) for m in (shape.a, shape.b, shape.c))  # additions for a vector of each axis in two rounds
    _, *entries = ptx.decode().split(".entry ")
    assert len(entries) == 2
    for entry in entries:
        assert len(re.findall(r"\b(?:add|sub)\.f32", entry)) < 0.4 * plain
    assert "ld.local" not in ptx.decode()


# the same source on the CPU

SIZES = [
    PAPER,
    768,
    192,
    1,  # padded to 2
    2,
    30,  # padded to 32
    100,  # padded to 112, a c that is not a power of two
    972,  # padded to 62 rows of 16: a conference matrix, signs of two words
    899,  # odd
    2001,
]


@pytest.mark.compiler
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("batch", [1, 3])
def test_it_gives_what_the_reference_gives(folder, n, batch):
    kernel = OnCpu(folder, n)
    symbols, keys = draw(batch, n)
    on_air = kernel.mix(symbols, keys)
    assert on_air.shape == (batch, padded_size(n))
    assert off(on_air, mix(symbols, keys), symbols) < ROUNDING
    heard = on_air + np.random.default_rng(1).standard_normal(on_air.shape).astype(np.float32)
    assert off(kernel.unmix(heard, keys), unmix(heard, keys, n), heard) < ROUNDING
    assert off(kernel.unmix(on_air, keys), symbols, symbols) < 2 * ROUNDING


@pytest.mark.compiler
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 3000), batch=st.integers(1, 3), seed=st.integers(0, 2**32 - 1), loudness=st.floats(-6, 6))
def test_it_gives_what_the_reference_gives_for_any_size(folder, n, batch, seed, loudness):
    kernel = OnCpu(folder, n)
    symbols, keys = draw(batch, n, seed)
    symbols *= np.float32(10**loudness)
    on_air = kernel.mix(symbols, keys)
    assert off(on_air, mix(symbols, keys), symbols) < ROUNDING
    assert off(kernel.unmix(on_air, keys), symbols, symbols) < 2 * ROUNDING


@pytest.mark.compiler
@pytest.mark.parametrize("wrong", ["signs", "order"])
def test_another_key_gives_noise(folder, wrong):
    kernel = OnCpu(folder, 768)
    symbols, keys = draw(1, 768)
    _, others = draw(1, 768, 1)
    heard = kernel.unmix(kernel.mix(symbols, keys), replace(keys, **{wrong: getattr(others, wrong)}))
    assert abs(np.corrcoef(heard[0], symbols[0])[0, 1]) < 0.2
    assert np.isclose(np.square(heard).sum(), np.square(symbols).sum(), rtol=1e-5)


@pytest.mark.compiler
@pytest.mark.parametrize("layer", range(5))
def test_one_sign_of_each_layer_counts(folder, layer):
    n = 992  # 62 rows of 16: the last sign is in the second word of its vector
    kernel, (symbols, keys) = OnCpu(folder, n), draw(1, n)
    signs = keys.signs.copy()
    signs[layer, 0, -1] *= -1
    turned = replace(keys, signs=signs)
    on_air = kernel.mix(symbols, turned)
    assert off(on_air, mix(symbols, turned), symbols) < ROUNDING < 0.01 < off(on_air, mix(symbols, keys), symbols)


@pytest.mark.compiler
def test_images_of_a_batch_do_not_meet(folder):
    kernel = OnCpu(folder, 768)
    symbols, keys = draw(5, 768)
    on_air = kernel.mix(symbols, keys)
    for i in range(5):
        alone = MixKeys(keys.signs[:, i : i + 1], keys.order[i : i + 1])
        assert kernel.mix(symbols[i : i + 1], alone).tobytes() == on_air[i].tobytes()


@pytest.mark.compiler
@pytest.mark.parametrize("turns", range(5))
def test_the_order_of_threads_and_blocks_changes_no_bit(folder, turns):
    kernel = OnCpu(folder, 2001)
    symbols, keys = draw(3, 2001)
    on_air = kernel.mix(symbols, keys, 0)
    assert kernel.mix(symbols, keys, turns).tobytes() == on_air.tobytes()
    assert kernel.unmix(on_air, keys, turns).tobytes() == kernel.unmix(on_air, keys, 0).tobytes()


@pytest.mark.compiler
@pytest.mark.parametrize("barrier", range(SOURCE.count("__syncthreads();")))
def test_every_barrier_is_needed_and_its_lack_is_seen(folder, barrier):
    n = 2001
    before, *after = layout(n).source().split("__syncthreads();")
    source = before
    for i, part in enumerate(after):
        source += ("" if i == barrier else "__syncthreads();") + part
    broken = OnCpu(folder, n, source)
    symbols, keys = draw(2, n)
    on_air = mix(symbols, keys)
    seen = 0
    for turns in range(4):
        seen += off(broken.mix(symbols, keys, turns), on_air, symbols) > 0.01
        seen += off(broken.unmix(on_air, keys, turns), symbols, on_air) > 0.01
    assert seen


# what the host does


@pytest.mark.parametrize("n", [*SIZES, 4096, 16200, 48600])
def test_the_layout_of_a_size(n):
    shape = layout(n)
    assert (shape.a, shape.b, shape.c) == factors(n)
    assert shape.size == padded_size(n)
    assert shape.threads % 32 == 0
    assert 64 <= shape.threads <= MOST_THREADS


def test_the_threads_of_the_papers_size_leave_few_idle():
    shape = layout(PAPER)
    columns = shape.size // shape.a
    assert columns / (-(-columns // shape.threads) * shape.threads) > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"signs": np.ones((5, 2, 192), np.float64)}, r"signs of keys for images of 192 reals must be float32 \[5, 2, 192\]"),
        ({"signs": np.ones((5, 1, 192), np.float32)}, r"must be float32 \[5, 2, 192\], got float32 \[5, 1, 192\]"),
        ({"signs": np.zeros((5, 2, 192), np.float32)}, "must be 1 or -1"),
        ({"signs": np.full((5, 2, 192), np.nan, np.float32)}, "must be 1 or -1"),
        ({"order": np.zeros((2, 48), np.int64)}, r"order of keys .* must be int32 \[2, 48\], got int64"),
        ({"order": np.zeros((2, 47), np.int32)}, r"got int32 \[2, 47\]; derive them for n = 192"),
        ({"order": np.zeros((2, 48), np.int32)}, r"each run of 0\.\.47 once"),
        ({"order": np.arange(1, 97, dtype=np.int32).reshape(2, 48)}, r"each run of 0\.\.47 once"),
    ],
)
def test_keys_that_the_kernel_would_read_out_of_bounds_are_refused(change, message):
    _, keys = draw(2, 192)
    pack(keys, 192)
    with pytest.raises(ValueError, match=message):
        pack(replace(keys, **change), 192)


def test_keys_of_another_size_are_refused():
    _, keys = draw(1, 768)
    with pytest.raises(ValueError, match="signs of keys for images of 192 reals"):
        pack(keys, 192)


def test_a_gpu_without_room_for_an_image_is_told_what_helps():
    shape = layout(PAPER)
    check_room(shape, shape.shared_bytes)
    with pytest.raises(
        ValueError, match=r"32400 reals takes 133200 bytes of shared memory, this GPU has 101376 .* in the graph"
    ):
        check_room(shape, 101376)


@pytest.mark.parametrize("n", [0, 2**22 + 1])
def test_a_size_that_mix_does_not_take_is_refused(n):
    with pytest.raises(ValueError, match="mix takes images of 1 to"):
        layout(n)


def test_the_layout_is_what_the_source_is_compiled_for():
    macros = dict(MixLayout(100, 2, 2, 28, 64).macros())
    assert [macros[name] for name in ("A", "B", "C", "N", "RUN", "THREADS")] == ["2", "2", "28", "100", "7", "64"]
    scale = float(macros["LOUDER"].rstrip("f")) * float(macros["SOFTER"].rstrip("f"))
    assert np.isclose(scale, (2 * 2 * 28) ** -2.0)
