"""Updates of endpoints on the emulated platform: what callers see meanwhile, and how they are taken back."""

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
    """With the configs `plain`, `mirror` (bodies reversed), `two` instances and one that does not come up: `broken`."""
    with account(tmp_path_factory.mktemp("w")) as made:
        models = tmp_path_factory.mktemp("m")
        plain = made.put("plain.tar.gz", toy(models, "echo"))
        reverse = {"model.toml": "[options]\nreverse = true\n"}
        made.model("plain", {"ModelDataUrl": plain})
        made.model("mirror", {"ModelDataUrl": made.put("mirror.tar.gz", toy(models, "echo", "mirror", reverse))})
        made.model("broken", {"ModelDataUrl": plain, **BROKEN})
        for name in ("plain", "mirror", "broken"):
            made.config(name, variant(name))
        made.config("two", variant("plain", InitialInstanceCount=2))
        yield made


@pytest.fixture
def endpoint(aws: Account, request: pytest.FixtureRequest) -> Iterator[str]:
    """An endpoint of the config `plain`."""
    name = request.node.name.replace("_", "-")[:60]
    assert aws.create(name, "plain")["EndpointStatus"] == "InService"
    yield name
    aws.settled(name)
    aws.delete(name)


def is_mirrored(aws: Account, endpoint: str) -> bool:
    return aws.invoke(endpoint, b"ab", **TEXT).endswith(b":ba")


def test_callers_see_no_error_while_the_fleet_is_swapped(aws: Account, endpoint: str, later: Later) -> None:
    """Four who never stop calling, while the new fleet comes and the old one goes: every answer is an answer."""
    over = threading.Event()
    old = aws.pid(endpoint)

    def calls(_: int) -> list[bytes]:
        answers = []
        while not over.is_set():
            answers.append(aws.invoke(endpoint, b"ab", **TEXT))
        return answers

    callers = [later(calls, number) for number in range(4)]
    aws.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName="mirror")
    busy = refusal(lambda: aws.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName="plain"))
    described = aws.settled(endpoint)
    over.set()
    answers = [answer for caller in callers for answer in caller.result()]

    assert busy[1].startswith("Cannot update in-progress endpoint")
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", "mirror")
    assert "FailureReason" not in described
    assert {answer.partition(b":")[2] for answer in answers} == {b"ab", b"ba"}
    assert not alive(old)
    assert is_mirrored(aws, endpoint)


def test_a_fleet_that_does_not_come_up_is_taken_back(aws: Account, endpoint: str) -> None:
    """InService on the config before, with the reason; the old process never stopped."""
    before = aws.pid(endpoint)

    aws.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName="broken")
    described = aws.settled(endpoint)

    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", "plain")
    assert "did not pass the ping health check" in described["FailureReason"]
    assert aws.pid(endpoint) == before
    assert [each["detail"].partition(":")[0] for each in aws.events("endpoint") if each["subject"] == endpoint][
        -3:
    ] == [
        "Updating",
        "RollingBack",
        "InService",
    ]


def test_an_alarm_during_the_bake_rolls_back(aws: Account, endpoint: str) -> None:
    """Half of the traffic on the new fleet, an hour to bake: the alarm ends it at once, on the old config."""
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
        EndpointConfigName="mirror",
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
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", "plain")
    assert "ALARM state: errors" in described["FailureReason"]
    assert not any(is_mirrored(aws, endpoint) for _ in range(10))


def test_a_linear_update_arrives(aws: Account, endpoint: str) -> None:
    """Step by step, and the deployment is remembered."""
    linear = {"Type": "LINEAR", "WaitIntervalInSeconds": 0, "LinearStepSize": {"Type": "CAPACITY_PERCENT", "Value": 40}}
    deployment = {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": linear, "TerminationWaitInSeconds": 0}}

    aws.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName="mirror", DeploymentConfig=deployment)
    described = aws.settled(endpoint)

    assert described["EndpointConfigName"] == "mirror"
    assert described["LastDeploymentConfig"] == deployment
    steps = [each["detail"].partition(" ")[0] for each in aws.events("traffic") if each["subject"] == endpoint]
    assert steps == ["40%", "80%", "100%"]


def test_counts_survive_an_update_that_asks_for_it(aws: Account, endpoint: str) -> None:
    """RetainAllVariantProperties: what was scaled stays so; without it the config's count counts."""
    scale = [{"VariantName": "AllTraffic", "DesiredInstanceCount": 2}]
    aws.sagemaker.update_endpoint_weights_and_capacities(EndpointName=endpoint, DesiredWeightsAndCapacities=scale)
    aws.settled(endpoint)

    def updated(config: str, retain: bool) -> int:
        aws.sagemaker.update_endpoint(
            EndpointName=endpoint, EndpointConfigName=config, RetainAllVariantProperties=retain
        )
        return int(aws.settled(endpoint)["ProductionVariants"][0]["CurrentInstanceCount"])

    assert (updated("mirror", True), updated("plain", False)) == (2, 1)


def test_the_end_of_the_platform_is_the_end_of_all(tmp_path: Path) -> None:
    """In whatever an endpoint is at: in service, and in the middle of an update."""
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
