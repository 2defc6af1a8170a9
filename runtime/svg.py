"""Small SVG figures for self-contained pages, in the look of the reports. One unit is one CSS pixel; no font from elsewhere."""

import io
import re
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH_PX = 356  # fits a phone of 390 pixels without being scaled down
FONT_PX = 14
INK, PALE_INK, RULE = "#1c2430", "#4a5361", "#8a93a0"
RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "semseal",
    "font.size": FONT_PX,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": RULE,
    "xtick.color": PALE_INK,
    "ytick.color": INK,
}
# five hues of Okabe and Ito (2008), told apart without colour vision by their lightness
HUES = ("#0072b2", "#d55e00", "#009e73", "#a5568a", "#b07a00")
DASHES = ("-", "--", ":")  # for the first five, the next five and so on; all but the first with open marks


def new_figure(height: int, left: int, right: int, top: int = 10, bottom: int = 46) -> tuple[Figure, Axes]:
    """A figure of WIDTH_PX x ``height`` pixels and its axes; the margins in pixels hold the labels."""
    made = Figure((WIDTH_PX / 72, height / 72))
    box = (left / WIDTH_PX, bottom / height, (WIDTH_PX - left - right) / WIDTH_PX, (height - top - bottom) / height)
    return made, made.add_axes(box)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a plot of rows, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, pad=7)  # a mark at the edge does not touch its name


def svg(figure: Figure) -> str:
    """The drawing alone: no date, no namespace addresses, no id that a second figure on the page would repeat, no font."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawing = text.getvalue()[text.getvalue().index("<svg") :]
    drawing = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawing)
    drawing = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", drawing)
    drawing = re.sub(r"<!--.*?-->", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r"font-family: [^;]*; | transform=\"rotate\(-0 [^)]*\)\"", "", drawing)
    drawing = re.sub(r"\s+", " ", drawing).replace("> <", "><")
    return re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', drawing)
