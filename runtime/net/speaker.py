"""Alice's process: pictures to a receiver, over a connection that may break and come back.

    pictures ── one at a time ── encoded ── FRAME n ──> READY n ── datagrams, at the pace of a radio ── SENT n ──> DONE n
                    ↑ in a thread, while      │
                    │ symbols are sent        └── connection lost: every picture without DONE is encoded anew, and sent first
                    └── not before fewer than ``window`` frames are on their way

A frame is never sent twice. A picture that must be sent again is encoded again, with a counter and key stream of its own, so
Eve has nothing to average. A receiver that was started again, which its WELCOME tells, gets frames of a new sender, because
after a crash it refuses counters that it may have seen (docs/keys.md).
"""

import asyncio
import contextlib
import random
import secrets
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from semseal.runtime.defense import mix
from semseal.runtime.errors import SendError, TransportError
from semseal.runtime.frame import Frame
from semseal.runtime.link import Transmitter
from semseal.runtime.net import wire
from semseal.runtime.net.address import send, shown_address, why
from semseal.runtime.net.air import MAX_LATE_S, Simulation
from semseal.runtime.net.identity import sender_context
from semseal.runtime.net.record import Recording
from semseal.runtime.net.sources import Source
from semseal.runtime.net.tally import Tally, reason
from semseal.runtime.net.wire import Hello, Kind, Outcome, Welcome, WireError
from semseal.runtime.trust.linkkeys import LinkKey, LinkKeys

CONNECT_S = 5.0
KEEP_S = 15.0
IDLE_S = 60.0  # for which a receiver may say nothing; it answers every KEEP
PART_S = 10.0
DRAIN_S = 10.0  # for what is on its way when the sender is stopped
FIRST_WAIT_S, MAX_WAIT_S = 0.1, 5.0  # before a connection is tried again, doubled each time
MAX_ATTEMPTS = 5  # of one picture, each on a connection of its own
BURST = 32  # datagrams that leave at once

_ARRIVED = (Outcome.PICTURE, Outcome.AGAIN)
_HANG_UPS = 3  # before anything was said, one after the other: then the other end does not want this one
_SEND_BUFFER_BYTES = 2**21


@dataclass(frozen=True)
class Plan:
    """How frames are sent."""

    host: str
    port: int
    real_bytes: int = 2
    datagram_bytes: int = wire.DATAGRAM_BYTES
    symbol_rate: float = 5e6  # symbols a second, at most
    retry_s: float = 60.0  # for how long no connection may be had


@dataclass(eq=False)
class Flight:
    """A picture that has no answer yet."""

    number: int
    source: Source
    attempts: int = 0
    frame: Frame | None = None
    begun: float = 0.0


@dataclass
class _Connection:
    """What belongs to one connection, and is gone with it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    udp: socket.socket
    window: int
    flights: dict[int, Flight] = field(default_factory=dict)
    ready: "asyncio.Queue[Flight]" = field(default_factory=asyncio.Queue)
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # fewer flights, or no more to come
    leaving: bool = False  # the receiver takes no more frames

    async def change(self) -> None:
        """Wait for the next message, or until the sender is stopped."""
        self.changed.clear()
        await self.changed.wait()


class Speaker:
    """Sends pictures until there are none, or it is stopped."""

    def __init__(
        self,
        transmitter: Transmitter,
        another: Callable[[], Transmitter],
        keys: LinkKeys,
        plan: Plan,
        simulation: Simulation,
        tally: Tally,
        recording: Recording,
        say: Callable[[str], None],
        advance: Callable[[], None],
    ) -> None:
        """``another`` opens one like it; ``say`` is told what went wrong, ``advance`` that a picture is done with."""
        self._transmitter, self._another = transmitter, another
        self._keys, self._plan, self._simulation, self._tally, self._recording = keys, plan, simulation, tally, recording
        self._say, self._advance = say, advance
        bundle = self._transmitter.bundle
        n = mix.padded_size(2 * bundle.n_symbols) // 2 if self._transmitter.defense == "mix" else bundle.n_symbols
        stream = int(time.time()).to_bytes(4, "big") + secrets.token_bytes(wire.STREAM_SIZE - 4)
        count = wire.count_for(n, plan.real_bytes, plan.datagram_bytes)
        self._hello = Hello(bundle.digest, stream, plan.real_bytes, n, count)
        self._instance: bytes | None = None
        self._again: deque[Flight] = deque()
        self._numbers = 0
        self._sources: Iterator[Source] = iter(())
        self._fetching: asyncio.Task[Flight | None] | None = None
        self._connection: _Connection | None = None
        self._stopping = asyncio.Event()
        self._due = 0.0  # when the radio is free again

    @property
    def unsent(self) -> int:
        """Pictures that went wrong, or have no answer."""
        frames = self._tally.frames
        return len(self._again) + sum(frames.values()) - sum(frames[outcome.name.lower()] for outcome in _ARRIVED)

    def stop(self) -> None:
        """Begin no picture, and return when those that are on their way have an answer."""
        self._stopping.set()
        if self._connection is not None:
            self._connection.changed.set()

    async def run(self, sources: Iterator[Source]) -> None:
        """Send them all. Raises TransportError where no connection can be had, SemsealError for keys that may not be used."""
        self._sources = sources
        wait_s, since, hang_ups = FIRST_WAIT_S, time.monotonic(), 0
        while not self._stopping.is_set() and (self._again or await self._seen() is not None):
            key = self._keys.sending()
            self._tally.key = key
            try:
                connection = self._connection = await self._connect(key)
            except (OSError, EOFError, TimeoutError, WireError) as error:
                hang_ups = hang_ups + 1 if isinstance(error, _HUNG_UP) else 0
                self._complain(error, hang_ups, time.monotonic() - since)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s * random.uniform(0.5, 1.0)):  # noqa: S311  many senders, not all at once
                        await self._stopping.wait()
                wait_s = min(2 * wait_s, MAX_WAIT_S)
                continue
            wait_s, hang_ups = FIRST_WAIT_S, 0
            try:
                if await self._serve(connection):
                    await _closed(connection)
                    return
            finally:
                self._connection = None
                connection.udp.close()
                connection.writer.transport.abort()
                since = time.monotonic()
                self._tally.connections = 0
                self._recall(connection)
            if not self._stopping.is_set():
                self._say("the receiver takes no more frames" if connection.leaving else "the connection was lost")

    def _complain(self, error: Exception, hang_ups: int, waited_s: float) -> None:
        """Raises TransportError where trying again is of no use."""
        where = shown_address(self._plan.host, self._plan.port)
        if self._instance is None and hang_ups >= _HANG_UPS:
            raise TransportError(
                f"{where} hangs up: it and this end do not have one key, or it is no semseal receive",
                "give both ends a file of one link: semseal keys peer; what is revoked or over: semseal keys list FILE",
            ) from None
        if self._instance is None and isinstance(error, socket.gaierror):
            raise TransportError(f"{self._plan.host} cannot be looked up: {why(error)}", "check the name") from None
        if waited_s >= self._plan.retry_s:
            raise TransportError(
                f"no connection to {where} for {waited_s:.0f} s: {why(error)}",
                "start semseal receive there, or check the address",
            ) from None
        if not self._tally.refusals["no-connection"]:
            self._say(f"no connection to {where} yet: {why(error)}; trying for {self._plan.retry_s:.0f} s")
        self._tally.refusals["no-connection"] += 1

    async def _connect(self, key: LinkKey) -> _Connection:
        """Raises OSError and the like, and TransportError where the receiver says that it takes no frames of ours."""
        plan = self._plan
        context, name = sender_context(key)
        writer = None
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_connection(
                    plan.host, plan.port, ssl=context, server_hostname=name, limit=4 * wire.MAX_MESSAGE_BYTES
                )
                writer.write(wire.message(Kind.HELLO, self._hello.pack()))
                kind, payload = await wire.read_message(reader, CONNECT_S, CONNECT_S)
            if kind == Kind.REFUSED:
                reason, _, fix = payload.decode(errors="replace").partition("; ")
                raise TransportError(f"{shown_address(plan.host, plan.port)} refuses: {reason}", fix)
            if kind != Kind.WELCOME:
                raise WireError(f"{kind.name} before WELCOME")
            told: Welcome = wire.welcome(payload)
        except BaseException:
            if writer is not None:
                writer.transport.abort()
            raise
        if self._instance not in (None, told.instance):
            self._transmitter = await asyncio.to_thread(self._another)
        self._instance = told.instance
        self._tally.opened += 1
        self._tally.connections = 1
        peer = writer.get_extra_info("peername")
        udp = socket.socket(socket.AF_INET6 if ":" in peer[0] else socket.AF_INET, socket.SOCK_DGRAM)
        udp.setblocking(False)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        udp.connect(peer)
        return _Connection(reader, writer, udp, told.window)

    async def _serve(self, connection: _Connection) -> bool:
        """Send over one connection, until nothing is left (True) or it is lost."""
        tasks = [asyncio.create_task(work(connection)) for work in (self._encode, self._transmit, self._listen, self._keep)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            return tasks[0] in done
        except (OSError, EOFError, TimeoutError, WireError):
            return False
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _recall(self, connection: _Connection) -> None:
        """What is on its way when a connection is lost is sent again, but not for ever."""
        for flight in sorted(connection.flights.values(), key=lambda flight: -flight.number):
            if flight.attempts >= MAX_ATTEMPTS:
                self._given_up(flight.source.what, f"{MAX_ATTEMPTS} connections were lost with it")
            else:
                self._again.appendleft(flight)

    def _given_up(self, what: str, why: str) -> None:
        self._tally.frames["not-sent"] += 1
        self._say(f"{what}: {why}")
        self._advance()

    # what runs beside each other on one connection

    async def _encode(self, connection: _Connection) -> None:
        """Pictures to announced frames, as the window allows; ends when all have an answer."""
        while not (self._stopping.is_set() or connection.leaving):
            if len(connection.flights) >= connection.window:
                await connection.change()
                continue
            flight = self._again.popleft() if self._again else await self._fetched()
            if flight is None:
                break
            connection.flights[flight.number] = flight  # before anything can be cancelled, so that it is not lost
            flight.attempts, flight.frame = flight.attempts + 1, None
            begun = time.monotonic()
            frame = await asyncio.to_thread(self._made, flight.source)
            if isinstance(frame, str):
                del connection.flights[flight.number]
                self._given_up(flight.source.what, frame)
                continue
            flight.frame, flight.begun = frame, begun
            connection.writer.write(wire.frame_message(flight.number, frame.header))
            await connection.writer.drain()
        while connection.flights:
            async with asyncio.timeout(DRAIN_S if self._stopping.is_set() else None):
                await connection.change()
        if connection.leaving and not self._stopping.is_set():
            raise WireError("the receiver takes no more frames")
        connection.writer.write(wire.message(Kind.BYE))

    async def _fetched(self) -> Flight | None:
        """The next picture; the one behind it is read already."""
        flight = await self._seen()
        if flight is not None:
            self._fetching = asyncio.create_task(asyncio.to_thread(self._next))
        return flight

    async def _seen(self) -> Flight | None:
        """The next picture, which is kept. It is read in a thread, also where nobody waits for it any more."""
        if self._fetching is None:
            self._fetching = asyncio.create_task(asyncio.to_thread(self._next))
        return await asyncio.shield(self._fetching)

    def _next(self) -> Flight | None:
        """The next picture that can be read, in a thread."""
        begun = time.thread_time()
        for source in self._sources:
            self._numbers += 1
            self._tally.seconds["read"] += time.thread_time() - begun
            begun = time.thread_time()
            if source.image is not None:
                return Flight(self._numbers - 1, source)
            self._given_up(source.what, source.why)
        return None

    def _made(self, source: Source) -> Frame | str:
        """The frame of a picture, or why there is none; in a thread."""
        begun = time.thread_time()
        assert source.image is not None
        try:
            (frame,) = self._transmitter.send(source.image)
        except SendError as error:
            return error.message
        finally:
            self._tally.seconds["encode"] += time.thread_time() - begun
        self._recording.add(frame.header, frame.symbols)
        self._tally.saw(frame.header)
        return frame

    async def _transmit(self, connection: _Connection) -> None:
        """Symbols of one frame after the other."""
        while True:
            flight = await connection.ready.get()
            frame = flight.frame
            assert frame is not None  # it was announced
            begun = time.thread_time()
            symbols = self._simulation.through(frame.symbols)
            self._tally.seconds["simulate"] += time.thread_time() - begun
            made = wire.datagrams(symbols, frame.header, self._hello.real_bytes, self._hello.datagrams)
            leaving, late = self._simulation.arrange(made)
            await self._pace(connection.udp, leaving)
            if late:
                asyncio.get_running_loop().call_later(random.uniform(0, MAX_LATE_S), send, connection.udp, late)  # noqa: S311
            self._tally.datagrams["sent"] += len(leaving) + len(late)
            self._tally.datagrams["simulated-loss"] += self._hello.datagrams - len(leaving) - len(late)
            connection.writer.write(wire.numbered(Kind.SENT, flight.number))
            await connection.writer.drain()

    async def _pace(self, udp: socket.socket, datagrams: list[bytes]) -> None:
        """Send at the symbol rate, a burst at a time."""
        burst_s = BURST * -(-self._hello.n // self._hello.datagrams) / self._plan.symbol_rate
        for start in range(0, len(datagrams), BURST):
            now = time.monotonic()
            if self._due > now:
                await asyncio.sleep(self._due - now)
            self._due = max(self._due, now - 0.01) + burst_s  # what was missed is made up for 10 ms back
            unsent = send(udp, datagrams[start : start + BURST])
            while unsent:
                await asyncio.sleep(0.001)
                unsent = send(udp, unsent)

    async def _listen(self, connection: _Connection) -> None:
        """What the receiver says."""
        while True:
            kind, payload = await wire.read_message(connection.reader, IDLE_S, PART_S)
            if kind == Kind.READY:
                flight = connection.flights.get(wire.number(payload))
                if flight is not None and flight.frame is not None:
                    connection.ready.put_nowait(flight)
            elif kind == Kind.DONE:
                self._answered(connection, wire.done(payload))
            elif kind == Kind.BYE:
                connection.leaving = True
            elif kind != Kind.KEEP:
                raise WireError(f"{kind.name} from a receiver")
            connection.changed.set()

    def _answered(self, connection: _Connection, done: wire.Done) -> None:
        flight = connection.flights.pop(done.number, None)
        if flight is None:
            raise WireError("an answer to nothing")
        self._tally.frames[done.outcome.name.lower()] += 1
        self._tally.timed(time.monotonic() - flight.begun)
        self._tally.symbols_lost += round(self._hello.n * (1 - min(done.arrived / self._hello.datagrams, 1)))
        if done.outcome not in _ARRIVED:
            self._tally.refusals[reason(done.why)] += 1
            self._say(f"{flight.source.what}: {done.outcome.name.lower()} by the receiver: {done.why}")
        self._advance()

    async def _keep(self, connection: _Connection) -> None:
        while True:
            await asyncio.sleep(KEEP_S)
            connection.writer.write(wire.message(Kind.KEEP))
            await connection.writer.drain()


_HUNG_UP = (ssl.SSLError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError, EOFError, WireError)


async def _closed(connection: _Connection) -> None:
    """Say goodbye, and wait a little for its being taken."""
    connection.writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(1.0):
            await connection.writer.wait_closed()
