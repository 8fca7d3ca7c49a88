"""`python -m deploy promote` on the emulator: what staging serves and its smoke calls have tested, production gets."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import deploys
from tests.live.account import Account
from tests.live.deploys import Deploy, spec
from tests.live.test_deploy_packages import registered
from tests.live.test_deploy_packages import spec as package_spec

NEXT = "\nenv = { A = '1' }\n"


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with deploys.prepared(tmp_path_factory.mktemp("w"), tmp_path_factory.mktemp("m")) as made:
        yield made


@pytest.fixture
def deploy(capsys: pytest.CaptureFixture[str]) -> Deploy:
    return deploys.command(capsys)


def container(aws: Account, name: str) -> dict[str, str]:
    """The container of the endpoint's model."""
    config = aws.sagemaker.describe_endpoint_config(EndpointConfigName=aws.describe(name)["EndpointConfigName"])
    model = aws.sagemaker.describe_model(ModelName=config["ProductionVariants"][0]["ModelName"])
    return dict(model["PrimaryContainer"])


def test_production_gets_the_digest_and_a_copy_of_the_models(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """Into its own bucket; a drifted staging is refused, and production rolls back if its calls fail."""
    aws.s3.create_bucket(Bucket="production")
    checks = tmp_path / "checks"
    checks.write_text("- text/plain hello\n")
    staging = spec(tmp_path, "staging", more='smoke = "checks"')
    production = spec(tmp_path, "live", more='smoke = "checks"')
    production.write_text(
        production.read_text().replace("s3://models/", "s3://production/").replace("serve:latest", "serve:next")
    )
    early = deploy("promote", staging, production)
    up = deploy("up", staging)
    promoted = deploy("promote", staging, production, "--json")
    result = json.loads(promoted[1].splitlines()[0])
    ours, theirs = container(aws, "live"), container(aws, "staging")
    again = deploy("promote", staging, production)
    before = aws.describe("live")["EndpointConfigName"]

    scale = [{"VariantName": "AllTraffic", "DesiredWeight": 2}]
    aws.sagemaker.update_endpoint_weights_and_capacities(EndpointName="staging", DesiredWeightsAndCapacities=scale)
    aws.settled("staging")
    drifted = deploy("promote", staging, production)
    scale[0]["DesiredWeight"] = 1
    aws.sagemaker.update_endpoint_weights_and_capacities(EndpointName="staging", DesiredWeightsAndCapacities=scale)
    aws.settled("staging")
    strict = tmp_path / "strict"
    strict.write_text("nobody text/plain hello\n")
    production.write_text(production.read_text().replace('"checks"', '"strict"') + NEXT)
    failed = deploy("promote", staging, production)
    checks.write_text("nobody text/plain hello\n")
    untested = deploy("promote", staging, production)
    unnamed = deploy("promote", spec(tmp_path, "staging"), production)

    assert early[0] == 1
    assert "staging is not as its spec says, so nothing was promoted" in early[1]
    assert "status is InService in the spec, missing in AWS" in early[1]
    assert up[0] == 0, up
    assert promoted[0] == 0, promoted
    assert ours["Image"] == theirs["Image"]
    assert "@sha256:" in ours["Image"]
    assert theirs["ModelDataUrl"] == "s3://models/echo.tar.gz"
    assert ours["ModelDataUrl"].startswith("s3://production/echo-")
    assert result["artifacts"]["AllTraffic"]["models"] == ours["ModelDataUrl"]
    assert list(result["versions"]) == ["s3://models/echo.tar.gz"]
    assert again[0] == 0
    assert "unchanged\n" in again[1]
    assert f'image = "{ours["Image"]}"\n  models = "{ours["ModelDataUrl"]}"\n' in again[1]
    assert drifted[0] == 1
    assert "weight is 1 in the spec, 2 in AWS" in drifted[1]
    assert (failed[0], f"rolled back to {before}" in failed[1]) == (1, True), failed
    assert aws.describe("live")["EndpointConfigName"] == before
    assert (untested[0], "smoke AllTraffic nobody: the container answered 404" in untested[1]) == (1, True), untested
    assert (unnamed[0], "smoke is missing" in unnamed[1]) == (2, True)
    for name in ("staging", "live"):
        assert deploy("down", name)[0] == 0


def test_a_model_package_is_promoted_by_its_arn(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """A newer approved package is another one: staging does not serve it, so it is drift."""
    checks = tmp_path / "checks"
    checks.write_text("- text/plain hello\n")
    arn = registered(aws, "cars", ModelApprovalStatus="Approved")
    staging, production = package_spec(tmp_path, "try", "cars"), package_spec(tmp_path, "shop", "cars")
    assert deploy("up", staging)[0] == 0

    promoted = deploy("promote", staging, production, "--smoke", checks)
    registered(aws, "cars", ModelApprovalStatus="Approved")
    newer = deploy("promote", staging, production, "--smoke", checks)

    assert promoted[0] == 0, promoted
    assert f'model_package = "{arn}"\n' in promoted[1]
    assert container(aws, "shop")["ModelPackageName"] == arn
    assert (newer[0], f"ModelPackageName is {arn[:-1]}2 in the spec, {arn} in AWS" in newer[1]) == (1, True), newer
    for name in ("try", "shop"):
        assert deploy("down", name)[0] == 0
