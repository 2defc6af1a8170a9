"""``semseal send`` and ``semseal receive``: the options and the signals. What they do is in ``speaker`` and ``listener``.

No key is taken from the command line or the environment, and none is printed. These processes leave no core.
"""

import asyncio
import ctypes
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from semseal.runtime.channel import CHANNELS
from semseal.runtime.engine import ENGINES
from semseal.runtime.errors import KeyFileError
from semseal.runtime.files import check_writable, shown
from semseal.runtime.net.address import Address, bound, cannot_listen, shown_address
from semseal.runtime.options import (
    BUNDLE,
    FOLDER,
    NEW_FILE,
    POSITIVE,
    PRECISION,
    THREADS,
    NumberRange,
    UserPath,
    example,
    with_options,
)
from semseal.runtime.progress import told

if TYPE_CHECKING:
    from semseal.runtime.net.air import Simulation
    from semseal.runtime.net.tally import Tally

MAX_TOLD = 20  # lines about single pictures; the rest is counted
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # of malloc.h
_KEYS = UserPath(dir_okay=False, path_type=Path)
_LINK = ("engine", "precision", "threads", "owner", "allow_older")


def _both(command: Any) -> Any:
    """The options of both verbs."""
    return with_options(
        command,
        click.option("--engine", type=click.Choice(ENGINES), default="onnxruntime-cpu", show_default=True),
        click.option("--precision", type=PRECISION, default="fp32", show_default=True),
        click.option("--threads", type=THREADS, help="of engines on the CPU  [default: all cores]"),
        click.option("--owner", metavar="KEY", help="public key that signed the bundle, or its file"),
        click.option("--allow-older", is_flag=True, help="take a bundle older than one that was opened here"),
        click.option("--snr", type=NumberRange(-20, 100), metavar="DB", help="simulate noise at this end  [default: none]"),
        click.option("--channel", type=click.Choice(CHANNELS), help="simulate it at this end, with --snr  [default: awgn]"),
        click.option("--loss", type=NumberRange(0, 100), metavar="PERCENT", help="simulate datagrams that are lost"),
        click.option("--seed", type=click.IntRange(0), help="of what is simulated  [default: another each time]"),
        click.option("--record", type=NEW_FILE, metavar="FILE", help="also write the symbols, as SigMF"),
        click.option("--metrics", type=Address(), metavar="HOST:PORT", help="serve /metrics for Prometheus there"),
    )


@click.command(
    epilog=example(
        "semseal send edge photographs --keys alice.key --to 192.0.2.7:7000",
        "semseal send edge clip.mp4 --keys alice.key --to 127.0.0.1:7000 --snr 10 --loss 2",
    )
)
@click.argument("bundle", type=BUNDLE, metavar="BUNDLE")
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURES...", type=UserPath(path_type=Path))
@click.option("--keys", required=True, type=_KEYS, metavar="FILE", help="key file of this end: semseal keygen makes one")
@click.option("--to", "address", required=True, type=Address(lowest_port=1), metavar="HOST:PORT", help="of semseal receive")
@click.option("--defense", type=click.Choice(["mix", "none"]), default="mix", show_default=True)
@click.option(
    "--symbols", type=click.Choice(["float16", "float32"]), default="float16", show_default=True, help="as datagrams carry them"
)
@click.option("--datagram-bytes", type=click.IntRange(64, 8972), default=1200, show_default=True, help="at most")
@click.option("--symbol-rate", type=POSITIVE, default=5e6, show_default=True, metavar="HZ", help="symbols a second, at most")
@click.option("--reorder", is_flag=True, help="simulate datagrams that arrive in another order")
@click.option("--retry", type=NumberRange(0), default=60.0, show_default=True, metavar="SECONDS", help="without a receiver")
@_both
def send(bundle: str, pictures: tuple[Path, ...], keys: Path, address: tuple[str, int], **asked: Any) -> None:
    """Send pictures, folders of pictures, or videos to semseal receive.

    BUNDLE is a folder, or edge, edge-quality, photos-10db for those that are packaged. Headers go over TCP with TLS 1.3, where
    both ends prove that they have the key; symbols go over UDP, and may be lost. Exit code 1 if a picture did not arrive.
    Ctrl-C ends it when what is on its way is answered; a second one at once.
    """
    from semseal.runtime.link import Transmitter
    from semseal.runtime.net import sources
    from semseal.runtime.net.record import Recording
    from semseal.runtime.net.speaker import Plan, Speaker
    from semseal.runtime.net.tally import Tally
    from semseal.runtime.trust.linkkeys import LinkKeys
    from semseal.runtime.trust.privatefile import leave_no_core

    leave_no_core()
    _keep_memory_flat()
    _check_simulation(asked)
    _check_regular(keys)
    files, left_out = sources.listed(pictures)
    tally, used = Tally("sender"), {name: asked[name] for name in (*_LINK, "defense")}

    def opened() -> Transmitter:
        return Transmitter(bundle, keys, **used)

    transmitter = opened()
    model, real_bytes = transmitter.bundle, 2 if asked["symbols"] == "float16" else 4
    plan = Plan(*address, real_bytes, asked["datagram_bytes"], asked["symbol_rate"], asked["retry"])
    read = sources.pictures(files, model.height, model.width)
    total = len(files) if all(sources.is_picture(path) for path in files) else None
    begun = time.monotonic()
    with _Told("send", total) as shown_to, Recording(asked["record"], "sender", model.name) as recording:
        for path, why in left_out.items():
            shown_to.say(f"{path}: {why}")
        simulation = _simulation(asked, model.has_scale)
        link_keys = LinkKeys(keys, sends=True)
        speaker = Speaker(transmitter, opened, link_keys, plan, simulation, tally, recording, shown_to.say, shown_to.advance)
        ended_by = _run(speaker.run(read), speaker.stop, tally, asked["metrics"])
    click.echo(_summary(tally, time.monotonic() - begun))
    if ended_by is not None:
        raise KeyboardInterrupt
    if speaker.unsent:
        click.echo(f"error: {speaker.unsent} of the pictures did not arrive", err=True)
        sys.exit(1)


@click.command(
    epilog=example(
        "semseal receive edge --keys bob.key --listen 0.0.0.0:7000 --out pictures",
        "semseal receive edge --keys bob.key --listen 127.0.0.1:7000 --out pictures --metrics 127.0.0.1:9100",
    )
)
@click.argument("bundle", type=BUNDLE, metavar="BUNDLE")
@click.option("--keys", required=True, type=_KEYS, metavar="FILE", help="key file of this end: semseal keys peer makes it")
@click.option("--listen", "address", required=True, type=Address(), metavar="HOST:PORT", help="TCP and UDP; port 0: any")
@click.option("--out", "folder", required=True, type=FOLDER, metavar="DIR", help="folder of the pictures")
@click.option(
    "--state", type=NEW_FILE, metavar="FILE", help="what was received before  [default: beside the keys, FILE.replay]"
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="end after so many pictures")
@_both
def receive(bundle: str, keys: Path, address: tuple[str, int], folder: Path, **asked: Any) -> None:
    """Receive pictures from any number of semseal send, and write them to a folder.

    BUNDLE is a folder, or edge, edge-quality, photos-10db for those that are packaged. Ctrl-C or SIGTERM ends it when what
    is on its way is decoded; a second one at once.
    """
    from semseal.runtime.net.identity import receiver_context
    from semseal.runtime.net.listener import Listener
    from semseal.runtime.net.record import Recording
    from semseal.runtime.net.tally import Tally
    from semseal.runtime.receiver import Receiver
    from semseal.runtime.trust.linkkeys import LinkKeys
    from semseal.runtime.trust.privatefile import leave_no_core

    leave_no_core()
    _keep_memory_flat()
    _check_simulation(asked)
    _check_regular(keys)
    link_keys = LinkKeys(keys, sends=False)
    state = asked["state"] or (keys.with_name(keys.name + ".replay") if link_keys.in_keyset else None)
    if state is not None and not link_keys.in_keyset:
        raise click.UsageError("--state needs a keyset, which semseal keygen makes; --keys is a key file of the old form")
    check_writable(folder / "picture")
    tcp, udp = bound(*address)
    with tcp, udp:
        receiver = Receiver(bundle, keys, state=state, **{name: asked[name] for name in _LINK})
        folder.mkdir(parents=True, exist_ok=True)
        tally = Tally("receiver", key=next(iter(link_keys.receiving()), None))
        begun, name = time.monotonic(), receiver.bundle.name
        with _Told("receive", asked["count"]) as shown_to, Recording(asked["record"], "receiver", name) as recording:
            simulation = _simulation(asked, receiver.bundle.has_scale)
            context = receiver_context(link_keys)
            listener = Listener(
                receiver, context, folder, simulation, tally, asked["count"], recording, shown_to.say, shown_to.advance
            )
            where = shown_address(*tcp.getsockname()[:2])
            click.echo(f"listening at {where}, TCP and UDP; pictures go to {shown(folder)}")
            ended_by = _run(listener.run(tcp, udp), listener.stop, tally, asked["metrics"])
    click.echo(_summary(tally, time.monotonic() - begun))
    if ended_by == signal.SIGINT:
        raise KeyboardInterrupt


def _keep_memory_flat() -> None:
    """Large blocks go back to the system when they are freed, and threads share the rest (glibc).

    Else a receiver grows by 2 KB with every picture, for as long as was measured: threads allocate what others free.
    """
    with suppress(AttributeError):  # another C library
        library = ctypes.CDLL(None)
        library.mallopt(_M_ARENA_MAX, 1)
        library.mallopt(_M_MMAP_THRESHOLD, 2**16)


def _check_simulation(asked: dict[str, Any]) -> None:
    if asked["channel"] is not None and asked["snr"] is None:
        raise click.UsageError("--channel needs --snr: without noise there is no channel")


def _check_regular(keys: Path) -> None:
    """Raises KeyFileError for a pipe, which could be read but once."""
    if keys.exists() and not keys.is_file():
        raise KeyFileError(f"{shown(keys)} is not a regular file", "name a key file; a pipe or a device is none")


def _simulation(asked: dict[str, Any], unbiased: bool) -> "Simulation":
    from semseal.runtime.net.air import Air, Simulation

    loss = (asked["loss"] or 0) / 100
    return Simulation(Air(asked["snr"], asked["channel"] or "awgn", loss, asked.get("reorder", False), asked["seed"]), unbiased)


def _run(
    work: Coroutine[Any, Any, None], stop: Callable[[], None], tally: "Tally", metrics: tuple[str, int] | None
) -> signal.Signals | None:
    """Run until the work is done, and return the signal that it was stopped by; a second one cuts it off."""
    from semseal.runtime.net.tally import serve_metrics

    received: list[signal.Signals] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(work)

        def stopped(by: signal.Signals) -> None:
            received.append(by)
            stop() if len(received) == 1 else task.cancel()

        for by in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(by, stopped, by)
        server = None
        try:
            if metrics is not None:
                try:
                    server = await serve_metrics(tally, *metrics)
                except OSError as error:
                    raise cannot_listen(*metrics, error) from None
                click.echo(f"metrics at http://{shown_address(*server.sockets[0].getsockname()[:2])}/metrics")
            await task
        except asyncio.CancelledError:
            if len(received) < 2:
                raise
        finally:
            task.cancel()
            if server is not None:
                server.close()

    asyncio.run(main())
    return received[0] if received else None


class _Told:
    """Progress on stderr, and lines about single pictures, of which there are not more than can be read."""

    def __init__(self, verb: str, total: int | None) -> None:
        count = MofNCompleteColumn() if total else TextColumn("{task.completed:.0f}")
        columns = (TextColumn("{task.description}"), *((BarColumn(),) if total else ()), count, TextColumn("pictures"))
        self._progress = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True, emoji=False), transient=True)
        self._task = self._progress.add_task(verb, total=total, counted=True)
        self._teller, self._lines = told(self._progress), 0

    def __enter__(self) -> "_Told":
        if self._progress.console.is_terminal:
            self._progress.start()
        self._teller.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._teller.__exit__(kind, error, trace)
        if self._progress.live.is_started:
            self._progress.stop()
        if self._lines > MAX_TOLD:
            click.echo(f"and {self._lines - MAX_TOLD} more such lines", err=True)

    def advance(self) -> None:
        self._progress.advance(self._task)

    def say(self, line: str) -> None:
        self._lines += 1
        if self._lines <= MAX_TOLD:
            self._progress.console.print(shown(line), markup=False, highlight=False, soft_wrap=True)


def _summary(tally: "Tally", seconds: float) -> str:
    frames, taken = tally.frames, sum(tally.frames.values())
    others = "".join(f", {count} {outcome}" for outcome, count in sorted(frames.items()) if outcome != "picture" and count)
    line = f"{frames['picture']} pictures{others} in {seconds:.1f} s"
    if tally.latencies_s:
        middle, high = tally.percentiles_s()
        line += f"; latency {1e3 * middle:.0f} ms (median), {1e3 * high:.0f} ms (99th percentile)"
    if tally.symbols_lost:
        line += f"; {tally.symbols_lost} symbols lost, {tally.symbols_lost // max(taken, 1)} a picture"
    return line
