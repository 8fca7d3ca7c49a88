"""A runner's life: one loop, one thread. Wait; accept what is queued; read; run a turn of work; write; close.

The listening socket is the queue: what there is no room for stays in the kernel's backlog, where it has not begun,
and where another copy of the model, or the next runner, finds it. Retiring means to stop accepting, answer what is
held, and end.
"""

import gc
import json
import select
import socket
import time

import msgspec

from serve.errors import DeviceLost, ServeError
from serve.failures import exhausted
from serve.handlers.base import Request
from serve.http import wire
from serve.runner.addressee import Names
from serve.runner.arrival import received
from serve.runner.jobs import HANGS_UP, Answers, Job, Poll, outcome_of
from serve.runner.records import Engine
from serve.runner.references import URI_LIST, References
from serve.settings import Settings
from serve.slots import Slot

LARGE = 1 << 20  # bytes of a body that are not kept beside what was made of them


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
        self._poll = Poll(listener, control)
        self._answers = Answers(names.model, self._poll, slot, settings.stream_limit, engine.leave)
        self._references = References(self._poll, settings)
        self._reading: dict[int, tuple[wire.Connection, float]] = {}  # by file descriptor: arriving requests
        self._joined = self._answers.joined
        self._pulled = self._answers.pulled
        self._accepting = True

    def run(self) -> DeviceLost | None:
        """Serve until told to retire, or until the host is gone, or the device, which is then returned."""
        while self._accepting or self._open():
            self._wait()
            self._turn()
            # Here too, or a model would look busy from its last answer to its next request, and idle ones be spared.
            self._slot.set("in_flight", self._open())
            if self._answers.lost and self._accepting:
                self._control.send(json.dumps({"lost": self._answers.lost.message}).encode())
                self._retire()
        return self._answers.lost

    def _open(self) -> int:
        return (
            len(self._reading)
            + len(self._references.held)
            + len(self._joined)
            + len(self._pulled)
            + len(self._answers.leaving)
        )

    def _wait(self) -> None:
        busy = self._joined or (self._pulled and self._answers.may_pull())
        for fd, event in self._poll.wait(0 if busy else self._references.patience()):
            if fd == self._listener.fileno():
                continue
            if fd == self._control.fileno():
                self._retire()
            elif fd in self._reading:
                self._read(*self._reading.pop(fd))
            elif fd == self._references.fd:
                self._references.collect()
            elif fd in self._references.held:
                self._references.hung_up(fd)
            elif event & HANGS_UP:
                self._answers.hung_up(fd)
            elif event & select.EPOLLOUT:
                self._answers.flush(fd)
        if self._references.held:
            self._references.give_up()
        while self._references.ready and self._engine.room() > 0:
            self._decode(self._references.take())
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
            except OSError as error:
                # Out of file descriptors, which the kernel looks for before it looks for a connection. What is in hand
                # will free some; with nothing in hand they have leaked, and the next process takes who waits.
                if exhausted(error) is None or not (self._open() or gc.collect()):
                    raise
                return
            self._read(wire.Connection(sock), time.monotonic())

    def _retire(self) -> None:
        """Stop accepting. The host said so, or is gone (end of file): either way answer what is held, and end."""
        self._accepting = False
        self._poll.retire(self._listener, self._control)
        self._listener.close()

    def _read(self, connection: wire.Connection, accepted: float) -> None:
        fd = connection.sock.fileno()
        try:
            whole = connection.read()
        except wire.Gone:
            self._poll.forget(fd)
            connection.close()
            return
        except ServeError as error:
            self._poll.forget(fd)
            Job(self._answers, connection, Request(body=b"", content_type=""), accepted).fail(error)
            return
        if whole:
            self._poll.forget(fd)
            self._admit(connection)
        else:
            self._reading[fd] = connection, accepted
            self._poll.watch(fd, select.EPOLLIN)

    def _admit(self, connection: wire.Connection) -> None:
        """A request is whole: on to the model, by way of S3 if it is only a reference."""
        request, arrived, wrong = received(connection, self._settings)
        job = Job(self._answers, connection, request, arrived)
        if wrong is not None:
            job.fail(wrong)
        elif request.content_type == URI_LIST:
            try:
                self._references.begin(job)
            except Exception as error:  # what is wrong with it, or no descriptor left
                job.fail(outcome_of(error))
        else:
            self._decode(job)

    def _decode(self, job: Job) -> None:
        """Let a request join; what is wrong with it is answered before it meets any batch."""
        nanoseconds = time.monotonic_ns()
        self._slot.set("busy_since", nanoseconds)
        self._slot.set("last_used", nanoseconds)
        try:
            self._names.check(job.request)
            job.item = self._engine.decode(job.request)
        except Exception as error:
            job.fail(outcome_of(error))
        else:
            if len(job.request.body) > LARGE:
                job.request = msgspec.structs.replace(job.request, body=b"")
            self._joined[job.connection.sock.fileno()] = job
            self._engine.join(job)
        self._slot.set("busy_since", 0)

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
            for fd in self._joined.keys() - self._poll.watched.keys():
                # It will be here for another turn: hear of it when its caller hangs up.
                self._poll.watch(fd, select.EPOLLRDHUP)
        if self._pulled:
            self._answers.pull_all()
