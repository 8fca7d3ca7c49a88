"""GET /models and GET /models/NAME: what there is and in which state."""

from urllib.parse import quote

import msgspec
from flask import Flask, Response

from serve.web.host import HostClient
from serve.web.invocations import Invocations


def add_routes(app: Flask, host: HostClient, invocations: Invocations) -> None:
    @app.get("/models")
    def list_models() -> Response:
        status, body = host.get("/models")
        listed = msgspec.json.decode(body)
        listed["models"] += invocations.unusable()
        listed["models"].sort(key=lambda each: each["modelName"])
        return Response(msgspec.json.encode(listed), status, content_type="application/json")

    @app.get("/models/<path:asked>")
    def show_model(asked: str) -> Response:
        status, body = host.get(f"/model?name={quote(invocations.resolve(asked))}")
        return Response(body, status, content_type="application/json")
