"""Models in memory: which are wanted, which are there, and what becomes of them when a runner is ready, fails or dies.

A model is wanted when someone connects to its socket while nobody serves it. Wanting is all a caller does; loading
once for all who wait follows from there being one socket and one queue here.
"""

import logging
import time
from collections.abc import Callable, Sequence

from serve.errors import DoesNotFit, InternalError, RunnerDied, ServeError, from_wire
from serve.exhausted import HINTS, exhausted
from serve.host.catalog import Catalog
from serve.host.entry import Spec
from serve.host.hosted import MINUTE, Hosted, Stage
from serve.host.multi_model import no_such
from serve.host.preparing import Preparing
from serve.host.readiness import Readiness
from serve.host.room import Room
from serve.host.runner_process import Forkserver, Phase, RunnerProcess
from serve.host.runners import Death, Runners, measure
from serve.names import socket_name
from serve.settings import Settings
from serve.slots import Slots

log = logging.getLogger(__name__)


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
        self.readiness = Readiness(self._chosen(settings.preload, found, lambda spec: spec.preload))
        self._pinned = {model.name for model in self._chosen(settings.pin, found, lambda spec: spec.pin)}
        self._preparing = Preparing(settings, wake)
        self.runners = Runners(settings, slots, forks)
        self._room = Room(settings, self.runners, self.models, self._pinned, self.changed)

    def _chosen(self, names: Sequence[str], found: Catalog, card: Callable[[Spec], bool]) -> list[Hosted]:
        """The models that a setting names, or that say so in their own card."""
        named = {found.resolve(name) for name in names if name != "*"}
        return [
            model
            for model in self.models.values()
            if "*" in names or model.name in named or (model.spec is not None and card(model.spec))
        ]

    # Wanting.

    def want(self, model: Hosted) -> None:
        """Bring a model in, if it is not on its way already."""
        if model.stage is not Stage.NONE or model.missing() <= 0 or model.leaving:
            return
        model.wanted_since = time.monotonic()
        self.changed.add(model)
        if model.spec is None:
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
                model.spec = future.result()
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
