"""Every error that this server answers with, its HTTP status, and the one place that renders them.

ServeError
├─ BadRequest             400
│  └─ NotAModel           400
├─ ModelRefused           400, or the model's own
├─ Forbidden              403
├─ ModelNotFound          404
├─ PathNotFound           404
├─ MethodNotAllowed       405
├─ NotAcceptable          406
├─ Conflict               409
├─ PayloadTooLarge        413
├─ UnsupportedMediaType   415
├─ ModelUnusable          424
├─ TooManyRequests        429
├─ InternalError          500
│  ├─ RunnerDied          500
│  └─ DeviceLost          500
├─ UnsupportedTransferEncoding 501
├─ Unavailable            503
│  ├─ QueueFull           503
│  ├─ TooLate             503
│  ├─ ModelFailed         503
│  └─ NotReady            503
└─ DoesNotFit             507

The docstring of each class is its row in docs/operating/errors.md (python -m docs.reference).
"""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar

import msgspec

# InvokeEndpoint cuts OriginalMessage at 2,048 characters (botocore, ModelError.Message); stay under it.
MAX_BODY = 2000


class ServeError(Exception):
    """An error with a status. `hint` is the next step for the reader; `retry_after` is in seconds."""

    status: int = HTTPStatus.INTERNAL_SERVER_ERROR
    type: ClassVar[str] = "InternalServerException"
    retryable: bool = False

    def __init__(
        self, message: str, *, hint: str = "", model: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.model = model
        self.retry_after = retry_after


class BadRequest(ServeError):
    """The request cannot be parsed, or a parameter is invalid: the message says which one and where."""

    status = HTTPStatus.BAD_REQUEST
    type = "BadRequestException"


class NotAModel(BadRequest):
    """The model that `POST /models` names cannot be served (multi-model endpoints)."""

    type = "ModelException"


class Forbidden(ServeError):
    """A `text/uri-list` body names an object that may not be read: `SERVE_S3_INPUTS`, credentials, permissions, KMS."""

    status = HTTPStatus.FORBIDDEN
    type = "AccessDeniedException"


class ModelNotFound(ServeError):
    """No such model; the message lists the models that exist."""

    status = HTTPStatus.NOT_FOUND
    type = "ModelNotFoundException"


class PathNotFound(ServeError):
    """No such path."""

    status = HTTPStatus.NOT_FOUND
    type = "ResourceNotFoundException"


class MethodNotAllowed(ServeError):
    """The path exists, but not for this method."""

    status = HTTPStatus.METHOD_NOT_ALLOWED
    type = "MethodNotAllowedException"


class NotAcceptable(ServeError):
    """Accept names no format that the model can write."""

    status = HTTPStatus.NOT_ACCEPTABLE
    type = "NotAcceptableException"


class Conflict(ServeError):
    """The model is loaded already (multi-model endpoints)."""

    status = HTTPStatus.CONFLICT
    type = "ConflictStatusException"


class PayloadTooLarge(ServeError):
    """The body is over the limit of its bytes, rows or cells: `SERVE_MAX_PAYLOAD_MB`, `_ROWS`, `_CELLS`."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    type = "RequestEntityTooLargeException"


class UnsupportedMediaType(ServeError):
    """The Content-Type, its charset, or the Content-Encoding is unsupported."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    type = "UnsupportedMediaTypeException"


class ModelUnusable(ServeError):
    """The model's files cannot be served: pickles, a truncated file, an invalid `model.toml`. A retry does not help."""

    status = HTTPStatus.FAILED_DEPENDENCY
    type = "ModelException"


class TooManyRequests(ServeError):
    """A limit of `[limits]` in the model's `model.toml`; Retry-After says when the next request will be taken."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    type = "ThrottlingException"
    retryable = True


class ModelRefused(ServeError):
    """The model's own code chose the status, 400 or another: an error of a toolkit, or the status of one record."""

    status: int = HTTPStatus.BAD_REQUEST
    type = "ModelException"

    def __init__(self, message: str, status: int = HTTPStatus.BAD_REQUEST, **more: Any) -> None:
        super().__init__(message, **more)
        self.status = status
        self.retryable = status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


class InternalError(ServeError):
    """A fault of the server, or an exception in the model's code: see the log."""


class RunnerDied(InternalError):
    """The model's process crashed during the request; the message names the cause. A new process starts at once."""

    type = "RunnerDiedException"
    retryable = True


class DeviceLost(InternalError):
    """CUDA failed in a way that lasts as long as the process. A new process takes its place with the next request."""

    type = "DeviceLostException"
    retryable = True


class UnsupportedTransferEncoding(ServeError):
    """The Transfer-Encoding is unsupported: only `chunked` is."""

    status = HTTPStatus.NOT_IMPLEMENTED
    type = "NotImplementedException"


class Unavailable(ServeError):
    """The model is still loading; the message names the step. Retry-After says when to come back, as with every 503."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    type = "ServiceUnavailableException"
    retryable = True


class QueueFull(Unavailable):
    """Too many requests wait for this model: raise `SERVE_QUEUE_LIMIT`, or `copies` in `model.toml`."""

    type = "QueueFullException"


class TooLate(Unavailable):
    """The request could not be finished within `SAGEMAKER_MODEL_SERVER_TIMEOUT`."""

    type = "DeadlineExceededException"


class ModelFailed(Unavailable):
    """The model failed repeatedly; the next attempt is after a pause."""

    type = "ModelFailedException"


class NotReady(Unavailable):
    """The server is starting or draining, or it stops because a process that all models need has ended."""

    type = "NotReadyException"


class DoesNotFit(ServeError):
    """The model does not fit, or memory, processes, open files or disk are exhausted: the message says which."""

    status = HTTPStatus.INSUFFICIENT_STORAGE
    type = "InsufficientStorageException"
    retryable = True


def fields(error: ServeError, request_id: str = "") -> dict[str, Any]:
    """The error as the keys of its JSON body, most useful first."""
    return {
        "code": int(error.status),
        "type": error.type,
        "message": _encodable(error.message),
        "model": error.model,
        "hint": error.hint,
        "request_id": request_id,
        "retryable": error.retryable,
    }


def _encodable(text: str) -> str:
    """Text that UTF-8 can encode: the message of a library, or of own code, may have half of a surrogate pair."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def body(error: ServeError, request_id: str = "", *, openai: bool = False, open_inference: bool = False) -> bytes:
    """The JSON body, at most `MAX_BODY` bytes: the longest of message, hint and model is cut, never a key.

    `openai`: inside a member `error`, where OpenAI's clients expect it. `open_inference`: with the message once more as
    the member `error`, which clients of the Open Inference Protocol read.
    """
    parts = fields(error, request_id)

    def shown() -> dict[str, Any]:
        if open_inference:
            return {"error": parts["message"], **parts}
        return {"error": parts} if openai else parts

    while (over := len(encoded := msgspec.json.encode(shown())) - MAX_BODY) > 0:
        longest = max(("message", "hint", "model"), key=lambda key: len(parts[key] or ""))
        text = parts[longest].encode()
        # At most half at once: escaped characters take more room than they have bytes.
        kept = max(len(text) // 2, len(text) - over - len("…".encode()))
        parts[longest] = text[:kept].decode(errors="ignore") + "…"
    return encoded


def headers(error: ServeError) -> Mapping[str, str]:
    """Headers beside the body: Retry-After in whole seconds, at least one. OpenAI's clients read the milliseconds."""
    if error.retry_after is None:
        return {}
    whole = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    if isinstance(error, TooManyRequests):
        return {**whole, "Retry-After-Ms": str(math.ceil(error.retry_after * 1e3))}
    return whole


# By class, for an error that crosses from the host to a web worker by name.
_CLASSES: dict[str, type[ServeError]] = {}


def _register(cls: type[ServeError]) -> None:
    for each in cls.__subclasses__():
        _CLASSES[each.__name__] = each
        _register(each)


_register(ServeError)


def to_wire(error: ServeError) -> dict[str, Any]:
    """The values from which another process of the server raises the same error."""
    return {
        "class": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "model": error.model,
        "retry_after": error.retry_after,
    }


def from_wire(parts: Mapping[str, Any]) -> ServeError:
    """The error that `to_wire` encoded; an unknown class becomes InternalError."""
    cls = _CLASSES.get(parts["class"], InternalError)
    return cls(parts["message"], hint=parts["hint"], model=parts["model"], retry_after=parts["retry_after"])
