"""One request in a runner's hands, from the moment it is whole to its answer."""

import time
from typing import TYPE_CHECKING, Any

from serve import errors, wire
from serve.errors import DeviceLost, ServeError
from serve.handlers.base import Reply, Request
from serve.names import OPENAI

if TYPE_CHECKING:
    from serve.runner.answers import Answers


class Job:
    """A decoded request and the connection its answer goes to; see serve.handlers.base.Job for what handlers use."""

    __slots__ = ("_answers", "arrived", "began", "connection", "item", "request", "started")

    def __init__(self, answers: "Answers", connection: wire.Connection, request: Request, arrived: float) -> None:
        self._answers = answers
        self.connection = connection
        self.request = request
        self.item: Any = None
        self.arrived = arrived  # time.monotonic() when nginx had the whole request
        self.began = 0.0  # when work on it began; 0 while it waits
        self.started = False  # a stream's head has left

    def begin(self, now: float) -> None:
        """Work on it begins; whoever arrived later has not been begun yet."""
        self.began = now
        self._answers.begun(self)

    def reply(self, reply: Reply) -> None:
        if isinstance(reply.body, bytes):
            headers = {**reply.headers, "Server-Timing": self._timing()}
            if len(reply.body) > wire.CHUNK:  # too large to be copied behind its head
                self._answers.write(self, wire.head(reply.status, reply.content_type, len(reply.body), headers))
                self._end(reply.body, reply.status)
            else:
                self._end(wire.answer(reply.status, reply.content_type, reply.body, headers), reply.status)
        else:
            self.start(reply.content_type)
            self._answers.pull(self, reply.body)

    def fail(self, error: ServeError) -> None:
        if isinstance(error, DeviceLost):
            self._answers.lost = error
        if self.started:
            # 200 has left: only a cut connection cannot be taken for a whole answer.
            self._answers.cut(self, error)
            return
        error.model = error.model or self._answers.model
        body = errors.body(error, self.request.id, openai=self.request.path in OPENAI)
        headers = {**errors.headers(error), "Server-Timing": self._timing()}
        self._end(wire.answer(error.status, "application/json", body, headers), error.status)

    def start(self, content_type: str) -> None:
        self.started = True
        self._answers.write(self, wire.stream_head(content_type, {"Server-Timing": self._timing()}))

    def send(self, chunk: bytes) -> None:
        if chunk:  # an empty chunk would end the stream
            self._answers.write(self, wire.chunk(chunk))

    def finish(self) -> None:
        self._end(wire.LAST_CHUNK, 200)

    def _end(self, data: bytes, status: int) -> None:
        self._answers.end(self, data, status)

    def _timing(self) -> str:
        """What the request cost: milliseconds in the queue and at work, as a standard Server-Timing header."""
        now = time.monotonic()
        began = self.began or now
        return f"queue;dur={(began - self.arrived) * 1e3:.2f}, work;dur={(now - began) * 1e3:.2f}"
