"""The mix kernels' own source: compiled by NVRTC for GPUs that are not here, and by g++ for the CPU that is.

The second runs it under a checker of races and bounds (mix_shim.h) against the NumPy reference. What needs a GPU is in
benchmarks/on_gpu.py.
"""

import io
import itertools
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mix_on_cpu import OnCpu, check_structure
from ptx import entries_of
from semseal.runtime.defense import mix
from semseal.runtime.defense.keys import derive
from semseal.runtime.gpu import mix_launches
from semseal.runtime.gpu.mix_kernel import (
    MAX_CLUSTER,
    MAX_LARGEST_OFF,
    MAX_PORTABLE,
    MAX_RMS_OFF,
    MixLayout,
    cluster_layout,
    compile_kernels,
    compile_structure,
    launches_layout,
    layout_for,
    packet_keys,
    rounding,
    stream_words,
    suited,
)
from semseal.runtime.gpu.mix_source import rest_may_be_taken

K, SESSION, DIGEST = bytes(range(32)), bytes(range(100, 116)), bytes(range(50, 82))
PAPER, SMALL = 32400, 192
FLOAT, HALF = np.dtype(np.float32), np.dtype(np.float16)


@pytest.fixture(scope="module")
def folder(libraries, request) -> Path:
    """Where libraries are; those of the tests of the reference are made on all cores at once."""
    names = ("reals", "channels", "together", "dtype")
    wanted = [item.callspec.params for item in request.session.items if "within_rounding" in item.name]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda row: OnCpu(libraries, layout_of(*(row[name] for name in names[:3])), row[names[3]]), wanted))
    return libraries


def layout_of(reals: int, channels: int, together: int) -> MixLayout:
    """Of so many blocks, 8 or 16 of which have a multiprocessor each; 0: of several launches."""
    return cluster_layout(reals, together, channels, together >= 8) if together else launches_layout(reals, channels)


def draw(rng: np.random.Generator, batch: int, reals: int, dtype: np.dtype = FLOAT) -> tuple[np.ndarray, np.ndarray]:
    """Features in the order of the symbols, of different loudness, and those at power 1."""
    x = (rng.standard_normal((batch, reals)) * 10.0 ** rng.uniform(-2, 2, (batch, 1))).astype(dtype).astype(np.float32)
    power = 2 * np.square(x, dtype=np.float64).mean(axis=1, keepdims=True)
    return x, (x / np.sqrt(power)).astype(np.float32)


def planar(x: np.ndarray, channels: int) -> np.ndarray:
    """From the order of the symbols to [channels, places]."""
    return np.ascontiguousarray(x.reshape(len(x), -1, channels).swapaxes(1, 2)).reshape(len(x), -1)


def check(kernel: OnCpu, batch: int, seed: int = 0, order: int = 2) -> None:
    """Both directions against the reference, for features of different loudness."""
    shape, rng = kernel.shape, np.random.default_rng(seed)
    counters = [int(c) for c in rng.integers(0, 2**63, batch)]
    x, unit = draw(rng, batch, shape.reals, kernel.dtype)
    keys, packed = mix.derive_keys(K, SESSION, counters, DIGEST, shape.reals), packet_keys(K, SESSION, counters, DIGEST)
    on_air, scales = kernel.mix(planar(x, shape.channels), packed, order)
    off = np.abs(on_air - mix.mix(unit, keys))
    if rest_may_be_taken(shape.a, shape.b, shape.c):
        takes = np.arange(batch), np.abs(on_air).argmax(axis=1)
        assert off[takes].max() <= MAX_LARGEST_OFF
        off[takes] = 0
    assert np.sqrt(np.square(off, dtype=np.float64).mean()) <= MAX_RMS_OFF
    assert off.max() <= rounding(off.size)
    power = np.square(on_air, dtype=np.float64).sum(axis=1) / (shape.size / 2)
    assert np.abs(power - 1).max() <= 1e-8
    received = on_air + rng.standard_normal(on_air.shape, np.float32) * np.float32(0.1)
    features = kernel.unmix(received, packed, order)
    expected = planar(mix.unmix(received, keys, shape.reals), shape.channels)
    if kernel.dtype == np.float16:
        assert np.abs(features - expected).max() <= 2.0**-10 * np.abs(expected).max()
    else:
        assert np.abs(features - expected).max() <= rounding(features.size)
    without_noise = kernel.unmix(on_air, packed, order) / scales[:, None]
    grain = 2e-3 if kernel.dtype == np.float16 else 1e-6
    loudest = np.abs(x).max(axis=1, keepdims=True)
    assert (np.abs(without_noise - planar(x, shape.channels)) <= grain * loudest).all()


# NVRTC

EVERY = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "sm_121"]


def report(shape: MixLayout, arch: str, dtype: np.dtype) -> dict[str, tuple[int, int, int]]:
    """Of each kernel its registers, and the bytes that it spills and keeps in local memory."""
    logs = io.StringIO()
    compile_kernels(shape, dtype, arch, logs, verbose=True)
    assert "warning" not in logs.getvalue().lower(), logs.getvalue()
    found = {}
    for part in logs.getvalue().split("Compiling entry function '")[1:]:
        spilled = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", part)
        found[part.split("'")[0]] = int(re.findall(r"Used (\d+) registers", part)[0]), sum(map(int, spilled)), len(spilled)
    return found


@pytest.mark.parametrize(
    ("arch", "channels", "dtype"), [*((arch, 1, FLOAT) for arch in EVERY), ("sm_75", 16, HALF), ("sm_90", 16, HALF)], ids=str
)
def test_several_launches_for_every_generation_without_a_spill(arch, channels, dtype):
    found = report(launches_layout(PAPER, channels), arch, dtype)
    assert set(found) == {*mix_launches.MIX, *mix_launches.UNMIX}
    assert all(spilled == 0 and lines == 3 for _, spilled, lines in found.values()), found
    assert max(registers for registers, _, _ in found.values()) <= 128  # four blocks fit every multiprocessor


@pytest.mark.parametrize(
    ("arch", "together", "channels", "dtype"),
    [
        *(("sm_90", together, 1, FLOAT) for together in (16, 8, 4, 2, 1)),
        *(("sm_120", together, 1, FLOAT) for together in (8, 4, 2)),
        ("sm_100", 8, 16, FLOAT),
        ("sm_100", 1, 16, HALF),
        ("sm_121", 4, 16, FLOAT),
    ],
    ids=str,
)
def test_clusters_where_there_are_any_without_a_spill(arch, together, channels, dtype):
    shape = layout_of(PAPER, channels, together)
    found = report(shape, arch, dtype)
    assert set(found) == {"mix", "unmix"}
    assert all(spilled == 0 and lines == 3 for _, spilled, lines in found.values()), found
    assert all(registers * shape.threads * shape.resident <= 65536 for registers, _, _ in found.values())
    assert shape.resident * shape.threads == (512 if shape.alone else 1024)


@pytest.mark.parametrize("together", [8, 4])
def test_blocks_of_a_cluster_have_begun_before_they_reach_into_each_other(together):
    """What mix_shim.h takes on trust, as these instructions have words of its own there."""
    shape = layout_of(SMALL, 4, together)
    made = ["mbarrier.init", "fence.mbarrier_init.release.cluster"] if shape.alone else []
    pushed = ["st.async", "try_wait.parity.acquire.cluster"] if shape.alone else []
    for name, ptx in entries_of(shape.source(), shape.macros(FLOAT), "sm_90").items():
        alike = "relaxed" if shape.alone or name == "mix" else "release"
        words = [*made, f"cluster.arrive.{alike}", "cluster.wait.acquire", *pushed]
        found = [ptx.index(word) for word in words]
        assert found == sorted(found)
        others = re.search(r"(ld|st)\.(async\.)?shared::cluster", ptx)
        assert others is not None
        assert others.start() > ptx.index("cluster.wait.acquire")


def test_nvrtc_takes_cores_of_every_kind_and_the_structure_kernel():
    for reals in (2048, 10000, 100000, 200000):  # 44, 316 in bits, 56, 76
        assert all(spilled == 0 for _, spilled, _ in report(launches_layout(reals), "sm_86", FLOAT).values())
    assert all(spilled == 0 for _, spilled, _ in report(cluster_layout(100000, 8), "sm_90", FLOAT).values())
    for channels in (1, 16):
        logs = io.StringIO()
        assert compile_structure(PAPER, 16, channels, FLOAT, "sm_75", logs).code[:4] == b"\x7fELF"
        assert logs.getvalue() == ""


def test_what_suits_a_gpu():
    """Shared memory that a block may have: compute capability 9.0 and 10.0, 12.0, and one without clusters."""
    for room, blocks in ((232448, [8, 4, 2, 1]), (101376, [8, 4, 2])):
        fitting = suited(room, PAPER, 16)
        assert [shape.together for shape in fitting] == blocks
        assert fitting[0] == cluster_layout(PAPER, MAX_PORTABLE, 16, alone=True)
        assert fitting[1:] == tuple(cluster_layout(PAPER, together, 16) for together in blocks[1:])
        assert all(shape.arena <= room for shape in fitting)
    with_16 = suited(232448, PAPER, 16, MAX_CLUSTER)
    assert with_16 == (cluster_layout(PAPER, 16, 16, alone=True), *suited(232448, PAPER, 16))
    assert [layout_for(with_16, batch, 132).together for batch in (1, 4, 5, 16, 17)] == [16, 16, 8, 8, 4]
    assert suited(0, PAPER, 16) == (launches_layout(PAPER, 16),)
    assert suited(232448, 10000, 1) == (launches_layout(10000),)  # columns of 316
    assert suited(101376, 200000, 1) == (launches_layout(200000),)


@pytest.mark.parametrize(
    ("multiprocessors", "room", "expected"),
    [
        (132, 232448, {1: 8, 16: 8, 17: 4, 33: 4, 34: 2, 64: 2, 66: 2, 67: 1, 1024: 1}),  # an H100
        (170, 101376, {1: 8, 21: 8, 22: 4, 42: 4, 43: 2, 1024: 2}),  # an RTX 5090
        (132, 0, {1: 0, 1024: 0}),
    ],
)
def test_every_block_has_a_multiprocessor_where_there_are_enough(multiprocessors, room, expected):
    fitting = suited(room, PAPER, 16)
    assert {batch: layout_for(fitting, batch, multiprocessors).together for batch in expected} == expected


# the same source on the CPU


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("reals", "channels", "together", "dtype", "batch"),
    [
        (SMALL, 4, 1, np.float32, 3),
        (SMALL, 4, 2, np.float16, 2),
        (SMALL, 4, 8, np.float32, 1),
        (SMALL, 4, 16, np.float32, 1),
        (2, 1, 8, np.float32, 2),
        (1984, 31, 8, np.float32, 2),
        (2048, 16, 8, np.float32, 2),  # 44 x 4 x 12: blocks with fewer rows, and with none
        (PAPER, 16, 8, np.float32, 2),
        (PAPER, 16, 4, np.float32, 1),
        (PAPER, 1, 8, np.float32, 1),
        (PAPER, 16, 4, np.float16, 1),
        (100000, 4, 8, np.float32, 1),  # 56 x 56 x 32
        (16320, 16, 8, np.float32, 2),  # 32 x 32 x 16: the last factor is nearly a power of two
        (16258, 1, 1, np.float16, 2),
        (SMALL, 4, 0, np.float32, 3),
        (2048, 16, 0, np.float16, 2),
        (10000, 8, 0, np.float32, 2),  # columns of 316
        (PAPER, 16, 0, np.float32, 2),
        (16320, 16, 0, np.float32, 2),
        (200000, 1, 0, np.float32, 1),  # 76 x 60 x 44
    ],
)
def test_the_reference_within_rounding(folder, reals, channels, together, dtype, batch):
    shape = layout_of(reals, channels, together)
    kernel = OnCpu(folder, shape, dtype)
    assert all(kernel.blocks(name) == shape.blocks(name) for name in kernel.launches)
    check(kernel, batch)


@pytest.mark.compiler
@pytest.mark.parametrize("together", [0, 8])
def test_without_what_rounding_left_the_power_would_tell_pictures_apart(folder, together):
    shape = cluster_layout(16320, together, 16) if together else launches_layout(16320, 16)
    source = shape.source().replace("return MAY_TAKE_REST && (FEW || sticks(factor));", "return false;")
    assert source != shape.source()
    with pytest.raises(AssertionError, match="1e-08"):
        check(OnCpu(folder, shape, source=source), 2)


@pytest.mark.parametrize("reals", [SMALL, 10000, 16256, 16258, 16320, 16322, PAPER, 100000])
def test_where_the_largest_value_takes_what_rounding_left(reals, monkeypatch):
    """The kernels tell by the size what the reference tells by the last factor."""
    factors, normalize = [], mix.normalize
    monkeypatch.setattr(mix, "normalize", lambda on_air: factors.append(normalize(on_air)) or factors[-1])
    _, unit = draw(np.random.default_rng(reals), 1, reals)
    mix.mix(unit, mix.derive_keys(K, SESSION, [reals], DIGEST, reals))
    exponent = np.log2(factors[0][1][0])
    taken = mix.padded_size(reals) < mix.FEW or abs(exponent - round(exponent)) < mix.STICKS
    assert rest_may_be_taken(*mix.factors(reals)) == taken == (reals <= 16320)


@pytest.mark.compiler
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_reference_for_any_size(folder, data):
    channels = data.draw(st.integers(1, 24))
    reals = channels * 2 * data.draw(st.integers(1, 20000 // channels))
    together = data.draw(st.sampled_from([0, 1, 2, 4, 8, 16]))
    try:
        shape = cluster_layout(reals, together, channels, alone=data.draw(st.booleans()))
    except (ValueError, ZeroDivisionError):
        shape = launches_layout(reals, channels)
    check(OnCpu(folder, shape), data.draw(st.integers(1, 3)), seed=reals, order=data.draw(st.integers(0, 5)))


@pytest.mark.compiler
@pytest.mark.parametrize("order", range(4))
@pytest.mark.parametrize("together", [0, 8])
def test_the_order_of_threads_and_blocks_changes_no_bit(folder, order, together):
    kernel = OnCpu(folder, layout_of(PAPER, 16, together))
    x, _ = draw(np.random.default_rng(7), 1, PAPER)
    keys = packet_keys(K, SESSION, [7], DIGEST)
    on_air, scales = kernel.mix(x, keys, order)
    first, loud = kernel.mix(x, keys, 0)
    assert on_air.tobytes() == first.tobytes()
    assert scales.tobytes() == loud.tobytes()
    assert kernel.unmix(on_air, keys, order).tobytes() == kernel.unmix(on_air, keys, 0).tobytes()


@pytest.mark.compiler
@pytest.mark.parametrize(("reals", "channels"), [(SMALL, 4), (2820, 1), (PAPER, 16)])
def test_the_key_material_to_the_bit(folder, reals, channels):
    """What the first launches leave in the workspace: the stream, pads, the order of rows and of columns."""
    kernel = OnCpu(folder, launches_layout(reals, channels))
    shape, counters = kernel.shape, [0, 1, 2**32 - 1, 2**64 - 1]
    kernel.mix(np.ones((4, reals), np.float32), packet_keys(K, SESSION, counters, DIGEST))
    kernel.unmix(np.ones((4, shape.size), np.float32), packet_keys(K, SESSION, counters, DIGEST))
    expected, rows = mix.derive_keys(K, SESSION, counters, DIGEST, reals), shape.a * shape.b
    blocks = -(-stream_words(reals) // 16)
    for image, counter in enumerate(counters):
        work = kernel.work[image * shape.work : (image + 1) * shape.work]
        stream, work = work[2 * shape.size :][: 16 * blocks], work[2 * shape.size + 16 * blocks :]
        nonce = (1).to_bytes(4, "little") + counter.to_bytes(8, "little") + bytes(4)
        cipher = Cipher(ChaCha20(derive(K, mix.LABEL, SESSION + DIGEST), nonce), None)
        assert stream.tobytes() == cipher.encryptor().update(bytes(64 * blocks))
        places, columns = work[:rows].astype(int), work[rows : rows + shape.c]
        assert (places[expected.rows[image]] == np.arange(rows)).all()
        assert (columns == expected.columns[image]).all()


@pytest.mark.compiler
@pytest.mark.parametrize("together", [0, 8])
def test_pads_to_the_bit(folder, together):
    """Of silence only the pads are mixed: those of the reference, whatever their power."""
    kernel = OnCpu(folder, layout_of(SMALL, 4, together))
    keys = mix.derive_keys(K, SESSION, [3], DIGEST, SMALL)
    on_air, scales = kernel.mix(np.zeros((1, SMALL), np.float32), packet_keys(K, SESSION, [3], DIGEST))
    back = kernel.unmix(on_air, packet_keys(K, SESSION, [3], DIGEST))
    assert np.abs(back).max() < 1e-5
    off = np.abs(on_air - mix.mix(np.zeros((1, SMALL), np.float32), keys))[0]
    assert np.sort(off)[-2] <= rounding(off.size)
    assert np.isfinite(scales).all()


@pytest.mark.compiler
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("together", [0, 8])
def test_features_that_are_not_finite_have_no_scale(folder, bad, together):
    kernel = OnCpu(folder, layout_of(SMALL, 4, together))
    x, _ = draw(np.random.default_rng(5), 3, SMALL)
    x[1, 17] = bad
    _, scales = kernel.mix(x, packet_keys(K, SESSION, range(3), DIGEST))
    assert (np.isfinite(scales) & (scales > 0)).tolist() == [True, False, True]


# what orders one thread behind another: barriers of a cluster, a block, a warp, and waiting for what is pushed
BARRIER = r"(?<=[ ;])(?:meet|rows_met|kept_met|begun|all_begun|__syncthreads|arrived)\((?:m\.arrivals, [A-Z_]+)?\);"
SMALL_CLUSTER, IN_WARPS, PUSHED = cluster_layout(SMALL, 4, 4), cluster_layout(PAPER, 1), cluster_layout(1984, 4, 4, alone=True)
# meetings that are not compiled, for one block or for several; two of a last step that the size has not; a barrier behind
# another where rows are not those of a warp
SPARE: dict[MixLayout, set[int]] = {SMALL_CLUSTER: {0, 16}, IN_WARPS: {1, 2, 10, 13, 14, 15, 19}, PUSHED: {20}}


def with_faults(shape: MixLayout) -> tuple[str, int, int]:
    """The source of a layout in which one barrier may be left out, or one number of bytes that are waited for be wrong.

    Also how many there are of both in its kernels.
    """
    first = re.search(r"// One image, whose|// features\[batch\]", shape.source()).start()
    head, kernels = shape.source()[:first], shape.source()[first:]
    barriers, counts = itertools.count(), itertools.count()
    kernels = re.sub(BARRIER, lambda match: f"if (lacks != {next(barriers)}) {match[0]}", kernels)
    expected = r"(expects\(m\.arrivals, [A-Z_]+, .*)\);"
    kernels = re.sub(expected, lambda match: f"{match[1]} + (miscounts == {next(counts)} ? wrong_by : 0));", kernels)
    entry = """
static int lacks, miscounts, wrong_by;
extern "C" void lack(int barrier) { lacks = barrier; }
extern "C" void miscount(int exchange, int by) { miscounts = exchange, wrong_by = by; }
"""
    return entry + head + kernels, next(barriers), next(counts)


@pytest.mark.compiler
@pytest.mark.parametrize("shape", SPARE, ids=["cluster", "in_warps", "pushed"])
def test_every_barrier_is_needed_and_its_lack_is_seen(folder, shape):
    source, count, _ = with_faults(shape)
    assert count > 10
    kernel = OnCpu(folder, shape, source=source)
    kernel.library.lack(count)
    check(kernel, 2)
    for barrier in range(count):
        kernel.library.lack(barrier)
        if barrier in SPARE[shape]:
            check(kernel, 2)
            continue
        with pytest.raises(AssertionError, match=r"race|met different barriers|never come"):
            check(kernel, 2)


@pytest.mark.compiler
def test_bytes_that_are_too_few_or_too_many_are_seen(folder):
    source, barriers, count = with_faults(PUSHED)
    assert count == 9
    kernel = OnCpu(folder, PUSHED, source=source)
    kernel.library.lack(barriers)
    for exchange in range(count):
        for by, message in ((-4, "more pushed than expected"), (4, "waits for bytes that never come")):
            kernel.library.miscount(exchange, by)
            with pytest.raises(AssertionError, match=message):
                check(kernel, 2)


# of a block of a cluster: faults that change no result where blocks happen to begin and end together
MADE = r"(    if \(m\.thread == 0\) \{\n(?:        expects\(.*\n)+    \}\n)    begun\(\);\n"


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("shape", "right", "wrong", "message"),
    [
        (SMALL_CLUSTER, r"    if \(G > 1\) all_begun\(\);\n    give", "    give", "races the beginning of another block"),
        (SMALL_CLUSTER, r"meet\(\);(?=  // also: no block ends)", "__syncthreads();", "its end races others that"),
        (PUSHED, MADE, r"    begun();\n\1", "making a barrier object races its use"),
        (
            PUSHED,
            r"arrived\(m\.arrivals, ENERGY\);((?:\n.*)*?)total\(m, m\.sums, LAST_WARPS\)",
            r"\1(double)1",
            "its end races what is pushed to it",
        ),
    ],
    ids=["begins", "ends", "counts", "is_pushed_to"],
)
def test_what_a_block_owes_the_others_of_its_cluster_is_seen(folder, shape, right, wrong, message):
    source = re.sub(right, wrong, shape.source())
    assert source != shape.source()
    with pytest.raises(AssertionError, match=message):
        check(OnCpu(folder, shape, source=source), 1)


@pytest.mark.compiler
def test_a_place_outside_is_seen(folder):
    shape = cluster_layout(SMALL, 4, 4)
    source = shape.source().replace(
        "for (int i = m.thread; i < 3 * TURN; i += THREADS)", "for (int i = m.thread; i <= 3 * TURN; i += THREADS)"
    )
    assert source != shape.source()
    with pytest.raises(AssertionError, match="out of bounds"):
        check(OnCpu(folder, shape, source=source), 1)


@pytest.mark.compiler
@pytest.mark.parametrize("channels", [1, 16])
def test_structure_is_that_of_the_reference(folder, channels):
    rng = np.random.default_rng(3)
    noise, loudness = rng.standard_normal((4, PAPER // 16, 16)), rng.uniform(0.5, 2, (1, 1, 16))
    features = np.concatenate([noise[:2], noise[2:] * loudness + 0.2]).astype(np.float32).reshape(4, -1)
    expected = mix.structure(features, 16)
    assert (np.abs(expected) < mix.MIN_STRUCTURE).tolist() == [True, True, False, False]
    found = check_structure(folder, planar(features, channels), PAPER, 16, channels)
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-2)


def test_keys_that_are_none_are_refused():
    with pytest.raises(ValueError, match="session must be 16 bytes and digest 32, got 2 and 32"):
        packet_keys(K, b"no", [1], DIGEST)
    for counter in (-1, 2**64):
        with pytest.raises(ValueError, match=re.escape("must be in 0..2^64-1")):
            packet_keys(K, SESSION, [counter], DIGEST)
    assert packet_keys(K, SESSION, [2**33 + 5], DIGEST)[0, 8:].tolist() == [5, 2]


@pytest.mark.parametrize(
    ("reals", "together", "channels", "message"),
    [
        (10000, 8, 1, "columns of 316 and 4 values are too long"),
        (PAPER, 8, 7, "32400 reals are not 7 channels"),
        (191, 8, 1, "191 reals are not 1 channels of whole symbols"),
        (100000, 1, 1, "threads of .* registers are too many for a block"),
    ],
)
def test_what_no_cluster_takes_is_refused(reals, together, channels, message):
    with pytest.raises(ValueError, match=message):
        cluster_layout(reals, together, channels)
