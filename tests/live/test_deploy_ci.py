"""The two roles of examples/ci on the emulator: their policies have the right of every call, and no other."""

import json
import os
import shlex
from collections.abc import Iterator

import pytest
import yaml

from tests.live import deploys
from tests.live.account import Account
from tests.live.clients import refusing
from tests.live.deploys import Deploy
from tests.live.stack import ROOT
from tests.live.test_deploy_packages import registered

CI = ROOT / "examples" / "ci"
ROLES = {name: f"arn:aws:iam::123456789012:role/{name}" for name in ("pipeline", "function")}
# No permission is needed for the first; iam:PassRole is no call; rights to update are used by a second run.
FREE, UNSEEN = {"sts:GetCallerIdentity"}, {"iam:PassRole", "sagemaker:UpdatePipeline"}


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with deploys.prepared(tmp_path_factory.mktemp("w"), tmp_path_factory.mktemp("m")) as made:
        yield made


@pytest.fixture
def deploy(capsys: pytest.CaptureFixture[str]) -> Deploy:
    return deploys.command(capsys)


def allowed(name: str) -> set[str]:
    found: set[str] = set()
    for each in json.loads((CI / "roles" / f"{name}.json").read_text())["Statement"]:
        found |= {each["Action"]} if isinstance(each["Action"], str) else set(each["Action"])
    return found


def test_the_planning_role_may_plan_and_compare(aws: Account, deploy: Deploy) -> None:
    """Also where the endpoint is there, and differs from its spec."""
    file = CI / "endpoint.toml"
    aws.sagemaker.create_model_package_group(ModelPackageGroupName="tuned-model")
    noting, noted = refusing({})
    empty = deploy("diff", file, make=noting)
    registered(aws, "tuned-model", ModelApprovalStatus="Approved")
    absent = deploy("diff", file, make=noting)
    up = deploy("up", file)
    registered(aws, "tuned-model", ModelApprovalStatus="Approved")

    planned, differs = deploy("up", file, "--plan", make=noting), deploy("diff", file, make=noting)

    assert (empty[0], "has no approved model package" in empty[1]) == (1, True), empty
    assert (absent[0], up[0], planned[0], differs[0]) == (3, 0, 0, 3), (absent, up, planned, differs)
    used = {action for each in noted for action in each.actions}
    # Policies of scalable targets are asked for where the spec scales.
    assert used - FREE == allowed("plan") - {"application-autoscaling:DescribeScalingPolicies"}
    assert deploy("down", "tuned-model")[0] == 0


def test_the_deploying_role_may_update_and_start_the_pipeline(
    aws: Account, deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the roles of the pipeline given, so that none is made. The start is refused here: nothing is trained."""
    noting, noted = refusing({"StartPipelineExecution": [("ResourceLimitExceeded", "The limit is 0")]})
    values = {"BUCKET": "models", "IMAGE": "serve", "INPUT_DATA": "s3://models/train"}
    for name, value in {**values, "PIPELINE_ROLE": ROLES["pipeline"], "FUNCTION_ROLE": ROLES["function"]}.items():
        monkeypatch.setenv(name, value)
    commands = yaml.safe_load((CI / "buildspec-deploy.yml").read_text())["phases"]["build"]["commands"]

    installed, begun = (deploy(*shlex.split(os.path.expandvars(each))[3:], make=noting) for each in commands)
    aws.sagemaker.delete_pipeline(PipelineName="tuned-model", ClientRequestToken="t" * 32)

    assert installed[0] == 0, installed
    assert (begun[0], "The limit is 0" in begun[1]) == (1, True), begun
    used = {action for each in noted for action in each.actions}
    assert used - FREE == allowed("deploy") - UNSEEN
