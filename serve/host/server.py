"""The host's loop: it hears sockets nobody serves, runners, the forkserver and the web workers, and acts on each."""

import logging
import os
import select
import signal
import socket
import time
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from serve import errors, wire
from serve.errors import BadRequest, ModelNotFound, ModelUnusable, PathNotFound, ServeError, Unavailable
from serve.handlers import ALSO_IMPORTED, HANDLERS
from serve.host import catalog, multi_model
from serve.host.catalog import Catalog
from serve.host.hosted import Hosted
from serve.host.metrics import exposition
from serve.host.runner_process import Forkserver, RunnerProcess
from serve.host.store import Store
from serve.settings import Settings
from serve.slots import Slots, State

log = logging.getLogger(__name__)

BEAT = 0.5  # seconds between looks at what only time brings; /ping calls the host dead after ten of them
HURRY = 0.02  # the same while a load waits for a runner to become idle
FRESH = 2.0  # seconds for which a death explains a connection that broke off
PATIENT = 1.0  # seconds a web worker may wait to hear why


class Host:
    """Built means listening: every model's socket is there, preloads are wanted."""

    def __init__(self, settings: Settings) -> None:
        # On a multi-model endpoint there is nothing but what the platform brings.
        found = Catalog([]) if settings.multi_model else catalog.scan(settings.model_dir)
        used = {entry.spec.handler for entry in found.entries.values() if entry.spec}
        # What an archive holds is not known yet, nor what the platform will bring: then all of them.
        unknown = settings.multi_model or any(entry.archive for entry in found.entries.values())
        names = [name for name in HANDLERS if unknown or name in used]
        modules = [HANDLERS[name].partition(":")[0] for name in names]
        modules += [module for name in names for module in ALSO_IMPORTED.get(name, ())]
        self._settings = settings
        specs = [entry.spec for entry in found.entries.values()]
        alone = not settings.multi_model and len(specs) == 1 and specs[0] is not None and specs[0].copies == 1
        self._forks = Forkserver(settings, modules, alone=alone and settings.sources["threads"] != "cgroup")
        self._slots = Slots(settings.slots)
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._store = Store(settings, found, self._slots, self._forks, self._wake)
        self._by_listener = {model.listener.fileno(): model for model in self._store.models.values()}
        self._listening: set[int] = set()
        self._controls: dict[int, RunnerProcess] = {}
        self._callers: dict[int, wire.Connection] = {}
        self._asking: list[tuple[float, Hosted, wire.Connection]] = []  # who waits to hear why, and until when
        self._loads: list[tuple[Hosted, wire.Connection]] = []  # the platform waits for these to be ready
        self._unloads: list[tuple[Hosted, float, wire.Connection, bytes, int]] = []  # until when, and what to say then
        self._draining = False
        self._ending = False
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._door.bind(str(settings.host_socket))
        self._door.listen(1024)
        self._door.setblocking(False)
        self._poll = select.epoll()
        for each in (self._door, self._woken, self._forks.channel):
            self._poll.register(each, select.EPOLLIN)

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
        for model in self._store.awaited:
            self._store.want(model)
        looked = 0.0
        while not self._ending:
            self._watch()
            self._beat()
            pause = HURRY if self._store.busy() or self._asking else BEAT
            for fd, _ in self._poll.poll(pause):
                self._hear(fd)
            self._settle()
            if time.monotonic() - looked >= pause:
                looked = time.monotonic()
                self._store.tick()
                self._tell_who_asked()
        self._store.retire_all()
        self._forks.stop()

    def _drain(self, *_: object) -> None:
        self._draining = True

    def _end(self, *_: object) -> None:
        self._ending = True

    # Hearing.

    def _watch(self) -> None:
        """Listen for models nobody serves any more, and to new runners; it costs what changed, not what there is."""
        while self._store.changed:
            model = self._store.changed.pop()
            if model.leaving:
                continue
            fd, wanted = model.listener.fileno(), self._store.listens_for(model)
            if wanted and fd not in self._listening:
                self._poll.register(fd, select.EPOLLIN)
                self._listening.add(fd)
            elif not wanted and fd in self._listening:
                self._poll.unregister(fd)
                self._listening.remove(fd)
            for runner in model.runners:
                control = runner.control.fileno()
                if self._controls.get(control) is not runner:
                    self._controls[control] = runner
                    # Edge-triggered: an ended runner's end of file is told once.
                    self._poll.register(control, select.EPOLLIN | select.EPOLLET)

    def _hear(self, fd: int) -> None:
        if fd in self._by_listener:
            self._someone_came(self._by_listener[fd])
        elif fd in self._controls:
            runner = self._controls[fd]
            if runner.number in self._store.runners:
                self._store.heard(runner)
        elif fd == self._forks.channel.fileno():
            self._store.forked()
        elif fd == self._door.fileno():
            self._accept()
        elif fd == self._woken.fileno():
            self._woken.recv(4096)
            self._store.prepared()
        elif fd in self._callers:
            self._read(self._callers[fd])

    def _someone_came(self, model: Hosted) -> None:
        if not self._store.listens_for(model):
            return
        if not model.failure():
            self._store.want(model)
        if model.failure():
            _turn_away(model)

    # Answering web workers.

    def _beat(self) -> None:
        awaited, count = self._store.awaited, len(self._store.preloads)
        if self._draining:
            state, says = State.DRAINING, "draining: told to stop"
        elif not awaited:
            state, says = State.READY, "ready"
        else:
            state = State.STARTING
            says = f"starting: {count - len(awaited)} of {count} preloaded models are ready"
            failures = [f"; {each.name}: {error.message}" for each in awaited if (error := each.failure())]
            says += "".join(failures[:1])
        self._slots.beat(state, says)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._door.accept()
            except BlockingIOError:
                return
            self._read(wire.Connection(sock))

    def _read(self, caller: wire.Connection) -> None:
        fd = caller.sock.fileno()
        known = fd in self._callers
        try:
            whole = caller.read()
        except (wire.Gone, ServeError):
            whole = False
            self._close(caller)
            return
        if whole:
            self._answer(caller)
        elif not known:
            self._controls.pop(fd, None)  # an ended runner's channel had this number; its messages are not ours to hear
            self._callers[fd] = caller
            self._poll.register(fd, select.EPOLLIN)

    def _answer(self, caller: wire.Connection) -> None:
        target = urlsplit(caller.target.decode("latin-1"))
        path, query = target.path, parse_qs(target.query)
        try:
            if self._settings.multi_model and self._platform(caller, path, query):
                return
            if path == "/models":
                shown = [model.shown() for model in self._store.models.values()]
                self._reply(caller, msgspec.json.encode({"models": shown}))
            elif path == "/model":
                self._reply(caller, msgspec.json.encode(self._model(query).shown()))
            elif path == "/trouble":
                self._asking.append((time.monotonic() + PATIENT, self._model(query), caller))
                self._tell_who_asked()
            elif path == "/metrics":
                text = exposition(self._store, self._slots, self._settings)
                self._reply(caller, text, content_type="text/plain; version=0.0.4; charset=utf-8")
            else:
                raise PathNotFound(f"the host has no {path[:100]}")
        except ServeError as error:
            self._reply(caller, errors.body(error), status=error.status)

    # Answering the platform.

    def _platform(self, caller: wire.Connection, path: str, query: dict[str, list[str]]) -> bool:
        """Load, list, unload; whether that was what the caller asked for."""
        if path == "/models" and caller.method == "POST":
            model = self._store.load(multi_model.requested(caller.body(), self._settings.model_roots))
            self._by_listener[model.listener.fileno()] = model
            self._loads.append((model, caller))
        elif path == "/models" and caller.method == "GET":
            coming = {model.name for model, _ in self._loads}
            loaded = {
                name: model for name, model in self._store.models.items() if not (name in coming or model.leaving)
            }
            token, limit = (query.get(key, [""])[0] for key in ("next_page_token", "limit"))
            listed = multi_model.page(loaded, token, limit)
            listed["models"] = [model.shown() for model in listed["models"]]
            self._reply(caller, msgspec.json.encode(listed))
        elif path.startswith("/models/") and caller.method == "DELETE":
            name = unquote(path.removeprefix("/models/"))
            said = msgspec.json.encode({"status": f'Model "{name}" unregistered'})
            self._unload(self._model({"name": [name]}), caller, said, 200)
        else:
            return False
        return True

    def _unload(self, model: Hosted, caller: wire.Connection, said: bytes, status: int) -> None:
        """Answer once it is gone, and its memory with it."""
        if model.leaving:
            raise ModelNotFound(f"model {model.name!r} is being unloaded", model=model.name)
        fd = model.listener.fileno()
        if fd in self._listening:
            self._poll.unregister(fd)
            self._listening.remove(fd)
        del self._by_listener[fd]
        self._store.unload(model, "it was unloaded")
        self._unloads.append((model, time.monotonic() + self._settings.request_limit, caller, said, status))

    def _settle(self) -> None:
        """Loads that are ready or have failed, and unloads that are done."""
        for load in list(self._loads):
            model, caller = load
            error = model.failure()
            if model.leaving:
                error = Unavailable("unloaded while it was loading", model=model.name)
                self._reply(caller, errors.body(error), status=error.status)
            elif error is not None:
                # Answered once nothing of it is left, so that the next try is a fresh one.
                status = int(BadRequest.status if isinstance(error, ModelUnusable) else error.status)
                error.retry_after = None
                self._unload(model, caller, errors.body(error), status)
            elif model.state() == "ready":
                self._reply(caller, b'{"status": "Workers scaled"}')
            else:
                continue
            self._loads.remove(load)
        for unload in list(self._unloads):
            model, until, caller, said, status = unload
            if self._store.forget(model):
                self._reply(caller, said, status=status)
                self._unloads.remove(unload)
            elif time.monotonic() > until:
                for runner in model.runners:
                    runner.kill("it had not finished when it was unloaded")

    def _model(self, query: dict[str, list[str]]) -> Hosted:
        name = query.get("name", [""])[0]
        if name not in self._store.models:
            raise ModelNotFound(f"no model named {name[:100]!r}")
        return self._store.models[name]

    def _tell_who_asked(self) -> None:
        """Why a connection to a model broke off: its failure, a death just now, or, after a while, no idea."""
        still = []
        for until, model, caller in self._asking:
            now = time.monotonic()
            error = model.failure()
            died = any(each.gone() for each in model.runners)  # and the forkserver has yet to say how
            if error is None and not died and model.trouble and now - model.trouble[0] < FRESH:
                error = model.trouble[1]
            if error is None and now < until and (died or model.state() == "ready"):
                still.append((until, model, caller))
                continue
            shown = {
                "state": model.state(),
                "since": round(now - model.wanted_since, 1),
                "error": errors.to_wire(error) if error else None,
            }
            self._reply(caller, msgspec.json.encode(shown))
        self._asking = still

    def _reply(
        self, caller: wire.Connection, body: bytes, *, status: int = 200, content_type: str = "application/json"
    ) -> None:
        try:
            # Web workers take an answer at once; waiting here for one that does not would stop the host.
            caller.sock.settimeout(1.0)
            caller.sock.sendall(wire.answer(status, content_type, body))
        except OSError:
            log.warning("a web worker went away", extra={"path": caller.target.decode("latin-1")})
        self._close(caller)

    def _close(self, caller: wire.Connection) -> None:
        self._callers.pop(caller.sock.fileno(), None)
        caller.close()


def _turn_away(model: Hosted) -> None:
    """Close on everyone who waits: nginx then sends them to a web worker, which asks here why and says it."""
    while True:
        try:
            sock, _ = model.listener.accept()
        except OSError:
            return
        sock.close()


def run(settings: Settings) -> int:
    """The host, from its start to its end; the exit status."""
    host = Host(settings)
    log.info("host started", extra={"pid": os.getpid(), "budget": settings.budget_bytes})
    try:
        host.run()
    except EOFError:
        log.critical("the forkserver died, and all runners with it")
        return 1
    return 0
