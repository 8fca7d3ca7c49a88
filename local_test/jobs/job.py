"""A job of SageMaker: its record, as Describe shows it, and the thread that runs it on its hosts."""

import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Protocol

from local_test.jobs.hosts import Docker, Machine, Process, Started, Task
from local_test.platform.calls import PlatformError, ValidationError
from local_test.platform.containers import docker, images
from local_test.platform.containers.spec import Runtime
from local_test.platform.events import Events
from local_test.platform.options import Options

REASON = 1024  # characters of a FailureReason
TAIL = 5  # lines of the log that explain a failure without a message
DAY = 86400  # seconds; MaxRuntimeInSeconds without a StoppingCondition
DONE = ("Completed", "Failed", "Stopped")


class JobFailed(Exception):
    """The job has failed; the message is its FailureReason, which begins with AlgorithmError or ClientError."""


class JobStopped(Exception):
    """The job was asked to stop before its hosts ran."""


class Watch(Protocol):
    """CloudWatch of the job's account and region."""

    def log(self, group: str, stream: str, lines: Sequence[str]) -> None: ...

    def metric(self, namespace: str, name: str, value: float, dimensions: Mapping[str, str]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What a job uses of the emulator that runs it."""

    account: str
    region: str
    s3: Any
    options: Options
    events: Events
    watch: Watch
    environment: Callable[[str], Mapping[str, str]]  # a role's ARN -> region, address and credentials
    start: Callable[["Job"], None]  # makes a job known and starts it
    model: Callable[[str], Mapping[str, Any] | None]  # a model's description
    runtime: Runtime  # of the instances of a transform job


class Job:
    """One job. It runs from `start` on; `stop` and `close` may be called at any time, from other threads."""

    KIND: ClassVar[str]  # AWS's members are named by it: TrainingJob -> TrainingJobName, TrainingJobArn, ...
    ARN: ClassVar[str]  # the type in its ARN
    SHORT: ClassVar[str]  # of its own times: TrainingStartTime
    WORD: ClassVar[str]  # in errors

    def __init__(self, request: Mapping[str, Any], platform: Platform) -> None:
        self.name: str = request[f"{self.KIND}Name"]
        self.arn = f"arn:aws:sagemaker:{platform.region}:{platform.account}:{self.ARN}/{self.name}"
        self.request = {key: value for key, value in request.items() if key != "Tags"}
        self.tags = list(request.get("Tags") or ())
        self.platform = platform
        self.created = self.modified = now()
        self.began: datetime | None = None
        self.ended: datetime | None = None
        self.status = "InProgress"
        self.reason = ""
        self.changed = threading.Condition()  # notified of every change; guards the fields here
        self._stopping = self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"{self.ARN} {self.name}", daemon=True)

    def validate(self) -> None:
        """Raises ValidationError for a request that SageMaker refuses, or that cannot be run here."""

    # The life of a job

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Asks the job to stop: its hosts get SIGTERM, and SIGKILL later. Raises ValidationError if it has ended."""
        with self.changed:
            if self.status != "InProgress":
                raise ValidationError(
                    f"The request was rejected because the {self.WORD} job is in status {self.status}."
                )
            self._stopping = True
            self.change(status="Stopping")

    def halt(self) -> None:
        """Asks the job to end at once."""
        with self.changed:
            self._stopping = self._closing = True
            self.changed.notify_all()

    def close(self) -> None:
        """Ends the job at once, with all its hosts; returns when they have ended."""
        self.halt()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def stopping(self) -> bool:
        return self._stopping

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def done(self) -> bool:
        return self.status in DONE

    def wait(self, seconds: float | None = None) -> bool:
        """Whether the job has ended, within so many seconds."""
        with self.changed:
            return self.changed.wait_for(lambda: self.done, seconds)

    def check(self) -> None:
        """Raises JobStopped if the job has been asked to stop."""
        if self._stopping:
            raise JobStopped

    def change(self, *, status: str = "", reason: str = "") -> None:
        """Records a change of the job; subclasses keep more than the status."""
        with self.changed:
            self.status = status or self.status
            self.reason = reason or self.reason
            self.modified = now()
            if self.status in DONE:
                self.ended = self.modified
            self.changed.notify_all()

    def run(self) -> str:
        """Does the work; the status in which the job ends. Raises JobFailed and JobStopped."""
        raise NotImplementedError

    def _run(self) -> None:
        events, began, reason = self.platform.events, time.monotonic(), ""
        events.emit("job", self.name, f"{self.ARN} InProgress")
        try:
            status = self.run()
        except JobStopped:
            status = "Stopped"
        except JobFailed as why:
            status, reason = "Failed", str(why)[:REASON]
        except PlatformError as error:
            status, reason = "Failed", f"ClientError: {error.message}"[:REASON]
        except Exception as error:  # a fault of the emulator fails the job too: its callers wait for an end
            status, reason = "Failed", f"InternalServerError: {type(error).__name__}: {error}"[:REASON]
        self.change(status=status, reason=reason)
        detail = f"{self.ARN} {status}" + (f": {reason}" if reason else "")
        events.emit("failed" if status == "Failed" else "job", self.name, detail, seconds=time.monotonic() - began)

    # What Describe and List show

    def description(self) -> dict[str, Any]:
        with self.changed:
            return {**self.request, **self._common(), **self._more()}

    def summary(self) -> dict[str, Any]:
        with self.changed:
            return {**self._common(), **self._more()}

    def _common(self) -> dict[str, Any]:
        times = {
            "CreationTime": self.created,
            "LastModifiedTime": self.modified,
            f"{self.SHORT}StartTime": self.began,
            f"{self.SHORT}EndTime": self.ended,
        }
        return {
            f"{self.KIND}Name": self.name,
            f"{self.KIND}Arn": self.arn,
            f"{self.KIND}Status": self.status,
            **{key: value for key, value in times.items() if value is not None},
            **({"FailureReason": self.reason} if self.reason else {}),
        }

    def _more(self) -> dict[str, Any]:
        """Members that one kind of job has."""
        return {}

    @property
    def response_object(self) -> dict[str, Any]:
        """The name that moto's Search uses."""
        return self.description()


class HostedJob(Job):
    """A job that runs one command on each of its hosts: a training or a processing job."""

    LOGS: ClassVar[str]  # its log group
    FAILURE: ClassVar[str]  # the file below /opt/ml with the reason of a failure

    def __init__(self, request: Mapping[str, Any], platform: Platform) -> None:
        super().__init__(request, platform)
        self._tail: deque[str] = deque(maxlen=TAIL)

    @property
    def image(self) -> str:
        raise NotImplementedError

    @property
    def entrypoint(self) -> Sequence[str]:
        raise NotImplementedError

    @property
    def hyperparameters(self) -> Mapping[str, str] | None:
        return None

    @property
    def count(self) -> int:
        """InstanceCount."""
        raise NotImplementedError

    @property
    def role(self) -> dict[str, str]:
        """The environment by which the hosts act as the job's role. EnableNetworkIsolation: none."""
        network = self.request.get("NetworkConfig") or self.request
        if network.get("EnableNetworkIsolation"):
            return {}
        return dict(self.platform.environment(str(self.request.get("RoleArn", ""))))

    @property
    def limit(self) -> float:
        """MaxRuntimeInSeconds."""
        return float((self.request.get("StoppingCondition") or {}).get("MaxRuntimeInSeconds") or DAY)

    @property
    def hosts(self) -> list[str]:
        return [f"algo-{number + 1}" for number in range(self.count)]

    def work(self, files: Path) -> str:
        """Does the work in a directory that is removed afterwards; the status in which the job ends."""
        raise NotImplementedError

    def run(self) -> str:
        place = self.platform.options.work.absolute() / "jobs"
        place.mkdir(parents=True, exist_ok=True)
        files = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=place))
        try:
            return self.work(files)
        finally:
            shutil.rmtree(files, ignore_errors=True)

    def read(self, line: str) -> None:
        """A line that a host has written."""

    def resources(self, host: str) -> dict[str, Any]:
        """The content of resourceconfig.json."""
        kind = self.instance_type
        group = {"instance_group_name": "homogeneousCluster", "instance_type": kind, "hosts": self.hosts}
        return {
            "current_host": host,
            "current_instance_type": kind,
            "current_group_name": "homogeneousCluster",
            "hosts": self.hosts,
            "instance_groups": [group],
            "network_interface_name": "eth0",
        }

    @property
    def instance_type(self) -> str:
        raise NotImplementedError

    def run_hosts(self, tasks: Sequence[Task], work: Path) -> bool:
        """Runs all hosts to their end; whether it was the time limit that ended them.

        Raises JobFailed if a host failed of itself, and not because it was asked to stop.
        """
        machine = self.machine(work)
        with machine.network(self.hosts) as network:
            logs = [Log(self, task.host) for task in tasks]
            running: list[Started] = []
            try:
                for task, log in zip(tasks, logs, strict=True):
                    running.append(machine.start(task, network, log.write, self._notify))
                failed, late = self._until_ended(running)
            finally:
                for each in running:
                    if each.code is None:
                        each.kill()
                self._until(lambda: all(each.code is not None for each in running), None)
                for log in logs:
                    log.flush()
        if failed is not None and not self._stopping:
            message = text(tasks[failed].files / self.FAILURE) or "\n".join(self._tail) or "the log is empty"
            raise JobFailed(f"AlgorithmError: {message[: REASON - 60]}, exit code: {running[failed].code}")
        return late

    def machine(self, work: Path) -> Machine:
        """What runs the hosts. `check_image` has made sure at the creation that there is one."""
        options = self.platform.options
        if in_engine(options, self.image):
            return Docker(options.memory_mb)
        words = images.in_place(self.image, options.images, self.entrypoint, self.hyperparameters).words
        self.platform.events.emit("process", self.name, words)
        return Process(work)

    def check_image(self) -> None:
        """Raises ValidationError if no engine has the image and no process can take its place."""
        options = self.platform.options
        if in_engine(options, self.image):
            return
        refusal = images.in_place(self.image, options.images, self.entrypoint, self.hyperparameters).refusal
        if options.runtime == "docker":
            refusal = f"Requested image {self.image} not found. No image is pulled here: docker pull it, or build it."
        if refusal:
            raise ValidationError(refusal)

    def _until_ended(self, running: Sequence[Started]) -> tuple[int | None, bool]:
        """Waits until all hosts have ended, and ends them if one fails, at a stop and at the time limit.

        Returns the host that has failed of itself, and whether it was the time limit that ended the others.
        """

        def failed() -> int | None:
            return next((number for number, each in enumerate(running) if each.code), None)

        def ended() -> bool:
            return all(each.code is not None for each in running)

        in_time = self._until(lambda: ended() or failed() is not None or self._stopping, self.limit)
        first = failed()
        for each in running:
            if each.code is None:
                each.terminate()
        self._until(lambda: ended() or self._closing, self.platform.options.job_stop_limit)
        return first, not in_time

    def _until(self, condition: Callable[[], bool], seconds: float | None) -> bool:
        with self.changed:
            return self.changed.wait_for(condition, seconds)

    def _notify(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def written(self, stream: str, lines: Sequence[str]) -> None:
        """Lines that a host has written."""
        self._tail.extend(lines)
        self.platform.watch.log(self.LOGS, stream, lines)
        for line in lines:
            self.read(line)


class Log:
    """The output of one host, cut into lines."""

    def __init__(self, job: HostedJob, host: str) -> None:
        self._job = job
        self._stream = f"{job.name}/{host}-{int(time.time())}"
        self._rest = b""

    def write(self, piece: bytes) -> None:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if lines:
            self._job.written(self._stream, [line.decode(errors="replace").rstrip("\r") for line in lines])

    def flush(self) -> None:
        """The last line, if it has no end."""
        if self._rest:
            self.write(b"\n")


def in_engine(options: Options, image: str) -> bool:
    """Whether containers may be used, and an engine of this machine has the image."""
    return options.runtime != "process" and docker.has_image(image)


def text(file: Path) -> str:
    """The message that a container has written for its failure or its end."""
    return file.read_text(errors="replace")[:REASON].strip() if file.is_file() else ""


def now() -> datetime:
    return datetime.now(UTC)
