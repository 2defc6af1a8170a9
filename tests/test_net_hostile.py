"""Peers that mean harm, beside one that does not: real sockets, and bytes of every kind."""

import asyncio
import secrets
import socket
import ssl
import struct
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from semseal.runtime.link import Transmitter
from semseal.runtime.net import wire
from semseal.runtime.net.address import send
from semseal.runtime.net.assembly import MAX_UNRAISED, Arriving, concealed
from semseal.runtime.net.identity import RECEIVER, SENDER, certificate, name, sender_context
from semseal.runtime.net.listener import MAX_UNPROVEN
from semseal.runtime.net.tally import reason
from semseal.runtime.net.wire import Hello, Kind
from semseal.runtime.pictures import to_float
from semseal.runtime.trust.keyset import new_keyset, write_keyset
from semseal.runtime.trust.linkkeys import LinkKey, LinkKeys
from sockets import Bob, Hand, alice, end_all, ended, write_pictures

RNG = np.random.default_rng(0)
HEADER = b"sS" + bytes([2, 4, 2]) + bytes(range(16)) + (7).to_bytes(8, "little") + bytes(23)


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    end_all()


@pytest.fixture
def keys(tmp_path):
    write_keyset(tmp_path / "link.key", new_keyset("one-way", "mix"))
    return tmp_path / "link.key"


def memory_bytes(process) -> int:
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096


class Flood:
    """Datagrams of every kind, as fast as they go, until it is over."""

    def __init__(self, port: int) -> None:
        self._port, self._over, self.sent = port, threading.Event(), 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Flood":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        head = struct.Struct("<2sBB16sQHH")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.connect(("127.0.0.1", self._port))
            while not self._over.is_set():
                made = [
                    b"",
                    secrets.token_bytes(1200),
                    bytes(65507),
                    head.pack(b"sU", 1, 2, secrets.token_bytes(16), 0, 0, 65535) + bytes(60000),
                    head.pack(b"sU", 1, 2, bytes(16), 2**64 - 1, 65535, 65535),
                ]
                for data in made:
                    udp.send(data)
                self.sent += len(made)
                time.sleep(0.001)  # else nothing of the good one fits into the system's buffer: that is jamming


def test_nobody_stops_the_good_one(tmp_path, keys):
    """Garbage, slow connections, a stranger's key, absurd messages and a flood of datagrams, all at once."""
    write_pictures(tmp_path / "sent", 10)
    write_keyset(tmp_path / "other.key", new_keyset("one-way", "mix"))
    with Bob(tmp_path, keys) as bob, ExitStack() as stack:
        before = memory_bytes(bob.process)

        def connection() -> socket.socket:
            return stack.enter_context(socket.create_connection(("127.0.0.1", bob.port), timeout=20))

        for _ in range(2 * MAX_UNPROVEN):  # who connects and says nothing, or a little
            connection().send(b"\x16\x03\x01")
        for garbage in (
            secrets.token_bytes(100_000),
            b"GET / HTTP/1.1\r\n\r\n" * 1000,
            b"\x16\x03\x01\xff\xff" + bytes(70_000),
        ):
            with pytest.raises(OSError):  # noqa: PT011, PT012  whatever it is called when the other end hangs up
                peer = connection()
                while True:
                    peer.sendall(garbage)
                    if not peer.recv(1000):
                        raise ConnectionError
        hands = asyncio.run(harm(bob.port, keys, tmp_path / "other.key"))
        with Flood(bob.port) as flood:
            code, said, complaints = ended(alice(bob.to, keys, tmp_path / "sent"))
            assert code == 0, complaints
            assert said.startswith("10 pictures in")
        assert flood.sent > 100
        assert hands == ["hung up"] * 8
        assert len(bob.pictures()) == 10
        found = bob.metrics()
        assert found["semseal_frames_total", "picture"] == 10
        assert found["semseal_refusals_total", "crowded-out"] >= MAX_UNPROVEN
        assert found["semseal_refusals_total", "no-proof"] >= 1
        assert found["semseal_refusals_total", "protocol"] >= 5
        assert found["semseal_datagrams_total", "malformed"] > 10
        assert found["semseal_datagrams_total", "unknown"] > 10
        assert memory_bytes(bob.process) - before < 100e6  # as much as decoding takes
        assert bob.end() == 0


async def harm(port, keys, others):
    """Connections of somebody who has the key and misuses it, and of one who has another; what became of each."""
    became = []
    tx = Transmitter("edge", keys, "mix")
    frame, another = tx.send(to_float([np.zeros((180, 180, 3), np.uint8)] * 2))
    told = Hello(tx.bundle.digest, bytes(8), 4, 16384, 120)
    with pytest.raises((OSError, EOFError)):
        await Hand.at(port, others)
    misuses = (
        struct.pack("<BH", Kind.FRAME, 65535),  # a message of a size that nobody needs
        struct.pack("<BH", 99, 0),
        wire.message(Kind.WELCOME, bytes(11)),
        wire.message(Kind.FRAME, bytes(300)),
        wire.message(Kind.SENT, b"123"),
        wire.frame_message(0, frame.header) + wire.frame_message(0, another.header),  # a number twice
        wire.frame_message(0, another.header) + wire.frame_message(1, another.header),  # a session and counter twice
        b"".join(wire.frame_message(i, frame.header[:21] + bytes([i]) + frame.header[22:]) for i in range(9)),  # not granted
    )
    for misuse in misuses:
        hand = await Hand.at(port, keys)
        assert (await hand.hello(told))[0] == Kind.WELCOME
        hand.writer.write(misuse)
        became.append("hung up" if await hand.is_hung_up() else "served")
        hand.close()
    for absurd in (
        told._replace(n=2**32 - 1),
        told._replace(datagrams=65535),
        told._replace(real_bytes=3),
        told._replace(datagrams=1),
    ):
        hand = await Hand.at(port, keys)
        assert (await hand.hello(absurd))[0] == Kind.REFUSED
        hand.close()
    return became


def test_tls_takes_nobody_without_the_certificate(tmp_path, keys):
    """Also who knows the server name, trusts everybody, and has no certificate, or that of the receiver's role."""
    link_keys = LinkKeys(keys, sends=True)
    _, asked = sender_context(link_keys.sending())
    write_keyset(tmp_path / "other.key", new_keyset("one-way", "mix"))
    stranger, _ = sender_context(LinkKeys(tmp_path / "other.key", sends=True).sending())
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with Bob(tmp_path, keys) as bob:
        for context in (nobody, stranger, old):
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with (  # noqa: PT012
                pytest.raises((OSError, EOFError)),
                socket.create_connection(("127.0.0.1", bob.port), timeout=20) as plain,
                context.wrap_socket(plain, server_hostname=asked) as connection,
            ):
                # with TLS 1.3 a client is through before the server has looked at its certificate
                connection.sendall(wire.message(Kind.HELLO, bytes(48)))
                if not connection.recv(1):
                    raise EOFError
        assert bob.metrics()["semseal_connections_opened_total", ""] == 0


def test_certificates_are_the_same_at_both_ends_and_of_one_role_and_key():
    secret, other = bytes(range(32)), bytes(range(1, 33))
    made = {(s, role): certificate(s, role).public_bytes(Encoding.DER) for s in (secret, other) for role in (SENDER, RECEIVER)}
    assert len(set(made.values())) == 4
    for (s, role), der in made.items():
        assert certificate(s, role).public_bytes(Encoding.DER) == der
    assert name(secret) != name(other)
    assert "secret" not in repr(LinkKey(secret))


# datagrams and messages


def arriving(n=1000, count=7, real_bytes=4):
    return Arriving(Hello(bytes(32), bytes(8), real_bytes, n, count), 0.0)


@pytest.mark.parametrize(("n", "count"), [(1, 1), (2, 2), (7, 7), (1000, 7), (997, 31), (16384, 57)])
@pytest.mark.parametrize("real_bytes", [2, 4])
def test_datagrams_in_any_order_are_the_frame(n, count, real_bytes):
    symbols = RNG.standard_normal((n, 2), np.float32).view(np.complex64)[:, 0]
    made = list(wire.datagrams(symbols, HEADER, real_bytes, count))
    assert len(made) == count
    here = arriving(n, count, real_bytes)
    for i in RNG.permutation(count):
        where, *rest = wire.datagram(memoryview(made[i]))
        assert where == (bytes(range(16)), 7)
        assert not here.complete.is_set()
        assert here.put(*rest, 1.0)
        assert not here.put(*rest, 2.0)  # a second time
    assert here.complete.is_set()
    assert (here.lost, here.received().all(), here.last) == (0, True, 1.0)
    np.testing.assert_allclose(here.symbols(), symbols, atol=0 if real_bytes == 4 else 2e-3)


def test_a_datagram_that_holds_no_numbers_counts_as_lost():
    symbols, here = np.ones(10, np.complex64), arriving(10, 3)
    symbols[4] = np.inf
    for data in wire.datagrams(symbols, HEADER, 4, 3):
        assert here.put(*wire.datagram(memoryview(data))[1:], 0.0)
    assert here.lost == 0
    assert here.symbols().tolist() == [1, 0, 1] * 3 + [1]
    assert here.lost == pytest.approx(0.3)
    assert here.received().tolist() == [True, False, True] * 3 + [True]


def test_datagrams_fit_the_size_that_was_asked_for():
    for n in (1, 291, 292, 293, 16384, 2_101_248):
        for size in (64, 1200, 8972):
            count = wire.count_for(n, 2, size)
            told = Hello(bytes(32), bytes(8), 2, n, count)
            if count <= 65535:
                assert wire.is_sane(told)
                first = next(wire.datagrams(np.zeros(n, np.complex64), HEADER, 2, count))
                assert len(first) <= size


@pytest.mark.parametrize("sizes", [[], [40], [40] * 3, [1200] * 200, [60, 60, 56, 56, 60], [64] * 70 + [9000], [65507, 65507]])
def test_datagrams_leave_as_they_are_whatever_their_sizes(sizes):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**22)
        there.bind(("127.0.0.1", 0))
        there.settimeout(20)
        here.connect(there.getsockname())
        made = [secrets.token_bytes(size) for size in sizes]
        assert send(here, made) == []
        assert [there.recv(2**16) for _ in made] == made


def test_mutated_datagrams_change_nothing_but_what_they_fit():
    """100,000 of them: none raises, and what is taken has the place and size of one that was due."""
    symbols = RNG.standard_normal((1000, 2), np.float32).view(np.complex64)[:, 0]
    made = list(wire.datagrams(symbols, HEADER, 4, 7))
    here, taken = arriving(), 0
    for number in range(100_000):
        data = bytearray(made[number % 7])
        for place in RNG.integers(0, len(data), RNG.integers(1, 4)):
            data[place] = RNG.integers(256)
        if number % 5 == 0:
            data = data[: RNG.integers(len(data))]
        if number % 50 == 0:
            assert here.symbols().shape == (1000,)
            assert np.isfinite(here.symbols()).all()
            here = arriving()
        found = wire.datagram(memoryview(data))
        if found is not None and found[0] == (bytes(range(16)), 7):
            taken += here.put(*found[1:], 0.0)
    assert taken > 500  # those whose symbols were changed: they carry no tag


def test_mutated_messages_are_refused_or_say_what_they_say():
    payloads = [
        (wire.hello, Hello(bytes(32), bytes(8), 2, 1000, 7).pack()),
        (wire.welcome, wire.Welcome(bytes(8), 8).pack()),
        (wire.frame, bytes(8) + HEADER),
        (wire.number, bytes(8)),
        (wire.done, wire.Done(3, wire.Outcome.REFUSED, 1, 7, "why").pack()),
    ]
    refused = 0
    for number in range(20_000):
        parse, payload = payloads[number % len(payloads)]
        data = bytearray(payload)
        for place in RNG.integers(0, len(data), RNG.integers(1, 4)):
            data[place] = RNG.integers(256)
        if number % 3 == 0:
            data = data[: RNG.integers(len(data))] + bytes(RNG.integers(20))
        try:
            parse(bytes(data))
        except wire.WireError:
            refused += 1
    assert refused > 5000


# what is made of a frame that arrived in part


def test_what_is_left_of_a_mixed_frame_is_unbiased_and_its_power_tells_the_noise():
    n, share, noise = 200_000, 0.2, 0.1
    symbols = RNG.standard_normal((n, 2), np.float32).view(np.complex64)[:, 0] / np.float32(2**0.5)
    received = RNG.random(n) >= share
    behind = symbols + RNG.standard_normal((n, 2), np.float32).view(np.complex64)[:, 0] * np.float32((noise / 2) ** 0.5)
    lost = 1 - received.mean()
    made = concealed(behind, received, lost, mixed=True)
    gain = np.vdot(symbols, made).real / np.vdot(symbols, symbols).real
    assert gain == pytest.approx(1, abs=0.01)
    rest = np.square(np.abs(made - symbols)).mean()
    assert np.square(np.abs(made)).mean() - 1 == pytest.approx(rest, abs=0.02)
    assert rest == pytest.approx((share + noise) / (1 - share), rel=0.03)


def test_a_frame_without_mix_is_raised_only_where_much_is_lost():
    symbols = np.ones(100, np.complex64)
    for lost, raised in ((0.0, False), (MAX_UNRAISED, False), (MAX_UNRAISED + 0.01, True)):
        factor = 1 / (1 - lost) if raised else 1
        np.testing.assert_allclose(concealed(symbols, None, lost, mixed=False), factor * symbols, rtol=1e-6)
    for lost in (0.01, 0.5):
        np.testing.assert_allclose(concealed(symbols, None, lost, mixed=True), symbols / (1 - lost), rtol=1e-6)


def test_every_refusal_of_a_receiver_has_a_word(tmp_path, keys):
    tx, other = Transmitter("edge", keys, "mix"), tmp_path / "any.key"
    write_keyset(other, new_keyset("one-way", None))
    [frame] = tx.send(np.full((1, 3, 180, 180), 0.5, np.float32))
    from semseal.runtime.link import Frame, Receiver

    rx, strict = Receiver("edge", keys), Receiver("edge", other, require="mix")
    [plain] = Transmitter("edge", other).send(np.full((1, 3, 180, 180), 0.5, np.float32))
    noise = RNG.standard_normal((16384, 2), np.float32).view(np.complex64)[:, 0]
    words = []
    for bob, bad in (
        (strict, frame),
        (strict, plain),
        (rx, Frame(frame.symbols[:5], frame.header)),
        (rx, Frame(frame.symbols * np.float32(1e4), frame.header)),
        (rx, Frame(noise, frame.header)),
        (rx, frame),
        (rx, frame),
    ):
        [reception] = bob.receive_each([bad])
        words.append("" if reception.error is None else reason(reception.error.message))
    assert words == ["not-authentic", "defence", "shape", "power", "mismatch", "", "replay"]
