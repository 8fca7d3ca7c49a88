"""The answers of the host on its own socket: models, metrics, and why a connection to a model broke."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import msgspec

from serve import errors
from serve.errors import DoesNotFit, InternalError, NotReady, PathNotFound, RunnerDied, ServeError
from serve.host.model import Phase, ServedModel
from serve.host.model_api import MultiModelApi
from serve.host.sockets import ModelSockets, refuse, reply
from serve.host.store import Store
from serve.http import wire
from serve.settings import Settings
from serve.slots import Slots

if TYPE_CHECKING:
    from prometheus_client.core import Metric

log = logging.getLogger(__name__)

COUNTERS = (
    # field of a slot, metric, help, scale
    ("requests", "serve_model_requests", "Requests answered or refused by a model", 1.0),
    ("client_errors", "serve_model_client_errors", "Answers with a 4xx status", 1.0),
    ("server_errors", "serve_model_server_errors", "Answers with a 5xx status", 1.0),
    ("streams", "serve_model_streams", "Answers that were streamed", 1.0),
    ("batches", "serve_model_batches", "Batches, or steps of continuous batching", 1.0),
    ("batch_items", "serve_model_batch_items", "Requests at work, summed over batches", 1.0),
    ("receive_ns", "serve_model_receive_seconds", "Time of the upload of bodies, summed over requests", 1e-9),
    (
        "load_wait_ns",
        "serve_model_load_wait_seconds",
        "Time that requests waited for a load, summed over requests",
        1e-9,
    ),
    ("queue_ns", "serve_model_queue_seconds", "Time in the queue, summed over requests", 1e-9),
    ("work_ns", "serve_model_work_seconds", "Time at work, summed over batches", 1e-9),
)
OF_A_MODEL: tuple[tuple[str, str, Callable[[ServedModel], float]], ...] = (
    ("serve_model_loads", "Runners started", lambda model: model.loads),
    ("serve_model_evictions", "Runners evicted", lambda model: model.evictions),
    ("serve_model_deaths", "Runners that crashed during a request", lambda model: model.crashes),
    ("serve_model_load_seconds", "Time from wanted to ready, summed over loads", lambda model: model.load_seconds),
)
STATES = ("absent", "loading", "ready", "retiring", "failed")
ENDING_HINT = "retry: the container is being replaced; its log has the cause"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Collector:
    def __init__(self, store: Store, slots: Slots, settings: Settings) -> None:
        self._store = store
        self._slots = slots
        self._settings = settings

    def collect(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        models = self._store.models.values()
        for field, name, meaning, scale in COUNTERS:
            family = CounterMetricFamily(name, meaning, labels=["model"])
            for model in models:
                family.add_metric([model.name], model.count(field) * scale)
            yield family
        for name, meaning, value in OF_A_MODEL:
            family = CounterMetricFamily(name, meaning, labels=["model"])
            for model in models:
                family.add_metric([model.name], value(model))
            yield family
        held = GaugeMetricFamily("serve_model_bytes", "Private memory of a model's runners", labels=["model"])
        flight = GaugeMetricFamily("serve_model_in_flight", "Requests that a model holds", labels=["model"])
        state = GaugeMetricFamily("serve_model_state", "1 for the state of a model", labels=["model", "state"])
        for model in models:
            held.add_metric([model.name], sum(each.bytes for each in model.runners))
            flight.add_metric([model.name], sum(each.slot.get("in_flight") for each in model.runners))
            now = model.state()
            for each in STATES:
                state.add_metric([model.name, each], float(each == now))
        yield from (held, flight, state)
        yield GaugeMetricFamily("serve_budget_bytes", "Memory budget of all models", self._settings.budget_bytes)
        yield GaugeMetricFamily("serve_used_bytes", "Memory that all models use or reserve", self._store.runners.used())
        budgets = GaugeMetricFamily("serve_device_budget_bytes", "Budget of a GPU's memory", labels=["device"])
        used = GaugeMetricFamily("serve_device_used_bytes", "The part in use or reserved", labels=["device"])
        for device, budget in enumerate(self._store.device_budgets):
            budgets.add_metric([str(device)], budget)
            used.add_metric([str(device)], self._store.runners.used_on(device))
        yield from (budgets, used)
        web = self._slots.web_totals()
        for field, name, meaning in (
            ("requests", "serve_web_requests", "Requests to web workers"),
            ("client_errors", "serve_web_client_errors", "4xx answers of web workers"),
            ("server_errors", "serve_web_server_errors", "5xx answers of web workers"),
        ):
            yield CounterMetricFamily(name, meaning, web[field])


def exposition(store: Store, slots: Slots, settings: Settings) -> bytes:
    """All metrics of this container as Prometheus text."""
    from prometheus_client import CollectorRegistry, generate_latest  # here: 4 MB, and the platform never asks

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(store, slots, settings))
    return bytes(generate_latest(registry))


class Cause(Enum):
    """Why a connection to a model broke, as far as the host knows."""

    WAIT = "not known yet: the forkserver may still report it"
    FAILURE = "the model failed, and pauses before the next load"
    CRASH = "a runner of the model crashed within the last seconds"
    EXIT = "a runner has exited, and the forkserver has not reported the status"
    UNKNOWN = "neither a failure nor a crash"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The facts that decide the Cause of one broken connection."""

    paused: bool  # the model pauses after a failure
    exited: bool  # a runner has exited, and the forkserver has not reported it
    crashed: bool  # a runner crashed within FRESH seconds
    ready: bool  # a runner is ready
    may_have_begun: bool  # work on the request may have begun
    timed_out: bool  # the caller has waited for PATIENCE


def cause(seen: Observed) -> Cause:
    """The cause to answer now, or WAIT.

    A pause names its own failure. An exit that is not reported yet is newer than a crash that was: the forkserver's
    report is worth waiting for. And if a runner is ready and nothing has failed, the crash may not have become visible.
    A request whose work cannot have begun is not kept waiting, since the cause does not matter to it: it is retryable.
    """
    worth_waiting = seen.may_have_begun and not seen.timed_out
    if seen.paused:
        return Cause.FAILURE
    if seen.exited:
        return Cause.WAIT if worth_waiting else Cause.EXIT
    if seen.crashed:
        return Cause.CRASH
    return Cause.WAIT if worth_waiting and seen.ready else Cause.UNKNOWN


# Most seconds that a web worker waits for a cause. A crash is known within some ms; that of a process whose gigabytes
# the kernel takes back, on a busy machine, within 4 s.
PATIENCE = 6.0


@dataclass(frozen=True, slots=True)
class _Question:
    """A web worker that waits for the cause of a broken connection."""

    caller: wire.Connection
    model: ServedModel
    may_have_begun: bool
    received: float  # time.monotonic() when nginx had the whole request
    until: float  # time.monotonic()


class HostApi:
    """The requests on the host's socket. `settle` must be called in every turn of the loop, `explain` in every tick."""

    def __init__(self, settings: Settings, store: Store, slots: Slots, sockets: ModelSockets) -> None:
        self._settings = settings
        self._store = store
        self._slots = slots
        self._multi_model = MultiModelApi(settings, store, sockets) if settings.multi_model else None
        self._questions: list[_Question] = []
        self._ending = ""

    def end(self, reason: str) -> None:
        """From now on all questions and requests are answered with this reason: no model can be served any more."""
        self._ending = reason
        if self._multi_model:
            self._multi_model.refuse_all(NotReady(reason, hint=ENDING_HINT, retry_after=1))
        self.explain()

    def waits(self) -> bool:
        """Whether a web worker waits for a cause, so that the loop must poll."""
        return bool(self._questions)

    def settle(self) -> None:
        """Answer the loads and unloads that have ended."""
        if self._multi_model:
            self._multi_model.settle()

    def explain(self) -> None:
        """Answer the web workers whose cause is known now, or whose wait has timed out."""
        self._questions = [question for question in self._questions if not self._explained(question)]

    def answer(self, caller: wire.Connection) -> None:
        path, _, query_string = caller.target.decode("latin-1").partition("?")
        try:
            query = {key: values[0] for key, values in parse_qs(query_string).items()}
            if self._ending and caller.method != "GET":
                raise NotReady(self._ending, hint=ENDING_HINT, retry_after=1)
            if self._multi_model and self._multi_model.answers(caller, path, query):
                return
            if path == "/models":
                reply(caller, msgspec.json.encode({"models": [model.shown() for model in self._store.models.values()]}))
            elif path == "/model":
                file = query.get("socket")
                model = self._store.of_socket(file) if file else self._store.named(query.get("name", ""))
                reply(caller, msgspec.json.encode(model.shown()))
            elif path == "/cause":
                model = self._store.of_socket(query.get("socket", ""))
                begun = "arrived_epoch" not in query or model.may_have_begun(float(query["arrived_epoch"]))
                now, patience = time.monotonic(), min(PATIENCE, float(query.get("patience", PATIENCE)))
                received = now - max(0.0, time.time() - float(query.get("received_epoch", time.time())))
                self._questions.append(_Question(caller, model, begun, received, now + patience))
                self.explain()
            elif path == "/metrics":
                reply(caller, exposition(self._store, self._slots, self._settings), content_type=METRICS_TYPE)
            else:
                raise PathNotFound(f"the host has no path {path[:100]}")
        except ServeError as error:
            refuse(caller, error)
        except Exception:
            extra = {"path": path[:200], "request_id": caller.headers.get("x-request-id", "")}
            log.exception("the host failed on a request", extra=extra)
            refuse(caller, InternalError("internal error", hint="see the log"))

    def _explained(self, question: _Question) -> bool:
        """Whether the question is answered: not while its cause is WAIT."""
        model = question.model
        if self._ending:
            lost = question.may_have_begun and model.of_phase(Phase.READY, Phase.RETIRING)
            reason = f"the request was lost: {self._ending}" if lost else self._ending
            cls = RunnerDied if lost else NotReady
            self._tell(question, cls(reason, hint=ENDING_HINT, model=model.name, retry_after=1))
            return True
        failure, recent = model.failure(), model.recent_failure()
        found = cause(
            Observed(
                paused=failure is not None,
                exited=any(each.exited() for each in model.runners),
                crashed=recent is not None,
                ready=model.state() == "ready",
                may_have_begun=question.may_have_begun,
                timed_out=time.monotonic() >= question.until,
            )
        )
        if found is Cause.WAIT:
            return False
        exited: ServeError = RunnerDied("the model's process crashed", hint="see the log", model=model.name)
        for each in model.runners:
            if each.over_limit and each.exited():  # its cause is known before the forkserver's report
                exited = DoesNotFit(each.kill_reason, hint=each.over_limit, model=model.name)
        self._tell(
            question, {Cause.FAILURE: failure, Cause.CRASH: recent, Cause.EXIT: exited, Cause.UNKNOWN: None}[found]
        )
        return True

    def _tell(self, question: _Question, error: ServeError | None) -> None:
        model, now = question.model, time.monotonic()
        step = model.load_step()
        since, until = (model.wanted_since, now) if step else model.cold
        shown = {
            "may_have_begun": question.may_have_begun,
            "load_step": step,
            "load": round(max(0.0, until - max(since, question.received)), 2),
            "error": errors.to_wire(error) if error else None,
        }
        reply(question.caller, msgspec.json.encode(shown))
