"""What the platform asks for on a multi-model endpoint, done: loads and unloads, answered when they have ended."""

import base64
import binascii
import re
import time
from collections.abc import Mapping, Sequence
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
from serve.host.model import Hosted
from serve.host.runners import leave_some_files
from serve.host.sockets import Watch, refuse, reply
from serve.host.store import Store, no_such
from serve.http import wire
from serve.http.addresses import socket_name
from serve.settings import Settings

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
PAGE = 100  # models; multi-model-server's limit


class LoadRequest(msgspec.Struct, frozen=True):
    model_name: str
    url: str


def requested(body: bytes, roots: Sequence[Path]) -> Entry:
    """What POST /models asks for, as an entry to load. Raises BadRequest, or ModelNotFound for a path not there."""
    try:
        asked = msgspec.json.decode(body, type=LoadRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        hint = 'send {"model_name": "...", "url": "/opt/ml/models/.../model"}'
        raise BadRequest(f"the body is not a load request: {error}", hint=hint) from error
    if not NAME.fullmatch(asked.model_name):
        raise BadRequest(f"model_name {asked.model_name[:100]!r} is not 1 to 255 letters, digits, '.', '_' or '-'")
    url = Path(asked.url)
    path = real(url, roots)
    try:
        there, directory, file = path.exists(), path.is_dir(), path.is_file()
    except OSError as error:  # a name too long, a directory that may not be read
        raise BadRequest(f"url {_cut(url)!r} cannot be read: {error.strerror}") from error
    if not there:
        raise ModelNotFound(f"there is nothing at {_cut(url)}", model=asked.model_name)
    archive = file and path.name.endswith(ARCHIVES)
    if not (directory or archive):
        raise BadRequest(f"url {_cut(url)!r} is neither a directory nor an archive")
    return Entry(name=asked.model_name, path=url, archive=archive)


def _cut(url: Path) -> str:
    return str(url)[:200].encode(errors="replace").decode()


def page(models: Mapping[str, Any], token: str, limit: str) -> dict[str, Any]:
    """One page of the list, by name; a token is the last name before it, so pages hold while models come and go."""
    after = ""
    if token:
        try:
            after = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii")
        except (binascii.Error, ValueError):
            after = ""
        if not NAME.fullmatch(after):
            raise BadRequest(
                f"next_page_token {token[:100]!r} is not one of ours", hint="send nextPageToken as it came"
            )
    try:
        size = int(limit or PAGE)
    except ValueError:
        size = 0
    if size < 1:
        raise BadRequest(f"limit {limit[:20]!r} is not a number from 1 to {PAGE}")
    size = min(size, PAGE)
    names = sorted(name for name in models if name > after)
    shown: dict[str, Any] = {"models": [models[name] for name in names[:size]]}
    if len(names) > size:
        shown["nextPageToken"] = base64.urlsafe_b64encode(names[size - 1].encode()).decode()
    return shown


SCALED = b'{"status": "Workers scaled"}'  # as multi-model-server says it


class Platform:
    """Loads and unloads that somebody waits for. `settle` in every turn of the loop."""

    def __init__(self, settings: Settings, store: Store, watch: Watch) -> None:
        self._settings = settings
        self._store = store
        self._watch = watch
        self._loads: list[tuple[Hosted, wire.Connection]] = []
        # Until when what is in flight is waited for, and what to say when the model is gone.
        self._unloads: list[tuple[Hosted, float, wire.Connection, bytes | ServeError]] = []

    def answers(self, caller: wire.Connection, path: str, query: dict[str, str]) -> bool:
        """Load, list, unload; whether that was what the caller asked for. Raises ServeError."""
        if path == "/models" and caller.method == "POST":
            model = self._made(requested(caller.body(), self._settings.model_roots))
            self._store.add(model)
            self._watch.add(model)
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
                raise no_such(name)
            self._unload(model, caller, msgspec.json.encode({"status": f'Model "{name}" unregistered'}))
        else:
            return False
        return True

    def _made(self, entry: Entry) -> Hosted:
        """Raises Conflict when there is one of this name, on its way in or out too, and DoesNotFit."""
        if there := self._store.models.get(entry.name):
            hint = "its unload has not been answered yet: load it after that" if there.leaving else ""
            raise Conflict(f"Model {entry.name} is already registered.", hint=hint, model=entry.name)
        try:
            model = Hosted(entry, self._settings.sockets / socket_name(entry.name), self._settings.queue_limit)
        except OSError as error:
            says = f"no socket for {entry.name[:100]!r}: {error}"
            raise exhausted(error) or InternalError(says, hint="a shorter SERVE_RUN_DIR, perhaps") from error
        try:
            leave_some_files(model.listener)
        except DoesNotFit:
            model.close()
            raise
        return model

    def _unload(self, model: Hosted, caller: wire.Connection, said: bytes | ServeError) -> None:
        """Answer once it is gone, and its memory with it."""
        self._watch.drop(model)
        self._store.unload(model, "it was unloaded")
        self._unloads.append((model, time.monotonic() + self._settings.request_limit, caller, said))

    def settle(self) -> None:
        """Answer loads that are ready or have failed, and unloads that are done."""
        self._loads = [load for load in self._loads if not self._loaded(*load)]
        self._unloads = [unload for unload in self._unloads if not self._unloaded(*unload)]

    def _loaded(self, model: Hosted, caller: wire.Connection) -> bool:
        """Whether this load has ended, one way or the other; then its caller is answered, or will be."""
        if model.leaving:
            refuse(caller, Unavailable("unloaded while it was loading", model=model.name))
        elif model.opened:
            reply(caller, SCALED)
        elif model.trouble:  # not `failure`: its pause may be over, where this loop was held up
            error = model.trouble[1]
            # Answered once nothing of it is left, so that the next try is a fresh one.
            if isinstance(error, ModelUnusable):
                error = NotAModel(error.message, hint=error.hint, model=model.name)
            error.retry_after = None
            self._unload(model, caller, error)
        else:
            return False
        return True

    def _unloaded(self, model: Hosted, until: float, caller: wire.Connection, said: bytes | ServeError) -> bool:
        if not self._store.forget(model):
            if time.monotonic() > until:
                for runner in model.runners:
                    runner.kill("it had not finished when it was unloaded")
            return False
        if isinstance(said, ServeError):
            refuse(caller, said)
        else:
            reply(caller, said)
        return True
