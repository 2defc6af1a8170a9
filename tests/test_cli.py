import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from importlib.util import find_spec

import programs
import pytest
from PIL import Image
from semseal.runtime.bundle import open_bundle
from semseal.runtime.defense.defenses import BY_NAME

PROGRAM = "from semseal.runtime.cli import main; main()"


def semseal(*args, cwd=None, before=""):
    """The program's end; ``before`` is run first in its process, which then has imported nothing else."""
    if not before:
        return programs.semseal(*args, cwd=cwd)
    command = [sys.executable, "-c", before + PROGRAM, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, stdin=subprocess.DEVNULL)


VERBS = ("audit", "bench", "build", "check", "demo", "doctor", "export", "keygen", "keys", "pack", "train")


def test_help_lists_the_verbs():
    done = semseal("--help")
    assert done.returncode == 0
    for verb in VERBS:
        assert verb in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_ends_with_an_example(verb):
    done = semseal(verb, "--help")
    assert done.returncode == 0
    *_, last = done.stdout.rstrip().split("\n\n")
    assert last.startswith(f"  Example:\n    semseal {verb}")


def test_help_lists_what_can_be_chosen():
    shown = semseal("audit", "--help").stdout
    assert f"[{'|'.join(BY_NAME)}]" in shown
    assert "[white-box|black-box|" in shown
    assert "[fp32|fp16|int8]" in shown
    shown = semseal("train", "--help").stdout
    assert "[paper-0db|paper-10db|paper-20db|photos-10db|edge|edge-quality|edge-int8|edge-quality-int8]" in shown
    assert "--save-every" in shown
    assert "--seed" in shown
    assert "[tensorrt|tensorrt-rtx]" in semseal("export", "--help").stdout


def test_help_and_keygen_need_no_library_of_an_extra(tmp_path):
    heavy = (
        "torch",
        "onnx",
        "onnxruntime",
        "scipy",
        "sklearn",
        "skimage",
        "jinja2",
        "joblib",
        "matplotlib",
        "lightning_fabric",
    )
    without = f"import sys; sys.modules.update(dict.fromkeys({heavy})); "
    for args in (["--help"], ["train", "--help"], ["export", "--help"], ["build", "--help"], ["keygen", tmp_path / "key"]):
        assert semseal(*args, before=without).returncode == 0


def test_keygen(tmp_path):
    done = semseal("keygen", tmp_path / "key")
    assert done.returncode == 0
    assert stat.S_IMODE(os.stat(tmp_path / "key").st_mode) == 0o600
    [key] = json.loads((tmp_path / "key").read_text())["keys"]
    assert key["secret"] not in done.stdout + done.stderr
    again = semseal("keygen", tmp_path / "key")
    assert again.returncode == 3
    error, hint = again.stderr.splitlines()
    assert error == f"error: {tmp_path / 'key'} exists already, and a key is never overwritten"
    assert hint == "hint: choose another name"


def test_train_export_audit_from_the_shell(small_run, tmp_path):
    """What takes long for pictures of the preset's size is exported of a small run."""
    done = semseal("train", "--preset", "photos-10db", "--data", "photos", "--out", "run", "--steps", "3", "--batch", "2",
                   "--precision", "32-true", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = semseal("export", small_run, "--out", "bundle", "--precision", "fp32", "--precision", "int8",
                   "--engine", "tensorrt-rtx", "--capability", "86", "--capability", "89", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "difference from the reference" in done.stdout
    assert "SEMSEAL_OWNER=semseal-owner-v1:" in done.stdout
    written = {path.name for path in (tmp_path / "bundle").iterdir()}
    names = ("transmitter", "receiver")  # those that mix are made when they are opened
    sides = {f"{side}.{precision}.onnx" for side in names for precision in ("fp32", "int8")}
    assert written == {"manifest.json", "signature", "engines", *sides}
    assert len(list((tmp_path / "bundle" / "engines").glob("*.engine"))) == 16
    assert "largest difference" in done.stdout
    done = semseal("export", "run", "--out", "other", "--precision", "fp8", cwd=tmp_path)
    assert done.returncode == 2
    assert "fp8" in done.stderr
    done = semseal("export", "run", "--out", "other", "--capability", "86", cwd=tmp_path)
    assert done.returncode == 2
    assert not (tmp_path / "other").exists()
    made = (tmp_path / "bundle" / "manifest.json").read_bytes()
    done = semseal("export", "run", "--out", "bundle", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        "error: bundle holds a bundle already", "hint: choose another --out, or replace it, whole, with --force"
    ]  # fmt: skip
    assert (tmp_path / "bundle" / "manifest.json").read_bytes() == made
    done = semseal("export", "run", "--out", "bundle", "--precision", "fp32", "--force", "--triton", "models",
                   "--oms", "bundle.sig", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    models = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert models == ["bundle-receiver-mix-fp32", "bundle-transmitter-mix-fp32"]
    assert (tmp_path / "bundle.sig").exists()
    assert done.stdout.splitlines()[-1].startswith("signed; model_signing verify key bundle --signature bundle.sig")
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {
        "manifest.json", "signature", *(f"{side}.fp32.onnx" for side in names)
    }  # fmt: skip
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["training"]["data"] == "photos"
    assert manifest["training"]["steps"] == 3
    assert semseal("audit", "bundle", "--data", "elsewhere", "--out", "results", cwd=tmp_path).returncode == 3


def test_ctrl_c_says_which_checkpoint_was_written(tmp_path):
    options = ("train", "--preset", "edge", "--data", "photos", "--out", "run", "--c", "8", "--batch", "2", "--steps", "2000",
               "--seed", "3", "--save-every", "1000")  # fmt: skip

    def as_in_a_terminal() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it, and so would its child

    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *options], cwd=tmp_path, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True, preexec_fn=as_in_a_terminal)  # fmt: skip
    log = tmp_path / "run" / "log.jsonl"
    while not (log.exists() and log.read_bytes()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    *_, written, last = filter(None, error.splitlines())
    assert re.fullmatch(r"the checkpoint of step \d+ is written; continue with --resume", written)
    assert last == "interrupted; nothing is half written"
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["model"]["network"], config["model"]["c"], config["crop"]) == ("edge", 8, 96)
    assert (config["seed"], config["save_every"]) == (3, 1000)
    assert (tmp_path / "run" / "resume.ckpt").exists()


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_build_adds_the_plans_of_every_graph_and_needs_neither_torch_nor_onnx(small_bundle, tmp_path):
    args = ("build", small_bundle, "--out", "plans", "--engine", "tensorrt-rtx", "--capability")
    without = "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'onnxruntime', 'openvino', 'scipy'))); "
    refused = semseal(*args, "90", cwd=tmp_path, before=without)
    assert refused.returncode == 3
    assert "hint: choose among 75, " in refused.stderr
    assert list(tmp_path.iterdir()) == []
    done = semseal(*args, "86", "--capability", "120", cwd=tmp_path, before=without)
    assert done.returncode == 0, done.stderr
    made = open_bundle(tmp_path / "plans")
    *plans, last = done.stdout.splitlines()
    assert sorted(plans) == sorted(
        f"{name}: {entry['size'] / 1e6:.2f} MB" for name, entry in made.manifest["files"].items() if name.endswith(".engine")
    )
    assert len(plans) == 2 * 2 * 2 * 3  # sides, with and without mix, pictures as floats and as bytes, precisions
    assert last.startswith("signed; on another machine first: export SEMSEAL_OWNER=semseal-owner-v1:")
    again = semseal(*args, "86", cwd=tmp_path, before=without + "sys.modules['tensorrt_rtx'] = None; ")
    assert again.returncode == 3
    assert "error: plans holds a bundle already" in again.stderr  # before anything is built
    assert open_bundle(tmp_path / "plans").manifest == made.manifest


def test_a_budget_that_is_exceeded_is_a_finding(small_bundle, tmp_path):
    args = ("audit", small_bundle, "--data", "photos", "--out", "results", "--quick", "--pictures", "6",
            "--attack", "identification", "--defense", "permute", "--budget")  # fmt: skip
    over = semseal(*args, "0.01", cwd=tmp_path)
    assert over.returncode == 1, over.stderr
    error, hint = over.stderr.splitlines()[-2:]
    assert error.startswith("error: over the leakage budget: Eve's rate in naming the picture may be as high as 1.0000")
    assert hint.startswith("hint: choose a defence that holds")
    assert "gate: fail: identification 1.0000 > 0.01 (identification, permutation, small on onnxruntime-cpu fp32" in over.stdout
    within = semseal(*args, "1", "--junit", "gate.xml", cwd=tmp_path)
    assert within.returncode == 0, within.stderr
    assert within.stdout.splitlines()[-1].startswith("gate: pass: identification 1.0000 <= 1 (")
    assert '<testsuites name="semseal audit" tests="1" failures="0" errors="0">' in (tmp_path / "gate.xml").read_text()
    (gate,) = json.loads((tmp_path / "results" / "results.json").read_text())["gate"]
    assert (gate["name"], gate["bound"], gate["figure"], gate["passed"]) == ("identification", 1, 1, True)
    assert "gate: pass: identification" in (tmp_path / "results" / "report.html").read_text()


def test_doctor_prints_what_it_found_as_json():
    done = semseal("doctor", "--json")
    findings = json.loads(done.stdout)
    assert {"software", "device", "engine", "builder"} == {finding["group"] for finding in findings}
    states = {finding["name"]: finding["state"] for finding in findings if finding["group"] == "engine"}
    assert states["onnxruntime-cpu"] == "ok"
    assert done.returncode == 0


def test_doctor_exits_with_1_where_no_engine_works():
    missing = "; ".join(f"doctor.MODULES[{name!r}] = 'no_such_library'" for name in ("onnxruntime-cpu", "openvino"))
    done = semseal("doctor", before=f"from semseal.runtime import doctor; {missing}; ")
    assert done.returncode == 1, done.stdout
    assert "no engine works here" in done.stdout


def test_a_missing_package_is_named_with_what_brings_it(tmp_path):
    args = ("train", "--preset", "photos-10db", "--data", "photos", "--out", "run")
    done = semseal(*args, cwd=tmp_path, before="import sys; sys.modules['lightning_fabric'] = None; ")
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        "error: this command needs the package lightning_fabric", "hint: in the source folder, pip install '.[cpu,train]'"
    ]  # fmt: skip


@pytest.mark.parametrize(("verb", "extra"), [("demo", "cpu,audit"), ("audit", "cpu,audit")])
def test_a_verb_names_the_extra_that_it_needs_and_no_more(tmp_path, verb, extra):
    """Where only the extra cpu is installed."""
    missing = ("torch", "onnx", "scipy", "skimage", "sklearn", "jinja2", "joblib", "matplotlib")
    args = (verb, "edge", "--data", "photos", "--out", "results") if verb == "audit" else (verb,)
    done = semseal(*args, cwd=tmp_path, before=f"import sys; sys.modules.update(dict.fromkeys({missing!r})); ")
    assert done.returncode == 3
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: this command needs the package ")
    assert hint == f"hint: in the source folder, pip install '.[{extra}]'"


@pytest.mark.parametrize(
    ("bug", "name"),
    [
        ("sys.modules['semseal.runtime.defense.keys'] = None", "ModuleNotFoundError"),
        ("sys.modules['cryptography'] = None", "ModuleNotFoundError"),
        ("import semseal.runtime.defense.keys as m; m.generate_key = lambda: b''[1]", "IndexError"),
        ("import semseal.runtime.defense.keys as m; m.generate_key = lambda: int('x')", "ValueError"),
        ("import semseal.runtime.defense.keys as m; m.generate_key = lambda: next(iter(()))", "StopIteration"),
        ("import semseal.runtime.defense.keys as m; m.generate_key = lambda: exec('raise EOFError')", "EOFError"),
        ("import semseal.runtime.defense.keys as m; m.generate_key = lambda: os.read(99, 1)", "OSError: [Errno 9]"),
    ],
)
def test_a_bug_shows_as_a_bug(tmp_path, bug, name):
    done = semseal("keygen", tmp_path / "key", before=f"import os, sys; {bug}; ")
    assert done.returncode == 1
    assert done.stderr.lstrip().startswith("Traceback")
    assert done.stderr.splitlines()[-1].startswith(name)


def test_a_place_where_nobody_can_write_is_named():
    done = semseal("keygen", "/sys/alice.key")
    assert done.returncode == 3
    error, hint = done.stderr.splitlines()
    assert error in ("error: Permission denied: /sys/alice.key", "error: Read-only file system: /sys/alice.key")
    assert hint.startswith("hint: choose a")


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / "disk").mkdir()
    script = """
mount -t tmpfs -o size=16k,mode=755 tmpfs disk || exit 77
head -c 20000 /dev/zero > disk/full 2> /dev/null
"$@"
code=$?
ls -A disk
exit $code
"""
    command = ["unshare", "-rm", "sh", "-c", script, "sh", sys.executable, "-c", PROGRAM, "keygen", "disk/alice.key"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines() == [
        "error: No space left on device: disk/alice.key", "hint: free some space there, or choose another folder"
    ]  # fmt: skip
    assert done.stdout.split() == ["full"]


def test_an_interrupt_exits_with_130_and_leaves_nothing(tmp_path):
    os.mkfifo(tmp_path / "owner.key", 0o600)
    command = [sys.executable, "-c", PROGRAM, "export", "run", "--out", "bundle", "--sign", "owner.key"]

    def as_in_a_terminal() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it, and so would its child

    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=as_in_a_terminal)
    with open(tmp_path / "owner.key", "w"):  # returns when the program reads its key: it is in the middle of its work
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in error
    assert error.splitlines()[-1] == "interrupted; nothing is half written"
    assert [path.name for path in tmp_path.iterdir()] == ["owner.key"]


def test_names_are_printed_as_they_are(tmp_path):
    for name, printed in (
        ("k[prod].key", "k[prod].key"),
        (b"caf\xe9.key", "caf\\xe9.key"),
        ("a\n[bold].key", "a\\n[bold].key"),
    ):
        file = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
        done = subprocess.run([sys.executable, "-c", PROGRAM, "keygen", file], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{tmp_path}/{printed}: new key, mode 0600")
        assert os.path.exists(file)


def test_home_in_options_and_few_pictures(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    command = ["audit", "edge", "--data", "folder:~/pictures", "--out=~/out", "--quick"]
    monkeypatch.setenv("HOME", str(tmp_path))
    done = semseal(*command, cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith(f"error: {tmp_path}/pictures holds no pictures\nhint: ")
    for i in range(9):
        Image.new("RGB", (20, 20), (20 * i, 0, 0)).save(tmp_path / "pictures" / f"{i}.png")
    done = semseal(*command, cwd=tmp_path)
    assert done.returncode == 3
    assert "an audit needs 6 pictures to measure on and 40 for Eve, and there are 2 and 7" in done.stderr
    assert "hint: give a folder of at least 50 pictures" in done.stderr
    (tmp_path / "out").write_text("a file")  # ~ in --out=~/out is the home folder: the name is taken there
    done = semseal(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert f"'{tmp_path}/out' is a file" in done.stderr
    (tmp_path / "out").unlink()
    done = semseal(*command, "--attacker-pictures", 39, cwd=tmp_path)
    assert done.returncode == 2
    assert "--attacker-pictures must be at least 40, got 39" in done.stderr
