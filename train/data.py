"""Training batches as a pure function of the step, so that a resumed run sees what an uninterrupted one saw."""

import numpy as np
import torch
from numpy.typing import NDArray
from semseal.runtime.errors import PictureError
from semseal.runtime.pictures import Pictures, center_crop, random_crop, to_float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class StepBatches(Dataset[tuple[Tensor, dict[str, str]]]):
    """Item ``step``: that step's batch, float32 [batch, 3, height, width] in 0..1, and why which files were skipped so far."""

    def __init__(self, pictures: Pictures, batch: int, height: int, width: int, seed: int, rank: int) -> None:
        self.pictures, self.batch, self.height, self.width = pictures, batch, height, width
        self.seed, self.rank = seed, rank

    def __getitem__(self, step: int) -> tuple[Tensor, dict[str, str]]:
        rng = np.random.default_rng([self.seed, step, self.rank])
        crops: list[NDArray[np.uint8]] = []
        while len(crops) < self.batch:
            path = self.pictures.paths[rng.integers(len(self.pictures.paths))]
            picture = self.pictures.load(path)
            if picture is None:
                if len(self.pictures.skipped) == len(set(self.pictures.paths)):
                    raise PictureError(
                        f"{self.pictures.spec}: none of the {len(self.pictures.paths)} files can be decoded",
                        "point --data to a folder of readable pictures",
                    )
            elif self.pictures.whole:
                crop = center_crop(picture, self.height, self.width)
                crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
            else:
                crops.append(random_crop(picture, self.height, self.width, rng))
        skipped = {str(path): reason for path, reason in self.pictures.skipped.items()}
        return torch.from_numpy(to_float(crops)), skipped


def step_loader(batches: StepBatches, start: int, stop: int, workers: int) -> DataLoader[tuple[Tensor, dict[str, str]]]:
    """Batches of steps start..stop-1 in order, prepared ahead by worker processes."""
    return DataLoader(
        batches, batch_size=None, sampler=range(start, stop), num_workers=workers, prefetch_factor=4 if workers else None
    )
