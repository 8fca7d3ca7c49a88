"""Objects in S3: their URIs, one whole object as bytes, and the error for each failure of a transfer."""

import io
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import Any

from serve.errors import BadRequest, Forbidden, PayloadTooLarge, ServeError, TooLate, Unavailable

PIECE = 1 << 20
BODY = "send the body itself"  # what a caller can do instead


@dataclass(frozen=True, slots=True)
class Reference:
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True)
class Object:
    body: bytes
    content_type: str
    encoding: str


def parse(uri: str) -> Reference:
    """The object of s3://BUCKET/KEY. Raises BadRequest."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket or not key:
        raise BadRequest(f"invalid URI of an S3 object: {uri[:200]!r}", hint="send s3://BUCKET/KEY")
    return Reference(bucket, key)


def fetch(requested: Reference, region: str, limit: int, hung_up: Callable[[], bool], *, instead: str = BODY) -> Object:
    """The object, of at most `limit` bytes. The transfer is stopped once `hung_up` returns true.

    `instead`: for the hints, what works where S3 cannot be reached. Raises a ServeError that names the cause.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    client = _client(region)
    try:
        answer = client.get_object(Bucket=requested.bucket, Key=requested.key)
        with closing(answer["Body"]) as stream:
            if answer["ContentLength"] > limit:
                raise PayloadTooLarge(
                    f"{requested} has {answer['ContentLength']} bytes, the limit is {limit}",
                    hint="raise SERVE_MAX_PAYLOAD_MB",
                )
            body = io.BytesIO()
            for piece in stream.iter_chunks(PIECE):
                body.write(piece)
                if hung_up():
                    raise TooLate(f"the caller hung up while {requested} was fetched")
    except (BotoCoreError, ClientError) as error:
        raise explained(error, requested, region, instead) from error
    return Object(body.getvalue(), answer.get("ContentType", ""), answer.get("ContentEncoding", ""))


@cache
def _client(region: str) -> Any:
    import boto3
    from botocore.config import Config

    # The caller waits: a connection that is not made within seconds fails.
    config = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 2, "mode": "standard"})
    return boto3.session.Session().client("s3", region_name=region or None, config=config)


def explained(error: Exception, requested: Reference, region: str, instead: str = BODY) -> ServeError:
    """The error to answer for an exception of botocore: the cause, and what to do.

    A missing object is a 400 and not a 404: on a multi-model endpoint 404 means that the model is not loaded.
    """
    from botocore import exceptions as boto

    response = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))
    reason = str(response.get("Error", {}).get("Message", "")) or str(error)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    where = region or "no region set"
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        return Forbidden(
            f"{requested}: AWS credentials are missing in the container",
            hint=f"give the execution role s3:GetObject; with network isolation there are no credentials: {instead}",
        )
    if isinstance(error, boto.ParamValidationError):
        return BadRequest(f"{requested}: {reason[:300]}", hint="fix the bucket's name or the key")
    if code == "NoSuchKey":
        return BadRequest(f"bucket {requested.bucket!r} has no key {requested.key!r}", hint="fix the key")
    if code == "NoSuchBucket":
        return BadRequest(f"bucket {requested.bucket!r} does not exist", hint="fix the bucket's name")
    if code.startswith("KMS.") or "kms" in reason.lower():
        return Forbidden(
            f"{requested} cannot be decrypted: {reason[:300]}", hint="give the role kms:Decrypt on its key"
        )
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "RequestTimeTooSkewed"):
        return Forbidden(f"{requested}: S3 rejects the container's AWS credentials: {code}", hint=reason[:300])
    if code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"):
        return BadRequest(
            f"bucket {requested.bucket!r} is in another region than {where}: {reason[:200]}",
            hint="set AWS_REGION to the bucket's region",
        )
    if code == "InvalidObjectState":
        return BadRequest(f"{requested} is archived: {reason[:200]}", hint="restore it first")
    if status == 403:
        return Forbidden(
            f"{requested}: access denied",
            hint="give the role s3:GetObject on the key, and s3:ListBucket so that S3 reports a missing key as such",
        )
    if isinstance(error, boto.EndpointConnectionError | boto.ConnectTimeoutError | boto.ProxyConnectionError):
        return Unavailable(
            f"{requested}: cannot connect to S3 (region: {where})",
            hint=f"with network isolation, or in a VPC without an S3 endpoint, {instead}",
            retry_after=5,
        )
    if isinstance(error, boto.ClientError) and 400 <= status < 500 and status != 429:
        return BadRequest(f"{requested}: {code}: {reason[:300]}")
    return Unavailable(f"{requested}: S3 failed: {code or type(error).__name__}: {reason[:200]}", retry_after=2)
