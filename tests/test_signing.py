import base64
import json
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from semseal.runtime import signing
from semseal.runtime.errors import SigningError
from semseal.runtime.signing import (
    generate_owner,
    owner_key,
    pinned_owner,
    public_text,
    read_private,
    sign,
    verify,
    write_private,
)

VECTORS = json.loads((Path(__file__).parent / "vectors" / "signature-v1.json").read_text())
SEED = bytes.fromhex(VECTORS["private"])
SECRET = base64.b64encode(SEED).decode()
LINE = VECTORS["public"]


@pytest.fixture
def owner():
    return Ed25519PrivateKey.from_private_bytes(SEED)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """An empty config folder, nothing in the environment."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("SEMSEAL_OWNER", raising=False)
    return tmp_path / "xdg" / "semseal"


def pin(path, text):
    path.write_text(text)
    path.chmod(0o644)  # whatever the umask here


def test_the_key_is_that_of_rfc_8032(owner):
    assert owner.public_key().public_bytes_raw().hex() == VECTORS["rfc_public"]
    assert owner.sign(b"").hex() == VECTORS["rfc_signature"]
    assert public_text(owner) == LINE
    assert base64.urlsafe_b64decode(LINE.removeprefix("semseal-owner-v1:") + "=").hex() == VECTORS["rfc_public"]


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: vector["what"])
def test_known_answers(owner, vector):
    manifest, signature = bytes.fromhex(vector["manifest"]), bytes.fromhex(vector["signature"])
    if vector["outcome"] == "verified":
        verify(vector["public"], manifest, signature)
        assert sign(owner, manifest) == signature
    else:
        with pytest.raises(SigningError, match=f"not that of {vector['public']}"):
            verify(vector["public"], manifest, signature)


def test_every_flipped_bit_of_a_signature_and_of_the_key_is_refused(owner):
    manifest = b"a manifest"
    signature = sign(owner, manifest)
    public = bytearray(owner.public_key().public_bytes_raw())
    for bit in range(8 * len(signature)):
        changed = bytearray(signature)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SigningError):
            verify(LINE, manifest, bytes(changed))
    for bit in range(8 * len(public)):
        other = public.copy()
        other[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SigningError):
            verify("semseal-owner-v1:" + base64.urlsafe_b64encode(other).decode()[:43], manifest, signature)


def test_key_file_round_trip_and_mode(tmp_path, owner):
    write_private(tmp_path / "k", owner)
    assert stat.S_IMODE(os.stat(tmp_path / "k").st_mode) == 0o600
    assert read_private(tmp_path / "k").private_bytes_raw() == SEED
    assert [file.name for file in tmp_path.iterdir()] == ["k"]


def test_keys_are_never_the_same():
    assert generate_owner().private_bytes_raw() != generate_owner().private_bytes_raw()


def test_a_key_file_is_never_overwritten(tmp_path, owner):
    write_private(tmp_path / "k", owner)
    with pytest.raises(SigningError, match="exists already"):
        write_private(tmp_path / "k", generate_owner())
    assert read_private(tmp_path / "k").private_bytes_raw() == SEED
    assert [file.name for file in tmp_path.iterdir()] == ["k"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_private_key_that_others_can_read_is_refused(tmp_path, owner, mode):
    write_private(tmp_path / "k", owner)
    os.chmod(tmp_path / "k", mode)
    with pytest.raises(SigningError, match="chmod 600"):
        read_private(tmp_path / "k")


@pytest.mark.parametrize(
    "text", ["", "semseal-owner-key-v1\n", f"semseal-key-v1\n{SECRET}\n", f"semseal-owner-key-v1\n{SECRET[:-4]}\n",
             f"semseal-owner-key-v1\n{SECRET[:-1]}!\n", f"semseal-owner-key-v1\n{SECRET}\nmore\n", f"{SECRET}\n",
             "semseal-owner-key-v1\n\u00e9\n"]
)  # fmt: skip
def test_a_damaged_private_key_is_refused_without_showing_it(tmp_path, text):
    (tmp_path / "k").write_text(text)
    os.chmod(tmp_path / "k", 0o600)
    with pytest.raises(SigningError) as caught:
        read_private(tmp_path / "k")
    assert str(tmp_path / "k") in str(caught.value)
    assert SECRET[:8] not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_missing_files_and_folders_are_named(tmp_path, owner):
    with pytest.raises(SigningError, match=r"none: No such file"):
        read_private(tmp_path / "none")
    with pytest.raises(SigningError, match=r"its folder does not exist\nhint: mkdir -p .*none"):
        write_private(tmp_path / "none" / "k", owner)


def test_the_first_export_makes_the_pair_and_later_ones_keep_it(config):
    key = owner_key()
    assert stat.S_IMODE(os.stat(config).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(config / "owner.key").st_mode) == 0o600
    assert (config / "owner.pub").read_text() == public_text(key) + "\n" == pinned_owner() + "\n"
    assert owner_key().private_bytes_raw() == key.private_bytes_raw()
    assert sorted(file.name for file in config.iterdir()) == ["owner.key", "owner.pub"]


def test_a_given_key_file_is_used_and_none_is_made(config, tmp_path, owner):
    write_private(tmp_path / "k", owner)
    assert owner_key(tmp_path / "k").private_bytes_raw() == SEED
    with pytest.raises(SigningError, match="No such file"):
        owner_key(tmp_path / "none")
    assert not config.exists()


def test_a_lost_owner_pub_is_made_again(config):
    key = owner_key()
    (config / "owner.pub").unlink()
    assert owner_key().private_bytes_raw() == key.private_bytes_raw()
    assert pinned_owner() == public_text(key)


def test_a_machine_that_pins_somebody_else_makes_no_key(config):
    config.mkdir(parents=True)
    pin(config / "owner.pub", LINE + "\n")
    with pytest.raises(SigningError, match="whose private key is not on this machine"):
        owner_key()
    assert [file.name for file in config.iterdir()] == ["owner.pub"]
    write_private(config / "owner.key", generate_owner())
    with pytest.raises(SigningError, match="pins another owner"):
        owner_key()
    assert pinned_owner() == LINE


def test_where_the_config_folder_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", "/somewhere")
    assert signing.config_folder() == Path("/somewhere/semseal")
    for unset in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CONFIG_HOME", unset)
        assert signing.config_folder() == tmp_path / ".config" / "semseal"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert signing.config_folder() == tmp_path / ".config" / "semseal"


def line(fill):
    return public_text(Ed25519PrivateKey.from_private_bytes(bytes([fill]) * 32))


def test_the_argument_goes_before_the_environment_and_that_before_the_file(config, tmp_path, monkeypatch):
    config.mkdir(parents=True)
    pin(config / "owner.pub", line(3) + "\n")
    assert pinned_owner() == line(3)
    pin(tmp_path / "b.pub", line(2))
    monkeypatch.setenv("SEMSEAL_OWNER", str(tmp_path / "b.pub"))
    assert pinned_owner() == line(2)
    monkeypatch.setenv("SEMSEAL_OWNER", line(4))
    assert pinned_owner() == line(4)
    assert pinned_owner(line(1)) == line(1)
    assert pinned_owner(tmp_path / "b.pub") == pinned_owner(str(tmp_path / "b.pub")) == line(2)


def test_no_pin_says_what_to_do(config):
    with pytest.raises(SigningError, match=r"hint: .*export SEMSEAL_OWNER=.*owner=.*owner\.pub"):
        pinned_owner()


def test_a_pin_that_cannot_be_used_is_an_error_and_the_next_is_not_tried(config, tmp_path, monkeypatch):
    owner_key()
    for text in ("", "semseal-owner-v1:", str(tmp_path / "none"), str(tmp_path)):
        monkeypatch.setenv("SEMSEAL_OWNER", text)
        with pytest.raises(SigningError):
            pinned_owner()
        with pytest.raises(SigningError):
            pinned_owner(text)
    with pytest.raises(SigningError, match="No such file"):
        pinned_owner(tmp_path / "none")


BODY = LINE.removeprefix("semseal-owner-v1:")


@pytest.mark.parametrize(
    "text", [BODY, f"semseal-owner-v2:{BODY}", f"semseal-owner-v1:{BODY}=", f"semseal-owner-v1:{BODY[:-1]}",
             f"semseal-owner-v1:{BODY}A", f"semseal-owner-v1:{BODY.replace('_', '/')}", f"semseal-owner-v1:{BODY[:-1]}p",
             f"semseal-owner-v1: {BODY}", f"semseal-owner-v1:{BODY}\n{BODY}", f"SEMSEAL-OWNER-V1:{BODY}",
             f"semseal-owner-v1:{BODY[:-1]}\u00e9", ""]
)  # fmt: skip
def test_a_line_that_is_not_exactly_one_is_refused(tmp_path, text):
    pin(tmp_path / "o.pub", text)
    with pytest.raises(SigningError, match="an owner's public key"):
        pinned_owner(tmp_path / "o.pub")
    with pytest.raises(SigningError):
        pinned_owner(text)


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_pin_that_others_can_change_is_refused(tmp_path, mode):
    pin(tmp_path / "o.pub", LINE)
    os.chmod(tmp_path / "o.pub", mode)
    with pytest.raises(SigningError, match="chmod go-w"):
        pinned_owner(tmp_path / "o.pub")


@pytest.mark.parametrize("secret", [SECRET, SEED.hex(), f"semseal-owner-v1:{SECRET}", SECRET * 100])
def test_a_secret_in_the_wrong_place_is_not_repeated(config, tmp_path, monkeypatch, secret):
    pin(tmp_path / "o.pub", secret)
    monkeypatch.setenv("SEMSEAL_OWNER", secret)
    for place in (secret, tmp_path / "o.pub", None):
        with pytest.raises(SigningError) as caught:
            pinned_owner(place)
        assert secret[20:28] not in str(caught.value)


def test_a_private_key_given_as_pin_is_not_repeated(config, tmp_path):
    write_private(tmp_path / "k", Ed25519PrivateKey.from_private_bytes(SEED))
    with pytest.raises(SigningError, match="does not hold an owner's public key") as caught:
        pinned_owner(tmp_path / "k")
    assert SECRET[:8] not in str(caught.value)
