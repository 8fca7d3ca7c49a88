"""HTTP client of one container: kept connections, a deadline for each exchange, and errors as callers receive them.

The error texts are those that callers of SageMaker endpoints report.
"""

import http.client
import select
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from local_test.platform.calls import MESSAGE, Call, ModelError, ModelStreamError, Reply
from local_test.platform.events import Events

# docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code: SageMaker strips all other headers.
FORWARDED = {
    "content-type",
    "accept",
    "x-amzn-sagemaker-custom-attributes",
    "x-amzn-sagemaker-target-model",
    "x-amzn-sagemaker-inference-id",
    "x-amzn-sagemaker-enable-explanations",
    "x-amzn-sagemaker-inference-component",
    "x-amzn-sagemaker-session-id",
    "x-amzn-sagemaker-forwarded-api",
}
RESPONSE_HEADERS = 4096  # bytes of all response headers together
OWN_RESPONSE = 4 << 20  # bytes of a response to a request of the platform's own
CONNECT = 0.25  # seconds within which a container must accept a connection
IDLE = 30.0  # seconds after which a kept connection is closed: the container may close it at any time after that
CHUNK = 1 << 16


class DeadlinePassed(Exception):
    """The exchange did not complete in time."""


class Broken(Exception):
    """The connection failed, or closed before the response was complete; the message is the reason."""


class TooLong(Exception):
    """The body exceeds its size limit."""


@dataclass(frozen=True, slots=True)
class ContainerResponse:
    """A response to a request of the platform's own, with any status."""

    status: int
    body: bytes


class Client:
    """Sends invocations and the platform's own requests; thread-safe."""

    def __init__(self, name: str, port: int, events: Events, *, payload_bytes: int, log_stream: str) -> None:
        self.name = name  # in errors
        self._connections = Connections(name, port, events)
        self._payload_bytes = payload_bytes
        self._log_stream = log_stream

    def invoke(self, path: str, call: Call, until: float) -> Reply:
        """POSTs a call. Raises ModelError unless a complete 2xx response arrives in time."""
        began = time.monotonic()
        try:
            return self._invoke(path, call, until)
        finally:
            call.timings.model += time.monotonic() - began

    def _invoke(self, path: str, call: Call, until: float) -> Reply:
        try:
            response = self._connections.send("POST", path, call.body, forwarded(call), until)
            success, headers_fit = 200 <= response.status < 300, response.headers_bytes <= RESPONSE_HEADERS
            if call.stream and success and headers_fit:
                return Reply(status=response.status, headers=response.headers, body=self._stream(response))
            body = response.read(self._payload_bytes)
        except DeadlinePassed:
            raise self.error(0, timed_out(self.name)) from None
        except Broken as broken:
            raise self.error(0, f"The connection to container {self.name} broke: {broken}") from None
        except TooLong:
            raise self.error(500, "", "and could not load the entire response body") from None
        if not headers_fit:
            raise self.error(0, f"Received response headers with length greater than {RESPONSE_HEADERS} bytes")
        if not success:
            raise self.error(response.status, body.decode(errors="replace"))
        return Reply(status=response.status, headers=response.headers, body=body)

    def request(self, method: str, path: str, body: bytes | None = None, *, limit: float) -> ContainerResponse:
        """Sends a request of the platform's own, with a limit in seconds. Raises DeadlinePassed or Broken."""
        headers = {"Content-Type": "application/json"} if body else {}
        response = self._connections.send(method, path, body, headers, time.monotonic() + limit)
        try:
            return ContainerResponse(response.status, response.read(OWN_RESPONSE))
        except TooLong:
            raise Broken(f"{method} {path}: the response has more than {OWN_RESPONSE} bytes") from None

    def error(self, status: int, message: str, detail: str = "") -> ModelError:
        """The ModelError for a container's error response, or for an incomplete response (status 0)."""
        text = model_error(self.name, status, message, self._log_stream, detail)
        return ModelError(text, status, message, self._log_stream)

    def close(self) -> None:
        self._connections.close()

    def _stream(self, response: "Exchange") -> Iterator[bytes]:
        """The chunks as they arrive. Raises ModelStreamError if the stream breaks or exceeds its time limit."""
        try:
            yield from response.pieces()
        except DeadlinePassed:
            raise ModelStreamError(timed_out(self.name), "ModelInvocationTimeExceeded") from None
        except Broken as broken:
            raise ModelStreamError(f"The stream of container {self.name} broke: {broken}", "StreamBroken") from None


def forwarded(call: Call) -> Mapping[str, str]:
    """The headers of a call that the container receives."""
    headers = {name: value for name, value in call.headers.items() if name.lower() in FORWARDED}
    if call.target_model is not None:
        headers["X-Amzn-SageMaker-Target-Model"] = call.target_model
    return headers


def model_error(container: str, status: int, message: str, log_stream: str, detail: str = "") -> str:
    """The text of a ModelError, in SageMaker's words."""
    side = "client" if 400 <= status < 500 else "server"
    detail = detail or f'with message "{message[:MESSAGE]}"'
    return f"Received {side} error ({status}) from {container} {detail}. See {log_stream} for more information."


def timed_out(container: str) -> str:
    """The text of a timeout, in SageMaker's words."""
    return (
        f"Your invocation timed out while waiting for a response from container {container}. Review the latency "
        "metrics for each container in Amazon CloudWatch, resolve the issue, and try again."
    )


class Connections:
    """Connections to one container, kept for later requests; thread-safe."""

    def __init__(self, name: str, port: int, events: Events) -> None:
        self._name = name
        self._port = port
        self._events = events
        self._idle: list[tuple[float, _Connection]] = []  # changed by append and pop only, which are atomic
        self._closed = False

    def send(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], until: float) -> "Exchange":
        """Sends a request and reads the head of the response. Raises DeadlinePassed or Broken."""
        connection = self._connection(until)
        try:
            connection.set_deadline(until)
            try:
                connection.request(method, path, body, dict(headers))
            except (BrokenPipeError, ConnectionResetError):
                pass  # the container refused the request before its end; the response, if any, has the reason
            connection.set_deadline(until)
            return Exchange(self, connection, connection.getresponse(), until)
        except DeadlinePassed:
            connection.close()
            raise
        except TimeoutError:
            connection.close()
            raise DeadlinePassed from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Broken(_reason(error)) from error

    def close(self) -> None:
        """Closes idle connections; a connection in use is closed when its exchange ends."""
        self._closed = True
        while self._idle:
            self._idle.pop()[1].close()

    def keep(self, connection: "_Connection") -> None:
        """Takes a connection back for the next request."""
        self._idle.append((time.monotonic(), connection))
        if self._closed:
            self.close()

    def _connection(self, until: float) -> "_Connection":
        while self._idle:
            try:
                since, kept = self._idle.pop()
            except IndexError:
                break  # another thread took the last one
            if time.monotonic() - since < IDLE and not kept.readable():
                return kept
            kept.close()
        new = _Connection("127.0.0.1", self._port)
        began = time.monotonic()
        while True:
            left = until - time.monotonic()
            if left <= 0:
                raise DeadlinePassed
            new.timeout = min(CONNECT, left)
            try:
                new.connect()
            except TimeoutError:
                took = time.monotonic() - began
                self._events.emit("slow", self._name, "does not accept connections within 250 ms", seconds=took)
            except OSError as error:
                raise Broken(_reason(error)) from error
            else:
                return new


class Exchange:
    """A response whose head has arrived. Its body must be read completely, or dropped with `abandon`."""

    def __init__(
        self, connections: Connections, connection: "_Connection", response: http.client.HTTPResponse, until: float
    ) -> None:
        self._connections = connections
        self._connection = connection
        self._response = response
        self._until = until
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.headers_bytes = sum(len(name) + len(value) + len(": \r\n") for name, value in response.getheaders())

    def read(self, limit: int) -> bytes:
        """The complete body of at most `limit` bytes. Raises TooLong, DeadlinePassed or Broken."""
        pieces, total = [], 0
        for piece in self.pieces():
            total += len(piece)
            if total > limit:
                self.abandon()
                raise TooLong
            pieces.append(piece)
        return b"".join(pieces)

    def pieces(self) -> Iterator[bytes]:
        """The body as it arrives. Raises DeadlinePassed or Broken."""
        length, total = self._response.length, 0
        complete = False
        try:
            while length is None or total < length:
                self._connection.set_deadline(self._until)
                piece = self._response.read1(CHUNK)
                if not piece:
                    break
                total += len(piece)
                yield piece
            if length is not None and total < length:
                raise Broken(f"the response ended after {total} of {length} bytes")
            self._response.close()
            complete = not self._response.will_close
        except TimeoutError:
            raise DeadlinePassed from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Broken(_reason(error)) from error
        finally:
            if complete:
                self._connections.keep(self._connection)
            else:
                self.abandon()

    def abandon(self) -> None:
        """Closes the connection without reading the rest."""
        self._response.close()
        self._connection.close()


class _Connection(http.client.HTTPConnection):
    """Keeps its socket: http.client forgets it when a response is to be read until the server closes."""

    wire: socket.socket

    def connect(self) -> None:
        super().connect()
        self.wire = self.sock

    def set_deadline(self, until: float) -> None:
        """Limits the next operation to the time that is left. Raises DeadlinePassed."""
        left = until - time.monotonic()
        if left <= 0:
            raise DeadlinePassed
        self.wire.settimeout(left)

    def readable(self) -> bool:
        """Whether an idle connection can be read: the container closed it, or sent bytes without a request."""
        poll = select.poll()
        poll.register(self.wire, select.POLLIN)
        return bool(poll.poll(0))


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
