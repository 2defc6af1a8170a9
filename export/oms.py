"""A signature of a bundle that others can verify: OpenSSF Model Signing 1.0, as ``model_signing verify key`` takes it.

    FILE        a Sigstore bundle (JSON): a DSSE envelope around an in-toto statement with the SHA-256 of every file
    FILE.pem    the public key to verify it with

It says of a bundle what the bundle's own signature says, and that no other file lies in the folder. It replaces nothing: that
signature, which semseal verifies, is Ed25519, and Model Signing takes ECDSA on the curves of NIST only. So the owner signs
with a P-256 key that is derived from the owner's private key, the same every time: nothing else has to be kept, and the P-256
key tells nothing of the other. Whoever verifies pins FILE.pem, which must come from the owner as the line ``semseal-
owner-v1:...`` does.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from semseal.runtime.bundle import MANIFEST, SIGNATURE, Bundle, is_packaged
from semseal.runtime.errors import BundleError
from semseal.runtime.files import check_file_writable, write_atomically

LABEL = b"semseal/v1/model-signing"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256


def signing_key(owner: Ed25519PrivateKey) -> ec.EllipticCurvePrivateKey:
    """The P-256 key that belongs to an owner's key."""
    # 16 bytes more than the order has, so that no key is likelier than another
    drawn = HKDF(SHA256(), 48, None, LABEL).derive(owner.private_bytes_raw())
    return ec.derive_private_key(int.from_bytes(drawn, "big") % (_ORDER - 1) + 1, ec.SECP256R1())


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def write_model_signature(bundle: Bundle, path: Path, owner: Ed25519PrivateKey) -> Path:
    """Sign all files of a bundle, which were compared with their digests, and write ``path``; returns that of the public key.

    Raises BundleError for a bundle that does not hold, for a folder with other files in it, and for a path in the bundle.
    """
    public = check_place(path, bundle.path)
    key, statement = signing_key(owner), _statement(bundle)
    pem = public_pem(key)
    write_atomically(public, pem)
    write_atomically(path, _signed(statement, key, pem))
    return public


def check_place(path: Path, bundle: Path) -> Path:
    """Where the public key of a signature at ``path`` goes. Raises BundleError for a path in the bundle; OSError."""
    if path.absolute().parent.resolve().is_relative_to(bundle.resolve()):
        raise BundleError(
            f"{path} lies in the bundle, which would have a file then that it does not list", "choose another --oms"
        )
    public = path.with_name(f"{path.name}.pem")
    for file in (path, public):
        check_file_writable(file)
    return public


def _statement(bundle: Bundle) -> bytes:
    names = [*bundle.manifest["files"], MANIFEST, *([] if is_packaged(bundle.path) else [SIGNATURE])]
    found = {str(file.relative_to(bundle.path)) for file in bundle.path.rglob("*") if not file.is_dir()}
    if other := sorted(found - set(names)):
        raise BundleError(f"{bundle.path / other[0]} is not listed in the bundle", "remove it: every file would be signed")
    for name in bundle.manifest["files"]:
        bundle.read(name)  # compares it with its digest
    digests = {name: entry["sha256"] for name, entry in bundle.manifest["files"].items()}
    digests |= {name: hashlib.sha256((bundle.path / name).read_bytes()).hexdigest() for name in names if name not in digests}
    resources = [{"name": name, "algorithm": "sha256", "digest": digests[name]} for name in sorted(digests)]
    whole = hashlib.sha256(b"".join(bytes.fromhex(digests[name]) for name in sorted(digests))).hexdigest()
    statement: dict[str, Any] = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": bundle.path.absolute().name, "digest": {"sha256": whole}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []},
            "resources": resources,
        },
    }
    return json.dumps(statement, separators=(",", ":")).encode()


def _signed(statement: bytes, key: ec.EllipticCurvePrivateKey, pem: bytes) -> bytes:
    """The Sigstore bundle of a statement: DSSE signs its type and itself, each behind its length."""
    signature = key.sign(
        b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(statement), statement), ec.ECDSA(SHA256())
    )
    whole = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": hashlib.sha256(pem).hexdigest()}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(statement).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return (json.dumps(whole, indent=1) + "\n").encode()
