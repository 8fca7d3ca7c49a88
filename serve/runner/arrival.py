"""From an HTTP request to the Request that handlers read: media type, decompressed body, deadlines."""

import time

from serve.errors import PayloadTooLarge, ServeError
from serve.handlers.base import Request
from serve.http import media, wire
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
