"""epoll for the runner's loop: it is told only of changes, since telling it costs a system call."""

import select
import socket

HANGS_UP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Poll:
    def __init__(self, listener: socket.socket, control: socket.socket) -> None:
        self._epoll = select.epoll()
        self.wait = self._epoll.poll
        self.watched: dict[int, int] = {}  # connections, by file descriptor: the events epoll has been told
        # EPOLLEXCLUSIVE: with several copies on one socket, wake one of them for a connection and not all.
        self._epoll.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        self._epoll.register(control, select.EPOLLIN)

    def retire(self, listener: socket.socket, control: socket.socket) -> None:
        """Hear no more of new connections, nor of the host."""
        self._epoll.unregister(listener)
        self._epoll.unregister(control)

    def watch(self, fd: int, events: int) -> None:
        known = self.watched.get(fd)
        if known is None:
            self._epoll.register(fd, events)
        elif known != events:
            self._epoll.modify(fd, events)
        self.watched[fd] = events

    def forget(self, fd: int) -> None:
        if self.watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def blocked(self, fd: int) -> bool:
        """Whether the peer has yet to take what was sent to it."""
        return bool(self.watched.get(fd, 0) & select.EPOLLOUT)
