"""A Lambda function here: its zip, run in AWS's own runtime interface emulator, or where that is not, as a process."""

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

from local_test.pipelines.execution import StepFailed
from local_test.pipelines.running import Running
from local_test.platform.containers.process import ROOT
from local_test.ports import free_port

TARGET = ROOT / ".lambda"  # `make lambda`
EMULATOR = TARGET / "samcli/local/rapid" / f"aws-lambda-rie-{'arm64' if platform.machine() == 'aarch64' else 'x86_64'}"
STEP_LIMIT = 600  # seconds: SageMaker cuts a Lambda step there, whatever the function's own limit
UP = 20.0  # seconds until the emulator listens
# In no way Lambda's, but the same code from the same zip, in a process of its own.
ALONE = """
import importlib, json, pathlib, sys
module, _, name = sys.argv[1].rpartition(".")
event = json.loads(pathlib.Path(sys.argv[2]).read_text())
said = getattr(importlib.import_module(module), name)(event, None)
pathlib.Path(sys.argv[3]).write_text(json.dumps(said))
"""


def is_emulated() -> bool:
    """Whether AWS's emulator is here."""
    return EMULATOR.exists()


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """Its code as Lambda gets it, and what Lambda would know of it."""

    code: bytes
    handler: str
    environment: Mapping[str, str]
    seconds: int  # it may take
    work: Path
    running: Running

    def call(self, event: Mapping[str, Any]) -> Any:
        """What it returns. Raises StepFailed with what it raised, or where it was cut."""
        room = self.work / f"function-{uuid.uuid4().hex[:8]}"
        with zipfile.ZipFile(BytesIO(self.code)) as archive:
            archive.extractall(room / "code")
        return self._emulated(room, event) if is_emulated() else self._alone(room, event)

    @property
    def _limit(self) -> int:
        return min(self.seconds, STEP_LIMIT)

    def _emulated(self, room: Path, event: Mapping[str, Any]) -> Any:
        port = free_port()
        command = [
            str(EMULATOR),
            *("--runtime-interface-emulator-address", f"127.0.0.1:{port}"),
            *("--runtime-api-address", f"127.0.0.1:{free_port()}"),  # by itself it takes 9001
            *(sys.executable, "-m", "awslambdaric", self.handler),
        ]
        environment = {
            "LAMBDA_TASK_ROOT": str(room / "code"),
            "AWS_LAMBDA_FUNCTION_TIMEOUT": str(self._limit),
            "AWS_LAMBDA_FUNCTION_NAME": "function",
        }
        with self._process(room, command, environment) as process:
            said = self._invoked(process, port, event, room / "log")
        try:
            value = json.loads(said)
        except ValueError:  # of a function that was cut it says so in plain text
            raise StepFailed(f"Lambda: {said}") from None
        if isinstance(value, dict) and "errorMessage" in value:
            raise StepFailed(f"Lambda: {value.get('errorType', 'Error')}: {value['errorMessage']}")
        return value

    def _invoked(self, process: "subprocess.Popen[bytes]", port: int, event: Mapping[str, Any], log: Path) -> str:
        """What the emulator answers; it starts the function on the first call."""
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
                said: bytes = client.invoke(FunctionName="function", Payload=json.dumps(event))["Payload"].read()
                return said.decode()
            except BotoCoreError as error:
                there = process.poll() is None
                if not isinstance(error, EndpointConnectionError) or not there or time.monotonic() > until:
                    state = "did not answer" if there else "has ended"
                    raise StepFailed(f"Lambda's emulator {state}: {error} {log.read_text()[-500:]}") from error
                time.sleep(0.05)

    def _alone(self, room: Path, event: Mapping[str, Any]) -> Any:
        asked, answer = room / "event.json", room / "answer.json"
        asked.write_text(json.dumps(event))
        command = [sys.executable, "-c", ALONE, self.handler, str(asked), str(answer)]
        with self._process(room, command, {}) as process:
            try:
                code = process.wait(self._limit)
            except subprocess.TimeoutExpired:
                raise StepFailed(f"Lambda: Task timed out after {self._limit}.00 seconds") from None
        if code:
            said = (room / "log").read_text().strip().splitlines()
            raise StepFailed(f"Lambda: {said[-1] if said else f'it ended with {code}'}")
        return json.loads(answer.read_text())

    @contextmanager
    def _process(
        self, room: Path, command: Sequence[str], more: Mapping[str, str]
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """One that has ended when the block does; what it says is in the room's log."""
        path = [str(room / "code"), *([str(TARGET)] if is_emulated() else [])]
        with (room / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=room / "code",
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
