"""/metrics: the whole container in Prometheus text, summed where each fact lives; reading it touches no model."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from serve.host.hosted import Hosted
from serve.host.store import Store
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
