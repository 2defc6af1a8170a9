"""Bob's process: any number of senders at one address, pictures into a folder.

    TCP ── handshake ── HELLO ──┬─ FRAME n ── place for its symbols ── READY n                    one task for each connection
    (one port for both)         │                  │                                             and one for each frame
    UDP ── datagrams ───────────┼── session known? fits? ── into its place
                                └─ SENT n ── a while for what is late ── decoded ── DONE n        one thread decodes

What a peer can take is bounded before anything is known of it, and less is granted the less is known:

    who has not proved to have the key    a socket for 5 s; of more than 64 the oldest goes
    who has                               one of 32 connections, and memory for ``window`` frames of this model
    a datagram                            nothing, unless it fits a frame that a connection announced

Decoding is first come, first served, and a connection has at most its window in that queue. A peer that sends nothing, reads
nothing, or something else than the page says, loses its connection, and nobody else notices.
"""

import asyncio
import contextlib
import os
import secrets
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from semseal.runtime.defense import mix
from semseal.runtime.errors import SemsealError
from semseal.runtime.files import named
from semseal.runtime.frame import Frame
from semseal.runtime.net import wire
from semseal.runtime.net.air import MAX_LATE_S, Simulation
from semseal.runtime.net.assembly import Arriving, concealed
from semseal.runtime.net.record import Recording
from semseal.runtime.net.tally import Tally, reason
from semseal.runtime.net.wire import Done, Hello, Kind, Outcome, WireError
from semseal.runtime.receiver import Receiver

MAX_UNPROVEN = 64  # connections that have not proved to have the key
MAX_PEERS = 32  # connections that have
MAX_WINDOW = 8  # frames of one connection that are on their way
HANDSHAKE_S = 5.0
IDLE_S = 60.0  # for which a peer may say nothing; senders say something every 15
PART_S = 10.0  # for the rest of a message
FRAME_IDLE_S, FRAME_S = 5.0, 120.0  # for which nothing of an announced frame may arrive, and for all of it
LATE_S = 0.03  # for what is still on its way when all was sent
MAX_UNTOLD_LOSS = 0.05  # the share of lost symbols up to which a refusal is not put down to them
DRAIN_S = 10.0  # for what is on its way when the receiver is stopped
_MEMORY_BYTES = 2**28  # of frames that are arriving, all connections together
_BACKLOG_BYTES = 2**16  # that a peer may leave unread
_AT_ONCE = 256  # datagrams, before everybody else has a turn
_RECEIVE_BUFFER_BYTES = 2**22

assert MAX_LATE_S < LATE_S


@dataclass(eq=False)
class Peer:
    """One connection that proved to have the key."""

    told: Hello
    mixed: bool
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    frames: dict[int, Arriving]
    tasks: set[asyncio.Task[None]]

    def say(self, data: bytes) -> None:
        """Raises WireError for a peer that reads nothing."""
        self.writer.write(data)
        if self.writer.transport.get_write_buffer_size() > _BACKLOG_BYTES:
            raise WireError("it reads nothing")


class Listener:
    """Takes connections and datagrams until it is stopped, or has written so many pictures."""

    def __init__(
        self,
        receiver: Receiver,
        context: ssl.SSLContext,
        folder: Path,
        simulation: Simulation,
        tally: Tally,
        wanted: int | None,
        recording: Recording,
        say: Callable[[str], None],
        advance: Callable[[], None],
    ) -> None:
        """``say`` is told what was refused, ``advance`` that a picture was written."""
        self._receiver, self._context, self._folder, self._say, self._advance = receiver, context, folder, say, advance
        self._simulation, self._tally, self._recording, self._wanted = simulation, tally, recording, wanted
        plain = receiver.bundle.n_symbols
        self._sizes = {plain: False, mix.padded_size(2 * plain) // 2: True}  # symbols of a frame -> whether it is mixed
        self._window = max(1, min(MAX_WINDOW, _MEMORY_BYTES // (MAX_PEERS * 8 * max(self._sizes))))
        self._instance = secrets.token_bytes(wire.INSTANCE_SIZE)
        self._arriving: dict[tuple[bytes, int], Arriving] = {}
        self._unproven: dict[asyncio.Task[None], None] = {}
        self._peers: dict[Peer, None] = {}
        self._worker = ThreadPoolExecutor(1, "semseal-decode")
        self._over = asyncio.Event()
        self._failed: Exception | None = None
        self.pictures = 0

    def stop(self) -> None:
        """Take nothing new, and return when what is on its way is done."""
        self._over.set()

    async def run(self, tcp: socket.socket, udp: socket.socket) -> None:
        """Serve these sockets. Raises what ended it before it was stopped: OSError for a disk that is full, SemsealError."""
        loop = asyncio.get_running_loop()
        buffer = memoryview(bytearray(2**16))
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        loop.add_reader(udp, self._take_datagrams, udp, buffer)
        accepting = loop.create_task(self._accept(tcp))
        try:
            await self._over.wait()
            accepting.cancel()
            await self._drain()
        finally:
            accepting.cancel()
            loop.remove_reader(udp)
            for peer in self._peers:
                peer.writer.transport.abort()
            for task in list(self._unproven):
                task.cancel()
            self._worker.shutdown(cancel_futures=True)
        if self._failed is not None:
            raise self._failed

    async def _drain(self) -> None:
        for peer in self._peers:
            peer.writer.write(wire.message(Kind.BYE))
        tasks = [task for peer in self._peers for task in peer.tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=DRAIN_S)
        writers = [peer.writer for peer in self._peers]
        for writer in writers:
            writer.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)

    def _fail(self, error: Exception) -> None:
        self._failed = self._failed or error
        self.stop()

    # connections

    async def _accept(self, tcp: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(tcp)
            except OSError:  # no handle is free
                await asyncio.sleep(0.1)
                continue
            connection.setblocking(False)
            if len(self._unproven) >= MAX_UNPROVEN:
                oldest = next(iter(self._unproven))
                self._unproven.pop(oldest)
                oldest.cancel()
                self._tally.refusals["crowded-out"] += 1
            task = loop.create_task(self._serve(connection))
            self._unproven[task] = None
            task.add_done_callback(lambda task: self._unproven.pop(task, None))

    async def _serve(self, connection: socket.socket) -> None:
        """One connection, from its first byte to its last."""
        why, writer, peer = "", None, None
        try:
            reader, writer = await self._handshake(connection)
            async with asyncio.timeout(HANDSHAKE_S):
                kind, payload = await wire.read_message(reader, HANDSHAKE_S, HANDSHAKE_S)
            task = asyncio.current_task()
            assert task is not None
            self._unproven.pop(task, None)
            why = self._objection(kind, payload)
            if why:
                writer.write(wire.message(Kind.REFUSED, why.encode()))
                self._tally.refusals["connection"] += 1
                return
            told = wire.hello(payload)
            peer = Peer(told, self._sizes[told.n], reader, writer, {}, set())
            self._peers[peer] = None
            self._tally.opened += 1
            peer.say(wire.message(Kind.WELCOME, wire.Welcome(self._instance, self._window).pack()))
            await self._listen(peer)
        except ssl.SSLError:
            self._tally.refusals["no-proof"] += 1
        except WireError:
            self._tally.refusals["protocol"] += 1
        except TimeoutError:
            self._tally.refusals["timeout"] += 1
        except (OSError, EOFError):
            self._tally.refusals["no-proof" if writer is None else "connection-lost"] += 1
        finally:
            if peer is not None:
                self._peers.pop(peer, None)
            if writer is None:
                connection.close()
            else:
                writer.close() if why else writer.transport.abort()

    async def _handshake(self, connection: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = asyncio.StreamReader(wire.MAX_MESSAGE_BYTES * 4, loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, connection, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_S
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    def _objection(self, kind: Kind, payload: bytes) -> str:
        """Why a connection is not served; empty where it is."""
        if kind != Kind.HELLO:
            raise WireError(f"{kind.name} before HELLO")
        told = wire.hello(payload)
        if told.digest != self._receiver.bundle.digest:
            return "the receiver has another model; use one bundle at both ends"
        if told.n not in self._sizes or not wire.is_sane(told):
            return f"frames of {told.n} symbols in {told.datagrams} datagrams are not those of this model"
        if len(self._peers) >= MAX_PEERS:
            return f"the receiver has {MAX_PEERS} connections already; try again later"
        return ""

    async def _listen(self, peer: Peer) -> None:
        """Messages until the peer says BYE or is cut off; then what is on its way is finished."""
        self._tally.connections += 1
        try:
            while True:
                kind, payload = await wire.read_message(peer.reader, IDLE_S, PART_S)
                if kind == Kind.FRAME:
                    self._announced(peer, *wire.frame(payload))
                elif kind == Kind.SENT:
                    if (arriving := peer.frames.get(wire.number(payload))) is not None:
                        arriving.all_sent.set()
                elif kind == Kind.KEEP:
                    peer.say(wire.message(Kind.KEEP))
                elif kind == Kind.BYE:
                    break
                else:
                    raise WireError(f"{kind.name} from a sender")
        finally:
            for arriving in peer.frames.values():
                arriving.all_sent.set()
            if peer.tasks:
                await asyncio.wait(peer.tasks)  # each has a deadline of its own
            self._tally.connections -= 1
        peer.writer.write(wire.message(Kind.BYE))
        peer.writer.close()
        with contextlib.suppress(OSError):
            await peer.writer.wait_closed()

    # frames

    def _announced(self, peer: Peer, number: int, header: bytes) -> None:
        """Room for a frame's symbols. Raises WireError for more frames than were granted, or one that is announced twice."""
        where = wire.session_and_counter(header)
        if number in peer.frames or where in self._arriving or len(peer.frames) >= self._window:
            raise WireError("a frame that was not granted, or is on its way already")
        if self._over.is_set():
            return  # BYE is on its way, and the sender sends it again elsewhere
        arriving = Arriving(peer.told, time.monotonic())
        peer.frames[number] = self._arriving[where] = arriving
        task = asyncio.get_running_loop().create_task(self._frame(peer, number, header, arriving))
        peer.tasks.add(task)
        task.add_done_callback(peer.tasks.discard)
        peer.say(wire.numbered(Kind.READY, number))

    async def _frame(self, peer: Peer, number: int, header: bytes, arriving: Arriving) -> None:
        """One frame, from its announcement to what became of it."""
        try:
            await _gathered(arriving)
            self._arriving.pop(wire.session_and_counter(header), None)
            name = f"{peer.told.stream.hex()}-{number:06d}.png"
            work = partial(self._decoded, header, arriving, peer.mixed, name)
            outcome, why = await asyncio.get_running_loop().run_in_executor(self._worker, work)
        except (OSError, SemsealError) as error:
            self._fail(error)
            return
        except RuntimeError:  # the worker is shut down
            return
        finally:
            self._arriving.pop(wire.session_and_counter(header), None)
            peer.frames.pop(number, None)
        self._count(header, arriving, outcome, why)
        with contextlib.suppress(WireError, OSError):
            peer.say(wire.message(Kind.DONE, Done(number, outcome, arriving.arrived, peer.told.datagrams, why).pack()))

    def _decoded(self, header: bytes, arriving: Arriving, mixed: bool, name: str) -> tuple[Outcome, str]:
        """What a frame gave; its picture is in the folder. Runs in the one thread that decodes."""
        symbols, lost = arriving.symbols(), arriving.lost
        if lost == 1:
            return Outcome.LOST, "none of its symbols arrived"
        arrived = time.thread_time()
        behind = self._simulation.through(symbols)
        simulated = time.thread_time()
        symbols = concealed(behind, None if behind is symbols else arriving.received(), lost, mixed)
        self._recording.add(header, symbols)
        ready = time.thread_time()
        (reception,) = self._receiver.receive_each([Frame(symbols, header)])
        decoded = time.thread_time()
        self._tally.seconds["simulate"] += simulated - arrived
        self._tally.seconds["decode"] += decoded - ready
        if reception.image is None:
            assert reception.error is not None  # a noise tensor is of a mode that is not sent here
            few = f"; {lost:.0%} of its symbols were lost" if lost > MAX_UNTOLD_LOSS else ""
            return Outcome.REFUSED, reception.error.message.removeprefix("frame 0: ") + few
        pixels = np.rint(reception.image * 255).astype(np.uint8).transpose(1, 2, 0)
        try:
            _write(self._folder / name, pixels)
        except FileExistsError:
            return Outcome.AGAIN, ""
        self._tally.seconds["write"] += time.thread_time() - decoded
        return Outcome.PICTURE, ""

    def _count(self, header: bytes, arriving: Arriving, outcome: Outcome, why: str) -> None:
        self._tally.frames[outcome.name.lower()] += 1
        self._tally.saw(header)
        self._tally.symbols_lost += round(arriving.lost * arriving.n)
        self._tally.timed(time.monotonic() - arriving.begun)
        if outcome == Outcome.REFUSED:
            self._tally.refusals[reason(why)] += 1
            self._say(f"refused: {why}")
        if outcome == Outcome.PICTURE:
            self.pictures += 1
            self._advance()
            if self._wanted is not None and self.pictures >= self._wanted:
                self.stop()

    # datagrams

    def _take_datagrams(self, udp: socket.socket, buffer: memoryview) -> None:
        """Those that are here, a few at a time: everybody else has a turn in between."""
        counts, now = self._tally.datagrams, time.monotonic()
        for _ in range(_AT_ONCE):
            try:
                size = udp.recv_into(buffer)
            except BlockingIOError:
                break
            except OSError:  # an answer of the network to something that was never sent
                continue
            found = wire.datagram(buffer[:size])
            arriving = None if found is None else self._arriving.get(found[0])
            if found is None or arriving is None:
                counts["malformed" if found is None else "unknown"] += 1
            elif self._simulation.loses():
                counts["simulated-loss"] += 1
            else:
                counts["taken" if arriving.put(*found[1:], now) else "misfit"] += 1


def _write(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a new file, whole or not at all. Raises OSError with the file's path."""
    unfinished = path.parent / f".{path.name}.part"
    with named(path):
        try:
            with open(unfinished, "wb") as file:
                Image.fromarray(pixels).save(file, "PNG", compress_level=1)
            os.link(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


async def _gathered(arriving: Arriving) -> None:
    """Wait until all of a frame is here, or what is not is given up."""
    end = arriving.begun + FRAME_S
    while not arriving.all_sent.is_set() and (left := min(end, arriving.last + FRAME_IDLE_S) - time.monotonic()) > 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                await arriving.all_sent.wait()
    arriving.last = max(arriving.last, time.monotonic())  # what is late counts from when all was sent
    while not arriving.complete.is_set() and (left := min(end, arriving.last + LATE_S) - time.monotonic()) > 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                await arriving.complete.wait()
