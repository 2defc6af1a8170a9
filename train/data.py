"""Training batches as a pure function of the step, from pictures that are decoded once.

    files ── decoded, at several sizes ── one memory-mapped file of bytes ── crops of a step ── device ── flips, 0..1

So a resumed run sees what an uninterrupted one saw, and what a step costs the host is to copy its crops.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from semseal.runtime.errors import PictureError
from semseal.runtime.files import named, shown, write_atomically
from semseal.runtime.pictures import Pictures, center_crop
from torch import Tensor

BYTES, TABLE = "pictures.u8", "pictures.json"  # in the run folder until the run is finished
LARGEST_SIDE, SMALLEST_SIDE = 1448, 256  # of a scene's shorter side; from the one to the other by sqrt(2)

BATCHES_AHEAD = 4

Batch = NDArray[np.uint8]
Item = TypeVar("Item")
Result = TypeVar("Result")


class Crops:
    """Crops uint8 [batch, height, width, 3] of decoded pictures; item ``step`` is that step's batch."""

    def __init__(self, folder: Path, batch: int, height: int, width: int, seed: int, rank: int) -> None:
        """``folder`` is what ``decode`` was given."""
        self.batch, self.height, self.width, self.seed, self.rank = batch, height, width, seed, rank
        sizes = json.loads((folder / TABLE).read_text())["sizes"]  # of each picture: [offset, rows, columns] at every size
        self._bytes = np.memmap(folder / BYTES, np.uint8, "r")
        self._sizes = [usable for levels in sizes if (usable := [x for x in levels if x[1] >= height and x[2] >= width])]
        if not self._sizes:
            raise PictureError(f"no picture is as large as the crops, {height} x {width}", "give larger pictures")

    def __getitem__(self, step: int) -> Batch:
        return self.draw(np.random.default_rng([self.seed, step, self.rank]), self.batch)

    def draw(self, rng: np.random.Generator, n: int) -> Batch:
        """n random crops."""
        crops = np.empty((n, self.height, self.width, 3), np.uint8)
        for crop in crops:
            levels = self._sizes[rng.integers(len(self._sizes))]
            offset, rows, columns = levels[rng.integers(len(levels))]
            picture = self._bytes[offset : offset + rows * columns * 3].reshape(rows, columns, 3)
            top, left = rng.integers(rows - self.height + 1), rng.integers(columns - self.width + 1)
            crop[:] = picture[top : top + self.height, left : left + self.width]
        return crops


def ahead(crops: Crops, start: int, stop: int) -> Iterator[Batch]:
    """The batches of steps start..stop-1 in order, made while those before are in use."""
    return _in_turn(crops.__getitem__, range(start, stop), BATCHES_AHEAD)


def to_images(crops: Tensor, turn: bool, generator: torch.Generator) -> Tensor:
    """Crops uint8 [batch, height, width, 3] on a device to images float32 [batch, 3, height, width] in 0..1.

    Half of them mirrored; with ``turn`` half upside down, and half of squares transposed, too.
    """
    images = crops.permute(0, 3, 1, 2) / 255
    flips = torch.rand(3, len(images), 1, 1, 1, generator=generator, device=generator.device).to(images.device) < 0.5
    images = torch.where(flips[0], images.flip(3), images)
    if turn:
        images = torch.where(flips[1], images.flip(2), images)
        if images.shape[2] == images.shape[3]:
            images = torch.where(flips[2], images.transpose(2, 3), images)
    return images


def decode(pictures: Pictures, height: int, width: int, folder: Path, report: Callable[[int, int], Any]) -> dict[str, str]:
    """Decode all pictures into ``folder``, unless that is done; why which files were skipped.

    Whole pictures (faces) are centred crops of height x width; scenes are kept at every size that is at least that.
    ``report`` is called with how many of how many are done. Raises PictureError where none can be decoded.
    """
    if (folder / TABLE).exists() and (folder / BYTES).exists():
        known: dict[str, str] = json.loads((folder / TABLE).read_text())["skipped"]
        return known
    forget(folder)
    partial = folder / f".{BYTES}"
    sizes: list[list[tuple[int, int, int]]] = []
    decoded = _in_turn(lambda path: _levels(pictures, path, height, width), pictures.paths, os.cpu_count() or 1)
    try:
        with named(folder / BYTES), open(partial, "wb") as file:
            for done, levels in enumerate(decoded, 1):
                sizes.append([])
                for level in levels:
                    sizes[-1].append((file.tell(), *level.shape[:2]))
                    file.write(level.tobytes())
                report(done, len(pictures.paths))
        if not any(sizes):
            first = next(iter(pictures.reasons().items()))
            raise PictureError(
                f"{shown(pictures.spec)}: none of the {len(pictures.paths)} files can be decoded, first {first[0]}: {first[1]}",
                "point --data to a folder of readable pictures",
            )
        os.replace(partial, folder / BYTES)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    skipped = pictures.reasons()
    write_atomically(folder / TABLE, json.dumps({"sizes": sizes, "skipped": skipped}).encode())
    return skipped


def forget(folder: Path) -> None:
    """Remove what ``decode`` wrote."""
    for name in (TABLE, BYTES):
        (folder / name).unlink(missing_ok=True)


def _in_turn(work: Callable[[Item], Result], items: Iterable[Item], few: int) -> Iterator[Result]:
    """What ``work`` makes of every item, in order; so many at a time are made, in threads, or wait."""
    left = iter(items)
    with ThreadPoolExecutor(few) as pool:
        waiting = deque(pool.submit(work, item) for item in islice(left, few))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in islice(left, 1))
            yield result


def _levels(pictures: Pictures, path: Path, height: int, width: int) -> list[Batch]:
    """A picture at its sizes, the largest first; none where it cannot be decoded. One that is too small is enlarged."""
    picture = pictures.load(path)
    if picture is None:
        return []
    rows, columns = picture.shape[:2]
    if pictures.whole or rows < height or columns < width:
        return [center_crop(picture, height, width)]
    image = Image.fromarray(picture)
    scale = max(min(LARGEST_SIDE / min(rows, columns), 1.0), height / rows, width / columns)
    levels: list[Batch] = []
    least = max(SMALLEST_SIDE - 1, height, width)
    while not levels or min(rows, columns) * scale >= least:
        size = max(round(columns * scale), width), max(round(rows * scale), height)
        levels.append(np.asarray(image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)))
        scale /= 2**0.5
    return levels
