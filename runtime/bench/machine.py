"""The machine while it was measured, what ran on it, and its energy counters. What cannot be read is None with a reason."""

import dataclasses
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from semseal.runtime.bench.results import Energy, Where
from semseal.runtime.bundle import Bundle
from semseal.runtime.doctor import jetson
from semseal.runtime.environment import environment, read_text
from semseal.runtime.errors import SemsealError
from semseal.runtime.libraries import load_onnxruntime, load_openvino

PACKAGES = (
    "semseal",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "torch",
    "cryptography",
)
SAMPLED_BY_PART = ("A100", "H100", "H200", "GH200")  # their NVML sees a quarter of the time
MIN_ENERGY_S = 5.0  # windows shorter than this are not energy

Value = dict[str, Any]


def said(*command: str) -> dict[str, str | None]:
    """What a program prints; None with the reason where it fails or is not here."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"value": None, "reason": f"{command[0]}: {error}"}
    if done.returncode:
        return {"value": None, "reason": f"{' '.join(command)}: {done.stderr.strip() or done.returncode}; try sudo"}
    return {"value": done.stdout.strip()}


def record(root: Path = Path("/")) -> dict[str, Any]:
    """This machine as it is now."""
    import psutil

    clocks = root / "sys/devices/system/cpu/cpu0/cpufreq"
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*/temp"))
    temperatures = [int(text) / 1000 for zone in zones if (text := read_text(zone).strip()).lstrip("-").isdigit()]
    return {
        "environment": dataclasses.asdict(environment(PACKAGES)),
        "kernel": os.uname().release,
        "board": jetson(),
        "cores_for_this_process": len(os.sched_getaffinity(0)),
        "cpu_quota": _file(root / "sys/fs/cgroup/cpu.max"),
        "governor": _file(clocks / "scaling_governor"),
        "khz": _file(clocks / "scaling_cur_freq"),
        "temperatures_c": {"value": temperatures} if temperatures else {"value": None, "reason": "no thermal zone"},
        "power_mode": said("nvpmodel", "-q") if jetson() else {"value": None, "reason": "not a Jetson"},
        "gpu": said(
            "nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,power.limit,temperature.gpu", "--format=csv,noheader"
        ),
        "load_1min": os.getloadavg()[0],
        "memory_bytes": psutil.virtual_memory().total,
        "cpu_seconds": psutil.cpu_times()._asdict(),
        "of_all": "all processes of the machine",
    }


def meanwhile(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The record with what happened between the two: the shares of time that were stolen and that others used."""
    spent = {name: after["cpu_seconds"][name] - before["cpu_seconds"][name] for name in after["cpu_seconds"]}
    total = sum(value for name, value in spent.items() if not name.startswith("guest")) or 1.0
    kept = {name: value for name, value in before.items() if name not in ("cpu_seconds", "of_all")}
    return {
        **kept,
        "load_1min_after": after["load_1min"],
        "temperatures_c_after": after["temperatures_c"],
        "steal_share": spent.get("steal", 0.0) / total,
        "idle_share": (spent["idle"] + spent.get("iowait", 0.0)) / total,
    }


def _file(path: Path) -> Value:
    text = read_text(path).strip()
    return {"value": text} if text else {"value": None, "reason": f"{path} cannot be read"}


# what ran


def ran(bundle: Bundle, engine: str, precision: str, threads: int | None) -> dict[str, Any]:
    """By side, the operators that run and on what: the execution provider, or the precision that OpenVINO chose."""
    found: dict[str, Any] = {}
    for side in ("transmitter", "receiver"):
        try:
            if engine.startswith("tensorrt"):
                found[side] = {"value": None, "reason": "its layers are in engines/*.engine.json of the bundle"}
            elif engine == "openvino":
                found[side] = _openvino_operators(bundle.graph(side, precision), threads)
            else:
                found[side] = _onnxruntime_operators(engine, bundle.graph(side, precision))
        except (SemsealError, RuntimeError, AttributeError) as error:
            found[side] = {"value": None, "reason": f"{type(error).__name__}: {error}"}
    return found


def _onnxruntime_operators(engine: str, graph: bytes) -> dict[str, dict[str, int]]:
    onnxruntime = load_onnxruntime(engine)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    wanted = {"onnxruntime-cuda": ["CUDAExecutionProvider"], "onnxruntime-tensorrt": ["TensorrtExecutionProvider"]}
    session = onnxruntime.InferenceSession(graph, options, providers=[*wanted.get(engine, []), "CPUExecutionProvider"])
    counts: dict[str, dict[str, int]] = {}
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            _count(counts, part.ep_name, node.op_type)
    return counts


def _openvino_operators(graph: bytes, threads: int | None) -> dict[str, dict[str, int]]:
    core = load_openvino("openvino").Core()
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    counts: dict[str, dict[str, int]] = {}
    for operator in core.compile_model(core.read_model(graph, b""), "CPU", settings).get_runtime_model().get_ops():
        info = operator.get_rt_info()
        kind = info["layerType"].astype(str) if hasattr(info["layerType"], "astype") else str(info["layerType"])
        runs = (
            info["runtimePrecision"].astype(str)
            if hasattr(info["runtimePrecision"], "astype")
            else str(info["runtimePrecision"])
        )
        _count(counts, runs, kind)
    return counts


def _count(counts: dict[str, dict[str, int]], group: str, kind: str) -> None:
    operators = counts.setdefault(group, {})
    operators[kind] = operators.get(kind, 0) + 1


# energy


def energy(where: Where, send: Callable[[], Any], seconds: float, root: Path = Path("/")) -> Energy:
    """Joules for each image while ``send`` runs for so many seconds, of everything that the counter covers.

    What the machine draws when idle is in it. None with the reason where no counter can be trusted.
    """
    if seconds < MIN_ENERGY_S:
        return Energy(where, None, None, 0.0, f"{seconds:g} s; a counter wants {MIN_ENERGY_S:g} s")
    counter, name = _counter(where, root)
    if counter is None:
        return Energy(where, None, None, 0.0, name)
    done, start, before = 0, time.perf_counter(), counter()
    while time.perf_counter() - start < seconds:
        send()
        done += 1
    taken, joules = time.perf_counter() - start, counter() - before
    if joules <= 0:
        return Energy(where, None, name, taken, "the counter did not move, or began anew")
    return Energy(where, joules / (done * where.batch), name, taken)


def _counter(where: Where, root: Path) -> tuple[Callable[[], float] | None, str]:
    """What reads joules, and its name; or None and the reason."""
    on_cpu = where.engine in ("onnxruntime-cpu", "openvino")
    rails = sorted((root / "sys/bus/i2c/drivers/ina3221").glob("*/hwmon/hwmon*/in1_label"))
    if rails:
        return Rails(rails[0].parent), "INA3221 VDD_IN, the whole board"
    if not on_cpu:
        return _nvml()
    zone = root / "sys/class/powercap/intel-rapl:0/energy_uj"
    if not zone.exists():
        return None, f"{zone} is not there: no RAPL, or a virtual machine"
    if not read_text(zone).strip().isdigit():
        return None, f"{zone} cannot be read: it wants root"
    return (lambda: int(read_text(zone)) / 1e6), "RAPL package 0"


def _nvml() -> tuple[Callable[[], float] | None, str]:
    name = said("nvidia-smi", "--id=0", "--query-gpu=name", "--format=csv,noheader")
    if name["value"] is None:
        return None, str(name["reason"])
    if any(part in name["value"] for part in SAMPLED_BY_PART):
        return None, f"{name['value']}: NVML sees a quarter of the time, so its energy cannot be trusted"
    import ctypes

    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        return None, str(error)
    device, joules = ctypes.c_void_p(), ctypes.c_ulonglong()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)):
        return None, "NVML does not open the GPU"
    if nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(joules)):
        return None, f"{name['value']} has no energy counter"

    def read() -> float:
        nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(joules))
        return joules.value / 1e3

    return read, f"NVML, {name['value']}"


class Rails:
    """Joules of a Jetson's input rail: voltage times current, added up ten times a second by a thread of its own."""

    def __init__(self, folder: Path) -> None:
        label = re.compile("VDD_IN|POM_5V_IN|VIN_SYS_5V0")
        rails = [i for i in range(1, 9) if label.search(read_text(folder / f"in{i}_label"))]
        self._volts, self._amperes = (folder / f"{kind}{(rails or [1])[0]}_input" for kind in ("in", "curr"))
        self._joules, self._last = 0.0, time.perf_counter()
        self._lock = threading.Lock()
        threading.Thread(target=self._run, daemon=True).start()

    def __call__(self) -> float:
        with self._lock:
            return self._joules

    def watts(self) -> float:
        """Now: millivolts times milliamperes."""
        return int(read_text(self._volts) or 0) * int(read_text(self._amperes) or 0) / 1e6

    def _run(self) -> None:
        while True:
            now, watts = time.perf_counter(), self.watts()
            with self._lock:
                self._joules += watts * (now - self._last)
            self._last = now
            time.sleep(0.1)
