"""Whether a container is well: the start-up window, the pings ever after, and what its owner is told when it is not."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from local_test.platform.connections import Broken, Cut
from local_test.platform.containers import Running
from local_test.platform.invocation import Client
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
