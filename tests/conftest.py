"""A small real link, trained and exported once: images 3 x 32 x 24, features 8 x 6 x 4; and what tests need of the system."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
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


# Files that take longest, and the others after them: one that begins last would keep one core waiting.
SLOWEST = (
    "test_fit", "test_mix_kernel", "test_cell", "test_doctor", "test_cli", "test_net", "test_attacks", "test_cluster",
    "test_keyset_link", "test_bench_link", "test_mixed", "test_stored_frames", "test_generative", "test_learned", "test_resize",
    "test_wheel", "test_extending", "test_schema", "test_kernel", "test_report",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A marked test is skipped where its program is missing, but fails in CI (SEMSEAL_CI): there it must run."""
    for marker, program in NEEDS.items():
        if item.get_closest_marker(marker) and shutil.which(program) is None:
            reason = f"{program} is not on the PATH: apt install {program}"
            if os.environ.get("SEMSEAL_CI"):
                pytest.fail(reason)
            pytest.skip(reason)


Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Shared:
    """``shared(name, make)`` is a folder that all processes of this run (pytest-xdist) have in common.

    Whoever comes first makes it with ``make(folder)``; the others wait.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder = root / "shared" / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.with_suffix(".done").exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one that failed
                make(folder)
                folder.with_suffix(".done").touch()
        return folder

    return once


def own_key(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder))
        owner_key()


@pytest.fixture(scope="session", autouse=True)
def config_folder(shared, tmp_path_factory) -> Iterator[Path]:
    """No test sees, or makes, the keys of whoever runs the tests. All processes sign with one."""
    folder = tmp_path_factory.mktemp("config")
    shutil.copytree(shared("config", own_key), folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder))
        patch.delenv("SEMSEAL_OWNER", raising=False)
        yield folder / "semseal"


@pytest.fixture(scope="session")
def small_run(shared) -> Path:
    return shared("runs/small", lambda run: train(SMALL, "photos", run))


@pytest.fixture(scope="session")
def small_bundle(shared, small_run) -> Path:
    return shared("bundles/small", lambda bundle: export_run(small_run, bundle, signing_key=owner_key()))


@pytest.fixture(scope="session")
def libraries(shared) -> Path:
    """A folder for kernels that are compiled by g++ (mix_on_cpu.py): each is compiled once."""
    return shared("libraries", Path.mkdir)


@pytest.fixture(scope="session")
def edge_model(shared):
    """An edge network of the same shape at its start, the linear code of photographs, and every other part moved a little:
    what is told of the channel matters, and so does the network beside the linear path."""
    model = EdgeCodec(ModelConfig(height=32, width=24, c=4, network="edge"))

    def begin(folder: Path) -> None:
        photographs = torch.from_numpy(open_pictures("photos", "train").take(16, 96, 96))
        model.start_linear(space_to_depth(photographs).permute(0, 2, 3, 1).flatten(0, 2).numpy())
        generator = torch.Generator().manual_seed(0)
        parts = [model.gains, model.encoder.last, model.decoder.last, model.encoder.modulate.out, model.decoder.modulate.out]
        with torch.no_grad():
            for weights in (weights for part in parts for weights in part.parameters()):
                weights += 0.01 * torch.randn(weights.shape, generator=generator)
        folder.mkdir()
        torch.save(model.state_dict(), folder / "weights.pt")

    model.load_state_dict(torch.load(shared("edge", begin) / "weights.pt"))
    return model.eval()


@pytest.fixture(scope="session")
def edge_bundle(shared, edge_model) -> Path:
    about = {"snr_db": [0.0, 20.0]}
    return shared("bundles/edge", lambda bundle: export_model(edge_model, bundle, about, signing_key=owner_key()))


@pytest.fixture
def small_images():
    """Smooth random pictures, float32 [batch, 3, 32, 24] in 0..1, for a batch size."""

    def make(batch: int, seed: int = 0) -> np.ndarray:
        coarse = np.random.default_rng(seed).random((batch, 3, 8, 6), np.float32)
        return coarse.repeat(4, axis=2).repeat(4, axis=3)

    return make
