"""The registry of the sockets that the host's loop waits for."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.children import Parts, announce
from serve.host.sockets import ACCEPTED_AT_ONCE, HostSocket, Poller
from serve.http import wire


def test_an_event_of_a_socket_that_was_closed_in_the_same_turn_is_dropped() -> None:
    """Even if a new socket has its number by then: the new one is not reported as readable."""
    poller, calls = Poller(), list[str]()
    pairs = [socket.socketpair() for _ in range(2)]
    fresh: list[socket.socket] = []

    def close_the_others(name: str) -> None:
        calls.append(name)
        for (ours, _), other in zip(pairs, "ab", strict=True):
            if other != name:
                number = ours.fileno()
                poller.unwatch(ours)
                ours.close()
                fresh.append(socket.socket(socket.AF_UNIX))
                assert fresh[-1].fileno() == number
                poller.watch(fresh[-1], lambda: calls.append("fresh"))

    for (ours, theirs), name in zip(pairs, "ab", strict=True):
        poller.watch(ours, lambda name=name: close_the_others(name))  # type: ignore[misc]
        theirs.send(b"x")
    poller.wait(0)

    assert calls[0] in "ab"
    assert len(calls) <= 2
    assert calls[1:] in ([], ["fresh"])  # epoll reports a new socket only if it is readable itself
    for each in (*fresh, *(end for pair in pairs for end in pair)):
        each.close()


def test_an_entry_is_that_of_its_socket_and_not_of_its_number() -> None:
    """A number is reused as soon as its socket is closed."""
    poller = Poller()
    ours, theirs = socket.socketpair()
    poller.watch(ours, lambda: None)
    assert poller.watches(ours)
    assert not poller.watches(theirs)

    number = ours.fileno()
    ours.close()
    with socket.socket(socket.AF_UNIX) as fresh:
        assert fresh.fileno() == number
        assert not poller.watches(fresh)
    theirs.close()


def test_once_reports_an_end_of_file_once() -> None:
    """A runner that has exited stays readable until the forkserver reports it."""
    poller, calls = Poller(), list[str]()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    poller.watch(ours, lambda: calls.append("ours"), once=True)
    theirs.close()
    poller.wait(0)
    poller.wait(0)
    assert calls == ["ours"]
    ours.close()


class Asked:
    """The host's socket, the pipe by which a launcher announces parts, and the paths that were asked for."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "host.sock"
        self.paths: list[bytes] = []
        self._told, self.launcher = os.pipe()
        self._poller = Poller()
        self._socket = HostSocket(self.path, self._poller, self._answer, Parts(self._told).include)

    def _answer(self, caller: wire.Connection) -> None:
        self.paths.append(caller.target)
        caller.close()

    def turn(self) -> None:
        self._poller.wait(1)

    def close(self) -> None:
        self._socket._listener.close()
        os.close(self._told)
        os.close(self.launcher)


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    made = Asked(tmp_path)
    yield made
    made.close()


ASK = """
import socket, subprocess, sys
depth, path = int(sys.argv[1]), sys.argv[2]
if depth > 1:
    sys.exit(subprocess.run([sys.executable, "-c", sys.argv[3], str(depth - 1), path, sys.argv[3]]).returncode)
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(path)
    sock.sendall(b"GET /models HTTP/1.1\\r\\nHost: h\\r\\n\\r\\n")
    sock.recv(1)
"""


@pytest.mark.parametrize(
    ("announced", "depth", "answered"),
    [(False, 1, False), (True, 1, True), (True, 2, False)],
    ids=["no part", "a worker of a part", "a child of a worker"],
)
def test_only_parts_of_the_server_and_their_workers_may_ask_the_host(
    asked: Asked, announced: bool, depth: int, answered: bool
) -> None:
    """The kernel says which process has connected. Others belong to a model's process, or to another server."""
    announce(asked.launcher, os.getpid() if announced else 1)
    child = subprocess.Popen([sys.executable, "-c", ASK, str(depth), str(asked.path), ASK])
    while child.poll() is None:
        asked.turn()
    assert asked.paths == ([b"/models"] if answered else [])


def test_a_part_that_is_announced_later_may_ask_from_then_on(asked: Asked) -> None:
    """nginx starts after the host."""
    for path in (b"/first", b"/second"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(asked.path))
            sock.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: h\r\n\r\n")
            asked.turn()
        announce(asked.launcher, os.getpid())
    assert asked.paths == [b"/second"]


def test_a_process_that_connects_without_end_gets_a_part_of_a_turn(asked: Asked) -> None:
    """The host goes on to its other sockets."""
    peers = [socket.socket(socket.AF_UNIX) for _ in range(2 * ACCEPTED_AT_ONCE)]
    for peer in peers:
        peer.connect(str(asked.path))
        peer.setblocking(False)

    def refused() -> int:
        count = 0
        for peer in peers:
            try:
                count += not peer.recv(1)
            except BlockingIOError:
                pass
        return count

    asked.turn()
    assert refused() == ACCEPTED_AT_ONCE
    asked.turn()
    assert refused() == len(peers)
    for peer in peers:
        peer.close()
