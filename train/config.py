"""What is trained and how, as two frozen dataclasses, and the named presets.

A run's ``config.json`` holds exactly these fields; the model is rebuilt from it. A preset holds only what it changes.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semseal.runtime.errors import TrainingError


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a DeepJSCC link: images [3, height, width], features [c, height/4, width/4]."""

    height: int = 180
    width: int = 180
    c: int = 16  # channels of the features y_f

    def __post_init__(self) -> None:
        if self.height < 4 or self.width < 4 or self.height % 4 or self.width % 4:
            raise ValueError(f"height and width must be positive multiples of 4, got {self.height} x {self.width}")
        if self.c < 2 or self.c % 2:
            raise ValueError(f"c must be even and at least 2, so that every row is whole I/Q pairs, got {self.c}")

    @property
    def h(self) -> int:
        """Rows of the features, the paper's first dimension."""
        return self.height // 4

    @property
    def w(self) -> int:
        return self.width // 4

    @property
    def n_symbols(self) -> int:
        """N, complex channel uses per image."""
        return self.h * self.w * self.c // 2

    @property
    def bandwidth_ratio(self) -> float:
        """Complex channel uses per source sample, N / (3 height width)."""
        return self.n_symbols / (3 * self.height * self.width)


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Defaults are section IV of the paper where it states a value."""

    model: ModelConfig = field(default_factory=ModelConfig)
    snr_db: float = 10.0
    channel: str = "awgn"  # awgn, rayleigh, multipath
    taps: int = 8  # of the multipath channel
    lam: float = 1.0  # lambda of Eq. (2), for pixels in 0..255
    beta: float = 1.0  # of Eq. (3)
    lr: float = 1e-3
    warmup: int = 200  # steps to reach lr; a cosine takes it to zero at the last step
    batch: int = 128  # pictures per step, over all devices together
    steps: int = 40_000
    clip: float = 1.0  # largest gradient norm
    precision: str = "32-true"  # Lightning Fabric's names: 32-true, bf16-mixed
    save_every: int = 500
    seed: int = 0
    data: str = ""  # what it was trained on: the kind of spec and a digest of the file names; written by train
    init: str = ""  # name of the run whose weights were the start; written by train
    devices: int = 1  # that shared a batch; written by train

    def __post_init__(self) -> None:
        for name in ("taps", "lr", "batch", "steps", "clip", "save_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.channel not in ("awgn", "rayleigh", "multipath"):
            raise ValueError(f"channel must be awgn, rayleigh or multipath, got {self.channel!r}")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def read(run: Path) -> "TrainConfig":
        """The configuration of a run folder. Raises TrainingError for a folder or file that is none of this version."""
        path = run / "config.json"
        if not path.is_file():
            raise TrainingError(
                f"{run} is not a run: it has no config.json",
                f"make one with semseal train --preset photos-10db --data photos --out {run}",
            )
        try:
            fields: dict[str, Any] = json.loads(path.read_text())
            return TrainConfig(**{**fields, "model": ModelConfig(**fields["model"])})
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise TrainingError(
                f"{path} does not fit this version of semseal: {error}",
                "read it with the version that wrote it, or train again",
            ) from None


# for photographs: small batches, bf16 arithmetic with float32 weights; half an hour on two CPU cores for 10 dB, from which
# the other two continue (--init), because the first steps of a run learn the same at every SNR
_PHOTOS: dict[str, Any] = {"batch": 16, "precision": "bf16-mixed"}

PRESETS: dict[str, dict[str, Any]] = {
    "paper-0db": {"snr_db": 0.0},
    "paper-10db": {"snr_db": 10.0},
    "paper-20db": {"snr_db": 20.0},
    "photos-0db": {"snr_db": 0.0, "steps": 2_500, **_PHOTOS},
    "photos-10db": {"snr_db": 10.0, "steps": 12_000, **_PHOTOS},
    "photos-20db": {"snr_db": 20.0, "steps": 2_500, **_PHOTOS},
}
