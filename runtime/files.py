"""Files that are either whole or not there."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def named(path: Path) -> Iterator[None]:
    """What the operating system refuses inside is an OSError that names ``path``, not a temporary file or nothing."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` through a temporary file in the same folder; a reader sees the old file or the new.

    Raises OSError with ``path``, where the disk is full too; nothing is changed then.
    """
    partial = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    with named(path):
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less the process's umask
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise


def write_once(path: Path, text: str, mode: int) -> None:
    """Write a new text file whole or not at all, with ``mode`` from its first byte on.

    Raises FileExistsError where the name is taken, FileNotFoundError without its folder, and else OSError, all with ``path``;
    nothing is changed then.
    """
    with named(path):
        handle, partial = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")  # mode 0600
        try:
            with os.fdopen(handle, "w") as file:
                os.fchmod(file.fileno(), mode)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, path)  # unlike a rename, this fails where the name is taken
        finally:
            os.unlink(partial)


def shown(path: Path | str) -> str:
    """A name as it can be printed and written to any file: what is not UTF-8, or no printable character, is escaped."""
    return "".join(char if char.isprintable() else _escaped(char) for char in str(path))


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # how Python carries a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()
