"""A network and the mix kernels behind or before it, as one engine: of keys 40 bytes an image go in.

    transmitter   image, keys ── network ── symbols at any power ── mix ──> on air, scales
    receiver      on air, keys ── unmix ── symbols ─┬─ network ─────────> image
                                                    └─ structure ───────> found, how far from white noise

The network is the graph or plan without mix, whose rows stay where they are, or what ends at its rows (``cut``). All of it is
one CUDA graph where the network can be captured (``semseal.runtime.gpu.request``).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from semseal.runtime.defense import mix
from semseal.runtime.errors import EngineError
from semseal.runtime.gpu.cut import PLANES
from semseal.runtime.gpu.device import Inputs, Lane, Port, Run, Shape, Tensor, Tensors, check_inputs, serve_several
from semseal.runtime.gpu.mix_kernel import KEY_WORDS, MixKernel, StructureKernel
from semseal.runtime.gpu.request import Network, near, request
from semseal.runtime.mixing import MIN_CHECKED_CHANNELS, MIN_CHECKED_REALS

if TYPE_CHECKING:
    from cuda.core import Stream
    from cuda.core.graph import GraphBuilder

Ended = tuple[Sequence[Port], Lane]  # what a side takes, and its requests


class FusedMix:
    """The engine of a side: data, what the graph is told, keys.

    transmitter   image or pixels, [snr_db], keys -> on air float32 [batch, N/2, 2] at power 1, scales float32 [batch]
    receiver      symbols float32 [batch, N/2, 2], [side_information], keys -> image, found float32 [batch]

    ``keys`` are ``packet_keys``. A scale is none where an image came out of its network not finite. ``found`` is
    ``mix.structure``, and infinite for models that are too small for it.
    """

    def __init__(
        self, network: Network, side: str, reals: int, channels: int, again: Callable[[], Network] | None = None
    ) -> None:
        """For images of ``reals`` reals in ``channels`` channels; ``again`` opens the network once more, for many images.

        Raises EngineError where the kernels cannot be had.
        """
        ended = _transmitter if side == "transmitter" else _receiver
        try:
            ports, lane = ended(network, reals, channels)
        except Exception as error:  # NVRTC missing or too old for this GPU; what it says has no narrower base
            raise EngineError(f"no mix kernel on {network.device.name}: {error}", "pip install -U nvidia-cuda-nvrtc") from None
        second = None if again is None else lambda: ended(again(), reals, channels)[1]
        self._run = serve_several(network.device, ports, lambda given: _taken(ports, given), lane, second)

    def __call__(self, *inputs: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Raises ValueError for inputs that do not fit."""
        given, said = self._run(*inputs)
        return given, said


def _transmitter(network: Network, reals: int, channels: int) -> Ended:
    image, index, told = _inputs(network)
    device, stream, dtype = network.device, network.stream, network.output.dtype
    kernel = MixKernel(device, reals, _channels(network.output), dtype)
    ports = (image, *told, _keys())
    on_air_port, said = _on_air("on_air", reals), (Port("scales", np.dtype(np.float32), ("batch",)),)
    once = network.once | {"keys", on_air_port.name, "scales"}

    def prepare(shapes: tuple[Shape, ...]) -> Run:
        batch = shapes[0][0]
        wanted = [(shape, port.dtype) for shape, port in zip(shapes, ports, strict=True)]
        taken = Tensors(device, stream, wanted, near(ports, shapes, once))
        sizes = ((batch, mix.padded_size(reals) // 2, 2), (batch,))
        given = Tensors(device, stream, [(size, np.float32) for size in sizes], near((on_air_port, *said), sizes, once))
        inputs, (on_air, scales), unmoved = taken.each, given.each, _unmoved(network, index, batch)
        symbols, work = device.allocate(dtype.itemsize * batch * reals, stream=stream), kernel.workspace(batch, stream)
        buffers = [inputs[0].device, *(tensor.device for tensor in (*unmoved, *inputs[1:-1]))]
        bound = [shapes[0], *(tensor.host.shape for tensor in unmoved), *shapes[1:-1]]

        def behind(where: "Stream | GraphBuilder") -> None:
            kernel.mix(where, symbols, inputs[-1].device, on_air.device, scales.device, work, batch)

        bind = partial(network.bind, bound, buffers, symbols)
        return request(network, bind, taken, given, behind=behind, keeps=(unmoved, symbols, work))

    return ports, Lane(stream, prepare)


def _receiver(network: Network, reals: int, channels: int) -> Ended:
    symbols_port, index, told = _inputs(network)
    device, stream, dtype = network.device, network.stream, symbols_port.dtype
    kernel = MixKernel(device, reals, _channels(symbols_port), dtype)
    checked = channels >= MIN_CHECKED_CHANNELS and reals >= MIN_CHECKED_REALS
    structure = StructureKernel(device, reals, channels, _channels(symbols_port), dtype) if checked else None
    ports = (_on_air("symbols", reals), *told, _keys())
    once = network.once | {"keys", "found", ports[0].name}
    found_port = Port("found", np.dtype(np.float32), ("batch",))

    def prepare(shapes: tuple[Shape, ...]) -> Run:
        batch = shapes[0][0]
        wanted = [(shape, port.dtype) for shape, port in zip(shapes, ports, strict=True)]
        taken = Tensors(device, stream, wanted, near(ports, shapes, once))
        symbols, work = device.allocate(dtype.itemsize * batch * reals, stream=stream), kernel.workspace(batch, stream)
        unmoved = _unmoved(network, index, batch)
        bound = [(batch, *symbols_port.axes[1:]), *(tensor.host.shape for tensor in unmoved), *shapes[1:-1]]
        sizes = (network.output_shape(bound), (batch,))
        kinds = zip(sizes, (network.output.dtype, np.float32), strict=True)
        given = Tensors(device, stream, kinds, near((network.output, found_port), sizes, once))
        inputs, (image, found) = taken.each, given.each
        buffers = [symbols, *(tensor.device for tensor in (*unmoved, *inputs[1:-1]))]

        def before(where: "Stream | GraphBuilder") -> None:
            kernel.unmix(where, inputs[0].device, inputs[-1].device, symbols, work, batch)
            if structure is not None:
                structure(where, symbols, found.device, batch)

        found.host[...] = np.inf
        found.upload(stream)  # what stays there for models that are not checked
        bind = partial(network.bind, bound, buffers, image.device)
        return request(network, bind, taken, given, before=before, keeps=(unmoved, symbols, work))

    return ports, Lane(stream, prepare)


def _taken(ports: Sequence[Port], given: Inputs) -> Inputs:
    """The inputs, checked. Raises ValueError."""
    check_inputs(ports, given)
    if any(len(array) != len(given[0]) for array in given):
        raise ValueError(f"images, what is told of them and keys must be as many, got {[len(array) for array in given]}")
    return given


def _channels(rows: Port) -> int:
    """How many lie behind one another in what a network gives or takes: 1 where rows are whole, or symbols already."""
    return int(rows.axes[1]) if rows.name == PLANES else 1


def _inputs(network: Network) -> tuple[Port, Port | None, list[Port]]:
    """The data, the index if there is one (a network that ends at its rows has none), and what else it is told."""
    data, *told = network.inputs
    return data, told.pop(0) if told and told[0].name == "index" else None, told


def _unmoved(network: Network, index: Port | None, batch: int) -> tuple[Tensor, ...]:
    """The index that leaves every row where it is, on the device."""
    if index is None:
        return ()
    h = index.axes[1]
    assert isinstance(h, int)
    tensor = Tensor(network.device, network.stream, (batch, h), np.int32)
    tensor.host[...] = np.arange(batch * h, dtype=np.int32).reshape(batch, h)
    tensor.upload(network.stream)
    return (tensor,)


def _on_air(name: str, reals: int) -> Port:
    return Port(name, np.dtype(np.float32), ("batch", mix.padded_size(reals) // 2, 2))


def _keys() -> Port:
    return Port("keys", np.dtype(np.uint32), ("batch", KEY_WORDS))
