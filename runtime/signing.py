"""Who made a bundle: Ed25519 (RFC 8032) over its manifest, which holds the digest of every other file.

    owner.key     the owner's private key; semseal export signs with it; it stays on the exporting machine
    owner.pub     the public key that this machine trusts, one line: semseal-owner-v1:<base64url of 32 bytes>

Both lie in ``$XDG_CONFIG_HOME/semseal`` (``~/.config/semseal``). The first export makes the pair. A machine that only runs
bundles needs the public line and nothing else: in SEMSEAL_OWNER, in its own owner.pub, or passed as ``owner=``.

A signature says that the owner made these bytes. It does not say that they are the newest: an older bundle of the same owner
passes too (``semseal.runtime.trust.newest`` refuses it where the newer one was opened). It hides nothing, and it is worth as
much as the owner's private key is kept, and the public line was brought here unchanged.
"""

import base64
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from semseal.runtime.errors import SigningError
from semseal.runtime.files import expanded, keep_private, read_secret, word, write_once

SIGNATURE_SIZE = 64
LABEL = b"semseal/v1/bundle\0"
PUBLIC = "semseal-owner-v1:"
VARIABLE = "SEMSEAL_OWNER"
_FORMAT = "semseal-owner-key-v1"
_KEY_SIZE = 32
_PIN = f"take the line as semseal export prints it on the owner's machine, {PUBLIC}..., whole"
_SIGN = "sign with a key file of your own: --sign KEY, or set XDG_CONFIG_HOME to a folder that can be written"
_MAX_KEY_FILE_BYTES = 4096


def generate_owner() -> Ed25519PrivateKey:
    """A new private key from the operating system's cryptographic generator."""
    return Ed25519PrivateKey.generate()


def write_private(path: Path, private: Ed25519PrivateKey) -> None:
    """Write a new key file that only its owner can read (mode 0600). Raises SigningError if the file exists."""
    _write_new(path, f"{_FORMAT}\n{base64.b64encode(private.private_bytes_raw()).decode()}\n", 0o600)


def read_private(path: Path) -> Ed25519PrivateKey:
    """The private key of a key file. Raises SigningError for a damaged file or one that other users can read."""
    lines = _read_lines(path, stat.S_IRWXG | stat.S_IRWXO, ("can be read by other users", keep_private(path)))
    if len(lines) != 2 or lines[0] != _FORMAT:
        raise SigningError(f"{path} is not an owner's private key", "leave out --sign to use this machine's own")
    try:
        return Ed25519PrivateKey.from_private_bytes(base64.b64decode(lines[1], validate=True))
    except ValueError:
        # without the cause, which might show a part of it
        raise SigningError(
            f"{path} is damaged: its second line is not the base64 of {_KEY_SIZE} bytes", "restore it from a copy"
        ) from None


def public_text(private: Ed25519PrivateKey) -> str:
    """The public key as the one line that others pin: ``semseal-owner-v1:`` and 43 characters."""
    return PUBLIC + base64.urlsafe_b64encode(private.public_key().public_bytes_raw()).decode().rstrip("=")


def sign(private: Ed25519PrivateKey, manifest: bytes) -> bytes:
    """The signature of a manifest's bytes, 64 bytes; the same every time."""
    return private.sign(LABEL + manifest)


def verify(public: str, manifest: bytes, signature: bytes) -> None:
    """Raises SigningError unless ``signature`` is that of ``manifest`` by the owner of ``public``, the one line."""
    key = _public_key(public, "the owner's public key")
    try:
        key.verify(signature, LABEL + manifest)
    except InvalidSignature:
        raise SigningError(
            f"the signature is not that of {public}: the bundle was changed, or another owner made it",
            f"make it again on that owner's machine, or, if you trust who made it, pin their line: "
            f"export {VARIABLE}={PUBLIC}... or owner= (--owner)",
        ) from None


def config_folder() -> Path | None:
    """Where the owner's keys lie; None where this user has no home folder."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    if Path(base).is_absolute():  # its specification: any other value is to be ignored
        return Path(base) / "semseal"
    home = expanded("~")
    return home / ".config" / "semseal" if home.is_absolute() else None


def owner_key(path: Path | None = None) -> Ed25519PrivateKey:
    """The private key to sign with: that of a key file, or this machine's own, which is made with its owner.pub at first use.

    Raises SigningError for a key file that cannot be used, where none can be made, and where owner.pub pins somebody else than
    this machine's own key: what is signed here could not be opened here.
    """
    if path is not None:
        return read_private(path)
    folder = config_folder()
    if folder is None:
        raise SigningError("no owner's key to sign with: this user has no home folder", _SIGN)
    private, public = folder / "owner.key", folder / "owner.pub"
    if not os.path.exists(private):
        if os.path.exists(public):
            raise SigningError(
                f"{public} pins an owner whose private key is not on this machine",
                f"sign where it is, or remove {public} to become an owner yourself",
            )
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(private, generate_owner())
        except OSError as error:
            raise SigningError(
                f"no owner's key to sign with: {private} cannot be made: {error.strerror}: {error.filename}", _SIGN
            ) from None
    key = read_private(private)
    if not os.path.exists(public):
        try:
            _write_new(public, public_text(key) + "\n", 0o644)
        except OSError as error:
            raise SigningError(
                f"{public}, which pins this machine's own key, cannot be made: {error.strerror}",
                f"{_SIGN}, or --sign {word(private)}",
            ) from None
    if _read_public(public) != public_text(key):
        raise SigningError(f"{public} pins another owner than {private}", "remove the one that is not wanted")
    return key


def pinned_owner(owner: str | Path | None = None) -> str:
    """The public line that bundles are verified with: ``owner``, else SEMSEAL_OWNER, else owner.pub of the config folder.

    The first two are the line itself or the name of a file that holds it. Raises SigningError when none is there or the
    first that is there cannot be used; the next is not tried then.
    """
    if owner is not None:
        return _given(owner, "owner=")
    if VARIABLE in os.environ:
        return _given(os.environ[VARIABLE], VARIABLE)
    folder = config_folder()
    public = None if folder is None else folder / "owner.pub"
    if public is None or not os.path.exists(public):
        raise SigningError(
            "no owner is pinned on this machine",
            f"get the line {PUBLIC}... from the bundle's owner (owner.pub there), then export {VARIABLE}=..., or pass "
            "owner= (--owner)" + ("" if public is None else f", or save it as {public}"),
        )
    return _read_public(public)


def _given(owner: str | Path, what: str) -> str:
    if isinstance(owner, str) and owner.strip().startswith(PUBLIC):  # as a file or a shell may bring it, with a line's end
        _public_key(owner.strip(), what)
        return owner.strip()
    if isinstance(owner, str) and (not owner or (len(owner) >= _KEY_SIZE and not os.path.exists(os.path.expanduser(owner)))):
        # perhaps a secret in the wrong place, so it is not shown
        raise SigningError(f"{what} is neither an owner's public key ({PUBLIC}...) nor the name of a file that holds one", _PIN)
    return _read_public(expanded(owner))


def _read_public(path: Path) -> str:
    lines = _read_lines(path, stat.S_IWGRP | stat.S_IWOTH, ("can be changed by other users", f"chmod go-w {word(path)}"))
    if len(lines) != 1:
        raise SigningError(f"{path} does not hold an owner's public key: one line, {PUBLIC}...", _PIN)
    _public_key(lines[0], str(path))
    return lines[0]


def _public_key(public: str, what: str) -> Ed25519PublicKey:
    """``public`` itself is not shown: it might be anything."""
    try:
        raw = base64.b64decode(public.removeprefix(PUBLIC) + "=", altchars=b"-_", validate=True)
        if public != PUBLIC + base64.urlsafe_b64encode(raw).decode().rstrip("="):
            raise ValueError("not the one way to write it")
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError:
        raise SigningError(
            f"{what} is not an owner's public key: {PUBLIC} and the base64url of {_KEY_SIZE} bytes", _PIN
        ) from None


def _read_lines(path: Path, unwanted: int, complaint: tuple[str, str]) -> list[str]:
    """The lines of a small text file, as ``read_secret``.

    Raises SigningError, with the ``complaint`` and its fix, where the file's mode has one of the ``unwanted`` bits.
    """
    try:
        lines = read_secret(path, _MAX_KEY_FILE_BYTES, unwanted)
    except OSError as error:
        raise SigningError(f"cannot read the key file {path}: {error.strerror}", "check the name and its mode") from None
    if lines is None:
        raise SigningError(f"{path} {complaint[0]}", complaint[1])
    return lines


def _write_new(path: Path, text: str, mode: int) -> None:
    try:
        write_once(path, text, mode)
    except FileNotFoundError:
        raise SigningError(
            f"cannot write {path}: its folder does not exist", f"mkdir -p {word(path.absolute().parent)}"
        ) from None
    except FileExistsError:
        raise SigningError(f"{path} exists already, and a key is never overwritten", "choose another name") from None
