"""What works on this machine, why the rest does not, and the command that mends it: ``semseal doctor``.

An engine works when it has just run the transmitter of photos-10db, in a process of its own, so that a library that crashes
takes nothing with it. Where it does not, the known causes are looked for: packages, libraries, drivers.
"""

import ctypes
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from semseal.runtime.bundle import open_bundle, packaged_bundle
from semseal.runtime.engine import ENGINES, open_engine
from semseal.runtime.errors import EngineError

PATIENCE = 300  # seconds for one engine; TensorRT may take a minute to build on a small board
ON_CPU = ("onnxruntime-cpu", "openvino")
MODULES = {
    "onnxruntime-cpu": "onnxruntime",
    "openvino": "openvino",
    "onnxruntime-cuda": "onnxruntime",
    "onnxruntime-tensorrt": "onnxruntime",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}
ONNXRUNTIME_GPU = "pip uninstall -y onnxruntime onnxruntime-gpu; pip install 'onnxruntime-gpu[cuda,cudnn]'"
INSTALL = {
    "onnxruntime-cpu": "pip install onnxruntime",
    "openvino": "pip install openvino",
    "onnxruntime-cuda": ONNXRUNTIME_GPU,
    "onnxruntime-tensorrt": ONNXRUNTIME_GPU,
    "tensorrt": "pip install tensorrt",
    "tensorrt-rtx": "pip install tensorrt-rtx",
}
ON_JETSON = "sudo apt install python3-libnvinfer; python3 -m venv --system-site-packages .venv"
OLDEST_DRIVER = {12: "525.60.13", 13: "580.65.06"}  # the first that runs programs of this CUDA major
TOLD = (
    *dict.fromkeys(MODULES.values()),
    "onnxruntime-gpu",
    "numpy",
    "cryptography",
    "cuda-core",
    "cuda-bindings",
    "onnx",
    "torch",
)


@dataclass(frozen=True)
class Finding:
    """``group`` is software, device, engine or builder; ``state`` ok, absent or broken; ``mend`` a command, or empty."""

    group: str
    name: str
    state: str
    found: str
    mend: str = ""


def examine() -> list[Finding]:
    """Everything that matters to semseal on this machine. Never raises; takes seconds, with TensorRT on a GPU minutes."""
    devices, cuda = _devices()
    gpu = any(device.name.startswith("gpu") for device in devices)
    return [*_software(), *devices, *(_engine(name, gpu, cuda) for name in ENGINES), *_builders(gpu)]


def works(findings: Sequence[Finding]) -> bool:
    """Whether at least one engine runs here."""
    return any(finding.group == "engine" and finding.state == "ok" for finding in findings)


def show(findings: Sequence[Finding], console: Console) -> None:
    """Print the findings as a table, and below it what mends the rest."""
    table = Table("", "", "state", "found")
    colours, group = {"ok": "green", "absent": "dim", "broken": "red"}, ""
    for finding in findings:
        first = "" if finding.group == group else finding.group
        state = Text(finding.state, colours[finding.state])
        table.add_row(first, finding.name, state, Text(finding.found, overflow="fold"))
        group = finding.group
    console.print(table)
    for finding in findings:
        if finding.mend:
            console.print(Text(f"hint: {finding.name}: {finding.mend}"), soft_wrap=True)
    if not works(findings):
        console.print(Text("error: no engine works here", "red"))


def jetson() -> str | None:
    """Model and Jetson Linux release of a Jetson; None on any other machine."""
    model = _read("/proc/device-tree/model").strip("\0\n")
    release = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", _read("/etc/nv_tegra_release"))
    if "Jetson" not in model and release is None:
        return None
    return f"{model or 'Jetson'}, Jetson Linux {'.'.join(release.groups()) if release else 'of unknown release'}"


def libraries(name: str) -> dict[int, str]:
    """Where lib``name``.so.MAJOR is, by major: in LD_LIBRARY_PATH, in installed packages, in the linker's cache."""
    folders = [Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    for entry in map(Path, sys.path):
        folders += [*entry.glob("nvidia/*/lib"), *entry.glob("tensorrt*_libs")]
    files = [str(file) for folder in folders for file in folder.glob(f"lib{name}.so.*")]
    files += re.findall(rf"=> (\S*/lib{name}\.so\.\S+)", _output("/sbin/ldconfig", "-p"))
    found: dict[int, str] = {}
    for file in files:
        major = re.search(r"\.so\.(\d+)", file)
        if major:
            found.setdefault(int(major[1]), file)
    return found


def _software() -> list[Finding]:
    python = f"{platform.python_version()} on {platform.machine()}, {platform.system()}"
    told = ", ".join(f"{name} {version}" for name in ("semseal", *TOLD) if (version := _version(name)))
    found = [Finding("software", "python", "ok", python), Finding("software", "packages", "ok", told)]
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        what = "onnxruntime and onnxruntime-gpu are both installed: they are one folder and overwrite each other"
        mend = "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install one of them"
        found.append(Finding("software", "onnxruntime", "broken", what, mend))
    return found


def _devices() -> tuple[list[Finding], tuple[int, int] | None]:
    """Processor, Jetson, driver and GPUs; and the newest CUDA version that the driver runs."""
    processor = re.search(r"model name\s*: (.+)", _read("/proc/cpuinfo"))
    about = f"{processor[1] if processor else platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    found = [Finding("device", "cpu", "ok", about)]
    board = jetson()
    if board:
        found.append(Finding("device", "jetson", "ok", board))
    version = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", _read("/proc/driver/nvidia/version"))
    driver = f"driver {version[1]}" if version else "driver"
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        if not version:
            return [*found, Finding("device", "nvidia driver", "absent", "libcuda.so.1 is not here")], None
        what, mend = f"{driver} is loaded, but libcuda.so.1 is not here", "give the container its GPUs: docker run --gpus all"
        return [*found, Finding("device", "nvidia driver", "broken", what, mend)], None
    number, text = ctypes.c_int(), ctypes.c_char_p()
    failed = cuda.cuInit(0)
    if failed:
        cuda.cuGetErrorString(failed, ctypes.byref(text))
        what = f"{driver}: cuInit says {(text.value or b'nothing').decode()} ({failed})"
        return [
            *found,
            Finding("device", "nvidia driver", "broken", what, "nvidia-smi; after an update of the driver: reboot"),
        ], None
    cuda.cuDriverGetVersion(ctypes.byref(number))
    newest = (number.value // 1000, number.value % 1000 // 10)
    found.append(Finding("device", "nvidia driver", "ok", f"{driver}, CUDA up to {newest[0]}.{newest[1]}"))
    cuda.cuDeviceGetCount(ctypes.byref(number))
    return found + [_gpu(cuda, i) for i in range(number.value)], newest


def _gpu(cuda: Any, i: int) -> Finding:
    device, value, size, name = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(128)
    cuda.cuDeviceGet(ctypes.byref(device), i)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    capability = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    about = f"{name.value.decode()}, compute capability {'.'.join(capability)}, {size.value / 2**30:.1f} GiB"
    return Finding("device", f"gpu {i}", "ok", about)


def _engine(name: str, gpu: bool, cuda: tuple[int, int] | None) -> Finding:
    fits, installed = gpu or name in ON_CPU, find_spec(MODULES[name]) is not None
    error = _in_child("prove", name) if fits and installed else ""
    if fits and installed and not error:
        return Finding("engine", name, "ok", f"{_about(name)} ran the transmitter of photos-10db")
    causes = [(error, "")] if error else []
    if not fits:
        causes.append(("no NVIDIA GPU", ""))
    if installed:
        causes += _causes(name, cuda)
    else:
        causes.append((f"the package {MODULES[name]} is not installed", _install(name)))
    mends = dict.fromkeys(mend for _, mend in causes if mend and fits)  # nothing that can be installed brings a GPU
    return Finding(
        "engine", name, "broken" if error else "absent", "; ".join(what for what, _ in causes), "; then ".join(mends)
    )


def _causes(name: str, cuda: tuple[int, int] | None) -> list[tuple[str, str]]:
    """Known reasons why an installed engine does not run, each with what mends it."""
    causes, wanted = [], None  # CUDA major
    if MODULES[name] == "onnxruntime":
        spec = find_spec("onnxruntime")
        if spec is None or spec.origin is None:  # what is left after one of the two flavours was uninstalled
            return [("the folder onnxruntime holds no module", f"pip install --force-reinstall {INSTALL[name].split()[-1]}")]
        folder = Path(spec.origin).parent / "capi"
        if _version("onnxruntime") and _version("onnxruntime-gpu"):
            causes.append(("onnxruntime and onnxruntime-gpu overwrite each other", INSTALL[name]))
        if name == "onnxruntime-cpu":
            return causes
        if not (folder / "libonnxruntime_providers_cuda.so").exists():
            return [*causes, (f"{_about(name)} is the build for CPUs", INSTALL[name])]
        built = re.search(r"cuda_version\s*=\s*['\"](\d+)", _read(folder / "build_and_package_info.py"))
        wanted = int(built[1]) if built else None
        for library in ("cudart", "cublasLt"):
            causes += _library(name, library, wanted, "pip install 'onnxruntime-gpu[cuda,cudnn]'")
        if name == "onnxruntime-tensorrt":
            linked = re.search(r"libnvinfer\.so\.(\d+)", _read(folder / "libonnxruntime_providers_tensorrt.so"))
            major = int(linked[1]) if linked else None
            mend = f"pip install 'tensorrt-cu{wanted or 13}=={major}.*', or use the engine tensorrt"
            causes += _library(name, "nvinfer", major, mend)
    elif name == "tensorrt":
        wanted = _cuda_in_name(r"tensorrt[-_]cu(\d+)")
        if not libraries("nvinfer"):
            causes.append(("the package tensorrt is a stub without its library libnvinfer", _install(name)))
    elif name == "tensorrt-rtx":
        wanted = _cuda_in_name(r"tensorrt[-_]rtx[-_]cu(\d+)")
    if wanted and cuda and cuda[0] < wanted:
        newer = f"install driver {OLDEST_DRIVER.get(wanted, f'for CUDA {wanted}')} or later"
        causes.append((f"it wants CUDA {wanted}, the driver runs CUDA up to {cuda[0]}.{cuda[1]}", newer))
    return causes


def _library(engine: str, name: str, major: int | None, mend: str) -> list[tuple[str, str]]:
    """The cause, if the library of that major is not here."""
    found = libraries(name)
    if major is None or major in found:
        return []
    return [(f"{_about(engine)} wants lib{name}.so.{major}, and here is {', '.join(found.values()) or 'none'}", mend)]


def _builders(gpu: bool) -> list[Finding]:
    found = []
    for name in ("tensorrt", "tensorrt-rtx"):
        ahead = name == "tensorrt-rtx"
        if find_spec(MODULES[name]) is None:
            found.append(Finding("builder", name, "absent", "not installed", INSTALL[name] if ahead else ""))
        elif not ahead and not gpu:
            found.append(Finding("builder", name, "absent", "builds only on a GPU, for that GPU"))
        elif error := _in_child("build", name):
            found.append(Finding("builder", name, "broken", error))
        else:
            found.append(
                Finding("builder", name, "ok", "builds ahead of time, no GPU needed" if ahead else "builds for this GPU")
            )
    return found


def _in_child(task: str, engine: str) -> str:
    """Run ``prove`` or ``build`` in a process of its own; what went wrong, or an empty string."""
    command = [sys.executable, "-c", f"from semseal.runtime import doctor; doctor.{task}({engine!r})"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE)  # noqa: S603
    except subprocess.TimeoutExpired:
        return f"no answer within {PATIENCE} s"
    if done.returncode < 0:
        return f"crashed with signal {-done.returncode}"
    return (done.stderr.strip().splitlines() or ["failed without a message"])[-1] if done.returncode else ""


def prove(engine: str) -> None:
    """Run the packaged transmitter once; exit with a message unless its symbols have mean power 1."""
    bundle = open_bundle(packaged_bundle("photos-10db"))
    graph = bundle.graph("transmitter")
    image = np.linspace(0, 1, 3 * bundle.height * bundle.width, dtype=np.float32).reshape(1, 3, bundle.height, bundle.width)
    try:
        run = open_engine(engine, _plan(engine, graph) if engine.startswith("tensorrt") else graph)
        symbols = run(image, np.arange(bundle.h, dtype=np.int32)[None])
    except Exception as error:  # whatever a library raises is the finding
        sys.exit(" ".join(f"{error}".split()))
    power = 2 * float(np.square(symbols, dtype=np.float64).mean())
    if not abs(power - 1) < 1e-2:
        sys.exit(f"its symbols have power {power:.4f} instead of 1")


def build(engine: str) -> None:
    """Build a plan of the packaged transmitter; exit with a message if that fails."""
    try:
        _plan(engine, open_bundle(packaged_bundle("photos-10db")).graph("transmitter"))
    except Exception as error:  # as above
        sys.exit(" ".join(f"{error}".split()))


def _plan(engine: str, graph: bytes) -> bytes:
    """The plainest plan, for one picture; those that are deployed come from semseal export."""
    trt = import_module(MODULES[engine])
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        raise EngineError(f"{engine} does not take the packaged graph: {parser.get_error(0).desc()}")
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        profile.set_shape(tensor.name, *[[max(size, 1) for size in tensor.shape]] * 3)
    config.add_optimization_profile(profile)
    if engine == "tensorrt-rtx":
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # or it cannot be captured in a CUDA graph
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{engine} cannot build a plan here")
    return bytes(plan)


def _install(name: str) -> str:
    return ON_JETSON if name == "tensorrt" and jetson() else INSTALL[name]


def _about(name: str) -> str:
    """The package behind an engine, with its version."""
    module = MODULES[name]
    candidates = ("onnxruntime-gpu", "onnxruntime") if module == "onnxruntime" else (module,)
    return next((f"{package} {version}" for package in candidates if (version := _version(package))), module)


def _cuda_in_name(pattern: str) -> int | None:
    """The CUDA major in the name of an installed package, such as tensorrt-cu13."""
    names = (str(distribution.metadata["Name"]) for distribution in metadata.distributions())
    return next((int(match[1]) for name in names if (match := re.match(pattern, name))), None)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_bytes().decode("latin-1")
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30).stdout  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
