"""Clients that send no HTTP, or stop halfway: each gets an error if possible, and no other request is affected."""

import http.client
import io
import re
import socket
from pathlib import Path

import pytest

from tests.live import neighbours
from tests.live.conftest import Start
from tests.live.neighbours import assert_refusal, assert_unhurt
from tests.live.stack import Answer, Server, wait_until


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    return neighbours.start(start_shared, shared_models)


class _Bytes(socket.socket):
    """Received bytes, in the form that http.client expects."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: object) -> io.BytesIO:  # type: ignore[override]
        return io.BytesIO(self._data)


def _answer(data: bytes) -> Answer:
    response = http.client.HTTPResponse(_Bytes(data))
    response.begin()
    return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


POST = b"POST /invocations HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
GET = b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
LONG = b"x" * 20_000
# id -> bytes sent, status
RAW = {
    "no HTTP at all": (b"\x16\x03\x01\x02\x00\x01\x00\xfc\r\n\r\n", 400),
    "no version it knows": (b"GET /ping HTTP/9.9\r\n\r\n", 400),
    "no URI": (b"GET\r\n\r\n", 400),
    "a path above the root": (b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
    "a path with NUL": (b"POST /models/a%00b/invoke HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
    "a raw NUL in the path": (b"GET /models/a\0b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a path that is not ASCII": (b"GET /models/\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
    "a query that is not ASCII": (b"GET /models?x=\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
    "a name with NUL": (POST + b"TargetModel: a\0b\r\nContent-Length: 2\r\n\r\n{}", 400),
    "NUL in the name in the body": (POST + b'Content-Length: 26\r\n\r\n{"model_type": "a\\u0000b"}', 404),
    "no host": (b"GET /ping HTTP/1.1\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
    "a length in words": (POST + b"Content-Length: two\r\n\r\n{}", 400),
    "a negative length": (POST + b"Content-Length: -2\r\n\r\n{}", 400),
    "a chunk of no size": (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", 400),
    "a length and chunks": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n", 400),
    "a huge header": (POST + b"X-Large: " + LONG + b"\r\nContent-Length: 2\r\n\r\n{}", 400),
    "a huge path": (b"GET /" + LONG + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
    "too many headers": (POST + b"".join(b"X-%d: %b\r\n" % (n, LONG[:5000]) for n in range(20)) + b"\r\n", 400),
    "more than 100 headers": (GET + b"".join(b"X-%d: x\r\n" % n for n in range(200)) + b"\r\n", 404),
    "contradictory X-Forwarded headers": (
        GET + b"X-Forwarded-Proto: https\r\nX-Forwarded-Protocol: http\r\nX-Forwarded-Ssl: off\r\n\r\n",
        404,
    ),
    "an overlong method": (b"A" * 5000 + b" /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
    "a method of one letter": (b"A /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
    "a method of underscores": (b"A_-_ /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
    "a method in lower case": (b"get /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
    "TRACE": (b"TRACE /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
    "CONNECT": (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
    "TRACE of a model": (b"TRACE /invocations HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
    "HTTP/2 without TLS": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "an upgrade to HTTP/2": (GET + b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", 404),
    "an encoding of transfer": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "an unknown expectation": (GET + b"Expect: 200-maybe\r\n\r\n", 404),
    "an impossible range": (GET + b"Range: bytes=9-1\r\n\r\n", 404),
    "two hosts": (b"GET /ping HTTP/1.1\r\nHost: x\r\nHost: y\r\nConnection: close\r\n\r\n", 400),
    "a host that is none": (b"GET /x HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n", 400),
    "a host of bytes": (b"GET /x HTTP/1.1\r\nHost: \xff\xfe\r\nConnection: close\r\n\r\n", 404),
    "a host with a port of letters": (b"GET /x HTTP/1.1\r\nHost: x:y\r\nConnection: close\r\n\r\n", 404),
    "a header without a colon": (GET + b"nothing\r\n\r\n", 404),
    "a header of no name": (GET + b": x\r\n\r\n", 400),
    "a header with blanks in its name": (GET + b"X Y: x\r\n\r\n", 400),
    "a header on two lines": (GET + b"X-Y: x\r\n z\r\n\r\n", 400),
    "a header with control characters": (GET + b"X-Y: \x01\x02\x7f\r\n\r\n", 400),
    "a header with a carriage return": (GET + b"X-Y: a\rb\r\n\r\n", 400),
    "a header that is not ASCII": (GET + b"X-Y: \xff\xc3\r\n\r\n", 404),
    "two slashes": (b"GET //nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
    "a URI with a host": (b"GET http://y/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
    "a path with an escape of nothing": (b"GET /%zz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
    "100 MB": (POST + b"Content-Length: 104857600\r\n\r\n" + bytes(100 << 20), 413),
    "100 MB in one chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\n6400000\r\n" + bytes(100 << 20), 413),
    "100 MB in one chunk to echo": (
        POST + b"TargetModel: echo\r\nTransfer-Encoding: chunked\r\n\r\n6400000\r\n" + bytes(100 << 20),
        413,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RAW)
def test_an_invalid_request_is_refused(server: Server, case: str) -> None:
    """In the shape of every error, whether nginx, gunicorn or Flask finds it."""
    data, status = RAW[case]
    before = neighbours.pids(server)

    answer = _answer(server.raw(data))

    assert answer.status == status, answer.body
    assert_refusal(answer)
    if status == 413:
        assert "25 MB" in answer.json["message"]
        assert "SERVE_MAX_PAYLOAD_MB" in answer.json["hint"]
    assert_unhurt(server, before)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nowhere", 404),
        ("POST", "/nowhere", 404),
        ("GET", "/-/malformed", 404),
        ("GET", "/invocations/x", 404),
        ("GET", "/invocations", 405),
        ("PUT", "/invocations", 405),
        ("DELETE", "/invocations", 405),
        ("DELETE", "/ping", 405),
        ("PUT", "/models/echo/invoke", 405),
        ("GET", "/models/echo/invoke", 405),
        ("BREW", "/ping", 405),
    ],
)
def test_an_unsupported_path_or_method_is_refused(server: Server, method: str, path: str, status: int) -> None:
    """404 or 405 as JSON."""
    answer = server.request(method, path, headers={"TargetModel": "echo"})
    assert answer.status == status, answer.body
    assert_refusal(answer)
    assert server.invoke("echo", "hello", "text/plain").status == 200


@pytest.mark.parametrize("lane", [b"TargetModel: echo\r\n", b"X-Amzn-SageMaker-Custom-Attributes: model_type=echo\r\n"])
def test_a_body_in_chunks_is_read_completely(server: Server, lane: bytes) -> None:
    """On both lanes, as batch transform sends it."""
    pieces = b"5\r\nhello\r\n1\r\n,\r\n6\r\n world\r\n0\r\n\r\n"
    head = POST.replace(b"application/json", b"text/plain")

    answer = _answer(server.raw(head + lane + b"Transfer-Encoding: chunked\r\n\r\n" + pieces))

    assert answer.status == 200, answer.body
    assert answer.body.partition(b":")[2] == b"hello, world"


def test_expect_100_continue_is_answered(server: Server) -> None:
    """curl sends it for larger bodies."""
    with server.connect() as sock:
        sock.sendall(POST + b"TargetModel: echo\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert sock.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"{}")
        assert re.match(rb"HTTP/1.1 200 .*:{}$", sock.recv(4096), re.DOTALL)


def test_slow_and_vanishing_clients_delay_no_other_request(server: Server) -> None:
    """Fifty with half a header, fifty with half a body, byte by byte: others are answered; then they hang up."""
    before = neighbours.pids(server)
    heads = [server.connect() for _ in range(50)]
    bodies = [server.connect() for _ in range(50)]
    for sock in heads:
        sock.sendall(POST[:-7])
    for sock in bodies:
        sock.sendall(POST + b"TargetModel: echo\r\nContent-Length: 1000\r\n\r\n{")
    for _ in range(3):
        for sock in heads + bodies:
            sock.sendall(b"x")
        assert_unhurt(server, before)
        assert server.get("/ping").status == 200

    for sock in heads + bodies:
        sock.close()

    assert_unhurt(server, before)
    wait_until(lambda: server.queued("echo") == 0)


def test_clients_that_hang_up_before_the_answer_delay_no_other_request(server: Server) -> None:
    """Complete requests whose clients do not read the answers."""
    before = neighbours.pids(server)
    for model in ("gpt2", "bart", "trees", "echo", "tally"):
        for _ in range(5):
            with server.connect() as sock:
                sock.sendall(POST + b"TargetModel: %b\r\nContent-Length: 16\r\n\r\n" % model.encode())
                sock.sendall(b'{"inputs": "w1"}')

    assert_unhurt(server, before)
    for model in before:
        wait_until(lambda model=model: server.queued(model) == 0)  # type: ignore[misc]
