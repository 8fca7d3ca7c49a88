"""InvokeEndpointAsync: accepted immediately, processed later; input from S3, output to S3.

docs.aws.amazon.com/sagemaker/latest/dg/async-inference.html
"""

import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from werkzeug.datastructures import Headers
from werkzeug.wrappers import Response

from local_test.platform.calls import Call, Reply, ValidationError
from local_test.platform.containers.model_data import parts

PREFIX = "X-Amzn-SageMaker-"
CONCURRENCY = 4  # invocations per instance, without MaxConcurrentInvocationsPerInstance
TIMEOUT, TTL = 900, 21600  # InvocationTimeoutSeconds, RequestTTLSeconds
MAX_RUNNING = 64  # invocations of one endpoint at once
POLL = 0.05  # seconds between two looks for an instance with room
INLINE = 128_000  # bytes of a body that is not in S3


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedCall:
    """One accepted invocation."""

    source: str  # s3://...; "" if the request carries the body
    body: bytes
    headers: Mapping[str, str]  # for the container
    limit: float  # seconds for the container to answer
    until: float  # wall-clock time after which the invocation expires
    output: str
    failure: str | None


class Queue:
    """The invocations of one endpoint, in order; as many run at once as its instances accept.

    Without an instance they wait, as on SageMaker, until the endpoint has one or their time is over.
    """

    def __init__(
        self,
        config: Mapping[str, Any],  # AsyncInferenceConfig
        instances: Callable[[], int],  # in service
        invoke: Callable[[Call], Reply],
        s3: Any,
        report: Callable[[str, str], None],
    ) -> None:
        self._outputs = config["OutputConfig"]
        self._per_instance = config.get("ClientConfig", {}).get("MaxConcurrentInvocationsPerInstance", CONCURRENCY)
        self._instances = instances
        self._lock = threading.Lock()  # guards the two fields below
        self._running = 0
        self._accepted: dict[str, float] = {}  # id of each invocation that has not ended -> time; oldest first
        self._waiting: SimpleQueue[tuple[str, QueuedCall] | None] = SimpleQueue()  # None: closed
        self._closing = threading.Event()
        self._threads = ThreadPoolExecutor(MAX_RUNNING)
        threading.Thread(target=self._dispatch, name="async queue", daemon=True).start()
        self._invoke = invoke
        self._s3 = s3
        self._report = report

    def close(self) -> None:
        """Drops the invocations that have not started."""
        self._closing.set()
        self._waiting.put(None)
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def backlog(self) -> int:
        """The number of invocations that wait or run."""
        with self._lock:
            return len(self._accepted)

    @property
    def oldest(self) -> float | None:
        """The time at which the oldest of them was accepted."""
        with self._lock:
            return next(iter(self._accepted.values()), None)

    def accept(self, headers: Headers, body: bytes) -> tuple[str, QueuedCall]:
        """Queues an invocation; returns its inference id and itself. Raises ValidationError."""
        given = {name: headers.get(PREFIX + name) for name in ("InputLocation", "S3OutputPathExtension", "Filename")}
        source = given["InputLocation"] or ""
        if bool(source) == bool(body):
            raise ValidationError("Give the input as InputLocation or as Body, one of the two.")
        if source:
            parts(source)
        if len(body) > INLINE:
            raise ValidationError(f"Body has {len(body)} bytes, more than {INLINE}: use InputLocation.")
        call_id = str(uuid.uuid4())
        extension = (given["S3OutputPathExtension"] or "").strip("/")
        output, failure = self._outputs["S3OutputPath"], self._outputs.get("S3FailurePath")
        queued = QueuedCall(
            source=source,
            body=body,
            headers=_container_headers(headers),
            limit=float(headers.get(PREFIX + "InvocationTimeoutSeconds", TIMEOUT)),
            until=time.time() + float(headers.get(PREFIX + "RequestTTLSeconds", TTL)),
            output=_join(output, extension, given["Filename"] or f"{call_id}.out"),
            failure=failure and _join(failure, extension, f"{call_id}-error.out"),
        )
        with self._lock:
            self._accepted[call_id] = time.time()
        self._waiting.put((call_id, queued))
        return headers.get(PREFIX + "Inference-Id") or call_id, queued

    def _dispatch(self) -> None:
        """Starts each invocation once an instance has room for it."""
        while waiting := self._waiting.get():
            call_id, queued = waiting
            while not self._has_room() and time.time() <= queued.until:
                if self._closing.wait(POLL):
                    return
            with self._lock:
                self._running += 1
            with suppress(RuntimeError):  # closed meanwhile
                self._threads.submit(self._run, call_id, queued)

    def _has_room(self) -> bool:
        with self._lock:
            room: int = min(self._per_instance * self._instances(), MAX_RUNNING)
            return self._running < room

    def _run(self, call_id: str, queued: QueuedCall) -> None:
        try:
            self._process(queued)
        finally:
            with self._lock:
                self._running -= 1
                del self._accepted[call_id]

    def _process(self, queued: QueuedCall) -> None:
        subject = queued.source or "inline"
        try:
            output = self._output(queued)
        except Exception as error:  # the caller reads every failure from S3
            if queued.failure:
                self._put(queued.failure, str(error).encode())
            self._report(subject, f"failed: {error}")
        else:
            self._put(queued.output, output)
            self._report(subject, f"{len(output)} bytes to {queued.output}")

    def _output(self, queued: QueuedCall) -> bytes:
        if time.time() > queued.until:
            raise TimeoutError("The request was queued for longer than its RequestTTLSeconds.")
        body = queued.body
        if queued.source:
            bucket, key = parts(queued.source)
            body = self._s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        reply = self._invoke(Call(body=body, headers=queued.headers, limit=queued.limit))
        if "content-length" not in reply.headers:
            raise MissingLength("The container's answer did not specify the required Content-Length header.")
        return reply.body if isinstance(reply.body, bytes) else b"".join(reply.body)

    def _put(self, location: str, body: bytes) -> None:
        bucket, key = parts(location)
        self._s3.put_object(Bucket=bucket, Key=key, Body=body)


class MissingLength(Exception):
    """The container's answer has no Content-Length, which asynchronous inference requires."""


def accepted(headers: Headers, body: bytes, queue: Queue) -> Response:
    """Queues an invocation and answers 202 with the S3 locations of its output and failure."""
    name, queued = queue.accept(headers, body)
    locations = {PREFIX + "OutputLocation": queued.output}
    if queued.failure:
        locations[PREFIX + "FailureLocation"] = queued.failure
    return Response(json.dumps({"InferenceId": name}), 202, locations, content_type="application/json")


def _container_headers(headers: Headers) -> dict[str, str]:
    forwarded = {name: headers[PREFIX + name] for name in ("Content-Type", "Accept") if PREFIX + name in headers}
    for name in (PREFIX + "Custom-Attributes", PREFIX + "Inference-Id"):
        if name in headers:
            forwarded[name] = headers[name]
    return forwarded


def _join(*names: str) -> str:
    return "/".join(name.rstrip("/") for name in names if name)
