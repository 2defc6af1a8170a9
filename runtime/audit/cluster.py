"""Cells on a cluster: each is a task of Ray's (Moritz et al., OSDI 2018), on this machine or on many.

    driver ── pictures, bundle: into the object store, once ──┐
       │                                                     ├─ worker: scene of a place, kept ── cell ── bytes of its file
       └── a cell ── task ────────────────────────────────────┘                                             │
       <── the bytes, written here; a worker that is lost costs its cell, which another one measures again ─┘

Workers need no disk in common with the driver, but the same semseal: each compares its own code and packages with the driver's
and refuses to measure with others. What they measure is the same to the bit as with ``--jobs``, given the same kind of
processor and as many threads (``semseal.runtime.audit.ends``).
"""

import hashlib
import logging
import os
import secrets
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from semseal.runtime.audit.cell import content
from semseal.runtime.audit.code import digest_of_code
from semseal.runtime.audit.scene import Images
from semseal.runtime.audit.settings import Cell
from semseal.runtime.audit.work import Work, scene_of
from semseal.runtime.bundle import MANIFEST, SIGNATURE, is_packaged, open_bundle, packaged_bundle
from semseal.runtime.environment import environment
from semseal.runtime.errors import AuditError, SemsealError
from semseal.runtime.files import write_atomically
from semseal.runtime.signing import pinned_owner

LOCAL = "local"
RETRIES = 3  # of a cell whose worker was lost
STORE_BYTES = 2**28  # of the local object store, beside twice the pictures
LOOK_S = 10.0  # how often the machines are counted while no cell is done
PATIENCE_S = 300.0  # how long there may be none that can take a cell: one that is started again takes a while


@dataclass(frozen=True)
class Parcel:
    """What a worker is told. ``packaged`` names a bundle that it has itself; ``work`` comes without its arrays."""

    work: Work
    packaged: str | None
    packages: tuple[str, ...]
    sender: tuple[str, tuple[tuple[str, str], ...]]  # the driver's code and packages


Files = dict[str, bytes]


def measured(
    address: str, jobs: int | None, planned: Sequence[tuple[Cell, Work]], packages: tuple[str, ...]
) -> Iterator[tuple[Cell, bytes]]:
    """Each cell with the content of its file, in the order in which they are done.

    ``address`` is ``local`` or that of a Ray client server, ``ray://HOST:PORT``; ``jobs`` is how many cells are measured at
    once, None: as many as the cluster has cores.

    Raises AuditError where the cluster cannot be had, has another semseal or loses a cell again and again, and whatever a
    cell raises.
    """
    pictures = max((work.images.nbytes + work.attacker_images.nbytes for _, work in planned), default=0)
    with connected(address, jobs, pictures) as (ray, started):
        jobs, threads, gpus = _shares(ray.nodes(), jobs)
        # workers that were started here have theirs from this process
        variables = {} if started else {**_limits(threads), **_owner([work for _, work in planned])}
        task = ray.remote(_task).options(
            num_cpus=threads, num_gpus=gpus, max_retries=RETRIES, runtime_env={"env_vars": variables} if variables else None
        )
        sent: dict[Any, Any] = {}
        waiting = list(reversed(planned))
        running: dict[Any, Cell] = {}
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    cell, work = waiting.pop()
                    running[task.remote(*_parcel(ray, sent, work, threads, packages), cell)] = cell
                done = _next_done(ray, list(running), threads, gpus)
                cell = running.pop(done)
                yield cell, _result(ray, done, cell)
        finally:
            for left in running if ray.is_initialized() else ():  # without a connection Ray would start a cluster of its own
                ray.cancel(left, force=True)


def _task(parcel: Parcel, images: Images, attacker_images: Images, files: Files, cell: Cell) -> bytes:
    """In a worker: the content of a cell's file."""
    if parcel.sender != _here(parcel.packages):
        raise AuditError(
            f"a worker on {os.uname().nodename} has another semseal than this machine, or other packages",
            "install the same ones on every machine of the cluster, and start Ray there again",
        )
    path = packaged_bundle(parcel.packaged) if parcel.packaged else _unpacked(parcel.work.bundle, files)
    if (path / MANIFEST).read_bytes() != files[MANIFEST]:
        raise AuditError(f"{path} of a worker is another bundle", "install the same semseal on every machine of the cluster")
    return content(scene_of(replace(parcel.work, bundle=path, images=images, attacker_images=attacker_images)), cell)


def _here(packages: tuple[str, ...]) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The code of a cell, and the packages that figures depend on, as they are in this process."""
    return digest_of_code("semseal.runtime.audit.cell"), tuple(sorted(environment(packages).packages.items()))


# what travels


def _parcel(ray: Any, sent: dict[Any, Any], work: Work, threads: int, packages: tuple[str, ...]) -> tuple[Any, ...]:
    """The parcel of a work and references to its arrays and files, each of which is sent once."""

    def once(key: Any, make: Any) -> Any:
        if key not in sent:
            sent[key] = ray.put(make())
        return sent[key]

    def parcel() -> Parcel:
        nothing = np.empty(0, np.float32)
        bare = replace(work, threads=threads, images=nothing, attacker_images=nothing)
        return Parcel(bare, work.bundle.name if is_packaged(work.bundle) else None, packages, _here(packages))

    return (
        once(work, parcel),
        once(("images", id(work.images)), lambda: work.images),
        once(("attacker's", id(work.attacker_images)), lambda: work.attacker_images),
        once(work.bundle, lambda: _files(work.bundle)),
    )


def _files(bundle: Path) -> Files:
    """All of a bundle; of a packaged one, which every worker has, only what tells that it is the same."""
    found = {MANIFEST: (bundle / MANIFEST).read_bytes()}
    if not is_packaged(bundle):
        opened = open_bundle(bundle)
        found |= {SIGNATURE: (bundle / SIGNATURE).read_bytes()} | {name: opened.read(name) for name in opened.manifest["files"]}
    return found


def _unpacked(bundle: Path, files: Files) -> Path:
    """The folder of a bundle: where the driver has it, if that is this machine's too, else a copy that its workers share."""
    try:
        if (bundle / MANIFEST).read_bytes() == files[MANIFEST]:
            return bundle
    except OSError:
        pass
    folder = Path(tempfile.gettempdir()) / f"semseal-{os.getuid()}-{hashlib.sha256(files[MANIFEST]).hexdigest()[:16]}"
    for name, data in files.items():  # whoever else wrote there: opening it checks every file against the owner's signature
        if not (folder / name).exists():
            (folder / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(folder / name, data)
    return folder


def _owner(works: Sequence[Work]) -> dict[str, str]:
    """The public key that this machine verifies bundles with, for machines that have never seen it."""
    return {} if all(is_packaged(work.bundle) for work in works) else {"SEMSEAL_OWNER": pinned_owner()}


# the cluster


@contextmanager
def connected(address: str, jobs: int | None, picture_bytes: int) -> Iterator[tuple[Any, bool]]:
    """Ray, connected to a cluster or to the one that this process is connected to, and whether it was started here.

    A local one is started with as many workers as ``jobs`` need, and ends with the block.
    """
    ray = _ray()
    if ray.is_initialized():  # by whoever calls this from Python
        yield ray, False
        return
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    with tempfile.TemporaryDirectory(prefix="semseal-", ignore_cleanup_errors=True) as folder:
        cores = os.cpu_count() or 1
        own = {"num_cpus": cores, "include_dashboard": False, "_temp_dir": folder}
        try:
            if address == LOCAL:
                # Ray's own choice for its workers is 15, behind everything else that runs here
                variables = {**_limits(max(1, cores // (jobs or cores))), "RAY_worker_niceness": "0", **_token()}
                with _variables(variables):
                    ray.init("local", **quiet, **own, object_store_memory=STORE_BYTES + 2 * picture_bytes)
            else:
                _knock(address)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # that it cannot be reached, which is an error below
                    ray.init(address, **quiet)
        except Exception as error:  # Ray's own is a bare one, such as of processes that do not start in time
            hint = "where this machine is busy, try again later, or leave out --cluster: --jobs needs no Ray"
            if address != LOCAL:
                hint = (
                    "ray start --head --ray-client-server-port 10001 on that machine, with the same Ray and Python as here; "
                    "where it asks for a token, copy ~/.ray/auth_token from there and export RAY_AUTH_MODE=token"
                )
            raise AuditError(f"no Ray cluster at {address}: {_first_line(error)}", hint) from None
        gone: tuple[type[Exception], ...] = (ConnectionError,)
        if address != LOCAL:
            from grpc import RpcError  # which Ray's client lets through, such as of a head that was started again

            gone = (ConnectionError, RpcError)
        try:
            yield ray, address == LOCAL
        except gone as error:
            raise AuditError(
                f"lost the Ray cluster at {address}: {_first_line(error)}", "when it is back, the same command goes on"
            ) from None
        finally:
            ray.shutdown()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _knock(address: str) -> None:
    """Raises OSError or OverflowError where nobody listens: Ray would try for half a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _limits(threads: int) -> dict[str, str]:
    """What keeps the libraries of a process from more threads than these."""
    return dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))


@cache
def _token() -> dict[str, str]:
    """What lets nobody else into a local cluster, and leaves no file in the home folder; one for a process, as Ray keeps it."""
    given = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    return {} if given else {"RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    """This process's environment, which those that it starts inherit, with ``values`` inside of the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _ray() -> Any:
    os.environ.setdefault("RAY_usage_stats_enabled", "0")  # it tells its makers of its use, unless this is set before
    os.environ.setdefault("RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S", "20")  # of a busy machine; 5 where nothing is set
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # and warns of this one
    try:
        import ray
    except ImportError as error:
        raise AuditError(f"--cluster needs Ray: {error}", "in the source folder: pip install '.[cpu,audit,scale]'") from None
    return ray


def _shares(nodes: Sequence[dict[str, Any]], jobs: int | None) -> tuple[int, int, float]:
    """How many cells run at once, and the cores and GPUs of each: a share of all, and no more than the smallest machine has."""
    there = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    cores = [int(found["CPU"]) for found in there]
    if not cores:
        raise AuditError("the Ray cluster has no cores", "start a machine of it with some: ray start --num-cpus")
    jobs = jobs or sum(cores)
    gpus = sum(found.get("GPU", 0.0) for found in there)  # of machines without cores none is of use
    # in ten thousandths, which is as fine as Ray counts
    return jobs, min(max(1, sum(cores) // jobs), *cores), min(1.0, int(gpus / jobs * 10_000) / 10_000)


def _next_done(ray: Any, running: list[Any], threads: int, gpus: float) -> Any:
    """One of ``running`` that is done.

    Raises AuditError where for PATIENCE_S no machine was there that has the cores and the GPUs of a cell: Ray would wait for
    one for ever. Where machines are busy with something else, cells wait.
    """
    last = time.monotonic()
    while True:
        done, _ = ray.wait(running, num_returns=1, timeout=LOOK_S)
        if done:
            return done[0]
        now, there = time.monotonic(), [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(found.get("CPU", 0) >= threads and found.get("GPU", 0) >= gpus for found in there):
            last = now
        elif now - last >= PATIENCE_S:
            raise AuditError(
                f"no machine of the Ray cluster can take a cell any more: each needs {threads} cores"
                + (f" and {gpus:g} of a GPU" if gpus else ""),
                "start the machines again that were lost, and the same command goes on; or take more --jobs, which need less",
            )


def _result(ray: Any, done: Any, cell: Cell) -> bytes:
    """What a task gave, or its error as if the cell had been measured here."""
    try:
        return bytes(ray.get(done))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SemsealError):
            raise error.cause from None
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise AuditError(
            f"the cluster lost {cell.attack}, {cell.defense} of {cell.bundle} {RETRIES + 1} times: {_first_line(error)}",
            "the same command goes on with the other cells; fewer at once take less memory: --jobs",
        ) from None
