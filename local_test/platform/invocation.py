"""Requests to one container: what it may see of a caller's, how long it may take, what its answers mean to the caller.

The words of errors are those that callers of SageMaker's endpoints report.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from local_test.platform.calls import MESSAGE, Call, ModelError, ModelStreamError, Reply
from local_test.platform.connections import Broken, Connections, Cut, Exchange, TooLong
from local_test.platform.events import Events

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
class Answer:
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

    def ask(self, method: str, path: str, body: bytes | None = None, *, limit: float) -> Answer:
        """A question of the platform's own. Raises Cut or Broken."""
        headers = {"Content-Type": "application/json"} if body else {}
        answer = self._connections.send(method, path, body, headers, time.monotonic() + limit)
        try:
            return Answer(answer.status, answer.read(OWN_ANSWER))
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
