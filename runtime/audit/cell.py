"""One cell of an audit: Eve attacks what a deployed transmitter sent, and is scored. A file keeps it.

pictures: PSNR and SSIM of every answer, and its matching advantage      games: how often Eve is right, with exact bounds
"""

import dataclasses
import hashlib
import io
import json
import re
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from semseal.runtime import metrics
from semseal.runtime.audit.attacks import BY_NAME, Answer
from semseal.runtime.audit.on_air import NAMES as ON_AIR
from semseal.runtime.audit.on_air import OnAir
from semseal.runtime.audit.results import GameResult, Reconstructions
from semseal.runtime.audit.scene import Images, Scene, finite
from semseal.runtime.audit.settings import Advance, Cell, snr_name
from semseal.runtime.defense.defenses import BY_NAME as DEFENSES
from semseal.runtime.errors import AuditError
from semseal.runtime.files import write_atomically

SHOWN = 4  # pictures of each cell that are kept


def is_game(cell: Cell) -> bool:
    """Whether the cell ends in a game's results, and not in pictures."""
    return cell.attack in BY_NAME and BY_NAME[cell.attack].game


def file_name(cell: Cell) -> str:
    """The name of the file that keeps the cell."""
    kind = "json" if is_game(cell) else "npz"
    bundle = re.sub(r"[^\w.-]", "_", cell.bundle, flags=re.ASCII)
    if bundle != cell.bundle:  # "a/b" and "a_b" are two
        bundle += f"-{hashlib.sha256(cell.bundle.encode()).hexdigest()[:8]}"
    main = f"main{cell.main_snr:g}-{cell.main_channel}"
    eve = "" if cell.eve_snr is None else f"-eve{snr_name(cell.eve_snr)}-{cell.eve_channel}"
    if cell.eve_antennas not in (None, 1):
        eve += f"-x{cell.eve_antennas}"
    return f"{cell.attack}-{cell.defense}-{bundle}-{main}{eve}-{cell.engine}-{cell.precision}.{kind}"


def answer(scene: Scene, cell: Cell, advance: Advance = lambda seconds: None) -> tuple[Answer, OnAir | None]:
    """The pictures [n, 3, height, width] of Bob, of the mean picture or of an attack, n at most that of the images; or a game.

    Beside those of Bob what was on air for them. Raises GraphError from an attack that differentiates a transmitter which
    cannot be.
    """
    scene.begin(file_name(cell))
    if cell.attack == "bob":
        return scene.bob(DEFENSES[cell.defense])
    if cell.attack == "mean-picture":
        return np.broadcast_to(scene.mean_picture, scene.images.shape).astype(np.float32), None
    found = BY_NAME[cell.attack].run(scene, cell, advance)
    return found if isinstance(found, tuple) else finite(found), None


def measure(scene: Scene, cell: Cell, file: Path, advance: Advance = lambda seconds: None) -> None:
    """Measure a cell and write its file, unless it is there. Raises as ``answer``."""
    if not file.exists():
        write_atomically(file, content(scene, cell, advance))


def content(scene: Scene, cell: Cell, advance: Advance = lambda seconds: None) -> bytes:
    """The content of a cell's file, measured now. Raises as ``answer``."""
    found, air = answer(scene, cell, advance)
    if isinstance(found, tuple):
        return json.dumps([dataclasses.asdict(game) for game in found]).encode()
    sent = scene.images[: len(found)]
    scores = scores_of_all(sent, found, DEFENSES[cell.defense].streams)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        psnr=metrics.psnr(sent, found),
        ssim=metrics.ssim(sent, found),
        advantage=metrics.matching_advantage(scores),
        named=metrics.names_its_own(scores),
        shown=np.round(found[:SHOWN].clip(0, 1) * 255).astype(np.uint8),
        **({} if air is None else {name: getattr(air, name) for name in ON_AIR}),
    )
    return buffer.getvalue()


def matching_advantage(sent: Images, answers: Images, streams: int) -> NDArray[np.float64]:
    """``Reconstructions.advantage`` of pictures [n, 3, height, width], 6 or more."""
    return metrics.matching_advantage(scores_of_all(sent, answers, streams))


def scores_of_all(sent: Images, answers: Images, streams: int) -> NDArray[np.float64]:
    """The PSNR in dB of every answer (column) to every picture sent (row).

    With two ``streams`` a pair of answers is scored in its better order against every pair, as an Eve who cannot tell which of
    her two answers is which would be against the right one.
    """
    scores = metrics.psnr_of_all(sent, answers)
    if streams == 2:
        half = len(sent) // 2
        pairs = scores.reshape(half, 2, half, 2)
        scores = np.maximum(pairs[:, 0, :, 0] + pairs[:, 1, :, 1], pairs[:, 0, :, 1] + pairs[:, 1, :, 0]) / 2
    return scores


def read_reconstructions(file: Path) -> Reconstructions:
    """What ``measure`` kept of a cell that ends in pictures. Raises AuditError for a damaged file."""
    try:
        with np.load(io.BytesIO(file.read_bytes())) as kept:
            shown = kept["shown"].astype(np.float32) / 255
            air = OnAir(**{name: kept[name] for name in ON_AIR}) if ON_AIR[0] in kept else None
            return Reconstructions(kept["psnr"], kept["ssim"], kept["advantage"], shown, kept["named"], air)
    except (ValueError, KeyError, EOFError, BadZipFile):
        raise _damaged(file) from None


def read_games(file: Path) -> tuple[GameResult, ...]:
    """The same of a game. Raises AuditError for a damaged file."""
    try:
        return tuple(GameResult(**game) for game in json.loads(file.read_text()))
    except (ValueError, TypeError):
        raise _damaged(file) from None


def _damaged(file: Path) -> AuditError:
    return AuditError(f"{file} is damaged", "delete it, and the same command measures it again")
