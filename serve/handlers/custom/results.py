"""The return values and exceptions of a model's own functions, as replies and errors."""

import itertools
import logging
from collections.abc import Iterator
from typing import Any

from serve import failures
from serve.errors import (
    BadRequest,
    InternalError,
    ModelNotFound,
    ModelRefused,
    NotAcceptable,
    PayloadTooLarge,
    ServeError,
    UnsupportedMediaType,
)
from serve.failures import described, exhausted, give_back, message_of
from serve.formats import values
from serve.handlers.base import Reply
from serve.handlers.custom import toolkits
from serve.handlers.custom.context import OURS, checked_headers, checked_status
from serve.http import media
from serve.walls import advice

log = logging.getLogger(__name__)


def failure(error: BaseException, name: str, program: str, model_name: str) -> ServeError:
    """The error of the reply for an exception of the function `name`; the log has the traceback."""
    if isinstance(error, ServeError):
        return error
    if lost := failures.lost(error):
        log.error("%s lost its process", name, exc_info=error, extra={"model": model_name})
        return lost
    if refused := _refusal(error, name):
        return refused
    log.error("%s failed", name, exc_info=error, extra={"model": model_name})
    if out := exhausted(error):
        give_back(error)  # before the other requests of the batch run
        out.message = f"{program} {name}: {out.message}"
        return out
    hint = advice.hint(error) or "the log has the traceback"
    return InternalError(f"{program} {name} raised {described(error)}", hint=hint)


def _refusal(error: BaseException, name: str) -> ServeError | None:
    """The error of the reply for a toolkit's own exception, which has a status; None for other exceptions."""
    if type(error).__module__.partition(".")[0] not in toolkits.packages():
        return None
    status = getattr(error, "status_code", getattr(error, "error_code", None))
    if not isinstance(status, int) or not 400 <= status < 600 or status == InternalError.status:
        return None
    message = getattr(error, "message", None)
    if not isinstance(message, str):
        message = message_of(error)
    if status == UnsupportedMediaType.status and name == "output_fn":
        return NotAcceptable(message)
    known = (BadRequest, ModelNotFound, NotAcceptable, PayloadTooLarge, UnsupportedMediaType)
    kind = next((each for each in known if each.status == status), None)
    return kind(message) if kind else ModelRefused(message, status)


def reply(result: Any, accept: str, explicit: bool, set_type: str) -> Reply:
    """The reply for a return value of output_fn or transform_fn.

    Args:
        accept: the media type of the reply, unless the code names another.
        explicit: `accept` is from the request, not a default.
        set_type: the media type that the code has set in the context; "" for none.
    """
    if hasattr(result, "get_data") and hasattr(result, "status_code"):
        return _of_flask(result)
    content_type = set_type or accept
    stated = explicit or bool(set_type)
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], str):
        result, content_type = result
        stated = True
    if isinstance(result, Iterator):
        return _stream(result, content_type if stated else "")
    if isinstance(result, str):
        return Reply(body=result.encode(), content_type=content_type)
    if isinstance(result, bytes | bytearray | memoryview):
        return Reply(body=bytes(result), content_type=content_type)
    if result is None:
        raise TypeError("returned None; a body is needed: bytes, str, or a value to write")
    # As multi-model-server and TorchServe do: a value whose media type has no writer becomes JSON.
    written_as = content_type if content_type in values.WRITES else media.JSON
    return Reply(body=values.write(result, written_as), content_type=written_as)


def _stream(chunks: Iterator[Any], content_type: str) -> Reply:
    """A streamed reply; without a content type the first chunk decides it."""
    # The first chunk is computed here: an exception before it still becomes an error with its status.
    first = list(itertools.islice(chunks, 1))
    if not content_type:
        content_type = media.JSON_LINES
        if first and isinstance(first[0], str):
            content_type = media.TEXT
        elif first and isinstance(first[0], bytes | bytearray):
            content_type = media.BYTES
    return Reply(body=_chunks(first, chunks), content_type=content_type)


def _of_flask(response: Any) -> Reply:
    """The reply for a response of Flask, which worker.Response of the scikit-learn toolkit is.

    The server sets Content-Length and the like. Raises ValueError for headers that the code of a model may not set.
    """
    return Reply(
        body=response.get_data(),
        content_type=response.content_type or media.JSON,
        status=checked_status(response.status_code),
        headers=checked_headers(response.headers, ignored=OURS),
    )


def _chunks(first: list[Any], rest: Iterator[Any]) -> Iterator[bytes]:
    try:
        for chunk in itertools.chain(first, rest):
            yield values.chunk(chunk)
    finally:
        close = getattr(rest, "close", None)
        if close:
            close()  # after the last chunk, or when the caller hangs up
