"""Requests whose body is a reference: the object is fetched in a thread, the loop goes on meanwhile."""

import os
import re
import select
import threading
import time
from collections import deque
from queue import Empty, SimpleQueue

import msgspec

from serve import media, wire
from serve.errors import QueueFull, ServeError, TooLate, UnsupportedMediaType
from serve.handlers.base import Request
from serve.runner import s3
from serve.runner.batching import outcome_of
from serve.runner.job import Job
from serve.runner.poll import Poll
from serve.settings import Settings

URI_LIST = "text/uri-list"
TYPE = re.compile(r""";\s*type="?([^";\s]+)""", re.I)  # text/uri-list; type=text/csv, with or without quotes
AT_ONCE = 4  # fetched at the same time, those included whose body waits for room: so many bodies are held
UNTOLD = ("", "binary/octet-stream")  # what S3 says where nobody has said


class References:
    """Jobs whose body is on its way; the loop takes them from `ready` as there is room."""

    def __init__(self, poll: Poll, settings: Settings) -> None:
        self._poll = poll
        self._settings = settings
        self.held: dict[int, Job] = {}  # by file descriptor
        self.ready: deque[Job] = deque()
        self._waiting: deque[tuple[Job, s3.Reference]] = deque()
        self._fetching = 0
        self._done: SimpleQueue[tuple[Job, Request | ServeError]] = SimpleQueue()
        self.fd = -1  # readable when something is done; made with the first reference

    def begin(self, job: Job) -> None:
        """Take a job whose body is text/uri-list. Raises what is wrong with it."""
        asked = s3.reference(job.request.body)
        s3.check(asked, self._settings.s3_inputs)
        if len(self._waiting) >= self._settings.queue_limit:
            raise QueueFull(
                f"{len(self._waiting)} references wait to be fetched", hint="SERVE_QUEUE_LIMIT", retry_after=1
            )
        if self.fd < 0:
            self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._poll.watch(self.fd, select.EPOLLIN)
        fd = job.connection.sock.fileno()
        self.held[fd] = job
        self._poll.watch(fd, select.EPOLLRDHUP)
        self._waiting.append((job, asked))
        self._start()

    def collect(self) -> None:
        """What has been fetched, or could not be: the first becomes `ready`, the second is answered."""
        os.eventfd_read(self.fd)
        while True:
            try:
                job, outcome = self._done.get_nowait()
            except Empty:
                break
            self._fetching -= 1
            if self.held.get(job.connection.sock.fileno()) is not job:
                continue  # hung up
            if isinstance(outcome, ServeError):
                self._release(job)
                job.fail(outcome)
            else:
                job.request = outcome
                self.ready.append(job)
        self._start()

    def patience(self) -> float:
        """Seconds until somebody has waited too long; -1 when nobody waits."""
        if not self.held:
            return -1
        return max(0.0, min(job.request.deadline for job in self.held.values()) - time.monotonic())

    def give_up(self) -> None:
        """Tell those who have waited too long; their threads find out by the closed connection."""
        now = time.monotonic()
        for job in [job for job in self.held.values() if job.request.deadline <= now and job not in self.ready]:
            self._release(job)
            job.fail(
                TooLate(
                    f"S3 has not given the object within {now - job.arrived:.1f} s",
                    hint="raise SAGEMAKER_MODEL_SERVER_TIMEOUT, or send less",
                    retry_after=1,
                )
            )

    def take(self) -> Job:
        """The first that is ready; its connection is the loop's again."""
        job = self.ready.popleft()
        self._release(job)
        self._start()
        return job

    def hung_up(self, fd: int) -> None:
        job = self.held[fd]
        self._release(job)
        if job in self.ready:
            self.ready.remove(job)
        job.connection.close()  # its thread, if it has one, finds out by that
        self._start()

    def _release(self, job: Job) -> None:
        fd = job.connection.sock.fileno()
        del self.held[fd]
        self._poll.forget(fd)

    def _start(self) -> None:
        while self._waiting and self._fetching + len(self.ready) < AT_ONCE:
            job, asked = self._waiting.popleft()
            if job.connection.sock.fileno() < 0:
                continue
            self._fetching += 1
            try:
                threading.Thread(target=self._fetch, args=(job, asked), daemon=True).start()
            except RuntimeError as error:  # the container's limit on processes: 507 for this one, the loop goes on
                self._fetching -= 1
                self._release(job)
                job.fail(outcome_of(error))

    def _fetch(self, job: Job, asked: s3.Reference) -> None:
        """In a thread of its own."""
        try:
            outcome: Request | ServeError = self._fetched(job, asked)
        except Exception as error:
            outcome = outcome_of(error)
        self._done.put((job, outcome))
        os.eventfd_write(self.fd, 1)

    def _fetched(self, job: Job, asked: s3.Reference) -> Request:
        settings, request = self._settings, job.request
        found = s3.fetch(
            asked,
            settings.region,
            settings.payload_bytes,
            lambda: job.connection.sock.fileno() < 0,
        )
        told = TYPE.search(request.headers.get("content-type", ""))
        content_type, charset = media.content_type(told[1] if told else found.content_type)
        if content_type in UNTOLD or content_type == URI_LIST:
            raise UnsupportedMediaType(
                f"{asked} has Content-Type {content_type!r}, which says nothing of its format",
                hint="upload it with one (aws s3 cp --content-type text/csv), or send text/uri-list; type=text/csv",
            )
        body = found.body
        if found.encoding:
            body = wire.decompressed(body, found.encoding, settings.payload_bytes)
        return msgspec.structs.replace(request, body=body, content_type=content_type, charset=charset)
