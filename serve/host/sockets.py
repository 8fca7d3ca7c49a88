"""What the host's loop listens to for its models: sockets nobody serves, and what runners say."""

import logging
import select
import socket
from collections.abc import Iterator, Mapping

from serve import errors
from serve.errors import ServeError
from serve.host.model import Hosted, RunnerProcess
from serve.host.store import Store
from serve.http import wire
from serve.settings import Settings


class Watch:
    """Which file descriptor is whose. `refresh` costs what has changed since, not what there is."""

    def __init__(self, store: Store, poll: select.epoll) -> None:
        self._store = store
        self._poll = poll
        self._models = {model.listener.fileno(): model for model in store.models.values()}
        self._listening: set[int] = set()
        self._runners: dict[int, RunnerProcess] = {}

    def model(self, fd: int) -> Hosted | None:
        return self._models.get(fd)

    def runner(self, fd: int) -> RunnerProcess | None:
        """The runner whose channel this is; perhaps one that has ended."""
        return self._runners.get(fd)

    def add(self, model: Hosted) -> None:
        self._models[model.listener.fileno()] = model

    def drop(self, model: Hosted) -> None:
        """Before its socket is closed, for the number may be another's then."""
        fd = model.listener.fileno()
        if fd in self._listening:
            self._poll.unregister(fd)
            self._listening.remove(fd)
        del self._models[fd]

    def forget(self, fd: int) -> None:
        self._runners.pop(fd, None)

    def refresh(self) -> None:
        """Listen for models nobody serves any more, and to new runners."""
        while self._store.changed:
            model = self._store.changed.pop()
            if model.leaving:
                continue
            fd, wanted = model.listener.fileno(), self._store.listens_for(model)
            if wanted and fd not in self._listening:
                self._poll.register(fd, select.EPOLLIN)
                self._listening.add(fd)
            elif not wanted and fd in self._listening:
                self._poll.unregister(fd)
                self._listening.remove(fd)
            for runner in model.runners:
                control = runner.control.fileno()
                if self._runners.get(control) is not runner:
                    self._runners[control] = runner
                    # Edge-triggered: an ended runner's end of file is told once.
                    self._poll.register(control, select.EPOLLIN | select.EPOLLET)


log = logging.getLogger(__name__)


class Door:
    def __init__(self, settings: Settings, watch: Watch, poll: select.epoll) -> None:
        self._watch = watch
        self._poll = poll
        self._arriving: dict[int, wire.Connection] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(settings.host_socket))
        self._listener.listen(1024)
        self._listener.setblocking(False)
        poll.register(self._listener, select.EPOLLIN)

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> Iterator[wire.Connection]:
        """Who has come and said all already."""
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # nobody more, or no file descriptor for one, who then waits in the backlog
                return
            caller = wire.Connection(sock)
            if self._read(caller):
                yield caller
            elif sock.fileno() >= 0:
                self._watch.forget(sock.fileno())  # an ended runner's channel had this number; what it said is not ours
                self._arriving[sock.fileno()] = caller
                self._poll.register(sock, select.EPOLLIN)

    def hear(self, fd: int) -> wire.Connection | None:
        """Whoever has this file descriptor, if he has said all now."""
        caller = self._arriving.get(fd)
        if caller is None:
            return None
        whole = self._read(caller)
        if whole:
            self._poll.unregister(fd)  # he may wait for minutes, and hang up meanwhile
        if whole or caller.sock.fileno() < 0:
            del self._arriving[fd]
        return caller if whole else None

    def _read(self, caller: wire.Connection) -> bool:
        try:
            return caller.read()
        except (wire.Gone, ServeError):
            caller.close()
            return False


def refuse(caller: wire.Connection, error: ServeError) -> None:
    body = errors.body(error, caller.headers.get("x-request-id", ""))
    reply(caller, body, status=error.status, headers=errors.headers(error))


def reply(
    caller: wire.Connection,
    body: bytes,
    *,
    status: int = 200,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> None:
    try:
        # nginx and web workers take an answer at once; waiting here for one that does not would stop the host.
        caller.sock.settimeout(1.0)
        caller.sock.sendall(wire.answer(status, content_type, body, headers))
    except OSError:
        log.warning("a caller went away", extra={"path": caller.target.decode("latin-1")})
    caller.close()
