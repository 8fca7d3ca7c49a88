"""`python -m deploy` against the emulator: create, update, roll back, delete."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import endpoint
from deploy.aws import Aws
from deploy.progress import Progress
from deploy.spec import load
from tests.live import deploys
from tests.live.account import Account, variant
from tests.live.clients import Killed, KilledAfterOneChange, refusing
from tests.live.conftest import Later
from tests.live.deploys import SCALES, Deploy, spec
from tests.live.stack import ROOT, wait_until


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with deploys.prepared(tmp_path_factory.mktemp("w"), tmp_path_factory.mktemp("m")) as made:
        yield made


@pytest.fixture
def deploy(capsys: pytest.CaptureFixture[str]) -> Deploy:
    return deploys.command(capsys)


def test_up_again_is_unchanged_and_down_leaves_nothing(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """A new setting is an update, after which the old configuration and model are deleted."""
    plain = spec(tmp_path, "life")

    first = deploy("up", plain)
    again = deploy("up", plain)
    before = aws.describe("life")["EndpointConfigName"]
    other = deploy("up", spec(tmp_path, "life", settings='env = { SERVE_THREADS = "1" }'))
    after = aws.describe("life")["EndpointConfigName"]
    configs = [each["EndpointConfigName"] for each in aws.sagemaker.list_endpoint_configs()["EndpointConfigs"]]
    models = [each["ModelName"] for each in aws.sagemaker.list_models()["Models"]]
    shown = deploy("status", "life")
    down = deploy("down", "life")

    assert first[0] == 0, first
    assert again == (0, "unchanged\n")
    assert other[0] == 0, other
    assert before != after
    assert [name for name in configs if name.startswith("life")] == [after]
    assert len([name for name in models if name.startswith("life")]) == 1
    assert "InService" in shown[1]
    assert down[0] == 0, down
    assert down[1].endswith("nothing of life is left\n")
    assert endpoint.leftovers("life", Aws()) == []
    assert deploy("down", "life") == (0, "nothing of life is left\n")


def test_a_run_killed_after_any_step_is_resumed(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """Each run is killed after one change, and the next resumes there, until all is created, updated, deleted."""

    def runs(*words: object) -> list[str]:
        """The call after which each run was killed, until a run changes nothing."""
        last = []
        while True:
            try:
                code, said = deploy(*words, make=KilledAfterOneChange)
            except Killed as killed:
                last.append(str(killed))
                assert len(last) < 40, last
            else:
                assert code == 0, said
                return last

    created = runs("up", spec(tmp_path, "steps", more=SCALES))
    changed = runs("up", spec(tmp_path, "steps", more='env = { SERVE_THREADS = "1" }'))
    now = aws.describe("steps")
    ending = runs("up", spec(tmp_path, "steps", more='env = { SERVE_THREADS = "1" }'), "--for", "4h")
    deleted = runs("down", "steps")

    alarms = ["PutMetricAlarm"] * 2
    scaling = ["RegisterScalableTarget", "PutScalingPolicy"]
    made = ["CreateRole", "PutRolePolicy", "CreateModel", "CreateEndpointConfig"]
    assert created == [*made, *alarms, "CreateEndpoint", *scaling]
    swept = ["DeregisterScalableTarget", "DeleteAlarms", "DeleteEndpointConfig", "DeleteModel"]
    assert changed == ["CreateModel", "CreateEndpointConfig", "UpdateEndpoint", *swept]
    assert now["EndpointStatus"] == "InService"
    assert ending == ["CreateRole", "PutRolePolicy", "CreateSchedule"]
    roles = ["DeleteRolePolicy", "DeleteRole"] * 2
    assert deleted == ["DeleteEndpoint", "DeleteSchedule", *roles, "DeleteEndpointConfig", "DeleteModel"]
    assert endpoint.leftovers("steps", Aws()) == []


def test_a_killed_process_is_resumed(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """SIGKILL while the endpoint is being created: the next `up` waits for it and changes nothing else."""
    file = spec(tmp_path, "killed")
    process = subprocess.Popen([sys.executable, "-m", "deploy", "up", str(file)], cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until(lambda: aws.exists("killed"))
    process.kill()
    process.wait()

    again = deploy("up", file)

    assert again[0] == 0, again
    assert "created" not in again[1]
    assert aws.describe("killed")["EndpointStatus"] == "InService"
    deploy("down", "killed")


def test_a_fleet_that_does_not_start_is_rolled_back(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """The old fleet answers; exit code 1 with the reason and the log's last lines; the old spec is unchanged."""
    assert deploy("up", spec(tmp_path, "back"))[0] == 0
    before = aws.describe("back")["EndpointConfigName"]

    failed = deploy("up", spec(tmp_path, "back", settings='env = { SERVE_NO_SUCH_SETTING = "1" }'))
    shown = deploy("logs", "back")
    good = spec(tmp_path, "back")
    again = deploy("up", good)

    assert failed[0] == 1
    assert f"rolled back to {before}" in failed[1]
    assert "did not pass the ping health check" in failed[1]
    assert "SERVE_NO_SUCH_SETTING" in failed[1]
    assert "Traceback" not in failed[1]
    assert shown[0] == 0
    assert re.search(r"AllTraffic/\S+  .*SERVE_NO_SUCH_SETTING", shown[1]), shown[1]
    assert again[0] == 0
    assert "updated" not in again[1]  # only the failed update's model and configuration are deleted
    assert deploy("up", good) == (0, "unchanged\n")
    assert aws.describe("back")["EndpointConfigName"] == before
    assert deploy("down", "back")[0] == 0


def test_an_endpoint_that_never_started_is_created_again(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """AWS does not allow updates of a Failed endpoint: exit code 1 with the reason; the next `up` deletes it first.

    Its scheduled deletion exists all the same, because the endpoint costs from its creation on.
    """
    failed = deploy("up", spec(tmp_path, "never", settings='env = { SERVE_NO_SUCH_SETTING = "1" }'), "--for", "4h")
    status = deploy("status", "never")
    again = deploy("up", spec(tmp_path, "never"))

    assert failed[0] == 1
    assert "endpoint never is Failed" in failed[1]
    assert "Failed" in status[1]
    assert "deleted at" in status[1]
    assert again[0] == 0, again
    assert "endpoint never is Failed (" in again[1]
    assert deploy("down", "never")[0] == 0


def test_throttling_and_late_visibility_are_retried(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """Each call fails at first, as on AWS; the output mentions only the other process's update."""
    busy = ("ValidationException", 'Cannot update in-progress endpoint "arn:x".')
    unseen = ("ValidationException", "Could not find endpoint configuration")
    make, made = refusing(
        {
            "CreateRole": [("ThrottlingException", "Rate exceeded")],
            "CreateModel": [("ValidationException", "Could not assume role arn:aws:iam::1:role/blind-endpoint")],
            "CreateEndpointConfig": [("ValidationException", 'Could not find model "blind"')],
            "CreateEndpoint": [("ThrottlingException", "Rate exceeded"), unseen, busy],
            "DescribeEndpoint": [("ThrottlingException", "Rate exceeded")],
        }
    )

    code, said = deploy("up", spec(tmp_path, "blind"), make=make)

    assert code == 0, said
    assert "Rate" not in said
    assert "another process is changing endpoint blind: waiting for it" in said
    assert {name: made[0].calls[name] for name in ("CreateModel", "CreateEndpointConfig")} == {
        # Once more each for late visibility, before each retry of CreateEndpoint, when it began, and when it arrived.
        "CreateModel": 7,
        "CreateEndpointConfig": 6,
    }
    assert deploy("down", "blind")[0] == 0


@pytest.mark.parametrize(
    ("operation", "fault", "said"),
    [
        ("CreateModel", ("ExpiredTokenException", "The security token has expired"), "sign in again"),
        ("DescribeImages", ("UnrecognizedClientException", "The token is invalid."), "get-caller-identity"),
        (
            "CreateModel",
            ("AccessDeniedException", "User x is not authorized to perform: sagemaker:CreateModel on resource: y"),
            "allow sagemaker:CreateModel",
        ),
        ("CreateEndpoint", ("ResourceLimitExceeded", "The account-level service limit is 0"), "Service Quotas"),
        ("GetRole", ("AccessDenied", "not authorized"), "role = "),
    ],
)
def test_an_error_is_one_line_and_the_next_step(
    aws: Account, deploy: Deploy, tmp_path: Path, operation: str, fault: tuple[str, str], said: str
) -> None:
    """A later command converges: here `down` deletes everything."""
    make, _ = refusing({operation: [fault]})

    code, told = deploy("up", spec(tmp_path, "refused"), make=make)

    assert code == 1
    assert said in told
    assert "Traceback" not in told
    assert len(told.splitlines()) < 8
    assert deploy("down", "refused")[0] == 0


def test_two_concurrent_runs_create_one_endpoint(aws: Account, deploy: Deploy, tmp_path: Path, later: Later) -> None:
    """The same spec twice: both succeed, and one of them waits for the other or finds the endpoint unchanged."""
    file = spec(tmp_path, "both")

    def run() -> list[str]:
        progress = Progress(io.StringIO())
        return endpoint.up(load(file), Aws(), progress).changes

    runs = [later(run) for _ in range(2)]
    changes = [each.result() for each in runs]

    said = [line for each in changes for line in each if line == "endpoint both is being created"]
    assert len(said) == 1
    assert deploy("up", file) == (0, "unchanged\n")
    assert deploy("down", "both")[0] == 0


def test_an_endpoint_of_another_owner_is_not_changed(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """An endpoint without the owner's tag is neither updated nor deleted."""
    aws.model("theirs", {"ModelDataUrl": "s3://models/echo.tar.gz"})
    aws.config("theirs", variant("theirs"))
    aws.sagemaker.create_endpoint(EndpointName="theirs", EndpointConfigName="theirs")

    up, down = deploy("up", spec(tmp_path, "theirs")), deploy("down", "theirs")
    moved = deploy("traffic", "theirs", "AllTraffic=2")

    assert (up[0], down[0], moved[0]) == (1, 1, 1)
    assert "not created by `python -m deploy`" in moved[1]
    assert "not created by `python -m deploy`" in up[1]
    assert aws.settled("theirs")["EndpointConfigName"] == "theirs"
    aws.delete("theirs")
    assert deploy("down", "theirs")[0] == 0
    assert "theirs" in [each["ModelName"] for each in aws.sagemaker.list_models()["Models"]]


AB = """
name = "B"
count = 1
weight = 1
[[variant]]
name = "A"
weight = 9
instance = "ml.m5.large"
"""


def test_traffic_is_moved_and_smoke_reaches_every_variant(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """Weights change in place; a failing call rolls the update back, after every call was made."""
    checks = tmp_path / "checks"
    checks.write_text("# MODEL TYPE PAYLOAD\n- text/plain hello\n")
    file = spec(tmp_path, "ab", settings=AB)
    up = deploy("up", file, "--smoke", checks)
    before = aws.describe("ab")["EndpointConfigName"]

    moved = deploy("traffic", "ab", "A=0", "B=1")
    weights = {each["VariantName"]: each["CurrentWeight"] for each in aws.describe("ab")["ProductionVariants"]}
    same = deploy("traffic", "ab", "A=0")
    wrong, none = deploy("traffic", "ab", "C=1"), deploy("traffic", "ab", "B=0")
    body = tmp_path / "body.txt"
    body.write_text("hi")
    answered = deploy("invoke", "ab", "--variant", "A", body)
    streamed = deploy("invoke", "ab", "--stream", body)
    refused = deploy("invoke", "ab", "--attributes", "model_type=nobody", body)
    missing = deploy("invoke", "ab", tmp_path / "nothing.txt")
    checks.write_text("- text/plain hello\nnobody text/plain hello\n")
    (tmp_path / "more").mkdir()
    failed = deploy(
        "up", spec(tmp_path / "more", "ab", settings=AB.replace("weight = 9", "weight = 8")), "--smoke", checks
    )

    assert up[0] == 0, up
    assert "smoke A -: 200 in" in up[1]
    assert "smoke B -: 200 in" in up[1]
    assert moved == (0, "A: 9 -> 0\nB: 1 -> 1\n")
    assert weights == {"A": 0.0, "B": 1.0}
    assert same == (0, "unchanged\n")
    assert (wrong[0], "unknown variant C; known: " in wrong[1]) == (1, True)
    assert (none[0], "none would receive traffic" in none[1]) == (1, True)
    assert answered[0] == 0
    assert ":hi\n200 from A in" in answered[1]
    assert (streamed[0], ":hi\n200 from B in" in streamed[1]) == (0, True)
    assert (refused[0], "the container answered 404" in refused[1]) == (1, True)
    assert (missing[0], "nothing.txt: No such file" in missing[1]) == (1, True)
    assert failed[0] == 1
    assert "smoke A nobody: the container answered 404" in failed[1]
    assert f"rolled back to {before}" in failed[1]
    assert aws.describe("ab")["EndpointConfigName"] == before
    assert deploy("down", "ab")[0] == 0


def test_a_multi_model_endpoint_scales_and_is_deleted_on_schedule(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """An update keeps scaled counts; another instance type starts at the spec's; `down` deletes the schedule.

    `roles` prints every right that these commands need.
    """
    checks = tmp_path / "checks"
    checks.write_text("echo.tar.gz text/plain @body\n")
    (tmp_path / "body").write_text("hello")
    many = {"models": "many/", "more": SCALES}
    noting, noted = refusing({})
    first = deploy("up", spec(tmp_path, "many", **many), "--smoke", checks, "--for", "4h", "--json", make=noting)
    scale = [{"VariantName": "AllTraffic", "DesiredInstanceCount": 2}]
    aws.sagemaker.update_endpoint_weights_and_capacities(EndpointName="many", DesiredWeightsAndCapacities=scale)
    aws.settled("many")
    shown = json.loads(deploy("status", "many", "--json")[1])

    second = deploy("up", spec(tmp_path, "many", **many, settings='env = { SERVE_THREADS = "1" }'))
    kept = aws.describe("many")["ProductionVariants"][0]["CurrentInstanceCount"]
    other = spec(tmp_path, "many", **many, settings='env = { SERVE_THREADS = "1" }')
    other.write_text(other.read_text().replace("ml.m5.large", "ml.m5.xlarge"))
    third = deploy("up", other)
    anew = aws.describe("many")["ProductionVariants"][0]["CurrentInstanceCount"]
    down = deploy("down", "many", make=noting)
    allowed = json.loads(deploy("roles", other)[1])[-1]["PolicyDocument"]["Statement"]

    assert first[0] == 0, first
    actions = {
        action
        for each in allowed
        for action in ([each["Action"]] if isinstance(each["Action"], str) else each["Action"])
    }
    assert {action for each in noted for action in each.actions} - actions == {
        "sts:GetCallerIdentity"
    }  # needs no permission
    assert json.loads(first[1].splitlines()[0])["changed"] is True
    assert "smoke AllTraffic echo.tar.gz: 200" in first[1]
    assert shown["deleted_at"].endswith("UTC")
    assert (shown["variants"][0]["scaling"], shown["variants"][0]["multi_model"]) == ("1-2", True)
    assert (second[0], kept) == (0, 2)
    assert third[0] == 0, third
    assert "AllTraffic no longer scales\n" in third[1]
    assert "AllTraffic scales from 1 to 2" in third[1]
    assert anew == 1
    assert "schedule many-delete deleted" in down[1]
    assert "role many-scheduler deleted" in down[1]
    assert endpoint.leftovers("many", Aws()) == []


def test_an_alarm_rolls_the_update_back(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """Half of the traffic is on the new fleet for an hour: the spec's alarm ends the update, exit code 1."""
    assert deploy("up", spec(tmp_path, "alarmed"))[0] == 0
    rollout = "[rollout]\ncanary_percent = 50\nbake_seconds = 3600\nalarms = { errors = 1 }\n"
    file = spec(tmp_path, "alarmed", more='env = { SERVE_THREADS = "1" }\n' + rollout)
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy", "up", str(file)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    seen = next(line for line in process.stdout if "Baking" in line)

    aws.cloudwatch.set_alarm_state(AlarmName="alarmed-AllTraffic-errors", StateValue="ALARM", StateReason="a test")
    said, _ = process.communicate()

    assert process.returncode == 1
    assert "rolled back to alarmed-" in said
    assert "ALARM state: alarmed-AllTraffic-errors" in said
    assert seen.startswith("endpoint alarmed: Updating, Baking (")
    assert deploy("down", "alarmed")[0] == 0


def test_a_missing_image_or_bucket_is_an_error_before_any_change(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """Nothing is created for an image that was not pushed, or a bucket that is missing or in another region."""
    far = aws.platform.client("s3")
    far.create_bucket(Bucket="far", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    file = spec(tmp_path, "early")
    text = file.read_text()

    def said(old: str, new: str) -> tuple[int, str]:
        file.write_text(text.replace(old, new))
        return deploy("up", file)

    unpushed, untagged = said("serve:latest", "none:latest"), said("serve:latest", "serve:v9")
    elsewhere, nowhere = said("s3://models/", "s3://far/"), said("s3://models/", "s3://nowhere/")
    misspelt = said("image", "imge")

    assert (unpushed[0], "build_and_push.sh none latest" in unpushed[1]) == (1, True)
    assert (untagged[0], "build_and_push.sh serve v9" in untagged[1]) == (1, True)
    assert (elsewhere[0], "is in eu-west-1, the endpoint in us-east-1" in elsewhere[1]) == (1, True)
    assert (nowhere[0], "bucket nowhere not found" in nowhere[1]) == (1, True)
    assert (misspelt[0], "did you mean image" in misspelt[1]) == (2, True)
    assert endpoint.leftovers("early", Aws()) == []


def test_old_models_stay_readable_until_an_update_to_other_models_has_ended(
    aws: Account, deploy: Deploy, tmp_path: Path
) -> None:
    """A role narrowed too early would break the fleet in service, and the one after a rollback."""

    def readable() -> list[str]:
        document = aws.platform.client("iam").get_role_policy(RoleName="moved-endpoint", PolicyName="deploy-moved")
        statements = document["PolicyDocument"]["Statement"]
        return [resource for each in statements if "s3:GetObject" in each["Action"] for resource in each["Resource"]]

    old, new = "arn:aws:s3:::models/echo.tar.gz", "arn:aws:s3:::models/many/*"
    no_wait = deploy("up", spec(tmp_path, "moved"), "--no-wait")
    again = deploy("up", spec(tmp_path, "moved"), "--no-wait", "--json")
    here = deploy("up", spec(tmp_path, "moved"))
    first = readable()
    broken = {"models": "many/", "settings": 'env = { SERVE_NO_SUCH_SETTING = "1" }'}
    failed = [deploy("up", spec(tmp_path, "moved", **broken))[0] for _ in range(2)]
    both = readable()
    moved = deploy("up", spec(tmp_path, "moved", models="many/"))

    assert no_wait[0] == 0, no_wait
    assert json.loads(again[1].splitlines()[-1])["changed"] is False
    assert here[0] == 0, here
    assert first == [old]
    assert failed == [1, 1]
    assert sorted(both) == [old, new]
    assert moved[0] == 0, moved
    assert readable() == [new]
    assert deploy("down", "moved")[0] == 0
