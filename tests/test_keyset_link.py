"""A link with keysets: directions, dates and revocation in use, counters and replay windows across kills. Real processes."""

import base64
import os
import random
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from semseal.runtime.bundle import FP32, open_bundle, write_bundle
from semseal.runtime.defense.header import Header, HeaderSealer, new_sender, next_session
from semseal.runtime.errors import BundleError, HeaderError, KeyFileError
from semseal.runtime.link import Frame, Receiver, Transmitter
from semseal.runtime.signing import owner_key, public_text
from semseal.runtime.trust.keyset import (
    change_keyset,
    new_key,
    new_keyset,
    read_keyset,
    revoke,
    rotate,
    write_keyset,
    write_peer,
)
from semseal.runtime.trust.replay import BLOCK, MAX_SENDERS, KeysetWindow

MODEL = "photos-10db"
IMAGES = np.random.default_rng(0).random((3, 3, 180, 180), dtype=np.float32)
KILLS = int(os.environ.get("SEMSEAL_KILLS", "20"))
DAY = 86400


def as_key_file(path, secret=bytes(range(32))):
    path.write_text(f"semseal-key-v1\n{base64.b64encode(secret).decode()}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def ends(tmp_path):
    write_keyset(tmp_path / "a.key", new_keyset("a-to-b", "mix"))
    write_peer(tmp_path / "a.key", tmp_path / "b.key")
    return tmp_path / "a.key", tmp_path / "b.key"


@pytest.fixture
def one_way(tmp_path):
    write_keyset(tmp_path / "k.key", new_keyset("one-way", None))
    return tmp_path / "k.key"


def test_both_directions_and_no_reflection(ends):
    a, b = ends
    there, back = Transmitter(MODEL, a, "mix").send(IMAGES), Transmitter(MODEL, b, "mix").send(IMAGES)
    plain = Receiver(MODEL).receive(Transmitter(MODEL).send(IMAGES))
    for key, frames, reflected in ((b, there, back), (a, back, there)):
        rx = Receiver(MODEL, key)
        for result in rx.receive_each(reflected):
            assert isinstance(result.error, HeaderError)
            assert "does not authenticate" in result.error.message
        assert np.abs(rx.receive(frames) - plain).max() < 2e-3
        with pytest.raises(HeaderError, match="replay refused"):
            rx.receive(frames)


@pytest.mark.parametrize("defense", ["none", "permute", "permute+substitute", "mix"])
def test_one_file_at_both_ends_of_a_one_way_link(one_way, defense):
    tx, rx = Transmitter(MODEL, one_way, defense), Receiver(MODEL, one_way)
    plain = Receiver(MODEL).receive(Transmitter(MODEL).send(IMAGES))
    calls = [tx.send(IMAGES[i : i + 1]) for i in range(3)]
    assert len({frames[0].header[5:21] for frames in calls}) == 3  # every call has a session of its own
    assert len({frames[0].header[5:13] for frames in calls}) == 1  # of one sender
    mixed = [frame for frames in reversed(calls) for frame in reversed(frames)]
    assert np.abs(rx.receive(mixed) - plain).max() < 2e-3  # in the order sent
    for other in (Receiver(MODEL, bytes(range(32))), Receiver(MODEL, read_keyset(one_way).primary.secret)):
        with pytest.raises(HeaderError, match="does not authenticate"):
            other.receive(calls[0])


def test_a_keyset_requires_its_defence_at_both_ends(ends):
    a, b = ends
    for defense in ("none", "permute+substitute"):
        with pytest.raises(KeyFileError, match=r"requires mix, and this transmitter's defense is .*\nhint: .*--require any"):
            Transmitter(MODEL, a, defense)
    tx, rx = Transmitter(MODEL, a, "mix"), Receiver(MODEL, b)
    key = tx._keys.sending()
    weak = HeaderSealer(key.secret, tx.bundle.digest).seal(Header("none", next_session(new_sender()), 0))
    with pytest.raises(HeaderError, match="its defence is none, and this receiver requires mix"):
        rx.receive([Frame(Transmitter(MODEL).send(IMAGES[:1])[0].symbols, weak)])


def test_an_old_key_is_accepted_until_its_date_and_a_revoked_one_never(ends):
    a, b = ends
    tx, rx = Transmitter(MODEL, a, "mix"), Receiver(MODEL, b)
    early = [tx.send(IMAGES[:1]) for _ in range(3)]
    old = read_keyset(b).primary.id
    change_keyset(b, lambda keyset: rotate(keyset, new_key(), 2.5 / DAY))  # at the end that receives first: it takes both
    time.sleep(0.15)
    assert len(rx.receive(early[0])) == len(rx.receive(tx.send(IMAGES[:1]))) == 1
    write_peer(b, a)
    time.sleep(0.15)
    late = tx.send(IMAGES[:1])  # under the new key, without a restart
    assert len(rx.receive(late)) == 1
    assert {key.id for key in rx._keys.receiving()} == {old, read_keyset(a).primary.id}
    time.sleep(max(0, read_keyset(b).usable[1].not_after - time.time()))
    with pytest.raises(HeaderError, match="does not authenticate"):
        rx.receive(early[1])
    after = tx.send(IMAGES[:1])
    change_keyset(b, lambda keyset: revoke(keyset, keyset.primary.id))
    time.sleep(0.15)
    with pytest.raises(HeaderError, match="no key of the keyset may be used now"):
        rx.receive(after)
    change_keyset(a, lambda keyset: revoke(keyset, keyset.primary.id))
    time.sleep(0.15)
    with pytest.raises(KeyFileError, match=r"no primary key to send with\nhint: semseal keys rotate"):
        tx.send(IMAGES[:1])


def test_swapped_symbols_and_another_model_are_refused(one_way):
    first, second = Transmitter(MODEL, one_way, "mix").send(IMAGES[:2])
    for result in Receiver(MODEL, one_way).receive_each(
        [Frame(first.symbols, second.header), Frame(second.symbols, first.header)]
    ):
        assert result.image is None
        assert "headers and symbols do not belong together" in result.error.message
    other = Transmitter("edge", one_way, "mix")
    images = np.zeros((1, 3, other.bundle.height, other.bundle.width), np.float32) + 0.5
    with pytest.raises(HeaderError, match="another model"):
        Receiver(MODEL, one_way).receive(other.send(images))


def test_an_accepted_key_that_got_out_does_no_harm_to_the_senders_of_the_new_one(one_way):
    change_keyset(one_way, lambda keyset: rotate(keyset, new_key(), 1))
    tx, rx = Transmitter(MODEL, one_way, "mix"), Receiver(MODEL, one_way)
    frames = tx.send(IMAGES)
    assert len(rx.receive(frames[:1])) == 1
    _, old = rx._keys.receiving()
    forged = HeaderSealer(old.secret, tx.bundle.digest).seal(Header("none", frames[0].header[5:21], 2**40))
    assert len(rx.receive([Frame(Transmitter(MODEL).send(IMAGES[:1])[0].symbols, forged)])) == 1
    assert len(rx.receive(frames[1:])) == 2


# replay windows


def test_a_replay_is_refused_after_a_restart_and_nothing_else_is(one_way, tmp_path):
    tx, state = Transmitter(MODEL, one_way, "mix"), tmp_path / "k.replay"
    rx = Receiver(MODEL, one_way, state=state)
    with pytest.raises(KeyFileError, match=r"another receiver keeps .*\nhint: give each receiver a file of its own"):
        Receiver(MODEL, one_way, state=state)
    frames = tx.send(IMAGES)
    assert len(rx.receive(frames)) == 3
    del rx  # it writes what it has seen
    rx = Receiver(MODEL, one_way, state=state)
    with pytest.raises(HeaderError, match="replay refused"):
        rx.receive(frames)
    assert len(rx.receive(tx.send(IMAGES[:1]))) == 1
    assert sorted(os.listdir(tmp_path)) == ["k.key", "k.replay"]
    assert os.stat(state).st_mode & 0o777 == 0o600


def test_a_state_that_is_damaged_or_no_place_for_it_is_refused(one_way, tmp_path):
    for damaged in (b"", b"x", b"semseal-replay-v1 2 00\n{}"):
        (tmp_path / "s").write_bytes(damaged)
        (tmp_path / "s").chmod(0o600)
        with pytest.raises(KeyFileError, match="is not a replay window, or is damaged"):
            KeysetWindow(tmp_path / "s")
    (tmp_path / "s").chmod(0o644)
    with pytest.raises(KeyFileError, match="can be read by other users"):
        KeysetWindow(tmp_path / "s")
    for key in (None, bytes(range(32)), as_key_file(tmp_path / "old")):
        with pytest.raises(ValueError, match="state= needs a keyset"):
            Receiver(MODEL, key, state=tmp_path / "t")


def header(sender, counter, key_id="0" * 16):
    return Header("mix", next_session(sender), counter, key_id=key_id)


def born(second, number=0):
    return second.to_bytes(4, "little") + number.to_bytes(4, "little")


@pytest.mark.parametrize("kept", [False, True])
def test_senders_that_are_forgotten_are_refused_for_ever(tmp_path, kept):
    window = KeysetWindow(tmp_path / "s" if kept else None)
    draw = random.Random(0)
    accepted = []
    for i in range(4 * MAX_SENDERS):
        new = header(born(1000 + i // 2 + draw.randrange(-20, 20), i), draw.randrange(1000))
        if window.fresh(new):
            window.accept(new)
            accepted.append(new)
        if kept and i % 150 == 149:
            del window
            window = KeysetWindow(tmp_path / "s")
        assert not any(window.fresh(old) for old in draw.sample(accepted, min(20, len(accepted))))
    assert len(accepted) > 3 * MAX_SENDERS
    assert len(window._seen) == MAX_SENDERS
    assert not any(window.fresh(old) for old in accepted)
    other = header(born(1), 5, key_id="1" * 16)  # of another key
    assert window.fresh(other)


def test_a_write_that_was_cut_off_leaves_the_one_before(tmp_path):
    window, sender = KeysetWindow(tmp_path / "s"), born(7)
    for counter in (0, BLOCK, 2 * BLOCK):
        window.accept(header(sender, counter))
    window._store._process = (-1, -1)  # as if it were killed: nothing is written at its end
    os.close(window._store._handle)
    whole = (tmp_path / "s").read_bytes()
    slots = sorted(range(len(whole)), key=lambda i: whole[i : i + 17] != b"semseal-replay-v1")[:2]
    for slot in slots:
        damaged = bytearray(whole)
        damaged[slot + 100] ^= 1
        (tmp_path / "s").write_bytes(damaged)
        again = KeysetWindow(tmp_path / "s")
        assert again._seen[("0" * 16, sender)][0] in (2 * BLOCK - 1, 3 * BLOCK - 1)
        again._store._process = (-1, -1)
        os.close(again._store._handle)


def test_a_forked_process_does_not_use_its_parents_window(tmp_path):
    window = KeysetWindow(tmp_path / "s")
    window.accept(header(born(7), 0))
    before = (tmp_path / "s").read_bytes()
    child = os.fork()
    if child == 0:
        try:
            window.fresh(header(born(7), 1))
        except KeyFileError:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert (tmp_path / "s").read_bytes() == before
    assert window.fresh(header(born(7), 1))


RECEIVE = """
import os, random, signal, sys, time
from pathlib import Path
from semseal.runtime.defense.header import Header
from semseal.runtime.trust.replay import KeysetWindow
state, pipe, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
draw = random.Random(seed)
sent = 0
for number in range(kills):
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        window, told = KeysetWindow(state), False
        for counter in range(max(0, number * 300 - 2000), 10**9):  # an attacker replays the last 2,000, then new ones come
            found = Header("mix", bytes(16), counter, key_id="0" * 16)
            if window.fresh(found):
                window.accept(found)
                os.write(pipe, b"%d %d\\n" % (number, counter))
                told = told or os.write(tell, b"x")
    os.read(ready, 1)
    time.sleep(draw.random() * 0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ready), os.close(tell)
"""


def report(program, *args):
    """The lines that a program writes to a pipe, whose number follows the first argument."""
    read, write = os.pipe()
    first, *others = map(str, args)
    with open(read) as told:
        command = [sys.executable, "-W", "ignore", "-c", program, first, str(write), *others]
        process = subprocess.Popen(command, pass_fds=[write])
        os.close(write)
        lines = told.read().splitlines()
        assert process.wait(timeout=600) == 0
    return lines


def test_a_receiver_that_is_killed_at_any_moment_takes_no_frame_twice(tmp_path):
    lines = report(RECEIVE, tmp_path / "s", KILLS, random.randrange(2**32))
    taken = [tuple(map(int, line.split())) for line in lines]
    counters = [counter for _, counter in taken]
    assert len(counters) >= KILLS
    assert len(set(counters)) == len(counters)
    # what is lost is what was reserved, and no more
    for (number, counter), (after, first) in pairwise(taken):
        if after == number + 1 and first > counter:
            assert first - counter <= max(BLOCK, 300)
    assert os.listdir(tmp_path) == ["s"]


SEND = """
import os, random, signal, sys, time
import numpy as np
from semseal.runtime.link import Transmitter
key, pipe, kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
draw = random.Random(seed)
image = np.zeros((1, 3, 180, 180), np.float32) + 0.5
parent = Transmitter("photos-10db", key, "mix")
for number in range(kills):
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        # half of them go on with the parent's, half open one; each in turn sends from a child of its own too
        tx = parent if number % 2 else Transmitter("photos-10db", key, "mix")
        tx.send(image)
        if number % 4 > 1 and os.fork() == 0:
            signal.alarm(1)
        told = False
        while True:
            os.write(pipe, b"".join(frame.header[5:29] for frame in tx.send(image)).hex().encode() + b"\\n")
            told = told or os.write(tell, b"x")
    os.read(ready, 1)
    time.sleep(draw.random() * 0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ready), os.close(tell)
"""


def test_senders_that_are_killed_and_forked_at_any_moment_use_no_counter_twice(one_way):
    lines = report(SEND, one_way, KILLS, random.randrange(2**32))
    assert len(lines) >= KILLS
    assert len(set(lines)) == len(lines)
    assert len({line[:32] for line in lines}) == len(lines)  # nor a session, which is new for every call
    assert os.listdir(one_way.parent) == ["k.key"]


def test_a_process_that_is_restored_uses_no_session_again(one_way):
    """As a snapshot of a machine does: the memory of one process, its counters too, goes on twice."""
    tx = Transmitter(MODEL, one_way, "mix")
    tx.send(IMAGES[:1])
    state = {here: (counters._session, counters._sender, counters._first) for here, counters in tx._counters.items()}
    first = tx.send(IMAGES[:1])
    for here, counters in tx._counters.items():
        counters._session, counters._sender, counters._first = state[here]
    second = tx.send(IMAGES[:1])
    assert first[0].header[21:29] == second[0].header[21:29]  # the same counter
    assert first[0].header[5:21] != second[0].header[5:21]
    assert (first[0].symbols != second[0].symbols).any()
    rx = Receiver(MODEL, one_way)
    assert len(rx.receive(first)) == 1
    with pytest.raises(HeaderError, match="replay refused"):
        rx.receive(second)


def test_a_child_in_a_new_namespace_of_process_ids_uses_no_counter_of_its_parent(one_way):
    program = """
import ctypes, os, sys
import numpy as np
from semseal.runtime.link import Transmitter
pipe = int(sys.argv[2])
tx = Transmitter("photos-10db", sys.argv[1], "mix")
image = np.zeros((1, 3, 180, 180), np.float32) + 0.5
def tell():
    os.write(pipe, tx.send(image)[0].header[5:29].hex().encode() + b"\\n")
tell()
if ctypes.CDLL(None).unshare(0x20000000):
    os.write(pipe, b"no namespace\\n")
    os._exit(0)
for _ in range(2):
    child = os.fork()
    if child == 0:
        tell(), tell()
        os._exit(0)
    os.waitpid(child, 0)
    if _ == 0:
        break
tell()
"""
    lines = report(program, one_way)
    if "no namespace" in lines:
        pytest.skip("no namespace of process ids can be made here")
    assert len(set(lines)) == len(lines) == 4


def test_the_readme_of_a_link(tmp_path, monkeypatch):
    """A keyset is what ``semseal keygen`` makes: one file at both ends, as a relative path."""
    monkeypatch.chdir(tmp_path)
    write_keyset(Path("alice.key"), new_keyset("one-way", "mix"))
    tx, rx = Transmitter(MODEL, "alice.key", "mix"), Receiver(MODEL, "alice.key", require="mix")
    monkeypatch.chdir("/")
    time.sleep(0.15)
    assert len(rx.receive(tx.send(IMAGES))) == 3


# older bundles


def test_an_older_bundle_of_the_same_owner_and_kind_is_refused(one_way, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    owner, packaged = owner_key(), open_bundle(MODEL)
    files = {name: packaged.read(name) for name in FP32}

    def made(name, created, **model):
        about = {**packaged.manifest, "precisions": ["fp32"], "created": created}
        about["model"] = {**about["model"], **model}
        return write_bundle(tmp_path / name, files, about, owner).path

    old, new, other = made("old", 1000), made("new", 2000), made("other", 500, more=1)
    undated = write_bundle(tmp_path / "undated", files, {**packaged.manifest, "precisions": ["fp32"]}, owner)
    assert abs(undated.created - time.time()) < 600
    for end in (Transmitter, Receiver):
        end(old, one_way)
        end(new, one_way)
        end(new, one_way)
        for path in (old, shutil.copytree(old, tmp_path / end.__name__)):
            with pytest.raises(
                BundleError, match=r"older than one of its owner, of 1970-01-01T00:33:20Z.*\nhint: .*allow_older"
            ):
                end(path, one_way)
        end(old, one_way, allow_older=True)
        end(old, bytes(range(32)))  # a key that is in no keyset asks for nothing
        end(other, one_way)  # of another kind
        (tmp_path / "config/semseal/newest.json").write_text("{}")
    (tmp_path / "config/semseal/newest.json").write_text("[]")
    with pytest.raises(BundleError, match=r"cannot be told: .*newest.json is damaged"):
        Receiver(new, one_way)
    Receiver(MODEL, one_way)  # packaged
    public = public_text(owner)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/sys")
    with pytest.raises(BundleError, match=r"cannot be remembered: .*\nhint: set XDG_CONFIG_HOME"):
        Receiver(new, one_way, owner=public)
