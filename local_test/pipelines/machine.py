"""Where a job's container runs: Docker's, or our own server's programs as a process in its place."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from local_test.pipelines.running import Running
from local_test.platform.containers.process import ROOT
from local_test.platform.containers.runtimes import engine_answers

OPT_ML = "/opt/ml"
LABEL = "local-pipeline"  # on every container, so that one can be found whose runner was killed
STOP = 30.0  # seconds between SIGTERM and SIGKILL: SageMaker gives a training 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    image: str
    files: Path  # what it sees as /opt/ml
    command: Sequence[str]  # for the image's entrypoint
    entrypoint: Sequence[str] = ()  # instead of the image's
    environment: Mapping[str, str]
    limit: float  # seconds


class Machine(Protocol):
    def run(self, job: Job, log: Path) -> int | None:
        """Its exit code, None where it had to be stopped; what it says goes to the log."""
        ...


def machine(runtime: str, memory_mb: int, running: Running) -> Machine:
    """`docker`, `process`, or `auto`: Docker where an engine answers."""
    if runtime == "docker" or (runtime == "auto" and engine_answers()):
        return Docker(memory_mb, running)
    return Process(running)


@dataclass(frozen=True, slots=True)
class Docker:
    memory_mb: int
    running: Running

    def run(self, job: Job, log: Path) -> int | None:
        for each in (job.files, *job.files.rglob("*")):
            each.chmod(0o777 if each.is_dir() else 0o644)  # the container may run as anyone
        name = f"{LABEL}-{uuid.uuid4().hex[:12]}"
        command = [
            *("docker", "run", "--rm", "--name", name, "--label", LABEL),
            # Who is not root could not remove what a container's root leaves.
            *(("--user", f"{os.getuid()}:{os.getgid()}") if os.getuid() else ()),
            *("--memory", f"{self.memory_mb}m", "--memory-swap", f"{self.memory_mb}m"),
            *("--volume", f"{job.files.absolute()}:{OPT_ML}"),
            *(part for key, value in job.environment.items() for part in ("--env", f"{key}={value}")),
            *(("--entrypoint", job.entrypoint[0]) if job.entrypoint else ()),
            *(job.image, *job.entrypoint[1:], *job.command),
        ]
        with log.open("ab") as file:
            client = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )

        def end(number: signal.Signals) -> bool:
            told = subprocess.run(["docker", "kill", "--signal", number.name, name], capture_output=True)
            return told.returncode == 0

        def kill() -> None:
            while client.poll() is None and not end(signal.SIGKILL):
                time.sleep(0.1)  # the engine has not made it yet

        with self.running.held(kill):
            return _ended(client, job.limit, lambda: end(signal.SIGTERM), kill)


@dataclass(frozen=True, slots=True)
class Process:
    """Plays every image: its `train` is `python -m serve train`, and any entrypoint runs with paths of this machine."""

    running: Running

    def run(self, job: Job, log: Path) -> int | None:
        root = str(job.files.absolute())
        if job.entrypoint:
            words = [*job.entrypoint, *job.command]
            command = [sys.executable if word == "python3" else word.replace(OPT_ML, root) for word in words]
        else:
            command = [sys.executable, "-m", "serve", *job.command]
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SERVE_", "SAGEMAKER_", "SM_"))}
        with log.open("ab") as file:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**clean, **job.environment, "SERVE_ML_ROOT": root},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

        def kill() -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what an entrypoint has started

        with self.running.held(kill):
            return _ended(process, job.limit, process.terminate, kill)


def _ended(
    process: "subprocess.Popen[bytes]", limit: float, stop: Callable[[], object], kill: Callable[[], None]
) -> int | None:
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        stop()
    try:
        process.wait(STOP)
    except subprocess.TimeoutExpired:
        kill()
        process.wait()
    return None
