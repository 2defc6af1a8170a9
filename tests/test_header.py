import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from semseal.runtime.defense.defenses import MODES
from semseal.runtime.defense.header import WINDOW, Header, HeaderSealer, ReplayWindow, new_session
from semseal.runtime.errors import HeaderError

KEY, MODEL = b"k" * 32, b"m" * 32
SESSION = b"s" * 16


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("noise", [False, True])
def test_round_trip(mode, noise):
    header = Header(mode, SESSION, 2**63 + 1, p=255, s=7, noise=noise)
    data = HeaderSealer(KEY, MODEL).seal(header)
    assert len(data) == 49
    assert HeaderSealer(KEY, MODEL).open(data) == header


def test_every_flipped_bit_is_refused():
    data = HeaderSealer(KEY, MODEL).seal(Header("permute", SESSION, 5, 1, 2))
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(HeaderError):
            HeaderSealer(KEY, MODEL).open(bytes(changed))


@pytest.mark.parametrize("size", [0, 1, 28, 29, 30, 48])
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


def test_known_answers():
    for vector in json.loads((Path(__file__).parent / "vectors" / "header-v1.json").read_text()):
        sealer = HeaderSealer(bytes.fromhex(vector["key"]), bytes.fromhex(vector["model"]))
        data = bytes.fromhex(vector["data"])
        if vector["outcome"] == "opened":
            fields = {**vector["header"], "session": bytes.fromhex(vector["header"]["session"])}
            assert sealer.open(data) == Header(**fields), vector["what"]
            assert sealer.seal(Header(**fields)) == data, vector["what"]
        else:
            with pytest.raises(HeaderError, match=vector["outcome"]):
                sealer.open(data)


def test_the_choice_is_in_no_text():
    assert "77" not in repr(Header("permute", SESSION, 1, p=77, s=77))


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
