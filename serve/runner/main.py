"""A runner: one process, one model. Called in the forkserver's child."""

import ctypes
import gc
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import msgspec

from serve import capture, devices, machine
from serve.catalog.kinds import HANDLERS
from serve.catalog.model_config import FILE, ModelConfig
from serve.catalog.scan import real
from serve.control import Failed, Ready, tell
from serve.errors import InternalError, ModelNotFound, ModelUnusable, ServeError
from serve.failures import described, exhausted, not_installed
from serve.handlers.base import Predictor, Stepwise, Upkeep
from serve.http import extent
from serve.http.addresses import INVOCATIONS, OPEN_INFERENCE, socket_name
from serve.runner import limits, own_packages
from serve.runner import record as records
from serve.runner.arrival import Addressee, ColdStart
from serve.runner.jobs import Batches
from serve.runner.limits import Admission
from serve.runner.loop import Loop
from serve.runner.open_inference import OpenInference
from serve.runner.record import Record
from serve.runner.records import Engine, Records
from serve.runner.rest import Rest
from serve.settings import MB, Settings
from serve.slots import Slot
from serve.walls import advice, enclosure
from serve.walls.enclosure import Policy, Walls, raise_walls

log = logging.getLogger(__name__)

PR_SET_NAME = 15
# Allowed beside the memory for work: stacks of threads that do not exist yet, and what allocators reserve ahead.
RESERVED = 1 << 30


def run(
    counters: int,
    record: int,
    output: int,
    listener: socket.socket,
    control: socket.socket,
    settings: Settings,
    own: Sequence[str] | None = None,
    log_to: int | None = None,
    *,
    common: int = -1,
) -> None:
    """Load a model, report to the host, and serve until the host retires the runner.

    `counters`, `record`, `output`: file descriptors of the runner's slot, of the model's ModelConfig, and of the file
    that captures stdout and stderr. `own`: directories of the model's own packages, in an interpreter that was started
    for them; then `log_to` is the descriptor of the log. `common`: that of the page in which the copies of the model
    count together; -1: none.
    """
    given = records.read(record)
    config = given.model()
    log_to = capture.install(output, f"runner {config.name}", config.name, settings.log_level, log_to)
    ctypes.CDLL(None).prctl(PR_SET_NAME, config.name.encode()[:15])  # shown by `top`
    slot = Slot(counters)
    slot.set("pid", os.getpid())
    # The launcher alone acts on Ctrl-C. Without a handler, `_thread.interrupt_main` in own code does nothing.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    memory = machine.OwnMemory()
    extent.limit(settings.max_rows, settings.max_cells)
    began = time.monotonic()
    try:
        handler, walls = _load(
            record, given, settings, own, partial(_afresh, counters, record, output, log_to, common, listener, control)
        )
    except ServeError as error:
        error.model = config.name
        capture.end()
        tell(control, Failed.of(error))
        os._exit(1)
    admission = _admission(config, common, handler, settings)
    os.close(counters)
    # Free the temporary memory of the load before the host measures the runner. The collector skips frozen objects:
    # weights and modules.
    gc.collect()
    gc.freeze()
    ctypes.CDLL(None).malloc_trim(0)
    stepwise = hasattr(handler, "step")
    if settings.bad_record and getattr(handler, "slices", False):
        handler.slices = False  # type: ignore[union-attr]  # Records reads the lines of a body that `decode` refuses
    engine = cast(Engine, handler if stepwise else Batches(cast(Predictor, handler), config.max_batch))
    engine = Records(engine, getattr(handler, "records", ()), settings.bad_record)
    engine = OpenInference(engine, handler, config)
    paths = (*getattr(handler, "paths", (INVOCATIONS,)), *OPEN_INFERENCE)
    addressee = Addressee(config.names(), settings.model_field, paths)
    capture.end()
    cold, caches = ColdStart.ended_now(slot), getattr(handler, "caches", None)
    loop = Loop(
        *(engine, addressee, listener, control, slot, settings, cold),
        stepwise=stepwise,
        rest=Rest(memory),
        caches=caches,
        admission=admission,
    )
    devices.report(slot)
    if upkeep := getattr(handler, "upkeep", None):
        slot.set("pending_bytes", upkeep.bytes)
    if not slot.get("device_bytes"):  # CUDA maps far more than it uses
        work = config.memory_limit_mb * MB if config.memory_limit_mb else settings.working_bytes
        memory.limit(work + slot.get("pending_bytes") + RESERVED)
    held = msgspec.structs.asdict(walls)
    tell(control, Ready(seconds=time.monotonic() - began, **held))
    if upkeep:
        threading.Thread(target=_keep_up, args=(upkeep, slot), daemon=True).start()
    # Exit handlers and threads of the model's own code may never end, so that neither is waited for.
    os._exit(1 if loop.run() else 0)


def _admission(
    config: ModelConfig[Any], common: int, handler: Predictor | Stepwise, settings: Settings
) -> Admission | None:
    """The limits of a model that has some."""
    if config.limits is None:
        return None
    tally = limits.Tally(common)
    return Admission(
        config.name, config.limits, settings.queue_limit, tally, lambda: cast(int, getattr(handler, "computed", 0))
    )


def _keep_up(upkeep: Upkeep, slot: Slot) -> None:
    """What fails here leaves the model as it was loaded. The end of the process ends it."""
    try:
        while upkeep.advance():
            slot.set("pending_bytes", upkeep.bytes)
    except BaseException:
        log.exception("the work behind the load failed")
    slot.set("pending_bytes", 0)


def _afresh(
    counters: int,
    record: int,
    output: int,
    log_to: int,
    common: int,
    listener: socket.socket,
    control: socket.socket,
    own: Sequence[str],
) -> NoReturn:
    """Start this runner again, in an interpreter without imports.

    Modules that the forkserver has imported, transformers 5 for example, would hide the model's own versions.
    """
    files = (counters, record, output, log_to, common, listener.fileno(), control.fileno())
    for file in files:
        if file >= 0:
            os.set_inheritable(file, True)
    os.execv(sys.executable, [sys.executable, "-m", "serve", "runner", *map(str, files), *own])


def begin(numbers: Sequence[int], settings: Settings, own: Sequence[str]) -> None:
    """Continue after `_afresh`, in the new interpreter, with its file descriptors."""
    counters, record, output, log_to, common, listener, control = numbers
    sockets = socket.socket(fileno=listener), socket.socket(fileno=control)
    try:
        run(counters, record, output, *sockets, settings, own, log_to, common=common)
    except BaseException:
        log.exception("runner failed")
        os._exit(1)


def _load(
    record: int,
    given: Record,
    settings: Settings,
    own: Sequence[str] | None,
    afresh: Callable[[Sequence[str]], NoReturn],
) -> tuple[Predictor | Stepwise, Walls]:
    config = given.model()
    module, _, cls = HANDLERS[config.handler].partition(":")
    # Libraries that own code imports would use every core of the machine, in spite of the container's limit.
    os.environ.setdefault("OMP_NUM_THREADS", str(config.threads))
    try:
        if settings.multi_model and settings.run_dir:
            # Checked again: the path may have become a link since the host's check. Archives are in the run directory.
            real(config.directory, (*settings.model_roots, settings.run_dir))
        if own is None and (packages := own_packages.prepare(config, settings, given.installing)):
            afresh(list(map(str, packages)))
        os.close(record)
        walls, kept = _enclose(given, config, settings, own or ())
        sys.path[:0] = own or ()
        config = msgspec.structs.replace(config, run_dir=kept)
        handler = cast(Predictor | Stepwise, getattr(importlib.import_module(module), cls)(config))
        if config.limits and config.limits.tokens_per_minute and not hasattr(handler, "computed"):
            message = f"{FILE}: limits.tokens_per_minute is for models that generate text, not for {config.handler}"
            raise ModelUnusable(message, hint="limit requests_per_second instead")
        return handler, walls
    except BaseException as error:
        if out := exhausted(error):  # even if the handler reports it as an error of the files
            log.exception("out of resources during the load")
            if out is error:
                raise
            out.message = f"while loading: {out.message}"
            raise out from error
        if not config.directory.is_dir():
            message = f"{config.directory}: the model's directory was removed during the load"
            raise ModelNotFound(message, hint="restore the directory, then load the model again") from error
        if isinstance(error, ServeError):
            raise
        if missing := not_installed(error):
            raise missing from error
        log.exception("load failed")
        raise InternalError(f"loading failed: {described(error)}", hint="see the log") from error


def _of_server(settings: Settings) -> tuple[Path, ...]:
    """The run directory, and the directories of all models."""
    assert settings.run_dir is not None
    roots = settings.model_roots if settings.multi_model else (settings.model_dir,)
    return tuple(each.resolve() for each in (settings.run_dir, *roots))


def prepare(settings: Settings) -> None:
    """Do the work that is the same for all runners, before they are forked."""
    enclosure.prepare(_of_server(settings))


def _enclose(given: Record, config: ModelConfig[Any], settings: Settings, own: Sequence[str]) -> tuple[Walls, Path]:
    """Raise the walls, before a file or a line of code of the model is read.

    Returns them, and the directory whose files outlive the process.
    """
    server = _of_server(settings)
    for path in (*config.allow.read, *config.allow.write):
        if any(each.is_relative_to(os.path.realpath(path)) for each in server):
            message = f"model.toml: allow: {path} contains {settings.run_dir} or the directories of all models"
            raise ModelUnusable(message, hint="name the directories that the code needs one by one")
        if Path(path).resolve().is_relative_to(server[0]):
            raise ModelUnusable(f"model.toml: allow: {path} is in the run directory", hint="use tempfile, or TMPDIR")
    credentials = config.allow.credentials or bool(settings.s3_inputs)
    read = [config.directory, *([config.submitted] if config.submitted else []), *map(Path, own)]
    if credentials:
        read += _credential_files()
    os.environ |= given.environment
    place = settings.own / socket_name(config.name)
    unpacked = [settings.unpacked / place.name] if config.directory.is_relative_to(settings.unpacked) else []
    installed = [each for each in map(Path, own) if each.is_relative_to(settings.packages)]
    walls = raise_walls(
        Policy(
            read=tuple(read),
            write=config.directory,
            own=place / str(os.getpid()),
            kept=place / "kept",
            run_dir=server[0],
            roots=server[1:],
            given=(*unpacked, *installed),
            user=given.user,
            network=config.allow.network or bool(settings.s3_inputs),
            subprocess=config.allow.subprocess,
            more_read=config.allow.read,
            more_write=config.allow.write,
        )
    )
    advice.note(given.withheld)
    allowed = [*walls.allowed, *(["credentials"] if credentials else []), *given.environment]
    modules = str(place / "kept" / "modules")
    os.environ["HF_MODULES_CACHE"] = modules
    for name in ("transformers.utils.hub", "transformers.utils", "transformers.dynamic_module_utils"):
        if module := sys.modules.get(name):  # they have read the variable when they were imported
            vars(module)["HF_MODULES_CACHE"] = modules
    return msgspec.structs.replace(walls, allowed=tuple(dict.fromkeys(allowed))), place / "kept"


def _credential_files() -> list[Path]:
    """The files in which AWS's SDK looks for credentials. Its variables name them, because HOME becomes another."""
    found = []
    for variable, usual in (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config")):
        path = Path(os.environ.setdefault(variable, str(Path.home() / ".aws" / usual)))
        found += [path] if path.is_file() else []
    token = Path(os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE", "/nonexistent"))
    return [*found, *([token] if token.is_file() else [])]
