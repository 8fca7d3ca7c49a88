"""Fixtures: `start` runs a stack over a model directory and sees to it that nothing of it is left afterwards."""

import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.live.bucket_server import BucketServer
from tests.live.stack import Server, alive, descendants, wait_until

Start = Callable[..., Server]
Later = Callable[..., Future[Any]]

_running: list[Server] = []


def _all_gone(pids: set[int]) -> bool:
    return not any(map(alive, pids))


@contextmanager
def _starter() -> Iterator[Start]:
    mine: list[Server] = []
    # The path of a socket may have 107 bytes, and those of pytest's directories are long: more so where tests run
    # in parallel.
    work = Path(tempfile.mkdtemp(prefix="s-"))

    def run(models: Path, *, ready: bool = True, **environ: Any) -> Server:
        server = Server(models, work / str(len(mine)), {key: str(value) for key, value in environ.items()})
        mine.append(server)
        _running.append(server)
        return server.wait_ready() if ready else server

    yield run
    for server in mine:
        below = descendants(server.process.pid) if alive(server.process.pid) else set()
        server.stop()
        wait_until(partial(_all_gone, below))
        _running.remove(server)
    shutil.rmtree(work, ignore_errors=True)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    directory = tmp_path / "models"
    directory.mkdir()
    return directory


@pytest.fixture
def start() -> Iterator[Start]:
    """start(models, SETTING="value"...) -> a Server that answers /ping; ready=False: as soon as it is started."""
    with _starter() as run:
        yield run


@pytest.fixture(scope="module")
def start_shared() -> Iterator[Start]:
    """The same for a server that all tests of a module share."""
    with _starter() as run:
        yield run


@pytest.fixture(scope="module")
def shared_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketServer]:
    """One for all: it takes seconds to start."""
    server = BucketServer(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture
def later() -> Iterator[Later]:
    """later(call, ...) -> a Future: the call goes on beside the test."""
    with ThreadPoolExecutor(16) as threads:
        yield threads.submit


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.failed:
        report.sections += [(f"log of the server on port {each.port}", each.log[-8_000:]) for each in _running]
    return report
