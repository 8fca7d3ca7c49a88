"""`python -m deploy invoke` of an asynchronous endpoint, and its errors for calls that endpoints do not support."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import deploys
from tests.live.account import Account
from tests.live.clients import refusing
from tests.live.deploys import Deploy, spec

QUEUED = """
[async]
output = "s3://models/out"
failures = "s3://models/failed/"
"""


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with deploys.prepared(tmp_path_factory.mktemp("w"), tmp_path_factory.mktemp("m")) as made:
        yield made


@pytest.fixture
def deploy(capsys: pytest.CaptureFixture[str]) -> Deploy:
    return deploys.command(capsys)


@pytest.fixture
def body(tmp_path: Path) -> Path:
    path = tmp_path / "body.txt"
    path.write_text("hi")
    return path


def test_an_asynchronous_endpoint_is_called_as_any_other(
    aws: Account, deploy: Deploy, tmp_path: Path, body: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body is uploaded to S3, where the endpoint's role may read it; the response or failure appears there."""
    checks = tmp_path / "checks"
    checks.write_text("- text/plain hello\n")
    file = spec(tmp_path, "queue", settings=QUEUED)
    noting, noted = refusing({})

    up = deploy("up", file, "--smoke", checks)
    answered = deploy("invoke", "queue", body, make=noting)
    again = deploy("invoke", "queue", body)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"from stdin")))
    piped = deploy("invoke", "queue", "-")
    aws.s3.put_object(Bucket="models", Key="in/there.txt", Body=b"already there")
    there = deploy("invoke", "queue", "s3://models/in/there.txt")
    failed = deploy("invoke", "queue", "--attributes", "model_type=nobody", body)
    streamed, missing = deploy("invoke", "queue", "--stream", body), deploy("invoke", "queue", tmp_path / "no.txt")
    *roles, user = json.loads(deploy("roles", file)[1])
    inputs = aws.s3.list_objects_v2(Bucket="models", Prefix="out/inputs/")["Contents"]

    assert up[0] == 0, up
    assert "smoke AllTraffic -: done in" in up[1]
    assert (answered[0], ":hi" in answered[1], "done in" in answered[1]) == (0, True, True), answered
    assert (again[0], piped[0], ":from stdin" in piped[1]) == (0, 0, True), piped
    assert (there[0], ":already there" in there[1]) == (0, True), there
    assert (failed[0], "the call failed: " in failed[1], "ModelNotFound" in failed[1]) == (1, True, True), failed
    assert (streamed[0], "is asynchronous, which does not support --stream" in streamed[1]) == (1, True)
    assert (missing[0], "no.txt: No such file" in missing[1]) == (1, True)
    assert len(inputs) == 3  # smoke's, the file's and stdin's; equal bodies are uploaded once
    statements = {each["Sid"]: each["Resource"] for each in roles[0]["PolicyDocument"]["Statement"]}
    assert statements["Inputs"] == ["arn:aws:s3:::models/out/inputs/*"]
    allowed = {action for each in user["PolicyDocument"]["Statement"] for action in _list(each["Action"])}
    called = {_permission(action) for each in noted for action in each.actions}
    assert called <= allowed
    assert deploy("down", "queue")[0] == 0


def _list(actions: str | list[str]) -> list[str]:
    return [actions] if isinstance(actions, str) else actions


def _permission(action: str) -> str:
    return {"s3:HeadObject": "s3:GetObject"}.get(action, action)


def test_a_missing_bucket_is_an_error_before_any_change(aws: Account, deploy: Deploy, tmp_path: Path) -> None:
    """Otherwise the first response could not be written."""
    nowhere = deploy("up", spec(tmp_path, "early", settings=QUEUED.replace("models/failed", "nowhere")))
    no_place = deploy("up", spec(tmp_path, "early", settings=QUEUED.replace("s3://models/failed/", "https://x/y")))

    assert (nowhere[0], "async.failures: bucket nowhere not found: create it" in nowhere[1]) == (
        1,
        True,
    )
    assert (no_place[0], "async.failures 'https://x/y' must be s3://bucket/prefix/" in no_place[1]) == (2, True)
    assert not aws.exists("early")


def test_an_unsupported_call_is_an_error_with_the_next_step(
    aws: Account, deploy: Deploy, tmp_path: Path, body: Path
) -> None:
    assert deploy("up", spec(tmp_path, "many", models="many/"))[0] == 0
    for words, said in (
        (["nobody", body], "endpoint nobody not found in us-east-1: create it with `python -m deploy up SPEC`"),
        (["many", body], "give --target-model NAME.tar.gz"),
        (
            ["many", "--target-model", "x.tar.gz", body],
            "check that it exists and that the role may read it",
        ),
        (
            ["many", "--target-model", "echo.tar.gz", "--variant", "B", body],
            "deploy status` lists its variants",
        ),
        (["many", "--target-model", "echo.tar.gz", "--stream", body], "--stream does not support --target-model"),
        (["many", "s3://models/in/x"], "does not read bodies from S3: give a file"),
    ):
        code, told = deploy("invoke", *words)
        assert (code, said in told) == (1, True), told
        assert len(told.splitlines()) <= 2
    code, told = deploy("logs", "nobody")
    assert (code, "Check the endpoint: python -m deploy status nobody" in told) == (1, True), told
    assert deploy("down", "many")[0] == 0


def test_the_wait_for_a_loading_model_is_shown(aws: Account, deploy: Deploy, tmp_path: Path, body: Path) -> None:
    """AWS answers 429 while the model loads."""
    assert deploy("up", spec(tmp_path, "slow", models="many/"))[0] == 0
    make, _ = refusing({"InvokeEndpoint": [("ModelNotReadyException", "it is being downloaded")] * 2})

    code, said = deploy("invoke", "slow", "--target-model", "echo.tar.gz", body, make=make)

    assert code == 0, said
    assert "model echo.tar.gz: is being loaded (" in said
    assert deploy("down", "slow")[0] == 0
