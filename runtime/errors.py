"""Everything that semseal refuses, as one family of exceptions. The program prints them as ``error:`` and ``hint:``.

    SemsealError ─┬─ BundleError     a bundle that must not be used
                  ├─ EngineError     an engine that cannot be had, or cannot run what it is given
                  │   └─ SendError       pictures that cannot be sent; holds the frames of the others
                  ├─ GraphError      an ONNX graph that cannot be taken: unsafe, damaged, or of another kind
                  ├─ HeaderError     a frame that must not be decoded
                  │   └─ ReceiveError    frames that gave no picture; holds the pictures of the others
                  ├─ KeyFileError    a key or key file of the link that cannot be used
                  ├─ TransportError  a connection between two ends of a link that cannot be had
                  ├─ SigningError    an owner's key that cannot be used, or a signature that does not hold
                  ├─ PictureError    a source of pictures that cannot be used
                  ├─ TrainingError   a run that cannot be started, continued or read
                  ├─ CheckError      a check that cannot be done as asked
                  ├─ AuditError      an audit that cannot be run as asked
                  └─ BenchError      a benchmark that cannot be run as asked

A mistake in a Python call, such as an array of another shape, is a ValueError as everywhere else. No message holds a secret.
"""

import typing


class SemsealError(Exception):
    """``message`` says what is wrong and with which value or file, ``hint`` how to fix it (empty where nothing can be done)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)  # both, so that the error survives the way back from another process
        self.message, self.hint = message, hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class BundleError(SemsealError):
    """A bundle that must not be used; the message names the file and the reason."""


class EngineError(SemsealError):
    """An engine that cannot be had, or that cannot run what it is given; nothing else runs in its place."""


class SendError(EngineError):
    """Pictures that came out of the transmitter's engine as no symbols; the others of the call are not lost.

    ``images`` lists their places in the call, ``frames`` has the ``Frame`` of each other, in order, which may be sent.
    """

    def __init__(self, message: str, hint: str = "", images: tuple[int, ...] = (), frames: tuple[typing.Any, ...] = ()) -> None:
        super().__init__(message, hint)
        self.images, self.frames = images, frames


class GraphError(SemsealError):
    """An ONNX graph that cannot be taken: unsafe or damaged bytes, a pair that does not fit, an operator without a gradient."""


class HeaderError(SemsealError):
    """A frame that must not be decoded: its header is not authentic, was seen before, or does not belong to its symbols."""


class ReceiveError(HeaderError):
    """Frames that gave no picture; the others of the call are not lost.

    ``receptions`` has the ``Reception`` of each frame of the call, in its order, as ``Receiver.receive_each`` returns it.
    """

    def __init__(self, message: str, hint: str = "", receptions: tuple[typing.Any, ...] = ()) -> None:
        super().__init__(message, hint)
        self.receptions = receptions


class KeyFileError(SemsealError):
    """A key or key file that cannot be used; the message never holds key bytes."""


class TransportError(SemsealError):
    """A connection between two ends of a link that cannot be had, or an address that cannot be used."""


class SigningError(SemsealError):
    """An owner's key that cannot be used or a signature that does not hold; the message never holds private bytes."""


class PictureError(SemsealError):
    """A source of pictures that cannot be used; the message names it."""


class TrainingError(SemsealError):
    """A run that cannot be started, continued or read; the last checkpoint is still good."""


class CheckError(SemsealError):
    """A check that cannot be done as asked, such as one with results or waivers that cannot be read."""


class AuditError(SemsealError):
    """An audit that cannot be run as asked."""


class BenchError(SemsealError):
    """A benchmark that cannot be run as asked."""
