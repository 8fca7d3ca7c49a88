"""The health checks, answered by the launcher between two waits: no body, no model and no queue delays them.

nginx sends /ping and /v2/health here, as a GET with few headers. If the launcher does not answer within
`TIMEOUT_MS`, nginx asks a web worker, which has the same answers (serve/web/app.py).
"""

import select
import socket
from pathlib import Path

from serve import errors
from serve.errors import NotReady, PathNotFound, ServeError
from serve.http import media, wire
from serve.http.addresses import LIVE, PING, READY
from serve.slots import Slots, State

SILENCE = 5.0  # seconds without a heartbeat after which the host is taken for dead
TIMEOUT_MS = 500  # a quarter of the 2 s after which the platform counts a check as failed
HELD = 64  # connections whose request is incomplete; nginx sends a request at once and completely
ACCEPTS = 64  # connections a turn, so that a flood of checks does not keep the launcher from its signals

_BODIES = {PING: b"", LIVE: b'{"live":true}', READY: b'{"ready":true}'}


def check_ready(slots: Slots) -> None:
    """Raise NotReady, with the reason, unless the host serves."""
    state, silence, reason = slots.pulse()
    if silence > SILENCE:
        state, reason = State.STARTING, f"the host process has sent no heartbeat for {silence:.0f} s"
    if state is not State.READY:
        raise NotReady(reason, hint="GET /models shows each model's state", retry_after=1)


class HealthSocket:
    """A listening Unix socket with its connections. `fileno` is readable while `turn` has work; nothing blocks."""

    def __init__(self, path: Path, slots: Slots) -> None:
        self._slots = slots
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(str(path))
        path.chmod(0o600)  # no model's user may open it
        self._listener.listen(1024)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._held: dict[int, wire.Connection] = {}  # by file descriptor, the oldest first

    def fileno(self) -> int:
        return self._epoll.fileno()

    def turn(self) -> None:
        """Answer the requests that have arrived."""
        for fd, _ in self._epoll.poll(0):
            if fd != self._listener.fileno():
                self._epoll.unregister(fd)
                self._read(self._held.pop(fd))
                continue
            for _ in range(ACCEPTS):
                try:
                    connection = wire.accept(self._listener)
                except OSError:  # none waits; or out of file descriptors, and nginx asks a web worker
                    break
                self._read(connection)

    def _read(self, connection: wire.Connection) -> None:
        try:
            if connection.read():
                connection.write(self._answer(connection))
            else:
                self._hold(connection)
                return
        except (wire.Gone, ServeError):
            pass
        connection.close()

    def _hold(self, connection: wire.Connection) -> None:
        if len(self._held) >= HELD:
            oldest = next(iter(self._held))
            self._epoll.unregister(oldest)
            self._held.pop(oldest).close()
        self._held[connection.fd] = connection
        self._epoll.register(connection.fd, select.EPOLLIN)

    def _answer(self, connection: wire.Connection) -> bytes:
        path = connection.target.decode("latin-1")
        try:
            if path not in _BODIES:
                raise PathNotFound(f"no such path: {path[:200]}", hint="use GET /ping")
            if path != LIVE:
                check_ready(self._slots)
        except ServeError as error:
            request_id = connection.headers.get("x-request-id", "")
            body = errors.body(error, request_id, open_inference=path != PING)
            return wire.answer(error.status, media.JSON, body, errors.headers(error))
        return wire.answer(200, media.JSON, _BODIES[path])
