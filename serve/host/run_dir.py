"""The files by which the server's processes reach one another: whether any of them is gone, or is another file.

Cleaners of temporary files remove sockets and directories that look old. Without them every request is answered with
503 while all processes run, without end; so the server stops instead.
"""

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from serve.host.store import Store
from serve.settings import Settings

EVERY = 1.0  # seconds between two looks
ALL_EVERY = 5.0  # seconds between two looks at the sockets of all models: 1.5 ms for a thousand
HINT = "exclude the run directory from whatever cleans or renames it, or set SERVE_RUN_DIR, and start the server again"


class FilesLost(Exception):
    """A file that the server needs is gone. The text says which."""


class RunDirectory:
    """Looks at the run directory, the sockets and files in it, and the models' sockets."""

    def __init__(self, settings: Settings, store: Store) -> None:
        assert settings.run_dir is not None
        self._run_dir = settings.run_dir
        self._sockets = settings.sockets
        names = (settings.sockets, settings.catalog, settings.slots)
        self._names = {*(each.name for each in names), "body", "proxy"}  # the last two are nginx's
        self._store = store
        self._known: dict[Path, tuple[int, int]] = {}  # device and inode of each, since it was first seen
        self._looked = self._looked_at_all = 0.0  # time.monotonic()
        self._changed = 0  # of the directory of the models' sockets, when it was last looked at: st_mtime_ns

    def check(self) -> None:
        """Raise FilesLost. To be called in every turn of the host's loop."""
        now = time.monotonic()
        if now - self._looked < EVERY:
            return
        self._looked = now
        for path in self._needed():
            self._check(path)
        changed = _stat(self._sockets).st_mtime_ns
        if changed == self._changed and now - self._looked_at_all < ALL_EVERY:
            return
        self._changed, self._looked_at_all = changed, now
        for model in self._store.models.values():
            if lost := model.socket_lost():
                raise FilesLost(f"{lost}, the socket of model {model.name!r}")

    def _needed(self) -> Iterator[Path]:
        """The run directory, what is known, and what other processes have added to it meanwhile."""
        yield self._run_dir
        yield from list(self._known)
        try:
            with os.scandir(self._run_dir) as entries:
                for entry in entries:
                    if entry.name in self._names or entry.name.endswith(".sock"):
                        yield Path(entry.path)
        except OSError as error:
            raise FilesLost(f"{self._run_dir} cannot be read: {error.strerror}") from error

    def _check(self, path: Path) -> None:
        found = _stat(path)
        if self._known.setdefault(path, (found.st_dev, found.st_ino)) != (found.st_dev, found.st_ino):
            raise FilesLost(f"{path} was replaced by another {'directory' if stat.S_ISDIR(found.st_mode) else 'file'}")


def _stat(path: Path) -> os.stat_result:
    try:
        return path.lstat()
    except FileNotFoundError as error:
        raise FilesLost(f"{path} was removed or renamed") from error
    except OSError as error:
        raise FilesLost(f"{path} cannot be reached: {error.strerror}") from error
