"""Ways to call an endpoint on the emulated platform: streams, async, pipelines, named containers, large bodies."""

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
    """With an endpoint `stream` and the models echo and mirror (bodies reversed)."""
    with account(tmp_path_factory.mktemp("w"), stream_limit=4.0) as made:
        models = tmp_path_factory.mktemp("m")
        reverse = {"model.toml": "[options]\nreverse = true\n"}
        made.put("echo.tar.gz", toy(models, "echo"))
        made.put("mirror.tar.gz", toy(models, "echo", "mirror", reverse))
        made.put("slow.tar.gz", toy(models, "slow"))
        made.endpoint("stream", {"ModelDataUrl": made.put("stream.tar.gz", toy(models, "stream"))})
        made.invoke("stream", {"chunks": 1})  # its model's load is not to count
        yield made


def data(name: str) -> dict[str, str]:
    return {"ModelDataUrl": f"s3://{BUCKET}/{name}.tar.gz"}


def stream(aws: Account, body: dict[str, Any]) -> Iterator[bytes]:
    """The payload parts as botocore gives them."""
    answer = aws.runtime.invoke_endpoint_with_response_stream(
        EndpointName="stream", Body=json.dumps(body), ContentType="application/json", Accept="text/plain"
    )
    assert answer["InvokedProductionVariant"] == "AllTraffic"

    def parts() -> Iterator[bytes]:
        with closing(answer["Body"]) as events:
            for event in events:
                yield event["PayloadPart"]["Bytes"]

    return parts()


def test_a_stream_comes_in_parts_as_the_model_makes_them(aws: Account, tmp_path: Path) -> None:
    """The first part is there while the model waits before the second."""
    gate = tmp_path / "gate"
    parts = stream(aws, {"chunks": 3, "gate": str(gate)})

    first = next(parts)
    gate.touch()
    rest = b"".join(parts)

    assert first == b"chunk 0\n"
    assert rest == b"chunk 1\nchunk 2\n"


def test_a_stream_that_breaks_is_an_error_in_the_stream(aws: Account) -> None:
    """What came before is there; then ModelStreamError."""
    parts = stream(aws, {"chunks": 3, "fail_after": 1})

    first = next(parts)
    with pytest.raises(EventStreamError) as caught:
        list(parts)

    assert first == b"chunk 0\n"
    assert caught.value.response["Error"]["Code"] == "ModelStreamError"
    assert "broke" in caught.value.response["Error"]["Message"]


def test_a_stream_that_takes_too_long_is_cut(aws: Account, tmp_path: Path) -> None:
    """After the limit, in the middle of a model's pause."""
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
    """ModelError with the container's status, not a stream."""
    with pytest.raises(ClientError) as caught:
        list(stream(aws, {"chunks": "many"}))

    assert caught.value.response["Error"]["Code"] == "ModelError"
    assert caught.value.response["OriginalStatusCode"] >= 400


def test_an_asynchronous_call_goes_from_s3_to_s3(aws: Account) -> None:
    """Accepted at once; the output where it was told, or the failure where that goes; no other way in."""
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

    def there(location: str) -> bytes | None:
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
    answer = wait_until(lambda: there(good["OutputLocation"]))
    failures = [wait_until(lambda: there(each["FailureLocation"])).decode() for each in (bad, long, lost)]  # noqa: B023
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


def test_containers_in_a_row_are_a_pipeline(aws: Account) -> None:
    """The first one's answer is the second one's request; a name of one is refused."""
    aws.endpoint("row", data("echo"), data("mirror"))

    answer = aws.invoke("row", b"ab", **TEXT)
    named = refusal(lambda: aws.invoke("row", b"ab", TargetContainerHostname="first", **TEXT))
    aws.delete("row")

    outer, _, inner = answer.partition(b":")
    assert outer.isdigit()
    assert inner[::-1].endswith(b":ab")  # echo's own pid and the body, turned round by mirror
    assert named[0] == "ValidationError"


def test_containers_side_by_side_are_called_by_name(aws: Account) -> None:
    """InferenceExecutionConfig Direct: TargetContainerHostname chooses, and must."""
    containers = [{**data(name), "ContainerHostname": name} for name in ("echo", "mirror")]
    aws.endpoint("direct", *containers, InferenceExecutionConfig={"Mode": "Direct"})

    said = [
        aws.invoke("direct", b"ab", TargetContainerHostname=each, **TEXT).partition(b":")[2]
        for each in ("echo", "mirror")
    ]
    unnamed, wrong = (
        refusal(lambda: aws.invoke("direct", b"ab", **TEXT)),
        refusal(lambda: aws.invoke("direct", b"ab", TargetContainerHostname="other", **TEXT)),
    )
    aws.delete("direct")

    assert said == [b"ab", b"ba"]
    assert unnamed == wrong
    assert unnamed[0] == "ValidationError"
    assert "must be one of echo, mirror" in unnamed[1]


def test_25_mb_pass_and_a_byte_more_does_not(aws: Account) -> None:
    """The limit is the platform's, and its words are AWS's; a serverless endpoint's is 4 MB."""
    serverless = {"MemorySizeInMB": 2048, "MaxConcurrency": 5}
    aws.config("small", {"VariantName": "S", "ModelName": "stream", "ServerlessConfig": serverless})
    described = aws.create("small", "small")

    def body(size: int) -> bytes:
        return b'{"chunks": 1}'.ljust(size)

    most = aws.invoke("stream", body(25 * MIB))
    more = refusal(lambda: aws.invoke("stream", body(25 * MIB + 1)))
    less = aws.invoke("small", body(4 * MIB))
    over = refusal(lambda: aws.invoke("small", body(4 * MIB + 1)))
    aws.delete("small")

    assert described["ProductionVariants"][0]["CurrentServerlessConfig"] == serverless
    assert most == less == b"chunk 0\n"
    assert more[0] == over[0] == "ValidationError"
    assert more[1].endswith("Member must have length less than or equal to 26214400")
    assert over[1].endswith("Member must have length less than or equal to 4194304")


def test_openais_path_leads_to_the_container(aws: Account) -> None:
    """/endpoints/NAME/openai/v1/chat/completions with a bearer token: the container's own answer, good or not."""
    said = [
        requests.post(
            f"{aws.platform.url}/endpoints/{name}/openai/v1/chat/completions",
            json={"model": "", "messages": [{"role": "user", "content": "hello"}]},
            headers={"Authorization": "Bearer c29tZWJvZHk="},
            timeout=PATIENCE,
        )
        for name in ("stream", "nowhere")
    ]

    # The endpoint's one model is no language model: its refusal came from /v1/chat/completions.
    assert [each.status_code for each in said] == [424, 400]
    assert said[0].json()["OriginalStatusCode"] == 404
    assert "does not support the path /v1/chat/completions" in said[0].json()["OriginalMessage"]
    assert said[1].json()["Message"] == "Endpoint nowhere of account 123456789012 not found."


def test_selectors_that_do_not_fit_are_refused(aws: Account) -> None:
    """A TargetModel where there are no models to choose from; attributes that are too long."""
    said = [
        refusal(lambda: aws.invoke("stream", TargetModel="a.tar.gz")),
        refusal(lambda: aws.invoke("stream", CustomAttributes="a" * 1025)),
    ]

    assert said[0] == (
        "ValidationError",
        "Endpoint stream is not a multi-model endpoint and does not support target model header.",
    )
    assert "at 'customAttributes' failed to satisfy constraint" in said[1][1]
