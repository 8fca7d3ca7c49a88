"""All runner processes: started, measured, killed when stuck or over their memory, and the cause of each exit."""

import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from serve import machine
from serve.capture import MOST_OUTPUT
from serve.catalog.model_config import ModelConfig
from serve.children import signal_name
from serve.devices import Device
from serve.errors import DoesNotFit
from serve.failures import HINTS, refused_allocation
from serve.host import memory
from serve.host.eviction import Held
from serve.host.forkserver import Forkserver
from serve.host.model import Phase, RunnerProcess, ServedModel
from serve.settings import MB, Settings, nginx_limit
from serve.slots import AT, BEAT

_BUSY_SINCE, _TURNS = AT["busy_since"], AT["turns"]
MOST_RUNNERS = 4000  # alive at a time
MEASURE_EVERY = 2.0  # seconds; a measurement walks a process's page tables: about 1 ms for each GB it maps
SHOW_EVERY = 0.5  # seconds; a look at a silent runner takes 1 µs
SHOW_WITHIN = 0.1  # seconds for the output of all runners
MEASURED_AT_ONCE = 8  # so that a thousand runners do not block the loop
CLOSED = 2.0  # seconds from the end of a runner's control channel, which its exit closes, to the report of its exit
LAST_WORDS = 10.0  # seconds beyond the longest answer for a retired runner to exit
# Seconds without a turn after which an idle runner is taken for stopped or blocked: three of its beats, and one for a
# busy machine. Python holds its lock for seconds when a thread of a model's own code reads a large pickle.
SILENT = 3 * BEAT + 1.0
LISTEN_EVERY = 2.0  # seconds; 0.5 ms for a thousand runners
WORN_OUT = 3  # 507 answers in a row after which a runner is replaced
LOOK_EVERY = 0.025  # seconds between looks at the memory of busy runners: at 2 GB/s, which is much, 50 MB
IDLE_LOOKS = 10  # of which one is at all runners, because threads of own code work between requests too
SPARE_FILES = 64  # file descriptors kept for the host's own connections and for unpacking


@dataclass(frozen=True, slots=True)
class Exit:
    """A runner that has exited, with the status as Python writes it (negative: a signal) and the cause in words."""

    runner: RunnerProcess
    status: int
    cause: str
    exhausted: str = ""  # the resource that ran out, a key of serve.failures.HINTS; "" if that was not the cause
    limited: bool = False  # it was over its own limit of memory, so that the machine was never short of it
    requests: tuple[str, ...] = ()  # ids of those that it worked on

    @property
    def killed(self) -> bool:
        """Whether another process has killed it: neither the server, nor the kernel for memory."""
        return self.status == -signal.SIGKILL and not self.runner.kill_reason and not self.exhausted


class Runners:
    """The runners that are alive, by number."""

    def __init__(self, settings: Settings, forks: Forkserver, devices: Sequence[Device] = ()) -> None:
        self._devices = devices
        self._settings = settings
        self._retire_limit = LAST_WORDS + max(settings.request_limit, settings.stream_limit)
        self._forks = forks
        self._free = list(range(MOST_RUNNERS - 1, -1, -1))
        self._measured = 0.0  # time.monotonic()
        self._listened = 0.0  # the same, of the last `kill_silent`
        self._shown = 0.0  # the same, of the last look at the runners' output
        self._oom_kills = machine.oom_kills()
        self.alive: dict[int, RunnerProcess] = {}

    def start(self, model: ServedModel, reserved: Held, *, cold_since: float | None) -> None:
        """Order one more runner of this model. Raises DoesNotFit at the limit of runners or files, or OSError.

        `reserved`: its share of the budget, and its GPU.
        `cold_since`: when requests began to wait for this load (time.monotonic()); None while another runner serves.
        """
        assert model.config is not None
        if not self._free:
            raise DoesNotFit(f"{MOST_RUNNERS} runners are alive, which is the limit", hint="unload a model")
        number = self._free[-1]
        runner = RunnerProcess(number, model.name, reserved)
        runner.slot.set("cold_since", int((cold_since or 0.0) * 1e9))
        try:
            check_spare_files(runner.control.socket)
        except DoesNotFit:
            runner.discard()
            raise
        self._free.pop()
        self.alive[number] = runner
        model.runners.append(runner)
        model.loads += 1
        model.device = runner.device
        # A server without GPUs leaves the choice of a device to the environment.
        uuid = self._devices[runner.device].uuid if runner.device is not None else "" if self._devices else None
        self._forks.fork(runner, model.config, model.listener, uuid)

    def allow(self, runner: RunnerProcess, config: ModelConfig[Any] | None) -> None:
        """A runner is loaded and measured: from now on it may hold this size and a share for its work."""
        if now := machine.resident(runner.pid):
            pending = min(runner.slot.get("pending_bytes"), self._settings.budget_bytes)
            own = config.memory_limit_mb if config else None
            runner.allowance = memory.while_working(
                runner.bytes - pending, pending, now, self._settings.working_bytes, own
            )

    def used(self) -> int:
        """Bytes that all runners hold, or have reserved while they load."""
        return sum(each.bytes for each in self.alive.values())

    def used_on(self, device: int) -> int:
        """The same, of a GPU's memory."""
        return sum(each.device_bytes for each in self.alive.values() if each.device == device)

    def retire_all(self) -> None:
        for runner in self.alive.values():
            runner.retire()

    # Reports of the forkserver.

    def exits(self, read_messages: Callable[[RunnerProcess], None]) -> Iterator[Exit]:
        """The runners that the forkserver reports as exited; process ids of new ones are noted.

        `read_messages` is called before a runner is removed: its last messages may still be in its channel. Raises
        EOFError when the forkserver has exited.
        """
        for message in self._forks.messages():
            if "pid" in message:
                runner = self.alive[message["runner"]]
                runner.pid = message["pid"]
                runner.memory = message.get("memory", -1)
                if now := machine.resident(runner.pid):
                    runner.allowance = memory.while_loading(
                        now, self._settings.budget_bytes, self._settings.working_bytes
                    )
                if runner.kill_reason:  # it was killed before its process id was known
                    runner.kill(runner.kill_reason)
            elif "unborn" in message:
                runner = self.alive[message["unborn"]]
                yield self._remove(Exit(runner, 1, message["cause"], message["lacks"]))
            else:
                # None is found for a process that a framework started when the forkserver imported it.
                for runner in [each for each in self.alive.values() if each.pid == message["died"]]:
                    read_messages(runner)
                    yield self._remove(self._exit(runner, message["status"]))

    def _remove(self, ended: Exit) -> Exit:
        del self.alive[ended.runner.number]
        self._free.append(ended.runner.number)
        ended.runner.control.close()
        if ended.runner.memory >= 0:
            os.close(ended.runner.memory)
        ended = replace(ended, requests=ended.runner.output.requests())
        ended.runner.output.finish()
        if ended.status == -signal.SIGABRT and (line := refused_allocation(ended.runner.output.last)):
            # Compiled code aborts where Python raises MemoryError.
            cause = f"the process aborted, because its limit of memory refused an allocation: {line}"
            return replace(ended, cause=cause, exhausted="memory", limited=True)
        return ended

    def _exit(self, runner: RunnerProcess, status: int) -> Exit:
        if runner.over_limit:
            return Exit(runner, status, runner.kill_reason, "memory", limited=True)
        if runner.kill_reason:
            return Exit(runner, status, runner.kill_reason)
        if status == -signal.SIGKILL and self._kernel_killed():
            return Exit(runner, status, "killed by the kernel, out of memory", "memory")
        if status < 0:
            return Exit(runner, status, f"killed by {signal_name(-status)}")
        return Exit(runner, status, f"it exited with status {os.EX_OK + status}")

    def _kernel_killed(self) -> bool:
        """Whether the kernel has killed for memory more often than was attributed to runners so far."""
        if machine.oom_kills() <= self._oom_kills:
            return False
        self._oom_kills += 1
        return True

    # Called in each tick.

    def show_output(self) -> None:
        """Twice a second: log what runners have printed and not logged themselves, in a long step or while idle."""
        now = time.monotonic()
        if now - self._shown < SHOW_EVERY:
            return
        self._shown = now
        for runner in sorted(self.alive.values(), key=lambda each: each.shown):
            runner.shown = time.monotonic()
            if runner.shown - now > SHOW_WITHIN:  # models that print without end: the others come first next time
                return
            runner.output.look()

    def kill_stuck(self) -> None:
        """Kill runners whose load, request or retirement has passed its limit, and those that no longer answer."""
        now = time.monotonic()
        for runner in self.alive.values():
            busy_since = runner.slot.get("busy_since")
            if runner.phase is Phase.LOADING and now - runner.since > self._settings.load_limit:
                runner.kill(f"timeout: the load took longer than {self._settings.load_limit:g} s (SERVE_LOAD_LIMIT)")
            elif busy_since and now - busy_since / 1e9 > nginx_limit(self._settings.request_limit):
                # The client's deadline has passed. Kill the runner now so that the web worker can still explain the
                # failure before nginx times out.
                limit = self._settings.request_limit
                runner.kill(f"timeout: one request took longer than {limit:g} s (SAGEMAKER_MODEL_SERVER_TIMEOUT)")
            elif runner.closed and now - runner.closed > CLOSED and not (runner.pid and machine.exiting(runner.pid)):
                runner.kill("its code closed the server's control channel")
            elif runner.phase is Phase.RETIRING and now - runner.retired > self._retire_limit:
                runner.kill(f"timeout: it did not exit within {self._retire_limit:g} s after it was retired")

    def kill_silent(self) -> None:
        """Every LISTEN_EVERY seconds: kill idle runners that have made no turn of their loop for SILENT seconds.

        A busy one has its time limit.
        """
        now = time.monotonic()
        if now - self._listened < LISTEN_EVERY:
            return
        # If the host has not run either, the machine or the container was paused.
        passed, self._listened = min(now - self._listened, 2 * LISTEN_EVERY), now
        for runner in self.alive.values():
            numbers = runner.slot.numbers
            if (turns := numbers[_TURNS]) != runner.turns or numbers[_BUSY_SINCE] or runner.phase is Phase.LOADING:
                runner.turns, runner.silent = turns, 0.0
                continue
            runner.silent += passed
            if runner.silent > SILENT:
                runner.replaced = True
                runner.kill(f"it was stopped or blocked: idle, and silent for {SILENT:g} s")

    def worn_out(self) -> list[tuple[RunnerProcess, str]]:
        """Runners that another process is to replace, and why.

        They have answered WORN_OUT requests in a row with 507, so that what they can free is not enough; or they have
        printed so much that they could soon print no more.
        """
        worn = []
        for each in self.alive.values():
            if each.phase is not Phase.READY:
                continue
            if each.slot.get("exhausted") >= WORN_OUT:
                worn.append((each, "several requests in a row ran out of memory"))
            elif each.output.size > MOST_OUTPUT:
                worn.append((each, f"it has printed {each.output.size >> 20} MB"))
        return worn

    def to_measure(self) -> list[RunnerProcess]:
        """Every MEASURE_EVERY seconds: the ready runners whose measurements are oldest."""
        now = time.monotonic()
        if now - self._measured <= MEASURE_EVERY:
            return []
        self._measured = now
        ready = [each for each in self.alive.values() if each.phase is Phase.READY]
        return sorted(ready, key=lambda each: each.measured)[:MEASURED_AT_ONCE]


class MemoryWatch(threading.Thread):
    """Kills runners that hold more than their allowance, before the container has no memory left.

    The measurement below is exact and takes 1 ms for each GB, so it is made every two seconds; a request can take 2 GB
    in one. Between them this thread reads the counters of resident memory. It changes nothing but `holds`, and what
    `kill` changes: the loop handles the exit.
    """

    def __init__(self, alive: Mapping[int, RunnerProcess], most: int) -> None:
        """`most`: bytes that the container has for all models together."""
        super().__init__(name="memory", daemon=True)
        self._alive = alive
        self._most = most

    def run(self) -> None:
        looks = 0
        while True:
            time.sleep(LOOK_EVERY)
            self.look(everyone=looks % IDLE_LOOKS == 0)
            looks += 1

    def look(self, *, everyone: bool) -> None:
        """Look at the runners at work, or at all, and kill those over their limit."""
        runners = list(self._alive.values())  # at once: the loop changes it meanwhile
        for runner in runners:
            if everyone or runner.phase is Phase.LOADING or runner.slot.get("in_flight"):
                _look_at(runner)
        held = sum(each.holds for each in runners)
        if held > self._most:
            grown = [each for each in runners if each.growth > 0 and not each.kill_reason]
            if found := max(grown, key=lambda each: each.growth, default=None):
                found.over_limit = memory.HINT
                found.kill(
                    f"out of memory: all models together held {held // MB} MB, and the container has"
                    f" {self._most // MB} MB for them;"
                    f" the model's process had grown most, to {found.holds // MB} MB"
                )


def _look_at(runner: RunnerProcess) -> None:
    allowance = runner.allowance
    now = machine.resident(runner.pid) if allowance and not runner.kill_reason else None
    if allowance is None or now is None:
        return
    caches = runner.slot.get("spare_bytes")
    files = now.files - allowance.resident.files
    if files > 0 and allowance.over(allowance.holds(now) + files, caches):
        # Shared memory counts among the pages of files here, like mapped weights: only the detail distinguishes them.
        now = machine.resident_with_shared(runner.pid) or now
    runner.holds = allowance.holds(now)
    if allowance.over(runner.holds, caches):
        doing = "during its load" if runner.phase is Phase.LOADING else "while it worked"
        runner.over_limit = allowance.hint
        runner.kill(
            f"the model's process held {runner.holds // MB} MB {doing}; the limit of its memory is {allowance.of}"
        )


def measure(model: ServedModel, runner: RunnerProcess) -> None:
    """Measure a runner's memory, and remember the peak without its caches for the model's next load.

    Private memory is measured, and what the runner is about to take is added; it reports its part of a GPU itself.
    """
    runner.measured = time.monotonic()
    held = machine.private_bytes(runner.pid, runner.memory)
    if not held:
        return
    # A model's own code can write any number: this is the most that the work behind a load takes.
    held += min(runner.slot.get("pending_bytes"), max(held, model.config.bytes if model.config else 0))
    runner.bytes = held
    caches = min(runner.slot.get("spare_bytes"), held)
    if runner.device is None:
        model.peak_bytes = max(model.peak_bytes, held - caches)
    else:
        model.peak_bytes = max(model.peak_bytes, held)
        runner.device_bytes = runner.slot.get("device_bytes")
        model.peak_device_bytes = max(model.peak_device_bytes, runner.device_bytes - caches)


def check_spare_files(fresh: socket.socket) -> None:
    """Close a socket just made and raise DoesNotFit if fewer than SPARE_FILES file descriptors are left.

    The kernel assigns the lowest free number, so that the number of a new socket shows how many are in use.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if fresh.fileno() >= most - SPARE_FILES:
        fresh.close()
        raise DoesNotFit(f"out of file descriptors: the host may open {most} files", hint=HINTS["file descriptors"])
