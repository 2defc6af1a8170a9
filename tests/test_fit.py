import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from semseal.runtime.defense.mix import MAX_REALS
from semseal.runtime.errors import PictureError, TrainingError
from semseal.train.config import MAX_FEATURES, PRESETS, ModelConfig, TrainConfig
from semseal.train.fit import last_row, load_run, train

TINY = TrainConfig(model=ModelConfig(height=16, width=16, c=2), batch=4, steps=30, warmup=4, save_every=10)
EDGE = TrainConfig(
    model=ModelConfig(height=16, width=16, c=4, network="edge"),
    snr_span_db=10.0,
    batch=4,
    crop=16,
    ema=0.99,
    steps=100,
    warmup=4,
    save_every=40,
    precision="bf16-mixed",
)
CONFIGS = {
    "awgn": dataclasses.replace(TINY, steps=100, ema=0.9),
    "rayleigh": dataclasses.replace(TINY, channel="rayleigh", steps=100),
    "multipath": dataclasses.replace(TINY, channel="multipath", steps=100),
    "edge": EDGE,
    "tdl-c": dataclasses.replace(TINY, channel="tdl-c", steps=40),
    "edge over tdl-c": dataclasses.replace(EDGE, channel="tdl-c", steps=40, save_every=20),
}


def losses(run):
    return {row["step"]: row["loss"] for row in map(json.loads, (run / "log.jsonl").read_text().splitlines())}


def weights(run):
    return (run / "weights.safetensors").read_bytes()


def until_interrupted(config, run, data="photos") -> int:
    """Train until the log has begun, as somebody does who then presses Ctrl-C; the step that is said to be written."""
    done = threading.Event()

    def press():
        while not done.is_set() and not ((run / "log.jsonl").exists() and (run / "log.jsonl").read_bytes()):
            time.sleep(0.002)
        if not done.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    somebody = threading.Thread(target=press)
    somebody.start()
    try:
        with pytest.raises(KeyboardInterrupt) as stopped:
            train(config, data, run)
    finally:
        done.set()
        somebody.join()
        assert signal.signal(signal.SIGINT, before) is signal.default_int_handler  # as it was found
    return int(re.fullmatch(r"the checkpoint of step (\d+) is written", str(stopped.value))[1])


def test_training_learns_and_writes_a_whole_run(small_run):
    rows = map(json.loads, (small_run / "log.jsonl").read_text().splitlines())
    valid = [row["valid_psnr"]["10"] for row in rows if "valid_psnr" in row]
    assert len(valid) == 4
    assert valid[-1] > valid[0] + 1
    assert sorted(path.name for path in small_run.iterdir()) == ["config.json", "log.jsonl", "weights.safetensors"]
    assert load_run(small_run).config == TrainConfig.read(small_run).model


@pytest.mark.parametrize("name", CONFIGS)
def test_ctrl_c_writes_a_checkpoint_and_resume_continues_exactly(tmp_path, name):
    config = CONFIGS[name]
    train(config, "photos", tmp_path / "whole")
    broken = tmp_path / "broken"
    step = until_interrupted(config, broken)
    assert 10 <= step < config.steps
    assert (broken / "resume.ckpt").exists()
    with pytest.raises(TrainingError, match="--resume"):
        train(config, "photos", broken)
    train(config, "photos", broken, resume=True)
    assert losses(broken) == losses(tmp_path / "whole")
    assert weights(broken) == weights(tmp_path / "whole")
    assert sorted(path.name for path in broken.iterdir()) == ["config.json", "log.jsonl", "weights.safetensors"]


def test_a_run_in_the_background_goes_on_ignoring_ctrl_c(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        train(TINY, "photos", tmp_path / "run")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_pictures_stay_decoded_until_the_run_is_finished(tmp_path):
    pictures = [tmp_path / "pictures" / split / f"{i}.png" for split in ("train", "valid") for i in range(3)]
    for seed, picture in enumerate(pictures):
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)).save(picture)
    run, data = tmp_path / "run", f"folder:{tmp_path / 'pictures'}"
    until_interrupted(EDGE, run, data)
    for picture in pictures[:3]:  # of the training split
        picture.write_bytes(b"no picture")
    train(EDGE, data, run, resume=True)
    assert last_row(run)["step"] == EDGE.steps
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "log.jsonl", "weights.safetensors"]


def test_every_checkpoint_is_validated(tmp_path):
    train(dataclasses.replace(TINY, save_every=7), "photos", tmp_path / "run")
    rows = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert {row["step"]: "valid_psnr" in row for row in rows} == {
        7: True, 10: False, 14: True, 20: False, 21: True, 28: True, 30: True
    }  # fmt: skip


def test_the_run_is_left_with_the_average(tmp_path):
    """With a decay of nearly 1 the average lags behind; it is what is saved, validated, and started from."""
    config = dataclasses.replace(EDGE, steps=40, ema=0.999, lr=1e-2)
    train(config, "photos", tmp_path / "averaged")
    train(dataclasses.replace(config, ema=0.0), "photos", tmp_path / "last")
    one, two = (load_run(tmp_path / name).state_dict() for name in ("averaged", "last"))
    far = [name for name in one if not torch.allclose(one[name], two[name], atol=1e-5)]
    assert "decoder.last.weight" in far
    assert last_row(tmp_path / "averaged")["valid_psnr"].keys() == {"0", "10", "20"}
    assert last_row(tmp_path / "averaged")["loss"] == last_row(tmp_path / "last")["loss"]  # the average learns nothing itself


def test_edge_quality_keeps_the_transmitter_bit_for_bit(tmp_path):
    train(EDGE, "photos", tmp_path / "edge")
    model = dataclasses.replace(EDGE.model, receiver_blocks=3)
    config = dataclasses.replace(EDGE, model=model, freeze_transmitter=True, steps=12, save_every=1)
    with pytest.raises(TrainingError, match=r"needs one to start from\nhint: give a run of --preset edge with --init RUN"):
        train(config, "photos", tmp_path / "quality")
    train(config, "photos", tmp_path / "quality", init=tmp_path / "edge")
    before, after = (load_file(tmp_path / name / "weights.safetensors") for name in ("edge", "quality"))
    kept = [name for name in after if not name.startswith("decoder.")]
    assert len(kept) > 10
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    first, *_ = map(json.loads, (tmp_path / "quality" / "log.jsonl").read_text().splitlines())
    # one small step away from where it started
    for snr, psnr in last_row(tmp_path / "edge")["valid_psnr"].items():
        assert first["valid_psnr"][snr] > psnr - 0.1
    other = dataclasses.replace(config, model=dataclasses.replace(model, c=8))
    with pytest.raises(TrainingError, match=r"another transmitter \(c = 4\)"):
        train(other, "photos", tmp_path / "wider", init=tmp_path / "edge")
    assert not (tmp_path / "wider").exists()


def test_init_of_another_network_is_refused(small_run, tmp_path):
    with pytest.raises(TrainingError, match="is a run of the paper network, and this one is of the edge network"):
        train(EDGE, "photos", tmp_path / "run", init=small_run)
    assert not (tmp_path / "run").exists()


def test_an_edge_run_with_another_c_is_not_worse_than_its_linear_code(tmp_path):
    train(EDGE, "photos", tmp_path / "edge")
    config = dataclasses.replace(EDGE, model=dataclasses.replace(EDGE.model, c=8), steps=1, lr=1e-9)
    train(config, "photos", tmp_path / "linear")
    train(config, "photos", tmp_path / "wider", init=tmp_path / "edge")
    one, two = (last_row(tmp_path / name)["valid_psnr"] for name in ("linear", "wider"))
    assert two == pytest.approx(one, abs=1e-3)


def test_resume_wants_the_same_settings(small_run, tmp_path):
    with pytest.raises(TrainingError, match="is complete"):
        train(TrainConfig.read(small_run), "photos", small_run, resume=True)
    with pytest.raises(TrainingError, match=r"lr was 0.001, now 1.0"):
        train(dataclasses.replace(TrainConfig.read(small_run), lr=1.0), "photos", small_run, resume=True)
    with pytest.raises(TrainingError, match="no run to resume"):
        train(TINY, "photos", tmp_path / "none", resume=True)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(TrainingError, match="neither an empty folder nor a run"):
        train(TINY, "photos", tmp_path)


def test_damaged_and_missing_weights_are_named(small_run, tmp_path):
    damaged = shutil.copytree(small_run, tmp_path / "damaged")
    (damaged / "weights.safetensors").write_bytes((damaged / "weights.safetensors").read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"weights.safetensors is damaged"):
        load_run(damaged)
    with pytest.raises(TrainingError, match="is not a run"):
        train(TINY, "photos", tmp_path / "new", init=tmp_path / "none")
    assert not (tmp_path / "new").exists()


def test_weights_and_log_of_another_run_are_named(small_run, tmp_path):
    mixed = shutil.copytree(small_run, tmp_path / "mixed")
    (mixed / "config.json").write_text(TrainConfig(model=ModelConfig(height=32, width=24, c=8)).to_json())
    with pytest.raises(TrainingError, match=r"weights.safetensors does not fit the model: .*channel_encoder"):
        load_run(mixed)
    for text, reason in (("", "log.jsonl is empty"), ('{"step": 10}\n{"st', "log.jsonl:2 is damaged"), ("[]\n", "log.jsonl:1")):
        (mixed / "log.jsonl").write_text(text)
        with pytest.raises(TrainingError, match=reason):
            last_row(mixed)


def test_a_damaged_checkpoint_is_named(tmp_path):
    config = dataclasses.replace(TINY, steps=100)
    until_interrupted(config, tmp_path / "run")
    checkpoint = tmp_path / "run" / "resume.ckpt"
    whole = checkpoint.read_bytes()
    for data in (b"", whole[:1000], b"no checkpoint"):
        checkpoint.write_bytes(data)
        with pytest.raises(TrainingError, match=r"resume.ckpt is damaged") as raised:
            train(config, "photos", tmp_path / "run", resume=True)
        assert f"--init {tmp_path / 'run'}" in raised.value.hint
    checkpoint.write_bytes(whole)
    older = torch.load(checkpoint)
    del older["averaged"]
    torch.save(older, checkpoint)
    with pytest.raises(TrainingError, match=r"is of another version of semseal: it has no 'averaged'"):
        train(config, "photos", tmp_path / "run", resume=True)
    checkpoint.write_bytes(whole)
    train(config, "photos", tmp_path / "run", resume=True)


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(tmp_path, monkeypatch):
    from semseal.train import step

    real, calls = step.transmit, []

    def poisoned(symbols, config, generator):
        calls.append(1)
        received = real(symbols, config, generator)
        if len(calls) == 10:  # the step of a checkpoint
            received.register_hook(lambda gradient: gradient * float("nan"))
        return received

    monkeypatch.setattr(step, "transmit", poisoned)
    with pytest.raises(TrainingError, match="gradient's norm nan at step 10"):
        train(TINY, "photos", tmp_path / "run")
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    from semseal.train import step

    real = step.transmit
    calls = []

    def poisoned(symbols, config, generator):
        calls.append(1)
        return real(symbols, config, generator) * (float("nan") if len(calls) == 14 else 1)

    monkeypatch.setattr(step, "transmit", poisoned)
    with pytest.raises(TrainingError, match=r"loss is nan .* at step 13\nhint: use a smaller --lr"):
        train(TINY, "photos", tmp_path / "run")
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    with pytest.raises(TrainingError, match="is not finished"):
        load_run(tmp_path / "run")
    assert max(losses(tmp_path / "run")) == 10


def test_a_training_that_fails_before_its_first_checkpoint_leaves_no_run_folder(tmp_path, monkeypatch):
    from semseal.train import step

    monkeypatch.setattr(step, "transmit", lambda symbols, config, generator: symbols * float("nan"))
    with pytest.raises(TrainingError, match=r"loss is nan .* at step 1\nhint: use a smaller --lr than 0\.001$"):
        train(TINY, "photos", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_speed_is_shown_from_the_first_step(tmp_path, monkeypatch):
    from semseal.train import fit

    shown = []
    real = fit._shown
    monkeypatch.setattr(fit, "_shown", lambda *args: (shown.append(real(*args)), shown[-1])[1])
    train(dataclasses.replace(TINY, steps=3), "photos", tmp_path / "run")
    assert len(shown) == 3
    for text in shown:
        assert float(re.search(r"([\d.e+]+) pictures/s", text)[1]) > 0


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def two_processes(script, *args, **options):
    script.write_text(
        "import dataclasses, os, sys\n"
        "from pathlib import Path\n"
        "import torch\n"
        "from safetensors.torch import save_file\n"
        "from semseal.train import fit\n"
        "from semseal.train.config import ModelConfig, TrainConfig\n"
        f"config = {EDGE!r}\n"
        "real = fit._save\n"
        "def save_each(training, out, step):\n"
        "    name = f'{out}-{os.environ[\"RANK\"]}'\n"
        "    save_file({n: t.contiguous() for n, t in training.model.state_dict().items()}, name)\n"
        "    Path(name + '.step').write_text(str(step))\n"
        "    real(training, out, step)\n"
        "fit._save = save_each\n"
        "run, init, steps = sys.argv[1:4]\n"
        "if init:\n"
        "    model = dataclasses.replace(config.model, receiver_blocks=2)\n"
        "    config = dataclasses.replace(config, model=model, freeze_transmitter=True)\n"
        "config = dataclasses.replace(config, steps=int(steps))\n"
        "fit.train(config, 'photos', Path(run), init=Path(init) if init else None, resume='--resume' in sys.argv)\n"
    )

    def as_in_a_terminal() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it, and so would its child

    return subprocess.Popen(
        [*TORCHRUN, str(script), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=as_in_a_terminal,
    )


def same_in_both_processes(run) -> bool:
    one, two = (load_file(f"{run}-{rank}") for rank in (0, 1))
    steps = {run.with_name(f"{run.name}-{rank}.step").read_text() for rank in (0, 1)}
    return len(steps) == 1 and all(torch.equal(one[name], two[name]) for name in one)


def test_two_processes_train_one_model(tmp_path):
    train(EDGE, "photos", tmp_path / "edge")
    process = two_processes(tmp_path / "two.py", tmp_path / "run", tmp_path / "edge", 12)
    shown, _ = process.communicate(timeout=240)
    assert process.returncode == 0, shown[-3000:]
    assert sorted(losses(tmp_path / "run")) == [10, 12]
    assert same_in_both_processes(tmp_path / "run")  # each saw other pictures, so gradients were shared
    assert TrainConfig.read(tmp_path / "run").devices == 2
    before, after = (load_file(tmp_path / name / "weights.safetensors") for name in ("edge", "run"))
    assert all(torch.equal(before[name], after[name]) for name in after if not name.startswith("decoder."))


def test_two_processes_stop_at_the_same_step_and_go_on(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = two_processes(tmp_path / "two.py", whole, "", 150)
    shown, _ = process.communicate(timeout=240)
    assert process.returncode == 0, shown[-3000:]
    process = two_processes(tmp_path / "two.py", broken, "", 150)
    deadline = time.monotonic() + 120
    while not ((broken / "log.jsonl").exists() and (broken / "log.jsonl").read_bytes()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=120)
    assert "is written" in shown
    assert same_in_both_processes(broken)
    assert 10 <= int((tmp_path / "broken-0.step").read_text()) < 150
    process = two_processes(tmp_path / "two.py", broken, "", 150, "--resume")
    shown, _ = process.communicate(timeout=240)
    assert process.returncode == 0, shown[-3000:]
    assert losses(broken) == losses(whole)
    assert weights(broken) == weights(whole)


def test_init_starts_from_another_runs_weights(small_run, tmp_path):
    config = dataclasses.replace(TrainConfig.read(small_run), steps=10, lr=1e-9, snr_db=0.0)
    train(config, "photos", tmp_path / "next", init=small_run)
    before, after = load_run(small_run).state_dict(), load_run(tmp_path / "next").state_dict()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_init_with_another_c_keeps_all_but_the_channel_coder(small_run, tmp_path):
    wider = ModelConfig(height=32, width=24, c=8)
    config = dataclasses.replace(TrainConfig.read(small_run), model=wider, steps=10, lr=1e-9)
    train(config, "photos", tmp_path / "next", init=small_run)
    before, after = load_run(small_run).state_dict(), load_run(tmp_path / "next").state_dict()
    same = [name for name in before if before[name].shape == after[name].shape]
    assert torch.allclose(before["semantic_encoder.0.weight"], after["semantic_encoder.0.weight"], atol=1e-6)
    assert set(before) - set(same) == {"channel_encoder.weight", "channel_encoder.bias", "channel_decoder.0.weight"}


def test_training_skips_what_it_cannot_decode_and_stops_when_nothing_is_left(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")  # of the training split
    (tmp_path / "3.png").write_bytes(b"no picture")  # of the validation split
    train(TINY, f"folder:{tmp_path}", tmp_path / "run")
    shown = capsys.readouterr().out
    assert shown.count("skipped") == 2
    assert all(name in shown.replace("\n", "") for name in ("1.png", "3.png"))
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(b"no picture")
    with pytest.raises(PictureError, match=r"none of the 6 files can be decoded|pictures wanted"):
        train(TINY, f"folder:{tmp_path}", tmp_path / "run2")


def test_a_model_has_no_more_features_than_mix_takes():
    assert MAX_FEATURES == MAX_REALS
    ModelConfig(height=1024, width=1024, c=64)
    with pytest.raises(ValueError, match="are 4325376 floats of features, and mix takes up to 4194304"):
        ModelConfig(height=1024, width=1024, c=66)


@pytest.mark.parametrize(
    "bad",
    [{"lr": 0.0}, {"batch": 0}, {"channel": "tin can"}, {"steps": -1}, {"save_every": 0}, {"seed": -1}, {"warmup": -1},
     {"ema": 1.0}, {"ema": -0.1}, {"precision": "16-mixed"}, {"snr_span_db": 5.0}, {"crop": 16}, {"freeze_transmitter": True}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad)))):
        TrainConfig(**bad)


@pytest.mark.parametrize("bad", [{"crop": 18}, {"snr_span_db": -1.0}, {"channel": "rician"}])
def test_settings_that_the_edge_network_cannot_have_are_refused(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad)))):
        dataclasses.replace(EDGE, **bad)


@pytest.mark.parametrize("bad", [{"c": 50}, {"c": 3}, {"network": "eagle"}, {"receiver_blocks": 0}])
def test_networks_that_cannot_be_are_refused(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad)))):
        dataclasses.replace(EDGE.model, **bad)


def test_presets_are_valid_and_the_papers_are_the_papers():
    configs = {name: TrainConfig(**preset) for name, preset in PRESETS.items()}
    for snr in (0, 10, 20):
        paper = configs[f"paper-{snr}db"]
        assert (paper.snr_db, paper.lr, paper.batch, paper.lam, paper.beta) == (snr, 1e-3, 128, 1.0, 1.0)
        assert (paper.model.network, paper.ema, paper.crop, paper.snr_span_db) == ("paper", 0.0, 0, 0.0)
    edge, quality = configs["edge"], configs["edge-quality"]
    assert edge.snr_range == quality.snr_range == [0.0, 20.0]
    assert dataclasses.replace(quality.model, receiver_blocks=1) == edge.model
    assert (edge.freeze_transmitter, quality.freeze_transmitter) == (False, True)


def test_the_config_of_an_older_run_is_read_with_the_defaults(small_run, tmp_path):
    text = json.loads((small_run / "config.json").read_text())
    for name in ("snr_span_db", "crop", "ema", "freeze_transmitter"):
        del text[name]
    for name in ("network", "receiver_blocks"):
        del text["model"][name]
    shutil.copytree(small_run, tmp_path / "older")
    (tmp_path / "older" / "config.json").write_text(json.dumps(text))
    assert TrainConfig.read(tmp_path / "older") == TrainConfig.read(small_run)
    assert load_run(tmp_path / "older").config == load_run(small_run).config


def test_a_config_that_does_not_fit_names_its_file(small_run, tmp_path):
    text = json.loads((small_run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**text, "sparkle": 1}))
    with pytest.raises(TrainingError, match=r"config.json does not fit.*sparkle.*\nhint: .*train again"):
        TrainConfig.read(tmp_path)
    for damaged in ("", "[]", "{}", '{"model": {"height": 30}}', '{"model": 1}', "[" * 100_000):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(TrainingError, match=r"config.json does not fit"):
            TrainConfig.read(tmp_path)
    with pytest.raises(TrainingError, match=r"is not a run: .*\nhint: .*semseal train --preset .* --out"):
        TrainConfig.read(tmp_path / "none")
