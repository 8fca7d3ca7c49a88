"""Error responses in the form of each AWS protocol, for requests that moto cannot answer.

Forms: smithy.io/2.0/aws/protocols, docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

import importlib.metadata
import io
import json
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4
from xml.sax.saxutils import escape

import botocore.session
from botocore.exceptions import UnknownServiceError
from werkzeug.wrappers import Request, Response

# By protocol: the code for an operation that does not exist, and the code for a request that is not valid.
CODES = {
    "json": ("UnknownOperationException", "ValidationException"),
    "rest-json": ("UnknownOperationException", "ValidationException"),
    "query": ("InvalidAction", "ValidationError"),
    "ec2": ("InvalidAction", "InvalidParameterValue"),
    "rest-xml": ("NotImplemented", "InvalidRequest"),
}
FORM = "application/x-www-form-urlencoded"
NAME_LIMIT = 1 << 20  # bytes of a form that are read for the name of its operation


def buffer_form(environ: dict[str, Any]) -> bytes:
    """The body of a request of the query protocol, which stays readable; empty for other requests."""
    size = int(environ.get("CONTENT_LENGTH") or 0)
    if not environ.get("CONTENT_TYPE", "").startswith(FORM) or not 0 < size <= NAME_LIMIT:
        return b""
    body: bytes = environ["wsgi.input"].read(size)
    environ["wsgi.input"] = io.BytesIO(body)
    return body


def operation(request: Request, form: bytes) -> str:
    """The name of the operation; for REST protocols, method and path."""
    target = request.headers.get("X-Amz-Target", "")
    if target:
        return target.rpartition(".")[2]
    action = parse_qs(form.decode(errors="replace")).get("Action") or request.args.getlist("Action")
    return action[0] if action else f"{request.method} {request.path}"


def unplayed(service: str, request: Request, form: bytes) -> Response:
    """The answer for an operation, or a service, that neither the emulator nor moto has."""
    name, protocol = operation(request, form), _protocol(service, request)
    code = CODES[protocol][0]
    message = f"{name} of {service or 'this service'} is not supported by this emulator."
    return failure(protocol, code, message, request, 501 if protocol == "rest-xml" else 400)


def unanswerable(service: str, request: Request, form: bytes, error: Exception) -> Response:
    """The answer for a request that made moto fail. It has status 400: clients repeat a request that got a 5xx."""
    name, protocol = operation(request, form), _protocol(service, request)
    code = CODES[protocol][1]
    message = (
        f"{name} of {service or 'this service'}: moto {importlib.metadata.version('moto')} cannot answer this request "
        f"({type(error).__name__}: {error}). Check the parameters of the request."
    )
    return failure(protocol, code, message, request, 400)


def where(error: Exception) -> str:
    """Type, text and origin of an exception, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{at}".replace("\n", " ")


def failure(protocol: str, code: str, message: str, request: Request, status: int) -> Response:
    """An error response."""
    number = str(uuid4())
    headers = {"x-amzn-RequestId": number}
    if protocol in ("json", "rest-json"):
        kind = "application/json" if protocol == "rest-json" else request.content_type or "application/x-amz-json-1.1"
        body = json.dumps({"__type": code, "message": message})
        return Response(body, status, {**headers, "x-amzn-ErrorType": code}, content_type=kind)
    texts = f"<Code>{code}</Code><Message>{escape(message)}</Message>"
    end = f"<RequestId>{number}</RequestId>"
    forms: Mapping[str, str] = {
        "query": f"<ErrorResponse><Error><Type>Sender</Type>{texts}</Error>{end}</ErrorResponse>",
        "ec2": f"<Response><Errors><Error>{texts}</Error></Errors><RequestID>{number}</RequestID></Response>",
        "rest-xml": f"<Error>{texts}{end}</Error>",
    }
    xml = '<?xml version="1.0" encoding="UTF-8"?>\n' + forms[protocol]
    return Response(xml, status, headers, content_type="text/xml")


def _protocol(service: str, request: Request) -> str:
    """The protocol in which the client reads the answer."""
    if "X-Amz-Target" in request.headers:
        return "json"
    known = _modelled(service)
    if (request.content_type or "").startswith(FORM):
        return known if known in ("query", "ec2") else "query"
    return known if known in CODES else "json"


@cache
def _modelled(service: str) -> str:
    """The protocol in botocore's model of a service; "" if botocore does not know the service."""
    try:
        return str(botocore.session.Session().get_service_model(service).protocol) if service else ""
    except UnknownServiceError:
        return ""
