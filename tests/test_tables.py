"""The tables of made-up audits, and of the two whose results are in docs/."""

import dataclasses
import io
import re
from pathlib import Path

import pytest
from madeup import EVERY_ATTACK, PICTURES, made_up
from rich.console import Console
from semseal.runtime.audit.markdown import bounds, markdown_tables
from semseal.runtime.audit.results import Results
from semseal.runtime.audit.tables import (
    leakage_tables,
    paper_tables,
    print_results,
    side_by_side_tables,
    success,
    tally_table,
    verdict_table,
)
from semseal.runtime.audit.wording import limits

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", params=["eves", "snrs"])
def earlier(request) -> Results:
    return Results.from_json((ROOT / f"docs/results-{request.param}.json").read_text())


def test_tables_fit_a_terminal_of_80_columns(earlier):
    precisions, bundles = earlier.settings.precisions, len(earlier.bundles)
    tables = [verdict_table(earlier), tally_table(earlier), *paper_tables(earlier), *side_by_side_tables(earlier)]
    tables += [table for name in precisions for table in leakage_tables(earlier, 10.0, name)]
    papers = 1 if bundles == 1 else 4  # a column for each defence, or a table for each and a column for each bundle
    assert len(tables) == 1 + 1 + papers + (bundles > 1) + 2 * bundles * len(precisions)
    for results in (made_up(11, EVERY_ATTACK), made_up(11, EVERY_ATTACK, control=11)):
        found = [verdict_table(results), *leakage_tables(results, 10.0, "fp32")]
        assert len(found) == 3
        tables += found
    for table in tables:
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(table)
        lines = console.export_text().splitlines()
        assert "…" not in "".join(lines)
        assert len(lines) <= table.row_count + 10  # one line for each row


def test_only_what_was_measured_is_told_of():
    said = "\n".join(limits(made_up(11, ("row-ordering", "identification"))))
    assert "white-box" not in said.split("Not measured: ")[0]
    assert "12 pictures: the intervals are wide." in said
    said = "\n".join(limits(made_up(11, ("white-box", "row-ordering"))))
    assert " for white-box: the intervals are wide." in said
    results = made_up(11, ("row-ordering", "identification"))
    rows = tuple(row for row in results.rows if (row.attack, row.defense) != ("row-ordering", "permute"))
    never, partly = limits(dataclasses.replace(results, rows=rows))[-2:]
    assert never.startswith("Not measured: ")
    assert "row-ordering" not in never
    assert partly == "Not measured under every defence: row-ordering."


def test_a_terminal_says_void_in_one_word():
    attacks = tuple(name for name in PICTURES if name != "reused-stream")  # which sees here
    table = leakage_tables(made_up(11, attacks, control=11), 10.0, "fp32")[0]
    for column in table.columns[1:]:
        assert set(column.cells) <= {"void", "-"}


def test_the_terminal_gets_every_part(earlier, tmp_path):
    console = Console(width=80, record=True, file=io.StringIO())
    print_results(console, earlier, tmp_path, earlier.settings)
    text = console.export_text()
    first = "Tables I to IV, faces-10db" if len(earlier.bundles) == 1 else "Table I, no defence"
    beside = ["side by side, Eve "] * (len(earlier.bundles) > 1)
    parts = [first, "adaptive attacks, faces-", "games, faces-", *beside, "orderings, paired",
             "what an eavesdropper sees", "Mix holds, with gaps", "Not measured under every defence and at every place",
             "matching advantage: how", str(tmp_path / "report.html")]  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_markdown_has_every_table(earlier):
    text, settings = markdown_tables(earlier), earlier.settings
    places = len(earlier.every_place) * len(settings.eve_snrs)
    assert text.count("### Adaptive attacks: ") == places
    for table in ("### Verdict", "### Table I: no defence", "### Table II: permutation + substitution", "### Orderings"):
        assert table in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    for row in earlier.rows:
        if row.verdict is not None:
            figures = rf"{row.psnr:.2f} ± {row.psnr_95:.2f} / {row.ssim:.3f} ± {row.ssim_95:.3f}, advantage"
            assert f"{figures} {row.matching_advantage_db:+z.2f} ± {row.matching_advantage_95:.2f}, {row.verdict} |" in text
    for game in earlier.games:
        assert f"| {game.value:.3f} [{game.low:.3f}, {game.high:.3f}], {game.verdict} |" in text


def test_a_rounded_zero_has_no_minus_sign():
    results = made_up(11, EVERY_ATTACK)
    tiny = {"matching_advantage_db": -0.001, "above_mean_picture_db": -0.001, "below_bob_db": -0.001, "ssim": -0.001}
    rows = tuple(dataclasses.replace(row, **tiny) if row.verdict else row for row in results.rows)
    results = dataclasses.replace(results, rows=rows)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(verdict_table(results), *leakage_tables(results, 10.0, "fp32"))
    said = console.export_text() + markdown_tables(results)
    assert "+0.00" in said
    assert not re.search(r"(?<!\d)-0?\.0+(?!\d)", said)  # 0.1-0.0 is a range
    game = dataclasses.replace(results.games[0], measure="dB", value=-0.001, low=-0.002, high=0.001, verdict="nothing")
    assert (success(game), bounds(game)) == ("+0.0 dB", "0.00 dB [0.00, 0.00]")
