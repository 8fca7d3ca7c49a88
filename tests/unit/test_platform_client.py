"""The client of a container, against a server whose answers a test gives byte by byte."""

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from local_test.platform.calls import MESSAGE, Call, ModelError, ModelStreamError
from local_test.platform.containers.client import Broken, Client, DeadlinePassed, forwarded, model_error
from local_test.platform.events import Events
from tests.patience import PATIENCE

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class FakeContainer:
    """Answers each request with the next of `answers`; None closes the connection. Records the requests' heads."""

    def __init__(self, *answers: bytes | None) -> None:
        self._answers = list(answers)
        self.heads: list[bytes] = []
        self.connections = 0
        self.hung_up = threading.Event()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.out = io.StringIO()
        self.client = Client(
            "primary", self.port, Events(self.out, as_json=True), payload_bytes=1000, log_stream="the log"
        )
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.client.close()
        self._listener.shutdown(socket.SHUT_RDWR)  # ends the call of accept
        self._listener.close()
        for each in self._open:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            with sock.makefile("rb") as lines:
                while True:
                    read = list(iter(lambda: lines.readline().rstrip(b"\r\n"), b""))  # up to the empty line or the end
                    if not read:
                        return
                    head = b"\r\n".join(read) + b"\r\n"
                    self.heads.append(head)
                    for line in head.lower().splitlines():
                        if line.startswith(b"content-length:"):
                            lines.read(int(line.split(b":")[1]))
                    answer = self._answers.pop(0)
                    if answer is None:
                        sock.shutdown(socket.SHUT_RDWR)
                        return
                    sock.sendall(answer)
                    if b"close" in answer:
                        sock.shutdown(socket.SHUT_RDWR)
                        self.hung_up.set()
                        return
        except (OSError, ValueError):
            return


@pytest.fixture
def answering() -> Iterator[Callable[..., FakeContainer]]:
    made: list[FakeContainer] = []

    def run(*answers: bytes | None) -> FakeContainer:
        made.append(FakeContainer(*answers))
        return made[-1]

    yield run
    for each in made:
        each.close()


def soon(seconds: float = PATIENCE) -> float:
    return time.monotonic() + seconds


def call(**more: object) -> Call:
    return Call(**{"body": b"x", "limit": 5, **more})  # type: ignore[arg-type]


def test_a_container_receives_the_documented_headers_only() -> None:
    """The target model is one of them."""
    headers = {"content-type": "a/b", "Authorization": "secret", "X-Amzn-SageMaker-Target-Variant": "v", "Cookie": "c"}
    assert forwarded(call(headers=headers, target_model="m.tar.gz")) == {
        "content-type": "a/b",
        "X-Amzn-SageMaker-Target-Model": "m.tar.gz",
    }


def test_connections_are_kept(answering: Callable[..., FakeContainer]) -> None:
    """Until the container closes them; the client notices that before the next request."""
    container = answering(OK, OK, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it", OK)
    bodies = [container.client.invoke("/invocations", call(), soon()).body for _ in range(4)]
    assert bodies == [b"hi", b"hi", b"all of it", b"hi"]
    assert container.connections == 2


def test_a_connection_that_the_container_closed_is_not_reused(answering: Callable[..., FakeContainer]) -> None:
    """The client opens a new one, and the call succeeds."""
    container = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nclose", OK)
    assert container.client.invoke("/", call(), soon()).body == b"close"
    assert container.hung_up.wait(PATIENCE)
    assert container.client.invoke("/", call(), soon()).body == b"hi"


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        (b"HTTP/1.1 400 x\r\nContent-Length: 3\r\n\r\nbad", 400, 'client error (400) from primary with message "bad"'),
        (b"HTTP/1.1 507 x\r\nContent-Length: 0\r\n\r\n", 507, 'server error (507) from primary with message ""'),
        (b"HTTP/1.1 302 x\r\nContent-Length: 0\r\n\r\n", 302, "server error (302)"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nhi", 0, "after 2 of 9 bytes"),
        (b"nonsense close\r\n\r\n", 0, "broke"),
        (None, 0, "broke"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 4096 + b"\r\nContent-Length: 2\r\n\r\nhi", 0, "length greater than 4096"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1001, 500, "could not load the entire response"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n close", 0, "broke"),
    ],
)
def test_anything_but_a_complete_2xx_is_a_model_error(
    answer: bytes | None, status: int, message: str, answering: Callable[..., FakeContainer]
) -> None:
    """With the container's status and text, or status 0."""
    with pytest.raises(ModelError) as raised:
        answering(answer).client.invoke("/invocations", call(), soon())
    assert raised.value.original_status == status
    assert message in raised.value.message
    assert raised.value.message.endswith("See the log for more information.")


def test_long_error_texts_are_cut() -> None:
    """At 2,048 characters, also inside the message."""
    assert len(ModelError("", 400, "x" * 5000, "").original_message) == MESSAGE
    assert model_error("m", 400, "x" * 5000, "").count("x") == MESSAGE


def test_the_deadline_holds_for_the_complete_answer(answering: Callable[..., FakeContainer]) -> None:
    """For a container that sends no byte, and for one that sends an incomplete body."""
    container = answering(b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi")
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(ModelError, match=r"server error \(0\) from primary .*Your invocation timed out") as cut:
            container.client.invoke("/invocations", call(), soon(0.2))
        assert cut.value.original_status == 0
        assert time.monotonic() - began < PATIENCE / 2  # the fake container never answers


def test_a_refused_connection_is_an_error_immediately() -> None:
    """Without retries until the deadline."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    client = Client("primary", port, Events(io.StringIO()), payload_bytes=10, log_stream="")
    with pytest.raises(ModelError, match="Connection refused"):
        client.invoke("/", call(), soon())
    with pytest.raises(Broken):
        client.request("GET", "/ping", limit=1)


def test_a_connection_not_accepted_within_250_ms_is_reported() -> None:
    """The backlog is full: the client retries until the deadline, and emits an event for each try."""
    out = io.StringIO()
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(1)]
        client = Client("primary", port, Events(out, as_json=True), payload_bytes=10, log_stream="")
        with pytest.raises(DeadlinePassed):
            client.request("GET", "/ping", limit=2.0)
        for each in waiting:
            each.close()
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert {(each["event"], each["subject"]) for each in events} == {("slow", "primary")}
    assert events[0]["ms"] >= 250


def test_a_broken_stream_and_a_stream_that_times_out_differ(answering: Callable[..., FakeContainer]) -> None:
    """The caller gets the chunks before the error. An error status is not streamed."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    container = answering(
        head + b"2\r\nhi\r\n5\r\nclose", head + b"2\r\nhi\r\n", b"HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n"
    )
    for code, seconds in (("StreamBroken", PATIENCE), ("ModelInvocationTimeExceeded", 2.0)):
        parts = iter(container.client.invoke("/invocations", call(stream=True), soon(seconds)).body)
        assert next(parts) == b"hi"
        with pytest.raises(ModelStreamError) as raised:
            list(parts)
        assert raised.value.error_code == code
    with pytest.raises(ModelError):
        container.client.invoke("/invocations", call(stream=True), soon())
