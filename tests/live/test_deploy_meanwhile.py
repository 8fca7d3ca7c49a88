"""Events during a run of `python -m deploy`: a concurrent run, a Ctrl-C, credentials that expire."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy import endpoint
from deploy.aws import Aws
from tests.live import deploys
from tests.live.account import Account
from tests.live.deploys import SCALES, Deploy, spec
from tests.live.stack import IGNORING_SIGINT, ROOT
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
    """Sees an endpoint in progress; before the next poll another `up` has finished and deleted unused objects."""

    def __init__(self, other: Any, seen: list[set[str]], look: Any) -> None:
        super().__init__()
        self._other, self._seen, self._look = other, seen, look

    def client(self, name: str) -> Any:
        fresh = name not in self._clients
        client = super().client(name)
        if fresh and name == "sagemaker":
            client.meta.events.register("after-call.sagemaker.DescribeEndpoint", self._finish)
            client.meta.events.register("before-call.sagemaker.UpdateEndpoint", self._note)
        return client

    def _finish(self, **_: Any) -> None:
        other, self._other = self._other, None
        if other:
            other()

    def _note(self, **_: Any) -> None:
        self._seen.append(self._look())


def test_objects_deleted_by_a_concurrent_run_are_created_again(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """The first run narrows the role and deletes configurations at its end; the second run has waited for it.

    If the first is in service before the second polls, the second's update is refused once, and then succeeds.
    """
    (tmp_path / "b").mkdir()
    first, second = spec(tmp_path, "over"), spec(tmp_path / "b", "over", models="many/")
    assert deploy("up", first, "--no-wait")[0] == 0
    done: list[tuple[int, str]] = []
    allowed: list[set[str]] = []

    code, said = deploy(
        "up",
        second,
        make=lambda _: Overtaken(lambda: done.append(deploy("up", first)), allowed, lambda: readable(aws, "over")),
    )

    assert done[0][0] == 0, done
    assert code == 0, said
    assert allowed[-1] == {"arn:aws:s3:::models/echo.tar.gz", "arn:aws:s3:::models/many/*"}
    assert deploy("up", second) == (0, "unchanged\n")
    assert deploy("down", "over")[0] == 0


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
