"""The page of a small real audit in a real Chromium, and its figures."""

import base64
import dataclasses
import io
import json
import re
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image
from semseal.runtime.attacks import whitebox
from semseal.runtime.audit.attacks import ATTACKS
from semseal.runtime.audit.figures import ATTACK_STYLES, DEFENSE_STYLES, Point, advantages, move_apart, rates
from semseal.runtime.audit.report import write_first_look, write_report
from semseal.runtime.audit.results import Reconstructions, Results, cell_of
from semseal.runtime.audit.run import audit
from semseal.runtime.audit.settings import Settings

ROOT = Path(__file__).parent.parent
few = dataclasses.replace(whitebox.FAST, steps=3)
TINY = Settings(pictures=6, optimised_pictures=6, attacker_pictures=44, whitebox=few, blackbox_steps=4,
                eve_snrs=(0.0, 10.0), defenses=("none", "permute", "permute+substitute", "mix"), precisions=("fp32", "int8"),
                attacks=("white-box", "black-box", "no-key", "row-ordering", "identification"))  # fmt: skip


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
      cut: [...page.querySelectorAll("svg text")].filter(text => {{
        const at = text.getBoundingClientRect(), edge = text.ownerSVGElement.getBoundingClientRect();
        return at.left < edge.left - 1 || at.right > edge.right + 1;
      }}).map(text => text.textContent),
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
    assert measures["cut"] == []
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
    assert (
        len(measures["drawings"]) == 4 + 1 + 1 + 1
    )  # advantage, naming, naming against cost (no advantage counts here), peaks
    for left, top, right, bottom in measures["drawings"]:
        assert 0 <= left < right <= width
        drawn = shot[round(top) : round(bottom), round(left) : round(right)]
        assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 20


@pytest.mark.chromium
def test_the_browser_would_tell_of_what_comes_from_elsewhere_and_of_what_is_too_wide(tmp_path):
    page = '<!doctype html><img src="http://127.0.0.1:9/x.png"><p style="width:800px; font-size:9px">wide</p>'
    page += '<svg><text x="-20">cut</text></svg>'
    measures, _ = opened(page, tmp_path, 390, 600)
    assert measures["loaded"] == ["http://127.0.0.1:9/x.png"]
    assert not measures["pictures"][0]["there"]
    assert measures["width"] > 390
    assert measures["smallest"] == 9
    assert measures["cut"] == ["cut"]


def test_the_page_holds_everything_in_its_order(tiny):
    out, results = tiny
    page = (out / "report.html").read_text()
    heads = ["What an eavesdropper sees", "What they get to see", "Leakage over Eve", "How often Eve names",
             "Leakage against cost", "Table I and Figure 3", "Table II and Figure 4", "Adaptive attacks",
             "Does quantisation change leakage?", "Orderings", "How it was measured"]  # fmt: skip
    places = [page.index(f">{head}") for head in heads]
    assert places == sorted(places)
    assert "<script" not in page
    assert "http" not in page
    assert not re.search(r"(src|href)=.(?!data:|#)", page)
    identifiers = re.findall(r'<(?:g|svg)[^>]* id="([^"]+)"', page)
    assert len(set(identifiers)) == len(identifiers)
    for row in results.rows:
        if (row.attack, row.eve_snr, row.precision) == ("row-ordering", 0.0, "fp32"):
            words = "void" if row.verdict == "void" else f"{row.psnr:.1f} / {row.ssim:.2f} <b>{row.verdict}"
            assert words in page


def test_text_of_results_is_escaped(small_bundle, tmp_path):
    for i in range(40):
        Image.new("RGB", (30, 30), (6 * i, 0, 0)).save(tmp_path / f"{i:02}.png")
    (tmp_path / "03.png").rename(tmp_path / "03<b>.png")
    (tmp_path / "03<b>.png").write_bytes(b"no picture")
    settings = dataclasses.replace(TINY, attacker_pictures=5, defenses=("none",), attacks=("no-key",), precisions=("fp32",))
    results = audit([small_bundle], f"folder:{tmp_path}", tmp_path / "out", settings)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Tables of the paper" not in page
    assert [name.rpartition("/")[2] for name in results.skipped] == ["03<b>.png"]
    assert "03&lt;b&gt;.png" in page
    assert "03<b>.png" not in page


# of earlier audits


@pytest.mark.parametrize("name", ["eves", "snrs"])
def test_the_page_of_an_earlier_audit(name, tmp_path):
    """From results.json alone but for the pictures, which stand in for those that were not kept."""
    results = Results.from_json((ROOT / f"docs/results-{name}.json").read_text())
    images = np.random.default_rng(0).random((2, 3, 36, 36), np.float32)
    pictures = {
        cell_of(row): Reconstructions(
            np.full(row.pictures, row.psnr), np.full(row.pictures, row.ssim),
            np.full(row.pictures, row.matching_advantage_db or 0.0), images,
        )
        for row in results.rows
    }  # fmt: skip
    write_report(tmp_path / "report.html", results, pictures, images)
    write_first_look(tmp_path / "first-look.png", results, pictures, images)
    page = (tmp_path / "report.html").read_text()
    for row in (*results.rows, *results.games):
        if row.verdict is not None:
            assert re.search(rf"<td>{re.escape(row.attack)}\b", page)
    for row in results.rows:
        if row.matching_advantage_db is not None:
            assert f"advantage {row.matching_advantage_db:+z.1f} ± {row.matching_advantage_95:.1f}<" in page
    for ordering in results.orderings:
        assert f"<td>{escape(ordering.claim)}</td>" in page
    for attack in ATTACKS:
        assert f"<dt>{attack.name}</dt><dd>{escape(attack.title)}" in page
    assert page.count("<svg") == len(results.bundles) * (len({row.defense for row in results.rows if row.verdict}) + 1)
    with Image.open(tmp_path / "first-look.png") as look:
        assert look.size == (6 * (36 + 6) - 6, 36 + 24)  # sent, Bob, both attacks without and with the defence


# figures


@pytest.mark.parametrize("heights", [[5, 5, 5, 5], [0, 0, 100, 100], [-20, 3, 50, 130], [50], [99, 98, 97, 1]])
def test_names_at_lines_stay_in_order_apart_and_inside(heights):
    named = {str(i): float(height) for i, height in enumerate(heights)}
    moved = move_apart(named, 15, 100)
    found = [moved[name] for name in sorted(named, key=named.__getitem__)]
    assert all(later - earlier >= 15 - 1e-9 for earlier, later in pairwise(found))
    assert min(found) >= 0
    assert max(found) <= 100


def test_names_with_room_are_not_moved():
    assert move_apart({"a": 10.0, "b": 40.0}, 15, 100) == {"a": 10, "b": 40}


@pytest.mark.parametrize("snrs", [(10.0,), (0.0, 10.0)])
def test_a_panel_names_bob_and_every_eve_and_repeats(snrs):
    points = [Point("Bob", None, 9, 8, 10)]
    points += [Point(name, snr, 3, 2, 4) for name in ("learned-inverse", "no-key") for snr in snrs]
    names = ["Bob", "learned-inverse", "no-key", "set-inverse"]
    drawing = advantages(points, ["set-inverse"], names, snrs, (-1, 11))
    for name in ("Bob", "learned-inverse", "no-key"):
        assert f">{name}</text>" in drawing
    assert (">void</text>" in drawing) == (len(snrs) == 1)
    assert "http" not in drawing
    assert drawing == advantages(points, ["set-inverse"], names, snrs, (-1, 11))


@pytest.mark.chromium
@pytest.mark.parametrize("snrs", [(10.0,), (0.0, 10.0)])
def test_the_longest_name_of_an_attack_is_not_cut(snrs, tmp_path):
    names = ["Bob", *(attack.name for attack in ATTACKS if not attack.game)]
    points = [Point("Bob", None, 9, 8, 10), *(Point(name, snr, 3, 2, 4) for name in names[1:] for snr in snrs)]
    measures, _ = opened(f"<!doctype html>{advantages(points, [], names, snrs, (-1, 11))}", tmp_path, 390, 600)
    assert len(measures["drawings"]) == 1
    assert measures["cut"] == []


def test_every_attack_that_ends_in_pictures_has_a_line_of_its_own():
    styles = [ATTACK_STYLES[attack.name] for attack in ATTACKS if not attack.game]
    assert len(set(styles)) == len(styles)


def test_a_rate_of_zero_is_drawn_at_the_floor():
    drawing = rates([Point("mix", 10.0, 0, 0, 0.02)], (10.0,), 0.01, 0.002)
    assert "nan" not in drawing.lower()
    assert "inf" not in drawing.lower()
    assert drawing.count(DEFENSE_STYLES["mix"].colour) >= 2
