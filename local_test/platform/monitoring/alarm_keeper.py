"""Evaluates the alarms of an emulator in each of their periods, and records their history."""

import json
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from moto.cloudwatch.models import Alarm

from local_test.platform.calls import ValidationError
from local_test.platform.clock import Clock
from local_test.platform.events import Events
from local_test.platform.monitoring import alarms
from local_test.platform.monitoring.alarms import ALARM, COMPARISONS, OK, UNKNOWN, Rule, Values, Verdict
from local_test.platform.monitoring.metric_store import Metrics, SeriesName, dimensions

HISTORY = 100  # items kept of an alarm
Action = Callable[[str, str, "Watched", str], None]  # account, region, alarm, ARN of the action


@dataclass(slots=True, eq=False)
class Watched:
    """An alarm, as moto keeps it, and what the evaluation adds to it."""

    alarm: Alarm
    history: list[dict[str, Any]] = field(default_factory=list)  # AlarmHistoryItems, oldest first
    period: int = -1  # number of the last period that was evaluated
    not_before: float = 0.0  # time of the next evaluation after SetAlarmState
    values: Values = ()  # of the last evaluation

    @property
    def latest(self) -> float | None:
        """The newest datapoint of the last evaluation."""
        return next((value for _, value in reversed(self.values) if value is not None), None)


class AlarmKeeper:
    """The alarms of all accounts and regions. `evaluate` is called by the monitor's thread alone."""

    def __init__(self, clock: Clock, events: Events, metrics: Callable[[str, str], Metrics], act: Action) -> None:
        self._clock = clock
        self._events = events
        self._metrics = metrics
        self._act = act
        self._watched: dict[tuple[str, str], tuple[MutableMapping[str, Alarm], dict[str, Watched]]] = {}

    def created(self, account: str, region: str, records: MutableMapping[str, Alarm], name: str) -> None:
        """moto has a new record of an alarm. An alarm that exists already keeps its state, as on CloudWatch."""
        _, known = self._watched.setdefault((account, region), (records, {}))
        alarm, before = records[name], known.get(name)
        watched = Watched(alarm)
        if before is not None:
            watched.history = before.history
            for member in ("state_value", "state_reason", "state_reason_data", "state_updated_timestamp"):
                setattr(alarm, member, getattr(before.alarm, member))
        else:
            alarm.state_value = UNKNOWN
        _remember(watched, "ConfigurationUpdate", f'Alarm "{name}" {"updated" if before else "created"}', {})
        known[name] = watched

    def deleted(self, account: str, region: str, names: Iterable[str]) -> None:
        """A later alarm of the same name is a new one."""
        for name in names:
            self._known(account, region).pop(name, None)

    def set_state(self, account: str, region: str, name: str, verdict: Verdict) -> None:
        """SetAlarmState: the state holds until the alarm is evaluated one period later."""
        watched = self._known(account, region).get(name)
        if watched is not None:
            period = watched.alarm.period or 60
            watched.not_before = self._clock.now() + self._clock.real(period)
            self._change(account, region, watched, verdict)

    def history(self, account: str, region: str) -> list[dict[str, Any]]:
        """The history of all alarms, newest first."""
        found = [item for each in self._known(account, region).values() for item in each.history]
        return sorted(found, key=lambda item: item["Timestamp"], reverse=True)

    def evaluate(self) -> None:
        """Evaluates each alarm that has a complete period since its last evaluation."""
        for (account, region), (records, known) in list(self._watched.items()):
            for name in [each for each in list(known) if each not in records]:
                known.pop(name, None)
            for watched in list(known.values()):
                if watched.alarm.rule is None:
                    self._evaluate_metric(account, region, watched)
            for watched in list(known.values()):
                if watched.alarm.rule is not None:
                    self._evaluate_composite(account, region, watched, known)

    def _evaluate_metric(self, account: str, region: str, watched: Watched) -> None:
        alarm, now = watched.alarm, self._clock.now()
        name, period, statistic, unit = measured(alarm)
        length = self._clock.real(period)
        number = int(now // length)
        if number == watched.period or now < watched.not_before:
            return
        watched.period = number
        rule = rule_of(alarm)
        start, end = (number - rule.window) * length, number * length
        found = self._metrics(account, region).datapoints(name, start, end, length, unit)
        values = {round(each.start / length): each.values.statistic(statistic) for each in found}
        watched.values = [(each * length, values.get(each)) for each in range(number - rule.window, number)]
        verdict = alarms.evaluate(rule, watched.values, alarm.state_value)
        if verdict.state != alarm.state_value:
            self._change(account, region, watched, verdict)
        elif verdict.state == ALARM:
            self._repeat(account, region, watched)

    def _evaluate_composite(self, account: str, region: str, watched: Watched, known: Mapping[str, Watched]) -> None:
        if self._clock.now() < watched.not_before:
            return
        states = {each.alarm.name: each.alarm.state_value for each in known.values()}
        states |= {each.alarm.alarm_arn: each.alarm.state_value for each in known.values()}
        try:
            state = ALARM if alarms.composite(str(watched.alarm.rule), states) else OK
            reason = f"{watched.alarm.alarm_arn} evaluated its rule to {state}: {watched.alarm.rule}"
        except ValidationError as error:  # an alarm that the rule names was deleted
            state, reason = UNKNOWN, error.message
        if state != watched.alarm.state_value:
            self._change(account, region, watched, Verdict(state, reason, {}))

    def _change(self, account: str, region: str, watched: Watched, verdict: Verdict) -> None:
        alarm, before = watched.alarm, watched.alarm.state_value
        data = alarms.compact(verdict.data)
        old = {"stateValue": before, "stateReason": alarm.state_reason}
        new = {"stateValue": verdict.state, "stateReason": verdict.reason, "stateReasonData": verdict.data}
        _remember(
            watched,
            "StateUpdate",
            f"Alarm updated from {before} to {verdict.state}",
            {"version": "1.0", "oldState": old, "newState": new},
        )
        alarm.state_value, alarm.state_reason, alarm.state_reason_data = verdict.state, verdict.reason, data
        alarm.state_updated_timestamp = datetime.now(UTC).replace(tzinfo=None)  # as moto writes it
        self._events.emit("alarm", alarm.name, f"{before} -> {verdict.state}: {verdict.reason}")
        if alarm.actions_enabled and before != verdict.state:
            for arn in _actions(alarm, verdict.state):
                self._carry_out(account, region, watched, arn)

    def _repeat(self, account: str, region: str, watched: Watched) -> None:
        """Scaling policies are triggered in each period in which the alarm stays in its state."""
        if watched.alarm.actions_enabled:
            for arn in _actions(watched.alarm, ALARM):
                if ":scalingPolicy:" in arn:
                    self._act(account, region, watched, arn)

    def _carry_out(self, account: str, region: str, watched: Watched, arn: str) -> None:
        try:
            self._act(account, region, watched, arn)
            done, problem = "Successfully executed", ""
        except ValidationError as error:
            done, problem = "Failed to execute", error.message
            self._events.emit("alarm", watched.alarm.name, f"action {arn} failed: {problem}")
        _remember(watched, "Action", f"{done} action {arn}", {"actionState": done.split()[0], "error": problem})

    def _known(self, account: str, region: str) -> dict[str, Watched]:
        return self._watched.get((account, region), ({}, {}))[1]


def measured(alarm: Alarm) -> tuple[SeriesName, float, str, str | None]:
    """The series that a metric alarm watches, its period in seconds, the statistic and the unit."""
    if alarm.metric_data_queries:
        wanted = alarm.metric_data_queries[0].metric_stat
        assert wanted is not None  # PutMetricAlarm refuses expressions
        named = {str(each.name): str(each.value) for each in wanted.metric.dimensions}
        series = SeriesName(wanted.metric.namespace, wanted.metric.metric_name, dimensions(named))
        return series, float(wanted.period), wanted.stat, wanted.unit
    named = {str(each.name): str(each.value) for each in alarm.dimensions}
    series = SeriesName(alarm.namespace, alarm.metric_name, dimensions(named))
    return series, float(alarm.period), alarm.statistic or alarm.extended_statistic or "Average", alarm.unit


def rule_of(alarm: Alarm) -> Rule:
    """The rule of a metric alarm."""
    periods = int(alarm.evaluation_periods)
    return Rule(
        comparison=alarm.comparison_operator,
        threshold=float(alarm.threshold),
        periods=periods,
        datapoints=int(alarm.datapoints_to_alarm or periods),
        missing=alarm.treat_missing_data or "missing",
    )


def check(params: Mapping[str, Any]) -> None:
    """Raises ValidationError for a PutMetricAlarm that is not valid or not supported."""
    name = params["AlarmName"]
    queries = params.get("Metrics") or ()
    if any("Expression" in each for each in queries) or len(queries) > 1 or params.get("ThresholdMetricId"):
        raise ValidationError(
            f"Alarm {name}: metric math and anomaly detection are not supported by this emulator: use one metric with "
            "Namespace, MetricName, Dimensions, Period and Statistic."
        )
    if params["ComparisonOperator"] not in COMPARISONS:
        raise ValidationError(f"Alarm {name}: ComparisonOperator must be one of {', '.join(COMPARISONS)}.")
    if params.get("TreatMissingData", "missing") not in alarms.MISSING:
        raise ValidationError(f"Alarm {name}: TreatMissingData must be one of {', '.join(alarms.MISSING)}.")
    if params.get("DatapointsToAlarm", 1) > params["EvaluationPeriods"]:
        raise ValidationError(f"Alarm {name}: DatapointsToAlarm must be at most EvaluationPeriods.")
    if not queries and not (params.get("MetricName") and params.get("Namespace") and params.get("Period")):
        raise ValidationError(f"Alarm {name}: MetricName, Namespace and Period are required.")
    if not queries and bool(params.get("Statistic")) == bool(params.get("ExtendedStatistic")):
        raise ValidationError(f"Alarm {name}: give either Statistic or ExtendedStatistic.")


def _actions(alarm: Alarm, state: str) -> list[str]:
    by_state = {ALARM: alarm.alarm_actions, OK: alarm.ok_actions, UNKNOWN: alarm.insufficient_data_actions}
    return list(by_state[state] or ())


def _remember(watched: Watched, kind: str, summary: str, data: Mapping[str, Any]) -> None:
    watched.history.append(
        {
            "AlarmName": watched.alarm.name,
            "AlarmType": "MetricAlarm" if watched.alarm.rule is None else "CompositeAlarm",
            "Timestamp": datetime.now(UTC),
            "HistoryItemType": kind,
            "HistorySummary": summary,
            "HistoryData": json.dumps(data),
        }
    )
    del watched.history[:-HISTORY]
