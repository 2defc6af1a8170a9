"""The sockets' bytes, written from docs/wire.md alone, against known answers and the program's own."""

import hashlib
import hmac
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from semseal.runtime.net import wire
from semseal.runtime.net.identity import certificate, name

KNOWN = json.loads((Path(__file__).parent / "vectors" / "transport-v1.json").read_text())
KINDS = {"HELLO": 1, "WELCOME": 2, "FRAME": 4, "READY": 5, "SENT": 6, "DONE": 7}


def hkdf(key: bytes, info: bytes) -> bytes:
    """RFC 5869, one block."""
    return hmac.digest(hmac.digest(bytes(32), key, hashlib.sha256), info + b"\x01", hashlib.sha256)


def der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    size = length if len(body) < 128 else bytes([0x80 + len(length)]) + length
    return bytes([tag]) + size + body


def a_certificate(key: bytes, role: str) -> bytes:
    """As the page says it, in DER."""
    private = Ed25519PrivateKey.from_private_bytes(hkdf(key, f"semseal/v1/transport/{role}".encode()))
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    algorithm = der(0x30, bytes.fromhex("06032b6570"))
    common = f"semseal {role} {hkdf(key, b'semseal/v1/transport/name')[:8].hex()}".encode()
    subject = der(0x30, der(0x31, der(0x30, bytes.fromhex("0603550403"), der(0x0C, common))))
    dates = der(0x30, der(0x17, b"000101000000Z"), der(0x18, b"99991231235959Z"))
    of_the_key = der(0x30, algorithm, der(0x03, b"\0", public))
    signed = der(0x30, der(0xA0, b"\x02\x01\x02"), b"\x02\x01\x01", algorithm, subject, dates, subject, of_the_key)
    return der(0x30, signed, algorithm, der(0x03, b"\0", private.sign(signed)))


def a_message(kind: str, told: dict) -> bytes:
    number = struct.pack("<Q", told.get("number", 0))
    rest = {
        "HELLO": lambda: b"\x01" + bytes.fromhex(told["digest"] + told["stream"])
        + struct.pack("<BIH", told["real_bytes"], told["n"], told["count"]),
        "WELCOME": lambda: b"\x01" + bytes.fromhex(told["instance"]) + struct.pack("<H", told["window"]),
        "FRAME": lambda: number + bytes.fromhex(told["header"]),
        "READY": lambda: number,
        "SENT": lambda: number,
        "DONE": lambda: number + struct.pack("<BHH", told["outcome"], told["arrived"], told["count"]) + told["why"].encode(),
    }[kind]()  # fmt: skip
    return struct.pack("<BH", KINDS[kind], len(rest)) + rest


def some_datagrams(header: bytes, symbols: list, real_bytes: int, count: int) -> list[bytes]:
    made = []
    for i in range(count):
        reals = [real for symbol in symbols[i::count] for real in symbol]
        head = b"sU" + bytes([1, real_bytes]) + header[5:29] + struct.pack("<HH", i, count)
        made.append(head + struct.pack(f"<{len(reals)}{'e' if real_bytes == 2 else 'f'}", *reals))
    return made


@pytest.mark.parametrize("role", ["sender", "receiver"])
def test_certificates(role):
    key = bytes.fromhex(KNOWN["identity"]["K"])
    known = bytes.fromhex(KNOWN["identity"]["certificates"][role])
    assert a_certificate(key, role) == known == certificate(key, role).public_bytes(Encoding.DER)
    assert name(key) == KNOWN["identity"]["name"]


@pytest.mark.parametrize("kind", KINDS)
def test_messages(kind):
    told = KNOWN["messages"][kind]
    known = bytes.fromhex(told["bytes"])
    assert a_message(kind, told) == known
    rest = known[3:]
    if kind == "HELLO":
        found = wire.hello(rest)
        assert wire.message(wire.Kind.HELLO, found.pack()) == known
        assert (found.real_bytes, found.n, found.datagrams) == (told["real_bytes"], told["n"], told["count"])
    elif kind == "WELCOME":
        assert wire.welcome(rest).window == told["window"]
        assert wire.message(wire.Kind.WELCOME, wire.welcome(rest).pack()) == known
    elif kind == "FRAME":
        assert wire.frame(rest) == (told["number"], bytes.fromhex(told["header"]))
        assert wire.frame_message(*wire.frame(rest)) == known
    elif kind == "DONE":
        assert wire.done(rest) == (told["number"], told["outcome"], told["arrived"], told["count"], told["why"])
        assert wire.message(wire.Kind.DONE, wire.done(rest).pack()) == known
    else:
        assert wire.number(rest) == told["number"]
        assert wire.numbered(wire.Kind[kind], told["number"]) == known


@pytest.mark.parametrize("real_bytes", [2, 4])
def test_datagrams(real_bytes):
    header, symbols = bytes.fromhex(KNOWN["frame"]["header"]), KNOWN["frame"]["symbols"]
    known = [bytes.fromhex(data) for data in KNOWN["frame"]["datagrams"][str(real_bytes)]]
    assert some_datagrams(header, symbols, real_bytes, 2) == known
    on_air = np.array([complex(*symbol) for symbol in symbols], np.complex64)
    assert list(wire.datagrams(on_air, header, real_bytes, 2)) == known
