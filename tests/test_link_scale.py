"""The link with a model whose scale is in the header, against the network in torch."""

import copy

import numpy as np
import pytest
import torch
from semseal.export.bundle import export_model
from semseal.runtime import channel
from semseal.runtime.bundle import open_bundle
from semseal.runtime.defense import index, mix
from semseal.runtime.defense.defenses import MODES
from semseal.runtime.defense.header import Header, HeaderSealer
from semseal.runtime.defense.schemes import scheme_sets
from semseal.runtime.errors import EngineError, HeaderError
from semseal.runtime.frame import power
from semseal.runtime.link import Frame, Receiver, Transmitter
from semseal.runtime.metrics import psnr
from semseal.runtime.signing import owner_key

KEY = b"k" * 32
REALS, H = 192, 8
ENGINES = ("onnxruntime-cpu", "openvino")
PRECISIONS = ("fp32", "fp16", "int8")


@pytest.fixture(scope="module")
def bundle(edge_bundle):
    return open_bundle(edge_bundle)


def radio(frames, snr_db=10.0, seed=0):
    """Frames as Bob receives them."""
    rng = np.random.default_rng(seed)
    noise = [channel.draw_noise(1, len(frame.symbols), rng)[0] for frame in frames]
    return [Frame(channel.awgn(frame.symbols, n, snr_db), frame.header) for frame, n in zip(frames, noise, strict=True)]


def headers_of(frames, digest):
    return [HeaderSealer(KEY, digest).open(frame.header) for frame in frames]


def undefended(frames, digest):
    """The reals [frames, 192] of frames as they were before the defence, and their headers, in plain NumPy."""
    headers = headers_of(frames, digest)
    reals = np.stack([frame.symbols for frame in frames]).view(np.float32)
    mode = headers[0].mode
    if mode == "mix":
        counters = [header.counter for header in headers]
        return mix.unmix(reals, mix.derive_keys(KEY, headers[0].session, counters, digest, REALS), REALS), headers
    sets, tables = scheme_sets(KEY, H), []
    for header in headers:
        permutation = sets.permutations[header.p] if "permute" in mode else index.identity(H)
        swapped = sets.swapped[header.s] if "substitute" in mode else np.zeros(H, bool)
        tables.append(index.invert(permutation, swapped))
    frame = np.arange(len(frames))
    rows = index.gather(reals.reshape(len(frames) * H, -1), index.absolute(np.stack(tables), frame, frame ^ 1))
    return rows.reshape(len(frames), REALS), headers


def in_torch(model, reals, headers, noise):
    """What the network makes of reals [batch, 192] with what these headers and this noise power tell."""
    told = np.array([[header.scale, noise, header.snr_db] for header in headers], np.float32)
    with torch.no_grad():
        return model.decode(torch.from_numpy(reals.reshape(len(reals), -1, 2).copy()), torch.from_numpy(told)).numpy()


def features_in_torch(model, images, snr_db):
    with torch.no_grad():
        return model.encode(torch.from_numpy(images), torch.full((len(images),), snr_db)).flatten(1).double().numpy()


# of a picture: the engine's arithmetic against torch's in float32
WORST_DB = {"fp32": 90, "fp16": 50, "int8": 35}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("defense", MODES)
def test_bob_gets_what_torch_makes_of_the_same_symbols_and_noise(
    edge_model, edge_bundle, bundle, small_images, defense, precision, engine
):
    images = small_images(4)
    frames = Transmitter(edge_bundle, KEY, defense, engine, precision, snr_db=7).send(images)
    sent, headers = undefended(frames, bundle.digest)
    features = features_in_torch(edge_model, images, 7.0)
    scale = np.array([[header.scale] for header in headers])
    off = np.abs(sent / scale - features) - 3.4e-4 * np.abs(features)  # beyond the grain of the scale
    assert off.max() < {"fp32": 5e-5, "fp16": 1e-2, "int8": 0.5}[precision] * np.sqrt(np.square(features).mean())
    received = radio(frames)
    got = Receiver(edge_bundle, KEY, engine, precision, snr_db=10).receive(received)
    expected = in_torch(edge_model, *undefended(received, bundle.digest), 0.1)
    assert psnr(expected, got).min() > WORST_DB[precision]
    assert psnr(images, got).min() > psnr(images, expected).min() - 0.5


@pytest.mark.parametrize("defense", MODES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_power_is_one_and_the_scale_is_what_made_it_so(edge_model, edge_bundle, bundle, small_images, defense, precision):
    images = small_images(6) * np.linspace(0.05, 1, 6, dtype=np.float32)[:, None, None, None]
    frames = Transmitter(edge_bundle, KEY, defense, precision=precision, snr_db=12).send(images)
    powers = np.array([np.square(np.abs(frame.symbols.astype(np.complex128))).mean() for frame in frames])
    assert np.abs(powers.reshape(-1, 2).mean(axis=1) - 1).max() < 1e-6
    if "substitute" not in defense:
        assert np.abs(powers - 1).max() < 1e-6
    headers = headers_of(frames, bundle.digest)
    assert all(header.snr_db == 12 for header in headers)
    rms = np.sqrt(2 * np.square(features_in_torch(edge_model, images, 12.0)).mean(axis=1))  # of a complex symbol
    if defense == "mix":  # the pads are on air too, and their power is 1 only nearly
        counters = [header.counter for header in headers]
        pads = mix.derive_keys(KEY, headers[0].session, counters, bundle.digest, REALS).pads.astype(np.float64)
        rms *= np.sqrt((REALS + 2 * np.square(pads).sum(axis=1)) / (REALS + pads.shape[1]))
    scales = np.array([header.scale for header in headers])
    assert np.abs(scales * rms - 1).max() < 3.4e-4 + {"fp32": 1e-5, "fp16": 2e-3, "int8": 3e-2}[precision]
    assert scales.max() / scales.min() > 1.2  # these pictures are not equally loud


@pytest.mark.parametrize("batch", [1, 2, 65])
def test_a_mixed_frame_decodes_to_the_picture_of_an_undefended_one(edge_bundle, small_images, batch):
    images = small_images(batch)
    plain = Receiver(edge_bundle).receive(Transmitter(edge_bundle).send(images))
    mixed = Receiver(edge_bundle, KEY).receive(Transmitter(edge_bundle, KEY, "mix").send(images))
    assert np.abs(mixed - plain).max() < 2e-3  # two scales of different grain, 0.034 % each


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("defense", MODES)
def test_black_white_and_flat_pictures(edge_model, edge_bundle, bundle, defense, engine):
    images = np.zeros((4, 3, 32, 24), np.float32)
    images[1], images[2], images[3, 0] = 1, 0.5, 1
    frames = Transmitter(edge_bundle, KEY, defense, engine).send(images)
    got = Receiver(edge_bundle, KEY, engine).receive(frames)
    assert psnr(in_torch(edge_model, *undefended(frames, bundle.digest), 1e-4), got).min() > WORST_DB["fp32"]
    features = features_in_torch(edge_model, images, 10.0).astype(np.float32)
    symbols, scales = channel.to_unit_power(features)
    exact = in_torch(edge_model, symbols, [Header("none", b"", 0, scale=scale, snr_db=10.0) for scale in scales], 1e-4)
    assert np.abs(got - exact).max() < 2e-3


@pytest.mark.parametrize("defense", [mode for mode in MODES if "substitute" in mode])
def test_an_odd_batch_meets_a_noise_tensor_that_has_no_scale(edge_model, edge_bundle, bundle, small_images, defense):
    images = small_images(3)
    frames = Transmitter(edge_bundle, KEY, defense).send(images)
    headers = headers_of(frames, bundle.digest)
    assert [header.noise for header in headers] == [False, False, False, True]
    assert [header.scale is None for header in headers] == [False, False, False, True]
    received = radio(frames)
    got = Receiver(edge_bundle, KEY, snr_db=10).receive(received)
    reals, headers = undefended(received, bundle.digest)
    assert psnr(in_torch(edge_model, reals[:3], headers[:3], 0.1), got).min() > WORST_DB["fp32"]


@pytest.mark.parametrize("defense", ["none", "permute+substitute", "mix"])
@pytest.mark.parametrize("engine", ENGINES)
def test_pictures_as_bytes(edge_bundle, defense, engine):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 24, 3), np.uint8)
    floats = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    frames = Transmitter(edge_bundle, KEY, defense, engine).send(pixels)
    as_floats = Receiver(edge_bundle, KEY, engine).receive(frames)
    got = Receiver(edge_bundle, KEY, engine).receive(frames, "uint8")
    assert got.dtype == np.uint8
    assert got.shape == (3, 32, 24, 3)
    assert np.abs(got - 255 * as_floats.transpose(0, 2, 3, 1)).max() <= 0.5 + 1e-3
    other = Receiver(edge_bundle, KEY, engine).receive(Transmitter(edge_bundle, KEY, defense, engine).send(floats))
    assert np.abs(as_floats - other).max() < 2e-3


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 20.0])
@pytest.mark.parametrize("defense", ["none", "permute+substitute", "mix"])
def test_bob_measures_the_noise_of_a_frame_or_pair(edge_bundle, small_images, defense, snr_db):
    noise = 10 ** (-snr_db / 10)
    received = radio(Transmitter(edge_bundle, KEY, defense).send(small_images(64)), snr_db)
    together = 2 if "substitute" in defense else 1
    measured = np.array([power(frame.symbols) for frame in received]).reshape(-1, together).mean(axis=1) - 1
    symbols = 64 * len(received[0].symbols)
    assert abs(measured.mean() - noise) < 5 * np.sqrt((2 * noise + noise**2) / symbols)  # of the mean power, 5 deviations
    for start in range(0, 64, 16):
        some = received[start : start + together]
        told = -10 * np.log10(max(measured[start // together], 1e-4))
        own = Receiver(edge_bundle, KEY).receive(some)
        assert np.abs(own - Receiver(edge_bundle, KEY, snr_db=told).receive(some)).max() < 1e-5


def test_of_a_lost_partner_no_noise_is_measured(edge_bundle, small_images):
    received = radio(Transmitter(edge_bundle, KEY, "substitute").send(small_images(2)), 0.0)[:1]
    told = -10 * np.log10(max(power(received[0].symbols) - 1, 1e-4))
    with pytest.warns(UserWarning, match="did not arrive"):
        own = Receiver(edge_bundle, KEY).receive(received)
    with pytest.warns(UserWarning, match="did not arrive"):
        assert np.abs(own - Receiver(edge_bundle, KEY, snr_db=told).receive(received)).max() < 1e-5


def test_what_bob_is_told_of_the_noise_matters_and_so_does_what_alice_expects(edge_bundle, bundle, small_images):
    images = small_images(8)
    received = radio(Transmitter(edge_bundle, KEY, snr_db=0).send(images), 0.0)
    right, wrong = (psnr(images, Receiver(edge_bundle, KEY, snr_db=snr).receive(received)).mean() for snr in (0, 25))
    assert right > wrong + 0.5
    for told, header in ((None, 10.0), (3.1, 3.0), (-100, -32.0), (100, 31.75)):
        frame = Transmitter(edge_bundle, KEY, snr_db=told).send(images[:1])[0]
        assert headers_of([frame], bundle.digest)[0].snr_db == header
    one, two = (Transmitter(edge_bundle, snr_db=snr).send(images[:1])[0].symbols for snr in (0, 20))
    assert np.abs(one - two).max() > 1e-3


@pytest.mark.parametrize("end", [Transmitter, Receiver])
def test_an_snr_is_refused_by_models_that_are_told_none_and_where_it_is_no_number(small_bundle, edge_bundle, end):
    with pytest.raises(ValueError, match=r"is for an SNR of 10 dB and is told none: leave snr_db out"):
        end(small_bundle, snr_db=10)
    for bad in (float("nan"), float("inf"), 101, -4000):
        with pytest.raises(ValueError, match=r"snr_db must be in -100\.\.100, got"):
            end(edge_bundle, snr_db=bad)
    end(edge_bundle, snr_db=-100)


@pytest.mark.parametrize("key", [None, KEY])
def test_frames_without_a_scale_are_refused_and_use_nothing_up(edge_bundle, bundle, small_images, key):
    frame = Transmitter(edge_bundle, key).send(small_images(1))[0]
    sealer = HeaderSealer(key, bundle.digest)
    header = sealer.open(frame.header)
    stripped = Frame(frame.symbols, sealer.seal(Header(header.mode, header.session, header.counter)))
    receiver = Receiver(edge_bundle, key)
    with pytest.raises(HeaderError, match="frame 0: its header carries no scale"):
        receiver.receive([stripped])
    assert len(receiver.receive([frame])) == 1


def test_models_without_a_scale_send_none(small_bundle, small_images):
    digest = open_bundle(small_bundle).digest
    for defense in MODES:
        frames = Transmitter(small_bundle, KEY, defense).send(small_images(2))
        assert all(header.scale is None for header in headers_of(frames, digest))


def test_the_scale_cannot_be_changed_on_the_way(edge_bundle, small_images):
    frame = Transmitter(edge_bundle, KEY, "mix").send(small_images(1))[0]
    for i in range(29, 52):
        changed = bytearray(frame.header)
        changed[i] ^= 0x10
        with pytest.raises(HeaderError, match="does not authenticate"):
            Receiver(edge_bundle, KEY).receive([Frame(frame.symbols, bytes(changed))])


def test_an_encoder_that_overflows_is_an_engine_error(edge_model, small_images, tmp_path):
    loud = copy.deepcopy(edge_model)
    with torch.no_grad():
        loud.encoder.linear.weight.mul_(1e30)
    with np.errstate(all="ignore"):
        export_model(loud, tmp_path / "loud", {"snr_db": [0.0, 20.0]}, precisions=("fp32",), signing_key=owner_key())
        for defense in MODES:
            with pytest.raises(EngineError, match=r"images \[0, 1\] came out of the transmitter without symbols"):
                Transmitter(tmp_path / "loud", KEY, defense).send(small_images(2))
