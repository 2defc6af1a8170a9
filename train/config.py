"""What is trained and how, as two frozen dataclasses, and the named presets.

A run's ``config.json`` holds exactly these fields; the model is rebuilt from it. A preset holds only what it changes.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semseal.runtime import channel, radio
from semseal.runtime.errors import TrainingError
from semseal.runtime.files import word

MAX_SEED = 2**63 - 1  # that PyTorch takes
MAX_FEATURES = 2**22  # floats of an image, as many as mix takes
CHANNELS = (*channel.CHANNELS, *radio.CHANNELS)


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a link: images [3, height, width], features [c, height/4, width/4]."""

    height: int = 180
    width: int = 180
    c: int = 16  # channels of the features y_f
    network: str = "paper"  # or edge
    receiver_blocks: int = 1  # residual blocks of edge's receiver
    int8: bool = False  # the receiver knows the steps of its INT8 graph, and is trained with its rounding

    def __post_init__(self) -> None:
        if self.height < 4 or self.width < 4 or self.height % 4 or self.width % 4:
            raise ValueError(f"height and width must be positive multiples of 4, got {self.height} x {self.width}")
        if self.c < 2 or self.c % 2:
            raise ValueError(f"c must be even and at least 2, so that every row is whole I/Q pairs, got {self.c}")
        if self.network not in ("paper", "edge"):
            raise ValueError(f"network must be paper or edge, got {self.network!r}")
        if self.network == "edge" and self.c > 48:
            raise ValueError(f"c must be at most 48 for the edge network, got {self.c}")
        if self.h * self.w * self.c > MAX_FEATURES:
            raise ValueError(
                f"pictures of {self.height} x {self.width} with c {self.c} are {self.h * self.w * self.c} floats of features, "
                f"and mix takes up to {MAX_FEATURES}"
            )
        if self.receiver_blocks < 1 or (self.receiver_blocks > 1 and self.network != "edge"):
            raise ValueError(f"receiver_blocks must be 1, or above for the edge network, got {self.receiver_blocks}")
        if self.int8 and self.network != "edge":
            raise ValueError("int8 is for the edge network")

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
    snr_span_db: float = 0.0  # each image is sent at a random SNR of snr_db +- this
    channel: str = "awgn"  # of CHANNELS; tdl and cdl need the extra radio
    taps: int = 8  # of the multipath channel
    lam: float = 1.0  # lambda of Eq. (2), for pixels in 0..255
    beta: float = 1.0  # of Eq. (3)
    lr: float = 1e-3
    warmup: int = 200  # steps to reach lr; a cosine takes it to zero at the last step
    batch: int = 128  # pictures per step, over all devices together
    crop: int = 0  # side of the squares that are trained on; 0 is the model's height and width
    ema: float = 0.0  # decay of the average of the weights that the run is left with; 0 is the last weights
    freeze_transmitter: bool = False
    steps: int = 40_000
    clip: float = 1.0  # largest gradient norm
    precision: str = "32-true"  # of the layers: 32-true, or bf16-mixed with weights in float32
    save_every: int = 500
    seed: int = 0
    data: str = ""  # what it was trained on: the kind of spec and a digest of the file names; written by train
    init: str = ""  # name of the run whose weights were the start; written by train
    devices: int = 1  # that shared a batch; written by train

    def __post_init__(self) -> None:
        for name in ("taps", "lr", "batch", "steps", "clip", "save_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.channel not in CHANNELS:
            raise ValueError(f"channel must be one of {', '.join(CHANNELS)}, got {self.channel!r}")
        if self.snr_span_db < 0 or (self.snr_span_db and self.model.network != "edge"):
            raise ValueError(f"snr_span_db must be 0, or above for the edge network, got {self.snr_span_db}")
        if self.crop < 0 or self.crop % 4 or (self.crop and self.model.network != "edge"):
            raise ValueError(f"crop must be 0, or a multiple of 4 for the edge network, got {self.crop}")
        if self.warmup < 0 or self.seed < 0:
            raise ValueError(f"warmup and seed must be 0 or above, got {self.warmup} and {self.seed}")
        if self.seed > MAX_SEED:
            raise ValueError(f"seed must be at most {MAX_SEED}, got {self.seed}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be at least 0 and below 1, got {self.ema}")
        if self.freeze_transmitter and self.model.network != "edge":
            raise ValueError("freeze_transmitter is for the edge network")
        if self.precision not in ("32-true", "bf16-mixed"):
            raise ValueError(f"precision must be 32-true or bf16-mixed, got {self.precision!r}")

    @property
    def snr_range(self) -> list[float]:
        """The lowest and the highest SNR in dB that the model is for."""
        return [float(self.snr_db - self.snr_span_db), float(self.snr_db + self.snr_span_db)]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def read(run: Path) -> "TrainConfig":
        """The configuration of a run folder; what an older run does not name has its default.

        Raises TrainingError for a folder or file that is none of this version or an older one.
        """
        path = run / "config.json"
        if not path.is_file():
            raise TrainingError(
                f"{run} is not a run: it has no config.json",
                f"make one with semseal train --preset edge --data photos --out {word(run)}",
            )
        try:
            fields: dict[str, Any] = json.loads(path.read_text())
            return TrainConfig(**{**fields, "model": ModelConfig(**fields["model"])})
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise TrainingError(
                f"{path} does not fit this version of semseal: {error}",
                "read it with the version that wrote it, or train again",
            ) from None


_EDGE: dict[str, Any] = {
    "snr_span_db": 10.0,
    "lr": 1.5e-3,
    "batch": 16,
    "crop": 96,
    "ema": 0.999,
    "warmup": 500,
    "steps": 30_000,
    "precision": "bf16-mixed",
}

_INT8: dict[str, Any] = {"lr": 3e-4, "steps": 2_500, "warmup": 100, "freeze_transmitter": True}

PRESETS: dict[str, dict[str, Any]] = {
    "paper-0db": {"snr_db": 0.0},
    "paper-10db": {"snr_db": 10.0},
    "paper-20db": {"snr_db": 20.0},
    # the paper's network on photographs: small batches, bf16 arithmetic with float32 weights
    "photos-10db": {"snr_db": 10.0, "steps": 12_000, "batch": 16, "precision": "bf16-mixed"},
    "edge": {"model": ModelConfig(network="edge"), **_EDGE},
    # started from a run of edge (--init), whose transmitter it keeps
    "edge-quality": {
        "model": ModelConfig(network="edge", receiver_blocks=4),
        **_EDGE,
        "steps": 20_000,
        "freeze_transmitter": True,
    },
    # the end of either (--init): the receiver once more, rounding as its INT8 graph does; what ships
    "edge-int8": {"model": ModelConfig(network="edge", int8=True), **_EDGE, **_INT8},
    "edge-quality-int8": {"model": ModelConfig(network="edge", receiver_blocks=4, int8=True), **_EDGE, **_INT8},
}
