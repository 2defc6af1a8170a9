"""results of an audit -> report.html (self-contained: no script, no font, no picture from elsewhere) and a first look."""

import base64
import io
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from semseal.runtime import metrics
from semseal.runtime.audit import paper
from semseal.runtime.audit.cell import Answers
from semseal.runtime.audit.figures import HUES, Point, gains, rates
from semseal.runtime.audit.matrix import PAPER_ATTACKS, PICTURES, Cell, applies
from semseal.runtime.audit.standing import NAMES, Results, Row, headline, limits, percent, standings
from semseal.runtime.audit.tables import (
    SHORT,
    defenses,
    groups,
    mains,
    markdown_tables,
    measured,
    paper_defenses,
    table_lines,
    tally,
)
from semseal.runtime.audit.verdict import FEWEST, NEXT_TO_NOTHING_AUC, NEXT_TO_NOTHING_DB, NEXT_TO_NOTHING_RATE, paired
from semseal.runtime.files import write_atomically

__all__ = ["markdown_tables", "write_first_look", "write_report"]

Pictures = Mapping[Cell, Answers]
Images = NDArray[np.float32]

THUMBNAIL = 160  # largest side of an embedded picture in pixels
ABOUT = {
    "white-box": "the paper's: optimises a picture until the transmitter would send what was heard",
    "black-box": "the paper's: a small network trained on what the defence sends",
    "no key": "feeds what she heard to Bob's decoder as it is",
    "row ordering": "puts rows back by their likeness; no key, no scheme list",
    "brute force": "has the scheme sets and tries them",
    "learned": "a U-Net trained on the defence under random keys",
    "set inverse": "the same, blind to the order of rows",
    "row matching": "white-box, rows matched inside the optimisation",
    "reused V": "one known pair under a V that was used again; semseal never does that",
    "reused stream": "64 known packets under a key stream that was used again; semseal never does that",
    "four packets": "hears each picture four times, under fresh keys",
    "which": "names the picture among those that she knows",
    "link": "says whether two packets show the same picture",
    "distinguish": "says which of two chosen pictures was sent",
}


def write_report(path: Path, results: Results, pictures: Pictures, images: Images) -> None:
    """Write the page. ``pictures`` are the answers of every cell, ``images`` [n, 3, height, width] in 0..1 what was sent."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("semseal.runtime.audit").joinpath("templates/report.html").read_text())
    page = template.render(
        results=results,
        settings=results["settings"],
        headline=headline(results),
        limits=limits(results),
        standings=standings(results),
        mains=mains(results),
        shape=f"{images.shape[3]} / {images.shape[2]}",
        best=max(results["settings"]["eve_snrs"]),
        references=_references(results),
        grids=_grids(results, pictures, images),
        gain_curves=_gain_curves(results, pictures),
        rate_curves=_rate_curves(results),
        paper_tables=[(name, *paper.PLACES[name], table_lines(results, name)) for name in paper_defenses(results)],
        groups=[group for group in groups(results) if group.pictures or group.games],
        defenses=defenses(results),
        precisions=_precisions(results, pictures),
        tally=tally(results["orderings"]),
        where=where,
        names=NAMES,
        about=ABOUT,
        applies=applies,
        measured=measured,
        percent=percent,
        margins={"db": NEXT_TO_NOTHING_DB, "area": NEXT_TO_NOTHING_AUC, "rate": NEXT_TO_NOTHING_RATE, "pictures": FEWEST},
    )
    write_atomically(path, page.encode())


def where(ordering: Row) -> str:
    """The cell that should be the better one, in words."""
    cell = ordering["better"] if ordering["better"]["eve_snr"] is not None else ordering["worse"]
    return f"{cell['attack']}, {NAMES[cell['defense']]}, main {cell['main_snr']:g} dB, Eve {cell['eve_snr']:g} dB"


def _references(results: Results) -> list[Row]:
    """For each main SNR Bob, under the first defence measured, and the mean picture."""
    rows = [row for row in results["rows"] if row["precision"] == results["settings"]["precisions"][0]]
    return [
        next(row for row in rows if (row["attack"], row["main_snr"]) == (attack, main))
        for main in mains(results)
        for attack in ("bob", "mean picture")
    ]


def _void(results: Results) -> set[Cell]:
    """The cells whose control failed."""
    rows = [row for row in results["rows"] if row.get("verdict") == "void"]
    return {Cell(row["attack"], row["defense"], row["main_snr"], row["eve_snr"], row["precision"]) for row in rows}


def _grids(results: Results, pictures: Pictures, images: Images) -> list[tuple[float, list[tuple[str, list[Row]]]]]:
    """For each main SNR and defence the first picture: sent, by Bob, and by every Eve at the highest of her SNRs."""
    settings, void = results["settings"], _void(results)
    best, precision = max(settings["eve_snrs"]), settings["precisions"][0]
    attacks = [name for name in PICTURES if name in {cell.attack for cell in pictures}]
    sent = _embedded(images[0])
    found = []
    for main in mains(results):
        lines = []
        for defense in [name for name in defenses(results) if Cell("bob", name, main, None, precision) in pictures]:
            line: list[Row] = [{"name": "sent", "picture": sent, "psnr": None}]
            for name in ("bob", *attacks):
                cell = Cell(name, defense, main, None if name == "bob" else best, precision)
                entry: Row = {"name": "Bob" if name == "bob" else name, "picture": None}
                if cell in pictures:
                    answer = pictures[cell]
                    entry |= {"picture": _embedded(answer.shown[0]), "psnr": answer.psnr[0], "ssim": answer.ssim[0]}
                line.append(entry | {"void": cell in void})
            lines.append((defense, line))
        found.append((main, lines))
    return found


def _gain_curves(results: Results, pictures: Pictures) -> list[tuple[float, list[tuple[str, str, list[str]]]]]:
    """For each main SNR and defence: how much nearer Bob and each Eve are to the right picture, and which Eves are void."""
    settings, void = results["settings"], _void(results)
    precision = settings["precisions"][0]
    panels: dict[float, list[tuple[str, list[Point], list[str]]]] = {}
    for main in mains(results):
        for defense in defenses(results):
            here = [cell for cell in pictures if (cell.main_snr, cell.defense, cell.precision) == (main, defense, precision)]
            here = [cell for cell in here if cell.attack != "mean picture"]
            points = [_gain(cell, metrics.mean(pictures[cell].nearer)) for cell in here if cell not in void]
            failed = [cell.attack for cell in here if cell in void]
            panels.setdefault(main, []).append((defense, points, list(dict.fromkeys(failed))))
    names = ["Bob", *(name for name in PICTURES if name in {cell.attack for cell in pictures})]
    everything = [point for lines in panels.values() for _, points, _ in lines for point in points]
    ends = (min([0.0, *(point.low for point in everything)]) - 1, max([0.0, *(point.high for point in everything)]) + 1)
    return [
        (
            main,
            [(defense, gains(points, failed, names, settings["eve_snrs"], ends), failed) for defense, points, failed in lines],
        )
        for main, lines in panels.items()
    ]


def _gain(cell: Cell, gain: metrics.Mean) -> Point:
    name, half = "Bob" if cell.attack == "bob" else cell.attack, gain.half_width or 0.0
    return Point(name, cell.eve_snr, gain.value, gain.value - half, gain.value + half)


def _rate_curves(results: Results) -> list[tuple[float, str, list[str]]]:
    """For each main SNR: how often Eve names the picture under each defence, and where that is void."""
    settings = results["settings"]
    found = []
    colours = dict(zip(SHORT.values(), ("#1c2430", *HUES), strict=False))
    for main in mains(results):
        named = [row for row in results["games"] if (row["attack"], row["name"]) == ("which", "top-1")]
        named = [row for row in named if (row["main_snr"], row["precision"]) == (main, settings["precisions"][0])]
        failed = [NAMES[row["defense"]] for row in named if row["verdict"] == "void"]
        named = [row for row in named if row["verdict"] != "void"]
        if not named:
            continue
        points = [Point(SHORT[row["defense"]], row["eve_snr"], row["value"], row["low"], row["high"]) for row in named]
        chance = named[0]["chance"]
        floor = min([chance, *(point.value for point in points if point.value > 0)]) / 4
        found.append((main, rates(points, colours, settings["eve_snrs"], chance, floor), list(dict.fromkeys(failed))))
    return found


def _precisions(results: Results, pictures: Pictures) -> list[tuple[float, str, str, list[tuple[Row | None, Row | None]]]]:
    """For each main SNR, defence and attack at Eve's highest SNR: the row of the first precision, and of the others, where they
    were measured, the row with its paired difference in dB. Empty where one precision was measured."""
    settings = results["settings"]
    first, *others = settings["precisions"]
    best = max(settings["eve_snrs"])
    rows = {
        Cell(*(row[name] for name in ("attack", "defense", "main_snr", "eve_snr", "precision"))): row for row in results["rows"]
    }
    found = []
    for cell in [cell for cell in rows if cell.precision == first and cell.eve_snr in (None, best) and others]:
        line: list[tuple[Row | None, Row | None]] = [(rows[cell], None)]
        for precision in others:
            other = Cell(cell.attack, cell.defense, cell.main_snr, cell.eve_snr, precision)
            if other in pictures:
                change = paired(pictures[other], pictures[cell])
                line.append((rows[other], {"value": change.value, "half": change.half_width}))
            else:
                line.append((None, None))
        found.append((cell.main_snr, cell.defense, cell.attack, line))
    return found


def write_first_look(path: Path, results: Results, pictures: Pictures, images: Images) -> None:
    """One PNG: the first picture as sent, by Bob, and by each Eve at her best SNR without and with the whole defence."""
    main, best = mains(results)[len(mains(results)) // 2], max(results["settings"]["eve_snrs"])
    precision = results["settings"]["precisions"][0]
    shown = {(cell.attack, cell.defense): found.shown[0] for cell, found in pictures.items()
             if (cell.main_snr, cell.precision) == (main, precision) and cell.eve_snr in (None, best)}  # fmt: skip
    bob = next(picture for (attack, _), picture in shown.items() if attack == "bob")
    entries = [("sent", images[0]), ("Bob", bob)]
    for defense, suffix in (("none", ""), ("permute+substitute", ", defended")):
        entries += [(f"Eve, {attack}{suffix}", shown[attack, defense]) for attack in PAPER_ATTACKS
                    if (attack, defense) in shown]  # fmt: skip
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
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(buffer, "WEBP", quality=60, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
