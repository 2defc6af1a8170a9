"""Build a bundle's plans on this Jetson and time every stage of the link: python benchmarks/on_jetson.py --out jetson.json

Not yet run on a Jetson. On any other machine it says so, writes nothing and exits 0.

    scheme index      from the shared sets to the index of one image, on the CPU
    round trip        two pictures from send to receive under each defence, against onnxruntime-cpu; not timed
    upload, download  one image to the GPU's own copy, its symbols back; one memory, but the copies are made (docs/jetson.md)
    transmitter       image in, symbols out, both NumPy arrays: copies, network, index, power, one CUDA graph
    receiver          symbols in, image out
    send, receive     everything that Alice or Bob does for one image, header included; send mix the same with the defence mix

Timed with one image. Each round runs every stage once, in a new random order, so that a clock that falls meets all of them.
"""

import dataclasses
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from semseal.export.tensorrt import add_plans
from semseal.runtime.bundle import Bundle, open_bundle
from semseal.runtime.defense import index
from semseal.runtime.defense.schemes import draw_choice, scheme_sets
from semseal.runtime.doctor import jetson
from semseal.runtime.engine import open_engine
from semseal.runtime.environment import environment, read_text
from semseal.runtime.errors import EngineError, SemsealError
from semseal.runtime.files import write_atomically
from semseal.runtime.gpu.device import Tensor, open_device
from semseal.runtime.link import Receiver, Transmitter
from semseal.runtime.metrics import psnr
from semseal.runtime.roundtrip import measure as measure_link
from semseal.runtime.roundtrip import smooth_images
from semseal.runtime.signing import generate_owner, public_text
from shared import SAMPLES_FOR_P99, failures, interleave, links, said

WARM_UP = 100
KEY = bytes(32)
PACKAGES = ("semseal", "numpy", "onnxruntime", "tensorrt", "cuda-core", "cuda-bindings")

Stage = Callable[[], Any]


def stages(bundle: Bundle, engine: str, owner: str | None) -> dict[str, Stage]:
    """The stages that every engine has, checked. Raises AssertionError when a picture does not come through."""
    image = smooth_images(1, bundle.height, bundle.width)
    here, sets = np.zeros(1, int), scheme_sets(KEY, bundle.h)
    plain = index.absolute(index.identity(bundle.h)[None], here, here)
    moved = index.absolute(sets.permutations[draw_choice()][None], here, here)

    def scheme_index() -> Any:
        permutation = sets.permutations[draw_choice()]
        return index.absolute(index.compose(permutation, np.zeros(bundle.h, bool), permutation)[None], here, here)

    made: dict[str, Stage] = {"scheme index": scheme_index}
    for precision in bundle.manifest["precisions"]:
        options: dict[str, Any] = {"engine": engine, "precision": precision, "owner": owner}
        alice, bob = Transmitter(bundle.path, KEY, "permute", **options), Receiver(bundle.path, **options)
        mixing = Transmitter(bundle.path, KEY, "mix", **options)
        in_clear = Transmitter(bundle.path, **options).send(image)
        symbols = in_clear[0].symbols.view(np.float32).reshape(1, -1, 2)
        quality = psnr(image, bob.receive(in_clear))[0]
        assert quality > 25, f"{engine} {precision}: the picture comes through at {quality:.1f} dB"
        assert abs(2 * np.square(symbols, dtype=np.float64).mean() - 1) < 1e-3, f"{engine} {precision}: power is not 1"
        encode, decode = (open_engine(engine, bundle.program(side, precision, engine)) for side in ("transmitter", "receiver"))
        made[f"transmitter {precision}"] = lambda encode=encode: encode(image, moved)
        made[f"receiver {precision}"] = lambda decode=decode, symbols=symbols: decode(symbols, plain)
        made[f"send {precision}"] = lambda alice=alice: alice.send(image)
        made[f"send mix {precision}"] = lambda mixing=mixing: mixing.send(image)
        made[f"receive {precision}"] = lambda bob=bob, frames=in_clear: bob.receive(frames)
    return made


def copies(device: Any, bundle: Bundle) -> dict[str, Stage]:
    """An image to the GPU and its symbols back, from and to pinned memory."""
    stream = device.create_stream()
    image = Tensor(device, stream, (1, 3, bundle.height, bundle.width))
    symbols = Tensor(device, stream, (1, bundle.n_symbols, 2))
    return {
        "upload": lambda: (image.upload(stream), stream.sync()),
        "download": lambda: (symbols.download(stream), stream.sync()),
    }


def measure(made: dict[str, Stage], rounds: int) -> list[dict[str, Any]]:
    """One row for each stage: p50_ms, p90_ms and p99_ms, the last null with a reason where the samples are too few."""
    rows = []
    for name, taken in interleave(made, rounds, WARM_UP).items():
        p50, p90, p99 = (float(value) * 1e3 for value in np.percentile(taken, [50, 90, 99]))
        enough = rounds >= SAMPLES_FOR_P99
        row = {"stage": name, "samples": rounds, "p50_ms": p50, "p90_ms": p90, "p99_ms": p99 if enough else None}
        rows.append(row if enough else {**row, "p99_reason": f"{rounds} samples; it wants {SAMPLES_FOR_P99}"})
    return rows


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
@click.option("--rounds", default=1000, show_default=True, help=f"samples of each stage; a p99 wants {SAMPLES_FOR_P99}")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSON file to write")
def main(name: str, rounds: int, out: Path) -> None:
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
        owner, expected_db = public_text(key), measure_link(name, "onnxruntime-cpu")
        trips = {p: links(bundle.path, "tensorrt", p, expected_db, owner) for p in bundle.manifest["precisions"]}
        made = copies(device, bundle) | stages(bundle, "tensorrt", owner)
        rows = measure(made, rounds)
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
        "rows": rows,
        "energy": {"value": None, "reason": "not measured"},
    }
    write_atomically(out, (json.dumps(results, indent=2) + "\n").encode())
    table = Table(title=f"{board}, one image, {rounds} interleaved rounds")
    for column in ("stage", "p50", "p90", "p99"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for row in rows:
        table.add_row(row["stage"], *("" if row[p] is None else f"{row[p]:.3f} ms" for p in ("p50_ms", "p90_ms", "p99_ms")))
    Console().print(table)
    click.echo(f"power mode: {results['board']['power_mode']['value']}; {out}")


if __name__ == "__main__":
    try:
        main()
    except (SemsealError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
