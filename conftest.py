"""``pytest`` runs the tests, ``pytest --benchmark`` the benchmarks and nothing else."""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="run the benchmarks and nothing else")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    unwanted = "tests" if config.getoption("--benchmark") else "benchmarks"
    return True if unwanted in collection_path.relative_to(config.rootpath).parts else None
