import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from semseal.runtime import errors
from semseal.runtime.errors import SemsealError
from semseal.runtime.files import check_file_writable, check_writable, write_atomically, write_once

FAMILY = [kind for kind in vars(errors).values() if isinstance(kind, type)]


@pytest.mark.parametrize("kind", FAMILY)
def test_each_is_of_the_family_and_survives_the_way_from_another_process(kind):
    assert issubclass(kind, SemsealError)
    assert not issubclass(kind, ValueError | RuntimeError | OSError)
    error = pickle.loads(pickle.dumps(kind("no such engine: 'abacus'", "choose another")))
    assert type(error) is kind
    assert (error.message, error.hint) == ("no such engine: 'abacus'", "choose another")
    assert str(error) == "no such engine: 'abacus'\nhint: choose another"
    assert str(kind("nothing helps")) == "nothing helps"


WRITERS = {
    "write_atomically": lambda path: write_atomically(path, b"x" * 100),
    "write_once": lambda path: write_once(path, "x" * 100, 0o600),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize(("folder", "reasons"), [("/sys", {"EACCES", "EROFS", "EPERM"}), ("/nowhere", {"ENOENT"})])
def test_a_refused_write_names_the_file_and_not_a_temporary_one(write, folder, reasons):
    with pytest.raises(OSError) as caught:  # noqa: PT011
        write(Path(folder) / "file")
    assert caught.value.filename == f"{folder}/file"
    assert errno.errorcode[caught.value.errno] in reasons


@pytest.mark.parametrize("name", WRITERS)
def test_what_does_not_fit_names_the_file_and_leaves_nothing(tmp_path, name):
    # a limit that belongs to this process alone: what the kernel refuses then comes without a name, as on a full disk
    if name == "write_atomically":
        (tmp_path / "file").write_text("before")
    script = f"""
import resource
from pathlib import Path
from semseal.runtime.files import write_atomically, write_once
resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
path = Path("file")
try:
    {"write_atomically(path, bytes(100))" if name == "write_atomically" else "write_once(path, 'x' * 100, 0o600)"}
except OSError as error:
    assert (error.errno, error.filename) == (27, "file"), error
else:
    raise AssertionError("written")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [file.read_text() for file in tmp_path.iterdir()] == (["before"] if name == "write_atomically" else [])


def test_a_name_that_is_taken_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError) as caught:
        write_once(tmp_path / "file", "theirs", 0o600)
    assert caught.value.filename == str(tmp_path / "file")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]


def test_nothing_takes_the_place_of_a_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")  # as /dev/stdout is one, perhaps of a regular file
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for name in (tmp_path / "pipe", tmp_path / "link", tmp_path / "stdout"):
        before = os.lstat(name)
        with pytest.raises(FileExistsError) as caught:
            check_file_writable(name)
        assert caught.value.filename == str(name)
        with pytest.raises(FileExistsError):
            write_atomically(name, b"")
        assert os.lstat(name).st_ino == before.st_ino
    check_file_writable(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError):
        check_writable(tmp_path / "nowhere" / "results.json")
