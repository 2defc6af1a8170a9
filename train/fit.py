"""The training loop: pictures -> run folder (config.json, weights.safetensors, log.jsonl).

Everything random is drawn from (seed, step, device), so weights, optimiser and step are the whole state of a run:
``resume`` continues with the losses that an uninterrupted run would have had.
"""

import dataclasses
import io
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from semseal.runtime.errors import TrainingError
from semseal.runtime.files import write_atomically
from semseal.runtime.pictures import open_pictures
from semseal.train import channel
from semseal.train.config import TrainConfig
from semseal.train.data import StepBatches, step_loader
from semseal.train.loss import psnr, reconstruction_loss
from semseal.train.model import DeepJSCC
from torch import Tensor

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
    model, fresh = _first_model(config, None if start else init)
    link, optimizer = fabric.setup(model, torch.optim.Adam(model.parameters(), lr=config.lr))
    if start:
        state = _read_checkpoint(checkpoint, fabric.device)
        _load_weights(model, state["model"], checkpoint)
        optimizer.load_state_dict(state["optimizer"])

    share = config.batch // fabric.world_size
    batches = StepBatches(pictures, share, config.model.height, config.model.width, config.seed, fabric.global_rank)
    skipped: dict[str, str] = {}
    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[shown]}"), TimeRemainingColumn())
    with (
        Progress(*columns, disable=fabric.global_rank > 0, speed_estimate_period=120) as progress,
        open(out / LOG, "a" if fabric.global_rank == 0 else "r") as log,
    ):
        for line in _first_lines(config, start, resume, init, fresh):
            progress.console.print(line)
        bar = progress.add_task("train", total=config.steps, completed=start, shown="")
        for step, (x, bad) in enumerate(step_loader(batches, start, config.steps, workers=1), start + 1):
            for name in bad.keys() - skipped.keys():
                progress.console.print(f"skipped {name}: {bad[name]} ({len(bad)} of {len(pictures.paths)} so far)")
            skipped |= bad
            loss, mse, gradient = _step(link, optimizer, fabric, config, x, step - 1)
            _check_finite(loss, gradient, step, config, out)
            last = step == config.steps
            if step % LOG_EVERY == 0 or last:
                speed = (progress.tasks[bar].speed or 0) * config.batch
                shown = f"loss {loss:.5f}  PSNR {-10 * math.log10(mse):.2f} dB  {speed:.0f} pictures/s"
                progress.update(bar, completed=step, shown=shown)
                row: dict[str, Any] = {"step": step, "loss": loss, "mse": mse}
                if step % config.save_every == 0 or last:
                    row["valid_psnr"] = _validate(model, config, valid.to(fabric.device))
                if fabric.global_rank == 0:
                    log.write(json.dumps(row) + "\n")
                    log.flush()
            if step % config.save_every == 0 or last:
                _save(out, checkpoint, model, optimizer, step, last, fabric)


def load_run(run: Path) -> DeepJSCC:
    """The trained model of a run folder, float32 on the CPU, in evaluation mode.

    Raises as TrainConfig.read, and TrainingError for a run that is not finished.
    """
    if (run / CHECKPOINT).exists():
        raise TrainingError(
            f"{run} is not finished", f"continue it: semseal train --out {run} --resume, with the options it was started with"
        )
    model = DeepJSCC(TrainConfig.read(run).model)
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
        fabric = Fabric(
            accelerator="auto",
            devices=world,
            strategy="ddp" if world > 1 else "auto",
            precision=config.precision,  # type: ignore[arg-type]
        )
    except (MisconfigurationException, TypeError) as error:
        raise TrainingError(f"{world} devices cannot be had here: {error}", "choose another number of --devices") from None
    fabric.launch()
    if config.batch % fabric.world_size:
        raise TrainingError(
            f"batch {config.batch} cannot be split over {fabric.world_size} devices",
            f"choose a --batch that is a multiple of {fabric.world_size}",
        )
    return fabric


def _first_model(config: TrainConfig, init: Path | None) -> tuple[DeepJSCC, list[str]]:
    """The model at step 0, and the weights that do not come from ``init`` although the others do, by name."""
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global generator only
        torch.manual_seed(config.seed)
        model = DeepJSCC(config.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if init is None:
        return model, []
    initial, weights = model.state_dict(), _weights_of(init)
    fresh = [name for name in initial if name in weights and weights[name].shape != initial[name].shape]
    _load_weights(model, {**weights, **{name: initial[name] for name in fresh}}, init / WEIGHTS)
    return model, fresh


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


def _step(link: Any, optimizer: Any, fabric: Fabric, config: TrainConfig, x: Tensor, step: int) -> tuple[float, float, float]:
    """One update; the loss and mean square error over all devices, and the gradient's norm before clipping.

    Where loss or gradient is not finite, the weights are left as they were.
    """
    for group in optimizer.param_groups:
        group["lr"] = config.lr * _schedule(step, config)
    generator = torch.Generator().manual_seed(_mix_seed(config.seed, step, fabric.global_rank))
    x = x.to(fabric.device, memory_format=torch.channels_last)
    x_hat = link(x, lambda symbols: transmit(symbols, config, generator))
    loss, mse = reconstruction_loss(x, x_hat.float(), config.lam, config.beta)
    optimizer.zero_grad()
    fabric.backward(loss)
    norm = fabric.clip_gradients(link, optimizer, max_norm=config.clip, error_if_nonfinite=False)
    assert norm is not None
    both = fabric.all_reduce(torch.stack([loss.detach(), mse.detach()]), reduce_op="mean")
    result = float(both[0]), float(both[1]), float(norm)
    if math.isfinite(result[0]) and math.isfinite(result[2]):
        optimizer.step()
    return result


def transmit(symbols: Tensor, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """The run's channel and equaliser on symbols [batch, N, 2]; everything random from the generator."""
    batch, n = symbols.shape[:2]
    noise = channel.draw_noise(batch, n, generator).to(symbols.device)
    if config.channel == "awgn":
        return channel.awgn(symbols, noise, config.snr_db)
    taps = channel.draw_taps(batch, 1 if config.channel == "rayleigh" else config.taps, generator).to(symbols.device)
    return channel.fading(symbols, taps, noise, config.snr_db)


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
def _validate(model: DeepJSCC, config: TrainConfig, x: Tensor) -> float:
    """Mean PSNR in dB on held-out pictures, in float32, always with the same noise."""
    received = transmit(model.encode(x), config, torch.Generator().manual_seed(config.seed))
    return float(psnr((model.decode(received) - x).square().mean(dim=(1, 2, 3))).mean())


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


def _save(out: Path, checkpoint: Path, model: DeepJSCC, optimizer: Any, step: int, last: bool, fabric: Fabric) -> None:
    if fabric.global_rank == 0:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        if not last:  # before the weights: weights without a checkpoint are those of a finished run
            state = io.BytesIO()
            torch.save({"model": weights, "optimizer": optimizer.state_dict(), "step": step}, state)
            write_atomically(checkpoint, state.getvalue())
        write_atomically(out / WEIGHTS, save(weights))
        if last:
            checkpoint.unlink(missing_ok=True)
    fabric.barrier()


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
    """``model``, ``optimizer`` and ``step``. Raises TrainingError."""
    try:
        state: dict[str, Any] = torch.load(checkpoint, map_location=device, weights_only=True)
        return {name: state[name] for name in ("model", "optimizer", "step")}
    except (RuntimeError, EOFError, LookupError, ValueError, TypeError, pickle.UnpicklingError) as error:  # as torch pleases
        raise TrainingError(
            f"{checkpoint} is damaged ({type(error).__name__})",
            f"restore it, or start a run from the last weights: --init {checkpoint.parent} and another --out",
        ) from None


def _load_weights(model: DeepJSCC, weights: dict[str, Tensor], path: Path) -> None:
    """Raises TrainingError, with the file that they are from, for weights that are not those of the model."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise TrainingError(
            f"{path} does not fit the model: {' '.join(str(error).split())}",
            "take the run as the same version of semseal wrote it, or train again",
        ) from None
