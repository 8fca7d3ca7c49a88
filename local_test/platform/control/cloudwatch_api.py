"""CloudWatch's API on top of moto: metrics come from the emulator's own store, alarms are evaluated by the monitor.

docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

from moto.cloudwatch.exceptions import InvalidParameterCombination, InvalidParameterValue
from moto.cloudwatch.exceptions import ValidationError as CloudWatchValidationError
from moto.cloudwatch.responses import CloudWatchResponse
from moto.core.responses import ActionResult, EmptyResult
from moto.core.utils import camelcase_to_underscores, method_names_from_class

from local_test.platform.calls import ValidationError
from local_test.platform.monitoring.metric_store import (
    MINUTE,
    SIMPLE,
    Datapoint,
    Distribution,
    Metrics,
    SeriesName,
    dimensions,
    matching,
    percentile,
)
from local_test.platform.monitoring.monitor import Monitor

MAX_DATAPOINTS = 1440  # of GetMetricStatistics
PAGE = 500  # metrics of one answer of ListMetrics
STANDARD = (1, 5, 10, 30)  # periods below one minute


class CloudWatch(CloudWatchResponse):
    """One request to CloudWatch."""

    monitor: ClassVar[Monitor]

    def call_action(self) -> Any:
        action = self._get_action()
        if action and camelcase_to_underscores(action) not in method_names_from_class(type(self)):
            return self.serialized(ActionResult(InvalidParameterValue(f"{action} is not supported by this emulator.")))
        try:
            return super().call_action()
        except ValidationError as error:
            return self.serialized(ActionResult(InvalidParameterValue(error.message)))

    @property
    def _metrics(self) -> Metrics:
        """The metrics of the caller's account and region, with all requests that were answered so far."""
        return self.monitor.metrics(self.current_account, self.region)

    # Metrics

    def put_metric_data(self) -> ActionResult:
        namespace = self._get_param("Namespace")
        data = self._get_param("MetricData", [])
        for number, each in enumerate(data, 1):
            self.cloudwatch_backend._validate_parameters_put_metric_data(each, number)
        for each in data:
            at = each.get("Timestamp")
            self._metrics.put(
                SeriesName(namespace, each["MetricName"], _dimensions(each.get("Dimensions") or ())),
                each.get("Unit") or "None",
                _seconds(at) if at else self.monitor.clock.now(),
                _values(each),
            )
        return EmptyResult()

    def list_metrics(self) -> ActionResult:
        params = self._get_params()
        filters = [(each["Name"], each.get("Value")) for each in params.get("Dimensions") or ()]
        wanted = (params.get("Namespace"), params.get("MetricName"))
        found = [
            each
            for each in matching(self._metrics.names(), filters)
            if wanted[0] in (None, each.namespace) and wanted[1] in (None, each.name)
        ]
        start = _token(params.get("NextToken"))
        page: dict[str, Any] = {"Metrics": [_described(each) for each in found[start : start + PAGE]]}
        if len(found) > start + PAGE:
            page["NextToken"] = str(start + PAGE)
        return ActionResult(page)

    def get_metric_statistics(self) -> ActionResult:
        params = self._get_params()
        names = [*(params.get("Statistics") or ()), *(params.get("ExtendedStatistics") or ())]
        if not names:
            raise InvalidParameterCombination("Must specify either Statistics or ExtendedStatistics")
        period, start, end = _period(params["Period"]), _seconds(params["StartTime"]), _seconds(params["EndTime"])
        if start >= end:
            raise InvalidParameterValue("The parameter StartTime must be less than the parameter EndTime.")
        if (end - start) / period > MAX_DATAPOINTS:
            raise InvalidParameterCombination(
                f"You have requested up to {math.ceil((end - start) / period):,} datapoints, which exceeds the limit "
                f"of {MAX_DATAPOINTS:,}. You may reduce the datapoints requested by increasing Period, or decreasing "
                "the time range."
            )
        name = SeriesName(params["Namespace"], params["MetricName"], _dimensions(params.get("Dimensions") or ()))
        found = self._metrics.datapoints(name, *aligned(start, end, period), period, params.get("Unit"))
        return ActionResult({"Label": name.name, "Datapoints": [_datapoint(each, names) for each in found]})

    def get_metric_data(self) -> ActionResult:
        params = self._get_params()
        start, end = _seconds(params["StartTime"]), _seconds(params["EndTime"])
        if start > end:
            raise CloudWatchValidationError("The parameter EndTime must be greater than StartTime.")
        if start == end:
            raise CloudWatchValidationError("The parameter StartTime must not equal parameter EndTime.")
        descending = (params.get("ScanBy") or "TimestampDescending") == "TimestampDescending"
        queries = params.get("MetricDataQueries") or ()
        results = []
        for number, query in enumerate(queries, 1):
            if "Expression" in query:
                raise CloudWatchValidationError(
                    f"Error in expression '{query['Id']}': metric math and Metrics Insights are not supported by this "
                    "emulator: query the metrics themselves, and compute in the client."
                )
            if "MetricStat" not in query:
                raise CloudWatchValidationError(
                    f"The parameter MetricDataQueries.member.{number}.MetricStat is required.\n"
                )
            if query.get("ReturnData", True):
                results.append(self._result(query, start, end, descending=descending))
        return ActionResult({"MetricDataResults": results, "Messages": []})

    def _result(self, query: Mapping[str, Any], start: float, end: float, *, descending: bool) -> dict[str, Any]:
        wanted = query["MetricStat"]
        metric, statistic, period = wanted["Metric"], wanted["Stat"], _period(wanted["Period"])
        name = SeriesName(metric["Namespace"], metric["MetricName"], _dimensions(metric.get("Dimensions") or ()))
        if statistic not in SIMPLE:
            percentile(statistic)
        found = self._metrics.datapoints(name, *aligned(start, end, period), period, wanted.get("Unit"))
        known = [(each.start, value) for each in found if (value := each.values.statistic(statistic)) is not None]
        if descending:
            known.reverse()
        return {
            "Id": query["Id"],
            "Label": query.get("Label") or name.name,
            "Timestamps": [datetime.fromtimestamp(at, UTC) for at, _ in known],
            "Values": [value for _, value in known],
            "StatusCode": "Complete",
        }


def aligned(start: float, end: float, period: float) -> tuple[float, float]:
    """The range of a query in whole periods, of one minute at most: a datapoint belongs to it if its period starts in
    it, as on CloudWatch, where the current minute is found while it lasts."""
    unit = min(period, MINUTE)
    return start // unit * unit, math.ceil(end / unit) * unit


def _period(given: Any) -> int:
    period = int(given)
    if period not in STANDARD and (period <= 0 or period % MINUTE):
        raise InvalidParameterValue("The parameter Period must be 1, 5, 10, 30 or a multiple of 60.")
    return period


def _seconds(at: Any) -> float:
    """Seconds since the epoch; a time without a zone is UTC, as clients send it."""
    if isinstance(at, int | float):
        return float(at)
    moment = at if isinstance(at, datetime) else datetime.fromisoformat(str(at))
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _dimensions(given: Iterable[Mapping[str, str]]) -> tuple[tuple[str, str], ...]:
    return dimensions({each["Name"]: each["Value"] for each in given})


def _values(datum: Mapping[str, Any]) -> Distribution:
    found = Distribution()
    sums = datum.get("StatisticValues")
    if sums:
        found.add_set(*(float(sums[name]) for name in ("SampleCount", "Sum", "Minimum", "Maximum")))
        return found
    values = datum.get("Values") or [datum.get("Value", 0)]
    for value, count in zip(values, datum.get("Counts") or [1] * len(values), strict=True):
        found.add(float(value), float(count))
    return found


def _described(name: SeriesName) -> dict[str, Any]:
    return {
        "Namespace": name.namespace,
        "MetricName": name.name,
        "Dimensions": [{"Name": key, "Value": value} for key, value in name.dimensions],
    }


def _datapoint(found: Datapoint, names: Sequence[str]) -> dict[str, Any]:
    values = {name: found.values.statistic(name) for name in names}
    described: dict[str, Any] = {"Timestamp": datetime.fromtimestamp(found.start, UTC), "Unit": found.unit}
    described |= {name: value for name, value in values.items() if name in SIMPLE}
    extended = {name: value for name, value in values.items() if name not in SIMPLE and value is not None}
    return {**described, "ExtendedStatistics": extended} if extended else described


def _token(given: str | None) -> int:
    if given and not given.isdigit():
        raise InvalidParameterValue("Request parameter NextToken is invalid")
    return int(given or 0)
