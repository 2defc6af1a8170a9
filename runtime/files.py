"""Files that are either whole or not there, and what is shown of their names."""

import errno
import os
import re
import secrets
import shlex
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def named(path: Path) -> Iterator[None]:
    """What the operating system refuses inside is an OSError that names ``path``, not a temporary file or nothing."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from None


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` through a temporary file in the same folder; a reader sees the old file or the new.

    Raises OSError with ``path``, where the disk is full too; nothing is changed then.
    """
    _check_is_file(path)
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


def append(path: Path, data: bytes) -> None:
    """Add ``data`` to the end of a file, whole or not at all. Raises OSError with ``path``."""
    with named(path), open(path, "ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(data) != len(data):
                file.write(data)  # what took only a part says here why
                raise OSError(errno.EIO, "written in part")
        except BaseException:
            file.truncate(end)
            raise


def check_writable(path: Path) -> None:
    """Raises OSError with ``path`` unless a file or folder of that name can be made: now, not after minutes of work."""
    parent = path.absolute().parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    with named(path):
        # os.access tells root that everything can be written, also in /sys
        tempfile.TemporaryFile(dir=parent, prefix=".room.").close()


def check_file_writable(path: Path) -> None:
    """Raises OSError with ``path`` unless ``write_atomically`` could write it now, if there is room; its folder is not made."""
    with named(path):
        os.stat(path.absolute().parent)
    check_writable(path)
    _check_is_file(path)


def _check_is_file(path: Path) -> None:
    """Raises OSError with ``path`` where a new file would take the place of a device, or of a link such as /dev/stdout."""
    try:
        kind = os.stat(path).st_mode
        opened = os.path.islink(path) and os.readlink(path).startswith(("/proc/", "/dev/"))
    except OSError:  # nothing there, or a link that leads nowhere
        return
    if opened or not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # the system refuses a folder by itself
        raise OSError(errno.EEXIST, "A device, pipe or socket has this name", str(path))


def check_room(folder: Path, sizes: Sequence[int]) -> None:
    """Raises OSError with ``folder`` unless files of these sizes in bytes fit there together.

    The room is taken from the disk and given back, so that quotas and limits of the process count as well.
    """
    with named(folder), ExitStack() as files:
        for size in sizes:
            file = files.enter_context(tempfile.TemporaryFile(dir=folder, prefix=".room."))
            try:
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):  # a file system that cannot tell
                    raise


def expanded(path: str | Path) -> Path:
    """The path, with ``~`` at its start as the home folder: no shell does that behind ``--out=`` or in a Python string."""
    return Path(os.path.expanduser(path))  # unlike pathlib's it leaves ``~`` as it is where there is no home


def word(path: str | Path) -> str:
    """A name as one word of a shell's command, in a hint that can be pasted."""
    return shlex.quote(str(path))


def keep_private(path: Path) -> str:
    """The hint for a file with a secret that others can read."""
    return (
        f"chmod 600 {word(path)}; if it is a mounted secret, mount it so: mode: 0400 in the compose file (and its uid), "
        "defaultMode: 0400 in the pod"
    )


def read_secret(path: Path, size: int, unwanted: int = stat.S_IRWXG | stat.S_IRWXO) -> list[str] | None:
    """The lines of a small text file, without white space around them and without empty ones; none for what is not ASCII.

    None where the file's mode has one of the ``unwanted`` bits. Raises OSError.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_mode & unwanted:
            return None
        data = file.read(size + 1).removeprefix(b"\xef\xbb\xbf")  # which editors put in front
    if len(data) > size or not data.isascii():
        return []
    return [stripped for line in data.decode().splitlines() if (stripped := line.strip())]


def shown(path: Path | str) -> str:
    """A name as it can be printed and written to any file: what is not UTF-8, or no printable character, is escaped."""
    return "".join(char if char.isprintable() else _escaped(char) for char in str(path))


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # how Python carries a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


def xml_text(text: str) -> str:
    """Without what XML cannot hold, of names of files."""
    return re.sub(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
