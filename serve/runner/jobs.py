"""Jobs of a runner: their batches, their answers and the connections that the answers leave by. Nothing here blocks.

A job is in exactly one place at a time: in the engine's queue (`Batches`, or a Stepwise handler), in a stream made by a
generator, or in the send buffer of its connection. `Answers` is the only object that moves it from one to the next.
"""

import logging
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from serve import capture, errors, failures
from serve.errors import InternalError, ServeError, TooLate
from serve.failures import ENDS_PROCESS, described, exhausted, give_back
from serve.handlers.base import Predictor, Reply, Request
from serve.http import media, wire
from serve.http.addresses import OPEN_INFERENCE, OPENAI
from serve.slots import AT, Slot

log = logging.getLogger(__name__)

HANGS_UP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

# Fields of the slot that each request writes.
_REQUESTS, _EXHAUSTED, _QUEUE_NS, _RECEIVE_NS = (
    AT[name] for name in ("requests", "exhausted", "queue_ns", "receive_ns")
)

INSUFFICIENT_STORAGE = int(HTTPStatus.INSUFFICIENT_STORAGE)

# A request that has waited less than this is always tried: one slow batch must not cause all later ones to be refused.
FRESH_SECONDS = 0.05


class Poll:
    """The runner's epoll, with the events that are registered for each connection."""

    def __init__(self, listener: socket.socket, control: socket.socket) -> None:
        self._epoll = select.epoll()
        self.wait = self._epoll.poll
        self._events: dict[int, int] = {}  # of connections, by file descriptor
        # EPOLLEXCLUSIVE: if several copies listen on one socket, a connection wakes one of them and not all.
        self._epoll.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        self._epoll.register(control, select.EPOLLIN)
        self._listening = select.poll()
        self._listening.register(listener, select.POLLIN)

    def connects(self) -> bool:
        """Whether a connection waits to be accepted."""
        return bool(self._listening.poll(0))

    def retire(self, listener: socket.socket, control: socket.socket) -> None:
        """Stop watching for new connections and for messages of the host."""
        self._epoll.unregister(listener)
        self._epoll.unregister(control)

    def watch(self, fd: int, events: int) -> None:
        """Watch a connection for these events and no others."""
        known = self._events.get(fd)
        if known is None:
            self._epoll.register(fd, events)
        elif known != events:
            self._epoll.modify(fd, events)
        self._events[fd] = events

    def watches(self, fd: int) -> bool:
        return fd in self._events

    def forget(self, fd: int) -> None:
        """Stop watching a connection. Call before the connection is closed, since the number is reused."""
        if self._events.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def blocked(self, fd: int) -> bool:
        """Whether the send buffer of this connection is full."""
        return bool(self._events.get(fd, 0) & select.EPOLLOUT)


class Waited:
    """What a request has waited for before its work: its own upload, a load of the model, other requests; in seconds.

    `decode` is work, although it comes before the wait in the engine.
    """

    __slots__ = ("arrived", "decode", "load", "receive")

    def __init__(self, arrived: float, receive: float = 0.0, load: float = 0.0) -> None:
        self.arrived = arrived  # time.monotonic() when nginx began to receive the request
        self.receive = receive  # until nginx had all of it; of a reference, also until the object was here
        self.load = load  # for a load of the model
        self.decode = 0.0

    def queue(self, begun: float) -> float:
        """Seconds in the queue until `begun` (time.monotonic()): all that is none of the other three."""
        waited = begun - self.arrived - self.receive - self.load - self.decode
        return waited if waited > 0.0 else 0.0  # not max(): this is called for each request

    def for_model(self, now: float) -> float:
        """Seconds since the request was here completely."""
        return now - self.arrived - self.receive


class ConnectionJob:
    """A decoded request and the connection its answer is sent to: the Job of serve.handlers.base."""

    __slots__ = (
        "_answers",
        "_status",
        "arrived",
        "begun_monotonic",
        "connection",
        "item",
        "queued",
        "request",
        "started",
        "waited",
    )

    def __init__(self, answers: "Answers", connection: wire.Connection, request: Request, waited: Waited) -> None:
        self._answers = answers
        self.connection = connection
        self.request = request
        self.item: Any = None
        self.waited = waited
        self.arrived = waited.arrived
        self.begun_monotonic = 0.0  # time.monotonic() when work on it began; 0 while it is queued
        self.queued = 0.0  # seconds; known with the head of its answer
        self.started = False  # the head of its stream has been sent
        self._status = 200  # of its stream

    def begin(self, now: float) -> None:
        """Record that work on this job begins. The host may not retry it, nor any job that arrived before it."""
        self.begun_monotonic = now
        self._answers.begun(self)

    def reply(self, reply: Reply) -> None:
        body, status = reply.body, reply.status
        if isinstance(body, bytes):
            head = wire.head(status, reply.content_type, len(body), self._headers(reply), reply.reason)
            if len(body) > wire.CHUNK:  # too large to be copied behind its head
                self._answers.write(self, head)
                self._answers.end(self, body, status)
            else:
                self._answers.end(self, head + body, status)
        else:
            self._open(reply)
            self._answers.stream(self, body)

    def fail(self, error: ServeError) -> None:
        if isinstance(error, ENDS_PROCESS):
            self._answers.lost = error
        if self.started:
            # Status 200 has been sent. A closed connection is the only way left to mark the answer as incomplete.
            self._answers.cut(self, error)
            return
        error.model = error.model or self._answers.model
        path = self.request.path
        body = errors.body(error, self.request.id, openai=path in OPENAI, open_inference=path in OPEN_INFERENCE)
        headers = {**errors.headers(error), "Server-Timing": self._timing()}
        self._answers.end(self, wire.answer(error.status, media.JSON, body, headers), error.status)

    def start(self, content_type: str) -> None:
        self._open(Reply(body=b"", content_type=content_type))

    def _open(self, reply: Reply) -> None:
        """Send the head of a stream."""
        self.started, self._status = True, reply.status
        head = wire.stream_head(reply.content_type, self._headers(reply), reply.status, reply.reason)
        self._answers.write(self, head)

    def send(self, chunk: bytes) -> None:
        if chunk:  # an empty chunk would end the stream
            self._answers.write(self, wire.chunk(chunk))

    def finish(self) -> None:
        self._answers.end(self, wire.LAST_CHUNK, self._status)

    def _headers(self, reply: Reply) -> dict[str, str]:
        timing = self._timing()
        return {**reply.headers, "Server-Timing": timing} if reply.headers else {"Server-Timing": timing}

    def _timing(self) -> str:
        """The Server-Timing header, in milliseconds: upload, cold load if there was one, queue, work.

        The work of a stream is that before its first chunk.
        """
        now = time.monotonic()
        begun = self.begun_monotonic or now
        waited = self.waited
        self.queued = waited.queue(begun)
        load = f", load;dur={waited.load * 1e3:.2f}" if waited.load else ""
        receive = round(waited.receive * 1e3) if waited.receive else 0
        queue, work = self.queued * 1e3, (now - begun + waited.decode) * 1e3
        return f"receive;dur={receive}{load}, queue;dur={queue:.2f}, work;dur={work:.2f}"


class Batches:
    """A Predictor behind the interface of a Stepwise handler: one `step` runs one batch.

    Jobs that share no batch, and those that need several, run one after another, first come first served. Other jobs
    wait for one batch of them at most: they share it, or take turns with it.
    """

    def __init__(self, predictor: Predictor, max_batch: int) -> None:
        self._predictor = predictor
        self._max_batch = max_batch
        self._pending: deque[ConnectionJob] = deque()
        self._alone: deque[ConnectionJob] = deque()  # those that share no batch, and those that have had one
        self._alone_is_next = False
        self._batch_seconds = 0.0  # the duration of a batch, smoothed; 0 before the first

    def decode(self, request: Request) -> Any:
        return self._predictor.decode(request)

    def room(self) -> int:
        return self._max_batch - len(self._pending) if len(self._alone) < self._max_batch else 0

    def join(self, job: ConnectionJob) -> None:
        alone = self._predictor.compatible(job.item) is job.item
        (self._alone if alone else self._pending).append(job)

    def leave(self, job: ConnectionJob) -> None:
        for jobs in (self._pending, self._alone):
            if job in jobs:  # it is absent if the caller hung up during its batch
                jobs.remove(job)

    def step(self) -> None:
        batch, head = self._take()
        if not batch:
            return
        begun = time.monotonic()
        for job in reversed(batch):  # the newest first: it is the one that is reported
            if not job.begun_monotonic:
                job.begin(begun)
        outcomes = self._outcomes(batch)
        took = time.monotonic() - begun
        self._batch_seconds = took if not self._batch_seconds else 0.8 * self._batch_seconds + 0.2 * took
        for job, outcome in zip(batch, outcomes, strict=True):
            if outcome is None:
                if job is not head:
                    self._alone.append(job)
                continue
            if job is head and job in self._alone:
                self._alone.remove(job)
            if isinstance(outcome, ServeError):
                job.fail(outcome)
            else:
                job.reply(outcome)

    def _take(self) -> tuple[list[ConnectionJob], ConnectionJob | None]:
        """The jobs of the next batch, and the first of those alone if it is one of them."""
        now = time.monotonic()
        head = self._head(now) if self._alone else None
        batch = [] if head and self._alone_is_next else self._oldest(now)
        if head is None:
            return batch, None
        if not batch or self._shares(batch, head):
            self._alone_is_next = False
            return [*batch, head], head
        self._alone_is_next = True
        return batch, None

    def _head(self, now: float) -> ConnectionJob | None:
        """The first of the jobs alone that can meet its deadline."""
        while self._alone:
            job = self._alone[0]
            left = job.request.deadline - now
            if not ((left <= 0 or left < self._batch_seconds) and self._too_late(job, left, now)):
                return job
            self._alone.popleft()
            job.fail(deadline_exceeded(job.waited, now, self._batch_seconds))
        return None

    def _shares(self, batch: list[ConnectionJob], job: ConnectionJob) -> bool:
        key = self._predictor.compatible(job.item)
        return key is not job.item and len(batch) < self._max_batch and self._predictor.compatible(batch[0].item) == key

    def _oldest(self, now: float) -> list[ConnectionJob]:
        """The oldest job and all that are compatible with it. Jobs that cannot meet their deadline are failed here."""
        batch: list[ConnectionJob] = []
        others: deque[ConnectionJob] = deque()
        key: Hashable = None
        while self._pending:
            job = self._pending.popleft()
            left = job.request.deadline - now
            # First the cheap test: it is made for each waiting request before each batch.
            if (left <= 0 or left < self._batch_seconds) and self._too_late(job, left, now):
                job.fail(deadline_exceeded(job.waited, now, self._batch_seconds))
            elif not batch:
                batch.append(job)
                key = self._predictor.compatible(job.item)
            elif len(batch) < self._max_batch and self._predictor.compatible(job.item) == key:
                batch.append(job)
            else:
                others.append(job)
        self._pending = others
        return batch

    @staticmethod
    def _too_late(job: ConnectionJob, left: float, now: float) -> bool:
        """Whether a job with less time left than a batch takes is refused: not if it has begun, or has just come."""
        return not job.begun_monotonic and (left <= 0 or job.waited.for_model(now) > FRESH_SECONDS)

    def _outcomes(self, batch: list[ConnectionJob]) -> Sequence[Reply | ServeError | None]:
        """One outcome for each job. If the batch raises, its jobs run one by one, so that only the faulty one fails."""
        capture.begin(tuple([job.request.id for job in batch]))
        try:
            return self._predictor.predict([job.item for job in batch])
        except BaseException as error:
            if len(batch) == 1:
                return [outcome_of(error)]
            log.warning(
                "batch failed, retrying its requests one by one", extra={"size": len(batch), "error": described(error)}
            )
            if exhausted(error):
                give_back(error)
        return [outcome for job in batch for outcome in self._outcomes([job])]


def outcome_of(error: BaseException) -> ServeError:
    """The error to answer for an exception of a handler. The traceback goes to the log.

    Of any class: own code may call sys.exit, and a panic of a library in Rust is a BaseException. The process ignores
    the signal of Ctrl-C.
    """
    if isinstance(error, ServeError):
        return error
    if lost := failures.lost(error):
        log.error("process lost", exc_info=error)
        return lost
    if out := exhausted(error):
        log.error("out of resources in predict", exc_info=error)
        give_back(error)  # before the other requests of the batch run
        out.message = f"the model failed on this request: {out.message}"
        return out
    log.error("predict failed", exc_info=error)
    return InternalError(f"the model failed on this request: {described(error)}", hint="see the log")


def deadline_exceeded(waited: Waited, now: float, batch_seconds: float = 0.0) -> TooLate:
    """The error for a request that is still queued and can no longer be answered before its deadline.

    Its hint is about the longest wait: copies do not help a request that waited for a load.
    """
    queue = waited.queue(now)
    load = f"{waited.load:.1f} s for the load of the model and " if waited.load else ""
    batch = f" (a batch takes {batch_seconds:.1f} s)" if batch_seconds else ""
    remedy = "raise copies in model.toml" if queue >= waited.load else "load the model at the start (SERVE_PRELOAD)"
    return TooLate(
        f"timeout: the request waited {load}{queue:.1f} s in the queue and cannot be answered before its deadline"
        f"{batch}",
        hint=f"retry, {remedy}, or raise SAGEMAKER_MODEL_SERVER_TIMEOUT",
        retry_after=max(1.0, batch_seconds),
    )


class Answers:
    """The connections that are owed an answer, by file descriptor. Each is in one of three mappings.

    joined   the job is in the engine
    streams  the job's answer is a generator, from which the loop takes one chunk a turn
    sending  the answer is complete; the peer has yet to read the rest of it

    The loop reads them (as attributes, since it does so several times for each request); only this class changes them.
    """

    def __init__(
        self, model: str, poll: Poll, slot: Slot, stream_limit: float, leave: Callable[[ConnectionJob], None]
    ) -> None:
        """`leave` removes from the engine a job whose caller has hung up."""
        self.model = model  # its name, for errors
        self.lost: ServeError | None = None  # set when a new process must take over
        self._poll = poll
        self._slot = slot
        self._stream_limit = stream_limit
        self._leave = leave
        self._joined: dict[int, ConnectionJob] = {}
        self._streams: dict[int, tuple[ConnectionJob, Iterator[bytes]]] = {}
        self._sending: dict[int, wire.Connection] = {}
        self._unwatched: list[int] = []  # of those that have joined since the last `watch_joined`
        self.joined: Mapping[int, ConnectionJob] = self._joined
        self.streams: Mapping[int, tuple[ConnectionJob, Iterator[bytes]]] = self._streams
        self.sending: Mapping[int, wire.Connection] = self._sending
        # The arrival (time.monotonic()) of the job last reported to the host as begun, and whether any job has ended
        # since: then the reported one may be gone, and the newest of the others must be looked for.
        self._reported_arrival_monotonic = 0.0
        self._ended_since_report = False

    # Called by the loop.

    def join(self, job: ConnectionJob) -> None:
        """Note that the engine is about to take this job."""
        fd = job.connection.fd
        self._joined[fd] = job
        self._unwatched.append(fd)

    def fail_joined(self, error: ServeError) -> None:
        """Fail every job in the engine."""
        for job in list(self._joined.values()):
            job.fail(error)

    def watch_joined(self) -> None:
        """Watch for hang-ups of the jobs that stay in the engine for another turn."""
        if self._unwatched:
            for fd in self._unwatched:
                if fd in self._joined and not self._poll.watches(fd):
                    self._poll.watch(fd, select.EPOLLRDHUP)
            self._unwatched.clear()

    def can_advance(self) -> bool:
        """Whether the peer of a stream can take another chunk."""
        return any(not self._poll.blocked(fd) for fd in self._streams)

    def advance_streams(self) -> None:
        """Send one chunk of each stream whose peer has taken the last."""
        for fd, (job, chunks) in list(self._streams.items()):
            if not self._poll.blocked(fd):
                self._advance(job, chunks)

    def flush(self, fd: int) -> None:
        """Send more to a peer that can take more."""
        connection = self._sending.get(fd)
        if connection is None:
            held = self._joined.get(fd) or self._streams[fd][0]
            connection = held.connection
        try:
            done = connection.flush()
        except wire.Gone:
            self.hung_up(fd)
            return
        if not done:
            return
        if fd in self._sending:
            del self._sending[fd]
            self._close(fd, connection)
        else:
            self._poll.watch(fd, select.EPOLLRDHUP)

    def hung_up(self, fd: int) -> None:
        """The caller closed its connection: stop the work on its request, within one step."""
        self._ended_since_report = True
        if fd in self._joined:
            job = self._joined.pop(fd)
            self._leave(job)
            connection = job.connection
        elif fd in self._streams:
            connection = self._streams.pop(fd)[0].connection
        elif fd in self._sending:
            connection = self._sending.pop(fd)
        else:
            return
        self._close(fd, connection)

    def hang_up(self, job: ConnectionJob) -> None:
        """Close the connection of a job that has not joined."""
        self._close(job.connection.fd, job.connection)

    # Called by jobs.

    def begun(self, job: ConnectionJob) -> None:
        """Report to the host, in the slot, the newest arrival among the requests whose work has begun.

        In milliseconds since 1970, the clock of nginx, because the host compares it with nginx's X-Serve-Clock.
        """
        if job.arrived < self._reported_arrival_monotonic and not self._ended_since_report:
            return  # the newer one that was reported is still at work
        newest = job.arrived if job.arrived >= self._reported_arrival_monotonic else max(self._newest(), job.arrived)
        self._reported_arrival_monotonic = newest
        self._ended_since_report = False
        self._slot.set("begun_arrival_epoch_ms", int((time.time() - time.monotonic() + newest) * 1e3))

    def _newest(self) -> float:
        """The latest arrival among the jobs at work. It walks all of them: needed when an older one begins last."""
        jobs = (*self._joined.values(), *(job for job, _ in self._streams.values()))
        return max((job.arrived for job in jobs if job.begun_monotonic), default=0.0)

    def stream(self, job: ConnectionJob, chunks: Iterator[bytes]) -> None:
        """Take chunks from a generator from now on, one a turn, as fast as the peer reads them."""
        fd = job.connection.fd
        if self._joined.pop(fd, None) is None:
            return  # the caller hung up while the head was sent
        self._streams[fd] = job, chunks
        self._poll.watch(fd, select.EPOLLRDHUP)

    def write(self, job: ConnectionJob, data: bytes) -> None:
        """Send a part of an answer."""
        fd = job.connection.fd
        if fd < 0:
            return
        try:
            done = job.connection.write(data)
        except wire.Gone:
            self.hung_up(fd)
            return
        if fd in self._joined or fd in self._streams:
            self._poll.watch(fd, select.EPOLLRDHUP if done else select.EPOLLRDHUP | select.EPOLLOUT)

    def end(self, job: ConnectionJob, data: bytes, status: int) -> None:
        """Send the last bytes of an answer. The connection is closed when the peer has read them."""
        fd = self._finished(job, status)
        if fd < 0:
            return
        try:
            done = job.connection.write(data)
        except wire.Gone:
            done = True
        if done:
            self._close(fd, job.connection)
        else:
            self._sending[fd] = job.connection
            self._poll.watch(fd, select.EPOLLOUT)

    def cut(self, job: ConnectionJob, error: ServeError) -> None:
        """Close the connection of a stream that failed after its head was sent."""
        log.error("stream failed, connection closed", extra={"request_id": job.request.id, "error": error.message})
        fd = self._finished(job, int(InternalError.status))
        if fd >= 0:
            self._close(fd, job.connection)

    def _finished(self, job: ConnectionJob, status: int) -> int:
        """Count a job and forget it; its file descriptor, or -1 if its caller has hung up."""
        self._ended_since_report = True
        self._count(job, status)
        fd = job.connection.fd
        if self._joined.pop(fd, None) is None:
            self._streams.pop(fd, None)
        return fd

    def _advance(self, job: ConnectionJob, chunks: Iterator[bytes]) -> None:
        began = time.monotonic_ns()
        self._slot.set("busy_since", began)
        capture.begin((job.request.id,))
        try:
            if time.monotonic() > job.request.stream_deadline:
                raise TooLate(
                    f"timeout: the stream took longer than {self._stream_limit:g} s", hint="raise SERVE_STREAM_LIMIT"
                )
            data = next(chunks)
        except StopIteration:
            job.finish()
        except BaseException as error:
            job.fail(outcome_of(error))
        else:
            job.send(data)
        self._slot.add("work_ns", time.monotonic_ns() - began)
        self._slot.set("busy_since", 0)

    def _count(self, job: ConnectionJob, status: int) -> None:
        slot, numbers, waited = self._slot, self._slot.numbers, job.waited
        numbers[_REQUESTS] += 1
        if job.started:
            slot.add("streams")
        if status == INSUFFICIENT_STORAGE:
            slot.add("exhausted")
        elif numbers[_EXHAUSTED]:
            numbers[_EXHAUSTED] = 0
        if status >= 500:
            slot.add("server_errors")
        elif status >= 400:
            slot.add("client_errors")
        if waited.receive:
            numbers[_RECEIVE_NS] += int(waited.receive * 1e9)
        numbers[_QUEUE_NS] += int(job.queued * 1e9)
        if waited.load:
            slot.add("load_wait_ns", int(waited.load * 1e9))

    def _close(self, fd: int, connection: wire.Connection) -> None:
        self._poll.forget(fd)
        connection.close()
