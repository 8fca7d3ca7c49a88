"""A pipeline on this machine, each of its jobs in a container of the image."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from local_test.pipelines.__main__ import main
from local_test.pipelines.execution import Running
from local_test.pipelines.jobs import LABEL, Docker, Job
from tests.image.containers import docker
from tests.live.stack import wait_until


@pytest.mark.parametrize(
    ("name", "parameter", "steps"),
    [
        ("two-models", "RoundsOne=5", ["DeployMME", "Smoke", "TrainOne", "TrainTwo"]),
        ("tuned-model", "MaxJobs=1", ["Create", "Process", "Register", "Score", "Tune"]),
    ],
)
def test_a_pipeline_is_executed_in_containers(
    image: str,
    tmp_path: Path,
    name: str,
    parameter: str,
    steps: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    data = tmp_path / "rows.csv"
    data.write_text("".join(f"{number % 7},{number % 7 + 0.5},{number % 3}\n" for number in range(100)))
    words = [name, "--runtime", "docker", "--image", image, "--data", str(data)]

    code = main([*words, "--param", parameter])

    said = capsys.readouterr()
    assert code == 0, said
    lines = [line.split() for line in said.out.splitlines()]
    ended = [line[0] for line in lines if len(line) > 2 and line[2] == "Succeeded"]
    assert sorted(ended) == steps
    assert lines[0][:2] == ["jobs:", "Docker;"]
    assert not docker("ps", "--all", "--quiet", "--filter", f"label={LABEL}")


def test_a_job_is_stopped_at_its_limit_and_its_container_is_gone(image: str, tmp_path: Path) -> None:
    wait = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(60)"
    job = Job(image=image, files=tmp_path, command=["-c", wait], entrypoint=["python3"], environment={}, limit=3)

    assert Docker(512, Running()).run(job, tmp_path / "log") is None
    assert not docker("ps", "--all", "--quiet", "--filter", f"label={LABEL}")


@pytest.mark.parametrize("begun", [False, True])
def test_a_stop_ends_a_job_and_its_container_is_gone(image: str, tmp_path: Path, begun: bool) -> None:
    """Also where the engine is still to make the container."""
    wait = "import pathlib, time; pathlib.Path('/opt/ml/begun').touch(); time.sleep(600)"
    job = Job(image=image, files=tmp_path, command=["-c", wait], entrypoint=["python3"], environment={}, limit=600)
    running = Running()

    def stop() -> None:
        if begun:
            wait_until((tmp_path / "begun").exists)
        running.stop()

    with ThreadPoolExecutor() as threads:
        stopped = threads.submit(stop)
        code = Docker(512, running).run(job, tmp_path / "log")
        stopped.result()

    assert code not in (0, None)
    assert not docker("ps", "--all", "--quiet", "--filter", f"label={LABEL}")
