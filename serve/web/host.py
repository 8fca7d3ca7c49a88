"""What a web worker asks the host, over its socket: short questions, answered within two seconds or not at all."""

import http.client
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from serve.errors import InternalError, NotReady, ServeError, from_wire

ANSWERS_WITHIN = 2.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("host", timeout=ANSWERS_WITHIN)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class HostClient:
    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, target: str) -> tuple[int, bytes]:
        """Status and body of a GET. Raises NotReady when the host does not answer."""
        connection = _UnixConnection(self._path)
        try:
            connection.request("GET", target)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise NotReady(f"the host does not answer: {error}", hint="see the log", retry_after=1) from error
        finally:
            connection.close()

    def trouble(self, model: str) -> tuple[ServeError | None, dict[str, Any]]:
        """Why a connection to this model broke off, if the host knows, and the model's state."""
        status, body = self.get(f"/trouble?name={quote(model)}")
        shown: dict[str, Any] = msgspec.json.decode(body)
        if status != 200:
            return InternalError(shown.get("message", "the host does not know why")), {"state": "absent"}
        return (from_wire(shown["error"]) if shown["error"] else None), shown
