"""OpenSSF Model Signing. ``.ci/others`` lets ``model_signing`` itself verify what is written here."""

import base64
import hashlib
import json
import shutil

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from semseal.export.oms import public_pem, signing_key, write_model_signature
from semseal.runtime.bundle import open_bundle, write_bundle
from semseal.runtime.errors import BundleError
from semseal.runtime.signing import generate_owner, owner_key

SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")  # of RFC 8032
KNOWN = 0xDE870D8ADCBBA9CACE4B0BC0DC8E6F5EF05DDC6F915B99ECB90128F664C8814E  # made of it with hmac alone


@pytest.fixture
def bundle(tmp_path):
    packaged = open_bundle("photos-10db")
    files = {name: packaged.read(name) for name in packaged.manifest["files"] if ".fp32." in name}
    files["engines/receiver.fp32.tensorrt.engine"] = b"a plan"
    manifest = {name: packaged.manifest[name] for name in ("model", "snr_db")} | {"precisions": ["fp32"]}
    return write_bundle(tmp_path / "link", files, manifest, owner_key())


def statement(path, public):
    """Of a signature that verifies; as the specifications of Sigstore bundle, DSSE and in-toto say."""
    whole = json.loads(path.read_text())
    assert whole["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert whole["verificationMaterial"]["publicKey"]["hint"] == hashlib.sha256(public.read_bytes()).hexdigest()
    envelope = whole["dsseEnvelope"]
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
    (signature,) = envelope["signatures"]
    signed = b" ".join([b"DSSEv1", str(len(kind)).encode(), kind.encode(), str(len(payload)).encode(), payload])
    load_pem_public_key(public.read_bytes()).verify(base64.b64decode(signature["sig"]), signed, ec.ECDSA(SHA256()))
    return json.loads(payload)


def test_every_file_of_the_bundle_is_signed(tmp_path, bundle):
    public = write_model_signature(bundle, tmp_path / "link.sig", owner_key())
    found = statement(tmp_path / "link.sig", public)
    resources = found["predicate"]["resources"]
    there = sorted(str(file.relative_to(bundle.path)) for file in bundle.path.rglob("*") if file.is_file())
    assert [resource["name"] for resource in resources] == there
    for resource in resources:
        data = (bundle.path / resource["name"]).read_bytes()
        assert (resource["algorithm"], resource["digest"]) == ("sha256", hashlib.sha256(data).hexdigest())
    whole = hashlib.sha256(b"".join(bytes.fromhex(resource["digest"]) for resource in resources)).hexdigest()
    assert found["subject"] == [{"name": "link", "digest": {"sha256": whole}}]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "link.sig", "link.sig.pem"]


def test_a_packaged_bundle_is_signed_without_a_signature_of_its_own(tmp_path):
    public = write_model_signature(open_bundle("edge"), tmp_path / "edge.sig", owner_key())
    names = {resource["name"] for resource in statement(tmp_path / "edge.sig", public)["predicate"]["resources"]}
    assert "manifest.json" in names
    assert "signature" not in names


def test_another_key_or_payload_does_not_verify(tmp_path, bundle):
    public = write_model_signature(bundle, tmp_path / "link.sig", owner_key())
    mine = public.read_bytes()
    public.write_bytes(public_pem(signing_key(generate_owner())))
    whole = json.loads((tmp_path / "link.sig").read_text())
    whole["verificationMaterial"]["publicKey"]["hint"] = hashlib.sha256(public.read_bytes()).hexdigest()
    (tmp_path / "link.sig").write_text(json.dumps(whole))
    with pytest.raises(InvalidSignature):
        statement(tmp_path / "link.sig", public)
    public.write_bytes(mine)
    write_model_signature(bundle, tmp_path / "link.sig", owner_key())
    whole = json.loads((tmp_path / "link.sig").read_text())
    payload = base64.b64decode(whole["dsseEnvelope"]["payload"]).replace(b"a", b"b", 1)
    whole["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    (tmp_path / "link.sig").write_text(json.dumps(whole))
    with pytest.raises(InvalidSignature):
        statement(tmp_path / "link.sig", public)


def test_an_owner_has_one_key_for_it():
    owner = Ed25519PrivateKey.from_private_bytes(SEED)
    key = signing_key(owner)
    assert key.curve.name == "secp256r1"
    assert public_pem(key) == public_pem(signing_key(owner)) != public_pem(signing_key(generate_owner()))
    # a known answer, so that another version of this derives the same key
    assert key.private_numbers().private_value == KNOWN
    assert SEED.hex() not in f"{key.private_numbers().private_value:x}"


def test_what_does_not_hold_is_not_signed(tmp_path, bundle):
    with pytest.raises(BundleError, match=r"(?s)lies in the bundle.*another --oms"):
        write_model_signature(bundle, bundle.path / "model.sig", owner_key())
    (tmp_path / "linked").symlink_to(bundle.path)
    with pytest.raises(BundleError, match="lies in the bundle"):
        write_model_signature(bundle, tmp_path / "linked" / "model.sig", owner_key())
    (bundle.path / "notes.txt").write_text("by hand")
    with pytest.raises(BundleError, match=r"notes.txt is not listed"):
        write_model_signature(bundle, tmp_path / "link.sig", owner_key())
    (bundle.path / "notes.txt").unlink()
    shutil.copy(bundle.path / "transmitter.fp32.onnx", bundle.path / "receiver.fp32.onnx")
    with pytest.raises(BundleError, match="does not match its digest"):
        write_model_signature(bundle, tmp_path / "link.sig", owner_key())
    assert not list(tmp_path.glob("link.sig*"))
