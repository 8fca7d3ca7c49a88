"""A container of an instance: started with its model data, pinged, replaced when it stays unhealthy, and stopped."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from local_test.platform.calls import Call, PlatformError, Reply, ServiceUnavailable
from local_test.platform.containers import model_data
from local_test.platform.containers.client import Broken, Client, DeadlinePassed
from local_test.platform.containers.model_data import S3
from local_test.platform.containers.spec import ContainerSpec, Running, Runtime
from local_test.platform.containers.usage import Usage
from local_test.platform.events import Events
from local_test.platform.fleet.model_loader import ModelLoader
from local_test.platform.monitoring.meters import Meter
from local_test.platform.options import Options

STARTUP_PING = 0.1  # seconds between pings while a container starts
CONSECUTIVE = 2  # successful pings after which a container is healthy
MEASURE = 10.0  # seconds between two measurements of a container's use of processor and memory
LAST_LINES = 10  # of the log, in errors
DIRECTORIES = ("model", "models", "additional-model-data-sources")


class Log(Protocol):
    """A container's log that is followed."""

    def close(self) -> None:
        """The container has ended."""
        ...


class NoLog:
    """A log that is not followed."""

    def close(self) -> None:
        pass


Follow = Callable[[Path], Log]  # follows the log in a file


def unfollowed(*_: str | Path) -> NoLog:
    """Follows no log, whatever its names."""
    return NoLog()


class Unhealthy(Exception):
    """A container failed to start; the message is DescribeEndpoint's FailureReason."""


@dataclass(frozen=True, slots=True)
class Ping:
    """The result of one GET /ping: a status, or the reason why there is none."""

    status: int | None
    problem: str = ""

    @property
    def healthy(self) -> bool:
        return self.status == 200

    def __str__(self) -> str:
        return self.problem or f"status {self.status}"


def ping(client: Client, limit: float, path: str = "/ping") -> Ping:
    """Sends one GET, with a limit in seconds."""
    try:
        return Ping(client.request("GET", path, limit=limit).status)
    except DeadlinePassed:
        return Ping(None, f"no answer within {limit:g} s")
    except Broken as broken:
        return Ping(None, str(broken))


def await_healthy(
    running: Running,
    client: Client,
    description: str,
    window: float,
    options: Options,
    *,
    multi_model: bool,
    stopped: Callable[[], bool],
) -> float:
    """Blocks until the container is healthy; returns the seconds that took.

    Raises Unhealthy if `window` seconds pass, the container exits, or `stopped` returns true.
    """
    began = time.monotonic()
    successes, last = 0, Ping(None, "no ping was sent")
    while True:
        last = ping(client, options.ping_limit)
        if last.healthy and multi_model:
            # SageMaker lists the models of a multi-model container during its start; a 404 there fails the start.
            listed = ping(client, options.ping_limit, "/models")
            last = listed if listed.healthy else Ping(listed.status, f"GET /models: {listed}")
        successes = successes + 1 if last.healthy else 0
        took = time.monotonic() - began
        if successes >= CONSECUTIVE:
            return took
        if not running.alive():
            exited = f"the container exited with status {running.exit_code}"
            raise Unhealthy(failure_reason(description, exited, running.log_tail(LAST_LINES)))
        if stopped():
            raise Unhealthy(failure_reason(description, "the container was stopped during its start", ""))
        if took > window:
            observed = f"the last ping after {took:.0f} s: {last}"
            raise Unhealthy(failure_reason(description, observed, running.log_tail(LAST_LINES)))
        time.sleep(STARTUP_PING)


def failure_reason(description: str, observed: str, log: str) -> str:
    """SageMaker's FailureReason, with two facts that SageMaker omits: the observation, and the end of the log."""
    reason = (
        f"The {description} did not pass the ping health check. Please check CloudWatch logs for this endpoint. "
        f"Observed: {observed}."
    )
    return reason + (f" The end of its log:\n{log}" if log else "")


class PingHistory:
    """Consecutive failed pings of a container that was healthy before."""

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._failures = 0

    def add(self, result: Ping) -> bool:
        """Adds one result. Returns false if the container must be replaced."""
        self._failures = 0 if result.healthy else self._failures + 1
        return self._failures < self._allowed


class Container:
    """A place for one container, with its files. The container in it can be replaced; calls meanwhile get 503."""

    def __init__(
        self,
        name: str,
        spec: ContainerSpec,
        runtime: Runtime,
        s3: S3,
        options: Options,
        events: Events,
        meter: Meter,
        follow: Follow,
        *,
        label: str,
        description: str,
        several: int | None,
        log_stream: str,
    ) -> None:
        self._name = name
        self._label = label  # in errors of calls: primary, container-2, a hostname
        self._description = description  # in the reason of a failed start
        self._spec = spec
        self._runtime = runtime
        self._s3 = s3
        self._options = options
        self._events = events
        self._meter = meter
        self._follow = follow
        self._several = several
        self._log_stream = log_stream
        self._files = options.work.absolute() / name
        self._current: _Current | None = None  # replaced as a whole, so readers need no lock
        self._stopping = threading.Event()

    @property
    def spec(self) -> ContainerSpec:
        return self._spec

    @property
    def label(self) -> str:
        return self._label

    @property
    def running(self) -> Running | None:
        return self._current.running if self._current else None

    @property
    def targets(self) -> frozenset[str]:
        """The models that are loaded or loading."""
        current = self._current
        return current.loader.targets if current and current.loader else frozenset()

    def snapshot(self) -> dict[str, Any]:
        """The state of the container; "models" only if it is a multi-model container."""
        current = self._current
        shown: dict[str, Any] = {"name": self._label, "image": self._spec.image, "running": current is not None}
        if self._spec.multi_model:
            shown["models"] = current.loader.snapshot() if current and current.loader else []
        return shown

    def fetch(self) -> None:
        """Downloads the model data. Raises PlatformError."""
        for each in DIRECTORIES:
            (self._files / each).mkdir(parents=True, exist_ok=True)
        if self._spec.model is not None and not self._spec.multi_model:
            (self._files / "model").rmdir()
            model_data.fetch(self._s3, self._spec.model, self._files / "model")
        for channel, data in self._spec.additional.items():
            model_data.fetch(self._s3, data, self._files / "additional-model-data-sources" / channel)

    def start(self) -> None:
        """Blocks until the container is healthy. Raises Unhealthy, and PlatformError for an invalid image."""
        began = time.monotonic()
        running = self._runtime.start(self._spec, self._files, self._name, several=self._several)
        log = self._follow(running.log_path)
        client = Client(
            self._label,
            running.port,
            self._events,
            payload_bytes=self._options.payload_bytes,
            log_stream=self._log_stream,
        )
        window = self._spec.startup_limit or self._options.startup_limit
        try:
            await_healthy(
                running,
                client,
                self._description,
                window,
                self._options,
                multi_model=self._spec.multi_model,
                stopped=self._stopping.is_set,
            )
        except BaseException as error:
            if isinstance(error, Unhealthy):
                self._events.emit("failed", self._name, str(error).splitlines()[0])
            client.close()
            running.stop(self._options.stop_limit)
            log.close()
            raise
        pings = PingHistory(self._options.failed_pings)
        self._current = _Current(running, client, self._loader(running, client), pings, log)
        self._events.emit("ready", self._name, self._spec.image, seconds=time.monotonic() - began)

    def watch(self) -> None:
        """Checks the container periodically until `stop`."""
        while not self._stopping.wait(self._options.ping_every):
            self.check()

    def check(self) -> None:
        """Pings the container and compares its loaded models. Replaces it if it exited or failed too many pings."""
        current = self._current
        if current is None:
            self._restart()
            return
        result = ping(current.client, self._options.ping_limit)
        if result.healthy:
            current.pings.add(result)
            self._measure(current)
            if current.loader:
                current.loader.synchronise()
                self._meter.record({"LoadedModelCount": len(current.loader.targets)})
            return
        self._events.emit("bad-ping", self._name, f"GET /ping: {result}")
        alive = current.running.alive()
        if not alive or not current.pings.add(result):
            reason = (
                f"GET /ping: {result}" if alive else f"the container exited with status {current.running.exit_code}"
            )
            self._events.emit("replace", self._name, reason, log=current.running.log_tail(LAST_LINES))
            self._shut_down()
            self._restart()

    def _measure(self, current: "_Current") -> None:
        """Records the use of processor and memory since the last measurement, as SageMaker's agent does."""
        now = time.monotonic()
        before, began = current.used, current.measured
        if now - began < MEASURE:
            return
        current.used, current.measured = current.running.usage(), now
        if before is None or current.used is None:
            return
        cores = max(current.used.processor_seconds - before.processor_seconds, 0.0) / (now - began)
        limit = (self._spec.memory_mb or self._options.memory_mb) << 20
        memory = current.used.memory_bytes / limit
        self._meter.record({"CPUUtilization": 100 * cores, "MemoryUtilization": 100 * memory})

    def invoke(self, call: Call, until: float) -> tuple[Reply, bool | None]:
        """The reply, and whether a model had to be loaded for it; None for a container with a single model."""
        current = self._current
        if current is None:
            raise ServiceUnavailable(f"{self._label} is being replaced. Try again later.")
        if current.loader:
            return current.loader.invoke(call, until)
        return current.client.invoke(call.path, call, until), None

    def stop(self) -> None:
        """Stops the container for good, by SIGTERM and then SIGKILL."""
        self._stopping.set()
        self._shut_down()

    def _loader(self, running: Running, client: Client) -> ModelLoader | None:
        if not self._spec.multi_model or self._spec.model is None:
            return None
        return ModelLoader(
            running,
            client,
            self._files / "models",
            self._spec.model,
            self._s3,
            self._options,
            self._events,
            self._meter,
            caching=self._spec.caching,
        )

    def _shut_down(self) -> None:
        current, self._current = self._current, None
        if current is None:
            return
        if current.loader:
            current.loader.close()
        seconds, killed = current.running.stop(self._options.stop_limit)
        current.client.close()
        current.log.close()
        if killed:
            self._events.emit(
                "killed", self._name, f"still running {self._options.stop_limit:g} s after SIGTERM", seconds=seconds
            )
        else:
            self._events.emit("stopped", self._name, f"status {current.running.exit_code}", seconds=seconds)

    def _restart(self) -> None:
        """Starts a new container with no model loaded. If it fails, the next check tries again."""
        try:
            for directory in (self._files / "models").iterdir():
                model_data.remove(directory)
            self.start()
        except (Unhealthy, PlatformError) as error:
            self._events.emit("error", self._name, f"the replacement failed to start: {str(error).splitlines()[0]}")


class _Current:
    """The parts that exist only while a container runs."""

    def __init__(
        self, running: Running, client: Client, loader: ModelLoader | None, pings: PingHistory, log: Log
    ) -> None:
        self.running = running
        self.client = client
        self.loader = loader
        self.pings = pings
        self.log = log
        self.used: Usage | None = None
        self.measured = 0.0
