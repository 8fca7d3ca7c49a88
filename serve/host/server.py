"""The host process: its loop over the sockets of models, runners, forkserver and web workers."""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable

from serve import devices, machine
from serve.catalog.catalog import Catalog
from serve.catalog.kinds import ALSO_IMPORTED, HANDLERS, installed, module_of
from serve.children import Parts
from serve.host.answers import HostApi
from serve.host.forkserver import Forkserver
from serve.host.run_dir import HINT, FilesLost, RunDirectory
from serve.host.runners import MemoryWatch
from serve.host.sockets import HostSocket, ModelSockets, Poller
from serve.host.store import Store
from serve.settings import Settings
from serve.slots import FILES_LOST, Slots, State

log = logging.getLogger(__name__)

BEAT = 0.5  # seconds between ticks; /ping takes the host for dead after ten of them
LINGER = 1.0  # seconds to answer the requests that the end of the forkserver has broken off, before the host exits
HURRY = 0.02  # seconds between ticks while a load waits for memory, or a web worker for the cause of a failure


def modules_of(handlers: Iterable[str]) -> list[str]:
    """The modules that the forkserver imports for these handlers."""
    names = list(handlers)
    also = dict.fromkeys(module for name in names for module in ALSO_IMPORTED.get(name, ()))
    return [*map(module_of, names), *installed(also)]


class Host:
    """Once built, every model's socket exists and is listened on."""

    def __init__(self, settings: Settings, found: Catalog) -> None:
        used = {entry.config.handler for entry in found.entries.values() if entry.config}
        # The handlers of archives, and of models that the platform will load, are unknown: any other may be needed.
        unknown = settings.multi_model or any(entry.archive for entry in found.entries.values())
        needed = modules_of(name for name in HANDLERS if name in used)
        possible = modules_of(name for name in HANDLERS if unknown and name not in used)
        configs = [entry.config for entry in found.entries.values()]
        alone = len(configs) == 1 and configs[0] is not None and configs[0].copies == 1
        self._forks = Forkserver(settings, needed, possible, alone=alone and settings.sources["threads"] != "cgroup")
        self._slots = Slots(settings.slots)
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        gpus = devices.found(settings)
        if gpus:
            log.info("GPUs", extra={"budgets": [each.bytes for each in gpus]})
        self._store = Store(settings, found, self._forks, self._wake, gpus)
        wanted = settings.budget_bytes + settings.working_bytes
        most = machine.for_models(machine.limit()[0], wanted, settings.web_workers)
        self._memory = MemoryWatch(self._store.runners.alive, most)
        self._draining = False
        self._ending = False
        self._poller = Poller()
        self._poller.watch(self._woken, self._woke_up)
        self._poller.watch(self._forks.channel, self._store.forked)
        self._model_sockets = ModelSockets(self._store, self._poller)
        self._api = HostApi(settings, self._store, self._slots, self._model_sockets)
        HostSocket(settings.host_socket, self._poller, self._api.answer, Parts(sys.stdin.fileno()).include)
        self._files = RunDirectory(settings, self._store)

    def run(self) -> None:
        """Serve until SIGQUIT. SIGTERM makes /ping answer 503; the launcher sends SIGQUIT when no request is left."""
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._drain)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGQUIT, self._end)
        self._memory.start()
        self._store.preload()
        ticked = 0.0
        while not self._ending:
            self._model_sockets.refresh()
            self._beat()
            pause = HURRY if self._store.waits_for_memory() or self._api.waits() else BEAT
            self._poller.wait(pause)
            if not self._draining:  # then the web workers remove their socket
                self._files.check()
            self._api.settle()
            if time.monotonic() - ticked >= pause:
                ticked = time.monotonic()
                self._store.tick()
                if failed := self._store.failed_start():
                    raise failed
                self._api.explain()
        self._store.runners.retire_all()
        self._forks.stop()

    def end_without_runners(self) -> str:
        """The forkserver has exited, and the kernel kills all runners with it. Answer the requests that were lost.

        Returns the cause.
        """
        cause = self._forks.ended()
        self._poller.unwatch(self._forks.channel)
        self.end_with(f"{cause}, and all models with it: the server stops")
        return cause

    def end_with(self, reason: str) -> None:
        """Answer all requests with this reason for a moment: no model can be served any more."""
        self._api.end(reason)
        until = time.monotonic() + LINGER
        while time.monotonic() < until:
            self._slots.beat(State.ENDING, reason)
            self._model_sockets.close_all_queued()
            self._poller.wait(HURRY)
            self._api.explain()

    def _drain(self, *_: object) -> None:
        self._draining = True

    def _end(self, *_: object) -> None:
        self._ending = True

    def _wake(self) -> None:
        """End the current wait of the loop. Called by threads that unpack archives."""
        try:
            self._waker.send(b".")
        except BlockingIOError:
            pass  # the buffer is full of earlier wake-ups

    def _woke_up(self) -> None:
        self._woken.recv(4096)
        self._store.prepared()

    def _beat(self) -> None:
        """Publish the state for /ping, and that the host is alive."""
        if self._draining:
            self._slots.beat(State.DRAINING, "draining: SIGTERM was received")
        else:
            self._slots.beat(*self._store.readiness())


def run(settings: Settings, found: Catalog) -> int:
    """Run the host; returns its exit status."""
    host = Host(settings, found)
    log.info("host started", extra={"pid": os.getpid(), "budget": settings.budget_bytes})
    try:
        host.run()
    except EOFError:
        log.critical("the forkserver exited, and all runners with it", extra={"cause": host.end_without_runners()})
        return 1
    except FilesLost as lost:
        host.end_with(f"{lost}: the server stops; {HINT}")
        return FILES_LOST
    return 0
