"""Where a figure was measured: versions, processor and GPU, for every results file and for ``semseal doctor``."""

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Environment:
    """This machine and what is installed on it; ``packages`` maps each that was asked for to its version."""

    python: str
    system: str
    cpu: str
    cores: int | None
    gpu: str | None
    packages: dict[str, str]


def environment(packages: Sequence[str], gpu: str | None = None) -> Environment:
    """The environment with the versions of ``packages``; ``gpu`` is the name of the one that was used."""
    versions = {package: version(package) or "not installed" for package in packages}
    return Environment(platform.python_version(), platform.system(), processor(), os.cpu_count(), gpu, versions)


def version(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The name of the processor, its architecture where the system tells no name."""
    name = re.search(r"model name\s*: (.+)", read_text("/proc/cpuinfo"))
    return name[1] if name else platform.processor() or platform.machine()


def read_text(path: str | Path) -> str:
    """A file of the system as text, empty where it cannot be read."""
    try:
        return Path(path).read_bytes().decode("latin-1")
    except OSError:
        return ""
