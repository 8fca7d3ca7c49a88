"""Room for models: the budget, who waits for a place in it, and who has to go."""

import logging
import time
from collections.abc import Collection, Iterator, Mapping

from serve.errors import DoesNotFit
from serve.host.eviction import Held, can_ever_fit, plan
from serve.host.hosted import Hosted, Stage
from serve.host.runner_process import Phase, RunnerProcess
from serve.host.runners import Runners
from serve.settings import MB, Settings

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
