"""One request on an emulated GPU (emulated_gpu.py): captured as one CUDA graph, or in three launches where that is refused."""

import warnings
from types import SimpleNamespace

import emulated_gpu
import numpy as np
import pytest
from cuda.bindings import driver
from cuda.core._utils.cuda_utils import CUDAError
from emulated_gpu import Buffer, Device, emulate
from semseal.runtime.bundle import open_bundle
from semseal.runtime.defense import index
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import EngineError
from semseal.runtime.gpu import device, engines
from semseal.runtime.gpu.device import Port, Tensors, capture, gathered, remembering, scattered
from semseal.runtime.gpu.pixel_kernel import PixelKernel
from semseal.runtime.gpu.request import captured, refuse_host_work
from semseal.runtime.gpu.scheme_kernel import SchemeKernel, tile_layout

pytestmark = pytest.mark.compiler
DONE = driver.CUresult.CUDA_SUCCESS
KINDS = driver.CUgraphNodeType
HOST, DEVICE = driver.CUmemorytype.CU_MEMORYTYPE_HOST, driver.CUmemorytype.CU_MEMORYTYPE_DEVICE


@pytest.fixture(autouse=True)
def gpu(monkeypatch, libraries):
    emulate(monkeypatch, libraries)


@pytest.fixture
def sessions(monkeypatch):
    """The sessions that engines open in this test."""
    opened = []

    class Session(emulated_gpu.Session):
        def __init__(self, name, graph):
            super().__init__(name, graph)
            opened.append(self)

    monkeypatch.setattr(engines, "Session", Session)
    return opened


def given(side, batch, bundle, pixels):
    """The graph of a side, data of both kinds and what else it is told."""
    images = np.random.default_rng(1).random((batch, 3, bundle.height, bundle.width), np.float32)
    if pixels and side == "transmitter":
        images = np.round(images.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    told = [np.full(batch, 10, np.float32)] if bundle.has_scale else []
    if side == "receiver":
        plain = index.identity(batch * bundle.h).reshape(batch, bundle.h)
        images = open_engine("onnxruntime-cpu", bundle.graph("transmitter"))(images, plain, *told)
        told = [np.tile(np.float32([1, 0.1, 10]), (batch, 1))] if bundle.has_scale else []
    return bundle.program(side, "fp32", "onnxruntime-cuda", pixels), images, told


@pytest.fixture(params=["small_bundle", "edge_bundle"])
def bundle(request):
    """With and without power normalisation in the graph; rows are not as wide as they are many."""
    return open_bundle(request.getfixturevalue(request.param))


@pytest.mark.parametrize(("pixels", "capturable"), [(True, True), (False, False)])
@pytest.mark.parametrize("side", ["transmitter", "receiver"])
def test_changing_data_and_shapes_are_answered_with_and_without_a_capture(
    sessions, monkeypatch, bundle, side, pixels, capturable
):
    monkeypatch.setattr(emulated_gpu.Session, "capturable", capturable)
    graph, data, told = given(side, 3, bundle, pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        here, there = open_engine("onnxruntime-cuda", graph), open_engine("onnxruntime-cpu", graph)
    rng = np.random.default_rng(0)
    for batch in (slice(0, 1), slice(1, 3), slice(1, 2)):
        some = [array[batch] for array in (data, *told)]
        table = rng.permutation(len(some[0]) * bundle.h).astype(np.int32).reshape(-1, bundle.h)
        answer, expected = here(some[0], table, *some[1:]), there(some[0], table, *some[1:])
        assert (answer.shape, answer.dtype) == (expected.shape, expected.dtype)
        if pixels and side == "receiver":
            assert np.array_equal(answer[:, -1], expected[:, -1])
            assert np.abs(answer.astype(int) - expected).max() <= 1
        else:
            assert np.abs(answer - expected).max() < 2e-6 * np.abs(expected).max()
    (session,) = sessions
    assert len(session.inputs) == 1 + len(told), "the graph was not cut"
    assert session.captured == capturable
    assert ("CUDA failure 900" in session.refused) == (not capturable)


def test_many_are_done_in_parts_on_two_lanes(sessions, monkeypatch, bundle):
    monkeypatch.setattr(device, "CHUNK", 2)
    graph, data, told = given("transmitter", 6, bundle, pixels=True)
    here, there = open_engine("onnxruntime-cuda", graph), open_engine("onnxruntime-cpu", graph)
    rng = np.random.default_rng(0)
    pairs = [rng.permutation(2 * bundle.h) + 2 * k * bundle.h for k in range(3)]
    within = np.concatenate(pairs).astype(np.int32).reshape(6, -1)
    for k, table in enumerate((within, rng.permutation(6 * bundle.h).astype(np.int32).reshape(6, -1), within)):
        expected = there(data, table, *told)
        assert np.abs(here(data, table, *told) - expected).max() < 2e-6 * np.abs(expected).max()
        assert len(sessions) == 2, k
    assert np.array_equal(here(data[::-1].copy(), within, *told), here(data[::-1].copy(), within, *told))


def test_a_picture_that_is_none_is_told_of_by_its_last_row(small_bundle):
    bundle = open_bundle(small_bundle)
    graph, symbols, _ = given("receiver", 3, bundle, pixels=True)
    symbols[1, 20] = np.nan
    here = open_engine("onnxruntime-cuda", graph)
    plain = index.identity(3 * bundle.h).reshape(3, bundle.h)
    for _ in range(2):
        assert here(symbols, plain)[:, -1].min(axis=(1, 2)).tolist() == [1, 0, 1]


def test_of_a_captured_graph_only_work_of_the_device_is_launched_again(monkeypatch):
    pinned = Tensors(Device(), None, [((4,), np.float32), ((3,), np.int32)])
    ours, stray = int(pinned.each[1]._pinned.handle), Buffer(64).handle
    on_device = {9: DEVICE, stray: HOST}
    graph = []
    copies = {
        "ours": SimpleNamespace(srcMemoryType=HOST, srcHost=ours, dstMemoryType=DEVICE, dstDevice=9),
        "from a stranger": SimpleNamespace(srcMemoryType=HOST, srcHost=stray, dstMemoryType=DEVICE, dstDevice=9),
        "to nowhere": SimpleNamespace(srcMemoryType=DEVICE, srcDevice=9, dstMemoryType=HOST, dstHost=None),
    }

    def attribute(which, address):
        return (DONE, on_device[address]) if address in on_device else (driver.CUresult.CUDA_ERROR_INVALID_VALUE, 0)

    def kind(node):
        return DONE, KINDS.CU_GRAPH_NODE_TYPE_MEMCPY if node in copies else node

    monkeypatch.setattr(driver, "cuGraphGetNodes", lambda graph, count=0: (DONE, graph[:count], len(graph)))
    monkeypatch.setattr(driver, "cuGraphNodeGetType", kind)
    monkeypatch.setattr(driver, "cuGraphMemcpyNodeGetParams", lambda node: (DONE, copies[node]))
    monkeypatch.setattr(driver, "cuPointerGetAttribute", attribute)

    graph = [KINDS.CU_GRAPH_NODE_TYPE_KERNEL, "ours", KINDS.CU_GRAPH_NODE_TYPE_MEMSET]
    refuse_host_work(graph, [pinned])
    for node, message in (
        (KINDS.CU_GRAPH_NODE_TYPE_HOST, "a node of type HOST"),
        (KINDS.CU_GRAPH_NODE_TYPE_MEM_ALLOC, "a node of type MEM_ALLOC"),
        ("from a stranger", "copies from memory of the host that is not the request's"),
        ("to nowhere", "copies to memory of the host that is not the request's"),
    ):
        with pytest.raises(ValueError, match=message):
            refuse_host_work([*graph, node], [pinned])


@pytest.mark.parametrize("check", [gathered, scattered])
def test_what_passed_a_check_passes_again_and_nothing_else_does(check):
    ports = Port("image", np.dtype(np.float32), (-1, 2)), Port("index", np.dtype(np.int32), (-1, 3))
    asked = []

    def take(inputs):
        asked.append(inputs)
        return check(ports, inputs)

    taken = remembering(ports, take)
    image, table = np.zeros((2, 2), np.float32), np.array([[3, 1, 2], [0, 5, 4]], np.int32)
    for _ in range(3):
        given = taken((image, table))
        assert given[0] is image
        assert np.array_equal(given[1], check(ports, (image, table))[1])
    assert len(asked) == 1
    table[0, 0] = 5  # names a row twice
    if check is gathered:
        assert np.array_equal(taken((image, table))[1], table)
    else:
        with pytest.raises(ValueError, match="index"):
            taken((image, table))
    for _ in range(2):
        table[0, 0] = 6
        with pytest.raises(ValueError, match="index"):
            taken((image, table))
        with pytest.raises(ValueError, match="index must be int32"):
            taken((image, table.astype(np.int64)))
        with pytest.raises(ValueError, match="index"):
            taken((image[:1], np.array([[3, 1, 2]], np.int32)))  # a row of an image that is not there
    for count in range(100):
        taken((image, np.roll(np.arange(6, dtype=np.int32), count).reshape(2, 3)))
    assert len(asked) < 20


def test_what_the_key_of_one_packet_makes_is_not_remembered():
    ports = Port("symbols", np.dtype(np.float32), (-1, 8)), Port("mix_rows", np.dtype(np.int32), (-1, 4))
    asked = []

    def take(inputs):
        asked.append(inputs)
        return gathered(ports, inputs)

    taken = remembering(ports, take)
    symbols, rows = np.zeros((2, 8), np.float32), np.arange(8, dtype=np.int32).reshape(2, 4)
    for _ in range(3):
        assert np.array_equal(taken((symbols, rows))[1], rows)
    assert len(asked) == 3


@pytest.mark.parametrize("how", [capture, lambda stream, work: captured(stream, work, [])])
def test_a_stream_has_left_the_capture_whatever_went_wrong_in_it(how):
    stream, done = emulated_gpu.Stream(), []

    def interrupted(where):
        where.do(lambda: done.append("in part"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        how(stream, interrupted)
    stream.sync()
    how(stream, lambda where: where.do(lambda: done.append("all"))).launch(stream)
    assert done == ["all"]


def test_a_gpu_that_fails_is_told_of_and_the_next_call_is_answered(monkeypatch, small_bundle):
    bundle = open_bundle(small_bundle)
    graph, data, told = given("transmitter", 2, bundle, pixels=True)
    here = open_engine("onnxruntime-cuda", graph)
    plain = index.unmoved(2, bundle.h)
    expected = here(data, plain, *told)
    with monkeypatch.context() as broken:

        def sync(stream):
            raise CUDAError("CUDA_ERROR_ILLEGAL_ADDRESS")

        broken.setattr(emulated_gpu.Stream, "sync", sync)
        with pytest.raises(EngineError, match="the GPU did not do its work: CUDA_ERROR_ILLEGAL_ADDRESS\nhint: start"):
            here(data, plain, *told)
    assert np.array_equal(here(data, plain, *told), expected)


def test_two_launches_never_keep_each_other_from_the_blocks_they_wait_for():
    """Each of two may have begun all blocks of an image but one."""

    class Small(Device):
        def __init__(self, arch, multiprocessors):
            self.arch, self.properties = arch, SimpleNamespace(multiprocessor_count=multiprocessors)

    shape = tile_layout(16, 45, 45)
    assert shape.parts == 8
    with pytest.raises(ValueError, match=r"holds 8 blocks at once, images of \[16, 45, 45\] need 16; keep the index"):
        SchemeKernel(Small("86", 1), shape, np.dtype(np.float32))
    for small in (Small("86", 2), Small("90", 1)):  # the blocks of a cluster begin together
        assert SchemeKernel(small, shape, np.dtype(np.float32)).layout == shape


def test_tensors_that_are_moved_together_lie_apart():
    tensors = Tensors(Device(), None, [((5,), np.uint8), ((2, 3), np.float32), ((1,), np.int32)])
    for number, tensor in enumerate(tensors.each):
        assert not tensor.host.any()
        tensor.host[...] = number + 1
    stream = emulated_gpu.Stream()
    tensors.upload(stream)
    for tensor in tensors.each:
        tensor.host[...] = 0
    tensors.each[1].download(stream)
    assert [int(tensor.host.max()) for tensor in tensors.each] == [0, 2, 0]
    far, near = Tensors(Device(), None, [((2,), np.int32), ((2,), np.int32)], near=(1,)).each
    assert int(near.device.handle) == near.host.ctypes.data != int(far.device.handle)
    tensors.download(stream)
    assert [tensor.host.tolist() for tensor in tensors.each] == [[1] * 5, [[2] * 3] * 2, [3]]


@pytest.mark.parametrize(
    ("height", "width", "dtype", "planes"),
    [(1, 1, np.float32, False), (9, 11, np.float32, True), (9, 11, np.float16, False), (16, 16, np.float32, True)],
)
def test_bytes_and_images_of_any_size(height, width, dtype, planes):
    stream, batch = emulated_gpu.Stream(), 3
    kernel = PixelKernel(Device(), height, width, np.dtype(dtype), planes)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (batch, height, width, 3), np.uint8)
    image = rng.random((batch, height, width, 3)).astype(dtype)
    image[0, 0, 0] = 2, -1, 0.5
    image[1, height // 2, width - 1, 1] = np.nan
    shape = (batch, 3, height, width) if planes else image.shape
    there, made = Buffer(pixels.nbytes), Buffer(image.nbytes)
    there.memory[:] = pixels.ravel()
    kernel.unpack(stream, there, made, batch)
    given = made.memory.view(dtype).reshape(shape)
    expected = (pixels / np.float32(255)).astype(np.float32).astype(dtype)
    assert np.array_equal(given.transpose(0, 2, 3, 1) if planes else given, expected)

    made.memory[:] = np.ascontiguousarray(image.transpose(0, 3, 1, 2) if planes else image).view(np.uint8).ravel()
    back, flags = Buffer(batch * (height + 1) * width * 3), kernel.workspace(Device(), batch, stream)
    for _ in range(2):  # the flags are as they were after each launch
        back.memory[:] = 77
        kernel.pack(stream, made, back, flags, batch)
        answer = back.memory.reshape(batch, height + 1, width, 3)
        is_number = ~np.isnan(image)
        rounded = np.clip(np.round(image.astype(np.float32) * np.float32(255)), 0, 255)
        assert np.array_equal(answer[:, :-1][is_number], rounded[is_number].astype(np.uint8))
        assert np.array_equal(
            answer[:, -1].astype(bool), np.broadcast_to(is_number.all(axis=(1, 2))[:, None], (batch, width, 3))
        )
