"""The kernel's own source, compiled by NVRTC for GPUs that are not here and by g++ for the CPU that is.

The second runs it (cuda_shim.h) against the NumPy reference, bit for bit. What needs a GPU is in benchmarks/on_gpu.py.
"""

import ctypes
import hashlib
import io
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ptx import entries_of
from semseal.runtime.defense import index
from semseal.runtime.defense import index as scheme
from semseal.runtime.gpu.scheme_kernel import (
    SOURCE,
    THREADS,
    WARPS,
    TileLayout,
    compile_kernels,
    reference_receive,
    reference_transmit,
    tile_layout,
)

SHIM = Path(__file__).parent / "cuda_shim.h"
PAPER = (16, 45, 45)
GUARD = 64  # values on either side of a buffer that must stay as they are
ENTRIES = r"""
extern "C" bool run_transmit(const feature* features, const int* place, float* symbols, float* sums, unsigned* state,
                             unsigned grid, unsigned resident, unsigned order) {
    return launch(grid, THREADS, resident, order, [=] { transmit(features, place, symbols, sums, state); },
                  TOGETHER ? PARTS : 1);
}
extern "C" bool run_receive(const float* symbols, const int* index, feature* features,
                            unsigned grid, unsigned resident, unsigned order) {
    return launch(grid, THREADS, resident, order, [=] { receive(symbols, index, features); });
}
#if HALF
extern "C" void run_widen(const feature* from, float* to, int n) { for (int i = 0; i < n; i++) to[i] = widen(from[i]); }
extern "C" void run_narrow(const float* from, feature* to, int n) { for (int i = 0; i < n; i++) to[i] = narrow(from[i]); }
#endif
"""


class OnCpu:
    """Both kernels of a source compiled by g++, with the buffers that a captured graph would keep between launches."""

    def __init__(self, folder: Path, shape: TileLayout, dtype: type, source: str = SOURCE, arch: str = "sm_86") -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        macros = [f"-D{name}={value}" for name, value in shape.macros(self.dtype, arch)]
        code = f'#include "{SHIM}"\n{source}\n{ENTRIES}'
        name = hashlib.sha256((" ".join(macros) + code).encode()).hexdigest()[:16]
        library = folder / f"{name}.so"
        if not library.exists():
            (folder / f"{name}.cpp").write_text(code)
            # a place outside a shared array, or an unaligned 16 bytes, ends the process
            checks = ["-fsanitize=bounds,alignment,signed-integer-overflow", "-fsanitize-undefined-trap-on-error"]
            flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-pthread", *checks, *macros]
            done = subprocess.run(
                ["g++", *flags, "-o", library, folder / f"{name}.cpp"], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        self.library = ctypes.CDLL(str(library))
        self.library.run_transmit.restype = self.library.run_receive.restype = ctypes.c_bool
        self.work: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def transmit(self, features: np.ndarray, idx: np.ndarray, resident: int | None = None, order: int = 2) -> np.ndarray:
        batch, parts = len(features), self.shape.parts
        sums, state = self.work.setdefault(
            batch, (np.full(batch * parts * WARPS, np.nan, np.float32), np.zeros(1 + batch, np.uint32))
        )
        symbols, whole = guarded((batch, features[0].size // 2, 2), np.float32)
        arguments = (guarded_copy(features), scheme.inverse(idx), symbols, sums, state)
        ok = self.library.run_transmit(*map(address, arguments), batch * parts, resident or parts, order)
        assert ok, "threads of a block met different barriers, or blocks of a cluster did not wait for each other"
        assert_guarded(whole)
        return symbols

    def receive(self, symbols: np.ndarray, idx: np.ndarray, order: int = 2) -> np.ndarray:
        shape = self.shape
        features, whole = guarded((len(idx), shape.c, shape.h, shape.w), self.dtype)
        grid = len(idx) * shape.parts
        assert self.library.run_receive(address(guarded_copy(symbols)), address(idx), address(features), grid, 2, order)
        assert_guarded(whole)
        return features


def address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def guarded(shape: tuple[int, ...], dtype) -> tuple[np.ndarray, np.ndarray]:
    """An array of NaN inside a longer one, on an address that 16 divides."""
    size = int(np.prod(shape))
    whole = np.full(size + 3 * GUARD, np.nan, dtype)
    start = GUARD + (-(whole.ctypes.data // whole.itemsize + GUARD) % (16 // whole.itemsize))
    whole[:start], whole[start + size :] = 7, 7
    return whole[start : start + size].reshape(shape), whole


def guarded_copy(array: np.ndarray) -> np.ndarray:
    copy, _ = guarded(array.shape, array.dtype)
    copy[...] = array
    return copy


def assert_guarded(whole: np.ndarray) -> None:
    assert (whole[:GUARD] == 7).all()
    assert (whole[-GUARD:] == 7).all()
    assert not np.isnan(whole).any()  # every place was written


def draw(rng: np.random.Generator, batch: int, c: int, h: int, w: int, dtype=np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Features of different loudness and an index that moves rows across all images."""
    loudness = 10.0 ** rng.uniform(-2, 2, (batch, 1, 1, 1))
    features = (rng.standard_normal((batch, c, h, w)) * loudness).astype(dtype)
    return features, rng.permutation(batch * h).astype(np.int32).reshape(batch, h)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kernels")


# NVRTC


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_120"])
def test_nvrtc_compiles_it_without_a_word(arch, dtype):
    logs = io.StringIO()
    code = compile_kernels(tile_layout(*PAPER), np.dtype(dtype), arch, logs).code
    assert logs.getvalue() == ""
    assert code[:4] == b"\x7fELF"
    assert int.from_bytes(code[18:20], "little") == 190  # EM_CUDA
    assert b".text.transmit" in code
    assert b".text.receive" in code


@pytest.mark.parametrize("arch", ["sm_86", "sm_90"])
@pytest.mark.parametrize("shape", [PAPER, (32, 45, 45), (3, 7, 14), (1, 2, 1), (5, 6, 7)])
def test_registers_do_not_spill_and_six_blocks_fit_a_multiprocessor(shape, arch):
    from cuda.core import Program, ProgramOptions

    logs = io.StringIO()
    macros = tile_layout(*shape).macros(np.dtype(np.float16), arch)
    options = ProgramOptions(arch=arch, std="c++17", define_macro=macros, ptxas_options=["-v"])
    Program(SOURCE, "c++", options).compile("cubin", logs=logs)
    assert logs.getvalue().count("0 bytes spill stores, 0 bytes spill loads") == 2
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", logs.getvalue())]
    assert len(registers) == 2
    assert max(registers) * THREADS * 6 <= 65536  # the register file of every architecture named above


def test_the_symbols_are_moved_16_bytes_at_a_time():
    entries = entries_of(SOURCE, tile_layout(*PAPER).macros(np.dtype(np.float16), "sm_80"), "sm_80")
    send, receive = entries["transmit"], entries["receive"]
    assert "st.global.v4" in send
    assert "ld.global.nc.v4" in receive
    assert "cvt.f32.f16" in send
    assert "cvt.rn.f16.f32" in receive
    assert "fma" not in send  # a contracted sum would not have the reference's bits


def test_an_images_blocks_have_begun_before_they_push_to_each_other():
    """The host's shim has its own words for these instructions."""
    send = entries_of(SOURCE, tile_layout(*PAPER).macros(np.dtype(np.float32), "sm_90"), "sm_90")["transmit"]
    begins = "mbarrier.init", "fence.mbarrier_init.release.cluster", "cluster.arrive.relaxed", "cluster.wait.acquire"
    found = [send.index(word) for word in (*begins, "st.async", "try_wait.parity.acquire.cluster")]
    assert found == sorted(found)


# the same source on the CPU

SHAPES = [
    PAPER,
    (4, 8, 6),  # the tests' small link: one part
    (1, 2, 1),
    (2, 1, 1),  # one row
    (3, 7, 14),  # pairs of values
    (5, 6, 7),  # single values
    (7, 44, 101),  # primes, 22 parts
    (16, 47, 43),  # a last part of fewer rows
    (9, 130, 31),  # more channels than warps, by one
    (256, 2, 40),  # a row of 40 kB
]


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(shape, np.float32) for shape in SHAPES] + [(shape, np.float16) for shape in SHAPES[:6]],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.parametrize("batch", [1, 3])
def test_bits_of_the_reference(folder, shape, dtype, batch):
    c, _, w = shape
    kernel = OnCpu(folder, tile_layout(*shape), dtype)
    features, idx = draw(np.random.default_rng(batch), batch, *shape, dtype=dtype)
    symbols = kernel.transmit(features, idx)
    assert symbols.tobytes() == reference_transmit(features, idx).tobytes()
    back = scheme.inverse(idx)
    received = kernel.receive(symbols, back)
    assert received.tobytes() == reference_receive(symbols, back, c, w).astype(dtype).tobytes()


@pytest.mark.compiler
@pytest.mark.parametrize("shape", [PAPER, (16, 47, 43), (7, 44, 31), (9, 130, 31)])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_bits_of_the_reference_where_an_images_blocks_are_a_cluster(folder, shape, order):
    layout = tile_layout(*shape)
    assert 1 < layout.parts <= 8
    kernel = OnCpu(folder, layout, np.float32, arch="sm_90")
    assert ("TOGETHER", "1") in layout.macros(kernel.dtype, "sm_90")
    features, idx = draw(np.random.default_rng(order), 3, *shape)
    assert kernel.transmit(features, idx, order=order).tobytes() == reference_transmit(features, idx).tobytes()


@pytest.mark.compiler
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_bits_of_the_reference_for_any_shape(folder, data):
    c, h, w = data.draw(
        st.tuples(st.integers(1, 40), st.integers(1, 30), st.integers(1, 40)).filter(lambda s: s[0] * s[1] * s[2] % 2 == 0)
    )
    kernel = OnCpu(folder, tile_layout(c, h, w), np.float32)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    features, idx = draw(rng, data.draw(st.integers(1, 4)), c, h, w)
    symbols = kernel.transmit(features, idx, data.draw(st.integers(kernel.shape.parts, 20 + kernel.shape.parts)))
    assert symbols.tobytes() == reference_transmit(features, idx).tobytes()
    picked = rng.integers(0, idx.size, (data.draw(st.integers(1, 4)), h)).astype(np.int32)  # frames are not images
    assert kernel.receive(symbols, picked).tobytes() == reference_receive(symbols, picked, c, w).tobytes()


@pytest.mark.compiler
def test_a_second_picture_and_a_second_key_in_the_same_buffers(folder):
    """What a replayed CUDA graph does: nothing is set back between launches."""
    kernel = OnCpu(folder, tile_layout(16, 12, 45), np.float32)
    assert kernel.shape.parts > 1
    rng = np.random.default_rng(0)
    answers = []
    for replay in range(7):
        features, idx = draw(rng, 2, 16, 12, 45)
        answers.append(kernel.transmit(features, idx, order=replay))
        assert answers[-1].tobytes() == reference_transmit(features, idx).tobytes()
    assert len({answer.tobytes() for answer in answers}) == 7
    _, state = kernel.work[2]
    assert not (state & 0x7FFFFFFF).any()  # only the top bits of the meeting points turn


@pytest.mark.compiler
@pytest.mark.parametrize("order", range(5))
def test_the_order_of_threads_and_blocks_changes_nothing(folder, order):
    kernel = OnCpu(folder, tile_layout(16, 12, 45), np.float32)
    features, idx = draw(np.random.default_rng(1), 5, 16, 12, 45)
    expected = reference_transmit(features, idx)
    assert kernel.transmit(features, idx, kernel.shape.parts, order).tobytes() == expected.tobytes()
    assert kernel.transmit(features, idx, 40, order).tobytes() == expected.tobytes()
    assert kernel.receive(expected, idx, order).tobytes() == reference_receive(expected, idx, 16, 45).tobytes()


@pytest.mark.compiler
@pytest.mark.parametrize("barrier", range(SOURCE.count("__syncthreads();")))
def test_every_barrier_is_needed_and_its_lack_is_seen(folder, barrier):
    parts = SOURCE.split("__syncthreads();")
    source = "__syncthreads();".join(parts[: barrier + 1]) + "__syncthreads();".join(["", *parts[barrier + 1 :]])[16:]
    assert source.count("__syncthreads();") == SOURCE.count("__syncthreads();") - 1
    shape = tile_layout(16, 12, 45)
    broken = OnCpu(folder, shape, np.float32, source)
    features, idx = draw(np.random.default_rng(2), 2, 16, 12, 45)
    symbols = reference_transmit(features, idx)
    wrong = 0
    for order in range(4):
        sent = broken.library, guarded(symbols.shape, np.float32)[0]
        work = np.full(2 * shape.parts * WARPS, np.nan, np.float32), np.zeros(3, np.uint32)
        arguments = (features, scheme.inverse(idx), sent[1], *work)
        ok = broken.library.run_transmit(*map(address, arguments), 2 * shape.parts, 2 * shape.parts, order)
        received = np.full_like(features, np.nan)
        ok &= broken.library.run_receive(address(symbols), address(idx), address(received), 2 * shape.parts, 2, order)
        wrong += not ok or sent[1].tobytes() != symbols.tobytes() or (received != reference_receive(symbols, idx, 16, 45)).any()
    assert wrong


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("    begun(&arrivals, 4 * PARTS * WARPS);\n", ""),
        ("    all_begun();\n", ""),
        ("    arrived(&arrivals);\n", ""),
        ("begun(&arrivals, 4 * PARTS * WARPS)", "begun(&arrivals, 4 * PARTS * WARPS + 4)"),
        ("begun(&arrivals, 4 * PARTS * WARPS)", "begun(&arrivals, 4 * PARTS * WARPS - 4)"),
        ("if (lane < PARTS) give", "if (lane < PARTS - 1) give"),
    ],
)
def test_blocks_of_a_cluster_that_do_not_wait_for_each_other_are_seen(folder, right, wrong):
    source = SOURCE.replace(right, wrong)
    assert source != SOURCE
    features, idx = draw(np.random.default_rng(2), 2, 16, 12, 45)
    kernel = OnCpu(folder, tile_layout(16, 12, 45), np.float32, source, arch="sm_90")
    for order in range(3):
        with pytest.raises(AssertionError, match="blocks of a cluster did not wait"):
            kernel.transmit(features, idx, order=order)


@pytest.mark.compiler
def test_an_all_zero_image_stays_zero_beside_another(folder):
    kernel = OnCpu(folder, tile_layout(16, 12, 45), np.float32)
    features, idx = draw(np.random.default_rng(3), 3, 16, 12, 45)
    features[1] = 0
    symbols = kernel.transmit(features, idx)
    assert symbols.tobytes() == reference_transmit(features, idx).tobytes()
    rows = symbols.reshape(36, -1)[scheme.inverse(idx).ravel()].reshape(3, -1)
    assert not rows[1].any()
    assert rows[[0, 2]].any(axis=1).all()


@pytest.mark.compiler
def test_half_precision_of_the_shim_is_that_of_numpy(folder):
    library = OnCpu(folder, tile_layout(4, 8, 6), np.float16).library
    every = np.arange(2**16, dtype=np.uint16)
    wide = np.empty(2**16, np.float32)
    library.run_widen(address(every), address(wide), 2**16)
    assert np.array_equal(wide, every.view(np.float16).astype(np.float32), equal_nan=True)
    rng = np.random.default_rng(4)
    values = rng.integers(0, 2**32, 10**6, np.uint64).astype(np.uint32).view(np.float32)
    finite = np.sort(wide[np.isfinite(wide)])
    ties = finite[:-1] / 2 + finite[1:] / 2
    values = np.concatenate([values[~np.isnan(values)], ties, np.float32([65519.99, 65520, -65520, np.inf])])
    bits = np.empty(len(values), np.uint16)
    library.run_narrow(address(values), address(bits), len(values))
    with np.errstate(over="ignore"):
        assert np.array_equal(bits, values.astype(np.float16).view(np.uint16))


# the reference itself, and what the host checks


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_reference_gives_unit_power_and_the_order_of_the_symbols(shape):
    features, idx = draw(np.random.default_rng(5), 3, *shape)
    c, h, w = shape
    rows = reference_transmit(features, index.identity(3 * h).reshape(3, h)).astype(np.float64)
    assert np.allclose(np.square(rows).sum(axis=2).mean(axis=1), 1, rtol=1e-6)
    expected = features.astype(np.float64) * np.sqrt(
        c * h * w / 2 / np.square(features.astype(np.float64)).sum((1, 2, 3), keepdims=True)
    )
    # a sum of n squares in the tree's order is off by at most a few units in the last place
    assert np.allclose(rows.reshape(3, h, w, c), expected.transpose(0, 2, 3, 1), rtol=1e-6, atol=0)
    moved = reference_transmit(features, idx).reshape(3 * h, -1)
    assert np.array_equal(moved, rows.reshape(3 * h, -1)[idx.ravel()])


@pytest.mark.compiler
def test_what_is_sent_is_received(folder):
    kernel = OnCpu(folder, tile_layout(*PAPER), np.float32)
    features, idx = draw(np.random.default_rng(6), 2, *PAPER)
    plain = index.identity(90).reshape(2, 45)
    received = kernel.receive(kernel.transmit(features, idx), scheme.inverse(idx))
    assert received.tobytes() == kernel.receive(kernel.transmit(features, plain), plain).tobytes()


def test_the_inverse_puts_every_row_where_the_index_takes_it_from():
    idx = np.array([[5, 0, 3], [1, 4, 2]], np.int32)
    rows = np.arange(6)
    out = np.empty(6, int)
    out[scheme.inverse(idx).ravel()] = rows
    assert out.tolist() == index.gather(rows, idx.ravel()).tolist()


@pytest.mark.parametrize(
    ("idx", "message"),
    [
        (np.array([[0, 1], [2, 4]], np.int32), r"index\[1, 1\] is 4, it must be in 0\.\.3"),
        (np.array([[0, -1], [9, 2]], np.int32), r"index\[0, 1\] is -1, it must be in 0\.\.3"),
        (np.array([[0, 1], [2, 2**31 - 1]], np.int32), r"index\[1, 1\] is 2147483647"),
        (np.array([[0, 1], [1, 3]], np.int32), r"takes row 1 more than once, at index\[0, 1\] too: not a permutation"),
        (np.array([[0, 1], [2, 3]], np.int64), r"must be int32 \[batch, n\], got int64 \[2, 2\]"),
        (np.arange(4, dtype=np.int32), r"must be int32 \[batch, n\], got int32 \[4\]"),
    ],
)
def test_a_bad_index_is_caught_on_the_host(idx, message):
    with pytest.raises(ValueError, match=message):
        scheme.inverse(idx)


def test_a_receiver_may_take_a_row_twice_but_not_one_that_is_not_there():
    scheme.check_range("index", np.array([[5, 5]], np.int32), 6)
    with pytest.raises(ValueError, match=r"index\[0, 1\] is 6, it must be in 0\.\.5"):
        scheme.check_range("index", np.array([[5, 6]], np.int32), 6)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((3, 5, 7), "even number of values"), ((0, 2, 2), "even number of values"), ((512, 4, 32), "too large for the kernel")],
)
def test_a_shape_that_the_kernel_cannot_take_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        tile_layout(*shape)
