"""Cells on a real Ray cluster of this machine: the same figures to the bit, lost workers, errors, other people's rows."""

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from semseal.runtime.attacks import whitebox
from semseal.runtime.audit import cluster
from semseal.runtime.audit.matrix import FULL
from semseal.runtime.audit.run import audit
from semseal.runtime.cli import cli
from semseal.runtime.errors import AuditError
from test_extending import extended

TINY = dataclasses.replace(
    FULL, pictures=8, optimised_pictures=6, attacker_pictures=60, blackbox_steps=20, trials=40, eve_snrs=(10.0,),
    whitebox=dataclasses.replace(whitebox.FAST, steps=5), defenses=("none", "permute+substitute", "mix"),
    attacks=("white-box", "black-box", "identification"),
)  # fmt: skip


# before the others: once this process is connected to a cluster, that is the one it uses
@pytest.mark.parametrize("where", ["127.0.0.1:1", "127.0.0.1:99999", "[::1]:1", "nobody.invalid:10001"])
def test_a_cluster_that_is_not_there_is_told(where):
    with (
        pytest.raises(AuditError, match=re.escape(f"no Ray cluster at ray://{where}: ")) as refused,
        cluster.connected(f"ray://{where}", None, 0),
    ):
        pass
    assert "ray start --head" in refused.value.hint
    telemetry = "RAY_usage_stats_enabled"
    assert os.environ[telemetry] == "0"


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
                with contextlib.suppress(StopIteration, psutil.NoSuchProcess):  # none yet, or it ended meanwhile
                    busy = next(p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::_task"))
                    busy.send_signal(signal.SIGKILL)
                    killed.append(busy.pid)
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


def test_what_a_cell_raises_on_a_worker_is_raised_here(ray, small_bundle, tmp_path):
    """Eve practises with at least 40 packets: that is a mistake of the caller's, and of no worker's."""
    few = dataclasses.replace(TINY, attacks=("distinguishing",), defenses=("none",), trials=20)
    with pytest.raises(ValueError, match="Eve needs 40 practice packets, got 20") as by_jobs:
        audit([small_bundle], "photos", tmp_path / "jobs", few, jobs=2)
    with pytest.raises(type(by_jobs.value), match=re.escape(str(by_jobs.value))):
        audit([small_bundle], "photos", tmp_path / "cluster", few, jobs=2, cluster="local")


def test_a_worker_with_another_semseal_refuses(ray):
    parcel = cluster.Parcel(None, "edge", ("semseal",), ("another digest", ()))
    task = ray.remote(cluster._task).remote(parcel, None, None, {}, None)
    with pytest.raises(AuditError, match="has another semseal than this machine") as refused:
        cluster._result(ray, task, None)
    assert "install the same ones on every machine" in refused.value.hint


def test_a_bundle_that_a_worker_does_not_find_travels(ray, small_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster.tempfile, "gettempdir", lambda: str(tmp_path))
    files = cluster._files(small_bundle)
    assert cluster._unpacked(small_bundle, files) == small_bundle
    copy = cluster._unpacked(tmp_path / "not here", files)
    assert {name: (copy / name).read_bytes() for name in files} == files
    assert cluster._unpacked(tmp_path / "not here", files) == copy


@pytest.mark.parametrize(
    ("nodes", "jobs", "shares"),
    [
        ([{"CPU": 8.0}], None, (8, 1, 0.0)),
        ([{"CPU": 8.0}], 2, (2, 4, 0.0)),
        ([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 4.0}, {}], 3, (3, 4, 0.3333)),
        ([{"CPU": 4.0, "GPU": 4.0}], 2, (2, 2, 1.0)),
        ([{"CPU": 4.0}, {"CPU": 2.0}], 1, (1, 2, 0.0)),
        ([{"CPU": 4.0}, {"GPU": 1.0}], 2, (2, 2, 0.0)),  # a GPU that no cell could have
    ],
)
def test_the_share_of_a_cell_fits_the_smallest_machine(nodes, jobs, shares):
    assert cluster._shares([{"Alive": True, "Resources": found} for found in nodes], jobs) == shares
    gone = {"Alive": False, "Resources": {"CPU": 64.0}}
    with pytest.raises(AuditError, match="has no cores"):
        cluster._shares([gone], jobs)


def test_a_cell_that_no_machine_can_take_is_told_and_not_waited_for_for_ever(ray, monkeypatch):
    monkeypatch.setattr(cluster, "LOOK_S", 0.1)
    monkeypatch.setattr(cluster, "PATIENCE_S", 0.5)
    waiting = [ray.remote(lambda: 0).options(num_cpus=1000).remote()]
    with pytest.raises(AuditError, match="no machine of the Ray cluster can take a cell any more: each needs 1000 cores"):
        cluster._next_done(ray, waiting, 1000, 0.0)
    ray.cancel(waiting[0])
    fits = ray.remote(lambda: 0).options(num_cpus=1).remote()
    assert cluster._next_done(ray, [fits], 1, 0.0) == fits


def test_an_attack_of_the_users_own_runs_on_a_cluster_unchanged(small_bundle, tmp_path):
    done = extended(tmp_path, small_bundle, cluster="local")
    assert "nearest" in {row["attack"] for row in done["rows"]}


def alive(process):
    """A zombie is not: where nothing reaps orphans, as in many containers, it stays for ever."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_interrupt_ends_the_cluster_too(small_bundle, tmp_path):
    options = [
        "--data",
        "photos",
        "--out",
        tmp_path / "out",
        "--pictures",
        "6",
        "--cluster",
        "local",
        "--attack",
        "set-inverse",
    ]
    program = [sys.executable, "-c", "from semseal.runtime.cli import main; main()", "audit", small_bundle, *options]

    def default():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it, and so would its child

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = subprocess.Popen(program, **pipes, start_new_session=True, preexec_fn=default)
    try:
        deadline = time.monotonic() + 240
        while not any((tmp_path / "out").glob("cells/bob*")):
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        others = psutil.Process(running.pid).children(recursive=True)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does, to all of them
        out, err = running.communicate(timeout=60)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 130, err
    assert "the same command continues where this one stopped" in err
    assert "Traceback" not in out + err
    deadline = time.monotonic() + 20
    while left := [other for other in others if alive(other)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert not list((tmp_path / "out").rglob(".*"))  # no half-written file


@pytest.mark.parametrize("address", ["", "remote", "ray://", "ray://host", "ray://host:port", "http://host:80", "local "])
def test_other_addresses_are_wrong_usage(address):
    done = CliRunner().invoke(cli, ["audit", "edge", "--data", "photos", "--out", "out", "--cluster", address])
    assert done.exit_code == 2
    assert "neither local nor ray://HOST:PORT" in done.output
