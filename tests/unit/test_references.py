"""References to S3 objects: their form, the allowed prefixes, and the error for each failure."""

import socket
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
from botocore import exceptions as boto

from serve import s3 as objects
from serve import settings
from serve.errors import BadRequest, Forbidden, ServeError, Unavailable
from serve.handlers.base import Request
from serve.runner import references as s3
from serve.runner.jobs import ConnectionJob, Poll, Waited
from serve.runner.references import References
from serve.s3 import Reference

ASKED = Reference("b", "in/a.csv")


@pytest.mark.parametrize(
    "body",
    [
        b"s3://b/in/a.csv",
        b"s3://b/in/a.csv\r\n",
        b"# of today\r\n\r\ns3://b/in/a.csv\r\n# and no other\r\n",
    ],
)
def test_one_line_is_the_object_and_comments_are_not(body: bytes) -> None:
    """RFC 2483."""
    assert s3.reference(body) == ASKED


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "0 URIs"),
        (b"# nothing\n", "0 URIs"),
        (b"s3://b/1\ns3://b/2\n", "2 URIs"),
        (b"https://b.s3.amazonaws.com/k", "invalid URI of an S3 object"),
        (b"s3://b", "invalid URI"),
        (b"s3://b/", "invalid URI"),
        (b"s3:///k", "invalid URI"),
        (b"\xff\xfe", "not UTF-8"),
        (b"s3://b/" + b"k" * 5000, "has 5007 bytes, the limit is 4096"),
    ],
)
def test_anything_else_is_a_bad_request(body: bytes, says: str) -> None:
    """The error states what was found."""
    with pytest.raises(BadRequest, match=says):
        s3.reference(body)


@pytest.mark.parametrize("prefix", ["s3://b", "s3://b/", "s3://b/in", "s3://b/in/", "s3://b/in/a.csv"])
def test_an_object_below_a_prefix_is_allowed(prefix: str) -> None:
    """With or without a slash at its end."""
    s3.check(ASKED, ("s3://other", prefix))


@pytest.mark.parametrize("prefix", ["s3://b/i", "s3://b/in/a", "s3://bb", "s3://b/out", "s3://b/in/a.csv/"])
def test_a_key_that_only_begins_like_a_prefix_is_not_allowed(prefix: str) -> None:
    """s3://b/in allows nothing in s3://b/in-secret."""
    with pytest.raises(Forbidden) as refused:
        s3.check(ASKED, (prefix,))
    assert "SERVE_S3_INPUTS" in refused.value.hint


def test_no_object_is_allowed_by_default() -> None:
    """The error names the setting."""
    with pytest.raises(Forbidden) as refused:
        s3.check(ASKED, ())
    assert "SERVE_S3_INPUTS, now: none" in refused.value.hint


def said(code: str, status: int, message: str = "") -> Any:
    return boto.ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}},
        "GetObject",
    )


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (said("NoSuchKey", 404), BadRequest, "no key 'in/a.csv'"),
        (said("NoSuchBucket", 404), BadRequest, "bucket 'b' does not exist"),
        (said("AccessDenied", 403, "Access Denied"), Forbidden, "s3:GetObject"),
        (said("AccessDenied", 403, "not authorized to perform: kms:Decrypt"), Forbidden, "give the role kms:Decrypt"),
        (said("KMS.DisabledException", 400, "key is disabled"), Forbidden, "cannot be decrypted"),
        (said("InvalidAccessKeyId", 403), Forbidden, "rejects the container's AWS credentials: InvalidAccessKeyId"),
        (said("ExpiredToken", 400), Forbidden, "rejects the container's AWS credentials: ExpiredToken"),
        (said("PermanentRedirect", 301, "use eu-west-1"), BadRequest, "another region than us-east-1: use eu-west-1"),
        (said("AuthorizationHeaderMalformed", 400, "expecting 'eu-west-1'"), BadRequest, "AWS_REGION"),
        (said("InvalidObjectState", 403), BadRequest, "restore"),
        (said("SlowDown", 503), Unavailable, "SlowDown"),
        (said("TooManyRequests", 429), Unavailable, "TooManyRequests"),
        (said("InvalidRequest", 400, "odd"), BadRequest, "InvalidRequest: odd"),
        (boto.NoCredentialsError(), Forbidden, "AWS credentials are missing"),
        (boto.ParamValidationError(report="Invalid bucket name"), BadRequest, "Invalid bucket name"),
        (boto.EndpointConnectionError(endpoint_url="https://x"), Unavailable, "cannot connect to S3"),
        (boto.ConnectTimeoutError(endpoint_url="https://x"), Unavailable, "VPC"),
        (boto.ReadTimeoutError(endpoint_url="https://x"), Unavailable, "ReadTimeoutError"),
        (boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), Unavailable, "IncompleteReadError"),
    ],
)
def test_each_failure_has_its_error(error: Exception, kind: type[ServeError], says: str) -> None:
    """Bucket, key, permission, KMS, region, credentials or network."""
    told = objects.explained(error, ASKED, "us-east-1")
    assert type(told) is kind
    assert says in f"{told.message}; {told.hint}"
    assert told.retryable == (kind is Unavailable)


def test_a_thread_that_cannot_start_fails_its_own_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The container's limit on processes is a 507; the next reference is fetched again."""
    failed: list[ServeError] = []
    listener, control, caller, ours = (end for _ in range(2) for end in socket.socketpair())
    references = References(Poll(listener, control), settings.read({"SERVE_S3_INPUTS": "s3://b"}))
    job = SimpleNamespace(connection=SimpleNamespace(fd=ours.fileno()), fail=failed.append)
    job.request = Request(body=b"s3://b/k", content_type="text/uri-list")
    job.waited = Waited(0.0)

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    references.add(cast(ConnectionJob, job))
    references.add(cast(ConnectionJob, job))

    assert [(each.status, each.message.partition(":")[0]) for each in failed] == [
        (507, "the model failed on this request")
    ] * 2
    assert not references.held
    for each in (listener, control, caller, ours):
        each.close()
