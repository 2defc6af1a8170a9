"""What the audit of a recording found: results.json, report.html (self-contained), and a table for a terminal.

RecordedRow ── RecordedResults ──┬─ results.json
reconstructions ── thumbnails ───┴─ templates/recorded.html
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from semseal.runtime.audit.report import MAX_OWN_PX, embedded
from semseal.runtime.audit.results import CHANNEL_TITLES
from semseal.runtime.audit.settings import Settings
from semseal.runtime.audit.wording import MATCHING_ADVANTAGE
from semseal.runtime.defense.defenses import BY_NAME
from semseal.runtime.environment import Environment
from semseal.runtime.files import write_atomically


@dataclass(frozen=True)
class RecordedRow:
    """An attack, and the defence that its Eve supposes. Without a score, ``missing`` says why."""

    attack: str
    supposed: str
    pictures: int
    psnr: float | None = None
    psnr_95: float | None = None
    ssim: float | None = None
    ssim_95: float | None = None
    matching_advantage_db: float | None = None
    matching_advantage_95: float | None = None
    control: str | None = None
    verdict: str | None = None  # sees, nothing, open or void
    missing: str | None = None


@dataclass(frozen=True)
class RecordedResults:
    """The content of results.json. ``snr_db`` is None where no noise can be told, ``verdict`` where nothing is scored."""

    what: str
    environment: Environment
    bundle: str
    digest: str
    engine: str
    precision: str
    recording: str
    role: str  # as the recording says, and so is the model
    model: str
    symbols: int  # of a frame
    frames: int  # in the recording
    attacked: int
    snr_db: float | None
    snr_missing: str | None
    eve_channel: str
    data: str
    sent: tuple[str, ...] | None
    verdict: str | None
    verdict_missing: str | None
    rows: tuple[RecordedRow, ...]
    left_out: dict[str, str]
    settings: Settings

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"

    @property
    def channel(self) -> str:
        """What Eve received over, in words."""
        if self.snr_db is None:
            return "noiseless"
        return f"{CHANNEL_TITLES[self.eve_channel]}, {self.snr_db:.1f} dB estimated"

    @property
    def headline(self) -> list[str]:
        """The verdict in sentences, and what it does not cover."""
        return [*self._sentences, *self._doubt]

    @property
    def _doubt(self) -> list[str]:
        """Two models may send frames of one size; with the wrong one nothing is seen."""
        if not self.model or Path(self.model).name == Path(self.bundle).name:
            return []
        return [f"The recording says that its model is {self.model}, and it was attacked with the bundle {self.bundle}."]

    @property
    def _sentences(self) -> list[str]:
        scored = [row for row in self.rows if row.verdict is not None]
        if self.verdict is None or not scored:
            return [f"Not scored: {self.verdict_missing}. The page shows what each attack made of the recording."]
        seen = [row for row in scored if row.verdict == "sees"]
        if seen:
            worst = max(seen, key=lambda row: row.matching_advantage_db or 0.0)
            return [
                f"Eve sees what was sent, without the key: with {worst.attack}, supposing {BY_NAME[worst.supposed].title}, "
                f"she gets {worst.psnr:.1f} dB, a matching advantage of {worst.matching_advantage_db:z.1f} dB."
            ]
        words = {
            "undecided": "Undecided: it takes more pictures to show that nothing leaks.",
            "void": "Void: every attack failed where it must win, so nothing here says whether anything leaks.",
        }
        return [
            words.get(self.verdict, f"{len(scored)} attacks, and none that counts saw anything. That is no proof."),
            "Nothing is seen either where the pictures of --sent are others than those that were recorded. Games, and attacks "
            "that take more than a recording, were not tried: semseal audit without --recording tries them on the bundle.",
        ]


def write_page(path: Path, results: RecordedResults, pictures: Mapping[str, NDArray[np.float32]]) -> None:
    """Write the page; ``pictures`` are those that are shown in each line, [n, 3, height, width], by its name."""
    from jinja2 import Environment as Templates

    template = files("semseal.runtime.audit").joinpath("templates/recorded.html").read_text()
    page = Templates(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    shown = {name: [embedded(picture, MAX_OWN_PX) for picture in part] for name, part in pictures.items()}
    text = page.render(results=results, lines=shown, defenses=BY_NAME, about=MATCHING_ADVANTAGE)
    write_atomically(path, text.encode(errors="replace"))


def print_recorded(console: Console, results: RecordedResults, folder: Path) -> None:
    """All of it for a terminal of 80 columns."""
    table = Table(title=escape(f"{results.recording}: {results.channel}"), box=SIMPLE_HEAD, pad_edge=False)
    for column in ("attack", "Eve supposes", "verdict"):
        table.add_column(column)
    for column in ("pictures", "PSNR", "SSIM", "adv."):
        table.add_column(column, justify="right")
    for row in results.rows:
        figures = (f"{row.psnr:.1f}", f"{row.ssim:z.2f}") if row.psnr is not None else ("-", "-")
        gain = "-" if row.matching_advantage_db is None else f"{row.matching_advantage_db:+z.1f}"
        supposed = "" if row.attack == "mean-picture" else BY_NAME[row.supposed].short
        table.add_row(row.attack, supposed, row.verdict or "-", str(row.pictures), *figures, gain)
    console.print(table)
    console.print(
        f"{results.attacked} of {results.frames} frames of {results.symbols} symbols, by the {results.role or 'unknown'}; "
        f"bundle {results.bundle}, {results.engine} {results.precision}",
        markup=False,
        soft_wrap=True,
    )
    for what, why in results.left_out.items():
        console.print(f"left out {what}: {why}", markup=False, soft_wrap=True)
    for sentence in results.headline:
        console.print(sentence, markup=False, soft_wrap=True)
    where = f"pictures and table: {folder / 'report.html'}    figures: {folder / 'results.json'}"
    console.print(where, markup=False, soft_wrap=True)
