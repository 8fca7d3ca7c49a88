"""The models of one container as the platform keeps them: who uses which, which may go. Nothing is loaded here."""

import enum
import threading
import time
from collections.abc import Iterable, Set
from concurrent.futures import Future
from dataclasses import dataclass, field
from hashlib import md5

PATIENCE = 1.0  # seconds to wait for a model to fall idle before the load is tried again as things are


class Stage(enum.Enum):
    LOADING = enum.auto()
    LOADED = enum.auto()
    LEAVING = enum.auto()  # nobody may use it, and nobody load it anew before it is gone, from disk too


@dataclass(slots=True, eq=False)
class ResidentModel:
    """One load of one model, from its beginning to its end. A later load of the same model is another one."""

    id: str
    target: str
    stage: Stage = Stage.LOADING
    users: int = 0  # calls that wait for it or are in it
    used: int = 0  # when it was last, as a count of all uses
    loaded: "Future[None]" = field(default_factory=Future)

    @property
    def idle(self) -> bool:
        return self.stage is Stage.LOADED and not self.users


class Next(enum.Enum):
    """What follows a 507."""

    UNLOAD = enum.auto()
    WAIT = enum.auto()
    GIVE_UP = enum.auto()


class Closed(Exception):
    """The container is going."""


def opaque_id(target: str) -> str:
    """The name that a container knows a model by; nothing can be read from it."""
    return md5(target.encode(), usedforsecurity=False).hexdigest()


def next_step(models: Iterable[ResidentModel], wanted: ResidentModel) -> tuple[Next, ResidentModel | None]:
    """Unload the least recently used one that nobody uses; wait while others are busy; give up when there are none."""
    others = [each for each in models if each is not wanted]
    idle = [each for each in others if each.idle]
    if idle:
        return Next.UNLOAD, min(idle, key=lambda each: each.used)
    return (Next.WAIT if others else Next.GIVE_UP), None


def vanished(known: Iterable[ResidentModel], listed: Set[str]) -> list[ResidentModel]:
    """Those that were loaded before the container listed its models, and that it does not list."""
    return [each for each in known if each.id not in listed]


class ResidentModels:
    """All of them, for any number of threads. What is LEAVING must be handed back to `gone` or `stayed`."""

    def __init__(self, *, caching: bool) -> None:
        self._caching = caching
        self._models: dict[str, ResidentModel] = {}
        self._uses = 0
        self._closed = False
        self._changed = threading.Condition()  # guards all the above and every ResidentModel; told of each change

    def snapshot(self) -> list[ResidentModel]:
        """All, as of now."""
        with self._changed:
            return list(self._models.values())

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Nobody comes in any more; who waits here is told."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # Calls.

    def enter(self, target: str, until: float) -> tuple[ResidentModel, bool]:
        """The model, which stays at least until `leave`, and whether it is up to the caller to load it.

        Raises TimeoutError while an unload lasts, and Closed.
        """
        key = opaque_id(target)
        with self._changed:
            while (model := self._models.get(key)) is not None and model.stage is Stage.LEAVING and not self._closed:
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self._changed.wait(left)
            if self._closed:
                raise Closed
            fresh = model is None
            if model is None:
                model = self._models[key] = ResidentModel(key, target)
            model.target = target  # one that was found in the container had no name yet
            model.users += 1
            self._use(model)
            return model, fresh

    def leave(self, model: ResidentModel) -> bool:
        """A call is over; whether it is up to the caller to unload the model, which is then LEAVING."""
        with self._changed:
            model.users -= 1
            self._use(model)
            current = self._models.get(model.id)
            going = model.idle and (current is None or (current is model and not self._caching))
            if going:
                self._models[model.id] = model
                model.stage = Stage.LEAVING
            self._changed.notify_all()
            return going

    # Loads.

    def loaded(self, model: ResidentModel) -> None:
        with self._changed:
            model.stage = Stage.LOADED
            self._use(model)
            self._changed.notify_all()
        model.loaded.set_result(None)

    def failed(self, model: ResidentModel, error: Exception) -> None:
        """The load has come to nothing, and of it nothing is left."""
        with self._changed:
            model.stage = Stage.LEAVING
            self._forget(model)
        model.loaded.set_exception(error)

    def others(self, model: ResidentModel) -> int:
        """How many there are that could be unloaded, now or later."""
        with self._changed:
            return sum(each is not model for each in self._models.values())

    def make_room(self, model: ResidentModel, until: float) -> tuple[Next, ResidentModel | None]:
        """What to do about a 507, after a while at most; the model to UNLOAD is then LEAVING. Raises Closed."""
        until = min(until, time.monotonic() + PATIENCE)
        with self._changed:
            while True:
                if self._closed:
                    raise Closed
                step, victim = next_step(self._models.values(), model)
                if victim is not None:
                    victim.stage = Stage.LEAVING
                left = until - time.monotonic()
                if step is not Next.WAIT or left <= 0:
                    return step, victim
                self._changed.wait(left)

    # Ends.

    def gone(self, model: ResidentModel) -> None:
        """What was LEAVING is out of memory and off the disk."""
        with self._changed:
            self._forget(model)

    def stayed(self, model: ResidentModel) -> None:
        """What was LEAVING could not be unloaded; others are tried before it."""
        with self._changed:
            model.stage = Stage.LOADED
            self._use(model)
            self._changed.notify_all()

    def lost(self, model: ResidentModel) -> tuple[bool, bool]:
        """The container has it no more. Whether that is news, and whether it is up to the caller to clear it away."""
        with self._changed:
            if self._models.get(model.id) is not model or model.stage is not Stage.LOADED:
                return False, False
            idle = model.idle
            if idle:
                model.stage = Stage.LEAVING
            else:
                self._forget(model)  # the next call loads it anew; the last of its users clears away
            return True, idle

    def adopt(self, key: str) -> bool:
        """Take in a model that the container has and we do not know; False where we do by now."""
        with self._changed:
            if key in self._models or self._closed:
                return False
            model = self._models[key] = ResidentModel(key, key, stage=Stage.LOADED)
        model.loaded.set_result(None)
        return True

    def _forget(self, model: ResidentModel) -> None:
        if self._models.get(model.id) is model:
            del self._models[model.id]
        self._changed.notify_all()

    def _use(self, model: ResidentModel) -> None:
        self._uses += 1
        model.used = self._uses
