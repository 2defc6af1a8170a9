"""The audit: what Eve gets out of deployed engines, as Tables I to IV of the paper and beyond.

    bundles x defences x Eve's SNRs x attacks ── cells, one file each ── results.json, report.html

Every cell is written when it is done and found again by the next run: an interrupted audit goes on where it was, and one that
measured a part can be asked for more. Eve trains on split ``test``; every figure is measured on split ``valid``, which no
network has seen. In the row ``mean picture`` she answers with the mean of her own pictures: her guess when she hears nothing.
"""

import dataclasses
import hashlib
import json
import os
import platform
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed, parallel_config
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from semseal.runtime.attacks import blackbox, learned
from semseal.runtime.audit.cell import Ground, measure, read_answers, read_games
from semseal.runtime.audit.matrix import FULL, GAMES, OPTIMISED, Cell, Settings, cells
from semseal.runtime.audit.report import markdown_tables, write_first_look, write_report
from semseal.runtime.audit.scene import ENGINE, Images
from semseal.runtime.audit.surrogate import why_unsupported
from semseal.runtime.audit.verdict import Games, Pictures, figures, game_rows, orderings, picture_rows
from semseal.runtime.bundle import Bundle, open_bundle
from semseal.runtime.errors import AuditError
from semseal.runtime.files import write_atomically
from semseal.runtime.pictures import open_pictures


def audit(bundles: list[Path], data: str, out: Path, settings: Settings = FULL, jobs: int = 1) -> dict[str, Any]:
    """Run or continue an audit of one bundle per main SNR; returns what it wrote to ``out``/results.json.

    Beside it: report.html, tables.md, first-look.png, and one file for each cell. ``jobs`` processes measure cells side by
    side, and share the cores.

    Raises AuditError for two bundles of one SNR or of different shapes, and for an ``out`` that holds another audit;
    PictureError when the data has too few pictures.
    """
    opened = sorted((open_bundle(path) for path in bundles), key=lambda bundle: bundle.snr_db)
    _check(opened, settings)
    height, width = opened[0].height, opened[0].width
    sent, eves = open_pictures(data, "valid"), open_pictures(data, "test")
    images = sent.take(settings.pictures, height, width)
    own = eves.take(settings.eve_pictures, height, width, seed=1)
    skipped = {str(path): reason for path, reason in (sent.skipped | eves.skipped).items()}
    identity = {
        "bundles": {f"{bundle.snr_db:g}": _digest_of_graphs(bundle) for bundle in opened},
        "data": data,
        "pictures": hashlib.sha256(images.tobytes() + own.tobytes()).hexdigest(),
        "effort": settings.effort(),
        "code": _digest_of_code(),
        "environment": environment(),
    }
    _claim(out, identity)
    everything = _with_earlier(settings, out)
    threads = None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)
    planned: list[tuple[Cell, _Work]] = []
    for bundle in opened:
        sizes = bundle.height, bundle.width, bundle.h
        reasons = {name: why_unsupported(bundle.graph("transmitter", name), *sizes) for name in everything.precisions}
        for precision, reason in reasons.items():
            if reason:
                skipped[f"{' and '.join(OPTIMISED)} on {bundle.path}, {precision}"] = reason
        asked = set(cells(settings, bundle.snr_db))
        for cell in cells(everything, bundle.snr_db):
            # what others are compared with is there for all of them
            if (cell in asked or cell.eve_snr is None) and not (reasons[cell.precision] and cell.attack in OPTIMISED):
                work = _Work(json.dumps(identity), bundle.path, cell.precision, threads, images, own, settings)
                planned.append((cell, work))
    _measure_all(planned, out / "cells", settings, jobs)
    measured = {
        cell: out / "cells" / cell.file
        for bundle in opened
        for cell in cells(everything, bundle.snr_db)
        if (out / "cells" / cell.file).exists()
    }
    pictures = {cell: read_answers(file) for cell, file in measured.items() if cell.attack not in GAMES}
    games = {cell: read_games(file) for cell, file in measured.items() if cell.attack in GAMES}
    results = {**summarise(pictures, games, opened, data, everything), "skipped": skipped}
    write_atomically(out / "tables.md", markdown_tables(results).encode())
    write_first_look(out / "first-look.png", results, pictures, images)
    write_report(out / "report.html", results, pictures, images)
    write_atomically(out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    return results


def _check(bundles: list[Bundle], settings: Settings) -> None:
    """Raise for what cannot be measured, before anything is written."""
    for one, two in pairwise(bundles):
        if one.snr_db == two.snr_db:
            raise AuditError(f"{one.path} and {two.path} are both trained for {one.snr_db:g} dB; audit them one at a time")
    if len({(bundle.height, bundle.width) for bundle in bundles}) > 1:
        raise AuditError("the bundles take images of different sizes; audit them one at a time")
    if not settings.eve_snrs or not np.isfinite(settings.eve_snrs).all():
        raise AuditError(f"Eve's SNRs must be finite numbers of dB, got {settings.eve_snrs}")
    for count in (settings.pictures, settings.optimised_pictures):
        if count < 6 or count % 2:
            raise AuditError(
                f"the pictures are sent in pairs and compared: their number must be even and at least 6, got {count}"
            )
    for bundle in bundles:
        for precision in settings.precisions:
            for side in ("transmitter", "receiver"):
                bundle.graph(side, precision)  # raises for a damaged one


@dataclass(frozen=True)
class _Work:
    """What a process needs for the cells of one bundle at one precision; equal when the cells' content is."""

    identity: str
    bundle: Path
    precision: str
    threads: int | None
    images: Images = field(compare=False)
    own: Images = field(compare=False)
    settings: Settings = field(compare=False)


@lru_cache(maxsize=1)
def _ground(work: _Work) -> Ground:
    return Ground(open_bundle(work.bundle), work.images, work.own, work.settings, work.precision, work.threads)


def _measure(work: _Work, cell: Cell, file: Path) -> Cell:
    measure(_ground(work), cell, file)
    return cell


def _measure_all(planned: list[tuple[Cell, _Work]], folder: Path, settings: Settings, jobs: int) -> None:
    """Measure what is not there yet, in ``jobs`` processes, with a bar in estimated seconds."""
    missing = [(cell, work) for cell, work in planned if not (folder / cell.file).exists()]
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), transient=True, speed_estimate_period=300) as progress:
        bar = progress.add_task("audit", total=sum(_seconds(cell, settings) for cell, _ in missing))
        if jobs > 1:
            tasks = (delayed(_measure)(work, cell, folder / cell.file) for cell, work in missing)
            threads = max(1, (os.cpu_count() or 1) // jobs)
            # copy on write: torch takes no read-only array
            with parallel_config("loky", n_jobs=jobs, inner_max_num_threads=threads, mmap_mode="c"):
                for i, cell in enumerate(Parallel(return_as="generator_unordered")(tasks), 1):
                    progress.update(bar, description=f"{i} of {len(missing)} cells", advance=_seconds(cell, settings))
            return
        done = 0.0
        for cell, work in missing:
            eve = "" if cell.eve_snr is None else f", Eve {cell.eve_snr:g} dB"
            progress.update(bar, description=f"{cell.attack}, {cell.defense}, {cell.main_snr:g} dB{eve}")
            measure(_ground(work), cell, folder / cell.file, partial(_advance, progress, bar, _SECONDS.get(cell.attack, 0)))
            done += _seconds(cell, settings)
            progress.update(bar, completed=done)


def _advance(progress: Progress, bar: TaskID, seconds: float, image_steps: int) -> None:
    progress.advance(bar, seconds * image_steps)


# of a picture-step on two cores, for the time left only
_SECONDS = {"white-box": 5e-3, "row matching": 6e-3, "black-box": 2e-3, "learned": 12e-3, "set inverse": 15e-3}


def _seconds(cell: Cell, settings: Settings) -> float:
    steps = {
        "white-box": settings.optimised_pictures * settings.whitebox.steps,
        "row matching": settings.optimised_pictures * settings.matching.steps,
        "black-box": settings.blackbox_steps * blackbox.BATCH,
        "learned": settings.learned_steps * learned.BATCH,
        "set inverse": settings.learned_steps * learned.BATCH,
    }
    if cell.attack in steps:
        return steps[cell.attack] * _SECONDS[cell.attack]
    packets = {
        "which": 5 * settings.pictures + settings.eve_pictures,
        "link": 10 * settings.pictures + 2 * settings.eve_pictures,
        "distinguish": 14 * settings.trials,
    }
    return 0.01 * packets.get(cell.attack, settings.pictures)


def _with_earlier(settings: Settings, out: Path) -> Settings:
    """``settings`` asked for what an earlier run of this audit finished as well: its results stay in the report."""
    file = out / "results.json"
    return settings.and_also(json.loads(file.read_text())["settings"]) if file.exists() else settings


def summarise(pictures: Pictures, games: Games, bundles: list[Bundle], data: str, settings: Settings) -> dict[str, Any]:
    """The content of results.json: environment, seeds, rows with intervals, games, and the orderings."""
    among = figures(pictures, games)
    return {
        "what": "semseal audit",
        "environment": environment(),
        "data": data,
        "settings": dataclasses.asdict(settings),
        "ssim": "Wang et al. 2004, Gaussian window, sigma 1.5, per colour",
        "bundles": [
            {
                "main_snr": bundle.snr_db,
                "digest": bundle.digest.hex(),
                "c": bundle.manifest["model"]["c"],
                "bandwidth_ratio": bundle.bandwidth_ratio,
                "engine": ENGINE,
            }
            for bundle in bundles
        ],
        "pictures": (
            "crops of three photographs: the intervals cover the crops, not pictures in general"
            if data == "photos"
            else "pictures that no network was trained on"
        ),
        "rows": picture_rows(pictures, among),
        "games": game_rows(games, among),
        "orderings": orderings(pictures),
    }


def environment() -> dict[str, Any]:
    """Versions and processor, for results files."""
    packages = {}
    for package in ("semseal", "numpy", "scipy", "onnxruntime", "torch", "scikit-image", "scikit-learn"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "not installed"
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": None,
        "packages": packages,
    }


def _digest_of_graphs(bundle: Bundle) -> str:
    """Of every graph in every precision, not only of those that name the model."""
    graphs = {name: entry["sha256"] for name, entry in bundle.manifest["files"].items() if name.endswith(".onnx")}
    return hashlib.sha256(json.dumps(graphs, sort_keys=True).encode()).hexdigest()


def _digest_of_code() -> str:
    """Of the modules that a cell's content depends on."""
    folder = Path(__file__).parent
    names = ("bundle", "channel", "engine", "leakage", "link", "metrics", "pictures", "scene")
    files = [*(folder / f"{name}.py" for name in names), *folder.glob("attacks/*.py"), *folder.glob("defense/*.py")]
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in sorted(files))).hexdigest()


def _claim(out: Path, identity: dict[str, Any]) -> None:
    """Make the folder of this audit, or check that it is this audit's."""
    text = json.dumps(identity, indent=1) + "\n"
    file = out / "audit.json"
    if file.exists() and file.read_text() != text:
        found = json.loads(file.read_text())
        differing = ", ".join(name for name in identity if found.get(name) != json.loads(text)[name])
        raise AuditError(f"{out} holds another audit: {differing} differ; choose another --out")
    if out.is_file() or (out.is_dir() and not file.exists() and any(out.iterdir())):
        raise AuditError(f"{out} is neither empty nor an audit; choose another --out")
    (out / "cells").mkdir(parents=True, exist_ok=True)
    write_atomically(file, text.encode())
