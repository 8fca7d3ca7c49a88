"""HTTP on Unix sockets: requests in pieces, answers that wait for their reader, limits of decompression."""

import gzip
import random
import socket
import tracemalloc
import zlib
from collections.abc import Iterator

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType
from serve.http import wire


@pytest.fixture
def pair() -> Iterator[tuple[wire.Connection, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield wire.Connection(ours), theirs
    ours.close()
    theirs.close()


REQUEST = b"POST /invocations?x=1 HTTP/1.1\r\nHost: h\r\nContent-Type: text/csv\r\nContent-Length: 5\r\n\r\n1,2,3"


def test_a_request_may_come_byte_by_byte(pair: tuple[wire.Connection, socket.socket]) -> None:
    """`read` returns True once the request is complete."""
    connection, peer = pair
    for byte in REQUEST[:-1]:
        peer.send(bytes([byte]))
        assert not connection.read()
    peer.send(REQUEST[-1:])
    assert connection.read()
    assert (connection.method, connection.target, connection.body()) == ("POST", b"/invocations?x=1", b"1,2,3")
    assert connection.headers["content-type"] == "text/csv"


HEAD = (
    b"POST /invocations HTTP/1.1\r\nX-Request-Id: a1\r\nX-Serve-Clock: 1.5 0.001 \r\nConnection: close\r\nHost: h\r\n"
)
CLIENTS = b"Content-Type: text/csv\r\nAccept: */*\r\n"


def read_in(*pieces: bytes) -> tuple[object, ...]:
    """What the pieces are read as, one after another: a request, an error, or nothing yet."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = wire.Connection(ours)
        try:
            for piece in pieces:
                theirs.sendall(piece)
                if connection.read():
                    return connection.method, connection.target, connection.headers, connection.body()
        except (wire.Gone, BadRequest) as error:
            return (type(error),)
    return ()


def test_a_request_of_nginx_is_read_without_the_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which nginx.conf and nginx write the headers."""
    monkeypatch.setattr(httptools, "HttpRequestParser", None)
    request = HEAD + b"Content-Length: 3\r\n" + CLIENTS + b"\r\n1,2"
    assert read_in(request) == (
        "POST",
        b"/invocations",
        {
            "x-request-id": "a1",
            "x-serve-clock": "1.5 0.001 ",
            "connection": "close",
            "host": "h",
            "content-length": "3",
            "content-type": "text/csv",
            "accept": "*/*",
        },
        b"1,2",
    )


@given(
    st.lists(
        st.sampled_from([b"GET", b"/", b"?", b" ", b"\r\n", b"\n", b"\r", b":", b": ", b"\t", b"\xe4", b"\0", b"#"])
    ),
    st.lists(st.integers(0, 200), min_size=4, max_size=4),
    st.sampled_from([b"3", b"2", b"4", b"03", b"+3", b"3 ", b""]),
    st.sampled_from(
        [b"", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Upgrade: x\r\n", b"A:b\r\nA:  c \r\n"]
    ),
)
def test_a_request_in_one_piece_is_read_as_one_in_two(
    strange: list[bytes], places: list[int], length: bytes, more: bytes
) -> None:
    """The parser reads the one in two pieces. Also if its bytes are not those that nginx would write."""
    request = HEAD + b"Content-Length: " + length + b"\r\n" + CLIENTS + more + b"\r\n1,2"
    for place, inserted in zip(places, strange, strict=False):
        request = request[:place] + inserted + request[place:]
    assert read_in(request) == read_in(request[:10], request[10:])


def test_a_peer_that_closes_halfway_is_gone(pair: tuple[wire.Connection, socket.socket]) -> None:
    """Half a request is not answered."""
    connection, peer = pair
    peer.send(REQUEST[:40])
    assert not connection.read()
    peer.close()
    with pytest.raises(wire.Gone):
        connection.read()


def test_bytes_that_are_not_http_are_a_bad_request(pair: tuple[wire.Connection, socket.socket]) -> None:
    """It is not an exception of the parser."""
    connection, peer = pair
    peer.send(b"\x16\x03\x01 hello\r\n\r\n")
    with pytest.raises(BadRequest, match="invalid HTTP request"):
        connection.read()


def test_an_answer_larger_than_the_socket_waits_for_its_reader(pair: tuple[wire.Connection, socket.socket]) -> None:
    """No call blocks, and no byte is lost."""
    connection, peer = pair
    peer.setblocking(False)
    sent = wire.answer(200, "text/plain", bytes(range(256)) * 20_000)
    done = connection.write(sent)
    assert not done
    got = bytearray()
    while not done or len(got) < len(sent):
        try:
            got += peer.recv(1 << 16)
        except BlockingIOError:
            done = connection.flush()
    assert bytes(got) == sent


def test_gzip_is_read_and_never_beyond_the_limit() -> None:
    """A bomb of 10 MB is stopped at the limit; a body that lacks its last byte is truncated."""
    packed = gzip.compress(b"hello" * 100)
    assert wire.decompressed(packed, "gzip", 1000) == b"hello" * 100
    assert wire.decompressed(zlib.compress(b"x"), "deflate", 10) == b"x"
    with pytest.raises(PayloadTooLarge):
        wire.decompressed(gzip.compress(bytes(10 << 20)), "gzip", 1 << 20)
    with pytest.raises(BadRequest, match="truncated"):
        wire.decompressed(packed[:-1], "gzip", 1000)
    with pytest.raises(BadRequest):
        wire.decompressed(b"not gzip", "gzip", 1000)
    with pytest.raises(UnsupportedMediaType):
        wire.decompressed(b"", "br", 1000)


def test_a_gzip_body_may_have_several_members() -> None:
    """As bgzip writes it: all are read, within one limit and in bounded time."""
    lines = [b"%d,2,3\n" % number for number in range(100)]
    members = b"".join(map(gzip.compress, lines))
    assert wire.decompressed(members, "gzip", 1000) == b"".join(lines)
    with pytest.raises(PayloadTooLarge):
        wire.decompressed(members, "gzip", 500)
    with pytest.raises(BadRequest, match="truncated"):
        wire.decompressed(members[:-1], "gzip", 1000)
    with pytest.raises(BadRequest, match="invalid gzip body"):
        wire.decompressed(members + b"rest", "gzip", 1000)
    with pytest.raises(BadRequest, match="10,000 members"):
        wire.decompressed(gzip.compress(b"") * 500_000, "gzip", 1000)


@pytest.mark.parametrize("size", [0, 1, wire.CHUNK, 3 * wire.CHUNK + 7])
def test_gzip_of_any_length_is_read_completely(size: int) -> None:
    """Up to the last byte that the limit allows."""
    body = random.Random(0).randbytes(size)
    assert wire.decompressed(gzip.compress(body, 1), "gzip", size) == body


def test_a_body_in_many_pieces_is_held_once(pair: tuple[wire.Connection, socket.socket]) -> None:
    """8 MB take 8 MB; joining the pieces takes no second copy."""
    connection, _ = pair
    body = bytes(8 << 20)
    tracemalloc.start()
    try:
        for start in range(0, len(body), 1 << 16):
            connection.on_body(body[start : start + (1 << 16)])
        same = connection.body() == body  # in a name: what pytest shows of two bodies takes a while
        assert same
        assert tracemalloc.get_traced_memory()[1] < 1.4 * len(body)
    finally:
        tracemalloc.stop()
