"""InvokeEndpointAsync: answered at once, done later; input from S3, output to S3.

docs.aws.amazon.com/sagemaker/latest/dg/async-inference.html
"""

import json
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from werkzeug.datastructures import Headers
from werkzeug.wrappers import Response

from local_test.platform.calls import Call, Reply, ValidationError

PREFIX = "X-Amzn-SageMaker-"
AT_ONCE = 4  # invocations, where MaxConcurrentInvocationsPerInstance does not say
TIMEOUT, TTL = 900, 21600  # InvocationTimeoutSeconds, RequestTTLSeconds
INLINE = 128_000  # bytes of a body that does not come from S3


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One accepted invocation."""

    source: str  # s3://...; "" where the body came along
    body: bytes
    headers: Mapping[str, str]  # for the container
    limit: float  # seconds the container has
    until: float  # by the wall clock; after it nobody wants the answer
    output: str
    failure: str | None


class Queue:
    """An endpoint's waiting invocations, done in order by as many threads as its instances may have calls at once."""

    def __init__(
        self,
        config: Mapping[str, Any],  # AsyncInferenceConfig
        instances: int,
        invoke: Callable[[Call], Reply],
        s3: Any,
        tell: Callable[[str, str], None],
    ) -> None:
        self._outputs = config["OutputConfig"]
        at_once = config.get("ClientConfig", {}).get("MaxConcurrentInvocationsPerInstance", AT_ONCE)
        self._threads = ThreadPoolExecutor(at_once * max(instances, 1))
        self._invoke = invoke
        self._s3 = s3
        self._tell = tell

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def accept(self, headers: Headers, body: bytes) -> tuple[str, Request]:
        """The inference id and what will be done."""
        asked = {name: headers.get(PREFIX + name) for name in ("InputLocation", "S3OutputPathExtension", "Filename")}
        source = asked["InputLocation"] or ""
        if bool(source) == bool(body):
            raise ValidationError("Give the input as InputLocation or as Body, one of the two.")
        if source and not source.startswith("s3://"):
            raise ValidationError(f"InputLocation {source} is not an S3 URI.")
        if len(body) > INLINE:
            raise ValidationError(f"Body has {len(body)} bytes, more than {INLINE}: use InputLocation.")
        made = str(uuid.uuid4())
        extension = (asked["S3OutputPathExtension"] or "").strip("/")
        output, failure = self._outputs["S3OutputPath"], self._outputs.get("S3FailurePath")
        request = Request(
            source=source,
            body=body,
            headers=_for_container(headers),
            limit=float(headers.get(PREFIX + "InvocationTimeoutSeconds", TIMEOUT)),
            until=time.time() + float(headers.get(PREFIX + "RequestTTLSeconds", TTL)),
            output=_join(output, extension, asked["Filename"] or f"{made}.out"),
            failure=failure and _join(failure, extension, f"{made}-error.out"),
        )
        self._threads.submit(self._do, request)
        return headers.get(PREFIX + "Inference-Id") or made, request

    def _do(self, request: Request) -> None:
        try:
            output = self._output(request)
        except Exception as error:  # whatever it is, its caller looks for it in S3
            if request.failure:
                self._put(request.failure, str(error).encode())
            self._tell(request.source or "inline", f"failed: {error}")
        else:
            self._put(request.output, output)
            self._tell(request.source or "inline", f"{len(output)} bytes to {request.output}")

    def _output(self, request: Request) -> bytes:
        if time.time() > request.until:
            raise TimeoutError("The request waited for longer than its RequestTTLSeconds.")
        body = request.body
        if request.source:
            bucket, key = _split(request.source)
            body = self._s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        reply = self._invoke(Call(body=body, headers=request.headers, limit=request.limit))
        if "content-length" not in reply.headers:
            raise MissingLength("The container's answer did not specify the required Content-Length header.")
        return reply.body if isinstance(reply.body, bytes) else b"".join(reply.body)

    def _put(self, location: str, body: bytes) -> None:
        bucket, key = _split(location)
        self._s3.put_object(Bucket=bucket, Key=key, Body=body)


class MissingLength(Exception):
    """An asynchronous endpoint's container must say how long its answer is."""


def accepted(headers: Headers, body: bytes, queue: Queue) -> Response:
    """202, with the places where the output or the failure will be."""
    name, request = queue.accept(headers, body)
    places = {PREFIX + "OutputLocation": request.output}
    if request.failure:
        places[PREFIX + "FailureLocation"] = request.failure
    return Response(json.dumps({"InferenceId": name}), 202, places, content_type="application/json")


def _for_container(headers: Headers) -> dict[str, str]:
    seen = {name: headers[PREFIX + name] for name in ("Content-Type", "Accept") if PREFIX + name in headers}
    for name in (PREFIX + "Custom-Attributes", PREFIX + "Inference-Id"):
        if name in headers:
            seen[name] = headers[name]
    return seen


def _split(location: str) -> tuple[str, str]:
    bucket, _, key = location.removeprefix("s3://").partition("/")
    return bucket, key


def _join(*parts: str) -> str:
    return "/".join(part.rstrip("/") for part in parts if part)
