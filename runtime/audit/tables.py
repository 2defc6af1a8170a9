"""results of an audit -> tables for a terminal of 80 columns, tables in Markdown."""

from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from semseal.runtime.audit import paper
from semseal.runtime.audit.matrix import DEFENSES, PAPER_ATTACKS, PICTURES, Settings
from semseal.runtime.audit.standing import NAMES, Results, Row, headline, limits, percent, standings

SHORT = {**NAMES, "none": "none", "permute": "permute", "substitute": "substitute", "permute+substitute": "perm+subst"}

# the paper's tables


def mains(results: Results) -> list[float]:
    return [bundle["main_snr"] for bundle in results["bundles"]]


def paper_defenses(results: Results) -> list[str]:
    """The defences of the paper whose table has something in it."""
    there = {row["defense"] for row in results["rows"] if row["attack"] in PAPER_ATTACKS}
    return [defense for defense in paper.PLACES if defense in there]


def table_lines(results: Results, defense: str) -> list[tuple[str, list[Row | None]]]:
    """One of Tables I to IV: a name for each line and its row of results.json for each main SNR, at the first precision."""
    wanted = [("Bob", "bob", defense, None)]
    for snr in results["settings"]["eve_snrs"]:
        wanted += [(f"{attack}, Eve {snr:g} dB", attack, defense, snr) for attack in PAPER_ATTACKS]
    wanted.append(("mean picture", "mean picture", "none", None))
    precision = results["settings"]["precisions"][0]
    found = {
        (row["attack"], row["defense"], row["eve_snr"], row["main_snr"]): row
        for row in results["rows"]
        if row["precision"] == precision
    }
    return [(name, [found.get((attack, mode, snr, main)) for main in mains(results)]) for name, attack, mode, snr in wanted]


def measured(row: Row) -> str:
    """PSNR in dB and SSIM of a row, each ± half of its 95 % interval where it has one."""
    psnr, ssim = f"{row['psnr']:.2f}", f"{row['ssim']:.2f}"
    if row["psnr_95"] is not None:
        psnr, ssim = f"{psnr} ± {row['psnr_95']:.2f}", f"{row['ssim']:.3f} ± {row['ssim_95']:.3f}"
    return f"{psnr} / {ssim}"


def tally(found: list[Row]) -> list[tuple[str, int, int, int]]:
    """For each claim: in how many comparisons it holds, fails, is open."""
    claims = dict.fromkeys(row["claim"] for row in found)
    verdicts = {claim: [row["verdict"] for row in found if row["claim"] == claim] for claim in claims}
    return [(claim, given.count("holds"), given.count("fails"), given.count("open")) for claim, given in verdicts.items()]


# the Eves who know the defence


@dataclass(frozen=True)
class Group:
    """What was measured at one place: for each attack or game its row of results.json under each defence."""

    label: str
    main_snr: float
    eve_snr: float
    precision: str
    pictures: list[tuple[str, list[Row | None]]]
    games: list[tuple[str, list[Row | None]]]


def defenses(results: Results) -> list[str]:
    """Those with any Eve against them, controls too."""
    there = {row["defense"] for row in results["rows"] if row["attack"] in PICTURES} | {
        row["defense"] for row in results["games"]
    }
    return [defense for defense in DEFENSES if defense in there]


def groups(results: Results) -> list[Group]:
    """By precision and main SNR, the highest of Eve's SNRs first. The label says only what is not the same everywhere."""
    settings = results["settings"]
    found = []
    for precision in settings["precisions"]:
        for main in mains(results):
            for eve in sorted(settings["eve_snrs"], reverse=True):
                label = f"Eve {eve:g} dB, main {main:g} dB"
                label += f", {precision}" if len(settings["precisions"]) > 1 else ""
                place = {"main_snr": main, "eve_snr": eve, "precision": precision}
                parts = [_lines(results, results[kind], place) for kind in ("rows", "games")]
                found.append(Group(label, main, eve, precision, *parts))
    return found


def _lines(results: Results, rows: list[Row], place: Row) -> list[tuple[str, list[Row | None]]]:
    here = [row for row in rows if all(row[column] == value for column, value in place.items())]
    lines: dict[str, dict[str, Row]] = {}
    for row in here:
        lines.setdefault(f"{row['attack']}, {row['name']}" if "name" in row else row["attack"], {})[row["defense"]] = row
    return [(label, [found.get(defense) for defense in defenses(results)]) for label, found in lines.items()]


def strongest(group: Group) -> list[tuple[str, list[Row | None]]]:
    """The games, the pairs of "distinguish" as one line: under each defence the pair that Eve tells apart best."""
    pairs = [rows for label, rows in group.games if label.startswith("distinguish")]
    lines = [(label, rows) for label, rows in group.games if not label.startswith("distinguish")]
    if pairs:
        columns = [[row for row in column if row] for column in zip(*pairs, strict=True)]
        best = [max(rows, key=lambda row: (row["low"], row["value"]), default=None) for rows in columns]
        lines.append((f"best of {len(pairs)} pairs", best))
    return lines


# for a terminal

FOOTNOTE = "* sees, by more than luck; void: failed where it must win, shows nothing"


def _table(title: str) -> Table:
    return Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def verdict_table(results: Results) -> Table:
    """Where each defence stands, for a terminal."""
    table = _table("what an eavesdropper sees")
    for column in ("defence", "verdict", "worst attack", "PSNR", "nearer", "below\nBob", "named"):
        table.add_column(column, justify="left" if column in ("defence", "verdict", "worst attack") else "right", no_wrap=True)
    for standing in standings(results):
        worst, named = standing.worst, standing.named
        table.add_row(
            SHORT[standing.defense],
            standing.word,
            *(
                (worst["attack"], f"{worst['psnr']:.1f}", f"{worst['nearer_db']:+.1f}", f"{worst['below_bob_db']:.1f}")
                if worst
                else ("-", "-", "-", "-")
            ),
            rate(named) if named else "-",
        )
    table.caption = (
        "dB; nearer: to the right picture than to others, beyond chance\nnamed: picked out of those known, in %, 95 % bounds"
    )
    return table


def paper_table(results: Results, main: float) -> Table:
    """Tables I to IV for a terminal, a column each: PSNR ± interval / SSIM, the paper's figures below."""
    column = mains(results).index(main)
    shown = paper_defenses(results)
    table = _table(f"The paper's tables, main channel {main:g} dB: PSNR ± 95 % / SSIM")
    table.add_column("")
    for defense in shown:
        table.add_column(f"{SHORT[defense]}\n{paper.PLACES[defense][0]}", justify="right", no_wrap=True)
    lines = [table_lines(results, defense) for defense in shown]
    for i, (name, _) in enumerate(lines[0]):
        rows = [line[i][1][column] for line in lines]
        table.add_row(name.replace("Eve ", ""), *(_compact(row) for row in rows))
        if any(row and row["paper_psnr"] is not None for row in rows):
            table.add_row("  the paper", *(_published(row) for row in rows), style="dim")
    return table


def _compact(row: Row | None) -> str:
    if row is None:
        return "-"
    interval = "" if row["psnr_95"] is None else f"±{row['psnr_95']:.1f}"
    return f"{row['psnr']:.1f}{interval}/{_short(row['ssim'])}"


def _published(row: Row | None) -> str:
    return "" if row is None or row["paper_psnr"] is None else f"{row['paper_psnr']:.1f}/{_short(row['paper_ssim'])}"


def _short(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".", 1)


def leakage_tables(results: Results, eve_snr: float, precision: str) -> list[Table]:
    """The Eves who adapt, for a terminal, at one of Eve's SNRs and one precision: pictures, then games."""
    tables = []
    for group in groups(results):
        if (group.eve_snr, group.precision) != (eve_snr, precision):
            continue
        for title, lines in (
            (f"Eves who know the defence, {group.label}: PSNR/SSIM", group.pictures),
            (f"games, {group.label}: success in %, 95 % bounds", strongest(group)),
        ):
            if not lines:
                continue
            table = _table(title)
            table.add_column("")
            for defense in defenses(results):
                table.add_column(SHORT[defense], justify="right", no_wrap=True)
            for label, rows in lines:
                table.add_row(_game_label(label), *(_leak(row) for row in rows))
            tables.append(table)
    return tables


def tally_table(results: Results) -> Table:
    """In how many comparisons each ordering holds, for a terminal."""
    table = _table("orderings, paired PSNR differences with 95 % intervals")
    for column in ("claim", "holds", "fails", "open"):
        table.add_column(column, justify="left" if column == "claim" else "right")
    for line in tally(results["orderings"]):
        table.add_row(*map(str, line))
    return table


def _game_label(label: str) -> str:
    return {
        "which, true positives at 1 % false": "at 1 % false",
        "which, top-1": "named, top-1",
        "link, same picture?": "same picture?",
    }.get(label, label)


def _leak(row: Row | None) -> str:
    if row is None:
        return "-"
    if row["verdict"] == "void":
        return "void"
    mark = "*" if row["verdict"] == "sees" else " "
    return (rate(row) if "chance" in row else f"{row['psnr']:.1f}/{_short(row['ssim'])}") + mark


def rate(row: Row) -> str:
    """A game's success and its bounds in per cent."""
    if row["verdict"] == "void":
        return "void"
    value = percent(row["value"])
    if row["high"] == 1:
        return f"{value} ≥{percent(row['low'])}"
    return f"{value} ≤{percent(row['high'])}" if row["low"] == 0 else f"{value} {percent(row['low'])}-{percent(row['high'])}"


def print_results(console: Console, results: Results, folder: Path, asked: Settings) -> None:
    """Print what an audit found; of the adaptive attacks, at the highest SNR and first precision that were asked for."""
    settings = results["settings"]
    if paper_defenses(results):
        for main in mains(results):
            console.print(paper_table(results, main))
    snr, precision = max(asked.eve_snrs), asked.precisions[0]
    for table in leakage_tables(results, snr, precision):
        console.print(table)
    console.print(FOOTNOTE, soft_wrap=True)
    if len(settings["eve_snrs"]) * len(settings["precisions"]) > 1:
        console.print(f"above: Eve at {snr:g} dB, {precision} engines; the others are in the report", soft_wrap=True)
    if results["orderings"]:
        console.print(tally_table(results))
    for name, reason in results["skipped"].items():
        console.print(f"skipped {name}: {reason}", markup=False, soft_wrap=True)
    console.print(
        f"{settings['pictures']} {results['pictures']}; white-box on {settings['optimised_pictures']}; "
        f"SSIM: {results['ssim']}; seed {settings['seed']}",
        soft_wrap=True,
    )
    console.print(verdict_table(results))
    for sentence in headline(results) + limits(results):
        console.print(sentence, markup=False, soft_wrap=True)
    console.print(f"pictures and tables: {folder / 'report.html'}    figures: {folder / 'results.json'}", soft_wrap=True)


# in Markdown


def markdown_tables(results: Results) -> str:
    """All tables in Markdown; the figures of the paper in parentheses."""
    lines = ["### Verdict", "", *headline(results), ""]
    lines += _markdown(
        [
            "defence",
            "verdict",
            "measurements",
            "worst attack",
            "PSNR / SSIM",
            "nearer to the right picture, dB",
            "above the mean picture, dB",
            "below Bob, dB",
            "named",
        ],
        [
            [NAMES[found.defense], found.word, found.found]
            + (
                [
                    found.worst["attack"],
                    f"{found.worst['psnr']:.2f} / {found.worst['ssim']:.2f}",
                    _gain(found.worst, "nearer"),
                    _gain(found.worst, "above_mean_picture"),
                    _gain(found.worst, "below_bob"),
                ]
                if found.worst
                else ["", "", "", "", ""]
            )
            + [bounds(found.named) if found.named else "not measured"]
            for found in standings(results)
        ],
    )
    for defense in paper_defenses(results):
        lines += [f"### Table {paper.PLACES[defense][0]}: {NAMES[defense]}", ""]
        lines += _markdown(
            ["PSNR in dB / SSIM", *(f"main channel {main:g} dB" for main in mains(results))],
            [[name, *(_text(row) for row in rows)] for name, rows in table_lines(results, defense)],
        )
    for group in groups(results):
        if group.pictures or group.games:
            lines += [f"### Eves who know the defence: {group.label}", ""]
            lines += _markdown(
                ["attack", *(NAMES[defense] for defense in defenses(results))],
                [[label, *(_marked(row) for row in rows)] for label, rows in group.pictures + group.games],
            )
    lines += ["### Orderings", ""]
    counted = [[claim, *map(str, counts)] for claim, *counts in tally(results["orderings"])]
    lines += _markdown(["claim", "holds", "fails", "open"], counted)
    return "\n".join(lines[:-1]) + "\n"


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)] + [""]


def _text(row: Row | None) -> str:
    if row is None:
        return "not measured"
    published = "" if row["paper_psnr"] is None else f"  ({row['paper_psnr']:.2f} / {row['paper_ssim']:.2f})"
    return measured(row) + published


def _gain(row: Row, what: str) -> str:
    half = row[f"{what}_95"]
    return f"{row[f'{what}_db']:+.2f}" + ("" if half is None else f" ± {half:.2f}")


def _marked(row: Row | None) -> str:
    if row is None:
        return ""
    if row["verdict"] == "void":
        return "void"
    found = bounds(row) if "chance" in row else f"{measured(row)}, nearer {_gain(row, 'nearer')}"
    return f"{found}, {row['verdict']}"


def bounds(row: Row) -> str:
    """A game's success with its exact bounds, as fractions."""
    return "void" if row["verdict"] == "void" else f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
