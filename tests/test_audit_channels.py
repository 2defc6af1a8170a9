"""Audits over several channels, several antennas, and OFDM, on a small real link; and what is said to be on air."""

import dataclasses
from importlib.util import find_spec

import numpy as np
import pytest
from semseal.runtime.audit import on_air
from semseal.runtime.audit.cell import file_name
from semseal.runtime.audit.overchannels import air_lines, channel_panels, peak_panels
from semseal.runtime.audit.results import Results
from semseal.runtime.audit.run import audit
from semseal.runtime.audit.scene import Scene
from semseal.runtime.bundle import open_bundle
from semseal.runtime.defense.defenses import BY_NAME
from semseal.runtime.errors import AuditError, EngineError
from semseal.runtime.ofdm import Radio, channel_uses
from semseal.runtime.pictures import open_pictures
from test_audit import TINY

needs_sionna = pytest.mark.skipif(find_spec("sionna") is None, reason="sionna-no-rt is not installed: pip install sionna-no-rt")
FORM = Radio(subcarriers=48, estimation="ls")
ASKED = dataclasses.replace(
    TINY,
    eve_snrs=(0.0, 10.0),
    attacker_pictures=40,
    defenses=("none", "mix"),
    attacks=("no-key", "identification"),
    channels=("awgn", "tdl-c"),
    eve_antennas=4,
    radio=FORM,
)


def scene_of(bundle, **settings):
    photographs = open_pictures("photos", "valid"), open_pictures("photos", "test")
    return Scene(open_bundle(bundle), *(part.take(8, 32, 24) for part in photographs), dataclasses.replace(TINY, **settings))


@needs_sionna
def test_an_audit_of_two_channels_stands_side_by_side(edge_bundle, tmp_path):
    out = tmp_path / "out"
    results = audit([edge_bundle], "photos", out, ASKED)
    assert Results.from_json(results.to_json()) == results
    assert {(row.main_channel, row.eve_channel, row.eve_antennas) for row in results.rows if row.eve_snr is not None} == {
        ("awgn", "awgn", 4), ("tdl-c", "tdl-c", 4)}  # fmt: skip
    assert {row.eve_antennas for row in results.rows if row.attack == "bob"} == {None}
    assert all(row.paper_psnr is None for row in results.rows if row.eve_snr is not None)  # the paper's Eve has one antenna
    bob = {row.main_channel: row.psnr for row in results.rows if (row.attack, row.defense) == ("bob", "none")}
    assert bob["awgn"] > bob["tdl-c"]
    ratios = {bundle.main_channel: bundle.bandwidth_ratio for bundle in results.bundles}
    n = open_bundle(edge_bundle).n_symbols
    assert ratios["tdl-c"] / ratios["awgn"] == pytest.approx(channel_uses(n, FORM) / n)
    names = sorted(path.name for path in (out / "cells").iterdir())
    assert any("tdl-c-eve10-tdl-c-x4-" in name for name in names)
    ((_, rows),) = channel_panels(results)
    assert [row[0].title.split(":")[0] for row in rows] == ["no defence", "mix"]  # a row of the page for each defence
    panels = [panel for row in rows for panel in row]
    assert [panel.title for panel in panels][:2] == ["no defence: Bob, 10 dB", "no defence: Eve's best attack"]
    assert all(panel.drawing.startswith("<svg") for panel in (*panels, *peak_panels(results)))
    assert all("TDL-C" in panel.drawing for panel in panels)
    page, tables = (out / "report.html").read_text(), (out / "tables.md").read_text()
    for words in ("Over SNR and channel", "What is on air", "least squares", "at each of 4 antennas, combined"):
        assert words in page
    ((title, lines),) = air_lines(results)
    assert f"### On air: {title}" in tables
    assert {line[:2] for line in lines} == {(name, kind) for name in ("no defence", "mix") for kind in ("AWGN", "TDL-C")}
    with pytest.raises(AuditError, match="holds another audit: the channels differ"):
        audit([edge_bundle], "photos", out, dataclasses.replace(ASKED, channels=("awgn",)))
    with pytest.raises(AuditError, match="the effort differs"):
        audit([edge_bundle], "photos", out, dataclasses.replace(ASKED, radio=Radio()))


@pytest.mark.parametrize("kind", ["awgn", "rayleigh", "multipath", pytest.param("tdl-c", marks=needs_sionna)])
def test_four_antennas_give_eve_a_better_picture_and_bob_none(edge_bundle, kind):
    one, four = (scene_of(edge_bundle, channels=(kind,), eve_antennas=count, radio=FORM) for count in (1, 4))
    sent = np.stack([frame.symbols for frame in one.send(np.repeat(one.images, 8, axis=0), BY_NAME["none"])])
    noise = [np.median(np.square(np.abs(scene.add_noise(sent, 10.0, 1) - sent)).mean(axis=1)) for scene in (one, four)]
    assert noise[1] < noise[0] / 3
    bob = [scene.add_noise(sent, 10.0, 1, eve=False) for scene in (one, four)]
    assert bob[0].tobytes() == bob[1].tobytes()
    rows = np.ascontiguousarray(four.add_noise(sent, 10.0, 1)).view(np.float32).reshape(len(sent), *four.row_shape)
    assert np.median(four._noise(rows, 10.0)) == pytest.approx(noise[1], abs=0.03)  # what she tells Bob's decoder


def test_the_file_of_a_cell_says_how_many_antennas(small_bundle):
    one, four = (scene_of(small_bundle, eve_antennas=count).place for count in (1, 4))
    assert file_name(one.cell("no-key", "none", 10.0)).endswith("-eve10-awgn-onnxruntime-cpu-fp32.npz")
    assert "-eve10-awgn-x4-onnxruntime" in file_name(four.cell("no-key", "none", 10.0))
    assert file_name(one.cell("bob", "none", None)) == file_name(four.cell("bob", "none", None))


def test_what_is_on_air_is_measured_of_what_was_sent():
    rng = np.random.default_rng(0)
    sent = np.exp(2j * np.pi * rng.random((4, 480))).astype(np.complex64)
    received = sent + np.float32(0.1**0.5)
    found = on_air.summary(on_air.measure(sent, received, FORM))
    assert found["frames"] == 4
    assert found["symbols_db"] == pytest.approx(0, abs=1e-5)
    assert found["effective_snr_db"] == pytest.approx(10, abs=0.01)
    assert 6 < found["waveform_db"] < 12
    assert list(found["exceeded"]) == sorted(found["exceeded"], reverse=True)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"eve_antennas": 0}, "1 to 64 antennas"),
        ({"channels": ("rician",)}, "no channel 'rician'"),
        ({"eve_channel": "rician"}, "no channel 'rician'"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(small_bundle, tmp_path, changed, words):
    with pytest.raises(AuditError, match=words):
        audit([small_bundle], "photos", tmp_path / "out", dataclasses.replace(TINY, **changed))
    assert not (tmp_path / "out").exists()


@needs_sionna
def test_a_delay_spread_that_the_prefix_does_not_cover_is_told_before_anything_is_written(small_bundle, tmp_path):
    asked = dataclasses.replace(TINY, eve_channel="cdl-c", radio=Radio(delay_spread_ns=1000.0))
    with pytest.raises(EngineError, match="longer than the cyclic prefix"):
        audit([small_bundle], "photos", tmp_path / "out", asked)
    assert not (tmp_path / "out").exists()
