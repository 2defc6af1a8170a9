"""Proof that a packed graph does what the user's file does, on photographs, in ONNX Runtime on the CPU.

    user's file     one picture at a time ─────────┐
                                                   ├─ differ by no more than TOLERANCE, or the pair is refused
    packed graph    one picture, BATCH at once ────┘

What one picture at a time gives does not depend on a batch, so the files themselves are the reference, also for parity.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime import InferenceSession, RunOptions, SessionOptions
from semseal.export.pack.layout import MIN_POWER, Array, RowLayout, symbol_power
from semseal.export.pack.read import KEEP_BATCH, first_line
from semseal.export.rewrite import OPSET
from semseal.runtime.errors import GraphError

BATCH = 3  # pictures in one run of a packed graph
TOLERANCE = 1e-3  # largest difference between graph and file, as a fraction of the spread between pictures
DYNAMIC = "export it with a dynamic batch, whose images do not influence each other"
STANDARD = f"export the model in float32 with standard operators of opset {OPSET}"


@dataclass(frozen=True)
class Guarded:
    """At which sides 0 stands for what the user's network gives that is not finite."""

    transmitter: bool  # for pictures of one brightness, such as black ones
    receiver: bool  # for features of zeros, which a black picture may have


@dataclass(frozen=True)
class Reference:
    """The user's files, one picture at a time, with layout and power in NumPy: images to unit-power symbols and back."""

    transmitter: InferenceSession
    receiver: InferenceSession
    layout: RowLayout
    gain: float
    guarded: Guarded

    def encode(self, images: Array) -> Array:
        """Images to symbols [batch, N, 2]."""
        rows = self.layout.to_rows(one_by_one("transmitter", self.transmitter, images, self.guarded.transmitter))
        scaled = rows / np.sqrt(symbol_power(rows).clip(MIN_POWER))
        return scaled.astype(np.float32).reshape(len(rows), -1, 2)

    def decode(self, symbols: Array) -> Array:
        """Symbols [batch, N, 2] to images in 0..1."""
        scaled = symbols.reshape(len(symbols), self.layout.h, -1) * np.float32(self.gain)
        return one_by_one("receiver", self.receiver, self.layout.from_rows(scaled), self.guarded.receiver).clip(0, 1)


def open_session(
    side: str, data: bytes, options: SessionOptions | None = None, disabled: Sequence[str] = ()
) -> InferenceSession:
    """The file in ONNX Runtime on the CPU, ``disabled`` naming optimisers. Raises GraphError."""
    options = options or SessionOptions()
    options.log_severity_level = 4  # what fails is raised
    try:
        return InferenceSession(data, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)
    except Exception as error:  # its exceptions share no narrower base
        raise GraphError(f"{side}: ONNX Runtime cannot load it: {first_line(error)}", STANDARD) from None


def one_by_one(side: str, session: InferenceSession, inputs: Array, guarded: bool = False) -> Array:
    """What the user's file gives, one picture at a time: float32 [len(inputs), ...], finite. Raises GraphError.

    ``guarded``: with 0 for what is not finite.
    """
    outputs = [_run(side, session, inputs[i : i + 1]) for i in range(len(inputs))]
    shape, *others = dict.fromkeys(output.shape for output in outputs)
    if others:
        raise GraphError(
            f"{side}: it gives {list(shape)} for one picture and {list(others[0])} for another",
            "export a model whose output has the same size for every picture",
        )
    if len(shape) < 2 or shape[0] != 1:
        raise GraphError(
            f"{side}: it gives {list(shape)} for a single picture, without a batch axis; it must give [1, ...]", KEEP_BATCH
        )
    given = np.concatenate(outputs)
    if guarded:
        return np.nan_to_num(given, copy=False, nan=0, posinf=0, neginf=0)
    if not np.isfinite(given).all():
        raise GraphError(
            f"{side}: it gives values that are not finite for photographs in 0..1",
            "look for divisions by zero, logarithms of zero and overflows in the model",
        )
    return given


def is_finite(side: str, session: InferenceSession, inputs: Array) -> bool:
    """Whether the user's file gives nothing but numbers, one picture at a time."""
    return all(np.isfinite(_run(side, session, inputs[i : i + 1])).all() for i in range(len(inputs)))


def first_proved(
    side: str,
    networks: Iterable[onnx.GraphProto],
    build: Callable[[onnx.GraphProto], bytes],
    example: tuple[Array, Array],
    h: int,
) -> bytes:
    """The file of the first network that turns the inputs of ``example`` into its outputs, made by the user's file one by one.

    Raises GraphError with the reason of the last network where none does.
    """
    failure: GraphError | None = None
    for network in networks:
        try:
            graph = build(network)
            _compare(side, graph, *example, h)
            return graph
        except GraphError as error:
            failure = error
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            failure = GraphError(f"{side}: it does not take more than one picture at once ({first_line(error)})", DYNAMIC)
    assert failure is not None
    raise failure


def _compare(side: str, graph: bytes, inputs: Array, expected: Array, h: int) -> None:
    """Raises GraphError unless the graph gives what is expected, for single inputs and for BATCH at once."""
    session = open_session(side, graph)
    allowed = 1e-6 + TOLERANCE * float(expected.std(axis=0).max())
    for size, what, hint in (
        (1, f"in opset {OPSET} it gives something else", f"export it with opset {OPSET}"),
        (BATCH, f"it gives something else for {BATCH} pictures at once than one by one", DYNAMIC),
    ):
        identity = np.arange(size * h, dtype=np.int32).reshape(size, h)
        for start in range(0, len(inputs), size):
            part = slice(start, start + size)
            try:
                given = _run(side, session, inputs[part], identity)
                difference = float(np.abs(given - expected[part]).max()) if given.shape == expected[part].shape else math.inf
                detail = f"the largest difference is {difference:.2g}"
            except GraphError as error:
                difference, detail = math.inf, error.message.removeprefix(f"{side}: ")
            if not difference <= allowed:
                raise GraphError(f"{side}: {what} ({detail})", hint)


def _run(side: str, session: InferenceSession, *inputs: NDArray[Any]) -> Array:
    names = [value.name for value in session.get_inputs()]
    try:
        output: Array = session.run(None, dict(zip(names, inputs, strict=True)), _quiet())[0]
    except Exception as error:  # its exceptions share no narrower base
        raise GraphError(f"{side}: ONNX Runtime cannot run it: {first_line(error)}", STANDARD) from None
    if not isinstance(output, np.ndarray) or output.dtype != np.float32:
        raise GraphError(f"{side}: it does not give the float32 tensor that it declares", STANDARD)
    return output


def _quiet() -> RunOptions:
    options = RunOptions()
    options.log_severity_level = 4  # what fails is raised
    return options
