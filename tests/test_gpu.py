"""What engines on a GPU say where there is none, and all of their work that needs none. The rest is benchmarks/on_gpu.py."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from semseal.runtime.bundle import open_bundle
from semseal.runtime.defense import index
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import EngineError
from semseal.runtime.gpu import engines as gpu
from semseal.runtime.gpu.device import gathered, open_device, scattered

ROOT = Path(__file__).parent.parent


def has_driver() -> bool:
    try:
        open_device("x")
    except EngineError:
        return False
    return True


without_gpu = pytest.mark.skipif(has_driver(), reason="there is a GPU: benchmarks/on_gpu.py checks these engines")


@pytest.fixture(scope="module")
def graph():
    return open_bundle("photos-10db").graph("transmitter")


@without_gpu
def test_no_driver_is_said_with_the_fix():
    with pytest.raises(EngineError, match=r"engine tensorrt: this machine has no NVIDIA driver: install one .* --gpus all"):
        open_device("tensorrt")


@without_gpu
def test_tensorrt_rtx_without_a_driver():
    with pytest.raises(EngineError, match="engine tensorrt-rtx: this machine has no NVIDIA driver"):
        open_engine("tensorrt-rtx", b"a plan")


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_tensorrt_that_is_not_installed():
    with pytest.raises(
        EngineError, match=r"engine tensorrt is not installed .*No module named 'tensorrt'.*pip install .*JetPack"
    ):
        open_engine("tensorrt", b"a plan")


@pytest.mark.parametrize(
    ("name", "provider"), [("onnxruntime-cuda", "CUDAExecutionProvider"), ("onnxruntime-tensorrt", "TensorrtExecutionProvider")]
)
def test_the_onnxruntime_for_cpus_is_never_used_in_its_place(graph, name, provider):
    if provider in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    with pytest.raises(EngineError, match=f"engine {name}: .* has no {provider}; .* pip install 'semseal\\[gpu\\]'"):
        open_engine(name, graph)


@pytest.mark.parametrize("plan", [b"", b"no plan", b"no plan" * 1000])
def test_bytes_that_are_no_plan(plan):
    with pytest.raises(EngineError, match=rf"engine tensorrt-rtx [\d.]+ cannot load these {len(plan)} bytes: .*build it again"):
        gpu.deserialize("tensorrt-rtx", plan)


def test_the_reason_of_the_second_failure_is_not_that_of_the_first():
    with pytest.raises(EngineError, match="magicTag"):
        gpu.deserialize("tensorrt-rtx", b"no plan" * 1000)
    with pytest.raises(EngineError, match="empty") as second:
        gpu.deserialize("tensorrt-rtx", b"")
    assert "magicTag" not in str(second.value)


def test_nodes_that_would_run_elsewhere_are_named(graph):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    with pytest.raises(
        EngineError, match=r"\d+ nodes would not run on CUDAExecutionProvider: .* \(Conv, CPUExecutionProvider\)"
    ):
        gpu.refuse_other_providers("onnxruntime-cuda", session)


def test_one_tensorrt_engine_for_all_batches(graph):
    assert gpu.tensorrt_profiles(onnxruntime, graph) == {
        "trt_profile_min_shapes": "image:1x3x180x180,index:1x45",
        "trt_profile_opt_shapes": "image:1x3x180x180,index:1x45",
        "trt_profile_max_shapes": "image:64x3x180x180,index:64x45",
    }
    receiver = gpu.tensorrt_profiles(onnxruntime, open_bundle("photos-10db").graph("receiver"))
    assert receiver["trt_profile_max_shapes"] == "symbols:128x16200x2,index:64x45"


def test_the_index_is_checked_before_anything_is_launched():
    idx = index.identity(6).reshape(2, 3)
    assert gathered(2, idx) is idx
    assert scattered(2, idx).tolist() == idx.tolist()
    with pytest.raises(ValueError, match=r"index\[1, 0\] is 3, there are rows 0\.\.2"):
        gathered(1, idx)
    with pytest.raises(ValueError, match=r"3 images want an index of as many, got \[2, 3\]"):
        scattered(3, idx)
    with pytest.raises(ValueError, match="takes row 0 more than once"):
        scattered(2, np.zeros((2, 3), np.int32))


@without_gpu
def test_on_gpu_says_that_there_is_none_and_writes_nothing():
    results = ROOT / "benchmarks" / "results"
    before = sorted(results.glob("*")) if results.exists() else None
    script = ROOT / "benchmarks" / "on_gpu.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("no GPU: this machine has no NVIDIA driver")
    assert (sorted(results.glob("*")) if results.exists() else None) == before


def test_importing_the_engines_needs_neither_cuda_nor_a_gpu():
    """On an edge device without these packages the link on the CPU must start."""
    script = """
import json, sys
from semseal.runtime.gpu import device
from semseal.runtime.gpu import engines as gpu
from semseal.runtime.gpu import scheme_kernel as kernel
loaded = {name.split(".")[0] for name in sys.modules}
print(json.dumps(sorted(loaded & {"cuda", "tensorrt", "tensorrt_rtx", "onnxruntime", "torch"})))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == []
