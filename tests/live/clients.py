"""boto3's clients with injected faults: throttled, killed, new objects not visible yet."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from botocore.awsrequest import AWSResponse

from deploy.aws import Aws

Fault = tuple[str, str]  # code and message of a refusal
READS = ("Get", "List", "Describe", "Head", "Filter", "Invoke")


class Killed(BaseException):
    """Like SIGKILL: no code catches it."""


class Refusing(Aws):
    """Refuses the first calls of some operations, as AWS does."""

    def __init__(self, region: str | None, refusals: dict[str, list[Fault]]) -> None:
        super().__init__(region)
        self._refusals = refusals
        self.calls: Counter[str] = Counter()
        self.actions: set[str] = set()  # as IAM names them

    def client(self, name: str) -> Any:
        fresh = name not in self._clients
        client = super().client(name)
        if fresh:
            client.meta.events.register("before-send", self._answer)
            client.meta.events.register("request-created", self._count)
            client.meta.events.register("before-call", self._note)
        return client

    def _count(self, request: Any, operation_name: str, **_: Any) -> None:
        self.calls[operation_name] += 1
        request.headers["X-Operation"] = operation_name

    def _note(self, model: Any, **_: Any) -> None:
        service = {"monitoring": "cloudwatch", "api.ecr": "ecr"}.get(
            model.service_model.endpoint_prefix, model.service_model.signing_name
        )
        self.actions.add(f"{service}:{model.name}")

    def _answer(self, request: Any, **_: Any) -> AWSResponse | None:
        name = request.headers.get("X-Operation", b"")
        left = self._refusals.get(name.decode() if isinstance(name, bytes) else name)
        if not left:
            return None
        code, message = left.pop(0)
        return _refusal(request, code, message)


class KilledAfterOneChange(Aws):
    """Makes the first call that changes something, and then raises Killed."""

    def client(self, name: str) -> Any:
        fresh = name not in self._clients
        client = super().client(name)
        if fresh:
            client.meta.events.register("after-call", self._end)
        return client

    def _end(self, http_response: AWSResponse, model: Any, **_: Any) -> None:
        # UpdateSchedule changes nothing here; a run killed after it each time would never advance.
        if not model.name.startswith((*READS, "UpdateSchedule")) and http_response.status_code < 300:
            raise Killed(model.name)


def refusing(refusals: dict[str, list[Fault]]) -> tuple[Callable[[str | None], Aws], list[Refusing]]:
    """A function that creates such clients, and the list of the clients created."""
    made: list[Refusing] = []

    def make(region: str | None) -> Aws:
        made.append(Refusing(region, refusals))
        return made[-1]

    return make, made


class _Raw:
    """The part of urllib3's response that botocore reads."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, **_: Any) -> Iterable[bytes]:
        yield self._body


def _refusal(request: Any, code: str, message: str) -> AWSResponse:
    """JSON for services with JSON requests, otherwise XML."""
    body, kind = json.dumps({"__type": code, "message": message}), "application/x-amz-json-1.1"
    if "X-Amz-Target" not in request.headers and "/endpoints/" not in request.url:
        body = f"<ErrorResponse><Error><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"
        kind = "text/xml"
    return AWSResponse(request.url, 400, {"content-type": kind, "x-amzn-errortype": code}, _Raw(body.encode()))
