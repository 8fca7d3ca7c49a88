"""One InvokeEndpoint between its caller and an instance, and the errors that the platform answers instead.

Codes and shapes: docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

MESSAGE = 2048  # characters of a container's error that its caller is shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a caller wants of a container."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)  # those that the platform passes on, and no others
    target_model: str | None = None
    target_container: str | None = None  # a container's hostname, where the endpoint is invoked directly
    stream: bool = False
    path: str = "/invocations"  # where a container has but its own model
    limit: float  # seconds the container has


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A container's 2xx. A streamed body is chunks as they come; an iteration that raises is a broken stream."""

    status: int
    headers: Mapping[str, str]  # by lower-case name
    body: bytes | Iterator[bytes]


class PlatformError(Exception):
    """An error of the platform's own; the name of its class is AWS's code for it."""

    status = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ValidationError(PlatformError):
    status = 400


class ModelError(PlatformError):
    """The container answered 4xx or 5xx, or broke off (status 0, or 500 in the caller's eyes)."""

    status = 424

    def __init__(self, message: str, original_status: int, original_message: str, log_stream: str) -> None:
        super().__init__(message)
        self.original_status = original_status
        self.original_message = original_message[:MESSAGE]
        self.log_stream = log_stream


class ModelStreamError(PlatformError):
    """A stream that began and did not end; `error_code` is ModelInvocationTimeExceeded or StreamBroken."""

    status = 400

    def __init__(self, message: str, error_code: str) -> None:
        super().__init__(message)
        self.error_code = error_code


class ModelNotReadyException(PlatformError):
    status = 429


class InternalFailure(PlatformError):
    status = 500


class ServiceUnavailable(PlatformError):
    status = 503
