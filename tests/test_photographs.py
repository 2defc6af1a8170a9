import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from semseal.runtime.errors import PictureError
from semseal.train import photographs
from semseal.train.photographs import PHOTOGRAPHS, SKIMAGE, collect

ROOT = Path(__file__).parent.parent
DEBIAN = list(dict.fromkeys(photograph.package for photograph in PHOTOGRAPHS if not photograph.package.module))


def test_the_table_has_every_picture_once_and_keeps_some_for_validation():
    assert len({photograph.name for photograph in PHOTOGRAPHS}) == len(PHOTOGRAPHS) == 52
    assert [photograph.split for photograph in PHOTOGRAPHS].count("valid") == 4
    assert {photograph.split for photograph in PHOTOGRAPHS} == {"train", "valid"}
    assert all(photograph.author and photograph.licence for photograph in PHOTOGRAPHS)
    altai, *_ = [photograph for photograph in PHOTOGRAPHS if photograph.path.startswith("Altai")]
    assert altai.name == "Altai.png"


def test_the_docs_name_author_and_licence_of_every_picture():
    shown = re.findall(r"^\| `(.+)` \| (\w+) \| (.+) \| (.+) \| `(.+)` (\S+) \|$", (ROOT / "docs/models.md").read_text(), re.M)
    table = [(p.name, p.split, p.author, p.licence, p.package.name, p.package.version) for p in PHOTOGRAPHS]
    assert shown == table


def program(folder, environment=None):
    command = [sys.executable, "-m", "semseal.train.photographs", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **(environment or {})})


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(PictureError, match="is not an empty folder"):
            collect(place)
    done = program(tmp_path)
    assert done.returncode == 3
    assert done.stderr.splitlines() == [f"error: {tmp_path} is not an empty folder", "hint: choose another one"]


def test_a_system_without_debians_programs_is_told_so(tmp_path):
    done = program(tmp_path / "new", {"PATH": str(tmp_path)})
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        "error: there is no apt-get here: the photographs are in Debian packages",
        "hint: run this on Debian or Ubuntu, and copy the folder",
    ]
    assert not (tmp_path / "new").exists()


def contents(photograph) -> bytes:
    return f"the picture {photograph.name}".encode()


def build(repository, package, *, without="", version=""):
    """A small Debian package with the files of the table; its entry for the repository's index."""
    tree = repository / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    for photograph in PHOTOGRAPHS:
        if photograph.package == package and photograph.name != without:
            file = tree / package.folder / photograph.path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(contents(photograph))
    (tree / "DEBIAN").mkdir(parents=True)
    about = f"Package: {package.name}\nVersion: {version or package.version}\nArchitecture: all\n"
    (tree / "DEBIAN" / "control").write_text(f"{about}Maintainer: nobody <nobody@example.org>\nDescription: pictures\n")
    archive = repository / f"{package.name}.deb"
    command = ["dpkg-deb", "--root-owner-group", "-b", str(tree), str(archive)]
    subprocess.run(command, check=True, capture_output=True)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return f"{about}Filename: ./{archive.name}\nSize: {archive.stat().st_size}\nSHA256: {digest}\n\n"


@pytest.fixture
def archive(tmp_path):
    """Makes a package archive of the table's packages; the environment in which apt-get knows it, and nothing else."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        pytest.skip("apt-get and dpkg-deb are Debian's")
    repository, state = tmp_path / "repository", tmp_path / "state"

    def make(packages=DEBIAN, **changes):
        repository.mkdir()
        index = "".join(build(repository, package, **changes.get(package.name, {})) for package in packages)
        (repository / "Packages.gz").write_bytes(gzip.compress(index.encode()))
        for folder in ("lists/partial", "cache/archives/partial"):
            (state / folder).mkdir(parents=True)
        (state / "status").touch()
        (state / "sources.list").write_text(f"deb [trusted=yes] file:{repository} ./\n")
        (state / "apt.conf").write_text(
            f'Dir::Etc::sourcelist "{state}/sources.list";\nDir::Etc::sourceparts "-";\nDir::Etc::parts "-";\n'
            f'Dir::State::lists "{state}/lists";\nDir::State::status "{state}/status";\nDir::Cache "{state}/cache";\n'
            'APT::Sandbox::User "root";\n'
        )
        environment = {"APT_CONFIG": str(state / "apt.conf")}
        updated = subprocess.run(["apt-get", "update"], capture_output=True, text=True, env={**os.environ, **environment})
        assert updated.returncode == 0, updated.stderr
        return environment

    return make


def test_all_photographs_are_collected(tmp_path, archive):
    done = program(tmp_path / "new", archive())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"52 photographs; train on them with --data folder:{tmp_path / 'new'}"
    assert {str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*.*")} == {
        f"{photograph.split}/{photograph.name}" for photograph in PHOTOGRAPHS
    }
    for photograph in PHOTOGRAPHS:
        copy = (tmp_path / "new" / photograph.split / photograph.name).read_bytes()
        if photograph.package.module:
            place, _ = photographs._installed(photograph.package)
            assert copy == (place / photograph.package.folder / photograph.path).read_bytes()
        else:
            assert copy == contents(photograph)


def test_another_version_is_named(tmp_path, archive):
    environment = archive(**{"mate-backgrounds": {"version": "1.99-1"}})
    done = program(tmp_path / "new", environment)
    assert done.returncode == 0
    assert "may differ from those of the packaged models: mate-backgrounds is 1.99-1, and was 1.26.0-1" in done.stdout


def test_a_package_that_lost_a_picture_leaves_nothing(tmp_path, archive):
    environment = archive(**{"plasma-workspace-wallpapers": {"without": "Path.jpg", "version": "4:6.0-1"}})
    done = program(tmp_path / "new", environment)
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        "error: plasma-workspace-wallpapers has no usr/share/wallpapers/Path/contents/images/2560x1600.jpg",
        "hint: take version 4:5.27.5-2: this one has changed",
    ]
    assert not (tmp_path / "new").exists()


def test_a_package_that_cannot_be_had_is_named(tmp_path, archive):
    environment = archive(DEBIAN[1:])
    (tmp_path / "repository" / f"{DEBIAN[1].name}.deb").unlink()
    done = program(tmp_path / "new", environment)
    assert done.returncode == 3
    error, hint = done.stderr.splitlines()
    assert error == f"error: apt-get download {DEBIAN[0].name}: E: Unable to locate package {DEBIAN[0].name}"
    assert hint == "hint: check the network, and that apt-get update runs"
    assert not (tmp_path / "new").exists()


def test_the_library_pictures_are_there():
    place, version = photographs._installed(SKIMAGE)
    assert all((place / "data" / p.path).is_file() for p in PHOTOGRAPHS if p.package == SKIMAGE)
    assert re.fullmatch(r"[\d.]+", version)
