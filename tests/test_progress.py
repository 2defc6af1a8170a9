"""What a person sees of long work whose output goes to a file."""

import io
import threading
from contextlib import redirect_stderr

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn
from semseal.runtime.progress import line, stages, told

ENOUGH = 10.0  # seconds to wait for what comes at once, before a test fails


class Watched(io.StringIO):
    """A stream that says when something was written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.there = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        self.there.set()
        return written


def progress(terminal: bool) -> Progress:
    console = Console(file=io.StringIO(), force_terminal=terminal)
    return Progress(TextColumn("{task.description}"), console=console, transient=True)


def test_where_no_bar_can_be_drawn_lines_say_what_is_done():
    with redirect_stderr(Watched()) as errors, progress(False) as bar, told(bar, every_s=0.01):
        task = bar.add_task("audit", total=10)
        bar.update(task, completed=4, description="no-key, mix")
        assert errors.there.wait(ENOUGH)
        errors.there.clear()
        assert errors.there.wait(ENOUGH)  # and again
    lines = errors.getvalue().splitlines()
    assert any(text.startswith("no-key, mix: 40 %, ") and " so far, " in text for text in lines)
    before = errors.getvalue()
    errors.there.clear()
    assert not errors.there.wait(0.1)  # nothing once it is over
    assert errors.getvalue() == before


def test_a_terminal_has_its_bar_and_no_lines():
    bar = progress(True)
    with redirect_stderr(Watched()) as errors, told(bar, every_s=0.01):
        bar.add_task("audit", total=10)
        assert not errors.there.wait(0.2)


def test_the_lines_end_with_an_error_too():
    with pytest.raises(ValueError, match="broken"), redirect_stderr(Watched()), progress(False) as bar, told(bar, every_s=0.01):
        raise ValueError("broken")
    assert "semseal-progress" not in {thread.name for thread in threading.enumerate()}


def test_steps_are_counted_and_time_is_estimated():
    clock = iter(range(0, 1000, 10))
    bar = Progress(console=Console(file=io.StringIO()), get_time=lambda: float(next(clock)))
    task = bar.add_task("train", total=40, counted=True, shown="PSNR 20.00 dB  31 pictures/s")
    assert line(bar.tasks[0]).endswith("time left not known yet")
    for _ in range(4):
        bar.update(task, advance=5)
    text = line(bar.tasks[0])
    assert text.startswith("train: 20 of 40, PSNR 20.00 dB  31 pictures/s, ")
    assert "about " in text
    assert text.endswith(" left")


def test_work_in_parts_says_which_part_it_is_at(monkeypatch):
    monkeypatch.setattr("semseal.runtime.progress.EVERY_S", 0.01)
    with redirect_stderr(Watched()) as errors, stages("export") as tell:
        tell("graphs in fp32, int8", 1, 2)
        assert errors.there.wait(ENOUGH)
        tell("parity", 2, 2)
        for _ in range(1000):
            errors.there.clear()
            assert errors.there.wait(ENOUGH)
            if "part 2 of 2" in errors.getvalue():
                break
    assert "export: part 1 of 2, graphs in fp32, int8, 0 s so far" in errors.getvalue()
    assert "export: part 2 of 2, parity, " in errors.getvalue()
