"""Latency of a deployed link: pytest --benchmark, with --bundle PATH of yours.

Stages, checks, percentiles and floors are those of ``semseal bench`` (``semseal.runtime.bench``), and every answer is checked
against the reference, so that a fast wrong answer fails. Here each stage runs alone, one after the other; ``semseal bench``
runs them in turns. Compare numbers of one run only: docs/benchmarking.md.
"""

import dataclasses

import pytest
from semseal.runtime.bench.results import Where
from semseal.runtime.bench.run import Plan, a_a, forms
from semseal.runtime.bundle import open_bundle

PACKAGED = ("edge", "photos-10db")
FORMS = (("onnxruntime-cpu", "fp32"), ("openvino", "int8"))  # of the packaged bundles: the default and the fastest
ENGINE_STAGES = ("transmitter", "receiver", "send", "send bytes", "receive", "link")
MIX_STAGES = ("picture in", "picture out", "keys", "keys back", "power", "header", "header open", "channel")
INDEX_STAGES = ("index", "index back")
PEERS = ("AES-256-GCM", "ChaCha20-Poly1305", "take", "copy")
BATCHES = (4, 16, 64)


def cases(given: str | None) -> list[tuple[Where, str]]:
    """Forms and stages, those of one form together."""
    found: list[tuple[Where, str]] = []
    for name in PACKAGED if given is None else (given,):
        plan = Plan()
        wheres = [where for where in forms(name, open_bundle(name), plan)]
        if given is None:
            wheres = [where for where in wheres if (where.engine, where.precision) in FORMS]
        found += [(where, stage) for where in wheres for stage in ENGINE_STAGES]
        mixing = wheres[-1]  # whatever engine runs: these stages run in NumPy
        found += [(mixing, stage) for stage in (*MIX_STAGES, *PEERS)]
        moving = dataclasses.replace(mixing, defense="permute")
        found += [(moving, stage) for stage in INDEX_STAGES]
        found += [(dataclasses.replace(mixing, batch=batch), "link") for batch in BATCHES]
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "where" in metafunc.fixturenames:
        found = cases(metafunc.config.getoption("--bundle"))
        names = [f"{w.bundle}-{w.engine}-{w.precision}-{w.defense}-{w.batch}-{stage.replace(' ', '_')}" for w, stage in found]
        metafunc.parametrize(("where", "stage"), found, ids=names)


def test_a_a(request, noise):
    """First the noise of the machine: the same link twice, in turns. Its interval holds 1, or times here mean nothing."""
    where, _ = next((where, stage) for where, stage in cases(request.config.getoption("--bundle")) if where.defense == "mix")
    found = a_a(where, None, 4.0)
    noise.append(found)
    assert found.ratio.low < 1.25
    assert found.ratio.high > 0.8


def test_stage(timed, where, stage):
    timed(where, stage)
