"""Bodies of lines: one request for each line if the handler reads only JSON, and one line of answer for each."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from serve.errors import BadRequest, DoesNotFit, NotAcceptable, ServeError, UnsupportedMediaType
from serve.formats.tables import NumberedHeader
from serve.handlers.base import Job, Reply, Request
from serve.http.media import JSON, JSON_LINES
from serve.runner.jobs import Batches, Waited
from serve.runner.records import Engine, Records


class Squares:
    """JSON {"n": number} or a CSV of numbers in; squares out. 13 is invalid, 99 runs out of memory."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def decode(self, request: Request) -> list[int]:
        if request.content_type not in (JSON, "text/csv"):
            raise UnsupportedMediaType("only JSON and CSV")
        if request.accept not in ("", JSON, "text/csv"):
            raise NotAcceptable("only JSON and CSV")
        if request.body.startswith(b"0\n1\n2\n"):
            raise NumberedHeader("a header line")
        try:
            texts = [json.loads(request.body)["n"]] if request.content_type == JSON else request.body.split()
            return [int(text) for text in texts]
        except (ValueError, KeyError) as error:
            raise BadRequest(f"no number: {error}") from error

    def compatible(self, item: list[int]) -> int:
        return 0

    def predict(self, items: Sequence[list[int]]) -> Sequence[Reply | ServeError]:
        self.batches.append(len(items))
        return [self._outcome(item) for item in items]

    def _outcome(self, item: list[int]) -> Reply | ServeError:
        if item == [99]:
            return DoesNotFit("no memory")
        if item == [13]:
            return BadRequest("thirteen")
        if item == [422]:
            return Reply(body=b"too short", content_type=JSON, status=422, headers={"X-A": "b"})
        if item == [77]:
            return Reply(body=iter([b"7"]), content_type=JSON)
        return Reply(body=b"".join(b"%d\n" % number**2 for number in item), content_type="text/csv")


@dataclass(eq=False)
class Asked:
    """The runner's Job without its connection."""

    request: Request
    item: Any = None
    waited: Waited = field(default_factory=lambda: Waited(time.monotonic()))
    begun_monotonic: float = 0.0
    answers: list[Any] = field(default_factory=list)

    def begin(self, now: float) -> None:
        self.begun_monotonic = now

    def reply(self, reply: Reply) -> None:
        self.answers.append((reply.content_type, reply.body))

    def fail(self, error: ServeError) -> None:
        self.answers.append(error)

    def start(self, content_type: str) -> None:
        raise AssertionError

    def send(self, chunk: bytes) -> None:
        raise AssertionError

    def finish(self) -> None:
        raise AssertionError


def ask(
    records: Records, body: bytes, content_type: str = JSON_LINES, accept: str = "", deadline: float = float("inf")
) -> Asked:
    request = Request(body=body, content_type=content_type, accept=accept, deadline=deadline)
    job = Asked(request)
    job.item = records.decode(request)
    _: Job = job
    records.join(job)
    return job


def answer(records: Records, *asked: Any, **more: Any) -> Any:
    """The answer to one body, after as many turns as it takes."""
    job = ask(records, *asked, **more)
    for _ in range(1000):
        if job.answers:
            break
        records.step()
    (only,) = job.answers
    return only


def lines(*numbers: Any) -> bytes:
    return b"".join(json.dumps({"n": number}).encode() + b"\n" for number in numbers)


def records(placeholder: str = "", max_batch: int = 4) -> tuple[Records, Squares]:
    handler = Squares()
    return Records(cast(Engine, Batches(handler, max_batch)), ("text/csv",), placeholder), handler


def test_each_line_is_answered_by_one_in_order() -> None:
    """Whatever the batch holds: ten lines through batches of at most four."""
    engine, handler = records()
    assert answer(engine, lines(*range(10))) == (JSON_LINES, b"".join(b"%d\n" % n**2 for n in range(10)))
    assert handler.batches == [4, 4, 2]


@pytest.mark.parametrize("accept", ["", "*/*", JSON, JSON_LINES, "application/json;q=0.5"])
def test_lines_are_written_if_json_is_accepted(accept: str) -> None:
    """The request to the handler accepts JSON."""
    assert answer(records()[0], lines(3), accept=accept) == (JSON_LINES, b"9\n")


def test_lines_are_not_written_if_another_type_is_required() -> None:
    """The handler's own error names the supported types."""
    with pytest.raises(UnsupportedMediaType):
        answer(records()[0], lines(3), accept="image/png")


@pytest.mark.parametrize(
    "body", [b'{"n": 2}\r\n{"n": 3}\r\n', b'\n{"n": 2}\n\n  {"n": 3}', b'{"n": 2}\n{"n": 3}\n\n\n']
)
def test_blank_lines_and_line_ends_are_no_records(body: bytes) -> None:
    """Two records, for each kind of line end."""
    assert answer(records()[0], body) == (JSON_LINES, b"4\n9\n")


@pytest.mark.parametrize("body", [b"", b"\n\n"])
def test_no_record_is_a_bad_request(body: bytes) -> None:
    """An empty body is an error, not an empty answer."""
    assert "no records" in answer(records()[0], body).message


@pytest.mark.parametrize(("bad", "says"), [("x", "line 3: no number"), (13, "line 3: thirteen"), (77, "streamed")])
def test_one_invalid_record_fails_the_body_and_is_named(bad: Any, says: str) -> None:
    """In decode or in predict; no record is left in the engine."""
    engine, _ = records()
    error = answer(engine, lines(1, 2, bad, 4, 5, 6, 7))
    assert isinstance(error, BadRequest)
    assert says in error.message
    assert engine.room() == 4


def test_an_invalid_record_has_a_placeholder_if_one_is_set() -> None:
    """In its place; as an object in JSON Lines, with the cause."""
    kind, body = answer(records("ERROR")[0], lines(1, "x", 3, 13, 5))
    shown = [json.loads(line) for line in body.splitlines()]
    assert kind == JSON_LINES
    assert [shown[0], shown[2], shown[4]] == [1, 9, 25]
    assert shown[3] == {"error": "ERROR", "message": "line 4: thirteen"}
    assert shown[1]["message"].startswith("line 2: no number")


@pytest.mark.peer("batch-transform", differs="a body of lines is one answer, whose status and headers are one")
def test_a_status_that_model_code_sets_fails_its_record() -> None:
    """A record whose code answers with 400 or above fails like one with an error: the whole body, or its own line."""
    error = answer(records()[0], lines(1, 422, 3))
    assert (error.status, error.message) == (422, "line 2: too short")
    _, body = answer(records("ERROR")[0], lines(1, 422, 3))
    assert [json.loads(line) for line in body.splitlines()] == [
        1,
        {"error": "ERROR", "message": "line 2: too short"},
        9,
    ]


def test_an_invalid_row_of_csv_has_a_placeholder_if_one_is_set() -> None:
    """A body that is invalid as a whole is read line by line; a valid one stays one request."""
    engine, handler = records("ERROR")
    assert answer(engine, b"1\nx\n3\n", "text/csv") == ("text/csv", b"1\nERROR\n9\n")
    handler.batches.clear()
    assert answer(engine, b"1\n2\n3\n4\n5\n", "text/csv") == ("text/csv", b"1\n4\n9\n16\n25\n")
    assert handler.batches == [1]
    with pytest.raises(BadRequest):
        answer(records()[0], b"1\nx\n3\n", "text/csv")


def test_a_retryable_error_fails_the_whole_body() -> None:
    """507 and 503: otherwise a placeholder would replace an answer that a retry could give."""
    assert isinstance(answer(records("ERROR")[0], lines(1, 99, 3)), DoesNotFit)


def test_a_body_without_a_valid_record_fails() -> None:
    """A job with the wrong content type does not succeed with a file of placeholders."""
    assert isinstance(answer(records("ERROR")[0], b"x\ny\n", "text/csv"), BadRequest)


def test_an_invalid_last_line_waits_for_the_lines_before_it() -> None:
    """While they are in the engine, the outcome is open."""
    engine, _ = records("ERROR", max_batch=2)
    assert answer(engine, lines("x", 2))[1].splitlines()[1] == b"4"


def test_others_are_served_between_lines() -> None:
    """A long body leaves half of the room to other requests, and at least one place."""
    engine, _ = records(max_batch=4)
    job = ask(engine, lines(*range(100)))
    assert engine.room() == 2
    other = ask(engine, b'{"n": 5}', JSON)
    engine.step()
    assert other.answers == [("text/csv", b"25\n")]
    assert not job.answers
    alone, _ = records(max_batch=1)
    ask(alone, lines(1, 2))
    assert alone.room() == 1


def test_a_hang_up_removes_all_lines_of_the_body() -> None:
    """No more work is done on them."""
    engine, handler = records(max_batch=4)
    job = ask(engine, lines(*range(100)))
    engine.step()
    engine.leave(job)
    engine.step()
    assert handler.batches == [4]
    assert engine.room() == 4


def test_lines_past_the_deadline_fail_the_body() -> None:
    """The deadline is that of the whole body."""
    error = answer(records()[0], lines(1, 2), deadline=time.monotonic() - 1)
    assert error.type == "DeadlineExceededException"


def test_a_header_line_is_not_scored_among_lines() -> None:
    """Read line by line, a header line of numbers would be a row: the body is refused, also with a placeholder."""
    with pytest.raises(BadRequest, match="a header line"):
        answer(records("ERROR")[0], b"0\n1\n2\n", "text/csv")
