"""HTTP/1.1 on Unix sockets between nginx, web workers, host and runners: one request and one answer a connection.

The only module that parses requests and writes answers. Nothing here blocks: data that has not arrived, or that the
peer cannot take, is left for the next turn of the caller's loop.
"""

import io
import socket
import zlib
from collections import deque
from collections.abc import Mapping
from http import HTTPStatus

import httptools

from serve import __version__
from serve.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType

MEMBERS = 10_000  # the limit for a gzip body; the smallest member has 20 bytes, and each costs some 15 µs
CHUNK = 1 << 18  # a Unix socket holds about 208 kB (net.core.wmem_default), so that larger reads return no more
SERVER = f"sagemaker-serve/{__version__}"
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class Gone(Exception):
    """The peer closed the connection."""


class Connection:
    """One accepted connection. Call `read` until it returns True, then write one answer."""

    __slots__ = ("_body", "_complete", "_first", "_out", "_parser", "headers", "sock", "target")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.target = b""
        self.headers: dict[str, str] = {}
        self._first = b""  # the first piece of the body, which is usually the only one
        self._body: io.BytesIO | None = None  # all pieces, if there are several
        self._complete = False
        self._out: deque[memoryview] = deque()  # data that did not fit into the send buffer
        self._parser = httptools.HttpRequestParser(self)

    # Called by httptools.

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, piece: bytes) -> None:
        if self._body is not None:
            self._body.write(piece)
        elif self._first:
            self._body = io.BytesIO()
            self._body.write(self._first)
            self._body.write(piece)
        else:
            self._first = piece

    def on_message_complete(self) -> None:
        self._complete = True

    # Called by the loops.

    @property
    def method(self) -> str:
        return str(self._parser.get_method().decode())

    def read(self) -> bool:
        """Read the data that has arrived; True once the request is complete. Raises Gone, BadRequest."""
        while not self._complete:
            try:
                data = self.sock.recv(CHUNK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError as broken:
                raise Gone from broken
            if not data:
                raise Gone
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError as error:
                raise BadRequest(f"invalid HTTP request: {error}") from error
        return True

    def body(self) -> bytes:
        """The complete body, undecoded. It can be taken once.

        BytesIO grows in place (the kernel moves its pages, not their bytes) and returns its content without a copy: a
        body of 1 GB, as in asynchronous inference, takes 1 GB. Joined pieces would take 2 GB.
        """
        body = self._first if self._body is None else self._body.getvalue()
        self._first, self._body = b"", None
        return body

    def write(self, data: bytes) -> bool:
        """Send, and keep the rest for `flush`; True once everything is sent. Raises Gone."""
        if self._out:
            self._out.append(memoryview(data))
            return self.flush()
        try:
            sent = self.sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError as broken:
            raise Gone from broken
        if sent == len(data):
            return True
        self._out.append(memoryview(data)[sent:])
        return False

    def flush(self) -> bool:
        """Send more of the data that `write` kept; True once everything is sent. Raises Gone."""
        while self._out:
            try:
                sent = self.sock.send(self._out[0][:CHUNK], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            except OSError as broken:
                raise Gone from broken
            if sent == len(self._out[0]):
                self._out.popleft()
            else:
                self._out[0] = self._out[0][sent:]
        return True

    def close(self) -> None:
        self.sock.close()


def answer(
    status: int, content_type: str, body: bytes, headers: Mapping[str, str] | None = None, reason: str = ""
) -> bytes:
    """A complete answer. `reason`: the phrase beside the status; "" for the usual one."""
    return head(status, content_type, len(body), headers, reason) + body


def head(
    status: int, content_type: str, length: int, headers: Mapping[str, str] | None = None, reason: str = ""
) -> bytes:
    """The head of a complete answer, with Content-Length, which asynchronous inference requires."""
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items()) if headers else ""
    return (
        f"HTTP/1.1 {status} {reason or _REASONS.get(status, '')}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {length}\r\nServer: {SERVER}\r\n{more}Connection: close\r\n\r\n"
    ).encode("latin-1")


def stream_head(
    content_type: str, headers: Mapping[str, str] | None = None, status: int = 200, reason: str = ""
) -> bytes:
    """The head of a chunked answer. X-Accel-Buffering makes nginx pass each chunk on at once."""
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items()) if headers else ""
    return (
        f"HTTP/1.1 {status} {reason or _REASONS.get(status, '')}\r\n"
        f"Content-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n"
        f"X-Accel-Buffering: no\r\nServer: {SERVER}\r\n{more}Connection: close\r\n\r\n"
    ).encode("latin-1")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


def decompressed(body: bytes, encoding: str, most: int) -> bytes:
    """A body without its Content-Encoding. Decompression stops after `most` bytes: a bomb fills no memory.

    Raises UnsupportedMediaType, BadRequest or PayloadTooLarge.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise UnsupportedMediaType(
            f"unsupported Content-Encoding: {encoding[:40]!r}", hint="send gzip, deflate or no encoding"
        )
    out: list[bytes] = []
    rest, limit, count = memoryview(body), most, 0
    while rest or not count:  # a gzip body may have several members, as bgzip writes them
        count += 1
        if count > MEMBERS:
            raise BadRequest(f"the {encoding} body has more than {MEMBERS:,} members", hint="compress it as one member")
        unpacker = zlib.decompressobj(47)  # 32 + 15: zlib detects a gzip or a zlib header
        while rest and not unpacker.eof:
            try:
                # In pieces, because zlib copies the data behind the end of a member.
                out.append(unpacker.decompress(rest[:CHUNK], limit + 1))
            except zlib.error as error:
                raise BadRequest(
                    f"invalid {encoding} body: {error}", hint="fix the body or its Content-Encoding"
                ) from error
            limit -= len(out[-1])
            if limit < 0:
                raise PayloadTooLarge(
                    f"the decompressed body is larger than {most} bytes", hint="raise SERVE_MAX_PAYLOAD_MB"
                )
            rest = rest[len(rest[:CHUNK]) - len(unpacker.unused_data) :]
        if not unpacker.eof:
            raise BadRequest(f"the {encoding} body is truncated", hint="send the complete body")
    return b"".join(out)
