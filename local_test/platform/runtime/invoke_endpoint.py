"""InvokeEndpoint over HTTP: an AWS request becomes a Call, and its Reply or error becomes an AWS response.

docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html
A streamed reply is an AWS event stream: smithy.io/2.0/aws/amazon-eventstream.html
"""

import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any
from zlib import crc32

import botocore.session
from werkzeug.datastructures import Headers
from werkzeug.wrappers import Request, Response

from local_test.platform.calls import Call, ModelError, ModelStreamError, PlatformError, Reply, ValidationError
from local_test.platform.fleet.endpoint import Endpoint
from local_test.platform.options import Options
from local_test.platform.runtime import async_inference
from local_test.platform.runtime.async_inference import Queue

PREFIX = "X-Amzn-SageMaker-"
PATH = re.compile(
    r"^/endpoints/([^/]+)/(invocations|invocations-response-stream|async-invocations|openai/v1/chat/completions)$"
)
# Response headers of the container that the caller receives.
RETURNED = ("Content-Type", PREFIX + "Custom-Attributes", PREFIX + "New-Session-Id", PREFIX + "Closed-Session-Id")
OPERATIONS = {
    "invocations": "InvokeEndpoint",
    "invocations-response-stream": "InvokeEndpointWithResponseStream",
    "async-invocations": "InvokeEndpointAsync",
}
STRING = 7  # type of a header value in an event stream


def answer(request: Request, kind: str, endpoint: Endpoint, queue: Callable[[], Queue], options: Options) -> Response:
    """The response to one request for an endpoint. `kind` is the end of its path."""
    try:
        return _answer(request, kind, endpoint, queue, options)
    except PlatformError as error:
        return failure(error)


def _answer(request: Request, kind: str, endpoint: Endpoint, queue: Callable[[], Queue], options: Options) -> Response:
    headers = request.headers
    operation = OPERATIONS.get(kind)
    if operation:
        _check_lengths(operation, headers)
    config = endpoint.config
    limit = config.payload_bytes(options.payload_bytes)
    if (request.content_length or 0) > limit:
        raise ValidationError(_too_long("body", limit))
    body = request.get_data()
    if (kind == "async-invocations") != bool(config.asynchronous):
        other = "InvokeEndpoint" if kind == "async-invocations" else "InvokeEndpointAsync"
        raise ValidationError(f"Endpoint {endpoint.name} does not support this operation: use {other}.")
    if kind == "async-invocations":
        return async_inference.accepted(headers, body, queue())
    call = Call(
        body=body,
        headers=container_headers(headers, operation),
        target_model=headers.get(PREFIX + "Target-Model"),
        target_container=headers.get(PREFIX + "Target-Container-Hostname"),
        stream=kind != "invocations",
        limit=options.invoke_limit if kind == "invocations" else options.stream_limit,
        path="/invocations" if operation else "/v1/chat/completions",
    )
    reply, variant = endpoint.invoke(call, headers.get(PREFIX + "Target-Variant"), headers.get(PREFIX + "Session-Id"))
    if kind == "invocations-response-stream":
        return event_stream(reply, variant)
    return Response(reply.body, reply.status, _caller_headers(reply, variant), direct_passthrough=True)


def container_headers(headers: Headers, operation: str | None) -> dict[str, str]:
    """The headers for the container. Some operations carry the body's type in a header with SageMaker's prefix."""
    for_container = {name: value for name, value in headers.items() if name.lower().startswith(PREFIX.lower())}
    for name in ("Content-Type", "Accept"):
        value = headers.get(PREFIX + name) or headers.get(name)
        if value:
            for_container[name] = value
    if operation:
        for_container[PREFIX + "Forwarded-Api"] = operation
    return for_container


def _caller_headers(reply: Reply, variant: str) -> dict[str, str]:
    returned = {name: reply.headers[name.lower()] for name in RETURNED if name.lower() in reply.headers}
    return {**returned, "x-Amzn-Invoked-Production-Variant": variant}


def failure(error: PlatformError) -> Response:
    """An error as botocore reads it: the code in a header, the other members in the body."""
    members: dict[str, Any] = {"Message": error.message}
    if isinstance(error, ModelError):
        members |= {
            "OriginalStatusCode": error.original_status,
            "OriginalMessage": error.original_message,
            "LogStreamArn": error.log_stream,
        }
    return Response(
        json.dumps(members),
        error.status,
        {"x-amzn-ErrorType": type(error).__name__},
        content_type="application/json",
    )


def _check_lengths(operation: str, headers: Headers) -> None:
    for member, header, limit in _limits(operation):
        if len(headers.get(header, "")) > limit:
            raise ValidationError(_too_long(member[0].lower() + member[1:], limit))


def _too_long(member: str, limit: int) -> str:
    return (
        f"1 validation error detected: Value at '{member}' failed to satisfy constraint: "
        f"Member must have length less than or equal to {limit}"
    )


@cache
def _limits(operation: str) -> tuple[tuple[str, str, int], ...]:
    """Member, header and maximum length of each header parameter with a limit, from botocore's model of the service."""
    shape = botocore.session.get_session().get_service_model("sagemaker-runtime").operation_model(operation).input_shape
    return tuple(
        (name, member.serialization["name"], member.metadata["max"])
        for name, member in shape.members.items()
        if member.serialization.get("location") == "header"
        and member.type_name == "string"
        and "max" in member.metadata
    )


# Event streams


def event_stream(reply: Reply, variant: str) -> Response:
    """The response of InvokeEndpointWithResponseStream."""
    headers = {
        "Content-Type": "application/vnd.amazon.eventstream",
        "X-Amzn-SageMaker-Content-Type": reply.headers.get("content-type", ""),
        "x-Amzn-Invoked-Production-Variant": variant,
    }
    attributes = reply.headers.get("x-amzn-sagemaker-custom-attributes")
    if attributes:
        headers["X-Amzn-SageMaker-Custom-Attributes"] = attributes
    chunks = iter([reply.body]) if isinstance(reply.body, bytes) else reply.body
    return Response(_Frames(chunks), 200, headers, direct_passthrough=True)


class _Frames:
    """One frame for each chunk, and one for an error that broke the stream. The response closes it in any case."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._frames = self._framed()

    def __iter__(self) -> Iterator[bytes]:
        return self._frames

    def _framed(self) -> Iterator[bytes]:
        try:
            for chunk in self._chunks:
                yield payload_part(chunk)
        except ModelStreamError as broken:
            yield exception("ModelStreamError", {"Message": broken.message, "ErrorCode": broken.error_code})

    def close(self) -> None:
        close = getattr(self._chunks, "close", None)
        if close:
            close()


def payload_part(chunk: bytes) -> bytes:
    """A PayloadPart event."""
    headers = {":event-type": "PayloadPart", ":content-type": "application/octet-stream", ":message-type": "event"}
    return frame(headers, chunk)


def exception(name: str, members: Mapping[str, str]) -> bytes:
    """An exception event."""
    headers = {":exception-type": name, ":content-type": "application/json", ":message-type": "exception"}
    return frame(headers, json.dumps(members).encode())


def frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One event, big-endian: two lengths, their checksum, headers, payload, checksum of everything before it."""
    head = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", STRING, len(value)) + value.encode()
        for name, value in headers.items()
    )
    lengths = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    message = lengths + struct.pack("!I", crc32(lengths)) + head + payload
    return message + struct.pack("!I", crc32(message))
