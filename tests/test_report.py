"""The page of a small real audit in a real Chromium, the words at its top on made-up cells, and the tables of a terminal."""

import base64
import dataclasses
import io
import json
import re
import subprocess
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from semseal.runtime.attacks import whitebox
from semseal.runtime.audit.cell import Answers, Played
from semseal.runtime.audit.figures import Point, gains, rates, spread
from semseal.runtime.audit.matrix import ATTACKS, GAMES, PICTURES, Cell, Settings, applies
from semseal.runtime.audit.run import audit
from semseal.runtime.audit.standing import at_most, headline, limits, standings
from semseal.runtime.audit.tables import leakage_tables, markdown_tables, paper_table, tally_table, verdict_table
from semseal.runtime.audit.verdict import figures, game_rows, orderings, picture_rows

few = dataclasses.replace(whitebox.FAST, steps=3)
TINY = Settings(pictures=6, optimised_pictures=6, eve_pictures=44, whitebox=few, blackbox_steps=4,
                eve_snrs=(0.0, 10.0), defenses=("none", "permute", "permute+substitute", "mix"), precisions=("fp32", "int8"),
                attacks=("white-box", "black-box", "no key", "row ordering", "which"))  # fmt: skip


@pytest.fixture(scope="module")
def tiny(small_bundle, tmp_path_factory):
    """A folder with report.html, and its results."""
    out = tmp_path_factory.mktemp("report") / "out"
    return out, audit([small_bundle], "photos", out, TINY)


# in a browser

WRAPPER = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe src="page.html" style="border:0; width:{width}px; height:{height}px"></iframe><pre></pre>
<script>
  onload = () => {{
    const frame = document.querySelector("iframe"), inner = frame.contentWindow, page = frame.contentDocument;
    const box = element => {{ const r = element.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; }};
    const texts = [...page.body.querySelectorAll("*")].filter(element =>
      element.checkVisibility() && [...element.childNodes].some(node => node.nodeType == 3 && node.data.trim()));
    const scale = text => text.ownerSVGElement
      ? text.ownerSVGElement.getBoundingClientRect().width / text.ownerSVGElement.viewBox.baseVal.width : 1;
    document.querySelector("pre").textContent = JSON.stringify({{
      width: page.documentElement.scrollWidth,
      loaded: inner.performance.getEntriesByType("resource").map(entry => entry.name),
      smallest: Math.min(...texts.map(text => parseFloat(inner.getComputedStyle(text).fontSize) * scale(text))),
      pictures: [...page.images].map(image => ({{src: image.src, box: box(image), there: image.naturalWidth > 0}})),
      drawings: [...page.querySelectorAll("svg")].map(box),
    }});
  }};
</script>"""


def opened(page: str, folder, width: int, height: int = 13000):
    """What Chromium makes of a page that is ``width`` pixels wide: measures, and a picture as uint8 [height, width, 3]."""
    (folder / "page.html").write_text(page)
    wrapper = folder / "wrapper.html"
    wrapper.write_text(WRAPPER.format(width=width, height=height))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files",
               "--host-resolver-rules=MAP * 127.0.0.1", f"--user-data-dir={folder / 'profile'}",
               f"--window-size={max(width, 500)},{height}"]  # fmt: skip
    options = {"capture_output": True, "text": True, "timeout": 60, "check": True}
    dom = subprocess.run([*command, "--dump-dom", wrapper.as_uri()], **options).stdout
    measures = json.loads(re.search("<pre>(.*?)</pre>", dom, re.DOTALL)[1].replace("&amp;", "&"))
    shot = folder / "shot.png"
    subprocess.run([*command, f"--screenshot={shot}", wrapper.as_uri()], **options)
    return measures, np.asarray(Image.open(shot).convert("RGB"))[:, :width]


@pytest.mark.chromium
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_opens_in_chromium_on_a_phone_and_on_a_desk(tiny, tmp_path, width):
    measures, shot = opened((tiny[0] / "report.html").read_text(), tmp_path, width)
    assert measures["width"] == width  # wide tables scroll inside their own box
    assert measures["smallest"] >= 14
    assert [name for name in measures["loaded"] if not name.startswith("data:")] == []
    pictures = measures["pictures"]
    assert len(pictures) == 4 * (2 + 4)  # a line for each defence: sent, Bob, four Eves
    for picture in pictures:
        assert picture["there"]
        left, top, right, bottom = (round(edge) for edge in picture["box"])
        assert 0 <= left < right <= width
        assert bottom < len(shot)
        sent = Image.open(io.BytesIO(base64.b64decode(picture["src"].partition(",")[2]))).convert("RGB")
        seen = Image.fromarray(shot[top:bottom, left:right])
        difference = np.asarray(sent.resize((6, 8)), float) - np.asarray(seen.resize((6, 8)), float)
        assert np.abs(difference).mean() < 12
    assert len(measures["drawings"]) == 4 + 1
    for left, top, right, bottom in measures["drawings"]:
        assert 0 <= left < right <= width
        drawn = shot[round(top) : round(bottom), round(left) : round(right)]
        assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 20


@pytest.mark.chromium
def test_the_browser_would_tell_of_what_comes_from_elsewhere_and_of_what_is_too_wide(tmp_path):
    page = '<!doctype html><img src="http://127.0.0.1:9/x.png"><p style="width:800px; font-size:9px">wide</p><svg></svg>'
    measures, _ = opened(page, tmp_path, 390, 600)
    assert measures["loaded"] == ["http://127.0.0.1:9/x.png"]
    assert not measures["pictures"][0]["there"]
    assert measures["width"] > 390
    assert measures["smallest"] == 9


def test_the_page_holds_everything_in_its_order(tiny):
    out, results = tiny
    page = (out / "report.html").read_text()
    heads = ["What an eavesdropper sees", "What they get to see", "Leakage over Eve", "How often Eve names",
             "Table I and Figure 3", "Table II and Figure 4", "Eves who know the defence",
             "Does quantisation change leakage?", "Orderings", "How it was measured"]  # fmt: skip
    places = [page.index(f">{head}") for head in heads]
    assert places == sorted(places)
    assert "<script" not in page
    assert "http" not in page
    assert not re.search(r"(src|href)=.(?!data:|#)", page)
    identifiers = re.findall(r'<(?:g|svg)[^>]* id="([^"]+)"', page)
    assert len(set(identifiers)) == len(identifiers)
    for row in results["rows"]:
        if (row["attack"], row["eve_snr"], row["precision"]) == ("row ordering", 0.0, "fp32"):
            words = "void" if row["verdict"] == "void" else f"{row['psnr']:.1f} / {row['ssim']:.2f} <b>{row['verdict']}"
            assert words in page


def test_text_of_results_is_escaped(small_bundle, tmp_path):
    for i in range(40):
        Image.new("RGB", (30, 30), (6 * i, 0, 0)).save(tmp_path / f"{i:02}.png")
    (tmp_path / "03.png").rename(tmp_path / "03<b>.png")
    (tmp_path / "03<b>.png").write_bytes(b"no picture")
    settings = dataclasses.replace(TINY, eve_pictures=5, defenses=("none",), attacks=("no key",), precisions=("fp32",))
    results = audit([small_bundle], f"folder:{tmp_path}", tmp_path / "out", settings)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Tables of the paper" not in page
    assert [name.rpartition("/")[2] for name in results["skipped"]] == ["03<b>.png"]
    assert "03&lt;b&gt;.png" in page
    assert "03<b>.png" not in page


# in words, on made-up cells


def answers(level: float, nearer: float = 0.0, n: int = 12) -> Answers:
    spread = np.linspace(-0.4, 0.4, n)
    return Answers(level + spread, np.full(n, 0.5), nearer + spread, np.zeros((0, 3, 2, 2), np.float32))


def made_up(mix: float, attacks=tuple(PICTURES), control=20.0, rate=0.005, defenses=("none", "permute", "mix")):
    """Results in which every Eve gets ``control`` dB, but ``mix`` under mix; the mean picture scores 12 dB, Bob 21 dB.

    What she has above 11 dB is what she saw.
    """
    settings = Settings(pictures=12, eve_snrs=(10.0,), defenses=defenses, attacks=attacks)
    cells = {Cell("mean picture", "none", 10.0, None): answers(12)}
    cells |= {Cell("bob", name, 10.0, None): answers(21) for name in ("none", "permute", "mix")}
    games = {}
    for name in ("none", "permute", "mix"):
        for attack in [attack for attack in attacks if applies(attack, name)]:
            if attack in GAMES:
                value = 1.0 if name != "mix" else rate if attack == "which" else 0.5
                low, high = (value / 2, value + 0.02) if attack == "which" else (value - 0.03, value + 0.03)
                chance = 0.01 if attack == "which" else 0.5
                games[Cell(attack, name, 10.0, 10.0)] = [Played("top-1", value, low, min(1, high), 400, chance)]
            else:
                level = mix + (5 if attack == "reused stream" else 0) if name == "mix" else control
                tilt = np.linspace(0, 0.2, 12)
                found = answers(level, level - 11)
                cells[Cell(attack, name, 10.0, 10.0)] = dataclasses.replace(found, psnr=found.psnr + tilt)
    among = figures(cells, games)
    return {
        "settings": dataclasses.asdict(settings),
        "bundles": [{"main_snr": 10.0}],
        "rows": picture_rows(cells, among),
        "games": game_rows(games, among),
        "orderings": orderings(cells),
    }


def of(results, defense):
    return next(found for found in standings(results) if found.defense == defense)


EVERYTHING = ATTACKS


@pytest.mark.parametrize(
    ("made", "word"),
    [
        ({"mix": 11, "attacks": EVERYTHING}, "holds"),
        ({"mix": 15, "attacks": EVERYTHING}, "falls"),
        ({"mix": 11, "attacks": EVERYTHING, "rate": 0.3}, "falls"),  # by the game alone
        ({"mix": 11, "attacks": tuple(PICTURES)}, "holds with gaps"),  # the games are missing
        ({"mix": 11.2, "attacks": ("no key",)}, "undecided"),
        ({"mix": 11, "attacks": tuple(PICTURES), "control": 11}, "void"),
        ({"mix": 15, "attacks": tuple(PICTURES), "control": 11}, "falls"),  # what Eve saw, she saw
        ({"mix": 11, "attacks": ("brute force",)}, "not measured"),
    ],
)
def test_where_a_defence_stands(made, word):
    results = made_up(**made)
    assert of(results, "mix").word == word
    said = " ".join(headline(results))
    assert ("with gaps" in said) == (word == "holds with gaps")
    assert ("Mix holds" in said) == word.startswith("holds")
    if word in ("void", "not measured", "undecided"):
        assert re.search(f"Mix is {word}", said)
        assert "secure" not in said


def test_one_void_attack_makes_a_gap_and_is_named():
    results = made_up(11, EVERYTHING)
    for row in results["rows"]:
        if row["attack"] == "set inverse":
            row["verdict"] = "void"
    found = of(results, "mix")
    assert (found.word, found.void) == ("holds with gaps", ("set inverse",))
    assert any("in part: set inverse." in sentence for sentence in limits(results))


def test_one_open_figure_leaves_a_defence_undecided():
    results = made_up(11, EVERYTHING)
    next(row for row in results["rows"] if (row["attack"], row["defense"]) == ("learned", "mix"))["verdict"] = "open"
    assert of(results, "mix").word == "undecided"
    assert any(re.search(r"Mix is undecided: 10 of 11 measurements", sentence) for sentence in headline(results))


def test_the_worst_attack_is_the_one_nearest_to_the_right_pictures_and_not_void():
    results = made_up(11, EVERYTHING)
    rows = {row["attack"]: row for row in results["rows"] if row["defense"] == "permute"}
    rows["learned"] |= {"nearer_db": 9.5, "psnr": 21.5, "below_bob_db": -0.5}
    rows["black-box"] |= {"nearer_db": 99.0, "verdict": "void"}
    assert of(results, "permute").worst is rows["learned"]
    words = "she gets 21.5 dB, 0.5 dB more than Bob, 9.5 dB nearer to the right picture than to others."
    assert f'Permutation falls to an Eve without the key: by "learned" {words}' in headline(results)


def test_each_defence_falls_to_its_own_attack():
    results = made_up(15, EVERYTHING)
    for row in results["rows"]:
        if row["attack"] == ("no key" if row["defense"] == "mix" else "learned"):
            row["nearer_db"] += 1
    said = headline(results)
    assert [sentence.split()[0] for sentence in said] == ["Permutation", "Mix", "Without"]
    assert 'by "learned"' in said[0]
    assert 'by "no key"' in said[1]
    assert "wins games without the key" in " ".join(headline(made_up(11, EVERYTHING, rate=0.3)))


def test_a_reused_key_is_told_of_and_does_not_make_a_defence_fall():
    results = made_up(11, EVERYTHING)
    assert of(results, "mix").misuse["nearer_db"] == pytest.approx(5)
    assert any("mix 5.0 dB" in sentence for sentence in limits(results))


@pytest.mark.parametrize(
    ("rate", "words"), [(0.0, "0.0"), (0.0241, "2.5"), (0.025, "2.5"), (0.0985, "9.9"), (0.1102, "12"), (1, "100")]
)
def test_an_upper_bound_is_rounded_up(rate, words):
    assert at_most(rate) == words


def test_controls_alone_are_not_judged():
    results = made_up(11, EVERYTHING, defenses=("mix",))
    assert [found.defense for found in standings(results)] == ["mix"]


# for a terminal


def test_tables_fit_a_terminal_of_80_columns(tiny):
    results = tiny[1]
    tables = [verdict_table(results), paper_table(results, 10.0), *leakage_tables(results, 10.0, "fp32"), tally_table(results)]
    for results in (made_up(11, EVERYTHING), made_up(11, EVERYTHING, control=11)):
        tables += [verdict_table(results), *leakage_tables(results, 10.0, "fp32")]
    for table in tables:
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(table)
        lines = console.export_text().splitlines()
        assert "…" not in "".join(lines)
        assert len(lines) <= table.row_count + 8  # one line for each row
    assert len(tables) == 1 + 1 + 2 + 1 + 2 * 3


def test_a_terminal_says_void_in_one_word():
    attacks = tuple(name for name in PICTURES if name != "reused stream")  # which sees here
    table = leakage_tables(made_up(11, attacks, control=11), 10.0, "fp32")[0]
    for column in table.columns[1:]:
        assert set(column.cells) <= {"void", "-"}


def test_markdown_has_every_table(tiny):
    text = markdown_tables(tiny[1])
    assert text.count("### Eves who know the defence: ") == 2 * 2  # Eve's SNRs x precisions
    for table in ("### Verdict", "### Table I: no defence", "### Table II: permutation + substitution", "### Orderings"):
        assert table in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


# curves


@pytest.mark.parametrize("places", [[5, 5, 5, 5], [0, 0, 100, 100], [-20, 3, 50, 130], [50], [99, 98, 97, 1]])
def test_names_at_lines_stay_in_order_apart_and_inside(places):
    named = {str(i): float(place) for i, place in enumerate(places)}
    moved = spread(named, 15, 100)
    found = [moved[name] for name in sorted(named, key=named.__getitem__)]
    assert all(later - earlier >= 15 - 1e-9 for earlier, later in pairwise(found))
    assert min(found) >= 0
    assert max(found) <= 100


def test_names_with_room_are_not_moved():
    assert spread({"a": 10.0, "b": 40.0}, 15, 100) == {"a": 10, "b": 40}


@pytest.mark.parametrize("snrs", [(10.0,), (0.0, 10.0)])
def test_a_panel_names_bob_and_every_eve_and_repeats(snrs):
    points = [Point("Bob", None, 9, 8, 10)] + [Point(name, snr, 3, 2, 4) for name in ("learned", "no key") for snr in snrs]
    drawing = gains(points, ["set inverse"], ["Bob", "learned", "no key", "set inverse"], snrs, (-1, 11))
    for name in ("Bob", "learned", "no key"):
        assert f">{name}</text>" in drawing
    assert (">void</text>" in drawing) == (len(snrs) == 1)
    assert "http" not in drawing
    assert drawing == gains(points, ["set inverse"], ["Bob", "learned", "no key", "set inverse"], snrs, (-1, 11))


def test_a_rate_of_zero_is_drawn_at_the_floor():
    drawing = rates([Point("mix", 10.0, 0, 0, 0.02)], {"mix": "#123456"}, (10.0,), 0.01, 0.002)
    assert "nan" not in drawing.lower()
    assert "inf" not in drawing.lower()
    assert drawing.count("#123456") >= 2
