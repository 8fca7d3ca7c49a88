"""One runner as the host sees it, and the way to get one: an order to the forkserver."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from serve.handlers import HANDLERS
from serve.host.entry import Spec
from serve.host.forkserver import MESSAGE
from serve.settings import Settings
from serve.slots import Slot


class Phase(Enum):
    LOADING = "loading"
    READY = "ready"
    RETIRING = "retiring"


class RunnerProcess:
    """A runner from the order to its death; `number` is its slot, and its name until the process id is known."""

    def __init__(self, number: int, model: str, slot: Slot, reserved: int) -> None:
        self.number = number
        self.model = model
        self.slot = slot
        self.bytes = reserved  # an estimate until measured
        self.phase = Phase.LOADING
        self.pid = 0
        self.since = time.monotonic()
        self.retired = 0.0  # time.monotonic() when it was asked to end
        self.measured = 0.0  # time.monotonic() of the last measurement of `bytes`
        self.killed_for = ""  # why it ends, where that is known before its death
        self.told_failure = False
        self.control, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.setblocking(False)

    def retire(self) -> None:
        """Ask it to stop accepting, answer what it holds, and end."""
        self.phase = Phase.RETIRING
        self.retired = time.monotonic()
        try:
            self.control.send(b"retire")
        except OSError:
            pass  # it has ended; the forkserver says so soon

    def kill(self, why: str) -> None:
        self.killed_for = why
        if self.pid:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has ended by itself, and the news of it is on its way

    def messages(self) -> Iterator[Mapping[str, Any]]:
        """What it has said since last asked; nothing more once it has ended."""
        while True:
            try:
                raw = self.control.recv(MESSAGE)
            except OSError:
                return
            if not raw:
                return
            yield json.loads(raw)

    def gone(self) -> bool:
        """Whether it has ended: the kernel closes its channel before its connections, and its death is told later."""
        try:
            return not self.control.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def hand_over(self) -> socket.socket:
        """The end of the control channel that goes to the runner; ours to close once sent."""
        return self._theirs


class Forkserver:
    """The forkserver process, by the channel to it."""

    def __init__(self, settings: Settings, modules: Sequence[str], *, alone: bool) -> None:
        """`alone`: there will never be more than one runner, and no share of a processor is kept from it."""
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._unsent: deque[tuple[bytes, socket.socket, socket.socket]] = deque()
        environ = {
            **os.environ,
            # numpy's OpenBLAS would start its threads at import, and threads do not survive a fork.
            "OPENBLAS_NUM_THREADS": "1",
            "JE_ARROW_MALLOC_CONF": "background_thread:false",  # the same for pyarrow's allocator
            # Freed pages go back to the system, and threads share few heaps: what a model held is given back.
            "MALLOC_ARENA_MAX": "2",
            # torch's large blocks in huge pages: the head of GPT-2 takes 11 ms for one row and not 15.
            "THP_MEM_ALLOC_ENABLE": "1",
            "TOKENIZERS_PARALLELISM": "false",  # a pool of its own in each runner; threads are ours to give out
            "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime, which a model's own code may import too, would call its maker
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": f"{settings.run_dir}/modules",  # copies of a model's own code, where it may run
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # the log is lines of JSON
            "TRANSFORMERS_VERBOSITY": "error",
            "SERVE_RUN_DIR": str(settings.run_dir),
        }
        if not alone:
            # Threads that wait for the next product sleep at once. A runner that has its cores to itself keeps what
            # libgomp does by default, a short spin ("active" would spin for ever): docs/decisions/0007-threads.md.
            environ.setdefault("OMP_WAIT_POLICY", "passive")
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serve", "forkserver", str(theirs.fileno()), *modules],
                pass_fds=[theirs.fileno()],
                env=environ,
                stdin=subprocess.DEVNULL,
            )
        self.channel.setblocking(False)

    def fork(self, runner: RunnerProcess, order: Mapping[str, Any], listener: socket.socket) -> None:
        """Order a runner. Raises EOFError when the forkserver has ended, as do the others.

        The channel holds some 170 orders, which nobody reads during an import. Those beyond wait here: a host that
        waits answers nobody, and for ever once the births it does not read fill the other direction.
        """
        message = json.dumps({**order, "runner": runner.number, "slot": runner.number}).encode()
        self._unsent.append((message, listener.dup(), runner.hand_over()))
        self._flush()

    def _flush(self) -> None:
        while self._unsent:
            message, listener, control = self._unsent[0]
            try:
                socket.send_fds(self.channel, [message], [listener.fileno(), control.fileno()])
            except BlockingIOError:
                return  # until the next birth, which means that an order was read
            except OSError as broken:
                raise EOFError from broken
            self._unsent.popleft()
            listener.close()
            control.close()

    def messages(self) -> Iterator[Mapping[str, Any]]:
        """Births and deaths since last asked."""
        while True:
            try:
                raw = self.channel.recv(MESSAGE)
            except BlockingIOError:
                self._flush()
                return
            except OSError as broken:
                raise EOFError from broken
            if not raw:
                raise EOFError
            yield json.loads(raw)

    def stop(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait()


def order(spec: Spec, settings: Settings) -> dict[str, Any]:
    """What a runner must know of its model, as plain values for the way through the forkserver."""
    return {
        "name": spec.name,
        # What a caller may call it; a single model gets requests whose body nobody else has looked into.
        "known_as": [spec.name, f"{spec.name}.tar.gz", *spec.aliases, *([spec.model_type] if spec.model_type else [])],
        "directory": str(spec.directory),
        "handler": spec.handler,
        "module": HANDLERS[spec.handler].partition(":")[0],
        "task": spec.task,
        "threads": spec.threads or settings.threads,
        "max_batch": spec.max_batch or settings.max_batch,
        "options": dict(spec.options),
        "remote_code": settings.remote_code,
        "model_field": settings.model_field,
        "default_accept": settings.default_accept or None,
        "batch_transform": settings.batch_transform,
        "multi_model": settings.multi_model,
        "inference_output": settings.inference_output,
        "ensemble": settings.ensemble,
        "allow_pip": settings.allow_pip,
    }
