"""One request on an emulated GPU (emulated_gpu.py): captured as one CUDA graph, or in three launches where that is refused."""

from types import SimpleNamespace

import emulated_gpu
import numpy as np
import pytest
from cuda.bindings import driver
from emulated_gpu import Buffer, Device, emulate
from semseal.runtime.bundle import open_bundle
from semseal.runtime.defense import index
from semseal.runtime.engine import open_engine
from semseal.runtime.gpu import engines
from semseal.runtime.gpu.device import Tensors
from semseal.runtime.gpu.request import refuse_host_work
from semseal.runtime.roundtrip import smooth_images

DONE = driver.CUresult.CUDA_SUCCESS
KINDS = driver.CUgraphNodeType
HOST, DEVICE = driver.CUmemorytype.CU_MEMORYTYPE_HOST, driver.CUmemorytype.CU_MEMORYTYPE_DEVICE


@pytest.fixture(autouse=True)
def gpu(monkeypatch, tmp_path):
    emulate(monkeypatch, tmp_path)


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


def given(side, batch):
    bundle = open_bundle("photos-10db")
    images = smooth_images(batch, bundle.height, bundle.width)
    plain = index.identity(batch * bundle.h).reshape(batch, bundle.h)
    if side == "receiver":
        images = open_engine("onnxruntime-cpu", bundle.graph("transmitter"))(images, plain)
    return bundle.graph(side), images, plain


@pytest.mark.parametrize("capturable", [True, False])
@pytest.mark.parametrize("side", ["transmitter", "receiver"])
def test_changing_data_and_shapes_are_answered_with_and_without_a_capture(sessions, monkeypatch, side, capturable):
    monkeypatch.setattr(emulated_gpu.Session, "capturable", capturable)
    graph, data, plain = given(side, 3)
    here, there = open_engine("onnxruntime-cuda", graph), open_engine("onnxruntime-cpu", graph)
    for batch in (slice(0, 1), slice(1, 3), slice(1, 2), slice(0, 2)):
        table = index.identity(plain[batch].size).reshape(-1, plain.shape[1])
        assert np.array_equal(here(data[batch], table), there(data[batch], table))
    (session,) = sessions
    assert session.captured == capturable
    assert ("CUDA failure 900" in session.refused) == (not capturable)


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
    tensors.download(stream)
    assert [tensor.host.tolist() for tensor in tensors.each] == [[1] * 5, [[2] * 3] * 2, [3]]
