"""SageMaker's metrics of endpoints: what they are called, and how requests are counted without delaying them.

docs.aws.amazon.com/sagemaker/latest/dg/monitoring-cloudwatch.html
A request appends one record to a queue; a thread aggregates the queue into CloudWatch's series.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from local_test.platform.calls import ModelError, ModelNotReadyException, PlatformError, Timings
from local_test.platform.clock import Clock
from local_test.platform.monitoring.metric_store import Dimensions, Distribution, Metrics, SeriesName, dimensions

INVOCATIONS, INSTANCES = "AWS/SageMaker", "/aws/sagemaker/Endpoints"
RESOLUTION = 10.0  # seconds of the platform, as SageMaker's high-resolution metrics
MICROSECONDS = {
    *("ModelLatency", "OverheadLatency", "FirstChunkLatency", "FirstChunkModelLatency", "FirstChunkOverheadLatency"),
    *("ModelLoadingWaitTime", "ModelUnloadingTime", "ModelDownloadingTime", "ModelLoadingTime"),
}
COUNTS = {"ApproximateBacklogSize", "ApproximateBacklogSizePerInstance"}  # of an asynchronous endpoint
PERCENT = {"CPUUtilization", "MemoryUtilization"}
PER_INSTANCE = {*PERCENT, "LoadedModelCount"}  # in the namespace of instances


class Meter(Protocol):
    """Counts for one variant."""

    def record(self, values: Mapping[str, float]) -> None:
        """Adds a value to each of these metrics, by name. Times are in seconds here, whatever the metric's unit."""
        ...


class NoMeter:
    """Counts nothing."""

    def record(self, values: Mapping[str, float]) -> None:
        pass


def unmetered(*_: str) -> NoMeter:
    """The meter of a variant, by any names, where nothing is counted."""
    return NoMeter()


def unit(metric: str) -> str:
    """The unit of one of SageMaker's metrics."""
    if metric in MICROSECONDS:
        return "Microseconds"
    if metric == "ApproximateAgeOfOldestRequest":
        return "Seconds"
    return "Percent" if metric in PERCENT else "Count" if metric in COUNTS else "None"


def invocation(
    seconds: float, timings: Timings, instances: int, concurrent: int, error: PlatformError | None
) -> dict[str, float]:
    """The metrics of one invocation that reached a variant. Errors count as 0 where there is none, as on SageMaker."""
    status = _status(error)
    values = {
        "Invocations": 1.0,
        "Invocation4XXErrors": float(400 <= status < 500),
        "Invocation5XXErrors": float(error is not None and not 400 <= status < 500),
        "InvocationModelErrors": float(isinstance(error, ModelError)),
    }
    if instances:
        values["InvocationsPerInstance"] = 1 / instances
        values["ConcurrentRequestsPerModel"] = concurrent
    if timings.model:
        values["ModelLatency"] = timings.model
        values["OverheadLatency"] = max(seconds - timings.model, 0.0)
    if timings.cold is not None:
        values["ModelCacheHit"] = float(not timings.cold)
        if timings.cold:
            values["ModelLoadingWaitTime"] = timings.loading
    return values


def _status(error: PlatformError | None) -> int:
    """The status of the model's answer; the platform's own if the model gave none, which counts as its failure."""
    if isinstance(error, ModelError):
        return error.original_status
    if isinstance(error, ModelNotReadyException):
        return error.status
    return 0


class Recorder:
    """The queue of records of one emulator. `record` is called by requests, `flush` by a thread and by queries."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: deque[tuple[float, EndpointMeter, Mapping[str, float]]] = deque()
        self._flushing = threading.Lock()

    def meter(self, metrics: Metrics, endpoint: str, config: str | None, variant: str) -> "EndpointMeter":
        """A meter for a variant. With a config, values are also counted for that config alone, as in an update."""
        of_variant = {"EndpointName": endpoint, "VariantName": variant}
        named = [of_variant] if config is None else [of_variant, {**of_variant, "EndpointConfigName": config}]
        return EndpointMeter(self._add, metrics, named)

    def endpoint_meter(self, metrics: Metrics, endpoint: str) -> "EndpointMeter":
        """A meter for a whole endpoint, as the queue of an asynchronous one is measured."""
        return EndpointMeter(self._add, metrics, [{"EndpointName": endpoint}])

    def flush(self) -> None:
        """Aggregates all records so far. A query that follows finds them."""
        with self._flushing:
            found: dict[tuple[EndpointMeter, float], dict[str, Distribution]] = {}
            width = self._clock.real(RESOLUTION)
            for _ in range(len(self._records)):
                at, meter, values = self._records.popleft()
                sums = found.setdefault((meter, at // width * width), {})
                for name, value in values.items():
                    sums.setdefault(name, Distribution()).add(value * 1e6 if name in MICROSECONDS else value)
            for (meter, start), sums in found.items():
                meter.put(start, sums)

    def _add(self, meter: "EndpointMeter", values: Mapping[str, float]) -> None:
        self._records.append((self._clock.now(), meter, values))


class EndpointMeter:
    """A meter whose values become metrics with the dimensions of an endpoint; each value with each set of them."""

    def __init__(
        self,
        add: Callable[["EndpointMeter", Mapping[str, float]], None],
        metrics: Metrics,
        named: Sequence[Mapping[str, str]],
    ) -> None:
        self._add = add
        self._metrics = metrics
        self._dimensions: list[Dimensions] = [dimensions(each) for each in named]

    def record(self, values: Mapping[str, float]) -> None:
        self._add(self, values)

    def put(self, start: float, sums: Mapping[str, Distribution]) -> None:
        """Stores values that were recorded from this time on."""
        for name, values in sums.items():
            namespace = INSTANCES if name in PER_INSTANCE else INVOCATIONS
            for each in self._dimensions:
                self._metrics.put(SeriesName(namespace, name, each), unit(name), start, values)
