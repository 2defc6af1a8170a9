import ast
import importlib
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import semseal
from semseal.runtime import errors
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


NAMES = ("Frame", "Receiver", "Transmitter", "__version__", "audit", "bench", "check", "errors", "open_bundle")


@pytest.mark.parametrize("what", ["semseal", "semseal.runtime.cli"])
def test_importing_loads_neither_an_engine_nor_what_extras_bring(what):
    heavy = ("torch", "onnx", "onnxruntime", "openvino", "skimage", "sklearn", "scipy", "semseal.train", "semseal.export")
    script = f"import sys, {what}; assert not {set(heavy)} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_import_semseal_loads_nothing_else():
    script = "import sys; before = set(sys.modules); import semseal; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", f"import typing; {script}"], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["semseal"], done.stderr


def test_the_public_names_are_what_they_are_elsewhere():
    from semseal.runtime import audit, bundle, link

    assert sorted(semseal.__all__) == sorted(dir(semseal)) == sorted(NAMES)
    assert semseal.Transmitter is link.Transmitter
    assert semseal.Receiver is link.Receiver
    assert semseal.Frame is link.Frame
    assert semseal.open_bundle is bundle.open_bundle
    assert semseal.audit is importlib.import_module(f"{audit.__name__}.run").audit
    assert semseal.errors is errors
    assert semseal.__version__ == version("semseal")
    with pytest.raises(AttributeError, match="'semseal' has no attribute 'nothing'"):
        semseal.nothing  # noqa: B018


def test_train_takes_only_pictures_files_progress_errors_and_channels_from_runtime():
    allowed = {f"semseal.runtime.{name}" for name in ("pictures", "files", "progress", "errors", "channel", "ofdm", "radio")}
    for file in (ROOT / "train").glob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom | ast.Import)]
        names = {
            f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
            for node in nodes
            for alias in node.names
        }
        taken = {name for name in names if name.startswith("semseal.runtime")}
        assert all(any(f"{name}.".startswith(f"{module}.") for module in allowed) for name in taken), (file, taken)


def test_errors_can_be_imported_from():
    program = (
        "from semseal.errors import SemsealError\nimport semseal\nfrom semseal.runtime import errors\n"
        "assert semseal.errors is errors and SemsealError is errors.SemsealError\n"
    )
    for order in (program, "import semseal; semseal.errors\n" + program):
        subprocess.run([sys.executable, "-c", order], check=True)
