"""A Lambda function on this machine: its zip, run in AWS's runtime interface emulator, or as a process without it."""

import json
import os
import platform
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, EndpointConnectionError

from local_test.pipelines.execution import Running, StepFailed
from local_test.platform.containers.process import ROOT
from local_test.ports import free_port

TARGET = ROOT / ".lambda"  # `make lambda`
EMULATOR = TARGET / "samcli/local/rapid" / f"aws-lambda-rie-{'arm64' if platform.machine() == 'aarch64' else 'x86_64'}"
STEP_LIMIT = 600  # seconds after which SageMaker stops a Lambda step, whatever the function's own limit
UP = 20.0  # seconds until the emulator listens
# Without the emulator: the same code from the same zip, in a process of its own.
ALONE = """
import importlib, json, pathlib, sys
module, _, name = sys.argv[1].rpartition(".")
event = json.loads(pathlib.Path(sys.argv[2]).read_text())
value = getattr(importlib.import_module(module), name)(event, None)
pathlib.Path(sys.argv[3]).write_text(json.dumps(value))
"""


def is_emulated() -> bool:
    """Whether AWS's emulator is installed."""
    return EMULATOR.exists()


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """The code as Lambda gets it, and the function's settings."""

    code: bytes
    handler: str
    environment: Mapping[str, str]
    seconds: int  # the function's time limit
    work: Path
    running: Running

    def call(self, event: Mapping[str, Any]) -> Any:
        """The value that the function returns. Raises StepFailed with its exception, or with the timeout."""
        work = self.work / f"function-{uuid.uuid4().hex[:8]}"
        with zipfile.ZipFile(BytesIO(self.code)) as archive:
            archive.extractall(work / "code")
        return self._emulated(work, event) if is_emulated() else self._alone(work, event)

    @property
    def _limit(self) -> int:
        return min(self.seconds, STEP_LIMIT)

    def _emulated(self, work: Path, event: Mapping[str, Any]) -> Any:
        port = free_port()
        command = [
            str(EMULATOR),
            *("--runtime-interface-emulator-address", f"127.0.0.1:{port}"),
            *("--runtime-api-address", f"127.0.0.1:{free_port()}"),  # the default is 9001
            *(sys.executable, "-m", "awslambdaric", self.handler),
        ]
        environment = {
            "LAMBDA_TASK_ROOT": str(work / "code"),
            "AWS_LAMBDA_FUNCTION_TIMEOUT": str(self._limit),
            "AWS_LAMBDA_FUNCTION_NAME": "function",
        }
        with self._process(work, command, environment) as process:
            text = self._invoked(process, port, event, work / "log")
        try:
            value = json.loads(text)
        except ValueError:  # the emulator reports a timeout as plain text
            raise StepFailed(f"Lambda: {text}") from None
        if isinstance(value, dict) and "errorMessage" in value:
            raise StepFailed(f"Lambda: {value.get('errorType', 'Error')}: {value['errorMessage']}")
        return value

    def _invoked(self, process: "subprocess.Popen[bytes]", port: int, event: Mapping[str, Any], log: Path) -> str:
        """The emulator's response. The emulator starts the function on the first call."""
        client = boto3.client(
            "lambda",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id="local",
            aws_secret_access_key="local",
            config=Config(read_timeout=self._limit + 30, retries={"total_max_attempts": 1}),
        )
        until = time.monotonic() + UP
        while True:
            try:
                text: bytes = client.invoke(FunctionName="function", Payload=json.dumps(event))["Payload"].read()
                return text.decode()
            except BotoCoreError as error:
                there = process.poll() is None
                if not isinstance(error, EndpointConnectionError) or not there or time.monotonic() > until:
                    state = "did not answer" if there else "has exited"
                    raise StepFailed(f"Lambda's emulator {state}: {error} {log.read_text()[-500:]}") from error
                time.sleep(0.05)

    def _alone(self, work: Path, event: Mapping[str, Any]) -> Any:
        event_file, result_file = work / "event.json", work / "result.json"
        event_file.write_text(json.dumps(event))
        command = [sys.executable, "-c", ALONE, self.handler, str(event_file), str(result_file)]
        with self._process(work, command, {}) as process:
            try:
                code = process.wait(self._limit)
            except subprocess.TimeoutExpired:
                raise StepFailed(f"Lambda: Task timed out after {self._limit}.00 seconds") from None
        if code:
            lines = (work / "log").read_text().strip().splitlines()
            raise StepFailed(f"Lambda: {lines[-1] if lines else f'exit code {code}'}")
        return json.loads(result_file.read_text())

    @contextmanager
    def _process(
        self, work: Path, command: Sequence[str], more: Mapping[str, str]
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """A process that has ended when the block ends; its output goes to the file `log`."""
        path = [str(work / "code"), *([str(TARGET)] if is_emulated() else [])]
        with (work / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=work / "code",
                env={**os.environ, **self.environment, "PYTHONPATH": ":".join(path), **more},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            with self.running.held(process.terminate):
                yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
