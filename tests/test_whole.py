"""``semseal audit --paper``: its parts are what their commands say, share their cells, and end in one page of tables."""

import dataclasses

import pytest
from click.testing import CliRunner
from semseal.runtime.attacks import whitebox
from semseal.runtime.audit.matrix import FULL
from semseal.runtime.audit.results import Results
from semseal.runtime.audit.whole import PARTS, audit_everything, estimates
from semseal.runtime.cli import cli
from semseal.runtime.cli_audit import _as_given, _settings, audit

TINY = dataclasses.replace(
    FULL, pictures=6, optimised_pictures=6, attacker_pictures=60, trials=40, blackbox_steps=5,
    whitebox=dataclasses.replace(whitebox.FAST, steps=2), matching=dataclasses.replace(whitebox.FAST, steps=2),
)  # fmt: skip


def asked_by(*options):
    """The settings that these options of an audit ask for, and the options as the page of the whole repeats them."""
    context = audit.make_context("audit", ["edge", "--data", "photos", "--out", "out", *options])
    elsewhere = ("bundles", "data", "folder", "jobs", "cluster", "budgets", "junit", "paper", "recording", "sent")
    with context:
        repeated = _as_given(elsewhere)
    return _settings(**{name: value for name, value in context.params.items() if name not in elsewhere}), repeated


@pytest.mark.parametrize("given", ["", "--quick", "--pictures 40 --seed 3 --engine openvino --channel awgn --channel rayleigh"])
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_the_command_of_a_part_asks_for_what_the_part_measures(part, given):
    settings, repeated = asked_by(*given.split(), "--jobs", "2", "--paper")
    assert sorted(repeated.split()) == sorted(given.split())
    assert asked_by(*repeated.split(), *part.options.split())[0] == part.asks(settings)


def only(part, *attacks):
    """The part, of these attacks alone."""
    return dataclasses.replace(part, asks=lambda settings: dataclasses.replace(part.asks(settings), attacks=attacks))


def test_parts_share_their_cells_and_end_in_one_page(small_bundle, tmp_path):
    parts = (only(PARTS[0], "no-key", "identification", "leaked-scale", "attributes"), only(PARTS[1], "no-key"), PARTS[-1])
    parts = (*parts[:2], dataclasses.replace(parts[2], asks=lambda settings: short(PARTS[-1].asks(settings))))
    before = estimates([small_bundle], tmp_path / "out", TINY, parts)
    assert [estimate.cells > 0 for estimate in before] == [True] * 3
    assert all(estimate.seconds > 0 for estimate in before)
    results = audit_everything([small_bundle], "photos", tmp_path / "out", TINY, parts=parts, options="--seed 0")
    cells = [{file.name: file.read_bytes() for file in (tmp_path / "out" / part.name / "cells").iterdir()} for part in parts]
    assert len(cells[0]) == before[0].cells - 5  # that the pictures have no classes is seen when they are opened
    assert len(cells[1].keys() - cells[0].keys()) == before[1].cells
    shared = cells[0].keys() & cells[1].keys()
    assert {name for name in shared if name.startswith("no-key-mix")}
    assert all(cells[0][name] == cells[1][name] for name in shared)
    assert [estimate.cells for estimate in estimates([small_bundle], tmp_path / "out", TINY, parts)] == [0, 0, 0]
    page = (tmp_path / "out" / "paper.md").read_text()
    for part, found in zip(parts, results, strict=True):
        assert f"## {part.title}" in page
        assert f"audit {small_bundle} --data photos --seed 0 --out {tmp_path / 'out' / part.name} {part.options}" in page
        assert Results.from_json((tmp_path / "out" / part.name / "results.json").read_text()) == found
        assert (tmp_path / "out" / part.name / "tables.md").read_text() in page
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("cells/*")}
    audit_everything([small_bundle], "photos", tmp_path / "out", TINY, parts=parts)
    assert {path: path.stat().st_mtime_ns for path in times} == times


def short(settings):
    return dataclasses.replace(settings, whitebox=dataclasses.replace(settings.whitebox, steps=2))


@pytest.mark.parametrize(
    "options",
    [
        ["--attack", "no-key"],
        ["--defense", "mix"],
        ["--eve-snr", "3"],
        ["--precision", "int8"],
        ["--white-box", "paper"],
        ["--budget", "0.1"],
        ["--recording", "air"],
    ],
    ids=lambda options: options[0],
)
def test_what_it_chooses_itself_cannot_be_chosen(options):
    done = CliRunner().invoke(cli, ["audit", "edge", "--data", "photos", "--out", "out", "--paper", *options])
    assert done.exit_code == 2
    assert "not with --" in done.output
