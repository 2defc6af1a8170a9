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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from semseal.runtime import radio
from semseal.runtime.errors import TrainingError
from semseal.runtime.files import append, check_room, shown, word, write_atomically
from semseal.runtime.ofdm import Radio
from semseal.runtime.pictures import Pictures, open_pictures
from semseal.runtime.progress import told
from semseal.train.config import TrainConfig
from semseal.train.data import Crops, ahead, decode, forget
from semseal.train.edge import EdgeCodec, space_to_depth
from semseal.train.model import DeepJSCC
from semseal.train.step import Link, average, build, update, validate
from torch import Tensor

LOG_EVERY = 10  # steps
VALID_PICTURES = 32
USUAL_PICTURES = 40  # to train on: with fewer, a network learns these and serves no others
START_CROPS = 1024  # of the linear code that the edge network starts at, if they are as small as
START_SIDE = 96
PROCESSES_OF_A_CORE = 4  # more of them only wait for each other
WEIGHTS, LOG = "weights.safetensors", "log.jsonl"
CHECKPOINT = "resume.ckpt"  # there until the run is finished


@dataclass
class _Training:
    """What one process trains, and the average of its weights where the run is left with that."""

    config: TrainConfig
    fabric: Fabric
    model: Link
    averaged: Link | None
    link: Any  # the model as Fabric runs it
    optimizer: Any

    @property
    def result(self) -> Link:
        return self.model if self.averaged is None else self.averaged


def train(
    config: TrainConfig, data: str, out: Path, *, resume: bool = False, init: Path | None = None, devices: int = 1
) -> None:
    """Train into the run folder ``out``; ``init`` is a run of the same network whose weights are the start, those that fit.

    With ``torchrun`` or ``devices`` above 1 every process takes its share of ``config.batch``. An interrupted run goes on
    from its last checkpoint; SIGINT writes one at the end of the step and raises KeyboardInterrupt, which then says so.
    Raises TrainingError for a folder that holds a run already (without ``resume``), for a resumed run whose settings, pictures
    or devices differ, for an ``init`` that does not fit, and when loss or gradient is not finite: the last checkpoint is then
    still good.
    """
    torch.set_float32_matmul_precision("high")
    fabric = _launch(config, devices)
    # everything that can be wrong is found before the run folder is made
    if config.channel in radio.CHANNELS:
        radio.check(config.channel, Radio())
    pictures, (valid, remarks) = open_pictures(data, "train"), _valid_pictures(data, config)
    known = pictures.remarks(len(pictures.paths), 0 if data == "photos" else USUAL_PICTURES, "training")
    remarks = [line for line in remarks if line not in known] + known[len(pictures.skipped) :]  # decoding says what it skips
    name = init.resolve().name if init else ""
    config = dataclasses.replace(config, data=pictures.identity(), init=name, devices=fabric.world_size)
    start = _open_run(config, out, resume, init, fabric)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[shown]}"))
    with (
        _or_none(out, fabric, remove=not resume),
        Progress(*columns, TimeRemainingColumn(), disable=fabric.global_rank > 0, speed_estimate_period=120) as progress,
        told(progress),
    ):
        crops = _decoded(pictures, config, out, fabric, progress)
        if start:
            lines = [f"resuming at step {start}"]
        else:
            lines = [f"no checkpoint yet (the first is at step {config.save_every}): starting again"] if resume else []
        training = _begin(config, out, start, init, crops, fabric, lines)
        _check_room(training, out)
        for line in lines + remarks:
            progress.console.print(shown(line), markup=False, soft_wrap=True)
        turn = config.model.network == "edge" and not pictures.whole
        _loop(training, crops, valid.to(fabric.device), turn, start, out, progress)
    if fabric.global_rank == 0:
        progress.console.print(
            shown(f"{out} is complete; next: semseal export {word(out)} --out BUNDLE"), markup=False, soft_wrap=True
        )


def _begin(
    config: TrainConfig, out: Path, start: int, init: Path | None, crops: Crops, fabric: Fabric, lines: list[str]
) -> _Training:
    """The model and its optimiser as they are before step ``start``; ``lines`` grows by what there is to say of it."""
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global generator only
        torch.manual_seed(config.seed)
        model = build(config.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not start:
        lines += _first_weights(model, config, init, crops)
    if config.freeze_transmitter:
        assert isinstance(model, EdgeCodec)
        model.encoder.requires_grad_(False)
        model.gains.requires_grad_(False)
    averaged = None if config.ema == 0 else copy.deepcopy(model).to(fabric.device)
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    link, optimizer = fabric.setup(model, torch.optim.Adam(trained, lr=config.lr))
    if start:
        checkpoint = out / CHECKPOINT
        state = _read_checkpoint(checkpoint, fabric.device)
        _load_weights(model, state["model"], checkpoint)
        optimizer.load_state_dict(state["optimizer"])
        if averaged is not None:
            _load_weights(averaged, state["averaged"], checkpoint)
    return _Training(config, fabric, model, averaged, link, optimizer)


def _loop(training: _Training, crops: Crops, valid: Tensor, turn: bool, start: int, out: Path, progress: Progress) -> None:
    """Every step after ``start``, with its lines in the log and its checkpoints."""
    config, fabric = training.config, training.fabric
    bar = progress.add_task("train", total=config.steps, completed=start, shown="", counted=True)
    batches = ahead(crops, start, config.steps)
    begun, idle = time.perf_counter(), 0.0
    with _Interrupted() as interrupted:
        for step in range(start + 1, config.steps + 1):
            before = time.perf_counter()
            batch = next(batches)
            idle += time.perf_counter() - before
            loss, mse, gradient, stop = update(
                training.link, training.optimizer, fabric, config, batch, step - 1, turn, interrupted.set
            )
            _check_finite(loss, gradient, step, config, out)
            if training.averaged is not None:
                average(training.averaged, training.model, min(config.ema, step / (step + 10)))
            last = step == config.steps
            planned = step % config.save_every == 0 or last
            progress.update(
                bar, completed=step, shown=_shown(mse, step - start, config.batch, time.perf_counter() - begun, idle)
            )
            if step % LOG_EVERY == 0 or planned:
                row: dict[str, Any] = {"step": step, "loss": loss, "mse": mse}
                if planned:
                    row["valid_psnr"] = validate(training.result, config, valid)
                if fabric.global_rank == 0:
                    append(out / LOG, f"{json.dumps(row)}\n".encode())
            if planned or stop:
                _save(training, out, step)
            if stop and not last:
                raise KeyboardInterrupt(f"the checkpoint of step {step} is written")


def _shown(mse: float, steps: int, batch: int, seconds: float, idle_s: float) -> str:
    """How good the last batch was, and how fast all steps of this run were, from the first on."""
    psnr, waiting = -10 * math.log10(max(mse, 1e-12)), idle_s / seconds
    return f"PSNR {psnr:.2f} dB  {steps * batch / seconds:.3g} pictures/s, {waiting:.0%} waiting for data"


@contextmanager
def _or_none(out: Path, fabric: Fabric, remove: bool) -> Iterator[None]:
    """A run folder that was made here goes again when training fails before there is a checkpoint to go on from.

    Not when it is interrupted: --resume then starts it again.
    """
    try:
        yield
    except Exception:
        if remove and fabric.global_rank == 0 and not (out / CHECKPOINT).exists() and not (out / WEIGHTS).exists():
            forget(out)
            for name in (LOG, "config.json"):
                (out / name).unlink(missing_ok=True)
            if not any(out.iterdir()):
                out.rmdir()
        raise


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
            f"{run} is not finished",
            f"continue it: semseal train --out {word(run)} --resume, with the options it was started with",
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
    world, nodes = int(os.environ.get("LOCAL_WORLD_SIZE", devices)), int(os.environ.get("GROUP_WORLD_SIZE", 1))
    try:
        fabric = Fabric(accelerator="auto", devices=world, num_nodes=nodes, strategy="ddp" if world * nodes > 1 else "auto")
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise TrainingError(f"{world} devices cannot be had here: {error}", "choose another number of --devices") from None
    most = PROCESSES_OF_A_CORE * (os.cpu_count() or 1)
    if fabric.device.type == "cpu" and world > most:
        raise TrainingError(f"{world} devices cannot be had here: {os.cpu_count()} cores", f"choose --devices up to {most}")
    fabric.launch()
    if config.batch % fabric.world_size:
        raise TrainingError(
            f"batch {config.batch} cannot be split over {fabric.world_size} devices",
            f"choose a --batch that is a multiple of {fabric.world_size}",
        )
    return fabric


def _decoded(pictures: Pictures, config: TrainConfig, out: Path, fabric: Fabric, progress: Progress) -> Crops:
    """The crops to train on, decoded by the first process."""
    size = (config.crop, config.crop) if config.crop else (config.model.height, config.model.width)
    if fabric.global_rank == 0:
        bar = progress.add_task("decode", total=None, shown="pictures")
        whole = (max(size[0], config.model.height), max(size[1], config.model.width))
        wanted = whole if pictures.whole else size
        skipped = decode(pictures, *wanted, out, lambda done, of: progress.update(bar, completed=done, total=of))
        progress.remove_task(bar)
        for name, reason in skipped.items():
            progress.console.print(f"skipped {name}: {reason}", markup=False, soft_wrap=True)
    fabric.barrier()
    return Crops(out, config.batch // fabric.world_size, *size, config.seed, fabric.global_rank)


def _first_weights(model: Link, config: TrainConfig, init: Path | None, crops: Crops) -> list[str]:
    """Give the model the weights of step 0; what there is to say of those that do not come from ``init``."""
    if isinstance(model, EdgeCodec):
        model.start_linear(_blocks(crops, config.seed))
    lines = []
    if init is not None:
        weights, initial = _weights_of(init), model.state_dict()
        kept = model.fitting(weights) if isinstance(model, EdgeCodec) else {}
        if isinstance(model, DeepJSCC):
            kept = {name: tensor for name, tensor in weights.items() if name in initial and tensor.shape == initial[name].shape}
        _load_weights(model, {**initial, **kept}, init / WEIGHTS)
        if new := [name for name in initial if name not in kept]:
            lines.append(f"new weights, where {init} has none that fit: {', '.join(new)}")
        if left := [name for name in weights if name not in initial]:
            lines.append(f"left out of {init}: {', '.join(left)}")
    if isinstance(model, EdgeCodec) and config.model.int8 and not all(step for step, _ in model.int8_steps().values()):
        images = torch.from_numpy(crops.draw(np.random.default_rng([config.seed, 1 << 32]), 32)).permute(0, 3, 1, 2) / 255
        generator = torch.Generator().manual_seed(config.seed)
        drawn = torch.randn(32, crops.height // 4, crops.width // 4 * config.model.c, generator=generator)
        model.set_int8_steps(images, 10 ** (-torch.linspace(config.snr_range[0], config.snr_range[1], 32) / 10), drawn)
    return lines


def _blocks(crops: Crops, seed: int) -> NDArray[np.float64]:
    """Blocks of 4x4 pixels [n, 48] in 0..1 of random crops."""
    rng = np.random.default_rng([seed, 1 << 32])  # not a step's
    n = min(START_CROPS, START_CROPS * START_SIDE**2 // (crops.height * crops.width) or 1)
    depth = space_to_depth(torch.from_numpy(crops.draw(rng, n)).permute(0, 3, 1, 2))
    blocks: NDArray[np.float64] = depth.permute(0, 2, 3, 1).flatten(0, 2).numpy() / 255.0
    return blocks


def _check_finite(loss: float, gradient: float, step: int, config: TrainConfig, out: Path) -> None:
    if not (math.isfinite(loss) and math.isfinite(gradient)):
        kept = (out / CHECKPOINT).exists()
        raise TrainingError(
            f"the loss is {loss} and the gradient's norm {gradient} at step {step}",
            f"use a smaller --lr than {config.lr:g}" + (f"; {out} keeps the last good checkpoint" if kept else ""),
        )


def _valid_pictures(data: str, config: TrainConfig) -> tuple[Tensor, list[str]]:
    """The pictures that a run is validated on, and what there is to say of them."""
    pictures = open_pictures(data, "valid")
    images = pictures.take(VALID_PICTURES, config.model.height, config.model.width, fewer=True)
    return torch.from_numpy(images), pictures.remarks(len(images), VALID_PICTURES, "validation")


def _open_run(config: TrainConfig, out: Path, resume: bool, init: Path | None, fabric: Fabric) -> int:
    """Make the run folder, or find the step to continue from and cut the log there."""
    start, checkpoint = 0, out / CHECKPOINT
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
            raise TrainingError(f"{out} is complete: nothing to resume", f"export it: semseal export {word(out)} --out BUNDLE")
        if checkpoint.exists():
            start = int(_read_checkpoint(checkpoint, torch.device("cpu"))["step"])
    elif resume:
        raise TrainingError(f"{out} holds no run to resume", "leave out --resume to start one")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out} is neither an empty folder nor a run", "choose another --out")
    if not start:
        _check_init(config, init)
    fabric.barrier()
    if fabric.global_rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        kept = ""
        if start:
            kept = "".join(json.dumps(row) + "\n" for row in _read_log(out) if row["step"] <= start)
        with _or_none(out, fabric, remove=not resume):
            write_atomically(out / LOG, kept.encode())
            write_atomically(out / "config.json", config.to_json().encode())
    fabric.barrier()
    return start


def _check_init(config: TrainConfig, init: Path | None) -> None:
    """Raises TrainingError for a run that cannot be started from, or none where one is needed."""
    if init is None:
        if config.freeze_transmitter:
            raise TrainingError(
                "a run that keeps its transmitter as it is needs one to start from",
                "give a run of --preset edge with --init RUN",
            )
        return
    weights, model = _weights_of(init), TrainConfig.read(init).model
    if model.network != config.model.network:
        raise TrainingError(
            f"{init} is a run of the {model.network} network, and this one is of the {config.model.network} network",
            "choose another --init, or another --preset",
        )
    if config.freeze_transmitter:
        transmitter = {name for name in build(config.model).state_dict() if not name.startswith("decoder.")}
        if model.c != config.model.c or not transmitter <= set(weights):
            raise TrainingError(
                f"{init} has another transmitter (c = {model.c}), and this run keeps the one that it starts from",
                f"use --c {model.c}, or choose another --init",
            )


def _check_room(training: _Training, out: Path) -> None:
    """Raises OSError where a checkpoint and the weights will not fit, each beside the one that it replaces."""
    weights = sum(tensor.nbytes for tensor in training.model.state_dict().values())
    checkpoint = 4 * weights  # the model, its average, and two numbers of Adam for each weight
    if training.fabric.global_rank == 0:
        check_room(out, [checkpoint, checkpoint, weights, weights, 2**16])  # and the log


def _save(training: _Training, out: Path, step: int) -> None:
    """The weights so far, and all that resuming needs; after the last step nothing but the weights stays."""
    fabric, last = training.fabric, step == training.config.steps
    if fabric.global_rank == 0:
        result = _on_cpu(training.result)
        if not last:  # before the weights: weights without a checkpoint are those of a finished run
            buffer = io.BytesIO()
            state = {"model": _on_cpu(training.model), "averaged": result, "optimizer": training.optimizer.state_dict()}
            torch.save({**state, "step": step}, buffer)
            write_atomically(out / CHECKPOINT, buffer.getvalue())
        write_atomically(out / WEIGHTS, save(result))
        if last:
            forget(out)  # every process keeps its mapping of the file until it ends
            (out / CHECKPOINT).unlink(missing_ok=True)
    fabric.barrier()


def _on_cpu(model: Link) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


class _Interrupted:
    """Whether SIGINT came: the step goes on to its end, and a checkpoint is written. A second one interrupts at once.

    A job in the background, which ignores SIGINT, goes on ignoring it.
    """

    def __init__(self) -> None:
        self.set = False
        self._before: Any = None

    def __enter__(self) -> "_Interrupted":
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
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
            f"continue it: semseal train --out {word(run)} --resume, with the options it was started with",
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
    except KeyError as error:
        raise TrainingError(
            f"{checkpoint} is of another version of semseal: it has no {error}",
            f"start a run from the last weights: --init {checkpoint.parent} and another --out",
        ) from None
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
