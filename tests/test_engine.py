"""The engines on the CPU as processes meet them: no telemetry, no hang after a fork, one call for any inputs."""

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from onnx import TensorProto, helper
from semseal.runtime.engine import open_engine
from semseal.runtime.errors import EngineError
from semseal.runtime.libraries import load_onnxruntime, load_openvino
from semseal.runtime.roundtrip import TOLERANCE_DB, measure, round_trip, smooth_images

ENGINES = [
    "onnxruntime-cpu",
    pytest.param("openvino", marks=pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")),
]


# telemetry

LINK = """
import sys, time
from semseal.runtime.roundtrip import measure
measure("photos-10db", sys.argv[1], "fp32", "mix")
time.sleep(2)  # a thread sends what there is to send
"""

WATCH = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static void note(const char *what, const char *name) {
    FILE *file = fopen(getenv("WATCH"), "a");
    fprintf(file, "%s %s\n", what, name);
    fclose(file);
}
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
    note("getaddrinfo", node ? node : "");
    return ((int (*)(const char *, const char *, const struct addrinfo *, struct addrinfo **))dlsym(RTLD_NEXT, "getaddrinfo"))
        (node, service, hints, result);
}
int connect(int fd, const struct sockaddr *address, socklen_t size) {
    if (address->sa_family != AF_UNIX) note("connect", address->sa_family == AF_INET ? "inet" : "other");
    return ((int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "connect"))(fd, address, size);
}
"""


@pytest.fixture(scope="module")
def watch(tmp_path_factory):
    """A library that writes down whom a process asks for and connects to, Python and C alike."""
    folder = tmp_path_factory.mktemp("watch")
    (folder / "watch.c").write_text(WATCH)
    subprocess.run(
        ["g++", "-x", "c", "-shared", "-fPIC", "-o", folder / "watch.so", folder / "watch.c", "-ldl"], check=True, timeout=60
    )
    return folder / "watch.so"


def link(engine, home, watch):
    """Whom a fresh process asked for that ran the link, and the files that it left in its home."""
    seen = home.parent / f"{home.name}.seen"
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    # nothing is sent by a test: what would be goes to a port of this machine where nobody listens
    nobody = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    environment = {**kept, **nobody, "HOME": str(home), "WATCH": str(seen), "LD_PRELOAD": str(watch)}
    command = [sys.executable, "-c", LINK, engine]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    files = sorted(str(file.relative_to(home)) for file in home.rglob("*") if file.is_file())
    return seen.read_text().splitlines() if seen.exists() else [], files


@pytest.mark.compiler
@pytest.mark.parametrize("engine", ENGINES)
def test_the_link_leaves_no_file_and_asks_nobody(engine, tmp_path, watch):
    assert link(engine, tmp_path, watch) == ([], [])


@pytest.mark.compiler
@pytest.mark.skipif(find_spec("openvino_telemetry") is None, reason="openvino_telemetry is not installed")
def test_openvino_reports_where_the_user_has_opted_in(tmp_path, watch):
    (tmp_path / "intel").mkdir()
    (tmp_path / "intel" / "openvino_telemetry").write_text("1")
    asked, files = link("openvino", tmp_path, watch)
    assert "intel/openvino_ga_cid" in files
    assert any(line.startswith("connect") for line in asked)


def test_what_the_user_says_of_the_telemetry_of_onnxruntime_stands(monkeypatch):
    load_onnxruntime("onnxruntime-cpu")
    assert os.environ["ORT_DISABLE_TELEMETRY"]
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    load_onnxruntime("onnxruntime-cpu")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"


def test_openvino_hides_nothing_from_the_program():
    pytest.importorskip("openvino")
    load_openvino("openvino")
    assert sys.modules.get("openvino_telemetry", True) is not None


# forks

FORKED = """
import os, sys, threading, time
import numpy as np
from semseal.runtime.bundle import open_bundle
from semseal.runtime.engine import open_engine
from semseal.runtime.libraries import forks
run = open_engine(sys.argv[1], open_bundle("photos-10db").graph("transmitter"), threads=1)
image, index = np.full((1, 3, 180, 180), 0.5, np.float32), np.arange(45, dtype=np.int32)[None]
expected = run(image, index)
ended = False
def keep_busy():
    while not ended:
        run(image, index)
busy = threading.Thread(target=keep_busy)
busy.start()
for k in range(6):
    time.sleep(0.011)
    child = os.fork()
    if child == 0:
        os._exit(0 if forks() == 1 and np.allclose(run(image, index), expected) else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
assert forks() == 0
ended = True
busy.join()
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_forked_child_runs_while_its_parent_was_running(engine):
    """A thread of the parent holds the engine's lock, and its request, in nearly all moments of a fork."""
    done = subprocess.run([sys.executable, "-c", FORKED, engine], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# one call for any inputs


def graph_of_three():
    """image uint8 [batch, 4], index int32 [batch, 3], scale float32 [1] -> rows of the image in float, scaled, gathered."""
    values = [
        helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4]),
        helper.make_tensor_value_info("index", TensorProto.INT32, ["batch", 3]),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1]),
    ]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 3, 4])
    nodes = [
        helper.make_node("Cast", ["image"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "scale"], ["scaled"]),
        helper.make_node("Gather", ["scaled", "index"], ["out"], axis=0),
    ]
    graph = helper.make_graph(nodes, "g", values, [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("engine", ENGINES)
def test_inputs_of_several_types_in_the_order_of_the_graph(engine, batch):
    rng = np.random.default_rng(batch)
    image, idx = rng.integers(0, 256, (batch, 4), np.uint8), rng.integers(0, batch, (batch, 3), np.int32)
    given = open_engine(engine, graph_of_three())(image, idx, np.float32([0.5]))
    assert np.array_equal(given, image[idx] * np.float32(0.5))


@pytest.mark.parametrize("width", [3, 2**17])  # openvino copies the small, and is told where the large lie
@pytest.mark.parametrize("engine", ENGINES)
def test_inputs_in_any_memory_large_or_small_and_anew_in_every_run(engine, width):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in ("x", "y", "out")]
    graph = helper.make_graph([helper.make_node("Sub", ["x", "y"], ["out"])], "g", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    run = open_engine(engine, model.SerializeToString())
    rng = np.random.default_rng(width)
    read_only = rng.standard_normal((2, width), np.float32)
    read_only.flags.writeable = False
    strided = rng.standard_normal((width, 2), np.float32).T
    given = [run(read_only, strided), run(strided, read_only)]
    assert np.array_equal(given[0], read_only - strided)
    assert np.array_equal(given[1], strided - read_only)


def test_what_is_wrong_comes_with_a_hint():
    with pytest.raises(
        EngineError, match=r"engine must be one of onnxruntime-cpu, openvino, .* got 'onnx'\nhint: semseal doctor"
    ):
        open_engine("onnx", b"")
    with pytest.raises(EngineError, match=r"threads must be from 1 to 512, got 0\nhint: "):
        open_engine("onnxruntime-cpu", b"", threads=0)
    with pytest.raises(EngineError, match=r"threads=2 is for engines on the CPU; tensorrt-rtx runs on the GPU\nhint: "):
        open_engine("tensorrt-rtx", b"", threads=2)


# the round trip


@pytest.mark.parametrize("defense", ["none", "permute", "substitute", "permute+substitute", "mix"])
@pytest.mark.parametrize("precision", TOLERANCE_DB)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_link_comes_through_on_every_engine_at_every_precision_under_every_defence(engine, precision, defense):
    assert round_trip("photos-10db", engine, precision, defense) > 24


def test_pictures_that_come_through_worse_or_better_are_refused():
    found = measure("photos-10db", "onnxruntime-cpu")
    assert round_trip("photos-10db", "onnxruntime-cpu", expected_db=found) == found
    for expected in (found - 0.03, found + 0.03, float("nan")):
        with pytest.raises(EngineError, match="fp32 with defense none: pictures come through at 25"):
            round_trip("photos-10db", "onnxruntime-cpu", expected_db=expected)


def test_a_link_of_another_size(small_bundle):
    for defense in ("none", "permute+substitute", "mix"):
        assert measure(small_bundle, "onnxruntime-cpu", "fp32", defense) > 10


def test_the_pictures_are_pictures():
    images = smooth_images(2, 32, 24)
    assert (images.shape, images.dtype) == ((2, 3, 32, 24), np.float32)
    assert images.min() >= 0
    assert images.max() <= 1
    assert len({channel.tobytes() for image in images for channel in image}) == 6
