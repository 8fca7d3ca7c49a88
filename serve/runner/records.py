"""Bodies of lines where each line is a record: one request a line, one line of answer each, in order.

Two kinds of body come here. JSON Lines for a handler that reads only JSON: it needs to know nothing of lines, and they
run in batches with everybody else's requests. And lines of which some are bad, where SERVE_BAD_RECORD wants the others
answered: the body as a whole could not be read, so each line is read alone.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

import msgspec

from serve.errors import BadRequest, NotAcceptable, ServeError, UnsupportedMediaType
from serve.handlers.base import Job, Reply, Request
from serve.http import media
from serve.runner.jobs import Job as Answered
from serve.runner.jobs import outcome_of

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

    def __init__(self, job: Answered, lines: Lines) -> None:
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


class Engine(Protocol):
    """What the loop drives: a Stepwise handler, or the Batches of a Predictor."""

    def decode(self, request: Request) -> Any: ...
    def room(self) -> int: ...
    def join(self, job: Job) -> None: ...
    def leave(self, job: Job) -> None: ...
    def step(self) -> None: ...


class Records:
    """An engine that reads lines too. The rest passes through."""

    def __init__(self, engine: Engine, kinds: Sequence[str], placeholder: str) -> None:
        """`kinds` are the media types whose lines the handler can also read one by one (no header line, that is)."""
        self._engine = engine
        self._kinds = (JSON_LINES, *kinds)
        self._placeholder = placeholder
        self._wholes: list[Whole] = []

    def decode(self, request: Request) -> Any:
        try:
            return self._engine.decode(request)
        except (UnsupportedMediaType, NotAcceptable) as error:
            if request.content_type != JSON_LINES or not _takes_lines(request.accept):
                raise
            return Lines(request, JSON, JSON, error)
        except BadRequest as error:
            if not self._placeholder or request.content_type not in self._kinds:
                raise
            return Lines(request, request.content_type, request.accept, error)

    def room(self) -> int:
        room = self._engine.room()
        return (room + 1) // 2 if self._wholes else room  # lines and other callers share it

    def join(self, job: Job) -> None:
        if isinstance(job.item, Lines):
            self._wholes.append(Whole(cast(Answered, job), job.item))
        else:
            self._engine.join(job)

    def leave(self, job: Job) -> None:
        if not isinstance(job.item, Lines):
            self._engine.leave(job)
            return
        for whole in self._wholes:
            if whole.job is job:
                self._drop(whole)
                return

    def step(self) -> None:
        if not self._wholes:
            self._engine.step()
            return
        self._feed()
        try:
            self._engine.step()
        except Exception:
            self._wholes.clear()  # with all who have joined, their jobs are failed
            raise
        for whole in list(self._wholes):
            failure = whole.failure(lenient=bool(self._placeholder))
            if failure is None and not whole.over:
                continue
            self._drop(whole)
            outcome = failure or whole.answer(self._placeholder)
            if isinstance(outcome, ServeError):
                whole.job.fail(outcome)
            else:
                whole.job.reply(outcome)

    def _feed(self) -> None:
        """Fill the engine's room with lines of the first who has any."""
        for whole in self._wholes:
            for _ in range(self._engine.room()):
                part = whole.next()
                if part is None:
                    break
                try:
                    part.item = self._engine.decode(part.request)
                except Exception as error:
                    part.fail(outcome_of(error))
                else:
                    self._engine.join(part)

    def _drop(self, whole: Whole) -> None:
        self._wholes.remove(whole)
        for part in whole.parts.values():
            self._engine.leave(part)


def _takes_lines(accept: str) -> bool:
    try:
        media.choose(accept, (JSON_LINES, JSON), JSON_LINES)
    except NotAcceptable:
        return False
    return True
