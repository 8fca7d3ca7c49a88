"""Updates of endpoints on the emulator: calls meanwhile, rollbacks, scaling, and the emulator's end."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError

from tests.live.account import Account, account, refusal, variant
from tests.live.conftest import Later
from tests.live.stack import alive, toy, wait_until

TEXT = {"ContentType": "text/plain"}
BROKEN = {"Environment": {"SERVE_NO_SUCH_SETTING": "1"}}


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """An account with the configs `plain`, `mirror` (reverses bodies) and `broken` (fails to start)."""
    with account(tmp_path_factory.mktemp("w")) as made:
        models = tmp_path_factory.mktemp("m")
        plain = made.put("plain.tar.gz", toy(models, "echo"))
        reverse = {"model.toml": "[options]\nreverse = true\n"}
        made.model("plain", {"ModelDataUrl": plain})
        made.model("mirror", {"ModelDataUrl": made.put("mirror.tar.gz", toy(models, "echo", "mirror", reverse))})
        made.model("broken", {"ModelDataUrl": plain, **BROKEN})
        for name in ("plain", "mirror", "broken"):
            made.config(name, variant(name))
        yield made


@pytest.fixture(scope="module")
def endpoint(aws: Account) -> str:
    """One endpoint for all tests of this module. Its config is `plain` or `mirror`, as the previous test left it."""
    assert aws.create("changing", "plain")["EndpointStatus"] == "InService"
    return "changing"


def configs(aws: Account, endpoint: str) -> tuple[str, str]:
    """The endpoint's config, and the other one."""
    now = aws.describe(endpoint)["EndpointConfigName"]
    return now, "mirror" if now == "plain" else "plain"


def is_mirrored(aws: Account, endpoint: str) -> bool:
    return aws.invoke(endpoint, b"ab", **TEXT).endswith(b":ba")


def test_no_call_fails_during_an_update(aws: Account, endpoint: str, later: Later) -> None:
    """Four callers call continuously while the new fleet replaces the old one: every call is answered."""
    over = threading.Event()
    old = aws.pid(endpoint)
    before, other = configs(aws, endpoint)

    def calls(_: int) -> list[bytes]:
        answers = []
        while not over.is_set():
            answers.append(aws.invoke(endpoint, b"ab", **TEXT))
        return answers

    callers = [later(calls, number) for number in range(4)]
    aws.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=other)
    busy = refusal(lambda: aws.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=before))
    described = aws.settled(endpoint)
    over.set()
    answers = [answer for caller in callers for answer in caller.result()]

    assert busy[1].startswith("Cannot update in-progress endpoint")
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", other)
    assert "FailureReason" not in described
    assert {answer.partition(b":")[2] for answer in answers} == {b"ab", b"ba"}
    assert not alive(old)
    assert is_mirrored(aws, endpoint) == (other == "mirror")


def test_a_fleet_that_fails_to_start_is_rolled_back(aws: Account, endpoint: str) -> None:
    """The endpoint is InService with the old config and the reason. The old process keeps running."""
    pid = aws.pid(endpoint)
    before, _ = configs(aws, endpoint)

    aws.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName="broken")
    described = aws.settled(endpoint)

    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", before)
    assert "did not pass the ping health check" in described["FailureReason"]
    assert aws.pid(endpoint) == pid
    statuses = [each["detail"].partition(":")[0] for each in aws.events("endpoint") if each["subject"] == endpoint]
    assert statuses[-3:] == ["Updating", "RollingBack", "InService"]


def test_an_alarm_during_the_bake_rolls_back(aws: Account, endpoint: str) -> None:
    """Half of the calls go to the new fleet for an hour: the alarm ends that immediately, with the old config."""
    before, other = configs(aws, endpoint)
    aws.cloudwatch.put_metric_alarm(
        AlarmName="errors",
        Namespace="AWS/SageMaker",
        MetricName="Invocation5XXErrors",
        Statistic="Sum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=1,
        ComparisonOperator="GreaterThanThreshold",
    )
    canary = {"Type": "CANARY", "WaitIntervalInSeconds": 3600, "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 50}}
    aws.sagemaker.update_endpoint(
        EndpointName=endpoint,
        EndpointConfigName=other,
        DeploymentConfig={
            "BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": canary},
            "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "errors"}]},
        },
    )
    wait_until(lambda: aws.is_at(endpoint, "Updating", "Baking"))
    both = {is_mirrored(aws, endpoint) for _ in range(30)}

    aws.cloudwatch.set_alarm_state(AlarmName="errors", StateValue="ALARM", StateReason="a test")
    described = aws.settled(endpoint)

    assert both == {True, False}
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", before)
    assert "ALARM state: errors" in described["FailureReason"]
    assert {is_mirrored(aws, endpoint) for _ in range(10)} == {before == "mirror"}


def test_an_update_can_retain_instance_counts(aws: Account, endpoint: str) -> None:
    """RetainAllVariantProperties keeps the scaled count. A linear update shifts traffic in steps."""
    _, other = configs(aws, endpoint)
    scale = [{"VariantName": "AllTraffic", "DesiredInstanceCount": 2}]
    aws.sagemaker.update_endpoint_weights_and_capacities(EndpointName=endpoint, DesiredWeightsAndCapacities=scale)
    assert aws.settled(endpoint)["ProductionVariants"][0]["CurrentInstanceCount"] == 2
    linear = {"Type": "LINEAR", "WaitIntervalInSeconds": 0, "LinearStepSize": {"Type": "CAPACITY_PERCENT", "Value": 40}}
    deployment = {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": linear, "TerminationWaitInSeconds": 0}}
    before = len(aws.events("traffic"))

    aws.sagemaker.update_endpoint(
        EndpointName=endpoint,
        EndpointConfigName=other,
        RetainAllVariantProperties=True,
        DeploymentConfig=deployment,
    )
    described = aws.settled(endpoint)

    assert described["EndpointConfigName"] == other
    assert described["ProductionVariants"][0]["CurrentInstanceCount"] == 2
    assert described["LastDeploymentConfig"] == deployment
    steps = [each["detail"].partition(" ")[0] for each in aws.events("traffic")[before:]]
    assert steps == ["40%", "80%", "100%"]


def test_closing_the_emulator_stops_all_endpoints(tmp_path: Path) -> None:
    """One in service, and one in the middle of an update."""
    models = tmp_path / "m"
    gate = {"gate.txt": str(tmp_path / "never")}
    with account(tmp_path / "w") as aws:
        aws.endpoint("steady", {"ModelDataUrl": aws.put("echo.tar.gz", toy(models, "echo"))})
        slow = aws.put("slow.tar.gz", toy(models, "slowload", files=gate))
        aws.model("slow", {"ModelDataUrl": slow, "Environment": {"SERVE_PRELOAD": "*"}})
        aws.config("slow", variant("slow"))
        pid = aws.pid("steady")
        aws.sagemaker.update_endpoint(EndpointName="steady", EndpointConfigName="slow")
        wait_until(lambda: aws.is_at("steady", "Updating", "Creating"))

    assert not alive(pid)
    with pytest.raises(EndpointConnectionError):
        aws.describe("steady")
