"""What works on this machine, why the rest does not, and the command that fixes it: ``semseal doctor``.

An engine works when it has just carried pictures through the link of photos-10db, from send to receive, without a defence, with
the paper's and with mix (``semseal.runtime.roundtrip``). It does so in a process of its own, so that a library that crashes
takes nothing with it. Where it does not, the known causes are looked for: packages, libraries, drivers.
"""

import ctypes
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from semseal.runtime.bundle import Bundle, open_bundle, packaged_bundle, write_bundle
from semseal.runtime.engine import ENGINES
from semseal.runtime.environment import compute_capability, processor, read_text, version
from semseal.runtime.errors import EngineError, SemsealError
from semseal.runtime.gpu.engines import refuse_unserved_gpu, tensorrt_library
from semseal.runtime.libraries import INSTALL, MODULES
from semseal.runtime.roundtrip import round_trip
from semseal.runtime.signing import generate_owner, public_text

TIMEOUT_S = 300  # for one engine; TensorRT may take a minute to build on a small board
CPU_ENGINES = ("onnxruntime-cpu", "openvino")
BUNDLE = "photos-10db"
EXPECTED_DB = 25.23  # what the reference engine gives for BUNDLE; known here, because it need not be installed
DEFENSES = ("none", "permute+substitute", "mix")
SIDES = ("transmitter", "receiver", "transmitter-mix", "receiver-mix")
NOTES = {"onnxruntime-cuda": "; int8 graphs are slower there than fp32 ones, and ONNX Runtime cannot run them in NHWC"}
ON_JETSON = "sudo apt install python3-libnvinfer; python3 -m venv --system-site-packages .venv"
OLDEST_DRIVER = {12: "525.60.13", 13: "580.65.06"}  # the first that runs programs of this CUDA major
PACKAGES = (  # whose versions are shown
    "semseal",
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
    """``group`` is software, device, engine or builder; ``state`` ok, absent or broken; ``fix`` a command, or empty."""

    group: str
    name: str
    state: str
    found: str
    fix: str = ""


def examine() -> list[Finding]:
    """Everything that matters to semseal on this machine. Never raises; takes seconds, with TensorRT on a GPU minutes."""
    devices, cuda = _devices()
    gpu = any(device.name.startswith("gpu") for device in devices)
    return [*_software(), *devices, *(_engine(name, gpu, cuda) for name in ENGINES), *_builders(gpu)]


def works(findings: Sequence[Finding]) -> bool:
    """Whether at least one engine runs here."""
    return any(finding.group == "engine" and finding.state == "ok" for finding in findings)


def show(findings: Sequence[Finding], console: Console) -> None:
    """Print the findings as a table, and below it what fixes the rest."""
    table = Table("", "", "state", "found")
    colours, group = {"ok": "green", "absent": "dim", "broken": "red"}, ""
    for finding in findings:
        first = "" if finding.group == group else finding.group
        state = Text(finding.state, colours[finding.state])
        table.add_row(first, finding.name, state, Text(finding.found, overflow="fold"))
        group = finding.group
    console.print(table)
    for finding in findings:
        if finding.fix:
            console.print(Text(f"hint: {finding.name}: {finding.fix}"), soft_wrap=True)
    if not works(findings):
        console.print(Text("error: no engine works here", "red"))


def jetson() -> str | None:
    """Model and Jetson Linux release of a Jetson; None on any other machine."""
    model = read_text("/proc/device-tree/model").strip("\0\n")
    release = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", read_text("/etc/nv_tegra_release"))
    if "Jetson" not in model and release is None:
        return None
    return f"{model or 'Jetson'}, Jetson Linux {'.'.join(release.groups()) if release else 'of unknown release'}"


def shared_libraries(name: str) -> dict[int, str]:
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
    shown = ", ".join(f"{name} {number}" for name in PACKAGES if (number := version(name)))
    found = [Finding("software", "python", "ok", python), Finding("software", "packages", "ok", shown)]
    if version("onnxruntime") and version("onnxruntime-gpu"):
        what = "onnxruntime and onnxruntime-gpu are both installed: they are one folder and overwrite each other"
        fix = "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install one of them"
        found.append(Finding("software", "onnxruntime", "broken", what, fix))
    return found


def _devices() -> tuple[list[Finding], tuple[int, int] | None]:
    """Processor, Jetson, driver and GPUs; and the newest CUDA version that the driver runs."""
    found = [Finding("device", "cpu", "ok", f"{processor()}, {len(os.sched_getaffinity(0))} cores")]
    board = jetson()
    if board:
        found.append(Finding("device", "jetson", "ok", board))
    module = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", read_text("/proc/driver/nvidia/version"))
    driver = f"driver {module[1]}" if module else "driver"
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        if not module:
            return [*found, Finding("device", "nvidia driver", "absent", "libcuda.so.1 is not here")], None
        what, fix = f"{driver} is loaded, but libcuda.so.1 is not here", "give the container its GPUs: docker run --gpus all"
        return [*found, Finding("device", "nvidia driver", "broken", what, fix)], None
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
    device, size, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(128)
    cuda.cuDeviceGet(ctypes.byref(device), i)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    capability = (compute_capability(i) or 0) / 10
    about = f"{name.value.decode()}, compute capability {capability:.1f}, {size.value / 2**30:.1f} GiB"
    return Finding("device", f"gpu {i}", "ok", about)


def _engine(name: str, gpu: bool, cuda: tuple[int, int] | None) -> Finding:
    fits, installed = gpu or name in CPU_ENGINES, find_spec(MODULES[name]) is not None
    error, hint = _in_child("prove", name) if fits and installed else ("", "")
    if fits and installed and not error:
        about = f"{_about(name)} sent and received pictures of {BUNDLE} with the defences {', '.join(DEFENSES)}"
        return Finding("engine", name, "ok", about + NOTES.get(name, ""))
    causes = [(error, "")] if error else []
    if not fits:
        causes.append(("no NVIDIA GPU", ""))
    if installed:
        causes += _causes(name, cuda)
    else:
        causes.append((f"the package {MODULES[name]} is not installed", _install(name)))
    fixes = dict.fromkeys(fix for _, fix in causes if fix and fits)  # nothing that can be installed brings a GPU
    return Finding(
        "engine", name, "broken" if error else "absent", "; ".join(what for what, _ in causes), "; then ".join(fixes) or hint
    )


def _causes(name: str, cuda: tuple[int, int] | None) -> list[tuple[str, str]]:
    """Known reasons why an installed engine does not run, each with its fix."""
    causes, wanted = [], None  # CUDA major
    if MODULES[name] == "onnxruntime":
        spec = find_spec("onnxruntime")
        if spec is None or spec.origin is None:  # what is left after one of the two flavours was uninstalled
            return [("the folder onnxruntime holds no module", f"pip install --force-reinstall {INSTALL[name].split()[-1]}")]
        folder = Path(spec.origin).parent / "capi"
        if version("onnxruntime") and version("onnxruntime-gpu"):
            causes.append(("onnxruntime and onnxruntime-gpu overwrite each other", INSTALL[name]))
        if name == "onnxruntime-cpu":
            return causes
        if not (folder / "libonnxruntime_providers_cuda.so").exists():
            return [*causes, (f"{_about(name)} is the build for CPUs", INSTALL[name])]
        built = re.search(r"cuda_version\s*=\s*['\"](\d+)", read_text(folder / "build_and_package_info.py"))
        wanted = int(built[1]) if built else None
        for library in ("cudart", "cublasLt"):
            causes += _library(name, library, wanted, "pip install 'onnxruntime-gpu[cuda,cudnn]'")
        if name == "onnxruntime-tensorrt":
            linked = re.search(r"libnvinfer\.so\.(\d+)", read_text(folder / "libonnxruntime_providers_tensorrt.so"))
            major = int(linked[1]) if linked else None
            fix = f"pip install 'tensorrt-cu{wanted or 13}=={major}.*', or use the engine tensorrt"
            causes += _library(name, "nvinfer", major, fix)
    elif name == "tensorrt":
        wanted = _cuda_in_name(r"tensorrt[-_]cu(\d+)")
        if not shared_libraries("nvinfer"):
            causes.append(("the package tensorrt is a stub without its library libnvinfer", _install(name)))
    elif name == "tensorrt-rtx":
        wanted = _cuda_in_name(r"tensorrt[-_]rtx[-_]cu(\d+)")
    if wanted and cuda and cuda[0] < wanted:
        newer = f"install driver {OLDEST_DRIVER.get(wanted, f'for CUDA {wanted}')} or later"
        causes.append((f"it wants CUDA {wanted}, the driver runs CUDA up to {cuda[0]}.{cuda[1]}", newer))
    return causes


def _library(engine: str, name: str, major: int | None, fix: str) -> list[tuple[str, str]]:
    """The cause, if the library of that major is not here."""
    found = shared_libraries(name)
    if major is None or major in found:
        return []
    return [(f"{_about(engine)} wants lib{name}.so.{major}, and here is {', '.join(found.values()) or 'none'}", fix)]


def _builders(gpu: bool) -> list[Finding]:
    found = []
    for name in ("tensorrt", "tensorrt-rtx"):
        ahead = name == "tensorrt-rtx"
        if find_spec(MODULES[name]) is None:
            found.append(Finding("builder", name, "absent", "not installed", INSTALL[name] if ahead else ""))
            continue
        if not ahead and not gpu:
            found.append(Finding("builder", name, "absent", "builds only on a GPU, for that GPU"))
            continue
        error, hint = _in_child("build", name)
        works = "builds ahead of time, no GPU needed" if ahead else "builds for this GPU"
        found.append(Finding("builder", name, "broken" if error else "ok", error or works, hint))
    return found


def _in_child(task: str, engine: str) -> tuple[str, str]:
    """Run ``prove`` or ``build`` in a process of its own; what went wrong, or an empty string, and a hint if it gave one."""
    command = [sys.executable, "-c", f"from semseal.runtime import doctor; doctor.{task}({engine!r})"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)  # noqa: S603
    except subprocess.TimeoutExpired:
        return f"no answer within {TIMEOUT_S} s", ""
    if done.returncode == 0:
        return "", ""
    if done.returncode < 0:
        return f"crashed with signal {-done.returncode}", ""
    *_, before, last = ["", "", *done.stderr.strip().splitlines()]
    if last.startswith("hint: "):
        return before, last.removeprefix("hint: ")
    return last or "failed without a message", ""


def prove(engine: str) -> None:
    """Carry pictures through the packaged link under each defence; exit with a message that names those that fail."""
    failed: dict[str, list[str]] = {}  # defences by what went wrong
    with tempfile.TemporaryDirectory() as folder:
        try:
            bundle, owner = packaged_bundle(BUNDLE), None
            if engine == "tensorrt-rtx":
                refuse_unserved_gpu(tensorrt_library(engine)[0])
            if engine.startswith("tensorrt"):
                bundle, owner = _with_plans(engine, Path(folder) / "bundle")
        except Exception as error:  # whatever a library raises is the finding
            sys.exit(_message(error))
        for defense in DEFENSES:
            try:
                round_trip(bundle, engine, "fp32", defense, EXPECTED_DB, owner)
            except Exception as error:  # as above
                failed.setdefault(_message(error), []).append(defense)
    if failed:
        lines = [(*message.split("\nhint: "), "")[:2] for message in failed]
        what = "; ".join(f"with {', '.join(names)}: {line}" for names, (line, _) in zip(failed.values(), lines, strict=True))
        hint = "; ".join(hint for _, hint in lines if hint)
        sys.exit(f"{what}\nhint: {hint}" if hint else what)


def build(engine: str) -> None:
    """Build the plans of the packaged graphs, mix included; exit with a message if that fails."""
    try:
        _plans(engine, open_bundle(packaged_bundle(BUNDLE)))
    except Exception as error:  # whatever a library raises is the finding
        sys.exit(_message(error))


def _message(error: Exception) -> str:
    """One line, and a second one for the hint if there is one."""
    if not isinstance(error, SemsealError):
        return " ".join(f"{error}".split()) or type(error).__name__
    message, hint = (" ".join(text.split()) for text in (error.message, error.hint))
    return f"{message}\nhint: {hint}" if hint else message


def _with_plans(engine: str, out: Path) -> tuple[Path, str]:
    """A copy of the packaged bundle with plans of its fp32 graphs, and the public key that belongs to its throw-away owner."""
    bundle, key = open_bundle(packaged_bundle(BUNDLE)), generate_owner()
    files = {name: bundle.read(name) for name in bundle.manifest["files"]} | _plans(engine, bundle)
    write_bundle(out, files, bundle.manifest, key)
    return out, public_text(key)


def _plans(engine: str, bundle: Bundle) -> dict[str, bytes]:
    return {f"engines/{side}.fp32.{engine}.engine": _plan(engine, bundle.graph(side)) for side in SIDES}


def _plan(engine: str, graph: bytes) -> bytes:
    """The plainest plan, for two pictures or frames; those that are deployed come from semseal export."""
    trt, logger = tensorrt_library(engine)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        raise EngineError(f"{engine} does not take the packaged graph: {parser.get_error(0).desc()}")
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        profile.set_shape(tensor.name, *[[size if size > 0 else 2 for size in tensor.shape]] * 3)
    config.add_optimization_profile(profile)
    config.clear_flag(trt.BuilderFlag.TF32)
    if engine == "tensorrt-rtx":
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # or it cannot be captured in a CUDA graph
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{engine} cannot build a plan here: {'; '.join(logger.errors) or 'it gave no reason'}")
    return bytes(plan)


def _install(name: str) -> str:
    return ON_JETSON if name == "tensorrt" and jetson() else INSTALL[name]


def _about(name: str) -> str:
    """The package behind an engine, with its version."""
    module = MODULES[name]
    candidates = ("onnxruntime-gpu", "onnxruntime") if module == "onnxruntime" else (module,)
    return next((f"{package} {number}" for package in candidates if (number := version(package))), module)


def _cuda_in_name(pattern: str) -> int | None:
    """The CUDA major in the name of an installed package, such as tensorrt-cu13."""
    names = (str(distribution.metadata["Name"]) for distribution in metadata.distributions())
    return next((int(match[1]) for name in names if (match := re.match(pattern, name))), None)


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30).stdout  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
