"""Results of a benchmark -> the tables in the terminal: no line is longer than 80 characters."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from semseal.runtime.bench.measure import MARGIN, P90_SAMPLES, P99_SAMPLES
from semseal.runtime.bench.results import Comparison, Noise, Results, Row, Where, by_form

COLUMNS = 80
FOOTNOTE = f"p90 wants {P90_SAMPLES} samples, p99 and jitter (p99 - p50) want {P99_SAMPLES}; - where there are fewer."
COLUMN_WIDTHS = {"milliseconds": 17, "p50": 8, "p90": 8, "p99": 8, "max": 8, "jitter": 8, "n": 5, "x floor": 7}


def show(results: Results, console: Console) -> None:
    """Print everything; no line is longer than 80 characters."""
    say = _printer(console)
    for line in machine_lines(results.machine):
        say(line)
    if results.comparisons:
        for comparison in results.comparisons:
            show_comparison(comparison, console)
        return
    for line in ceiling_lines(results.ceilings):
        say(line)
    for noise in results.noise:
        say(noise_line(noise))
    for where, rows in by_form(results.rows).items():
        show_rows(where, rows, console)
    _show_the_rest(results, console)


def _printer(console: Console) -> Any:
    return lambda text: console.print(text, markup=False, highlight=False, width=COLUMNS)


def machine_lines(machine: dict[str, Any]) -> list[str]:
    """The machine, in a few lines."""
    environment = machine["environment"]
    governor = machine["governor"]["value"] or "governor unknown"
    packages = ", ".join(f"{name} {number}" for name, number in environment["packages"].items() if number != "not installed")
    return [
        f"{environment['cpu']}, {machine['cores_for_this_process']} cores, {governor}, load {machine['load_1min']:.2f} to "
        f"{machine['load_1min_after']:.2f}, {machine['steal_share']:.1%} stolen, {machine['idle_share']:.0%} idle",
        packages,
    ]


def ceiling_lines(limits: dict[str, Any]) -> list[str]:
    """What the machine can do, which the floors are made of."""
    copies = ", ".join(f"{rate / 1e9:.1f} GB/s at {_size(size)}" for size, rate in limits["copies"])
    products = [
        f"{precision} {max(rates) / 1e9:.0f}"
        for precision in ("fp32", "fp16", "int8")
        if (rates := [found[precision] for found in limits["products"].values() if found.get(precision)])
    ]
    empty = ", ".join(f"{engine} {seconds * 1e6:.0f} us" for engine, seconds in limits["empty_call_s"].items())
    return [f"copy {copies}", f"matrix product, 10^9 operations a second: {', '.join(products)}; empty call: {empty}"]


def noise_line(noise: Noise) -> str:
    """What A/A found."""
    ratio, limit = noise.ratio, max(noise.reach, MARGIN)
    found = f"ratio {ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
    return f"A/A, the link twice ({noise.where}): {found}; a difference below {limit:.1%} is called none"


def show_rows(where: Where, rows: Sequence[Row], console: Console) -> None:
    """One table for one form."""
    threads = "all cores" if where.threads is None else f"{where.threads} threads"
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name, width in COLUMN_WIDTHS.items():
        table.add_column(name, justify="left" if name == "milliseconds" else "right", no_wrap=True, min_width=width)
    absent: dict[str, list[str]] = {}
    for row in rows:
        if row.time is None:
            absent.setdefault(row.reasons["time"], []).append(row.stage)
            continue
        time = row.time
        figures = [number(value) for value in (time.p50_ms, time.p90_ms, time.p99_ms, time.max_ms, time.jitter_ms)]
        times = "-" if row.times_floor is None else f"{row.times_floor:.1f}"
        table.add_row(row.stage, *figures, str(time.n or "-"), times)
    say = _printer(console)
    console.print()
    say(f"{where}, {threads}")
    console.print(table)
    for reason, names in absent.items():
        say(f"{', '.join(names)}: not measured; {reason}")


def number(value: float | None) -> str:
    """Milliseconds in at most seven characters; a dash for what the samples cannot carry."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def _show_the_rest(results: Results, console: Console) -> None:
    say = _printer(console)
    console.print()
    say(f"{FOOTNOTE} --seconds gives more.")
    at_once = [row for row in results.rows if row.stage == "link" and row.images_per_s and row.where.batch > 1]
    if at_once:
        say(
            f"link, images a second ({_form(at_once[-1].where)}): "
            + ", ".join(f"{row.images_per_s:.0f} at batch {row.where.batch}" for row in at_once)
        )
    for rates in results.rates:
        say(f"send, requests at a fixed rate ({rates.where}), deadline {rates.deadline_ms:g} ms:")
        for found in rates.curve:
            p99 = "-" if found.p99_ms is None else f"{found.p99_ms:.2f}"
            stopped = ", given up" if found.stopped else ""
            times = f"p50 {found.p50_ms:.2f}  p99 {p99} ms"
            say(f"  {found.rate_hz:8.1f}/s  {times}  late {found.late} of {found.requests}{stopped}")
        say(f"  highest rate within it: {rates.reason if rates.highest_hz is None else f'{rates.highest_hz:.1f}/s'}")
    for begun in results.started:
        device = "" if begun.device_bytes is None else f", device {_size(begun.device_bytes)}"
        say(
            f"fresh process ({_form(begun.where)}): import {begun.import_s:.2f} s, load {begun.load_s:.2f} s, first call "
            f"{begun.first_call_s * 1e3:.0f} ms, peak {_size(begun.peak_bytes)}{device}"
        )
    for joules in results.energy:
        found_j = joules.reason if joules.joules_per_image is None else f"{joules.joules_per_image:.3g} J ({joules.counter})"
        say(f"energy for each image: {found_j}")


def _form(where: Where) -> str:
    return f"{where.engine} {where.precision}, {where.defense}"


def _size(count: int) -> str:
    return f"{count / 2**20:.0f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Ratios of both blocks and the verdict for each stage."""
    say = _printer(console)
    console.print()
    say(f"{comparison.where} against {comparison.baseline}")
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in ("time / baseline", "block 1", "block 2", "A/A", "verdict"):
        table.add_column(name, justify="left" if name in ("time / baseline", "verdict") else "right", no_wrap=True)
    for row in comparison.rows:
        blocks = (f"{ratio.value:.3f} ({ratio.low:.2f} {ratio.high:.2f})" for ratio in row.blocks)
        table.add_row(row.stage, *blocks, f"{row.noise:.1%}", row.verdict)
    console.print(table)
    say(
        f"medians of pairs with 95 % intervals; slower or faster: both intervals beyond {comparison.margin:.0%}, and beyond A/A"
    )
