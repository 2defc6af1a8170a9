"""A small real link, trained and exported once: images 3 x 32 x 24, features 8 x 6 x 4; and what tests need of the system."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from semseal.export.bundle import export_model, export_run
from semseal.runtime.pictures import open_pictures
from semseal.runtime.signing import owner_key
from semseal.train.config import ModelConfig, TrainConfig
from semseal.train.edge import EdgeCodec, space_to_depth
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


@pytest.fixture(scope="session")
def edge_model():
    """An edge network of the same shape at its start, the linear code of photographs, and every other part moved a little:
    what is told of the channel matters, and so does the network beside the linear path."""
    model = EdgeCodec(ModelConfig(height=32, width=24, c=4, network="edge"))
    photographs = torch.from_numpy(open_pictures("photos", "train").take(16, 96, 96))
    model.start_linear(space_to_depth(photographs).permute(0, 2, 3, 1).flatten(0, 2).numpy())
    generator = torch.Generator().manual_seed(0)
    parts = [model.gains, model.encoder.last, model.decoder.last, model.encoder.modulate.out, model.decoder.modulate.out]
    with torch.no_grad():
        for weights in (weights for part in parts for weights in part.parameters()):
            weights += 0.01 * torch.randn(weights.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def edge_bundle(edge_model, tmp_path_factory) -> Path:
    bundle = tmp_path_factory.mktemp("bundles") / "edge"
    export_model(edge_model, bundle, {"snr_db": [0.0, 20.0]}, signing_key=owner_key())
    return bundle


@pytest.fixture
def small_images():
    """Smooth random pictures, float32 [batch, 3, 32, 24] in 0..1, for a batch size."""

    def make(batch: int, seed: int = 0) -> np.ndarray:
        coarse = np.random.default_rng(seed).random((batch, 3, 8, 6), np.float32)
        return coarse.repeat(4, axis=2).repeat(4, axis=3)

    return make
