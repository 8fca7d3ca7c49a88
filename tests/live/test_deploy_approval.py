"""`python -m deploy pipeline NAME on-approval` on the emulator: an approval runs `up` of the spec in a function."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from deploy import endpoint
from deploy.aws import Aws
from tests.live import deploys
from tests.live.account import Account
from tests.live.clients import refusing
from tests.live.deploys import Deploy
from tests.live.stack import descendants, wait_until
from tests.live.test_deploy_packages import registered, spec


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with deploys.prepared(tmp_path_factory.mktemp("w"), tmp_path_factory.mktemp("m")) as made:
        yield made


@pytest.fixture
def deploy(capsys: pytest.CaptureFixture[str]) -> Deploy:
    return deploys.command(capsys)


def running() -> list[int]:
    """The processes of the function."""
    found = []
    for pid in descendants(os.getpid()):
        with suppress(OSError):
            found += [pid] if b"approval_function" in Path(f"/proc/{pid}/cmdline").read_bytes() else []
    return found


def test_an_approval_deploys_the_package(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """Its smoke calls travel with it. The function's role has every right that `up` of this spec uses."""
    (tmp_path / "checks").write_text("- text/plain hello\n")
    file = spec(tmp_path, "auto", "wines")
    file.write_text('smoke = "checks"\n' + file.read_text())
    arn = registered(aws, "wines")
    words = ("pipeline", "two-models", "on-approval", file)

    planned = deploy(*words, "--plan")
    there = aws.platform.client("events").list_rules(NamePrefix="auto-")["Rules"]
    first, again = deploy(*words), deploy(*words)
    deploy("approve", arn)
    wait_until(lambda: aws.exists("auto"))
    now = aws.settled("auto")
    answered = aws.invoke("auto", b"hi", ContentType="text/plain")
    wait_until(lambda: not running())
    noting, noted = refusing({})
    same = deploy("up", file, make=noting)
    removed, gone = deploy(*words, "--remove"), deploy(*words, "--remove")

    operations = [next(iter(each)) for each in json.loads(planned[1])]
    assert operations == ["CreateRole", "PutRolePolicy", "CreateFunction", "PutRule", "AddPermission", "PutTargets"]
    assert there == []
    assert first[0] == 0, first
    assert "function auto-approval created" in first[1]
    assert again == (0, "unchanged\n")
    assert now["EndpointStatus"] == "InService", now
    assert answered.endswith(b":hi")
    assert same[0] == 0, same
    assert same[1].endswith("\nunchanged\n"), same
    statements = json.loads(json.loads(planned[1])[1]["PutRolePolicy"]["PolicyDocument"])["Statement"]
    allowed = {
        action
        for each in statements
        for action in ([each["Action"]] if isinstance(each["Action"], str) else each["Action"])
    }
    used = {action for each in noted for action in each.actions}
    # The bucket of a package's data may be any; the question for its region may be denied.
    assert used - allowed <= {"sts:GetCallerIdentity", "s3:GetBucketLocation"}
    assert removed == (0, "rule auto-approval deleted\nfunction auto-approval deleted\nrole auto-approval deleted\n")
    assert gone == (0, "unchanged\n")
    assert deploy("down", "auto")[0] == 0
    assert endpoint.leftovers("auto", Aws()) == []


def test_a_spec_without_a_group_is_refused(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    words = ("pipeline", "two-models", "on-approval")

    bare, without = deploy(*words), deploy(*words, deploys.spec(tmp_path, "plain"))

    assert (bare[0], "the spec is missing" in bare[1]) == (2, True)
    assert (without[0], "the spec must name one group" in without[1]) == (2, True)
