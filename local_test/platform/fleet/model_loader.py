"""The platform's half of a multi-model container: it brings models, has them loaded, and unloads what was used least.

What the container lists is the truth. docs.aws.amazon.com/sagemaker/latest/dg/mms-container-apis and
.../invoke-multi-model-endpoint; how many 507s are borne, and what follows a 409, is written nowhere.
"""

import json
import threading
import time
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
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
from local_test.platform.containers.client import Broken, Client, ContainerResponse, Cut
from local_test.platform.containers.model_data import S3, ModelData
from local_test.platform.containers.spec import Running
from local_test.platform.events import Events
from local_test.platform.fleet.resident_models import Closed, Next, ResidentModel, ResidentModels, Stage, vanished
from local_test.platform.options import Options

POLL_LIMIT = 2.0  # seconds for a page of GET /models, as for a ping
NOT_FOUND = 404


class ModelsApi:
    """For any number of threads."""

    def __init__(self, client: Client, events: Events, *, unload_limit: float) -> None:
        self._client = client
        self._events = events
        self._unload_limit = unload_limit

    def load(self, name: str, url: str, limit: float) -> ContainerResponse:
        """POST /models. Raises Cut or Broken."""
        body = json.dumps({"model_name": name, "url": url}).encode()
        return self._client.ask("POST", "/models", body, limit=limit)

    def unload(self, name: str, target: str) -> bool:
        """DELETE /models/NAME: whether it is gone; `target` is what people know it by."""
        try:
            answer = self._client.ask("DELETE", f"/models/{name}", limit=self._unload_limit)
        except (Cut, Broken) as error:
            answer = ContainerResponse(0, f"{type(error).__name__} {error}".encode())
        if 200 <= answer.status < 300 or answer.status == NOT_FOUND:
            return True
        said = answer.body[:200].decode(errors="replace")
        self._events.say("error", target, f"DELETE: {answer.status} {said}")
        return False

    def listed(self) -> set[str] | None:
        """The names in GET /models, of all its pages; None where it does not say."""
        names: set[str] = set()
        path = "/models"
        try:
            while True:
                said = json.loads(self._client.ask("GET", path, limit=POLL_LIMIT).body)
                names |= {each["modelName"] for each in said["models"]}
                if not said.get("nextPageToken"):
                    return names
                path = f"/models?next_page_token={quote(said['nextPageToken'], safe='')}"
        except (Cut, Broken, ValueError, KeyError, TypeError) as error:
            self._events.say("error", self._client.name, f"GET {path} is of no use: {error!r}")
            return None


CONFLICT, FULL = 409, 507
FRUITLESS = 3  # times all that was there when a load was first refused: then it is refused for good


class ModelLoader:
    """The models of one container that runs."""

    def __init__(
        self,
        running: Running,
        client: Client,
        directory: Path,
        source: ModelData,
        s3: S3,
        options: Options,
        events: Events,
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
        self._residents = ResidentModels(caching=caching)
        # Each model that is being loaded takes the place of one that could answer: loads of all callers at once would
        # leave nothing but loads.
        self._loads = threading.BoundedSemaphore(options.loads)

    @property
    def targets(self) -> frozenset[str]:
        """What is loaded, or on its way."""
        return frozenset(each.target for each in self._residents.snapshot() if each.stage is not Stage.LEAVING)

    def invoke(self, call: Call, until: float) -> tuple[Reply, bool]:
        """The answer of the model that a call names, and whether the model had to be loaded for it."""
        if not call.target_model:
            raise ValidationError("Request is missing a target model header.")
        cold = again = False
        while True:
            try:
                model, fresh = self._residents.enter(call.target_model, until)
            except TimeoutError:
                raise not_ready(call.target_model) from None
            except Closed:
                raise going() from None
            if fresh:
                threading.Thread(target=self._load, args=(model,), daemon=True).start()
            try:
                cold = cold or not model.loaded.done()
                wait_for(model, until)
                reply = self._answer(model, call, until, again=again)
            finally:
                if self._residents.leave(model):
                    threading.Thread(target=self._unload, args=(model, "drop", "is not kept"), daemon=True).start()
            if reply is not None:
                return reply, cold
            again = cold = True

    def _answer(self, model: ResidentModel, call: Call, until: float, *, again: bool) -> Reply | None:
        """What the model answers; None where the container does not know it, and that for the first time."""
        try:
            return self._client.invoke(f"/models/{model.id}/invoke", call, until)
        except ModelError as error:
            if error.original_status != NOT_FOUND or again:
                raise
            self._forget(model, "404 on invoke")
            return None

    def poll(self) -> None:
        """Learn from the container what is loaded: forget what it has lost, take in what it has besides."""
        before = self._residents.snapshot()
        loaded = [each for each in before if each.stage is Stage.LOADED]
        listed = self._api.listed()
        if listed is None:
            return
        for model in vanished(loaded, listed):
            self._forget(model, "no longer in GET /models")
        for stray in listed - {each.id for each in before}:
            if self._residents.adopt(stray):
                self._events.say("strange", stray, "is loaded, but not by the platform: the first to be unloaded")

    def close(self) -> None:
        """The container is going."""
        self._residents.close()

    # Loading.

    def _load(self, model: ResidentModel) -> None:
        """In a thread of its own, for all who wait; they may be gone before it ends."""
        began = time.monotonic()
        files = self._files(model)
        try:
            if not files.exists():
                model_data.fetch(self._s3, self._source.below(model.target), files)
            fetched = time.monotonic() - began
            with self._loads:
                answer = self._have_loaded(model, files, began + self._options.load_limit)
        except Exception as error:
            model_data.remove(files.parent)
            if self._residents.closed:
                self._residents.failed(model, going())
                return
            self._events.say("error", model.target, f"not loaded: {error}", seconds=time.monotonic() - began)
            self._residents.failed(model, error)
            return
        detail = "(it was already)" if answer.status == CONFLICT else f"({fetched * 1000:.0f} ms of it from S3)"
        self._events.say("load", model.target, detail, seconds=time.monotonic() - began, id=model.id)
        self._residents.loaded(model)

    def _have_loaded(self, model: ResidentModel, files: Path, until: float) -> ContainerResponse:
        """POST /models, and room made for it as long as the container says 507."""
        url = self._running.inside(files)
        patience = 0  # models it may have unloaded and yet be refused: others take the room too, but not for ever
        while True:
            there = self._residents.others(model)
            patience = patience or FRUITLESS * there + 1
            try:
                answer = self._api.load(model.id, url, until - time.monotonic())
            except Cut:
                # So that no half of it stays, should the container finish after all.
                self._api.unload(model.id, model.target)
                raise self._client.error(0, f"loading took more than {self._options.load_limit:g} s") from None
            except Broken as broken:
                raise self._client.error(0, f"the connection broke while loading: {broken}") from None
            if 200 <= answer.status < 300 or answer.status == CONFLICT:
                return answer
            refused = self._client.error(answer.status, answer.body.decode(errors="replace"))
            if answer.status != FULL:
                raise refused
            try:
                step, victim = self._residents.make_room(model, until)
            except Closed:
                raise going() from None
            patience -= victim is not None
            if victim is not None:
                self._events.say("507", model.target, f"-> unload {victim.target} -> retry")
                self._unload(victim, "unload", f"for {model.target}")
            if (step is Next.GIVE_UP and not there) or not patience:
                self._events.say("507", model.target, "and nothing that helps is left to unload")
                raise refused

    # Unloading.

    def _unload(self, model: ResidentModel, action: str, why: str) -> None:
        """A model that is LEAVING: out of memory, then off the disk."""
        began = time.monotonic()
        if not self._api.unload(model.id, model.target):
            self._residents.stayed(model)
            return
        model_data.remove(self._files(model).parent)
        self._residents.gone(model)
        self._events.say(action, model.target, why, seconds=time.monotonic() - began)

    def _forget(self, model: ResidentModel, how: str) -> None:
        """The container has lost it."""
        news, ours = self._residents.lost(model)
        if news:
            self._events.say("lost", model.target, how)
        if ours:
            model_data.remove(self._files(model).parent)
            self._residents.gone(model)

    def _files(self, model: ResidentModel) -> Path:
        return self._directory / model.id / "model"


def wait_for(model: ResidentModel, until: float) -> None:
    """Until its load has ended. Raises what the load did, and ModelNotReadyException when the time is over first."""
    try:
        model.loaded.result(max(0.0, until - time.monotonic()))
    except FutureTimeout:
        raise not_ready(model.target) from None


def not_ready(target: str) -> PlatformError:
    return ModelNotReadyException(
        f"Model {target} is not ready for inference yet: it is still being downloaded or loaded. Try again later."
    )


def going() -> PlatformError:
    return ServiceUnavailable("The instance is being stopped or replaced. Try again later.")
