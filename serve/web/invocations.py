"""Requests to models on the Flask lane: choose the model and let nginx send the request there, or explain a failure.

nginx asks twice. First the request itself, which is answered with `X-Accel-Redirect: @runner` and the name of the
model's socket. If the model then cannot be reached, or does not answer in time, nginx repeats the request without its
body, with headers that describe the attempt (`UpstreamAttempt`); the answer is the error.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from flask import Response, request
from werkzeug.datastructures import Headers

from serve.catalog.catalog import Catalog, Entry
from serve.catalog.kinds import API_HANDLERS
from serve.errors import (
    BadRequest,
    InternalError,
    ModelUnusable,
    QueueFull,
    RunnerDied,
    ServeError,
    TooLate,
    Unavailable,
)
from serve.http import media
from serve.http.addresses import INVOCATIONS, OPENAI_FIELD, peek, socket_name
from serve.http.clock import Clock, parse_clock
from serve.settings import Settings
from serve.web.bodies import Bodies
from serve.web.host_client import BrokenConnection, HostClient

# The header of the platform, and a plain name for use without it; the platform strips the second.
TARGET_HEADERS = ("X-Amzn-SageMaker-Target-Model", "TargetModel")


def api_models(entries: Iterable[Entry], handlers: Sequence[str]) -> list[str]:
    """The models of these handlers. Archives, whose handler is unknown, count only if there are no others."""
    usable = [entry for entry in entries if not entry.problem]
    known = [entry.name for entry in usable if entry.config and entry.config.handler in handlers]
    return known or [entry.name for entry in usable if not entry.config]


def api_default(models: Sequence[str], default: str | None) -> str | None:
    """The model for an empty `model`, as SageMaker's own examples send it: the default, or the only one of `models`."""
    if default in models:
        return default
    return models[0] if len(models) == 1 else None


def in_attributes(attributes: str, field: str) -> str | None:
    """The model named in X-Amzn-SageMaker-Custom-Attributes: `trace=1,model_type=gpt2`."""
    found = re.search(rf"(?:^|[,;\s]){re.escape(field)}=([^,;\s]+)", attributes)
    return found.group(1) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamAttempt:
    """nginx's last attempt to reach a model, which failed."""

    socket: str  # file name of the model's socket; "" if nginx was not given one
    connected: bool  # the socket accepted the connection
    timed_out: bool  # nginx's own timeout has passed
    clock: Clock | None  # when nginx received the request

    @classmethod
    def parse(cls, headers: Headers | Mapping[str, str]) -> "UpstreamAttempt | None":
        """From the X-Serve-* headers that nginx sets on its second request; None on a first request.

        Tried and Connected are nginx's $upstream_status and $upstream_connect_time: one value for each upstream that
        this request was sent to, joined by " : ". The last one is the model's; a web worker may stand before it. The
        connect time is "-" if there was no connection.
        """
        tried = headers.get("X-Serve-Tried", "")
        if not tried:
            return None
        return cls(
            socket=headers.get("X-Serve-Socket", ""),
            connected=_last(headers.get("X-Serve-Connected", "")) not in ("", "-"),
            timed_out=_last(tried) == "504",
            clock=parse_clock(headers.get("X-Serve-Clock", "")),
        )


def _last(values: str) -> str:
    return values.rsplit(" : ", maxsplit=1)[-1].strip()


def broken(attempt: UpstreamAttempt, found: BrokenConnection, model: str, request_limit: float) -> ServeError:
    """The error for a request that reached the model's socket and was not answered, from what the host knows."""
    limit = f"{request_limit:g} s (SAGEMAKER_MODEL_SERVER_TIMEOUT)"
    load = f"; the load of the model took {found.load:.1f} s of them" if found.load >= 0.1 else ""
    # A crash that ended a stuck request says nothing about this one, if this one has not begun.
    other = isinstance(found.error, RunnerDied) or (found.error is None and not found.load_step)
    if attempt.timed_out and not found.may_have_begun and other:
        return TooLate(
            f"timeout: work on the request did not begin within {limit}: earlier requests are at work{load}",
            hint="retry; raise copies in model.toml, or SAGEMAKER_MODEL_SERVER_TIMEOUT",
            model=model,
            retry_after=1,
        )
    if found.error is not None:
        return found.error
    if found.load_step:
        over = f", and the limit of a request is {limit}" if attempt.timed_out else ""
        return Unavailable(
            f"model {model!r} is still loading: {found.load_step}; the request has waited {found.load:.1f} s{over}",
            hint="retry: the load continues; preload = true in model.toml loads the model at the start",
            model=model,
            retry_after=5,
        )
    if attempt.timed_out:
        return TooLate(
            f"timeout: no answer within {limit}{load}",
            hint="send less at once, or raise SAGEMAKER_MODEL_SERVER_TIMEOUT",
            model=model,
            retry_after=1,
        )
    # Only a process that ends leaves a connection so, and the host has not heard of the end yet.
    when = "without an answer" if found.may_have_begun else "before it began this request"
    return RunnerDied(f"the model's process closed the connection {when}", hint="see the log", model=model)


class _Api:
    """How a request of one API names its model: by a field of its JSON body, or not at all."""

    def __init__(self, field: str, default: str | None, models: Sequence[str] | None) -> None:
        self.field = field
        self.default = default  # for a request that names no model
        self.models = models  # that support the API; None: all
        self.name_in = peek(field)


class Invocations:
    def __init__(self, settings: Settings, catalog: Catalog, host: HostClient) -> None:
        self._settings = settings
        self._catalog = catalog
        self._host = host
        self._bodies = Bodies(settings)
        default = catalog.default(settings.default_model)
        self._apis = {INVOCATIONS: _Api(settings.model_field, default, None)}
        for path, handlers in API_HANDLERS.items():
            models = api_models(catalog.entries.values(), handlers)
            self._apis[path] = _Api(OPENAI_FIELD, api_default(models, default), models)
        self._by_socket = {socket_name(name): name for name in catalog.entries}

    def resolve(self, asked: str) -> str:
        """The name of a model from its name or alias. Raises ModelNotFound, or ModelUnusable with the cause."""
        name = self._catalog.resolve(asked)
        entry = self._catalog.entries.get(name)
        if entry and entry.problem:
            hint = "fix the model's files, then restart the container"
            raise ModelUnusable(entry.problem, model=name, hint=hint)
        return name

    def unusable(self) -> list[dict[str, object]]:
        """The entries of the model directory that cannot be served, as in GET /models."""
        return [
            {"modelName": each.name, "modelUrl": str(each.path), "state": "failed", "cause": each.problem}
            for each in self._catalog.entries.values()
            if each.problem
        ]

    def answer(self, named: str | None = None, *, path: str = INVOCATIONS) -> Response:
        """Answer a request to a model. `named`: from the path; `path`: the API, INVOCATIONS or one of OpenAI's."""
        if attempt := UpstreamAttempt.parse(request.headers):
            self._explain(attempt, named)
        return _sent_to(self.resolve(self._requested(named, self._apis[path])))

    def _requested(self, named: str | None, api: "_Api") -> str:
        """The model's name as the caller gives it: in path, header, body or custom attributes; else the default."""
        if asked := _addressed(named):
            return asked
        asked = (
            self._in_body(api)
            or in_attributes(request.headers.get("X-Amzn-SageMaker-Custom-Attributes", ""), self._settings.model_field)
            or api.default
        )
        if asked:
            return asked
        listed = self._catalog.some() if api.models is None else api.models[:20]
        raise BadRequest(
            f"the request names no model; available: {', '.join(listed) or 'none for this path'}",
            hint=f"put {api.field!r} into the JSON body, or send {TARGET_HEADERS[0]}",
        )

    def _in_body(self, api: _Api) -> str | None:
        kind, _ = media.content_type(request.headers.get("Content-Type", ""))
        if kind and not media.is_json(kind):
            return None  # nginx has sent the request without its body
        body = self._bodies.read()
        if not body:
            raise BadRequest("the body is empty", hint="send JSON")
        return api.name_in(body)

    def _explain(self, attempt: UpstreamAttempt, named: str | None) -> NoReturn:
        """Raise the error for a request that nginx could not get answered."""
        if not attempt.socket:
            raise InternalError("the model's socket does not exist", hint="see the log")
        # On a multi-model endpoint the name is in path or header, or the host knows it: the body was not sent here.
        name = self._by_socket.get(attempt.socket) or _addressed(named) or self._host.name_of(attempt.socket)
        if socket_name(name) == attempt.socket:
            self.resolve(name)
        if not attempt.connected and not attempt.timed_out:
            self._host.check()  # without a host, connections to any model are refused
            raise QueueFull(
                f"the queue is full: {self._settings.queue_limit} requests wait for model {name!r}",
                hint="retry later; raise copies in model.toml, or SERVE_QUEUE_LIMIT",
                model=name,
                retry_after=1,
            )
        limit = self._settings.request_limit
        found = self._host.broken_connection(attempt.socket, attempt.clock, limit)
        raise broken(attempt, found, name, limit)


def _addressed(named: str | None) -> str | None:
    """The model's name from path or header."""
    return named or next((request.headers[each] for each in TARGET_HEADERS if each in request.headers), None)


def _sent_to(name: str) -> Response:
    # Without a charset, which nginx would add to the runner's Content-Type.
    response = Response(b"", content_type=media.BYTES)
    response.headers["X-Accel-Redirect"] = "@runner"
    response.headers["X-Serve-Socket"] = socket_name(name)
    return response
