"""One object of S3 as a body: where it may be, how it is read, and which of bucket, key, permission or region is wrong.

boto3 is imported when the first object is asked for: it takes a second and 32 MB, which a model that is never
given a reference does not pay.
"""

import io
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import Any

from serve.errors import BadRequest, Forbidden, PayloadTooLarge, ServeError, TooLate, Unavailable

PIECE = 1 << 20
LONGEST = 4096  # bytes of a list of URIs: a key may have 1,024, and there may be comments


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


def reference(body: bytes) -> Reference:
    """The one URI of a text/uri-list, whose lines with `#` are comments (RFC 2483). Raises BadRequest."""
    if len(body) > LONGEST:
        raise BadRequest(f"a text/uri-list of {len(body)} bytes is longer than one URI", hint="send one s3:// line")
    try:
        lines = [line.strip() for line in body.decode().splitlines()]
    except UnicodeDecodeError as error:
        raise BadRequest(f"the text/uri-list is not UTF-8: {error}") from error
    uris = [line for line in lines if line and not line.startswith("#")]
    if len(uris) != 1:
        raise BadRequest(f"the text/uri-list has {len(uris)} URIs", hint="send exactly one, s3://BUCKET/KEY")
    scheme, _, rest = uris[0].partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket or not key:
        raise BadRequest(f"{uris[0][:200]!r} is not an object of S3", hint="send s3://BUCKET/KEY")
    return Reference(bucket, key)


def check(asked: Reference, prefixes: Sequence[str]) -> None:
    """Raise Forbidden unless it lies under one of SERVE_S3_INPUTS; a prefix ends where a part of the key ends."""
    for prefix in prefixes:
        if str(asked).startswith(prefix if prefix.endswith("/") else prefix + "/") or str(asked) == prefix:
            return
    raise Forbidden(
        f"{str(asked)[:300]} may not be read" + ("" if prefixes else ": no input by reference is allowed here"),
        hint=f"the operator lists what may be read in SERVE_S3_INPUTS, now: {', '.join(prefixes) or 'nothing'}",
    )


def fetch(asked: Reference, region: str, limit: int, gone: Callable[[], bool]) -> Object:
    """The object, of at most `limit` bytes; given up when `gone` says that nobody waits for it."""
    from botocore.exceptions import BotoCoreError, ClientError

    client = _client(region)
    try:
        answer = client.get_object(Bucket=asked.bucket, Key=asked.key)
        with closing(answer["Body"]) as stream:
            if answer["ContentLength"] > limit:
                raise PayloadTooLarge(
                    f"{asked} has {answer['ContentLength']} bytes, the limit is {limit}", hint="SERVE_MAX_PAYLOAD_MB"
                )
            body = io.BytesIO()
            for piece in stream.iter_chunks(PIECE):
                body.write(piece)
                if gone():
                    raise TooLate(f"nobody waits for {asked} any more")
    except (BotoCoreError, ClientError) as error:
        raise explained(error, asked, region) from error
    return Object(body.getvalue(), answer.get("ContentType", ""), answer.get("ContentEncoding", ""))


@cache
def _client(region: str) -> Any:
    import boto3
    from botocore.config import Config

    # A caller waits: what does not connect within seconds will not.
    config = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 2, "mode": "standard"})
    return boto3.session.Session().client("s3", region_name=region or None, config=config)


def explained(error: Exception, asked: Reference, region: str) -> ServeError:
    """What botocore raised, as what is wrong and what to do.

    A missing object is a 400 and not a 404, which a multi-model endpoint would take for a model that is not loaded.
    """
    from botocore import exceptions as boto

    told = getattr(error, "response", None) or {}
    code = str(told.get("Error", {}).get("Code", ""))
    reason = str(told.get("Error", {}).get("Message", "")) or str(error)
    status = told.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    where = region or "no region set"
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        return Forbidden(
            f"{asked}: there are no AWS credentials here",
            hint="give the execution role s3:GetObject; under network isolation there are none: send the body",
        )
    if isinstance(error, boto.ParamValidationError):
        return BadRequest(f"{asked}: {reason[:300]}", hint="mend the bucket's name or the key")
    if code == "NoSuchKey":
        return BadRequest(f"bucket {asked.bucket!r} has no key {asked.key!r}", hint="mend the key")
    if code == "NoSuchBucket":
        return BadRequest(f"there is no bucket {asked.bucket!r}", hint="mend the bucket's name")
    if code.startswith("KMS.") or "kms" in reason.lower():
        return Forbidden(f"{asked} cannot be decrypted: {reason[:300]}", hint="give the role kms:Decrypt on its key")
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "RequestTimeTooSkewed"):
        return Forbidden(f"{asked}: the AWS credentials here are not accepted: {code}", hint=reason[:300])
    if code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"):
        return BadRequest(
            f"bucket {asked.bucket!r} is in another region than {where}: {reason[:200]}",
            hint="set AWS_REGION to the bucket's region",
        )
    if code == "InvalidObjectState":
        return BadRequest(f"{asked} is archived: {reason[:200]}", hint="restore it first")
    if status == 403:
        return Forbidden(
            f"{asked}: access denied",
            hint="give the role s3:GetObject on the key, and s3:ListBucket to be told when a key does not exist",
        )
    if isinstance(error, boto.EndpointConnectionError | boto.ConnectTimeoutError | boto.ProxyConnectionError):
        return Unavailable(
            f"{asked}: S3 cannot be reached (region: {where})",
            hint="under network isolation, or in a VPC without an S3 endpoint, send the body itself",
            retry_after=5,
        )
    if isinstance(error, boto.ClientError) and 400 <= status < 500 and status != 429:
        return BadRequest(f"{asked}: {code}: {reason[:300]}")
    return Unavailable(f"{asked}: S3 failed: {code or type(error).__name__}: {reason[:200]}", retry_after=2)
