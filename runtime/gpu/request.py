"""One request of a network on a GPU, from pinned to pinned memory: one CUDA graph wherever the network can be captured.

    pinned ── one copy ── before ── network ── behind ── one copy ── pinned      one launch, one wait

What a kernel of ours reads or writes once is not copied in small requests (``near``): the kernel reaches into pinned memory. On
an H200 a picture of 180 x 180 came 13 us sooner so: a copy of 100 kB takes the device 7 us, and its beginning and end the rest.

A plan is captured as it is. ONNX Runtime puts its work on our stream and waits for nothing, so it is captured too, once for a
shape, in a session of its own:

    3 runs      it measures its convolutions, lays out its memory and takes all of it, which nothing may do in a capture
    capture     what it puts on the stream, between our copies and kernels
    never again the session is not run any more, so what it keeps in its memory stays what the graph found there

What it captured is looked at: a graph repeats work of the device only. A call into the host's code, memory that is taken or
given back, and a copy from or to memory that is neither the device's nor the request's own pinned memory (a buffer of ONNX
Runtime's that is gone at the next launch) are refused. Where the capture fails or is refused, ONNX Runtime replays a graph of
its own between our copies, three launches in place of one, and a warning says why.
"""

from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from semseal.runtime.gpu.device import Lane, Port, Run, Shape, Tensors, capture, recorded

if TYPE_CHECKING:
    from cuda.core import Buffer, Device, Stream
    from cuda.core.graph import Graph, GraphBuilder

# of the inputs or the outputs of a request, up to which kernels reach them where they are; a few pictures
MAX_NEAR_BYTES = 2**19
WARM_RUNS = 3  # ONNX Runtime takes memory in the first run, and again in the second, for what it saw in the first
DEVICE_WORK = ("KERNEL", "MEMCPY", "MEMSET", "EMPTY")  # nodes that do at each launch what they did at the first

Work = Callable[["Stream | GraphBuilder"], None]


class Network(Protocol):
    """A loaded graph or plan: ``semseal.runtime.gpu.engines``."""

    device: "Device"
    stream: "Stream"
    inputs: tuple[Port, ...]
    output: Port
    once: frozenset[str]  # names of those that one kernel of ours reads or writes once

    @property
    def captured(self) -> bool:
        """Whether what ``bind`` gives next may be captured in a CUDA graph."""

    def output_shape(self, shapes: Sequence[Shape]) -> Shape: ...

    def bind(self, shapes: Sequence[Shape], inputs: "Sequence[Buffer]", output: "Buffer") -> Callable[[], None]: ...

    def refuse_capture(self, reason: str) -> None:
        """From now on ``captured`` is False; raises EngineError where the network cannot do without."""


def near(ports: Sequence[Port], shapes: Sequence[Shape], once: Container[str]) -> tuple[int, ...]:
    """The places of what is not copied: of these ports the ones in ``once``, if all of them are small."""
    size = sum(int(np.prod(shape)) * port.dtype.itemsize for port, shape in zip(ports, shapes, strict=True))
    return tuple(place for place, port in enumerate(ports) if port.name in once) if size <= MAX_NEAR_BYTES else ()


def lane_of(network: Network) -> Lane:
    """The requests of a network that takes and gives what the caller does."""
    device, stream = network.device, network.stream

    def prepare(shapes: tuple[Shape, ...]) -> Run:
        wanted = [(shape, port.dtype) for port, shape in zip(network.inputs, shapes, strict=True)]
        inputs = Tensors(device, stream, wanted, near(network.inputs, shapes, network.once))
        shape = network.output_shape(shapes)
        output = Tensors(device, stream, [(shape, network.output.dtype)], near([network.output], [shape], network.once))
        buffers = [tensor.device for tensor in inputs.each]
        return request(network, partial(network.bind, shapes, buffers, output.each[0].device), inputs, output)

    return Lane(stream, prepare)


def nothing(where: "Stream | GraphBuilder") -> None:
    """Work before or behind a network that stands alone."""


def request(
    network: Network,
    bind: Callable[[], Callable[[], None]],
    inputs: Tensors,
    outputs: Tensors,
    before: Work = nothing,
    behind: Work = nothing,
    keeps: Any = None,
) -> Run:
    """The Run of one shape. ``bind`` binds the network to the buffers between ``before`` and ``behind``."""
    stream = network.stream

    def up(where: "Stream | GraphBuilder") -> None:
        inputs.upload(where)
        before(where)

    def down(where: "Stream | GraphBuilder") -> None:
        behind(where)
        outputs.download(where)

    if network.captured:
        run = bind()

        def everything(where: "Stream | GraphBuilder") -> None:
            up(where)
            run()
            down(where)

        for _ in range(WARM_RUNS):
            everything(stream)
        stream.sync()
        try:
            whole = captured(stream, everything, (inputs, outputs))
        except Exception as error:  # of the driver, of ONNX Runtime or of ``captured``: they share no narrower base
            network.refuse_capture(str(error))
        else:
            return Run(inputs.each, outputs.each, lambda: whole.launch(stream), (keeps, run, whole))
    run = bind()
    up(stream)
    run()  # allocates and compiles, which a capture cannot take
    down(stream)
    stream.sync()
    first = _part(stream, up, alone=before is nothing)
    last = _part(stream, down, alone=behind is nothing)

    def launch() -> None:
        first()
        run()
        last()

    return Run(inputs.each, outputs.each, launch, (keeps, run, first, last))


def _part(stream: "Stream", work: Work, alone: bool) -> Callable[[], None]:
    """What is done on one side of a network that is not captured: a copy ``alone``, or a copy and kernels as one graph."""
    if alone:
        return lambda: work(stream)
    graph = capture(stream, work)
    return lambda: graph.launch(stream)


def captured(stream: "Stream", work: Work, pinned: Sequence[Tensors]) -> "Graph":
    """The work as a CUDA graph that may be launched again and again. Raises ValueError where it could not, saying why."""
    builder = recorded(stream, work)
    refuse_host_work(builder.graph_definition.handle, pinned)
    return builder.complete()


def refuse_host_work(graph: Any, pinned: Sequence[Tensors]) -> None:
    """Raises ValueError for a captured graph with anything but work of the device on memory that stays."""
    from cuda.bindings import driver

    def asked(given: tuple[Any, ...]) -> tuple[Any, ...]:
        if given[0] != driver.CUresult.CUDA_SUCCESS:
            raise ValueError(f"the captured work cannot be looked at: {given[0].name}")
        return given[1:]

    _, count = asked(driver.cuGraphGetNodes(graph))
    nodes, _ = asked(driver.cuGraphGetNodes(graph, count))
    for node in nodes:
        (kind,) = asked(driver.cuGraphNodeGetType(node))
        name = kind.name.removeprefix("CU_GRAPH_NODE_TYPE_")
        if name not in DEVICE_WORK:
            raise ValueError(f"the captured work holds a node of type {name}")
        if name == "MEMCPY":
            (copy,) = asked(driver.cuGraphMemcpyNodeGetParams(node))
            for end, address in (("from", _address(copy, "src")), ("to", _address(copy, "dst"))):
                if not any(tensors.holds(address) for tensors in pinned) and not _on_device(driver, address):
                    raise ValueError(f"the captured work copies {end} memory of the host that is not the request's")


def _address(copy: Any, end: str) -> int:
    """Where a copy begins (``src``) or ends (``dst``); 0 for an array."""
    on_host = getattr(copy, f"{end}MemoryType").name == "CU_MEMORYTYPE_HOST"
    return int(getattr(copy, f"{end}Host" if on_host else f"{end}Device") or 0)


def _on_device(driver: Any, address: int) -> bool:
    """Whether an address is known to the driver as the device's; it knows none of memory that was not pinned."""
    attribute = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE
    status, kind = driver.cuPointerGetAttribute(attribute, address)
    return bool(status == driver.CUresult.CUDA_SUCCESS and int(kind) == int(driver.CUmemorytype.CU_MEMORYTYPE_DEVICE))
