"""`python -m deploy diff` on the emulator: what was changed by hand, each thing by its name, without a change."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import deploys
from tests.live.account import Account
from tests.live.clients import READS, refusing
from tests.live.deploys import SCALES, Deploy, spec


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with deploys.prepared(tmp_path_factory.mktemp("w"), tmp_path_factory.mktemp("m")) as made:
        yield made


@pytest.fixture
def deploy(capsys: pytest.CaptureFixture[str]) -> Deploy:
    return deploys.command(capsys)


def test_everything_changed_by_hand_is_drift_that_up_repairs(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """Count, weight, scaling, an alarm, a tag, the role; only reading calls are made."""
    file = spec(tmp_path, "drifts", more=SCALES)
    missing = deploy("diff", file)
    assert deploy("up", file)[0] == 0
    none = deploy("diff", file)
    iam, scaling = aws.platform.client("iam"), aws.platform.client("application-autoscaling")
    target = {"ServiceNamespace": "sagemaker", "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}
    scaling.register_scalable_target(
        ResourceId="endpoint/drifts/variant/AllTraffic", MinCapacity=1, MaxCapacity=9, **target
    )
    wanted = [{"VariantName": "AllTraffic", "DesiredInstanceCount": 3, "DesiredWeight": 5}]
    aws.sagemaker.update_endpoint_weights_and_capacities(EndpointName="drifts", DesiredWeightsAndCapacities=wanted)
    endpoint = aws.settled("drifts")
    aws.sagemaker.add_tags(ResourceArn=endpoint["EndpointArn"], Tags=[{"Key": "deploy:endpoint", "Value": "drifts"}])
    (alarm,) = aws.cloudwatch.describe_alarms(AlarmNames=["drifts-AllTraffic-errors"])["MetricAlarms"]
    kept = ("AlarmName", "Namespace", "MetricName", "Dimensions", "Statistic", "Period", "EvaluationPeriods")
    changed = {key: alarm[key] for key in (*kept, "ComparisonOperator", "TreatMissingData")}
    aws.cloudwatch.put_metric_alarm(**changed, Threshold=7)
    policy = iam.get_role_policy(RoleName="drifts-endpoint", PolicyName="deploy-drifts")["PolicyDocument"]
    iam.put_role_policy(RoleName="drifts-endpoint", PolicyName="by-hand", PolicyDocument=json.dumps(policy))
    (models,) = [each for each in policy["Statement"] if each["Sid"] == "Models"]
    policy["Statement"] = [each for each in policy["Statement"] if each["Sid"] != "Models"]
    iam.put_role_policy(RoleName="drifts-endpoint", PolicyName="deploy-drifts", PolicyDocument=json.dumps(policy))
    reading, made = refusing({})

    code, said = deploy("diff", file, make=reading)
    data = json.loads(deploy("diff", file, "--json")[1])
    iam.delete_role_policy(RoleName="drifts-endpoint", PolicyName="by-hand")
    scale = [{"VariantName": "AllTraffic", "DesiredInstanceCount": 2, "DesiredWeight": 1}]
    aws.sagemaker.update_endpoint_weights_and_capacities(EndpointName="drifts", DesiredWeightsAndCapacities=scale)
    aws.settled("drifts")
    repaired, after = deploy("up", file), deploy("diff", file)

    assert missing == (3, "endpoint drifts: status is InService in the spec, missing in AWS\n")
    assert none == (0, "no drift\n")
    assert code == 3
    assert said.splitlines()[:-1] == [
        "variant AllTraffic: weight is 1 in the spec, 5 in AWS",
        "variant AllTraffic: instances is 1 to 2 in the spec, 3 in AWS",
        "scaling of variant AllTraffic: MaxCapacity is 2 in the spec, 9 in AWS",
        "alarm drifts-AllTraffic-errors: Threshold is 1 in the spec, 7 in AWS",
        f"role drifts-endpoint: statement Models is {models} in the spec, missing in AWS",
    ]
    assert said.endswith("role drifts-endpoint: policy by-hand is False in the spec, True in AWS\n")
    assert not [name for name in made[0].calls if not name.startswith(READS)]
    assert data["drift"][0] == {"subject": "variant AllTraffic", "field": "weight", "spec": 1.0, "aws": 5.0}
    assert repaired[0] == 0, repaired
    assert after == (0, "no drift\n")
    assert deploy("down", "drifts")[0] == 0


def test_a_changed_spec_is_drift_field_by_field(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    assert deploy("up", spec(tmp_path, "edited"))[0] == 0
    other = spec(tmp_path / "b", "edited", models="many/", more='tags = { team = "a" }', settings='env = { A = "1" }')
    other.write_text(other.read_text().replace("ml.m5.large", "ml.m5.xlarge"))

    code, said = deploy("diff", other)

    assert code == 3
    assert "variant AllTraffic: InstanceType is ml.m5.xlarge in the spec, ml.m5.large in AWS\n" in said
    assert "model of variant AllTraffic: Mode is MultiModel in the spec, SingleModel in AWS\n" in said
    assert "ModelDataUrl is s3://models/many/ in the spec, s3://models/echo.tar.gz in AWS\n" in said
    assert "Environment is {'A': '1'} in the spec, " in said
    assert "endpoint edited: tag team is a in the spec, missing in AWS\n" in said
    assert deploy("down", "edited")[0] == 0
