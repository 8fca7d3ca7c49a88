"""State of a container's models: users, last use, and which model to unload. Pure bookkeeping: it loads nothing."""

import enum
import threading
import time
from collections.abc import Iterable, Set
from concurrent.futures import Future
from dataclasses import dataclass, field
from hashlib import md5

WAIT_FOR_IDLE = 1.0  # seconds to wait for a model to become idle before the load is retried anyway


class Stage(enum.Enum):
    """Stage of one load of a model."""

    LOADING = enum.auto()
    LOADED = enum.auto()
    UNLOADING = enum.auto()  # no call may use it, and no new load may start until it is also off the disk


@dataclass(slots=True, eq=False)
class ResidentModel:
    """One load of one model, from start to unload. A later load of the same model is another object."""

    id: str
    target: str
    stage: Stage = Stage.LOADING
    users: int = 0  # calls that wait for it or use it
    used: int = 0  # time of its last use, as a count of all uses
    loaded: "Future[None]" = field(default_factory=Future)

    @property
    def idle(self) -> bool:
        return self.stage is Stage.LOADED and not self.users


class NextStep(enum.Enum):
    """The reaction to a 507."""

    UNLOAD = enum.auto()
    WAIT = enum.auto()
    GIVE_UP = enum.auto()


class Closed(Exception):
    """The container is being stopped."""


def opaque_id(target: str) -> str:
    """The name of a model inside the container: a hash, because SageMaker's names are opaque too."""
    return md5(target.encode(), usedforsecurity=False).hexdigest()


def next_step(models: Iterable[ResidentModel], wanted: ResidentModel) -> tuple[NextStep, ResidentModel | None]:
    """After a 507: unload the least recently used idle model, else wait for a busy one, else give up."""
    others = [each for each in models if each is not wanted]
    idle = [each for each in others if each.idle]
    if idle:
        return NextStep.UNLOAD, min(idle, key=lambda each: each.used)
    return (NextStep.WAIT if others else NextStep.GIVE_UP), None


def vanished(known: Iterable[ResidentModel], listed: Set[str]) -> list[ResidentModel]:
    """The models that were loaded before GET /models and that its answer does not list."""
    return [each for each in known if each.id not in listed]


class ResidentModels:
    """All models of a container; thread-safe.

    A caller that receives a model in stage UNLOADING must end that stage with `unloaded` or `unload_failed`.
    """

    def __init__(self, *, caching: bool) -> None:
        self._caching = caching
        self._models: dict[str, ResidentModel] = {}
        self._uses = 0
        self._closed = False
        self._changed = threading.Condition()  # guards all fields above and all models; notified on each change

    def snapshot(self) -> list[ResidentModel]:
        """All current models."""
        with self._changed:
            return list(self._models.values())

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Refuses new calls; every waiting caller gets Closed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # Calls

    def acquire(self, target: str, until: float) -> tuple[ResidentModel, bool]:
        """The model, which stays loaded until `release`, and whether the caller must load it.

        Raises TimeoutError if the model is still being unloaded at `until`, and Closed.
        """
        key = opaque_id(target)
        with self._changed:
            while (model := self._models.get(key)) is not None and model.stage is Stage.UNLOADING and not self._closed:
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self._changed.wait(left)
            if self._closed:
                raise Closed
            new = model is None
            if model is None:
                model = self._models[key] = ResidentModel(key, target)
            model.target = target  # a model that was found in the container had its id for a name
            model.users += 1
            self._mark_used(model)
            return model, new

    def release(self, model: ResidentModel) -> bool:
        """Ends a call's use. Returns true if the caller must unload the model, which is then UNLOADING."""
        with self._changed:
            model.users -= 1
            self._mark_used(model)
            current = self._models.get(model.id)
            unload = model.idle and (current is None or (current is model and not self._caching))
            if unload:
                self._models[model.id] = model
                model.stage = Stage.UNLOADING
            self._changed.notify_all()
            return unload

    # Loads

    def loaded(self, model: ResidentModel) -> None:
        """The load succeeded."""
        with self._changed:
            model.stage = Stage.LOADED
            self._mark_used(model)
            self._changed.notify_all()
        model.loaded.set_result(None)

    def load_failed(self, model: ResidentModel, error: Exception) -> None:
        """The load failed, and its files are removed. Waiting calls get `error`."""
        with self._changed:
            model.stage = Stage.UNLOADING
            self._remove(model)
        model.loaded.set_exception(error)

    def count_others(self, model: ResidentModel) -> int:
        """The number of other models, which could be unloaded now or later."""
        with self._changed:
            return sum(each is not model for each in self._models.values())

    def free_memory(self, model: ResidentModel, until: float) -> tuple[NextStep, ResidentModel | None]:
        """The reaction to a 507, after a wait of at most WAIT_FOR_IDLE. A model to UNLOAD is then UNLOADING.

        Raises Closed.
        """
        until = min(until, time.monotonic() + WAIT_FOR_IDLE)
        with self._changed:
            while True:
                if self._closed:
                    raise Closed
                step, victim = next_step(self._models.values(), model)
                if victim is not None:
                    victim.stage = Stage.UNLOADING
                left = until - time.monotonic()
                if step is not NextStep.WAIT or left <= 0:
                    return step, victim
                self._changed.wait(left)

    # Unloads

    def unloaded(self, model: ResidentModel) -> None:
        """A model in stage UNLOADING is out of memory and off the disk."""
        with self._changed:
            self._remove(model)

    def unload_failed(self, model: ResidentModel) -> None:
        """A model in stage UNLOADING is still loaded. It counts as just used, so that others are unloaded first."""
        with self._changed:
            model.stage = Stage.LOADED
            self._mark_used(model)
            self._changed.notify_all()

    def lost(self, model: ResidentModel) -> tuple[bool, bool]:
        """The container no longer has the model. Returns whether that is new, and whether the caller must clean up."""
        with self._changed:
            if self._models.get(model.id) is not model or model.stage is not Stage.LOADED:
                return False, False
            idle = model.idle
            if idle:
                model.stage = Stage.UNLOADING
            else:
                self._remove(model)  # the next call loads it again; the last user of this load cleans up
            return True, idle

    def adopt(self, key: str) -> bool:
        """Adds a model that only the container knew. Returns false if it is known by now."""
        with self._changed:
            if key in self._models or self._closed:
                return False
            model = self._models[key] = ResidentModel(key, key, stage=Stage.LOADED)
        model.loaded.set_result(None)
        return True

    def _remove(self, model: ResidentModel) -> None:
        if self._models.get(model.id) is model:
            del self._models[model.id]
        self._changed.notify_all()

    def _mark_used(self, model: ResidentModel) -> None:
        self._uses += 1
        model.used = self._uses
