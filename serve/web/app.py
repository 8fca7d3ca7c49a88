"""The Flask application of a web worker. It chooses models and explains errors; no request waits here for a model.

/invocations is answered with `X-Accel-Redirect: @runner` and the name of a socket, and nginx, which keeps the body,
sends the request there. If that fails, nginx repeats the request, and the same view answers with the cause.
"""

import logging
import threading
import time
from functools import partial
from pathlib import Path

import msgspec
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from serve import errors
from serve import log as serve_log
from serve.catalog.adapters import MERGE
from serve.catalog.catalog import Catalog
from serve.errors import InternalError, MethodNotAllowed, PathNotFound, ServeError
from serve.http import media
from serve.http.addresses import PING
from serve.settings import Settings
from serve.slots import Slots, WebCounts
from serve.web import batch_transform, model_api, open_inference, openai
from serve.web.health import check_ready
from serve.web.host_client import HostClient
from serve.web.invocations import Invocations
from serve.web.model_api import Loaded

log = logging.getLogger(__name__)

SLOTS, COUNTS = "slots", "counts"  # extensions of the application: the file of counters, and those of this process


def create(settings: Settings) -> Flask:
    """The application of the web workers. Each of them calls `take_slot` before the first request."""
    app = Flask("serve", static_folder=None)
    app.url_map.strict_slashes = False  # `GET /ping/` answered with a redirect is not a 200
    app.url_map.merge_slashes = False  # nor is `GET //ping`: a redirect is HTML
    slots = Slots(settings.slots)
    host = HostClient(settings.host_socket, slots)
    known = Loaded(settings.sockets) if settings.multi_model else _published(settings.catalog)
    invocations = Invocations(settings, known, host)

    # The launcher answers /ping (serve/web/health.py). This is for other methods, and for a launcher that hangs.
    @app.route(PING, methods=["GET", "HEAD", "POST"])
    def ping() -> Response:
        check_ready(slots)
        return Response(b"", mimetype=media.JSON)

    @app.post("/invocations")
    def invoke() -> Response:
        return invocations.answer(None)

    @app.post("/models/<path:name>/invoke")
    def invoke_named(name: str) -> Response:
        return invocations.answer(name)

    @app.get("/execution-parameters")
    def execution_parameters() -> Response:
        return Response(msgspec.json.encode(batch_transform.parameters(settings, known)), content_type=media.JSON)

    @app.get("/metrics")
    def metrics() -> Response:
        _, text = host.get("/metrics")
        return Response(text, content_type="text/plain; version=0.0.4; charset=utf-8")

    openai.add_routes(app, host, invocations)
    open_inference.add_routes(app, host, invocations, partial(check_ready, slots))
    model_api.add_routes(app, host, invocations, multi_model=settings.multi_model)
    _answer_errors(app)
    _name_requests(app)
    _count(app, slots)
    return app


def take_slot(app: Flask, slot: int) -> None:
    """Let this process count its requests in the slot of this number."""
    app.extensions[COUNTS] = app.extensions[SLOTS].web(slot)


def _published(file: Path) -> Catalog:
    """The models that the host has found. At the start the host may still be scanning; the launcher watches it."""
    while not file.exists():
        time.sleep(0.01)
    return Catalog.read(file)


def _answer_errors(app: Flask) -> None:
    """Render every error, Flask's own included, in the same shape."""

    @app.errorhandler(ServeError)
    def render(error: ServeError) -> Response:
        path = request.path
        openai, inference = path.startswith("/v1/"), path.startswith("/v2/")
        body = errors.body(error, request.headers.get("X-Request-Id", ""), openai=openai, open_inference=inference)
        return Response(body, error.status, errors.headers(error), content_type=media.JSON)

    @app.errorhandler(HTTPException)
    def flask_error(error: HTTPException) -> Response:
        if error.code == 405:
            allowed = " or ".join(sorted(set(getattr(error, "valid_methods", None) or ()) - {"OPTIONS", "HEAD"}))
            return render(
                MethodNotAllowed(
                    f"unsupported method: {request.method[:40]} {request.path[:200]}", hint=f"use {allowed}"
                )
            )
        if error.code == 404 and request.path.split("/")[1] == "adapters":
            return render(PathNotFound("the server applies no adapters, so it loads and lists none", hint=MERGE))
        if error.code == 404:
            return render(
                PathNotFound(f"no such path: {request.path[:200]}", hint="use POST /invocations or GET /models")
            )
        log.error("invalid request", extra={"status": error.code, "path": request.path[:200]})
        return render(errors.BadRequest(f"{error.name}: {error.description}"))

    @app.errorhandler(Exception)
    def unknown(error: Exception) -> Response:
        log.error("web worker failed", exc_info=error)
        return render(InternalError("internal error", hint="see the log"))


def _name_requests(app: Flask) -> None:
    """The log of this thread has the id of the request that it answers."""

    @app.before_request
    def begin() -> None:
        serve_log.thread_works_on((request.headers.get("X-Request-Id", ""),))

    @app.teardown_request
    def end(_: BaseException | None) -> None:
        serve_log.thread_works_on(None)


def _count(app: Flask, slots: Slots) -> None:
    app.extensions[SLOTS] = slots
    lock = threading.Lock()  # a worker has several threads

    @app.after_request
    def count(response: Response) -> Response:
        counts: WebCounts = app.extensions[COUNTS]
        error = ("server_errors",) if response.status_code >= 500 else ("client_errors",)
        with lock:
            counts.add("requests", *(error if response.status_code >= 400 else ()))
        return response
