"""The sockets of the host's loop: one registry of file descriptors, the models' sockets, and the host's own."""

import logging
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from serve import errors
from serve.errors import ServeError
from serve.host.model import ServedModel
from serve.host.store import Store
from serve.http import wire

log = logging.getLogger(__name__)

ACCEPTED_AT_ONCE = 64  # connections in a turn: a process that connects without end keeps the host from nothing else
LONGEST_ACCEPTS = 0.1  # seconds for the queued connections of one model: 10,000 of them


class Poller:
    """The registry: every socket that the loop waits for, and the function to call when it is readable.

    The kernel reuses the number of a closed socket at once. An entry therefore holds the socket itself: an event for a
    socket that was closed earlier in the same turn is dropped, and a new socket replaces the entry of its number.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, tuple[socket.SocketType, Callable[[], None]]] = {}

    def watch(self, sock: socket.SocketType, on_readable: Callable[[], None], *, once: bool = False) -> None:
        """Call `on_readable` in every turn in which the socket is readable; `once`: for each new message or EOF."""
        self._epoll.register(sock, select.EPOLLIN | (select.EPOLLET if once else 0))
        self._watched[sock.fileno()] = sock, on_readable

    def watches(self, sock: socket.SocketType) -> bool:
        return self._watched.get(sock.fileno(), (None,))[0] is sock

    def unwatch(self, sock: socket.SocketType) -> None:
        """Needed before a close if another process holds the socket as well: epoll would go on reporting it."""
        self._epoll.unregister(sock)
        del self._watched[sock.fileno()]

    def wait(self, seconds: float) -> None:
        """Wait for events for at most so long, and call the function of each."""
        for fd, _ in self._epoll.poll(seconds):
            sock, on_readable = self._watched.get(fd, (None, None))
            if on_readable and sock and sock.fileno() == fd:
                on_readable()


class ModelSockets:
    """The models' sockets that no runner serves, and the control channels of runners."""

    def __init__(self, store: Store, poller: Poller) -> None:
        self._store = store
        self._poller = poller

    def refresh(self) -> None:
        """Watch the sockets of models that have lost their last runner, and new runners. Costs what has changed."""
        while self._store.changed:
            model = self._store.changed.pop()
            if model.leaving:
                continue
            wanted, watched = self._store.listens_for(model), self._poller.watches(model.listener)
            if wanted and not watched:
                self._poller.watch(model.listener, partial(self._connected, model))
            elif watched and not wanted:
                self._poller.unwatch(model.listener)
            for runner in model.runners:
                channel = runner.control.socket
                if not self._poller.watches(channel):
                    # Once: a runner that has exited stays readable (EOF) until the forkserver has reported it.
                    self._poller.watch(channel, partial(self._store.heard, runner), once=True)

    def close_all_queued(self) -> None:
        """Close every queued connection of every model: no model can be served any more."""
        for model in self._store.models.values():
            if not model.leaving:
                self.drop(model)
                _close_queued(model)

    def drop(self, model: ServedModel) -> None:
        """Stop watching a model's socket, before it is closed."""
        if self._poller.watches(model.listener):
            self._poller.unwatch(model.listener)

    def _connected(self, model: ServedModel) -> None:
        """A caller has connected to a model without a runner: load it, or refuse during a pause after a failure."""
        if not self._store.listens_for(model):
            return
        if not model.failure():
            self._store.want(model)
        if model.failure():
            _close_queued(model)


def _close_queued(model: ServedModel) -> None:
    """Close every queued connection. nginx sends the request to a web worker, which asks the host for the cause.

    Whether an accept waits is a flag of the socket itself, which runners share: the code of a model may have changed
    it, and a retiring runner may do so at any time. Therefore it is set again, and an alarm ends an accept that waits.
    """
    model.listener.setblocking(False)
    usual = signal.signal(signal.SIGALRM, _give_up)
    with suppress(OSError):  # none is left, or the alarm, which may come as late as it is stopped
        try:
            signal.setitimer(signal.ITIMER_REAL, LONGEST_ACCEPTS)
            while True:
                sock, _ = model.listener.accept()
                sock.close()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, usual)


def _give_up(*_: object) -> None:
    raise TimeoutError


class HostSocket:
    """The host's own socket: reads requests of web workers and nginx, and passes on the complete ones.

    Other processes are refused: a model's own code could ask for a load or an unload, and take the file descriptors.
    """

    def __init__(
        self,
        path: Path,
        poller: Poller,
        on_request: Callable[[wire.Connection], None],
        allowed: Callable[[socket.socket], bool],
    ) -> None:
        self._poller = poller
        self._on_request = on_request
        self._allowed = allowed
        self._refused = 0.0  # time.monotonic() of the last refusal in the log
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(1024)
        self._listener.setblocking(False)
        poller.watch(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                sock, _ = self._listener.accept()
            except OSError:  # none left, or out of file descriptors: then the rest waits in the backlog
                return
            if not self._allowed(sock):
                self._log_refusal()
                sock.close()
                continue
            caller = wire.Connection(sock)
            complete = _read(caller)
            if complete:
                self._on_request(caller)
            elif complete is None:
                caller.close()
            else:
                self._poller.watch(sock, partial(self._read_more, caller))

    def _log_refusal(self) -> None:
        """Once a second, whatever tries."""
        now = time.monotonic()
        if now - self._refused >= 1.0:
            self._refused = now
            log.warning("refused a process that is no part of the server")

    def _read_more(self, caller: wire.Connection) -> None:
        complete = _read(caller)
        if complete is False:
            return
        self._poller.unwatch(caller.sock)  # also if complete: its answer may take minutes, and it may hang up meanwhile
        if complete:
            self._on_request(caller)
        else:
            caller.close()


def _read(caller: wire.Connection) -> bool | None:
    """Whether the request is complete; None if the connection is broken or sends no HTTP."""
    try:
        return caller.read()
    except (wire.Gone, ServeError):
        return None


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
        # nginx and web workers read an answer at once. Without a timeout, one that does not would block the host.
        caller.sock.settimeout(1.0)
        caller.sock.sendall(wire.answer(status, content_type, body, headers))
    except OSError:
        extra = {"path": caller.target.decode("latin-1"), "request_id": caller.headers.get("x-request-id", "")}
        log.warning("caller hung up before its answer", extra=extra)
    caller.close()
