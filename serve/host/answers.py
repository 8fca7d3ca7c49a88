"""What the host answers over its own socket: to web workers why and how things are, to the platform load, unload."""

import logging
import select
import time
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from serve import errors
from serve.errors import InternalError, PathNotFound, RunnerDied, ServeError
from serve.host.model import FRESH, Hosted
from serve.host.model_api import Platform
from serve.host.sockets import Door, Watch, refuse, reply
from serve.host.store import Store
from serve.http import wire
from serve.settings import Settings
from serve.slots import WEB_SLOTS, Slots

COUNTERS = (
    # field of a slot, metric, help, scale
    ("requests", "serve_model_requests", "Requests a model answered or refused", 1.0),
    ("client_errors", "serve_model_client_errors", "Answers with a 4xx status", 1.0),
    ("server_errors", "serve_model_server_errors", "Answers with a 5xx status", 1.0),
    ("streams", "serve_model_streams", "Answers that were streamed", 1.0),
    ("batches", "serve_model_batches", "Turns of work", 1.0),
    ("batch_items", "serve_model_batch_items", "Requests at work, summed over turns", 1.0),
    ("queue_ns", "serve_model_queue_seconds", "Time requests waited before work began", 1e-9),
    ("work_ns", "serve_model_work_seconds", "Time at work", 1e-9),
)
OF_A_MODEL: tuple[tuple[str, str, Callable[[Hosted], float]], ...] = (
    ("serve_model_loads", "Runners started", lambda model: model.loads),
    ("serve_model_evictions", "Runners retired to make room", lambda model: model.evictions),
    ("serve_model_deaths", "Runners that died while serving", lambda model: model.died),
    ("serve_model_load_seconds", "From wanted to ready", lambda model: model.load_seconds),
)
STATES = ("absent", "loading", "ready", "retiring", "failed")


class _Collector:
    def __init__(self, store: Store, slots: Slots, settings: Settings) -> None:
        self._store = store
        self._slots = slots
        self._settings = settings

    def collect(self) -> Iterator[Metric]:
        models = self._store.models.values()
        for field, name, says, scale in COUNTERS:
            family = CounterMetricFamily(name, says, labels=["model"])
            for model in models:
                family.add_metric([model.name], model.count(field) * scale)
            yield family
        for name, says, value in OF_A_MODEL:
            family = CounterMetricFamily(name, says, labels=["model"])
            for model in models:
                family.add_metric([model.name], value(model))
            yield family
        held = GaugeMetricFamily("serve_model_bytes", "Private memory of a model's runners", labels=["model"])
        flight = GaugeMetricFamily("serve_model_in_flight", "Requests a model holds", labels=["model"])
        state = GaugeMetricFamily("serve_model_state", "1 for the state a model is in", labels=["model", "state"])
        for model in models:
            held.add_metric([model.name], sum(each.bytes for each in model.runners))
            flight.add_metric([model.name], sum(each.slot.get("in_flight") for each in model.runners))
            now = model.state()
            for each in STATES:
                state.add_metric([model.name, each], float(each == now))
        yield from (held, flight, state)
        yield GaugeMetricFamily("serve_budget_bytes", "Memory models may fill", self._settings.budget_bytes)
        yield GaugeMetricFamily("serve_used_bytes", "Memory models fill", self._store.runners.used())
        web = [self._slots.slot(number) for number in range(WEB_SLOTS)]
        for field, name, says in (
            ("requests", "serve_web_requests", "Requests that came to a web worker"),
            ("client_errors", "serve_web_client_errors", "4xx answers of web workers"),
            ("server_errors", "serve_web_server_errors", "5xx answers of web workers"),
        ):
            yield CounterMetricFamily(name, says, sum(slot.get(field) for slot in web))


def exposition(store: Store, slots: Slots, settings: Settings) -> bytes:
    """Prometheus text of everything this container counts."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(store, slots, settings))
    return bytes(generate_latest(registry))


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
