"""Latency of the shipped link, stage by stage: one image, one thread, engines on the CPU.

Each benchmark asserts what it computed, so that a fast wrong answer fails. Read the median, and compare only numbers of one
run: absolute times depend on the machine.
"""

import numpy as np
import pytest
from semseal.runtime.bundle import open_bundle, packaged_bundle
from semseal.runtime.defense import index, mix
from semseal.runtime.defense.header import Header, HeaderSealer
from semseal.runtime.defense.schemes import scheme_sets
from semseal.runtime.engine import open_engine
from semseal.runtime.link import Frame, Receiver, Transmitter
from semseal.runtime.metrics import psnr
from semseal.runtime.pictures import open_pictures

BUNDLE = packaged_bundle("photos-10db")
KEY = bytes(32)
REALS = 32400
SCALE = 0.02  # of the largest symbol: the power of the pads changes that of the features a little


@pytest.fixture(scope="module")
def image():
    """The cat of scikit-image, which no packaged model was trained on: float32 [1, 3, 180, 180]."""
    return open_pictures("photos", "valid").take(2, 180, 180)[1:]


@pytest.fixture(scope="module")
def plain(image):
    """The index that changes nothing, and the symbols it gives."""
    here = np.zeros(1, int)
    identity = index.absolute(index.identity(45)[None], here, here)
    return identity, open_engine("onnxruntime-cpu", open_bundle(BUNDLE).graph("transmitter"), threads=1)(image, identity)


@pytest.fixture(scope="module")
def keys():
    """Those of one packet."""
    return mix.derive_keys(KEY, bytes(16), [0], bytes(32), REALS)


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


@pytest.mark.parametrize(("name", "precision"), FORMS)
def test_transmitter_with_mix(benchmark, image, plain, keys, name, precision):
    bundle = open_bundle(BUNDLE)
    engine = open_engine(name, bundle.graph("transmitter-mix", precision), threads=1)
    symbols, _ = mix.normalize(benchmark(engine, image, *mix.transmitter_inputs(keys, REALS)))
    expected = open_engine(name, bundle.graph("transmitter", precision), threads=1)(image, plain[0])
    assert np.abs(mix.unmix(symbols.reshape(1, -1), keys, REALS) - expected.reshape(1, -1)).max() < SCALE


@pytest.mark.parametrize(("name", "precision"), FORMS)
def test_receiver_with_mix(benchmark, image, plain, keys, name, precision):
    engine = open_engine(name, open_bundle(BUNDLE).graph("receiver-mix", precision), threads=1)
    on_air = mix.mix(plain[1].reshape(1, -1), keys).reshape(1, -1, 2)
    picture = benchmark(engine, on_air, *mix.receiver_inputs(keys, REALS))
    assert psnr(image, picture)[0] > 25


def test_keys_and_header_of_one_mixed_frame(benchmark, image):
    """All that mix adds to Alice's work outside the graph: keys derived, in the graph's shapes, and the header sealed."""
    bundle, session = open_bundle(BUNDLE), bytes(16)
    sealer = HeaderSealer(KEY, bundle.digest)
    on_air = open_engine("onnxruntime-cpu", bundle.graph("transmitter-mix"), threads=1)

    def derive():
        keys = mix.derive_keys(KEY, session, [7], bundle.digest, REALS)
        return mix.transmitter_inputs(keys, REALS), sealer.seal(Header("mix", session, 7))

    secret, header = benchmark(derive)
    assert sealer.open(header) == Header("mix", session, 7)
    frame = Frame(mix.normalize(on_air(image, *secret))[0].view(np.complex64).ravel(), header)
    assert psnr(image, Receiver(BUNDLE, KEY).receive([frame]))[0] > 25


def test_mix_reference(benchmark, plain, keys):
    """The symbols of one image mixed by NumPy."""
    symbols = plain[1].reshape(1, -1)
    assert np.abs(mix.unmix(benchmark(mix.mix, symbols, keys), keys, REALS) - symbols).max() < SCALE


def test_scheme_index_of_one_pair(benchmark):
    """From the scheme sets to the index that the graph takes, for two images."""
    sets = scheme_sets(KEY, 45)
    places = np.arange(2)

    def build():
        a = index.compose(sets.permutations[1], sets.swapped[2], sets.permutations[3])
        b = index.compose(sets.permutations[3], sets.swapped[2], sets.permutations[1])
        return index.absolute(np.stack([a, b]), places, places ^ 1)

    assert sorted(benchmark(build).ravel().tolist()) == list(range(90))


def test_gather_reference(benchmark, plain):
    """The rows of one image moved by NumPy: 45 rows of 720 floats."""
    rows = plain[1].reshape(45, 720)
    order = np.random.default_rng(0).permutation(45).astype(np.int32)
    out = benchmark(index.gather, rows, order)
    assert np.array_equal(out[np.argsort(order)], rows)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize(("name", "precision"), FORMS)
@pytest.mark.parametrize("defense", ["none", "permute", "mix"])
def test_send_one_frame(benchmark, image, defense, name, precision, dtype):
    """Everything Alice does for one image: checks, scheme, engine, sealed header."""
    tx = Transmitter(BUNDLE, KEY, defense, name, precision, threads=1)
    given = image if dtype == "float32" else np.round(255 * image).astype(np.uint8).transpose(0, 2, 3, 1).copy()
    frames = benchmark(tx.send, given)
    assert psnr(image, Receiver(BUNDLE, KEY).receive(frames))[0] > 25


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_receive_one_frame(benchmark, image, dtype):
    """Everything Bob does for one image: the header opened, checks, engine. Without a key, so that the frame may come again."""
    frames = Transmitter(BUNDLE).send(image)
    picture = benchmark(Receiver(BUNDLE, threads=1).receive, frames, dtype)
    picture = picture if dtype == "float32" else picture.transpose(0, 3, 1, 2) / np.float32(255)
    assert psnr(image, picture)[0] > 25
