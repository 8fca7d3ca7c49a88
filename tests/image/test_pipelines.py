"""A pipeline on this machine, each of its jobs in a container of the image."""

from pathlib import Path

import pytest

from local_test.jobs.hosts import LABEL
from local_test.pipelines.__main__ import main
from tests.image.containers import docker


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
