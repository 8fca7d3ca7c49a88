"""boto3's clients of one account and region, and what AWS refuses as one line: which call, why, what to do."""

import re
from functools import cached_property
from typing import Any

import boto3
import botocore.session
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

from deploy import service

# Throttled calls and broken connections are repeated by botocore, waiting longer each time.
CALLS = Config(
    retries={"mode": "standard", "total_max_attempts": 8},
    connect_timeout=10,
    read_timeout=70,  # an invocation may take 60 s: AWS's advice for callers of multi-model endpoints
    user_agent_extra="many-models-deploy",
)


class Failed(Exception):
    """What was asked for was not reached; the message says why, and what to do."""


class Aws:
    """Clients, made when they are first asked for. Raises Failed where no region is known."""

    def __init__(self, region: str | None = None) -> None:
        core = botocore.session.Session()
        core.register_component("data_loader", service.loader())
        self._session = boto3.session.Session(region_name=region, botocore_session=core)
        if self._session.region_name is None:
            raise Failed('no region: give --region, set AWS_DEFAULT_REGION, or say region = "..." in the spec')
        self.region: str = self._session.region_name
        self._clients: dict[str, Any] = {}

    def client(self, name: str) -> Any:
        if name not in self._clients:
            self._clients[name] = self._session.client(name, config=CALLS)
        return self._clients[name]

    @cached_property
    def account(self) -> str:
        return str(self.client("sts").get_caller_identity()["Account"])


def code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def message(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Message", ""))


def denied(error: ClientError) -> bool:
    return code(error) in ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403")


def is_missing(error: ClientError) -> bool:
    """Whatever was named is not there (any more, or yet)."""
    known = ("NoSuchEntity", "ResourceNotFoundException", "ObjectNotFoundException", "ResourceNotFound", "NoSuchBucket")
    return code(error) in known or "Could not find" in message(error)


def is_there_already(error: ClientError) -> bool:
    return "already exist" in message(error) or code(error) in ("EntityAlreadyExists", "ConflictException")


def is_busy(error: ClientError) -> bool:
    """Somebody else's change of this endpoint is under way."""
    return "in-progress" in message(error) or code(error) in ("ResourceInUse", "ConcurrentUpdateException")


def role_unseen(error: ClientError) -> bool:
    """A role that was made a moment ago is not known everywhere yet."""
    said = message(error).lower()
    return "role" in said and ("assume" in said or "invalid" in said)


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
BY_WORDS = (  # of refusals whose code is the same for all: ValidationError
    ("Could not find model data", "put a model there first: python -m deploy put"),
    ("target model header", "name the model: --target-model NAME.tar.gz; `python -m deploy models` lists a prefix"),
    (
        "Failed to download model data",
        "is it there, and may the role read it? `python -m deploy models` lists a prefix",
    ),
    ("not found in endpoint", "`python -m deploy status` lists its variants"),
)


def explained(error: ClientError | BotoCoreError) -> str:
    """One line for a person."""
    if isinstance(error, ClientError):
        said = " ".join(message(error).split()) or code(error)
        return f"{error.operation_name}: {said}" + (f"\n  {advice}" if (advice := _advice(error)) else "")
    said = " ".join(str(error).split())
    if isinstance(error, NO_CREDENTIALS):
        return f"{said}\n  {SIGN_IN}"
    if isinstance(error, NoRegionError):
        return f"{said}\n  give --region or set AWS_DEFAULT_REGION"
    if isinstance(error, EndpointConnectionError | HTTPClientError):
        return (
            f"{said}\n  is the region right, is there a network, and does AWS_ENDPOINT_URL point at a running server?"
        )
    return said


def _advice(error: ClientError) -> str:
    which = code(error)
    if which in EXPIRED:
        return (
            "the credentials have expired: sign in again, then run the same command: it goes on where this one stopped"
        )
    if which in UNKNOWN_KEY:
        return "AWS does not know these credentials: see `aws sts get-caller-identity`, and the region"
    if denied(error):
        asked = re.search(r"perform:? ([\w-]+:\w+)", message(error))
        action = asked[1] if asked else error.operation_name
        return f"have an administrator allow {action}: `python -m deploy roles` prints what is needed"
    if which in THROTTLED:
        return "AWS still throttles after 8 tries: run the same command again in a minute"
    if which in LIMITS:
        return "a quota of this account: ask for more (Service Quotas, SageMaker), or take another instance type"
    if which in ELSEWHERE:
        return "the bucket is in another region: --region must be the bucket's"
    return next((advice for words, advice in BY_WORDS if words in message(error)), "")
