"""The limits of a model that has [limits] in its model.toml: which requests begin, which wait, which are refused (429).

Requests wait here before they are decoded, so that those of high priority can pass others. The limits hold for the
model: its copies share a page of memory. A model without [limits] has no object of this module.
"""

import fcntl
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

from serve import shared_pages
from serve.catalog.model_config import FILE, MOST_COPIES, Limits
from serve.errors import TooManyRequests
from serve.runner.jobs import ConnectionJob, deadline_exceeded

# SageMaker passes no headers of callers on, but this one: CustomAttributes of InvokeEndpoint.
HEADER = "x-amzn-sagemaker-custom-attributes"
PRIORITY = re.compile(r"(?:^|[,;\s])priority=(high|normal|low)(?=[,;\s]|$)")
LEVELS = {"high": 0, "normal": 1, "low": 2}
PASSED = 8  # requests of higher priority that may pass a level that waits, before one of its own is taken
READ_BYTES = 64 << 20  # of waiting bodies; further requests stay in the socket's queue
AT_ONCE = 64  # requests that are accepted in a turn, also without room: to be refused, or to pass others
MINUTE = 60  # seconds, each with the tokens that were computed in it
SECOND = 1_000_000_000
OTHERS_END = 0.005  # seconds until the loop looks again whether another copy has room for a waiting request

# The words of the page.
_NEXT = 0  # the time (time.monotonic_ns()) at which the next request would be exactly within the rate
_TOKENS = 1  # for each second of the last minute: its number, and the tokens
_COPIES = _TOKENS + 2 * MINUTE  # for each copy: its requests at work, those that wait, and the tokens that it may use
_WORDS = _COPIES + 3 * MOST_COPIES
PAGE = 8 * _WORDS  # bytes


def priority(headers: Mapping[str, str]) -> int:
    """The level of a request, of LEVELS."""
    attributes = headers.get(HEADER)
    found = PRIORITY.search(attributes) if attributes else None
    return LEVELS[found[1]] if found else LEVELS["normal"]


class Tally:
    """What the copies of a model count together. Each method takes microseconds."""

    def __init__(self, page: int = -1) -> None:
        """`page`: the descriptor of the copies' page, of PAGE bytes; -1: there is one copy."""
        self._page = page
        # Without a further descriptor, whose end would drop the locks.
        self._words = (shared_pages.mapped(page, PAGE) if page >= 0 else memoryview(bytearray(PAGE))).cast("q")
        self._own = 0
        if page >= 0:
            with self._locked():
                self._own = next(each for each in range(MOST_COPIES) if self._claims(each))
        self._at = _COPIES + 3 * self._own
        for word in range(3):
            self._words[self._at + word] = 0

    def add(self, working: int = 0, waiting: int = 0, reserved: int = 0) -> None:
        for word, change in enumerate((working, waiting, reserved)):
            self._words[self._at + word] += change

    @property
    def working(self) -> int:
        return self._sum(0)

    @property
    def waiting(self) -> int:
        return self._sum(1)

    @property
    def reserved(self) -> int:
        return self._sum(2)

    @property
    def is_shared(self) -> bool:
        return self._page >= 0

    def take(self, now: int, interval: int, burst: int) -> float:
        """Count a request against a rate of one each `interval` (ns); the seconds until it could be, if it is over."""
        with self._locked():
            due = max(self._words[_NEXT], now)
            early = due - now - interval * (burst - 1)
            if early > 0:
                return early / SECOND
            self._words[_NEXT] = due + interval
            return 0.0

    def spend(self, tokens: int, now: int) -> None:
        """Count tokens as computed."""
        second = now // SECOND
        at = _TOKENS + 2 * (second % MINUTE)
        with self._locked():
            if self._words[at] != second:
                self._words[at], self._words[at + 1] = second, 0
            self._words[at + 1] += tokens

    def tokens(self, now: int) -> int:
        """The tokens of the last minute."""
        return sum(tokens for _, tokens in self._seconds(now))

    def seconds_until(self, tokens: int, now: int) -> float:
        """How long until the tokens of the last minute are at most so many, if none are added."""
        over = self.tokens(now) - tokens
        for second, count in sorted(self._seconds(now)):
            if over <= 0:
                break
            over -= count
            if over <= 0:
                return second + MINUTE - now / SECOND
        return 0.0

    def _seconds(self, now: int) -> list[tuple[int, int]]:
        oldest = now // SECOND - MINUTE
        pairs = [(self._words[_TOKENS + 2 * i], self._words[_TOKENS + 2 * i + 1]) for i in range(MINUTE)]
        return [(second, count) for second, count in pairs if second > oldest and count]

    def _sum(self, word: int) -> int:
        return sum(self._words[_COPIES + word : _WORDS : 3]) if self._page >= 0 else self._words[self._at + word]

    def forget_ended(self) -> None:
        """Clear the words of copies that have ended: the kernel has dropped their locks."""
        if self._page < 0:
            return
        with self._locked():
            for each in range(MOST_COPIES):
                words = slice(_COPIES + 3 * each, _COPIES + 3 * each + 3)
                if each != self._own and any(self._words[words]) and self._claims(each):
                    self._words[words] = memoryview(bytes(24)).cast("q")
                    fcntl.lockf(self._page, fcntl.LOCK_UN, 1, 1 + each)

    def _claims(self, copy: int) -> bool:
        """Lock the byte of a copy, for the life of this process; False if another process has it."""
        try:
            fcntl.lockf(self._page, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1 + copy)
        except OSError:
            return False
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._page < 0:
            yield
            return
        fcntl.lockf(self._page, fcntl.LOCK_EX, 1, 0)
        try:
            yield
        finally:
            fcntl.lockf(self._page, fcntl.LOCK_UN, 1, 0)


class Admission:
    """The requests of a limited model that wait, and those at work. The loop offers each, and takes the next."""

    def __init__(self, model: str, limits: Limits, queue_limit: int, tally: Tally, computed: Callable[[], int]) -> None:
        """`queue_limit`: requests that may wait where the limits have no `queue`. `computed`: all tokens so far."""
        self._model = model
        self._limits = limits
        self._queue = queue_limit if limits.queue is None else limits.queue
        self._tally = tally
        self._computed = computed
        self._counted = 0  # tokens
        self._waiting: tuple[deque[ConnectionJob], ...] = tuple(deque() for _ in LEVELS)
        self._by_fd: dict[int, tuple[ConnectionJob, int]] = {}
        self._passed = [0] * len(LEVELS)  # requests of higher priority that were taken while a level waited
        self._bytes = 0
        self._working: dict[ConnectionJob, tuple[float, int]] = {}  # since when, and the tokens that it may take
        self._seconds = 0.0  # of a request's work, smoothed; 0 before the first has ended
        self._interval = int(SECOND / limits.requests_per_second) if limits.requests_per_second else 0
        self._burst = limits.burst or max(1, int(limits.requests_per_second or 1))

    def __len__(self) -> int:
        return len(self._by_fd)

    def __contains__(self, fd: int) -> bool:
        return fd in self._by_fd

    def accepts(self) -> int:
        """How many connections the loop is to accept now, whether or not the model has room for them."""
        return AT_ONCE if self._bytes < READ_BYTES else 0

    def offer(self, job: ConnectionJob, room: int) -> None:
        """Let a request wait for `next`; it, or one that it displaces, may be refused. `room`: of the engine."""
        level = priority(job.request.headers)
        try:
            self._refuse_too_many(level, room)
        except TooManyRequests as refusal:
            job.fail(refusal)
            return
        self._waiting[level].append(job)
        self._by_fd[job.connection.fd] = job, level
        self._bytes += len(job.request.body)
        self._tally.add(waiting=1)

    def _refuse_too_many(self, level: int, room: int) -> None:
        """Raise TooManyRequests for a request over a limit, after the newest of a lower level has been displaced."""
        limits, now = self._limits, time.monotonic_ns()
        if limits.tokens_per_minute and self._tally.tokens(now) >= limits.tokens_per_minute:
            self._refuse_tokens(limits.tokens_per_minute, 1, now)
        free = room if limits.concurrency is None else min(room, limits.concurrency - self._tally.working)
        displaced = None
        if self._tally.waiting >= self._queue + max(0, free):
            self._tally.forget_ended()
            lower = next((each for each in reversed(self._waiting[level + 1 :]) if each), None)
            if lower is None:
                raise self._full()
            displaced = lower[-1]
        if self._interval and (seconds := self._tally.take(now, self._interval, self._burst)):
            rate = f"{limits.requests_per_second:g} requests a second, {self._burst} at once"
            raise self._refusal(f"the limit is {rate}", "requests_per_second or burst", seconds)
        if displaced is not None:
            self.leave(displaced.connection.fd)
            displaced.fail(self._full())

    def next(self, room: int) -> ConnectionJob | None:
        """The request that begins now: the oldest of the highest level, if no other was passed too often; else None."""
        while self.ready(room):
            levels = [level for level, jobs in enumerate(self._waiting) if jobs]
            level = next((each for each in reversed(levels[1:]) if self._passed[each] >= PASSED), levels[0])
            for each in levels:
                self._passed[each] = 0 if each <= level else self._passed[each] + 1
            job = self._waiting[level][0]
            self.leave(job.connection.fd)
            now = time.monotonic()
            if job.request.deadline < now:
                job.fail(deadline_exceeded(job.waited, now))
                continue
            self._working[job] = now, 0
            self._tally.add(working=1)
            return job
        return None

    def ready(self, room: int) -> bool:
        """Whether a request waits that may begin."""
        return bool(self._by_fd) and room > 0 and not self._at_limit()

    def reserve(self, job: ConnectionJob, tokens: int) -> None:
        """Count the tokens that a decoded request may take until it ends. Raises TooManyRequests."""
        limit = self._limits.tokens_per_minute
        if limit is None:
            return
        now, tokens = time.monotonic_ns(), min(tokens, limit)
        if self._tally.tokens(now) + self._tally.reserved + tokens > limit:
            self._tally.forget_ended()
            self._refuse_tokens(limit, tokens, now)
        self._working[job] = self._working[job][0], tokens
        self._tally.add(reserved=tokens)

    def count(self) -> None:
        """Count the tokens that were computed since the last call."""
        if self._limits.tokens_per_minute and (tokens := self._computed() - self._counted):
            self._counted += tokens
            self._tally.spend(tokens, time.monotonic_ns())

    def _settle(self, at_work: Callable[[ConnectionJob], bool]) -> None:
        """Forget the requests that have ended."""
        for job in [each for each in self._working if not at_work(each)]:
            began, reserved = self._working.pop(job)
            took = time.monotonic() - began
            self._seconds = took if not self._seconds else 0.8 * self._seconds + 0.2 * took
            self._tally.add(working=-1, reserved=-reserved)

    def leave(self, fd: int) -> ConnectionJob:
        """Remove a request that waits: it begins, or its caller has hung up."""
        job, level = self._by_fd.pop(fd)
        self._waiting[level].remove(job)  # the first or the last, but for a hang-up
        self._bytes -= len(job.request.body)
        self._tally.add(waiting=-1)
        return job

    def wake_after(self, timeout: float, at_work: Callable[[ConnectionJob], bool], room: int) -> float:
        """How long the loop may wait for events, in place of `timeout` (seconds; negative: without end)."""
        if self._working:
            self._settle(at_work)
        if not self._by_fd:
            return timeout
        if self.ready(room):
            return 0.0
        if not self._tally.is_shared:
            return timeout
        return OTHERS_END if timeout < 0 else min(timeout, OTHERS_END)

    def _at_limit(self) -> bool:
        concurrency = self._limits.concurrency
        if concurrency is None or self._tally.working < concurrency:
            return False
        self._tally.forget_ended()
        return self._tally.working >= concurrency

    def _full(self) -> TooManyRequests:
        """The refusal of a request for which neither work nor a place to wait is free, until one at work has ended."""
        since = min((began for began, _ in self._working.values()), default=0.0)
        seconds = max(0.05, since + self._seconds - time.monotonic()) if self._seconds else 1.0
        concurrency = self._limits.concurrency
        at_work = f"{concurrency} requests are at work, the limit" if concurrency else "the model is at work"
        waits = f", and {self._queue} wait, the limit" if self._queue else ""
        return self._refusal(f"{at_work}{waits}", "queue" if self._queue or not concurrency else "concurrency", seconds)

    def _refuse_tokens(self, limit: int, tokens: int, now: int) -> NoReturn:
        seconds = self._tally.seconds_until(max(0, limit - tokens - self._tally.reserved), now)
        used, reserved = self._tally.tokens(now), self._tally.reserved
        at_work = f", and requests at work may take {reserved}" if reserved else ""
        asks = f"; this request may take {tokens}" if tokens > 1 else ""
        message = f"{used} tokens were computed in the last minute{at_work}; the limit is {limit}{asks}"
        raise self._refusal(message, "tokens_per_minute", seconds or self._seconds or 1.0)

    def _refusal(self, message: str, setting: str, seconds: float) -> TooManyRequests:
        return TooManyRequests(
            f"model {self._model!r}: {message}",
            hint=f"retry in {seconds:.2f} s, or raise {setting} under [limits] of {FILE}",
            model=self._model,
            retry_after=seconds,
        )
