"""The way out of a runner: answers, whole or in chunks, to peers that may be slow, or gone. Nothing here blocks."""

import logging
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from http import HTTPStatus
from typing import Any

from serve import errors, failures
from serve.errors import DeviceLost, InternalError, ServeError, TooLate
from serve.failures import exhausted, give_back
from serve.handlers.base import Predictor, Reply, Request
from serve.http import wire
from serve.http.addresses import OPENAI
from serve.slots import Slot

HANGS_UP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Poll:
    def __init__(self, listener: socket.socket, control: socket.socket) -> None:
        self._epoll = select.epoll()
        self.wait = self._epoll.poll
        self.watched: dict[int, int] = {}  # connections, by file descriptor: the events epoll has been told
        # EPOLLEXCLUSIVE: with several copies on one socket, wake one of them for a connection and not all.
        self._epoll.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        self._epoll.register(control, select.EPOLLIN)

    def retire(self, listener: socket.socket, control: socket.socket) -> None:
        """Hear no more of new connections, nor of the host."""
        self._epoll.unregister(listener)
        self._epoll.unregister(control)

    def watch(self, fd: int, events: int) -> None:
        known = self.watched.get(fd)
        if known is None:
            self._epoll.register(fd, events)
        elif known != events:
            self._epoll.modify(fd, events)
        self.watched[fd] = events

    def forget(self, fd: int) -> None:
        if self.watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def blocked(self, fd: int) -> bool:
        """Whether the peer has yet to take what was sent to it."""
        return bool(self.watched.get(fd, 0) & select.EPOLLOUT)


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


log = logging.getLogger(__name__)

# A request that has waited less than this is always tried: one slow batch must not turn all later ones away.
AT_ONCE = 0.05


class Batches:
    """A Predictor as the loop sees it: one `step` is one batch."""

    def __init__(self, predictor: Predictor, max_batch: int) -> None:
        self._predictor = predictor
        self._max_batch = max_batch
        self._pending: deque[Job] = deque()
        self._usual = 0.0  # seconds a batch takes, smoothed

    def decode(self, request: Request) -> Any:
        return self._predictor.decode(request)

    def room(self) -> int:
        return self._max_batch - len(self._pending)

    def join(self, job: Job) -> None:
        self._pending.append(job)

    def leave(self, job: Job) -> None:
        if job in self._pending:  # not when its answer was under way
            self._pending.remove(job)

    def step(self) -> None:
        batch = self._take()
        if not batch:
            return
        began = time.monotonic()
        for job in batch:
            if not job.began:
                job.begin(began)
        outcomes = self._outcomes(batch)
        took = time.monotonic() - began
        self._usual = took if not self._usual else 0.8 * self._usual + 0.2 * took
        for job, outcome in zip(batch, outcomes, strict=True):
            if outcome is None:
                self._pending.append(job)  # behind all who have come meanwhile
            elif isinstance(outcome, ServeError):
                job.fail(outcome)
            else:
                job.reply(outcome)

    def _take(self) -> list[Job]:
        """The oldest waiting job and all that may run with it, less those nobody waits for any more."""
        batch: list[Job] = []
        others: deque[Job] = deque()
        key: Hashable = None
        now = time.monotonic()
        while self._pending:
            job = self._pending.popleft()
            waited = now - job.arrived
            left = job.request.deadline - now
            if not job.began and (left <= 0 or (left < self._usual and waited > AT_ONCE)):
                job.fail(too_late(waited, self._usual))
            elif not batch:
                batch.append(job)
                key = self._predictor.compatible(job.item)
            elif len(batch) < self._max_batch and self._predictor.compatible(job.item) == key:
                batch.append(job)
            else:
                others.append(job)
        self._pending = others
        return batch

    def _outcomes(self, batch: list[Job]) -> Sequence[Reply | ServeError | None]:
        """One outcome a job; if the batch fails as a whole its members run alone, so that none pays for another."""
        try:
            return self._predictor.predict([job.item for job in batch])
        except Exception as error:
            if len(batch) == 1:
                return [outcome_of(error)]
            log.warning("batch failed, running its members alone", extra={"size": len(batch), "error": repr(error)})
            if exhausted(error):
                give_back(error)
        return [outcome for job in batch for outcome in self._outcomes([job])]


def outcome_of(error: Exception) -> ServeError:
    """An exception from a handler as the caller may see it; the log has the traceback."""
    if isinstance(error, ServeError):
        return error
    if lost := failures.lost(error):
        log.error("device lost", exc_info=error)
        return lost
    if out := exhausted(error):
        log.error("exhausted in predict", exc_info=error)
        give_back(error)  # before its neighbours run
        out.message = f"the model failed on this request: {out.message}"
        return out
    log.error("predict failed", exc_info=error)
    return InternalError(f"the model failed on this request: {type(error).__name__}: {error}", hint="see the log")


def too_late(waited: float, usual: float) -> TooLate:
    return TooLate(
        f"waited {waited:.1f} s in the queue and cannot be answered in time (a batch takes {usual:.1f} s)",
        hint="try again later, raise copies in model.toml, or SAGEMAKER_MODEL_SERVER_TIMEOUT",
        retry_after=max(1.0, usual),
    )


class Answers:
    """Everyone who waits for an answer, by file descriptor; each is in one of the three dictionaries."""

    def __init__(self, model: str, poll: Poll, slot: Slot, stream_limit: float, leave: Callable[[Job], None]) -> None:
        """`leave` is told of a job in the engine's hands whose caller has hung up."""
        self.model = model  # its name, for errors
        self._poll = poll
        self._slot = slot
        self._begun = 0.0  # time.monotonic() at the arrival last told of
        self._ended = False  # somebody at work since then
        self._stream_limit = stream_limit
        self._leave = leave
        self.lost: DeviceLost | None = None  # what ends this process
        self.joined: dict[int, Job] = {}  # in the engine's hands
        self.pulled: dict[int, tuple[Job, Iterator[bytes]]] = {}  # streams made by a generator
        self.leaving: dict[int, wire.Connection] = {}  # answered, but the peer has not taken all yet

    # What a Job calls.

    def begun(self, job: Job) -> None:
        """Tell the host when the newest request at work arrived, in milliseconds since 1970 as nginx has it."""
        if job.arrived < self._begun and not self._ended:
            return  # the one told of is still at work
        self._begun = job.arrived if job.arrived >= self._begun else max(self._at_work(), job.arrived)
        self._ended = False
        self._slot.set("begun", int((time.time() - time.monotonic() + self._begun) * 1e3))

    def _at_work(self) -> float:
        """The latest arrival among those whose work has begun; looked for when an older one begins after a newer."""
        jobs = (*self.joined.values(), *(job for job, _ in self.pulled.values()))
        return max((job.arrived for job in jobs if job.began), default=0.0)

    def pull(self, job: Job, chunks: Iterator[bytes]) -> None:
        """Take chunks from a generator, one a turn, as fast as the peer takes them."""
        fd = job.connection.sock.fileno()
        if self.joined.pop(fd, None) is None:
            return  # hung up while its head was sent
        self.pulled[fd] = job, chunks
        self._poll.watch(fd, select.EPOLLRDHUP)

    def write(self, job: Job, data: bytes) -> None:
        """Part of a stream."""
        fd = job.connection.sock.fileno()
        if fd < 0:
            return
        try:
            done = job.connection.write(data)
        except wire.Gone:
            self.hung_up(fd)
            return
        if fd in self.joined or fd in self.pulled:
            self._poll.watch(fd, select.EPOLLRDHUP if done else select.EPOLLRDHUP | select.EPOLLOUT)

    def end(self, job: Job, data: bytes, status: int) -> None:
        """The last bytes of an answer; the connection closes when the peer has them."""
        self._ended = True
        self._count(job, status)
        fd = job.connection.sock.fileno()
        if fd < 0:
            return
        self.joined.pop(fd, None)
        self.pulled.pop(fd, None)
        try:
            done = job.connection.write(data)
        except wire.Gone:
            done = True
        if done:
            self._close(fd, job.connection)
        else:
            self.leaving[fd] = job.connection
            self._poll.watch(fd, select.EPOLLOUT)

    def cut(self, job: Job, error: ServeError) -> None:
        """A stream failed after its head had left: break the connection off."""
        self._ended = True
        log.error("stream cut", extra={"request_id": job.request.id, "error": error.message})
        self._count(job, int(InternalError.status))
        fd = job.connection.sock.fileno()
        if fd < 0:
            return
        self.joined.pop(fd, None)
        self.pulled.pop(fd, None)
        self._close(fd, job.connection)

    # What the loop calls.

    def may_pull(self) -> bool:
        """Whether there is a stream to make a chunk of."""
        return any(not self._poll.blocked(fd) for fd in self.pulled)

    def pull_all(self) -> None:
        """One chunk of each stream whose peer has taken the last."""
        for fd, (job, chunks) in list(self.pulled.items()):
            if not self._poll.blocked(fd):
                self._pull_one(job, chunks)

    def flush(self, fd: int) -> None:
        """The peer takes more."""
        connection = self.leaving.get(fd)
        if connection is None:
            held = self.joined.get(fd) or self.pulled[fd][0]
            connection = held.connection
        try:
            done = connection.flush()
        except wire.Gone:
            self.hung_up(fd)
            return
        if not done:
            return
        if fd in self.leaving:
            del self.leaving[fd]
            self._close(fd, connection)
        else:
            self._poll.watch(fd, select.EPOLLRDHUP)

    def hung_up(self, fd: int) -> None:
        """The caller is gone: whatever is being done for it stops here, within one step."""
        self._ended = True
        if fd in self.joined:
            job = self.joined.pop(fd)
            self._leave(job)
            connection = job.connection
        elif fd in self.pulled:
            connection = self.pulled.pop(fd)[0].connection
        elif fd in self.leaving:
            connection = self.leaving.pop(fd)
        else:
            return
        self._close(fd, connection)

    def _pull_one(self, job: Job, chunks: Iterator[bytes]) -> None:
        self._slot.set("busy_since", time.monotonic_ns())
        try:
            if time.monotonic() > job.request.stream_deadline:
                raise TooLate(f"the stream took longer than {self._stream_limit:g} s", hint="SERVE_STREAM_LIMIT")
            data = next(chunks)
        except StopIteration:
            job.finish()
        except Exception as error:
            job.fail(outcome_of(error))
        else:
            job.send(data)
        self._slot.set("busy_since", 0)

    def _count(self, job: Job, status: int) -> None:
        slot = self._slot
        slot.add("requests")
        if job.started:
            slot.add("streams")
        if status == HTTPStatus.INSUFFICIENT_STORAGE:
            slot.add("exhausted")
        elif slot.get("exhausted"):
            slot.set("exhausted", 0)
        if status >= 500:
            slot.add("server_errors")
        elif status >= 400:
            slot.add("client_errors")
        slot.add("queue_ns", int(((job.began or time.monotonic()) - job.arrived) * 1e9))

    def _close(self, fd: int, connection: wire.Connection) -> None:
        self._poll.forget(fd)
        connection.close()
