"""The API of a multi-model endpoint, as the platform calls it: load, list and unload models."""

import base64
import binascii
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from serve.catalog.catalog import ARCHIVES, Entry
from serve.catalog.scan import real
from serve.errors import (
    BadRequest,
    Conflict,
    DoesNotFit,
    InternalError,
    ModelNotFound,
    ModelUnusable,
    NotAModel,
    ServeError,
    Unavailable,
)
from serve.failures import exhausted
from serve.host.model import ServedModel
from serve.host.runners import check_spare_files
from serve.host.sockets import ModelSockets, refuse, reply
from serve.host.store import Store, not_found
from serve.http import wire
from serve.http.addresses import socket_name
from serve.settings import Settings

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
PAGE = 100  # models; the limit of multi-model-server


class LoadRequest(msgspec.Struct, frozen=True):
    model_name: str
    url: str


def requested(body: bytes, roots: Sequence[Path]) -> Entry:
    """The body of POST /models as a catalog entry. Raises BadRequest, or ModelNotFound if the path does not exist."""
    try:
        load = msgspec.json.decode(body, type=LoadRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        hint = 'send {"model_name": "...", "url": "/opt/ml/models/.../model"}'
        raise BadRequest(f"invalid load request: {error}", hint=hint) from error
    if not NAME.fullmatch(load.model_name):
        raise BadRequest(
            f"invalid model_name: {load.model_name[:100]!r}", hint="send 1 to 255 letters, digits, '.', '_' or '-'"
        )
    url = Path(load.url)
    path = real(url, roots)
    try:
        exists, directory, file = path.exists(), path.is_dir(), path.is_file()
    except OSError as error:  # for example: the name is too long, or the directory is not readable
        raise BadRequest(f"url {_cut(url)!r} cannot be read: {error.strerror}") from error
    if not exists:
        raise ModelNotFound(f"url {_cut(url)!r} does not exist", hint="check the url", model=load.model_name)
    archive = file and path.name.endswith(ARCHIVES)
    if not (directory or archive):
        raise BadRequest(f"url {_cut(url)!r} is neither a directory nor an archive", hint="send one of these")
    return Entry(name=load.model_name, path=url, archive=archive)


def _cut(url: Path) -> str:
    return str(url)[:200].encode(errors="replace").decode()


def page(models: Mapping[str, Any], token: str, limit: str) -> dict[str, Any]:
    """One page of the list, by name. A token is the last name of the page before, so that changes shift no page."""
    after = ""
    if token:
        try:
            after = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii")
        except (binascii.Error, ValueError):
            after = ""
        if not NAME.fullmatch(after):
            raise BadRequest(
                f"invalid next_page_token: {token[:100]!r}", hint="send the nextPageToken of the last page unchanged"
            )
    try:
        size = int(limit or PAGE)
    except ValueError:
        size = 0
    if size < 1:
        raise BadRequest(f"invalid limit: {limit[:20]!r}", hint=f"send a number from 1 to {PAGE}")
    size = min(size, PAGE)
    names = sorted(name for name in models if name > after)
    shown: dict[str, Any] = {"models": [models[name] for name in names[:size]]}
    if len(names) > size:
        shown["nextPageToken"] = base64.urlsafe_b64encode(names[size - 1].encode()).decode()
    return shown


SCALED = b'{"status": "Workers scaled"}'  # the text of multi-model-server


@dataclass(frozen=True, slots=True)
class _Unload:
    model: ServedModel
    caller: wire.Connection
    answer: bytes | ServeError  # sent once the model's memory is free
    kill_at: float  # time.monotonic() when requests in flight are no longer waited for


class MultiModelApi:
    """Loads, lists and unloads models for the platform. `settle` must be called in every turn of the loop.

    A load is answered when the model is ready or has failed, an unload when the memory is free.
    """

    def __init__(self, settings: Settings, store: Store, sockets: ModelSockets) -> None:
        self._settings = settings
        self._store = store
        self._sockets = sockets
        self._loads: list[tuple[ServedModel, wire.Connection]] = []
        self._unloads: list[_Unload] = []

    def answers(self, caller: wire.Connection, path: str, query: dict[str, str]) -> bool:
        """Whether this is a request to load, list or unload; if so, it is answered now or later. Raises ServeError."""
        if path == "/models" and caller.method == "POST":
            model = self._new_model(requested(caller.body(), self._settings.model_roots))
            self._store.add(model)
            self._loads.append((model, caller))
        elif path == "/models" and caller.method == "GET":
            loaded = {name: model for name, model in self._store.models.items() if model.opened}
            listed = page(loaded, query.get("next_page_token", ""), query.get("limit", ""))
            listed["models"] = [model.shown() for model in listed["models"]]
            reply(caller, msgspec.json.encode(listed))
        elif path.startswith("/models/") and caller.method == "DELETE":
            name = unquote(path.removeprefix("/models/"))
            model = self._store.named(name)
            if model.leaving:
                raise not_found(name)
            self._unload(model, caller, msgspec.json.encode({"status": f'Model "{name}" unregistered'}))
        else:
            return False
        return True

    def settle(self) -> None:
        """Answer the loads and unloads that have ended."""
        self._loads = [load for load in self._loads if not self._loaded(*load)]
        self._unloads = [unload for unload in self._unloads if not self._unloaded(unload)]

    def refuse_all(self, error: ServeError) -> None:
        """Answer all loads and unloads that have not ended."""
        callers = [caller for _, caller in self._loads] + [unload.caller for unload in self._unloads]
        self._loads, self._unloads = [], []
        for caller in callers:
            refuse(caller, error)

    def _new_model(self, entry: Entry) -> ServedModel:
        """Raises Conflict if a model of this name exists, even one that is being unloaded; and DoesNotFit."""
        if present := self._store.models.get(entry.name):
            hint = "wait for the answer to its unload, then load it" if present.leaving else ""
            raise Conflict(f"Model {entry.name} is already registered.", hint=hint, model=entry.name)
        try:
            model = ServedModel(entry, self._settings.sockets / socket_name(entry.name), self._settings.queue_limit)
        except OSError as error:
            message = f"cannot create the socket of {entry.name[:100]!r}: {error}"
            raise exhausted(error) or InternalError(message, hint="try a shorter SERVE_RUN_DIR") from error
        try:
            check_spare_files(model.listener)
        except DoesNotFit:
            model.close()
            raise
        return model

    def _unload(self, model: ServedModel, caller: wire.Connection, answer: bytes | ServeError) -> None:
        self._sockets.drop(model)
        self._store.unload(model, "the model was unloaded")
        self._unloads.append(_Unload(model, caller, answer, time.monotonic() + self._settings.request_limit))

    def _loaded(self, model: ServedModel, caller: wire.Connection) -> bool:
        """Whether this load has ended. If it failed, its answer is sent once nothing of the model is left."""
        if model.leaving:
            refuse(caller, Unavailable("the model was unloaded during its load", model=model.name))
        elif model.opened:
            reply(caller, SCALED)
        elif model.failed:  # not `failure()`: if the loop was slow, the pause may be over
            error = model.failed[1]
            if isinstance(error, ModelUnusable):
                error = NotAModel(error.message, hint=error.hint, model=model.name)
            error.retry_after = None
            self._unload(model, caller, error)
        else:
            return False
        return True

    def _unloaded(self, unload: _Unload) -> bool:
        """Whether this unload has ended."""
        if not self._store.forget(unload.model):
            if time.monotonic() > unload.kill_at:
                for runner in unload.model.runners:
                    runner.kill("timeout: the model was unloaded, and its requests did not end in time")
            return False
        if isinstance(unload.answer, ServeError):
            refuse(unload.caller, unload.answer)
        else:
            reply(unload.caller, unload.answer)
        return True
