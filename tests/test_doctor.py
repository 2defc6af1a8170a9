"""Each case is a process of its own, with real packages, folders of packages beside them, and a library path."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import onnx
import pytest
from rich.console import Console
from semseal.runtime import doctor
from semseal.runtime.bench.run import bench
from semseal.runtime.bundle import open_bundle, write_bundle
from semseal.runtime.doctor import Finding, jetson, show, works
from semseal.runtime.engine import ENGINES
from semseal.runtime.libraries import MODULES
from semseal.runtime.roundtrip import measure
from semseal.runtime.signing import owner_key

EXAMINE = """
import dataclasses, json, sys
from semseal.runtime.doctor import examine
findings = examine()
assert "torch" not in sys.modules
print(json.dumps([dataclasses.asdict(finding) for finding in findings]))
"""
# engines that take seconds to prove, where a test asks about others
HIDDEN = {f"{name}/__init__.py": "raise ImportError('hidden')" for name in ("openvino", "tensorrt_rtx")}
no_gpu = pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="this machine has an NVIDIA driver")


def examine(packages="", libraries=""):
    """What a new process finds, by group and name; ``packages`` and ``libraries`` are folders that are looked in first."""
    first = os.pathsep.join(filter(None, [str(packages), os.environ.get("PYTHONPATH", "")]))
    paths = {"PYTHONPATH": first, "LD_LIBRARY_PATH": str(libraries)}
    done = subprocess.run(
        [sys.executable, "-c", EXAMINE], capture_output=True, text=True, timeout=300, env={**os.environ, **paths}
    )
    assert done.returncode == 0, done.stderr
    findings = [Finding(**finding) for finding in json.loads(done.stdout.splitlines()[-1])]
    return {(finding.group, finding.name): finding for finding in findings}


def install(folder, name, version="1.0", files=()):
    """A package's metadata, as pip leaves it, and its files."""
    information = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for path, text in dict(files).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


@pytest.fixture(scope="module")
def here():
    return examine()


@no_gpu
def test_a_machine_without_a_gpu(here):
    assert [name for group, name in here if group == "engine"] == list(ENGINES)
    assert set(MODULES) == set(ENGINES)
    assert here["engine", "onnxruntime-cpu"].state == "ok"
    for defense in ("none", "permute+substitute", "mix"):
        assert defense in here["engine", "onnxruntime-cpu"].found
    assert here["device", "nvidia driver"].state == "absent"
    for name in ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx"):
        assert here["engine", name].state == "absent"
        assert "no NVIDIA GPU" in here["engine", name].found
        assert not here["engine", name].fix  # nothing that one could install would help
    assert "is the build for CPUs" in here["engine", "onnxruntime-cuda"].found
    assert ("device", "jetson") not in here
    assert works(list(here.values()))


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_runs(here):
    assert here["engine", "openvino"].state == "ok"


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_tensorrt_rtx_builds_where_no_gpu_is(here):
    builder = here["builder", "tensorrt-rtx"]
    assert (builder.state, builder.found) == ("ok", "builds ahead of time, no GPU needed")


def test_what_an_engine_is_measured_by_is_what_the_reference_gives():
    assert measure(doctor.BUNDLE, "onnxruntime-cpu") == pytest.approx(doctor.EXPECTED_DB, abs=0.005)


def test_a_defence_that_fails_is_named(monkeypatch):
    def failing(bundle, engine, precision, defense, expected_db, owner):
        if defense != "none":
            raise doctor.EngineError("no such operator: Gather", "another engine")

    monkeypatch.setattr(doctor, "round_trip", failing)
    with pytest.raises(SystemExit) as left:
        doctor.prove("onnxruntime-cpu")
    assert left.value.code == "with permute+substitute, mix: no such operator: Gather\nhint: another engine"


def test_an_engine_that_decodes_wrongly_is_broken(monkeypatch):
    monkeypatch.setattr(doctor, "EXPECTED_DB", 26.0)
    with pytest.raises(SystemExit) as left:
        doctor.prove("onnxruntime-cpu")
    assert "fp32 with defense mix: pictures come through at 25." in left.value.code
    assert "the reference has 26.00 dB" in left.value.code


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_plans_of_the_packaged_graphs_make_a_signed_bundle(tmp_path):
    path, owner = doctor._with_plans("tensorrt-rtx", tmp_path / "bundle")
    bundle = open_bundle(path, owner)
    assert bundle.digest == open_bundle(doctor.BUNDLE).digest
    for side in ("transmitter", "receiver", "transmitter-mix", "receiver-mix"):
        assert len(bundle.program(side, "fp32", "tensorrt-rtx")) > 100_000


def test_both_flavours_of_onnxruntime(tmp_path):
    install(tmp_path, "onnxruntime", files=HIDDEN)
    install(tmp_path, "onnxruntime-gpu")
    both = examine(tmp_path)["software", "onnxruntime"]
    assert both.state == "broken"
    assert "overwrite each other" in both.found
    assert both.fix.startswith("pip uninstall -y onnxruntime onnxruntime-gpu")
    shutil.rmtree(tmp_path / "onnxruntime_gpu-1.0.dist-info")
    assert ("software", "onnxruntime") not in examine(tmp_path)


@pytest.fixture
def onnxruntime_gpu(tmp_path):
    """The folder of an ONNX Runtime for CUDA 99, with a provider that is linked with TensorRT 10."""
    folder = tmp_path / "packages"
    files = {
        "onnxruntime/__init__.py": "raise ImportError('torn apart')",
        "onnxruntime/capi/build_and_package_info.py": "package_name = 'onnxruntime-gpu'\ncuda_version = '99.0'\n",
        "onnxruntime/capi/libonnxruntime_providers_cuda.so": "",
        "onnxruntime/capi/libonnxruntime_providers_tensorrt.so": "\x7fELF\0libnvinfer.so.10\0libnvinfer_plugin.so.7\0",
        **HIDDEN,
    }
    install(folder, "onnxruntime-gpu", "1.31.1", files)
    return folder


@no_gpu
def test_libnvinfer_11_where_10_is_wanted(onnxruntime_gpu, tmp_path):
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for name in ("libnvinfer.so.11", "libcudart.so.99.1.2", "libcublasLt.so.99", "libnvinfer_plugin.so.10"):
        (libraries / name).touch()
    found = examine(onnxruntime_gpu, libraries)
    wanted = f"onnxruntime-gpu 1.31.1 wants libnvinfer.so.10, and here is {libraries / 'libnvinfer.so.11'}"
    assert found["engine", "onnxruntime-tensorrt"].found.endswith(wanted)
    assert "wants" not in found["engine", "onnxruntime-cuda"].found
    (libraries / "libnvinfer.so.10").touch()
    assert "wants" not in examine(onnxruntime_gpu, libraries)["engine", "onnxruntime-tensorrt"].found
    (libraries / "libcublasLt.so.99").rename(libraries / "libcublasLt.so.98")
    for name in ("onnxruntime-cuda", "onnxruntime-tensorrt"):
        missing = examine(onnxruntime_gpu, libraries)["engine", name].found
        assert missing.endswith(f"wants libcublasLt.so.99, and here is {libraries / 'libcublasLt.so.98'}")


def test_engines_that_fail_or_crash_are_broken_and_take_nothing_with_them(onnxruntime_gpu):
    (onnxruntime_gpu / "openvino" / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    found = examine(onnxruntime_gpu)
    assert found["engine", "onnxruntime-cpu"].state == "broken"
    assert "onnxruntime-cpu" in found["engine", "onnxruntime-cpu"].found
    assert (found["engine", "openvino"].state, found["engine", "openvino"].found) == ("broken", "crashed with signal 11")
    assert works(list(found.values())) is any(engine.state == "ok" for (group, _), engine in found.items() if group == "engine")


LIBCUDA = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return FAILS; }
int cuGetErrorString(int code, const char **text) { *text = "forward compatibility was attempted"; return 0; }
int cuDriverGetVersion(int *version) { *version = CUDA; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int i) { *device = i + 7; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, device == 7 ? "Test GPU" : "?", size); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 3ull << 29; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 7; return 0; }
"""


@pytest.fixture
def libcuda(tmp_path):
    """Builds a libcuda.so.1 that knows one GPU of compute capability 8.7.

    ``fails`` is what cuInit returns, ``cuda`` the CUDA version.
    """

    def make(fails, cuda=12040):
        folder = tmp_path / f"driver{fails}"
        folder.mkdir()
        (folder / "cuda.c").write_text(LIBCUDA)
        command = [
            "g++",
            "-x",
            "c",
            "-shared",
            "-fPIC",
            f"-DFAILS={fails}",
            f"-DCUDA={cuda}",
            "-o",
            folder / "libcuda.so.1",
            folder / "cuda.c",
        ]
        subprocess.run(command, check=True, timeout=60)
        return folder

    return make


@no_gpu
@pytest.mark.compiler
def test_a_driver_too_old_for_the_cuda_of_a_package(libcuda, tmp_path):
    packages = tmp_path / "packages"
    install(packages, "tensorrt-cu13", "11.4.0", {"tensorrt/__init__.py": "import tensorrt_bindings", **HIDDEN})
    found = examine(packages, libcuda(0))
    assert found["device", "nvidia driver"].found == "driver, CUDA up to 12.4"
    assert found["device", "gpu 0"].found == "Test GPU, compute capability 8.7, 1.5 GiB"
    engine = found["engine", "tensorrt"]
    assert engine.state == "broken"
    assert "it wants CUDA 13, the driver runs CUDA up to 12.4" in engine.found
    assert "install driver 580.65.06 or later" in engine.fix
    assert "is a stub without its library libnvinfer" in engine.found
    assert "pip install tensorrt" in engine.fix
    assert found["engine", "onnxruntime-cuda"].state == "broken"
    assert "onnxruntime-gpu[cuda,cudnn]" in found["engine", "onnxruntime-cuda"].fix


BUILD_FOR_THIS_GPU = """
from semseal.export.tensorrt import build_plan
from semseal.runtime.bundle import open_bundle, write_bundle
build_plan("tensorrt-rtx", open_bundle("photos-10db").graph("receiver"))
"""


@no_gpu
@pytest.mark.compiler
@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_a_gpu_that_tensorrt_rtx_would_build_for_and_not_run_on(libcuda):
    driver = libcuda(0, cuda=99000)
    engine = examine(libraries=driver)["engine", "tensorrt-rtx"]
    assert engine.state == "broken"
    assert "does not run on this machine's GPU, of compute capability 8.7, but on 7.5, 8.0, 8.6, 8.9, 12.0" in engine.found
    assert engine.fix == "use the engine onnxruntime-cuda here"
    command = [sys.executable, "-c", BUILD_FOR_THIS_GPU]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "LD_LIBRARY_PATH": str(driver)}
    )
    assert done.returncode == 1
    *_, error, hint = done.stderr.splitlines()
    assert "does not run on this machine's GPU, of compute capability 8.7" in error
    assert hint == "hint: use the engine onnxruntime-cuda here"


@no_gpu
@pytest.mark.compiler
def test_a_driver_that_does_not_start(libcuda):
    driver = examine(libraries=libcuda(803))["device", "nvidia driver"]
    assert driver.state == "broken"
    assert driver.found == "driver: cuInit says forward compatibility was attempted (803)"


def test_the_table_and_its_hints_show_commands_as_they_are_typed():
    screen = StringIO()
    findings = [
        Finding("engine", "onnxruntime-cuda", "broken", "no [cuda] here", "pip install 'onnxruntime-gpu[cuda,cudnn]'"),
        Finding("engine", "openvino", "absent", "not installed"),
    ]
    show(findings, Console(file=screen, width=40))
    assert "hint: onnxruntime-cuda: pip install 'onnxruntime-gpu[cuda,cudnn]'\n" in screen.getvalue()
    assert "[cuda]" in screen.getvalue()
    assert "error: no engine works here" in screen.getvalue()
    assert not works(findings)
    assert works([*findings, Finding("engine", "onnxruntime-cpu", "ok", "")])
    assert not works([Finding("builder", "tensorrt-rtx", "ok", "")])


ON_JETSON = Path(__file__).parent.parent / "benchmarks" / "on_jetson.py"


@pytest.mark.skipif(jetson() is not None, reason="this is a Jetson")
def test_the_jetson_script_says_that_this_is_none_and_writes_nothing(tmp_path):
    command = [sys.executable, ON_JETSON, "--out", tmp_path / "jetson.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "this is no Jetson: nothing was measured, nothing was written\n")
    assert not list(tmp_path.iterdir())


def test_a_benchmark_tells_an_engine_that_cannot_be_had_from_one_that_fails(monkeypatch, small_bundle, tmp_path):
    monkeypatch.syspath_prepend(ON_JETSON.parent)
    import shared

    monkeypatch.setattr(shared, "failures", [])
    bundle = open_bundle(small_bundle)
    expected_db = shared.through(small_bundle, "onnxruntime-cpu")
    found = shared.links(small_bundle, "onnxruntime-cpu", "fp32", expected_db, None)
    assert all(isinstance(db, float) for db in found.values())
    absent = shared.links(small_bundle, "tensorrt", "fp32", expected_db, None)
    assert all("holds no tensorrt engine" in link["reason"] for link in absent.values())
    assert shared.failures == []
    shared.links(small_bundle, "onnxruntime-cpu", "fp32", expected_db + 1, None)
    assert [failure.partition(":")[0] for failure in shared.failures] == [f"onnxruntime-cpu fp32 {name}" for name in found]
    shared.failures.clear()
    files = {name: bundle.read(name) for name in bundle.manifest["files"]}
    graph = onnx.load_model_from_string(files["transmitter.fp32.onnx"])  # in which mix does not find the index
    graph.graph.node.insert(0, onnx.helper.make_node("Identity", ["index"], ["same_index"]))
    for node in graph.graph.node[1:]:
        node.input[:] = ["same_index" if name == "index" else name for name in node.input]
    files["transmitter.fp32.onnx"] = graph.SerializeToString()
    write_bundle(tmp_path / "half", files, bundle.manifest, owner_key())
    half = shared.links(tmp_path / "half", "onnxruntime-cpu", "fp32", expected_db, None)
    assert half["mix"]["value"] is None
    assert isinstance(half["none"], float)
    assert shared.failures[-1].startswith("onnxruntime-cpu fp32 mix: BundleError: ")


def test_the_jetson_script_describes_its_board_and_takes_the_times_of_bench(monkeypatch):
    monkeypatch.syspath_prepend(ON_JETSON.parent)
    spec = importlib.util.spec_from_file_location("on_jetson", ON_JETSON)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.bench is bench  # whose stages tests/test_bench_link.py measures
    assert script.describe("a board")["power_mode"].keys() <= {"value", "reason"}
