"""Real containers of the real image. IMAGE names one that is built already, or being built; else it is built here."""

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.containers import Container, Start, docker
from tests.live.stack import wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    """A Docker engine; where IMAGE_BUILD is set the image too, which .ci/run builds while the other tests run."""
    if building := os.environ.get("IMAGE_BUILD"):
        log, status = Path(building), Path(f"{building}.status")
        wait_until(status.exists, within=800, every=0.5)
        if status.read_text() not in ("0\n", "none\n"):
            pytest.fail("make image has failed:\n" + log.read_text()[-3000:])
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no Docker engine answers")


@pytest.fixture(scope="session")
def image(engine: None) -> str:
    """The image under test."""
    named = os.environ.get("IMAGE")
    if named:
        return named
    built = "sagemaker-serve:test"
    # One of the processes that run tests side by side builds it, the others then find every layer there.
    with (Path(tempfile.gettempdir()) / f"image-build-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        docker("build", "--platform", "linux/amd64", "--tag", built, str(ROOT))
    return built


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """abalone-1, gpt2 and bart in a directory of their own."""
    directory = tmp_path_factory.mktemp("models")
    directory.chmod(0o755)  # pytest makes it for its own user only; in the container another one reads
    made = subprocess.run(
        [sys.executable, "-m", "local_test.make_models", str(directory), "--only", "abalone-1", "gpt2", "bart"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return directory


@pytest.fixture(scope="session")
def start(image: str) -> Iterator[Start]:
    """Starts a container: start(models, *docker_options). All are removed at the end of the session."""
    started: list[Container] = []

    def run(models: Path, *options: str, command: tuple[str, ...] = ("serve",)) -> Container:
        # The engine picks a port that is free, on this machine's own address only.
        where = ["--publish", "127.0.0.1::8080", "--volume", f"{models}:/opt/ml/model:ro"]
        container = Container(docker("run", "--detach", *where, *options, image, *command))
        started.append(container)
        return container

    yield run
    for container in started:
        docker("rm", "--force", "--volumes", container.id, check=False)


@pytest.fixture
def container(start: Start, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Like `start`, for one test: the containers end with it, and a failure shows their logs."""
    mine: list[Container] = []

    def run(models: Path, *options: str, command: tuple[str, ...] = ("serve",)) -> Container:
        mine.append(start(models, *options, command=command))
        return mine[-1]

    yield run
    for each in mine:
        # pytest shows captured output of failed tests only.
        print(f"--- log of {each.id[:12]}\n{each.log}")
        docker("rm", "--force", "--volumes", each.id, check=False)
