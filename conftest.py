"""``pytest`` runs the tests, ``pytest --benchmark`` the benchmarks of the link, ``-m attack`` besides those of the attacks."""

from pathlib import Path

import pytest

LONG = ("--benchmark-columns", "--benchmark-verbose", "--benchmark-group-by", "--benchmark-sort", "--benchmark-name")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="run the benchmarks and nothing else")
    parser.addoption(
        "--bundle", help="bundle to benchmark: a folder, or the name of a packaged one  [default: edge, photos-10db]"
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--benchmark"):
        return
    if not config.option.markexpr:
        config.option.markexpr = "not attack"
    # its own table is as wide as it has columns; ours has 80 characters and percentiles (benchmarks/conftest.py)
    if not any(argument.startswith(LONG) for argument in config.invocation_params.args):
        config.option.benchmark_quiet = True


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    unwanted = "tests" if config.getoption("--benchmark") else "benchmarks"
    return True if unwanted in collection_path.relative_to(config.rootpath).parts else None
