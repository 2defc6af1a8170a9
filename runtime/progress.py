"""Long work is never silent: where no bar can be drawn, a line a minute says what is done and how much time is left.

Progress ── terminal ── its bar           no terminal (a file, a pipe, a CI job) ── lines on stderr
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import Progress, Task, TextColumn, TimeElapsedColumn

EVERY_S = 60.0

Stage = Callable[[str, int, int], None]  # what is being done now, and that it is part i of n


@contextmanager
def told(progress: Progress, every_s: float | None = None) -> Iterator[None]:
    """While inside, and where the console of ``progress`` is no terminal, tell of its last task every ``every_s`` seconds.

    None: every minute."""
    if progress.console.is_terminal or progress.disable:
        yield
        return
    over = threading.Event()

    def tell() -> None:
        while not over.wait(EVERY_S if every_s is None else every_s):
            if progress.tasks:
                print(line(progress.tasks[-1]), file=sys.stderr, flush=True)

    teller = threading.Thread(target=tell, name="semseal-progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def line(task: Task) -> str:
    """What is done of a task, since when, and how much time is left."""
    elapsed = task.elapsed or 0.0
    done = (
        f"{task.completed:.0f} of {task.total:.0f}" if task.fields.get("counted") and task.total else f"{task.percentage:.0f} %"
    )
    shown = f", {task.fields['shown']}" if task.fields.get("shown") else ""
    if task.total is None:
        return f"{task.description}{shown}, {_minutes(elapsed)} so far"
    left = task.time_remaining
    after = "time left not known yet" if left is None else f"about {_minutes(left)} left"
    return f"{task.description}: {done}{shown}, {_minutes(elapsed)} so far, {after}"


@contextmanager
def stages(name: str) -> Iterator[Stage]:
    """A spinnerless line for work in parts whose time nobody knows."""
    columns = (TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, transient=True) as progress, told(progress):
        task = progress.add_task(name, total=None)
        yield lambda what, i, n: progress.update(task, description=f"{name}: part {i} of {n}, {what}")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
