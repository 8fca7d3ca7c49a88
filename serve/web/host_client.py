"""What a web worker asks the host, over its socket: short questions, answered within two seconds or not at all."""

import http.client
import socket
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from serve.errors import InternalError, ModelNotFound, NotReady, ServeError, from_wire
from serve.http.addresses import PLAIN

ANSWERS_WITHIN = 2.0
ABSENT = {"state": "absent", "begun": True}


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

    def get(self, target: str, request_id: str = "") -> tuple[int, bytes]:
        """Status and body of a GET. Raises NotReady when the host does not answer."""
        connection = _UnixConnection(self._path)
        try:
            connection.request("GET", target, headers={"X-Request-Id": request_id})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise NotReady(f"the host does not answer: {error}", hint="see the log", retry_after=1) from error
        finally:
            connection.close()

    def name_of(self, sock: str) -> str:
        """The model behind a socket, which a short name is; what else it may be the host is asked."""
        short = sock.removesuffix(".sock")
        if PLAIN.fullmatch(short):
            return short
        status, body = self.get(f"/model?socket={quote(sock)}")
        return str(msgspec.json.decode(body)["modelName"]) if status == HTTPStatus.OK else short

    def trouble(self, sock: str, arrived: float | None) -> tuple[ServeError | None, dict[str, Any]]:
        """Why a connection to this socket broke off, if the host knows, and the state of the model behind it.

        `arrived`: when the request did, in seconds since 1970; "begun" in the answer is whether it may have been begun.
        """
        since = f"&arrived={arrived}" if arrived is not None else ""
        status, body = self.get(f"/trouble?socket={quote(sock)}{since}")
        shown: dict[str, Any] = msgspec.json.decode(body)
        if status == HTTPStatus.NOT_FOUND:  # unloaded meanwhile
            return ModelNotFound(shown["message"], hint=shown["hint"], model=shown["model"]), ABSENT
        if status != HTTPStatus.OK:
            return InternalError(shown.get("message", "the host does not know why")), ABSENT
        return (from_wire(shown["error"]) if shown["error"] else None), shown
