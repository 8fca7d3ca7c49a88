"""One model as the host serves it: its socket, its runners, and its failures."""

import logging
import os
import signal
import socket
import stat
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from serve import log as serve_log
from serve.capture import Captured
from serve.catalog.catalog import Entry
from serve.catalog.model_config import ModelConfig
from serve.control import Control
from serve.errors import ModelFailed, ModelUnusable, ServeError
from serve.host.eviction import Held
from serve.host.memory import Allowance
from serve.slots import FIELDS, MOST, RunnerSlot, Slot

log = logging.getLogger(__name__)

MINUTE = 60.0
CRASHES = 3  # in a minute; then the model pauses before the next load
FIRST_PAUSE = 1.0  # seconds without a new attempt after a failed load; doubles with each further failure
LONGEST_PAUSE = 300.0
SHRINK_AGAIN = 1.0  # seconds before a runner that has freed its caches is asked again
FRESH = 2.0  # seconds for which a crash counts as the cause of a broken connection
TOLERANCE_MS = 2.0  # nginx rounds arrivals to milliseconds
# The x bit of the socket file means "callers may connect": without it, nginx (-x) and web workers treat it as absent.
CLOSED, OPEN = 0o600, 0o700
MOMENTARY = (
    *("turns", "pid", "in_flight", "last_used", "busy_since", "begun_arrival_epoch_ms", "exhausted", "spare_bytes"),
    *("pending_bytes", "device_bytes", "cold_since", "cold_until"),
)
SUMMED = tuple(field for field in FIELDS if field not in MOMENTARY)


class Phase(Enum):
    LOADING = "loading"
    READY = "ready"
    RETIRING = "retiring"


class Stage(Enum):
    """The step that a wanted model is in before its runners are ordered."""

    NONE = 0
    PREPARING = 1  # its archive is being unpacked
    WAITING = 2  # for memory


@dataclass(frozen=True, slots=True)
class Eviction:
    at: float  # seconds since 1970
    reason: str
    by: str | None  # the model that needed the memory
    bytes: int  # that the runner held


class RunnerProcess:
    """A runner from its order to its exit. `number` identifies it before its process id is known."""

    def __init__(self, number: int, model: str, reserved: Held) -> None:
        """Raises OSError."""
        self.number = number
        self.model = model
        self.bytes = reserved.bytes  # an estimate until it is measured
        self.device = reserved.device  # the number of its GPU
        self.device_bytes = reserved.device_bytes  # of that GPU's memory; an estimate until it is measured
        self.phase = Phase.LOADING
        self.pid = 0
        self.memory = -1  # a descriptor for serve.machine.private_bytes
        self.since = time.monotonic()
        self.retired = 0.0  # time.monotonic() when it was asked to exit
        self._shrunk = 0.0  # time.monotonic() when it last answered that they are free
        self.shrinking = 0.0  # time.monotonic() when it was asked to free its caches; 0 once it has answered
        self.measured = 0.0  # time.monotonic() of the last measurement of `bytes`
        self.shown = 0.0  # the same, of the last look at its output
        self.turns = 0  # of its loop, when the host last looked
        self.silent = 0.0  # seconds since then, as far as the host itself was at work
        self.replaced = False  # it is killed although no request was at work: another is started at once
        self.kill_reason = ""  # why it exits, if the host knows that before it does
        self.allowance: Allowance | None = None  # what it may hold; None until its process is known
        self.holds = 0  # bytes that it holds, by the last look of serve.host.memory
        self.over_limit = ""  # killed for its memory: what its callers can do
        self.reported_failure = False
        self.closed = 0.0  # time.monotonic() when it closed its channel to the host; its process is to end at once
        self._counters = Slot.create()
        try:
            self.slot = RunnerSlot(self._counters)
            self.control = Control()
            self.output = Captured(model)
        except BaseException:
            os.close(self._counters)
            raise

    @property
    def growth(self) -> int:
        """Bytes that it holds beyond what it held at rest."""
        return self.holds - self.allowance.private if self.allowance else 0

    def retire(self) -> None:
        """Ask the runner to stop accepting, answer the requests it holds, and exit."""
        self.phase = Phase.RETIRING
        self.retired = time.monotonic()
        self.control.retire()

    def shrink(self) -> None:
        """Ask the runner to free its caches. It answers `shrunk` when the memory is free."""
        self.shrinking = time.monotonic()
        self.control.shrink()

    def shrunk(self) -> None:
        """It has freed its caches."""
        self.shrinking, self._shrunk = 0.0, time.monotonic()

    def spare(self) -> int:
        """Bytes of caches that the runner frees when it is asked, and has not been asked for within SHRINK_AGAIN."""
        if self.shrinking or self.phase is not Phase.READY or time.monotonic() - self._shrunk < SHRINK_AGAIN:
            return 0
        return min(self.slot.get("spare_bytes"), self.bytes)

    def kill(self, reason: str) -> None:
        self.kill_reason = self.kill_reason or reason
        if self.pid:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has exited; the forkserver is about to report that

    def exited(self) -> bool:
        """Whether the process has exited, or is about to, seen by the end of its control channel."""
        return self.control.hung_up()

    def hand_over(self) -> tuple[int, socket.socket]:
        """The file of the runner's counters, and its end of the control channel. The caller closes them once sent."""
        return self._counters, self.control.theirs

    def discard(self) -> None:
        """Release what a runner that is not ordered holds."""
        os.close(self._counters)
        self.control.theirs.close()
        self.control.close()
        self.output.finish()


class ServedModel:
    """A model's socket, runners, counters and failures. It decides nothing: serve.host.store does."""

    def __init__(self, entry: Entry, path: Path, backlog: int) -> None:
        """Bind the socket, closed to callers. Raises OSError."""
        self.entry = entry
        self.name = entry.name
        self.config: ModelConfig[Any] | None = entry.config
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path = path
        try:
            self.listener.bind(str(path))
            path.chmod(CLOSED)
            self._inode = path.lstat().st_ino
            self.listener.listen(backlog)
        except OSError:
            self.listener.close()
            raise
        self.listener.setblocking(False)
        self.opened = False  # callers may connect
        self.leaving = False  # unloaded: callers may no longer connect
        self.stage = Stage.NONE
        self.wanted_since = 0.0  # time.monotonic()
        self.cold = (
            0.0,
            0.0,
        )  # from wanted to ready, of the last load during which no runner served (time.monotonic())
        self.runners: list[RunnerProcess] = []
        self.peak_bytes = 0  # the most that one runner held when measured; 0 before the first measurement
        self.bytes_at_ready = 0  # the same, measured right after the last load
        self.peak_device_bytes = 0  # as `peak_bytes`, of a GPU's memory
        self.device_bytes_at_ready = 0
        self.device: int | None = None  # the GPU of the runner that was started last
        self.walls: Mapping[str, Any] | None = None  # of the runner that loaded last: serve.walls.enclosure.Walls
        self.loads = 0
        self.load_seconds = 0.0
        self.evictions = 0
        self.last_eviction: Eviction | None = None
        self.pinned = False  # never evicted
        self.preloaded = False  # loaded before /ping is 200
        self.crashes = 0
        self.replaced = -MINUTE  # time.monotonic() when a runner was last replaced for running out of memory
        self.replaced_for_keeping = 0  # how often a runner was replaced for what it held while idle
        self.failed: tuple[float, ServeError] | None = None  # the newest failure or crash, and its time.monotonic()
        self._last_used = 0.0  # time.time(); kept when the last runner exits
        self._totals = dict.fromkeys(SUMMED, 0)  # of runners that have exited
        self._crash_times: deque[float] = deque(maxlen=CRASHES)
        self._begun_arrival_epoch_ms = 0  # the slot field of the runner that exited last
        self.failures_in_a_row = 0
        self._paused_until = 0.0

    def open(self) -> None:
        """Allow callers to connect."""
        if not self.opened:
            self._path.chmod(OPEN)
            self.opened = True

    def socket_lost(self) -> str:
        """What has happened to the socket's file, so that callers cannot connect; "" if nothing has."""
        if self.leaving:
            return ""
        try:
            found = self._path.lstat()
        except FileNotFoundError:
            return f"{self._path} was removed or renamed"
        except OSError as error:
            return f"{self._path} cannot be reached: {error.strerror}"
        if found.st_ino != self._inode:
            return f"{self._path} was replaced by another file"
        if self.opened and not found.st_mode & stat.S_IXUSR:
            return f"{self._path} was closed to callers by another process"
        return ""

    def close(self) -> None:
        """Remove the socket. Later requests are answered with 404."""
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
        """How many runners are to be started."""
        return self.copies - len(self.of_phase(Phase.LOADING, Phase.READY))

    def bytes_each(self) -> int:
        """Bytes to reserve for one more runner."""
        return self.peak_bytes or (self.config.bytes if self.config else 0)

    def device_bytes_each(self) -> int:
        """Bytes of a GPU's memory to reserve for one more runner."""
        return self.peak_device_bytes or (self.config.device_bytes if self.config else 0)

    def devices(self, count: int) -> tuple[int, ...]:
        """The GPUs, of `count`, that its runners may be placed on; none: they run on the processor.

        Raises ModelUnusable if its model.toml asks for a GPU that is not there, or that its handler does not use.
        """
        assert self.config is not None
        asked, uses = self.config.device, self.config.device_bytes > 0
        if asked == "cpu" or (asked is None and not uses):
            return ()
        if asked is None:
            return tuple(range(count))
        if not uses:
            message = f"model.toml: device is {asked!r}, and the handler {self.config.handler} uses no GPU"
            raise ModelUnusable(message, hint="remove `device`")
        number = int(asked.partition(":")[2] or 0)
        if number >= count:
            there = ", ".join(f"cuda:{each}" for each in range(count)) or "none"
            raise ModelUnusable(
                f"model.toml: device is {asked!r}; the GPUs of this server: {there}",
                hint="remove `device`, or use an instance with GPUs and an image built with --build-arg TORCH=cu130",
            )
        return tuple(range(count)) if asked == "cuda" else (number,)

    # Failures.

    def fail(self, error: ServeError) -> None:
        """Record a failure, and pause: no load is tried for a time that doubles with each failure in a row."""
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self.failures_in_a_row, 30))  # no float holds 2^1024
        self.failures_in_a_row += 1
        self._paused_until = time.monotonic() + pause
        error.model = self.name
        error.retry_after = pause
        self.failed = time.monotonic(), error
        self.stage = Stage.NONE
        log.error("model failed", extra={"model": self.name, "error": error.message, "pause_s": pause})

    def crashed(self, error: ServeError, requests: Sequence[str], *, counts: bool = True) -> None:
        """Record that a runner exited during these requests. The next request starts another, except after CRASHES.

        `counts`: among CRASHES; not if a request is to blame, and not the model.
        """
        now = time.monotonic()
        if counts:
            self._crash_times.append(now)
        self.crashes += 1
        self.failed = now, error
        if counts and len(self._crash_times) == CRASHES and now - self._crash_times[0] < MINUTE:
            self._crash_times.clear()
            message = f"the model crashed {CRASHES} times within a minute: {error.message}"
            self.fail(ModelFailed(message, hint=error.hint))
        else:
            extra = {"model": self.name, "error": error.message, **serve_log.of_requests(requests)}
            log.error("runner crashed", extra=extra)

    def forgive(self) -> None:
        """Forget earlier failures: a runner has served for a minute."""
        self.failures_in_a_row = 0

    def pause_left(self) -> float:
        """Seconds until the next load may be tried; 0 if it may be now."""
        return max(0.0, self._paused_until - time.monotonic())

    def failure(self) -> ServeError | None:
        """During a pause: the failure that caused it, with the remaining seconds as `retry_after`."""
        left = self.pause_left()
        if not left or self.failed is None:
            return None
        error = self.failed[1]
        error.retry_after = left
        return error

    def recent_failure(self) -> ServeError | None:
        """A failure or crash of the last FRESH seconds."""
        if self.failed and time.monotonic() - self.failed[0] < FRESH:
            return self.failed[1]
        return None

    def may_have_begun(self, arrived_epoch: float) -> bool:
        """Whether work on a request that reached nginx then (seconds since 1970) may have begun. False is certain."""
        asked = self.runners
        exited = [each for each in self.runners if each.exited()]
        if exited or self.recent_failure():
            # Only crashed runners count: a new runner may already have accepted a request whose client is gone.
            asked = exited
        newest = max([self._begun_arrival_epoch_ms, *(each.slot.get("begun_arrival_epoch_ms") for each in asked)])
        return not newest or arrived_epoch * 1e3 <= newest + TOLERANCE_MS

    # Counters.

    def absorb(self, runner: RunnerProcess) -> None:
        """Remove a runner that has exited, and keep its counters."""
        for field in SUMMED:
            self._totals[field] += runner.slot.get(field)
        self._note_use(runner)
        self._begun_arrival_epoch_ms = runner.slot.get("begun_arrival_epoch_ms")
        self.runners.remove(runner)

    def count(self, field: str) -> int:
        """The sum of a slot's field over all runners that this model has had."""
        return self._totals[field] + sum(each.slot.get(field) for each in self.runners)

    def _note_use(self, runner: RunnerProcess) -> None:
        used = runner.slot.get("last_used")
        if used:
            self._last_used = max(self._last_used, time.time() - (time.monotonic_ns() - used) / 1e9)

    # What callers see.

    def state(self) -> str:
        if self.of_phase(Phase.READY):
            return "ready"
        if self.stage is not Stage.NONE or self.of_phase(Phase.LOADING):
            return "loading"
        if self.of_phase(Phase.RETIRING):
            return "retiring"
        return "failed" if self.pause_left() else "absent"

    def load_step(self) -> str:
        """What the load does now, in words; "" without a load."""
        if self.stage is Stage.PREPARING:
            return "its archive is being unpacked" if self.entry.archive else "its files are being read"
        if self.stage is Stage.WAITING:
            return "it waits for memory that other models hold"
        loading = self.of_phase(Phase.LOADING)
        if not loading or self.of_phase(Phase.READY):
            return ""
        return "its process is loading it" if any(each.pid for each in loading) else "its framework is being imported"

    def shown(self) -> dict[str, Any]:
        """The model as an entry of GET /models."""
        for each in self.runners:
            self._note_use(each)
        state = self.state()
        entry = {
            "modelName": self.name,
            "modelUrl": str(self.entry.path),
            "state": state,
            "loadStep": self.load_step() or None,
            "handler": self.config.handler if self.config else None,
            "bytes": sum(each.bytes for each in self.runners),
            "cacheBytes": sum(min(each.slot.get("spare_bytes"), each.bytes) for each in self.runners),
            "estimatedBytes": self.config.bytes if self.config else None,
            "peakBytes": self.peak_bytes or None,
            "devices": sorted({each.device for each in self.runners if each.device is not None}),
            "deviceBytes": sum(each.device_bytes for each in self.runners),
            "runners": len(self.runners),
            "copies": self.copies,
            "pinned": self.pinned,
            "preload": self.preloaded,
            "inFlight": min(sum(each.slot.get("in_flight") for each in self.runners), MOST),
            "lastUsed": round(self._last_used, 3) or None,
            "loads": self.loads,
            "evictions": self.evictions,
            "lastEviction": self._last_eviction_shown(),
            "deaths": self.crashes,
            "walls": self.walls,
            "requests": min(self.count("requests"), MOST),
        }
        failure = self.failure()
        if state == "failed" and failure:
            entry["cause"] = failure.message
            entry["retryAfter"] = round(self.pause_left(), 1)
        return entry

    def _last_eviction_shown(self) -> dict[str, Any] | None:
        if not (last := self.last_eviction):
            return None
        return {"at": round(last.at, 3), "reason": last.reason, "for": last.by, "bytes": last.bytes}
