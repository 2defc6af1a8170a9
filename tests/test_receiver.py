"""One bad frame costs one frame, one bad picture one picture."""

from pathlib import Path

import numpy as np
import pytest
from semseal.runtime.bundle import write_bundle
from semseal.runtime.defense.defenses import MODES
from semseal.runtime.errors import HeaderError, ReceiveError, SendError
from semseal.runtime.frame import Frame
from semseal.runtime.link import Receiver, Transmitter
from semseal.runtime.receiver import MAX_POWER
from semseal.runtime.signing import owner_key

KEY = b"k" * 32
CASES = Path(__file__).parent / "cases"
PLAIN = [mode for mode in MODES if "substitute" not in mode]

# what may befall a frame on the way, and what is said of it
DAMAGE = {
    "header": ("does not authenticate", lambda symbols, header, _: (symbols, header[:-1] + bytes([header[-1] ^ 1]))),
    "short header": ("too short", lambda symbols, header, _: (symbols, header[:7])),
    "no header": ("too short", lambda symbols, header, _: (symbols, b"")),
    "zeros for a header": ("not a semseal header", lambda symbols, header, _: (symbols, bytes(52))),
    "another's header": ("replay refused", lambda symbols, _, other: (symbols, other)),
    "NaN": ("must be finite", lambda symbols, header, _: (symbols * np.complex64(np.nan), header)),
    "infinity": ("must be finite", lambda symbols, header, _: (np.append(symbols[:-1], np.complex64(np.inf)), header)),
    "1000 times": (r"mean power 1000 at most, got .*e\+06", lambda symbols, header, _: (symbols * np.complex64(1000), header)),
    "lost symbols": (r"symbols must be complex64 \[\d+\], got complex64", lambda symbols, header, _: (symbols[:-3], header)),
}


@pytest.mark.parametrize("defense", PLAIN)
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("place", [2, 4])
def test_a_bad_frame_costs_itself_and_the_good_one_is_taken_later(small_bundle, small_images, defense, damage, place):
    reason, damaged = DAMAGE[damage]
    images = small_images(5)
    frames = Transmitter(small_bundle, KEY, defense).send(images)
    expected = Receiver(small_bundle, KEY).receive(frames)
    bad = Frame(*damaged(frames[place].symbols, frames[place].header, frames[1].header))
    arrived = [*frames[:place], bad, *frames[place + 1 :]]
    for each in (True, False):
        rx = Receiver(small_bundle, KEY)
        if each:
            receptions = rx.receive_each(arrived)
        else:
            with pytest.raises(ReceiveError, match=reason) as caught:
                rx.receive(arrived)
            receptions = caught.value.receptions
        assert len(receptions) == 5
        for i, (reception, image) in enumerate(zip(receptions, expected, strict=True)):
            if i == place:
                assert reception.image is None
                assert isinstance(reception.error, HeaderError)
                assert reception.error.message.startswith(f"frame {place}: ")
            else:
                assert reception.error is None
                assert np.array_equal(reception.image, image)
        assert rx.incomplete == []
        assert np.array_equal(rx.receive([frames[place]]), expected[place : place + 1])  # its counter was not used up
        with pytest.raises(ReceiveError, match=r"replay .* \(and 4 more of 5 frames\)"):
            rx.receive(frames)  # those of all that gave a picture were


def test_results_stand_where_their_frames_stood(small_bundle, small_images):
    images = small_images(7)
    frames = Transmitter(small_bundle, KEY, "mix").send(images)
    expected = Receiver(small_bundle, KEY).receive(frames)
    order = np.random.default_rng(0).permutation(7)
    receptions = Receiver(small_bundle, KEY).receive_each([frames[i] for i in order])
    assert all(np.array_equal(reception.image, expected[i]) for i, reception in zip(order, receptions, strict=True))
    assert Receiver(small_bundle, KEY).receive_each([]) == []


def test_noise_under_anothers_header_keeps_it_out_neither_before_nor_in_the_same_call():
    bob = Receiver("photos-10db", KEY)
    image = np.full((1, 3, 180, 180), 0.3, np.float32)
    image[:, :, 40:90, 20:120] = 0.9
    (frame,) = Transmitter("photos-10db", KEY, "mix").send(image)
    noise = np.random.default_rng(0).standard_normal((3, len(frame.symbols), 2), np.float32).view(np.complex64)[
        ..., 0
    ] / np.float32(2**0.5)
    forged = [Frame(row, frame.header) for row in noise]
    for reception in bob.receive_each(forged):
        assert "mixed under another key or counter" in reception.error.message
    receptions = bob.receive_each([*forged, frame, frame])
    assert [reception.image is not None for reception in receptions] == [False, False, False, True, False]
    assert "mixed under another key or counter" in receptions[2].error.message
    assert "replay refused" in receptions[4].error.message
    assert "replay refused" in bob.receive_each([frame])[0].error.message


@pytest.mark.parametrize("bad", [0, 1])
def test_a_refused_partner_costs_the_rows_that_it_carried_and_is_named(small_bundle, small_images, bad):
    frames = Transmitter(small_bundle, KEY, "substitute").send(small_images(4))
    expected = Receiver(small_bundle, KEY).receive(frames)
    arrived = list(frames)
    arrived[bad] = Frame(frames[bad].symbols * np.complex64(1000), frames[bad].header)
    rx = Receiver(small_bundle, KEY)
    receptions = rx.receive_each(arrived)
    partner = receptions[1 - bad]
    assert "mean power" in receptions[bad].error.message
    assert partner.error.message == (
        f"frame {1 - bad}: the other frame of its pair is frame {bad}, which was refused: the rows that it carried are missing"
    )
    assert np.isfinite(partner.image).all()
    assert rx.incomplete == [1 - bad]
    assert all(np.array_equal(receptions[i].image, expected[i]) and receptions[i].error is None for i in (2, 3))
    arrived[bad] = Frame(frames[bad].symbols, b"")  # nobody can tell whose partner that was
    assert "did not arrive" in Receiver(small_bundle, KEY).receive_each(arrived)[1 - bad].error.message


def test_a_noise_tensor_gives_neither_picture_nor_error(small_bundle, small_images):
    frames = Transmitter(small_bundle, KEY, "substitute").send(small_images(1))
    image, noise = Receiver(small_bundle, KEY).receive_each(frames)
    assert image.image is not None
    assert (image.error, noise.image, noise.error) == (None, None, None)


@pytest.mark.parametrize("key", [None, KEY])
def test_the_bound_of_power_is_where_it_is_said_to_be(small_bundle, small_images, key):
    (frame,) = Transmitter(small_bundle, key).send(small_images(1))
    rx = Receiver(small_bundle, key)
    just_above, just_below = (Frame(frame.symbols * np.complex64(MAX_POWER**0.5 * x), frame.header) for x in (1.001, 0.999))
    assert rx.receive_each([just_above])[0].image is None
    assert rx.receive_each([just_below])[0].image is not None


def test_more_noise_is_taken_where_it_is_told(edge_bundle, small_images):
    (frame,) = Transmitter(edge_bundle).send(small_images(1))
    loud = Frame(frame.symbols * np.complex64(100), frame.header)  # as at -40 dB
    assert Receiver(edge_bundle).receive_each([loud])[0].image is None
    assert Receiver(edge_bundle, snr_db=-40).receive_each([loud])[0].image is not None
    assert Receiver(edge_bundle, snr_db=-20).receive_each([loud])[0].image is None


@pytest.mark.parametrize("defense", [mode for mode in MODES if mode != "mix"])
def test_a_receiver_that_requires_mix_refuses_weaker_modes_that_were_sealed(small_bundle, small_images, defense):
    rx = Receiver(small_bundle, KEY, require="mix")
    weak = Transmitter(small_bundle, KEY, defense).send(small_images(2))
    strong = Transmitter(small_bundle, KEY, "mix").send(small_images(1))
    receptions = rx.receive_each([weak[0], *strong, weak[1]])
    assert [reception.image is not None for reception in receptions] == [False, True, False]
    assert f"its defence is {defense}, and this receiver requires mix" in receptions[0].error.message
    with pytest.raises(HeaderError, match="requires mix"):
        rx.receive(weak)
    assert len(Receiver(small_bundle, KEY).receive(weak)) == 2


def test_what_can_be_required(small_bundle):
    with pytest.raises(ValueError, match="require must be 'mix' or None, got 'permute'"):
        Receiver(small_bundle, KEY, require="permute")
    with pytest.raises(ValueError, match="require='mix' needs a key"):
        Receiver(small_bundle, require="mix")


def test_without_a_key_nothing_is_kept_of_what_was_received(small_bundle, small_images):
    (frame,) = Transmitter(small_bundle).send(small_images(1))
    rx = Receiver(small_bundle)
    first, second = rx.receive_each([frame, frame])
    assert first.image is not None
    assert "replay refused" in second.error.message  # the same frame twice in one call is no picture of its own
    assert rx.receive_each([frame])[0].image is not None


# pictures


@pytest.fixture(scope="module")
def no_floor(tmp_path_factory):
    """A packed pair whose transmitter divides by its own root mean square, which is 0 for a black picture: 0/0."""
    files = {file.name: file.read_bytes() for file in (CASES / "black-picture").glob("*.fp32.onnx")}
    manifest = {"model": {"height": 32, "width": 32, "h": 8, "w": 8, "c": 8}, "snr_db": [10, 10], "precisions": ["fp32"]}
    path = tmp_path_factory.mktemp("bundles") / "no-floor"
    write_bundle(path, files, manifest, owner_key())
    return path


@pytest.mark.parametrize("defense", MODES)
@pytest.mark.parametrize("black", [[0], [1], [4], [2, 3], [0, 3, 4], [0, 1, 2, 3, 4]])
def test_a_picture_without_symbols_is_named_and_costs_no_other(no_floor, defense, black):
    images = np.random.default_rng(0).random((5, 3, 32, 32), np.float32)
    images[black] = 0
    good = [i for i in range(5) if i not in black]
    tx = Transmitter(no_floor, KEY, defense)
    with pytest.raises(SendError, match=r"came out of the transmitter without symbols") as caught:
        tx.send(images)
    assert caught.value.images == tuple(black)
    assert f"images {black} " in caught.value.message
    frames = caught.value.frames
    assert len(frames) == len(good) + (len(good) % 2 if "substitute" in defense else 0)
    assert all(np.isfinite(frame.symbols).all() for frame in frames)
    if good:
        plain = Receiver(no_floor).receive(Transmitter(no_floor).send(images[good]))
        got = Receiver(no_floor, KEY).receive(frames)
        assert np.abs(got - plain).max() < (0.05 if defense == "mix" else 1e-6)  # mix: a scale that is a little off


def test_bad_pictures_in_several_runs_of_the_engine(no_floor):
    images = np.random.default_rng(0).random((150, 3, 32, 32), np.float32)
    black = [0, 63, 64, 100, 149]
    images[black] = 0
    with pytest.raises(SendError) as caught:
        Transmitter(no_floor, KEY, "permute+substitute").send(images)
    assert caught.value.images == tuple(black)
    expected = Receiver(no_floor).receive(Transmitter(no_floor).send(np.delete(images, black, axis=0)))
    assert np.abs(Receiver(no_floor, KEY).receive(caught.value.frames) - expected).max() < 1e-6


def test_black_bytes_are_named_too(no_floor):
    with pytest.raises(SendError, match=r"images \[0\]"):
        Transmitter(no_floor).send(np.zeros((1, 32, 32, 3), np.uint8))


@pytest.mark.parametrize("defense", MODES)
@pytest.mark.parametrize("level", [0, 0.5, 1])
def test_plain_pictures_are_sent_by_models_that_have_a_floor(small_bundle, small_images, defense, level):
    images = small_images(4)
    images[1] = level
    frames = Transmitter(small_bundle, KEY, defense).send(images)
    assert np.isfinite(Receiver(small_bundle, KEY).receive(frames)).all()


def test_values_that_rounding_left_outside_are_clipped(small_bundle, small_images):
    one, tiny = np.float32(1), np.float32(1e-6)
    images = small_images(2)
    images[0, 0, 0, :4] = [np.nextafter(one, 2 * one), -1e-9, 1 + tiny / 2, -tiny]
    images[1, 2, 31, 23] = -0.0
    before = images.copy()
    expected = Transmitter(small_bundle).send(images.clip(0, 1))
    frames = Transmitter(small_bundle).send(images)
    assert [frame.symbols.tobytes() for frame in frames] == [frame.symbols.tobytes() for frame in expected]
    assert np.array_equal(images, before)  # those of the caller stay what they are
    for value, shown in (
        (1.0000021, "1.0000021"),
        (-2e-6, "-2e-06"),
        (1.4, "1.4"),
        (np.nan, "nan"),
        (np.inf, "inf"),
        (300, "300.0"),
    ):
        images[1, 0, 0, 0] = value
        with pytest.raises(ValueError, match=rf"^images must be finite and in 0\.\.1, got [^;]*{shown}[^;]* in image 1$"):
            Transmitter(small_bundle).send(images)
    images[1, 0, 0, 0] = 254
    with pytest.raises(ValueError, match=r"254.0 in image 1; divide bytes by 255$"):
        Transmitter(small_bundle).send(images)
