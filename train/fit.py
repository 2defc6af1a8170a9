"""The training loop: pictures -> run folder (config.json, weights.safetensors, log.jsonl).

Everything random is drawn from (seed, step, device), so weights, optimiser and step are the whole state of a run:
``resume`` continues with the losses that an uninterrupted run would have had.
"""

import copy
import dataclasses
import io
import json
import math
import os
import pickle
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from semseal.runtime.errors import TrainingError
from semseal.runtime.files import write_atomically
from semseal.runtime.pictures import Pictures, open_pictures
from semseal.train import channel
from semseal.train.config import ModelConfig, TrainConfig
from semseal.train.data import Crops, ahead, decode, forget, to_images
from semseal.train.edge import EdgeCodec, space_to_depth
from semseal.train.loss import log_loss, psnr, reconstruction_loss
from semseal.train.model import DeepJSCC
from torch import Tensor

Link = DeepJSCC | EdgeCodec

LOG_EVERY = 10
VALID_PICTURES = 32
WEIGHTS, LOG = "weights.safetensors", "log.jsonl"
CHECKPOINT = "resume.ckpt"  # there until the run is finished


def train(
    config: TrainConfig, data: str, out: Path, *, resume: bool = False, init: Path | None = None, devices: int = 1
) -> None:
    """Train into the run folder ``out``; ``init`` is a run whose weights are the start (with another c, those that fit).

    With ``torchrun`` or ``devices`` above 1 every process takes its share of ``config.batch``. An interrupted run goes on
    from its last checkpoint. Raises TrainingError for a folder that holds a run already (without ``resume``), for a resumed
    run whose settings, pictures or devices differ, and when loss or gradient is not finite: the last checkpoint is then
    still good.
    """
    torch.set_float32_matmul_precision("high")
    fabric = _launch(config, devices)
    # everything that can be wrong is found before the run folder is made
    pictures, valid = open_pictures(data, "train"), _valid_pictures(data, config)
    config = dataclasses.replace(config, data=pictures.identity(), init=init.name if init else "", devices=fabric.world_size)
    checkpoint = out / CHECKPOINT
    start = _open_run(config, out, checkpoint, resume, init, fabric)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[shown]}"))
    with (
        Progress(*columns, TimeRemainingColumn(), disable=fabric.global_rank > 0, speed_estimate_period=120) as progress,
        open(out / LOG, "a" if fabric.global_rank == 0 else "r") as log,
        _Interrupted() as interrupted,
    ):
        crops = _decoded(pictures, config, out, fabric, progress)
        model, fresh = _first_model(config, None if start else init, None if start or init else crops)
        averaged = None if config.ema == 0 else copy.deepcopy(model).to(fabric.device)
        trained = [weights for weights in model.parameters() if weights.requires_grad]
        link, optimizer = fabric.setup(model, torch.optim.Adam(trained, lr=config.lr))
        if start:
            state = _read_checkpoint(checkpoint, fabric.device)
            _load_weights(model, state["model"], checkpoint)
            optimizer.load_state_dict(state["optimizer"])
            if averaged is not None:
                _load_weights(averaged, state["averaged"], checkpoint)
        for line in _first_lines(config, start, resume, init, fresh):
            progress.console.print(line)
        bar = progress.add_task("train", total=config.steps, completed=start, shown="")
        waited = begun = time.perf_counter()
        idle = 0.0
        for step, batch in enumerate(ahead(crops, start, config.steps), start + 1):
            idle += time.perf_counter() - waited
            loss, mse, gradient, stop = _step(link, optimizer, fabric, config, batch, step - 1, pictures.whole, interrupted.set)
            _check_finite(loss, gradient, step, config, out)
            if averaged is not None:
                _average(averaged, model, min(config.ema, step / (step + 10)))
            last = step == config.steps
            if step % LOG_EVERY == 0 or last:
                speed = (progress.tasks[-1].speed or 0) * config.batch
                share = idle / (time.perf_counter() - begun)
                shown = f"PSNR {-10 * math.log10(mse):.2f} dB  {speed:.0f} pictures/s, {share:.0%} waiting for data"
                progress.update(bar, completed=step, shown=shown)
                row: dict[str, Any] = {"step": step, "loss": loss, "mse": mse}
                if step % config.save_every == 0 or last:
                    row["valid_psnr"] = _validate(averaged or model, config, valid.to(fabric.device))
                if fabric.global_rank == 0:
                    log.write(json.dumps(row) + "\n")
                    log.flush()
            if step % config.save_every == 0 or last or stop:
                _save(out, checkpoint, model, averaged, optimizer, step, last, fabric)
            if stop and not last:
                raise KeyboardInterrupt
            waited = time.perf_counter()
    if fabric.global_rank == 0:
        forget(out)


def resized(model: Link, height: int, width: int) -> Link:
    """The same weights for pictures of another size. Raises TrainingError for one that is no multiple of 4."""
    try:
        config = dataclasses.replace(model.config, height=height, width=width)
    except ValueError as error:
        raise TrainingError(str(error), "choose another --size") from None
    other = build(config)
    other.load_state_dict(model.state_dict())
    return other.eval()


def load_run(run: Path) -> Link:
    """The trained model of a run folder, float32 on the CPU, in evaluation mode.

    Raises as TrainConfig.read, and TrainingError for a run that is not finished.
    """
    if (run / CHECKPOINT).exists():
        raise TrainingError(
            f"{run} is not finished", f"continue it: semseal train --out {run} --resume, with the options it was started with"
        )
    model = build(TrainConfig.read(run).model)
    _load_weights(model, _weights_of(run), run / WEIGHTS)
    return model.eval()


def last_row(run: Path) -> dict[str, Any]:
    """The last row of a run's log. Raises TrainingError for a log that is empty or damaged."""
    rows = _read_log(run)
    if not rows:
        raise TrainingError(f"{run / LOG} is empty", "restore it, or train again")
    return rows[-1]


def _launch(config: TrainConfig, devices: int) -> Fabric:
    """The processes and devices that share the batch. Raises TrainingError where they cannot be had."""
    world = int(os.environ.get("LOCAL_WORLD_SIZE", devices))
    try:
        fabric = Fabric(accelerator="auto", devices=world, strategy="ddp" if world > 1 else "auto")
    except (MisconfigurationException, TypeError) as error:
        raise TrainingError(f"{world} devices cannot be had here: {error}", "choose another number of --devices") from None
    fabric.launch()
    if config.batch % fabric.world_size:
        raise TrainingError(
            f"batch {config.batch} cannot be split over {fabric.world_size} devices",
            f"choose a --batch that is a multiple of {fabric.world_size}",
        )
    return fabric


def build(config: ModelConfig) -> Link:
    """The untrained network of a configuration."""
    return DeepJSCC(config) if config.network == "paper" else EdgeCodec(config)


def _decoded(pictures: Pictures, config: TrainConfig, out: Path, fabric: Fabric, progress: Progress) -> Crops:
    """The crops to train on, decoded by the first process."""
    size = (config.crop, config.crop) if config.crop else (config.model.height, config.model.width)
    if fabric.global_rank == 0:
        bar = progress.add_task("decode", total=None, shown="pictures")
        whole = (config.model.height, config.model.width) if pictures.whole else size
        skipped = decode(pictures, *whole, out, lambda done, of: progress.update(bar, completed=done, total=of))
        progress.remove_task(bar)
        for name, reason in skipped.items():
            progress.console.print(f"skipped {name}: {reason} ({len(skipped)} of {len(pictures.paths)})")
    fabric.barrier()
    return Crops(out, config.batch // fabric.world_size, *size, config.seed, fabric.global_rank)


def _first_model(config: TrainConfig, init: Path | None, crops: Crops | None) -> tuple[Link, list[str]]:
    """The model at step 0, and the weights that do not come from ``init`` although the others do, by name."""
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global generator only
        torch.manual_seed(config.seed)
        model = build(config.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fresh: list[str] = []
    if init is not None:
        initial, weights = model.state_dict(), _weights_of(init)
        fresh = [name for name in initial if name not in weights or weights[name].shape != initial[name].shape]
        kept = {name: weights[name] for name in weights if name in initial}
        _load_weights(model, {**kept, **{name: initial[name] for name in fresh}}, init / WEIGHTS)
    elif isinstance(model, EdgeCodec) and crops is not None:
        model.start_linear(_blocks(crops, config.seed))
    if config.freeze_transmitter:
        assert isinstance(model, EdgeCodec)
        model.encoder.requires_grad_(False)
        model.gains.requires_grad_(False)
    return model, fresh


def _blocks(crops: Crops, seed: int) -> NDArray[np.float64]:
    """Blocks of 4x4 pixels [n, 48] in 0..1, from 64 batches of crops."""
    rng = np.random.default_rng([seed, 1 << 32])  # not a step's
    images = torch.from_numpy(np.concatenate([crops.draw(rng) for _ in range(64)]))
    depth = space_to_depth(images.permute(0, 3, 1, 2))
    blocks: NDArray[np.float64] = depth.permute(0, 2, 3, 1).flatten(0, 2).numpy() / 255.0
    return blocks


def _first_lines(config: TrainConfig, start: int, resume: bool, init: Path | None, fresh: list[str]) -> list[str]:
    """What is printed before the first step."""
    lines = []
    if start:
        lines.append(f"resuming at step {start}")
    elif resume:
        lines.append(f"no checkpoint yet (the first is at step {config.save_every}): starting again")
    if fresh:
        lines.append(f"with new weights, because c differs from that of {init}: {', '.join(fresh)}")
    return lines


def _check_finite(loss: float, gradient: float, step: int, config: TrainConfig, out: Path) -> None:
    if not (math.isfinite(loss) and math.isfinite(gradient)):
        raise TrainingError(
            f"the loss is {loss} and the gradient's norm {gradient} at step {step}",
            f"use a smaller --lr than {config.lr:g}; {out} keeps the last good checkpoint, if one was reached",
        )


def _step(
    link: Any, optimizer: Any, fabric: Fabric, config: TrainConfig, batch: NDArray[np.uint8], step: int, whole: bool, stop: bool
) -> tuple[float, float, float, bool]:
    """One update.

    Returns the loss and mean square error over all devices, the gradient's norm before clipping, and whether any wants to stop.
    Where loss or gradient is not finite, the weights are left as they were.
    """
    for group in optimizer.param_groups:
        group["lr"] = config.lr * _schedule(step, config)
    generator = torch.Generator(fabric.device).manual_seed(_mix_seed(config.seed, step, fabric.global_rank))
    x = to_images(torch.from_numpy(batch).to(fabric.device), config.model.network == "edge" and not whole, generator)
    # not by Fabric's precision, which rounds the images to bf16 too
    with torch.autocast(fabric.device.type, torch.bfloat16, enabled=config.precision == "bf16-mixed"):
        if config.model.network == "edge":
            x_hat = link(x, *_draw_channel(x, config, generator))
        else:
            x_hat = link(x, lambda symbols: transmit(symbols, config, generator))
    if config.model.network == "edge":
        loss, mse = log_loss(x, x_hat.float())
    else:
        loss, mse = reconstruction_loss(x, x_hat.float(), config.lam, config.beta)
    optimizer.zero_grad()
    fabric.backward(loss)
    norm = fabric.clip_gradients(link, optimizer, max_norm=config.clip, error_if_nonfinite=False)
    assert norm is not None
    told = torch.tensor(float(stop), device=fabric.device)
    means = fabric.all_reduce(torch.stack([loss.detach(), mse.detach(), told]), reduce_op="mean")
    result = float(means[0]), float(means[1]), float(norm), float(means[2]) > 0
    if math.isfinite(result[0]) and math.isfinite(result[2]):
        optimizer.step()
    return result


def _draw_channel(x: Tensor, config: TrainConfig, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """What the edge network is told of the SNR, the noise power, and the noise; all random from the generator.

    Two dB more than the span on either side. One image in five is sent at another SNR than it was told.
    """
    span = config.snr_span_db + 2
    draws = torch.rand(3, len(x), generator=generator, device=generator.device)
    snr_db = config.snr_db + (2 * draws[0] - 1) * span
    told = torch.where(draws[2] < 0.2, config.snr_db + (2 * draws[1] - 1) * span, snr_db)
    h, w = x.shape[2] // 4, x.shape[3] // 4
    noise = torch.randn(len(x), h, w * config.model.c, generator=generator, device=generator.device)
    return told, 10 ** (-snr_db / 10), noise


def transmit(symbols: Tensor, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """The run's channel and equaliser on the paper network's symbols [batch, N, 2]; everything random from the generator."""
    batch, n = symbols.shape[:2]
    noise = channel.draw_noise(batch, n, generator)
    if config.channel == "awgn":
        return channel.awgn(symbols, noise, config.snr_db)
    taps = channel.draw_taps(batch, 1 if config.channel == "rayleigh" else config.taps, generator)
    return channel.fading(symbols, taps, noise, config.snr_db)


@torch.no_grad()
def _average(averaged: Link, model: Link, decay: float) -> None:
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)


def _schedule(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a half cosine down to zero at the last step; the factor of lr."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(config.steps - config.warmup, 1)))


def _mix_seed(*parts: int) -> int:
    """One generator seed of several small integers, by a multiplicative hash; torch's CPU generator uses its low 32 bits."""
    value = 0
    for part in parts:
        value = ((value ^ part) * 0x9E3779B97F4A7C15 + 1) % 2**63
    return value


@torch.no_grad()
def _validate(model: Link, config: TrainConfig, x: Tensor) -> dict[str, float]:
    """Mean PSNR in dB on held-out pictures by SNR, in float32, always with the same noise."""
    span = config.snr_span_db
    measured = {}
    for snr_db in [config.snr_db - span, config.snr_db, config.snr_db + span] if span else [config.snr_db]:
        generator = torch.Generator(x.device).manual_seed(config.seed)
        if isinstance(model, EdgeCodec):
            told = torch.full((len(x),), snr_db, device=x.device)
            noise = torch.randn(len(x), config.model.h, config.model.w * config.model.c, generator=generator, device=x.device)
            x_hat = model(x, told, 10 ** (-told / 10), noise).clamp(0, 1)
        else:
            x_hat = model.decode(transmit(model.encode(x), config, generator))
        measured[f"{snr_db:g}"] = float(psnr((x_hat - x).square().mean(dim=(1, 2, 3))).mean())
    return measured


def _valid_pictures(data: str, config: TrainConfig) -> Tensor:
    pictures = open_pictures(data, "valid")
    return torch.from_numpy(pictures.take(VALID_PICTURES, config.model.height, config.model.width, fewer=True))


def _open_run(config: TrainConfig, out: Path, checkpoint: Path, resume: bool, init: Path | None, fabric: Fabric) -> int:
    """Make the run folder, or find the step to continue from and cut the log there."""
    start = 0
    if (out / "config.json").exists():
        if not resume:
            raise TrainingError(f"{out} holds a run already", "continue it with --resume, or choose another --out")
        found, wanted = dataclasses.asdict(TrainConfig.read(out)), dataclasses.asdict(config)
        differing = [f"{name} was {found[name]}, now {wanted[name]}" for name in wanted if found[name] != wanted[name]]
        if differing:
            raise TrainingError(
                f"{out} was started with other settings: {'; '.join(differing)}",
                "resume with the settings it was started with, or choose another --out",
            )
        if not checkpoint.exists() and (out / WEIGHTS).exists():
            raise TrainingError(f"{out} is complete: nothing to resume", f"export it: semseal export {out} --out BUNDLE")
        if checkpoint.exists():
            start = int(_read_checkpoint(checkpoint, torch.device("cpu"))["step"])
    elif resume:
        raise TrainingError(f"{out} holds no run to resume", "leave out --resume to start one")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out} is neither an empty folder nor a run", "choose another --out")
    if init is not None and not start:
        _weights_of(init)  # raises before anything is written
    fabric.barrier()
    if fabric.global_rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        kept = ""
        if start:
            kept = "".join(json.dumps(row) + "\n" for row in _read_log(out) if row["step"] <= start)
        write_atomically(out / LOG, kept.encode())
        write_atomically(out / "config.json", config.to_json().encode())
    fabric.barrier()
    return start


def _save(
    out: Path, checkpoint: Path, model: Link, averaged: Link | None, optimizer: Any, step: int, last: bool, fabric: Fabric
) -> None:
    if fabric.global_rank == 0:
        weights = _on_cpu(model)
        result = weights if averaged is None else _on_cpu(averaged)
        if not last:  # before the weights: weights without a checkpoint are those of a finished run
            buffer = io.BytesIO()
            state = {"model": weights, "averaged": result, "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, buffer)
            write_atomically(checkpoint, buffer.getvalue())
        write_atomically(out / WEIGHTS, save(result))
        if last:
            checkpoint.unlink(missing_ok=True)
    fabric.barrier()


def _on_cpu(model: Link) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


class _Interrupted:
    """Whether SIGINT came: the step goes on to its end, and a checkpoint is written. A second one interrupts at once."""

    def __init__(self) -> None:
        self.set = False

    def __enter__(self) -> "_Interrupted":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: Any) -> None:
        if self.set:
            raise KeyboardInterrupt
        self.set = True


def _read_log(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's log, each with its step. Raises TrainingError."""
    rows = []
    for number, line in enumerate((run / LOG).read_text(errors="replace").splitlines(), 1):
        try:
            row = json.loads(line)
            rows.append({**row, "step": int(row["step"])})
        except (LookupError, TypeError, ValueError):
            raise TrainingError(
                f"{run / LOG}:{number} is damaged", "remove that line if it is the last, or train again"
            ) from None
    return rows


def _weights_of(run: Path) -> dict[str, Tensor]:
    TrainConfig.read(run)  # raises when it is no run
    path = run / WEIGHTS
    if not path.is_file():
        raise TrainingError(
            f"{path} not found: the run has reached no checkpoint yet",
            f"continue it: semseal train --out {run} --resume, with the options it was started with",
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise TrainingError(f"{path} is damaged ({error})", "restore it, or train again") from None


def _read_checkpoint(checkpoint: Path, device: torch.device) -> dict[str, Any]:
    """``model``, ``averaged``, ``optimizer`` and ``step``. Raises TrainingError."""
    try:
        state: dict[str, Any] = torch.load(checkpoint, map_location=device, weights_only=True)
        return {name: state[name] for name in ("model", "averaged", "optimizer", "step")}
    except (RuntimeError, EOFError, LookupError, ValueError, TypeError, pickle.UnpicklingError) as error:  # as torch pleases
        raise TrainingError(
            f"{checkpoint} is damaged ({type(error).__name__})",
            f"restore it, or start a run from the last weights: --init {checkpoint.parent} and another --out",
        ) from None


def _load_weights(model: Link, weights: dict[str, Tensor], path: Path) -> None:
    """Raises TrainingError, with the file that they are from, for weights that are not those of the model."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise TrainingError(
            f"{path} does not fit the model: {' '.join(str(error).split())}",
            "take the run as the same version of semseal wrote it, or train again",
        ) from None
