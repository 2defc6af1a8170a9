"""Real processes of ``semseal send`` and ``semseal receive`` on this machine, and a sender that says what a test wants."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from semseal.runtime.net import wire
from semseal.runtime.net.identity import sender_context
from semseal.runtime.net.wire import Hello, Kind
from semseal.runtime.trust.linkkeys import LinkKeys

PROGRAM = (sys.executable, "-c", "from semseal.runtime.cli import main; main()")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TIMEOUT_S = 20
_running: list[subprocess.Popen] = []


class Bob:
    """A process of ``semseal receive``, at a port that is free."""

    def __init__(self, folder: Path, keys: Path, *options: str, bundle: str = "edge", port: int = 0) -> None:
        self.out, self.log = folder / "received", folder / "bob.log"
        self.keys = keys
        command = [*PROGRAM, "receive", bundle, "--keys", keys, "--listen", f"127.0.0.1:{port}", "--out", self.out]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [*map(str, command), *options, "--metrics", "127.0.0.1:0", "--threads", "1"],
                stdout=log,
                stderr=log,
                env=ENVIRONMENT,
            )
        found = self.says(r"listening at 127\.0\.0\.1:(\d+)")
        self.port, self.to = int(found), f"127.0.0.1:{found}"
        self.metrics_port = int(self.says(r"metrics at http://127\.0\.0\.1:(\d+)/metrics"))

    def __enter__(self) -> "Bob":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def says(self, pattern: str) -> str:
        """Wait for a line, and give what is in its brackets."""
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end:
            if found := re.search(pattern, self.log.read_text()):
                return found[1]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError(self.log.read_text())

    def end(self, by: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(by)
        return self.process.wait(TIMEOUT_S)

    def pictures(self) -> list[np.ndarray]:
        """uint8 [height, width, 3], in the order of their names."""
        return [np.asarray(Image.open(path)) for path in sorted(self.out.glob("*.png"))]

    def numbers(self) -> list[int]:
        return [int(path.stem.rpartition("-")[2]) for path in sorted(self.out.glob("*.png"))]

    def wait_for(self, count: int) -> None:
        """Until so many pictures arrived."""
        end = time.monotonic() + TIMEOUT_S
        while len(self.numbers()) < count:
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.01)

    def metrics(self) -> dict[tuple[str, str], float]:
        """(name, value of its label) -> value, by the parser of the client library."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=TIMEOUT_S) as answer:
            text = answer.read().decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {(sample.name, next(iter(sample.labels.values()), "")): sample.value for sample in samples}


def alice(bob_at: str, keys: Path, *pictures: Path, options: tuple[str, ...] = (), bundle: str = "edge") -> subprocess.Popen:
    """A process of ``semseal send``."""
    command = ("send", bundle, *pictures, "--keys", keys, "--to", bob_at, "--threads", "1")
    return program(*command, *options)


def program(*command: object) -> subprocess.Popen:
    """A process of the program, which does not outlive the test (``end_all``)."""
    words = [*PROGRAM, *map(str, command)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    _running.append(process)
    return process


def end_all() -> None:
    while _running:
        process = _running.pop()
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """The exit code, and what was printed and complained."""
    out, complaints = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, out, complaints


def write_pictures(folder: Path, count: int, side: int = 180) -> list[np.ndarray]:
    """Smooth pictures as PNG, as large as the packaged models take them; uint8 [side, side, 3]."""
    folder.mkdir(exist_ok=True)
    made = []
    for i in range(count):
        y, x = np.mgrid[0:side, 0:side] / side
        waves = [128 + 100 * np.sin((i + 2) * x + k) * np.cos(3 * y - i) for k in range(3)]
        made.append(np.stack(waves, axis=2).astype(np.uint8))
        Image.fromarray(made[-1]).save(folder / f"{i:03d}.png")
    return made


class Hand:
    """A connection that is made by hand, by somebody who has the key or not."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        self.reader, self.writer = reader, writer
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.connect(("127.0.0.1", port))

    @classmethod
    async def at(cls, port: int, keys: Path) -> "Hand":
        context, name = sender_context(LinkKeys(keys, sends=True).sending())
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name), port)

    async def hello(self, told: Hello) -> tuple[Kind, bytes]:
        self.writer.write(wire.message(Kind.HELLO, told.pack()))
        return await self.read()

    async def read(self) -> tuple[Kind, bytes]:
        return await wire.read_message(self.reader, TIMEOUT_S, TIMEOUT_S)

    async def send(self, number: int, frame, told: Hello) -> wire.Done:
        """A frame, and what became of it."""
        self.writer.write(wire.frame_message(number, frame.header))
        assert await self.read() == (Kind.READY, number.to_bytes(8, "little"))
        for data in wire.datagrams(frame.symbols, frame.header, told.real_bytes, told.datagrams):
            self.udp.send(data)
        self.writer.write(wire.numbered(Kind.SENT, number))
        kind, payload = await self.read()
        assert kind == Kind.DONE
        return wire.done(payload)

    async def is_hung_up(self) -> bool:
        with contextlib.suppress(OSError):
            async with asyncio.timeout(TIMEOUT_S):
                while await self.reader.read(4096):
                    pass
        return True

    def close(self) -> None:
        self.udp.close()
        self.writer.transport.abort()
