"""Results of an audit -> report.html (self-contained: no script, no font, no picture from elsewhere) and a first look.

Results ── tables, wording ──────────────────────┐
Reconstructions ── thumbnails, figures (SVG) ────┼─ templates/report.html
images that were sent ── thumbnails ─────────────┘
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from semseal.runtime import metrics
from semseal.runtime.audit import against, gate, overchannels, paper, tables, wording
from semseal.runtime.audit import verdict as judging
from semseal.runtime.audit.attacks import ATTACKS
from semseal.runtime.audit.attacks import BY_NAME as ATTACK_BY_NAME
from semseal.runtime.audit.figures import Point, advantages, rates
from semseal.runtime.audit.results import Images, Ordering, PictureRow, Results, cell_of, place_key, place_of
from semseal.runtime.audit.settings import Cell, eve_at, listed_snrs
from semseal.runtime.audit.verdict import Pictures, verdicts
from semseal.runtime.defense.defenses import BY_NAME
from semseal.runtime.files import write_atomically

THUMBNAIL_PX = 160  # the longer side of an embedded picture, where there are many
SMALL_PX = 104  # the width at which it is shown then: three in a row on a phone
MAX_OWN_SIZE = 40  # pictures on a page that are shown at their own size
MAX_OWN_PX = 512  # and no larger than that

# what the page shows


@dataclass(frozen=True)
class Thumbnail:
    """A picture as a data URL with its PSNR in dB and SSIM."""

    name: str
    picture: str
    psnr: float | None = None
    ssim: float | None = None
    void: bool = False


@dataclass(frozen=True)
class Strip:
    """The first picture under one defence: as sent, from Bob, and from every attack; and why others are not there."""

    defense: str
    thumbnails: tuple[Thumbnail, ...]
    notes: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Panel:
    """A figure as SVG, and what is left out of it because it is void."""

    title: str
    drawing: str
    void: tuple[str, ...]


@dataclass(frozen=True)
class Other:
    """A row at a place that is not the bundle's first, and its paired difference from the first in dB."""

    row: PictureRow
    change: metrics.Mean


@dataclass(frozen=True)
class Comparison:
    """One bundle at its first engine and precision and at the others: the heads of the columns, and a line for each attack.

    A line is the first row and the others, None where it was not measured.
    """

    title: str
    heads: tuple[str, ...]
    lines: tuple[tuple[PictureRow, tuple[Other | None, ...]], ...]


def write_report(
    path: Path, results: Results, pictures: Pictures, images: Images, compared: Sequence[against.Compared] = ()
) -> None:
    """Write the page. ``pictures`` are those of every cell, ``images`` [n, 3, height, width] in 0..1 what was sent."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("semseal.runtime.audit").joinpath("templates/report.html").read_text())
    page = template.render(
        results=results,
        settings=results.settings,
        verdicts=verdicts(results),
        shape=f"{images.shape[3]} / {images.shape[2]}",
        shown_px=_shown_px(results, pictures, images)[1],
        gate_line=gate.line,
        eve_best=eve_at(max(results.settings.eve_snrs)),
        eve_snrs=listed_snrs(results.settings.eve_snrs),
        references=_references(results),
        strips=_strips(results, pictures, images),
        advantage_panels=_advantage_panels(results, pictures),
        rate_panels=_rate_panels(results),
        against=against,
        compared=compared,
        overchannels=overchannels,
        comparisons=_comparisons(results, pictures),
        attacks=ATTACKS,
        defenses=BY_NAME,
        paper=paper,
        tables=tables,
        wording=wording,
        judging=judging,
        applies=_applies,
        where=where,
    )
    write_atomically(path, page.encode(errors="replace"))  # names of files need not be UTF-8


def where(ordering: Ordering) -> str:
    """The cell of Eve's that the comparison is about, in words."""
    cell = ordering.better if ordering.better.eve_snr is not None else ordering.worse
    place = f"{cell.bundle}, {cell.engine} {cell.precision}"
    eve = "" if cell.eve_snr is None else f", {eve_at(cell.eve_snr)}"
    return f"{cell.attack}, {BY_NAME[cell.defense].title}, main {cell.main_snr:g} dB{eve}, {place}"


def _applies(attack: str, defense: str) -> bool:
    return ATTACK_BY_NAME[attack].applies(BY_NAME[defense])


def _references(results: Results) -> list[tuple[str, PictureRow]]:
    """For each bundle Bob, under the first defence measured, and the mean picture, at its first place; each with its name."""
    several = len(results.bundles) > 1
    return [
        (
            ("Bob" if attack == "bob" else "Mean picture") + (f", {tables.place_title(results, place)}" if several else ""),
            next(row for row in results.rows if (row.attack, place_of(row)) == (attack, place_key(place))),
        )
        for place in results.firsts
        for attack in ("bob", "mean-picture")
    ]


def _rows_by_cell(results: Results) -> dict[Cell, PictureRow]:
    return {cell_of(row): row for row in results.rows}


def _void(results: Results) -> set[Cell]:
    """The cells whose control failed."""
    return {cell for cell, row in _rows_by_cell(results).items() if row.verdict == "void"}


def _attacks_among(pictures: Pictures) -> list[str]:
    """Those that ended in pictures, in the order of the table."""
    there = {cell.attack for cell in pictures}
    return [attack.name for attack in ATTACKS if attack.name in there]


def _strips(results: Results, pictures: Pictures, images: Images) -> list[tuple[str, list[Strip]]]:
    """For each bundle, at its first place, a strip for each defence, Eve at the highest of her SNRs."""
    void, (px, _), rows = _void(results), _shown_px(results, pictures, images), _rows_by_cell(results)
    best, sent = max(results.settings.eve_snrs), Thumbnail("sent", embedded(images[0], px))
    strips = []
    for place in results.firsts:
        here = []
        for defense in tables.defenses(results):
            bob = place.cell("bob", defense, None)
            if bob not in pictures:
                continue
            cells = [place.cell(attack, defense, best) for attack in _attacks_among(pictures)]
            shown = [cell for cell in (bob, *cells) if cell in pictures]
            left_out = _left_out([cell for cell in cells if cell not in pictures], results)
            thumbnails = (sent, *(_thumbnail(cell, pictures, cell in void, px) for cell in shown))
            notes = tuple(
                wording.convincing(rows[cell]) for cell in cells if cell in rows and ATTACK_BY_NAME[cell.attack].invents
            )
            here.append(Strip(defense, thumbnails, notes, left_out))
        strips.append((tables.full_title(place, best), here))
    return strips


def _left_out(cells: list[Cell], results: Results) -> tuple[str, ...]:
    """Why there is no picture of the attacks that could be made under this defence, a sentence for each reason."""
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if not _applies(cell.attack, cell.defense):
            continue
        reason = gate.why_missing(cell, results)
        if not reason:
            control = cell.defense not in results.settings.defenses
            reason = "not asked for under this defence" + (", which is here as a control" if control else "")
        reasons.setdefault(reason, []).append(cell.attack)
    return tuple(f"{', '.join(attacks)}: {reason}" for reason, attacks in reasons.items())


def _shown_px(results: Results, pictures: Pictures, images: Images) -> tuple[int, int]:
    """Pixels of an embedded picture's longer side, and CSS pixels of its width: its own size, where a page has few."""
    best, (height, width) = max(results.settings.eve_snrs), images.shape[2:]
    if sum(cell.eve_snr in (None, best) for cell in pictures) > MAX_OWN_SIZE:
        return THUMBNAIL_PX, SMALL_PX
    longer = min(max(height, width), MAX_OWN_PX)
    return longer, round(width * longer / max(height, width))


def _thumbnail(cell: Cell, pictures: Pictures, void: bool, px: int) -> Thumbnail:
    found = pictures[cell]
    return Thumbnail(_name(cell), embedded(found.shown[0], px), found.psnr[0], found.ssim[0], void)


def _name(cell: Cell) -> str:
    return "Bob" if cell.attack == "bob" else cell.attack


# figures


def _advantage_panels(results: Results, pictures: Pictures) -> list[tuple[str, list[Panel]]]:
    """For each bundle, at its first place, a panel for each defence: the matching advantage of Bob and of each attack."""
    snrs, void, firsts = results.settings.eve_snrs, _void(results), {place_key(place) for place in results.firsts}
    cells = [cell for cell in pictures if cell.attack != "mean-picture" and place_of(cell) in firsts]
    points = {cell: _point(cell, metrics.mean(pictures[cell].advantage)) for cell in cells if cell not in void}
    ends = (
        min([0.0, *(point.low for point in points.values())]) - 1,
        max([0.0, *(point.high for point in points.values())]) + 1,
    )
    names = ["Bob", *_attacks_among(pictures)]
    panels: dict[str, list[Panel]] = {tables.full_title(place): [] for place in results.firsts}
    for place, defense in product(results.firsts, tables.defenses(results)):
        here = [cell for cell in cells if (place_of(cell), cell.defense) == (place_key(place), defense)]
        failed = tuple(dict.fromkeys(cell.attack for cell in here if cell in void))
        drawing = advantages([points[cell] for cell in here if cell in points], failed, names, snrs, ends)
        panels[tables.full_title(place)].append(Panel(BY_NAME[defense].title, drawing, failed))
    return list(panels.items())


def _point(cell: Cell, advantage: metrics.Mean) -> Point:
    half = advantage.half_width or 0.0
    return Point(_name(cell), cell.eve_snr, advantage.value, advantage.value - half, advantage.value + half)


def _rate_panels(results: Results) -> list[Panel]:
    """For each bundle, at its first place: how often Eve names the picture under each defence, and where that is void."""
    settings, panels = results.settings, []
    for place in results.firsts:
        named = [game for game in results.games if judging.names_the_picture(game)]
        named = [game for game in named if place_of(game) == place_key(place)]
        void = tuple(dict.fromkeys(BY_NAME[game.defense].title for game in named if game.verdict == "void"))
        named = [game for game in named if game.verdict != "void"]
        if not named:
            continue
        points = [Point(BY_NAME[game.defense].short, game.eve_snr, game.value, game.low, game.high) for game in named]
        chance = named[0].chance
        floor = min([chance, *(point.value for point in points if point.value > 0)]) / 4
        panels.append(Panel(tables.full_title(place), rates(points, settings.eve_snrs, chance, floor), void))
    return panels


def _comparisons(results: Results, pictures: Pictures) -> list[Comparison]:
    """For Bob, the mean picture and each attack at Eve's highest SNR: what other engines and precisions change.

    None where there is one.
    """
    best, rows, found = max(results.settings.eve_snrs), _rows_by_cell(results), []
    for bundle in results.bundles:
        first, *others = results.places(bundle)
        lines = []
        for cell, row in rows.items():
            if not others or place_of(cell) != place_key(first) or cell.eve_snr not in (None, best):
                continue
            changed: list[Other | None] = []
            for place in others:
                other = place.cell(cell.attack, cell.defense, cell.eve_snr)
                there = other in pictures
                changed.append(Other(rows[other], judging.paired(pictures[other], pictures[cell])) if there else None)
            lines.append((row, tuple(changed)))
        if lines:
            heads = tuple(f"{place.engine} {place.precision}" for place in (first, *others))
            found.append(Comparison(bundle.title, heads, tuple(lines)))
    return found


# pictures


def write_first_look(path: Path, results: Results, pictures: Pictures, images: Images) -> None:
    """One PNG: the first picture as sent, from Bob, and from the paper's attacks at Eve's highest SNR, bare and defended."""
    place, best = results.firsts[len(results.firsts) // 2], max(results.settings.eve_snrs)
    shown = {
        (cell.attack, cell.defense): found.shown[0]
        for cell, found in pictures.items()
        if place_of(cell) == place_key(place) and cell.eve_snr in (None, best)
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


def embedded(picture: NDArray[np.float32], px: int) -> str:
    """A picture as a data URL, its longer side of ``px`` pixels at most."""
    image, buffer = _image(picture), io.BytesIO()
    image.thumbnail((px, px))
    image.save(buffer, "WEBP", quality=60 if px == THUMBNAIL_PX else 90, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
