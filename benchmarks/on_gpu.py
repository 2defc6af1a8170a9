"""Every GPU path of semseal, checked and timed on this machine: python benchmarks/on_gpu.py [--out FILE] [--only PART ...]

Writes FILE, or benchmarks/results/<gpu>.json, anew after every part, and ends with one line of JSON. Without a GPU it
prints the reason and writes nothing. All of it takes under four minutes; it needs this package, cuda-core and NVRTC. An
engine that is not installed is told as such, and so is torch. ``--only mix_compiled mix_checked`` is for a run under
compute-sanitizer.

    gpu_scheme.py    the scheme kernel: bits of the reference for odd sizes, batch 1, a replayed CUDA graph, a new picture, a
                     new key; traffic at batch 1024 against a device-to-device copy of as many bytes; time added at batch 1
    gpu_mix.py       the mix kernels: the reference within rounding for all layouts; time for one image, by phase; traffic
    gpu_engines.py   engines in fp32, fp16 and int8: the link from send to receive under each defence; PSNR against the CPU's;
                     new answers for new pictures and indices; percentiles by ``semseal.runtime.bench``
    gpu_requests.py  what a caller waits for: one picture, bytes in and symbols out; 64 at once, with mix and without
    gpu_torch.py     the same network in torch: eager, in a CUDA graph, compiled in a CUDA graph

What cannot be had here is null with the reason. A part that fails costs no other; the failure is named, and the exit status
is 1.
"""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from gpu_engines import PARITY_DB, Engines
from gpu_mix import check_mix, compiled, mix_one, mix_phases, mix_rate, structure_one
from gpu_requests import many, requests
from gpu_scheme import check_kernel, copy_rate, kernel_added, kernel_rate
from semseal.runtime.bench.machine import said
from semseal.runtime.bundle import packaged_bundle
from semseal.runtime.environment import environment
from semseal.runtime.errors import EngineError
from semseal.runtime.files import write_atomically
from semseal.runtime.gpu.device import open_device
from shared import attempt, failures, links, through

FOLDER = Path(__file__).parent
PACKAGES = ("semseal", "numpy", "cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc", "onnxruntime", "onnxruntime-gpu", "tensorrt",
            "tensorrt-rtx", "torch")  # fmt: skip
TORCH_S = 60.0  # that torch and its compiler may take


def main() -> int:
    options = argparse.ArgumentParser(description="checks and times every GPU path on this machine")
    options.add_argument("--out", type=Path, help="file of the results")
    options.add_argument("--only", nargs="+", metavar="PART", help="mix, scheme, engines, requests, torch, or names of results")
    options.add_argument("--seconds", type=float, default=210.0, help="after which no other part is begun (210)")
    options.add_argument("--commit", help="that this is, where it lies in no checkout")
    chosen = options.parse_args()
    try:
        device = open_device("on_gpu")
    except EngineError as error:
        print(f"no GPU: {error.message.removeprefix('engine on_gpu: ')}")
        return 0
    out = chosen.out or FOLDER / "results" / f"{re.sub('[^a-z0-9]+', '-', device.name.lower()).strip('-')}.json"
    results: dict[str, Any] = {
        "gpu": device.name,
        "commit": chosen.commit or commit(),
        "device": properties(device),
        "state_before": state(),
    }
    results["environment"] = dataclasses.asdict(environment(PACKAGES, device.name))
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    for part, name, work in parts(device, results):
        if chosen.only and part != "copy" and not {part, name} & set(chosen.only):
            continue
        before = time.perf_counter()
        if before - began > chosen.seconds:
            results[name] = {"value": None, "reason": f"{chosen.seconds:g} seconds were over"}
            continue
        results[name] = attempt(name, work)
        seconds[name] = round(time.perf_counter() - before, 1)
        results |= {"seconds": seconds, "failures": failures, "state_after": None}
        save(out, results)
    results |= {"seconds": {**seconds, "all": round(time.perf_counter() - began, 1)}, "state_after": state()}
    save(out, results)
    print(json.dumps({"results": str(out), **brief(results)}))
    return 1 if failures else 0


def parts(device: Any, results: dict[str, Any]) -> list[tuple[str, str, Callable[[], Any]]]:
    """What is done, by the part that it belongs to and its name in the results, most wanted first."""
    stream, kernels = device.create_stream(), dict[Any, Any]()

    def compile_all() -> dict[str, Any]:
        kernels.update(compiled(device))
        return {"compiled": len(kernels), "refused": sorted({kernel for kernel in kernels.values() if isinstance(kernel, str)})}

    ends = cache(Engines)
    ours = [(engine, precision) for engine in ("onnxruntime-cuda",) for precision in ("fp32", "fp16")]
    return [
        ("copy", "copy_bytes_per_s", lambda: copy_rate(device, stream)),
        ("mix", "mix_compiled", compile_all),
        ("mix", "mix_checked", lambda: check_mix(device, stream, kernels)),
        ("mix", "mix_one", lambda: mix_one(device, stream, kernels)),
        ("mix", "mix_phases", lambda: mix_phases(device, stream)),
        ("mix", "mix_rate", lambda: mix_rate(device, stream, kernels, results.get("copy_bytes_per_s"))),
        ("mix", "structure_one", lambda: structure_one(device, stream)),
        ("scheme", "kernel_bits", lambda: check_kernel(device, stream)),
        ("scheme", "kernel_added", lambda: kernel_added(device, stream)),
        ("scheme", "kernel_rate", lambda: kernel_rate(device, stream, results.get("copy_bytes_per_s"))),
        *(("requests", f"requests {e} {p}", lambda e=e, p=p: requests(e, p)) for e, p in ours),
        *(("requests", f"many {e} {p}", lambda e=e, p=p: many(e, p)) for e, p in ours),
        ("engines", "edge link", edge_links),
        ("engines", "onnxruntime-cuda fp32", lambda: ends().graph("onnxruntime-cuda", "fp32")),
        ("torch", "torch", torch_peers),
        *(("engines", f"{e} {p}", lambda e=e, p=p: ends().graph(e, p))
          for e in ("onnxruntime-cuda", "onnxruntime-tensorrt") for p in PARITY_DB if (e, p) != ("onnxruntime-cuda", "fp32")),
        *(("engines", e, lambda e=e: ends().plans(e, device, results.get("copy_bytes_per_s")))
          for e in ("tensorrt-rtx", "tensorrt")),
    ]  # fmt: skip


def edge_links() -> dict[str, Any]:
    """A model whose scale is in the header, through the whole link."""
    bundle = packaged_bundle("edge")
    expected_db = through(bundle, "onnxruntime-cpu")
    return {precision: links(bundle, "onnxruntime-cuda", precision, expected_db, None) for precision in ("fp32", "fp16")}


def torch_peers() -> list[dict[str, Any]]:
    """The rows of gpu_torch.py, as far as it came within its time."""
    process = subprocess.Popen(
        [sys.executable, FOLDER / "gpu_torch.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        told, errors = process.communicate(timeout=TORCH_S)
    except subprocess.TimeoutExpired:
        process.kill()
        told, errors = process.communicate()
    rows: dict[Any, dict[str, Any]] = {}
    for line in told.splitlines():
        if line.startswith("{"):
            row = json.loads(line)
            rows[row["side"], row["dtype"], row["batch"]] = row
    if not rows:
        last = errors.strip().splitlines()[-1:] or ["it printed nothing"]
        raise EngineError(f"torch: {last[0]}")
    return list(rows.values())


def brief(results: dict[str, Any]) -> dict[str, Any]:
    """What the last line says: of every part the figures that a goal is set for."""
    rows = [row for name in ("mix_one", "mix_rate", "kernel_added", "kernel_rate") for row in _rows(results.get(name))]
    keys = ("kernel", "features", "blocks", "alone", "batch", "added_us", "of_copy", "us_per_image")
    short = [{key: round(v, 3) if isinstance(v := row[key], float) else v for key in keys if key in row} for row in rows]
    asked = {name: row["engine_loop_us"] for name, row in results.items() if isinstance(row, dict) and "engine_loop_us" in row}
    peers = {f"{row['side']} {row['dtype']}": row["compiled_request_us"]
             for row in _rows(results.get("torch")) if "compiled_request_us" in row}  # fmt: skip
    return {"gpu": results["gpu"], "copy": results.get("copy_bytes_per_s"), "figures": short, "requests_us": asked,
            "torch_us": peers, "seconds": results["seconds"],
            "failures": [failure[:300] for failure in failures]}  # fmt: skip


def _rows(value: Any) -> list[dict[str, Any]]:
    return value if isinstance(value, list) else []


def save(out: Path, results: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, (json.dumps(results, indent=1) + "\n").encode())


def commit() -> dict[str, str | None]:
    """The commit that this is, where it lies in a checkout."""
    return said("git", "-C", str(FOLDER), "describe", "--always", "--dirty")


def properties(device: Any) -> dict[str, Any]:
    """What times on this GPU depend on."""
    return {
        "compute_capability": device.arch,
        "multiprocessors": device.properties.multiprocessor_count,
        "l2_bytes": device.properties.l2_cache_size,
        "integrated": device.properties.integrated,
    }


def state() -> dict[str, Any]:
    """Driver, clocks, power and temperature by nvidia-smi, and a Jetson's power mode."""
    fields = "driver_version,pstate,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.draw,power.limit,"
    fields += "power.default_limit,temperature.gpu,persistence_mode,ecc.mode.current,mig.mode.current,compute_mode"
    smi = said("nvidia-smi", "--id=0", f"--query-gpu={fields}", "--format=csv,noheader")
    if smi["value"] is not None:
        smi["value"] = dict(zip(fields.split(","), map(str.strip, smi["value"].split(",")), strict=False))
    return {"nvidia_smi": smi, "nvpmodel": said("nvpmodel", "-q")}


if __name__ == "__main__":
    sys.exit(main())
