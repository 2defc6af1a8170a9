"""Latency of the shipped link, stage by stage: one image, one thread, engines on the CPU.

Each benchmark asserts what it computed, so that a fast wrong answer fails. Read the median, and compare only numbers of one
run: absolute times depend on the machine.
"""

import numpy as np
import pytest
from semseal.runtime.bundle import open_bundle, packaged_bundle
from semseal.runtime.defense import index
from semseal.runtime.defense.schemes import scheme_sets
from semseal.runtime.engine import open_engine
from semseal.runtime.link import Receiver, Transmitter
from semseal.runtime.metrics import psnr
from semseal.runtime.pictures import open_pictures

BUNDLE = packaged_bundle("photos-10db")
KEY = bytes(32)


@pytest.fixture(scope="module")
def image():
    """The cat of scikit-image, which no packaged model was trained on: float32 [1, 3, 180, 180]."""
    return open_pictures("photos", "valid").take(2, 180, 180)[1:]


@pytest.fixture(scope="module")
def plain(image):
    """The index that changes nothing, and the symbols it gives."""
    here = np.zeros(1, int)
    identity = index.spread(index.identity(45)[None], here, here)
    return identity, open_engine("onnxruntime-cpu", open_bundle(BUNDLE).graph("transmitter"), threads=1)(image, identity)


FORMS = [("onnxruntime-cpu", "fp32"), ("openvino", "fp32"), ("openvino", "int8")]


@pytest.mark.parametrize(("name", "precision"), FORMS)
def test_transmitter(benchmark, image, plain, name, precision):
    engine = open_engine(name, open_bundle(BUNDLE).graph("transmitter", precision), threads=1)
    symbols = benchmark(engine, image, plain[0])
    assert np.square(symbols).sum() / 16200 == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("name", "precision"), FORMS)
def test_receiver(benchmark, image, plain, name, precision):
    engine = open_engine(name, open_bundle(BUNDLE).graph("receiver", precision), threads=1)
    picture = benchmark(engine, plain[1], plain[0])
    assert psnr(image, picture)[0] > 25


def test_scheme_index_of_one_pair(benchmark):
    """From the scheme sets to the index that the graph takes, for two images."""
    sets = scheme_sets(KEY, 45)
    places = np.arange(2)

    def build():
        a = index.compose(sets.permutations[1], sets.swapped[2], sets.permutations[3])
        b = index.compose(sets.permutations[3], sets.swapped[2], sets.permutations[1])
        return index.spread(np.stack([a, b]), places, places ^ 1)

    assert sorted(benchmark(build).ravel().tolist()) == list(range(90))


def test_gather_reference(benchmark, plain):
    """The rows of one image moved by NumPy: 45 rows of 720 floats."""
    rows = plain[1].reshape(45, 720)
    order = np.random.default_rng(0).permutation(45).astype(np.int32)
    out = benchmark(index.gather, rows, order)
    assert np.array_equal(out[np.argsort(order)], rows)


@pytest.mark.parametrize("defense", ["none", "permute"])
def test_send_one_frame(benchmark, image, defense):
    """Everything Alice does for one image: checks, scheme, engine, sealed header."""
    tx = Transmitter(BUNDLE, KEY, defense, threads=1)
    frames = benchmark(tx.send, image)
    assert psnr(image, Receiver(BUNDLE, KEY).receive(frames))[0] > 25
