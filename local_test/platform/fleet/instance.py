"""One instance of a variant: its containers, alone, in a row or side by side, and the calls that they answer."""

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from local_test.platform.calls import Call, ModelError, PlatformError, Reply, ValidationError
from local_test.platform.containers.model_data import S3
from local_test.platform.containers.spec import ContainerSpec, Runtime
from local_test.platform.events import Events
from local_test.platform.fleet.container import Container, Unhealthy
from local_test.platform.options import Options

MOST = 15  # containers


class Instance:
    """Takes calls from any number of threads between `start` and `stop`."""

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
    ) -> None:
        if not 1 <= len(specs) <= MOST:
            raise ValidationError(f"A model has 1 to {MOST} containers, not {len(specs)}")
        self.name = name
        self._options = options
        self.events = events
        self._direct = direct
        self._in_flight = 0
        self._lock = threading.Lock()  # guards the count above
        lone = len(specs) == 1
        self._hosted = [
            Container(
                name if lone else f"{name}/{number + 1}",
                spec,
                runtime,
                s3,
                options,
                events,
                called=called(spec, number, lone),
                what=f"{'primary' if lone else called(spec, number, lone)} container for production variant {variant}",
                several=None if lone else number,
                log_stream=log_stream or f"the log of {name}",
            )
            for number, spec in enumerate(specs)
        ]
        self._watchers: list[threading.Thread] = []

    @property
    def containers(self) -> Sequence[Container]:
        return self._hosted

    @property
    def in_flight(self) -> int:
        """Calls it has now."""
        return self._in_flight

    @property
    def targets(self) -> frozenset[str]:
        """Models loaded, or on their way, in any of its containers."""
        return frozenset().union(*(each.targets for each in self._hosted))

    def start(self) -> None:
        """Until all containers are well; where one is not, none is left.

        Raises Unhealthy, which names all that failed, and PlatformError for model data or an image that will not do.
        """
        try:
            _all(self._hosted, Container.fetch)
            _all(self._hosted, Container.start)
        except BaseException:
            self.stop()
            raise
        for each in self._hosted:
            watcher = threading.Thread(target=each.watch, name=f"watch-{each.called}", daemon=True)
            watcher.start()
            self._watchers.append(watcher)

    def invoke(self, call: Call) -> Reply:
        """The answer of the container, of the last one in a row, or of the one that is named. Raises PlatformError."""
        began = time.monotonic()
        with self._lock:
            self._in_flight += 1
        try:
            if len(call.body) > self._options.payload_bytes:
                raise ValidationError(f"HTTP content length exceeded {self._options.payload_bytes} bytes.")
            reply, cold = self._through(self._meant(call), call, began + call.limit)
        except PlatformError as error:
            status = f"{error.original_status}" if isinstance(error, ModelError) else ""
            self.events.failed(f"{type(error).__name__} {status}".rstrip())
            raise
        finally:
            with self._lock:
                self._in_flight -= 1
        self.events.answered(time.monotonic() - began, cold=cold)
        return reply

    def stop(self) -> None:
        """SIGTERM to all, SIGKILL where that does not do; nothing of it is left, files included."""
        with ThreadPoolExecutor(len(self._hosted)) as threads:
            list(threads.map(Container.stop, self._hosted))
        for watcher in self._watchers:
            watcher.join()
        for each in self._hosted:
            each.stop()  # one that a watcher was just bringing up
        shutil.rmtree(self._options.work.absolute() / self.name, ignore_errors=True)

    def _meant(self, call: Call) -> Sequence[Container]:
        if not self._direct:
            if call.target_container is not None:
                raise ValidationError("The endpoint is not invoked directly, so a call must not name a container.")
            return self._hosted
        if call.target_container is None:
            raise ValidationError("The endpoint is invoked directly: name a container by TargetContainerHostname.")
        found = [each for each in self._hosted if each.spec.hostname == call.target_container]
        if not found:
            names = ", ".join(each.spec.hostname for each in self._hosted)
            raise ValidationError(f"There is no container {call.target_container}; there are {names}.")
        return found

    def _through(self, row: Sequence[Container], call: Call, until: float) -> tuple[Reply, bool | None]:
        """The call to the first, each answer to the next."""
        cold: bool | None = None
        for number, each in enumerate(row):
            last = number == len(row) - 1
            reply, loaded = each.invoke(call if last else not_last(call), until)
            cold = loaded if cold is None else cold or loaded
            if not last:
                call = next_call(call, reply)
        return reply, cold


def called(spec: ContainerSpec, number: int, lone: bool) -> str:
    """A container's name in messages."""
    return "primary" if lone else spec.hostname or f"container-{number + 1}"


def not_last(call: Call) -> Call:
    """A call to a container whose answer another reads: whole, and in the form that it likes best."""
    headers = {name: value for name, value in call.headers.items() if name.lower() != "accept"}
    return replace(call, headers=headers, stream=False)


def next_call(call: Call, reply: Reply) -> Call:
    """An answer as the next container's request."""
    assert isinstance(reply.body, bytes)
    headers = {name: value for name, value in call.headers.items() if name.lower() != "content-type"}
    if "content-type" in reply.headers:
        headers["Content-Type"] = reply.headers["content-type"]
    return replace(call, body=reply.body, headers=headers)


def _all(hosted: Sequence[Container], step: Callable[[Container], None]) -> None:
    """The step for all at once. Where several fail, one error tells of all."""
    with ThreadPoolExecutor(len(hosted)) as threads:
        futures = [threads.submit(step, each) for each in hosted]
    errors = [error for each in futures if (error := each.exception()) is not None]
    unhealthy = [error for error in errors if isinstance(error, Unhealthy)]
    if len(unhealthy) > 1:
        raise Unhealthy(" ".join(str(error) for error in unhealthy))
    if errors:
        raise errors[0]
