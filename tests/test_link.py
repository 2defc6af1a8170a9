import base64
import copy
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from semseal.runtime import channel
from semseal.runtime.bundle import open_bundle
from semseal.runtime.defense.defenses import MODES
from semseal.runtime.errors import BundleError, EngineError, HeaderError, KeyFileError
from semseal.runtime.link import Frame, Receiver, Transmitter
from semseal.runtime.metrics import psnr

KEY = b"k" * 32
ROWS = [mode for mode in MODES if mode != "mix"]  # that one is in test_mixing.py
DEFENDED = ROWS[1:]


def radio(frames, seed=0, snr=10.0):
    """Frames as Bob receives them."""
    noise = channel.draw_noise(len(frames), len(frames[0].symbols), np.random.default_rng(seed))
    received = channel.awgn(np.stack([frame.symbols for frame in frames]), noise, snr)
    return [Frame(symbols, frame.header) for symbols, frame in zip(received, frames, strict=True)]


@pytest.mark.parametrize("defense", ROWS)
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 64])
def test_bob_with_the_key_loses_nothing_without_noise(small_bundle, small_images, defense, batch):
    images = small_images(batch)
    plain = Receiver(small_bundle).receive(Transmitter(small_bundle).send(images))
    frames = Transmitter(small_bundle, KEY, defense).send(images)
    odd = "substitute" in defense and batch % 2
    assert len(frames) == batch + odd
    assert Receiver(small_bundle, KEY).receive(frames).tobytes() == plain.tobytes()


@pytest.mark.parametrize("defense", DEFENDED)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_bob_with_the_key_loses_nothing_for_the_same_noise(small_bundle, small_images, defense, batch):
    images, h = small_images(batch), open_bundle(small_bundle).h
    undefended = np.stack([frame.symbols for frame in Transmitter(small_bundle).send(images)])
    frames = Transmitter(small_bundle, KEY, defense).send(images)
    on_air = np.stack([frame.symbols for frame in frames])
    received = radio(frames)
    noise = np.stack([frame.symbols for frame in received]) - on_air

    # where each undefended row went, found by its values, so that the same noise can meet the same row
    width = undefended.shape[1] // h
    where = {row.tobytes(): i for i, row in enumerate(on_air.reshape(-1, width))}
    moved = [where[row.tobytes()] for row in undefended.reshape(-1, width)]
    received_rows = np.stack([frame.symbols for frame in received]).reshape(-1, width)[moved].reshape(undefended.shape)
    assert np.allclose(received_rows - undefended, noise.reshape(-1, width)[moved].reshape(undefended.shape), atol=1e-6)

    plain = [Frame(row, frame.header) for row, frame in zip(received_rows, Transmitter(small_bundle).send(images), strict=True)]
    assert Receiver(small_bundle, KEY).receive(received).tobytes() == Receiver(small_bundle).receive(plain).tobytes()


@pytest.mark.parametrize("defense", DEFENDED)
def test_bob_without_the_key_gets_no_picture_and_eve_gets_other_rows(small_bundle, small_images, defense):
    images = small_images(4)
    frames = Transmitter(small_bundle, KEY, defense).send(images)
    with pytest.raises(HeaderError, match="no key"):
        Receiver(small_bundle).receive(frames)
    with pytest.raises(HeaderError, match="wrong key"):
        Receiver(small_bundle, b"e" * 32).receive(frames)
    undefended = Transmitter(small_bundle).send(images)
    assert all((a.symbols != b.symbols).any() for a, b in zip(frames, undefended, strict=True))


@pytest.mark.parametrize("defense", DEFENDED)
def test_every_transmission_draws_a_scheme_and_takes_a_counter_of_its_own(small_bundle, small_images, defense):
    tx, rx = Transmitter(small_bundle, KEY, defense), Receiver(small_bundle, KEY)
    sent = [tx.send(small_images(2)) for _ in range(20)]
    # of 256 schemes one may come up again; there are but 70 ways to swap 4 of 8 rows
    assert len({frames[0].symbols.tobytes() for frames in sent}) >= (10 if defense == "substitute" else 15)
    assert len({frame.header[5:29] for frames in sent for frame in frames}) == 40
    assert all(len(rx.receive(frames)) == 2 for frames in sent)


def test_threads_never_share_a_counter(small_bundle, small_images):
    tx = Transmitter(small_bundle, KEY, "permute")
    with ThreadPoolExecutor(8) as pool:
        sent = list(pool.map(lambda _: tx.send(small_images(1)), range(200)))
    assert len({frames[0].header[5:29] for frames in sent}) == 200


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_transmitter_is_not_copied_because_the_copy_would_use_its_counters_again(small_bundle, again):
    with pytest.raises(TypeError, match=r"cannot be copied or pickled: .* open another Transmitter"):
        again(Transmitter(small_bundle, KEY, "mix"))


# in a process without the threads of torch, which make a fork unsafe; the child ends by os._exit, as it may not free engines
FORKED = """
import ctypes, os, signal, sys, threading, traceback
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from semseal.runtime.link import Receiver, Transmitter

bundle, engine = sys.argv[1:]
images = np.full((1, 3, 32, 24), 0.5, np.float32)
pixels = np.full((1, 32, 24, 3), 128, np.uint8)
tx = Transmitter(bundle, bytes(32), "mix", engine, threads=1)
rx = Receiver(bundle, bytes(32), engine, threads=1)
ends = lambda frame: (frame.header[5:21], frame.header[21:29])  # session and counter

def forked(work):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(40)  # ends a child that hangs
            os.write(write, work())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    answer = os.read(read, 1000)
    assert os.waitpid(child, 0)[1] == 0, "the child failed"
    return answer
"""


def run_forked(bundle, body, *before, engine="onnxruntime-cpu"):
    command = [*before, sys.executable, "-c", FORKED + body, str(bundle), engine]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("engine", ["onnxruntime-cpu", "openvino"])
def test_a_forked_process_gets_a_session_of_its_own(small_bundle, engine):
    run_forked(
        small_bundle,
        """
session = lambda: tx.send(images)[0].header[5:21]
mine = session()
child = forked(lambda: session() + forked(session) + session())
first, grandchild, last = child[:16], child[16:32], child[32:]
assert first == last and len({mine, first, grandchild}) == 3 and len(grandchild) == 16
assert mine == session()
""",
        engine=engine,
    )


def test_a_child_with_its_parents_process_id_gets_a_session_of_its_own(small_bundle):
    namespace = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    if shutil.which("unshare") is None or subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("this system lets no user make a namespace of process ids")
    run_forked(
        small_bundle,
        """
session = lambda: tx.send(images)[0].header[5:21]
mine, number = session(), os.getpid()
assert number == 1
assert ctypes.CDLL(None).unshare(0x20000000) == 0  # CLONE_NEWPID: the next child is number 1 of a namespace of its own
child = forked(lambda: bytes([os.getpid()]) + session())
assert child[0] == number and len(child) == 17
assert mine == session() != child[1:]
""",
        *namespace,
    )


@pytest.mark.parametrize("engine", ["onnxruntime-cpu", "openvino"])
def test_threads_of_a_forked_child_wait_for_no_lock_that_its_parent_held(small_bundle, engine):
    run_forked(
        small_bundle,
        """
tx.send(images), rx.receive(tx.send(images))
held, done = threading.Barrier(2), threading.Event()
def hold():
    # every lock there is, as threads in send, in receive and in opening an engine would
    locks = [counters._lock for counters in tx._counters.values()]
    locks += [tx._engines._own.lock(), rx._engines._own.lock(), rx._own.lock()]
    for lock in locks:
        lock.acquire()
    held.wait()
    done.wait()
    for lock in locks:
        lock.release()
threading.Thread(target=hold, daemon=True).start()
held.wait()
def child():
    with ThreadPoolExecutor(8) as pool:
        sent = list(pool.map(lambda i: tx.send(pixels if i % 2 else images)[0], range(12)))  # within the window
        assert len(set(map(ends, sent))) == 12 and len({session for session, _ in map(ends, sent)}) == 1
        assert sum(pool.map(lambda frame: len(rx.receive([frame], "uint8")), sent)) == 12
    return b"ok"
assert forked(child) == b"ok"
done.set()
assert len(rx.receive(tx.send(pixels), "uint8")) == 1
""",
        engine=engine,
    )


def test_forks_while_threads_send_and_receive(small_bundle):
    # not with OpenVINO, which holds locks of its own while a thread of the parent is in it
    run_forked(
        small_bundle,
        """
stop, sent = threading.Event(), []
def work():
    while not stop.is_set():
        frames = tx.send(pixels)
        sent.append(ends(frames[0]))
        rx.receive(frames, "uint8")
threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
def child():
    frames = tx.send(images)
    assert len(rx.receive(frames)) == 1
    return b"".join(ends(frames[0]))
answers = {forked(child) for _ in range(20)}
stop.set()
for thread in threads:
    thread.join()
assert len({answer[:16] for answer in answers} | {session for session, _ in sent}) == 21
assert len(set(sent)) == len(sent)
""",
    )


def test_pictures_come_back_in_the_order_sent_however_frames_arrive(small_bundle, small_images):
    images = small_images(7)
    frames = Transmitter(small_bundle, KEY, "permute+substitute").send(images)
    expected = Receiver(small_bundle, KEY).receive(frames)
    shuffled = [frames[i] for i in np.random.default_rng(1).permutation(len(frames))]
    assert Receiver(small_bundle, KEY).receive(shuffled).tobytes() == expected.tobytes()


def test_more_frames_than_the_replay_window_in_any_order(small_bundle, small_images):
    frames = Transmitter(small_bundle, KEY, "permute").send(small_images(1100))
    rx = Receiver(small_bundle, KEY)
    assert len(rx.receive(frames[::-1])) == 1100
    with pytest.raises(HeaderError, match="replay"):
        rx.receive(frames[-1:])


def test_more_images_than_one_run_of_the_engine_holds(small_bundle, small_images):
    images = small_images(131)
    frames = Transmitter(small_bundle, KEY, "permute+substitute").send(images)
    plain = Receiver(small_bundle).receive(Transmitter(small_bundle).send(images))
    assert np.array_equal(Receiver(small_bundle, KEY).receive(frames), plain)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_partner_costs_the_swapped_rows_and_is_reported(small_bundle, small_images, lost):
    images = small_images(4)
    frames = Transmitter(small_bundle, KEY, "substitute").send(images)
    whole = Receiver(small_bundle, KEY)
    expected = whole.receive(frames)
    assert whole.incomplete == []
    rx = Receiver(small_bundle, KEY)
    with pytest.warns(UserWarning, match=r"did not arrive for images \[0\]"):
        got = rx.receive(frames[:lost] + frames[lost + 1 :])
    assert rx.incomplete == [0]
    assert len(got) == 3
    assert got[1:].tobytes() == expected[2:].tobytes()
    kept = expected[1 - lost]
    assert 5 < psnr(kept[None], got[:1])[0] < 60  # damaged, not destroyed


def test_a_lost_noise_tensor_is_a_lost_partner(small_bundle, small_images):
    frames = Transmitter(small_bundle, KEY, "substitute").send(small_images(1))
    rx = Receiver(small_bundle, KEY)
    with pytest.warns(UserWarning, match="both frames of a pair"):
        assert len(rx.receive(frames[:1])) == 1
    assert rx.incomplete == [0]


def test_the_noise_tensor_alone_is_no_picture(small_bundle, small_images):
    frames = Transmitter(small_bundle, KEY, "substitute").send(small_images(1))
    assert Receiver(small_bundle, KEY).receive(frames[1:]).shape == (0, 3, 32, 24)


@pytest.mark.parametrize("defense", MODES)
def test_power_is_one(small_bundle, small_images, defense):
    frames = Transmitter(small_bundle, KEY, defense).send(small_images(6))
    power = [float(np.mean(np.abs(frame.symbols.astype(np.complex128)) ** 2)) for frame in frames]
    pairs = np.reshape(power, (-1, 2)).mean(axis=1)
    assert np.abs(pairs - 1).max() < 1e-5
    if "substitute" not in defense:
        assert np.abs(np.array(power) - 1).max() < 1e-5


def test_replayed_frames_are_refused_and_cost_no_other(small_bundle, small_images):
    frames = Transmitter(small_bundle, KEY, "permute").send(small_images(3))
    rx = Receiver(small_bundle, KEY)
    with pytest.raises(HeaderError, match=r"frame 2.*replay") as caught:
        rx.receive([*frames[:2], frames[0]])
    assert [reception.image is not None for reception in caught.value.receptions] == [True, True, False]
    with pytest.raises(HeaderError, match=r"frame 1.*replay") as caught:
        rx.receive([frames[2], frames[1]])
    assert [reception.image is not None for reception in caught.value.receptions] == [True, False]
    with pytest.raises(HeaderError, match=r"frame 0.*replay.* \(and 2 more of 3 frames\)"):  # those that were given are used up
        rx.receive(frames)


def test_two_receives_at_once_do_not_both_accept_a_frame(small_bundle, small_images):
    frames = Transmitter(small_bundle, KEY, "permute").send(small_images(8))
    rx = Receiver(small_bundle, KEY)

    def receive(_):
        try:
            return len(rx.receive(frames))
        except HeaderError:
            return 0

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(receive, range(4))) == [0, 0, 0, 8]


def test_without_a_key_a_forged_counter_blocks_nothing(small_bundle, small_images):
    tx, rx = Transmitter(small_bundle), Receiver(small_bundle)
    frame = tx.send(small_images(1))[0]
    forged = Frame(frame.symbols, frame.header[:21] + b"\xff" * 8 + frame.header[29:])
    assert len(rx.receive([forged])) == 1
    assert len(rx.receive([frame])) == 1


def test_wrong_shapes_and_values_are_refused(small_bundle, small_images):
    tx = Transmitter(small_bundle, KEY, "permute")
    for bad, message in [
        (small_images(1)[0], r"images must be \[batch, 3, 32, 24\], got \[3, 32, 24\]"),
        (small_images(1)[:, :, :, :-1], "images must be"),
        (small_images(1)[:0], "images must be"),
        (small_images(1).astype(np.float64), r"float32 in 0\.\.1 or uint8 .*, got float64; divide bytes by 255"),
        ((small_images(1) * 255).astype(np.uint8), r"uint8 images must be \[batch, 32, 24, 3\], got \[1, 3, 32, 24\]"),
        (small_images(1) * 0 - np.float32(2e-6), r"in 0\.\.1, got -2e-06\.\.-2e-06 in image 0$"),
        (small_images(1) * 0 + np.float32(1.00001), r"in 0\.\.1, got 1\.00001\.\.1\.00001 in image 0$"),
        (small_images(1).tolist(), "must be a NumPy array, got list"),
        (small_images(1) * 255, r"in 0\.\.1, got .* in image 0; divide bytes by 255$"),
        (small_images(1) * 65535, r"in 0\.\.1, got [\d.]+ in image 0$"),
        (
            small_images(3) * np.float32([0, np.nan, 0])[:, None, None, None],
            r"finite and in 0\.\.1, got nan\.\.nan in image 1$",
        ),
        (small_images(1) * np.float32(np.inf), r"finite and in 0\.\.1, got .*inf in image 0$"),
    ]:
        with pytest.raises(ValueError, match=message):
            tx.send(bad)
    frame = tx.send(small_images(1))[0]
    for symbols, message in [
        (frame.symbols[:-1], r"frame 0: symbols must be complex64 \[96\]"),
        (frame.symbols.view(np.float32), "frame 0: symbols must be"),
        (frame.symbols.astype(np.complex128), "frame 0: symbols must be complex64"),
        (frame.symbols * np.complex64(np.nan), "frame 0: symbols must be finite"),
        (np.full_like(frame.symbols, 3e38), "frame 0: symbols must be finite and of mean power 1000 at most, got inf"),
    ]:
        with pytest.raises(HeaderError, match=message):
            Receiver(small_bundle, KEY).receive([Frame(symbols, frame.header)])


def test_no_frames_are_no_pictures(small_bundle):
    assert Receiver(small_bundle, KEY).receive([]).shape == (0, 3, 32, 24)


def test_what_cannot_be_had_fails_with_the_reason(small_bundle, tmp_path):
    with pytest.raises(ValueError, match="defense must be one of"):
        Transmitter(small_bundle, KEY, "shuffle")
    with pytest.raises(ValueError, match="needs a key"):
        Transmitter(small_bundle, None, "permute")
    with pytest.raises(EngineError, match="engine must be one of"):
        Transmitter(small_bundle, engine="abacus")
    with pytest.raises(BundleError, match="has no precision 'int4'"):
        Receiver(small_bundle, precision="int4")
    with pytest.raises(KeyFileError, match="keygen"):
        Receiver(small_bundle, tmp_path / "none")


def test_engines_are_opened_when_a_frame_needs_them(small_bundle, small_images, tmp_path, monkeypatch):
    frames = {defense: Transmitter(small_bundle, KEY, defense).send(small_images(1)) for defense in ("none", "mix")}
    shutil.copytree(small_bundle, tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    rx = Receiver("b", KEY)
    monkeypatch.chdir("/")  # where it was opened counts
    assert len(rx.receive(frames["mix"])) == 1
    graph = tmp_path / "b" / "receiver.fp32.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1] + b"!")
    with pytest.raises(BundleError, match="does not match its digest"):
        rx.receive(frames["none"])  # what is opened later is checked as at first
    with pytest.raises(BundleError, match="does not match its digest"):
        Receiver(tmp_path / "b", KEY)
    graph.write_bytes(whole)
    assert len(rx.receive(frames["none"])) == 1  # nothing was used up
    os.remove(graph)
    again = Transmitter(small_bundle, KEY, "none").send(small_images(1))
    assert len(rx.receive(again)) == 1


def test_key_files_work_on_both_sides(small_bundle, small_images, tmp_path):
    (tmp_path / "key").write_text(f"semseal-key-v1\n{base64.b64encode(KEY).decode()}\n")
    (tmp_path / "key").chmod(0o600)
    frames = Transmitter(small_bundle, tmp_path / "key", "permute").send(small_images(1))
    assert len(Receiver(small_bundle, str(tmp_path / "key")).receive(frames)) == 1


def test_frame_bytes_round_trip(small_bundle, small_images):
    frame = Transmitter(small_bundle, KEY, "permute").send(small_images(1))[0]
    data = frame.to_bytes()
    back = Frame.from_bytes(data)
    assert back.symbols.tobytes() == frame.symbols.tobytes()
    assert back.header == frame.header
    assert len(data) == 10 + 52 + 8 * 96


def test_damaged_frame_bytes_are_refused(small_bundle, small_images):
    data = Transmitter(small_bundle, KEY, "permute").send(small_images(1))[0].to_bytes()
    infinite = data[:-4] + np.float32(np.inf).tobytes()
    for bad in (b"", data[:9], data[:-1], data + b"\0", b"X" + data[1:], infinite):
        with pytest.raises(ValueError, match="frame"):
            Frame.from_bytes(bad)


def test_both_ends_show_what_they_are_and_no_secret(small_bundle):
    tx = Transmitter(small_bundle, KEY, "mix", precision="fp16")
    assert repr(tx) == f"Transmitter({str(small_bundle)!r}, defense='mix', engine='onnxruntime-cpu', precision='fp16')"
    rx = Receiver("photos-10db", KEY)
    assert repr(rx) == "Receiver('photos-10db', key given, engine='onnxruntime-cpu', precision='fp32')"
    assert repr(Receiver("photos-10db")) == "Receiver('photos-10db', key none, engine='onnxruntime-cpu', precision='fp32')"
