"""One container of an instance: brought up with its model data, watched, replaced when it stays red, stopped."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from local_test.platform.calls import Call, PlatformError, Reply, ServiceUnavailable
from local_test.platform.containers import model_data
from local_test.platform.containers.client import Broken, Client, Cut
from local_test.platform.containers.model_data import S3
from local_test.platform.containers.spec import ContainerSpec, Running, Runtime
from local_test.platform.events import Events
from local_test.platform.fleet.model_loader import ModelLoader
from local_test.platform.options import Options

AGAIN = 0.1  # seconds between pings while a container starts
CONSISTENTLY = 2  # pings in a row
LAST_LINES = 10

Stopped = Callable[[], bool]


class Unhealthy(Exception):
    """A container that did not come up; the message is what DescribeEndpoint gives as FailureReason."""


@dataclass(frozen=True, slots=True)
class Ping:
    """One GET /ping: a status, or why there is none."""

    status: int | None
    problem: str = ""

    @property
    def green(self) -> bool:
        return self.status == 200

    def __str__(self) -> str:
        return self.problem or f"status {self.status}"


def ping(client: Client, limit: float, path: str = "/ping") -> Ping:
    """Ask once, for at most so many seconds."""
    try:
        return Ping(client.ask("GET", path, limit=limit).status)
    except Cut:
        return Ping(None, f"no answer within {limit:g} s")
    except Broken as broken:
        return Ping(None, str(broken))


def await_ready(
    running: Running, client: Client, what: str, window: float, options: Options, *, multi_model: bool, stopped: Stopped
) -> float:
    """The seconds until the container was consistently well. Raises Unhealthy when its window is over, or it is."""
    began = time.monotonic()
    row, last = 0, Ping(None, "it was not asked")
    while True:
        last = ping(client, options.ping_limit)
        if last.green and multi_model:
            # The platform looks at the list as soon as it starts, and a 404 there is as good as a red ping.
            listed = ping(client, options.ping_limit, "/models")
            last = listed if listed.green else Ping(listed.status, f"GET /models: {listed}")
        row = row + 1 if last.green else 0
        took = time.monotonic() - began
        if row >= CONSISTENTLY:
            return took
        if not running.alive():
            raise Unhealthy(reason(what, f"it exited with status {running.exit_code}", running.log_tail(LAST_LINES)))
        if stopped():
            raise Unhealthy(reason(what, "it was stopped while it started", ""))
        if took > window:
            seen = f"the last ping after {took:.0f} s: {last}"
            raise Unhealthy(reason(what, seen, running.log_tail(LAST_LINES)))
        time.sleep(AGAIN)


def reason(what: str, seen: str, log: str) -> str:
    """SageMaker's sentence, and what it leaves out."""
    words = (
        f"The {what} did not pass the ping health check. Please check CloudWatch logs for this endpoint. Seen: {seen}."
    )
    return words + (f" The end of its log:\n{log}" if log else "")


class Pulse:
    """The pings of a container that once was well."""

    def __init__(self, red_pings: int) -> None:
        self._allowed = red_pings
        self._row = 0

    def beats(self, seen: Ping) -> bool:
        """Whether the container may stay, after this ping too."""
        self._row = 0 if seen.green else self._row + 1
        return self._row < self._allowed


DIRECTORIES = ("model", "models", "additional-model-data-sources")


class Container:
    """It may be replaced by another of its kind; calls meanwhile are told to come again."""

    def __init__(
        self,
        name: str,
        spec: ContainerSpec,
        runtime: Runtime,
        s3: S3,
        options: Options,
        events: Events,
        *,
        called: str,
        what: str,
        several: int | None,
        log_stream: str,
    ) -> None:
        self._name = name
        self._called = called  # as errors of calls have it: primary, container-2, a hostname
        self._what = what  # as the reason of a failed start has it
        self._spec = spec
        self._runtime = runtime
        self._s3 = s3
        self._options = options
        self._events = events
        self._several = several
        self._log_stream = log_stream
        self._files = options.work.absolute() / name
        self._up: _Up | None = None  # None while there is none; set whole, so readers need no lock
        self._stopping = threading.Event()

    @property
    def spec(self) -> ContainerSpec:
        return self._spec

    @property
    def called(self) -> str:
        return self._called

    @property
    def running(self) -> Running | None:
        return self._up.running if self._up else None

    @property
    def targets(self) -> frozenset[str]:
        """Models loaded, or on their way."""
        up = self._up
        return up.models.targets if up and up.models else frozenset()

    def fetch(self) -> None:
        """Bring the model data. Raises PlatformError."""
        for each in DIRECTORIES:
            (self._files / each).mkdir(parents=True, exist_ok=True)
        if self._spec.model is not None and not self._spec.multi_model:
            (self._files / "model").rmdir()
            model_data.fetch(self._s3, self._spec.model, self._files / "model")
        for channel, data in self._spec.additional.items():
            model_data.fetch(self._s3, data, self._files / "additional-model-data-sources" / channel)

    def start(self) -> None:
        """Until the container is consistently well. Raises Unhealthy, and PlatformError for what cannot be started."""
        began = time.monotonic()
        running = self._runtime.start(self._spec, self._files, self._name, several=self._several)
        client = Client(
            self._called,
            running.port,
            self._events,
            payload_bytes=self._options.payload_bytes,
            log_stream=self._log_stream,
        )
        window = self._spec.startup_limit or self._options.startup_limit
        try:
            await_ready(
                running,
                client,
                self._what,
                window,
                self._options,
                multi_model=self._spec.multi_model,
                stopped=self._stopping.is_set,
            )
        except BaseException as error:
            if isinstance(error, Unhealthy):
                self._events.say("unhealthy", self._name, str(error).splitlines()[0])
            client.close()
            running.stop(self._options.stop_limit)
            raise
        self._up = _Up(running, client, self._models(running, client), Pulse(self._options.red_pings))
        self._events.say("ready", self._name, self._spec.image, seconds=time.monotonic() - began)

    def watch(self) -> None:
        """Look after it, until stopped."""
        while not self._stopping.wait(self._options.ping_every):
            self.look()

    def look(self) -> None:
        """Ping it and see what it has loaded; replace it when it has ended, or was red too often."""
        up = self._up
        if up is None:
            self._bring_back()
            return
        seen = ping(up.client, self._options.ping_limit)
        if seen.green:
            up.pulse.beats(seen)
            if up.models:
                up.models.poll()
            return
        self._events.say("red", self._name, f"GET /ping: {seen}")
        alive = up.running.alive()
        if not alive or not up.pulse.beats(seen):
            said = f"GET /ping: {seen}" if alive else f"it exited with status {up.running.exit_code}"
            self._events.say("replace", self._name, said, log=up.running.log_tail(LAST_LINES))
            self._take_down()
            self._bring_back()

    def invoke(self, call: Call, until: float) -> tuple[Reply, bool | None]:
        """The answer, and whether a model had to be loaded for it; None where the container has but its own."""
        up = self._up
        if up is None:
            raise ServiceUnavailable(f"{self._called} is being replaced. Try again later.")
        if up.models:
            return up.models.invoke(call, until)
        return up.client.invoke(call.path, call, until), None

    def stop(self) -> None:
        """No new one comes; the one there is gets its SIGTERM, and its files go."""
        self._stopping.set()
        self._take_down()

    def log_tail(self, lines: int) -> str:
        up = self._up
        return up.running.log_tail(lines) if up else ""

    def _models(self, running: Running, client: Client) -> ModelLoader | None:
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
            caching=self._spec.caching,
        )

    def _take_down(self) -> None:
        up, self._up = self._up, None
        if up is None:
            return
        if up.models:
            up.models.close()
        seconds, killed = up.running.stop(self._options.stop_limit)
        up.client.close()
        code = up.running.exit_code
        if killed:
            self._events.say(
                "killed", self._name, f"still there {self._options.stop_limit:g} s after SIGTERM", seconds=seconds
            )
        else:
            self._events.say("stopped", self._name, f"status {code}", seconds=seconds)

    def _bring_back(self) -> None:
        """A new container with nothing loaded. Where it does not come up, the next turn of the watch tries again."""
        try:
            for left in (self._files / "models").iterdir():
                model_data.remove(left)
            self.start()
        except (Unhealthy, PlatformError) as error:
            self._events.say("error", self._name, f"no replacement came up: {str(error).splitlines()[0]}")


class _Up:
    """What there is only while a container runs."""

    def __init__(self, running: Running, client: Client, models: ModelLoader | None, pulse: Pulse) -> None:
        self.running = running
        self.client = client
        self.models = models
        self.pulse = pulse
