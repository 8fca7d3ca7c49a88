"""`python -m local_test.platform` as a person uses it, and the example of the README against it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_test import multi_model_example
from tests.live import tiny
from tests.live.stack import ROOT, alive, descendants, wait_until
from tests.patience import PATIENCE

CLEAN = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "SERVE_", "SAGEMAKER_"))}


class Command:
    """The running command; what it prints is in a file."""

    def __init__(self, out: Path, *arguments: str) -> None:
        self._out = out
        with out.open("w") as stdout:
            command = [sys.executable, "-m", "local_test.platform", "--port", "0", "--runtime", "process", *arguments]
            self.process = subprocess.Popen(command, cwd=ROOT, env=CLEAN, stdout=stdout, stderr=stdout)

    @property
    def said(self) -> str:
        return self._out.read_text()

    def exported(self) -> dict[str, str]:
        """What it tells its user to export."""
        wait_until(lambda: "as it does it" in self.said or self.process.poll() is not None)
        exports = [line.removeprefix("export ") for line in self.said.splitlines() if line.startswith("export ")]
        return dict(line.split("=", 1) for line in exports)


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    running = Command(tmp_path / "out")
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.process.wait()


def test_the_example_runs_against_the_command(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With nothing but what the command prints in its environment: two models answer, and Ctrl-C tells the story."""
    exported = command.exported()
    assert set(exported) == {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"}
    for name, value in exported.items():
        monkeypatch.setenv(name, value)
    for name in ("abalone-1", "abalone-2"):
        tiny.xgboost_model(tmp_path / name)
    monkeypatch.setattr(multi_model_example, "MODELS", tmp_path)
    monkeypatch.setattr(multi_model_example, "ROWS", "1,2,3,4\n5,6,7,8\n")

    multi_model_example.main()
    command.process.send_signal(signal.SIGINT)

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["abalone-1.tar.gz", "abalone-2.tar.gz", "abalone-1.tar.gz"]
    assert lines[0] == lines[2]
    assert command.process.wait(PATIENCE) == 0
    events = [line.split()[:2] for line in command.said.splitlines()]
    assert ["load", "abalone-1.tar.gz"] in events
    assert ["load", "abalone-2.tar.gz"] in events
    assert "calls    3, errors: none" in command.said


def test_ctrl_c_ends_what_still_runs(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that nobody deleted is stopped in order; nothing of it is left."""
    for name, value in command.exported().items():
        monkeypatch.setenv(name, value)
    import boto3

    sagemaker = boto3.client("sagemaker")
    role = multi_model_example.ROLE
    sagemaker.create_model(ModelName="m", ExecutionRoleArn=role, PrimaryContainer={"Image": "serve"})
    variant = {"VariantName": "V", "ModelName": "m", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="e", EndpointConfigName="c")
    wait_until(lambda: sagemaker.describe_endpoint(EndpointName="e")["EndpointStatus"] == "InService")
    below = descendants(command.process.pid)
    assert below

    command.process.send_signal(signal.SIGINT)

    assert command.process.wait(PATIENCE) == 0
    wait_until(lambda: not any(map(alive, below)))
    assert "stopped" in command.said


def test_json_is_json(tmp_path: Path) -> None:
    """Each line, the summary included, for a machine to read."""
    command = Command(tmp_path / "out", "--json")
    wait_until(lambda: command.said)

    command.process.send_signal(signal.SIGTERM)

    assert command.process.wait(PATIENCE) == 0
    lines = [json.loads(line) for line in command.said.splitlines()]
    assert lines[0]["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")
    assert lines[-1]["event"] == "summary"


def test_a_port_that_is_taken_is_an_error_in_one_line(command: Command) -> None:
    port = command.exported()["AWS_ENDPOINT_URL"].rpartition(":")[2]

    again = subprocess.run(
        [sys.executable, "-m", "local_test.platform", "--port", port],
        cwd=ROOT,
        env=CLEAN,
        capture_output=True,
        text=True,
    )

    assert again.returncode == 1
    assert "choose another with --port" in again.stderr
    assert "Traceback" not in again.stderr


def test_a_size_is_a_size() -> None:
    from local_test.platform.__main__ import parse

    assert [parse(["--memory", text]).memory for text in ("2g", "512m", "700")] == [2048, 512, 700]
    with pytest.raises(SystemExit):
        parse(["--memory", "big"])
