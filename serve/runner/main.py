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
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

from serve import errors
from serve import log as serve_log
from serve.catalog.catalog import real
from serve.catalog.kinds import HANDLERS
from serve.errors import InternalError, ModelNotFound, ServeError
from serve.failures import exhausted, not_installed
from serve.handlers.base import Model, Predictor, Stepwise
from serve.http.addresses import INVOCATIONS
from serve.runner import own_packages
from serve.runner.addressee import Names
from serve.runner.jobs import Batches
from serve.runner.loop import Loop
from serve.runner.records import Engine, Records
from serve.settings import Settings
from serve.slots import Slots

log = logging.getLogger(__name__)

PR_SET_NAME = 15


def run(order: Mapping[str, Any], listener: socket.socket, control: socket.socket, settings: Settings) -> None:
    """Load the model that `order` (see serve.host.model.order) describes, tell the host, serve."""
    serve_log.start(f"runner {order['name']}", settings.log_level)
    ctypes.CDLL(None).prctl(PR_SET_NAME, order["name"].encode()[:15])  # so that `top` tells one model from another
    slot = Slots(settings.slots).slot(order["slot"])
    slot.clear()
    began = time.monotonic()
    try:
        handler = _load(order, settings, partial(_afresh, listener, control))
    except ServeError as error:
        error.model = order["name"]
        _tell(control, {"failed": errors.to_wire(error)})
        os._exit(1)
    # What loading needed and does not keep goes back to the system before the host measures what is held, and the
    # collector need not look at weights and modules again.
    gc.collect()
    gc.freeze()
    ctypes.CDLL(None).malloc_trim(0)
    engine = cast(Engine, handler if hasattr(handler, "step") else Batches(handler, order["max_batch"]))
    engine = Records(engine, getattr(handler, "records", ()), settings.bad_record)
    names = Names(order["known_as"], settings.model_field, getattr(handler, "paths", (INVOCATIONS,)))
    loop = Loop(engine, names, listener, control, slot, settings)
    _tell(control, {"ready": {"seconds": time.monotonic() - began}})
    if loop.run():
        os._exit(1)


def _afresh(listener: socket.socket, control: socket.socket, order: Mapping[str, Any]) -> NoReturn:
    """The same runner once more, in an interpreter that has imported nothing yet.

    What the forkserver has imported would hide the versions that a model brings: it has transformers 5 in memory, say.
    """
    told = os.memfd_create("order")
    os.write(told, json.dumps(order).encode())
    os.lseek(told, 0, os.SEEK_SET)
    numbers = (told, listener.fileno(), control.fileno())
    for number in numbers:
        os.set_inheritable(number, True)
    os.execv(sys.executable, [sys.executable, "-m", "serve", "runner", *map(str, numbers)])


def begin(order: int, listener: int, control: int, settings: Settings) -> None:
    """What `_afresh` began."""
    with open(order, "rb") as told:
        run(json.load(told), socket.socket(fileno=listener), socket.socket(fileno=control), settings)


def _load(
    order: Mapping[str, Any], settings: Settings, afresh: Callable[[Mapping[str, Any]], NoReturn]
) -> Predictor | Stepwise:
    module, _, cls = HANDLERS[order["handler"]].partition(":")
    model = Model(
        name=order["name"],
        directory=Path(order["directory"]),
        task=order["task"],
        threads=order["threads"],
        max_batch=order["max_batch"],
        options=order["options"],
        remote_code=order["remote_code"],
        model_field=order["model_field"],
        default_accept=order["default_accept"],
        batch_transform=order["batch_transform"],
        multi_model=order["multi_model"],
        inference_output=order["inference_output"],
        ensemble=order["ensemble"],
    )
    # For what a model's own code imports: it would take every core of the machine, whatever the container may use.
    os.environ.setdefault("OMP_NUM_THREADS", str(model.threads))
    try:
        if settings.multi_model and settings.run_dir:
            # Again, since it may have been swapped for a link since the host looked; archives are in the run directory.
            real(model.directory, (*settings.model_roots, settings.run_dir))
        if "own_packages" not in order and (own := own_packages.prepare(order, settings)):
            afresh({**order, "own_packages": list(map(str, own))})
        sys.path[:0] = order.get("own_packages", [])
        return cast(Predictor | Stepwise, getattr(importlib.import_module(module), cls)(model))
    except Exception as error:
        if out := exhausted(error):  # also where the handler took it for the files' fault
            log.exception("exhausted while loading")
            if out is error:
                raise
            out.message = f"while loading: {out.message}"
            raise out from error
        if not model.directory.is_dir():
            says = f"{model.directory}: the model's directory vanished while it was loading"
            raise ModelNotFound(says, hint="put it there again, then load it") from error
        if isinstance(error, ServeError):
            raise
        if missing := not_installed(error):
            raise missing from error
        log.exception("load failed")
        raise InternalError(f"loading failed: {type(error).__name__}: {error}", hint="see the log") from error


def _tell(control: socket.socket, message: Mapping[str, Any]) -> None:
    control.send(json.dumps(message).encode())
