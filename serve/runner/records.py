"""Bodies in which each line is a record: one request for each line, and one line of answer for each, in order.

Two kinds of body are read line by line. JSON Lines, if the handler reads only JSON: the handler needs no code for
lines, and the records share batches with other requests. And bodies that the handler rejects as a whole, if
SERVE_BAD_RECORD is set: each valid line is answered, and that placeholder is the answer to each invalid one.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

import msgspec

from serve.errors import BadRequest, ModelRefused, NotAcceptable, ServeError, UnsupportedMediaType
from serve.formats.tables import NumberedHeader
from serve.handlers.base import Job, Reply, Request
from serve.http import extent, media
from serve.runner.jobs import ConnectionJob, outcome_of


class Lines:
    """The decoded item of such a body: its records, how to read each, and why the body as a whole was rejected."""

    def __init__(self, request: Request, content_type: str, accept: str, error: ServeError) -> None:
        if extent.may_exceed(request.body):
            extent.check(request.body.count(b"\n") + 1)
        self.records = _records(request.body)
        self.content_type = content_type
        self.accept = accept
        self.error = error


class LineJob:
    """One record in the engine: a Job whose outcome is collected by its `LinesJob`."""

    def __init__(self, whole: "LinesJob", number: int, request: Request) -> None:
        self._whole = whole
        self.number = number
        self.request = request
        self.item: Any = None
        self.waited = whole.job.waited
        self.begun_monotonic = 0.0

    def begin(self, now: float) -> None:
        self.begun_monotonic = now
        if not self._whole.job.begun_monotonic:
            self._whole.job.begin(now)

    def reply(self, reply: Reply) -> None:
        if reply.status >= 400:  # by a model's own code
            text = reply.body[:500].decode(errors="replace") if isinstance(reply.body, bytes) else ""
            self.fail(ModelRefused(text.strip() or f"the model's code set the status {reply.status}", reply.status))
        elif isinstance(reply.body, bytes):
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
        self.fail(BadRequest("a record among lines cannot be streamed", hint="omit stream, or send the record alone"))


class LinesJob:
    """A job whose body is lines: the position in the body, and the outcome of each record."""

    def __init__(self, job: ConnectionJob, lines: Lines) -> None:
        self.job = job
        self.lines = lines
        self.in_engine: dict[int, LineJob] = {}  # by the number of the line
        self._outcomes: dict[int, Reply | ServeError] = {}  # by the number of the line
        self._read_to_end = False

    def next(self) -> LineJob | None:
        """The next record, which counts as in the engine from now on; None at the end of the body."""
        found = next(self.lines.records, None)
        if found is None:
            self._read_to_end = True
            return None
        number, record = found
        whole = self.job.request
        request = Request(
            body=record,
            path=whole.path,
            content_type=self.lines.content_type,
            charset=whole.charset,
            accept=self.lines.accept,
            headers=whole.headers,
            deadline=whole.deadline,
            stream_deadline=whole.deadline,
            id=whole.id,
        )
        self.in_engine[number] = line = LineJob(self, number, request)
        return line

    def settle(self, line: LineJob, outcome: Reply | ServeError) -> None:
        if self.in_engine.pop(line.number, None):
            self._outcomes[line.number] = outcome

    @property
    def complete(self) -> bool:
        """Whether every record has its outcome."""
        return self._read_to_end and not self.in_engine

    def failure(self, *, lenient: bool) -> ServeError | None:
        """The error that fails the whole body, if any.

        `lenient`: an invalid record does not fail the others; a retryable error (out of memory, timeout) still does.
        """
        for number, outcome in self._outcomes.items():
            if isinstance(outcome, ServeError) and (outcome.retryable or not lenient):
                return _of_line(number, outcome)
        if self.complete and not any(isinstance(outcome, Reply) for outcome in self._outcomes.values()):
            if self.lines.content_type != media.JSON and self._outcomes:
                return self.lines.error
            for number, outcome in self._outcomes.items():
                return _of_line(number, cast(ServeError, outcome))
            return BadRequest("the body has no records", hint="send one on each line")
        return None

    def answer(self, placeholder: str) -> Reply | ServeError:
        """One line for each record, in order, each ended by a newline."""
        replies = [outcome for outcome in self._outcomes.values() if isinstance(outcome, Reply)]
        media_type = media.JSON_LINES if self.lines.content_type == media.JSON else replies[0].content_type
        if media_type not in (media.JSON_LINES, media.CSV):
            return self.lines.error  # answers of this type cannot be concatenated
        lines = []
        for number, outcome in sorted(self._outcomes.items()):
            if isinstance(outcome, ServeError):
                text = {"error": placeholder, "message": _of_line(number, outcome).message}
                line = placeholder.encode() if media_type == media.CSV else msgspec.json.encode(text)
            else:
                assert isinstance(outcome.body, bytes)
                line = outcome.body.strip().replace(b"\n", b" ")  # in JSON a newline is whitespace
            lines.append(line + b"\n")
        return Reply(body=b"".join(lines), content_type=media_type)


def _records(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Each line that is not blank, with its number from 1. The lines are cut one by one: no second copy of the body."""
    start, number = 0, 0
    while start < len(body):
        number += 1
        end = body.find(b"\n", start)
        end = len(body) if end < 0 else end
        if line := body[start:end].strip():
            yield number, line
        start = end + 1


def _of_line(number: int, error: ServeError) -> ServeError:
    found = copy.copy(error)  # of the same status, which its own code may have chosen
    found.message = f"line {number}: {error.message}"
    return found


class Engine(Protocol):
    """The interface that the loop drives: a Stepwise handler, or the Batches of a Predictor."""

    def decode(self, request: Request) -> Any: ...
    def room(self) -> int: ...
    def join(self, job: Job) -> None: ...
    def leave(self, job: Job) -> None: ...
    def step(self) -> None: ...


class Records:
    """An engine that also reads lines, around one that does not. Other requests pass through unchanged."""

    def __init__(self, engine: Engine, kinds: Sequence[str], placeholder: str) -> None:
        """`kinds`: media types whose lines the handler can also read one by one, i.e. without a header line."""
        self._engine = engine
        self._kinds = (media.JSON_LINES, *kinds)
        self._placeholder = placeholder
        self._bodies: list[LinesJob] = []

    def decode(self, request: Request) -> Any:
        try:
            return self._engine.decode(request)
        except (UnsupportedMediaType, NotAcceptable) as error:
            if request.content_type != media.JSON_LINES or not _accepts_lines(request.accept):
                raise
            return Lines(request, media.JSON, media.JSON, error)
        except BadRequest as error:
            if not self._placeholder or request.content_type not in self._kinds or isinstance(error, NumberedHeader):
                raise
            return Lines(request, request.content_type, request.accept, error)

    def room(self) -> int:
        room = self._engine.room()
        return (room + 1) // 2 if self._bodies else room  # the other half is for records

    def join(self, job: Job) -> None:
        if isinstance(job.item, Lines):
            self._bodies.append(LinesJob(cast(ConnectionJob, job), job.item))
        else:
            self._engine.join(job)

    def leave(self, job: Job) -> None:
        if not isinstance(job.item, Lines):
            self._engine.leave(job)
            return
        for body in self._bodies:
            if body.job is job:
                self._drop(body)
                return

    def step(self) -> None:
        if not self._bodies:
            self._engine.step()
            return
        self._feed()
        try:
            self._engine.step()
        except BaseException:
            self._bodies.clear()  # the loop fails all joined jobs, these included
            raise
        for body in list(self._bodies):
            failure = body.failure(lenient=bool(self._placeholder))
            if failure is None and not body.complete:
                continue
            self._drop(body)
            outcome = failure or body.answer(self._placeholder)
            if isinstance(outcome, ServeError):
                body.job.fail(outcome)
            else:
                body.job.reply(outcome)

    def _feed(self) -> None:
        """Fill the engine's room with records, of the oldest body first."""
        for body in self._bodies:
            for _ in range(self._engine.room()):
                line = body.next()
                if line is None:
                    break
                began = time.monotonic()
                try:
                    line.item = self._engine.decode(line.request)
                except BaseException as error:
                    line.fail(outcome_of(error))
                else:
                    self._engine.join(line)
                if not body.job.begun_monotonic:
                    body.job.waited.decode += time.monotonic() - began

    def _drop(self, body: LinesJob) -> None:
        self._bodies.remove(body)
        for line in body.in_engine.values():
            self._engine.leave(line)


def _accepts_lines(accept: str) -> bool:
    try:
        media.choose(accept, (media.JSON_LINES, media.JSON), media.JSON_LINES)
    except NotAcceptable:
        return False
    return True
