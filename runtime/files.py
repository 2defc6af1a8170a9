"""Files that are either whole or not there."""

import os
import secrets
import tempfile
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` through a temporary file in the same folder; a reader sees the old file or the new."""
    partial = path.parent / f".{path.name}.{secrets.token_hex(4)}"
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

    Raises FileExistsError where the name is taken, and FileNotFoundError without its folder; nothing is changed then.
    """
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
