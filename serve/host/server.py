"""The host's loop: it hears sockets nobody serves, runners, the forkserver and the web workers, and acts on each."""

import logging
import os
import select
import signal
import socket
import time
from importlib.util import find_spec

from serve.catalog.catalog import Catalog
from serve.catalog.kinds import ALSO_IMPORTED, HANDLERS, module_of
from serve.host.answers import Control
from serve.host.forkserver import Forkserver
from serve.host.model import Hosted
from serve.host.sockets import Watch
from serve.host.store import Store
from serve.settings import Settings
from serve.slots import Slots, State

log = logging.getLogger(__name__)

BEAT = 0.5  # seconds between looks at what only time brings; /ping calls the host dead after ten of them
HURRY = 0.02  # the same while a load waits for a runner to become idle


class Host:
    """Built means listening: every model's socket is there, preloads are wanted."""

    def __init__(self, settings: Settings, found: Catalog) -> None:
        used = {entry.config.handler for entry in found.entries.values() if entry.config}
        # What an archive holds is not known yet, nor what the platform will bring: then all of them.
        unknown = settings.multi_model or any(entry.archive for entry in found.entries.values())
        names = [name for name in HANDLERS if unknown or name in used]
        modules = [module_of(name) for name in names]
        also = [module for name in names for module in ALSO_IMPORTED.get(name, ())]
        modules += [module for module in also if find_spec(module.partition(".")[0])]
        configs = [entry.config for entry in found.entries.values()]
        alone = len(configs) == 1 and configs[0] is not None and configs[0].copies == 1
        self._forks = Forkserver(settings, modules, alone=alone and settings.sources["threads"] != "cgroup")
        self._slots = Slots(settings.slots)
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._store = Store(settings, found, self._slots, self._forks, self._wake)
        self._draining = False
        self._ending = False
        self._poll = select.epoll()
        for each in (self._woken, self._forks.channel):
            self._poll.register(each, select.EPOLLIN)
        self._watch = Watch(self._store, self._poll)
        self._control = Control(settings, self._store, self._slots, self._watch, self._poll)

    def _wake(self) -> None:
        try:
            self._waker.send(b".")
        except BlockingIOError:
            pass  # enough wake-ups are on their way

    def run(self) -> None:
        """Serve until told to end. SIGTERM: /ping turns 503. SIGQUIT: end, once the launcher knows nobody waits."""
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._drain)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGQUIT, self._end)
        for model in list(self._store.readiness.awaited):
            self._store.want(model)
        looked = 0.0
        while not self._ending:
            self._watch.refresh()
            self._beat()
            pause = HURRY if self._store.waits_for_room() or self._control.waited_for() else BEAT
            for fd, _ in self._poll.poll(pause):
                self._hear(fd)
            self._control.settle()
            if time.monotonic() - looked >= pause:
                looked = time.monotonic()
                self._store.tick()
                self._control.tell_who_asked()
        self._store.runners.retire_all()
        self._forks.stop()

    def _drain(self, *_: object) -> None:
        self._draining = True

    def _end(self, *_: object) -> None:
        self._ending = True

    # Hearing.

    def _hear(self, fd: int) -> None:
        if model := self._watch.model(fd):
            self._someone_came(model)
        elif runner := self._watch.runner(fd):
            if runner.number in self._store.runners.alive:
                self._store.heard(runner)
        elif fd == self._forks.channel.fileno():
            self._store.forked()
        elif fd == self._control.door.fileno():
            self._control.accept()
        elif fd == self._woken.fileno():
            self._woken.recv(4096)
            self._store.prepared()
        else:
            self._control.hear(fd)

    def _someone_came(self, model: Hosted) -> None:
        if not self._store.listens_for(model):
            return
        if not model.failure():
            self._store.want(model)
        if model.failure():
            _turn_away(model)

    # Telling.

    def _beat(self) -> None:
        if self._draining:
            self._slots.beat(State.DRAINING, "draining: told to stop")
        else:
            self._slots.beat(*self._store.readiness.told())


def _turn_away(model: Hosted) -> None:
    """Close on everyone who waits: nginx then sends them to a web worker, which asks here why and says it."""
    while True:
        try:
            sock, _ = model.listener.accept()
        except OSError:
            return
        sock.close()


def run(settings: Settings, found: Catalog) -> int:
    """The host, from its start to its end; the exit status."""
    host = Host(settings, found)
    log.info("host started", extra={"pid": os.getpid(), "budget": settings.budget_bytes})
    try:
        host.run()
    except EOFError:
        log.critical("the forkserver died, and all runners with it")
        return 1
    return 0
