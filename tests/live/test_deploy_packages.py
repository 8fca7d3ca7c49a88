"""`python -m deploy` with the model registry: approval, the newest approved package of a group, its metrics."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy import endpoint
from deploy.aws import Aws
from tests.live import deploys
from tests.live.account import Account
from tests.live.deploys import Deploy
from tests.live.stack import wait_until

SPEC = """
name = "{name}"
model_package = "{package}"
[[variant]]
instance = "ml.m5.large"
"""


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with deploys.prepared(tmp_path_factory.mktemp("w"), tmp_path_factory.mktemp("m")) as made:
        yield made


@pytest.fixture
def deploy(capsys: pytest.CaptureFixture[str]) -> Deploy:
    return deploys.command(capsys)


def registered(aws: Account, group: str, **more: Any) -> str:
    """The ARN of a new version, which waits for its approval."""
    groups = aws.sagemaker.list_model_package_groups()["ModelPackageGroupSummaryList"]
    if group not in [each["ModelPackageGroupName"] for each in groups]:
        aws.sagemaker.create_model_package_group(ModelPackageGroupName=group)
    container = {"Image": "serve", "ModelDataUrl": "s3://models/echo.tar.gz"}
    types = {"SupportedContentTypes": ["text/plain"], "SupportedResponseMIMETypes": ["text/plain"]}
    made = aws.sagemaker.create_model_package(
        ModelPackageGroupName=group, InferenceSpecification={"Containers": [container], **types}, **more
    )
    return str(made["ModelPackageArn"])


def spec(at: Path, name: str, package: str) -> Path:
    path = at / f"{name}.toml"
    path.write_text(SPEC.format(name=name, package=package))
    return path


def test_the_newest_approved_package_is_deployed(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """A group without one names the pending ones; a newer package is deployed once it is approved."""
    file, body = spec(tmp_path, "registry", "prices"), tmp_path / "body.txt"
    body.write_text("hi")
    unknown = deploy("up", file)
    first = registered(aws, "prices")
    pending = deploy("up", file)
    approved = deploy("approve", first, "--note", "error below 3")
    again = deploy("approve", first)
    up = deploy("up", file)
    answered = deploy("invoke", "registry", body)
    second = registered(aws, "prices")
    same = deploy("up", file)
    deploy("approve", second)
    newer = deploy("up", file, "--json")
    deploy("approve", second, "--reject", "--note", "too slow")
    older = json.loads(deploy("up", file, "--plan")[1])
    config = aws.sagemaker.describe_endpoint_config(EndpointConfigName=aws.describe("registry")["EndpointConfigName"])
    model = aws.sagemaker.describe_model(ModelName=config["ProductionVariants"][0]["ModelName"])
    reads = aws.platform.client("iam").get_role_policy(RoleName="registry-endpoint", PolicyName="deploy-registry")

    assert (unknown[0], "model package group prices not found in us-east-1" in unknown[1]) == (1, True)
    assert pending[0] == 1
    assert f"no approved model package; pending: {first}\n  approve one: python -m deploy approve {first}" in pending[1]
    assert approved == (0, f"{first}: PendingManualApproval -> Approved\n")
    assert again == (0, "unchanged\n")
    assert up[0] == 0, up
    assert answered[0] == 0, answered
    assert same == (0, "unchanged\n")
    assert newer[0] == 0, newer
    assert model["PrimaryContainer"]["ModelPackageName"] == second
    assert "arn:aws:s3:::models/echo.tar.gz" in json.dumps(reads["PolicyDocument"])
    (created,) = [each["CreateModel"] for each in older if "CreateModel" in each]
    assert created["PrimaryContainer"] == {"ModelPackageName": first, "Environment": {}}
    assert deploy("down", "registry")[0] == 0
    assert endpoint.leftovers("registry", Aws()) == []


def test_packages_are_listed_with_status_data_and_metrics(aws: Account, deploy: Deploy) -> None:
    metrics = {"regression_metrics": {"mse": {"value": 4.25, "standard_deviation": "NaN"}}}
    aws.s3.put_object(Bucket="models", Key="quality.json", Body=json.dumps(metrics))
    quality = {"Statistics": {"ContentType": "application/json", "S3Uri": "s3://models/quality.json"}}
    arn = registered(aws, "houses", ModelMetrics={"ModelQuality": quality})

    listed = deploy("models", "--packages", "houses")
    (found,) = json.loads(deploy("models", "--packages", "houses", "--json")[1])
    everywhere = json.loads(deploy("models", "--packages", "--json")[1])
    wrong, both = deploy("approve", arn.replace("houses", "horses")), deploy("models")

    assert listed[0] == 0
    assert "houses 1  PendingManualApproval" in listed[1]
    assert "regression_metrics.mse 4.25" in listed[1]
    assert f"\n  {arn}\n  data  s3://models/echo.tar.gz\n" in listed[1]
    assert (found["version"], found["metrics"]) == (1, {"regression_metrics.mse": 4.25})
    assert arn in [each["arn"] for each in everywhere]
    assert (wrong[0], "horses/1 not found" in wrong[1]) == (1, True)
    assert (both[0], "give s3://bucket/prefix/, or --packages" in both[1]) == (2, True)


def test_a_package_that_is_not_approved_is_refused_by_its_arn(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    arn = registered(aws, "flats")

    code, said = deploy("up", spec(tmp_path, "early", arn))

    assert (code, f"{arn} is PendingManualApproval\n  approve it: python -m deploy approve {arn}" in said) == (1, True)
    assert endpoint.leftovers("early", Aws()) == []


def test_an_approval_reaches_the_rules_of_eventbridge(aws: Account) -> None:
    """Here a queue gets AWS's event of the group's package; a rule for other groups or states does not match."""
    events, queues = aws.platform.client("events"), aws.platform.client("sqs")
    arn = registered(aws, "villas")
    queue = queues.create_queue(QueueName="approved")["QueueUrl"]
    target = queues.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    for name, group in (("ours", "villas"), ("theirs", "castles")):
        detail = {"ModelPackageGroupName": [group], "ModelApprovalStatus": ["Approved"]}
        pattern = {"source": ["aws.sagemaker"], "detail-type": ["SageMaker Model Package State Change"]}
        events.put_rule(Name=name, EventPattern=json.dumps({**pattern, "detail": detail}))
        events.put_targets(Rule=name, Targets=[{"Id": "queue", "Arn": target}])

    aws.sagemaker.update_model_package(ModelPackageArn=arn, ModelApprovalStatus="Rejected", ApprovalDescription="slow")
    aws.sagemaker.update_model_package(ModelPackageArn=arn, ModelApprovalStatus="Approved")
    (message,) = wait_until(lambda: queues.receive_message(QueueUrl=queue).get("Messages"))
    event = json.loads(message["Body"])
    now = aws.sagemaker.describe_model_package(ModelPackageName=arn)

    assert event["resources"] == [arn]
    assert event["detail"]["ModelPackageVersion"] == 1
    assert event["detail"]["UpdatedModelPackageFields"] == ["ModelApprovalStatus"]
    assert now["ApprovalDescription"] == "slow"  # an update keeps what it does not name
    assert "Messages" not in queues.receive_message(QueueUrl=queue)
    for name in ("ours", "theirs"):
        events.remove_targets(Rule=name, Ids=["queue"])
        events.delete_rule(Name=name)
    queues.delete_queue(QueueUrl=queue)
