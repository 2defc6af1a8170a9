"""How the cost of a link grows: python benchmarks/scale.py --out scale

    height     edge networks for pictures of 92 to 1080 rows, 16:9, made by ``semseal export edge --size``; send, receive, link
    images     1 to 64 pictures of 180 x 180 at once
    c          feature channels, networks with random weights: time does not depend on them
    memory     resident bytes after 1,000 and after 10,000 sends in one process

Writes scale.json and scale.html with the fitted powers: a time that grows as the number of pixels has power 2 in the height.
"""

import json
from pathlib import Path

import click
import numpy as np
import torch
from semseal.export.bundle import export_bundle, export_model
from semseal.runtime.bench.figures import scaling
from semseal.runtime.bench.measure import interleave, rounds_within, summarize
from semseal.runtime.bench.process import opened
from semseal.runtime.bench.results import Where
from semseal.runtime.bench.stages import open_case, stages
from semseal.runtime.bundle import open_bundle
from semseal.runtime.files import write_atomically
from semseal.runtime.signing import generate_owner, public_text
from semseal.train.config import ModelConfig
from semseal.train.edge import EdgeCodec

STAGES = ("send", "receive", "link")
SIZES = ((92, 160), (180, 320), (360, 640), (720, 1280), (1080, 1920))
BATCHES = (1, 4, 16, 64)
CHANNELS = (4, 8, 16, 32)
SENDS = (1000, 9000)
Times = dict[str, list[tuple[float, float]]]  # by stage: size, milliseconds


def timed(found: Times, size: int, where: Where, owner: str | None, seconds: float) -> None:
    """Add the medians of one form; every answer is checked."""
    made = {name: stage for name, stage in stages(open_case(where, owner)).items() if name in STAGES}
    for stage in made.values():
        stage.verify()
    for name, taken in interleave(made, rounds_within(made, seconds, 200), warm_up=1).items():
        found.setdefault(name, []).append((size, summarize(taken).p50_ms))
    print(f"{where}, size {size}: " + ", ".join(f"{name} {pairs[-1][1]:.2f} ms" for name, pairs in found.items()), flush=True)


@click.command()
@click.option("--out", "folder", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--engine", default="openvino", show_default=True)
@click.option("--precision", default="fp32", show_default=True)
@click.option("--threads", type=int)
@click.option("--seconds", default=5.0, show_default=True, help="for each size")
@click.option("--memory/--no-memory", default=True)
def main(folder: Path, engine: str, precision: str, threads: int | None, seconds: float, memory: bool) -> None:
    """Measure and write."""
    key = generate_owner()
    owner, made = public_text(key), folder / "bundles"
    deployed = {"precisions": ("fp32",) if precision == "fp32" else ("fp32", precision), "signing_key": key, "force": True}
    figures: dict[str, Times] = {"height": {}, "images": {}, "c": {}}
    for height, width in SIZES:
        bundle = export_bundle(open_bundle("edge"), made / f"{height}", (height, width), **deployed)
        timed(figures["height"], height, Where(str(bundle.path), engine, precision, "mix", 1, threads), owner, seconds)
    for batch in BATCHES:
        timed(figures["images"], batch, Where("edge", engine, precision, "mix", batch, threads), None, seconds)
    for c in CHANNELS:
        torch.manual_seed(0)
        model = EdgeCodec(ModelConfig(180, 180, c, "edge")).eval()
        bundle = export_model(model, made / f"c{c}", {"snr_db": [0.0, 20.0]}, **deployed)
        timed(figures["c"], c, Where(str(bundle.path), engine, precision, "mix", 1, threads), owner, seconds)
    powers = {
        kind: {name: float(np.polyfit(*np.log(np.array(pairs)).T, 1)[0]) for name, pairs in times.items()}
        for kind, times in figures.items()
    }
    results = {"engine": engine, "precision": precision, "threads": threads, "times_ms": figures, "powers": powers}
    if memory:
        results["resident_bytes"] = resident(Where("edge", engine, precision, "mix", 1, threads))
    write_atomically(folder / "scale.json", (json.dumps(results, indent=1) + "\n").encode())
    panels = "".join(f"<h2>{kind}</h2>{scaling(times, kind)}" for kind, times in figures.items())
    write_atomically(folder / "scale.html", f"<!doctype html><meta charset=utf-8><title>scale</title>{panels}".encode())
    print(json.dumps({"powers": powers, "resident_bytes": results.get("resident_bytes")}))


def resident(where: Where) -> dict[str, int]:
    """Resident bytes of a process after so many sends."""
    found, done = {}, 0
    with opened(where) as process:
        for sends in SENDS:
            done += sends
            for _ in range(sends // 100):
                memory = process.ask("sends 100")
            found[str(done)] = int(memory["resident"])
            print(f"{done} sends: {memory['resident'] / 2**20:.2f} MiB resident", flush=True)
    return found


if __name__ == "__main__":
    main()
