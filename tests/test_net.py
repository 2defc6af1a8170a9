"""semseal send and semseal receive: real processes on real sockets."""

import asyncio
import os
import re
import secrets
import shutil
import signal
import socket
import time

import av
import numpy as np
import pytest
import sigmf
from semseal.runtime import channel
from semseal.runtime.frame import Frame, power
from semseal.runtime.link import Receiver, Transmitter
from semseal.runtime.metrics import psnr
from semseal.runtime.net.wire import Hello, Kind, Outcome
from semseal.runtime.pictures import to_float
from semseal.runtime.trust.keyset import change_keyset, new_key, new_keyset, revoke, rotate, write_keyset, write_peer
from sockets import Bob, Hand, alice, end_all, ended, program, write_pictures

SEED = 3


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    end_all()


@pytest.fixture
def keys(tmp_path):
    """A keyset of a link that takes every defence; both ends have it."""
    write_keyset(tmp_path / "link.key", new_keyset("one-way", None))
    return tmp_path / "link.key"


@pytest.fixture
def mix_keys(tmp_path):
    write_keyset(tmp_path / "mix.key", new_keyset("one-way", "mix"))
    return tmp_path / "mix.key"


def in_one_process(images, keys, defense, snr_db):
    """What Transmitter and Receiver give for the same noise; uint8 [batch, height, width, 3]."""
    tx, rng, received = Transmitter("edge", keys, defense), np.random.default_rng(SEED), []
    for image in images:
        [frame] = tx.send(image[None])
        behind = channel.transmit("awgn", frame.symbols[None], snr_db, rng, unbiased=True)[0]
        received.append(Frame(behind, frame.header))
    return Receiver("edge", keys).receive(received, dtype="uint8")


def mean_psnr(sent, received):
    return float(psnr(to_float(sent), to_float(received)).mean())


def test_pictures_arrive_as_they_do_in_one_process(tmp_path, keys):
    sent = write_pictures(tmp_path / "sent", 4)
    with Bob(tmp_path, keys) as bob:
        noise = ("--snr", "10", "--seed", str(SEED), "--symbols", "float32")
        plain = ended(alice(bob.to, keys, tmp_path / "sent", options=(*noise, "--defense", "none")))
        assert plain[0] == 0, plain
        assert re.match(r"4 pictures in \d+\.\d s; latency", plain[1])
        assert bob.numbers() == [0, 1, 2, 3]
        expected = in_one_process(to_float(sent), keys, "none", 10)
        for found, wanted in zip(bob.pictures(), expected, strict=True):
            np.testing.assert_allclose(found.astype(int), wanted, atol=1)
        shutil.rmtree(bob.out)
        bob.out.mkdir()
        mixed = ended(alice(bob.to, keys, tmp_path / "sent", options=(*noise[:4],)))
        assert mixed[0] == 0, mixed
        # which symbol meets which noise is drawn anew for every frame
        assert abs(mean_psnr(sent, bob.pictures()) - mean_psnr(sent, list(expected))) < 0.5
        assert bob.end() == 0


@pytest.mark.parametrize(("percent", "least_db"), [(2, 35), (20, 29)])
@pytest.mark.parametrize("end", ["sender", "receiver"])
def test_loss_and_reordering_cost_quality_and_no_picture(tmp_path, keys, percent, least_db, end):
    sent = write_pictures(tmp_path / "sent", 8)
    simulated = ("--snr", "20", "--loss", str(percent), "--seed", str(SEED))
    with Bob(tmp_path, keys, *(simulated if end == "receiver" else ())) as bob:
        options = ("--reorder", *(simulated if end == "sender" else ()))
        code, said, complaints = ended(alice(bob.to, keys, tmp_path / "sent", options=options))
        assert (code, complaints) == (0, "")
        assert bob.numbers() == list(range(8))  # every header arrived
        found = bob.metrics()
        lost = found["semseal_symbols_lost_total", ""] / (8 * 16384)
        assert 0.3 * percent / 100 < lost < 2 * percent / 100
        told = int(re.search(r"(\d+) symbols lost", said)[1])  # the sender reckons from datagrams, which are not all of a size
        assert told / (8 * 16384) == pytest.approx(lost, rel=0.05)
        assert mean_psnr(sent, bob.pictures()) > least_db


def test_a_frame_none_of_whose_symbols_arrive_is_told(tmp_path, keys):
    write_pictures(tmp_path / "sent", 1)
    with Bob(tmp_path, keys) as bob:
        code, said, complaints = ended(alice(bob.to, keys, tmp_path / "sent", options=("--loss", "100")))
        assert code == 1
        assert "0 pictures, 1 lost in" in said
        assert "000.png: lost by the receiver: none of its symbols arrived" in complaints
        assert bob.metrics()["semseal_frames_total", "lost"] == 1


def test_a_sender_goes_on_when_its_receiver_was_killed_and_is_started_again(tmp_path, mix_keys):
    write_pictures(tmp_path / "sent", 40)
    with Bob(tmp_path, mix_keys) as bob:
        # 16,384 symbols at this rate: 40 ms each
        process = alice(bob.to, mix_keys, tmp_path / "sent", options=("--symbol-rate", "400000"))
        bob.wait_for(5)
        bob.process.kill()
        bob.process.wait()
        before = set(bob.numbers())
        assert 5 <= len(before) < 40
        with Bob(tmp_path, mix_keys, port=bob.port) as again:
            code, _, complaints = ended(process)
            assert code == 0, complaints
            assert "the connection was lost" in complaints
            # what was written before the answer got lost is sent again, is there already, and is not written twice
            assert again.numbers() == list(range(40))
            assert again.end() == 0


def test_a_frame_is_refused_after_a_restart_that_was_taken_before(tmp_path, mix_keys):
    tx = Transmitter("edge", mix_keys, "mix")
    frame, other = tx.send(to_float(write_pictures(tmp_path / "sent", 2)))
    told = Hello(tx.bundle.digest, secrets.token_bytes(8), 4, len(frame.symbols), 120)

    async def attempt(port, number, frame):
        hand = await Hand.at(port, mix_keys)
        assert (await hand.hello(told))[0] == Kind.WELCOME
        try:
            return await hand.send(number, frame, told)
        finally:
            hand.close()

    with Bob(tmp_path, mix_keys) as bob:
        assert asyncio.run(attempt(bob.port, 0, frame)).outcome == Outcome.PICTURE
        again = asyncio.run(attempt(bob.port, 1, frame))
        assert (again.outcome, "replay refused" in again.why) == (Outcome.REFUSED, True)
        bob.process.kill()
        bob.process.wait()
    with Bob(tmp_path, mix_keys) as bob:
        again = asyncio.run(attempt(bob.port, 2, frame))
        assert (again.outcome, "replay refused" in again.why) == (Outcome.REFUSED, True)
        assert bob.metrics()["semseal_refusals_total", "replay"] == 1
        # of another sender: after a crash the counters ahead of the last are refused
        [third] = Transmitter("edge", mix_keys, "mix").send(to_float([np.zeros((180, 180, 3), np.uint8)]))
        mixed_up = asyncio.run(attempt(bob.port, 3, Frame(other.symbols, third.header)))
        assert (mixed_up.outcome, "do not belong together" in mixed_up.why) == (Outcome.REFUSED, True)
        assert bob.numbers() == [0]


def test_rotation_revocation_and_direction(tmp_path):
    a, b = tmp_path / "a.key", tmp_path / "b.key"
    write_keyset(a, new_keyset("a-to-b", "mix"))
    write_peer(a, b)
    write_pictures(tmp_path / "sent", 1)
    with Bob(tmp_path, b) as bob:
        change_keyset(b, lambda old: rotate(old, new_key(), 7))
        assert ended(alice(bob.to, a, tmp_path / "sent"))[0] == 0  # the old key, for seven days
        write_peer(b, a)
        assert ended(alice(bob.to, a, tmp_path / "sent"))[0] == 0
        for wrong in (b, a):  # the own file is not that of the other end; and then a key that is revoked
            if wrong == a:
                change_keyset(b, lambda old: revoke(old, old.primary.id))
                time.sleep(0.2)
            code, _, complaints = ended(alice(bob.to, wrong, tmp_path / "sent"))
            assert code == 3
            assert "do not have one key" in complaints or "no primary key" in complaints
        assert len(bob.numbers()) == 2


def test_recordings_are_sigmf_and_a_senders_has_no_noise(tmp_path, keys):
    write_pictures(tmp_path / "sent", 3)
    with Bob(tmp_path, keys, "--record", str(tmp_path / "bob")) as bob:
        options = ("--snr", "10", "--record", str(tmp_path / "alice.sigmf-meta"))
        assert ended(alice(bob.to, keys, tmp_path / "sent", options=options))[0] == 0
        assert bob.end() == 0
    for name, least, most in (("alice", 1 - 1e-6, 1 + 1e-6), ("bob", 1.05, 1.15)):
        recording = sigmf.fromfile(tmp_path / f"{name}.sigmf-meta")
        recording.validate()
        frames = recording.get_annotations()
        assert [frame["core:sample_count"] for frame in frames] == [16384] * 3
        assert len({(frame["semseal:session"], frame["semseal:counter"]) for frame in frames}) == 3
        for frame in frames:
            symbols = recording.read_samples(frame["core:sample_start"], frame["core:sample_count"])
            assert least < power(symbols.astype(np.complex64)) < most


def test_every_frame_of_a_video_is_sent(tmp_path, mix_keys):
    sent = write_pictures(tmp_path / "frames", 5)
    with av.open(str(tmp_path / "clip.mp4"), "w") as video:
        stream = video.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 180
        stream.bit_rate = 8_000_000
        for pixels in sent:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        video.mux(stream.encode())
    (tmp_path / "noclip.mp4").write_bytes(secrets.token_bytes(5000))
    with Bob(tmp_path, mix_keys, "--count", "6") as bob:
        process = alice(bob.to, mix_keys, tmp_path / "clip.mp4", tmp_path / "noclip.mp4", tmp_path / "frames" / "000.png")
        code, _, complaints = ended(process)
        assert code == 1  # of what is no video nothing arrived
        assert "noclip.mp4: cannot be read as a video" in complaints
        assert bob.process.wait(30) == 0  # so many were wanted
        assert len(bob.pictures()) == 6
        assert mean_psnr(sent, bob.pictures()[:5]) > 30


def test_a_sender_that_is_interrupted_finishes_what_is_on_its_way(tmp_path, mix_keys):
    write_pictures(tmp_path / "sent", 60)
    with Bob(tmp_path, mix_keys) as bob:
        process = alice(bob.to, mix_keys, tmp_path / "sent", options=("--symbol-rate", "400000"))
        bob.wait_for(3)
        process.send_signal(signal.SIGINT)
        code, said, complaints = ended(process)
        assert code == 130
        assert complaints.strip() == "interrupted; nothing is half written"
        arrived = len(bob.numbers())
        assert f"{arrived} pictures in" in said
        assert 3 <= arrived < 60
        assert bob.metrics()["semseal_connections", ""] == 0
        assert bob.end(signal.SIGINT) == 130


def test_the_receiver_that_is_stopped_finishes_what_is_on_its_way(tmp_path, mix_keys):
    write_pictures(tmp_path / "sent", 40)
    with Bob(tmp_path, mix_keys) as bob:
        process = alice(bob.to, mix_keys, tmp_path / "sent", options=("--symbol-rate", "400000", "--retry", "0.5"))
        bob.wait_for(3)
        assert bob.end() == 0
        code, _, complaints = ended(process)
        assert code == 3
        assert "the receiver takes no more frames" in complaints
        assert "error: no connection to" in complaints
        assert bob.numbers() == list(range(len(bob.numbers())))


def test_what_cannot_be_done_is_one_error_and_one_hint(tmp_path, mix_keys):
    write_pictures(tmp_path / "sent", 1)
    write_keyset(tmp_path / "other.key", new_keyset("one-way", "mix"))
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    busy = f"127.0.0.1:{taken.getsockname()[1]}"
    free = socket.socket()
    free.bind(("127.0.0.1", 0))
    nobody = f"127.0.0.1:{free.getsockname()[1]}"
    sent, out = tmp_path / "sent", ("--out", tmp_path / "out")
    with taken, free, Bob(tmp_path, mix_keys) as bob:
        send = ("send", "edge", sent, "--keys", mix_keys, "--to")
        receive = ("receive", "edge", "--keys", mix_keys, "--listen")
        cases = [
            (3, "do not have one key", ("send", "edge", sent, "--keys", tmp_path / "other.key", "--to", bob.to)),
            (3, "refuses: the receiver has another model", ("send", "edge-quality", sent, "--keys", mix_keys, "--to", bob.to)),
            (3, "no connection to", (*send, nobody, "--retry", "0")),
            (3, "No such file", ("send", "edge", tmp_path / "nothing", "--keys", mix_keys, "--to", bob.to)),
            (3, "no pictures in", ("send", "edge", tmp_path / "empty", "--keys", mix_keys, "--to", bob.to)),
            (3, "requires mix", (*send, bob.to, "--defense", "none")),
            (3, "there is no key file", ("send", "edge", sent, "--keys", tmp_path / "none.key", "--to", bob.to)),
            (3, "cannot be looked up", (*send, "no-such-host.invalid:7000")),
            (2, "is not HOST:PORT", (*send, "7000")),
            (2, "is not HOST:PORT", (*send, "127.0.0.1:70000")),
            (2, "is not HOST:PORT", (*send, "127.0.0.1:0")),
            (2, "cannot be the name of a host", (*send, "a..b:7000")),
            (3, "to [::1]:1 for 0 s: Connection refused\n", (*send, "[::1]:1", "--retry", "0")),
            (3, f"cannot listen at {busy}: Address already in use", (*send, bob.to, "--metrics", busy)),
            (3, "cannot listen at no-such-host.invalid:1", (*send, bob.to, "--metrics", "no-such-host.invalid:1")),
            (3, "pipe is not a regular file", ("send", "edge", sent, "--keys", tmp_path / "pipe", "--to", bob.to)),
            (3, "pipe is not a regular file", ("receive", "edge", "--keys", tmp_path / "pipe", "--listen", busy, *out)),
            (2, "--channel needs --snr", (*send, bob.to, "--channel", "rayleigh")),
            (3, "cannot listen at", (*receive, busy, *out, "--state", tmp_path / "s")),
            (3, "cannot listen at 192.0.2.1:7000", (*receive, "192.0.2.1:7000", *out, "--state", tmp_path / "s")),
            (3, "another receiver keeps its replay window", (*receive, "127.0.0.1:0", *out)),
            (3, "Not a directory", (*receive, "127.0.0.1:0", "--out", mix_keys / "x", "--state", tmp_path / "s")),
        ]
        for code, wanted, command in cases:
            found, _, complaints = ended(program(*command))
            assert found == code, (command, complaints)
            assert wanted in complaints, complaints
            assert "Traceback" not in complaints
            if code == 3:
                assert len(re.findall("^error: ", complaints, re.M)) == 1
                assert len(re.findall("^hint: ", complaints, re.M)) == 1
        assert bob.end() == 0
