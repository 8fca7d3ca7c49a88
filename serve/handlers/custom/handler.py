"""Models with their own code: functions in `code/inference.py`, with the names of SageMaker's toolkits.

    model_fn(model_dir)                                  the model
    input_fn(body, content_type)                         data; body is str for JSON and CSV, bytes otherwise
    predict_fn(data, model)                              a prediction, or an iterator of chunks: a stream
    output_fn(prediction, accept)                        a body: bytes, str, or what can be written as `accept`;
                                                         an iterator of those; a pair of it and a content type;
                                                         or a response of Flask's, with a status and headers
    transform_fn(model, body, content_type, accept)      in place of those three
    predict_batch_fn(list_of_data, model)                in place of predict_fn: as many predictions, in order
    pre_model_fn(model_dir), model_warmup_fn(model_dir, model)    before and after model_fn

Each may take a last argument `context`. A missing function is replaced by the default of the toolkits (`defaults`).
The code is trusted like the image. It runs in the process of its model only.
"""

import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest, InternalError, ServeError
from serve.failures import described
from serve.formats import values
from serve.handlers.base import Reply, Request
from serve.handlers.custom import context, defaults, results, user_code
from serve.handlers.custom.context import Context, RequestProcessor
from serve.handlers.custom.options import CustomOptions
from serve.http import media
from serve.http.body import decode_text


@dataclass(slots=True, eq=False)  # compared and hashed by identity
class Item:
    data: Any
    accept: str
    explicit: bool  # the request has a media type in Accept
    content_type: str
    context: Context


class Custom:
    def __init__(self, model: ModelConfig[CustomOptions]) -> None:
        program = model.code / (model.options.program or "inference.py")
        self._program = program.name
        self._model_name = model.name
        self._default_accept = model.default_accept or media.JSON
        functions = user_code.functions(program, model.name)
        self._input = functions.get("input_fn")
        self._output = functions.get("output_fn")
        self._predict = functions.get("predict_fn")
        self._transform = functions.get("transform_fn")
        self._batch = functions.get("predict_batch_fn")
        self.records = () if self._input or self._transform else (media.CSV,)
        if torch := sys.modules.get("torch"):  # else torch takes all cores of the machine
            torch.set_num_threads(max(1, model.threads))
        options = model.options.table()
        self._context = context.of_model(model.name, model.directory, program.name, options, defaults.gpu())
        self._model = user_code.load(model, program, functions, self._context)
        self._toolkit = defaults.of(self._model, model.options.toolkit)
        if not (self._predict or self._transform or self._batch):
            self._model = defaults.ready(self._model)
        # Its own functions may take other columns than the model.
        self._width = 0 if self._predict or self._batch else defaults.width(self._model)
        self._columns = [] if self._predict or self._batch else defaults.frame_columns(self._toolkit, self._model)
        self._model_field = model.model_field
        if self._columns:
            self.records = ()  # a line of CSV does not show the header of the body that it comes from

    def decode(self, request: Request) -> Item:
        content_type = request.content_type or media.JSON
        explicit = bool(request.accept) and not request.accept.startswith("*/*")
        accept = _preferred(request.accept) or self._default_accept
        asked = self._context.of_request(request)
        if self._transform:
            return Item(_text(request, content_type), accept, explicit, content_type, asked)
        if not self._output:  # an unsupported Accept fails before the prediction
            default = self._default_accept if self._default_accept in values.WRITES else media.JSON
            accept = media.choose(request.accept, values.WRITES, default)
        if not self._input:
            if self._columns:
                field = self._model_field
                data = defaults.read_frame(self._columns, request.body, content_type, request.charset, field)
            else:
                data = defaults.read(self._toolkit, request.body, content_type, request.charset, self._width)
            return Item(data, accept, explicit, content_type, asked)
        body = _text(request, content_type)
        try:
            data = self._input(asked, body, content_type)
        except ServeError:
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise BadRequest(f"{self._program} input_fn: {described(error)}") from error
        except BaseException as error:  # the model's code can raise any
            raise self._failure("input_fn", error) from error
        return Item(data, accept, explicit, content_type, asked)

    def compatible(self, item: Item) -> Hashable:
        return "batch" if self._batch else item  # without predict_batch_fn each reply is sent when it is ready

    def predict(self, items: Sequence[Item]) -> Sequence[Reply | ServeError]:
        if not self._batch:
            return [self._outcome(item) for item in items]
        try:
            shared = self._context.of_batch([item.context for item in items])
            predictions = self._batch(shared, [item.data for item in items], self._model)
        except BaseException as error:
            raise self._failure("predict_batch_fn", error) from error  # the loop then runs the requests one by one
        if len(predictions) != len(items):
            raise InternalError(
                f"{self._program} predict_batch_fn returned {len(predictions)} predictions for {len(items)} requests"
            )
        return [
            self._guarded("output_fn", self._written, item, prediction)
            for item, prediction in zip(items, predictions, strict=True)
        ]

    def _outcome(self, item: Item) -> Reply | ServeError:
        if self._transform:
            return self._guarded("transform_fn", self._transformed, item)
        try:
            if self._predict:
                prediction = self._predict(item.context, item.data, self._model)
            else:
                prediction = defaults.predict(self._toolkit, item.data, self._model)
        except BaseException as error:
            return self._failure("predict_fn", error)
        name = "predict_fn" if isinstance(prediction, Iterator) and not self._output else "output_fn"
        return self._guarded(name, self._written, item, prediction)

    def _guarded(self, name: str, work: Callable[..., Reply], *arguments: Any) -> Reply | ServeError:
        try:
            return work(*arguments)
        except BaseException as error:
            return self._failure(name, error)

    def _transformed(self, item: Item) -> Reply:
        assert self._transform
        return self._reply(self._transform(item.context, self._model, item.data, item.content_type, item.accept), item)

    def _written(self, item: Item, prediction: Any) -> Reply:
        if self._output:
            return self._reply(self._output(item.context, prediction, item.accept), item)
        if isinstance(prediction, Iterator):
            return self._reply(prediction, item)
        processor: RequestProcessor = item.context.request_processor[0]
        content_type = processor.content_type() or item.accept
        return processor.finished(Reply(body=values.write(prediction, item.accept), content_type=content_type))

    def _reply(self, result: Any, item: Item) -> Reply:
        processor: RequestProcessor = item.context.request_processor[0]
        reply = results.reply(result, item.accept, item.explicit, processor.content_type())
        return processor.finished(reply)

    def _failure(self, name: str, error: BaseException) -> ServeError:
        return results.failure(error, name, self._program, self._model_name)


def _text(request: Request, content_type: str) -> str | bytes:
    """The body as the toolkits pass it: JSON and CSV as str, all others (text/plain too) as bytes."""
    if content_type in (media.JSON, media.CSV):
        return decode_text(request.body, request.charset)
    return request.body


@lru_cache(maxsize=512)
def _preferred(accept: str) -> str:
    """The type that Accept prefers, without parameters; "" for any type."""
    best = parse_accept_header(accept, MIMEAccept).best or ""
    best = best.partition(";")[0].strip()
    return "" if "*" in best else best
