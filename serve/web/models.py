"""GET /models and GET /models/NAME: what there is, in which state. On a multi-model endpoint also load and unload."""

from urllib.parse import quote

import msgspec
from flask import Flask, Response, request

from serve.errors import MethodNotAllowed
from serve.web.host import HostClient
from serve.web.invocations import Invocations


def add_routes(app: Flask, host: HostClient, invocations: Invocations, *, multi_model: bool) -> None:
    @app.get("/models")
    def list_models() -> Response:
        status, body = host.get(f"/models?{request.query_string.decode('latin-1')}", _request_id())
        if not multi_model:
            listed = msgspec.json.decode(body)
            listed["models"] += invocations.unusable()
            listed["models"].sort(key=lambda each: each["modelName"])
            body = msgspec.json.encode(listed)
        return Response(body, status, content_type="application/json")

    @app.get("/models/<path:asked>")
    def show_model(asked: str) -> Response:
        if asked.endswith("/invoke"):
            raise MethodNotAllowed(f"GET {request.path[:200]} is not answered", hint="use POST")
        status, body = host.get(f"/model?name={quote(invocations.resolve(asked))}", _request_id())
        return Response(body, status, content_type="application/json")

    if not multi_model:
        return

    # nginx, which has the body, takes them to the host and waits there: a load may take minutes, a web worker has none.
    @app.post("/models")
    def load() -> Response:
        return Response(b"", headers={"X-Accel-Redirect": "@host"}, content_type="application/octet-stream")

    @app.delete("/models/<path:asked>")
    def unload(asked: str) -> Response:
        return Response(b"", headers={"X-Accel-Redirect": "@host"}, content_type="application/octet-stream")


def _request_id() -> str:
    return request.headers.get("X-Request-Id", "")
