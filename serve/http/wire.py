"""HTTP/1.1 on Unix sockets between nginx, web workers, host and runners: one request and one answer a connection.

The only module that parses requests and writes answers. Nothing here blocks: data that has not arrived, or that the
peer cannot take, is left for the next turn of the caller's loop.
"""

import io
import re
import socket
import zlib
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus

import httptools

from serve import __version__
from serve.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType

MEMBERS = 10_000  # the limit for a gzip body; the smallest member has 20 bytes, and each costs some 15 µs
CHUNK = 1 << 18  # a Unix socket holds about 208 kB (net.core.wmem_default), so that larger reads return no more
FIRST = 1 << 16  # bytes of the first read: most requests have fewer, and a buffer of CHUNK is memory of its own (mmap)
PLAIN = 4096  # bytes of a head of which parts are remembered
SERVER = f"sagemaker-serve/{__version__}"
_DONTWAIT, _SEND = int(socket.MSG_DONTWAIT), int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_REASONS = {status.value: status.phrase for status in HTTPStatus}


# The heads that `_read_plain` reads. The parser of httptools reads all others.
_OWN = re.compile(
    rb"POST (/[\w./?=&%+-]*) HTTP/1\.1\r\nX-Request-Id: ([!-~]+)\r\nX-Serve-Clock: ([\d.][-\d.:, ]*)\r\n(.+)",
    re.ASCII | re.DOTALL,
)
_HEADERS = re.compile(rb"(?:[\w-]+: (?:[!-~\x80-\xff](?:[ -~\x80-\xff]*[!-~\x80-\xff])?)?(?:\r\n|\Z))+", re.ASCII)
_FRAMING = {"content-length", "transfer-encoding", "upgrade"}


class Gone(Exception):
    """The peer closed the connection."""


def accept(listener: socket.socket) -> "Connection":
    """A connection that waits. Raises OSError, which is BlockingIOError if none waits.

    `listener.accept` does the same and takes 3 us more, for the enums of a socket.socket.
    """
    fd, _ = listener._accept()  # type: ignore[attr-defined]  # of the C class below socket.socket
    return Connection(socket.SocketType(_UNIX, _STREAM, 0, fd))


_UNIX, _STREAM = int(socket.AF_UNIX), int(socket.SOCK_STREAM)


class Connection:
    """One accepted connection. Call `read` until it returns True, then write one answer."""

    __slots__ = ("_body", "_complete", "_first", "_out", "_parser", "fd", "headers", "method", "sock", "target")

    def __init__(self, sock: socket.SocketType) -> None:
        self.sock = sock
        self.fd = sock.fileno()  # -1 once it is closed
        self.method = ""
        self.target = b""
        self.headers: dict[str, str] = {}
        self._first = b""  # the first piece of the body, which is usually the only one
        self._body: io.BytesIO | None = None  # all pieces, if there are several
        self._complete = False
        self._out: deque[memoryview] | None = None  # data that did not fit into the send buffer
        self._parser: httptools.HttpRequestParser | None = None

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
        assert self._parser
        self.method = self._parser.get_method().decode()
        self._complete = True

    # Called by the loops.

    def read(self, *, once: bool = False) -> bool:
        """Read the data that has arrived; True once the request is complete. Raises Gone, BadRequest.

        `once`: read one piece only, which holds the head.
        """
        while not self._complete:
            try:
                data = self.sock.recv(CHUNK if self._parser else FIRST, _DONTWAIT)
            except BlockingIOError:
                return False
            except OSError as broken:
                raise Gone from broken
            if not data:
                raise Gone
            if self._parser is None:
                if self._read_plain(data):
                    return True
                self._parser = httptools.HttpRequestParser(self)
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError as error:
                raise BadRequest(f"invalid HTTP request: {error}") from error
            if once:
                return self._complete
        return True

    @property
    def length(self) -> int:
        """The bytes of the body, as its head states them."""
        stated = self.headers.get("content-length", "")
        return int(stated) if stated.isascii() and stated.isdecimal() and len(stated) < 16 else 0

    @property
    def size(self) -> int:
        """The bytes of the body that have been read."""
        return len(self._first) if self._body is None else self._body.tell()

    def _read_plain(self, data: bytes) -> bool:
        """Read a request that is here completely, and has the form in which nginx sends it; False for any other.

        It costs 3 us, the parser 12. nginx.conf puts first the two headers that differ in each request; nginx adds
        Content-Length, then the headers of the client. All parts but those two and the length are remembered.
        """
        head, _, body = data.partition(b"\r\n\r\n")
        own, _, given = head.partition(b"\r\nContent-Length: %d\r\n" % len(body))
        if not given or len(head) > PLAIN:
            return False
        first = _OWN.fullmatch(own)
        others = first and _remembered(first[4], given)
        if not first or not others:
            return False
        self.method = "POST"
        self.target = first[1]
        self.headers = {
            "x-request-id": first[2].decode(),
            "x-serve-clock": first[3].decode(),
            "content-length": str(len(body)),
            **others,
        }
        self._first = body
        self._complete = True
        return True

    def peeked(self) -> bytes:
        """The complete body, undecoded, which stays here."""
        return self._first if self._body is None else self._body.getvalue()

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
            sent = self.sock.send(data, _SEND)
        except BlockingIOError:
            sent = 0
        except OSError as broken:
            raise Gone from broken
        if sent == len(data):
            return True
        self._out = deque([memoryview(data)[sent:]])
        return False

    def flush(self) -> bool:
        """Send more of the data that `write` kept; True once everything is sent. Raises Gone."""
        while self._out:
            try:
                sent = self.sock.send(self._out[0][:CHUNK], _SEND)
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
        self.fd = -1
        self.sock.close()


@lru_cache(maxsize=256)
def _remembered(own: bytes, given: bytes) -> dict[str, str] | None:
    """The headers in the parts of a head that requests have in common; None if one is not plain."""
    if not _HEADERS.fullmatch(own) or not _HEADERS.fullmatch(given):
        return None
    pairs = [each.split(": ", 1) for each in f"{own.decode('latin-1')}\r\n{given.decode('latin-1')}".split("\r\n")]
    headers = {name.lower(): value for name, value in pairs}
    return None if _FRAMING & headers.keys() else headers


def answer(
    status: int, content_type: str, body: bytes, headers: Mapping[str, str] | None = None, reason: str = ""
) -> bytes:
    """A complete answer. `reason`: the phrase beside the status; "" for the usual one."""
    return head(status, content_type, len(body), headers, reason) + body


def head(
    status: int, content_type: str, length: int, headers: Mapping[str, str] | None = None, reason: str = ""
) -> bytes:
    """The head of a complete answer, with Content-Length, which asynchronous inference requires."""
    return (
        f"HTTP/1.1 {status} {reason or _REASONS.get(status, '')}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {length}\r\nServer: {SERVER}\r\n{_lines(headers)}Connection: close\r\n\r\n"
    ).encode("latin-1")


def stream_head(
    content_type: str, headers: Mapping[str, str] | None = None, status: int = 200, reason: str = ""
) -> bytes:
    """The head of a chunked answer. X-Accel-Buffering makes nginx pass each chunk on at once."""
    return (
        f"HTTP/1.1 {status} {reason or _REASONS.get(status, '')}\r\n"
        f"Content-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n"
        f"X-Accel-Buffering: no\r\nServer: {SERVER}\r\n{_lines(headers)}Connection: close\r\n\r\n"
    ).encode("latin-1")


def _lines(headers: Mapping[str, str] | None) -> str:
    lines = ""
    if headers:
        for name, value in headers.items():  # one or two, for which join() of a generator takes three times as long
            lines += f"{name}: {value}\r\n"
    return lines


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


def unfolds(body: bytes, most: int) -> bool:
    """Whether a compressed body may have more than `most` bytes, or several members. It is not checked otherwise."""
    unpacker = zlib.decompressobj(47)
    try:
        return len(unpacker.decompress(body, most + 1)) > most or bool(unpacker.unused_data)
    except zlib.error:
        return False  # `decompressed` raises it


def decompressed(body: bytes, encoding: str, most: int, members: int = MEMBERS) -> bytes:
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
        if count > members:
            raise BadRequest(f"the {encoding} body has more than {members:,} members", hint="compress it as one member")
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
