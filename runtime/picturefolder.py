"""Which picture files a folder holds: any pictures, or CelebA as people have it.

CelebA    list_eval_partition.txt or .csv     in the folder, its Eval, Anno or Img, or one called CelebA that holds these
          img_align_celeba, .._celeba_png     beside them, or once more in a folder of its own name, as Kaggle unpacks it
"""

import os
import re
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from semseal.runtime.errors import PictureError
from semseal.runtime.files import shown

SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif"),
        *(".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    }
)
OTHER_SUFFIXES = frozenset(  # pictures that are not read, and are named
    {
        *(".heic", ".heif", ".jp2", ".j2k", ".jxl", ".jxr", ".psd", ".xcf", ".tga", ".ico", ".exr", ".hdr", ".svg", ".qoi"),
        *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw"),
    }
)
PARTS = {"train": "0", "valid": "1", "test": "2"}  # of CelebA's partition

_PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv")
_ALIGNED = ("img_align_celeba", "img_align_celeba_png")
_AROUND = frozenset({"img", "eval", "anno", "celeba"})  # names of folders that CelebA's files lie in


def pictures_below(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """The picture files below a folder, sorted, and what was left out, with the reason.

    Links are followed; every folder counts once, under the name that has no link in it where there is one. A link to a
    picture that is here anyway does not count.
    """
    files, linked_files, left_out = [], [], {}
    seen_folders, seen_files = set(), set()
    folders, links = deque([folder]), deque[Path]()
    while folders or links:
        here = folders.popleft() if folders else links.popleft()
        try:
            found = os.stat(here)
            if (found.st_dev, found.st_ino) in seen_folders:
                continue
            seen_folders.add((found.st_dev, found.st_ino))
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            left_out[here] = error.strerror or str(error)
            continue
        for entry in entries:
            path, suffix = here / entry.name, Path(entry.name).suffix.lower()
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(path)
            elif suffix in OTHER_SUFFIXES:
                left_out[path] = f"{suffix[1:].upper()} is not read: save it as PNG or JPEG"
            elif suffix in SUFFIXES and entry.is_symlink():
                linked_files.append(path)
            elif suffix in SUFFIXES:
                files.append(path)
                seen_files.add((found.st_dev, entry.inode()))
    for path in sorted(linked_files):
        try:
            target = os.stat(path)
        except OSError:
            files.append(path)  # whoever opens it says why it cannot be used
            continue
        if (target.st_dev, target.st_ino) not in seen_files:
            files.append(path)
            seen_files.add((target.st_dev, target.st_ino))
    return sorted(files), left_out


def celeba(folder: Path, split: str) -> list[Path]:
    """The pictures of one part of CelebA in the order of its partition; they need not be there."""
    if not folder.is_dir():
        raise PictureError(f"{shown(folder)} is not a folder", "check the name after celeba:")
    places = list(around(folder, 3))
    partition = next((here / name for here in places for name in _PARTITIONS if (here / name).is_file()), None)
    if partition is None:
        raise PictureError(
            f"list_eval_partition.txt or .csv not found in {shown(folder)}, nor in its Eval or Anno",
            "celeba:FOLDER wants CelebA's partition beside its pictures; for other pictures, folder:FOLDER",
        )
    parts = list(_partition(partition))
    place, renamed = _aligned(places, folder, [name for name, _ in parts])
    return [place / renamed.get(name, name) for name, part in parts if part == PARTS[split]]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def around(folder: Path, depth: int) -> Iterator[Path]:
    """The folder, and those in it that CelebA's files may lie in."""
    yield folder
    if depth:
        for path in sorted(folder.iterdir()):
            if path.name.lower() in _AROUND and path.is_dir():
                yield from around(path, depth - 1)


def _partition(file: Path) -> Iterator[tuple[str, str]]:
    """(name of a picture, part) of every line. Raises PictureError for a line that says neither."""
    first = True
    for number, fields in read_list(file):
        header, first = first and not any(re.search(r"\d", field) for field in fields), False
        if header:
            continue
        if len(fields) != 2 or fields[1] not in PARTS.values() or not Path(fields[0]).name:
            line = shown(" ".join(fields)[:60])
            raise PictureError(f"{shown(file)}:{number}: expected 'FILE 0|1|2', got {line!r}", "restore CelebA's own file")
        yield Path(fields[0]).name, fields[1]


def read_list(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The number and the fields of every line of one of CelebA's lists, as text or as a table; empty ones are left out.

    Raises PictureError for what is no regular file.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise PictureError(f"{shown(file)} is no regular file", "restore CelebA's own file")
    data = file.read_bytes()
    text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", errors="surrogateescape")
    for number, line in enumerate(text.splitlines(), 1):
        if fields := [field.strip("\"'") for field in re.split(r"[\s,;]+", line.strip()) if field.strip("\"'")]:
            yield number, fields


def _aligned(around: list[Path], folder: Path, names: list[str]) -> tuple[Path, dict[str, str]]:
    """Where the pictures lie, and the names of those that are called otherwise there, as in the release as PNG."""
    places = [here / name for here in around for name in _ALIGNED]
    places = [place for outer in places for place in (outer / outer.name, outer) if place.is_dir()]
    if not places:
        raise PictureError(
            f"{shown(folder)}: the pictures are missing: there is no folder img_align_celeba",
            "unpack img_align_celeba.zip there",
        )
    if not names:
        return places[0], {}
    for place in places:
        if (place / names[0]).is_file():
            return place, {}
    for place in places:
        there = {Path(name).stem: name for name in sorted(os.listdir(place)) if Path(name).suffix.lower() in SUFFIXES}
        renamed = {name: there[Path(name).stem] for name in names if Path(name).stem in there}
        if renamed:
            return place, renamed
    return places[0], {}
