"""Where a figure was measured: versions, processor and GPU, for every results file and for ``semseal doctor``."""

import ctypes
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


def compute_capability(gpu: int = 0) -> int | None:
    """That of an NVIDIA GPU as its driver tells it, 86 for 8.6; None where there is no such GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), gpu):
        return None
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # .._MINOR
    return 10 * major.value + minor.value


def read_text(path: str | Path) -> str:
    """A file of the system as text, empty where it cannot be read."""
    try:
        return Path(path).read_bytes().decode("latin-1")
    except OSError:
        return ""
