"""Alarms: which state follows from the datapoints of a metric, or from the states of other alarms.

docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarm-evaluation.html (M out of N) and
.../alarms-and-missing-data.html (the tables of missing datapoints, which the unit test repeats).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from local_test.platform.calls import ValidationError

OK, ALARM, UNKNOWN = "OK", "ALARM", "INSUFFICIENT_DATA"
MORE = 2  # periods that are read besides EvaluationPeriods; in AWS's example 5 are read for 3
COMPARISONS: Mapping[str, tuple[str, Callable[[float, float], bool]]] = {
    "GreaterThanOrEqualToThreshold": ("greater than or equal to", lambda value, limit: value >= limit),
    "GreaterThanThreshold": ("greater than", lambda value, limit: value > limit),
    "LessThanThreshold": ("less than", lambda value, limit: value < limit),
    "LessThanOrEqualToThreshold": ("less than or equal to", lambda value, limit: value <= limit),
}
MISSING = ("missing", "ignore", "breaching", "notBreaching")
TOKEN = re.compile(
    r"\s*(?:(AND|OR|NOT|TRUE|FALSE)\b|(ALARM|OK|INSUFFICIENT_DATA)\s*\(\s*(\"[^\"]+\"|[^\s()]+)\s*\)|([()]))"
)

Values = Sequence[tuple[float, float | None]]  # start of a period and its value; oldest first, None: no datapoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The part of a metric alarm that decides its state."""

    comparison: str
    threshold: float
    periods: int  # EvaluationPeriods
    datapoints: int  # DatapointsToAlarm
    missing: str = "missing"  # TreatMissingData

    @property
    def window(self) -> int:
        """The number of periods that an evaluation reads."""
        return self.periods + MORE


@dataclass(frozen=True, slots=True)
class Verdict:
    """A state, with the reason that DescribeAlarms shows."""

    state: str
    reason: str
    data: Mapping[str, Any]


def evaluate(rule: Rule, values: Values, now: str) -> Verdict:
    """The state after the last `window` periods; `now` is the state before, which treating data as `ignore` keeps."""
    _, breaches = COMPARISONS[rule.comparison]
    known = [(at, value) for at, value in values if value is not None][-rule.periods :]
    breaching = sum(breaches(value, rule.threshold) for _, value in known)
    absent = rule.periods - len(known)
    if not absent:
        state = ALARM if breaching >= rule.datapoints else OK
    elif rule.missing == "breaching":
        state = ALARM if breaching + absent >= rule.datapoints else OK
    elif rule.missing == "notBreaching":
        state = ALARM if breaching >= rule.datapoints else OK
    elif breaching >= rule.datapoints:
        state = ALARM
    elif breaching < len(known):
        state = OK
    elif rule.missing == "ignore":
        state = now
    else:
        state = ALARM if known else UNKNOWN
    return Verdict(state, _reason(rule, known, breaching, absent, state), _data(rule, known))


def _reason(rule: Rule, known: Sequence[tuple[float, float]], breaching: int, absent: int, state: str) -> str:
    words, _ = COMPARISONS[rule.comparison]
    if not known:
        if state == UNKNOWN:
            return "Insufficient Data: no datapoints were received for the last evaluation periods."
        treated = {"breaching": "Breaching", "notBreaching": "NonBreaching"}.get(rule.missing, "Ignored")
        return (
            f"Threshold Crossed: no datapoints were received for {rule.periods} period{'s'[: rule.periods != 1]} and "
            f"{rule.periods} missing datapoint{'s were' if rule.periods != 1 else ' was'} treated as [{treated}]."
        )
    counted = breaching if state == ALARM else len(known) - breaching
    shown = ", ".join(f"{value} ({_moment(at):%d/%m/%y %H:%M:%S})" for at, value in reversed(known))
    total = rule.periods if len(known) == rule.periods else len(known)
    relation = f"{'was' if counted == 1 else 'were'}{'' if state == ALARM else ' not'} {words} the threshold"
    change = f"minimum {rule.datapoints} datapoint{'s'[: rule.datapoints != 1]} for OK -> ALARM transition"
    more = f" {absent} missing datapoint{'s'[: absent != 1]}: {rule.missing}." if absent else ""
    return (
        f"Threshold Crossed: {counted} out of the last {total} datapoints [{shown}] {relation} ({rule.threshold}) "
        f"({change}).{more}"
    )


def _data(rule: Rule, known: Sequence[tuple[float, float]]) -> dict[str, Any]:
    return {
        "version": "1.0",
        "queryDate": _moment(datetime.now(UTC).timestamp()).isoformat(timespec="milliseconds"),
        "recentDatapoints": [value for _, value in known],
        "evaluatedDatapoints": [
            {"timestamp": _moment(at).isoformat(timespec="milliseconds"), "value": value} for at, value in known
        ],
        "threshold": rule.threshold,
    }


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


# Composite alarms


def composite(rule: str, states: Mapping[str, str]) -> bool:
    """Whether an alarm rule holds. `states` has the states of alarms by name and by ARN. Raises ValidationError.

    A rule has ALARM("name"), OK(...), INSUFFICIENT_DATA(...), TRUE, FALSE, AND, OR, NOT and parentheses.
    """
    tokens = _tokens(rule)
    value, rest = _either(tokens, states)
    if rest:
        raise _invalid(rule)
    return value


def names(rule: str) -> list[str]:
    """The alarms that a rule names. Raises ValidationError for a rule that is not valid."""
    composite(rule, _AnyState())
    return [each[1] for each in _tokens(rule) if each[0] in (OK, ALARM, UNKNOWN)]


class _AnyState(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return OK


Token = tuple[str, str]


def _tokens(rule: str) -> list[Token]:
    found: list[Token] = []
    at = 0
    while rule[at:].strip():
        matched = TOKEN.match(rule, at)
        if not matched:
            raise _invalid(rule)
        word, state, name, bracket = matched.groups()
        found.append((state, name.strip('"')) if state else (word or bracket, ""))
        at = matched.end()
    return found


def _either(tokens: list[Token], states: Mapping[str, str]) -> tuple[bool, list[Token]]:
    value, rest = _both(tokens, states)
    while rest and rest[0][0] == "OR":
        other, rest = _both(rest[1:], states)
        value = value or other
    return value, rest


def _both(tokens: list[Token], states: Mapping[str, str]) -> tuple[bool, list[Token]]:
    value, rest = _single(tokens, states)
    while rest and rest[0][0] == "AND":
        other, rest = _single(rest[1:], states)
        value = value and other
    return value, rest


def _single(tokens: list[Token], states: Mapping[str, str]) -> tuple[bool, list[Token]]:
    if not tokens:
        raise _invalid("")
    (kind, name), rest = tokens[0], tokens[1:]
    if kind == "NOT":
        value, rest = _single(rest, states)
        return not value, rest
    if kind == "(":
        value, rest = _either(rest, states)
        if not rest or rest[0][0] != ")":
            raise _invalid("")
        return value, rest[1:]
    if kind in ("TRUE", "FALSE"):
        return kind == "TRUE", rest
    if kind in (OK, ALARM, UNKNOWN):
        try:
            return states[name] == kind, rest
        except KeyError:
            raise ValidationError(f"AlarmRule names the alarm {name}, which does not exist.") from None
    raise _invalid("")


def _invalid(rule: str) -> ValidationError:
    return ValidationError(
        f'AlarmRule {rule} is not valid: write ALARM("name"), OK("name") or INSUFFICIENT_DATA("name"), joined by '
        "AND, OR, NOT and parentheses."
    )


def compact(data: Mapping[str, Any]) -> str:
    """StateReasonData, as one line of JSON."""
    return json.dumps(data, separators=(",", ":"))
