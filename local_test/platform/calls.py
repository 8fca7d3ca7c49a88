"""One InvokeEndpoint call, its reply, and the errors that the platform itself returns.

Error codes and shapes: docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

MESSAGE = 2048  # characters of a container's error that the caller receives


@dataclass(slots=True)
class Timings:
    """What a call took, in seconds; its containers and their models add to it."""

    model: float = 0.0  # between sending the request to a container and its complete answer, for all its containers
    loading: float = 0.0  # waiting for the model to be loaded
    cold: bool | None = None  # whether the model had to be loaded; None without a multi-model container


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request for a container."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)  # only the headers that the platform forwards
    target_model: str | None = None
    target_container: str | None = None  # a container's hostname, for an endpoint with direct invocation
    stream: bool = False
    path: str = "/invocations"  # in a container with a single model
    limit: float  # seconds for the container to answer
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A 2xx response. A streamed body is an iterator of chunks, which raises ModelStreamError if the stream breaks."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes | Iterator[bytes]


class PlatformError(Exception):
    """An error that the platform returns. The class name is AWS's error code."""

    status = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ValidationError(PlatformError):
    """The request is not valid."""

    status = 400


class ModelError(PlatformError):
    """The container answered 4xx or 5xx. The original status is 0 if the container did not answer completely."""

    status = 424

    def __init__(self, message: str, original_status: int, original_message: str, log_stream: str) -> None:
        super().__init__(message)
        self.original_status = original_status
        self.original_message = original_message[:MESSAGE]
        self.log_stream = log_stream


class ModelStreamError(PlatformError):
    """A stream started and did not complete; `error_code` is ModelInvocationTimeExceeded or StreamBroken."""

    status = 400

    def __init__(self, message: str, error_code: str) -> None:
        super().__init__(message)
        self.error_code = error_code


class ModelNotReadyException(PlatformError):
    """The model is still being downloaded or loaded."""

    status = 429


class InternalFailure(PlatformError):
    """The platform failed."""

    status = 500


class ServiceUnavailable(PlatformError):
    """No container can take the call now."""

    status = 503
