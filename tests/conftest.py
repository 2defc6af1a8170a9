"""A small real link, trained and exported once: images 3 x 32 x 24, features 8 x 6 x 4."""

from pathlib import Path

import numpy as np
import pytest
from semseal.export.bundle import export_run
from semseal.train.config import ModelConfig, TrainConfig
from semseal.train.fit import train

SMALL = TrainConfig(
    model=ModelConfig(height=32, width=24, c=4), batch=8, steps=200, warmup=10, save_every=50, precision="32-true"
)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "small"
    train(SMALL, "photos", run)
    return run


@pytest.fixture(scope="session")
def small_bundle(small_run, tmp_path_factory) -> Path:
    bundle = tmp_path_factory.mktemp("bundles") / "small"
    export_run(small_run, bundle)
    return bundle


@pytest.fixture
def small_images():
    """Smooth random pictures, float32 [batch, 3, 32, 24] in 0..1, for a batch size."""

    def make(batch: int, seed: int = 0) -> np.ndarray:
        coarse = np.random.default_rng(seed).random((batch, 3, 8, 6), np.float32)
        return coarse.repeat(4, axis=2).repeat(4, axis=3)

    return make
