"""From an HTTP request to the Request that handlers read: media type, decompressed body, deadlines, addressee."""

import time
from collections.abc import Sequence
from typing import NamedTuple

from serve.catalog.adapters import ADAPTER_HEADERS, MERGE
from serve.errors import BadRequest, ModelNotFound, PathNotFound, PayloadTooLarge, ServeError
from serve.handlers.base import Request
from serve.http import media, wire
from serve.http.addresses import INVOCATIONS, OPEN_INFERENCE, OPENAI_FIELD, peek
from serve.http.clock import parse_clock
from serve.runner.jobs import Waited, deadline_exceeded
from serve.settings import Settings, margin
from serve.slots import Slot


class ColdStart(NamedTuple):
    """The time in which no runner of the model was ready (time.monotonic()), so that requests waited for a load."""

    since: float
    until: float

    @classmethod
    def ended_now(cls, slot: Slot) -> "ColdStart":
        """As this runner gets ready. The host has noted in the slot when the model was wanted, and whether another
        runner of it has been ready since.
        """
        now = time.monotonic()
        since, until = slot.get("cold_since") / 1e9, slot.get("cold_until") / 1e9
        return cls(since or now, min(until or now, now))

    def seconds(self, received: float) -> float:
        """How long a request that nginx received completely at `received` waited for the load."""
        until = self.until
        return 0.0 if received >= until else until - max(self.since, received)


class Arrival:
    """Makes the Request of a connection."""

    def __init__(self, settings: Settings, cold: ColdStart) -> None:
        self._cold = cold
        self._payload_bytes = settings.payload_bytes
        self._limit, self._stream_limit = margin(settings.request_limit), margin(settings.stream_limit)

    def received(self, connection: wire.Connection) -> tuple[Request, Waited, ServeError | None]:
        """The request, how long it has waited and for what, and the error to answer if it is invalid.

        The time limit counts from the moment when nginx had the whole body, as nginx's own does: the caller's upload is
        not the model's time.
        """
        now = time.monotonic()
        headers = connection.headers
        clock = parse_clock(headers.get("x-serve-clock", ""))
        arrived, receive = (clock.arrived(), clock.receive) if clock else (now, 0.0)
        here = arrived + receive
        waited = Waited(arrived, receive, self._cold.seconds(here))
        media_type, charset = media.content_type(headers.get("content-type", ""))
        deadline = here + self._limit
        invalid: ServeError | None = None
        body = b""
        if now > deadline:  # then the body need not be unpacked
            invalid = deadline_exceeded(waited, now)
        else:
            try:
                body = _body(connection, self._payload_bytes)
            except ServeError as error:
                invalid = error
        request = Request(
            body=body,
            content_type=media_type,
            charset=charset,
            accept=headers.get("accept", ""),
            headers=headers,
            path=connection.target.decode("latin-1"),
            deadline=deadline,
            stream_deadline=here + self._stream_limit,
            id=headers.get("x-request-id", ""),
        )
        return request, waited, invalid


def _body(connection: wire.Connection, limit: int) -> bytes:
    body = connection.body()
    if len(body) > limit:
        raise PayloadTooLarge(
            f"the body has {len(body)} bytes, the limit is {limit}", hint="raise SERVE_MAX_PAYLOAD_MB"
        )
    encoding = connection.headers.get("content-encoding", "")
    return wire.decompressed(body, encoding, limit) if encoding else body


class Addressee:
    """Checks that a request is addressed to this model: no web worker has checked a request on the straight lane."""

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
        headers = request.headers
        for header in ADAPTER_HEADERS:
            if header in headers and (adapter := headers[header]):
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
        if request.path in OPEN_INFERENCE or not request.content_type.endswith(("/json", "+json")):
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
