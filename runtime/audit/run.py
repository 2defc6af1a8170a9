"""The audit: what Eve gets out of deployed engines, as Tables I to IV of the paper and beyond.

    bundles x engines x defences x Eve's SNRs x attacks ── cells, one file each ── results.json, report.html, gate

Every cell is written when it is done and found again by the next run: an interrupted audit goes on where it was, and one that
measured a part can be asked for more. Eve trains on split ``test``; every figure is measured on split ``valid``, which no
network has seen. In the row ``mean-picture`` she answers with the mean of her images: her guess when she receives nothing.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed, parallel_config
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from semseal.runtime.audit.against import Compared, balances
from semseal.runtime.audit.attacks import ATTACKS, BY_NAME, PICTURE_S, Attack
from semseal.runtime.audit.cell import file_name, is_game, measure, read_games, read_reconstructions
from semseal.runtime.audit.code import digest_of_code
from semseal.runtime.audit.cost import costs_of
from semseal.runtime.audit.gate import check_budgets, judge
from semseal.runtime.audit.links import Link, channel_uses, check, check_digital, links, taps, with_earlier
from semseal.runtime.audit.markdown import markdown_tables
from semseal.runtime.audit.matrix import FULL, both, cells
from semseal.runtime.audit.report import write_first_look, write_report
from semseal.runtime.audit.results import AuditedBundle, Results, place_key
from semseal.runtime.audit.scene import CPU_ENGINES, Images
from semseal.runtime.audit.settings import Cell, Place, Settings, eve_at
from semseal.runtime.audit.taken import MIN_PICTURES, Taken, take_pictures
from semseal.runtime.audit.verdict import Games, Pictures, air_rows, count_figures, game_rows, orderings, picture_rows
from semseal.runtime.audit.wording import listed, optimised
from semseal.runtime.audit.work import Work, scene_of
from semseal.runtime.bundle import Bundle, open_bundle
from semseal.runtime.environment import Environment, environment
from semseal.runtime.errors import AuditError
from semseal.runtime.files import check_writable, shown, write_atomically
from semseal.runtime.progress import told

# that figures depend on
PACKAGES = ("semseal", "numpy", "scipy", "onnxruntime", "openvino", "torch", "scikit-image", "scikit-learn")


def audit(
    bundles: list[Path],
    data: str,
    out: Path,
    settings: Settings = FULL,
    jobs: int | None = None,
    budgets: Mapping[str, float] | None = None,
    cluster: str | None = None,
) -> Results:
    """Run or continue an audit; returns what it wrote to ``out``/results.json.

    Any number of bundles for pictures of one size, each under a name of its own; one for a range of SNRs is audited at
    ``settings.main_snrs``, or at the middle. Each runs on ``settings.engines`` or the one that it is deployed with, over
    ``settings.channels`` or the one that it was trained for (``semseal.runtime.audit.links``). ``budgets`` are the largest
    figures that may be, by name (``semseal.runtime.audit.gate``); what became of them is in the results.

    Beside it: report.html, tables.md, first-look.png, costs.json, and one file for each cell. ``jobs`` processes (None: one)
    measure cells side by side, and share the cores; or a Ray ``cluster`` does, ``local`` or ``ray://HOST:PORT``, as many cells
    at once (None: as many as it has cores).

    Raises AuditError for a bundle that is given twice, for bundles of different shapes, for an ``out`` that holds another audit
    and for a budget that has no name here or whose attack is not measured; EngineError where an engine cannot be had;
    PictureError when the data has too few pictures.
    """
    opened = [open_bundle(path) for path in bundles]
    settings = _with_middle(settings, opened)
    found = links(opened, settings)
    _check_asked(settings, out)
    check(found, settings)
    check_budgets(budgets or {}, settings)
    taken, data = take_pictures(data, settings, opened[0].height, opened[0].width), shown(data)
    images, attacker_images, settings, skipped = taken.images, taken.attacker_images, taken.settings, taken.skipped
    skipped |= _unasked(taken, settings)
    identity = _identity(found, data, taken)
    _claim(out, identity)
    everything, everywhere, known = _with_earlier(settings, found, out)
    check_digital(everywhere, everything)  # Bob's is measured under every defence of the folder, at every SNR
    skipped |= known.skipped if known else {}
    agreement = dict(known.surrogate_agreement_db) if known else {}
    networks = (out / "networks").absolute()
    asked = [place for link in found for place in link.places(settings)]
    planned: list[tuple[Cell, Work]] = []
    works: list[Work] = []
    for link in everywhere:
        for place in link.places(everything):
            about = images, attacker_images, taken.questions, settings
            work = Work(json.dumps(identity), link.bundle.path, place, _threads(jobs), networks, *about)
            works += [work] if place in asked else []
            wanted = _wanted(settings if place in asked else None, everything, work, link)
            if any(map(_optimised, wanted)) and (reason := _unsupported(work, agreement)):
                skipped[f"{optimised()} on {_words(place)}"] = reason
                wanted = [cell for cell in wanted if not _optimised(cell)]
            planned += [(cell, work) for cell in wanted]
    _measure_all(planned, out / "cells", settings, jobs, cluster)
    places = [place for link in everywhere for place in link.places(everything)]
    pictures, games = _read(out / "cells", [cell for place in places for cell in _kept(everything, place)])
    results = summarise(pictures, games, everywhere, data, everything, skipped, agreement)
    results = replace(results, gate=judge(budgets or {}, results, settings, asked))
    _write(out, results, pictures, images, _compared(works, results, pictures, out / "costs.json"))
    return results


def _write(out: Path, results: Results, pictures: Pictures, images: Images, compared: list[Compared]) -> None:
    """The pages of an audit, and results.json when all else is there."""
    write_atomically(out / "tables.md", markdown_tables(results, compared).encode(errors="replace"))
    write_first_look(out / "first-look.png", results, pictures, images)
    write_report(out / "report.html", results, pictures, images, compared)
    write_atomically(out / "results.json", results.to_json().encode())


def summarise(
    pictures: Pictures,
    games: Games,
    links: list[Link],
    data: str,
    settings: Settings,
    skipped: dict[str, str],
    agreement: dict[str, float],
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
                name=link.name,
                main_snr=main_snr,
                digest=link.bundle.digest.hex(),
                c=link.bundle.manifest["model"]["c"],
                bandwidth_ratio=link.bundle.bandwidth_ratio * channel_uses(link, main, settings) / link.bundle.n_symbols,
                engines=link.engines,
                main_channel=main,
                eve_channel=eve,
            )
            for link in links
            for main_snr in link.main_snrs
            for main, eve in link.channels
        ),
        pictures=(
            "crops of three photographs: the intervals cover the crops, not pictures in general"
            if data == "photos"
            else "pictures that no network was trained on"
        ),
        rows=picture_rows(pictures, among),
        games=game_rows(games, among),
        on_air=air_rows(pictures),
        orderings=orderings(pictures),
        skipped=skipped,
        surrogate_agreement_db=agreement,
    )


def _unasked(taken: Taken, settings: Settings) -> dict[str, str]:
    """The attacks that ask for classes, where the data knows of none. Raises AuditError if no other attack is wanted."""
    names = [attack.name for attack in ATTACKS if attack.of_classes and attack.name in settings.attacks]
    reason, fix = taken.unasked
    if not names or not reason:
        return {}
    if len(names) == len(settings.attacks):
        raise AuditError(f"{', '.join(names)} cannot be measured: {reason}", f"{fix}, or leave out --attack")
    return dict.fromkeys(names, f"{reason}: {fix}")


def _with_middle(settings: Settings, bundles: list[Bundle]) -> Settings:
    """``settings`` that say the main SNR where none was chosen, for bundles of one range: asked for more, both stay."""
    wide = {bundle.snr_db for bundle in bundles if bundle.has_scale}
    return replace(settings, main_snrs=tuple(wide)) if len(wide) == 1 and not settings.main_snrs else settings


def _check_asked(settings: Settings, out: Path) -> None:
    """What can be told before pictures are read and engines opened."""
    check_folder(out)
    for count in (settings.pictures, settings.optimised_pictures):
        if count < MIN_PICTURES or count % 2:
            raise AuditError(
                f"pictures are sent in pairs and compared: their number must be even and at least {MIN_PICTURES}, got {count}"
            )


def _compared(works: list[Work], results: Results, pictures: Pictures, file: Path) -> list[Compared]:
    """Leakage against cost at the first place of each bundle that this run is about; ``file`` keeps the costs."""
    firsts = {place_key(place) for place in results.firsts}
    here = [work for work in works if place_key(work.place) in firsts]
    found = [(work.place, costs_of(scene_of(work), results.settings.defenses, file)) for work in here]
    return [Compared(place, balances(results, pictures, costs, place)) for place, costs in found]


# which cells


def _wanted(settings: Settings | None, everything: Settings, work: Work, link: Link) -> list[Cell]:
    """The cells that were asked for now, and of all others what they are compared with: Bob and the mean picture.

    ``settings`` None: nothing is asked of this place.
    """
    asked = set(cells(settings, work.place)) if settings else set()
    return [
        cell
        for cell in cells(everything, work.place)
        if cell.eve_snr is None or (cell in asked and fits(BY_NAME[cell.attack], link, work.place, bool(work.questions)))
    ]


def fits(attack: Attack, link: Link, place: Place, has_classes: bool) -> bool:
    """Whether an attack can be made on this model, this engine and pictures that have classes or not."""
    if attack.of_scale and not link.bundle.has_scale:
        return False
    if attack.of_classes and not has_classes:
        return False
    return not attack.of_cpu or place.engine in CPU_ENGINES


def _words(place: Place) -> str:
    return f"{place.bundle}, {place.engine} {place.precision}"


def _optimised(cell: Cell) -> bool:
    return cell.eve_snr is not None and BY_NAME[cell.attack].optimised


def _unsupported(work: Work, agreement: dict[str, float]) -> str:
    """Why the transmitter at a place cannot be differentiated, empty if it can; ``agreement`` gets that of its surrogate."""
    place = work.place
    if _words(place) in agreement:
        return ""
    found, reason = scene_of(work).agreement_or_reason()
    if found is not None:
        agreement[_words(place)] = round(found, 1)
    return reason


def _with_earlier(settings: Settings, found: list[Link], out: Path) -> tuple[Settings, list[Link], Results | None]:
    """``settings`` and links asked for what an earlier run of this audit finished as well: its results stay in the report."""
    file = out / "results.json"
    if not file.exists():
        return settings, found, None
    earlier = Results.from_json(file.read_text())
    everything = both(settings, earlier.settings)
    return everything, with_earlier(found, {bundle.name: bundle.engines for bundle in earlier.bundles}, everything), earlier


# measuring them


def _measure(work: Work, cell: Cell, file: Path) -> Cell:
    measure(scene_of(work), cell, file)
    return cell


def _measure_all(
    planned: list[tuple[Cell, Work]], folder: Path, settings: Settings, jobs: int | None, cluster: str | None
) -> None:
    """Measure what is not there yet, in ``jobs`` processes or on a cluster, with a bar in estimated seconds."""
    missing = [(cell, work) for cell, work in planned if not (folder / file_name(cell)).exists()]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True, speed_estimate_period=300) as progress, told(progress):
        bar = progress.add_task("audit", total=sum(seconds_of(cell, settings) for cell, _ in missing))
        if cluster or (jobs or 1) > 1:
            finished = _on_cluster(missing, folder, jobs, cluster) if cluster else _in_processes(missing, folder, jobs or 1)
            for i, cell in enumerate(finished, 1):
                progress.update(bar, description=f"{i} of {len(missing)} cells", advance=seconds_of(cell, settings))
            return
        done = 0.0
        for cell, work in missing:
            eve = "" if cell.eve_snr is None else f", {eve_at(cell.eve_snr)}"
            progress.update(bar, description=f"{cell.attack}, {cell.defense}, {_words(work.place)}, {cell.main_snr:g} dB{eve}")
            measure(scene_of(work), cell, folder / file_name(cell), lambda seconds: progress.advance(bar, seconds))
            done += seconds_of(cell, settings)
            progress.update(bar, completed=done)


def _in_processes(missing: list[tuple[Cell, Work]], folder: Path, jobs: int) -> Iterator[Cell]:
    """The cells in the order in which they are done, by ``jobs`` processes."""
    tasks = (delayed(_measure)(work, cell, folder / file_name(cell)) for cell, work in missing)
    # copy on write: torch takes no read-only array
    with parallel_config("loky", n_jobs=min(jobs, max(2, len(missing))), inner_max_num_threads=_threads(jobs), mmap_mode="c"):
        yield from Parallel(return_as="generator_unordered")(tasks)


def _on_cluster(missing: list[tuple[Cell, Work]], folder: Path, jobs: int | None, address: str) -> Iterator[Cell]:
    """The same by a cluster. Its machines need not see the folder."""
    from semseal.runtime.audit.cluster import measured

    if missing:
        for cell, found in measured(address, jobs, missing, PACKAGES):
            write_atomically(folder / file_name(cell), found)
            yield cell


def _threads(jobs: int | None) -> int | None:
    """Of each process, where several share the cores."""
    return None if jobs is None or jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)


def seconds_of(cell: Cell, settings: Settings) -> float:
    """What a cell is expected to take on two cores."""
    return PICTURE_S * settings.pictures if cell.eve_snr is None else BY_NAME[cell.attack].cost(settings)


def _kept(everything: Settings, place: Place) -> Iterator[Cell]:
    """Every cell that a run may have measured: what needs no noise, each did at the highest of the SNRs that it was given."""
    for cell in cells(everything, place):
        if cell.eve_snr is None or not BY_NAME[cell.attack].noiseless:
            yield cell
        else:
            yield from (replace(cell, eve_snr=snr) for snr in everything.eve_snrs)


def _read(folder: Path, wanted: list[Cell]) -> tuple[Pictures, Games]:
    """What there is of the wanted cells."""
    there = {cell: folder / file_name(cell) for cell in wanted if (folder / file_name(cell)).exists()}
    pictures = {cell: read_reconstructions(file) for cell, file in there.items() if not is_game(cell)}
    return pictures, {cell: read_games(file) for cell, file in there.items() if is_game(cell)}


# whose folder it is


def _identity(found: list[Link], data: str, taken: Taken) -> dict[str, Any]:
    """What an audit's cells depend on."""
    known = repr(taken.questions).encode() if taken.questions else b""
    return {
        "bundles": [[link.name, link.bundle.snr_db, _digest_of_graphs(link.bundle)] for link in found],
        "channels": [[link.channels, taps(link.bundle)] for link in found],
        "data": data,
        "pictures": hashlib.sha256(taken.images.tobytes() + taken.attacker_images.tobytes() + known).hexdigest(),
        "effort": taken.settings.effort(),
        "code": digest_of_code("semseal.runtime.audit.cell"),
        "environment": asdict(_environment()),
    }


def _environment() -> Environment:
    return environment(PACKAGES)


def _digest_of_graphs(bundle: Bundle) -> str:
    """Of every graph in every precision, not only of those that name the model, and of every plan."""
    graphs = {name: entry["sha256"] for name, entry in bundle.manifest["files"].items() if name.endswith((".onnx", ".engine"))}
    return hashlib.sha256(json.dumps(graphs, sort_keys=True).encode()).hexdigest()


def check_folder(out: Path) -> None:
    """Raises AuditError, or OSError, for a folder that no audit can be written to: before pictures are read."""
    if out.is_file() or (out.is_dir() and not (out / "audit.json").exists() and any(out.iterdir())):
        raise AuditError(f"{out} is neither empty nor an audit", "choose another --out")
    check_writable(out / "results.json")


def _claim(out: Path, identity: dict[str, Any]) -> None:
    """Make the folder of this audit, or check that it is this audit's."""
    text, file = json.dumps(identity, indent=1) + "\n", out / "audit.json"
    if file.exists():
        wanted = json.loads(text)
        try:
            found = dict(json.loads(file.read_text()))
        except (ValueError, TypeError):
            raise AuditError(f"{file} is damaged", "choose another --out") from None
        if differing := [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]:
            raise _another_audit(out, differing)
    (out / "cells").mkdir(parents=True, exist_ok=True)
    write_atomically(file, text.encode())


def _another_audit(out: Path, differing: list[str]) -> AuditError:
    """``differing`` are those of the fields of ``_identity`` in which this audit is not the one in ``out``."""
    verb = "differ" if len(differing) > 1 or differing[0].endswith("s") else "differs"
    if "code" in differing:
        fix = "another version of semseal measured it: choose another --out"
    elif differing == ["environment"]:
        fix = "another machine, or other versions of libraries, measured it: choose another --out"
    else:
        fix = "give the options that it was measured with, or choose another --out"
    return AuditError(f"{out} holds another audit: {listed([f'the {name}' for name in differing])} {verb}", fix)
