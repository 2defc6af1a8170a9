"""A link in a process of its own (``worker``): what a fresh start costs, its memory, and links of other versions of semseal."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from semseal.runtime.bench.results import Started, Where
from semseal.runtime.environment import compute_capability
from semseal.runtime.errors import EngineError

MAX_MESSAGE = 400  # characters of what a process said before it ended
_NEEDED = "give the python of an environment in which semseal bench works"


class Process:
    """A worker; ``ready`` is its first answer. Close it."""

    def __init__(self, where: Where, owner: str | Path | None = None, python: str | Path = sys.executable) -> None:
        """``python`` is the interpreter of the environment whose semseal is to run. Raises EngineError where it cannot."""
        source = files("semseal.runtime.bench").joinpath("worker.py").read_text()
        asked = {"bundle": where.bundle, "engine": where.engine, "precision": where.precision, "defense": where.defense,
                 "batch": where.batch, "threads": where.threads, "owner": None if owner is None else str(owner)}  # fmt: skip
        environment = dict(os.environ)
        if str(python) != sys.executable:
            environment.pop("PYTHONPATH", None)  # which would bring this version
        self.python = str(python)
        # -c puts the current folder on the path, where a source tree may lie
        command = [self.python, *([] if "PYTHONPATH" in environment else ["-P"]), "-c", source, json.dumps(asked)]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        try:
            self._process = subprocess.Popen(command, text=True, env=environment, **pipes)  # noqa: S603
        except OSError as error:
            raise EngineError(f"{python} cannot be run: {error.strerror}", "give the python of an environment") from None
        self.ready: dict[str, Any] = self._answer()

    def ask(self, line: str) -> Any:
        """The answer to a line. Raises EngineError where the process ended instead."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the reason is read below
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        try:
            return json.loads(line)
        except ValueError:  # no line at all, or that of another program
            self._process.stdout.close()
            said = line.strip() or self._process.stderr.read().strip()
            self.close()
            why, hint = _reason(said)
            raise EngineError(f"{self.python} could not run the link: {why}", hint) from None

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        self._process.wait()


def _reason(said: str) -> tuple[str, str]:
    """What a process complained of, without its traceback, and the fix."""
    lines: list[str] = []
    for line in said.splitlines():
        lines = [] if line.startswith((" ", "Traceback")) else [*lines, line]
    *rest, last = lines or ["it ended"]
    if rest and last.startswith("hint: "):
        return re.sub(r"^semseal[\w.]+: ", "", " ".join(rest))[:MAX_MESSAGE], last.removeprefix("hint: ")
    return " ".join([*rest, last])[:MAX_MESSAGE], _NEEDED


@contextmanager
def opened(where: Where, owner: str | Path | None = None, python: str | Path = sys.executable) -> Iterator[Process]:
    """A worker that is closed at the end."""
    process = Process(where, owner, python)
    try:
        yield process
    finally:
        process.close()


def start(where: Where, owner: str | Path | None, sends: int = 50) -> Started:
    """What it takes to start the link in a fresh process, and its memory after some sends."""
    reasons = {}
    before = _device_bytes()
    with opened(where, owner) as process:
        for _ in range(sends):
            process.ask("link")
        memory, ready = process.ask("memory"), process.ready
        device = None if before is None else (_device_bytes() or 0) - before
    if where.engine in ("onnxruntime-cpu", "openvino"):
        device, reasons["device_bytes"] = None, "the engine runs on the CPU"
    elif device is None:
        reasons["device_bytes"] = "nvidia-smi does not tell"
    return Started(where, ready["import_s"], ready["load_s"], ready["first_call_s"], memory["peak"], memory["resident"],
                   device, reasons)  # fmt: skip


def _device_bytes() -> int | None:
    """Memory in use on the first GPU."""
    if compute_capability() is None:
        return None
    from semseal.runtime.bench.machine import said

    used = said("nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits")["value"]
    return int(used) * 2**20 if used and used.isdigit() else None
