import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from semseal.runtime.defense.keys import KEY_SIZE, KeyStream, derive, generate_key, load_key, read_key
from semseal.runtime.errors import KeyFileError


def write_key(path, key):
    """A key file of the old form."""
    path.write_text(f"semseal-key-v1\n{base64.b64encode(key).decode()}\n")
    path.chmod(0o600)


def test_a_key_file_is_read(tmp_path):
    key = generate_key()
    write_key(tmp_path / "k", key)
    assert read_key(tmp_path / "k") == load_key(str(tmp_path / "k")) == load_key(key) == key


@pytest.mark.parametrize("size", [0, 1, 31, 33, 64])
def test_key_of_another_size(size):
    with pytest.raises(KeyFileError, match=f"exactly 32 bytes, got {size}"):
        load_key(bytes(size))


def test_key_file_that_others_can_read_is_refused(tmp_path):
    write_key(tmp_path / "k", generate_key())
    os.chmod(tmp_path / "k", 0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        read_key(tmp_path / "k")


SECRET = base64.b64encode(bytes(range(32))).decode()


@pytest.mark.parametrize(
    "text", ["", "semseal-key-v1\n", f"semseal-key-v2\n{SECRET}\n", f"semseal-key-v1\n{SECRET[:-4]}\n",
             f"semseal-key-v1\n{SECRET[:-1]}!\n", f"semseal-key-v1\n{SECRET}\nmore\n", "semseal-key-v1\n\u00e9\n"]
)  # fmt: skip
def test_damaged_key_file_is_refused_without_showing_it(tmp_path, text):
    (tmp_path / "k").write_text(text)
    os.chmod(tmp_path / "k", 0o600)
    with pytest.raises(KeyFileError) as caught:
        read_key(tmp_path / "k")
    assert str(tmp_path / "k") in str(caught.value)
    assert SECRET[:8] not in str(caught.value)


@pytest.mark.parametrize("secret", ["0123456789abcdef0123456789abcdef", "ab" * 32, SECRET])
def test_a_key_given_as_text_is_not_repeated(secret):
    with pytest.raises(KeyFileError, match="a raw key is 32 bytes") as caught:
        load_key(secret)
    assert secret[:8] not in str(caught.value)


def test_missing_key_file_names_the_fix(tmp_path):
    with pytest.raises(KeyFileError, match="semseal keygen"):
        read_key(tmp_path / "none")


def test_derived_keys_differ_by_label_salt_and_key():
    keys = {derive(bytes(32), b"a"), derive(bytes(32), b"b"), derive(bytes(32), b"a", b"s"), derive(b"\1" * 32, b"a")}
    assert len(keys) == 4
    assert all(len(key) == KEY_SIZE for key in keys)


def test_key_stream_is_rfc_8439_chacha20():
    # appendix A.1, test vector 1: zero key, nonce and counter; the block begins 76 b8 e0 ad a0 f1 3d 90
    stream = KeyStream(bytes(32))
    assert [stream.below(2**32), stream.below(2**32)] == [0xADE0B876, 0x903DF1A0]


@given(st.integers(1, 2**32))
def test_below_stays_below(n):
    stream = KeyStream(bytes(32))
    assert all(0 <= stream.below(n) < n for _ in range(20))


def test_below_rejects_what_would_bias():
    # for n = 3 * 2^30 a quarter of all words is thrown away; without that 0..2^30-1 would come up half of the time
    stream = KeyStream(b"\2" * 32)
    low = sum(stream.below(3 * 2**30) < 2**30 for _ in range(3000))
    assert 850 < low < 1150


def test_permutations_are_uniform():
    stream = KeyStream(b"\3" * 32)
    counts = dict.fromkeys([(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)], 0)
    for _ in range(6000):
        counts[tuple(stream.permutation(3))] += 1
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 20.5  # chi square, 5 degrees, p = 0.001


def test_a_long_text_in_the_place_of_a_key_file_is_not_shown():
    secret = "c2VjcmV0" * 60  # longer than a file name may be
    with pytest.raises(KeyFileError, match="there is no such file") as refused:
        load_key(secret)
    assert "c2VjcmV0" not in str(refused.value)
