"""The state of an alarm from datapoints: AWS's tables of missing datapoints, and the rules of composite alarms."""

import pytest

from local_test.platform.calls import ValidationError
from local_test.platform.monitoring.alarms import ALARM, OK, UNKNOWN, Rule, composite, evaluate

KEPT = "the state before"
# docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarms-and-missing-data.html: datapoints of 5 periods (X is
# breaching, - is missing), then the states by TreatMissingData missing, ignore, breaching and notBreaching.
THREE_OF_THREE = [
    ("0-X-X", OK, OK, OK, OK),
    ("0----", OK, OK, OK, OK),
    ("-----", UNKNOWN, KEPT, ALARM, OK),
    ("0XX-X", ALARM, ALARM, ALARM, ALARM),
    ("--X--", ALARM, KEPT, ALARM, OK),
]
TWO_OF_THREE = [
    ("0-X-X", ALARM, ALARM, ALARM, ALARM),
    ("00X0X", ALARM, ALARM, ALARM, ALARM),
    ("0-X--", OK, OK, ALARM, OK),
    ("----0", OK, OK, ALARM, OK),
    ("---X-", ALARM, KEPT, ALARM, OK),
]
ROWS = [(3, *row) for row in THREE_OF_THREE] + [(2, *row) for row in TWO_OF_THREE]


@pytest.mark.parametrize(("datapoints", "pattern", "missing", "ignore", "breaching", "not_breaching"), ROWS)
def test_missing_datapoints_are_treated_as_in_awss_tables(
    datapoints: int, pattern: str, missing: str, ignore: str, breaching: str, not_breaching: str
) -> None:
    values = [(60.0 * number, {"X": 9.0, "0": 0.0}.get(each)) for number, each in enumerate(pattern)]

    def state(treatment: str) -> str:
        rule = Rule(comparison="GreaterThanThreshold", threshold=5, periods=3, datapoints=datapoints, missing=treatment)
        assert rule.window == len(values)
        return evaluate(rule, values, KEPT).state

    assert [state(each) for each in ("missing", "ignore", "breaching", "notBreaching")] == [
        missing,
        ignore,
        breaching,
        not_breaching,
    ]


@pytest.mark.parametrize(
    ("comparison", "states"),
    [
        ("GreaterThanThreshold", [OK, OK, ALARM]),
        ("GreaterThanOrEqualToThreshold", [OK, ALARM, ALARM]),
        ("LessThanThreshold", [ALARM, OK, OK]),
        ("LessThanOrEqualToThreshold", [ALARM, ALARM, OK]),
    ],
)
def test_a_value_is_compared_with_the_threshold(comparison: str, states: list[str]) -> None:
    rule = Rule(comparison=comparison, threshold=5, periods=1, datapoints=1)

    assert [evaluate(rule, [(0.0, value)], OK).state for value in (4.0, 5.0, 6.0)] == states


def test_a_reason_has_the_datapoints_and_the_threshold() -> None:
    """In CloudWatch's words, newest datapoint first."""
    rule = Rule(comparison="GreaterThanOrEqualToThreshold", threshold=1.0, periods=2, datapoints=2)

    verdict = evaluate(rule, [(1_800_000_000.0, 3.0), (1_800_000_060.0, 4.0)], OK)

    assert verdict.reason.startswith(
        "Threshold Crossed: 2 out of the last 2 datapoints [4.0 (15/01/27 08:01:00), 3.0 (15/01/27 08:00:00)] were "
        "greater than or equal to the threshold (1.0)"
    )
    assert verdict.data["recentDatapoints"] == [3.0, 4.0]


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        ('ALARM("a")', True),
        ("ALARM(a) AND ALARM(b)", False),
        ('ALARM("a") AND (OK("b") OR FALSE)', True),
        ("NOT ALARM(b) AND INSUFFICIENT_DATA(c)", True),
        ("NOT (ALARM(a) OR ALARM(b))", False),
    ],
)
def test_a_composite_rule_reads_the_states_of_alarms(rule: str, holds: bool) -> None:
    assert composite(rule, {"a": ALARM, "b": OK, "c": UNKNOWN}) == holds


@pytest.mark.parametrize("rule", ["", "ALARM(", "ALARM(a) ALARM(b)", "(ALARM(a)", "a OR b", "AND ALARM(a)", "ALARM(z)"])
def test_a_composite_rule_that_is_not_valid_is_refused(rule: str) -> None:
    with pytest.raises(ValidationError, match="AlarmRule"):
        composite(rule, {"a": ALARM, "b": OK})
