"""Alarms and scaling on the emulator, by the metrics of real calls, on a clock on which a minute lasts 0.4 seconds."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from deploy.aws import Aws
from deploy.cli import run as run_deploy
from tests.live import deploys
from tests.live.account import Account, refusal
from tests.live.stack import toy, wait_until

SPEED = 150.0
TEXT = {"ContentType": "text/plain"}
SCALING = """
[scaling]
min = 1
max = 2
invocations_per_instance = 2
scale_in_seconds = 60
scale_out_seconds = 60
"""
QUEUE = """
[async]
output = "s3://models/out"
[scaling]
min = 0
max = 1
backlog_per_instance = 2
scale_in_seconds = 60
"""
FAILS = """
def transform_fn(*_):
    raise RuntimeError("broken")
"""
ROLLOUT = """
[rollout]
canary_percent = 50
bake_seconds = 3600
alarms = { errors = 1 }
"""


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """An account with the images that deploy needs, and a model that echoes the request."""
    work, models = tmp_path_factory.mktemp("w"), tmp_path_factory.mktemp("m")
    with deploys.prepared(work, models, clock_speed=SPEED) as made:
        yield made


@contextmanager
def calls(aws: Account, endpoint: str, every: Callable[[], float]) -> Iterator[None]:
    """Calls the endpoint in the background, with a pause of `every()` seconds; errors of the model are expected."""
    over = threading.Event()

    def call() -> None:
        while not over.wait(every()):
            with suppress(aws.runtime.exceptions.ModelError):
                aws.invoke(endpoint, b"x", **TEXT)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def target(endpoint: str, name: str = "AllTraffic") -> dict[str, str]:
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{endpoint}/variant/{name}",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }


def instances(aws: Account, endpoint: str) -> int:
    described = aws.describe(endpoint)
    return described["ProductionVariants"][0]["CurrentInstanceCount"]  # type: ignore[no-any-return]


def test_a_deployed_endpoint_scales_out_under_calls_and_in_afterwards(aws: Account, tmp_path: Path) -> None:
    """By the deploy tool's own spec. Both changes are activities with their alarm; deletion ends the scaling."""
    spec = deploys.spec(tmp_path, "scaled", more=SCALING)
    assert run_deploy(["up", str(spec)], Aws) == 0
    client = aws.platform.client("application-autoscaling")
    pause = 0.005

    with calls(aws, "scaled", lambda: pause):
        wait_until(lambda: instances(aws, "scaled") == 2)
        pause = 0.2  # some calls go on: without any there is no metric, and no scaling in, as on SageMaker
        wait_until(lambda: instances(aws, "scaled") == 1)
        wait_until(lambda: aws.describe("scaled")["EndpointStatus"] == "InService")

    def activities() -> list[dict[str, Any]]:
        found = client.describe_scaling_activities(**target("scaled"))["ScalingActivities"]
        return found if all(each["StatusCode"] == "Successful" for each in found) else []

    inward, outward, *_ = wait_until(activities)
    (policy,) = client.describe_scaling_policies(**target("scaled"))["ScalingPolicies"]
    high, low = (each["AlarmName"] for each in policy["Alarms"])
    assert inward["Description"] == "Setting desired instance count to 1."
    assert outward["Cause"] == f"monitor alarm {high} in state ALARM triggered policy {policy['PolicyName']}"
    assert low in inward["Cause"]
    alarms = aws.cloudwatch.describe_alarms(AlarmNames=[high, low])["MetricAlarms"]
    assert [(each["EvaluationPeriods"], each["Threshold"]) for each in alarms] == [(3, 2.0), (15, 1.8)]
    history = aws.cloudwatch.describe_alarm_history(AlarmName=high, HistoryItemType="StateUpdate")["AlarmHistoryItems"]
    assert any(each["HistorySummary"].endswith(" to ALARM") for each in history)

    aws.delete("scaled")

    wait_until(lambda: not client.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"])
    assert not aws.cloudwatch.describe_alarms(AlarmNames=[high, low])["MetricAlarms"]


def test_a_bad_canary_rolls_back_by_its_own_alarm(aws: Account, tmp_path: Path) -> None:
    """The new model answers 500. Its share of the calls raises the alarm, and no test sets the alarm's state."""
    aws.put("broken.tar.gz", toy(tmp_path, "echo", files={"code/inference.py": FAILS}))
    good = deploys.spec(tmp_path, "canary", more=ROLLOUT)
    assert run_deploy(["up", str(good)], Aws) == 0
    before = aws.describe("canary")["EndpointConfigName"]
    bad = deploys.spec(tmp_path, "canary", models="broken.tar.gz", more=ROLLOUT)

    with calls(aws, "canary", lambda: 0.02):
        assert run_deploy(["up", str(bad)], Aws) != 0
    described = aws.settled("canary")

    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", before)
    assert "ALARM state: canary-AllTraffic-errors" in described["FailureReason"]
    aws.delete("canary")


def test_what_does_not_exist_does_not_scale(aws: Account) -> None:
    """An endpoint, a variant, a target and a policy that do not exist, and bounds that AWS refuses."""
    client = aws.platform.client("application-autoscaling")
    aws.endpoint("there", {"ModelDataUrl": "s3://models/echo.tar.gz"})
    tracking = {
        "TargetValue": 1.0,
        "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
    }

    def register(endpoint: str, name: str = "AllTraffic", least: int = 1, most: int = 2) -> tuple[str, str]:
        where = target(endpoint, name)
        return refusal(lambda: client.register_scalable_target(**where, MinCapacity=least, MaxCapacity=most))

    errors = [
        register("nowhere"),
        register("there", "Other"),
        register("there", least=3),
        register("there", least=0),
        refusal(
            lambda: client.put_scaling_policy(
                **target("there"),
                PolicyName="p",
                PolicyType="TargetTrackingScaling",
                TargetTrackingScalingPolicyConfiguration=tracking,
            )
        ),
        refusal(lambda: client.deregister_scalable_target(**target("there"))),
    ]
    aws.delete("there")

    assert [code for code, _ in errors] == ["ValidationException"] * 4 + ["ObjectNotFoundException"] * 2
    for (_, message), text in zip(
        errors,
        [
            "Could not find endpoint",
            'Could not find variant "Other"',
            "cannot be less than minimum",
            "must be at least 1",
            "No scalable target registered",
            "No scalable target registered",
        ],
        strict=True,
    ):
        assert text in message


def test_a_step_policy_scales_by_an_own_metric(aws: Account) -> None:
    """The alarm is the user's own, on a metric of PutMetricData; its action is the policy."""
    client = aws.platform.client("application-autoscaling")
    aws.endpoint("stepped", {"ModelDataUrl": "s3://models/echo.tar.gz"})
    client.register_scalable_target(**target("stepped"), MinCapacity=1, MaxCapacity=2)
    policy = client.put_scaling_policy(
        **target("stepped"),
        PolicyName="steps",
        PolicyType="StepScaling",
        StepScalingPolicyConfiguration={
            "AdjustmentType": "ChangeInCapacity",
            "StepAdjustments": [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 5}],
        },
    )
    aws.cloudwatch.put_metric_alarm(
        AlarmName="queue",
        Namespace="own",
        MetricName="queue",
        Statistic="Maximum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=10,
        ComparisonOperator="GreaterThanThreshold",
        AlarmActions=[policy["PolicyARN"]],
    )
    assert aws.cloudwatch.describe_alarms(AlarmNames=["queue"])["MetricAlarms"][0]["StateValue"] == "INSUFFICIENT_DATA"

    aws.cloudwatch.put_metric_data(Namespace="own", MetricData=[{"MetricName": "queue", "Value": 11}])
    wait_until(lambda: instances(aws, "stepped") == 2)

    (alarm,) = aws.cloudwatch.describe_alarms(AlarmNames=["queue"], AlarmTypes=["MetricAlarm"])["MetricAlarms"]
    items = aws.cloudwatch.describe_alarm_history(AlarmName="queue")["AlarmHistoryItems"]
    actions = [each["HistorySummary"] for each in items if each["HistoryItemType"] == "Action"]
    assert actions == [f"Successfully executed action {policy['PolicyARN']}"]
    raised = next(each["HistoryData"] for each in items if each["HistorySummary"].endswith("to ALARM"))
    assert "greater than the threshold (10.0)" in raised
    assert alarm["StateReason"].startswith(("Threshold Crossed", "Insufficient Data"))
    client.deregister_scalable_target(**target("stepped"))
    aws.delete("stepped")


def test_an_asynchronous_endpoint_scales_to_zero_and_starts_for_a_request(aws: Account, tmp_path: Path) -> None:
    """By the deploy tool's own spec: an empty backlog stops the last instance, and a waiting request starts one."""
    spec = deploys.spec(tmp_path, "queued", more=QUEUE)
    assert run_deploy(["up", str(spec)], Aws) == 0
    wait_until(lambda: instances(aws, "queued") == 0 and aws.describe("queued")["EndpointStatus"] == "InService")
    aws.s3.put_object(Bucket="models", Key="in.txt", Body=b"late")

    accepted = aws.runtime.invoke_endpoint_async(
        EndpointName="queued", InputLocation="s3://models/in.txt", ContentType="text/plain"
    )
    prefix = accepted["OutputLocation"].removeprefix("s3://models/")
    (output,) = wait_until(lambda: aws.s3.list_objects_v2(Bucket="models", Prefix=prefix).get("Contents"))

    assert aws.s3.get_object(Bucket="models", Key=output["Key"])["Body"].read().endswith(b":late")
    client = aws.platform.client("application-autoscaling")
    causes = [each["Cause"] for each in client.describe_scaling_activities(**target("queued"))["ScalingActivities"]]
    assert any("monitor alarm queued-AllTraffic-backlog in state ALARM" in each for each in causes)
    wait_until(lambda: aws.describe("queued")["EndpointStatus"] == "InService")
    client.deregister_scalable_target(**target("queued"))
    aws.settled("queued")
    aws.delete("queued")


def test_a_composite_alarm_follows_its_alarms(aws: Account) -> None:
    put = {"Namespace": "n", "Statistic": "Sum", "Period": 60, "EvaluationPeriods": 1, "Threshold": 0}
    for name, missing in (("left", "breaching"), ("right", "notBreaching")):
        aws.cloudwatch.put_metric_alarm(
            AlarmName=name,
            MetricName=name,
            ComparisonOperator="GreaterThanThreshold",
            TreatMissingData=missing,
            **put,
        )
    aws.cloudwatch.put_composite_alarm(AlarmName="both", AlarmRule='ALARM("left") AND NOT ALARM("right")')

    def state() -> str:
        found = aws.cloudwatch.describe_alarms(AlarmNames=["both"], AlarmTypes=["CompositeAlarm"])["CompositeAlarms"]
        return found[0]["StateValue"]  # type: ignore[no-any-return]

    wait_until(lambda: state() == "ALARM")
    aws.cloudwatch.delete_alarms(AlarmNames=["both", "left", "right"])
