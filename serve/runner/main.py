"""A runner from its birth to its end: one process, one model. Called in the forkserver's child, never returns."""

import ctypes
import gc
import importlib
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, cast

from serve import errors
from serve import log as serve_log
from serve.catalog.kinds import HANDLERS
from serve.catalog.model_config import ModelConfig, decoded
from serve.catalog.scan import real
from serve.errors import InternalError, ModelNotFound, ServeError
from serve.failures import exhausted, not_installed
from serve.handlers.base import Predictor, Stepwise
from serve.http.addresses import INVOCATIONS
from serve.runner import own_packages
from serve.runner.addressee import Addressee
from serve.runner.jobs import Batches
from serve.runner.loop import Loop
from serve.runner.records import Engine, Records
from serve.settings import Settings
from serve.slots import Slots

log = logging.getLogger(__name__)

PR_SET_NAME = 15


def run(
    number: int,
    record: int,
    listener: socket.socket,
    control: socket.socket,
    settings: Settings,
    own: Sequence[str] | None = None,
) -> None:
    """Load a model, report to the host, serve.

    `number`: the runner's slot. `record`: a file descriptor of the model's ModelConfig. `own`: directories of the
    model's own packages, in an interpreter that was started afresh for them.
    """
    config = decoded(os.pread(record, os.fstat(record).st_size, 0))
    serve_log.start(f"runner {config.name}", settings.log_level)
    ctypes.CDLL(None).prctl(PR_SET_NAME, config.name.encode()[:15])  # so that `top` tells one model from another
    slot = Slots(settings.slots).slot(number)
    slot.clear()
    began = time.monotonic()
    try:
        handler = _load(config, settings, own, partial(_afresh, number, record, listener, control))
    except ServeError as error:
        error.model = config.name
        _tell(control, {"failed": errors.to_wire(error)})
        os._exit(1)
    os.close(record)
    # What loading needed and does not keep goes back to the system before the host measures what is held, and the
    # collector need not look at weights and modules again.
    gc.collect()
    gc.freeze()
    ctypes.CDLL(None).malloc_trim(0)
    engine = cast(Engine, handler if hasattr(handler, "step") else Batches(handler, config.max_batch))
    engine = Records(engine, getattr(handler, "records", ()), settings.bad_record)
    addressee = Addressee(config.names(), settings.model_field, getattr(handler, "paths", (INVOCATIONS,)))
    loop = Loop(engine, addressee, listener, control, slot, settings)
    _tell(control, {"ready": {"seconds": time.monotonic() - began}})
    if loop.run():
        os._exit(1)


def _afresh(number: int, record: int, listener: socket.socket, control: socket.socket, own: Sequence[str]) -> NoReturn:
    """The same runner once more, in an interpreter that has imported nothing yet.

    What the forkserver has imported would hide the versions that a model brings: it has transformers 5 in memory, say.
    """
    files = (record, listener.fileno(), control.fileno())
    for file in files:
        os.set_inheritable(file, True)
    os.execv(sys.executable, [sys.executable, "-m", "serve", "runner", *map(str, (number, *files)), *own])


def begin(number: int, record: int, listener: int, control: int, settings: Settings, own: Sequence[str]) -> None:
    """What `_afresh` began."""
    run(number, record, socket.socket(fileno=listener), socket.socket(fileno=control), settings, own)


def _load(
    config: ModelConfig[Any],
    settings: Settings,
    own: Sequence[str] | None,
    afresh: Callable[[Sequence[str]], NoReturn],
) -> Predictor | Stepwise:
    module, _, cls = HANDLERS[config.handler].partition(":")
    # For what a model's own code imports: it would take every core of the machine, whatever the container may use.
    os.environ.setdefault("OMP_NUM_THREADS", str(config.threads))
    try:
        if settings.multi_model and settings.run_dir:
            # Again, since it may have been swapped for a link since the host looked; archives are in the run directory.
            real(config.directory, (*settings.model_roots, settings.run_dir))
        if own is None and (packages := own_packages.prepare(config, settings)):
            afresh(list(map(str, packages)))
        sys.path[:0] = own or ()
        return cast(Predictor | Stepwise, getattr(importlib.import_module(module), cls)(config))
    except Exception as error:
        if out := exhausted(error):  # also where the handler took it for the files' fault
            log.exception("exhausted while loading")
            if out is error:
                raise
            out.message = f"while loading: {out.message}"
            raise out from error
        if not config.directory.is_dir():
            says = f"{config.directory}: the model's directory vanished while it was loading"
            raise ModelNotFound(says, hint="put it there again, then load it") from error
        if isinstance(error, ServeError):
            raise
        if missing := not_installed(error):
            raise missing from error
        log.exception("load failed")
        raise InternalError(f"loading failed: {type(error).__name__}: {error}", hint="see the log") from error


def _tell(control: socket.socket, message: Mapping[str, Any]) -> None:
    control.send(json.dumps(message).encode())
