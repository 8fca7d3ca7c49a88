"""InvokeEndpointWithResponseStream's answer: a container's chunks as frames of an AWS event stream.

smithy.io/2.0/aws/amazon-eventstream.html
"""

import json
import struct
from collections.abc import Iterator, Mapping
from zlib import crc32

from werkzeug.wrappers import Response

from local_test.platform.calls import ModelStreamError, Reply

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
