"""An instance of a variant: its containers, and the calls that they answer."""

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from local_test.platform.calls import Call, ModelError, PlatformError, Reply, ValidationError
from local_test.platform.containers.model_data import S3
from local_test.platform.containers.spec import ContainerSpec, Runtime
from local_test.platform.events import Events
from local_test.platform.fleet.container import Container, Log, Unhealthy, unfollowed
from local_test.platform.fleet.plans import MAX_CONTAINERS
from local_test.platform.monitoring.meters import Meter, unmetered
from local_test.platform.options import Options


class Instance:
    """One container, several as a pipeline, or several of which each call names one. `invoke` is thread-safe."""

    def __init__(
        self,
        name: str,
        specs: Sequence[ContainerSpec],
        runtime: Runtime,
        s3: S3,
        options: Options,
        events: Events,
        *,
        variant: str = "AllTraffic",
        direct: bool = False,  # InferenceExecutionConfig: each call names its container
        log_stream: str = "",
        meter: Meter | None = None,
        follow: Callable[[str, Path], Log] = unfollowed,  # by stream and file
    ) -> None:
        if not 1 <= len(specs) <= MAX_CONTAINERS:
            raise ValidationError(f"A model has 1 to {MAX_CONTAINERS} containers, not {len(specs)}")
        self.name = name
        self._options = options
        self.events = events
        self._direct = direct
        self._in_flight = 0
        self._lock = threading.Lock()  # guards the count above
        single = len(specs) == 1
        stream = f"{variant}/{name}"  # of the log, in the log group of the endpoint
        self._containers = [
            Container(
                name if single else f"{name}/{number + 1}",
                spec,
                runtime,
                s3,
                options,
                events,
                meter or unmetered(),
                partial(follow, stream if single else f"{stream}/{label(spec, number, single)}"),
                label=label(spec, number, single),
                description=(
                    f"{'primary' if single else label(spec, number, single)} container for production variant {variant}"
                ),
                several=None if single else number,
                log_stream=log_stream or f"the log of {name}",
            )
            for number, spec in enumerate(specs)
        ]
        self._watchers: list[threading.Thread] = []

    @property
    def containers(self) -> Sequence[Container]:
        return self._containers

    @property
    def in_flight(self) -> int:
        """The number of calls in flight."""
        return self._in_flight

    @property
    def targets(self) -> frozenset[str]:
        """The models that are loaded or loading in any of its containers."""
        return frozenset().union(*(each.targets for each in self._containers))

    def snapshot(self) -> dict[str, Any]:
        """The state of the instance and its containers."""
        return {
            "name": self.name,
            "in_flight": self._in_flight,
            "containers": [each.snapshot() for each in self._containers],
        }

    def start(self) -> None:
        """Blocks until all containers are healthy. On a failure all are stopped.

        Raises Unhealthy, which names all containers that failed, and PlatformError for invalid model data or images.
        """
        try:
            _for_each(self._containers, Container.fetch)
            _for_each(self._containers, Container.start)
        except BaseException:
            self.stop()
            raise
        for each in self._containers:
            watcher = threading.Thread(target=each.watch, name=f"watch-{each.label}", daemon=True)
            watcher.start()
            self._watchers.append(watcher)

    def invoke(self, call: Call) -> Reply:
        """The reply of the container, of the pipeline's last one, or of the one that the call names.

        Raises PlatformError.
        """
        began = time.monotonic()
        with self._lock:
            self._in_flight += 1
        try:
            if len(call.body) > self._options.payload_bytes:
                raise ValidationError(f"HTTP content length exceeded {self._options.payload_bytes} bytes.")
            reply, cold = self._invoke_each(self._containers_for(call), call, began + call.limit)
        except PlatformError as error:
            status = f"{error.original_status}" if isinstance(error, ModelError) else ""
            self.events.call_failed(f"{type(error).__name__} {status}".rstrip())
            raise
        finally:
            with self._lock:
                self._in_flight -= 1
        self.events.call_answered(time.monotonic() - began, cold=cold)
        return reply

    def stop(self) -> None:
        """Stops all containers, by SIGTERM and then SIGKILL, and removes the instance's files."""
        with ThreadPoolExecutor(len(self._containers)) as threads:
            list(threads.map(Container.stop, self._containers))
        for watcher in self._watchers:
            watcher.join()
        for each in self._containers:
            each.stop()  # a watcher may have started a replacement meanwhile
        shutil.rmtree(self._options.work.absolute() / self.name, ignore_errors=True)

    def _containers_for(self, call: Call) -> Sequence[Container]:
        if not self._direct:
            if call.target_container is not None:
                raise ValidationError("The endpoint is not invoked directly, so a call must not name a container.")
            return self._containers
        if call.target_container is None:
            raise ValidationError("The endpoint is invoked directly: name a container by TargetContainerHostname.")
        found = [each for each in self._containers if each.spec.hostname == call.target_container]
        if not found:
            names = ", ".join(each.spec.hostname for each in self._containers)
            raise ValidationError(f"Container {call.target_container} not found; the containers are {names}.")
        return found

    def _invoke_each(self, row: Sequence[Container], call: Call, until: float) -> tuple[Reply, bool | None]:
        """Sends the call to the first container, and each reply to the next one."""
        cold: bool | None = None
        for number, each in enumerate(row):
            last = number == len(row) - 1
            reply, loaded = each.invoke(call if last else not_last(call), until)
            cold = loaded if cold is None else cold or loaded
            if not last:
                call = next_call(call, reply)
        return reply, cold


def label(spec: ContainerSpec, number: int, single: bool) -> str:
    """A container's name in messages."""
    return "primary" if single else spec.hostname or f"container-{number + 1}"


def not_last(call: Call) -> Call:
    """The call for a container whose reply another container reads: no stream, and no Accept of the caller's."""
    headers = {name: value for name, value in call.headers.items() if name.lower() != "accept"}
    return replace(call, headers=headers, stream=False)


def next_call(call: Call, reply: Reply) -> Call:
    """A reply as the request for the next container."""
    assert isinstance(reply.body, bytes)
    headers = {name: value for name, value in call.headers.items() if name.lower() != "content-type"}
    if "content-type" in reply.headers:
        headers["Content-Type"] = reply.headers["content-type"]
    return replace(call, body=reply.body, headers=headers)


def _for_each(containers: Sequence[Container], step: Callable[[Container], None]) -> None:
    """Runs the step on all containers at once. If several are unhealthy, one error reports all of them."""
    with ThreadPoolExecutor(len(containers)) as threads:
        futures = [threads.submit(step, each) for each in containers]
    errors = [error for each in futures if (error := each.exception()) is not None]
    unhealthy = [error for error in errors if isinstance(error, Unhealthy)]
    if len(unhealthy) > 1:
        raise Unhealthy(" ".join(str(error) for error in unhealthy))
    if errors:
        raise errors[0]
