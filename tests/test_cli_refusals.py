"""Bad input of every verb: one clear error, the exit code of its kind, and nothing left behind."""

import os

import pytest
from test_cli import semseal


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["train", "--preset", "photos-11db", "--data", "photos", "--out", "run"], 2, "not one of 'paper-0db'"),
        (["train", "--preset", "photos-10db", "--data", "elsewhere", "--out", "run"], 3, "data spec must be"),
        (["train", "--preset", "photos-10db", "--data", "photos", "--out", "run", "--c", "3"], 2, "c must be even"),
        (["train", "--preset", "photos-10db", "--data", "photos", "--out", "run", "--resume"], 3, "no run to resume"),
        (["train", "--preset", "photos-0db", "--data", "photos", "--out", "run"], 2, "'photos-10db', 'edge', 'edge-quality'"),
        (["train", "--preset", "edge", "--data", "photos", "--out", "run", "--c", "50"], 2, "c must be at most 48"),
        (
            ["train", "--preset", "edge", "--data", "photos", "--out", "run", "--channel", "rician"],
            2,
            "not one of 'awgn', 'rayleigh'",
        ),
        (["train", "--preset", "edge", "--data", "photos", "--out", "run", "--seed", "-1"], 2, "seed must be 0 or above"),
        (
            ["train", "--preset", "edge", "--data", "photos", "--out", "run", "--save-every", "0"],
            2,
            "save_every must be above 0",
        ),
        (
            ["train", "--preset", "edge-quality", "--data", "photos", "--out", "run"],
            3,
            "hint: give a run of --preset edge with",
        ),
        (["train", "--preset", "edge", "--data", "photos", "--out", "run", "--init", "gone"], 3, "gone is not a run"),
        (["export", "nowhere", "--out", "bundle"], 3, "nowhere is not a run"),
        (["export", "edge"], 2, "nothing to write: give --out BUNDLE, or"),
        (["export", "nowhere", "--triton", "models"], 3, "there is no bundle nowhere"),
        (["export", "edge", "--triton", "models", "--size", "64x64"], 2, "make a bundle: give --out BUNDLE"),
        (["export", "edge", "--oms", "edge.sig", "--triton-pixels"], 2, "are for --triton DIR"),
        (["export", "edge", "--triton", "models", "--triton-engine", "tensorrt"], 3, "holds no tensorrt engine"),
        (["export", "run", "--out", "bundle", "--size", "1080"], 2, "'1080' is not HEIGHTxWIDTH, such as 1080x1920"),
        (["export", "run", "--out", "bundle", "--size", "32x24x3"], 2, "is not HEIGHTxWIDTH"),
        (["export", "run", "--out", "bundle", "--size", "-4x8"], 2, "is not HEIGHTxWIDTH"),
        (["export", "run", "--out", "bundle", "--size", "123456x8"], 2, "is not HEIGHTxWIDTH"),
        (["export", "nowhere", "--out", "bundle", "--size", "32x24"], 3, "there is no bundle nowhere"),
        (["export", "photos-10db", "--out", "bundle", "--size", "64x64"], 3, "photos-10db holds no edge network"),
        (["audit", "photos-10db", "--data", "photos", "--out", "results", "--main-snr", "5"], 3, "leave out --main-snr"),
        (["audit", "photos-10db", "--data", "photos", "--out", "results", "--main-snr", "loud"], 2, "not a valid float"),
        (["audit", "nowhere", "--data", "photos", "--out", "results"], 3, "there is no bundle nowhere"),
        (["build", "nowhere", "--out", "plans", "--engine", "tensorrt"], 3, "there is no bundle nowhere"),
        (["build", "photos-10db", "--out", "plans", "--engine", "openvino"], 2, "not one of 'tensorrt', 'tensorrt-rtx'"),
        (["build", "photos-10db", "--out", "plans", "--engine", "tensorrt", "--capability", "86"], 2, "--capability is for"),
        (["audit", "photos-10db", "--data", "photos", "--out", "results", "--pictures", "4"], 2, "at least 6"),
        (["audit", "photos-10db", "--data", "photos", "--out", "results", "--defense", "mixx"], 2, "not one of 'none'"),
        (["audit", "photos-10db", "--data", "photos", "--out", "results", "--attack", "guess"], 2, "not one of 'white-box'"),
        (["audit", "photos-10db", "--data", "photos", "--out", "results", "--precision", "fp8"], 2, "not one of 'fp32'"),
        (["audit", "photos-10db", "--data", "photos", "--out", "results", "--jobs", "0"], 2, "0 is not in the range"),
        (
            ["audit", "photos-10db", "--data", "photos", "--out", "results", "--attack", "linkability", "--budget", "1"],
            2,
            "measure both",
        ),
        (
            ["audit", "photos-10db", "--data", "photos", "--out", "results", "--engine", "cuda"],
            2,
            "not one of 'onnxruntime-cpu', 'openvino'",
        ),
        (
            ["audit", "photos-10db", "--data", "photos", "--out", "results", "--engine", "tensorrt-rtx"],
            3,
            "holds no tensorrt-rtx engine",
        ),
        (
            ["audit", "photos-10db", "--data", "photos", "--out", "results", "--channel", "rician"],
            2,
            "not one of 'awgn', 'rayleigh'",
        ),
        (
            ["audit", "photos-10db", "--data", "photos", "--out", "results", "--budget", "named=0.5"],
            2,
            "no budget is named 'named'; choose among",
        ),
        (
            ["audit", "photos-10db", "--data", "photos", "--out", "results", "--budget", "psnr=low"],
            2,
            "is not RATE or NAME=VALUE",
        ),
        (
            ["audit", "photos-10db", "--data", "photos", "--out", "results", "--budget", "psnr=nan"],
            2,
            "is not RATE or NAME=VALUE",
        ),
        (
            [
                "audit",
                "photos-10db",
                "--data",
                "photos",
                "--out",
                "results",
                "--budget",
                "0.1",
                "--budget",
                "identification=0.2",
            ],
            2,
            "given twice",
        ),
        (
            ["audit", "photos-10db", "--data", "photos", "--out", "results", "--defense", "none", "--budget", "0.1"],
            2,
            "none is measured",
        ),
        (["audit", "photos-10db", "--data", "photos", "--out", "results", "--junit", "gate.xml"], 2, "give one, such as"),
        (
            ["audit", "photos-10db", "--data", "photos", "--out", "results", "--budget", "0.1", "--junit", "gone/gate.xml"],
            2,
            "the folder gone is not there",
        ),
        (["audit", "edge", "--data", "photos", "--out", "results", "--budget", "inf"], 2, "is not RATE or NAME=VALUE"),
        (["audit", "edge", "--data", "photos", "--out", "results", "--budget", "30"], 2, "30 % is identification=0.3"),
        (["audit", "edge", "--data", "photos", "--out", "results", "--eve-snr", "nan"], 2, "nan is not a finite number"),
        (["audit", "edge", "--data", "photos", "--out", "results", "--budget", "0.1", "--junit", "/sys/j"], 3, "/sys/j"),
        (["bench", "edge", "--rate", "nan"], 2, "nan is not a finite number"),
        (["bench", "edge", "--seconds", "inf"], 2, "inf is not a finite number"),
        (["bench", "edge", "--out", "/sys/bench", "--seconds", "100000"], 3, "/sys/bench"),
        (["check", "edge", "--budget", "nan"], 2, "nan is not a finite number"),
        (["check", "edge", "--deadline-ms", "nan"], 2, "nan is not a finite number"),
        (["check", "nowhere"], 3, "there is no bundle nowhere"),
        (["keys", "rotate", "gone.key", "--overlap", "nan"], 2, "nan is not a finite number"),
        (["train", "--preset", "edge", "--data", "photos", "--out", "run", "--lr", "nan"], 2, "nan is not a finite number"),
        (["audit", "edge", "edge", "--data", "photos", "--out", "results"], 3, "is given twice"),
        (["audit", "--data", "photos", "--out", "results"], 2, "BUNDLE"),
        (["audit", "edge", "--data", "photos", "--out", "results", "--sent", "x"], 2, "--sent goes with --recording"),
        (["audit", "edge", "--data", "photos", "--out", "results", "--estimation", "ls"], 2, "go with --channel or --eve-ch"),
        (["audit", "edge", "--data", "photos", "--out", "r", "--channel", "tdl-c", "--delay-spread", "0"], 2, "0.0 is not in"),
        (["audit", "edge", "--data", "photos", "--out", "r", "--channel", "tdl-c", "--delay-spread", "300"], 3, "at most 270"),
        (["audit", "edge", "--data", "photos", "--out", "r", "--channel", "tdl-f"], 2, "'tdl-f' is not one of"),
        (
            ["audit", "edge", "--data", "photos", "--out", "r", "--recording", "x", "--eve-antennas", "4"],
            2,
            "--eve-antennas: not",
        ),
        (["audit", "edge", "--data", "photos", "--out", "results", "--recording", "gone"], 3, "no recording gone.sigmf-meta"),
        (["audit", "edge", "photos-10db", "--data", "photos", "--out", "results", "--recording", "x"], 2, "one with --rec"),
        (
            ["audit", "edge", "--data", "photos", "--out", "results", "--recording", "x", "--budget", "0.1", "--jobs", "2"],
            2,
            "--budget, --jobs: not with --recording",
        ),
        (
            ["audit", "edge", "--data", "photos", "--out", "results", "--recording", "x", "--attack", "linkability"],
            2,
            "linkability takes more than a recording",
        ),
        (["audit", "edge", "--data", "photos", "--out", "r", "--main-snr", "1e10"], 2, "not in the range -100.0<=x<=100.0"),
        (["audit", "edge", "--data", "photos", "--out", "r", "--eve-snr", "-1e300"], 2, "not in the range -100.0<=x<=100.0"),
        (["audit", "edge", "--data", "photos", "--out", "r", "--seed", "-1"], 2, "-1 is not in the range"),
        (["audit", "edge", "--data", "photos", "--out", "r", "--seed", str(2**63)], 2, "is not in the range"),
        (["audit", "edge", "--data", "photos", "--out", "r", "--cluster", "ray://head:65536"], 2, "is neither local nor ray:"),
        (["audit", "edge", "--data", "photos", "--out", "r", "--pictures", "100000000"], 3, "hint: ask for less at once"),
        (
            ["audit", "edge", "--data", "photos", "--out", "r", "--quick", "--attacker-pictures", "100000000"],
            3,
            "100000000 pict",
        ),
        (["audit", "edge", "--data", "photos", "--out", "r", "--attack", "attributes"], 3, "hint: give --data folder:FOLDER"),
        (["audit", "edge", "--data", "photos", "--out", "r", "--channel", "tdl-c", "--speed", "1e300"], 3, "at most 864 km/h"),
        (["pack", "--transmitter", __file__, "--receiver", __file__, "--out", "b", "--snr", "1e10"], 2, "not in the range"),
        (["export", "edge", "--out", "b", "--size", "99996x99996"], 3, "hint: choose another --size"),
        (["export", "edge", "--out", "b", "--size", "64x64", "--calibration", "folder:gone"], 3, "gone is not a folder"),
        (["train", "--preset", "edge", "--data", "photos", "--out", "run", "--seed", str(2**63)], 2, "seed must be at most"),
        (["train", "--preset", "photos-10db", "--data", "photos", "--out", "run", "--c", "100000"], 2, "mix takes up to"),
        (
            ["train", "--preset", "photos-10db", "--data", "photos", "--out", "run", "--devices", "0"],
            2,
            "0 is not in the range",
        ),
        (
            ["train", "--preset", "photos-10db", "--data", "photos", "--out", "run", "--devices", "7777"],
            3,
            "7777 devices cannot",
        ),
        (["train", "--preset", "photos-10db", "--data", "photos", "--out", "/dev/null/run"], 3, "hint: a part of this name is"),
        (["train", "--preset", "photos-10db", "--data", "photos", "--out", "run", "--steps", "0"], 2, "steps must be above 0"),
        (["train", "--preset", "photos-10db", "--data", "folder:gone", "--out", "run"], 3, "hint: check the name"),
        (["export", "run", "--out", "bundle", "--capability", "86"], 2, "--capability is for"),
        (["audit", "edge", "--data", "photos", "--out", "r", "--jobs", "9" * 20], 2, "is not in the range"),
        (["check", ""], 2, "the name is empty"),
        (["check", "edge", "--folder", ""], 2, "the name is empty"),
        (["audit", "edge", "", "--data", "photos", "--out", "r"], 2, "the name is empty"),
        (["demo", "--out", ""], 2, "the name is empty"),
        (["export", "edge", "--out", "", "--size", "64x64", "--force"], 2, "the name is empty"),
        (["send", "edge", "", "--keys", "k", "--to", "127.0.0.1:7000"], 2, "the name is empty"),
        (["bench", "edge", "--against", ""], 2, "the name is empty"),
        (["bench", "edge", "--threads", "100000"], 2, "100000 is not in the range"),
        (["check", "edge", "--out", "gone/report"], 3, "No such file or directory: gone/report"),
        (["export", "edge", "--size", "64x64", "--out", "b", "--oms", "b/sig"], 3, "b/sig lies in the bundle"),
        (["export", "edge", "--size", "64x64", "--out", "b", "--oms", "gone/sig"], 3, "No such file or directory: gone/sig"),
        (["export", "edge", "--size", "64x64", "--out", "b", "--triton", "b/models"], 3, "b/models lies in the bundle"),
        (["export", "edge", "--size", "64x64", "--out", "b", "--triton", "/dev/null/m"], 3, "Not a directory: /dev/null/m"),
        (
            ["export", "edge", "--size", "64x64", "--out", "b", "--triton", "m", "--triton-engine", "tensorrt"],
            2,
            "give --engine",
        ),
        (["check", "no such"], 3, "semseal export RUN --out 'no such', or"),
        (["check", "edge", "--keys", "no such"], 3, "hint: make one: semseal keygen 'no such'"),
        (["keygen", "/dev/null/k"], 3, "Not a directory: /dev/null/k"),
        (["keygen", "no such/k"], 3, "no such'\n"),
        (["export", "edge", "--oms", "gone/edge.sig"], 3, "No such file or directory: gone/edge.sig"),
        (["demo", "--out", "/dev/null/demo"], 3, "hint: a part of this name is a file"),
        (["audit", "edge", "--data", "photos", "--out", "/dev/null/r", "--paper"], 3, "Not a directory: /dev/null/r"),
        (["audit", "edge", "--data", "folder:gone", "--out", "r", "--paper"], 3, "gone is not a folder"),
        (["export", "--out", "bundle", "--precision", "fp32", "int8", "run"], 2, "unexpected extra argument"),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing(tmp_path, args, code, words):
    done = semseal(*args, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "cells, about" not in done.stdout  # no estimate of what is refused
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", [("check", "edge", "--out", "pipe"), ("export", "edge", "--oms", "pipe")])
def test_nothing_takes_the_place_of_a_pipe(tmp_path, args):
    os.mkfifo(tmp_path / "pipe")
    done = semseal(*args, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert done.stderr == "error: A device, pipe or socket has this name: pipe\nhint: choose another name\n"
    assert [(entry.name, entry.is_fifo()) for entry in tmp_path.iterdir()] == [("pipe", True)]
