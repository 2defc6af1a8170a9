"""Which classes the pictures of a ``--data`` spec are of, where it says so.

    folder:FOLDER    the first folder below FOLDER, or below that of the split, as in FOLDER/cats/1.jpg; the question is "class"
    celeba:FOLDER    list_attr_celeba, as text or as on Kaggle: each attribute is a question, of the classes yes and no;
                     identity_CelebA: a question, "identity", of as many classes as there are people
    photos           nothing

A file that is not there asks nothing. What is known of a picture is found by its name without the suffix.
"""

import os
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from semseal.runtime.errors import PictureError
from semseal.runtime.files import shown
from semseal.runtime.picturefolder import PARTS, around, read_list

UNKNOWN = ""  # the class of a picture of which nothing is said

_ATTRIBUTES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
_IDENTITIES = ("identity_CelebA.txt", "identity_CelebA.csv")
_DEPTH = 3
_RESTORE = "restore CelebA's own file"
_YES = {"1": "yes", "-1": "no", "0": "no"}


def classes_of(spec: str, split: str, paths: Sequence[Path]) -> dict[str, tuple[str, ...]]:
    """Each question with the class of every picture, UNKNOWN where nothing is said. Raises PictureError for a damaged list."""
    kind, _, where = spec.partition(":")
    folder = Path(os.path.expanduser(where))
    if kind == "folder":
        found = folders_of(folder, split, paths)
        return {"class": found} if any(found) else {}
    if kind != "celeba":
        return {}
    questions: dict[str, tuple[str, ...]] = {}
    if file := _first(folder, _ATTRIBUTES):
        names, table = _attributes(file)
        rows = [table.get(path.stem) for path in paths]
        for i, name in enumerate(names):
            questions[name] = tuple(UNKNOWN if row is None else _YES[row[i]] for row in rows)
    if file := _first(folder, _IDENTITIES):
        people = _identities(file)
        questions["identity"] = tuple(people.get(path.stem, UNKNOWN) for path in paths)
    return questions


def folders_of(folder: Path, split: str, paths: Sequence[Path]) -> tuple[str, ...]:
    """The first folder that each picture lies in, below ``folder`` or below the folder of the split in it."""
    parts = [name for name in PARTS if (folder / name).is_dir()]
    root = folder / split if "train" in parts and len(parts) > 1 else folder  # as ``semseal.runtime.pictures`` splits it
    return tuple(_class_folder(root, path) for path in paths)


def in_turn(paths: Sequence[Path], classes: Sequence[str]) -> list[Path]:
    """The pictures of every class in turn, so that the first ones are of all classes; those of a class in their order."""
    groups: dict[str, list[Path]] = {}
    for path, name in zip(paths, classes, strict=True):
        groups.setdefault(name, []).append(path)
    return [path for turn in zip_longest(*groups.values()) for path in turn if path is not None]


def _class_folder(root: Path, path: Path) -> str:
    parts = path.relative_to(root).parts if path.is_relative_to(root) else ()
    return shown(parts[0]) if len(parts) > 1 else UNKNOWN


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    return next((here / name for here in around(folder, _DEPTH) for name in names if (here / name).is_file()), None)


def _attributes(file: Path) -> tuple[list[str], dict[str, list[str]]]:
    """The names of the attributes, and of each picture 1 or -1 for every one of them."""
    names: list[str] = []
    table: dict[str, list[str]] = {}
    for number, fields in read_list(file):
        if not names and len(fields) == 1 and fields[0].isdigit():  # the release begins with the number of pictures
            continue
        if not names:
            names = fields[1:] if re.fullmatch(r"(?i)image_?id|file_?name|image", fields[0]) else fields
        elif len(fields) != len(names) + 1 or not set(fields[1:]) <= set(_YES):
            line = shown(" ".join(fields)[:60])
            raise PictureError(
                f"{shown(file)}:{number}: expected 'FILE' and {len(names)} times 1 or -1, got {line!r}", _RESTORE
            )
        else:
            table[Path(fields[0]).stem] = fields[1:]
    return names, table


def _identities(file: Path) -> dict[str, str]:
    people = {}
    for number, fields in read_list(file):
        if len(fields) != 2 or not (number == 1 or fields[1].isdigit()):
            raise PictureError(
                f"{shown(file)}:{number}: expected 'FILE PERSON', got {shown(' '.join(fields)[:60])!r}", _RESTORE
            )
        if fields[1].isdigit():  # the first line of a table says what is in it
            people[Path(fields[0]).stem] = fields[1]
    return people
