"""A pipeline on this machine, each of its jobs in a container of the image."""

from pathlib import Path

import pytest

from deploy.__main__ import main
from local_test.pipelines.machine import LABEL, Docker, Job
from tests.image.containers import docker


def test_a_pipeline_splits_tunes_registers_and_scores_in_containers(
    image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    data = tmp_path / "rows.csv"
    data.write_text("".join(f"{number % 7},{number % 7 + 0.5},{number % 3}\n" for number in range(100)))
    words = ["pipeline", "tuned-model", "run", "--local", "--runtime", "docker", "--image", image, "--data", str(data)]

    code = main([*words, "--param", "MaxJobs=1"])

    said = capsys.readouterr()
    assert code == 0, said
    lines = [line.split() for line in said.out.splitlines()]
    ended = [line[0] for line in lines if len(line) > 2 and line[2] == "Succeeded"]
    assert sorted(ended) == ["Create", "Process", "Register", "Score", "Tune"]
    assert lines[0][:2] == ["jobs:", "Docker;"]
    assert not docker("ps", "--all", "--quiet", "--filter", f"label={LABEL}")


def test_a_job_is_stopped_at_its_limit_and_its_container_is_gone(image: str, tmp_path: Path) -> None:
    wait = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(60)"
    job = Job(image=image, files=tmp_path, command=["-c", wait], entrypoint=["python3"], environment={}, limit=3)

    assert Docker(512).run(job, tmp_path / "log") is None
    assert not docker("ps", "--all", "--quiet", "--filter", f"label={LABEL}")
