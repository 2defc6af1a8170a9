"""What audits take: cells, core-hours and pictures, for one link and for many; a table in Markdown for docs/scale.md.

    python benchmarks/audit_cost.py [LINKS...]     default: 1 100 10000

Seconds are those that the rows of the table of attacks expect of each cell on two cores (``cost``), as the progress bar and
``semseal audit --paper`` use them. They cover the attacks, and not what a process takes to start.
"""

import dataclasses
import sys
from collections.abc import Iterator

from semseal.runtime.audit.matrix import FULL, QUICK, cells
from semseal.runtime.audit.run import seconds_of
from semseal.runtime.audit.settings import Place, Settings
from semseal.runtime.audit.whole import PARTS

PLACE = Place("edge", 10.0, "onnxruntime-cpu", "fp32", "awgn", "awgn")
CORES = 2  # that the rows' seconds are for


def of(settings: Settings) -> tuple[int, float]:
    """Cells of one link and their core-hours."""
    places = [dataclasses.replace(PLACE, precision=precision) for precision in settings.precisions]
    found = [cell for place in places for cell in cells(settings, place)]
    return len(found), CORES * sum(seconds_of(cell, settings) for cell in found) / 3600


def _links(count: int) -> str:
    return f"{count:,} link" + "s" * (count > 1)


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours < 100 else f"{hours:,.0f}"


def table(counts: list[int]) -> Iterator[str]:
    """The lines: each kind of audit by the number of links."""
    gate = dataclasses.replace(FULL, defenses=("mix",), attacks=("identification", "linkability"), eve_snrs=(10.0,))
    kinds = {
        "a gate of two games, `mix`, 200 pictures": of(gate),
        "`--quick`": of(QUICK),
        "all attacks and defences, Eve at 0, 10 and 20 dB": of(FULL),
    }
    parts = [of(part.asks(FULL)) for part in PARTS]
    kinds["`--paper`, at most"] = sum(number for number, _ in parts), sum(hours for _, hours in parts)
    yield f"| audit | cells of a link | {' | '.join(_links(links) for links in counts)} |"
    yield "|---" * (2 + len(counts)) + "|"
    for kind, (number, hours) in kinds.items():
        yield f"| {kind} | {number:,} | {' | '.join(_hours(hours * links) for links in counts)} |"


if __name__ == "__main__":
    print("core-hours:\n")
    print("\n".join(table([int(count) for count in sys.argv[1:]] or [1, 100, 10_000])))
