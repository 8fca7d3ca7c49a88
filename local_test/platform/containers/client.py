"""Requests to one container: what it may see of a caller's, how long it may take, what its answers mean to the caller.

The words of errors are those that callers of SageMaker's endpoints report.
"""

import http.client
import select
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from local_test.platform.calls import MESSAGE, Call, ModelError, ModelStreamError, Reply
from local_test.platform.events import Events

CONNECT = 0.25  # seconds within which a container must accept
IDLE = 30.0  # seconds after which a kept connection is not used again: servers close theirs sooner or later
CHUNK = 1 << 16


class Cut(Exception):
    """The time was over."""


class Broken(Exception):
    """There was no connection, or it ended before the answer did; says how."""


class TooLong(Exception):
    """The body is larger than any may be."""


class Connections:
    """For any number of threads."""

    def __init__(self, name: str, port: int, events: Events) -> None:
        self._name = name
        self._port = port
        self._events = events
        self._idle: list[tuple[float, _Connection]] = []  # append and pop alone, and those are atomic
        self._closed = False

    def send(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], until: float) -> "Exchange":
        """Ask, and wait for the head of the answer. Raises Cut or Broken."""
        connection = self._connection(until)
        try:
            connection.allow(until)
            try:
                connection.request(method, path, body, dict(headers))
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before all was sent: the answer, if there is one, says why
            connection.allow(until)
            return Exchange(self, connection, connection.getresponse(), until)
        except Cut:
            connection.close()
            raise
        except TimeoutError:
            connection.close()
            raise Cut from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Broken(_why(error)) from error

    def close(self) -> None:
        """Close what is idle, and what is in use when it has been."""
        self._closed = True
        while self._idle:
            self._idle.pop()[1].close()

    def keep(self, connection: "_Connection") -> None:
        self._idle.append((time.monotonic(), connection))
        if self._closed:
            self.close()

    def _connection(self, until: float) -> "_Connection":
        while self._idle:
            try:
                since, kept = self._idle.pop()
            except IndexError:
                break  # another thread was quicker
            if time.monotonic() - since < IDLE and not kept.closed_there():
                return kept
            kept.close()
        fresh = _Connection("127.0.0.1", self._port)
        began = time.monotonic()
        while True:
            left = until - time.monotonic()
            if left <= 0:
                raise Cut
            fresh.timeout = min(CONNECT, left)
            try:
                fresh.connect()
            except TimeoutError:
                took = time.monotonic() - began
                self._events.say("slow", self._name, "does not accept connections within 250 ms", seconds=took)
            except OSError as error:
                raise Broken(_why(error)) from error
            else:
                return fresh


class Exchange:
    """An answer whose head has come. Its body must be read to the end, or left by `break_off`."""

    def __init__(
        self, kept_by: Connections, connection: "_Connection", response: http.client.HTTPResponse, until: float
    ) -> None:
        self._kept_by = kept_by
        self._connection = connection
        self._response = response
        self._until = until
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.headers_bytes = sum(len(name) + len(value) + len(": \r\n") for name, value in response.getheaders())

    def read(self, most: int) -> bytes:
        """The whole body. Raises TooLong, Cut or Broken."""
        pieces, total = [], 0
        for piece in self.pieces():
            total += len(piece)
            if total > most:
                self.break_off()
                raise TooLong
            pieces.append(piece)
        return b"".join(pieces)

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes. Raises Cut or Broken."""
        length, total = self._response.length, 0
        whole = False
        try:
            while length is None or total < length:
                self._connection.allow(self._until)
                piece = self._response.read1(CHUNK)
                if not piece:
                    break
                total += len(piece)
                yield piece
            if length is not None and total < length:
                raise Broken(f"it ended after {total} of {length} bytes")
            self._response.close()
            whole = not self._response.will_close
        except TimeoutError:
            raise Cut from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Broken(_why(error)) from error
        finally:
            if whole:
                self._kept_by.keep(self._connection)
            else:
                self.break_off()

    def break_off(self) -> None:
        """Nobody wants the rest."""
        self._response.close()
        self._connection.close()


class _Connection(http.client.HTTPConnection):
    """One that still knows its socket when an answer is to be read until the other side closes."""

    wire: socket.socket

    def connect(self) -> None:
        super().connect()
        self.wire = self.sock

    def allow(self, until: float) -> None:
        """Let no step take longer than is left. Raises Cut."""
        left = until - time.monotonic()
        if left <= 0:
            raise Cut
        self.wire.settimeout(left)

    def closed_there(self) -> bool:
        """Whether one on which nothing is asked has something to say."""
        poll = select.poll()
        poll.register(self.wire, select.POLLIN)
        return bool(poll.poll(0))


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__


# docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code: all others are stripped.
PASSED = {
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
HEADERS = 4096  # bytes of all response headers
OWN_ANSWER = 4 << 20  # bytes of an answer to the platform's own questions


@dataclass(frozen=True, slots=True)
class ContainerResponse:
    """Any response to the platform's own questions."""

    status: int
    body: bytes


class Client:
    """A container's HTTP side, for any number of threads."""

    def __init__(self, name: str, port: int, events: Events, *, payload_bytes: int, log_stream: str) -> None:
        self.name = name  # as errors call it
        self._connections = Connections(name, port, events)
        self._payload_bytes = payload_bytes
        self._log_stream = log_stream

    def invoke(self, path: str, call: Call, until: float) -> Reply:
        """POST a call. Raises ModelError for whatever is not a 2xx, whole and in time."""
        try:
            answer = self._connections.send("POST", path, call.body, passed_on(call), until)
            fine, too_long = 200 <= answer.status < 300, answer.headers_bytes > HEADERS
            if call.stream and fine and not too_long:
                return Reply(status=answer.status, headers=answer.headers, body=self._stream(answer))
            body = answer.read(self._payload_bytes)
        except Cut:
            raise self.error(0, timed_out(self.name)) from None
        except Broken as broken:
            raise self.error(0, f"The connection to container {self.name} broke: {broken}") from None
        except TooLong:
            raise self.error(500, "", "and could not load the entire response body") from None
        if too_long:
            raise self.error(0, f"Received response headers with length greater than {HEADERS} bytes")
        if not fine:
            raise self.error(answer.status, body.decode(errors="replace"))
        return Reply(status=answer.status, headers=answer.headers, body=body)

    def ask(self, method: str, path: str, body: bytes | None = None, *, limit: float) -> ContainerResponse:
        """A question of the platform's own. Raises Cut or Broken."""
        headers = {"Content-Type": "application/json"} if body else {}
        answer = self._connections.send(method, path, body, headers, time.monotonic() + limit)
        try:
            return ContainerResponse(answer.status, answer.read(OWN_ANSWER))
        except TooLong:
            raise Broken(f"{method} {path}: an answer of more than {OWN_ANSWER} bytes") from None

    def error(self, status: int, said: str, how: str = "") -> ModelError:
        """What a caller is told of a container's answer, or of its silence (status 0)."""
        return ModelError(model_error(self.name, status, said, self._log_stream, how), status, said, self._log_stream)

    def close(self) -> None:
        self._connections.close()

    def _stream(self, answer: Exchange) -> Iterator[bytes]:
        """The parts of a stream as they come. Raises ModelStreamError when it breaks or lasts too long."""
        try:
            yield from answer.pieces()
        except Cut:
            raise ModelStreamError(timed_out(self.name), "ModelInvocationTimeExceeded") from None
        except Broken as broken:
            raise ModelStreamError(f"The stream of container {self.name} broke: {broken}", "StreamBroken") from None


def passed_on(call: Call) -> Mapping[str, str]:
    """The headers of a call that a container sees."""
    headers = {name: value for name, value in call.headers.items() if name.lower() in PASSED}
    if call.target_model is not None:
        headers["X-Amzn-SageMaker-Target-Model"] = call.target_model
    return headers


def model_error(container: str, status: int, said: str, log_stream: str, how: str = "") -> str:
    """The message of a ModelError, as the platform words it."""
    side = "client" if 400 <= status < 500 else "server"
    how = how or f'with message "{said[:MESSAGE]}"'
    return f"Received {side} error ({status}) from {container} {how}. See {log_stream} for more information."


def timed_out(container: str) -> str:
    return (
        f"Your invocation timed out while waiting for a response from container {container}. Review the latency "
        "metrics for each container in Amazon CloudWatch, resolve the issue, and try again."
    )
