"""Requests whose body is a reference to an S3 object. A thread fetches the object while the loop goes on."""

import os
import re
import select
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue

import msgspec

from serve import log, s3
from serve.errors import BadRequest, Forbidden, QueueFull, ServeError, TooLate, UnsupportedMediaType
from serve.handlers.base import Request
from serve.http import media, wire
from serve.runner.jobs import ConnectionJob, Poll, outcome_of
from serve.s3 import Reference
from serve.settings import Settings

TYPE = re.compile(r""";\s*type="?([^";\s]+)""", re.I)  # text/uri-list; type=text/csv, with or without quotes
NO_TYPE = ("", "binary/octet-stream")  # S3's Content-Type of an object that was uploaded without one
LONGEST = 4096  # bytes of a list of URIs: a key may have 1,024, and there may be comments
AT_ONCE = 4  # bodies held: objects that are being fetched, and those fetched that wait for room in the engine


def reference(body: bytes) -> Reference:
    """The one URI of a text/uri-list, in which lines that begin with `#` are comments (RFC 2483). Raises BadRequest."""
    if len(body) > LONGEST:
        raise BadRequest(
            f"the text/uri-list has {len(body)} bytes, the limit is {LONGEST}", hint="send one line s3://BUCKET/KEY"
        )
    try:
        lines = [line.strip() for line in body.decode().splitlines()]
    except UnicodeDecodeError as error:
        raise BadRequest(f"the text/uri-list is not UTF-8: {error}") from error
    uris = [line for line in lines if line and not line.startswith("#")]
    if len(uris) != 1:
        raise BadRequest(f"the text/uri-list has {len(uris)} URIs", hint="send exactly one, s3://BUCKET/KEY")
    return s3.parse(uris[0])


def check(requested: Reference, prefixes: Sequence[str]) -> None:
    """Raise Forbidden unless the object is below a prefix of SERVE_S3_INPUTS. A prefix matches whole parts of a key."""
    for prefix in prefixes:
        if str(requested).startswith(prefix if prefix.endswith("/") else prefix + "/") or str(requested) == prefix:
            return
    raise Forbidden(
        f"{str(requested)[:300]} is not below any prefix of SERVE_S3_INPUTS"
        + ("" if prefixes else ": input by reference is disabled"),
        hint=f"the operator lists the allowed prefixes in SERVE_S3_INPUTS, now: {', '.join(prefixes) or 'none'}",
    )


class References:
    """Jobs whose body is being fetched. The loop takes those in `fetched` when the engine has room."""

    def __init__(self, poll: Poll, settings: Settings) -> None:
        self._poll = poll
        self._settings = settings
        self._held: dict[int, ConnectionJob] = {}  # all of them, by file descriptor
        self.held: Mapping[int, ConnectionJob] = self._held
        self._since: dict[int, float] = {}  # by file descriptor: when a fetch was asked for (time.monotonic())
        self._queue: deque[tuple[ConnectionJob, Reference]] = deque()
        self._fetching = 0
        self._outcomes: SimpleQueue[tuple[ConnectionJob, Request | ServeError]] = SimpleQueue()
        self.fetched: deque[ConnectionJob] = deque()
        self.fd = -1  # readable when a thread has ended; made with the first reference

    def add(self, job: ConnectionJob) -> None:
        """Take a job whose body is text/uri-list. Raises BadRequest, Forbidden or QueueFull."""
        requested = reference(job.request.body)
        check(requested, self._settings.s3_inputs)
        if len(self._queue) >= self._settings.queue_limit:
            raise QueueFull(
                f"the queue is full: {len(self._queue)} references wait to be fetched",
                hint="retry later, or raise SERVE_QUEUE_LIMIT",
                retry_after=1,
            )
        if self.fd < 0:
            self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._poll.watch(self.fd, select.EPOLLIN)
        fd = job.connection.fd
        self._held[fd] = job
        self._since[fd] = time.monotonic()
        self._poll.watch(fd, select.EPOLLRDHUP)
        self._queue.append((job, requested))
        self._start()

    def collect(self) -> None:
        """Take the outcomes of threads that have ended: jobs go to `fetched`, errors are answered."""
        os.eventfd_read(self.fd)
        while True:
            try:
                job, outcome = self._outcomes.get_nowait()
            except Empty:
                break
            self._fetching -= 1
            if self._held.get(job.connection.fd) is not job:
                continue  # the caller hung up, or was answered
            if isinstance(outcome, ServeError):
                self._release(job)
                job.fail(outcome)
            else:
                job.request = outcome
                self._count_fetch(job)
                self.fetched.append(job)
        self._start()

    def seconds_left(self, most: float) -> float:
        """Seconds until the first deadline of a held job, but at most so many."""
        if not self._held:
            return most
        return min(most, max(0.0, min(job.request.deadline for job in self._held.values()) - time.monotonic()))

    def expire(self) -> None:
        """Fail jobs whose deadline has passed during the fetch. Their threads stop at the closed connection."""
        now = time.monotonic()
        for job in [job for job in self._held.values() if job.request.deadline <= now and job not in self.fetched]:
            self._release(job)
            job.fail(
                TooLate(
                    f"timeout: S3 did not return the object within {now - job.arrived:.1f} s",
                    hint="raise SAGEMAKER_MODEL_SERVER_TIMEOUT, or send a smaller object",
                    retry_after=1,
                )
            )

    def take(self) -> ConnectionJob:
        """The job that was fetched first. Its connection belongs to the loop again."""
        job = self.fetched.popleft()
        self._release(job)
        self._start()
        return job

    def hung_up(self, fd: int) -> None:
        job = self._held[fd]
        self._release(job)
        if job in self.fetched:
            self.fetched.remove(job)
        job.connection.close()  # its thread, if it has one, sees that and stops
        self._start()

    def _count_fetch(self, job: ConnectionJob) -> None:
        """The fetch of a job has ended: its time is that of receiving the body."""
        since = self._since.pop(job.connection.fd, None)
        if since is not None:
            job.waited.receive += time.monotonic() - since

    def _release(self, job: ConnectionJob) -> None:
        self._count_fetch(job)
        fd = job.connection.fd
        del self._held[fd]
        self._poll.forget(fd)

    def _start(self) -> None:
        """Start threads for queued jobs, as far as AT_ONCE allows."""
        while self._queue and self._fetching + len(self.fetched) < AT_ONCE:
            job, requested = self._queue.popleft()
            if job.connection.fd < 0:
                continue
            self._fetching += 1
            try:
                threading.Thread(target=self._fetch, args=(job, requested), daemon=True).start()
            except RuntimeError as error:  # the container's limit on processes: 507 for this job, and the loop goes on
                self._fetching -= 1
                self._release(job)
                job.fail(outcome_of(error))

    # In a thread.

    def _fetch(self, job: ConnectionJob, requested: Reference) -> None:
        log.thread_works_on((job.request.id,))
        try:
            outcome: Request | ServeError = self._request(job, requested)
        except BaseException as error:  # whatever the thread ends with, its caller is answered
            outcome = outcome_of(error)
        self._outcomes.put((job, outcome))
        os.eventfd_write(self.fd, 1)

    def _request(self, job: ConnectionJob, requested: Reference) -> Request:
        """The job's request with the object as its body."""
        settings, request = self._settings, job.request
        found = s3.fetch(
            requested,
            settings.region,
            settings.payload_bytes,
            lambda: job.connection.fd < 0,
        )
        given = TYPE.search(request.headers.get("content-type", ""))
        content_type, charset = media.content_type(given[1] if given else found.content_type)
        if content_type in NO_TYPE or content_type == media.URI_LIST:
            raise UnsupportedMediaType(
                f"{requested} has Content-Type {content_type!r}, which does not name a format",
                hint="upload it with one (aws s3 cp --content-type text/csv), or send text/uri-list; type=text/csv",
            )
        body = found.body
        if found.encoding:
            body = wire.decompressed(body, found.encoding, settings.payload_bytes)
        return msgspec.structs.replace(request, body=body, content_type=content_type, charset=charset)
