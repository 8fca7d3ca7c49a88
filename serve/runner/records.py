"""Bodies of lines where each line is a record: one request a line, one line of answer each, in order.

Two kinds of body come here. JSON Lines for a handler that reads only JSON: it needs to know nothing of lines, and they
run in batches with everybody else's requests. And lines of which some are bad, where SERVE_BAD_RECORD wants the others
answered: the body as a whole could not be read, so each line is read alone.
"""

from collections.abc import Sequence
from typing import Any, Protocol, cast

from serve import media
from serve.errors import BadRequest, NotAcceptable, ServeError, UnsupportedMediaType
from serve.handlers.base import Job, Request
from serve.runner.batching import outcome_of
from serve.runner.job import Job as Answered
from serve.runner.lines import JSON, JSON_LINES, Lines, Whole


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
