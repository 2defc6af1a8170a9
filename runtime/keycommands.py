"""``semseal keygen`` and ``semseal keys``: keysets and their life. What they do is in ``semseal.runtime.trust.keyset``.

No secret is taken from the command line or the environment, and none is printed. These processes leave no core.
"""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from semseal.runtime.files import shown, word
from semseal.runtime.options import NEW_FILE, NumberRange, UserPath, example

if TYPE_CHECKING:
    from semseal.runtime.trust.keyset import Key

_KEYSET = UserPath(dir_okay=False, path_type=Path)
_DATE = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"])
_DATES = (
    click.option(
        "--not-before", type=_DATE, metavar="DATE", help="UTC, 2026-12-31 or 2026-12-31T18:00:00Z  [default: at once]"
    ),
    click.option("--not-after", type=_DATE, metavar="DATE", help="when it ends  [default: never]"),
)


def _dated(command: Any) -> Any:
    for option in reversed(_DATES):
        command = option(command)
    return command


@click.command(epilog=example("semseal keygen alice.key", "semseal keygen alice.key --two-way"))
@click.argument("file", type=NEW_FILE)
@click.option("--two-way", is_flag=True, help="for a link in both directions; semseal keys peer makes the other end's file")
@click.option(
    "--require",
    type=click.Choice(["mix", "any"]),
    default="mix",
    show_default=True,
    help="the defence that both ends insist on; any: also those that are broken, and none",
)
@_dated
def keygen(file: Path, two_way: bool, require: str, not_before: datetime | None, not_after: datetime | None) -> None:
    """Make a new keyset, a file of keys that only you can read."""
    from semseal.runtime.trust.keyset import new_keyset, write_keyset
    from semseal.runtime.trust.privatefile import leave_no_core

    leave_no_core()
    direction, required = ("a-to-b" if two_way else "one-way"), (None if require == "any" else require)
    write_keyset(file, new_keyset(direction, required, _seconds(not_before), _seconds(not_after)))
    _say(f"{file}: new key, mode 0600; whoever has this file can read the link")
    if two_way:
        _say(f"make the other end's file, which is another: semseal keys peer {word(file)} OTHER")


@click.group(epilog=example("semseal keys list alice.key", "semseal keys rotate alice.key"))
def keys() -> None:
    """List, rotate and revoke the keys of a keyset."""
    from semseal.runtime.trust.privatefile import leave_no_core

    leave_no_core()


@keys.command("list", epilog=example("semseal keys list alice.key"))
@click.argument("file", type=_KEYSET)
def list_(file: Path) -> None:
    """Show the keys of a keyset: ids, states and dates, no secrets."""
    from semseal.runtime.trust.keyset import read_keyset

    keyset = read_keyset(file)
    required = "any defence" if keyset.require is None else f"requires {keyset.require}"
    _say(f"{file}: link {keyset.link}, direction {keyset.direction}, {required}")
    for key in keyset.keys:
        _say(f"  {key.id}  {_life(key)}")


def _life(key: "Key") -> str:
    from semseal.runtime.trust.keyset import written

    now, created = time.time(), f"created {written(key.created)}"
    if key.state == "revoked":
        return f"revoked   {created}"
    dates = created
    dates += "" if key.not_before is None else f", from {written(key.not_before)}"
    dates += "" if key.not_after is None else f", until {written(key.not_after)}"
    return f"{key.state:<8}  {dates}" + ("" if key.is_valid(now) else "; not valid now")


@keys.command(epilog=example("semseal keys rotate alice.key --overlap 7"))
@click.argument("file", type=_KEYSET)
@click.option(
    "--overlap",
    type=NumberRange(0, 3650),
    default=7.0,
    show_default=True,
    metavar="DAYS",
    help="for which the last key is accepted still",
)
@_dated
def rotate(file: Path, overlap: float, not_before: datetime | None, not_after: datetime | None) -> None:
    """Add a new key that is sent with from now on.

    Rotate the file of the end that receives, so that it takes both keys, then bring the new key to the end that sends: semseal
    keys peer FILE OTHER.
    """
    from semseal.runtime.trust.keyset import change_keyset, new_key
    from semseal.runtime.trust.keyset import rotate as rotated

    key = new_key(_seconds(not_before), _seconds(not_after))
    keyset = change_keyset(file, lambda old: rotated(old, key, overlap))
    _say(f"{file}: new primary key {key.id}; bring it to the other end: semseal keys peer {word(file)} OTHER")
    for old in keyset.usable[1:]:
        _say(f"  {old.id}  {_life(old)}")


@keys.command(epilog=example("semseal keys revoke alice.key 0f5c2f6f"))
@click.argument("file", type=_KEYSET)
@click.argument("key_id", metavar="ID")
def revoke(file: Path, key_id: str) -> None:
    """Remove a key's secret: nothing is sent or received under it any more. ID is the beginning of its id."""
    from semseal.runtime.trust.keyset import change_keyset
    from semseal.runtime.trust.keyset import revoke as revoked

    keyset = change_keyset(file, lambda old: revoked(old, key_id))
    gone = next(key.id for key in keyset.keys if key.id.startswith(key_id))
    _say(f"{file}: key {gone} is revoked; bring it to the other end: semseal keys peer {word(file)} OTHER")
    if keyset.primary is None:
        _say(f"there is no key left to send with: semseal keys rotate {word(file)}")


@keys.command(epilog=example("semseal keys peer alice.key bob.key"))
@click.argument("file", type=_KEYSET)
@click.argument("other", type=_KEYSET)
def peer(file: Path, other: Path) -> None:
    """Write the file of the other end, or replace it where it is of the same link."""
    from semseal.runtime.trust.keyset import write_peer

    write_peer(file, other)
    _say(f"{other}: the keys of {file} for the other end, mode 0600; bring it there by a way that nobody reads")


@keys.command("export-public", epilog=example("semseal keys export-public alice.key"))
@click.argument("file", type=_KEYSET)
def export_public(file: Path) -> None:
    """Print all of a keyset but its secrets, as JSON: ids, states, dates. Compare it with the other end's."""
    from semseal.runtime.trust.keyset import public, read_keyset

    click.echo(json.dumps(public(read_keyset(file)), indent=1))


def _seconds(date: datetime | None) -> int | None:
    return None if date is None else int(date.replace(tzinfo=UTC).timestamp())


def _say(line: str) -> None:
    click.echo(shown(line))
