"""The figures of a benchmark's page, as SVG: what a link spends its time on, how times spread, and where the limits lie."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from semseal.runtime.bench.results import Rates, Row
from semseal.runtime.svg import DASHES, FONT_PX, HUES, INK, PALE_INK, RC, RULE, name_rows, new_figure, svg

NAME_PX = 112
MARKS = "os^Dv"
# in the order in which they happen; a form has some of them
SENDING = ("keys", "index", "transmitter", "power", "header", "send, the rest")
RECEIVING = ("header open", "keys back", "index back", "receiver")
KINDS = {"network": HUES[0], "defence": HUES[1], "channel": HUES[2], "the rest": RULE}
_KIND = {
    "transmitter": "network",
    "receiver": "network",
    "channel": "channel",
    "send, the rest": "the rest",
    "receive, the rest": "the rest",
}


@rc_context(RC)
def waterfall(rows: Sequence[Row]) -> str:
    """The stages of one link one after the other, by their medians."""
    p50 = {row.stage: row.time.p50_ms for row in rows if row.time is not None}
    rest = p50.get("receive", 0.0) - sum(p50.get(stage, 0.0) for stage in RECEIVING)
    steps = [(stage, max(p50[stage], 0.0)) for stage in (*SENDING, "channel", *RECEIVING) if stage in p50]
    steps.append(("receive, the rest", max(rest, 0.0)))
    figure, axes = new_figure(56 + 24 * len(steps), left=NAME_PX + 12, right=52)
    start = 0.0
    total = sum(taken for _, taken in steps)
    for i, (stage, taken) in enumerate(steps):
        colour = KINDS[_KIND.get(stage, "defence")]
        axes.barh(i, max(taken, total / 400), left=start, height=0.62, color=colour)
        axes.annotate(_short(taken), (start + taken, i), (5, 0), textcoords="offset points", va="center", color=INK,
                      annotation_clip=False)  # fmt: skip
        start += taken
    name_rows(axes, [stage for stage, _ in steps])
    axes.set_xlim(0, total)
    axes.set_xlabel("milliseconds", color=PALE_INK)
    return svg(figure)


@rc_context(RC)
def spread(lines: Mapping[str, Sequence[float]]) -> str:
    """The share of samples that took at most so long, on an axis where the last hundredth can be seen."""
    figure, axes = new_figure(300, left=44, right=16, top=30 + 19 * len(lines))
    shares = np.linspace(0, 1, 101)
    for i, (name, quantiles) in enumerate(lines.items()):
        colour, dashes = _style(i)
        tail = -np.log10(np.maximum(1 - shares, 0.005))
        axes.plot(quantiles, tail, dashes, color=colour, linewidth=1.6, label=name)
    _legend(axes)
    axes.set_xscale("log")
    axes.set_yticks([0, 0.30103, 1, 2], ["0 %", "50 %", "90 %", "99 %"])
    axes.set_ylim(0, 2.31)
    _plain_ticks(axes.xaxis)
    axes.set_xlabel("milliseconds", color=PALE_INK)
    return svg(figure)


@rc_context(RC)
def throughput(batches: Sequence[int], images_per_s: Sequence[float]) -> str:
    """Images a second over the images that go through at once."""
    figure, axes = new_figure(260, left=58, right=24, top=30)
    axes.plot(batches, images_per_s, "-o", color=HUES[0], linewidth=1.6, markersize=6, clip_on=False)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(batches), [str(batch) for batch in batches])
    axes.minorticks_off()
    axes.set_ylim(0, 1.15 * max(images_per_s))
    axes.set_title("images a second", loc="left", fontsize=FONT_PX, color=PALE_INK)
    axes.set_xlabel("images at once", color=PALE_INK)
    return svg(figure)


@rc_context(RC)
def request_rates(rates: Rates) -> str:
    """Latency over the rate of requests, beside what a closed loop would have said, and the deadline."""
    figure, axes = new_figure(300, left=52, right=24, top=30 + 3 * 19)
    at = [found.rate_hz for found in rates.curve]
    lines: dict[str, list[Any]] = {
        "p99, from when a request was due": [found.p99_ms for found in rates.curve],
        "p50, from when a request was due": [found.p50_ms for found in rates.curve],
        "p99 of a loop that waits": [found.service_p99_ms for found in rates.curve],
    }
    for i, (name, values) in enumerate(lines.items()):
        colour, dashes = _style(i)
        there = [(rate, value) for rate, value in zip(at, values, strict=True) if value is not None]
        if there:
            axes.plot(*zip(*there, strict=True), dashes, marker="o", color=colour, linewidth=1.6, markersize=5, clip_on=False,
                      label=name)  # fmt: skip
    _legend(axes)
    axes.axhline(rates.deadline_ms, color=RULE, linestyle=(0, (5, 4)), linewidth=1)
    axes.set_yscale("log")
    low = min(value for values in lines.values() for value in values if value is not None)
    high = max(value for values in lines.values() for value in values if value is not None)
    axes.set_ylim(low / 1.5, max(high, rates.deadline_ms) * 1.6)
    axes.annotate("deadline", (1, rates.deadline_ms), (0, 3), xycoords=("axes fraction", "data"), ha="right",
                  textcoords="offset points", color=PALE_INK)  # fmt: skip
    _plain_ticks(axes.yaxis)
    axes.set_xlabel("requests a second; latency in milliseconds", color=PALE_INK)
    return svg(figure)


@rc_context(RC)
def roofline(rows: Sequence[Row], ceilings: Mapping[str, Any]) -> str:
    """Operations a second over operations for each byte, below the roof of this machine: bandwidth, then arithmetic."""
    figure, axes = new_figure(340, left=58, right=24, top=36 + 19 * len(rows))
    bandwidth = ceilings["copies"][-2][1]
    intensity = np.logspace(0, 4, 100)
    for precision in ("fp32", "int8"):
        peaks = [found[precision] for found in ceilings["products"].values() if found.get(precision)]
        if peaks:
            axes.plot(intensity, np.minimum(intensity * bandwidth, max(peaks)) / 1e9, color=RULE, linewidth=1)
            axes.annotate(
                precision, (intensity[-1], max(peaks) / 1e9), (0, 3), textcoords="offset points", ha="right", color=PALE_INK
            )
    for i, row in enumerate(rows):
        assert row.time is not None
        assert row.operations is not None
        assert row.bytes is not None
        colour = HUES[i % len(HUES)]
        done = row.operations / (row.time.p50_ms / 1e3) / 1e9
        name = f"{row.where.engine} {row.where.precision}, {row.stage}"
        axes.plot(
            [row.operations / row.bytes], [done], MARKS[i // len(HUES) % len(MARKS)], color=colour, markersize=7, label=name
        )
    _legend(axes)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain_ticks(axes.yaxis)
    _plain_ticks(axes.xaxis, (1.0,))
    axes.set_title("10⁹ operations a second", loc="left", fontsize=FONT_PX, color=PALE_INK)
    axes.set_xlabel("operations for each byte", color=PALE_INK)
    axes.minorticks_off()
    return svg(figure)


@rc_context(RC)
def scaling(points: Mapping[str, Sequence[tuple[float, float]]], label: str) -> str:
    """Milliseconds over a size on logarithmic axes; the lines are the fitted powers."""
    figure, axes = new_figure(300, left=52, right=24, top=30 + 19 * len(points))
    for i, (name, pairs) in enumerate(points.items()):
        colour, dashes = _style(i)
        x, y = np.array(pairs).T
        slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
        axes.plot(x, np.exp(intercept) * x**slope, dashes, color=colour, linewidth=1.2)
        axes.plot(x, y, "o", color=colour, markersize=5, label=f"{name}: power {slope:.2f}")
    _legend(axes)
    axes.set_xscale("log")
    axes.set_yscale("log")
    sizes = sorted({size for pairs in points.values() for size, _ in pairs})
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.minorticks_off()
    _plain_ticks(axes.yaxis)
    axes.set_xlabel(f"{label}; milliseconds", color=PALE_INK)
    return svg(figure)


def _style(i: int) -> tuple[str, str]:
    return HUES[i % len(HUES)], DASHES[i // len(HUES) % len(DASHES)]


def _legend(axes: Axes) -> None:
    """Above the axes, a line for each name."""
    axes.legend(loc="upper left", bbox_to_anchor=(0, 1), bbox_transform=axes.figure.transFigure, frameon=False, borderpad=0,
                handlelength=1.6, handletextpad=0.6, labelspacing=0.3, fontsize=FONT_PX, labelcolor=INK)  # fmt: skip


def _plain_ticks(axis: Any, of_ten: tuple[float, ...] = (1.0, 2.0, 5.0)) -> None:
    """1, 2, 5, 10 and so on, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(10, of_ten, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _short(taken: float) -> str:
    return f"{taken:.2f}" if taken >= 0.1 else f"{taken:.3f}"
