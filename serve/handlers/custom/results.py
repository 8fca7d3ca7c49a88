"""What a model's own functions return or raise, as replies and errors."""

import itertools
import logging
from collections.abc import Iterator
from typing import Any

from serve import failures
from serve.errors import (
    BadRequest,
    InternalError,
    ModelNotFound,
    NotAcceptable,
    PayloadTooLarge,
    ServeError,
    UnsupportedMediaType,
)
from serve.failures import exhausted, give_back
from serve.formats import values
from serve.handlers.base import Reply
from serve.handlers.custom.advice import TOOLKIT_MODULES
from serve.handlers.custom.user_code import Context, described

log = logging.getLogger(__name__)


def failure(error: Exception, name: str, program: str, model_name: str) -> ServeError:
    """What the function `name` raised, as the caller may see it; the log has the traceback."""
    if isinstance(error, ServeError):
        return error
    if lost := failures.lost(error):
        log.error("%s lost its device", name, exc_info=error, extra={"model": model_name})
        return lost
    if refused := _refusal(error, name):
        return refused
    log.error("%s failed", name, exc_info=error, extra={"model": model_name})
    if out := exhausted(error):
        give_back(error)  # before its neighbours run
        out.message = f"{program} {name}: {out.message}"
        return out
    return InternalError(f"{program} {name} raised {described(error)}", hint="the log has the traceback")


def _refusal(error: Exception, name: str) -> ServeError | None:
    """An error of the toolkits' own, which names its status; None for all others."""
    if type(error).__module__.partition(".")[0] not in TOOLKIT_MODULES:
        return None
    status = getattr(error, "status_code", getattr(error, "error_code", None))
    if not isinstance(status, int) or not 400 <= status < 500:
        return None
    if status == 415:
        return (NotAcceptable if name == "output_fn" else UnsupportedMediaType)(str(error))
    return {404: ModelNotFound, 406: NotAcceptable, 413: PayloadTooLarge}.get(status, BadRequest)(str(error))


def reply(result: Any, accept: str, explicit: bool, context: Context) -> Reply:
    """What output_fn or transform_fn returned, as a reply; `explicit`: the caller named the type `accept`."""
    if hasattr(result, "get_data") and hasattr(result, "status_code"):
        return _of_flask(result)
    content_type = context.response_content_type or accept
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], str):
        result, content_type = result
    elif isinstance(result, Iterator) and not explicit and not context.response_content_type:
        content_type = ""
    if isinstance(result, Iterator):
        # The first is made here, so that an error before it is still an error and not a broken answer.
        first = list(itertools.islice(result, 1))
        if not content_type:
            content_type = "text/plain" if first and isinstance(first[0], str) else values.STREAMED
            if first and isinstance(first[0], bytes | bytearray):
                content_type = "application/octet-stream"
        return Reply(body=_chunks(first, result), content_type=content_type)
    if isinstance(result, str):
        return Reply(body=result.encode(), content_type=content_type)
    if isinstance(result, bytes | bytearray | memoryview):
        return Reply(body=bytes(result), content_type=content_type)
    if result is None:
        raise TypeError("returned None; a body is needed: bytes, str, or a value to write")
    # multi-model-server and TorchServe write what is left as JSON, whatever was asked for.
    written_as = content_type if content_type in values.WRITES else values.JSON
    return Reply(body=values.write(result, written_as), content_type=written_as)


def _of_flask(response: Any) -> Reply:
    """worker.Response of the scikit-learn toolkit is Flask's; its Content-Length and the like are ours to say."""
    headers = {name: value for name, value in response.headers if name.lower().startswith("x-")}
    return Reply(
        body=response.get_data(),
        content_type=response.content_type or values.JSON,
        status=response.status_code,
        headers=headers,
    )


def _chunks(first: list[Any], rest: Iterator[Any]) -> Iterator[bytes]:
    try:
        for chunk in itertools.chain(first, rest):
            yield values.chunk(chunk)
    finally:
        close = getattr(rest, "close", None)
        if close:
            close()  # the caller hung up, or all is sent
