"""Ends what this process has started when it is killed itself: its servers, jobs, functions and containers.

SIGKILL leaves no time to stop them, and the kernel's own signal at the death of a parent (PR_SET_PDEATHSIG) is bound to
the thread that started the child. So a second process waits for the end of the first, which closes a pipe.
"""

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

GRACE = 5.0  # seconds from SIGTERM to SIGKILL


class _Watch:
    """The pipe to the second process, which starts with the first thing that it is to end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def tell(self, line: str) -> None:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    [sys.executable, "-S", __file__], stdin=subprocess.PIPE, start_new_session=True
                )
                atexit.register(self._end, self._process)
            assert self._process.stdin
            try:
                self._process.stdin.write(line.encode() + b"\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                pass  # it was killed too; the next line starts another

    @staticmethod
    def _end(process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin
        process.stdin.close()
        process.wait()


_watch = _Watch()


def process(pid: int) -> None:
    """A child, the leader of its session, that is to end with this process."""
    _watch.tell(f"+ process {pid} {_started(pid)}")


def container(name: str) -> None:
    """A container of Docker that is to end with this process."""
    _watch.tell(f"+ container {name} -")


def ended(what: int | str) -> None:
    """A process or a container that has ended by itself."""
    _watch.tell(f"- {'process' if isinstance(what, int) else 'container'} {what} -")


def _started(pid: int) -> str:
    """When a process began, in ticks since boot, which differs for a later process of the same number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "ended"


def _wait_and_end() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    known: dict[tuple[str, str], str] = {}
    for line in sys.stdin:
        sign, kind, name, began = line.split()
        if sign == "+":
            known[kind, name] = began
        else:
            known.pop((kind, name), None)
    containers = [name for kind, name in known if kind == "container"]
    if containers:
        subprocess.run(["docker", "rm", "--force", "--volumes", *containers], capture_output=True)
    left = {int(name): began for (kind, name), began in known.items() if kind == "process"}
    _signal(left, signal.SIGTERM)
    until = time.monotonic() + GRACE
    while time.monotonic() < until and any(_started(pid) == began for pid, began in left.items()):
        time.sleep(0.05)
    _signal(left, signal.SIGKILL)


def _signal(left: dict[int, str], number: signal.Signals) -> None:
    for pid, began in left.items():
        if _started(pid) == began:
            os.killpg(pid, number)


if __name__ == "__main__":
    _wait_and_end()
