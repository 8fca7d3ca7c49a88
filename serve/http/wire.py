"""HTTP/1.1 on Unix sockets between nginx, web workers, host and runners: one request and one answer a connection.

The only place that turns bytes into requests and answers into bytes. Nothing here blocks: what is not there yet, or
what the peer cannot take yet, is left for the next turn of the caller's loop.
"""

import io
import socket
import zlib
from collections import deque
from collections.abc import Mapping
from http import HTTPStatus

import httptools

from serve.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType

MEMBERS = 10_000  # of a gzip body; the smallest has 20 bytes, and each costs some 15 µs
CHUNK = 1 << 18  # a Unix socket holds about 208 kB (net.core.wmem_default): more at once never comes
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class Gone(Exception):
    """The peer closed its end, or broke off."""


class Connection:
    """One accepted connection. `read` until it says True, then write one answer."""

    __slots__ = ("_body", "_complete", "_first", "_out", "_parser", "headers", "sock", "target")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.target = b""
        self.headers: dict[str, str] = {}
        self._first = b""  # of the body: most come in one piece
        self._body: io.BytesIO | None = None  # where they do not
        self._complete = False
        self._out: deque[memoryview] = deque()  # what the peer could not take yet
        self._parser = httptools.HttpRequestParser(self)

    # What httptools calls back.

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

    # What the loops call.

    @property
    def method(self) -> str:
        return str(self._parser.get_method().decode())

    def read(self) -> bool:
        """Take in what has arrived; True once the request is whole. Raises Gone, or BadRequest on bytes not HTTP."""
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
                raise BadRequest(f"not an HTTP request: {error}") from error
        return True

    def body(self) -> bytes:
        """The whole body as sent; given away once, and never held twice.

        BytesIO grows in place (the kernel moves its pages, not their bytes) and gives away what it holds without a
        copy: 1 GB of asynchronous inference takes 1 GB, where joined pieces would take two.
        """
        body = self._first if self._body is None else self._body.getvalue()
        self._first, self._body = b"", None
        return body

    def write(self, data: bytes) -> bool:
        """Send, keeping what the peer cannot take yet; True when all has left. Raises Gone."""
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
        """Send more of what `write` kept; True when all has left. Raises Gone."""
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


def answer(status: int, content_type: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole answer."""
    return head(status, content_type, len(body), headers) + body


def head(status: int, content_type: str, length: int, headers: Mapping[str, str] | None = None) -> bytes:
    """The head of a whole answer, with Content-Length, which async inference demands."""
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items()) if headers else ""
    return (
        f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {length}\r\n{more}Connection: close\r\n\r\n"
    ).encode("latin-1")


def stream_head(content_type: str, headers: Mapping[str, str] | None = None) -> bytes:
    """The head of a chunked answer; nginx passes each chunk on at once because of X-Accel-Buffering."""
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items()) if headers else ""
    return (
        f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n"
        f"X-Accel-Buffering: no\r\n{more}Connection: close\r\n\r\n"
    ).encode("latin-1")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


def decompressed(body: bytes, encoding: str, most: int) -> bytes:
    """A body as its Content-Encoding says; never more than `most` bytes, however far a bomb would unfold."""
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise UnsupportedMediaType(f"Content-Encoding {encoding[:40]!r} is not read", hint="send gzip or no encoding")
    out: list[bytes] = []
    rest, limit, count = memoryview(body), most, 0
    while rest or not count:  # a gzip body may be several, one behind the other, as bgzip writes it
        count += 1
        if count > MEMBERS:
            raise BadRequest(f"the {encoding} body has more than {MEMBERS:,} members", hint="pack it as one")
        unpacker = zlib.decompressobj(47)  # 32 + 15: gzip or zlib header, told apart by zlib itself
        while rest and not unpacker.eof:
            try:
                # In pieces: of each, zlib copies what lies behind the end of a member.
                out.append(unpacker.decompress(rest[:CHUNK], limit + 1))
            except zlib.error as error:
                raise BadRequest(f"the body is not {encoding}: {error}", hint="Content-Encoding says it is") from error
            limit -= len(out[-1])
            if limit < 0:
                raise PayloadTooLarge(f"the body unfolds to more than {most} bytes", hint="raise SERVE_MAX_PAYLOAD_MB")
            rest = rest[len(rest[:CHUNK]) - len(unpacker.unused_data) :]
        if not unpacker.eof:
            raise BadRequest(f"the {encoding} body is cut short", hint="send it whole")
    return b"".join(out)
