"""The program in a process of its own, forked from one that has imported what its verbs need: that takes seconds each time."""

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["semseal.runtime.cli", "semseal.runtime.audit.run", "semseal.train.fit", "semseal.export.bundle", "semseal.export.triton"]
)


def semseal(*args: Any, cwd: Path | None = None, timeout_s: float = 300) -> CompletedProcess[str]:
    """``semseal ARGS`` to its end, with this process's environment."""
    command = ["semseal", *map(str, args)]
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / name for name in ("out", "err")]
        process = SERVER.Process(target=_run, args=(command, cwd or Path.cwd(), dict(os.environ), *said))
        process.start()
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
            raise TimeoutError(f"{command} takes more than {timeout_s} s")
        return CompletedProcess(command, process.exitcode, *(file.read_text() for file in said))


def _run(command: list[str], cwd: Path, environment: dict[str, str], out: Path, err: Path) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((0, os.devnull), (1, out), (2, err)):
        file = os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    sys.argv = command
    from semseal.runtime.cli import main

    main()
