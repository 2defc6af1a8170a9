"""A graph that was cut, with our kernels around its network, as the network of the whole graph (``semseal.runtime.gpu.cut``).

    Pictured   bytes ── unpack ── network ── rows                      rows ── network ── pack ── bytes
    Rowed      image ── network ── rows ── scheme kernel ── symbols    symbols ── scheme kernel ── rows ── network ── image

Both take and give what the graph did where they cut it, so either may stand in the other's place in a request.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from semseal.runtime.gpu.cut import Cut
from semseal.runtime.gpu.device import Port, Shape, axis_sizes
from semseal.runtime.gpu.pixel_kernel import PixelKernel
from semseal.runtime.gpu.request import Network
from semseal.runtime.gpu.scheme_kernel import SchemeKernel, tile_layout
from semseal.runtime.pixels import IMAGE

if TYPE_CHECKING:
    from cuda.core import Buffer


class _Around:
    """A network with kernels before or behind it, on its stream."""

    def __init__(self, inner: Network) -> None:
        self.inner, self.device, self.stream = inner, inner.device, inner.stream

    @property
    def captured(self) -> bool:
        return self.inner.captured

    def refuse_capture(self, reason: str) -> None:
        self.inner.refuse_capture(reason)

    def buffer(self, port: Port, shape: Shape) -> "Buffer":
        return self.device.allocate(int(np.prod(shape)) * port.dtype.itemsize, stream=self.stream)


class Pictured(_Around):
    """A network whose picture is bytes: [batch, height, width, 3] in, [batch, height + 1, width, 3] out."""

    def __init__(self, inner: Network, part: Cut) -> None:
        """Raises what cuda.core does where there is no kernel."""
        super().__init__(inner)
        self._sends = part.sends
        self._picture = inner.inputs[0] if part.sends else inner.output
        self._size = tuple(map(int, self._picture.axes[1:]))
        planes = self._picture.name == IMAGE
        self._height, self._width = self._size[1:] if planes else self._size[:2]
        self._kernel = PixelKernel(self.device, self._height, self._width, self._picture.dtype, planes)
        self.inputs = (part.inputs[0], *inner.inputs[1:]) if part.sends else inner.inputs
        self.output = inner.output if part.sends else part.output
        self.once = frozenset({(self.inputs[0] if part.sends else self.output).name})

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        given = self.inner.output_shape([(shapes[0][0], *self._size), *shapes[1:]] if self._sends else shapes)
        return given if self._sends else (given[0], self._height + 1, self._width, 3)

    def bind(self, shapes: Sequence[Shape], inputs: "Sequence[Buffer]", output: "Buffer") -> Callable[[], None]:
        batch, kernel = shapes[0][0], self._kernel
        image = self.buffer(self._picture, (batch, *self._size))
        if self._sends:
            run = self.inner.bind([(batch, *self._size), *shapes[1:]], [image, *inputs[1:]], output)

            def send() -> None:
                kernel.unpack(self.stream, inputs[0], image, batch)
                run()

            return send
        run, flags = self.inner.bind(shapes, inputs, image), kernel.workspace(self.device, batch, self.stream)

        def receive() -> None:
            run()
            kernel.pack(self.stream, image, output, flags, batch)

        return receive


class Rowed(_Around):
    """A network between picture and rows, with the index. ``scatters``: the index is where each row goes, from ``inverse``."""

    def __init__(self, inner: Network, part: Cut) -> None:
        """Raises ValueError where no kernel takes such rows, and what cuda.core does where there is none."""
        super().__init__(inner)
        h, w, c = part.rows
        self._sends, self.scatters = part.sends, part.sends and part.normalized
        rows = inner.output if part.sends else inner.inputs[0]
        self._rows = rows
        layout = tile_layout(c, h, w) if part.planes else tile_layout(1, h, w * c)
        self._kernel = SchemeKernel(self.device, layout, rows.dtype)
        self.inputs = part.inputs
        self.output = part.output
        self.once = inner.once | {"index", (self.output if part.sends else self.inputs[0]).name}

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        axis_sizes(self.inputs, shapes)
        batch, layout = shapes[1][0], self._kernel.layout
        return (batch, layout.n_symbols, 2) if self._sends else self.inner.output_shape([self._shape(batch), *shapes[2:]])

    def _shape(self, batch: int) -> Shape:
        _, *sizes = self._rows.axes
        return (batch, *map(int, sizes))

    def bind(self, shapes: Sequence[Shape], inputs: "Sequence[Buffer]", output: "Buffer") -> Callable[[], None]:
        batch, kernel, (data, index, *told) = shapes[1][0], self._kernel, inputs
        rows = self.buffer(self._rows, self._shape(batch))
        if not self._sends:
            run = self.inner.bind([self._shape(batch), *shapes[2:]], [rows, *told], output)

            def receive() -> None:
                kernel.receive(self.stream, data, index, rows, batch)
                run()

            return receive
        run = self.inner.bind([shapes[0], *shapes[2:]], [data, *told], rows)
        work = kernel.workspace(self.device, batch, self.stream)

        def send() -> None:
            run()
            if self.scatters:
                kernel.transmit(self.stream, rows, index, output, work, batch)
            else:  # rows keep their power, so what gathers at the receiver does it here too
                kernel.receive(self.stream, rows, index, output, batch)

        return send
