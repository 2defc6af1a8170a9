"""Networks with the mix kernels behind or before them, on an emulated GPU (emulated_gpu.py), against the link on the CPU."""

import warnings

import numpy as np
import pytest
from emulated_gpu import emulate
from semseal import Frame, Receiver, Transmitter
from semseal.runtime.errors import HeaderError, SendError
from semseal.runtime.gpu import mix_kernel
from semseal.runtime.roundtrip import smooth_images

pytestmark = pytest.mark.compiler
KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def gpu(monkeypatch, libraries):
    mix_kernel._compiled_once.cache_clear()
    emulate(monkeypatch, libraries)
    yield
    mix_kernel._compiled_once.cache_clear()


def images(bundle, count):
    return smooth_images(count, bundle.height, bundle.width)


@pytest.mark.parametrize("bundle", ["photos-10db", "edge"])
def test_both_ends_understand_the_link_on_the_cpu(bundle):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the kernels are used, not the graph in their place
        alice, bob = Transmitter(bundle, KEY, "mix", "onnxruntime-cuda"), Receiver(bundle, KEY, "onnxruntime-cuda")
    there, here = Transmitter(bundle, KEY, "mix"), Receiver(bundle, KEY)
    x = images(alice.bundle, 2)
    frames = alice.send(x)
    for frame in frames:
        assert abs(np.square(np.abs(frame.symbols.astype(np.complex128))).mean() - 1) < 1e-8
    expected = here.receive(frames)
    assert np.abs(bob.receive(frames) - expected).max() < 1e-4
    assert np.abs(bob.receive(there.send(x)) - expected).max() < 0.02  # of another noise: none, but other keys
    pixels = np.round(x.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    assert np.abs(bob.receive(alice.send(pixels), "uint8").astype(int) - pixels).mean() < 20


def test_symbols_of_another_counter_are_refused():
    alice, bob = Transmitter("photos-10db", KEY, "mix", "onnxruntime-cuda"), Receiver("photos-10db", KEY, "onnxruntime-cuda")
    first, second = alice.send(images(alice.bundle, 2))
    with pytest.raises(HeaderError, match="frame 0: its symbols were mixed under another key or counter than its header says"):
        bob.receive([Frame(second.symbols, first.header)])
    assert bob.receive([first, second]).shape == (2, 3, 180, 180)


def test_a_picture_that_is_answered_with_no_number_is_named(monkeypatch):
    alice = Transmitter("photos-10db", KEY, "mix", "onnxruntime-cuda")
    engine = alice._engines.open("transmitter-mix", pixels=False)
    run = engine._run

    def overflowed(*inputs):
        on_air, scales = run(*inputs)
        scales[inputs[0][:, 0, 0, 0] == 0] = np.nan
        return on_air, scales

    monkeypatch.setattr(engine, "_run", overflowed)
    x = images(alice.bundle, 3)
    x[1, 0, 0, 0] = 0
    with pytest.raises(SendError) as caught:
        alice.send(x)
    assert caught.value.images == (1,)
    assert len(caught.value.frames) == 2


def test_where_there_is_no_kernel_the_graph_mixes_and_a_warning_says_so(monkeypatch):
    def refuses(*given):
        raise ValueError("the compiler is too old")

    monkeypatch.setattr(mix_kernel, "_compiled_once", refuses)
    refuses.cache_clear = lambda: None
    with pytest.warns(
        UserWarning, match="engine onnxruntime-cuda mixes in its graph, which is slower: no mix kernel on an emulated GPU: the"
    ):
        alice = Transmitter("photos-10db", KEY, "mix", "onnxruntime-cuda")
    with pytest.warns(UserWarning, match="mixes in its graph"):
        bob = Receiver("photos-10db", KEY, "onnxruntime-cuda")
    x = images(alice.bundle, 2)
    frames = alice.send(x)
    assert np.abs(bob.receive(frames) - Receiver("photos-10db", KEY).receive(frames)).max() < 1e-4


def test_inputs_that_do_not_fit_are_refused():
    alice = Transmitter("photos-10db", KEY, "mix", "onnxruntime-cuda")
    engine, x = alice._engines.open("transmitter-mix", pixels=False), images(alice.bundle, 2)
    keys = mix_kernel.packet_keys(KEY, bytes(16), [1], bytes(32))
    with pytest.raises(ValueError, match=r"keys must be \[2, 10\], got \[1, 10\]"):
        engine(x, keys)
    with pytest.raises(ValueError, match="the engine takes image, keys, got 1 arrays"):
        engine(x)
