"""POST /invocations on the Flask lane: send it to the right model, or say why nginx could not."""

import re
from collections.abc import Iterable, Sequence
from typing import NoReturn

from flask import Response, request

from serve.catalog.catalog import Catalog, Entry
from serve.errors import (
    BadRequest,
    InternalError,
    ModelUnusable,
    QueueFull,
    RunnerDied,
    ServeError,
    TooLate,
    Unavailable,
)
from serve.http import wire
from serve.http.addresses import OPENAI_FIELD, peek, socket_name
from serve.settings import Settings
from serve.web.host_client import HostClient

# The platform's header, and the plain name that people type; the platform strips the second (contract, section 5).
TARGET_HEADERS = ("X-Amzn-SageMaker-Target-Model", "TargetModel")


OPENAI_HANDLER = "text_generation"


def speaking_openai(entries: Iterable[Entry]) -> list[str]:
    """The models that answer OpenAI's paths; what an archive holds is not known: it counts when there is no other."""
    usable = [entry for entry in entries if not entry.problem]
    known = [entry.name for entry in usable if entry.config and entry.config.handler == OPENAI_HANDLER]
    return known or [entry.name for entry in usable if not entry.config]


def openai_default(speaking: Sequence[str], default: str | None) -> str | None:
    """The model for an empty `model`, as SageMaker's own examples send it: the default, else the only one that can."""
    if default in speaking:
        return default
    return speaking[0] if len(speaking) == 1 else None


def in_attributes(attributes: str, field: str) -> str | None:
    """The model named in X-Amzn-SageMaker-Custom-Attributes: `trace=1,model_type=gpt2`."""
    found = re.search(rf"(?:^|[,;\s]){re.escape(field)}=([^,;\s]+)", attributes)
    return found.group(1) if found else None


class Invocations:
    def __init__(self, settings: Settings, catalog: Catalog, host: HostClient) -> None:
        self._settings = settings
        self._catalog = catalog
        self._host = host
        speaking = speaking_openai(catalog.entries.values())
        # For each API: the field of the body that names the model, and the model for requests that name none.
        self._by_api = {
            False: (settings.model_field, catalog.default(settings.default_model)),
            True: (OPENAI_FIELD, openai_default(speaking, catalog.default(settings.default_model))),
        }
        self._openai = speaking
        self._name_in = {openai: peek(field) for openai, (field, _) in self._by_api.items()}
        self._by_socket = {socket_name(name): name for name in catalog.entries}

    def resolve(self, asked: str) -> str:
        """The model called so, if it can be served. Raises ModelNotFound, or ModelUnusable with the cause."""
        name = self._catalog.resolve(asked)
        entry = self._catalog.entries.get(name)
        if entry and entry.problem:
            raise ModelUnusable(entry.problem, model=name, hint="mend the model's files and start the container again")
        return name

    def unusable(self) -> list[dict[str, object]]:
        """What lies in the model directory and cannot be served, as entries of GET /models."""
        return [
            {"modelName": each.name, "modelUrl": str(each.path), "state": "failed", "cause": each.problem}
            for each in self._catalog.entries.values()
            if each.problem
        ]

    def answer(self, named: str | None = None, *, openai: bool = False) -> Response:
        """`named` comes from the path; `openai`: it is one of that API's.

        nginx tells in X-Serve-Tried what it has tried before it came here.
        """
        tried = request.headers.get("X-Serve-Tried", "")
        if tried:
            self._explain(tried, named)
        return _sent_to(self.resolve(self._asked(named, openai)))

    def _asked(self, named: str | None, openai: bool) -> str:
        """What the caller calls the model: path, header, body, custom attributes, default, in this order."""
        if asked := _addressed(named):
            return asked
        field, default = self._by_api[openai]
        asked = self._in_body(openai) or in_attributes(
            request.headers.get("X-Amzn-SageMaker-Custom-Attributes", ""), self._settings.model_field
        )
        asked = asked or default
        if asked:
            return asked
        listed = self._openai[:20] if openai else self._catalog.some()
        raise BadRequest(
            f"the request names no model; there are: {', '.join(listed) or 'none for this path'}",
            hint=f"put {field!r} into the JSON body, or send {TARGET_HEADERS[0]}",
        )

    def _in_body(self, openai: bool) -> str | None:
        if request.mimetype not in ("", "application/json") and not request.mimetype.endswith("+json"):
            return None  # nginx has not even sent it here
        body = request.get_data(cache=False)
        body = wire.decompressed(body, request.headers.get("Content-Encoding", ""), self._settings.payload_bytes)
        if not body:
            raise BadRequest("the body is empty", hint="send JSON")
        return self._name_in[openai](body)

    def _explain(self, tried: str, named: str | None) -> NoReturn:
        """Raise why the model could not be reached."""
        status = tried.rsplit(" : ", maxsplit=1)[-1].strip()
        began = request.headers.get("X-Serve-Connected", "").split(" : ")[-1].strip() not in ("", "-")
        sock = request.headers.get("X-Serve-Socket", "")
        if not sock:
            raise InternalError("the model's socket is gone", hint="see the log")
        # On a multi-model endpoint the name is in the address; one in a body, which did not come here, the host knows.
        name = self._by_socket.get(sock) or _addressed(named) or self._host.name_of(sock)
        if socket_name(name) == sock:
            self.resolve(name)
        if not began and status != "504":
            raise QueueFull(
                f"{self._settings.queue_limit} requests are waiting for model {name!r}",
                hint="try again later; raise copies in model.toml, or SERVE_QUEUE_LIMIT",
                model=name,
                retry_after=1,
            )
        raise self._what_happened(sock, name, late=status == "504")

    def _what_happened(self, sock: str, name: str, *, late: bool) -> ServeError:
        limit = self._settings.request_limit
        error, shown = self._host.trouble(sock, _arrived(request.headers.get("X-Serve-Clock", "")))
        stuck = isinstance(error, RunnerDied)  # the one before it
        if late and not shown["begun"] and (stuck or (error is None and shown["state"] != "loading")):
            hint = "try again; raise copies in model.toml, or SAGEMAKER_MODEL_SERVER_TIMEOUT"
            says = f"not begun within {limit:g} s: the model was at work on requests before it"
            return TooLate(says, hint=hint, model=name, retry_after=1)
        if error is not None:
            return error
        if shown["state"] == "loading":
            waited = shown["since"]
            return Unavailable(
                f"model {name!r} has been loading for {waited:.0f} s and goes on loading",
                hint="try again: the load continues",
                model=name,
                retry_after=5,
            )
        if late:
            hint = "send less at once, or raise SAGEMAKER_MODEL_SERVER_TIMEOUT"
            return TooLate(f"no answer within {limit:g} s", hint=hint, model=name, retry_after=1)
        return InternalError("the model's process broke off without an answer", hint="see the log", model=name)


def _addressed(named: str | None) -> str | None:
    """The model that path or header name."""
    return named or next((request.headers[each] for each in TARGET_HEADERS if each in request.headers), None)


def _arrived(clock: str) -> float | None:
    """When nginx began to receive the request, in seconds since 1970, from its `$msec $request_time`."""
    try:
        stamped, spent = map(float, clock.split())
    except ValueError:
        return None
    return stamped - spent


def _sent_to(name: str) -> Response:
    # Without a charset: nginx would add it to the runner's Content-Type.
    response = Response(b"", content_type="application/octet-stream")
    response.headers["X-Accel-Redirect"] = "@runner"
    response.headers["X-Serve-Socket"] = socket_name(name)
    return response
