"""A runner's jobs: which of them share a batch, that each fails alone, and which arrival is reported to the host."""

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest, InternalError, ServeError, TooLate
from serve.handlers.base import Reply, Request
from serve.http.wire import Connection
from serve.runner.jobs import Answers, Batches, ConnectionJob, Waited, deadline_exceeded
from serve.slots import Slot


class Doubler:
    """Answers twice the number; a negative one fails whatever batch it is in; even and odd do not mix."""

    def __init__(self, model: ModelConfig[Any] | None = None) -> None:
        self.batches: list[list[int]] = []

    def decode(self, request: Request) -> int:
        return int(request.body)

    def compatible(self, item: int) -> int:
        return item % 2

    def predict(self, items: Sequence[int]) -> Sequence[Reply | ServeError]:
        self.batches.append(list(items))
        if min(items) < 0:
            raise ZeroDivisionError("negative")
        return [Reply(body=b"%d" % (2 * item), content_type="text/plain") for item in items]


@dataclass(eq=False)
class FakeJob:
    """The runner's Job without its connection."""

    item: int
    request: Request = field(default_factory=lambda: Request(body=b"", content_type=""))
    waited: Waited = field(default_factory=lambda: Waited(time.monotonic()))
    begun_monotonic: float = 0.0
    answers: list[Any] = field(default_factory=list)

    def begin(self, now: float) -> None:
        self.begun_monotonic = now

    def reply(self, reply: Reply) -> None:
        self.answers.append(reply.body)

    def fail(self, error: ServeError) -> None:
        self.answers.append(type(error))


def run(predictor: Any, jobs: Sequence[FakeJob], max_batch: int = 8) -> Batches:
    batches = Batches(predictor, max_batch)
    for job in jobs:
        batches.join(job)  # type: ignore[arg-type]
    while not all(job.answers for job in jobs):
        batches.step()
    return batches


def test_compatible_jobs_run_together_in_order_of_arrival() -> None:
    """The oldest job determines the batch; the others keep their order."""
    doubler, jobs = Doubler(), [FakeJob(item) for item in (2, 3, 4, 5, 6)]

    run(doubler, jobs)

    assert doubler.batches == [[2, 4, 6], [3, 5]]
    assert [job.answers for job in jobs] == [[b"4"], [b"6"], [b"8"], [b"10"], [b"12"]]


def test_a_batch_has_a_size() -> None:
    """Jobs beyond max_batch wait for the next turn."""
    doubler = Doubler()
    batches = Batches(doubler, 2)
    for item in (2, 4):
        batches.join(FakeJob(item))  # type: ignore[arg-type]
    assert batches.room() == 0
    batches.step()
    assert doubler.batches == [[2, 4]]


def test_the_job_that_fails_a_batch_fails_alone() -> None:
    """The jobs are retried one by one, and the others are answered."""
    jobs = [FakeJob(2), FakeJob(-4), FakeJob(6)]

    run(Doubler(), jobs)

    assert [job.answers for job in jobs] == [[b"4"], [InternalError], [b"12"]]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException])
def test_so_it_does_if_it_raises_what_is_no_exception(kind: type[BaseException]) -> None:
    """Own code may call sys.exit, and libraries in Rust panic."""

    class Exits(Doubler):
        def predict(self, items: Sequence[int]) -> Sequence[Reply | ServeError]:
            if -4 in items:
                raise kind("bye")
            return super().predict(items)

    jobs = [FakeJob(2), FakeJob(-4), FakeJob(6)]

    run(Exits(), jobs)

    assert [job.answers for job in jobs] == [[b"4"], [InternalError], [b"12"]]


def test_a_handlers_own_error_reaches_its_caller() -> None:
    """A ServeError among the outcomes is answered as it is."""

    class Picky(Doubler):
        def predict(self, items: Sequence[int]) -> Sequence[Reply | ServeError]:
            return [BadRequest("no") for _ in items]

    job = FakeJob(2)
    run(Picky(), [job])
    assert job.answers == [BadRequest]


def test_a_job_past_its_deadline_is_not_begun() -> None:
    """If the deadline passes in the queue, no work is done for the job, and it takes no place in a batch."""
    doubler, now = Doubler(), time.monotonic()
    late = FakeJob(2, Request(body=b"", content_type="", deadline=now - 1), waited=Waited(now - 60))
    good = FakeJob(4)

    run(doubler, [late, good])

    assert late.answers == [TooLate]
    assert doubler.batches == [[4]]


@pytest.mark.parametrize(("waited", "expected"), [(5.0, [TooLate]), (0.0, [b"4"])])
def test_a_job_that_cannot_meet_its_deadline_is_refused_unless_it_is_fresh(
    waited: float, expected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that takes 0.1 s, and 0.01 s left: refused after a wait; but a fresh one is tried, or one slow batch
    would turn away all that follow."""

    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)

    class Slow(Doubler):
        def predict(self, items: Sequence[int]) -> Sequence[Reply | ServeError]:
            nonlocal now
            now += 0.1
            return super().predict(items)

    batches = Batches(Slow(), 8)
    batches.join(FakeJob(0, waited=Waited(now)))  # type: ignore[arg-type]
    batches.step()
    job = FakeJob(2, Request(body=b"", content_type="", deadline=now + 0.01), waited=Waited(now - waited))
    batches.join(job)  # type: ignore[arg-type]
    batches.step()
    assert job.answers == expected


def test_a_job_whose_caller_hung_up_is_forgotten() -> None:
    """Leaving twice, or after the answer, has no effect."""
    doubler, stays, leaves = Doubler(), FakeJob(2), FakeJob(4)
    batches = Batches(doubler, 8)
    batches.join(stays)  # type: ignore[arg-type]
    batches.join(leaves)  # type: ignore[arg-type]
    batches.leave(leaves)  # type: ignore[arg-type]
    batches.leave(leaves)  # type: ignore[arg-type]
    batches.step()
    assert doubler.batches == [[2]]
    assert leaves.answers == []


@pytest.mark.parametrize(
    ("waited", "says", "remedy"),
    [
        pytest.param(Waited(0.0), "waited 60.0 s in the queue", "copies", id="others were at work"),
        pytest.param(
            Waited(0.0, load=50.0), "50.0 s for the load of the model and 10.0 s in the queue", "PRELOAD", id="a load"
        ),
        pytest.param(Waited(0.0, receive=58.0), "waited 2.0 s in the queue", "copies", id="an upload is no wait"),
    ],
)
def test_a_late_request_is_told_what_it_waited_for(waited: Waited, says: str, remedy: str) -> None:
    """The hint is about the longest wait."""
    error = deadline_exceeded(waited, 60.0)
    assert says in error.message
    assert remedy in error.hint


class Counted(dict[int, Any]):
    """Jobs by file descriptor; counts how often all of them are walked."""

    looked = 0

    def values(self) -> Any:
        self.looked += 1
        return super().values()


class NoPoll:
    def forget(self, fd: int) -> None:
        pass


def test_a_batch_is_not_walked_for_each_of_its_jobs(tmp_path: Path) -> None:
    """The newest arrival at work is reported, whatever the order of begin, and again after the newest has ended."""
    slot = Slot(Slot.create())
    answers = Answers("m", NoPoll(), slot, 60.0, lambda _: None)  # type: ignore[arg-type]
    answers._joined = joined = Counted()
    now = time.monotonic()
    peers, jobs = [], []
    for age in range(50):
        ours, theirs = socket.socketpair()
        peers.append(theirs)
        jobs.append(ConnectionJob(answers, Connection(ours), Request(body=b"", content_type=""), Waited(now - age)))
        joined[ours.fileno()] = jobs[-1]

    def reported() -> float:
        """Seconds since the reported arrival."""
        return round(time.time() - slot.get("begun_arrival_epoch_ms") / 1e3 - (time.monotonic() - now))

    for job in jobs[:-1]:
        job.begin(now)
    assert (joined.looked, reported()) == (0, 0)
    for job in jobs[:10]:
        answers.end(job, b"x", 200)
    jobs[-1].begin(now)
    assert (joined.looked, reported()) == (1, 10)

    for job, peer in zip(jobs, peers, strict=True):
        job.connection.close()
        peer.close()


def test_an_item_that_is_its_own_key_runs_alone() -> None:
    """And the others are not looked at before their turn: a thousand that wait cost no more than one."""

    class Alone(Doubler):
        looks = 0

        def compatible(self, item: int) -> int:
            self.looks += 1
            return item

    alone, jobs = Alone(), [FakeJob(7) for _ in range(8)]

    run(alone, jobs)

    assert alone.batches == [[7]] * 8
    assert alone.looks == 8
    assert [job.answers for job in jobs] == [[b"14"]] * 8
