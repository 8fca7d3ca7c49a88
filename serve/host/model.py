"""One model of the catalog as the host keeps it: its socket, its runners, and what it remembers of failures."""

import json
import logging
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from serve.catalog.catalog import Entry
from serve.catalog.model_config import ModelConfig
from serve.errors import ModelFailed, ServeError
from serve.slots import FIELDS, Slot


class Phase(Enum):
    LOADING = "loading"
    READY = "ready"
    RETIRING = "retiring"


class RunnerProcess:
    """A runner from the order to its death; `number` is its slot, and its name until the process id is known."""

    def __init__(self, number: int, model: str, slot: Slot, reserved: int) -> None:
        self.number = number
        self.model = model
        self.slot = slot
        self.bytes = reserved  # an estimate until measured
        self.phase = Phase.LOADING
        self.pid = 0
        self.since = time.monotonic()
        self.retired = 0.0  # time.monotonic() when it was asked to end
        self.measured = 0.0  # time.monotonic() of the last measurement of `bytes`
        self.killed_for = ""  # why it ends, where that is known before its death
        self.told_failure = False
        self.control, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.setblocking(False)

    def retire(self) -> None:
        """Ask it to stop accepting, answer what it holds, and end."""
        self.phase = Phase.RETIRING
        self.retired = time.monotonic()
        try:
            self.control.send(b"retire")
        except OSError:
            pass  # it has ended; the forkserver says so soon

    def kill(self, why: str) -> None:
        self.killed_for = why
        if self.pid:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has ended by itself, and the news of it is on its way

    def messages(self) -> Iterator[Mapping[str, Any]]:
        """What it has said since last asked; nothing more once it has ended."""
        while True:
            try:
                raw = self.control.recv(MESSAGE)
            except OSError:
                return
            if not raw:
                return
            yield json.loads(raw)

    def gone(self) -> bool:
        """Whether it has ended: the kernel closes its channel before its connections, and its death is told later."""
        try:
            return not self.control.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def hand_over(self) -> socket.socket:
        """The end of the control channel that goes to the runner; ours to close once sent."""
        return self._theirs


log = logging.getLogger(__name__)

DEATHS = 3  # so many in a minute, and the model is left alone for a while
MINUTE = 60.0
FIRST_PAUSE = 1.0  # seconds after a failed load; doubles with each further one
LONGEST_PAUSE = 300.0
SHUT, OPEN = 0o600, 0o700  # nginx and the web workers take a socket without the x bit for none
FRESH = 2.0  # seconds for which a death explains a connection that broke off
TOLERANCE = 2.0  # milliseconds: nginx stamps arrivals to one
SUMMED = tuple(f for f in FIELDS if f not in ("pid", "in_flight", "last_used", "busy_since", "begun", "exhausted"))


class Stage(Enum):
    """What a wanted model waits for before a runner is ordered."""

    NONE = 0
    PREPARING = 1  # its archive is being unpacked
    WAITING = 2  # for memory


class Hosted:
    def __init__(self, entry: Entry, path: Path, backlog: int) -> None:
        self.entry = entry
        self.name = entry.name
        self.config: ModelConfig[Any] | None = entry.config
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path = path
        try:
            self.listener.bind(str(path))
            path.chmod(SHUT)
            self.listener.listen(backlog)
        except OSError:
            self.listener.close()
            raise
        self.listener.setblocking(False)
        self.opened = False  # callers may come
        self.leaving = False  # unloaded: nobody may come any more
        self.stage = Stage.NONE
        self.wanted_since = 0.0
        self.runners: list[RunnerProcess] = []
        self.learned = 0  # the most bytes one runner held when measured; 0 until then
        self.at_ready = 0  # the same just after a load
        self.loads = 0
        self.load_seconds = 0.0
        self.evictions = 0
        self.last_used = 0.0  # time.time(), kept when the last runner ends
        self.totals = dict.fromkeys(SUMMED, 0)  # of runners that have ended
        self.deaths: deque[float] = deque(maxlen=DEATHS)
        self._begun = 0  # as in a runner's slot, of the last that ended
        self.replaced = -MINUTE  # time.monotonic() when a worn-out runner was
        self.died = 0
        self._failures = 0
        self._until = 0.0
        self.trouble: tuple[float, ServeError] | None = None  # the newest failure or death, and when

    def open(self) -> None:
        """Let callers see the socket."""
        if not self.opened:
            self._path.chmod(OPEN)
            self.opened = True

    def close(self) -> None:
        """Take the socket away: who connects now is told that there is no such model."""
        self.leaving = True
        self.opened = False
        self._path.unlink(missing_ok=True)
        self.listener.close()

    # Copies.

    @property
    def copies(self) -> int:
        return self.config.copies if self.config else 1

    def of_phase(self, *phases: Phase) -> list[RunnerProcess]:
        return [each for each in self.runners if each.phase in phases]

    def missing(self) -> int:
        return self.copies - len(self.of_phase(Phase.LOADING, Phase.READY))

    def bytes_each(self) -> int:
        """Bytes to reserve for one more runner."""
        return self.learned or (self.config.bytes if self.config else 0)

    # Failures.

    def fail(self, error: ServeError) -> None:
        """Remember why it cannot serve, and leave it alone for a while that grows with each failure in a row."""
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._failures)
        self._failures += 1
        self._until = time.monotonic() + pause
        error.model = self.name
        error.retry_after = pause
        self.trouble = time.monotonic(), error
        self.stage = Stage.NONE
        log.error("model failed", extra={"model": self.name, "error": error.message, "pause_s": pause})

    def died_serving(self, error: ServeError) -> None:
        """A runner ended under a request. The next request starts another, unless it has died too often."""
        now = time.monotonic()
        self.deaths.append(now)
        self.died += 1
        self.trouble = now, error
        if len(self.deaths) == DEATHS and now - self.deaths[0] < MINUTE:
            self.deaths.clear()
            self.fail(ModelFailed(f"the model died {DEATHS} times within a minute: {error.message}", hint=error.hint))
        else:
            log.error("runner died", extra={"model": self.name, "error": error.message})

    def proven(self) -> None:
        """It has served for a minute: earlier failures are forgotten."""
        self._failures = 0

    def pause_left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def failure(self) -> ServeError | None:
        """The error to tell while it is left alone, with the seconds that remain."""
        left = self.pause_left()
        if not left or self.trouble is None:
            return None
        error = self.trouble[1]
        error.retry_after = left
        return error

    # What others see.

    def state(self) -> str:
        if self.of_phase(Phase.READY):
            return "ready"
        if self.stage is not Stage.NONE or self.of_phase(Phase.LOADING):
            return "loading"
        if self.of_phase(Phase.RETIRING):
            return "retiring"
        return "failed" if self.pause_left() else "absent"

    def absorb(self, runner: RunnerProcess) -> None:
        """A runner has ended: keep its counts."""
        for field in SUMMED:
            self.totals[field] += runner.slot.get(field)
        self._note_use(runner)
        self._begun = runner.slot.get("begun")
        self.runners.remove(runner)

    def may_have_begun(self, arrived: float) -> bool:
        """Whether work on a request that arrived then (seconds since 1970) may have begun; false is certain."""
        dying = [each for each in self.runners if each.gone()]
        asked = self.runners
        if dying or (self.trouble and time.monotonic() - self.trouble[0] < FRESH):
            asked = dying  # it is asked about those that died; the next may have taken it up, for nobody
        newest = max([self._begun, *(each.slot.get("begun") for each in asked)])
        return not newest or arrived * 1e3 <= newest + TOLERANCE

    def count(self, field: str) -> int:
        return self.totals[field] + sum(each.slot.get(field) for each in self.runners)

    def _note_use(self, runner: RunnerProcess) -> None:
        used = runner.slot.get("last_used")
        if used:
            self.last_used = max(self.last_used, time.time() - (time.monotonic_ns() - used) / 1e9)

    def shown(self) -> dict[str, Any]:
        """One entry of GET /models."""
        for each in self.runners:
            self._note_use(each)
        state = self.state()
        entry = {
            "modelName": self.name,
            "modelUrl": str(self.entry.path),
            "state": state,
            "handler": self.config.handler if self.config else None,
            "bytes": sum(each.bytes for each in self.runners),
            "runners": len(self.runners),
            "inFlight": sum(each.slot.get("in_flight") for each in self.runners),
            "lastUsed": round(self.last_used, 3) or None,
            "loads": self.loads,
            "evictions": self.evictions,
            "deaths": self.died,
            "requests": self.count("requests"),
        }
        failure = self.failure()
        if state == "failed" and failure:
            entry["cause"] = failure.message
            entry["retryAfter"] = round(self.pause_left(), 1)
        return entry


MESSAGE = 1 << 16
