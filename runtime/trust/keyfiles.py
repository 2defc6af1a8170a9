"""Rules about key files: those of the link, of the owner, and what stored frames would tell."""

import base64
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from semseal.runtime import signing
from semseal.runtime.defense.keys import KEY_SIZE
from semseal.runtime.errors import KeyFileError
from semseal.runtime.frame import Frame, power
from semseal.runtime.trust.deployment import MAX_KEY_FILE_BYTES, Deployment, read_regular
from semseal.runtime.trust.finding import Outcome, Problem
from semseal.runtime.trust.keyset import FORMAT as KEYSET
from semseal.runtime.trust.keyset import Keyset, parse, written
from semseal.runtime.trust.privatefile import read_private
from semseal.runtime.trust.replay import MAX_FILE_BYTES, keys_of

NO_KEYS = "no key file was named (--keys FILE)"
ONE_WAY = "one-way"
NO_FOLDER = "no folder of the deployment was named (--folder DIR)"
MAX_FRAME_BYTES = 2**28
NOISELESS = 1e-4  # by which the power of a frame without noise may differ from 1
_FRAME = b"SSF1"
_RECORDED, _DESCRIBED = ".sigmf-data", ".sigmf-meta"
_OWNER_KEY = b"semseal-owner-key-v1"
_KEY = b"semseal-key-v1"
_CHANGING = "is a link, FIFO or device, so what it gives may change between two looks"
_LOOK = 64  # bytes at the start of a file, which name its format
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def _key_files(d: Deployment) -> Iterator[tuple[Path, os.stat_result]]:
    """The key file that was named, and those in the folder of the deployment, by their first line."""
    if d.asked.keys is not None:
        yield d.asked.keys, os.lstat(d.asked.keys)
    for entry in d.beside:
        assert d.asked.folder is not None
        path = d.asked.folder / entry.name
        if d.asked.keys is not None and path.absolute() == d.asked.keys.absolute():
            continue
        start = (read_regular(path, _LOOK) or b"") if entry.kind == "file" else b""
        if start.startswith((_KEY, _OWNER_KEY)) or KEYSET.encode() in start:
            yield path, entry.status


def _each(d: Deployment) -> list[tuple[Path, os.stat_result]] | str:
    return list(_key_files(d)) or NO_KEYS


def _regular(d: Deployment) -> list[tuple[Path, os.stat_result]] | str:
    """Those that are files themselves; what is not has a rule of its own."""
    found = _each(d)
    return found if isinstance(found, str) else [(path, status) for path, status in found if stat.S_ISREG(status.st_mode)]


def _wrong(d: Deployment, words: Callable[[Path, os.stat_result], str]) -> Outcome:
    """A problem for each of them of which ``words`` has something to say."""
    found = _regular(d)
    if isinstance(found, str):
        return found
    return [Problem(str(path), said) for path, status in found if (said := words(path, status))]


def is_open_to_others(d: Deployment) -> Outcome:
    def words(_: Path, status: os.stat_result) -> str:
        mode = stat.S_IMODE(status.st_mode)
        return f"has mode {mode:04o}: others can read or change it" if mode & _OTHERS else ""

    return _wrong(d, words)


def is_anothers(d: Deployment) -> Outcome:
    def words(_: Path, status: os.stat_result) -> str:
        own = status.st_uid == os.geteuid()
        return "" if own else f"belongs to user {status.st_uid}, and this runs as user {os.geteuid()}"

    return _wrong(d, words)


def is_hard_linked(d: Deployment) -> Outcome:
    def words(_: Path, status: os.stat_result) -> str:
        many = status.st_nlink > 1
        return f"has {status.st_nlink} names (hard links): deleting one leaves the key" if many else ""

    return _wrong(d, words)


def is_no_file(d: Deployment) -> Outcome:
    found = _each(d)
    if isinstance(found, str):
        return found
    return [
        Problem(str(path), "is a folder" if stat.S_ISDIR(status.st_mode) else _CHANGING)
        for path, status in found
        if not stat.S_ISREG(status.st_mode)
    ]


def is_in_an_open_folder(d: Deployment) -> Outcome:
    found = _each(d)
    if isinstance(found, str):
        return found
    problems = {}
    for path, _ in found:
        folder = path.absolute().parent
        mode = os.stat(folder).st_mode
        if mode & _OTHERS_WRITE and not mode & stat.S_ISVTX:
            problems[folder] = Problem(
                str(path), f"its folder has mode {stat.S_IMODE(mode):04o}: others can replace the key file"
            )
    return list(problems.values())


def is_no_secret(d: Deployment) -> Outcome:
    def words(path: Path, _: os.stat_result) -> str:
        key = _key(path)
        return "" if key is None or len(set(key)) > 1 else "its key is one byte over and over: nobody drew that"

    return _wrong(d, words)


def is_damaged(d: Deployment) -> Outcome:
    if d.asked.keys is None:
        return NO_KEYS
    if not stat.S_ISREG(os.lstat(d.asked.keys).st_mode):
        return []  # which has a rule of its own
    if _key(d.asked.keys) is not None or _keyset(d.asked.keys) is not None:
        return []
    return [Problem(str(d.asked.keys), "is neither a keyset nor a key file, or is damaged")]


def takes_weaker_modes(d: Deployment) -> Outcome:
    if d.asked.keys is None:
        return NO_KEYS
    keyset = _keyset(d.asked.keys)
    if keyset is None or keyset.require == "mix":
        return []
    return [Problem(str(d.asked.keys), f"requires {keyset.require or 'no defence'}, so a receiver takes frames without mix")]


def has_nothing_to_send_with(d: Deployment) -> Outcome:
    if d.asked.keys is None:
        return NO_KEYS
    keyset = _keyset(d.asked.keys)
    if keyset is None:
        return []
    now = time.time()
    if keyset.primary is None:
        return [Problem(str(d.asked.keys), "has no primary key")]
    if not keyset.primary.is_valid(now):
        dates = f"{written(keyset.primary.not_before) or 'ever'} to {written(keyset.primary.not_after) or 'ever'}"
        return [
            Problem(str(d.asked.keys), f"its primary key {keyset.primary.id} is for {dates}, and it is {written(int(now))}")
        ]
    return []


def has_one_key_for_both(d: Deployment) -> Outcome:
    """One key for both directions, which lets a frame that is sent back pass."""
    if d.asked.keys is None:
        return NO_KEYS
    keyset, words = _keyset(d.asked.keys), "and both ends send (--two-way): a frame that is sent back authenticates"
    if keyset is not None and keyset.direction == ONE_WAY and d.asked.two_way:
        return [Problem(str(d.asked.keys), f"is a keyset for one direction, {words}")]
    if keyset is None and _is_old(d.asked.keys) and d.asked.two_way:
        return [Problem(str(d.asked.keys), f"is of the old form, which knows no directions, {words}")]
    return []


def repeats_counters(d: Deployment) -> Outcome:
    """Counters that are not kept apart where a machine goes on twice."""
    if d.asked.keys is None:
        return NO_KEYS
    if not _is_old(d.asked.keys):
        return []
    what = "is of the old form: a machine that is restored from a snapshot uses its counters again"
    return [Problem(str(d.asked.keys), what)]


def forgets_what_it_received(d: Deployment) -> Outcome:
    """The replay window of a receiver, which must be on disk to last beyond its process."""
    state = d.asked.state
    if state is None:
        if not d.asked.receives:
            return "whether this end receives was not said (--receives), nor where its replay window is (--state FILE)"
        return [Problem(str(d.asked.keys or ""), "is received under, and no replay window is kept (--state FILE)")]
    try:
        known = keys_of(read_private(state, MAX_FILE_BYTES))
    except FileNotFoundError:
        return [Problem(str(state), "is not there, so what was received before is taken again")]
    except KeyFileError as error:
        return [Problem(str(state), error.message.removeprefix(f"{state} "))]
    except (ValueError, OSError):
        return [Problem(str(state), "is not a replay window, is damaged, or cannot be read")]
    keyset = None if d.asked.keys is None else _keyset(d.asked.keys)
    if known and keyset is not None and known.isdisjoint(key.id for key in keyset.keys):
        return [Problem(str(state), "remembers frames of other keys only than those of the key file")]
    return []


def _is_old(path: Path) -> bool:
    """Whether it is a sound key file of the old form; for one that nobody drew there is a rule of its own."""
    key = _key(path)
    return key is not None and len(set(key)) > 1


def _keyset(path: Path) -> Keyset | None:
    """The keyset of a file; None for a key file of the old form, and one that is damaged, which has a rule of its own."""
    try:
        return parse(read_regular(path, MAX_KEY_FILE_BYTES) or b"", path)
    except KeyFileError:
        return None


def _key(path: Path) -> bytes | None:
    """The key of a file of the old form, whoever else may read it; None where it holds none."""
    lines = (read_regular(path, MAX_KEY_FILE_BYTES) or b"").split()
    if len(lines) != 2 or lines[0] != _KEY:
        return None
    try:
        key = base64.b64decode(lines[1], validate=True)
    except ValueError:
        return None
    return key if len(key) == KEY_SIZE else None


def holds_owners_key(d: Deployment) -> Outcome:
    if d.asked.folder is None and not d.asked.runs_only:
        return f"{NO_FOLDER}, nor that this machine only runs the link (--runs-only)"
    what = "is an owner's private key: whoever takes it here signs bundles in the owner's name"
    problems = []
    for folder, entries in ((d.path, d.entries), (d.asked.folder, d.beside)):
        for entry in entries:
            if folder is not None and entry.kind == "file":
                path = folder / entry.name
                if (read_regular(path, len(_OWNER_KEY)) or b"") == _OWNER_KEY:
                    problems.append(Problem(str(path), what))
    config = signing.config_folder()
    if d.asked.runs_only and config is not None and os.path.lexists(config / "owner.key"):
        problems.append(Problem(str(config / "owner.key"), what))
    return problems


def holds_quiet_frames(d: Deployment) -> Outcome:
    """Frames on disk as the transmitter made them, also in recordings."""
    if d.asked.folder is None:
        return NO_FOLDER
    problems = []
    for entry in d.beside:
        path = d.asked.folder / entry.name
        if entry.kind == "file" and path.suffix == _RECORDED and _is_quiet(path):
            problems.append(Problem(str(path), "is a recording of what the transmitter made, without the noise of a channel"))
        if entry.kind != "file" or (read_regular(path, len(_FRAME)) or b"") != _FRAME:
            continue
        try:
            frame = Frame.from_bytes(read_regular(path, MAX_FRAME_BYTES) or b"")
        except ValueError:
            continue  # damaged: nobody gets symbols from it
        if len(frame.symbols) and abs(power(frame.symbols) - 1) < NOISELESS:
            problems.append(Problem(str(path), "is a frame as the transmitter made it, without the noise of a channel"))
    return problems


def _is_quiet(path: Path) -> bool:
    """Whether the first frame of a recording in SigMF has the power of symbols without noise."""
    try:
        first = json.loads(read_regular(path.with_suffix(_DESCRIBED), MAX_FRAME_BYTES) or b"")["annotations"][0]
        start, count = int(first["core:sample_start"]), int(first["core:sample_count"])
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return False  # of a kind that tells no frames apart
    if not (start >= 0 and count > 0 and start + count <= MAX_FRAME_BYTES // 8):
        return False
    data = (read_regular(path, 8 * (start + count)) or b"")[8 * start :]
    if len(data) < 8 * count:
        return False
    with np.errstate(all="ignore"):  # whatever the bytes are
        return abs(power(np.frombuffer(data, "<c8")) - 1) < NOISELESS
