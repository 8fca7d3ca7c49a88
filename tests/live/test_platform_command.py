"""The command `python -m local_test.platform`, and the README's example against it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from local_test import multi_model_example
from local_test.platform.__main__ import main, parse
from tests.live import tiny
from tests.live.stack import IGNORING_SIGINT, ROOT, alive, descendants, wait_until
from tests.patience import PATIENCE

CLEAN = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "SERVE_", "SAGEMAKER_"))}


class Command:
    """The running command, with its output in a file."""

    def __init__(self, out: Path, *arguments: str) -> None:
        self._out = out
        with out.open("w") as stdout:
            command = [sys.executable, "-m", "local_test.platform", "--port", "0", "--runtime", "process", *arguments]
            self.process = subprocess.Popen(
                [*IGNORING_SIGINT, *command],
                cwd=ROOT,
                env={**CLEAN, "XDG_STATE_HOME": str(out.parent / "state")},
                stdout=stdout,
                stderr=stdout,
            )

    @property
    def output(self) -> str:
        return self._out.read_text()

    def exported(self) -> dict[str, str]:
        """The variables that the command prints to be exported."""
        wait_until(lambda: "Ctrl-C stops" in self.output or self.process.poll() is not None)
        exports = [line.removeprefix("export ") for line in self.output.splitlines() if line.startswith("export ")]
        return dict(line.split("=", 1) for line in exports)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """run(arguments...) starts the command. It is killed after the test if it still runs."""
    commands: list[Command] = []

    def start(*arguments: str) -> Command:
        commands.append(Command(tmp_path / f"out-{len(commands)}", *arguments))
        return commands[-1]

    yield start
    for each in commands:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


@pytest.fixture
def command(run: Callable[..., Command]) -> Command:
    return run()


def test_the_example_runs_against_the_command(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its environment has the printed variables only. Two models answer, and SIGINT prints the summary."""
    exported = command.exported()
    aws = {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"}
    assert set(exported) == {*aws, "SAGEMAKER_USER_CONFIG_OVERRIDE", "HTTPS_PROXY", "AWS_CA_BUNDLE"}
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
    events = [line.split()[:2] for line in command.output.splitlines()]
    assert ["load", "abalone-1.tar.gz"] in events
    assert ["load", "abalone-2.tar.gz"] in events
    assert "calls    3, errors: none" in command.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_running_endpoints(
    command: Command, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """SIGINT stops them in order. None of their processes survives a SIGKILL of the emulator either."""
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

    command.process.send_signal(number)

    assert command.process.wait(PATIENCE) == (0 if number == signal.SIGINT else -number)
    wait_until(lambda: not any(map(alive, below)))
    assert ("stopped" in command.output) == (number == signal.SIGINT)


def test_with_json_every_line_is_json(run: Callable[..., Command]) -> None:
    """Including the summary."""
    command = run("--json")
    wait_until(lambda: command.output)

    command.process.send_signal(signal.SIGTERM)

    assert command.process.wait(PATIENCE) == 0
    lines = [json.loads(line) for line in command.output.splitlines()]
    assert lines[0]["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")
    assert lines[-1]["event"] == "summary"


def test_a_port_in_use_is_an_error_in_one_line(command: Command) -> None:
    port = command.exported()["AWS_ENDPOINT_URL"].rpartition(":")[2]

    second = subprocess.run(
        [sys.executable, "-m", "local_test.platform", "--port", port],
        cwd=ROOT,
        env=CLEAN,
        capture_output=True,
        text=True,
    )

    assert second.returncode == 1
    assert "choose another with --port" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_size_has_a_unit() -> None:
    assert [parse(["--memory", text]).memory for text in ("2g", "512m", "700")] == [2048, 512, 700]
    with pytest.raises(SystemExit):
        parse(["--memory", "big"])


def test_the_clock_runs_at_real_speed_or_faster() -> None:
    assert [parse(words).clock_speed for words in ([], ["--clock-speed", "60"])] == [1.0, 60.0]
    with pytest.raises(SystemExit):
        parse(["--clock-speed", "0.5"])


def test_help_goes_to_stdout_with_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["--help"])

    output = capsys.readouterr()
    assert exited.value.code == 0
    assert output.out.startswith("usage: ")
    assert output.err == ""


def test_pipelines_are_there_after_a_restart(run: Callable[..., Command], monkeypatch: pytest.MonkeyPatch) -> None:
    """A second emulator at the same time leaves their directory to the first, and reports it."""
    import boto3

    step = {"Name": "F", "Type": "Fail", "Arguments": {"ErrorMessage": "x"}}
    text = json.dumps({"Version": "2020-12-01", "Steps": [step]})

    def client(command: Command) -> Any:
        exported = command.exported()
        keys = {"aws_access_key_id": "local", "aws_secret_access_key": "local", "region_name": "us-east-1"}
        return boto3.client("sagemaker", endpoint_url=exported["AWS_ENDPOINT_URL"], **keys)

    first = run()
    client(first).create_pipeline(PipelineName="kept", PipelineDefinition=text, RoleArn=multi_model_example.ROLE)
    second = run()
    assert client(second).list_pipelines()["PipelineSummaries"] == []
    wait_until(lambda: "used by another emulator" in second.output)
    for each in (first, second):
        each.process.send_signal(signal.SIGINT)
        assert each.process.wait(PATIENCE) == 0
    assert [each["PipelineName"] for each in client(run()).list_pipelines()["PipelineSummaries"]] == ["kept"]
