"""Leakage over Eve's SNR as small SVG figures for a page: one panel for each defence, 95 % intervals, names at the lines.

Several SNRs give lines with bands; with a single one every attack has its line in a dot plot. One unit is one CSS pixel.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from semseal.runtime.audit.attacks import ATTACKS
from semseal.runtime.audit.results import CHANNEL_TITLES, AirRow
from semseal.runtime.audit.settings import snr_name
from semseal.runtime.defense.defenses import DEFENSES
from semseal.runtime.svg import DASHES, FONT_PX, HUES, INK, PALE_INK, RC, RULE, name_rows, new_figure, svg

NAME_PX = 116  # of the longest name of a defence or a channel
LETTER_PX = 7.6  # on average, in a wide font


@dataclass(frozen=True)
class Style:
    """How a line and its marks are drawn."""

    colour: str
    dashes: str = "-"


def _styles(names: Sequence[str]) -> dict[str, Style]:
    return {name: Style(HUES[i % len(HUES)], DASHES[i // len(HUES) % len(DASHES)]) for i, name in enumerate(names)}


ATTACK_STYLES = {"Bob": Style(INK), **_styles([attack.name for attack in ATTACKS if not attack.game])}
CHANNEL_STYLES = _styles(tuple(CHANNEL_TITLES.values()))
DEFENSE_STYLES = {DEFENSES[0].short: Style(INK), **_styles([defense.short for defense in DEFENSES[1:]])}


@dataclass(frozen=True)
class Point:
    """A value with the ends of its 95 % interval; ``snr`` is Eve's, None for Bob, but where it is said to be his."""

    name: str
    snr: float | None
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class CostPoint:
    """What a defence leaks, with the ends of its 95 % interval, at what it costs Bob in dB."""

    name: str
    cost: float
    value: float
    low: float
    high: float


@rc_context(RC)
def advantages(
    points: Sequence[Point], void: Sequence[str], names: Sequence[str], snrs: Sequence[float], ends: tuple[float, float]
) -> str:
    """One panel: the matching advantage in dB of Bob and of each attack; an Eve who learned nothing is at zero.

    ``names`` are the lines of a dot plot, the same in every panel; ``ends`` are those of the axis.
    """
    name_px = max(NAME_PX, math.ceil(LETTER_PX * max(map(len, names))) + 10)
    if len(snrs) == 1:
        figure, axes = new_figure(46 + 24 * len(names), left=name_px, right=14)
        axes.axvline(0, color=RULE, linestyle=(0, (5, 4)), linewidth=1)
        for point in points:
            _dot(axes, point, names.index(point.name), ATTACK_STYLES[point.name])
        for name in void:
            axes.annotate("void", (ends[0], names.index(name)), (6, 0), textcoords="offset points", va="center",
                          color=PALE_INK, style="italic")  # fmt: skip
        there = {*void, *(point.name for point in points)}
        name_rows(axes, [name if name in there else "" for name in names])
        axes.set_xlim(ends)
        axes.set_xlabel("matching advantage, dB", color=PALE_INK)
        return svg(figure)
    figure, axes = new_figure(340, left=34, right=name_px + 14, top=30)
    axes.axhline(0, color=RULE, linestyle=(0, (5, 4)), linewidth=1)
    labels = {"learned nothing": (0.0, PALE_INK)}
    for point in points:
        if point.snr is None:
            axes.axhspan(point.low, point.high, color=INK, alpha=0.1, linewidth=0)
            axes.axhline(point.value, color=INK, linewidth=2)
            labels[point.name] = (point.value, INK)
    for name in dict.fromkeys(point.name for point in points if point.snr is not None):
        line = [point for point in points if point.name == name]
        labels[name] = (_line(axes, line, ATTACK_STYLES[name], snrs), ATTACK_STYLES[name].colour)
    axes.set_ylim(ends)
    axes.set_title("matching advantage, dB", loc="left", fontsize=FONT_PX, color=PALE_INK)
    _over_snr(axes, snrs, labels)
    return svg(figure)


@rc_context(RC)
def rates(points: Sequence[Point], snrs: Sequence[float], chance: float, floor: float) -> str:
    """How often Eve names the picture, on a log axis from ``floor`` to 1, one entry for each defence, with exact bounds."""
    ticks, words = _rate_ticks(floor)
    if len(snrs) == 1:
        names = list(dict.fromkeys(point.name for point in points))
        figure, axes = new_figure(62 + 24 * len(names), left=NAME_PX, right=24, top=22)
        axes.set_xscale("log")
        axes.axvline(chance, color=RULE, linestyle=(0, (5, 4)), linewidth=1)
        axes.annotate("chance", (chance, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                      ha="center", color=PALE_INK)  # fmt: skip
        for point in points:
            _dot(axes, point, names.index(point.name), DEFENSE_STYLES[point.name], floor)
        name_rows(axes, names)
        axes.set_xlim(floor, 1.15)
        axes.set_xticks(ticks, words)
        axes.minorticks_off()
        axes.set_xlabel("pictures named by Eve", color=PALE_INK)
        return svg(figure)
    figure, axes = new_figure(340, left=54, right=NAME_PX + 14, top=30)
    axes.set_yscale("log")
    axes.axhline(chance, color=RULE, linestyle=(0, (5, 4)), linewidth=1)
    labels = {"chance": (chance, PALE_INK)}
    for name in dict.fromkeys(point.name for point in points):
        line = [point for point in points if point.name == name]
        labels[name] = (_line(axes, line, DEFENSE_STYLES[name], snrs, floor), DEFENSE_STYLES[name].colour)
    axes.set_ylim(floor, 1.15)
    axes.set_yticks(ticks, words)
    axes.minorticks_off()
    axes.set_title("pictures named by Eve", loc="left", fontsize=FONT_PX, color=PALE_INK)
    _over_snr(axes, snrs, labels)
    return svg(figure)


def _rate_ticks(floor: float) -> tuple[list[float], list[str]]:
    ticks = [tick for tick in (0.001, 0.01, 0.1, 1.0) if tick >= floor]
    return ticks, [f"{100 * tick:g} %" for tick in ticks]


@rc_context(RC)
def against_cost(points: Sequence[CostPoint], what: str) -> str:
    """One panel: leakage over what Bob loses; the best corner, no leakage at no cost, is marked by two dashed lines."""
    figure, axes = new_figure(340, left=40, right=NAME_PX + 14, top=30)
    axes.axhline(0, color=RULE, linestyle=(0, (5, 4)), linewidth=1)
    axes.axvline(0, color=RULE, linestyle=(0, (5, 4)), linewidth=1)
    costs, ends = [0.0, *(point.cost for point in points)], [0.0, *(point.high for point in points)]
    room, height = 0.06 * (max(costs) - min(costs)) + 0.2, 0.05 * (max(ends) - min(0.0, *(point.low for point in points))) + 0.2
    axes.set_xlim(min(costs) - room, max(costs) + room)
    axes.set_ylim(min(0.0, *(point.low for point in points)) - height, max(ends) + height)
    for point in points:
        style = DEFENSE_STYLES[point.name]
        axes.plot([point.cost, point.cost], [point.low, point.high], color=style.colour, linewidth=2, solid_capstyle="butt")
        face = style.colour if style.dashes == "-" else "white"
        axes.plot([point.cost], [point.value], "o", color=style.colour, markersize=7, markerfacecolor=face, clip_on=False)
    axes.set_title(what, loc="left", fontsize=FONT_PX, color=PALE_INK, x=-0.1)
    axes.set_xlabel("what Bob loses, dB", color=PALE_INK)
    _name_at_side(axes, {point.name: (point.cost, point.value, DEFENSE_STYLES[point.name].colour) for point in points})
    return svg(figure)


@rc_context(RC)
def over_channels(points: Sequence[Point], title: str, whose: str, floor: float | None = None) -> str:
    """One panel: a line for each channel over the SNRs of ``whose``, or, with a single SNR, a row.

    With a ``floor`` these are rates, on a log axis from there to 1.
    """
    snrs, names = sorted({point.snr or 0.0 for point in points}), list(dict.fromkeys(point.name for point in points))
    if len(snrs) == 1:
        figure, axes = new_figure(46 + 24 * len(names), left=NAME_PX, right=24)
        if floor is not None:
            axes.set_xscale("log")
            axes.set_xlim(floor, 1.15)
            axes.set_xticks(*_rate_ticks(floor))
            axes.minorticks_off()
        else:
            axes.locator_params(axis="x", nbins=3)  # room for ticks such as -0.005
        for point in points:
            _dot(axes, point, names.index(point.name), CHANNEL_STYLES[point.name], floor)
        name_rows(axes, names)
        axes.set_xlabel(title, color=PALE_INK)
        return svg(figure)
    figure, axes = new_figure(300, left=54, right=NAME_PX + 14, top=30)
    if floor is not None:
        axes.set_yscale("log")
        axes.set_ylim(floor, 1.15)
        axes.set_yticks(*_rate_ticks(floor))
        axes.minorticks_off()
    labels = {}
    for name in names:
        line = [point for point in points if point.name == name]
        labels[name] = (_line(axes, line, CHANNEL_STYLES[name], snrs, floor), CHANNEL_STYLES[name].colour)
    axes.set_title(title, loc="left", fontsize=FONT_PX, color=PALE_INK)
    _over_snr(axes, snrs, labels, whose)
    return svg(figure)


@rc_context(RC)
def peaks(rows: Mapping[str, AirRow]) -> str:
    """The share of OFDM symbols whose peak is above a level, on a log axis, a line for each defence by its short name."""
    figure, axes = new_figure(300, left=60, right=14, top=30)
    axes.set_yscale("log")
    lowest = min((share for row in rows.values() for share in row.exceeded if share > 0), default=0.1)
    for name, row in rows.items():
        style = DEFENSE_STYLES[name]
        shown = [(level, share) for level, share in zip(row.levels_db, row.exceeded, strict=True) if share > 0]
        levels, shares = [level for level, _ in shown], [share for _, share in shown]
        axes.plot(levels, shares, style.dashes, color=style.colour, linewidth=1.6, label=name)
    axes.set_ylim(lowest, 1.2)
    axes.set_yticks(*_rate_ticks(lowest))
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=FONT_PX, loc="lower left")
    axes.set_title("OFDM symbols with a higher peak", loc="left", fontsize=FONT_PX, color=PALE_INK)
    axes.set_xlabel("peak over mean power, dB", color=PALE_INK)
    return svg(figure)


def _dot(axes: Axes, point: Point, row: int, style: Style, floor: float | None = None) -> None:
    low, value = (point.low, point.value) if floor is None else (max(point.low, floor), max(point.value, floor))
    axes.plot([low, point.high], [row, row], color=style.colour, linewidth=2, solid_capstyle="butt")
    axes.plot([value], [row], "o", color=style.colour, markersize=7, clip_on=False)


def _line(axes: Axes, points: Sequence[Point], style: Style, snrs: Sequence[float], floor: float | None = None) -> float:
    """Draw one line over Eve's SNRs; returns the value at its end."""
    points = sorted(points, key=lambda point: point.snr or 0.0)
    at = [_along(point.snr or 0.0, snrs) for point in points]
    lowest = -float("inf") if floor is None else floor
    values = [max(point.value, lowest) for point in points]
    low, high = [max(point.low, lowest) for point in points], [max(point.high, lowest) for point in points]
    axes.fill_between(at, low, high, color=style.colour, alpha=0.15, linewidth=0)
    axes.plot(at, values, style.dashes, color=style.colour, marker="o", markersize=5, linewidth=1.6, clip_on=False,
              markerfacecolor=style.colour if style.dashes == "-" else "white")  # fmt: skip
    return values[-1]


def _along(snr: float, snrs: Sequence[float]) -> float:
    """Where an SNR is on the axis; frames without noise are a step beyond the last one that is a number."""
    finite = [known for known in snrs if math.isfinite(known)]
    return snr if math.isfinite(snr) else max(finite) + max((max(finite) - min(finite)) / 2, 10.0)


def _over_snr(axes: Axes, snrs: Sequence[float], labels: Mapping[str, tuple[float, str]], whose: str = "Eve's") -> None:
    """The SNR below, and the name of each line at its end, joined by a thin line; names that would touch are moved apart."""
    at = [_along(snr, snrs) for snr in sorted(snrs)]
    axes.set_xticks(at, [snr_name(snr) for snr in sorted(snrs)])
    axes.set_xlim(at[0], at[-1])
    axes.set_xlabel(f"{whose} SNR in dB", color=PALE_INK)
    _name_at_side(axes, {name: (at[-1], value, colour) for name, (value, colour) in labels.items()})


def _name_at_side(axes: Axes, marks: Mapping[str, tuple[float, float, str]]) -> None:
    """Name marks (x, y, colour) right of the axes, joined by thin lines; names that would touch are moved apart."""
    height = axes.get_window_extent().height / axes.figure.dpi * 72
    ends = {name: axes.transData.transform((x, value))[1] for name, (x, value, _) in marks.items()}
    bottom = axes.get_window_extent().y0
    ends = {name: (end - bottom) / axes.figure.dpi * 72 for name, end in ends.items()}
    side = axes.get_xlim()[1]
    for name, y in move_apart(ends, FONT_PX + 1, height).items():
        x, value, colour = marks[name]
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4, "relpos": (0, 0.5)}
        at, across = ((1, value), "axes fraction") if x == side else ((x, value), "data")
        place = (
            {"textcoords": ("offset points", "axes points")} if x == side else {"textcoords": ("axes fraction", "axes points")}
        )
        axes.annotate(name, at, (18 if x == side else 1.09, y), xycoords=(across, "data"), va="center", color=colour,
                      annotation_clip=False, arrowprops=leader, **place)  # fmt: skip


def move_apart(heights: Mapping[str, float], gap: float, top: float) -> dict[str, float]:
    """The heights in their order, at least ``gap`` apart, within 0..``top`` while there is room, moved as little up as down."""
    names = sorted(heights, key=lambda name: heights[name])
    up, down = [heights[name] for name in names], [heights[name] for name in names]
    for i in range(1, len(names)):
        up[i] = max(up[i], up[i - 1] + gap)
        down[-i - 1] = min(down[-i - 1], down[-i] - gap)
    moved, n = [], len(names)
    for i, (high, low) in enumerate(zip(up, down, strict=True)):
        moved.append(max(min((high + low) / 2, top - gap * (n - 1 - i)), gap * i))
    return dict(zip(names, moved, strict=True))
