"""HTTP server behind the one URL of the platform.

InvokeEndpoint goes to the emulator, a browser's request to the page, every other request to moto. Every request gets an
answer in the form of its service's protocol, also where moto lacks the operation or fails.
"""

import base64
import binascii
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ssl import SSLSocket
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.core.utils import service_name_from_moto_package_name
from moto.iam.models import get_account_id_from
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler
from werkzeug.serving import BaseWSGIServer, make_server
from werkzeug.wrappers import Request, Response

from local_test.platform import aws_errors
from local_test.platform.aws_addresses import Authority, of_aws, relay
from local_test.platform.page.app import Page
from local_test.platform.runtime import invoke_endpoint

Invoke = Callable[[Request, str, str, "Caller"], Response]  # request, endpoint, end of the path, caller
Report = Callable[[str, str], None]  # service and operation, what happened


@dataclass(frozen=True, slots=True)
class Caller:
    """Account and region of a request's signature. The signature itself is not verified."""

    account: str
    region: str


class Server:
    """Listens on loopback from construction until `close`, and at the same port of a further address if there is one.

    Never at all addresses: the platform asks for no password.
    """

    def __init__(
        self,
        port: int,
        create_app: Callable[[Any], Any],
        invoke: Invoke,
        page: Page,
        report: Report,
        authority: Authority,
        *,
        further: str = "",
    ) -> None:
        self._moto = _Services(create_app)
        self._report = report
        self._invoke = invoke
        self._page = page
        self.answered = 0  # requests, without those of the page
        self._handler = type("Handler", (_Handler,), {"authority": authority})
        self._servers = [self._listen("127.0.0.1", port)]
        port = self._servers[0].port
        self.url = f"http://127.0.0.1:{port}"
        if further:
            try:
                self._servers.append(self._listen(further, port))
            except (OSError, SystemExit) as error:  # werkzeug calls sys.exit when the port is in use
                report("server", f"cannot listen on {further}:{port}, so containers do not reach the platform: {error}")
        self._threads = [
            threading.Thread(target=each.serve_forever, name=f"platform server {each.host}", daemon=True)
            for each in self._servers
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
        for thread in self._threads:
            thread.join()
        for server in self._servers:
            server.server_close()

    def _listen(self, host: str, port: int) -> BaseWSGIServer:
        return make_server(host, port, self.application, threaded=True, request_handler=self._handler)

    def application(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """One request, by WSGI."""
        form = aws_errors.buffer_form(environ)
        service, caller = signed_by(environ)
        try:
            matched = invoke_endpoint.PATH.match(environ["PATH_INFO"])
            if self._page.takes(environ, signed=bool(service)):
                return self._page(environ, start_response)
            if matched and environ["REQUEST_METHOD"] == "POST" and service in ("sagemaker", ""):
                response = self._invoke(Request(environ), matched[1], matched[2], caller)
                return response(environ, start_response)
            app = self._moto.get_application(environ)
            service = service_name_from_moto_package_name(app.service)  # type: ignore[attr-defined]  # set by moto
            from_moto: Iterable[bytes] = app(environ, start_response)
            if not self._page.sent(environ):
                self.answered += 1
            return from_moto
        except Exception as error:
            return self._failed(service, Request(environ), form, error)(environ, start_response)

    def _failed(self, service: str, request: Request, form: bytes, error: Exception) -> Response:
        subject = f"{service or 'unknown'}:{aws_errors.operation(request, form)}"
        # ModuleNotFoundError: a service of moto whose packages are not installed.
        if isinstance(error, NotImplementedError | ModuleNotFoundError):
            self._report(subject, "not supported by this emulator")
            return aws_errors.unplayed(service, request, form)
        self._report(subject, aws_errors.where(error))
        return aws_errors.unanswerable(service, request, form, error)


class _Services(DomainDispatcherApplication):
    """moto's choice of a service's application. For a service that moto lacks it prints a line and goes on."""

    def get_backend_for_host(self, host: str | None) -> Any:
        url = f"http://{host}"
        if (
            host
            and host.endswith(".amazonaws.com")
            and not any(each.match(url) for _, each in self.backend_url_patterns)
        ):
            raise NotImplementedError(host)
        return super().get_backend_for_host(host)


class _Handler(MotoRequestHandler):
    """HTTP/1.1, so that streams are chunked. Without an access log: the events show more."""

    authority: ClassVar[Authority]
    protocol_version = "HTTP/1.1"

    def do_CONNECT(self) -> None:  # noqa: N802 - the method of HTTP
        """A tunnel, as of a proxy: to this server itself for a host of AWS, else to the host."""
        host, _, port = self.path.rpartition(":")
        if not of_aws(host):
            try:
                relay(self.connection, host, int(port))
            except (OSError, ValueError) as error:
                self.send_error(502, f"cannot connect to {host}: {error}")
            self.close_connection = True
            return
        self.connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            self.request = self.authority.context(host).wrap_socket(self.connection, server_side=True)
        except OSError:  # the client does not trust the certificate: AWS_CA_BUNDLE is missing
            self.close_connection = True
            return
        self.setup()
        self.close_connection = False

    def finish(self) -> None:
        super().finish()
        if isinstance(self.connection, SSLSocket):
            self.connection.close()

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
