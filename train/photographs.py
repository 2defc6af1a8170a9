"""The photographs that the packaged models are trained on, collected into a folder for ``--data folder:FOLDER``.

    python -m semseal.train.photographs FOLDER

    Debian packages ── apt-get download, dpkg -x ─┐
                                                  ├─ the photographs of the table ── FOLDER/train, FOLDER/valid
    scikit-image, scikit-learn, as installed ─────┘

All are under free licences, and none shows a person who can be recognised. Authors and licences are those that the packages
state: Debian's copyright files, the wallpapers' own metadata, and the notes of the two libraries.
"""

import argparse
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from semseal.runtime.errors import PictureError, SemsealError
from semseal.runtime.files import named


@dataclass(frozen=True)
class Package:
    """A Debian package, or with ``module`` an installed Python package of that import name."""

    name: str
    version: str  # that the packaged models were trained on
    folder: str  # of its pictures
    module: str = ""


@dataclass(frozen=True)
class Photograph:
    package: Package
    path: str  # below the package's folder
    split: str
    author: str
    licence: str

    @property
    def name(self) -> str:
        """Of the copy: Altai/contents/images/5120x2880.png becomes Altai.png."""
        path = PurePosixPath(self.path)
        return path.parts[0].partition(".")[0] + path.suffix


LOMIRI_16 = Package("lomiri-wallpapers-16.04", "20.04.0-2", "usr/share/backgrounds")
LOMIRI_20 = Package("lomiri-wallpapers-20.04", "20.04.0-2", "usr/share/backgrounds")
MATE = Package("mate-backgrounds", "1.26.0-1", "usr/share/backgrounds/mate/nature")
PLASMA = Package("plasma-workspace-wallpapers", "4:5.27.5-2", "usr/share/wallpapers")
SKIMAGE = Package("scikit-image", "0.26.0", "data", "skimage")
SKLEARN = Package("scikit-learn", "1.9.1", "datasets/images", "sklearn")

PHOTOGRAPHS = (
    Photograph(LOMIRI_16, "aitzgorri_by_Aitzol_Berasategi.jpg", "valid", "Aitzol Berasategi", "CC-BY-4.0"),
    Photograph(LOMIRI_16, "analogpattern_by_Peter_Nerlich.jpg", "train", "Peter Nerlich", "CC-BY-SA-4.0"),
    Photograph(LOMIRI_16, "Bridge_by_Sander_Klootwijk.jpg", "train", "Sander Klootwijk", "CC-BY-SA-4.0"),
    Photograph(LOMIRI_16, "Dragonfly_by_Bolly.jpg", "train", "Bolly", "CC-BY-SA-4.0"),
    Photograph(LOMIRI_16, "free_by_Peter_Nerlich.jpg", "train", "Peter Nerlich", "CC-BY-SA-4.0"),
    Photograph(LOMIRI_16, "greentock_by_Peter_Nerlich.jpg", "train", "Peter Nerlich", "CC-BY-SA-4.0"),
    Photograph(LOMIRI_16, "life_by_Aitzol_Berasategi.jpg", "train", "Aitzol Berasategi", "CC-BY-4.0"),
    Photograph(LOMIRI_16, "picosdeeuropa_by_Aitzol_Berasategi.jpg", "train", "Aitzol Berasategi", "CC-BY-4.0"),
    Photograph(LOMIRI_16, "Picture_0B_by_freespace.jpg", "valid", "Trevor (Freespace)", "CC-BY-4.0"),
    Photograph(LOMIRI_16, "Picture_1A_by_freespace.jpg", "train", "Trevor (Freespace)", "CC-BY-4.0"),
    Photograph(LOMIRI_16, "seeding_by_Clements_Engelhardt.jpg", "train", "Clemens Engelhardt", "CC0-1.0"),
    Photograph(LOMIRI_16, "sunset_by_Aitzol_Berasategi.jpg", "train", "Aitzol Berasategi", "CC-BY-4.0"),
    Photograph(LOMIRI_16, "Wine_by_Jakkub_Mede.jpg", "train", "Jakub Mede", "CC-BY-4.0"),
    Photograph(LOMIRI_20, "Infinite-Sea_by_Aury88.jpg", "train", "Aury88", "CC-BY-SA-3.0"),
    Photograph(LOMIRI_20, "Kleiber_by_Lukas_Baubkus.jpg", "train", "Lukas Baubkus", "CC-BY-SA-3.0"),
    Photograph(MATE, "Aqua.jpg", "train", "Charles Barbin", "GPL-2.0-or-later"),
    Photograph(MATE, "Blinds.jpg", "train", "Lennart Poettering, Andrea Cimitan", "GPL-2.0-or-later"),
    Photograph(MATE, "Dune.jpg", "train", "Marco Cogoni, Hylke Bons", "GPL-2.0-or-later"),
    Photograph(MATE, "FreshFlower.jpg", "train", "Jens Ansorg", "GPL-2.0-or-later"),
    Photograph(MATE, "Garden.jpg", "train", "Charles Barbin", "GPL-2.0-or-later"),
    Photograph(MATE, "GreenMeadow.jpg", "train", "Timothy Schellhase, Lapo Calamandrei", "GPL-2.0-or-later"),
    Photograph(MATE, "LadyBird.jpg", "valid", "Charles Barbin", "GPL-2.0-or-later"),
    Photograph(MATE, "RainDrops.jpg", "train", "blackcombwhistler07", "GPL-2.0-or-later"),
    Photograph(MATE, "Storm.jpg", "train", "Sergey Nazarov", "GPL-2.0-or-later"),
    Photograph(MATE, "TwoWings.jpg", "train", "Charles Barbin, Hylke Bons", "GPL-2.0-or-later"),
    Photograph(MATE, "Wood.jpg", "train", "Jean-François Fortin Tam", "GPL-2.0-or-later"),
    Photograph(MATE, "YellowFlower.jpg", "train", "Charles Barbin", "GPL-2.0-or-later"),
    Photograph(PLASMA, "Altai/contents/images/5120x2880.png", "train", "Alesya Khoteeva", "CC-BY-SA-4.0"),
    Photograph(PLASMA, "BytheWater/contents/images/2560x1600.jpg", "valid", "Maciej Wiklo", "LGPL-3.0"),
    Photograph(PLASMA, "ColdRipple/contents/images/2560x1600.jpg", "train", "Risto Saukonpää", "LGPL-3.0"),
    Photograph(PLASMA, "ColorfulCups/contents/images/2560x1600.jpg", "train", "Dmitri Popov", "LGPL-3.0"),
    Photograph(PLASMA, "DarkestHour/contents/images/2560x1600.jpg", "train", "Risto Saukonpää", "LGPL-3.0"),
    Photograph(PLASMA, "EveningGlow/contents/images/2560x1600.jpg", "train", "Ian Hex", "LGPL-3.0"),
    Photograph(PLASMA, "FallenLeaf/contents/images/2560x1600.jpg", "train", "Martin Klapetek", "LGPL-3.0"),
    Photograph(PLASMA, "Grey/contents/images/2560x1600.jpg", "train", "Sigi Sagi", "LGPL-3.0"),
    Photograph(PLASMA, "IceCold/contents/images/5120x2880.png", "train", "Santiago Cézar", "CC-BY-SA-4.0"),
    Photograph(PLASMA, "OneStandsOut/contents/images/2560x1600.jpg", "train", "Risto Saukonpää", "LGPL-3.0"),
    Photograph(PLASMA, "Patak/contents/images/5120x2880.png", "train", "Áron Kovács", "CC-BY-SA-4.0"),
    Photograph(PLASMA, "Path/contents/images/2560x1600.jpg", "train", "Risto Saukonpää", "LGPL-3.0"),
    Photograph(PLASMA, "Shell/contents/images/5120x2880.jpg", "train", "Lucas Andrade", "CC-BY-SA-4.0"),
    Photograph(PLASMA, "summer_1am/contents/images/2560x1600.jpg", "train", "Risto Saukonpää", "LGPL-3.0"),
    Photograph(PLASMA, "Volna/contents/images/5120x2880.jpg", "train", "Nikita Babin", "CC-BY-SA-4.0"),
    Photograph(SKIMAGE, "brick.png", "train", "CC0Textures", "CC0-1.0"),
    Photograph(SKIMAGE, "coffee.png", "train", "Rachel Michetti", "CC0-1.0"),
    Photograph(SKIMAGE, "coins.png", "train", "Brooklyn Museum", "no known copyright restrictions"),
    Photograph(SKIMAGE, "grass.png", "train", "linolafett", "CC0-1.0"),
    Photograph(SKIMAGE, "gravel.png", "train", "CC0Textures", "CC0-1.0"),
    Photograph(SKIMAGE, "hubble_deep_field.jpg", "train", "NASA", "public domain"),
    Photograph(
        SKIMAGE,
        "motorcycle_left.png",
        "train",
        "D. Scharstein and others, Middlebury Stereo 2014",
        "BSD-3-Clause, as scikit-image",
    ),
    Photograph(SKIMAGE, "rocket.jpg", "train", "SpaceX", "public domain"),
    Photograph(SKLEARN, "china.jpg", "train", "danielbuechele", "CC-BY-2.0"),
    Photograph(SKLEARN, "flower.jpg", "train", "vultilion", "CC-BY-2.0"),
)


def collect(folder: Path) -> list[str]:
    """Copy all photographs into ``folder``/train and ``folder``/valid; the packages whose version is not the table's.

    Raises PictureError for a folder that is not empty, and where a package cannot be had or lacks a photograph: nothing is
    copied then.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PictureError(f"{folder} is not an empty folder", "choose another one")
    changed = []
    with tempfile.TemporaryDirectory() as scratch:
        places = {}
        for package in dict.fromkeys(photograph.package for photograph in PHOTOGRAPHS):
            place, version = _installed(package) if package.module else _unpacked(package, Path(scratch))
            places[package] = place / package.folder
            if version != package.version:
                changed.append(f"{package.name} is {version}, and was {package.version}")
        for photograph in PHOTOGRAPHS:
            if not (places[photograph.package] / photograph.path).is_file():
                raise PictureError(
                    f"{photograph.package.name} has no {photograph.package.folder}/{photograph.path}",
                    f"take version {photograph.package.version}: this one has changed",
                )
        for photograph in PHOTOGRAPHS:
            copy = folder / photograph.split / photograph.name
            with named(copy):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(places[photograph.package] / photograph.path, copy)
    return changed


def _installed(package: Package) -> tuple[Path, str]:
    """Where a Python package is, and its version."""
    found = importlib.util.find_spec(package.module)
    if found is None or found.origin is None:
        raise PictureError(f"{package.name} is not installed", "in the source folder, pip install '.[cpu,train]'")
    return Path(found.origin).parent, importlib.metadata.version(package.name)


def _unpacked(package: Package, scratch: Path) -> tuple[Path, str]:
    """Where a Debian package was downloaded and unpacked, below ``scratch``, and its version."""
    place = scratch / package.name
    place.mkdir()
    _run(["apt-get", "download", package.name], place, "check the network, and that apt-get update runs")
    (archive,) = place.glob("*.deb")
    version = _run(["dpkg-deb", "-f", archive.name, "Version"], place, "try again")
    _run(["dpkg", "-x", archive.name, "files"], place, "free some space for temporary files (TMPDIR)")
    return place / "files", version


def _run(command: list[str], where: Path, hint: str) -> str:
    """What a program prints. Raises PictureError where it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True)  # noqa: S603
    except FileNotFoundError:
        raise PictureError(
            f"there is no {command[0]} here: the photographs are in Debian packages",
            "run this on Debian or Ubuntu, and copy the folder",
        ) from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        reason = next((line for line in lines if line.startswith("E: ")), lines[-1])  # apt-get's first error is the reason
        raise PictureError(f"{' '.join(command)}: {reason}", hint)
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser("python -m semseal.train.photographs", description="Collect the training photographs.")
    parser.add_argument("folder", type=Path, help="an empty folder, or a new one")
    folder = parser.parse_args().folder
    try:
        changed = collect(folder)
    except SemsealError as error:
        sys.stderr.write(f"error: {error.message}\nhint: {error.hint}\n")
        sys.exit(3)
    except OSError as error:
        sys.stderr.write(f"error: {error.strerror}: {error.filename}\n")
        sys.exit(3)
    for difference in changed:
        print(f"the pictures may differ from those of the packaged models: {difference}")
    print(f"{len(PHOTOGRAPHS)} photographs; train on them with --data folder:{folder}")


if __name__ == "__main__":
    main()
