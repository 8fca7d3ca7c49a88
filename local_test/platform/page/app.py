"""The page's HTTP: its files, and its state as JSON."""

import hashlib
import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from werkzeug.wrappers import Request, Response

from local_test.platform.page import state
from local_test.platform.page.queries import AGENT, Queries

STATIC = Path(__file__).parent / "static"
PREFIX = "/_platform/"  # S3's bucket names have no underscore, so no request of S3 begins so
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
TYPES = {".js": "text/javascript", ".html": "text/html", ".css": "text/css", ".svg": "image/svg+xml"}
OLDEST = 10.0  # seconds that a state is kept when nothing seems to change
KEPT = 16  # states, one for each thing that some browser shows


@dataclass(slots=True)
class _Kept:
    """A state that was read, and until when it may be sent again."""

    version: Any
    body: bytes
    tag: str
    until: float


class Page:
    """A WSGI application for the requests that `takes` accepts.

    Browsers ask for the state each second. The platform's API is read again only if `version` has changed since,
    something is in progress, or the last reading is old.
    """

    def __init__(
        self,
        client: Callable[..., Any],
        fleets: Callable[[str], Sequence[Any]],
        events: Callable[[], Sequence[Any]],
        version: Callable[[], Any],
    ) -> None:
        self._client = client
        self._fleets = fleets  # of the endpoint with this name
        self._events = events
        self._version = version
        self._lock = threading.Lock()  # guards the fields below; one state is read at a time
        self._queries: Queries | None = None
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    @staticmethod
    def takes(environ: dict[str, Any], *, signed: bool) -> bool:
        """Whether a request is for the page: unsigned, for this machine's name or address, of a browser if for `/`.

        A host name in front of the machine's is a bucket. Any other name could be another site's, which must not
        read the page.
        """
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if signed or method not in ("GET", "HEAD") or not _is_machine(environ.get("HTTP_HOST", "")):
            return False
        return path.startswith(PREFIX) or (path == "/" and "text/html" in environ.get("HTTP_ACCEPT", ""))

    @staticmethod
    def sent(environ: dict[str, Any]) -> bool:
        """Whether the page itself has sent this request to the platform's API."""
        return AGENT in environ.get("HTTP_USER_AGENT", "")

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        name = request.path.removeprefix(PREFIX).lstrip("/")
        response = self._state(request) if name == "api/state" else _file(name or "index.html")
        response.headers.update(SECURITY)
        response.make_conditional(request)
        return response(environ, start_response)

    def _state(self, request: Request) -> Response:
        show = parse_qs(request.query_string.decode()).get("show", [""])[0]
        with self._lock:
            kept = self._kept.pop(show, None)
            version = self._version()
            if kept is None or kept.version != version or time.monotonic() > kept.until:
                kept = self._read(show, version)
            self._kept[show] = kept
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        response = Response(kept.body, content_type="application/json")
        response.set_etag(kept.tag)
        return response

    def _read(self, show: str, version: Any) -> _Kept:
        if self._queries is None:
            self._queries = Queries(self._client)
        found = {**self._queries.lists(), "events": self._events(), "show": show, "shown": self._shown(show)}
        body = state.as_json(found)
        until = 0.0 if state.changing(found) else time.monotonic() + OLDEST
        return _Kept(version, body, hashlib.sha256(body).hexdigest()[:32], until)

    def _shown(self, show: str) -> dict[str, Any] | None:
        """What the path in the browser's address names: an endpoint, a job, or a pipeline with an execution."""
        assert self._queries is not None
        kind, *names = show.split("/")
        if kind == "endpoint" and len(names) == 1:
            shown = self._queries.endpoint(names[0])
            return shown and {**shown, "fleets": self._fleets(names[0])}
        if kind == "job" and len(names) == 2:
            return self._queries.job(names[0], names[1])
        if kind == "pipeline" and 1 <= len(names) <= 3:
            return self._queries.pipeline(*[*names, "", ""][:3])
        return None


def _is_machine(host: str) -> bool:
    """`localhost` or an address, with any port."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _file(name: str) -> Response:
    path = (STATIC / name).resolve()
    if not path.is_relative_to(STATIC.resolve()) or not path.is_file():
        return Response(f"The page has no file {name}.\n", 404, content_type="text/plain")
    content_type = TYPES.get(path.suffix, "text/plain")
    response = Response(path.read_bytes(), content_type=f"{content_type}; charset=utf-8")
    response.add_etag()
    return response
