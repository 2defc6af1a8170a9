"""The defence mix in the deployed graphs and in the link."""

import numpy as np
import onnx
import pytest
from semseal.runtime import channel
from semseal.runtime.bundle import open_bundle, packaged_bundle
from semseal.runtime.defense import mix
from semseal.runtime.defense.header import HeaderError, HeaderSealer
from semseal.runtime.engine import open_engine
from semseal.runtime.link import BrokenDefenseWarning, Frame, Receiver, Transmitter
from semseal.runtime.metrics import psnr

KEY = bytes(range(32))
SESSION, DIGEST = bytes(16), bytes(32)


@pytest.fixture(scope="module")
def bundle(small_bundle):
    return open_bundle(small_bundle)


def identity(batch, h=8):
    return np.arange(batch * h, dtype=np.int32).reshape(batch, h)


def layers(keys):
    return [np.ascontiguousarray(layer) for layer in keys.signs]


@pytest.mark.parametrize("side", ["transmitter-mix", "receiver-mix"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_keys_are_inputs_and_no_row_index_is_left(bundle, side, precision):
    graph = onnx.load_model_from_string(bundle.graph(side, precision)).graph
    data = "image" if side.startswith("transmitter") else "symbols"
    assert [value.name for value in graph.input] == [data, "signs0", "signs1", "signs2", "signs3", "signs4", "order"]
    gathers = [node for node in graph.node if node.op_type == "Gather"]
    assert [node.input[1] for node in gathers] == ["order"]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("engine", ["onnxruntime-cpu", "openvino"])
def test_the_graph_mixes_as_the_reference_does(bundle, small_images, engine, precision, batch):
    images = small_images(batch)
    plain = open_engine(engine, bundle.graph("transmitter", precision))(images, identity(batch))
    keys = mix.derive_keys(KEY, SESSION, range(5, 5 + batch), DIGEST, 192)
    expected = mix.mix(plain.reshape(batch, -1), keys)
    on_air = open_engine(engine, bundle.graph("transmitter-mix", precision))(images, *layers(keys), keys.index)
    np.testing.assert_allclose(on_air.reshape(batch, -1), expected, atol=2e-5)
    assert np.square(on_air).sum(axis=(1, 2)) / (on_air.shape[1]) == pytest.approx(np.ones(batch), abs=1e-4)
    back = open_engine(engine, bundle.graph("receiver-mix", precision))(on_air, *layers(keys), keys.inverse_index)
    # int8 levels may fall to the other side of a border by the last bit
    without = open_engine(engine, bundle.graph("receiver", precision))(plain, identity(batch))
    assert np.abs(back - without).mean() < (1e-3 if precision == "int8" else 1e-4)


@pytest.mark.parametrize("batch", [1, 2, 7, 65])
def test_bob_gets_the_same_pictures_in_the_order_sent(small_bundle, small_images, batch):
    images = small_images(batch)
    plain = Receiver(small_bundle).receive(Transmitter(small_bundle).send(images))
    frames = Transmitter(small_bundle, KEY, "mix").send(images)
    assert len(frames) == batch
    shuffled = [frames[i] for i in np.random.default_rng(0).permutation(batch)]
    assert np.abs(Receiver(small_bundle, KEY).receive(shuffled) - plain).max() < 1e-3


def test_bob_loses_nothing_for_the_same_noise():
    from semseal.runtime.pictures import open_pictures

    images = open_pictures("photos", "valid").take(4, 180, 180)
    bundle = open_bundle("photos-10db")
    noise = channel.draw_noise(4, 16200, np.random.default_rng(0))
    got = {}
    for defense in ("none", "mix"):
        frames = Transmitter("photos-10db", KEY, defense).send(images)
        headers = [HeaderSealer(KEY, bundle.digest).open(frame.header) for frame in frames]
        added = noise
        if defense == "mix":  # the noise that is the very same once Bob has un-mixed it
            counters = [header.counter for header in headers]
            keys = mix.derive_keys(KEY, headers[0].session, counters, bundle.digest, 32400)
            added = mix.mix(noise.view(np.float32), keys).view(np.complex64)
        heard = channel.awgn(np.stack([frame.symbols for frame in frames]), added, 10)
        received = [Frame(row, frame.header) for row, frame in zip(heard, frames, strict=True)]
        got[defense] = psnr(images, Receiver("photos-10db", KEY).receive(received))
    assert got["mix"] == pytest.approx(got["none"], abs=0.001)


def test_every_packet_is_mixed_anew_and_no_two_look_alike(small_bundle, small_images):
    images = np.repeat(small_images(1), 20, axis=0)
    frames = Transmitter(small_bundle, KEY, "mix").send(images) + Transmitter(small_bundle, KEY, "mix").send(images)
    symbols = np.stack([frame.symbols for frame in frames]).view(np.float32)
    symbols /= np.linalg.norm(symbols, axis=1, keepdims=True)
    likeness = np.abs(symbols @ symbols.T - np.eye(40))
    assert likeness.max() < 5 / np.sqrt(symbols.shape[1])


def test_a_wrong_key_or_counter_is_refused_not_decoded(small_bundle, small_images):
    frame = Transmitter(small_bundle, KEY, "mix").send(small_images(1))[0]
    with pytest.raises(HeaderError, match="does not authenticate"):
        Receiver(small_bundle, bytes(32)).receive([frame])
    for i in range(len(frame.header)):
        changed = bytearray(frame.header)
        changed[i] ^= 1
        with pytest.raises(HeaderError):
            Receiver(small_bundle, KEY).receive([Frame(frame.symbols, bytes(changed))])
    with pytest.raises(HeaderError, match="no key"):
        Receiver(small_bundle).receive([frame])


def test_symbols_under_another_header_are_refused_not_decoded():
    images = np.linspace(0, 1, 2 * 3 * 180 * 180, dtype=np.float32).reshape(2, 3, 180, 180)
    bundle = packaged_bundle("photos-10db")
    one, two = Transmitter(bundle, KEY, "mix").send(images)
    for precision in ("fp32", "fp16", "int8"):
        with pytest.raises(HeaderError, match=r"counters \[0\] were mixed under another key or counter"):
            Receiver(bundle, KEY, precision=precision).receive([Frame(two.symbols, one.header)])
        assert np.isfinite(Receiver(bundle, KEY, precision=precision).receive([one])).all()
    noise = np.random.default_rng(0).normal(size=(16200, 2)).astype(np.float32).view(np.complex64)[:, 0]
    with pytest.raises(HeaderError, match="another key or counter"):
        Receiver(bundle, KEY).receive([Frame(noise, one.header)])


def test_all_modes_in_one_call_come_back_in_order(small_bundle, small_images):
    images = small_images(6)
    plain = Receiver(small_bundle).receive(Transmitter(small_bundle).send(images))
    frames = [
        *Transmitter(small_bundle, KEY, "mix").send(images[:2]),
        *Transmitter(small_bundle, KEY, "permute+substitute").send(images[2:4]),
        *Transmitter(small_bundle, KEY, "mix").send(images[4:]),
    ]
    assert np.abs(Receiver(small_bundle, KEY).receive(frames) - plain).max() < 1e-3
    rx = Receiver(small_bundle, KEY)
    with pytest.warns(UserWarning, match="did not arrive for images \\[2\\]"):
        assert len(rx.receive([*frames[:3], *frames[4:]])) == 5
    assert rx.incomplete == [2]


def test_the_papers_modes_are_named_as_broken_and_mix_is_not(small_bundle, recwarn):
    for defense in ("permute", "substitute", "permute+substitute"):
        with pytest.warns(BrokenDefenseWarning, match="orders rows by likeness"):
            Transmitter(small_bundle, KEY, defense)
    recwarn.clear()
    Transmitter(small_bundle, KEY, "mix")
    Transmitter(small_bundle)
    assert not recwarn.list
