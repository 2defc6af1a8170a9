"""The audit: what Eve gets out of deployed engines, as Tables I to IV of the paper and beyond.

    bundles x defences x Eve's SNRs x attacks ── cells, one file each ── results.json, report.html

Every cell is written when it is done and found again by the next run: an interrupted audit goes on where it was, and one that
measured a part can be asked for more. Eve trains on split ``test``; every figure is measured on split ``valid``, which no
network has seen. In the row ``mean-picture`` she answers with the mean of her images: her guess when she receives nothing.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed, parallel_config
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from semseal.runtime.audit.attacks import BY_NAME, PICTURE_S
from semseal.runtime.audit.cell import file_name, is_game, measure, read_games, read_reconstructions
from semseal.runtime.audit.code import digest_of_code
from semseal.runtime.audit.matrix import FULL, both, cells
from semseal.runtime.audit.report import write_first_look, write_report
from semseal.runtime.audit.results import AuditedBundle, Results
from semseal.runtime.audit.scene import ENGINE, Images, Scene
from semseal.runtime.audit.settings import Cell, Settings
from semseal.runtime.audit.surrogate import why_unsupported
from semseal.runtime.audit.tables import markdown_tables
from semseal.runtime.audit.taken import MIN_PICTURES, take_pictures
from semseal.runtime.audit.verdict import Games, Pictures, count_figures, game_rows, orderings, picture_rows
from semseal.runtime.audit.wording import optimised
from semseal.runtime.bundle import Bundle, open_bundle
from semseal.runtime.engine import open_engine
from semseal.runtime.environment import Environment, environment
from semseal.runtime.errors import AuditError
from semseal.runtime.files import shown, write_atomically

Link = tuple[Bundle, float]  # and the SNR of its main channel

PACKAGES = ("semseal", "numpy", "scipy", "onnxruntime", "torch", "scikit-image", "scikit-learn")  # that figures depend on


def audit(bundles: list[Path], data: str, out: Path, settings: Settings = FULL, jobs: int = 1) -> Results:
    """Run or continue an audit; returns what it wrote to ``out``/results.json.

    One bundle for each main SNR, or one for a range of them: that is audited at ``settings.main_snrs``, or at the middle.

    Beside it: report.html, tables.md, first-look.png, and one file for each cell. ``jobs`` processes measure cells side by
    side, and share the cores.

    Raises AuditError for two bundles of one SNR or of different shapes, and for an ``out`` that holds another audit;
    PictureError when the data has too few pictures.
    """
    opened = sorted((open_bundle(path) for path in bundles), key=lambda bundle: bundle.snr_db)
    settings = _with_middle(settings, opened)
    links = _links(opened, settings)
    _check(links, settings)
    height, width = opened[0].height, opened[0].width
    taken, data = take_pictures(data, settings, height, width), shown(data)
    images, attacker_images, settings, skipped = taken.images, taken.attacker_images, taken.settings, taken.skipped
    identity = _identity(opened, data, images, attacker_images, settings)
    _claim(out, identity)
    everything = _with_earlier(settings, out)
    threads = None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)
    planned: list[tuple[Cell, _Work]] = []
    for bundle, main_snr in links:
        unsupported = _unsupported(bundle, main_snr, images, everything)
        skipped |= {f"{optimised()} on {bundle.path}, {name}": reason for name, reason in unsupported.items()}
        work = {
            name: _Work(json.dumps(identity), bundle.path, name, threads, main_snr, images, attacker_images, settings)
            for name in everything.precisions
        }
        planned += [(cell, work[cell.precision]) for cell in _wanted(settings, everything, bundle, main_snr, unsupported)]
    _measure_all(planned, out / "cells", settings, jobs)
    links = _links(opened, everything)
    pictures, games = _read(out / "cells", [cell for _, main_snr in links for cell in cells(everything, main_snr)])
    results = summarise(pictures, games, links, data, everything, skipped)
    write_atomically(out / "tables.md", markdown_tables(results).encode())
    write_first_look(out / "first-look.png", results, pictures, images)
    write_report(out / "report.html", results, pictures, images)
    write_atomically(out / "results.json", results.to_json().encode())
    return results


def summarise(
    pictures: Pictures, games: Games, links: list[Link], data: str, settings: Settings, skipped: dict[str, str]
) -> Results:
    """The results of these cells: environment, seeds, rows with intervals, games, and the orderings."""
    among = count_figures(pictures, games)
    return Results(
        what="semseal audit",
        environment=_environment(),
        data=data,
        settings=settings,
        ssim="Wang et al. 2004, Gaussian window, sigma 1.5, per colour",
        bundles=tuple(
            AuditedBundle(
                main_snr=main_snr,
                digest=bundle.digest.hex(),
                c=bundle.manifest["model"]["c"],
                bandwidth_ratio=bundle.bandwidth_ratio,
                engine=ENGINE,
            )
            for bundle, main_snr in links
        ),
        pictures=(
            "crops of three photographs: the intervals cover the crops, not pictures in general"
            if data == "photos"
            else "pictures that no network was trained on"
        ),
        rows=picture_rows(pictures, among),
        games=game_rows(games, among),
        orderings=orderings(pictures),
        skipped=skipped,
    )


def _with_middle(settings: Settings, bundles: list[Bundle]) -> Settings:
    """``settings`` that say the main SNR where none was chosen, for one bundle of a range: asked for more, both stay."""
    wide = [bundle.snr_db for bundle in bundles if bundle.has_scale]
    return replace(settings, main_snrs=tuple(wide)) if len(wide) == 1 and not settings.main_snrs else settings


def _links(bundles: list[Bundle], settings: Settings) -> list[Link]:
    """Each bundle with the main SNRs at which it is audited, by these."""
    links = []
    for bundle in bundles:
        snrs = settings.main_snrs if bundle.has_scale and settings.main_snrs else (bundle.snr_db,)
        links += [(bundle, snr) for snr in snrs]
    return sorted(links, key=lambda link: link[1])


def _check(links: list[Link], settings: Settings) -> None:
    """Raise for what cannot be measured, before anything is written."""
    bundles = [bundle for bundle, _ in links]
    if settings.main_snrs and not any(bundle.has_scale for bundle in bundles):
        raise AuditError("a main SNR can be chosen only for a model that is for a range of them", "leave out --main-snr")
    if not np.isfinite(settings.main_snrs).all():
        raise AuditError(f"main SNRs must be finite numbers of dB, got {settings.main_snrs}")
    for (one, snr), (two, other) in pairwise(links):
        if snr == other:
            raise AuditError(f"{one.path} and {two.path} are both for {snr:g} dB", "audit them one at a time")
    if len({(bundle.height, bundle.width) for bundle in bundles}) > 1:
        raise AuditError("the bundles take images of different sizes", "audit them one at a time")
    if not settings.eve_snrs or not np.isfinite(settings.eve_snrs).all():
        raise AuditError(f"Eve's SNRs must be finite numbers of dB, got {settings.eve_snrs}")
    for count in (settings.pictures, settings.optimised_pictures):
        if count < MIN_PICTURES or count % 2:
            raise AuditError(
                f"pictures are sent in pairs and compared: their number must be even and at least {MIN_PICTURES}, got {count}"
            )
    for bundle in bundles:
        for precision in settings.precisions:
            for side in ("transmitter", "receiver"):
                bundle.graph(side, precision)  # raises for a damaged one


# which cells


def _wanted(
    settings: Settings, everything: Settings, bundle: Bundle, main_snr: float, unsupported: dict[str, str]
) -> list[Cell]:
    """The cells that were asked for now, and of all others what they are compared with: Bob and the mean picture."""
    asked = set(cells(settings, main_snr))
    return [
        cell
        for cell in cells(everything, main_snr)
        if (cell in asked or cell.eve_snr is None)
        and not (cell.precision in unsupported and cell.eve_snr is not None and BY_NAME[cell.attack].optimised)
        and not (cell.eve_snr is not None and BY_NAME[cell.attack].of_scale and not bundle.has_scale)
    ]


def _unsupported(bundle: Bundle, main_snr: float, images: Images, settings: Settings) -> dict[str, str]:
    """The precisions whose transmitter cannot be differentiated, each with the reason; none where no attack asks for it."""
    if not any(BY_NAME[name].optimised for name in settings.attacks):
        return {}
    told = [np.full(2, main_snr, np.float32)] if bundle.has_scale else []
    inputs = [images[:2], np.arange(2 * bundle.h, dtype=np.int32).reshape(2, -1), *told]
    graphs = {name: bundle.graph("transmitter", name) for name in settings.precisions}
    reasons = {name: why_unsupported(graph, open_engine(ENGINE, graph), inputs) for name, graph in graphs.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def _with_earlier(settings: Settings, out: Path) -> Settings:
    """``settings`` asked for what an earlier run of this audit finished as well: its results stay in the report."""
    file = out / "results.json"
    return both(settings, Results.from_json(file.read_text()).settings) if file.exists() else settings


# measuring them


@dataclass(frozen=True)
class _Work:
    """What a process needs for the cells of one bundle at one precision; equal when the cells' content is."""

    identity: str
    bundle: Path
    precision: str
    threads: int | None
    main_snr: float
    images: Images = field(compare=False)
    attacker_images: Images = field(compare=False)
    settings: Settings = field(compare=False)


@lru_cache(maxsize=1)
def _scene(work: _Work) -> Scene:
    bundle = open_bundle(work.bundle)
    return Scene(bundle, work.images, work.attacker_images, work.settings, work.precision, work.threads, work.main_snr)


def _measure(work: _Work, cell: Cell, file: Path) -> Cell:
    measure(_scene(work), cell, file)
    return cell


def _measure_all(planned: list[tuple[Cell, _Work]], folder: Path, settings: Settings, jobs: int) -> None:
    """Measure what is not there yet, in ``jobs`` processes, with a bar in estimated seconds."""
    missing = [(cell, work) for cell, work in planned if not (folder / file_name(cell)).exists()]
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), transient=True, speed_estimate_period=300) as progress:
        bar = progress.add_task("audit", total=sum(_seconds(cell, settings) for cell, _ in missing))
        if jobs > 1:
            tasks = (delayed(_measure)(work, cell, folder / file_name(cell)) for cell, work in missing)
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
            measure(_scene(work), cell, folder / file_name(cell), lambda seconds: progress.advance(bar, seconds))
            done += _seconds(cell, settings)
            progress.update(bar, completed=done)


def _seconds(cell: Cell, settings: Settings) -> float:
    return PICTURE_S * settings.pictures if cell.eve_snr is None else BY_NAME[cell.attack].cost(settings)


def _read(folder: Path, wanted: list[Cell]) -> tuple[Pictures, Games]:
    """What there is of the wanted cells."""
    there = {cell: folder / file_name(cell) for cell in wanted if (folder / file_name(cell)).exists()}
    pictures = {cell: read_reconstructions(file) for cell, file in there.items() if not is_game(cell)}
    return pictures, {cell: read_games(file) for cell, file in there.items() if is_game(cell)}


# whose folder it is


def _identity(bundles: list[Bundle], data: str, images: Images, attacker_images: Images, settings: Settings) -> dict[str, Any]:
    """What an audit's cells depend on."""
    return {
        "bundles": [[bundle.snr_db, _digest_of_graphs(bundle)] for bundle in bundles],
        "data": data,
        "pictures": hashlib.sha256(images.tobytes() + attacker_images.tobytes()).hexdigest(),
        "effort": settings.effort(),
        "code": digest_of_code("semseal.runtime.audit.cell"),
        "environment": asdict(_environment()),
    }


def _environment() -> Environment:
    return environment(PACKAGES)


def _digest_of_graphs(bundle: Bundle) -> str:
    """Of every graph in every precision, not only of those that name the model."""
    graphs = {name: entry["sha256"] for name, entry in bundle.manifest["files"].items() if name.endswith(".onnx")}
    return hashlib.sha256(json.dumps(graphs, sort_keys=True).encode()).hexdigest()


def _claim(out: Path, identity: dict[str, Any]) -> None:
    """Make the folder of this audit, or check that it is this audit's."""
    text = json.dumps(identity, indent=1) + "\n"
    file = out / "audit.json"
    if file.exists() and file.read_text() != text:
        try:
            found = json.loads(file.read_text())
        except ValueError:
            raise AuditError(f"{file} is damaged", "choose another --out") from None
        differing = ", ".join(name for name in identity if found.get(name) != json.loads(text)[name])
        raise AuditError(f"{out} holds another audit: {differing} differ", "choose another --out")
    if out.is_file() or (out.is_dir() and not file.exists() and any(out.iterdir())):
        raise AuditError(f"{out} is neither empty nor an audit", "choose another --out")
    (out / "cells").mkdir(parents=True, exist_ok=True)
    write_atomically(file, text.encode())
