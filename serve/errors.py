"""Every error this server can answer with, its HTTP status, and the one place that renders them.

ServeError
├─ BadRequest             400  the caller's bytes are wrong; the message says where
│  └─ NotAModel           400  what a load asked for cannot be served (multi-model mode)
├─ Forbidden              403  a reference to what may not be read
├─ ModelNotFound          404  no such model; the message names those there are
├─ PathNotFound           404  no such route
├─ MethodNotAllowed       405
├─ NotAcceptable          406  Accept names nothing we can write
├─ Conflict               409  the model is already loaded (multi-model mode)
├─ PayloadTooLarge        413  the body is over the limit
├─ UnsupportedMediaType   415  Content-Type or Content-Encoding we cannot read
├─ ModelUnusable          424  the model's files cannot be served, and trying again will not help
├─ InternalError          500  our own fault; the log has the traceback
│  ├─ RunnerDied          500  the model's process ended while it held the request
│  └─ DeviceLost          500  its device failed for good; the process is replaced
├─ Unavailable            503  not now; Retry-After says when
│  ├─ QueueFull           503
│  ├─ TooLate             503  it could not, or cannot, be done before the deadline
│  ├─ ModelFailed         503  the model keeps failing and is being left alone for a while
│  └─ NotReady            503  starting or draining
└─ DoesNotFit             507  memory; the platform unloads something and tries again
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar

import msgspec

# InvokeEndpoint cuts OriginalMessage at 2,048 characters (botocore, ModelError.Message); stay under it.
MAX_BODY = 2000


class ServeError(Exception):
    """An error with a status; `hint` is the next step for whoever reads it, `retry_after` is in seconds."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    type: ClassVar[str] = "InternalServerException"
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, hint: str = "", model: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.model = model
        self.retry_after = retry_after


class BadRequest(ServeError):
    status = HTTPStatus.BAD_REQUEST
    type = "BadRequestException"


class NotAModel(BadRequest):
    type = "ModelException"


class Forbidden(ServeError):
    status = HTTPStatus.FORBIDDEN
    type = "AccessDeniedException"


class ModelNotFound(ServeError):
    status = HTTPStatus.NOT_FOUND
    type = "ModelNotFoundException"


class PathNotFound(ServeError):
    status = HTTPStatus.NOT_FOUND
    type = "ResourceNotFoundException"


class MethodNotAllowed(ServeError):
    status = HTTPStatus.METHOD_NOT_ALLOWED
    type = "MethodNotAllowedException"


class NotAcceptable(ServeError):
    status = HTTPStatus.NOT_ACCEPTABLE
    type = "NotAcceptableException"


class Conflict(ServeError):
    status = HTTPStatus.CONFLICT
    type = "ConflictStatusException"


class PayloadTooLarge(ServeError):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    type = "RequestEntityTooLargeException"


class UnsupportedMediaType(ServeError):
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    type = "UnsupportedMediaTypeException"


class ModelUnusable(ServeError):
    status = HTTPStatus.FAILED_DEPENDENCY
    type = "ModelException"


class InternalError(ServeError):
    pass


class RunnerDied(InternalError):
    type = "RunnerDiedException"
    retryable = True


class DeviceLost(InternalError):
    type = "DeviceLostException"
    retryable = True


class Unavailable(ServeError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    type = "ServiceUnavailableException"
    retryable = True


class QueueFull(Unavailable):
    type = "QueueFullException"


class TooLate(Unavailable):
    type = "DeadlineExceededException"


class ModelFailed(Unavailable):
    type = "ModelFailedException"


class NotReady(Unavailable):
    type = "NotReadyException"


class DoesNotFit(ServeError):
    status = HTTPStatus.INSUFFICIENT_STORAGE
    type = "InsufficientStorageException"
    retryable = True


def fields(error: ServeError, request_id: str = "") -> dict[str, Any]:
    """The error as the keys of its JSON body, most useful first."""
    return {
        "code": int(error.status),
        "type": error.type,
        "message": error.message,
        "model": error.model,
        "hint": error.hint,
        "request_id": request_id,
        "retryable": error.retryable,
    }


def body(error: ServeError, request_id: str = "", *, openai: bool = False) -> bytes:
    """The JSON body, cut to stay under `MAX_BODY` bytes: what is long is the message or the hint, never the keys.

    `openai`: in a member `error`, where OpenAI's clients look for it.
    """
    parts = fields(error, request_id)
    while (over := len(encoded := msgspec.json.encode({"error": parts} if openai else parts)) - MAX_BODY) > 0:
        longest = max(("message", "hint", "model"), key=lambda key: len(parts[key] or ""))
        text = parts[longest].encode()
        # At most half at once: escaped characters take more room than they have bytes.
        kept = max(len(text) // 2, len(text) - over - len("…".encode()))
        parts[longest] = text[:kept].decode(errors="ignore") + "…"
    return encoded


def headers(error: ServeError) -> Mapping[str, str]:
    """Headers beside the body: Retry-After in whole seconds, at least one."""
    if error.retry_after is None:
        return {}
    return {"Retry-After": str(max(1, round(error.retry_after)))}


# By class, for an error that crosses from the host to a web worker by name.
_CLASSES: dict[str, type[ServeError]] = {}


def _register(cls: type[ServeError]) -> None:
    for each in cls.__subclasses__():
        _CLASSES[each.__name__] = each
        _register(each)


_register(ServeError)


def to_wire(error: ServeError) -> dict[str, Any]:
    """What another of our processes needs to raise the same error."""
    return {
        "class": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "model": error.model,
        "retry_after": error.retry_after,
    }


def from_wire(parts: Mapping[str, Any]) -> ServeError:
    """The error that `to_wire` wrote down; an unknown class becomes InternalError."""
    cls = _CLASSES.get(parts["class"], InternalError)
    return cls(parts["message"], hint=parts["hint"], model=parts["model"], retry_after=parts["retry_after"])
