"""A web worker's client of the host: short requests over the host's Unix socket."""

import http.client
import socket
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

import msgspec

from serve.errors import InternalError, ModelNotFound, NotReady, ServeError, from_wire
from serve.http.addresses import PLAIN

TIMEOUT = 2.0  # seconds for one read or write
CAUSE_TIMEOUT = 4.5  # the host itself waits for a cause, for 3 s at most (PATIENCE in serve/host/answers.py)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenConnection:
    """What the host knows of a connection to a model that broke, or was not answered in time."""

    error: ServeError | None  # the cause; None if neither a failure nor a crash is known
    state: str = "absent"  # of the model, as in GET /models
    since: float = 0.0  # seconds since the model was wanted
    may_have_begun: bool = True  # work on the request; false is certain


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("host", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class HostClient:
    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, target: str, request_id: str = "", timeout: float = TIMEOUT) -> tuple[int, bytes]:
        """Status and body of a GET. Raises NotReady if the host does not answer."""
        connection = _UnixConnection(self._path, timeout)
        try:
            connection.request("GET", target, headers={"X-Request-Id": request_id})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise NotReady(f"the host process does not answer: {error}", hint="see the log", retry_after=1) from error
        finally:
            connection.close()

    def name_of(self, sock: str) -> str:
        """The model of a socket. A plain name is the socket's own; for others the host is asked."""
        short = sock.removesuffix(".sock")
        if PLAIN.fullmatch(short):
            return short
        status, body = self.get(f"/model?socket={quote(sock)}")
        return str(msgspec.json.decode(body)["modelName"]) if status == HTTPStatus.OK else short

    def broken_connection(self, sock: str, arrived_epoch: float | None) -> BrokenConnection:
        """Why a connection to this socket broke. `arrived_epoch`: when its request did, in seconds since 1970."""
        arrived = f"&arrived_epoch={arrived_epoch}" if arrived_epoch is not None else ""
        status, body = self.get(f"/cause?socket={quote(sock)}{arrived}", timeout=CAUSE_TIMEOUT)
        shown = msgspec.json.decode(body)
        if status == HTTPStatus.NOT_FOUND:  # the model was unloaded meanwhile
            return BrokenConnection(error=ModelNotFound(shown["message"], hint=shown["hint"], model=shown["model"]))
        if status != HTTPStatus.OK:
            return BrokenConnection(error=InternalError(shown.get("message", "the host does not know the cause")))
        return BrokenConnection(
            error=from_wire(shown["error"]) if shown["error"] else None,
            state=shown["state"],
            since=shown["since"],
            may_have_begun=shown["may_have_begun"],
        )
