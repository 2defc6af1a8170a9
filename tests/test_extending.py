"""docs/extending.md, followed to the letter: a copy of the package with its files and rows, and an audit in there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

AUDIT = """
import dataclasses, sys
from pathlib import Path
import semseal
assert semseal.__file__.startswith(sys.argv[3]), semseal.__file__
from semseal.runtime.audit.matrix import FULL
settings = dataclasses.replace(
    FULL, pictures=12, optimised_pictures=6, attacker_pictures=40, eve_snrs=(50.0,),
    attacks=("nearest", "no-key"), defenses=("none", "permute", "signs"),
)
semseal.audit([Path(sys.argv[1])], "photos", Path(sys.argv[2]), settings, cluster=sys.argv[4] or None)
"""


def blocks(page):
    """The code of the page by the file that it names."""
    found = re.findall(r"^`([\w/.]+)`[^\n]*:\n\n```(?:python)?\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    assert len(found) == 4
    return dict(found)


def extended(tmp_path, bundle, cluster=""):
    """The results of an audit by a copy of the package that has what the page adds."""
    package = tmp_path / "python" / "semseal"
    for room in ("runtime", "export", "train"):
        shutil.copytree(ROOT / room, package / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "runtime" / "api" / "__init__.py", package / "__init__.py")
    code = blocks((ROOT / "docs" / "extending.md").read_text())
    for name in ("runtime/attacks/nearest.py", "runtime/defense/signs.py"):
        (package / name).write_text(code[name])
    for name, old, new in (
        ("runtime/audit/attacks.py", " learned,", " learned, nearest,"),
        (
            "runtime/defense/defenses.py",
            "import numpy as np\n",
            "import numpy as np\nfrom semseal.runtime.defense.signs import signs\n",
        ),
    ):
        table = (package / name).read_text()
        assert table.count(old) == 1
        rows = re.search(r"^(?:ATTACKS|DEFENSES) = \(\n.*?^\)\n", table.replace(old, new), flags=re.DOTALL | re.MULTILINE)
        grown = rows[0].removesuffix(")\n") + code[name] + ")\n"
        (package / name).write_text(table.replace(old, new).replace(rows[0], grown))
    command = [sys.executable, "-c", AUDIT, bundle, tmp_path / "out", package, cluster]
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "out" / "results.json").read_text())


def test_the_page_is_one_file_and_one_row_each(small_bundle, tmp_path):
    results = extended(tmp_path, small_bundle)
    rows = {(row["attack"], row["defense"]): row for row in results["rows"]}
    assert {defense for attack, defense in rows if attack == "nearest"} == {"none", "permute", "signs"}
    # a comparator costs Bob nothing, hides from his decoder what it turns, and leaves energies where they are
    assert abs(rows["bob", "signs"]["psnr"] - rows["bob", "none"]["psnr"]) < 0.5
    assert rows["no-key", "none"]["psnr"] > rows["no-key", "signs"]["psnr"] + 2
    assert abs(rows["nearest", "signs"]["psnr"] - rows["nearest", "none"]["psnr"]) < 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "answers with the image of hers whose rows are as strong" in page
    assert "secret signs" in page
    program = [sys.executable, "-c", "from semseal.runtime.cli import main; main()", "audit", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "python")}
    help_text = subprocess.run(program, capture_output=True, text=True, env=environment).stdout
    assert "nearest" in help_text
    assert "signs" in help_text
