"""GET /models and GET /models/NAME: the models and their states. On a multi-model endpoint also load and unload."""

import os
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import msgspec
from flask import Flask, Response, request

from serve.catalog.catalog import Catalog
from serve.errors import MethodNotAllowed, ModelNotFound
from serve.http import media
from serve.http.addresses import socket_name
from serve.web.host_client import HostClient
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
        return Response(body, status, content_type=media.JSON)

    @app.get("/models/<path:asked>")
    def show_model(asked: str) -> Response:
        if asked.endswith("/invoke"):
            raise MethodNotAllowed(f"unsupported method: GET {request.path[:200]}", hint="use POST")
        status, body = host.get(f"/model?name={quote(invocations.resolve(asked))}", _request_id())
        return Response(body, status, content_type=media.JSON)

    if not multi_model:
        return

    # nginx, which has the body, sends the request on to the host: a load may take minutes and would block this worker.
    @app.post("/models")
    def load() -> Response:
        return Response(b"", headers={"X-Accel-Redirect": "@host"}, content_type=media.BYTES)

    @app.delete("/models/<path:asked>")
    def unload(asked: str) -> Response:
        return Response(b"", headers={"X-Accel-Redirect": "@host"}, content_type=media.BYTES)


def _request_id() -> str:
    return request.headers.get("X-Request-Id", "")


class Loaded(Catalog):
    """The catalog of a multi-model endpoint. It reads the socket files, so that all web workers agree at any time."""

    def __init__(self, sockets: Path) -> None:
        super().__init__([])
        self._sockets = sockets

    def resolve(self, asked: str) -> str:
        if not _is_open(self._sockets / socket_name(asked)):
            # The message of AWS's own multi-model servers.
            raise ModelNotFound(f"Model not found: {asked[:300]}", hint="POST /models loads one", model=asked[:300])
        return asked

    def some(self) -> list[str]:
        files = islice((each.name for each in self._sockets.iterdir() if each.name[0] != "~" and _is_open(each)), 20)
        return sorted(file.removesuffix(".sock") for file in files)


def _is_open(path: Path) -> bool:
    return os.access(path, os.X_OK)  # as nginx does with -x: the host sets the x bit once callers may connect
