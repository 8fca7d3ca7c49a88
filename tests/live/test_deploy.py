"""`python -m deploy` against the emulated platform: up, changed, rolled back, down, by boto3 alone."""

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import endpoint, removal
from deploy.aws import Aws
from deploy.progress import Progress
from deploy.spec_file import load
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
    """A new setting is an update, after which the old configuration and model are gone."""
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
    assert removal.leftovers("life", Aws()) == []
    assert deploy("down", "life") == (0, "nothing of life is left\n")


def test_every_step_may_be_the_last(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """Killed after each single change, the next run goes on from there, until all is created, updated, deleted."""

    def runs(*words: object) -> list[str]:
        """The call after which each run was killed, until one had nothing left to do."""
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
    assert removal.leftovers("steps", Aws()) == []


def test_a_killed_process_is_taken_up_where_it_was(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """SIGKILL while the endpoint is being created; the next `up` waits for it and finds nothing else to do."""
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


def test_what_does_not_come_up_is_rolled_back(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """The old one still answers; exit code 1 with the reason and the log's last lines; the good spec is unchanged."""
    assert deploy("up", spec(tmp_path, "back"))[0] == 0
    before = aws.describe("back")["EndpointConfigName"]
    logs, group = aws.platform.client("logs"), "/aws/sagemaker/Endpoints/back"
    logs.create_log_group(logGroupName=group)
    logs.create_log_stream(logGroupName=group, logStreamName="AllTraffic/i-1")
    event = {"timestamp": int(time.time() * 1000), "message": "no such setting"}
    logs.put_log_events(logGroupName=group, logStreamName="AllTraffic/i-1", logEvents=[event])

    failed = deploy("up", spec(tmp_path, "back", settings='env = { SERVE_NO_SUCH_SETTING = "1" }'))
    shown = deploy("logs", "back")
    good = spec(tmp_path, "back")
    again = deploy("up", good)

    assert failed[0] == 1
    assert f"rolled back to {before}" in failed[1]
    assert "did not pass the ping health check" in failed[1]
    assert "no such setting" in failed[1]
    assert "Traceback" not in failed[1]
    assert shown[0] == 0
    assert "AllTraffic/i-1  no such setting" in shown[1]
    assert again[0] == 0
    assert "updated" not in again[1]  # only what the failed one left is swept
    assert deploy("up", good) == (0, "unchanged\n")
    assert aws.describe("back")["EndpointConfigName"] == before
    assert deploy("down", "back")[0] == 0


def test_one_that_never_came_up_is_made_anew(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """Failed, which AWS lets nobody update: exit 1 with the reason; the next `up` deletes it first.

    What is to end it by itself is there all the same: it costs from its beginning on.
    """
    failed = deploy("up", spec(tmp_path, "never", settings='env = { SERVE_NO_SUCH_SETTING = "1" }'), "--for", "4h")
    status = deploy("status", "never")
    again = deploy("up", spec(tmp_path, "never"))

    assert failed[0] == 1
    assert "endpoint never is Failed" in failed[1]
    assert "Failed" in status[1]
    assert "deleted at" in status[1]
    assert again[0] == 0, again
    assert "had failed" in again[1]
    assert deploy("down", "never")[0] == 0


def test_throttling_and_blindness_for_what_is_new_are_waited_out(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """Each step is refused at first, as AWS does; its user hears only that somebody else's update is in the way."""
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
    assert "somebody else is changing blind now" in said
    assert {name: made[0].calls[name] for name in ("CreateModel", "CreateEndpointConfig")} == {
        "CreateModel": 4,  # the second for the blindness, the others before CreateEndpoint is tried again
        "CreateEndpointConfig": 4,
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
def test_a_refusal_is_one_line_and_what_to_do(
    aws: Account, deploy: Deploy, tmp_path: Path, operation: str, fault: tuple[str, str], said: str
) -> None:
    """And after it the same command converges: here, by going back to nothing."""
    make, _ = refusing({operation: [fault]})

    code, told = deploy("up", spec(tmp_path, "refused"), make=make)

    assert code == 1
    assert said in told
    assert "Traceback" not in told
    assert len(told.splitlines()) < 8
    assert deploy("down", "refused")[0] == 0


def test_two_at_once_do_no_harm(aws: Account, deploy: Deploy, tmp_path: Path, later: Later) -> None:
    """The same spec twice: one endpoint, both done, and one says that somebody else is at it or finds it unchanged."""
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


def test_what_others_made_is_left_alone(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """An endpoint of the same name that has not our tag is neither updated nor deleted."""
    aws.model("theirs", {"ModelDataUrl": "s3://models/echo.tar.gz"})
    aws.config("theirs", variant("theirs"))
    aws.sagemaker.create_endpoint(EndpointName="theirs", EndpointConfigName="theirs")

    up, down = deploy("up", spec(tmp_path, "theirs")), deploy("down", "theirs")
    moved = deploy("traffic", "theirs", "AllTraffic=2")

    assert (up[0], down[0], moved[0]) == (1, 1, 1)
    assert "not made by `python -m deploy`" in moved[1]
    assert "not made by `python -m deploy`" in up[1]
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
    """Weights change in place; a failing call takes the update back, after every call was made."""
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
    assert (wrong[0], "no variant C, but: " in wrong[1]) == (1, True)
    assert (none[0], "nobody would get the traffic" in none[1]) == (1, True)
    assert answered[0] == 0
    assert ":hi\n200 from A in" in answered[1]
    assert (streamed[0], ":hi\n200 from B in" in streamed[1]) == (0, True)
    assert (refused[0], "the container answered 404" in refused[1]) == (1, True)
    assert (missing[0], "nothing.txt: No such file" in missing[1]) == (1, True)
    assert failed[0] == 1
    assert "smoke A nobody: the container answered 404" in failed[1]
    assert f"went back to {before}" in failed[1]
    assert aws.describe("ab")["EndpointConfigName"] == before
    assert deploy("down", "ab")[0] == 0


def test_a_multi_model_endpoint_scales_and_ends_by_itself(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """What was scaled stays so in an update; another instance type starts anew; the schedule is there, and goes.

    And of what its user needs to be allowed, `roles` prints all.
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
    }  # needs no right
    assert json.loads(first[1].splitlines()[0])["changed"] is True
    assert "smoke AllTraffic echo.tar.gz: 200" in first[1]
    assert shown["deleted_at"].endswith("UTC")
    assert (shown["variants"][0]["scaling"], shown["variants"][0]["multi_model"]) == ("1-2", True)
    assert (second[0], kept) == (0, 2)
    assert third[0] == 0, third
    assert "AllTraffic scales no more\n" in third[1]
    assert "AllTraffic scales from 1 to 2" in third[1]
    assert anew == 1
    assert "schedule many-delete deleted" in down[1]
    assert "role many-scheduler deleted" in down[1]
    assert removal.leftovers("many", Aws()) == []


def test_an_alarm_takes_the_update_back(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """Half of the traffic on the new fleet for an hour: the alarm of the spec ends it, exit 1."""
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


def test_what_can_be_seen_beforehand_is_said_beforehand(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """Nothing is made for an image that was not pushed, a bucket that is not there or lies elsewhere."""
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
    assert (nowhere[0], "there is no bucket nowhere" in nowhere[1]) == (1, True)
    assert (misspelt[0], "did you mean image" in misspelt[1]) == (2, True)
    assert removal.leftovers("early", Aws()) == []


def test_models_elsewhere_leave_the_old_ones_readable_until_they_are_not_needed(
    aws: Account, deploy: Deploy, tmp_path: Path
) -> None:
    """A role that was narrowed too early would break what still answers, and what is rolled back to."""

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
