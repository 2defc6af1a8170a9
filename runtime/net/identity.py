"""Who is at the other end of a connection: TLS 1.3, both ways, with keys that both ends derive from the key that they share.

    K of the direction ── HKDF, label of a role ── Ed25519 key ── self-signed certificate, the same bytes at both ends
                                                                    └── the only one that the other end trusts

So nothing is to be set up beside the keyset, nobody without it completes a handshake, and the key exchange is fresh for every
connection (X25519): what was recorded is not opened by who gets the keyset later. A connection that is sent back to its
origin fails, because the two roles have keys of their own. Which of its keys a receiver shall use, the sender says by a name
that is derived from it, in the clear (the server name of TLS): names can be linked, and tell nothing of the key.

Certificates are made in memory and never touch a disk. They never expire: keys do, and a key that is revoked or beyond its
dates has no certificate from then on. Sessions are not resumed.
"""

import os
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from semseal.runtime.defense.keys import derive
from semseal.runtime.errors import SemsealError
from semseal.runtime.net.wire import ALPN
from semseal.runtime.trust.linkkeys import LinkKey, LinkKeys

SENDER, RECEIVER = "sender", "receiver"

_BEGIN, _END = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_SUFFIX = ".semseal"


def sender_context(key: LinkKey) -> tuple[ssl.SSLContext, str]:
    """What a sender connects with, and the server name that it asks for."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, key.secret, SENDER, RECEIVER)
    return context, name(key.secret) + _SUFFIX


def receiver_context(keys: LinkKeys) -> ssl.SSLContext:
    """What a receiver accepts with: of each connection the key that it asks for, if that may be used now."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _restrict(context)
    context.sni_callback = _chooser(keys)
    return context


def name(secret: bytes) -> str:
    """What a key is called in the clear: 16 hexadecimal digits."""
    return derive(secret, b"semseal/v1/transport/name")[:8].hex()


def _chooser(keys: LinkKeys) -> Callable[[ssl.SSLObject, str, ssl.SSLContext], int | None]:
    def choose(connection: ssl.SSLObject, asked: str | None, _: ssl.SSLContext) -> int | None:
        try:
            found = next((key for key in keys.receiving() if asked == name(key.secret) + _SUFFIX), None)
        except (SemsealError, OSError):  # the file cannot be used any more; the receiver itself says so
            found = None
        if found is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        connection.context = _receiver_context(found.secret)
        return None

    return choose


@lru_cache(maxsize=4)  # as many keys as a keyset has in use
def _receiver_context(secret: bytes) -> ssl.SSLContext:
    return _context(ssl.PROTOCOL_TLS_SERVER, secret, RECEIVER, SENDER)


def _context(protocol: int, secret: bytes, mine: str, other: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    _restrict(context)
    context.load_verify_locations(cadata=certificate(secret, other).public_bytes(Encoding.DER))
    key = _private_key(secret, mine).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    handle = os.memfd_create("certificate", os.MFD_CLOEXEC)  # ssl takes keys from files only
    with open(handle, "wb", buffering=0) as file:
        file.write(key + certificate(secret, mine).public_bytes(Encoding.PEM))
        context.load_cert_chain(f"/proc/self/fd/{handle}")
    return context


def _restrict(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the one certificate that is trusted is the check
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols([ALPN])
    if context.protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # nothing is resumed: a key may have been revoked meanwhile


def _private_key(secret: bytes, role: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(derive(secret, f"semseal/v1/transport/{role}".encode()))


def certificate(secret: bytes, role: str) -> x509.Certificate:
    """The certificate of a role: nothing in it is drawn, so that both ends make the same bytes."""
    key = _private_key(secret, role)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"semseal {role} {name(secret)}")])
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    return made.serial_number(1).not_valid_before(_BEGIN).not_valid_after(_END).sign(key, None)
