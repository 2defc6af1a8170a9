"""Key files of the old form, derived keys and unbiased random integers from a key stream.

The key file holds K of the paper, 32 random bytes, as one line of base64 under a format line; ``semseal keygen`` makes keysets
instead (``semseal.runtime.trust.keyset``). Everything else is derived from K by HKDF (RFC 5869) with a versioned label, so that
no two uses ever share key material.
"""

import base64
import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from semseal.runtime.errors import KeyFileError
from semseal.runtime.files import expanded, keep_private, read_secret, word

KEY_SIZE = 32
_FORMAT = "semseal-key-v1"
_MAX_FILE_BYTES = 4096
_RESTORE = "copy the key file again from the other end, or make a new one for both: semseal keygen FILE"


def generate_key() -> bytes:
    """32 bytes from the operating system's cryptographic generator."""
    return secrets.token_bytes(KEY_SIZE)


def read_key(path: Path) -> bytes:
    """The key of a key file. White space around its lines does no harm.

    Raises KeyFileError for a damaged file or one that other users can read.
    """
    try:
        lines = read_secret(path, _MAX_FILE_BYTES)
    except FileNotFoundError:
        raise KeyFileError(f"there is no key file {path}", f"make one: semseal keygen {word(path)}") from None
    except OSError as error:
        raise KeyFileError(
            f"cannot read the key file {path}: {error.strerror}", "let the user who runs this own it, with mode 0400 or 0600"
        ) from None
    if lines is None:
        raise KeyFileError(f"{path} can be read by other users", f"{keep_private(path)}; or, in Python, pass key= its 32 bytes")
    if len(lines) != 2 or lines[0] != _FORMAT:
        raise KeyFileError(f"{path} is not a key file, or is damaged", _RESTORE)
    try:
        key = base64.b64decode(lines[1], validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY_SIZE:
        raise KeyFileError(f"{path} is damaged: its second line is not the base64 of {KEY_SIZE} bytes", _RESTORE)
    return key


def load_key(key: bytes | str | Path) -> bytes:
    """A key given as its 32 bytes or as the path of a key file."""
    if isinstance(key, bytes):
        return _checked(key)
    if (
        isinstance(key, str) and len(key) >= KEY_SIZE and not os.path.exists(os.path.expanduser(key))
    ):  # unlike Path.exists it takes any length
        # perhaps the key itself as text, so it is not shown
        raise KeyFileError("a key given as str is the path of a key file, and there is no such file", "a raw key is 32 bytes")
    if not isinstance(key, (str, Path)):
        raise KeyFileError(f"key must be 32 bytes or the path of a key file, got {type(key).__name__}")
    return read_key(expanded(key))


def derive(key: bytes, label: bytes, salt: bytes = b"") -> bytes:
    """32 bytes for one purpose; ``label`` is versioned, such as ``b"semseal/v1/header"``."""
    return HKDF(SHA256(), KEY_SIZE, salt or None, label).derive(_checked(key))


class KeyStream:
    """Unbiased integers and permutations from the ChaCha20 key stream (RFC 8439) of one derived key.

    Whoever holds the same key draws the same values. Never make two streams of one key for two purposes.
    """

    def __init__(self, key: bytes) -> None:
        self._encryptor = Cipher(ChaCha20(_checked(key), bytes(16)), mode=None).encryptor()
        self._words: list[int] = []

    def below(self, n: int) -> int:
        """Uniform in 0..n-1 for n up to 2^32: the words that would make a remainder more likely are thrown away."""
        assert 1 <= n <= 2**32
        limit = 2**32 - 2**32 % n
        while True:
            if not self._words:
                block = self._encryptor.update(bytes(4096))
                self._words = [int.from_bytes(block[i : i + 4], "little") for i in range(len(block) - 4, -1, -4)]
            word = self._words.pop()
            if word < limit:
                return word % n

    def permutation(self, n: int) -> list[int]:
        """A uniform permutation of 0..n-1 (Fisher-Yates)."""
        out = list(range(n))
        for i in range(n - 1, 0, -1):
            j = self.below(i + 1)
            out[i], out[j] = out[j], out[i]
        return out


def _checked(key: bytes) -> bytes:
    if len(key) != KEY_SIZE:
        raise KeyFileError(f"key must be exactly {KEY_SIZE} bytes, got {len(key)}")
    return key
