"""Everything that docs/security.md and docs/results.md tell of an audit, measured by one command: ``semseal audit --paper``.

bundles ── PARTS, an audit each in a folder of its own: OUT/attacks, OUT/snrs, ... ── OUT/paper.md: the tables of all of them

Cells that a later part has in common with an earlier one are taken over; each part can be continued, or asked for more, by the
command that stands over its tables.
"""

import dataclasses
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from semseal.runtime.attacks.whitebox import PAPER
from semseal.runtime.audit.attacks import BY_NAME
from semseal.runtime.audit.cell import file_name
from semseal.runtime.audit.gate import why_missing
from semseal.runtime.audit.links import links
from semseal.runtime.audit.matrix import cells
from semseal.runtime.audit.results import Results
from semseal.runtime.audit.run import audit, check_folder, fits, seconds_of
from semseal.runtime.audit.settings import Settings
from semseal.runtime.bundle import open_bundle
from semseal.runtime.defense.defenses import MODES
from semseal.runtime.files import shown, write_atomically
from semseal.runtime.pictures import open_pictures

STRONGEST = ("none", "permute+substitute", "mix")  # no defence, the paper's, ours
PAPERS = ("none", "permute", "substitute", "permute+substitute", "mix")
BRIEF = ("white-box", "black-box", "no-key", "row-ordering", "identification")
GAMES = ("identification", "stored-frame", "linkability", "distinguishing")


@dataclass(frozen=True)
class Part:
    """One audit of the whole: what it asks for, and the options that do. ``effort``: Eve tries as hard as in the others."""

    name: str
    title: str
    asks: Callable[[Settings], Settings]
    options: str
    effort: bool = True


def _asking(**chosen: tuple[object, ...]) -> Callable[[Settings], Settings]:
    return lambda settings: dataclasses.replace(settings, **chosen)  # type: ignore[arg-type]


def _options(**chosen: Sequence[object]) -> str:
    return " ".join(f"--{name} {value}" for name, values in chosen.items() for value in values)


def _precisions(settings: Settings) -> Settings:
    attacks = ("white-box", "no-key", "row-ordering", *GAMES)
    return dataclasses.replace(
        settings, attacks=attacks, defenses=STRONGEST, eve_snrs=(10.0,), precisions=("fp32", "fp16", "int8")
    )


PARTS = (
    Part(
        "attacks", "Every attack against every defence, Eve at 10 dB", _asking(eve_snrs=(10.0,), defenses=MODES), "--eve-snr 10"
    ),
    Part(
        "snrs",
        "Tables I to IV of the paper, and row ordering, over Eve's SNRs",
        _asking(eve_snrs=(0.0, 10.0, 20.0), defenses=PAPERS, attacks=BRIEF),
        _options(attack=BRIEF, defense=PAPERS, **{"eve-snr": (0, 10, 20)}),
    ),
    Part(
        "quiet",
        "The games with little noise, and with none",
        _asking(eve_snrs=(0.0, 20.0, 40.0, 60.0), defenses=STRONGEST, attacks=GAMES),
        _options(attack=GAMES, defense=STRONGEST, **{"eve-snr": (0, 20, 40, 60)}),
    ),
    Part(
        "stored",
        "Every attack on frames as they were sent, without noise, under mix",
        _asking(eve_snrs=(math.inf,), defenses=("mix",)),
        "--eve-snr none --defense mix",
    ),
    Part(
        "precisions",
        "FP16 and INT8 engines",
        _precisions,
        _options(
            attack=("white-box", "no-key", "row-ordering", *GAMES),
            defense=STRONGEST,
            precision=("fp32", "fp16", "int8"),
            **{"eve-snr": (10,)},
        ),
    ),
    Part(
        "white-box",
        "The paper's own white-box setting: Adam 1e-3, 2,000 steps from black",
        lambda settings: dataclasses.replace(
            settings,
            whitebox=PAPER,
            pictures=min(settings.pictures, 16),
            optimised_pictures=min(settings.optimised_pictures, 16),
            attacks=("white-box",),
            defenses=("none", "permute+substitute"),
            eve_snrs=(10.0,),
        ),
        "--white-box paper --pictures 16 --attack white-box --defense none --defense permute+substitute --eve-snr 10",
        effort=False,
    ),
)


@dataclass(frozen=True)
class Estimate:
    """What a part takes that is not there yet: cells, and their seconds on two cores."""

    part: Part
    cells: int
    seconds: float


def estimates(bundles: Sequence[Path], out: Path, settings: Settings, parts: Sequence[Part] = PARTS) -> tuple[Estimate, ...]:
    """What is still to be measured, by part; what a part has in common with one before it counts there.

    What cannot be measured counts until the part has found that out, where only the pictures or the graph tell.
    """
    opened = [open_bundle(path) for path in bundles]
    found, counted = [], set[str]()
    for part in parts:
        asked = part.asks(settings)
        folder = out / part.name / "cells"
        done = out / part.name / "results.json"
        known = Results.from_json(done.read_text()) if done.exists() else None
        missing = {
            file_name(cell): seconds_of(cell, asked)
            for link in links(opened, asked)
            for place in link.places(asked)
            for cell in cells(asked, place)
            if cell.attack not in BY_NAME or fits(BY_NAME[cell.attack], link, place, True)
            if not (known and why_missing(cell, known))
            if not (folder / file_name(cell)).exists() and not (part.effort and file_name(cell) in counted)
        }
        counted |= missing.keys() if part.effort else set()
        found.append(Estimate(part, len(missing), sum(missing.values())))
    return tuple(found)


def check_ends(data: str, out: Path, parts: Sequence[Part] = PARTS) -> None:
    """Raises what the parts would raise for pictures that are not there and folders that they cannot write to."""
    for part in parts:
        check_folder(out / part.name)
    for split in ("valid", "test"):
        open_pictures(data, split)


def audit_everything(
    bundles: list[Path],
    data: str,
    out: Path,
    settings: Settings,
    jobs: int | None = None,
    cluster: str | None = None,
    parts: Sequence[Part] = PARTS,
    options: str = "",
) -> tuple[Results, ...]:
    """Run or continue every part; returns their results, and writes ``out``/paper.md beside their folders.

    ``settings`` say how many pictures there are, how hard Eve tries, and on which engines, and so do ``options`` in the
    commands on the page; what is measured is the parts' own.
    Raises as ``semseal.runtime.audit.run.audit``.
    """
    results: list[Results] = []
    earlier: list[Path] = []
    for part in parts:
        folder = out / part.name
        if part.effort:
            _take_over(earlier, folder)
            earlier.append(folder)
        results.append(audit(bundles, data, folder, part.asks(settings), jobs, cluster=cluster))
        audited = shown(f"{shlex.join([*map(str, bundles), '--data', data])} {options}".rstrip())
        write_atomically(out / "paper.md", page(parts[: len(results)], audited, out).encode(errors="replace"))
    return tuple(results)


def page(done: Sequence[Part], audited: str, out: Path) -> str:
    """The tables of the parts that are done, each under the command that makes it."""
    lines = ["# Everything that is told of this audit", ""]
    for part in done:
        folder = shown(shlex.quote(str(out / part.name)))
        lines += [f"## {part.title}", "", "```sh", f"semseal audit {audited} --out {folder} {part.options}", "```", ""]
        lines += [(out / part.name / "tables.md").read_text()]
    return "\n".join(lines)


def _take_over(earlier: Sequence[Path], folder: Path) -> None:
    """Cells that other parts measured, and networks that they trained; they are the same where the audit is."""
    for other in earlier:
        if not (folder / "audit.json").exists():
            (folder / "cells").mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "audit.json", (other / "audit.json").read_bytes())
        if (folder / "audit.json").read_bytes() == (other / "audit.json").read_bytes():
            for file in (*(other / "cells").iterdir(), *(other / "networks").glob("*.safetensors")):
                taken = folder / file.parent.name / file.name
                if not file.name.startswith(".") and not taken.exists():
                    taken.parent.mkdir(exist_ok=True)
                    write_atomically(taken, file.read_bytes())
