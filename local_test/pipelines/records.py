"""Records of pipelines and their executions: in memory, and as JSON files that survive a restart of the platform."""

import datetime as dt
import fcntl
import os
import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import msgspec

# S3 objects, jobs, models and functions live as long as this process: a result of an earlier one cannot be used again.
LIFE = uuid.uuid4().hex
CUT = "The platform ended while the execution was running."
RUNNING = ("Executing", "Stopping")

Owner = tuple[str, str]  # account, region


class Step(msgspec.Struct, kw_only=True):
    """One step of an execution that has begun, or that will never run (status NotRun, which no API shows)."""

    name: str
    kind: str
    status: str
    started: dt.datetime | None = None
    ended: dt.datetime | None = None
    reason: str = ""
    attempts: int = 0
    metadata: dict[str, Any] = {}  # as ListPipelineExecutionSteps shows it
    properties: dict[str, Any] = {}  # that later steps may refer to
    cache_key: str = ""
    cached_from: str = ""  # ARN of the execution whose result is used
    selected_from: str = ""  # the same, for a step that selective execution leaves out


class Execution(msgspec.Struct, kw_only=True):
    """One execution. Only the thread that runs it changes it while it runs, but for `status` Stopping."""

    arn: str
    pipeline: str  # its name
    definition: str  # JSON
    parameters: dict[str, Any]
    role: str
    access_key: str  # of the caller; the steps' calls use it, so that they reach the same account
    token: str
    created: dt.datetime
    modified: dt.datetime
    status: str = "Executing"
    reason: str = ""
    display_name: str = ""
    description: str = ""
    parallelism: int = 0  # steps at the same time; 0: no limit
    version: int = 1
    selected: dict[str, Any] | None = None  # SelectiveExecutionConfig
    life: str = LIFE
    steps: dict[str, Step] = {}

    @property
    def id(self) -> str:
        return self.arn.rpartition("/")[2]


class Version(msgspec.Struct, kw_only=True):
    """One version of a definition."""

    number: int
    definition: str  # JSON
    created: dt.datetime


class Pipeline(msgspec.Struct, kw_only=True):
    """A pipeline with all versions of its definition, the newest last."""

    arn: str
    name: str
    display_name: str
    description: str
    role: str
    token: str
    created: dt.datetime
    modified: dt.datetime
    versions: list[Version]
    parallelism: int = 0
    last_run: dt.datetime | None = None
    tags: list[dict[str, str]] = []

    @property
    def definition(self) -> str:
        return self.versions[-1].definition


class Records:
    """All pipelines and executions of one platform. Thread-safe; a change is on disk when the method returns.

    A directory belongs to one platform at a time: another that uses it at the same time keeps its records in memory,
    which `shared` reports. Without a directory they are in memory too.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.lock = threading.RLock()  # guards the two below, the files, and executions that run
        self._pipelines: dict[Owner, dict[str, Pipeline]] = {}
        self._executions: dict[Owner, dict[str, Execution]] = {}  # by ARN, in the order of their start
        self._directory: Path | None = None
        self._own: int | None = None
        self.shared = False
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self._own = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(self._own, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.shared = True
            else:
                self._directory = directory
                self._read(directory)

    def close(self) -> None:
        """Marks what still runs as cut, and frees the directory."""
        with self.lock:
            for owner, executions in self._executions.items():
                for execution in executions.values():
                    if execution.status in RUNNING:
                        cut(execution)
                        self.save(owner, execution)
            if self._own is not None:
                os.close(self._own)
                self._own = self._directory = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pipelines(self, owner: Owner) -> list[Pipeline]:
        with self.lock:
            return list(self._pipelines.get(owner, {}).values())

    def pipeline(self, owner: Owner, name: str) -> Pipeline | None:
        with self.lock:
            return self._pipelines.get(owner, {}).get(name)

    def executions(self, owner: Owner, pipeline: str) -> list[Execution]:
        with self.lock:
            return [each for each in self._executions.get(owner, {}).values() if each.pipeline == pipeline]

    def execution(self, owner: Owner, arn: str) -> Execution | None:
        with self.lock:
            return self._executions.get(owner, {}).get(arn)

    def keep(self, owner: Owner, pipeline: Pipeline) -> None:
        """Stores a new or changed pipeline."""
        with self.lock:
            self._pipelines.setdefault(owner, {})[pipeline.name] = pipeline
            self._write(owner, pipeline.name, "pipeline.json", pipeline)

    def forget(self, owner: Owner, name: str) -> None:
        """Removes a pipeline with all its executions."""
        with self.lock:
            del self._pipelines[owner][name]
            for each in self.executions(owner, name):
                del self._executions[owner][each.arn]
            if self._directory is not None:
                shutil.rmtree(self._directory.joinpath(*owner, name), ignore_errors=True)

    def save(self, owner: Owner, execution: Execution) -> None:
        """Stores a new or changed execution."""
        with self.lock:
            self._executions.setdefault(owner, {})[execution.arn] = execution
            self._write(owner, execution.pipeline, f"{execution.id}.json", execution)

    def change(self, owner: Owner, execution: Execution, change: Callable[[], None]) -> None:
        """Carries out a change of an execution while no other thread reads or changes it, and stores it."""
        with self.lock:
            change()
            execution.modified = now()
            self.save(owner, execution)

    def seen(self, execution: Execution) -> Execution:
        """A copy of an execution, which its thread no longer changes."""
        with self.lock:
            return msgspec.json.decode(msgspec.json.encode(execution), type=Execution)

    def _write(self, owner: Owner, pipeline: str, name: str, record: msgspec.Struct) -> None:
        if self._directory is None:
            return
        path = self._directory.joinpath(*owner, pipeline, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(record))
        part.replace(path)

    def _read(self, directory: Path) -> None:
        found: list[tuple[Owner, Execution]] = []
        for path in sorted(directory.glob("*/*/*/*.json")):
            owner = (path.parts[-4], path.parts[-3])
            try:
                if path.name == "pipeline.json":
                    pipeline = msgspec.json.decode(path.read_bytes(), type=Pipeline)
                    self._pipelines.setdefault(owner, {})[pipeline.name] = pipeline
                else:
                    found.append((owner, msgspec.json.decode(path.read_bytes(), type=Execution)))
            except (msgspec.MsgspecError, OSError):
                continue  # a file of another version of this program
        for owner, execution in sorted(found, key=lambda pair: pair[1].created):
            self._executions.setdefault(owner, {})[execution.arn] = execution
            if execution.status in RUNNING:  # the platform was killed
                cut(execution)
                self.save(owner, execution)


def cut(execution: Execution) -> None:
    """Marks an execution, and its steps that run, as ended with the platform."""
    execution.status, execution.reason = ("Failed", CUT) if execution.status == "Executing" else ("Stopped", "")
    for step in execution.steps.values():
        if step.status in (*RUNNING, "Starting"):
            step.status, step.reason, step.ended = execution.status, execution.reason, now()


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
