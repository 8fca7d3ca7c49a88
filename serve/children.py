"""The child processes of the launcher: started, signalled, awaited, reaped, killed; adopted orphans as well.

No child outlives the launcher: each asks the kernel to be killed with its parent.
"""

import ctypes
import os
import selectors
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None)
_CREDENTIALS = struct.Struct(
    "3i"
)  # of a socket's peer: process, user, group; https://man7.org/linux/man-pages/man7/unix.7.html


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent ends, even by SIGKILL."""
    parent = os.getppid()
    _LIBC.prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # the parent ended before this call
        os._exit(1)


def signal_name(number: int) -> str:
    """SIGKILL, say. Most real-time signals have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def become_subreaper() -> None:
    """Become the parent of orphaned descendants."""
    _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)


class HasFileno(Protocol):
    def fileno(self) -> int: ...


def announce(pipe: int, pid: int) -> None:
    """Tell the reader of a pipe that this process and its children are parts of the server."""
    os.write(pipe, struct.pack("<i", pid))


class Parts:
    """The processes that may ask another part of the server: those that the launcher announces, and their children."""

    def __init__(self, pipe: int) -> None:
        """`pipe`: from the launcher, which writes a process id to it for each part that it has started."""
        self._pipe = pipe
        self._announced: set[int] = set()
        os.set_blocking(pipe, False)

    def include(self, peer: socket.socket) -> bool:
        """Whether the process that has connected is one of them, and of this process's user."""
        pid, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid != os.geteuid():
            return False
        self._learn()
        return not self._announced.isdisjoint((pid, _parent_of(pid)))

    def _learn(self) -> None:
        try:
            found = os.read(self._pipe, 4096)
        except OSError:  # nothing new
            return
        self._announced.update(each for (each,) in struct.iter_unpack("<i", found))


def _parent_of(pid: int) -> int:
    """0 if the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


class Children:
    """The children, by name. `ended` is the name and the exit status of the first that has exited."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self.ended: tuple[str, int] | None = None
        self._woken, self._waker = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ)

    def adopt(self) -> None:
        """Become the parent of orphaned descendants, and let any signal end a `pause`."""
        become_subreaper()
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def spawn(
        self,
        name: str,
        command: list[str],
        environ: Mapping[str, str],
        with_parent: int = signal.SIGKILL,
        stdin: int = subprocess.DEVNULL,
    ) -> int:
        """Start a child; its process id. The kernel sends it the signal `with_parent` when this process exits."""
        child = subprocess.Popen(
            command,
            env=environ,
            stdin=stdin,
            start_new_session=True,
            preexec_fn=partial(die_with_parent, with_parent),  # noqa: PLW1509 - the launcher has one thread
        )
        child.returncode = 0  # `reap` waits for it, so that Popen must not
        self._names[child.pid] = name
        return child.pid

    def watch(self, source: HasFileno, turn: Callable[[], None]) -> None:
        """Call `turn` in every `pause` in which `source` is readable."""
        self._selector.register(source, selectors.EVENT_READ, turn)

    def pause(self, seconds: float) -> None:
        """Wait for a signal, for at most so long, and serve what is watched meanwhile."""
        until = time.monotonic() + seconds
        signalled = False
        while not signalled:
            for key, _ in self._selector.select(max(0.0, until - time.monotonic())):
                if key.data is None:
                    self._woken.recv(4096)
                    signalled = True
                else:
                    key.data()
            if time.monotonic() >= until:
                return

    def reap(self) -> None:
        """Reap every child that has exited, orphans included."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            name = self._names.pop(pid, None)
            if name and self.ended is None:
                self.ended = name, os.waitstatus_to_exitcode(status)

    def signal(self, name: str, number: int) -> None:
        for pid, each in self._names.items():
            if each == name:
                os.kill(pid, number)

    def await_end(self, name: str, until: float) -> None:
        """Wait until the child has exited, or until `until` (time.monotonic())."""
        while name in self._names.values() and time.monotonic() < until:
            self.reap()
            if name in self._names.values():
                self.pause(min(0.05, max(0.0, until - time.monotonic())) or 0.01)

    def kill_all(self) -> None:
        """Kill all children, and the orphans that they leave, until none is left."""
        until = time.monotonic() + 3.0
        while time.monotonic() < until:
            self.reap()
            left = children_of(os.getpid())
            if not left:
                return
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self.pause(0.02)


def kill_with_descendants(pids: Iterable[int]) -> None:
    """Kill these processes and all below them.

    All are stopped first: those that start others faster than they are killed would never end.
    """
    stopped: set[int] = set()
    waiting = list(pids)
    while waiting:
        found = {*waiting} - stopped
        for pid in found:
            _send_signal(pid, signal.SIGSTOP)
        stopped |= found
        # Again those below all of them: a process may have started another before it was stopped.
        waiting = [child for pid in stopped for child in children_of(pid) if child not in stopped]
    for pid in stopped:
        _send_signal(pid, signal.SIGKILL)


def _send_signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def children_of(pid: int) -> list[int]:
    """The children of all threads of a process."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, file.read_text().split())
        except OSError:
            pass  # the thread has ended
    return found
