"""CloudWatch's API on top of moto: metrics come from the emulator's own store, alarms are evaluated by the monitor.

docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

from moto.cloudwatch.exceptions import InvalidParameterCombination, InvalidParameterValue
from moto.cloudwatch.exceptions import ValidationError as CloudWatchValidationError
from moto.cloudwatch.models import Alarm
from moto.cloudwatch.responses import CloudWatchResponse
from moto.core.responses import ActionResult, EmptyResult
from moto.core.utils import camelcase_to_underscores, method_names_from_class

from local_test.platform.calls import ValidationError
from local_test.platform.control.sagemaker_api import ControlledEmulator
from local_test.platform.monitoring import alarms
from local_test.platform.monitoring.alarm_keeper import check, measured
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

    emulator: ClassVar[ControlledEmulator]

    @property
    def monitor(self) -> Monitor:
        return self.emulator.monitor

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

    # Alarms

    def put_metric_alarm(self) -> ActionResult:
        params = self._get_params()
        check(params)
        super().put_metric_alarm()
        self._created(params["AlarmName"])
        return EmptyResult()

    def put_composite_alarm(self) -> ActionResult:
        params = self._get_params()
        backend, rule = self.cloudwatch_backend, params["AlarmRule"]
        states = {each.name: "" for each in backend.alarms.values()}
        states |= {each.alarm_arn: "" for each in backend.alarms.values()}
        alarms.composite(rule, states)
        backend.put_metric_alarm(
            name=params["AlarmName"],
            namespace="",
            metric_name="",
            comparison_operator="",
            evaluation_periods=0,
            period=0,
            threshold=0.0,
            statistic="",
            description=params.get("AlarmDescription", ""),
            dimensions=[],
            alarm_actions=params.get("AlarmActions") or [],
            ok_actions=params.get("OKActions"),
            insufficient_data_actions=params.get("InsufficientDataActions"),
            actions_enabled=params.get("ActionsEnabled", True),
            rule=rule,
            tags=params.get("Tags"),
        )
        self._created(params["AlarmName"])
        return EmptyResult()

    def describe_alarms(self) -> ActionResult:
        params = self._get_params()
        kinds = params.get("AlarmTypes") or ["MetricAlarm"]
        found = [each for each in self._selected(params) if _kind(each) in kinds]
        start, size = _token(params.get("NextToken")), int(params.get("MaxRecords") or 100)
        page = found[start : start + size]
        answer: dict[str, Any] = {
            "MetricAlarms": [_metric_alarm(each) for each in page if each.rule is None],
            "CompositeAlarms": [_composite_alarm(each) for each in page if each.rule is not None],
        }
        if len(found) > start + size:
            answer["NextToken"] = str(start + size)
        return ActionResult(answer)

    def describe_alarms_for_metric(self) -> ActionResult:
        params = self._get_params()
        name = SeriesName(params["Namespace"], params["MetricName"], _dimensions(params.get("Dimensions") or ()))
        all_alarms = [each for each in self.cloudwatch_backend.alarms.values() if each.rule is None]
        return ActionResult({"MetricAlarms": [_metric_alarm(each) for each in all_alarms if measured(each)[0] == name]})

    def describe_alarm_history(self) -> ActionResult:
        params = self._get_params()
        found = [
            each
            for each in self.monitor.alarms.history(self.current_account, self.region)
            if params.get("AlarmName") in (None, each["AlarmName"])
            and params.get("HistoryItemType") in (None, each["HistoryItemType"])
            and each["AlarmType"] in (params.get("AlarmTypes") or ["MetricAlarm"])
            and ("StartDate" not in params or each["Timestamp"].timestamp() >= _seconds(params["StartDate"]))
            and ("EndDate" not in params or each["Timestamp"].timestamp() < _seconds(params["EndDate"]))
        ]
        if params.get("ScanBy") == "TimestampAscending":
            found.reverse()
        start, size = _token(params.get("NextToken")), int(params.get("MaxRecords") or 100)
        answer: dict[str, Any] = {"AlarmHistoryItems": found[start : start + size]}
        if len(found) > start + size:
            answer["NextToken"] = str(start + size)
        return ActionResult(answer)

    def set_alarm_state(self) -> ActionResult:
        params = self._get_params()
        name, state = params["AlarmName"], params["StateValue"]
        if name in self.cloudwatch_backend.alarms and state in (alarms.OK, alarms.ALARM, alarms.UNKNOWN):
            verdict = alarms.Verdict(state, params["StateReason"], {})
            self.monitor.alarms.set_state(self.current_account, self.region, name, verdict)
        return super().set_alarm_state()

    def delete_alarms(self) -> ActionResult:
        self.monitor.alarms.deleted(self.current_account, self.region, self._get_param("AlarmNames", []))
        return super().delete_alarms()

    def _created(self, name: str) -> None:
        records = self.cloudwatch_backend.alarms
        self.emulator.register(records, name)
        self.monitor.alarms.created(self.current_account, self.region, records, name)

    def _selected(self, params: Mapping[str, Any]) -> list[Alarm]:
        """The alarms that a DescribeAlarms asks for, by name."""
        names, prefix = params.get("AlarmNames"), params.get("AlarmNamePrefix") or ""
        return [
            each
            for name, each in sorted(self.cloudwatch_backend.alarms.items())
            if (not names or name in names)
            and name.startswith(prefix)
            and params.get("StateValue") in (None, each.state_value)
            and (
                not params.get("ActionPrefix")
                or any(arn.startswith(params["ActionPrefix"]) for arn in each.alarm_actions or ())
            )
        ]


def _kind(alarm: Alarm) -> str:
    return "MetricAlarm" if alarm.rule is None else "CompositeAlarm"


def _described_alarm(alarm: Alarm) -> dict[str, Any]:
    """The members that metric alarms and composite alarms share."""
    return {
        "AlarmName": alarm.name,
        "AlarmArn": alarm.alarm_arn,
        "AlarmDescription": alarm.description,
        "AlarmConfigurationUpdatedTimestamp": alarm.configuration_updated_timestamp,
        "ActionsEnabled": alarm.actions_enabled,
        "OKActions": alarm.ok_actions or [],
        "AlarmActions": alarm.alarm_actions or [],
        "InsufficientDataActions": alarm.insufficient_data_actions or [],
        "StateValue": alarm.state_value,
        "StateReason": alarm.state_reason,
        "StateReasonData": alarm.state_reason_data,
        "StateUpdatedTimestamp": alarm.state_updated_timestamp,
        "StateTransitionedTimestamp": alarm.state_updated_timestamp,
    }


def _composite_alarm(alarm: Alarm) -> dict[str, Any]:
    return {**_described_alarm(alarm), "AlarmRule": alarm.rule}


def _metric_alarm(alarm: Alarm) -> dict[str, Any]:
    described = {
        **_described_alarm(alarm),
        "EvaluationPeriods": alarm.evaluation_periods,
        "DatapointsToAlarm": alarm.datapoints_to_alarm,
        "Threshold": alarm.threshold,
        "ComparisonOperator": alarm.comparison_operator,
        "TreatMissingData": alarm.treat_missing_data,
        "EvaluateLowSampleCountPercentile": alarm.evaluate_low_sample_count_percentile,
    }
    series, period, statistic, unit = measured(alarm)
    metric = {"Namespace": series.namespace, "MetricName": series.name}
    named = [{"Name": name, "Value": value} for name, value in series.dimensions]
    if alarm.metric_data_queries:
        (query,) = alarm.metric_data_queries
        wanted = {"Metric": {**metric, "Dimensions": named}, "Period": int(period), "Stat": statistic, "Unit": unit}
        described["Metrics"] = [{"Id": query.id, "MetricStat": _given(wanted), "ReturnData": True}]
    else:
        described |= {**metric, "Dimensions": named, "Period": int(period), "Unit": unit}
        described |= {"Statistic": alarm.statistic, "ExtendedStatistic": alarm.extended_statistic}
    return _given(described)


def _given(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


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
