"""`up` in an account: whose objects it finds, which ones it creates, and that its plan names the same ones.

The account is moto's, in this process. Endpoints in it are in service at once; tests/live/test_deploy.py has real ones.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import moto
import pytest
from botocore.exceptions import ClientError

from deploy import endpoint, preview
from deploy.aws import Aws
from deploy.cli import run
from deploy.plan import STARTS_ONE

READS = ("Get", "List", "Describe", "Head")
ARN = "arn:aws:iam::123456789012:role/ours"
IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/many@sha256:" + "0" * 64
BUNDLE = 'name = "many"\nimage = "many:v1"\nmodels = "s3://bucket/all.tar.gz"\n'
PREFIX = BUNDLE.replace("all.tar.gz", "all/")
ONE = '[[variant]]\ninstance = "ml.m5.large"\n'
TWO = '[[variant]]\nname = "A"\ninstance = "ml.m5.large"\n[[variant]]\nname = "B"\ninstance = "ml.m5.xlarge"\n'
OWN = TWO + 'models = "s3://bucket/b.tar.gz"\n'
LOAD = "[scaling]\nmax = 3\ninvocations_per_instance = 60\n"
ALARMS = "[rollout]\ncanary_percent = 10\nalarms = { errors = 1, latency_ms = 500 }\n"
ASYNC = '[async]\noutput = "s3://bucket/out/"\n'
QUEUE = ASYNC + "[scaling]\nmin = 0\nmax = 2\nbacklog_per_instance = 5\n"
SPECS = {
    "multi-model": PREFIX + ONE,
    "bundle": BUNDLE + ONE,
    "uncompressed": PREFIX + "uncompressed = true\n" + ONE,
    "no models": BUNDLE.replace('models = "s3://bucket/all.tar.gz"\n', "") + ONE,
    "two variants of one model": BUNDLE + TWO,
    "two variants with models of their own": BUNDLE + OWN,
    "a named role": BUNDLE + 'role = "shared"\n' + ONE,
    "an ARN as role": BUNDLE + f'role = "{ARN}"\n' + ONE,
    "an image by digest": BUNDLE.replace("many:v1", IMAGE) + f'role = "{ARN}"\n' + ONE,
    "scaling": PREFIX + ONE + LOAD,
    "alarms": BUNDLE + ONE + ALARMS,
    "scaling and alarms of two variants": BUNDLE + OWN + LOAD + ALARMS,
    "serverless": BUNDLE + "[serverless]\nmemory_mb = 2048\n",
    "asynchronous": BUNDLE + ONE + ASYNC,
    "asynchronous from zero": BUNDLE + ONE + QUEUE,
    "asynchronous from one": BUNDLE + ONE + QUEUE.replace("min = 0", "min = 1"),
    "asynchronous, two variants, alarms": BUNDLE + OWN + QUEUE + ALARMS,
    "tags and other fields": BUNDLE + ONE + '[tags]\nteam = "a"\n[aws]\nEnableNetworkIsolation = true\n',
}


@cache
def _shared() -> Aws:
    return Aws("us-east-1")


def client(name: str) -> Any:
    """A client for what the tests do themselves. A new one takes half a second to read SageMaker's description."""
    return _shared().client(name)


EXISTS = {
    "CreateModel": ("describe_model", "ModelName"),
    "CreateEndpointConfig": ("describe_endpoint_config", "EndpointConfigName"),
    "CreateEndpoint": ("describe_endpoint", "EndpointName"),
}


def _exists(operation: str, params: dict[str, Any]) -> bool:
    describe, key = EXISTS[operation]
    try:
        getattr(client("sagemaker"), describe)(**{key: params[key]})
    except ClientError:
        return False
    return True


class Recording(Aws):
    """Keeps each accepted request that creates or changes something; `before` runs once before an operation."""

    def __init__(self, region: str | None = None, before: dict[str, Any] | None = None) -> None:
        super().__init__(region)
        self.made: list[tuple[str, dict[str, Any]]] = []
        self._before = before or {}
        self._params: dict[str, Any] = {}

    def client(self, name: str) -> Any:
        fresh = name not in self._clients
        made = super().client(name)
        if fresh:
            made.meta.events.register("provide-client-params", self._asked)
            made.meta.events.register("after-call", self._answered)
        return made

    def _asked(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        self._params = params
        if act := self._before.pop(model.name, None):
            act()
        if model.name in EXISTS and _exists(model.name, params):
            error = {"Code": "ValidationException", "Message": f"Cannot create already existing {model.name}"}
            raise ClientError({"Error": error}, model.name)  # as AWS; moto replaces the object

    def _answered(self, http_response: Any, model: Any, **_: Any) -> None:
        if not model.name.startswith(READS) and http_response.status_code < 300:
            self.made.append((model.name, self._params))


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of moto's account."""
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def account(credentials: None) -> Iterator[None]:
    """An account with an image in its registry and a bucket."""
    with moto.mock_aws():
        _push()
        yield


def _push() -> None:
    client("s3").create_bucket(Bucket="bucket")
    ecr = client("ecr")
    ecr.create_repository(repositoryName="many")
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    ecr.put_image(repositoryName="many", imageManifest=json.dumps({"mediaType": kind}), imageTag="v1")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "endpoint.toml"


def up(file: Path, *words: str, before: dict[str, Any] | None = None) -> tuple[int, list[tuple[str, dict[str, Any]]]]:
    """The exit code, and every request that created or changed something."""
    made = []

    def connect(region: str | None) -> Aws:
        made.append(Recording(region, before))
        return made[-1]

    code = run(["up", str(file), *words], connect)
    return code, made[0].made


def _same(made: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """Without what AWS, the time or botocore decides: a policy's ARN in an alarm, the time of a deletion, a token."""
    unknown = {"AlarmActions", "ScheduleExpression", "ClientToken"}
    return [(name, {key: value for key, value in each.items() if key not in unknown}) for name, each in made]


KEPT = ("bundle", "an ARN as role", "asynchronous, two variants, alarms")


@pytest.mark.parametrize(
    ("kind", "keep"),
    [*((kind, ()) for kind in SPECS), *((kind, ("--for", "4h")) for kind in KEPT)],
    ids=lambda each: each if isinstance(each, str) else " ".join(each),
)
def test_the_plan_is_what_up_then_makes(
    account: None, file: Path, kind: str, keep: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every object by its name, in every field and in this order; a second plan has the same names."""
    file.write_text(SPECS[kind])
    code, sent = up(file, "--plan", *keep)
    planned = [(name, each) for request in json.loads(capsys.readouterr().out) for name, each in request.items()]
    assert (code, sent) == (0, [])

    code, made = up(file, *keep)

    assert code == 0
    assert _same(made) == _same(planned)
    capsys.readouterr()
    up(file, "--plan", *keep)
    again = [(name, each) for request in json.loads(capsys.readouterr().out) for name, each in request.items()]
    assert _same(again) == _same(planned)
    assert up(file)[1] == []
    assert run(["down", "many"], Aws) == 0
    assert endpoint.leftovers("many", Aws()) == []


def test_without_credentials_the_plan_names_no_hash_that_it_cannot_know(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The account and the image's digest are in the hashes; a digest and an ARN in the spec are known to all."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for kind, known in {"bundle": False, "an ARN as role": False, "an image by digest": True}.items():
        file.write_text('region = "us-east-1"\n' + SPECS[kind])
        assert run(["up", "--plan", str(file)]) == 0
        said = capsys.readouterr()
        names = [next(iter(each.values())).get("ModelName", "") for each in json.loads(said.out)]
        assert (f"many-{preview.HASH}" in names, preview.HASH in said.err) == (not known, not known)
    name = next(filter(None, names))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with moto.mock_aws():
        _push()
        assert run(["up", "--plan", str(file)]) == 0
        assert name in capsys.readouterr().out


# With an image by digest, so that the names are those of the plan in every account.
FULL = BUNDLE.replace("many:v1", IMAGE) + OWN + QUEUE + ALARMS
DIMENSIONS = [{"Name": "EndpointName", "Value": "another"}]
TRUST = json.dumps({"Version": "2012-10-17", "Statement": []})
TARGET = {"Arn": "arn:aws:scheduler:::aws-sdk:sagemaker:deleteEndpoint", "RoleArn": ARN}


def _role(name: str) -> None:
    client("iam").create_role(RoleName=name, AssumeRolePolicyDocument=TRUST)


def _model(name: str) -> None:
    container = {"Image": IMAGE}
    client("sagemaker").create_model(ModelName=name, ExecutionRoleArn=ARN, PrimaryContainer=container)


def _config(name: str) -> None:
    sagemaker = client("sagemaker")
    _model("theirs")
    variant = {"VariantName": "V", "ModelName": "theirs", "InitialInstanceCount": 1, "InstanceType": "ml.m5.large"}
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])


def _endpoint(name: str) -> None:
    _config("theirs")
    client("sagemaker").create_endpoint(EndpointName=name, EndpointConfigName="theirs")


def _alarm(name: str, dimensions: Any = DIMENSIONS) -> None:
    client("cloudwatch").put_metric_alarm(
        AlarmName=name,
        Namespace="AWS/SageMaker",
        MetricName="Invocations",
        Dimensions=dimensions,
        Statistic="Sum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=1,
        ComparisonOperator="GreaterThanThreshold",
    )


def _untagged_alarm(name: str) -> None:
    _alarm(name, [{"Name": "EndpointName", "Value": "many"}, {"Name": "VariantName", "Value": "A"}])


def _schedule(name: str) -> None:
    client("scheduler").create_schedule(
        Name=name,
        ScheduleExpression="rate(1 hour)",
        FlexibleTimeWindow={"Mode": "OFF"},
        Target={**TARGET, "Input": json.dumps({"EndpointName": "another"})},
    )


# Who made it, and the request of the plan whose name it has.
FOREIGN = {
    "endpoint": (_endpoint, "CreateEndpoint", "EndpointName"),
    "role": (_role, "CreateRole", "RoleName"),
    "model": (_model, "CreateModel", "ModelName"),
    "configuration": (_config, "CreateEndpointConfig", "EndpointConfigName"),
    "alarm": (_alarm, "PutMetricAlarm", "AlarmName"),
    "alarm without a tag": (_untagged_alarm, "PutMetricAlarm", "AlarmName"),
    "schedule": (_schedule, "CreateSchedule", "Name"),
}


def test_no_kind_of_object_is_left_out_below(account: None, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A target and a policy of scaling belong to the endpoint by its name, and a role's policy to the role."""
    file.write_text(FULL)
    up(file, "--plan", "--for", "4h")
    operations = {next(iter(each)) for each in json.loads(capsys.readouterr().out)}
    asked = {operation for _, operation, _ in FOREIGN.values()}
    assert operations - asked == {"PutRolePolicy", "RegisterScalableTarget", "PutScalingPolicy"}


@pytest.mark.parametrize("kind", FOREIGN)
def test_an_object_of_another_owner_is_refused_before_anything_is_made(
    credentials: None, file: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each object that `up` would make, as somebody else's: exit code 1 with its name, and no request but questions."""
    make, operation, key = FOREIGN[kind]
    file.write_text(FULL)
    with moto.mock_aws():
        _push()
        up(file, "--plan", "--for", "4h")
    planned = [each[operation][key] for each in json.loads(capsys.readouterr().out) if operation in each]
    assert planned
    for name in planned:
        with moto.mock_aws():  # an account of its own
            _push()
            make(name)

            code, made = up(file, "--for", "4h")

        said = capsys.readouterr()
        assert (code, made) == (1, [])
        assert f"{kind.partition(' ')[0]} {name}" in said.err
        assert "not created by `python -m deploy`" in said.err


def test_an_endpoint_that_another_owner_makes_meanwhile_leaves_nothing(
    account: None, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ownership is asked before the role; the endpoint is theirs when this run wants to create it."""
    file.write_text(FULL)

    code, made = up(file, before={"CreateEndpoint": lambda: _endpoint("many")})

    assert code == 1
    assert [name for name, _ in made if name.startswith("Create")] == [
        *("CreateRole", "CreateModel", "CreateModel", "CreateEndpointConfig")
    ]
    assert "endpoint many was not created by `python -m deploy`" in capsys.readouterr().err
    sagemaker = client("sagemaker")
    assert [each["ModelName"] for each in sagemaker.list_models()["Models"]] == ["theirs"]
    assert [each["EndpointConfigName"] for each in sagemaker.list_endpoint_configs()["EndpointConfigs"]] == ["theirs"]
    assert sagemaker.describe_endpoint(EndpointName="many")["EndpointConfigName"] == "theirs"
    assert endpoint.leftovers("many", Aws()) == ["endpoint many"]
    with pytest.raises(ClientError, match="NoSuchEntity"):
        client("iam").get_role(RoleName="many-endpoint")


def test_a_role_that_the_spec_names_may_be_an_administrators(account: None, file: Path) -> None:
    """It gets a policy of the endpoint, and loses it with the endpoint."""
    _role("shared")
    file.write_text(SPECS["a named role"])

    assert up(file)[0] == 0
    assert client("iam").list_role_policies(RoleName="shared")["PolicyNames"] == ["deploy-many"]
    assert run(["down", "many"], Aws) == 0
    assert client("iam").list_role_policies(RoleName="shared")["PolicyNames"] == []


def test_down_leaves_the_schedule_of_another_owner(account: None, file: Path) -> None:
    """It has the name of the endpoint's, and does something else."""
    file.write_text(SPECS["bundle"])
    assert up(file)[0] == 0
    _schedule("many-delete")

    assert run(["down", "many"], Aws) == 0

    assert client("scheduler").get_schedule(Name="many-delete")["ScheduleExpression"] == "rate(1 hour)"


def _scaling() -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The scalable target, and the policies and alarms by name."""
    scaling = client("application-autoscaling")
    (target,) = scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    policies = scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    alarms = client("cloudwatch").describe_alarms()["MetricAlarms"]
    named = {each["AlarmName"]: each for each in alarms if not each["AlarmName"].startswith("TargetTracking-")}
    return target, {each["PolicyName"]: each for each in policies}, named


@pytest.mark.peer("sagemaker-hosting")
def test_an_asynchronous_endpoint_scales_from_zero_as_aws_documents(account: None, file: Path) -> None:
    """By the backlog per instance; a step policy starts one when a request waits and there is none."""
    file.write_text(SPECS["asynchronous from zero"])
    assert up(file)[0] == 0

    target, policies, alarms = _scaling()

    # docs.aws.amazon.com/sagemaker/latest/dg/async-inference-autoscale.html
    of_endpoint = [{"Name": "EndpointName", "Value": "many"}]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (0, 2)
    load, start = policies["many-AllTraffic-load"], policies["many-AllTraffic-backlog"]
    tracking = load["TargetTrackingScalingPolicyConfiguration"]
    assert (load["PolicyType"], tracking["TargetValue"]) == ("TargetTrackingScaling", 5)
    assert tracking["CustomizedMetricSpecification"] == {
        "MetricName": "ApproximateBacklogSizePerInstance",
        "Namespace": "AWS/SageMaker",
        "Dimensions": of_endpoint,
        "Statistic": "Average",
    }
    assert start["PolicyType"] == "StepScaling"
    assert start["StepScalingPolicyConfiguration"] == {
        "AdjustmentType": "ChangeInCapacity",
        "MetricAggregationType": "Average",
        "Cooldown": 300,
        "StepAdjustments": [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}],
    }
    assert start["StepScalingPolicyConfiguration"] == STARTS_ONE["StepScalingPolicyConfiguration"]
    assert {
        "MetricName": "HasBacklogWithoutCapacity",
        "Namespace": "AWS/SageMaker",
        "Dimensions": of_endpoint,
        "Statistic": "Average",
        "Period": 60,
        "EvaluationPeriods": 2,
        "DatapointsToAlarm": 2,
        "Threshold": 1,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold",
        "TreatMissingData": "missing",
        "AlarmActions": [start["PolicyARN"]],
    }.items() <= alarms["many-AllTraffic-backlog"].items()


def test_from_zero_to_one_and_back(account: None, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With min = 1 the step policy and its alarm are deleted; with min = 0 they exist again; `down` deletes all."""
    file.write_text(SPECS["asynchronous from zero"])
    assert up(file)[0] == 0
    assert up(file) == (0, [])

    file.write_text(SPECS["asynchronous from one"])
    code, made = up(file)
    target, policies, alarms = _scaling()
    assert (code, [name for name, _ in made]) == (0, ["RegisterScalableTarget", "DeleteScalingPolicy", "DeleteAlarms"])
    assert (target["MinCapacity"], list(policies), list(alarms)) == (1, ["many-AllTraffic-load"], [])

    file.write_text(SPECS["asynchronous from zero"])
    code, made = up(file)
    assert [name for name, _ in made] == ["RegisterScalableTarget", "PutScalingPolicy", "PutMetricAlarm"]
    assert run(["down", "many"], Aws) == 0
    assert client("cloudwatch").describe_alarms(AlarmNamePrefix="many")["MetricAlarms"] == []


def test_the_scheduled_deletion_is_moved_by_the_next_run(account: None, file: Path) -> None:
    """The endpoint's own schedule is no foreign one."""
    file.write_text(SPECS["bundle"])
    assert up(file, "--for", "1h")[0] == 0

    code, made = up(file, "--for", "9h")

    assert (code, [name for name, _ in made]) == (0, ["UpdateSchedule"])
