"""results of an audit -> report.html (self-contained: no script, no font, no picture from elsewhere) and picture grids."""

import base64
import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table
from semseal.runtime import paper
from semseal.runtime.files import write_atomically
from semseal.runtime.plan import PAPER_ATTACKS, PICTURES

NAMES = {
    "none": "no defence",
    "permute": "permutation only",
    "substitute": "substitution only",
    "permute+substitute": "permutation + substitution",
    "mix": "mix",
}


def write_report(path: Path, results: dict[str, Any], cells: dict[Any, Any], images: NDArray[np.float32]) -> None:
    """Write the page. ``cells`` are those of ``semseal.runtime.audit``; ``images`` the pictures that were sent."""
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("semseal.runtime").joinpath("templates/report.html").read_text()
    )
    sections = []
    for defense in paper_defenses(results):
        table, figure = paper.PLACES[defense]
        sections.append(
            {
                "defense": NAMES[defense],
                "table": table,
                "figure": figure,
                "lines": table_lines(results, defense),
                "grid": _grid(results, cells, images, defense),
            }
        )
    page = template.render(
        results=results,
        sections=sections,
        mains=_mains(results),
        tally=tally(results["orderings"]),
        verdict=verdict(results),
        measured=measured,
        leakage=leakage_lines(results),
        where=where,
        names=NAMES,
    )
    write_atomically(path, page.encode())


def paper_defenses(results: dict[str, Any]) -> list[str]:
    """The defences of the paper whose table has something in it."""
    there = {row["defense"] for row in results["rows"] if row["attack"] in PAPER_ATTACKS}
    return [defense for defense in paper.PLACES if defense in there]


def table_lines(results: dict[str, Any], defense: str) -> list[tuple[str, list[dict[str, Any] | None]]]:
    """One of Tables I to IV: a name for each line and its row of results.json for each main SNR."""
    mains = _mains(results)
    eves = results["settings"]["eve_snrs"]
    wanted = [("Bob, with the key" if defense != "none" else "Bob", "bob", defense, None)]
    for snr in eves:
        wanted += [
            (f"Eve {snr:g} dB, white-box", "white-box", defense, snr),
            (f"Eve {snr:g} dB, black-box", "black-box", defense, snr),
        ]
    wanted.append(("answering with the mean picture", "mean picture", "none", None))
    found = {(row["attack"], row["defense"], row["eve_snr"], row["main_snr"]): row for row in results["rows"]}
    return [(name, [found.get((attack, mode, snr, main)) for main in mains]) for name, attack, mode, snr in wanted]


def terminal_table(results: dict[str, Any], defense: str) -> Table:
    """The same table for a terminal: PSNR / SSIM ± intervals, the paper's figures in parentheses."""
    numeral, _ = paper.PLACES[defense]
    table = Table(title=f"{NAMES[defense]} (Table {numeral} of the paper, its figures in parentheses)")
    table.add_column("PSNR in dB / SSIM")
    for main in _mains(results):
        table.add_column(f"main channel {main:g} dB", justify="right")
    for name, rows in table_lines(results, defense):
        table.add_row(name, *(_text(row) for row in rows))
    return table


def leakage_lines(results: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The defences, and for each attack or game at each SNR and precision what it got under each of them."""
    entries = [(row["attack"], row, _leak(row)) for row in results["rows"] if row["attack"] in PICTURES]
    entries += [(f"{row['attack']}, {row['name']}", row, _rate(row)) for row in results["games"]]
    defenses = list(dict.fromkeys(row["defense"] for _, row, _ in entries))
    several = [len({row[column] for _, row, _ in entries}) > 1 for column in ("main_snr", "precision")]
    lines: dict[str, dict[str, str]] = {}
    for name, row, text in entries:
        where = [f"Eve {row['eve_snr']:g} dB"]
        where = [f"main {row['main_snr']:g} dB"] * several[0] + where + [row["precision"]] * several[1]
        lines.setdefault(f"{name} ({', '.join(where)})", {})[row["defense"]] = text
    ordered = sorted(defenses, key=lambda name: list(NAMES).index(name) if name in NAMES else 0)
    return ordered, [(label, [found.get(defense, "") for defense in ordered]) for label, found in lines.items()]


def _leak(row: dict[str, Any]) -> str:
    return "void: its control failed" if row["verdict"] == "void" else f"{row['psnr']:.1f} dB / {row['ssim']:.2f}"


def _rate(row: dict[str, Any]) -> str:
    if row["verdict"] == "void":
        return "void: its control failed"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def leakage_table(results: dict[str, Any]) -> Table:
    """The Eves who adapt, for a terminal: PSNR / SSIM of their pictures, success of their guesses with exact bounds."""
    defenses, lines = leakage_lines(results)
    table = Table(title="Eves who know the defence (PSNR / SSIM; games: success with its 95 % bounds)")
    table.add_column("attack")
    for defense in defenses:
        table.add_column(NAMES.get(defense, defense), justify="right")
    for label, texts in lines:
        table.add_row(label, *texts)
    return table


def markdown_tables(results: dict[str, Any]) -> str:
    """All tables, and how often each ordering holds, in Markdown: PSNR / SSIM ± intervals (the paper's figures)."""
    lines = []
    for defense in paper_defenses(results):
        numeral, _ = paper.PLACES[defense]
        lines += [f"### Table {numeral}: {NAMES[defense]}", ""]
        lines.append("| PSNR in dB / SSIM | " + " | ".join(f"main channel {main:g} dB" for main in _mains(results)) + " |")
        lines.append("|---" * (1 + len(_mains(results))) + "|")
        lines += [
            f"| {name} | " + " | ".join(_text(row) for row in rows) + " |" for name, rows in table_lines(results, defense)
        ]
        lines.append("")
    lines += ["### The paper's orderings", "", "| claim | holds | fails | open |", "|---|---|---|---|"]
    lines += [
        f"| {claim} | {holds} | {fails} | {undecided} |" for claim, holds, fails, undecided in tally(results["orderings"])
    ]
    defenses, leaks = leakage_lines(results)
    if leaks:
        lines += ["", "### Eves who know the defence", "", f"| attack | {' | '.join(NAMES[name] for name in defenses)} |"]
        lines.append("|---" * (1 + len(defenses)) + "|")
        lines += [f"| {label} | {' | '.join(texts)} |" for label, texts in leaks]
    return "\n".join(lines) + "\n"


def verdict(results: dict[str, Any]) -> str:
    """One sentence for the top of the page: what the measured Eves saw, against Bob and against the mean picture."""
    rows = results["rows"]

    def best(defense: str) -> float:
        return max(row["psnr"] for row in rows if row["attack"] in PAPER_ATTACKS and row["defense"] == defense)

    bob = max(row["psnr"] for row in rows if row["attack"] == "bob")
    floor = max(row["psnr"] for row in rows if row["attack"] == "mean picture")
    parts = [f"{NAMES[defense]} {best(defense):.1f} dB" for defense in paper_defenses(results)]
    return (
        f"Bob receives up to {bob:.1f} dB. The better of the paper's attacks gets: {', '.join(parts)}. "
        f"Answering with the mean picture scores {floor:.1f} dB."
    )


def where(ordering: dict[str, Any]) -> str:
    """The cell that should be the better one, in words."""
    cell = ordering["better"] if ordering["better"]["eve_snr"] is not None else ordering["worse"]
    return f"{cell['attack']}, {cell['defense']}, main {cell['main_snr']:g} dB, Eve {cell['eve_snr']:g} dB"


def tally(found: list[dict[str, Any]]) -> list[tuple[str, int, int, int]]:
    """For each claim: in how many comparisons it holds, fails, is open."""
    claims = dict.fromkeys(row["claim"] for row in found)
    verdicts = {claim: [row["verdict"] for row in found if row["claim"] == claim] for claim in claims}
    return [(claim, given.count("holds"), given.count("fails"), given.count("open")) for claim, given in verdicts.items()]


def write_first_look(path: Path, results: dict[str, Any], cells: dict[Any, Any], images: NDArray[np.float32]) -> None:
    """One PNG: the first picture as sent, by Bob, and by each Eve at her best SNR without and with the whole defence."""
    main, best = _mains(results)[len(_mains(results)) // 2], max(results["settings"]["eve_snrs"])
    shown = {(cell.attack, cell.defense): found.shown[0] for cell, found in cells.items()
             if cell.main_snr == main and cell.eve_snr in (None, best)}  # fmt: skip
    entries = [("sent", images[0]), ("Bob", shown["bob", "none"])]
    for defense, suffix in (("none", ""), ("permute+substitute", ", defended")):
        entries += [(f"Eve, {attack}{suffix}", shown[attack, defense]) for attack in ("white-box", "black-box")
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


def _grid(results: dict[str, Any], cells: dict[Any, Any], images: NDArray[np.float32], defense: str) -> list[dict[str, Any]]:
    """Figures 3 to 6: per main SNR the sent picture, Bob's, and each Eve's, with PSNR and SSIM below."""
    grid = []
    for main in _mains(results):
        entries = [{"name": "sent", "picture": _embedded(images[0]), "caption": ""}]
        chosen = [cell for cell in cells if cell.defense == defense and cell.main_snr == main and cell.attack != "mean picture"]
        order = {"bob": 0, "white-box": 1, "black-box": 2}
        chosen = [cell for cell in chosen if cell.attack in order]
        for cell in sorted(chosen, key=lambda cell: (cell.eve_snr is not None, cell.eve_snr or 0, order[cell.attack])):
            name = "Bob" if cell.attack == "bob" else f"Eve {cell.eve_snr:g} dB, {cell.attack}"
            entries.append(
                {
                    "name": name,
                    "picture": _embedded(cells[cell].shown[0]),
                    "caption": f"{cells[cell].psnr[0]:.1f} dB / {cells[cell].ssim[0]:.2f}",
                }
            )
        grid.append({"main": main, "entries": entries})
    return grid


def _mains(results: dict[str, Any]) -> list[float]:
    return [bundle["main_snr"] for bundle in results["bundles"]]


def measured(row: dict[str, Any]) -> str:
    """PSNR in dB and SSIM of a row, each ± half of its 95 % interval where it has one."""
    psnr, ssim = f"{row['psnr']:.2f}", f"{row['ssim']:.2f}"
    if row["psnr_95"] is not None:
        psnr, ssim = f"{psnr} ± {row['psnr_95']:.2f}", f"{row['ssim']:.3f} ± {row['ssim_95']:.3f}"
    return f"{psnr} / {ssim}"


def _text(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not measured"
    published = "" if row["paper_psnr"] is None else f"  ({row['paper_psnr']:.2f} / {row['paper_ssim']:.2f})"
    return measured(row) + published


def _image(picture: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray(np.round(picture.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))


def _embedded(picture: NDArray[np.float32]) -> str:
    buffer = io.BytesIO()
    _image(picture).save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
