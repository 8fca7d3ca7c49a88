"""The loop of a runner: one process, one thread. Wait, accept, read, run one turn of work, send, close.

The listening socket is the queue. A connection that the engine has no room for stays in the kernel's backlog: its work
has not begun, and another copy of the model, or the next runner, can accept it. A retiring runner stops accepting,
answers the requests it holds, and exits.

What comes first is answered first: a turn decodes for a limited time, so that the first of many requests is answered
before the last is decoded. Large bodies have a queue of their own (serve/runner/large.py).
"""

import gc
import select
import socket
import time

import msgspec

from serve import capture
from serve.control import SHRINK, Lost, Shrunk, tell
from serve.errors import ServeError
from serve.failures import exhausted, give_back
from serve.handlers.base import Caches, Request
from serve.http import media, wire
from serve.runner.arrival import Addressee, Arrival, ColdStart
from serve.runner.jobs import (
    FRESH_SECONDS,
    HANGS_UP,
    Answers,
    ConnectionJob,
    Poll,
    Waited,
    deadline_exceeded,
    outcome_of,
)
from serve.runner.large import SMALL, LargeBodies, is_large
from serve.runner.limits import Admission
from serve.runner.records import Engine
from serve.runner.references import References
from serve.runner.rest import AFTER, Rest
from serve.settings import Settings
from serve.slots import AT, BEAT, Slot

_BUSY_SINCE, _LAST_USED, _TURNS = AT["busy_since"], AT["last_used"], AT["turns"]  # of the slot
LARGE = 1 << 20  # bytes; a larger body is dropped once it is decoded
# The time for which a turn decodes requests before it runs those that it has: at least so long, or as this part of the
# last steps' time, in which the decoding of a full batch fits.
DECODE_NS, DECODE_SHARE = 20_000_000, 0.25


class Loop:
    def __init__(
        self,
        engine: Engine,
        addressee: Addressee,
        listener: socket.socket,
        control: socket.socket,
        slot: Slot,
        settings: Settings,
        cold: ColdStart,
        *,
        stepwise: bool,
        rest: Rest,
        caches: Caches | None = None,
        admission: Admission | None = None,
    ) -> None:
        """`stepwise`: each step advances all jobs, in place of one batch. `caches`: those of the handler.

        `admission`: of a model with limits; else the socket's queue is the only one.
        """
        self._engine = engine
        self._addressee = addressee
        self._listener = listener
        self._control = control
        self._slot = slot
        self._arrival = Arrival(settings, cold)
        self._stepwise = stepwise
        self._caches = caches
        self._admission = admission
        self._decode_ns = 0  # not counted in the slot yet
        self._spent_ns = 0  # decoding in this turn
        self._step_ns = 0.0  # the time of a step, smoothed
        self._large = LargeBodies()
        self._large_pace = 0.0  # seconds for a byte of a large body, from its decoding to the end of its step
        self._large_taken: tuple[float, int] | None = None  # in this turn: when, and the bytes
        self._poll = Poll(listener, control)
        self._answers = Answers(addressee.model, self._poll, slot, settings.stream_limit, engine.leave)
        self._references = References(self._poll, settings)
        self._reading: dict[int, tuple[wire.Connection, float]] = {}  # by file descriptor: incomplete requests
        self._rest = rest
        self._accepting = True

    def run(self) -> ServeError | None:
        """Serve until the host asks this runner to retire, or closes its channel; the error that ended it, if any."""
        while self._accepting or self._held():
            self._wait()
            self._turn()
            # Also here: otherwise the host would see an idle model as busy until its next request, and not evict it.
            self._slot.set("in_flight", self._held())
            if self._answers.lost and self._accepting:
                tell(self._control, Lost(self._answers.lost.message))
                self._retire()
        return self._answers.lost

    def _held(self) -> int:
        """Requests that this process has accepted and not answered completely."""
        answers = self._answers
        held = len(self._reading) + len(self._large) + len(self._references.held)
        if self._admission is not None:
            held += len(self._admission)
        return held + len(answers.joined) + len(answers.streams) + len(answers.sending)

    def _wait(self) -> None:
        answers = self._answers
        busy = answers.joined or self._large.ready or (answers.streams and answers.can_advance())
        if not busy:
            capture.end()
        self._spent_ns = 0
        timeout = 0 if busy else self._references.seconds_left(BEAT)
        if self._admission is not None:
            timeout = self._admission.wake_after(timeout, self._at_work, self._engine.room())
        for fd, event in self._events(timeout):
            if fd == self._listener.fileno():
                continue
            if fd == self._control.fileno():
                self._obey()
            elif fd in self._reading:
                self._read(*self._reading.pop(fd))
            elif fd == self._references.fd:
                self._references.collect()
            elif fd in self._references.held:
                self._references.hung_up(fd)
            elif event & HANGS_UP:
                if self._admission is not None and fd in self._admission:
                    self._answers.hang_up(self._admission.leave(fd))
                else:
                    answers.hung_up(fd)
            elif event & select.EPOLLOUT:
                answers.flush(fd)
        if self._references.held:
            self._references.expire()
        while self._references.fetched and self._engine.room() > 0 and not self._decoded_enough():
            self._decode(self._references.take())
        if self._accepting:
            self._accept()
        if self._large:
            self._advance_large()
        if self._admission is not None:
            while not self._decoded_enough() and (job := self._admission.next(self._engine.room())) is not None:
                self._start(job)
        self._slot.set("in_flight", self._held())

    def _at_work(self, job: ConnectionJob) -> bool:
        """Whether a request that has begun is not answered yet."""
        fd = job.connection.fd
        answers = self._answers
        return fd >= 0 and (fd in answers.joined or fd in answers.streams or fd in self._references.held)

    def _decoded_enough(self) -> bool:
        """Whether this turn has decoded for as long as it may."""
        spent = self._spent_ns
        return spent > DECODE_NS and spent > self._step_ns * DECODE_SHARE

    def _advance_large(self) -> None:
        """Read further large bodies; decode the complete ones, one in each turn at least."""
        while connection := self._large.next_to_read():
            self._reading[connection.fd] = connection, time.monotonic()
            self._poll.watch(connection.fd, select.EPOLLIN)
        while self._large.ready and self._engine.room() > 0:
            if self._admission is not None and not self._admission.accepts():
                return
            self._admit(self._large.take(), large=True)
            if self._decoded_enough():
                return

    def _events(self, seconds: float) -> list[tuple[int, int]]:
        """Wait for at most so long; where nothing is held, until something happens."""
        numbers = self._slot.numbers
        while True:
            numbers[_TURNS] += 1  # the host takes an idle runner that makes none for stopped or blocked
            events = self._poll.wait(min(seconds, AFTER) if self._rest.worked else seconds)
            if not events and seconds and self._rest.worked:
                self._rest.begin()
            if events or not seconds or self._references.held or self._admission:  # whose requests wait
                return events

    def _accept(self) -> None:
        # In every turn, not only when epoll reports a connection: the last turn may have left some for lack of room.
        room = self._engine.room() if self._admission is None else self._admission.accepts()
        for count in range(room - len(self._reading) + self._large.reading):
            if self._large.full or (self._spent_ns > DECODE_NS and self._decoded_enough()):
                return
            # An accept in vain takes 5 us, for its exception, and this question 0.5; it is asked before the first,
            # second, third, fifth, ninth... so that it costs little where many wait.
            if not count & (count - 1) and not self._poll.connects():
                return
            try:
                connection = wire.accept(self._listener)
            except BlockingIOError:
                return
            except OSError as error:
                # Out of file descriptors; the kernel reports that even if no connection waits. The requests in hand
                # will free some. Without any in hand they have leaked: exit, and the next process serves the queue.
                if exhausted(error) is None or not (self._held() or gc.collect()):
                    raise
                return
            self._read(connection, time.monotonic(), fresh=True)

    def _obey(self) -> None:
        """Do what the host asks for: free the caches, or retire. Its end is an end of file."""
        try:
            order = self._control.recv(64)
        except OSError:
            order = b""
        if order != SHRINK:
            self._retire()
            return
        if self._caches is not None:
            self._caches.free()
            give_back()
            self._slot.set("spare_bytes", self._caches.bytes)
        tell(self._control, Shrunk())

    def _retire(self) -> None:
        """Stop accepting. The host has asked for it, or has ended (end of file)."""
        self._accepting = False
        self._poll.retire(self._listener, self._control)
        self._listener.close()

    def _read(self, connection: wire.Connection, accepted: float, *, fresh: bool = False) -> None:
        fd = connection.fd
        try:
            complete = connection.read(once=fresh)
            if fresh and not complete:
                if connection.length > SMALL:
                    self._large.add(connection)
                    return
                complete = connection.read()
        except wire.Gone:
            self._poll.forget(fd)
            self._large.broke(connection)
            connection.close()
            return
        except ServeError as error:
            self._poll.forget(fd)
            self._large.broke(connection)
            ConnectionJob(self._answers, connection, Request(body=b"", content_type=""), Waited(accepted)).fail(error)
            return
        if complete:
            self._poll.forget(fd)
            if is_large(connection):
                self._large.completed(connection)
            else:
                self._admit(connection)
        else:
            self._reading[fd] = connection, accepted
            self._poll.watch(fd, select.EPOLLIN)

    def _admit(self, connection: wire.Connection, *, large: bool = False) -> None:
        """A request is complete: decode it, or fetch its body from S3 first if it is a reference."""
        began = time.monotonic_ns()
        if large:
            self._slot.numbers[_BUSY_SINCE] = began
        self._rest.worked = True
        request, waited, invalid = self._arrival.received(connection)
        job = ConnectionJob(self._answers, connection, request, waited)
        if large:
            self._slot.numbers[_BUSY_SINCE] = 0
            self._spent_ns += time.monotonic_ns() - began  # unpacking
            invalid = invalid or self._too_late(request, waited)
            if invalid is None:
                since, size = self._large_taken or (began / 1e9, 0)
                self._large_taken = since, size + len(request.body)
        if invalid is not None:
            job.fail(invalid)
        elif self._admission is not None:
            self._admission.offer(job, self._engine.room())
            if connection.fd in self._admission:
                self._poll.watch(connection.fd, select.EPOLLRDHUP)
        else:
            self._start(job)

    def _start(self, job: ConnectionJob) -> None:
        if job.request.content_type == media.URI_LIST:
            try:
                self._references.add(job)
            except Exception as error:  # an invalid reference, or out of file descriptors
                job.fail(outcome_of(error))
        else:
            self._decode(job)

    def _too_late(self, request: Request, waited: Waited) -> ServeError | None:
        """The error for a large body that has waited too long to be answered in time, before it is decoded."""
        now = time.monotonic()
        takes = self._large_pace * len(request.body)
        if now + takes <= request.deadline or waited.for_model(now) < FRESH_SECONDS:
            return None
        return deadline_exceeded(waited, now, takes)

    def _decode(self, job: ConnectionJob) -> None:
        """Add a job to the engine. An invalid request is answered here and never joins a batch."""
        began = time.monotonic_ns()
        numbers = self._slot.numbers
        numbers[_BUSY_SINCE] = numbers[_LAST_USED] = began
        failure = None
        capture.begin((job.request.id,))
        try:
            self._addressee.check(job.request)
            job.item = self._engine.decode(job.request)
            if self._admission is not None:
                self._admission.reserve(job, getattr(job.item, "most_tokens", 0))
        except BaseException as error:
            failure = outcome_of(error)
        took = time.monotonic_ns() - began
        job.waited.decode = took / 1e9
        self._decode_ns += took
        self._spent_ns += took
        if failure:
            self._slot.add("work_ns", self._decode_ns)
            self._decode_ns = 0
            job.fail(failure)
        else:
            if len(job.request.body) > LARGE:
                job.request = msgspec.structs.replace(job.request, body=b"")
            self._answers.join(job)
            self._engine.join(job)
        numbers[_BUSY_SINCE] = 0

    def _turn(self) -> None:
        """Run one step of the engine, and send one chunk of each stream."""
        if joined := len(self._answers.joined):
            began = time.monotonic_ns()
            self._slot.set("busy_since", began)
            self._slot.add("batches")
            self._slot.add("batch_items", joined)
            if self._stepwise:  # a batch names its own requests
                capture.begin(tuple(job.request.id for job in self._answers.joined.values()))
            try:
                self._engine.step()
            except BaseException as error:
                self._answers.fail_joined(outcome_of(error))
            if self._admission is not None:
                self._admission.count()
            ended = time.monotonic_ns()
            self._step_ns += 0.2 * (ended - began - self._step_ns)
            self._slot.add("work_ns", ended - began + self._decode_ns)
            self._decode_ns = 0
            self._slot.set("busy_since", 0)
            self._slot.set("last_used", ended)
            if self._caches is not None:
                self._slot.set("spare_bytes", self._caches.bytes)
        if self._large_taken:
            since, size = self._large_taken
            self._large_taken = None
            self._large_pace += 0.5 * ((time.monotonic() - since) / max(1, size) - self._large_pace)
        self._answers.watch_joined()
        if self._answers.streams:
            self._answers.advance_streams()
