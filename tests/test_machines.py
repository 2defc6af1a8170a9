"""Machines as they are: no home, a user without a name, no terminal, a C locale, full disks, forks. Real processes throughout.

What needs no torch, onnx or fixture of the project is here, so that an edge install can run it on another Python.
"""

import copy
import os
import pickle
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "cases"
PROGRAM = "from semseal.runtime.cli import main; main()"
ENGINES = [
    "onnxruntime-cpu",
    pytest.param("openvino", marks=pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")),
]
# a user without an entry in /etc/passwd, who may read everything (so that the Python of root's runs) and write what others may
NOBODY = ("setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups",
          "--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")  # fmt: skip


def run(*command, home=None, nobody=False, **options):
    """A process in an environment of its own; ``home`` None: HOME is not set."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    given = {} if home is None else {"HOME": str(home)}
    environment = {**kept, **given, **options.pop("env", {})}
    before = NOBODY if nobody else ()
    return subprocess.run(
        [*before, sys.executable, *map(str, command)], env=environment, capture_output=True, timeout=100, **options
    )


def semseal(*args, **options):
    return run("-c", PROGRAM, *args, **options)


@pytest.fixture
def nobody(tmp_path):
    """Where that user may write."""
    if shutil.which("setpriv") is None or subprocess.run([*NOBODY, "true"], capture_output=True).returncode:
        pytest.skip("only root can become another user")
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    return folder


# home

HOMES = {"none": None, "the root": "/", "empty": "", "relative": "home", "not there": "/nowhere/home", "not writable": "/sys"}
SIGNING = """
import os
from pathlib import Path
from semseal.runtime import signing
from semseal.runtime.errors import SigningError
try:
    signing.owner_key()
except SigningError as error:
    assert error.message.startswith("no owner's key to sign with: "), error
    assert "--sign KEY" in error.hint and "XDG_CONFIG_HOME" in error.hint, error
else:
    raise AssertionError("a key was made")
try:
    signing.pinned_owner()
except SigningError as error:
    assert "export SEMSEAL_OWNER=" in error.hint, error
# what the hints name helps
os.environ["XDG_CONFIG_HOME"] = str(Path("config").absolute())
public = signing.public_text(signing.owner_key())
assert signing.pinned_owner() == public
del os.environ["XDG_CONFIG_HOME"]
assert signing.public_text(signing.owner_key(Path("config/semseal/owner.key"))) == public
os.environ["SEMSEAL_OWNER"] = public + "\\n"
assert signing.pinned_owner() == public
"""


@pytest.mark.parametrize("home", HOMES.values(), ids=HOMES)
def test_without_a_home_one_error_names_what_helps(nobody, home):
    done = run("-c", SIGNING, home=home, nobody=True, cwd=nobody)
    assert done.returncode == 0, done.stderr.decode()
    assert {path.name for path in nobody.iterdir()} == {"config"}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("home", [None, "/"])
def test_a_user_without_a_name_sends_and_receives_and_leaves_nothing(nobody, engine, home):
    link = "import sys; from semseal.runtime.roundtrip import measure; assert measure(*sys.argv[1:]) > 24"
    done = run("-c", link, "photos-10db", engine, "fp32", "mix", home=home, nobody=True, cwd=nobody)
    assert done.returncode == 0, done.stderr.decode()
    assert list(nobody.iterdir()) == []


def test_tilde_is_the_home_folder(tmp_path):
    assert semseal("keygen", "~/a.key", home=tmp_path, cwd=tmp_path).returncode == 0
    assert [file.name for file in tmp_path.iterdir()] == ["a.key"]
    read = "from semseal.runtime.trust.linkkeys import LinkKeys; assert LinkKeys('~/a.key', sends=True).sending().id"
    done = run("-c", read, home=tmp_path)
    assert done.returncode == 0, done.stderr.decode()


# names, terminals, locales

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LOCALES = {"utf-8": {"LC_ALL": "C.UTF-8"}, "C": {"LC_ALL": "C"}, "POSIX": {"LANG": "POSIX"}, "ascii": ASCII,
           "latin-1": {"PYTHONIOENCODING": "latin-1"}}  # fmt: skip
NAMES = {
    b"k[prod].key": "k[prod].key",
    b"[bold]k.key": "[bold]k.key",
    b"[#12].key": "[#12].key",
    b"k :smile: .key": "k :smile: .key",
    b"caf\xe9.key": r"caf\xe9.key",
    b"a\nb\x1b[31m.key": r"a\nb\x1b[31m.key",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("locale", ["utf-8", "ascii"])
def test_names_are_printed_as_they_are_and_what_no_terminal_should_get_is_escaped(tmp_path, name, locale):
    done = semseal("keygen", os.fsdecode(name), cwd=tmp_path, home=tmp_path, env=LOCALES[locale])
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == f"{NAMES[name]}: new key, mode 0600; whoever has this file can read the link\n"
    assert os.listdir(os.fsencode(tmp_path)) == [name]
    done = semseal("keygen", os.fsdecode(name), cwd=tmp_path, home=tmp_path, env=LOCALES[locale])
    assert done.returncode == 3
    assert done.stderr.decode().startswith(f"error: {NAMES[name]} exists already")


@pytest.mark.parametrize("locale", LOCALES)
def test_tables_are_printed_in_any_locale_with_names_as_they_are(tmp_path, locale):
    folder = tmp_path / "b [nl] \u00fc"
    shutil.copytree(Path(find_spec("semseal.runtime").submodule_search_locations[0]) / "models" / "photos-10db", folder)
    show = (
        "import sys; from dataclasses import replace; from pathlib import Path; from semseal.runtime import bundle, cli\n"
        "made = replace(bundle.open_bundle('photos-10db'), path=Path(sys.argv[1]))\n"
        "cli.cli = lambda **options: cli._print_parity(made)\n"
        "cli.main()"
    )
    done = run("-c", show, "b [nl] \u00fc", home=tmp_path, cwd=tmp_path, env=LOCALES[locale])
    assert done.returncode == 0, done.stderr.decode()
    assert b"b [nl] " in done.stdout
    assert b"bandwidth ratio" in done.stdout


# disks

LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40)); "


def test_what_does_not_fit_leaves_nothing_and_names_the_file(tmp_path):
    done = run("-c", LIMITED + PROGRAM, "keygen", "a.key", cwd=tmp_path, home=tmp_path)
    assert done.returncode == 3
    assert done.stderr.decode().splitlines()[0] == "error: File too large: a.key"
    assert list(tmp_path.iterdir()) == []


def test_a_full_standard_output_is_an_error_and_no_traceback(tmp_path):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, "keygen", "a.key"], stdout=full, stderr=subprocess.PIPE, cwd=tmp_path
        )
    assert done.returncode == 3
    assert b"error: No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


FILES = """
import errno, os, resource, sys
from pathlib import Path
from semseal.runtime.files import append, check_room, check_writable
Path("log").write_bytes(b"one\\n")
check_room(Path("."), [1000, 1000]), check_writable(Path("new/deeper/bundle"))
resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
for work in (lambda: append(Path("log"), b"x" * 100), lambda: check_room(Path("."), [10, 51])):
    try:
        work()
    except OSError as error:
        assert error.errno == errno.EFBIG and error.filename in ("log", "."), error
    else:
        raise AssertionError("it fits")
append(Path("log"), b"two\\n")
assert Path("log").read_bytes() == b"one\\ntwo\\n"
assert os.listdir(".") == ["log"]
try:
    check_writable(Path("log/bundle"))
except NotADirectoryError as error:
    assert error.filename == "log/bundle"
else:
    raise AssertionError("a file holds nothing")
"""


def test_a_line_is_added_whole_or_not_at_all_and_room_is_found_out_before(tmp_path):
    done = run("-c", FILES, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("place", ["/", "/sys/kernel/"])
def test_a_bundle_that_cannot_be_written_is_refused_before_the_work(nobody, place):
    check = "import sys; from pathlib import Path; from semseal.runtime.bundle import check_free; check_free(Path(sys.argv[1]))"
    done = run("-c", check, f"{place}bundle", home="/", nobody=True, cwd=nobody)
    assert done.returncode == 1
    assert re.search(rf"(PermissionError|OSError): \[Errno \d+\] .*: '{place}bundle'\s*$", done.stderr.decode())


# key files

SECRET = b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="  # bytes 0..31
WRITTEN = {
    "as made": b"semseal-key-v1\n%s\n",
    "a blank line": b"semseal-key-v1\n%s\n\n",
    "no line's end": b"semseal-key-v1\n%s",
    "CRLF": b"semseal-key-v1\r\n%s\r\n",
    "blanks": b"  semseal-key-v1 \t\n\n %s  \n \n",
    "a byte order mark": b"\xef\xbb\xbfsemseal-key-v1\r\n%s\r\n",
    "many blanks": b"semseal-key-v1\n%s\n" + b" " * 1000,
}


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN)
def test_white_space_in_a_key_file_does_no_harm(tmp_path, text):
    from semseal.runtime.defense.keys import read_key

    path = tmp_path / "k"
    path.write_bytes(text % SECRET)
    path.chmod(0o400)
    assert read_key(path) == bytes(range(32))


@pytest.mark.parametrize(
    "text", [b"", b"semseal-key-v1\n", b"semseal-key-v1\n%s\nmore\n", b"semseal-key-v1\n\xff%s\n", b"%s\n" * 99]
)
def test_a_damaged_key_file_is_not_replaced_by_a_new_key_without_a_word_of_the_other_end(tmp_path, text):
    from semseal.runtime.defense.keys import read_key
    from semseal.runtime.errors import KeyFileError

    path = tmp_path / "k"
    path.write_bytes(text.replace(b"%s", SECRET))
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="hint: copy the key file again from the other end"):
        read_key(path)


@pytest.mark.parametrize("mode", [0o444, 0o440, 0o604])
def test_a_mounted_secret_that_others_can_read_comes_with_the_mount_that_helps(tmp_path, mode):
    from semseal.runtime.defense.keys import read_key
    from semseal.runtime.errors import KeyFileError, SigningError
    from semseal.runtime.signing import read_private

    path = tmp_path / "k"
    path.write_bytes(b"semseal-key-v1\n%s\n" % SECRET)
    path.chmod(mode)
    with pytest.raises(
        KeyFileError, match=r"can be read by other users\nhint: chmod 600 .*mode: 0400.*defaultMode: 0400.*key="
    ):
        read_key(path)
    with pytest.raises(SigningError, match=r"can be read by other users\nhint: chmod 600 .*mode: 0400.*defaultMode: 0400"):
        read_private(path)


# forks

FORKED = """
import os, signal, sys, time
import numpy as np
from semseal.runtime.link import Receiver, Transmitter
engine, threads, how = sys.argv[1], int(sys.argv[2]) or None, sys.argv[3]
images = np.full((1, 3, 180, 180), 0.5, np.float32)
tx = Transmitter("photos-10db", bytes(32), "mix", engine, threads=threads)
rx = Receiver("photos-10db", bytes(32), engine, threads=threads)
rx.receive(tx.send(images))
if how == "freed before":
    del tx, rx
child = os.fork()
if child == 0:
    signal.alarm(30)  # ends a child that hangs
    if how == "used":
        assert rx.receive(tx.send(images)).shape == images.shape
    if how != "freed before":
        del tx, rx
    if how == "forked again" and (child := os.fork()):
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    sys.exit(5)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
"""


@pytest.mark.parametrize("how", ["unused", "used", "freed before", "forked again"])
@pytest.mark.parametrize("threads", [0, 4])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_child_forked_after_an_engine_was_opened_ends(engine, threads, how):
    done = run("-W", "ignore::DeprecationWarning", "-c", FORKED, engine, threads, how)
    assert done.returncode == 0, done.stderr.decode()


def test_a_pool_of_forked_workers_ends(tmp_path):
    pool = """
import multiprocessing as mp, numpy as np
from semseal.runtime.link import Transmitter
tx = Transmitter("photos-10db", bytes(32), "mix", threads=2)
images = np.full((1, 3, 180, 180), 0.5, np.float32)
def work(_):
    return tx.send(images)[0].header[5:29]
if __name__ == "__main__":
    tx.send(images)
    with mp.get_context("fork").Pool(2) as pool:
        assert len(set(pool.map(work, range(6)))) == 6  # no session and counter twice
"""
    (tmp_path / "pool.py").write_text(pool)
    done = run("-W", "ignore::DeprecationWarning", tmp_path / "pool.py")
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("kind", ["Transmitter", "Receiver"])
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickle.dumps])
def test_neither_end_is_copied(kind, again):
    from semseal.runtime import link

    end = getattr(link, kind)("photos-10db", bytes(32))
    with pytest.raises(TypeError, match=rf"a {kind} cannot be copied or pickled: .* open another {kind}"):
        again(end)


# telemetry


@pytest.mark.parametrize("engine", ENGINES)
def test_a_fresh_home_stays_empty(tmp_path, engine):
    link = "import sys, time; from semseal.runtime.roundtrip import measure; measure('photos-10db', sys.argv[1]); time.sleep(1)"
    done = run("-c", link, engine, home=tmp_path, env=dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9"))
    assert done.returncode == 0, done.stderr.decode()
    assert list(tmp_path.rglob("*")) == []
