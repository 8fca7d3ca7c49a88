"""Requests to a container that answers whatever a test says, byte by byte."""

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from local_test.platform.calls import MESSAGE, Call, ModelError, ModelStreamError
from local_test.platform.containers.client import Broken, Client, Cut, model_error, passed_on
from local_test.platform.events import Events
from tests.patience import PATIENCE

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Container:
    """Answers each request on each connection by the next of `answers`; None closes. Keeps what it was sent."""

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
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept
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
                    read = list(iter(lambda: lines.readline().rstrip(b"\r\n"), b""))  # to the empty line, or the end
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
def answering() -> Iterator[Callable[..., Container]]:
    made: list[Container] = []

    def run(*answers: bytes | None) -> Container:
        made.append(Container(*answers))
        return made[-1]

    yield run
    for each in made:
        each.close()


def soon(seconds: float = PATIENCE) -> float:
    return time.monotonic() + seconds


def call(**more: object) -> Call:
    return Call(**{"body": b"x", "limit": 5, **more})  # type: ignore[arg-type]


def test_a_container_sees_the_headers_it_may_and_no_others() -> None:
    """The target model among them."""
    headers = {"content-type": "a/b", "Authorization": "secret", "X-Amzn-SageMaker-Target-Variant": "v", "Cookie": "c"}
    assert passed_on(call(headers=headers, target_model="m.tar.gz")) == {
        "content-type": "a/b",
        "X-Amzn-SageMaker-Target-Model": "m.tar.gz",
    }


def test_connections_are_kept(answering: Callable[..., Container]) -> None:
    """Until the container closes them, and that is noticed before the next request."""
    container = answering(OK, OK, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it", OK)
    bodies = [container.client.invoke("/invocations", call(), soon()).body for _ in range(4)]
    assert bodies == [b"hi", b"hi", b"all of it", b"hi"]
    assert container.connections == 2


def test_a_connection_closed_meanwhile_is_not_used(answering: Callable[..., Container]) -> None:
    """A new one is made, and the caller learns nothing of it."""
    container = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nclose", OK)
    assert container.client.invoke("/", call(), soon()).body == b"close"
    assert container.hung_up.wait(PATIENCE)
    assert container.client.invoke("/", call(), soon()).body == b"hi"


@pytest.mark.parametrize(
    ("answer", "status", "says"),
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
def test_what_is_not_a_whole_2xx_is_a_model_error(
    answer: bytes | None, status: int, says: str, answering: Callable[..., Container]
) -> None:
    """With the container's own status and words, or 0."""
    with pytest.raises(ModelError) as told:
        answering(answer).client.invoke("/invocations", call(), soon())
    assert told.value.original_status == status
    assert says in told.value.message
    assert told.value.message.endswith("See the log for more information.")


def test_long_words_are_cut() -> None:
    """At 2,048 characters, in the message too."""
    assert len(ModelError("", 400, "x" * 5000, "").original_message) == MESSAGE
    assert model_error("m", 400, "x" * 5000, "").count("x") == MESSAGE


def test_the_time_holds_for_the_whole_answer(answering: Callable[..., Container]) -> None:
    """Whether nothing comes, or bytes that never end it."""
    container = answering(b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi")
    for _ in range(2):
        with pytest.raises(ModelError, match=r"server error \(0\) from primary .*Your invocation timed out") as cut:
            container.client.invoke("/invocations", call(), soon(0.2))
        assert cut.value.original_status == 0


def test_nobody_there_is_a_broken_connection() -> None:
    """At once."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    client = Client("primary", port, Events(io.StringIO()), payload_bytes=10, log_stream="")
    with pytest.raises(ModelError, match="Connection refused"):
        client.invoke("/", call(), soon())
    with pytest.raises(Broken):
        client.ask("GET", "/ping", limit=1)


def test_who_does_not_accept_in_250_ms_is_told_of() -> None:
    """A backlog that is full: the call goes on trying, as long as it may."""
    out = io.StringIO()
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(1)]
        client = Client("primary", port, Events(out, as_json=True), payload_bytes=10, log_stream="")
        with pytest.raises(Cut):
            client.ask("GET", "/ping", limit=2.0)
        for each in waiting:
            each.close()
    said = [json.loads(line) for line in out.getvalue().splitlines()]
    assert {(each["event"], each["subject"]) for each in said} == {("slow", "primary")}
    assert said[0]["ms"] >= 250


def test_a_stream_that_breaks_or_lasts_too_long_says_which(answering: Callable[..., Container]) -> None:
    """What came before is the caller's; a status that is none streams nothing."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    container = answering(
        head + b"2\r\nhi\r\n5\r\nclose", head + b"2\r\nhi\r\n", b"HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n"
    )
    for code, seconds in (("StreamBroken", PATIENCE), ("ModelInvocationTimeExceeded", 2.0)):
        parts = iter(container.client.invoke("/invocations", call(stream=True), soon(seconds)).body)
        assert next(parts) == b"hi"
        with pytest.raises(ModelStreamError) as told:
            list(parts)
        assert told.value.error_code == code
    with pytest.raises(ModelError):
        container.client.invoke("/invocations", call(stream=True), soon())
