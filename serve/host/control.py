"""What the host answers over its own socket: to web workers why and how things are, to the platform load, unload."""

import logging
import select
import time
from urllib.parse import parse_qs

import msgspec

from serve import errors, wire
from serve.errors import InternalError, PathNotFound, RunnerDied, ServeError
from serve.host.door import Door, refuse, reply
from serve.host.hosted import FRESH, Hosted
from serve.host.metrics import exposition
from serve.host.platform import Platform
from serve.host.store import Store
from serve.host.watch import Watch
from serve.settings import Settings
from serve.slots import Slots

log = logging.getLogger(__name__)

PATIENT = 3.0  # seconds a web worker may wait to hear why; a death is known within some ms, on a very busy machine 1 s
TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Control:
    """Who came through the host's door. `settle` in every turn of the loop: it answers who had to wait."""

    def __init__(self, settings: Settings, store: Store, slots: Slots, watch: Watch, poll: select.epoll) -> None:
        self._settings = settings
        self._store = store
        self._slots = slots
        self._platform = Platform(settings, store, watch) if settings.multi_model else None
        # Who waits to hear why, until when, and whether work on his request may have begun.
        self._asking: list[tuple[float, Hosted, bool, wire.Connection]] = []
        self.door = Door(settings, watch, poll)

    def waited_for(self) -> bool:
        """Whether someone waits for an answer that only looking finds."""
        return bool(self._asking)

    def accept(self) -> None:
        for caller in self.door.accept():
            self._answer(caller)

    def hear(self, fd: int) -> None:
        """More of a request, if this is a caller's."""
        if caller := self.door.hear(fd):
            self._answer(caller)

    def settle(self) -> None:
        if self._platform:
            self._platform.settle()

    def _answer(self, caller: wire.Connection) -> None:
        path, _, asked = caller.target.decode("latin-1").partition("?")
        try:
            query = {key: values[0] for key, values in parse_qs(asked).items()}
            if self._platform and self._platform.answers(caller, path, query):
                return
            if path == "/models":
                reply(caller, msgspec.json.encode({"models": [model.shown() for model in self._store.models.values()]}))
            elif path == "/model":
                file = query.get("socket")
                model = self._store.of_socket(file) if file else self._store.named(query.get("name", ""))
                reply(caller, msgspec.json.encode(model.shown()))
            elif path == "/trouble":
                model = self._store.of_socket(query.get("socket", ""))
                begun = "arrived" not in query or model.may_have_begun(float(query["arrived"]))
                self._asking.append((time.monotonic() + PATIENT, model, begun, caller))
                self.tell_who_asked()
            elif path == "/metrics":
                reply(caller, exposition(self._store, self._slots, self._settings), content_type=TEXT)
            else:
                raise PathNotFound(f"the host has no {path[:100]}")
        except ServeError as error:
            refuse(caller, error)
        except Exception:
            log.exception("the host failed", extra={"path": path[:200]})
            refuse(caller, InternalError("internal error", hint="see the log"))

    def tell_who_asked(self) -> None:
        """Why a connection to a model broke off: its failure, a death just now, or, after a while, no idea."""
        self._asking = [asked for asked in self._asking if not self._told(*asked)]

    def _told(self, until: float, model: Hosted, begun: bool, caller: wire.Connection) -> bool:
        now = time.monotonic()
        error = model.failure()
        died = any(each.gone() for each in model.runners)  # and the forkserver has yet to say how
        if error is None and not died and model.trouble and now - model.trouble[0] < FRESH:
            error = model.trouble[1]
        if error is None and begun and now < until and (died or model.state() == "ready"):
            return False
        if error is None and died:  # the forkserver, which is importing, will say of what
            error = RunnerDied("the model's process died", hint="see the log", model=model.name)
        shown = {
            "begun": begun,
            "state": model.state(),
            "since": round(now - model.wanted_since, 1),
            "error": errors.to_wire(error) if error else None,
        }
        reply(caller, msgspec.json.encode(shown))
        return True
