"""A Lambda function on this machine: its zip, run in AWS's runtime interface emulator, or as a process without it."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError

from local_test import leftovers
from local_test.platform.containers.process import ROOT
from local_test.ports import free_port

TARGET = ROOT / ".lambda"  # `make lambda`
EMULATOR = TARGET / "samcli/local/rapid" / f"aws-lambda-rie-{'arm64' if platform.machine() == 'aarch64' else 'x86_64'}"
UP = 20.0  # seconds until the emulator listens
LOG_TAIL = 4096  # characters of the log that Invoke returns
# Without the emulator: the same code from the same zip, in a process of its own.
ALONE = """
import importlib, json, os, pathlib, sys, time, traceback
module, _, name = sys.argv[1].rpartition(".")
event = json.loads(pathlib.Path(sys.argv[2]).read_text())
until = time.time() + float(sys.argv[4])

class Context:
    function_name = os.environ["AWS_LAMBDA_FUNCTION_NAME"]
    function_version = "$LATEST"
    invoked_function_arn = os.environ.get("AWS_LAMBDA_FUNCTION_ARN", "")
    aws_request_id = sys.argv[5]
    memory_limit_in_mb = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128")

    def get_remaining_time_in_millis(self):
        return max(0, int((until - time.time()) * 1000))

try:
    value, code = getattr(importlib.import_module(module.replace("/", ".")), name)(event, Context()), 0
    text = json.dumps(value)
except Exception as error:
    traceback.print_exc()
    code, lines = 1, traceback.format_exception(error)
    text = json.dumps({"errorMessage": str(error), "errorType": type(error).__name__, "stackTrace": lines})
pathlib.Path(sys.argv[3]).write_text(text)
sys.exit(code)
"""


def is_emulated() -> bool:
    """Whether AWS's emulator is installed."""
    return EMULATOR.exists()


class FunctionFailed(Exception):
    """The function could not be run, or `call` got its error."""


class Running:
    """Processes that run, each with the function that ends it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two below
        self._ends: dict[object, Callable[[], None]] = {}
        self._stopped = False

    @contextmanager
    def held(self, end: Callable[[], None]) -> Iterator[None]:
        """During the block, `stop` calls `end` from another thread. After a stop, `end` is called at once."""
        mine = object()
        with self._lock:
            self._ends[mine] = end
            late = self._stopped
        try:
            if late:
                end()
            yield
        finally:
            with self._lock:
                del self._ends[mine]

    def stop(self) -> None:
        """Call every `end`. The blocks themselves wait until their process has ended."""
        with self._lock:
            self._stopped = True
            ends = list(self._ends.values())
        for end in ends:
            end()


@dataclass(frozen=True, slots=True)
class Result:
    """The answer of one invocation."""

    payload: str  # JSON: the value that the function returned, or its error
    failed: bool
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """The code as Lambda gets it, and the function's settings."""

    code: bytes
    handler: str
    environment: Mapping[str, str]
    seconds: int  # the function's time limit
    work: Path
    running: Running
    name: str = "function"

    def call(self, event: Mapping[str, Any]) -> Any:
        """The value that the function returns. Raises FunctionFailed with its exception, or with the timeout."""
        result = self.invoke(json.dumps(event))
        value = json.loads(result.payload)
        if result.failed:
            raise FunctionFailed(f"Lambda: {value.get('errorType', 'Error')}: {value['errorMessage']}")
        return value

    def invoke(self, event: str) -> Result:
        """Runs the function once; `event` is JSON. Raises FunctionFailed if Lambda's emulator does not start."""
        work = self.work / f"function-{uuid.uuid4().hex[:8]}"
        with zipfile.ZipFile(BytesIO(self.code)) as archive:
            archive.extractall(work / "code")
        try:
            return self._emulated(work, event) if is_emulated() else self._alone(work, event)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _emulated(self, work: Path, event: str) -> Result:
        port = free_port()
        command = [
            str(EMULATOR),
            *("--runtime-interface-emulator-address", f"127.0.0.1:{port}"),
            *("--runtime-api-address", f"127.0.0.1:{free_port()}"),  # the default is 9001
            *(sys.executable, "-m", "awslambdaric", self.handler),
        ]
        environment = {
            "LAMBDA_TASK_ROOT": str(work / "code"),
            "AWS_LAMBDA_FUNCTION_TIMEOUT": str(self.seconds),
        }
        with self._process(work, command, environment) as process:
            text = self._invoked(process, port, event, work / "log")
        log = self._log(work)
        try:
            value = json.loads(text)
        except ValueError:  # the emulator reports a timeout as plain text
            return Result(json.dumps({"errorType": "Sandbox.Timedout", "errorMessage": text}), True, log)
        return Result(text, isinstance(value, dict) and {"errorMessage", "errorType"} <= set(value), log)

    def _invoked(self, process: "subprocess.Popen[bytes]", port: int, event: str, log: Path) -> str:
        """The emulator's response. The emulator starts the function on the first call."""
        client = boto3.client(
            "lambda",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id="local",
            aws_secret_access_key="local",
            config=Config(read_timeout=self.seconds + 30, retries={"total_max_attempts": 1}),
        )
        until = time.monotonic() + UP
        while True:
            began = time.monotonic()
            try:
                text: bytes = client.invoke(FunctionName="function", Payload=event)["Payload"].read()
                return text.decode()
            except ClientError:
                # The emulator answers 400 without a body if the code could not be loaded, or not within the time.
                if time.monotonic() - began >= self.seconds:
                    return f"Task timed out after {self.seconds}.00 seconds"
                return json.dumps(_load_error(log.read_text(errors="replace")))
            except BotoCoreError as error:
                there = process.poll() is None
                if not isinstance(error, EndpointConnectionError) or not there or time.monotonic() > until:
                    state = "did not answer" if there else "has exited"
                    raise FunctionFailed(f"Lambda's emulator {state}: {error} {log.read_text()[-500:]}") from error
                time.sleep(0.05)

    def _alone(self, work: Path, event: str) -> Result:
        event_file, result_file = work / "event.json", work / "result.json"
        event_file.write_text(event)
        command = [sys.executable, "-c", ALONE, self.handler, str(event_file), str(result_file)]
        with self._process(work, [*command, str(self.seconds), str(uuid.uuid4())], {}) as process:
            try:
                code = process.wait(self.seconds)
            except subprocess.TimeoutExpired:
                said = f"Task timed out after {self.seconds}.00 seconds"
                return Result(
                    json.dumps({"errorType": "Sandbox.Timedout", "errorMessage": said}), True, self._log(work)
                )
        if result_file.exists():
            return Result(result_file.read_text(), code != 0, self._log(work))
        lines = self._log(work).strip().splitlines()
        said = lines[-1] if lines else f"the process has exited with code {code}"
        return Result(json.dumps({"errorType": "Runtime.ExitError", "errorMessage": said}), True, self._log(work))

    def _log(self, work: Path) -> str:
        return (work / "log").read_text(errors="replace")

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
                env={
                    **os.environ,
                    "AWS_LAMBDA_FUNCTION_NAME": self.name,
                    **self.environment,
                    "PYTHONPATH": ":".join(path),
                    **more,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        leftovers.process(process.pid)
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
            leftovers.ended(process.pid)


def _load_error(log: str) -> dict[str, str]:
    """The error of a function whose code could not be loaded, which its runtime has logged."""
    found = re.search(r"^\[ERROR\] ([\w.]+): (.*)$", log, re.MULTILINE)
    if found:
        return {"errorType": found[1], "errorMessage": found[2]}
    return {"errorType": "Runtime.ExitError", "errorMessage": f"Runtime exited with error: {log.strip()[-500:]}"}


class Host:
    """Runs the functions of a platform, each call in a process of its own. `close` ends all of them."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._running = Running()

    def run(self, function: Any, event: str, environment: Mapping[str, str]) -> Result:
        """Runs the code of moto's function. Raises FunctionFailed if Lambda's emulator does not start.

        `environment` makes the function's AWS clients use the platform; the function's own variables come first.
        """
        own = {
            "AWS_LAMBDA_FUNCTION_NAME": function.function_name,
            "AWS_LAMBDA_FUNCTION_ARN": function.function_arn,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_size),
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_EXECUTION_ENV": f"AWS_Lambda_{function.run_time}",
            "AWS_REGION": environment["AWS_DEFAULT_REGION"],
        }
        result = Function(
            code=function.code_bytes,
            handler=function.handler,
            environment={**environment, **own, **function.environment_vars},
            seconds=int(function.timeout),
            work=self._work,
            running=self._running,
            name=function.function_name,
        ).invoke(event)
        if result.log:
            function.logs_backend.ensure_log_group(function.logs_group_name)
            function.save_logs(result.log)
        return result

    def close(self) -> None:
        self._running.stop()
