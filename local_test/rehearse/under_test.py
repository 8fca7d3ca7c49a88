"""The container under test, as its callers see it: an address that speaks HTTP, or does not."""

import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from local_test.rehearse.verdict import Breach, NoAnswer

MB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalOptions:
    """Seconds and bytes are SageMaker's where it has published them; tests shorten the waits."""

    payload: bytes | None = None  # must be answered 200; None: `probe` is sent, and any documented status is good
    content_type: str = "application/json"
    target: str = ""  # X-Amzn-SageMaker-Target-Model, for one container with several models
    model: Path | None = None  # with an image, mounted; with a URL, the path as the server there sees it
    env: Mapping[str, str] = field(default_factory=dict)  # of the container, beside what the platform sets
    multi_model: bool = False  # asked for by name; with an image its label is enough
    memory_mb: int = 4096
    scarce_mb: int = 1024  # memory in which loads must at some time end in 507
    scarce_loads: int = 128  # after so many that fit, that is given up
    startup_limit: float = 480.0  # ContainerStartupHealthCheckTimeoutInSeconds overrides the platform's
    slack: float = 20.0  # a further start may take so much longer than twice the first
    ping_limit: float = 2.0
    accept_limit: float = 0.25
    invoke_limit: float = 60.0
    load_limit: float = 360.0
    stop_limit: float = 30.0
    busy_seconds: float = 2.0  # of load from `callers` at once
    callers: int = 16
    connections: int = 128  # that do nothing
    image_bytes: int = 10_000 * MB  # serverless endpoints take no larger image

    @property
    def sent(self) -> bytes:
        return b"{}" if self.payload is None else self.payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    status: int
    headers: list[tuple[str, str]]  # as they came
    body: bytes
    connecting: float  # seconds until the TCP connection was accepted
    seconds: float  # from then on

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")

    @property
    def json(self) -> Any:
        """Its body; Breach where that is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise Breach(f"{self.status}, body is not JSON: {self.start}") from None

    @property
    def start(self) -> str:
        """The body's first characters, on one line."""
        shown = " ".join(self.body[:200].decode(errors="replace").split())
        return repr(shown[:70] + "…" if len(shown) > 70 else shown)

    def __str__(self) -> str:
        return f"{self.status} in {self.seconds * 1000:.0f} ms"


PING_EVERY = 0.05  # seconds


@dataclass(slots=True)
class Busy:
    """What was seen while many callers invoked at once."""

    statuses: dict[int, int] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    pings: list[Response] = field(default_factory=list)
    silent_pings: list[str] = field(default_factory=list)
    slowest_accept: float = 0.0


def busy(invoke: Callable[[], Response], ping: Callable[[], Response], callers: int, seconds: float) -> Busy:
    """Callers invoke without a pause for some seconds; as long as one does, /ping is asked beside them."""
    seen, lock = Busy(), threading.Lock()
    until = time.monotonic() + seconds

    def call(_: int) -> None:
        more = True  # at least once, however late this thread comes
        while more:
            try:
                answer = invoke()
            except NoAnswer as none:
                with lock:
                    seen.dropped.append(str(none))
            else:
                with lock:
                    seen.statuses[answer.status] = seen.statuses.get(answer.status, 0) + 1
                    seen.slowest_accept = max(seen.slowest_accept, answer.connecting)
            more = time.monotonic() < until

    with ThreadPoolExecutor(callers) as threads:
        calls = [threads.submit(call, number) for number in range(callers)]
        over = False
        while not over:
            over = all(each.done() for each in calls)
            try:
                seen.pings.append(ping())
            except NoAnswer as none:
                seen.silent_pings.append(str(none))
            time.sleep(PING_EVERY)
        for each in calls:
            each.result()
    return seen


ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
PIECE = 1 << 16
RTT, RESENT, TCP_INFO = 68, 100, 104  # where struct tcp_info has them, and its length then (linux/tcp.h)


class ContainerUnderTest:
    """Something that listens. Each `ask` is a connection of its own."""

    def __init__(self, host: str, port: int, options: RehearsalOptions) -> None:
        self.host = host
        self.port = port
        self.options = options
        self.first: Response | NoAnswer | None = None  # to an invocation at the moment when /ping was first 200

    # One request.

    def connect(self, limit: float) -> socket.socket:
        try:
            return socket.create_connection((self.host, self.port), limit)
        except OSError as error:
            raise NoAnswer(f"no connection to port {self.port}: {error}") from error

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        limit: float = 0.0,
        chunked: bool = False,
        sent: Callable[[], None] = lambda: None,
    ) -> Response:
        """The answer within `limit` seconds (of silence); NoAnswer says how there was none.

        `sent` is called when the whole request is on its way.
        """
        limit = limit or self.options.invoke_limit
        begun = time.monotonic()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=limit)
        # Connecting may take longer than an answer may: the check of accepting judges that alone.
        connection.sock = self.connect(max(limit, 15.0))
        connection.sock.settimeout(limit)
        connected = time.monotonic()
        connecting = waited(connection.sock, connected - begun)
        whole = _pieces(body or b"") if chunked else body
        try:
            try:
                connection.request(method, path, whole, dict(headers or {}), encode_chunked=chunked)
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before all was sent: the answer, if there is one, says why
            sent()
            response = connection.getresponse()
            answered = response.read()
        except TimeoutError as error:
            raise NoAnswer(f"{method} {path}: no answer within {limit:g} s") from error
        except http.client.RemoteDisconnected as error:
            raise NoAnswer(f"{method} {path}: the connection was closed without an answer") from error
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(f"{method} {path}: the answer broke off ({type(error).__name__}: {error})") from error
        finally:
            connection.close()
        done = time.monotonic()
        return Response(
            status=response.status,
            headers=response.getheaders(),
            body=answered,
            connecting=connecting,
            seconds=done - connected,
        )

    def get(self, path: str) -> Response:
        return self.ask("GET", path)

    def ping(self) -> Response:
        return self.ask("GET", "/ping", limit=self.options.ping_limit)

    def invoke(
        self,
        body: bytes | None = None,
        *,
        content_type: str = "",
        headers: Mapping[str, str] | None = None,
        chunked: bool = False,
        sent: Callable[[], None] = lambda: None,
    ) -> Response:
        """POST /invocations, by default with the payload, and with the headers that the platform sends."""
        body = self.options.sent if body is None else body
        all_headers = self.headers(content_type) | dict(headers or {})
        return self.ask("POST", "/invocations", body, all_headers, chunked=chunked, sent=sent)

    def headers(self, content_type: str = "") -> dict[str, str]:
        named = {"X-Amzn-SageMaker-Target-Model": self.options.target} if self.options.target else {}
        return {"Content-Type": content_type or self.options.content_type, **named}

    def head(self, *, path: str = "/invocations", length: int, content_type: str = "") -> bytes:
        """The start of a request for raw sockets."""
        lines = [f"POST {path} HTTP/1.1", f"Host: {self.host}", f"Content-Length: {length}"]
        lines += [f"{key}: {value}" for key, value in self.headers(content_type).items()]
        return "\r\n".join([*lines, "", ""]).encode()

    @cached_property
    def usual(self) -> Response:
        """To the payload, at rest: what other requests are compared with."""
        return self.invoke()

    @cached_property
    def junk(self) -> Response:
        """To a body that no format reads."""
        return self.invoke(b'{"\x00\xff\xfe junk ]]', content_type=self.options.content_type)

    # Starting.

    def pings(self) -> bool:
        try:
            return self.ping().status == 200
        except NoAnswer:
            return False

    def wait(self, limit: float) -> float | None:
        """Seconds until /ping was 200, and then at once the first invocation; None: not within the limit."""
        begun = time.monotonic()
        while not self.pings():
            if time.monotonic() - begun > limit or not self.lives():
                return None
            time.sleep(0.05)
        ready = time.monotonic() - begun
        try:
            self.first = self.invoke()
        except NoAnswer as none:
            self.first = none
        return ready

    def lives(self) -> bool:
        """Whether it may still come up."""
        return True

    # Load.

    @cached_property
    def busy(self) -> Busy:
        """What comes of it when many invoke at once."""
        return busy(self.invoke, self.ping, self.options.callers, self.options.busy_seconds)


def waited(sock: socket.socket, seconds: float) -> float:
    """How long the other side took to accept a connection that stood after so many seconds.

    Linux knows it: a busy caller may hear of it much later. Where the first try was lost, all the time counts.
    """
    said = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO) if hasattr(socket, "TCP_INFO") else b""
    if len(said) < TCP_INFO or struct.unpack_from("I", said, RESENT) != (0,):
        return seconds
    (microseconds,) = struct.unpack_from("I", said, RTT)
    return float(microseconds) / 1e6


def _pieces(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]
