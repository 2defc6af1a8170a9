"""Cells on a real Ray cluster of this machine: the same figures to the bit, lost workers, errors, other people's rows."""

import dataclasses
import signal
import threading
import time

import numpy as np
import psutil
import pytest
from semseal.runtime.attacks import whitebox
from semseal.runtime.audit import cluster
from semseal.runtime.audit.matrix import FULL
from semseal.runtime.audit.run import audit

TINY = dataclasses.replace(
    FULL, pictures=8, optimised_pictures=6, attacker_pictures=60, blackbox_steps=20, trials=40, eve_snrs=(10.0,),
    whitebox=dataclasses.replace(whitebox.FAST, steps=5), defenses=("none", "permute+substitute", "mix"),
    attacks=("white-box", "black-box", "identification"),
)  # fmt: skip


@pytest.fixture(scope="module")
def ray():
    """A local cluster as ``--cluster local`` starts it, for all tests here."""
    with cluster.connected("local", 2, 2**20) as (found, started):
        assert started
        yield found


@pytest.fixture(scope="module")
def by_jobs(small_bundle, tmp_path_factory):
    out = tmp_path_factory.mktemp("audit") / "jobs"
    return out, audit([small_bundle], "photos", out, TINY, jobs=2)


def content_of(out):
    """What every cell's file holds."""
    found = {}
    for file in (out / "cells").iterdir():
        if file.suffix == ".npz":
            with np.load(file) as kept:
                found[file.name] = {name: kept[name].tobytes() for name in kept}
        else:
            found[file.name] = file.read_bytes()
    return found


def test_the_same_figures_to_the_bit_as_with_jobs_and_a_killed_worker_costs_its_cell(ray, by_jobs, small_bundle, tmp_path):
    out = tmp_path / "out"
    killed = []

    def kill_one():
        """The first worker that runs a cell while another one is already there."""
        while not killed:
            if (out / "cells").is_dir() and any((out / "cells").iterdir()):
                busy = [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::_task")]
                if busy:
                    busy[0].send_signal(signal.SIGKILL)
                    killed.append(busy[0].pid)
            time.sleep(0.02)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    results = audit([small_bundle], "photos", out, TINY, jobs=2, cluster="local")
    killer.join(timeout=10)
    assert killed
    assert content_of(out) == content_of(by_jobs[0])
    assert (results.rows, results.games, results.orderings) == (by_jobs[1].rows, by_jobs[1].games, by_jobs[1].orderings)
    # what is there is not measured again
    times = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    audit([small_bundle], "photos", out, TINY, cluster="local")
    assert {path: path.stat().st_mtime_ns for path in times} == times
