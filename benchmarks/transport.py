"""What the sockets cost: two processes of semseal send and receive on this machine.

    python benchmarks/transport.py loss                     PSNR against the share of datagrams that are lost
    python benchmarks/transport.py soak --minutes 10        memory, share of the time that the transport takes, pictures/s

The last line is one line of JSON.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from semseal.runtime.metrics import psnr
from semseal.runtime.pictures import open_pictures, to_float
from semseal.runtime.trust.keyset import new_keyset, write_keyset

PROGRAM = (sys.executable, "-c", "from semseal.runtime.cli import main; main()")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
PERCENTS = (0, 1, 2, 5, 10, 20)
PICTURES = 24
SAMPLE_S = 5.0
WARM_UP_S = 20.0  # before memory is looked at
_TICKS = os.sysconf("SC_CLK_TCK")


class Process:
    """One end, with its metrics."""

    def __init__(self, log: Path, *command: object) -> None:
        self.log = log
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                [*PROGRAM, *map(str, command), "--metrics", "127.0.0.1:0", "--threads", "1"],
                stdout=file,
                stderr=file,
                env=ENVIRONMENT,
            )
        self._metrics = self.says(r"metrics at (\S+)")

    def says(self, pattern: str) -> str:
        while (found := re.search(pattern, self.log.read_text())) is None:
            if self.process.poll() is not None:
                raise SystemExit(self.log.read_text())
            time.sleep(0.05)
        return found[1]

    def sample(self) -> dict[str, float]:
        """Resident bytes, seconds of processor time, and the metrics."""
        with urllib.request.urlopen(self._metrics, timeout=30) as answer:
            text = answer.read().decode()
        found = {name: float(value) for name, value in re.findall(r"^(semseal_\S+) (\S+)$", text, re.M)}
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        found["processor_s"] = (int(fields[11]) + int(fields[12])) / _TICKS
        found["resident"] = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return found


def receiver(folder: Path, bundle: str) -> tuple[Process, str]:
    bob = Process(
        folder / "bob.log", "receive", bundle, "--keys", folder / "link.key", "--listen", "127.0.0.1:0", "--out", folder / "out"
    )
    return bob, bob.says(r"listening at (\S+),")


def loss(folder: Path, bundle: str) -> list[dict[str, Any]]:
    """PSNR in dB over pictures, for each defence, SNR and share."""
    images = open_pictures("photos", "valid").take(PICTURES, 180, 180)
    sent = folder / "sent"
    sent.mkdir()
    for i, image in enumerate(images):
        Image.fromarray((image.transpose(1, 2, 0) * 255).round().astype(np.uint8)).save(sent / f"{i:03d}.png")
    rows = []
    bob, at = receiver(folder, bundle)
    for defense in ("mix", "none"):
        for snr_db in (10, 20):
            for percent in PERCENTS:
                command = ["send", bundle, sent, "--keys", folder / "link.key", "--to", at, "--defense", defense]
                command += ["--snr", snr_db, "--loss", percent, "--seed", 0, "--reorder", "--threads", 1]
                subprocess.run([*PROGRAM, *map(str, command)], check=True, capture_output=True, env=ENVIRONMENT)
                files = sorted((folder / "out").glob("*.png"))
                received = to_float([np.asarray(Image.open(file)) for file in files])
                for file in files:
                    file.unlink()
                mean = float(psnr(images, received).mean())
                rows.append({"defense": defense, "snr_db": snr_db, "loss_percent": percent, "psnr_db": round(mean, 2)})
                print(f"{defense:>5} {snr_db} dB {percent:>3} %: {len(files)} pictures, {mean:.2f} dB", flush=True)
    bob.process.terminate()
    return rows


def soak(folder: Path, bundle: str, minutes: float) -> dict[str, Any]:
    """Send the same pictures over and over, and look at both processes every few seconds."""
    loss_free = folder / "sent"
    loss_free.mkdir()
    for i, image in enumerate(open_pictures("photos", "valid").take(PICTURES, 180, 180)):
        Image.fromarray((image.transpose(1, 2, 0) * 255).round().astype(np.uint8)).save(loss_free / f"{i:03d}.png")
    bob, at = receiver(folder, bundle)
    folders = [loss_free] * 2000
    alice = Process(folder / "alice.log", "send", bundle, *folders, "--keys", folder / "link.key", "--to", at, "--snr", 10)
    end, samples = time.monotonic() + WARM_UP_S + 60 * minutes, []
    while time.monotonic() < end and alice.process.poll() is None:
        time.sleep(SAMPLE_S)
        samples.append((time.monotonic(), alice.sample(), bob.sample()))
        for file in (folder / "out").glob("*.png"):
            file.unlink()
    alice.process.terminate()
    alice.process.wait()
    bob.process.terminate()
    bob.process.wait()
    kept = [sample for sample in samples if sample[0] > samples[0][0] + WARM_UP_S]
    (begun, *first), (ended, *last) = kept[0], kept[-1]
    result: dict[str, Any] = {"minutes": round((ended - begun) / 60, 1), "machine": os.cpu_count()}
    for place, (name, work) in enumerate((("sender", ("read", "encode", "simulate")), ("receiver", ("decode", "write")))):
        resident = [sample[1 + place]["resident"] for sample in kept]
        spent = last[place]["processor_s"] - first[place]["processor_s"]
        kinds = {kind: _grown(first[place], last[place], f'semseal_work_seconds_total{{kind="{kind}"}}') for kind in work}
        half = len(resident) // 2
        growth = statistics.mean(resident[half:]) / statistics.mean(resident[:half]) - 1
        result[name] = {
            "resident_mb": round(statistics.mean(resident) / 1e6, 1),
            "resident_mb_each": [round(value / 1e6, 1) for value in resident],
            "spread_percent": round(100 * (max(resident) - min(resident)) / statistics.mean(resident), 2),
            "second_half_percent": round(100 * growth, 2),
            "processor_percent": round(100 * spent / (ended - begun), 1),
            **{f"{kind}_percent": round(100 * seconds / (ended - begun), 1) for kind, seconds in kinds.items()},
            "rest_percent": round(100 * (spent - sum(kinds.values())) / (ended - begun), 1),
            "share_of_rest_percent": round(100 * (1 - sum(kinds.values()) / spent), 1),
        }
    pictures = _grown(first[1], last[1], 'semseal_frames_total{outcome="picture"}')
    result["pictures_per_s"] = round(pictures / (ended - begun), 1)
    result["symbols_lost"] = last[1]["semseal_symbols_lost_total"]
    result["latency_ms"] = {q: round(1e3 * last[0][f'semseal_latency_seconds{{quantile="{q}"}}'], 1) for q in ("0.5", "0.99")}
    return result


def _grown(first: dict[str, float], last: dict[str, float], name: str) -> float:
    return last[name] - first[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["loss", "soak"])
    parser.add_argument("--bundle", default="edge")
    parser.add_argument("--minutes", type=float, default=10)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_keyset(folder / "link.key", new_keyset("one-way", None))
        found = loss(folder, asked.bundle) if asked.what == "loss" else soak(folder, asked.bundle, asked.minutes)
    print(json.dumps({asked.what: found}))


if __name__ == "__main__":
    main()
