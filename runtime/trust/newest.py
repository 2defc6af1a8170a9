"""The newest bundle of each owner that was opened here, so that an older one is refused.

A signature says that the owner made a bundle, not that it is the last: whoever can write the folder can put an older one there,
with weights or a mix that were replaced for a reason. So a link with a keyset remembers, in ``newest.json`` of the config
folder, the date in the manifest of the newest bundle that it opened:

    owner's public key, kind of model ── date      kind: the sizes, the scale and the SNRs, so that two models of one owner,
                                                   for other pictures or channels, do not stand in each other's way

Plans that are added to a bundle leave its date as it is. A bundle without a date is older than every other. Not covered: a
machine that has never opened the newer one, and a config folder that somebody else can write or put back.
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from semseal.runtime import signing
from semseal.runtime.bundle import Bundle, is_packaged
from semseal.runtime.errors import BundleError, KeyFileError
from semseal.runtime.trust.keyset import written
from semseal.runtime.trust.privatefile import create_private, read_private, replace_private

_MAX_FILE_BYTES = 2**20
_ALLOW = "open it nevertheless with allow_older=True (--allow-older)"
_Dates = dict[str, int]


def check_newest(bundle: Bundle, owner: str | Path | None) -> None:
    """Raises BundleError for a bundle older than one of its owner and kind that was opened here, or if that cannot be told.

    A packaged bundle passes: it is as old as the package.
    """
    if is_packaged(bundle.path):
        return
    folder = signing.config_folder()
    if folder is None:
        raise BundleError(
            f"{bundle.path}: whether it is the newest cannot be remembered: this user has no home folder",
            f"set XDG_CONFIG_HOME to a folder that can be written, or {_ALLOW}",
        )
    path, name, created = folder / "newest.json", _name(bundle, signing.pinned_owner(owner)), bundle.created
    try:
        if not path.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(KeyFileError):  # another process made it meanwhile; any other reason comes again below
                create_private(path, _text({name: created}))
        newest = _dates(path, read_private(path, _MAX_FILE_BYTES)).get(name, 0)
        if created > newest:
            replace_private(path, _MAX_FILE_BYTES, lambda data: _raised(_dates(path, data), name, created))
    except KeyFileError as error:
        raise BundleError(f"{bundle.path}: whether it is the newest cannot be told: {error.message}", error.hint) from None
    except OSError as error:
        raise BundleError(
            f"{bundle.path}: whether it is the newest cannot be remembered: {error.strerror}: {error.filename}",
            f"set XDG_CONFIG_HOME to a folder that can be written, or {_ALLOW}",
        ) from None
    if created < newest:
        made = f"of {written(created)}" if created else "without a date"
        raise BundleError(
            f"{bundle.path} is {made}, older than one of its owner, of {written(newest)}, that was opened here",
            f"bring the newest from its owner, or {_ALLOW}",
        )


def newer_than(bundle: Bundle, owner: str | Path | None) -> int | None:
    """The date of a newer one of its owner and kind that was opened here, None if there is none. Writes nothing.

    Raises KeyFileError where the record cannot be read, and SigningError where no owner is pinned.
    """
    folder = signing.config_folder()
    if folder is None or is_packaged(bundle.path) or not (folder / "newest.json").exists():
        return None
    path, name = folder / "newest.json", _name(bundle, signing.pinned_owner(owner))
    newest = _dates(path, read_private(path, _MAX_FILE_BYTES)).get(name, 0)
    return newest if newest > bundle.created else None


def _name(bundle: Bundle, owner: str) -> str:
    model = {name: size for name, size in bundle.manifest["model"].items() if name != "digest"}
    kind = json.dumps([model, bundle.snr_range], sort_keys=True)
    return f"{owner} {hashlib.sha256(kind.encode()).hexdigest()[:16]}"


def _raised(dates: _Dates, name: str, created: int) -> bytes:
    return _text({**dates, name: max(created, dates.get(name, 0))})


def _text(dates: _Dates) -> bytes:
    return (json.dumps(dates, indent=1) + "\n").encode()


def _dates(path: Path, data: bytes) -> _Dates:
    try:
        dates = json.loads(data)
        if not all(type(date) is int and 0 <= date < 2**33 for date in dates.values()):
            raise ValueError("not a date")
    except (ValueError, AttributeError, RecursionError):
        raise KeyFileError(
            f"{path} is damaged", "remove it: the next bundle that is opened counts as the newest then"
        ) from None
    found: _Dates = dates
    return found
