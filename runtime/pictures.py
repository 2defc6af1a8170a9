"""Where pictures come from: the three ``--data`` specs, as lists of files, and the crops made of them.

    photos           colour and grey photographs inside the installed scikit-image, scikit-learn packages
    celeba:FOLDER    CelebA: its aligned pictures and list_eval_partition, as released or as on Kaggle
    folder:FOLDER    any pictures, searched recursively; a folder train beside valid or test in it: these are the splits

Every spec has three splits. Bob's link is trained on ``train``, Eve's networks on ``test`` (as in the paper), and every
figure is measured on ``valid``, which neither of them saw (the paper measures on its training pictures).

    spec      train                        test                         valid
    photos    photographs without people   the same, other crops        three held-out photographs
    celeba    partition 0                  partition 2                  partition 1
    folder    3 files of 5, by name        every 5th                    every 5th, one further
     split    FOLDER/train                 FOLDER/test                  FOLDER/valid

FOLDER may begin with ~. ``picturefile`` opens the files, ``picturefolder`` finds them.
"""

import hashlib
import importlib.util
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from semseal.runtime.errors import PictureError
from semseal.runtime.files import shown
from semseal.runtime.picturefile import read_picture
from semseal.runtime.picturefolder import SUFFIXES, celeba, pictures_below

SPLITS = ("train", "valid", "test")
BYTES_OF_A_PIXEL = 15  # of a picture that is taken: as it is read, and in float32
MIN_FILES = 5  # in a folder that is not split already: then no split is empty

# photographs and textures without a recognisable person; astronaut and camera show one and are held out, as is the cat
_PHOTOS_TRAIN = (
    ("skimage", "data/coffee.png"),
    ("skimage", "data/rocket.jpg"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/hubble_deep_field.jpg"),
    ("skimage", "data/retina.jpg"),
    ("skimage", "data/ihc.png"),
    ("skimage", "data/brick.png"),
    ("skimage", "data/grass.png"),
    ("skimage", "data/gravel.png"),
    ("skimage", "data/moon.png"),
    ("skimage", "data/coins.png"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)
_PHOTOS_VALID = (("skimage", "data/astronaut.png"), ("skimage", "data/chelsea.png"), ("skimage", "data/camera.png"))


@dataclass
class Pictures:
    """The picture files of one split. ``skipped`` holds what could not be used so far, with the reason; it grows by loading."""

    spec: str
    split: str
    paths: list[Path]
    whole: bool  # a picture is one centred subject (faces), not a scene to cut many crops from
    skipped: dict[Path, str] = field(default_factory=dict)
    taken: list[Path] = field(default_factory=list)  # the file of each picture of the last ``take``

    def load(self, path: Path) -> NDArray[np.uint8] | None:
        """RGB uint8 [height, width, 3], or None with the file added to ``skipped``."""
        if path in self.skipped:
            return None
        try:
            return _read_and_keep(path) if self.spec == "photos" else read_picture(path)
        except PictureError as error:
            self.skipped[path] = error.message
            return None

    def reasons(self) -> dict[str, str]:
        """``skipped`` by names that can be printed and written to any file."""
        return {shown(path): shown(reason) for path, reason in self.skipped.items()}

    def remarks(self, taken: int, wanted: int, purpose: str) -> list[str]:
        """What a user is told after ``taken`` of ``wanted`` pictures were had for ``purpose``: those skipped, and too few."""
        lines = [f"skipped {name}: {reason}" for name, reason in self.reasons().items()]
        if taken < wanted:
            had = f"{taken} picture{'' if taken == 1 else 's'}"
            lines.append(f"{purpose}: {had}, where {wanted} are usual; {shown(self.spec)} has no more")
        return lines

    def identity(self) -> str:
        """The kind of spec, and for folders a digest of the file names, to tell whether two runs saw the same files."""
        kind = self.spec.partition(":")[0]
        if kind == "photos":
            return kind
        names = b"\n".join(os.fsencode(path.name) for path in self.paths)
        return f"{kind}:{hashlib.sha256(names).hexdigest()[:16]}"

    def take(self, n: int, height: int, width: int, *, seed: int = 0, fewer: bool = False) -> NDArray[np.float32]:
        """n pictures, float32 [n, 3, height, width] in 0..1; the same ones for the same arguments.

        Whole pictures (celeba, folder) are centred crops in the order of the partition. Scenes (photos) are cut:
        each once from its middle, then random crops. Raises PictureError when there are not enough, or with ``fewer``,
        when there is none, and MemoryError when they do not fit into this machine's memory.
        """
        self._check_memory(n, height, width)
        out: list[NDArray[np.uint8]] = []
        self.taken = []
        rng = np.random.default_rng(seed)
        rounds = 1 if self.whole else -(-n // len(self.paths)) + 1
        for turn in range(rounds):
            for path in self.paths:
                if len(out) == n:
                    break
                picture = self.load(path)
                if picture is None:
                    continue
                self.taken.append(path)
                if self.whole or (turn == 0 and seed == 0):
                    out.append(center_crop(picture, height, width))
                else:
                    out.append(random_crop(picture, height, width, rng))
        if len(out) < (1 if fewer else n):
            wanted = 1 if fewer else n
            usable = f"{len(out)} of {len(self.paths)} files usable"
            first = next(iter(self.reasons().items()), None)
            bad = f" ({len(self.skipped)} skipped, first {first[0]}: {first[1]})" if first else ""
            raise PictureError(
                f"{shown(self.spec)}: {wanted} pictures wanted of split {self.split!r}, {usable}{bad}",
                "ask for fewer, or add pictures",
            )
        return to_float(out)

    def _check_memory(self, n: int, height: int, width: int) -> None:
        """Raises MemoryError for more pictures than this machine has memory for: now, not after minutes of reading."""
        count = min(n, len(self.paths)) if self.whole else n
        needed, there = count * height * width * BYTES_OF_A_PIXEL, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > there:
            raise MemoryError(
                f"{shown(self.spec)}: {count} pictures of {height} x {width} take {needed / 1e9:.1f} GB of {there / 1e9:.1f} GB"
            )


def open_pictures(spec: str, split: str) -> Pictures:
    """The pictures of a ``--data`` spec. Raises PictureError for a spec, folder or split that holds none."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    kind, _, where = spec.partition(":")
    if spec == "photos":
        chosen = _PHOTOS_VALID if split == "valid" else _PHOTOS_TRAIN
        return Pictures(spec, split, [_in_package(package, name) for package, name in chosen], whole=False)
    folder, left_out = Path(os.path.expanduser(where)), dict[Path, str]()
    if kind == "celeba" and where:
        paths = celeba(folder, split)
    elif kind == "folder" and where:
        paths, left_out = _folder(folder, split)
    else:
        raise PictureError(
            f"data spec must be photos, celeba:FOLDER or folder:FOLDER, got {shown(spec)!r}",
            "for pictures of your own: folder:FOLDER",
        )
    if not paths:
        needs = f"folder: needs at least {MIN_FILES} pictures, celeba: some of each part"
        raise PictureError(f"{shown(spec)}: no pictures for split {split!r}", needs)
    return Pictures(spec, split, paths, kind == "celeba" or split != "train", left_out)


def center_crop(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The largest centred rectangle of the wanted proportions, resized: uint8 [height, width, 3]."""
    rows, columns = picture.shape[:2]
    scale = min(rows / height, columns / width)
    return _cut(picture, rows / 2, columns / 2, height * scale, width * scale, height, width)


def random_crop(picture: NDArray[np.uint8], height: int, width: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A crop of random place and size (from 0.6 of the wanted size to all that fits), mirrored half the time."""
    rows, columns = picture.shape[:2]
    largest = min(rows / height, columns / width)
    scale = np.exp(rng.uniform(np.log(min(0.6, largest)), np.log(largest)))
    tall, wide = min(height * scale, rows), min(width * scale, columns)  # rounding may exceed the picture
    out = _cut(
        picture, rng.uniform(tall / 2, rows - tall / 2), rng.uniform(wide / 2, columns - wide / 2), tall, wide, height, width
    )
    return out[:, ::-1] if rng.random() < 0.5 else out


def to_float(crops: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Crops uint8 [height, width, 3] to images float32 [n, 3, height, width] in 0..1."""
    return np.stack(crops).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)


def _cut(
    picture: NDArray[np.uint8], y: float, x: float, tall: float, wide: float, height: int, width: int
) -> NDArray[np.uint8]:
    top, left = max(int(y - tall / 2), 0), max(int(x - wide / 2), 0)
    part = picture[top : int(np.ceil(y + tall / 2)), left : int(np.ceil(x + wide / 2))]  # whole pixels around the box
    box = (
        max(x - wide / 2 - left, 0),
        max(y - tall / 2 - top, 0),
        min(x + wide / 2 - left, part.shape[1]),
        min(y + tall / 2 - top, part.shape[0]),
    )
    resized = Image.fromarray(part).resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    return np.asarray(resized)


_read_and_keep = lru_cache(maxsize=32)(read_picture)  # many crops are cut from one photograph


def _in_package(package: str, name: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise PictureError(f"data spec photos needs the package {package}", "in the source folder, pip install '.[audit]'")
    path = Path(found.origin).parent / name
    if not path.is_file():
        raise PictureError(f"data spec photos: the installed {package} has no {name}", "reinstall it, or use folder:FOLDER")
    return path


def _folder(folder: Path, split: str) -> tuple[list[Path], dict[Path, str]]:
    """The pictures of one split, and what was left out with the reason."""
    if not folder.is_dir():
        raise PictureError(f"{shown(folder)} is not a folder", "check the name after folder:")
    parts = [name for name in SPLITS if (folder / name).is_dir()]
    split_here = "train" in parts and len(parts) > 1
    if split_here:
        if split not in parts:
            found = f"{shown(folder)} is split into {' and '.join(parts)}, and has no {split}"
            raise PictureError(found, f"make {shown(folder / split)}")
        folder /= split
    paths, left_out = pictures_below(folder)
    if not paths:
        others = next((f"; left out: {shown(path)}: {reason}" for path, reason in left_out.items()), "")
        raise PictureError(
            f"{shown(folder)} holds no pictures{others}", f"a picture's name ends in {', '.join(sorted(SUFFIXES))}"
        )
    if split_here:
        return paths, left_out
    if split == "train":
        return [path for i, path in enumerate(paths) if i % 5 < 3], left_out
    return paths[3::5] if split == "valid" else paths[4::5], left_out
