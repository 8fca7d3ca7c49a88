"""Models in memory: which are loaded, how many bytes they hold, who must go, and what to tell those who wait.

A model is wanted when someone connects to its socket while nobody serves it. Wanting is all a caller does; loading
once for all who wait follows from there being one socket and one queue here.
"""

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from serve.errors import Conflict, DoesNotFit, InternalError, RunnerDied, ServeError, from_wire
from serve.host import archive, catalog, memory
from serve.host.catalog import Catalog, Entry, Spec
from serve.host.eviction import Held, can_ever_fit, plan
from serve.host.hosted import MINUTE, Hosted, Stage
from serve.host.runner_process import Forkserver, Phase, RunnerProcess, order
from serve.names import socket_name
from serve.nginx import nginx_limit
from serve.settings import MB, Settings
from serve.slots import SLOTS, WEB_SLOTS, Slots

log = logging.getLogger(__name__)

PATIENCE = 1.0  # seconds a load waits for idle victims before busy ones are asked to finish and go
MEASURE_EVERY = 2.0  # a measurement walks a process's page tables: about 1 ms for each GB it maps
MEASURED_AT_ONCE = 8  # so that a thousand runners do not stop the loop


class Store:
    """All models, the budget they share, and the loads that wait for room in it."""

    def __init__(self, settings: Settings, found: Catalog, slots: Slots, forks: Forkserver, wake: Callable[[], None]):
        self._settings = settings
        self._slots = slots
        self._forks = forks
        self._wake = wake  # makes the host's loop turn, from a thread
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="unpack")
        self._prepared: list[tuple[Hosted, Future[Spec]]] = []
        self._waiting: list[Hosted] = []  # oldest first
        self._free_slots = list(range(SLOTS - 1, WEB_SLOTS - 1, -1))
        self._measured = 0.0
        self._oom_kills = memory.oom_kills()
        self.runners: dict[int, RunnerProcess] = {}
        self.changed: set[Hosted] = set()  # models whose socket or runners the loop must look at again
        self.models = {
            name: Hosted(entry, settings.sockets / socket_name(name), settings.queue_limit)
            for name, entry in found.entries.items()
            if not entry.problem
        }
        self.changed.update(self.models.values())
        self.preloads = self._chosen(settings.preload, found, lambda spec: spec.preload)
        self.awaited = list(self.preloads)  # those that have not been ready yet; afterwards they are as any other
        self._pinned = {model.name for model in self._chosen(settings.pin, found, lambda spec: spec.pin)}

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
            model.stage = Stage.PREPARING
            future = self._threads.submit(_prepare, model, self._settings)
            future.add_done_callback(lambda _: self._wake())
            self._prepared.append((model, future))
        else:
            model.stage = Stage.WAITING
            self._waiting.append(model)
            self.admit()

    def listens_for(self, model: Hosted) -> bool:
        """Whether the host, and no runner, should hear who connects."""
        return model.stage is Stage.NONE and not model.leaving and not model.of_phase(Phase.LOADING, Phase.READY)

    def admit(self) -> None:
        """Order runners for those who wait, oldest first, as far as memory goes; make room for the rest."""
        budget = self._settings.budget_bytes
        for model in list(self._waiting):
            need = model.bytes_each() * model.missing()
            held = self.held()
            if not can_ever_fit(need, self._settings.budget_bytes, held):
                self._waiting.remove(model)
                self.changed.add(model)
                model.fail(self._does_not_fit(model, need))
                continue
            patient = time.monotonic() - model.wanted_since < PATIENCE
            decision = plan(need, budget, held, patient=patient)
            if decision.fits:
                self._waiting.remove(model)
                model.stage = Stage.NONE
                for _ in range(model.missing()):
                    self._start(model)
                continue
            for number in decision.victims:
                self._evict(self.runners[number], "made room", model.name)
            budget -= need  # those behind may pass only through what it leaves free

    def held(self) -> list[Held]:
        return [
            Held(
                runner=each.number,
                bytes=each.bytes,
                last_used=each.slot.get("last_used") or int(each.since * 1e9),
                in_flight=each.slot.get("in_flight"),
                # On a multi-model endpoint the platform evicts: whatever is loaded stays until it says otherwise.
                pinned=each.model in self._pinned or (self._settings.multi_model and each.phase is not Phase.RETIRING),
                loading=each.phase is Phase.LOADING,
                retiring=each.phase is Phase.RETIRING,
            )
            for each in self.runners.values()
        ]

    def _start(self, model: Hosted) -> None:
        assert model.spec is not None
        self.changed.add(model)
        if not self._free_slots:
            model.fail(DoesNotFit(f"{SLOTS - WEB_SLOTS} runners are alive, more are not supported"))
            return
        number = self._free_slots.pop()
        slot = self._slots.slot(number)
        slot.clear()
        runner = RunnerProcess(number, model.name, slot, model.bytes_each())
        self.runners[number] = runner
        model.runners.append(runner)
        model.loads += 1
        self._forks.fork(runner, order(model.spec, self._settings), model.listener)

    def _evict(self, runner: RunnerProcess, reason: str, by: str | None = None) -> None:
        model = self.models[runner.model]
        model.evictions += 1
        self.changed.add(model)
        idle = time.monotonic() - (runner.slot.get("last_used") / 1e9 or runner.since)
        extra = {"model": runner.model, "bytes": runner.bytes, "idle_s": round(idle, 1), "reason": reason, "for": by}
        log.info("evicted", extra=extra)
        runner.retire()

    def _does_not_fit(self, model: Hosted, need: int) -> DoesNotFit:
        budget = self._settings.budget_bytes
        pinned = sum(each.bytes for each in self.held() if each.pinned)
        says = f", of which pinned models hold {_mb(pinned)}" if pinned else ""
        copies = f" for {model.copies} copies" if model.copies > 1 else ""
        return DoesNotFit(
            f"model {model.name!r} needs {_mb(need)}{copies}; the budget is {_mb(budget)}{says}",
            hint="give the container more memory, or set SERVE_MEMORY_BUDGET_MB",
        )

    # What the platform asks for on a multi-model endpoint.

    def load(self, entry: Entry) -> Hosted:
        """Make a model and want it. Raises Conflict when there is one of this name, on its way in or out too."""
        if entry.name in self.models:
            raise Conflict(f"Model {entry.name} is already registered.", model=entry.name)
        path = self._settings.sockets / socket_name(entry.name)
        model = self.models[entry.name] = Hosted(entry, path, self._settings.queue_limit)
        self.want(model)
        return model

    def unload(self, model: Hosted, why: str) -> None:
        """Let nobody in any more; what is in flight is answered, what is loading is stopped. `forget` comes later."""
        model.close()
        if model in self._waiting:
            self._waiting.remove(model)
            model.stage = Stage.NONE
        for runner in model.runners:
            if runner.phase is Phase.LOADING:
                runner.phase = Phase.RETIRING
                runner.kill(why)
            else:
                runner.retire()

    def forget(self, model: Hosted) -> bool:
        """Whether all of an unloaded model is gone, memory too; then its name is free."""
        if model.runners or model.stage is not Stage.NONE:
            return False
        del self.models[model.name]
        self.changed.discard(model)
        if model.entry.archive:
            shutil.rmtree(_unpacked(model, self._settings), ignore_errors=True)
        return True

    # What the loop hears.

    def prepared(self) -> None:
        """Archives that have been unpacked since last asked."""
        for model, future in [each for each in self._prepared if each[1].done()]:
            self._prepared.remove((model, future))
            self.changed.add(model)
            model.stage = Stage.NONE
            if model.leaving:
                continue
            try:
                model.spec = future.result()
            except ServeError as error:
                model.fail(error)
            except Exception as error:
                log.exception("unpacking failed", extra={"model": model.name})
                model.fail(InternalError(f"unpacking failed: {error}", hint="see the log"))
            else:
                self.want(model)

    def heard(self, runner: RunnerProcess) -> None:
        """What a runner says: that it is ready, or why it cannot be."""
        model = self.models[runner.model]
        for message in runner.messages():
            if "failed" in message:
                runner.told_failure = True
                model.fail(from_wire(message["failed"]))
            elif runner.phase is Phase.LOADING:
                self._ready(model, runner, message["ready"]["seconds"])

    def _ready(self, model: Hosted, runner: RunnerProcess, seconds: float) -> None:
        runner.phase = Phase.READY
        runner.slot.set("last_used", time.monotonic_ns())
        if model in self.awaited and not model.missing():
            self.awaited.remove(model)
        model.load_seconds += time.monotonic() - model.wanted_since
        self._measure(model, runner)
        extra = {
            "model": model.name,
            "bytes": runner.bytes,
            "load_s": round(seconds, 3),
            "wait_s": round(time.monotonic() - model.wanted_since, 3),
        }
        log.info("loaded", extra=extra)
        if self._settings.multi_model and self.used() > self._settings.budget_bytes:
            model.fail(self._does_not_fit(model, runner.bytes))
        elif runner.bytes > self._settings.budget_bytes:
            model.fail(self._does_not_fit(model, runner.bytes))
            self._evict(runner, "bigger than the budget")
        else:
            self._keep_within_budget(runner)

    def _measure(self, model: Hosted, runner: RunnerProcess) -> None:
        runner.measured = time.monotonic()
        held = memory.private_bytes(runner.pid)
        if held:
            runner.bytes = held
            model.learned = max(model.learned, held) if model.learned else held

    def _keep_within_budget(self, spared: RunnerProcess | None = None) -> None:
        """Estimates were too low: let the least recently used go until the measured bytes fit.

        The one just loaded is spared: those who wait for it have not even connected yet.
        """
        held = [each for each in self.held() if spared is None or each.runner != spared.number]
        budget = self._settings.budget_bytes - (spared.bytes if spared else 0)
        decision = plan(0, budget, held, patient=True)
        for number in decision.victims:
            self._evict(self.runners[number], "over the budget")

    def forked(self) -> None:
        """Births and deaths. Raises EOFError when the forkserver has ended."""
        for message in self._forks.messages():
            if "pid" in message:
                runner = self.runners[message["runner"]]
                runner.pid = message["pid"]
                if runner.killed_for:  # before it was born
                    runner.kill(runner.killed_for)
            elif "unborn" in message:
                runner = self.runners[message["unborn"]]
                runner.killed_for = message["cause"]
                self._buried(runner, 1)
            else:
                runner = next(each for each in self.runners.values() if each.pid == message["died"])
                self.heard(runner)  # its last words may still be in the channel
                self._buried(runner, message["status"])

    def _buried(self, runner: RunnerProcess, status: int) -> None:
        model = self.models[runner.model]
        kernel = status == -signal.SIGKILL and not runner.killed_for and self._kernel_killed()
        cause = _cause(runner, status, kernel)
        model.absorb(runner)
        del self.runners[runner.number]
        self.changed.add(model)
        self._free_slots.append(runner.number)
        runner.control.close()
        if runner.phase is Phase.LOADING and not runner.told_failure:
            hint = "give the container more memory" if kernel else "see the log"
            model.fail((DoesNotFit if kernel else InternalError)(f"the model died while loading: {cause}", hint=hint))
        elif runner.phase is Phase.READY or (runner.phase is Phase.RETIRING and status):
            hint = "send less at once, or give the container more memory" if kernel else "see the log"
            model.died_serving(RunnerDied(f"the model's process died: {cause}", hint=hint, model=model.name))
            if model.of_phase(Phase.READY) or model.name in self._pinned:
                self.want(model)  # a copy, or one that must always be there
        elif status:
            log.warning("runner ended badly", extra={"model": model.name, "cause": cause})
        self.admit()

    def _kernel_killed(self) -> bool:
        before, self._oom_kills = self._oom_kills, memory.oom_kills()
        return self._oom_kills > before

    # What time brings.

    def tick(self) -> None:
        """Kill what is stuck, forget old failures, measure again, and look whether those who wait fit now."""
        now = time.monotonic()
        for runner in list(self.runners.values()):
            busy_since = runner.slot.get("busy_since")
            if runner.phase is Phase.LOADING and now - runner.since > self._settings.load_limit:
                runner.kill(f"loading took longer than {self._settings.load_limit:g} s (SERVE_LOAD_LIMIT)")
            elif busy_since and now - busy_since / 1e9 > nginx_limit(self._settings.request_limit):
                # Nobody waits for it any more but nginx's own question why, and that answer must be in time too.
                limit = self._settings.request_limit
                runner.kill(f"it was stuck in one request for {limit:g} s (SAGEMAKER_MODEL_SERVER_TIMEOUT)")
            elif runner.phase is Phase.READY and now - runner.since > MINUTE:
                self.models[runner.model].proven()
        if now - self._measured > MEASURE_EVERY:
            self._measured = now
            ready = [each for each in self.runners.values() if each.phase is Phase.READY]
            for runner in sorted(ready, key=lambda each: each.measured)[:MEASURED_AT_ONCE]:
                self._measure(self.models[runner.model], runner)
            self._keep_within_budget()
        for model in self.awaited:
            if not model.pause_left():
                self.want(model)
        self.admit()

    def busy(self) -> bool:
        """Whether something waits for a change that only looking finds, so that the loop should look often."""
        return bool(self._waiting)

    def used(self) -> int:
        return sum(each.bytes for each in self.runners.values())

    def retire_all(self) -> None:
        for runner in self.runners.values():
            runner.retire()


def _unpacked(model: Hosted, settings: Settings) -> Path:
    assert settings.run_dir is not None
    return settings.run_dir / "unpacked" / socket_name(model.name)


def _prepare(model: Hosted, settings: Settings) -> Spec:
    """Unpack a model's archive where we may write, and read what it is. Runs in a thread."""
    if not model.entry.archive:
        return catalog.describe(model.name, model.entry.path)
    into = _unpacked(model, settings)
    into.parent.mkdir(exist_ok=True)
    room = max(archive.free_bytes(into.parent) - 256 * MB, 0)
    directory = archive.unpack(model.entry.path, into, limit_bytes=room)
    return catalog.describe(model.name, directory)


def _cause(runner: RunnerProcess, status: int, kernel: bool) -> str:
    if runner.killed_for:
        return runner.killed_for
    if kernel:
        return "killed by the kernel, out of memory"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"it exited with status {os.EX_OK + status}"


def _mb(count: int) -> str:
    return f"{count / MB:.0f} MB"
