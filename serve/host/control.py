"""What the host answers over its own socket: to web workers why and how things are, to the platform load, unload."""

import logging
import select
import socket
import time
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from serve import errors, wire
from serve.errors import BadRequest, ModelNotFound, ModelUnusable, PathNotFound, ServeError, Unavailable
from serve.host import multi_model
from serve.host.hosted import Hosted
from serve.host.metrics import exposition
from serve.host.store import Store
from serve.host.watch import Watch
from serve.settings import Settings
from serve.slots import Slots

log = logging.getLogger(__name__)

FRESH = 2.0  # seconds for which a death explains a connection that broke off
PATIENT = 1.0  # seconds a web worker may wait to hear why


class Control:
    """The host's door and who came through it. `settle` in every turn of the loop: it answers who had to wait."""

    def __init__(self, settings: Settings, store: Store, slots: Slots, watch: Watch, poll: select.epoll) -> None:
        self._settings = settings
        self._store = store
        self._slots = slots
        self._watch = watch
        self._poll = poll
        self._callers: dict[int, wire.Connection] = {}
        self._asking: list[tuple[float, Hosted, wire.Connection]] = []  # who waits to hear why, and until when
        self._loads: list[tuple[Hosted, wire.Connection]] = []  # the platform waits for these to be ready
        self._unloads: list[tuple[Hosted, float, wire.Connection, bytes, int]] = []  # until when, and what to say then
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.door.bind(str(settings.host_socket))
        self.door.listen(1024)
        self.door.setblocking(False)
        poll.register(self.door, select.EPOLLIN)

    def waited_for(self) -> bool:
        """Whether someone waits for an answer that only looking finds."""
        return bool(self._asking)

    # Hearing.

    def accept(self) -> None:
        while True:
            try:
                sock, _ = self.door.accept()
            except BlockingIOError:
                return
            self._read(wire.Connection(sock))

    def hear(self, fd: int) -> None:
        """More of a request, if this is a caller's."""
        if fd in self._callers:
            self._read(self._callers[fd])

    def _read(self, caller: wire.Connection) -> None:
        fd = caller.sock.fileno()
        try:
            whole = caller.read()
        except (wire.Gone, ServeError):
            self._close(caller)
            return
        if whole:
            self._answer(caller)
        elif fd not in self._callers:
            self._watch.forget(fd)  # an ended runner's channel had this number; its messages are not ours to hear
            self._callers[fd] = caller
            self._poll.register(fd, select.EPOLLIN)

    # Answering web workers.

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
                self.tell_who_asked()
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
            self._watch.add(model)
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
        self._watch.drop(model)
        self._store.unload(model, "it was unloaded")
        self._unloads.append((model, time.monotonic() + self._settings.request_limit, caller, said, status))

    def settle(self) -> None:
        """Answer loads that are ready or have failed, and unloads that are done."""
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

    def tell_who_asked(self) -> None:
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
