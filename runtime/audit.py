"""The audit: what Eve gets out of deployed engines, as Tables I to IV of the paper and beyond.

    bundles x defences x Eve's SNRs ── cells, one file each ── results.json, report.html
                                       Bob, white-box Eve, black-box Eve

Every cell is written when it is done and found again by the next run, so an interrupted audit goes on where it was. Eve
trains on split ``test``; every figure is measured on split ``valid``, which no network has seen. She answers with the mean of
her own pictures in the row ``mean picture``: an attack that scores no better has shown nothing.
"""

import dataclasses
import hashlib
import io
import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from semseal.runtime import metrics, paper
from semseal.runtime.attacks import blackbox, whitebox
from semseal.runtime.attacks.surrogate import Surrogate, UnsupportedGraphError
from semseal.runtime.attacks.whitebox import FAST, WhiteBoxSettings
from semseal.runtime.bundle import Bundle, open_bundle
from semseal.runtime.files import write_atomically
from semseal.runtime.leakage import Effort, Plan, measure
from semseal.runtime.pictures import open_pictures
from semseal.runtime.report import markdown_tables, write_first_look, write_report
from semseal.runtime.scene import Scene

SHOWN = 4  # pictures of each cell that the report shows

Images = NDArray[np.float32]


class AuditError(ValueError):
    """An audit that cannot be run as asked; the message says what to change."""


@dataclass(frozen=True)
class Settings:
    """How much is measured. ``whitebox_pictures`` of the ``pictures`` are attacked white-box, the first ones."""

    pictures: int = 200
    whitebox_pictures: int = 24
    eve_pictures: int = 800  # that Eve trains on
    blackbox_steps: int = 600
    whitebox: WhiteBoxSettings = FAST
    eve_snrs: tuple[float, ...] = (0.0, 10.0, 20.0)
    defenses: tuple[str, ...] = tuple(paper.PLACES)
    leakage: Plan | None = None  # the Eves who adapt
    seed: int = 0


FULL = Settings(leakage=Plan((0.0, 10.0, 20.0)))
QUICK = Settings(
    pictures=16,
    whitebox_pictures=4,
    eve_pictures=200,
    blackbox_steps=150,
    whitebox=dataclasses.replace(FAST, steps=100, lr=0.1),
    eve_snrs=(10.0,),
    leakage=Plan((10.0,), effort=Effort(20, dataclasses.replace(FAST, steps=50, lr=0.1), 4, 40)),
)
DEMO = dataclasses.replace(
    QUICK,
    pictures=24,
    whitebox_pictures=8,
    blackbox_steps=400,
    defenses=("none", "permute+substitute"),
    leakage=Plan((10.0,), ("none", "permute", "permute+substitute", "mix"), ("row ordering",)),
)


@dataclass(frozen=True)
class Cell:
    """One measurement. ``main_snr`` names the bundle; ``eve_snr`` is None for Bob and for the mean picture."""

    attack: str  # bob, mean picture, white-box, black-box
    defense: str
    main_snr: float
    eve_snr: float | None

    @property
    def file(self) -> str:
        eve = "" if self.eve_snr is None else f"-eve{self.eve_snr:g}"
        return f"{self.attack.replace(' ', '-')}-{self.defense}-main{self.main_snr:g}{eve}.npz"


@dataclass(frozen=True)
class Measured:
    """Per-picture PSNR in dB and SSIM, float64 [n], and the first answers, float32 [SHOWN, 3, height, width]."""

    psnr: NDArray[np.float64]
    ssim: NDArray[np.float64]
    shown: Images


def audit(bundles: list[Path], data: str, out: Path, settings: Settings = FULL) -> dict[str, Any]:
    """Run or continue an audit of one bundle per main SNR; returns what it wrote to ``out``/results.json.

    Beside it: report.html, tables.md, first-look.png, and one file for each cell.

    Raises AuditError for two bundles of one SNR or of different shapes, and for an ``out`` that holds another audit;
    PictureError when the data has too few pictures.
    """
    opened = sorted((open_bundle(path) for path in bundles), key=lambda bundle: bundle.snr_db)
    for one, two in pairwise(opened):
        if one.snr_db == two.snr_db:
            raise AuditError(f"{one.path} and {two.path} are both trained for {one.snr_db:g} dB; audit them one at a time")
    if len({(bundle.height, bundle.width) for bundle in opened}) > 1:
        raise AuditError("the bundles take images of different sizes; audit them one at a time")
    if not settings.eve_snrs or not np.isfinite(settings.eve_snrs).all():
        raise AuditError(f"Eve's SNRs must be finite numbers of dB, got {settings.eve_snrs}")
    for bundle in opened:
        for side in ("transmitter", "receiver"):
            bundle.graph(side)  # raises for a damaged one before anything is written
    height, width = opened[0].height, opened[0].width
    sent, eves = open_pictures(data, "valid"), open_pictures(data, "test")
    images = sent.take(settings.pictures, height, width)
    own = eves.take(settings.eve_pictures, height, width, seed=1)
    skipped = {str(path): reason for path, reason in (sent.skipped | eves.skipped).items()}
    _claim(
        out,
        {
            "bundles": {f"{bundle.snr_db:g}": bundle.digest.hex() for bundle in opened},
            "data": data,
            "pictures": hashlib.sha256(images.tobytes() + own.tobytes()).hexdigest(),
            "settings": dataclasses.asdict(settings),
            "environment": environment(),
        },
    )
    cells: dict[Cell, Measured] = {}
    leaks: dict[str, list[dict[str, Any]]] = {"rows": [], "games": []}
    work = _work(opened, settings)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn())
    with Progress(*columns, transient=True, speed_estimate_period=120) as progress:
        bar = progress.add_task("audit", total=sum(cost for _, cost in work))
        for bundle in opened:
            surrogate, reason = _surrogate(bundle)
            if reason:
                skipped[f"white-box on {bundle.path}"] = reason
            scene = _Scene(bundle, surrogate, images, own, settings, lambda done: progress.advance(bar, done))
            for cell, cost in work:
                if cell.main_snr != bundle.snr_db:
                    continue
                if cell.attack == "white-box" and surrogate is None:
                    progress.advance(bar, cost)
                    continue
                progress.update(bar, description=f"{cell.attack}, {cell.defense}, {cell.main_snr:g} dB")
                found = _read(out / "cells" / cell.file)
                if found is None:
                    found = scene.measure(cell)
                    _write(out / "cells" / cell.file, found)
                else:
                    progress.advance(bar, cost)
                cells[cell] = found
            if settings.leakage is not None:
                plan = dataclasses.replace(settings.leakage, seed=settings.seed)
                started = partial(_describe, progress, bar)
                found_leaks, _ = measure(bundle, images, own, plan, out / "cells", surrogate, started)
                for name, found_rows in found_leaks.items():
                    leaks[name] += found_rows
    results = {**summarise(cells, opened, data, settings), "leakage": leaks, "skipped": skipped}
    write_atomically(out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    write_atomically(out / "tables.md", markdown_tables(results).encode())
    write_first_look(out / "first-look.png", results, cells, images)
    write_report(out / "report.html", results, cells, images)
    return results


def _describe(progress: Progress, bar: TaskID, what: str) -> None:
    progress.update(bar, description=what)


def _surrogate(bundle: Bundle) -> tuple[Surrogate | None, str]:
    """The transmitter for the white-box attack, or why there is none."""
    try:
        return Surrogate(bundle.graph("transmitter")), ""
    except UnsupportedGraphError as error:
        return None, str(error)


def _work(bundles: list[Bundle], settings: Settings) -> list[tuple[Cell, int]]:
    """Every cell with its cost in picture-steps, for the progress bar."""
    work = []
    for bundle in bundles:
        for defense in settings.defenses:
            work.append((Cell("bob", defense, bundle.snr_db, None), 0))
            for snr in settings.eve_snrs:
                work.append(
                    (Cell("white-box", defense, bundle.snr_db, snr), settings.whitebox_pictures * settings.whitebox.steps)
                )
                work.append((Cell("black-box", defense, bundle.snr_db, snr), settings.blackbox_steps * blackbox.BATCH))
        work.append((Cell("mean picture", "none", bundle.snr_db, None), 0))
    return work


class _Scene:
    """Alice, Bob and Eve around one bundle, with the pictures that are sent and those that Eve owns."""

    def __init__(
        self,
        bundle: Bundle,
        surrogate: Surrogate | None,
        images: Images,
        own: Images,
        settings: Settings,
        advance: Callable[[int], None],
    ) -> None:
        self.bundle, self.images, self.own, self.settings, self.advance = bundle, images, own, settings, advance
        self.scene = Scene(bundle, images, own, seed=settings.seed)
        self.surrogate = surrogate

    def measure(self, cell: Cell) -> Measured:
        images = self.images
        if cell.attack == "bob":
            answer = self._bob(cell)
        elif cell.attack == "mean picture":
            answer = np.broadcast_to(self.own.mean(axis=0), images.shape)
        elif cell.attack == "white-box":
            images = images[: self.settings.whitebox_pictures]
            assert self.surrogate is not None  # such a cell is left out
            answer = whitebox.invert(
                self.surrogate,
                self._heard(images, cell, 1),
                self.bundle.height,
                self.bundle.width,
                self.bundle.h,
                self.settings.whitebox,
                advance=self.advance,
            )
        else:
            answer = self._black_box(cell)
        return Measured(metrics.psnr(images, answer), metrics.ssim(images, answer), answer[:SHOWN].astype(np.float32))

    def _bob(self, cell: Cell) -> Images:
        return self.scene.bob(cell.defense)

    def _black_box(self, cell: Cell) -> Images:
        model = self.bundle.manifest["model"]
        network = blackbox.new_network(
            model["h"], model["w"], model["c"], self.bundle.height, self.bundle.width, self.settings.seed
        )
        blackbox.train_inverse(
            network,
            self._heard(self.own, cell, 2),
            self.own,
            steps=self.settings.blackbox_steps,
            seed=self.settings.seed,
            advance=self.advance,
        )
        return blackbox.invert(network, self._heard(self.images, cell, 1))

    def _heard(self, images: Images, cell: Cell, stream: int) -> NDArray[np.complex64]:
        """The frame of each image as Eve hears it, every transmission under a fresh V."""
        assert cell.eve_snr is not None
        frames = self.scene.send(images, cell.defense)
        return self.scene.through(np.stack([frame.symbols for frame in frames[: len(images)]]), cell.eve_snr, stream)


def summarise(cells: dict[Cell, Measured], bundles: list[Bundle], data: str, settings: Settings) -> dict[str, Any]:
    """The content of results.json: environment, seeds, rows with intervals, and the paper's orderings."""
    rows = []
    for cell, found in cells.items():
        psnr, ssim = metrics.mean(found.psnr), metrics.mean(found.ssim)
        reference = None
        if cell.eve_snr is not None:
            reference = paper.eve(cell.attack, cell.defense, cell.eve_snr, cell.main_snr)
        elif cell.attack == "bob" and cell.defense == "none":
            reference = paper.BOB.get(cell.main_snr)
        rows.append(
            {
                **dataclasses.asdict(cell),
                "pictures": psnr.n,
                "psnr": psnr.value,
                "psnr_95": psnr.half_width,
                "ssim": ssim.value,
                "ssim_95": ssim.half_width,
                "paper_psnr": reference[0] if reference else None,
                "paper_ssim": reference[1] if reference else None,
                "paper_missing": None if reference else "the paper gives no figure for this row",
            }
        )
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
                "engine": "onnxruntime-cpu",
                "precision": "fp32",
            }
            for bundle in bundles
        ],
        "pictures": (
            "crops of three photographs: the intervals cover the crops, not pictures in general"
            if data == "photos"
            else "pictures that no network was trained on"
        ),
        "rows": rows,
        "orderings": orderings(cells),
        "not_measured": "in rows: attackers who adapt to the defence; they are in leakage",
    }


def orderings(cells: dict[Cell, Measured]) -> list[dict[str, Any]]:
    """Where the paper's orderings hold: mean paired PSNR difference in dB over the same pictures, with its 95 % interval.

    ``verdict`` is "holds" when the whole interval is above 0, "fails" when it is below, "open" when it contains 0.
    """
    found = []

    def compare(claim: str, where: str, better: Cell, worse: Cell) -> None:
        if better not in cells or worse not in cells:
            return
        n = min(len(cells[better].psnr), len(cells[worse].psnr))
        difference = metrics.mean(cells[better].psnr[:n] - cells[worse].psnr[:n])
        width = difference.half_width
        verdict = "open" if width is None or abs(difference.value) <= width else "holds" if difference.value > 0 else "fails"
        found.append(
            {
                "claim": claim,
                "where": where,
                "difference_db": difference.value,
                "half_width_db": width,
                "pictures": n,
                "verdict": verdict,
            }
        )

    for cell in [cell for cell in cells if cell.eve_snr is not None]:
        where = f"main {cell.main_snr:g} dB, Eve {cell.eve_snr:g} dB"
        other = dataclasses.replace
        if cell.attack == "black-box":
            compare("black-box above white-box", f"{cell.defense}, {where}", cell, other(cell, attack="white-box"))
        if cell.defense == "none":
            for lower in sorted({c.eve_snr for c in cells if c.eve_snr is not None and c.eve_snr < (cell.eve_snr or 0)})[-1:]:
                compare(
                    "Eve better with her SNR", f"{cell.attack}, {where} against {lower:g} dB", cell, other(cell, eve_snr=lower)
                )
            compare("substitution below none", f"{cell.attack}, {where}", cell, other(cell, defense="substitute"))
        if cell.defense == "substitute":
            compare("permutation below substitution", f"{cell.attack}, {where}", cell, other(cell, defense="permute"))
        if cell.defense == "permute":
            compare(
                "permutation + substitution below permutation",
                f"{cell.attack}, {where}",
                cell,
                other(cell, defense="permute+substitute"),
            )
        if cell.defense == "permute+substitute":
            mean_picture = Cell("mean picture", "none", cell.main_snr, None)
            compare("defended Eve no better than the mean picture", f"{cell.attack}, {where}", mean_picture, cell)
    return found


def environment() -> dict[str, Any]:
    """Versions and processor, for results files."""
    packages = {}
    for package in ("semseal", "numpy", "onnxruntime", "torch", "scikit-image"):
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


def _write(path: Path, found: Measured) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, psnr=found.psnr, ssim=found.ssim, shown=np.round(found.shown * 255).astype(np.uint8))
    write_atomically(path, buffer.getvalue())


def _read(path: Path) -> Measured | None:
    if not path.exists():
        return None
    with np.load(path) as file:
        return Measured(file["psnr"], file["ssim"], file["shown"].astype(np.float32) / 255)
