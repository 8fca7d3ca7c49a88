"""The process all runners are forked from: frameworks imported once, no tensor, no thread, no CUDA.

It imports what it was told to, then waits for orders from the host on a socket of whole messages, forks, reaps, and
reports every death with its status. It ends when the host does, and its runners with it.
"""

import ctypes
import errno
import gc
import importlib
import json
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from serve import log as serve_log
from serve.runner import main as runner
from serve.settings import Settings

log = logging.getLogger(__name__)

MESSAGE = 1 << 16
PR_SET_PDEATHSIG = 1
NICENESS = 5  # runners yield to nginx, web workers and host, so that /ping is answered under full load


def run(channel: socket.socket, modules: Sequence[str], settings: Settings) -> None:
    """Fork a runner an order until the host closes the channel; in between, import `modules`, one at a time.

    An order whose handler is not imported yet has it imported first: a model that needs little does not wait for what
    another model needs.
    """
    serve_log.start("forkserver", settings.log_level)
    die_with_parent()
    awake, wake = socket.socketpair()
    awake.setblocking(False)
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(awake, select.POLLIN)
    began = time.monotonic()
    missing = list(modules)
    told = False
    while True:
        if not missing and not told:
            told = True
            log.info("imported", extra={"modules": list(modules), "seconds": round(time.monotonic() - began, 2)})
        ready = [fd for fd, _ in poll.poll(0 if missing else None)]
        if awake.fileno() in ready:
            awake.recv(4096)
            _reap(channel)
        if channel.fileno() in ready:
            message, fds, _, _ = socket.recv_fds(channel, MESSAGE, 2)
            if not message:
                signal.set_wakeup_fd(-1)  # children may still end while this process does
                return
            order = json.loads(message)
            wanted = order["module"]
            if wanted in missing:
                missing.remove(wanted)
                _import(wanted)
            _fork(channel, order, fds, settings, (awake, wake))
        elif not ready:
            _import(missing.pop(0))


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except Exception:
        # The runner that needs it will say so to whoever asks for the model.
        log.exception("import failed", extra={"module": module})
    gc.collect()
    gc.freeze()  # a collection in a child would touch, and so copy, every page of what was imported here


def _fork(
    channel: socket.socket, order: dict[str, object], fds: list[int], settings: Settings, own: Sequence[socket.socket]
) -> None:
    listener, control = (socket.socket(fileno=fd) for fd in fds)
    try:
        pid = os.fork()
    except OSError as error:  # a limit on processes, or on memory
        lacks = "memory" if error.errno == errno.ENOMEM else "processes"
        _send(channel, {"unborn": order["runner"], "cause": f"fork: {error.strerror}", "lacks": lacks})
        pid = -1
    if pid:
        listener.close()
        control.close()
        if pid > 0:
            _send(channel, {"runner": order["runner"], "pid": pid})
        return
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        channel.close()
        for each in own:
            each.close()
        die_with_parent()
        os.nice(NICENESS)
        _offer_to_oom_killer()
        runner.run(order, listener, control, settings)
        os._exit(0)
    except BaseException:
        log.exception("runner failed", extra={"model": order["name"]})
        sys.stderr.flush()
        os._exit(1)


def _reap(channel: socket.socket) -> None:
    """Every child that has ended, not one a signal: signals that arrive together are one signal."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        _send(channel, {"died": pid, "status": os.waitstatus_to_exitcode(status)})


def _send(channel: socket.socket, message: dict[str, object]) -> None:
    channel.send(json.dumps(message).encode())


def die_with_parent() -> None:
    """However the parent ends, kill -9 too, this process is killed with it."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def _offer_to_oom_killer() -> None:
    """When the container runs out of memory, the kernel shall take a runner and not the processes that serve all."""
    try:
        Path("/proc/self/oom_score_adj").write_text("800")
    except OSError:
        log.warning("oom_score_adj cannot be set")
