import ast
import subprocess
import sys
from pathlib import Path

import pytest
from semseal.runtime.bundle import packaged_bundle

ROOT = Path(__file__).parent.parent

LINK = f"""
import sys
import numpy as np
from semseal.runtime.link import Receiver, Transmitter
tx, rx = Transmitter({str(packaged_bundle("photos-10db"))!r}, bytes(32), "permute+substitute"), None
frames = tx.send(np.full((2, 3, 180, 180), 0.5, np.float32))
rx = Receiver({str(packaged_bundle("photos-10db"))!r}, bytes(32))
assert rx.receive(frames).shape == (2, 3, 180, 180)
heavy = {{"torch", "onnx", "skimage", "sklearn", "scipy", "semseal.train", "semseal.export"}} & sys.modules.keys()
assert not heavy, heavy
"""


def test_running_the_link_imports_no_torch():
    done = subprocess.run([sys.executable, "-c", LINK], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def imported(file):
    """(module, is at top level) of every import of a file."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            yield name, node in tree.body


@pytest.mark.parametrize("file", sorted((ROOT / "runtime").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_runtime_stands_alone(file):
    for name, top in imported(file):
        # the program's verbs train and export load those packages when they are called, and nothing else does
        if name.startswith(("semseal.train", "semseal.export")):
            assert file.name == "cli.py"
            assert not top
        if name.split(".")[0] == "torch":
            assert file.parent.name == "attacks"


def test_train_takes_only_pictures_and_files_from_runtime():
    allowed = {"semseal.runtime.pictures", "semseal.runtime.files"}
    for file in (ROOT / "train").glob("*.py"):
        used = {name for name, _ in imported(file) if name.startswith(("semseal.runtime", "semseal.export"))}
        assert used <= allowed, file
