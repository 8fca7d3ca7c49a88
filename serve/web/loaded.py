"""On a multi-model endpoint a model is known by its socket, which is there exactly while it is loaded."""

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
        if not (self._sockets / socket_name(asked)).exists():
            raise ModelNotFound(f"model {asked[:200]!r} is not loaded", hint="POST /models loads one")
        return asked
