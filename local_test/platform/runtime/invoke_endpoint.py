"""InvokeEndpoint's HTTP side: an AWS request becomes a call, what comes of it an AWS response.

docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html
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

STRING = 7  # the type of a header's value


def response(reply: Reply, variant: str) -> Response:
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
    """A frame a chunk, and one for what broke the stream. Closed with the response, whether it was read or not."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._frames = self._framed()

    def __iter__(self) -> Iterator[bytes]:
        return self._frames

    def _framed(self) -> Iterator[bytes]:
        try:
            for chunk in self._chunks:
                yield part(chunk)
        except ModelStreamError as broken:
            yield exception("ModelStreamError", {"Message": broken.message, "ErrorCode": broken.error_code})

    def close(self) -> None:
        close = getattr(self._chunks, "close", None)
        if close:
            close()


def part(chunk: bytes) -> bytes:
    """A PayloadPart."""
    kind = {":event-type": "PayloadPart", ":content-type": "application/octet-stream", ":message-type": "event"}
    return frame(kind, chunk)


def exception(name: str, members: Mapping[str, str]) -> bytes:
    kind = {":exception-type": name, ":content-type": "application/json", ":message-type": "exception"}
    return frame(kind, json.dumps(members).encode())


def frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    """Lengths, their checksum, headers, payload, checksum of all; big-endian."""
    head = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", STRING, len(value)) + value.encode()
        for name, value in headers.items()
    )
    lengths = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    message = lengths + struct.pack("!I", crc32(lengths)) + head + payload
    return message + struct.pack("!I", crc32(message))


PREFIX = "X-Amzn-SageMaker-"
PATH = re.compile(
    r"^/endpoints/([^/]+)/(invocations|invocations-response-stream|async-invocations|openai/v1/chat/completions)$"
)
# Response headers that are the caller's to see.
ANSWERED = ("Content-Type", PREFIX + "Custom-Attributes", PREFIX + "New-Session-Id", PREFIX + "Closed-Session-Id")
OPERATIONS = {
    "invocations": "InvokeEndpoint",
    "invocations-response-stream": "InvokeEndpointWithResponseStream",
    "async-invocations": "InvokeEndpointAsync",
}


def answer(request: Request, kind: str, endpoint: Endpoint, queue: Callable[[], Queue], options: Options) -> Response:
    """One request for an endpoint. `kind` is the end of its path."""
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
        headers=passed_on(headers, operation),
        target_model=headers.get(PREFIX + "Target-Model"),
        target_container=headers.get(PREFIX + "Target-Container-Hostname"),
        stream=kind != "invocations",
        limit=options.invoke_limit if kind == "invocations" else options.stream_limit,
        path="/invocations" if operation else "/v1/chat/completions",
    )
    reply, variant = endpoint.invoke(call, headers.get(PREFIX + "Target-Variant"), headers.get(PREFIX + "Session-Id"))
    if kind == "invocations-response-stream":
        return response(reply, variant)
    return Response(reply.body, reply.status, _shown(reply, variant), direct_passthrough=True)


def passed_on(headers: Headers, operation: str | None) -> dict[str, str]:
    """What a container may see; where a body is not the operation's own, its type comes in a header of another name."""
    seen = {name: value for name, value in headers.items() if name.lower().startswith(PREFIX.lower())}
    for name in ("Content-Type", "Accept"):
        value = headers.get(PREFIX + name) or headers.get(name)
        if value:
            seen[name] = value
    if operation:
        seen[PREFIX + "Forwarded-Api"] = operation
    return seen


def _shown(reply: Reply, variant: str) -> dict[str, str]:
    shown = {name: reply.headers[name.lower()] for name in ANSWERED if name.lower() in reply.headers}
    return {**shown, "x-Amzn-Invoked-Production-Variant": variant}


def failure(error: PlatformError) -> Response:
    """An error as botocore reads it: its code in a header, all else in the body."""
    said: dict[str, Any] = {"Message": error.message}
    if isinstance(error, ModelError):
        said |= {
            "OriginalStatusCode": error.original_status,
            "OriginalMessage": error.original_message,
            "LogStreamArn": error.log_stream,
        }
    return Response(
        json.dumps(said),
        error.status,
        {"x-amzn-ErrorType": type(error).__name__},
        content_type="application/json",
    )


def _check_lengths(operation: str, headers: Headers) -> None:
    for member, header, most in _limits(operation):
        if len(headers.get(header, "")) > most:
            raise ValidationError(_too_long(member[0].lower() + member[1:], most))


def _too_long(member: str, most: int) -> str:
    return (
        f"1 validation error detected: Value at '{member}' failed to satisfy constraint: "
        f"Member must have length less than or equal to {most}"
    )


@cache
def _limits(operation: str) -> tuple[tuple[str, str, int], ...]:
    """Every header parameter that has a longest length, by botocore's model of the service."""
    shape = botocore.session.get_session().get_service_model("sagemaker-runtime").operation_model(operation).input_shape
    return tuple(
        (name, member.serialization["name"], member.metadata["max"])
        for name, member in shape.members.items()
        if member.serialization.get("location") == "header"
        and member.type_name == "string"
        and "max" in member.metadata
    )
