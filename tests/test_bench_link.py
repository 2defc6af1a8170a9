"""``semseal bench`` on a small real bundle: its stages and their checks, its files, its page, and a link against another."""

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from cryptography.exceptions import InvalidTag
from rich.console import Console
from semseal.runtime.bench import output, report
from semseal.runtime.bench.compare import Baseline, compare
from semseal.runtime.bench.peers import peers
from semseal.runtime.bench.process import Process, start
from semseal.runtime.bench.results import Where
from semseal.runtime.bench.run import Plan, bench
from semseal.runtime.bench.stages import open_case, stages
from semseal.runtime.cli import cli
from semseal.runtime.errors import BenchError, EngineError, HeaderError
from semseal.runtime.link import Frame
from test_report import opened

ROOT = Path(__file__).parent.parent
TINY = Plan(engines=("onnxruntime-cpu",), precisions=("fp32",), threads=1, seconds=0.2, deadline_ms=500.0)


def where(bundle, defense="mix", batch=1):
    return Where(str(bundle), "onnxruntime-cpu", "fp32", defense, batch, 1)


@pytest.fixture(scope="module")
def measured(edge_bundle, tmp_path_factory):
    """Results of a short run, and the folder with its files."""
    folder = tmp_path_factory.mktemp("bench")
    results = bench(str(edge_bundle), TINY, quiet=True)
    output.write(folder, results)
    return results, folder


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("defense", ["none", "permute", "substitute", "permute+substitute", "mix"])
def test_every_stage_gives_the_reference_answer(edge_bundle, defense, batch):
    made = stages(open_case(where(edge_bundle, defense, batch)))
    assert {"transmitter", "receiver", "send", "send bytes", "receive", "channel", "link", "header"} <= set(made)
    assert ("keys" in made, "index" in made) == (defense == "mix", "permute" in defense or "substitute" in defense)
    for stage in made.values():
        stage.verify()


def wrong(answer):
    """Another answer of the same kind."""
    if isinstance(answer, np.ndarray):
        return np.zeros_like(answer) if answer.dtype == np.int32 else answer[..., ::-1].copy()
    if isinstance(answer, tuple):
        return (2 * answer[0], *answer[1:])
    if isinstance(answer[0], Frame):
        return [Frame(answer[0].symbols[::-1].copy(), answer[0].header)]
    if isinstance(answer[0], bytes):
        return [answer[0][:-1] + bytes([answer[0][-1] ^ 1])]
    return [-answer[0], *answer[1:]] if isinstance(answer[0], np.ndarray) else []


@pytest.mark.parametrize("defense", ["none", "permute", "mix"])
def test_a_fast_wrong_answer_fails_in_every_stage(edge_bundle, defense):
    place = where(edge_bundle, defense)
    made = stages(open_case(place)) | {name: stage for name, stage in peers(place).items() if name != "copy"}
    for stage in made.values():
        given = wrong(stage.run(*stage.prepare()))
        # a Receiver refuses what its header does not fit, a cipher what its tag does not
        with pytest.raises((AssertionError, HeaderError, InvalidTag)):
            stage.check(given)


def test_a_run_has_every_part_and_says_why_something_is_missing(measured):
    results, folder = measured
    found = json.loads((folder / "results.json").read_text())
    assert set(found) == {"format", "machine", "ceilings", "bundles", "ran", "noise", "rows", "rates", "started", "energy",
                          "comparisons"}  # fmt: skip
    rows = {(row["where"]["defense"], row["where"]["batch"], row["stage"]): row for row in found["rows"]}
    assert {("mix", 1, stage) for stage in ("keys", "transmitter", "power", "header", "send", "receive", "link")} <= set(rows)
    assert {batch for _, batch, stage in rows if stage == "link"} == {1, 4, 16, 64}
    link = rows["mix", 1, "link"]
    assert link["time"]["n"] >= 7
    assert link["floor_ms"] > 0
    assert link["times_floor"] == pytest.approx(link["time"]["p50_ms"] / link["floor_ms"])
    for row in found["rows"]:
        time = row["time"]
        absent = [name for name in ("p90_ms", "p99_ms", "jitter_ms") if time is None or time[name] is None]
        assert time is None or all(name in time["reasons"] for name in absent), row["stage"]
        assert time is not None or "nothing is copied" in row["reasons"]["time"]
    assert "CPUExecutionProvider" in found["ran"]["onnxruntime-cpu fp32"]["transmitter"]
    assert found["energy"][0]["joules_per_image"] is None
    assert found["energy"][0]["reason"]
    assert found["started"][0]["peak_bytes"] > 2**20
    assert results.noise[0].ratio.low <= results.noise[0].ratio.value <= results.noise[0].ratio.high


def test_the_forms_for_ci_hold_every_time(measured):
    results, folder = measured
    times = [row for row in results.rows if row.time is not None and row.time.n]
    metrics = json.loads((folder / "bencher.json").read_text())
    assert len(metrics) == len(times)
    name = f"{times[0].where}, {times[0].stage}"
    assert metrics[name]["latency"]["value"] == pytest.approx(times[0].time.p50_ms * 1e6)  # nanoseconds
    entries = json.loads((folder / "github-action-benchmark.json").read_text())
    assert [entry["name"] for entry in entries] == list(metrics)
    assert all(entry["unit"] == "ms" and entry["value"] > 0 for entry in entries)


def test_no_line_in_the_terminal_is_longer_than_80_characters(measured):
    screen = StringIO()
    report.show(measured[0], Console(file=screen, width=80))
    text = screen.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for part in (
        "A/A, the link twice",
        "x floor",
        "send, the rest",
        "highest rate within",
        "images a second",
        "matrix product",
    ):
        assert part in text.replace("\n", " ")


@pytest.mark.chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_a_phone_and_a_desk(measured, tmp_path, width):
    page = (measured[1] / "report.html").read_text()
    name = next(iter(measured[0].bundles))
    assert name in page
    found, shot = opened(page.replace(name, "/somewhere/" + 80 * "long"), tmp_path, width, 6000)
    assert found["width"] <= width
    assert found["loaded"] == []
    assert found["smallest"] >= 11
    assert len(found["drawings"]) >= 6
    assert all(left >= 0 and right <= width + 0.5 for left, _, right, _ in found["drawings"])
    assert (shot < 200).any()


def test_the_command_writes_what_it_is_asked_for(edge_bundle, tmp_path):
    options = ["--quick", "--engine", "onnxruntime-cpu", "--precision", "fp32", "--threads", "1", "--seconds", "0.1"]
    done = CliRunner().invoke(cli, ["bench", str(edge_bundle), *options, "--rate", "50", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "50.0/s" in done.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "bencher.json", "github-action-benchmark.json", "report.html", "results.json"]  # fmt: skip
    earlier = str(tmp_path / "out" / "results.json")
    done = CliRunner().invoke(cli, ["bench", str(edge_bundle), *options, "--margin", "9", "--against", earlier])
    assert done.exit_code == 0, done.output  # nothing is ten times as slow as itself
    assert done.output.count("no difference") + done.output.count("undecided") == 5


def test_bundles_for_pictures_of_other_sizes_are_not_compared(edge_bundle):
    with pytest.raises(BenchError, match=r"takes images \(32, 24\), edge \(180, 180\)"):
        compare(where(edge_bundle), Baseline("edge", bundle="edge"), seconds=0.1)


def test_this_version_is_not_compared_with_itself(edge_bundle, tmp_path):
    same = tmp_path / "python"
    same.write_text(f'#!/bin/sh\nPYTHONPATH="{":".join(sys.path)}" exec {sys.executable} "$@"\n')
    same.chmod(0o755)
    with pytest.raises(BenchError, match="runs the very semseal"):
        compare(where(edge_bundle), Baseline("same", python=str(same)), seconds=0.1)


def test_a_fresh_process_tells_what_starting_costs(edge_bundle):
    found = start(where(edge_bundle), None, sends=3)
    assert found.peak_bytes >= found.resident_bytes > 2**20
    assert found.import_s > 0
    assert found.load_s > 0
    assert found.first_call_s > 0
    assert found.reasons["device_bytes"] == "the engine runs on the CPU"


def test_a_process_that_cannot_run_the_link_says_why(edge_bundle):
    with pytest.raises(EngineError, match="cannot be run"):
        Process(where(edge_bundle), python="/nowhere/python")
    with pytest.raises(EngineError, match=r"could not run the link: there is no bundle /nowhere\nhint: make one"):
        Process(where("/nowhere"))
    with pytest.raises(EngineError, match=r"/bin/echo could not run the link: -P -c .*\nhint: give the python of"):
        Process(where(edge_bundle), python="/bin/echo")


def test_an_engine_that_is_not_here_is_an_error_where_nothing_else_runs(edge_bundle):
    done = subprocess.run(
        [sys.executable, "-c", "from semseal.runtime.cli import main; main()", "bench", str(edge_bundle), "--engine",
         "tensorrt", "--seconds", "0.1"], capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 3
    assert "holds no tensorrt engine" in done.stderr
