"""Picture quality over SNR of this link and its rivals at the same channel uses: python benchmarks/quality.py --help

    bundles   the deployed graphs: Transmitter.send, AWGN on the symbols of the frames, Receiver.receive
    linear    no network: block KLT, power as lambda^-1/4, linear MMSE at Bob, who knows scale and noise (train/edge.py, step 0)
    digital   JPEG, WebP, AVIF at the largest quality that fits, behind 5G LDPC and QAM, a link for each design SNR

Every contender sends the same pictures over the same noise powers; all analog ones meet the same noise. A digital link is the
fastest modulation and code rate that loses at most 1 % of its frames at its design SNR, measured with random bits, there and on
its cliff; a picture counts as what it is worth decoded or lost, by how often that happens. Lost, it is one colour, the mean of
the training pictures. Some pictures really are sent, bit by bit, and must come back as they were scored.

Intervals are over pictures (95 %, Student's t). PSNR and SSIM are those of semseal.runtime.metrics; MS-SSIM is that of Wang,
Simoncelli and Bovik (2003) by pytorch-msssim, for sides above 160 pixels.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from cost import arithmetic, latency
from curves import draw
from joblib import Memory
from rich.console import Console
from rich.table import Table
from rivals import SEED, Rival, encoded, losses, one_colour, really_sent, rivals
from scores import Images, Scores, score
from semseal.runtime import metrics
from semseal.runtime.audit.coding import CODECS
from semseal.runtime.bundle import open_bundle
from semseal.runtime.channel import awgn, draw_noise
from semseal.runtime.environment import environment
from semseal.runtime.errors import SemsealError
from semseal.runtime.files import write_atomically
from semseal.runtime.link import Receiver, Transmitter
from semseal.runtime.metrics import Mean
from semseal.runtime.pictures import SPLITS, Pictures, open_pictures
from semseal.train.config import ModelConfig
from semseal.train.edge import EdgeCodec, space_to_depth, to_unit_power

PACKAGES = ("semseal", "numpy", "torch", "onnxruntime", "openvino", "pillow", "sionna-no-rt", "pytorch-msssim", "scikit-image")
TRAINING_PICTURES = 128  # that the linear code and the mean colour are of


@dataclass(frozen=True)
class Row:
    """One contender on one set at one SNR. ``lost`` is the share of frames, with its bounds, of a digital link."""

    set: str
    contender: str
    snr_db: float
    design_db: float | None
    psnr: Mean
    ssim: Mean
    ms_ssim: Mean | None
    lost: tuple[float, float, float] | None = None


def short(spec: str) -> str:
    """The name of a data spec's folder, or the spec."""
    return spec.partition(":")[2].rstrip("/").rpartition("/")[2] or spec


def pictures_of(spec: str, everything: bool, n: int, height: int, width: int) -> Images:
    """At most ``n`` pictures of the validation part; with ``everything`` of all files of a folder."""
    pictures = open_pictures(spec, "valid")
    if everything and spec.startswith("folder:"):
        paths = {path for split in SPLITS for path in open_pictures(spec, split).paths}
        pictures = Pictures(spec, "all", sorted(paths), whole=True)
    return pictures.take(n, height, width, fewer=True)


def row(set_: str, contender: str, snr_db: float, scores: Scores, **more: Any) -> Row:
    scales = None if np.isnan(scores.ms_ssim).any() else metrics.mean(scores.ms_ssim)
    psnr, ssim = metrics.mean(scores.psnr), metrics.mean(scores.ssim)
    return Row(set_, contender, snr_db, more.get("design_db"), psnr, ssim, scales, more.get("lost"))


def through_bundle(
    name: str, told: bool, images: Images, symbols: int, snrs: list[float], engine: str, precision: str
) -> Iterator[tuple[float, Images]]:
    """What Bob sees at each SNR. ``told``: both ends are given it, where the model can use it."""
    can_be_told = open_bundle(name).has_scale
    for snr_db in snrs:
        known: dict[str, Any] = {"snr_db": snr_db} if told and can_be_told else {}
        frames = Transmitter(name, engine=engine, precision=precision, **known).send(images)
        on_air = np.stack([frame.symbols for frame in frames])
        if on_air.shape[1] != symbols:
            raise click.ClickException(
                f"{name} sends {on_air.shape[1]} symbols, the others {symbols}: choose another --channels"
            )
        arrived = awgn(on_air, draw_noise(len(on_air), symbols, np.random.default_rng(SEED)), snr_db)
        received = [dataclasses.replace(frame, symbols=row) for frame, row in zip(frames, arrived, strict=True)]
        yield snr_db, Receiver(name, engine=engine, precision=precision, **known).receive(received)


def training_images(spec: str, height: int, width: int) -> Images:
    return open_pictures(spec, "train").take(TRAINING_PICTURES, height, width, fewer=True)


def linear_codec(spec: str, c: int, height: int, width: int) -> EdgeCodec:
    """The linear code of the training pictures of ``spec``."""
    codec = EdgeCodec(ModelConfig(height=height, width=width, c=c, network="edge")).eval()
    blocks = space_to_depth(torch.from_numpy(training_images(spec, height, width)))
    codec.start_linear(blocks.permute(0, 2, 3, 1).flatten(0, 2).numpy())
    return codec


@torch.inference_mode()
def through_linear(codec: EdgeCodec, images: Images, snrs: list[float]) -> Iterator[tuple[float, Images]]:
    """What Bob sees at each SNR; he knows it, and every image's scale."""
    told = torch.zeros(len(images))  # which changes nothing in a linear code
    rows, scale = to_unit_power(codec.encode_rows(torch.from_numpy(images), told))
    on_air = np.ascontiguousarray(rows.numpy()).reshape(len(images), -1).view(np.complex64)
    noise = draw_noise(len(images), on_air.shape[1], np.random.default_rng(SEED))
    for snr_db in snrs:
        arrived = torch.from_numpy(awgn(on_air, noise, snr_db).view(np.float32).reshape(rows.shape))
        power = torch.full((len(images),), 10 ** (-snr_db / 10))
        yield snr_db, codec.decode_rows(arrived, torch.stack([scale, power, told], dim=1)).clamp(0, 1).numpy()


def digital_rows(set_: str, codec: str, links: list[Rival], scores: list[Scores], lost: Scores) -> Iterator[Row]:
    """Expected scores of every link at every SNR where its losses were measured."""
    for rival, got in zip(links, scores, strict=True):
        for at in rival.losses:
            p = at.frames[0]
            pairs = zip(dataclasses.astuple(lost), dataclasses.astuple(got), strict=True)
            mixed = Scores(*(p * a + (1 - p) * b for a, b in pairs))
            yield row(set_, codec, at.snr_db, mixed, design_db=rival.design_db, lost=at.frames)


def cells(rows: list[Row], set_: str, snrs: list[float]) -> list[list[str]]:
    """A line for each contender of a set: its name, and PSNR, SSIM, MS-SSIM at each SNR; a digital link at its own SNR."""
    mine = [row for row in rows if row.set == set_ and row.design_db in (None, row.snr_db)]
    lines = []
    for contender in dict.fromkeys(row.contender for row in mine):
        lines.append([contender])
        for snr_db in snrs:
            at = next(row for row in mine if row.contender == contender and row.snr_db == snr_db)
            width = "" if at.psnr.half_width is None else f" ± {at.psnr.half_width:.2f}"
            scales = "" if at.ms_ssim is None else f" {at.ms_ssim.value:.4f}"
            lines[-1].append(f"{at.psnr.value:.2f}{width}, {at.ssim.value:.3f}{scales}")
    return lines


def show(title: str, snrs: list[float], lines: list[list[str]]) -> str:
    """The same lines printed, and in Markdown."""
    shown = Table(title=title)
    for i, name in enumerate(head := ["", *(f"{snr_db:g} dB" for snr_db in snrs)]):
        shown.add_column(name, justify="right" if i else "left")
    for line in lines:
        shown.add_row(*(cell.replace(", ", "\n") if i else cell for i, cell in enumerate(line)))
    Console().print(shown)
    table_ = [head, ["---"] * len(head), *lines]
    return f"{title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in table_) + "\n"


def compare(
    set_: str, images: Images, contenders: dict[str, Any], snrs: list[float], digital: dict[str, Any] | None
) -> tuple[list[Row], dict[str, Any]]:
    """All rows of one set, and how the pictures that really were sent fared."""
    rows, sent = [], {}
    for contender, through in contenders.items():
        rows += [row(set_, contender, snr_db, score(images, answers)) for snr_db, answers in through(images)]
        click.echo(f"{set_}: {contender} done", err=True)
    if digital is not None:
        links, speed, colour = digital["links"], digital["speed"], digital["colour"]
        lost = score(images, one_colour(images, colour))
        for codec in CODECS:
            limits = [rival.payload_bytes for rival in links]
            scores = digital["encoded"](images, codec, speed, limits, colour, digital["jobs"])
            rows += digital_rows(set_, codec, links, scores, lost)
            sent[codec] = really_sent(images[: digital["sent"]], codec, speed, links, digital["symbols"])
            click.echo(f"{set_}: {codec} done, really sent: {sent[codec]}", err=True)
    return rows, sent


@click.command()
@click.option("--bundle", "bundles", multiple=True, help="a packaged bundle's name, or a folder; may be repeated")
@click.option("--data", "specs", multiple=True, default=("photos",), show_default=True, help="as of semseal; may be repeated")
@click.option("--all-files", is_flag=True, help="of folder:FOLDER take all pictures, not the validation part")
@click.option("--pictures", default=200, show_default=True, help="at most so many of each --data")
@click.option("--height", default=180, show_default=True)
@click.option("--width", default=180, show_default=True)
@click.option("--channels", default=16, show_default=True, help="c; the bandwidth ratio is c/96")
@click.option("--snr", "snrs", multiple=True, type=float, default=(0, 5, 10, 15, 20, 25), show_default=True)
@click.option(
    "--linear", "linear", multiple=True, default=("photos",), show_default=True, help="training pictures of a linear code"
)
@click.option("--untold", is_flag=True, help="bundles that can be told the SNR once more without")
@click.option("--engine", default="onnxruntime-cpu", show_default=True)
@click.option("--precision", default="fp32", show_default=True)
@click.option("--digital/--no-digital", default=True, show_default=True)
@click.option("--avif-speed", default=6, show_default=True, help="0 (slow, best) to 10; 6 is pillow's own")
@click.option(
    "--sent", default=4, show_default=True, help="pictures of each --data that are really sent over each digital link"
)
@click.option("--blocks", default=512, show_default=True, help="LDPC blocks decoded to choose a digital link")
@click.option("--jobs", default=1, show_default=True, help="processes that encode pictures")
@click.option("--cache", type=click.Path(file_okay=False), help="keep what digital links and codecs gave, for the next run")
@click.option("--latency", "timed", is_flag=True, help="time both sides of the bundles, one image, one thread")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="for quality.json, quality.md, curves"
)
def main(
    bundles: tuple[str, ...], specs: tuple[str, ...], snrs: tuple[float, ...], linear: tuple[str, ...], **chosen: Any
) -> None:
    torch.set_num_threads(1)
    height, width, c, levels = chosen["height"], chosen["width"], chosen["channels"], sorted(set(snrs))
    symbols = height // 4 * (width // 4) * c // 2
    try:
        contenders = _contenders(bundles, linear, symbols, levels, chosen)
        digital = _digital(symbols, levels, linear[0] if linear else "photos", chosen) if chosen["digital"] else None
        out: Path = chosen["out"]
        out.mkdir(parents=True, exist_ok=True)
        rows: list[Row] = []
        tables = ""
        sets: dict[str, Any] = {}
        for spec in specs:
            pictures = pictures_of(spec, chosen["all_files"], chosen["pictures"], height, width)
            name = short(spec)
            found, sent = compare(name, pictures, contenders, levels, digital)
            rows += found
            sets[name] = {"pictures": len(pictures), "really sent": sent}
            title = f"{name}: {len(pictures)} pictures; PSNR in dB ± half of the 95 % interval, SSIM, MS-SSIM"
            tables += show(title, levels, cells(found, name, levels))
            draw([dataclasses.asdict(row) for row in found], name, len(pictures), c / 96, out / f"quality-{name}.png")
        costs = {Path(name).name: arithmetic(name, height, width) for name in bundles}
        if chosen["timed"]:
            for name, figures in latency(bundles, pictures[:1]).items():
                costs[Path(name).name]["latency"] = figures
    except SemsealError as error:
        raise click.ClickException(str(error)) from None
    kept = {key: value for key, value in chosen.items() if key not in ("out", "cache", "jobs")}
    result = {
        "environment": dataclasses.asdict(environment(PACKAGES)),
        "seed": SEED,
        "symbols": symbols,
        "bandwidth_ratio": c / 96,
        "asked": {**kept, "snr": levels, "contenders": list(contenders)},
        "sets": sets,
        "digital links": None if digital is None else [dataclasses.asdict(rival) for rival in digital["links"]],
        "cost": costs,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    write_atomically(out / "quality.json", (json.dumps(result, indent=1) + "\n").encode())
    write_atomically(out / "quality.md", tables.encode())
    Console().print_json(data=costs)


def _contenders(
    bundles: tuple[str, ...], linear: tuple[str, ...], symbols: int, snrs: list[float], chosen: Any
) -> dict[str, Any]:
    """Functions from images to what Bob sees at each SNR, by name."""
    asked = {"symbols": symbols, "snrs": snrs, "engine": chosen["engine"], "precision": chosen["precision"]}
    found: dict[str, Any] = {}
    for name in bundles:
        found[Path(name).name] = partial(through_bundle, name, True, **asked)
        if chosen["untold"] and open_bundle(name).has_scale:
            found[f"{Path(name).name}, not told the SNR"] = partial(through_bundle, name, False, **asked)
    for spec in linear:
        codec = linear_codec(spec, chosen["channels"], chosen["height"], chosen["width"])
        found[f"linear ({short(spec)})"] = partial(through_linear, codec, snrs=snrs)
    return found


def _digital(symbols: int, snrs: list[float], spec: str, chosen: Any) -> dict[str, Any]:
    """The digital links, and what else ``compare`` needs for them."""
    memory = Memory(chosen["cache"], verbose=0)
    colour = training_images(spec, chosen["height"], chosen["width"]).mean(axis=(0, 2, 3)).tolist()
    return {
        "links": rivals(symbols, snrs, chosen["blocks"], memory.cache(losses)),
        "encoded": memory.cache(encoded, ignore=["jobs"]),
        "symbols": symbols,
        "colour": colour,
        "speed": chosen["avif_speed"],
        "jobs": chosen["jobs"],
        "sent": chosen["sent"],
    }


if __name__ == "__main__":
    main()
