"""Models of a multi-model container: downloaded on first use, loaded, and unloaded when the container answers 507.

The container's list of models is authoritative. docs.aws.amazon.com/sagemaker/latest/dg/mms-container-apis and
.../invoke-multi-model-endpoint; the number of retries after a 507 and the reaction to a 409 are not documented there.
"""

import json
import threading
import time
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any
from urllib.parse import quote

from local_test.platform.calls import (
    Call,
    ModelError,
    ModelNotReadyException,
    PlatformError,
    Reply,
    ServiceUnavailable,
    ValidationError,
)
from local_test.platform.containers import model_data
from local_test.platform.containers.client import Broken, Client, ContainerResponse, DeadlinePassed
from local_test.platform.containers.model_data import S3, ModelData
from local_test.platform.containers.spec import Running
from local_test.platform.events import Events
from local_test.platform.fleet.resident_models import Closed, NextStep, ResidentModel, ResidentModels, Stage, vanished
from local_test.platform.monitoring.meters import Meter
from local_test.platform.options import Options

LIST_LIMIT = 2.0  # seconds for one page of GET /models, as for a ping
NOT_FOUND, CONFLICT, FULL = 404, 409, 507
FRUITLESS = 3  # a load is refused after it unloaded this many times the models that it found loaded


class ModelLoader:
    """The models of one running container; thread-safe."""

    def __init__(
        self,
        running: Running,
        client: Client,
        directory: Path,
        source: ModelData,
        s3: S3,
        options: Options,
        events: Events,
        meter: Meter,
        *,
        caching: bool,
    ) -> None:
        self._running = running
        self._client = client
        self._api = ModelsApi(client, events, unload_limit=options.invoke_limit)
        self._directory = directory
        self._source = source
        self._s3 = s3
        self._options = options
        self._events = events
        self._meter = meter
        self._models = ResidentModels(caching=caching)
        # Each load takes the memory of a model that could answer. Without a limit, concurrent calls for many models
        # would leave no model loaded.
        self._loads = threading.BoundedSemaphore(options.loads)

    @property
    def targets(self) -> frozenset[str]:
        """The models that are loaded or loading."""
        return frozenset(each.target for each in self._models.snapshot() if each.stage is not Stage.UNLOADING)

    def snapshot(self) -> list[dict[str, Any]]:
        """All current models, the last used one first."""
        models = sorted(self._models.snapshot(), key=lambda each: -each.used)
        return [{"name": each.target, "stage": each.stage.name.lower(), "users": each.users} for each in models]

    def invoke(self, call: Call, until: float) -> tuple[Reply, bool]:
        """The reply of the model that the call names, and whether the model had to be loaded. Raises PlatformError."""
        if not call.target_model:
            raise ValidationError("Request is missing a target model header.")
        cold = retried = False
        while True:
            try:
                model, new = self._models.acquire(call.target_model, until)
            except TimeoutError:
                raise not_ready(call.target_model) from None
            except Closed:
                raise stopping() from None
            if new:
                threading.Thread(target=self._load, args=(model,), daemon=True).start()
            try:
                began = time.monotonic()
                cold = cold or not model.loaded.done()
                call.timings.cold = cold
                wait_for(model, until)
                call.timings.loading += time.monotonic() - began
                reply = self._invoke(model, call, until, retried=retried)
            finally:
                if self._models.release(model):
                    threading.Thread(target=self._unload, args=(model, "drop", "caching is off"), daemon=True).start()
            if reply is not None:
                return reply, cold
            retried = cold = True

    def _invoke(self, model: ResidentModel, call: Call, until: float, *, retried: bool) -> Reply | None:
        """The model's reply; None if the container does not have the model and the call was not retried yet."""
        try:
            return self._client.invoke(f"/models/{model.id}/invoke", call, until)
        except ModelError as error:
            if error.original_status != NOT_FOUND or retried:
                raise
            self._forget(model, "404 on invoke")
            return None

    def synchronise(self) -> None:
        """Reads GET /models: forgets the models that the container lost, and adds those that it has besides."""
        before = self._models.snapshot()
        loaded = [each for each in before if each.stage is Stage.LOADED]
        listed = self._api.listed()
        if listed is None:
            return
        for model in vanished(loaded, listed):
            self._forget(model, "missing in GET /models")
        for unknown in listed - {each.id for each in before}:
            if self._models.adopt(unknown):
                self._events.emit("unknown", unknown, "is loaded, but not by the platform: the first to be unloaded")

    def close(self) -> None:
        """The container is about to stop: waiting calls fail."""
        self._models.close()

    # Loads

    def _load(self, model: ResidentModel) -> None:
        """Runs in its own thread, for all calls that wait; the load continues if they time out."""
        began = time.monotonic()
        files = self._files(model)
        try:
            if not files.exists():
                model_data.fetch(self._s3, self._source.below(model.target), files)
            fetched = time.monotonic() - began
            with self._loads:
                started = time.monotonic()
                response = self._load_in_container(model, files, began + self._options.load_limit)
        except Exception as error:
            model_data.remove(files.parent)
            if self._models.closed:
                self._models.load_failed(model, stopping())
                return
            self._events.emit("error", model.target, f"load failed: {error}", seconds=time.monotonic() - began)
            self._models.load_failed(model, error)
            return
        detail = "(was loaded already)" if response.status == CONFLICT else f"({fetched * 1000:.0f} ms of it from S3)"
        self._events.emit("load", model.target, detail, seconds=time.monotonic() - began, id=model.id)
        now = time.monotonic()
        self._meter.record({"ModelDownloadingTime": fetched, "ModelLoadingTime": now - started})
        self._models.loaded(model)

    def _load_in_container(self, model: ResidentModel, files: Path, until: float) -> ContainerResponse:
        """POST /models; after each 507, unloads one model and retries. Raises PlatformError."""
        url = self._running.inside(files)
        unloads_left = 0  # other loads may take the freed memory, so the number of unloads is limited
        while True:
            others = self._models.count_others(model)
            unloads_left = unloads_left or FRUITLESS * others + 1
            try:
                response = self._api.load(model.id, url, until - time.monotonic())
            except DeadlinePassed:
                # The container may complete the load later: unload it, so that no memory leaks.
                self._api.unload(model.id, model.target)
                raise self._client.error(0, f"loading took more than {self._options.load_limit:g} s") from None
            except Broken as broken:
                raise self._client.error(0, f"the connection broke while loading: {broken}") from None
            if 200 <= response.status < 300 or response.status == CONFLICT:
                return response
            refused = self._client.error(response.status, response.body.decode(errors="replace"))
            if response.status != FULL:
                raise refused
            try:
                step, victim = self._models.free_memory(model, until)
            except Closed:
                raise stopping() from None
            unloads_left -= victim is not None
            if victim is not None:
                self._events.emit("507", model.target, f"-> unload {victim.target} -> retry")
                self._unload(victim, "unload", f"for {model.target}")
            if (step is NextStep.GIVE_UP and not others) or not unloads_left:
                self._events.emit("507", model.target, "and no other model is left to unload")
                raise refused

    # Unloads

    def _unload(self, model: ResidentModel, action: str, reason: str) -> None:
        """Removes a model in stage UNLOADING from memory, then from disk."""
        began = time.monotonic()
        if not self._api.unload(model.id, model.target):
            self._models.unload_failed(model)
            return
        model_data.remove(self._files(model).parent)
        self._models.unloaded(model)
        self._meter.record({"ModelUnloadingTime": time.monotonic() - began})
        self._events.emit(action, model.target, reason, seconds=time.monotonic() - began)

    def _forget(self, model: ResidentModel, evidence: str) -> None:
        """The container has lost the model."""
        is_new, clean_up = self._models.lost(model)
        if is_new:
            self._events.emit("lost", model.target, evidence)
        if clean_up:
            model_data.remove(self._files(model).parent)
            self._models.unloaded(model)

    def _files(self, model: ResidentModel) -> Path:
        return self._directory / model.id / "model"


class ModelsApi:
    """The multi-model API of a container: load, unload, list. Thread-safe.

    docs.aws.amazon.com/sagemaker/latest/dg/mms-container-apis
    """

    def __init__(self, client: Client, events: Events, *, unload_limit: float) -> None:
        self._client = client
        self._events = events
        self._unload_limit = unload_limit

    def load(self, name: str, url: str, limit: float) -> ContainerResponse:
        """POST /models, with a limit in seconds. Raises DeadlinePassed or Broken."""
        body = json.dumps({"model_name": name, "url": url}).encode()
        return self._client.request("POST", "/models", body, limit=limit)

    def unload(self, name: str, target: str) -> bool:
        """DELETE /models/NAME. Returns whether the model is unloaded; an event reports a failure by `target`."""
        try:
            response = self._client.request("DELETE", f"/models/{name}", limit=self._unload_limit)
        except (DeadlinePassed, Broken) as error:
            response = ContainerResponse(0, f"{type(error).__name__} {error}".encode())
        if 200 <= response.status < 300 or response.status == NOT_FOUND:
            return True
        message = response.body[:200].decode(errors="replace")
        self._events.emit("error", target, f"DELETE: {response.status} {message}")
        return False

    def listed(self) -> set[str] | None:
        """The names on all pages of GET /models; None if the container gives no valid answer."""
        names: set[str] = set()
        path = "/models"
        try:
            while True:
                page = json.loads(self._client.request("GET", path, limit=LIST_LIMIT).body)
                names |= {each["modelName"] for each in page["models"]}
                if not page.get("nextPageToken"):
                    return names
                path = f"/models?next_page_token={quote(page['nextPageToken'], safe='')}"
        except (DeadlinePassed, Broken, ValueError, KeyError, TypeError) as error:
            self._events.emit("error", self._client.name, f"GET {path}: invalid answer: {error!r}")
            return None


def wait_for(model: ResidentModel, until: float) -> None:
    """Blocks until the load has ended. Raises its error, and ModelNotReadyException if `until` comes first."""
    try:
        model.loaded.result(max(0.0, until - time.monotonic()))
    except FutureTimeout:
        raise not_ready(model.target) from None


def not_ready(target: str) -> PlatformError:
    """The error for a call whose time ends before its model is loaded."""
    return ModelNotReadyException(
        f"Model {target} is not ready for inference yet: it is still being downloaded or loaded. Try again later."
    )


def stopping() -> PlatformError:
    """The error for a call whose container is being stopped."""
    return ServiceUnavailable("The instance is being stopped or replaced. Try again later.")
