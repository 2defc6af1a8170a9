"""A small real link, trained and exported once: images 3 x 32 x 24, features 8 x 6 x 4; and what tests need of the system."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from semseal.export.bundle import export_run
from semseal.runtime.signing import owner_key
from semseal.train.config import ModelConfig, TrainConfig
from semseal.train.fit import train

SMALL = TrainConfig(
    model=ModelConfig(height=32, width=24, c=4), batch=8, steps=200, warmup=10, save_every=50, precision="32-true"
)

NEEDS = {"chromium": "chromium", "compiler": "g++"}  # marker -> program, which is also the name of the Debian package


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A marked test is skipped where its program is missing, but fails in CI (SEMSEAL_CI): there it must run."""
    for marker, program in NEEDS.items():
        if item.get_closest_marker(marker) and shutil.which(program) is None:
            reason = f"{program} is not on the PATH: apt install {program}"
            if os.environ.get("SEMSEAL_CI"):
                pytest.fail(reason)
            pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def config_folder(tmp_path_factory) -> Iterator[Path]:
    """No test sees, or makes, the keys of whoever runs the tests."""
    folder = tmp_path_factory.mktemp("config")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder))
        patch.delenv("SEMSEAL_OWNER", raising=False)
        yield folder / "semseal"


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "small"
    train(SMALL, "photos", run)
    return run


@pytest.fixture(scope="session")
def small_bundle(small_run, tmp_path_factory) -> Path:
    bundle = tmp_path_factory.mktemp("bundles") / "small"
    export_run(small_run, bundle, signing_key=owner_key())
    return bundle


@pytest.fixture
def small_images():
    """Smooth random pictures, float32 [batch, 3, 32, 24] in 0..1, for a batch size."""

    def make(batch: int, seed: int = 0) -> np.ndarray:
        coarse = np.random.default_rng(seed).random((batch, 3, 8, 6), np.float32)
        return coarse.repeat(4, axis=2).repeat(4, axis=3)

    return make
