"""The container under test as an HTTP client sees it, and the options of a rehearsal."""

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
ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
CHUNK = 1 << 16
RTT, RETRANSMITS, TCP_INFO = 68, 100, 104  # offsets in struct tcp_info, and the length that includes them (linux/tcp.h)
CONNECT_LIMIT = 15.0  # seconds; longer than most limits for an answer, because the check `accepts` judges connecting
PING_EVERY = 0.05  # seconds between pings under load


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalOptions:
    """Times are in seconds. Defaults are SageMaker's published values where there are any; tests use shorter ones."""

    payload: bytes | None = None  # must be answered with 200; None: `{}` is sent, and any documented status is accepted
    content_type: str = "application/json"
    target: str = ""  # X-Amzn-SageMaker-Target-Model, for one container with several models
    model: Path | None = None  # with an image, mounted; with a URL, the path on the server's machine
    env: Mapping[str, str] = field(default_factory=dict)  # of the container, besides the platform's variables
    multi_model: bool = False  # check the multi-model API; an image with the label needs no option
    memory_mb: int = 4096
    scarce_mb: int = 1024  # memory in which loads must end in 507
    scarce_loads: int = 128  # successful loads after which that check is skipped
    startup_limit: float = 480.0  # ContainerStartupHealthCheckTimeoutInSeconds overrides it on SageMaker
    slack: float = 20.0  # a second start may take this much longer than twice the first
    ping_limit: float = 2.0
    accept_limit: float = 0.25
    invoke_limit: float = 60.0
    load_limit: float = 360.0
    stop_limit: float = 30.0
    busy_seconds: float = 2.0  # duration of the load test
    callers: int = 16  # concurrent callers of the load test
    connections: int = 128  # idle connections
    image_bytes: int = 10_000 * MB  # limit of serverless endpoints

    @property
    def body(self) -> bytes:
        """The request body: the payload, or an empty JSON object."""
        return b"{}" if self.payload is None else self.payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An HTTP response, with its times in seconds."""

    status: int
    headers: list[tuple[str, str]]  # in the order of the response
    body: bytes
    connecting: float  # until the TCP connection was accepted
    seconds: float  # from then on

    def header(self, name: str) -> str:
        """A header's value, "" if it is missing."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")

    @property
    def json(self) -> Any:
        """The body as JSON. Raises Breach if it is not JSON."""
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


@dataclass(slots=True)
class LoadResult:
    """Observations while many callers invoke at once."""

    statuses: dict[int, int] = field(default_factory=dict)  # status -> count
    lost: list[str] = field(default_factory=list)  # reasons of invocations without an answer
    pings: list[Response] = field(default_factory=list)
    failed_pings: list[str] = field(default_factory=list)  # reasons of pings without an answer
    slowest_accept: float = 0.0


class ContainerUnderTest:
    """A server at an address. Each request has its own connection."""

    def __init__(self, host: str, port: int, options: RehearsalOptions) -> None:
        self.host = host
        self.port = port
        self.options = options
        self.first_invocation: Response | NoAnswer | None = None  # sent right after the first /ping with 200

    # One request

    def connect(self, limit: float) -> socket.socket:
        """Opens a TCP connection. Raises NoAnswer."""
        try:
            return socket.create_connection((self.host, self.port), limit)
        except OSError as error:
            raise NoAnswer(f"no connection to port {self.port}: {error}") from error

    def request(
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
        """The response; `limit` seconds of silence end the request. Raises NoAnswer with the reason.

        `sent` is called when the complete request is sent.
        """
        limit = limit or self.options.invoke_limit
        began = time.monotonic()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=limit)
        connection.sock = self.connect(max(limit, CONNECT_LIMIT))
        connection.sock.settimeout(limit)
        connected = time.monotonic()
        connecting = accept_time(connection.sock, connected - began)
        content = _chunks(body or b"") if chunked else body
        try:
            try:
                connection.request(method, path, content, dict(headers or {}), encode_chunked=chunked)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the server refused the request before its end; the response, if any, has the reason
            sent()
            response = connection.getresponse()
            received = response.read()
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
            body=received,
            connecting=connecting,
            seconds=done - connected,
        )

    def get(self, path: str) -> Response:
        return self.request("GET", path)

    def ping(self) -> Response:
        """GET /ping, within SageMaker's time limit."""
        return self.request("GET", "/ping", limit=self.options.ping_limit)

    def invoke(
        self,
        body: bytes | None = None,
        *,
        content_type: str = "",
        headers: Mapping[str, str] | None = None,
        chunked: bool = False,
        sent: Callable[[], None] = lambda: None,
    ) -> Response:
        """POST /invocations with the headers that SageMaker sends; the default body is the payload."""
        body = self.options.body if body is None else body
        all_headers = self.headers(content_type) | dict(headers or {})
        return self.request("POST", "/invocations", body, all_headers, chunked=chunked, sent=sent)

    def headers(self, content_type: str = "") -> dict[str, str]:
        """The headers that SageMaker sends with an invocation."""
        named = {"X-Amzn-SageMaker-Target-Model": self.options.target} if self.options.target else {}
        return {"Content-Type": content_type or self.options.content_type, **named}

    def head(self, *, path: str = "/invocations", length: int, content_type: str = "") -> bytes:
        """The head of a request, for raw sockets."""
        lines = [f"POST {path} HTTP/1.1", f"Host: {self.host}", f"Content-Length: {length}"]
        lines += [f"{key}: {value}" for key, value in self.headers(content_type).items()]
        return "\r\n".join([*lines, "", ""]).encode()

    @cached_property
    def reference(self) -> Response:
        """The response to the payload without load; other responses are compared with it."""
        return self.invoke()

    @cached_property
    def junk_response(self) -> Response:
        """The response to a body that no format can read."""
        return self.invoke(b'{"\x00\xff\xfe junk ]]', content_type=self.options.content_type)

    # Start

    def is_healthy(self) -> bool:
        """Whether /ping is 200 now."""
        try:
            return self.ping().status == 200
        except NoAnswer:
            return False

    def wait_until_healthy(self, limit: float) -> float | None:
        """Waits until /ping is 200, then sends the first invocation. Returns the seconds, None after the limit."""
        began = time.monotonic()
        while not self.is_healthy():
            if time.monotonic() - began > limit or not self.alive():
                return None
            time.sleep(0.05)
        took = time.monotonic() - began
        try:
            self.first_invocation = self.invoke()
        except NoAnswer as none:
            self.first_invocation = none
        return took

    def alive(self) -> bool:
        """Whether the container may still become healthy."""
        return True

    # Load

    @cached_property
    def under_load(self) -> LoadResult:
        """The result of the load test."""
        return load_test(self.invoke, self.ping, self.options.callers, self.options.busy_seconds)


def load_test(invoke: Callable[[], Response], ping: Callable[[], Response], callers: int, seconds: float) -> LoadResult:
    """Invokes from several threads without a pause for some seconds, and pings until all have ended."""
    result, lock = LoadResult(), threading.Lock()
    until = time.monotonic() + seconds

    def call(_: int) -> None:
        more = True  # every thread invokes at least once, however late it starts
        while more:
            try:
                response = invoke()
            except NoAnswer as none:
                with lock:
                    result.lost.append(str(none))
            else:
                with lock:
                    result.statuses[response.status] = result.statuses.get(response.status, 0) + 1
                    result.slowest_accept = max(result.slowest_accept, response.connecting)
            more = time.monotonic() < until

    with ThreadPoolExecutor(callers) as threads:
        calls = [threads.submit(call, number) for number in range(callers)]
        done = False
        while not done:
            done = all(each.done() for each in calls)
            try:
                result.pings.append(ping())
            except NoAnswer as none:
                result.failed_pings.append(str(none))
            time.sleep(PING_EVERY)
        for each in calls:
            each.result()
    return result


def accept_time(sock: socket.socket, seconds: float) -> float:
    """The time until the server accepted a connection whose `connect` took `seconds`.

    Linux measures it in the kernel: on a busy machine `connect` returns much later. If the first SYN was lost, the
    whole time counts.
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO) if hasattr(socket, "TCP_INFO") else b""
    if len(info) < TCP_INFO or struct.unpack_from("I", info, RETRANSMITS) != (0,):
        return seconds
    (microseconds,) = struct.unpack_from("I", info, RTT)
    return float(microseconds) / 1e6


def _chunks(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), CHUNK):
        yield body[start : start + CHUNK]
