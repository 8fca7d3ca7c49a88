"""CloudWatch of one account and region, in moto: log lines and metric values that the platform itself writes."""

import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from moto.cloudwatch.models import cloudwatch_backends
from moto.logs.models import logs_backends

_writing = threading.Lock()  # moto's streams and metrics are not thread-safe


class CloudWatch:
    """Writes to moto's backends; thread-safe."""

    def __init__(self, account: str, region: str) -> None:
        self._account = account
        self._region = region

    def log(self, group: str, stream: str, lines: Sequence[str]) -> None:
        """Appends lines to a log stream, which is created if it is missing."""
        at = int(datetime.now(UTC).timestamp() * 1000)
        backend = logs_backends[self._account][self._region]
        with _writing:
            backend.ensure_log_group(group)
            backend.ensure_log_stream(group, stream)
            backend.put_log_events(group, stream, [{"timestamp": at, "message": line} for line in lines])

    def metric(self, namespace: str, name: str, value: float, dimensions: Mapping[str, str]) -> None:
        """Adds one value of a metric, at the present time."""
        data = {
            "MetricName": name,
            "Value": value,
            "Timestamp": datetime.now(UTC).replace(tzinfo=None),  # as moto's own times are
            "Dimensions": [{"Name": key, "Value": each} for key, each in dimensions.items()],
        }
        with _writing:
            cloudwatch_backends[self._account][self._region].put_metric_data(namespace, [data])
