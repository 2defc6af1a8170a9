"""Files with secrets: who may have made them, and how they are written so that no copy stays behind.

    read      a regular file with mode 0600 or less, of this user, with one name, in a folder that nobody else can write
    create    a file without a name (O_TMPFILE) ── written, fsync ── linkat gives it its name, which fails where that is taken
    replace   the same, but the name is ``.NAME.new``, which is then renamed over NAME

A process that is killed while it writes leaves the old file or the new one, and nothing beside it: a file without a name goes
with its last handle. linkat cannot replace, so for two system calls the new file has a name of its own; both are made by a
child in a process group of its own, which goes on when its parent is killed. Not covered: a power failure between the two, and
file systems without O_TMPFILE (NFS), where the file is written under ``.NAME.new``. The next command that writes removes what
was left.

The folder is locked (flock) from before a file is read until it was replaced, so two commands at once do not lose a change.
Names are looked up in the folder's handle: nobody can exchange the folder in between.
"""

import ctypes
import errno
import fcntl
import grp
import os
import pwd
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from semseal.runtime.errors import KeyFileError
from semseal.runtime.files import keep_private, named, word

_PR_SET_DUMPABLE = 4
_OWN_FOLDER = "~/semseal"  # that is proposed for keys
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)  # what file systems and old kernels answer


def leave_no_core() -> None:
    """From now on this process leaves no core, and no other of this user reads its memory (Linux)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # the limit does not count where cores go to a program


def read_private(path: Path, max_bytes: int) -> bytes:
    """The bytes of a file with a secret.

    Raises KeyFileError for a link, a FIFO, another user's file, one that others can read, with a second name, in a folder that
    others can write, or larger than ``max_bytes``; FileNotFoundError and other OSError with ``path``.
    """
    with _folder(path) as folder:
        return _read(folder, path, max_bytes)


def open_private(path: Path) -> int:
    """A handle to read and write a file in place. Raises as ``read_private``."""
    with _folder(path) as folder:
        return _open(folder, path, os.O_RDWR)


def create_private(path: Path, data: bytes) -> None:
    """Write a new file, mode 0600. Raises KeyFileError where the name is taken or the folder is no place for it; OSError."""
    with _folder(path) as folder, named(path):
        fcntl.flock(folder, fcntl.LOCK_EX)
        _remove_left_over(folder, path)
        try:
            _write(folder, path, data, lambda source: os.link(source, path.name, dst_dir_fd=folder, follow_symlinks=True))
        except FileExistsError:
            raise KeyFileError(f"{path} exists already, and a key is never overwritten", "choose another name") from None
        os.fsync(folder)


def replace_private(path: Path, max_bytes: int, change: Callable[[bytes], bytes]) -> None:
    """Replace a file by what ``change`` makes of its bytes. Raises as ``read_private`` and what ``change`` raises."""
    with _folder(path) as folder, named(path):
        fcntl.flock(folder, fcntl.LOCK_EX)
        data = change(_read(folder, path, max_bytes))
        _remove_left_over(folder, path)
        _write(folder, path, data, lambda source: _in_a_child(lambda: _link_over(folder, path, source)))


@contextmanager
def _folder(path: Path) -> Iterator[int]:
    """The handle of the folder that ``path`` is in. Raises KeyFileError where others can write it."""
    where = path.absolute().parent
    try:
        handle = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise KeyFileError(f"{path}: its folder does not exist", f"mkdir -p -m 700 {word(where)}") from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        found = os.fstat(handle)
        if found.st_uid not in (os.geteuid(), 0):
            raise KeyFileError(
                f"{path} is in a folder of another user, who can exchange it",
                f"keep it in a folder of your own, or take this one: chown {os.geteuid()} {word(where)}",
            )
        if found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and not _is_alone(found.st_gid)):
            is_shared = found.st_mode & stat.S_ISVTX  # as /tmp is, which must stay so
            fix = f"keep it in a folder of your own: mkdir -m 700 {_OWN_FOLDER}" if is_shared else f"chmod go-w {word(where)}"
            raise KeyFileError(f"{path} is in a folder that other users can write, so they can exchange it", fix)
        yield handle
    finally:
        os.close(handle)


def _is_alone(group: int) -> bool:
    """Whether nobody but this user is in a group, as in those that many systems make for each user."""
    try:
        mine, members = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group).gr_mem
    except KeyError:
        return False
    return set(members) | {user.pw_name for user in pwd.getpwall() if user.pw_gid == group} == {mine}


def _read(folder: int, path: Path, max_bytes: int) -> bytes:
    with open(_open(folder, path, os.O_RDONLY), "rb", buffering=0) as file, named(path):
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise KeyFileError(f"{path} is larger than the {max_bytes} bytes that such a file has at most", "check the name")
    return data


def _open(folder: int, path: Path, access: int) -> int:
    try:
        # without O_NONBLOCK, opening a FIFO would wait for somebody to write to it
        handle = os.open(path.name, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise KeyFileError(
                f"{path} is a link, and none is followed to a secret", "name the file itself; in a pod, mount it with subPath"
            ) from None
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        _check(os.fstat(handle), path)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _check(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise KeyFileError(f"{path} is not a regular file", "name a key file; a pipe or a device is none")
    if found.st_uid != os.geteuid():
        raise KeyFileError(f"{path} belongs to another user", f"chown {os.geteuid()} {word(path)}, as whom this runs")
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyFileError(f"{path} can be read by other users", keep_private(path))
    if found.st_nlink != 1:
        raise KeyFileError(
            f"{path} has {found.st_nlink} names (hard links)", "remove the others: find . -samefile " + str(path)
        )


def _remove_left_over(folder: int, path: Path) -> None:
    with suppress(FileNotFoundError):
        os.unlink(f".{path.name}.new", dir_fd=folder)


def _write(folder: int, path: Path, data: bytes, give_name: Callable[[str], None]) -> None:
    """Write a file without a name, and have it named by its place in /proc."""
    try:
        handle = os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
        return _write_named(folder, path, data, give_name)
    with open(handle, "wb", buffering=0) as file:
        _fill(file.fileno(), data)
        give_name(f"/proc/self/fd/{handle}")
    return None


def _write_named(folder: int, path: Path, data: bytes, give_name: Callable[[str], None]) -> None:
    """The same where the file system has no files without a name."""
    name = f".{path.name}.new"
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        with open(handle, "wb", buffering=0) as file:
            _fill(file.fileno(), data)
            give_name(f"/proc/self/fd/{handle}")
    finally:
        _remove_left_over(folder, path)


def _fill(handle: int, data: bytes) -> None:
    os.fchmod(handle, 0o600)
    while data:
        data = data[os.write(handle, data) :]
    os.fsync(handle)


def _link_over(folder: int, path: Path, source: str) -> None:
    name = f".{path.name}.new"
    with suppress(FileExistsError):  # where it was written under that name
        os.link(source, name, dst_dir_fd=folder, follow_symlinks=True)
    os.rename(name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def _in_a_child(work: Callable[[], None]) -> None:
    """Run ``work`` in a child that is not killed with this process. Raises its OSError."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            os.setsid()
            work()
            code = 0
        except OSError as error:
            code = error.errno or errno.EIO
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(code, os.strerror(code)) if 0 < code < 255 else OSError(errno.EIO, "its writer was killed")
