"""Limits of a model: which requests begin, which wait and which are refused, and what the refusal says."""

import os
import subprocess
import sys
import time
from typing import Any, cast

import pytest

from serve import shared_pages
from serve.catalog import model_config
from serve.catalog.model_config import Limits
from serve.errors import ModelUnusable, ServeError, TooManyRequests, headers
from serve.handlers.base import Request
from serve.runner import limits
from serve.runner.jobs import ConnectionJob, Waited
from serve.runner.limits import PAGE, SECOND, Admission, Tally
from tests.patience import PATIENCE

COUNT = """
import sys, time
from serve.runner.limits import Tally
tally = Tally(int(sys.argv[1]))
tally.add(working=2, waiting=3)
print("counted", flush=True)
time.sleep(3600)
"""


class Asked:
    """A job of a request with these attributes, on a connection of its own."""

    numbers = iter(range(1_000_000))

    def __init__(self, attributes: str = "", body: bytes = b"") -> None:
        self.request = Request(
            body=body,
            content_type="application/json",
            headers={limits.HEADER: attributes} if attributes else {},
            deadline=time.monotonic() + 60,
        )
        self.connection = type("Connection", (), {"fd": next(self.numbers)})()
        self.waited = Waited(time.monotonic())
        self.failed: ServeError | None = None

    def fail(self, error: ServeError) -> None:
        self.failed = error


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic_ns()
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.now)
        monkeypatch.setattr(time, "monotonic", lambda: self.now / SECOND)

    def pass_(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)


class Gate:
    """An Admission with its jobs at work; `offer`, `take` and `end` are what the loop does."""

    def __init__(self, queue_limit: int = 100, tally: Tally | None = None, **said: Any) -> None:
        self.tokens = 0
        self.at_work: list[Asked] = []
        self.room = 8
        self.admission = Admission("m", Limits(**said), queue_limit, tally or Tally(), lambda: self.tokens)

    def offer(self, attributes: str = "") -> Asked:
        asked = Asked(attributes)
        self.admission.offer(cast(ConnectionJob, asked), self.room)
        return asked

    def take(self) -> Asked | None:
        self.admission.wake_after(-1, lambda job: cast(Asked, job) in self.at_work, self.room)
        asked = cast(Asked | None, self.admission.next(self.room))
        if asked:
            self.at_work.append(asked)
        return asked

    def end(self, asked: Asked) -> None:
        self.at_work.remove(asked)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def refusal(asked: Asked) -> TooManyRequests:
    assert isinstance(asked.failed, TooManyRequests)
    return asked.failed


def test_the_next_request_is_taken_when_the_refusal_says(clock: Clock) -> None:
    """A burst, then the rate. The refusal names model, limit and setting."""
    gate = Gate(requests_per_second=4, burst=2)
    first = [gate.offer(), gate.offer()]
    refused = refusal(gate.offer())
    assert [each.failed for each in first] == [None, None]
    assert "model 'm': the limit is 4 requests a second, 2 at once" in refused.message
    assert "requests_per_second or burst under [limits] of model.toml" in refused.hint
    assert refused.retry_after == pytest.approx(0.25)
    assert headers(refused) == {"Retry-After": "1", "Retry-After-Ms": "250"}
    clock.pass_(0.249)
    assert gate.offer().failed
    clock.pass_(0.001)
    assert not gate.offer().failed
    assert gate.offer().failed
    clock.pass_(10)
    assert [bool(gate.offer().failed) for _ in range(3)] == [False, False, True]


def test_so_many_requests_are_at_work_and_so_many_wait(clock: Clock) -> None:
    gate = Gate(concurrency=2, queue=1)
    first, second, third = gate.offer(), gate.take(), gate.offer()
    assert second is first
    assert gate.take() is third
    fourth = gate.offer()
    assert gate.take() is None
    refused = refusal(gate.offer())
    assert "2 requests are at work, the limit, and 1 wait, the limit" in refused.message
    assert "raise queue under [limits]" in refused.hint
    clock.pass_(2)
    gate.end(first)
    assert gate.take() is fourth
    gate.offer()
    clock.pass_(0.5)
    # Requests take 2 s: that of the third is over, and that of the fourth ends in 1.5 s.
    gate.end(third)
    assert gate.take()
    assert not gate.offer().failed
    assert refusal(gate.offer()).retry_after == pytest.approx(1.6, abs=0.2)


def test_without_a_queue_the_concurrency_is_named() -> None:
    gate = Gate(concurrency=1, queue=0)
    gate.offer()
    assert gate.take()
    assert "raise concurrency under [limits]" in refusal(gate.offer()).hint


def test_high_priority_passes_and_low_is_not_starved() -> None:
    """Of those that wait. After eight that have passed them, one of the others is taken."""
    gate = Gate(concurrency=1)
    first = gate.offer()
    assert gate.take() is first
    low, normal = gate.offer("trace=1;priority=low"), gate.offer()
    gate.end(first)
    order = []
    for _ in range(30):
        gate.offer("priority=high,trace=1")
        taken = gate.take()
        assert taken
        order.append("low" if taken is low else "normal" if taken is normal else "high")
        gate.end(taken)
    assert order[:8] == ["high"] * 8
    assert {order.index("low"), order.index("normal")} <= set(range(8, 20))


def test_a_full_queue_makes_room_for_high_priority() -> None:
    """The newest request of the lowest level is refused in its place, and no other for one of its own level."""
    gate = Gate(concurrency=1, queue=2)
    gate.offer()
    assert gate.take()
    older, newer = gate.offer("priority=low"), gate.offer("priority=low")
    assert refusal(gate.offer("priority=low"))
    high = gate.offer("priority=high")
    assert (high.failed, older.failed) == (None, None)
    assert refusal(newer)
    assert not gate.offer("priority=high").failed
    assert refusal(older)
    assert refusal(gate.offer("priority=high"))


@pytest.mark.parametrize("attributes", ["priority=highest", "xpriority=high", "Priority=high", "priority=", "p" * 1024])
def test_what_names_no_priority_is_normal(attributes: str) -> None:
    assert limits.priority({limits.HEADER: attributes}) == limits.LEVELS["normal"]


def test_tokens_of_the_last_minute_are_limited(clock: Clock) -> None:
    """Those computed, and those that requests at work may take; a request is refused before its work."""
    gate = Gate(tokens_per_minute=100)
    first = gate.offer()
    assert gate.take() is first
    gate.admission.reserve(cast(ConnectionJob, first), 60)
    second = gate.offer()
    assert gate.take() is second
    with pytest.raises(
        TooManyRequests, match="requests at work may take 60; the limit is 100; this request may take 50"
    ):
        gate.admission.reserve(cast(ConnectionJob, second), 50)
    gate.end(second)
    gate.tokens = 30  # it ended early
    gate.admission.count()
    gate.end(first)
    third = gate.offer()
    assert gate.take() is third
    gate.admission.reserve(cast(ConnectionJob, third), 70)
    clock.pass_(20)
    gate.tokens = 100
    gate.admission.count()
    gate.end(third)
    assert gate.take() is None
    refused = refusal(gate.offer())
    assert "100 tokens were computed in the last minute; the limit is 100" in refused.message
    assert "tokens_per_minute" in refused.hint
    assert refused.retry_after
    assert 39 <= refused.retry_after <= 40  # the first 30 are a minute old then
    clock.pass_(refused.retry_after - 0.01)
    assert gate.offer().failed
    clock.pass_(0.02)
    assert not gate.offer().failed


def test_a_request_of_more_tokens_than_the_limit_is_taken_when_no_other_was(clock: Clock) -> None:
    """Otherwise its refusals would never end."""
    gate = Gate(tokens_per_minute=100)
    asked = gate.offer()
    gate.take()
    gate.admission.reserve(cast(ConnectionJob, asked), 1000)


def test_a_waiting_request_whose_time_is_over_is_not_begun(clock: Clock) -> None:
    gate = Gate(concurrency=1)
    first = gate.offer()
    gate.take()
    second = gate.offer()
    clock.pass_(61)
    gate.end(first)
    assert gate.take() is None
    assert second.failed
    assert second.failed.status == 503
    assert len(gate.admission) == 0


def test_copies_count_together() -> None:
    """In a page that they share; what a copy held that was killed is free again."""
    page = shared_pages.create("test", PAGE)
    mine = Tally(page)
    command = [sys.executable, "-c", COUNT, str(page)]
    with subprocess.Popen(command, pass_fds=[page], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"counted\n"
        gate = Gate(tally=mine, concurrency=2)
        mine.add(working=1)
        assert (mine.working, mine.waiting) == (3, 3)
        mine.add(working=-1)
        waits = gate.offer()
        assert gate.take() is None
        assert gate.admission.wake_after(-1, lambda _: True, 8) == limits.OTHERS_END
        other.kill()
        other.wait(PATIENCE)
        assert gate.take() is waits
        assert (mine.working, mine.waiting) == (1, 0)
    os.close(page)


def test_a_rate_is_shared_by_the_copies(clock: Clock) -> None:
    """Two views of one page take turns at one bucket."""
    page = shared_pages.create("test", PAGE)
    tallies = [Tally(page), Tally(page)]
    taken = [not tallies[number % 2].take(clock.now, SECOND, 4) for number in range(8)]
    assert taken == [True] * 4 + [False] * 4
    os.close(page)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"concurency": 1}, "no key of .limits. named 'concurency'; did you mean concurrency"),
        ({"concurrency": 0}, "limits.concurrency"),
        ({"queue": -1}, "limits.queue"),
        ({"requests_per_second": 0}, "limits.requests_per_second"),
        ({"requests_per_second": float("nan")}, "limits.requests_per_second"),
        ({"burst": 3}, "set requests_per_second too"),
        ({"tokens_per_minute": "many"}, "limits.tokens_per_minute"),
    ],
)
def test_a_wrong_limit_is_named(table: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelUnusable, match=says):
        model_config.parse({"limits": table})
    assert model_config.parse({"limits": {"requests_per_second": 3}}).limits == Limits(requests_per_second=3.0)
