"""The paths of the Open Inference Protocol: health, metadata of server and models, and inferences.

https://github.com/kserve/open-inference-protocol. Inferences and the metadata of a model are answered by its runner
(serve/runner/open_inference.py).
"""

import re
from collections.abc import Callable
from urllib.parse import quote

import msgspec
from flask import Flask, Response, request

from serve import __version__
from serve.errors import MethodNotAllowed, ModelNotFound, NotReady
from serve.http import media
from serve.http.addresses import LIVE, READY
from serve.web.host_client import HostClient
from serve.web.invocations import Invocations

_PLACE = re.compile(r"(?P<model>.+?)(?:/versions/(?P<version>[^/]+))?(?P<what>/infer|/ready|)/?")
EXTENSIONS = ("binary_tensor_data",)
VERSION = "1"  # models have no versions: this is the one that clients may name


def add_routes(app: Flask, host: HostClient, invocations: Invocations, check_ready: Callable[[], None]) -> None:
    """`check_ready` raises NotReady while /ping does."""

    @app.get("/v2")
    def server_metadata() -> Response:
        return _json({"name": "sagemaker-serve", "version": __version__, "extensions": EXTENSIONS})

    @app.get(LIVE)
    def live() -> Response:
        return _json({"live": True})

    @app.get(READY)
    def ready() -> Response:
        check_ready()
        return _json({"ready": True})

    @app.get("/v2/models")
    def list_open_inference_models() -> Response:
        _, body = host.get("/models")
        return _json({"models": [each["modelName"] for each in msgspec.json.decode(body)["models"]]})

    @app.get("/v2/models/<path:place>")
    def show_open_inference_model(place: str) -> Response:
        model, what = _parsed(place)
        if what == "/infer":
            raise MethodNotAllowed(f"unsupported method: GET {request.path[:200]}", hint="use POST")
        if what == "/ready":
            return _ready(model)
        return invocations.answer(model)  # the model's runner knows its tensors

    @app.post("/v2/models/<path:place>")
    def infer(place: str) -> Response:
        model, what = _parsed(place)
        if what != "/infer":
            raise MethodNotAllowed(f"unsupported method: POST {request.path[:200]}", hint="use GET")
        return invocations.answer(model)

    def _ready(asked: str) -> Response:
        """Whether the model takes requests. One that is not loaded does: the first request loads it."""
        name = invocations.resolve(asked)
        _, body = host.get(f"/model?name={quote(name)}")
        shown = msgspec.json.decode(body)
        if shown.get("state") == "failed":
            raise NotReady(f"model {name!r} failed: {shown.get('cause', 'see the log')}", model=name, retry_after=1)
        return _json({"name": name, "ready": True})


def _parsed(place: str) -> tuple[str, str]:
    """The name of the model, and `/infer`, `/ready` or "". Raises ModelNotFound for another version than VERSION."""
    found = _PLACE.fullmatch(place)
    assert found
    model, version = found["model"], found["version"]
    if version not in (None, VERSION):
        raise ModelNotFound(
            f"model {model[:200]!r} has no version {version[:40]!r}", hint=f"omit the version, or ask for {VERSION}"
        )
    return model, found["what"]


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), content_type=media.JSON)
