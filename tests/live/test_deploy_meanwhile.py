"""Events during a run of `python -m deploy`: a concurrent run, a Ctrl-C, credentials that expire."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deploy import endpoint
from deploy.aws import Aws
from deploy.progress import Progress
from deploy.spec import load
from tests.live import deploys
from tests.live.account import Account
from tests.live.conftest import Later
from tests.live.deploys import SCALES, Deploy, spec
from tests.live.stack import IGNORING_SIGINT, ROOT, wait_until
from tests.patience import PATIENCE


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with deploys.prepared(tmp_path_factory.mktemp("w"), tmp_path_factory.mktemp("m")) as made:
        yield made


@pytest.fixture
def deploy(capsys: pytest.CaptureFixture[str]) -> Deploy:
    return deploys.command(capsys)


def started(*words: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*IGNORING_SIGINT, sys.executable, "-m", "deploy", *(str(word) for word in words)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def readable(aws: Account, name: str) -> set[str]:
    """The objects that the endpoint's role may read."""
    iam = aws.platform.client("iam")
    document = iam.get_role_policy(RoleName=f"{name}-endpoint", PolicyName=f"deploy-{name}")["PolicyDocument"]
    reads = [each["Resource"] for each in document["Statement"] if "s3:GetObject" in each["Action"]]
    return {resource for resources in reads for resource in resources}


def test_of_two_runs_with_different_specs_one_wins_and_the_other_reports_it(
    aws: Account, deploy: Deploy, tmp_path: Path
) -> None:
    """Two processes, two specs, one endpoint: one spec wins, and the other process fails with the reason."""
    (tmp_path / "b").mkdir()
    files = [spec(tmp_path, "pair"), spec(tmp_path / "b", "pair", models="many/")]
    processes = [started("up", file) for file in files]
    told = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    codes = [process.returncode for process in processes]
    now = aws.describe("pair")
    again = [deploy("up", file, "--plan") for file in files]
    same = [deploy("up", file) for file in files]

    assert 0 in codes, told
    for code, said in zip(codes, told, strict=True):
        assert code == 0 or "another process updated endpoint pair after this one" in said, told
        assert "Traceback" not in said
    assert now["EndpointStatus"] == "InService"
    assert all(code == 0 for code, _ in (*again, *same)), same
    assert readable(aws, "pair") == {"arn:aws:s3:::models/many/*"}
    assert deploy("up", files[1]) == (0, "unchanged\n")
    assert deploy("down", "pair")[0] == 0
    assert endpoint.leftovers("pair", Aws()) == []


class Overtaken(Aws):
    """At the first call of each operation, once `when`, another process does something."""

    def __init__(
        self, events: Sequence[str], other: Callable[[], object], when: Callable[[], bool] = lambda: True
    ) -> None:
        super().__init__()
        self._left, self._other, self._when = list(events), other, when

    def client(self, name: str) -> Any:
        fresh = name not in self._clients
        client = super().client(name)
        for event in [each for each in self._left if each.split(".")[1] == name] if fresh else ():
            client.meta.events.register(event, partial(self._act, event))
        return client

    def _act(self, event: str, **_: Any) -> None:
        if event in self._left and self._when():
            self._left.remove(event)
            self._other()


def test_objects_deleted_by_a_run_that_was_waited_for_are_created_again(
    aws: Account, deploy: Deploy, tmp_path: Path
) -> None:
    """The first run narrows the role and deletes configurations at its end; the second run has waited for it.

    If the first is in service before the second polls, the second's update is refused once, and then succeeds.
    """
    (tmp_path / "b").mkdir()
    first, second = spec(tmp_path, "over"), spec(tmp_path / "b", "over", models="many/")
    assert deploy("up", first, "--no-wait")[0] == 0
    done: list[tuple[int, str]] = []
    allowed: list[set[str]] = []

    def make(_: str | None) -> Aws:
        made = Overtaken(["after-call.sagemaker.DescribeEndpoint"], lambda: done.append(deploy("up", first)))
        look = "before-call.sagemaker.UpdateEndpoint"
        made.client("sagemaker").meta.events.register(look, lambda **_: allowed.append(readable(aws, "over")))
        return made

    code, said = deploy("up", second, make=make)

    assert done[0][0] == 0, done
    assert code == 0, said
    assert allowed[-1] == {"arn:aws:s3:::models/echo.tar.gz", "arn:aws:s3:::models/many/*"}
    assert deploy("up", second) == (0, "unchanged\n")
    assert deploy("down", "over")[0] == 0


def test_objects_deleted_by_a_run_that_ends_during_any_step_are_created_again(
    aws: Account, deploy: Deploy, tmp_path: Path
) -> None:
    """A run that finds the endpoint at its own spec deletes as unused what the other has just created."""
    (tmp_path / "b").mkdir()
    alarms = "[rollout]\nbake_seconds = 0\nalarms = {{ errors = {0} }}\n"
    first = spec(tmp_path, "overtaken", more=alarms.format(1))
    second = spec(tmp_path / "b", "overtaken", models="many/", more=alarms.format(2))
    assert deploy("up", first)[0] == 0
    done: list[int] = []
    steps = [
        "after-call.iam.PutRolePolicy",
        "after-call.sagemaker.CreateModel",
        "after-call.sagemaker.CreateEndpointConfig",
        "after-call.cloudwatch.PutMetricAlarm",
        "before-call.sagemaker.UpdateEndpoint",
    ]

    code, said = deploy("up", second, make=lambda _: Overtaken(steps, lambda: done.append(deploy("up", first)[0])))
    (alarm,) = aws.cloudwatch.describe_alarms(AlarmNamePrefix="overtaken-")["MetricAlarms"]

    assert done == [0] * len(steps)
    assert code == 0, said
    assert readable(aws, "overtaken") == {"arn:aws:s3:::models/many/*"}
    assert alarm["Threshold"] == 2
    assert deploy("up", second) == (0, "unchanged\n")
    assert deploy("down", "overtaken")[0] == 0


def test_a_run_that_begins_while_another_deletes_unused_objects_keeps_its_own(
    aws: Account, deploy: Deploy, tmp_path: Path, later: Later
) -> None:
    """The other has seen its own spec in service, and is about to narrow the role or to delete what is unused."""
    (tmp_path / "b").mkdir()
    first, second = spec(tmp_path, "ends"), spec(tmp_path / "b", "ends", models="many/")
    assert deploy("up", second)[0] == 0
    at_second = aws.describe("ends")["EndpointConfigName"]
    for step in ("before-call.iam.PutRolePolicy", "before-call.sagemaker.DeleteEndpointConfig"):
        began: list[Any] = []

        def begin(began: list[Any] = began) -> None:
            began.append(later(lambda: endpoint.up(load(second), Aws(), Progress(io.StringIO()))))
            wait_until(lambda: aws.is_at("ends", "Updating") or began[0].done())

        def arrived() -> bool:
            now = aws.describe("ends")
            return bool(now["EndpointStatus"] == "InService" and now["EndpointConfigName"] != at_second)

        code, said = deploy("up", first, make=lambda _, at=step, begin=begin: Overtaken([at], begin, arrived))

        assert code == 0, (step, said)
        assert began[0].result().config == at_second, step
        described = aws.sagemaker.describe_endpoint_config(EndpointConfigName=at_second)
        for each in described["ProductionVariants"]:
            aws.sagemaker.describe_model(ModelName=each["ModelName"])
        assert readable(aws, "ends") == {"arn:aws:s3:::models/many/*"}, step
        assert aws.describe("ends")["EndpointConfigName"] == at_second, step
    assert deploy("down", "ends")[0] == 0


def test_a_failed_smoke_call_restores_the_endpoint(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """With the scaled count and the limits of scaling."""
    checks = tmp_path / "checks"
    checks.write_text("nobody text/plain hello\n")
    (tmp_path / "b").mkdir()
    assert deploy("up", spec(tmp_path, "smoke", more=SCALES))[0] == 0
    before = aws.describe("smoke")["EndpointConfigName"]
    scale = [{"VariantName": "AllTraffic", "DesiredInstanceCount": 2}]
    aws.sagemaker.update_endpoint_weights_and_capacities(EndpointName="smoke", DesiredWeightsAndCapacities=scale)
    aws.settled("smoke")
    other = spec(tmp_path / "b", "smoke", more=SCALES.replace("max = 2", "max = 3"), settings='env = { A = "1" }')

    code, said = deploy("up", other, "--smoke", checks)
    now = aws.describe("smoke")
    (target,) = aws.platform.client("application-autoscaling").describe_scalable_targets(ServiceNamespace="sagemaker")[
        "ScalableTargets"
    ]

    assert (code, f"rolled back to {before}" in said) == (1, True), said
    assert (now["EndpointConfigName"], now["ProductionVariants"][0]["CurrentInstanceCount"]) == (before, 2)
    assert target["MaxCapacity"] == 2
    assert deploy("down", "smoke")[0] == 0


def test_ctrl_c_is_one_line_and_the_same_command_resumes(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    file = spec(tmp_path, "stopped")
    process = started("up", file)
    assert process.stdout
    next(line for line in process.stdout if "is being created" in line)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=PATIENCE)

    again = deploy("up", file)

    assert process.returncode == 1
    last = "interrupted: changes that AWS has accepted continue; run the same command again to resume"
    assert said.splitlines()[-1] == last
    assert "Traceback" not in said
    assert (again[0], "created" in again[1]) == (0, False), again
    assert deploy("down", "stopped")[0] == 0


def test_ctrl_c_during_the_imports_is_one_line_too(tmp_path: Path) -> None:
    """boto3 takes most of a second to import."""
    (tmp_path / "boto3.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")

    process = started("status", "x", PYTHONPATH=str(tmp_path))

    said, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said.count("\n")) == (1, 1), said
    assert said.startswith("interrupted")


def test_credentials_that_expire_midway_are_reported_and_the_next_run_resumes(
    aws: Account, deploy: Deploy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with single sign-on: botocore requests new credentials for each call, until none are left."""
    count, config = deploys.expiring(tmp_path)
    file = spec(tmp_path, "expiring")
    with monkeypatch.context() as expiring:
        expiring.delenv("AWS_ACCESS_KEY_ID")
        expiring.delenv("AWS_SECRET_ACCESS_KEY")
        expiring.setenv("AWS_CONFIG_FILE", str(config))
        said = []
        for calls in (3, 9, 14):
            count.write_text(str(calls))
            code, told = deploy("up", file)
            said.append(told)
            assert code == 1, told
            assert "the session has expired\n  sign in" in told
            assert "Traceback" not in told
        count.write_text("9")
        expiring.setenv("AWS_PROFILE", "stale")
        stale = deploy("up", file)

    assert (stale[0], "still expired.\n  sign in" in stale[1]) == (1, True), stale
    again = deploy("up", file)

    assert again[0] == 0, again
    made = "".join([*said, again[1]])
    assert made.count("endpoint expiring is being created") == 1
    assert made.count("role expiring-endpoint created") == 1
    assert deploy("down", "expiring")[0] == 0


def test_the_longest_accepted_names_work(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """An endpoint's with 54 characters and a variant's with 63, with every name derived from them."""
    name, variant = "n" * 54, "v" * 63
    file = spec(tmp_path, name, more=SCALES, settings=f'name = "{variant}"')
    up = deploy("up", file, "--for", "4h")
    same, status = deploy("up", file), json.loads(deploy("status", name, "--json")[1])

    assert up[0] == 0, up
    assert same == (0, "unchanged\n")
    assert status["variants"][0]["scaling"] == "1-2"
    assert deploy("down", name)[0] == 0
    assert endpoint.leftovers(name, Aws()) == []
