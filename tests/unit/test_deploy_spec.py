"""A spec is read strictly, becomes the very requests AWS gets, and its names change exactly when its content does."""

from pathlib import Path
from typing import Any

import pytest

from deploy.requests import Desired, desired
from deploy.spec import Spec, load
from deploy.table import SpecError

ROLE = "arn:aws:iam::123456789012:role/many"
IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/many@sha256:" + "0" * 64
PLAIN = """
name = "many"
image = "many:latest"
models = "s3://bucket/models/"
[[variant]]
instance = "ml.m5.large"
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
def test_names_change_with_what_they_name_and_with_nothing_else(
    tmp_path: Path, change: str, model_changes: bool, config_changes: bool
) -> None:
    """So that a second run is unchanged, and a rollout option alone moves no traffic."""
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
        (PLAIN + "count = true", "count must be a whole number, not True"),
        (PLAIN + "env = { A = 1 }", "env.A must be a string"),
        (PLAIN.replace('many"', "m" * 55 + '"', 1), "1 to 54"),
        (PLAIN.replace("s3://bucket/models/", "https://x"), "s3://bucket/key"),
        (PLAIN.replace("s3://bucket/models/", "s3://bucket/models"), "end in /"),
        (PLAIN.replace("instance", "weight = 1 #"), "instance is missing"),
        (PLAIN + 'name = "A"\n[[variant]]\nname = "A"\ninstance = "ml.m5.large"', "two variants"),
        (PLAIN + '[async]\noutput = "s3://bucket/out/"', "TargetModel"),
        (PLAIN.replace("m5.large", "t2.medium") + "[scaling]\nmax = 2\ninvocations_per_instance = 9", "cannot scale"),
        (PLAIN + "[serverless]", "serverless: instance"),
        (PLAIN + "[rollout]\ncanary_percent = 10\nrolling_percent = 20", "exclude"),
        (PLAIN + "[rollout]\nrolling_percent = 60", "5 to 50"),
        ("name = [", "not TOML"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said) as refused:
        spec_of(tmp_path, text)
    assert "endpoint.toml" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("[aws]\nVpcConfg = {}", "did you mean VpcConfig"),
        ('[aws]\nExecutionRoleArn = "x"', "set by a key of the spec"),
        ("aws = { VolumeSize = 3 }", "did you mean VolumeSizeInGB"),
        ("aws = { VolumeSizeInGB = 9999 }", "over the limit of 512"),
        ('[aws.MultiModelConfig]\nModelCacheSetting = "Off"', "Enabled, Disabled"),
        ('[aws]\nKmsKeyId = "ä"', "KmsKeyId"),
        ("[aws.VpcConfig]\nSubnets = [1]", "Subnets"),
    ],
)
def test_what_aws_would_refuse_is_refused_without_asking_it(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        made(tmp_path, PLAIN + change)


def test_an_instance_type_that_does_not_exist_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"did you mean ml[.]m5[.]xlarge"):
        made(tmp_path, PLAIN.replace("ml.m5.large", "ml.m5.xlarg"))
