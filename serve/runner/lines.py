"""A body of lines and what becomes of each: read one by one, answered each by itself, put together in order."""

from collections.abc import Iterator
from typing import Any, cast

import msgspec

from serve.errors import BadRequest, ServeError
from serve.handlers.base import Reply, Request
from serve.runner.job import Job

JSON, JSON_LINES, CSV = "application/json", "application/jsonlines", "text/csv"


class Lines:
    """What `decode` makes of such a body: how to read each line, and why the whole could not be read."""

    def __init__(self, request: Request, content_type: str, accept: str, error: ServeError) -> None:
        self.records = _records(request.body)
        self.content_type = content_type
        self.accept = accept
        self.error = error


class Part:
    """One line on its way through the engine: a Job whose answer goes to `Whole`."""

    def __init__(self, whole: "Whole", number: int, request: Request) -> None:
        self._whole = whole
        self.number = number
        self.request = request
        self.item: Any = None
        self.arrived = whole.job.arrived
        self.began = 0.0

    def begin(self, now: float) -> None:
        self.began = now
        if not self._whole.job.began:
            self._whole.job.begin(now)

    def reply(self, reply: Reply) -> None:
        if isinstance(reply.body, bytes):
            self._whole.settle(self, reply)
        else:
            self.finish()

    def fail(self, error: ServeError) -> None:
        self._whole.settle(self, error)

    def start(self, content_type: str) -> None:
        pass

    def send(self, chunk: bytes) -> None:
        pass

    def finish(self) -> None:
        self.fail(BadRequest("a record among lines is not streamed", hint="leave stream out, or send it by itself"))


class Whole:
    """A job whose body is lines: what has been read of them, and what has become of each."""

    def __init__(self, job: Job, lines: Lines) -> None:
        self.job = job
        self.lines = lines
        self.parts: dict[int, Part] = {}  # in the engine's hands, by the number of the line
        self.outcomes: dict[int, Reply | ServeError] = {}  # by the number of the line
        self.read = False  # to the end

    def next(self) -> Part | None:
        """The next record, in the engine's hands from now on; None when there is no more."""
        found = next(self.lines.records, None)
        if found is None:
            self.read = True
            return None
        number, record = found
        asked = self.job.request
        request = Request(
            body=record,
            path=asked.path,
            content_type=self.lines.content_type,
            charset=asked.charset,
            accept=self.lines.accept,
            headers=asked.headers,
            deadline=asked.deadline,
            stream_deadline=asked.deadline,
            id=asked.id,
        )
        self.parts[number] = part = Part(self, number, request)
        return part

    def settle(self, part: Part, outcome: Reply | ServeError) -> None:
        if self.parts.pop(part.number, None):
            self.outcomes[part.number] = outcome

    @property
    def over(self) -> bool:
        return self.read and not self.parts

    def failure(self, *, lenient: bool) -> ServeError | None:
        """Why the whole must fail, if it must: lenient, only for what a record alone is not to blame for."""
        for number, outcome in self.outcomes.items():
            if isinstance(outcome, ServeError) and (outcome.retryable or not lenient):
                return _of_line(number, outcome)
        if self.over and not any(isinstance(outcome, Reply) for outcome in self.outcomes.values()):
            if self.lines.content_type != JSON and self.outcomes:
                return self.lines.error
            for number, outcome in self.outcomes.items():
                return _of_line(number, cast(ServeError, outcome))
            return BadRequest("there are no records", hint="send one on each line")
        return None

    def answer(self, placeholder: str) -> Reply | ServeError:
        """One line for each record, in order; the end of the last is a newline too."""
        replies = [outcome for outcome in self.outcomes.values() if isinstance(outcome, Reply)]
        media_type = JSON_LINES if self.lines.content_type == JSON else replies[0].content_type
        if media_type not in (JSON_LINES, CSV):
            return self.lines.error  # one answer for all cannot be put together from several
        lines = []
        for number, outcome in sorted(self.outcomes.items()):
            if isinstance(outcome, ServeError):
                text = {"error": placeholder, "message": _of_line(number, outcome).message}
                line = placeholder.encode() if media_type == CSV else msgspec.json.encode(text)
            else:
                assert isinstance(outcome.body, bytes)
                line = outcome.body.strip().replace(b"\n", b" ")  # in JSON a line end is a space between things
            lines.append(line + b"\n")
        return Reply(body=b"".join(lines), content_type=media_type)


def _records(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Each line that is not blank, with its number from 1; the body is not held a second time."""
    start, number = 0, 0
    while start < len(body):
        number += 1
        end = body.find(b"\n", start)
        end = len(body) if end < 0 else end
        if line := body[start:end].strip():
            yield number, line
        start = end + 1


def _of_line(number: int, error: ServeError) -> ServeError:
    return type(error)(
        f"line {number}: {error.message}", hint=error.hint, model=error.model, retry_after=error.retry_after
    )
