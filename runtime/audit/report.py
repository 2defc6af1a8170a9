"""Results of an audit -> report.html (self-contained: no script, no font, no picture from elsewhere) and a first look.

Results ── tables, wording ──────────────────────┐
Reconstructions ── thumbnails, figures (SVG) ────┼─ templates/report.html
images that were sent ── thumbnails ─────────────┘
"""

import base64
import io
from dataclasses import dataclass
from importlib.resources import files
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from semseal.runtime import metrics
from semseal.runtime.audit import paper, tables, wording
from semseal.runtime.audit import verdict as judging
from semseal.runtime.audit.attacks import ATTACKS
from semseal.runtime.audit.attacks import BY_NAME as ATTACK_BY_NAME
from semseal.runtime.audit.figures import Point, advantages, rates
from semseal.runtime.audit.results import Images, Ordering, PictureRow, Results
from semseal.runtime.audit.settings import Cell
from semseal.runtime.audit.verdict import Pictures, verdicts
from semseal.runtime.defense.defenses import BY_NAME
from semseal.runtime.files import write_atomically

THUMBNAIL_PX = 160  # the longer side of an embedded picture

# what the page shows


@dataclass(frozen=True)
class Thumbnail:
    """A small picture as a data URL with its PSNR in dB and SSIM; or, without one, whether it could have been measured."""

    name: str
    picture: str | None
    psnr: float | None = None
    ssim: float | None = None
    void: bool = False
    applies: bool = True


@dataclass(frozen=True)
class Strip:
    """The first picture under one defence: as sent, from Bob, and from every attack."""

    defense: str
    thumbnails: tuple[Thumbnail, ...]


@dataclass(frozen=True)
class Panel:
    """A figure as SVG, and what is left out of it because it is void."""

    title: str
    drawing: str
    void: tuple[str, ...]


@dataclass(frozen=True)
class AtPrecision:
    """A row at a precision that is not the first, and its paired difference from the first in dB."""

    row: PictureRow
    change: metrics.Mean


@dataclass(frozen=True)
class PrecisionLine:
    """One attack at the first precision and at the others, None where it was not measured."""

    first: PictureRow
    others: tuple[AtPrecision | None, ...]


def write_report(path: Path, results: Results, pictures: Pictures, images: Images) -> None:
    """Write the page. ``pictures`` are those of every cell, ``images`` [n, 3, height, width] in 0..1 what was sent."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("semseal.runtime.audit").joinpath("templates/report.html").read_text())
    page = template.render(
        results=results,
        settings=results.settings,
        verdicts=verdicts(results),
        shape=f"{images.shape[3]} / {images.shape[2]}",
        best=max(results.settings.eve_snrs),
        references=_references(results),
        strips=_strips(results, pictures, images),
        advantage_panels=_advantage_panels(results, pictures),
        rate_panels=_rate_panels(results),
        precision_lines=_precision_lines(results, pictures),
        attacks=ATTACKS,
        defenses=BY_NAME,
        paper=paper,
        tables=tables,
        wording=wording,
        judging=judging,
        applies=_applies,
        where=where,
    )
    write_atomically(path, page.encode())


def where(ordering: Ordering) -> str:
    """The cell of Eve's that the comparison is about, in words."""
    cell = ordering.better if ordering.better.eve_snr is not None else ordering.worse
    return f"{cell.attack}, {BY_NAME[cell.defense].title}, main {cell.main_snr:g} dB, Eve {cell.eve_snr:g} dB"


def _applies(attack: str, defense: str) -> bool:
    return ATTACK_BY_NAME[attack].applies(BY_NAME[defense])


def _references(results: Results) -> list[PictureRow]:
    """For each main SNR Bob, under the first defence measured, and the mean picture."""
    rows = [row for row in results.rows if row.precision == results.settings.precisions[0]]
    return [
        next(row for row in rows if (row.attack, row.main_snr) == (attack, main))
        for main in results.mains
        for attack in ("bob", "mean-picture")
    ]


def _rows_by_cell(results: Results) -> dict[Cell, PictureRow]:
    return {Cell(row.attack, row.defense, row.main_snr, row.eve_snr, row.precision): row for row in results.rows}


def _void(results: Results) -> set[Cell]:
    """The cells whose control failed."""
    return {cell for cell, row in _rows_by_cell(results).items() if row.verdict == "void"}


def _attacks_among(pictures: Pictures) -> list[str]:
    """Those that ended in pictures, in the order of the table."""
    there = {cell.attack for cell in pictures}
    return [attack.name for attack in ATTACKS if attack.name in there]


def _strips(results: Results, pictures: Pictures, images: Images) -> list[tuple[float, list[Strip]]]:
    """For each main SNR a strip for each defence, Eve at the highest of her SNRs."""
    void, sent = _void(results), Thumbnail("sent", _embedded(images[0]))
    best, precision = max(results.settings.eve_snrs), results.settings.precisions[0]
    strips: dict[float, list[Strip]] = {main: [] for main in results.mains}
    for main, defense in product(results.mains, tables.defenses(results)):
        bob = Cell("bob", defense, main, None, precision)
        if bob not in pictures:
            continue
        cells = [Cell(attack, defense, main, best, precision) for attack in _attacks_among(pictures)]
        shown = (sent, *(_thumbnail(cell, pictures, cell in void) for cell in (bob, *cells)))
        strips[main].append(Strip(defense, shown))
    return list(strips.items())


def _thumbnail(cell: Cell, pictures: Pictures, void: bool) -> Thumbnail:
    name = _name(cell)
    if cell not in pictures:
        return Thumbnail(name, None, applies=_applies(cell.attack, cell.defense))
    found = pictures[cell]
    return Thumbnail(name, _embedded(found.shown[0]), found.psnr[0], found.ssim[0], void)


def _name(cell: Cell) -> str:
    return "Bob" if cell.attack == "bob" else cell.attack


# figures


def _advantage_panels(results: Results, pictures: Pictures) -> list[tuple[float, list[Panel]]]:
    """For each main SNR a panel for each defence: the matching advantage of Bob and of each attack, at the first precision."""
    snrs, precision, void = results.settings.eve_snrs, results.settings.precisions[0], _void(results)
    cells = [cell for cell in pictures if cell.attack != "mean-picture" and cell.precision == precision]
    points = {cell: _point(cell, metrics.mean(pictures[cell].advantage)) for cell in cells if cell not in void}
    ends = (
        min([0.0, *(point.low for point in points.values())]) - 1,
        max([0.0, *(point.high for point in points.values())]) + 1,
    )
    names = ["Bob", *_attacks_among(pictures)]
    panels: dict[float, list[Panel]] = {main: [] for main in results.mains}
    for main, defense in product(results.mains, tables.defenses(results)):
        here = [cell for cell in cells if (cell.main_snr, cell.defense) == (main, defense)]
        failed = tuple(dict.fromkeys(cell.attack for cell in here if cell in void))
        drawing = advantages([points[cell] for cell in here if cell in points], failed, names, snrs, ends)
        panels[main].append(Panel(BY_NAME[defense].title, drawing, failed))
    return list(panels.items())


def _point(cell: Cell, advantage: metrics.Mean) -> Point:
    half = advantage.half_width or 0.0
    return Point(_name(cell), cell.eve_snr, advantage.value, advantage.value - half, advantage.value + half)


def _rate_panels(results: Results) -> list[Panel]:
    """For each main SNR: how often Eve names the picture under each defence, and where that is void."""
    settings, panels = results.settings, []
    for main in results.mains:
        named = [game for game in results.games if judging.names_the_picture(game)]
        named = [game for game in named if (game.main_snr, game.precision) == (main, settings.precisions[0])]
        void = tuple(dict.fromkeys(BY_NAME[game.defense].title for game in named if game.verdict == "void"))
        named = [game for game in named if game.verdict != "void"]
        if not named:
            continue
        points = [Point(BY_NAME[game.defense].short, game.eve_snr, game.value, game.low, game.high) for game in named]
        chance = named[0].chance
        floor = min([chance, *(point.value for point in points if point.value > 0)]) / 4
        panels.append(Panel(f"Main channel {main:g} dB", rates(points, settings.eve_snrs, chance, floor), void))
    return panels


def _precision_lines(results: Results, pictures: Pictures) -> list[PrecisionLine]:
    """For Bob, the mean picture and each attack at Eve's highest SNR: what the other precisions change. Empty where one was
    measured."""
    first, *others = results.settings.precisions
    best, rows = max(results.settings.eve_snrs), _rows_by_cell(results)
    lines = []
    for cell, row in rows.items():
        if not others or cell.precision != first or cell.eve_snr not in (None, best):
            continue
        changed: list[AtPrecision | None] = []
        for precision in others:
            other = Cell(cell.attack, cell.defense, cell.main_snr, cell.eve_snr, precision)
            there = other in pictures
            changed.append(AtPrecision(rows[other], judging.paired(pictures[other], pictures[cell])) if there else None)
        lines.append(PrecisionLine(row, tuple(changed)))
    return lines


# pictures


def write_first_look(path: Path, results: Results, pictures: Pictures, images: Images) -> None:
    """One PNG: the first picture as sent, from Bob, and from the paper's attacks at Eve's highest SNR, bare and defended."""
    main, best = results.mains[len(results.mains) // 2], max(results.settings.eve_snrs)
    precision = results.settings.precisions[0]
    shown = {
        (cell.attack, cell.defense): found.shown[0]
        for cell, found in pictures.items()
        if (cell.main_snr, cell.precision) == (main, precision) and cell.eve_snr in (None, best)
    }
    bob = next(picture for (attack, _), picture in shown.items() if attack == "bob")
    entries = [("sent", images[0]), ("Bob", bob)]
    for defense, suffix in (("none", ""), ("permute+substitute", ", defended")):
        entries += [
            (f"Eve, {attack}{suffix}", shown[attack, defense]) for attack in tables.PUBLISHED if (attack, defense) in shown
        ]
    height, width = images.shape[2:]
    label, gap = 24, 6
    sheet = Image.new("RGB", (len(entries) * (width + gap) - gap, height + label), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, picture) in enumerate(entries):
        draw.text((i * (width + gap) + 2, 2), name, "black", ImageFont.load_default(14))
        sheet.paste(_image(picture), (i * (width + gap), label))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def _image(picture: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray(np.round(picture.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))


def _embedded(picture: NDArray[np.float32]) -> str:
    image, buffer = _image(picture), io.BytesIO()
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    image.save(buffer, "WEBP", quality=60, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
