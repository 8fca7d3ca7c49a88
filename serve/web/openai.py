"""OpenAI's paths: requests to models, and the list of the models that support them."""

import time
from typing import Any

import msgspec
from flask import Flask, Response, request

from serve.catalog.kinds import API_HANDLERS
from serve.errors import ModelNotFound
from serve.http import media
from serve.http.addresses import CHAT, EMBEDDINGS, OPENAI
from serve.web.host_client import HostClient
from serve.web.invocations import Invocations

# As in OpenAI's list. Whether a classifier can rerank is known once it is loaded.
LISTED = (*API_HANDLERS[CHAT], *API_HANDLERS[EMBEDDINGS])


def add_routes(app: Flask, host: HostClient, invocations: Invocations) -> None:
    def openai() -> Response:
        return invocations.answer(path=request.path.rstrip("/"))

    for path in OPENAI:
        app.post(path)(openai)

    @app.get("/v1/models")
    def list_openai_models() -> Response:
        return _json({"object": "list", "data": _models(host)})

    @app.get("/v1/models/<path:name>")
    def show_openai_model(name: str) -> Response:
        for model in _models(host):
            if model["id"] == name:
                return _json(model)
        raise ModelNotFound(
            f"no model {name[:100]!r} supports the OpenAI API", hint="GET /v1/models lists those that do"
        )


def _models(host: HostClient) -> list[dict[str, Any]]:
    _, body = host.get("/models")
    created = int(time.time())
    return [
        {"id": each["modelName"], "object": "model", "created": created, "owned_by": "this server"}
        for each in msgspec.json.decode(body)["models"]
        if each["handler"] in (*LISTED, None)  # None: an archive that is not unpacked yet
    ]


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), content_type=media.JSON)
