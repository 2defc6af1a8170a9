"""Build a bundle's plans on this Jetson and time every stage of the link: python benchmarks/on_jetson.py --out jetson.json

Not yet run on a Jetson. On any other machine it says so, writes nothing and exits 0.

    round trips   two pictures from send to receive under each defence, against onnxruntime-cpu; not timed
    bench         everything that ``semseal bench`` measures: stages, percentiles, request rates, memory, energy of the board

Host to device and back are copies even though a Jetson has one memory (docs/jetson.md). Each round runs every stage once, in a
new random order, so that a clock that falls meets all of them.
"""

import dataclasses
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from semseal.export.tensorrt import add_plans
from semseal.runtime.bench.machine import said
from semseal.runtime.bench.report import COLUMNS, show
from semseal.runtime.bench.run import Plan, bench
from semseal.runtime.bundle import open_bundle
from semseal.runtime.doctor import jetson
from semseal.runtime.environment import environment, read_text
from semseal.runtime.errors import EngineError, SemsealError
from semseal.runtime.files import write_atomically
from semseal.runtime.gpu.device import open_device
from semseal.runtime.signing import generate_owner, public_text
from shared import failures, links, through

PACKAGES = ("semseal", "numpy", "onnxruntime", "tensorrt", "cuda-core", "cuda-bindings")


def describe(board: str) -> dict[str, Any]:
    """The board and what it runs; what could not be read is null with a reason."""
    return {
        "board": board,
        "jetpack": said("dpkg-query", "-W", "-f=${Version}", "nvidia-jetpack"),
        "jetson_linux": said("dpkg-query", "-W", "-f=${Version}", "nvidia-l4t-core"),
        "power_mode": said("nvpmodel", "-q"),
        "memory": re.findall(r"MemTotal:\s*(.+)", read_text("/proc/meminfo")),
    }


def clocks() -> dict[str, Any]:
    """Clocks in kHz or Hz as the kernel gives them, temperatures in thousandths of a degree, and what jetson_clocks says."""
    files = [
        Path(path)
        for path in ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "/sys/kernel/debug/bpmp/debug/clk/emc/rate")
    ]
    files += [*Path("/sys/class/devfreq").glob("*/cur_freq"), *Path("/sys/class/thermal").glob("thermal_zone*/temp")]
    return {"jetson_clocks": said("jetson_clocks", "--show"), **{str(file): _read(file) for file in files}}


def _read(file: Path) -> dict[str, str | None]:
    try:
        return {"value": file.read_text().strip()}
    except OSError as error:
        return {"value": None, "reason": f"{error.strerror}"}


@click.command()
@click.option("--bundle", "name", default="photos-10db", show_default=True, help="a packaged bundle, or a bundle's folder")
@click.option("--seconds", default=15.0, show_default=True, help="for each form")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSON file to write")
def main(name: str, seconds: float, out: Path) -> None:
    """Build and measure on this Jetson."""
    board = jetson()
    if board is None:
        click.echo("this is no Jetson: nothing was measured, nothing was written")
        return
    try:
        device = open_device("tensorrt")
    except EngineError as error:
        click.echo(f"{board}: {error.message}; nothing was measured, nothing was written")
        return
    before, key = clocks(), generate_owner()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        bundle = add_plans(open_bundle(name), Path(folder) / "here", "tensorrt", key, (1, 1, 2))
        build_seconds = time.perf_counter() - start
        owner, expected_db = public_text(key), through(name, "onnxruntime-cpu")
        trips = {p: links(bundle.path, "tensorrt", p, expected_db, owner) for p in bundle.manifest["precisions"]}
        plan = Plan(engines=("tensorrt",), defenses=("none", "permute", "mix"), seconds=seconds, owner=owner)
        measured = bench(str(bundle.path), plan)
    properties = device.properties
    results = {
        "bundle": name,
        "engine": "tensorrt",
        "environment": dataclasses.asdict(environment(PACKAGES, device.name)),
        "board": describe(board),
        "gpu": {
            "name": device.name,
            "compute_capability": list(device.compute_capability),
            "integrated": bool(properties.integrated),
            "concurrent_managed_access": bool(properties.concurrent_managed_access),
        },
        "clocks_before": before,
        "clocks_after": clocks(),
        "plans": {file: entry["size"] for file, entry in bundle.manifest["files"].items() if file.endswith(".engine")},
        "build_seconds_of_all_plans": build_seconds,
        "round_trips_db": trips,
        "failures": failures,
        "bench": measured.document(),
    }
    write_atomically(out, (json.dumps(results, indent=2) + "\n").encode())
    show(measured, Console(width=COLUMNS, emoji=False))
    click.echo(f"power mode: {results['board']['power_mode']['value']}; {out}")


if __name__ == "__main__":
    try:
        main()
    except (SemsealError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
