"""The keyset: the keys of one link, and how long each of them lives.

    {
     "format": "semseal-keyset-v1",
     "link": "5e0d6cf14bb1a9c2",            names the link; the files of both ends have the same
     "purpose": "link",
     "direction": "one-way",                what this end sends: one-way, a-to-b or b-to-a
     "require": "mix",                      frames of every other defence are refused; null: none are for that reason
     "keys": [
      {
       "id": "0f5c2f6fbd9a3e71",            follows from the secret
       "created": "2026-11-26T17:00:00Z",
       "not_before": null,
       "not_after": null,                   UTC; null: no limit. The key counts until one second before
       "state": "primary",                  primary: frames are sent with it; accepted: only received; revoked: neither
       "secret": "..."                      base64 of 32 bytes; null once it is revoked
      }
     ],
     "checksum": "..."                      SHA-256 of the text without this member
    }

The text is canonical: of all ways to write the same JSON only this one is read. So a damaged file is always found out; the
checksum is no signature, and whoever can write the file can make another.

**Directions.** Nobody uses a secret itself. Each direction of a link has its own key, HKDF(secret,
"semseal/v1/link/DIRECTION"), so a frame that is sent back to where it came from does not authenticate there. A file of
direction a-to-b sends with that key and receives with that of b-to-a; ``peer`` makes the other end's file. One-way is for a
link in one direction: both ends have the same file, and one of them only sends.
"""

import base64
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from semseal.runtime.defense.keys import KEY_SIZE, derive, generate_key
from semseal.runtime.errors import KeyFileError
from semseal.runtime.files import word
from semseal.runtime.trust.privatefile import create_private, read_private, replace_private

FORMAT = "semseal-keyset-v1"
DIRECTIONS = {"one-way": "one-way", "a-to-b": "b-to-a", "b-to-a": "a-to-b"}  # what an end sends -> what it receives
STATES = ("primary", "accepted", "revoked")
MAX_USABLE = 4  # keys that a receiver tries
MAX_KEYS = 64  # with the revoked ones, of which the oldest are dropped
MAX_FILE_BYTES = 2**16
OVERLAP_DAYS = 7.0  # for which the last key is accepted after a rotation

_PURPOSE = "link"
_ID = re.compile("[0-9a-f]{16}")
_RESTORE = "copy the file again from the other end (semseal keys peer), or restore it from a copy"


@dataclass(frozen=True)
class Key:
    """One key. Times are seconds since 1970, None for no limit; ``secret`` is None once it is revoked."""

    id: str
    created: int
    not_before: int | None
    not_after: int | None
    state: str
    secret: bytes | None = field(repr=False)

    def is_valid(self, now: float) -> bool:
        """Whether its dates allow its use."""
        return (self.not_before is None or self.not_before <= now) and (self.not_after is None or now < self.not_after)


@dataclass(frozen=True)
class Keyset:
    """The keys of one end of a link, newest first."""

    link: str
    direction: str
    require: str | None
    keys: tuple[Key, ...]

    @property
    def primary(self) -> Key | None:
        """The key that frames are sent with."""
        return next((key for key in self.keys if key.state == "primary"), None)

    @property
    def usable(self) -> tuple[Key, ...]:
        """Those that are not revoked; a receiver takes those of them whose dates allow it."""
        return tuple(key for key in self.keys if key.state != "revoked")


def new_keyset(direction: str, require: str | None, not_before: int | None = None, not_after: int | None = None) -> Keyset:
    """A link of its own with one key."""
    return Keyset(secrets.token_hex(8), direction, require, (new_key(not_before, not_after),))


def new_key(not_before: int | None = None, not_after: int | None = None) -> Key:
    """A primary key from the operating system's cryptographic generator."""
    now, secret = int(time.time()), generate_key()
    if not_after is not None and not_after <= max(now, not_before or 0):
        raise KeyFileError(f"a key that ends at {written(not_after)} could never be used", "choose a later --not-after")
    return Key(_id(secret), now, not_before, not_after, "primary", secret)


def rotate(keyset: Keyset, key: Key, overlap_days: float) -> Keyset:
    """The keyset with ``key`` as its primary. The last primary is accepted for some days more; what has ended is dropped."""
    now = time.time()
    until = int(now + 86400 * overlap_days)
    kept = []
    for old in keyset.keys:
        if old.state == "primary":
            old = replace(old, state="accepted", not_after=until if old.not_after is None else min(until, old.not_after))
        if old.state == "revoked" or old.not_after is None or now < old.not_after:
            kept.append(old)
    made = replace(keyset, keys=(key, *kept[: MAX_KEYS - 1]))
    if len(made.usable) > MAX_USABLE:
        raise KeyFileError(
            f"the keyset would have {len(made.usable)} keys in use, and a receiver tries {MAX_USABLE} at most",
            "revoke those that no sender uses any more: semseal keys revoke FILE ID",
        )
    return made


def revoke(keyset: Keyset, key_id: str) -> Keyset:
    """The keyset without the secret of one key, which is named by its id or the beginning of that."""
    found = [key for key in keyset.keys if key.id.startswith(key_id)]
    if len(found) != 1 or not key_id:
        ids = ", ".join(key.id for key in found or keyset.usable) or "none"
        many = "several keys of the keyset have" if found else "no key of the keyset has"
        raise KeyFileError(f"{many} an id that begins with {key_id!r}", f"give the id of one: {ids}")
    revoked = replace(found[0], state="revoked", secret=None)
    return replace(keyset, keys=tuple(revoked if key is found[0] else key for key in keyset.keys))


def peer(keyset: Keyset) -> Keyset:
    """That of the other end."""
    return replace(keyset, direction=DIRECTIONS[keyset.direction])


def public(keyset: Keyset) -> dict[str, Any]:
    """All of a keyset but its secrets; both ends of a link give the same but for the direction."""
    members = _members(keyset)
    return {**members, "keys": [{name: x for name, x in key.items() if name != "secret"} for key in members["keys"]]}


def direction_key(secret: bytes, direction: str) -> bytes:
    """K of one direction of a link."""
    return derive(secret, f"semseal/v1/link/{direction}".encode())


def read_keyset(path: Path) -> Keyset:
    """Raises KeyFileError for a file that is damaged or no place for a secret (``read_private``)."""
    try:
        data = read_private(path, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise KeyFileError(f"there is no keyset {path}", f"make one: semseal keygen {word(path)}") from None
    return parse(data, path)


def write_keyset(path: Path, keyset: Keyset) -> None:
    """Write a new file. Raises KeyFileError where the name is taken."""
    create_private(path, text(keyset))


def change_keyset(path: Path, change: Callable[[Keyset], Keyset]) -> Keyset:
    """Replace the keyset of a file by ``change`` of it, and return that. Raises KeyFileError; nothing is changed then."""
    made: list[Keyset] = []

    def changed(data: bytes) -> bytes:
        made.append(change(parse(data, path)))
        return text(made[0])

    try:
        replace_private(path, MAX_FILE_BYTES, changed)
    except FileNotFoundError:
        raise KeyFileError(f"there is no keyset {path}", f"make one: semseal keygen {word(path)}") from None
    return made[0]


def write_peer(path: Path, other: Path) -> None:
    """Write the file of the other end, or replace it. Raises KeyFileError where ``other`` holds something else."""
    made = peer(read_keyset(path))

    def checked(old: Keyset) -> Keyset:
        if (old.link, old.direction) != (made.link, made.direction):
            raise KeyFileError(f"{other} is not the other end's file of this link", "choose another name")
        return made

    if os.path.lexists(other):
        change_keyset(other, checked)
    else:
        write_keyset(other, made)


def text(keyset: Keyset) -> bytes:
    """The one way to write a keyset."""
    members = _members(keyset)
    checksum = hashlib.sha256(_json(members)).hexdigest()
    return _json({**members, "checksum": checksum})


def parse(data: bytes, path: Path) -> Keyset:
    """The reverse. Raises KeyFileError with ``path``, never with a byte of the file, for all that ``text`` does not write."""
    if data.startswith(b"semseal-key-v1"):
        raise KeyFileError(
            f"{path} is a key file of the old form, which has no dates, states or directions",
            f"make a keyset: {_another(path)}",
        )
    try:
        keyset = _keyset(json.loads(data.decode("ascii")))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        keyset = None  # without the cause, which might show a part of it
    if keyset is None or text(keyset) != data:
        raise KeyFileError(f"{path} is not a keyset, or is damaged", _RESTORE)
    if any(key.secret is not None and len(set(key.secret)) == 1 for key in keyset.keys):
        raise KeyFileError(f"{path} holds a key whose bytes are all the same", f"make another: {_another(path)}")
    if len(keyset.usable) > MAX_USABLE:
        raise KeyFileError(
            f"{path} has {len(keyset.usable)} keys in use, and a receiver tries {MAX_USABLE} at most", "revoke old ones"
        )
    return keyset


def written(when: int | None) -> str | None:
    """A time as it stands in a keyset."""
    if when is None:
        return None
    return f"{datetime.fromtimestamp(when, UTC).replace(tzinfo=None).isoformat()}Z"  # strftime leaves out zeros of early years


def _another(path: Path) -> str:
    return f"semseal keygen {word(path.with_name('NEW'))}"


def _id(secret: bytes) -> str:
    return derive(secret, b"semseal/v1/key-id")[:8].hex()


def _json(members: dict[str, Any]) -> bytes:
    return (json.dumps(members, indent=1) + "\n").encode()


def _members(keyset: Keyset) -> dict[str, Any]:
    keys = [
        {
            "id": key.id,
            "created": written(key.created),
            "not_before": written(key.not_before),
            "not_after": written(key.not_after),
            "state": key.state,
            "secret": None if key.secret is None else base64.b64encode(key.secret).decode(),
        }
        for key in keyset.keys
    ]
    return {
        "format": FORMAT,
        "link": keyset.link,
        "purpose": _PURPOSE,
        "direction": keyset.direction,
        "require": keyset.require,
        "keys": keys,
    }


def _keyset(members: dict[str, Any]) -> Keyset:
    """What JSON says. Raises ValueError and its like; that there is nothing else is seen when it is written again."""
    keys = tuple(_key(key) for key in members["keys"])
    keyset = Keyset(members["link"], members["direction"], members["require"], keys)
    if not _ID.fullmatch(keyset.link) or keyset.direction not in DIRECTIONS or keyset.require not in (None, "mix"):
        raise ValueError("link, direction or require")
    if not 1 <= len(keys) <= MAX_KEYS or len({key.id for key in keys}) != len(keys):
        raise ValueError("keys")
    if sum(key.state == "primary" for key in keys) > 1:
        raise ValueError("more than one primary key")
    return keyset


def _key(members: dict[str, Any]) -> Key:
    created, not_before, not_after = (_seconds(members[name]) for name in ("created", "not_before", "not_after"))
    coded = members["secret"]
    secret = None if coded is None else base64.b64decode(coded, validate=True)
    if created is None or not _ID.fullmatch(members["id"]) or members["state"] not in STATES:
        raise ValueError("created, id or state")
    if (secret is None) != (members["state"] == "revoked"):
        raise ValueError("a revoked key has no secret, and every other has one")
    if secret is not None and (len(secret) != KEY_SIZE or members["id"] != _id(secret)):
        raise ValueError("the secret is not that of the id")
    return Key(members["id"], created, not_before, not_after, members["state"], secret)


def _seconds(when: str | None) -> int | None:
    if when is None:
        return None
    return int(datetime.strptime(when, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())
