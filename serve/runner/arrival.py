"""From an HTTP request to the Request that handlers read: media type, decompressed body, deadlines, addressee."""

import time
from collections.abc import Sequence

from serve.catalog.adapters import ADAPTER_HEADERS, MERGE
from serve.errors import BadRequest, ModelNotFound, PathNotFound, PayloadTooLarge, ServeError
from serve.handlers.base import Request
from serve.http import media, wire
from serve.http.addresses import INVOCATIONS, OPENAI_FIELD, peek
from serve.runner.jobs import deadline_exceeded
from serve.settings import Settings, margin


def received(connection: wire.Connection, settings: Settings) -> tuple[Request, float, ServeError | None]:
    """The request, when nginx began to receive it (time.monotonic), and the error to answer if it is invalid."""
    now = time.monotonic()
    headers = connection.headers
    arrived = now - _seconds_since_arrival(headers.get("x-serve-clock", ""))
    media_type, charset = media.content_type(headers.get("content-type", ""))
    invalid: ServeError | None = None
    body = b""
    try:
        body = _body(connection, settings.payload_bytes)
    except ServeError as error:
        invalid = error
    request = Request(
        body=body,
        content_type=media_type,
        charset=charset,
        accept=headers.get("accept", ""),
        headers=headers,
        path=connection.target.decode("latin-1"),
        deadline=arrived + margin(settings.request_limit),
        stream_deadline=arrived + margin(settings.stream_limit),
        id=headers.get("x-request-id", ""),
    )
    if now > request.deadline:
        invalid = deadline_exceeded(now - arrived, 0)
    return request, arrived, invalid


def _body(connection: wire.Connection, limit: int) -> bytes:
    body = connection.body()
    if len(body) > limit:
        raise PayloadTooLarge(
            f"the body has {len(body)} bytes, the limit is {limit}", hint="raise SERVE_MAX_PAYLOAD_MB"
        )
    encoding = connection.headers.get("content-encoding", "")
    return wire.decompressed(body, encoding, limit) if encoding else body


def _seconds_since_arrival(clock: str) -> float:
    """Seconds since nginx began to receive the request, from X-Serve-Clock, its `$msec $request_time`; 0 without it."""
    try:
        stamped, spent = map(float, clock.split())
    except ValueError:
        return 0.0
    return max(0.0, time.time() - stamped + spent)


class Addressee:
    """Checks that a request is addressed to this model: on the straight lane nginx reads neither path nor body."""

    def __init__(self, known_as: Sequence[str], field: str, paths: Sequence[str]) -> None:
        self._known = frozenset(known_as)
        self.model = known_as[0]
        self._paths = frozenset(paths)
        self._in_invocation = _Field(field)
        self._in_openai = _Field(OPENAI_FIELD)

    def check(self, request: Request) -> None:
        """Raise BadRequest, PathNotFound or ModelNotFound for a request that this model must not answer.

        It names an adapter, has an unsupported path, or has a JSON body that names another model.
        """
        for header in ADAPTER_HEADERS:
            if adapter := request.headers.get(header, ""):
                raise BadRequest(
                    f"the header {header} names the adapter {adapter[:100]!r}; the server applies no adapters",
                    hint=MERGE,
                    model=self.model,
                )
        if request.path not in self._paths:
            raise PathNotFound(
                f"model {self.model!r} does not support the path {request.path}",
                hint="it supports "
                + ", ".join(sorted(self._paths))
                + "; GET /v1/models lists the models of the OpenAI paths",
                model=self.model,
            )
        if not request.content_type.endswith(("/json", "+json")):
            return
        field = self._in_invocation if request.path == INVOCATIONS else self._in_openai
        asked = field.in_body(request.body)
        if asked is None or asked in self._known or (not asked and request.path != INVOCATIONS):
            return
        raise ModelNotFound(
            f"the body names model {asked[:100]!r}, but the request is addressed to {self.model!r}",
            hint=f"omit {field.name!r}, or set it to a model of GET /models",
            model=self.model,
        )


class _Field:
    def __init__(self, name: str) -> None:
        self.name = name
        self._needle = f'"{name}"'.encode()
        self._peek = peek(name)

    def in_body(self, body: bytes) -> str | None:
        """The field's value. A body in which its name does not occur is not parsed, only searched."""
        return self._peek(body) if self._needle in body else None
