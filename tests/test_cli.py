import json
import os
import stat
import subprocess
import sys

import pytest


def semseal(*args, cwd=None):
    command = [sys.executable, "-c", "from semseal.runtime.cli import main; main()", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, stdin=subprocess.DEVNULL)


def test_help_lists_the_verbs():
    done = semseal("--help")
    assert done.returncode == 0
    for verb in ("audit", "demo", "export", "keygen", "train"):
        assert verb in done.stdout


def test_keygen(tmp_path):
    done = semseal("keygen", tmp_path / "key")
    assert done.returncode == 0
    assert stat.S_IMODE(os.stat(tmp_path / "key").st_mode) == 0o600
    secret = (tmp_path / "key").read_text().splitlines()[1]
    assert secret not in done.stdout + done.stderr
    again = semseal("keygen", tmp_path / "key")
    assert again.returncode == 1
    assert again.stderr.startswith("error: ")
    assert "exists already" in again.stderr


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["train", "--preset", "photos-11db", "--data", "photos", "--out", "run"], 2, "preset must be one of"),
        (["train", "--preset", "photos-10db", "--data", "elsewhere", "--out", "run"], 1, "data spec must be"),
        (["train", "--preset", "photos-10db", "--data", "photos", "--out", "run", "--c", "3"], 1, "c must be even"),
        (["train", "--preset", "photos-10db", "--data", "photos", "--out", "run", "--resume"], 1, "no run to resume"),
        (["export", "nowhere", "--out", "bundle"], 1, "nowhere is not a run"),
        (["audit", "nowhere", "--data", "photos", "--out", "results"], 1, "nowhere is not a bundle"),
        (["audit", "photos-10db", "--data", "photos", "--out", "results", "--pictures", "4"], 2, "at least 6"),
        (["audit", "photos-10db", "--data", "photos", "--out", "results", "--defense", "mixx"], 2, "must be one of none"),
        (["audit", "photos-10db", "--data", "photos", "--out", "results", "--attack", "guess"], 2, "must be one of white-box"),
        (["audit", "photos-10db", "--data", "photos", "--out", "results", "--precision", "fp8"], 2, "must be one of fp32"),
        (["audit", "photos-10db", "--data", "photos", "--out", "results", "--jobs", "0"], 2, "0 is not in the range"),
        (
            ["audit", "photos-10db", "--data", "photos", "--out", "results", "--attack", "link", "--budget", "1"],
            2,
            "measure both",
        ),
        (["audit", "--data", "photos", "--out", "results"], 2, "BUNDLE"),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing(tmp_path, args, code, words):
    done = semseal(*args, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_train_export_audit_from_the_shell(tmp_path):
    done = semseal("train", "--preset", "photos-10db", "--data", "photos", "--out", "run", "--steps", "3", "--batch", "2",
                   "--precision", "32-true", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = semseal("export", "run", "--out", "bundle", "--precision", "fp32", "int8", "--engine", "tensorrt-rtx",
                   "--capability", "86", "89", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "difference from the reference" in done.stdout
    assert "SEMSEAL_OWNER=semseal-owner-v1:" in done.stdout
    written = {path.name for path in (tmp_path / "bundle").iterdir()}
    names = ("transmitter", "receiver", "transmitter-mix", "receiver-mix")
    sides = {f"{side}.{precision}.onnx" for side in names for precision in ("fp32", "int8")}
    assert written == {"manifest.json", "signature", "engines", *sides}
    assert len(list((tmp_path / "bundle" / "engines").glob("*.engine"))) == 8
    assert "largest difference" in done.stdout
    done = semseal("export", "run", "--out", "other", "--precision", "fp8", cwd=tmp_path)
    assert done.returncode == 2
    assert "fp8" in done.stderr
    done = semseal("export", "run", "--out", "other", "--capability", "86", cwd=tmp_path)
    assert done.returncode == 2
    assert not (tmp_path / "other").exists()
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["training"]["data"] == "photos"
    assert semseal("audit", "bundle", "--data", "elsewhere", "--out", "results", cwd=tmp_path).returncode == 1
