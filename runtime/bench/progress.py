"""What is being done and how long it will take, on stderr: never silent for more than ten seconds, and no work between samples.

A thread of its own prints, once a second on a terminal (one line, over itself) and every five seconds elsewhere.
"""

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType


class Progress:
    """Steps by name with the seconds that each is expected to take."""

    def __init__(self, steps: Mapping[str, float], quiet: bool = False) -> None:
        self._steps, self._quiet = dict(steps), quiet
        self._total = sum(steps.values()) or 1.0
        self._done, self._name, self._part = 0.0, "", 0.0
        self._begun, self._end = time.monotonic(), threading.Event()
        self._terminal = sys.stderr.isatty()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Progress":
        if not self._quiet:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        if not self._quiet:
            self._thread.join()
        if self._terminal and not self._quiet:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A step that is done when this ends."""
        self._name, self._part = name, 0.0
        try:
            yield
        finally:
            self._done += self._steps.get(name, 0.0)
            self._part = 0.0

    def tell(self, part: float) -> None:
        """How much of the step is done, 0..1."""
        self._part = part

    def line(self) -> str:
        """What is said now."""
        done = min((self._done + self._part * self._steps.get(self._name, 0.0)) / self._total, 1.0)
        spent = time.monotonic() - self._begun
        left = max(spent * (1 - done) / done if done > 0.1 else self._total * (1 - done), 0.0)
        return f"{100 * done:3.0f} %  {self._name}, about {left // 60:.0f}:{left % 60:02.0f} left"

    def _run(self) -> None:
        while not self._end.wait(1.0 if self._terminal else 5.0):
            print(f"\r\033[K{self.line()[:79]}" if self._terminal else self.line(), end="" if self._terminal else "\n",
                  file=sys.stderr, flush=True)  # fmt: skip
