import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from semseal.runtime.errors import PictureError, TrainingError
from semseal.runtime.pictures import open_pictures
from semseal.train.config import PRESETS, ModelConfig, TrainConfig
from semseal.train.data import StepBatches
from semseal.train.fit import last_row, load_run, train

TINY = TrainConfig(model=ModelConfig(height=16, width=16, c=2), batch=4, steps=30, warmup=4, save_every=10)


def losses(run):
    return {row["step"]: row["loss"] for row in map(json.loads, (run / "log.jsonl").read_text().splitlines())}


def test_training_learns_and_writes_a_whole_run(small_run):
    valid = [
        row["valid_psnr"] for row in map(json.loads, (small_run / "log.jsonl").read_text().splitlines()) if "valid_psnr" in row
    ]
    assert len(valid) == 4
    assert valid[-1] > valid[0] + 1
    assert sorted(path.name for path in small_run.iterdir()) == ["config.json", "log.jsonl", "weights.safetensors"]
    assert load_run(small_run).config == TrainConfig.read(small_run).model


@pytest.mark.parametrize("channel", ["awgn", "rayleigh", "multipath"])
def test_resume_continues_exactly(tmp_path, monkeypatch, channel):
    config = dataclasses.replace(TINY, channel=channel)
    train(config, "photos", tmp_path / "whole")

    from semseal.train import fit

    real = fit._step

    def stop_at_17(*args):
        done = real(*args)
        if args[-1] == 17:  # after the weights have changed
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(fit, "_step", stop_at_17)
    with pytest.raises(KeyboardInterrupt):
        train(config, "photos", tmp_path / "broken")
    monkeypatch.undo()
    with pytest.raises(TrainingError, match="--resume"):
        train(config, "photos", tmp_path / "broken")
    train(config, "photos", tmp_path / "broken", resume=True)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    one, two = ((tmp_path / run / "weights.safetensors").read_bytes() for run in ("whole", "broken"))
    assert one == two


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


def test_a_damaged_checkpoint_is_named(tmp_path, monkeypatch):
    from semseal.train import fit

    real = fit._save

    def stop_at_20(*args):
        real(*args)
        if args[4] == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(fit, "_save", stop_at_20)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, "photos", tmp_path / "run")
    monkeypatch.undo()
    checkpoint = tmp_path / "run" / "resume.ckpt"
    whole = checkpoint.read_bytes()
    for data in (b"", whole[:1000], b"no checkpoint"):
        checkpoint.write_bytes(data)
        with pytest.raises(TrainingError, match=r"resume.ckpt is damaged") as raised:
            train(TINY, "photos", tmp_path / "run", resume=True)
        assert f"--init {tmp_path / 'run'}" in raised.value.hint
    checkpoint.write_bytes(whole)
    train(TINY, "photos", tmp_path / "run", resume=True)


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(tmp_path, monkeypatch):
    from semseal.train import fit

    real, calls = fit.transmit, []

    def poisoned(symbols, config, generator):
        calls.append(1)
        received = real(symbols, config, generator)
        if len(calls) == 10:  # the step of a checkpoint
            received.register_hook(lambda gradient: gradient * float("nan"))
        return received

    monkeypatch.setattr(fit, "transmit", poisoned)
    with pytest.raises(TrainingError, match="gradient's norm nan at step 10"):
        train(TINY, "photos", tmp_path / "run")
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    from semseal.train import fit

    real = fit.transmit
    calls = []

    def poisoned(symbols, config, generator):
        calls.append(1)
        return real(symbols, config, generator) * (float("nan") if len(calls) == 14 else 1)

    monkeypatch.setattr(fit, "transmit", poisoned)
    with pytest.raises(TrainingError, match=r"loss is nan .* at step 13\nhint: use a smaller --lr"):
        train(TINY, "photos", tmp_path / "run")
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    with pytest.raises(TrainingError, match="is not finished"):
        load_run(tmp_path / "run")
    assert max(losses(tmp_path / "run")) == 10


def test_two_processes_train_one_model(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        "from pathlib import Path\nfrom semseal.train.config import ModelConfig, TrainConfig\n"
        "from semseal.train.fit import train\n"
        "config = TrainConfig(model=ModelConfig(height=16, width=16, c=2), batch=4, steps=12, warmup=2, save_every=6)\n"
        "from semseal.train import fit\nimport os\nfrom safetensors.torch import save_file\n"
        "real = fit._save\n"
        "def save_each(out, checkpoint, model, *rest):\n"
        "    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, f'{out}-{os.environ[\"RANK\"]}')\n"
        "    real(out, checkpoint, model, *rest)\n"
        "fit._save = save_each\n"
        f"train(config, 'photos', Path({str(tmp_path / 'run')!r}))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(losses(tmp_path / "run")) == [10, 12]
    one, two = (load_file(tmp_path / f"run-{rank}") for rank in (0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)  # each saw other pictures, so gradients were shared
    assert TrainConfig.read(tmp_path / "run").devices == 2


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


def test_batches_depend_on_seed_step_and_device_alone():
    pictures = open_pictures("photos", "train")
    one, two = StepBatches(pictures, 4, 16, 16, 0, 0), StepBatches(open_pictures("photos", "train"), 4, 16, 16, 0, 0)
    assert torch.equal(one[7][0], two[7][0])
    assert one[7][0].shape == (4, 3, 16, 16)
    assert not torch.equal(one[7][0], one[8][0])
    assert not torch.equal(one[7][0], StepBatches(pictures, 4, 16, 16, 0, 1)[7][0])
    assert not torch.equal(one[7][0], StepBatches(pictures, 4, 16, 16, 1, 0)[7][0])


def test_training_skips_what_it_cannot_decode_and_stops_when_nothing_is_left(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")  # of the training split
    (tmp_path / "3.png").write_bytes(b"no picture")  # of the validation split
    train(TINY, f"folder:{tmp_path}", tmp_path / "run")
    shown = capsys.readouterr().out
    assert shown.count("skipped") == 1
    assert "1.png" in shown.replace("\n", "")
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(b"no picture")
    with pytest.raises(PictureError, match=r"none of the 6 files can be decoded|pictures wanted"):
        train(TINY, f"folder:{tmp_path}", tmp_path / "run2")


@pytest.mark.parametrize("bad", [{"lr": 0.0}, {"batch": 0}, {"channel": "tin can"}, {"steps": -1}])
def test_settings_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad)))):
        TrainConfig(**bad)


def test_presets_are_valid_and_the_papers_are_the_papers():
    configs = {name: TrainConfig(**preset) for name, preset in PRESETS.items()}
    for snr in (0, 10, 20):
        paper = configs[f"paper-{snr}db"]
        assert (paper.snr_db, paper.lr, paper.batch, paper.lam, paper.beta) == (snr, 1e-3, 128, 1.0, 1.0)
        assert configs[f"photos-{snr}db"].snr_db == snr


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
