"""``semseal bench``: the options; what they ask for is in ``run``."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from semseal.runtime.defense.defenses import MODES
from semseal.runtime.engine import ENGINES
from semseal.runtime.files import check_writable
from semseal.runtime.options import BUNDLE, FOLDER, POSITIVE, PRECISION, THREADS, NumberRange, example


@click.command(
    epilog=example(
        "semseal bench edge --quick",
        "semseal bench edge --engine openvino --precision int8 --batch 1 --batch 64 --out bench",
        "semseal bench bundle --against edge --engine openvino",
    )
)
@click.argument("bundle", type=BUNDLE, metavar="BUNDLE")
@click.option("--quick", is_flag=True, help="under mix only, 3 seconds for each form")
@click.option("--engine", "engines", multiple=True, type=click.Choice(ENGINES), help="may be repeated  [default: those here]")
@click.option(
    "--precision", "precisions", multiple=True, type=PRECISION, help="may be repeated  [default: those of the bundle]"
)
@click.option("--defense", "defenses", multiple=True, type=click.Choice(MODES), help="may be repeated  [default: none, mix]")
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1, 64),
    help="images at once, all stages; may be repeated  [default: 1]",
)
@click.option("--threads", type=THREADS, help="of engines on the CPU  [default: all cores]")
@click.option("--seconds", type=NumberRange(0.1), help="for each form and batch  [default: 15, with --quick 3]")
@click.option("--deadline-ms", type=POSITIVE, default=33.0, show_default=True, help="of a request")
@click.option("--rate", "rates_hz", multiple=True, type=POSITIVE, help="requests a second; may be repeated")
@click.option(
    "--against", type=BUNDLE, metavar="OTHER", help="a bundle, a results.json, or a venv or python with another version"
)
@click.option("--margin", type=POSITIVE, default=0.05, show_default=True, help="a ratio within it is 1")
@click.option("--owner", metavar="KEY", help="public key that signed the bundle, or its file")
@click.option("--out", "folder", type=FOLDER, metavar="DIR", help="write results.json, report.html and the forms for CI there")
def bench(bundle: str, quick: bool, against: str | None, folder: Path | None, **asked: Any) -> None:
    """Measure the latency of a link: stages apart and together, percentiles, request rates, memory, distance to the floor.

    BUNDLE is a folder, or edge, edge-quality, photos-10db for those that are packaged. With --against the two are measured in
    turns, and the exit code is 1 if BUNDLE is slower.
    """
    from semseal.runtime.bench import report
    from semseal.runtime.bench.run import QUICK, Plan
    from semseal.runtime.bench.run import bench as measure

    chosen = {name: value for name, value in asked.items() if value not in (None, ())}
    plan = dataclasses.replace(QUICK if quick else Plan(), **chosen)
    if folder is not None:
        check_writable(folder / "results.json")  # before the minutes that the rest takes
    results = measure(bundle, plan, against)
    report.show(results, Console(width=report.COLUMNS, emoji=False))
    if folder is not None:
        from semseal.runtime.bench.output import write

        for path in write(folder, results):
            click.echo(f"wrote {path}")
    slower = [
        f"{stage} ({found.where.engine} {found.where.precision})" for found in results.comparisons for stage in found.slower
    ]
    if slower:
        click.echo(f"error: slower than the baseline: {', '.join(slower)}", err=True)
        sys.exit(1)
