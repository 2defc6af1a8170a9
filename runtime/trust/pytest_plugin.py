"""``semseal check`` as a test: of pytest's own, or one among yours. pytest finds this plugin by itself.

pytest --semseal-check bundle                       a test for each bundle that is named, which fails for a finding

def test_link(semseal_check):                       or with all that ``semseal.check`` takes
    semseal_check("bundle", keys="alice.key", waivers="waivers.toml")
"""

from collections.abc import Callable
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("semseal")
    group.addoption(
        "--semseal-check", action="append", default=[], metavar="BUNDLE", help="check a deployed bundle; may be repeated"
    )


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    items += [
        CheckItem.from_parent(session, name=f"semseal check {name}", bundle=name)
        for name in config.getoption("--semseal-check")
    ]


@pytest.fixture
def semseal_check() -> Callable[..., Any]:
    """``semseal.check``, which fails the test for a finding; it gives the report."""
    return _checked


def _checked(bundle: Any, **asked: Any) -> Any:
    from semseal.runtime.trust.check import check
    from semseal.runtime.trust.formats import as_text

    report = check(bundle, **asked)
    if not report.clean:
        pytest.fail(as_text(report), pytrace=False)
    return report


class CheckItem(pytest.Item):
    """One bundle that was named on the command line."""

    def __init__(self, *, bundle: str, **known: Any) -> None:
        super().__init__(**known)
        self._bundle = bundle

    def runtest(self) -> None:
        _checked(self._bundle)

    def reportinfo(self) -> tuple[Any, None, str]:
        return self.path, None, self.name
