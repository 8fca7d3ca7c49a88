"""Models in memory: which are wanted, which are there, and what becomes of them when a runner is ready, fails or dies.

A model is wanted when someone connects to its socket while nobody serves it. Wanting is all a caller does; loading
once for all who wait follows from there being one socket and one queue here.
"""

import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from serve.catalog import archive
from serve.catalog.catalog import Catalog
from serve.catalog.model_config import ModelConfig
from serve.catalog.scan import describe, real
from serve.errors import DoesNotFit, InternalError, ModelNotFound, RunnerDied, ServeError, from_wire
from serve.failures import HINTS, exhausted
from serve.host.eviction import Held, can_ever_fit, plan
from serve.host.forkserver import Forkserver
from serve.host.model import MINUTE, Hosted, Phase, RunnerProcess, Stage
from serve.host.runners import Death, Runners, measure
from serve.http.addresses import socket_name
from serve.settings import MB, Settings
from serve.slots import Slots, State


class Readiness:
    def __init__(self, preloads: Sequence[Hosted]) -> None:
        self._count = len(preloads)
        self.awaited = list(preloads)  # those that have not been ready yet; afterwards they are as any other

    def note(self, model: Hosted) -> None:
        """One of its runners is ready; it is, once all of its copies are."""
        if model in self.awaited and not model.missing():
            self.awaited.remove(model)

    def told(self) -> tuple[State, str]:
        """The state, and why it is that one."""
        if not self.awaited:
            return State.READY, "ready"
        says = f"starting: {self._count - len(self.awaited)} of {self._count} preloaded models are ready"
        failures = [f"; {each.name}: {error.message}" for each in self.awaited if (error := each.failure())]
        return State.STARTING, says + "".join(failures[:1])


# Of the run directory's disk, or a tenth of it if that is less: for nginx and the model's own temporary files.
SPARED = 256 * MB


class Preparing:
    """Models that are being prepared."""

    def __init__(self, settings: Settings, wake: Callable[[], None]) -> None:
        self._settings = settings
        self._unpacked = settings.unpacked
        self._roots = settings.model_roots if settings.multi_model else ()
        self._wake = wake  # makes the host's loop turn, from a thread
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="unpack")
        self._going_on: list[tuple[Hosted, Future[ModelConfig[Any]]]] = []

    def begin(self, model: Hosted) -> None:
        model.stage = Stage.PREPARING
        future = self._threads.submit(self._prepare, model)
        future.add_done_callback(lambda _: self._wake())
        self._going_on.append((model, future))

    def done(self) -> Iterator[tuple[Hosted, Future[ModelConfig[Any]]]]:
        """Those that have ended since last asked."""
        for model, future in [each for each in self._going_on if each[1].done()]:
            self._going_on.remove((model, future))
            model.stage = Stage.NONE
            yield model, future

    def tidy(self, model: Hosted) -> None:
        """Nobody needs what was unpacked for this model any more."""
        if model.entry.archive:
            shutil.rmtree(self._place(model), ignore_errors=True)

    def _place(self, model: Hosted) -> Path:
        return self._unpacked / socket_name(model.name)

    def _prepare(self, model: Hosted) -> ModelConfig[Any]:
        path = model.entry.path
        if self._roots:
            path = real(path, self._roots)  # again: it may have been swapped for a link meanwhile
        if not path.exists():
            raise ModelNotFound(f"there is nothing at {path} any more", hint="put it there again, then load it")
        if not model.entry.archive:
            return describe(model.name, path, self._settings)
        self._unpacked.mkdir(exist_ok=True)
        free, size = archive.disk(self._unpacked)
        room = max(free - min(SPARED, size // 10), 0)
        directory = archive.unpack(path, self._place(model), limit_bytes=room)
        return describe(model.name, directory, self._settings)


log = logging.getLogger(__name__)

# Seconds a load waits for idle victims before busy ones are asked to finish and go, and for those to be gone before it
# looks for idle ones again.
PATIENCE = 1.0


class Room:
    """What the budget has left, as far as it is measured. `changed` is told of each model that loses a runner."""

    def __init__(
        self,
        settings: Settings,
        runners: Runners,
        models: Mapping[str, Hosted],
        pinned: Collection[str],
        changed: set[Hosted],
    ) -> None:
        self._budget = settings.budget_bytes
        self._multi_model = settings.multi_model
        self._runners = runners
        self._models = models
        self._pinned = pinned
        self._changed = changed
        self._waiting: list[Hosted] = []  # oldest first

    def ask(self, model: Hosted) -> None:
        """Wait for room for those of its runners that are missing."""
        model.stage = Stage.WAITING
        self._waiting.append(model)

    def withdraw(self, model: Hosted) -> None:
        if model in self._waiting:
            self._waiting.remove(model)
            model.stage = Stage.NONE

    def awaited(self) -> bool:
        return bool(self._waiting)

    def admitted(self) -> Iterator[tuple[Hosted, DoesNotFit | None]]:
        """Whose waiting ends now: there is room, or there never will be. For the others room is made, oldest first."""
        budget = self._budget
        for model in list(self._waiting):
            need = model.bytes_each() * model.missing()
            held = self._held() + self._kept(model)
            if not can_ever_fit(need, self._budget, held):
                self.withdraw(model)
                yield model, self.does_not_fit(model, need)
                continue
            patient = time.monotonic() - model.wanted_since < PATIENCE
            decision = plan(need, budget, held, patient=patient)
            if decision.fits:
                self.withdraw(model)
                yield model, None
                continue
            for number in decision.victims:
                self.evict(self._runners.alive[number], "made room", model.name)
            budget -= need  # those behind may pass only through what it leaves free

    def overfull(self, runner: RunnerProcess) -> bool:
        """Whether this runner, which has just loaded, holds more than there is for it, measured."""
        if self._multi_model:  # nobody else will be asked to go
            kept = sum(each.bytes for each in self._kept(self._models[runner.model]))
            return self._runners.used() + kept > self._budget
        return runner.bytes > self._budget

    def keep_within(self, spared: RunnerProcess | None = None) -> None:
        """Estimates were too low: let the least recently used go until the measured bytes fit.

        The one just loaded is spared: those who wait for it have not even connected yet.
        """
        held = [each for each in self._held() if spared is None or each.runner != spared.number]
        budget = self._budget - (spared.bytes if spared else 0)
        for number in plan(0, budget, held, patient=True).victims:
            self.evict(self._runners.alive[number], "over the budget")

    def evict(self, runner: RunnerProcess, reason: str, by: str | None = None) -> None:
        model = self._models[runner.model]
        model.evictions += 1
        self._changed.add(model)
        idle = time.monotonic() - (runner.slot.get("last_used") / 1e9 or runner.since)
        extra = {"model": runner.model, "bytes": runner.bytes, "idle_s": round(idle, 1), "reason": reason, "for": by}
        log.info("evicted", extra=extra)
        runner.retire()

    def does_not_fit(self, model: Hosted, need: int) -> DoesNotFit:
        pinned = sum(
            each.bytes for each in self._held() + self._kept(model) if each.pinned and each.model != model.name
        )
        whose = "loaded" if self._multi_model else "pinned"
        says = f", of which {whose} models hold {_mb(pinned)}" if pinned else ""
        copies = f" for {model.copies} copies" if model.copies > 1 else ""
        return DoesNotFit(
            f"model {model.name!r} needs {_mb(need)}{copies}; the budget is {_mb(self._budget)}{says}",
            hint="give the container more memory, or set SERVE_MEMORY_BUDGET_MB",
        )

    def _kept(self, asking: Hosted) -> list[Held]:
        """On a multi-model endpoint: the room of loaded models whose process has died, the asking one's own aside.

        The platform counts them as loaded, and makes room for a load only; if others took theirs, whoever calls them
        would be told 507 until somebody unloads something.
        """
        if not self._multi_model:
            return []
        return [
            Held(runner=-1, model=model.name, bytes=model.bytes_each(), last_used=0, pinned=True)
            for model in self._models.values()
            if model.opened and not model.runners and model is not asking
        ]

    def _held(self) -> list[Held]:
        now = time.monotonic()
        return [
            Held(
                runner=each.number,
                model=each.model,
                bytes=each.bytes,
                last_used=each.slot.get("last_used") or int(each.since * 1e9),
                in_flight=each.slot.get("in_flight"),
                # On a multi-model endpoint the platform evicts: whatever is loaded stays until it says otherwise.
                pinned=each.model in self._pinned or (self._multi_model and each.phase is not Phase.RETIRING),
                loading=each.phase is Phase.LOADING,
                retiring=each.phase is Phase.RETIRING,
                slow=each.phase is Phase.RETIRING and now - each.retired > PATIENCE,
            )
            for each in self._runners.alive.values()
        ]


def _mb(count: int) -> str:
    return f"{count / MB:.0f} MB"


class Store:
    """All models, those being prepared, those that wait for room, and their runners."""

    def __init__(self, settings: Settings, found: Catalog, slots: Slots, forks: Forkserver, wake: Callable[[], None]):
        self._settings = settings
        self.changed: set[Hosted] = set()  # models whose socket or runners the loop must look at again
        self.models = {
            name: Hosted(entry, settings.sockets / socket_name(name), settings.queue_limit)
            for name, entry in found.entries.items()
            if not entry.problem
        }
        for model in self.models.values():
            model.open()  # before it is loaded: the first to come is heard, and loads it
        self.changed.update(self.models.values())
        self.readiness = Readiness(self._chosen(settings.preload, found, lambda config: config.preload))
        self._pinned = {model.name for model in self._chosen(settings.pin, found, lambda config: config.pin)}
        self._preparing = Preparing(settings, wake)
        self.runners = Runners(settings, slots, forks)
        self._room = Room(settings, self.runners, self.models, self._pinned, self.changed)

    def _chosen(self, names: Sequence[str], found: Catalog, card: Callable[[ModelConfig[Any]], bool]) -> list[Hosted]:
        """The models that a setting names, or that say so in their own card."""
        named = {found.resolve(name) for name in names if name != "*"}
        return [
            model
            for model in self.models.values()
            if "*" in names or model.name in named or (model.config is not None and card(model.config))
        ]

    # Wanting.

    def want(self, model: Hosted) -> None:
        """Bring a model in, if it is not on its way already."""
        if model.stage is not Stage.NONE or model.missing() <= 0 or model.leaving:
            return
        model.wanted_since = time.monotonic()
        self.changed.add(model)
        if model.config is None:
            self._preparing.begin(model)
        else:
            self._room.ask(model)
            self._admit()

    def named(self, name: str) -> Hosted:
        """Raises ModelNotFound."""
        if name not in self.models:
            raise no_such(name)
        return self.models[name]

    def of_socket(self, file: str) -> Hosted:
        """The model whose socket has this file name. Raises ModelNotFound."""
        for name, model in self.models.items():
            if socket_name(name) == file:
                return model
        raise no_such(file.removesuffix(".sock"))

    def listens_for(self, model: Hosted) -> bool:
        """Whether the host, and no runner, should hear who connects."""
        return model.stage is Stage.NONE and not model.leaving and not model.of_phase(Phase.LOADING, Phase.READY)

    def waits_for_room(self) -> bool:
        """Whether something waits for a change that only looking finds, so that the loop should look often."""
        return self._room.awaited()

    def _admit(self) -> None:
        """Order runners for those who have room now, and tell those who never will."""
        for model, error in self._room.admitted():
            self.changed.add(model)
            try:
                if error is not None:
                    raise error
                for _ in range(model.missing()):
                    self.runners.start(model)
            except (DoesNotFit, OSError) as refused:
                model.fail(exhausted(refused) or InternalError(f"no process for it: {refused}", hint="see the log"))

    # What the platform asks for on a multi-model endpoint.

    def add(self, model: Hosted) -> None:
        """One more, wanted at once; callers see it when it is ready."""
        self.models[model.name] = model
        self.want(model)

    def unload(self, model: Hosted, why: str) -> None:
        """Let nobody in any more; what is in flight is answered, what is loading is stopped. `forget` comes later."""
        model.close()
        self._room.withdraw(model)
        for runner in model.runners:
            if runner.phase is Phase.LOADING:
                runner.kill(why)
            runner.retire()

    def forget(self, model: Hosted) -> bool:
        """Whether all of an unloaded model is gone, memory too; then its name is free."""
        if model.runners or model.stage is not Stage.NONE:
            return False
        del self.models[model.name]
        self.changed.discard(model)
        self._preparing.tidy(model)
        return True

    # What the loop hears.

    def prepared(self) -> None:
        """Models of which it is known now what they need."""
        for model, future in self._preparing.done():
            self.changed.add(model)
            if model.leaving:
                continue
            try:
                model.config = future.result()
            except Exception as error:
                told = exhausted(error) or error
                if not isinstance(told, ServeError):
                    log.exception("unpacking failed", extra={"model": model.name})
                    told = InternalError(f"unpacking failed: {error}", hint="see the log")
                model.fail(told)
            else:
                self.want(model)

    def heard(self, runner: RunnerProcess) -> None:
        """What a runner says: that it is ready, or why it cannot be, or can be no more."""
        model = self.models[runner.model]
        for message in runner.messages():
            if "failed" in message:
                runner.told_failure = True
                model.fail(from_wire(message["failed"]))
            elif "lost" in message:  # it answers what it holds, and ends
                runner.killed_for = message["lost"]
                runner.retire()
                self.changed.add(model)
            elif runner.phase is Phase.LOADING:
                self._ready(model, runner, message["ready"]["seconds"])

    def _ready(self, model: Hosted, runner: RunnerProcess, seconds: float) -> None:
        runner.phase = Phase.READY
        runner.slot.set("last_used", time.monotonic_ns())
        self.readiness.note(model)
        waited = time.monotonic() - model.wanted_since
        model.load_seconds += waited
        measure(model, runner)
        model.at_ready = runner.bytes
        extra = {"model": model.name, "bytes": runner.bytes, "load_s": round(seconds, 3), "wait_s": round(waited, 3)}
        log.info("loaded", extra=extra)
        if not self._room.overfull(runner):
            model.open()
            self._room.keep_within(runner)
            return
        model.fail(self._room.does_not_fit(model, runner.bytes))
        if not self._settings.multi_model:  # there whoever waits for the load has it unloaded
            self._room.evict(runner, "bigger than the budget")

    def forked(self) -> None:
        """Births and deaths. Raises EOFError when the forkserver has ended."""
        for death in self.runners.deaths(last_words=self.heard):
            self._mourn(death)

    def _mourn(self, death: Death) -> None:
        runner, model = death.runner, self.models[death.runner.model]
        model.absorb(runner)
        self.changed.add(model)
        if death.lacked or model.learned > self._settings.budget_bytes:
            # What a request made it hold is not what a load needs: else it would be told for ever that it cannot fit.
            model.learned = model.at_ready
        hint = HINTS.get(death.lacked, "see the log")
        if runner.phase is Phase.LOADING and not runner.told_failure:
            says = f"the model died while loading: {death.cause}"
            model.fail((DoesNotFit if death.lacked else InternalError)(says, hint=hint))
        elif runner.phase is Phase.READY or (runner.phase is Phase.RETIRING and death.status):
            died = DoesNotFit if death.lacked else RunnerDied
            model.died_serving(died(f"the model's process died: {death.cause}", hint=hint, model=model.name))
            if model.of_phase(Phase.READY) or model.name in self._pinned:
                self.want(model)  # a copy, or one that must always be there
        elif death.status:
            log.warning("runner ended badly", extra={"model": model.name, "cause": death.cause})
        self._admit()

    # What time brings.

    def tick(self) -> None:
        """Kill what is stuck, forget old failures, measure again, and look whether those who wait fit now."""
        self.runners.kill_stuck()
        now = time.monotonic()
        for runner in self.runners.alive.values():
            if runner.phase is Phase.READY and now - runner.since > MINUTE:
                self.models[runner.model].proven()
        for runner in self.runners.worn_out():
            self._replace(runner, now)
        if due := self.runners.to_measure():
            for runner in due:
                measure(self.models[runner.model], runner)
            self._room.keep_within()
        for model in self.readiness.awaited:
            if not model.pause_left():
                self.want(model)
        self._admit()

    def _replace(self, runner: RunnerProcess, now: float) -> None:
        """Let a fresh process serve from the next request on. Once a minute: the requests may be what is too large."""
        model = self.models[runner.model]
        if now - model.replaced < MINUTE:
            return
        model.replaced = now
        self.changed.add(model)
        log.warning("replaced", extra={"model": model.name, "reason": "one request after another ran out of memory"})
        runner.retire()


def no_such(name: str) -> ModelNotFound:
    """In the words of AWS's own multi-model servers."""
    return ModelNotFound(f"Model not found: {name[:300]}", hint="GET /models lists those there are", model=name[:300])
