"""HTTP server behind the one URL that boto3 uses: InvokeEndpoint goes to the emulator, every other request to moto."""

import base64
import binascii
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.iam.models import get_account_id_from
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from local_test.platform.runtime import invoke_endpoint

Invoke = Callable[[Request, str, str, "Caller"], Response]  # request, endpoint, end of the path, caller


@dataclass(frozen=True, slots=True)
class Caller:
    """Account and region of a request's signature. The signature itself is not verified."""

    account: str
    region: str


class Server:
    """Listens on loopback from construction until `close`."""

    def __init__(self, port: int, create_app: Callable[[Any], Any], invoke: Invoke) -> None:
        self._moto = DomainDispatcherApplication(create_app)
        self._invoke = invoke
        self._server = make_server("127.0.0.1", port, self._application, threaded=True, request_handler=_Handler)
        self.url = f"http://127.0.0.1:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="platform server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _application(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        matched = invoke_endpoint.PATH.match(environ["PATH_INFO"])
        service, caller = signed_by(environ)
        if matched and environ["REQUEST_METHOD"] == "POST" and service in ("sagemaker", ""):
            response = self._invoke(Request(environ), matched[1], matched[2], caller)
            return response(environ, start_response)
        from_moto: Iterable[bytes] = self._moto(environ, start_response)
        return from_moto


class _Handler(MotoRequestHandler):
    """HTTP/1.1, so that streams are chunked. Without an access log: the events show more."""

    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's name
        if type == "error":
            super().log(type, message, *args)


def signed_by(environ: dict[str, Any]) -> tuple[str, Caller]:
    """Service and caller from the signature's scope KEY/date/region/service/aws4_request; service "" without one."""
    header = environ.get("HTTP_AUTHORIZATION", "")
    if header.startswith("Bearer "):
        scope = _bearer_scope(header.removeprefix("Bearer "))
    else:
        scope = header.partition("Credential=")[2].partition(",")[0].strip()
    if not scope:
        scope = parse_qs(environ.get("QUERY_STRING", "")).get("X-Amz-Credential", [""])[0]
    parts = scope.split("/")
    if len(parts) != 5:
        return "", Caller(DEFAULT_ACCOUNT_ID, "")
    return parts[3], Caller(get_account_id_from(parts[0]), parts[2])


def _bearer_scope(token: str) -> str:
    """The scope in AWS's bearer token, which is a presigned URL in base64; "" for any other token."""
    try:
        text = base64.b64decode(token.removeprefix("sagemaker-api-key-"), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return parse_qs(urlsplit(text).query).get("X-Amz-Credential", [""])[0]
