"""Calls of an endpoint on the emulator: streams, async, pipelines, named containers, large bodies."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests
from botocore.exceptions import ClientError, EventStreamError

from tests.live.account import BUCKET, Account, account, refusal, variant
from tests.live.stack import toy, wait_until
from tests.patience import PATIENCE

TEXT = {"ContentType": "text/plain"}
MIB = 1 << 20


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """An account with an endpoint `stream` and the models echo and mirror (which reverses bodies)."""
    with account(tmp_path_factory.mktemp("w"), stream_limit=8.0) as made:
        models = tmp_path_factory.mktemp("m")
        reverse = {"model.toml": "[options]\nreverse = true\n"}
        made.put("echo.tar.gz", toy(models, "echo"))
        made.put("mirror.tar.gz", toy(models, "echo", "mirror", reverse))
        made.put("slow.tar.gz", toy(models, "slow"))
        made.endpoint("stream", {"ModelDataUrl": made.put("stream.tar.gz", toy(models, "stream"))})
        made.invoke("stream", {"chunks": 1})  # loads the model before any time limit matters
        yield made


def data(name: str) -> dict[str, str]:
    return {"ModelDataUrl": f"s3://{BUCKET}/{name}.tar.gz"}


def stream(aws: Account, body: dict[str, Any]) -> Iterator[bytes]:
    """The payload parts, as botocore yields them."""
    answer = aws.runtime.invoke_endpoint_with_response_stream(
        EndpointName="stream", Body=json.dumps(body), ContentType="application/json", Accept="text/plain"
    )
    assert answer["InvokedProductionVariant"] == "AllTraffic"

    def parts() -> Iterator[bytes]:
        with closing(answer["Body"]) as events:
            for event in events:
                yield event["PayloadPart"]["Bytes"]

    return parts()


def test_a_stream_arrives_in_parts_as_the_model_yields_them(aws: Account, tmp_path: Path) -> None:
    """The first part arrives while the model waits before the second."""
    gate = tmp_path / "gate"
    parts = stream(aws, {"chunks": 3, "gate": str(gate)})

    first = next(parts)
    gate.touch()
    rest = b"".join(parts)

    assert first == b"chunk 0\n"
    assert rest == b"chunk 1\nchunk 2\n"


def test_a_stream_that_breaks_is_an_error_in_the_stream(aws: Account) -> None:
    """The caller gets the parts before it, then ModelStreamError."""
    parts = stream(aws, {"chunks": 3, "fail_after": 1})

    first = next(parts)
    with pytest.raises(EventStreamError) as caught:
        list(parts)

    assert first == b"chunk 0\n"
    assert caught.value.response["Error"]["Code"] == "ModelStreamError"
    assert "broke" in caught.value.response["Error"]["Message"]


def test_a_stream_that_times_out_is_an_error_in_the_stream(aws: Account, tmp_path: Path) -> None:
    """At the time limit, while the model pauses."""
    gate = tmp_path / "gate"
    parts = stream(aws, {"chunks": 2, "gate": str(gate)})
    first = next(parts)

    with pytest.raises(EventStreamError) as caught:
        next(parts)
    gate.touch()

    assert first == b"chunk 0\n"
    assert caught.value.response["Error"]["Code"] == "ModelStreamError"
    assert "timed out" in caught.value.response["Error"]["Message"]


def test_an_error_before_the_stream_is_an_ordinary_one(aws: Account) -> None:
    """ModelError with the container's status."""
    with pytest.raises(ClientError) as caught:
        list(stream(aws, {"chunks": "many"}))

    assert caught.value.response["Error"]["Code"] == "ModelError"
    assert caught.value.response["OriginalStatusCode"] >= 400


def test_an_asynchronous_call_reads_from_s3_and_writes_to_s3(aws: Account) -> None:
    """It is accepted immediately. Output and failure go to their S3 paths. The endpoint takes no synchronous call."""
    output = {"S3OutputPath": f"s3://{BUCKET}/out", "S3FailurePath": f"s3://{BUCKET}/failed/"}
    aws.model("later", data("slow"))
    aws.config("later", variant("later"), AsyncInferenceConfig={"OutputConfig": output})
    assert aws.create("later", "later")["AsyncInferenceConfig"] == {"OutputConfig": output}
    aws.s3.put_object(Bucket=BUCKET, Key="in/good", Body=b'{"seconds": 0.2}')
    aws.s3.put_object(Bucket=BUCKET, Key="in/bad", Body=b"junk")
    aws.s3.put_object(Bucket=BUCKET, Key="in/long", Body=b'{"seconds": 30}')

    def call(key: str, **options: Any) -> dict[str, Any]:
        return aws.runtime.invoke_endpoint_async(  # type: ignore[no-any-return]
            EndpointName="later", InputLocation=f"s3://{BUCKET}/in/{key}", ContentType="application/json", **options
        )

    def content(location: str) -> bytes | None:
        bucket, _, key = location.removeprefix("s3://").partition("/")
        try:
            return aws.s3.get_object(Bucket=bucket, Key=key)["Body"].read()  # type: ignore[no-any-return]
        except ClientError:
            return None

    good, bad, long, lost = (
        call("good", InferenceId="one"),
        call("bad"),
        call("long", InvocationTimeoutSeconds=1),
        call("no"),
    )
    answer = wait_until(lambda: content(good["OutputLocation"]))
    failures = [wait_until(lambda: content(each["FailureLocation"])).decode() for each in (bad, long, lost)]  # noqa: B023
    direct = refusal(lambda: aws.invoke("later"))
    other = refusal(
        lambda: aws.runtime.invoke_endpoint_async(EndpointName="stream", InputLocation=f"s3://{BUCKET}/in/x")
    )
    aws.delete("later")

    assert good["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert good["InferenceId"] == "one"
    assert good["OutputLocation"].startswith(f"s3://{BUCKET}/out/")
    assert json.loads(answer)["seconds"] == 0.2
    assert "Received client error (400)" in failures[0]
    assert "timed out" in failures[1]
    assert "NoSuchKey" in failures[2]
    assert (direct[0], other[0]) == ("ValidationError", "ValidationError")
    assert "use InvokeEndpointAsync" in direct[1]


def test_several_containers_are_a_pipeline(aws: Account) -> None:
    """The first container's reply is the second one's request. A call that names a container is refused."""
    aws.endpoint("row", data("echo"), data("mirror"))

    answer = aws.invoke("row", b"ab", **TEXT)
    named = refusal(lambda: aws.invoke("row", b"ab", TargetContainerHostname="first", **TEXT))
    aws.delete("row")

    outer, _, inner = answer.partition(b":")
    assert outer.isdigit()
    assert inner[::-1].endswith(b":ab")  # echo's pid and the body, reversed by mirror
    assert named[0] == "ValidationError"


def test_containers_of_a_direct_endpoint_are_called_by_name(aws: Account) -> None:
    """InferenceExecutionConfig Direct: every call must have a TargetContainerHostname."""
    containers = [{**data(name), "ContainerHostname": name} for name in ("echo", "mirror")]
    aws.endpoint("direct", *containers, InferenceExecutionConfig={"Mode": "Direct"})

    bodies = [
        aws.invoke("direct", b"ab", TargetContainerHostname=each, **TEXT).partition(b":")[2]
        for each in ("echo", "mirror")
    ]
    unnamed, wrong = (
        refusal(lambda: aws.invoke("direct", b"ab", **TEXT)),
        refusal(lambda: aws.invoke("direct", b"ab", TargetContainerHostname="other", **TEXT)),
    )
    aws.delete("direct")

    assert bodies == [b"ab", b"ba"]
    assert unnamed == wrong
    assert unnamed[0] == "ValidationError"
    assert "must be one of echo, mirror" in unnamed[1]


def test_a_body_has_at_most_25_mb(aws: Account) -> None:
    """Of a serverless endpoint 4 MB. The error is in AWS's words."""
    serverless = {"MemorySizeInMB": 2048, "MaxConcurrency": 5}
    aws.config("small", {"VariantName": "S", "ModelName": "stream", "ServerlessConfig": serverless})
    described = aws.create("small", "small")

    def body(size: int) -> bytes:
        return b'{"chunks": 1}'.ljust(size)

    largest = aws.invoke("stream", body(25 * MIB))
    too_large = refusal(lambda: aws.invoke("stream", body(25 * MIB + 1)))
    largest_serverless = aws.invoke("small", body(4 * MIB))
    too_large_serverless = refusal(lambda: aws.invoke("small", body(4 * MIB + 1)))
    aws.delete("small")

    assert described["ProductionVariants"][0]["CurrentServerlessConfig"] == serverless
    assert largest == largest_serverless == b"chunk 0\n"
    assert too_large[0] == too_large_serverless[0] == "ValidationError"
    assert too_large[1].endswith("Member must have length less than or equal to 26214400")
    assert too_large_serverless[1].endswith("Member must have length less than or equal to 4194304")


def test_openais_path_reaches_the_container(aws: Account) -> None:
    """/endpoints/NAME/openai/v1/chat/completions with a bearer token returns the container's answer or error."""
    responses = [
        requests.post(
            f"{aws.platform.url}/endpoints/{name}/openai/v1/chat/completions",
            json={"model": "", "messages": [{"role": "user", "content": "hello"}]},
            headers={"Authorization": "Bearer c29tZWJvZHk="},
            timeout=PATIENCE,
        )
        for name in ("stream", "nowhere")
    ]

    # The endpoint's only model is no language model: the error came from /v1/chat/completions.
    assert [each.status_code for each in responses] == [424, 400]
    assert responses[0].json()["OriginalStatusCode"] == 404
    assert "does not support the path /v1/chat/completions" in responses[0].json()["OriginalMessage"]
    assert responses[1].json()["Message"] == "Endpoint nowhere of account 123456789012 not found."


def test_invalid_headers_are_refused(aws: Account) -> None:
    """A TargetModel for an endpoint with one model; attributes that are too long."""
    errors = [
        refusal(lambda: aws.invoke("stream", TargetModel="a.tar.gz")),
        refusal(lambda: aws.invoke("stream", CustomAttributes="a" * 1025)),
    ]

    assert errors[0] == (
        "ValidationError",
        "Endpoint stream is not a multi-model endpoint and does not support target model header.",
    )
    assert "at 'customAttributes' failed to satisfy constraint" in errors[1][1]
