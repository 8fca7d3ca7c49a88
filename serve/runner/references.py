"""Requests whose body is a reference: the object is fetched in a thread, the loop goes on meanwhile."""

import io
import os
import re
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any

import msgspec

from serve.errors import (
    BadRequest,
    Forbidden,
    PayloadTooLarge,
    QueueFull,
    ServeError,
    TooLate,
    Unavailable,
    UnsupportedMediaType,
)
from serve.handlers.base import Request
from serve.http import media, wire
from serve.runner.jobs import Job, Poll, outcome_of
from serve.settings import Settings

PIECE = 1 << 20
LONGEST = 4096  # bytes of a list of URIs: a key may have 1,024, and there may be comments


@dataclass(frozen=True, slots=True)
class Reference:
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True)
class Object:
    body: bytes
    content_type: str
    encoding: str


def reference(body: bytes) -> Reference:
    """The one URI of a text/uri-list, whose lines with `#` are comments (RFC 2483). Raises BadRequest."""
    if len(body) > LONGEST:
        raise BadRequest(f"a text/uri-list of {len(body)} bytes is longer than one URI", hint="send one s3:// line")
    try:
        lines = [line.strip() for line in body.decode().splitlines()]
    except UnicodeDecodeError as error:
        raise BadRequest(f"the text/uri-list is not UTF-8: {error}") from error
    uris = [line for line in lines if line and not line.startswith("#")]
    if len(uris) != 1:
        raise BadRequest(f"the text/uri-list has {len(uris)} URIs", hint="send exactly one, s3://BUCKET/KEY")
    scheme, _, rest = uris[0].partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket or not key:
        raise BadRequest(f"{uris[0][:200]!r} is not an object of S3", hint="send s3://BUCKET/KEY")
    return Reference(bucket, key)


def check(asked: Reference, prefixes: Sequence[str]) -> None:
    """Raise Forbidden unless it lies under one of SERVE_S3_INPUTS; a prefix ends where a part of the key ends."""
    for prefix in prefixes:
        if str(asked).startswith(prefix if prefix.endswith("/") else prefix + "/") or str(asked) == prefix:
            return
    raise Forbidden(
        f"{str(asked)[:300]} may not be read" + ("" if prefixes else ": no input by reference is allowed here"),
        hint=f"the operator lists what may be read in SERVE_S3_INPUTS, now: {', '.join(prefixes) or 'nothing'}",
    )


def fetch(asked: Reference, region: str, limit: int, gone: Callable[[], bool]) -> Object:
    """The object, of at most `limit` bytes; given up when `gone` says that nobody waits for it."""
    from botocore.exceptions import BotoCoreError, ClientError

    client = _client(region)
    try:
        answer = client.get_object(Bucket=asked.bucket, Key=asked.key)
        with closing(answer["Body"]) as stream:
            if answer["ContentLength"] > limit:
                raise PayloadTooLarge(
                    f"{asked} has {answer['ContentLength']} bytes, the limit is {limit}", hint="SERVE_MAX_PAYLOAD_MB"
                )
            body = io.BytesIO()
            for piece in stream.iter_chunks(PIECE):
                body.write(piece)
                if gone():
                    raise TooLate(f"nobody waits for {asked} any more")
    except (BotoCoreError, ClientError) as error:
        raise explained(error, asked, region) from error
    return Object(body.getvalue(), answer.get("ContentType", ""), answer.get("ContentEncoding", ""))


@cache
def _client(region: str) -> Any:
    import boto3
    from botocore.config import Config

    # A caller waits: what does not connect within seconds will not.
    config = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 2, "mode": "standard"})
    return boto3.session.Session().client("s3", region_name=region or None, config=config)


def explained(error: Exception, asked: Reference, region: str) -> ServeError:
    """What botocore raised, as what is wrong and what to do.

    A missing object is a 400 and not a 404, which a multi-model endpoint would take for a model that is not loaded.
    """
    from botocore import exceptions as boto

    told = getattr(error, "response", None) or {}
    code = str(told.get("Error", {}).get("Code", ""))
    reason = str(told.get("Error", {}).get("Message", "")) or str(error)
    status = told.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    where = region or "no region set"
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        return Forbidden(
            f"{asked}: there are no AWS credentials here",
            hint="give the execution role s3:GetObject; under network isolation there are none: send the body",
        )
    if isinstance(error, boto.ParamValidationError):
        return BadRequest(f"{asked}: {reason[:300]}", hint="mend the bucket's name or the key")
    if code == "NoSuchKey":
        return BadRequest(f"bucket {asked.bucket!r} has no key {asked.key!r}", hint="mend the key")
    if code == "NoSuchBucket":
        return BadRequest(f"there is no bucket {asked.bucket!r}", hint="mend the bucket's name")
    if code.startswith("KMS.") or "kms" in reason.lower():
        return Forbidden(f"{asked} cannot be decrypted: {reason[:300]}", hint="give the role kms:Decrypt on its key")
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "RequestTimeTooSkewed"):
        return Forbidden(f"{asked}: the AWS credentials here are not accepted: {code}", hint=reason[:300])
    if code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"):
        return BadRequest(
            f"bucket {asked.bucket!r} is in another region than {where}: {reason[:200]}",
            hint="set AWS_REGION to the bucket's region",
        )
    if code == "InvalidObjectState":
        return BadRequest(f"{asked} is archived: {reason[:200]}", hint="restore it first")
    if status == 403:
        return Forbidden(
            f"{asked}: access denied",
            hint="give the role s3:GetObject on the key, and s3:ListBucket to be told when a key does not exist",
        )
    if isinstance(error, boto.EndpointConnectionError | boto.ConnectTimeoutError | boto.ProxyConnectionError):
        return Unavailable(
            f"{asked}: S3 cannot be reached (region: {where})",
            hint="under network isolation, or in a VPC without an S3 endpoint, send the body itself",
            retry_after=5,
        )
    if isinstance(error, boto.ClientError) and 400 <= status < 500 and status != 429:
        return BadRequest(f"{asked}: {code}: {reason[:300]}")
    return Unavailable(f"{asked}: S3 failed: {code or type(error).__name__}: {reason[:200]}", retry_after=2)


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
        self._waiting: deque[tuple[Job, Reference]] = deque()
        self._fetching = 0
        self._done: SimpleQueue[tuple[Job, Request | ServeError]] = SimpleQueue()
        self.fd = -1  # readable when something is done; made with the first reference

    def begin(self, job: Job) -> None:
        """Take a job whose body is text/uri-list. Raises what is wrong with it."""
        asked = reference(job.request.body)
        check(asked, self._settings.s3_inputs)
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

    def _fetch(self, job: Job, asked: Reference) -> None:
        """In a thread of its own."""
        try:
            outcome: Request | ServeError = self._fetched(job, asked)
        except Exception as error:
            outcome = outcome_of(error)
        self._done.put((job, outcome))
        os.eventfd_write(self.fd, 1)

    def _fetched(self, job: Job, asked: Reference) -> Request:
        settings, request = self._settings, job.request
        found = fetch(
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
