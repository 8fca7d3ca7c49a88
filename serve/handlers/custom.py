"""A model with code of its own: the functions of its `code/inference.py`, by the names SageMaker's toolkits gave them.

    model_fn(model_dir)                                  the model; without it the functions below get None
    input_fn(body, content_type)                         data; body is str for text and JSON, bytes otherwise
    predict_fn(data, model)                              a prediction, or an iterator of chunks: a stream
    output_fn(prediction, accept)                        bytes, str, an iterator of them, or a pair with a content type
    transform_fn(model, body, content_type, accept)      in place of those three
    predict_batch_fn(list_of_data, model)                in place of predict_fn: as many predictions, in order

Each may take a last argument `context`. The code is trusted as the image is; it runs in this model's process only.
"""

import itertools
import logging
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from serve import media
from serve.errors import BadRequest, InternalError, ModelUnusable, ServeError
from serve.exhausted import exhausted, give_back
from serve.handlers import formats, user_code
from serve.handlers.base import Model, Reply, Request
from serve.handlers.user_code import Context, described

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)  # compared and hashed by identity
class Item:
    data: Any
    accept: str
    explicit: bool  # the caller named a type
    content_type: str
    context: Context


class Custom:
    def __init__(self, model: Model) -> None:
        program = str(model.options.get("program", "inference.py"))
        self._program = Path(program).name
        self._model_name, self._directory, self._options = model.name, str(model.directory), model.options
        self._default_accept = model.default_accept or formats.JSON
        functions = user_code.functions(model.directory / "code" / program, model.name)
        self._input = functions.get("input_fn")
        self._output = functions.get("output_fn")
        self._predict = functions.get("predict_fn")
        self._transform = functions.get("transform_fn")
        self._batch = functions.get("predict_batch_fn")
        if torch := sys.modules.get("torch"):  # it would take every core of the machine
            torch.set_num_threads(max(1, model.threads))
        self._model = self._load(functions["model_fn"]) if "model_fn" in functions else None

    def decode(self, request: Request) -> Item:
        content_type = request.content_type or formats.JSON
        explicit = bool(request.accept) and not request.accept.startswith("*/*")
        accept = _preferred(request.accept) or self._default_accept
        context = self._context(request)
        if self._transform:
            return Item(_text(request, content_type), accept, explicit, content_type, context)
        if not self._output:  # what the default can write must hold before the work is done
            default = self._default_accept if self._default_accept in formats.WRITES else formats.JSON
            accept = media.choose(request.accept, formats.WRITES, default)
        if not self._input:
            data = formats.read(request.body, content_type, request.charset)
            return Item(data, accept, explicit, content_type, context)
        body = _text(request, content_type)
        try:
            data = self._input(context, body, content_type)
        except (ValueError, TypeError, KeyError) as error:
            raise BadRequest(f"{self._program} input_fn: {described(error)}") from error
        except Exception as error:  # code that is not ours
            raise self._failure("input_fn", error) from error
        return Item(data, accept, explicit, content_type, context)

    def compatible(self, item: Item) -> Hashable:
        return "batch" if self._batch else item  # one by one, each is answered when it is done

    def predict(self, items: Sequence[Item]) -> Sequence[Reply | ServeError]:
        if not self._batch:
            return [self._outcome(item) for item in items]
        try:
            predictions = self._batch(items[0].context, [item.data for item in items], self._model)
        except Exception as error:
            raise self._failure("predict_batch_fn", error) from error  # the loop tries them one by one
        if len(predictions) != len(items):
            raise InternalError(
                f"{self._program} predict_batch_fn returned {len(predictions)} predictions for {len(items)} requests"
            )
        return [
            self._guarded("output_fn", self._written, item, prediction)
            for item, prediction in zip(items, predictions, strict=True)
        ]

    def _outcome(self, item: Item) -> Reply | ServeError:
        if not self._predict:
            return self._guarded("transform_fn", self._transformed, item)
        try:
            prediction = self._predict(item.context, item.data, self._model)
        except Exception as error:
            return self._failure("predict_fn", error)
        name = "predict_fn" if isinstance(prediction, Iterator) and not self._output else "output_fn"
        return self._guarded(name, self._written, item, prediction)

    def _guarded(self, name: str, work: Callable[..., Reply], *arguments: Any) -> Reply | ServeError:
        try:
            return work(*arguments)
        except Exception as error:
            return self._failure(name, error)

    def _transformed(self, item: Item) -> Reply:
        assert self._transform
        return _reply(self._transform(item.context, self._model, item.data, item.content_type, item.accept), item)

    def _written(self, item: Item, prediction: Any) -> Reply:
        if self._output:
            return _reply(self._output(item.context, prediction, item.accept), item)
        if isinstance(prediction, Iterator):
            return _reply(prediction, item)
        return Reply(body=formats.write(prediction, item.accept), content_type=item.accept)

    def _load(self, model_fn: Callable[..., Any]) -> Any:
        context = Context(model_name=self._model_name, model_dir=self._directory, options=self._options)
        try:
            return model_fn(context, self._directory)
        except ServeError:
            raise
        except Exception as error:
            if out := exhausted(error):
                out.message = f"{self._program} model_fn: {out.message}"
                raise out from error
            log.exception("model_fn failed", extra={"model": self._model_name})
            raise ModelUnusable(
                f"{self._program} model_fn raised {described(error)}", hint="the log has the traceback"
            ) from error

    def _context(self, request: Request) -> Context:
        return Context(
            model_name=self._model_name,
            model_dir=self._directory,
            options=self._options,
            headers=request.headers,
            request_id=request.id,
            deadline=request.deadline,
        )

    def _failure(self, name: str, error: Exception) -> ServeError:
        if isinstance(error, ServeError):
            return error
        log.error("%s failed", name, exc_info=error, extra={"model": self._model_name})
        if out := exhausted(error):
            give_back(error)  # before its neighbours run
            out.message = f"{self._program} {name}: {out.message}"
            return out
        return InternalError(f"{self._program} {name} raised {described(error)}", hint="the log has the traceback")


def _text(request: Request, content_type: str) -> str | bytes:
    """As the toolkits hand it over: text as str, all else as bytes."""
    return formats.decoded(request.body, request.charset) if formats.is_text(content_type) else request.body


@lru_cache(maxsize=512)
def _preferred(accept: str) -> str:
    """The one type that Accept likes best, without parameters; "" for any."""
    best = parse_accept_header(accept, MIMEAccept).best or ""
    best = best.partition(";")[0].strip()
    return "" if "*" in best else best


def _reply(result: Any, item: Item) -> Reply:
    """What output_fn or transform_fn returned, as a reply."""
    content_type = item.accept
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], str):
        result, content_type = result
    elif isinstance(result, Iterator) and not item.explicit:
        content_type = ""
    if isinstance(result, Iterator):
        # The first is made here, so that an error before it is still an error and not a broken answer.
        first = list(itertools.islice(result, 1))
        if not content_type:
            content_type = "text/plain" if first and isinstance(first[0], str) else formats.STREAMED
            if first and isinstance(first[0], bytes | bytearray):
                content_type = "application/octet-stream"
        return Reply(body=_chunks(first, result), content_type=content_type)
    if isinstance(result, str):
        return Reply(body=result.encode(), content_type=content_type)
    if isinstance(result, bytes | bytearray | memoryview):
        return Reply(body=bytes(result), content_type=content_type)
    raise TypeError(
        f"returned {type(result).__name__}; bytes, str, an iterator or a pair with a content type is needed"
    )


def _chunks(first: list[Any], rest: Iterator[Any]) -> Iterator[bytes]:
    try:
        for chunk in itertools.chain(first, rest):
            yield formats.chunk(chunk)
    finally:
        close = getattr(rest, "close", None)
        if close:
            close()  # the caller hung up, or all is sent
