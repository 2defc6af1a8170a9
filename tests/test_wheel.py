"""A built wheel, installed outside of the checkout: whatever users import is in it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import semseal

ROOT = Path(__file__).parent.parent
NEEDED = ("train", "export", "runtime", "pyproject.toml", "README.md", "LICENSE")

CHECK = """
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import numpy as np
import semseal
from semseal import *  # noqa: F403

place = Path(sys.argv[1])
assert Path(semseal.__file__) == place / "semseal" / "__init__.py", semseal.__file__
for name in sys.argv[2:]:
    assert getattr(semseal, name)
assert semseal.__version__ == version("semseal")
assert Path(semseal.errors.__file__).is_relative_to(place)
models = [f"runtime/models/{name}/manifest.json" for name in ("edge", "edge-quality", "photos-10db")]
for file in ("py.typed", "runtime/audit/templates/report.html", *models):
    assert files("semseal").joinpath(file).is_file(), file
assert not files("semseal").joinpath("runtime/api").is_dir()  # it is the root, and there is no second copy

images = np.random.default_rng(0).random((2, 3, 180, 180), np.float32)
frames = semseal.Transmitter("photos-10db", bytes(32), "mix").send(images)
again = [semseal.Frame.from_bytes(frame.to_bytes()) for frame in frames]
assert semseal.Receiver("photos-10db", bytes(32)).receive(again).shape == images.shape
for module in ("train.fit", "export.bundle", "export.pack", "runtime.audit.run", "runtime.gpu.engines", "runtime.cli"):
    __import__(f"semseal.{module}")
    assert Path(sys.modules[f"semseal.{module}"].__file__).is_relative_to(place)
"""


def run(*command, **options) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**environment, **options.pop("env", {})}, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A copy of what a wheel is built from, so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("sources")
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    return folder


PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def test_a_wheel_has_all_of_it(sources, tmp_path):
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path / "wheels", sources)
    (wheel,) = (tmp_path / "wheels").glob("semseal-*.whl")
    place = tmp_path / "installed"
    run(*PIP, "install", "--no-deps", "--no-index", "--target", place, wheel)
    run(sys.executable, "-c", CHECK, place, *semseal.__all__, cwd=tmp_path, env={"PYTHONPATH": str(place)})
    assert (place / "bin" / "semseal").is_file()
    shown = run(sys.executable, place / "bin" / "semseal", "--version", cwd=tmp_path, env={"PYTHONPATH": str(place)})
    assert semseal.__version__ in shown
