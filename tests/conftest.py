"""All tests: the marker `peer`, and the page of `make conformance`."""

from pathlib import Path

import pytest

from tests import peers

RESULTS = pytest.StashKey[peers.Results]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--conformance", metavar="PAGE", type=Path, help="write the results of the cases of peers to PAGE")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = peers.Results()
    config.pluginmanager.register(_Recorder(config.stash[RESULTS]), "conformance")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    peers.mark_items(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    page: Path | None = session.config.getoption("--conformance")
    if page is not None and not hasattr(session.config, "workerinput"):  # the workers of xdist report to one controller
        page.write_text(session.config.stash[RESULTS].page())


class _Recorder:
    def __init__(self, results: peers.Results) -> None:
        self.results = results

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.results.outcomes += peers.outcomes(report)
