"""Every GPU path of semseal, checked and timed on this machine: python benchmarks/on_gpu.py

Writes benchmarks/results/<gpu>.json and ends with one line of JSON. Without a GPU it prints the reason and writes nothing.

    gpu_scheme.py    the scheme kernel: bits of the reference for odd sizes, batch 1, a replayed CUDA graph, a new picture, a
                     new key; traffic at batch 1024 against a device-to-device copy of as many bytes; time added at batch 1
    gpu_engines.py   engines in fp32, fp16 and int8: the link from send to receive under each defence; PSNR against the CPU's;
                     new answers for new pictures and indices; percentiles by ``semseal.runtime.bench``,
                     whose stages of the whole link are measured for every engine that runs

What cannot be had here is null with the reason. A check that fails is named, and the exit status is 1. One H200 ran it in
November 2026, before engines took any inputs: the kernel's bits were right, and its time missed three of four goals
(scheme_kernel.py); onnxruntime-cuda passed; TensorRT did not load there.
"""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

from gpu_engines import engines
from gpu_scheme import check_kernel, copy_rate, kernel_added, kernel_rate
from semseal.runtime.bench.machine import said
from semseal.runtime.bench.run import Plan, bench
from semseal.runtime.environment import environment
from semseal.runtime.errors import EngineError
from semseal.runtime.files import write_atomically
from semseal.runtime.gpu.device import open_device
from shared import attempt, failures

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("semseal", "numpy", "cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc", "onnxruntime", "onnxruntime-gpu", "tensorrt",
            "tensorrt-rtx")  # fmt: skip


def main() -> int:
    try:
        device = open_device("on_gpu")
    except EngineError as error:
        print(f"no GPU: {error.message.removeprefix('engine on_gpu: ')}")
        return 0
    stream, before = device.create_stream(), state()
    results: dict[str, Any] = {"gpu": device.name, "device": properties(device), "state_before": before}
    results["environment"] = dataclasses.asdict(environment(PACKAGES, device.name))
    results["kernel_bits"] = attempt("kernel bits", check_kernel, device, stream)
    results["copy_bytes_per_s"] = copied = attempt("copy", copy_rate, device, stream)
    results["kernel_rate"] = attempt("kernel rate", kernel_rate, device, stream, copied)
    results["kernel_added"] = attempt("kernel added", kernel_added, device, stream)
    results["engines"] = attempt("engines", engines, device, copied)
    results["stages"] = attempt("stages", stages)
    results["state_after"] = state()
    results["failures"] = failures
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / f"{re.sub('[^a-z0-9]+', '-', device.name.lower()).strip('-')}.json"
    write_atomically(out, (json.dumps(results, indent=1) + "\n").encode())
    brief = {key: results[key] for key in ("gpu", "kernel_rate", "kernel_added", "failures")}
    print(json.dumps({"results": str(out), **brief}))
    return 1 if failures else 0


def stages() -> dict[str, Any]:
    """``semseal bench`` of the packaged link in the GPU engines that need no plan."""
    plan = Plan(engines=("onnxruntime-cuda",), batches=(1, 64), seconds=5.0)
    return bench("photos-10db", plan, quiet=True).document()


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
