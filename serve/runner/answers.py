"""The way out of a runner: answers, whole or in chunks, to peers that may be slow, or gone. Nothing here blocks."""

import logging
import select
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus

from serve import wire
from serve.errors import DeviceLost, InternalError, ServeError, TooLate
from serve.runner.batching import outcome_of
from serve.runner.job import Job
from serve.runner.poll import Poll
from serve.slots import Slot

log = logging.getLogger(__name__)


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
