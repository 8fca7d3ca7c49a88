"""Every operation of the services that the SageMaker SDKs call is answered in its protocol, whatever moto lacks."""

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.session
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import ClientError, ParamValidationError
from botocore.model import Shape
from werkzeug.test import Client, EnvironBuilder

from local_test.platform.emulator import Emulator
from local_test.platform.events import Events
from local_test.platform.options import Options


class Body(io.BytesIO):
    """The raw body of a response, as botocore reads it."""

    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        yield self.read()


class Platform:
    """An emulator, and clients that call its WSGI application without a network."""

    def __init__(self, work: Path) -> None:
        self.log = io.StringIO()
        self.emulator = Emulator(Options(work=work, runtime="process"), Events(self.log))
        self._session = botocore.session.Session()
        self._session.set_credentials("local", "local")

    def client(self, service: str) -> Any:
        client = self._session.create_client(service, region_name="us-east-1", endpoint_url=self.emulator.url)
        client.meta.events.register("before-send", self._send)
        return client

    def _send(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        body = request.body.read() if hasattr(request.body, "read") else request.body or b""
        url = urlsplit(request.url)
        headers = {
            name: value.decode() if isinstance(value, bytes) else value for name, value in request.headers.items()
        }
        sent = EnvironBuilder(
            path=url.path,
            query_string=url.query,
            method=request.method,
            headers=headers,
            input_stream=io.BytesIO(sent_body := body.encode() if isinstance(body, str) else body),
            content_length=len(sent_body),
        )
        answer = Client(self.emulator.application).open(sent)
        return AWSResponse(request.url, answer.status_code, dict(answer.headers), Body(answer.data))


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    platform = Platform(tmp_path_factory.mktemp("platform"))
    with platform.emulator:
        yield platform


def minimal(shape: Shape | None) -> Any:
    """The smallest value that botocore sends for a shape."""
    kind = shape.type_name if shape else "structure"
    make: dict[str, Callable[[Any], Any]] = {
        "structure": lambda at: {name: minimal(at.members[name]) for name in at.required_members} if at else {},
        "list": lambda at: [minimal(at.member)],
        "map": lambda at: {minimal(at.key): minimal(at.value)},
        "string": lambda at: at.enum[0] if at.enum else "x" * max(at.metadata.get("min", 1), 1),
        "blob": lambda _: b"x",
        "boolean": lambda _: True,
        "timestamp": lambda _: 1,
    }
    return make[kind](shape) if kind in make else max(shape.metadata.get("min", 1), 1) if shape else None


@pytest.mark.parametrize(
    "service", ["sagemaker", "iam", "sts", "s3", "cloudwatch", "application-autoscaling", "sagemaker-metrics"]
)
def test_every_operation_is_answered_in_its_protocol(platform: Platform, service: str) -> None:
    """Called with the smallest parameters: an answer, or an error with a code; no 5xx except 501, no traceback."""
    client = platform.client(service)
    wrong: dict[str, str] = {}
    for method, operation in client.meta.method_to_api_mapping.items():
        try:
            getattr(client, method)(**minimal(client.meta.service_model.operation_model(operation).input_shape))
        except ParamValidationError:
            pass  # a union, of which botocore wants one member
        except ClientError as error:
            status, code = error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
            # A HEAD request's error has no body, so botocore takes the status for the code.
            if (status >= 500 and status != 501) or not (re.fullmatch(r"[A-Z][A-Za-z.]+", code) or code == "404"):
                wrong[operation] = str(error)

    assert wrong == {}
    assert "Traceback" not in platform.log.getvalue()


@pytest.mark.parametrize(
    ("service", "method", "parameters", "code", "message"),
    [
        ("sagemaker", "list_algorithms", {}, "ValidationException", "ListAlgorithms is not supported by this emulator"),
        (
            "sts",
            "assume_root",
            {"TargetPrincipal": "1" * 12, "TaskPolicyArn": {}},
            "InvalidAction",
            "AssumeRoot of sts",
        ),
        ("logs", "list_anomalies", {}, "UnknownOperationException", "ListAnomalies of logs is not supported"),
        ("s3", "restore_object", {"Bucket": "b", "Key": "k"}, "InvalidRequest", "moto .* cannot answer"),
        ("devicefarm", "list_projects", {}, "UnknownOperationException", "not supported by this emulator"),
    ],
)
def test_what_is_not_played_is_refused_by_name(
    platform: Platform, service: str, method: str, parameters: dict[str, Any], code: str, message: str
) -> None:
    with pytest.raises(ClientError, match=message) as refused:
        getattr(platform.client(service), method)(**parameters)

    assert refused.value.response["Error"]["Code"] == code
