"""A spec is read strictly, becomes the requests that AWS gets, and names change exactly when the content does."""

import json
from pathlib import Path
from typing import Any

import pytest

from deploy import aws, roles, spec
from deploy.cli import main
from deploy.errors import SpecError
from deploy.plan import Desired, desired, update_request
from deploy.spec import Spec, load

ROLE = "arn:aws:iam::123456789012:role/many"
IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/many@sha256:" + "0" * 64
PLAIN = """
name = "many"
image = "many:latest"
models = "s3://bucket/models/"
[[variant]]
instance = "ml.m5.large"
"""


QUEUED = PLAIN.replace("models/", "all.tar.gz") + '[async]\noutput = "s3://bucket/out/"\n'
LIGHT = """
name = "light"
image = "many:latest"
models = "s3://bucket/all.tar.gz"
[serverless]
"""


def spec_of(tmp_path: Path, text: str) -> Spec:
    path = tmp_path / "endpoint.toml"
    path.write_text(text)
    return load(path)


def made(tmp_path: Path, text: str) -> Desired:
    spec = spec_of(tmp_path, text)
    wanted = desired(spec, ROLE, {spec.image_of(each): IMAGE for each in spec.variants})
    wanted.check()
    return wanted


def test_a_prefix_is_a_multi_model_endpoint(tmp_path: Path) -> None:
    wanted = made(tmp_path, PLAIN)

    (model,) = wanted.models.values()
    assert model["PrimaryContainer"] == {
        "Image": IMAGE,
        "Mode": "MultiModel",
        "ModelDataUrl": "s3://bucket/models/",
        "Environment": {},
    }
    assert wanted.config["ProductionVariants"] == [
        {
            "VariantName": "AllTraffic",
            "ModelName": model["ModelName"],
            "InstanceType": "ml.m5.large",
            "InitialInstanceCount": 1,
            "InitialVariantWeight": 1.0,
        }
    ]
    assert wanted.endpoint["EndpointConfigName"] == wanted.config["EndpointConfigName"]
    assert wanted.endpoint["Tags"] == [{"Key": "deploy:endpoint", "Value": "many"}]


PREFIX = {"S3Uri": "s3://bucket/all/", "S3DataType": "S3Prefix", "CompressionType": "None"}


@pytest.mark.parametrize(
    ("models", "container"),
    [
        ('models = "s3://bucket/all.tar.gz"', {"Mode": "SingleModel", "ModelDataUrl": "s3://bucket/all.tar.gz"}),
        ('models = "s3://bucket/all/"\nuncompressed = true', {"ModelDataSource": {"S3DataSource": PREFIX}}),
    ],
)
def test_a_bundle_is_one_container_of_many_models(tmp_path: Path, models: str, container: dict[str, Any]) -> None:
    wanted = made(tmp_path, PLAIN.replace('models = "s3://bucket/models/"', models))
    (model,) = wanted.models.values()
    assert container.items() <= model["PrimaryContainer"].items()


@pytest.mark.parametrize(
    ("change", "model_changes", "config_changes"),
    [
        ("", False, False),
        ('env = { A = "1" }', True, True),
        ("count = 2", False, True),
        ("aws = { VolumeSizeInGB = 30 }", False, True),
        ('[tags]\nteam = "a"', False, False),
        ("[rollout]\ncanary_percent = 20", False, False),
        ("[aws]\nEnableNetworkIsolation = true", True, True),
        ('[aws.MultiModelConfig]\nModelCacheSetting = "Disabled"', True, True),
    ],
)
def test_names_change_with_their_content_and_with_nothing_else(
    tmp_path: Path, change: str, model_changes: bool, config_changes: bool
) -> None:
    """A second run is unchanged, and a rollout option alone moves no traffic."""
    before, after = made(tmp_path, PLAIN), made(tmp_path, PLAIN + change)
    assert (set(before.models) != set(after.models)) == model_changes
    assert (before.config["EndpointConfigName"] != after.config["EndpointConfigName"]) == config_changes


def test_variants_share_a_model_or_bring_their_own(tmp_path: Path) -> None:
    more = PLAIN + 'name = "A"\nweight = 9\n[[variant]]\nname = "B"\ninstance = "ml.m5.large"\n'
    assert len(made(tmp_path, more).models) == 1
    assert len(made(tmp_path, more + 'models = "s3://bucket/b/"').models) == 2


def test_a_rollout_names_its_alarms(tmp_path: Path) -> None:
    text = PLAIN + "[rollout]\nlinear_percent = 25\nbake_seconds = 60\n[rollout.alarms]\nerrors = 1\nlatency_ms = 500"
    deployment = made(tmp_path, text).endpoint["DeploymentConfig"]
    routing = deployment["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]
    assert routing["Type"] == "LINEAR"
    assert routing["LinearStepSize"] == {"Type": "CAPACITY_PERCENT", "Value": 25}
    names = [alarm["AlarmName"] for alarm in deployment["AutoRollbackConfiguration"]["Alarms"]]
    assert names == ["many-AllTraffic-errors", "many-AllTraffic-latency"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PLAIN + "cuont = 2", "did you mean count"),
        ("nam = 1" + PLAIN, "did you mean name"),
        (PLAIN.replace('name = "many"', ""), "name is missing"),
        (PLAIN + "count = true", r"variant\[0\]\.count: expected `int`, got `bool`"),
        (PLAIN + "env = { A = 1 }", r"variant\[0\]\.env\.A: expected `str`, got `int`"),
        (PLAIN.replace('many"', "m" * 55 + '"', 1), "1 to 54"),
        (PLAIN.replace("s3://bucket/models/", "https://x"), "s3://bucket/key"),
        (PLAIN.replace("s3://bucket/models/", "s3://bucket/models"), "end in /"),
        (PLAIN.replace("instance", "weight = 1 #"), "instance is missing"),
        (PLAIN + 'name = "A"\n[[variant]]\nname = "A"\ninstance = "ml.m5.large"', "two variants have the name 'A'"),
        (PLAIN + '[async]\noutput = "s3://bucket/out/"', "TargetModel"),
        (PLAIN.replace("m5.large", "t2.medium") + "[scaling]\nmax = 2\ninvocations_per_instance = 9", "cannot scale"),
        (PLAIN + "[serverless]", "serverless: instance is not supported"),
        (PLAIN + "[rollout]\ncanary_percent = 10\nrolling_percent = 20", "exclude"),
        (PLAIN + "[rollout]\nrolling_percent = 60", "5 to 50"),
        (PLAIN + "[rollout]\ncanary_percent = 60", "1 to 50"),
        (PLAIN + "weight = 0", "no variant has a weight over 0"),
        (PLAIN + "[scaling]\nmax = 2\ninvocations_per_instance = 0", "more than 0"),
        (PLAIN + "[scaling]\nmin = 0\nmax = 2\ninvocations_per_instance = 9", "only an asynchronous endpoint"),
        (PLAIN + "[scaling]\nmin = 3\nmax = 2\ninvocations_per_instance = 9", "1 <= min <= max"),
        (PLAIN + "[scaling]\nmax = 2", "invocations_per_instance is missing"),
        (PLAIN + "[scaling]\nmax = 2\nbacklog_per_instance = 9", "a real-time endpoint scales by invocations_per"),
        (QUEUED + "[scaling]\nmin = 0\nmax = 2", "backlog_per_instance is missing"),
        (QUEUED + "[scaling]\nmin = 0\nmax = 0\nbacklog_per_instance = 9", "0 <= min <= max"),
        (QUEUED + "[scaling]\nmin = -1\nmax = 2\nbacklog_per_instance = 9", "0 <= min <= max"),
        (QUEUED + "[scaling]\nmax = 2\nbacklog_per_instance = 0", "backlog_per_instance must be more than 0"),
        (QUEUED + "[scaling]\nmax = 2\ninvocations_per_instance = 9", "asynchronous endpoint scales by backlog_per"),
        ('role = "a b"' + PLAIN, "1 to 64"),
        (LIGHT + "provisioned = 9", "over concurrency 5"),
        (LIGHT + "memory_mb = 1500", "1024, 2048"),
        (PLAIN.replace("models/", "all.tar.gz") + '[async]\noutput = "https://bucket/out"', "async.output 'https"),
        (PLAIN + '[aws.DataCaptureConfig]\nDestinationS3Uri = "https://x"', "aws.DataCaptureConfig.DestinationS3Uri"),
        (LIGHT + '[async]\noutput = "s3://bucket/out/"', "remove these tables"),
        (LIGHT + "[rollout]\nrolling_percent = 20", "rolling_percent is not supported"),
        (LIGHT + "[aws]\nEnableNetworkIsolation = true", "does not support EnableNetworkIsolation"),
        (LIGHT.replace("all.tar.gz", "all/"), "serverless: models is not supported"),
        (PLAIN.replace("image", "#"), "image is missing, or model_package"),
        ('model_package = "g"' + PLAIN, "model_package: image comes from the model package; remove image"),
        (PLAIN + 'models = "s3://bucket/a/"\nmodel_package = "g"', "variant 'AllTraffic': model_package: models comes"),
        (PLAIN + 'model_package = "arn:aws:sagemaker"', "must be the name of a group, or a model package's ARN"),
        ("name = [", "not valid TOML"),
    ],
)
def test_an_invalid_spec_is_refused_by_its_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said) as refused:
        spec_of(tmp_path, text)
    assert "endpoint.toml" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("[aws]\nVpcConfg = {}", "did you mean VpcConfig"),
        ('[aws]\nExecutionRoleArn = "x"', "set by another key of the spec"),
        ("aws = { VolumeSize = 3 }", "did you mean VolumeSizeInGB"),
        ("aws = { VolumeSizeInGB = 9999 }", "over the limit of 512"),
        ('[aws.MultiModelConfig]\nModelCacheSetting = "Off"', "Enabled, Disabled"),
        ('[aws]\nKmsKeyId = "ä"', "KmsKeyId"),
        ("[aws.VpcConfig]\nSubnets = [1]", "Subnets"),
    ],
)
def test_a_request_that_aws_would_reject_is_refused_without_a_call(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        made(tmp_path, PLAIN + change)


def test_an_instance_type_that_does_not_exist_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"did you mean ml[.]m5[.]xlarge"):
        made(tmp_path, PLAIN.replace("ml.m5.large", "ml.m5.xlarg"))


def test_a_name_of_54_characters_makes_names_of_63(tmp_path: Path) -> None:
    """The longest accepted name; the names of the schedule and the roles stay within 64, IAM's limit."""
    wanted = made(tmp_path, PLAIN.replace("many", "m" * 54, 1))
    assert {len(name) for name in [*wanted.models, wanted.config["EndpointConfigName"]]} == {63}


def test_an_update_keeps_scaled_counts_and_takes_changed_weights(tmp_path: Path) -> None:
    """Data capture always comes from the spec; a weight only if the spec has changed it."""
    two = PLAIN + 'name = "A"\nweight = 9\n[[variant]]\nname = "B"\ninstance = "ml.m5.large"\n'
    before, other = made(tmp_path, two), made(tmp_path, two.replace("weight = 9", "weight = 8"))
    capture = [{"VariantPropertyType": "DataCaptureConfig"}]

    same = update_request(before.endpoint, before.config, before.config, scales=True)
    moved = update_request(other.endpoint, before.config, other.config, scales=True)

    assert "RetainAllVariantProperties" not in update_request(
        before.endpoint, before.config, before.config, scales=False
    )
    assert "Tags" not in same
    assert (same["RetainAllVariantProperties"], same["ExcludeRetainedVariantProperties"]) == (True, capture)
    assert moved["ExcludeRetainedVariantProperties"] == [*capture, {"VariantPropertyType": "DesiredWeight"}]
    aws.check_request("UpdateEndpoint", moved)


def test_serverless_and_async_have_their_own_fields(tmp_path: Path) -> None:
    light = made(tmp_path, LIGHT + "memory_mb = 4096\nprovisioned = 2").config["ProductionVariants"][0]
    queued = PLAIN.replace("models/", "all.tar.gz") + '[async]\noutput = "s3://bucket/out/"\nconcurrency = 4'
    assert light["ServerlessConfig"] == {"MemorySizeInMB": 4096, "MaxConcurrency": 5, "ProvisionedConcurrency": 2}
    assert "InstanceType" not in light
    assert made(tmp_path, queued).config["AsyncInferenceConfig"] == {
        "OutputConfig": {"S3OutputPath": "s3://bucket/out/"},
        "ClientConfig": {"MaxConcurrentInvocationsPerInstance": 4},
    }


def test_the_role_has_the_rights_that_the_spec_needs_and_no_others(tmp_path: Path) -> None:
    """Statements without resources are left out; only the two that cannot be narrower have a star."""
    more = '[async]\noutput = "s3://out/x"\ninputs = "s3://calls"\n'
    more += '[aws.VpcConfig]\nSubnets = ["s"]\nSecurityGroupIds = ["g"]'
    plain = roles.of_endpoint(spec_of(tmp_path, PLAIN), "123456789012", "eu-west-1")
    rich = roles.of_endpoint(spec_of(tmp_path, PLAIN.replace("models/", "all.tar.gz") + more), "1" * 12, "cn-north-1")
    said = {each["Sid"]: each["Resource"] for each in plain.policy["Statement"]}

    assert plain.name == "many-endpoint"
    assert said["Models"] == ["arn:aws:s3:::bucket/models/*"]
    assert said["ModelsList"] == ["arn:aws:s3:::bucket"]
    assert said["Image"] == ["arn:aws:ecr:eu-west-1:123456789012:repository/many"]
    assert said["Logs"] == "arn:aws:logs:eu-west-1:123456789012:log-group:/aws/sagemaker/Endpoints/many*"
    assert [sid for sid, resource in said.items() if resource == "*"] == ["ImageLogin", "Metrics"]
    assert not {"Inputs", "Written", "Network", "Keys"} & set(said)
    richer = {each["Sid"]: each["Resource"] for each in rich.policy["Statement"]}
    assert richer["Models"] == ["arn:aws-cn:s3:::bucket/all.tar.gz"]
    assert richer["Written"] == ["arn:aws-cn:s3:::out/x/*"]
    assert richer["Inputs"] == ["arn:aws-cn:s3:::out/x/inputs/*", "arn:aws-cn:s3:::calls/*"]
    assert richer["Network"] == ["*"]


def test_a_widened_role_has_each_statement_once_after_any_history(tmp_path: Path) -> None:
    """From one prefix to another and back: AWS refuses a policy with a duplicate Sid."""
    one, two = (
        roles.of_endpoint(spec_of(tmp_path, PLAIN.replace("models/", prefix)), "1" * 12, "eu-west-1").policy
        for prefix in ("models/", "others/")
    )

    away = roles.widest(two, one)
    back = roles.widest(one, away)

    assert roles.widest(two, away) == away
    sids = [each["Sid"] for each in back["Statement"]]
    assert len(sids) == len(set(sids))
    read = [each["Resource"][0] for each in back["Statement"] if each["Action"] == "s3:GetObject"]
    assert read == ["arn:aws:s3:::bucket/models/*", "arn:aws:s3:::bucket/others/*"]


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("many", ("", "many", "latest", "")),
        ("team/many:v1", ("", "team/many", "v1", "")),
        ("localhost/many:v1", ("localhost", "many", "v1", "")),
        ("host:5000/team/many@sha256:ab", ("host:5000", "team/many", "latest", "sha256:ab")),
    ],
)
def test_an_image_is_host_repository_tag_and_digest(image: str, parts: tuple[str, ...]) -> None:
    assert spec.image_parts(image) == parts


def test_the_plan_needs_no_credentials_and_is_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    path = tmp_path / "endpoint.toml"
    path.write_text(PLAIN + "[scaling]\nmax = 2\ninvocations_per_instance = 9\n[rollout.alarms]\nerrors = 1")

    code = main(["up", "--plan", str(path)])

    said = json.loads(capsys.readouterr().out)
    assert code == 0
    assert [next(iter(each)) for each in said] == [
        *("CreateRole", "PutRolePolicy", "CreateModel", "CreateEndpointConfig", "PutMetricAlarm"),
        *("CreateEndpoint", "RegisterScalableTarget", "PutScalingPolicy"),
    ]


def test_a_request_that_aws_would_reject_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stderr and exit code 2, as for a spec that is not valid TOML."""
    path = tmp_path / "endpoint.toml"
    path.write_text(PLAIN + "aws = { VolumeSizeInGB = 9999 }")

    code = main(["up", "--plan", str(path)])

    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert said.err.startswith(f"{path}: CreateEndpointConfig: ProductionVariants[0].VolumeSizeInGB: 9999 is over")
