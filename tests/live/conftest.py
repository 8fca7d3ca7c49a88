"""Fixtures: `start` runs a stack over a model directory and sees to it that nothing of it is left afterwards."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.stack import Server, alive, descendants, wait_until

Start = Callable[..., Server]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    directory = tmp_path / "models"
    directory.mkdir()
    return directory


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Start]:
    """start(models, SETTING="value"...) -> a Server that answers /ping; ready=False: as soon as it is started."""
    running: list[Server] = []

    def run(models: Path, *, ready: bool = True, **environ: Any) -> Server:
        server = Server(models, tmp_path_factory.mktemp("s"), {key: str(value) for key, value in environ.items()})
        running.append(server)
        return server.wait_ready() if ready else server

    yield run
    for server in running:
        below = descendants(server.process.pid) if alive(server.process.pid) else set()
        server.stop()
        wait_until(lambda below=below: not any(map(alive, below)), within=5)
        failed = getattr(request.node, "failed", False)
        if failed:
            print(server.log[-20_000:])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.when == "call":
        item.failed = report.failed  # type: ignore[attr-defined]
    return report
