"""AWS as deploy sees it: clients, requests checked offline, retries, and an error as one line with the next step."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, cached_property
from typing import Any

import boto3
import botocore.session
from botocore import exceptions
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
from botocore.loaders import Loader, create_loader
from botocore.model import ServiceModel, Shape
from botocore.validate import ParamValidator

from deploy.errors import Failed, SpecError, unknown

Request = dict[str, Any]

# botocore retries throttled calls and broken connections with growing pauses.
CALLS = Config(
    retries={"mode": "standard", "total_max_attempts": 8},
    connect_timeout=10,
    read_timeout=70,  # an invocation may take 60 s; AWS recommends 70 s to callers of multi-model endpoints
    user_agent_extra="many-models-deploy",
)
# AWS shows new objects late, a role after up to 10 s. The pause doubles with each try: 15.5 s in all.
TRIES, PAUSE = 6, 0.5


class Aws:
    """Clients of one region, created on first use. Raises Failed if no region is configured."""

    def __init__(self, region: str | None = None) -> None:
        self._session = session(region_name=region)
        if self._session.region_name is None:
            raise Failed('missing region: give --region, set AWS_DEFAULT_REGION, or add region = "..." to the spec')
        self.region: str = self._session.region_name
        self._clients: dict[str, Any] = {}

    def client(self, name: str) -> Any:
        if name not in self._clients:
            self._clients[name] = self._session.client(name, config=CALLS)
        return self._clients[name]

    @cached_property
    def account(self) -> str:
        return str(self.client("sts").get_caller_identity()["Account"])


def retried(call: Callable[[], Any], unseen: Callable[[ClientError], bool]) -> Any:
    """The call's result. The call is retried while its error is `unseen`: AWS does not show a new object yet."""
    for left in reversed(range(TRIES)):
        try:
            return call()
        except ClientError as error:
            if not left or not unseen(error):
                raise
        time.sleep(PAUSE * 2 ** (TRIES - 1 - left))
    raise AssertionError


# Requests, checked against AWS's service model without a call


class Later(str):
    """A placeholder in a request for a string that is known only at run time: it passes every check of strings."""

    __slots__ = ()


@cache
def data_loader() -> Loader:
    """botocore's descriptions of AWS's services. One loader for all: SageMaker's description takes 0.5 s to load."""
    return create_loader()


def session(**options: Any) -> boto3.session.Session:
    """A boto3 session with the shared descriptions: the first client of SageMaker takes 0.01 s instead of 0.14 s."""
    core = botocore.session.Session()
    core.register_component("data_loader", data_loader())
    return boto3.session.Session(botocore_session=core, **options)


@cache
def service_model(service: str = "sagemaker") -> ServiceModel:
    return ServiceModel(data_loader().load_service_model(service, "service-2"), service)


def members(shape: str) -> tuple[str, ...]:
    """The fields of a structure, for example CreateModelInput."""
    return tuple(service_model().shape_for(shape).members)


def check_request(operation: str, request: Mapping[str, Any], service: str = "sagemaker") -> None:
    """Raise SpecError with every violation of the service model: names, types, ranges, patterns and enums."""
    shape = service_model(service).operation_model(operation).input_shape
    assert shape is not None
    found = ParamValidator().validate(request, shape)
    problems = found.generate_report().splitlines() if found.has_errors() else list(_violations(shape, request, ""))
    if problems:
        raise SpecError(f"{operation}: " + "; ".join(problems[:5]))


def _violations(shape: Shape, value: Any, path: str) -> Iterator[str]:
    """Violations of enums, patterns and upper limits, which botocore's own validator does not check."""
    if shape.type_name == "structure":
        for name, each in value.items():
            yield from _violations(shape.members[name], each, f"{path}.{name}" if path else name)
    elif shape.type_name == "list":
        for number, each in enumerate(value):
            yield from _violations(shape.member, each, f"{path}[{number}]")
    elif shape.type_name == "map":
        for name, each in value.items():
            yield from _violations(shape.key, name, f"{path} (key)")
            yield from _violations(shape.value, each, f"{path}.{name}")
    most, pattern = shape.metadata.get("max"), shape.metadata.get("pattern")
    size = len(value) if isinstance(value, str | list | Mapping) else value
    if most is not None and isinstance(size, int | float) and size > most:
        yield f"{path}: {size} is over the limit of {most}"
    if isinstance(value, str) and not isinstance(value, Later):
        known = getattr(shape, "enum", [])
        if known and value not in known:
            yield f"{path}: {unknown(value, known, 'value')}" if len(known) < 30 else _unlisted(path, value, known)
        elif pattern and not _matches(pattern, value):
            yield f"{path}: {value[:80]!r} does not match {pattern}"


def _matches(pattern: str, value: str) -> bool:
    """AWS's patterns are Java's; a pattern that Python cannot compile matches everything."""
    try:
        return re.fullmatch(pattern, value, re.DOTALL) is not None
    except re.error:
        return True


def _unlisted(path: str, value: str, known: list[str]) -> str:
    text = unknown(value, known, "value").partition("; known")[0]
    stop = "" if text.endswith("?") else "."
    return f"{path}: {text}{stop} If the value is new in AWS: pip install --upgrade boto3"


# Errors


def code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def message(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Message", ""))


def denied(error: ClientError) -> bool:
    return code(error) in ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403")


def is_missing(error: ClientError) -> bool:
    """The named object does not exist: it was deleted, or AWS does not show it yet."""
    known = ("NoSuchEntity", "ResourceNotFoundException", "ObjectNotFoundException", "ResourceNotFound", "NoSuchBucket")
    return code(error) in known or "Could not find" in message(error)


def already_exists(error: ClientError) -> bool:
    return "already exist" in message(error) or code(error) in ("EntityAlreadyExists", "ConflictException")


def is_busy(error: ClientError) -> bool:
    """Another change of this endpoint is in progress."""
    return "in-progress" in message(error) or code(error) in ("ResourceInUse", "ConcurrentUpdateException")


def role_unseen(error: ClientError) -> bool:
    """A new role is not visible to all of AWS yet."""
    text = message(error).lower()
    return "role" in text and ("assume" in text or "invalid" in text)


EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")
UNKNOWN_KEY = (
    *("InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId", "AuthFailure"),
    *("SignatureDoesNotMatch", "InvalidSignatureException", "InvalidToken", "MissingAuthenticationToken"),
)
THROTTLED = ("ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded", "SlowDown")
LIMITS = ("ResourceLimitExceeded", "LimitExceeded", "LimitExceededException", "ServiceQuotaExceededException")
ELSEWHERE = ("PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException")
NO_CREDENTIALS = (
    *(NoCredentialsError, PartialCredentialsError, CredentialRetrievalError),
    *(ProfileNotFound, SSOError, TokenRetrievalError),
)
SIGN_IN = "sign in (aws sso login, aws configure), or export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
CREDENTIALS_EXPIRED = "the credentials have expired: sign in again, then run the same command again; it resumes"
BY_WORDS = (  # all these errors have the code ValidationError
    ("Could not find model data", "upload a model first: python -m deploy put"),
    ("target model header", "give --target-model NAME.tar.gz; `python -m deploy models` lists a prefix"),
    (
        "Failed to download model data",
        "check that it exists and that the role may read it; `python -m deploy models` lists a prefix",
    ),
    ("not found in endpoint", "`python -m deploy status` lists its variants"),
)


def explained_any(error: Exception) -> str | None:
    """The message for an error of AWS or botocore; None for any other error."""
    if isinstance(error, ClientError | BotoCoreError):
        return explained(error)
    # botocore has no class of its own for expired credentials.
    if isinstance(error, RuntimeError) and "credentials are still expired" in str(error):
        return f"{error}\n  {SIGN_IN}"
    return None


def explained(error: ClientError | BotoCoreError) -> str:
    """The failed operation and AWS's reason on one line, the next step on a second."""
    if isinstance(error, ClientError):
        text = " ".join(message(error).split()) or code(error)
        return f"{error.operation_name}: {text}" + (f"\n  {advice}" if (advice := _advice(error)) else "")
    text = " ".join(str(error).split())
    if isinstance(error, NO_CREDENTIALS):
        return f"{text}\n  {SIGN_IN}"
    if isinstance(error, NoRegionError):
        return f"{text}\n  give --region or set AWS_DEFAULT_REGION"
    if isinstance(error, EndpointConnectionError | HTTPClientError):
        return f"{text}\n  check the region, the network, and that AWS_ENDPOINT_URL, if set, names a running server"
    return text


def _advice(error: ClientError) -> str:
    which = code(error)
    if which in EXPIRED:
        return CREDENTIALS_EXPIRED
    if which in UNKNOWN_KEY:
        return "unknown credentials: check `aws sts get-caller-identity`, and the region"
    if denied(error):
        found = re.search(r"perform:? ([\w-]+:\w+)", message(error))
        action = found[1] if found else error.operation_name
        return f"have an administrator allow {action}: `python -m deploy roles` prints the rights needed"
    if which in THROTTLED:
        return "throttled after 8 tries: run the same command again in a minute"
    if which in LIMITS:
        return "a quota of this account: request more (Service Quotas, SageMaker), or use another instance type"
    if which in ELSEWHERE:
        return "the bucket is in another region: --region must be the bucket's"
    return next((advice for words, advice in BY_WORDS if words in message(error)), "")


NO_NETWORK = (exceptions.ConnectionError, exceptions.HTTPClientError)
# The permission of an S3 operation, where its name differs from the operation's.
S3_ACTIONS = {
    **dict.fromkeys(("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"), "PutObject"),
    **dict.fromkeys(("ListObjectsV2", "HeadBucket"), "ListBucket"),
    **dict.fromkeys(("DeleteObjects", "DeleteObject"), "DeleteObject"),
    "HeadObject": "GetObject",
    "ListMultipartUploads": "ListBucketMultipartUploads",
    "ListParts": "ListMultipartUploadParts",
}
S3_DENIED = ("AccessDenied", "AllAccessDisabled", "403")
S3_DAMAGED = (
    *("BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "InvalidRequest"),
    "XAmzContentChecksumMismatch",
)
S3_BUSY = ("SlowDown", "ServiceUnavailable", "InternalError", "503", "500", "RequestTimeout")


def explained_s3(error: ClientError | BotoCoreError, uri: str) -> str:
    """The same for S3: it begins with the URI."""
    text = " ".join(str(error).split())
    if isinstance(error, ClientError):
        reason = " ".join(message(error).split())
        text, advice = f"{error.operation_name}: {code(error)}: {reason}", _advice_s3(error, code(error), reason, uri)
    elif isinstance(error, NO_CREDENTIALS):
        advice = SIGN_IN
    elif isinstance(error, NO_NETWORK):
        advice = "check the network, and that AWS_ENDPOINT_URL, if set, names a running server"
    else:
        advice = ""
    return f"{uri}: {text}" + (f"\n  {advice}" if advice else "")


def _advice_s3(error: ClientError, which: str, reason: str, uri: str) -> str:
    bucket = uri.removeprefix("s3://").partition("/")[0]
    action = f"s3:{S3_ACTIONS.get(error.operation_name, error.operation_name)}"
    if which == "NoSuchBucket" or (which == "404" and error.operation_name == "HeadBucket"):
        return f"bucket not found: create it (aws s3 mb s3://{bucket}), or check its name"
    if which in EXPIRED:
        return CREDENTIALS_EXPIRED
    if which == "SignatureDoesNotMatch":
        return "the secret key does not belong to the access key: check AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials"
    if which in UNKNOWN_KEY:
        return f"unknown credentials: {SIGN_IN}"
    if which == "RequestTimeTooSkewed":
        return "this machine's clock is wrong: set it"
    if which in S3_DENIED and "kms" in reason.lower():
        return "the bucket encrypts by KMS: you need kms:GenerateDataKey and kms:Decrypt on its key"
    if which in S3_DENIED:
        of = bucket if action.startswith("s3:ListBucket") else f"{bucket}/*"
        return f"you need {action} on arn:aws:s3:::{of}, and no bucket policy that denies it"
    if which in ELSEWHERE:
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        where = headers.get("x-amz-bucket-region") or error.response.get("Error", {}).get("Region")
        return f"the bucket is in another region: --region {where or 'REGION'}"
    if which in S3_DAMAGED:
        return "if the bytes were damaged in transit, run the same command again"
    if which in S3_BUSY:
        return "S3 was busy at every try: run the same command again in a minute"
    return ""
