"""All runner processes: how they are born, measured, found stuck, and of what they died."""

import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from serve import machine
from serve.errors import DoesNotFit
from serve.failures import HINTS
from serve.host.forkserver import Forkserver
from serve.host.model import Hosted, Phase, RunnerProcess
from serve.settings import Settings, nginx_limit
from serve.slots import SLOTS, WEB_SLOTS, Slots

MEASURE_EVERY = 2.0  # a measurement walks a process's page tables: about 1 ms for each GB it maps
MEASURED_AT_ONCE = 8  # so that a thousand runners do not stop the loop
WORN_OUT = 3  # answers 507 in a row after which a runner is replaced
FILES_LEFT = 64  # file descriptors that stay free for who asks the host, and for unpacking


@dataclass(frozen=True, slots=True)
class Death:
    """A runner that has ended: its exit status as Python writes it, and what to say of it."""

    runner: RunnerProcess
    status: int
    cause: str
    lacked: str = ""  # what the machine had too little of, a key of serve.failures.HINTS; "" where that was not it


class Runners:
    """Those alive, by number; a number is a slot."""

    def __init__(self, settings: Settings, slots: Slots, forks: Forkserver) -> None:
        self._settings = settings
        self._slots = slots
        self._forks = forks
        self._free = list(range(SLOTS - 1, WEB_SLOTS - 1, -1))
        self._measured = 0.0
        self._oom_kills = machine.oom_kills()
        self.alive: dict[int, RunnerProcess] = {}

    def start(self, model: Hosted) -> None:
        """Order one more runner of this model. Raises DoesNotFit when there are as many as there can be, or OSError."""
        assert model.config is not None
        if not self._free:
            raise DoesNotFit(f"{SLOTS - WEB_SLOTS} runners are alive, more are not supported")
        number = self._free[-1]
        slot = self._slots.slot(number)
        slot.clear()
        runner = RunnerProcess(number, model.name, slot, model.bytes_each())
        try:
            leave_some_files(runner.control)
        except DoesNotFit:
            runner.hand_over().close()
            raise
        self._free.pop()
        self.alive[number] = runner
        model.runners.append(runner)
        model.loads += 1
        self._forks.fork(runner, model.config, model.listener)

    def used(self) -> int:
        """Bytes that all of them hold, or have been promised."""
        return sum(each.bytes for each in self.alive.values())

    def retire_all(self) -> None:
        for runner in self.alive.values():
            runner.retire()

    # Births and deaths.

    def deaths(self, last_words: Callable[[RunnerProcess], None]) -> Iterator[Death]:
        """Who has ended since last asked; births are noted. Raises EOFError when the forkserver has ended.

        `last_words` is called before a runner counts as dead: what it said may still be in its channel.
        """
        for message in self._forks.messages():
            if "pid" in message:
                runner = self.alive[message["runner"]]
                runner.pid = message["pid"]
                if runner.killed_for:  # before it was born
                    runner.kill(runner.killed_for)
            elif "unborn" in message:
                runner = self.alive[message["unborn"]]
                yield self._bury(runner, Death(runner, 1, message["cause"], message["lacks"]))
            else:
                found = [each for each in self.alive.values() if each.pid == message["died"]]
                for runner in found:  # none: a process that some framework started when it was imported
                    last_words(runner)
                    yield self._bury(runner, self._death(runner, message["status"]))

    def _bury(self, runner: RunnerProcess, death: Death) -> Death:
        del self.alive[runner.number]
        self._free.append(runner.number)
        runner.control.close()
        return death

    def _death(self, runner: RunnerProcess, status: int) -> Death:
        if runner.killed_for:
            return Death(runner, status, runner.killed_for)
        if status == -signal.SIGKILL and self._kernel_killed():
            return Death(runner, status, "killed by the kernel, out of memory", "memory")
        if status < 0:
            return Death(runner, status, f"killed by {signal.Signals(-status).name}")
        return Death(runner, status, f"it exited with status {os.EX_OK + status}")

    def _kernel_killed(self) -> bool:
        """Whether there is a kill for memory that no death has been laid to yet; several may come at once."""
        if machine.oom_kills() <= self._oom_kills:
            return False
        self._oom_kills += 1
        return True

    # What time brings.

    def kill_stuck(self) -> None:
        """Those whose load, or whose request, nobody waits for any more."""
        now = time.monotonic()
        for runner in self.alive.values():
            busy_since = runner.slot.get("busy_since")
            if runner.phase is Phase.LOADING and now - runner.since > self._settings.load_limit:
                runner.kill(f"loading took longer than {self._settings.load_limit:g} s (SERVE_LOAD_LIMIT)")
            elif busy_since and now - busy_since / 1e9 > nginx_limit(self._settings.request_limit):
                # Nobody waits for it any more but nginx's own question why, and that answer must be in time too.
                limit = self._settings.request_limit
                runner.kill(f"it was stuck in one request for {limit:g} s (SAGEMAKER_MODEL_SERVER_TIMEOUT)")

    def worn_out(self) -> list[RunnerProcess]:
        """Those that have answered one request after another with 507: what they freed was not enough."""
        return [
            each for each in self.alive.values() if each.phase is Phase.READY and each.slot.get("exhausted") >= WORN_OUT
        ]

    def to_measure(self) -> list[RunnerProcess]:
        """Now and then: some that have not been measured for longest."""
        now = time.monotonic()
        if now - self._measured <= MEASURE_EVERY:
            return []
        self._measured = now
        ready = [each for each in self.alive.values() if each.phase is Phase.READY]
        return sorted(ready, key=lambda each: each.measured)[:MEASURED_AT_ONCE]


def measure(model: Hosted, runner: RunnerProcess) -> None:
    """What it holds now, remembered for the model's next load."""
    runner.measured = time.monotonic()
    held = machine.private_bytes(runner.pid)
    if held:
        runner.bytes = held
        model.learned = max(model.learned, held)


def leave_some_files(fresh: socket.socket) -> None:
    """Close a socket just made and raise DoesNotFit when nearly no file descriptors are left.

    The kernel gives out the lowest free number, so that the number tells how many are in use.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if fresh.fileno() >= most - FILES_LEFT:
        fresh.close()
        raise DoesNotFit(f"out of file descriptors: the host may open {most} files", hint=HINTS["file descriptors"])
