"""Results of an audit -> what its tables hold, and tables for a terminal of 80 columns.

Results ── paper_lines ── Tables I to IV, a column for each bundle ───────┐
        ├─ side_by_side ─ each attack, a column for each place ───────────┤
        └─ groups ─────── every attack and game, a column for each defence ┴─ rich tables; Markdown, report.html

A place is a bundle at one SNR of Bob's, on one engine at one precision; every table says which it is about.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from semseal.runtime.audit import paper
from semseal.runtime.audit.attacks import ATTACKS
from semseal.runtime.audit.gate import line as gate_line
from semseal.runtime.audit.results import CHANNEL_TITLES, GameRow, Ordering, PictureRow, PlaceKey, Results, place_key, place_of
from semseal.runtime.audit.settings import Place, Settings, eve_at
from semseal.runtime.audit.verdict import verdicts
from semseal.runtime.audit.wording import MATCHING_ADVANTAGE, beside, headline, limits, optimised, percent
from semseal.runtime.defense.defenses import BY_NAME, DEFENSES

MAX_PLACES = 3  # columns that fit a terminal
PUBLISHED = tuple(attack.name for attack in ATTACKS if attack.published)

Either = PictureRow | GameRow
Row = TypeVar("Row", PictureRow, GameRow, Either)


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
    place: Place
    eve_snr: float
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
    """One of Tables I to IV, a column for each bundle at its first place."""
    wanted: list[tuple[str, str, str, float | None]] = [("Bob", "bob", defense, None)]
    for snr in results.settings.eve_snrs:
        wanted += [(f"{attack}, {eve_at(snr)}", attack, defense, snr) for attack in PUBLISHED]
    wanted.append(("mean picture", "mean-picture", "none", None))
    found = {(row.attack, row.defense, row.eve_snr, place_of(row)): row for row in results.rows}
    return [
        Line(label, attack, tuple(found.get((attack, name, snr, place_key(place))) for place in results.firsts))
        for label, attack, name, snr in wanted
    ]


def place_title(results: Results, place: Place) -> str:
    """What tells a place from the others of the audit: the bundle, and what else is not the same everywhere."""
    return ", ".join(_place_parts(results, place))


def _place_parts(results: Results, place: Place) -> list[str]:
    parts = [place.bundle]
    if len({bundle.main_snr for bundle in results.bundles}) > 1:
        parts.append(f"main {place.main_snr:g} dB")
    if len({(other.engine, other.precision) for other in results.every_place}) > 1:
        parts += [place.engine, place.precision]
    if len({bundle.main_channel for bundle in results.bundles}) > 1:
        parts.append(CHANNEL_TITLES[place.main_channel])
    return parts


def full_title(place: Place, eve_snr: float | None = None) -> str:
    """A place in full: bundle, engine, precision, SNRs and channels."""
    main = f"main {place.main_snr:g} dB {CHANNEL_TITLES[place.main_channel]}"
    eve = ""
    antennas = "" if place.eve_antennas == 1 else f" with {place.eve_antennas} antennas"
    if eve_snr is not None:  # without noise her channel is none, whatever it was
        channel = "" if math.isinf(eve_snr) else f" {CHANNEL_TITLES[place.eve_channel]}{antennas}"
        eve = f"{eve_at(eve_snr)}{channel}, "
    return f"{place.bundle}, {eve}{main}, {place.engine} {place.precision}"


def side_by_side(results: Results) -> list[Line[Either]]:
    """Each attack under each defence at Eve's highest SNR, a column for each place; nothing where there is one place.

    The label is that of the attack and of the defence.
    """
    places, best = results.every_place, max(results.settings.eve_snrs)
    if len(places) < 2:
        return []
    found: dict[tuple[str, str], dict[PlaceKey, Either]] = {}
    rows: tuple[Either, ...] = (*results.rows, *results.games)
    for row in rows:
        if row.eve_snr in (None, best):
            name = {"bob": "Bob", "mean-picture": "mean picture"}.get(row.attack, row.attack)
            label = f"{name}, {row.name}" if isinstance(row, GameRow) else name
            found.setdefault((label, row.defense), {})[place_of(row)] = row
    labels, order = list(dict.fromkeys(label for label, _ in found)), tuple(BY_NAME)
    return [
        Line(
            f"{label}: {BY_NAME[defense].short}",
            next(iter(here.values())).attack,
            tuple(here.get(place_key(place)) for place in places),
        )
        for (label, defense), here in sorted(
            found.items(), key=lambda item: (labels.index(item[0][0]), order.index(item[0][1]))
        )
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
    """By place, the highest of Eve's SNRs first."""
    settings, columns = results.settings, defenses(results)
    found = []
    for place in results.every_place:
        for eve in sorted(settings.eve_snrs, reverse=True):
            here = (eve, place_key(place))
            rows = [row for row in results.rows if (row.eve_snr, place_of(row)) == here]
            games = [game for game in results.games if (game.eve_snr, place_of(game)) == here]
            pictures = _lines(rows, lambda row: row.attack, columns)
            played = _lines(games, lambda game: f"{game.attack}, {game.name}", columns)
            found.append(Group(full_title(place, eve), place, eve, pictures, played))
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
    """The games, the pairs of "distinguishing" and several "attributes" as one line: under each defence Eve's best one."""
    lines = [line for line in group.games if line.attack not in ("distinguishing", "attributes")]
    for attack, what in (("distinguishing", "pairs"), ("attributes", "attributes")):
        several = [line for line in group.games if line.attack == attack]
        if len(several) == 1 and attack == "attributes":
            lines += several
        elif several:
            columns = [[row for row in column if row] for column in zip(*(line.rows for line in several), strict=True)]
            best = tuple(max(rows, key=lambda row: (row.low, row.value), default=None) for rows in columns)
            lines.append(Line(f"best of {len(several)} {what}", attack, best))
    return lines


def measured(row: PictureRow) -> str:
    """PSNR in dB and SSIM of a row, each ± half of its 95 % interval where it has one."""
    if row.psnr_95 is None:
        return f"{row.psnr:.2f} / {row.ssim:z.2f}"
    return f"{row.psnr:.2f} ± {row.psnr_95:.2f} / {row.ssim:.3f} ± {row.ssim_95:.3f}"


# for a terminal


def print_results(console: Console, results: Results, folder: Path, asked: Settings) -> None:
    """All of an audit for a terminal: at the highest of Eve's SNRs, the first engine and the first precision ``asked`` for."""
    settings = results.settings
    for table in paper_tables(results):
        console.print(table)
    snr, precision = max(asked.eve_snrs), asked.precisions[0]
    for table in leakage_tables(results, snr, precision, asked.engines[0] if asked.engines else None):
        console.print(table)
    console.print("* sees: above chance; void: the attack failed where it must win, so it shows nothing", soft_wrap=True)
    for table in side_by_side_tables(results):
        console.print(table)
    if len(settings.eve_snrs) * len({(place.engine, place.precision) for place in results.every_place}) > 1:
        console.print(f"above: {eve_at(snr)}, {precision} engines; the rest is in the report", soft_wrap=True)
    if results.orderings:
        console.print(tally_table(results))
    for name, reason in results.skipped.items():
        console.print(f"skipped {name}: {reason}", markup=False, soft_wrap=True)
    few = f"; {names} on {settings.optimised_pictures}" if (names := optimised(results)) else ""
    console.print(f"{settings.pictures} {results.pictures}{few}; SSIM: {results.ssim}; seed {settings.seed}", soft_wrap=True)
    console.print(verdict_table(results))
    for sentence in headline(results) + limits(results):
        console.print(sentence, markup=False, soft_wrap=True)
    console.print(MATCHING_ADVANTAGE, soft_wrap=True)
    where = f"pictures and tables: {folder / 'report.html'}    figures: {folder / 'results.json'}"
    console.print(where, markup=False, soft_wrap=True)
    for gate in results.gate:
        console.print(gate_line(gate), markup=False, soft_wrap=True, highlight=False)


def _table(title: str) -> Table:
    return Table(title=escape(title), box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


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
            cells = (
                worst.attack,
                _psnr(results, worst.psnr),
                f"{worst.matching_advantage_db:+z.1f}",
                f"{worst.below_bob_db:z.1f}",
            )
        named = success(verdict.named, bound_of(results, "identification")) if verdict.named else "-"
        table.add_row(BY_NAME[verdict.defense].short, verdict.word, *cells, named)
    table.caption = (
        "dB; adv.: matching advantage, 0 for an Eve who learned nothing\n"
        "named: how often Eve names the picture, in %, 95 % bounds"
    )
    return table


def bound_of(results: Results, name: str) -> float:
    """That of the budget of this name; without one, one that no figure is near to."""
    return next((gate.bound for gate in results.gate if gate.name == name), math.inf)


def _psnr(results: Results, value: float) -> str:
    return beside(value, bound_of(results, "psnr"), 1)


def paper_tables(results: Results) -> list[Table]:
    """Tables I to IV for a terminal, one for each bundle, a column each: PSNR ± interval / SSIM, the paper's figures below.

    With several bundles and one of Tables I to IV, a single table with a column for each bundle.
    """
    shown = paper_defenses(results)
    if not shown:
        return []
    if len(results.bundles) > 1:
        return [
            _paper_table(
                f"Table {paper.TABLES[defense][0]}, {BY_NAME[defense].title}: PSNR ± 95 % / SSIM",
                [(f"{bundle.name}\n{bundle.main_snr:g} dB", defense, i) for i, bundle in enumerate(results.bundles)],
                results,
            )
            for defense in shown
        ]
    title = f"Tables I to IV, {full_title(results.firsts[0])}: PSNR ± 95 % / SSIM"
    columns = [(f"{BY_NAME[defense].short}\n{paper.TABLES[defense][0]}", defense, 0) for defense in shown]
    return [_paper_table(title, columns, results)]


def _paper_table(title: str, columns: list[tuple[str, str, int]], results: Results) -> Table:
    """``columns`` are the head of each, its defence, and the place of its bundle."""
    table = _table(title)
    table.add_column("")
    for head, _, _ in columns:
        table.add_column(escape(head), justify="right", no_wrap=len(columns) <= MAX_PLACES)
    lines = {defense: paper_lines(results, defense) for _, defense, _ in columns}
    for i, first in enumerate(lines[columns[0][1]]):
        rows = [lines[defense][i].rows[bundle] for _, defense, bundle in columns]
        table.add_row(first.label.replace("Eve ", ""), *(_compact(row) for row in rows))
        if any(row and row.paper_psnr is not None for row in rows):
            table.add_row("  the paper", *(_published(row) for row in rows), style="dim")
    return table


def side_by_side_tables(results: Results) -> list[Table]:
    """Several bundles or engines side by side for a terminal: pictures as PSNR/SSIM, games in %; so many columns as fit.

    Without the pairs of "distinguishing", and nothing where precisions alone differ: the report has those.
    """
    lines, tables = [found for found in side_by_side(results) if found.attack != "distinguishing"], []
    places = results.every_place
    several = len(results.bundles) > 1 or any(len(bundle.engines) > 1 for bundle in results.bundles)
    for start in range(0, len(places) if several else 0, MAX_PLACES):
        here = slice(start, start + MAX_PLACES)
        table = _table(f"side by side, {eve_at(max(results.settings.eve_snrs))}: PSNR/SSIM, or success in %")
        table.add_column("")
        for place in places[here]:
            table.add_column(escape("\n".join(_place_parts(results, place))), justify="right")
        for found in lines:
            table.add_row(_short_label(found.label), *(_either_cell(row) for row in found.rows[here]))
        tables.append(table)
    return tables


def _either_cell(row: PictureRow | GameRow | None) -> str:
    return _game_cell(row) if isinstance(row, GameRow) else _picture_cell(row)


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
    return f"{value:z.2f}".replace("0.", ".", 1)


def leakage_tables(results: Results, eve_snr: float, precision: str, engine: str | None = None) -> list[Table]:
    """Every attack for a terminal, at one of Eve's SNRs, one precision, and one engine or each bundle's first."""
    tables = []
    engines = {bundle.name: bundle.engines[0] if engine is None else engine for bundle in results.bundles}
    for group in groups(results):
        wanted = (eve_snr, precision, engines[group.place.bundle])
        if (group.eve_snr, group.place.precision, group.place.engine) != wanted:
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
    name, colon, defense = label.partition(": ")
    short = {
        "identification, true positives at 1 % false": "at 1 % false",
        "identification, top-1": "named, top-1",
        "linkability, same picture?": "same picture?",
        "stored-frame, true positives at 1 % false": "stored, at 1 %",
        "stored-frame, top-1": "stored, named",
    }.get(name, name)
    return f"{short}{colon}{defense}"


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


def success(row: GameRow, bound: float = math.inf) -> str:
    """A game's success and its bounds in per cent, or what else it measures.

    The upper bound is not rounded across ``bound``, a budget.
    """
    if row.verdict == "void":
        return "void"
    if row.measure in ("dB", "t"):
        return f"{row.value:+z.1f} dB" if row.measure == "dB" else f"t {row.value:z.1f}"
    value = percent(row.value)
    if row.high == 1:
        return f"{value} ≥{percent(row.low)}"
    high = percent(row.high) if math.isinf(bound) else beside(100 * row.high, 100 * bound, 1)
    return f"{value} ≤{high}" if row.low == 0 else f"{value} {percent(row.low)}-{high}"


def tally_table(results: Results) -> Table:
    """In how many comparisons each ordering holds, for a terminal."""
    table = _table("orderings, paired PSNR differences with 95 % intervals")
    table.add_column("claim")
    for column in ("holds", "fails", "open"):
        table.add_column(column, justify="right")
    for line in tally(results.orderings):
        table.add_row(line.claim, str(line.holds), str(line.fails), str(line.open))
    return table
