"""A multi-model endpoint on the emulator, through boto3 only: loads, unloads and errors."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.live import tiny
from tests.live.account import Account, account, multi_model, refusal
from tests.live.stack import at_once, toy, wait_until

CSV = {"ContentType": "text/csv", "Accept": "text/csv"}


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """An account with an endpoint `many`, whose memory fits two of the models big-* of 120 MB each."""
    with account(tmp_path_factory.mktemp("w")) as made:
        models = tmp_path_factory.mktemp("m")
        tiny.xgboost_model(models / "trees")
        made.put("many/trees.tar.gz", models / "trees")
        made.put("many/deeper/echo.tar.gz", toy(models, "echo"))
        big = toy(models, "hungry", files={"mb.txt": "120"})
        for name in "abc":
            made.put(f"many/big-{name}.tar.gz", big)
        made.endpoint("many", multi_model("many", Environment={"SERVE_MEMORY_BUDGET_MB": "300"}))
        yield made


def parent(pid: int) -> int:
    """The parent process: the forkserver of a server."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def loads(aws: Account) -> list[str]:
    return [each["subject"] for each in aws.events("load")]


def test_models_of_different_kinds_answer_by_name(aws: Account) -> None:
    """Each is loaded once, by its first call."""
    first = aws.invoke("many", b"1,2,3,4\n", TargetModel="trees.tar.gz", **CSV)
    again = aws.invoke("many", b"1,2,3,4\n", TargetModel="trees.tar.gz", **CSV)
    echo = aws.invoke("many", b"hello", TargetModel="deeper/echo.tar.gz", ContentType="text/plain")

    assert first == again
    float(first)
    assert echo.endswith(b":hello")
    assert [loads(aws).count(each) for each in ("trees.tar.gz", "deeper/echo.tar.gz")] == [1, 1]


def test_the_least_recently_used_model_is_unloaded(aws: Account) -> None:
    """A third model where two fit: 507, an unload, a load. The unloaded model is loaded again by its next call."""

    def pid(name: str) -> int:
        return int(json.loads(aws.invoke("many", TargetModel=f"big-{name}.tar.gz"))["pid"])

    a, b = pid("a"), pid("b")
    c = pid("c")

    unloaded = [each["subject"] for each in aws.events("unload")]
    assert "big-a.tar.gz" in unloaded
    assert "big-b.tar.gz" not in unloaded
    assert aws.events("507")
    assert (pid("b"), pid("c")) == (b, c)
    assert pid("a") != a


def test_a_call_without_a_model_is_refused(aws: Account) -> None:
    """A stream too: InvokeEndpointWithResponseStream has no TargetModel."""

    def streamed() -> None:
        aws.runtime.invoke_endpoint_with_response_stream(EndpointName="many", Body=b"{}")

    for call in (lambda: aws.invoke("many"), streamed):
        code, message = refusal(call)
        assert code == "ValidationError"
        assert "missing a target model header" in message


def test_the_error_names_a_model_that_is_missing_in_s3(aws: Account) -> None:
    code, message = refusal(lambda: aws.invoke("many", TargetModel="nowhere.tar.gz"))

    assert code == "ValidationError"
    assert 'Failed to download model data from URL: "s3://models/many/nowhere.tar.gz"' in message


def test_an_error_of_the_model_is_a_model_error(aws: Account) -> None:
    """424 with the container's status and text. The model stays loaded."""
    aws.invoke("many", b"1,2,3,4\n", TargetModel="trees.tar.gz", **CSV)
    before = loads(aws).count("trees.tar.gz")

    with pytest.raises(ClientError) as caught:
        aws.invoke("many", b"a,b\n", TargetModel="trees.tar.gz", **CSV)

    error = caught.value.response
    assert (error["Error"]["Code"], error["ResponseMetadata"]["HTTPStatusCode"]) == ("ModelError", 424)
    assert error["OriginalStatusCode"] == 400
    assert "is not a number" in error["OriginalMessage"]
    assert error["Error"]["Message"].startswith("Received client error (400) from primary with message")
    aws.invoke("many", b"1,2,3,4\n", TargetModel="trees.tar.gz", **CSV)
    assert loads(aws).count("trees.tar.gz") == before


def test_a_slow_load_is_429_and_continues(tmp_path: Path) -> None:
    """ModelNotReadyException at the call's time limit. After the load, the next call is answered."""
    gate = tmp_path / "gate"
    with account(tmp_path / "w", invoke_limit=4.0) as aws:
        aws.put("slow/slow.tar.gz", toy(tmp_path, "slowload", files={"gate.txt": str(gate)}))
        aws.endpoint("slow", multi_model("slow"))

        with pytest.raises(ClientError) as caught:
            aws.invoke("slow", TargetModel="slow.tar.gz")
        gate.touch()
        wait_until(lambda: loads(aws))
        aws.invoke("slow", TargetModel="slow.tar.gz")

        error = caught.value.response
        assert (error["Error"]["Code"], error["ResponseMetadata"]["HTTPStatusCode"]) == ("ModelNotReadyException", 429)
        assert loads(aws) == ["slow.tar.gz"]


def test_models_are_spread_over_instances_and_keep_theirs(tmp_path: Path) -> None:
    """Two models on two instances: each is loaded on one of them, which gets all its calls."""
    with account(tmp_path / "w") as aws:
        echo = toy(tmp_path, "echo")
        names = ["m0.tar.gz", "m2.tar.gz"]  # on different instances
        for name in names:
            aws.put(f"spread/{name}", echo)
        aws.endpoint("spread", multi_model("spread"), count=2)

        before = [aws.pid("spread", TargetModel=name) for name in names]
        after = at_once(4, lambda number: aws.pid("spread", TargetModel=names[number % 2]))

        assert after == before * 2
        assert sorted(loads(aws)) == names
        assert len(aws.events("ready")) == 2
        servers = {parent(pid) for pid in before}
        assert len(servers) == 2
