"""On a multi-model endpoint a model is known by its socket, which is open exactly while it is loaded."""

import os
from itertools import islice
from pathlib import Path

from serve.errors import ModelNotFound
from serve.host.catalog import Catalog
from serve.names import socket_name


class Loaded(Catalog):
    """A catalog without entries: the file system is asked, so that all web workers know the same at the same time."""

    def __init__(self, sockets: Path) -> None:
        super().__init__([])
        self._sockets = sockets

    def resolve(self, asked: str) -> str:
        if not _is_open(self._sockets / socket_name(asked)):
            # In the words of AWS's own multi-model servers.
            raise ModelNotFound(f"Model not found: {asked[:300]}", hint="POST /models loads one", model=asked[:300])
        return asked

    def some(self) -> list[str]:
        files = islice((each.name for each in self._sockets.iterdir() if each.name[0] != "~" and _is_open(each)), 20)
        return sorted(file.removesuffix(".sock") for file in files)


def _is_open(path: Path) -> bool:
    return os.access(path, os.X_OK)  # as nginx asks with -x
