"""A request as it came over the wire, made what handlers read: its media type, its body unpacked, its deadlines."""

import time

from serve.errors import PayloadTooLarge, ServeError
from serve.handlers.base import Request
from serve.http import media, wire
from serve.runner.jobs import too_late
from serve.settings import Settings, margin


def received(connection: wire.Connection, settings: Settings) -> tuple[Request, float, ServeError | None]:
    """The request, when nginx had begun to receive it (time.monotonic), and why it cannot be answered, if so."""
    now = time.monotonic()
    headers = connection.headers
    arrived = now - _seconds_since_arrival(headers.get("x-serve-clock", ""))
    media_type, charset = media.content_type(headers.get("content-type", ""))
    wrong: ServeError | None = None
    body = b""
    try:
        body = _body(connection, settings.payload_bytes)
    except ServeError as error:
        wrong = error
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
        wrong = too_late(now - arrived, 0)
    return request, arrived, wrong


def _body(connection: wire.Connection, limit: int) -> bytes:
    body = connection.body()
    if len(body) > limit:
        raise PayloadTooLarge(f"the body has {len(body)} bytes, the limit is {limit}", hint="SERVE_MAX_PAYLOAD_MB")
    encoding = connection.headers.get("content-encoding", "")
    return wire.decompressed(body, encoding, limit) if encoding else body


def _seconds_since_arrival(clock: str) -> float:
    """How long ago nginx began to receive the request, from its `$msec $request_time`; 0 where nginx was not asked."""
    try:
        stamped, spent = map(float, clock.split())
    except ValueError:
        return 0.0
    return max(0.0, time.time() - stamped + spent)
