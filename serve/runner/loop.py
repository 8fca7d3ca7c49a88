"""A runner's life: one loop, one thread. Wait; accept what is queued; read; run a turn of work; write; close.

The listening socket is the queue: what there is no room for stays in the kernel's backlog, where it has not begun,
and where another copy of the model, or the next runner, finds it. Retiring means to stop accepting, answer what is
held, and end.
"""

import logging
import select
import socket
import time
from collections.abc import Iterator
from typing import Any, Protocol

from serve import media, wire
from serve.errors import InternalError, PayloadTooLarge, ServeError, TooLate
from serve.handlers.base import Request
from serve.runner.batching import outcome_of, too_late
from serve.runner.job import Job
from serve.runner.names import Names
from serve.settings import Settings
from serve.slots import Slot

log = logging.getLogger(__name__)

HANGS_UP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
AHEAD = 1 << 20  # bytes of a stream kept for a slow reader before its generator is left alone


class Engine(Protocol):
    """What the loop drives: a Stepwise handler, or the Batches of a Predictor."""

    def decode(self, request: Request) -> Any: ...
    def room(self) -> int: ...
    def join(self, job: Job) -> None: ...
    def leave(self, job: Job) -> None: ...
    def step(self) -> None: ...


class Loop:
    def __init__(
        self,
        engine: Engine,
        names: Names,
        listener: socket.socket,
        control: socket.socket,
        slot: Slot,
        settings: Settings,
    ) -> None:
        self._engine = engine
        self._names = names
        self._listener = listener
        self._control = control
        self._slot = slot
        self._settings = settings
        self._poll = select.epoll()
        self._reading: dict[int, tuple[wire.Connection, float]] = {}  # by file descriptor: arriving requests
        self._joined: dict[int, Job] = {}  # in the engine's hands
        self._pulled: dict[int, tuple[Job, Iterator[bytes]]] = {}  # streams made by a generator
        self._leaving: dict[int, wire.Connection] = {}  # answered, but the peer has not taken all yet
        self._watched: dict[int, int] = {}  # what epoll has been told
        self._accepting = True
        # EPOLLEXCLUSIVE: with several copies on one socket, wake one of them for a connection and not all.
        self._poll.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        self._poll.register(control, select.EPOLLIN)

    def run(self) -> None:
        """Serve until told to retire, or until the host is gone."""
        while self._accepting or self._open():
            self._wait()
            self._turn()
            # Here too, or a model would look busy from its last answer to its next request, and idle ones be spared.
            self._slot.set("in_flight", self._open())

    def _open(self) -> int:
        return len(self._reading) + len(self._joined) + len(self._pulled) + len(self._leaving)

    def _wait(self) -> None:
        busy = self._joined or any(self._may_pull(fd) for fd in self._pulled)
        for fd, event in self._poll.poll(0 if busy else -1):
            if fd == self._listener.fileno():
                continue
            if fd == self._control.fileno():
                self._retire()
            elif fd in self._reading:
                self._read(*self._reading.pop(fd))
            elif event & HANGS_UP:
                self._hung_up(fd)
            elif event & select.EPOLLOUT:
                self._flush(fd)
        if self._accepting:
            self._accept()
        self._slot.set("in_flight", self._open())

    def _accept(self) -> None:
        # Looked at in every turn, not only when epoll says so: when the last turn's room ran out, the rest is waiting.
        for _ in range(self._engine.room() - len(self._reading)):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            self._read(wire.Connection(sock), time.monotonic())

    def _retire(self) -> None:
        """Stop accepting. The host said so, or is gone (end of file): either way answer what is held, and end."""
        self._accepting = False
        self._poll.unregister(self._listener)
        self._poll.unregister(self._control)
        self._listener.close()

    # Reading.

    def _read(self, connection: wire.Connection, accepted: float) -> None:
        fd = connection.sock.fileno()
        try:
            whole = connection.read()
        except wire.Gone:
            self._forget(fd)
            connection.close()
            return
        except ServeError as error:
            self._forget(fd)
            Job(self, connection, Request(body=b"", content_type=""), accepted).fail(error)
            return
        if whole:
            self._forget(fd)
            self._admit(connection)
        else:
            self._reading[fd] = connection, accepted
            self._watch(fd, select.EPOLLIN)

    def _admit(self, connection: wire.Connection) -> None:
        """Decode a whole request and let it join; what is wrong with it is answered before it meets any batch."""
        now = time.monotonic()
        headers = connection.headers
        arrived = now - _seconds_since_arrival(headers.get("x-serve-clock", ""))
        media_type, charset = media.content_type(headers.get("content-type", ""))
        wrong: ServeError | None = None
        body = b""
        try:
            body = self._body(connection)
        except ServeError as error:
            wrong = error
        request = Request(
            body=body,
            content_type=media_type,
            charset=charset,
            accept=headers.get("accept", ""),
            headers=headers,
            deadline=arrived + margin(self._settings.request_limit),
            stream_deadline=arrived + margin(self._settings.stream_limit),
            id=headers.get("x-request-id", ""),
        )
        job = Job(self, connection, request, arrived)
        if now > request.deadline:
            wrong = too_late(now - arrived, 0)
        if wrong is not None:
            job.fail(wrong)
            return
        self._slot.set("busy_since", time.monotonic_ns())
        self._slot.set("last_used", time.monotonic_ns())
        try:
            self._names.check(request)
            job.item = self._engine.decode(request)
        except Exception as error:
            job.fail(outcome_of(error))
        else:
            job.began = now
            self._joined[connection.sock.fileno()] = job
            self._engine.join(job)
        self._slot.set("busy_since", 0)

    def _body(self, connection: wire.Connection) -> bytes:
        limit = self._settings.payload_bytes
        body = connection.body()
        if len(body) > limit:
            raise PayloadTooLarge(f"the body has {len(body)} bytes, the limit is {limit}", hint="SERVE_MAX_PAYLOAD_MB")
        encoding = connection.headers.get("content-encoding", "")
        return wire.decompressed(body, encoding, limit) if encoding else body

    # Working.

    def _turn(self) -> None:
        if self._joined:
            began = time.monotonic_ns()
            self._slot.set("busy_since", began)
            self._slot.add("batches")
            self._slot.add("batch_items", len(self._joined))
            try:
                self._engine.step()
            except Exception as error:
                shared = outcome_of(error)
                for job in list(self._joined.values()):
                    job.fail(shared)
            ended = time.monotonic_ns()
            self._slot.add("work_ns", ended - began)
            self._slot.set("busy_since", 0)
            self._slot.set("last_used", ended)
            for fd in self._joined.keys() - self._watched.keys():
                # It will be here for another turn: hear of it when its caller hangs up.
                self._watch(fd, select.EPOLLRDHUP)
        for fd, (job, chunks) in list(self._pulled.items()):
            if self._may_pull(fd):
                self._pull_one(job, chunks)

    def _may_pull(self, fd: int) -> bool:
        return not self._watched.get(fd, 0) & select.EPOLLOUT

    def pull(self, job: Job, chunks: Iterator[bytes]) -> None:
        """Take chunks from a generator, one a turn, as fast as the peer takes them."""
        fd = job.connection.sock.fileno()
        if self._joined.pop(fd, None) is None:
            return  # hung up while its head was sent
        self._pulled[fd] = job, chunks
        self._watch(fd, select.EPOLLRDHUP)

    def _pull_one(self, job: Job, chunks: Iterator[bytes]) -> None:
        self._slot.set("busy_since", time.monotonic_ns())
        try:
            if time.monotonic() > job.request.stream_deadline:
                raise TooLate(f"the stream took longer than {self._settings.stream_limit:g} s")
            data = next(chunks)
        except StopIteration:
            job.finish()
        except Exception as error:
            job.fail(outcome_of(error))
        else:
            job.send(data)
        self._slot.set("busy_since", 0)

    # Writing.

    def write(self, job: Job, data: bytes) -> None:
        """Part of a stream."""
        fd = job.connection.sock.fileno()
        if fd < 0:
            return
        try:
            done = job.connection.write(data)
        except wire.Gone:
            self._hung_up(fd)
            return
        if fd in self._joined or fd in self._pulled:
            self._watch(fd, select.EPOLLRDHUP if done else select.EPOLLRDHUP | select.EPOLLOUT)

    def end(self, job: Job, data: bytes, status: int) -> None:
        """The last bytes of an answer; the connection closes when the peer has them."""
        self._count(job, status)
        fd = job.connection.sock.fileno()
        if fd < 0:
            return
        self._joined.pop(fd, None)
        self._pulled.pop(fd, None)
        try:
            done = job.connection.write(data)
        except wire.Gone:
            done = True
        if done:
            self._forget(fd)
            job.connection.close()
        else:
            self._leaving[fd] = job.connection
            self._watch(fd, select.EPOLLOUT)

    def cut(self, job: Job, error: ServeError) -> None:
        """A stream failed after its head had left: break the connection off."""
        log.error("stream cut", extra={"request_id": job.request.id, "error": error.message})
        self._count(job, int(InternalError.status))
        fd = job.connection.sock.fileno()
        if fd < 0:
            return
        self._joined.pop(fd, None)
        self._pulled.pop(fd, None)
        self._forget(fd)
        job.connection.close()

    def _count(self, job: Job, status: int) -> None:
        slot = self._slot
        slot.add("requests")
        if job.started:
            slot.add("streams")
        if status >= 500:
            slot.add("server_errors")
        elif status >= 400:
            slot.add("client_errors")
        slot.add("queue_ns", int(((job.began or time.monotonic()) - job.arrived) * 1e9))

    def _flush(self, fd: int) -> None:
        connection = self._leaving.get(fd)
        if connection is None:
            held = self._joined.get(fd) or self._pulled[fd][0]
            connection = held.connection
        try:
            done = connection.flush()
        except wire.Gone:
            self._hung_up(fd)
            return
        if not done:
            return
        if fd in self._leaving:
            del self._leaving[fd]
            self._forget(fd)
            connection.close()
        else:
            self._watch(fd, select.EPOLLRDHUP)

    def _hung_up(self, fd: int) -> None:
        """The caller is gone: whatever is being done for it stops here, within one step."""
        if fd in self._joined:
            job = self._joined.pop(fd)
            self._engine.leave(job)
            connection = job.connection
        elif fd in self._pulled:
            connection = self._pulled.pop(fd)[0].connection
        elif fd in self._leaving:
            connection = self._leaving.pop(fd)
        else:
            return
        self._forget(fd)
        connection.close()

    # epoll.

    def _watch(self, fd: int, events: int) -> None:
        known = self._watched.get(fd)
        if known is None:
            self._poll.register(fd, events)
        elif known != events:
            self._poll.modify(fd, events)
        self._watched[fd] = events

    def _forget(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._poll.unregister(fd)


def margin(limit: float) -> float:
    """Seconds to answer in: the platform's limit less what the way back takes."""
    return limit - min(1.0, limit / 10)


def _seconds_since_arrival(clock: str) -> float:
    """How long ago nginx began to receive the request, from its `$msec $request_time`; 0 where nginx was not asked."""
    try:
        stamped, spent = map(float, clock.split())
    except ValueError:
        return 0.0
    return max(0.0, time.time() - stamped + spent)
