"""The models in memory: which are wanted, which are loaded, which are evicted, and what each failure leads to.

A model is wanted when a caller connects to its socket while no runner serves it. The caller only waits in the socket's
queue; since there is one socket and one store, all callers share one load.

Everything here runs in the host's loop, one call at a time, so that there are no locks. Only unpacking runs in threads
(`Preparation`), which touch nothing but their model's directory.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from serve.catalog import archive
from serve.catalog.catalog import Catalog, cut
from serve.catalog.model_config import ModelConfig
from serve.catalog.scan import describe, real
from serve.control import Failed, Lost, Ready, Shrunk, Violation
from serve.devices import BESIDE_DEVICE, Device
from serve.errors import DoesNotFit, InternalError, ModelNotFound, ModelUnusable, RunnerDied, ServeError
from serve.failed_start import FailedStart
from serve.failures import HINTS, exhausted
from serve.host.eviction import Budget, Held, Need, can_ever_fit, on_device, place, plan, share
from serve.host.forkserver import Forkserver
from serve.host.model import MINUTE, Eviction, Phase, RunnerProcess, ServedModel, Stage
from serve.host.runners import Exit, Runners, measure
from serve.http.addresses import socket_name
from serve.settings import MB, Settings
from serve.slots import State

log = logging.getLogger(__name__)

# Bytes of the run directory's disk (or a tenth of it, if that is less) that unpacking leaves to nginx and to temporary
# files of the models.
SPARE_DISK = 256 * MB
# Seconds that a load waits for idle victims before busy runners are retired; then as long for those to exit, before
# idle runners are evicted in their place. Also for a runner that was asked to free its caches.
PATIENCE = 1.0
# A start is given up after so many failed loads in a row of one preloaded model (with their pauses 15 s and the loads),
# or at a failure after so many seconds: SageMaker waits 480 s for the first successful /ping.
ATTEMPTS = 5
IDLE = 2.0  # seconds without a request, in which a runner gives back what memory it can
RETRIED_FOR = 240.0


class Preparation:
    """Describes models that are not described yet: unpacks archives, in threads, and reads the files."""

    def __init__(self, settings: Settings, wake: Callable[[], None]) -> None:
        self._settings = settings
        self._unpacked = settings.unpacked
        self._roots = settings.model_roots if settings.multi_model else ()
        self._wake = wake  # wakes the host's loop; called in a thread
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="unpack")
        self._running: list[tuple[ServedModel, Future[ModelConfig[Any]]]] = []

    def start(self, model: ServedModel) -> None:
        future = self._threads.submit(self._prepare, model.name, model.entry.path, archived=model.entry.archive)
        future.add_done_callback(lambda _: self._wake())
        self._running.append((model, future))

    def finished(self) -> Iterator[tuple[ServedModel, Future[ModelConfig[Any]]]]:
        """The models whose preparation has ended since the last call."""
        for model, future in [each for each in self._running if each[1].done()]:
            self._running.remove((model, future))
            yield model, future

    def delete(self, model: ServedModel) -> None:
        """Delete the files that were unpacked for a model, and those that its processes have kept."""
        if model.entry.archive:
            shutil.rmtree(self._place(model.name), ignore_errors=True)
        shutil.rmtree(self._settings.own / socket_name(model.name), ignore_errors=True)

    def _place(self, name: str) -> Path:
        return self._unpacked / socket_name(name)

    def _prepare(self, name: str, path: Path, *, archived: bool) -> ModelConfig[Any]:
        if self._roots:
            path = real(path, self._roots)  # checked again: it may have been replaced by a link meanwhile
        if not path.exists():
            raise ModelNotFound(f"{path} no longer exists", hint="restore it, then load the model again")
        if not archived:
            return describe(name, path, self._settings)
        self._unpacked.mkdir(exist_ok=True)
        free, size = archive.disk(self._unpacked)
        limit = max(free - min(SPARE_DISK, size // 10), 0)
        directory = archive.unpack(path, self._place(name), limit_bytes=limit, seconds=self._settings.load_limit)
        return describe(name, directory, self._settings)


class Store:
    """All models, the queue of loads that wait for memory, and the runners.

    `changed` holds the models whose socket or runners the loop must look at again (serve.host.sockets.ModelSockets).
    Every method that changes a model's stage, or the phase or number of its runners, adds the model.
    """

    def __init__(
        self,
        settings: Settings,
        found: Catalog,
        forks: Forkserver,
        wake: Callable[[], None],
        devices: Sequence[Device] = (),
    ) -> None:
        self._budget = Budget(bytes=settings.budget_bytes, devices=tuple(each.bytes for each in devices))
        self._multi_model = settings.multi_model
        self._working_bytes = settings.working_bytes
        self.models = {
            name: ServedModel(entry, settings.sockets / socket_name(name), settings.queue_limit)
            for name, entry in found.entries.items()
            if not entry.problem
        }
        for model in self.models.values():
            model.open()  # although it is not loaded: the host accepts the first connection, and loads it
        self.changed: set[ServedModel] = set(self.models.values())
        self.runners = Runners(settings, forks, devices)
        self._preparation = Preparation(settings, wake)
        self._waiting: list[ServedModel] = []  # loads that wait for memory, oldest first
        for model in self._chosen(settings.pin, found, lambda config: config.pin):
            model.pinned = True
        preloads = self._chosen(settings.preload, found, lambda config: config.preload)
        for model in preloads:
            model.preloaded = True
        self._preloads = len(preloads)
        self._preloads_missing = preloads  # those that have never been ready
        self._began = time.monotonic()

    def _chosen(
        self, names: Sequence[str], found: Catalog, option: Callable[[ModelConfig[Any]], bool]
    ) -> list[ServedModel]:
        """The models that a setting names, or whose own option in model.toml is true."""
        named = {found.resolve(name) for name in names if name != "*"}
        return [
            model
            for model in self.models.values()
            if "*" in names or model.name in named or (model.config is not None and option(model.config))
        ]

    # Queries.

    @property
    def device_budgets(self) -> tuple[int, ...]:
        """Bytes that models may hold of each GPU."""
        return self._budget.devices

    def named(self, name: str) -> ServedModel:
        """Raises ModelNotFound."""
        if name not in self.models:
            raise not_found(name)
        return self.models[name]

    def of_socket(self, file: str) -> ServedModel:
        """The model whose socket has this file name. Raises ModelNotFound."""
        for name, model in self.models.items():
            if socket_name(name) == file:
                return model
        raise not_found(file.removesuffix(".sock"))

    def listens_for(self, model: ServedModel) -> bool:
        """Whether the host must watch the model's socket, because no runner accepts there."""
        return model.stage is Stage.NONE and not model.leaving and not model.of_phase(Phase.LOADING, Phase.READY)

    def waits_for_memory(self) -> bool:
        """Whether a load waits for a runner to become idle, which no event reports, so that the loop must poll."""
        return bool(self._waiting)

    def readiness(self) -> tuple[State, str]:
        """The state for /ping, and its reason."""
        if not self._preloads_missing:
            return State.READY, "ready"
        ready = self._preloads - len(self._preloads_missing)
        message = f"starting: {ready} of {self._preloads} preloaded models are ready"
        failures = [f"; {each.name}: {error.message}" for each in self._preloads_missing if (error := each.failure())]
        return State.STARTING, message + "".join(failures[:1])

    # Loading: want -> (prepare ->) wait for memory -> start runners -> ready.

    def failed_start(self) -> FailedStart | None:
        """Why the start must fail: a preloaded model that has never been ready, and of which no retry is worth it."""
        for model in self._preloads_missing:
            if model.failed is None or not model.failures_in_a_row:
                continue
            at, error = model.failed
            if hopeless(error, model.failures_in_a_row, at - self._began):
                loads = model.failures_in_a_row
                tries = f" after {loads} failed loads" if loads > 1 else ""
                reason = f"the preloaded model {cut(model.name)!r} cannot be served{tries}: {error.message}"
                return FailedStart(reason, hint=error.hint, model=model.name)
        return None

    def preload(self) -> None:
        """Want the preloaded models that have never been ready."""
        for model in list(self._preloads_missing):
            if not model.pause_left():
                self.want(model)

    def want(self, model: ServedModel) -> None:
        """Load a model, unless its load is under way or done."""
        if model.stage is not Stage.NONE or model.missing() <= 0 or model.leaving:
            return
        model.wanted_since = time.monotonic()
        self._begin(model)

    def _begin(self, model: ServedModel) -> None:
        """The next step of a load: describe the model, or wait for memory."""
        self.changed.add(model)
        if model.config is None:
            model.stage = Stage.PREPARING
            self._preparation.start(model)
        else:
            model.stage = Stage.WAITING
            self._waiting.append(model)
            self._admit()

    def prepared(self) -> None:
        """Continue the loads of models whose preparation has ended."""
        for model, future in self._preparation.finished():
            model.stage = Stage.NONE
            self.changed.add(model)
            if model.leaving:
                continue
            try:
                model.config = future.result()
            except Exception as error:
                failure = exhausted(error) or error
                if not isinstance(failure, ServeError):
                    log.exception("unpacking failed", extra={"model": model.name})
                    failure = InternalError(f"unpacking failed: {error}", hint="see the log")
                model.fail(failure)
            else:
                # On a multi-model endpoint the platform decides what stays loaded.
                model.pinned |= model.config.pin and not self._multi_model
                self._begin(model)

    def _admit(self) -> None:
        """Start the waiting loads that fit, and free memory for those that do not, oldest first.

        Each decision (serve.host.eviction) is carried out before the next is made, so that the next one sees it.
        """
        earlier: list[Held] = []  # what the waiting loads before this one need
        for model in list(self._waiting):
            try:
                need = self._need(model)
            except ModelUnusable as error:
                self._stop_waiting(model)
                model.fail(error)
                continue
            count = model.missing()
            held = self._held() + self._reserved(besides=model)
            if not can_ever_fit(need, count, self._budget, held):
                self._stop_waiting(model)
                model.fail(self._does_not_fit(model, need))
                continue
            patient = time.monotonic() - model.wanted_since < PATIENCE
            decision = place(need, count, self._budget, held + earlier, patient=patient)
            if decision.fits:
                self._stop_waiting(model)
                self._start_runners(model, need, decision.devices)
                continue
            self._shrink(decision.shrink, model.name)
            for number in decision.victims:
                self._evict(self.runners.alive[number], "to load another model", model.name)
            # Later requests in the queue may only use memory that this one does not need (no starvation).
            earlier += [share(need, device) for device in decision.devices]

    def _need(self, model: ServedModel) -> Need:
        """What a runner of a model needs. Raises ModelUnusable if its model.toml asks for a GPU that is not there."""
        devices = model.devices(len(self._budget.devices))
        if not devices:
            return Need(bytes=model.bytes_each())
        return Need(bytes=model.peak_bytes or BESIDE_DEVICE, device_bytes=model.device_bytes_each(), devices=devices)

    def _stop_waiting(self, model: ServedModel) -> None:
        if model in self._waiting:
            self._waiting.remove(model)
            model.stage = Stage.NONE
            self.changed.add(model)

    def _start_runners(self, model: ServedModel, need: Need, devices: Sequence[int | None]) -> None:
        cold = not model.of_phase(Phase.READY)
        try:
            for device in devices:
                self.runners.start(model, share(need, device), cold_since=model.wanted_since if cold else None)
        except (DoesNotFit, OSError) as error:
            failure = exhausted(error) or InternalError(f"the runner cannot be started: {error}", hint="see the log")
            model.fail(failure)

    def heard(self, runner: RunnerProcess) -> None:
        """Act on a runner's messages: it is ready, its load failed, its device is lost, or its caches are freed."""
        if runner.number not in self.runners.alive:
            return
        model = self.models[runner.model]
        try:
            for message in runner.control.messages():
                match message:
                    case Failed():
                        runner.reported_failure = True
                        model.fail(message.error())
                    case Lost():  # it answers the requests it holds, and exits
                        runner.kill_reason = message.message
                        runner.retire()
                        self.changed.add(model)
                    case Shrunk():
                        self._shrunk(model, runner)
                    case Ready() if runner.phase is Phase.LOADING:
                        model.walls = {"holds": message.holds, "missing": message.missing, "allowed": message.allowed}
                        self._ready(model, runner, message.seconds)
        except Violation as violation:
            reason = f"its code wrote to the server's control channel: {violation}"
            log.error("runner ended", extra={"model": model.name, "reason": reason})
            runner.kill(reason)
        if runner.control.hung_up():
            runner.closed = runner.closed or time.monotonic()

    def _ready(self, model: ServedModel, runner: RunnerProcess, seconds: float) -> None:
        if not model.of_phase(Phase.READY):
            model.cold = model.wanted_since, time.monotonic()
        runner.phase = Phase.READY
        now = time.monotonic_ns()
        runner.slot.set("last_used", now)
        for other in model.of_phase(Phase.LOADING):
            if not other.slot.get("cold_until"):
                other.slot.set("cold_until", now)  # from now on, requests no longer wait for a load
        if model in self._preloads_missing and not model.missing():
            self._preloads_missing.remove(model)
        waited = time.monotonic() - model.wanted_since
        model.load_seconds += waited
        measure(model, runner)
        model.bytes_at_ready, model.device_bytes_at_ready = runner.bytes, runner.device_bytes
        self.runners.allow(runner, model.config)
        extra = {"model": model.name, "bytes": runner.bytes, "load_s": round(seconds, 3), "wait_s": round(waited, 3)}
        if runner.device is not None:
            extra |= {"device": runner.device, "device_bytes": runner.device_bytes}
        log.info("loaded", extra=extra)
        own = model.config.memory_limit_mb if model.config else None
        if own is not None and runner.bytes > own * MB:
            message = f"the model holds {_mb(runner.bytes)} after its load; memory_limit_mb in its model.toml is {own}"
            model.fail(DoesNotFit(message, hint="raise memory_limit_mb"))
            self._evict(runner, "larger than its memory_limit_mb")
            return
        if not self._too_large(model, runner):
            model.open()
            self._keep_within_budget(just_loaded=runner)
            return
        devices = () if runner.device is None else (runner.device,)
        model.fail(
            self._does_not_fit(model, Need(bytes=runner.bytes, device_bytes=runner.device_bytes, devices=devices))
        )
        if not self._multi_model:  # there, the load's caller is answered 507 and the model is unloaded
            self._evict(runner, "larger than the budget")

    # Memory and eviction.

    def _too_large(self, model: ServedModel, runner: RunnerProcess) -> bool:
        """Whether a runner that has just loaded holds more, as measured, than the budget has for it."""
        held = [share(Need(bytes=runner.bytes, device_bytes=runner.device_bytes), runner.device)]
        if self._multi_model:  # no other model may be evicted
            held = self._held() + self._reserved(besides=model)
        return any(sum(each.bytes - each.spare for each in shares) > budget for budget, shares in self._pools(held))

    def _pools(self, held: Sequence[Held]) -> Iterator[tuple[int, Sequence[Held]]]:
        """The budget of memory and of each GPU, with the runners' shares in it as their bytes."""
        yield self._budget.bytes, held
        for device, budget in enumerate(self._budget.devices):
            yield budget, on_device(device, held)

    def _keep_within_budget(self, just_loaded: RunnerProcess | None = None) -> None:
        """Free caches, then evict the least recently used runners, while measured bytes exceed the budget.

        Estimates were too low, or models have grown. A runner that has just loaded is spared: the requests that wait
        for it have not been accepted yet.
        """
        by = just_loaded.model if just_loaded else None
        for budget, shares in self._pools(self._held()):
            spared = [each for each in shares if just_loaded and each.runner == just_loaded.number]
            others = [each for each in shares if each not in spared]
            decision = plan(0, budget - sum(each.bytes for each in spared), others, patient=True)
            self._shrink(decision.shrink, by)
            for number in decision.victims:
                if self.runners.alive[number].phase is not Phase.RETIRING:  # evicted for another resource
                    self._evict(self.runners.alive[number], "over the budget", by)

    def _shrink(self, numbers: Sequence[int], by: str | None) -> None:
        """Ask these runners to free their caches."""
        for number in numbers:
            runner = self.runners.alive[number]
            extra = {"model": runner.model, "bytes": runner.spare(), "for": by}
            log.info("caches freed", extra=extra)
            runner.shrink()

    def _shrunk(self, model: ServedModel, runner: RunnerProcess) -> None:
        """A runner has freed its caches: measure it, and admit waiting loads, or evict for them."""
        runner.shrunk()
        measure(model, runner)
        self._admit()

    def _evict(self, runner: RunnerProcess, reason: str, by: str | None = None) -> None:
        model = self.models[runner.model]
        model.evictions += 1
        model.last_eviction = Eviction(time.time(), reason, by, runner.bytes)
        self.changed.add(model)
        idle = time.monotonic() - (runner.slot.get("last_used") / 1e9 or runner.since)
        extra = {"model": runner.model, "bytes": runner.bytes, "idle_s": round(idle, 1), "reason": reason, "for": by}
        log.info("evicted", extra=extra)
        runner.retire()

    def _held(self) -> list[Held]:
        """The shares of all runners in the budget."""
        now = time.monotonic()
        return [
            Held(
                runner=each.number,
                model=each.model,
                bytes=each.bytes,
                last_used=each.slot.get("last_used") or int(each.since * 1e9),
                in_flight=each.slot.get("in_flight"),
                # On a multi-model endpoint the platform evicts: a loaded model stays until it is unloaded.
                pinned=self.models[each.model].pinned or (self._multi_model and each.phase is not Phase.RETIRING),
                loading=each.phase is Phase.LOADING,
                retiring=each.phase is Phase.RETIRING,
                slow=each.phase is Phase.RETIRING and now - each.retired > PATIENCE,
                device=each.device,
                device_bytes=each.device_bytes,
                spare=each.spare() if each.device is None else 0,  # caches lie where the model does
                device_spare=0 if each.device is None else each.spare(),
                shrinking=each.phase is Phase.READY and 0 < each.shrinking > now - PATIENCE,
            )
            for each in self.runners.alive.values()
        ]

    def _reserved(self, besides: ServedModel) -> list[Held]:
        """On a multi-model endpoint: memory reserved for loaded models whose runner has crashed, except this one.

        The platform counts them as loaded, and unloads another model only when a load fails with 507. Without the
        reservation, requests to a crashed model would be answered 507 until the platform unloads something.
        """
        if not self._multi_model:
            return []
        return [
            replace(share(self._need(model), model.device), model=model.name, pinned=True)
            for model in self.models.values()
            if model.opened and not model.runners and model is not besides
        ]

    def _does_not_fit(self, model: ServedModel, need: Need) -> DoesNotFit:
        others = self._held() + self._reserved(besides=model)
        which = "loaded" if self._multi_model else "pinned"

        def error(need: int, what: str, budget: int, shares: Sequence[Held], hint: str) -> DoesNotFit:
            pinned = sum(each.bytes for each in shares if each.pinned and each.model != model.name)
            used = f", of which {which} models hold {_mb(pinned)}" if pinned else ""
            return DoesNotFit(
                f"model {model.name!r} needs {_mb(need)}{what}; the budget is {_mb(budget)}{used}", hint=hint
            )

        copies = f" for {model.copies} copies" if model.copies > 1 else ""
        count = max(1, model.missing())
        if can_ever_fit(replace(need, devices=()), count, self._budget, others):
            # The largest budget is the one that is closest to enough.
            device = max(need.devices, key=lambda each: self._budget.devices[each], default=0)
            if need.devices:
                return error(
                    need.device_bytes,
                    f" on cuda:{device}" if model.copies == 1 else f" of a GPU for each of {model.copies} copies",
                    self._budget.devices[device],
                    on_device(device, others),
                    'take an instance whose GPUs have more memory, set dtype = "float16" under [options] of model.toml,'
                    " or raise SERVE_DEVICE_BUDGET_MB",
                )
        return error(
            need.bytes * count,
            copies,
            self._budget.bytes,
            others,
            "give the container more memory, or raise SERVE_MEMORY_BUDGET_MB",
        )

    # Exits of runners.

    def forked(self) -> None:
        """Act on the forkserver's reports of new and exited runners. Raises EOFError when the forkserver has exited."""
        for ended in self.runners.exits(read_messages=self.heard):
            self._exited(ended)

    def _exited(self, ended: Exit) -> None:
        """Count a runner's exit as a failed load, a crash, or the end of a retirement; then admit waiting loads."""
        runner, model = ended.runner, self.models[ended.runner.model]
        model.absorb(runner)
        self.changed.add(model)
        most = max(self._budget.devices, default=0)
        if ended.exhausted or model.peak_bytes > self._budget.bytes or model.peak_device_bytes > most:
            # Reset the estimate to the size right after loading. A peak caused by one large request must not make every
            # later load fail with 507.
            model.peak_bytes, model.peak_device_bytes = model.bytes_at_ready, model.device_bytes_at_ready
        hint = runner.over_limit or HINTS.get(ended.exhausted, "see the log")
        if runner.phase is Phase.LOADING and not runner.reported_failure:
            message = ended.cause if runner.over_limit else f"the model's process exited during the load: {ended.cause}"
            if ended.killed:  # the model is not the cause, and its requests still wait in its socket
                model.crashed(RunnerDied(message, hint=hint, model=model.name), ended.requests)
                if not model.pause_left():
                    self.want(model)
            else:
                model.fail((DoesNotFit if ended.exhausted else InternalError)(message, hint=hint))
        elif runner.phase is Phase.READY or (runner.phase is Phase.RETIRING and ended.status):
            error = DoesNotFit if ended.exhausted else RunnerDied
            cause = ended.cause if runner.over_limit else f"the model's process crashed: {ended.cause}"
            # A request that needs too much says nothing about the model: the next request starts it again.
            by_request = ended.limited and bool(ended.requests)
            model.crashed(error(cause, hint=hint, model=model.name), ended.requests, counts=not by_request)
            if model.of_phase(Phase.READY) or model.pinned or (runner.replaced and not model.pause_left()):
                self.want(model)  # one of several copies, a model that must always be loaded, or one that was idle
        elif ended.status:
            log.warning("runner exited with an error", extra={"model": model.name, "cause": ended.cause})
        elif model.pinned and not model.pause_left():
            self.want(model)  # it was replaced
        self._admit()

    # Loads and unloads of a multi-model endpoint.

    def add(self, model: ServedModel) -> None:
        """Add a model and load it. Its socket is opened to callers once it is ready."""
        self.models[model.name] = model
        self.want(model)

    def unload(self, model: ServedModel, reason: str) -> None:
        """Close the socket, kill runners that are loading, retire the others. `forget` completes the unload."""
        model.close()
        self._stop_waiting(model)
        for runner in model.runners:
            if runner.phase is Phase.LOADING:
                runner.kill(reason)
            runner.retire()

    def forget(self, model: ServedModel) -> bool:
        """Remove an unloaded model if its memory is free; returns whether it is. The name may then be used again."""
        if model.runners or model.stage is not Stage.NONE:
            return False
        del self.models[model.name]
        self.changed.discard(model)
        self._preparation.delete(model)
        return True

    # Time.

    def tick(self) -> None:
        """Kill stuck runners, replace worn-out ones, measure, retry preloads, and admit waiting loads."""
        self.runners.kill_stuck()
        self.runners.kill_silent()
        self.runners.show_output()
        now = time.monotonic()
        for runner in self.runners.alive.values():
            if runner.phase is Phase.READY and now - runner.since > MINUTE:
                self.models[runner.model].forgive()
        for runner, reason in self.runners.worn_out():
            self._replace(runner, reason, now)
        if due := self.runners.to_measure():
            for runner in due:
                model = self.models[runner.model]
                measure(model, runner)
                if keeps_too_much(model, runner, self._working_bytes, now):
                    reason = f"idle, it still held {_mb(runner.bytes)} after its requests"
                    model.replaced_for_keeping += self._replace(runner, reason, now)
            self._keep_within_budget()
        self.preload()
        self._admit()

    def _replace(self, runner: RunnerProcess, reason: str, now: float) -> bool:
        """Retire a runner so that the next request starts a fresh one. At most once a minute for each model.

        More often would not help: the requests themselves may be too large.
        """
        model = self.models[runner.model]
        if now - model.replaced < MINUTE:
            return False
        model.replaced = now
        self.changed.add(model)
        log.warning("replaced", extra={"model": model.name, "reason": reason})
        runner.retire()
        return True


def keeps_too_much(model: ServedModel, runner: RunnerProcess, share: int, now: float) -> bool:
    """Whether an idle runner still holds so much of what its requests took that a fresh one is better.

    By then it has given back what it can (serve.runner.rest). Half of the share for work is too much; the double each
    time it happened before, since a model that loads a part of itself with its first request holds it again.
    """
    if runner.phase is not Phase.READY or runner.slot.get("in_flight") or not model.bytes_at_ready:
        return False
    if now - runner.slot.get("last_used") / 1e9 < IDLE:
        return False
    kept = runner.bytes - min(runner.slot.get("spare_bytes"), share) - model.bytes_at_ready
    return kept > (share // 2) << min(model.replaced_for_keeping, 30)


def hopeless(error: ServeError, failures: int, seconds: float) -> bool:
    """Whether a start is given up for a preloaded model: after so many failures in a row, the last one at `seconds`.

    Files that cannot be served stay so. Memory, a crash, or an exception in the model's own code may be of the moment.
    """
    return isinstance(error, ModelUnusable) or failures >= ATTEMPTS or seconds > RETRIED_FOR


def not_found(name: str) -> ModelNotFound:
    """The error in the words of AWS's own multi-model servers."""
    return ModelNotFound(f"Model not found: {name[:300]}", hint="GET /models lists the models", model=name[:300])


def _mb(count: int) -> str:
    return f"{count / MB:.0f} MB"
