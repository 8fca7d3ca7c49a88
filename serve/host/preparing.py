"""What has to be read, and perhaps unpacked, before it is known what a model needs: in threads, beside the loop."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from serve.host import archive, catalog
from serve.host.catalog import Spec
from serve.host.hosted import Hosted, Stage
from serve.names import socket_name
from serve.settings import MB, Settings

SPARED = 256 * MB  # of the run directory's disk, for nginx and the model's own temporary files


class Preparing:
    """Models that are being prepared."""

    def __init__(self, settings: Settings, wake: Callable[[], None]) -> None:
        assert settings.run_dir is not None
        self._hf_task = settings.hf_task
        self._unpacked = settings.run_dir / "unpacked"
        self._wake = wake  # makes the host's loop turn, from a thread
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="unpack")
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
        if not model.entry.archive:
            return catalog.describe(model.name, model.entry.path, self._hf_task)
        self._unpacked.mkdir(exist_ok=True)
        room = max(archive.free_bytes(self._unpacked) - SPARED, 0)
        directory = archive.unpack(model.entry.path, self._place(model), limit_bytes=room)
        return catalog.describe(model.name, directory, self._hf_task)
