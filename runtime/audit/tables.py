"""Results of an audit -> tables for a terminal of 80 columns, and tables in Markdown.

Results ── paper_lines ── Tables I to IV, a column for each main SNR ────┐
        └─ groups ─────── every attack and game, a column for each defence ┴─ rich tables, Markdown, report.html
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from semseal.runtime.audit import paper
from semseal.runtime.audit.attacks import ATTACKS
from semseal.runtime.audit.results import GameRow, Ordering, PictureRow, Results
from semseal.runtime.audit.settings import Settings
from semseal.runtime.audit.verdict import verdicts
from semseal.runtime.audit.wording import MATCHING_ADVANTAGE, counts, headline, limits, optimised, percent
from semseal.runtime.defense.defenses import BY_NAME, DEFENSES

PUBLISHED = tuple(attack.name for attack in ATTACKS if attack.published)

Row = TypeVar("Row", PictureRow, GameRow)


@dataclass(frozen=True)
class Line(Generic[Row]):
    """One line of a table: a row of results.json, or None, for each column."""

    label: str
    attack: str
    rows: tuple[Row | None, ...]


@dataclass(frozen=True)
class Group:
    """What was measured at one place, with a column for each of ``defenses``."""

    label: str
    main_snr: float
    eve_snr: float
    precision: str
    pictures: tuple[Line[PictureRow], ...]
    games: tuple[Line[GameRow], ...]


@dataclass(frozen=True)
class Tally:
    """In how many comparisons a claim holds, fails and is open."""

    claim: str
    holds: int
    fails: int
    open: int


# what the tables hold


def paper_defenses(results: Results) -> tuple[str, ...]:
    """The defences of the paper whose table has something in it."""
    there = {row.defense for row in results.rows if row.attack in PUBLISHED}
    return tuple(defense for defense in paper.TABLES if defense in there)


def paper_lines(results: Results, defense: str) -> list[Line[PictureRow]]:
    """One of Tables I to IV, a column for each main SNR, at the first precision."""
    wanted: list[tuple[str, str, str, float | None]] = [("Bob", "bob", defense, None)]
    for snr in results.settings.eve_snrs:
        wanted += [(f"{attack}, Eve {snr:g} dB", attack, defense, snr) for attack in PUBLISHED]
    wanted.append(("mean picture", "mean-picture", "none", None))
    found = {
        (row.attack, row.defense, row.eve_snr, row.main_snr): row
        for row in results.rows
        if row.precision == results.settings.precisions[0]
    }
    return [
        Line(label, attack, tuple(found.get((attack, name, snr, main)) for main in results.mains))
        for label, attack, name, snr in wanted
    ]


def tally(found: Sequence[Ordering]) -> list[Tally]:
    """A line for each claim."""
    claims = dict.fromkeys(ordering.claim for ordering in found)
    words = {claim: [ordering.verdict for ordering in found if ordering.claim == claim] for claim in claims}
    return [Tally(claim, word.count("holds"), word.count("fails"), word.count("open")) for claim, word in words.items()]


def defenses(results: Results) -> tuple[str, ...]:
    """Those that anything of Eve's was measured against, controls too."""
    there = {row.defense for row in results.judged}
    return tuple(defense.name for defense in DEFENSES if defense.name in there)


def groups(results: Results) -> list[Group]:
    """By precision and main SNR, the highest of Eve's SNRs first. The label says only what is not the same everywhere."""
    settings, columns = results.settings, defenses(results)
    found = []
    for precision in settings.precisions:
        for main in results.mains:
            for eve in sorted(settings.eve_snrs, reverse=True):
                place = (main, eve, precision)
                rows = [row for row in results.rows if (row.main_snr, row.eve_snr, row.precision) == place]
                games = [game for game in results.games if (game.main_snr, game.eve_snr, game.precision) == place]
                label = f"Eve {eve:g} dB, main {main:g} dB"
                label += f", {precision}" if len(settings.precisions) > 1 else ""
                pictures = _lines(rows, lambda row: row.attack, columns)
                played = _lines(games, lambda game: f"{game.attack}, {game.name}", columns)
                found.append(Group(label, *place, pictures, played))
    return [group for group in found if group.pictures or group.games]


def _lines(rows: Iterable[Row], label: Callable[[Row], str], columns: tuple[str, ...]) -> tuple[Line[Row], ...]:
    lines: dict[str, dict[str, Row]] = {}
    for row in rows:
        lines.setdefault(label(row), {})[row.defense] = row
    return tuple(
        Line(name, next(iter(found.values())).attack, tuple(found.get(defense) for defense in columns))
        for name, found in lines.items()
    )


def strongest(group: Group) -> list[Line[GameRow]]:
    """The games, the pairs of "distinguishing" as one line: under each defence the pair that Eve tells apart best."""
    pairs = [line for line in group.games if line.attack == "distinguishing"]
    lines = [line for line in group.games if line.attack != "distinguishing"]
    if pairs:
        columns = [[row for row in column if row] for column in zip(*(line.rows for line in pairs), strict=True)]
        best = tuple(max(rows, key=lambda row: (row.low, row.value), default=None) for rows in columns)
        lines.append(Line(f"best of {len(pairs)} pairs", "distinguishing", best))
    return lines


# for a terminal


def print_results(console: Console, results: Results, folder: Path, asked: Settings) -> None:
    """All of an audit for a terminal: at the highest of Eve's SNRs and the first precision that was ``asked`` for."""
    settings = results.settings
    if paper_defenses(results):
        for main in results.mains:
            console.print(paper_table(results, main))
    snr, precision = max(asked.eve_snrs), asked.precisions[0]
    for table in leakage_tables(results, snr, precision):
        console.print(table)
    console.print("* sees: above chance; void: the attack failed where it must win, so it shows nothing", soft_wrap=True)
    if len(settings.eve_snrs) * len(settings.precisions) > 1:
        console.print(f"above: Eve at {snr:g} dB, {precision} engines; the rest is in the report", soft_wrap=True)
    if results.orderings:
        console.print(tally_table(results))
    for name, reason in results.skipped.items():
        console.print(f"skipped {name}: {reason}", markup=False, soft_wrap=True)
    console.print(
        f"{settings.pictures} {results.pictures}; {optimised()} on {settings.optimised_pictures}; "
        f"SSIM: {results.ssim}; seed {settings.seed}",
        soft_wrap=True,
    )
    console.print(verdict_table(results))
    for sentence in headline(results) + limits(results):
        console.print(sentence, markup=False, soft_wrap=True)
    console.print(MATCHING_ADVANTAGE, soft_wrap=True)
    where = f"pictures and tables: {folder / 'report.html'}    figures: {folder / 'results.json'}"
    console.print(where, markup=False, soft_wrap=True)


def _table(title: str) -> Table:
    return Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def verdict_table(results: Results) -> Table:
    """Where each defence stands, for a terminal."""
    table = _table("what an eavesdropper sees")
    for column in ("defence", "verdict", "worst attack"):
        table.add_column(column, no_wrap=True)
    for column in ("PSNR", "adv.", "below\nBob", "named"):
        table.add_column(column, justify="right", no_wrap=True)
    for verdict in verdicts(results):
        worst = verdict.worst
        cells = ("-", "-", "-", "-")
        if worst:
            cells = (worst.attack, f"{worst.psnr:.1f}", f"{worst.matching_advantage_db:+.1f}", f"{worst.below_bob_db:z.1f}")
        named = success(verdict.named) if verdict.named else "-"
        table.add_row(BY_NAME[verdict.defense].short, verdict.word, *cells, named)
    table.caption = (
        "dB; adv.: matching advantage, 0 for an Eve who learned nothing\n"
        "named: how often Eve names the picture, in %, 95 % bounds"
    )
    return table


def paper_table(results: Results, main: float) -> Table:
    """Tables I to IV for a terminal, a column each: PSNR ± interval / SSIM, the paper's figures below."""
    column = results.mains.index(main)
    shown = paper_defenses(results)
    table = _table(f"Tables I to IV, main {main:g} dB: PSNR ± 95 % / SSIM")
    table.add_column("")
    for defense in shown:
        table.add_column(f"{BY_NAME[defense].short}\n{paper.TABLES[defense][0]}", justify="right", no_wrap=True)
    for lines in zip(*(paper_lines(results, defense) for defense in shown), strict=True):
        rows = [line.rows[column] for line in lines]
        table.add_row(lines[0].label.replace("Eve ", ""), *(_compact(row) for row in rows))
        if any(row and row.paper_psnr is not None for row in rows):
            table.add_row("  the paper", *(_published(row) for row in rows), style="dim")
    return table


def _compact(row: PictureRow | None) -> str:
    if row is None:
        return "-"
    interval = "" if row.psnr_95 is None else f"±{row.psnr_95:.1f}"
    return f"{row.psnr:.1f}{interval}/{_no_zero(row.ssim)}"


def _published(row: PictureRow | None) -> str:
    if row is None or row.paper_psnr is None or row.paper_ssim is None:
        return ""
    return f"{row.paper_psnr:.1f}/{_no_zero(row.paper_ssim)}"


def _no_zero(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".", 1)


def leakage_tables(results: Results, eve_snr: float, precision: str) -> list[Table]:
    """Every attack for a terminal, at one of Eve's SNRs and one precision: pictures, then games."""
    tables = []
    for group in groups(results):
        if (group.eve_snr, group.precision) != (eve_snr, precision):
            continue
        if group.pictures:
            lines = [(line.label, [_picture_cell(row) for row in line.rows]) for line in group.pictures]
            tables.append(_leakage_table(f"adaptive attacks, {group.label}: PSNR/SSIM", results, lines))
        if group.games:
            lines = [(_short_label(line.label), [_game_cell(row) for row in line.rows]) for line in strongest(group)]
            tables.append(_leakage_table(f"games, {group.label}: success in %, 95 % bounds", results, lines))
    return tables


def _leakage_table(title: str, results: Results, lines: list[tuple[str, list[str]]]) -> Table:
    table = _table(title)
    table.add_column("")
    for defense in defenses(results):
        table.add_column(BY_NAME[defense].short, justify="right", no_wrap=True)
    for label, cells in lines:
        table.add_row(label, *cells)
    return table


def _short_label(label: str) -> str:
    return {
        "identification, true positives at 1 % false": "at 1 % false",
        "identification, top-1": "named, top-1",
        "linkability, same picture?": "same picture?",
        "stored-frame, true positives at 1 % false": "stored, at 1 %",
        "stored-frame, top-1": "stored, named",
    }.get(label, label)


def _picture_cell(row: PictureRow | None) -> str:
    if row is None:
        return "-"
    return "void" if row.verdict == "void" else f"{row.psnr:.1f}/{_no_zero(row.ssim)}{_mark(row)}"


def _game_cell(row: GameRow | None) -> str:
    if row is None:
        return "-"
    return "void" if row.verdict == "void" else success(row) + _mark(row)


def _mark(row: PictureRow | GameRow) -> str:
    return "*" if row.verdict == "sees" else " "


def success(row: GameRow) -> str:
    """A game's success and its bounds in per cent."""
    if row.verdict == "void":
        return "void"
    value = percent(row.value)
    if row.high == 1:
        return f"{value} ≥{percent(row.low)}"
    return f"{value} ≤{percent(row.high)}" if row.low == 0 else f"{value} {percent(row.low)}-{percent(row.high)}"


def tally_table(results: Results) -> Table:
    """In how many comparisons each ordering holds, for a terminal."""
    table = _table("orderings, paired PSNR differences with 95 % intervals")
    table.add_column("claim")
    for column in ("holds", "fails", "open"):
        table.add_column(column, justify="right")
    for line in tally(results.orderings):
        table.add_row(line.claim, str(line.holds), str(line.fails), str(line.open))
    return table


# in Markdown


def markdown_tables(results: Results) -> str:
    """All tables in Markdown; the figures of the paper in parentheses."""
    lines = ["### Verdict", "", *headline(results), "", *_verdict_lines(results)]
    for defense in paper_defenses(results):
        lines += [f"### Table {paper.TABLES[defense][0]}: {BY_NAME[defense].title}", ""]
        lines += _markdown(
            ["PSNR in dB / SSIM", *(f"main channel {main:g} dB" for main in results.mains)],
            [[line.label, *(_with_published(row) for row in line.rows)] for line in paper_lines(results, defense)],
        )
    for group in groups(results):
        lines += [f"### Adaptive attacks: {group.label}", ""]
        lines += _markdown(
            ["attack", *(BY_NAME[defense].title for defense in defenses(results))],
            [[line.label, *(_judged_pictures(row) for row in line.rows)] for line in group.pictures]
            + [[game.label, *(_judged_game(row) for row in game.rows)] for game in group.games],
        )
    lines += ["### Orderings", ""]
    tallied = [[line.claim, str(line.holds), str(line.fails), str(line.open)] for line in tally(results.orderings)]
    lines += _markdown(["claim", "holds", "fails", "open"], tallied)
    return "\n".join(lines[:-1]) + "\n"


def _verdict_lines(results: Results) -> list[str]:
    head = ["defence", "verdict", "measurements", "worst attack", "PSNR / SSIM", "matching advantage, dB"]
    head += ["above the mean picture, dB", "below Bob, dB", "named"]
    lines = []
    for verdict in verdicts(results):
        worst, cells = verdict.worst, ["", "", "", "", ""]
        if worst:
            cells = [
                worst.attack,
                f"{worst.psnr:.2f} / {worst.ssim:.2f}",
                _gain(worst.matching_advantage_db, worst.matching_advantage_95),
                _gain(worst.above_mean_picture_db, worst.above_mean_picture_95),
                _gain(worst.below_bob_db, worst.below_bob_95),
            ]
        named = bounds(verdict.named) if verdict.named else "not measured"
        lines.append([BY_NAME[verdict.defense].title, verdict.word, counts(verdict), *cells, named])
    caption = f"{MATCHING_ADVANTAGE[0].upper()}{MATCHING_ADVANTAGE[1:]}."
    return [*_markdown(head, lines), caption, ""]


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)] + [""]


def measured(row: PictureRow) -> str:
    """PSNR in dB and SSIM of a row, each ± half of its 95 % interval where it has one."""
    if row.psnr_95 is None:
        return f"{row.psnr:.2f} / {row.ssim:.2f}"
    return f"{row.psnr:.2f} ± {row.psnr_95:.2f} / {row.ssim:.3f} ± {row.ssim_95:.3f}"


def _with_published(row: PictureRow | None) -> str:
    if row is None:
        return "not measured"
    return measured(row) + ("" if row.paper_psnr is None else f"  ({row.paper_psnr:.2f} / {row.paper_ssim:.2f})")


def _gain(value: float | None, half: float | None) -> str:
    return f"{value:+.2f}" + ("" if half is None else f" ± {half:.2f}")


def _judged_pictures(row: PictureRow | None) -> str:
    if row is None:
        return ""
    if row.verdict == "void":
        return "void"
    return f"{measured(row)}, advantage {_gain(row.matching_advantage_db, row.matching_advantage_95)}, {row.verdict}"


def _judged_game(row: GameRow | None) -> str:
    if row is None:
        return ""
    return "void" if row.verdict == "void" else f"{bounds(row)}, {row.verdict}"


def bounds(row: GameRow) -> str:
    """A game's success with its bounds, as fractions."""
    return "void" if row.verdict == "void" else f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"
