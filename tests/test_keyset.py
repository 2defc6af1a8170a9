"""Keysets: what is read, what is refused, how they live, and what a process that is killed leaves of them. Real processes."""

import base64
import hashlib
import json
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from semseal.runtime.errors import KeyFileError
from semseal.runtime.trust import keyset as module
from semseal.runtime.trust.keyset import (
    MAX_USABLE,
    change_keyset,
    direction_key,
    new_key,
    new_keyset,
    parse,
    peer,
    public,
    read_keyset,
    revoke,
    rotate,
    text,
    write_keyset,
    write_peer,
)
from semseal.runtime.trust.linkkeys import LinkKeys

PROGRAM = "from semseal.runtime.cli import main; main()"
VECTORS = json.loads((Path(__file__).parent / "vectors" / "keyset-v1.json").read_text())
SOME = Path("some.key")
OLD = "semseal-key-v1\n" + base64.b64encode(bytes(range(32))).decode() + "\n"


def semseal(*args, **options):
    command = [sys.executable, "-c", PROGRAM, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, **options)


@pytest.fixture
def file(tmp_path):
    write_keyset(tmp_path / "a.key", new_keyset("a-to-b", "mix"))
    return tmp_path / "a.key"


# what is in a keyset


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["what"])
def test_vectors(vector):
    data = vector["text"].encode()
    if vector["outcome"] != "read":
        with pytest.raises(KeyFileError, match=re.escape(vector["outcome"])):
            parse(data, SOME)
        return
    keyset = parse(data, SOME)
    assert text(keyset) == data
    assert [key.id for key in keyset.keys] == list(vector["keys"])
    for key in keyset.usable:
        for direction, derived in vector["keys"][key.id].items():
            assert direction_key(key.secret, direction).hex() == derived


def test_a_new_keyset_is_read_as_it_was_written(file):
    keyset = read_keyset(file)
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert (keyset.direction, keyset.require, len(keyset.usable)) == ("a-to-b", "mix", 1)
    assert parse(text(keyset), file) == keyset
    assert read_keyset(file) != new_keyset("a-to-b", "mix")
    assert os.listdir(file.parent) == ["a.key"]


def test_no_secret_is_shown(file):
    keyset = read_keyset(file)
    secret = keyset.keys[0].secret
    shown = [repr(keyset), repr(LinkKeys(file, True).sending()), json.dumps(public(keyset))]
    for form in (secret, secret.hex(), base64.b64encode(secret).decode(), repr(secret)):
        assert all(str(form) not in text for text in shown)


WHOLE = text(rotate(new_keyset("b-to-a", "mix"), new_key(not_after=2**32), 7))
CHANGES = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 8 * len(WHOLE) - 1), st.just(b"")),
    st.tuples(st.just("cut"), st.integers(0, len(WHOLE) - 1), st.just(b"")),
    st.tuples(st.just("put"), st.integers(0, len(WHOLE)), st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("over"), st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=40)),
)


def mutated(kind, place, new):
    if kind == "flip":
        data = bytearray(WHOLE)
        data[place // 8] ^= 1 << place % 8
        return bytes(data)
    if kind == "cut":
        return WHOLE[:place]
    return WHOLE[:place] + new + WHOLE[place + (0 if kind == "put" else len(new)) :]


@settings(max_examples=300, deadline=None)
@given(CHANGES)
def test_no_mutated_keyset_is_read(change):
    data = mutated(*change)
    if data != WHOLE:
        with pytest.raises(KeyFileError):
            parse(data, SOME)


def with_checksum(**changed):
    """A keyset whose checksum is right, with other members."""
    members = {**json.loads(WHOLE), **changed}
    del members["checksum"]
    written = (json.dumps(members, indent=1) + "\n").encode()
    checksum = hashlib.sha256(written).hexdigest()
    return (json.dumps({**members, "checksum": checksum}, indent=1) + "\n").encode()


FIRST, SECOND = json.loads(WHOLE)["keys"]
SAME = base64.b64encode(b"\7" * 32).decode()
WRONG = {
    "format": {"format": "semseal-keyset-v2"},
    "purpose": {"purpose": "signing"},
    "direction": {"direction": "c-to-d"},
    "direction is a list": {"direction": ["a-to-b"]},
    "require": {"require": "permute"},
    "no keys": {"keys": []},
    "keys are none": {"keys": None},
    "one key twice": {"keys": [FIRST, FIRST]},
    "two primary keys": {"keys": [FIRST, {**SECOND, "state": "primary"}]},
    "a state": {"keys": [{**FIRST, "state": "retired"}]},
    "another id": {"keys": [{**FIRST, "id": SECOND["id"]}]},
    "another secret": {"keys": [{**FIRST, "secret": SECOND["secret"]}]},
    "a secret that is not canonical": {"keys": [{**FIRST, "secret": FIRST["secret"][:-2] + "B="}]},
    "a short secret": {"keys": [{**FIRST, "secret": "AAAA"}]},
    "no secret": {"keys": [{**FIRST, "secret": None}]},
    "revoked with its secret": {"keys": [{**FIRST, "state": "revoked"}]},
    "a date": {"keys": [{**FIRST, "not_after": "2027-02-29T00:00:00Z"}]},
    "a date in another form": {"keys": [{**FIRST, "not_after": "2027-2-3T00:00:00Z"}]},
    "a date that is a number": {"keys": [{**FIRST, "not_after": 2000000000}]},
    "more members": {"more": 1},
    "more members of a key": {"keys": [{**FIRST, "more": 1}]},
    "a link": {"link": "0" * 15},
}


@pytest.mark.parametrize("changed", WRONG.values(), ids=WRONG)
def test_what_no_keyset_says_is_refused_with_a_right_checksum_too(changed):
    assert parse(with_checksum(), SOME)
    with pytest.raises(KeyFileError, match="is not a keyset, or is damaged"):
        parse(with_checksum(**changed), SOME)


def test_a_key_of_equal_bytes_is_refused():
    same = {**FIRST, "id": module._id(b"\7" * 32), "secret": SAME}
    with pytest.raises(KeyFileError, match="bytes are all the same"):
        parse(with_checksum(keys=[same]), SOME)


@pytest.mark.parametrize("data", [b"[" * 60000, b"{}", b"null", b'{"keys": 1e999}', b'"', b"\xff{", b"{" * 9, OLD.encode()])
def test_other_files_are_refused(data):
    with pytest.raises(KeyFileError):
        parse(data, SOME)


# where it lies


def test_places_that_are_refused(file, tmp_path):
    other = tmp_path / "other"
    os.mkfifo(other, 0o600)
    with pytest.raises(KeyFileError, match="not a regular file"):
        read_keyset(other)
    other.unlink()
    other.symlink_to(file)
    with pytest.raises(KeyFileError, match="is a link"):
        read_keyset(other)
    other.unlink()
    os.link(file, other)
    with pytest.raises(KeyFileError, match="has 2 names"):
        read_keyset(file)
    other.unlink()
    for mode in (0o640, 0o604, 0o660):
        file.chmod(mode)
        with pytest.raises(KeyFileError, match="can be read by other users\nhint: chmod 600"):
            read_keyset(file)
    file.chmod(0o600)
    for mode, fix in ((0o777, "chmod go-w"), (0o1777, "keep it in a folder of your own: mkdir -m 700 "), (0o702, "chmod go-w")):
        tmp_path.chmod(mode)
        for use in (read_keyset, lambda path: write_keyset(path.with_name("new"), new_keyset("one-way", None))):
            with pytest.raises(KeyFileError, match=rf"folder that other users can write.*\nhint: {fix}"):
                use(file)
    tmp_path.chmod(0o700)
    file.write_bytes(text(read_keyset(file)) + b" " * 2**16)
    with pytest.raises(KeyFileError, match="larger than"):
        read_keyset(file)
    with pytest.raises(KeyFileError, match="keygen"):
        read_keyset(tmp_path / "none")
    with pytest.raises(KeyFileError, match=r"its folder does not exist\nhint: mkdir -p .*none"):
        write_keyset(tmp_path / "none" / "a.key", new_keyset("one-way", None))


def test_a_file_or_folder_of_another_user_is_refused(file):
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(file, 12345, 12345)
    with pytest.raises(KeyFileError, match="belongs to another user\nhint: chown 0 "):
        read_keyset(file)
    os.chown(file, 0, 0)
    os.chown(file.parent, 12345, 12345)
    with pytest.raises(KeyFileError, match="folder of another user"):
        read_keyset(file)


# how it lives


def test_rotation_and_its_end(file):
    first = read_keyset(file).primary
    second = new_key()
    keyset = change_keyset(file, lambda old: rotate(old, second, 2))
    assert keyset == read_keyset(file)
    assert keyset.primary == second
    assert [key.id for key in keyset.usable] == [second.id, first.id]
    old = keyset.usable[1]
    assert abs(old.not_after - time.time() - 2 * 86400) < 60
    assert old.is_valid(old.not_after - 1)
    assert not old.is_valid(old.not_after)
    for _ in range(MAX_USABLE - 2):
        keyset = rotate(keyset, new_key(), 2)
    with pytest.raises(KeyFileError, match="keys in use"):
        rotate(keyset, new_key(), 2)
    ended = replace(keyset, keys=tuple(replace(key, not_after=1 if key.state == "accepted" else None) for key in keyset.keys))
    assert len(rotate(ended, new_key(), 2).keys) == 2  # what has ended is dropped


def test_a_revoked_key_has_no_secret_and_stays_listed(file):
    keyset = read_keyset(file)
    secret = base64.b64encode(keyset.primary.secret)
    made = change_keyset(file, lambda old: revoke(old, old.primary.id[:6]))
    assert made.primary is None
    assert made.usable == ()
    assert [key.state for key in read_keyset(file).keys] == ["revoked"]
    assert secret not in file.read_bytes()
    for name in ("", "zz", keyset.primary.id + "0"):
        with pytest.raises(KeyFileError, match="give the id of one"):
            revoke(keyset, name)
    assert LinkKeys(file, sends=False).receiving() == ()
    with pytest.raises(KeyFileError, match="no primary key"):
        LinkKeys(file, sends=True).sending()


def test_a_sender_keeps_to_the_dates_of_its_key(tmp_path):
    now = int(time.time())
    for name, dates, what in (
        ("early", (now + 3600, None), "begins at .* clock says"),
        ("late", (None, now + 3600), "ended at"),
    ):
        keyset = new_keyset("one-way", None, *dates)
        if name == "late":
            keyset = replace(keyset, keys=(replace(keyset.keys[0], not_after=now - 1),))
        write_keyset(tmp_path / name, keyset)
        with pytest.raises(KeyFileError, match=what):
            LinkKeys(tmp_path / name, sends=True).sending()
        assert LinkKeys(tmp_path / name, sends=False).receiving() == ()
    with pytest.raises(KeyFileError, match="could never be used"):
        new_key(not_after=now - 1)


def test_both_ends_meet_in_each_direction(file, tmp_path):
    write_peer(file, tmp_path / "b.key")
    a, b = tmp_path / "a.key", tmp_path / "b.key"
    assert read_keyset(b) == peer(read_keyset(a))
    assert peer(peer(read_keyset(a))) == read_keyset(a)
    there, back = LinkKeys(a, True).sending().secret, LinkKeys(b, True).sending().secret
    assert LinkKeys(b, False).receiving()[0].secret == there
    assert LinkKeys(a, False).receiving()[0].secret == back
    assert len({there, back, read_keyset(a).primary.secret}) == 3
    change_keyset(a, lambda old: rotate(old, new_key(), 1))
    write_peer(a, b)  # replaces that of the same link
    assert LinkKeys(b, False).receiving()[0].secret == LinkKeys(a, True).sending().secret
    write_keyset(tmp_path / "c.key", new_keyset("b-to-a", None))
    for other in (tmp_path / "c.key", a):
        with pytest.raises(KeyFileError, match="not the other end's file"):
            write_peer(a, other)


def test_a_change_of_the_file_is_seen_while_it_is_in_use(file):
    keys = LinkKeys(file, sends=True)
    before = keys.sending()
    assert keys.sending() is before
    change_keyset(file, lambda old: rotate(old, new_key(), 1))
    time.sleep(0.15)
    assert keys.sending().id == read_keyset(file).primary.id != before.id
    file.chmod(0o644)
    time.sleep(0.15)
    with pytest.raises(KeyFileError, match="can be read by other users"):
        keys.sending()
    file.unlink()
    time.sleep(0.15)
    with pytest.raises(KeyFileError, match="there is no keyset"):
        keys.sending()


def test_key_files_of_the_old_form_and_bytes_are_taken_as_they_are(tmp_path):
    (tmp_path / "k").write_text("\n " + OLD)
    (tmp_path / "k").chmod(0o600)
    for key in (bytes(range(32)), str(tmp_path / "k"), tmp_path / "k"):
        for sends in (True, False):
            keys = LinkKeys(key, sends)
            assert not keys.in_keyset
            assert keys.receiving()[0].secret == keys.sending().secret == bytes(range(32))
    read, write = os.pipe()
    os.write(write, OLD.encode())
    os.close(write)
    assert LinkKeys(f"/proc/self/fd/{read}", False).receiving()[0].secret == bytes(range(32))  # as <(age -d alice.age)
    os.close(read)


# the commands


def test_the_commands(tmp_path):
    def ok(*args):
        done = semseal(*args, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "mode 0600" in ok("keygen", "a.key", "--two-way", "--not-after", "2037-01-01")
    ok("keys", "peer", "a.key", "b.key")
    first = read_keyset(tmp_path / "a.key").primary
    assert first.id in ok("keys", "rotate", "b.key", "--overlap", "0.5")
    ok("keys", "peer", "b.key", "a.key")
    keyset = read_keyset(tmp_path / "a.key")
    assert (keyset.direction, [key.state for key in keyset.keys]) == ("a-to-b", ["primary", "accepted"])
    ok("keys", "revoke", "a.key", first.id)
    shown = ok("keys", "list", "a.key") + ok("keys", "export-public", "a.key")
    assert f"{first.id}  revoked" in shown
    assert '"state": "primary"' in shown
    for secret in (first.secret, keyset.primary.secret):
        assert base64.b64encode(secret).decode() not in shown
    assert sorted(os.listdir(tmp_path)) == ["a.key", "b.key"]
    again = semseal("keygen", "a.key", cwd=tmp_path)
    assert (again.returncode, again.stderr.splitlines()[0]) == (
        3, "error: a.key exists already, and a key is never overwritten"
    )  # fmt: skip
    assert read_keyset(tmp_path / "a.key").primary == keyset.primary
    (tmp_path / "old.key").write_text(OLD)
    (tmp_path / "old.key").chmod(0o600)
    done = semseal("keys", "rotate", "old.key", cwd=tmp_path)
    assert (done.returncode, "of the old form" in done.stderr) == (3, True)


def test_the_commands_leave_no_core(tmp_path):
    check = (
        "import semseal.runtime.trust.keyset as k, resource, os\n"
        "def new(*args):\n"
        "    with open('/proc/self/status') as f: pass\n"
        "    assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)\n"
        "    import ctypes\n"
        "    assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0\n"
        "    os.kill(os.getpid(), 6)\n"
        "k.new_keyset = new\n"
    )
    command = [sys.executable, "-c", check + PROGRAM, "keygen", "a.key"]
    limited = ["sh", "-c", 'ulimit -c unlimited; exec "$@"', "sh", *command]
    done = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == -6, done.stderr
    assert os.listdir(tmp_path) == []


def test_a_user_without_a_name_makes_and_changes_keysets(tmp_path):
    become = ("setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", "--inh-caps", "+dac_read_search",
              "--ambient-caps", "+dac_read_search")  # fmt: skip
    if shutil.which("setpriv") is None or subprocess.run([*become, "true"], capture_output=True).returncode:
        pytest.skip("only root can become another user")
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    for args in (["keygen", "a.key"], ["keys", "rotate", "a.key"], ["keys", "list", "a.key"]):
        command = [*become, sys.executable, "-c", PROGRAM, *args]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
    assert [(path.name, path.stat().st_uid) for path in folder.iterdir()] == [("a.key", 12345)]


# kills

WORK = """
import itertools, os, sys
from pathlib import Path
from semseal.runtime.trust.keyset import *
folder, pipe, kind = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
children = int(sys.argv[4])
from semseal.runtime.trust.keyset import new_key, rotate, revoke
import random, signal, time
draw = random.Random(int(sys.argv[5]))
for number in range(children):
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell, b"x")
        for i in itertools.count():
            if kind == "keygen":
                path = folder / f"{number}-{i}.key"
                write_keyset(path, new_keyset("one-way", "mix"))
                done = f"{path.name} {read_keyset(path).primary.id}"
            else:
                key = new_key()
                made = change_keyset(folder / "a.key", lambda old: rotate(revoke(old, old.primary.id), key, 1))
                done = f"a.key {key.id}"
            os.write(pipe, (done + "\\n").encode())
            if i == 0:
                os.write(tell, b"x")
    os.read(ready, 1)
    if number == 0:
        os.read(ready, 1)  # one that did something, however slow the machine is
    time.sleep(draw.random() * 0.3)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ready), os.close(tell)
"""


@pytest.mark.parametrize("kind", ["keygen", "rotate"])
def test_a_killed_writer_leaves_the_old_file_or_the_new_one_and_nothing_beside_it(tmp_path, kind):
    if kind == "rotate":
        write_keyset(tmp_path / "a.key", new_keyset("one-way", "mix"))
    read, write = os.pipe()
    kills = int(os.environ.get("SEMSEAL_KILLS", "20"))
    with open(read) as told:
        seed = str(random.randrange(2**32))
        process = subprocess.Popen([sys.executable, "-c", WORK, tmp_path, str(write), kind, str(kills), seed], pass_fds=[write])
        os.close(write)
        lines = told.read().splitlines()
        assert process.wait(timeout=100) == 0
    time.sleep(0.1)  # what the last one left behind to finish its work
    assert lines
    last = dict(line.split() for line in lines)
    for name in os.listdir(tmp_path):
        assert re.fullmatch(r"(\d+-\d+|a)\.key", name)
        keyset = read_keyset(tmp_path / name)  # whole
        if kind == "keygen":
            assert last.get(name, keyset.primary.id) == keyset.primary.id
    assert set(last) <= set(os.listdir(tmp_path))  # nothing that was done is lost
    if kind == "rotate":
        assert last["a.key"] in [key.id for key in read_keyset(tmp_path / "a.key").keys]


def test_changes_at_once_are_all_made(tmp_path):
    write_keyset(tmp_path / "a.key", new_keyset("one-way", "mix"))
    change = (
        "import sys; from pathlib import Path; from semseal.runtime.trust.keyset import *\n"
        "from semseal.runtime.trust.keyset import new_key, revoke, rotate\n"
        "for _ in range(5): change_keyset(Path(sys.argv[1]), lambda old: rotate(revoke(old, old.primary.id), new_key(), 1))"
    )
    many = [subprocess.Popen([sys.executable, "-c", change, tmp_path / "a.key"]) for _ in range(3)]
    assert [process.wait(timeout=100) for process in many] == [0, 0, 0]
    assert len(read_keyset(tmp_path / "a.key").keys) == 16
    assert os.listdir(tmp_path) == ["a.key"]


def test_what_a_power_failure_left_is_removed_by_the_next_writer(file):
    (file.parent / ".a.key.new").write_bytes(b"half")
    change_keyset(file, lambda old: rotate(old, new_key(), 1))
    assert os.listdir(file.parent) == ["a.key"]


def test_dates_of_any_year_can_be_read_again(file):
    for year in (1, 999, 1969, 9999):
        named = file.with_name(f"{year}.key")
        begins = int((datetime(year, 1, 1, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
        write_keyset(named, new_keyset("one-way", None, not_before=begins))
        assert read_keyset(named).keys[0].not_before == begins
