"""Results of an audit -> tables in Markdown; the figures of the paper in parentheses."""

from collections.abc import Sequence

from semseal.runtime.audit import paper
from semseal.runtime.audit.against import HEAD, Compared
from semseal.runtime.audit.gate import line as gate_line
from semseal.runtime.audit.overchannels import AIR_HEAD, air_lines
from semseal.runtime.audit.results import CHANNEL_TITLES, GameRow, PictureRow, Results
from semseal.runtime.audit.settings import eve_at, listed_snrs
from semseal.runtime.audit.tables import (
    bound_of,
    defenses,
    groups,
    measured,
    paper_defenses,
    paper_lines,
    place_title,
    side_by_side,
    tally,
)
from semseal.runtime.audit.verdict import verdicts
from semseal.runtime.audit.wording import MATCHING_ADVANTAGE, beside, counts, headline
from semseal.runtime.defense.defenses import BY_NAME


def markdown_tables(results: Results, compared: Sequence[Compared] = ()) -> str:
    """All tables."""
    lines = ["### Verdict", "", *headline(results), "", *_verdict_lines(results)]
    if results.gate:
        lines += ["### Gate", "", *(f"- {gate_line(gate)}" for gate in results.gate), ""]
    for here in compared:
        lines += [f"### Leakage against cost: {place_title(results, here.place)}", ""]
        lines += _markdown(list(HEAD), [list(balance.cells) for balance in here.balances])
    lines += ["### What was attacked", "", *_bundle_lines(results)]
    for defense in paper_defenses(results):
        lines += [f"### Table {paper.TABLES[defense][0]}: {BY_NAME[defense].title}", ""]
        lines += _markdown(
            ["PSNR in dB / SSIM", *(bundle.title for bundle in results.bundles)],
            [[line.label, *(_with_published(row) for row in line.rows)] for line in paper_lines(results, defense)],
        )
    if rows := side_by_side(results):
        lines += [f"### Side by side, {eve_at(max(results.settings.eve_snrs))}", ""]
        lines += _markdown(
            ["attack: defence", *(place_title(results, place) for place in results.every_place)],
            [[found.label, *(_judged_either(row) for row in found.rows)] for found in rows],
        )
    for group in groups(results):
        lines += [f"### Adaptive attacks: {group.label}", ""]
        lines += _markdown(
            ["attack", *(BY_NAME[defense].title for defense in defenses(results))],
            [[line.label, *(_judged_pictures(row) for row in line.rows)] for line in group.pictures]
            + [[game.label, *(_judged_game(row) for row in game.rows)] for game in group.games],
        )
    for title, found in air_lines(results):
        lines += [f"### On air: {title}", "", *_markdown(list(AIR_HEAD), [list(cells) for cells in found])]
    lines += ["### Orderings", ""]
    tallied = [[line.claim, str(line.holds), str(line.fails), str(line.open)] for line in tally(results.orderings)]
    lines += _markdown(["claim", "holds", "fails", "open"], tallied)
    return "\n".join(lines[:-1]) + "\n"


def _bundle_lines(results: Results) -> list[str]:
    head = ["bundle", "main channel", "Eve's channel", "engines", "precisions", "bandwidth ratio", "digest"]
    eve = listed_snrs(results.settings.eve_snrs)
    count = results.settings.eve_antennas
    antennas = "" if count == 1 else f", {count} antennas"
    return _markdown(
        head,
        [
            [
                bundle.name,
                f"{CHANNEL_TITLES[bundle.main_channel]}, {bundle.main_snr:g} dB",
                f"{CHANNEL_TITLES[bundle.eve_channel]}, {eve}{antennas}",
                ", ".join(bundle.engines),
                ", ".join(results.settings.precisions),
                f"{bundle.bandwidth_ratio:.4f}",
                bundle.digest[:16],
            ]
            for bundle in results.bundles
        ],
    )


def _judged_either(row: PictureRow | GameRow | None) -> str:
    if isinstance(row, GameRow):
        return _judged_game(row)
    return measured(row) if row is not None and row.verdict is None else _judged_pictures(row)


def _verdict_lines(results: Results) -> list[str]:
    head = ["defence", "verdict", "measurements", "worst attack", "PSNR / SSIM", "matching advantage, dB"]
    head += ["above the mean picture, dB", "below Bob, dB", "named"]
    lines = []
    for verdict in verdicts(results):
        worst, cells = verdict.worst, ["", "", "", "", ""]
        if worst:
            cells = [
                worst.attack,
                f"{beside(worst.psnr, bound_of(results, 'psnr'), 2)} / {worst.ssim:z.2f}",
                _gain(worst.matching_advantage_db, worst.matching_advantage_95),
                _gain(worst.above_mean_picture_db, worst.above_mean_picture_95),
                _gain(worst.below_bob_db, worst.below_bob_95),
            ]
        named = bounds(verdict.named) if verdict.named else "not measured"
        lines.append([BY_NAME[verdict.defense].title, verdict.word, counts(verdict), *cells, named])
    caption = f"{MATCHING_ADVANTAGE[0].upper()}{MATCHING_ADVANTAGE[1:]}."
    return [*_markdown(head, lines), caption, ""]


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = (head, ["---"] * len(head), *rows)
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]  # names of bundles and of classes are the user's
    return [f"| {' | '.join(line)} |" for line in escaped] + [""]


def _with_published(row: PictureRow | None) -> str:
    if row is None:
        return "not measured"
    return measured(row) + ("" if row.paper_psnr is None else f"  ({row.paper_psnr:.2f} / {row.paper_ssim:.2f})")


def _gain(value: float | None, half: float | None) -> str:
    return f"{value:+z.2f}" + ("" if half is None else f" ± {half:.2f}")


def _judged_pictures(row: PictureRow | None) -> str:
    if row is None:
        return ""
    if row.verdict == "void":
        return "void"
    return f"{measured(row)}, advantage {_gain(row.matching_advantage_db, row.matching_advantage_95)}, {row.verdict}"


def _judged_game(row: GameRow | None) -> str:
    if row is None:
        return ""
    return "void" if row.verdict == "void" else f"{bounds(row)}, {row.verdict}" + (f"; {row.note}" if row.note else "")


def bounds(row: GameRow) -> str:
    """A game's success with its bounds, as fractions, dB or a t."""
    if row.verdict == "void":
        return "void"
    digits, unit = {"dB": (2, " dB"), "t": (1, "")}.get(row.measure, (3, ""))
    return f"{row.value:z.{digits}f}{unit} [{row.low:z.{digits}f}, {row.high:z.{digits}f}]"
