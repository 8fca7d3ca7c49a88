"""A web worker's client of the host: short requests over the host's Unix socket."""

import http.client
import socket
import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

import msgspec

from serve.errors import InternalError, ModelNotFound, NotReady, ServeError, from_wire
from serve.http.addresses import PLAIN
from serve.http.clock import Clock
from serve.slots import Slots, State

TIMEOUT = 2.0  # seconds for one read or write
# Bounds of the seconds in which the host must answer a question for a cause. It waits for the cause as well: for 3 s at
# most (PATIENCE in serve/host/answers.py), and not beyond the time limit of the request.
CAUSE_TIMEOUT = (0.3, 4.5)
WAY_BACK = 0.15  # seconds of that time for the answer's way to the caller
ENDED_HINT = "retry: the container is being replaced; its log has the cause"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenConnection:
    """What the host knows of a connection to a model that broke, or was not answered in time."""

    error: ServeError | None  # the cause; None if neither a failure nor a crash is known
    load_step: str = ""  # what the load of the model does now, in words; "" without a load
    load: float = 0.0  # seconds that the request has waited for a load of the model
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
    def __init__(self, path: Path, slots: Slots) -> None:
        self._path = path
        self._slots = slots

    def _ended(self) -> NotReady:
        """There is no host: the reason that it has left, if it could."""
        state, _, reason = self._slots.pulse()
        if state is not State.ENDING:
            reason = "the host process has ended, and all models with it: the server stops"
        return NotReady(reason, hint=ENDED_HINT, retry_after=1)

    def get(self, target: str, request_id: str = "", timeout: float = TIMEOUT) -> tuple[int, bytes]:
        """Status and body of a GET. Raises NotReady if there is no host, or if it does not answer."""
        connection = _UnixConnection(self._path, timeout)
        try:
            connection.request("GET", target, headers={"X-Request-Id": request_id})
            response = connection.getresponse()
            return response.status, response.read()
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise self._ended() from error
        except (OSError, http.client.HTTPException) as error:
            raise NotReady(f"the host process does not answer: {error}", hint="see the log", retry_after=1) from error
        finally:
            connection.close()

    def check(self) -> None:
        """Raise NotReady if there is no host process."""
        connection = _UnixConnection(self._path, TIMEOUT)
        try:
            connection.connect()
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise self._ended() from error
        except OSError:
            pass  # its queue is full: it is alive
        finally:
            connection.close()

    def name_of(self, sock: str) -> str:
        """The model of a socket. A plain name is the socket's own; for others the host is asked."""
        short = sock.removesuffix(".sock")
        if PLAIN.fullmatch(short):
            return short
        status, body = self.get(f"/model?socket={quote(sock)}")
        return str(msgspec.json.decode(body)["modelName"]) if status == HTTPStatus.OK else short

    def broken_connection(self, sock: str, clock: Clock | None, request_limit: float) -> BrokenConnection:
        """Why a connection to this socket broke. `clock`: of its request.

        The answer comes before the request's time limit, or within 0.3 s if that is over.
        """
        least, most = CAUSE_TIMEOUT
        query, within = "", most
        if clock:
            received = clock.arrived_epoch + clock.receive
            within = max(least, min(most, received + request_limit - time.time()))
            query = f"&arrived_epoch={clock.arrived_epoch}&received_epoch={received}&patience={within - 2 * WAY_BACK}"
        status, body = self.get(f"/cause?socket={quote(sock)}{query}", timeout=within - WAY_BACK)
        shown = msgspec.json.decode(body)
        if status == HTTPStatus.NOT_FOUND:  # the model was unloaded meanwhile
            return BrokenConnection(error=ModelNotFound(shown["message"], hint=shown["hint"], model=shown["model"]))
        if status != HTTPStatus.OK:
            return BrokenConnection(error=InternalError(shown.get("message", "the host does not know the cause")))
        return BrokenConnection(
            error=from_wire(shown["error"]) if shown["error"] else None,
            load_step=shown["load_step"],
            load=shown["load"],
            may_have_begun=shown["may_have_begun"],
        )
