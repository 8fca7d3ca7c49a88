"""What has to be read, and perhaps unpacked, before it is known what a model needs: in threads, beside the loop."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from serve.errors import ModelNotFound
from serve.host import archive, entry, multi_model
from serve.host.entry import Spec
from serve.host.hosted import Hosted, Stage
from serve.names import socket_name
from serve.settings import MB, Settings

# Of the run directory's disk, or a tenth of it if that is less: for nginx and the model's own temporary files.
SPARED = 256 * MB


class Preparing:
    """Models that are being prepared."""

    def __init__(self, settings: Settings, wake: Callable[[], None]) -> None:
        self._hf_task = settings.hf_task
        self._unpacked = settings.unpacked
        self._roots = settings.model_roots if settings.multi_model else ()
        self._program = settings.program
        self._wake = wake  # makes the host's loop turn, from a thread
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="unpack")
        self._going_on: list[tuple[Hosted, Future[Spec]]] = []

    def begin(self, model: Hosted) -> None:
        model.stage = Stage.PREPARING
        future = self._threads.submit(self._prepare, model)
        future.add_done_callback(lambda _: self._wake())
        self._going_on.append((model, future))

    def done(self) -> Iterator[tuple[Hosted, Future[Spec]]]:
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

    def _prepare(self, model: Hosted) -> Spec:
        path = model.entry.path
        if self._roots:
            path = multi_model.real(path, self._roots)  # again: it may have been swapped for a link meanwhile
        if not path.exists():
            raise ModelNotFound(f"there is nothing at {path} any more", hint="put it there again, then load it")
        if not model.entry.archive:
            return entry.describe(model.name, path, self._hf_task, self._program)
        self._unpacked.mkdir(exist_ok=True)
        free, size = archive.disk(self._unpacked)
        room = max(free - min(SPARED, size // 10), 0)
        directory = archive.unpack(path, self._place(model), limit_bytes=room)
        return entry.describe(model.name, directory, self._hf_task, self._program)
