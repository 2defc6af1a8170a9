import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from semseal.runtime.defense.defenses import MODES
from semseal.runtime.defense.header import WINDOW, Header, HeaderSealer, ReplayWindow, new_session, quantized_snr
from semseal.runtime.errors import HeaderError

KEY, MODEL = b"k" * 32, b"m" * 32
SESSION = b"s" * 16


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("scale", [None, 0.125, 1.0, 2.0**31.5])
def test_round_trip(mode, noise, scale):
    header = Header(mode, SESSION, 2**63 + 1, p=255, s=7, noise=noise, scale=scale, snr_db=-2.25)
    data = HeaderSealer(KEY, MODEL).seal(header)
    assert len(data) == 52
    assert HeaderSealer(KEY, MODEL).open(data) == header


@pytest.mark.parametrize("scale", [None, 0.125])
def test_round_trip_without_a_key(scale):
    header = Header("none", SESSION, 2**63 + 1, scale=scale, snr_db=31.75)
    data = HeaderSealer(None, MODEL).seal(header)
    assert len(data) == 36
    assert HeaderSealer(None, MODEL).open(data) == header


def sent(**fields):
    """A header as Bob reads it."""
    sealer = HeaderSealer(KEY, MODEL)
    return sealer.open(sealer.seal(Header("mix", SESSION, 1, **fields)))


SMALLEST, LARGEST = 2.0 ** (-32767 / 1024), 2.0 ** (32767 / 1024)  # scales that a header can carry


@given(st.floats(SMALLEST, LARGEST))
def test_a_scale_is_off_by_0_034_percent_at_most_and_sent_again_unchanged(scale):
    got = sent(scale=scale).scale
    assert abs(got / scale - 1) <= 3.4e-4
    assert sent(scale=got).scale == got


@given(st.floats(SMALLEST, LARGEST), st.floats(1, 2))
def test_a_larger_scale_is_never_read_as_a_smaller_one(scale, more):
    one, two = sent(scale=scale).scale, sent(scale=scale * more).scale
    assert one <= two
    if more > 1.0007:
        assert one < two or two == LARGEST


@pytest.mark.parametrize(
    ("scale", "got"), [(1e-300, SMALLEST), (5e-324, SMALLEST), (1e300, LARGEST), (1.0, 1.0), (1e6, 2.0 ** (20410 / 1024))]
)
def test_scales_beyond_what_a_header_carries_are_the_nearest_that_it_does(scale, got):
    # 1e6 is what the symbols of a silent picture are multiplied by
    assert sent(scale=scale).scale == got


def test_every_scale_of_a_header_is_its_own():
    codes = [*range(1, 65536, 61), 32767, 32768, 32769, 65535]
    for code in codes:
        assert sent(scale=2.0 ** ((code - 32768) / 1024)).scale == 2.0 ** ((code - 32768) / 1024)


@given(st.floats(-32, 31.75), st.floats(0, 10))
def test_an_snr_is_off_by_an_eighth_of_a_decibel_at_most(snr_db, more):
    got = sent(snr_db=snr_db).snr_db
    assert abs(got - snr_db) <= 0.125
    assert got == quantized_snr(snr_db) == quantized_snr(got)
    assert sent(snr_db=snr_db + more).snr_db >= got


@pytest.mark.parametrize(("snr_db", "got"), [(-1e9, -32.0), (-32.0, -32.0), (0.0, 0.0), (31.8, 31.75), (1e9, 31.75)])
def test_snrs_beyond_what_a_header_carries_are_the_nearest_that_it_does(snr_db, got):
    assert sent(snr_db=snr_db).snr_db == quantized_snr(snr_db) == got


def test_every_flipped_bit_is_refused():
    data = HeaderSealer(KEY, MODEL).seal(Header("permute", SESSION, 5, 1, 2, scale=2.5, snr_db=10))
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(HeaderError):
            HeaderSealer(KEY, MODEL).open(bytes(changed))


@pytest.mark.parametrize("size", [0, 1, 28, 29, 30, 36, 48, 49, 51])
def test_every_shorter_header_is_refused(size):
    data = HeaderSealer(KEY, MODEL).seal(Header("permute", SESSION, 5, 1, 2))
    with pytest.raises(HeaderError):
        HeaderSealer(KEY, MODEL).open(data[:size])


def test_longer_header_is_refused():
    data = HeaderSealer(KEY, MODEL).seal(Header("permute", SESSION, 5, 1, 2))
    with pytest.raises(HeaderError):
        HeaderSealer(KEY, MODEL).open(data + b"\0")


def test_wrong_key_and_wrong_model_are_refused():
    data = HeaderSealer(KEY, MODEL).seal(Header("permute", SESSION, 5))
    with pytest.raises(HeaderError, match="wrong key"):
        HeaderSealer(b"e" * 32, MODEL).open(data)
    with pytest.raises(HeaderError, match="another model"):
        HeaderSealer(KEY, b"n" * 32).open(data)


def test_unsealed_header_is_refused_by_who_has_a_key_and_read_by_who_has_none():
    data = HeaderSealer(None, MODEL).seal(Header("none", SESSION, 5))
    assert HeaderSealer(None, MODEL).open(data) == Header("none", SESSION, 5)
    with pytest.raises(HeaderError, match="not authenticated"):
        HeaderSealer(KEY, MODEL).open(data)
    with pytest.raises(HeaderError, match="has no key"):
        HeaderSealer(None, MODEL).open(HeaderSealer(KEY, MODEL).seal(Header("none", SESSION, 5)))
    with pytest.raises(ValueError, match="needs a key"):
        HeaderSealer(None, MODEL).seal(Header("permute", SESSION, 5))


def test_the_same_choice_is_sealed_differently_for_every_counter_and_session():
    sealer = HeaderSealer(KEY, MODEL)
    places = [(session, counter) for session in (SESSION, b"t" * 16) for counter in range(200)]
    sealed = [sealer.seal(Header("permute", session, counter, 77, 88))[29:33] for session, counter in places]
    assert len(set(sealed)) == 400
    assert b"\x4d\x00\x58\x00" not in sealed


def test_the_same_scale_is_sealed_differently_for_every_counter_and_as_long_as_none():
    sealer = HeaderSealer(KEY, MODEL)
    headers = [Header("mix", SESSION, counter, scale=1.0) for counter in range(200)]
    sealed = [sealer.seal(header)[33:36] for header in headers]
    assert len(set(sealed)) == 200
    assert len(sealer.seal(replace(headers[0], scale=None))) == len(sealer.seal(headers[0]))


# made with the package cryptography from docs/wire.md, not with what is tested
VECTORS = json.loads((Path(__file__).parent / "vectors" / "header-v2.json").read_text())


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["what"] for vector in VECTORS])
def test_known_answers(vector):
    key = None if vector["key"] is None else bytes.fromhex(vector["key"])
    sealer = HeaderSealer(key, bytes.fromhex(vector["model"]))
    data = bytes.fromhex(vector["data"])
    if vector["outcome"] == "opened":
        header = Header(**{**vector["header"], "session": bytes.fromhex(vector["header"]["session"])})
        assert sealer.open(data) == header
        assert sealer.seal(header) == data
    else:
        with pytest.raises(HeaderError, match=vector["outcome"]):
            sealer.open(data)


def test_neither_choice_nor_scale_is_in_a_text():
    text = repr(Header("permute", SESSION, 1, p=77, s=77, scale=77.77))
    assert "77" not in text


@given(st.floats(-32, 31.75), st.floats(SMALLEST, LARGEST))
def test_bytes_are_as_written_down_in_the_wire_document(snr_db, scale):
    data = HeaderSealer(None, MODEL).seal(Header("none", SESSION, 2, scale=scale, snr_db=snr_db))
    assert data[:29] == b"sS\2\0\0" + SESSION + (2).to_bytes(8, "little")
    assert data[29:33] == bytes(4)
    code = int.from_bytes(data[33:35], "little")
    assert abs(code - 32768 - 1024 * math.log2(scale)) <= 0.5 + 1e-9
    assert abs(data[35] - 4 * (snr_db + 32)) <= 0.5


def test_sessions_are_never_the_same():
    assert len({new_session() for _ in range(100)}) == 100


@given(st.lists(st.integers(0, 3 * WINDOW), max_size=60))
def test_replay_window_accepts_each_counter_once(counters):
    window, accepted, highest = ReplayWindow(), set(), -1
    for counter in counters:
        fresh = window.fresh(Header("none", SESSION, counter))
        assert fresh == (counter not in accepted and counter > highest - WINDOW)
        if fresh:
            window.accept(Header("none", SESSION, counter))
            accepted.add(counter)
            highest = max(highest, counter)


def test_replay_windows_of_sessions_are_apart():
    window = ReplayWindow()
    window.accept(Header("none", SESSION, 9))
    assert window.fresh(Header("none", b"t" * 16, 9))
