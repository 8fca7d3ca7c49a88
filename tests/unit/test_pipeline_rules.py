"""Pipelines on the emulator, the pure parts: order, branches, conditions, caching, retries, expressions."""

import datetime as dt
import itertools
import json
import random
import re
from typing import Any

import pytest

from deploy.aws import Later, service_model
from deploy.errors import SpecError
from deploy.pipelines import validation
from deploy.pipelines.expressions import found, parts_of, paths, resolved
from local_test.pipelines import rules
from local_test.pipelines.steps import job_name

NOW = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
FUNCTION = "arn:aws:lambda:us-east-1:123456789012:function:f"


def step(name: str, *before: str, arguments: Any = None, **more: Any) -> dict[str, Any]:
    given = {"Name": name, "Type": "Lambda", "FunctionArn": FUNCTION, "Arguments": arguments or {}}
    return {**given, "DependsOn": list(before), **more}


def condition(name: str, *conditions: Any, then: Any = (), otherwise: Any = (), **more: Any) -> dict[str, Any]:
    arguments = {"Conditions": list(conditions), "IfSteps": list(then), "ElseSteps": list(otherwise)}
    return {"Name": name, "Type": "Condition", "Arguments": arguments, **more}


def definition(*steps: Any, **more: Any) -> dict[str, Any]:
    return {"Version": "2020-12-01", "Steps": list(steps), **more}


def compare(kind: str, left: Any, right: Any) -> dict[str, Any]:
    return {"Type": kind, "LeftValue": left, "RightValue": right}


ALWAYS = compare("Equals", 1, 1)


def simulated(made: dict[str, Any], outcome: Any, draw: random.Random) -> dict[str, str]:
    """The end of each step if the steps end in a random order; `outcome(name)` is a status or a condition's value."""
    placed, waits = validation.steps_of(made), validation.order(made)
    statuses: dict[str, str] = {}
    outcomes: dict[str, bool] = {}
    running: list[str] = []
    while True:
        ready, never = rules.next_steps(placed, waits, statuses, outcomes)
        for name in ready:
            assert all(statuses[each] == "Succeeded" for each in waits[name]), name
            statuses[name] = "Executing"
            running.append(name)
        statuses |= dict.fromkeys(never, "NotRun")
        if never:
            continue
        if not running:
            assert set(statuses) == set(placed)
            return statuses
        name = running.pop(draw.randrange(len(running)))
        ended = outcome(name)
        if isinstance(ended, bool):
            outcomes[name] = ended
        statuses[name] = "Succeeded" if isinstance(ended, bool) else ended


def test_every_step_ends_or_is_not_run_in_whatever_order_steps_end() -> None:
    """Random graphs: a step runs after all steps that it waits for, and only if all of them have succeeded."""
    for seed in range(200):
        draw = random.Random(seed)
        names = [f"S{number}" for number in range(draw.randrange(1, 9))]
        steps = [
            step(name, *draw.sample(names[:number], draw.randrange(number + 1))) for number, name in enumerate(names)
        ]
        draw.shuffle(steps)
        failing = set(draw.sample(names, draw.randrange(len(names))))
        ended = simulated(
            definition(*steps), lambda name, failing=failing: "Failed" if name in failing else "Succeeded", draw
        )
        for each in steps:
            lost = any(ended[before] != "Succeeded" for before in each["DependsOn"])
            assert (ended[each["Name"]] == "NotRun") == lost


def test_only_the_branch_that_a_condition_takes_is_run() -> None:
    """With what depends on it; the steps of a branch may be conditions too."""
    inner = condition("Inner", ALWAYS, then=[step("Deep")], otherwise=[step("Other")])
    made = definition(
        step("AfterDeep", "Deep"),
        condition("Outer", ALWAYS, then=[inner], otherwise=[step("Else")]),
        step("AfterElse", "Else"),
    )
    for outer, nested in itertools.product((True, False), repeat=2):
        ended = simulated(
            made, lambda name, o=outer, i=nested: {"Outer": o, "Inner": i}.get(name, "Succeeded"), random.Random(1)
        )
        ran = {name for name, status in ended.items() if status == "Succeeded"}
        expected = (
            {"Outer", "Else", "AfterElse"}
            if not outer
            else {"Outer", "Inner"} | ({"Deep", "AfterDeep"} if nested else {"Other"})
        )
        assert ran == expected


@pytest.mark.parametrize(
    ("given", "holds"),
    [
        (compare("Equals", "a", "a"), True),
        (compare("Equals", 1, 1.0), True),
        (compare("Equals", True, False), False),
        (compare("GreaterThan", 2, 1.5), True),
        (compare("GreaterThanOrEqualTo", 2, 2), True),
        (compare("LessThan", 2, 2), False),
        (compare("LessThanOrEqualTo", 5.9, 6.0), True),
        ({"Type": "In", "QueryValue": "b", "Values": ["a", "b"]}, True),
        ({"Type": "In", "QueryValue": 1, "Values": ["1", True]}, False),
        ({"Type": "Not", "Condition": compare("Equals", 1, 2)}, True),
        ({"Type": "Or", "Conditions": [compare("Equals", 1, 2), compare("LessThan", 1, 2)]}, True),
        ({"Type": "Or", "Conditions": [compare("Equals", 1, 2)]}, False),
    ],
)
def test_conditions_compare_values_as_sagemaker_does(given: dict[str, Any], holds: bool) -> None:
    validation.check(definition(condition("C", given, then=[step("A")])))
    assert rules.holds([given]) == holds
    assert rules.holds([ALWAYS, given]) == holds


@pytest.mark.parametrize(("left", "right"), [("1", 1), (True, 1), ("a", 0.5)])
def test_values_of_different_types_are_an_error(left: Any, right: Any) -> None:
    with pytest.raises(SpecError, match="have different types"):
        rules.holds([compare("Equals", left, right)])


def test_a_cache_key_changes_with_the_arguments_that_count_and_with_no_other() -> None:
    arguments = {
        "AlgorithmSpecification": {"TrainingImage": "i", "TrainingInputMode": "File"},
        "HyperParameters": {"a": "1"},
        "InputDataConfig": [{"ChannelName": "train"}],
        "OutputDataConfig": {"S3OutputPath": "s3://b/1"},
        "ResourceConfig": {"InstanceType": "ml.m5.large"},
    }
    train = {"Name": "T", "Type": "Training", "CacheConfig": {"Enabled": True, "ExpireAfter": "PT1H"}}

    key = rules.cache_key(train, arguments)

    for name in arguments:
        changed = rules.cache_key(train, {**arguments, name: "other"})
        assert (changed != key) == (name in ("AlgorithmSpecification", "HyperParameters", "InputDataConfig")), name
    assert rules.cache_key(train, dict(reversed(arguments.items()))) == key
    assert rules.cache_key({**train, "Name": "U"}, arguments) != key
    assert rules.cache_key({**train, "CacheConfig": {"Enabled": False}}, arguments) == ""
    assert rules.cache_key({**train, "Type": "Lambda"}, arguments) == ""
    tuning, part = {**train, "Type": "Tuning"}, {"StaticHyperParameters": {"a": "1"}, "RoleArn": "r"}
    others: list[dict[str, Any]] = [{}, {"RoleArn": "s"}, {"StaticHyperParameters": {}}]
    keys = [rules.cache_key(tuning, {"TrainingJobDefinition": {**part, **more}}) for more in others]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("PT1H", dt.timedelta(hours=1)),
        ("P30D", dt.timedelta(days=30)),
        ("30d", dt.timedelta(days=30)),
        ("T16m", dt.timedelta(minutes=16)),
        ("30dT5h", dt.timedelta(days=30, hours=5)),
        ("P1W", dt.timedelta(weeks=1)),
        ("P1Y2M", dt.timedelta(days=365 + 60)),
    ],
)
def test_a_cache_expires_after_a_duration(text: str, ago: dt.timedelta) -> None:
    assert rules.oldest_usable({"CacheConfig": {"Enabled": True, "ExpireAfter": text}}, NOW) == NOW - ago


def test_a_cache_without_a_duration_never_expires() -> None:
    assert rules.oldest_usable({"CacheConfig": {"Enabled": True}}, NOW) < NOW - dt.timedelta(days=365_000)
    assert rules.oldest_usable({"CacheConfig": {"ExpireAfter": "P9999Y"}}, NOW) < NOW - dt.timedelta(days=365_000)


def test_a_step_is_retried_with_growing_pauses_as_its_policy_says() -> None:
    policies = [
        {"ExceptionType": ["Step.THROTTLING"], "IntervalSeconds": 2, "BackoffRate": 3.0, "MaxAttempts": 2},
        {
            "ExceptionType": ["SageMaker.JOB_INTERNAL_ERROR"],
            "IntervalSeconds": 30,
            "BackoffRate": 1.0,
            "ExpireAfterMin": 1,
        },
    ]

    def pauses(exception: str, *elapsed: float) -> list[float | None]:
        return [rules.pause_before_retry(policies, exception, number, at) for number, at in enumerate(elapsed, 1)]

    assert pauses("Step.THROTTLING", 0, 0, 0) == [2, 6, None]
    assert pauses("SageMaker.JOB_INTERNAL_ERROR", 0, 30, 31) == [30, 30, None]
    assert pauses("SageMaker.CAPACITY_ERROR", 0) == pauses("", 0) == [None]


def test_errors_have_the_exceptions_of_retry_policies() -> None:
    assert rules.exception_of_call("ThrottlingException", 400) == "Step.THROTTLING"
    assert rules.exception_of_call("ResourceLimitExceeded", 400) == "SageMaker.RESOURCE_LIMIT"
    assert rules.exception_of_call("InternalFailure", 500) == "Step.SERVICE_FAULT"
    assert rules.exception_of_call("ValidationException", 400) == ""
    assert rules.exception_of_job("InternalServerError: x") == "SageMaker.JOB_INTERNAL_ERROR"
    assert rules.exception_of_job("CapacityError: x") == "SageMaker.CAPACITY_ERROR"
    assert rules.exception_of_job("AlgorithmError: x") == ""


def test_outputs_have_their_declared_types() -> None:
    assert [
        rules.typed(*pair) for pair in (("3", "Integer"), ("0.5", "Float"), ("True", "Boolean"), (1, "String"))
    ] == [3, 0.5, True, "1"]
    for value, kind in (("x", "Integer"), (None, "Float"), ("maybe", "Boolean")):
        with pytest.raises(SpecError, match=f"is not of type {kind}"):
            rules.typed(value, kind)


def test_a_property_file_and_a_file_at_an_s3_uri_are_read() -> None:
    known = {"Steps.E.PropertyFiles.report": "s3://b/report.json", "Parameters.B": "b"}.__getitem__
    files = {"s3://b/report.json": {"metrics": {"mse": {"value": 4.5}}, "list": [{"a.b": 1}]}}
    report = {"Get": "Steps.E.PropertyFiles.report"}
    join = {"Std:Join": {"On": "/", "Values": ["s3:/", {"Get": "Parameters.B"}, "report.json"]}}

    def read(source: dict[str, Any], path: str) -> Any:
        return resolved({"Std:JsonGet": {**source, "Path": path}}, known, "Here", files.__getitem__)

    assert read({"PropertyFile": report}, "metrics.mse.value") == 4.5
    assert read({"S3Uri": join}, "list[0]['a.b']") == 1
    with pytest.raises(SpecError, match=r"Here: Std:JsonGet 'metrics\.rmse' in s3://b/report\.json: 'rmse' not found"):
        read({"PropertyFile": report}, "metrics.rmse")
    with pytest.raises(SpecError, match="Std:JsonGet must be"):
        read({}, "metrics")
    assert list(paths({"Std:JsonGet": {"PropertyFile": report, "Path": "a"}})) == ["Steps.E.PropertyFiles.report"]


def test_paths_are_read_back_as_they_are_written() -> None:
    draw = random.Random(3)
    for _ in range(300):
        known: list[str | int] = ["a", "B-c", "d e", 0, 12]
        parts = [draw.choice(known) for _ in range(draw.randrange(1, 6))]
        text = "".join(
            f"[{part}]" if isinstance(part, int) else draw.choice([f".{part}", f"['{part}']", f'["{part}"]'])
            for part in parts
        )
        assert parts_of(text) == parts
        value: Any = 7
        for part in reversed(parts):
            value = [None] * part + [value] if isinstance(part, int) else {part: value}
        assert found(value, text) == 7


def test_the_names_of_jobs_are_valid_and_have_the_execution_and_the_step() -> None:
    for name in ("A", "Train_Model--x", "x" * 64, "_"):
        made = job_name("abcdefghijkl", {"Name": name, "Type": "Training"}, {})
        assert made.startswith("pipelines-abcdefghijkl-")
        assert len(made) <= 63
        assert re.fullmatch(service_model().shape_for("TrainingJobName").metadata["pattern"], made)
        assert "--" not in made
    made = job_name("abcdefghijkl", {"Name": "T", "Type": "Training"}, {"TrainingJobName": "mine_" * 20})
    assert made.startswith("mine-mine-")
    assert "-abcdefghijkl-" in made
    assert len(made) <= 63


TRAIN = {
    "AlgorithmSpecification": {"TrainingImage": "serve", "TrainingInputMode": "File"},
    "RoleArn": "arn:aws:iam::123456789012:role/r",
    "OutputDataConfig": {"S3OutputPath": "s3://b/out"},
    "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
    "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
}


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([condition("C", then=[step("A")])], "Steps.C.Arguments.Conditions must be a list of at least one condition"),
        (
            [condition("C", {"Type": "Equal"}, then=[step("A")])],
            "Conditions[0].Type: unknown type of condition 'Equal'; did you mean Equals?",
        ),
        ([condition("C", {"Type": "Equals", "LeftValue": 1})], "Conditions[0].RightValue is missing"),
        (
            [condition("C", {"Type": "Or", "Conditions": [{"Type": "Not", "Condition": 1}]})],
            "Conditions[0].Conditions[0].Condition.Type",
        ),
        ([condition("C", ALWAYS, then=[step("A")], otherwise=[step("A")])], "two steps have the name 'A'"),
        ([condition("C", ALWAYS, then=[step("A", "Z")])], "Steps.A.DependsOn: unknown step 'Z'"),
        ([condition("C", ALWAYS, then=[step("A")], DependsOn=["A"])], "cycle: C, A wait for one another"),
        ([{"Name": "F", "Type": "Fail", "Arguments": {}}], "Steps.F.Arguments.ErrorMessage is missing"),
        (
            [{"Name": "F", "Type": "Fail", "Arguments": {"ErrorMessage": "x"}}, step("A", "F")],
            "no step can run after the Fail step F",
        ),
        ([{"Name": "Q", "Type": "Callback", "Arguments": {}}], "Steps.Q.SqsQueueUrl is missing"),
        (
            [step("A", OutputParameters=[{"OutputName": "x"}])],
            "Steps.A.OutputParameters[0] must have the keys OutputName, OutputType",
        ),
        ([step("A", OutputParameters=[{"OutputName": "x", "OutputType": "Text"}])], "OutputType: unknown type 'Text'"),
        (
            [
                {
                    "Name": "T",
                    "Type": "Training",
                    "Arguments": TRAIN,
                    "CacheConfig": {"Enabled": True, "ExpireAfter": "soon"},
                }
            ],
            "ExpireAfter: 'soon' must be a duration",
        ),
        (
            [
                {
                    "Name": "T",
                    "Type": "Training",
                    "Arguments": TRAIN,
                    "RetryPolicies": [{"ExceptionType": ["Step.THROTTLE"]}],
                }
            ],
            "did you mean Step.THROTTLING?",
        ),
        (
            [
                {"Name": "T", "Type": "Training", "Arguments": TRAIN},
                step("A", arguments={"x": {"Get": "Steps.T.PropertyFiles.r"}}),
            ],
            "unknown property file 'r' of T",
        ),
        (
            [
                step(
                    "A",
                    arguments={"x": {"Std:JsonGet": {"PropertyFile": {"Get": "Steps.Z.PropertyFiles.r"}, "Path": "a"}}},
                )
            ],
            "unknown step 'Z'",
        ),
        (
            [condition("C", ALWAYS), step("A", arguments={"x": {"Get": "Steps.C.Outcom"}})],
            "unknown property 'Outcom' of a condition; did you mean Outcome?",
        ),
    ],
)
def test_invalid_steps_are_named_with_their_path(steps: list[Any], said: str) -> None:
    with pytest.raises(SpecError) as refused:
        validation.check(definition(*steps))
    assert said in str(refused.value)


def test_a_value_from_a_json_file_may_stand_where_a_number_is_expected() -> None:
    """Its type is unknown until the file exists."""
    count = {
        "Std:JsonGet": {
            "S3Uri": {"Std:Join": {"On": "/", "Values": ["s3://b", {"Get": "Execution.PipelineName"}]}},
            "Path": "n",
        }
    }
    resources = {**TRAIN["ResourceConfig"], "InstanceCount": count}  # type: ignore[dict-item]
    validation.check(definition({"Name": "T", "Type": "Training", "Arguments": {**TRAIN, "ResourceConfig": resources}}))
    assert isinstance(resolved(count, lambda _: Later("x"), "Here", json.loads), Later)
