"""The Open Inference Protocol in a runner: an inference becomes a request that the handler reads, its answer tensors.

A handler that reads and writes arrays names their media type in its attribute `arrays`; others get and return JSON. So
inferences share batches with all other requests.
"""

import io
import time
from collections.abc import Mapping
from typing import Any, cast

import msgspec
import numpy as np

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest, ServeError
from serve.formats import npy, open_inference
from serve.formats.open_inference import Array, Inference, Tensor
from serve.handlers.base import Job, Reply, Request
from serve.http import media
from serve.http.addresses import INFER, INVOCATIONS, METADATA
from serve.runner.jobs import ConnectionJob, outcome_of
from serve.runner.records import Engine

# Parameters of the protocol and of Triton's and MLServer's clients; all others are parameters of a text model.
_PROTOCOL = ("binary_data_output", "sequence_id", "sequence_start", "sequence_end", "priority", "timeout")
_MLSERVER = ("content_type", "headers")
_TEXT = [Tensor("inputs", object, (-1,))], [Tensor("output", object, (-1,))]


class _Item:
    """A decoded inference, or with `inference` None a question for the model's metadata."""

    def __init__(self, inference: Inference | None, item: Any, request: Request) -> None:
        self.inference = inference
        self.item = item
        self.request = request

    @property
    def most_tokens(self) -> int:
        return getattr(self.item, "most_tokens", 0)


class InferenceJob:
    """An inference in the engine: a Job whose reply is written as tensors."""

    def __init__(self, job: ConnectionJob, adapter: "OpenInference") -> None:
        self.job = job
        self._adapter = adapter
        self.request = job.item.request
        self.item = job.item.item
        self.waited = job.waited
        self.begun_monotonic = 0.0

    def begin(self, now: float) -> None:
        self.begun_monotonic = now
        self.job.begin(now)

    def reply(self, reply: Reply) -> None:
        self._adapter.ended(self)
        if not isinstance(reply.body, bytes):
            self.job.fail(BadRequest("an inference cannot be streamed", hint="omit stream"))
        elif reply.status >= 400:  # by a model's own code
            self.job.reply(reply)
        else:
            try:
                self.job.reply(self._adapter.written(self.job.item.inference, reply))
            except Exception as error:  # an output of a type that the protocol does not have
                self.job.fail(outcome_of(error))

    def fail(self, error: ServeError) -> None:
        self._adapter.ended(self)
        self.job.fail(error)

    def start(self, content_type: str) -> None:
        pass

    def send(self, chunk: bytes) -> None:
        pass

    def finish(self) -> None:
        self.fail(BadRequest("an inference cannot be streamed", hint="omit stream"))


class OpenInference:
    """An engine that also answers the protocol's paths, around one that does not. Other requests pass unchanged."""

    def __init__(self, engine: Engine, handler: Any, config: ModelConfig[Any]) -> None:
        self._engine = engine
        self._name = config.name
        self._platform = config.handler
        self._arrays: str = getattr(handler, "arrays", "")
        self._takes_text = not self._arrays and config.handler != "custom"
        self._signature = handler.signature if hasattr(handler, "signature") else self._declared_by_no_handler
        self._output = getattr(handler, "output", "output")
        self._jobs: dict[int, InferenceJob] = {}  # by the identity of the outer job
        self.room = engine.room
        self.step = engine.step

    def decode(self, request: Request) -> Any:
        if request.path == METADATA:
            return _Item(None, None, request)
        if request.path != INFER:
            return self._engine.decode(request)
        header = request.headers.get(open_inference.HEADER.lower(), "")
        inference = open_inference.parse(request.body, header)
        body, content_type = self._body(inference)
        inner = msgspec.structs.replace(
            request,
            body=body,
            path=INVOCATIONS,
            content_type=content_type,
            charset="utf-8",
            accept=self._arrays or media.JSON,
            headers={},
        )
        return _Item(inference, self._engine.decode(inner), msgspec.structs.replace(inner, body=b""))

    def join(self, job: Job) -> None:
        if not isinstance(job.item, _Item):
            self._engine.join(job)
            return
        outer = cast(ConnectionJob, job)
        if job.item.inference is None:
            outer.begin(time.monotonic())
            outer.reply(Reply(body=self._metadata(), content_type=media.JSON))
            return
        inner = InferenceJob(outer, self)
        self._jobs[id(outer)] = inner
        self._engine.join(cast(Job, inner))

    def leave(self, job: Job) -> None:
        inner = self._jobs.pop(id(job), None)
        self._engine.leave(cast(Job, inner) if inner else job)

    def ended(self, inner: InferenceJob) -> None:
        self._jobs.pop(id(inner.job), None)

    def written(self, inference: Inference, reply: Reply) -> Reply:
        """The handler's reply as an answer of the protocol."""
        assert isinstance(reply.body, bytes)
        body, content_type, headers = inference.written(self._name, self._tensors(reply.body, reply.content_type))
        return Reply(body=body, content_type=content_type, headers={**reply.headers, **headers})

    def _body(self, inference: Inference) -> tuple[bytes, str]:
        """The tensors as the body of a request to the handler, and its media type."""
        tensors = inference.tensors
        single = next(iter(tensors.values())) if len(tensors) == 1 and not inference.columns else None
        text = any(each.dtype.kind == "O" for each in tensors.values())
        if self._takes_text:
            return self._text_body(inference), media.JSON
        if self._arrays and not text and (single is not None or self._arrays == media.NPZ):
            if single is None:
                return npy.packed(tensors), media.NPZ
            file = io.BytesIO()
            np.save(file, single)
            return file.getvalue(), media.NPY
        if single is not None:
            return msgspec.json.encode(single.tolist()), media.JSON
        named = {name: each.tolist() for name, each in tensors.items()}
        if self._arrays == media.NPY:  # a table: each tensor is a column
            return msgspec.json.encode({"inputs": {name: tensors[name].ravel().tolist() for name in named}}), media.JSON
        return msgspec.json.encode(named), media.JSON

    def _text_body(self, inference: Inference) -> bytes:
        named = {name: each.ravel().tolist() for name, each in inference.tensors.items()}
        columns = list(named.values())
        if len({len(each) for each in columns}) > 1:
            raise BadRequest("the inputs have different numbers of elements")
        inputs = columns[0] if len(columns) == 1 else [dict(zip(named, row)) for row in zip(*columns, strict=True)]
        parameters = {name: each for name, each in inference.parameters.items() if name not in (*_PROTOCOL, *_MLSERVER)}
        return msgspec.json.encode({"inputs": inputs, "parameters": parameters} if parameters else {"inputs": inputs})

    def _tensors(self, body: bytes, content_type: str) -> Mapping[str, Array]:
        if content_type == media.NPY:
            return {self._output: np.load(io.BytesIO(body), allow_pickle=False)}
        if content_type == media.NPZ:
            return dict(np.load(io.BytesIO(body), allow_pickle=False))
        return {self._output: open_inference.from_json(msgspec.json.decode(body))}

    def _metadata(self) -> bytes:
        inputs, outputs = self._signature()
        shown = {"inputs": [each.shown() for each in inputs], "outputs": [each.shown() for each in outputs]}
        return msgspec.json.encode({"name": self._name, "versions": ["1"], "platform": self._platform, **shown})

    def _declared_by_no_handler(self) -> tuple[list[Tensor], list[Tensor]]:
        return _TEXT if self._takes_text else ([], [])
