"""A body may be a reference to an S3 object. A failed fetch states its cause, and delays no other request."""

import gzip
import socket
from pathlib import Path

import pytest

from serve import s3 as serve_s3
from serve.errors import ServeError
from tests.live.bucket_server import BucketServer
from tests.live.conftest import Later, Start
from tests.live.stack import Answer, Server, toy, wait_until

LIST = "text/uri-list"
ALLOWED = "s3://inputs/in, s3://secret/, s3://nowhere"


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path, s3: BucketServer) -> Server:
    toy(shared_models, "echo")
    toy(shared_models, "tally")
    return start_shared(shared_models, SERVE_S3_INPUTS=ALLOWED, SERVE_MAX_PAYLOAD_MB=4, **s3.environ())


def refused(answer: Answer, status: int, *says: str) -> None:
    """The answer is this error, with all these words in its message and hint."""
    assert answer.status == status, answer.body
    text = f"{answer.json['message']}; {answer.json['hint']}"
    for each in says:
        assert each in text


def test_the_object_is_the_body_with_its_own_type(s3: BucketServer, server: Server) -> None:
    """In several pieces, or in gzip; as if it had been sent."""
    rows = b"1,2,3\n" * 500_000
    large = server.invoke("echo", s3.put("in/rows.csv", rows, ContentType="text/csv; charset=utf-8"), LIST)
    same = large.body.partition(b":")[2] == rows
    assert (large.status, large.headers["content-type"], same) == (200, "text/csv", True)

    packed = s3.put("in/rows.gz", gzip.compress(rows), ContentType="text/csv", ContentEncoding="gzip")
    assert server.invoke("echo", packed, LIST).body.partition(b":")[2] == rows

    json = s3.put("in/a b+ä.json", b'{"id": 7}', ContentType="application/json")
    assert server.invoke("tally", b"# comment\r\n" + json + b"\r\n", LIST).json["id"] == 7


def test_the_request_may_name_the_type_of_an_object(s3: BucketServer, server: Server) -> None:
    """S3's default type names no format, and the uploader may not be the caller."""
    plain = s3.put("in/plain", b"1,2", ContentType="binary/octet-stream")
    refused(server.invoke("echo", plain, LIST), 415, "binary/octet-stream", "--content-type", "; type=")

    told = server.invoke("echo", plain, LIST + "; type=text/csv")
    assert (told.status, told.headers["content-type"]) == (200, "text/csv")


def test_each_cause_of_a_failed_fetch_has_its_error(s3: BucketServer, server: Server) -> None:
    """Key, bucket, permission, size, prefix, form; a multi-model endpoint would take a 404 for a missing model."""
    hidden = s3.put("x", b"1", bucket="secret", ContentType="text/csv")
    outside = s3.put("inner", b"1", ContentType="text/csv")
    huge = s3.put("in/huge", bytes((4 << 20) + 1), ContentType="text/csv")

    refused(server.invoke("echo", b"s3://inputs/in/none", LIST), 400, "bucket 'inputs' has no key 'in/none'")
    refused(server.invoke("echo", b"s3://nowhere/x", LIST), 403, "s3://nowhere/x")
    refused(server.invoke("echo", hidden, LIST), 403, "access denied", "s3:GetObject")
    refused(server.invoke("echo", outside, LIST), 403, "not below any prefix", "SERVE_S3_INPUTS")
    refused(server.invoke("echo", huge, LIST), 413, "4194305", "SERVE_MAX_PAYLOAD_MB")
    refused(server.invoke("echo", b"https://x/y", LIST), 400, "s3://BUCKET/KEY")


def test_a_slow_object_delays_no_other_request(later: Later, start: Start, models: Path) -> None:
    """While S3 does not answer, the model answers other requests; a hang-up ends the fetch, a deadline is a 503."""
    toy(models, "echo")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = start(
            models,
            SERVE_S3_INPUTS="s3://b",
            SERVE_PRELOAD="echo",
            SAGEMAKER_MODEL_SERVER_TIMEOUT=5,
            AWS_ENDPOINT_URL_S3=f"http://127.0.0.1:{silent.getsockname()[1]}",
            AWS_ACCESS_KEY_ID="a",
            AWS_SECRET_ACCESS_KEY="b",
        )
        waiting = later(server.invoke, "echo", b"s3://b/k", LIST)
        wait_until(lambda: server.model("echo")["inFlight"] == 1)
        assert server.invoke("echo", b"x", "text/csv").status == 200
        refused(waiting.result(), 503, "S3 did not return the object", "SAGEMAKER_MODEL_SERVER_TIMEOUT")
        wait_until(lambda: server.model("echo")["inFlight"] == 0)


@pytest.mark.parametrize(
    ("environ", "uri", "status", "says"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "s3://inputs/ready", 403, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "s3://inputs/ready", 403, "InvalidAccessKeyId"),
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            "s3://inputs/ready",
            403,
            "AWS credentials are missing",
        ),
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}, "s3://inputs/ready", 503, "cannot connect to S3"),
        (
            {"AWS_ACCESS_KEY_ID": "owner", "AWS_SECRET_ACCESS_KEY": "owner-secret"},
            "s3://no-such/x",
            400,
            "does not exist",
        ),
    ],
    ids=["a wrong secret", "an unknown key", "no credentials", "no way there", "no such bucket"],
)
def test_each_fault_of_the_environment_has_its_error(
    s3: BucketServer, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], uri: str, status: int, says: str
) -> None:
    """Credentials, network and bucket: fetched in this process, since each server has one identity only."""
    for name, value in {**s3.environ(), "AWS_CONFIG_FILE": "/dev/null", **environ}.items():
        monkeypatch.setenv(name, value)
    serve_s3._client.cache_clear()
    with pytest.raises(ServeError, match=says) as told:
        serve_s3.fetch(serve_s3.parse(uri), "us-east-1", 1000, lambda: False)
    assert told.value.status == status
