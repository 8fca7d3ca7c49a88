"""CloudWatch of one account and region: log lines, in moto, and metric values that the platform itself writes."""

import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from moto.logs.models import logs_backends

from local_test.platform.monitoring.metric_store import Distribution, Metrics, SeriesName
from local_test.platform.monitoring.metric_store import dimensions as named

_writing = threading.Lock()  # moto's streams are not thread-safe
KEPT = 50_000  # lines of one stream


class CloudWatch:
    """Thread-safe."""

    def __init__(self, account: str, region: str, metrics: Metrics) -> None:
        self._account = account
        self._region = region
        self._metrics = metrics

    def log(self, group: str, stream: str, lines: Sequence[str]) -> None:
        """Appends lines to a log stream, which is created if it is missing."""
        at = int(datetime.now(UTC).timestamp() * 1000)
        backend = logs_backends[self._account][self._region]
        with _writing:
            backend.ensure_log_group(group)
            backend.ensure_log_stream(group, stream)
            backend.put_log_events(group, stream, [{"timestamp": at, "message": line} for line in lines])
            del backend.groups[group].streams[stream].events[:-KEPT]

    def metric(self, namespace: str, name: str, value: float, dimensions: Mapping[str, str]) -> None:
        """Adds one value of a metric, at the present time."""
        values = Distribution()
        values.add(value)
        self._metrics.put(SeriesName(namespace, name, named(dimensions)), "None", time.time(), values)
